"""Ways from raw arguments to a hit: each exact, whatever arguments and objects do meanwhile; hits are counted to the last."""

from __future__ import annotations

import array
import copy
import gc
import os
import threading
from abc import ABC
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex_cache import CacheManager, cached, keys
from codomyrmex_cache._front import Front
from tests.test_frames import entered

HOT_FRAMES = 2
"""Of a hit that the front answers: the wrapper's, and that of binding a method."""


@pytest.fixture
def manager() -> Iterator[CacheManager]:
    """A manager with the real clock: reading the tests' clock is a frame."""
    manager = CacheManager()
    yield manager
    manager.close()


def is_hot(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    return len(entered(function, *args, **kwargs)) <= HOT_FRAMES


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda items: (
        st.lists(items, max_size=3)
        | st.lists(items, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), items, max_size=3)
    ),
    max_leaves=8,
)


def told(value: Any) -> Any:
    """What a function can tell of a value."""
    if isinstance(value, dict):
        return "dict", sorted(map(repr, ((told(key), told(item)) for key, item in value.items())))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [told(item) for item in value]
    return type(value).__name__, repr(value)


@settings(max_examples=400, deadline=None)
@given(st.lists(PLAIN, min_size=1, max_size=4), st.data())
def test_whatever_the_way_different_calls_never_share_an_answer(values: list[Any], data: st.DataObject) -> None:
    @cached(manager=CacheManager())
    def f(x: Any, y: Any = None) -> Any:
        return told(x), told(y)

    for _ in range(20):
        x, y = data.draw(st.sampled_from(values)), data.draw(st.sampled_from([None, *values]))
        assert f(copy.deepcopy(x), copy.deepcopy(y)) == (told(x), told(y))


LOOKALIKES: list[tuple[Any, Any]] = [
    ([1], [True]), ([1], [1.0]), ([1], (1,)), ([0.0], [-0.0]), (["a"], [b"a"]), ([b"a"], [bytearray(b"a")]),
    ([bytearray(b"ab")], [array.array("b", b"ab")]), ({"a": 1}, {"a": True}), ({"a": 1}, UserDict(a=1)), ([{1, 2}], [[1, 2]]),
    ([{1}], [frozenset({1})]), ([b"ab"], [memoryview(b"ab")]), (["1"], [1]), ([[]], [()]), ([None], [False]), ([9**70], ["9"]),
    ({1: 2, 3: 4}, [[1, 2], [3, 4]]), (["\ud800"], ["?"]), ([float("nan")], [float("inf")]), ([1j], [1]),
]  # fmt: skip


@pytest.mark.parametrize("pair", LOOKALIKES, ids=lambda pair: f"{pair[0]!r:.20} {pair[1]!r:.14}")
@pytest.mark.parametrize("variadic", [False, True])
def test_lookalikes_never_share_an_answer(manager: CacheManager, pair: tuple[Any, Any], variadic: bool) -> None:
    @cached(manager=manager)
    def plain(x: Any) -> tuple[str, str]:
        return repr(type(x)), repr(x)

    @cached(manager=manager)
    def with_any(*args: Any, **kwargs: Any) -> tuple[str, str]:
        return repr(type(args[0])), repr(args[0])

    f = with_any if variadic else plain
    for x in [*pair, *pair[::-1], *pair]:
        assert f(x) == (repr(type(x)), repr(x))


def test_lists_dicts_and_keywords_are_hot_in_one_frame(manager: CacheManager) -> None:
    @cached(ttl=3600, manager=manager)
    def ask(model: str, messages: list[dict[str, Any]], *, temperature: float = 1.0, **more: Any) -> str:
        return model

    def call() -> str:
        messages = [{"role": "system", "content": "s" * 500}, {"role": "user", "content": [{"type": "text", "text": "t"}]}]
        return ask("m", messages, temperature=0.0, tools=[{"name": "n", "parameters": {"a": [1, 2.5, None]}}])

    assert [call() for _ in range(3)] == ["m"] * 3
    assert entered(call) == ["call", "ask"]
    assert (ask.stats().hits, ask.stats().misses) == (3, 1)


