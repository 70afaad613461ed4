"""The known mistakes of memoizers about keys, forms of functions, code and inputs, each tried where it could happen again."""

from __future__ import annotations

import abc
import array
import asyncio
import enum
import functools
import gc
import inspect
import itertools
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest

from codomyrmex_cache import MISSING, CacheManager, FileContent, cached
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError
from tests.conftest import Server, run_python


@pytest.fixture
def memo(manager: CacheManager, backend_name: str) -> Callable[..., Any]:
    """`cached` in one namespace, on each backend."""
    return functools.partial(cached, "traps", backend=backend_name, manager=manager)


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, str]:
    """What a call answers, and what it was counted as."""
    before = function.stats()
    answer = function(*args, **kwargs)
    after = function.stats()
    (counted,) = [name for name in ("hits", "misses", "bypasses") if getattr(after, name) > getattr(before, name)]
    return answer, {"hits": "hit", "misses": "miss", "bypasses": "bypass"}[counted]


class Processes:
    """Fresh interpreters that import what lies in one folder and share one store there."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder / "code"
        self.folder.mkdir()
        self._environment = {
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # an edit within the second could otherwise meet the old bytecode
            "CODOMYRMEX_CACHE_BACKEND": "file_based",
            "CODOMYRMEX_CACHE_DIR": str(folder / "store"),
            **environment,
        }

    def write(self, name: str, source: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)

    def run(self, source: str, **environment: str) -> list[str]:
        """The lines that the source prints."""
        return run_python(source, **(self._environment | environment)).splitlines()

    def execute(self, *arguments: str, **environment: str) -> list[str]:
        """What the interpreter prints with these arguments on its command line."""
        command = [sys.executable, *arguments]
        return self.run(f"import os; os.chdir({str(self.folder)!r}); os.execv({sys.executable!r}, {command!r})", **environment)

    def call(self, call: str, **environment: str) -> tuple[str, str]:
        """The answer of a call such as `module.function(1)` in a fresh interpreter, and whether the function ran."""
        function = call.partition("(")[0]
        module = call.partition(".")[0]
        source = f"import {module}; print({call}); print('miss' if {function}.stats().misses else 'hit')"
        answer, counted = self.run(source, **environment)
        return answer, counted


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


# -- self --------------------------------------------------------------------------------------------------------------


class Plain:
    def __init__(self, number: int) -> None:
        self.number = number


class Slotted:
    """Neither a `__dict__` nor weak references."""

    __slots__ = ("number",)
    finalized = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        Slotted.finalized += 1


class Unhashable:  # noqa: PLW1641  the point of it
    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable) and self.number == other.number


def number_of(self: Any) -> int:
    return int(self.number)


def with_method(kind: type, memo: Callable[..., Any]) -> type:
    """A class of its own with a memoized method, so that each backend gets one."""

    def tenfold(self: Any, factor: int = 10) -> int:
        return number_of(self) * factor

    tenfold.__qualname__ = f"{kind.__qualname__}.tenfold"
    return type(kind.__name__, (kind,), {"__slots__": (), "tenfold": memo()(tenfold)})


@pytest.mark.parametrize("base", [Plain, Unhashable])
def test_trap_self_is_not_kept_alive(memo: Callable[..., Any], base: type) -> None:
    kind = with_method(base, memo)
    references = []
    for number in range(300):
        instance = kind(number)
        assert instance.tenfold() == number * 10
        references.append(weakref.ref(instance))
    del instance
    gc.collect()
    assert [reference for reference in references if reference() is not None] == []


def test_trap_self_with_slots_and_without_weak_references(memo: Callable[..., Any]) -> None:
    kind = with_method(Slotted, memo)
    with pytest.raises(TypeError, match="weak reference"):
        weakref.ref(kind(0))
    gc.collect()
    Slotted.finalized = 0
    for number in range(300):
        assert kind(number).tenfold() == number * 10
    gc.collect()
    assert Slotted.finalized == 300


@pytest.mark.parametrize("base", [Plain, Slotted, Unhashable])
def test_trap_self_counts_by_its_state(memo: Callable[..., Any], base: type) -> None:
    kind = with_method(base, memo)
    one, same, other = kind(1), kind(1), kind(2)
    assert [one.tenfold(), other.tenfold(), same.tenfold(), one.tenfold(factor=10)] == [10, 20, 10, 10]
    assert (kind.tenfold.stats().misses, kind.tenfold.stats().hits) == (2, 2)
    one.number = 3
    assert one.tenfold() == 30
    assert one.tenfold.invalidate() is True
    assert (one.tenfold.peek(), same.tenfold.peek()) == (MISSING, 10)


def test_trap_self_repr_does_not_count(memo: Callable[..., Any]) -> None:
    class Vague(Plain):
        def __repr__(self) -> str:
            return "Vague()"

        __str__ = __repr__

        @memo()
        def method(self) -> int:
            return self.number

    assert [Vague(1).method(), Vague(2).method()] == [1, 2]


def test_trap_self_without_exact_encoding_runs_uncached(memo: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    class Locked(Plain):
        def __init__(self, number: int) -> None:
            super().__init__(number)
            self.lock = threading.Lock()

        @memo()
        def method(self) -> int:
            return self.number

    one, other = Locked(1), Locked(2)
    assert [one.method(), other.method(), one.method()] == [1, 2, 1]
    assert Locked.method.stats().bypasses == 3
    assert "'self'" in caplog.text


def test_trap_self_subclass_and_super(memo: Callable[..., Any]) -> None:
    class Base(Plain):
        @memo()
        def describe(self, x: int) -> tuple[str, str, int]:
            return ("base", type(self).__name__, x)

    class Inheriting(Base):
        pass

    class Overriding(Base):
        @memo()
        def describe(self, x: int) -> tuple[str, str, int]:
            return ("overriding", *super().describe(x)[1:])

    instances = [Base(1), Inheriting(1), Overriding(1)]
    expected = [("base", "Base", 5), ("base", "Inheriting", 5), ("overriding", "Overriding", 5)]
    for _ in range(3):
        assert [instance.describe(5) for instance in instances] == expected
    assert Base.describe.stats().misses == 3
    assert Overriding.describe.stats().misses == 1


METACLASS = """
import abc
from codomyrmex_cache import cached
class Base(abc.ABC):
    rate = 2
