"""Decisions about time and storing.  Pure: `now` is an argument, nothing is read or written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from codomyrmex_cache._duration import Duration, to_seconds
from codomyrmex_cache._entry import Entry

__all__ = ["Ttl", "is_fresh", "lifetime", "new_entry", "validated_ttl"]

Ttl = Duration | Callable[[Any], Duration | None] | None
"""Fresh time: seconds, `timedelta`, text, a callable on the result giving one of these, or `None` for ever."""

FUTURE_TOLERANCE = 60.0
"""Seconds by which another host's clock may be ahead; an entry from further ahead means that ours was set back."""


def validated_ttl(ttl: Ttl) -> float | Callable[[Any], Duration | None] | None:
    """The ttl in seconds, or the callable as it is; raises `CacheConfigurationError` for what is neither."""
    return ttl if ttl is None or callable(ttl) else to_seconds(ttl)


def lifetime(ttl: Ttl, value: object) -> float | None:
    """Seconds this value is to live; `None` for ever, 0 for not at all."""
    seconds = ttl(value) if callable(ttl) else ttl
    return None if seconds is None else to_seconds(seconds)


def is_fresh(entry: Entry, now: float) -> bool:
    """Whether the entry may be served at this moment."""
    if entry.created > now + FUTURE_TOLERANCE:
        return False
    return entry.fresh_until is None or now < entry.fresh_until


def new_entry(value: object, seconds: float | None, now: float, **fields: Any) -> Entry:
    """The entry for a value stored now, to live for so many seconds."""
    until = None if seconds is None else now + seconds
    return Entry(value, created=now, fresh_until=until, expires_at=until, **fields)
