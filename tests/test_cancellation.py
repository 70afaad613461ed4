"""Who is cancelled or interrupted ends alone, loads that wait for each other end, and functions that call themselves too."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import CacheManager, cached
from tests.conftest import run_python

LIMIT = 60.0
"""Seconds after which whoever still waits is taken for stranded; nothing here takes a hundredth of that."""


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each gives or raises, each in a thread of its own."""
    results: list[Any] = [None] * len(works)

    def work(place: int) -> None:
        try:
            results[place] = works[place]()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    return results


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # polling; nothing is assumed from the time passed


# -- random schedules


CURRENT: list[Schedule] = []
"""The schedule that is carried out."""


async def scheduled(key: int) -> list[int]:
    return await CURRENT[-1].body(key)


MOST_RUNS = 20


class Schedule:
    """One event loop, some callers, and where each of them is cancelled; all of it drawn from the seed."""

    def __init__(self, seed: int, manager: CacheManager, backend: str) -> None:
        self.choice = choice = random.Random(seed)
        self.under_way = 0
        self.endless = choice.random() < 0.3  # then all are cancelled
        self.keys = choice.randrange(1, 4)
        self.nested = {key: choice.sample(range(self.keys), choice.randrange(2)) for key in range(self.keys)}
        self.runs = 0
        options: Any = {"backend": backend, "manager": manager, "name": "function", "strict": True}
        on_timeout = choice.choice(["compute", "stale"])
        self.patient = cached(f"schedule-{seed}", **options)(scheduled)
        options |= {"wait": choice.choice([0, 0.001]), "on_wait_timeout": on_timeout}
        self.impatient = cached(f"schedule-{seed}", **options)(scheduled)

    async def body(self, key: int) -> list[int]:
        self.under_way += 1
        self.runs += 1
        try:
            for inner in self.nested[key] if self.runs < MOST_RUNS else ():  # a ring of bypasses has no other end
                if inner != key:
                    assert await self.function()(inner) == [inner]
            for _ in range(self.choice.randrange(6)):
                await asyncio.sleep(0)
            if self.endless:
                await asyncio.Event().wait()
            return [key]
        finally:
            self.under_way -= 1

    def function(self) -> Any:
        return self.impatient if self.choice.random() < 0.3 else self.patient

    async def run(self) -> int:
        """Carry it out; how many were cancelled."""
        CURRENT.append(self)
        called = [self.choice.randrange(self.keys) for _ in range(self.choice.randrange(2, 7))]
        tasks, cancelled = [], set()
        for key in called:
            tasks.append(asyncio.create_task(self.function()(key)))
            await self.pause(4)
            if self.choice.random() < 0.3:
                cancelled.add(self.cancel(tasks))
        while self.choice.random() < 0.6:
            await self.pause(6)
            cancelled.add(self.cancel(tasks))
        if self.endless or self.choice.random() < 0.2:
            await self.pause(8)
            cancelled.update(range(len(tasks)))
            for task in tasks:
                task.cancel()
        _, pending = await asyncio.wait(tasks, timeout=LIMIT)
        assert not pending, "somebody waits for ever"
        for place, task in enumerate(tasks):
            assert place in cancelled or not task.cancelled(), "cancelled with somebody else"
            if not task.cancelled():
                assert task.result() == [called[place]]
        await self.settled()
        self.endless = False
        self.runs = MOST_RUNS
        for key in range(self.keys):
            assert await asyncio.wait_for(self.patient(key), LIMIT) == [key]
            runs = self.runs
            assert (await self.patient(key), self.runs) == ([key], runs)
        return sum(task.cancelled() for task in tasks)

    async def pause(self, most: int) -> None:
        for _ in range(self.choice.randrange(most)):
            await asyncio.sleep(0)

    def cancel(self, tasks: list[asyncio.Task[Any]]) -> int:
        place = self.choice.randrange(len(tasks))
        tasks[place].cancel()
        return place

    async def settled(self) -> None:
        """Until the loads that nobody waits for have been cancelled."""
        deadline = time.monotonic() + LIMIT
        while len(asyncio.all_tasks()) > 1:
            assert time.monotonic() < deadline, "a load goes on though nobody waits for it"
            await asyncio.sleep(0)
        assert self.under_way == 0
        assert self.patient.cache.space.flights._flights == {}


