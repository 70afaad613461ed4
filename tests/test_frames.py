"""What a hit costs, in a number that does not depend on the machine: the Python frames it enters."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

import pytest

from codomyrmex_cache import CacheManager, cached

METHOD_FRAMES = 2
"""Of a hit on a method: binding it to its object, and the wrapper."""


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @cached("frames")
    def price(self, item: int) -> int:
        return item


def entered(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """The names of the Python frames that a call enters; of a coroutine function, those of running it too."""
    names: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        result = function(*args, **kwargs)
        if isinstance(result, CoroutineType):  # inspect.iscoroutine would be a frame itself
            result.send(None)
            raise AssertionError("a hit waits for nothing")
    except StopIteration:
        pass
    finally:
        sys.setprofile(None)
    return names


@pytest.fixture
def manager() -> CacheManager:
    """A manager with the real clock: reading the tests' clock is a frame, reading `time.monotonic` is none."""
    return CacheManager()


def test_the_count_sees_a_miss_run_the_function(manager: CacheManager) -> None:
    @cached("a", manager=manager)
    def f(x: int) -> int:
        return x

    assert entered(f, 1).count("f") == 2  # the wrapper, which bears the function's name, and the function


def test_a_hit_enters_one_frame(manager: CacheManager) -> None:
    @cached("a", manager=manager)
    def f(x: int) -> int:
        return x

    f(1)

    assert len(entered(f, 1)) <= 1
    assert len(entered(f, x=1)) <= 1
    assert f.stats().hits == 2


def test_a_hit_with_several_parameters_and_a_ttl_enters_one_frame(manager: CacheManager) -> None:
    @cached("a", ttl=3600, manager=manager)
    def f(x: int, y: str = "y") -> int:
        return x

    f(1)

    assert len(entered(f, 1)) <= 1
    assert len(entered(f, y="y", x=1)) <= 1
    assert f.stats().hits == 2


def test_a_hit_that_copies_a_flat_list_enters_two_frames(manager: CacheManager) -> None:
    @cached("a", manager=manager)
    def f(x: int) -> list[int]:
        return [x]

    f(1)

    assert len(entered(f, 1)) <= 2
    assert f.stats().hits == 1


def test_an_async_hit_enters_one_frame(manager: CacheManager) -> None:
    @cached("a", manager=manager)
    async def f(x: int) -> int:
        return x

    asyncio.run(f(1))

    assert len(entered(f, 1)) <= 1
    assert len(entered(f, x=1)) <= 1
    assert f.stats().hits == 2


def test_a_hit_of_files_enters_two_frames(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path, secret=b"only for this test, nobody keeps it")

    @cached("a", backend="file_based", manager=manager)
    def f(x: int) -> int:
        return x

    for _ in range(3):
        f(1)  # stored, read from the database, kept in memory
    counts = sorted(len(entered(f, 1)) for _ in range(3))

    assert counts[0] <= 2  # once in 50 ms a hit asks the database whether anybody else is there
    assert f.stats().hits == 5
    manager.close()


def test_a_hit_on_a_method_enters_two_frames() -> None:
    shop = Shop("corner")
    shop.price(1)
    hits = Shop.price.stats().hits

    assert len(entered(methodcaller("price", 1), shop)) <= METHOD_FRAMES
    assert Shop.price.stats().hits == hits + 1
