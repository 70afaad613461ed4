"""Codecs: what comes back is what was stored, from whatever bytes; and stored bytes decide nothing."""

from __future__ import annotations

import abc
import collections
import contextlib
import copyreg
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pickle
import random
import struct
import sys
import tracemalloc
import typing
import uuid
import zlib
import zoneinfo
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import numpy as np
import numpy.typing as npt
import pandas as pd
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from codomyrmex_cache import _compression
from codomyrmex_cache.codecs import (
    CUSTOM,
    JSON,
    NO_TYPES,
    PICKLE,
    SAFE,
    Buffer,
    Codec,
    Coder,
    Types,
    UnnamedTypeError,
    safe_dumps,
    safe_loads,
    types_of,
)
from codomyrmex_cache.errors import CacheCodecError, CacheConfigurationError
from tests.conftest import run_python

T = TypeVar("T")

# -- plain data ------------------------------------------------------------------------------------------------------

_zones = st.none() | st.integers(-86_399, 86_399).map(lambda seconds: dt.timezone(dt.timedelta(seconds=seconds)))
_hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.binary(max_size=8)
    | st.dates() | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | st.binary(max_size=20)
    | st.sampled_from([2**64, -(2**1000), 10**300, -(10**300) + 1, 2**14_000, -0.0, "\ud800", "\ud83d\udc00", "\x00\x7f", "é☃"])
    | st.sampled_from([b"x" * 255, b"y" * 256, bytearray(b"z" * 300), bytearray(), "l" * 5000])
    | st.binary(max_size=8).map(bytearray) | st.complex_numbers() | st.dates() | st.datetimes(timezones=_zones)
    | st.datetimes().map(lambda moment: moment.replace(fold=1)) | st.times(timezones=_zones) | st.timedeltas()
    | st.decimals() | st.uuids()
)  # fmt: skip
wide = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner) | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=5), inner, max_size=5) | st.dictionaries(_hashable, inner, max_size=4)
    | st.sets(_hashable, max_size=4) | st.frozensets(_hashable, max_size=4)
    | inner.map(lambda value: [value, {"again": value}, value]),
    max_leaves=10,
)  # fmt: skip