@pytest.mark.parametrize(("backend", "block"), [*(("in_memory", block) for block in range(9)), ("file_based", 9)])
def test_no_schedule_of_cancellations_strands_anybody(tmp_path: Path, backend: str, block: int) -> None:
    cancelled = 0
    with closing(CacheManager(directory=tmp_path)) as manager:
        for seed in range(block * 100, block * 100 + 100):
            try:
                cancelled += asyncio.run(Schedule(seed, manager, backend).run())
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
    assert cancelled > 50


def test_a_load_that_is_cancelled_while_it_asks_for_its_lease_holds_nobody_up(tmp_path: Path) -> None:
    runs: list[int] = []

    async def main(cache: Any) -> None:
        backend, asked, granted, begun = cache.space.backend, threading.Event(), threading.Event(), []
        begin = backend.begin

        def slow(*arguments: Any) -> Any:
            begun.append(begin(*arguments))
            asked.set()
            granted.wait(LIMIT)
            return begun[-1]

        backend.begin = slow
        first = asyncio.create_task(cache.aget_or_load("k", lambda: runs.append(1)))
        while not asked.is_set():
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        granted.set()
        await asyncio.wait_for(cache.aget_or_load("k", lambda: runs.append(2)), LIMIT)
        assert len(begun) < 20  # looks at the lease; in the seconds until it ends by itself they are some eighty

    with closing(CacheManager(directory=tmp_path)) as manager:
        asyncio.run(main(manager.get_cache("leases", "file_based")))
    assert runs == [2]


def test_a_load_that_is_cancelled_before_it_starts_is_begun_again_by_who_follows() -> None:
    runs: list[int] = []

    async def main() -> None:
        cache = CacheManager().get_cache("unstarted")
        leader, follower = (asyncio.create_task(cache.aget_or_load("k", lambda: runs.append(1))) for _ in range(2))
        await asyncio.sleep(0)
        (load,) = asyncio.all_tasks() - {leader, follower, asyncio.current_task()}
        load.cancel()
        _, pending = await asyncio.wait([leader, follower], timeout=LIMIT)
        assert not pending, "somebody waits for ever"
        assert (leader.cancelled(), follower.cancelled()) == (True, False)

    asyncio.run(main())
    assert runs == [1]


# -- interruptions


def test_when_the_leading_thread_is_interrupted_the_followers_compute_anew() -> None:
    cache = CacheManager().get_cache("interrupted")
    runs: list[int] = []

    def load() -> list[int]:
        runs.append(threading.get_ident())
        if len(runs) == 1:
            (flight,) = cache.space.flights._flights.values()
            until(lambda: flight._waiting == 5)
            raise KeyboardInterrupt
        return [len(runs)]

    def follow() -> Any:
        until(lambda: bool(runs))
        return cache.get_or_load("k", load)

    def afollow() -> Any:
        until(lambda: bool(runs))
        return asyncio.run(cache.aget_or_load("k", load))

    results = in_threads(lambda: cache.get_or_load("k", load), follow, follow, afollow, afollow)
    assert isinstance(results[0], KeyboardInterrupt)
    assert results[1:] == [[2]] * 4
    assert len(runs) == 2
    stats = cache.stats()
    assert (stats.calls, stats.misses, stats.loads) == (5, 2, 1)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_interrupts_a_thread_is_raised_there_alone(kind: type[BaseException]) -> None:
    @cached(manager=CacheManager())
    def function(x: int) -> int:
        runs.append(x)
        if len(runs) == 1:
            (flight,) = function.cache.space.flights._flights.values()
            until(lambda: flight._waiting == 3)
            raise kind
        return x

    runs: list[int] = []

    def follow() -> int:
        until(lambda: bool(runs))
        return function(1)

    results = in_threads(lambda: function(1), follow, follow)
    assert type(results[0]) is kind
    assert results[1:] == [1, 1]


