"""What happens on everything but a hot hit, written once: the store answers, or a load under way, or the function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codomyrmex_cache._effects import Answer, AwaitableResult, Behind, Flow, KeyMoved, Lead, Load, Now, Patience, Request, Wait
from codomyrmex_cache._entries import Found, answered, fetched, look, touched
from codomyrmex_cache._entry import MISSING, Entry
from codomyrmex_cache._flight import TIMED_OUT, Abandoned, Failed, Flight, Landed, Outcome, Phase, Streaming, TimedOut
from codomyrmex_cache._isolation import is_awaitable, is_stream
from codomyrmex_cache._load import NOT_LOOKED, Looked, Terms, lead, looked_for, missed, release, unchanged
from codomyrmex_cache._policy import Verdict, is_due_early
from codomyrmex_cache._raising import own_copy
from codomyrmex_cache._record import replace
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import CacheCodecError, CacheTimeoutError, EnvelopeError

if TYPE_CHECKING:
    from codomyrmex_cache._recording import Listener, Recording

__all__ = ["call", "compute", "follower_answer", "leader_answer", "opened", "stream_answer", "waited_in_vain"]


def call(space: Space, request: Request, looked: Looked = NOT_LOOKED) -> Flow[Answer]:
    """Answer from the store, from a load under way, or by running the function; maybe after having `looked` into the store."""
    try:
        terms = None
        if (
            looked.meter is not None
            or looked.seen is not None
            or (space.looks_first and request.ruling.leases and not space.flights.is_flying(space.stored(request.key.text)))
        ):
            found, terms = yield from looked_for(space, request, looked)
        else:
            looking = look if space.near is not None else fetched
            found = yield from looking(
                space, request.key, request.counters, copy=request.rules.copy, strict=request.rules.strict
            )
        if found is not None:
            answer = yield from _from_store(space, request, found)
            if answer is not None:
                return answer
        if request.ruling.mode == "replay":
            raise (yield from missed(space, request))
        return (yield from _from_load(space, request, found, terms))
    except AwaitableResult:
        raise
    except BaseException:  # interrupted, cancelled, or a backend's error that was asked for: an outcome all the same
        request.counters.add("misses")
        raise


def _from_store(space: Space, request: Request, found: Found) -> Flow[Answer | None]:
    """The stored entry's answer, if it may be given; a refresh is started behind it if one is due."""
    entry, rules, ruling = found.entry, request.rules, request.ruling
    if not ruling.counts(entry.created):
        return None
    if not ruling.ages:
        return _lasting(space, request, entry)
    if found.verdict is Verdict.EXPIRED or (found.verdict is Verdict.STALE and entry.streamed):
        return None
    if found.verdict is Verdict.STALE and entry.awaited and not request.awaits:
        return None  # the function is called for its awaitable; with that the call starts over
    answer = answered(space, request, entry) if entry.raised else Answer(entry)
    if answer is None:
        return None
    if found.verdict is Verdict.STALE:
        if ruling.stores:
            yield from _refresh_behind(space, request, entry)
        request.counters.answered("stale_hits", entry.cost, entry.result)
        return answer
    if not ruling.stores:
        pass
    elif rules.early and not entry.streamed and is_due_early(entry, (yield Now()), rules.early, space.draw()):
        yield from _refresh_behind(space, request, entry)
    elif rules.touch and not space.flights.is_flying(space.stored(request.key.text)):
        yield from touched(space, request.key, found, request.counters)
    request.counters.hit(entry.cost, entry.result)
    return answer


def _lasting(space: Space, request: Request, entry: Entry) -> Answer | None:
    """The answer of an entry that does not age."""
    answer = answered(space, request, entry)
    if answer is not None:
        request.counters.hit(entry.cost)
    return answer


def _refresh_behind(space: Space, request: Request, seen: Entry) -> Flow[None]:
    if not space.flights.is_flying(space.stored(request.key.text)):
        behind = request._replace(unmoved=request.still, unchanged=request.still)  # the caller goes on with its arguments
        yield Behind(_refreshed(space, behind, seen))


