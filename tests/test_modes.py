"""Modes: what is read, run and stored in each, who is in one, and that no hit escapes it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import pickle
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, cached
from codomyrmex_cache.errors import CacheConfigurationError, CacheMissError
from codomyrmex_cache.modes import mode, set_mode

BACKENDS = ("in_memory", "file_based", "redis")


@pytest.fixture
def manager(tmp_path: Path, valkey: Any) -> Iterator[CacheManager]:
    made = CacheManager(directory=tmp_path, url=valkey.url, secret=b"a secret of the tests")
    yield made
    set_mode(None)
    made.close()


HIT_FRAMES = 2
"""The wrapper's, and that of copying its list."""

RUNS: list[Any] = []
"""What has run; a name of the module, since what a function closes over would be part of its keys."""


def decorated(manager: CacheManager, backend: str, **options: Any) -> tuple[Any, list[Any]]:
    @cached("modes", backend=backend, manager=manager, name="f", version=1, **options)
    def f(x: Any, y: Any = None) -> list[Any]:
        RUNS.append(x)
        return [x, len(RUNS)]

    RUNS.clear()
    return f, RUNS


@pytest.mark.parametrize("backend", BACKENDS)
def test_off_runs_and_neither_reads_nor_stores(manager: CacheManager, backend: str) -> None:
    f, _ = decorated(manager, backend)
    assert f(1) == f(1) == [1, 1]
    with mode("off"):
        assert f(1) == [1, 2]
        assert f(2) == [2, 3]
    assert f(1) == [1, 1]
    assert f.peek(2) is not None and not f.contains(2)
    stats = f.stats()
    assert (stats.bypasses, stats.hits, stats.misses) == (2, 2, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_refresh_runs_once_for_each_call_and_replaces(manager: CacheManager, backend: str) -> None:
    f, runs = decorated(manager, backend)
    f(1), f(1)
    with mode("refresh"):
        assert f(1) == [1, 2]
        assert f(1) == [1, 2]
        assert f(2) == f(2) == [2, 3]
    assert f(1) == [1, 2]
    with mode("refresh"):
        assert f(1) == [1, 4]
    assert f(1) == [1, 4]
    assert runs == [1, 1, 2, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_readonly_reads_and_stores_nothing(manager: CacheManager, backend: str) -> None:
    f, _ = decorated(manager, backend)
    f(1)
    with mode("readonly"):
        assert f(1) == [1, 1]
        assert f(2) == [2, 2]
        assert f(2) == [2, 3]
        f.seed("planted", 3)
    assert not f.contains(2) and not f.contains(3)
    assert f(2) == f(2) == [2, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_replay_runs_nothing(manager: CacheManager, backend: str) -> None:
    f, runs = decorated(manager, backend)
    f(1)
    with mode("replay"):
        assert f(1) == f(1) == [1, 1]
        with pytest.raises(CacheMissError) as caught:
            f(2)
        with pytest.raises(CacheMissError, match="has no key"):
            f(threading.Lock())
        with pytest.raises(CacheMissError):
            f.refresh(2)
    assert runs == [1]
    error = caught.value
    assert (error.namespace, error.function, error.key) == ("modes", "f", f.key(2))
    assert (error.differing, error.nearest) == (("x",), f.key(1))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.nearest) == (str(error), error.nearest)


def test_record_stores_for_ever_and_replay_reads_what_is_old(manager: CacheManager, clock: Any, tmp_path: Path) -> None:
    own = CacheManager(clock=clock, directory=tmp_path)
    for backend in ("in_memory", "file_based"):
        f, runs = decorated(own, backend, ttl=10)
        del own._caches["modes"]
        f(1)
        clock.advance(5)
        with mode("record"):
            f(2)
        clock.advance(1_000)
        with mode("replay"):
            assert f(2) == [2, 2]
        with mode("record"):
            assert f(1) == [1, 1]
            entry = f.entry(2)
            assert entry is not None and entry.ttl is None
        assert f(1) == [1, 3]
        assert runs == [1, 2, 1]


def test_a_difference_is_named_and_shown(manager: CacheManager) -> None:
    @cached("shown", backend="file_based", manager=manager)
    def ask(messages: list[dict[str, str]], api_key: str, model: str = "m") -> str:
        return "answer"

    system = {"role": "system", "content": "Be short."}
    with mode("record"):
        ask([system, {"role": "user", "content": "Write about the sea"}], "sk-0123456789abcdef0123")
        ask([system, {"role": "user", "content": "Count to ten"}], "sk-0123456789abcdef0123")
    with mode("replay"), pytest.raises(CacheMissError) as caught:
        ask([system, {"role": "user", "content": "Write about the moon"}], "sk-0123456789abcdef0123")
    lines = str(caught.value).splitlines()
    assert caught.value.differing == ("messages",)
    place = lines.index("  messages[1].content")
    assert lines[place + 1 : place + 3] == ["    - 'Write about the sea'", "    + 'Write about the moon'"]
    assert "sk-0123456789abcdef0123" not in str(caught.value)


def test_several_lines_of_text_differ_line_by_line(manager: CacheManager) -> None:
    @cached("shown", manager=manager)
    def ask(prompt: str) -> str:
        return "answer"

    with mode("record"):
        ask("one\ntwo\nthree")
    with mode("replay"), pytest.raises(CacheMissError, match=r"-two\n +\+2\n"):
        ask("one\n2\nthree")


class Unshowable(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no")

    def __cache_key__(self) -> int:
        return 1


def test_a_call_that_cannot_be_shown_is_recorded_all_the_same(manager: CacheManager) -> None:
    @cached("modes", backend="file_based", manager=manager)
    def count(x: Any) -> int:
        RUNS.append(0)
        return len(RUNS)

    RUNS.clear()
    with mode("record"):
        assert count(Unshowable()) == 1
    with mode("replay"):
        assert count(Unshowable()) == 1
    assert count.stats().errors["unshowable"] == 2


# -- who is in a mode


def test_another_thread_is_not_in_it_and_a_copied_context_is(manager: CacheManager) -> None:
    f, _ = decorated(manager, "in_memory")
    f(1), f(1)
    with ThreadPoolExecutor(1) as pool, mode("refresh"):
        assert pool.submit(f, 1).result() == [1, 1]
        assert pool.submit(contextvars.copy_context().run, f, 1).result() == [1, 2]


def test_set_mode_is_for_all_threads_and_lower_than_a_block(manager: CacheManager) -> None:
    f, _ = decorated(manager, "in_memory")
    f(1)
    set_mode("off")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(f, 1).result() == [1, 2]
    with mode("normal"):
        assert f(1) == [1, 1]
    set_mode(None)
    assert f(1) == f(1) == [1, 1]


def test_the_nearest_that_is_about_the_namespace_counts(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_CACHE_MODE", "off")

    def f(x: int) -> list[int]:
        RUNS.append(x)
        return [x, len(RUNS)]

    RUNS.clear()
    by_environment, by_keyword = cached("a", manager=manager)(f), cached("b", manager=manager, mode="normal")(f)
    assert (by_environment(1), by_environment(1)) == ([1, 1], [1, 2])
    assert (by_keyword(1), by_keyword(1)) == ([1, 3], [1, 3])
    with mode("normal", "a"), mode("refresh", "b"):
        assert (by_environment(1), by_environment(1)) == ([1, 4], [1, 4])
        assert by_keyword(1) == [1, 5]
    assert by_environment(1) == [1, 6]
    set_mode("off", "b")
    assert by_keyword(1) == [1, 7]


@pytest.mark.parametrize("name", ["readonly", "replay", "record"])
def test_a_keyword_leaves_hits_as_quick_as_they_are(manager: CacheManager, name: Any, tmp_path: Path) -> None:
    first, _ = decorated(CacheManager(directory=tmp_path / "x", secret=b"a secret of the tests"), "file_based")
    first(1)
    f, runs = decorated(CacheManager(directory=tmp_path / "x", secret=b"a secret of the tests"), "file_based", mode=name)
    assert f(1) == f(1) == [1, 1]
    assert "ask" not in called(f)
    assert runs == []


def test_what_means_nothing_is_an_error(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = "offf"
    for attempt in (lambda: mode(wrong), lambda: set_mode(wrong), lambda: manager.get_cache("x", mode=wrong)):
        with pytest.raises(CacheConfigurationError, match="'offf': give one of 'normal', 'off'"):
            attempt()
    with pytest.raises(CacheConfigurationError, match="namespaces"):
        mode("off", "")
    monkeypatch.setenv("CODOMYRMEX_CACHE_MODE", wrong)
    with pytest.raises(CacheConfigurationError, match="offf"):
        manager.get_cache("fresh").get("k")


# -- no hit escapes, and veils are taken off again


def called(f: Callable[[Any], Any]) -> list[str]:
    """The names of the Python functions that a call of it runs."""
    names: list[str] = []
    sys.setprofile(lambda frame, event, argument: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        f(1)
    finally:
        sys.setprofile(None)
    return names


def test_a_hit_is_as_quick_after_a_mode_as_before(manager: CacheManager) -> None:
    own = CacheManager()
    f, _ = decorated(own, "in_memory")
    f(1), f(1)
    before = len(called(f))
    with mode("refresh"):
        f(1)
        assert len(called(f)) > before
    f(1)
    assert len(called(f)) == before == HIT_FRAMES


def test_a_function_decorated_in_a_mode_obeys(manager: CacheManager) -> None:
    with mode("refresh"):
        f, runs = decorated(manager, "in_memory")
        f(1), f(1)
        with mode("refresh"):
            f(1)
    assert runs == [1, 1]
    f(1), f(1)
    assert len(called(f)) == HIT_FRAMES
    with mode("off"):
        assert f(1) == [1, 3]


def test_a_task_that_outlives_the_block_stays_in_its_mode(manager: CacheManager) -> None:
    f, _ = decorated(manager, "in_memory")

    async def later(gate: asyncio.Event) -> Any:
        await gate.wait()
        return f(1), f(1)

    async def main() -> Any:
        f(1), f(1)
        gate = asyncio.Event()
        with mode("off"):
            task = asyncio.create_task(later(gate))
            await asyncio.sleep(0)
        assert f(1) == [1, 1]
        gate.set()
        return await task

    assert asyncio.run(main()) == ([1, 2], [1, 3])
    gc.collect()
    f(1)
    assert len(called(f)) == HIT_FRAMES


def test_threads_in_and_out_of_refresh_never_mix(manager: CacheManager) -> None:
    own = CacheManager()
    state = {"generation": 0}

    @cached("race", manager=own)
    def f(x: int) -> int:
        return state["generation"]

    stop = threading.Event()
    seen: list[BaseException] = []

    def outside() -> None:
        try:
            while not stop.is_set():
                assert f(1) <= state["generation"]
        except BaseException as error:
            seen.append(error)

    threads = [threading.Thread(target=outside) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for generation in range(1, 300):
            state["generation"] = generation
            with mode("refresh"):
                assert f(1) == generation
                assert f(1) == generation
            with mode("off"):
                assert f(1) == generation
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen == []


# -- coroutines, streams, batches, methods


@pytest.mark.parametrize("backend", BACKENDS)
def test_coroutine_functions(manager: CacheManager, backend: str) -> None:
    runs: list[int] = []

    @cached("modes", backend=backend, manager=manager)
    async def f(x: int) -> list[int]:
        runs.append(x)
        return [x, len(runs)]

    async def main() -> None:
        assert await f(1) == await f(1) == [1, 1]
        with mode("off"):
            assert await f(1) == [1, 2]
        with mode("refresh"):
            assert await f(1) == await f(1) == [1, 3]
        with mode("readonly"):
            assert await f(2) == [2, 4]
        with mode("replay"):
            assert await f(1) == [1, 3]
            with pytest.raises(CacheMissError):
                await f(2)
        assert await f(1) == [1, 3]
        await manager.aclose()

    asyncio.run(main())


def test_a_wrapped_coroutine_function_replays_as_an_awaitable(manager: CacheManager) -> None:
    runs: list[int] = []

    async def inner(x: int) -> int:
        runs.append(x)
        return x

    import functools

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    f = cached("modes", manager=manager)(outer)

    async def main() -> None:
        with mode("record"):
            assert await f(1) == 1
        with mode("replay"):
            assert await f(1) == 1
            pending = f(2)
            with pytest.raises(CacheMissError):
                await pending
        with mode("off"):
            assert await f(1) == 1

    asyncio.run(main())
    assert runs == [1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams(manager: CacheManager, backend: str) -> None:
    runs: list[int] = []

    @cached("streams", backend=backend, manager=manager)
    def f(x: int) -> Iterator[int]:
        runs.append(x)
        yield from (x, len(runs))

    @cached("streams", backend=backend, manager=manager)
    async def g(x: int) -> AsyncIterator[int]:
        yield x

    async def heard(x: int) -> list[int]:
        return [item async for item in g(x)]

    assert list(f(1)) == list(f(1)) == [1, 1]
    with mode("off"), f(1) as stream:
        assert list(stream) == [1, 2]
    with mode("readonly"):
        assert list(f(2)) == [2, 3]
    with mode("refresh"):
        assert list(f(1)) == [1, 4]
        assert list(f(1)) == [1, 4]
    with mode("replay"):
        assert list(f(1)) == [1, 4]
        with pytest.raises(CacheMissError):
            list(f(2))
        with pytest.raises(CacheMissError):
            asyncio.run(heard(1))
    with mode("off"):
        assert asyncio.run(heard(1)) == [1]
    with mode("record"):
        assert asyncio.run(heard(1)) == [1]
    with mode("replay"):
        assert asyncio.run(heard(1)) == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches(manager: CacheManager, backend: str) -> None:
    runs: list[list[int]] = []

    @cached("batches", backend=backend, manager=manager, batch="items")
    def f(items: list[int]) -> list[str]:
        runs.append(items)
        return [f"{item} {len(runs)}" for item in items]

    assert f([1, 2]) == f([1, 2]) == ["1 1", "2 1"]
    with mode("off"):
        assert f([1]) == ["1 2"]
    with mode("readonly"):
        assert f([1, 3]) == ["1 1", "3 3"]
    with mode("refresh"):
        assert f([1, 3]) == ["1 4", "3 4"]
        assert f([1, 3]) == ["1 4", "3 4"]
    with mode("replay"):
        assert f([1, 2, 3]) == ["1 4", "2 1", "3 4"]
        with pytest.raises(CacheMissError, match="differs  items"):
            f([1, 4])
    assert f([4, 1]) == ["4 5", "1 4"]


def test_methods_and_stale_entries(manager: CacheManager, clock: Any) -> None:
    own = CacheManager(clock=clock)
    runs: list[int] = []

    class Shop:
        @cached("shop", ttl=10, stale=100, manager=own)
        def price(self, item: int) -> int:
            runs.append(item)
            return len(runs)

    shop = Shop()
    shop.price(1)
    clock.advance(50)
    with mode("readonly"):
        assert shop.price(1) == 1
    with mode("replay"):
        assert shop.price(1) == 1
    assert runs == [1]


# -- the direct API


def direct(manager: CacheManager, backend: str) -> Cache:
    return manager.get_cache("direct", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_direct_interface(manager: CacheManager, backend: str) -> None:
    cache = direct(manager, backend)
    cache.set("k", 1)
    assert cache.get("k") == cache.get("k") == 1
    with mode("off"):
        assert cache.get("k") is None
        assert cache.get_or_load("k", lambda: 2) == 2
        assert cache.get_many(["k"]) == {}
        cache.set("new", 1)
        cache.set_many({"new": 1})
    with mode("readonly"):
        assert cache.get("k") == 1
        assert cache.get_or_load("new", lambda: 2) == 2
        cache.set("new", 1)
    with mode("replay"):
        assert cache.get("k") == 1
        assert cache.get("new", "absent") == "absent"
        with pytest.raises(CacheMissError, match="'new'"):
            cache.get_or_load("new", lambda: 2)
    assert not cache.has("new")
    with mode("refresh"):
        assert cache.get("k") is None
        assert cache.get_or_load("k", lambda: 3) == 3
        assert cache.get_or_load("k", lambda: 4) == 3
        assert cache.get("k") == 3
    assert cache.get("k") == cache.get("k") == 3
    cache.set("k", 5)
    assert cache.get("k") == 5
    with mode("refresh"):
        assert cache.get_many(["k"]) == {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_direct_interface_in_event_loops(manager: CacheManager, backend: str) -> None:
    cache = direct(manager, backend)

    async def main() -> None:
        await cache.aset("k", 1)
        with mode("off"):
            assert await cache.aget("k") is None
            assert await cache.aget_or_load("k", lambda: 2) == 2
            await cache.aset("k", 9)
        with mode("refresh"):
            assert await cache.aget_many(["k"]) == {}
            assert await cache.aget_or_load("k", lambda: 3) == 3
        assert await cache.aget("k") == 3
        await manager.aclose()

    asyncio.run(main())
