"""The direct API's short way: a small value of plain data, read or written where the long way would do just the same.

It is one straight line instead of a flow, worth a factor of four for files.  Whatever is out of the ordinary (another kind of
entry, an expired or unreadable one, a failing backend, a large value) leads nowhere, and the long way deals with it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from codomyrmex_cache._entry import FUTURE_TOLERANCE, MISSING, Entry
from codomyrmex_cache._isolation import isolated
from codomyrmex_cache._space import Space
from codomyrmex_cache.backends.base import Quick
from codomyrmex_cache.errors import CacheCodecError
from codomyrmex_cache.stats import Counters

if TYPE_CHECKING:
    from codomyrmex_cache._near_cells import NearCells

__all__ = ["QuickGet", "QuickSet", "Seen", "quick_ways"]

QuickGet = Callable[[str, Any], Any]
"""Key and default to the value, `MISSING` if this way leads nowhere, or `Seen`."""

QuickSet = Callable[[str, object, float | None], bool]
"""Key, value and ttl in seconds; whether it was stored."""

_PLAIN = frozenset({str, bytes, int, float, bool, type(None), dict, list, tuple})
_SMALL = 64 * 1024


class Seen(NamedTuple):
    """What the backend gave; it takes the long way to make sense of it."""

    raw: Entry


def quick_ways(space: Space, counters: Counters) -> tuple[QuickGet, QuickSet] | None:
    """The ways of this namespace, `None` if it has none."""
    if space.looks_first and space.near is not None:
        return _near_getter(space, space.near, counters), _takes_none
    if space.looks_first:
        return _far_getter(space, counters), _takes_none
    seal = getattr(space.payloads, "seal", None)
    if seal is None or seal.encrypts or not isinstance(space.backend, Quick):
        return None
    coder = space.payloads.coder  # type: ignore[attr-defined]
    return _getter(space, space.backend, seal, coder, counters), _setter(space, space.backend, seal, coder, counters)


def _getter(space: Space, backend: Quick, seal: Any, coder: Any, counters: Counters) -> QuickGet:
    prefix, read, glance, loads, clock = space.prefix, backend.quick_get, seal.glance, coder.loads, space.clock

    def get(key: str, default: Any) -> Any:
        if type(key) is not str or key[:1] == "@":  # a function's, which may have classes of its own
            return MISSING
        stored = prefix + key.encode("utf-8", "surrogatepass")
        try:
            sealed = read(stored)
            if sealed is None or type(sealed) is not bytes:
                return MISSING
            found = glance(stored, sealed)
            if found is None:
                return MISSING
            created, fresh_until, cost, codec, main = found
            if not created - FUTURE_TOLERANCE <= clock() < fresh_until:
                return MISSING
            value = loads(codec, (main,))
        except Exception:  # met again on the long way, and counted there
            return MISSING
        counters.hits += 1  # as in the hot closure
        if cost:
            counters.seconds_saved += cost
        return value

    return get


def _far_getter(space: Space, counters: Counters) -> QuickGet:
    """For a store that is a round trip away: here what it says is believed, so that nothing is asked twice."""
    prefix, read, clock = space.prefix, space.backend.get, space.clock
    glanced: Callable[[bytes, bytes, float], tuple[Any, float] | None] = space.payloads.glanced  # type: ignore[attr-defined]

    def get(key: str, default: Any) -> Any:
        if type(key) is not str or default is MISSING:
            return MISSING
        stored = prefix + key.encode("utf-8", "surrogatepass")
        try:
            raw = read(stored)
        except Exception as error:
            space.backend_failed("get", error, counters)
            raw = None
        if raw is None:
            counters.add("misses")
            return default
        seen = glanced(stored, raw.value, clock())
        if seen is None:
            return Seen(raw)
        counters.hit(seen[1])
        return seen[0]

    return get


def _near_getter(space: Space, near: NearCells, counters: Counters) -> QuickGet:
    prefix, cell_of, now = space.prefix, near.cells.get, near.now

    def get(key: str, default: Any) -> Any:
        if type(key) is not str:
            return MISSING
        cell = cell_of(prefix + key.encode("utf-8", "surrogatepass"))
        if cell is None:
            return MISSING
        value = cell.value  # before the deadline: see Cell
        if not now() < cell.deadline:
            return MISSING
        if not cell.shared:
            try:
                value = isolated(value)
            except CacheCodecError:  # as above
                return MISSING
        counters.hits += 1
        counters.seconds_saved += cell.cost
        cell.touches += 1
        return value

    return get


def _takes_none(key: str, value: object, seconds: float | None) -> bool:
    return False


def _setter(space: Space, backend: Quick, seal: Any, coder: Any, counters: Counters) -> QuickSet:
    prefix, write, seal_plain, dumps, clock = space.prefix, backend.quick_set, seal.seal_plain, coder.dumps, space.clock
    fence_key, add = space.flights.fence_key, counters.add

    def set(key: str, value: object, seconds: float | None) -> bool:  # noqa: A001
        if type(key) is not str or type(value) not in _PLAIN:
            return False
        if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds < inf):
            return False
        stored = prefix + key.encode("utf-8", "surrogatepass")
        fence_key(stored)
        now = clock()
        until = inf if seconds is None else now + seconds
        try:
            codec, frames = dumps(value)
            if len(frames) > 1 or len(frames[0]) > _SMALL:
                return False
            sealed = seal_plain(stored, now, until, codec, frames[0])
            if not write(stored, sealed, None if seconds is None else until, now):
                return False
        except Exception:  # as above
            return False
        add("sets")
        return True

    return set
