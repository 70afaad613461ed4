"""Durations as people write them: `300`, `timedelta(minutes=5)` or `"1h30m"`, in seconds."""

from __future__ import annotations

import re
from datetime import timedelta
from math import isfinite

from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["Duration", "to_seconds"]

Duration = float | str | timedelta

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)


def to_seconds(duration: object, what: str = "ttl") -> float:
    """The duration in seconds, zero or more.

    Args:
        duration: seconds (int or float), a `timedelta`, or text such as "90s", "1h30m", "500ms".
        what: the option's name, for the message.

    Raises:
        CacheConfigurationError: for negative, infinite, NaN, bool or unreadable durations.

    >>> to_seconds("1h30m"), to_seconds(2), to_seconds(timedelta(minutes=1))
    (5400.0, 2.0, 60.0)
    """
    seconds: float | None = None
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str):
        seconds = _parse(duration)
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        try:
            seconds = float(duration)
        except OverflowError:
            seconds = None
    if seconds is None or not isfinite(seconds) or seconds < 0:
        raise CacheConfigurationError(
            f"{what}={duration!r} is not a duration: give seconds >= 0, a timedelta, "
            f'or text such as "90s" or "1h30m" (units ms, s, m, h, d, w)'
        )
    return seconds


def _parse(text: str) -> float | None:
    compact = text.strip().replace(" ", "")
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        return None
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
