"""One load for all processes; what becomes of it when its leader dies, fails, is interrupted, or is overtaken."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from codomyrmex_cache import Cache, CacheManager, Entry, cached
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends.file_based import FileBasedBackend
from codomyrmex_cache.backends.in_memory import InMemoryBackend
from codomyrmex_cache.errors import CacheTimeoutError
from codomyrmex_cache.stats import Counters
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server, run_python
from tests.workers import PATIENCE, Store, Worker, function_on, watch

TTL = 60.0


@pytest.fixture(params=["file_based", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store for several processes."""
    url = request.getfixturevalue("valkey").url if request.param == "redis" else ""
    return Store(request.param, str(tmp_path), url)


@pytest.fixture
def both(tmp_path: Path, valkey: Server) -> list[Store]:
    """Both kinds, for tests that take long, to run side by side."""
    stores = [Store("file_based", str(tmp_path / "file")), Store("redis", str(tmp_path / "redis"), valkey.url)]
    for each in stores:
        os.mkdir(each.directory)
    return stores


def _on_each(work: Callable[[Store], Any], stores: list[Store]) -> list[Any]:
    with ThreadPoolExecutor(len(stores)) as pool:
        return list(pool.map(work, stores))


def _workers(number: int, store: Store, stack: ExitStack) -> list[Worker]:
    workers = [stack.enter_context(Worker(store)) for _ in range(number)]
    for worker in workers:
        worker.ready()
    return workers


# -- one execution


def test_200_callers_in_8_processes_cause_one_execution(store: Store) -> None:
    with ExitStack() as stack:
        workers = _workers(8, store, stack)
        for worker in workers:
            worker.do("crowd", namespace="crowd", threads=25)
        firsts = [worker.event() for worker in workers]  # the load goes on until all have come
        leaders = [worker for worker, first in zip(workers, firsts, strict=True) if first == ["entered"]]
        assert sorted(firsts) == [["entered"], *[["waiting"]] * 7]
        leaders[0].give("the answer")
        assert [worker.event() for worker in workers] == [["answer", [["the answer", 25]]]] * 8
    assert store.executions == {"k": 1}


def test_2400_calls_of_16_processes_on_40_keys(store: Store) -> None:
    with ExitStack() as stack:
        workers = _workers(16, store, stack)
        for seed, worker in enumerate(workers):
            worker.do("many", namespace="many", calls=150, keys=40, seed=seed)
        firsts = [worker.event() for worker in workers]
        lasts = [worker.event() if first == ["waiting"] else first for worker, first in zip(workers, firsts, strict=True)]
    assert lasts == [["answer", []]] * 16  # nothing wrong, nothing raised
    assert firsts != lasts  # they met
    assert len(store.executions) == 40
    assert store.executions.total() <= 80


# -- a leader that is gone, frozen, slow, or fails


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_next_caller_answers_within_five_seconds_of_a_leader_that_is_gone(how: int, both: list[Store]) -> None:
    def work(store: Store) -> None:
        with Worker(store) as leader, Worker(store) as other:
            leader.do("call", namespace="gone")
            assert leader.event() == ["entered"]
            other.do("call", namespace="gone")
            assert other.event() == ["waiting"]
            leader.signal(how)
            gone_at = time.monotonic()
            assert other.event() == ["entered"]
            other.give("of the other")
            assert other.event() == ["answer", "of the other"]
            assert time.monotonic() - gone_at < 5.0
            if how == signal.SIGSTOP:
                leader.signal(signal.SIGCONT)
                leader.give("of the leader")
                assert leader.event() == ["answer", "of the leader"]
                assert leader.asked("call", namespace="gone") == "of the other"
            assert other.asked("call", namespace="gone") == "of the other"
        assert store.executions == {"k": 2}

    _on_each(work, both)


