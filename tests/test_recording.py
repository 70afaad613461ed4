"""A stream and its listeners: who draws, who hears what, who is told when it breaks off."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex_cache._recording import Listener, Recording, approximate_size
from codomyrmex_cache.errors import CacheStreamError
from codomyrmex_cache.streams import AsyncCachedStream, CachedStream, is_async_stream, is_stream
from tests.conftest import run_python

PLENTY = 1_000_000


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs a task that is destroyed while pending, and an exception that nobody has retrieved."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"] == []


class Desk:
    """Where callers come: gives the running recording, or starts one; as the decorator does."""

    def __init__(self, start: Callable[[], Any], *, is_async: bool = False, bound: int = PLENTY, copy: bool = True) -> None:
        self.start, self.is_async, self.bound, self.copy = start, is_async, bound, copy
        self.log: list[str] = []
        self.runs: list[Recording] = []
        self.kept: Any = None
        self.current: Recording | None = None
        self.lock = threading.Lock()

    def open(self) -> tuple[Recording, Listener]:
        with self.lock:
            listener = self.current.listen() if self.current else None
            if self.current is None or listener is None:
                self.current = self._run()
                listener = self.current.listen()
            assert listener is not None
            return self.current, listener

    async def aopen(self) -> tuple[Recording, Listener]:
        return self.open()

    def call(self) -> CachedStream[Any]:
        return CachedStream(self.open)

    def acall(self) -> AsyncCachedStream[Any]:
        return AsyncCachedStream(self.aopen)

    def _run(self) -> Recording:
        def keep() -> None:
            self.log.append("keep")
            self.kept = (recording.chunks, recording.returned)

        async def akeep() -> None:
            await asyncio.sleep(0)
            keep()

        def gone() -> None:
            self.log.append("gone")
            if self.current is recording:
                self.current = None

        recording = Recording(
            self.start(), is_async=self.is_async, bound=self.bound, copy=self.copy,
            keep=akeep if self.is_async else keep, gone=gone,
        )  # fmt: skip
        self.runs.append(recording)
        return recording


class Source:
    """A sync stream that says what happens to it."""

    def __init__(self, chunks: Any = "abc") -> None:
        self.chunks, self.drawn, self.closed = iter(chunks), 0, 0

    def __next__(self) -> Any:
        chunk = next(self.chunks)
        self.drawn += 1
        return chunk

    def close(self) -> None:
        self.closed += 1


class AsyncSource:
    """An SDK's stream: `close` is a coroutine function, and drawing suspends."""

    def __init__(self, chunks: Any = "abc") -> None:
        self.chunks, self.drawn, self.closed = iter(chunks), 0, 0
        self.loop: Any = None

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        self.drawn += 1
        try:
            return next(self.chunks)
        except StopIteration:
            raise StopAsyncIteration from None

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1
        self.loop = asyncio.get_running_loop()


