"""Threads, tasks and processes in which nothing moves by itself: every effect of every flow is answered on demand.

A `Thread` carries its flows out as `_drive.Run` does, a `Task` as `_drive.arun` does; the loop, the cancellations and the
interruptions are played.  What a flow asks of its driver is one step, so any interleaving of effects can be had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, Token, copy_context
from typing import Any, NamedTuple

import pytest

from codomyrmex_cache import InMemoryBackend, _flight
from codomyrmex_cache._effects import Ask, Behind, Call, Lead, Load, Now, Pause, Wait
from codomyrmex_cache._flight import LEADING, TIMED_OUT, Abandoned, Flight
from codomyrmex_cache._heart import LEASE_SECONDS
from codomyrmex_cache._payload import ObjectPayloads
from codomyrmex_cache._space import Space
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.stats import Counters
from codomyrmex_cache.testing import FakeClock

UNSTARTED = object()
"""What is pending before the first step."""

_current: list[Stepper] = []
"""Who is moving now, innermost last."""


def play(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stepper is a thread of its own, or runs in its process's event loop."""
    monkeypatch.setattr(_flight, "get_ident", lambda: id(_current[-1]) if _current else 0)
    monkeypatch.setattr(_flight, "_running_loop", lambda: _current[-1].loop if _current else None)


class Loop:
    """An event loop as a flight sees it."""

    def is_closed(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        callback()


class Heart:
    """Holds leases, and renews them when told to."""

    def __init__(self, backend: InMemoryBackend) -> None:
        self._backend = backend
        self._held: dict[tuple[bytes, int], Callable[[], None]] = {}

    @contextmanager
    def holding(self, key: bytes, begun: Begun, lost: Callable[[], None], _: Callable[[], bool]) -> Iterator[None]:
        self._held[key, begun.lease] = lost
        try:
            yield
        finally:
            self._held.pop((key, begun.lease), None)

    def beat(self) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]:
        """Renew all; the leases that were and those that could not be."""
        kept, gone = [], []
        for (key, lease), lost in list(self._held.items()):
            if self._backend.renew(key, lease, LEASE_SECONDS):
                kept.append((key, lease))
            else:
                gone.append((key, lease))
                del self._held[key, lease]
                lost()
        return kept, gone


class Process:
    """A space of its own over a backend that may be shared."""

    def __init__(self, number: int, backend: InMemoryBackend, clock: FakeClock, *, elects: bool) -> None:
        self.number, self.counters, self.loop = number, Counters(), Loop()
        self.space = Space("stepped", backend, ObjectPayloads(), clock, "bypass", {"": Counters()})
        self.space.elects = elects
        self.space.draw = lambda: 0.999  # type: ignore[method-assign]
        self.heart = Heart(backend)
        self.space.heart = self.heart  # type: ignore[assignment]


class Frame:
    """One flow on a stepper's stack, and the run of the user's function that it wants."""

    def __init__(self, flow: Any, *, token: Token[tuple[Flight, ...]] | None = None, within: Load | None = None) -> None:
        self.flow, self.token = flow, token
        self.within = within  # the run of the user's function that called this
        self.flight: Flight | None = None
        self.begun: Any = None
        self.began_at = 0
        self.execution: Any = None
        self.record: Any = None  # what a model notes about it


class Gives(NamedTuple):
    """How a run of the user's function ends."""

    value: Any = None
    error: Exception | None = None


class World:
    """All the steppers, and what is told about them; a model overrides the methods that tell."""

    def __init__(self) -> None:
        self.tick = 0
        self.clock = FakeClock()
        self.live: list[Stepper] = []
        self.flights: dict[Flight, int] = {}  # each with the tick at which it was first seen

    # -- told to the model

    def loading(self, stepper: Stepper, frame: Frame) -> Any:
        """The user's function begins; answers what stands for this run of it: the calls that it makes, and what it `gives`."""
        raise NotImplementedError

    def performed(self, stepper: Stepper, frame: Frame, effect: Call, reply: Any) -> None:
        """The backend has done this."""

    def behind(self, stepper: Stepper, flow: Any) -> None:
        """A refresh begins in the background."""
        refreshing = type(stepper)(self, stepper.process, flow, context=stepper.copied_context(()))
        refreshing.refreshes_behind = True
        self.live.append(refreshing)


