"""The front of a function: raw arguments to live cells, and the wrapper's source that looks there first.

Types first, values second: `front[type(a), type(b)][a, b]`.  Only types for which equal values are interchangeable get
in, so the lookup runs no code of the user's (a `__hash__`, an `__eq__`) and `1`, `1.0` and `True` never meet.  Nothing is
ever searched or removed on invalidation: a dead cell is passed by, and the front drops dead ones when it has doubled.
"""

from __future__ import annotations

from typing import Any

from codomyrmex_cache._entry import Clock
from codomyrmex_cache._signature import RESERVED, Shape
from codomyrmex_cache.backends.in_memory import Cell

__all__ = ["Front", "wrapper_source"]

_MAX_TEXT = 4096
"""Longer strings are not kept as front keys: they would hold the memory that the bound on entries is there to limit."""

_MAX_BITS = 512
_FIRST_PRUNING = 1024


class Front:
    """The dict the wrapper reads, and its upkeep.

    Args:
        shape: of the function; with `*args` or `**kwargs` there is no front.
        enabled: whether a call depends on its arguments alone.
    """

    def __init__(self, shape: Shape, *, enabled: bool) -> None:
        self.cells: dict[Any, dict[Any, Cell]] = {}
        self.scope: dict[str, Any] = {}  # the wrapper's globals
        self._single = len(shape.names) == 1
        self.enabled = enabled and not shape.variadic
        self._filled = 0
        self._pruning_at = _FIRST_PRUNING

    def accepts(self, bound: tuple[Any, ...]) -> bool:
        """Whether these arguments may be a front key."""
        return self.enabled and all(map(_interchangeable, bound))

    def fill(self, bound: tuple[Any, ...], cell: Cell, clock: Clock) -> None:
        """From now on these arguments lead to this cell, whose deadline is on this clock."""
        self.scope[f"{RESERVED}now"] = clock
        kinds = tuple(map(type, bound))
        cells = self.cells.setdefault(kinds[0] if self._single else kinds, {})
        cells[bound[0] if self._single else bound] = cell
        self._filled += 1
        if self._filled >= self._pruning_at:
            self._prune()

    def _prune(self) -> None:
        for kinds, cells in list(self.cells.items()):
            self.cells[kinds] = {values: cell for values, cell in list(cells.items()) if cell.entry is not None}
        self._filled = sum(map(len, self.cells.values()))
        self._pruning_at = max(_FIRST_PRUNING, 2 * self._filled)


def _interchangeable(value: Any) -> bool:
    """Whether every equal value of the same type is the same to any function."""
    kind = type(value)
    if kind is str:
        return len(value) <= _MAX_TEXT
    if kind is int:
        return int(value.bit_length()) <= _MAX_BITS
    if kind is float:
        return bool(value == value and value != 0.0)  # NaN equals nothing, 0.0 equals -0.0
    return kind is bool or value is None


_SOURCE = """\
{define} {prefix}function({declaration}):
    try:
        {prefix}cell = {prefix}cells[{kinds}][{values}]
    except (KeyError, TypeError):  # a metaclass may make a type unhashable
        return {wait}{prefix}cold({bound})
    {prefix}value = {prefix}cell.value  # before the deadline: see Cell
    if {prefix}now() < {prefix}cell.deadline:
{copying}\
        {prefix}counters.hits += 1
        {prefix}counters.seconds_saved += {prefix}cell.cost
        {prefix}cell.visited = True
        return {prefix}value
    return {wait}{prefix}cold({bound})
"""
_COPYING = """\
        if not {prefix}cell.shared:
            try:
                {prefix}value = {prefix}isolated({prefix}value)
            except {prefix}error:
                return {wait}{prefix}cold({bound})
"""
_SOURCE_WITHOUT_FRONT = """\
{define} {prefix}function({declaration}):
    return {wait}{prefix}cold({bound})
"""


def wrapper_source(shape: Shape, *, is_async: bool, copy: bool, front: bool) -> str:
    """The wrapper as source: `_cached_function` with the function's own parameters."""
    names = shape.names
    single = len(names) == 1
    kinds = "".join(f"{RESERVED}type({name}), " for name in names)
    parts = {
        "define": "async def" if is_async else "def",
        "wait": "await " if is_async else "",
        "prefix": RESERVED,
        "declaration": shape.declaration,
        "bound": shape.bound,
        "kinds": f"{RESERVED}type({names[0]})" if single else f"({kinds})",
        "values": names[0] if single else shape.bound,
    }
    if not front:
        return _SOURCE_WITHOUT_FRONT.format(**parts)
    return _SOURCE.format(**parts, copying=_COPYING.format(**parts) if copy else "")