@pytest.mark.parametrize("follows", ["threads", "loops"])
def test_each_follower_gets_an_exception_of_its_own(follows: str) -> None:
    cache = CacheManager().get_cache("errors")
    raised: list[Exception] = []

    def load() -> None:
        (flight,) = cache.space.flights._flights.values()
        until(lambda: flight._waiting == 4)
        raised.append(KeyError("missing", 7))
        raise raised[-1]

    def call() -> Any:
        return cache.get_or_load("k", load) if follows == "threads" else asyncio.run(cache.aget_or_load("k", to_thread))

    async def to_thread() -> None:
        await asyncio.to_thread(load)

    results = in_threads(call, call, call, call)
    assert [(type(error), error.args) for error in results] == [(KeyError, ("missing", 7))] * 4
    assert len({id(error) for error in results}) == 4
    assert len(raised) == 1
    assert raised[0] in results


# -- loads that wait for each other


class Ring:
    """Functions each of which calls the next, when all of them are under way; run a second time they call nobody."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.entered: set[int] = set()

    def enters(self, number: int) -> bool:
        """Whether this is its first run; then all the others are in theirs when this returns."""
        if number in self.entered:
            return False
        self.entered.add(number)
        self.barrier.wait(LIMIT)
        return True

    def expected(self) -> list[list[int]]:
        return [[number, (number + 1) % self.size] for number in range(self.size)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("namespaces", [1, 2])
@pytest.mark.parametrize("attempt", range(10))
def test_a_ring_of_threads_ends(size: int, namespaces: int, attempt: int) -> None:
    ring, manager = Ring(size), CacheManager()

    def body(number: int) -> list[int]:
        return [number, functions[(number + 1) % size]((number + 1) % size)[0]] if ring.enters(number) else [number]

    functions = [
        cached(f"ring-{number % namespaces}", manager=manager, name="body", strict=True)(body) for number in range(size)
    ]
    results = in_threads(*(lambda number=number: functions[number](number) for number in range(size)))
    assert results == ring.expected()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("namespaces", [1, 2])
def test_a_ring_of_tasks_ends(size: int, namespaces: int) -> None:
    async def main() -> list[list[int]]:
        entered: set[int] = set()
        everybody = asyncio.Event()
        manager = CacheManager()

        async def body(number: int) -> list[int]:
            if number in entered:
                return [number]
            entered.add(number)
            if len(entered) == size:
                everybody.set()
            await everybody.wait()
            following = (number + 1) % size
            return [number, (await functions[following](following))[0]]

        functions = [
            cached(f"ring-{number % namespaces}", manager=manager, name="body", strict=True)(body) for number in range(size)
        ]
        return await asyncio.wait_for(asyncio.gather(*(functions[number](number) for number in range(size))), LIMIT)

    assert asyncio.run(main()) == Ring(size).expected()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("namespaces", [1, 2])
@pytest.mark.parametrize("attempt", range(10))
def test_a_ring_of_threads_and_a_task_ends(size: int, namespaces: int, attempt: int) -> None:
    """The last of the ring is a coroutine function, whose load runs in an event loop; the others call it from theirs."""
    ring, manager = Ring(size), CacheManager()

    def body(number: int) -> list[int]:
        if not ring.enters(number):
            return [number]
        following = number + 1
        return [number, (asyncio.run(last(following)) if following == size - 1 else functions[following](following))[0]]

    async def last_body(number: int) -> list[int]:
        if not await asyncio.to_thread(ring.enters, number):
            return [number]
        return [number, (await asyncio.to_thread(functions[0], 0))[0]]

    functions = [cached("ring-0", manager=manager, name="body", strict=True)(body) for _ in range(size - 1)]
    last = cached(f"ring-{namespaces - 1}", manager=manager, name="last", strict=True)(last_body)
    plain = [lambda number=number: functions[number](number) for number in range(size - 1)]
    assert in_threads(*plain, lambda: asyncio.run(last(size - 1))) == ring.expected()


# -- functions that call themselves

TOGETHER = CacheManager()


def test_a_function_calls_itself_as_deep_as_one_that_is_not_decorated() -> None:
    source = """
