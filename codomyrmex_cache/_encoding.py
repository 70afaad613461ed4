"""The canonical encoding: equal arguments to equal bytes, different arguments to different bytes.

Every value is written as a tag, then lengths, then content, so that no two encodings can run into each other.  What
depends on the process is kept out: no repr, no id, no hash seed, no insertion order of dicts and sets.  What cannot be
encoded exactly is an `UnkeyableError`, never an approximation.

How a type is encoded, first match wins: the built-in types by value; `register`ed types; `__cache_key__`; functions and
types of other packages by the rules in `_encoders` (nothing is imported to recognise them); enums by class and name;
dataclasses by class and attributes; subclasses of built-ins by class, content and attributes; anything else by class and
the state that `__reduce_ex__` gives (what `copy` and `pickle` rely on).

Text and bytes are in the encoding whole.  Buffers of numbers beyond a page count by their 128-bit xxh3, since a
cryptographic hash of a large array would cost twenty times the rest of the call.
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
from os.path import basename, splitext
from pathlib import PurePath
from struct import Struct
from types import EllipsisType, NotImplementedType
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from xxhash import xxh3_128_digest

from codomyrmex_cache.errors import UnkeyableError

__all__ = [
    "SPECIAL",
    "Encoder",
    "encode",
    "encode_buffer",
    "encode_into",
    "encode_plain",
    "module_name",
    "refuse",
    "register",
    "type_identity",
]

Encoder = Callable[[Any, bytearray, int], None]

MAX_DEPTH = 200
"""Nesting beyond this is refused: a self-reference ends here, long before the interpreter's own limit."""

MAX_INLINE_BUFFER = 4096
"""Bytes of a buffer that go into the encoding as they are."""

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


def encode_plain(value: Any, depth: int, saw_bytes: list[bool] | None = None) -> bytes:
    """The same encoding, for the types that fill most calls without a function call per leaf.

    Args:
        value: anything; what is not of these types takes the long way.
        depth: of nesting.
        saw_bytes: gets an element if `bytes` occur.
    """
    kind = type(value)
    if kind is str:
        return (len(value) <= _SHORT and _short_texts.get(value)) or _text(value)
    if kind is dict:
        return _dict(value, depth, saw_bytes)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        inner = _deeper(depth)
        items = [
            _dict(item, inner, saw_bytes) if type(item) is dict else encode_plain(item, inner, saw_bytes) for item in value
        ]
        if kind is set or kind is frozenset:
            items.sort()
        return _TAGS[kind] + _length(len(items)) + b"".join(items)
    if kind is int:
        return _integer(value)
    if kind is float:
        return b"f" + _packed_double(value)
    if value is None:
        return b"N"
    if kind is bool:
        return b"T" if value else b"F"
    if kind is bytes and saw_bytes is not None:
        saw_bytes.append(True)
    out = bytearray()
    encode_into(value, out, depth)
    return bytes(out)


_DICT_HEADS = [b"d" + _length(count) for count in range(64)]
_TAGS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}


def _dict(value: dict[Any, Any], depth: int, saw_bytes: list[bool] | None) -> bytes:
    """Pairs sorted by their encoding; text and dicts, which most keys and values are, on the shortest way."""
    inner = depth + 1 if depth < MAX_DEPTH else _deeper(depth)
    known = _short_texts.get
    pairs = []
    for key, item in value.items():
        first = (known(key) or _text(key)) if type(key) is str else encode_plain(key, inner, saw_bytes)
        kind = type(item)
        if kind is str:
            pairs.append(first + ((len(item) <= _SHORT and known(item)) or _text(item)))
        elif kind is dict:
            pairs.append(first + _dict(item, inner, saw_bytes))
        else:
            pairs.append(first + encode_plain(item, inner, saw_bytes))
    if len(pairs) > 1:
        pairs.sort()
    count = len(pairs)
    return (_DICT_HEADS[count] if count < 64 else b"d" + _length(count)) + b"".join(pairs)


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise UnkeyableError(f"nested deeper than {MAX_DEPTH} levels, or refers to itself")
    return depth + 1


_SHORT = 64
_MAX_SHORT_TEXTS = 8_192
_short_texts: dict[str, bytes] = {}  # dict keys and names recur in every call


def _text(value: str) -> bytes:
    try:
        content = value.encode()
    except UnicodeEncodeError:  # lone surrogates; naming the error handler costs every other text 0.2 us
        content = value.encode("utf-8", "surrogatepass")
    encoded = b"s" + _length(len(content)) + content
    if len(value) <= _SHORT:
        if len(_short_texts) >= _MAX_SHORT_TEXTS:
            _short_texts.clear()
        _short_texts[value] = encoded
    return encoded