async def _collect(stream: AsyncCachedStream[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


# -- one stream, several threads


def test_the_stream_is_drawn_by_whoever_needs_the_next_chunk() -> None:
    source = Source()
    desk = Desk(lambda: source)
    fast, slow = desk.call(), desk.call()
    assert [next(fast), next(fast)] == ["a", "b"]
    assert source.drawn == 2
    assert [next(slow), next(slow), next(slow)] == ["a", "b", "c"]
    assert source.drawn == 3
    assert (list(fast), list(slow)) == (["c"], [])
    assert desk.kept == (["a", "b", "c"], None)
    assert desk.log == ["keep", "gone"]
    assert len(desk.runs) == 1


def test_those_who_wait_for_a_chunk_get_the_one_that_another_thread_draws() -> None:
    inside, go = threading.Event(), threading.Event()

    def slow() -> Iterator[str]:
        inside.set()
        assert go.wait(10)
        yield "a"
        yield threading.current_thread().name

    desk = Desk(slow)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(lambda: list(desk.call()))
        assert inside.wait(10)
        others = [pool.submit(lambda: list(desk.call())) for _ in range(4)]
        go.set()
        results = [future.result(10) for future in (first, *others)]
    assert all(result == results[0] for result in results)
    assert len(desk.runs) == 1
    assert desk.log == ["keep", "gone"]


def test_sixteen_threads_hear_the_same_stream() -> None:
    barrier = threading.Barrier(16)
    source = Source(range(2_000))
    desk = Desk(lambda: source)

    def listen(_: int) -> list[int]:
        stream = desk.call()
        first = next(stream)
        barrier.wait(10)
        return [first, *stream]

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(listen, range(16)))
    assert results == [list(range(2_000))] * 16
    assert source.drawn == 2_000
    assert desk.log == ["keep", "gone"]


def test_nothing_is_opened_before_the_first_chunk_is_wanted() -> None:
    desk = Desk(Source)
    stream = desk.call()
    assert repr(stream) == "<CachedStream not begun>"
    stream.close()
    assert list(stream) == []
    assert desk.runs == []


def test_an_opener_that_fails_ends_its_view() -> None:
    def fails() -> Any:
        raise ValueError("rate limit")

    stream: CachedStream[Any] = CachedStream(fails)
    with pytest.raises(ValueError, match="rate limit"):
        next(stream)
    assert list(stream) == []


def test_a_view_that_is_being_opened_is_not_opened_twice() -> None:
    desk = Desk(Source)

    def open_and_ask() -> Any:
        with pytest.raises(ValueError, match="being opened"):
            next(stream)
        return desk.open()

    stream: CachedStream[Any] = CachedStream(open_and_ask)
    assert list(stream) == ["a", "b", "c"]


# -- leaving


def test_the_others_go_on_when_one_leaves_and_the_last_one_closes() -> None:
    source = Source()
    desk = Desk(lambda: source)
    one, other = desk.call(), desk.call()
    next(one), next(other)
    one.close()
    assert (source.closed, desk.log) == (0, [])
    assert next(other) == "b"
    with other:
        pass
    assert (source.closed, desk.log) == (1, ["gone"])
    assert (list(one), list(other)) == ([], [])
    assert desk.kept is None


def test_a_dropped_view_has_left() -> None:
    source = Source()
    desk = Desk(lambda: source)
    for chunk in desk.call():
        assert chunk == "a"
        break
    gc.collect()
    assert (source.closed, desk.log) == (1, ["gone"])


def test_a_close_that_raises_reaches_who_closes_but_no_finalizer(recwarn: pytest.WarningsRecorder) -> None:
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise RuntimeError("no")

    stream = Desk(stubborn).call()
    next(stream)
    with pytest.raises(RuntimeError, match="no"):
        stream.close()
    dropped = Desk(stubborn).call()
    next(dropped)
    del dropped
    gc.collect()
    assert list(recwarn) == []


def test_a_listener_may_leave_in_a_finalizer_while_its_own_thread_holds_the_lock() -> None:
    source = Source()
    desk = Desk(lambda: source)
    stream, other = desk.call(), desk.call()
    next(stream), next(other)
    with desk.runs[0].lock:
        del stream
        gc.collect()
    assert list(other) == ["b", "c"]
    assert desk.log == ["keep", "gone"]


def test_a_view_closed_while_its_thread_draws_closes_upstream_afterwards() -> None:
    inside, go = threading.Event(), threading.Event()
    closed: list[str] = []

    def slow() -> Iterator[str]:
        try:
            inside.set()
            assert go.wait(10)
            yield "a"
        finally:
            closed.append("closed")

    desk = Desk(slow)
    stream = desk.call()
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(lambda: list(stream))
        assert inside.wait(10)
        stream.close()
        assert closed == []
        go.set()
        assert heard.result(10) == []
    assert closed == ["closed"]
    assert desk.log == ["gone"]


# -- the end


def test_a_listener_between_the_end_and_gone_hears_everything() -> None:
    heard: list[Any] = []

    def keep() -> None:
        listener = recording.listen()
        assert listener is not None
        heard.extend(CachedStream(lambda: (recording, listener)))

    recording = Recording(Source(), is_async=False, bound=PLENTY, copy=True, keep=keep, gone=lambda: heard.append("gone"))
    assert list(CachedStream(recording)) == ["a", "b", "c"]
    assert heard == ["a", "b", "c", "gone"]


def test_what_a_generator_returns_is_what_each_view_returns() -> None:
    def generator() -> Iterator[int]:
        yield 1
        return ["end"]

    def through(stream: CachedStream[int]) -> Iterator[Any]:
        yield (yield from stream)

    desk = Desk(generator)
    one, other = desk.call(), desk.call()
    next(one), next(other)
    ends = [next(through(one)), next(through(other))]
    assert ends == [["end"], ["end"]]
    assert ends[0] is not ends[1]
    assert desk.kept == ([1], ["end"])
    replay: CachedStream[int] = CachedStream(Recording.finished(*desk.kept, is_async=False, copy=True))
    assert list(through(replay)) == [1, ["end"]]


def test_an_error_is_raised_at_its_place_to_each_as_its_own() -> None:
    error = KeyError("x")

    def fails() -> Iterator[str]:
        yield "a"
        raise error

    desk = Desk(fails)
    one, other = desk.call(), desk.call()
    assert [next(one), next(other)] == ["a", "a"]
    with pytest.raises(KeyError) as first:
        next(one)
    with pytest.raises(KeyError) as second:
        next(other)
    assert first.value is error
    assert second.value is not error
    assert second.value.args == ("x",)
    assert (list(one), list(other)) == ([], [])
    assert desk.log == ["gone"]
    assert list(desk.runs[0].chunks) == ["a"]
    assert desk.runs[0].listen() is None


def test_what_keep_raises_reaches_who_drew_the_end() -> None:
    log: list[str] = []

    def keep() -> None:
        raise OSError("full")

    recording = Recording(Source("a"), is_async=False, bound=PLENTY, copy=True, keep=keep, gone=lambda: log.append("gone"))
    one: CachedStream[str] = CachedStream(recording)
    other: CachedStream[str] = CachedStream(recording)
    assert next(one) == "a"
    with pytest.raises(OSError, match="full"):
        next(one)
    assert list(other) == ["a"]
    assert log == ["gone"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_an_interruption_is_the_pullers_alone(kind: type[BaseException]) -> None:
    runs: list[int] = []

    def interrupted() -> Iterator[str]:
        runs.append(1)
        yield "a"
        if len(runs) == 1:
            raise kind
        yield "b"

    desk = Desk(interrupted)
    puller, other, fresh = desk.call(), desk.call(), desk.call()
    next(puller), next(other)
    fresh._opened = desk.open()  # it has joined and heard nothing
    with pytest.raises(kind):
        next(puller)
    with pytest.raises(CacheStreamError, match=kind.__name__):
        next(other)
    assert list(fresh) == ["a", "b"]
    assert (list(puller), list(other)) == ([], [])
    assert desk.log == ["gone", "keep", "gone"]
    assert len(runs) == 2


def test_those_who_wait_while_the_puller_is_interrupted_start_over() -> None:
    inside, go = threading.Event(), threading.Event()
    runs: list[int] = []

    def interrupted() -> Iterator[str]:
        runs.append(1)
        if len(runs) == 1:
            inside.set()
            assert go.wait(10)
            raise SystemExit
        yield "a"

    desk = Desk(interrupted)
    with ThreadPoolExecutor(4) as pool:
        puller = pool.submit(next, desk.call())
        assert inside.wait(10)
        others = [pool.submit(lambda: list(desk.call())) for _ in range(3)]
        go.set()
        with pytest.raises(SystemExit):
            puller.result(10)
        assert [other.result(10) for other in others] == [["a"]] * 3


def test_a_broken_stream_without_an_opener_cannot_start_over() -> None:
    def interrupted() -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    recording = Desk(interrupted).open()[0]
    one: CachedStream[str] = CachedStream(recording)
    other: CachedStream[str] = CachedStream(recording)
    with pytest.raises(KeyboardInterrupt):
        list(one)
    with pytest.raises(CacheStreamError):
        next(other)
    with pytest.raises(CacheStreamError, match="no more listeners"):
        CachedStream(recording)


# -- chunks


def test_each_listener_has_chunks_of_its_own() -> None:
    original = {"text": ["a"]}
    desk = Desk(lambda: Source([original]))
    puller, other = desk.call(), desk.call()
    first = next(puller)
    assert first is original
    first["text"].append("changed")
    second = next(other)
    assert second == {"text": ["a"]}
    second["text"].append("changed too")
    third = next(desk.call())
    assert third == {"text": ["a"]}
    list(puller)
    assert desk.kept == ([{"text": ["a"]}], None)
    replayed = Recording.finished(*desk.kept, is_async=False, copy=True)
    next(CachedStream[Any](replayed))["text"].append("!")
    assert next(CachedStream[Any](replayed)) == {"text": ["a"]}


def test_chunks_are_shared_on_demand() -> None:
    original = ["a"]
    desk = Desk(lambda: Source([original]), copy=False)
    one, other = desk.call(), desk.call()
    assert next(one) is original
    assert next(other) is original


def test_falsy_chunks_are_chunks() -> None:
    falsy = [None, "", 0, b"", (), False]
    desk = Desk(lambda: Source(falsy))
    one, other = desk.call(), desk.call()
    assert next(one) is None
    assert list(other) == falsy
    assert list(one) == falsy[1:]
    assert desk.kept == (falsy, None)


def test_one_listener_hears_chunks_that_cannot_be_copied() -> None:
    locks = [threading.Lock(), "x", threading.Lock()]
    desk = Desk(lambda: Source(locks))
    assert list(desk.call()) == locks
    assert desk.log == ["gone"]


def test_of_a_chunk_that_cannot_be_copied_only_one_listener_hears() -> None:
    def start() -> Source:
        return Source(["a", threading.Lock(), "c"])

    desk = Desk(start)
    puller, other = desk.call(), desk.call()
    next(puller), next(other)
    assert not isinstance(next(puller), str)
    assert desk.log == ["gone"]
    assert desk.runs[0].listen() is None
    with pytest.raises(CacheStreamError, match="cannot be copied"):
        next(other)
    assert next(puller) == "c"
    assert list(puller) == []
    assert desk.log == ["gone"]


def test_before_a_first_chunk_that_cannot_be_copied_everybody_starts_over() -> None:
    desk = Desk(lambda: Source([threading.Lock()]))
    puller, other = desk.call(), desk.call()
    other._opened = desk.open()
    puller._opened = desk.open()
    assert len(desk.runs) == 1
    assert len({id(next(puller)), id(next(other))}) == 2
    assert len(desk.runs) == 2


def test_a_returned_value_that_cannot_be_copied_is_not_kept() -> None:
    def generator() -> Iterator[int]:
        yield 1
        return threading.Lock()

    desk = Desk(generator)
    puller, other = desk.call(), desk.call()
    next(puller), next(other)
    with pytest.raises(StopIteration) as end:
        next(puller)
    assert end.value.value is not None
    with pytest.raises(CacheStreamError):
        next(other)
    assert desk.log == ["gone"]


# -- memory


def test_beyond_its_bound_a_stream_passes_through_and_forgets() -> None:
    chunks = [str(number) * 1_000 for number in range(10)] * 10
    desk = Desk(lambda: Source(chunks), bound=5_000)
    fast, slow = desk.call(), desk.call()
    next(slow)
    heard = [next(fast) for _ in range(50)]
    recording = desk.runs[0]
    assert desk.log == ["gone"]
    assert recording.listen() is None
    assert len(recording.chunks) == 49
    assert [next(slow) for _ in range(48)] == chunks[1:49]
    assert len(recording.chunks) == 1
    slow.close()
    assert [*heard, *fast] == chunks
    assert len(recording.chunks) == 0
    assert next(desk.call()) == chunks[0]
    assert len(desk.runs) == 2
    assert "keep" not in desk.log


def test_a_stream_of_no_bytes_is_nobodys_to_join() -> None:
    desk = Desk(Source, bound=0)
    one, other = desk.call(), desk.call()
    assert [next(one), next(other)] == ["a", "a"]
    assert len(desk.runs) == 2


def test_the_size_of_a_value_counts_what_it_holds_once() -> None:
    class Chunk:
        def __init__(self, text: str) -> None:
            self.text, self.itself = text, self

    text = "x" * 10_000
    for value in (text, [text], [text, text], {text: text}, (text, {text}), Chunk(text), [Chunk, Chunk(text)]):
        assert 10_000 < approximate_size(value) < 12_000


# -- inside itself, forks, kinds


def test_a_body_that_reads_its_own_stream_is_told() -> None:
    def body() -> Iterator[str]:
        yield "a"
        yield from desk.call()

    desk = Desk(body)
    stream = desk.call()
    assert next(stream) == "a"
    with pytest.raises(CacheStreamError, match="inside itself"):
        next(stream)
    assert desk.log == ["gone"]


def test_forked_children_inherit_no_puller_and_no_held_lock() -> None:
    source = """
import os, threading
from codomyrmex_cache._recording import Recording
from codomyrmex_cache.errors import CacheStreamError
from codomyrmex_cache.streams import CachedStream

inside, go, log = threading.Event(), threading.Event(), []

def body():
    yield "a"
    inside.set()
    go.wait(30)
    yield "b"

def recording():
    return Recording(body(), is_async=False, bound=1000, copy=True, keep=lambda: None, gone=lambda: log.append("gone"))

idle, running = recording(), recording()
idle_stream, puller, other = CachedStream(idle), CachedStream(running), CachedStream(running)
next(idle_stream), next(other)
thread = threading.Thread(target=lambda: list(puller))
thread.start()
inside.wait(30)
idle.lock.acquire()
child = os.fork()
if child == 0:
    status = 1
    try:
        next(other)
    except CacheStreamError:
        go.set()
        status = 0 if list(idle_stream) == ["b"] and running.listen() is None and log == ["gone", "gone"] else 2
    os._exit(status)
idle.lock.release()
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
thread.join()
print(status, list(other))
"""
    assert run_python(source) == "0 ['b']\n"


def test_a_sync_stream_needs_no_event_loop() -> None:
    source = """
import sys
from codomyrmex_cache._recording import Recording
from codomyrmex_cache.streams import CachedStream
class Source:
    def __init__(self): self.left = [2, 1]
    def __next__(self):
        if not self.left: raise StopIteration
        return self.left.pop()
    def close(self): pass
recording = Recording(Source(), is_async=False, bound=1000, copy=True, keep=lambda: None, gone=lambda: None)
print(list(CachedStream(recording)), "asyncio" in sys.modules)
"""
    assert run_python(source) == "[1, 2] False\n"


def test_streams_are_told_by_their_type() -> None:
    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    async def coroutine() -> None: ...

    generator, waiting = asynchronous(), coroutine()
    sync = [(number for number in [1]), Source(), Desk(Source).call()]
    streams = [*sync, generator, AsyncSource(), Desk(Source).acall()]
    others = [iter([1]), [1], "x", io.BytesIO(), io.StringIO(), waiting, Source, None]
    assert [is_stream(value) for value in streams] == [True] * 6
    assert [is_async_stream(value) for value in streams] == [False] * 3 + [True] * 3
    assert [is_stream(value) for value in others] == [False] * 8
    waiting.close()


def test_a_view_can_be_recorded_in_its_turn() -> None:
    inner = Desk(Source)
    outer = Desk(inner.call)
    assert list(outer.call()) == ["a", "b", "c"]
    assert outer.kept == inner.kept == (["a", "b", "c"], None)


STEPS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["take", "take", "leave", "join"])), max_size=60)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(0, 12), st.sampled_from([0, 60, 150, PLENTY]))
def test_any_schedule_of_listeners(steps: list[tuple[int, str]], length: int, bound: int) -> None:
    sources: list[Source] = []

    def start() -> Source:
        sources.append(Source([[number] for number in range(length)]))
        return sources[-1]

    desk = Desk(start, bound=bound)
    views: dict[int, CachedStream[Any]] = {}
    heard: dict[int, list[Any]] = {}
    furthest: dict[int, int] = {}
    for who, what in steps:
        if what == "join" and who not in views:
            views[who], heard[who] = desk.call(), []
        elif what == "leave" and who in views:
            views.pop(who).close()
        elif what == "take" and who in views:
            heard[who] += [chunk] if (chunk := next(views[who], None)) is not None else []
            if views[who]._opened is not None:
                run = desk.runs.index(views[who]._opened[0])
                furthest[run] = max(furthest.get(run, 0), len(heard[who]))
        for chunks in heard.values():
            assert chunks == [[number] for number in range(len(chunks))]
        for run, position in furthest.items():
            assert sources[run].drawn <= max(position, 1) or sources[run].drawn == length
    for view in views.values():
        view.close()
    assert [source.closed for source in sources] == [1] * len(sources)
    assert desk.log.count("gone") == len(sources)