def alike(one: Any, other: Any) -> bool:
    """Equality that knows types, signs, the bits of NaN, and the order of dicts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return alike(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return sorted(map(_told, one)) == sorted(map(_told, other))
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if isinstance(one, complex):
        return alike((one.real, one.imag), (other.real, other.imag))
    if isinstance(one, decimal.Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, (dt.datetime, dt.time)):
        return repr(one) == repr(other) and one == other
    return bool(one == other)


def _told(member: Any) -> str:
    if isinstance(member, frozenset):
        return f"frozenset{sorted(map(_told, member))}"
    if isinstance(member, tuple):
        return f"tuple{list(map(_told, member))}"
    return f"{type(member)}{struct.pack('>d', member).hex() if isinstance(member, float) else repr(member)}"


EXACT = {
    f"{codec}, {'signed' if signed else 'unsigned'}, {'compressed' if above is not None else 'as is'}": Coder(
        codec, signed=signed, compress_above=above
    )
    for codec, signed in (("auto", True), ("auto", False), ("safe", False), ("pickle", True))
    for above in (None, 0)
}
JSON_CODER = Coder("json", signed=False, compress_above=200)


@settings(max_examples=5000, deadline=None)
@given(wide)
def test_every_codec_that_takes_a_value_gives_it_back(value: Any) -> None:
    for name, coder in EXACT.items():
        codec, frames = coder.dumps(value)
        assert alike(coder.loads(codec, frames), value), name
    try:
        codec, frames = JSON_CODER.dumps(value)
    except CacheCodecError:
        return
    assert alike(JSON_CODER.loads(codec, frames), value)


json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_data)
def test_json_is_what_any_reader_understands(value: Any) -> None:
    codec, (main,) = Coder("json", signed=False).dumps(value)
    assert codec == JSON
    assert alike(json.loads(bytes(main)), value)


@pytest.mark.parametrize(
    "value",
    [(1,), {1: 2}, {None: 1}, b"x", {"a": (1,)}, [{1}], math.nan, [math.inf], "\ud800", {"\udfff": 1}, 10**5000, 1j,
     [[1], 2] and [shared := [1], shared], dt.date(2020, 1, 1), collections.OrderedDict(a=1)],
    ids=repr if sys.flags.verbose else lambda value: type(value).__name__,
)  # fmt: skip
def test_json_refuses_what_it_would_change(value: Any) -> None:
    with pytest.raises(CacheCodecError):
        Coder("json", signed=True).dumps(value)


def test_small_values_are_short_and_one_frame() -> None:
    coder = Coder(signed=False)
    sizes = {"": 1, "x" * 100: 101, b"x" * 100: 101, None: 5, 7: 2}
    assert {value: len(coder.dumps(value)[1][0]) for value in sizes} == sizes
    assert coder.dumps({"a": [1, "é"]})[1] == ['j{"a":[1,"é"]}'.encode()]


def test_aliases_and_cycles_stay() -> None:
    shared: list[Any] = [1]
    pair = (1, b"x" * 300)
    value: Any = {"one": shared, "other": [shared], "pairs": [pair, pair], "set": {pair}, "array": [bytearray(300)] * 2}
    shared.append(value)
    for name, coder in EXACT.items():
        found = coder.loads(*coder.dumps(value))
        assert found["one"] is found["other"][0], name
        assert found["one"][1] is found, name
        assert found["pairs"][0] is found["pairs"][1], name
        assert found["array"][0] is found["array"][1], name


def test_a_tuple_in_itself_is_left_to_pickle() -> None:
    inner: list[Any] = []
    inner.append((inner,))
    codec, frames = Coder(signed=True).dumps(inner)
    assert codec == SAFE  # a list is there before its content
    value = inner[0]
    with pytest.raises(CacheCodecError, match="contains itself"):
        Coder("safe", signed=True).dumps(value)
    codec, frames = Coder(signed=True).dumps(value)
    found = Coder(signed=True).loads(codec, frames)
    assert codec == PICKLE
    assert found[0][0] is found


def test_large_memory_is_a_frame_of_its_own_and_not_copied() -> None:
    text, array = b"x" * 256, bytearray(b"y" * 1000)
    for value in (text, [text, array], {"a": array}):
        frames = Coder(signed=False).dumps(value)[1]
        assert sum(map(len, frames[1:])) == sum(len(part) for part in (text, array) if part in _flat(value))
        assert all(frame is text for frame in frames[1:] if frame == text)
    assert Coder(signed=False).dumps(b"x" * 255)[1] == [b"b" + b"x" * 255]


def _flat(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, lambda frame: memoryview(bytes(frame)), lambda frame: memoryview(bytearray(frame))]
)
def test_frames_of_every_kind_are_read(kind: Callable[[Buffer], Buffer]) -> None:
    types = Types(np.ndarray, Model)
    for coder in (Coder(signed=True, types=types), Coder("pickle", signed=True, types=types, compress_above=10), JSON_CODER):
        for value in ("text", b"b", b"x" * 500, {"a": 1}, (1, bytearray(5000)), np.arange(9000.0), Model(a=1)):
            if coder is JSON_CODER and not isinstance(value, (str, dict)):
                continue
            codec, frames = coder.dumps(value)
            found = coder.loads(codec, [kind(frame) for frame in frames])
            assert type(found) is type(value)
            assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


@pytest.mark.parametrize(
    "value",
    [
        dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "UTC")),
        dt.time(1, tzinfo=dt.timezone(dt.timedelta(hours=1), "here")),
        Path("a"), collections.OrderedDict(a=1), collections.Counter("a"), range(3), int, object(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_values_are_left_to_pickle(value: Any) -> None:
    with pytest.raises(CacheCodecError, match="not plain data"):
        Coder("safe", signed=True).dumps(value)
    with pytest.raises(CacheCodecError, match="a backend without a secret stores plain data only"):
        Coder("auto", signed=False).dumps(value)
    codec, frames = Coder("auto", signed=True).dumps(value)
    found = Coder("auto", signed=True).loads(codec, frames)
    assert (codec, type(found)) == (PICKLE, type(value))
    assert type(value) is object or repr(found) == repr(value)


def test_a_uuid_keeps_whether_it_is_safe() -> None:
    for is_safe in uuid.SafeUUID:
        value = uuid.UUID(int=1, is_safe=is_safe)
        assert safe_loads(safe_dumps(value)).is_safe is is_safe


def test_deep_values_are_left_to_pickle() -> None:
    for wrap in (lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}):
        deep: Any = 1.5
        for _ in range(140):
            deep = wrap(deep)
        assert safe_loads(safe_dumps(deep)) == deep
        for _ in range(20):
            deep = wrap(deep)
        assert Coder(signed=True).dumps(deep)[0] == PICKLE


# -- classes ---------------------------------------------------------------------------------------------------------


class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    n: int = 0


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int
    inner: Inner | None = None
    more: list[Inner] = []
    _private: list[int] = pydantic.PrivateAttr(default_factory=list)
    _unset: int = pydantic.PrivateAttr()


class Boxed(pydantic.BaseModel, Generic[T]):
    content: T


class Strict(pydantic.BaseModel):
    """Whose validator would change what was stored."""

    n: int

    @pydantic.field_validator("n")
    @classmethod
    def _more(cls, value: int) -> int:
        return value + 1


@dataclasses.dataclass
class Data:
    x: Any
    y: list[Any] = dataclasses.field(default_factory=list)
    start: dataclasses.InitVar[int] = 3
    level: typing.ClassVar[int] = 4

    def __post_init__(self, start: int) -> None:
        self.y.append(start)


@dataclasses.dataclass
class Child(Data):
    z: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: Any
    y: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any = 1


@dataclasses.dataclass
class WithDict(Slotted):
    y: Any = 2


@dataclasses.dataclass(eq=False)
class ByIdentity:
    x: Any = None


@attrs.define
class Defined:
    x: Any
    _y: int = attrs.field(default=1, converter=lambda value: value + 1)


@attrs.frozen
class FrozenDefined:
    x: Any


@attrs.define(slots=False)
class Wide:
    x: Any


class Plain(enum.Enum):
    ONE = 1
    TRUE = "true"
    PAIR = (1, "a")
    UNO = 1  # noqa: PIE796  another name for the first


class Number(enum.IntEnum):
    ONE = 1


class Text(enum.StrEnum):
    A = "a"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4
    ALL = 7


class Loose(enum.IntFlag):
    A = 1


class Point(NamedTuple):
    x: Any
    y: Any = 0


Old = collections.namedtuple("Old", "p q")


class Holder(TypedDict):
    inner: Wide


NAMED = [Inner, Model, Boxed[int], Strict, Data, Child, Frozen, Slotted, WithDict, ByIdentity, Defined, FrozenDefined, Wide,
         Plain, Number, Text, Rights, Loose, Point, Old]  # fmt: skip
TYPES = Types(*NAMED)


def _model(**changes: Any) -> Model:
    model = Model(a=1, inner=Inner(n=2), more=[Inner()], extra={"b": (1,)})
    model._private.append(5)
    return model.model_copy(update=changes)


def _extended() -> Data:
    value = Data(1)
    value.extra = {"more": (1, 2)}  # type: ignore[attr-defined]
    return value


def _emptied() -> list[Any]:
    slotted, frozen = Slotted(), Frozen(1)
    del slotted.x
    object.__delattr__(frozen, "x")
    return [slotted, frozen]


VALUES: dict[str, Callable[[], Any]] = {
    "model": _model,
    "model with defaults": lambda: Model(a=1),
    "model constructed": lambda: Model.model_construct(a="not an int"),
    "model with wrong types": lambda: _model(a=(1,), inner=None),
    "model of a generic": lambda: Boxed[int](content=3),
    "model with a validator": lambda: Strict(n=1),
    "frozen model": lambda: Inner(n=5),
    "dataclass": lambda: Data((1, {2}), [b"x" * 300]),
    "dataclass, derived": lambda: Child(Frozen(1), z=4),
    "dataclass, more attributes": _extended,
    "dataclass, frozen with slots": lambda: Frozen(Frozen(None), Plain.PAIR),
    "dataclass, slots": lambda: Slotted(dt.date(2020, 1, 1)),
    "dataclass, slots and dict": lambda: WithDict(1, Slotted(2)),
    "attrs": lambda: Defined(Defined(1)),
    "attrs, frozen": lambda: FrozenDefined((1, 2)),
    "attrs, dict": lambda: Wide({"a": Wide(2)}),
    "enum": lambda: list(Plain),
    "enums of numbers and text": lambda: [Number.ONE, Text.A],
    "flags": lambda: [*Rights, Rights(0), Rights.READ | Rights.RUN, ~Rights.READ, Loose.A, Loose(8), Loose(9), Loose(0)],
    "namedtuples": lambda: [Point(1), Point(Point(1, 2), [3]), Old(1, "a")],
    "keys": lambda: {Frozen(1): Inner(), Point(1, 2): {Plain.ONE, Text.A}, Inner(n=3): {FrozenDefined(1): 2}},
}


def _content(value: Any) -> Any:
    """All that there is to a value, without asking it."""
    if isinstance(value, enum.Enum):
        return value
    if isinstance(value, tuple):
        return type(value), [_content(part) for part in value]
    if isinstance(value, list):
        return [_content(part) for part in value]
    if isinstance(value, dict):
        return [(_content(key), _content(part)) for key, part in value.items()]
    if dataclasses.is_dataclass(value) or attrs.has(type(value)) or isinstance(value, pydantic.BaseModel):
        return type(value), _content(_state(value))
    return type(value), value


def _state(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return {**value.__getstate__(), "order": list(vars(value))}
    state = object.__getstate__(value)
    return [list(part.items()) if part else None for part in (state if isinstance(state, tuple) else (state,))]


CLASSES = {
    "auto, unsigned": Coder(signed=False, types=TYPES),
    "auto, signed": Coder(signed=True, types=TYPES),
    "safe, compressed": Coder("safe", signed=False, types=TYPES, compress_above=0),
}


@pytest.mark.parametrize("coder", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_values_of_named_classes_come_back_exactly(make: Callable[[], Any], coder: Coder) -> None:
    value = make()
    codec, frames = coder.dumps(value)
    assert codec & 63 == SAFE
    found = coder.loads(codec, frames)
    assert found == value
    assert _content(found) == _content(value)
    assert found is not value or isinstance(value, enum.Enum)


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_no_class_is_written_that_is_not_named(make: Callable[[], Any]) -> None:
    with pytest.raises(CacheCodecError, match="not plain data"):
        Coder("safe", signed=True).dumps(make())
    assert Coder("auto", signed=True).dumps(make())[0] == PICKLE
    codec, frames = CLASSES["auto, unsigned"].dumps(make())
    for coder in (Coder("safe", signed=True), Coder("auto", signed=True), Coder(signed=False, types=Types(dt.date, Slotless))):
        with pytest.raises(UnnamedTypeError, match="not named"):
            coder.loads(codec, frames)


def test_attributes_that_were_never_set_stay_so() -> None:
    coder = CLASSES["auto, unsigned"]
    found = coder.loads(*coder.dumps(_emptied()))
    assert [hasattr(value, "x") for value in found] == [False, False]


def test_no_code_of_the_class_runs_on_the_way() -> None:
    calls: list[str] = []
    namespace: dict[str, Any] = {"__module__": __name__, "__qualname__": "Watched", "__annotations__": {"x": int}}
    for name in ("__init__", "__post_init__", "__setattr__", "__getattr__", "__eq__", "__len__", "__bool__"):
        namespace[name] = lambda self, *arguments, name=name: calls.append(name)
    watched = dataclasses.dataclass(init=False, eq=False)(type("Watched", (), namespace))
    value = object.__new__(watched)
    vars(value).update(x=1)
    coder = Coder(signed=False, types=Types(watched))
    found = coder.loads(*coder.dumps([value, value]))
    assert (vars(found[0]), found[0] is found[1], calls) == ({"x": 1}, True, [])


def test_aliases_and_cycles_through_objects_stay() -> None:
    coder = CLASSES["auto, unsigned"]
    data, model = Data(1), Model(a=1)
    data.x, data.y = model, [data]
    model.more = data.y  # type: ignore[assignment]
    frozen = Frozen([data])
    found = coder.loads(*coder.dumps([frozen, frozen, data, model]))
    assert found[0] is found[1]
    assert found[0].x[0] is found[2]
    assert found[2].x is found[3]
    assert found[2].y is found[3].more
    assert found[2].y[0] is found[2]
    looped = ByIdentity()
    looped.x = Point(looped)
    assert (again := coder.loads(*coder.dumps(looped))).x.x is again


def test_an_object_that_is_a_key_in_a_circle_is_left_to_pickle() -> None:
    owner = ByIdentity()
    owner.x = {owner: 1}
    with pytest.raises(CacheCodecError, match="key"):
        Coder("safe", signed=False, types=TYPES).dumps(owner)
    coder = CLASSES["auto, signed"]
    codec, frames = coder.dumps(owner)
    assert codec == PICKLE
    found = coder.loads(codec, frames)
    assert found.x[found] == 1


@dataclasses.dataclass
class Reduced:
    x: int

    def __reduce__(self) -> Any:
        return Reduced, (self.x + 1,)


@dataclasses.dataclass
class Stateful:
    x: int

    def __getstate__(self) -> Any:
        return {"x": self.x}


@dataclasses.dataclass
class Made:
    x: int

    def __new__(cls, *arguments: Any) -> Any:
        return object.__new__(cls)


@dataclasses.dataclass
class Final:
    x: int

    def __del__(self) -> None:
        pass


@dataclasses.dataclass
class Reading:
    x: int

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)


class Meta(type):
    pass


@dataclasses.dataclass
class Odd(metaclass=Meta):
    x: int


@dataclasses.dataclass
class ListLike(list[int]):
    x: int = 1


class StatefulModel(pydantic.BaseModel):
    x: int = 1

    def __getstate__(self) -> Any:
        return super().__getstate__()


class SlottedModel(pydantic.BaseModel):
    __slots__ = ("more",)
    x: int = 1


@dataclasses.dataclass
class Registered:
    x: int


class Slotless:
    pass


class OwnEnum(enum.Enum):
    A = object()


class OwnPoint(Point):
    pass


def _own_point() -> OwnPoint:
    point = OwnPoint(1)
    point.more = 1  # type: ignore[attr-defined]
    return point


class SubModel(Inner):
    pass


@pytest.mark.parametrize(
    "make",
    [lambda: Reduced(1), lambda: Stateful(1), lambda: Made(1), lambda: Final(1), lambda: Reading(1), lambda: Odd(1),
     ListLike, StatefulModel, SlottedModel, Slotless, lambda: OwnEnum.A, _own_point],
)  # fmt: skip
def test_classes_that_ask_for_more_than_attributes_are_left_to_pickle(make: Callable[[], Any]) -> None:
    value = make()
    with pytest.raises(CacheCodecError):
        Coder("safe", signed=True, types=Types(type(value))).dumps(value)
    assert Coder("auto", signed=True, types=Types(type(value))).dumps(value)[0] == PICKLE


def test_a_class_with_a_reducer_that_was_registered_is_left_to_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(Types(Registered)) == {Registered}
    monkeypatch.setitem(copyreg.dispatch_table, Registered, lambda value: (Registered, (value.x + 1,)))
    assert set(Types(Registered)) == set()


def test_a_subclass_must_be_named_itself() -> None:
    with pytest.raises(CacheCodecError, match="SubModel"):
        CLASSES["auto, unsigned"].dumps(SubModel())
    coder = Coder(signed=False, types=TYPES | Types(SubModel))
    assert type(coder.loads(*coder.dumps(SubModel()))) is SubModel


def _named_alike(make: Callable[..., type], *arguments: Any) -> type:
    kind = make(*arguments)
    kind.__module__, kind.__qualname__ = "shop", "Order"
    return kind


def test_a_class_that_changed_is_noticed() -> None:
    make = dataclasses.make_dataclass
    first = _named_alike(make, "Order", [("a", int)])
    codec, frames = Coder(signed=False, types=Types(first)).dumps(first(1))
    for fields in ([("a", str)], [("a", int), ("b", int)], [("b", int)], []):
        changed = _named_alike(make, "Order", fields)
        with pytest.raises(CacheCodecError, match="another shape") as caught:
            Coder(signed=False, types=Types(changed)).loads(codec, frames)
        assert not isinstance(caught.value, UnnamedTypeError)
    same = _named_alike(make, "Order", [("a", int)])
    assert type(Coder(signed=False, types=Types(same)).loads(codec, frames)) is same


def test_two_classes_under_one_name_are_both_left_out() -> None:
    first, second = (_named_alike(dataclasses.make_dataclass, "Order", [("a", int)]) for _ in range(2))
    for kind in (first, second):
        with pytest.raises(CacheCodecError, match="not plain data"):
            Coder(signed=False, types=Types(first, second)).dumps(kind(1))


@pytest.mark.parametrize("members", [{"RED": 2}, {"RED": True}, {"RED": "1"}, {"BLUE": 1}])
def test_an_enum_that_changed_is_noticed(members: dict[str, Any]) -> None:
    first = _named_alike(enum.Enum, "Order", {"RED": 1})
    codec, frames = Coder(signed=False, types=Types(first)).dumps(first["RED"])  # type: ignore[index]
    with pytest.raises(CacheCodecError, match="another value"):
        Coder(signed=False, types=Types(_named_alike(enum.Enum, "Order", members))).loads(codec, frames)


def test_flags_that_changed_are_noticed() -> None:
    first: Any = _named_alike(enum.Flag, "Order", {"A": 1, "B": 2})
    codec, frames = Coder(signed=False, types=Types(first)).dumps(first(3))
    for members in ({"A": 2, "B": 1}, {"A": 1}, {"A": 1, "C": 2}):
        with pytest.raises(CacheCodecError):
            Coder(signed=False, types=Types(_named_alike(enum.Flag, "Order", members))).loads(codec, frames)


def test_answers_of_the_openai_sdk_come_back() -> None:
    def ask() -> ChatCompletion: ...

    answer = ChatCompletion.model_validate(
        {"id": "1", "created": 1, "model": "m", "object": "chat.completion", "unknown": {"x": [1]},
         "choices": [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "Hi"}}],
         "usage": {"completion_tokens": 1, "prompt_tokens": 2, "total_tokens": 3}}
    )  # fmt: skip
    coder = Coder(signed=False, types=Types.of_return(ask))
    found = coder.loads(*coder.dumps(answer))
    assert found == answer
    assert _content(found) == _content(answer)
    assert type(found.choices[0].message) is type(answer.choices[0].message)


# -- which classes an annotation names -------------------------------------------------------------------------------

Alias = Annotated[list[Inner], "metadata"]
Identifier = NewType("Identifier", Frozen)


@dataclasses.dataclass
class Tree:
    children: list[Tree]
    kind: Literal[Plain.ONE, 3]
    unknown: NoSuchName  # type: ignore[name-defined]  # noqa: F821
    hidden: typing.ClassVar[Rights]


class Bound(Generic[T]):
    pass


V = TypeVar("V", bound=Wide)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (None, set()), (int, set()), (Any, set()), (list, set()), (Slotless, set()), ("Inner", set()), (3, set()),
        (Inner, {Inner}), (Inner | None, {Inner}), (typing.Optional[Inner], {Inner}),  # noqa: UP045
        (dict[str, list[Inner | Frozen]], {Inner, Frozen}), (Alias, {Inner}), (Identifier, {Frozen}),
        (Model, {Model, Inner}), (Tree, {Tree, Plain}), (Holder, {Wide}), (V, {Wide}), (Bound[Inner], {Inner}),
        (Coroutine[Any, Any, Inner], {Inner}), (AsyncIterator[Text], {Text}), (Callable[[Number], Point], {Number, Point}),
        (Boxed[Inner], {Boxed[Inner], Inner}), ((Inner, [Old]), {Inner, Old}), (type[Inner], {Inner}),
        (np.ndarray, {np.ndarray}), (npt.NDArray[np.int16], {np.ndarray, np.int16}), (np.float32, {np.float32}),
    ],
)  # fmt: skip
def test_classes_are_found_in_annotations(annotation: Any, expected: set[type]) -> None:
    assert types_of(annotation) == expected


def test_abstract_numbers_stand_for_concrete_ones() -> None:
    assert {np.float16, np.float64, np.float32} <= types_of(np.floating)
    assert np.int8 not in types_of(np.floating)
    assert not types_of(np.generic) & {np.object_, np.void, np.generic}


def later() -> Iterator[Later]: ...


def unknown(x: NoSuchName) -> Inner: ...  # type: ignore[name-defined]  # noqa: F821


def nothing() -> NoSuchName: ...  # type: ignore[name-defined]  # noqa: F821


@dataclasses.dataclass
class Later:
    x: int

    def method(self) -> Inner: ...

    async def __call__(self) -> Wide: ...


def test_classes_are_found_from_what_functions_return() -> None:
    import functools

    @functools.wraps(later)
    def wrapped() -> Any: ...

    found = {
        later: {Later}, wrapped: {Later}, unknown: {Inner}, nothing: set(), Later.method: {Inner}, Later(1).method: {Inner},
        functools.partial(functools.partial(later)): {Later}, Inner: {Inner}, len: set(),
    }  # fmt: skip
    assert {function: set(Types.of_return(function)) for function in found} == found
    assert set(Types.of_return(Later(1))) == {Wide}
    assert set(Types.of_return(later) | Types(Inner)) == {Later, Inner}
    assert (bool(NO_TYPES), bool(Types(int)), bool(Types(Inner))) == (False, False, True)


def test_a_type_alias_statement_is_followed() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("the statement came with Python 3.12")
    namespace: dict[str, Any] = {"Inner": Inner, "Bound": Bound, "Rights": Rights}
    source = """
