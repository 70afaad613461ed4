"""How many bytes of memory a value takes, about."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from itertools import islice
from types import ModuleType
from typing import Any

__all__ = ["Weigher", "weigh"]

Weigher = Callable[[Any], int]
"""A stored value to its bytes of memory."""

ENTRY_BYTES = 600
"""What an entry takes beside its value: its key, its times, its cell, its places in the dicts and queues."""

_SHELL = 100  # of an array or a frame
_SAMPLE, _SAMPLE_OF_SAMPLE = 64, 8
_LONGEST_STEP = 16
_MOST_OBJECTS = 1_000
_NUMBERS = frozenset({int, float, bool, complex, type(None)})
_CLOSED = frozenset({str, bytes, bytearray})
_SEQUENCES = (list, tuple)
_COLLECTIONS = (set, frozenset, deque)


def weigh(value: Any) -> int:
    """The bytes of an entry with this value, estimated.

    Containers of Python's own and the attributes of objects are followed, outer ones first, and an object met twice counts
    once.  Arrays and frames count by `nbytes`, `estimated_size()` or `__sizeof__`, whichever they have.  Of a container with
    more than 64 elements 64 stand for the rest, of one inside it 8, and after a thousand objects only the outside counts.
    So it takes from half a microsecond for a text to a few milliseconds.

    >>> weigh("x" * 10_000) > 10_000, weigh([b"x" * 1000] * 10) < 3_000, weigh(["x" * n for n in range(1000)]) > 500_000
    (True, True, True)
    """
    if type(value) in _NUMBERS or type(value) in _CLOSED:
        return ENTRY_BYTES + sys.getsizeof(value)
    total = float(ENTRY_BYTES)
    seen: set[int] = set()
    found: list[tuple[Any, float]] = [(value, 1.0)]  # with how many each stands for; it grows while it is walked through
    for inner, times in found:
        kind = type(inner)
        if kind in _NUMBERS:
            total += times * sys.getsizeof(inner)
        elif id(inner) not in seen:
            seen.add(id(inner))
            held = None if kind in _CLOSED else _held(inner)
            total += times * (sys.getsizeof(inner, 64) if held is None else held + _SHELL)
            if held is None and kind not in _CLOSED and len(found) < _MOST_OBJECTS:
                found += _inside(inner, times)
    return round(total)


def _held(value: Any) -> int | None:
    """What an array or a frame says that it holds.  Asked of the class first, as an instance may answer to any name."""
    kind = type(value)
    held = value.nbytes if hasattr(kind, "nbytes") else value.estimated_size() if hasattr(kind, "estimated_size") else None
    return held if type(held) is int else None


def _inside(value: Any, times: float) -> list[tuple[Any, float]]:
    if isinstance(value, dict):
        return _sampled(value.keys(), times) + _sampled(value.values(), times)
    if isinstance(value, _SEQUENCES + _COLLECTIONS):
        return _sampled(value, times)
    if isinstance(value, type | ModuleType):  # not the value's own
        return []
    attributes = getattr(value, "__dict__", None)
    inner = [(attributes, times)] if type(attributes) is dict else []
    names = getattr(type(value), "__slots__", ())
    return inner + [(getattr(value, name, None), times) for name in ((names,) if isinstance(names, str) else names)]


def _sampled(values: Any, times: float) -> list[tuple[Any, float]]:
    count, most = len(values), _SAMPLE if times == 1.0 else _SAMPLE_OF_SAMPLE
    if count <= most:
        some = values
    elif isinstance(values, _SEQUENCES):
        step = count // most
        some = values[: step * most : step]
    else:  # must be walked through, so not to its end
        step = min(_LONGEST_STEP, count // most)
        some = islice(values, 0, step * most, step)
    times *= max(1.0, count / most)
    try:
        return [(value, times) for value in some]
    except RuntimeError:  # another thread has just changed its size, which only happens to what is shared
        return []
