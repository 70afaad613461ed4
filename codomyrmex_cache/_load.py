"""Running the function: elected among all who use the store, and stored only if no invalidation came meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from codomyrmex_cache._effects import (
    Ask,
    AwaitableResult,
    Call,
    Flow,
    KeyMoved,
    Load,
    Now,
    Parts,
    Patience,
    Pause,
    Record,
    Request,
)  # fmt: skip
from codomyrmex_cache._entries import Found, answered, examine, pack, read, unstorable, write
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flight import LEADING, TIMED_OUT, Abandoned, Failed, Flight, Landed, Outcome, Phase, Streaming
from codomyrmex_cache._heart import LEASE_SECONDS
from codomyrmex_cache._isolation import is_awaitable, is_stream
from codomyrmex_cache._policy import Verdict, error_lifetime, jittered, lifetime, new_entry
from codomyrmex_cache._raising import told
from codomyrmex_cache._record import replace
from codomyrmex_cache._space import Space
from codomyrmex_cache.backends.base import Begun, generation_name
from codomyrmex_cache.errors import CacheBackendError, CacheCodecError, CacheConfigurationError, CacheMissError, cause_of

if TYPE_CHECKING:
    from codomyrmex_cache._recording import Recording

__all__ = [
    "NOT_LOOKED", "Looked", "Terms", "elected_for", "fields_of", "landed", "lead", "load", "looked_for", "missed", "release",
    "seconds_of", "terms_of", "unchanged",
]  # fmt: skip

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
"""Seconds between two looks at a lease that another process holds: its value is handed over within 50 ms."""

_NESTED_PATIENCE = 30.0
"""Seconds that a load waits inside another load for another process: the two might be waiting for each other."""


class Looked(NamedTuple):
    """What came of a look that was also to begin the load: what was seen or the backend's error, and the call's meter."""

    seen: Begun | bytes | None = None
    error: Exception | None = None
    meter: Any = None


NOT_LOOKED = Looked()


class Terms(NamedTuple):
    """What a load may rely on.

    Args:
        names: the generations it depends on, its tags' last.
        begun: what the backend granted; `None` if it does not coordinate loads.
        tags: how many of the names are tags.
        store: whether the result may be stored.
    """

    names: Sequence[bytes] = ()
    begun: Begun | None = None
    tags: int = 0
    store: bool = True


def lead(
    space: Space, request: Request, flight: Flight, patience: Patience, seen: Entry | None = None, looked: Terms | None = None
) -> Flow[None]:
    """Load as the leader of the flight and end it.

    `seen` is the entry that is to be refreshed; then nobody is waiting.  `looked` is what a look came to that was also to begin
    the load.
    """
    outcome: Outcome | None = None
    try:
        elected = yield from elected_for(space, request, flight, patience, seen, looked)
        if isinstance(elected, Terms):
            outcome = yield from load(space, request, flight, elected, refreshing=seen is not None)
        else:
            outcome = elected
    except BaseException as error:
        outcome = Abandoned(error)
        raise
    finally:
        space.flights.end(flight, outcome or Abandoned(GeneratorExit()))


def terms_of(space: Space, request: Request) -> Terms:
    """The generations that a load of this request depends on; if its tags cannot be told, nothing may be stored."""
    try:
        tags = tuple(request.tags())
        return Terms((*space.scopes(request.key.text), *map(space.tag, tags)), None, len(tags))
    except CacheConfigurationError:
        raise
    except Exception as error:  # the callable is user code
        request.counters.error("tags")
        space.warn_once(("tags",), "namespace %r: tags= failed, result not stored (%r)", space.name, error)
        return Terms(tuple(space.scopes(request.key.text)), store=False)


def looked_for(space: Space, request: Request, looked: Looked) -> Flow[tuple[Found | None, Terms | None]]:
    """Look, and begin the load if nothing is there, in one trip; what was found, or on which terms to load.

    If the call has `looked` already, only make sense of that.
    """
    stored, rules, stamp = space.stored(request.key.text), request.rules, None
    if space.near is not None:
        entry = space.near.get(stored, request.key.digest, copy=rules.copy)
        if entry is not None:
            return Found(entry, Verdict.FRESH, None), None
        stamp = space.near.stamp(stored)
    terms = terms_of(space, request)
    try:
        if looked.error is not None:
            raise looked.error
        seen = looked.seen
        if seen is None:
            seen = yield Call("look", (stored, terms.names, LEASE_SECONDS, terms.tags > 0))
    except Exception as error:
        space.backend_failed("get", error, request.counters)
        return None, terms._replace(store=False)
    if isinstance(seen, Begun) and seen.entry is None:
        return None, terms._replace(begun=seen)
    raw, current = (
        (seen.entry, dict(zip(terms.names, seen.generations[1:], strict=True)))
        if isinstance(seen, Begun)
        else (Entry(seen), {})
    )
    assert raw is not None
    found = yield from examine(
        space, request.key, raw, request.counters, copy=rules.copy, strict=rules.strict, current=current
    )  # fmt: skip
    if space.near is not None and found is not None and found.verdict is Verdict.FRESH:
        space.near.keep(stored, stamp, found.entry, len(raw.value), copy=rules.copy)
    return found, None


def elected_for(
    space: Space, request: Request, flight: Flight, patience: Patience, seen: Entry | None, looked: Terms | None = None
) -> Flow[Terms | Landed | Abandoned]:
    """The terms of the load; or an outcome without one: stored meanwhile, or waited for in vain."""
    terms = looked or terms_of(space, request)
    if not request.ruling.leases:
        return terms._replace(store=False)
    flight.names, flight.phase = terms.names, Phase.ASKING
    if looked is not None and looked.begun is None:
        return looked  # the backend failed: it is not asked again
    if not space.coordinates:
        entry = None if seen is not None else (yield from read(space, request.key, request.counters, copy=request.rules.copy))
        usable = entry is not None and request.ruling.counts(entry.created) and answered(space, request, entry) is not None
        return _landed(space, request, entry) if usable else terms
    stored, pause, waited, first = space.stored(request.key.text), _FIRST_PAUSE, 0.0, 0
    begun, terms = terms.begun, terms._replace(begun=None)
    while True:
        try:
            if begun is None:
                begun = yield Call("begin", (stored, terms.names, LEASE_SECONDS if space.elects else 0.0))
        except Exception as error:
            space.backend_failed("begin a load in", error, request.counters)
            return terms._replace(store=False)
        assert begun is not None
        entry = yield from _newer(space, request, begun, seen)
        if entry is not None:
            yield from release(space, stored, begun, failed=False)
            return _landed(space, request, entry)
        if begun.generations:
            return terms._replace(begun=begun)
        if seen is not None:
            return Abandoned(TIMED_OUT)  # another process refreshes it
        first = first or begun.holder
        if begun.failed >= first or (waited >= _NESTED_PATIENCE and len(LEADING.get()) > 1):
            return terms._replace(store=False)
        if patience.left == 0.0:
            return Abandoned(TIMED_OUT)
        yield Pause(pause, patience)
        waited, pause, begun = waited + pause, min(1.5 * pause, _LONGEST_PAUSE), None


def _newer(space: Space, request: Request, begun: Begun, seen: Entry | None) -> Flow[Entry | None]:
    """The fresh entry that came to be stored since this call looked."""
    if begun.entry is None:
        return None
    found = yield from examine(space, request.key, begun.entry, request.counters, copy=request.rules.copy)
    if found is None or found.verdict is not Verdict.FRESH or (seen is not None and found.entry.created <= seen.created):
        return None
    if not request.ruling.counts(found.entry.created):
        return None
    return None if answered(space, request, found.entry) is None else found.entry


def _landed(space: Space, request: Request, entry: Entry | None) -> Landed:
    assert entry is not None
    return Landed(entry, pack(space, request.key, entry, request.counters, copy=request.rules.copy), found=True)


def release(space: Space, stored: bytes, begun: Begun | None, *, failed: bool, lease_alone: bool = False) -> Flow[None]:
    """End the load without an entry; `failed` tells those who wait for it that none will come.

    With `lease_alone` the generation of the key is left to others: to this load, which goes on, or to those that came after an
    invalidation.
    """
    if begun is None or (lease_alone and not begun.lease):
        return
    try:
        yield Call("end", (stored, begun._replace(generations=()) if lease_alone else begun, failed))
    except Exception as error:  # nothing depends on it: leases end by themselves
        space.counters[""].error(f"backend:{cause_of(error)}")


def load(space: Space, request: Request, flight: Flight, terms: Terms, *, refreshing: bool = False) -> Flow[Outcome]:
    """Run the function and store its result unless an invalidation came meanwhile."""
    stored = space.stored(request.key.text)
    with space.holding(stored, terms.begun, lambda: space.flights.forget(flight), lambda: flight.dead):
        try:
            return (yield from _loaded(space, request, flight, terms, refreshing=refreshing))
        except GeneratorExit:  # nothing can be asked of the backend any more; the lease ends by itself
            raise
        except BaseException:
            yield from release(space, stored, terms.begun, failed=True, lease_alone=flight.fenced)
            raise


def _loaded(space: Space, request: Request, flight: Flight, terms: Terms, *, refreshing: bool) -> Flow[Outcome]:
    counters, rules, key = request.counters, request.rules, request.key
    parts = request.parts()
    if request.unmoved is not None and not (yield Ask(request.unmoved)):
        yield from release(space, space.stored(key.text), terms.begun, failed=True, lease_alone=flight.fenced)
        return Abandoned(KeyMoved())
    started = yield Now()
    raised = None
    try:
        value = yield Load(request.invoke)
    except Exception as error:
        value, raised = None, error
    if not request.awaits and is_awaitable(value):
        raise AwaitableResult(value)
    now = yield Now()
    counters.load(now - started, failed=raised is not None)
    counters.loaded_by.append(parts)
    if raised is None and rules.share_streams and is_stream(value):
        return (yield from _streaming(space, request, flight, terms, value, started, parts))
    if raised is None:
        counters.spend(value)
    seconds = _error_seconds(request, raised, refreshing=refreshing) if raised else seconds_of(space, request, value)
    if request.unchanged is not None and not (yield Ask(request.unchanged)):
        seconds = 0.0
    fields = fields_of(request, now - started, parts)
    if raised is not None:
        packed = _packed_error(space, request, raised, seconds, now, fields, terms) if seconds != 0 else None
        try:
            overtaken = yield from _settle(space, request, flight, terms, packed)
        except CacheBackendError:  # counted; the function's own exception goes first
            overtaken = False
        return Failed(raised, overtaken)
    return (yield from landed(space, request, flight, terms, value, seconds, now, fields))


def fields_of(request: Request, cost: float, parts: Parts) -> dict[str, Any]:
    """What an entry of this call has beside its value and its times."""
    fields = {"cost": cost, "digest": request.key.digest, "parts": parts, "awaited": request.awaits}
    return {**fields, "shown": request.shown} if request.shown else fields


def missed(space: Space, request: Request) -> Flow[CacheMissError]:
    """The error of a call that may not be answered by its function."""
    name, text = space.name, request.key.text
    if request.explain is None:
        return CacheMissError(f"replay: namespace {name!r} has no entry under {text!r}", name, text)
    from codomyrmex_cache._missed import described

    found = yield from request.explain()
    return (yield from described(space, request, found))


def landed(
    space: Space, request: Request, flight: Flight, terms: Terms, value: object, seconds: float | None, now: float,
    fields: dict[str, Any],
) -> Flow[Landed]:  # fmt: skip
    """Store the result, to live for so many seconds, if that may be."""
    entry = _entry(value, seconds, now, request.rules.stale, fields, terms)
    packed = pack(space, request.key, entry, request.counters, copy=request.rules.copy)
    overtaken = yield from _settle(space, request, flight, terms, packed if seconds != 0 else None)
    return Landed(entry, packed, overtaken=overtaken)


def _entry(value: object, seconds: float | None, now: float, stale: float, fields: dict[str, Any], terms: Terms) -> Entry:
    entry = new_entry(value, seconds, now, stale, **fields)
    if not terms.tags or terms.begun is None:
        return entry
    tagged = zip(terms.names[-terms.tags :], terms.begun.generations[-terms.tags :], strict=True)
    return replace(entry, generations=tuple(tagged))


def _settle(space: Space, request: Request, flight: Flight, terms: Terms, packed: Entry | None) -> Flow[bool]:
    """Store the packed entry if it still may be, and end the lease; whether an invalidation unseen here had come before."""
    stored, begun = space.stored(request.key.text), terms.begun
    flight.phase = Phase.SETTLING
    if packed is None or not terms.store or flight.fenced:
        overtaken = space.elects if flight.fenced else not (yield from unchanged(space, stored, terms.names, begun))
        yield from release(space, stored, begun, failed=not flight.fenced, lease_alone=flight.fenced)
        return overtaken
    if begun is None:
        yield from write(space, request.key, packed, request.counters)
        if flight.fenced:  # invalidated while it was being written: which came first, the backend alone knows
            try:
                yield Call("delete", (stored,))
            except Exception as error:
                space.backend_failed("delete", error, request.counters)
        return False
    try:
        written = yield Call("commit", (stored, packed, terms.names, begun))
    except Exception as error:
        yield from release(space, stored, begun, failed=True)  # others would wait for the lease
        space.backend_failed("set", error, request.counters)
        return False
    request.counters.add("sets", written)
    return not written and (space.elects or not flight.fenced)


def unchanged(space: Space, stored: bytes, names: Sequence[bytes], begun: Begun | None) -> Flow[bool]:
    """Whether no invalidation, here or elsewhere, has come since the load began."""
    if begun is None or not space.elects:
        return True
    try:
        current = yield Call("generations", (stored, (generation_name("k", stored), *names)))
    except Exception as error:  # while the backend is away no invalidation comes to an end
        space.counters[""].error(f"backend:{cause_of(error)}")
        return True
    return tuple(current) == tuple(begun.generations)


def seconds_of(space: Space, request: Request, value: object) -> float | None:
    """The result's lifetime; a callable that fails costs the storing, not the call."""
    rules, what = request.rules, "store_if"
    try:
        if rules.store_if is not None and not rules.store_if(value):
            return 0.0
        what = "ttl"
        seconds = jittered(lifetime(rules.ttl, value), rules.jitter, space.draw() if rules.jitter else 0.0)
        return seconds if request.ruling.ages or seconds == 0 else None
    except Exception as error:  # the callables are user code
        request.counters.error(what)
        space.warn_once((what,), "namespace %r: %s callable failed, result not stored (%s)", space.name, what, error)
        return 0.0


