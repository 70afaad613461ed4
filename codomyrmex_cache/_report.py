"""Statistics as a table for people, and below it which functions had better not be cached, and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from codomyrmex_cache.stats import CacheStats, Counters, ModelStats

if TYPE_CHECKING:
    from codomyrmex_cache.cache import Cache

__all__ = ["report"]

_ENOUGH, _LOSING = 20, 0.05
"""Lookups from which on a hit rate means something, and below which one a function is named."""

_FULL = ("calls", "hit rate", "size", "load s", "saved s", "tokens saved", "$ saved", "unpriced")
_NAMES = ("namespace, function, model", "backend")

_UNNAMED = "(no model)"


class Line(NamedTuple):
    """What is told of one namespace, function or model, as text."""

    depth: int
    name: str
    backend: str
    cells: tuple[str, ...]


def report(caches: Mapping[str, Cache], *, rich: bool | None) -> str:
    """The table of these namespaces; `rich` as for `CacheManager.report`.

    Raises:
        ImportError: rich was asked for and is not installed.
    """
    lines, losing, told = [], [], False
    for name, cache in sorted(caches.items()):
        stats = cache.stats()
        told = told or bool(stats.models)
        lines.append(_line(0, name, cache.backend_name, stats))
        functions = [(owner, counters) for owner, counters in sorted(cache.functions().items()) if owner]
        for owner, counters in functions:
            own = counters.snapshot(None)
            if not own.calls:
                continue
            lines.append(_line(1, owner, "", own))
            lines += [_model_line(model, each) for model, each in own.models.items()]
            losing += _losses(name, owner, own, counters)
    heads = (*_NAMES, *(_FULL if told else _FULL[:5]))
    rows = [(f"{'  ' * line.depth}{line.name}", line.backend, *line.cells)[: len(heads)] for line in lines]
    if _is_wanted(rich):
        return _rich(heads, rows, [line.depth for line in lines], losing)
    return "\n".join([*_aligned([heads, *rows]), *([""] if losing else []), *losing])


def _line(depth: int, name: str, backend: str, stats: CacheStats) -> Line:
    size = "" if depth else "?" if stats.size is None else f"{stats.size}"
    cells = (f"{stats.calls}", _share(stats.hit_rate), size, f"{stats.load_seconds:.2f}", f"{stats.seconds_saved:.2f}")
    if not stats.models:
        return Line(depth, name, backend, (*cells, "", "", ""))
    known = any(model.hits > model.unpriced for model in stats.models.values())
    money = _dollars(stats.cost_saved, known=known or not stats.unpriced)
    return Line(depth, name, backend, (*cells, f"{stats.tokens_saved}", money, f"{stats.unpriced}"))


def _model_line(model: str, stats: ModelStats) -> Line:
    calls = stats.hits + stats.loads
    cells = (f"{calls}", _share(stats.hits / calls if calls else 0.0), "", "", f"{stats.seconds_saved:.2f}")
    money = _dollars(stats.cost_saved, known=stats.hits > stats.unpriced or not stats.unpriced)
    return Line(2, model or _UNNAMED, "", (*cells, f"{stats.tokens_saved}", money, f"{stats.unpriced}"))


def _share(rate: float) -> str:
    return f"{rate:.1%}"


def _dollars(amount: float, *, known: bool) -> str:
    """To the hundredth of a cent; "?" where all of it is unknown, since that is not nothing."""
    if not known:
        return "?"
    return "<0.0001" if 0 < amount < 0.0001 else f"{amount:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """In columns: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*names, *numbers]).rstrip()


# -- where caching loses


def _losses(namespace: str, owner: str, stats: CacheStats, counters: Counters) -> list[str]:
    lookups, head = stats.calls - stats.bypasses, f"caching loses in {owner} (namespace {namespace!r}): {stats.calls} calls"
    if stats.calls >= _ENOUGH and stats.errors.get("unkeyable", 0) > stats.calls / 2:
        return [f"{head}, of {stats.errors['unkeyable']} an argument has no key"]
    if lookups < _ENOUGH or stats.hit_rate >= _LOSING:
        return []
    calls = [tuple(load) for load in (*counters.loaded_by, *counters.sampled())]
    reason = f": {_reason(calls)}" if len(calls) > _ENOUGH / 2 else ""  # it may have been loaded while nobody took notes
    return [f"{head}, hit rate {_share(stats.hit_rate)}{reason}"]


def _reason(calls: Sequence[Sequence[tuple[str, object]]]) -> str:
    """By what the last loads were called with."""
    distinct: dict[str, set[object]] = {}
    for call in calls:
        for name, part in call:
            distinct.setdefault(name, set()).add(part)
    if len(set(calls)) <= len(calls) / 2:
        return "the same calls come again, but their results are not stored, or not for long enough"
    never = [name for name, parts in distinct.items() if len(parts) == len(calls)]
    if not never:
        return "no argument is always new, but all of them together are"
    return f"{' and '.join(never)} never repeat{'' if len(never) > 1 else 's'}"


# -- for terminals


def _is_wanted(rich: bool | None) -> bool:
    if rich is not None:
        return rich
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    from importlib.util import find_spec

    return find_spec("rich") is not None


def _rich(heads: Sequence[str], rows: Sequence[Sequence[str]], depths: Sequence[int], losing: Sequence[str]) -> str:
    from io import StringIO
    from shutil import get_terminal_size

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < len(_NAMES) else "right", no_wrap=True)
    for row, depth in zip(rows, depths, strict=True):
        table.add_row(*map(Text, row), style=("bold", "", "dim")[depth])
    text = StringIO()
    # a terminal that is too narrow breaks long lines, as it does with the plain text; rich would leave numbers out
    needed = sum(max(map(len, column)) + 3 for column in zip(heads, *rows, strict=True)) + 2
    console = Console(file=text, force_terminal=True, width=max(get_terminal_size().columns, needed))
    console.print(table)
    for line in losing:
        console.print(Text(line, style="yellow"), soft_wrap=True)
    return text.getvalue().rstrip("\n")
