"""The two interpreters of a flow: one blocking, one for asyncio.  All that differs between them is here.

asyncio is imported where it is used: it is 57 modules, for which a blocking program has no use.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from codomyrmex_cache._flight import LEADING, Abandoned, Flight
from codomyrmex_cache._flow import Call, Effect, Flow, Lead, Load, Wait
from codomyrmex_cache._isolation import is_awaitable
from codomyrmex_cache._space import Space

__all__ = ["arun", "run"]

T = TypeVar("T")

_PATIENCE = 1.0
"""Seconds between two looks at whether the event loop that runs a load is still running."""


def run(space: Space, flow: Flow[T]) -> T:
    """Carry out a flow in this thread; answers what the flow returns."""
    try:
        effect = next(flow)
        while True:
            try:
                reply = _perform(space, effect)
            except BaseException as error:  # handed to the flow, which decides; it re-raises what is not its business
                effect = flow.throw(error)
            else:
                effect = flow.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result


def _perform(space: Space, effect: Effect) -> Any:
    if isinstance(effect, Call):
        result = getattr(space.backend, effect.verb)(*effect.arguments)
        return list(result) if effect.verb == "scan" else result
    if isinstance(effect, Load):
        return effect.invoke()
    if isinstance(effect, Lead):
        token = LEADING.set((*LEADING.get(), effect.flight))
        try:
            return run(space, effect.flow)
        finally:
            LEADING.reset(token)
    if isinstance(effect, Wait):
        return _wait(effect.flight)
    return space.clock()


def _wait(flight: Flight) -> Any:
    try:
        while True:
            try:
                return flight.future.result(timeout=_PATIENCE)
            except TimeoutError:
                if flight.dead:
                    return Abandoned(RuntimeError("the event loop of the load stands still"))
    finally:
        flight.leave()


async def arun(space: Space, flow: Flow[T]) -> T:
    """Carry out a flow in the running event loop; answers what the flow returns."""
    try:
        effect = next(flow)
        while True:
            try:
                reply = await _aperform(space, effect)
            except BaseException as error:  # as in `run`; a cancellation included
                effect = flow.throw(error)
            else:
                effect = flow.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result


async def _aperform(space: Space, effect: Effect) -> Any:
    if isinstance(effect, Call):
        return await _acall(space, effect)
    if isinstance(effect, Load):
        result = effect.invoke()
        return await result if is_awaitable(result) else result
    if isinstance(effect, Lead):
        import asyncio

        loop = asyncio.get_running_loop()
        effect.flight.loop = loop
        effect.flight.task = task = loop.create_task(_alead(space, effect))
        # a task cancelled before its first step runs nothing of the flow, so nothing in it could end the flight
        task.add_done_callback(lambda _: space.flights.end(effect.flight, Abandoned(asyncio.CancelledError())))
        return None
    if isinstance(effect, Wait):
        return await _await(effect.flight)
    return space.clock()


async def _acall(space: Space, effect: Call) -> Any:
    """Async verbs where the backend has them; objects in memory at once; anything else may block, so in a thread."""
    verb = getattr(space.backend, f"a{effect.verb}", None) if space.is_async else None
    if verb is not None:
        result = await verb(*effect.arguments)
        return list(result) if effect.verb == "scan" else result
    if space.backend.payload == "object":
        return _perform(space, effect)
    import asyncio

    return await asyncio.to_thread(_perform, space, effect)


async def _alead(space: Space, effect: Lead) -> None:
    """The load as a task of its own, which no caller's cancellation reaches."""
    LEADING.set((*LEADING.get(), effect.flight))
    with suppress(Exception):  # the flow has put it into the flight, where the leader finds it
        await arun(space, effect.flow)


async def _await(flight: Flight) -> Any:
    import asyncio

    future = asyncio.wrap_future(flight.future)
    try:
        while True:
            done, _ = await asyncio.wait((future,), timeout=_PATIENCE)
            if done:
                return future.result()
            if flight.dead:
                return Abandoned(RuntimeError("the event loop of the load stands still"))
    finally:
        future.cancel()
        flight.leave()
