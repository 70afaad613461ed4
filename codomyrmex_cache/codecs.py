"""Values to bytes and back.

`safe` writes plain data and nothing else: reading it cannot run code or name a class.  It keeps types exactly (a tuple
stays a tuple, an int key stays an int), keeps the order of dicts, and keeps aliases and cycles.  `pickle` takes what is left
and is read only behind a MAC.  `dumps` tries them in this order; the id it gives back is stored in the envelope.

The safe format is JSON in which every container is an array that begins with its tag.  The tag has a place of its own, so
no user data can look like one.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import isfinite
from struct import pack, unpack
from types import FunctionType
from typing import Any
from uuid import UUID

from codomyrmex_cache.errors import CacheCodecError

__all__ = ["PICKLE", "SAFE", "dumps", "loads", "safe_dumps", "safe_loads"]

SAFE = 1
PICKLE = 2

MAX_DEPTH = 150
"""Nesting of plain data; deeper values go to pickle, deeper bytes are refused before the JSON parser could recurse."""


def dumps(value: object, *, allow_pickle: bool) -> tuple[int, bytes]:
    """Codec id and bytes of a value.

    Args:
        value: anything.
        allow_pickle: whether the bytes will be signed, so that a pickle may be written.

    Raises:
        CacheCodecError: it is not plain data and pickle is not allowed or cannot.
    """
    try:
        return SAFE, safe_dumps(value)
    except CacheCodecError as error:
        if not allow_pickle:
            raise CacheCodecError(f"{error}; a backend without a secret stores plain data only") from error
    return PICKLE, _pickled(value)


def loads(codec: int, payload: bytes, *, allow_pickle: bool) -> Any:
    """The value of `payload`.

    Raises:
        CacheCodecError: for an unknown codec, for pickle where it is not allowed, and for bytes that do not decode.
    """
    if codec == SAFE:
        return safe_loads(payload)
    if codec != PICKLE or not allow_pickle:
        raise CacheCodecError(f"codec {codec} is not accepted here")
    try:
        return pickle.loads(payload)  # noqa: S301  the envelope's MAC was verified with our own secret
    except Exception as error:  # a vanished class, a changed __setstate__: anything may come out
        raise CacheCodecError(f"pickle does not load ({type(error).__name__})") from error


class _Careful(pickle.Pickler):
    """Refuses objects that would come back without their attributes: subclasses of classes written in C that reduce
    themselves (Decimal, date, ...) know nothing of what a subclass adds."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind.__module__ != "builtins" and _forgets(kind) and object.__getstate__(obj):
            reduced = obj.__reduce_ex__(5)
            if isinstance(reduced, tuple) and (len(reduced) < 3 or reduced[2] is None):
                raise CacheCodecError(f"{kind.__qualname__} loses its attributes when it is pickled")
        return NotImplemented


def _forgets(kind: type) -> bool:
    """Whether a class made in Python leaves its reduction to a base written in C."""
    for base in kind.__mro__[:-1]:
        reduces = vars(base).get("__reduce_ex__") or vars(base).get("__reduce__")
        if reduces is not None:
            return base is not kind and not isinstance(reduces, FunctionType)
    return False


def _pickled(value: object) -> bytes:
    try:
        out = io.BytesIO()
        _Careful(out, protocol=5).dump(value)
        return out.getvalue()
    except CacheCodecError:
        raise
    except Exception as first:  # local classes and lambdas: cloudpickle writes them by value
        try:
            import cloudpickle  # type: ignore[import-untyped]

            return bytes(cloudpickle.dumps(value, protocol=5))
        except Exception as error:  # state and reducers are user code
            raise CacheCodecError(f"{type(value).__qualname__} cannot be pickled ({type(error).__name__})") from first


# -- the safe codec --------------------------------------------------------------------------------------------------


def safe_dumps(value: object) -> bytes:
    """Plain data as bytes.

    Raises:
        CacheCodecError: something in it is not plain data, by exact type.
    """
    return json.dumps(_Packer().pack(value, 0), separators=(",", ":"), allow_nan=False).encode("ascii")


def safe_loads(payload: bytes) -> Any:
    """The value that `safe_dumps` wrote.

    >>> safe_loads(safe_dumps({1: ("a", b"b"), "n": float("inf")}))
    {1: ('a', b'b'), 'n': inf}
    """
    try:
        return _Unpacker().unpack(json.loads(payload))
    except CacheCodecError:
        raise
    except Exception as error:  # planted bytes may make any of the constructors raise anything
        raise CacheCodecError(f"not a safe payload ({type(error).__name__})") from error


_MAX_JSON_INT = 10**300
"""Larger ones go as hex: the interpreter limits decimal conversion to 4,300 digits."""

