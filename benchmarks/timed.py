"""A statement in a timed loop, as in `benchmarks.hit`, whose answers are looked at before anything is timed."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import CoroutineType
from typing import Any

from benchmarks.functions import executions
from benchmarks.hit import CLOCK, LOOP_NANOSECONDS, Case

ANYTHING = object()
PROCESSOR, DAY = CLOCK, time.perf_counter_ns


class WrongAnswerError(Exception):
    """A cache gave something else than the function."""


class NotCachedError(Exception):
    """A hit ran the function, or a miss did not."""


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """The one that all coroutines run in: some caches bind themselves to the first they meet."""
    return asyncio.new_event_loop()


def same(found: object, expected: object) -> bool:
    """Of equal type and content, arrays included."""
    if type(found) is not type(expected) and not hasattr(found, "dtype"):
        return False
    equal = found == expected
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)


def check(found: object, expected: object) -> None:
    if not same(found, expected):
        raise WrongAnswerError(f"{str(found)[:30]!r} for {str(expected)[:30]!r}")


@dataclass
class Timed(Case):
    """A case that runs in an event loop if it awaits."""

    def run(self, times: int) -> int:
        result = self.loop(times)
        return int(event_loop().run_until_complete(result) if isinstance(result, CoroutineType) else result)


def answers(statement: str, scope: dict[str, Any], times: int = 2) -> list[object]:
    """What the statement gives, so many times."""
    awaits = "await" in statement
    names = dict(scope)
    exec(f"{'async ' * awaits}def answer():\n    return {statement}", names)
    return [event_loop().run_until_complete(names["answer"]()) if awaits else names["answer"]() for _ in range(times)]


def awaited(function: Callable[..., Any], call: str) -> str:
    """The call, with `await` if the function is a coroutine function."""
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    return f"await {call}" if is_async else call


def timed(
    statement: str,
    scope: dict[str, Any],
    expected: object = ANYTHING,
    counts: str = "",
    other: tuple[str, object] = ("", None),
    misses: bool = False,
    clock: Callable[[], int] = PROCESSOR,
    nanoseconds: int = LOOP_NANOSECONDS,
) -> Callable[[], float]:
    """A step that gives nanoseconds per execution of the statement.

    Args:
        expected: what the statement must give, the first time and from then on; left out where the caller checks it.
        counts: the name of the function whose executions are counted.
        other: another statement, and what that one must give: a cache that takes all calls for one is quick.
        misses: each execution of the statement must run that function; otherwise none must, but the first.

    Raises:
        WrongAnswerError, NotCachedError: what they say, at once or from a step.
    """

    def ran(before: int, calls: int, at_first: int = 0) -> None:
        times = executions.get(counts, 0) - before
        if counts and (times != calls if misses else times > at_first):
            raise NotCachedError(f"{counts} ran {times} times for {calls} calls")

    before = executions.get(counts, 0)
    for found in answers(statement, scope):
        if expected is not ANYTHING:
            check(found, expected)
    ran(before, 2, at_first=1)
    if other[0]:
        check(answers(other[0], scope, 1)[0], other[1])
    case = Timed(statement, statement, scope, clock=clock, nanoseconds=nanoseconds)

    def step() -> float:
        before = executions.get(counts, 0)
        taken = case.run(case.times)
        ran(before, case.times)
        return taken / case.times

    return step