class Stepper:
    """One caller, moved on effect by effect.

    Args:
        world: where it lives.
        process: whose space it uses.
        flow: what it carries out.
        context: to run in.
    """

    loop: Any = None

    def __init__(self, world: World, process: Process, flow: Any, context: Context | None = None) -> None:
        self.world, self.process, self.space = world, process, process.space
        self.frames = [Frame(flow)]
        self.context = context or Context()
        self.pending: Any = UNSTARTED
        self.held: list[Any] = []  # the reply that is under way
        self.refreshes_behind = False

    @property
    def done(self) -> bool:
        return not self.frames

    @property
    def blocked(self) -> bool:
        return isinstance(self.pending, Wait) and not self.pending.flight.future.done()

    def copied_context(self, leading: tuple[Flight, ...]) -> Context:
        """For what is begun here and runs beside; inside of these flights."""
        context = self.context.run(copy_context)
        context.run(LEADING.set, leading)
        return context

    def step(self, gives: Gives | None = None) -> None:
        """Carry out the pending effect; `gives` is what the user's function does if that is what is pending."""
        assert not self.blocked, "would block"
        self.world.tick += 1
        if self.pending is UNSTARTED:
            self.resume(None)
        elif isinstance(self.pending, Load):
            self._run_function(gives)
        elif isinstance(self.pending, Lead):
            self.lead(self.pending)
        else:
            self.resume(self.held.pop() if self.held else self._performed(self.pending))

    def hold(self) -> None:
        """The backend does what is pending, and its reply is still under way."""
        if isinstance(self.pending, Call) and not self.held:
            self.world.tick += 1
            self.held.append(self._performed(self.pending))

    def _run_function(self, gives: Gives | None) -> None:
        execution = self.frames[-1].execution
        if execution.nested:
            self.frames.append(Frame(execution.nested.pop(0), within=self.pending))
            self.pending = UNSTARTED
            return
        value, error = gives or execution.gives
        self.resume(value, error)

    def lead(self, effect: Lead) -> None:
        raise NotImplementedError

    def _performed(self, effect: Any) -> Any:
        if isinstance(effect, Call):
            reply = getattr(self.space.backend, effect.verb)(*effect.arguments)
            frame = self.frames[-1]
            if effect.verb == "begin":
                frame.begun, frame.began_at = reply, self.world.tick
            self.world.performed(self, frame, effect, reply)
            return reply
        if isinstance(effect, Now):
            return self.space.clock()
        if isinstance(effect, Ask):
            return effect.question()
        if isinstance(effect, Wait):
            return effect.flight.future.result()
        if isinstance(effect, Pause):
            self.world.clock.advance(effect.seconds)
            effect.patience.spend(effect.seconds)
            return None
        assert isinstance(effect, Behind)
        self.world.behind(self, effect.flow)
        return None

    def _moving(self, act: Callable[..., Any], *arguments: Any) -> Any:
        _current.append(self)
        try:
            return self.context.run(act, *arguments)
        finally:
            _current.pop()

    def resume(self, reply: Any, error: BaseException | None = None) -> None:
        """Answer the pending effect with this."""
        while self.frames:
            frame = self.frames[-1]
            try:
                self.pending = self._moving(frame.flow.throw, error) if error else self._moving(frame.flow.send, reply)
            except StopIteration as end:
                reply, error = end.value, None
            except AssertionError:  # the model's
                raise
            except BaseException as raised:
                reply, error = None, raised
            else:
                self._yielded(frame)
                return
            self.frames.pop()
            if frame.token is not None:
                self.context.run(LEADING.reset, frame.token)
            if frame.within is not None and (error is None or isinstance(error, Exception)):
                self.pending = frame.within  # the function goes on
                return
        self.finished(error)

    def _yielded(self, frame: Frame) -> None:
        if isinstance(self.pending, Load):
            frame.execution = self.world.loading(self, frame)
        elif isinstance(self.pending, (Lead, Wait)):
            self.world.flights.setdefault(self.pending.flight, self.world.tick)

    def finished(self, error: BaseException | None) -> None:
        self.pending = None
        self.world.live.remove(self)

    @property
    def impatient(self) -> bool:
        """Whether it waits for a flight, and not as long as it takes."""
        return self.blocked and self.pending.patience.left is not None

    def time_out(self) -> None:
        """The patience of the wait that is pending comes to its end."""
        self.world.tick += 1
        self.pending.patience.spend(self.pending.patience.left)
        self.resume(TIMED_OUT)

    def interrupt(self, *, after: bool) -> None:
        """Stop it where it is; `after` the backend has done what is pending, but before it could tell."""
        raise NotImplementedError


class Thread(Stepper):
    """Carries out the load that it leads itself; an interruption raises at once."""

    def lead(self, effect: Lead) -> None:
        token = self.context.run(lambda: LEADING.set((*LEADING.get(), effect.flight, *effect.carried)))
        self.frames.append(Frame(effect.flow, token=token))
        self.frames[-1].flight = effect.flight
        self.resume(None)

    def interrupt(self, *, after: bool) -> None:
        if self.pending is UNSTARTED:
            return
        self.world.tick += 1
        if after:
            self.hold()
        self.held.clear()
        self.resume(None, KeyboardInterrupt())


class Task(Stepper):
    """Gives the load that it leads to a task of its own; an interruption raises when it moves next."""

    def __init__(self, *arguments: Any, flight: Flight | None = None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.loop = self.process.loop
        self.flight = self.frames[0].flight = flight
        self.cancelling = False

    def lead(self, effect: Lead) -> None:
        context = self.copied_context((*self.context.run(LEADING.get), effect.flight, *effect.carried))
        task = Task(self.world, self.process, effect.flow, context=context, flight=effect.flight)
        task.refreshes_behind = self.refreshes_behind
        effect.flight.loop, effect.flight.task = self.loop, task  # type: ignore[assignment]
        self.world.live.append(task)
        self.resume(None)

    def cancel(self) -> None:
        self.cancelling = True

    def interrupt(self, *, after: bool) -> None:
        self.cancel()

    @property
    def blocked(self) -> bool:
        return super().blocked and not self.cancelling

    def step(self, gives: Gives | None = None) -> None:
        if not self.cancelling:
            super().step(gives)
            return
        self.world.tick += 1
        self.cancelling = False
        self.held.clear()
        if self.pending is UNSTARTED:
            self.frames[-1].flow.close()
            if len(self.frames) == 1:
                self.frames.clear()
                self.finished(asyncio.CancelledError())
                return
            self.frames.pop()
        self.resume(None, asyncio.CancelledError())

    def finished(self, error: BaseException | None) -> None:
        super().finished(error)
        if self.flight is not None:
            self.space.flights.end(self.flight, Abandoned(asyncio.CancelledError()))
