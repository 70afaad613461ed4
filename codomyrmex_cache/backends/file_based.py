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
from typing import Literal, TypeVar

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._folders import make_private_folder, tag_as_cache

__all__ = ["FileBasedBackend"]

T = TypeVar("T")

_BUSY_SECONDS = 5.0
"""How long a writer waits for another process's transaction before the write counts as failed."""

_WRITERS = 4
"""Threads for writes from event loops; SQLite lets one write at a time anyway."""

_SWEEP_EVERY = 256
"""Writes of one process between two deletions of expired rows."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, expires_at REAL);
CREATE INDEX IF NOT EXISTS expiring ON entries (expires_at) WHERE expires_at IS NOT NULL;
"""


class FileBasedBackend:
    """Entries of this machine, shared by its processes, kept over restarts.

    Nothing is created before the first use.  The folder is made with mode 0700 and the database with 0600, whatever the umask.
    Connections are pooled, one per thread at work; a forked child opens its own.

    Args:
        directory: the folder for the database.  Created if missing.

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

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._file = self.directory / "entries.sqlite3"
        self._idle: deque[tuple[tuple[int, int] | None, sqlite3.Connection]] = deque()
        self._process = os.getpid()
        self._inherited: list[object] = []
        self._writes = 0
        self._writers: tuple[int, ThreadPoolExecutor] | None = None

    def get(self, key: bytes) -> Entry | None:
        with self._connection() as connection:
            row = connection.execute("SELECT value, expires_at FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else Entry(row[0], expires_at=row[1])

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
        rows = [(key, entry.value, entry.expires_at) for key, entry in entries.items()]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO entries (key, value, expires_at) VALUES (?, ?, ?)", rows)
            self._writes += 1
            if self._writes % _SWEEP_EVERY == 0:
                now = max(entry.created for entry in entries.values())
                connection.execute("DELETE FROM entries WHERE expires_at <= ?", (now,))

    def delete_many(self, keys: Sequence[bytes]) -> int:
        with self._transaction() as connection:
            return connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys]).rowcount

    def clear(self, prefix: bytes) -> int:
        with self._transaction() as connection:
            return connection.execute(_CLEAR, _range(prefix)).rowcount

    def count(self, prefix: bytes) -> int:
        with self._connection() as connection:
            return int(connection.execute(_COUNT, _range(prefix)).fetchone()[0])

    def close(self) -> None:
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
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append((file, connection))

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode of the database file, `None` if there is none."""
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

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


_SCAN = "SELECT key, expires_at FROM entries WHERE key >= ? AND key < ?"
_CLEAR = "DELETE FROM entries WHERE key >= ? AND key < ?"
_COUNT = "SELECT COUNT(*) FROM entries WHERE key >= ? AND key < ?"


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