_LEAVES: dict[type, tuple[str, Callable[[Any], object], Callable[[Any], object]]] = {
    bytes: ("b", lambda value: value.hex(), bytes.fromhex),
    bytearray: ("B", lambda value: value.hex(), bytearray.fromhex),
    complex: ("c", lambda value: pack(">dd", value.real, value.imag).hex(), lambda text: complex(*_doubles(text))),
    datetime: ("D", lambda value: [value.isoformat(), value.fold], lambda raw: _datetime(*raw)),
    date: ("a", date.isoformat, date.fromisoformat),
    time: ("h", lambda value: [value.isoformat(), value.fold], lambda raw: time.fromisoformat(raw[0]).replace(fold=raw[1])),
    timedelta: ("e", lambda value: [value.days, value.seconds, value.microseconds], lambda raw: timedelta(*raw)),
    Decimal: ("m", str, Decimal),
    UUID: ("u", lambda value: value.hex, UUID),
}
_BY_TAG = {tag: read for tag, _, read in _LEAVES.values()}


def _is_text(value: str) -> bool:
    """Whether it has no surrogates; JSON would join two lone ones into one character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_plain_zone(zone: object) -> bool:
    """Whether the ISO text says all about the zone: none, or a `timezone` without a name of its own."""
    if type(zone) is not timezone:
        return zone is None
    return zone.tzname(None) == timezone(zone.utcoffset(None)).tzname(None)


def _doubles(text: str) -> tuple[float, ...]:
    return unpack(">dd", bytes.fromhex(text))


def _datetime(text: str, fold: int) -> datetime:
    return datetime.fromisoformat(text).replace(fold=fold)


class _Packer:
    """Walks a value once.  Containers met again are written as a reference to their number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._open: set[int] = set()

    def pack(self, value: Any, depth: int) -> object:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return value if value.isascii() or _is_text(value) else ["s", value.encode("utf-8", "surrogatepass").hex()]
        if kind is int:
            return value if -_MAX_JSON_INT < value < _MAX_JSON_INT else ["i", hex(value)]
        if kind is float:
            return value if isfinite(value) else ["f", pack(">d", value).hex()]
        leaf = _LEAVES.get(kind)
        if kind is bytearray and id(value) in self._numbers:
            return ["r", self._numbers[id(value)]]
        if leaf is not None:
            if kind is bytearray:
                self._number(value)
            if kind in (datetime, time) and not _is_plain_zone(value.tzinfo):
                raise CacheCodecError(f"time zone {value.tzinfo!r} is not plain data")
            return [leaf[0], leaf[1](value)]
        return self._container(value, kind, depth)

    def _container(self, value: Any, kind: type, depth: int) -> object:
        if id(value) in self._numbers:
            return ["r", self._numbers[id(value)]]
        if depth >= MAX_DEPTH:
            raise CacheCodecError(f"nested deeper than {MAX_DEPTH} levels")
        if kind is list or kind is dict:  # can contain itself: numbered before its content
            self._number(value)
            items = value if kind is list else (part for pair in value.items() for part in pair)
            return ["l" if kind is list else "d", *self._all(items, depth)]
        if kind is set:
            self._number(value)
            return ["S", *self._all(value, depth)]
        if kind is tuple or kind is frozenset:
            if id(value) in self._open:
                raise CacheCodecError(f"a {kind.__name__} that contains itself is not plain data")
            self._open.add(id(value))
            packed = ["t" if kind is tuple else "Z", *self._all(value, depth)]
            self._open.discard(id(value))
            self._number(value)
            return packed
        raise CacheCodecError(f"{kind.__module__}.{kind.__qualname__} is not plain data")

    def _number(self, value: object) -> None:
        self._numbers[id(value)] = len(self._numbers)

    def _all(self, values: Iterable[object], depth: int) -> list[object]:
        return [self.pack(item, depth + 1) for item in values]


class _Unpacker:
    """Rebuilds containers in the packer's order of numbering."""

    def __init__(self) -> None:
        self._seen: list[object] = []

    def unpack(self, packed: Any) -> Any:
        if type(packed) is not list:
            if type(packed) is dict:
                raise CacheCodecError("not a safe payload: it has an object")
            return packed
        tag, *rest = packed
        if tag in _BY_TAG:
            value = _BY_TAG[tag](rest[0])
            if tag == "B":
                self._seen.append(value)
            return value
        if tag == "i":
            return int(rest[0], 16)
        if tag == "s":
            return bytes.fromhex(rest[0]).decode("utf-8", "surrogatepass")
        if tag == "f":
            return unpack(">d", bytes.fromhex(rest[0]))[0]
        if tag == "r":
            return self._seen[rest[0]]
        return self._container(tag, rest)

    def _container(self, tag: object, rest: list[Any]) -> object:
        if tag == "l":
            items: list[object] = []
            self._seen.append(items)
            items.extend(map(self.unpack, rest))
            return items
        if tag == "d":
            pairs: dict[object, object] = {}
            self._seen.append(pairs)
            for index in range(0, len(rest), 2):
                key = self.unpack(rest[index])
                pairs[key] = self.unpack(rest[index + 1])
            return pairs
        if tag == "S":
            members: set[object] = set()
            self._seen.append(members)
            members.update(map(self.unpack, rest))
            return members
        build = {"t": tuple, "Z": frozenset}.get(tag)  # type: ignore[call-overload]
        if build is None:
            raise CacheCodecError(f"not a safe payload: unknown tag {tag!r}")
        value: object = build([self.unpack(item) for item in rest])
        self._seen.append(value)
        return value