def test_a_leader_that_works_for_20_seconds_keeps_its_lease(both: list[Store]) -> None:
    def work(store: Store) -> None:
        with Worker(store) as leader, Worker(store) as other:
            leader.do("call", namespace="slow")
            assert leader.event() == ["entered"]
            other.do("call", namespace="slow")
            assert other.event() == ["waiting"]
            with pytest.raises(queue.Empty):
                other.event(within=20.0)
            leader.give("late")
            assert other.event() == ["answer", "late"]
            assert leader.event() == ["answer", "late"]
        assert store.executions == {"k": 1}

    _on_each(work, both)


def test_waiters_do_not_queue_behind_a_load_that_fails(store: Store) -> None:
    with ExitStack() as stack:
        leader, *others = _workers(5, store, stack)
        leader.do("call", namespace="failing")
        assert leader.event() == ["entered"]
        for other in others:
            other.do("call", namespace="failing")
        assert [other.event() for other in others] == [["waiting"]] * 4
        leader.give(["raise"])
        assert leader.event() == ["raised", "ValueError"]
        assert [other.event() for other in others] == [["entered"]] * 4  # all at once: none has been let go on yet
        for other in others:
            other.give(["raise"])
        assert [other.event() for other in others] == [["raised", "ValueError"]] * 4
        leader.do("call", namespace="failing")
        assert leader.event() == ["entered"]  # a failure is not stored
    assert store.executions == {"k": 6}


def test_one_of_those_who_waited_for_a_failure_stores_its_answer(store: Store) -> None:
    with ExitStack() as stack:
        leader, *others = _workers(3, store, stack)
        leader.do("call", namespace="failing")
        assert leader.event() == ["entered"]
        for other in others:
            other.do("call", namespace="failing")
        assert [other.event() for other in others] == [["waiting"]] * 2
        leader.give(["raise"])
        assert leader.event() == ["raised", "ValueError"]
        assert [other.event() for other in others] == [["entered"]] * 2
        for number, other in enumerate(others):
            other.give(number)
        assert [other.event() for other in others] == [["answer", 0], ["answer", 1]]
        assert leader.asked("call", namespace="failing") in (0, 1)


@pytest.mark.parametrize("verb", ["call", "get_or_load"])
def test_an_interrupted_leader_gives_its_lease_back_at_once(store: Store, verb: str) -> None:
    with Worker(store) as leader:
        leader.do(verb, namespace="interrupted")
        assert leader.event() == ["entered"]
        assert _lease(store, "interrupted", verb) == 0
        leader.signal(signal.SIGINT)
        assert leader.event() == ["raised", "KeyboardInterrupt"]
        assert _lease(store, "interrupted", verb) > 0


@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
def test_a_leader_whose_event_loop_ends_gives_its_lease_back_at_once(store: Store, how: str) -> None:
    with Worker(store) as leader:
        leader.do("cancelled", namespace="ended", after_line=how == "cancelled")
        assert leader.event() == ["entered"]
        assert _lease(store, "ended", "call") == 0
        if how == "cancelled":
            leader.give("now")
            assert leader.event() == ["raised", "CancelledError"]
        else:
            leader.signal(signal.SIGINT)
            assert leader.event() == ["raised", "KeyboardInterrupt"]
        assert _lease(store, "ended", "call") > 0


def test_a_caller_cancelled_while_it_gets_the_lease_does_not_keep_it(store: Store) -> None:
    manager = store.manager()
    cache = manager.get_cache("early", store.backend)
    backend: Any = cache.space.backend

    async def never(_: object) -> None:
        raise AssertionError("cancelled before")

    async def main() -> None:
        got, go_on = asyncio.Event(), asyncio.Event()
        where, name = (backend._wire, "asend") if store.backend == "redis" else (backend, "abegin")
        begin = getattr(where, name)

        async def slow(*arguments: Any) -> Any:  # the lease is there, the answer is on its way
            begun = await begin(*arguments)
            got.set()
            await go_on.wait()
            return begun

        setattr(where, name, slow)
        task = asyncio.ensure_future(function_on(manager, "early", never)("k"))
        await got.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.001)
        await manager.aclose()

    asyncio.run(main())
    assert _lease(store, "early", "call") > 0


