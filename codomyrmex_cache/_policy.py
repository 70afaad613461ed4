"""Decisions about time and storing.  Pure: `now` and the random draw are arguments, nothing is read or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from math import inf, isfinite, log
from types import MappingProxyType
from typing import Any, Literal

from codomyrmex_cache._duration import Duration, to_seconds
from codomyrmex_cache._entry import FUTURE_TOLERANCE, Entry
from codomyrmex_cache._ledger import Cost
from codomyrmex_cache._record import record, replace
from codomyrmex_cache.errors import CacheConfigurationError

__all__ = [
    "OnWaitTimeout", "Rules", "Ttl", "Verdict", "error_lifetime", "is_due_early", "is_due_touch", "jittered", "judge",
    "lifetime", "new_entry", "prolonged", "validated_ttl",
]  # fmt: skip

Ttl = Duration | Callable[[Any], Duration | None] | None
"""Fresh time: seconds, `timedelta`, text, a callable on the result giving one of these, or `None` for ever."""

OnWaitTimeout = Literal["compute", "stale", "raise"]

TOUCH_AFTER = 0.01
"""Share of the ttl that must have gone by before a hit prolongs it again: a write for every hit would buy no more than that."""

DEFAULT_STREAM_MAX = 16 * 2**20
"""Bytes of one stream kept while it runs: some 4 million tokens of text."""


_NO_ERRORS: Mapping[type[Exception], float | None] = MappingProxyType({})


class Verdict(Enum):
    """What may be done with a stored entry at some moment."""

    FRESH = "fresh"
    STALE = "stale"  # past its ttl, within its `stale` window
    EXPIRED = "expired"


@record(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a decorator says about time and storing; every field is validated by `checked`.

    Args:
        ttl: fresh time, or a callable on the result.
        jitter: share of the ttl by which lives are shortened at random, so that entries stored together do not end together.
        stale: seconds after the ttl in which the old value is served while one refresh runs.
        early: XFetch's beta; 0 for no early refresh.
        touch: whether a hit begins the ttl anew.
        store_if: asked for each result whether to store it.
        errors: which exceptions are stored, each with its ttl.
        wait: seconds to wait for another caller's load; `None` for as long as it takes.
        on_wait_timeout: what then: compute without storing, serve an old value, or raise `CacheTimeoutError`.
        copy: whether stored values are kept apart from handed-out ones.
        share_streams: whether a stream is shared and recorded.
        stream_max: bytes of one stream kept at most.
        strict: raise what is wrong with an entry that cannot be read, instead of running the function.
        cost: asked for each result what it took, in dollars.
    """

    ttl: Ttl = None
    jitter: float = 0.0
    stale: float = 0.0
    early: float = 0.0
    touch: bool = False
    store_if: Callable[[Any], object] | None = None
    errors: Mapping[type[Exception], float | None] = _NO_ERRORS
    wait: float | None = None
    on_wait_timeout: OnWaitTimeout = "compute"
    copy: bool = True
    share_streams: bool = False
    stream_max: int = DEFAULT_STREAM_MAX
    strict: bool = False
    cost: Cost | None = None

    @classmethod
    def checked(
        cls,
        *,
        ttl: Ttl = None,
        jitter: float = 0.0,
        stale: Duration = 0.0,
        early: bool | float = False,
        touch: bool = False,
        store_if: Callable[[Any], object] | None = None,
        errors: Mapping[type[Exception], Duration | None] | None = None,
        wait: Duration | None = None,
        on_wait_timeout: OnWaitTimeout = "compute",
        copy: bool = True,
        stream: Literal["share", "off"] = "share",
        stream_max: int = DEFAULT_STREAM_MAX,
        strict: bool = False,
        cost: Cost | None = None,
    ) -> Rules:
        """The rules as a user writes them.

        Raises:
            CacheConfigurationError: one of them means nothing.
        """
        if on_wait_timeout not in ("compute", "stale", "raise"):
            raise CacheConfigurationError(f'on_wait_timeout={on_wait_timeout!r}: give "compute", "stale" or "raise"')
        if stream not in ("share", "off"):
            raise CacheConfigurationError(f'stream={stream!r}: give "share" or "off"')
        if store_if is not None and not callable(store_if):
            raise CacheConfigurationError(f"store_if={store_if!r}: give a function of the result")
        if cost is not None and not callable(cost):
            raise CacheConfigurationError(f"cost={cost!r}: give a function of the result that answers dollars")
        if type(stream_max) is not int or stream_max < 1:
            raise CacheConfigurationError(f"stream_max={stream_max!r}: give a number of bytes >= 1")
        return cls(
            ttl=validated_ttl(ttl),
            jitter=_number("jitter", jitter, upto=1.0),
            stale=to_seconds(stale, "stale"),
            early=float(early) if isinstance(early, bool) else _number("early", early),
            touch=bool(touch),
            store_if=store_if,
            errors=MappingProxyType({_exception_type(kind): _error_ttl(ttl) for kind, ttl in (errors or {}).items()}),
            wait=None if wait is None else to_seconds(wait, "wait"),
            on_wait_timeout=on_wait_timeout,
            copy=copy,
            share_streams=stream == "share",
            stream_max=stream_max,
            strict=bool(strict),
            cost=cost,
        )

    @property
    def front(self) -> bool:
        """Whether a hit may be answered without asking these rules."""
        return not self.touch and not self.early


