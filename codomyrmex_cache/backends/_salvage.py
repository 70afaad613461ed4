"""A damaged database: how it is told from other troubles, set aside, and what of it is kept.

What is kept need not be right: every entry is verified again when it is read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from codomyrmex_cache._folders import is_on_network, lock_file
from codomyrmex_cache.backends._schema import CREATE, PUT, VERSION
from codomyrmex_cache.errors import CacheBackendError

__all__ = ["alone", "check_schema", "create", "is_damage", "remove_draft", "salvage"]

_SECONDS = 2.0
"""Spent on reading a damaged database, while its callers wait; what is not read by then is lost."""

_ASIDE = "damaged.sqlite3"
_DRAFT = "new.sqlite3"

_DAMAGED = {
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_ERROR,  # our statements are right, so it is the tables that are not as they were
    sqlite3.SQLITE_CONSTRAINT,  # an index that does not agree with its table
}  # fmt: skip


def is_damage(error: BaseException, file: str) -> bool:
    """Whether the error says that the content of the database is not what SQLite wrote."""
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # found by this package: an older format, text that is none
        return type(error) is sqlite3.DatabaseError or "decode" in str(error)
    if code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in _DAMAGED:
        return True
    # one bit in the header makes a database read-only
    return code == sqlite3.SQLITE_READONLY and os.access(file, os.W_OK) and os.access(os.path.dirname(file), os.W_OK)


def check_schema(connection: sqlite3.Connection, file: str) -> None:
    """See that the database is in the format of this version.

    Raises:
        CacheBackendError: it is in that of a newer version.
        sqlite3.DatabaseError: in that of an older one, or it is not a database of this package.
    """
    connection.execute("BEGIN")
    noted = connection.execute("PRAGMA user_version").fetchone()[0]
    try:
        row = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        row = None
    connection.execute("COMMIT")
    if row is None or row[0] != noted:
        raise sqlite3.DatabaseError("not in a format of this package, or its two notes of it disagree")
    if noted < VERSION:
        raise sqlite3.DatabaseError(f"its format {noted} is older than {VERSION}")
    if noted > VERSION:
        raise CacheBackendError(
            f"{file} has the format {noted} of a newer version of codomyrmex_cache, this one knows {VERSION}: "
            f"upgrade, or choose another directory="
        )


@contextmanager
def alone(folder: Path, seconds: float) -> Iterator[None]:
    """The only process that makes or replaces the database of this folder.

    Raises:
        OSError: another one did so all the time.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not lock_file(descriptor, wait=True, seconds=seconds):
            raise BlockingIOError(f"another process is at work in {folder}")
        yield
    finally:
        os.close(descriptor)


def create(folder: Path, file: str) -> None:
    """Make a database without entries, complete from the moment it can be seen.  To be called `alone`."""
    draft = f"{folder}/{_DRAFT}"
    _remove(draft)
    with _made(draft) as new:
        new.execute("COMMIT")
    _remove(file)
    os.rename(draft, file)


def salvage(folder: Path, file: str) -> int:
    """Set the database aside and put a new one with what can be read of it in its place; how many entries those are.

    To be called `alone`.
    """
    draft, aside = f"{folder}/{_DRAFT}", f"{folder}/{_ASIDE}"
    _remove(draft)
    _remove(aside)
    with _made(draft) as new:
        kept = 0
        with suppress(OSError, sqlite3.Error):
            kept = _copied(file, new)
        new.execute("COMMIT")
    for suffix in ("", "-wal"):  # the database first, so that nobody opens it without its log
        with suppress(FileNotFoundError):
            os.rename(file + suffix, aside + suffix)
    _remove(file)
    os.rename(draft, file)
    return kept


def remove_draft(folder: Path) -> None:
    """Remove what a process left that died while it made a database."""
    draft = f"{folder}/{_DRAFT}"
    if os.path.exists(draft):
        with suppress(OSError), alone(folder, 0.0):
            _remove(draft)


@contextmanager
def _made(draft: str) -> Iterator[sqlite3.Connection]:
    """A new database with its tables, in a transaction.  Its -wal and -shm files will have its mode."""
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)  # made here because SQLite would use the umask
    os.close(descriptor)
    with closing(sqlite3.connect(draft, isolation_level=None)) as new:
        if not is_on_network(Path(draft).parent):
            new.execute("PRAGMA journal_mode = WAL")  # stays with the file
        new.execute("BEGIN")
        for statement in CREATE:
            new.execute(statement)
        yield new


def _remove(file: str) -> None:
    """With its log, which SQLite would replay over another database of this name."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.unlink(file + suffix)


def _copied(file: str, new: sqlite3.Connection) -> int:
    deadline, kept = time.monotonic() + _SECONDS, 0
    with closing(sqlite3.connect(f"file:{quote(file)}?mode=rw", uri=True, isolation_level=None)) as old:
        for row in _entries(old, deadline):
            with suppress(sqlite3.Error, TypeError):
                new.execute(PUT, row)
                kept += 1
        for table in ("generations", "tokens"):
            with suppress(sqlite3.Error):
                for row in old.execute(f"SELECT * FROM {table}"):  # noqa: S608  of the two names above
                    new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
    return kept


def _entries(old: sqlite3.Connection, deadline: float) -> Iterator[tuple[object, ...]]:
    """The rows that can be read, jumping over what cannot, farther each time."""
    place, step, last = 0, 1, 2**40
    with suppress(sqlite3.Error):
        last = old.execute("SELECT MAX(seq) FROM entries").fetchone()[0] or 0
    while place <= last and time.monotonic() < deadline:
        try:
            for row in old.execute(_READ, (place,)):
                yield row[1:]
                place, step = row[0] + 1, 1
                if time.monotonic() > deadline:
                    return
            return
        except sqlite3.Error:
            place, step = place + step, 2 * step


_READ = "SELECT seq, key, expires_at, file, size, value FROM entries WHERE seq >= ? ORDER BY seq"