def _lease(store: Store, namespace: str, verb: str) -> int:
    """The token of the lease that a caller gets now; it is given back."""
    manager = store.manager()
    cache = manager.get_cache(namespace, store.backend)
    text = function_on(manager, namespace, str).key("k") if verb == "call" else "k"
    key, backend = cache.space.stored(text), cache.space.backend
    begun = backend.begin(key, cache.space.scopes(text), 4.0)  # type: ignore[attr-defined]
    backend.end(key, begun, False)  # type: ignore[attr-defined]
    cache.close()
    return int(begun.lease)


# -- overtaken by an invalidation


class Threaded:
    """A leader in a thread of this process, with a manager of its own; speaks like a `Worker`."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager
        self._events: queue.Queue[list[Any]] = queue.Queue()
        self._words: queue.Queue[Any] = queue.Queue()

    def _load(self, _: object = None) -> Any:
        self._events.put(["entered"])
        return self._words.get(timeout=PATIENCE)

    def _called(self, verb: str, namespace: str, x: str = "k", **options: Any) -> Any:
        if verb == "call":
            return function_on(self._manager, namespace, self._load, **options)(x)
        return self._manager.get_cache(namespace).get_or_load(x, self._load)

    def do(self, verb: str, **arguments: Any) -> None:
        work = lambda: self._events.put(["answer", self._called(verb, **arguments)])
        threading.Thread(target=work, daemon=True).start()

    def give(self, word: object) -> None:
        self._words.put(word)

    def event(self, within: float = PATIENCE) -> list[Any]:
        return self._events.get(timeout=within)

    def asked(self, verb: str, **arguments: Any) -> Any:
        self.do(verb, **arguments)
        kind, *rest = self.event()
        assert kind == "answer"
        return rest[0]


class Sides(NamedTuple):
    """A leader, and a manager elsewhere that uses the same store."""

    leader: Any
    manager: CacheManager
    backend: Any


@pytest.fixture(scope="module")
def _idle_workers(tmp_path_factory: pytest.TempPathFactory, _valkey: Server) -> Iterator[Callable[[str], tuple[Store, Worker]]]:
    """One worker for each backend, for all tests that leave it in good health."""
    made: dict[str, tuple[Store, Worker]] = {}
    with ExitStack() as stack:

        def worker(backend: str) -> tuple[Store, Worker]:
            if backend not in made:
                store = Store(backend, str(tmp_path_factory.mktemp(backend)), _valkey.url if backend == "redis" else "")
                made[backend] = store, stack.enter_context(Worker(store))
            return made[backend]

        yield worker


WHERE = ["process, file_based", "process, redis", "manager, file_based", "manager, redis", "manager, in_memory"]


@pytest.fixture(params=WHERE)
def sides(
    request: pytest.FixtureRequest, tmp_path: Path, _idle_workers: Callable[[str], tuple[Store, Worker]]
) -> Iterator[Sides]:
    """The leader in another process, or with another manager of this one."""
    kind, backend = request.param.split(", ")
    if kind == "process":
        store, worker = _idle_workers(backend)
        yield Sides(worker, manager := store.manager(), backend)
        manager.close()
        return
    url = request.getfixturevalue("valkey").url if backend == "redis" else ""
    store = Store(backend, str(tmp_path), url)
    managers = [store.manager(), store.manager()]
    shared = InMemoryBackend() if backend == "in_memory" else backend
    yield Sides(Threaded(managers[0]), managers[1], shared)
    for each in managers:
        each.close()


@pytest.fixture
def namespace(request: pytest.FixtureRequest, sides: Sides) -> str:
    """The test's own, on both sides."""
    name = request.node.name
    if isinstance(sides.leader, Threaded):
        sides.leader._manager.get_cache(name, sides.backend)
    sides.manager.get_cache(name, sides.backend)
    return str(name)


