"""Flows over one stored entry: read, judged, written, prolonged."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from codomyrmex_cache._effects import Answer, Call, Flow, Now, Request
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._policy import Verdict, is_due_touch, judge, prolonged
from codomyrmex_cache._raising import retold
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import CacheCodecError, EnvelopeError, ValueTooLargeError, cause_of
from codomyrmex_cache.keys import Key
from codomyrmex_cache.stats import Counters

if TYPE_CHECKING:
    from codomyrmex_cache._near_cells import NearCells

__all__ = [
    "Found", "answered", "examine", "fetched", "look", "opened", "pack", "prolong", "read", "touched", "unstorable", "write",
]  # fmt: skip


class Found(NamedTuple):
    """A readable entry, what may be done with it now, and how the backend gave it; `None` if it is from the near cache."""

    entry: Entry
    verdict: Verdict
    raw: Entry | None


Unreadable = EnvelopeError | CacheCodecError

_KEPT = frozenset({"misplaced", "newer", "unnamed"})
"""What may be a good entry for somebody else: another call's, a newer version's, of a class that is not named here."""


def read(space: Space, key: Key, counters: Counters, *, copy: bool = True) -> Flow[Entry | None]:
    """The fresh entry under the key, or `None`."""
    found = yield from look(space, key, counters, copy=copy)
    return found.entry if found is not None and found.verdict is Verdict.FRESH else None


def look(
    space: Space, key: Key, counters: Counters, *, copy: bool = True, strict: bool = False, near: bool = True
) -> Flow[Found | None]:
    """What is stored under the key.  What cannot be read, verified or decoded is nothing, counted by kind and removed;
    `strict` raises it.  With `near` the near cache, if there is one, answers first."""
    if space.near is None:
        return fetched(space, key, counters, copy=copy, strict=strict)
    return _looked_near(space, space.near, key, counters, copy=copy, strict=strict, near=near)


def _looked_near(
    space: Space, cells: NearCells, key: Key, counters: Counters, *, copy: bool, strict: bool, near: bool
) -> Flow[Found | None]:
    stored = space.stored(key.text)
    entry = cells.get(stored, key.digest, copy=copy) if near else None
    if entry is not None:
        return Found(entry, Verdict.FRESH, None)
    stamp = cells.stamp(stored)
    found = yield from fetched(space, key, counters, copy=copy, strict=strict)
    if found is not None and found.raw is not None and found.verdict is Verdict.FRESH:
        cells.keep(stored, stamp, found.entry, len(found.raw.value), copy=copy)
    return found


def fetched(space: Space, key: Key, counters: Counters, *, copy: bool, strict: bool) -> Flow[Found | None]:
    """The same from the backend."""
    stored = space.stored(key.text)
    try:
        raw = yield Call("get", (stored,))
    except Exception as error:
        space.backend_failed("get", error, counters)
        return None
    if raw is None:
        return None
    entry = opened(space, stored, raw, key.digest, copy=copy)
    if not isinstance(entry, Entry):
        yield from _unreadable(space, stored, raw, entry, counters, strict=strict)
        return None
    if entry.generations and not (yield from _alive(space, key, entry, counters)):
        return None
    return _found(entry, raw, (yield Now()), counters)


def examine(
    space: Space,
    key: Key,
    raw: Entry,
    counters: Counters,
    *,
    copy: bool = True,
    strict: bool = False,
    current: Mapping[bytes, bytes] = MappingProxyType({}),
) -> Flow[Found | None]:
    """The same for an entry that the backend has given already, maybe with the `current` generations."""
    entry = opened(space, space.stored(key.text), raw, key.digest, copy=copy)
    if not isinstance(entry, Entry):
        yield from _unreadable(space, space.stored(key.text), raw, entry, counters, strict=strict)
        return None
    if entry.generations and not (yield from _alive(space, key, entry, counters, current)):
        return None
    return _found(entry, raw, (yield Now()), counters)


def _alive(
    space: Space, key: Key, entry: Entry, counters: Counters, known: Mapping[bytes, bytes] = MappingProxyType({})
) -> Flow[bool]:
    """Whether no tag of the entry has been invalidated since its load began."""
    names, expected = zip(*entry.generations, strict=True)
    if known.keys() >= set(names):
        return tuple(map(known.get, names)) == expected
    try:
        current = yield Call("generations", (space.stored(key.text), names))
    except Exception as error:
        space.backend_failed("read the tags of", error, counters)
        return False
    return tuple(current) == expected


def _found(entry: Entry, raw: Entry, now: float, counters: Counters) -> Found:
    found = Found(entry, judge(entry, now), raw)
    if found.verdict is not Verdict.FRESH:
        counters.add("expirations")
    return found


def opened(space: Space, stored: bytes, raw: Entry, digest: bytes, *, copy: bool) -> Entry | Unreadable:
    """What a backend gave, verified and decoded; or what is wrong with it."""
    try:
        return space.payloads.unpack(stored, raw, digest, copy=copy)
    except (EnvelopeError, CacheCodecError) as error:
        return error


def _unreadable(space: Space, stored: bytes, raw: Entry, error: Unreadable, counters: Counters, *, strict: bool) -> Flow[None]:
    """Count it by kind, say so at times, and remove it if it is still the same."""
    counters.error(error.kind)
    space.warn_at_times(
        (error.kind,), "namespace %r: unreadable entry taken as a miss (%s: %s)", space.name, error.kind, error
    )  # fmt: skip
    if error.kind not in _KEPT and space.coordinates:
        try:
            yield Call("discard", (stored, raw))
        except Exception as problem:  # the next store replaces it
            counters.error(f"backend:{cause_of(problem)}")
    if strict or space.strict:
        raise error


def answered(space: Space, request: Request, entry: Entry) -> Answer | None:
    """What the entry says: a value, or an exception to raise again; `None` if that cannot be."""
    if not entry.raised:
        return Answer(entry)
    try:
        return Answer(None, retold(entry.value, request.rules.errors))
    except CacheCodecError as error:
        request.counters.error("undecodable")
        space.warn_once(("retold",), "namespace %r: unreadable entry taken as a miss (%s)", space.name, error)
        return None


def pack(
    space: Space, key: Key, entry: Entry, counters: Counters, *, copy: bool, live: bool = False
) -> Entry | None:  # fmt: skip
    """The stored form of an entry, or `None` (counted, logged once per type) if the value cannot be stored."""
    try:
        return space.payloads.pack(space.stored(key.text), entry, copy=copy, live=live)
    except Exception as error:  # encoders, reducers and state are user code
        unstorable(space, type(entry.value), error, counters)
        return None


def unstorable(space: Space, kind: type, error: Exception, counters: Counters) -> None:
    """Count a result that cannot be stored, and log it once per type and cause."""
    cause = "too_large" if isinstance(error, ValueTooLargeError) else "unstorable"
    counters.error(cause)
    space.warn_once(
        (cause, kind.__qualname__),
        "namespace %r: a result of type %s is returned but not stored: %s",
        space.name, kind.__qualname__, error,
    )  # fmt: skip


def write(space: Space, key: Key, packed: Entry, counters: Counters) -> Flow[None]:
    """Give the packed entry to the backend."""
    try:
        yield Call("set", (space.stored(key.text), packed))
    except Exception as error:
        space.backend_failed("set", error, counters)
    else:
        counters.add("sets")


def touched(space: Space, key: Key, found: Found, counters: Counters) -> Flow[None]:
    """A hit begins the ttl anew, if enough of it has gone by."""
    now = yield Now()
    if not is_due_touch(found.entry, now):
        return
    if found.raw is None:
        stored = yield from look(space, key, counters, near=False)
        if stored is None or stored.verdict is not Verdict.FRESH:
            return
        found = stored
    yield from prolong(space, key, found, prolonged(found.entry, now, found.entry.ttl), counters)


def prolong(space: Space, key: Key, found: Found, times: Entry, counters: Counters) -> Flow[bool | None]:
    """Give the entry other times unless it has been replaced meanwhile; whether it has, `None` if the backend failed."""
    stored = space.stored(key.text)
    assert found.raw is not None, "look for it with near=False"
    try:
        packed = space.payloads.retimed(stored, found.raw, key.digest, times)
        if space.coordinates:
            return bool((yield Call("replace", (stored, found.raw, packed, False))))
        yield Call("set", (stored, packed))
    except Exception as error:
        space.backend_failed("prolong", error, counters)
        return None
    return True
