"""Very many calls of Redis at once, several event loops, forks; and calls while the server is being left alone."""

from __future__ import annotations

import asyncio
import gc
import io
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
from redis import exceptions

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache.backends._async_lines import AsyncLine, _Waiting
from codomyrmex_cache.errors import CacheBackendError
from codomyrmex_cache.streams import CachedStream
from tests.conftest import Server, run_python
from tests.redis_world import World, world_on

CONNECTIONS = 8


@pytest.fixture
def world(valkey: Server) -> Iterator[World]:
    with world_on(valkey) as world:
        yield world


# -- asyncio


def test_every_key_is_loaded_once_though_all_are_asked_for_twice(valkey: Server) -> None:
    """So few that they take less than a lease lasts: then, on a starved machine, a load may rightly be repeated."""
    manager, runs = CacheManager(url=valkey.url), []

    @cached("x", backend="redis", manager=manager, version=1)
    async def double(number: int) -> int:
        runs.append(number)
        await asyncio.sleep(0)
        return 2 * number

    async def main() -> None:
        twice = [*range(500), *range(500)]
        for _ in ("cold", "hits"):
            assert await asyncio.gather(*map(double, twice)) == [2 * number for number in twice]
        assert sorted(runs) == list(range(500))
        line: AsyncLine = manager.get_cache("x").space.backend._wire.async_line(str(valkey.socket))  # type: ignore[attr-defined]
        assert len(line._idle) == line._open <= CONNECTIONS
        await manager.aclose()

    asyncio.run(main())
    stats = double.stats()
    assert (stats.calls, stats.loads, stats.errors, manager.stats("x").backend) == (2000, 500, {}, "closed")
    manager.close()


def test_half_of_very_many_calls_cancelled(valkey: Server) -> None:
    manager, runs = CacheManager(url=valkey.url), []

    @cached("x", backend="redis", manager=manager, version=1)
    async def double(number: int) -> int:
        runs.append(number)
        await asyncio.sleep(0)
        return 2 * number

    async def main() -> None:
        tasks = [asyncio.ensure_future(double(number % 500)) for number in range(2000)]
        await asyncio.sleep(0.05)  # somewhere in the middle; wherever it is, the others are to be answered
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert answer == 2 * (number % 500) or (number % 2 == 0 and isinstance(answer, asyncio.CancelledError))
        assert await asyncio.gather(*map(double, range(500))) == list(range(0, 1000, 2))
        await manager.aclose()

    asyncio.run(main())
    stats = double.stats()
    assert (stats.calls, stats.errors, manager.stats("x").backend) == (2500, {}, "closed")
    manager.close()


def test_a_look_that_is_cancelled_at_any_step_disturbs_nobody(world: World) -> None:
    async def main() -> None:
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        await world.cache.aset("hit", 1)
        for key in ("hit", "miss"):
            for steps in range(12):
                task = asyncio.ensure_future(world.cache.aget_or_load(key, lambda: 1))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)  # for callbacks of what went on behind
        assert problems == []
        assert await world.cache.aget_or_load("miss", lambda: 1) == 1
        await world.manager.aclose()

    asyncio.run(main())


def test_several_loops_in_several_threads(world: World) -> None:
    async def main() -> list[int]:
        answers = await asyncio.gather(*map(world.aplain, range(200)))
        await world.manager.aclose()
        return answers

    with ThreadPoolExecutor(4) as pool:
        found = [each.result(30) for each in [pool.submit(asyncio.run, main()) for _ in range(4)]]
    assert all(answers == found[0] for answers in found)
    assert sorted(world.runs) == list(range(200))
    assert world.aplain.stats().errors == {}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_loops_that_are_closed_without_a_word_leave_nothing_open(world: World) -> None:
    async def main() -> None:
        await asyncio.gather(*map(world.aplain, range(20)))

    asyncio.run(main())
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            asyncio.run(main())
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    finally:
        gc.enable()
    world.manager.close()
    assert len(os.listdir("/proc/self/fd")) <= before


