"""The short way of a miss in memory: from raw arguments to a cell, without a key, as long as nobody asks by key.

A call in memory whose arguments are plain needs its key for nothing but others: control methods, the direct API, listings.  As
long as none of these has been used for a function, its cells are *bare*: they lie in the function's front alone, by the raw
arguments, and the backend knows them only as what has to leave when it is full.  A load takes no lease, no generations and no
place on the board of flights.  That spares nine tenths of a miss.

The first question by key (anything the backend is asked about a key of the function, but how many there are) *closes* the
short way, for good: every bare cell gets its key and its entry, in place, and the question goes on.  Loads under way are not
stored, and who comes the long way does not join them: the question may have been an invalidation.  So there is nothing that
both ways could see differently, and closing costs no more than the keys would have cost.

*Who waits.*  The flight of a bare load is on `loading`, by the raw arguments, and in `LEADING`, so rings are found as ever.
Its future is made by the first who waits for it.  `loading.setdefault` decides who leads; a leader looks at the front once
more, since the one before may have landed after its first look.

*Order.*  A leader enters itself in `loading` first and looks whether the way is open second; `close` says that it is closed
first and reads `loading` second: one of them sees the other.  What lands is stored under the store's lock and only while the
way is open, and `close` closes it under that lock: a cell is stored before, and gets its key, or not at all.

*Many at once.*  What lands can be found at once, and counts for the bound at once.  Its place in the order of leaving, its
statistics and its end are settled for up to 64 cells together, by who lands the last of them or asks first (`Cells.settle`);
when the store is full, one in 256 leaves ahead of need.  An interruption amid that has all of it made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Token
from functools import partial
from math import inf
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from codomyrmex_cache._cold import ColdCall, Finished
from codomyrmex_cache._drive import wait
from codomyrmex_cache._effects import Patience
from codomyrmex_cache._entries import pack
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flight import LEADING, Abandoned, Failed, Flight, Landed, Outcome, Phase
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._front import SMALL
from codomyrmex_cache._isolation import is_awaitable, is_stream, isolated
from codomyrmex_cache._raising import own_copy
from codomyrmex_cache.backends._cells import BareCell, Cell, LastingCell
from codomyrmex_cache.backends.in_memory import InMemoryBackend
from codomyrmex_cache.errors import CacheCodecError
from codomyrmex_cache.keys import Key

if TYPE_CHECKING:
    from concurrent.futures import Future

    from codomyrmex_cache._calls import Calls
    from codomyrmex_cache._worth import Worth

__all__ = ["Bare", "bare_of"]

_PLAIN = frozenset({str, int, float, bool, type(None), bytes})

_QUICK, _MOST_COSTS = 0.001, 4_096


class _Costs(dict[float, float]):
    """What quick loads took, once for all cells: the time of day comes in steps of 0.24 us, so these are few numbers."""

    def __missing__(self, cost: float) -> float:
        if cost < _QUICK and len(self) < _MOST_COSTS:
            self[cost] = cost
        return cost


_COSTS = _Costs()
_new: Callable[[Any], Any] = object.__new__


class BareFlight(Flight):
    """A load on the short way; its wrapper calls and tells it like a `Run`.

    One is made for every short miss, so what most never need is said once, for the class, and `Bare.begin` says the rest.
    """

    key = b""
    fenced = False
    phase = Phase.BEGINNING
    names = ()
    loop = task = None
    load: object = True
    worth: Worth | None = None
    _waiting = 0
    _made: Future[Outcome] | None = None
    bare: Bare
    place: Any
    began: float
    token: Token[tuple[Flight, ...]]

    __init__ = object.__init__

    @property
    def carrier(self) -> Flight:  # type: ignore[override]
        """Itself: it is the load of one key."""
        return self

    @property
    def _lock(self) -> Lock:  # type: ignore[override]
        return self.bare.waiting

    @property
    def _waits_for(self) -> list[Flight]:  # type: ignore[override]
        found: list[Flight] = self.__dict__.setdefault("_waits", [])
        return found

    @property
    def future(self) -> Future[Outcome]:  # type: ignore[override]
        """Made under the store's lock, by who wants to wait."""
        assert self._made is not None
        return self._made

    @property
    def is_orphan(self) -> bool:
        """As of any flight."""
        return self.thread == get_ident() and self not in LEADING.get()

    def make_future(self) -> None:
        """From now on it can be waited for."""
        if self._made is None:
            from concurrent.futures import Future

            self._made = Future()
            self._made.set_running_or_notify_cancel()

    def tell(self, outcome: Outcome) -> None:
        """Those who wait; only the first outcome counts."""
        if self._made is not None and not self._made.done():
            self._made.set_result(outcome)

    def lead(self, now: float) -> BareFlight:
        """The caller leads it from now on."""
        self.token = LEADING.set((*LEADING.get(), self))
        self.began = now
        return self

    def resume(self, value: Any, error: BaseException | None = None) -> None:
        """What the function raised, which is raised again."""
        assert error is not None
        LEADING.reset(self.token)
        self.bare.failed(self, self.place, error, self.began)
        raise error

    def ended(self, value: Any) -> Any:
        """The result of the call, whose function gave this; it is kept, if that may be."""
        bare, place = self.bare, self.place
        try:
            LEADING.reset(self.token)
            now = bare.clock()
            packed, shared, kind, worth = value, True, bare.kind, None
            if type(value) not in _PLAIN:
                entry = bare.packed(self, value, now)
                if entry is None:
                    return value
                if isinstance(entry, ColdCall):
                    return entry.finish()
                packed, shared, worth = entry.value, entry.shared, self.worth
                kind = kind if worth is None else _WORTHY[kind]
            cell = _new(kind)  # without a frame for it
            cell.key, cell.value, cell.shared, cell.entry = place[1], packed, shared, bare
            cell.cost = cost = _COSTS[now - self.began]
            cell.hits = cell.touches = cell.seen = cell.place = 0
            if worth is not None:
                cell.followed = worth
            if bare.kind is BareCell:
                cell.deadline = now + bare.seconds
            else:
                cell.deadline, cell.created = inf, now  # `now + inf` would be another infinity for each
            dropped, loading, kept = None, bare.loading, bare.kept
            with bare.budget.lock:
                if loading.get(place) is self:
                    del loading[place]
                stored = bare.open
                if stored:
                    pending = kept.pending
                    pending.append(cell)  # first: what can be found must leave some day, even if an interruption comes
                    old = bare.front.put(place, cell)
                    if old is not None or len(pending) >= kept.most_pending:
                        dropped = kept.settle(now, old)
            if dropped is not None:
                dropped.bury()
            if not stored:
                bare.counters.loaded(cost)
            if self._made is not None:
                self.tell(Landed(Entry(value), Entry(packed, shared=shared)))
        except BaseException as problem:  # interrupted: whoever waits starts over
            bare.leave(self, place, Abandoned(problem))
            raise
        return value


