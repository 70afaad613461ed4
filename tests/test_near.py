"""The near cache: what it answers, what it must not, and how it comes and goes."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex_cache import MISSING, Cache, CacheManager, Entry, InMemoryBackend, RedisBackend, _near, cached
from codomyrmex_cache.backends import _tracking
from codomyrmex_cache.backends._tracking import _Line
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server
from tests.near_model import WEIGHTS, Silent, Time, World
from tests.near_processes import KEYS, WRITERS
from tests.proxy import FaultProxy

SECRET = b"a secret for the tests"


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 500))
def test_no_interleaving_leads_to_an_old_answer(seed: int, steps: int) -> None:
    random, time = Random(seed), Time()  # lists of steps that Hypothesis draws itself are too much alike
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_near, "time", time)
        world = World(time)
        for name in random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
            getattr(world, name)(random.randrange(84))
            world.examine()


def test_another_calls_entry_under_the_key_is_no_answer() -> None:
    near = _near.Near("a", 5.0, time.time, lambda _: Silent())
    assert near.stamp(b"k") is None  # nothing is heard yet
    near.began(time.monotonic())
    near.keep(b"k", near.stamp(b"k"), Entry(1, digest=b"one call"), 1, copy=True)
    assert near.get(b"k", b"another call", copy=True) is None
    assert near.get(b"k", b"one call", copy=True) is not None
    assert near.get(b"k", b"", copy=True) is not None  # the direct API takes any call's


# -- what the connection tells


class Connection:
    """Gives what is put on it, as redis-py would: pushes by the handler, replies as they are."""

    def __init__(self) -> None:
        self.coming: list[Any] = []
        self._parser = self
        self.handler: Callable[[Any], Any] = lambda _: None

    def set_invalidation_push_handler(self, handler: Callable[[Any], Any]) -> None:
        self.handler = handler

    def set_pubsub_push_handler(self, _: object) -> None:
        pass

    def pack_command(self, *command: Any) -> list[Any]:
        return list(command)

    def pack_commands(self, commands: Any) -> list[Any]:
        return [part for command in commands for part in command]

    def send_packed_command(self, command: Any, check_health: bool) -> None:
        self.sent = command

    def can_read(self, _: float) -> bool:
        return bool(self.coming)

    def read_response(self, **_: Any) -> Any:
        what = self.coming.pop(0)
        return self.handler([b"invalidate", what["push"]]) if isinstance(what, dict) else what


def begun_line(changed: Callable[[Any], None] = lambda _: None) -> tuple[_Line, Connection]:
    connection = Connection()
    connection.coming = [b"OK", 0, [b"master", 0, []]]
    line = _Line(connection, changed, 1.0)
    line.begin([b"cmxc:{1:a:}e"])
    return line, connection


def test_a_check_counts_from_when_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    line, connection = begun_line()
    moment = Time()
    monkeypatch.setattr(_tracking, "time", moment)
    line.ask()
    moment.moment += 5
    assert line.is_silent_since(moment.moment - 4)
    connection.coming = [0]
    line.drain()
    assert line.confirmed == 0.0  # the other half is still to come
    connection.coming = [[b"master", 0, []]]
    line.drain()
    assert line.confirmed == moment.moment - 5
    assert not line.is_silent_since(moment.moment + 1)


def test_pushes_take_effect_before_the_answer_behind_them() -> None:
    heard: list[Any] = []
    line, connection = begun_line(lambda names: heard.append((names, line.confirmed)))
    line.ask()
    connection.coming = [{"push": [b"x"]}, 0, {"push": None}, [b"master", 0, []]]
    line.drain()
    assert heard == [([b"x"], 0.0), (None, 0.0)]
    assert line.confirmed > 0


@pytest.mark.parametrize(
    "answers", [[[b"slave"], 0], [0, [b"slave", b"host", 1]], [None, [b"master"]], [0, [b"master"], 0], [{"push": [1]}, 0]]
)
def test_any_other_answer_ends_the_trust(answers: list[Any]) -> None:
    def changed(names: list[Any]) -> None:
        raise AttributeError(names)  # redis-py swallows what its handlers raise

    line, connection = begun_line(changed)
    line.ask()
    connection.coming = answers
    with pytest.raises((_tracking._Unusable, AttributeError)):
        line.drain()


# -- real servers


@contextmanager
def managed(url: str, **options: Any) -> Iterator[CacheManager]:
    manager = CacheManager(**{"url": url, "secret": SECRET, "near": True, "backend": "redis", **options})
    try:
        yield manager
    finally:
        manager.close()


@pytest.fixture
def here(any_redis: Server) -> Iterator[CacheManager]:
    """With a near cache; on each server, since each has its own tracking."""
    any_redis.flush()
    with managed(any_redis.url) as manager:
        yield manager


@pytest.fixture
def there(any_redis: Server) -> Iterator[CacheManager]:
    """Another process, as far as the server can tell."""
    with managed(any_redis.url, near=False) as manager:
        yield manager


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Poll: the thread that listens, and the server, take their own time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never came to be"
        time.sleep(0.001)


class Asked:
    """Counts what is asked of a namespace's backend."""

    def __init__(self, cache: Cache) -> None:
        self.reads = 0
        for verb in ("get", "look", "aget", "alook", "get_many", "generations"):
            setattr(cache.space.backend, verb, self._counted(getattr(cache.space.backend, verb)))

    def _counted(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.reads += 1
            return ask(*arguments)

        return counted


def is_near(cache: Cache, key: str) -> bool:
    near = cache.space.near
    return near is not None and near.get(cache.space.stored(key), b"", copy=False) is not None


def hears(cache: Cache) -> bool:
    """Whether the tracking has begun; asking begins it."""
    near = cache.space.near
    return near is not None and near.stamp(b"any") is not None


def make_near(cache: Cache, key: str) -> None:
    """Read it until it is answered from here; a push of an earlier write may still be under way."""
    eventually(lambda: (cache.get(key), is_near(cache, key))[1])


def test_a_hit_asks_the_server_nothing(here: CacheManager, there: CacheManager) -> None:
    cache = here.get_cache("a")
    there.get_cache("a").set("k", {"text": "hello"})
    make_near(cache, "k")
    asked, before = Asked(cache), cache.stats()
    assert [cache.get("k") for _ in range(3)] == [{"text": "hello"}] * 3
    assert cache.entry("k").value == {"text": "hello"}  # type: ignore[union-attr]
    assert asyncio.run(cache.aget("k")) == {"text": "hello"}
    assert asked.reads == 0
    after = cache.stats()
    assert (after.hits - before.hits, after.misses - before.misses, after.calls - before.calls) == (4, 0, 4)


def test_a_decorated_hit_asks_nothing_and_counts_once(here: CacheManager) -> None:
    runs = []

    @cached("a", manager=here)
    def function(x: int) -> int:
        runs.append(x)
        return x

    function(1)
    eventually(lambda: (function(1), is_near(function.cache, function.key(1)))[1])
    asked, before = Asked(function.cache), function.stats()
    assert [function(1) for _ in range(5)] == [1] * 5
    after = function.stats()
    assert (asked.reads, after.hits - before.hits, after.calls - before.calls, runs) == (0, 5, 5, [1])


def test_the_wrapper_itself_answers(here: CacheManager) -> None:
    @cached("a", manager=here)
    def function(x: int) -> int:
        return x

    function(1)
    eventually(lambda: (function(1), is_near(function.cache, function.key(1)))[1])
    function(1)
    entered: list[str] = []
    sys.setprofile(lambda frame, event, _: entered.append(frame.f_code.co_name) if event == "call" else None)
    function(1)
    sys.setprofile(None)
    assert entered == ["function"]


def test_coroutine_functions_and_methods_too(here: CacheManager) -> None:
    class Shop:
        @cached("methods", manager=here)
        def price(self, item: int) -> int:
            return item

    @cached("coroutines", manager=here)
    async def function(x: int) -> list[int]:
        return [x]

    async def called() -> bool:
        return (await function(1), is_near(function.cache, function.key(1)))[1]

    with asyncio.Runner() as runner:
        eventually(lambda: runner.run(called()))
        asked = Asked(function.cache)
        assert [runner.run(function(1)) for _ in range(3)] == [[1]] * 3
        assert asked.reads == 0
        runner.run(function.ainvalidate(1))
        assert runner.run(function.apeek(1)) is MISSING
        runner.run(here.aclose())
    shop = Shop()
    eventually(lambda: (shop.price(1), is_near(shop.price.cache, shop.price.key(1)))[1])
    asked = Asked(shop.price.cache)
    assert (shop.price(1), asked.reads) == (1, 0)
    shop.price.invalidate(1)
    assert shop.price.peek(1) is MISSING


@pytest.mark.parametrize("change", ["set", "set_many", "delete", "delete_many", "clear", "tag", "flush", "touch"])
def test_a_change_elsewhere_is_heard(here: CacheManager, there: CacheManager, any_redis: Server, change: str) -> None:
    cache, other = here.get_cache("a"), there.get_cache("a")
    other.set("k", 1, ttl=100, tags=["t"])
    make_near(cache, "k")
    changes: dict[str, tuple[Callable[[], object], object]] = {
        "set": (lambda: other.set("k", 2), 2),
        "set_many": (lambda: other.set_many({"k": 2, "m": 3}), 2),
        "delete": (lambda: other.delete("k"), None),
        "delete_many": (lambda: other.delete_many(["k", "m"]), None),
        "clear": (other.clear, None),
        "tag": (lambda: other.invalidate_tags("t"), None),
        "flush": (any_redis.flush, None),
        "touch": (lambda: other.touch("k", ttl=200), 1),
    }
    act, then = changes[change]
    act()
    eventually(lambda: not is_near(cache, "k"))
    assert cache.get("k") == then


def test_questions_kill_nothing(here: CacheManager, there: CacheManager) -> None:
    cache = here.get_cache("a")
    there.get_cache("a").set("k", 1)
    make_near(cache, "k")
    cell = cache.space.near.cell(cache.space.stored("k"))  # type: ignore[union-attr]
    cache.get_many(["k", "m"]), cache.has("k"), cache.keys(), cache.entry("k"), cache.get("m"), cache.stats("all")
    assert cache.get_or_load("k", lambda: 2) == 1
    assert cell is cache.space.near.cell(cache.space.stored("k"))  # type: ignore[union-attr]


def test_what_is_written_here_is_read_here_at_once(here: CacheManager) -> None:
    cache = here.get_cache("a")
    cache.set("k", 0)
    make_near(cache, "k")
    for number in range(1, 200):
        cache.set("k", number)
        assert cache.get("k") == number
        assert cache.get("k") == number
    assert cache.incr("k") == 200
    assert cache.get("k") == 200
    cache.set_many({"k": 201})
    assert cache.get("k") == 201
    cache.delete("k")
    assert cache.get("k") is None
    cache.set("k", 1, tags=["t"])
    make_near(cache, "k")
    assert cache.touch("k", ttl=100)
    assert cache.entry("k").ttl == 100  # type: ignore[union-attr]
    make_near(cache, "k")
    cache.invalidate_tags("t")
    assert cache.get("k") is None


def test_what_is_written_in_an_event_loop_is_read_there_at_once(here: CacheManager) -> None:
    cache = here.get_cache("a")
    cache.set("k", 0)
    make_near(cache, "k")

    async def write_and_read() -> None:
        for number in range(1, 100):
            await cache.aset("k", number)
            assert await cache.aget("k") == number
        await cache.adelete("k")
        assert await cache.aget("k") is None
        await cache.aset("k", 1, tags=["t"])
        await cache.ainvalidate_tags("t")
        assert await cache.aget("k") is None
        await here.aclose()

    asyncio.run(write_and_read())


def test_functions_are_read_as_they_were_invalidated_refreshed_and_seeded(here: CacheManager) -> None:
    answers = iter(range(100))

    @cached("a", manager=here)
    def function(x: int) -> int:
        return next(answers)

    eventually(lambda: (function(1), is_near(function.cache, function.key(1)))[1])
    for expected in range(1, 20):
        function.invalidate(1)
        assert (function(1), function(1)) == (expected, expected)
    assert (function.refresh(1), function(1)) == (20, 20)
    function.seed(-1, 1)
    assert function(1) == -1
    function.clear()
    assert function(1) == 21


def test_a_mutable_answer_belongs_to_who_has_it(here: CacheManager) -> None:
    cache = here.get_cache("a")
    cache.set("k", {"list": [1]})
    eventually(lambda: (cache.get("k")["list"].append(2), is_near(cache, "k"))[1])

    @cached("a", manager=here)
    def function(x: int) -> list[int]:
        return [x]

    eventually(lambda: (function(1).append(2), is_near(function.cache, function.key(1)))[1])
    for _ in range(3):
        cache.get("k")["list"].append(2)
        function(1).append(2)
        assert cache.entry("k").value == {"list": [1]}  # type: ignore[union-attr]
        assert (cache.get("k"), function(1)) == ({"list": [1]}, [1])


def test_without_copies_the_object_itself_is_handed_out(here: CacheManager) -> None:
    @cached("a", manager=here, copy=False)
    def function(x: int) -> list[int]:
        return [x]

    eventually(lambda: (function(1), is_near(function.cache, function.key(1)))[1])
    assert function(1) is function(1)


def test_lives_end_by_an_injected_clock(any_redis: Server) -> None:
    clock = FakeClock()
    any_redis.flush()
    with managed(any_redis.url, clock=clock) as manager:
        cache, runs = manager.get_cache("a"), []

        @cached("a", ttl=10, manager=manager)
        def function(x: int) -> int:
            runs.append(x)
            return x

        cache.set("k", 1, ttl=20)
        make_near(cache, "k")
        eventually(lambda: (function(1), is_near(cache, function.key(1)))[1])
        clock.advance(9)
        assert (function(1), cache.get("k"), runs) == (1, 1, [1])
        clock.advance(1)
        assert (function(1), cache.get("k"), runs) == (1, 1, [1, 1])
        clock.advance(10)
        assert cache.get("k") is None


def test_lives_end_by_the_real_clock(here: CacheManager) -> None:
    cache = here.get_cache("a")
    eventually(lambda: hears(cache))
    eventually(lambda: (cache.set("k", 1, ttl=0.3), cache.get("k"), is_near(cache, "k"))[2])
    eventually(lambda: cache.get("k") is None, 3.0)  # the bound is 5 s, so it is the life that has ended


def test_touch_prolongs_what_is_answered_from_here(any_redis: Server) -> None:
    clock, runs = FakeClock(), []
    any_redis.flush()
    with managed(any_redis.url, clock=clock) as manager:

        @cached("a", ttl=10, touch=True, manager=manager)
        def function(x: int) -> int:
            runs.append(x)
            return x

        for _ in range(10):
            eventually(lambda: (function(1), is_near(function.cache, function.key(1)))[1])
            clock.advance(6)
            assert function(1) == 1
        assert runs == [1]


def test_early_refreshes_still_come(any_redis: Server) -> None:
    clock, runs = FakeClock(), []
    any_redis.flush()
    with managed(any_redis.url, clock=clock) as manager:

        @cached("a", ttl=10, early=1e9, manager=manager)
        def function(x: int) -> int:
            clock.advance(0.01)  # what a load costs
            runs.append(x)
            return x

        function(1)
        eventually(lambda: (function(1), len(runs) > 2)[1])


def test_streams_and_errors_are_left_to_the_server(here: CacheManager) -> None:
    @cached("a", manager=here)
    def stream(x: int) -> Iterator[int]:
        yield from range(x)

    @cached("a", manager=here, errors={ValueError: "1m"})
    def failing(x: int) -> int:
        raise ValueError(x)

    eventually(lambda: hears(stream.cache))
    for _ in range(3):
        assert list(stream(3)) == [0, 1, 2]
        with pytest.raises(ValueError, match="1"):
            failing(1)
    assert not is_near(stream.cache, stream.key(3))
    assert not is_near(failing.cache, failing.key(1))


def test_asynchronous_streams_too(here: CacheManager) -> None:
    @cached("a", manager=here)
    async def stream(x: int) -> AsyncIterator[int]:
        for each in range(x):
            yield each

    async def heard() -> list[int]:
        return [each async for each in stream(2)]

    with asyncio.Runner() as runner:
        assert [runner.run(heard()) for _ in range(3)] == [[0, 1]] * 3
        runner.run(here.aclose())


def test_a_tag_takes_its_own_entries_only(here: CacheManager, there: CacheManager) -> None:
    cache, other = here.get_cache("a"), there.get_cache("a")
    other.set("k", 1, tags=["s", "t"])
    other.set("m", 2, tags=["u"])
    make_near(cache, "k")
    make_near(cache, "m")
    other.invalidate_tags("t")
    eventually(lambda: not is_near(cache, "k"))
    assert is_near(cache, "m")
    assert (cache.get("k"), cache.get("m")) == (None, 2)


def test_the_bounds_are_kept(any_redis: Server) -> None:
    any_redis.flush()
    with managed(any_redis.url, max_entries=3, max_bytes=4096) as manager:
        cache = manager.get_cache("a")
        near = cache.space.near
        assert near is not None
        cache.set_many({str(number): number for number in range(10)})
        for number in range(10):
            make_near(cache, str(number))
        assert len(near.cells) == 3
        assert is_near(cache, "9")
        cache.set("large", "x" * 1024)
        for _ in range(3):
            assert cache.get("large") == "x" * 1024
        assert not is_near(cache, "large")
        assert cache.stats().evictions == 0  # nothing is gone from the namespace


# -- the connection


def tracking_ids(client: redis.Redis) -> list[str]:
    return [each["id"] for each in client.client_list() if "B" in each["flags"]]


def test_a_cut_connection_kills_all_cells_and_comes_back(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with managed(own_server.url) as manager, redis.Redis(unix_socket_path=str(own_server.socket)) as client:
        cache = manager.get_cache("a")
        cache.set("k", 1)
        for _ in range(3):
            make_near(cache, "k")
            (connection,) = tracking_ids(client)
            caplog.clear()
            client.client_kill_filter(_id=connection)
            eventually(lambda: len([each for each in caplog.messages if "near cache" in each]) == 2)
        make_near(cache, "k")
        assert [each.partition("near cache ")[2][:14] for each in caplog.messages] == ["does not hear ", "hears the serv"]


def test_a_server_that_begins_anew(own_server: Server) -> None:
    with managed(own_server.url) as manager:
        cache = manager.get_cache("a")
        cache.set("k", 1)
        make_near(cache, "k")
        own_server.stop()
        eventually(lambda: not is_near(cache, "k"))
        assert cache.get("k") is None
        own_server.start()
        eventually(lambda: (cache.set("k", 2), cache.get("k"))[1] == 2)  # the breaker lets a probe through now and then
        make_near(cache, "k")


@pytest.mark.parametrize("mode", ["blackhole", "delay:30", "close", "reset"])
def test_no_answer_is_older_than_the_bound_when_the_network_fails(own_server: Server, mode: str) -> None:
    bound = 0.6
    with FaultProxy(own_server.port) as proxy, managed(proxy.url, near=bound) as manager, managed(own_server.url) as direct:
        cache, other = manager.get_cache("a"), direct.get_cache("a")
        other.set("k", 1)
        make_near(cache, "k")
        proxy.mode = mode
        other.set("k", 2)
        written, oldest = time.monotonic(), 0.0
        while time.monotonic() < written + 3 * bound:
            began = time.monotonic()
            if cache.get("k") == 1:
                oldest = max(oldest, began - written)
        assert oldest <= bound
        proxy.mode = "pass"
        eventually(lambda: cache.get("k") == 2, 20.0)  # the breaker lets a probe through now and then
        make_near(cache, "k")


def test_a_paused_server_is_not_relied_on_for_longer_than_the_bound(own_server: Server) -> None:
    with managed(own_server.url, near="300ms") as manager:
        cache = manager.get_cache("a")
        cache.set("k", 1)
        make_near(cache, "k")
        own_server.signal(signal.SIGSTOP)
        try:
            paused = time.monotonic()
            eventually(lambda: not is_near(cache, "k"))
            assert time.monotonic() - paused < 5  # and not when TCP gives up
        finally:
            own_server.signal(signal.SIGCONT)
        eventually(lambda: cache.get("k") == 1)
        make_near(cache, "k")


def test_many_changes_at_once_are_heard_in_order(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """More pushes in one go than Python has frames."""
    with managed(own_server.url) as manager, redis.Redis(unix_socket_path=str(own_server.socket)) as client:
        cache = manager.get_cache("a")
        cache.set("k", 1)
        make_near(cache, "k")
        backend = cache.space.backend
        assert isinstance(backend, RedisBackend)
        names = [backend.server_key(cache.space.stored(f"x{number}")) for number in range(500)]
        for _ in range(20):
            with client.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.set(name, b"")
                pipeline.execute()
        client.delete(backend.server_key(cache.space.stored("k")))
        eventually(lambda: not is_near(cache, "k"))
        assert caplog.messages == []


def test_an_answer_that_nobody_asked_for_ends_the_trust(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is a replica by now answers all the same."""
    with managed(own_server.url, near="300ms") as manager, redis.Redis(unix_socket_path=str(own_server.socket)) as client:
        cache = manager.get_cache("a")
        cache.set("k", 1)
        make_near(cache, "k")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        eventually(lambda: not hears(cache))
        eventually(lambda: not is_near(cache, "k"))
        eventually(lambda: "ROLE" in caplog.text)
        client.execute_command("REPLICAOF", "NO", "ONE")
        make_near(cache, "k")


def test_a_server_without_tracking_is_used_all_the_same(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with redis.Redis(unix_socket_path=str(own_server.socket)) as client:
        client.execute_command("ACL", "SETUSER", "default", "-client|tracking")
    with managed(own_server.url) as manager:
        cache = manager.get_cache("a")
        cache.set("k", 1)
        assert cache.get("k") == 1
        eventually(lambda: caplog.messages)
        assert [cache.get("k") for _ in range(3)] == [1] * 3
        assert not is_near(cache, "k")
    assert len(caplog.messages) == 1
    assert "CLIENT TRACKING" in caplog.text


def test_a_server_that_is_away_costs_one_line(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with managed(f"unix://{tmp_path}/nobody.sock") as manager:
        cache = manager.get_cache("a")
        cache.get("k")
        eventually(lambda: "near cache" in caplog.text)
        time.sleep(0.5)  # long enough for two more attempts, which are to say nothing
        assert [each for each in caplog.messages if "near cache" in each][1:] == []


def test_parts_of_a_namespace_are_tracked_each(any_redis: Server) -> None:
    any_redis.flush()
    with (
        managed(any_redis.url, backend=RedisBackend(any_redis.url, slots=4)) as manager,
        managed(any_redis.url, backend=RedisBackend(any_redis.url, slots=4), near=False) as other,
    ):
        cache, others = manager.get_cache("a"), other.get_cache("a")
        keys = [str(number) for number in range(12)]
        others.set_many(dict.fromkeys(keys, 1))
        others.set("tagged", 1, tags=["t"])
        for key in [*keys, "tagged"]:
            make_near(cache, key)
        others.set_many(dict.fromkeys(keys, 2))
        others.invalidate_tags("t")
        for key in [*keys, "tagged"]:
            eventually(lambda key=key: not is_near(cache, key))  # type: ignore[misc]
        assert [cache.get(key) for key in keys] == [2] * 12


# -- threads and processes


def listeners() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "codomyrmex_cache near"]


def test_nothing_is_begun_before_the_first_read(here: CacheManager) -> None:
    cache = here.get_cache("a")
    cache.set("k", 1)
    assert listeners() == []
    cache.get("k")
    assert len(listeners()) == 1


def test_closing_ends_the_thread_and_a_later_use_begins_one(here: CacheManager) -> None:
    cache = here.get_cache("a")
    cache.set("k", 1)
    for _ in range(2):
        make_near(cache, "k")
        here.close()
        assert listeners() == []
        assert not is_near(cache, "k")


def test_the_thread_keeps_no_cache_alive(any_redis: Server) -> None:
    manager = CacheManager(url=any_redis.url, secret=SECRET, near=True)
    cache = manager.get_cache("a", "redis")
    cache.set("k", 1)
    make_near(cache, "k")
    gone = weakref.ref(cache.space.near)
    cache.space.backend.close()
    del manager, cache
    gc.collect()
    assert gone() is None
    eventually(lambda: listeners() == [])


def test_a_forked_child_listens_for_itself(here: CacheManager, there: CacheManager) -> None:
    cache = here.get_cache("a")
    there.get_cache("a").set("k", 1)
    make_near(cache, "k")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert not is_near(cache, "k")
            make_near(cache, "k")
            there.get_cache("a").set("k", 2)
            eventually(lambda: cache.get("k") == 2)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    eventually(lambda: cache.get("k") == 2)
    make_near(cache, "k")


def test_threads_that_write_and_read_see_their_own(here: CacheManager) -> None:
    cache = here.get_cache("a")
    eventually(lambda: hears(cache))
    wrong: list[Any] = []

    def work(key: str) -> None:
        for number in range(150):
            cache.set(key, number)
            seen = [cache.get(key) for _ in range(3)]
            if seen != [number] * 3:
                wrong.append((key, number, seen))

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def trouble(server: Server, workers: list[subprocess.Popen[bytes]]) -> None:
    """In the middle of the work connections are cut, and three of the processes stopped for longer than the bound of 1 s."""
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        eventually(lambda: len(tracking_ids(client)) == WRITERS, 20.0)
        for worker in workers[:3]:
            time.sleep(1.5)  # of undisturbed work
            for connection in tracking_ids(client):
                client.client_kill_filter(_id=connection)
            worker.send_signal(signal.SIGSTOP)
            time.sleep(1.2)  # stopped for longer than the bound
            worker.send_signal(signal.SIGCONT)


def test_no_process_is_given_an_answer_older_than_the_bound(own_server: Server) -> None:
    """Four of them for ten seconds, on 200 keys."""
    bound, seconds = 1.0, 10.0
    command = [sys.executable, "-m", "tests.near_processes", own_server.url]
    workers = [
        subprocess.Popen([*command, str(number), str(seconds), str(bound)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(WRITERS)
    ]
    try:
        trouble(own_server, workers)
        outputs = [worker.communicate(timeout=60) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [worker.returncode for worker in workers] == [0] * WRITERS, outputs
    reports = [json.loads(output) for output, _ in outputs]
    writes = {int(key): {int(v): at for v, at in each.items()} for report in reports for key, each in report["writes"].items()}
    ages = [
        began - writes[int(key)][int(version) + 1]
        for report in reports
        for key, versions in report["reads"].items()
        for version, began in versions.items()
        if int(version) + 1 in writes.get(int(key), {})
    ]
    assert len(writes) > KEYS / 2
    assert max(ages) <= bound
    asked, count = sum(report["asked"] for report in reports), sum(report["count"] for report in reports)
    assert asked < count / 2, "most answers are to be near ones, or nothing was shown"


# -- options


@pytest.mark.parametrize("near", [-1, "soon", 0.01, "50ms", float("nan"), timedelta(0), 0])
def test_what_is_no_bound_is_refused(near: Any) -> None:
    with pytest.raises(CacheConfigurationError, match="near="):
        CacheManager(near=near)


@pytest.mark.parametrize("backend", ["in_memory", "file_based"])
def test_other_backends_have_none(backend: str, tmp_path: Any) -> None:
    with pytest.raises(CacheConfigurationError, match="near="):
        CacheManager(directory=tmp_path).get_cache("a", backend, near=True)
    with pytest.raises(CacheConfigurationError, match="near="):
        CacheManager(directory=tmp_path, near=True).get_cache("a", backend)
    CacheManager(directory=tmp_path, near=True).get_cache("a", backend, near=False).get("k")


def test_backends_that_cannot_be_tracked_have_none() -> None:
    with pytest.raises(CacheConfigurationError, match="near="):
        CacheManager().get_cache("a", near=True).get("k")  # in memory by default
    with pytest.raises(CacheConfigurationError, match="near="):
        CacheManager().get_cache("a", InMemoryBackend(), near=True).get("k")


def test_the_bound_belongs_to_the_namespace(here: CacheManager) -> None:
    cache = here.get_cache("a", near="2s")
    assert here.get_cache("a", near=2.0) is cache
    assert here.get_cache("a", near=timedelta(seconds=2)) is cache
    with pytest.raises(CacheConfigurationError, match="near"):
        here.get_cache("a", near="3s")
    assert cache.space.near is not None
    assert cache.space.near.bound == 2.0
    default = here.get_cache("b").space.near
    assert default is not None
    assert default.bound == 5.0
