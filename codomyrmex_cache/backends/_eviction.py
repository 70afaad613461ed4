"""Who leaves a full cache.  Hits only count; all thinking is done when something must go.

The policy is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) with four changes.

*Two queues and a memory.*  New cells line up in `probation`, which holds a small share of the weight.  At its head a cell
that was used twice meanwhile goes on to `main`; another one leaves, and its key is remembered.  A key that comes back while
few have left after it (at first one and a half times as many as there are cells) goes straight to `main`.  There a cell at
the head gets another turn for each of up to three uses since it was last looked at (CLOCK with a count), and leaves when it
has none.  So what is used once, such as a scan, passes through probation and moves nothing in `main`.

*First change: main is filled first.*  While there is room, what probation has no share for goes to `main` without proof.
S3-FIFO leaves it in probation, and a loop over more keys than fit then never hits: they all pass by before any comes back.
Here the first ones stay and hit in each round (a loop over 1,500 keys in 225 places: 97 % of the optimum instead of 0).

*Second change: the share of probation follows the traffic.*  A key that comes back so soon that a probation twice as long
would have kept it makes the share grow by one place; each departure makes it shrink by a fifth of one.  Where recent keys
are the ones that come back, probation grows up to half; elsewhere it keeps to its 3 %.  Counting misses is enough for that.

*Third change: so does the horizon of the memory.*  It decides how easily `main` takes new cells in.  One that came back and
is used again in `main` widens it; one that leaves unused, or a key that had left `main` and is missed again, narrows it.
The latter is the mark of a loop that does not fit: to let its keys in only drives out others of its kind (a loop beside
popular keys, in two fifths of the room: from 73 % to 85 % of the optimum).

*Fourth change: the memory is an array.*  S3-FIFO keeps the keys that left in a second dict.  Here each has one slot, at its
hash, with 32 bits of fingerprint and the number of departures when it left; its age is the difference, so nothing is ever
removed.  A collision forgets a key, or takes one in 2**32 for another: either costs a hit at most.  That is 16 to 32 bytes
for each cell, allocated when the first one leaves.

*Measured* by `python -m benchmarks.traces`, which prints this policy beside TinyLFU (theine, moka), LRU and the optimum.
Around the constants below the result is flat: one halved or doubled moves the mean by a point or so.  Comparing frequencies
before a key may enter `main`, as TinyLFU does, gained two points under steady popularity and lost five to ten where
popularity moves.

*Cost.*  A hit costs what its counter costs.  A cell moves once for each use that was counted, so an eviction is O(1)
amortised over the uses and insertions before it.  Cells that were removed by others stay in their queue, marked, until they
reach its head or are half of all.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Generic, TypeVar

__all__ = ["Eviction", "Resident"]

_LEAST_SHARE, _LARGEST_SHARE = 0.03, 0.5
_SHRINKING = 0.2
_FIRST_HORIZON, _LEAST_HORIZON, _LARGEST_HORIZON = 1.5, 0.3, 2.0
_KEPT_WELL, _KEPT_FOR_NOTHING, _REGRET = 2, 1, 2
_REGRETTED = 3
_MOST_TURNS = 3
_PROVEN = 2
_ROOMY = 15 / 16
"""Of the weight when something last had to go: below it there is room again, after a `clear`, or when many have expired."""

_GONE, _PROBATION, _MAIN, _RETURNED = range(4)
"""Where a cell is; the last is in `main` too, because its key had come back, and not yet looked at there."""

_32_BITS, _31_BITS = 0xFFFFFFFF, 0x7FFFFFFF


class Resident:
    """What the policy needs to know of a cell.

    `hits` is counted by the wrapper of a decorated function, `touches` by every other reader.  An increment lost between
    threads is a use less, no more.
    """

    __slots__ = ("hits", "key", "place", "seen", "touches")

    weight = 1
    """A kind that is weighed has a slot for it."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.hits = self.touches = self.seen = 0
        self.place = _GONE

    def uses(self) -> int:
        """Since the policy last looked, and what it left over then."""
        return self.hits + self.touches - self.seen


R = TypeVar("R", bound=Resident)


