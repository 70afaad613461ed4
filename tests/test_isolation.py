"""Results that a copy or a pickle would change are not stored, so nobody is handed a changed one."""

from __future__ import annotations

import asyncio
import copy
import copyreg
import datetime as dt
import enum
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex_cache import CacheManager, _payload, cached
from codomyrmex_cache._isolation import is_immutable, isolated
from codomyrmex_cache.errors import CacheCodecError
from tests.conftest import run_python

T = TypeVar("T")


class Money(Decimal):
    currency = "?"


class Day(dt.date):
    pass


def _with(value: Any, **attributes: Any) -> Any:
    vars(value).update(attributes)
    return value


@pytest.mark.parametrize("make", [lambda: _with(Money(5), currency="EUR"), lambda: _with(Day(2026, 1, 1), currency="EUR")])
def test_attributes_that_a_copy_would_lose_are_never_lost(manager: CacheManager, backend_name: str, make: Any) -> None:
    @cached("money", backend=backend_name, manager=manager)
    def function() -> Any:
        return make()

    for _ in range(3):
        result = function()
        assert result.currency == "EUR"
        result.currency = "USD"


def test_the_cells_of_a_frame_are_copied_too(manager: CacheManager, backend_name: str) -> None:
    @cached("frames", backend=backend_name, manager=manager)
    def function() -> pd.DataFrame:
        return pd.DataFrame({"a": [[1], [2]]})

    for _ in range(3):
        frame = function()
        assert frame["a"].tolist() == [[1], [2]]
        frame.loc[0, "a"].append(99)


def test_arguments_changed_between_the_call_and_the_body_of_a_coroutine(manager: CacheManager, backend_name: str) -> None:
    @cached("chat", backend=backend_name, manager=manager)
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    async def main() -> None:
        numbers = [1]
        task = asyncio.create_task(total(numbers))
        await asyncio.sleep(0)
        numbers.append(5)
        await task
        assert await total([1]) == 1
        assert await total([1, 5]) == 6
        await manager.aclose()

    asyncio.run(main())


def test_dropping_a_value_may_come_back_to_the_cache() -> None:
    manager = CacheManager()

    @cached("dropped", manager=manager, max_entries=2, copy=False)
    def function(x: int) -> Any:
        class Dropped:
            def __del__(self) -> None:
                function.invalidate(x)

        return Dropped()

    for number in range(10):
        function(number)
    function.clear()
    assert manager.stats("dropped").size == 0


def test_a_removed_folder_is_noticed(tmp_path: Path) -> None:
    import shutil

    cache = CacheManager(directory=tmp_path / "root").get_cache("x", backend="file_based")
    cache.set("k", 1)
    shutil.rmtree(tmp_path / "root")
    deadline = time.monotonic() + 1.0
    while cache.get("k") is not None:
        assert time.monotonic() < deadline
    cache.set("k", 2)
    assert cache.get("k") == 2
    shutil.rmtree(tmp_path / "root")
    cache.set("k", 2)  # a write looks every time
    assert cache.get("k") == 2
    cache.close()


def test_writes_of_coroutines_have_threads_of_their_own(tmp_path: Path) -> None:
    cache = CacheManager(directory=tmp_path).get_cache("x", backend="file_based")

    async def main() -> None:
        async def load() -> int:
            await asyncio.sleep(0.05)
            return 5

        leader = asyncio.create_task(cache.aget_or_load("k", load))
        await asyncio.sleep(0.01)
        followers = [asyncio.to_thread(cache.get_or_load, "k", lambda: 5) for _ in range(64)]  # all of the loop's threads
        assert set(await asyncio.gather(leader, *followers)) == {5}
        await cache.aclose()

    asyncio.run(main())


def test_threads_that_come_first_agree_on_one_manager() -> None:
    source = """
import sys, threading
sys.setswitchinterval(1e-6)
from codomyrmex_cache import CacheManager
barrier, found = threading.Barrier(8), []
def work():
    barrier.wait()
    found.append(CacheManager.default())
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(set(map(id, found))))
"""
    assert {run_python(source) for _ in range(5)} == {"1\n"}


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"x\xff", 1, 2, "bad"), FileNotFoundError(2, "no", "file"), KeyError("k")]
)
def test_the_exception_of_a_follower_is_whole(error: Exception) -> None:
    @cached("whole", manager=CacheManager())
    async def function() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        for found in await asyncio.gather(*(function() for _ in range(3)), return_exceptions=True):
            assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))

    asyncio.run(main())


