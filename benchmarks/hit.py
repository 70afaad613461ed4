"""What a hit costs, as a ratio to a hit of `functools.lru_cache(maxsize=128)` in the same round.

    python -m benchmarks.hit [--rounds N]

Every round times all cases in a new order, and ratios are taken inside a round, so that a machine that is slower for a
while slows both sides of a ratio.  Printed are the medians over the rounds, with the quartiles of the ratios.  The times
include the loop's own, which is the row "empty loop".  "frames" counts the Python frames that one call enters.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import median, quantiles
from types import CodeType, CoroutineType
from typing import Any

from codomyrmex_cache import CacheManager, cached

CLOCK = time.process_time_ns
"""All of these are bound to the processor.  On a machine with other work going on, the quartiles of the ratios lie closer
together with the time of this process than with the time of the day."""

LOOP_NANOSECONDS = 5_000_000
"""One timed loop: long against a reading of the clock, short against what else the machine does."""

LOOP = """\
{define} loop(times):
    started = clock()
    for _ in repeat(None, times):
        {statement}
    return clock() - started
"""

LRU_CACHE, IN_MEMORY, SQLITE = "functools.lru_cache f(1)", "@cached f(1)", "sqlite3 point read"

QUESTION = "Where is the cache key of a call made, and what goes into it besides its arguments? "
MESSAGES = [{"role": "system", "content": "You know this code. " * 20}, {"role": "user", "content": QUESTION * 6}]
REQUEST = {"model": "a-model", "messages": MESSAGES, "temperature": 0.0, "max_tokens": 512}


@dataclass
class Case:
    """One row: a statement, timed in a loop against the row called `baseline`."""

    name: str
    statement: str
    scope: dict[str, Any]
    baseline: str = LRU_CACHE
    times: int = 1
    clock: Callable[[], int] = CLOCK
    nanoseconds: int = LOOP_NANOSECONDS

    def __post_init__(self) -> None:
        define = "async def" if "await" in self.statement else "def"
        names = {**self.scope, "clock": self.clock, "repeat": repeat}
        exec(LOOP.format(define=define, statement=self.statement), names)
        self.loop = names["loop"]
        self.run(2)  # the miss, and the first hit
        while (taken := self.run(self.times)) < self.nanoseconds / 10:
            self.times *= 2
        self.times = max(1, round(self.times * self.nanoseconds / taken))

    def run(self, times: int) -> int:
        """Nanoseconds of this many calls.  A coroutine is driven by hand: an event loop would cost more than the hits."""
        result = self.loop(times)
        if isinstance(result, CoroutineType):
            try:
                result.send(None)
            except StopIteration as end:
                result = end.value
        return int(result)

    def frames(self) -> int:
        """Python frames that one call enters."""
        codes: list[CodeType] = []
        sys.setprofile(lambda frame, event, _: codes.append(frame.f_code) if event == "call" else None)
        self.run(1)
        sys.setprofile(None)
        return len(codes) - 2  # without `run` and the loop


def one(x: Any) -> Any:
    """The function behind most rows."""
    return x


def answer(request: Any) -> str:
    """A result that need not be copied."""
    return "yes"


def two(x: Any, y: Any) -> Any:
    """Two parameters."""
    return x


def numbers(x: int) -> list[int]:
    """A result that must be copied."""
    return list(range(x, x + 10))


async def coroutine(x: int) -> int:
    """A coroutine function."""
    return x


class Shop:
    """A class with a decorated method, and state that belongs to its key."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached("method", backend="in_memory")
    def price(self, item: int) -> int:
        return item


