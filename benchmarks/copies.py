"""What a copy of a cached result costs, as a ratio to `copy.deepcopy` of the same value in the same round.

    python -m benchmarks.copies [--rounds N]

Per shape of value the ways to give each reader a copy of its own:

- "isolated": what the package does: a copy written by hand for plain containers, `copy.deepcopy` for what is none.
- "pickle", "marshal": there and back, so that nothing is kept but the object.  (marshal takes any buffer for `bytes`.)
- "pickle kept", "marshal kept": back only, from bytes kept beside the object or instead of it.
- ".copy()": of a numpy array, which is no copy for an array of objects and changes the order in memory.

Every round times all ways in a new order and ratios are taken inside a round; printed are the medians over the rounds with
the quartiles of the ratios, and the bytes that a kept snapshot takes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import marshal
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np
from pydantic import BaseModel

from codomyrmex_cache._isolation import isolated

NANOSECONDS = 2_000_000
"""One timed loop."""

BASELINE = "deepcopy"


class Usage(BaseModel):
    """A part of `Completion`."""

    tokens: int
    details: dict[str, int]


class Completion(BaseModel):
    """A result that is no plain container."""

    id: str
    texts: list[str]
    usage: Usage


@dataclass(frozen=True)
class Point:
    """Immutable, so handed out by reference also inside a list."""

    x: float
    y: float


def response(number: int, words: int) -> dict[str, Any]:
    """What an LLM answers, as its SDK dumps it."""
    call = {"id": f"call_{number}", "type": "function", "function": {"name": "look_up", "arguments": '{"key": 1}'}}
    message = {"role": "assistant", "content": f"word{number} " * words, "tool_calls": [call], "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 512, "completion_tokens": number, "total_tokens": 512 + number}
    return {"id": f"chatcmpl-{number}", "created": 1_750_000_000, "model": "a-model", "choices": [choice], "usage": usage}


def shapes() -> dict[str, Any]:
    """Name to value."""
    draw = random.Random(1)
    usage = Usage(tokens=3, details={"cached": 1})
    return {
        "list of 10 ints": list(range(10)),
        "dict of 20 ints": {f"name {number}": number for number in range(20)},
        "LLM response, 1 KB": response(1, 75),
        "LLM responses, 100 KB": [response(number, 75) for number in range(100)],
        "10 texts of 100 KB": {"texts": ["a" * 100_000 + str(number) for number in range(10)]},
        "1,000 dicts with a list": [{"id": n, "name": f"n{n}", "score": n / 3, "tags": ["a", "b"]} for n in range(1000)],
        "100,000 floats": [draw.random() for _ in range(100_000)],
        "set of 1,000 strings": {f"name {number}" for number in range(1000)},
        "1,000 tuples in a list": [(number, f"name {number}") for number in range(1000)],
        "1,000 frozen dataclasses": [Point(number, 0.5) for number in range(1000)],
        "pydantic model": Completion(id="a", texts=["b", "c"], usage=usage),
        "100 pydantic models": [Completion(id=str(n), texts=["b", "c"], usage=usage.model_copy()) for n in range(100)],
        "numpy, 10,000 floats": np.arange(10_000.0),
    }


def ways(value: Any) -> tuple[dict[str, Callable[[], Any]], int]:
    """Name to a function that makes a copy of the value, and the bytes of its pickle."""
    pickled = pickle.dumps(value, 5)
    found: dict[str, Callable[[], Any]] = {
        BASELINE: lambda: copy.deepcopy(value),
        "isolated": lambda: isolated(value),
        "pickle": lambda: pickle.loads(pickle.dumps(value, 5)),
        "pickle kept": lambda: pickle.loads(pickled),
    }
    if isinstance(value, np.ndarray):
        found[".copy()"] = value.copy
        return found, len(pickled)
    try:
        marshalled = marshal.dumps(value)
    except ValueError:  # not of plain data
        return found, len(pickled)
    found["marshal"] = lambda: marshal.loads(marshal.dumps(value))
    found["marshal kept"] = lambda: marshal.loads(marshalled)
    return found, len(pickled)


def timed(make: Callable[[], Any], times: int) -> float:
    """Nanoseconds per call."""
    started = time.process_time_ns()
    for _ in range(times):
        make()
    return (time.process_time_ns() - started) / times


def measure(makers: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Name to nanoseconds per call, one for each round."""
    times = {name: max(1, round(NANOSECONDS / max(1.0, timed(make, 3)))) for name, make in makers.items()}
    found: dict[str, list[float]] = {name: [] for name in makers}
    gc.disable()  # a collection would be charged to whichever way it interrupts
    for _ in range(rounds):
        gc.collect()
        for name in random.sample(list(makers), len(makers)):
            found[name].append(timed(makers[name], times[name]))
    gc.enable()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, at least 2 (default: 15)")
    rounds = parser.parse_args().rounds
    for shape, value in shapes().items():
        makers, size = ways(value)
        found = measure(makers, rounds)
        print(f"{shape} (pickled {size:,} bytes){'':<10} microseconds   times as fast as {BASELINE} [q1..q3]")
        for name, nanoseconds in found.items():
            ratios = [base / own for base, own in zip(found[BASELINE], nanoseconds, strict=True)]
            first, middle, third = quantiles(ratios, n=4, method="inclusive")
            print(f"    {name:<14} {median(nanoseconds) / 1000:>12.2f}   {middle:>8.2f} [{first:.2f}..{third:.2f}]")


if __name__ == "__main__":
    main()
