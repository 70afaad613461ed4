"""Cells of what this process has read from a store lately: bounded, indexed, killed.  Whether they may answer others say."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf
from threading import Lock
from typing import Any, NamedTuple

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._payload import ObjectPayloads
from codomyrmex_cache.backends._cells import Cell, KeyedCell
from codomyrmex_cache.backends._eviction import Eviction
from codomyrmex_cache.backends.in_memory import DEFAULT_MAX_ENTRIES
from codomyrmex_cache.errors import CacheCodecError, EnvelopeError

__all__ = ["DEFAULT_NEAR_BYTES", "KeptCell", "NearCells", "Stamp", "kill"]

DEFAULT_NEAR_BYTES = 64 * 2**20
"""By the size of the stored bytes; as objects they take a few times as much."""

_SHARE = 8
"""An entry that would take more than one part in so many of the room is not kept."""

_NOTHING = nullcontext()


class KeptCell(KeyedCell):
    """A cell, when its entry's own life ends (by `time.monotonic`), and how many of its uses the store has been told of.

    Its weight is the store's bytes for it.
    """

    __slots__ = ("end", "told")

    def __init__(self, key: bytes, entry: Entry, size: int, end: float, deadline: float) -> None:
        super().__init__(key, entry, size)
        self.end, self.deadline, self.told = end, deadline, 0


class Stamp(NamedTuple):
    """How many changes had been told of: of everything, of the key's bucket, of tags."""

    era: int
    bucket: int
    tags: int


