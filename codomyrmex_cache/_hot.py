"""The hot cells in front of files: what this process has read from its namespace's database lately, and nobody has changed.

When a cell may answer is decided by `backends._coherence`.  Here it shows in what deadlines are compared with: `now` is
infinity while cells may not answer, and what has been changed is dead before `now` says the time.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from math import inf

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._near_cells import DEFAULT_NEAR_BYTES, NearCells, Stamp, kill
from codomyrmex_cache.backends._coherence import Coherence
from codomyrmex_cache.backends._mirror import SHARDS, WORDS, can_mirror, shard_of
from codomyrmex_cache.backends.in_memory import DEFAULT_MAX_ENTRIES

__all__ = ["Hot"]


class Hot(NearCells):
    """The cells of one file-based namespace.

    Args:
        coherence: of its database; it tells this of changes.
        clock: the namespace's.
        max_entries: kept.
        max_bytes: of all of them, as stored.
    """

    def __init__(
        self, coherence: Coherence, clock: Clock, *,
        max_entries: int = DEFAULT_MAX_ENTRIES, max_bytes: int = DEFAULT_NEAR_BYTES,
    ) -> None:  # fmt: skip
        super().__init__(clock, SHARDS, max_entries=max_entries, max_bytes=max_bytes)
        self._coherence = coherence
        self._now = self._by_injected_clock(_time_of(coherence)) if self._injected else _time_of(coherence)

    @classmethod
    def over(cls, coherence: Coherence, clock: Clock) -> Hot | None:
        """The cells over this database, whose keys tell their namespaces; `None` if there can be none, or are some by another
        clock."""
        if not can_mirror():
            return None
        found = coherence.keepers.setdefault("hot", cls(coherence, clock))  # another thread may have been first
        return found if isinstance(found, cls) and found._clock is clock else None

    @property
    def now(self) -> Clock:
        return self._now

    def _by_injected_clock(self, now: Clock) -> Clock:
        def ending() -> float:
            self._end_lives()
            return now()

        return ending

    def stamp(self, key: bytes) -> Stamp | None:
        self._coherence.cells = self  # from now on; who only writes need not tell anybody
        if self._now() == inf:
            return None
        # the counters before it is asked again: what changes after that, the regime included, moves them on
        stamp = Stamp(self._era, self._buckets[self._bucket(key)], self._tags)
        return stamp if self._now() != inf and self._coherence.quiet(key) else None

    def keep(self, key: bytes, stamp: Stamp | None, entry: Entry, size: int, *, copy: bool) -> None:
        if not entry.generations:  # tags have no words in the mirror
            super().keep(key, stamp, entry, size, copy=copy)

    def forget_one(self, key: bytes, shard: int) -> None:
        """This entry, of that shard, has changed, or is about to."""
        with self._lock:
            self._buckets[shard] += 1
            gone = self._removed(key) if key in self.cells else None
        if gone is not None:
            gone.kill()

    def forget_shards(self, shards: Sequence[int]) -> None:
        """Entries of these have changed, or are about to."""
        with self._lock:
            for shard in shards:
                self._buckets[shard] += 1
            gone = self._all_removed([key for shard in shards for key in self._named.get(shard, ())])
        kill(gone)

    def _bucket(self, key: bytes) -> int:
        return shard_of(key)

    def _names(self, key: bytes, entry: Entry) -> Iterable[Hashable]:
        return (shard_of(key),)


def _time_of(coherence: Coherence) -> Clock:
    """The time as long as cells may answer; one frame and, when not alone, one read of the mirror."""
    from os import pread  # not on Windows, where there are no cells either

    monotonic = time.monotonic

    def now() -> float:
        instant = monotonic()
        if instant < coherence.until:
            return instant
        if instant < coherence.again:
            mirror = coherence.mirror  # held here, or its descriptor could be another file's by then
            try:
                if mirror is not None and pread(mirror.descriptor, WORDS, 0) == coherence.words:
                    return instant
            except OSError:
                pass
        return coherence.renewed()

    return now