type Plain = list[Inner]
type Of[T] = dict[str, T | Inner]
type Turned[K: Rights, V] = dict[V, Bound[K]]
type Endless[T] = list[T] | Endless[list[T]]
"""
    exec(source, namespace)
    assert types_of(namespace["Plain"]) == {Inner}
    assert types_of(namespace["Of"][Frozen]) == {Inner, Frozen}
    assert types_of(namespace["Turned"][Point, Old]) == {Point, Old}
    assert types_of(namespace["Endless"][Point]) == {Point}


# -- arrays ----------------------------------------------------------------------------------------------------------


def _readonly() -> npt.NDArray[Any]:
    array = np.arange(100)
    array.setflags(write=False)
    return array


_structure = np.dtype([("a", "<i4"), ("b", "<f8", (2, 2)), ("c", [("x", "S3"), ("y", "<U2")]), (("title", "d"), "?")])
ARRAYS: dict[str, Callable[[], npt.NDArray[Any]]] = {
    "C order": lambda: np.arange(600.0).reshape(20, 30),
    "F order": lambda: np.asfortranarray(np.arange(600.0).reshape(20, 30)),
    "small": lambda: np.arange(3, dtype=">i2"),
    "no dimension": lambda: np.array(5.5),
    "empty": lambda: np.empty((0, 3)),
    "structured": lambda: np.zeros(7, _structure),
    "no dimension, structured": lambda: np.zeros((), _structure),
    "booleans": lambda: np.array([True, False] * 200),
    "moments": lambda: np.arange("2020-01-01", "2021-01-01", dtype="datetime64[D]"),
    "spans": lambda: np.arange(100).astype("timedelta64[ms]"),
    "text": lambda: np.array(["a", "bcd"] * 50),
    "bytes": lambda: np.array([b"a", b"bcd"] * 50),
    "complex": lambda: np.array([complex(0.0, -0.0), complex(math.nan, 1)] * 20),
    "half": lambda: np.arange(200, dtype="f2"),
    "a view": lambda: np.arange(1000)[::3],
    "a view of columns": lambda: np.arange(1000).reshape(10, 100)[:, 5:9],
    "turned": lambda: np.arange(720).reshape(8, 9, 10).transpose(1, 0, 2),
    "broadcast": lambda: np.broadcast_to(np.arange(50), (4, 50)),
    "read only": _readonly,
}
_arrays = Types(np.ndarray)


@pytest.mark.parametrize("above", [None, 0])
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("codec", ["safe", "pickle"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_exactly(name: str, codec: Any, kind: Callable[[Buffer], Buffer], above: int | None) -> None:
    array = ARRAYS[name]()
    coder = Coder(codec, signed=True, types=_arrays, compress_above=above)
    number, frames = coder.dumps(array)
    found = coder.loads(number, [kind(frame) for frame in frames])
    assert type(found) is np.ndarray
    assert (found.dtype, found.dtype.char, found.shape) == (array.dtype, array.dtype.char, array.shape)
    assert found.tobytes() == array.tobytes()
    if codec == "safe" or name != "broadcast":  # numpy pickles a copy of it, which may be written to
        assert found.flags.writeable == array.flags.writeable
    assert found.flags.aligned
    assert found.flags.f_contiguous or not array.flags.f_contiguous
    if found.flags.writeable and found.size:
        before = [bytes(frame) for frame in frames]
        found.fill(found.flat[-1])
        assert [bytes(frame) for frame in frames] == before or kind is bytearray


@pytest.mark.parametrize("codec", ["safe", "pickle"])
def test_large_arrays_are_not_copied(codec: Any) -> None:
    array = np.arange(100_000.0)
    coder = Coder(codec, signed=True, types=_arrays)
    number, frames = coder.dumps(array)
    assert len(frames) == 2
    assert np.shares_memory(np.frombuffer(frames[1], "u1"), array)
    assert memoryview(frames[1]).readonly
    assert not np.shares_memory(coder.loads(number, frames), array)
    for given_away in (bytearray(frames[1]), memoryview(bytearray(frames[1]))):
        found = coder.loads(number, [frames[0], given_away])
        assert np.shares_memory(np.frombuffer(given_away, "u1"), found)
    kept = bytes(frames[1])
    found = coder.loads(number, [frames[0], kept])
    found[:] = 0
    assert kept == array.tobytes()


def test_one_array_in_two_places_is_still_one() -> None:
    array = np.arange(100)
    coder = Coder("safe", signed=False, types=_arrays)
    found = coder.loads(*coder.dumps([array, {"x": array}]))
    assert found[0] is found[1]["x"]


class OwnArray(np.ndarray):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.array([[1], None], dtype=object), np.zeros(2, [("a", "O")]), np.zeros(2).view(OwnArray),
     np.ma.masked_array([1], [True]), np.zeros(3, "longdouble"), np.zeros(2, np.dtype("i4", metadata={"a": 1})),
     np.zeros(2, np.dtype([("a", "i1"), ("b", "i4")], align=True)), np.zeros(2, "longlong"),
     np.zeros(2, {"names": ["a"], "formats": ["i4"], "offsets": [4]})],
    ids=lambda value: f"{type(value).__name__} {value.dtype}",
)  # fmt: skip
def test_arrays_that_are_more_than_memory_are_left_to_pickle(value: Any) -> None:
    with pytest.raises(CacheCodecError):
        Coder("safe", signed=True, types=Types(np.ndarray, OwnArray, np.ma.MaskedArray)).dumps(value)


@pytest.mark.parametrize(
    "value",
    [np.float64(math.nan), np.float32(-0.0), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1 + 2j),
     np.datetime64("2020-01-01T00:00", "m"), np.timedelta64(5, "ns"), np.datetime64("NaT", "s"), np.float16(1.5)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_numpy_scalars_come_back_exactly(value: Any) -> None:
    coder = Coder("safe", signed=False, types=Types(np.generic))
    found = coder.loads(*coder.dumps([value]))[0]
    assert type(found) is type(value)
    assert (found.tobytes(), found.dtype) == (value.tobytes(), value.dtype)
    with pytest.raises(CacheCodecError):
        Coder("safe", signed=False, types=_arrays).dumps(value)


@pytest.mark.parametrize("value", [np.longdouble(1), np.str_("a\0"), np.bytes_(b"a"), np.void(b"x")])
def test_other_numpy_scalars_are_left_to_pickle(value: Any) -> None:
    coder = Coder("auto", signed=True, types=Types(np.generic))
    codec, frames = coder.dumps(value)
    found = coder.loads(codec, frames)
    assert type(found) is type(value)
    assert codec == PICKLE or found.tobytes() == value.tobytes()


@pytest.mark.parametrize("above", [None, 1000])
def test_frames_and_series_of_pandas_come_back(above: int | None) -> None:
    frame = pd.DataFrame(
        {"n": np.arange(5000), "t": ["a", "b"] * 2500, "f": np.linspace(0, 1, 5000), "d": pd.date_range("2020", periods=5000)}
    ).astype({"t": "category"})
    frame["s"] = frame["t"].astype(str)
    frame.attrs["unit"] = "m"
    coder = Coder(signed=True, compress_above=above)
    for value in (frame, frame["f"], frame.set_index(["t", "n"]), frame.iloc[::7], frame.index, frame.head(0)):
        found = coder.loads(*coder.dumps(value))
        assert type(found) is type(value)
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(found, value, check_freq=True)
            assert found.attrs == value.attrs
        elif isinstance(value, pd.Series):
            pd.testing.assert_series_equal(found, value)
        else:
            pd.testing.assert_index_equal(found, value)
    found = coder.loads(*coder.dumps(frame))
    found.loc[0, "n"] = 77
    assert (found.loc[0, "n"], frame.loc[0, "n"]) == (77, 0)


# -- pickle ----------------------------------------------------------------------------------------------------------


class Extended(decimal.Decimal):
    pass


def test_pickle_refuses_objects_that_would_lose_their_attributes() -> None:
    value = Extended("1")
    assert type(Coder(signed=True).loads(*Coder(signed=True).dumps(value))) is Extended
    value.unit = "m"  # type: ignore[attr-defined]
    for codec in ("auto", "pickle"):
        for holder in (value, [value, lambda: 3]):
            with pytest.raises(CacheCodecError, match="loses its attributes"):
                Coder(codec, signed=True).dumps(holder)  # type: ignore[arg-type]


def test_local_classes_and_functions_go_by_value() -> None:
    class Local:
        def __init__(self) -> None:
            self.array = np.arange(10_000)

    coder = Coder(signed=True)
    codec, frames = coder.dumps([Local(), lambda: 3])
    assert (codec, len(frames)) == (PICKLE, 2)
    local, function = coder.loads(codec, frames)
    assert (type(local), function()) == (Local, 3)
    assert np.array_equal(local.array, np.arange(10_000))


class Broken:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ZeroDivisionError


class Unloadable:
    def __getstate__(self) -> Any:
        return {"a": 1}

    def __setstate__(self, state: Any) -> None:
        raise ZeroDivisionError


def test_errors_of_user_code_are_codec_errors() -> None:
    coder = Coder(signed=True)
    for value in (Broken(), (item for item in ()), sys._getframe()):
        with pytest.raises(CacheCodecError):
            coder.dumps(value)
    with pytest.raises(CacheCodecError, match="ZeroDivisionError"):
        coder.loads(*coder.dumps(Unloadable()))


def test_a_dict_that_changes_meanwhile_is_a_codec_error() -> None:
    growing: dict[Any, Any] = {}

    @dataclasses.dataclass
    class Grows:
        x: int

        def __reduce_ex__(self, protocol: Any) -> Any:
            growing[len(growing)] = 1
            return int, ()

    growing["a"] = Grows(1)
    growing["b"] = 1
    with pytest.raises(CacheCodecError):
        Coder(signed=True).dumps(growing)


RAN: list[str] = []


class Planted:
    def __reduce__(self) -> Any:
        return _run, ("ran",)


def _run(word: str) -> None:
    RAN.append(word)


OTHERS = [
    *(Coder(codec, signed=signed, types=TYPES) for codec in ("safe", "json") for signed in (True, False)),  # type: ignore[arg-type]
    Coder("auto", signed=False, types=TYPES),
    Coder(Codec("mine", pickle.dumps, lambda stored: stored), signed=True),
]


@pytest.mark.parametrize("coder", OTHERS)
def test_a_planted_pickle_runs_nothing(coder: Coder) -> None:
    _, frames = Coder("pickle", signed=True).dumps(Planted())
    stored = bytes(frames[0])
    for codec in range(256):
        for planted in ([stored], [b"t" + stored], [zlib.compress(stored)], _packed([stored]), [stored, stored]):
            with pytest.raises(CacheCodecError):
                coder.loads(codec, planted)
    assert RAN == []
    try:
        Coder("auto", signed=True).loads(PICKLE, [stored])
        assert RAN == ["ran"]  # what is planted here would have run
    finally:
        RAN.clear()


def test_pickle_needs_a_secret() -> None:
    with pytest.raises(CacheConfigurationError, match="secret"):
        Coder("pickle", signed=False)
    with pytest.raises(CacheConfigurationError, match="'auto', 'safe', 'json', 'pickle'"):
        Coder("yaml", signed=True)  # type: ignore[arg-type]


def test_a_reader_takes_the_codecs_of_its_setting_only() -> None:
    mine = Codec("mine", pickle.dumps, pickle.loads)
    coders = {"auto": (SAFE, PICKLE), "safe": (SAFE,), "json": (JSON,), "pickle": (PICKLE,), mine: (CUSTOM,)}
    stored = {SAFE: Coder("safe", signed=True), PICKLE: Coder("pickle", signed=True), JSON: JSON_CODER,
              CUSTOM: Coder(mine, signed=True)}  # fmt: skip
    for setting, accepted in coders.items():
        reader = Coder(setting, signed=True)  # type: ignore[arg-type]
        for format_, writer in stored.items():
            codec, frames = writer.dumps({"a": 1})
            assert codec == format_
            if format_ in accepted:
                assert reader.loads(codec, frames) == {"a": 1}
            else:
                with pytest.raises(CacheCodecError, match="not accepted"):
                    reader.loads(codec, frames)


# -- codecs of others ------------------------------------------------------------------------------------------------


def test_a_codec_of_ones_own() -> None:
    upper = Codec("upper", lambda text: text.upper().encode(), lambda stored: stored.decode())
    coder = Coder(upper, signed=False, compress_above=100)
    for text in ("", "abc", "abc" * 100):
        codec, frames = coder.dumps(text)
        assert coder.loads(codec, frames) == text.upper()
    assert codec == CUSTOM | _algorithm() << 6
    codec, (main,) = coder.dumps("abc")
    assert (codec, bytes(main[16:])) == (CUSTOM, b"ABC")
    other = Coder(dataclasses.replace(upper, name="lower"), signed=False)
    for frames in ([main], [b""], [main[:15]], [main, b""], []):
        with pytest.raises(CacheCodecError):
            other.loads(codec, frames)


def test_what_a_codec_of_ones_own_raises_is_a_codec_error() -> None:
    for broken in (Codec("a", lambda value: 1 / 0, lambda stored: 1 / 0), Codec("a", str, str)):  # type: ignore[arg-type, return-value]
        with pytest.raises(CacheCodecError):
            Coder(broken, signed=False).dumps(1)
    codec, frames = Coder(Codec("a", lambda value: b"", lambda stored: 1 / 0), signed=False).dumps(1)
    with pytest.raises(CacheCodecError, match="ZeroDivisionError"):
        Coder(Codec("a", lambda value: b"", lambda stored: 1 / 0), signed=False).loads(codec, frames)


# -- compression -----------------------------------------------------------------------------------------------------


def _algorithm() -> int:
    return _compression.ZLIB if _compression._zstandard() is None else _compression.ZSTD


def _packed(frames: Sequence[bytes], lengths: Sequence[int] | None = None, level: int = 9) -> list[bytes]:
    """Frames as zlib makes them, with lengths that need not be true."""
    whole = b"".join(frame + bytes(-len(frame) % 16) for frame in frames)
    table = b"".join(struct.pack(">Q", length) for length in lengths or map(len, frames))
    return [struct.pack(">I", len(frames)) + table + zlib.compress(whole, level)]


@pytest.fixture(params=["zlib", "zstandard", "backports.zstd"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Each algorithm at hand; the last is the module of Python 3.14 for older ones."""
    module = None if request.param == "zlib" else pytest.importorskip(request.param)
    monkeypatch.setattr(_compression, "_zstandard", lambda: module)
    return _algorithm()


