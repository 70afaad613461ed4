"""A damaged database: how it is told from other troubles, set aside, and what of it is kept.

What is kept need not be right: every entry is verified again when it is read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from errno import ENOSPC
from functools import cache
from pathlib import Path
from threading import Lock
from urllib.parse import quote

from codomyrmex_cache._folders import is_on_network, lock_file
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._schema import CREATE, PUT, UNSETTLE, VERSION
from codomyrmex_cache.errors import CacheBackendError

__all__ = ["alone", "check_schema", "create", "is_damage", "is_doubtful", "is_sound", "remove_draft", "salvage"]

_SECONDS = 2.0
"""Spent on reading a damaged database, while its callers wait; what is not read by then is lost."""

_ASIDE = "damaged.sqlite3"
_DRAFT = "new.sqlite3"

_DAMAGED = {
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_ERROR,  # our statements are right, so it is the tables that are not as they were
    sqlite3.SQLITE_CONSTRAINT,  # an index that does not agree with its table
}  # fmt: skip
_DOUBTFUL = {
    sqlite3.SQLITE_READONLY,  # one bit in the header makes a database read-only, and so does a file that cannot be opened
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ,
}  # fmt: skip


def is_damage(error: BaseException) -> bool:
    """Whether the error says that the content of the database is not what SQLite wrote."""
    if not isinstance(error, sqlite3.Error):
        # what came out of it is of another type than what was put in, or SQLite's complaint about a name is no text
        return isinstance(error, (TypeError, ValueError, OverflowError))
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # found by this package: an older format, text that is none
        return type(error) is sqlite3.DatabaseError or "decode" in str(error)
    return code in _DOUBTFUL or code & 0xFF in _DAMAGED


def is_doubtful(error: BaseException) -> bool:
    """Whether something else than damage could be behind it."""
    return getattr(error, "sqlite_errorcode", None) in _DOUBTFUL


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


class _Alone:
    """Locks of this process, one for each folder."""

    def __init__(self) -> None:
        self._locks: dict[str, Lock] = {}
        renew_after_fork(self)

    def lock(self, folder: Path) -> Lock:
        return self._locks.setdefault(os.path.abspath(folder), Lock())

    def after_fork(self) -> None:
        self._locks = {}


@cache
def _alone() -> _Alone:
    return _Alone()


@contextmanager
def alone(folder: Path, seconds: float) -> Iterator[None]:
    """The only process, and thread of this process, that opens, makes or replaces the database of this folder.

    The folder's lock is another one when the folder has been removed and made anew, this process's own is not; and it is
    inside one process that SQLite's locks do not hold.

    Raises:
        OSError: another one did so all the time.
    """
    lock = _alone().lock(folder)
    if not lock.acquire(timeout=seconds):
        raise BlockingIOError(f"another thread is at work in {folder}")
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not lock_file(descriptor, wait=True, seconds=seconds):
                raise BlockingIOError(f"another process is at work in {folder}")
            yield
        finally:
            os.close(descriptor)
    finally:
        lock.release()


def is_sound(file: str) -> bool:
    """A second opinion on a database that was found damaged: whether a fresh look finds nothing wrong, or cannot tell.

    A file that could not be opened for want of descriptors, or a read that failed once, looks like damage to SQLite, too.
    To be called `alone`.
    """
    deadline = time.monotonic() + _SECONDS
    try:
        os.close(os.open(os.devnull, os.O_RDWR))
        with closing(_opened(file)) as connection:
            check_schema(connection, file)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN)
    except OSError:
        return True
    except Exception:  # whatever a damaged database may cause
        return False


def create(folder: Path, file: str) -> None:
    """Make a database without entries, complete from the moment it can be seen.  To be called `alone`.

    Raises:
        OSError, sqlite3.Error: that could not be done; nothing is left of it.
    """
    with _made(f"{folder}/{_DRAFT}") as new:
        new.execute("COMMIT")
    _remove(file)
    os.rename(f"{folder}/{_DRAFT}", file)


def salvage(folder: Path, file: str) -> int:
    """Set the database aside and put a new one with what can be read of it in its place; how many entries those are.

    To be called `alone`.  Writers are locked out until then, as far as that can be; who waited for the lock has to look
    whether the database is still the same.

    Raises:
        OSError, sqlite3.Error: there is no room for another; then the old one stays.
    """
    draft, aside = f"{folder}/{_DRAFT}", f"{folder}/{_ASIDE}"
    kept = 0
    with ExitStack() as stack:
        with _made(draft) as new:
            with suppress(Exception):  # whatever a damaged database may cause
                old = stack.enter_context(closing(_opened(file)))
                with suppress(sqlite3.Error):
                    old.execute("BEGIN IMMEDIATE")
                kept = _copied(old, new)
            new.execute(UNSETTLE)  # others go by what they know of the old one, for the moment
            new.execute("COMMIT")
        _remove(aside)
        for suffix in ("", "-wal"):  # the database first, so that nobody opens it without its log
            with suppress(FileNotFoundError):
                os.rename(file + suffix, aside + suffix)
        _remove(file)
        os.rename(draft, file)
    return kept


def remove_draft(folder: Path) -> None:
    """Remove what a process left that died while it made a database."""
    draft = f"{folder}/{_DRAFT}"
    if any(os.path.lexists(draft + suffix) for suffix in _SUFFIXES):
        with suppress(OSError), alone(folder, 0.0):
            _remove(draft)


def _opened(file: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(file)}?mode=rw", uri=True, isolation_level=None, timeout=_SECONDS)


@contextmanager
def _made(draft: str) -> Iterator[sqlite3.Connection]:
    """A new database with its tables, in a transaction.  Its -wal and -shm files will have its mode."""
    _remove(draft)
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # made here because SQLite would use the umask
        finally:
            os.close(descriptor)
        with closing(_opened(draft)) as new:
            if not is_on_network(Path(draft).parent):
                new.execute("PRAGMA journal_mode = WAL").fetchone()  # stays with the file
            new.execute("BEGIN")
            for statement in CREATE:
                new.execute(statement)
            yield new
            new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if os.path.lexists(f"{draft}-wal"):  # closing could not bring it all into the database
            raise OSError(ENOSPC, "the new database is not complete", draft)
    except BaseException:
        with suppress(OSError):
            _remove(draft)
        raise


_SUFFIXES = ("", "-wal", "-shm", "-journal")


def _remove(file: str) -> None:
    """With its log, which SQLite would replay over another database of this name."""
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            os.unlink(file + suffix)


def _copied(old: sqlite3.Connection, new: sqlite3.Connection) -> int:
    deadline, kept = time.monotonic() + _SECONDS, 0
    for row in _entries(old, deadline):
        with suppress(Exception):
            new.execute(PUT, row)
            kept += 1
    for table in ("generations", "tokens"):
        with suppress(Exception):
            for row in old.execute(f"SELECT * FROM {table}"):  # noqa: S608  of the two names above
                with suppress(sqlite3.Error):
                    new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
    return kept


def _entries(old: sqlite3.Connection, deadline: float) -> Iterator[tuple[object, ...]]:
    """The rows that can be read, jumping over what cannot, farther each time."""
    place, step, last = 0, 1, 2**40
    with suppress(Exception):
        last = old.execute("SELECT MAX(seq) FROM entries").fetchone()[0] or 0
    while place <= last and time.monotonic() < deadline:
        try:
            for row in old.execute(_READ, (place,)):
                yield row[1:]
                place, step = row[0] + 1, 1
                if time.monotonic() > deadline:
                    return
            return
        except Exception:  # as above; counted by what is missing
            place, step = place + step, 2 * step


_READ = "SELECT seq, key, expires_at, file, size, value FROM entries WHERE seq >= ? ORDER BY seq"
