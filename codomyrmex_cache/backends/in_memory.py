"""Entries in this process, bounded, with nothing to do on a hit but to set a bit."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import inf
from threading import Lock
from typing import Any, Literal, NamedTuple

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends.base import Begun, generation_name
from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["DEFAULT_MAX_ENTRIES", "Cell", "InMemoryBackend"]

DEFAULT_MAX_ENTRIES = 10_000
"""Large enough for the working set of an analysis run, small enough to be forgotten about."""

_SWEEP_EVERY = 1_024
"""Writes between two looks at every entry's `expires_at`: an amortised cost of one comparison per write."""


def check_max_entries(bound: object) -> int:
    """The bound if it is one.

    Raises:
        CacheConfigurationError: not a whole number of one or more.
    """
    if not isinstance(bound, int) or isinstance(bound, bool) or bound < 1:
        raise CacheConfigurationError(f"max_entries={bound!r}: give a whole number >= 1")
    return bound


_GENERATIONS_PER_ENTRY = 4
"""Bound of the generations kept, as a multiple of `max_entries`; dropping one costs misses at most."""


_MOST_FAILED = 1024
"""Bound of the leases remembered for having ended without an entry."""


class _Lease(NamedTuple):
    token: int = 0
    until: float = -inf
    failed: int = 0  # token of the last lease that ended without an entry
    generations: tuple[bytes, ...] = ()  # if they are others now, the load is doomed and nobody need wait for it


_NO_LEASE = _Lease()


class Cell:
    """The stored entry as the hot closure sees it.

    A reader takes `value` first and compares `deadline` second; `kill` moves `deadline` first and drops `value`
    second.  So a reader that saw the emptied value also sees the passed deadline, whatever the interleaving.

    `hits` counts what the hot closure answered with it, `seen` how many of them eviction knows of, and `visited` says
    whether it was asked for in another way since.
    """

    __slots__ = ("cost", "deadline", "entry", "followed", "hits", "seen", "shared", "value", "visited")

    def __init__(self, entry: Entry) -> None:
        self.entry: Entry | None = entry
        self.value: Any = entry.value
        self.deadline = inf if entry.fresh_until is None else entry.fresh_until
        self.cost = entry.cost
        self.shared = entry.shared
        self.hits = self.seen = 0
        self.visited = self.followed = False

    def used(self) -> bool:
        """Whether it has been used since this was asked last."""
        found = self.visited or self.hits != self.seen
        self.visited, self.seen = False, self.hits
        return found

    def kill(self) -> None:
        """No longer an answer: replaced, deleted or evicted."""
        self.deadline = -inf
        self.value = None
        self.entry = None


