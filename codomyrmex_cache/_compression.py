"""Frames made smaller: Zstandard where it is installed, else zlib.

All frames become one stream behind a table of their lengths, each beginning at a multiple of 16.  The reader believes the
table only as an upper bound: it stops at the byte that would go beyond, so that a few stored bytes cannot fill the memory.
"""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Protocol

from codomyrmex_cache._tagged import Buffer
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["MAX_LENGTH", "ZLIB", "ZSTD", "compressed", "decompressed", "length_of"]

ZLIB = 1
ZSTD = 2

MAX_LENGTH = 1 << 30
"""1 GiB: longer values are stored as they are, and bytes that say they are longer are not unpacked."""

_SAMPLE = 2048
"""Bytes taken from the begin, the middle and the end of the longest frame."""

_WORTH = 0.9
"""Of a sample that does not shrink below this part, the rest is not tried: it is likely compressed already."""

_ALIGNMENT = 16

_STEP = 1 << 20
"""Bytes handed to and taken from an algorithm at a time."""

_WINDOW_LOG = 23
"""Zstandard's memory while reading, 8 MiB; our own level needs 2, and a frame may ask for 2 GiB."""

_count = Struct(">I")
_length = Struct(">Q")


class _Compressor(Protocol):
    def compress(self, data: Any, /) -> bytes: ...

    def flush(self) -> bytes: ...


def length_of(frame: Buffer) -> int:
    """Bytes in a frame."""
    return frame.nbytes if type(frame) is memoryview else len(frame)


def compressed(frames: list[Buffer], above: int) -> tuple[int, list[Buffer]]:
    """The algorithm, 0 for none, and the frames: one that is smaller than all of these together, or these themselves.

    Args:
        frames: what is to be stored.
        above: bytes in all frames up to which nothing is tried.
    """
    total = sum(map(length_of, frames))
    if total <= above or total > MAX_LENGTH or not _shrinks(frames):
        return 0, frames
    algorithm, compressor = _compressor()
    table = _count.pack(len(frames)) + b"".join(_length.pack(length_of(frame)) for frame in frames)
    made = b"".join((table, *map(compressor.compress, _aligned(frames)), compressor.flush()))
    return (algorithm, [made]) if len(made) < total else (0, frames)


def _aligned(frames: list[Buffer]) -> Iterator[Buffer]:
    for frame in frames:
        yield frame
        yield bytes(_gap(length_of(frame)))


def _gap(length: int) -> int:
    """Bytes to the next multiple of what memory of any array begins at."""
    return -length % _ALIGNMENT


def _shrinks(frames: list[Buffer]) -> bool:
    longest = memoryview(max(frames, key=length_of))
    middle = len(longest) // 2
    sample = bytes(longest)
    if len(longest) > 3 * _SAMPLE:
        sample = b"".join((longest[:_SAMPLE], longest[middle : middle + _SAMPLE], longest[-_SAMPLE:]))
    return len(zlib.compress(sample, 1)) < len(sample) * _WORTH


def decompressed(algorithm: int, frames: Sequence[Buffer]) -> list[Buffer]:
    """The frames that were compressed into one; those after the first are views of one writable memory.

    Raises:
        CacheCodecError: they do not come out at the lengths in the table, or the algorithm is not to be had here.
        Exception: any other, for damaged bytes.
    """
    (main,) = frames
    packed = memoryview(main)
    lengths = _lengths(packed)
    stored = packed[_count.size + len(lengths) * _length.size :]
    total = sum(length + _gap(length) for length in lengths)
    whole = bytearray()
    for chunk in _chunks(algorithm, stored, total):
        whole += chunk
    if len(whole) != total:
        raise CacheCodecError("compressed data has another length than it says")
    return _cut(whole, lengths)


def _lengths(packed: memoryview) -> list[int]:
    (count,) = _count.unpack_from(packed)
    if count == 0 or _count.size + count * _length.size > len(packed):
        raise CacheCodecError("compressed data is cut short")
    table = packed[_count.size : _count.size + count * _length.size]
    lengths = [length for (length,) in _length.iter_unpack(table)]
    if sum(lengths) > MAX_LENGTH:
        raise CacheCodecError(f"compressed data says it is longer than {MAX_LENGTH} bytes")
    return lengths


def _cut(whole: bytearray, lengths: list[int]) -> list[Buffer]:
    view = memoryview(whole)
    frames: list[Buffer] = []
    start = 0
    for length in lengths:
        frames.append(view[start : start + length])
        start += length + _gap(length)
    return [bytes(frames[0]), *frames[1:]]


# -- algorithms ------------------------------------------------------------------------------------------------------


def _zstandard() -> Any:
    """The package, or the module of Python 3.14; `None` where neither is installed."""
    if sys.version_info >= (3, 14):
        try:
            from compression import zstd
        except ImportError:  # an interpreter built without it
            return None
        return zstd
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    return zstandard


def _compressor() -> tuple[int, _Compressor]:
    module = _zstandard()
    if module is None:
        return ZLIB, zlib.compressobj(1)
    if hasattr(module, "CompressionParameter"):
        return ZSTD, module.ZstdCompressor(level=3)
    return ZSTD, module.ZstdCompressor(level=3).compressobj()


def _chunks(algorithm: int, stored: memoryview, most: int) -> Iterator[bytes]:
    """What comes out, until it is more than `most` bytes."""
    if algorithm == ZLIB:
        return _bounded(zlib.decompressobj(), stored, most)
    module = _zstandard() if algorithm == ZSTD else None
    if module is None:
        raise CacheCodecError(f"compression {algorithm} is not to be had here")
    if hasattr(module, "DecompressionParameter"):
        options = {module.DecompressionParameter.window_log_max: _WINDOW_LOG}
        return _bounded(module.ZstdDecompressor(options=options), stored, most)
    reader = module.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).stream_reader(io.BytesIO(stored))
    return _read(reader, most)


def _bounded(decompressor: Any, stored: memoryview, most: int) -> Iterator[bytes]:
    """In steps on both sides: zlib hands back the rest of its input as a copy."""
    for start in range(0, len(stored), _STEP):
        data: Buffer = stored[start : start + _STEP]
        while not decompressor.eof:
            chunk = decompressor.decompress(data, min(_STEP, most + 1))
            yield chunk
            most -= len(chunk)
            data = getattr(decompressor, "unconsumed_tail", b"")  # what Zstandard has not used, it keeps
            if most < 0:
                return
            if not chunk and not data:
                break
    if not decompressor.eof or decompressor.unused_data:
        raise CacheCodecError("compressed data is cut short, or something follows it")


def _read(reader: Any, most: int) -> Iterator[bytes]:
    while chunk := reader.read(min(_STEP, most + 1)):
        yield chunk
        most -= len(chunk)
        if most < 0:
            return