from codomyrmex_cache import CacheManager, cached

@cached(manager=CacheManager(), max_entries=50)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

print(fib(400))
"""
    assert int(run_python(source)) == fibonacci(400)


def fibonacci(n: int) -> int:
    one, other = 0, 1
    for _ in range(n):
        one, other = other, one + other
    return one


@cached("bounded", manager=TOGETHER, max_entries=50)
async def afib(n: int) -> int:
    return n if n < 2 else await afib(n - 1) + await afib(n - 2)


def test_a_coroutine_function_that_calls_itself() -> None:
    assert asyncio.run(afib(400)) == fibonacci(400)
    stats = afib.stats()
    assert stats.size == 50
    assert stats.loads == stats.misses < 2 * 400  # what falls out for want of room is computed again, and not all over


RECURSIVE: dict[str, Any] = {}
"""What the functions below call, which is themselves, decorated for the test."""


def fib(n: int) -> int:
    return n if n < 2 else RECURSIVE["fib"](n - 1) + RECURSIVE["fib"](n - 2)


async def coroutine_fib(n: int) -> int:
    return n if n < 2 else await RECURSIVE["fib"](n - 1) + await RECURSIVE["fib"](n - 2)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_that_calls_itself_and_is_kept_in_files(tmp_path: Path, is_async: bool) -> None:
    with closing(CacheManager(directory=tmp_path)) as manager:
        RECURSIVE["fib"] = function = cached(backend="file_based", manager=manager)(coroutine_fib if is_async else fib)
        assert (asyncio.run(function(60)) if is_async else function(60)) == fibonacci(60)
    assert function.stats().loads == 61


@cached("even", manager=TOGETHER)
def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


@cached("odd", manager=TOGETHER)
def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


@cached("even", manager=TOGETHER)
async def aeven(n: int) -> bool:
    return n == 0 or await aodd(n - 1)


@cached("odd", manager=TOGETHER)
async def aodd(n: int) -> bool:
    return n != 0 and await aeven(n - 1)


@pytest.mark.parametrize("is_async", [False, True])
def test_functions_that_call_each_other(is_async: bool) -> None:
    TOGETHER.get_cache("even").clear()
    TOGETHER.get_cache("odd").clear()
    answers = [asyncio.run(aeven(150)), asyncio.run(aodd(150))] if is_async else [even(150), odd(150)]
    assert answers == [True, False]


def test_a_generator_function_that_calls_itself() -> None:
    runs: list[int] = []

    @cached(manager=CacheManager())
    def down(n: int) -> Iterator[int]:
        runs.append(n)
        yield n
        if n:
            yield from down(n - 1)

    assert [list(down(30)), list(down(30)), list(down(7))] == [[*range(30, -1, -1)]] * 2 + [[*range(7, -1, -1)]]
    assert runs == [*range(30, -1, -1)]


def test_an_async_generator_function_that_calls_itself() -> None:
    runs: list[int] = []

    @cached(manager=CacheManager())
    async def down(n: int) -> AsyncIterator[int]:
        runs.append(n)
        yield n
        if n:
            async for number in down(n - 1):
                yield number

    async def main() -> list[list[int]]:
        return [[number async for number in down(n)] for n in (30, 30, 7)]

    assert asyncio.run(main()) == [[*range(30, -1, -1)]] * 2 + [[*range(7, -1, -1)]]
    assert runs == [*range(30, -1, -1)]
