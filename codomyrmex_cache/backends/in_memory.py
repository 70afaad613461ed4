"""Entries in this process, bounded, with nothing to do on a hit but to count it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Literal, NamedTuple, Protocol, runtime_checkable
from weakref import WeakSet

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._cells import NOTHING_DROPPED, Budget, Cell, Cells, Dropped
from codomyrmex_cache.backends._weight import Weigher, weigh
from codomyrmex_cache.backends.base import Begun, generation_name
from codomyrmex_cache.errors import CacheConfigurationError, ValueTooLargeError

__all__ = ["DEFAULT_MAX_ENTRIES", "Budget", "Cell", "InMemoryBackend", "Watched"]

DEFAULT_MAX_ENTRIES = 10_000
"""Large enough for the working set of an analysis run, small enough to be forgotten about."""


def check_max_entries(bound: object) -> int:
    """The bound if it is one.

    Raises:
        CacheConfigurationError: not a whole number of one or more.
    """
    if not isinstance(bound, int) or isinstance(bound, bool) or bound < 1:
        raise CacheConfigurationError(f"max_entries={bound!r}: give a whole number >= 1")
    return bound


def check_max_bytes(bound: object, name: str = "max_bytes") -> int:
    """The bound if it is one.

    Raises:
        CacheConfigurationError: not a whole number of one or more.
    """
    if type(bound) is not int or bound < 1:
        raise CacheConfigurationError(f"{name}={bound!r}: give a number of bytes >= 1")
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


class Watcher(Protocol):
    """Who answers from cells of entries that have tags, without looking at the tags."""

    def forget(self) -> None: ...


@runtime_checkable
class Watched(Protocol):
    """A backend that tells watchers of revocations."""

    def watch(self, watcher: Watcher) -> None: ...
    def generations(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]: ...


class InMemoryBackend:
    """A bounded store in this process's memory.

    When it is full, what has expired leaves first, and then entries that were used once make room for those that are used again
    (S3-FIFO, see `backends._eviction`). So a scan of one-time keys leaves what is in use.  A hit takes no lock, it only counts.

    Args:
        max_entries: entries kept over all namespaces it serves; `None` for no bound.
        max_bytes: of all of them, as the weigher has it; `None` for no bound.  A value that is larger alone is not kept.
        weigher: answers the bytes of a stored value, from 0; by default an estimate by `sys.getsizeof` over containers and
            attributes, `nbytes` of arrays and frames, and 600 bytes for the entry.  Not called if there is no bound of bytes.
        clock: seconds, by which leases end.
        expiry_clock: seconds, by which entries expire; by default the moment of each new entry is taken for now.
        budget: of bytes, which several share; a `CacheManager` gives its own.

    >>> from codomyrmex_cache import Entry
    >>> backend = InMemoryBackend(max_entries=2)
    >>> backend.set(b"k", Entry("v"))
    >>> backend.get(b"k").value, backend.has(b"other")
    ('v', False)
    >>> texts = InMemoryBackend(max_bytes=10, weigher=len)
    >>> for key in (b"a", b"b", b"c"):
    ...     texts.set(key, Entry("12345"))
    >>> texts.count(b"")
    2
    """

    payload: Literal["object"] = "object"

    def __init__(
        self, *, max_entries: int | None = DEFAULT_MAX_ENTRIES, max_bytes: int | None = None, weigher: Weigher = weigh,
        clock: Clock = time.monotonic, expiry_clock: Clock | None = None, budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.max_entries = None if max_entries is None else check_max_entries(max_entries)
        self.max_bytes = None if max_bytes is None else check_max_bytes(max_bytes)
        self._clock = clock
        self._generations: dict[bytes, bytes] = {}
        self._leases: dict[bytes, _Lease] = {}
        self._last_lease = self._last_generation = 0
        self._shared = Budget() if budget is None else budget
        self._kept = Cells(self.max_entries, self.max_bytes, weigher, self._shared, expiry_clock)
        self._cells = self._kept.by_key
        self._watchers: WeakSet[Watcher] = WeakSet()
        renew_after_fork(self)

    def get(self, key: bytes) -> Entry | None:
        self._ask(key)
        cell = self._cells.get(key)
        if cell is None:
            return None
        cell.touches += 1
        return cell.entry

    def cell(self, key: bytes) -> Cell | None:
        """The live cell, for the hot closure to keep."""
        self._ask(key)
        return self._cells.get(key)

    def set(self, key: bytes, entry: Entry) -> None:
        self._ask(key)
        kept = self._kept
        weight = kept.weigh(entry.value) if kept.weighs else 1
        with self._shared.lock:
            dropped = self._put(key, entry, weight)
        dropped.bury()

    def check_size(self, value: object) -> None:
        """Refuse a value that is larger than the bounds.

        Raises:
            ValueTooLargeError: it is.
        """
        kept = self._kept
        if kept.weighs and (weight := kept.weigh(value)) > (most := kept.most):
            raise ValueTooLargeError(f"{weight} bytes are more than max_bytes={most}")

    def _put(self, key: bytes, entry: Entry, weight: int, *, fence: bool = True) -> Dropped:
        if fence:
            self._generations.pop(generation_name("k", key), None)
        return self._kept.put(key, entry, weight)

    def has(self, key: bytes) -> bool:
        self._ask(key)
        return key in self._cells

    def delete(self, key: bytes) -> bool:
        self._ask(key)
        with self._shared.lock:
            cell = self._kept.pop(key)
            self._generations.pop(generation_name("k", key), None)
        if cell is None:
            return False
        cell.kill()
        return True

    def scan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        self._ask(prefix)
        with self._shared.lock:
            items = list(self._cells.items())
        found = [(key, cell.entry) for key, cell in items if key.startswith(prefix)]
        return [(key, entry.expires_at) for key, entry in found if entry is not None]

    def clear(self, prefix: bytes) -> int:
        self._ask(prefix)
        with self._shared.lock:
            gone = [self._kept.pop(key) for key in list(self._cells) if key.startswith(prefix)]
        for cell in gone:
            if cell is not None:
                cell.kill()
        return len(gone)

    def count(self, prefix: bytes) -> int:
        with self._shared.lock:
            self._kept.admit()
            bare = sum(len(owner.cells()) for owner in list(self._kept.bare) if owner.head.startswith(prefix))
            return bare + sum(key.startswith(prefix) for key in self._cells)

    def _ask(self, key: bytes) -> None:
        if self._kept.bare:
            self._kept.close_bare(key)

    # -- loads

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        self._ask(key)
        now = self._clock()
        names = (generation_name("k", key), *names)
        with self._shared.lock:
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
        with self._shared.lock:
            held = self._leases.get(key, _NO_LEASE)
            if held.token != lease:
                return False
            self._leases[key] = held._replace(until=now + seconds)
            return True

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        self._ask(key)
        dropped, weight = NOTHING_DROPPED, self._kept.weigh(entry.value)
        with self._shared.lock:
            self._release(key, begun.lease, failed=False)
            now = map(self._generations.get, (generation_name("k", key), *names))
            unchanged = tuple(now) == begun.generations
            if unchanged:
                dropped = self._put(key, entry, weight)
        dropped.bury()
        return unchanged

    def end(self, key: bytes, begun: Begun, failed: bool) -> None:
        self._ask(key)
        with self._shared.lock:
            name = generation_name("k", key)
            ended = self._release(key, begun.lease, failed=failed)
            if ended and begun.generations and self._generations.get(name) == begun.generations[0]:
                del self._generations[name]

    def generations(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]:
        return [self._generations.get(name) for name in names]

    def revoke(self, names: Sequence[bytes]) -> None:
        for name in names:
            if name[:1] == b"k":  # what is revoked with its function or namespace is asked for as well
                self._ask(name[1:])
        with self._shared.lock:
            for name in names:
                self._generations.pop(name, None)
        for watcher in list(self._watchers):
            watcher.forget()

    def watch(self, watcher: Watcher) -> None:
        """Tell it from now on when a generation has been revoked, before `revoke` returns."""
        self._watchers.add(watcher)

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        self._ask(key)
        weight = self._kept.weigh(new.value)
        with self._shared.lock:
            cell = self._cells.get(key)
            if (None if cell is None else cell.entry) is not old:
                return False
            dropped = self._put(key, new, weight, fence=fence)
        dropped.bury()
        return True

    def discard(self, key: bytes, old: Entry) -> bool:
        self._ask(key)
        with self._shared.lock:
            cell = self._cells.get(key)
            if cell is None or cell.entry is not old:
                return False
            self._kept.pop(key)
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
        self._kept.listeners.append(evicted)

    def close(self) -> None:
        """Nothing to release; the entries stay until they are dropped."""

    def after_fork(self) -> None:
        """Leases are held by threads that do not exist here."""
        self._leases.clear()
