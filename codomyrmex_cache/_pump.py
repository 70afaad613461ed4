"""What draws an asynchronous stream, and how a listener takes its items."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

from codomyrmex_cache._isolation import is_awaitable
from codomyrmex_cache._log import Log
from codomyrmex_cache._recording import INSIDE, PATIENCE, Broken, Failed, Listener, Recording, Turn
from codomyrmex_cache.errors import CacheStreamError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Pump", "pump_of", "take"]

_logger = Log(__name__)


async def take(recording: Recording, listener: Listener) -> Any:
    """As `Recording.take`, for an async stream, which its pump draws."""
    import asyncio

    while True:
        with recording.lock:
            recording.check_pump()
            if recording.turn is not None and pump_of(recording).task is asyncio.current_task():
                raise CacheStreamError(INSIDE)
            news = recording.look(listener)
            if news is None:
                pump = pump_of(recording)
                waiter = pump.enlist(listener)
        recording.settle()
        if news is not None:
            return recording.deliver(news, listener)
        pump.start()
        await pump.wait(waiter)


def pump_of(recording: Recording) -> Pump:
    if recording.pump is None:
        recording.pump = Pump(recording)
    return cast("Pump", recording.pump)


class Pump:
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