class _WorthyCell(BareCell):
    """One whose hits spare tokens or money: how much, it says in `followed`."""

    __slots__ = ("followed",)


class _WorthyLastingCell(LastingCell):
    """The same without a deadline."""

    __slots__ = ("followed",)


_WORTHY: dict[type[BareCell], type[BareCell]] = {BareCell: _WorthyCell, LastingCell: _WorthyLastingCell}


class _Raising:
    """A call whose load has failed."""

    load = None

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def resume(self, reply: Any, error: BaseException | None = None) -> None:
        """Never needed."""

    def finish(self) -> Any:
        """The exception, raised."""
        raise self._error


class Bare:
    """The short way of one function.

    Args:
        memo: of the function.
        backend: of its namespace.
    """

    def __init__(self, memo: Calls, backend: InMemoryBackend) -> None:
        self.head = memo.cache.space.stored(memo.keyer.prefix)
        self.open = True
        self.loading: dict[Any, BareFlight] = {}
        self.front, self.counters, self.clock = memo.front, memo.counters, memo.cache.space.clock
        self.kept, self.budget = backend._kept, backend._kept.budget
        self._memo, self._space = memo, memo.cache.space
        self.seconds = inf if memo.rules.ttl is None else cast(float, memo.rules.ttl)
        self._copy = memo.rules.copy
        self.kind: Any = BareCell if self.seconds < inf else LastingCell
        self._cells = memo.front.cells
        self._first = memo.front.single
        self._renew_locks()
        renew_after_fork(self)
        self.front.use_clock(self.clock)
        self.front.use_cold(self.begin)

    def _renew_locks(self) -> None:
        self.waiting = Lock()
        self._closing = Lock()

    # -- calls

    def begin(self, bound: tuple[Any, ...]) -> Any:
        """A load that this caller leads, the result of another's, or a call that goes the long way."""
        first = self._first
        if first is not None and type(value := bound[first]) is int and -SMALL < value < SMALL:
            place: Any = (int, value)
        else:
            place = self.front.place_of(bound)
        if place is None or not self.open:
            return self._memo.long(bound)
        own = BareFlight()
        own.bare, own.place, own.thread = self, place, get_ident()
        flight = self.loading.setdefault(place, own)
        if flight is not own:
            return self._joined(flight, bound)
        cells = self._cells.get(place[0])
        cell = None if cells is None else cells.get(place[1])
        if (cell is None or cell.entry is None) and self.open:
            own.began = self.clock()
            own.token = LEADING.set((*LEADING.get(), own))
            return own
        return self._led(own, place, cell) or self._memo.long(bound)

    def _joined(self, flight: BareFlight, bound: tuple[Any, ...]) -> Any:
        """The same for one who finds another's load."""
        if flight.is_orphan:
            self.leave(flight, flight.place, Abandoned(RuntimeError("interrupted")))
            return self.begin(bound)
        return self._followed(flight, flight.place) or self.begin(bound)

    def _led(self, own: BareFlight, place: Any, cell: Cell | None) -> BareFlight | Finished | None:
        """The same for one who leads where a cell lies already, or as the way closes."""
        now = self.clock()
        if self.open and (cell is None or not now < cell.deadline):
            if cell is not None and cell.entry is not None:
                self.counters.add("expirations")
            return own.lead(now)
        self.leave(own, place, Abandoned(RuntimeError("not led")))
        if not self.open or cell is None:
            return None
        value, alive = cell.value, self.clock() < cell.deadline  # in this order: see Cell
        return self._copied(value, cell.shared, cell) if alive else None

    def _copied(self, value: Any, shared: bool, cell: Cell | None) -> Finished | None:
        """A caller's own copy, counted; `None` if it cannot be copied now."""
        try:
            value = value if shared or not self._copy else isolated(value)
        except CacheCodecError:
            return None
        if cell is None:
            self.counters.answered("coalesced", value=value)
        else:
            cell.hits += 1
        return Finished(value)

    def _followed(self, flight: BareFlight, place: Any) -> Finished | _Raising | None:
        """What the load of another caller came to; `None` to start over."""
        with self.budget.lock:
            if self.loading.get(place) is not flight:
                return None
            flight.make_future()
        try:
            flight.enter()
            if flight.waits_for_itself(blocking=True):
                self.close()  # the long way knows what to do
                return None
            outcome = wait(flight, Patience(None))
        finally:
            flight.leave()
        if isinstance(outcome, Failed):
            self.counters.add("coalesced")
            return _Raising(own_copy(outcome.error))
        if not isinstance(outcome, Landed):
            return None
        if outcome.packed is None:  # cannot be shared, so each runs the function, which the long way does side by side
            self.close()
            return None
        return self._copied(outcome.packed.value, outcome.packed.shared, None)

    def failed(self, flight: BareFlight, place: Any, error: BaseException, began: float) -> None:
        """The function raised."""
        self.counters.load(self.clock() - began, failed=True)
        self.counters.add("misses")
        self.leave(flight, place, Failed(error) if isinstance(error, Exception) else Abandoned(error))

    def packed(self, flight: BareFlight, value: Any, now: float) -> Entry | ColdCall | None:
        """What is kept of a value that others could change; `None` if it cannot be kept, a call if it is no plain result."""
        if is_awaitable(value) or is_stream(value):
            return self._of_another_kind(flight, flight.place, value)
        flight.worth = self.counters.spend(value)
        entry = pack(self._space, Key(self._memo.keyer.prefix, b""), Entry(value), self.counters, copy=self._copy)
        if entry is None:
            self.counters.load(now - flight.began)
            self.counters.add("misses")
            self.leave(flight, flight.place, Landed(Entry(value), None))
        return entry

    def _of_another_kind(self, flight: BareFlight, place: Any, value: Any) -> ColdCall:
        self.close()
        self.leave(flight, place, Abandoned(RuntimeError("no plain result")))
        memo, bound = self._memo, self.front.bound_at(place)
        call = ColdCall(memo, bound, memo._request(memo.keyer.key(bound), partial(memo._call, bound), bound))
        if call.load is not None:
            call.resume(value)
        return call

    def leave(self, flight: BareFlight, place: Any, outcome: Outcome) -> None:
        """The load has ended without a result to keep."""
        with self.budget.lock:
            if self.loading.get(place) is flight:
                del self.loading[place]
        flight.tell(outcome)

    def cells(self) -> list[Cell]:
        """Those without a key."""
        return [cell for _, cell in self.front.bare_cells(self)]

    # -- the end of it

    def close(self) -> None:
        """Give every cell its key; from now on calls go the long way."""
        with self._closing:
            if not self.open:
                return
            with self.budget.lock:
                self.open = False
                self.loading.clear()
                self.kept.admit()
                cells = self.front.bare_cells(self)
            for place, cell in cells:
                self._name(self.front.bound_at(place), cell)
            self.kept.bare.discard(self)
            self.front.use_cold(self._memo.long)

    def _name(self, bound: tuple[Any, ...], cell: BareCell) -> None:
        key, parts = self._memo.keyer.key(bound), self._memo._parts(bound)
        with self.budget.lock:
            known = self.kept.name(cell, self._space.stored(key.text), key.digest, parts)
        if not known:
            cell.kill()

    def after_fork(self) -> None:
        """The loads under way are the parent's."""
        self.loading.clear()
        self._renew_locks()


def bare_of(memo: Calls) -> Bare | None:
    """The short way of a function's misses, if it has one: in memory, with nothing to be asked about a result or a hit."""
    space, rules = memo.cache.space, memo.rules
    backend = space.backend
    if type(backend) is not InMemoryBackend or backend._kept.weighs or not memo.front.by_arguments:
        return None
    if rules.early or rules.touch or rules.stale or rules.errors or rules.jitter or rules.store_if or callable(rules.ttl):
        return None
    if rules.cost is not None:  # to be asked about every result, also those that go the shortest way
        return None
    if rules.ttl == 0 or rules.wait is not None or not rules.share_streams:
        return None
    kept, head = backend._kept, space.stored(memo.keyer.prefix)
    kept.close_bare(head)  # another function of this name, or the same one decorated again
    if any(key.startswith(head) for key in list(kept.by_key)):
        return None
    bare = Bare(memo, backend)
    memo.counters.sampled = partial(_sampled, ref(bare))
    kept.bare.add(bare)
    return bare


def _sampled(bare: ref[Bare]) -> Sequence[Sequence[tuple[str, object]]]:
    """What the living cells' loads were called with: names and values.  So a miss has nothing to write down."""
    found = bare()
    return () if found is None else found.front.arguments_of(found)
