"""Counting: mutable counters inside, one frozen snapshot for everybody else.

The contract, event by event (one *outcome* per call or lookup, so that they sum to the number of calls):

- *hit*: a fresh entry answered.  *stale hit*: one past its ttl did, while a refresh runs behind it.  *coalesced*: the call
  joined a load that another caller had begun.
- *miss*: nothing usable was stored; for a decorated call its function ran.
- *bypass*: the cache stood aside (argument without a key, `f.bypass`, re-entry on the same key).

Beside the outcomes, and not part of that sum: loads (only the caller whose load ran records it), sets, deletes,
evictions, expirations (a lookup that met an entry past its life; it is also a miss), errors by kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from sys import getrefcount
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal, Protocol

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._record import record

__all__ = ["CacheStats", "Counters"]

SUMMED = (
    "hits", "stale_hits", "coalesced", "misses", "bypasses", "sets", "deletes", "evictions", "expirations",
    "loads", "load_errors", "load_seconds", "seconds_saved",
)  # fmt: skip

STATES = ("", "closed", "half_open", "open")
"""Of a backend's circuit breaker, the worst last."""

_NO_ERRORS: Mapping[str, int] = MappingProxyType({})

Scope = Literal["process", "all"]


@record(frozen=True, slots=True)
class CacheStats:
    """What happened in one function, namespace or manager up to the moment of the call.

    In this process, unless `scope="all"` was asked for.

    Seconds are wall seconds; `seconds_saved` adds up, for each hit, what the load of its entry took.
    `size` is the number of entries, `None` where a backend cannot count cheaply.  `backend` is the state of its circuit
    breaker in this process: "closed", "half_open", "open" (it does not answer and is left alone), or "" where there is none.
    """

    hits: int = 0
    stale_hits: int = 0
    coalesced: int = 0
    misses: int = 0
    bypasses: int = 0
    sets: int = 0
    deletes: int = 0
    evictions: int = 0
    expirations: int = 0
    loads: int = 0
    load_errors: int = 0
    load_seconds: float = 0.0
    load_seconds_max: float = 0.0
    seconds_saved: float = 0.0
    size: int | None = 0
    errors: Mapping[str, int] = _NO_ERRORS
    backend: str = ""

    @property
    def calls(self) -> int:
        """All outcomes together."""
        return self.hits + self.stale_hits + self.coalesced + self.misses + self.bypasses

    @property
    def hit_rate(self) -> float:
        """Share of lookups answered without running the function, 0.0 to 1.0; 0.0 before the first lookup.

        >>> f"{CacheStats(hits=3, misses=1).hit_rate:.2%}"
        '75.00%'
        """
        answered = self.hits + self.stale_hits + self.coalesced
        lookups = answered + self.misses
        return answered / lookups if lookups else 0.0

    @classmethod
    def merge(cls, parts: Iterable[CacheStats]) -> CacheStats:
        """The sum of several snapshots; `size` is `None` if any part's is; `backend` is the worst of theirs.

        >>> CacheStats.merge([CacheStats(hits=1), CacheStats(hits=2)]).hits
        3
        """
        parts = list(parts)
        errors: Counter[str] = Counter()
        for part in parts:
            errors.update(part.errors)
        sizes = [part.size for part in parts]
        return cls(
            **{name: sum(getattr(part, name) for part in parts) for name in SUMMED},
            load_seconds_max=max((part.load_seconds_max for part in parts), default=0.0),
            size=None if None in sizes else sum(size for size in sizes if size is not None),
            errors=MappingProxyType(dict(errors)),
            backend=max((part.backend for part in parts), key=STATES.index, default=""),
        )


class Counting(Protocol):
    """A cell, which counts the hits that it answered without the lock.

    On a build with a GIL an attribute increment is not interrupted between its read and its write (no eval-breaker check in
    between).  One counter in the cell serves statistics and eviction, and costs a third less than a counter here beside it.
    """

    hits: int
    followed: bool
    entry: Any

    @property
    def cost(self) -> float: ...


_FIRST_FOLDING = 1_024


