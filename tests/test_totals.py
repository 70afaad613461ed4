"""Statistics over all processes: each number counted once, in batches, whatever fails in between."""

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
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache as once
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions

from codomyrmex_cache import Cache, CacheError, CacheManager, CacheStats, FileBasedBackend, InMemoryBackend, cached
from codomyrmex_cache import _totals as totals
from codomyrmex_cache._worth import Worth
from codomyrmex_cache.backends.base import namespace_prefix
from codomyrmex_cache.backends.redis import RedisBackend
from codomyrmex_cache.errors import CacheBackendError, CacheConfigurationError, CircuitOpenError
from codomyrmex_cache.stats import SUMMED
from tests.conftest import Server, run_python

PATIENCE = 30.0
"""Seconds after which a test gives up on a thread or process; no assertion depends on it."""

KINDS = ["", ":", "error:", "max:x", "backend:E", "a b\r\n", "\0", "\xfc\u4e2d", "\ud800", "k" * 10_000]


class Keeping:
    """Totals in a dict that several stores may share, as processes share a server."""

    def __init__(self, *arguments: Any, kept: dict[bytes, dict[str, float]] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kept = {} if kept is None else kept
        self.additions: list[Mapping[str, float]] = []
        self.reads = 0
        self.before: Callable[[str], None] = lambda verb: None
        self.after: Callable[[str], None] = lambda verb: None

    def add_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> None:
        self.additions.append(amounts)
        self.before("add_totals")
        mine = self.kept.setdefault(prefix, {})
        for name, amount in amounts.items():
            before = mine.get(name, 0)
            mine[name] = max(before, amount) if name.startswith("max:") else before + amount
        self.after("add_totals")

    def totals(self, prefix: bytes) -> Mapping[str, float]:
        self.reads += 1
        self.before("totals")
        return dict(self.kept.get(prefix, {}))


class Store(Keeping, InMemoryBackend):
    """In memory."""


class Files(Keeping, FileBasedBackend):
    """Of bytes, without async verbs."""


class Twins(Store):
    """With async verbs for the totals."""

    twins = 0

    async def aadd_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> None:
        self.twins += 1
        await asyncio.sleep(0)
        self.add_totals(prefix, amounts)

    async def atotals(self, prefix: bytes) -> Mapping[str, float]:
        self.twins += 1
        await asyncio.sleep(0)
        return self.totals(prefix)


def failing(verb: str, error: BaseException) -> Callable[[str], None]:
    def fail(called: str) -> None:
        if called == verb:
            raise error

    return fail


def settle(store: Keeping) -> None:
    store.before = store.after = lambda verb: None


@pytest.fixture(autouse=True)
def _flusher(monkeypatch: pytest.MonkeyPatch) -> totals._Flusher:
    """One of this test's own; its thread ends with the test's caches."""
    flusher = totals._Flusher()
    monkeypatch.setattr(totals, "_flusher", lambda: flusher)
    return flusher


def cache_on(store: object, **options: Any) -> Cache:
    return CacheManager(**options).get_cache("n", backend=store)  # type: ignore[arg-type]


def count(cache: Cache, hits: int) -> None:
    cache.space  # its first use
    cache._direct.add("hits", hits)


def tally_of(cache: Cache) -> totals.Tally:
    cache.space
    assert cache._tally is not None
    return cache._tally


def until(answer: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not answer():
        assert time.monotonic() < deadline
        time.sleep(0.005)  # another thread or process is at work: polling, nothing is assumed from the time passed


# -- what is answered


def test_the_scope_is_this_process_unless_all_is_asked_for() -> None:
    store = Store()
    one, other = cache_on(store), cache_on(store)
    count(one, 2)
    count(other, 3)
    assert (one.stats().hits, one.stats("process").hits, one.stats(scope="all").hits) == (2, 2, 2)
    assert (other.stats().hits, other.stats(scope="all").hits) == (3, 5)
    assert one.stats(scope="all").hits == 5


def test_all_of_a_memory_namespace_is_this_process() -> None:
    cache = cache_on("in_memory")
    count(cache, 2)
    assert cache.stats(scope="all") == cache.stats()
    assert cache.stats().hits == 2


def test_a_shared_store_without_totals_says_so(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path)
    cache = manager.get_cache("files", backend="file_based")
    for ask in (
        lambda: cache.stats(scope="all"),
        lambda: asyncio.run(cache.astats(scope="all")),
        lambda: manager.stats("files", scope="all"),
        lambda: manager.stats(scope="all"),
        lambda: manager.total(scope="all"),
    ):
        with pytest.raises(CacheConfigurationError, match=r"'files'.*FileBasedBackend keeps no totals.*redis"):
            ask()
    assert manager.total().calls == 0
    manager.close()


@pytest.mark.parametrize("scope", ["host", "", None, 1])
def test_an_unknown_scope_is_an_error(scope: Any) -> None:
    with pytest.raises(CacheConfigurationError, match="scope="):
        cache_on("in_memory").stats(scope)
    with pytest.raises(CacheConfigurationError, match="scope="):
        asyncio.run(cache_on(Store()).astats(scope))


def fill(cache: Cache, factor: int) -> CacheStats:
    """Every counter gets a number of its own; answers what they are."""
    counters = cache.counters("a.function")
    for place, name in enumerate(SUMMED, 1):
        counters.add(name, place * factor)
    counters.load_seconds_max = 0.25 * factor
    for place, kind in enumerate(KINDS, 1):
        for _ in range(place * factor):
            counters.error(kind)
    for place, model in enumerate(("m", ""), 1):
        counters.appraise = lambda cost, model=model, place=place: Worth(model, 8 * place, 4 * place, cost=cost)  # type: ignore[misc]
        counters.spend(None, sharing=factor)
        counters.spend(0.25, sharing=2 * factor)
    return cache.stats()


@pytest.mark.parametrize("where", ["memory", "redis"])
def test_every_counter_and_every_kind_of_error_is_summed(where: str, any_redis: Server) -> None:
    any_redis.flush()
    store = Store()
    one, other = (cache_on(store if where == "memory" else RedisBackend(any_redis.url)) for _ in range(2))
    parts = [fill(one, 1), fill(other, 2)]
    assert {field.name for field in fields(CacheStats)} == {*SUMMED, "load_seconds_max", "size", "errors", "backend", "models"}
    assert all(getattr(parts[0], name) for name in SUMMED)
    assert parts[1].models["m"].unpriced == 2
    assert (parts[1].cost_saved, parts[1].tokens_spent) == (2 * 4 * 0.25, 2 * (12 + 24))
    expected = replace(CacheStats.merge(parts), size=other.size())
    one.close()
    assert replace(other.stats(scope="all"), backend="") == replace(expected, backend="")
    assert replace(asyncio.run(closing(other)), backend="") == replace(expected, backend="")
    assert expected.load_seconds_max == 0.5


async def closing(cache: Cache) -> CacheStats:
    stats = await cache.astats(scope="all")
    await cache.aclose()
    return stats


def test_numbers_are_whole_where_they_count() -> None:
    store = Store(kept={namespace_prefix("n"): {"hits": 2.0, "error:x": 1.0, "load_seconds": 1, "of a later version": 7.0}})
    stats = cache_on(store).stats(scope="all")
    assert (type(stats.hits), type(stats.errors["x"]), type(stats.load_seconds), type(stats.misses)) == (int, int, float, int)
    assert (stats.hits, dict(stats.errors), stats.load_seconds) == (2, {"x": 1}, 1.0)


def test_a_manager_asks_for_all_its_namespaces() -> None:
    store = Store()
    manager, others = CacheManager(backend=store), CacheManager(backend=store)
    for each in (manager, others):
        for name, hits in (("a", 1), ("b", 10)):
            count(each.get_cache(name), hits)
    others.close()
    assert manager.stats("a", scope="all").hits == 2
    assert {name: stats.hits for name, stats in manager.stats(scope="all").items()} == {"a": 2, "b": 20}
    assert (manager.total(scope="all").hits, manager.total().hits) == (22, 11)
    assert manager.stats("never used here", scope="all") == CacheStats()


def test_the_state_of_the_breaker_is_told_and_merged() -> None:
    def merged(*states: str) -> str:
        return CacheStats.merge([CacheStats(backend=state) for state in states]).backend

    assert cache_on("in_memory").stats().backend == ""
    assert merged() == merged("") == ""
    assert merged("", "closed") == "closed"
    assert merged("half_open", "closed", "") == "half_open"
    assert merged("closed", "open", "half_open") == "open"
    store = Store()
    cache = cache_on(store)
    for state, told in (("half_open", "half_open"), ("of another kind", ""), (3, "")):
        store.state = state  # type: ignore[attr-defined]
        assert cache.stats().backend == cache.stats(scope="all").backend == told


def test_a_lost_server_is_told(tmp_path: Path) -> None:
    cache = cache_on("redis", url=f"unix://{tmp_path}/none.sock")
    assert cache.stats().backend == "closed"
    for _ in range(3):
        cache.get("k")
    assert cache.stats().backend == "open"


# -- when it is added


def test_ten_thousand_hits_write_nothing_and_closing_writes_once() -> None:
    store = Store()
    manager = CacheManager()
    function = cached("n", backend=store, manager=manager)(lambda x: x)
    for _ in range(10_001):
        function(1)
    assert (store.additions, store.reads) == ([], 0)
    manager.close()
    assert len(store.additions) == 1
    assert (store.additions[0]["hits"], store.additions[0]["misses"]) == (10_000, 1)
    manager.close()
    assert len(store.additions) == 1  # nothing has changed


def test_the_thread_adds_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "_SECONDS", 0.05)
    store = Store()
    cache = cache_on(store)
    cache.set("k", 1)
    began = time.monotonic()
    while time.monotonic() < began + 0.3 or not store.additions:
        cache.get("k")
    beats = (time.monotonic() - began) / 0.05
    hits = cache.stats().hits
    assert 1 <= len(store.additions) <= beats + 1 < hits
    until(lambda: store.kept[namespace_prefix("n")]["hits"] == hits)
    settled = len(store.additions)
    assert sum(amounts.get("hits", 0) for amounts in store.additions) == hits
    threading.Event().wait(0.15)  # three beats in which nothing happens: that is what must not be added
    assert len(store.additions) == settled


def test_exact_for_readers_while_threads_count_and_add() -> None:
    store = Store()
    store.after = lambda verb: time.sleep(0.001)  # an addition is on its way for longer than a read takes
    cache = cache_on(store)
    stop, wrong = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            cache._direct.add("hits")

    def flush() -> None:
        while not stop.wait(0.003):
            tally_of(cache).flush()

    def read() -> None:
        while not stop.is_set():
            before = cache.stats().hits
            found = cache.stats(scope="all").hits
            if not before <= found <= cache.stats().hits:
                wrong.append((before, found))

    cache.stats()
    threads = [threading.Thread(target=target) for target in (work, work, flush, read, read)]
    for thread in threads:
        thread.start()
    stop.wait(1.0)  # the time in which they get in each other's way
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert wrong == []
    assert cache.stats(scope="all").hits == cache.stats().hits == store.kept[namespace_prefix("n")]["hits"] > 0


def test_a_read_waits_for_what_is_on_its_way_and_is_repeated_after_it() -> None:
    cache = cache_on(Store())
    count(cache, 1)
    tally, prefix = tally_of(cache), namespace_prefix("n")
    adding, reading = tally._flushing(), tally._reading()
    assert next(reading) == ("totals", prefix)
    assert next(adding) == ("totals", prefix)
    assert adding.send({}) == ("add_totals", prefix, {"hits": 1})
    assert reading.send({})[0] == "pause"  # what it has read may or may not have had that
    with pytest.raises(StopIteration):
        adding.send(None)
    count(cache, 5)
    assert reading.send(None) == ("totals", prefix)
    assert reading.send({"hits": 1}) == ("add_totals", prefix, {"hits": 5})
    with pytest.raises(StopIteration) as end:
        reading.send(None)
    assert end.value.value == totals.Found({"hits": 6})


def test_a_reader_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "_PAUSE", 0.0)
    cache = cache_on(Store())
    count(cache, 1)
    adding = tally_of(cache)._flushing()
    next(adding)
    adding.send({})
    count(cache, 1)
    assert cache.stats(scope="all").hits == 1


