"""Entries in files of this machine: one SQLite database in WAL mode per namespace."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._folders import make_private_folder, tag_as_cache
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends.base import Begun, generation_name

__all__ = ["FileBasedBackend"]

T = TypeVar("T")

_BUSY_SECONDS = 5.0
"""How long a writer waits for another process's transaction before the write counts as failed."""

_FORK_PAUSE = 0.0002
"""Between two looks whether the last use of SQLite has ended, so that the process can be forked."""

_WRITERS = 4
"""Threads for writes from event loops; SQLite lets one write at a time anyway."""

_SWEEP_EVERY = 256
"""Writes of one process between two deletions of expired rows."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, expires_at REAL);
CREATE INDEX IF NOT EXISTS expiring ON entries (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS generations (name BLOB PRIMARY KEY, value BLOB NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (key BLOB PRIMARY KEY,
    token INTEGER NOT NULL, since REAL NOT NULL, until REAL NOT NULL, failed INTEGER NOT NULL,
    generations BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (id INTEGER PRIMARY KEY, last INTEGER NOT NULL);
"""

_KEPT_SECONDS = 86_400.0
"""A load that takes longer than a day is not stored: by then the generation of its key may have been swept."""

_MOST_TAGS = 100_000
"""Generations kept; of more, those go that no load has asked for for the longest time, which costs misses at most."""