def test_functions_called_with_both_kinds_of_arguments_are_hot_for_both(manager: CacheManager) -> None:
    for order in (1, -1):

        @cached(manager=manager, version=order)
        def f(x: Any) -> str:
            return repr(x)

        for _ in range(3):
            for x in (1, [1], "a", {"a": 1}, (1, 2), "a" * 10_000)[::order]:
                assert f(x) == repr(x)
        assert all(is_hot(f, x) for x in (1, [1], "a", {"a": 1}, (1, 2), "a" * 10_000))


def test_an_argument_that_is_ignored_neither_hinders_hits_nor_fills_memory(manager: CacheManager) -> None:
    @cached(ignore=["request"], manager=manager)
    def f(x: int, request: object = None) -> int:
        return x

    for number in range(3000):
        f(1, number)
        f(1, object())
    assert is_hot(f, 1, request=object())
    assert (f.stats().misses, f.stats().hits) == (1, 6000)
    front = f.stats.__self__.front  # type: ignore[attr-defined]
    assert sum(map(len, front.cells.values())) == 1


def test_a_function_that_changes_its_argument_leads_nobody_astray(manager: CacheManager) -> None:
    @cached(manager=manager)
    def first(items: list[int]) -> int:
        return items.pop(0)

    for _ in range(3):
        assert [first(items) for items in ([1, 2], [2], [1], [3, 1, 2])] == [1, 2, 1, 3]


def test_an_argument_changed_by_another_thread_leads_nobody_astray(manager: CacheManager) -> None:
    @cached(manager=manager)
    def total(items: list[int]) -> int:
        return sum(items)

    shared, ended = [1, 1], threading.Event()

    def change() -> None:
        while not ended.is_set():
            shared[0], shared[1] = 2, 2
            shared[0], shared[1] = 1, 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            total(shared)
            total.clear()
            total(shared)
    finally:
        ended.set()
        thread.join()
    assert [total([a, b]) for a in (1, 2) for b in (1, 2)] == [2, 3, 3, 4]


# -- methods


class Shop:
    def __init__(self, name: str, stock: list[int] | None = None) -> None:
        self.name, self.stock = name, stock or []

    @cached("front-methods")
    def price(self, item: int) -> tuple[str, int, int]:
        return self.name, sum(self.stock), item


@dataclass
class Point:
    x: float
    y: float = 0.0

    @cached("front-methods")
    def length(self, factor: int = 1) -> float:
        return float((self.x**2 + self.y**2) ** 0.5 * factor)


class Base(ABC):
    size: int

    @cached("front-methods")
    def area(self) -> int:
        return self.size**2


class Square(Base):
    def __init__(self, size: Any) -> None:
        self.size = size


@pytest.fixture(autouse=True)
def _cold() -> None:
    for function in (Shop.price, Point.length, Base.area):
        function.clear()


def test_methods_are_hot_and_answer_for_the_state_of_their_object() -> None:
    shop = Shop("a", [1, 2])
    assert [shop.price(1) for _ in range(3)] == [("a", 3, 1)] * 3
    assert is_hot(lambda: shop.price(1)) or len(entered(lambda: shop.price(1))) <= HOT_FRAMES + 1
    shop.stock.append(4)
    assert shop.price(1) == ("a", 7, 1)
    shop.name = "b"
    assert shop.price(1) == ("b", 7, 1)
    shop.stock.remove(4)
    shop.name = "a"
    runs = Shop.price.stats().misses
    assert (shop.price(1), Shop("a", [1, 2]).price(1), Shop.price.stats().misses) == (("a", 3, 1), ("a", 3, 1), runs)


def test_dataclasses_and_classes_with_abstract_bases_are_hot_too() -> None:
    point, square = Point(3.0, 4.0), Square(3)
    for _ in range(3):
        assert (point.length(), point.length(2), square.area()) == (5.0, 10.0, 9)
    assert len(entered(point.length, 2)) <= HOT_FRAMES
    assert len(entered(square.area)) <= HOT_FRAMES
    point.x = -0.0
    assert point.length() == 4.0
    square.size = True
    assert type(square.area()) is int
    assert square.area() == 1


