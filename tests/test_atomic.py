"""incr, add and lock are exact among all who use a store; touch begins a life anew."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager
from codomyrmex_cache.errors import CacheConnectionError, CacheError, CacheTimeoutError
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server
from tests.workers import PATIENCE, Store, Worker, adds, increments, sections

SHARED = ["file_based", "redis"]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, backend_name: str) -> Store:
    """A store for several processes, or for the threads of this one."""
    url = request.getfixturevalue("valkey").url if backend_name == "redis" else ""
    return Store(backend_name, str(tmp_path), url)


@pytest.fixture
def cache(manager: CacheManager, backend_name: str) -> Cache:
    return manager.get_cache("atomic", backend_name)


def _at_once(store: Store, number: int, verb: str, work: Callable[[Cache], Any], **arguments: int) -> list[Any]:
    """What as many processes answer that do the same at the same time; threads, where the store is in memory."""
    if store.backend == "in_memory":
        cache, start = store.manager().get_cache("atomic"), threading.Barrier(number)

        def one(_: int) -> Any:
            start.wait()
            return work(cache)

        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(one, range(number)))
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(store)) for _ in range(number)]
        for worker in workers:
            worker.ready()
        for worker in workers:
            worker.do(verb, namespace="atomic", **arguments)
        events = [_end(worker) for worker in workers]
    assert [event[0] for event in events] == ["answer"] * number, events
    return [event[1] for event in events]


def _end(worker: Worker) -> list[Any]:
    """The event that ends its work; locks tell of waiting before."""
    event = worker.event()
    return event if event != ["waiting"] else worker.event()


# -- incr


def test_no_increment_is_lost(store: Store) -> None:
    answers = _at_once(store, 12, "increments", lambda cache: increments(cache, 60), times=60)
    assert sorted(chain(*answers)) == list(range(1, 721))
    assert all(answer == sorted(answer) for answer in answers)
    if store.backend != "in_memory":
        assert store.manager().get_cache("atomic", store.backend).get("n") == 720


def test_incr_answers_the_sum_that_get_finds(cache: Cache) -> None:
    assert [cache.incr("n"), cache.incr("n", 10), cache.incr("n", -15), cache.incr("n", 0)] == [1, 11, -4, -4]
    assert cache.get("n") == -4
    assert (cache.incr("huge", 2**200), cache.incr("huge", 2**200), cache.get("huge")) == (2**200, 2**201, 2**201)
    cache.set("set", 41)
    assert (cache.incr("set"), cache.get("set")) == (42, 42)


def test_incr_keeps_the_life_that_is_left(cache: Cache, clock: FakeClock) -> None:
    cache.incr("n", ttl=10)
    clock.advance(9)
    assert cache.incr("n", ttl=1000) == 2
    clock.advance(0.5)
    assert cache.get("n") == 2
    clock.advance(0.5)
    assert cache.get("n") is None
    assert cache.incr("n", 5, ttl=10) == 5  # an expired one counts as none
    clock.advance(9.5)
    assert cache.get("n") == 5
    clock.advance(0.5)
    assert cache.get("n") is None
    cache.set("for ever", 1)
    cache.incr("for ever", ttl=1)
    clock.advance(10_000)
    assert cache.get("for ever") == 2


def test_incr_keeps_the_tags(cache: Cache) -> None:
    cache.set("n", 1, tags=["t"])
    assert cache.incr("n") == 2
    cache.invalidate_tags("t")
    assert cache.get("n") is None
    assert cache.incr("n") == 1


@pytest.mark.parametrize("value", ["1", 1.0, None, True, [1]])
def test_incr_of_what_is_not_an_int_is_refused_and_left_alone(cache: Cache, value: object) -> None:
    cache.set("n", value)
    with pytest.raises(CacheError, match="'n'"):
        cache.incr("n")
    assert cache.get("n") == value
    assert type(cache.get("n")) is type(value)


# -- add


def test_each_round_of_add_has_one_winner(store: Store) -> None:
    won = _at_once(store, 6, "adds", lambda cache: adds(cache, 60), rounds=60)
    assert sorted(chain(*won)) == list(range(60))


def test_add_leaves_what_is_there(cache: Cache, clock: FakeClock) -> None:
    assert cache.add("k", None, ttl=10) is True  # None is a value
    assert cache.add("k", "second") is False
    assert cache.get("k", "absent") is None
    clock.advance(10)
    assert cache.add("k", "third", ttl=10) is True
    assert cache.get("k") == "third"
    cache.delete("k")
    assert (cache.add("k", "fourth"), cache.get("k")) == (True, "fourth")


# -- lock


def test_sections_do_not_overlap_and_tokens_grow(store: Store) -> None:
    _at_once(store, 6, "sections", lambda cache: sections(cache, store, 30), times=30)
    lines = (Path(store.directory) / "door").read_text().splitlines()
    tokens = [int(line.removeprefix("in ")) for line in lines[::2]]
    assert lines == [line for token in tokens for line in (f"in {token}", f"out {token}")]
    assert len(tokens) == 180
    assert all(before < after for before, after in pairwise(tokens))


def test_a_held_lock_is_waited_for_as_long_as_was_said(cache: Cache) -> None:
    with cache.lock("door"), pytest.raises(CacheTimeoutError, match="'door'"), cache.lock("door", wait="0.05s"):
        raise AssertionError("it is held")
    with cache.lock("door", wait=0) as lock:
        assert lock.token > 0


def test_locks_of_other_names_and_keys_do_not_meet(cache: Cache) -> None:
    with cache.lock("door", wait=0) as one, cache.lock("window", wait=0) as other:
        cache.set("door", 1)
        assert cache.clear() == 1
        assert cache.get_or_load("door", lambda: 2) == 2
        assert one.token != other.token
        with pytest.raises(CacheTimeoutError), cache.lock("door", wait=0):
            raise AssertionError("clear took the lock away")


def test_a_section_that_raises_gives_the_lock_back(cache: Cache) -> None:
    with pytest.raises(KeyboardInterrupt), cache.lock("door"):
        raise KeyboardInterrupt
    with cache.lock("door", wait=0) as lock:
        assert lock.lost is False


def test_one_lock_object_is_held_once_at_a_time(cache: Cache) -> None:
    lock = cache.lock("door")
    with pytest.raises(CacheError, match="not held"):
        lock.token
    with lock:
        first = lock.token
        with pytest.raises(CacheError, match="by this object already"), lock:
            raise AssertionError("it is held")
        assert lock.token == first  # the refused one did not let go of it
    with lock:
        assert lock.token > first


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_lock_of_a_holder_that_is_gone_is_free_within_five_seconds(how: int, tmp_path: Path, valkey: Server) -> None:
    stores = [Store("file_based", str(tmp_path)), Store("redis", str(tmp_path), valkey.url)]

    def work(store: Store) -> None:
        cache = store.manager().get_cache("gone", store.backend)
        with Worker(store) as holder:
            holder.do("hold", namespace="gone")
            assert holder.event() == ["entered"]
            with pytest.raises(CacheTimeoutError), cache.lock("door", wait=0):
                raise AssertionError("it is held")
            holder.signal(how)
            gone_at = time.monotonic()
            with cache.lock("door", wait=PATIENCE):
                assert time.monotonic() - gone_at < 5.0
                if how == signal.SIGSTOP:
                    holder.signal(signal.SIGCONT)
                    holder.give("go on")
                    assert holder.event() == ["answer", True]  # it has been told that it lost the lock
                    with pytest.raises(CacheTimeoutError), cache.lock("door", wait=0):
                        raise AssertionError("the holder that lost it gave back what is not its own")
        cache.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, stores))


# -- event loops


def test_the_twins_do_the_same(cache: Cache) -> None:
    async def main() -> None:
        sums = await asyncio.gather(*(cache.aincr("n") for _ in range(20)))
        assert sorted(sums) == list(range(1, 21))
        assert sorted(await asyncio.gather(*(cache.aadd("k", number) for number in range(10)))) == [False] * 9 + [True]
        assert (await cache.atouch("k"), await cache.atouch("absent")) == (True, False)
        inside, tokens = [], []

        async def section() -> None:
            async with cache.lock("door") as lock:
                inside.append(lock)
                tokens.append(lock.token)
                await asyncio.sleep(0)
                assert inside == [lock]
                inside.remove(lock)

        await asyncio.gather(*(section() for _ in range(10)))
        assert len(tokens) == 10
        assert tokens == sorted(set(tokens))
        lock = cache.lock("door")
        async with lock:
            with pytest.raises(CacheError, match="by this object already"):
                await lock.__aenter__()
            with pytest.raises(CacheTimeoutError):
                await cache.lock("door", wait=0.01).__aenter__()
        await cache.aclose()

    asyncio.run(main())


# -- without the backend


@pytest.fixture(params=SHARED)
def away(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    """A namespace whose backend cannot be reached: no server on the port, a file where the folder should be."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = tmp_path / "file"
    file.touch()
    manager = CacheManager(directory=file / "folder", url=f"redis://127.0.0.1:{port}", secret=b"a secret for the tests")
    return manager.get_cache("away", request.param)