class Counters:
    """The mutable side, one per function and one per namespace for direct use.

    Hot hits are counted in the cells that answer them; `snapshot` adds them up.  The hits of a dead cell are taken over once
    nobody else refers to it, so that a thread which is about to count one is not forgotten.  `hits` and `seconds_saved` are
    also incremented without the lock by the short ways of the direct API.  Everything colder goes through `add`, which locks.
    """

    __slots__ = (*SUMMED, "__weakref__", "_cells", "_errors", "_folding_at", "_lock", "load_seconds_max")

    hits: int
    misses: int
    sets: int
    loads: int
    load_errors: int
    load_seconds: float
    seconds_saved: float

    def __init__(self) -> None:
        self._lock = Lock()
        self._cells: list[Counting] = []
        self._folding_at = _FIRST_FOLDING
        self._reset()
        renew_after_fork(self)

    def _reset(self) -> None:
        for name in SUMMED:
            setattr(self, name, 0.0 if "seconds" in name else 0)
        hits, saved = self._of_cells()
        self.hits, self.seconds_saved = -hits, -saved
        self.load_seconds_max = 0.0
        self._errors: Counter[str] = Counter()

    def follow(self, cell: Counting) -> None:
        """From now on this cell's hits are counted too."""
        with self._lock:
            if cell.followed:
                return
            cell.followed = True
            self._cells.append(cell)
            if len(self._cells) >= self._folding_at:
                self._fold()

    def _fold(self) -> None:
        cells, kept = self._cells, []
        for place in range(len(cells)):
            if cells[place].entry is None and _references(cells, place) == _ALONE:
                self.hits += cells[place].hits
                self.seconds_saved += cells[place].hits * cells[place].cost
            else:
                kept.append(cells[place])
        self._cells = kept
        self._folding_at = max(_FIRST_FOLDING, 2 * len(kept))

    def _of_cells(self) -> tuple[int, float]:
        counted = [(cell.hits, cell.cost) for cell in self._cells]
        return sum(hits for hits, _ in counted), sum(hits * cost for hits, cost in counted)

    def hit(self, saved: float = 0.0) -> None:
        """A fresh entry answered and spared `saved` seconds."""
        with self._lock:
            self.hits += 1
            self.seconds_saved += saved

    def add(self, name: str, amount: float = 1) -> None:
        """Add to the counter of this name."""
        with self._lock:
            setattr(self, name, getattr(self, name) + amount)

    def load(self, seconds: float, *, failed: bool = False) -> None:
        """The function ran for so many seconds."""
        with self._lock:
            self.loads += 1
            self.load_errors += failed
            self.load_seconds += seconds
            self.load_seconds_max = max(self.load_seconds_max, seconds)

    def loaded(self, seconds: float) -> None:
        """A miss whose function ran for so many seconds."""
        self.load(seconds)
        self.add("misses")

    def stored(self, cells: list[Counting]) -> None:
        """Misses, and what their results are stored as: several of the others in one."""
        costs = [cell.cost for cell in cells]
        with self._lock:
            self.misses += len(cells)
            self.loads += len(cells)
            self.sets += len(cells)
            self.load_seconds += sum(costs)
            self.load_seconds_max = max(self.load_seconds_max, *costs)
            self._cells += cells
            if len(self._cells) >= self._folding_at:
                self._fold()

    def error(self, kind: str) -> int:
        """Count a swallowed fault of this kind; answers how many there have been."""
        with self._lock:
            self._errors[kind] += 1
            return self._errors[kind]

    def snapshot(self, size: int | None = 0) -> CacheStats:
        """The counters as they are now."""
        with self._lock:
            hits, saved = self._of_cells()
            return CacheStats(
                **{
                    **{name: getattr(self, name) for name in SUMMED},
                    "hits": self.hits + hits,
                    "seconds_saved": self.seconds_saved + saved,
                },
                load_seconds_max=self.load_seconds_max,
                size=size,
                errors=MappingProxyType(dict(self._errors)),
            )

    def after_fork(self) -> None:
        """The calls so far are the parent's to report; and the lock may be held by a thread that does not exist here."""
        self._lock = Lock()
        self._reset()


def _references(cells: list[Any], place: int) -> int:
    return getrefcount(cells[place])


_ALONE = _references([object()], 0)
"""The references to what only the list refers to, by this Python's way of counting."""