OF_FUNCTIONS: dict[str, Callable[[Any], object]] = {
    "invalidate": lambda f: f.invalidate("k"),
    "clear": lambda f: f.clear(),
    "Cache.clear": lambda f: f.cache.clear(),
    "Cache.delete": lambda f: f.cache.delete(f.key("k")),
    "Cache.invalidate_tags": lambda f: f.cache.invalidate_tags("mine", "another"),
    "seed": lambda f: f.seed("explicit", "k"),
    "refresh": lambda f: f.refresh("k"),
}


@pytest.mark.parametrize("verb", OF_FUNCTIONS)
def test_a_functions_load_is_not_stored_after_an_invalidation_elsewhere(verb: str, sides: Sides, namespace: str) -> None:
    loads = iter(["explicit" if verb == "refresh" else "fresh", "never"])
    function = function_on(sides.manager, namespace, lambda _: next(loads), tags=["mine"])
    sides.leader.do("call", namespace=namespace, tags=["mine"])
    assert sides.leader.event() == ["entered"]
    OF_FUNCTIONS[verb](function)
    sides.leader.give("overtaken")
    assert sides.leader.event() == ["answer", "overtaken"]
    expected = "explicit" if verb in ("seed", "refresh") else "fresh"
    assert function("k") == expected
    assert sides.leader.asked("call", namespace=namespace, tags=["mine"]) == expected


OF_COROUTINE_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "ainvalidate": lambda f: f.ainvalidate("k"),
    "aclear": lambda f: f.aclear(),
    "aseed": lambda f: f.aseed("explicit", "k"),
    "arefresh": lambda f: f.arefresh("k"),
    "Cache.ainvalidate_tags": lambda f: f.cache.ainvalidate_tags("mine"),
}


@pytest.mark.parametrize("verb", OF_COROUTINE_FUNCTIONS)
@pytest.mark.parametrize("backend", ["file_based", "redis"])
def test_a_coroutine_functions_load_is_not_stored_after_an_invalidation_elsewhere(
    backend: str, verb: str, request: pytest.FixtureRequest, _idle_workers: Callable[[str], tuple[Store, Worker]]
) -> None:
    store, leader = _idle_workers(backend)
    namespace, manager = request.node.name, store.manager()
    manager.get_cache(namespace, backend)
    loads = iter(["explicit" if verb == "arefresh" else "fresh", "never"])

    async def load(_: object) -> str:
        return next(loads)

    async def main() -> str:
        function = function_on(manager, namespace, load, tags=["mine"])
        await OF_COROUTINE_FUNCTIONS[verb](function)
        leader.give("overtaken")
        assert await asyncio.to_thread(leader.event) == ["answer", "overtaken"]
        found = await function("k")
        await manager.aclose()
        return str(found)

    leader.do("acall", namespace=namespace, tags=["mine"])
    assert leader.event() == ["entered"]
    expected = "explicit" if verb in ("aseed", "arefresh") else "fresh"
    assert asyncio.run(main()) == expected
    assert leader.asked("acall", namespace=namespace, tags=["mine"]) == expected


async def _closing(cache: Cache, work: Any) -> None:
    await work
    await cache.aclose()


OF_CACHES: dict[str, Callable[[Cache], object]] = {
    "delete": lambda cache: cache.delete("k"),
    "delete_many": lambda cache: cache.delete_many(["other", "k"]),
    "clear": lambda cache: cache.clear(),
    "set": lambda cache: cache.set("k", "explicit"),
    "set with ttl=0": lambda cache: cache.set("k", "explicit", ttl=0),
    "set with tags": lambda cache: cache.set("k", "explicit", tags=["t"]),
    "set_many": lambda cache: cache.set_many({"k": "explicit"}),
    "add": lambda cache: cache.add("k", "explicit"),
    "incr": lambda cache: cache.incr("k", 7),
    "aset": lambda cache: asyncio.run(_closing(cache, cache.aset("k", "explicit"))),
    "adelete": lambda cache: asyncio.run(_closing(cache, cache.adelete("k"))),
    "aclear": lambda cache: asyncio.run(_closing(cache, cache.aclear())),
}
FORGETS = ("delete", "delete_many", "clear", "set with ttl=0", "adelete", "aclear")


