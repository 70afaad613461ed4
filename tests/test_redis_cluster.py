"""Redis Cluster, real ones: everyday life, failover, slots that move, and namespaces spread over several slots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from codomyrmex_cache import MISSING, Cache, CacheManager, RedisBackend, cached
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.errors import CacheConnectionError
from codomyrmex_cache.testing import AsyncBackendConformance, BackendConformance
from tests.clusters import SLOTS, Cluster, Load, Node, answer_of, poll
from tests.conftest import _binaries
from tests.test_redis_sentinel import aeveryday, everyday, shared_between

SECRET = b"a secret for the tests"
BINARY = _binaries()["valkey"]
BLOCKED = 1.0
"""Seconds; half of them is what a decorated call promises, half is for a busy machine."""

PATIENT = "?socket_timeout=5"
"""For what is not about time, on a busy machine."""

AGAIN = 8.0
"""Seconds after the failover until the store is used again; a breaker that has met three failures waits for up to four."""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster in which nothing is killed."""
    with Cluster(BINARY, tmp_path_factory.mktemp("cluster"), timeout=10_000) as cluster:
        yield cluster


@pytest.fixture
def cluster(calm: Cluster) -> Cluster:
    """The calm one, empty."""
    calm.flush()
    return calm


@pytest.fixture
def manager(cluster: Cluster) -> Iterator[CacheManager]:
    manager = CacheManager(url=cluster.url, secret=SECRET)
    yield manager
    manager.close()


def _tag(namespace: str) -> bytes:
    return f"cmxc:{{{len(namespace)}:{namespace}:}}".encode()


def _by_master(cluster: Cluster) -> dict[Node, list[str]]:
    """Two namespaces on each master."""
    found: dict[Node, list[str]] = {node: [] for node in cluster.masters()}
    for number in range(100):
        names = found[cluster.master_of(_tag(f"n{number}"))]
        if len(names) < 2:
            names.append(f"n{number}")
    return found


def _all(groups: dict[Node, list[str]]) -> list[str]:
    return [name for names in groups.values() for name in names]


# -- the fixture itself


