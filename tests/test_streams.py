"""Memoized streams as their callers see them: decorated functions of every form that gives one, in every backend."""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import MISSING, CacheManager, cached
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.streams import AsyncCachedStream, CachedStream
from codomyrmex_cache.testing import FakeClock

SECRET = b"a secret for the tests"
LIMIT = 10.0
"""Seconds after which a thread that should have gone on has not."""

CHUNKS: list[Any] = ["a", "", None, 0, [], "b"]


@pytest.fixture
def decorate(manager: CacheManager, backend_name: str) -> Callable[..., Any]:
    return functools.partial(cached, "streams", backend=backend_name, manager=manager)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


class Log:
    """What happened to the streams of one test."""

    def __init__(self) -> None:
        self.begun = self.drawn = self.closed = 0


class Stream:
    """As an SDK's: iterated, closed, used in `with`."""

    def __init__(self, log: Log, chunks: Any) -> None:
        self.log, self.chunks = log, iter(chunks)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        chunk = next(self.chunks)
        self.log.drawn += 1
        return chunk

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.log.closed += 1


class AsyncStream:
    """The same for event loops."""

    def __init__(self, log: Log, chunks: Any) -> None:
        self.log, self.chunks = log, iter(chunks)

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        try:
            chunk = next(self.chunks)
        except StopIteration:
            raise StopAsyncIteration from None
        self.log.drawn += 1
        return chunk

    async def aclose(self) -> None:
        self.log.closed += 1


def generated(log: Log, chunks: Any) -> Iterator[Any]:
    try:
        for chunk in chunks:
            log.drawn += 1
            yield chunk
    finally:
        log.closed += 1


async def agenerated(log: Log, chunks: Any) -> AsyncIterator[Any]:
    try:
        for chunk in chunks:
            await asyncio.sleep(0)
            log.drawn += 1
            yield chunk
    finally:
        log.closed += 1


FORMS = ["generator function", "returns a generator", "returns a stream", "wraps", "method"]
AFORMS = [
    "async generator function",
    "returns a generator",
    "returns a stream",
    "coroutine",
    "wraps",
    "coroutine wraps",
    "method",
]


def make(decorate: Callable[..., Any], form: str, log: Log, chunks: Any = CHUNKS, **options: Any) -> Any:
    """A memoized function of this form, of one argument, which makes its stream anew for each run."""

    def generator(x: Any) -> Iterator[Any]:
        log.begun += 1
        yield from generated(log, chunks)

    def returning(x: Any) -> Any:
        log.begun += 1
        return generated(log, chunks) if form == "returns a generator" else Stream(log, chunks)

    @functools.wraps(generator)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return generator(*args, **kwargs)

    class Client:
        def stream(self, x: Any) -> Iterator[Any]:
            return generator(x)

    if form == "method":
        Client.stream = decorate(name="Client.stream", key=lambda self, x: x, **options)(Client.stream)  # type: ignore[method-assign]
        return functools.partial(Client.stream, Client())
    bodies = {"generator function": generator, "wraps": wrapper}
    return decorate(**options)(bodies.get(form, returning))


def amake(decorate: Callable[..., Any], form: str, log: Log, chunks: Any = CHUNKS, **options: Any) -> Any:
    """The same for event loops; what is called may have to be awaited first, see `astart`."""

    async def generator(x: Any) -> AsyncIterator[Any]:
        log.begun += 1
        async for chunk in agenerated(log, chunks):
            yield chunk

    def returning(x: Any) -> Any:
        log.begun += 1
        return agenerated(log, chunks) if form == "returns a generator" else AsyncStream(log, chunks)

    async def coroutine(x: Any) -> Any:
        log.begun += 1
        return AsyncStream(log, chunks)

    @functools.wraps(generator)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return generator(*args, **kwargs)

    @functools.wraps(coroutine)
    def awrapper(*args: Any, **kwargs: Any) -> Any:
        return coroutine(*args, **kwargs)

    class Client:
        async def stream(self, x: Any) -> Any:
            return await coroutine(x)

    if form == "method":
        Client.stream = decorate(name="Client.astream", key=lambda self, x: x, **options)(Client.stream)  # type: ignore[method-assign]
        return functools.partial(Client.stream, Client())
    bodies = {"async generator function": generator, "wraps": wrapper, "coroutine": coroutine, "coroutine wraps": awrapper}
    return decorate(**options)(bodies.get(form, returning))


