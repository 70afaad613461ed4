"""Two tiers when one of them fails, in event loops, in forks, in several processes; and what is counted and signed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, Entry, FileBasedBackend, InMemoryBackend, RedisBackend, TieredBackend, cached
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.testing import FakeClock, FaultyBackend
from tests.conftest import Server
from tests.test_conformance import ToyBackend
from tests.test_tiered_machine import Bytes

PATIENCE = 20.0
"""Seconds after which a test gives up on another process; no assertion depends on it."""


@pytest.fixture
def manager() -> Iterator[CacheManager]:
    manager = CacheManager(secret=b"a secret for the tests")
    yield manager
    manager.close()


class Point:
    """A result that only a pickle keeps."""

    def __init__(self, x: int) -> None:
        self.x = x


# -- failures


@pytest.mark.parametrize("near", [InMemoryBackend, ToyBackend])
def test_a_near_tier_that_fails_is_done_without(
    near: Callable[[], Backend], tmp_path: Path, manager: CacheManager, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = FaultyBackend(near())
    cache = manager.get_cache("n", TieredBackend(faulty, FileBasedBackend(tmp_path)))
    fault = faulty.fail()
    with caplog.at_level("WARNING"):
        cache.set("k", 1)
        assert (cache.get("k"), cache.has("k"), cache.incr("n"), cache.incr("n")) == (1, True, 1, 2)
        cache.set_many({"a": 1, "b": 2})
        assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        assert (cache.delete_many(["a", "b"]), cache.delete("k"), cache.clear()) == (2, True, 1)
        assert cache.get_or_load("l", lambda: 3) == 3
    assert [record.name for record in caplog.records] == ["codomyrmex_cache.backends.tiered"]
    assert "L1 failed to " in caplog.text
    assert "OSError" in caplog.text
    assert cache.stats().errors == {}
    assert fault.done["get"] > 5


def test_a_near_tier_that_fails_to_answer_is_not_told_either() -> None:
    near, far = FaultyBackend(InMemoryBackend()), Bytes()
    tiers = TieredBackend(near, far)
    far.set(b"k", Entry(b"v"))
    told = near.delay(0.0, "set", sleep=lambda _: None)
    with near.fail("get"):
        assert tiers.get(b"k") == Entry(b"v")
        assert tiers.get_many([b"k"]) == {b"k": Entry(b"v")}  # type: ignore[attr-defined]
        assert tiers.get_values([b"k"]) == {b"k": b"v"}  # type: ignore[attr-defined]
        assert tiers.look(b"k", (), 0.0, False) == b"v"  # type: ignore[attr-defined]
    assert dict(told.done) == {}
    tiers.get(b"k")
    assert dict(told.done) == {"set": 1}


def test_a_copy_that_could_not_be_removed_does_not_answer() -> None:
    near, far = FaultyBackend(InMemoryBackend()), ToyBackend()
    tiers = TieredBackend(near, far)
    for invalidate in (
        lambda: tiers.delete(b"1:k"),
        lambda: tiers.set(b"1:k", Entry(b"new")),
        lambda: tiers.set(b"1:k", Entry(bytearray(b"not kept as written"))),
    ):
        tiers.set(b"1:k", Entry(b"old"))
        assert tiers.get(b"1:k") == Entry(b"old")
        with near.fail("set", "delete"):
            invalidate()
        assert tiers.get(b"1:k") == far.get(b"1:k") != Entry(b"old")


def test_copies_answer_while_the_far_tier_is_away_until_the_bound(manager: CacheManager) -> None:
    clock, far = FakeClock(), FaultyBackend(ToyBackend())
    cache = manager.get_cache("n", TieredBackend(InMemoryBackend(), far, bound=5.0, clock=clock))
    cache.set("k", 1)
    far.fail(error=ConnectionError)
    clock.advance(4.9)
    assert (cache.get("k"), cache.has("k"), cache.stats().errors) == (1, True, {})
    assert (cache.get("other", "?"), cache.stats().errors) == ("?", {"backend:ConnectionError": 1})
    clock.advance(0.1)
    assert (cache.get("k", "?"), cache.stats().errors) == ("?", {"backend:ConnectionError": 2})


@pytest.mark.parametrize("after", [False, True])
def test_a_write_that_fails_leaves_no_copy(after: bool) -> None:
    far = FaultyBackend(ToyBackend())
    tiers = TieredBackend(InMemoryBackend(), far)
    tiers.set(b"k", Entry(b"old"))
    with far.fail("set", after=after), pytest.raises(OSError, match="to order"):
        tiers.set(b"k", Entry(b"new"))
    assert tiers.get(b"k") == Entry(b"new" if after else b"old")
    with far.fail("get"), far.fail("delete", after=after), pytest.raises(OSError, match="delete fails"):
        tiers.delete(b"k")
    with far.fail("get"), pytest.raises(OSError, match="get fails"):
        tiers.get(b"k")


def test_both_are_closed_whatever_happens_and_may_be_used_again(tmp_path: Path) -> None:
    near, far = FaultyBackend(InMemoryBackend()), FaultyBackend(FileBasedBackend(tmp_path))
    tiers = TieredBackend(near, far)
    tiers.set(b"k", Entry(b"v"))
    near_closed, far_closed = near.fail("close"), far.delay(0.0, "close", sleep=lambda _: None)
    tiers.close()
    asyncio.run(tiers.aclose())  # type: ignore[attr-defined]
    assert (near_closed.done["close"], far_closed.done["close"]) == (2, 2)
    assert tiers.get(b"k") == Entry(b"v")
    near.heal()
    tiers.close()


# -- event loops


def test_a_cancelled_write_holds_copies_off_until_it_is_over() -> None:
    class Slow(ToyBackend):
        """With async verbs that go on when they are told."""

        async def aget(self, key: bytes) -> Entry | None:
            return self.get(key)

        async def aset(self, key: bytes, entry: Entry) -> None:
            await go_on.wait()
            self.set(key, entry)

        async def ahas(self, key: bytes) -> bool:
            return self.has(key)

        async def adelete(self, key: bytes) -> bool:
            return self.delete(key)

        async def ascan(self, prefix: bytes) -> Any:
            return self.scan(prefix)

        async def aclose(self) -> None:
            """Nothing to do."""

    async def main() -> None:
        writing = asyncio.create_task(tiers.aset(b"k", Entry(b"new")))  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await tiers.aget(b"k") == Entry(b"old")  # type: ignore[attr-defined]
        go_on.set()
        while far.rows[b"k"] != (b"new", None):
            await asyncio.sleep(0)
        assert await tiers.aget(b"k") == Entry(b"new")  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        far.set(b"k", Entry(b"newer"))
        assert await tiers.aget(b"k") == Entry(b"newer")  # type: ignore[attr-defined]
        far.delete(b"k")
        assert await tiers.aget(b"k") == Entry(b"newer")  # type: ignore[attr-defined]  # copies are kept again

    go_on, far = asyncio.Event(), Slow()
    tiers = TieredBackend(InMemoryBackend(), far)
    far.set(b"k", Entry(b"old"))
    asyncio.run(main())


def test_a_near_tier_that_may_block_keeps_off_the_loop(valkey: Server) -> None:
    threads: dict[str, set[bool]] = {}

    class Blocking(ToyBackend):
        def get(self, key: bytes) -> Entry | None:
            threads.setdefault("get", set()).add(threading.current_thread() is threading.main_thread())
            return super().get(key)

        def set(self, key: bytes, entry: Entry) -> None:
            threads.setdefault("set", set()).add(threading.current_thread() is threading.main_thread())
            super().set(key, entry)

    async def main() -> None:
        await cache.aset("k", 1)
        assert (await cache.aget("k"), await cache.aget("absent", "?")) == (1, "?")
        await cache.aclose()

    cache = CacheManager().get_cache("n", TieredBackend(Blocking(), RedisBackend(valkey.url)))
    asyncio.run(main())
    assert threads == {"get": {False}, "set": {False}}


def test_a_near_tier_that_fails_in_a_loop_is_done_without(valkey: Server, tmp_path: Path) -> None:
    async def main(cache: Cache) -> None:
        await cache.aset("k", 1)
        assert (await cache.aget("k"), await cache.adelete("k"), await cache.aget("k", "?")) == (1, True, "?")
        await cache.aclose()

    for near in (InMemoryBackend(), FileBasedBackend(tmp_path), ToyBackend()):
        faulty = FaultyBackend(near)
        faulty.fail()
        asyncio.run(main(CacheManager().get_cache("n", TieredBackend(faulty, RedisBackend(valkey.url)))))


def test_hits_of_coroutine_functions_are_near(valkey: Server) -> None:
    far = FaultyBackend(RedisBackend(valkey.url))
    asked = far.delay(0.0, "look", "get", sleep=lambda _: None)

    @cached("n", backend=TieredBackend(InMemoryBackend(), far), manager=CacheManager())
    async def function(x: int) -> list[int]:
        return [x]

    async def main() -> None:
        assert [await function(1) for _ in range(5)] == [[1]] * 5
        await function.cache.aclose()

    asyncio.run(main())
    assert sum(asked.done.values()) == 1
    assert (function.stats().hits, function.stats().misses) == (4, 1)


# -- forks and processes


def test_a_child_forked_amid_a_write_uses_both_tiers() -> None:
    class Held(ToyBackend):
        def set(self, key: bytes, entry: Entry) -> None:
            super().set(key, entry)
            if entry.value == b"held":
                writes.set()
                go_on.wait(PATIENCE)

    writes, go_on, far = threading.Event(), threading.Event(), Held()
    tiers = TieredBackend(InMemoryBackend(), far)
    writer = threading.Thread(target=tiers.set, args=(b"k", Entry(b"held")))
    writer.start()
    writes.wait(PATIENCE)

    def work() -> None:
        tiers.set(b"k", Entry(b"child's"))
        far.delete(b"k")
        assert tiers.get(b"k") == Entry(b"child's")
        tiers.delete(b"k")
        assert tiers.get(b"k") is None

    status = _forked(work)
    go_on.set()
    writer.join()
    assert status == 0
    assert tiers.get(b"k") == Entry(b"held")


def _forked(work: Callable[[], None]) -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: that there are threads is what this is about
        child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a child that hangs
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _elsewhere(source: str, *arguments: str) -> str:
    """What another process prints."""
    head = "import sys\nfrom codomyrmex_cache import *\nfrom codomyrmex_cache import CacheManager\n"
    done = subprocess.run([sys.executable, "-c", head + source, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_another_process_writes_to_the_files_is_seen_within_the_bound(tmp_path: Path) -> None:
    bound = 0.5
    cache = CacheManager().get_cache("n", TieredBackend(InMemoryBackend(), FileBasedBackend(tmp_path), bound=bound))
    cache.set("k", ["here"])
    source = (
        "CacheManager().get_cache('n', TieredBackend(InMemoryBackend(), FileBasedBackend(sys.argv[1]))).set('k', ['there'])"
    )
    _elsewhere(source, str(tmp_path))
    deadline = time.monotonic() + PATIENCE
    while cache.get("k") != ["there"]:
        assert time.monotonic() < deadline
        assert cache.get("k") == ["here"]
        time.sleep(0.01)  # the bound is by the real clock here, so that it is the one two processes have in common
    assert cache.stats().errors == {}
    cache.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes do not know whether they have one clock")
def test_processes_share_the_copies_in_files(own_server: Server, tmp_path: Path) -> None:
    source = f"""
