"""Real Sentinels: everyday life, failover, and the old master that comes back; for all groups: what everyday life is."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, cached
from tests.clusters import Load, Node, SentinelGroup, free_ports, poll
from tests.conftest import _binaries

SECRET = b"a secret for the tests"
BLOCKED = 1.0
"""Seconds; half of them is what a decorated call promises, half is for a busy machine."""

AGAIN = 8.0
"""Seconds after the failover until the store is used again; a breaker that has met three failures waits for up to four."""

NAMESPACES = ["a", "b", "c"]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", params=sorted(_binaries()))
def binary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Each server at hand that can be a sentinel."""
    found = _binaries()[request.param]
    if not SentinelGroup.supports(found, tmp_path_factory.mktemp("probe")):
        pytest.skip(f"{found} cannot run as a sentinel")
    return found


@pytest.fixture(scope="module")
def calm(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    """A group in which nothing is killed."""
    with SentinelGroup(binary, tmp_path_factory.mktemp("sentinels")) as group:
        yield group


@pytest.fixture
def group(calm: SentinelGroup) -> SentinelGroup:
    """The calm one, empty."""
    calm.master().client.flushall()
    return calm


@pytest.fixture
def manager(group: SentinelGroup) -> Iterator[CacheManager]:
    manager = CacheManager(url=group.url, secret=SECRET)
    yield manager
    manager.close()


# -- what people do with a namespace, on any store that several hosts share

MANY = {f"many {number}": [number] for number in range(20)}


def everyday(cache: Cache) -> None:
    """The direct API and a decorated function, in an empty namespace, which is left empty."""
    assert (cache.get("k", "default"), cache.has("k"), cache.delete("k")) == ("default", False, False)
    cache.set("k", {"list": [1, None]}, ttl="1h")
    assert (cache.get("k"), cache.has("k"), cache.keys()) == ({"list": [1, None]}, True, ["k"])
    assert [cache.touch("k", ttl="2h"), cache.touch("absent")] == [True, False]
    entry = cache.entry("k")
    assert entry is not None
    assert entry.ttl == 7200
    cache.set_many(MANY, ttl=3600)
    assert cache.get_many([*MANY, "absent"]) == MANY
    assert len(cache) == 21
    assert cache.delete_many(["many 0", "many 1", "absent"]) == 2
    assert [cache.delete("k"), cache.delete("k")] == [True, False]
    assert [cache.get_or_load("l", lambda: [1]), cache.get_or_load("l", lambda: [2])] == [[1], [1]]
    _exact(cache)
    cache.set("one", 1, tags=["odd", "all"])
    cache.set("two", 2, tags=["all"])
    cache.invalidate_tags("odd", "unheard of")
    assert cache.get_many(["one", "two"]) == {"two": 2}
    cache.invalidate_tags("all")
    assert cache.get("two") is None
    assert cache.clear() > 18
    assert cache.keys() == []


def _exact(cache: Cache) -> None:
    assert [cache.incr("n"), cache.incr("n", 5), cache.incr("n", -2)] == [1, 6, 4]
    assert [cache.add("first", "me"), cache.add("first", "you"), cache.get("first")] == [True, False, "me"]
    with cache.lock("section") as lock:
        first = lock.token
        with pytest.raises(TimeoutError), cache.lock("section", wait=0):
            raise AssertionError("two are inside")
    with cache.lock("section", wait="5s") as lock:
        assert lock.token > first > 0


async def aeveryday(cache: Cache) -> None:
    """The same by the `a`-twins."""
    assert [await cache.aget("k", "default"), await cache.ahas("k"), await cache.adelete("k")] == ["default", False, False]
    await cache.aset("k", {"list": [1, None]}, ttl="1h")
    assert [await cache.aget("k"), await cache.ahas("k"), await cache.akeys()] == [{"list": [1, None]}, True, ["k"]]
    assert [await cache.atouch("k", ttl="2h"), await cache.atouch("absent")] == [True, False]
    await cache.aset_many(MANY, ttl=3600)
    assert await cache.aget_many([*MANY, "absent"]) == MANY
    assert await cache.adelete_many(["many 0", "many 1", "absent"]) == 2
    assert [await cache.adelete("k"), await cache.adelete("k")] == [True, False]
    assert [await cache.aget_or_load("l", lambda: [1]), await cache.aget_or_load("l", lambda: [2])] == [[1], [1]]
    assert [await cache.aincr("n"), await cache.aincr("n", 5)] == [1, 6]
    assert [await cache.aadd("first", "me"), await cache.aadd("first", "you")] == [True, False]
    async with cache.lock("section") as lock:
        first = lock.token
    async with cache.lock("section", wait="5s") as lock:
        assert lock.token > first > 0
    await cache.aset("one", 1, tags=["odd", "all"])
    await cache.aset("two", 2, tags=["all"])
    await cache.ainvalidate_tags("odd")
    assert await cache.aget_many(["one", "two"]) == {"two": 2}
    await cache.ainvalidate_tags("all")
    assert await cache.aget("two") is None
    assert await cache.aclear() > 18
    assert await cache.akeys() == []


_BODIES: list[Callable[[int], list[int]]] = []
"""Not closed over, since the events in there would give each decorated function an identity of its own."""


def shared_between(url: str, **options: Any) -> None:
    """Two managers stand for two hosts; a function called by both runs once for each argument."""
    hosts = [CacheManager(url=url, secret=b"a secret for the tests", **options) for _ in range(2)]
    running, waiting = Event(), Event()
    runs: list[int] = []

    def body(number: int) -> list[int]:
        runs.append(number)
        running.set()
        assert waiting.wait(10)
        return [number]

    _BODIES[:] = [body]

    def decorated(manager: CacheManager) -> Any:
        @cached("shared", ttl="1h", backend="redis", manager=manager)
        def function(number: int) -> list[int]:
            return _BODIES[0](number)

        return function

    functions = [decorated(manager) for manager in hosts]
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(functions[0], 0)
        assert running.wait(10)
        others = [pool.submit(function, 0) for function in functions for _ in range(3)]
        waiting.set()
        assert [each.result() for each in (first, *others)] == [[0]] * 7
    assert [function(number) for number in range(1, 30) for function in functions] == [
        [number] for number in range(1, 30) for _ in range(2)
    ]
    assert runs == list(range(30))
    assert functions[1].invalidate(0) is True
    assert functions[0](0) == [0]
    assert runs[30:] == [0]
    assert [dict(manager.total().errors) for manager in hosts] == [{}, {}]
    for manager in hosts:
        manager.close()


# -- with sentinels


def test_a_group_agrees_on_a_master_with_two_replicas(calm: SentinelGroup) -> None:
    assert calm.settled()
    assert calm.master().ask("ROLE")[0] == "master"
    assert len(calm.master().ask("ROLE")[2]) == 2


def test_everyday_life(manager: CacheManager) -> None:
    for name in NAMESPACES:
        everyday(manager.get_cache(name, backend="redis"))
    assert dict(manager.total().errors) == {}


def test_everyday_life_in_an_event_loop(manager: CacheManager) -> None:
    async def main() -> None:
        await asyncio.gather(*(aeveryday(manager.get_cache(name, backend="redis")) for name in NAMESPACES))
        await manager.aclose()

    asyncio.run(main())
    assert dict(manager.total().errors) == {}


def test_hosts_share_a_load(group: SentinelGroup) -> None:
    shared_between(group.url)


def test_a_url_may_name_a_database_and_dead_sentinels_first(group: SentinelGroup) -> None:
    (nobody,) = free_ports(1)
    hosts = f"127.0.0.1:{nobody}," + group.url.partition("://")[2].partition("/")[0]
    manager = CacheManager(url=f"redis+sentinel://{hosts}/mymaster/1", secret=SECRET, on_error="raise")
    cache = manager.get_cache("a", backend="redis")
    everyday(cache)

    async def main() -> None:
        await aeveryday(cache)
        await cache.aset("k", 1)
        await manager.aclose()

    asyncio.run(main())
    assert group.master().client.info("keyspace").keys() == {"db1"}


def test_a_service_that_no_sentinel_knows_is_a_miss(group: SentinelGroup) -> None:
    manager = CacheManager(url=group.url.replace("mymaster", "another"), secret=SECRET)
    cache = manager.get_cache("a", backend="redis")
    cache.set("k", 1)
    assert cache.get("k", "default") == "default"
    assert sum(manager.total().errors.values()) > 0
    manager.close()


@pytest.mark.parametrize("workers", ["threads", "tasks"])
def test_a_master_killed_under_load_that_comes_back(binary: str, tmp_path: Path, workers: str, record_property: Any) -> None:
    with SentinelGroup(binary, tmp_path) as group:
        victim = group.master()
        manager = CacheManager(url=group.url, secret=SECRET)
        with Load(manager, NAMESPACES, workers) as load:
            load.hit_again(NAMESPACES)
            began = time.monotonic()
            group.kill(victim)
            poll(lambda: group.master() is not victim, "failover")
            record_property("failover", time.monotonic() - began)
            load.hit_again(NAMESPACES, AGAIN)
            record_property("gap", time.monotonic() - began)
            victim.start()
            poll(group.settled, "group with three servers")
            load.hit_again(NAMESPACES)
        record_property("calls", len(load.durations))
        record_property("longest", load.longest)
        assert (load.exceptions, load.wrong) == ([], [])
        assert load.longest < BLOCKED
        assert sum(manager.total().errors.values()) > 0  # it was felt
        _all_have_what_is_told(group)


def test_a_master_that_freezes_under_load_and_thaws(tmp_path: Path, record_property: Any) -> None:
    """It still takes itself for the master for a moment, and nobody has closed the connections to it."""
    with SentinelGroup(_binaries()["valkey"], tmp_path) as group:
        victim = group.master()
        manager = CacheManager(url=group.url, secret=SECRET)
        with Load(manager, NAMESPACES, "tasks") as load:
            load.hit_again(NAMESPACES)
            victim.signal(signal.SIGSTOP)
            poll(lambda: group.master() is not victim, "failover")
            load.hit_again(NAMESPACES, AGAIN)
            victim.signal(signal.SIGCONT)
            poll(group.settled, "group with three servers")
            load.hit_again(NAMESPACES)
        record_property("longest", load.longest)
        assert (load.exceptions, load.wrong) == ([], [])
        assert load.longest < BLOCKED
        assert "backend:TimeoutError" in manager.total().errors


def _all_have_what_is_told(group: SentinelGroup) -> None:
    """The servers agree after the failover, and so does a manager that knows nothing of it."""
    manager = CacheManager(url=group.url, secret=SECRET, on_error="raise")
    cache = manager.get_cache("new", backend="redis")
    everyday(cache)
    cache.set("k", 1)
    for server in group.servers:
        poll(partial(_has, server, "*:new:*"), f"copy on {server}")
    manager.close()


def _has(server: Node, pattern: str) -> bool:
    return any(True for _ in server.client.scan_iter(pattern))
