"""Single flight: the calls that want a key while its load is running wait for that one load.

One dict for threads and tasks alike.  `dict.setdefault` decides who leads.  A flight ends in one of three ways: it lands with
an entry or with the function's exception, or it is abandoned (cancelled, interrupted), and then whoever waits starts over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock, get_ident
from typing import TYPE_CHECKING, NamedTuple

from codomyrmex_cache._entry import Entry

if TYPE_CHECKING:
    import asyncio

__all__ = ["LEADING", "Abandoned", "Failed", "Flight", "Flights", "Landed"]


class Landed(NamedTuple):
    """The load is done: the leader's own entry, the stored form for everybody else, and whether the store had it."""

    entry: Entry
    packed: Entry | None
    found: bool = False


class Failed(NamedTuple):
    """The function raised."""

    error: Exception


class Abandoned(NamedTuple):
    """The load did not come to an end; the reason is the leader's alone."""

    error: BaseException


Outcome = Landed | Failed | Abandoned


class Flight:
    """One running load.

    `fenced` is set by an invalidation that happens meanwhile: the result goes to those who wait and is not stored.
    `loop` and `task` are set when an event loop runs the load.  When the last of those who wait leaves, the task is cancelled.
    """

    __slots__ = ("_lock", "_waiting", "fenced", "future", "key", "loop", "task", "thread")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.thread = get_ident()
        self.future: Future[Outcome] = Future()
        self.future.set_running_or_notify_cancel()  # from here on no waiter's cancellation reaches the others
        self.fenced = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None
        self._waiting = 0
        self._lock = Lock()

    def enter(self) -> None:
        """One more caller depends on this flight."""
        with self._lock:
            self._waiting += 1

    def leave(self) -> None:
        """A caller no longer depends on it; the last one to go cancels a load that nobody will see."""
        with self._lock:
            self._waiting -= 1
            last = self._waiting == 0
        if not last or self.task is None or self.loop is None:
            return
        if not self.future.done() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.task.cancel)

    def waits_for_itself(self, *, blocking: bool) -> bool:
        """Whether a caller here would wait for ever: it is inside this load, or would block the loop that runs it."""
        if self in LEADING.get():
            return True
        return blocking and self.loop is not None and self.loop is _running_loop()

    @property
    def is_orphan(self) -> bool:
        """Whether this very thread led it and does no more: an interruption came before the flight could be ended."""
        return self.loop is None and self.thread == get_ident() and self not in LEADING.get()

    @property
    def dead(self) -> bool:
        """Whether its event loop stands still, so that it may never land."""
        return self.loop is not None and not self.loop.is_running() and not self.future.done()


LEADING: ContextVar[tuple[Flight, ...]] = ContextVar("codomyrmex_cache_leading", default=())
"""The flights that the current thread, task or context is inside of: joining one of them would wait for itself."""


class Flights:
    """The running loads of one namespace, by storage key."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}
        self._apart: dict[int, Flight] = {}
        self._process = os.getpid()

    def join(self, own: Flight) -> Flight:
        """The flight for the key of `own`, entered: `own` itself if there was none, and then the caller leads."""
        if self._process != os.getpid():  # forked: the parent's leaders do not exist here
            self._flights, self._process = {}, os.getpid()
        flight = self._flights.setdefault(own.key, own)
        if flight.dead or (flight is not own and flight.is_orphan):
            self._flights[own.key] = flight = own
        flight.enter()
        return flight

    def end(self, flight: Flight, outcome: Outcome) -> None:
        """Take the flight off the board and tell everybody who waits; only the first end counts."""
        self._forget(flight)
        if not flight.future.done():
            flight.future.set_result(outcome)

    @contextmanager
    def apart(self, key: bytes) -> Iterator[Flight]:
        """A flight that nobody joins (a refresh) but that an invalidation finds."""
        flight = Flight(key)
        self._apart[id(flight)] = flight
        try:
            yield flight
        finally:
            self._apart.pop(id(flight), None)

    def fence(self, matches: Callable[[bytes], bool]) -> None:
        """Invalidate running loads: they finish for those who wait, are not stored, and nobody else joins them."""
        flying = [*self._flights.values(), *self._apart.values()]
        for key in {flight.key for flight in flying if matches(flight.key)}:
            self.fence_key(key)

    def fence_key(self, key: bytes) -> None:
        """The same for one key."""
        for other in list(self._apart.values()):
            other.fenced = other.fenced or other.key == key
        flight = self._flights.get(key)
        if flight is not None:
            flight.fenced = True
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            self._flights.pop(flight.key, None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    loops = sys.modules.get("asyncio")  # if nobody has imported it, no loop is running
    if loops is None:
        return None
    try:
        loop: asyncio.AbstractEventLoop = loops.get_running_loop()
    except RuntimeError:
        return None
    return loop
