"""One SQLite database: its folder, its connections, its transactions, forks, and what is done when it is damaged or removed."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOENT
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar
from urllib.parse import quote

from codomyrmex_cache._folders import check_private, is_on_network, make_private_folder, sync_folder, tag_as_cache
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._log import Log
from codomyrmex_cache.backends._salvage import (
    alone,
    check_schema,
    create,
    is_damage,
    is_doubtful,
    is_sound,
    remove_draft,
    salvage,
)  # fmt: skip

__all__ = ["BUSY_SECONDS", "Database", "Durability", "Handle"]

Durability = Literal["kill", "power"]
T = TypeVar("T")

BUSY_SECONDS = 3.0
"""How long a writer waits for another process's transaction before the write counts as failed."""

_LOOK_SECONDS = 0.05
"""Reads notice within this time that the database has been removed or replaced; all else looks every time (1.5 us)."""

_FORK_PAUSE = 0.0002
"""Between two looks whether the last use of SQLite has ended, so that the process can be forked."""

_REMOVALS = 3
"""Times that a database is opened again because its folder has just been removed."""

_DOUBT_SECONDS = 1.0

_CACHE_KIBIBYTES = 8192
"""Pages kept by each connection."""

logger = Log(__name__)


def _nothing() -> None:
    """Stands for nothing to be done."""


Identity = tuple[int, int] | None


class Handle:
    """A connection and a cursor of its own, used by one thread at a time.  `file` is what it was opened on."""

    __slots__ = ("connection", "cursor", "execute", "executemany", "file")

    def __init__(self, connection: sqlite3.Connection, file: Identity) -> None:
        self.connection = connection
        self.cursor = connection.cursor()  # making one for each statement costs a tenth of a point read
        self.execute = self.cursor.execute
        self.executemany = self.cursor.executemany
        self.file = file

    def close(self) -> None:
        """Roll back and close.

        Closing the connection alone leaves it open, with its transaction and its locks, as long as somebody holds a statement
        of it: the cursor, in a traceback, say.
        """
        for step in (self.cursor.close, self.connection.rollback, self.connection.close):
            with suppress(sqlite3.Error):
                step()


