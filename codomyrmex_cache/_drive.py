"""The interpreters of a flow: one blocking, one for asyncio.  All that differs between them is here.

asyncio is imported where it is used: it is 57 modules, for which a blocking program has no use.
"""

from __future__ import annotations

import time
from contextlib import suppress
from contextvars import Token, copy_context
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from codomyrmex_cache._effects import Ask, Behind, Call, Effect, Flow, Lead, Load, Now, Patience, Pause, Record, Wait
from codomyrmex_cache._flight import LEADING, TIMED_OUT, Abandoned, Flight
from codomyrmex_cache._isolation import is_awaitable
from codomyrmex_cache._space import Space
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.errors import CacheTimeoutError

if TYPE_CHECKING:
    import asyncio

    from codomyrmex_cache._recording import Recording

__all__ = ["Run", "arun", "run", "wait"]

T = TypeVar("T")

_SPENT_SECONDS, _SLOW_SECONDS = 0.25, 0.1
"""A call that has waited this long for its backend, in operations that were not quick, asks it for nothing more."""

_OF_CALLS = frozenset({"look", "begin", "commit", "end", "generations", "discard"})

_PATIENCE = 1.0
"""Seconds between two looks at whether the event loop that runs a load is still running."""


class Meter:
    """The time that one call has spent on waiting for a backend that is a round trip away."""

    __slots__ = ("_began", "_spent")

    def __init__(self) -> None:
        self._spent = self._began = 0.0

    @classmethod
    def since(cls, began: float) -> Meter:
        """Of a call that has waited since this moment."""
        meter = cls()
        meter._began = began
        meter.stop("look")
        return meter

    def start(self, verb: str) -> None:
        """An operation is about to begin.

        Raises:
            CacheTimeoutError: there is no time left for it.
        """
        if self._spent >= _SPENT_SECONDS and verb in _OF_CALLS:
            raise CacheTimeoutError(f"the backend has taken {self._spent:.2f} s of this call already")
        self._began = time.monotonic()

    def stop(self, verb: str) -> None:
        """It is over."""
        seconds = time.monotonic() - self._began
        if seconds > _SLOW_SECONDS and verb in _OF_CALLS:
            self._spent += seconds


_UNUSED = Meter()


class Run(Generic[T]):
    """A flow carried out in this thread, as far as the function that it wants run: `load`, `None` when it has ended.

    Whoever holds the run calls that function and tells it the result.  So while a function runs, no frame of ours is on the
    stack but its wrapper's, and memoized functions may call themselves as deep as others.
    """

    __slots__ = ("_flows", "_meter", "_space", "_tokens", "load", "value")

    def __init__(self, space: Space, flow: Flow[T], meter: Meter | None = None) -> None:
        self._space = space
        self._meter = meter or (Meter() if space.looks_first else _UNUSED)
        self._flows: list[Flow[Any]] = [flow]
        self._tokens: list[Token[tuple[Flight, ...]]] = []
        self.load: Load | None = None
        self.value: T
        self.resume(None)

    def resume(self, reply: Any, error: BaseException | None = None) -> None:
        """Go on with what the function gave or raised; raises what the flow raises."""
        self.load = None
        while True:
            try:
                effect = self._flows[-1].send(reply) if error is None else self._flows[-1].throw(error)
            except StopIteration as end:
                reply, error = end.value, None
                self._leave()
                if not self._flows:
                    self.value = reply
                    return
                continue
            except BaseException as raised:
                self._leave()
                if not self._flows:
                    raise
                reply, error = None, raised
                continue
            if isinstance(effect, Load):
                self.load = effect
                return
            if isinstance(effect, Lead):
                self._tokens.append(LEADING.set((*LEADING.get(), effect.flight, *effect.carried)))
                self._flows.append(effect.flow)
                reply, error = None, None
                continue
            try:
                reply, error = _perform(self._space, effect, self._meter), None
            except BaseException as raised:  # handed to the flow, which decides; it re-raises what is not its business
                reply, error = None, raised

    def _leave(self) -> None:
        self._flows.pop()
        if self._flows:
            LEADING.reset(self._tokens.pop())


def run(space: Space, flow: Flow[T], meter: Meter | None = None) -> T:
    """Carry out a flow in this thread, the functions that it wants run included; answers what the flow returns."""
    meter = meter or (Meter() if space.looks_first else _UNUSED)
    try:
        effect = next(flow)
        while True:
            try:
                reply = _perform(space, effect, meter)
            except BaseException as error:  # as in `Run`
                effect = flow.throw(error)
            else:
                effect = flow.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result


