"""Entries in files of this machine: one SQLite database per namespace, with files of their own for large payloads beside it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeVar

from codomyrmex_cache._chunks import Chunks
from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache.backends._coherence import Coherence
from codomyrmex_cache.backends._database import Database, Durability, Handle
from codomyrmex_cache.backends._large import LargeFiles, Written
from codomyrmex_cache.backends._rows import between, generations_from, generations_of, put_row, whole
from codomyrmex_cache.backends._schema import (
    CLEAR,
    COUNT,
    DROP,
    ENDED,
    FAILED,
    GET,
    LEASE,
    QUICK_GET,
    QUICK_GET_NOTING,
    QUICK_PUT,
    RENEW,
    SCAN,
)  # fmt: skip
from codomyrmex_cache.backends._upkeep import Upkeep
from codomyrmex_cache.backends.base import Begun, generation_name
from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["DEFAULT_MAX_BYTES", "FileBasedBackend"]

T = TypeVar("T")

DEFAULT_MAX_BYTES = 2**30
"""1 GiB for each namespace, so that a forgotten cache does not fill the disk."""

_LARGEST = 2**30
"""Bytes of one file read at most."""

_LARGE = 128 * 1024
"""From this length on a payload has a file of its own."""

_WRITERS = 4
"""Threads for writes from event loops; SQLite lets one write at a time anyway."""

_CLOCK_STEP = 1.0
"""Seconds by which the clocks of two processes of one machine may differ, by reading them at different moments."""

_LONGEST_LEASE = 61.0
"""Seconds from now at most that the end of a lease lies ahead."""

_TRIES = 5
"""Of a read whose file is replaced between the look at its row and the look at the file."""


class FileBasedBackend:
    """Entries of this machine, shared by its processes, kept over restarts.

    Nothing is created before the first use.  The folder is made with mode 0700 and its files with 0600, whatever the umask; one
    that is a link, another user's or writable by others is refused.  A damaged database is set aside, with what can be read of
    it kept; a folder that is removed is made anew.  Handles on the database are pooled, one per thread at work; a forked child
    opens its own.

    Args:
        directory: the folder for the database.  Created if missing.
        max_bytes: bound of what is stored, `None` for none; beyond it the entries go that were not read for the longest time.
        max_entries: the same for their number.
        durability: "kill" (what was stored survives the end of the process, however it comes) or "power" (and that of the
            machine, for an fsync with each write).
        mmap: map large payloads into memory instead of reading them, so that processes share the pages of large arrays, which
            are copied where somebody writes to them.  Who can write the folder could then change a value after it was
            handed out, or end the process by cutting a file.
        clock: seconds since 1970, by which leases end; the same for all processes.

    Raises:
        CacheConfigurationError: `durability` or a bound means nothing.

    >>> import tempfile
    >>> from codomyrmex_cache import Entry
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     backend = FileBasedBackend(folder)
    ...     backend.set(b"k", Entry(b"v"))
    ...     backend.get(b"k").value
    ...     backend.close()
    b'v'
    """

    payload: Literal["bytes"] = "bytes"
    chunked = lets_go = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int | None = DEFAULT_MAX_BYTES,
        max_entries: int | None = None,
        durability: Durability = "kill",
        mmap: bool = False,
        clock: Clock = time.time,
    ) -> None:
        if durability not in ("kill", "power"):
            raise CacheConfigurationError(f'durability={durability!r}: give "kill" or "power"')
        for name, bound in (("max_bytes", max_bytes), ("max_entries", max_entries)):
            if bound is not None and (type(bound) is not int or bound < 1):
                raise CacheConfigurationError(f"{name}={bound!r}: give a number >= 1, or None for no bound")
        self.directory = Path(directory)
        self._clock = clock
        self._large = LargeFiles(self.directory / "large", durable=durability == "power", mapped=mmap, most=_LARGEST)
        self._database = Database(self.directory, durability, self._opened)
        self.coherence = Coherence(self._database)
        self._upkeep = Upkeep(self._database, self.coherence, self._large, max_bytes, max_entries, clock)
        self._writers: tuple[int, Any] | None = None

    def _opened(self, handle: Handle) -> None:
        self._upkeep.opened(handle)

    def get(self, key: bytes) -> Entry | None:
        database = self._database
        handle = database.take()  # as in `reading`, whose frames cost as much as the statement
        try:
            row = handle.execute(GET, (key,)).fetchone()
        except BaseException as error:
            database.failed(handle, error)
            raise
        database.idle.append(handle)
        return self._entry(key, row)

    def _entry(self, key: bytes, row: Any) -> Entry | None:
        """The entry of a row, which may have been replaced, and its file with it, since the row was read."""
        for _ in range(_TRIES):
            if row is None:
                return None
            value, file, seq, expires_at = row
            self._upkeep.saw(seq)
            if file is None:
                return Entry(value, expires_at=expires_at)
            content = self._large.read(file, value)
            if content is not None:
                return Entry(content, expires_at=expires_at)
            with self._database.reading() as handle:
                row = handle.execute(GET, (key,)).fetchone()
        return None if row is None else Entry(row[0], expires_at=row[3])  # the head alone: it will not verify

    # The module sqlite3 takes a bytearray as it is, and asks for each bytes object whether it should be adapted (0.3 us).

    def quick_get(self, key: bytes) -> bytes | None:
        """The value, or the head of a large one, which does not verify; `None` also if no handle is at hand."""
        database = self._database
        if monotonic() > database.look_again:
            database.look()
        handle = database.take_soon()
        if handle is None:
            return None
        noting = self._upkeep.nearly_full
        try:
            row = handle.execute(QUICK_GET_NOTING if noting else QUICK_GET, (bytearray(key),)).fetchone()
        except BaseException as error:
            database.failed(handle, error)
            raise
        database.idle.append(handle)
        if row is None:
            return None
        if noting:
            self._upkeep.saw(row[1])
        return row[0]  # type: ignore[no-any-return]

    def quick_set(self, key: bytes, value: bytes, expires_at: float | None, now: float) -> bool:
        """Store a small value in one statement, if nobody else keeps cells; whether it was."""
        database, coherence = self._database, self.coherence
        if not coherence.number:
            return False
        if not database.writing_lock.acquire(blocking=False):
            return False
        try:
            handle = database.take_soon()
            if handle is None:
                return False
            before = handle.connection.total_changes
            coherence.begin_alone(key)
            try:
                handle.execute(QUICK_PUT, (bytearray(key), expires_at, bytearray(value), coherence.number))
            except sqlite3.IntegrityError:  # another regime
                coherence.number = 0
                database.idle.append(handle)
                return False
            except BaseException as error:
                database.failed(handle, error)
                raise
            finally:
                coherence.end_alone(key)
            changes = handle.connection.total_changes - before
            database.idle.append(handle)
            if database.look() is not handle.file:
                return False  # it went to a database that was removed or replaced, and is lost
        finally:
            database.writing_lock.release()
        self._upkeep.wrote(1, len(value), now)
        if changes > _CHANGES:
            self._upkeep.collect()
        return True

    def set(self, key: bytes, entry: Entry) -> None:
        self.set_many({key: entry})

    def has(self, key: bytes) -> bool:
        with self._database.reading() as handle:
            return handle.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone() is not None

    def delete(self, key: bytes) -> bool:
        return self.delete_many((key,)) > 0

    def scan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        with self._database.reading() as handle:
            rows = handle.execute(SCAN, between(prefix)).fetchall()
        return [(key, expires_at if isinstance(expires_at, float) else None) for key, expires_at in rows]

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        found = ((key, self.get(key)) for key in keys)
        return {key: entry for key, entry in found if entry is not None}

    def set_many(self, entries: Mapping[bytes, Entry]) -> None:
        with self._written(entries) as (handle, files):
            for key, entry in entries.items():
                put_row(handle, key, entry, files.get(key))

    @contextmanager
    def _written(self, entries: Mapping[bytes, Entry]) -> Iterator[tuple[Handle, dict[bytes, Written]]]:
        """A transaction in which the entries may be stored; their large payloads are in files already, unless it fails."""
        files: dict[bytes, Written] = {}
        kept: set[object] = set()
        try:
            for key, entry in entries.items():
                if isinstance(entry.value, Chunks) or len(entry.value) >= _LARGE:
                    if not files:
                        with self._database.reading():
                            pass  # the folder is there, and is nobody else's
                    files[key] = self._large.write(entry.value)
            with self.coherence.changing(tuple(entries)) as handle:
                yield handle, files
                is_garbage = handle.execute("SELECT 1 FROM garbage LIMIT 1").fetchone() is not None
                kept = {row[0] for key in files for row in handle.execute(_FILE_OF, (key,)).fetchall()}
        except BaseException:
            kept = set()
            raise
        finally:
            for file in files.values():
                file.settle(kept=file.number in kept)
        size = sum(len(entry.value) for entry in entries.values())
        for entry in entries.values():
            self._upkeep.wrote(len(entries), size, entry.created)
            break
        if is_garbage:
            self._upkeep.collect()

    def delete_many(self, keys: Sequence[bytes]) -> int:
        with self.coherence.changing(keys) as handle:
            handle.executemany(DROP, [(generation_name("k", key),) for key in keys])
            count = handle.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys]).rowcount
        self._upkeep.collect()
        return count

    def clear(self, prefix: bytes) -> int:
        with self.coherence.changing(None) as handle:
            self.coherence.mark(None)
            count = handle.execute(CLEAR, between(prefix)).rowcount
        self._upkeep.collect()
        return count

    def count(self, prefix: bytes) -> int:
        with self._database.reading() as handle:
            return int(handle.execute(COUNT, between(prefix)).fetchone()[0])

    def subscribe(self, evicted: Callable[[bytes], None]) -> None:
        self._upkeep.subscribe(evicted)

    # -- loads

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        begun, row = self._begin(key, (generation_name("k", key), *names), seconds)
        return begun if row is None else begun._replace(entry=self._entry(key, row))

    def _begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> tuple[Begun, Any]:
        if seconds:
            with self._database.reading() as handle:  # those who wait only look, and take no turn from those who write
                busy = self._busy(handle, key, names)[0]
            if busy is not None:
                return busy
        with self._database.writing() as handle:
            now, failed = self._clock(), 0
            if seconds:
                busy, failed = self._busy(handle, key, names)
                if busy is not None:
                    return busy
            row = handle.execute(GET, (key,)).fetchone()
            generations = generations_from(handle, names, now)
            if not seconds:
                return Begun(None, generations), row
            last = whole(handle.execute("SELECT last FROM tokens WHERE id = 1").fetchone())
            token = max(last + 1, int(now * _TOKENS))
            handle.execute("INSERT OR REPLACE INTO tokens VALUES (1, ?)", (token,))
            lease = (key, token, now, now + seconds, failed, b"".join(generations))
            handle.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)", lease)
            return Begun(None, generations, token, 0, failed), row

    def _busy(self, handle: Handle, key: bytes, names: Sequence[bytes]) -> tuple[tuple[Begun, Any] | None, int]:
        """What to say if another loads the key; the token of the last load that has failed."""
        row = handle.execute(LEASE, (key,)).fetchone()
        if row is None:
            return None, 0
        now, failed = self._clock(), whole((row[3],))
        if tuple(map(type, row)) != _LEASE_TYPES or not row[0]:
            return None, failed
        if not row[1] - _CLOCK_STEP <= now < row[2] <= now + _LONGEST_LEASE:
            return None, failed  # it has ended, or the clock was set back, or it is damaged
        if b"".join(value or b"" for value in generations_of(handle, names)) != row[4]:  # invalidated: doomed
            return None, failed
        return (Begun(None, (), 0, row[0], row[3]), handle.execute(GET, (key,)).fetchone()), failed

    def renew(self, key: bytes, lease: int, seconds: float) -> bool:
        with self._database.writing() as handle:
            now = self._clock()
            return handle.execute(RENEW, (now, now + seconds, key, lease)).rowcount > 0

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        with self._written({key: entry}) as (handle, files):
            unchanged = generations_of(handle, (generation_name("k", key), *names)) == list(begun.generations)
            if unchanged:
                put_row(handle, key, entry, files.get(key))
            handle.execute(ENDED, (key, begun.lease))
        return unchanged

    def end(self, key: bytes, begun: Begun, failed: bool) -> None:
        with self._database.writing() as handle:
            ours = handle.execute(FAILED if failed else ENDED, (key, begun.lease)).rowcount > 0
            if begun.generations and (ours or not begun.lease):
                handle.execute(DROP + " AND value = ?", (generation_name("k", key), begun.generations[0]))

    def generations(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]:
        with self._database.reading() as handle:
            return generations_of(handle, names)

    def revoke(self, names: Sequence[bytes]) -> None:
        with self._database.writing() as handle:
            handle.executemany(DROP, [(name,) for name in names])

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        name = generation_name("k", key)
        with self._written({key: new}) as (handle, files):
            same = self._is_stored(handle, key, old)
            if same:
                generation = None if fence else handle.execute(_WHOLE_GENERATION, (name,)).fetchone()
                put_row(handle, key, new, files.get(key))
                if generation is not None:
                    handle.execute("INSERT INTO generations VALUES (?, ?, ?)", generation)
        return same

    def discard(self, key: bytes, old: Entry) -> bool:
        with self.coherence.changing((key,)) as handle:
            return self._is_stored(handle, key, old) and bool(handle.execute(_DELETE, (key,)).rowcount)

    def _is_stored(self, handle: Handle, key: bytes, old: Entry | None) -> bool:
        row = handle.execute(GET, (key,)).fetchone()
        if row is None or old is None:
            return row is None and old is None
        if row[1] is None or row[0] == old.value:
            return bool(row[0] == old.value)
        found = self._large.read(row[1], row[0])
        return found is not None and bool(bytearray(found) == old.value)  # views would be compared byte by byte

    def close(self) -> None:
        self.coherence.close()
        self._database.close()

    # A point read costs 5 us in the event loop and 100 us through a thread, so reads run inline and writes do not.

    async def aget(self, key: bytes) -> Entry | None:
        return self.get(key)

    async def aset(self, key: bytes, entry: Entry) -> None:
        await self._off_loop(self.set, key, entry)

    async def ahas(self, key: bytes) -> bool:
        return self.has(key)

    async def adelete(self, key: bytes) -> bool:
        return await self._off_loop(self.delete, key)

    async def ascan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        return await self._off_loop(self.scan, prefix)

    async def abegin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        return await self._off_loop(self.begin, key, names, seconds)

    async def acommit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        return await self._off_loop(self.commit, key, entry, names, begun)

    async def aend(self, key: bytes, begun: Begun, failed: bool) -> None:
        await self._off_loop(self.end, key, begun, failed)

    async def agenerations(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]:
        return self.generations(key, names)

    async def arevoke(self, names: Sequence[bytes]) -> None:
        await self._off_loop(self.revoke, names)

    async def areplace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        return await self._off_loop(self.replace, key, old, new, fence)

    async def adiscard(self, key: bytes, old: Entry) -> bool:
        return await self._off_loop(self.discard, key, old)

    async def _off_loop(self, verb: Callable[..., T], *arguments: object) -> T:
        """In threads of our own: the loop's may all be waiting for this very write."""
        import asyncio  # with it come 57 modules, which a blocking program has no use for
        from concurrent.futures import ThreadPoolExecutor

        if self._writers is None or self._writers[0] != os.getpid():
            self._writers = (os.getpid(), ThreadPoolExecutor(_WRITERS, thread_name_prefix="codomyrmex_cache"))
        return await asyncio.get_running_loop().run_in_executor(self._writers[1], verb, *arguments)

    async def aclose(self) -> None:
        self.close()


_TOKENS = 1_000_000
"""Tokens begin with the microseconds of the clock, so that they also grow over a database that was lost."""

_LEASE_TYPES = (int, float, float, int, bytes)

_CHANGES = 2
"""Rows changed by a write over an entry without a file: its own, and the generation of its key."""

_FILE_OF = "SELECT file FROM entries WHERE key = ?"
_DELETE = "DELETE FROM entries WHERE key = ?"
_WHOLE_GENERATION = "SELECT name, value, used FROM generations WHERE name = ?"