def _refreshed(space: Space, request: Request, seen: Entry) -> Flow[None]:
    own = Flight(space.stored(request.key.text))
    _, _, outcome = yield from _joined(space, request, own, Patience(None), seen)
    recording = outcome.recording if isinstance(outcome, Streaming) else None
    listener = None if recording is None else recording.listen()
    if recording is not None and listener is not None:  # a stream that nobody hears
        recording.leave(listener)


def _from_load(space: Space, request: Request, found: Found | None, looked: Terms | None = None) -> Flow[Answer]:
    patience = Patience(request.rules.wait)
    while True:
        own = Flight(space.stored(request.key.text))
        flight, phase, outcome = yield from _joined(space, request, own, patience, looked=looked)
        leads, looked = flight is own, None
        if outcome is None or (isinstance(outcome, Abandoned) and isinstance(outcome.error, KeyMoved)):
            return (yield from compute(request))
        if isinstance(outcome, TimedOut) or (leads and outcome == Abandoned(TIMED_OUT)):
            return (yield from waited_in_vain(space, request, found))
        if isinstance(outcome, Streaming):
            answer = yield from _streaming_answer(space, request, flight, outcome, leads=leads)
        elif leads:
            answer = leader_answer(space, request, outcome)
        else:
            answer = yield from follower_answer(space, request, phase, outcome)
        if answer is not None:
            return answer


def _joined(
    space: Space, request: Request, own: Flight, patience: Patience, seen: Entry | None = None, looked: Terms | None = None
) -> Flow[tuple[Flight, Phase, Outcome | TimedOut | None]]:
    """The flight for the key, how far it was, and its outcome.  If another one leads, a lease that the look got is given back.

    That is `None` if there is no waiting for it: it waits for this call, or it is a refresh, of `seen`.
    """
    try:
        flight = space.flights.join(own)
        try:
            phase = flight.phase
            if flight is own:
                yield Lead(flight, lead(space, request, flight, patience, seen, looked))
                return flight, phase, (yield Wait(flight, Patience(None)))
            if looked is not None:
                yield from release(space, own.key, looked.begun, failed=False, lease_alone=True)
            if seen is not None or flight.waits_for_itself(blocking=not request.awaits):
                return flight, phase, None
            return flight, phase, (yield Wait(flight, patience))
        finally:
            flight.leave()
    except BaseException as error:  # an interruption or a cancellation, or a backend's error that was asked for
        if own.task is None:  # no task of its own goes on with it
            space.flights.end(own, Abandoned(error))
        raise


def compute(request: Request, *, counted: bool = False) -> Flow[Answer]:
    """Run the function and leave the store alone; a bypass, unless it is `counted` already."""
    try:
        value = yield Load(request.invoke)
    except Exception as error:
        request.counters.add("bypasses", not counted)
        return Answer(None, error)
    if not request.awaits and is_awaitable(value):
        raise AwaitableResult(value)
    request.counters.add("bypasses", not counted)
    if request.rules.share_streams and is_stream(value):  # callers may rely on what a `CachedStream` has, such as `with`
        return Answer(Entry(_own(value), streamed=True, awaited=request.awaits))
    return Answer(Entry(value, awaited=request.awaits))


def waited_in_vain(space: Space, request: Request, found: Found | None) -> Flow[Answer]:
    """What was asked for when the time to wait is over: an error, the old value, or the function's."""
    if request.rules.on_wait_timeout == "raise":
        raise CacheTimeoutError(
            f"namespace {space.name!r}: another caller's load of {request.key.text!r} took longer than "
            f'wait={request.rules.wait:g} seconds; wait longer, or compute with on_wait_timeout="compute"'
        )
    old = None if found is None or request.rules.on_wait_timeout != "stale" else answered(space, request, found.entry)
    if old is None:
        return (yield from compute(request))
    request.counters.answered("stale_hits", 0.0, MISSING if old.entry is None else old.entry.result)
    return old


