"""Memory that large payloads are read into, and what is known of the files that it was read from.

What has been verified once need not be verified again while it lies in the same file, unchanged: SHA-256 takes longer than
reading, and reading far longer than mapping.  A file is the same by device, inode, size, mtime and ctime, as in `_files`.
"""

from __future__ import annotations

import mmap
from collections.abc import Hashable
from contextlib import suppress
from hashlib import sha256
from hmac import compare_digest
from typing import Any, cast

from codomyrmex_cache._chunks import Buffer

__all__ = ["Mapped", "Origin", "Verified", "copied", "note_origin", "room", "take_origin"]

Origin = tuple[int, ...]
"""Device, inode, size, mtime and ctime of a file whose next change will show in them."""

_LARGE = 8 * 2**20
"""Bytes from which on memory is had from the kernel, in large pages: 50 MB are filled in 7 ms, and in 50 by way of a
`bytearray`, which writes zeros first.  Less is often at hand, and filled sooner."""

_MOST_VERIFIED = 1024
"""Payloads remembered, in some 500 bytes each."""


class Held(bytearray):
    """Memory of our own."""

    origin: Origin | None = None


class Mapped(mmap.mmap):
    """Memory that the kernel gives: of a file, or of our own."""

    origin: Origin | None = None


def room(size: int) -> memoryview:
    """Memory to write so many bytes to; a forked child has a copy."""
    if size < _LARGE:
        return memoryview(Held(size))
    memory = Mapped(-1, size, access=mmap.ACCESS_COPY)
    with suppress(AttributeError, OSError):  # only Linux has them, if it is not built without
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def copied(frame: Buffer) -> Buffer:
    """The same bytes, which nobody else can change."""
    if type(frame) is bytes:
        return frame
    if len(frame) < _LARGE:
        return bytes(frame)
    memory = room(len(frame))
    memory[:] = memoryview(frame).cast("B")
    return memory.toreadonly()


def note_origin(content: memoryview, origin: Origin | None) -> None:
    """Where all of this `room`, or `Mapped`, was read from."""
    cast(Held | Mapped, content.obj).origin = origin


def take_origin(content: Any) -> Origin | None:
    """Of memory that is all of a file; `None` for any other, and from the second time on: a value may live in it by then."""
    memory = content.obj if type(content) is memoryview else None
    if not isinstance(memory, Held | Mapped) or len(content) != len(memory):
        return None
    origin, memory.origin = memory.origin, None
    return origin


class Verified:
    """What has been verified, each with a digest of the part of it that is parsed.

    That part is compared at every read, so no parser ever sees bytes other than those that were verified, whatever may be
    wrong with the times of a file.  Threads need no lock here, and what a forked child inherits is as true there.

    >>> verified = Verified()
    >>> verified.add("name", b"parsed")
    >>> verified.knows("name", b"parsed"), verified.knows("name", b"forged"), verified.knows("other", b"parsed")
    (True, False, False)
    """

    def __init__(self) -> None:
        self._digests: dict[Hashable, bytes] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def knows(self, name: Hashable, parsed: Buffer) -> bool:
        """Whether this was added under this name."""
        digest = self._digests.get(name)
        return digest is not None and compare_digest(digest, sha256(parsed).digest())

    def add(self, name: Hashable, parsed: Buffer) -> None:
        """Remember; when there are too many, all others are forgotten, which costs one verification each."""
        if len(self._digests) >= _MOST_VERIFIED:
            self._digests.clear()
        self._digests[name] = sha256(parsed).digest()