class InMemoryBackend:
    """A bounded store in this process's memory.

    The bound is kept by second chance (CLOCK): the oldest cell goes unless it was hit since it was last looked at.
    It needs no work on a hit but the cell's bit, so a hit takes no lock, and a scan of one-time keys leaves what is in use.

    Args:
        max_entries: entries kept over all namespaces it serves; `None` for no bound.
        clock: seconds, by which leases end.

    >>> from codomyrmex_cache import Entry
    >>> backend = InMemoryBackend(max_entries=2)
    >>> backend.set(b"k", Entry("v"))
    >>> backend.get(b"k").value, backend.has(b"other")
    ('v', False)
    """

    payload: Literal["object"] = "object"

    def __init__(self, *, max_entries: int | None = DEFAULT_MAX_ENTRIES, clock: Clock = time.monotonic) -> None:
        self.max_entries = None if max_entries is None else check_max_entries(max_entries)
        self._clock = clock
        self._generations: dict[bytes, bytes] = {}
        self._leases: dict[bytes, _Lease] = {}
        self._last_lease = self._last_generation = 0
        self._cells: OrderedDict[bytes, Cell] = OrderedDict()
        self._listeners: list[Callable[[bytes], None]] = []
        self._writes = 0
        self._lock = Lock()
        renew_after_fork(self)

    def get(self, key: bytes) -> Entry | None:
        cell = self._cells.get(key)
        if cell is None:
            return None
        cell.visited = True
        return cell.entry

    def cell(self, key: bytes) -> Cell | None:
        """The live cell, for the hot closure to keep."""
        return self._cells.get(key)

    def set(self, key: bytes, entry: Entry) -> None:
        with self._lock:
            dropped, evicted = self._put(key, entry)
        self._bury(dropped, evicted)

    def _put(self, key: bytes, entry: Entry, *, fence: bool = True) -> tuple[list[Cell], dict[bytes, Cell]]:
        old = self._cells.get(key)
        self._cells[key] = Cell(entry)
        if fence:
            self._generations.pop(generation_name("k", key), None)
        self._writes += 1
        dropped = self._sweep(entry.created) if self._writes % _SWEEP_EVERY == 0 else []
        return dropped if old is None else [old, *dropped], self._evict()

    def _bury(self, dropped: Sequence[Cell], evicted: dict[bytes, Cell]) -> None:
        """Outside the lock, since dropping a value may run a `__del__` that comes back here."""
        for cell in (*dropped, *evicted.values()):
            cell.kill()
        for listener in self._listeners:
            for gone in evicted:
                listener(gone)

    def has(self, key: bytes) -> bool:
        return key in self._cells

    def delete(self, key: bytes) -> bool:
        with self._lock:
            cell = self._cells.pop(key, None)
            self._generations.pop(generation_name("k", key), None)
        if cell is None:
            return False
        cell.kill()
        return True

    def scan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        with self._lock:
            items = list(self._cells.items())
        found = [(key, cell.entry) for key, cell in items if key.startswith(prefix)]
        return [(key, entry.expires_at) for key, entry in found if entry is not None]

    def clear(self, prefix: bytes) -> int:
        with self._lock:
            gone = [self._cells.pop(key) for key in list(self._cells) if key.startswith(prefix)]
        for cell in gone:
            cell.kill()
        return len(gone)

    def count(self, prefix: bytes) -> int:
        with self._lock:
            return sum(key.startswith(prefix) for key in self._cells)

    # -- loads

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        now = self._clock()
        names = (generation_name("k", key), *names)
        with self._lock:
            cell = self._cells.get(key)
            entry = None if cell is None else cell.entry
            lease = self._leases.get(key, _NO_LEASE)
            held = lease.token and now < lease.until and lease.generations == tuple(map(self._generations.get, names))
            if seconds and held:
                return Begun(entry, (), 0, lease.token, lease.failed)
            generations = tuple(map(self._generation, names))
            if not seconds:
                return Begun(entry, generations)
            self._last_lease += 1
            self._leases[key] = _Lease(self._last_lease, now + seconds, lease.failed, generations)
            return Begun(entry, generations, self._last_lease, 0, lease.failed)

    def renew(self, key: bytes, lease: int, seconds: float) -> bool:
        now = self._clock()
        with self._lock:
            held = self._leases.get(key, _NO_LEASE)
            if held.token != lease:
                return False
            self._leases[key] = held._replace(until=now + seconds)
            return True

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        dropped: list[Cell] = []
        evicted: dict[bytes, Cell] = {}
        with self._lock:
            self._release(key, begun.lease, failed=False)
            now = map(self._generations.get, (generation_name("k", key), *names))
            unchanged = tuple(now) == begun.generations
            if unchanged:
                dropped, evicted = self._put(key, entry)
        self._bury(dropped, evicted)
        return unchanged

    def end(self, key: bytes, begun: Begun, failed: bool) -> None:
        with self._lock:
            name = generation_name("k", key)
            ended = self._release(key, begun.lease, failed=failed)
            if ended and begun.generations and self._generations.get(name) == begun.generations[0]:
                del self._generations[name]

    def generations(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]:
        return [self._generations.get(name) for name in names]

    def revoke(self, names: Sequence[bytes]) -> None:
        with self._lock:
            for name in names:
                self._generations.pop(name, None)

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        with self._lock:
            cell = self._cells.get(key)
            if (None if cell is None else cell.entry) is not old:
                return False
            dropped, evicted = self._put(key, new, fence=fence)
        self._bury(dropped, evicted)
        return True

    def discard(self, key: bytes, old: Entry) -> bool:
        with self._lock:
            cell = self._cells.get(key)
            if cell is None or cell.entry is not old:
                return False
            del self._cells[key]
        cell.kill()
        return True

    def _generation(self, name: bytes) -> bytes:
        found = self._generations.pop(name, None)
        if found is not None:
            self._generations[name] = found  # the least recently used ones come first
        else:
            self._last_generation += 1
            found = self._generations[name] = b"%d" % self._last_generation
            if self.max_entries is not None and len(self._generations) > max(1024, _GENERATIONS_PER_ENTRY * self.max_entries):
                self._generations.pop(next(iter(self._generations)))
        return found

    def _release(self, key: bytes, lease: int, *, failed: bool) -> bool:
        """Give up the lease; whether there was none to give up or it was still this one."""
        if not lease:
            return True
        if self._leases.get(key, _NO_LEASE).token != lease:
            return False
        del self._leases[key]
        if failed and len(self._leases) < _MOST_FAILED:
            self._leases[key] = _Lease(failed=lease)
        return True

    def subscribe(self, evicted: Callable[[bytes], None]) -> None:
        self._listeners.append(evicted)

    def close(self) -> None:
        """Nothing to release; the entries stay until they are dropped."""

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it."""
        self._lock = Lock()
        self._leases.clear()  # held by threads that do not exist here

    def _sweep(self, now: float) -> list[Cell]:
        expired = []
        for key, cell in list(self._cells.items()):
            entry = cell.entry
            if entry is not None and entry.expires_at is not None and entry.expires_at <= now:
                expired.append(self._cells.pop(key))
        return expired

    def _evict(self) -> dict[bytes, Cell]:
        evicted: dict[bytes, Cell] = {}
        while self.max_entries is not None and len(self._cells) > self.max_entries:
            key, cell = next(iter(self._cells.items()))
            if cell.used():
                self._cells.move_to_end(key)
            else:
                evicted[key] = self._cells.pop(key)
        return evicted