def _integer(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"i" + _length(size) + value.to_bytes(size, "big", signed=True)


def _sized(tag: bytes, content: bytes | bytearray, out: bytearray) -> None:
    out += tag
    out += _length(len(content))
    out += content


def _packed_double(value: float) -> bytes:
    return _double(value) if value == value else _NAN  # all NaN agree: their payload bits carry no meaning


def _as_plain(base: Callable[[Any], Any]) -> Encoder:
    """Content of a subclass, taken out of its hands before its own methods could have a say."""

    def encoder(value: Any, out: bytearray, depth: int) -> None:
        out += encode_plain(base(value), depth)

    return encoder


def _plain(value: Any, out: bytearray, depth: int) -> None:
    out += encode_plain(value, depth)


def _complex(value: complex, out: bytearray, depth: int) -> None:
    out += b"c"
    out += _packed_double(value.real)
    out += _packed_double(value.imag)


def _bytes(value: bytes, out: bytearray, depth: int) -> None:
    _sized(b"b", value, out)


def _bytearray(value: bytearray, out: bytearray, depth: int) -> None:
    _sized(b"B", value, out)


def encode_buffer(content: Any, size: int, out: bytearray) -> None:
    """Append a contiguous buffer of this many bytes: itself if small, else its length and hash, without copying it."""
    if size <= MAX_INLINE_BUFFER:
        _sized(b"x", bytes(content), out)
    else:
        out += b"X"
        out += _length(size)
        out += xxh3_128_digest(content)


def _items(tag: bytes, values: list[object], out: bytearray, depth: int) -> None:
    out += tag
    out += _length(len(values))
    for value in values:
        encode_into(value, out, depth + 1)


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
    **dict.fromkeys((type(None), bool, int, float, str, list, tuple, dict, set, frozenset), _plain),
    complex: _complex,
    bytes: _bytes,
    bytearray: _bytearray,
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
    return splitext(basename(path))[0] if path else "__main__"


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
        out += encode_plain(type_identity(type(value)), depth)
        encode_into(parts(value), out, depth + 1)

    return encoder


def _resolve(kind: type) -> Encoder:
    for base in kind.__mro__:
        if base in _registered:
            return _object(b"R", _registered[base])
        if "__cache_key__" in vars(base):
            return _object(b"K", lambda value: value.__cache_key__())
    if issubclass(kind, type):
        return lambda value, out, depth: _items(b"C", [type_identity(value)], out, depth)
    if kind is object or hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
        return refuse  # sentinels differ by identity alone; an iterator's content cannot be looked at twice
    special = _special(kind)
    if special is not None:
        return special
    if issubclass(kind, Enum):
        return _enum
    if issubclass(kind, PurePath):
        return _path if kind.__module__.startswith("pathlib") else _object(b"P", lambda value: (value.parts, vars(value)))
    for base in _BASES:
        if issubclass(kind, base):
            return _subclass(base)
    if is_dataclass(kind):
        return _object(b"A", object.__getstate__)
    return _object(b"O", _reduced)


def _special(kind: type) -> Encoder | None:
    """The rule for a class, or a base of it, that is known by its module and name."""
    for base in kind.__mro__:
        found = SPECIAL.get((base.__module__.partition(".")[0], base.__name__))
        if found is not None:
            return found
    return None


SPECIAL: dict[tuple[str, str], Encoder] = {}
"""By top-level module and class name; filled by `_encoders`, which every user of this module imports."""


def _path(value: PurePath, out: bytearray, depth: int) -> None:
    out += b"p"
    encode_into((type(value).__name__, value.parts), out, depth + 1)  # the class's module differs between Pythons


def _enum(value: Enum, out: bytearray, depth: int) -> None:
    """Class, name and value: an edited value is another argument, one without encoding goes by its name alone."""
    try:
        content = encode_plain(value._value_, depth + 1)
    except Exception:  # any failure of the value's own code; the name still tells members apart
        if value._name_ not in type(value).__members__:
            raise
        content = b""
    out += b"E"
    out += encode_plain(type_identity(type(value)), depth)
    encode_into((value._name_, content), out, depth + 1)


def _subclass(base: type) -> Encoder:
    """A class over a built-in: what the built-in holds, and whatever its state adds."""
    content = _CONTENT.get(base) or _BUILT_IN[base]
    state = object.__getstate__ if issubclass(base, (set, frozenset)) else _reduced
    if issubclass(base, dict):
        state = _reduced_without_items

    def encoder(value: object, out: bytearray, depth: int) -> None:
        out += b"U"
        out += encode_plain(type_identity(type(value)), depth)
        content(value, out, depth + 1)
        encode_into(state(value), out, depth + 1)

    return encoder


def _ordered_pairs(value: Any, out: bytearray, depth: int) -> None:
    _items(b"o", list(value.items()), out, depth)


_CONTENT: dict[type, Encoder] = {
    OrderedDict: _ordered_pairs,
    int: _as_plain(int.__pos__),
    float: _as_plain(float.__pos__),
    str: _as_plain(str.__str__),
    list: _as_plain(lambda value: list(list.__iter__(value))),
    tuple: _as_plain(lambda value: tuple(tuple.__iter__(value))),
    dict: _as_plain(lambda value: dict(dict.items(value))),
    set: _as_plain(lambda value: set(set.__iter__(value))),
    frozenset: _as_plain(lambda value: frozenset(frozenset.__iter__(value))),
}


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
        raise UnkeyableError(f"{describe(value)} has no state to take a key from ({error})") from error
    if isinstance(reduced, str):  # the name of a global, of the module that the object says
        return (module_name(getattr(value, "__module__", None)), reduced), None, None, None, None
    rebuild, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if isinstance(state, dict):
        state = {name: item for name, item in state.items() if name not in _VOLATILE}
    return (module_name(rebuild.__module__), rebuild.__qualname__), arguments, state, items, pairs


_VOLATILE = frozenset({"_attrs_cached_hash", "__orig_class__"})
"""Attributes that say nothing about the value: a hash kept by attrs, the subscript a generic class was made through."""


def describe(value: object) -> str:
    """The full name of the value's type."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def refuse(value: object, out: bytearray, depth: int) -> None:
    """The encoder of what has no exact encoding."""
    raise UnkeyableError(f"{describe(value)} has no exact encoding")