def test_large_values_become_smaller(algorithm: int) -> None:
    coder = Coder(signed=True, types=_arrays, compress_above=1000)
    for value in ("text " * 1000, {"a": ["text"] * 1000}, [b"x" * 3000, bytearray(5000)], [Path("a")] * 3000):
        codec, frames = coder.dumps(value)
        plain = Coder(signed=True, types=_arrays).dumps(value)[1]
        assert codec >> 6 == algorithm
        assert len(frames) == 1
        assert len(frames[0]) < sum(map(len, plain)) / 2
        assert alike(coder.loads(codec, frames), value)


def test_what_is_small_or_does_not_shrink_stays(algorithm: int) -> None:
    coder = Coder(signed=False, compress_above=1000)
    noise = random.Random(1).randbytes(50_000)
    for value in ("x" * 999, noise, "short"):
        assert coder.dumps(value) == Coder(signed=False).dumps(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(_compression, "_compressor")  # the sample tells enough
        coder.dumps(noise)
    half = noise[:1500] + bytes(600)  # the sample shrinks, but not what is made of it
    codec, frames = Coder(signed=False, compress_above=0).dumps(half)
    assert Coder(signed=False, compress_above=0).loads(codec, frames) == half


def test_frames_that_would_become_larger_stay(algorithm: int) -> None:
    noise = random.Random(1)
    frames: list[Buffer] = [bytes(300), *(noise.randbytes(299) for _ in range(50))]  # the sample is of the longest
    assert _compression.compressed(frames, 0) == (0, frames)


def test_millions_of_bytes_take_many_steps(algorithm: int) -> None:
    value = [random.Random(1).randbytes(1_500_000) + bytes(5_000_000), bytes(3_000_000)]
    value[0] = bytes(8_000_000) + value[0]
    coder = Coder(signed=False, compress_above=0)
    codec, frames = coder.dumps(value)
    assert codec >> 6 == algorithm
    assert coder.loads(codec, frames) == value


def test_damaged_compression_is_a_codec_error(algorithm: int) -> None:
    coder = Coder(signed=False, compress_above=0)
    value = ["text " * 100, b"x" * 500]
    codec, (main,) = coder.dumps(value)
    main = bytes(main)
    damaged = [main[:cut] for cut in range(len(main))] + [main + b"x", main + main[28:], b""]
    for frames in ([], [main, main], *([part] for part in damaged)):
        with pytest.raises(CacheCodecError):
            coder.loads(codec, frames)
    for other in (codec & 63, codec & 63 | 192, (codec & 63) | (3 - algorithm) << 6):
        with pytest.raises(CacheCodecError):
            coder.loads(other, [main])


def test_a_reader_without_zstandard_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compression, "_zstandard", lambda: None)
    with pytest.raises(CacheCodecError, match="not to be had"):
        Coder(signed=False).loads(SAFE | _compression.ZSTD << 6, _packed([b"sx"]))
    assert Coder(signed=False).loads(SAFE | _compression.ZLIB << 6, _packed([b"sx"])) == "x"


