"""What a caller of a memoized stream is given: an iterator over a stream that others may be reading too.

The first caller's stream runs; whoever calls meanwhile hears it from its first item; when it is exhausted it is stored, and
from then on it is replayed.  A stream that breaks off or that everybody leaves is not stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from codomyrmex_cache._isolation import is_awaitable, is_stream
from codomyrmex_cache._recording import INSIDE, PATIENCE, Abandoned, Broken, Failed, Listener, Recording, Turn
from codomyrmex_cache.errors import CacheStreamError

if TYPE_CHECKING:
    import asyncio

__all__ = ["AsyncCachedStream", "CachedStream", "is_async_stream", "is_stream"]

T = TypeVar("T")
Opened = tuple[Recording, Listener]


def is_async_stream(value: object) -> bool:
    """Whether `async for` uses it up; asked of what `is_stream` accepts.

    >>> async def letters():
    ...     yield "a"
    >>> is_async_stream(letters()), is_async_stream(letter for letter in "a")
    (True, False)
    """
    return hasattr(type(value), "__anext__")


class _View:
    """A listener's place, if it has one yet."""

    def __init__(self, source: Any) -> None:
        self._opened: Opened | None = None
        self._done = False
        self._opener: Any = None if isinstance(source, Recording) else source
        self._opening = Lock()
        if isinstance(source, Recording):
            listener = source.listen()
            if listener is None:
                raise CacheStreamError("the stream takes no more listeners; call again to start it anew")
            self._opened = (source, listener)

    def __repr__(self) -> str:
        state = "done" if self._done else "not begun" if self._opened is None else f"at {self._opened[1].position}"
        return f"<{type(self).__name__} {state}>"

    def __del__(self) -> None:
        with suppress(Exception):  # a finalizer has nobody to raise to; upstream's `close` is user code
            self._leave()

    def _begin(self) -> None:
        """As a generator does, refuse a second thread or task while the first one is opening."""
        if not self._opening.acquire(blocking=False):
            raise ValueError("stream is being opened by another thread or task")

    def _enter(self, opened: Opened) -> Opened | None:
        self._opened = opened
        if self._done:  # closed while it was being opened
            self._leave()
        return self._opened

    def _starts_over(self, listener: Listener) -> bool:
        """Whether what is lost to this listener is no loss, since it has heard nothing yet."""
        if not listener.lost or listener.position or self._opener is None or self._done:
            return False
        self._drop()
        return True

    def _leave(self) -> Recording | None:
        """Needs no more; answers the recording it was in."""
        self._done = True
        return self._drop()

    def _drop(self) -> Recording | None:
        opened, self._opened = self._opened, None
        if opened is None:
            return None
        opened[0].leave(opened[1])
        return opened[0]