class Branch(Base):
    @cached("traps")
    def price(self, x):
        return super().rate * x
    @abc.abstractmethod
    def unused(self): ...
    @classmethod
    @cached("traps")
    def quote(cls, x):
        return super().rate * x
class Leaf(Branch):
    def unused(self): ...
leaf = Leaf()
"""


def test_trap_self_super_of_a_class_with_a_metaclass_hits_in_the_next_process(processes: Processes) -> None:
    processes.write("shop.py", METACLASS)
    assert [processes.call("shop.leaf.price(3)") for _ in range(2)] == [("6", "miss"), ("6", "hit")]
    assert [processes.call("shop.Leaf.quote(3)") for _ in range(2)] == [("6", "miss"), ("6", "hit")]


def test_trap_self_in_coroutine_methods(memo: Callable[..., Any], manager: CacheManager) -> None:
    class Fetcher(Plain):
        @memo()
        async def fetch(self, x: int) -> int:
            await asyncio.sleep(0)
            return self.number * x

    async def main() -> None:
        one, other = Fetcher(1), Fetcher(2)
        assert await asyncio.gather(*(item.fetch(5) for item in (one, other, one, Fetcher(2)))) == [5, 10, 5, 10]
        await manager.aclose()

    asyncio.run(main())
    assert Fetcher.fetch.stats().misses == 2


# -- class methods, static methods, properties ---------------------------------------------------------------------------


def test_trap_classmethod_on_base_and_subclass(memo: Callable[..., Any]) -> None:
    class Base:
        rate = 1

        @memo()
        @classmethod
        def outside(cls, x: int) -> tuple[str, int]:
            return (cls.__name__, cls.rate * x)

        @classmethod
        @memo()
        def inside(cls, x: int) -> tuple[str, int]:
            return (cls.__name__, cls.rate * x)

    class Inheriting(Base):
        rate = 2

    class Overriding(Base):
        rate = 3

        @memo()
        @classmethod
        def outside(cls, x: int) -> tuple[str, int]:
            return ("over " + super().outside(x)[0], x)

        @classmethod
        @memo()
        def inside(cls, x: int) -> tuple[str, int]:
            return ("over " + super().inside(x)[0], x)

    owners = [Base, Inheriting, Overriding, Base(), Inheriting(), Overriding()]
    expected = [("Base", 5), ("Inheriting", 10), ("over Overriding", 5)] * 2
    for name in ("outside", "inside", "outside", "inside"):
        assert [getattr(owner, name)(5) for owner in owners] == expected
    # since Python 3.13 a classmethod outside binds without asking what is inside, so its control methods do not know the class
    for name in ("outside", "inside") if sys.version_info < (3, 13) else ("outside",):
        assert getattr(Base, name).peek(5) == ("Base", 5)
        assert getattr(Inheriting, name).invalidate(5) is True
        assert getattr(Inheriting(), name).contains(5) is False
        assert getattr(Base, name).contains(x=5) is True


def test_trap_staticmethod_on_base_and_subclass(memo: Callable[..., Any]) -> None:
    class Base:
        @memo()
        @staticmethod
        def outside(x: int) -> tuple[str, int]:
            return ("base", x)

        @staticmethod
        @memo()
        def inside(x: int) -> tuple[str, int]:
            return ("base", x)

    class Overriding(Base):
        @memo()
        @staticmethod
        def outside(x: int) -> tuple[str, int]:
            return ("overriding", x)

        @staticmethod
        @memo()
        def inside(x: int) -> tuple[str, int]:
            return ("overriding", x)

    for name in ("outside", "inside", "outside", "inside"):
        assert [getattr(owner, name)(x=1) for owner in (Base, Overriding, Base(), Overriding())] == [
            ("base", 1), ("overriding", 1), ("base", 1), ("overriding", 1),
        ]  # fmt: skip
        assert getattr(Overriding, name).peek(1) == ("overriding", 1)


def test_trap_property_over_a_memoized_getter(memo: Callable[..., Any]) -> None:
    class Item(Plain):
        @property
        @memo()
        def double(self) -> int:
            return self.number * 2

    one, other = Item(1), Item(2)
    assert [one.double, other.double, one.double] == [2, 4, 2]
    one.number = 5
    assert one.double == 10
    assert Item.double.fget.stats().hits == 1  # type: ignore[attr-defined]


def test_trap_property_below_is_a_clear_error() -> None:
    with pytest.raises(CacheConfigurationError, match="below @property"):

        class Item:
            @cached("traps")
            @property
            def double(self) -> int:
                return 2

    with pytest.raises(CacheConfigurationError, match="decorate a function"):

        class Other:
            @cached("traps")
            @functools.cached_property
            def double(self) -> int:
                return 2


# -- binding -------------------------------------------------------------------------------------------------------------


def test_trap_position_keyword_default_and_order(memo: Callable[..., Any]) -> None:
    @memo()
    def function(a: int, b: int = 2, *, c: int = 3, d: int | None = None) -> tuple[Any, ...]:
        return (a, b, c, d)

    calls: list[Any] = [
        ((1,), {}), ((1, 2), {}), ((), {"a": 1}), ((), {"b": 2, "a": 1}), ((1,), {"c": 3}), ((1,), {"d": None, "c": 3}),
        ((), {"d": None, "c": 3, "b": 2, "a": 1}),
    ]  # fmt: skip
    assert {function(*args, **kwargs) for args, kwargs in calls} == {(1, 2, 3, None)}
    assert function.stats().misses == 1
    assert function(2, 1) == (2, 1, 3, None)
    assert function(b=2, a=2) == (2, 2, 3, None)


def test_trap_variadic_members_keep_their_place(memo: Callable[..., Any]) -> None:
    @memo()
    def function(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return (args, kwargs)

    calls: list[Any] = [
        ((1, 2), {}), ((2, 1), {}), (((1, 2),), {}), (([1, 2],), {}), ((1,), {"x": 2}), ((), {"x": 1, "y": 2}),
        ((), {"x": 2, "y": 1}), (({"x": 1},), {}), ((), {"x": 1}), ((("x", 1),), {}), (("x", 1), {}), ((), {"args": (1, 2)}),
        ((), {"kwargs": {"x": 1}}), ((), {}), (((),), {}), (({},), {}), ((None,), {}),
    ]  # fmt: skip
    for _ in range(2):
        assert [function(*args, **kwargs) for args, kwargs in calls] == calls
    assert function.stats().misses == len(calls)
    assert outcome(function, y=2, x=1) == (((), {"x": 1, "y": 2}), "hit")


def test_trap_keywords_of_the_user_collide_with_nothing(memo: Callable[..., Any]) -> None:
    @memo()
    def function(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    names = ["self", "cls", "key", "ttl", "namespace", "version", "ignore", "scope", "value", "args", "kwargs", "function"]
    for name in names:
        assert function(**{name: 1}) == {name: 1}
    assert function(**dict.fromkeys(names, 1)) == dict.fromkeys(names, 1)
    assert function.stats().misses == len(names) + 1
    assert function.invalidate(value=1) is True


def test_trap_changed_default_is_a_different_call(memo: Callable[..., Any]) -> None:
    def define(rate: int, bonus: int) -> Any:
        @memo()
        def price(x: int, rate: int = rate, *, bonus: int = bonus) -> int:
            return x * rate + bonus

        return price

    assert [define(1, 0)(10), define(2, 0)(10), define(1, 5)(10)] == [10, 20, 15]
    assert outcome(define(2, 0), 10) == (20, "hit")
    assert outcome(define(1, 0), 10, 2) == (20, "hit")


def test_trap_mutable_default_counts_as_it_is_at_the_call(memo: Callable[..., Any]) -> None:
    rates = [1, 2]

    @memo()
    def total(x: int, rates: list[int] = rates) -> int:
        return x * sum(rates)

    assert [total(10), total(10)] == [30, 30]
    rates.append(3)
    assert total(10) == 60
    rates.pop()
    assert outcome(total, 10) == (30, "hit")


# -- values --------------------------------------------------------------------------------------------------------------


class Text(str):
    pass


class Number(int):
    pass


class Level(enum.IntEnum):
    LOW = 1


class Rank(enum.IntEnum):
    LOW = 1


LOOKALIKES: list[Any] = [
    1, 1.0, True, 1 + 0j, "1", b"1", Level.LOW, Rank.LOW, Number(1), 0, 0.0, -0.0, False, None, "", b"", bytearray(), (), [],
    {}, set(), frozenset(), "None", "True", "a", Text("a"), b"a", bytearray(b"a"), float("nan"), "nan", float("inf"), 2**53,
    float(2**53),
]  # fmt: skip


def shown(value: Any) -> str:
    return f"{type(value).__qualname__} {value!r}"


def test_trap_equal_values_of_other_types(memo: Callable[..., Any]) -> None:
    @memo()
    def alone(x: Any) -> str:
        return shown(x)

    @memo()
    def second(x: int, y: Any) -> str:
        return shown(y)

    @memo()
    def inside(x: Any) -> str:
        return shown(x["k"][0])

    for _ in range(3):
        assert [alone(value) for value in LOOKALIKES] == [shown(value) for value in LOOKALIKES]
        assert [second(0, value) for value in LOOKALIKES] == [shown(value) for value in LOOKALIKES]
        assert [inside({"k": (value,)}) for value in LOOKALIKES] == [shown(value) for value in LOOKALIKES]
    for function in (alone, second, inside):
        assert (function.stats().misses, function.stats().hits) == (len(LOOKALIKES), 2 * len(LOOKALIKES))


def test_trap_nan_is_one_value(memo: Callable[..., Any]) -> None:
    @memo()
    def function(x: Any) -> str:
        return repr(x)

    function(float("nan"))
    assert outcome(function, -float("nan")) == ("nan", "hit")
    function([float("nan")])
    assert outcome(function, [float("inf") - float("inf")]) == ("[nan]", "hit")


def test_trap_order_of_dicts_and_sets(memo: Callable[..., Any]) -> None:
    @memo()
    def function(x: Any) -> Any:
        return sorted(x)

    words = [f"word{number}" for number in range(50)]
    function(dict.fromkeys(words))
    assert outcome(function, dict.fromkeys(reversed(words))) == (sorted(words), "hit")
    function(set(words))
    assert outcome(function, set(words[25:] + words[:25])) == (sorted(words), "hit")
    assert outcome(function, frozenset(words)) == (sorted(words), "miss")
    assert outcome(function, words) == (sorted(words), "miss")


ORDERED = """
from codomyrmex_cache import cached
@cached("traps")
def function(x):
    return len(x["set"])
