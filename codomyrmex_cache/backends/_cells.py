"""Cells within bounds: by their number, by their bytes, and by the bytes of all who share a budget."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from operator import itemgetter
from threading import Lock
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._ends import Ends
from codomyrmex_cache.backends._eviction import Eviction, Resident
from codomyrmex_cache.backends._weight import Weigher

__all__ = ["NOTHING_DROPPED", "BareCell", "Budget", "Cell", "Cells", "Dropped", "KeyedCell", "LastingCell", "Owner"]

_MOST_PENDING, _AHEAD = 64, 256
"""Bare cells that get their places at once, and of how many cells one leaves ahead of need."""

_SWEEP_EVERY = 1_024
"""Writes between two looks for what has expired, where there is room; so that it does not stay for ever."""


class Cell(Resident):
    """The stored entry as the hot closure sees it.

    A reader takes `value` first and compares `deadline` second; `kill` moves `deadline` first and drops `value`
    second.  So a reader that saw the emptied value also sees the passed deadline, whatever the interleaving.  `followed` says
    whether its `hits` are added up by somebody (see `stats.Counters`).
    """

    __slots__ = ("cost", "deadline", "entry", "shared", "value")

    followed: Any  # `bool`, or a `Worth` of its hits
    entry: Entry | None
    value: Any
    deadline: float
    cost: float
    shared: bool

    def leave(self) -> None:
        """Answer nobody from now on.

        Said before the lock is released: `kill` comes later, and who asks meanwhile to delete what it holds finds it gone.
        """
        self.deadline = -inf

    def kill(self) -> None:
        """No longer an answer: replaced, deleted or evicted."""
        self.deadline = -inf
        self.value = None
        self.entry = None

    def ends_at(self) -> float:
        """From when on it may be dropped."""
        entry = self.entry
        if type(entry) is not Entry:
            return self.deadline
        return inf if entry.expires_at is None else entry.expires_at


class KeyedCell(Cell):
    """A cell that is found by its key, and weighed."""

    __slots__ = ("followed", "weight")

    def __init__(self, key: bytes, entry: Entry, weight: int = 1) -> None:
        super().__init__(key)
        self.weight = weight
        self.entry = entry
        self.value = entry.value
        self.deadline = inf if entry.fresh_until is None else entry.fresh_until
        self.cost = entry.cost
        self.shared = entry.shared
        self.followed = False


class Owner(Protocol):
    """Who keeps cells by something else than their keys, all for so many seconds; `head` is what the keys would begin with."""

    head: bytes
    seconds: float
    counters: Any  # `stats.Counters`

    def close(self) -> None: ...
    def cells(self) -> list[Cell]: ...


class BareCell(Cell):
    """A cell without key and entry, as long as nobody asks for them; its owner takes the place of the entry.

    There are many of these: ten attributes make it 112 bytes, and another one would make it 128.  Who makes it has its hits
    added up, it is only kept where nobody weighs, and when it was stored follows from its deadline.
    """

    __slots__ = ()

    followed = True

    def __init__(self, key: Any, value: Any, deadline: float, cost: float, shared: bool, owner: Owner) -> None:
        self.key = key
        self.value, self.deadline, self.cost, self.shared = value, deadline, cost, shared
        self.entry = owner  # type: ignore[assignment]  # it is there to be seen as alive
        self.hits = self.touches = self.seen = self.place = 0

    def owner(self) -> Owner | None:
        """Who keeps it by something else than its key; `None` once it has one, or is dead."""
        entry: Any = self.entry
        return None if type(entry) is Entry else entry

    def stored_at(self, owner: Owner) -> float:
        """When it was stored, by the clock of its deadline."""
        return self.deadline - owner.seconds


class LastingCell(BareCell):
    """One that has no deadline, so it says itself when it was stored."""

    __slots__ = ("created",)

    created: float

    def stored_at(self, owner: Owner) -> float:
        return self.created


class Dropped(NamedTuple):
    """Cells to be killed once the lock is released, and as what and to whom is told who had to make room."""

    cells: list[Cell]
    evicted: list[tuple[Cells, bytes]]
    owners: dict[Owner, int]
    """How many of those who had to make room had an owner that counts them."""

    def bury(self) -> None:
        """Outside the lock, since dropping a value may run a `__del__` that comes back here."""
        for cell in self.cells:
            cell.kill()
        for owner, number in self.owners.items():
            owner.counters.add("evictions", number)
        for cells, name in self.evicted:
            for listener in cells.listeners:
                listener(name)


NOTHING_DROPPED = Dropped([], [], {})


class Budget:
    """The bytes that several stores may take together, and their lock: to make room, one evicts from another.

    The one that would hold the most gives way, so that each may have its equal share, and what others leave of theirs.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.max_bytes = inf if max_bytes is None else max_bytes
        self.lock = Lock()
        self.members: WeakSet[Cells] = WeakSet()
        renew_after_fork(self)

    def limit(self, max_bytes: int | None) -> None:
        """From now on it is so many bytes, `None` for no bound."""
        for member in list(self.members):
            member.close_bare(b"")
        dropped = Dropped([], [], {})
        try:
            with self.lock:
                before, self.max_bytes = self.max_bytes, inf if max_bytes is None else max_bytes
                if inf in (before, self.max_bytes):
                    for member in list(self.members):
                        member.weigh_again(dropped)
                self.make_room(None, 0, dropped)
        finally:  # a weigher may have raised
            dropped.bury()

    def make_room(self, writer: Cells | None, weight: int, dropped: Dropped) -> None:
        """Until there is room for so many bytes more of the writer's, what has expired goes, and then who holds most evicts."""
        members, room = list(self.members), self.max_bytes - weight
        if sum(map(_weight, members)) <= room:
            return
        for member in members:
            member.drop_expired(None, dropped)
        while sum(map(_weight, members)) > room:
            holders = [member for member in members if member.weight]
            max(holders, key=lambda member: member.weight + weight * (member is writer)).evict(dropped)

    def before_fork(self) -> None:
        """What this process has stored is its own to count."""
        if not self.lock.locked():  # else by this very thread, if a signal handler forks
            with self.lock:
                for member in list(self.members):
                    member.admit()

    def after_fork_in_parent(self) -> None:
        """Nothing was held."""

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it, in the middle of something."""
        held, self.lock = self.lock.locked(), Lock()
        if held:
            for member in list(self.members):
                member.rebuild()


def _weight(cells: Cells) -> int:
    return cells.weight


class Cells:
    """The cells of one store by their keys.  Who writes has the budget's lock; who reads needs none.

    Args:
        max_entries: `None` for no bound.
        max_bytes: by the weigher, `None` for no bound.
        weigher: of values; only asked if there is a bound of bytes.
        budget: shared with others.
        clock: by which entries expire; without it the moment of each new entry is taken for now.
    """

    def __init__(
        self, max_entries: int | None, max_bytes: int | None, weigher: Weigher, budget: Budget, clock: Clock | None
    ) -> None:  # fmt: skip
        self.by_key: dict[bytes, Cell] = {}
        self.bare: WeakSet[Owner] = WeakSet()
        self.listeners: list[Callable[[bytes], None]] = []  # told of who had to make room
        self._max_entries = inf if max_entries is None else max_entries
        self._max_bytes = inf if max_bytes is None else max_bytes
        self._weigher, self._clock = weigher, clock
        self.budget = budget
        self._order: Eviction[Cell] = Eviction()
        self._ends: Ends[Cell] = Ends()
        self._written = 0
        self.pending: list[BareCell] = []  # bare cells that have no place in the order yet; they count
        self.most_pending = self._batch()
        with budget.lock:
            budget.members.add(self)
            self.weighs = self._max_bytes < inf or budget.max_bytes < inf

    @property
    def weight(self) -> int:
        """In bytes if there is a bound of bytes, else the number of cells."""
        return self._order.weight

    @property
    def most(self) -> float:
        """Bytes that a single value may have."""
        return min(self._max_bytes, self.budget.max_bytes)

    def weigh(self, value: object) -> int:
        """The bytes of a value, 1 where nobody counts them.

        Raises:
            ValueError: the weigher answers something else than a number of bytes.
        """
        if not self.weighs:
            return 1
        weight = self._weigher(value)
        if not isinstance(weight, int) or weight < 0:
            raise ValueError(f"the weigher answers {weight!r}: it must be a whole number >= 0")
        return weight

    def put(self, key: bytes, entry: Entry, weight: int) -> Dropped:
        """Keep the entry instead of what is there; one too heavy for the bounds only ends what is there."""
        dropped, budget, order = Dropped([], [], {}), self.budget, self._order
        if self.pending:
            self.admit()
        old, proven = self.by_key.get(key), False
        if old is not None:
            dropped.cells.append(old)
            old.leave()
            proven = order.remove(old)
        if weight > self._max_bytes or weight > budget.max_bytes:
            self.by_key.pop(key, None)
            return dropped
        self._written += 1
        most, heaviest = self._max_entries - 1, self._max_bytes - weight
        if order.count > most or order.weight > heaviest or self._written % _SWEEP_EVERY == 0:
            self.drop_expired(entry.created, dropped)
            while order.count > most or order.weight > heaviest:
                self.evict(dropped)
        if budget.max_bytes < inf:
            budget.make_room(self, weight, dropped)
        cell = self.by_key[key] = KeyedCell(key, entry, weight)
        if old is not None:
            order.remove(old)  # once more: all may have been rebuilt
            cell.touches = max(0, min(old.uses(), 3))
        order.add(cell, proven=proven)
        if entry.expires_at is not None:
            self._ends.add(cell, entry.expires_at, order.count)
        self.most_pending = self._batch()
        return dropped

    def settle(self, now: float, old: Cell | None) -> Dropped | None:
        """Give the bare cells that have come since the last time their places; what goes for them, and for them an old one.

        Some go ahead of those to come where there is a place for many: one in 256 of all.
        """
        order, dropped, most = self._order, None, self._max_entries
        if old is not None:
            dropped = Dropped([old], [], {})
            old.leave()
            order.remove(old)
        before, self._written = self._written, self._written + len(self.pending)
        if order.count + len(self.pending) > most or before // _SWEEP_EVERY != self._written // _SWEEP_EVERY:
            dropped = dropped or Dropped([], [], {})
            self.drop_expired(now, dropped)
            if order.count + len(self.pending) > most:
                least = int(most) - max(len(self.pending), min(int(most) // _AHEAD, _MOST_PENDING))
                while order.count > least:
                    self.evict(dropped, order.count - least)
        self.admit()
        return dropped

    def admit(self) -> None:
        """The same where there is room for all of them."""
        try:
            self._admit([cell for cell in self.pending if not cell.place])  # others, if all have been rebuilt
        except BaseException:  # an interruption; some may have a place and be in no queue
            self.rebuild()
            raise
        self.pending = []
        self.most_pending = self._batch()

    def _admit(self, cells: list[BareCell]) -> None:
        self._order.add_all(cells)
        while cells:
            owner: Any = cells[0].entry
            own = [cell for cell in cells if cell.entry is owner]
            cells = [] if len(own) == len(cells) else [cell for cell in cells if cell.entry is not owner]
            if owner is None:
                continue
            owner.counters.stored(own)
            if owner.seconds < inf:
                for cell in own:
                    self._ends.add(cell, cell.deadline, self._order.count)

    def _batch(self) -> int:
        room = self._max_entries - self._order.count
        return _MOST_PENDING if room >= _MOST_PENDING else max(1, int(room))

    def name(self, cell: BareCell, key: bytes, digest: bytes, parts: Any) -> bool:
        """Give a bare cell its key and its entry; `False` if there is another one under that key."""
        owner = cell.owner()
        if owner is None or not cell.place:
            return True  # it has gone meanwhile, or is about to be killed
        if key in self.by_key:
            self._order.remove(cell)
            return False
        until = None if cell.deadline == inf else cell.deadline
        cell.key, cell.entry = key, Entry(
            cell.value, cell.stored_at(owner), until, until, cell.cost, digest=digest, parts=parts, shared=cell.shared
        )  # fmt: skip
        self.by_key[key] = cell
        return True

    def close_bare(self, key: bytes) -> None:
        """Somebody is about to ask about this key, or about all that begin so: let those be known that may be concerned."""
        for owner in list(self.bare):
            if key.startswith(owner.head) or owner.head.startswith(key):
                owner.close()

    def pop(self, key: bytes) -> Cell | None:
        """The cell, no longer kept."""
        cell = self.by_key.pop(key, None)
        if cell is not None:
            cell.leave()
            self._order.remove(cell)
        return cell

    def evict(self, dropped: Dropped, number: int = 1) -> None:
        """The cells that can best be spared go, so many of them."""
        leaving: list[Cell] = []
        try:
            self._order.evict_many(number, leaving)
        except BaseException as problem:  # KeyboardInterrupt, now or before: so the order was told of cells that have gone
            self.rebuild()
            if isinstance(problem, IndexError):
                return
            raise
        for cell in leaving:
            owner: Any = cell.entry
            if owner is not None and type(owner) is not Entry:
                dropped.owners[owner] = dropped.owners.get(owner, 0) + 1
                dropped.cells.append(cell)
                cell.deadline = -inf
                continue
            if owner is not None:
                dropped.evicted.append((self, cell.key))
            self._drop(cell, dropped)

    def _drop(self, cell: Cell, dropped: Dropped) -> None:
        if (
            self.by_key.get(cell.key) is cell
        ):  # else an interrupted `pop` had got so far, and a newer one must be found by who deletes
            del self.by_key[cell.key]
        dropped.cells.append(cell)
        cell.leave()

    def drop_expired(self, now: float | None, dropped: Dropped) -> None:
        """What has expired by the clock, or by `now` where there is none, goes."""
        ends = self._ends
        if ends.soonest == inf:
            return
        if self._clock is not None:
            now = self._clock()
        if now is None or now < ends.soonest:
            return
        for cell in ends.ended(now):
            self._order.remove(cell)
            self._drop(cell, dropped)

    def weigh_again(self, dropped: Dropped) -> None:
        """Bytes begin to count, or cease to; for cells that cannot say their weight there are others."""
        self.weighs = self._max_bytes < inf or self.budget.max_bytes < inf
        weights = [(cell, self.weigh(cell.value)) for cell in self.by_key.values()]
        for cell, weight in weights:
            if isinstance(cell, KeyedCell):
                cell.weight = weight
            elif cell.entry is not None:
                weighed = KeyedCell(cell.key, cell.entry, weight)
                weighed.touches = max(0, cell.uses())
                dropped.cells.append(cell)
                cell.leave()
                self.by_key[cell.key] = weighed
        self.rebuild()

    def rebuild(self) -> None:
        """The order of leaving and the lines of ends, anew from the cells that there are."""
        self._order.clear()
        self._ends, self.pending = Ends(), []
        cells = [*self.by_key.values(), *(cell for owner in list(self.bare) for cell in owner.cells())]
        for cell in cells:
            self._order.add(cell)
        for end, cell in sorted([(cell.ends_at(), cell) for cell in cells], key=itemgetter(0)):
            if end < inf:
                self._ends.add(cell, end, len(cells))