class CachedStream(_View, Generic[T]):
    """An iterator over a memoized stream, from its first item on.

    It begins with the first `next`, as a generator does.  Leave it early with `close`, `with` or by dropping it; when the last
    of its listeners leaves, the stream itself is closed.

    Args:
        source: gives the recording and a place in it, called when the first item is wanted; or a recording, joined at once.

    >>> def opened():
    ...     recording = Recording.finished(["a", "b"], None, is_async=False, copy=True)
    ...     return recording, recording.listen()
    >>> with CachedStream(opened) as stream:
    ...     list(stream)
    ['a', 'b']
    """

    def __init__(self, source: Callable[[], Opened] | Recording) -> None:
        super().__init__(source)

    def __iter__(self) -> CachedStream[T]:
        return self

    def __next__(self) -> T:
        """The next item.

        Raises:
            CacheStreamError: the stream was broken off in another caller's hands, after this one had heard some of it.
        """
        while True:
            opened = self._opened or self._open()
            if opened is None:
                raise StopIteration
            recording, listener = opened
            try:
                item: T = recording.take(listener)
                return item
            except BaseException as error:  # the end for this listener, whatever it is, as with a generator
                if not isinstance(error, CacheStreamError) or not self._starts_over(listener):
                    self._leave()
                    raise

    def __enter__(self) -> CachedStream[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hear no more."""
        self._leave()

    def _open(self) -> Opened | None:
        if self._done:
            return None
        self._begin()
        try:
            return self._opened or self._enter(self._opener())
        except BaseException:
            self._done = True
            raise
        finally:
            self._opening.release()


class AsyncCachedStream(_View, Generic[T]):
    """The same for `async for`; it may be read in another event loop than the one that runs the stream.

    Args:
        source: a coroutine function that gives the recording and a place in it; or a recording, joined at once.

    >>> import asyncio
    >>> async def opened():
    ...     recording = Recording.finished(["a", "b"], None, is_async=True, copy=True)
    ...     return recording, recording.listen()
    >>> async def read():
    ...     async with AsyncCachedStream(opened) as stream:
    ...         return [item async for item in stream]
    >>> asyncio.run(read())
    ['a', 'b']
    """

    def __init__(self, source: Callable[[], Awaitable[Opened]] | Recording) -> None:
        super().__init__(source)

    def __aiter__(self) -> AsyncCachedStream[T]:
        return self

    async def __anext__(self) -> T:
        """The next item.  Cancelling it is leaving.

        Raises:
            CacheStreamError: the stream was broken off, or its event loop stands still, after this one had heard some of it.
        """
        while True:
            opened = self._opened or await self._open()
            if opened is None:
                raise StopAsyncIteration
            recording, listener = opened
            try:
                item: T = await _take(recording, listener)
                return item
            except BaseException as error:  # the end for this listener, whatever it is, as with a generator
                if not isinstance(error, CacheStreamError) or not self._starts_over(listener):
                    self._leave()
                    raise

    async def __aenter__(self) -> AsyncCachedStream[T]:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hear no more; if nobody else does, wait until the stream is closed."""
        recording = self._leave()
        if recording is not None and isinstance(recording.ending, Abandoned):
            await _pump_of(recording).closed()

    async def close(self) -> None:
        """The same, under the name that SDKs' streams have for it."""
        await self.aclose()

    async def _open(self) -> Opened | None:
        if self._done:
            return None
        self._begin()
        try:
            return self._opened or self._enter(await self._opener())
        except BaseException:
            self._done = True
            raise
        finally:
            self._opening.release()


async def _take(recording: Recording, listener: Listener) -> Any:
    """As `Recording.take`, for an async stream, which its pump draws."""
    import asyncio

    while True:
        with recording.lock:
            recording.check_pump()
            if recording.turn is not None and _pump_of(recording).task is asyncio.current_task():
                raise CacheStreamError(INSIDE)
            news = recording.look(listener)
            if news is None:
                pump = _pump_of(recording)
                waiter = pump.enlist(listener)
        recording.settle()
        if news is not None:
            return recording.deliver(news, listener)
        pump.start()
        await pump.wait(waiter)


def _pump_of(recording: Recording) -> _Pump:
    if recording.pump is None:
        recording.pump = _Pump(recording)
    return cast("_Pump", recording.pump)


class _Pump:
    """The task that draws an async stream, from the first chunk to the closing, in the event loop of who first asked.

    A listener that lacks a chunk leaves a future of its own event loop in `waiters`.  The pump draws while there is one, and
    otherwise waits for its bell.  The futures are resolved, and a chunk is put on the tape, before the next is drawn.
    """

    def __init__(self, recording: Recording) -> None:
        import asyncio

        self.recording = recording
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        self.waiters: dict[asyncio.Future[None], Listener] = {}
        self.bell: asyncio.Future[None] | None = None

    @property
    def stands_still(self) -> bool:
        """Whether the event loop does not run, so that no chunk may ever come."""
        return not self.loop.is_running()

    def wake(self) -> None:
        """Under the lock: whoever waits is to look again."""
        for waiter in self.waiters:
            _resolve(waiter)
        self.waiters.clear()

    def halt(self) -> None:
        """The recording has ended: close upstream."""
        try:
            self.loop.call_soon_threadsafe(self._halt)
        except RuntimeError:  # the loop is closed: nothing of it will run
            _pumps().discard(cast("asyncio.Task[None]", self.task))

    def _halt(self) -> None:
        """In the pump's thread: one inside upstream is cancelled, an idle one finds the end when its bell rings."""
        with self.recording.lock:
            self._ring()
        self.recording.settle()
        if self.recording.turn is not None and self.task is not None:
            self.task.cancel()

    def enlist(self, listener: Listener) -> asyncio.Future[None]:
        """Under the lock: a future that is resolved when there is more to hear."""
        import asyncio

        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters[waiter] = listener
        self._ring()
        return waiter

    def start(self) -> None:
        """Begin, if this is the pump's thread and it has not begun."""
        import asyncio

        if self.task is not None or self.loop is not asyncio.get_running_loop():
            return
        task = self.loop.create_task(self._run(), name="codomyrmex_cache stream")
        with suppress(AttributeError):  # a task factory's own kind
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # of a loop that was closed without cancelling
        self.task = task
        _pumps().add(task)
        task.add_done_callback(self._ended)

    async def wait(self, waiter: asyncio.Future[None]) -> None:
        """Until it is resolved, or until the pump's event loop stands still."""
        import asyncio

        try:
            if waiter.get_loop() is self.loop:
                await waiter
            while not waiter.done():
                await asyncio.wait((waiter,), timeout=PATIENCE)
                with self.recording.lock:
                    self.recording.check_pump()
                self.recording.settle()
        finally:
            with self.recording.lock:
                self.waiters.pop(waiter, None)
            self.recording.settle()

    async def closed(self) -> None:
        """Until upstream is closed, if that happens in this event loop and the caller is not inside upstream."""
        import asyncio

        self.start()
        task = self.task
        if task is None or self.loop is not asyncio.get_running_loop() or task is asyncio.current_task():
            return
        await asyncio.wait((task,))
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise error

    async def _run(self) -> None:
        import asyncio

        task = self.task = cast("asyncio.Task[None]", asyncio.current_task())  # an eager task begins before `start` has it
        recording = self.recording
        try:
            while turn := await self._wanted():
                await self._draw(turn)
        except asyncio.CancelledError as error:
            # if nobody has cancelled the task, it is upstream's own, and goes to whom it was drawn for
            puller = recording.turn.listener if recording.turn and not task.cancelling() else None
            recording.end(Broken("was cancelled while it ran", error if puller else None, puller))
        except BaseException as error:  # an interruption stops the loop; GeneratorExit means it is closed: no awaiting
            recording.end(Broken(f"was interrupted by {type(error).__name__}"))
            raise
        while task.cancelling():  # that has done its work, and is not to reach timeouts inside `aclose`
            task.uncancel()
        await self._close()

    async def _wanted(self) -> Turn | None:
        """Waits until somebody lacks a chunk; `None` at the end."""
        recording = self.recording
        while True:
            with recording.lock:
                if recording.ending is not None:
                    return None
                if self.waiters:
                    recording.turn = turn = Turn(get_ident(), next(iter(self.waiters.values())))
                    return turn
                self.bell = bell = self.loop.create_future()
            recording.settle()
            await bell

    async def _draw(self, turn: Turn) -> None:
        try:
            chunk = await anext(self.recording.upstream)
        except StopAsyncIteration:
            await self._complete()
        except Exception as error:
            self.recording.end(Failed(error, turn.listener))
        else:
            self.recording.record(chunk, turn)

    async def _complete(self) -> None:
        recording = self.recording
        try:
            if recording.exhaust(None):
                await recording.keep()
        except Exception as error:  # what `keep` lets out; the first listener to reach the end gets it
            recording.complaint = error
        finally:
            recording.say_gone()

    async def _close(self) -> None:
        with self.recording.closing() as upstream:
            closing = getattr(upstream, "aclose", None) or upstream.close
            result = closing()
            if is_awaitable(result):
                await result

    def _ended(self, task: asyncio.Task[None]) -> None:
        _pumps().discard(task)
        if not task.cancelled():
            task.exception()  # `closed` raises it; if nobody waits there, nobody wants it
        # a task cancelled before its first step has run nothing of the pump
        self.recording.end(Broken("was cancelled before it began"))

    def _ring(self) -> None:
        bell, self.bell = self.bell, None
        if bell is not None:
            _resolve(bell)


@cache
def _pumps() -> set[asyncio.Task[None]]:
    """Running pumps.  An event loop refers to its tasks weakly, and an idle pump must outlive the views that close it."""
    return set()


def _resolve(future: asyncio.Future[None]) -> None:
    """Wake whoever awaits it, in whichever loop that is."""
    import asyncio

    loop = future.get_loop()
    if loop is asyncio._get_running_loop():
        _set(future)
    else:
        with suppress(RuntimeError):  # the loop is closed: nobody awaits
            loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
