"""Counting: mutable counters inside, one frozen snapshot for everybody else.

The contract, event by event (one *outcome* per call or lookup, so that they sum to the number of calls):

- *hit*: a fresh entry answered.  *stale hit*: one past its ttl did, while a refresh runs behind it.  *coalesced*: the call
  joined a load that another caller had begun.
- *miss*: nothing usable was stored; for a decorated call its function ran.
- *bypass*: the cache stood aside (argument without a key, `f.bypass`, re-entry on the same key).

Beside the outcomes, and not part of that sum: loads (only the caller whose load ran records it), sets, deletes,
evictions, expirations (a lookup that met an entry past its life; it is also a miss), errors by kind.

And what was spared, by results that tell of it: tokens and money for each hit, stale hit and coalesced call, since each of them
would have been a load of its own; seconds for the first two alone, since who joins a load waits for it.  What loads spent is
counted whether or not their results were stored, the refreshes behind stale hits among them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import getrefcount
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal, Protocol

from codomyrmex_cache._entry import MISSING
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._record import record
from codomyrmex_cache._worth import NO_MODELS, Ledger, ModelStats, Worth, merged

__all__ = ["CacheStats", "Counters", "ModelStats"]

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

    Seconds are wall seconds; `seconds_saved` adds up, for each hit and stale hit, what the load of its entry took.  `models`
    says the same of tokens and dollars, by model ("" where the result names none), for decorated functions whose results tell
    their usage or that were given `cost=`; see `ModelStats`.
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
    models: Mapping[str, ModelStats] = NO_MODELS

    @property
    def tokens_saved(self) -> int:
        """Tokens of input and output that hits, stale hits and coalesced calls did not take."""
        return sum(model.tokens_saved for model in self.models.values())

    @property
    def cost_saved(self) -> float:
        """Dollars that they did not take, without those of the `unpriced`."""
        return sum(model.cost_saved for model in self.models.values())

    @property
    def unpriced(self) -> int:
        """How many of them had a result whose price is unknown."""
        return sum(model.unpriced for model in self.models.values())

    @property
    def tokens_spent(self) -> int:
        """Tokens of input and output that loads took."""
        return sum(model.tokens_spent for model in self.models.values())

    @property
    def cost_spent(self) -> float:
        """Dollars that they took, as far as their prices are known."""
        return sum(model.cost_spent for model in self.models.values())

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
            models=merged(part.models for part in parts),
        )


class Counting(Protocol):
    """A cell, which counts the hits that it answered without the lock.

    On a build with a GIL an attribute increment is not interrupted between its read and its write (no eval-breaker check in
    between).  One counter in the cell serves statistics and eviction, and costs a third less than a counter here beside it.
    `followed` is `False` until its hits are added up, then `True`, or the worth of what each of them spares.
    """

    hits: int
    followed: bool | Worth
    entry: Any

    @property
    def cost(self) -> float: ...


_FIRST_FOLDING = 1_024

_SAMPLED = 128
"""Of the last loads it is known what they were called with: by this many it shows which argument never repeats."""


class Counters:
    """The mutable side, one per function and one per namespace for direct use.

    Hot hits are counted in the cells that answer them; `snapshot` adds them up.  The hits of a dead cell are taken over once
    nobody else refers to it, so that a thread which is about to count one is not forgotten.  `hits` and `seconds_saved` are
    also incremented without the lock by the short ways of the direct API.  Everything colder goes through `add`, which locks.
    """

    __slots__ = (
        *SUMMED, "__weakref__", "_cells", "_errors", "_folding_at", "_ledger", "_lock", "appraise", "load_seconds_max",
        "loaded_by", "sampled",
    )  # fmt: skip

    hits: int
    misses: int
    sets: int
    loads: int
    load_errors: int
    load_seconds: float
    seconds_saved: float

    def __init__(self) -> None:
        self.appraise: Callable[[Any], Worth | None] | None = None
        """What the load of a result took, if there is anything to say."""
        self.sampled: Callable[[], Sequence[Sequence[tuple[str, object]]]] = tuple
        """What loads were called with that `loaded_by` does not know of."""
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
        self._ledger = Ledger()
        self._enter_cells(self._ledger, -1)
        self.loaded_by: deque[Sequence[tuple[str, object]]] = deque(maxlen=_SAMPLED)
        self.load_seconds_max = 0.0
        self._errors: Counter[str] = Counter()

    def worth(self, value: object) -> Worth | None:
        """What the load of this result took, `None` if nobody can say."""
        return None if value is MISSING or self.appraise is None else self.appraise(value)

    def follow(self, cell: Counting, value: object = MISSING) -> None:
        """From now on this cell's hits are counted too, each of them as one that gave this value."""
        if cell.followed:
            return
        worth = self.worth(value)
        with self._lock:
            if cell.followed:
                return
            cell.followed = worth or True
            self._cells.append(cell)
            if len(self._cells) >= self._folding_at:
                self._fold()

    def _fold(self) -> None:
        cells, kept = self._cells, []
        for place in range(len(cells)):
            if cells[place].entry is None and _references(cells, place) == _ALONE:
                self.hits += cells[place].hits
                self.seconds_saved += cells[place].hits * cells[place].cost
                _enter(self._ledger, cells[place])
            else:
                kept.append(cells[place])
        self._cells = kept
        self._folding_at = max(_FIRST_FOLDING, 2 * len(kept))

    def _of_cells(self) -> tuple[int, float]:
        counted = [(cell.hits, cell.cost) for cell in self._cells]
        return sum(hits for hits, _ in counted), sum(hits * cost for hits, cost in counted)

    def _enter_cells(self, ledger: Ledger, factor: int = 1) -> None:
        for cell in [cell for cell in self._cells if type(cell.followed) is Worth]:
            _enter(ledger, cell, factor)

    def hit(self, saved: float = 0.0, value: object = MISSING) -> None:
        """A fresh entry answered, with this value, and spared `saved` seconds."""
        self.answered("hits", saved, value)

    def answered(self, outcome: str, saved: float = 0.0, value: object = MISSING) -> None:
        """A call had this outcome, which spared it these seconds and the load of this value."""
        worth = None if value is MISSING or self.appraise is None else self.appraise(value)
        with self._lock:
            setattr(self, outcome, getattr(self, outcome) + 1)
            self.seconds_saved += saved
            if worth is not None:
                self._ledger.add(worth, 1, saved)

    def spend(self, value: object, *, sharing: int = 0) -> Worth | None:
        """A load gave this value, to so many beside the one who began it; answers what it took."""
        worth = self.worth(value)
        if worth is not None:
            with self._lock:
                self._ledger.add(worth, hits=sharing, loads=1)
        return worth

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
            ledger = Ledger(self._ledger)
            self._enter_cells(ledger)
            hits, saved = self._of_cells()
            amounts = {name: getattr(self, name) for name in SUMMED}
            amounts |= {"hits": self.hits + hits, "seconds_saved": self.seconds_saved + saved}
            longest, errors = self.load_seconds_max, MappingProxyType(dict(self._errors))
        models = ledger.models()
        return CacheStats(**amounts, load_seconds_max=longest, size=size, errors=errors, models=models)

    def after_fork(self) -> None:
        """The calls so far are the parent's to report; and the lock may be held by a thread that does not exist here."""
        self._lock = Lock()
        self._reset()


def _enter(ledger: Ledger, cell: Counting, factor: int = 1) -> None:
    hits = factor * cell.hits
    if type(cell.followed) is Worth:
        ledger.add(cell.followed, hits, hits * cell.cost)


def _references(cells: list[Any], place: int) -> int:
    return getrefcount(cells[place])


_ALONE = _references([object()], 0)
"""The references to what only the list refers to, by this Python's way of counting."""
