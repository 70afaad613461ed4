"""Payloads too large for a database, each in a file of its own; at 1 MB that is two to four times as fast as a blob.

A file is written under a temporary name, renamed, and after that named by a row.  Its writer holds a lock on it until the row
is committed, and the kernel frees the lock of a process that has died, so a file that no row names and nobody holds is an
orphan, however young.  Names are numbers, so what stands in a damaged row cannot lead out of the folder.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from codomyrmex_cache._chunks import Buffer, Chunks
from codomyrmex_cache._files import identity, is_recent
from codomyrmex_cache._folders import check_private, lock_file, make_private_folder, sync_folder
from codomyrmex_cache._origin import Mapped, note_origin, room
from codomyrmex_cache.envelope import HEAD_SIZE

__all__ = ["LargeFiles", "Written"]

_MOST_PIECES = 512
"""Buffers written by one system call; Linux allows 1,024."""

_DRAFT = ".tmp"
_FLAGS = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


class Written:
    """A file that no row names yet; to be kept or discarded, and then let go."""

    __slots__ = ("_descriptor", "_folder", "head", "number", "size")

    def __init__(self, folder: LargeFiles, number: int, descriptor: int, head: bytes, size: int) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self.number = number
        self.head = head
        self.size = size

    def settle(self, *, kept: bool) -> None:
        """A row names it, or none will."""
        if not kept:
            self._folder.unlink([self.number])
        os.close(self._descriptor)


class LargeFiles:
    """The files of one namespace.

    Args:
        folder: where they are; made with the first of them.
        durable: written through to the disk before a row names them, so that they survive a power failure.
        mapped: read by mapping them privately into memory instead of copying.  Who can write the folder could then change a
            value after it has been verified, or end the process by cutting the file.
        most: bytes of one file; larger ones are taken as damaged.
    """

    def __init__(self, folder: Path, *, durable: bool, mapped: bool, most: int) -> None:
        self._folder = folder
        self._durable = durable
        self._mapped = mapped
        self._most = most

    def write(self, value: Buffer | Chunks) -> Written:
        """Write and rename; what is returned holds its lock."""
        number = int.from_bytes(os.urandom(8), "big") >> 1  # SQLite's integers have a sign
        draft = self._path(number, _DRAFT)
        descriptor = self._create(draft)
        try:
            head, size = _fill(descriptor, value)
            if self._durable:
                os.fsync(descriptor)
            os.rename(draft, self._path(number))
            if self._durable:
                sync_folder(self._folder)
        except BaseException:
            for path in (draft, self._path(number)):
                with suppress(OSError):
                    os.unlink(path)
            os.close(descriptor)
            raise
        return Written(self, number, descriptor, head, size)

    def read(self, number: object, head: object) -> memoryview | None:
        """All of the file, its beginning as the row has it; `None` if there is no such file.

        Who verifies it can tell by `take_origin` whether it was verified before.
        """
        if type(number) is not int or type(head) is not bytes or len(head) > HEAD_SIZE:
            return None
        try:
            # a pipe planted under the name would hold up a plain open for ever
            descriptor = os.open(self._path(number), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
        except OSError:
            return None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not len(head) <= found.st_size <= self._most:
                return None
            content = _mapped(descriptor, found.st_size) if self._mapped else _read(descriptor, found.st_size)
            if content is None:
                return None
            content[: len(head)] = head
            # looked at before it is read: a change from now on makes another file of it
            note_origin(content, None if is_recent(found) else identity(found))
            return content
        finally:
            os.close(descriptor)

    def unlink(self, numbers: Iterable[object]) -> None:
        """Remove files, if they are there."""
        for number in numbers:
            if type(number) is int:
                with suppress(FileNotFoundError):
                    os.unlink(self._path(number))

    def sweep(self, is_named: Callable[[int], bool]) -> None:
        """Remove what dead processes have left: files that no row names and nobody holds."""
        try:
            names = os.listdir(self._folder)
        except OSError:
            return
        for name in names:
            number = _number(name)
            if number is not None and not is_named(number):
                self._remove_orphan(self._folder / name, lambda number=number: is_named(number))  # type: ignore[misc]

    def _remove_orphan(self, path: Path, is_named: Callable[[], bool]) -> None:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
            try:
                if lock_file(descriptor, wait=False) and not is_named():  # committed between the two questions
                    os.unlink(path)
            finally:
                os.close(descriptor)

    def _path(self, number: int, suffix: str = "") -> str:
        return f"{self._folder}/{number & 2**64 - 1:016x}{suffix}"

    def _create(self, draft: str) -> int:
        """An open file of mode 0600 with its lock held."""
        while True:
            try:
                descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | _FLAGS, 0o600)
            except FileNotFoundError:
                make_private_folder(self._folder)
                check_private(self._folder)
                continue
            try:
                os.fchmod(descriptor, 0o600)  # the umask may have taken the owner's rights
                lock_file(descriptor, wait=True)
                if os.fstat(descriptor).st_nlink:  # else it was swept before it had its lock
                    return descriptor
            except BaseException:
                with suppress(OSError):
                    os.unlink(draft)
                os.close(descriptor)
                raise
            os.close(descriptor)


def _number(name: str) -> int | None:
    stem = name.removesuffix(_DRAFT)
    if len(stem) != 16 or not set(stem) <= set("0123456789abcdef"):
        return None
    number = int(stem, 16)
    return number if number < 2**63 else None


def _fill(descriptor: int, value: Buffer | Chunks) -> tuple[bytes, int]:
    """Write the value from the beginning; its head, and how long it is."""
    if not isinstance(value, Chunks):
        _write(descriptor, [value])
        return bytes(value[:HEAD_SIZE]), len(value)
    os.lseek(descriptor, HEAD_SIZE, os.SEEK_SET)
    _write(descriptor, value.body)
    head = value.mac() + value.head  # made meanwhile
    os.lseek(descriptor, 0, os.SEEK_SET)
    _write(descriptor, [head])
    return head, len(value)


def _write(descriptor: int, pieces: Iterable[Buffer]) -> None:
    """Every byte; one call may take fewer."""
    waiting = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    while waiting:
        done = os.writev(descriptor, waiting[:_MOST_PIECES])
        while done:
            if done < len(waiting[0]):
                waiting[0] = waiting[0][done:]
                break
            done -= len(waiting.pop(0))


def _read(descriptor: int, size: int) -> memoryview | None:
    content, place = room(size), 0
    while place < size:
        count = os.readv(descriptor, [content[place:]])
        if not count:
            return None
        place += count
    return content


def _mapped(descriptor: int, size: int) -> memoryview | None:
    """Pages are shared with other readers until they are written to, which changes them here alone."""
    try:
        return memoryview(Mapped(descriptor, size, access=mmap.ACCESS_COPY))
    except ValueError:  # it has been cut meanwhile, or is empty
        return None
