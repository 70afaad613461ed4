"""The verbs of the direct API, as flows like those in `_flow`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from codomyrmex_cache._effects import Answer, Call, Flow, KeyMoved, Now, Request
from codomyrmex_cache._entries import Found, examine, look, pack, prolong, read, write
from codomyrmex_cache._entry import MISSING, Entry, Missing
from codomyrmex_cache._flight import Abandoned, Flight, Landed, Streaming
from codomyrmex_cache._flow import compute, stream_answer
from codomyrmex_cache._load import Terms, load, missed, terms_of
from codomyrmex_cache._policy import Ttl, Verdict, lifetime, new_entry, prolonged
from codomyrmex_cache._record import replace
from codomyrmex_cache._space import Space
from codomyrmex_cache.backends.base import Begun, generation_name
from codomyrmex_cache.keys import Key
from codomyrmex_cache.modes import NORMAL, Ruling
from codomyrmex_cache.stats import Counters

__all__ = [
    "clear", "contains", "delete", "delete_many", "get", "get_many", "invalidate_tags", "keys", "nothing", "refresh",
    "set_many", "store", "touch",
]  # fmt: skip

_TRIES = 5
"""Of a set with tags that other writes of its key keep overtaking; then it is written as it is."""


def store(
    space: Space,
    key: Key,
    value: object,
    counters: Counters,
    *,
    ttl: Ttl = None,
    copy: bool = True,
    tags: Sequence[str] = (),
    stale: float = 0.0,
    live: bool = False,
    **fields: Any,
) -> Flow[None]:
    """Store a value that the caller has; it supersedes a load that is running.  `fields` are further ones of the entry.

    `live` says that the caller waits until it is stored.
    """
    seconds = lifetime(ttl, value)
    names = tuple(map(space.tag, tags))
    space.flights.fence_key(space.stored(key.text))
    if seconds == 0:
        yield from delete(space, key, counters)
        return
    entry = new_entry(value, seconds, (yield Now()), stale, digest=key.digest, **fields)
    if names:
        yield from _store_tagged(space, key, entry, names, counters, copy=copy)
        return
    packed = pack(space, key, entry, counters, copy=copy, live=live)
    if packed is None:
        yield from delete(space, key, counters)  # the old value is not the answer any more
    else:
        yield from write(space, key, packed, counters)


def _store_tagged(
    space: Space, key: Key, entry: Entry, names: Sequence[bytes], counters: Counters, *, copy: bool
) -> Flow[None]:
    stored = space.stored(key.text)
    try:
        for _ in range(_TRIES):
            begun: Begun = yield Call("begin", (stored, names, 0.0))
            pairs = tuple(zip(names, begun.generations[1:], strict=True))
            packed = pack(space, key, replace(entry, generations=pairs), counters, copy=copy)
            if packed is None:
                yield from delete(space, key, counters)
                return
            if (yield Call("commit", (stored, packed, names, begun))):
                break
        else:
            yield Call("set", (stored, packed))
    except Exception as error:
        space.backend_failed("set", error, counters)
    else:
        counters.add("sets")


def invalidate_tags(space: Space, tags: Sequence[str], counters: Counters) -> Flow[None]:
    """Forget every entry that has one of the tags, also those being computed; costs the same for any number of entries."""
    names = tuple(map(space.tag, tags))
    space.flights.fence(lambda flight: not set(names).isdisjoint(flight.names))
    try:
        if names:
            yield Call("revoke", (names,))
    except Exception as error:
        space.backend_failed("invalidate tags in", error, counters)


def refresh(space: Space, request: Request) -> Flow[Answer]:
    """Run the function now and store what it gives; loads under way before this are not stored any more."""
    stored = space.stored(request.key.text)
    if request.ruling.mode == "replay":
        raise (yield from missed(space, request))
    if not request.ruling.stores:
        return (yield from compute(request))
    space.flights.fence_key(stored)
    request.counters.add("bypasses")
    flight = Flight(stored)
    with space.flights.apart(flight):
        terms = yield from _own_terms(space, request, stored)
        flight.names = terms.names
        outcome = yield from load(space, request, flight, terms)
    if isinstance(outcome, Streaming):
        return stream_answer(outcome) or (yield from compute(request, counted=True))
    if isinstance(outcome, Abandoned) and isinstance(outcome.error, KeyMoved):
        return (yield from compute(request, counted=True))
    return Answer(outcome.entry) if isinstance(outcome, Landed) else Answer(None, outcome.error)


def _own_terms(space: Space, request: Request, stored: bytes) -> Flow[Terms]:
    """Generations that no load before this one has."""
    terms = terms_of(space, request)
    if not space.coordinates:
        return terms
    try:
        yield Call("revoke", ((generation_name("k", stored),),))
        return terms._replace(begun=(yield Call("begin", (stored, terms.names, 0.0))))
    except Exception as error:
        space.backend_failed("begin a load in", error, request.counters)
        return terms._replace(store=False)


def touch(space: Space, key: Key, ttl: Ttl | Missing, counters: Counters) -> Flow[bool]:
    """Begin the entry's life anew, with its own ttl or another; whether it was there."""
    while True:
        found = yield from look(space, key, counters, copy=False, near=False)
        if found is None or found.verdict is not Verdict.FRESH:
            return False
        seconds = found.entry.ttl if ttl is MISSING else lifetime(ttl, found.entry.value)
        if seconds == 0:
            return (yield from delete(space, key, counters))
        now = yield Now()
        done = yield from prolong(space, key, found, prolonged(found.entry, now, seconds), counters)
        if done is not False:  # else it was replaced meanwhile: look again
            return bool(done)


