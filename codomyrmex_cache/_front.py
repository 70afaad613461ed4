"""The front of a function: raw arguments to live cells, and the wrapper's source that looks there first.

Types first, values second: `front[type(a), type(b)][a, b]`.  Only types for which equal values are interchangeable get
in, so the lookup runs no code of the user's (a `__hash__`, an `__eq__`) and `1`, `1.0` and `True` never meet.  Nothing is
ever searched or removed on invalidation: a dead cell is passed by, and the front drops dead ones when it has doubled.
"""

from __future__ import annotations

from typing import Any, Literal

from codomyrmex_cache._entry import Clock
from codomyrmex_cache._signature import RESERVED, Shape
from codomyrmex_cache.backends.in_memory import Cell
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["MISSES", "Front", "wrapper_source"]

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


_HOT = """\
    try:
        {prefix}cell = {prefix}cells[{kinds}][{values}]
        {prefix}value = {prefix}cell.value  # before the deadline: see Cell
        if {prefix}now() < {prefix}cell.deadline:
{copying}\
            {prefix}counters.hits += 1
            {prefix}counters.seconds_saved += {prefix}cell.cost
            {prefix}cell.visited = True
            return {prefix}value
    except {prefix}misses:
        pass
"""
_COPYING = """\
            if not {prefix}cell.shared:
                {prefix}value = {prefix}isolated({prefix}value)
"""

MISSES = (KeyError, TypeError, CacheCodecError)
"""What the hot lines may raise: no such cell, a type made unhashable by its metaclass, a value that cannot be copied now."""

_COLD = {
    # the function is called from the wrapper, so that in a function that calls itself no frames of ours lie in between
    "plain": """\
    {prefix}run = {prefix}cold({bound})
    if {prefix}run.load is not None:
        try:
            {prefix}value = {prefix}target({arguments})
        except BaseException as {prefix}raised:
            {prefix}run.resume(None, {prefix}raised)
        else:
            {prefix}run.resume({prefix}value)
    return {prefix}run.finish()
""",
    "coroutine": "    return await {prefix}cold({bound})\n",
    "other": "    return {prefix}cold({bound})\n",
}


def wrapper_source(shape: Shape, *, kind: Literal["plain", "coroutine", "other"], copy: bool, front: bool) -> str:
    """The wrapper as source: `_cached_function` with the function's own parameters; "other" leaves all to what is cold."""
    names = shape.names
    single = len(names) == 1
    kinds = "".join(f"{RESERVED}type({name}), " for name in names)
    parts = {
        "prefix": RESERVED,
        "bound": shape.bound,
        "arguments": shape.arguments,
        "kinds": f"{RESERVED}type({names[0]})" if single else f"({kinds})",
        "values": names[0] if single else shape.bound,
    }
    head = f"{'async ' if kind == 'coroutine' else ''}def {RESERVED}function({shape.declaration}):\n"
    hot = _HOT.format(**parts, copying=_COPYING.format(**parts) if copy else "") if front else ""
    return head + hot + _COLD[kind].format(**parts)