def _perform(space: Space, effect: Effect, meter: Meter) -> Any:
    if isinstance(effect, Call):
        if not space.looks_first and space.near is None:
            result = getattr(space.backend, effect.verb)(*effect.arguments)
            return list(result) if effect.verb == "scan" else result
        if space.near is None:
            return _called(space, effect, meter)
        with space.near.overtaken(effect.verb, effect.arguments):
            return _called(space, effect, meter)
    if isinstance(effect, Now):
        return space.clock()
    if isinstance(effect, Load):
        return effect.invoke()
    if isinstance(effect, Lead):
        token = LEADING.set((*LEADING.get(), effect.flight, *effect.carried))
        try:
            return run(space, effect.flow, meter)
        finally:
            LEADING.reset(token)
    if isinstance(effect, Ask):
        return effect.question()
    if isinstance(effect, Wait):
        return wait(effect.flight, effect.patience)
    if isinstance(effect, Pause):
        time.sleep(_pause(effect))
        return None
    if isinstance(effect, Behind):
        return _behind(space, effect.flow)
    if isinstance(effect, Record):
        return _recording(space, effect)
    raise AssertionError(effect)


def _called(space: Space, effect: Call, meter: Meter) -> Any:
    if not space.looks_first:
        result = getattr(space.backend, effect.verb)(*effect.arguments)
        return list(result) if effect.verb == "scan" else result
    meter.start(effect.verb)
    try:
        return getattr(space.backend, effect.verb)(*effect.arguments)
    finally:
        meter.stop(effect.verb)


def wait(flight: Flight, patience: Patience) -> Any:
    """The outcome of a flight, in this thread."""
    while True:
        seconds = _PATIENCE if patience.left is None else min(_PATIENCE, patience.left)
        try:
            return flight.future.result(timeout=seconds)
        except TimeoutError:
            patience.spend(seconds)
            if flight.dead:
                return Abandoned(RuntimeError("the event loop of the load stands still"))
            if patience.left == 0.0:
                return TIMED_OUT


def _pause(effect: Pause) -> float:
    seconds = effect.seconds if effect.patience.left is None else min(effect.seconds, effect.patience.left)
    effect.patience.spend(effect.seconds)
    return seconds


def _behind(space: Space, flow: Flow[None]) -> None:
    """In a thread of its own, which does not hold up the end of the program; not at all if too many are running."""
    if not space.behind.acquire(blocking=False):
        flow.close()
        space.counters[""].error("refresh:busy")
        return

    def work() -> None:
        LEADING.set(())  # nobody waits for it
        try:
            run(space, flow)
        except Exception as error:
            space.refresh_failed(error)
        finally:
            space.behind.release()

    try:
        Thread(target=copy_context().run, args=(work,), name="codomyrmex_cache refresh", daemon=True).start()
    except RuntimeError as error:  # the program is about to end, or has no threads left
        flow.close()
        space.behind.release()
        space.refresh_failed(error)


def _recording(space: Space, effect: Record) -> Recording:
    from codomyrmex_cache._recording import Recording

    is_async = hasattr(type(effect.stream), "__anext__")
    drive: Any = arun if is_async else run
    recording: Recording
    recording = Recording(
        effect.stream, is_async=is_async, bound=effect.rules.stream_max, copy=effect.rules.copy,
        keep=lambda: drive(space, effect.keep(recording)), gone=effect.gone,
    )  # fmt: skip
    return recording


async def arun(space: Space, flow: Flow[T], meter: Meter | None = None) -> T:
    """Carry out a flow in the running event loop; answers what the flow returns."""
    meter = meter or (Meter() if space.looks_first else _UNUSED)
    try:
        effect = next(flow)
        while True:
            try:
                reply = await _aperform(space, effect, meter)
            except BaseException as error:  # as in `run`; a cancellation included
                effect = flow.throw(error)
            else:
                effect = flow.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result