def _peak(function: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _bomb(algorithm: int, size: int) -> bytes:
    _, compressor = _compression._compressor()
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()


def test_a_bomb_takes_no_more_memory_than_it_says(algorithm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compression, "MAX_LENGTH", 1 << 22)
    bomb = _bomb(algorithm, 1 << 28)
    assert len(bomb) < 1 << 21
    coder = Coder(signed=False)

    def explode() -> None:
        for said in (10, 1 << 22, (1 << 22) + 1, 1 << 28, 2**64 - 1):
            with pytest.raises(CacheCodecError):
                coder.loads(SAFE | algorithm << 6, [struct.pack(">IQ", 1, said) + bomb])

    # what is said, what is made of it a step at a time, the window of Zstandard
    assert _peak(explode) < 4 * (1 << 22)


def test_a_table_of_lengths_is_not_believed() -> None:
    coder = Coder(signed=False)
    for head in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\2" + b"\0" * 8, struct.pack(">IQQ", 2, 1 << 40, 1 << 40)):
        with pytest.raises(CacheCodecError):
            coder.loads(SAFE | _compression.ZLIB << 6, [head + zlib.compress(b"sx")])


# -- hostile bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["os:system", "builtins:eval", "antigravity:fly", "subprocess:Popen", "tests.pooled:x", ":", ""]
)
def test_names_in_stored_bytes_import_and_call_nothing(name: str) -> None:
    before = set(sys.modules)
    for types in (NO_TYPES, TYPES, Types(np.ndarray)):
        for coder in (Coder(signed=True, types=types), Coder("safe", signed=False, types=types)):
            for content in ('["o",0,"true"]', '["o",0]', "1", '["o",0,0,["t","true"]]'):
                with pytest.raises(UnnamedTypeError):
                    coder.loads(SAFE, [f't[[["{name}",""]],{content}]'.encode()])
    assert set(sys.modules) == before


