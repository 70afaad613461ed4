"""The verbs that must be exact among all who use a store: they compare and swap, and raise when the backend is away."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from codomyrmex_cache._effects import Call, Effect, Flow, Now, Patience, Pause
from codomyrmex_cache._entries import Found, examine
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._heart import LEASE_SECONDS
from codomyrmex_cache._policy import Ttl, Verdict, lifetime, new_entry
from codomyrmex_cache._record import replace
from codomyrmex_cache._space import Space
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.errors import CacheConnectionError, CacheError, cause_of
from codomyrmex_cache.keys import Key
from codomyrmex_cache.stats import Counters

__all__ = ["acquire", "add", "incr", "lock_key", "release"]

_LOCK = b"\xfflock:"
"""Begins the keys of locks; no UTF-8 text holds this byte, so no key of a user's is one."""

_TRIES = 1000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


def incr(space: Space, key: Key, amount: int, counters: Counters, *, ttl: Ttl) -> Flow[int]:
    """Add to the number under the key; answers the sum."""
    if type(amount) is not int:
        raise CacheError(f"namespace {space.name!r}: incr of {key.text!r} by {amount!r}: give an int")
    seconds = lifetime(ttl, amount)

    def summed(found: Found | None, now: float) -> Entry:
        if found is None:
            return new_entry(amount, seconds, now, digest=key.digest)
        if type(found.entry.value) is not int:
            raise CacheError(
                f"namespace {space.name!r}: incr of {key.text!r}, which holds a {type(found.entry.value).__qualname__}"
            )
        return replace(found.entry, value=found.entry.value + amount, created=now)

    entry = yield from _swapped(space, key, summed, counters, "incr")
    assert entry is not None
    return int(entry.value)


def add(space: Space, key: Key, value: object, counters: Counters, *, ttl: Ttl) -> Flow[bool]:
    """Store the value if nothing fresh is there; whether it was stored."""
    seconds = lifetime(ttl, value)

    def first(found: Found | None, now: float) -> Entry | None:
        return new_entry(value, seconds, now, digest=key.digest) if found is None else None

    return (yield from _swapped(space, key, first, counters, "add")) is not None


def _swapped(
    space: Space, key: Key, change: Callable[[Found | None, float], Entry | None], counters: Counters, verb: str
) -> Flow[Entry | None]:
    """Replace the fresh entry by what `change` makes of it, `None` to leave it; starts over when somebody else was first."""
    space.check_coordinates(verb)
    stored, pause = space.stored(key.text), _FIRST_PAUSE
    space.flights.fence_key(stored)
    for _ in range(_TRIES):
        raw = yield from _sure(space, Call("get", (stored,)), verb)
        found = None if raw is None else (yield from examine(space, key, raw, counters))
        entry = change(found if found is not None and found.verdict is Verdict.FRESH else None, (yield Now()))
        if entry is None:
            return None
        packed = space.payloads.pack(stored, entry, copy=True)
        if (yield from _sure(space, Call("replace", (stored, raw, packed, True)), verb)):
            counters.add("sets")
            return entry
        yield Pause(pause * space.draw(), Patience(None))
        pause = min(2 * pause, _LONGEST_PAUSE)
    raise CacheConnectionError(
        f"namespace {space.name!r}: {verb} of {key.text!r} was overtaken or read amiss {_TRIES} times in a row"
    )


def acquire(space: Space, name: str, patience: Patience) -> Flow[Begun | None]:
    """The lease of a lock, or `None` when patience is at its end."""
    space.check_coordinates("locks")
    pause = _FIRST_PAUSE
    while True:
        seconds = LEASE_SECONDS if space.elects else inf  # in memory its holder cannot die alone
        begun: Begun = yield from _sure(space, Call("begin", (lock_key(space, name), (), seconds)), "lock")
        if begun.lease:
            return begun
        if patience.left == 0.0:
            return None
        yield Pause(pause, patience)
        pause = min(2 * pause, _LONGEST_PAUSE)


def release(space: Space, name: str, begun: Begun) -> Flow[None]:
    """Give the lock back; if that fails, the lease ends by itself."""
    try:
        yield Call("end", (lock_key(space, name), begun, False))
    except Exception as error:
        space.backend_failed("end a lock in", error, space.counters[""])


def lock_key(space: Space, name: str) -> bytes:
    """The key whose lease is the lock of this name."""
    return space.prefix + _LOCK + name.encode("utf-8", "surrogatepass")


def _sure(space: Space, effect: Effect, verb: str) -> Flow:  # type: ignore[type-arg]
    """What the backend answers; there is no going on without it."""
    try:
        return (yield effect)
    except Exception as error:
        space.counters[""].error(f"backend:{cause_of(error)}")
        raise CacheConnectionError(
            f"namespace {space.name!r}: {verb} needs its backend {type(space.backend).__name__}, "
            f"which failed ({type(error).__name__}: {error})"
        ) from error