class Database:
    """`entries.sqlite3` in its folder.  Nothing is made before the first use.

    Args:
        folder: made with mode 0700 if missing, refused if it is not this user's own.
        durability: "kill": what was committed survives the process; "power": it survives the machine (an fsync each time).
        opened: called with a handle when a process opens this database for the first time, or anew after it was replaced.
    """

    def __init__(self, folder: Path, durability: Durability, opened: Callable[[Handle], None]) -> None:
        self.folder = folder
        self.file = f"{folder}/entries.sqlite3"
        self._durability = durability
        self._when_opened = opened
        self.idle: deque[Handle] = deque()
        self._count = 0  # of handles, idle or not
        self.identity: Identity = None
        self._doubted: dict[Identity, float] = {}  # which was found damaged and then not, and when first
        self._ready: Identity = None  # for which `opened` has been called
        self.look_again = 0.0
        self.halted = False  # while a fork is under way
        self._inherited: list[Handle] = []
        self._renew_locks()
        renew_after_fork(self)

    def _renew_locks(self) -> None:
        self.writing_lock = Lock()  # SQLite lets one write at a time anyway
        self._turnstile = Lock()  # held while a fork is under way
        self._counting = Lock()

    # -- handles

    def take(self) -> Handle:
        """A handle on the database as it is now; to be put back among the `idle`, or `failed`."""
        self.look()
        return self.take_idle() or self._open()

    def take_soon(self) -> Handle | None:
        """The same without looking at the file, opening anything or waiting; who calls it looks every 50 ms (`look_again`)."""
        try:
            handle = self.idle.pop()
        except IndexError:
            return None
        if self.halted or handle.file is not self.identity:
            self.idle.append(handle)  # the long way finds out
            return None
        return handle

    def take_idle(self) -> Handle | None:
        """An idle handle on what `look` has seen, if there is one; waits while a fork is under way."""
        while True:
            try:
                handle = self.idle.pop()
            except IndexError:
                return None
            if self.halted:
                self.idle.append(handle)
                with self._turnstile:
                    continue
            if handle.file == self.identity:
                handle.file = self.identity
                return handle
            self.drop(handle)

    def drop(self, handle: Handle) -> None:
        """Close it, which rolls its transaction back."""
        with self._counting:
            self._count -= 1
        handle.close()

    @contextmanager
    def reading(self) -> Iterator[Handle]:
        """A handle within the block.  If the database turns out to be damaged, it is replaced before the error goes on."""
        handle = self.take()
        try:
            yield handle
        except BaseException as error:
            self.failed(handle, error)
            raise
        self.idle.append(handle)

    @contextmanager
    def writing(self, ended: Callable[[], None] = _nothing) -> Iterator[Handle]:
        """The same in a transaction, which is committed at the end of the block; then `ended` is called, however it went."""
        with self.turn(), self._transaction(self._begun(), ended) as handle:
            yield handle

    @contextmanager
    def _transaction(self, handle: Handle, ended: Callable[[], None]) -> Iterator[Handle]:
        """A transaction that has begun, to its end."""
        try:
            yield handle
            handle.execute("COMMIT")
        except BaseException as error:
            self.failed(handle, error)
            raise
        finally:
            ended()
        self.idle.append(handle)

    @contextmanager
    def writing_soon(self, ended: Callable[[], None] = _nothing) -> Iterator[Handle | None]:
        """The same, or `None` if that would mean to wait for anybody."""
        handle = None
        if self.writing_lock.acquire(blocking=False):
            try:
                handle = self._begun_soon()
                if handle is not None:
                    with self._transaction(handle, ended):
                        yield handle
            finally:
                self.writing_lock.release()
        if handle is None:
            yield None

    def _begun_soon(self) -> Handle | None:
        self.look()
        handle = self.take_soon()
        if handle is None:
            return None
        try:
            handle.execute("PRAGMA busy_timeout = 0")
            with suppress(sqlite3.OperationalError):  # somebody is writing
                handle.execute("BEGIN IMMEDIATE")
            handle.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
        except BaseException as error:
            self.failed(handle, error)
            raise
        if handle.connection.in_transaction and self.look() is handle.file:
            return handle
        if handle.connection.in_transaction:
            self.drop(handle)
        else:
            self.idle.append(handle)
        return None

    def _begun(self) -> Handle:
        """A handle in a transaction; what is written to a database that was replaced meanwhile would be lost."""
        for _ in range(_REMOVALS):
            handle = self.take()
            try:
                handle.execute("BEGIN IMMEDIATE")
            except BaseException as error:
                self.failed(handle, error)
                raise
            if self.look() == handle.file:
                return handle
            self.drop(handle)
        raise FileNotFoundError(ENOENT, "it is being removed again and again", self.file)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One writer of this process at a time, or threads would wait for a locked database one after the other."""
        if not self.writing_lock.acquire(timeout=BUSY_SECONDS):
            raise sqlite3.OperationalError("database is locked: another thread of this process has waited for it all the time")
        try:
            yield
        finally:
            self.writing_lock.release()

    def failed(self, handle: Handle, error: BaseException) -> None:
        """Drop the handle, and replace the database if it is damaged."""
        handle.close()
        try:
            if is_damage(error):
                self._replace(handle.file, error)
        finally:  # until then no fork: a child would inherit the lock on the folder
            with self._counting:
                self._count -= 1

    def close(self) -> None:
        """Close what is idle; a later use opens anew."""
        self._drop_idle()
        self._ready = None

    def _drop_idle(self) -> None:
        while (handle := self.take_idle()) is not None:
            self.drop(handle)

    def look(self) -> Identity:
        """Device and inode of the database, `None` if there is none: the folder may have been removed and made anew."""
        self.look_again = time.monotonic() + _LOOK_SECONDS
        try:
            found = os.stat(self.file)
        except OSError:
            self.identity = None
        else:
            if self.identity != (identity := (found.st_dev, found.st_ino)):
                self.identity = identity  # else the same object stays, which is quicker to compare
        return self.identity

    # -- opening

    def _open(self) -> Handle:
        with self._turnstile, self._counting:
            self._count += 1
        try:
            handle = _retry_while_locked(self._connect)
        except BaseException:
            with self._counting:
                self._count -= 1
            raise
        if self._ready != handle.file:
            self._ready = handle.file
            try:
                remove_draft(self.folder)
                self._when_opened(handle)
            except BaseException as error:
                self.failed(handle, error)
                raise
        return handle

    def _connect(self) -> Handle:
        if not os.path.lexists(self.file):
            make_private_folder(self.folder)
        check_private(self.folder)
        identity: Identity = None
        try:
            # Alone, because SQLite opens the database first and its log and the memory that it shares with others after that,
            # by their names: it must not be another's by then, which it would truncate under their feet.
            with alone(self.folder, BUSY_SECONDS):
                if self.look() is None:
                    create(self.folder, self.file)
                    if self._durability == "power":
                        sync_folder(self.folder)
                        sync_folder(self.folder.parent)
                    with suppress(OSError):
                        tag_as_cache(self.folder)
                identity = self.look()
                return self._connected(identity)
        except BaseException as error:
            if identity is not None and is_damage(error):  # else it was the making of it that failed
                self._replace(identity, error)
            raise

    def _connected(self, identity: Identity) -> Handle:
        connection = sqlite3.connect(
            f"file:{quote(self.file)}?mode=rw", uri=True,
            timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64,
        )  # fmt: skip
        handle = Handle(connection, identity)
        try:
            self._configure(handle)
            check_schema(connection, self.file)
            if self.look() != identity:
                raise FileNotFoundError(ENOENT, "it was removed while it was opened", self.file)
        except BaseException:
            handle.close()
            raise
        return handle

    def _configure(self, handle: Handle) -> None:
        if is_on_network(self.folder):
            handle.execute("PRAGMA journal_mode = DELETE")
            _warn_of_network(self.folder)
        else:
            handle.execute("PRAGMA journal_mode = WAL").fetchone()
        handle.execute(f"PRAGMA synchronous = {'FULL' if self._durability == 'power' else 'NORMAL'}")
        handle.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        handle.execute("PRAGMA trusted_schema = OFF")  # functions in planted triggers do not run
        handle.execute("PRAGMA cell_size_check = ON")

    def _replace(self, identity: Identity, error: BaseException) -> None:
        """Set the damaged database aside and put what can be read of it into a new one; by one process, the others wait."""
        with suppress(OSError, sqlite3.Error), alone(self.folder, BUSY_SECONDS):
            self.look()
            if self.identity != identity:
                return  # done by another
            if is_doubtful(error) and self._doubts(identity, error):
                return
            kept = salvage(self.folder, self.file)
            logger.warning(
                "%s is damaged (%s): set aside, %d entries kept in a new database", self.file, error, kept
            )  # fmt: skip
        self.look()

    def _doubts(self, identity: Identity, error: BaseException) -> bool:
        """Whether the error may have another cause than damage.  For a second only: then it is believed."""
        now = time.monotonic()
        since = self._doubted.setdefault(identity, now)
        self._doubted = {identity: since}
        if now - since > _DOUBT_SECONDS:
            return False
        self._drop_idle()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY and self._count > 1:
            return True  # all handles of a process share how SQLite could open its memory, and others are in use
        return is_sound(self.file)

    # SQLite keeps book in its own memory of the locks that a process holds.  A child forked in the middle of a transaction
    # inherits that book, and finds its database locked for ever by a transaction that it does not have.  It also inherits
    # SQLite's mutexes, which reading, opening and closing take as well: one that is held at the moment stays so for ever.
    # So a fork waits until all handles are idle.  A handle is taken first and `_halted` is read after that, a fork sets
    # `_halted` first and counts handles after that: whichever comes first, one of them sees the other.

    def before_fork(self) -> None:
        self._turnstile.acquire()
        self.halted = True
        deadline = time.monotonic() + 2 * BUSY_SECONDS
        while len(self.idle) < self._count and time.monotonic() < deadline:
            time.sleep(_FORK_PAUSE)

    def after_fork_in_parent(self) -> None:
        self.halted = False
        self._turnstile.release()

    def after_fork(self) -> None:
        """In the child: connections must neither be used nor closed there, closing would drop the parent's locks."""
        self._inherited.extend(self.idle)
        self.idle, self._count, self.halted = deque(), 0, False
        self._ready = None
        self._renew_locks()


_warned_of: set[Path] = set()


def _warn_of_network(folder: Path) -> None:
    if folder not in _warned_of:
        _warned_of.add(folder)
        logger.warning("%s is on a network file system: SQLite works there without its write-ahead log, and slowly", folder)


def _retry_while_locked(connect: Callable[[], T]) -> T:
    """Recovering a log fails at once, without SQLite's own waiting, while another process does the same; so does opening
    what somebody is removing."""
    deadline = time.monotonic() + BUSY_SECONDS
    for removals in count():
        try:
            return connect()
        except (sqlite3.OperationalError, FileNotFoundError) as error:
            removed = isinstance(error, FileNotFoundError) or error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN
            if time.monotonic() > deadline or not ((removed and removals < _REMOVALS) or "locked" in str(error)):
                raise
            time.sleep(0.005)
    raise AssertionError