async def _aperform(space: Space, effect: Effect, meter: Meter) -> Any:
    if isinstance(effect, Call):
        if space.near is None:
            return await _acall(space, effect, meter)
        with space.near.overtaken(effect.verb, effect.arguments):
            return await _acall(space, effect, meter)
    if isinstance(effect, Load):
        result = effect.invoke()
        return await result if is_awaitable(result) else result
    if isinstance(effect, Lead):
        return _alead(space, effect, meter)
    if isinstance(effect, Wait):
        return await _await(effect.flight, effect.patience)
    if isinstance(effect, Pause):
        import asyncio

        return await asyncio.sleep(_pause(effect))
    if isinstance(effect, Behind):
        return _abehind(space, effect.flow)
    return _perform(space, effect, meter)


async def _acall(space: Space, effect: Call, meter: Meter) -> Any:
    if not space.looks_first:
        return await _acalled(space, effect, meter)
    meter.start(effect.verb)
    try:
        return await _acalled(space, effect, meter)
    except Exception:  # what succeeds has kept its own limit of time; the rest was the loop's, busy with others
        meter.stop(effect.verb)
        raise


async def _acalled(space: Space, effect: Call, meter: Meter) -> Any:
    """Async verbs where the backend has them; objects in memory at once; anything else may block, so in a thread."""
    verb = getattr(space.backend, f"a{effect.verb}", None) if space.is_async else None
    if verb is not None and effect.verb in ("begin", "look"):
        return await _abegin(space, effect, verb)
    if verb is not None and effect.verb == "end":
        return await _aend(space, effect, verb)
    if verb is not None:
        result = await verb(*effect.arguments)
        return list(result) if effect.verb == "scan" else result
    if space.backend.payload == "object":
        return _perform(space, effect, meter)
    import asyncio

    return await asyncio.to_thread(_perform, space, effect, meter)


async def _abegin(space: Space, effect: Call, verb: Any) -> Any:
    """Begin a load; if the caller is cancelled meanwhile, the lease is given back as soon as it comes."""
    import asyncio

    beginning: asyncio.Task[Begun | bytes] = asyncio.ensure_future(verb(*effect.arguments))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(partial(_give_back, space, effect))
        raise


def _give_back(space: Space, effect: Call, beginning: asyncio.Task[Begun | bytes]) -> None:
    if beginning.cancelled() or beginning.exception() is not None:
        return
    begun = beginning.result()
    if isinstance(begun, Begun) and begun.lease:
        with suppress(Exception):  # then the lease ends by itself
            _called(space, Call("end", (effect.arguments[0], begun, False)), Meter())


async def _aend(space: Space, effect: Call, verb: Any) -> None:
    """End a load, even if this is cancelled: a closing loop cancels a second time, and others would wait for the lease."""
    import asyncio

    try:
        await verb(*effect.arguments)
    except asyncio.CancelledError:
        with suppress(Exception):  # then the lease ends by itself
            _called(space, effect, Meter())
        raise


def _alead(space: Space, effect: Lead, meter: Meter) -> None:
    """The load as a task of its own, which no caller's cancellation reaches."""
    import asyncio

    async def work() -> None:
        LEADING.set((*LEADING.get(), effect.flight, *effect.carried))
        with suppress(Exception):  # the flow has put it into the flight, where the leader finds it
            await arun(space, effect.flow, meter)

    loop = asyncio.get_running_loop()
    effect.flight.loop = loop
    effect.flight.task = task = loop.create_task(work())
    # a task cancelled before its first step runs nothing of the flow, so nothing in it could end the flight
    task.add_done_callback(lambda _: space.flights.end(effect.flight, Abandoned(asyncio.CancelledError())))


async def _await(flight: Flight, patience: Patience) -> Any:
    import asyncio

    future = asyncio.wrap_future(flight.future)
    try:
        while True:
            seconds = _PATIENCE if patience.left is None else min(_PATIENCE, patience.left)
            done, _ = await asyncio.wait((future,), timeout=seconds)
            if done:
                return future.result()
            patience.spend(seconds)
            if flight.dead:
                return Abandoned(RuntimeError("the event loop of the load stands still"))
            if patience.left == 0.0:
                return TIMED_OUT
    finally:
        future.cancel()


def _abehind(space: Space, flow: Flow[None]) -> None:
    import asyncio

    async def work() -> None:
        LEADING.set(())
        try:
            await arun(space, flow)
        except Exception as error:
            space.refresh_failed(error)

    task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work())
    space.tasks.add(task)  # a loop keeps no strong reference to its tasks
    task.add_done_callback(space.tasks.discard)