@pytest.mark.parametrize("verb", OF_CACHES)
def test_a_keys_load_is_not_stored_after_a_write_elsewhere(verb: str, sides: Sides, namespace: str) -> None:
    cache = sides.manager.get_cache(namespace)
    sides.leader.do("get_or_load", namespace=namespace)
    assert sides.leader.event() == ["entered"]
    OF_CACHES[verb](cache)
    sides.leader.give("overtaken")
    assert sides.leader.event() == ["answer", "overtaken"]
    expected = "fresh" if verb in FORGETS else 7 if verb == "incr" else "explicit"
    assert cache.get_or_load("k", lambda: "fresh") == expected
    assert sides.leader.asked("get_or_load", namespace=namespace) == expected


def test_a_load_that_others_leave_alone_is_stored(sides: Sides, namespace: str) -> None:
    cache = sides.manager.get_cache(namespace)
    sides.leader.do("get_or_load", namespace=namespace)
    assert sides.leader.event() == ["entered"]
    cache.set("another key", "explicit")
    cache.delete("a third")
    cache.invalidate_tags("another tag")
    sides.leader.give("kept")
    assert sides.leader.event() == ["answer", "kept"]
    assert cache.get("k") == "kept"


def test_a_doomed_load_holds_nobody_up(sides: Sides, namespace: str) -> None:
    cache = sides.manager.get_cache(namespace)
    sides.leader.do("get_or_load", namespace=namespace)
    assert sides.leader.event() == ["entered"]
    cache.delete("k")
    assert cache.get_or_load("k", lambda: "fresh") == "fresh"  # while the doomed one is still running
    sides.leader.give("overtaken")
    assert sides.leader.event() == ["answer", "overtaken"]
    assert cache.get("k") == "fresh"


def test_those_who_join_after_an_invalidation_elsewhere_do_not_get_what_was_loaded_before(store: Store) -> None:
    leading, elsewhere = store.manager(), store.manager()
    cache = leading.get_cache("joined", store.backend)
    leader = Threaded(leading)
    leader.do("get_or_load", namespace="joined")
    assert leader.event() == ["entered"]
    elsewhere.get_cache("joined", store.backend).delete("k")
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(cache.get_or_load, "k", lambda: "fresh")
        flight = cache.space.flights._flights[cache.space.stored("k")]
        _until(lambda: flight._waiting == 2)
        leader.give("overtaken")
        assert leader.event() == ["answer", "overtaken"]
        assert joined.result(PATIENCE) == "fresh"
    assert cache.get("k") == "fresh"
    leading.close()
    elsewhere.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # polling; nothing is assumed from the time passed


# -- patience


@pytest.mark.parametrize("backend", ["file_based", "redis"])
@pytest.mark.parametrize("rule", ["compute", "raise", "stale"])
def test_a_wait_for_another_process_ends(
    backend: str, rule: str, request: pytest.FixtureRequest, _idle_workers: Callable[[str], tuple[Store, Worker]]
) -> None:
    store, leader = _idle_workers(backend)
    namespace = request.node.name
    late = store.manager(late=TTL + 1)  # the leader and this caller live after the end of what is stored
    cache = late.get_cache(namespace, store.backend)
    function = function_on(late, namespace, lambda _: "own", ttl=TTL, stale=0, wait="0.2s", on_wait_timeout=rule)
    early = store.manager()
    early.get_cache(namespace, store.backend)
    function_on(early, namespace, str, ttl=TTL).seed("old", "k")
    leader.do("call", namespace=namespace, late=TTL + 1, ttl=TTL)
    assert leader.event() == ["entered"]
    began = time.monotonic()
    if rule == "raise":
        with pytest.raises(CacheTimeoutError, match=r"wait=0\.2"):
            function("k")
    else:
        assert function("k") == {"compute": "own", "stale": "old"}[rule]
    assert 0.2 <= time.monotonic() - began < PATIENCE
    leader.give("new")
    assert leader.event() == ["answer", "new"]
    assert function("k") == "new"
    stats = cache.stats()
    assert (stats.loads, stats.bypasses, stats.stale_hits) == (0, rule == "compute", rule == "stale")
    late.close()
    early.close()