class NearCells:
    """The cells of one namespace.  Threads share it; hits take no lock.

    What was read may have changed before it is kept.  So a reader takes a `stamp` before it asks the store, and `keep` takes
    the value only if no change that concerns its key has been told of since.

    Args:
        clock: the namespace's, by which its entries live.
        buckets: keys share the counters of changes; one that is kept out by another's change is kept at its next read.
        max_entries: kept; who makes room is decided as in `InMemoryBackend`.
        max_bytes: of all of them, as stored.
    """

    def __init__(
        self, clock: Clock, buckets: int, *, max_entries: int = DEFAULT_MAX_ENTRIES, max_bytes: int = DEFAULT_NEAR_BYTES
    ) -> None:
        self.cells: dict[bytes, KeptCell] = {}
        self._order: Eviction[KeptCell] = Eviction()
        self._payloads = ObjectPayloads()
        self._clock = clock
        self._injected = clock not in (time.time, time.monotonic)
        self._first_end = inf  # of the entries' lives, by an injected clock
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._named: dict[Hashable, set[bytes]] = {}
        self._era = self._tags = 0
        self._buckets = [0] * buckets
        self._lock = Lock()
        renew_after_fork(self)

    # -- what kinds of cells differ in

    @property
    def now(self) -> Clock:
        """What deadlines are compared with: `time.monotonic`, or infinity while cells may not answer."""
        raise NotImplementedError

    def stamp(self, key: bytes) -> Stamp | None:
        """To be taken before the store is asked; `None` while nothing can be kept."""
        raise NotImplementedError

    def overtaken(self, verb: str, arguments: Sequence[Any]) -> AbstractContextManager[None]:
        """Around what is asked of the backend: cells die before it changes anything, and after it those filled meanwhile."""
        return _NOTHING

    def close(self) -> None:
        """Forget all; a later read begins anew."""
        self.forget_all()

    def _deadline(self, end: float) -> float:
        return end

    def _bucket(self, key: bytes) -> int:
        return hash(key) % len(self._buckets)

    def _names(self, key: bytes, entry: Entry) -> Iterable[Hashable]:
        """What the cell can be found by, beside its key."""
        return ()

    # -- reading

    def cell(self, key: bytes) -> Cell | None:
        """The live cell, for the hot closure to keep."""
        return self.cells.get(key)

    def get(self, key: bytes, digest: bytes, *, copy: bool) -> Entry | None:
        """The entry with a value to hand out, if there is a cell that may answer."""
        cell = self.cells.get(key)
        if cell is None:
            return None
        entry = cell.entry  # before the deadline: see Cell
        if entry is None or not self.now() < cell.deadline:
            return None
        try:
            found = self._payloads.unpack(key, entry, digest, copy=copy)
        except (EnvelopeError, CacheCodecError):  # another call's, or not to be copied now: the server's is read
            return None
        cell.touches += 1
        return found

    def keep(self, key: bytes, stamp: Stamp | None, entry: Entry, size: int, *, copy: bool) -> None:
        """Keep a fresh entry that was read since `stamp` was taken, unless something may have changed it meanwhile.

        Args:
            key: the backend's.
            stamp: taken before the server was asked.
            entry: with its value decoded.
            size: of the stored bytes.
            copy: whether a mutable value must not be shared with who has it now.
        """
        if stamp is None or entry.raised or entry.streamed or size * _SHARE > self._max_bytes:
            return
        try:
            packed = self._payloads.pack(key, entry, copy=copy)
        except CacheCodecError:  # cannot be copied, so each reader decodes its own
            return
        with self._lock:
            changed = stamp != (self._era, self._buckets[self._bucket(key)], self._tags if entry.generations else stamp.tags)
            dead = [] if changed else self._put(key, packed, size)
        kill(dead)

    def _put(self, key: bytes, entry: Entry, size: int) -> list[KeptCell]:
        end, moment = inf, time.monotonic()
        if entry.fresh_until is not None and self._injected:
            self._first_end = min(self._first_end, entry.fresh_until)
        elif entry.fresh_until is not None:
            end = moment + entry.fresh_until - self._clock()
        deadline = self._deadline(end)
        if deadline <= moment:
            return []
        dead = [] if (old := self._removed(key)) is None else [old]
        while self._order.count >= self._max_entries or self._order.weight + size > self._max_bytes:
            dead += self._all_removed((self._order.evict().key,))
        cell = self.cells[key] = KeptCell(key, entry, size, end, deadline)
        self._order.add(cell)
        for name in self._names(key, entry):
            self._named.setdefault(name, set()).add(key)
        return dead

    def _removed(self, key: bytes) -> KeptCell | None:
        cell = self.cells.pop(key, None)
        if cell is None:
            return None
        cell.leave()
        self._order.remove(cell)
        assert cell.entry is not None  # what is killed has been removed before
        for name in self._names(key, cell.entry):
            keys = self._named[name]
            keys.discard(key)
            if not keys:
                del self._named[name]
        return cell

    def _all_removed(self, keys: Iterable[bytes]) -> list[KeptCell]:
        return [cell for cell in map(self._removed, keys) if cell is not None]

    def _end_lives(self) -> None:
        """Kill the cells whose lives have ended by an injected clock."""
        now = self._clock()
        if now >= self._first_end:
            with self._lock:
                ends = {key: cell.entry.fresh_until for key, cell in self.cells.items() if cell.entry is not None}
                gone = self._all_removed([key for key, end in ends.items() if end is not None and end <= now])
                self._first_end = min((end for end in ends.values() if end is not None and end > now), default=inf)
            kill(gone)

    def used(self) -> list[bytes]:
        """The keys of cells that were hit since this was asked last, for stores that evict what is not read."""
        with self._lock:
            cells = list(self.cells.values())
        found = []
        for cell in cells:
            uses = cell.hits + cell.touches
            if uses != cell.told:
                cell.told = uses
                found.append(cell.key)
        return found

    # -- told of changes

    def forget(self, keys: Sequence[bytes]) -> None:
        """These entries have changed, or are about to."""
        with self._lock:
            for key in keys:
                self._buckets[self._bucket(key)] += 1
            gone = self._all_removed(keys)
        kill(gone)

    def forget_all(self) -> None:
        """Everything has changed."""
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            self._era += 1
            gone = list(self.cells.values())
            for cell in gone:
                cell.leave()
            self.cells.clear()
            self._order.clear()
            self._named.clear()
        kill(gone)

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it, in the middle of anything."""
        self._lock = Lock()
        self._drop()


def kill(cells: Iterable[KeptCell]) -> None:
    """Outside the lock, since dropping a value may run a `__del__` that comes back here."""
    for cell in cells:
        cell.kill()