words = {"a", "b", "c", "d", "e", "f", "g", "h"}
"""


def test_trap_order_of_sets_under_other_hash_seeds(processes: Processes) -> None:
    processes.write("ordered.py", ORDERED)
    call = "ordered.function({'set': ordered.words, 'frozen': {frozenset(ordered.words): 1}})"
    assert [processes.call(call, PYTHONHASHSEED=seed) for seed in ("0", "1", "777")] == [
        ("8", "miss"),
        ("8", "hit"),
        ("8", "hit"),
    ]


def test_trap_large_buffers_count_by_all_of_their_content(memo: Callable[..., Any]) -> None:
    @memo()
    def middle(buffer: Any) -> int:
        return int(buffer[len(buffer) // 2])

    for make in (bytes, bytearray, lambda content: memoryview(bytes(content)), functools.partial(array.array, "B"), list):
        content = bytearray(20_000 if make is list else 1_000_000)
        zeros = make(content)
        content[len(content) // 2] = 1
        assert [middle(zeros), middle(make(content)), middle(make(content))] == [0, 1, 1]
    assert (middle.stats().misses, middle.stats().hits) == (10, 5)


def test_trap_large_arrays_count_by_all_of_their_content(memo: Callable[..., Any]) -> None:
    numpy = pytest.importorskip("numpy")

    @memo()
    def described(a: Any) -> tuple[Any, ...]:
        return (float(a.sum()), str(a.dtype), a.shape)

    zeros = numpy.zeros((300, 400))
    changed = zeros.copy()
    changed[150, 200] = 1
    others = [
        zeros, changed, zeros.astype("f4"), zeros.astype("i8"), zeros.reshape(400, 300), zeros.reshape(-1), zeros[None],
        1 - zeros, zeros + 0.5, numpy.zeros(0), numpy.zeros((0, 3)), numpy.arange(6).reshape(2, 3),
        numpy.arange(6).reshape(2, 3).T, numpy.float64(0),
    ]  # fmt: skip
    expected = [(float(a.sum()), str(a.dtype), a.shape) for a in others]
    for _ in range(2):
        assert [described(a) for a in others] == expected
    assert described.stats().misses == len(others)
    strided = numpy.repeat(changed, 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    assert outcome(described, strided) == (expected[1], "hit")
    assert outcome(described, numpy.asfortranarray(changed)) == (expected[1], "hit")


def test_trap_large_frames_count_by_columns_index_types_and_content(memo: Callable[..., Any]) -> None:
    pandas = pytest.importorskip("pandas")

    @memo()
    def described(frame: Any) -> str:
        return str(frame.to_csv()) + str(dict(frame.dtypes))

    frame = pandas.DataFrame({"a": range(1000), "b": range(1000)})
    changed = frame.copy()
    changed.loc[500, "b"] = -1
    others = [
        frame, changed, frame.rename(columns={"b": "c"}), frame[["b", "a"]], frame.set_index(frame.index + 1),
        frame.astype("f8"), frame.head(0),
    ]  # fmt: skip
    expected = [str(other.to_csv()) + str(dict(other.dtypes)) for other in others]
    for _ in range(2):
        assert [described(other) for other in others] == expected
    assert described.stats().misses == len(others)
    assert outcome(described, frame.copy())[1] == "hit"


def test_trap_string_joined_arguments(memo: Callable[..., Any]) -> None:
    @memo()
    def function(*args: Any, **kwargs: Any) -> str:
        return repr((args, sorted(kwargs.items())))

    calls: list[Any] = [
        (("a", "b"), {}), (("a,b",), {}), (("a:b",), {}), (("ab",), {}), (("a", "b", ""), {}), (("", "a", "b"), {}),
        (("a", "", "b"), {}), (("a|b",), {}), (("a_b",), {}), (("a-b",), {}), (("a b",), {}), (("a\x00b",), {}),
        (("('a', 'b')",), {}), ((["a", "b"],), {}), ((["a,b"],), {}), ((["a", ["b"]],), {}), ((), {"a": "b"}), (("a=b",), {}),
        (("a", "=b"), {}), ((), {"a": "b,c=d"}), ((), {"a": "b", "c": "d"}), (({"a": "b:c"},), {}), (({"a:b": "c"},), {}),
        (({"a": "b", "c": "d"},), {}), (({"a": {"b": "c", "d": 1}},), {}), (({"a": {"b": "c"}, "d": 1},), {}),
    ]  # fmt: skip
    expected = [repr((args, sorted(kwargs.items()))) for args, kwargs in calls]
    for _ in range(2):
        assert [function(*args, **kwargs) for args, kwargs in calls] == expected
    assert function.stats().misses == len(calls)


def test_trap_string_joined_namespaces_and_names(manager: CacheManager, backend_name: str) -> None:
    places = [
        ("a", "b:c"),
        ("a:b", "c"),
        ("a:b:c", ""),
        ("a", "b"),
        ("a:", "b"),
        ("a", ":b"),
        ("A", "b"),
        ("a/b", "c"),
        ("a", "b/c"),
        ("a_b", "c"),
    ]
    for namespace, key in places:
        manager.get_cache(namespace, backend=backend_name).set(key, [namespace, key])
    for namespace, key in places:
        assert manager.get_cache(namespace).get(key) == [namespace, key]
    assert manager.get_cache("a").clear() == 4
    assert manager.get_cache("a:b").get("c") == ["a:b", "c"]
    functions = {}
    for namespace, name in places[:2]:
        decorate = cached(namespace, backend=backend_name, manager=manager, name=f"@{name}", version=1)
        functions[namespace, name] = decorate(lambda place=(namespace, name): place)
    for _ in range(2):
        assert [function() for function in functions.values()] == places[:2]
    by_name = [cached("n", backend=backend_name, manager=manager, name=name, version=1) for name in ("f", "f:g", "f:g:")]
    answers = [decorate(lambda x, number=number: number) for number, decorate in enumerate(by_name)]
    assert [answer("x") for answer in answers * 2] == [0, 1, 2] * 2


def test_trap_path_argument_counts_by_value_unless_marked(memo: Callable[..., Any], tmp_path: Path) -> None:
    @memo()
    def by_value(path: Any) -> tuple[str, str]:
        return (type(path).__name__, Path(path).read_text())

    @memo()
    def by_content(path: Annotated[Path, FileContent]) -> str:
        return path.read_text()

    path = tmp_path / "input"
    path.write_text("one")
    assert by_value(path) == by_value(tmp_path / "." / "input") == (type(path).__name__, "one")
    assert by_content(path) == "one"
    path.write_text("edited")
    assert outcome(by_value, path) == ((type(path).__name__, "one"), "hit")
    assert outcome(by_value, str(path)) == (("str", "edited"), "miss")
    assert outcome(by_content, path) == ("edited", "miss")
    assert outcome(by_content, path) == ("edited", "hit")


# -- forms of functions --------------------------------------------------------------------------------------------------


def test_trap_lambdas_on_one_line(memo: Callable[..., Any]) -> None:
    decorate = memo()
    one, two, three, same = (decorate(lambda x: x), decorate(lambda x: -x), decorate(lambda x: x + 0.5), decorate(lambda x: -x))
    for _ in range(2):
        assert [one(1), two(1), three(1), same(1)] == [1, -1, 1.5, -1]
    assert same.stats().misses == 3  # counted together, since they have one name


def test_trap_closures_count_by_what_they_close_over(memo: Callable[..., Any]) -> None:
    def make(factor: Any) -> Any:
        def multiply(x: int) -> Any:
            return x * factor

        return multiply

    factors = [2, 2.0, True, "ab", (1, 2), 3]
    for _ in range(2):
        answers = [memo()(make(factor))(3) for factor in factors]
        assert [shown(answer) for answer in answers] == [shown(3 * factor) for factor in factors]
    late = [memo()(lambda x: x * factor) for factor in (1, 2, 3)]  # noqa: B023  all see the last
    assert [function(10) for function in late] == [30, 30, 30]


def test_trap_closures_that_are_rebound_from_outside(memo: Callable[..., Any]) -> None:
    factor = 2

    @memo()
    def multiply(x: int) -> int:
        return x * factor

    assert multiply(3) == 6
    factor = 5
    assert multiply(3) == 15
    factor = 2
    assert outcome(multiply, 3) == (6, "hit")


def test_trap_closures_over_functions_and_mutable_objects(memo: Callable[..., Any]) -> None:
    def compose(inner: Any) -> Any:
        @memo()
        def outer(x: int) -> Any:
            return inner(x)

        return outer

    add, subtract = (lambda x: x + 1), (lambda x: x - 1)
    assert [compose(add)(1), compose(subtract)(1), compose(add)(1), compose(len)([1, 2]), compose(sum)([1, 2])] == [
        2,
        0,
        2,
        2,
        3,
    ]

    def lookup(table: dict[str, int]) -> Any:
        @memo()
        def get(name: str) -> int:
            return table[name]

        return get

    assert [lookup({"a": 1})("a"), lookup({"a": 2})("a")] == [1, 2]


CLOSURE = """
from codomyrmex_cache import cached
def make(factor):
    @cached("traps")
    def multiply(x):
        def inner(y):
            return y * factor
        return inner(x)
    return multiply
