"""Values to bytes and back.

A `Coder` writes plain data, and values of the classes that the program names, in a safe format: reading it cannot run code
or import a class.  What does not fit goes by pickle, and is read only behind a MAC.  A value becomes a main frame and a
frame for each large piece of memory in it, and a codec id: the format in its low bits, the compression in its high ones.
The reader's own setting says which ids it takes; nothing is chosen by the data.

Frames may share memory with the value that they were made from, and show it read only: write them out, or copy them, before
anyone changes it.
A value may go on living in the `bytearray` or writable `memoryview` frames that it was read from: give those away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Literal

from codomyrmex_cache._named import NO_TYPES, Types, types_of
from codomyrmex_cache._plain import json_bytes, json_value, safe_dumps, safe_frames, safe_loads, safe_value
from codomyrmex_cache._record import record
from codomyrmex_cache._tagged import Buffer, UnnamedTypeError
from codomyrmex_cache.errors import CacheCodecError, CacheConfigurationError

__all__ = [
    "CUSTOM",
    "JSON",
    "NO_TYPES",
    "PICKLE",
    "SAFE",
    "Buffer",
    "Codec",
    "Coder",
    "Types",
    "UnnamedTypeError",
    "safe_dumps",
    "safe_loads",
    "types_of",
]

SAFE = 1
PICKLE = 2
JSON = 3
CUSTOM = 4

_FORMAT_BITS = 6
_FORMATS = (1 << _FORMAT_BITS) - 1
_DIGEST = 16


@record(frozen=True, slots=True)
class Codec:
    """A format of your own: two functions and a name.

    Args:
        name: stored with each value, as a digest, and compared; change it when the format changes.
        dumps: gives the bytes of a value, or raises for one that it would not give back the same.
        loads: gives the value of bytes.

    >>> upper = Codec("ascii-1", lambda text: text.encode("ascii"), lambda stored: stored.decode("ascii"))
    >>> coder = Coder(upper, signed=False)
    >>> coder.loads(*coder.dumps("text"))
    'text'
    """

    name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


Write = Callable[[Any], tuple[int, list[Buffer]]]
Read = Callable[[Sequence[Buffer]], Any]


class Coder:
    """Writes and reads the values of a namespace, under one setting.

    Args:
        codec: "auto" (plain data and the classes of `types` exactly, the rest by pickle if signed), "safe" (never pickle),
            "json" (text that others can read, for what it keeps exactly), "pickle" (always; only if signed), or a `Codec`.
        signed: whether stored bytes are behind a MAC with a secret.
        types: the classes that the safe format may write and make again.
        compress_above: bytes from which on frames are compressed; `None` for never.

    Raises:
        CacheConfigurationError: there is no such codec, or it is pickle without a secret.

    >>> coder = Coder(signed=False)
    >>> coder.dumps({"answer": 42})
    (1, [b'j{"answer":42}'])
    >>> coder.loads(*coder.dumps((1, b"2")))
    (1, b'2')
    """

    __slots__ = ("_above", "_codec", "_readers", "_safe", "_signed", "_types", "_write")

    def __init__(
        self,
        codec: Literal["auto", "safe", "json", "pickle"] | Codec = "auto",
        *,
        signed: bool,
        types: Types = NO_TYPES,
        compress_above: int | None = None,
    ) -> None:
        self._codec = codec
        self._signed = signed
        self._types = types
        self._above = compress_above
        self._write, self._readers = self._functions()
        self._safe = SAFE in self._readers

    @property
    def reads_safe(self) -> bool:
        """Whether it takes the safe format, with any values in it."""
        return self._safe

    def _functions(self) -> tuple[Write, dict[int, Read]]:
        if not isinstance(self._codec, str):
            return self._custom_dumps, {CUSTOM: self._custom_loads}
        if self._codec == "pickle" and not self._signed:
            raise CacheConfigurationError('codec="pickle" needs a secret: without one, stored bytes could run code')
        known: dict[str, tuple[Write, dict[int, Read]]] = {
            "auto": (self._auto_dumps, {SAFE: self._safe_loads, **({PICKLE: _unpickled} if self._signed else {})}),
            "safe": (self._safe_dumps, {SAFE: self._safe_loads}),
            "json": (lambda value: (JSON, [json_bytes(value)]), {JSON: _json_loads}),
            "pickle": (_pickle_dumps, {PICKLE: _unpickled}),
        }
        if self._codec not in known:
            raise CacheConfigurationError(f"codec={self._codec!r}: give {', '.join(map(repr, known))}, or a Codec")
        return known[self._codec]

    def dumps(self, value: Any) -> tuple[int, list[Buffer]]:
        """Codec id and frames of a value: the main one, and one for each large piece of memory.

        Raises:
            CacheCodecError: it cannot be written so that it would come back the same.
        """
        try:
            codec, frames = self._write(value)
            if self._above is None:
                return codec, frames
            return _compressed(codec, frames, self._above)
        except CacheCodecError:
            raise
        except Exception as error:  # state, reducers, metaclasses and third-party codecs are user code
            raise CacheCodecError(f"{type(value).__qualname__} cannot be encoded ({type(error).__name__})") from error

    def loads(self, codec: int, frames: Sequence[Buffer]) -> Any:
        """The value that `dumps` gave the frames of.

        Raises:
            UnnamedTypeError: it is of a class that `types` does not name.
            CacheCodecError: for a codec that this setting does not take, and for frames that do not decode.
        """
        try:
            if codec == SAFE and self._safe:
                return safe_value(frames, self._types)
            return self._other(codec, frames)
        except CacheCodecError:
            raise
        except Exception as error:  # planted bytes may make any constructor raise anything; a vanished class; user code
            raise CacheCodecError(f"stored bytes do not decode ({type(error).__name__})") from error

    def _other(self, codec: int, frames: Sequence[Buffer]) -> Any:
        reader = self._readers.get(codec & _FORMATS)
        if reader is None:
            raise CacheCodecError(f"codec {codec} is not accepted here")
        if codec > _FORMATS:
            from codomyrmex_cache._compression import decompressed

            frames = decompressed(codec >> _FORMAT_BITS, frames)
        return reader(frames)

    def _safe_dumps(self, value: Any) -> tuple[int, list[Buffer]]:
        return SAFE, safe_frames(value, self._types)

    def _safe_loads(self, frames: Sequence[Buffer]) -> Any:
        return safe_value(frames, self._types)

    def _auto_dumps(self, value: Any) -> tuple[int, list[Buffer]]:
        try:
            return SAFE, safe_frames(value, self._types)
        except CacheCodecError as error:
            if not self._signed:
                raise CacheCodecError(f"{error}; a backend without a secret stores plain data only") from error
        return _pickle_dumps(value)

    def _custom_dumps(self, value: Any) -> tuple[int, list[Buffer]]:
        payload = self._codec.dumps(value)  # type: ignore[union-attr]
        if not isinstance(payload, (bytes, bytearray, memoryview)):
            raise CacheCodecError(f"codec {self._name!r} gave {type(payload).__qualname__} instead of bytes")
        return CUSTOM, [_digest(self._name) + bytes(payload)]

    def _custom_loads(self, frames: Sequence[Buffer]) -> Any:
        (main,) = map(bytes, frames)
        if main[:_DIGEST] != _digest(self._name):
            raise CacheCodecError(f"stored bytes are not of codec {self._name!r}")
        return self._codec.loads(main[_DIGEST:])  # type: ignore[union-attr]

    @property
    def _name(self) -> str:
        return self._codec.name  # type: ignore[union-attr]


def _digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=_DIGEST).digest()


def _json_loads(frames: Sequence[Buffer]) -> Any:
    (main,) = frames
    return json_value(main)


def _pickle_dumps(value: Any) -> tuple[int, list[Buffer]]:
    from codomyrmex_cache._pickling import pickled

    return PICKLE, pickled(value)


def _unpickled(frames: Sequence[Buffer]) -> Any:
    from codomyrmex_cache._pickling import unpickled

    return unpickled(frames)


def _compressed(codec: int, frames: list[Buffer], above: int) -> tuple[int, list[Buffer]]:
    if len(frames) == 1 and len(frames[0]) <= above:  # most often; spares the import
        return codec, frames
    from codomyrmex_cache._compression import compressed

    algorithm, frames = compressed(frames, above)
    return codec | algorithm << _FORMAT_BITS, frames