def test_every_call_has_an_outcome_however_it_ends() -> None:
    @cached("exits", manager=CacheManager())
    def leaves() -> None:
        raise SystemExit

    @cached("slow", manager=CacheManager())
    async def slow() -> None:
        await asyncio.Event().wait()

    with pytest.raises(SystemExit):
        leaves()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(slow(), 0.02))
    assert (leaves.stats().calls, slow.stats().calls) == (1, 1)


def test_a_class_over_a_container_counts_by_its_content() -> None:
    class Named(deque[int]):
        pass

    @cached("named", manager=CacheManager())
    def size(items: Named) -> int:
        return len(items)

    assert [size(Named([1])), size(Named([1, 2])), size(Named([1]))] == [1, 2, 1]


# -- what is handed out by reference


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    left: object
    right: object = None


@dataclass(frozen=True)
class Point:
    x: object
    y: object = 0


@dataclass(frozen=True, slots=True)
class Slotted:
    x: object


@dataclass(frozen=True)
class Further(Point):
    z: object = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", 5)


@dataclass(frozen=True)
class Boxed(Generic[T]):
    content: T

    @property
    def double(self) -> tuple[T, T]:
        return self.content, self.content


@pytest.mark.parametrize(
    "value",
    [
        Point(1, ("a", None)), Slotted(2.5), Further(1, 2, frozenset({Colour.RED})), Boxed(Point(dt.date(2026, 1, 1))),
        Pair(1, Pair("a")), (Colour.RED, Point(Slotted(b"a"))), os.stat_result(range(10)), os.terminal_size((80, 25)),
    ],
)  # fmt: skip
def test_what_nobody_can_change_is_shared(manager: CacheManager, backend_name: str, value: object) -> None:
    @cached("shared", backend=backend_name, manager=manager)
    def function() -> object:
        return value

    assert is_immutable(value)
    assert isolated([value])[0] is value
    assert [function(), function()] == [value, value]
    assert backend_name != "in_memory" or function() is value


class Derived(Point):
    """Not frozen: other attributes than the dataclass's can be set."""


@dataclass(frozen=True)
class Lazy:
    x: int

    @cached_property
    def numbers(self) -> list[int]:
        return [self.x]


class keeps(property):  # noqa: N801  like cached_property of other libraries
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return vars(instance).setdefault("kept", [])


@dataclass(frozen=True)
class Keeper:
    x: int
    numbers = keeps()


@dataclass(frozen=True)
class OverList(list):  # type: ignore[type-arg]
    x: int = 0


@dataclass(frozen=True)
class OverDeque(deque):  # type: ignore[type-arg]
    x: int = 0


@dataclass(frozen=True)
class FrozenError(Exception):
    x: int = 0


@dataclass
class Open:
    x: object = field(default_factory=list)


class Labelled(tuple):  # type: ignore[type-arg]
    pass


class Group(frozenset):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    "value",
    [
        Point([1]), Slotted([1]), Further(1, 2, {3}), Boxed(bytearray(b"a")), Pair(1, Pair([])), (Point(Open()),), Derived(1),
        _with(Point(1), extra=[]), Lazy(1), Keeper(1), OverList(), OverDeque(), Open(1), Labelled((1,)), Group({1}),
        frozenset({Lazy(1)}),
    ],
)  # fmt: skip
def test_what_somebody_can_change_is_copied(value: Any) -> None:
    assert not is_immutable(value)
    assert isolated(value) is not value
    assert isolated([value])[0] is not value


def test_an_exception_has_a_traceback_that_changes() -> None:
    assert not is_immutable(FrozenError())


def test_the_mutable_result_of_a_cached_property_is_not_shared(manager: CacheManager) -> None:
    @cached("lazy", manager=manager)
    def function() -> Lazy:
        return Lazy(1)

    for _ in range(3):
        found = function().numbers
        assert found == [1]
        found.append(2)


def test_each_part_of_a_nest_is_looked_at_once() -> None:
    nest: Any = (1,)
    for _ in range(200):
        nest = Pair(nest, nest)

    assert is_immutable(nest)
    assert not is_immutable(Pair([], nest))
    assert isolated([nest])[0] is nest


def test_a_nest_too_deep_for_recursion_is_examined_too() -> None:
    nest: Any = (1,)
    for _ in range(100_000):
        nest = (nest,)

    assert is_immutable(nest)


# -- copies


class Text(str):
    pass


_ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
    | st.sampled_from([nan, -0.0, inf, 2**200, 1j, Colour.RED, Text("a"), Decimal("1.0"), dt.datetime(2026, 1, 1), len, ()])
)  # fmt: skip
_KEYS = st.text(max_size=2) | st.integers() | st.sampled_from([nan, -0.0, (1, "a"), Pair(1, 2), Colour.RED, Point(1), Lazy(1)])


_MAKERS: dict[str, Any] = {"list": list, "tuple": tuple, "point": Point, "open": Open}


@st.composite
def values(draw: st.DrawFn) -> Any:
    """A value whose parts occur in several places, maybe in themselves."""
    nodes = draw(st.lists(_ATOMS, min_size=1, max_size=3))
    for _ in range(draw(st.integers(1, 8))):
        parts = st.sampled_from(list(nodes))
        make = draw(st.sampled_from(["list", "dict", "tuple", "set", "frozenset", "pair", "point", "open", "bytes"]))
        if make in ("set", "frozenset"):
            node: Any = (set if make == "set" else frozenset)(draw(st.lists(_KEYS, max_size=3)))
        elif make == "dict":
            node = draw(st.dictionaries(_KEYS, parts, max_size=3))
        elif make == "bytes":
            node = bytearray(b"a")
        else:
            items = draw(st.lists(parts, max_size=4))
            node = Pair(tuple(items), items) if make == "pair" else _MAKERS[make](items)
        nodes.append(node)
    for node in draw(st.lists(st.sampled_from(nodes), max_size=3)):
        if isinstance(node, list):
            node.append(draw(st.sampled_from(nodes)))
        elif isinstance(node, dict):
            node["cycle"] = draw(st.sampled_from(nodes))
    return nodes[-1]


def _walk(value: Any, places: dict[int, Any], lines: list[str]) -> None:
    """One line for each part as it is met: its type and content; for one met before, only where that was."""
    kind = type(value)
    members: list[Any] | None = None
    if kind is dict:
        members = [each for pair in value.items() for each in pair]
    elif isinstance(value, (list, tuple)):
        members = list(value)
    elif kind in (set, frozenset):
        members = sorted(value, key=repr)
    elif kind in (Open, Point, Lazy):
        members = [each for pair in vars(value).items() for each in pair]
    if members is None and kind is not bytearray:
        lines.append(f"{kind.__qualname__} {value!r}")
        return
    if id(value) in places:
        lines.append(f"again {list(places).index(id(value))}")
        return
    places[id(value)] = value
    lines.append(f"{kind.__qualname__} {len(value) if members is None else len(members)}")
    for member in members or ():
        _walk(member, places, lines)


def _described(value: Any) -> tuple[list[str], dict[int, Any]]:
    lines: list[str] = []
    places: dict[int, Any] = {}
    _walk(value, places, lines)
    return lines, places


def _change(value: Any) -> bool:
    """Whether it could be changed."""
    if isinstance(value, list):
        value.append("changed")
    elif isinstance(value, dict):
        value["changed"] = True
    elif isinstance(value, set):
        value.add("changed")
    elif isinstance(value, bytearray):
        value.extend(b"changed")
    elif isinstance(value, Open):
        value.x = "changed"
    elif isinstance(value, Lazy):
        vars(value)["numbers"] = "changed"
    else:
        return False
    return True


@settings(max_examples=500, deadline=None)
@given(values())
def test_copies_are_what_deepcopy_makes_and_share_nothing_that_changes(value: Any) -> None:
    before, own = _described(value)

    copied = isolated(value)

    found, parts = _described(copied)
    assert found == _described(copy.deepcopy(value))[0]
    for place, part in parts.items():
        assert not (_change(part) and place in own)
    assert _described(value)[0] == before


def test_atoms_and_the_order_of_keys_survive() -> None:
    text = "a" * 1000
    value = {"b": [text, -0.0, nan, 2**100], "a": {3, 1}, None: [[text], (text, [])], True: {}}

    copied = isolated(value)

    assert repr(copied) == repr(value)
    assert copied["b"][0] is copied[None][0][0] is text


def test_subclasses_of_containers_stay_what_they_are() -> None:
    class Stack(list[int]):
        pass

    stack = Stack([1])
    stack.name = "a"  # type: ignore[attr-defined]
    copied = isolated({"stack": [stack], "again": stack})
    assert type(copied["again"]) is Stack
    assert copied["again"] is copied["stack"][0] is not stack
    assert vars(copied["again"]) == {"name": "a"}


