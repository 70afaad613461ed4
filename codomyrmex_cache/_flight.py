"""Single flight: the calls that want a key while its load is running wait for that one load.

One dict for threads and tasks alike.  `dict.setdefault` decides who leads.  A flight ends in one of four ways: it lands with
an entry, with a stream that runs on, or with the function's exception, or it is abandoned (cancelled, interrupted), and then
whoever waits starts over.

Loads that wait for each other in a ring would wait for ever.  So each flight knows the flights that callers inside of it wait
for.  A caller first notes its own wait and then follows the notes; of several that close a ring at the same moment at least
one therefore sees it, and computes instead of waiting.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from codomyrmex_cache._entry import Entry

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from codomyrmex_cache._recording import Recording

__all__ = [
    "LEADING",
    "TIMED_OUT",
    "Abandoned",
    "Failed",
    "Flight",
    "Flights",
    "Landed",
    "Outcome",
    "Phase",
    "Streaming",
    "TimedOut",
]


class Landed(NamedTuple):
    """The load is done.

    Args:
        entry: the leader's own.
        packed: the stored form, for everybody else.
        found: the store had it.
        overtaken: the store refused it, because of an invalidation that this process has not seen: those who wait may have
            come after it, so they start over.
    """

    entry: Entry
    packed: Entry | None
    found: bool = False
    overtaken: bool = False


class Streaming(NamedTuple):
    """The function gave a stream, which is being recorded; the flight can be joined until the recording is gone.

    `terms` are what its load relies on (see `_load`).
    """

    recording: Recording
    awaited: bool
    terms: Any


class Failed(NamedTuple):
    """The function raised; `overtaken` as for `Landed`."""

    error: Exception
    overtaken: bool = False


class Abandoned(NamedTuple):
    """The load did not come to an end; the reason is the leader's alone."""

    error: BaseException


class TimedOut(Exception):  # noqa: N818  a signal, never seen outside
    """The time to wait for another caller's load is over."""


TIMED_OUT = TimedOut()

Outcome = Landed | Streaming | Failed | Abandoned


class Phase(IntEnum):
    """How far a flight is when somebody joins it.

    An invalidation elsewhere may come after the store has answered and before the flight ends.  So what the store answered is
    no answer to those who came after it was asked; they look for themselves when the flight has ended.
    """

    BEGINNING = 0
    ASKING = 1  # the store, whether it has an entry by now
    SETTLING = 2  # the result is there, and the store is asked to take it

    def is_too_late_for(self, outcome: Outcome) -> bool:
        """Whether the outcome is no answer to who joined in this phase."""
        if isinstance(outcome, Landed) and outcome.found:
            return self >= Phase.ASKING
        return self is Phase.SETTLING