two, three, words = make(2), make(3), make("ab")
"""


def test_trap_closures_across_processes(processes: Processes) -> None:
    processes.write("closing.py", CLOSURE)
    expected = {"two": "6", "three": "9", "words": "ababab"}
    for counted in ("miss", "hit"):
        for name, answer in expected.items():
            assert processes.call(f"closing.{name}(3)") == (answer, counted)


def test_trap_partials_and_callable_objects(memo: Callable[..., Any]) -> None:
    class Adder:
        def __init__(self, amount: int) -> None:
            self.amount = amount

        def __call__(self, x: int, y: int = 0) -> int:
            return self.amount + x + y

        def method(self, x: int) -> int:
            return self.amount + x

    def weigh(a: int, b: int = 10, *, c: int = 100) -> tuple[int, int, int]:
        return (a, b, c)

    partials = [
        functools.partial(weigh, 1), functools.partial(weigh, 2), functools.partial(weigh, b=1), functools.partial(weigh, c=1),
        functools.partial(functools.partial(weigh, 1), c=7),
    ]  # fmt: skip
    calls: list[Any] = [((), {}), ((), {}), ((9,), {}), ((9,), {}), ((), {"b": 3})]
    for _ in range(2):
        answers = [memo()(function)(*args, **kwargs) for function, (args, kwargs) in zip(partials, calls, strict=True)]
        assert answers == [(1, 10, 100), (2, 10, 100), (9, 1, 100), (9, 10, 1), (1, 3, 7)]
        assert [memo()(Adder(amount))(5) for amount in (1, 2)] == [6, 7]
        assert [memo()(Adder(amount).method)(5) for amount in (1, 2)] == [6, 7]
        assert [memo()(functools.partial(Adder(amount), 1))(y=1) for amount in (1, 2)] == [3, 4]
    adder = Adder(1)
    decorated = memo()(adder)
    assert decorated(5) == 6
    adder.amount = 10
    assert decorated(5) == 15


def test_trap_one_decorator_object_on_several_functions(memo: Callable[..., Any]) -> None:
    decorate = memo()

    @decorate
    def first(x: int) -> str:
        return "first"

    @decorate
    def second(x: int) -> str:
        return "second"

    class One:
        @decorate
        def method(self) -> str:
            return "one"

    class Two:
        @decorate
        def method(self) -> str:
            return "two"

    for _ in range(2):
        assert [first(1), second(1), One().method(), Two().method()] == ["first", "second", "one", "two"]
    named = memo(name="shared")
    answers = [named(lambda x: x), named(lambda x: -x)]
    assert [answer(1) for answer in answers * 2] == [1, -1, 1, -1]


# -- where the code stands -----------------------------------------------------------------------------------------------

SCRIPT = """
from dataclasses import dataclass
from enum import Enum
from codomyrmex_cache import cached
class Color(Enum):
    RED = 1
