"""The canonical encoding: equal arguments to equal bytes, different arguments to different bytes.

Every value is written as a tag, then lengths, then content, so that no two encodings can run into each other.  What
depends on the process is kept out: no repr, no id, no hash seed, no insertion order of dicts and sets.  What cannot be
encoded exactly is an `UnkeyableError`, never an approximation.

How a type is encoded, first match wins: the built-in types by value; `register`ed types; `__cache_key__`; enums by
class and name; dataclasses by class and attributes; subclasses of built-ins by class, content and attributes; anything
else by class and the state that `__reduce_ex__` gives (what `copy` and `pickle` rely on).
"""

from __future__ import annotations

import copyreg
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from os import urandom
from pathlib import PurePath
from struct import Struct
from types import BuiltinFunctionType, EllipsisType, FunctionType, ModuleType, NotImplementedType
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from codomyrmex_cache.errors import UnkeyableError

__all__ = ["encode", "encode_into", "main_module_name", "register", "type_identity"]

Encoder = Callable[[Any, bytearray, int], None]

MAX_DEPTH = 200
"""Nesting beyond this is refused: a self-reference ends here, long before the interpreter's own limit."""

_length = Struct(">Q").pack
_double = Struct(">d").pack
_NAN = b"\x7f\xf8\x00\x00\x00\x00\x00\x00"


def encode(value: object) -> bytes:
    """The canonical encoding of one value.

    Raises:
        UnkeyableError: the value, or something inside it, has no exact encoding.

    >>> encode(1) == encode(True), encode({"a": 1, "b": 2}) == encode({"b": 2, "a": 1})
    (False, True)
    """
    out = bytearray()
    try:
        encode_into(value, out, 0)
    except UnkeyableError:
        raise
    except Exception as error:  # user code (state, properties, iteration) may raise anything
        raise UnkeyableError(f"encoding {type(value).__qualname__} raised {type(error).__name__}: {error}") from error
    return bytes(out)


def encode_into(value: object, out: bytearray, depth: int) -> None:
    """Append the encoding of `value`, met at this depth of nesting."""
    if depth > MAX_DEPTH:
        raise UnkeyableError(f"nested deeper than {MAX_DEPTH} levels, or refers to itself")
    kind = type(value)
    encoder = _BUILT_IN.get(kind)
    if encoder is None:
        encoder = _resolved.get(kind)
        if encoder is None:
            encoder = _resolved[kind] = _resolve(kind)
    encoder(value, out, depth)


def register(kind: type, encoder: Callable[[Any], object]) -> None:
    """Encode instances of `kind`, and of its subclasses, by their class and what `encoder(instance)` answers.

    Args:
        kind: any class that is not one of the built-in value types.
        encoder: gives back something encodable that tells apart what the functions tell apart.

    >>> class Client:
    ...     def __init__(self, url): self.url = url
    >>> register(Client, lambda client: client.url)
    >>> encode(Client("a")) == encode(Client("a"))
    True
    """
    _registered[kind] = encoder
    _resolved.clear()


# -- built-in values -------------------------------------------------------------------------------------------------


def _sized(tag: bytes, content: bytes | bytearray, out: bytearray) -> None:
    out += tag
    out += _length(len(content))
    out += content


def _none(value: None, out: bytearray, depth: int) -> None:
    out += b"N"


def _bool(value: bool, out: bytearray, depth: int) -> None:
    out += b"T" if value else b"F"


def _int(value: int, out: bytearray, depth: int) -> None:
    _sized(b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "big", signed=True), out)


def _packed_double(value: float) -> bytes:
    return _double(value) if value == value else _NAN  # all NaN agree: their payload bits carry no meaning


def _float(value: float, out: bytearray, depth: int) -> None:
    out += b"f"
    out += _packed_double(value)


def _complex(value: complex, out: bytearray, depth: int) -> None:
    out += b"c"
    out += _packed_double(value.real)
    out += _packed_double(value.imag)


def _str(value: str, out: bytearray, depth: int) -> None:
    _sized(b"s", str.encode(value, "utf-8", "surrogatepass"), out)


def _bytes(value: bytes, out: bytearray, depth: int) -> None:
    _sized(b"b", value, out)


