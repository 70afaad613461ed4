"""Two backends as one: a near one, which answers first, over a far one, which is the truth."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, Literal, NamedTuple, TypeVar

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._log import Log
from codomyrmex_cache._record import replace
from codomyrmex_cache.backends._stamps import Copy, Stamps, Ticket, Writing, packed, unpacked
from codomyrmex_cache.backends.base import AsyncBackend, Backend, Begun, ReportsEvictions
from codomyrmex_cache.errors import CacheConfigurationError, cause_of

__all__ = ["DEFAULT_BOUND", "TieredBackend"]

DEFAULT_BOUND = 5.0
"""Seconds; as long as a program may well believe what another one has just changed, and long enough to spare a busy server."""

T = TypeVar("T")

logger = Log(__name__)


class Step(NamedTuple):
    """What a flow wants done: a verb of L1 or of L2."""

    near: bool
    verb: str
    arguments: tuple[Any, ...]
    named: Mapping[str, Any] = {}


Flow = Generator[Step, Any, T]

_FAILED = object()
"""What L1 answers when it fails."""

_Left = Mapping[bytes, Entry | None] | None

_WRITES: dict[str, Callable[..., _Left]] = {
    "set": lambda key, entry: {key: entry},
    "delete": lambda key: {key: None},
    "set_many": lambda entries: entries,
    "delete_many": lambda keys: dict.fromkeys(keys, None),
    "clear": lambda prefix: None,
    "commit": lambda key, entry, names, begun: {key: entry},
    "replace": lambda key, old, new, fence: {key: new},
    "discard": lambda key, old: {key: None},
    "quick_set": lambda key, value, expires_at, now: {key: Entry(value, created=now, expires_at=expires_at)},
}
"""What each verb that changes entries leaves under which keys, if it does not answer `False`; `None`: all keys may change."""

_READS = ("get", "has", "get_many", "get_values", "look", "begin")
_PASSED_ON = ("scan", "count", "renew", "end", "settle", "generations", "revoke", "add_totals", "totals")
"""L1 has no part in these."""


class TieredBackend:
    """Entries of `l2`, with copies in `l1` of those that were lately read or written here.

    A read asks L1 first, then L2, and then keeps a copy in L1.  A write goes to L2, and its copy to L1.  What is set or deleted
    through this object is seen by all who use it at once; what others do to L2 is seen after `bound` seconds at the latest.
    Calls that are elected, counters, locks and tags ask L2, and are as exact as there; only `Cache.add` may take a value for
    stored that somebody else has removed within the bound.

    It offers the verbs that L2 offers, keeps what L2 keeps (objects or bytes), and is signed as L2 is: over a `RedisBackend`
    give the `secret=`, as for that alone, or plain data and named classes are all that is stored.  An L1 that fails is done
    without, which is logged once; when L2 fails, copies answer until their time is over.

    Args:
        l1: the near backend.  One for objects keeps any copies, one for bytes those of an `l2` for bytes; it needs a bound of
            its own on what it keeps.
        l2: the far backend.
        bound: seconds that a copy may answer after it was read from L2; `math.inf` if nobody else writes to L2.
        clock: seconds, for the bound.

    Raises:
        CacheConfigurationError: the two do not fit together, or the bound is none.

    >>> from codomyrmex_cache import Entry, InMemoryBackend
    >>> shared = InMemoryBackend()
    >>> one, other = (TieredBackend(InMemoryBackend(max_entries=500), shared) for _ in range(2))
    >>> one.set(b"k", Entry("old"))
    >>> other.get(b"k").value
    'old'
    >>> one.set(b"k", Entry("new"))
    >>> one.get(b"k").value, other.get(b"k").value  # for another five seconds
    ('new', 'old')
    """

    def __new__(cls, l1: Backend, l2: Backend, *, bound: float = DEFAULT_BOUND, clock: Clock = time.monotonic) -> TieredBackend:
        # a class for each pair: who probes for verbs may look at the class alone, as isinstance() of a Protocol does
        _check(l1, l2, bound)
        offered: dict[str, Callable[..., Any]] = {}
        for verb in (*_WRITES, *_READS, *_PASSED_ON):
            if callable(getattr(l2, verb, None)) and not hasattr(cls, verb) and verb != "quick_set":
                offered[verb] = _verb(verb)
            if callable(getattr(l2, f"a{verb}", None)):
                offered[f"a{verb}"] = _averb(verb)
        if isinstance(l2, AsyncBackend):
            offered["aclose"] = _aclose
        if isinstance(l2, ReportsEvictions):
            offered["subscribe"] = lambda self, evicted: self.l2.subscribe(evicted)
        if l1.payload == "object" and l2.payload == "bytes":  # else the short way is no shorter
            offered |= {"quick_get": _quick_get, "quick_set": _verb("quick_set") if hasattr(l2, "quick_set") else _takes_none}
        return super().__new__(type(cls.__name__, (cls,), offered))

    def __init__(self, l1: Backend, l2: Backend, *, bound: float = DEFAULT_BOUND, clock: Clock = time.monotonic) -> None:
        self.l1, self.l2, self.bound = l1, l2, float(bound)
        self.payload: Literal["object", "bytes"] = l2.payload
        self.chunked = bool(getattr(l2, "chunked", False))
        for name in ("directory", "max_value_bytes"):  # where the secret is looked up, and what L2 takes
            if hasattr(l2, name):
                setattr(self, name, getattr(l2, name))
        self._clock = clock
        self._life_clock = clock if l1.payload == "object" else time.time  # as everywhere: others may use L1 too
        self._stamps = Stamps(clock)
        self._warned: set[str] = set()
        renew_after_fork(self)

    def __repr__(self) -> str:
        return f"TieredBackend({self.l1!r}, {self.l2!r}, bound={self.bound:g})"

    @property
    def state(self) -> str:
        """Of the circuit breaker of L2; "" if it has none."""
        return str(getattr(self.l2, "state", ""))

    # -- the verbs that all have; the others are in `__new__`

    def get(self, key: bytes) -> Entry | None:
        """L1's copy, else what L2 has."""
        return self._run(self._get(key))

    def set(self, key: bytes, entry: Entry) -> None:
        """Store in L2."""
        self._run(self._written("set", (key, entry), {}))

    def has(self, key: bytes) -> bool:
        """Whether `get` would find something."""
        return self._run(self._has(key))

    def delete(self, key: bytes) -> bool:
        """Remove from both; whether L2 had it."""
        return bool(self._run(self._written("delete", (key,), {})))

    def scan(self, prefix: bytes) -> Iterable[tuple[bytes, float | None]]:
        """What L2 has."""
        return self.l2.scan(prefix)

    def close(self) -> None:
        """Close both."""
        try:
            self._near(Step(True, "close", ()))
        finally:
            self.l2.close()

    def after_fork(self) -> None:
        """What threads of the parent were writing is not written here."""
        self._stamps.renew()

    # -- written once, for threads and for event loops

    def _get(self, key: bytes) -> Flow[Entry | None]:
        ticket = self._stamps.ticket(key)
        found = yield Step(True, "get", (key,))
        entry: Entry | None = self._opened(key, found)
        if entry is not None:
            return entry
        entry = yield Step(False, "get", (key,))
        if entry is not None and found is not _FAILED:
            yield from self._promoted({key: entry}, {key: ticket})
        return entry

    def _has(self, key: bytes) -> Flow[bool]:
        entry = self._opened(key, (yield Step(True, "get", (key,))))
        return entry is not None or bool((yield Step(False, "has", (key,))))

    def _get_many(self, keys: Sequence[bytes]) -> Flow[Mapping[bytes, Entry]]:
        near, missing, tickets = yield from self._found(keys)
        if not missing:
            return near
        far: Mapping[bytes, Entry] = yield Step(False, "get_many", (missing,))
        yield from self._promoted(far, tickets)
        return {**near, **far}

    def _get_values(self, keys: Sequence[bytes]) -> Flow[Mapping[bytes, bytes]]:
        near, missing, tickets = yield from self._found(keys)
        values: dict[bytes, bytes] = {key: entry.value for key, entry in near.items()}
        if not missing:
            return values
        far: Mapping[bytes, bytes] = yield Step(False, "get_values", (missing,))
        yield from self._promoted({key: Entry(value) for key, value in far.items()}, tickets)
        return {**values, **far}

    def _found(self, keys: Sequence[bytes]) -> Flow[tuple[dict[bytes, Entry], list[bytes], dict[bytes, Ticket | None]]]:
        """What L1 answers, for which keys L2 is to be asked, and the tickets for copies of that; none if L1 fails."""
        tickets = {key: self._stamps.ticket(key) for key in keys}
        copies: Any = {}
        if hasattr(self.l1, "get_many"):
            copies = yield Step(True, "get_many", (list(tickets),))
        else:
            for key in tickets:
                copy = yield Step(True, "get", (key,))
                if copy is _FAILED:
                    copies = copy
                    break
                copies[key] = copy
        if copies is _FAILED:
            return {}, list(tickets), {}
        found = {key: entry for key, copy in copies.items() if (entry := self._opened(key, copy)) is not None}
        return found, [key for key in tickets if key not in found], tickets

    def _look(self, key: bytes, names: Sequence[bytes], seconds: float, tagged: bool) -> Flow[bytes | Begun]:
        ticket = self._stamps.ticket(key)
        if not tagged:  # else L2 is to be asked for the generations of the tags
            found = yield Step(True, "get", (key,))
            entry = self._opened(key, found)
            if entry is not None:
                return entry.value  # type: ignore[no-any-return]  # it is for bytes
            if found is _FAILED:
                ticket = None
        seen: bytes | Begun = yield Step(False, "look", (key, names, seconds, tagged))
        entry = seen.entry if isinstance(seen, Begun) else Entry(seen)
        if entry is not None:
            yield from self._promoted({key: entry}, {key: ticket})
        return seen

    def _begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Flow[Begun]:
        """From L2, where the entry may be newer than L1's."""
        ticket = self._stamps.ticket(key)
        begun: Begun = yield Step(False, "begin", (key, names, seconds))
        if begun.entry is not None:
            yield from self._promoted({key: begun.entry}, {key: ticket})
        return begun

    def _written(self, verb: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Flow[Any]:
        entries = _WRITES[verb](*arguments, **named)
        writing = self._stamps.begin(entries)
        try:
            result = yield Step(False, verb, arguments, named)
        finally:
            self._stamps.end(writing)
        if entries is None:
            yield from self._cleared(*arguments, **named)
        else:
            written = {} if result is False else entries
            yield from self._kept({key: self._copy_of_written(key, written.get(key), writing) for key in entries})
        return result

    def _promoted(self, entries: Mapping[bytes, Entry], tickets: Mapping[bytes, Ticket | None]) -> Flow[None]:
        copies = {key: self._copy(key, entry, tickets.get(key)) for key, entry in entries.items()}
        yield from self._kept({key: copy for key, copy in copies.items() if copy is not None})

    def _kept(self, copies: Mapping[bytes, Entry | None]) -> Flow[None]:
        """Have L1 keep the copies, and nothing under a key without one."""
        kept = {key: copy for key, copy in copies.items() if copy is not None}
        gone = [key for key in copies if key not in kept]
        if len(kept) > 1 and hasattr(self.l1, "set_many"):
            yield Step(True, "set_many", (kept,))
            kept = {}
        if len(gone) > 1 and hasattr(self.l1, "delete_many"):
            yield Step(True, "delete_many", (gone,))
            gone = []
        for key, copy in kept.items():
            yield Step(True, "set", (key, copy))
        for key in gone:
            yield Step(True, "delete", (key,))

    def _cleared(self, prefix: bytes) -> Flow[None]:
        if hasattr(self.l1, "clear"):
            yield Step(True, "clear", (prefix,))
            return
        found = yield Step(True, "scan", (prefix,))
        yield from self._kept({key: None for key, _ in found} if found is not _FAILED else {})

    # -- copies

    def _copy(self, key: bytes, entry: Entry, ticket: Ticket | None) -> Entry | None:
        """What L1 is to keep of an entry of L2, if it may."""
        left = self.bound
        if entry.expires_at is not None:
            left = min(left, entry.expires_at - entry.created)
        if ticket is None or left <= 0:
            return None
        if self.payload == "bytes" and type(entry.value) is not bytes:
            entry = replace(entry, value=bytes(entry.value))  # what L2 gave is the caller's alone, who may write into it
        copy = Copy(ticket, ticket.read + left, entry)
        value = copy if self.l1.payload == "object" else packed(copy, key)
        now = self._life_clock()
        return Entry(value, created=now, expires_at=None if left == inf else now + left)

    def _copy_of_written(self, key: bytes, entry: Entry | None, writing: Writing) -> Entry | None:
        """The same for one that was written, if it is what L2 would give back, and nothing else may have replaced it since."""
        if entry is None or self.payload == "object" or type(entry.value) is not bytes:
            return None
        return self._copy(key, entry, writing.ticket(key))

    def _opened(self, key: bytes, found: Any) -> Entry | None:
        """The entry that L1 has a copy of, if that may answer."""
        if not isinstance(found, Entry):
            return None
        copy = found.value if self.l1.payload == "object" else unpacked(found.value, key)
        if not isinstance(copy, Copy) or not self._stamps.allow(copy, key):
            return None
        read = copy.ticket.read
        return copy.entry if read <= self._clock() < min(copy.until, read + self.bound) else None

    # -- carrying it out

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = self._near(step) if step.near else getattr(self.l2, step.verb)(*step.arguments, **step.named)
                except BaseException as error:  # the flow re-raises it
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _near(self, step: Step) -> Any:
        try:
            return getattr(self.l1, step.verb)(*step.arguments)
        except Exception as error:  # L2 has it all
            return self._near_failed(step, error)

    def _near_failed(self, step: Step, error: Exception) -> object:
        cause = cause_of(error)
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning("%r: L1 failed to %s (%s: %s); calls go on without it", self, step.verb, cause, error)
        return _FAILED

    async def _arun(self, flow: Flow[T]) -> T:
        import asyncio  # 57 modules, which a blocking program has no use for

        try:
            step = next(flow)
            while True:
                write = None
                try:
                    if step.near:
                        reply = await self._anear(step)
                    elif step.verb in _WRITES:
                        write = asyncio.ensure_future(getattr(self.l2, f"a{step.verb}")(*step.arguments, **step.named))
                        reply = await asyncio.shield(write)
                    else:
                        reply = await getattr(self.l2, f"a{step.verb}")(*step.arguments, **step.named)
                except BaseException as error:
                    if write is not None and not write.done():  # cancelled, but L2 may still carry it out
                        write.add_done_callback(partial(_over, flow))
                        raise
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _anear(self, step: Step) -> Any:
        """An L1 in memory at once, one that does I/O by its async verbs or in a thread."""
        twin = getattr(self.l1, f"a{step.verb}", None) if isinstance(self.l1, AsyncBackend) else None
        try:
            if twin is not None:
                return await twin(*step.arguments)
            if self.l1.payload == "object":
                return self._near(step)
            import asyncio

            return await asyncio.to_thread(self._near, step)
        except Exception as error:  # as in `_near`
            return self._near_failed(step, error)


def _check(l1: Backend, l2: Backend, bound: float) -> None:
    for name, backend in (("l1", l1), ("l2", l2)):
        if not callable(getattr(backend, "get", None)):
            raise CacheConfigurationError(f"TieredBackend: {name}={backend!r}: give an object with get, set, ...")
    if l1 is l2:
        raise CacheConfigurationError(f"TieredBackend: l1 and l2 are the same {type(l1).__name__}: give two")
    if l1.payload == "bytes" and l2.payload == "object":
        raise CacheConfigurationError(
            f"TieredBackend: {type(l1).__name__} keeps bytes, but {type(l2).__name__} below it objects, which are never made "
            "into bytes: give an l1 that keeps objects, such as InMemoryBackend, or an l2 that keeps bytes"
        )
    if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not bound > 0:
        raise CacheConfigurationError(f"TieredBackend: bound={bound!r}: give seconds > 0, or math.inf")


def _over(flow: Flow[Any], write: Any) -> None:
    flow.close()
    if not write.cancelled():
        write.exception()  # nobody is there to be told


def _verb(verb: str) -> Callable[..., Any]:
    def call(self: TieredBackend, *arguments: Any, **named: Any) -> Any:
        if verb in _PASSED_ON:
            return getattr(self.l2, verb)(*arguments, **named)
        return self._run(_flow(self, verb, arguments, named))

    return _named(call, verb)


def _averb(verb: str) -> Callable[..., Awaitable[Any]]:
    async def call(self: TieredBackend, *arguments: Any, **named: Any) -> Any:
        if verb in _PASSED_ON:
            return await getattr(self.l2, f"a{verb}")(*arguments, **named)
        return await self._arun(_flow(self, verb, arguments, named))

    return _named(call, f"a{verb}")


def _flow(tiers: TieredBackend, verb: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Flow[Any]:
    if verb in _WRITES:
        return tiers._written(verb, arguments, named)
    flow: Flow[Any] = getattr(tiers, f"_{verb}")(*arguments, **named)
    return flow


def _named(call: Callable[..., T], name: str) -> Callable[..., T]:
    call.__name__ = name
    call.__qualname__ = f"TieredBackend.{name}"
    return call


async def _aclose(self: TieredBackend) -> None:
    try:
        await self._anear(Step(True, "close", ()))
    finally:
        await self.l2.aclose()  # type: ignore[attr-defined]


def _quick_get(self: TieredBackend, key: bytes) -> bytes | None:
    entry = self._opened(key, self.l1.get(key))
    return None if entry is None else entry.value


def _takes_none(self: TieredBackend, key: bytes, value: bytes, expires_at: float | None, now: float) -> bool:
    return False
