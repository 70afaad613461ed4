"""How long results live, and what is answered around the end of a life, in every backend."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_cache import MISSING, CacheManager, Entry, cached
from codomyrmex_cache import _wiring as wiring
from codomyrmex_cache._policy import Verdict, error_lifetime, is_due_early, is_due_touch, jittered, judge, new_entry, prolonged
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import CacheConfigurationError, CacheTimeoutError
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server
from tests.test_decorator import wait_for

SECRET = b"a secret for the tests"
LIMIT = 10.0
"""Seconds after which a thread that should have gone on has not."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def decorate(manager: CacheManager, backend_name: str) -> Callable[..., Any]:
    """`cached` for a namespace of the test's own in the backend at hand."""
    return functools.partial(cached, "freshness", backend=backend_name, manager=manager)


def settle() -> None:
    """Until no refresh runs in a thread."""
    for thread in threading.enumerate():
        if thread.name == "codomyrmex_cache refresh":
            thread.join(LIMIT)
            assert not thread.is_alive()


async def asettle(function: Any) -> None:
    """Until no refresh runs in this event loop."""
    await asyncio.wait_for(asyncio.gather(*function.cache.space.tasks), LIMIT)


def waiting(function: Any, *arguments: Any) -> int:
    """How many callers depend on the load of this call that is under way."""
    space = function.cache.space
    flight = space.flights._flights.get(space.stored(function.key(*arguments)))
    return 0 if flight is None else flight._waiting


class Gated:
    """A body that counts its runs, answers their number, and stands still where it is told to."""

    def __init__(self, *stops: int) -> None:
        self.runs = 0
        self.started = {number: threading.Event() for number in stops}
        self.gates = {number: threading.Event() for number in stops}

    def __call__(self) -> int:
        self.runs += 1
        number = self.runs
        if number in self.gates:
            self.started[number].set()
            assert self.gates[number].wait(LIMIT)
        return number


# -- ttl


@pytest.mark.parametrize("ttl", [60, 60.0, "1m", "1m 0s", timedelta(minutes=1), lambda value: value["seconds"]])
def test_set_takes_every_form_of_ttl(manager: CacheManager, backend_name: str, clock: FakeClock, ttl: Any) -> None:
    cache = manager.get_cache("ttl", backend_name)
    cache.set("k", {"seconds": 60}, ttl=ttl)
    clock.advance(59.99)
    assert cache.get("k") == {"seconds": 60}
    clock.advance(0.01)
    assert cache.get("k") is None


@pytest.mark.parametrize("ttl", [60, "1m", timedelta(minutes=1), lambda value: 10 * value])
def test_get_or_load_takes_every_form_of_ttl(manager: CacheManager, backend_name: str, clock: FakeClock, ttl: Any) -> None:
    cache = manager.get_cache("ttl", backend_name)
    values = iter([6, 7])
    assert cache.get_or_load("k", lambda: next(values), ttl=ttl) == 6
    clock.advance(59.99)
    assert cache.get_or_load("k", lambda: next(values), ttl=ttl) == 6
    clock.advance(0.01)
    assert cache.get_or_load("k", lambda: next(values), ttl=ttl) == 7


def test_set_with_ttl_zero_removes_what_was_there(manager: CacheManager, backend_name: str) -> None:
    cache = manager.get_cache("ttl", backend_name)
    cache.set("k", 1)
    cache.set("k", 2, ttl=lambda value: 0)
    assert cache.get("k", "nothing") == "nothing"


@pytest.mark.parametrize("ttl", [-1, float("nan"), "soon", True])
@pytest.mark.parametrize("verb", ["set", "get_or_load", "add"])
def test_a_ttl_that_means_nothing_is_refused_at_the_call(manager: CacheManager, backend_name: str, verb: str, ttl: Any) -> None:
    cache = manager.get_cache("ttl", backend_name)
    with pytest.raises(CacheConfigurationError, match="ttl="):
        getattr(cache, verb)("k", lambda: 1, ttl=ttl)
    assert cache.has("k") is False


def test_each_result_has_its_own_ttl(decorate: Callable[..., Any], clock: FakeClock) -> None:
    runs: list[str] = []

    @decorate(ttl={"short": 1, "long": "1h", "ever": None, "never": 0}.get)
    def function(word: str) -> str:
        runs.append(word)
        return word

    words = ["short", "long", "ever", "never"]
    for word in words:
        function(word)
    assert [function.contains(word) for word in words] == [True, True, True, False]
    clock.advance(2)
    assert [function.contains(word) for word in words] == [False, True, True, False]
    clock.advance(3600)
    assert [function.contains(word) for word in words] == [False, False, True, False]
    clock.advance(1e9)
    function("ever")
    assert runs == words


# -- jitter


