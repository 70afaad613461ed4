"""Caches of LLM calls, asked the same questions: which requests go out, which answers come back, what a hit costs.

    python -m benchmarks.llm [--rounds N] [--python PACKAGE=INTERPRETER ...] [--json FILE] [--readme]

Each package works in a process of its own (`benchmarks.llm_peers`), with the real client in front of a model on the loopback
interface that counts requests.  Their pins may contradict each other, so `--python litellm=/path/to/python`, or the environment
variable `BENCHMARK_PYTHON_LITELLM`, names an interpreter that has the package; the default is this one.  Packages that are
not there are left out with a line.  Hits are timed in rounds, all packages in each, in a new order; printed are medians and
quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.children import ROOT, environment

BEGIN, END = "<!-- llm -->", "<!-- /llm -->"
README = Path(ROOT) / "README.md"

PACKAGES = {
    "codomyrmex_cache in_memory": "codomyrmex_cache",
    "codomyrmex_cache file_based": "codomyrmex_cache",
    "LangChain InMemoryCache": "langchain",
    "LangChain SQLiteCache": "langchain",
    "LiteLLM local": "litellm",
    "LiteLLM disk": "litellm",
    "DSPy": "dspy",
    "Instructor AutoCache": "instructor",
    "vcrpy": "vcrpy",
}
"""Column to the name that an interpreter is given for."""

IDEAL = {
    "the same call twice": 1,
    "another API key": 1,
    "keywords in another order": 1,
    "keys of a message in another order": 1,
    "another `extra_body`": 2,
    "another argument few know of": 2,
    "another path in the base URL": 2,
    "client or model object changed twice": 2,
    "a stream twice": 1,
    "10 threads at once": 1,
    "10 tasks at once": 1,
    "a batch of 4 identical calls": 1,
    "an empty answer, then again": 2,
    "a truncated answer, then again": 2,
    "a 429, then again": 2,
    "the caller changes its answer": 1,
}
"""Requests that each probe needs.  With fewer, some answer was another request's or of no use."""

EITHER = "another API key"
"""Whether keys share answers is a choice: neither is wrong."""

TOGETHER = ("10 threads at once", "10 tasks at once", "a batch of 4 identical calls")

Cell = tuple[int, str] | str | None
"""Requests and a remark; an error; or nothing where the package cannot be asked that."""


@dataclass
class Column:
    """What one cache did."""

    name: str
    version: str
    cells: dict[str, Cell] = field(default_factory=dict)
    microseconds: list[float] = field(default_factory=list)
    error: str = ""  # of the hits

    def is_wrong(self, probe: str) -> bool:
        cell = self.cells.get(probe)
        return isinstance(cell, tuple) and (bool(cell[1]) or cell[0] < IDEAL[probe])

    @property
    def wrong(self) -> int:
        """Probes with an answer that should not have been given."""
        return sum(map(self.is_wrong, IDEAL))

    @property
    def duplicates(self) -> int | None:
        """Requests beyond the first one of identical calls that overlap; nothing if there were errors in all."""
        counts = [cell[0] - IDEAL[probe] for probe in TOGETHER if isinstance(cell := self.cells.get(probe), tuple)]
        return sum(counts) if counts else None

    @property
    def errors(self) -> int:
        return sum(isinstance(cell, str) for cell in self.cells.values()) + bool(self.error)

    def text(self, probe: str) -> str:
        """A cell as it is printed."""
        cell = self.cells.get(probe)
        if cell is None or isinstance(cell, str):
            return "" if cell is None else "error"
        remark = f": {cell[1]}" if cell[1] else ": wrong" if self.is_wrong(probe) else ""
        is_ideal = not remark and (cell[0] == IDEAL[probe] or probe == EITHER)
        return str(cell[0]) if is_ideal else f"**{cell[0]}{remark}**"

    @property
    def spread(self) -> str:
        """Median and quartiles of a hit."""
        if len(self.microseconds) < 2:
            return "error" if self.error else "".join(f"{each:,.1f}" for each in self.microseconds)
        low, _, high = quantiles(self.microseconds, n=4, method="inclusive")
        digits = 1 if low < 100 else 0
        return f"{median(self.microseconds):,.{digits}f} [{low:,.{digits}f}..{high:,.{digits}f}]"