def _bytearray(value: bytearray, out: bytearray, depth: int) -> None:
    _sized(b"B", value, out)


def _items(tag: bytes, count: int, values: Iterable[object], out: bytearray, depth: int) -> None:
    out += tag
    out += _length(count)
    for value in values:
        encode_into(value, out, depth + 1)


def _list(value: list[object], out: bytearray, depth: int) -> None:
    _items(b"l", len(value), list.__iter__(value), out, depth)


def _tuple(value: tuple[object, ...], out: bytearray, depth: int) -> None:
    _items(b"t", len(value), tuple.__iter__(value), out, depth)


def _encoded(value: object, depth: int) -> bytes:
    out = bytearray()
    encode_into(value, out, depth)
    return bytes(out)


def _sorted(tag: bytes, parts: list[bytes], out: bytearray) -> None:
    parts.sort()
    out += tag
    out += _length(len(parts))
    for part in parts:
        out += part


def _dict(value: dict[object, object], out: bytearray, depth: int) -> None:
    pairs = [_encoded(key, depth + 1) + _encoded(item, depth + 1) for key, item in dict.items(value)]
    _sorted(b"d", pairs, out)


def _set(value: set[object], out: bytearray, depth: int) -> None:
    _sorted(b"S", [_encoded(item, depth + 1) for item in set.__iter__(value)], out)


def _frozenset(value: frozenset[object], out: bytearray, depth: int) -> None:
    _sorted(b"Z", [_encoded(item, depth + 1) for item in frozenset.__iter__(value)], out)


def _by_parts(tag: bytes, parts: Callable[[Any], tuple[object, ...]]) -> Encoder:
    """A value type that is fully told by a few simpler values."""

    def encoder(value: object, out: bytearray, depth: int) -> None:
        out += tag
        encode_into(parts(value), out, depth + 1)

    return encoder


def _date_parts(value: date) -> tuple[object, ...]:
    return (value.year, value.month, value.day)


def _time_parts(value: time | datetime) -> tuple[object, ...]:
    return (value.hour, value.minute, value.second, value.microsecond, value.fold, value.tzinfo)


def _timezone_parts(value: timezone) -> tuple[object, ...]:
    return (value.utcoffset(None), value.tzname(None))


_BUILT_IN: dict[type, Encoder] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    complex: _complex,
    str: _str,
    bytes: _bytes,
    bytearray: _bytearray,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: _set,
    frozenset: _frozenset,
    datetime: _by_parts(b"D", lambda value: _date_parts(value) + _time_parts(value)),
    date: _by_parts(b"a", _date_parts),
    time: _by_parts(b"h", _time_parts),
    timedelta: _by_parts(b"e", lambda value: (value.days, value.seconds, value.microseconds)),
    timezone: _by_parts(b"z", _timezone_parts),
    Decimal: _by_parts(b"m", lambda value: tuple(value.as_tuple())),
    Fraction: _by_parts(b"q", lambda value: (value.numerator, value.denominator)),
    UUID: _by_parts(b"u", lambda value: (value.bytes,)),
    range: _by_parts(b"r", lambda value: (value.start, value.stop, value.step)),
    slice: _by_parts(b"L", lambda value: (value.start, value.stop, value.step)),
    EllipsisType: lambda value, out, depth: out.extend(b"."),
    NotImplementedType: lambda value, out, depth: out.extend(b"!"),
}

# -- types, and objects by their type --------------------------------------------------------------------------------

_BASES: tuple[type, ...] = (
    int, float, complex, str, bytes, bytearray, list, tuple, OrderedDict, dict, set, frozenset,
    datetime, date, time, timedelta, Decimal, Fraction, UUID,
)  # fmt: skip
"""What classes may be built over; the more special first."""

_registered: dict[type, Callable[[Any], object]] = {}
_resolved: WeakKeyDictionary[type, Encoder] = WeakKeyDictionary()
_local_tokens: WeakKeyDictionary[type, bytes] = WeakKeyDictionary()


def main_module_name() -> str:
    """The name under which `__main__` would be imported: its spec's, else its file's stem."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    path = getattr(main, "__file__", None)
    return PurePath(path).stem if path else "__main__"


def module_name(name: str | None) -> str:
    """The module's name with `__main__` resolved."""
    return main_module_name() if name == "__main__" else str(name)


