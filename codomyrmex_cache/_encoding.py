"""The canonical encoding: equal arguments to equal bytes, different arguments to different bytes.

Every value is written as a tag, then lengths, then content, so that no two encodings can run into each other.  What
depends on the process is kept out: no repr, no id, no hash seed, no insertion order of dicts and sets.  What cannot be
encoded exactly is an `UnkeyableError`, never an approximation.

The built-in value types are encoded here, by value; see `_objects` and `_encoders` for all others.

Text and bytes are in the encoding whole.  Buffers of numbers beyond a page count by their 128-bit xxh3, since a
cryptographic hash of a large array would cost twenty times the rest of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from struct import Struct
from types import EllipsisType, NotImplementedType
from typing import Any
from weakref import ref

from xxhash import xxh3_128_digest

from codomyrmex_cache.errors import UnkeyableError

__all__ = ["BUILT_IN", "LATE", "RESOLVE", "RESOLVED", "Encoder", "encode", "encode_buffer", "encode_into", "encode_plain"]

Encoder = Callable[[Any, bytearray, int], None]

RESOLVED: dict[int, tuple[ref[type], Encoder]] = {}
"""By the identity of the type: a metaclass may have its own idea of equality."""
RESOLVE: list[Callable[[type], Encoder]] = []
"""What finds the encoder of a type that is not built in: `_objects` puts it here, so that imports go one way."""

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
        raise UnkeyableError(f"encoding {type(value).__qualname__} raised {type(error).__name__}") from error
    return bytes(out)


def encode_into(value: object, out: bytearray, depth: int) -> None:
    """Append the encoding of `value`, met at this depth of nesting."""
    if depth > MAX_DEPTH:
        raise UnkeyableError(f"nested deeper than {MAX_DEPTH} levels, or refers to itself")
    kind = type(value)
    encoder = BUILT_IN.get(kind)
    if encoder is None:
        known, encoder = RESOLVED.get(id(kind), (None, None))
        if known is None or encoder is None or known() is not kind:
            encoder = RESOLVE[0](kind)
            RESOLVED[id(kind)] = (ref(kind), encoder)
    encoder(value, out, depth)


# -- built-in values -------------------------------------------------------------------------------------------------


def encode_plain(value: Any, depth: int = 0, saw_bytes: list[bool] | None = None) -> bytes:
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
            second = (len(item) <= _SHORT and known(item)) or _text(item)
        elif kind is dict:
            second = _dict(item, inner, saw_bytes)
        else:
            second = encode_plain(item, inner, saw_bytes)
        pairs.append(first + second)
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


BUILT_IN: dict[type, Encoder] = {
    **dict.fromkeys((type(None), bool, int, float, str, list, tuple, dict, set, frozenset), _plain),
    complex: _complex,
    bytes: _bytes,
    bytearray: _bytearray,
    datetime: _by_parts(b"D", lambda value: _date_parts(value) + _time_parts(value)),
    date: _by_parts(b"a", _date_parts),
    time: _by_parts(b"h", _time_parts),
    timedelta: _by_parts(b"e", lambda value: (value.days, value.seconds, value.microseconds)),
    timezone: _by_parts(b"z", _timezone_parts),
    range: _by_parts(b"r", lambda value: (value.start, value.stop, value.step)),
    slice: _by_parts(b"L", lambda value: (value.start, value.stop, value.step)),
    EllipsisType: lambda value, out, depth: out.extend(b"."),
    NotImplementedType: lambda value, out, depth: out.extend(b"!"),
}


LATE: dict[str, Encoder] = {
    "decimal": _by_parts(b"m", lambda value: tuple(value.as_tuple())),
    "fractions": _by_parts(b"q", lambda value: (value.numerator, value.denominator)),
    "uuid": _by_parts(b"u", lambda value: (value.bytes,)),
}
"""Of `late_classes`, by module; they become built in when a value of theirs is met."""
