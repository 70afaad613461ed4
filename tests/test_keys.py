"""Keys: different calls never share one, equal calls do, in every process."""

from __future__ import annotations

import datetime as dt
import enum
import math
import threading
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache._encoders import encode
from codomyrmex_cache._signature import shape_of
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError
from codomyrmex_cache.keys import Keyer, register

Point = namedtuple("Point", "x y")
Other = namedtuple("Other", "x y")


class Color(enum.Enum):
    RED = 1
    CRIMSON = "1"


class Shade(enum.Enum):
    RED = 1


class Text(str):
    pass


@dataclass
class Plain:
    a: int
    b: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slotted:
    a: int
    b: int = 0


class _Mangled:
    __slots__ = ("__hidden",)

    def __init__(self, hidden: int) -> None:
        self.__hidden = hidden


class Stateful:
    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return "always the same"


DIFFERENT = [
    None, True, False, 0, 1, -1, 255, 256, -256, 2**64, 2**64 + 1, 0.0, -0.0, 1.0, math.inf, -math.inf, math.nan,
    1 + 0j, 0j, complex(0.0, -0.0), "", "1", "a", b"", b"1", b"a", bytearray(b"a"), "\ud800", "None", "True",
    [], [[]], [1], [True], ["1"], [1, 2], [2, 1], [[1], 2], [1, [2]], (), (1,), (1, 2), ((1,), 2), [(1,)], ([1],),
    {}, {"a": 1}, {"a": "1"}, {"a": 1.0}, {1: "a"}, {"1": "a"}, {"a": {"b": 1}}, {"a": 1, "b": 2}, {"a": 2, "b": 1},
    set(), {1}, {"1"}, {1, 2}, frozenset(), frozenset({1}), frozenset({1, 2}), {(1, 2)}, [{1}, {2}],
    dt.date(2026, 1, 1), dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))), dt.datetime(2026, 1, 1, fold=1),
    dt.time(1), dt.time(1, tzinfo=dt.UTC), dt.timedelta(1), dt.timedelta(0, 1), dt.UTC,
    Decimal("1"), Decimal("1.0"), Decimal("NaN"), Decimal("-0"), Decimal("0"),
    uuid.UUID(int=1), uuid.UUID(int=2), Path("a"), Path("a/b"), PurePosixPath("a"), "a/b",
    Color.RED, Color.CRIMSON, Shade.RED, Text("a"), Point(1, 2), Other(1, 2), Point(2, 1), range(3), range(0, 3, 2),
    slice(1), slice(1, 2), ..., NotImplemented, int, str, Color, Point, Plain(1), Plain(1, [1]), Plain(2),
    Slotted(1), Slotted(1, 1), _Mangled(1), _Mangled(2), Stateful(), Stateful(a=1), Stateful(a=2), Stateful(b=1),
    OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), defaultdict(list, a=1), defaultdict(set, a=1),
]  # fmt: skip