def test_jitter_shortens_lives_by_its_share_at_most(
    decorate: Callable[..., Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = iter([0.0, 0.5, 0.999999])
    monkeypatch.setattr(Space, "draw", staticmethod(lambda: next(draws)))

    @decorate(ttl=100, jitter=0.2)
    def function(x: int) -> int:
        return x

    for x in range(3):
        function(x)
    lives = [function.entry(x).ttl for x in range(3)]
    assert lives == pytest.approx([100.0, 90.0, 80.0], abs=1e-3)
    clock.advance(95)
    assert [function.contains(x) for x in range(3)] == [True, False, False]


def test_jitter_spreads_lives(decorate: Callable[..., Any]) -> None:
    @decorate(ttl=100, jitter=0.5)
    def function(x: int) -> int:
        return x

    for x in range(60):
        function(x)
    lives = sorted(function.entry(x).ttl for x in range(60))
    assert lives[0] >= 50 - 1e-6
    assert lives[-1] <= 100 + 1e-6
    assert lives[-1] - lives[0] > 25  # of 60 draws all within half of the range: once in 2**54
    assert len(set(lives)) > 50


def test_jitter_leaves_for_ever_for_ever(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(jitter=1.0)
    def function() -> int:
        return 1

    function()
    clock.advance(1e9)
    assert function.contains() is True


# -- stale


def test_a_stale_hit_answers_at_once_and_one_refresh_runs_behind(
    decorate: Callable[..., Any], clock: FakeClock, pool: ThreadPoolExecutor
) -> None:
    body = Gated(2)

    @decorate(ttl=10, stale=20)
    def function() -> int:
        return body()

    assert function() == 1
    clock.advance(10)
    assert function() == 1
    assert body.started[2].wait(LIMIT)
    assert [function() for _ in range(5)] == [1] * 5
    assert [each.result(LIMIT) for each in [pool.submit(function) for _ in range(8)]] == [1] * 8
    assert body.runs == 2
    body.gates[2].set()
    settle()
    assert function() == 2
    assert body.runs == 2
    stats = function.stats()
    assert (stats.stale_hits, stats.hits, stats.misses, stats.loads, stats.calls) == (14, 1, 1, 2, 16)


def test_a_stale_hit_in_an_event_loop_refreshes_in_a_task(decorate: Callable[..., Any], clock: FakeClock) -> None:
    runs: list[str] = []

    async def main() -> None:
        gate = asyncio.Event()

        @decorate(ttl=10, stale=20)
        async def function() -> int:
            runs.append(threading.current_thread().name)
            if len(runs) == 2:
                await gate.wait()
            return len(runs)

        assert await function() == 1
        clock.advance(10)
        assert [await function() for _ in range(3)] == [1] * 3
        assert await asyncio.gather(*[function() for _ in range(8)]) == [1] * 8
        while len(runs) < 2:
            await asyncio.sleep(0)
        assert await function() == 1
        gate.set()
        await asettle(function)
        assert await function() == 2
        assert runs == [threading.current_thread().name] * 2
        assert (function.stats().stale_hits, function.stats().hits) == (12, 1)

    asyncio.run(main())


def test_a_failing_refresh_keeps_the_old_value_until_its_window_ends(decorate: Callable[..., Any], clock: FakeClock) -> None:
    runs: list[int] = []

    @decorate(ttl=10, stale=20)
    def function() -> str:
        runs.append(1)
        if len(runs) > 1:
            raise OSError("away")
        return "old"

    assert function() == "old"
    for seconds in (10, 10, 9.9):  # 29.9 in all
        clock.advance(seconds)
        assert function() == "old"
        settle()
    assert len(runs) == 4
    assert function.stats().load_errors == 3
    assert function.stats().stale_hits == 3
    clock.advance(0.1)
    with pytest.raises(OSError, match="away"):
        function()
    assert function.stats().misses == 2


def test_a_failing_refresh_in_an_event_loop_is_counted_too(decorate: Callable[..., Any], clock: FakeClock) -> None:
    runs: list[int] = []

    @decorate(ttl=10, stale=20, errors={OSError: 60})
    async def function() -> str:
        runs.append(1)
        if len(runs) > 1:
            raise OSError("away")
        return "old"

    async def main() -> None:
        assert await function() == "old"
        clock.advance(15)
        assert await function() == "old"
        await asettle(function)
        assert await function() == "old"  # an error that `errors` names does not take the old value's place either
        await asettle(function)
        assert function.stats().load_errors == 2
        clock.advance(15)
        with pytest.raises(OSError, match="away"):
            await function()

    asyncio.run(main())


def test_after_the_window_a_call_is_a_miss(decorate: Callable[..., Any], clock: FakeClock) -> None:
    body = Gated()

    @decorate(ttl=10, stale=20)
    def function() -> int:
        return body()

    function()
    clock.advance(30)
    assert function.explain().outcome == "expired"
    assert function() == 2
    assert (function.stats().misses, function.stats().stale_hits) == (2, 0)


@pytest.mark.parametrize("verb", ["invalidate", "clear", "invalidate_tags", "delete"])
def test_a_stale_value_that_was_invalidated_is_not_served(decorate: Callable[..., Any], clock: FakeClock, verb: str) -> None:
    body = Gated(2)

    @decorate(ttl=10, stale=20, tags=["t"])
    def function() -> int:
        return body()

    function()
    clock.advance(15)
    assert function() == 1
    assert body.started[2].wait(LIMIT)
    if verb == "invalidate_tags":
        function.cache.invalidate_tags("t")
    elif verb == "delete":
        function.cache.delete(function.key())
    else:
        getattr(function, verb)()
    assert function() == 3  # neither the old value nor a place in the refresh that began before the invalidation
    body.gates[2].set()
    settle()
    assert function() == 3
    assert body.runs == 3


def test_a_refresh_that_was_invalidated_stores_nothing(decorate: Callable[..., Any], clock: FakeClock) -> None:
    body = Gated(2)

    @decorate(ttl=10, stale=20)
    def function() -> int:
        return body()

    function()
    clock.advance(15)
    function()
    assert body.started[2].wait(LIMIT)
    function.invalidate()
    body.gates[2].set()
    settle()
    assert function.peek() is MISSING
    assert function.stats().sets == 1


TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


def test_a_refresh_has_the_callers_context(decorate: Callable[..., Any], clock: FakeClock) -> None:
    seen: list[str] = []

    @decorate(ttl=10, stale=20)
    def function() -> None:
        seen.append(TENANT.get())

    @decorate(ttl=10, stale=20)
    async def later() -> None:
        seen.append(TENANT.get())

    async def main() -> None:
        await later()
        clock.advance(15)
        await later()
        await asettle(later)

    token = TENANT.set("caller")
    try:
        function()
        clock.advance(15)
        function()
        settle()
        asyncio.run(main())
    finally:
        TENANT.reset(token)
    assert seen == ["caller"] * 4


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wraps"])
def test_a_plain_function_that_returns_awaitables_is_refreshed_too(
    decorate: Callable[..., Any], clock: FakeClock, wrapped: bool
) -> None:
    runs: list[int] = []

    async def body() -> int:
        runs.append(1)
        return len(runs)

    def plain() -> Coroutine[Any, Any, int]:
        return body()

    function = decorate(ttl=10, stale=20)(functools.wraps(body)(plain) if wrapped else plain)

    async def main() -> None:
        assert await function() == 1
        clock.advance(15)
        assert await function() == 1
        for _ in range(1000):
            if function.stats().sets == 2:
                break
            await asyncio.sleep(0.001)
        assert await function() == 2

    asyncio.run(main())
    assert len(runs) == 2
    assert function.stats().load_errors == 0
    assert function.cache.stats().errors == {}


def test_arguments_that_the_caller_changes_during_a_refresh_are_not_stored_under_the_old_key(
    decorate: Callable[..., Any], clock: FakeClock
) -> None:
    body = Gated(2)

    @decorate(ttl=10, stale=20)
    def function(items: list[int]) -> int:
        body()
        return sum(items)

    items = [1]
    assert function(items) == 1
    clock.advance(15)
    assert function(items) == 1
    assert body.started[2].wait(LIMIT)
    items.append(5)  # the caller has its answer, so the list is its own again
    body.gates[2].set()
    settle()
    assert function([1]) == 1
    settle()
    assert function([1]) == 1


def test_arguments_that_a_task_changes_before_a_refresh_are_not_stored_under_the_old_key(
    decorate: Callable[..., Any], clock: FakeClock
) -> None:
    @decorate(ttl=10, stale=20)
    async def function(items: list[int]) -> int:
        await asyncio.sleep(0)
        return sum(items)

    async def main() -> None:
        items = [1]
        assert await function(items) == 1
        clock.advance(15)
        assert await function(items) == 1
        items.append(5)  # the caller has its answer, so the list is its own again
        await asettle(function)
        assert await function([1]) == 1
        await asettle(function)
        assert await function([1]) == 1

    asyncio.run(main())


def test_a_seeded_value_has_the_stale_window_too(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(ttl=10, stale=20)
    def function() -> str:
        return "loaded"

    function.seed("seeded")
    clock.advance(15)
    assert function() == "seeded"
    settle()
    assert function() == "loaded"


def test_explain_and_peek_tell_a_stale_value(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(ttl=10, stale=20)
    def function() -> int:
        return 1

    function()
    clock.advance(15)
    assert function.explain().outcome == "stale"
    assert function.peek() is MISSING
    assert function.contains() is False
    assert function.entry() is None


# -- early

ONE = 1.0 - math.exp(-1.0)
"""The draw of which -log(1 - draw) is 1."""


@pytest.fixture
def slow(decorate: Callable[..., Any], clock: FakeClock) -> Callable[..., Any]:
    """Makes a function whose load takes so many seconds of the clock."""

    def make(cost: float, **options: Any) -> Any:
        runs: list[int] = []

        @decorate(**options)
        def function() -> int:
            runs.append(1)
            if len(runs) == 1:
                clock.advance(cost)
            return len(runs)

        assert function() == 1
        return function

    return make


@pytest.mark.parametrize(("early", "seconds"), [(True, 10.0), (2.0, 20.0), (0.5, 5.0)])
def test_an_early_refresh_is_due_where_xfetch_says(
    slow: Callable[..., Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch, early: Any, seconds: float
) -> None:
    monkeypatch.setattr(Space, "draw", staticmethod(lambda: ONE))
    function = slow(10.0, ttl=100, early=early)
    clock.advance(100 - seconds - 0.01)
    assert function() == 1
    settle()
    assert function.stats().loads == 1
    clock.advance(0.02)
    assert function() == 1  # at once, and the refresh behind
    settle()
    assert function.stats().loads == 2
    assert function() == 2
    assert (function.stats().hits, function.stats().stale_hits, function.stats().misses) == (3, 0, 1)
    assert function.entry().fresh_until == clock() + 100


def test_without_a_ttl_nothing_is_refreshed_early(
    slow: Callable[..., Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "draw", staticmethod(lambda: math.nextafter(1.0, 0.0)))
    function = slow(1e6, early=1000.0)
    clock.advance(1e9)
    assert function() == 1
    settle()
    assert function.stats().loads == 1


def test_a_load_that_took_no_time_is_not_refreshed_early(
    slow: Callable[..., Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "draw", staticmethod(lambda: math.nextafter(1.0, 0.0)))
    function = slow(0.0, ttl=100, early=1000.0)
    clock.advance(99.999)
    assert function() == 1
    settle()
    assert function.stats().loads == 1


def test_an_early_refresh_that_fails_leaves_the_value(
    decorate: Callable[..., Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "draw", staticmethod(lambda: ONE))
    runs: list[int] = []

    @decorate(ttl=100, early=True, errors={ValueError: None})
    def function() -> int:
        runs.append(1)
        if len(runs) > 1:
            raise ValueError
        clock.advance(50)
        return 1

    function()
    clock.advance(60)
    assert function() == 1
    settle()
    assert len(runs) == 2
    assert function.peek() == 1
    assert function.stats().load_errors == 1


def test_an_early_refresh_in_an_event_loop(
    decorate: Callable[..., Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "draw", staticmethod(lambda: ONE))
    runs: list[int] = []

    @decorate(ttl=100, early=True)
    async def function() -> int:
        runs.append(1)
        clock.advance(50 if len(runs) == 1 else 0)
        return len(runs)

    async def main() -> None:
        assert await function() == 1
        clock.advance(60)
        assert await function() == 1
        await asettle(function)
        assert await function() == 2

    asyncio.run(main())


# -- touch


def test_a_hit_begins_the_ttl_anew(decorate: Callable[..., Any], clock: FakeClock) -> None:
    body = Gated()

    @decorate(ttl=100, touch=True)
    def function() -> int:
        return body()

    for _ in range(5):
        assert function() == 1
        clock.advance(99)
    assert function() == 1
    clock.advance(100)
    assert function() == 2


def test_a_touch_writes_only_when_a_hundredth_of_the_ttl_has_gone_by(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(ttl=100, touch=True)
    def function() -> int:
        return 1

    function()
    first = clock()
    clock.advance(0.99)
    function()
    assert function.entry().created == first
    clock.advance(0.02)
    function()
    assert function.entry().created == clock()
    assert function.entry().fresh_until == clock() + 100
    assert function.entry().ttl == 100


def test_a_touched_entry_keeps_its_stale_window(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(ttl=100, stale=50, touch=True)
    def function() -> int:
        return 1

    function()
    clock.advance(60)
    function()
    entry = function.entry()
    assert (entry.fresh_until - clock(), entry.expires_at - clock()) == (100, 150)
    clock.advance(149)
    function()
    settle()
    assert function.stats().stale_hits == 1


def test_without_touch_a_hit_prolongs_nothing(decorate: Callable[..., Any], clock: FakeClock) -> None:
    body = Gated()

    @decorate(ttl=100)
    def function() -> int:
        return body()

    function()
    clock.advance(99)
    assert function() == 1
    clock.advance(1)
    assert function() == 2


def test_a_touch_in_an_event_loop(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(ttl=100, touch=True)
    async def function() -> int:
        return 1

    async def main() -> None:
        for _ in range(3):
            await function()
            clock.advance(99)
        assert function.stats().loads == 1

    asyncio.run(main())


def test_a_touch_prolongs_the_servers_own_life(valkey: Server, clock: FakeClock) -> None:
    manager = CacheManager(url=valkey.url, secret=SECRET, clock=clock)

    @cached("touch", ttl=1000, backend="redis", touch=True, manager=manager)
    def function() -> int:
        return 1

    function()
    space = function.cache.space
    key = space.backend.server_key(space.stored(function.key()))
    with valkey.client() as client:
        client.pexpire(key, 5_000)  # as if the server's clock had gone on
        clock.advance(995)
        function()
        assert 990_000 < client.pttl(key) <= 1_000_000  # type: ignore[operator]
    manager.close()


def test_a_hit_that_is_touched_does_not_undo_an_early_refresh(
    decorate: Callable[..., Any], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = iter([ONE, 0.0])
    monkeypatch.setattr(Space, "draw", staticmethod(lambda: next(draws, 0.0)))
    body = Gated(2)

    @decorate(ttl=100, early=True, touch=True)
    def function() -> int:
        if not body.runs:
            clock.advance(50)
        return body()

    function()
    clock.advance(60)
    assert function() == 1  # due
    assert body.started[2].wait(LIMIT)
    assert function() == 1  # not due, so it touches
    body.gates[2].set()
    settle()
    assert function() == 2


# -- store_if


def test_a_result_that_store_if_declines_is_not_stored(decorate: Callable[..., Any]) -> None:
    asked: list[Any] = []

    def is_good(result: Any) -> bool:
        asked.append(result)
        return bool(result)

    runs: list[int] = []

    @decorate(store_if=is_good)
    def function(x: Any) -> Any:
        runs.append(1)
        return x

    assert [function(None), function(None), function("x"), function("x")] == [None, None, "x", "x"]
    assert len(runs) == 3
    assert asked == [None, None, "x"]
    assert function.stats().sets == 1
    assert function.stats().errors == {}


def test_those_who_wait_for_a_result_that_is_not_stored_get_it(decorate: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    body = Gated(1)

    @decorate(store_if=lambda result: False)
    def function() -> list[int]:
        return [body()]

    calls = [pool.submit(function) for _ in range(4)]
    wait_for(lambda: waiting(function) == 4)
    body.gates[1].set()
    assert [call.result(LIMIT) for call in calls] == [[1]] * 4
    assert function.peek() is MISSING
    assert (function.stats().misses, function.stats().coalesced) == (1, 3)


def test_tasks_that_wait_for_a_result_that_is_not_stored_get_it(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        @decorate(store_if=lambda result: False)
        async def function() -> int:
            runs.append(1)
            await gate.wait()
            return len(runs)

        calls = [asyncio.ensure_future(function()) for _ in range(4)]
        while waiting(function) < 4:
            await asyncio.sleep(0.001)
        gate.set()
        assert await asyncio.gather(*calls) == [1] * 4
        assert await function() == 2

    asyncio.run(main())


def test_a_predicate_that_fails_costs_the_storing_alone(decorate: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    @decorate(store_if=lambda result: result["absent"])
    def function() -> dict[str, int]:
        return {"x": 1}

    assert [function(), function()] == [{"x": 1}] * 2
    assert function.peek() is MISSING
    assert function.stats().errors == {"store_if": 2}
    assert caplog.text.count("store_if callable failed") == 1


# -- errors


class Refused(Exception):  # noqa: N818  told apart by its name
    """Has a constructor of its own kind."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class RefusedPolitely(Refused):
    pass


class Slotted(Refused):
    __slots__ = ("extra",)


def outcome_of(function: Any, *arguments: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_a_listed_error_is_remembered_for_its_ttl(decorate: Callable[..., Any], clock: FakeClock) -> None:
    runs: list[int] = []

    @decorate(errors={KeyError: "1m"})
    def function(x: str) -> Any:
        runs.append(1)
        return {}[x]

    for _ in range(3):
        assert outcome_of(function, "x").args == ("x",)
    assert len(runs) == 1
    clock.advance(59.9)
    outcome_of(function, "x")
    assert len(runs) == 1
    clock.advance(0.1)
    outcome_of(function, "x")
    assert len(runs) == 2
    stats = function.stats()
    assert (stats.hits, stats.misses, stats.load_errors, stats.sets) == (3, 2, 2, 2)


def test_the_nearest_listed_class_decides(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(ttl=1, errors={LookupError: 10, KeyError: 0, IndexError: 30, ArithmeticError: None})
    def function(kind: str) -> None:
        raise {"key": KeyError, "index": IndexError, "lookup": LookupError, "zero": ZeroDivisionError, "os": OSError}[kind]

    kinds = ["key", "index", "lookup", "zero", "os"]
    for kind in kinds:
        outcome_of(function, kind)
    assert [function.contains(kind) for kind in kinds] == [False, True, True, True, False]
    clock.advance(10)
    assert [function.contains(kind) for kind in kinds] == [False, True, False, True, False]
    clock.advance(1e9)
    assert [function.contains(kind) for kind in kinds] == [False, False, False, True, False]
    assert type(outcome_of(function, "zero")) is ZeroDivisionError


def test_an_error_that_is_not_listed_is_never_stored(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate(errors={KeyError: None})
    def function() -> None:
        runs.append(1)
        raise ValueError

    outcome_of(function)
    outcome_of(function)
    assert len(runs) == 2
    assert function.stats().size in (0, None)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_through(decorate: Callable[..., Any], kind: type[BaseException]) -> None:
    runs: list[int] = []

    @decorate(errors={Exception: None})
    def function() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise kind
        return 2

    with pytest.raises(kind):
        function()
    assert function() == 2


def test_each_caller_gets_a_fresh_exception(decorate: Callable[..., Any]) -> None:
    @decorate(errors={KeyError: None})
    def function() -> None:
        error = KeyError("x")
        error.add_note("from the body")
        raise error

    first = outcome_of(function)
    raised = [outcome_of(function) for _ in range(5)]
    assert len({id(error) for error in [first, *raised]}) == 6
    assert [error.args for error in raised] == [("x",)] * 5
    assert [error.__notes__ for error in raised] == [["from the body"]] * 5
    raised[0].add_note("of one caller")
    again = outcome_of(function)
    assert again.__notes__ == ["from the body"]
    lengths = [len(traceback.extract_tb(error.__traceback__)) for error in [*raised, again]]
    assert len(set(lengths)) == 1


def test_an_exception_keeps_its_class_and_attributes(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate(errors={Refused: None})
    def function(x: int) -> None:
        runs.append(1)
        raise RefusedPolitely(x, detail="no")

    for _ in range(3):
        error = outcome_of(function, 402)
        assert type(error) is RefusedPolitely
        assert (str(error), error.code, error.detail) == ("402: no", 402, "no")  # type: ignore[attr-defined]
    assert len(runs) == 1


def test_an_exception_that_cannot_be_taken_apart_is_not_stored_and_counted(
    decorate: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    @decorate(errors={Exception: None})
    def function() -> None:
        raise Slotted(1, detail="x")

    assert type(outcome_of(function)) is Slotted
    assert type(outcome_of(function)) is Slotted
    assert function.stats().errors == {"unstorable": 2}
    assert function.contains() is False
    assert caplog.text.count("not stored") == 1


def test_an_exception_with_an_attribute_that_cannot_be_stored(decorate: Callable[..., Any]) -> None:
    @decorate(errors={Exception: None})
    def function() -> None:
        error = ValueError("x")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    assert str(outcome_of(function)) == "x"
    assert str(outcome_of(function)) == "x"
    assert function.stats().errors == {"unstorable": 2}


def test_a_remembered_error_of_a_coroutine_function(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate(errors={KeyError: "1m"})
    async def function() -> None:
        runs.append(1)
        raise KeyError("x")

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(KeyError, match="x"):
                await function()
        assert await function.apeek() is MISSING
        assert await function.acontains() is True
        entry = await function.aentry()
        assert type(entry.value) is KeyError

    asyncio.run(main())
    assert len(runs) == 1


def test_a_remembered_error_of_a_plain_function_that_returns_awaitables(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    async def body() -> None:
        runs.append(1)
        raise KeyError("x")

    def plain() -> Coroutine[Any, Any, None]:
        return body()

    function = decorate(errors={KeyError: "1m"})(plain)

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(KeyError, match="x"):
                await function()

    asyncio.run(main())
    assert len(runs) == 1


def test_followers_get_exceptions_of_their_own_and_later_callers_the_remembered_one(
    decorate: Callable[..., Any], pool: ThreadPoolExecutor
) -> None:
    body = Gated(1)

    @decorate(errors={Refused: None})
    def function() -> None:
        raise Refused(body(), detail="no")

    calls = [pool.submit(outcome_of, function) for _ in range(4)]
    wait_for(lambda: waiting(function) == 4)
    body.gates[1].set()
    raised = [call.result(LIMIT) for call in calls] + [outcome_of(function)]
    assert [str(error) for error in raised] == ["1: no"] * 5
    assert len({id(error) for error in raised}) == 5
    assert (function.stats().misses, function.stats().coalesced, function.stats().hits) == (1, 3, 1)


def test_the_controls_tell_a_remembered_error(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(errors={KeyError: "1m"})
    def function() -> None:
        raise KeyError("x")

    outcome_of(function)
    assert function.peek() is MISSING
    assert function.contains() is True
    assert function.explain().outcome == "hit"
    entry = function.entry()
    assert entry.raised is True
    assert (type(entry.value), entry.value.args, entry.ttl) == (KeyError, ("x",), 60)
    assert entry.value is not function.entry().value
    assert function.invalidate() is True
    assert function.contains() is False


def test_a_remembered_error_needs_no_secret(valkey: Server, clock: FakeClock) -> None:
    manager = CacheManager(url=valkey.url, clock=clock)
    runs: list[int] = []

    @cached("errors", backend="redis", manager=manager, errors={Refused: None})
    def function() -> None:
        runs.append(1)
        raise Refused(1, detail="x")

    assert [str(outcome_of(function)) for _ in range(3)] == ["1: x"] * 3
    assert len(runs) == 1
    assert function.stats().errors == {}
    manager.close()


REFUSALS: list[int] = []


def refuse() -> None:
    REFUSALS.append(1)
    raise Refused(1, detail="x")


def _refusal(directory: Path, clock: FakeClock, errors: Any) -> Any:
    """The statistics of one call in a process of its own, as far as the cache can tell."""
    manager = CacheManager(directory=directory, secret=SECRET, clock=clock)
    function = cached("errors", backend="file_based", manager=manager, errors=errors)(refuse)
    assert str(outcome_of(function)) == "1: x"
    stats = function.stats()
    manager.close()
    return stats


def test_a_remembered_error_outlives_its_process(tmp_path: Path, clock: FakeClock) -> None:
    REFUSALS.clear()
    stats = [_refusal(tmp_path, clock, {Refused: None}) for _ in range(2)]
    assert len(REFUSALS) == 1
    assert [(each.hits, each.misses) for each in stats] == [(0, 1), (1, 0)]


def test_an_error_that_is_no_longer_listed_is_a_miss(tmp_path: Path, clock: FakeClock) -> None:
    REFUSALS.clear()
    stats = [_refusal(tmp_path, clock, errors) for errors in ({Refused: None}, {KeyError: None})]
    assert len(REFUSALS) == 2
    assert stats[0].errors == {}
    assert stats[1].errors["undecodable"] >= 1


# -- wait


def _held_up(decorate: Callable[..., Any], pool: ThreadPoolExecutor, **options: Any) -> tuple[Any, Gated, Any]:
    """A function whose first load is under way in another thread and stands still."""
    body = Gated(1)

    @decorate(wait=0.02, **options)
    def function() -> int:
        return body()

    call = pool.submit(function)
    assert body.started[1].wait(LIMIT)
    return function, body, call


def test_who_has_waited_in_vain_computes_without_storing(decorate: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    function, body, call = _held_up(decorate, pool)
    assert function() == 2
    assert function.peek() is MISSING
    assert function.stats().bypasses == 1
    body.gates[1].set()
    assert call.result(LIMIT) == 1
    assert function() == 1


def test_who_has_waited_in_vain_may_ask_for_an_error(decorate: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    function, body, call = _held_up(decorate, pool, on_wait_timeout="raise")
    with pytest.raises(CacheTimeoutError, match=r"took longer than wait=0\.02 seconds"):
        function()
    assert body.runs == 1
    body.gates[1].set()
    assert call.result(LIMIT) == 1
    assert (function.stats().calls, function.stats().misses) == (2, 2)


def test_who_has_waited_in_vain_may_get_the_old_value(
    decorate: Callable[..., Any], pool: ThreadPoolExecutor, clock: FakeClock
) -> None:
    body = Gated(2)

    @decorate(ttl=10, wait=0.02, on_wait_timeout="stale")
    def function() -> int:
        return body()

    assert function() == 1
    clock.advance(20)
    call = pool.submit(function)
    assert body.started[2].wait(LIMIT)
    assert function() == 1
    assert function.stats().stale_hits == 1
    body.gates[2].set()
    assert call.result(LIMIT) == 2
    assert function() == 2


def test_where_there_is_no_old_value_it_computes(decorate: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    function, body, call = _held_up(decorate, pool, on_wait_timeout="stale")
    assert function() == 2
    body.gates[1].set()
    assert call.result(LIMIT) == 1


def test_an_old_value_that_was_invalidated_is_not_given_instead(
    decorate: Callable[..., Any], pool: ThreadPoolExecutor, clock: FakeClock
) -> None:
    body = Gated(2, 3)

    @decorate(ttl=10, wait=0.02, on_wait_timeout="stale")
    def function() -> int:
        return body()

    function()
    clock.advance(20)
    calls = [pool.submit(function)]
    assert body.started[2].wait(LIMIT)
    function.invalidate()
    calls.append(pool.submit(function))  # does not join what began before
    assert body.started[3].wait(LIMIT)
    assert function() == 4
    for gate in body.gates.values():
        gate.set()
    assert [call.result(LIMIT) for call in calls] == [2, 3]


@pytest.mark.parametrize(("what", "expected"), [("compute", 3), ("raise", CacheTimeoutError), ("stale", 1)])
def test_tasks_that_have_waited_in_vain(decorate: Callable[..., Any], clock: FakeClock, what: Any, expected: Any) -> None:
    runs: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        @decorate(ttl=10, wait=0.02, on_wait_timeout=what)
        async def function() -> int:
            runs.append(1)
            number = len(runs)
            if number == 2:
                await gate.wait()
            return number

        await function()
        clock.advance(20)
        first = asyncio.ensure_future(function())
        while len(runs) < 2:
            await asyncio.sleep(0.001)
        if isinstance(expected, int):
            assert await function() == expected
        else:
            with pytest.raises(expected):
                await function()
        gate.set()
        assert await first == 2
        assert await function() == 2

    asyncio.run(main())


def test_the_leader_does_not_time_itself(decorate: Callable[..., Any]) -> None:
    @decorate(wait=0, on_wait_timeout="raise")
    def function() -> int:
        threading.Event().wait(0.02)
        return 1

    @decorate(wait=0, on_wait_timeout="raise")
    async def later() -> int:
        await asyncio.sleep(0.02)
        return 1

    assert function() == 1
    assert asyncio.run(later()) == 1


# -- clocks


@pytest.mark.parametrize("backend_name", ["file_based", "redis"], indirect=True)  # the clock of memory is monotonic
@pytest.mark.parametrize("back", [61, 3600, 1e8])
def test_a_clock_set_far_back_makes_misses_in_shared_stores(
    decorate: Callable[..., Any], clock: FakeClock, back: float
) -> None:
    body = Gated()

    @decorate(ttl=100, stale=100)
    def function() -> int:
        return body()

    function()
    clock.advance(-back)
    assert function() == 2
    clock.advance(99.9)
    assert function() == 2
    clock.advance(0.1)
    assert function.contains() is False


def test_a_clock_set_back_a_little_prolongs_by_no_more_than_that(
    decorate: Callable[..., Any], backend_name: str, clock: FakeClock
) -> None:
    body = Gated()

    @decorate(ttl=100)
    def function() -> int:
        return body()

    function()
    clock.advance(-30)
    assert function() == 1
    clock.advance(129.9)
    assert function() == 1
    clock.advance(0.1)
    assert function() == 2


def test_a_touch_by_a_clock_set_back_shortens_no_life(decorate: Callable[..., Any], clock: FakeClock) -> None:
    @decorate(ttl=100, touch=True)
    def function() -> int:
        return 1

    function()
    until = function.entry().fresh_until
    clock.advance(-30)
    function()
    assert function.entry().fresh_until == until


def test_in_memory_a_wall_clock_set_back_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic, wall = FakeClock(50.0), FakeClock()
    monkeypatch.setattr(wiring, "time", SimpleNamespace(monotonic=monotonic, time=wall))
    runs: list[int] = []

    @cached("clocks", ttl=100, backend="in_memory", manager=CacheManager())
    def function() -> int:
        runs.append(1)
        return len(runs)

    function()
    wall.advance(-3600)
    monotonic.advance(99.9)
    assert function() == 1
    monotonic.advance(0.1)
    assert function() == 2


def test_files_are_read_by_the_wall_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monotonic, wall = FakeClock(50.0), FakeClock()
    monkeypatch.setattr(wiring, "time", SimpleNamespace(monotonic=monotonic, time=wall))
    cache = CacheManager(directory=tmp_path, secret=SECRET).get_cache("clocks", "file_based")
    cache.set("k", 1, ttl=100)
    monotonic.advance(1e6)  # of another process, or after a restart of the machine
    assert cache.get("k") == 1
    wall.advance(100)
    assert cache.get("k") is None
    cache.close()


# -- refused options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter": -0.1}, r"jitter=-0\.1: give a number from 0 to 1"),
        ({"jitter": 1.1}, r"jitter=1\.1: give a number from 0 to 1"),
        ({"jitter": float("nan")}, r"jitter=nan: give a number from 0 to 1"),
        ({"jitter": True}, r"jitter=True: give a number from 0 to 1"),
        ({"early": -1}, r"early=-1: give a number from 0"),
        ({"early": float("inf")}, r"early=inf: give a number from 0"),
        ({"early": "yes"}, r"early='yes': give a number from 0"),
        ({"stale": -1}, r"stale=-1 is not a duration"),
        ({"stale": "long"}, r"stale='long' is not a duration"),
        ({"stale": True}, r"stale=True is not a duration"),
        ({"wait": -1}, r"wait=-1 is not a duration"),
        ({"wait": "x"}, r"wait='x' is not a duration"),
        ({"on_wait_timeout": "give up"}, r'on_wait_timeout=\'give up\': give "compute", "stale" or "raise"'),
        ({"store_if": True}, r"store_if=True: give a function of the result"),
        ({"errors": {KeyError: -1}}, r"errors=-1 is not a duration"),
        ({"errors": {KeyError: "x"}}, r"errors='x' is not a duration"),
        ({"errors": {BaseException: 1}}, r"errors= has <class 'BaseException'> as a key: give classes derived from Exception"),
        ({"errors": {KeyboardInterrupt: 1}}, r"errors= has <class 'KeyboardInterrupt'> as a key"),
        ({"errors": {"KeyError": 1}}, r"errors= has 'KeyError' as a key"),
        ({"errors": {(KeyError, ValueError): 1}}, r"give classes derived from Exception"),
        ({"stream": "on"}, r'stream=\'on\': give "share" or "off"'),
        ({"stream_max": 0}, r"stream_max=0: give a number of bytes >= 1"),
        ({"stream_max": 1.5}, r"stream_max=1\.5: give a number of bytes >= 1"),
        ({"tags": "one"}, r"tags='one': give a list of str, or a function of the call's arguments"),
    ],
)
def test_an_option_that_means_nothing_is_refused_at_decoration(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheConfigurationError, match=message):
        cached("refused", manager=CacheManager(), **options)


# -- the rules, alone

times = st.floats(-1e9, 1e9, allow_nan=False)
lives = st.none() | st.floats(1e-3, 1e9)
draws = st.floats(0.0, 1.0, exclude_max=True)
shares = st.floats(0.0, 1.0)


@given(now=times, life=lives, stale=st.floats(0.0, 1e9), passed=st.floats(-1e9, 1e10))
def test_judge_is_fresh_then_stale_then_expired(now: float, life: float | None, stale: float, passed: float) -> None:
    entry = new_entry("v", life, now, stale)
    later = now + passed
    if entry.created > later + 60.0:
        expected = Verdict.EXPIRED
    elif life is None or later < now + life:
        expected = Verdict.FRESH
    elif later < now + life + stale:
        expected = Verdict.STALE
    else:
        expected = Verdict.EXPIRED
    assert judge(entry, later) is expected


@given(seconds=st.none() | st.floats(0.0, 1e12), jitter=shares, draw=draws)
def test_jittered_lives_are_bounded(seconds: float | None, jitter: float, draw: float) -> None:
    life = jittered(seconds, jitter, draw)
    if seconds is None or seconds == 0.0:
        assert life == seconds
    else:
        assert life is not None
        assert 0.0 < life <= seconds
        assert life >= seconds * (1.0 - jitter) * (1.0 - 1e-9)


@given(seconds=st.floats(1e-3, 1e9), jitter=shares, pair=st.tuples(draws, draws))
def test_a_larger_draw_never_gives_a_longer_life(seconds: float, jitter: float, pair: tuple[float, float]) -> None:
    longer, shorter = (jittered(seconds, jitter, draw) for draw in sorted(pair))
    assert longer is not None and shorter is not None
    assert shorter <= longer


@given(
    life=st.floats(1.0, 1e6), cost=st.floats(0.0, 1e6), beta=st.floats(0.0, 1e3), pair=st.tuples(draws, draws),
    share=st.floats(0.0, 1.0, exclude_max=True),
)  # fmt: skip
def test_early_refreshes_need_a_ttl_and_a_cost_and_grow_with_the_draw(
    life: float, cost: float, beta: float, pair: tuple[float, float], share: float
) -> None:
    now = life * share
    for_ever = Entry("v", created=0.0, cost=cost)
    free = Entry("v", created=0.0, fresh_until=life, expires_at=life, cost=0.0)
    entry = Entry("v", created=0.0, fresh_until=life, expires_at=life, cost=cost)
    smaller, larger = sorted(pair)
    assert is_due_early(for_ever, now, beta, larger) is False
    assert is_due_early(free, now, beta, larger) is False
    assert is_due_early(entry, now, 0.0, larger) is False
    assert is_due_early(entry, now, beta, 0.0) is False
    assert is_due_early(entry, now, beta, larger) >= is_due_early(entry, now, beta, smaller)
    assert is_due_early(entry, now, beta, larger) == (now - cost * beta * math.log(1.0 - larger) >= life and beta > 0)


@given(created=st.integers(0, 10**9), life=st.none() | st.integers(1, 10**6), stale=st.integers(0, 10**6),
       passed=st.integers(0, 10**6), new=st.none() | st.integers(1, 10**6))  # fmt: skip
def test_prolonged_begins_the_life_anew_and_keeps_the_window(
    created: int, life: int | None, stale: int, passed: int, new: int | None
) -> None:
    entry = new_entry("v", life, float(created), stale, cost=3.0, generations=((b"t1:a:x", b"1"),))
    now = float(created + passed)
    longer = prolonged(entry, now, new)
    assert (longer.value, longer.cost, longer.generations, longer.created) == ("v", 3.0, entry.generations, now)
    assert longer.ttl == new
    if new is None:
        assert longer.expires_at is None
    else:
        assert longer.expires_at == now + new + (0 if life is None else stale)
    assert prolonged(longer, now, new) == longer


@given(life=st.integers(1, 10**6), passed=st.integers(-(10**6), 10**8))
def test_a_touch_is_due_after_a_hundredth(life: int, passed: int) -> None:
    entry = new_entry("v", float(life), 0.0)
    assert is_due_touch(entry, passed / 100) is (passed / 100 >= 0.01 * life)
    assert is_due_touch(new_entry("v", None, 0.0), passed / 100) is False


@given(listed=st.dictionaries(st.sampled_from([Exception, LookupError, KeyError, IndexError]), st.integers(1, 9), max_size=4))
def test_the_nearest_class_is_the_first_in_the_resolution_order(listed: dict[Any, Any]) -> None:
    expected = next((listed[kind] for kind in (KeyError, LookupError, Exception) if kind in listed), 0.0)
    assert error_lifetime(listed, KeyError("x")) == expected