# -- event loops


@pytest.mark.parametrize("verb", ["call", "acall", "get_or_load", "aget_or_load"])
@pytest.mark.parametrize("backend", ["file_based", "redis"])
def test_tasks_get_the_value_of_another_process(
    backend: str, verb: str, request: pytest.FixtureRequest, _idle_workers: Callable[[str], tuple[Store, Worker]]
) -> None:
    store, leader = _idle_workers(backend)
    namespace = request.node.name
    manager = store.manager()
    cache = manager.get_cache(namespace, store.backend)

    async def never(_: object = None) -> None:
        raise AssertionError("the other process has it")

    async def main() -> list[Any]:
        waiting, loop = asyncio.Event(), asyncio.get_running_loop()
        watch(cache.space.backend, lambda: loop.call_soon_threadsafe(waiting.set))
        function = function_on(manager, namespace, never)
        leader.do(verb, namespace=namespace)
        assert await asyncio.to_thread(leader.event) == ["entered"]
        ask = partial(cache.aget_or_load, "k", never) if verb.endswith("get_or_load") else partial(function, "k")
        tasks = [asyncio.ensure_future(ask()) for _ in range(10)]
        await asyncio.wait_for(waiting.wait(), PATIENCE)
        leader.give({"from": "the leader"})
        answers = await asyncio.gather(*tasks)
        await manager.aclose()
        return answers

    answers = asyncio.run(main())
    assert answers == [{"from": "the leader"}] * 10
    assert len(set(map(id, answers))) == 10
    assert leader.event() == ["answer", {"from": "the leader"}]


# -- forks


HARD_LIMIT = 10
"""Seconds after which the system ends a child that hangs."""


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(HARD_LIMIT)
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forks_amid_work(backend: str, directory: str, url: str) -> None:
    """Print the exit statuses of 20 children, and what the parent's threads met."""
    manager = Store(backend, directory, url).manager()
    cache = manager.get_cache("forked", backend)
    stop, wrong = threading.Event(), []

    @cached("forked", backend=backend, manager=manager, name="loaded")
    def loaded(x: object) -> str:
        time.sleep(0.002)  # the forks meet more loads under way; every assertion holds without
        return f"of {x}"

    def work(thread: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            x = f"{thread} {number}"
            cache.set(x, number)
            found = loaded(x), cache.get(x), loaded("known"), cache.incr(f"sum {thread}")
            if found != (f"of {x}", number, "of known", number):
                wrong.append(found)

    def in_child() -> None:
        me = f"child {os.getpid()}"
        before = cache.stats()
        assert (before.calls, before.loads, before.sets, dict(before.errors)) == (0, 0, 0, {})
        assert loaded("known") == "of known"
        assert [loaded(me), loaded(me)] == [f"of {me}"] * 2
        cache.set(me, "mine")
        assert (cache.get(me), cache.incr(f"{me}'s")) == ("mine", 1)
        with cache.lock(me, wait=HARD_LIMIT):
            assert cache.add(me, "not mine") is False
        after = loaded.stats()
        assert (after.hits, after.misses, after.loads) == (2, 1, 1)

    loaded("known")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    statuses = [_forked(in_child) for _ in range(20)]
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"statuses": statuses, "wrong": wrong, "errors": dict(cache.stats().errors)}))


