"""Results that a copy or a pickle would change are not stored, so nobody is handed a changed one."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from codomyrmex_cache import CacheManager, cached
from tests.conftest import run_python


class Money(Decimal):
    currency = "?"


class Day(dt.date):
    pass


def _with(value: Any, **attributes: Any) -> Any:
    vars(value).update(attributes)
    return value


@pytest.mark.parametrize("make", [lambda: _with(Money(5), currency="EUR"), lambda: _with(Day(2026, 1, 1), currency="EUR")])
def test_attributes_that_a_copy_would_lose_are_never_lost(manager: CacheManager, backend_name: str, make: Any) -> None:
    @cached("money", backend=backend_name, manager=manager)
    def function() -> Any:
        return make()

    for _ in range(3):
        result = function()
        assert result.currency == "EUR"
        result.currency = "USD"


def test_the_cells_of_a_frame_are_copied_too(manager: CacheManager, backend_name: str) -> None:
    @cached("frames", backend=backend_name, manager=manager)
    def function() -> pd.DataFrame:
        return pd.DataFrame({"a": [[1], [2]]})

    for _ in range(3):
        frame = function()
        assert frame["a"].tolist() == [[1], [2]]
        frame.loc[0, "a"].append(99)


def test_arguments_changed_between_the_call_and_the_body_of_a_coroutine(manager: CacheManager, backend_name: str) -> None:
    @cached("chat", backend=backend_name, manager=manager)
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    async def main() -> None:
        numbers = [1]
        task = asyncio.create_task(total(numbers))
        await asyncio.sleep(0)
        numbers.append(5)
        await task
        assert await total([1]) == 1
        assert await total([1, 5]) == 6
        await manager.aclose()

    asyncio.run(main())


def test_dropping_a_value_may_come_back_to_the_cache() -> None:
    manager = CacheManager()

    @cached("dropped", manager=manager, max_entries=2, copy=False)
    def function(x: int) -> Any:
        class Dropped:
            def __del__(self) -> None:
                function.invalidate(x)

        return Dropped()

    for number in range(10):
        function(number)
    function.clear()
    assert manager.stats("dropped").size == 0


def test_a_removed_folder_is_noticed(tmp_path: Path) -> None:
    import shutil

    cache = CacheManager(directory=tmp_path / "root").get_cache("x", backend="file_based")
    cache.set("k", 1)
    shutil.rmtree(tmp_path / "root")
    deadline = time.monotonic() + 1.0
    while cache.get("k") is not None:
        assert time.monotonic() < deadline
    cache.set("k", 2)
    assert cache.get("k") == 2
    shutil.rmtree(tmp_path / "root")
    cache.set("k", 2)  # a write looks every time
    assert cache.get("k") == 2
    cache.close()


def test_writes_of_coroutines_have_threads_of_their_own(tmp_path: Path) -> None:
    cache = CacheManager(directory=tmp_path).get_cache("x", backend="file_based")

    async def main() -> None:
        async def load() -> int:
            await asyncio.sleep(0.05)
            return 5

        leader = asyncio.create_task(cache.aget_or_load("k", load))
        await asyncio.sleep(0.01)
        followers = [asyncio.to_thread(cache.get_or_load, "k", lambda: 5) for _ in range(64)]  # all of the loop's threads
        assert set(await asyncio.gather(leader, *followers)) == {5}
        await cache.aclose()

    asyncio.run(main())


def test_threads_that_come_first_agree_on_one_manager() -> None:
    source = """
import sys, threading
sys.setswitchinterval(1e-6)
from codomyrmex_cache import CacheManager
barrier, found = threading.Barrier(8), []
def work():
    barrier.wait()
    found.append(CacheManager.default())
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(set(map(id, found))))
"""
    assert {run_python(source) for _ in range(5)} == {"1\n"}


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"x\xff", 1, 2, "bad"), FileNotFoundError(2, "no", "file"), KeyError("k")]
)
def test_the_exception_of_a_follower_is_whole(error: Exception) -> None:
    @cached("whole", manager=CacheManager())
    async def function() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        for found in await asyncio.gather(*(function() for _ in range(3)), return_exceptions=True):
            assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))

    asyncio.run(main())


def test_every_call_has_an_outcome_however_it_ends() -> None:
    @cached("exits", manager=CacheManager())
    def leaves() -> None:
        raise SystemExit

    @cached("slow", manager=CacheManager())
    async def slow() -> None:
        await asyncio.Event().wait()

    with pytest.raises(SystemExit):
        leaves()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(slow(), 0.02))
    assert (leaves.stats().calls, slow.stats().calls) == (1, 1)


def test_a_class_over_a_container_counts_by_its_content() -> None:
    class Named(deque[int]):
        pass

    @cached("named", manager=CacheManager())
    def size(items: Named) -> int:
        return len(items)

    assert [size(Named([1])), size(Named([1, 2])), size(Named([1]))] == [1, 2, 1]
