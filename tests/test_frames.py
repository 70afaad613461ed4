"""What a hit costs, in a number that does not depend on the machine: the Python frames it enters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CoroutineType, FrameType
from typing import Any

import pytest

from codomyrmex_cache import CacheManager, cached

METHOD_FRAMES = 55
"""Upper bound for a method's hit, whose key takes the object's state anew each time: 55 on CPython 3.11, 50 on 3.12 and
3.13, which inline comprehensions.  A lower count is progress: lower the bound with it."""


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @cached("frames")
    def price(self, item: int) -> int:
        return item


def entered(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """The names of the Python frames that a call enters, the steps of its coroutine included."""
    names: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        result = function(*args, **kwargs)
        if isinstance(result, CoroutineType):  # not inspect.iscoroutine, which is a frame itself
            result.send(None)
            raise AssertionError("the coroutine waited for something")
    except StopIteration:
        pass
    finally:
        sys.setprofile(None)
    return names


def test_a_miss_is_seen_to_enter_more_frames_than_a_hit(manager: CacheManager) -> None:
    @cached("a", manager=manager)
    def f(x: int) -> int:
        return x

    assert entered(f, 1).count("f") == 2  # the wrapper and the function itself


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        pytest.param((1,), {}, id="f(1)"),
        pytest.param((), {"x": 1}, id="f(x=1)"),
        pytest.param((1, 2), {}, id="f(1, 2)"),
        pytest.param(("a" * 2048,), {}, id="2 KB of text"),
    ],
)
@pytest.mark.parametrize("ttl", [None, 3600])
def test_a_hit_enters_one_frame(args: tuple[Any, ...], kwargs: dict[str, Any], ttl: float | None) -> None:
    # not the manager with the fake clock: reading that clock is a frame, reading time.monotonic is none
    @cached("a", ttl, manager=CacheManager())
    def f(x: Any, y: int = 0) -> int:
        return 42

    f(*args, **kwargs)

    assert len(entered(f, *args, **kwargs)) <= 1
    assert f.stats().hits == 1


def test_a_hit_on_a_single_parameter_enters_one_frame() -> None:
    @cached("a", manager=CacheManager())
    def f(x: int) -> int:
        return x

    f(1)

    assert len(entered(f, 1)) <= 1
    assert len(entered(f, x=1)) <= 1
    assert f.stats().hits == 2


async def _two(x: int) -> int:
    return x


def test_an_async_hit_enters_one_frame() -> None:
    import asyncio

    f = cached("a", manager=CacheManager())(_two)
    asyncio.run(f(1))

    assert len(entered(f, 1)) <= 1
    assert f.stats().hits == 1


def test_a_hit_on_a_method_enters_a_bounded_number_of_frames() -> None:
    shop = Shop("corner")
    shop.price(1)
    shop.price(1)  # now the ways to encode the classes are known too
    hits = Shop.price.stats().hits

    assert len(entered(shop.price, 1)) <= METHOD_FRAMES
    assert Shop.price.stats().hits == hits + 1