def nothing() -> Flow[None]:
    """For a mode in which nothing is stored."""
    return
    yield


def get(space: Space, key: Key, counters: Counters, raw: Entry | None = None, ruling: Ruling = NORMAL) -> Flow[Entry | None]:
    """The fresh entry, counted as hit or miss; if the backend has given it already, as `raw`."""
    if ruling.mode == "off":
        counters.add("bypasses")
        return None
    found = yield from (look(space, key, counters) if raw is None else examine(space, key, raw, counters))
    entry = _direct(found, ruling)
    if entry is None:
        counters.add("misses")
        return None
    counters.hit(entry.cost)
    return entry


def _direct(found: Found | None, ruling: Ruling = NORMAL) -> Entry | None:
    """What the direct API shows of an entry: the items of a function's stream, nothing of an exception it raised."""
    if found is None or found.entry.raised or (found.verdict is not Verdict.FRESH and ruling.ages):
        return None
    if ruling.since is not None and not ruling.counts(found.entry.created):
        return None
    return replace(found.entry, value=found.entry.value[1]) if found.entry.streamed else found.entry


def contains(space: Space, key: Key, counters: Counters) -> Flow[bool]:
    """Whether a fresh, readable entry is there; an absent one costs no transfer of its payload."""
    try:
        there = yield Call("has", (space.stored(key.text),))
    except Exception as error:
        space.backend_failed("look up", error, counters)
        return False
    return there and (yield from read(space, key, counters, copy=False)) is not None


def delete(space: Space, key: Key, counters: Counters) -> Flow[bool]:
    """Remove the entry; whether it was there."""
    stored = space.stored(key.text)
    space.flights.fence_key(stored)
    try:
        there = bool((yield Call("delete", (stored,))))
    except Exception as error:
        space.backend_failed("delete", error, counters)
        return False
    counters.add("deletes", there)
    return there


def keys(space: Space, prefix: str, counters: Counters) -> Flow[list[str]]:
    """The texts of all fresh keys that begin with `prefix`."""
    try:
        found = yield Call("scan", (space.stored(prefix),))
    except Exception as error:
        space.backend_failed("list", error, counters)
        return []
    now = yield Now()
    fresh = [(key, space.text(key)) for key, expires_at in found if expires_at is None or now < expires_at]
    return [text for key, text in fresh if space.stored(text) == key]  # else it is no text, and not ours


def clear(
    space: Space, prefix: str, counters: Counters, owner: str = "", owns: Callable[[str], bool] | None = None
) -> Flow[int]:
    """Remove all entries of the prefix (those of the function `owner`, which `owns` accepts); how many there were."""
    stored = space.stored(prefix)
    space.flights.fence(lambda flight: flight.key.startswith(stored) and (owns is None or owns(space.text(flight.key))))
    problem: Exception | None = None
    try:
        if space.coordinates:
            yield Call("revoke", ((space.scope(owner),),))
    except Exception as error:  # what is stored is to go all the same
        problem = error
    try:
        count = yield from _cleared(space, stored, owns)
    except Exception as error:
        problem = problem or error
    if problem is not None:
        space.backend_failed("clear", problem, counters)
        return 0
    counters.add("deletes", count)
    return int(count)