class Eviction(Generic[R]):
    """The order of leaving.  The caller has the lock, the cells by their keys, and the bounds.

    >>> order = Eviction()
    >>> cells = [Resident(b"%d" % number) for number in range(3)]
    >>> for cell in cells:
    ...     order.add(cell)
    >>> cells[0].hits += 1
    >>> order.evict().key, order.evict().key, order.weight
    (b'2', b'1', 1)
    """

    def __init__(self) -> None:
        self.weight = 0  # of all cells
        self.count = 0  # of them
        self._probation: deque[R] = deque()
        self._main: deque[R] = deque()
        self._on_probation = 0  # the weight of it
        self._share = _LEAST_SHARE
        self._horizon = _FIRST_HORIZON
        self._roomy = inf
        self._gone = 0  # still in a queue
        self._memory = array("Q")
        self._departures = 0

    def add(self, cell: R, *, proven: bool = False) -> None:
        """A new cell.

        Args:
            cell: with its key and weight.
            proven: it takes the place of a cell that had been in `main`.
        """
        self.count += 1
        self.weight += cell.weight
        if proven or (self._memory and self._comes_back(cell.key)):
            cell.place = _MAIN if proven else _RETURNED
            self._main.append(cell)
        else:
            cell.place = _PROBATION
            self._on_probation += cell.weight
            self._probation.append(cell)
        if self.weight <= self._roomy:
            self._fill_main()

    def add_all(self, cells: Sequence[R]) -> None:
        """The same for several that are new, of weight 1 each."""
        self.count += len(cells)
        self.weight += len(cells)
        if self._memory:
            probation, main, comes_back = self._probation, self._main, self._comes_back
            for cell in cells:
                if comes_back(cell.key):
                    cell.place = _RETURNED
                    main.append(cell)
                else:
                    cell.place = _PROBATION
                    self._on_probation += 1
                    probation.append(cell)
        else:
            for cell in cells:
                cell.place = _PROBATION
            self._on_probation += len(cells)
            self._probation.extend(cells)
        if self.weight <= self._roomy:
            self._fill_main()

    def remove(self, cell: R) -> bool:
        """The cell has been dropped; whether it was in `main`."""
        place = cell.place
        if place == _PROBATION:
            self._on_probation -= cell.weight
        if place != _GONE:
            cell.place = _GONE
            self.count -= 1
            self.weight -= cell.weight
            self._gone += 1
            if self._gone > self.count + 16:
                self._sweep()
        return place >= _MAIN

    def evict(self) -> R:
        """The cell that can best be spared; it is dropped.

        Raises:
            IndexError: there is none.
        """
        leaving: list[R] = []
        self.evict_many(1, leaving)
        return leaving[0]

    def evict_many(self, number: int, leaving: list[R]) -> None:
        """The same for several, which are added to the list.

        Raises:
            IndexError: there are no more.
        """
        self._roomy = self.weight * _ROOMY
        probation = self._probation
        while number:
            if probation and self._on_probation >= self._share * self.weight:
                cell = probation.popleft()
                if cell.place == _GONE:
                    self._gone -= 1
                    continue
                self._on_probation -= cell.weight
                uses = cell.hits + cell.touches
                if uses - cell.seen >= _PROVEN:
                    cell.seen = uses
                    cell.place = _MAIN
                    self._main.append(cell)
                    continue
                self._departures += 1
                self._remember(cell.key, 0)
                if self._share > _LEAST_SHARE:
                    self._share = max(_LEAST_SHARE, self._share - _SHRINKING / self.count)
            elif (found := self._judged_old()) is None:
                continue
            else:
                cell = found
            leaving.append(cell)
            cell.place = _GONE
            self.count -= 1
            self.weight -= cell.weight
            number -= 1

    def clear(self) -> list[R]:
        """All cells are dropped, and there is room; what has left before is remembered."""
        cells = [cell for cell in (*self._probation, *self._main) if cell.place != _GONE]
        for cell in cells:
            cell.place = _GONE
        self._probation.clear()
        self._main.clear()
        self.weight = self.count = self._on_probation = self._gone = 0
        self._roomy = inf
        return cells

    def _judged_old(self) -> R | None:
        cell = self._main.popleft()
        if cell.place == _GONE:
            self._gone -= 1
            return None
        uses = cell.uses()
        if cell.place == _RETURNED:
            self._move_horizon(_KEPT_WELL if uses > 0 else -_KEPT_FOR_NOTHING)
            cell.place = _MAIN
        if uses <= 0:
            self._remember(cell.key, 1)
            return cell
        cell.seen += uses - min(uses, _MOST_TURNS) + 1
        self._main.append(cell)
        return None

    def _fill_main(self) -> None:
        probation, main, share = self._probation, self._main, self._share * self.weight
        while probation and self._on_probation - probation[0].weight >= share:
            cell = probation.popleft()
            if cell.place == _GONE:
                self._gone -= 1
            else:
                self._on_probation -= cell.weight
                cell.place = _MAIN
                main.append(cell)

    def _sweep(self) -> None:
        for queue in (self._probation, self._main):
            here = [cell for cell in queue if cell.place != _GONE]
            queue.clear()
            queue.extend(here)
        self._gone = 0

    # -- the memory of what has left

    def _remember(self, key: bytes, of_main: int) -> None:
        memory, digest = self._memory, hash((key,))
        if 2 * self.count > len(memory):  # from time to time, as the number of cells doubles; what it knew is lost
            memory = self._memory = array("Q", bytes(8 << max(4, (2 * self.count - 1).bit_length())))
        memory[digest % len(memory)] = (digest >> 32 & _32_BITS) << 32 | (self._departures & _31_BITS) << 1 | of_main

    def _comes_back(self, key: bytes) -> bool:
        """Whether it left probation not long ago."""
        memory, digest = self._memory, hash((key,))
        found = memory[digest % len(memory)]
        if not found or found >> 32 != digest >> 32 & _32_BITS:
            return False
        age = self._departures - (found >> 1) & _31_BITS
        if found & 1:
            if age < _REGRETTED * self.count:
                self._move_horizon(-_REGRET)
            return False
        if age < max(4.0, self._share * self.count):
            self._share = min(_LARGEST_SHARE, self._share + 1 / self.count)
        return age < self._horizon * self.count

    def _move_horizon(self, steps: int) -> None:
        self._horizon = min(_LARGEST_HORIZON, max(_LEAST_HORIZON, self._horizon + steps / self.count))