class Broken:
    """A connection that cannot be made."""

    is_connected, _writer = False, None

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def connect(self) -> None:
        await asyncio.sleep(0.001)
        raise self.error

    async def disconnect(self, nowait: bool = False) -> None:
        """There is nothing to be done."""


@pytest.mark.parametrize("error", [OSError(1, "no"), asyncio.LimitOverrunError("much", 1), exceptions.ConnectionError("no")])
def test_whatever_goes_wrong_nobody_waits_for_ever(error: Exception) -> None:
    async def main() -> None:
        line = AsyncLine(lambda: Broken(error), 0.25)
        until = asyncio.get_running_loop().time() + 0.25
        calls = [line.exchange(((b"PING",),), until) for _ in range(50)]
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert all(isinstance(answer, Exception) for answer in answers)
        assert len({id(answer) for answer in answers}) > CONNECTIONS  # not one and the same for all who waited
        assert len(line._idle) == line._open <= CONNECTIONS

    asyncio.run(main())


def test_a_connection_that_cannot_even_be_thought_of_takes_nobodys_place() -> None:
    def make() -> Any:
        raise TypeError("option")

    async def main() -> None:
        line = AsyncLine(make, 0.25)
        for _ in range(2 * CONNECTIONS):
            with pytest.raises(TypeError, match="option"):
                await asyncio.wait_for(line.exchange(((b"PING",),), 0.0), 5)

    asyncio.run(main())


def test_who_waits_is_served_though_the_servers_task_is_cancelled_before_it_begins(world: World) -> None:
    async def main() -> None:
        wire: Any = world.cache.space.backend._wire  # type: ignore[attr-defined]
        line: AsyncLine = wire.async_line(wire.target.nodes[0])
        loop = asyncio.get_running_loop()
        await line.exchange(((b"PING",),), loop.time() + 0.25)
        waiting = _Waiting(((b"PING",),), loop.create_future())
        line._queue.append(waiting)
        line._pass_on(line._idle.pop())
        (task,) = line._serving
        task.cancel()
        assert await asyncio.wait_for(waiting.replies, 5) == [b"PONG"]
        await asyncio.sleep(0)
        assert len(line._idle) == line._open == 1
        await world.manager.aclose()

    asyncio.run(main())