# -- event loops


def test_an_async_stream_is_drawn_on_demand_and_shared() -> None:
    source = AsyncSource([["a"], ["b"], ["c"]])
    desk = Desk(lambda: source, is_async=True)

    async def main() -> None:
        fast, slow = desk.acall(), desk.acall()
        first = await anext(fast)
        for _ in range(10):
            await asyncio.sleep(0)
        assert source.drawn == 1  # nobody has asked for more
        first.append("changed")
        assert await asyncio.gather(_collect(fast), _collect(slow)) == [[["b"], ["c"]], [["a"], ["b"], ["c"]]]
        assert desk.log == ["keep", "gone"]  # whoever hears the end finds it kept

    asyncio.run(main())
    assert desk.kept == ([["a"], ["b"], ["c"]], None)
    assert (len(desk.runs), source.closed) == (1, 1)


def test_a_finished_async_recording_is_replayed_without_a_task() -> None:
    async def main() -> None:
        replay = Recording.finished([["a"]], None, is_async=True, copy=True)
        async with AsyncCachedStream[Any](replay) as one, AsyncCachedStream[Any](replay) as other:
            (await anext(one)).append("changed")
            assert await _collect(other) == [["a"]]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


def test_one_task_is_inside_the_generator_from_beginning_to_end() -> None:
    tasks: set[Any] = set()

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        tasks.add(asyncio.current_task())
        yield
        tasks.add(asyncio.current_task())

    async def body() -> AsyncIterator[str]:
        token = VARIABLE.set("inside")
        async with resource():
            with anyio.CancelScope():
                yield VARIABLE.get()
                tasks.add(asyncio.current_task())
                yield VARIABLE.get()
        VARIABLE.reset(token)

    desk = Desk(body, is_async=True)

    async def main() -> None:
        one, other, left = desk.acall(), desk.acall(), Desk(body, is_async=True).acall()
        assert await asyncio.create_task(anext(one)) == "inside"
        assert await asyncio.gather(_collect(one), _collect(other)) == [["inside"], ["inside", "inside"]]
        assert len(tasks) == 1
        tasks.clear()
        await asyncio.create_task(anext(left))
        await left.aclose()
        assert len(tasks) == 1

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["close", "aclose"])
def test_closing_the_last_async_view_waits_until_upstream_is_closed(verb: str) -> None:
    source = AsyncSource()
    desk = Desk(lambda: source, is_async=True)

    async def main() -> None:
        one, other = desk.acall(), desk.acall()
        await anext(one), await anext(other)
        await getattr(one, verb)()
        assert source.closed == 0
        assert await anext(other) == "b"
        await getattr(other, verb)()
        assert source.closed == 1
        assert await _collect(one) == await _collect(other) == []

    asyncio.run(main())
    assert desk.log == ["gone"]