def in_memory_cases() -> list[Case]:
    """Hits in this process's memory."""
    manager = CacheManager()
    cache = manager.get_cache("direct", "in_memory")
    cache.set("key", 1)

    def memory(function: Callable[..., Any], ttl: float | None = None) -> dict[str, Any]:
        return {"f": cached(f"ttl {ttl}", ttl, "in_memory", manager=manager)(function)}

    awaited = memory(coroutine)
    asyncio.run(awaited["f"](1))  # the miss needs an event loop, the hits do not
    return [
        Case("empty loop", "pass", {}),
        Case("undecorated f(1)", "f(1)", {"f": one}),
        Case(LRU_CACHE, "f(1)", {"f": functools.lru_cache(maxsize=128)(one)}),
        Case(IN_MEMORY, "f(1)", memory(one)),
        Case("@cached with ttl, f(1)", "f(1)", memory(one, 3600)),
        Case("@cached f(x=1)", "f(x=1)", memory(one)),
        Case("@cached f(1, 2)", "f(1, 2)", memory(two)),
        Case("@cached f(2 KB of text)", "f(text)", {**memory(one), "text": "a" * 2048}),
        Case("undecorated await f(1)", "await f(1)", {"f": coroutine}),
        Case("@cached await f(1)", "await f(1)", awaited),
        Case("@cached f(1), a list of 10", "f(1)", memory(numbers)),
        Case("@cached o.m(1)", "o.price(1)", {"o": Shop("corner")}),
        Case("@cached f(1 KB of messages)", "f(request)", {**memory(answer), "request": REQUEST}),
        Case("Cache.get(key)", "cache.get('key')", {"cache": cache}),
    ]


def file_cases(connection: sqlite3.Connection, alone: Callable[..., Any], shared: Callable[..., Any]) -> list[Case]:
    """Hits of files against those in memory, and the read of a row that a hit would be without cells."""
    select = "execute('SELECT value, expires_at FROM entries WHERE key = ?', key).fetchone()"
    key = connection.execute("SELECT key FROM entries").fetchone()
    return [
        Case(SQLITE, f"connection.{select}", {"connection": connection, "key": key}, IN_MEMORY),
        Case("file_based f(1), alone", "f(1)", {"f": alone}, IN_MEMORY),
        Case("file_based f(1), of two", "f(1)", {"f": shared}, IN_MEMORY),
    ]


def on_files(stack: ExitStack, folder: str) -> Callable[..., Any]:
    """A function that is stored there, by a program of its own as far as files can tell, with a hot cell."""
    # a secret of our own, or one would be made in the user's state folder
    manager = stack.enter_context(closing(CacheManager(directory=folder, secret=b"only for this benchmark")))
    function = cached("one", backend="file_based", manager=manager)(one)
    for _ in range(3):
        function(1)
    return function


def measure(cases: list[Case], rounds: int) -> dict[str, list[float]]:
    """Name to nanoseconds per call, one for each round."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    gc.disable()  # a collection would be charged to whichever case it interrupts
    for _ in range(rounds):
        gc.collect()
        for case in random.sample(cases, len(cases)):
            times[case.name].append(case.run(case.times) / case.times)
    gc.enable()
    return times


def report(cases: list[Case], times: dict[str, list[float]]) -> None:
    """Print the table, one baseline after the other."""
    for baseline in dict.fromkeys(case.baseline for case in cases):
        print(f"{'':<28} {'ns':>8} {'frames':>7}   ratio to {baseline} [q1..q3]")
        for case in (case for case in cases if case.baseline == baseline):
            ratios = [ours / theirs for ours, theirs in zip(times[case.name], times[baseline], strict=True)]
            first, middle, third = quantiles(ratios, n=4, method="inclusive")
            frames = min(case.frames() for _ in range(2))  # the first one after a pause may be another
            cost = f"{median(times[case.name]):>8.0f} {frames:>7}"
            print(f"{case.name:<28} {cost}   {middle:>8.2f} [{first:.2f}..{third:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds, at least 2 (default: 30)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        alone = on_files(stack, f"{folder}/alone")
        on_files(stack, f"{folder}/shared")
        shared = on_files(stack, f"{folder}/shared")
        time.sleep(0.1)  # until then the first one is hot by what it knew before
        file = next(Path(folder, "alone").rglob("*.sqlite3"))
        connection = stack.enter_context(closing(sqlite3.connect(file)))
        cases = [*in_memory_cases(), *file_cases(connection, alone, shared)]
        report(cases, measure(cases, rounds))


if __name__ == "__main__":
    main()