# -- what fails


@pytest.mark.parametrize(
    ("moment", "verb", "error", "added"),
    [
        ("before", "totals", TimeoutError(), True),  # nothing was sent
        ("before", "totals", redis.exceptions.ConnectionError(), True),
        ("before", "add_totals", redis.exceptions.ReadOnlyError(), True),  # the server has said no
        ("before", "add_totals", CircuitOpenError("open"), True),
        ("before", "add_totals", CacheError("no"), True),
        ("after", "add_totals", TimeoutError(), True),  # nobody knows, and it had been added
        ("after", "add_totals", redis.exceptions.TimeoutError(), True),
        ("before", "add_totals", redis.exceptions.ConnectionError(), False),  # nobody knows, and it had not
        ("before", "add_totals", ValueError(), False),
    ],
)
def test_once_at_most(moment: str, verb: str, error: Exception, added: bool) -> None:
    store = Store()
    cache = cache_on(store)
    cache._direct.load(0.5)
    count(cache, 3)
    tally = tally_of(cache)
    setattr(store, moment, failing(verb, error))
    assert tally.flush() is False
    settle(store)
    count(cache, 4)
    assert tally.flush() is True
    kept = store.kept[namespace_prefix("n")]
    assert kept["hits"] == (7 if added else 4)
    assert kept["max:load_seconds_max"] == 0.5  # the largest may come twice
    assert sum(cache.stats().errors.values()) == (not isinstance(error, CircuitOpenError))
    assert cache.stats().hits == 7


