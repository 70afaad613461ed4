"""What happens on everything but a hot hit, written once.

Each function here is a generator of *effects*: it yields what it wants done and is sent the result (or thrown the
exception).  It does no I/O, reads no clock and knows no threads, so `_drive` can run it blocking or in an event loop,
and a test can step two of them by hand in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flight import Abandoned, Failed, Flight, Landed, Outcome
from codomyrmex_cache._isolation import is_awaitable
from codomyrmex_cache._policy import Ttl, is_fresh, lifetime, new_entry
from codomyrmex_cache._raising import own_copy
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import CacheCodecError, EnvelopeError
from codomyrmex_cache.keys import Key
from codomyrmex_cache.stats import Counters

__all__ = [
    "Answer", "AwaitableResult", "Call", "Effect", "Flow", "Lead", "Load", "Now", "Request", "Wait",
    "call", "compute", "load", "pack", "read", "usable", "write",
]  # fmt: skip


class Call(NamedTuple):
    """Do this to the backend."""

    verb: str
    arguments: tuple[Any, ...]


class Load(NamedTuple):
    """Run the user's function."""

    invoke: Callable[[], Any]


class Lead(NamedTuple):
    """Run this flow as the leader of the flight: here and now, or as a task of its own."""

    flight: Flight
    flow: Generator[Any, Any, None]


class Wait(NamedTuple):
    """Until the flight has ended; answers its outcome."""

    flight: Flight


class Now(NamedTuple):
    """What the clock says."""


Effect = Call | Load | Lead | Wait | Now
T = TypeVar("T")
Flow = Generator[Effect, Any, T]
"""Yields effects, is sent their results, returns a T."""


class AwaitableResult(Exception):  # noqa: N818  a signal, never seen outside
    """The function turned out to return an awaitable; the call starts over in the event loop with it."""

    def __init__(self, awaitable: Any) -> None:
        self.awaitable = awaitable
        super().__init__()


Parts = tuple[tuple[str, bytes], ...]


class KeyMoved(Exception):  # noqa: N818  a signal, never seen outside
    """An argument changed between the making of the key and the start of the function."""


class Request(NamedTuple):
    """One call that may need its function.

    Args:
        key: of the call.
        invoke: runs the function with the call's arguments.
        counters: where the outcome is counted.
        ttl: fresh time, or a callable on the result.
        copy: whether stored values are kept apart from handed-out ones.
        awaits: whether the driver awaits what `invoke` gives back.
        parts: asked before the load: what went into the key, to be stored beside the result.
        unmoved: asked just before the load; if it says no, an argument has changed since the key was made, so the result
            belongs to another key and to this caller alone.
        unchanged: asked after the load; if it says no, what the key was taken from has changed and nothing is stored.
    """

    key: Key
    invoke: Callable[[], Any]
    counters: Counters
    ttl: Ttl = None
    copy: bool = True
    awaits: bool = False
    parts: Callable[[], Parts] = tuple
    unmoved: Callable[[], bool] | None = None
    unchanged: Callable[[], bool] | None = None


class Answer(NamedTuple):
    """What a call comes to: an entry, or the exception that its function raised."""

    entry: Entry | None
    error: BaseException | None = None

    def result(self) -> Any:
        """The value, or the exception raised."""
        if self.entry is None:
            assert self.error is not None
            raise self.error
        return self.entry.value


# -- reading and writing ---------------------------------------------------------------------------------------------


def read(space: Space, key: Key, counters: Counters, *, copy: bool = True) -> Flow[Entry | None]:
    """The fresh entry under the key, or `None`.  What cannot be read, verified or decoded is a miss, counted by kind."""
    stored = space.stored(key.text)
    try:
        raw = yield Call("get", (stored,))
    except Exception as error:
        space.backend_failed("get", error, counters)
        return None
    if raw is None:
        return None
    now = yield Now()
    return usable(space, stored, raw, key.digest, now, counters, copy=copy)


def usable(
    space: Space, stored: bytes, raw: Entry, digest: bytes, now: float, counters: Counters, *, copy: bool
) -> Entry | None:
    """What a backend gave, verified, decoded and fresh; or `None`, counted by its reason."""
    try:
        entry = space.payloads.unpack(stored, raw, digest, copy=copy)
    except (EnvelopeError, CacheCodecError) as error:
        kind = error.kind if isinstance(error, EnvelopeError) else "undecodable"
        counters.error(kind)
        space.warn_once((kind,), "namespace %r: unreadable entry taken as a miss (%s: %s)", space.name, kind, error)
        return None
    if is_fresh(entry, now):
        return entry
    counters.add("expirations")
    return None


def pack(space: Space, key: Key, entry: Entry, counters: Counters, *, copy: bool) -> Entry | None:
    """The stored form of an entry, or `None` (counted, logged once per type) if the value cannot be stored."""
    try:
        return space.payloads.pack(space.stored(key.text), entry, copy=copy)
    except Exception as error:  # encoders, reducers and state are user code
        counters.error("unstorable")
        space.warn_once(
            ("unstorable", type(entry.value).__qualname__),
            "namespace %r: a result of type %s is returned but not stored: %s",
            space.name, type(entry.value).__qualname__, error,
        )  # fmt: skip
        return None


def write(space: Space, key: Key, packed: Entry, counters: Counters) -> Flow[None]:
    """Give the packed entry to the backend."""
    try:
        yield Call("set", (space.stored(key.text), packed))
    except Exception as error:
        space.backend_failed("set", error, counters)
    else:
        counters.add("sets")


