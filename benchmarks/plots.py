"""A picture of each family: a panel for each workload, a bar for each package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import OURS
from benchmarks.tables import UNITS, Family, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
COLOURS = {"ours": "#d1495b", "package": "#8d99ae", "primitive": "#dfe3ea"}


def panel(axes: Axes, row: Row) -> None:
    """Bars, the best one at the top."""
    from matplotlib.ticker import NullFormatter

    names = sorted(row.figures, key=row.median, reverse=not row.more_is_better)
    figures = [row.median(name) * UNITS.get(row.unit, 1.0) for name in names]
    kinds = ["ours" if name == OURS else "primitive" if name in row.primitives else "package" for name in names]
    bars = axes.barh(names, figures, color=[COLOURS[kind] for kind in kinds], height=0.72)
    axes.bar_label(bars, [row.text(row.median(name)) for name in names], padding=3, fontsize=8)
    positive = [figure for figure in figures if figure > 0]
    if len(positive) == len(figures) and row.unit != "%":
        low, high = min(positive), max(positive)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())  # its labels overlap where the axis is short
        axes.set_xlim(low / 2, high * (high / low * 2) ** 0.25 * 1.6)  # room for the longest bar's label
    else:
        axes.set_xlim(0, (max(figures, default=0) or 1) * 1.25)
    if row.errors:
        failed = f"error: {', '.join(row.errors)}"
        axes.text(0.99, 0.02, failed, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="#777777")
    direction = "more is better" if row.more_is_better else "less is better"
    axes.set_title(f"{row.workload}  ({', '.join(filter(None, [row.unit, direction]))})", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    for label, kind in zip(axes.get_yticklabels(), kinds, strict=True):
        label.set_fontweight("bold" if kind == "ours" else "normal")


def draw(family: Family, folder: Path) -> None:
    """Write `<family>.png`; nothing if it has no figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in family.rows if row.figures and any(map(any, row.figures.values()))]
    if not rows:
        return
    lines = math.ceil(len(rows) / COLUMNS)
    most = max(len(row.figures) for row in rows)
    figure = Figure(figsize=(7.5 * COLUMNS, lines * (0.9 + 0.27 * most) + 0.5), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).flat
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(panels, rows, strict=False):
        panel(axes, row)
    figure.suptitle(f"{family.name}: {family.title}", fontsize=11)
    folder.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(folder / f"{family.name}.png")