def leader_answer(space: Space, request: Request, outcome: Outcome) -> Answer:
    """What the leader itself answers, counted."""
    counters = request.counters
    if isinstance(outcome, Landed) and outcome.found:
        counters.hit(outcome.entry.cost, outcome.entry.result)
        answer = answered(space, request, outcome.entry)
        assert answer is not None  # the leader has seen to that
        return answer
    counters.add("misses")
    if isinstance(outcome, Landed):
        return Answer(outcome.entry)
    assert not isinstance(outcome, Streaming)
    return Answer(None, outcome.error)


def _streaming_answer(
    space: Space, request: Request, flight: Flight, outcome: Streaming, *, leads: bool
) -> Flow[Answer | None]:
    """The running stream, unless an invalidation elsewhere has come since it began."""
    terms, listener = outcome.terms, outcome.recording.listen()
    if listener is None:
        return None
    try:
        if not leads and not (yield from unchanged(space, flight.key, terms.names, terms.begun)):
            space.flights.forget(flight)
            outcome.recording.leave(listener)
            return None
    except BaseException:  # cancelled while asking
        outcome.recording.leave(listener)
        raise
    if leads:
        request.counters.add("misses")
    else:
        request.counters.answered("coalesced", value=_whole(outcome.recording))
    return _heard(outcome, listener)


def _whole(recording: Recording) -> Any:
    """The items of a stream that has ended; who joins it before is counted by the one who keeps it."""
    with recording.lock:
        if recording.followers is None:
            return recording.chunks
        recording.followers += 1
        return MISSING


def _heard(outcome: Streaming, listener: Listener) -> Answer:
    return Answer(Entry((outcome.recording, listener), streamed=True, awaited=outcome.awaited))


def stream_answer(outcome: Streaming) -> Answer | None:
    """The recording with a place in it; `None` to start over if it takes no more listeners."""
    listener = outcome.recording.listen()
    return None if listener is None else _heard(outcome, listener)


def opened(answer: Answer) -> tuple[Recording, Listener]:
    """The recording that an answer comes to, and a place in it: one that runs, a stored one, or one of the caller's own."""
    if answer.entry is None:
        assert answer.error is not None
        raise answer.error
    from codomyrmex_cache._recording import Recording

    value = answer.entry.value
    if answer.entry.streamed and isinstance(value[0], Recording):
        found: tuple[Recording, Listener] = value
        return found
    if not answer.entry.streamed:
        return _own(value)
    recording = Recording.finished(value[1], value[2], is_async=value[0], copy=False)
    listener = recording.listen()
    assert listener is not None
    return recording, listener


def _own(stream: Any) -> tuple[Recording, Listener]:
    """A caller's own stream, which nobody else hears."""
    from codomyrmex_cache._recording import Recording

    is_async = hasattr(type(stream), "__anext__")
    recording = Recording(stream, is_async=is_async, bound=0, copy=False, keep=_nothing, gone=_nothing)
    listener = recording.listen()
    assert listener is not None
    return recording, listener


def _nothing() -> None:
    """A caller's own stream is not kept, and nobody waits for its end."""


def follower_answer(space: Space, request: Request, phase: Phase, outcome: Outcome) -> Flow[Answer | None]:
    """The follower's own copy; `None` to start over."""
    counters = request.counters
    if not isinstance(outcome, (Landed, Failed)) or outcome.overtaken or phase.is_too_late_for(outcome):
        return None
    if isinstance(outcome, Failed):
        counters.add("coalesced")
        return Answer(None, own_copy(outcome.error))
    if outcome.packed is None:  # cannot be kept apart from the leader's value, so it is not shared
        return (yield from compute(request))
    try:
        stored = space.stored(request.key.text)
        entry = space.payloads.unpack(stored, outcome.packed, request.key.digest, copy=request.rules.copy)
    except (EnvelopeError, CacheCodecError):
        return (yield from compute(request))
    answer = answered(space, request, replace(entry, awaited=outcome.entry.awaited))
    if answer is not None:
        counters.answered("coalesced", value=entry.result)
    return answer