class Flight:
    """One running load.

    `names` are the generations that it depends on.  `fenced` is set by an invalidation that happens meanwhile: the result goes
    to those who wait and is not stored.  `loop` and `task` are set when an event loop runs the load.  When the last of those
    who wait leaves, the task is cancelled.

    One load may be that of several keys.  Then their flights have a `carrier`, which has the loop and the task, and on which
    whoever waits for one of them depends.
    """

    __slots__ = (
        "_lock",
        "_waiting",
        "_waits_for",
        "carrier",
        "fenced",
        "future",
        "key",
        "loop",
        "names",
        "phase",
        "task",
        "thread",
    )

    def __init__(self, key: bytes, carrier: Flight | None = None) -> None:
        from concurrent.futures import Future  # 5 ms, with `logging`: for the first load, not for the first hit

        self.key = key
        self.carrier = carrier or self
        self.thread = get_ident()
        self.future: Future[Outcome] = Future()
        self.future.set_running_or_notify_cancel()  # from here on no waiter's cancellation reaches the others
        self.fenced = False
        self.phase = Phase.BEGINNING
        self.names: Sequence[bytes] = ()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None
        self._waiting = 0
        self._waits_for: list[Flight] = []
        self._lock = Lock()

    @property
    def is_shared(self) -> bool:
        """Whether more than one caller depends on it."""
        return self._waiting > 1

    def enter(self) -> None:
        """One more caller depends on this flight."""
        for outer in LEADING.get():
            outer._waits_for.append(self)
        with self._lock:
            self._waiting += 1
        if self.carrier is not self:
            self.carrier.enter()

    def leave(self) -> None:
        """A caller no longer depends on it; the last one to go cancels a load that nobody will see."""
        for outer in LEADING.get():
            outer._waits_for.remove(self)
        with self._lock:
            self._waiting -= 1
            last = self._waiting == 0
        if self.carrier is not self:
            self.carrier.leave()
        if not last or self.task is None or self.loop is None:
            return
        if not self.future.done() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.task.cancel)

    def waits_for_itself(self, *, blocking: bool) -> bool:
        """Whether a caller here, having entered, would wait for ever.

        It is inside this load, or inside one that this load waits for, or would block the event loop that runs it.
        """
        if not set(LEADING.get()).isdisjoint(self._waited_for()):
            return True
        loop = self.carrier.loop
        return blocking and loop is not None and loop is _running_loop()

    def _waited_for(self) -> set[Flight]:
        """This flight, the flights it waits for, those that these wait for, and so on."""
        found: set[Flight] = set()
        following = [self]
        while following:
            flight = following.pop()
            if flight not in found:
                found.add(flight)
                following.extend(flight._waits_for)
        return found

    @property
    def is_orphan(self) -> bool:
        """Whether this very thread led it and does no more: an interruption came before the flight could be ended."""
        if self.future.done() or self.carrier.loop is not None:
            return False
        return self.thread == get_ident() and self not in LEADING.get()

    @property
    def dead(self) -> bool:
        """Whether its event loop stands still, so that it may never land."""
        loop = self.carrier.loop
        return loop is not None and not loop.is_running() and not self.future.done()


LEADING: ContextVar[tuple[Flight, ...]] = ContextVar("codomyrmex_cache_leading", default=())
"""The flights that the current thread, task or context is inside of: joining one of them would wait for itself."""


class Flights:
    """The running loads of one namespace, by storage key."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}
        self._apart: dict[int, Flight] = {}

    def join(self, own: Flight) -> Flight:
        """The flight for the key of `own`, entered: `own` itself if there was none, and then the caller leads."""
        flight = self._flights.setdefault(own.key, own)
        if flight.dead or (flight is not own and flight.is_orphan):
            self._flights[own.key] = flight = own
        flight.enter()
        return flight

    def end(self, flight: Flight, outcome: Outcome) -> None:
        """Take the flight off the board and tell everybody who waits; only the first end counts."""
        if flight.future.done():
            return
        if not isinstance(outcome, Streaming):
            self.forget(flight)
        flight.future.set_result(outcome)

    def is_flying(self, key: bytes) -> bool:
        """Whether a load of this key is running."""
        return key in self._flights

    @contextmanager
    def apart(self, flight: Flight) -> Iterator[Flight]:
        """A flight that nobody joins (a refresh) but that an invalidation finds."""
        self._apart[id(flight)] = flight
        try:
            yield flight
        finally:
            self._apart.pop(id(flight), None)

    def fence(self, matches: Callable[[Flight], bool]) -> None:
        """Invalidate running loads: they finish for those who wait, are not stored, and nobody else joins them."""
        for flight in [*self._flights.values(), *self._apart.values()]:
            if matches(flight):
                flight.fenced = True
                self.forget(flight)

    def fence_key(self, key: bytes) -> None:
        """The same for one key."""
        for other in list(self._apart.values()):
            other.fenced = other.fenced or other.key == key
        flight = self._flights.get(key)
        if flight is not None:
            flight.fenced = True
            self.forget(flight)

    def abandon(self) -> None:
        """Nobody of those who lead here exists in this process, which was forked."""
        self._flights, self._apart = {}, {}

    def forget(self, flight: Flight) -> None:
        """From now on nobody joins it."""
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