def test_an_interrupted_addition_is_not_repeated() -> None:
    store = Store()
    cache = cache_on(store)
    count(cache, 3)
    store.after = failing("add_totals", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        cache.stats(scope="all")
    settle(store)
    assert cache.stats(scope="all").hits == 3


@pytest.mark.parametrize("ask", [lambda cache: cache.stats(scope="all"), lambda cache: asyncio.run(cache.astats(scope="all"))])
def test_a_failing_store_is_counted_and_this_process_answers(ask: Callable[[Cache], CacheStats]) -> None:
    store = Store()
    bearing, raising = cache_on(store), cache_on(store, on_error="raise")
    count(bearing, 2)
    count(raising, 3)
    store.before = failing("totals", redis.exceptions.ConnectionError("gone"))
    stats = ask(bearing)
    assert (stats.hits, dict(stats.errors)) == (2, {"backend:ConnectionError": 1})
    with pytest.raises(CacheBackendError, match="keep totals"):
        ask(raising)
    assert raising.stats().hits == 3
    settle(store)
    assert (ask(bearing).hits, ask(raising).hits) == (2, 5)


def test_a_store_that_takes_nothing_still_tells() -> None:
    store = Store(kept={namespace_prefix("n"): {"hits": 10}})
    cache = cache_on(store)
    count(cache, 1)
    store.before = failing("add_totals", redis.exceptions.ReadOnlyError("a replica"))
    assert (cache.stats(scope="all").hits, cache.stats(scope="all").hits) == (11, 11)
    assert cache.stats().errors == {"backend:ReadOnlyError": 2}


def test_closing_bears_a_failing_store() -> None:
    store = Store()
    cache = cache_on(store, on_error="raise")
    count(cache, 1)
    store.before = failing("totals", TimeoutError())
    cache.close()
    asyncio.run(cache.aclose())
    assert cache.stats().errors == {"totals:TimeoutError": 2}


def test_the_end_gives_up_after_two_failures(_flusher: totals._Flusher) -> None:
    stores = [Store() for _ in range(20)]
    caches = [cache_on(store) for store in stores]
    for cache, store in zip(caches, stores, strict=True):
        count(cache, 1)
        store.before = failing("totals", TimeoutError())
    _flusher.finish()
    assert sum(store.reads for store in stores) == 2
    for store in stores:
        settle(store)
    _flusher.finish()
    assert [len(store.additions) for store in stores] == [1] * 20


def test_the_end_tries_twice(_flusher: totals._Flusher) -> None:
    stores = [Store(), Store()]
    caches = [cache_on(store) for store in stores]
    for cache in caches:
        count(cache, 1)

    def fail_once(verb: str) -> None:
        settle(stores[0])
        raise TimeoutError

    stores[0].before = fail_once
    _flusher.finish()
    assert [store.kept[namespace_prefix("n")]["hits"] for store in stores] == [1, 1]


# -- event loops


def test_event_loops_use_the_async_verbs() -> None:
    store = Twins()
    cache = cache_on(store)
    count(cache, 2)
    assert asyncio.run(cache.astats()).hits == 2
    assert store.twins == 0
    assert asyncio.run(cache.astats(scope="all")).hits == 2
    assert store.twins == 2
    count(cache, 1)
    asyncio.run(cache.aclose())
    assert (store.twins, store.kept[namespace_prefix("n")]["hits"]) == (4, 3)


def test_blocking_verbs_run_beside_the_loop(tmp_path: Path) -> None:
    store = Files(tmp_path / "files")
    cache = cache_on(store)
    threads = set()
    store.before = lambda verb: threads.add(threading.current_thread())
    count(cache, 2)
    stats = asyncio.run(cache.astats(scope="all"))
    assert (stats.hits, stats.size) == (2, 0)
    assert threading.current_thread() not in threads
    assert threads
    cache.close()


def test_a_cancelled_addition_is_not_repeated() -> None:
    class Slow(Twins):
        async def aadd_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> None:
            self.add_totals(prefix, amounts)
            sent.set()
            await asyncio.Event().wait()

    async def cancelled() -> None:
        asking = asyncio.create_task(cache.astats(scope="all"))
        await sent.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    sent = asyncio.Event()
    cache = cache_on(Slow())
    count(cache, 2)
    asyncio.run(cancelled())
    assert cache.stats(scope="all").hits == 2


# -- what is kept alive


def test_a_forgotten_cache_is_collected_and_its_numbers_are_added(
    monkeypatch: pytest.MonkeyPatch, _flusher: totals._Flusher
) -> None:
    def use() -> weakref.ref[Cache]:
        manager = CacheManager()
        cache = manager.get_cache("n", backend=store)
        function = cached("n", manager=manager)(lambda x: (cache, x))  # which keeps the cache, as any that uses it does
        function.peek(1)
        count(cache, 3)
        return weakref.ref(cache)

    store = Store()
    gone = use()
    gc.collect()
    assert (gone(), store.additions) == (None, [])
    monkeypatch.setattr(totals, "_SECONDS", 0.01)
    with _flusher._changed:
        _flusher._changed.notify()
    until(lambda: not _flusher._running)
    assert store.kept[namespace_prefix("n")]["hits"] == 3
    assert _flusher._tallies == []
    again = cache_on(store)
    count(again, 1)
    assert _flusher._running  # a thread for the next one


def test_a_child_of_a_process_with_nothing_left_begins_with_its_first_namespace(
    monkeypatch: pytest.MonkeyPatch, _flusher: totals._Flusher
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(_flusher, "_begin", lambda: begun.append("thread") or setattr(_flusher, "_running", True))
    count(cache_on(Store()), 1)
    _flusher._tallies.clear()
    _flusher.after_fork()
    _flusher.begin_anew()
    assert begun == ["thread"]
    count(cache_on(Store()), 1)
    count(cache_on(Store()), 1)
    assert begun == ["thread", "thread"]


def test_memory_alone_starts_no_thread() -> None:
    source = """
import threading
from codomyrmex_cache import cached, get_cache
cached(lambda x: x)(1)
get_cache("n").stats(scope="all")
print(threading.active_count())
"""
    assert run_python(source) == "1\n"


# -- real processes on a real server

USER = """
import json, os, sys, threading, time
from codomyrmex_cache import CacheManager, cached
manager = CacheManager(url=os.environ["SERVER"], backend="redis")
cache = manager.get_cache("n")
"""
"""How every program here begins."""


def test_redis_keeps_totals_by_namespace_apart_from_entries(any_redis: Server) -> None:
    any_redis.flush()
    manager, others = (CacheManager(url=any_redis.url, backend="redis") for _ in range(2))
    for each in (manager, others):
        for name, misses in (("a", 1), ("a:b", 10)):
            for _ in range(misses):
                each.get_cache(name).get("k")
    others.close()
    assert {name: stats.misses for name, stats in manager.stats(scope="all").items()} == {"a": 2, "a:b": 20}
    assert manager.get_cache("a").keys() == []
    manager.get_cache("a").clear()
    assert manager.stats("a", scope="all").misses == 2
    assert manager.stats("a", scope="all").backend == "closed"
    manager.close()


@pytest.mark.parametrize("processes", [2, 4])
def test_the_sum_of_all_is_what_all_did(processes: int, valkey: Server) -> None:
    source = (
        USER
        + """
@cached("n", manager=manager, version=1, name="f", errors={KeyError: "1m"})
def function(x):
    if x == 7:
        raise KeyError(x)
    return [x]
def work():
    for x in range(100):
        try:
            function(x % 20)
        except KeyError:
            pass
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
cache.get("absent"), cache.set("k", 1), cache.set("l", object()), cache.delete("k")
stats = cache.stats()
told = {name: getattr(stats, name) for name in stats.__slots__ if name not in ("errors", "models")}
print(json.dumps(told | {"errors": dict(stats.errors)}))
"""
    )
    told: list[CacheStats] = []

    def start() -> None:
        told.append(CacheStats(**json.loads(run_python(source, SERVER=valkey.url))))

    threads = [threading.Thread(target=start) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(told) == processes
    cache = cache_on("redis", url=valkey.url)
    expected, found = CacheStats.merge(told), cache.stats(scope="all")
    inexact = {name: pytest.approx(getattr(expected, name)) for name in ("load_seconds", "load_seconds_max", "seconds_saved")}
    assert {field.name: getattr(found, field.name) for field in fields(found)} == {
        **{field.name: getattr(expected, field.name) for field in fields(expected)}, **inexact
    }  # fmt: skip
    assert (found.calls, sum(found.errors.values())) == (301 * processes, processes)
    cache.close()


def test_a_forked_child_adds_its_own_and_nothing_of_its_parents(valkey: Server) -> None:
    source = (
        USER
        + """
for _ in range(5):
    cache.get("k")
child = os.fork()
if child == 0:
    for _ in range(3):
        cache.get("k")
    sys.exit()
os.waitpid(child, 0)
print(cache.space.backend.totals(cache.space.prefix)["misses"], cache.stats(scope="all").misses, cache.stats().misses)
"""
    )
    assert run_python(source, SERVER=valkey.url) == "3.0 8 5\n"


def test_a_forked_child_has_a_thread_of_its_own(valkey: Server) -> None:
    source = (
        USER
        + """
from codomyrmex_cache import _totals
_totals._SECONDS = 0.05
for _ in range(5):
    cache.get("k")
def until(misses):
    for _ in range(3000):
        if cache.space.backend.totals(cache.space.prefix).get("misses") == misses:
            return
        time.sleep(0.01)  # the thread is at work
    sys.exit(f"never {misses}")
until(5)
child = os.fork()
if child == 0:
    for _ in range(3):
        cache.get("k")
    until(8)
    os._exit(0)
print(os.waitpid(child, 0)[1], cache.stats(scope="all").misses)
"""
    )
    assert run_python(source, SERVER=valkey.url) == "0 8\n"


@once
def _served(url: str) -> Cache:
    return cache_on("redis", url=url)


def miss(url: str, times: int) -> int:
    """What a worker does."""
    for _ in range(times):
        _served(url).get("absent")
    return os.getpid()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_a_pool_add_theirs_when_they_end(method: str, valkey: Server) -> None:
    source = (
        USER
        + f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from tests.test_totals import miss
url = os.environ["SERVER"]
if __name__ == "__main__":
    miss(url, 1)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r})) as pool:
        list(pool.map(miss, [url] * 10, range(10)))
    print(cache.space.backend.totals(cache.space.prefix)["misses"], cache.stats().calls)
"""
    )
    assert run_python(source, SERVER=valkey.url) == "45.0 0\n"


@pytest.mark.parametrize("trouble", ["absent", "frozen"])
def test_a_program_ends_without_complaint_when_its_server_is_away(trouble: str, own_server: Server) -> None:
    source = (
        USER
        + """
caches = [manager.get_cache(str(number)) for number in range(20)]
for each in caches:
    each.get("k")
print(sum(each.stats().misses for each in caches))
"""
    )
    own_server.stop() if trouble == "absent" else own_server.signal(signal.SIGSTOP)
    try:
        done = subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "SERVER": own_server.url},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    finally:
        if trouble == "frozen":
            own_server.signal(signal.SIGCONT)
    assert (done.returncode, done.stdout) == (0, "20\n")
    assert "Traceback" not in done.stderr
