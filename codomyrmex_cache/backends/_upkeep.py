"""What a store of files needs from time to time: expired entries, bounds, orphans.  It is done after every so many writes.

Eviction is by oldest use, approximated by a second chance (Corbató's CLOCK): entries are looked at in the order in which they
came; one that was read since gets a new place behind the last, which also empties its old page; the others go.  Reads are
remembered in memory and written down only while the store is nearly full, so a read never costs a write.

How many bytes there are SQLite knows by its pages, and `meta` for the files beside it, so nothing is ever counted over.
Entries, if they have a bound, are counted when so many new ones have come that it could have been passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf

from codomyrmex_cache.backends._coherence import Coherence
from codomyrmex_cache.backends._database import Database, Handle
from codomyrmex_cache.backends._large import LargeFiles
from codomyrmex_cache.backends._schema import TRIM

__all__ = ["KEPT_SECONDS", "Upkeep"]

KEPT_SECONDS = 86_400.0
"""A load that takes longer than a day is not stored: by then the generation of its key may have been swept."""

_MOST_TAGS = 100_000
"""Generations kept; of more, those go that no load has asked for for the longest time, which costs misses at most."""

_EVERY = 256
"""Writes of one process between two rounds at most; the bounds may be passed by that much."""

_RARELY = 16
"""Of so many rounds one looks for generations, leases and files that nobody needs any more."""

_AT_ONCE = 256
"""Rows of one kind dropped in one transaction, lest others wait long for theirs."""

_LOW = 0.95
"""Share of a bound down to which entries are evicted, so that the next round has nothing to do."""

_NEARLY = 0.8
"""Share of a bound from which on it is written down what was read."""

_CHANCES = 1024
"""Second chances given in one round, lest others wait long for their turn to write."""

_MOST_VISITED = 512
"""Reads remembered until they are written down."""


class Upkeep:
    """The rounds of one process over one database.

    Args:
        database: to keep.
        coherence: told which entries go.
        large: its files.
        max_bytes: of the database's pages and the files together, `None` for no bound.
        max_entries: `None` for no bound.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        coherence: Coherence,
        large: LargeFiles,
        max_bytes: int | None,
        max_entries: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._coherence = coherence
        self._large = large
        self._max_bytes = inf if max_bytes is None else max_bytes
        self._max_entries = inf if max_entries is None else max_entries
        self._clock = clock
        self._listeners: list[Callable[[bytes], None]] = []
        self._rounds = 0
        self._wait = int(max(1, min(_EVERY, self._max_entries / 20)))
        self._room = self._max_bytes / 20
        self._writes, self._bytes = 0, 0
        self.nearly_full = False
        self.visited: set[int] = set()
        coherence.note_hits = self._note_hits

    def subscribe(self, evicted: Callable[[bytes], None]) -> None:
        """Be told each key that is evicted here."""
        self._listeners.append(evicted)

    def saw(self, seq: int) -> None:
        """An entry was read; worth remembering if it may soon be its turn to go."""
        if self.nearly_full:
            self.visited.add(seq)
            if len(self.visited) > _MOST_VISITED:
                self._write_down()

    def wrote(self, count: int, size: int, now: float) -> None:
        """So many entries of so many bytes were written; `now` is the namespace's clock, by which entries expire."""
        self._writes += count
        self._bytes += size
        if self._writes >= self._wait or self._bytes >= self._room:
            self.round(now)

    def round(self, now: float) -> None:
        """Do what is due.  A failure is left to the next round: the write that this follows has succeeded."""
        self._writes, self._bytes = 0, 0
        self._rounds += 1
        evicted: list[bytes] = []
        with suppress(Exception):  # whatever a damaged database may cause
            with self._coherence.changing(None) as handle:
                self._sweep(handle, now)
                if self._rounds % _RARELY == 1:
                    self._forget(handle)
                evicted = self._evict(handle)
            if self._rounds % _RARELY == 1:
                with self._database.reading() as handle:
                    self.opened(handle)
            self.collect()
        for listener in self._listeners:
            for key in evicted:
                listener(key)

    def _sweep(self, handle: Handle, now: float) -> None:
        rows = handle.execute(_EXPIRED, (now, _AT_ONCE)).fetchall()
        if rows:
            self._coherence.mark([key for _, key in rows])
            handle.executemany("DELETE FROM entries WHERE seq = ?", [(seq,) for seq, _ in rows])

    def collect(self) -> None:
        """Unlink the files that no row names any more.  A failure is left to the next time."""
        with suppress(Exception):
            while True:
                with self._database.reading() as handle:
                    numbers = [number for (number,) in handle.execute(_GARBAGE, (_AT_ONCE,)).fetchall()]
                if not numbers:
                    return
                self._large.unlink(numbers)
                with self._database.writing() as handle:
                    handle.executemany("DELETE FROM garbage WHERE file = ?", [(number,) for number in numbers])

    def opened(self, handle: Handle) -> None:
        """Remove the files that dead processes have left, and see how full the store is."""
        named = "SELECT 1 FROM entries WHERE file = ?"  # those in `garbage` are named no more
        self._large.sweep(lambda number: handle.execute(named, (number,)).fetchall() != [])
        self._note(self._used(handle), self._at_most(handle)[0])

    def _forget(self, handle: Handle) -> None:
        long_ago = self._clock() - KEPT_SECONDS
        handle.execute("DELETE FROM generations WHERE name >= ? AND name < ? AND used < ?", (b"k", b"l", long_ago))
        handle.execute("DELETE FROM leases WHERE until < ?", (long_ago,))
        handle.execute(TRIM, (_MOST_TAGS,))
        handle.execute(_FORGET_VISITED)

    def _evict(self, handle: Handle) -> list[bytes]:
        """Drop the entries that were not used for the longest time, as many as there are too many; their keys."""
        used, entries = self._used(handle), self._entries(handle)
        self._note(used, entries)
        if not self.nearly_full:
            self.visited.clear()
            return []
        too_big = used - _LOW * self._max_bytes if used > self._max_bytes else 0.0
        too_many = entries - _LOW * self._max_entries if entries > self._max_entries else 0.0
        return self._drop(handle, too_big, too_many)

    def _note(self, used: int, entries: int) -> None:
        self.nearly_full = used > _NEARLY * self._max_bytes or entries > _NEARLY * self._max_entries

    def _drop(self, handle: Handle, size: float, count: float) -> list[bytes]:
        evicted: list[bytes] = []
        seen, self.visited = self.visited, set()
        handle.executemany("INSERT OR IGNORE INTO visited VALUES (?)", [(seq,) for seq in seen])
        handle.executemany(_VISITED, self._hit())
        chances = _CHANCES
        while size > 0 or count > 0:
            rows = handle.execute(_OLDEST, (_AT_ONCE,)).fetchall()
            if not rows:
                break
            for seq, key, held, visited in rows:
                if size <= 0 and count <= 0:
                    break
                handle.execute("DELETE FROM visited WHERE seq = ?", (seq,))
                if visited and chances:
                    chances -= 1
                    handle.execute("UPDATE entries SET seq = (SELECT MAX(seq) FROM entries) + 1 WHERE seq = ?", (seq,))
                else:
                    self._coherence.mark((key,))
                    handle.execute("DELETE FROM entries WHERE seq = ?", (seq,))
                    evicted.append(key)
                    size, count = size - held, count - 1
        if evicted and self._max_entries < inf:
            handle.execute("UPDATE meta SET value = value - ? WHERE name = 'counted'", (len(evicted),))
        return evicted

    def _used(self, handle: Handle) -> int:
        """Bytes in use."""
        if self._max_bytes == inf:
            return 0
        pages, free, size = (handle.execute(f"PRAGMA {name}").fetchone()[0] for name in _PAGES)
        large = handle.execute("SELECT value FROM meta WHERE name = 'large'").fetchone()
        return int((pages - free) * size + (large[0] if large else 0))

    def _entries(self, handle: Handle) -> int:
        """How many entries there are at most, counted anew if the bound may have been passed."""
        if self._max_entries == inf:
            return 0
        most, last = self._at_most(handle)
        if most <= self._max_entries:
            return most
        count = handle.execute("SELECT COUNT(*) FROM entries").fetchone()[0]
        values: Sequence[tuple[str, int]] = (("counted", count), ("counted up to", last))
        handle.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)
        return int(count)

    def _at_most(self, handle: Handle) -> tuple[int, int]:
        """The last count and what may have come since; the last `seq`."""
        last = handle.execute("SELECT MAX(seq) FROM entries").fetchone()[0] or 0
        noted = dict(handle.execute("SELECT name, value FROM meta").fetchall())
        return noted.get("counted", 0) + max(0, last - noted.get("counted up to", 0)), last

    def _hit(self) -> list[tuple[bytes]]:
        cells = self._coherence.cells
        return [] if cells is None else [(key,) for key in cells.used()]

    def _note_hits(self) -> None:
        """What was answered from memory has been read, too; it waits for nobody."""
        if self.nearly_full and (hit := self._hit()):
            with self._database.writing_soon() as handle:
                if handle is not None:
                    handle.executemany(_VISITED, hit)

    def _write_down(self) -> None:
        """What a process that only reads has read."""
        seen, self.visited = self.visited, set()
        with suppress(Exception), self._database.writing() as handle:
            handle.executemany("INSERT OR IGNORE INTO visited VALUES (?)", [(seq,) for seq in seen])


_PAGES = ("page_count", "freelist_count", "page_size")
_VISITED = "INSERT OR IGNORE INTO visited SELECT seq FROM entries WHERE key = ?"
_FORGET_VISITED = "DELETE FROM visited WHERE seq < (SELECT coalesce(MIN(seq), 1 << 62) FROM entries)"
_GARBAGE = "SELECT file FROM garbage LIMIT ?"
_EXPIRED = "SELECT seq, key FROM entries WHERE expires_at <= ? LIMIT ?"
_OLDEST = (
    "SELECT seq, key, coalesce(size, 0) + length(key) + length(value), "
    "EXISTS (SELECT 1 FROM visited WHERE visited.seq = entries.seq) FROM entries ORDER BY seq LIMIT ?"
)