class FileBasedBackend:
    """Entries of this machine, shared by its processes, kept over restarts.

    Nothing is created before the first use.  The folder is made with mode 0700 and the database with 0600, whatever the umask.
    Connections are pooled, one per thread at work; a forked child opens its own.

    Args:
        directory: the folder for the database.  Created if missing.
        clock: seconds since 1970, by which leases end; the same for all processes.

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

    def __init__(self, directory: str | os.PathLike[str], *, clock: Clock = time.time) -> None:
        self.directory = Path(directory)
        self._clock = clock
        self._file = self.directory / "entries.sqlite3"
        self._idle: deque[tuple[tuple[int, int] | None, sqlite3.Connection]] = deque()
        self._process = os.getpid()
        self._inherited: list[object] = []
        self._writes = 0
        self._writing = Lock()  # SQLite lets one write at a time anyway
        self._turnstile = Lock()  # held while a fork is under way
        self._inside: set[object] = set()  # one for each use of SQLite that is under way
        renew_after_fork(self)
        self._writers: tuple[int, ThreadPoolExecutor] | None = None

    def get(self, key: bytes) -> Entry | None:
        with self._connection() as connection:
            return self._entry(connection, key)

    def set(self, key: bytes, entry: Entry) -> None:
        self.set_many({key: entry})

    def has(self, key: bytes) -> bool:
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone() is not None

    def delete(self, key: bytes) -> bool:
        return self.delete_many((key,)) > 0

    def scan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        with self._connection() as connection:
            return connection.execute(_SCAN, _range(prefix)).fetchall()

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        found = ((key, self.get(key)) for key in keys)
        return {key: entry for key, entry in found if entry is not None}

    def set_many(self, entries: Mapping[bytes, Entry]) -> None:
        with self._transaction() as connection:
            for key, entry in entries.items():
                self._put(connection, key, entry)

    def _put(self, connection: sqlite3.Connection, key: bytes, entry: Entry, *, fence: bool = True) -> None:
        connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (key, entry.value, entry.expires_at))
        if fence:
            connection.execute(_DROP, (generation_name("k", key),))
        self._writes += 1
        if self._writes % _SWEEP_EVERY == 0:
            self._sweep(connection, entry.created)

    def _sweep(self, connection: sqlite3.Connection, now: float) -> None:
        connection.execute("DELETE FROM entries WHERE expires_at <= ?", (now,))
        long_ago = self._clock() - _KEPT_SECONDS
        connection.execute("DELETE FROM generations WHERE name >= ? AND name < ? AND used < ?", (b"k", b"l", long_ago))
        connection.execute("DELETE FROM leases WHERE until < ?", (long_ago,))
        connection.execute(_TRIM, (_MOST_TAGS,))

    def delete_many(self, keys: Sequence[bytes]) -> int:
        with self._transaction() as connection:
            connection.executemany(_DROP, [(generation_name("k", key),) for key in keys])
            return connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys]).rowcount

    def clear(self, prefix: bytes) -> int:
        with self._transaction() as connection:
            return connection.execute(_CLEAR, _range(prefix)).rowcount

    def count(self, prefix: bytes) -> int:
        with self._connection() as connection:
            return int(connection.execute(_COUNT, _range(prefix)).fetchone()[0])

    # -- loads

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        names = (generation_name("k", key), *names)
        if seconds:
            with self._connection() as connection:  # those who wait only look, and take no turn from those who write
                busy = self._busy(connection, key, names)
            if busy is not None:
                return busy
        with self._transaction() as connection:
            now = self._clock()
            if seconds and (busy := self._busy(connection, key, names)) is not None:
                return busy
            entry = self._entry(connection, key)
            generations = tuple(_generation(connection, name, now) for name in names)
            if not seconds:
                return Begun(entry, generations)
            failed = connection.execute("SELECT failed FROM leases WHERE key = ?", (key,)).fetchone()
            token = 1 + (connection.execute("SELECT MAX(last) FROM tokens").fetchone()[0] or 0)
            connection.execute("INSERT OR REPLACE INTO tokens VALUES (1, ?)", (token,))
            lease = (key, token, now, now + seconds, failed[0] if failed else 0, b"".join(generations))
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)", lease)
            return Begun(entry, generations, token, 0, lease[4])

    def _busy(self, connection: sqlite3.Connection, key: bytes, names: Sequence[bytes]) -> Begun | None:
        row = connection.execute(_LEASE, (key,)).fetchone()
        now = self._clock()
        if row is None or not row[0] or not row[1] - _CLOCK_STEP <= now < row[2]:  # a clock set back ends leases, too
            return None
        if b"".join(value or b"" for value in _values(connection, names)) != row[4]:  # invalidated: doomed
            return None
        return Begun(self._entry(connection, key), (), 0, row[0], row[3])

    def _entry(self, connection: sqlite3.Connection, key: bytes) -> Entry | None:
        row = connection.execute(_GET, (key,)).fetchone()
        return None if row is None else Entry(row[0], expires_at=row[1])

    def renew(self, key: bytes, lease: int, seconds: float) -> bool:
        with self._transaction() as connection:
            now = self._clock()
            found = connection.execute(_RENEW, (now, now + seconds, key, lease))
            return found.rowcount > 0

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        with self._transaction() as connection:
            unchanged = _values(connection, (generation_name("k", key), *names)) == list(begun.generations)
            if unchanged:
                self._put(connection, key, entry)
            connection.execute(_ENDED, (key, begun.lease))
            return unchanged

    def end(self, key: bytes, begun: Begun, failed: bool) -> None:
        with self._transaction() as connection:
            ours = connection.execute(_FAILED if failed else _ENDED, (key, begun.lease)).rowcount > 0
            if begun.generations and (ours or not begun.lease):
                connection.execute(_DROP + " AND value = ?", (generation_name("k", key), begun.generations[0]))

    def generations(self, names: Sequence[bytes]) -> list[bytes | None]:
        with self._connection() as connection:
            return _values(connection, names)

    def revoke(self, names: Sequence[bytes]) -> None:
        with self._transaction() as connection:
            connection.executemany(_DROP, [(name,) for name in names])

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        with self._transaction() as connection:
            row = connection.execute(_GET, (key,)).fetchone()
            same = (None if row is None else row[0]) == (None if old is None else old.value)
            if same:
                self._put(connection, key, new, fence=fence)
            return same

    def close(self) -> None:
        with self._using_sqlite():
            while self._idle:
                self._idle.pop()[1].close()

    # A point read costs 13 us in the event loop and 130 us through a thread, so reads run inline and writes do not.

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

    async def agenerations(self, names: Sequence[bytes]) -> list[bytes | None]:
        return self.generations(names)

    async def arevoke(self, names: Sequence[bytes]) -> None:
        await self._off_loop(self.revoke, names)

    async def areplace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        return await self._off_loop(self.replace, key, old, new, fence)

    async def _off_loop(self, verb: Callable[..., T], *arguments: object) -> T:
        """In threads of our own: the loop's may all be waiting for this very write."""
        if self._writers is None or self._writers[0] != os.getpid():
            self._writers = (os.getpid(), ThreadPoolExecutor(_WRITERS, thread_name_prefix="codomyrmex_cache"))
        return await asyncio.get_running_loop().run_in_executor(self._writers[1], verb, *arguments)

    async def aclose(self) -> None:
        self.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """An idle connection or a new one; given back afterwards unless it failed."""
        with self._using_sqlite():
            file, connection = self._opened()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.append((file, connection))

    @contextmanager
    def _using_sqlite(self) -> Iterator[None]:
        user = object()
        try:
            with self._turnstile:
                self._inside.add(user)
            yield
        finally:
            self._inside.discard(user)

    def _opened(self) -> tuple[tuple[int, int] | None, sqlite3.Connection]:
        if self._process != os.getpid():
            # SQLite connections must neither be used nor closed in a forked child: closing would drop the parent's locks
            self._inherited.extend(self._idle)
            self._idle = deque()
            self._process = os.getpid()
        file = self._identity()
        connection = None
        while connection is None and self._idle:
            opened, connection = self._idle.pop()
            if opened != file:  # the folder was removed, perhaps made anew: this one is on a file that has no name
                connection.close()
                connection = None
        if connection is None:
            connection = _retry_while_locked(self._connect)
            file = self._identity()
        return file, connection

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode of the database file, `None` if there is none."""
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if not self._writing.acquire(timeout=_BUSY_SECONDS):  # else threads would wait for a locked database one by one
            raise sqlite3.OperationalError("database is locked: another thread of this process has waited for it all the time")
        try:
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        finally:
            self._writing.release()

    # SQLite keeps book in its own memory of the locks that a process holds.  A child forked in the middle of a transaction
    # inherits that book, and finds its database locked for ever by a transaction that it does not have.  It also inherits
    # SQLite's mutexes, which reading, opening and closing take as well: one that is held at the moment stays so for ever.

    def before_fork(self) -> None:
        self._turnstile.acquire()
        deadline = time.monotonic() + 2 * _BUSY_SECONDS
        while self._inside and time.monotonic() < deadline:
            time.sleep(_FORK_PAUSE)

    def after_fork_in_parent(self) -> None:
        self._turnstile.release()

    def after_fork(self) -> None:
        self._writing, self._turnstile, self._inside = Lock(), Lock(), set()

    def _connect(self) -> sqlite3.Connection:
        self._prepare_folder()
        connection = sqlite3.connect(
            self._file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare_folder(self) -> None:
        if self._file.exists():
            return
        make_private_folder(self.directory)
        tag_as_cache(self.directory)
        # the database file is made here because SQLite would use the umask; its -wal and -shm files copy this mode
        descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)


_CLOCK_STEP = 1.0
"""Seconds by which the clocks of two processes of one machine may differ, by reading them at different moments."""

_GET = "SELECT value, expires_at FROM entries WHERE key = ?"
_LEASE = "SELECT token, since, until, failed, generations FROM leases WHERE key = ?"
_DROP = "DELETE FROM generations WHERE name = ?"
_ENDED = "DELETE FROM leases WHERE key = ? AND token = ?"
_FAILED = "UPDATE leases SET failed = token, token = 0 WHERE key = ? AND token = ?"
_RENEW = "UPDATE leases SET since = ?, until = ? WHERE key = ? AND token = ?"
_TRIM = "DELETE FROM generations WHERE name IN (SELECT name FROM generations ORDER BY used DESC LIMIT -1 OFFSET ?)"
_SCAN = "SELECT key, expires_at FROM entries WHERE key >= ? AND key < ?"
_CLEAR = "DELETE FROM entries WHERE key >= ? AND key < ?"
_COUNT = "SELECT COUNT(*) FROM entries WHERE key >= ? AND key < ?"


def _values(connection: sqlite3.Connection, names: Sequence[bytes]) -> list[bytes | None]:
    rows = (connection.execute("SELECT value FROM generations WHERE name = ?", (name,)).fetchone() for name in names)
    return [None if row is None else row[0] for row in rows]


def _generation(connection: sqlite3.Connection, name: bytes, now: float) -> bytes:
    row = connection.execute("SELECT value, used FROM generations WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = (os.urandom(8), -_KEPT_SECONDS)
    if now - row[1] > _KEPT_SECONDS / 24 or row[1] > now:
        connection.execute("INSERT OR REPLACE INTO generations VALUES (?, ?, ?)", (name, row[0], now))
    return bytes(row[0])


def _range(prefix: bytes) -> tuple[bytes, bytes]:
    """Where the keys of a prefix begin and end; UTF-8 and digits never hold 0xff."""
    return prefix, prefix + b"\xff"


def _retry_while_locked(connect: Callable[[], T]) -> T:
    """Switching a new database to WAL fails at once, without SQLite's own waiting, while another process does the same."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return connect()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
