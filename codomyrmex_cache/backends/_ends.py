"""Whose life ends next: a place in a line for each cell, as long as there are few lifetimes.

Cells of one lifetime end in the order they came in.  So they stand in line, 8 bytes each, where a heap takes a tuple, a number
and a comparison for each of log n levels.  A new cell goes to the first line whose last one ends no later.  That needs as many
lines as there are lifetimes, and no more; what fits into none (lifetimes that are drawn, a clock that went back) is in a heap.

Cells that have gone otherwise stay where they are until they would have ended, or are half of all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, Protocol, TypeVar

__all__ = ["Ends"]

_MOST_LINES = 8


class _Ending(Protocol):
    """A cell; its place is 0 when it has gone."""

    place: int

    def ends_at(self) -> float: ...


C = TypeVar("C", bound=_Ending)


class _Line(deque[C]):
    """Cells in the order of their ends, and when the last one ends that ever stood here."""

    __slots__ = ("last",)

    last: float


class Ends(Generic[C]):
    """The cells that are to end.  The caller has the lock."""

    def __init__(self) -> None:
        self.soonest = inf  # nothing ends before
        self._lines: list[_Line[C]] = []
        self._heap: list[tuple[float, int, C]] = []  # with the cells' identities, since cells have no order
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, cell: C, until: float, living: int) -> None:
        """A new cell.

        Args:
            cell: with its place.
            until: its end.
            living: how many cells there are.
        """
        if until < self.soonest:
            self.soonest = until
        self._size += 1
        if self._size > 2 * living + 64:
            self._sweep()
        lines = self._lines  # the lasts of which decrease from line to line
        if lines and lines[-1].last <= until:
            for line in lines:
                if line.last <= until:
                    break
        elif len(lines) < _MOST_LINES:
            line = _Line()
            lines.append(line)
        else:
            heappush(self._heap, (until, id(cell), cell))
            return
        line.last = until
        line.append(cell)

    def ended(self, now: float) -> Iterator[C]:
        """Those whose lives have ended by now, taken out."""
        heap, soonest = self._heap, inf
        for line in self._lines:
            while line:
                if line[0].place and (end := line[0].ends_at()) > now:
                    soonest = min(soonest, end)
                    break
                self._size -= 1
                cell = line.popleft()
                if cell.place:
                    yield cell
        while heap and heap[0][0] <= now:
            self._size -= 1
            cell = heappop(heap)[2]
            if cell.place:
                yield cell
        self.soonest = min(soonest, heap[0][0]) if heap else soonest

    def _sweep(self) -> None:
        for line in self._lines:
            here = [cell for cell in line if cell.place]
            line.clear()
            line.extend(here)
        self._heap = [end for end in self._heap if end[2].place]
        heapify(self._heap)
        self._size = sum(map(len, self._lines)) + len(self._heap) + 1  # and the one that is being added
