"""The table in README.md, and below it what others do better and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers import EVERY, OURS
from benchmarks.tables import Family, Row, describe

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"

_IN_C = "it is written in C and has no ttl, no statistics, no exact types and no copies"
_NATIVE = "its map and its eviction are native code, ours are Python"
_STORED = "a load is noted where other threads join it and rings over threads are seen, is timed and counted, all in Python"
_SIGNED = "a read verifies a MAC over the entry and compares the digest of the call before it parses anything"
_WHOLE = "the whole payload goes through the MAC before it is used; the others read it unverified"
_TWO_TRIPS = "the look takes a lease and the generations, the store checks them, both in scripts"

REASONS: dict[str, str] = {
    "f(1 KB of messages": "their user makes the key by hand, and JSON takes tuples for lists; ours is exact and needs no hand",
    "f(": _IN_C,
    "o.m(1)": "`self` counts by its class and state, which each call looks at, and control methods are bound to it (that "
    "alone, in C, takes as long as a hit of a function); the others take its identity or its hash",
    "await f(": "it keeps the finished task or value and checks neither types nor copies",
    "miss and store": _STORED,
    "miss and store, ": _TWO_TRIPS,
    "zipf": _STORED,
    "zipf, room for 10,000: hits": "admission by frequency remembers more keys that are gone than our eviction does",
    "100,000 entries": "a cell keeps times, counters and its place in the order of eviction beside the value",
    "1 thread": _IN_C,
    "2 threads": _IN_C,
    "4 threads": _IN_C,
    "8 threads": _IN_C,
    "decorated hit, ": _SIGNED,
    "get of 1 MB": _WHOLE,
    "first get of": _WHOLE,
    "get of": _SIGNED,
    "get among": _SIGNED,
    "set of": "the payload goes through the MAC, and the generation of its key changes in the same transaction",
    "first hit": "some eighty modules of this package and of the standard library are imported, and the database is checked",
    "get_many": _SIGNED,
    "LLM call, seen": "the primitive is not canonical: equal arguments can have different pickles",
}
"""Beginning of a workload to why another package is better at it; the longest that fits counts."""


def reason(workload: str) -> str:
    """Why others are ahead."""
    fitting = [beginning for beginning in REASONS if workload.startswith(beginning)]
    if not fitting and "process" in workload:
        return "writers take the lease and the generations in their transaction, and readers verify what they read"
    return REASONS[max(fitting, key=len)] if fitting else "no reason is known yet"


def cell(row: Row, name: str) -> str:
    """A ratio to ours, our own figure, or a count."""
    if name in row.errors:
        return "error"
    if name not in row.figures:
        return ""
    if row.is_count or name == OURS or OURS not in row.figures:
        text = row.text(row.median(name))
    else:
        text = f"{row.ratio(name, OURS)[1]:.2g}" if row.ratio(name, OURS)[1] < 10 else f"{row.ratio(name, OURS)[1]:.0f}"
    best = row.best()
    return f"**{text}**" if best and row.median(name) == row.median(best) else text


def is_better(row: Row, name: str) -> bool:
    """Whether this package is ahead of ours in three quarters of the rounds."""
    if name == OURS or name in row.primitives or OURS not in row.figures or name not in row.figures:
        return False
    if row.is_count:
        ours, theirs = row.median(OURS), row.median(name)
        return theirs > ours if row.more_is_better else theirs < ours
    return row.ratio(name, OURS)[2] < 1


def losses(row: Row) -> str | None:
    """Who is better at it, and why."""
    ahead = sorted((name for name in row.figures if is_better(row, name)), key=row.median, reverse=row.more_is_better)
    if not ahead:
        return None
    others = ", ".join(f"{name} {row.text(row.median(name))}" for name in ahead)
    return f"- {row.workload}: {others}; ours {row.text(row.median(OURS))}. Why: {reason(row.workload)}."


def block(where: dict[str, Any], families: list[Family]) -> str:
    """What stands between the marks."""
    rows = [row for family in families for row in family.rows]
    seen = {name for row in rows for name in (*row.figures, *row.errors)}
    names = [kind.name for kind in EVERY if kind.name in seen]
    lines = [
        "The first column has our figures; the others are ratios to ours, taken inside a round: above 1 is worse than ours,",
        "whatever the unit. Counts stay counts. Bold is the best, empty what a package does not do.",
        "",
        f"| workload | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {row.workload} | {' | '.join(cell(row, name) for name in names)} |" for row in rows),
        "",
        f"On {describe(where)}.".replace("\n", "; "),
    ]
    behind = [line for row in rows if (line := losses(row))]
    return "\n".join(
        [*lines, *(["", "Where others are ahead in three rounds of four or more:", "", *behind] if behind else [])]
    )


def rewrite(path: Path, where: dict[str, Any], families: list[Family]) -> None:
    """Put the block between the marks.

    Raises:
        ValueError: the file has no marks.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{block(where, families)}\n{END}{after}")