def _cleared(space: Space, stored: bytes, owns: Callable[[str], bool] | None) -> Flow[int]:
    at_once = hasattr(space.backend, "clear")
    if owns is None and at_once:
        return int((yield Call("clear", (stored,))))
    try:
        found = [key for key, _ in (yield Call("scan", (stored,)))]
        return (yield from _removed(space, [key for key in found if owns is None or owns(space.text(key))]))
    except Exception:
        if at_once:  # more than was asked for, but a backend that is away can make up for it later
            yield Call("clear", (stored,))
        raise


def _delete_all(stored: Sequence[bytes]) -> Flow[int]:
    count = 0
    for key in stored:
        count += bool((yield Call("delete", (key,))))
    return count


def get_many(space: Space, wanted: Sequence[Key], counters: Counters, ruling: Ruling = NORMAL) -> Flow[dict[str, Any]]:
    """Key text to value, for those that are there."""
    if not hasattr(space.backend, "get_many") or ruling.mode != "normal":
        found = {}
        for key in wanted:
            entry = yield from get(space, key, counters, ruling=ruling)
            if entry is not None:
                found[key.text] = entry.value
        return found
    stored = {space.stored(key.text): key for key in wanted}
    glanced = getattr(space.payloads, "glanced", None) if hasattr(space.backend, "get_values") else None
    try:
        raws: Mapping[bytes, Any] = yield Call("get_values" if glanced else "get_many", (list(stored),))
    except Exception as error:
        space.backend_failed("get", error, counters)
        raws = {}
    found, hits, misses, saved, now = {}, 0, 0, 0.0, (yield Now())
    for raw_key, key in stored.items():
        raw = raws.get(raw_key)
        seen = glanced(raw_key, raw, now) if glanced and raw is not None else None
        if seen is None:
            seen = None if raw is None else (yield from _examined(space, key, Entry(raw) if glanced else raw, counters))
        if seen is None:
            misses += 1
        else:
            hits, saved = hits + 1, saved + seen[1]
            found[key.text] = seen[0]
    counters.add("hits", hits)
    counters.add("misses", misses)
    counters.add("seconds_saved", saved)
    return found


def _examined(space: Space, key: Key, raw: Entry, counters: Counters) -> Flow[tuple[Any, float] | None]:
    entry = _direct((yield from examine(space, key, raw, counters)))
    return None if entry is None else (entry.value, entry.cost)


def set_many(space: Space, values: Mapping[str, object], wanted: Sequence[Key], counters: Counters, *, ttl: Ttl) -> Flow[None]:
    """Store several values."""
    if not hasattr(space.backend, "set_many"):
        for key in wanted:
            yield from store(space, key, values[key.text], counters, ttl=ttl)
        return
    now = yield Now()
    packed: dict[bytes, Entry] = {}
    gone: list[bytes] = []
    for key in wanted:
        stored, value = space.stored(key.text), values[key.text]
        space.flights.fence_key(stored)
        seconds = lifetime(ttl, value)
        entry = None if seconds == 0 else pack(space, key, new_entry(value, seconds, now), counters, copy=True)
        if entry is None:
            gone.append(stored)
        else:
            packed[stored] = entry
    problem: Exception | None = None
    try:
        if packed:
            yield Call("set_many", (packed,))
            counters.add("sets", len(packed))
    except Exception as error:  # the others' old values are to go all the same
        problem = error
    try:
        yield from _removed(space, gone)
    except Exception as error:
        problem = problem or error
    if problem is not None:
        space.backend_failed("set", problem, counters)


def _removed(space: Space, stored: Sequence[bytes]) -> Flow[int]:
    """Remove these at once if the backend can: it then knows of all of them, even if it is away."""
    if stored and hasattr(space.backend, "delete_many"):
        return int((yield Call("delete_many", (stored,))))
    return (yield from _delete_all(stored))


def delete_many(space: Space, wanted: Sequence[Key], counters: Counters) -> Flow[int]:
    """Remove several entries; how many were there."""
    stored = [space.stored(key.text) for key in wanted]
    for key in stored:
        space.flights.fence_key(key)
    try:
        count = yield from _removed(space, stored)
    except Exception as error:
        space.backend_failed("delete", error, counters)
        return 0
    counters.add("deletes", count)
    return int(count)