cache = CacheManager(secret=b"a secret for the tests").get_cache(
    "n", TieredBackend(FileBasedBackend({str(tmp_path / "near")!r}), RedisBackend({own_server.url!r}), bound=600))
print(cache.get("k", "nothing"), dict(cache.stats().errors))
"""
    tiers = TieredBackend(FileBasedBackend(tmp_path / "near"), RedisBackend(own_server.url), bound=600)
    cache = CacheManager(secret=b"a secret for the tests").get_cache("n", tiers)
    cache.set("k", "shared")
    own_server.stop()
    assert _elsewhere(source) == "shared {}"
    cache.close()


# -- statistics, settings, secrets


def test_statistics_count_each_call_once(tmp_path: Path) -> None:
    near = InMemoryBackend(max_entries=1)
    manager = CacheManager()

    @cached("n", backend=TieredBackend(near, FileBasedBackend(tmp_path)), manager=manager)
    def function(x: int) -> int:
        return x

    assert [function(x) for x in (1, 2, 3, 1, 2, 3)] == [1, 2, 3, 1, 2, 3]
    stats = function.stats()
    assert (stats.hits, stats.misses, stats.sets, stats.loads, stats.evictions, dict(stats.errors)) == (3, 3, 3, 3, 0, {})
    assert function.cache.stats().size == 3
    manager.close()


def test_evictions_are_those_of_the_far_tier(manager: CacheManager) -> None:
    cache = manager.get_cache("n", TieredBackend(InMemoryBackend(), InMemoryBackend(max_entries=2)))
    cache.set_many({"a": 1, "b": 2, "c": 3})
    assert (cache.stats().evictions, len(cache)) == (1, 2)


def test_direct_hits_take_the_short_way(tmp_path: Path, manager: CacheManager) -> None:
    near = FaultyBackend(InMemoryBackend())
    asked = near.delay(0.0, sleep=lambda _: None)
    cache = manager.get_cache("n", TieredBackend(near, far := FaultyBackend(FileBasedBackend(tmp_path))))
    far_asked = far.delay(0.0, sleep=lambda _: None)
    cache.set("first", 0)  # with its first write a process finds out whether others are there
    cache.get("k")
    for done in (asked.done, far_asked.done):
        done.clear()
    cache.set("k", [1])
    assert [cache.get("k") for _ in range(3)] == [[1]] * 3
    assert (dict(asked.done), dict(far_asked.done)) == ({"set": 1, "get": 3}, {"quick_set": 1})
    assert (cache.stats().sets, cache.stats().hits) == (2, 3)


def test_entries_over_files_are_signed_as_those_of_the_files_alone(tmp_path: Path) -> None:
    def point(x: int) -> Point:
        return Point(x)

    both = cached("n", backend=TieredBackend(InMemoryBackend(), FileBasedBackend(tmp_path)), manager=CacheManager())(point)
    alone = cached("n", backend=FileBasedBackend(tmp_path), manager=CacheManager())(point)
    assert [both(1).x, both(1).x, alone(1).x, both.stats().hits, alone.stats().hits] == [1, 1, 1, 1, 1]
    both.cache.close()
    alone.cache.close()


@pytest.mark.parametrize(("secret", "hits"), [(None, 0), (b"a secret for the tests", 1)])
def test_over_a_server_nothing_is_pickled_without_a_secret(
    secret: bytes | None, hits: int, valkey: Server, tmp_path: Path
) -> None:
    """Not even if the near tier keeps files: other hosts would not have their secret."""
    tiers = TieredBackend(FileBasedBackend(tmp_path), RedisBackend(valkey.url))

    @cached("n", backend=tiers, manager=CacheManager(secret=secret))
    def function(x: int) -> Point | Decimal:
        return Point(x) if x else Decimal(x)

    assert [function(1).x, function(1).x] == [1, 1]  # type: ignore[union-attr]
    assert (function.stats().hits, function.stats().errors.get("unstorable", 0)) == (hits, 2 - 2 * hits)
    assert [function(0), function(0)] == [0, 0]
    assert function.stats().hits == hits + 1
    function.cache.close()


def test_tags_forgotten_elsewhere_are_forgotten_at_once(tmp_path: Path) -> None:
    one, other = (
        CacheManager().get_cache("n", TieredBackend(InMemoryBackend(), FileBasedBackend(tmp_path), bound=600)) for _ in range(2)
    )
    one.set("k", 1, tags=["tag"])
    assert (one.get("k"), other.get("k")) == (1, 1)
    one.invalidate_tags("tag")
    assert (one.get("k"), other.get("k")) == (None, None)
    one.close()
    other.close()


def test_tiers_may_be_stacked(valkey: Server, tmp_path: Path) -> None:
    lower = TieredBackend(FileBasedBackend(tmp_path), RedisBackend(valkey.url))
    cache = CacheManager(secret=b"a secret for the tests").get_cache("n", TieredBackend(InMemoryBackend(), lower))
    cache.set("k", [1])
    assert (cache.get("k"), cache.incr("n"), cache.incr("n"), cache.get("n"), cache.clear()) == ([1], 1, 2, 2, 2)
    assert (cache.get("k"), cache.stats().errors) == (None, {})
    cache.close()
