"""Pairs of arguments that a key must tell apart, and pairs that it must not.

Data for the tests, importable without pytest.  The members of a pair are made anew at each call, so that nothing is the
same object by accident.  A pair of `MUST_DIFFER` lets some function answer differently; the members of a pair of
`MUST_AGREE` were made in different ways, or put in a different order, and are the same argument.  The members of a pair of
`MUST_NOT_MEET` may be refused, but never share a key.
"""

from __future__ import annotations

import array
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import ipaddress
import json
import math
import operator
import random
import re
import struct
import threading
import types
import typing
import uuid
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import attrs
import numpy as np
import pandas as pd
import polars as pl
import pydantic
import pydantic.v1

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache.keys import register

__all__ = ["MUST_AGREE", "MUST_DIFFER", "MUST_NOT_MEET", "PROCESS_LOCAL", "Pair"]

Pair = Callable[[], tuple[object, object]]

# -- classes that the pairs are made of ------------------------------------------------------------------------------


class Text(str):
    pass


class OtherText(str):
    pass


class Number(int):
    pass


class Real(float):
    pass


class Items(list[Any]):
    pass


class Row(tuple[Any, ...]):
    pass


class Table(dict[Any, Any]):
    pass


class Ordered(OrderedDict[Any, Any]):
    pass


class Hiding(OrderedDict[Any, Any]):
    def items(self) -> Any:
        return {}.items()


class Defaults(defaultdict[Any, Any]):
    pass


class Tally(Counter[Any]):
    pass


class Bag(set[Any]):
    pass


class Queue(deque[Any]):
    pass


class Moment(dt.datetime):
    pass


class Day(dt.date):
    pass


class Duration(dt.timedelta):
    pass


class Amount(Decimal):
    pass


class Ratio(Fraction):
    pass


class ProblemError(Exception):
    pass


class Address(ipaddress.IPv4Address):
    pass


class Zone(ZoneInfo):
    pass


class Place(PurePosixPath):
    pass


class Buffer(array.array):
    pass


class Matrix(np.ndarray):
    pass


class Measure(np.float64):
    pass


class Frame(pd.DataFrame):
    pass


class Polar(pl.DataFrame):
    pass


Point = namedtuple("Point", "x y")
Pixel = namedtuple("Pixel", "x y")


class Triple(NamedTuple):
    x: int
    y: int
    z: int = 0


class Color(enum.Enum):
    RED = 1
    GREEN = "1"
    CRIMSON = 1  # an alias  # noqa: PIE796


class Shade(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    READ = "r"
    WRITE = "w"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Plain:
    """Any attributes, and a repr that says nothing."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return "always the same"

    def method(self) -> None: ...

    def other(self) -> None: ...

    @classmethod
    def made(cls) -> Plain:
        return cls()


class Child(Plain):
    pass


class Equal:
    """Says of itself that it equals everything."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: int, b: int) -> None:
        self.a, self.b = a, b


class Half:
    """Slots and a dict side by side."""

    __slots__ = ("__dict__", "a")

    def __init__(self, a: int, **more: int) -> None:
        self.a = a
        self.__dict__.update(more)


class Hidden:
    __slots__ = ("__value",)

    def __init__(self, value: int) -> None:
        self.__value = value


class _Hidden:
    __slots__ = ("__value",)

    def __init__(self, value: int) -> None:
        self.__value = value


class HiddenTwice(Hidden):
    """The same private name in two classes: two slots."""

    __slots__ = ("__value",)

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner)
        self.__value = outer


class Maker:
    """Makes things; what it is made of is in none of them."""

    def __init__(self, size: int) -> None:
        self.size = size

    def make(self) -> Made:
        return Made(self)


class Made:
    """Rebuilt by a method of its maker."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __reduce__(self) -> tuple[Any, ...]:
        return self.maker.make, ()


class Set:
    """Its state is in the function that sets it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return object, (), {}, None, None, functools.partial(setattr, value=self.value)


class Named:
    """Says that it is a global, which it is not."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> str:
        return "Named"


class Rebuilt:
    """Rebuilt by a function that has the state in it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Rebuilt, self.value), ()


class Keyed:
    """Counts by its name."""

    def __init__(self, name: str) -> None:
        self.name, self.lock = name, threading.Lock()

    def __cache_key__(self) -> object:
        return self.name


class KeyedChild(Keyed):
    pass


class Client:
    """Counts by its address, as registered below."""

    def __init__(self, url: str) -> None:
        self.url, self.lock = url, threading.Lock()


class SpecialClient(Client):
    pass


register(Client, lambda client: client.url)

T = TypeVar("T")


class Box(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


@dataclasses.dataclass
class Record:
    a: int
    b: list[int] = dataclasses.field(default_factory=list)
    c: Any = None


@dataclasses.dataclass
class SubRecord(Record):
    d: int = 0


@dataclasses.dataclass
class OtherRecord:
    a: int
    b: list[int] = dataclasses.field(default_factory=list)
    c: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: int
    b: int = 0


@dataclasses.dataclass(slots=True)
class Tight:
    a: int


@dataclasses.dataclass(slots=True)
class TighterChild(Tight):
    b: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenTight:
    a: int
    b: int = 0


@dataclasses.dataclass
class Uncompared:
    a: int = dataclasses.field(default=0, compare=False, repr=False)


@dataclasses.dataclass
class Line(deque[Any]):
    name: str = ""


@attrs.define
class Defined:
    a: int
    b: Any = None


class DefinedChild(Defined):
    """No attrs class itself, so it has a dict that attrs knows nothing of."""


@attrs.frozen
class DefinedFrozen:
    a: int
    b: Any = None


@attrs.define(slots=False)
class DefinedOpen:
    a: int
    b: Any = None


@attrs.define
class DefinedMore(Defined):
    c: int = 0


class Noted:
    __slots__ = ("note",)


@attrs.define
class DefinedOver(Noted):
    a: int


@attrs.define(unsafe_hash=True, cache_hash=True)
class DefinedHashed:
    a: int


class Model(pydantic.BaseModel):
    a: int
    b: int = 2


class OtherModel(pydantic.BaseModel):
    a: int
    b: int = 2


class Nested(pydantic.BaseModel):
    inner: Model
    more: dict[str, Model] = {}


class Open(pydantic.BaseModel, extra="allow"):
    a: int


class Private(pydantic.BaseModel):
    a: int
    _secret: int = pydantic.PrivateAttr(0)


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Parcel(pydantic.BaseModel, Generic[T]):
    content: T


IntParcel = Parcel[int]
AnyParcel = Parcel[Any]


@pydantic.dataclasses.dataclass
class Checked:
    a: int


class OldModel(pydantic.v1.BaseModel):
    a: int
    b: int = 2


class OldNested(pydantic.v1.BaseModel):
    inner: OldModel


class OldOpen(pydantic.v1.BaseModel):
    a: int

    class Config:
        extra = "allow"


class OldPrivate(pydantic.v1.BaseModel):
    a: int
    _secret: int = pydantic.v1.PrivateAttr(0)


def _with(value: Any, **attributes: Any) -> Any:
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


def _looked_at(value: Any, *looks: Callable[[Any], object]) -> Any:
    for look in looks:
        look(value)
    return value


def _filled(make: Callable[[], Any], *items: Any) -> Any:
    value = make()
    value.extend(items)
    return value


def _local_class(size: int) -> type:
    class Local:
        content = size

    return Local


class _ByName(type):
    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type) and cls.__name__ == other.__name__

    def __hash__(cls) -> int:
        return hash(cls.__name__)


def _named_class(size: int) -> type:
    class Local(metaclass=_ByName):
        content = size

    return Local


def _executed(factor: int) -> Any:
    namespace = {"factor": factor, "__name__": "somewhere"}
    exec("def scale(x): return x * factor", namespace)
    return namespace["scale"]


def _scaled(factor: Any) -> Callable[[int], Any]:
    def scale(x: int) -> Any:
        return x * factor

    return scale


def _default(factor: Any) -> Callable[..., Any]:
    def scale(x: int, by: Any = factor, *, plus: Any = None) -> Any:
        return x * by

    return scale


def _keyword_default(factor: Any) -> Callable[..., Any]:
    def scale(x: int, *, by: Any = factor) -> Any:
        return x * by

    return scale


def _reading_itself(factor: int) -> Callable[[int], Any]:
    def scale(x: int) -> Any:
        return x * scale.factor

    return _with(scale, factor=factor)


def _recursive(start: int) -> Callable[[int], int]:
    def count(n: int) -> int:
        return start if n == 0 else count(n - 1)

    return count


def _remembered(factor: int, size: int = 8) -> Callable[[int], Any]:
    @functools.lru_cache(maxsize=size)
    def scale(x: int) -> Any:
        return x * factor

    return scale


def _cached(factor: int) -> Callable[[int], Any]:
    @cached(manager=CacheManager())
    def scale(x: int) -> Any:
        return x * factor

    return scale


def _wrapped(factor: int) -> Callable[..., Any]:
    inner = _scaled(factor)

    @functools.wraps(inner)
    def outer(*args: Any) -> Any:
        return json.dumps(args)

    return outer


def _changed(values: Any, place: Any, value: Any) -> Any:
    values[place] = value
    return values


def _padded(garbage: int) -> Any:
    """Structs with padding between the fields, which holds what was in the memory before."""
    dtype = np.dtype([("small", "i1"), ("large", "i4")], align=True)
    values = np.full(2 * dtype.itemsize, garbage, "u1").view(dtype)
    values["small"], values["large"] = [1, 2], [3, 4]
    return values


def _objects(*items: Any) -> Any:
    values = np.empty(len(items), object)
    values[:] = items
    return values


def _masked(*, hard: bool = False) -> Any:
    return np.ma.array([1, 2, 3], mask=[False, True, False], hard_mask=hard)


def _frame() -> pd.DataFrame:
    return pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})


def _with_attrs(frame: Any, **attributes: Any) -> Any:
    frame.attrs.update(attributes)
    return frame


def _ticks(*ticks: int, dtype: Any = None) -> pl.Series:
    """Moments as numbers of nanoseconds."""
    return pl.Series("t", ticks).cast(dtype or pl.Datetime("ns"))


def _holiday_index(holiday: str) -> pd.DatetimeIndex:
    days = ["2026-01-05", "2026-01-06"]
    return pd.DatetimeIndex(days, freq=pd.offsets.CustomBusinessDay(holidays=[holiday]))


BERLIN = "Europe/Berlin"
LONDON = "Europe/London"
STRINGS = np.dtypes.StringDType
LARGE = 10_000
"""Elements of an array of far more than a page."""