class Child:
    """A process with one cache."""

    def __init__(self, name: str, python: str, folder: str) -> None:
        command = [python, "-W", "ignore", "-m", "benchmarks.llm_peers", name, folder]
        self._errors = Path(f"{folder}.errors")
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, env=environment(), cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            self.version: str = self._answer()["version"]
        except RuntimeError:
            self.close()
            raise

    def ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        print(what, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError((self._errors.read_text().strip().splitlines() or ["it ended"])[-1])
        return json.loads(line)

    def close(self) -> None:
        """Ends it; safe to call twice."""
        try:
            self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.wait()


def measured(names: list[str], pythons: dict[str, str], rounds: int) -> tuple[list[Column], list[str]]:
    """A column for each cache that is there, and a line for each that is not."""
    columns: list[Column] = []
    absent: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        children: list[tuple[Column, Child]] = []
        for number, name in enumerate(names):
            own = Path(folder) / str(number)
            own.mkdir()
            try:
                child = Child(name, pythons.get(PACKAGES[name], sys.executable), str(own))
            except (RuntimeError, OSError) as error:
                absent.append(f"skipped: {name} ({error})")
                continue
            stack.callback(child.close)
            columns.append(Column(name, child.version))
            children.append((columns[-1], child))
        for column, child in children:
            column.cells = {name: tuple(cell) if isinstance(cell, list) else cell for name, cell in child.ask("probes").items()}
        for _ in range(rounds):
            for column, child in random.sample(children, len(children)):
                result = child.ask("hit")
                if isinstance(result, str):
                    column.error = result
                else:
                    column.microseconds.append(result)
    return columns, absent


def rows(columns: list[Column]) -> list[list[str]]:
    """The table, its header first."""
    texts = [["", "ideal", *(column.name for column in columns)]]
    for probe, ideal in IDEAL.items():
        texts.append([probe, "1 or 2" if probe == EITHER else str(ideal), *(column.text(probe) for column in columns)])
    duplicates = ["" if column.duplicates is None else str(column.duplicates) for column in columns]
    texts.append(["wrong answers", "0", *(str(column.wrong) for column in columns)])
    texts.append(["duplicates under concurrency", "0", *duplicates])
    texts.append(["errors", "0", *(str(column.errors) for column in columns)])
    texts.append(["us for a hit", "", *(column.spread for column in columns)])
    return texts


def report(columns: list[Column], absent: list[str]) -> str:
    """The table as text, and every error in full."""
    table = rows(columns)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for column in columns:
        lines += [f"{column.name}, {probe}: {cell}" for probe, cell in column.cells.items() if isinstance(cell, str)]
        lines += [f"{column.name}, hits: {column.error}"] if column.error else []
    return "\n".join([*lines, *absent])


def block(columns: list[Column], rounds: int) -> str:
    """What stands between the marks in README.md."""
    header, *rest = rows(columns)
    releases = {
        f"{PACKAGES[column.name]} {column.version}" for column in columns if PACKAGES[column.name] != "codomyrmex_cache"
    }
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rest)]
    lines += [
        "",
        f"Numbers of requests; bold is what differs from the ideal. Hits: median [quartiles] of {rounds} rounds, with each",
    ]
    lines += [f"package's own client or model object in front. {', '.join(sorted(releases))}."]
    return "\n".join(lines)


def rewrite(path: Path, columns: list[Column], rounds: int) -> None:
    """Put the table between the marks.

    Raises:
        ValueError: the file has no marks.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{block(columns, rounds)}\n{END}{after}")


def interpreters(given: list[str]) -> dict[str, str]:
    """Package to interpreter: from the environment, then from the command line."""
    prefix = "BENCHMARK_PYTHON_"
    found = {name[len(prefix) :].lower(): python for name, python in os.environ.items() if name.startswith(prefix)}
    return found | dict(each.split("=", 1) for each in given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument("--only", help=f"columns, of {', '.join(PACKAGES)}")
    parser.add_argument("--python", action="append", default=[], metavar="PACKAGE=INTERPRETER", help="may be repeated")
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--readme", action="store_true", help="rewrite the table in README.md")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(PACKAGES)
    if unknown := set(names) - set(PACKAGES):
        raise SystemExit(f"no such column: {', '.join(sorted(unknown))}")
    columns, absent = measured(names, interpreters(options.python), options.rounds)
    print(report(columns, absent))
    if options.json:
        options.json.write_text(json.dumps([vars(column) for column in columns], indent=1))
    if options.readme:
        rewrite(README, columns, options.rounds)


if __name__ == "__main__":
    main()