# -- a call that may load --------------------------------------------------------------------------------------------


def call(space: Space, request: Request) -> Flow[Answer]:
    """Answer from the store, from a load under way, or by running the function."""
    try:
        return (yield from _answer(space, request))
    except AwaitableResult:
        raise
    except BaseException:  # interrupted, cancelled, or a backend's error that was asked for: an outcome all the same
        request.counters.add("misses")
        raise


def _answer(space: Space, request: Request) -> Flow[Answer]:
    counters = request.counters
    entry = yield from read(space, request.key, counters, copy=request.copy)
    if entry is not None:
        counters.hit(entry.cost)
        return Answer(entry)
    stored = space.stored(request.key.text)
    while True:
        own = Flight(stored)
        try:
            flight = space.flights.join(own)
            leads = flight is own
            if not leads and flight.waits_for_itself(blocking=not request.awaits):
                flight.leave()
                return (yield from compute(request))
            if leads:
                yield Lead(flight, _lead(space, request, flight))
            outcome: Outcome = yield Wait(flight)
        except BaseException as error:  # an interruption or a cancellation, or a backend's error that was asked for
            if own.task is None:  # no task of its own goes on with it
                space.flights.end(own, Abandoned(error))
            raise
        if isinstance(outcome, Abandoned) and isinstance(outcome.error, KeyMoved):
            return (yield from compute(request))
        answer = _leader_answer(request, outcome) if leads else (yield from _follower_answer(space, request, outcome))
        if answer is not None:
            return answer


def compute(request: Request) -> Flow[Answer]:
    """Run the function and leave the store alone."""
    request.counters.add("bypasses")
    try:
        value = yield Load(request.invoke)
    except Exception as error:
        return Answer(None, error)
    if not request.awaits and is_awaitable(value):
        raise AwaitableResult(value)
    return Answer(Entry(value, awaited=request.awaits))


def _lead(space: Space, request: Request, flight: Flight) -> Flow[None]:
    outcome: Outcome | None = None
    try:
        entry = yield from read(space, request.key, request.counters, copy=request.copy)
        if entry is not None:  # stored between this call's first look and its flight
            packed = pack(space, request.key, entry, request.counters, copy=request.copy)
            outcome = Landed(entry, packed, found=True)
        else:
            outcome = yield from load(space, request, flight)
    except BaseException as error:
        outcome = Abandoned(error)
        raise
    finally:
        space.flights.end(flight, outcome or Abandoned(GeneratorExit()))


def load(space: Space, request: Request, flight: Flight) -> Flow[Outcome]:
    """Run the function and store its result unless the flight was fenced meanwhile."""
    counters = request.counters
    parts = request.parts()
    if request.unmoved is not None and not (yield Load(request.unmoved)):
        return Abandoned(KeyMoved())
    started = yield Now()
    try:
        value = yield Load(request.invoke)
    except Exception as error:
        counters.load((yield Now()) - started, failed=True)
        return Failed(error)
    if not request.awaits and is_awaitable(value):
        raise AwaitableResult(value)
    now = yield Now()
    counters.load(now - started)
    seconds = _checked_lifetime(space, request, value)
    if request.unchanged is not None and not (yield Load(request.unchanged)):
        seconds = 0.0
    key = request.key
    entry = new_entry(value, seconds, now, cost=now - started, digest=key.digest, parts=parts, awaited=request.awaits)
    packed = pack(space, request.key, entry, counters, copy=request.copy)
    if packed is not None and seconds != 0 and not flight.fenced:
        yield from write(space, request.key, packed, counters)
        if flight.fenced:  # invalidated while it was being written: which came first, the backend alone knows
            yield Call("delete", (space.stored(key.text),))
    return Landed(entry, packed)


def _checked_lifetime(space: Space, request: Request, value: object) -> float | None:
    """The lifetime; a ttl callable that fails costs the storing, not the call."""
    try:
        return lifetime(request.ttl, value)
    except Exception as error:  # the callable is user code
        request.counters.error("ttl")
        space.warn_once(("ttl",), "namespace %r: ttl callable failed, result not stored (%s)", space.name, error)
        return 0.0


def _leader_answer(request: Request, outcome: Outcome) -> Answer:
    counters = request.counters
    if isinstance(outcome, Landed) and outcome.found:
        counters.hit(outcome.entry.cost)
        return Answer(outcome.entry)
    counters.add("misses")
    if isinstance(outcome, Landed):
        return Answer(outcome.entry)
    return Answer(None, outcome.error)


def _follower_answer(space: Space, request: Request, outcome: Outcome) -> Flow[Answer | None]:
    """The follower's own copy; `None` to start over."""
    counters = request.counters
    if isinstance(outcome, Abandoned):
        return None
    if isinstance(outcome, Failed):
        counters.add("coalesced")
        return Answer(None, own_copy(outcome.error))
    if outcome.packed is None:  # cannot be kept apart from the leader's value, so it is not shared
        return (yield from compute(request))
    try:
        stored = space.stored(request.key.text)
        entry = space.payloads.unpack(stored, outcome.packed, request.key.digest, copy=request.copy)
    except (EnvelopeError, CacheCodecError):
        return (yield from compute(request))
    counters.add("coalesced")
    return Answer(replace(entry, awaited=outcome.entry.awaited))