@dataclass
class Point:
    x: int
    @cached("traps")
    def double(self):
        return self.x * 2
@cached("traps")
def function(point, color, kind):
    return point.x
if __name__ == "__main__":
    print(function(Point(1), Color.RED, Point), function.stats().misses, Point(4).double(), Point.double.stats().misses)
"""


def test_trap_main_script_and_import(processes: Processes) -> None:
    processes.write("script.py", SCRIPT)
    assert processes.execute("script.py") == ["1 1 8 1"]
    assert processes.execute("script.py") == ["1 0 8 0"]
    assert processes.call("script.function(script.Point(1), script.Color.RED, script.Point)") == ("1", "hit")
    method = "import script; print(script.Point(4).double(), script.Point.double.stats().misses)"
    assert processes.run(method) == ["8 0"]


def test_trap_main_module_of_a_package_and_import(processes: Processes) -> None:
    processes.write("package/__init__.py", "")
    processes.write("package/module.py", SCRIPT)
    imported = "from package.module import *; print(function(Point(1), Color.RED, Point), function.stats().misses)"
    assert processes.run(imported) == ["1 1"]
    assert processes.execute("-m", "package.module") == ["1 0 8 1"]
    assert processes.run(imported) == ["1 0"]


SPAWNING = """
import multiprocessing
from codomyrmex_cache import cached
@cached("traps")
def function(x):
    return x