def test_no_two_different_values_share_an_encoding() -> None:
    encodings = {}
    for value in DIFFERENT:
        encoded = encode(value)
        assert encoded not in encodings, (value, encodings[encoded])
        encodings[encoded] = value


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1, 2, 3}, {3, 2, 1}),
        (math.nan, -math.nan),
        ("".join(["a", "b"]), "ab"),
        ([[1], [1]], [[1]] * 2),
        (Plain(1, [2]), Plain(1, [2])),
        (Stateful(a=1, b=2), Stateful(b=2, a=1)),
        (Decimal("1.50"), Decimal("1.50")),
    ],
)
def test_equal_values_share_an_encoding(one: object, same: object) -> None:
    assert encode(one) == encode(same)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.complex_numbers()
    | st.dates() | st.datetimes() | st.decimals() | st.uuids(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.frozensets(st.integers() | st.text()),
    max_leaves=12,
)  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    """Equality that tells types and zeros apart and takes all NaN as one: what a key must mean."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        matches = [next((k for k in other if _same(k, key)), _same) for key in one]
        return len(one) == len(other) and all(
            m is not _same and _same(one[k], other[m]) for k, m in zip(one, matches, strict=False)
        )
    if isinstance(one, frozenset):
        return len(one) == len(other) and {(type(i), i) for i in one} == {(type(i), i) for i in other}
    if isinstance(one, (float, complex, Decimal)):
        return repr(one) == repr(other)
    return bool(one == other)


@given(plain, plain)
def test_encodings_agree_exactly_when_the_values_do(one: Any, other: Any) -> None:
    assert (encode(one) == encode(other)) == _same(one, other)


@given(st.lists(st.tuples(st.text(), plain), unique_by=lambda pair: pair[0]), st.randoms())
def test_the_order_of_a_dict_does_not_matter(pairs: list[tuple[str, Any]], random: Any) -> None:
    shuffled = pairs[:]
    random.shuffle(shuffled)
    assert encode(dict(pairs)) == encode(dict(shuffled))


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Raising:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), object(), _nested(10_000), _cyclic(), (i for i in ()), Raising()],
    ids=["lock", "object", "deep", "cyclic", "generator", "raising"],
)
def test_what_has_no_exact_encoding_is_refused(value: object) -> None:
    with pytest.raises(UnkeyableError):
        encode(value)


def test_an_unkeyable_argument_costs_the_caching_and_not_the_call(caplog: pytest.LogCaptureFixture) -> None:
    @cached(manager=CacheManager())
    def function(lock: Any, n: int) -> int:
        return n

    assert [function(threading.Lock(), n) for n in (1, 2, 2)] == [1, 2, 2]
    stats = function.stats()
    assert (stats.bypasses, stats.errors, stats.calls) == (3, {"unkeyable": 3}, 3)
    assert len(caplog.records) == 1
    assert "'lock'" in caplog.text


def test_cache_key_and_registered_encoders_decide() -> None:
    class Keyed:
        def __init__(self, lock: object, name: str) -> None:
            self.lock, self.name = lock, name

        def __cache_key__(self) -> str:
            return self.name

    class Client:
        def __init__(self, url: str) -> None:
            self.lock, self.url = threading.Lock(), url

    class Special(Client):
        pass

    assert encode(Keyed(threading.Lock(), "a")) == encode(Keyed(threading.Lock(), "a"))
    assert encode(Keyed(None, "a")) != encode(Keyed(None, "b"))
    register(Client, lambda client: client.url)
    assert encode(Client("u")) == encode(Client("u")) != encode(Client("v"))
    assert encode(Special("u")) != encode(Client("u"))


def _keys(*calls: tuple[Any, ...]) -> list[str]:
    def function(a: Any, /, b: Any = 2, *rest: Any, c: Any = 3, **more: Any) -> None: ...

    decorated = cached(manager=CacheManager())(function)
    return [decorated.key(*args, **kwargs) for args, kwargs in calls]


def test_position_keyword_order_and_defaults_agree() -> None:
    keys = _keys(
        ((1,), {}), ((1, 2), {}), ((1,), {"b": 2}), ((1,), {"c": 3, "b": 2}), ((1, 2), {"c": 3}),
    )  # fmt: skip
    assert len(set(keys)) == 1
    one, other = _keys(((1,), {"x": 1, "y": 2}), ((1,), {"y": 2, "x": 1}))
    assert one == other


def test_arguments_keep_their_places() -> None:
    keys = _keys(
        ((1, 2, 3), {}), ((1, 2, (3,)), {}), ((1, 2), {"x": 3}), ((1, 2), {"c": 4}), ((1, 3), {}), ((1, "2"), {}),
        ((1, 2, 3, 4), {}), ((1, 2, 4, 3), {}), ((1,), {"a": 1}), ((1,), {"args": 1}),
    )  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_no_keyword_of_the_user_is_taken() -> None:
    @cached(manager=CacheManager())
    def function(self: int, key: int, ttl: int, namespace: int, args: int, kwargs: int, _cached_x: int) -> int:
        return self + key + ttl + namespace + args + kwargs + _cached_x

    call = {"self": 1, "key": 2, "ttl": 3, "namespace": 4, "args": 5, "kwargs": 6, "_cached_x": 7}
    assert [function(**call), function(**call)] == [28, 28]
    assert function.stats().hits == 1
    assert function.invalidate(**call) is True


def test_a_wrapper_with_a_borrowed_signature_is_bound_by_its_own() -> None:
    import functools

    def inner(a: int, b: int = 2) -> int:
        return a + b

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> int:
        kwargs.setdefault("b", 5)  # what the borrowed signature says about b is not true
        return inner(*args, **kwargs)

    decorated = cached(manager=CacheManager())(outer)
    assert [decorated(1), decorated(1, b=2), decorated(1)] == [6, 3, 6]


def test_closures_count_by_value_and_lambdas_by_code() -> None:
    manager = CacheManager()

    def make(factor: int) -> Any:
        @cached("closures", manager=manager)
        def scale(x: int) -> int:
            return x * factor

        return scale

    assert [make(2)(1), make(3)(1), make(2)(1)] == [2, 3, 2]
    one, other = cached("lambdas", manager=manager)(lambda x: x + 1), cached("lambdas", manager=manager)(lambda x: x + 2)
    assert [one(1), other(1)] == [2, 3]


def test_a_closure_that_is_state_does_not_hinder_hits() -> None:
    runs: list[int] = []
    count = 0

    @cached(manager=CacheManager())
    def function(x: int) -> int:
        nonlocal count
        count += 1
        runs.append(x)
        return count

    assert [function(1), function(1), function(2), function(1)] == [1, 1, 2, 1]
    assert runs == [1, 2]


def test_a_collision_of_the_fast_hash_is_a_miss(
    monkeypatch: pytest.MonkeyPatch, manager: CacheManager, backend_name: str
) -> None:
    monkeypatch.setattr("codomyrmex_cache.keys.xxh3_128_hexdigest", lambda data: "0" * 31 + str(len(data) % 2))

    @cached("colliding", backend=backend_name, manager=manager)
    def double(x: str) -> str:
        return x * 2

    words = [f"word{number}" for number in range(50)]
    assert [double(word) for word in words * 2] == [word * 2 for word in words * 2]


def test_a_version_is_part_of_the_key_and_a_name_replaces_the_identity() -> None:
    def function(x: int) -> int:
        return x

    shape = shape_of(function)
    first, second = (Keyer(function, shape.names, name="n", version=version).key((1,)) for version in (1, 2))
    assert first != second
    assert first.text.startswith("@n:")


def test_one_name_and_version_are_of_one_function() -> None:
    decorate = cached("named", name="x", version=1, manager=CacheManager())
    decorate(len)
    with pytest.raises(CacheConfigurationError, match="name='x' and version=1"):
        decorate(max)


def test_a_walk_through_code_is_replaced_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from codomyrmex_cache import _versions

    monkeypatch.setattr(f"{__name__}.AMOUNT", 1)
    code = _versions.Code(_reads_a_constant)
    old, seen, encode = code.part(), [], _versions.encode

    def slowly(value: Any) -> bytes:  # another thread asks while the walk is being encoded
        if isinstance(value, list) and len(value) > 1 and not seen:
            seen.append(b"")
            seen.append(code.part())
        return encode(value)

    monkeypatch.setattr(f"{__name__}.AMOUNT", 2)
    monkeypatch.setattr(_versions, "encode", slowly)
    code.part()
    assert seen[1] != old


AMOUNT = 1


def _reads_a_constant() -> int:
    return AMOUNT
