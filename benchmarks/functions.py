"""The functions that every cache decorates, at module level because caches in files tell them apart by where they are.

They count their executions, so that a cache that does not cache is found out.  Nothing heavy is imported here: a fresh process
that is measured begins with this module.
"""

from __future__ import annotations

import os
import time

executions: dict[str, int] = {}
"""Name of a function to how often it has run in this process."""

MARKS = "CODOMYRMEX_CACHE_BENCHMARK_MARKS"
"""Environment variable with the path of a file to which `slow` adds a byte for each execution, in whichever process."""


def _ran(name: str) -> None:
    executions[name] = executions.get(name, 0) + 1


def one(x: int) -> int:
    _ran("one")
    return x


def pair(a: int, b: str = "y") -> str:
    _ran("pair")
    return f"{a}{b}"


def length(text: str) -> int:
    _ran("length")
    return len(text)


def answer(messages: list[dict[str, str]], model: str = "", tools: object = None) -> str:
    _ran("answer")
    return f"{model} has read {len(messages)} messages"


def hundred(number: int) -> str:
    """100 bytes of text that only this number has."""
    _ran("hundred")
    return f"{number:0100d}"


async def task_one(x: int) -> int:
    _ran("task_one")
    return x


async def task_pair(a: int, b: str = "y") -> str:
    _ran("task_pair")
    return f"{a}{b}"


async def task_hundred(number: int) -> str:
    _ran("task_hundred")
    return f"{number:0100d}"


def _mark() -> None:
    descriptor = os.open(os.environ[MARKS], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b".")
    os.close(descriptor)


def slow(x: int) -> int:
    _mark()
    time.sleep(0.2)
    return x


async def task_slow(x: int) -> int:
    import asyncio

    _mark()
    await asyncio.sleep(0.2)
    return x