@pytest.mark.parametrize("wrap", [lambda it: [it], lambda it: {"k": (it,)}])
@pytest.mark.parametrize(
    ("make", "what"), [(lambda: Money(5), "hands out itself"), (lambda: Day(2026, 1, 1), "loses attributes")]
)
def test_attributes_inside_containers_are_neither_lost_nor_shared(
    manager: CacheManager, wrap: Any, make: Any, what: str
) -> None:
    @cached("money", manager=manager)
    def function() -> Any:
        return wrap(_with(make(), currency="EUR"))

    with pytest.raises(CacheCodecError, match=what):
        isolated(function())
    for _ in range(3):
        result = function()
        part = result[0] if isinstance(result, list) else result["k"][0]
        assert part.currency == "EUR"
        part.currency = "USD"


class Plain:
    def __init__(self) -> None:
        self.one, self.other = 1, 2


class Forgets(Plain):
    def __getstate__(self) -> dict[str, int]:
        return {"one": 1}


class Replaces(Plain):
    def __deepcopy__(self, memo: dict[int, Any]) -> Plain:
        return _with(Plain.__new__(Plain), one=1)


class Proxy:
    def __init__(self) -> None:
        self.target = Replaces()

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["target"], name)


class Registered(Plain):
    pass


@pytest.mark.parametrize("kind", [Forgets, Replaces, Proxy, Registered])
def test_classes_that_say_how_they_are_copied_are_checked(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Registered, lambda value: (object.__new__, (Plain,), {"one": 1}))

    for value in (kind(), [kind()]):
        with pytest.raises(CacheCodecError, match="loses attributes"):
            isolated(value)


def test_the_cells_of_frames_inside_containers_are_copied_too(manager: CacheManager) -> None:
    @cached("frames", manager=manager)
    def function() -> list[pd.DataFrame]:
        return [pd.DataFrame({"a": [[1], [2]]})] * 2

    for _ in range(3):
        one, other = function()
        assert one is other
        assert one["a"].tolist() == [[1], [2]]
        one.loc[0, "a"].append(99)


def test_what_is_dropped_while_it_is_copied_is_not_taken_for_something_else() -> None:
    class Drops:
        def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
            value.clear()
            return [copy.deepcopy([number], memo) for number in range(100)]

    value: list[Any] = [["dropped"], ["dropped"], ["dropped"], Drops()]

    assert isolated([value]) == [[*[["dropped"]] * 3, [[number] for number in range(100)]]]


# -- the warning


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a copy takes, as the payloads see it."""
    taken, clock = [0.06], [0.0]

    def thread_time() -> float:
        clock[0] += taken[0]
        return clock[0]

    monkeypatch.setattr(_payload, "time", SimpleNamespace(thread_time=thread_time))
    return taken


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == _payload.__name__]


def test_a_slow_copy_is_told_of_once_per_function_and_type(
    manager: CacheManager, caplog: pytest.LogCaptureFixture, seconds: list[float]
) -> None:
    @cached("slow", manager=manager)
    def one(x: int) -> Any:
        return [x] if x < 10 else {x}

    @cached("slow", manager=manager)
    def other(x: int) -> list[int]:
        return [x]

    with caplog.at_level(logging.WARNING):
        for x in (1, 2, 1, 10, 11):
            one(x)
            other(x)

    found = _warnings(caplog)
    assert [(".one:" in each, "list" in each) for each in found] == [(True, True), (False, True), (True, False)]
    assert all("copy=False" in each and "0.06 s" in each and "'slow'" in each for each in found)


def test_a_slow_copy_is_told_of_for_the_direct_api(
    manager: CacheManager, caplog: pytest.LogCaptureFixture, seconds: list[float]
) -> None:
    cache = manager.get_cache("direct")
    with caplog.at_level(logging.WARNING):
        cache.set("a", [1])
        cache.set("b", [1])

    (found,) = _warnings(caplog)
    assert "'direct'" in found
    assert "copy=False" not in found  # there is no such parameter


def test_nothing_is_told_of_quick_copies_and_none_at_all(
    manager: CacheManager, caplog: pytest.LogCaptureFixture, seconds: list[float]
) -> None:
    @cached("quick", manager=manager)
    def quick() -> list[int]:
        return [1]

    @cached("none", manager=manager, copy=False)
    def none() -> list[int]:
        return [1]

    @cached("immutable", manager=manager)
    def immutable() -> Point:
        return Point(1)

    with caplog.at_level(logging.WARNING):
        none()
        immutable()
        seconds[0] = 0.04
        quick()

    assert _warnings(caplog) == []