def test_classes_that_say_what_counts_are_asked_each_time() -> None:
    class Own(Shop):
        def __cache_key__(self) -> str:
            return self.name.lower()

    class Reduced(Shop):
        def __reduce__(self) -> Any:
            return Reduced, (self.name,)

    class Slotted(Shop):
        __slots__ = ("more",)

    class Dynamic(Shop):
        def __getattribute__(self, name: str) -> Any:
            return {"name": "other"} if name == "__dict__" else super().__getattribute__(name)

    for _ in range(3):
        assert Own("A").price(1) == Own("a").price(1) == ("A", 0, 1)
        slotted, other = Slotted("a"), Slotted("a")
        slotted.more, other.more = 1, 2  # type: ignore[attr-defined]
        assert Slotted.price.key(slotted, 1) != Slotted.price.key(other, 1)
        assert Dynamic("x").price(2)[0] == "x"
        assert Reduced("r", [1]).price(1)[0] == "r"
    front = Shop.price.stats.__self__.front  # type: ignore[attr-defined]
    assert not {Own, Reduced, Slotted, Dynamic} & set(front.attributes)


def test_classes_of_one_state_never_share_an_answer() -> None:
    class Cheap(Shop):
        pass

    assert Shop("a").price(1) == ("a", 0, 1)
    Shop("a").price(1)
    assert Cheap.price.key(Cheap("a"), 1) != Shop.price.key(Shop("a"), 1)
    runs = Shop.price.stats().misses
    Cheap("a").price(1)
    assert Shop.price.stats().misses == runs + 1


def test_an_encoder_registered_later_is_heeded() -> None:
    class Client:
        def __init__(self, url: str, calls: int) -> None:
            self.url, self.calls = url, calls

        @cached("front-methods")
        def get(self, path: str) -> int:
            return self.calls

    for _ in range(3):
        assert (Client("u", 1).get("p"), Client("u", 2).get("p")) == (1, 2)
    keys.register(Client, lambda client: client.url)
    assert Client("u", 3).get("p") == Client("u", 4).get("p") == 3
    assert Client("v", 5).get("p") == 5


def test_static_and_class_methods_stay_hot() -> None:
    class Tools:
        @staticmethod
        @cached("front-methods")
        def twice(x: int) -> int:
            return 2 * x

        @classmethod
        @cached("front-methods")
        def name(cls, x: int) -> str:
            return cls.__name__ * x

    for _ in range(3):
        assert (Tools.twice(2), Tools().twice(2), Tools.name(2)) == (4, 4, "ToolsTools")
    assert is_hot(Tools.twice, 2)


# -- what is not hot


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize("values", [(1, True, 1.0, Colour.RED), (0.0, -0.0), ("1", 1), (b"1", "1", bytearray(b"1"))], ids=repr)
def test_equal_arguments_of_other_types_are_other_calls(manager: CacheManager, values: tuple[Any, ...]) -> None:
    @cached(manager=manager)
    def f(x: Any) -> str:
        return repr(x)

    for _ in range(3):
        assert [f(x) for x in values] == list(map(repr, values))