def _tagged(packed: str) -> bytes:
    return f"t[[],{packed}]".encode()


HOSTILE = {
    "empty": [b""], "no frame": [], "unknown form": [b"x1"], "two values": [b"j1 2"], "nothing": [b"j"], "space": [b"j 1"],
    "NaN": [b"jNaN"], "infinity": [b"j-Infinity"], "bad UTF-8": [b"s\xff"], "not JSON": [b"j{"],
    "long number": [b"j" + b"1" * 10_000], "deep list": [b"j" + b"[" * 200_000], "deep object": [b"j" + b'{"a":' * 200_000],
    "deep tags": [b"t[[]," + b'["l",' * 100_000], "deep and closed": [b"t[[]," + b'["l",' * 300 + b"1" + b"]" * 301],
    "an object": [_tagged('{"a":1}')], "no tag": [_tagged("[]")], "tag of another type": [_tagged("[[1]]")],
    "unknown tag": [_tagged('["?",1]')], "no such number": [_tagged('["r",5]')], "no class": [_tagged('["o",0]')],
    "no frame there": [_tagged('["b",1]')], "main as a frame": [_tagged('["b",0]')], "unused frame": [_tagged("1"), b"x"],
    "frame used twice": [_tagged('["t",["b",1],["b",1]]'), b"x" * 300], "text and a frame": [b"sx", b"y"],
    "bytes and two frames": [b"b", b"x", b"y"], "JSON and a frame": [b"j1", b"x"], "list as a key": [_tagged('["d",["l"],1]')],
    "half a pair": [_tagged('["d","a"]')], "equal keys": [_tagged('["d",1,2,true,3]')], "equal members": [_tagged('["S",1,1]')],
    "equal members, frozen": [_tagged('["Z",1,["f","3ff0000000000000"]]')], "bad hex": [_tagged('["b","0"]')],
    "bad date": [_tagged('["a","2020-13-01"]')], "bad decimal": [_tagged('["m","x"]')], "bad number": [_tagged('["i",3]')],
    "key that is open": [_tagged('["d",["t",["r",0]],1]')], "huge span": [_tagged('["e",[1e400,0,0]]')],
    "class without a name": [b't[[[1,""]],1]'], "class table": [b"t[1,1]"], "one part": [b"t[[]]"],
}  # fmt: skip