def _number(name: str, value: object, upto: float | None = None) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and isfinite(value) and 0 <= value <= (inf if upto is None else upto):  # type: ignore[arg-type, operator]
        return float(value)  # type: ignore[arg-type]
    raise CacheConfigurationError(f"{name}={value!r}: give a number from 0{'' if upto is None else f' to {upto:g}'}")


def _exception_type(kind: object) -> type[Exception]:
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind
    raise CacheConfigurationError(f"errors= has {kind!r} as a key: give classes derived from Exception")


def _error_ttl(ttl: Duration | None) -> float | None:
    return None if ttl is None else to_seconds(ttl, "errors")


def validated_ttl(ttl: Ttl) -> float | Callable[[Any], Duration | None] | None:
    """The ttl in seconds, or the callable as it is; raises `CacheConfigurationError` for what is neither."""
    return ttl if ttl is None or callable(ttl) else to_seconds(ttl)


def lifetime(ttl: Ttl, value: object) -> float | None:
    """Seconds this value is to live; `None` for ever, 0 for not at all."""
    seconds = ttl(value) if callable(ttl) else ttl
    return None if seconds is None else to_seconds(seconds)


def jittered(seconds: float | None, jitter: float, draw: float) -> float | None:
    """The life shortened by up to `jitter` of itself; never prolonged, and never to nothing. `draw` is from [0, 1)."""
    if not seconds or not jitter:
        return seconds
    return seconds * (1.0 - jitter * draw) or seconds


def error_lifetime(errors: Mapping[type[Exception], float | None], error: Exception) -> float | None:
    """Seconds this exception is to live, by the nearest of its classes that is listed; 0 if none is."""
    return next((errors[kind] for kind in type(error).__mro__ if kind in errors), 0.0)


def judge(entry: Entry, now: float) -> Verdict:
    """What may be done with the entry at this moment."""
    if entry.created > now + FUTURE_TOLERANCE:
        return Verdict.EXPIRED
    if entry.fresh_until is None or now < entry.fresh_until:
        return Verdict.FRESH
    return Verdict.STALE if entry.expires_at is not None and now < entry.expires_at else Verdict.EXPIRED


def is_due_early(entry: Entry, now: float, beta: float, draw: float) -> bool:
    """Whether this hit is the one to refresh ahead of the expiry; the likelier, the nearer that is and the longer a load takes.

    XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.  `draw` is from
    [0, 1).
    """
    if not beta or entry.fresh_until is None:
        return False
    return now - entry.cost * beta * log(1.0 - draw) >= entry.fresh_until


def is_due_touch(entry: Entry, now: float) -> bool:
    """Whether enough of the ttl has gone by for a hit to begin it anew."""
    return entry.ttl is not None and now - entry.created >= TOUCH_AFTER * entry.ttl


def prolonged(entry: Entry, now: float, seconds: float | None) -> Entry:
    """The entry as if it were stored now, to live for so many seconds, with the stale window that it had."""
    window = 0.0
    if entry.expires_at is not None and entry.fresh_until is not None:
        window = entry.expires_at - entry.fresh_until
    until = None if seconds is None else now + seconds
    return replace(entry, created=now, fresh_until=until, expires_at=None if until is None else until + window)


def new_entry(value: object, seconds: float | None, now: float, stale: float = 0.0, **fields: Any) -> Entry:
    """The entry for a value stored now, to live for so many seconds and `stale` more behind a refresh."""
    until = None if seconds is None else now + seconds
    return Entry(value, created=now, fresh_until=until, expires_at=None if until is None else until + stale, **fields)
