"""What a key costs, as ratios to bare primitives taken in the same rounds.

    python benchmarks/keys.py [--rounds N]

Each round times every case once, in shuffled order; a ratio is taken inside its round.  Printed: median ratio [q1..q3].
"""

from __future__ import annotations

import argparse
import functools
import pickle
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy
from xxhash import xxh3_128_digest

from codomyrmex_cache._signature import shape_of
from codomyrmex_cache.keys import Keyer

TEXT = " ".join(f"Lemma {number}: there is a prime above {number * 7919}." for number in range(16))
MESSAGES = [{"role": "system", "content": TEXT[:300]}, {"role": "user", "content": TEXT[300:]}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": "Looks a thing up in a table of things.",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
                "required": ["query"],
            },
        },
    }
    for number in range(1)
]
CALL = (MESSAGES, "a-model", 0.2, TOOLS)
CALLS = [([MESSAGES[0], {"role": "user", "content": f"{TEXT[300:]} {number:04d}"}], *CALL[1:]) for number in range(200)]
CALLS = [pickle.loads(pickle.dumps(call)) for call in CALLS]  # as requests come, each with objects of its own
ARRAY = numpy.random.default_rng(1).standard_normal(10 * 2**20 // 8)
HUNDRED = bytes(range(100))


def llm(messages: Any, model: Any, temperature: Any, tools: Any) -> None: ...
def two(a: Any, b: Any) -> None: ...
def one(a: Any) -> None: ...


def keyer(function: Callable[..., Any]) -> Keyer:
    return Keyer(function, shape_of(function).names)


def cases() -> dict[str, tuple[str, float, Callable[[], object], int]]:
    """Name to baseline's name, limit, what is timed, calls per slice."""
    known, fresh, pair, array = keyer(llm), keyer(llm), keyer(two), keyer(one)
    known.key(CALL), pair.key((1, "x"))

    def all_new() -> None:
        fresh._memo.keys.clear()  # type: ignore[union-attr]
        for call in CALLS:
            fresh.key(call)

    return {
        "pickle + xxh3 of an LLM call": ("", 0, lambda: xxh3_128_digest(pickle.dumps(CALL, 5)), 200),
        "LLM call, seen": ("pickle + xxh3 of an LLM call", 2.5, lambda: known.key(CALL), 200),
        "pickle + xxh3 of 200 LLM calls": ("", 0, lambda: [xxh3_128_digest(pickle.dumps(call, 5)) for call in CALLS], 2),
        "200 LLM calls, all new": ("pickle + xxh3 of 200 LLM calls", 12, all_new, 2),
        "xxh3 of 10 MB": ("", 0, lambda: xxh3_128_digest(ARRAY), 20),
        "10 MB array": ("xxh3 of 10 MB", 1.3, lambda: array.key((ARRAY,)), 20),
        "_make_key + xxh3 of 100 bytes": (
            "",
            0,
            lambda: (functools._make_key((1,), {"b": "x"}, False), xxh3_128_digest(HUNDRED)),
            2000,
        ),  # type: ignore[attr-defined]
        "(1, b='x')": ("_make_key + xxh3 of 100 bytes", 3, lambda: pair.key((1, "x")), 2000),
    }


def timed(function: Callable[[], object], calls: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(calls):
        function()
    return (time.perf_counter_ns() - started) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    table = cases()
    times: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(rounds + 2):
        for name in random.sample(list(table), len(table)):
            _, _, function, calls = table[name]
            times[name].append(timed(function, calls))
    print(f"{'case':32} {'median us':>10} {'ratio':>8}  [q1..q3]       limit")
    for name, (baseline, limit, _, _) in table.items():
        own = times[name][2:]
        line = f"{name:32} {statistics.median(own) / 1000:10.2f}"
        if baseline:
            ratios = [one / other for one, other in zip(own, times[baseline][2:], strict=True)]
            q1, median, q3 = statistics.quantiles(ratios, n=4)
            line += f" {median:8.2f}  [{q1:.2f}..{q3:.2f}]  <= {limit}"
        print(line)


if __name__ == "__main__":
    main()