@pytest.mark.parametrize("frames", HOSTILE.values(), ids=HOSTILE)
def test_hostile_frames_are_codec_errors(frames: list[bytes]) -> None:
    for coder in (Coder(signed=False, types=TYPES), Coder("safe", signed=True)):
        with pytest.raises(CacheCodecError):
            coder.loads(SAFE, frames)
    if len(frames) == 1:
        with pytest.raises(CacheCodecError):
            safe_loads(frames[0])


def _doubling(first: int) -> str:
    """A tuple that holds a tuple twice, and so on a hundred times; the innermost has this number."""
    text = '["t",1]'
    for number in range(first, first + 100):
        text = f'["t",{text},["r",{number}]]'
    return text


def test_aliases_without_end_stay_small_and_are_not_hashed() -> None:
    found = safe_loads(_tagged(_doubling(0)))
    assert found[0] is found[1]
    for holder in (f'["S",{_doubling(1)}]', f'["d",{_doubling(1)},1]', f'["l",{_doubling(1)},["Z",["r",101]]]'):
        with pytest.raises(CacheCodecError, match="repeats itself"):
            safe_loads(_tagged(holder))


def test_arrays_from_hostile_descriptions_are_codec_errors() -> None:
    coder = Coder("safe", signed=False, types=Types(np.generic, np.ndarray))
    memory = '["M","0000000000000000"]'
    descriptions = ['"O"', '"<i8,O"', '"|O"', '"<U0"', '"i8"', '"<V8,<f8"', '["l",["t","a","O"]]', '"|T16"', "1", "null",
                    '["d","names",["l","a"],"formats",["l","O"]]', '"<f16"', '"longdouble"', '"datetime64"']  # fmt: skip
    for description in descriptions:
        for shape in ("1", "8", "0", ""):
            frames = [f't[[["numpy:ndarray",""]],["o",0,{description},"Cw",{memory},{shape or 1}]]'.encode()]
            with pytest.raises(CacheCodecError):
                coder.loads(SAFE, frames)
    for shape in ("2", "-1", "-1,-1", "1e0", "true", "0", "4611686018427387904,4", '"1"', "1," * 80 + "1"):
        with pytest.raises(CacheCodecError):
            coder.loads(SAFE, [f't[[["numpy:ndarray",""]],["o",0,"<i8","Cw",{memory},{shape}]]'.encode()])
    for form, content in (
        ("C", memory),
        ("Xw", memory),
        ("Cw", '["b","0000000000000000"]'),
        ("Cw", '"00000000"'),
        ("Cw", "null"),
    ):
        with pytest.raises(CacheCodecError):
            coder.loads(SAFE, [f't[[["numpy:ndarray",""]],["o",0,"<i8","{form}",{content},1]]'.encode()])
    for parts in ('"<i4",["b","00"]', '"<i4",["b","0000000000"]', '"<i2",["b","0000"]', '"O",["b","0000000000000000"]', ""):
        with pytest.raises(CacheCodecError):
            coder.loads(SAFE, [f't[[["numpy:int32",""]],["o",0{parts and ","}{parts}]]'.encode()])


@pytest.mark.parametrize(
    ("kind", "parts"),
    [(Data, '1,["l"]'), (Data, "0,1"), (Data, '["l","x"],1,2'), (Data, '["l",0],1'), (Data, ""), (Data, '["l",["t"]],1'),
     (Frozen, "0,1,2,3"), (Frozen, '["l",7],1'), (Frozen, '["l","x"],1'), (Inner, "0,0,null"), (Inner, "0,0,null,null,1,2"),
     (Inner, '["l",1],0,null,null,1'), (Point, "1"), (Point, "1,2,3"), (Plain, '"ONE"'), (Plain, '"ONE","j2"'), (Plain, "1"),
     (Plain, '["l"],"j1"'), (Plain, ""), (Rights, '99'), (Rights, '3,"READ","j2"'), (Plain, '"__class__","j1"')],
)  # fmt: skip
def test_records_of_another_form_are_codec_errors(kind: type, parts: str) -> None:
    recipe = TYPES.of(kind)
    assert recipe is not None
    with pytest.raises(CacheCodecError):
        CLASSES["auto, unsigned"].loads(
            SAFE, [f't[[["{recipe.name}","{recipe.fingerprint}"]],["o",0{parts and ","}{parts}]]'.encode()]
        )


def _flip(data: st.DataObject, frame: bytes) -> bytes:
    position = data.draw(st.integers(0, max(len(frame) * 8 - 1, 0)))
    changed = bytearray(frame or b"\0")
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def _splice(data: st.DataObject, frame: bytes) -> bytes:
    start = data.draw(st.integers(0, len(frame)))
    end = data.draw(st.integers(start, min(len(frame), start + 12)))
    tokens = [b"", b"[", b"]", b",", b'"', b"0", b"-1", b"1e999", b"null", b"{", b'["r",0]', b'["o",0', b'["b",1]', b'["l"',
              b"\xff", b"true", b"9" * 400]  # fmt: skip
    return frame[:start] + data.draw(st.sampled_from(tokens) | st.binary(max_size=4)) + frame[end:]


def _retag(data: st.DataObject, frame: bytes) -> bytes:
    places = [
        place for place in range(len(frame) - 3) if frame[place : place + 2] == b'["' and frame[place + 3 : place + 4] == b'"'
    ]
    if not places:
        return frame
    place = data.draw(st.sampled_from(places)) + 2
    return frame[:place] + data.draw(st.sampled_from([bytes([tag]) for tag in b"bBMldStZorifcDahemu?"])) + frame[place + 1 :]


def _renumber(data: st.DataObject, frame: bytes) -> bytes:
    places = [place for place, byte in enumerate(frame) if 0x30 <= byte <= 0x39]
    if not places:
        return frame
    place = data.draw(st.sampled_from(places))
    return frame[:place] + str(data.draw(st.integers(-3, 300))).encode() + frame[place + 1 :]