async def astart(call: Any) -> Any:
    """The stream of a call, whether or not the function is a coroutine function."""
    return call if hasattr(type(call), "__anext__") else await call


async def collect(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


# -- every form


@pytest.mark.parametrize("form", FORMS)
def test_callers_share_one_stream_from_its_first_item_and_later_ones_hear_it_again(
    decorate: Callable[..., Any], form: str
) -> None:
    log = Log()
    function = make(decorate, form, log)
    first, second = function(1), function(1)
    assert log.drawn == 0
    assert [next(first), next(first)] == CHUNKS[:2]
    assert next(second) == CHUNKS[0]
    late = function(1)
    assert next(late) == CHUNKS[0]
    assert log.drawn == 2
    assert [list(late), list(first), list(second)] == [CHUNKS[1:], CHUNKS[2:], CHUNKS[1:]]
    assert [list(function(1)) for _ in range(3)] == [CHUNKS] * 3
    assert (log.begun, log.drawn, log.closed >= 1) == (1, len(CHUNKS), True)


@pytest.mark.parametrize("form", AFORMS)
def test_tasks_share_one_stream_from_its_first_item_and_later_ones_hear_it_again(
    decorate: Callable[..., Any], form: str
) -> None:
    log = Log()
    function = amake(decorate, form, log)

    async def main() -> None:
        first, second = await astart(function(1)), await astart(function(1))
        assert log.drawn == 0
        assert [await anext(first), await anext(first)] == CHUNKS[:2]
        assert await anext(second) == CHUNKS[0]
        late = await astart(function(1))
        assert await anext(late) == CHUNKS[0]
        assert log.drawn == 2
        rest = await asyncio.gather(collect(late), collect(first), collect(second))
        assert rest == [CHUNKS[1:], CHUNKS[2:], CHUNKS[1:]]
        for _ in range(3):
            assert await collect(await astart(function(1))) == CHUNKS
        assert (log.begun, log.drawn, log.closed >= 1) == (1, len(CHUNKS), True)

    asyncio.run(main())


@pytest.mark.parametrize("form", FORMS)
def test_when_everybody_has_left_the_stream_is_closed_and_nothing_is_stored(decorate: Callable[..., Any], form: str) -> None:
    log = Log()
    function = make(decorate, form, log)
    first, second = function(1), function(1)
    next(first), next(first), next(second)
    first.close()
    assert log.closed == 0
    assert next(second) == CHUNKS[1]
    with second:
        pass
    assert log.closed == 1
    assert log.drawn == 2
    assert list(second) == []
    assert list(function(1)) == CHUNKS
    assert log.begun == 2
    assert list(function(1)) == CHUNKS
    assert log.begun == 2


@pytest.mark.parametrize("form", AFORMS)
def test_when_every_task_has_left_the_stream_is_closed_and_nothing_is_stored(decorate: Callable[..., Any], form: str) -> None:
    log = Log()
    function = amake(decorate, form, log)

    async def main() -> None:
        first, second = await astart(function(1)), await astart(function(1))
        await anext(first), await anext(first), await anext(second)
        await first.aclose()
        assert log.closed == 0
        assert await anext(second) == CHUNKS[1]
        async with second:
            pass
        assert (log.closed, log.drawn) == (1, 2)
        assert await collect(second) == []
        assert await collect(await astart(function(1))) == CHUNKS
        assert await collect(await astart(function(1))) == CHUNKS
        assert log.begun == 2

    asyncio.run(main())


@pytest.mark.parametrize("form", ["generator function", "returns a stream"])
def test_a_view_that_is_dropped_has_left(decorate: Callable[..., Any], form: str) -> None:
    log = Log()
    function = make(decorate, form, log)
    stream = function(1)
    next(stream)
    del stream
    gc.collect()
    assert log.closed == 1
    assert list(function(1)) == CHUNKS
    assert log.begun == 2


def test_what_is_given_is_a_stream(decorate: Callable[..., Any]) -> None:
    assert type(make(decorate, "generator function", Log())(1)) is CachedStream
    assert type(make(decorate, "returns a stream", Log())(1)) is CachedStream
    assert type(amake(decorate, "async generator function", Log())(1)) is AsyncCachedStream


def test_nothing_runs_before_the_first_item(decorate: Callable[..., Any]) -> None:
    log = Log()
    function, later = make(decorate, "generator function", log), amake(decorate, "async generator function", log)
    streams = [function(1), later(1)]
    assert (log.begun, function.stats().calls, later.stats().calls) == (0, 0, 0)
    streams[0].close()
    assert list(streams[0]) == []
    assert log.begun == 0
    assert next(function(1)) == "a"
    assert log.begun == 1


# -- threads and event loops


def test_threads_share_one_stream(decorate: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    log = Log()
    function = make(decorate, "generator function", log, range(200))
    barrier = threading.Barrier(12)

    def read() -> list[int]:
        barrier.wait(LIMIT)
        return list(function(1))

    reads = [pool.submit(read) for _ in range(12)]
    assert [each.result(LIMIT) for each in reads] == [list(range(200))] * 12
    assert (log.begun, log.drawn) == (1, 200)
    stats = function.stats()
    assert stats.misses == 1
    assert stats.hits + stats.coalesced == 11


def test_a_slow_caller_holds_up_nobody(decorate: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    log = Log()
    function = make(decorate, "generator function", log, range(50))
    slow = function(1)
    assert next(slow) == 0
    assert pool.submit(lambda: list(function(1))).result(LIMIT) == list(range(50))
    assert list(function(1)) == list(range(50))
    assert list(slow) == list(range(1, 50))
    assert log.begun == 1


def test_two_event_loops_in_two_threads_share_one_stream(decorate: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    log = Log()
    function = amake(decorate, "async generator function", log, range(50))
    barrier = threading.Barrier(2)

    def read() -> list[int]:
        async def main() -> list[int]:
            stream = function(1)
            items = [await anext(stream)]
            await asyncio.to_thread(barrier.wait, LIMIT)  # both are in it before it ends
            items += await collect(stream)
            await asyncio.to_thread(barrier.wait, LIMIT)  # the loop that draws it stays until both have heard it
            return items

        return asyncio.run(main())

    reads = [pool.submit(read) for _ in range(2)]
    assert [each.result(LIMIT) for each in reads] == [list(range(50))] * 2
    assert (log.begun, log.drawn) == (1, 50)


def test_cancelling_one_task_leaves_the_others_theirs(decorate: Callable[..., Any]) -> None:
    log = Log()
    function = amake(decorate, "async generator function", log)

    async def main() -> None:
        first, second = asyncio.ensure_future(collect(function(1))), asyncio.ensure_future(collect(function(1)))
        while log.drawn == 0:
            await asyncio.sleep(0)
        first.cancel()
        assert await second == CHUNKS
        assert await collect(function(1)) == CHUNKS
        assert log.begun == 1

    asyncio.run(main())


# -- replay

RUNS: list[str] = []


def spoken(word: str) -> Iterator[Any]:
    RUNS.append(word)
    yield from CHUNKS
    return word


async def aspoken(word: str) -> AsyncIterator[Any]:
    RUNS.append(word)
    for chunk in CHUNKS:
        yield chunk


@pytest.mark.parametrize("backend", ["file_based", "redis"])
def test_after_a_restart_the_stored_stream_is_heard_again(tmp_path: Path, backend: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("valkey").url if backend == "redis" else None
    RUNS.clear()
    for _ in range(2):
        manager = CacheManager(directory=tmp_path, url=url, secret=SECRET)
        decorate = functools.partial(cached, "restart", backend=backend, manager=manager)
        function, later = decorate()(spoken), decorate()(aspoken)
        assert list(function("x")) == CHUNKS
        assert returned(function("x")) == "x"

        async def main(later: Any = later) -> None:
            assert await collect(later("x")) == CHUNKS
            await manager.aclose()  # noqa: B023

        asyncio.run(main())
        manager.close()
    assert RUNS == ["x", "x"]  # once by each function


def returned(stream: Any) -> Any:
    """What `yield from` is given at the end."""

    def outer() -> Iterator[Any]:
        results.append((yield from stream))

    results: list[Any] = []
    for _ in outer():
        pass
    return results[0]


def test_what_a_generator_returns_is_kept(decorate: Callable[..., Any]) -> None:
    @decorate()
    def function(x: int) -> Iterator[int]:
        yield x
        return {"sum": [x]}

    for _ in range(3):
        found = returned(function(1))
        assert found == {"sum": [1]}
        found["sum"].append(2)


def test_an_empty_stream_is_kept_too(decorate: Callable[..., Any]) -> None:
    log = Log()
    function, later = make(decorate, "generator function", log, []), amake(decorate, "async generator function", log, [])

    async def main() -> None:
        assert [await collect(later(1)), await collect(later(1))] == [[], []]

    assert [list(function(1)), list(function(1))] == [[], []]
    asyncio.run(main())
    assert log.begun == 2


def test_nobody_changes_what_another_one_hears(decorate: Callable[..., Any]) -> None:
    @decorate()
    def function() -> Iterator[dict[str, list[int]]]:
        for number in range(2):
            yield {"items": [number]}

    first, second = function(), function()
    for stream in (first, second, function(), function()):
        for number, chunk in enumerate(stream):
            assert chunk == {"items": [number]}
            chunk["items"].append(9)
    entry = function.entry()
    assert entry.value == [{"items": [0]}, {"items": [1]}]


# -- ends


def test_an_error_is_raised_at_its_place_to_all_and_nothing_is_stored(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate(errors={ValueError: None})
    def function() -> Iterator[int]:
        runs.append(1)
        yield 1
        yield 2
        raise ValueError("broken")

    streams = function(), function()
    assert [next(stream) for stream in streams] == [1, 1]
    raised = []
    for stream in streams:
        heard = []
        with pytest.raises(ValueError, match="broken") as caught:
            for chunk in stream:
                heard.append(chunk)
        assert heard == [2]
        assert list(stream) == []
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert len(runs) == 1
    assert function.contains() is False
    with pytest.raises(ValueError, match="broken"):
        list(function())


def test_an_error_reaches_those_who_share_a_stream(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate()
    async def function() -> AsyncIterator[int]:
        runs.append(1)
        yield 1
        raise ValueError("broken")

    async def main() -> None:
        streams = [function() for _ in range(3)]
        assert [await anext(stream) for stream in streams] == [1] * 3
        raised = []
        for stream in streams:
            with pytest.raises(ValueError, match="broken") as caught:
                await anext(stream)
            raised.append(caught.value)
        assert len({id(error) for error in raised}) == 3
        assert await function.acontains() is False

    asyncio.run(main())
    assert len(runs) == 1


def test_a_generator_function_that_fails_before_its_first_item(decorate: Callable[..., Any]) -> None:
    log = Log()

    def failing() -> Any:
        log.begun += 1
        raise KeyError("x")

    @decorate()
    def generator() -> Iterator[int]:
        failing()
        yield 1

    returning = decorate(errors={KeyError: None})(failing)
    for _ in range(2):
        with pytest.raises(KeyError):
            next(generator())
        with pytest.raises(KeyError):
            returning()
    assert log.begun == 3  # what gave no stream has failed as any function does, and that is remembered


def test_beyond_stream_max_a_stream_passes_through(decorate: Callable[..., Any]) -> None:
    log = Log()
    function = make(decorate, "generator function", log, ["x" * 1000] * 8, stream_max=3000)
    first, second = function(1), function(1)
    next(first), next(second)
    assert len(list(first)) == len(list(second)) == 7
    assert log.begun == 1
    assert function.contains(1) is False
    assert len(list(function(1))) == 8
    assert log.begun == 2
    small = make(decorate, "returns a stream", Log(), ["x" * 1000] * 2, stream_max=3000)
    list(small(1))
    assert small.contains(1) is True


# -- invalidations


@pytest.mark.parametrize("verb", ["invalidate", "clear", "tags", "cache clear"])
def test_a_stream_that_is_invalidated_goes_on_and_is_not_stored(decorate: Callable[..., Any], verb: str) -> None:
    log = Log()
    function = make(decorate, "generator function", log, tags=["t"])
    first = function(1)
    next(first)
    {
        "invalidate": lambda: function.invalidate(1),
        "clear": function.clear,
        "tags": lambda: function.cache.invalidate_tags("t"),
        "cache clear": function.cache.clear,
    }[verb]()
    second = function(1)
    assert next(second) == CHUNKS[0]
    assert log.begun == 2
    assert list(first) == CHUNKS[1:]
    assert function.contains(1) is False
    assert list(second) == CHUNKS[1:]
    assert function.contains(1) is True
    assert list(function(1)) == CHUNKS
    assert log.begun == 2


@pytest.mark.parametrize("verb", ["ainvalidate", "aclear"])
def test_an_async_stream_that_is_invalidated_goes_on_and_is_not_stored(decorate: Callable[..., Any], verb: str) -> None:
    log = Log()
    function = amake(decorate, "async generator function", log)

    async def main() -> None:
        first = function(1)
        await anext(first)
        await (function.ainvalidate(1) if verb == "ainvalidate" else function.aclear())
        second = function(1)
        await anext(second)
        assert log.begun == 2
        assert await collect(first) == CHUNKS[1:]
        assert await function.acontains(1) is False
        assert await collect(second) == CHUNKS[1:]
        assert await function.acontains(1) is True

    asyncio.run(main())


def test_a_refreshed_stream_that_is_invalidated_is_not_stored(decorate: Callable[..., Any]) -> None:
    log = Log()
    function = make(decorate, "generator function", log)
    stream = function.refresh(1)
    next(stream)
    function.invalidate(1)
    list(stream)
    assert function.contains(1) is False


# -- options


def test_streams_have_a_ttl_and_a_stale_one_is_a_miss(decorate: Callable[..., Any], clock: FakeClock) -> None:
    log = Log()
    function = make(decorate, "generator function", log, ttl=lambda chunks: 10 * len(chunks), stale=100)
    list(function(1))
    assert function.entry(1).ttl == 10 * len(CHUNKS)
    clock.advance(59.9)
    assert list(function(1)) == CHUNKS
    assert log.begun == 1
    clock.advance(0.1)
    assert list(function(1)) == CHUNKS
    assert log.begun == 2
    assert (function.stats().stale_hits, function.stats().misses) == (0, 2)


def test_streams_have_tags(decorate: Callable[..., Any]) -> None:
    log = Log()
    function = make(decorate, "returns a stream", log, tags=lambda x: [f"x:{x}"])
    list(function(1)), list(function(2))
    assert function.entry(1).tags == ("x:1",)
    function.cache.invalidate_tags("x:1")
    assert (function.contains(1), function.contains(2)) == (False, True)


def test_a_refresh_that_gives_a_stream_closes_it_and_holds_up_nobody(decorate: Callable[..., Any], clock: FakeClock) -> None:
    log = Log()
    results: list[Any] = ["old", Stream(log, CHUNKS), "new"]

    @decorate(ttl=10, stale=100, name="f", version=1)
    def function() -> Any:
        return results[log.begun]

    assert function() == "old"
    clock.advance(15)
    for log.begun in (1, 2):
        assert function() == "old"
        for thread in threading.enumerate():
            if thread.name == "codomyrmex_cache refresh":
                thread.join(LIMIT)
    assert log.closed == 1
    assert function() == "new"


def test_store_if_is_asked_of_the_list_of_chunks(decorate: Callable[..., Any]) -> None:
    asked: list[Any] = []

    def is_whole(chunks: list[Any]) -> bool:
        asked.append(chunks)
        return chunks[-1] == "end"

    log = Log()
    function = make(decorate, "generator function", log, ["x", "end"], store_if=is_whole)
    cut = make(decorate, "generator function", log, ["x"], name="cut", store_if=is_whole)
    list(function(1)), list(cut(1))
    assert asked == [["x", "end"], ["x"]]
    assert (function.contains(1), cut.contains(1)) == (True, False)


def test_stream_off_refuses_generators_and_stores_no_others(decorate: Callable[..., Any]) -> None:
    log = Log()
    with pytest.raises(CacheConfigurationError, match='leave stream="share"'):
        make(decorate, "generator function", log, stream="off")
    with pytest.raises(CacheConfigurationError, match='leave stream="share"'):
        amake(decorate, "async generator function", log, stream="off")
    function = make(decorate, "returns a stream", log, stream="off")
    assert [list(function(1)), list(function(1))] == [CHUNKS, CHUNKS]
    assert type(function(1)) is Stream
    assert log.begun == 3
    assert function.stats().errors == {"unstorable": 3}


# -- what is no stream, or has no key


def test_what_can_be_read_in_other_ways_is_no_stream(decorate: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\ntwo\n")
    connection = sqlite3.connect(":memory:")

    class Response:
        def read(self) -> bytes:
            return b"body"

        def __iter__(self) -> Response:
            return self

        def __next__(self) -> bytes:
            raise StopIteration

        def close(self) -> None:
            """Nothing to release."""

    makers = [path.open, lambda: io.BytesIO(b"x"), lambda: connection.execute("SELECT 1"), Response, lambda: iter([1])]
    for number, maker in enumerate(makers):
        function = decorate(name=f"f{number}", key=lambda maker=None: 0)(lambda maker=maker: maker())
        results = [function(), function()]
        assert results[0] is not results[1]
        assert not isinstance(results[0], CachedStream)
        assert function.stats().errors == {"unstorable": 2}
        for result in results:
            getattr(result, "close", lambda: None)()
    connection.close()


def test_without_a_key_a_plain_generator_is_given(decorate: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    function, later = make(decorate, "generator function", log), amake(decorate, "async generator function", log)
    unkeyable = threading.Lock()

    async def main() -> None:
        assert await collect(later(unkeyable)) == CHUNKS

    assert not isinstance(function(unkeyable), CachedStream)
    assert [list(function(unkeyable)) for _ in range(2)] == [CHUNKS] * 2
    asyncio.run(main())
    assert log.begun == 3
    assert function.stats().bypasses == 3
    assert function.explain(unkeyable).outcome == "unkeyable"


def test_an_argument_changed_before_the_first_item_is_not_stored_under_its_old_key(decorate: Callable[..., Any]) -> None:
    @decorate()
    def function(items: list[int]) -> Iterator[int]:
        yield from items

    @decorate()
    async def later(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            yield item

    async def main() -> None:
        items = [1]
        stream = later(items)
        items.append(2)
        assert await collect(stream) == [1, 2]
        assert await later.acontains([1]) is False
        assert await collect(later([1])) == [1]

    items = [1]
    stream = function(items)
    items.append(2)
    assert list(stream) == [1, 2]
    assert (function.contains([1]), function.contains([1, 2])) == (False, False)
    assert list(function([1])) == [1]
    asyncio.run(main())


# -- the controls


def test_the_controls_of_a_generator_function(decorate: Callable[..., Any]) -> None:
    log = Log()
    function = make(decorate, "generator function", log)
    assert function.peek(1) is MISSING
    assert function.explain(1).outcome == "miss"
    assert list(function.bypass(1)) == CHUNKS
    assert (log.begun, function.contains(1)) == (1, False)
    list(function(1))
    peeked = function.peek(1)
    assert type(peeked) is CachedStream
    assert list(peeked) == CHUNKS
    assert (function.contains(1), function.explain(1).outcome) == (True, "hit")
    entry = function.entry(1)
    assert (entry.value, entry.streamed) == (CHUNKS, True)
    assert list(function.refresh(1)) == CHUNKS
    assert log.begun == 3
    function.seed(["seeded", 1], 1)
    assert list(function(1)) == ["seeded", 1]
    assert list(function.peek(1)) == ["seeded", 1]
    assert function.invalidate(1) is True
    assert function.peek(1) is MISSING
    assert log.begun == 3
    assert function.clear() == 0


def test_the_controls_of_an_async_generator_function(decorate: Callable[..., Any]) -> None:
    log = Log()
    function = amake(decorate, "async generator function", log)

    async def main() -> None:
        assert await function.apeek(1) is MISSING
        assert await collect(await function.abypass(1)) == CHUNKS
        assert await collect(function(1)) == CHUNKS
        assert await collect(await function.apeek(1)) == CHUNKS
        assert (await function.aentry(1)).value == CHUNKS
        assert (await function.aexplain(1)).outcome == "hit"
        assert await collect(await function.arefresh(1)) == CHUNKS
        assert log.begun == 3
        await function.aseed(["seeded"], 1)
        assert await collect(function(1)) == ["seeded"]
        assert await function.ainvalidate(1) is True
        assert await function.acontains(1) is False

    asyncio.run(main())


def test_a_refreshed_stream_takes_the_place_of_the_old_one_at_its_end(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate()
    def function() -> Iterator[int]:
        runs.append(1)
        yield len(runs)
        yield len(runs)

    assert list(function()) == [1, 1]
    fresh = function.refresh()
    assert next(fresh) == 2
    assert list(function()) == [1, 1]
    assert list(fresh) == [2]
    assert list(function()) == [2, 2]


def test_each_call_of_a_stream_has_one_outcome(decorate: Callable[..., Any]) -> None:
    function = make(decorate, "generator function", Log())
    streams = [function(1) for _ in range(3)]
    for stream in streams:
        next(stream)
    for stream in streams:
        list(stream)
    for _ in range(2):
        list(function(1))
    stats = function.stats()
    assert (stats.misses, stats.coalesced, stats.hits, stats.calls) == (1, 2, 2, 5)
    assert (stats.loads, stats.sets, stats.errors) == (1, 1, {})


# -- streams in streams


def test_a_stream_function_that_calls_itself(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate()
    def countdown(n: int) -> Iterator[int]:
        runs.append(n)
        yield n
        if n:
            yield from countdown(n - 1)

    assert list(countdown(5)) == [5, 4, 3, 2, 1, 0]
    assert list(countdown(3)) == [3, 2, 1, 0]
    assert runs == [5, 4, 3, 2, 1, 0]


def test_an_async_stream_function_that_calls_itself(decorate: Callable[..., Any]) -> None:
    runs: list[int] = []

    @decorate()
    async def countdown(n: int) -> AsyncIterator[int]:
        runs.append(n)
        yield n
        if n:
            async for each in countdown(n - 1):
                yield each

    async def main() -> None:
        assert await collect(countdown(4)) == [4, 3, 2, 1, 0]
        assert await collect(countdown(2)) == [2, 1, 0]

    asyncio.run(main())
    assert runs == [4, 3, 2, 1, 0]


def test_a_stream_inside_a_memoized_function(decorate: Callable[..., Any]) -> None:
    log = Log()
    stream = make(decorate, "generator function", log)
    astream = amake(decorate, "async generator function", log)

    @decorate()
    def joined(x: int) -> list[Any]:
        return list(stream(x))

    @decorate()
    async def ajoined(x: int) -> list[Any]:
        return await collect(astream(x))

    async def main() -> None:
        assert await asyncio.gather(ajoined(1), ajoined(1), collect(astream(1))) == [CHUNKS] * 3

    assert [joined(1), joined(1), list(stream(1))] == [CHUNKS] * 3
    asyncio.run(main())
    assert log.begun == 2


def test_a_plain_stream_of_a_coroutine_function(decorate: Callable[..., Any]) -> None:
    log = Log()

    @decorate()
    async def function() -> Any:
        log.begun += 1
        return generated(log, CHUNKS)

    async def main() -> None:
        first, second = await function(), await function()
        assert next(first) == CHUNKS[0]
        assert [list(second), list(first)] == [CHUNKS, CHUNKS[1:]]
        assert list(await function()) == CHUNKS

    asyncio.run(main())
    assert log.begun == 1