FORKED = """
import os
from codomyrmex_cache import CacheManager
cache = CacheManager(url=os.environ["URL"]).get_cache("x", backend="redis")
wire, tag = cache.space.backend._wire, b"1:x:"
def client(): return wire.send(tag, ((b"CLIENT", b"ID"),))[0]
for number in range(100): cache.set(str(number), number)
before = client()
child = os.fork()
for _ in range(5): assert [cache.get(str(number)) for number in range(100)] == list(range(100))
if not child: os._exit(10 if client() != before else 11)
assert client() == before
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_each_has_connections_of_its_own(valkey: Server) -> None:
    assert run_python(FORKED, URL=valkey.url).strip() == "10"


# -- the server is being left alone


@pytest.fixture
def alone(world: World) -> World:
    """Nobody probes."""
    world.away()
    for _ in range(3):
        world.cache.get("k")
    backend: Any = world.cache.space.backend
    backend._wire.breaker(0)._next = math.inf
    assert world.cache.stats().backend == "open"
    return world


def memoized(world: World, function: Any, **options: Any) -> Any:
    return cached("x", backend="redis", manager=world.manager, version=1, **options)(function)


def test_threads_share_one_run(alone: World) -> None:
    runs, start = [], Barrier(8)

    def slow(number: int) -> list[int]:
        runs.append(number)
        start.wait()  # all have come
        while flight()._waiting < 8:  # polling; the test's time limit ends it
            time.sleep(0.001)
        return [number]

    def flight() -> Any:
        return next(iter(alone.cache.space.flights._flights.values()))

    function = memoized(alone, slow)

    def call(place: int) -> list[int]:
        if place:
            start.wait()
        return function(7)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as pool:
        answers = [each.result(20) for each in [pool.submit(call, place) for place in range(8)]]
    assert answers == [[7]] * 8 and len({id(answer) for answer in answers}) == 8
    stats = function.stats()
    assert (len(runs), stats.loads, stats.misses, stats.coalesced, stats.calls) == (1, 1, 1, 7, 8)


def test_tasks_share_one_run_and_its_exception(alone: World) -> None:
    async def fails(number: int) -> int:
        await asyncio.sleep(0.02)
        raise ValueError(number)

    function = memoized(alone, fails)

    async def main() -> list[Any]:
        return await asyncio.gather(*(function(1) for _ in range(5)), return_exceptions=True)

    errors = asyncio.run(main())
    assert [(type(error), error.args) for error in errors] == [(ValueError, (1,))] * 5
    stats = function.stats()
    assert (stats.loads, stats.load_errors, stats.misses, stats.coalesced) == (1, 1, 1, 4)


def test_a_leader_that_is_cancelled_leaves_the_others_their_answer(alone: World) -> None:
    runs = []

    async def slow(number: int) -> int:
        runs.append(number)
        await asyncio.sleep(0.02)
        return number

    function = memoized(alone, slow)

    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(function(1)) for _ in range(4)]
        await asyncio.sleep(0.005)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(main())
    assert isinstance(answers[0], asyncio.CancelledError) and answers[1:] == [1, 1, 1]
    assert len(runs) == 2
    assert function.stats().calls == 4


def test_recursion(alone: World) -> None:
    again: dict[str, Any] = {}
    seen: list[int] = []

    def fibonacci(number: int) -> int:
        return number if number < 2 else int(again["fibonacci"](number - 1) + again["fibonacci"](number - 2))

    def circle(number: int) -> int:
        seen.append(number)
        return number if len(seen) > 3 else int(again["circle"](number))

    again |= {"fibonacci": memoized(alone, fibonacci), "circle": memoized(alone, circle)}
    assert (again["fibonacci"](12), again["circle"](1)) == (144, 1)
    stats = again["circle"].stats()
    assert (stats.calls, stats.misses, stats.bypasses) == (4, 1, 3)


def test_what_can_be_used_only_once(alone: World) -> None:
    async def one() -> int:
        return 1

    def later() -> Any:  # no coroutine function
        return one()

    stream = memoized(alone, lambda number: (each for each in range(number)), name="stream")
    file = memoized(alone, lambda: io.StringIO("text"), name="file")
    awaitable = memoized(alone, later, name="awaitable")

    async def main() -> int:
        return int(await awaitable())

    with stream(3) as items:  # as what it gives when the server is there
        assert (type(items), list(items)) == (CachedStream, [0, 1, 2])
    assert (file().read(), file().read()) == ("text", "text")
    assert (asyncio.run(main()), asyncio.run(main())) == (1, 1)


def test_followers_get_streams_of_their_own(alone: World) -> None:
    begun, go = Event(), Event()

    def numbers(count: int) -> Any:
        begun.set()
        assert go.wait(10)
        return (each for each in range(count))

    function = memoized(alone, numbers)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(function, 2)
        assert begun.wait(10)
        second = pool.submit(function, 2)
        (flight,) = alone.cache.space.flights._flights.values()
        while flight._waiting < 2:  # polling; the test's time limit ends it
            time.sleep(0.001)
        go.set()
        for each in (first, second):
            with each.result(10) as items:
                assert list(items) == [0, 1]


def test_errors_that_were_asked_for(valkey: Server) -> None:
    with world_on(valkey) as world:
        world.away()
        manager = CacheManager(url=world.proxy.url, on_error="raise")
        function = cached("x", backend="redis", manager=manager, version=1)(len)
        for _ in range(6):
            with pytest.raises(CacheBackendError):
                function("abc")
        stats = function.stats()
        assert (manager.stats("x").backend, stats.calls, stats.loads) == ("open", 6, 0)
        manager.close()