def in_child(x):
    function(x)
    return function.stats().misses
if __name__ == "__main__":
    function(1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(in_child, [1, 2]))
    function(2)
    print(function.stats().misses)
"""


def test_trap_main_in_spawned_children(processes: Processes) -> None:
    processes.write("spawning.py", SPAWNING)
    assert processes.execute("spawning.py") == ["[0, 1]", "1"]


def test_trap_redefinition_in_a_notebook(memo: Callable[..., Any]) -> None:
    cells = {"__name__": "__main__", "memo": memo}
    definition = "@memo()\ndef function(x):\n    # a comment\n    return x + {}\n"

    def run_cell(text: str) -> Any:
        exec(compile(text, "<cell>", "exec"), cells)
        return cells["function"]

    first = run_cell(definition.format(1))
    assert first(1) == 2
    second = run_cell(definition.format(2))
    assert [second(1), second(1)] == [3, 3]
    assert first(1) == 2
    again = run_cell("\n\n" + definition.format(1).replace("a comment", "another"))
    assert outcome(again, 1) == (2, "hit")
    other_parameters = run_cell("@memo()\ndef function(y):\n    return y + 5\n")
    assert other_parameters(1) == 6
    shadowing = run_cell("class Model:\n    @memo()\n    def method(self):\n        return 1\nfunction = Model().method\n")
    assert shadowing() == 1
    shadowing = run_cell("class Model:\n    @memo()\n    def method(self):\n        return 2\nfunction = Model().method\n")
    assert shadowing() == 2


RELOADED = """
import importlib, pathlib, changing
print(changing.function(1), changing.function.stats().misses)
importlib.reload(changing)
print(changing.function(1), changing.function.stats().misses)
source = pathlib.Path(changing.__file__)
source.write_text(source.read_text().replace("x + 1", "x + 20"))
importlib.reload(changing)
print(changing.function(1), changing.function.stats().misses)
"""


@pytest.mark.parametrize("backend", ["in_memory", "file_based"])
def test_trap_reload(processes: Processes, backend: str) -> None:
    source = 'from codomyrmex_cache import cached\n@cached("traps")\ndef function(x):\n    return x + 1\n'
    processes.write("changing.py", source)
    answers = [line.split()[0] for line in processes.run(RELOADED, CODOMYRMEX_CACHE_BACKEND=backend)]
    assert answers == ["2", "2", "21"]


def test_trap_rename_and_move(processes: Processes) -> None:
    source = 'from codomyrmex_cache import cached\n@cached("traps"{})\ndef {}(x):\n    return x + 1\n'
    for place, name, options, expected in [
        ("here", "function", "", "miss"), ("here", "renamed", "", "miss"), ("there", "function", "", "miss"),
        ("here", "function", ", name='kept'", "miss"), ("there", "function", ", name='kept'", "hit"),
        ("here", "renamed", ", name='kept'", "hit"), ("there", "other", ", name='kept', version=1", "miss"),
        ("here", "another", ", name='kept', version=1", "hit"),
    ]:  # fmt: skip
        processes.write(f"{place}.py", source.format(options, name))
        assert processes.call(f"{place}.{name}(1)") == ("2", expected), (place, name, options)


STACK = """
import functools
def {outer}(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) {around}
    return wrapper
@memo()
@{outer}
@{outer}
def function(x, y=1):
    return x {body}