def test_a_cluster_has_all_slots_on_three_masters_and_fails_over(calm: Cluster) -> None:
    assert len(calm.masters()) == 3
    assert {calm.owner(slot) for slot in (0, SLOTS // 2, SLOTS - 1)} == set(calm.masters())
    assert calm.settled()


def test_a_cluster_that_cannot_start_leaves_no_process(tmp_path: Path) -> None:
    started: list[Node] = []

    class Broken(Cluster):
        def settled(self) -> bool:
            started.extend(self.alive())
            raise RuntimeError("never")

    with pytest.raises(RuntimeError, match="never"):
        Broken(BINARY, tmp_path)
    assert len(started) == 6
    assert not any(node.alive for node in started)


# -- everyday life


def test_everyday_life_on_every_master(cluster: Cluster, manager: CacheManager) -> None:
    groups = _by_master(cluster)
    for name in _all(groups):
        everyday(manager.get_cache(name, backend="redis"))
    assert [len(names) for names in groups.values()] == [2, 2, 2]
    assert dict(manager.total().errors) == {}


def test_everyday_life_in_an_event_loop(cluster: Cluster, manager: CacheManager) -> None:
    async def main() -> None:
        names = _all(_by_master(cluster))
        await asyncio.gather(*(aeveryday(manager.get_cache(name, backend="redis")) for name in names))
        await manager.aclose()

    asyncio.run(main())
    assert dict(manager.total().errors) == {}


@pytest.mark.parametrize("slots", [1, 8])
def test_hosts_share_a_load(cluster: Cluster, slots: int) -> None:
    shared_between(cluster.url, slots=slots)


def test_namespaces_stay_apart_on_all_nodes(cluster: Cluster, manager: CacheManager) -> None:
    names = _all(_by_master(cluster))
    caches = {name: manager.get_cache(name, backend="redis") for name in names}
    for name, cache in caches.items():
        cache.set_many({"k": name, name: 1})
    assert [cache.get("k") for cache in caches.values()] == names
    assert caches[names[0]].clear() == 2
    assert [sorted(cache.keys()) for cache in caches.values()] == [[], *(sorted(["k", name]) for name in names[1:])]


@pytest.mark.parametrize("namespace", ["a", "a:b", "a}b", "}{", "{}", "ключ", "n" * 300])
def test_a_namespace_is_in_one_slot_whatever_it_holds(cluster: Cluster, manager: CacheManager, namespace: str) -> None:
    @cached(namespace, backend="redis", manager=manager, tags=lambda number: [f"tag{number}"])
    def function(number: int) -> int:
        during.append(cluster.slots())
        return number

    during: list[set[int]] = []
    _use_all(manager.get_cache(namespace))
    assert [function(1), function(1), function(2)] == [1, 1, 2]
    assert len(cluster.all_keys()) > 12
    assert all(key.startswith(b"cmxc") for key in cluster.all_keys())
    assert cluster.slots() == during[0] == during[1]
    assert len(during[0]) == 1


def _use_all(cache: Cache) -> None:
    """Leave something of everything that a namespace may hold."""
    cache.set_many({str(number): number for number in range(10)})
    cache.set("tagged", 1, tags=["one", "two"])
    cache.incr("counter")
    cache.add("first", 1)
    cache.lock("held").__enter__()


# -- a namespace in several slots


@pytest.fixture
def spread(manager: CacheManager) -> Cache:
    return manager.get_cache("spread", backend="redis", slots=8)


def test_a_spread_namespace_lies_in_so_many_slots(cluster: Cluster, spread: Cache) -> None:
    spread.set_many({str(number): number for number in range(200)})
    assert len(cluster.slots()) == 8
    assert len({cluster.master_of(key) for key in cluster.all_keys()}) > 1
    assert {key.partition(b"}")[0] for key in cluster.all_keys()} == {b"cmxc:{6:spread:%d" % number for number in range(8)}
    _use_all(spread)
    assert len(cluster.slots()) == 8


def test_a_spread_namespace_is_one_namespace(cluster: Cluster, spread: Cache) -> None:
    values = {str(number): [number] for number in range(50)}
    spread.set_many(values)
    assert spread.get_many([*values, "absent"]) == values
    assert sorted(spread.keys()) == sorted(values)
    assert spread.delete_many([*list(values)[:10], "absent"]) == 10
    assert spread.clear() == 40
    assert spread.keys() == []
    for number in range(50):
        spread.set(str(number), number, tags=["all", f"{number % 2}"])
    spread.invalidate_tags("1")
    assert sorted(spread.get_many(values).values()) == list(range(0, 50, 2))
    spread.invalidate_tags("all")
    assert spread.get_many(values) == {}
    assert spread.clear() == 50
    everyday(spread)
    assert dict(spread.stats().errors) == {}


def test_a_spread_namespace_in_an_event_loop(cluster: Cluster, spread: Cache) -> None:
    async def main() -> None:
        values = {str(number): [number] for number in range(50)}
        await spread.aset_many(values)
        assert await spread.aget_many([*values, "absent"]) == values
        assert sorted(await spread.akeys()) == sorted(values)
        assert await spread.aclear() == 50
        await aeveryday(spread)
        await spread.aclose()

    asyncio.run(main())
    assert dict(spread.stats().errors) == {}


@pytest.mark.parametrize("how", ["clear", "invalidate_tags"])
def test_a_load_is_not_stored_if_its_namespace_was_invalidated_elsewhere(cluster: Cluster, how: str) -> None:
    """Whichever slot the load is in; the invalidation comes from another host."""
    manager, other = (CacheManager(url=cluster.url, secret=SECRET, slots=8) for _ in range(2))
    elsewhere = other.get_cache("spread", backend="redis")

    @cached("spread", backend="redis", manager=manager, tags=["all"])
    def function(number: int, invalidating: bool) -> int:
        if invalidating:
            elsewhere.clear() if how == "clear" else elsewhere.invalidate_tags("all")
        return number

    for number in range(24):
        assert function(number, False) == function(number, True) == number
        assert function.peek(number, True) is MISSING
        assert function.peek(number, False) is MISSING
    assert [function(number, False) for number in range(24)] == [function.peek(number, False) for number in range(24)]
    assert len(cluster.slots()) > 4
    manager.close()
    other.close()


def test_slots_can_be_said_to_the_decorator(cluster: Cluster, manager: CacheManager) -> None:
    @cached("decorated", backend="redis", manager=manager, slots=4)
    def function(number: int) -> int:
        return number

    assert [function(number) for number in range(40)] == [function.peek(number) for number in range(40)]
    assert len(cluster.slots()) == 4
    assert function.clear() == 40


# -- the shipped suites


class _OnCluster:
    slots = 1

    def setup_method(self) -> None:
        """Deferred to the fixture below, which knows the cluster."""

    def make_backend(self) -> Backend:
        return RedisBackend(self.url, slots=self.slots)

    @pytest.fixture(autouse=True)
    def _wired(self, cluster: Cluster) -> None:
        self.url = cluster.url
        super().setup_method()  # type: ignore[misc]


class TestCluster(_OnCluster, BackendConformance):
    pass


class TestClusterAsync(_OnCluster, AsyncBackendConformance):
    pass


class TestSpread(_OnCluster, BackendConformance):
    slots = 4

    def test_generations_come_when_asked_for_and_never_again(self) -> None:
        """As for the others, but in each part on its own; what drops them drops them in all parts."""
        tags = [b"t1:a:tag"]
        assert isinstance(self.backend, RedisBackend)
        keys = [b"1:a:%d" % number for number in range(16)]
        first = {key: self.backend.begin(key, tags, 0.0).generations[1] for key in keys}
        assert {key: self.backend.begin(key, tags, 0.0).generations[1] for key in keys} == first
        assert len(set(first.values())) == 4
        self.backend.revoke(tags)
        assert [list(self.backend.generations(key, tags)) for key in keys] == [[None]] * 16
        assert not set(first.values()) & {self.backend.begin(key, tags, 0.0).generations[1] for key in keys}


class TestSpreadAsync(_OnCluster, AsyncBackendConformance):
    slots = 4


# -- slots that move, and scripts that are forgotten


@pytest.mark.parametrize("workers", ["threads", "tasks"])
def test_a_slot_that_moves_under_load(cluster: Cluster, workers: str) -> None:
    source, target = cluster.masters()[:2]
    names = _by_master(cluster)[source]
    slot = cluster.nodes[0].ask("CLUSTER KEYSLOT", _tag(names[0]))
    redirected = [_told(source, "ASK"), _told(source, "MOVED")]
    with Load(CacheManager(url=cluster.url + PATIENT, secret=SECRET), names, workers) as load:
        load.hit_again(names)
        cluster.move(slot, target, lambda: _more_calls(load, 300))
        assert cluster.owner(slot) is target
        load.hit_again(names)
        moved = _told(source, "MOVED")
        _more_calls(load, 300)
        assert _told(source, "MOVED") < moved + 150  # once told, remembered; some calls were under way
    assert (load.exceptions, load.wrong) == ([], [])
    assert load.manager.total().errors.keys() <= {"backend:TryAgainError"}  # a script whose keys were on both sides
    assert _told(source, "ASK") > redirected[0]
    assert moved > redirected[1]


def _told(node: Node, kind: str) -> int:
    """How often the node has answered with this error."""
    found: Any = node.client.info("errorstats")
    return int(found.get(f"errorstat_{kind}", {}).get("count", 0))


def _more_calls(load: Load, count: int) -> None:
    before = len(load.durations)
    poll(lambda: len(load.durations) >= before + count, "calls")


@pytest.mark.parametrize("workers", ["threads", "tasks"])
def test_scripts_forgotten_under_load_are_sent_again(cluster: Cluster, workers: str) -> None:
    names = _all(_by_master(cluster))
    manager = CacheManager(url=cluster.url + PATIENT, secret=SECRET)
    with Load(manager, names, workers) as load:
        for _ in range(5):
            load.hit_again(names)
            for node in cluster.nodes:
                node.client.script_flush()
        load.hit_again(names)
        assert dict(manager.total().errors) == {}
    assert (load.exceptions, load.wrong) == ([], [])


# -- a master that dies


@pytest.mark.parametrize("workers", ["threads", "tasks"])
def test_a_master_killed_under_load(tmp_path: Path, workers: str, record_property: Any) -> None:
    with Cluster(BINARY, tmp_path) as cluster:
        groups, victim = _by_master(cluster), cluster.nodes[0]
        everything, lost = _all(groups), groups[victim]
        manager = CacheManager(url=cluster.url, secret=SECRET)
        with Load(manager, everything, workers) as load:
            load.hit_again(everything)
            began = time.monotonic()
            cluster.kill(victim)
            poll(lambda: cluster.master_of(_tag(lost[0])) is not victim, "failover")
            record_property("failover", time.monotonic() - began)
            load.hit_again(lost, AGAIN)
            record_property("gap", time.monotonic() - began)
            load.hit_again(everything, AGAIN)
        record_property("calls", len(load.durations))
        record_property("longest", load.longest)
        assert (load.exceptions, load.wrong) == ([], [])
        assert load.longest < BLOCKED
        assert sum(manager.total().errors.values()) > 0  # it was felt
        _works_with_a_dead_node_in_the_url(cluster, everything)


def _works_with_a_dead_node_in_the_url(cluster: Cluster, names: list[str]) -> None:
    manager = CacheManager(url=cluster.url, secret=SECRET, on_error="raise")
    for name in names:
        manager.get_cache(name, backend="redis").clear()
        everyday(manager.get_cache(name))
    manager.close()


def test_the_direct_api_while_a_master_fails_over(tmp_path: Path, record_property: Any) -> None:
    with Cluster(BINARY, tmp_path) as cluster:
        groups, victim = _by_master(cluster), cluster.nodes[0]
        manager = CacheManager(url=cluster.url, secret=SECRET)
        callers = [_DirectCaller(manager.get_cache(name, backend="redis")) for name in _all(groups)]
        stop = Event()
        threads = [Thread(target=caller.work, args=(stop,)) for caller in callers]
        for thread in threads:
            thread.start()
        try:
            poll(lambda: all(caller.carried_out > 10 for caller in callers), "calls")
            cluster.kill(victim)
            poll(lambda: cluster.master_of(_tag(groups[victim][0])) is not victim, "failover")
            before = [caller.carried_out for caller in callers]
            carried_out = lambda: all(caller.carried_out > then + 2 for caller, then in zip(callers, before, strict=True))
            poll(carried_out, "calls after the failover", AGAIN)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
            manager.close()
        record_property("refused", sum(caller.refused for caller in callers))
        record_property("longest", max(caller.longest for caller in callers))
        assert [caller.problems for caller in callers] == [[]] * len(callers)
        assert max(caller.longest for caller in callers) < BLOCKED
        assert sum(caller.refused for caller in callers) > 0


class _DirectCaller:
    """Uses one namespace by key; `problems` has whatever it should not have met."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.problems: list[object] = []
        self.carried_out = self.refused = 0
        self.longest = 0.0

    def work(self, stop: Event) -> None:
        number = 0
        while not stop.wait(0.002):  # leaves a core to the servers
            number += 1
            try:
                self._lookups(number % 20)
                self._exact(number)
                self.carried_out += 1
            except CacheConnectionError:
                self.refused += 1
            except BaseException as error:
                self.problems.append(error)

    def _lookups(self, number: int) -> None:
        expected = answer_of(self.cache.name, number)
        try:
            self._timed(self.cache.set, f"{number}", expected)
            found = self._timed(self.cache.get, f"{number}", "default")
            many = self._timed(self.cache.get_many, [f"{number}", "absent"])
        except CacheConnectionError as error:
            raise AssertionError("only incr, add and lock may raise") from error
        if found not in (expected, "default") or many not in ({}, {f"{number}": expected}):
            self.problems.append((number, found, many))

    def _timed(self, verb: Callable[..., Any], *arguments: object) -> Any:
        began = time.perf_counter()
        try:
            return verb(*arguments)
        finally:
            self.longest = max(self.longest, time.perf_counter() - began)

    def _exact(self, number: int) -> None:
        if self.cache.incr("counter") < 1:
            self.problems.append("a counter that has not been counted")
        if self.cache.add(f"new {number}", number, ttl=60) is not True:
            self.problems.append(f"somebody else's {number}")
        with self.cache.lock("section") as lock:
            if lock.token < 1:
                self.problems.append("a lock without a token")