MUST_DIFFER: dict[str, Pair] = {
    # -- plain values
    "None and False": lambda: (None, False),
    "None and 0": lambda: (None, 0),
    "None and its name": lambda: (None, "None"),
    "None and empty": lambda: (None, ()),
    "int and bool": lambda: (1, True),
    "zero and False": lambda: (0, False),
    "int and float": lambda: (1, 1.0),
    "float and bool": lambda: (1.0, True),
    "int and complex": lambda: (1, 1 + 0j),
    "float and complex": lambda: (1.0, 1 + 0j),
    "int and Decimal": lambda: (1, Decimal(1)),
    "int and Fraction": lambda: (1, Fraction(1)),
    "int and str": lambda: (1, "1"),
    "int and bytes": lambda: (97, b"a"),
    "int and numpy int": lambda: (1, np.int64(1)),
    "float and numpy float": lambda: (1.0, np.float64(1)),
    "bool and numpy bool": lambda: (True, np.True_),
    "str and numpy str": lambda: ("a", np.str_("a")),
    "int and its negative": lambda: (1, -1),
    "int of one byte and of two": lambda: (127, 128),
    "int and its two's complement": lambda: (255, -1),
    "int and its low bytes": lambda: (1, 2**64 + 1),
    "int beyond 64 bits": lambda: (2**64, 2**64 + 1),
    "int of 10,000 digits": lambda: (10**9_999, 10**9_999 + 1),
    "int beyond the precision of floats": lambda: (2**53, 2**53 + 1),
    "float zeros": lambda: (0.0, -0.0),
    "float neighbours": lambda: (0.1, math.nextafter(0.1, 1)),
    "float denormal and zero": lambda: (5e-324, 0.0),
    "infinities": lambda: (math.inf, -math.inf),
    "NaN and infinity": lambda: (math.nan, math.inf),
    "NaN and None": lambda: (math.nan, None),
    "NaN and its name": lambda: (math.nan, "nan"),
    "complex zeros": lambda: (complex(0.0, 0.0), complex(0.0, -0.0)),
    "complex parts swapped": lambda: (1 + 2j, 2 + 1j),
    "empty bytes and str": lambda: (b"", ""),
    "bytes and str": lambda: (b"a", "a"),
    "bytes and bytearray": lambda: (b"a", bytearray(b"a")),
    "bytes and memoryview": lambda: (b"a", memoryview(b"a")),
    "bytearray and memoryview": lambda: (bytearray(b"a"), memoryview(b"a")),
    "bytes and array": lambda: (b"a", array.array("B", b"a")),
    "bytes and list of int": lambda: (b"a", [97]),
    "nested bytes and bytearray": lambda: ([b"a"], [bytearray(b"a")]),
    "nested bytes and memoryview": lambda: ([b"a"], [memoryview(b"a")]),
    "nested bytes and array": lambda: ([b"a"], [array.array("B", b"a")]),
    "bytes with a trailing zero": lambda: (b"a", b"a\0"),
    "str with a trailing zero": lambda: ("a", "a\0"),
    "str and a blank": lambda: ("a", "a "),
    "str case": lambda: ("a", "A"),
    "str composed and decomposed": lambda: ("\u00e9", "e\u0301"),
    "str beyond the memo's limit": lambda: ("x" * 5_000, "x" * 4_999 + "y"),
    "surrogates": lambda: ("\ud800", "\udfff"),
    "surrogate and replacement": lambda: ("\ud800", "?"),
    "surrogate pair and character": lambda: ("\ud83d\ude00", "\U0001f600"),
    "surrogate and its escaped bytes": lambda: ("\udc80", "\\udc80"),
    "memoryview format": lambda: (memoryview(b"ab"), memoryview(b"ab").cast("H")),
    "memoryview shape": lambda: (memoryview(bytes(8)).cast("B", (2, 4)), memoryview(bytes(8)).cast("B", (4, 2))),
    "large memoryview": lambda: (memoryview(bytes(LARGE)), memoryview(_changed(bytearray(LARGE), LARGE // 2, 1))),
    "large memoryview shape": lambda: (
        memoryview(bytes(8_192)).cast("B", (2, 4_096)),
        memoryview(bytes(8_192)).cast("B", (4_096, 2)),
    ),
    "array type": lambda: (array.array("i", [1]), array.array("l", [1])),
    "array signedness": lambda: (array.array("b", [1]), array.array("B", [1])),
    "array content": lambda: (array.array("d", [0.0]), array.array("d", [-0.0])),
    "empty arrays": lambda: (array.array("i"), array.array("d")),
    "large array": lambda: (array.array("i", bytes(4 * LARGE)), _changed(array.array("i", bytes(4 * LARGE)), LARGE // 2, 1)),
    "array and list": lambda: (array.array("i", [1]), [1]),
    "array subclass attributes": lambda: (_with(Buffer("i", [1]), a=1), _with(Buffer("i", [1]), a=2)),
    "Ellipsis and NotImplemented": lambda: (..., NotImplemented),
    # -- containers
    "list and tuple": lambda: ([1], (1,)),
    "empty list and tuple": lambda: ([], ()),
    "empty list and dict": lambda: ([], {}),
    "empty dict and set": lambda: ({}, set()),
    "empty list and list of one": lambda: ([], [[]]),
    "nested list and tuple": lambda: ([[1]], [(1,)]),
    "nesting": lambda: ([[1], 2], [[1, 2]]),
    "nesting of empties": lambda: ([[], [[]]], [[[]], []]),
    "order of a list": lambda: ([1, 2], [2, 1]),
    "repetition in a list": lambda: ([1], [1, 1]),
    "tuple with int and with bool": lambda: ((1, 2), (True, 2)),
    "tuple with zeros": lambda: ((0.0,), (-0.0,)),
    "words joined by blanks": lambda: (("a b", "c"), ("a", "b c")),
    "words joined by commas": lambda: (("a,b", "c"), ("a", "b,c")),
    "words joined by nothing": lambda: (["ab", "c"], ["a", "bc"]),
    "words joined by zeros": lambda: (("a\0", "b"), ("a", "\0b")),
    "bytes joined": lambda: ((b"ab", b"c"), (b"a", b"bc")),
    "words with tags in them": lambda: (("a", "bsc"), ("asb", "c")),
    "bytes with tags in them": lambda: ((b"a", b"bbc"), (b"abb", b"c")),
    "numbers with tags in them": lambda: ((0x01, 0x026903), (0x016902, 0x03)),
    "containers with tags in them": lambda: (["l", []], [[], "l"]),
    "list in text form": lambda: ([1, 2], "[1, 2]"),
    "list of one and its item": lambda: (["a"], "a"),
    "str and its characters": lambda: ("ab", ["a", "b"]),
    "dict value types": lambda: ({"a": 1}, {"a": True}),
    "dict key types": lambda: ({1: "a"}, {"1": "a"}),
    "dict keys that are equal": lambda: ({1: "a"}, {True: "a"}),
    "dict keys int and float": lambda: ({1: "a"}, {1.0: "a"}),
    "dict keys and values swapped": lambda: ({"a": "b"}, {"b": "a"}),
    "dict values swapped": lambda: ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    "dict and its items": lambda: ({"a": 1}, [("a", 1)]),
    "dict value None and none": lambda: ({"a": None}, {}),
    "dict levels": lambda: ({"a": {"b": 1}}, {"a": 1, "b": 1}),
    "dict of dicts": lambda: ({"a": {"b": 1}, "c": {}}, {"a": {}, "c": {"b": 1}}),
    "set and frozenset": lambda: ({1}, frozenset({1})),
    "empty set and frozenset": lambda: (set(), frozenset()),
    "set and list": lambda: ({1}, [1]),
    "set and dict": lambda: ({1}, {1: None}),
    "set members that are equal": lambda: ({1}, {True}),
    "sets of tuples": lambda: ({(1, 2)}, {(2, 1)}),
    "set of pairs and pair of sets": lambda: ({(1, 2), (3, 4)}, {(1, 4), (3, 2)}),
    "nested frozensets": lambda: ({frozenset({1}), frozenset({2})}, {frozenset({1, 2})}),
    "range and list": lambda: (range(3), [0, 1, 2]),
    "range steps": lambda: (range(0, 4, 2), range(0, 4, 3)),
    "range stop": lambda: (range(0, 3, 2), range(0, 4, 2)),
    "slice bounds": lambda: (slice(1), slice(1, None)),
    "slice steps": lambda: (slice(0, 4, 1), slice(0, 4, 2)),
    "slice types": lambda: (slice(0, 1), slice(False, True)),
    "slice and range": lambda: (slice(0, 4, 1), range(0, 4, 1)),
    "OrderedDict order": lambda: (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
    "OrderedDict and dict": lambda: (OrderedDict(a=1), {"a": 1}),
    "OrderedDict values": lambda: (OrderedDict(a=1), OrderedDict(a=True)),
    "OrderedDict that hides items": lambda: (Hiding(a=1), Hiding(a=2)),
    "OrderedDict attributes": lambda: (_with(Ordered(a=1), x=1), _with(Ordered(a=1), x=2)),
    "defaultdict factory": lambda: (defaultdict(list, a=1), defaultdict(set, a=1)),
    "defaultdict and dict": lambda: (defaultdict(None, a=1), {"a": 1}),
    "defaultdict content": lambda: (defaultdict(list, a=[1]), defaultdict(list, a=[2])),
    "defaultdict attributes": lambda: (_with(Defaults(int), x=1), _with(Defaults(int), x=2)),
    "Counter counts": lambda: (Counter("ab"), Counter("abb")),
    "Counter zero and none": lambda: (Counter(a=0), Counter()),
    "Counter and dict": lambda: (Counter("a"), {"a": 1}),
    "Counter attributes": lambda: (_with(Tally("a"), x=1), _with(Tally("a"), x=2)),
    "ChainMap order": lambda: (ChainMap({"a": 1}, {"a": 2}), ChainMap({"a": 2}, {"a": 1})),
    "ChainMap and flat": lambda: (ChainMap({"a": 1}, {"b": 2}), ChainMap({"a": 1, "b": 2})),
    "deque and list": lambda: (deque([1]), [1]),
    "deque length": lambda: (deque([1], 2), deque([1], 3)),
    "deque bounded and not": lambda: (deque([1]), deque([1], 3)),
    "deque order": lambda: (deque([1, 2]), deque([2, 1])),
    "deque attributes": lambda: (_with(Queue([1]), x=1), _with(Queue([1]), x=2)),
    "UserDict": lambda: (UserDict(a=1), UserDict(a=2)),
    "UserList": lambda: (UserList([1]), UserList([2])),
    "namedtuple and tuple": lambda: (Point(1, 2), (1, 2)),
    "namedtuple classes": lambda: (Point(1, 2), Pixel(1, 2)),
    "namedtuple fields": lambda: (Point(1, 2), Point(2, 1)),
    "NamedTuple defaults": lambda: (Triple(1, 2), Triple(1, 2, 1)),
    "SimpleNamespace": lambda: (types.SimpleNamespace(a=1), types.SimpleNamespace(a=True)),
    "exceptions": lambda: (ValueError("a"), ValueError("b")),
    "exception classes": lambda: (ValueError("a"), TypeError("a")),
    "exception attributes": lambda: (_with(ProblemError("a"), code=1), _with(ProblemError("a"), code=2)),
    # -- dates and numbers of the standard library
    "date and datetime": lambda: (dt.date(2026, 1, 1), dt.datetime(2026, 1, 1)),
    "date and its text": lambda: (dt.date(2026, 1, 1), "2026-01-01"),
    "datetime microseconds": lambda: (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, microsecond=1)),
    "datetime fold": lambda: (dt.datetime(2026, 10, 25, 2), dt.datetime(2026, 10, 25, 2, fold=1)),
    "datetime fold in a zone": lambda: (
        dt.datetime(2026, 10, 25, 2, tzinfo=ZoneInfo(BERLIN)),
        dt.datetime(2026, 10, 25, 2, fold=1, tzinfo=ZoneInfo(BERLIN)),
    ),
    "datetime naive and aware": lambda: (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    "datetime same instant in two offsets": lambda: (
        dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 1, 13, tzinfo=dt.timezone(dt.timedelta(hours=1))),
    ),
    "datetime UTC and zone UTC": lambda: (
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
    ),
    "datetime zones with one offset": lambda: (
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo(BERLIN)),
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Paris")),
    ),
    "datetime subclass": lambda: (dt.datetime(2026, 1, 1), Moment(2026, 1, 1)),
    "datetime subclass attributes": lambda: (_with(Moment(2026, 1, 1), a=1), _with(Moment(2026, 1, 1), a=2)),
    "date subclass attributes": lambda: (_with(Day(2026, 1, 1), a=1), _with(Day(2026, 1, 1), a=2)),
    "timedelta subclass attributes": lambda: (_with(Duration(1), a=1), _with(Duration(1), a=2)),
    "time": lambda: (dt.time(1), dt.time(0, 1)),
    "time fold": lambda: (dt.time(1), dt.time(1, fold=1)),
    "time naive and aware": lambda: (dt.time(1), dt.time(1, tzinfo=dt.UTC)),
    "timedelta units": lambda: (dt.timedelta(1), dt.timedelta(0, 1)),
    "timedelta sign": lambda: (dt.timedelta(seconds=1), dt.timedelta(seconds=-1)),
    "timedelta and number": lambda: (dt.timedelta(seconds=1), 1.0),
    "timezone offsets": lambda: (dt.timezone(dt.timedelta(hours=1)), dt.timezone(dt.timedelta(hours=2))),
    "timezone names": lambda: (dt.timezone(dt.timedelta(0), "GMT"), dt.timezone(dt.timedelta(0), "WET")),
    "zones": lambda: (ZoneInfo(BERLIN), ZoneInfo(LONDON)),
    "zone and its name": lambda: (ZoneInfo(BERLIN), BERLIN),
    "zone subclass": lambda: (ZoneInfo(BERLIN), Zone(BERLIN)),
    "zone subclass attributes": lambda: (_with(Zone.no_cache(BERLIN), a=1), _with(Zone.no_cache(BERLIN), a=2)),
    "Decimal exponents": lambda: (Decimal("1.0"), Decimal("1.00")),
    "Decimal notation": lambda: (Decimal("1E+1"), Decimal("10")),
    "Decimal zeros": lambda: (Decimal("0"), Decimal("-0")),
    "Decimal and float": lambda: (Decimal("0.5"), 0.5),
    "Decimal NaN and infinity": lambda: (Decimal("NaN"), Decimal("Infinity")),
    "Decimal quiet and signalling NaN": lambda: (Decimal("NaN"), Decimal("sNaN")),
    "Decimal subclass attributes": lambda: (_with(Amount("1"), currency="EUR"), _with(Amount("1"), currency="USD")),
    "decimal contexts": lambda: (decimal.Context(prec=5), decimal.Context(prec=6)),
    "Fraction": lambda: (Fraction(1, 2), Fraction(1, 3)),
    "Fraction and float": lambda: (Fraction(1, 2), 0.5),
    "Fraction subclass attributes": lambda: (_with(Ratio(1, 2), a=1), _with(Ratio(1, 2), a=2)),
    "UUIDs": lambda: (uuid.UUID(int=1), uuid.UUID(int=2)),
    "UUID and its text": lambda: (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    "random generators": lambda: (random.Random(1), random.Random(2)),
    # -- paths, patterns, addresses
    "path and str": lambda: (PurePosixPath("a"), "a"),
    "path and pure path": lambda: (Path("a"), PurePath("a")),
    "path flavours": lambda: (PurePosixPath("a"), PureWindowsPath("a")),
    "path parts": lambda: (PurePosixPath("a/b"), PurePosixPath("a") / "b" / "c"),
    "path absolute and relative": lambda: (PurePosixPath("/a"), PurePosixPath("a")),
    "path parent": lambda: (PurePosixPath("a/../b"), PurePosixPath("b")),
    "path case on Windows": lambda: (PureWindowsPath("A"), PureWindowsPath("a")),
    "path subclass attributes": lambda: (_with(Place("a"), a=1), _with(Place("a"), a=2)),
    "pattern flags": lambda: (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "pattern and str": lambda: (re.compile("a"), "a"),
    "pattern of str and of bytes": lambda: (re.compile("a"), re.compile(b"a")),
    "pattern texts": lambda: (re.compile("a+"), re.compile("a*")),
    "addresses": lambda: (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("10.0.0.2")),
    "address and int": lambda: (ipaddress.ip_address("0.0.0.1"), 1),
    "address versions": lambda: (ipaddress.IPv4Address(1), ipaddress.IPv6Address(1)),
    "address scope": lambda: (ipaddress.ip_address("fe80::1%a"), ipaddress.ip_address("fe80::1%b")),
    "address subclass attributes": lambda: (_with(Address("10.0.0.1"), a=1), _with(Address("10.0.0.1"), a=2)),
    "networks": lambda: (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.0.0.0/16")),
    "network and address": lambda: (ipaddress.ip_network("10.0.0.1/32"), ipaddress.ip_address("10.0.0.1")),
    "interfaces": lambda: (ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("10.0.0.1/24")),
    "interfaces of version 6": lambda: (ipaddress.ip_interface("fe80::1/64"), ipaddress.ip_interface("fe80::1/128")),
    # -- subclasses of built-in types
    "str subclass": lambda: ("a", Text("a")),
    "two str subclasses": lambda: (Text("a"), OtherText("a")),
    "str subclass content": lambda: (Text("a"), Text("b")),
    "str subclass attributes": lambda: (_with(Text("a"), x=1), _with(Text("a"), x=2)),
    "int subclass": lambda: (1, Number(1)),
    "int subclass attributes": lambda: (_with(Number(1), unit="m"), _with(Number(1), unit="s")),
    "float subclass": lambda: (1.0, Real(1.0)),
    "float subclass zeros": lambda: (Real(0.0), Real(-0.0)),
    "list subclass": lambda: ([1], Items([1])),
    "list subclass content": lambda: (Items([1]), Items([True])),
    "list subclass attributes": lambda: (_with(Items([1]), x=1), _with(Items([1]), x=2)),
    "tuple subclass": lambda: ((1,), Row((1,))),
    "dict subclass": lambda: ({"a": 1}, Table(a=1)),
    "dict subclass content": lambda: (Table(a=1), Table(a=True)),
    "dict subclass attributes": lambda: (_with(Table(a=1), x=1), _with(Table(a=1), x=2)),
    "set subclass": lambda: ({1}, Bag({1})),
    "set subclass attributes": lambda: (_with(Bag({1}), x=1), _with(Bag({1}), x=2)),
    # -- enums
    "enum members": lambda: (Color.RED, Color.GREEN),
    "enum and its value": lambda: (Color.RED, 1),
    "enum classes": lambda: (Color.RED, Shade.RED),
    "IntEnum and int": lambda: (Level.LOW, 1),
    "IntEnum members": lambda: (Level.LOW, Level.HIGH),
    "StrEnum and str": lambda: (Mode.READ, "r"),
    "StrEnum members": lambda: (Mode.READ, Mode.WRITE),
    "flags joined": lambda: (Right.READ | Right.WRITE, Right.READ),
    "no flag and a flag": lambda: (Right(0), Right.READ),
    "IntFlag joined": lambda: (Bits.ONE | Bits.TWO, Bits.TWO),
    "IntFlag and int": lambda: (Bits.ONE | Bits.TWO, 3),
    "IntFlag unnamed bits": lambda: (Bits(4), Bits(8)),
    # -- objects by their state
    "object attributes": lambda: (Plain(a=1), Plain(a=2)),
    "object attribute names": lambda: (Plain(a=1), Plain(b=1)),
    "object attribute types": lambda: (Plain(a=1), Plain(a=True)),
    "object attribute None and none": lambda: (Plain(a=None), Plain()),
    "object attributes deep": lambda: (Plain(a=[Plain(b={1})]), Plain(a=[Plain(b={2})])),
    "object classes": lambda: (Plain(a=1), Child(a=1)),
    "object and its state": lambda: (Plain(a=1), {"a": 1}),
    "objects with one repr": lambda: ([Plain(a=1)], [Plain(a=2)]),
    "objects that equal everything": lambda: (Equal(1), Equal(2)),
    "slots": lambda: (Slotted(1, 2), Slotted(2, 1)),
    "slots beside a dict": lambda: (Half(1, b=1), Half(2, b=1)),
    "dict beside slots": lambda: (Half(1, b=1), Half(1, b=2)),
    "private slots": lambda: (Hidden(1), Hidden(2)),
    "private slots of a private class": lambda: (_Hidden(1), _Hidden(2)),
    "private slot of the base": lambda: (HiddenTwice(1, 2), HiddenTwice(2, 2)),
    "private slot of the subclass": lambda: (HiddenTwice(1, 2), HiddenTwice(1, 1)),
    "generic objects": lambda: (Box(1), Box(2)),
    "objects rebuilt by a method": lambda: (Made(Maker(1)), Made(Maker(2))),
    "objects rebuilt by a setter of state": lambda: (Set(1), Set(2)),
    "objects rebuilt by a partial": lambda: (Rebuilt(1), Rebuilt(2)),
    "__cache_key__": lambda: (Keyed("a"), Keyed("b")),
    "__cache_key__ and what it answers": lambda: (Keyed("a"), "a"),
    "__cache_key__ of a subclass": lambda: (Keyed("a"), KeyedChild("a")),
    "registered": lambda: (Client("a"), Client("b")),
    "registered and what the encoder answers": lambda: (Client("a"), "a"),
    "registered subclass": lambda: (Client("a"), SpecialClient("a")),
    "dataclass fields": lambda: (Record(1), Record(2)),
    "dataclass default and another": lambda: (Record(1), Record(1, [1])),
    "dataclass classes": lambda: (Record(1), OtherRecord(1)),
    "dataclass and dict": lambda: (Record(1), dataclasses.asdict(Record(1))),
    "dataclass inherited": lambda: (Record(1), SubRecord(1)),
    "dataclass inherited field": lambda: (SubRecord(1, d=1), SubRecord(2, d=1)),
    "dataclass nested": lambda: (Record(1, c=Record(1, [1])), Record(1, c=Record(1, [2]))),
    "dataclass frozen": lambda: (Frozen(1), Frozen(1, 1)),
    "dataclass slots": lambda: (Tight(1), Tight(2)),
    "dataclass slots inherited": lambda: (TighterChild(1, 2), TighterChild(2, 2)),
    "dataclass slots added": lambda: (TighterChild(1, 2), TighterChild(1, 1)),
    "dataclass frozen with slots": lambda: (FrozenTight(1, 2), FrozenTight(2, 1)),
    "dataclass field that does not compare": lambda: (Uncompared(1), Uncompared(2)),
    "dataclass attribute beside the fields": lambda: (_with(Record(1), note=1), _with(Record(1), note=2)),
    "dataclass over a deque": lambda: (_filled(Line, 1), _filled(Line, 2)),
    "attrs fields": lambda: (Defined(1), Defined(2)),
    "attrs field types": lambda: (Defined(1, 1), Defined(1, 1.0)),
    "attrs frozen": lambda: (DefinedFrozen(1), DefinedFrozen(2)),
    "attrs without slots": lambda: (DefinedOpen(1), DefinedOpen(2)),
    "attrs attribute beside the fields": lambda: (_with(DefinedOpen(1), note=1), _with(DefinedOpen(1), note=2)),
    "attrs classes": lambda: (Defined(1), DefinedOpen(1)),
    "attrs inherited": lambda: (Defined(1), DefinedMore(1)),
    "attrs inherited field": lambda: (DefinedMore(1, c=1), DefinedMore(2, c=1)),
    "attrs nested": lambda: (Defined(1, DefinedFrozen(1)), Defined(1, DefinedFrozen(2))),
    "attrs slots of a plain base": lambda: (_with(DefinedOver(1), note=1), _with(DefinedOver(1), note=2)),
    "attrs attribute of a plain subclass": lambda: (_with(DefinedChild(1), x=1), _with(DefinedChild(1), x=2)),
    "pydantic fields": lambda: (Model(a=1), Model(a=2)),
    "pydantic fields set": lambda: (Model(a=1), Model(a=1, b=2)),
    "pydantic classes": lambda: (Model(a=1), OtherModel(a=1)),
    "pydantic and dict": lambda: (Model(a=1), Model(a=1).model_dump()),
    "pydantic nested": lambda: (Nested(inner=Model(a=1)), Nested(inner=Model(a=2))),
    "pydantic nested in a dict": lambda: (
        Nested(inner=Model(a=1), more={"x": Model(a=1)}),
        Nested(inner=Model(a=1), more={"x": Model(a=2)}),
    ),
    "pydantic extra": lambda: (Open(a=1, x=1), Open(a=1, x=2)),
    "pydantic extra names": lambda: (Open(a=1, x=1), Open(a=1, y=1)),
    "pydantic private attributes": lambda: (_with(Private(a=1), _secret=1), _with(Private(a=1), _secret=2)),
    "pydantic root": lambda: (Numbers([1]), Numbers([2])),
    "pydantic generic": lambda: (IntParcel(content=1), AnyParcel(content=1)),
    "pydantic dataclass": lambda: (Checked(1), Checked(2)),
    "pydantic secrets": lambda: (pydantic.SecretStr("a"), pydantic.SecretStr("b")),
    "pydantic.v1 fields": lambda: (OldModel(a=1), OldModel(a=2)),
    "pydantic.v1 fields set": lambda: (OldModel(a=1), OldModel(a=1, b=2)),
    "pydantic.v1 nested": lambda: (OldNested(inner=OldModel(a=1)), OldNested(inner=OldModel(a=2))),
    "pydantic.v1 extra": lambda: (OldOpen(a=1, x=1), OldOpen(a=1, x=2)),
    "pydantic.v1 private attributes": lambda: (_with(OldPrivate(a=1), _secret=1), _with(OldPrivate(a=1), _secret=2)),
    # -- types and functions
    "classes": lambda: (int, bool),
    "class and its name": lambda: (int, "int"),
    "class and instance": lambda: (Plain, Plain()),
    "classes of one name": lambda: (_local_class(1), _local_class(1)),
    "instances of classes of one name": lambda: (_local_class(1)(), _local_class(1)()),
    "generic aliases": lambda: (list[int], list[str]),
    "generic alias and class": lambda: (list[int], list),
    "built-in and typing alias": lambda: (list[int], typing.List[int]),  # noqa: UP006
    "generic alias of the user's classes": lambda: (Box[int], Box[str]),
    "tuples of any and of one": lambda: (tuple[int, ...], tuple[int]),
    "optional": lambda: (typing.Optional[int], typing.Optional[str]),  # noqa: UP045
    "optional and union": lambda: (int | None, int | str),
    "literals": lambda: (typing.Literal[1], typing.Literal[True]),
    "annotated": lambda: (typing.Annotated[int, 1], typing.Annotated[int, 2]),
    "callables": lambda: (Callable[[int], str], Callable[[str], str]),
    "type of a type": lambda: (type[int], int),
    "special forms": lambda: (typing.ClassVar[int], typing.Final[int]),
    "Any and object": lambda: (typing.Any, object),
    "forward references": lambda: (typing.ForwardRef("a"), typing.ForwardRef("b")),
    "modules": lambda: (math, json),
    "module and its name": lambda: (math, "math"),
    "functions": lambda: (json.dumps, json.loads),
    "built-in functions": lambda: (len, max),
    "built-in functions of modules": lambda: (math.sin, math.cos),
    "function and built-in function": lambda: (json.dumps, len),
    "lambdas": lambda: (lambda x: x + 1, lambda x: x + 2),
    "lambda constants of two types": lambda: (lambda x: x + 1, lambda x: x + 1.0),
    "lambda names": lambda: (lambda x: len(x) + 1, lambda x: max(x) + 1),
    "lambda parameters": lambda: (lambda x, y: x, lambda y, x: x),
    "lambda inner code": lambda: (lambda x: [i + 1 for i in x], lambda x: [i + 2 for i in x]),
    "lambda comparison": lambda: (lambda x: x < 1, lambda x: x > 1),
    "closures": lambda: (_scaled(1), _scaled(2)),
    "closures over two types": lambda: (_scaled(1), _scaled(True)),
    "closures over lists": lambda: (_scaled([1]), _scaled([2])),
    "closures over functions": lambda: (_scaled(_scaled(1)), _scaled(_scaled(2))),
    "closures of recursive functions": lambda: (_recursive(1), _recursive(2)),
    "defaults": lambda: (_default(1), _default(2)),
    "keyword defaults": lambda: (_keyword_default(1), _keyword_default(2)),
    "attributes of functions": lambda: (_reading_itself(1), _reading_itself(2)),
    "wrapped functions": lambda: (_wrapped(1), _wrapped(2)),
    "functions with lru_cache": lambda: (_remembered(1), _remembered(2)),
    "cached functions": lambda: (_cached(1), _cached(2)),
    "lru_cache and without": lambda: (_remembered(1), _scaled(1)),
    "partial arguments": lambda: (functools.partial(int, "1"), functools.partial(int, "2")),
    "partial keywords": lambda: (functools.partial(int, base=2), functools.partial(int, base=8)),
    "partial functions": lambda: (functools.partial(int, "1"), functools.partial(float, "1")),
    "partial over closures": lambda: (functools.partial(_scaled(1)), functools.partial(_scaled(2))),
    "bound methods": lambda: (Plain(a=1).method, Plain(a=2).method),
    "bound methods of one object": lambda: (Plain().method, Plain().other),
    "bound and plain method": lambda: (Plain().method, Plain.method),
    "class methods": lambda: (Plain.made, Child.made),
    "bound built-in methods": lambda: ([1].append, [2].append),
    "unbound built-in methods": lambda: (str.upper, str.lower),
    "inherited built-in methods": lambda: (dict.fromkeys, OrderedDict.fromkeys),
    "slot methods": lambda: ((1).__add__, (2).__add__),
    "itemgetters": lambda: (operator.itemgetter(0), operator.itemgetter(1)),
    "itemgetters of one and two": lambda: (operator.itemgetter(0), operator.itemgetter(0, 1)),
    "itemgetter key types": lambda: (operator.itemgetter(1), operator.itemgetter(True)),
    "attrgetters": lambda: (operator.attrgetter("a.b"), operator.attrgetter("a", "b")),
    "methodcallers": lambda: (operator.methodcaller("f", 1), operator.methodcaller("f", 2)),
    "methodcaller keywords": lambda: (operator.methodcaller("f", x=1), operator.methodcaller("f", x=2)),
    "code": lambda: ((lambda x: x + 1).__code__, (lambda x: x + 2).__code__),
    # -- numpy
    "numpy and list": lambda: (np.array([1, 2]), [1, 2]),
    "numpy dtypes": lambda: (np.array([1], "i4"), np.array([1], "i8")),
    "numpy signedness": lambda: (np.array([1], "i4"), np.array([1], "u4")),
    "numpy int and float of one pattern": lambda: (np.zeros(2, "i8"), np.zeros(2, "f8")),
    "numpy shapes": lambda: (np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2)),
    "numpy row and column": lambda: (np.array([[1, 2]]), np.array([[1], [2]])),
    "numpy transposed": lambda: (np.arange(4).reshape(2, 2), np.arange(4).reshape(2, 2).T),
    "numpy reversed": lambda: (np.arange(4), np.arange(4)[::-1]),
    "numpy strided": lambda: (np.arange(8)[::2], np.arange(8)[1::2]),
    "numpy 0-d and 1-d": lambda: (np.array(1), np.array([1])),
    "numpy 0-d and scalar": lambda: (np.array(1), np.int64(1)),
    "numpy empty shapes": lambda: (np.zeros((0, 3)), np.zeros((3, 0))),
    "numpy empty dtypes": lambda: (np.zeros(0, "i4"), np.zeros(0, "f4")),
    "numpy zeros": lambda: (np.array([0.0]), np.array([-0.0])),
    "numpy NaN and number": lambda: (np.array([np.nan]), np.array([0.0])),
    "numpy bool and int8": lambda: (np.array([True]), np.array([1], "i1")),
    "numpy scalars": lambda: (np.int64(1), np.int64(2)),
    "numpy scalar types": lambda: (np.int32(1), np.int64(1)),
    "numpy scalar subclass attributes": lambda: (_with(Measure(1), unit="m"), _with(Measure(1), unit="s")),
    "numpy scalar subclass attributes with an underscore": lambda: (_with(Measure(1), _name="m"), _with(Measure(1), _name="s")),
    "numpy complex": lambda: (np.array([1 + 2j]), np.array([2 + 1j])),
    "numpy byte order": lambda: (np.array([1], "<i4"), np.array([1], ">i4")),
    "numpy byte order of one pattern": lambda: (np.array([1], "<i4"), np.array([1 << 24], ">i4")),
    "numpy object content": lambda: (_objects([1], 2), _objects([1], 3)),
    "numpy object types": lambda: (_objects(1), _objects(True)),
    "numpy object and plain": lambda: (_objects(1), np.array([1])),
    "numpy object attributes": lambda: (_objects(Plain(a=1)), _objects(Plain(a=2))),
    "numpy struct content": lambda: (_padded(0), _changed(_padded(0), 1, (2, 5))),
    "numpy struct names": lambda: (np.zeros(1, [("a", "i4")]), np.zeros(1, [("b", "i4")])),
    "numpy struct field dtypes": lambda: (np.zeros(1, [("a", "i4")]), np.zeros(1, [("a", "f4")])),
    "numpy struct titles": lambda: (np.zeros(1, [(("t", "a"), "i4")]), np.zeros(1, [(("u", "a"), "i4")])),
    "numpy struct of objects": lambda: (np.array([([1],)], [("a", "O")]), np.array([([2],)], [("a", "O")])),
    "numpy struct subarrays": lambda: (np.zeros(1, [("a", "i4", (4,))]), np.zeros(1, [("a", "i4", (2, 2))])),
    "numpy struct scalars": lambda: (np.zeros(1, "i4,i4")[0], np.ones(1, "i4,i4")[0]),
    "numpy record array": lambda: (np.zeros(1, "i4,i4"), np.rec.array(np.zeros(1, "i4,i4"))),
    "numpy datetime units": lambda: (np.array([1], "M8[s]"), np.array([1], "M8[ms]")),
    "numpy datetime multiples": lambda: (np.array([1], "M8[2s]"), np.array([1], "M8[s]")),
    "numpy datetime and timedelta": lambda: (np.array([1], "M8[s]"), np.array([1], "m8[s]")),
    "numpy datetime scalars": lambda: (np.datetime64(1, "s"), np.datetime64(1, "ms")),
    "numpy timedelta scalars": lambda: (np.timedelta64(1, "s"), np.timedelta64(1, "ms")),
    "numpy NaT units": lambda: (np.datetime64("NaT", "s"), np.datetime64("NaT", "ms")),
    "numpy str": lambda: (np.array(["ab", "c"]), np.array(["a", "bc"])),
    "numpy str widths": lambda: (np.array(["a"], "U1"), np.array(["a"], "U2")),
    "numpy str and bytes": lambda: (np.array(["a"]), np.array([b"a"])),
    "numpy void": lambda: (np.array(b"ab", "V2"), np.array(b"ac", "V2")),
    "numpy StringDType": lambda: (np.array(["a" * 40], STRINGS()), np.array(["a" * 39 + "b"], STRINGS())),
    "numpy StringDType and str": lambda: (np.array(["a"], STRINGS()), np.array(["a"])),
    "numpy StringDType na": lambda: (np.array(["a"], STRINGS()), np.array(["a"], STRINGS(na_object=None))),
    "numpy masks": lambda: (_masked(), np.ma.array([1, 2, 3], mask=[False, False, True])),
    "numpy masked and not": lambda: (np.ma.array([1, 2]), np.array([1, 2])),
    "numpy masked content": lambda: (_masked(), np.ma.array([0, 2, 3], mask=[False, True, False])),
    "numpy fill values": lambda: (_masked(), _with(_masked(), fill_value=7)),
    "numpy hard masks": lambda: (_masked(), _masked(hard=True)),
    "numpy masked constant": lambda: (np.ma.masked, np.ma.array(0.0, mask=True)),
    "numpy subclass": lambda: (np.zeros(2), np.zeros(2).view(Matrix)),
    "numpy subclass attributes": lambda: (_with(np.zeros(2).view(Matrix), a=1), _with(np.zeros(2).view(Matrix), a=2)),
    "numpy large": lambda: (np.zeros(LARGE), _changed(np.zeros(LARGE), LARGE // 2, 1)),
    "numpy large bytes": lambda: (np.zeros(LARGE, "u1"), _changed(np.zeros(LARGE, "u1"), LARGE // 2, 1)),
    "numpy large shapes": lambda: (np.zeros((100, 50)), np.zeros((50, 100))),
    "numpy large not contiguous": lambda: (np.zeros((LARGE, 2))[:, 0], _changed(np.zeros((LARGE, 2)), LARGE // 2, 1)[:, 0]),
    "numpy large dtypes": lambda: (np.zeros(LARGE, "i8"), np.zeros(LARGE, "f8")),
    "numpy large objects": lambda: (_objects(*range(2_000)), _changed(_objects(*range(2_000)), 1_000, -1)),
    "numpy large strings": lambda: (np.array(["a"] * LARGE), _changed(np.array(["a"] * LARGE), LARGE // 2, "b")),
    "numpy dtype objects": lambda: (np.dtype("i4"), np.dtype("i8")),
    "numpy dtype alignment": lambda: (np.dtype("i1,i4"), np.dtype("i1,i4", align=True)),
    "numpy ufuncs": lambda: (np.add, np.multiply),
    "numpy ufunc methods": lambda: (np.add.reduce, np.multiply.reduce),
    "numpy generators": lambda: (np.random.default_rng(1), np.random.default_rng(2)),
    "numpy polynomials": lambda: (np.polynomial.Polynomial([1, 2]), np.polynomial.Polynomial([1, 3])),
    # -- pandas
    "pandas content": lambda: (_frame(), _changed(_frame(), "a", [1, 3])),
    "pandas column names": lambda: (_frame(), _frame().rename(columns={"a": "c"})),
    "pandas column name types": lambda: (pd.DataFrame({1: [1]}), pd.DataFrame({"1": [1]})),
    "pandas column order": lambda: (_frame(), _frame()[["b", "a"]]),
    "pandas columns of one name": lambda: (
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame([[1, 3]], columns=["a", "a"]),
    ),
    "pandas columns' name": lambda: (_frame(), _frame().rename_axis(columns="n")),
    "pandas row order": lambda: (_frame(), _frame().iloc[::-1]),
    "pandas int32 and int64": lambda: (pd.Series([1], dtype="int32"), pd.Series([1], dtype="int64")),
    "pandas int64 and Int64": lambda: (pd.Series([1], dtype="int64"), pd.Series([1], dtype="Int64")),
    "pandas int and float": lambda: (pd.Series([1]), pd.Series([1.0])),
    "pandas bool and boolean": lambda: (pd.Series([True]), pd.Series([True], dtype="boolean")),
    "pandas str and object": lambda: (pd.Series(["a"], dtype="str"), pd.Series(["a"], dtype=object)),
    "pandas str and string": lambda: (pd.Series(["a"], dtype="str"), pd.Series(["a"], dtype="string")),
    "pandas missing and empty str": lambda: (pd.Series(["a", None]), pd.Series(["a", ""])),
    "pandas nullable": lambda: (pd.array([1, None], dtype="Int64"), pd.array([1, 0], dtype="Int64")),
    "pandas nullable beyond floats": lambda: (
        pd.Series([2**62, None], dtype="Int64"),
        pd.Series([2**62 + 1, None], dtype="Int64"),
    ),
    "pandas NaN and None": lambda: (pd.Series([np.nan], dtype=object), pd.Series([None], dtype=object)),
    "pandas NA and NaN": lambda: (pd.Series([pd.NA], dtype=object), pd.Series([np.nan], dtype=object)),
    "pandas NA and NaT": lambda: (pd.NA, pd.NaT),
    "pandas NA and None": lambda: (pd.NA, None),
    "pandas NaT and None": lambda: (pd.NaT, None),
    "pandas index": lambda: (_frame(), _frame().set_index(pd.Index([1, 2]))),
    "pandas range and index": lambda: (_frame(), _frame().set_axis([0, 1])),
    "pandas index name": lambda: (_frame(), _frame().rename_axis("i")),
    "pandas index dtypes": lambda: (pd.Index([1], dtype="int32"), pd.Index([1], dtype="int64")),
    "pandas ranges": lambda: (pd.RangeIndex(3), pd.RangeIndex(4)),
    "pandas index and series": lambda: (pd.Index([1]), pd.Series([1])),
    "pandas index frequency": lambda: (
        pd.date_range("2026", periods=2),
        pd.DatetimeIndex(list(pd.date_range("2026", periods=2))),
    ),
    "pandas index frequency's holidays": lambda: (_holiday_index("2026-01-01"), _holiday_index("2026-12-25")),
    "pandas MultiIndex": lambda: (pd.MultiIndex.from_product([[1], [2]]), pd.MultiIndex.from_product([[2], [1]])),
    "pandas MultiIndex names": lambda: (
        pd.MultiIndex.from_product([[1], [2]], names=["a", "b"]),
        pd.MultiIndex.from_product([[1], [2]], names=["b", "a"]),
    ),
    "pandas MultiIndex of a frame": lambda: (
        _frame().set_axis(pd.MultiIndex.from_product([[1], [2, 3]])),
        _frame().set_axis(pd.MultiIndex.from_product([[1], [3, 2]])),
    ),
    "pandas categories": lambda: (pd.Categorical(["a"], ["a", "b"]), pd.Categorical(["a"], ["a"])),
    "pandas category order": lambda: (pd.Categorical(["a"], ["a", "b"]), pd.Categorical(["a"], ["b", "a"])),
    "pandas ordered categories": lambda: (
        pd.Series(pd.Categorical(["a"], ["a"])),
        pd.Series(pd.Categorical(["a"], ["a"], ordered=True)),
    ),
    "pandas category and str": lambda: (pd.Series(["a"], dtype="category"), pd.Series(["a"])),
    "pandas category values": lambda: (pd.Categorical(["a"], ["a", "b"]), pd.Categorical(["b"], ["a", "b"])),
    "pandas zones": lambda: (
        pd.Series(pd.to_datetime(["2026-01-01"]).tz_localize("UTC")),
        pd.Series(pd.to_datetime(["2026-01-01"]).tz_localize(LONDON)),
    ),
    "pandas naive and aware": lambda: (
        pd.Series(pd.to_datetime(["2026-01-01"])),
        pd.Series(pd.to_datetime(["2026-01-01"]).tz_localize("UTC")),
    ),
    "pandas nanoseconds": lambda: (pd.Series(pd.to_datetime([1])), pd.Series(pd.to_datetime([2]))),
    "pandas datetime units": lambda: (pd.Series(pd.to_datetime([0])), pd.Series(pd.to_datetime([0])).dt.as_unit("s")),
    "pandas nanoseconds with a zone": lambda: (
        pd.Series(pd.to_datetime([1]).tz_localize(BERLIN)),
        pd.Series(pd.to_datetime([2]).tz_localize(BERLIN)),
    ),
    "pandas Timestamps": lambda: (pd.Timestamp(1), pd.Timestamp(2)),
    "pandas Timestamp and datetime": lambda: (pd.Timestamp(2026, 1, 1), dt.datetime(2026, 1, 1)),
    "pandas Timedeltas": lambda: (pd.Timedelta(1), pd.Timedelta(2)),
    "pandas periods": lambda: (pd.Period("2026-01", "M"), pd.Period("2026-01", "D")),
    "pandas intervals": lambda: (pd.Interval(0, 1), pd.Interval(0, 1, closed="left")),
    "pandas interval index": lambda: (pd.interval_range(0, 2), pd.interval_range(0, 2, closed="left")),
    "pandas sparse": lambda: (pd.arrays.SparseArray([0, 1]), pd.arrays.SparseArray([0, 1], fill_value=1)),
    "pandas offsets": lambda: (pd.offsets.Day(1), pd.offsets.Day(2)),
    "pandas attrs": lambda: (_with_attrs(_frame(), a=1), _with_attrs(_frame(), a=2)),
    "pandas series attrs": lambda: (_with_attrs(pd.Series([1]), a=1), pd.Series([1])),
    "pandas flags": lambda: (_frame(), _frame().set_flags(allows_duplicate_labels=False)),
    "pandas attributes": lambda: (_with(_frame(), note=1), _with(_frame(), note=2)),
    "pandas attributes with an underscore": lambda: (_with(_frame(), _cache=1), _with(_frame(), _cache=2)),
    "pandas index attributes": lambda: (_with(pd.Index([1]), note=1), _with(pd.Index([1]), note=2)),
    "pandas series name": lambda: (pd.Series([1], name="a"), pd.Series([1], name="b")),
    "pandas series unnamed": lambda: (pd.Series([1], name="None"), pd.Series([1])),
    "pandas series and frame": lambda: (pd.Series([1], name="a"), pd.DataFrame({"a": [1]})),
    "pandas empty": lambda: (pd.DataFrame({"a": []}), pd.DataFrame({"b": []})),
    "pandas empty rows": lambda: (pd.DataFrame(index=[1, 2]), pd.DataFrame(index=[1, 3])),
    "pandas subclass": lambda: (_frame(), Frame(_frame())),
    "pandas large": lambda: (
        pd.DataFrame({"a": np.zeros(LARGE)}),
        pd.DataFrame({"a": _changed(np.zeros(LARGE), LARGE // 2, 1)}),
    ),
    "pandas objects": lambda: (pd.Series([[1]]), pd.Series([(1,)])),
    "pandas and polars": lambda: (pd.Series([1], name="a"), pl.Series("a", [1])),
    # -- polars
    "polars content": lambda: (pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2]})),
    "polars column names": lambda: (pl.DataFrame({"a": [1]}), pl.DataFrame({"b": [1]})),
    "polars column order": lambda: (pl.DataFrame({"a": [1], "b": [1]}), pl.DataFrame({"b": [1], "a": [1]})),
    "polars heights without columns": lambda: (pl.DataFrame(height=2), pl.DataFrame(height=3)),
    "polars dtypes": lambda: (pl.Series([1], dtype=pl.Int32), pl.Series([1], dtype=pl.Int64)),
    "polars dtypes with nulls": lambda: (pl.Series([1, None], dtype=pl.Int32), pl.Series([1, None], dtype=pl.Int64)),
    "polars float widths": lambda: (pl.Series([1], dtype=pl.Float32), pl.Series([1], dtype=pl.Float64)),
    "polars bool and int": lambda: (pl.Series([True]), pl.Series([1])),
    "polars 128 bits": lambda: (pl.Series([2**100], dtype=pl.Int128), pl.Series([2**100 + 1], dtype=pl.Int128)),
    "polars beyond floats": lambda: (pl.Series([2**53, None]), pl.Series([2**53 + 1, None])),
    "polars null and NaN": lambda: (pl.Series([None], dtype=pl.Float64), pl.Series([math.nan])),
    "polars null and zero": lambda: (pl.Series([None, 1]), pl.Series([0, 1])),
    "polars place of a null": lambda: (pl.Series([1, None]), pl.Series([None, 1])),
    "polars null columns": lambda: (pl.Series([None]), pl.Series([None], dtype=pl.Int8)),
    "polars empty": lambda: (pl.Series([], dtype=pl.Int8), pl.Series([], dtype=pl.Int16)),
    "polars zeros": lambda: (pl.Series([0.0]), pl.Series([-0.0])),
    "polars nanoseconds": lambda: (_ticks(1), _ticks(2)),
    "polars datetime units": lambda: (_ticks(0), _ticks(0, dtype=pl.Datetime("us"))),
    "polars zones": lambda: (_ticks(0, dtype=pl.Datetime("ns", "UTC")), _ticks(0, dtype=pl.Datetime("ns", BERLIN))),
    "polars durations": lambda: (_ticks(1, dtype=pl.Duration("ns")), _ticks(2, dtype=pl.Duration("ns"))),
    "polars times": lambda: (_ticks(1, dtype=pl.Time), _ticks(2, dtype=pl.Time)),
    "polars date and datetime": lambda: (pl.Series([dt.date(2026, 1, 1)]), pl.Series([dt.datetime(2026, 1, 1)])),
    "polars decimals": lambda: (pl.Series([Decimal("1.0")]), pl.Series([Decimal("1.00")])),
    "polars bytes and str": lambda: (pl.Series([b"a"]), pl.Series(["a"])),
    "polars categories": lambda: (pl.Series(["a1", "a2"], dtype=pl.Categorical), pl.Series(["a2", "a1"], dtype=pl.Categorical)),
    "polars categorical and str": lambda: (pl.Series(["a3"], dtype=pl.Categorical), pl.Series(["a3"])),
    "polars category sets": lambda: (
        pl.Series(["a4"], dtype=pl.Categorical(pl.Categories("one"))),
        pl.Series(["a4"], dtype=pl.Categorical(pl.Categories("two"))),
    ),
    "polars enums": lambda: (pl.Series(["a"], dtype=pl.Enum(["a", "b"])), pl.Series(["a"], dtype=pl.Enum(["a"]))),
    "polars enum order": lambda: (pl.Series(["a"], dtype=pl.Enum(["a", "b"])), pl.Series(["a"], dtype=pl.Enum(["b", "a"]))),
    "polars enum and categorical": lambda: (pl.Series(["a5"], dtype=pl.Enum(["a5"])), pl.Series(["a5"], dtype=pl.Categorical)),
    "polars lists": lambda: (pl.Series([[1, 2], [3]]), pl.Series([[1], [2, 3]])),
    "polars null and empty list": lambda: (pl.Series([[1], None]), pl.Series([[1], []])),
    "polars null in a list and for it": lambda: (
        pl.Series([[None]], dtype=pl.List(pl.Int64)),
        pl.Series([None], dtype=pl.List(pl.Int64)),
    ),
    "polars list dtypes": lambda: (
        pl.Series([[1]], dtype=pl.List(pl.Int32)),
        pl.Series([[1]], dtype=pl.List(pl.Int64)),
    ),
    "polars list and array": lambda: (
        pl.Series([[1]], dtype=pl.List(pl.Int64)),
        pl.Series([[1]], dtype=pl.Array(pl.Int64, 1)),
    ),
    "polars nanoseconds in lists": lambda: (_ticks(1).implode(), _ticks(2).implode()),
    "polars nanoseconds in arrays": lambda: (_ticks(1).reshape((1, 1)), _ticks(2).reshape((1, 1))),
    "polars structs": lambda: (pl.Series([{"a": 1}]), pl.Series([{"a": 2}])),
    "polars struct fields": lambda: (pl.Series([{"a": 1}]), pl.Series([{"b": 1}])),
    "polars struct field order": lambda: (pl.Series([{"a": 1, "b": 1}]), pl.Series([{"b": 1, "a": 1}])),
    "polars null struct and struct of null": lambda: (
        pl.Series([None], dtype=pl.Struct({"a": pl.Int64})),
        pl.Series([{"a": None}], dtype=pl.Struct({"a": pl.Int64})),
    ),
    "polars nanoseconds in structs": lambda: (_ticks(1).to_frame().to_struct(), _ticks(2).to_frame().to_struct()),
    "polars lists of structs": lambda: (pl.Series([[{"a": 1}]]), pl.Series([[{"a": 2}]])),
    "polars categories in structs": lambda: (
        pl.DataFrame({"a": ["b1"], "t": _ticks(1)}, schema_overrides={"a": pl.Categorical}).to_struct(),
        pl.DataFrame({"a": ["b1"], "t": _ticks(2)}, schema_overrides={"a": pl.Categorical}).to_struct(),
    ),
    "polars categories and times in lists of structs": lambda: (
        pl.DataFrame({"a": ["b2"], "t": _ticks(1, dtype=pl.Time)}, schema_overrides={"a": pl.Categorical})
        .to_struct()
        .implode(),
        pl.DataFrame({"a": ["b2"], "t": _ticks(2, dtype=pl.Time)}, schema_overrides={"a": pl.Categorical})
        .to_struct()
        .implode(),
    ),
    "polars objects": lambda: (pl.Series([Plain(a=1)], dtype=pl.Object), pl.Series([Plain(a=2)], dtype=pl.Object)),
    "polars series and frame": lambda: (pl.Series("a", [1]), pl.DataFrame({"a": [1]})),
    "polars series name": lambda: (pl.Series("a", [1]), pl.Series("b", [1])),
    "polars attributes": lambda: (_with(pl.DataFrame({"a": [1]}), note=1), _with(pl.DataFrame({"a": [1]}), note=2)),
    "polars series attributes": lambda: (_with(pl.Series([1]), note=1), _with(pl.Series([1]), note=2)),
    "polars subclass attributes": lambda: (_with(Polar({"a": [1]}), note=1), _with(Polar({"a": [1]}), note=2)),
    "polars large": lambda: (pl.Series(np.zeros(LARGE)), pl.Series(_changed(np.zeros(LARGE), LARGE // 2, 1))),
    "polars large with nulls": lambda: (pl.Series([None, *range(LARGE)]), pl.Series([None, *range(LARGE - 1), -1])),
    "polars expressions": lambda: (pl.col("a") + 1, pl.col("a") + 2),
    "polars dtype objects": lambda: (pl.Datetime("ns"), pl.Datetime("us")),
    "polars schemas": lambda: (pl.Schema({"a": pl.Int64}), pl.Schema({"a": pl.Int32})),
}

MUST_AGREE: dict[str, Pair] = {
    # -- plain values
    "None": lambda: (None, None),
    "NaN made twice": lambda: (math.nan, math.inf - math.inf),
    "NaN of both signs": lambda: (math.nan, -math.nan),
    "NaN in a list": lambda: ([math.nan], [float("nan")]),
    "NaN as a dict key": lambda: ({math.nan: 1}, {float("nan"): 1}),
    "NaN in a set": lambda: ({math.nan}, {float("nan")}),
    "NaN in complex": lambda: (complex(math.nan, 1), complex(-math.nan, 1)),
    "NaN of a float subclass": lambda: (Real(math.nan), Real(-math.nan)),
    "NaN of Decimal": lambda: (Decimal("NaN"), Decimal("nan")),
    "NaN in an object": lambda: (Plain(a=math.nan), Plain(a=-math.nan)),
    "int computed": lambda: (2**100, int("1" + "0" * 100, 2)),
    "float computed": lambda: (0.5, 1 / 2),
    "str joined": lambda: ("ab", "".join(["a", "b"])),
    "str beyond the memo's limit joined": lambda: ("x" * 5_000, "".join(["x"] * 5_000)),
    "str decoded": lambda: ("\u00e9", b"\xc3\xa9".decode()),
    "surrogate escaped": lambda: ("\udc80", b"\x80".decode("utf-8", "surrogateescape")),
    "bytes joined": lambda: (b"ab", b"".join([b"a", b"b"])),
    "bytearray": lambda: (bytearray(b"a"), bytearray([97])),
    "memoryview of bytes and of bytearray": lambda: (memoryview(b"ab"), memoryview(bytearray(b"ab"))),
    "memoryview with steps": lambda: (memoryview(b"abcd")[::2], memoryview(b"ac")),
    "memoryview of a part": lambda: (memoryview(b"xab")[1:], memoryview(b"ab")),
    "array extended": lambda: (array.array("i", [1, 2]), _filled(lambda: array.array("i"), 1, 2)),
    # -- containers
    "list extended": lambda: ([1, 2], _filled(list, 1, 2)),
    "list aliased": lambda: ([[1]] * 2, [[1], [1]]),
    "list of an aliased object": lambda: ([Plain(a=1)] * 2, [Plain(a=1), Plain(a=1)]),
    "str aliased": lambda: (["ab"] * 2, ["ab", "".join(["a", "b"])]),
    "tuple aliased": lambda: (((1, 2),) * 2, ((1, 2), tuple([1, 2]))),  # noqa: C409
    "dict aliased": lambda: (dict(zip("ab", [[1]] * 2, strict=True)), {"a": [1], "b": [1]}),
    "dict order": lambda: ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "dict order deep": lambda: ([{"a": {"x": 1, "y": 2}, "b": 3}], [{"b": 3, "a": {"y": 2, "x": 1}}]),
    "dict order with keys of many types": lambda: ({1: 1, "1": 2, b"1": 3, (1,): 4}, {(1,): 4, b"1": 3, "1": 2, 1: 1}),
    "dict with a hole": lambda: ({"a": 1}, _looked_at({"b": 2, "a": 1}, lambda mapping: mapping.pop("b"))),
    "set order": lambda: ({0, 8, 16}, {16, 8, 0}),
    "set order of str": lambda: (set("abcdefgh"), set("hgfedcba")),
    "set of tuples": lambda: ({(1, "a"), (2, "b")}, {(2, "b"), (1, "a")}),
    "frozenset order": lambda: (frozenset([0, 8]), frozenset([8, 0])),
    "nested frozensets": lambda: ({frozenset([0, 8])}, {frozenset([8, 0])}),
    "range": lambda: (range(3), range(0, 3, 1)),
    "OrderedDict moved": lambda: (
        OrderedDict(a=1, b=2),
        _looked_at(OrderedDict(b=2, a=1), lambda mapping: mapping.move_to_end("b")),
    ),
    "defaultdict order": lambda: (defaultdict(list, a=1, b=2), defaultdict(list, b=2, a=1)),
    "Counter order": lambda: (Counter("aab"), Counter("baa")),
    "ChainMap": lambda: (ChainMap({"a": 1}, {"b": 2}), ChainMap({"b": 2}).new_child({"a": 1})),
    "deque from the left": lambda: (deque([1, 2]), _looked_at(deque([2]), lambda queue: queue.appendleft(1))),
    "deque bounded": lambda: (deque([2, 3], 2), deque([1, 2, 3], 2)),
    "namedtuple by keyword": lambda: (Point(1, 2), Point(y=2, x=1)),
    "namedtuple replaced": lambda: (Point(1, 2), Point(1, 1)._replace(y=2)),
    "SimpleNamespace order": lambda: (types.SimpleNamespace(a=1, b=2), types.SimpleNamespace(b=2, a=1)),
    "exceptions looked at": lambda: (ValueError("a"), _looked_at(ValueError("a"), vars)),
    # -- the standard library
    "datetime parsed": lambda: (dt.datetime(2026, 1, 2), dt.datetime.fromisoformat("2026-01-02")),
    "datetime aware": lambda: (
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(0))),
    ),
    "datetime in a zone": lambda: (
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo(BERLIN)),
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo.no_cache(BERLIN)),
    ),
    "timedelta": lambda: (dt.timedelta(hours=24), dt.timedelta(1)),
    "Decimal parsed": lambda: (Decimal("1.50"), Decimal((0, (1, 5, 0), -2))),
    "Fraction reduced": lambda: (Fraction(2, 4), Fraction(1, 2)),
    "UUID parsed": lambda: (uuid.UUID(int=1), uuid.UUID("00000000-0000-0000-0000-000000000001")),
    "random generators": lambda: (random.Random(1), random.Random(1)),
    "path with dots": lambda: (PurePosixPath("a/b"), PurePosixPath("a/./b/")),
    "path joined": lambda: (Path("a/b"), Path("a") / "b"),
    "path looked at": lambda: (Path("a/b"), _looked_at(Path("a/b"), str, hash, lambda path: path.parts)),
    "pattern": lambda: (re.compile("a", re.I), re.compile("a", re.IGNORECASE)),
    "address": lambda: (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address(0x0A000001)),
    "network looked at": lambda: (
        ipaddress.ip_network("10.0.0.0/8"),
        _looked_at(ipaddress.ip_network("10.0.0.0/8"), hash, lambda network: network.broadcast_address),
    ),
    "interface": lambda: (ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("10.0.0.1/255.0.0.0")),
    # -- enums, subclasses and objects
    "enum by value": lambda: (Color.RED, Color(1)),
    "enum alias": lambda: (Color.RED, Color.CRIMSON),
    "StrEnum by value": lambda: (Mode.READ, Mode("r")),
    "flag order": lambda: (Right.READ | Right.WRITE, Right.WRITE | Right.READ),
    "str subclass": lambda: (Text("ab"), Text("".join(["a", "b"]))),
    "int subclass": lambda: (Number(1), Number("1")),
    "list subclass": lambda: (Items([1]), _filled(Items, 1)),
    "dict subclass order": lambda: (Table(a=1, b=2), Table(b=2, a=1)),
    "set subclass order": lambda: (Bag([0, 8]), Bag([8, 0])),
    "object attribute order": lambda: (Plain(a=1, b=2), Plain(b=2, a=1)),
    "object copied": lambda: (Plain(a=[1]), copy.deepcopy(Plain(a=[1]))),
    "slots": lambda: (Slotted(1, 2), copy.copy(Slotted(1, 2))),
    "slots and dict": lambda: (Half(1, b=1, c=2), Half(1, c=2, b=1)),
    "private slots": lambda: (HiddenTwice(1, 2), HiddenTwice(1, 2)),
    "__cache_key__": lambda: (Keyed("a"), Keyed("a")),
    "registered": lambda: (Client("a"), Client("a")),
    "rebuilt by a method": lambda: (Made(Maker(1)), Made(Maker(1))),
    "dataclass by keyword": lambda: (Record(1, [2]), Record(b=[2], a=1)),
    "dataclass default": lambda: (Record(1), Record(1, [], None)),
    "dataclass replaced": lambda: (Record(2), dataclasses.replace(Record(1), a=2)),
    "dataclass with slots": lambda: (TighterChild(1, 2), copy.copy(TighterChild(1, 2))),
    "dataclass frozen": lambda: (FrozenTight(1), _looked_at(FrozenTight(1, 0), hash)),
    "attrs evolved": lambda: (Defined(1, 2), attrs.evolve(Defined(1), b=2)),
    "attrs default": lambda: (DefinedFrozen(1), DefinedFrozen(1, None)),
    "attrs without slots": lambda: (DefinedOpen(1), DefinedOpen(b=None, a=1)),
    "attrs with a kept hash": lambda: (DefinedHashed(1), _looked_at(DefinedHashed(1), hash)),
    "pydantic validated": lambda: (Model(a=1), Model.model_validate({"a": "1"})),
    "pydantic constructed": lambda: (Model(a=1), Model.model_construct({"a"}, a=1)),
    "pydantic copied": lambda: (Nested(inner=Model(a=1)), Nested(inner=Model(a=1)).model_copy(deep=True)),
    "pydantic dumped": lambda: (Model(a=1), _looked_at(Model(a=1), lambda model: model.model_dump_json())),
    "pydantic extra order": lambda: (Open(a=1, x=1, y=2), Open(y=2, x=1, a=1)),
    "pydantic private attributes": lambda: (Private(a=1), _with(Private(a=1), _secret=0)),
    "pydantic.v1 parsed": lambda: (OldModel(a=1), OldModel.parse_raw('{"a": 1}')),
    "pydantic.v1 copied": lambda: (OldNested(inner=OldModel(a=1)), OldNested(inner=OldModel(a=1)).copy(deep=True)),
    # -- types and functions
    "generic alias": lambda: (dict[str, list[int]], dict[str, list[int]]),
    "typing aliases": lambda: (typing.Optional[int], typing.Union[int, None]),  # noqa: UP007, UP045
    "literal": lambda: (typing.Literal["a", 1], typing.Literal["a", 1]),
    "union": lambda: (int | str, int | str),
    "type variable": lambda: (T, Sequence[T].__args__[0]),
    "module imported": lambda: (math, __import__("math")),
    "lambdas in two places": lambda: (
        lambda x: x + 1,
        # a comment and another line
        lambda x: x + 1,
    ),
    "closures made twice": lambda: (_scaled([1]), _scaled([1])),
    "closures of recursive functions": lambda: (_recursive(1), _recursive(1)),
    "defaults made twice": lambda: (_default(1), _default(1)),
    "wrapped functions": lambda: (_wrapped(1), _wrapped(1)),
    "cached functions": lambda: (_cached(1), _looked_at(_cached(1), lambda function: function(1))),
    "functions with lru_cache": lambda: (_remembered(1), _looked_at(_remembered(1), lambda function: function(1))),
    "partial keyword order": lambda: (functools.partial(dict, a=1, b=2), functools.partial(dict, b=2, a=1)),
    "partial of a partial": lambda: (
        functools.partial(int, "1", base=8),
        functools.partial(functools.partial(int, "1"), base=8),
    ),
    "bound methods": lambda: (Plain(a=1).method, Plain(a=1).method),
    "class methods": lambda: (Child.made, Child().made),
    "itemgetter": lambda: (operator.itemgetter(1, 2), operator.itemgetter(1, 2)),
    "methodcaller keyword order": lambda: (operator.methodcaller("f", x=1, y=2), operator.methodcaller("f", y=2, x=1)),
    # -- numpy
    "numpy memory order": lambda: (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
    "numpy strides": lambda: (np.arange(0, 8, 2), np.arange(8)[::2]),
    "numpy negative strides": lambda: (np.array([2, 1, 0]), np.arange(3)[::-1]),
    "numpy view": lambda: (np.array([1, 2]), np.array([0, 1, 2])[1:]),
    "numpy transposed twice": lambda: (np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3).T.copy().T),
    "numpy broadcast": lambda: (np.ones((2, 2)), np.broadcast_to(np.float64(1), (2, 2))),
    "numpy read-only": lambda: (np.arange(3), _looked_at(np.arange(3), lambda values: values.setflags(write=False))),
    "numpy 0-d": lambda: (np.array(1), np.arange(3)[1:2].reshape(())),
    "numpy empty": lambda: (np.zeros((0, 3)), np.ones((5, 3))[5:]),
    "numpy scalar": lambda: (np.float64(1), np.ones(1)[0]),
    "numpy objects": lambda: (_objects([1], "a"), _objects([1], "".join("a"))),
    "numpy objects not contiguous": lambda: (_objects(1, 3), _objects(1, 2, 3)[::2]),
    "numpy padding": lambda: (_padded(0), _padded(255)),
    "numpy field of a struct": lambda: (np.array([3, 4], "i4"), _padded(0)["large"]),
    "numpy datetime": lambda: (np.array(["2026-01-01"], "M8[s]"), np.array([1_767_225_600], "M8[s]")),
    "numpy NaT": lambda: (np.datetime64("NaT", "s"), np.array(["NaT"], "M8[s]")[0]),
    "numpy str": lambda: (np.array(["ab", "c"]), np.array(["ab", "c", "d"])[:2]),
    "numpy StringDType": lambda: (np.array(["a" * 40], STRINGS()), np.array(["a" * 40, "b" * 40], STRINGS())[:1]),
    "numpy masked": lambda: (_masked(), _masked().copy()),
    "numpy large": lambda: (np.zeros(LARGE), np.zeros((LARGE, 2))[:, 1]),
    "numpy large memory order": lambda: (np.ones((100, 100)), np.ones((100, 100), order="F")),
    "numpy dtype objects": lambda: (np.dtype("float64"), np.dtype(float)),
    # -- pandas
    "pandas built in two ways": lambda: (_frame(), pd.DataFrame([[1, "x"], [2, "y"]], columns=["a", "b"])),
    "pandas copied": lambda: (_with_attrs(_frame(), a=1), _with_attrs(_frame(), a=1).copy()),
    "pandas column added": lambda: (_frame(), _frame()[["a"]].assign(b=["x", "y"])),
    "pandas slice": lambda: (pd.Series([1, 2]), pd.Series([1, 2, 3]).iloc[:2]),
    "pandas blocks": lambda: (
        pd.DataFrame({"a": [1], "b": [2]}),
        pd.concat([pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [2]})], axis="columns"),
    ),
    "pandas memory order": lambda: (pd.DataFrame(np.zeros((3, 2))), pd.DataFrame(np.zeros((3, 2), order="F"))),
    "pandas looked at": lambda: (_frame(), _looked_at(_frame(), repr, lambda frame: frame.loc[0], lambda frame: frame.a)),
    "pandas accessor used": lambda: (pd.Series(["a"]), _looked_at(pd.Series(["a"]), lambda series: series.str.upper())),
    "pandas index looked at": lambda: (
        pd.Index([1, 2]),
        _looked_at(pd.Index([1, 2]), lambda index: index.get_loc(1), lambda index: index.is_unique),
    ),
    "pandas MultiIndex": lambda: (
        pd.MultiIndex.from_product([[1], [2, 3]]),
        pd.MultiIndex.from_tuples([(1, 2), (1, 3)]),
    ),
    "pandas categorical": lambda: (
        pd.Categorical(["a", "b"]),
        pd.Categorical.from_codes([0, 1], categories=pd.Index(["a", "b"])),
    ),
    "pandas nullable": lambda: (pd.array([1, None], dtype="Int64"), pd.array([1, pd.NA], dtype="Int64")),
    "pandas aware": lambda: (
        pd.Series(pd.to_datetime(["2026-01-01"]).tz_localize(BERLIN)),
        pd.Series([pd.Timestamp("2026-01-01", tz=BERLIN)]).astype(
            f"datetime64[{pd.to_datetime(['2026-01-01']).unit}, {BERLIN}]"
        ),
    ),
    "pandas NaT": lambda: (pd.NaT, pd.to_datetime([None])[0]),
    "pandas NA": lambda: (pd.NA, pd.array([None], dtype="Int64")[0]),
    "pandas Timestamp": lambda: (pd.Timestamp(1), pd.Timestamp("1970-01-01T00:00:00.000000001")),
    # -- polars
    "polars chunks": lambda: (pl.Series("a", [1, 2]), pl.concat([pl.Series("a", [1]), pl.Series("a", [2])], rechunk=False)),
    "polars chunks of str": lambda: (
        pl.Series("a", ["x", "y"]),
        pl.concat([pl.Series("a", ["x"]), pl.Series("a", ["y"])], rechunk=False),
    ),
    "polars slice": lambda: (pl.Series([2, 3]), pl.Series([1, 2, 3]).slice(1)),
    "polars slice with nulls": lambda: (pl.Series([None, 3]), pl.Series([1, None, 3]).slice(1)),
    "polars slice of lists": lambda: (pl.Series([[2], [3]]), pl.Series([[1], [2], [3]]).slice(1)),
    "polars sorted flag": lambda: (pl.Series([1, 2]), pl.Series([1, 2]).set_sorted()),
    "polars cloned": lambda: (pl.DataFrame({"a": ["x"]}), pl.DataFrame({"a": ["x"]}).clone()),
    "polars NaN": lambda: (pl.Series([math.nan, None]), pl.Series([float("nan"), None])),
    "polars categorical": lambda: (
        pl.Series(["c1", "c2"], dtype=pl.Categorical),
        pl.Series(["c2", "c1"], dtype=pl.Categorical).reverse(),
    ),
    "polars lists of categorical": lambda: (
        pl.Series([["d1", "d2"]], dtype=pl.List(pl.Categorical)),
        pl.Series([["d0"], ["d1", "d2"]], dtype=pl.List(pl.Categorical)).slice(1),
    ),
    "polars enum": lambda: (
        pl.Series(["a"], dtype=pl.Enum(["a", "b"])),
        pl.Series(["b", "a"], dtype=pl.Enum(["a", "b"])).slice(1),
    ),
    "polars structs": lambda: (pl.Series([{"a": 1}]), pl.DataFrame({"a": [1]}).to_struct()),
    "polars expressions": lambda: (pl.col("a") + 1, pl.col("a") + 1),
}

MUST_NOT_MEET: dict[str, Pair] = {
    "plain objects": lambda: (object(), object()),
    "locks": lambda: (threading.Lock(), threading.Lock()),
    "iterators": lambda: (iter([1]), iter([2])),
    "generators": lambda: ((i for i in [1]), (i for i in [2])),
    "properties": lambda: (property(len), property(max)),
    "static methods": lambda: (staticmethod(len), staticmethod(max)),
    "read-only views of dicts": lambda: (types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 2})),
    "keys of dicts": lambda: ({"a": 1}.keys(), {"b": 1}.keys()),
    "cells": lambda: (types.CellType(1), types.CellType(2)),
    "struct formats": lambda: (struct.Struct("i"), struct.Struct("q")),
    "modules of one name": lambda: (_with(types.ModuleType("m"), a=1), _with(types.ModuleType("m"), a=2)),
    "module and another of its name": lambda: (json, types.ModuleType("json")),
    "objects that give the name of a global": lambda: (Named(1), Named(2)),
    "type variables of one name": lambda: (TypeVar("T"), TypeVar("T", bound=int)),
    "new types of one name": lambda: (typing.NewType("N", int), typing.NewType("N", str)),
    "functions with singledispatch": lambda: (functools.singledispatch(_scaled(1)), functools.singledispatch(_scaled(2))),
    "classes of a metaclass that takes names for equality": lambda: (_named_class(1), _named_class(2)),
    "functions of one text in two namespaces": lambda: (_executed(1), _executed(2)),
    "numpy ufuncs made of functions": lambda: (np.frompyfunc(lambda x: x + 1, 1, 1), np.frompyfunc(lambda x: x + 2, 1, 1)),
    "numpy iterators": lambda: (np.zeros(2).flat, np.ones(2).flat),
    "polars lazy frames": lambda: (pl.LazyFrame({"a": [1]}), pl.LazyFrame({"a": [2]})),
    "pandas groups": lambda: (_frame().groupby("a"), _frame().groupby("b")),
}

PROCESS_LOCAL: dict[str, str] = {
    "classes of one name": "a class that its module and name do not lead to is itself in this process only",
    "instances of classes of one name": "the same, of their class",
}
"""Pairs whose keys another process does not share, with the reason."""