def test_without_its_backend_what_must_be_exact_raises_and_the_rest_is_quiet(away: Cache) -> None:
    away.set("k", 1)
    assert (away.get("k", "absent"), away.touch("k"), away.delete("k")) == ("absent", False, False)
    assert away.get_or_load("k", lambda: "loaded") == "loaded"
    exact: list[Callable[[], object]] = [lambda: away.incr("k"), lambda: away.add("k", 1), away.lock("k").__enter__]
    for verb in exact:
        with pytest.raises(CacheConnectionError) as raised:
            verb()
        assert raised.value.__cause__ is not None


def test_without_its_backend_the_twins_do_so_too(away: Cache) -> None:
    async def main() -> None:
        await away.aset("k", 1)
        assert (await away.aget("k", "absent"), await away.atouch("k")) == ("absent", False)
        for verb in (away.aincr("k"), away.aadd("k", 1), away.lock("k").__aenter__()):
            with pytest.raises(CacheConnectionError):
                await verb
        await away.aclose()

    asyncio.run(main())


# -- touch


def test_touch_begins_the_entrys_own_life_anew(cache: Cache, clock: FakeClock) -> None:
    cache.set("k", {"a": 1}, ttl=10)
    clock.advance(9)
    assert cache.touch("k") is True
    clock.advance(9.5)
    assert cache.get("k") == {"a": 1}
    clock.advance(0.5)
    assert cache.get("k") is None
    assert cache.touch("k") is False
    assert cache.get("k") is None


def test_touch_gives_another_life(cache: Cache, clock: FakeClock) -> None:
    cache.set("k", 1, ttl=10)
    assert cache.touch("k", ttl=100) is True
    clock.advance(99)
    assert cache.get("k") == 1
    assert cache.touch("k") is True  # the life that it was given last is its own now
    clock.advance(99)
    assert cache.get("k") == 1
    clock.advance(1)
    assert cache.get("k") is None


def test_touch_may_give_an_endless_life_or_none(cache: Cache, clock: FakeClock) -> None:
    cache.set("k", 1, ttl=10)
    assert cache.touch("k", ttl=None) is True
    clock.advance(10_000_000)
    assert cache.get("k") == 1
    assert cache.touch("k", ttl=0) is True
    assert cache.has("k") is False
    assert cache.keys() == []
    assert [cache.touch("k"), cache.touch("k", ttl=5), cache.touch("k", ttl=None), cache.touch("k", ttl=0)] == [False] * 4


def test_touch_shortens_a_life_too(cache: Cache, clock: FakeClock) -> None:
    cache.set("k", 1)
    assert cache.touch("k", ttl="5s") is True
    clock.advance(5)
    assert cache.get("k") is None