"""


def test_trap_decorators_below_are_part_of_the_body(memo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def define(body: str = "+ y", around: str = "+ 0", outer: str = "outer") -> Any:
        module = ModuleType("stack")
        module.memo = memo  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "stack", module)
        exec(STACK.format(body=body, around=around, outer=outer), vars(module))
        return module.function

    assert outcome(define(), 5) == (6, "miss")
    assert outcome(define(), 5) == (6, "hit")
    assert outcome(define(body="- y"), 5) == (4, "miss")
    assert outcome(define(around="+ 100"), 5) == (206, "miss")
    assert outcome(define(body="+ y  # the sum"), 5) == (6, "hit")
    assert outcome(define(), 5, y=2) == (7, "miss")


def test_trap_decorators_above_run_at_each_call(memo: Callable[..., Any]) -> None:
    calls: list[int] = []

    def counting(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(*args, **kwargs)

        return wrapper

    @counting
    @memo()
    def function(x: int) -> int:
        return x

    assert [function(1), function(1), function(2)] == [1, 1, 2]
    assert (len(calls), function.stats().hits) == (3, 1)
    assert function.peek(2) == 2
    assert inspect.unwrap(function)(3) == 3


def test_trap_memoized_twice(memo: Callable[..., Any], manager: CacheManager) -> None:
    @memo()
    @cached("inner", manager=manager)
    def function(x: int) -> int:
        return x

    assert [function(1), function(1)] == [1, 1]
    assert (function.stats().hits, manager.stats("inner").hits) == (1, 0)
    assert function.clear() == 1
    assert outcome(function, 1) == (1, "miss")
    assert manager.stats("inner").hits == 1


BODY = '''
from codomyrmex_cache import cached


@cached("traps")
def function(x, y=2):
    """Adds."""
    total = x + y
    return [total for _ in range(2)]
'''
SAME_BODIES = {
    "itself": BODY,
    "comment": BODY.replace("total = x + y", "# a comment\n    total = x + y  # and another"),
    "docstring": BODY.replace("Adds.", "Adds\n    two numbers."),
    "no docstring": BODY.replace('    """Adds."""\n', ""),
    "blank lines": BODY.replace("    total", "\n\n    total").replace("    return", "\n    return"),
    "moved": "import os\nHIGHER = 1\n\n\ndef new_neighbour(x):\n    return x\n" + BODY,
    "options": BODY.replace('"traps"', '"traps", ttl="1h"'),
    "annotations": BODY.replace("(x, y=2)", "(x: int, y: int = 2) -> list"),
}
if sys.version_info < (3, 13):  # since then the compiler fuses instructions that stand on one line
    SAME_BODIES["layout"] = BODY.replace("total = x + y", "total = (\n        x\n        + y\n    )")
OTHER_BODIES = {
    "operator": (BODY.replace("x + y", "x - y"), "[-1, -1]"),
    "constant": (BODY.replace("range(2)", "range(3)"), "[3, 3, 3]"),
    "type of a constant": (BODY.replace("x + y", "x + y + 0.0").replace("range(2)", "range(1)"), "[3.0]"),
    "sign of zero": (BODY.replace("x + y", "x + y - 3 and 0 or -0.0").replace("range(2)", "range(1)"), "[-0.0]"),
    "other sign of zero": (BODY.replace("x + y", "x + y - 3 and 0 or 0.0").replace("range(2)", "range(1)"), "[0.0]"),
    "name read": (BODY.replace("[total", "[y"), "[2, 2]"),
    "builtin": (BODY.replace("[total", "[abs(total)"), "[3, 3]"),
    "other builtin": (BODY.replace("[total", "[bool(total)"), "[True, True]"),
    "keyword argument": (BODY.replace("[total", "[int('11', base=total)"), "[4, 4]"),
    "other default": (BODY.replace("y=2", "y=5"), "[6, 6]"),
    "formatting": (BODY.replace("[total", "[f'{total!s:>3}'"), "['  3', '  3']"),
    "conversion": (BODY.replace("[total", "[f'{str(total)!r:>3}'"), "[\"'3'\", \"'3'\"]"),
    "branches": (BODY.replace("x + y", "1 if x < y else 2"), "[1, 1]"),
    "other branches": (BODY.replace("x + y", "1 if x > y else 2"), "[2, 2]"),
    "nested function": (BODY.replace("[total", "[(lambda: total + 1)()"), "[4, 4]"),
    "other nested function": (BODY.replace("[total", "[(lambda: total + 2)()"), "[5, 5]"),
    "exception": (BODY.replace("total = x + y", "try: total = 1 // 0\n    except ArithmeticError: total = 8"), "[8, 8]"),
    "other exception": (BODY.replace("total = x + y", "try: total = 1 // 0\n    except Exception: total = 9"), "[9, 9]"),
}


def test_trap_edit_that_changes_nothing_is_a_hit_in_the_next_process(processes: Processes) -> None:
    outcomes = {}
    for edit, source in SAME_BODIES.items():
        processes.write("edited.py", source)
        outcomes[edit] = processes.call("edited.function(1)")
    assert outcomes == {edit: ("[3, 3]", "miss" if edit == "itself" else "hit") for edit in SAME_BODIES}


def test_trap_edited_body_is_a_miss_in_the_next_process(processes: Processes) -> None:
    outcomes = {}
    for edit, (source, _) in OTHER_BODIES.items():
        processes.write("edited.py", source)
        outcomes[edit] = processes.call("edited.function(1)")
    assert outcomes == {edit: (answer, "miss") for edit, (_, answer) in OTHER_BODIES.items()}


def test_trap_edited_body_on_a_server(tmp_path: Path, valkey: Server) -> None:
    processes = Processes(tmp_path, CODOMYRMEX_CACHE_BACKEND="redis", CODOMYRMEX_CACHE_REDIS_URL=valkey.url)
    for source, expected in [
        (SAME_BODIES["itself"], ("[3, 3]", "miss")), (SAME_BODIES["comment"], ("[3, 3]", "hit")),
        (OTHER_BODIES["operator"][0], ("[-1, -1]", "miss")), (SAME_BODIES["moved"], ("[3, 3]", "hit")),
    ]:  # fmt: skip
        processes.write("edited.py", source)
        assert processes.call("edited.function(1)") == expected


CALLED = """
import functools
from codomyrmex_cache import cached
def passing(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper
class Model:
    def __init__(self, x=0):
        self.x = x + {made}
    @passing
    def __call__(self, x):
        return x + {called}
    def method(self, x):
        return x + {method}
model = cached("traps")(Model())
method = cached("traps")(Model().method)
bound = cached("traps")(functools.partial(Model().method))
def build(x):
    return Model(x).x
made = cached("traps", name="made")(Model)
"""


def test_trap_edited_code_of_callable_objects_methods_and_classes(processes: Processes) -> None:
    for edit in (1, 2):
        processes.write("calling.py", CALLED.format(made=edit, called=edit, method=edit))
        answer = str(1 + edit)
        assert processes.call("calling.method(1)") == (answer, "miss")
        assert processes.call("calling.bound(1)") == (answer, "miss")
        assert processes.run("import calling; print(calling.made(1).x)") == [answer]
    processes.write("calling.py", CALLED.format(made=2, called=1, method=1))
    assert processes.call("calling.model(1)") == ("2", "miss")
    processes.write("calling.py", CALLED.format(made=2, called=2, method=1))
    assert processes.call("calling.model(1)") == ("3", "miss")


# -- results and arguments that can be used once ---------------------------------------------------------------------------


def test_trap_generator_functions_are_never_stored_as_they_are() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    class Owner:
        def method(self) -> Iterator[int]:
            yield 1

    forms: list[Any] = [
        generator, asynchronous, Owner().method, functools.partial(generator), functools.partial(asynchronous),
        staticmethod(generator), classmethod(generator),
    ]  # fmt: skip
    for form in forms:
        with pytest.raises(CacheConfigurationError, match=r"generator function.*only once.*list"):
            cached("traps", stream="off")(form)


def test_trap_exhausted_generators_are_not_replayed(memo: Callable[..., Any]) -> None:
    class Counting:
        def __call__(self, n: int) -> Iterator[int]:
            yield from range(n)

    def generator(n: int) -> Iterator[int]:
        yield from range(n)

    @memo()
    def function(n: int) -> Any:
        return (x for x in range(n))

    for form in (function, memo()(Counting()), memo()(generator), memo()(functools.partial(generator))):
        for _ in range(3):
            assert list(form(3)) == [0, 1, 2]
        assert list(form.peek(3)) == [0, 1, 2]
        assert form.stats().hits >= 2


def test_trap_generators_that_are_not_shared_are_not_stored(memo: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    @memo(stream="off")
    def function(n: int) -> Any:
        return (x for x in range(n))

    for _ in range(3):
        assert list(function(3)) == [0, 1, 2]
    assert "can be used only once" in caplog.text
    assert function.peek(3) is MISSING


def test_trap_argument_mutated_by_the_body(memo: Callable[..., Any]) -> None:
    @memo()
    def drained(items: list[int], options: dict[str, int]) -> int:
        options["seen"] = len(items)
        total = 0
        while items:
            total += items.pop()
        return total

    assert drained([1, 2], {}) == 3
    assert drained([], {"seen": 2}) == 0
    assert outcome(drained, [1, 2], {}) == (3, "hit")
    assert outcome(drained, [], {}) == (0, "miss")


def test_trap_self_mutated_by_the_body(memo: Callable[..., Any]) -> None:
    class Counter(Plain):
        @memo()
        def step(self) -> int:
            self.number += 1
            return self.number

    assert [Counter(1).step(), Counter(2).step(), Counter(1).step()] == [2, 3, 2]


def test_trap_argument_mutated_by_a_coroutine_while_it_waits(memo: Callable[..., Any], manager: CacheManager) -> None:
    @memo()
    async def total(items: list[int]) -> int:
        before = sum(items)
        await asyncio.sleep(0)
        return before

    async def changed_after(steps: int) -> None:
        items = [1, 2]
        task = asyncio.create_task(total(items))
        for _ in range(steps):
            await asyncio.sleep(0)
        items.append(3)  # after the key is made, and before or after the body begins
        await task
        assert await total([1, 2]) == 3
        assert await total([1, 2, 3]) == 6
        await total.aclear()

    async def main() -> None:
        try:
            for steps in range(8):
                await changed_after(steps)
        finally:
            await manager.aclose()

    asyncio.run(main())


def test_trap_iterators_as_arguments(memo: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @memo()
    def total(numbers: Any) -> int:
        return sum(map(int, numbers))

    (tmp_path / "file").write_text("1\n2\n3\n")

    def generator() -> Iterator[int]:
        yield from (1, 2, 3)

    with open(tmp_path / "file") as file, open(tmp_path / "file") as again:
        iterators: list[Any] = [
            iter([1, 2, 3]), iter((1, 2, 3)), generator(), (x for x in (1, 2, 3)), map(int, "123"), filter(None, [1, 2, 3]),
            reversed([3, 2, 1]), itertools.chain([1, 2], [3]), iter({1: 0, 2: 0, 3: 0}), file, again,
        ]  # fmt: skip
        for iterator in iterators:
            assert outcome(total, iterator) == (6, "bypass")
            assert list(iterator) == []
    assert "'numbers'" in caplog.text
    assert len(caplog.records) == 1
    with pytest.raises(UnkeyableError, match="'numbers'"):
        memo(strict=True)(total.__wrapped__)(iter([1]))
    nested = iter([1, 2])
    assert outcome(memo()(lambda x: sum(x["k"][0])), {"k": [nested]}) == (3, "bypass")


def test_trap_coroutine_results(memo: Callable[..., Any], manager: CacheManager) -> None:
    async def double(x: int) -> list[int]:
        await asyncio.sleep(0)
        return [2 * x]

    class Doubling:
        async def __call__(self, x: int) -> list[int]:
            return await double(x)

        async def method(self, x: int) -> list[int]:
            return await double(x)

        @staticmethod
        async def static(x: int) -> list[int]:
            return await double(x)

    @functools.wraps(double)
    def passing_on(*args: Any, **kwargs: Any) -> Any:
        return double(*args, **kwargs)

    forms: dict[str, Any] = {
        "function": double,
        "partial": functools.partial(double),
        "object": Doubling(),
        "method": Doubling().method,
        "staticmethod": Doubling.static,
        "lambda": lambda number: double(x=number),
        "wrapper": passing_on,
        "partial of an object": functools.partial(Doubling()),
    }
    decorated = {name: memo(name=name)(form) for name, form in forms.items()}

    async def main() -> None:
        try:
            for name, function in decorated.items():
                assert [await function(1), await function(2), await function(1)] == [[2], [4], [2]], name
                assert await asyncio.gather(function(3), function(3)) == [[6], [6]], name
        finally:
            await manager.aclose()

    for _ in range(2):  # a second event loop
        asyncio.run(main())
    for name, function in decorated.items():
        assert function.stats().misses == 3, name


def test_trap_abstract_and_memoized(memo: Callable[..., Any]) -> None:
    class Base(abc.ABC):
        @memo()
        @abc.abstractmethod
        def method(self) -> int:
            return 1

        @property
        @memo()
        @abc.abstractmethod
        def value(self) -> int: ...

    class Concrete(Base):
        @memo()
        def method(self) -> int:
            return super().method() + 1

        @property
        def value(self) -> int:
            return 3

    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]
    assert [Concrete().method(), Concrete().method(), Concrete().value] == [2, 2, 3]
