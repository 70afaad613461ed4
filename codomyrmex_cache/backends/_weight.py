"""How many bytes of memory a value takes, about."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from types import ModuleType
from typing import Any

__all__ = ["Weigher", "weigh"]

Weigher = Callable[[Any], int]
"""A stored value to its bytes of memory."""

ENTRY_BYTES = 600
"""What an entry takes beside its value: its key, its times, its cell, its places in the dicts and queues."""

_SHELL = 100  # of an array or a frame
_SAMPLE = 64
_MOST_OBJECTS = 4096
_MOST_DEPTH = 16
_SEQUENCES = (list, tuple, set, frozenset, deque)


def weigh(value: Any) -> int:
    """The bytes of an entry with this value, estimated.

    Containers of Python's own and the attributes of objects are followed, an object met twice counts once.  Arrays and frames
    count by `nbytes`, `estimated_size()` or `__sizeof__`, whichever they have.  Of a container with more than 64 elements 64
    are looked at, spread evenly, and stand for the rest; below sixteen levels, and after 4,096 objects, the outside counts.

    >>> weigh("x" * 10_000) > 10_000, weigh([b"x" * 1000] * 10) < 3_000, weigh(["x" * n for n in range(1000)]) > 500_000
    (True, True, True)
    """
    return ENTRY_BYTES + round(_Weighing().size(value, _MOST_DEPTH))


class _Weighing:
    def __init__(self) -> None:
        self._seen: set[int] = set()

    def size(self, value: Any, depth: int) -> float:
        if id(value) in self._seen:
            return 0
        held = _held(value)
        if held is not None:
            self._seen.add(id(value))
            return held + _SHELL
        outside = sys.getsizeof(value, 64)
        if depth == 0 or len(self._seen) >= _MOST_OBJECTS:
            return outside
        self._seen.add(id(value))
        try:
            return outside + self._inside(value, depth - 1)
        except RuntimeError:  # another thread has just changed its size, which only happens to what is shared
            return outside

    def _inside(self, value: Any, depth: int) -> float:
        if isinstance(value, dict):
            return self._sampled(value.keys(), depth) + self._sampled(value.values(), depth)
        if isinstance(value, _SEQUENCES):
            return self._sampled(value, depth)
        if isinstance(value, type | ModuleType):  # not the value's own
            return 0
        attributes = getattr(value, "__dict__", None)
        total = self.size(attributes, depth) if type(attributes) is dict else 0
        for name in getattr(type(value), "__slots__", ()):
            total += self.size(getattr(value, name, None), depth)
        return total

    def _sampled(self, values: Any, depth: int) -> float:
        count = len(values)
        if count <= _SAMPLE:
            return self._sum(values, depth)
        step = count // _SAMPLE
        return self._sum(islice(values, 0, step * _SAMPLE, step), depth) * count / _SAMPLE

    def _sum(self, values: Iterable[Any], depth: int) -> float:
        return sum(self.size(value, depth) for value in values)


def _held(value: Any) -> int | None:
    """What an array or a frame says that it holds.  Asked of the class first, as an instance may answer to any name."""
    kind = type(value)
    held = value.nbytes if hasattr(kind, "nbytes") else value.estimated_size() if hasattr(kind, "estimated_size") else None
    return held if type(held) is int else None