@pytest.mark.parametrize("backend", ["in_memory", "file_based", "redis"])
def test_20_forks_amid_loads_and_writes(backend: str, tmp_path: Path, valkey: Server) -> None:
    call = f"forks_amid_work({backend!r}, {str(tmp_path)!r}, {valkey.url!r})"
    assert json.loads(run_python(f"from tests.test_leases import *; {call}")) == {
        "statuses": [0] * 20,
        "wrong": [],
        "errors": {},
    }


def test_a_fork_waits_until_nobody_is_inside_sqlite(tmp_path: Path) -> None:
    backend = FileBasedBackend(tmp_path)
    inside, leave, forked = threading.Event(), threading.Event(), threading.Event()

    def read() -> None:  # SQLite's own mutexes may be held; in a child nobody would let go of them
        with backend._database.reading():
            inside.set()
            leave.wait(PATIENCE)

    def fork() -> None:
        assert _forked(lambda: backend.set(b"k", Entry(b"v"))) == 0
        forked.set()

    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read)
        assert inside.wait(PATIENCE)
        forking = pool.submit(fork)
        try:
            assert not forked.wait(0.2)
        finally:
            leave.set()
        reading.result(PATIENCE)
        forking.result(PATIENCE)
    assert backend.has(b"k")
    backend.close()


class _Meanwhile:
    """Another thread makes counters while it is being asked who has something to do before a fork; it may have to wait."""

    def __init__(self) -> None:
        self.made: list[Counters] = []
        self.thread = threading.Thread(target=lambda: self.made.append(Counters()))

    @property
    def before_fork(self) -> None:
        self.thread.start()
        self.thread.join(0.1)
        raise AttributeError("nothing to do")

    def after_fork(self) -> None:
        """Nothing to do here either."""


def fork_amid_births(directory: str) -> None:
    """Print the exit status of a child, and how many counters came into being on the way to it."""
    meanwhile = _Meanwhile()
    renew_after_fork(meanwhile)
    cache = Store("file_based", directory).manager().get_cache("forked", "file_based")
    cache.set("k", 1)
    status = _forked(lambda: cache.set("k", 2))
    meanwhile.thread.join(PATIENCE)
    print(status, len(meanwhile.made), cache.get("k"))


def test_a_fork_while_another_thread_makes_a_cache(tmp_path: Path) -> None:
    source = "import sys; from tests.test_leases import *; sys.stderr = sys.stdout; fork_amid_births({!r})"
    assert run_python(source.format(str(tmp_path))) == "0 1 2\n"


def test_a_child_refreshes_what_its_parent_was_refreshing(clock: FakeClock) -> None:
    entered, release, refreshed = threading.Event(), threading.Event(), threading.Event()
    parent = os.getpid()

    @cached("refreshed", ttl=10, stale=1000, manager=CacheManager(clock=clock))
    def function() -> str:
        if os.getpid() != parent:
            refreshed.set()
        elif clock() > before:
            entered.set()
            release.wait(PATIENCE)
        return "value"

    def in_child() -> None:
        assert function() == "value"
        assert refreshed.wait(HARD_LIMIT / 2)

    before = clock()
    function()
    clock.advance(20)
    assert function() == "value"
    assert entered.wait(PATIENCE)
    status = _forked(in_child)
    release.set()
    assert status == 0


POOLED = """
import json, multiprocessing, pickle
from concurrent.futures import ProcessPoolExecutor
from tests.pooled import square
assert pickle.loads(pickle.dumps(square)) is square
first = square(0)
with ProcessPoolExecutor(2, multiprocessing.get_context({method!r})) as pool:
    answers = list(pool.map(square, range(5), chunksize=1))
print(json.dumps([first, answers, [square(x) for x in range(5)], square.stats().loads]))
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_decorated_function_goes_by_reference_to_a_pool(method: str, tmp_path: Path) -> None:
    found = json.loads(run_python(POOLED.format(method=method), CODOMYRMEX_CACHE_DIR=str(tmp_path)))
    assert found == [0, [0, 1, 4, 9, 16], [0, 1, 4, 9, 16], 1]