def test_dropping_the_last_async_view_closes_upstream() -> None:
    sources: list[AsyncSource] = []

    def start() -> AsyncSource:
        sources.append(AsyncSource())
        return sources[-1]

    desk = Desk(start, is_async=True)

    async def main() -> None:
        async for _ in desk.acall():
            break
        circle: list[Any] = [desk.acall()]
        circle.append(circle)
        await anext(circle[0])
        del circle
        gc.collect()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert [source.closed for source in sources] == [1, 1]
    assert desk.log == ["gone", "gone"]


def test_an_async_view_closed_before_its_first_chunk_closes_what_was_opened() -> None:
    source = AsyncSource()

    async def main() -> None:
        desk = Desk(lambda: source, is_async=True)
        unopened = desk.acall()
        await unopened.aclose()
        assert desk.runs == []
        opened = desk.acall()
        opened._opened = desk.open()
        await opened.aclose()
        assert source.closed == 1

    asyncio.run(main())


def test_an_error_of_closing_reaches_who_closes() -> None:
    async def body() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise RuntimeError("no")

    async def main() -> None:
        stream = Desk(body, is_async=True).acall()
        await anext(stream)
        with pytest.raises(RuntimeError, match="no"):
            await stream.aclose()

    asyncio.run(main())


def test_cancelling_one_listener_cancels_nobody_else() -> None:
    async def main() -> None:
        go, cancelled = asyncio.Event(), []

        async def body() -> AsyncIterator[str]:
            try:
                await go.wait()
                yield "a"
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        desk = Desk(body, is_async=True)
        first, second = (asyncio.create_task(_collect(desk.acall())) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait((first,))
        assert (first.cancelled(), cancelled) == (True, [])
        go.set()
        assert await second == ["a"]
        go.clear()
        desk.log.clear()
        last = asyncio.create_task(_collect(desk.acall()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        last.cancel()
        await asyncio.wait((last,))
        while not cancelled:
            await asyncio.sleep(0)
        assert desk.log == ["gone"]

    asyncio.run(main())


def test_an_async_error_is_raised_to_each_as_its_own() -> None:
    error = KeyError("x")

    async def fails() -> AsyncIterator[str]:
        yield "a"
        raise error

    async def main() -> None:
        desk = Desk(fails, is_async=True)
        views = [desk.acall() for _ in range(3)]
        assert [await anext(view) for view in views] == ["a"] * 3
        raised = await asyncio.gather(*map(_collect, views), return_exceptions=True)
        assert [type(one) for one in raised] == [KeyError] * 3
        assert len({id(one) for one in raised}) == 3
        assert raised[0] is error
        assert [await _collect(view) for view in views] == [[]] * 3
        assert desk.log == ["gone"]

    asyncio.run(main())


def test_a_cancellation_of_upstreams_own_goes_to_who_asked() -> None:
    runs: list[int] = []

    async def body() -> AsyncIterator[str]:
        runs.append(1)
        await asyncio.sleep(0)
        raise asyncio.CancelledError
        yield "never"

    async def main() -> None:
        desk = Desk(body, is_async=True)
        raised = await asyncio.gather(*(_collect(desk.acall()) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in raised] == [asyncio.CancelledError] * 3
        assert len(runs) == 3  # each time, the others start over

    asyncio.run(main())


def test_what_an_async_keep_raises_reaches_one_listener() -> None:
    log: list[str] = []

    async def keep() -> None:
        raise OSError("full")

    async def main() -> None:
        recording = Recording(AsyncSource(), is_async=True, bound=PLENTY, copy=True, keep=keep, gone=lambda: log.append("gone"))
        one, other = AsyncCachedStream[str](recording), AsyncCachedStream[str](recording)
        with pytest.raises(OSError, match="full"):
            await _collect(one)
        assert await _collect(other) == ["a", "b", "c"]
        assert log == ["gone"]

    asyncio.run(main())


def test_an_async_body_that_reads_its_own_stream_is_told() -> None:
    async def body() -> AsyncIterator[str]:
        yield "a"
        async for chunk in desk.acall():
            yield chunk

    desk = Desk(body, is_async=True)

    async def main() -> None:
        with pytest.raises(CacheStreamError, match="inside itself"):
            await _collect(desk.acall())

    asyncio.run(main())


def test_an_async_stream_beyond_its_bound_passes_through() -> None:
    async def main() -> None:
        desk = Desk(lambda: AsyncSource([["x" * 1_000] for _ in range(50)]), is_async=True, bound=2_500)
        fast, slow = desk.acall(), desk.acall()
        await anext(fast), await anext(slow)
        assert len(await _collect(fast)) == 49
        assert len(desk.runs[0].chunks) == 49
        assert len(await _collect(slow)) == 49
        assert desk.runs[0].chunks == []
        assert desk.log == ["gone"]

    asyncio.run(main())


def test_of_an_async_chunk_that_cannot_be_copied_one_listener_hears() -> None:
    async def main() -> None:
        desk = Desk(lambda: AsyncSource([threading.Lock()]), is_async=True)
        heard = await asyncio.gather(*(_collect(desk.acall()) for _ in range(4)))
        assert [len(chunks) for chunks in heard] == [1] * 4
        assert len({id(chunks[0]) for chunks in heard}) == 4
        assert len(desk.runs) == 4

    asyncio.run(main())


# -- several event loops


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()

    def close(self) -> None:
        self.stop()
        if not self.loop.is_closed():
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()


@pytest.fixture
def loops() -> Iterator[list[Loop]]:
    """Three of them."""
    loops = [Loop() for _ in range(3)]
    yield loops
    for loop in loops:
        loop.close()


def test_listeners_in_other_event_loops_hear_the_same_stream(loops: list[Loop]) -> None:
    source = AsyncSource(range(300))
    desk = Desk(lambda: source, is_async=True)
    streams = [desk.acall() for _ in range(9)]
    firsts = [loop.do(anext(stream)) for loop, stream in zip(loops * 3, streams, strict=True)]
    assert [first.result(30) for first in firsts] == [0] * 9  # all listen, before one has heard the end
    rests = [loop.do(_collect(stream)) for loop, stream in zip(loops * 3, streams, strict=True)]
    assert [rest.result(30) for rest in rests] == [list(range(1, 300))] * 9
    assert (source.drawn, source.closed, desk.log) == (301, 1, ["keep", "gone"])


def test_the_last_to_leave_from_another_loop_has_upstream_closed_in_its_own(loops: list[Loop]) -> None:
    closed = threading.Event()

    class Told(AsyncSource):
        async def close(self) -> None:
            await super().close()
            closed.set()

    source = Told()
    desk = Desk(lambda: source, is_async=True)
    here, there = desk.acall(), desk.acall()
    assert loops[0].do(anext(here)).result(10) == "a"
    assert loops[1].do(anext(there)).result(10) == "a"
    loops[0].do(here.aclose()).result(10)
    assert loops[1].do(anext(there)).result(10) == "b"
    loops[1].do(there.aclose()).result(10)
    assert closed.wait(10)
    assert source.loop is loops[0].loop


def test_nobody_waits_for_an_event_loop_that_stands_still(loops: list[Loop]) -> None:
    inside = threading.Event()
    runs: list[int] = []

    async def body() -> AsyncIterator[str]:
        runs.append(1)
        yield "a"
        if len(runs) == 1:
            inside.set()
            await asyncio.get_running_loop().create_future()

    desk = Desk(body, is_async=True)
    views = [desk.acall() for _ in range(2)]
    owner = desk.acall()
    loops[0].do(anext(owner)).result(10)
    loops[1].do(anext(views[0])).result(10)
    fresh = views[1]
    fresh._opened = desk.open()
    hearing = loops[1].do(_collect(views[0]))
    assert inside.wait(10)
    loops[0].stop()
    with pytest.raises(CacheStreamError, match="stands still"):
        hearing.result(20)
    assert loops[2].do(_collect(fresh)).result(10) == ["a"]
    assert loops[2].do(_collect(desk.acall())).result(10) == ["a"]
    assert desk.log == ["gone", "keep", "gone", "keep", "gone"]


def test_a_new_listener_does_not_join_a_stream_whose_loop_is_closed() -> None:
    desk = Desk(AsyncSource, is_async=True)
    loop = asyncio.new_event_loop()
    stream = desk.acall()
    assert loop.run_until_complete(anext(stream)) == "a"
    loop.close()
    assert asyncio.run(_collect(desk.acall())) == ["a", "b", "c"]
    assert len(desk.runs) == 2
    del stream
    gc.collect()


def test_the_end_of_asyncio_run_closes_upstream_and_wakes_listeners_elsewhere(loops: list[Loop]) -> None:
    inside, source = threading.Event(), AsyncSource("a")

    async def body() -> AsyncIterator[str]:
        try:
            yield "a"
            inside.set()
            await asyncio.get_running_loop().create_future()
        finally:
            await source.close()

    desk = Desk(body, is_async=True)
    elsewhere = desk.acall()

    async def main() -> Any:
        stream = desk.acall()
        await anext(stream)
        await asyncio.wrap_future(loops[1].do(anext(elsewhere)))
        hearing = loops[1].do(_collect(elsewhere))
        while not inside.is_set():
            await asyncio.sleep(0)
        return stream, hearing

    _, hearing = asyncio.run(main())
    assert source.closed == 1
    with pytest.raises(CacheStreamError, match="cancelled"):
        hearing.result(10)
    assert desk.log == ["gone"]


def test_an_interruption_in_the_pump_stops_its_loop_and_breaks_off_the_stream(loops: list[Loop]) -> None:
    async def body() -> AsyncIterator[str]:
        yield "a"
        raise KeyboardInterrupt

    desk = Desk(body, is_async=True)
    elsewhere = desk.acall()

    async def main() -> None:
        stream = desk.acall()
        await anext(stream)
        await asyncio.wrap_future(loops[1].do(anext(elsewhere)))
        await anext(stream)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    with pytest.raises(CacheStreamError):
        loops[1].do(anext(elsewhere)).result(10)
    assert desk.log == ["gone"]


# -- random schedules


async def _scheduled(seed: int) -> None:
    """Listeners that come, hear some, are cancelled, leave or stay; nobody hangs and upstream is always closed."""
    choice = random.Random(seed)
    length, sources = choice.randrange(12), []

    async def body() -> AsyncIterator[list[int]]:
        source = AsyncSource(range(length))
        sources.append(source)
        try:
            for number in range(length):
                for _ in range(choice.randrange(3)):
                    await asyncio.sleep(0)
                yield [number]
        finally:
            await source.close()

    desk = Desk(body, is_async=True, bound=choice.choice([0, 300, PLENTY]))

    async def listener() -> list[list[int]]:
        stream, heard, patience = desk.acall(), [], choice.randrange(15)
        for _ in range(choice.randrange(8)):
            await asyncio.sleep(0)
        async for chunk in stream:
            heard.append(chunk)
            for _ in range(choice.randrange(3)):
                await asyncio.sleep(0)
            if len(heard) > patience:
                break
        if choice.random() < 0.5:
            await stream.aclose()
        return heard

    tasks = [asyncio.create_task(listener()) for _ in range(choice.randrange(1, 8))]
    for task in tasks:
        for _ in range(choice.randrange(8)):
            await asyncio.sleep(0)
        if choice.random() < 0.4:
            task.cancel()
    done, pending = await asyncio.wait(tasks, timeout=30)
    assert not pending, seed
    for task in done:
        if not task.cancelled():
            assert task.result() == [[number] for number in range(len(task.result()))], seed
    del task, done, tasks
    gc.collect()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)
    assert [source.closed for source in sources] == [1] * len(sources), seed
    assert desk.log.count("gone") == len(desk.runs), seed


@pytest.mark.parametrize("block", range(6))
def test_no_cancellation_leaves_anybody_waiting(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        asyncio.run(_scheduled(seed))