def _error_seconds(request: Request, error: Exception, *, refreshing: bool) -> float | None:
    """A failed refresh leaves the old value where it is."""
    seconds = 0.0 if refreshing else error_lifetime(request.rules.errors, error)
    return seconds if request.ruling.ages or seconds == 0 else None


def _packed_error(
    space: Space, request: Request, error: Exception, seconds: float | None, now: float, fields: dict[str, Any], terms: Terms
) -> Entry | None:
    try:
        entry = _entry(told(error), seconds, now, 0.0, {**fields, "raised": True}, terms)
    except CacheCodecError as problem:
        unstorable(space, type(error), problem, request.counters)
        return None
    return pack(space, request.key, entry, request.counters, copy=request.rules.copy)


def _streaming(
    space: Space, request: Request, flight: Flight, terms: Terms, stream: Any, started: float, parts: Parts
) -> Flow[Streaming]:
    """Other processes run streams of their own: one that waited for this to end would get no stream."""
    yield from release(space, space.stored(request.key.text), terms.begun, failed=True, lease_alone=True)

    def keep(recording: Recording) -> Flow[None]:
        now = yield Now()
        value = (recording.is_async, list(recording.chunks), recording.returned)
        with recording.lock:
            followers, recording.followers = recording.followers or 0, None
        request.counters.spend(value[1], sharing=followers)
        fields = {**fields_of(request, now - started, parts), "streamed": True}
        seconds = seconds_of(space, request, value[1])
        if request.still is not None and not (yield Ask(request.still)):
            seconds = 0.0
        entry = _entry(value, seconds, now, request.rules.stale, fields, terms)
        packed = None if seconds == 0 else pack(space, request.key, entry, request.counters, copy=False)
        yield from _settle(space, request, flight, terms, packed)

    gone: Callable[[], None] = lambda: space.flights.forget(flight)  # noqa: E731
    recording: Recording = yield Record(stream, request.rules, keep, gone)
    return Streaming(recording, request.awaits, terms)
