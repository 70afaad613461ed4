"""One process's part in the rules of `_mirror`, over one database: its writes announced, its leases renewed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from threading import Lock
from typing import Protocol

from codomyrmex_cache._folders import is_on_network
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._database import Database, Handle
from codomyrmex_cache.backends._mirror import (
    LEASE_SECONDS,
    QUIET_SECONDS,
    SHARDS,
    Mirror,
    Regime,
    can_mirror,
    changed,
    entered,
    fresh_number,
    is_makeshift,
    is_quiet,
    shard_of,
    succeeding,
)  # fmt: skip
from codomyrmex_cache.backends._schema import REGIME, SET_REGIME, SETTLE

__all__ = ["Coherence", "KeepsCells"]

_TEND_SECONDS = 1.0
"""Between two looks of one process, in a shared regime, at whether it is alone, and of one without a mirror at whether it can
make one."""


def _nothing() -> None:
    """Stands for nothing to be done."""


class KeepsCells(Protocol):
    """What is told of changes."""

    def forget(self, keys: Sequence[bytes]) -> None: ...
    def forget_one(self, key: bytes, shard: int) -> None: ...
    def forget_shards(self, shards: Sequence[int]) -> None: ...
    def forget_all(self) -> None: ...
    def used(self) -> list[bytes]: ...


class _Change:
    """What a transaction changes.  The cells of this process die before and after it, and none is filled meanwhile; others
    learn of it by the mirror."""

    __slots__ = ("_begun", "_coherence", "_keys", "_mirror", "_shards")

    def __init__(self, coherence: Coherence, mirror: Mirror | None) -> None:
        self._coherence, self._mirror = coherence, mirror
        self._begun: dict[int, bytes] = {}
        self._shards: set[int] = set()
        self._keys: list[bytes] | None = []  # `None` for all

    def mark(self, keys: Sequence[bytes] | None) -> None:
        shards = set(range(SHARDS)) if keys is None else set(map(shard_of, keys))
        self._shards |= shards
        self._coherence.in_change |= shards
        self._keys = None if keys is None or self._keys is None else [*self._keys, *keys]
        self._forget(keys)
        if self._mirror is not None:
            self._begun.update(self._mirror.begin(shards - self._begun.keys()))

    def end(self) -> None:
        if self._mirror is not None:
            self._mirror.end(self._begun)
        self._coherence.in_change -= self._shards
        self._forget(self._keys)

    def _forget(self, keys: Sequence[bytes] | None) -> None:
        cells = self._coherence.cells
        if cells is not None and keys is None:
            cells.forget_all()
        elif cells is not None and keys:
            cells.forget(keys)


class Coherence:
    """Threads share it.  Hits read its attributes without a lock.

    Attributes:
        until: before this moment (`time.monotonic`) cells may answer; -inf unless alone.
        again: before this moment they may if the mirror's words are `words`; -inf unless shared.
        words: of `mirror`, as acted on.
        number: of the regime that this process alone goes by, for writes of one statement; 0 if it is none, as far as is known.
        in_change: shards in which this process is changing entries.
        cells: of this process, told of what changes; `None` until some are about to be kept.
        keepers: who may come to be `cells`, so that all namespaces of a database have one.
        note_hits: called once a second while cells answer, so that what is hit in memory is not evicted from the files.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.cells: KeepsCells | None = None
        self.keepers: dict[str, object] = {}
        self.note_hits: Callable[[], None] = _nothing
        self._reset()
        renew_after_fork(self)

    def _reset(self) -> None:
        self.until = self.again = -inf
        self.mirror: Mirror | None = None
        self.words = b""
        self.number = 0
        self._mine = 0  # number of the last regime made here
        self._held: Mirror | None = None  # the last one opened
        self._met = (0, 0.0)  # the last regime met when writing, and when first
        self._kept = 0  # the regime by which there are cells
        self._tend_at = self._decide_at = self._note_at = -inf
        self._sick = False
        self._change: _Change | None = None
        self.in_change: set[int] = set()
        self._is_off: bool | None = None
        self._lock = Lock()

    after_fork = _reset
    """The child is another process; what it has inherited of the lock on the mirror goes with the descriptor."""

    @property
    def off(self) -> bool:
        """Nobody keeps cells here: several machines could write."""
        if self._is_off is None:
            self._is_off = not can_mirror() or is_on_network(self._database.folder)
        return self._is_off

    def close(self) -> None:
        """Keep no cells and let the mirror go; a later use begins anew."""
        with self._lock, self._database.turn():
            if self.cells is not None:
                self._let_go()
            self.number = self._mine = 0  # without the lock on the mirror nobody is alone for long
            self._held = None

    # -- writing

    @contextmanager
    def changing(self, keys: Sequence[bytes] | None) -> Iterator[Handle]:
        """A transaction that may change or remove these entries; with `None` those that it will `mark` before it does so.

        Waits, once, for the leases of processes that still go by another regime.
        """
        while True:
            wait = 0.0
            with self._database.writing(self._ended) as handle:
                met = self._ruled(handle, keys)
                if met is None:
                    yield handle
                    return
                wait = met
            time.sleep(wait)

    def mark(self, keys: Sequence[bytes] | None) -> None:
        """In a `changing` transaction: these, or all, are about to change."""
        if self._change is not None:
            self._change.mark(keys)

    def begin_alone(self, key: bytes) -> None:
        """Before a statement that changes the entry if the regime is `number`, in this process's turn to write."""
        if self.cells is not None:
            shard = shard_of(key)
            self.in_change.add(shard)
            self.cells.forget_one(key, shard)

    def end_alone(self, key: bytes) -> None:
        """After it."""
        if self.cells is not None:
            shard = shard_of(key)
            self.in_change.discard(shard)
            self.cells.forget_one(key, shard)

    def _ended(self) -> None:
        """The transaction has been committed or rolled back; still in this process's turn to write."""
        change, self._change = self._change, None
        if change is not None:
            change.end()
        if self._held is not None:
            self._held.share()

    def _ruled(self, handle: Handle, keys: Sequence[bytes] | None) -> float | None:
        """Make ready to change these keys: `None`, or the seconds to wait outside before trying again."""
        regime = _regime(handle)
        free = self.off or (regime.alone and regime.number == self._mine)
        self.number = regime.number if free else 0
        if free:
            self._begin(None, keys)
            return None
        # There are no cells of what there is not, but for those of a database that was set aside with what could not be kept.
        new = keys is not None and not is_makeshift(regime) and not any(_has(handle, key) for key in keys)
        wait = self._admitted(handle, regime, new=new)
        if wait == 0.0 or (wait is not None and not new):
            return wait
        try:
            self._begin(None if new or not regime.mirror else self._held, keys)
        except OSError:  # the disk is full, or the mirror is not what it was
            self._held = self._change = None
            self._change_regime(handle, regime, None, new=new)
            return 0.0
        return None

    def _begin(self, mirror: Mirror | None, keys: Sequence[bytes] | None) -> None:
        self._change = _Change(self, mirror)
        if keys:
            self._change.mark(keys)

    def _admitted(self, handle: Handle, regime: Regime, *, new: bool = False) -> float | None:
        """Come to a regime by which entries may be changed; `None` if this one is, else as `_ruled`.  For `new` entries that
        may be none, and others are not disturbed."""
        now = time.monotonic()
        if self._met[0] != regime.number:
            self._met = (regime.number, now)
        mirror = self._opened(regime.mirror)
        able = entered(regime, self._mine, mirror.number if mirror is not None else 0)
        due = now >= self._decide_at and regime.settled
        if (due or not (able or new)) and self._change_regime(handle, regime, mirror, new=new):
            return 0.0
        if not able:
            return inf
        if regime.settled:
            return None
        if not is_quiet(self._met[1], now):
            return self._met[1] + QUIET_SECONDS - now
        handle.execute(SETTLE)
        return None

    def _change_regime(self, handle: Handle, regime: Regime, mirror: Mirror | None, *, new: bool) -> bool:
        """Write down the one to follow, if there is one; the transaction is to be committed then, with nothing else in it."""
        self._decide_at = time.monotonic() + _TEND_SECONDS
        Mirror.tidy(self._database.folder)
        known = mirror is not None
        if mirror is None and not (new and regime.mirror):
            mirror = self._held = Mirror.made(self._database.folder)
        only = known and mirror is not None and regime.settled and mirror.lock_exclusively()
        follows = succeeding(regime, fresh_number(), 0 if mirror is None else mirror.number, only=only)
        if follows == regime or (not follows.alone and (new or (known and not regime.alone))):
            return False
        handle.execute(SET_REGIME, follows)
        if follows.alone:
            self._mine = follows.number
        return True

    def _opened(self, number: int) -> Mirror | None:
        """The mirror of that number, if it can be opened."""
        held = self._held
        if held is None or held.number != number:
            held = self._held = Mirror.opened(self._database.folder, number) if number else None
        return held

    # -- reading

    def renewed(self) -> float:
        """The time if cells may answer now, else infinity; of those that may not, all are dead by then.  Waits for nothing."""
        if self.cells is None or self.off or not self._lock.acquire(blocking=False):
            return inf
        try:
            instant = time.monotonic()
            if instant >= self.until and instant >= self.again:
                self._renew(instant)
            if instant < self.until or (instant < self.again and self._synchronized()):
                return instant
        except Exception:  # whatever a damaged database may cause; the cold path meets it again
            self._let_go()
        finally:
            self._lock.release()
        return inf

    def quiet(self, key: bytes) -> bool:
        """Whether an entry that is read from now on may be kept; after `renewed`."""
        mirror = self.mirror
        if shard_of(key) in self.in_change:
            return False
        if time.monotonic() < self.until:
            return True
        if mirror is None:
            return False
        try:
            quiet = mirror.quiet(shard_of(key), self.words)
        except OSError:
            return False
        self._sick |= quiet is None
        return bool(quiet)

    def _renew(self, instant: float) -> None:
        kept = self._lease(instant)
        if instant >= self._tend_at and (not kept or self.mirror is not None) and self._tend():
            self._tend_at = instant + (_TEND_SECONDS if kept and not self._sick else LEASE_SECONDS)
            self._lease(time.monotonic())
        if instant >= self._note_at:
            self._note_at = instant + _TEND_SECONDS
            self.note_hits()

    def _lease(self, instant: float) -> bool:
        """Read which regime is in force, and go by it; whether there may be cells."""
        regime = self._regime_soon()
        if regime is None:
            return False
        if regime.number != self._kept:
            self._let_go()
            mirror = None if regime.alone else self._opened(regime.mirror)
            if mirror is not None:  # with its lock: is it still this one, or is somebody alone meanwhile?
                self.words = mirror.words()
                if self._regime_soon() != regime:
                    return False
            if not entered(regime, self._mine, mirror.number if mirror is not None else -1):
                return False
            self.mirror, self._kept = mirror, regime.number
        if regime.alone:
            self.until = instant + LEASE_SECONDS
            self.number = regime.number
        else:
            self.again = instant + LEASE_SECONDS
        return True

    def _let_go(self) -> None:
        self.until = self.again = -inf
        self._kept = 0
        self.mirror = None
        assert self.cells is not None
        self.cells.forget_all()

    def _regime_soon(self) -> Regime | None:
        database = self._database
        database.look()
        handle = database.take_soon()
        if handle is None:
            return None
        try:
            regime = _regime(handle)
        except BaseException as error:
            database.failed(handle, error)
            raise
        database.idle.append(handle)
        return regime

    def _synchronized(self) -> bool:
        """Kill the cells whose words have changed."""
        mirror = self.mirror
        assert mirror is not None and self.cells is not None
        words = mirror.words()
        shards = changed(self.words, words)
        if shards:
            self.cells.forget_shards(shards)
            self.words = words  # after that, or another thread would find all as it should be
        return True

    def _tend(self) -> bool:
        """Come to a regime with cells, or stay in one, without waiting for anybody; whether that could be tried."""
        with self._database.writing_soon(self._ended) as handle:
            if handle is None:
                return False
            regime = _regime(handle)
            if regime.alone and regime.number == self._mine:
                return True
            if self._admitted(handle, regime) is None and regime.mirror and self._held is not None and self._sick:
                self._held.heal()
                self._sick = False
        return True


def _regime(handle: Handle) -> Regime:
    number, alone, mirror, settled = handle.execute(REGIME).fetchone()
    return Regime(number, bool(alone), mirror, bool(settled))


def _has(handle: Handle, key: bytes) -> bool:
    return handle.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone() is not None