def test_many_orders_of_a_dict_are_bounded(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codomyrmex_cache._front._MAX_FINGERPRINTS", 50)

    @cached(manager=manager)
    def f(x: dict[str, int]) -> int:
        return len(x)

    names = [chr(ord("a") + number) for number in range(12)]
    for turn in range(300):
        order = names[turn % 12 :] + names[: turn % 12]
        if turn % 2:
            order.reverse()
        assert f(dict.fromkeys(order[: 1 + turn % 7], 1)) == 1 + turn % 7
    front = f.stats.__self__.front  # type: ignore[attr-defined]
    assert len(front.fingerprints) <= 51


# -- counting


def test_every_hit_is_counted_while_threads_call_and_invalidate(manager: CacheManager) -> None:
    @cached(manager=manager, max_entries=50)
    def f(x: int) -> int:
        return x

    def call(seed: int) -> None:
        for number in range(20_000):
            f((number * seed) % 97)
            if number % 1000 == 0:
                f.invalidate(number % 97)
            if number % 5000 == 0:
                f.clear()
                f.stats()

    threads = [threading.Thread(target=call, args=(seed,)) for seed in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = f.stats()
    assert stats.calls == 80_000
    assert stats.hits > 0


def test_hits_of_cells_that_are_gone_stay_counted_and_are_not_kept(manager: CacheManager) -> None:
    runs: list[int] = []

    @cached(manager=manager, max_entries=10)
    def f(x: int) -> int:
        runs.append(x)
        return x

    for number in range(5000):
        f(number)
        f(number)
    gc.collect()
    stats = f.stats()
    assert (stats.hits, stats.misses) == (10_000 - len(runs), len(runs))
    assert stats.hits > 4000
    assert len(f.stats.__self__.counters._cells) <= 2048  # type: ignore[attr-defined]
    assert stats.seconds_saved > 0.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_counts_its_own_hits(manager: CacheManager) -> None:
    @cached(manager=manager)
    def f(x: int) -> int:
        return x

    for _ in range(10):
        f(1)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        f(1)
        f(1)
        os.write(writing, b"%d %d" % (f.stats().hits, f.stats().misses))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"2 0"
    os.close(reading)
    os.close(writing)
    assert f.stats().hits == 9


# -- tags


VERSIONS = [0, 0]
"""The truth, and what every reader must know of; functions that close over something have no front."""

MANAGERS: list[CacheManager] = []


def test_tagged_results_are_hot_until_a_tag_is_invalidated(manager: CacheManager) -> None:
    @cached("tagged", tags=lambda x: ["all", f"x:{x}"], manager=manager)
    def f(x: int) -> int:
        VERSIONS[0] += 1
        return VERSIONS[0]

    VERSIONS[:] = [0, 0]
    assert [f(1), f(2), f(1), f(2)] == [1, 2, 1, 2]
    assert is_hot(f, 1)
    f.cache.invalidate_tags("x:1")
    assert [f(1), f(2), f(1)] == [3, 2, 3]
    assert is_hot(f, 1)
    assert is_hot(f, 2)
    f.cache.invalidate_tags("all", "x:7")
    assert [f(1), f(2)] == [4, 5]
    f.invalidate(1)
    f.cache.invalidate_tags("x:2")
    assert [f(1), f(2)] == [6, 7]


def test_no_thread_is_given_what_a_tag_has_ended(manager: CacheManager) -> None:
    @cached("tagged", tags=["all"], manager=manager)
    def f(x: int) -> int:
        return VERSIONS[0]

    def read() -> None:
        while not ended.is_set():
            least = VERSIONS[1]
            if (got := f(1)) < least:
                problems.append((got, least))

    ended, problems = threading.Event(), []
    VERSIONS[:] = [0, 0]
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(1, 1500):
        VERSIONS[0] = version
        f.cache.invalidate_tags("all")
        VERSIONS[1] = version
    ended.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert f.stats().hits > 0


def test_a_load_that_a_tag_overtakes_is_not_hot(manager: CacheManager) -> None:
    @cached("tagged", tags=["all"], manager=manager)
    def f(x: int) -> int:
        VERSIONS[0] += 1
        if VERSIONS[0] == 1:
            MANAGERS[-1].get_cache("tagged").invalidate_tags("all")
        return VERSIONS[0]

    VERSIONS[:] = [0, 0]
    MANAGERS.append(manager)
    assert [f(1), f(1), f(1)] == [1, 2, 2]


def test_a_tag_invalidated_just_before_a_result_gets_hot(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    @cached("tagged", tags=["all"], manager=manager)
    def f(x: int) -> int:
        VERSIONS[0] += 1
        return VERSIONS[0]

    def fill(front: Front, *arguments: Any) -> None:
        f.cache.invalidate_tags("all")
        filled(front, *arguments)

    filled = Front.fill
    VERSIONS[:] = [0, 0]
    with monkeypatch.context() as patched:
        patched.setattr(Front, "fill", fill)
        assert f(1) == 1
    assert [f(1), f(1)] == [2, 2]