def _importable(kind: type) -> bool:
    found: object = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def type_identity(kind: type) -> tuple[object, ...]:
    """Module and qualified name; a class that these do not lead to (a local one) is itself in this process only."""
    identity = (module_name(kind.__module__), kind.__qualname__)
    if _importable(kind):
        return identity
    return (*identity, _local_tokens.setdefault(kind, urandom(16)))


def _object(tag: bytes, parts: Callable[[Any], object]) -> Encoder:
    """Objects told by their class and something simpler."""

    def encoder(value: object, out: bytearray, depth: int) -> None:
        out += tag
        _tuple(type_identity(type(value)), out, depth)
        encode_into(parts(value), out, depth + 1)

    return encoder


def _resolve(kind: type) -> Encoder:
    for base in kind.__mro__:
        if base in _registered:
            return _object(b"R", _registered[base])
        if "__cache_key__" in vars(base):
            return _object(b"K", lambda value: value.__cache_key__())
    if issubclass(kind, type):
        return lambda value, out, depth: _items(b"C", 1, [type_identity(value)], out, depth)
    if kind is object or issubclass(kind, (FunctionType, BuiltinFunctionType, ModuleType)):
        return _refuse
    if issubclass(kind, Enum):
        return _enum
    if issubclass(kind, PurePath):
        return _object(b"P", lambda value: (value.parts, getattr(value, "__dict__", None)))
    for base in _BASES:
        if issubclass(kind, base):
            return _subclass(base)
    if is_dataclass(kind):
        return _object(b"A", object.__getstate__)
    return _object(b"O", _reduced)


def _enum(value: Enum, out: bytearray, depth: int) -> None:
    """Class, name and value: an edited value is another argument, one without encoding goes by its name alone."""
    try:
        content = _encoded(value._value_, depth + 1)
    except Exception:  # any failure of the value's own code; the name still tells members apart
        if value._name_ not in type(value).__members__:
            raise
        content = b""
    out += b"E"
    _tuple(type_identity(type(value)), out, depth)
    encode_into((value._name_, content), out, depth + 1)


def _subclass(base: type) -> Encoder:
    """A class over a built-in: what the built-in holds, and whatever its state adds."""
    content: Encoder = _ordered_pairs if issubclass(base, OrderedDict) else _BUILT_IN[base]
    state = object.__getstate__ if issubclass(base, (set, frozenset)) else _reduced
    if issubclass(base, dict):
        state = _reduced_without_items

    def encoder(value: object, out: bytearray, depth: int) -> None:
        out += b"U"
        _tuple(type_identity(type(value)), out, depth)
        content(value, out, depth + 1)
        encode_into(state(value), out, depth + 1)

    return encoder


def _ordered_pairs(value: Any, out: bytearray, depth: int) -> None:
    _items(b"o", len(value), value.items(), out, depth)


def _reduced_without_items(value: object) -> object:
    rebuild, arguments, state, _, _ = _reduction(value)
    return rebuild, arguments, state


def _reduced(value: object) -> object:
    """What `copy` and `pickle` rebuild the object from."""
    rebuild, arguments, state, items, pairs = _reduction(value)
    return rebuild, arguments, state, None if items is None else list(items), None if pairs is None else list(pairs)


def _reduction(value: Any) -> tuple[object, object, object, Iterable[object] | None, Iterable[object] | None]:
    """The five parts of the pickle protocol's reduction; the callable told by its name."""
    reducer = copyreg.dispatch_table.get(type(value))
    try:
        reduced = reducer(value) if reducer else value.__reduce_ex__(4)
    except Exception as error:
        raise UnkeyableError(f"{_describe(value)} has no state to take a key from ({error})") from error
    if isinstance(reduced, str):
        return reduced, None, None, None, None
    rebuild, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    name = (module_name(rebuild.__module__), rebuild.__qualname__)
    return name, arguments, state, items, pairs


def _describe(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _refuse(value: object, out: bytearray, depth: int) -> None:
    raise UnkeyableError(f"{_describe(value)} has no exact encoding")
