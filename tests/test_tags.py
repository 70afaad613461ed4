"""Tags: names under which entries are forgotten together, in every backend."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from codomyrmex_cache import MISSING, Cache, CacheManager, cached
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server

SECRET = b"a secret for the tests"
LIMIT = 10.0
"""Seconds after which a thread that should have gone on has not."""


@pytest.fixture
def cache(manager: CacheManager, backend_name: str) -> Cache:
    return manager.get_cache("tags", backend_name)


@pytest.fixture
def decorate(manager: CacheManager, backend_name: str) -> Callable[..., Any]:
    return functools.partial(cached, "tags", backend=backend_name, manager=manager)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def test_static_tags(decorate: Callable[..., Any], cache: Cache) -> None:
    @decorate(tags=["one", "two"])
    def tagged(x: int) -> int:
        return x

    @decorate()
    def untagged(x: int) -> int:
        return x

    for tag in ("one", "two"):
        for x in range(3):
            tagged(x)
            untagged(x)
        assert tagged.entry(1).tags == ("one", "two")
        assert untagged.entry(1).tags == ()
        cache.invalidate_tags(tag)
        assert [tagged.contains(x) for x in range(3)] == [False] * 3
        assert [untagged.contains(x) for x in range(3)] == [True] * 3
    assert tagged(1) == 1
    assert tagged.stats().loads == 7


def test_tags_that_the_arguments_give(decorate: Callable[..., Any], cache: Cache) -> None:
    @decorate(tags=lambda user, *, kind="x", **rest: [f"user:{user}", f"kind:{kind}", *rest])
    def function(user: int, *, kind: str = "x", **rest: int) -> int:
        return user

    function(1)
    function(2, kind="y")
    function(3, extra=1)
    assert function.entry(1).tags == ("user:1", "kind:x")
    assert function.entry(3, extra=1).tags == ("user:3", "kind:x", "extra")
    cache.invalidate_tags("kind:x")
    assert (function.contains(1), function.contains(2, kind="y"), function.contains(3, extra=1)) == (False, True, False)
    cache.invalidate_tags("user:1", "user:2")
    assert function.contains(2, kind="y") is False


def test_tags_of_a_method(manager: CacheManager, backend_name: str) -> None:
    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        def price(self, item: str) -> str:
            return self.name + item

    Shop.price = cached("tags", backend=backend_name, manager=manager, tags=lambda self, item: [self.name])(Shop.price)  # type: ignore[method-assign]
    here, there = Shop("here"), Shop("there")
    Shop.price(here, "x")
    Shop.price(there, "x")
    manager.get_cache("tags").invalidate_tags("here")
    assert Shop.price.contains(here, "x") is False  # type: ignore[attr-defined]
    assert Shop.price.contains(there, "x") is True  # type: ignore[attr-defined]


def test_tags_of_a_seeded_and_of_a_refreshed_result(decorate: Callable[..., Any], cache: Cache) -> None:
    @decorate(tags=lambda x: [f"x:{x}"])
    def function(x: int) -> int:
        return x

    function.seed(10, 1)
    assert function.entry(1).tags == ("x:1",)
    cache.invalidate_tags("x:1")
    assert function.peek(1) is MISSING
    function.refresh(1)
    assert function.entry(1).tags == ("x:1",)
    cache.invalidate_tags("x:1")
    assert function.peek(1) is MISSING


def test_tags_of_direct_entries(cache: Cache) -> None:
    cache.set("a", 1, tags=["red", "round"])
    cache.set("b", 2, tags=["red"])
    cache.set("c", 3, tags=("round",))
    cache.set("d", 4)
    assert [cache.entry(key).tags for key in "abcd"] == [("red", "round"), ("red",), ("round",), ()]  # type: ignore[union-attr]
    cache.invalidate_tags("red")
    assert cache.get_many("abcd") == {"c": 3, "d": 4}
    assert [cache.has(key) for key in "abcd"] == [False, False, True, True]
    assert [cache.entry(key) for key in "ab"] == [None, None]
    cache.set("a", 5, tags=["red"])
    assert cache.get("a") == 5
    cache.set("a", 6)
    cache.invalidate_tags("red")
    assert cache.get("a") == 6  # whose tags were not those of the entry before it


def test_invalidating_no_tag_or_an_unknown_one_changes_nothing(cache: Cache) -> None:
    cache.set("a", 1, tags=["red"])
    cache.invalidate_tags()
    cache.invalidate_tags("blue")
    assert cache.get("a") == 1
    assert cache.stats().errors == {}


def test_the_twins_in_an_event_loop(decorate: Callable[..., Any], cache: Cache) -> None:
    @decorate(tags=lambda x: [f"x:{x}"])
    async def function(x: int) -> int:
        return x

    async def main() -> None:
        await cache.aset("a", 1, tags=["x:1"])
        assert [await function(1), await function(2)] == [1, 2]
        assert [await function(1), await function(2)] == [1, 2]
        assert function.stats().hits == 2
        await cache.ainvalidate_tags("x:1")
        assert await cache.aget("a") is None
        assert await cache.aget_many(["a"]) == {}
        assert await function.apeek(1) is MISSING
        assert await function.apeek(2) == 2
        assert "x:1" in str(await function.aexplain(1))

    asyncio.run(main())


def test_namespaces_have_tags_of_their_own(manager: CacheManager, backend_name: str) -> None:
    one, other = manager.get_cache("x", backend_name), manager.get_cache("x:a", backend_name)
    one.set("k", 1, tags=["a:b"])
    other.set("k", 2, tags=["b"])
    assert (one.entry("k").tags, other.entry("k").tags) == (("a:b",), ("b",))  # type: ignore[union-attr]
    one.invalidate_tags("a:b")
    assert (one.get("k"), other.get("k")) == (None, 2)
    one.set("k", 1, tags=["a:b"])
    other.invalidate_tags("b")
    assert (one.get("k"), other.get("k")) == (1, None)


ODD = ["", " ", ":", "a:b", "3:a:b", "t", "*", "\x00", "\ud800", "ключ", "x" * 10_000, "x" * 9_999]


def test_odd_tags(cache: Cache) -> None:
    for number, tag in enumerate(ODD):
        cache.set(str(number), number, tags=[tag])
        assert cache.entry(str(number)).tags == (tag,)  # type: ignore[union-attr]
    for number, tag in enumerate(ODD):
        assert cache.get(str(number)) == number
        cache.invalidate_tags(tag)
        assert [cache.has(str(each)) for each in range(len(ODD))] == [each > number for each in range(len(ODD))]


def test_many_tags_and_equal_ones(cache: Cache) -> None:
    tags = [f"t{number}" for number in range(500)] * 2
    cache.set("k", 1, tags=tags)
    assert cache.get("k") == 1
    assert cache.entry("k").tags == tuple(tags)  # type: ignore[union-attr]
    cache.invalidate_tags("t499")
    assert cache.get("k") is None


@pytest.mark.parametrize("tag", [1, None, b"x", ("x",)])
def test_a_tag_that_is_no_text_is_an_error_that_shows_it(cache: Cache, tag: Any) -> None:
    with pytest.raises(TypeError, match="give a str"):
        cache.set("k", 1, tags=[tag])
    with pytest.raises(TypeError, match="give a str"):
        cache.invalidate_tags(tag)
    with pytest.raises(CacheConfigurationError, match="give a list of str"):
        cache.set("k", 1, tags="text")
    assert cache.has("k") is False


@pytest.mark.parametrize("tags", [lambda x: 1 / 0, lambda x: "text", lambda x: [x], lambda x: None, list])
def test_tags_that_cannot_be_told_cost_the_storing_alone(
    decorate: Callable[..., Any], caplog: pytest.LogCaptureFixture, tags: Any
) -> None:
    runs: list[int] = []

    @decorate(tags=tags)
    def function(x: int) -> int:
        runs.append(x)
        return x

    assert [function(1), function(1)] == [1, 1]
    assert len(runs) == 2
    assert function.peek(1) is MISSING
    assert function.stats().errors == {"tags": 2}
    assert caplog.text.count("tags= failed") == 1


# -- what becomes of them


def test_tags_survive_a_touch(cache: Cache, clock: FakeClock) -> None:
    cache.set("k", 1, ttl=100, tags=["red"])
    clock.advance(90)
    assert cache.touch("k") is True
    assert cache.touch("k", ttl=200) is True
    clock.advance(150)
    assert cache.get("k") == 1
    assert cache.entry("k").tags == ("red",)  # type: ignore[union-attr]
    cache.invalidate_tags("red")
    assert cache.get("k") is None
    assert cache.touch("k") is False


def test_tags_survive_a_sliding_ttl(decorate: Callable[..., Any], cache: Cache, clock: FakeClock) -> None:
    @decorate(ttl=100, touch=True, tags=["red"])
    def function() -> int:
        return 1

    for _ in range(3):
        function()
        clock.advance(90)
    assert function.stats().loads == 1
    assert function.entry().tags == ("red",)
    cache.invalidate_tags("red")
    function()
    assert function.stats().loads == 2


def test_tags_survive_incr(cache: Cache) -> None:
    cache.set("k", 1, tags=["red"])
    assert cache.incr("k", 5) == 6
    assert cache.entry("k").tags == ("red",)  # type: ignore[union-attr]
    cache.invalidate_tags("red")
    assert cache.get("k") is None
    assert cache.incr("k") == 1
    assert cache.add("k", 9) is False


def test_add_stores_over_an_invalidated_entry(cache: Cache) -> None:
    cache.set("k", 1, tags=["red"])
    cache.invalidate_tags("red")
    assert cache.add("k", 2) is True
    assert cache.get("k") == 2


def test_on_a_server_the_generation_of_a_tag_lives_as_long_as_what_carries_it(valkey: Server) -> None:
    manager = CacheManager(url=valkey.url, secret=SECRET)
    cache = manager.get_cache("tags", "redis")
    name, day = b"cmxc:{4:tags:}gtred", 86_400_000
    with valkey.client() as client:
        cache.set("k", 1, ttl="1h", tags=["red"])
        assert client.pttl(name) >= 0.99 * day  # type: ignore[operator]
        cache.set("l", 1, ttl="7d", tags=["red"])
        assert client.pttl(name) >= 7 * 0.99 * day  # type: ignore[operator]
        cache.touch("k", ttl="30d")
        assert client.pttl(name) >= 30 * 0.99 * day  # type: ignore[operator]
        cache.touch("k", ttl=None)
        assert client.pttl(name) == -1
    manager.close()


@pytest.mark.parametrize("ttl", [None, 3600])
def test_generations_that_a_server_has_evicted_cost_misses_and_revive_nothing(valkey: Server, ttl: Any) -> None:
    manager = CacheManager(url=valkey.url, secret=SECRET)
    cache = manager.get_cache("tags", "redis")

    def evict() -> None:
        with valkey.client() as client:
            client.delete(*client.keys("cmxc:{4:tags:}g*"))  # type: ignore[misc]

    cache.set("dead", 1, ttl=ttl, tags=["red"])
    cache.invalidate_tags("red")
    cache.set("alive", 2, ttl=ttl, tags=["red", "blue"])
    cache.set("free", 3, ttl=ttl)
    evict()
    assert cache.get_many(["dead", "alive", "free"]) == {"free": 3}
    cache.set("new", 4, ttl=ttl, tags=["red"])
    assert cache.get_many(["dead", "alive", "free", "new"]) == {"free": 3, "new": 4}
    manager.close()


def test_generations_evicted_during_a_load_cost_its_storing(valkey: Server) -> None:
    manager = CacheManager(url=valkey.url, secret=SECRET)
    runs: list[int] = []

    @cached("tags", backend="redis", manager=manager, tags=["red"])
    def function() -> int:
        runs.append(1)
        if len(runs) == 1:
            with valkey.client() as client:
                client.delete(*client.keys("cmxc:{4:tags:}g*"))  # type: ignore[misc]
        return len(runs)

    assert [function(), function(), function()] == [1, 2, 2]
    manager.close()


def test_explain_names_the_invalidated_tag(decorate: Callable[..., Any], cache: Cache) -> None:
    @decorate(tags=["green", "blue"])
    def function() -> int:
        return 1

    function()
    assert function.explain().outcome == "hit"
    cache.invalidate_tags("blue")
    found = function.explain()
    assert found.outcome == "miss"
    assert "blue have been invalidated" in found.reason
    assert "green" not in found.reason


def test_without_the_verbs_of_coordinates_tags_are_refused() -> None:
    class Plain:
        payload = "object"

        def __init__(self) -> None:
            self.entries: dict[bytes, Any] = {}

        def get(self, key: bytes) -> Any:
            return self.entries.get(key)

        def set(self, key: bytes, entry: Any) -> None:
            self.entries[key] = entry

        def has(self, key: bytes) -> bool:
            return key in self.entries

        def delete(self, key: bytes) -> bool:
            return self.entries.pop(key, None) is not None

        def scan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
            return [(key, None) for key in self.entries if key.startswith(prefix)]

        def close(self) -> None:
            """Nothing to release."""

    manager = CacheManager()
    cache = manager.get_cache("plain", Plain())
    message = "'plain': Plain has no tags; it would need the verbs of .*Coordinates"
    with pytest.raises(CacheConfigurationError, match=message):
        cache.set("k", 1, tags=["red"])
    with pytest.raises(CacheConfigurationError, match=message):
        cache.invalidate_tags("red")
    cache.set("k", 1)
    assert cache.get("k") == 1

    function = cached("plain", tags=["red"], manager=manager)(lambda: 1)
    with pytest.raises(CacheConfigurationError, match=message):
        function()


# -- invalidations and loads


@pytest.mark.parametrize("form", ["static", "callable"])
def test_a_load_during_which_its_tag_is_invalidated_is_not_stored(
    decorate: Callable[..., Any], cache: Cache, pool: ThreadPoolExecutor, form: str
) -> None:
    started, gate = threading.Event(), threading.Event()
    runs: list[int] = []

    @decorate(tags=["red"] if form == "static" else lambda x: ["red"])
    def function(x: int) -> int:
        runs.append(x)
        number = len(runs)
        if number == 1:
            started.set()
            assert gate.wait(LIMIT)
        return number

    call = pool.submit(function, 1)
    assert started.wait(LIMIT)
    cache.invalidate_tags("red")
    assert function(1) == 2  # and does not join what began before
    gate.set()
    assert call.result(LIMIT) == 1
    assert function(1) == 2
    assert function.stats().sets == 1


@pytest.mark.parametrize("verb", ["invalidate", "invalidate_tags", "clear"])
def test_the_end_of_an_invalidated_load_does_not_undo_the_next_one(
    decorate: Callable[..., Any], cache: Cache, pool: ThreadPoolExecutor, verb: str
) -> None:
    started = [threading.Event(), threading.Event()]
    gates = [threading.Event(), threading.Event()]
    runs: list[int] = []

    @decorate(tags=["red"])
    def function() -> int:
        number = len(runs)
        runs.append(number)
        started[number].set()
        assert gates[number].wait(LIMIT)
        return number

    first = pool.submit(function)
    assert started[0].wait(LIMIT)
    if verb == "invalidate_tags":
        cache.invalidate_tags("red")
    else:
        getattr(function, verb)()
    second = pool.submit(function)
    assert started[1].wait(LIMIT)
    gates[0].set()
    assert first.result(LIMIT) == 0
    gates[1].set()
    assert second.result(LIMIT) == 1
    assert function.peek() == 1


def test_another_tag_leaves_a_load_alone(decorate: Callable[..., Any], cache: Cache, pool: ThreadPoolExecutor) -> None:
    started, gate = threading.Event(), threading.Event()

    @decorate(tags=["red"])
    def function() -> int:
        started.set()
        assert gate.wait(LIMIT)
        return 1

    call = pool.submit(function)
    assert started.wait(LIMIT)
    cache.invalidate_tags("blue")
    gate.set()
    assert call.result(LIMIT) == 1
    assert function.peek() == 1


def test_a_task_during_which_its_tag_is_invalidated_is_not_stored(decorate: Callable[..., Any], cache: Cache) -> None:
    runs: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        @decorate(tags=["red"])
        async def function() -> int:
            runs.append(1)
            number = len(runs)
            if number == 1:
                await gate.wait()
            return number

        call = asyncio.ensure_future(function())
        while not runs:
            await asyncio.sleep(0.001)
        await cache.ainvalidate_tags("red")
        assert await function() == 2
        gate.set()
        assert await call == 1
        assert await function() == 2

    asyncio.run(main())


def test_a_set_during_which_its_tag_is_invalidated_is_stored_as_it_is_the_later(cache: Cache) -> None:
    backend = cache.space.backend
    commit, left = backend.commit, [1]

    def racing(*arguments: Any) -> bool:
        if left:
            left.pop()
            cache.invalidate_tags("red")
        return bool(commit(*arguments))

    backend.commit = racing  # type: ignore[method-assign, attr-defined]
    cache.set("k", 1, tags=["red"])
    assert cache.get("k") == 1
    cache.invalidate_tags("red")
    assert cache.get("k") is None


QUEUES: list[Any] = []


def ordered(x: int) -> int:
    orders, answers = QUEUES
    answers.put("started")
    return int(orders.get(timeout=LIMIT))


def _work(backend: str, directory: str, url: str, orders: Any, answers: Any) -> None:
    QUEUES[:] = [orders, answers]
    manager = CacheManager(directory=directory, url=url or None, secret=SECRET)
    function = cached("tags", backend=backend, manager=manager, tags=lambda x: [f"x:{x}"])(ordered)
    answers.put("ready")
    while (order := orders.get(timeout=60)) != "end":
        if order == "call":
            answers.put(function(1))
        else:
            manager.get_cache("tags").invalidate_tags("x:1")
            answers.put("invalidated")
    manager.close()


@pytest.mark.parametrize("backend", ["file_based", "redis"])
def test_an_invalidation_in_another_process(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("valkey").url if backend == "redis" else ""
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(2):
        orders, answers = context.Queue(), context.Queue()
        process = context.Process(target=_work, args=(backend, str(tmp_path), url, orders, answers))
        process.start()
        workers.append((process, orders, answers))
    (_, one, said), (_, other, heard) = workers
    try:
        assert said.get(timeout=30) == heard.get(timeout=30) == "ready"
        one.put("call")
        assert said.get(timeout=LIMIT) == "started"
        other.put("invalidate")
        assert heard.get(timeout=LIMIT) == "invalidated"
        other.put("call")  # waits for nobody: the load of the first is doomed
        assert heard.get(timeout=LIMIT) == "started"
        one.put(1)
        assert said.get(timeout=LIMIT) == 1
        other.put(2)
        assert heard.get(timeout=LIMIT) == 2
        one.put("call")
        assert said.get(timeout=LIMIT) == 2  # stored by the other, and the first has stored nothing
        one.put("invalidate")
        assert said.get(timeout=LIMIT) == "invalidated"
        other.put("call")
        assert heard.get(timeout=LIMIT) == "started"
        other.put(3)
        assert heard.get(timeout=LIMIT) == 3
    finally:
        for process, orders, _ in workers:
            orders.put("end")
            process.join(30)
            process.kill()


def test_no_answer_is_older_than_an_invalidation(decorate: Callable[..., Any], cache: Cache) -> None:
    truth, wrong, stop = [0], [], threading.Event()
    calls = [0] * 6

    @decorate(tags=lambda x: [f"x:{x}"])
    def function(x: int) -> int:
        return truth[0]

    def read(number: int) -> None:
        while not stop.is_set() or calls[number] < 50:
            before = truth[1:] or [0]
            found = function(number % 2)
            calls[number] += 1
            if found < before[-1]:
                wrong.append((before[-1], found))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        for version in range(1, 60):
            truth[0] = version
            cache.invalidate_tags("x:0", "x:1")
            truth[1:] = [version]  # from here on nothing older may be answered
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT)
    assert wrong == []
    assert [function(0), function(1)] == [59, 59]
    assert min(calls) >= 50
    assert function.stats().errors == {}


# -- what an invalidation costs


def _statements(cache: Cache, act: Callable[[], None]) -> int:
    backend: Any = cache.space.backend
    seen: list[str] = []
    connections: list[sqlite3.Connection] = [handle.connection for handle in backend._database.idle]
    assert connections
    for connection in connections:
        connection.set_trace_callback(seen.append)
    act()
    for connection in connections:
        connection.set_trace_callback(None)
    return len(seen)


def _commands(cache: Cache, act: Callable[[], None]) -> int:
    with redis.Redis(unix_socket_path=cache.space.backend._wire.target.nodes[0]) as client:  # type: ignore[attr-defined]
        client.config_resetstat()
        act()
        found: Any = client.info("commandstats")
    return int(sum(each["calls"] for name, each in found.items() if "config" not in name and "info" not in name))


def _calls(cache: Cache, act: Callable[[], None]) -> int:
    seen: list[str] = []
    sys.setprofile(lambda frame, event, argument: seen.append(event) if event in ("call", "c_call") else None)
    try:
        act()
    finally:
        sys.setprofile(None)
    return len(seen)


def test_an_invalidation_costs_the_same_for_any_number_of_entries(cache: Cache, backend_name: str) -> None:
    count = {"file_based": _statements, "redis": _commands, "in_memory": _calls}[backend_name]
    costs = []
    for entries in (1, 500):
        for number in range(entries):
            cache.set(f"k{number}", number, tags=["red"])
        cache.invalidate_tags("blue")  # what happens once
        costs.append(count(cache, lambda: cache.invalidate_tags("red")))
        assert [cache.has("k0"), cache.has(f"k{entries - 1}")] == [False, False]
    assert costs[0] == costs[1] > 0


def test_a_hit_of_a_function_with_tags_asks_for_them_each_time(
    decorate: Callable[..., Any], cache: Cache, pool: ThreadPoolExecutor
) -> None:
    @decorate(tags=["red"])
    def function(x: int) -> list[int]:
        return [x]

    first = function(1)
    first.append(2)
    assert function(1) == [1]
    hits = [pool.submit(function, 1) for _ in range(8)]
    assert [hit.result(LIMIT) for hit in hits] == [[1]] * 8
    assert (function.stats().hits, function.stats().loads) == (9, 1)
    cache.invalidate_tags("red")
    assert function.contains(1) is False
    assert function(1) == [1]
    assert function.stats().loads == 2