def _swap(data: st.DataObject, frame: bytes) -> bytes:
    parts = frame.split(b",")
    one, other = (data.draw(st.integers(0, len(parts) - 1)) for _ in range(2))
    parts[one], parts[other] = parts[other], parts[one]
    return b",".join(parts)


IN_A_FRAME: list[Callable[[st.DataObject, bytes], bytes]] = [
    _flip, _splice, _retag, _renumber, _swap,
    lambda data, frame: frame[: data.draw(st.integers(0, len(frame)))],
    lambda data, frame: frame[data.draw(st.integers(0, len(frame))) :],
    lambda data, frame: frame + data.draw(st.binary(min_size=1)),
    lambda data, frame: frame + frame,
    lambda data, frame: bytes(len(frame)),
    lambda data, frame: data.draw(st.sampled_from([b"s", b"b", b"j", b"t"])) + frame[1:],
]  # fmt: skip
AMONG_FRAMES: list[Callable[[st.DataObject, list[bytes]], list[bytes]]] = [
    lambda data, frames: frames[:-1],
    lambda data, frames: [*frames, data.draw(st.binary())],
    lambda data, frames: data.draw(st.permutations(frames)),
    lambda data, frames: [frames[0], *frames],
    lambda data, frames: [frames[0]] * len(frames),
]
STORED = [
    [
        1,
        "a",
        (b"x" * 300, bytearray(b"y" * 300)),
        {"k": {1: 2.5, (1, 2): {3}}},
        dt.datetime(2020, 1, 1),
        decimal.Decimal("1.5"),
    ],
    {"a": [1, 2, {"b": None}], "c": "d" * 50},
    [_model(), Data(Frozen(1)), Defined(2), Plain.PAIR, Rights(3), Point(1, 2), {Inner(): 1}],
    "text" * 20,
    b"bytes" * 100,
]
_STORED_ARRAYS = [np.arange(100.0).reshape(10, 10), np.zeros(9, _structure), np.float32(3), np.array([True])]
TARGETS = [
    *(Coder("auto", signed=False, types=TYPES | Types(np.ndarray, np.generic), compress_above=above) for above in (None, 0)),
    Coder(Codec("mine", lambda value: safe_dumps(repr(value)), safe_loads), signed=False),
]
WRITTEN = [(coder, *coder.dumps(value)) for coder in TARGETS for value in (*STORED, _STORED_ARRAYS)]
WRITTEN += [(JSON_CODER, *JSON_CODER.dumps(STORED[1]))]


def test_there_are_sixteen_kinds_of_damage() -> None:
    assert len(IN_A_FRAME) + len(AMONG_FRAMES) == 16


@settings(max_examples=3000, deadline=None)
@given(st.data(), st.sampled_from(WRITTEN), st.lists(st.integers(0, 15), min_size=1, max_size=3))
def test_damaged_frames_raise_codec_errors_only(data: st.DataObject, written: Any, kinds: list[int]) -> None:
    coder, codec, frames = written
    frames = [bytes(frame) for frame in frames]
    for kind in kinds:
        if kind >= len(IN_A_FRAME):
            frames = list(AMONG_FRAMES[kind - len(IN_A_FRAME)](data, frames)) or [b""]
        else:
            index = data.draw(st.integers(0, len(frames) - 1))
            frames[index] = IN_A_FRAME[kind](data, frames[index])
    codec = data.draw(st.just(codec) | st.integers(0, 255))
    with contextlib.suppress(CacheCodecError):
        coder.loads(codec, frames)


@given(st.binary(), st.integers(0, 255), st.lists(st.binary(), max_size=3))
def test_any_bytes_raise_codec_errors_only(main: bytes, codec: int, more: list[bytes]) -> None:
    for coder in TARGETS:
        for form in (b"", b"j", b"t", b"s"):
            with contextlib.suppress(CacheCodecError):
                coder.loads(codec, [form + main, *more])


# -- processes -------------------------------------------------------------------------------------------------------

MODULE = """
import abc, collections, dataclasses, enum, typing
import attrs, numpy as np, pydantic

class Model(pydantic.BaseModel, extra="allow"):
    a: int
    b: "list[Model]" = []
    note: typing.Annotated[int, object()] = 0
    _p: int = pydantic.PrivateAttr(1)

@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: object
    y: "int | None" = None

@attrs.define
class Defined:
    x: int

class Color(enum.Enum):
    RED = ("r", 1)

class Flags(enum.IntFlag):
    A = 1
    B = 2

class Point(typing.NamedTuple):
    x: int

KINDS = [Model, Frozen, Defined, Color, Flags, Point, np.ndarray, np.float32]
VALUE = [Model(a=1, b=[Model(a=2, z=3)]), {Frozen(1), Frozen(("a", None))}, Defined(3), Color.RED, Flags.A | Flags.B, Point(4),
         np.arange(100), np.float32(2)]
"""
WRITE = """
import pickle, sys
from kinds import KINDS, VALUE
from codomyrmex_cache.codecs import Coder, Types
codec, frames = Coder("safe", signed=False, types=Types(*KINDS)).dumps(VALUE)
with open(sys.argv[1] if len(sys.argv) > 1 else STORE, "wb") as file:
    pickle.dump((codec, [bytes(frame) for frame in frames]), file)
"""
READ = """
import pickle, sys
import numpy as np
from kinds import KINDS, VALUE
from codomyrmex_cache.codecs import Coder, Types
with open(STORE, "rb") as file:
    stored = pickle.load(file)
try:
    found = Coder("safe", signed=False, types=Types(*KINDS)).loads(*stored)
except Exception as error:
    print(type(error).__name__)
else:
    assert np.array_equal(found.pop(6), VALUE.pop(6))
    print(found == VALUE and [type(part) for part in found] == [type(part) for part in VALUE] and found[0].b[0]._p == 1)
"""


def test_values_of_named_classes_outlive_the_process(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text(MODULE)
    store = f"STORE = {str(tmp_path / 'store')!r}\n"
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}", "PYTHONDONTWRITEBYTECODE": "1"}
    run_python(store + WRITE, **environment)
    assert run_python(store + READ, **environment) == "True\n"
    changed = {
        'y: "int | None" = None': 'y: "str | None" = None',
        "    x: object\n": "    x: object\n    w: int = 0\n",
        '("r", 1)': '("r", 2)',
        "    note: typing.Annotated[int, object()] = 0\n": "",
    }
    for old, new in changed.items():
        assert old in MODULE
        (tmp_path / "kinds.py").write_text(MODULE.replace(old, new))
        assert run_python(store + READ, **environment) == "CacheCodecError\n", new
    (tmp_path / "kinds.py").write_text(MODULE.replace("KINDS = [Model, Frozen, ", "KINDS = [Model, "))
    assert run_python(store + READ, **environment) == "UnnamedTypeError\n"


def test_no_other_package_is_imported_for_codecs() -> None:
    source = """
import sys
from codomyrmex_cache.codecs import Coder, Types
coder = Coder(signed=True, types=Types(int), compress_above=100)
assert coder.loads(*coder.dumps({"a": (1, b"2")})) == {"a": (1, b"2")}
print(*(set(sys.modules) & {"numpy", "pydantic", "attrs", "attr", "pandas", "cloudpickle", "pickle", "zstandard"}))
"""
    assert run_python(source) == "\n"


class Abstract(abc.ABC):
    @abc.abstractmethod
    def method(self) -> int: ...


@dataclasses.dataclass
class Concrete(Abstract):
    x: int

    def method(self) -> int:
        return self.x


def test_a_class_with_an_abstract_base_is_as_any_other() -> None:
    coder = Coder(signed=False, types=Types(Concrete))
    assert coder.loads(*coder.dumps(Concrete(3))).method() == 3
