"""Faults to order: a wrapper that makes any backend fail, dawdle or hand over damaged bytes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import isawaitable, signature
from random import Random
from threading import Lock
from typing import Any, Literal

from codomyrmex_cache._chunks import Chunks
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends.base import Backend, Begun, ReportsEvictions
from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["READS", "WRITES", "Fault", "FaultyBackend"]

Damage = Literal["flip", "cut", "zero", "swap"] | Callable[[bytes, bytes], bytes]
When = Callable[[str, int], bool]

READS = ("get", "get_many", "begin", "look", "quick_get", "get_values")
WRITES = ("set", "set_many", "commit", "replace", "quick_set")
_PLAIN = ("get", "set", "has", "delete", "scan")
_FASTER = (
    "get_many", "set_many", "delete_many", "clear", "count",
    "begin", "renew", "commit", "end", "generations", "revoke", "replace", "discard",
    "quick_get", "quick_set", "get_values", "look", "add_totals", "totals",
)  # fmt: skip
_ZEROED = 512
"""Bytes of a disk's block."""


class Fault:
    """Something that goes wrong with some verbs while it is on; made by the methods of `FaultyBackend`.

    It is on from the start, until `stop()` or the end of its `with` block; `start()` switches it on again.

    Args:
        verbs: which calls it may strike.
        when: which of them it does: every so many calls of a verb, or what a callable says of a verb and the call's number.

    Attributes:
        on: whether it strikes now.
        done: how often it has struck, by verb.

    >>> from codomyrmex_cache import InMemoryBackend
    >>> backend = FaultyBackend(InMemoryBackend())
    >>> with backend.fail("has", every=2) as fault:
    ...     backend.has(b"k")
    ...     try:
    ...         backend.has(b"k")
    ...     except OSError as error:
    ...         print(error)
    False
    has fails to order
    >>> fault.on, dict(fault.done)
    (False, {'has': 1})
    """

    def __init__(self, verbs: Sequence[str], every: int, when: When | None) -> None:
        self.verbs = frozenset(verbs)
        self.on = True
        self.done: Counter[str] = Counter()
        self._when = when or (lambda verb, number: number % every == 0)
        self._calls: Counter[str] = Counter()
        self.delay: tuple[float, Callable[[float], object] | None] | None = None
        self.failure: tuple[Callable[[], Exception] | None, bool] | None = None
        self.damage: Callable[[bytes, bytes], bytes] | None = None

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Strike from now on; the numbers of calls go on where they were."""
        self.on = True

    def stop(self) -> None:
        """Strike no more."""
        self.on = False

    def meets(self, verb: str) -> bool:
        """Count a call of the verb; whether it is to be struck."""
        if not self.on or verb not in self.verbs:
            return False
        self._calls[verb] += 1
        return self._when(verb, self._calls[verb])


class FaultyBackend:
    """A backend with everything the wrapped one offers and nothing more, whose verbs go wrong to order.

      A verb and its `a`-twin are one verb here, named without the `a`.  Without verbs given, a fault strikes all but `close`.
    `quick_get` and `quick_set` are verbs of their own: whom they fail tries `get` and `set`.
      Several faults may be on at the same time; delays come first, then failures, then damage.

      Args:
          inner: does the work.
          seed: of the places that are damaged.

      Attributes:
          inner: the wrapped backend.
          faults: all that were made, whether on or not.

      >>> from codomyrmex_cache import CacheManager, InMemoryBackend
      >>> backend = FaultyBackend(InMemoryBackend())
      >>> cache = CacheManager().get_cache("docs", backend)
      >>> outage = backend.fail("commit", error=ConnectionError)
      >>> cache.get_or_load("k", lambda: "loaded"), cache.has("k")
      ('loaded', False)
      >>> outage.stop()
      >>> cache.get_or_load("k", lambda: "loaded"), cache.has("k")
      ('loaded', True)
      >>> dict(outage.done), dict(cache.stats().errors)
      ({'commit': 1}, {'backend:ConnectionError': 1})
    """

    def __new__(cls, inner: Backend, *, seed: int = 0) -> FaultyBackend:
        # on the class, because from Python 3.12 on isinstance() of a Protocol looks at nothing else
        offered: dict[str, Callable[..., Any]] = {verb: _forwarded(verb) for verb in _FASTER if _has(inner, verb)}
        offered |= {f"a{verb}": _aforwarded(verb) for verb in (*_PLAIN, *_FASTER, "close") if _has(inner, f"a{verb}")}
        if isinstance(inner, ReportsEvictions):
            offered["subscribe"] = lambda self, evicted: self.inner.subscribe(evicted)
        return super().__new__(type(cls.__name__, (cls,), offered))

    def __init__(self, inner: Backend, *, seed: int = 0) -> None:
        self.inner = inner
        self.faults: list[Fault] = []
        self._random = Random(seed)  # noqa: S311  places to damage, no secrets
        self._passed: list[tuple[bytes, bytes]] = []
        self._lock = Lock()
        renew_after_fork(self)

    def __repr__(self) -> str:
        return f"<FaultyBackend of {self.inner!r}, {sum(fault.on for fault in self.faults)} faults on>"

    @property
    def payload(self) -> Literal["object", "bytes"]:
        """The wrapped backend's."""
        return self.inner.payload

    @property
    def chunked(self) -> bool:
        """Whether the wrapped backend takes large values in pieces."""
        return bool(getattr(self.inner, "chunked", False))

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs that the wrapped backend has, but for `close`."""
        return tuple(verb for verb in (*_PLAIN, *_FASTER) if _has(self, verb))

    # -- what goes wrong

    def fail(
        self,
        *verbs: str,
        error: Callable[[], Exception] | None = None,
        after: bool = False,
        every: int = 1,
        when: When | None = None,
    ) -> Fault:
        """Have the verbs raise.

        Args:
            verbs: which; none means all.
            error: makes the exception; an exception class will do.  `OSError` if not given.
            after: do the work first and raise instead of answering, as when the reply of a server is lost.
            every: strike every so many calls of a verb.
            when: given the verb and the number of the call (1 is the first while the fault is on): whether to strike.
        """
        fault = self._fault(verbs or self.verbs, every, when)
        fault.failure = (error, after)
        return self._added(fault)

    def delay(
        self,
        seconds: float,
        *verbs: str,
        sleep: Callable[[float], object] | None = None,
        every: int = 1,
        when: When | None = None,
    ) -> Fault:
        """Have the verbs take longer.

        Args:
            seconds: how much longer.
            verbs: which; none means all.
            sleep: called with the seconds in place of `time.sleep` or `asyncio.sleep`; an awaitable that it gives an async
                verb is awaited.  A test may let something else happen there, just before the verb does its work.
            every: strike every so many calls of a verb.
            when: given the verb and the number of the call: whether to strike.
        """
        fault = self._fault(verbs or self.verbs, every, when)
        fault.delay = (seconds, sleep)
        return self._added(fault)

    def damage(
        self,
        how: Damage = "flip",
        *verbs: str,
        every: int = 1,
        when: When | None = None,
    ) -> Fault:
        """Have the stored bytes changed on their way; needs a backend for bytes.  Counted is what really changed.

        Args:
            how: "flip" a bit, "cut" the end off, "zero" up to 512 bytes, "swap" with what last passed under another key; or
                a callable on the value and that other one.
            verbs: "get", "get_many", "begin", "look", "quick_get", "get_values": what is read; "set", "set_many", "commit",
                "replace", "quick_set": what is written.  None means what is read.
            every: strike every so many calls of a verb.
            when: given the verb and the number of the call: whether to strike.

        Raises:
            CacheConfigurationError: the wrapped backend keeps objects, or a verb carries no bytes.
        """
        if self.payload != "bytes":
            raise CacheConfigurationError(f"damage: {type(self.inner).__name__} keeps objects, there are no bytes to damage")
        carriers = verbs or [verb for verb in READS if verb in self.verbs]
        if not {*READS, *WRITES}.issuperset(carriers):
            raise CacheConfigurationError(f"damage of {', '.join(carriers)}: give {', '.join((*READS, *WRITES))}")
        fault = self._fault(carriers, every, when)
        fault.damage = self._way(how)
        return self._added(fault)

    def heal(self) -> None:
        """Stop all faults."""
        for fault in self.faults:
            fault.stop()

    def _fault(self, verbs: Sequence[str], every: int, when: When | None) -> Fault:
        unknown = set(verbs) - {*self.verbs, "close"}
        if unknown:
            raise CacheConfigurationError(
                f"{', '.join(sorted(unknown))}: {type(self.inner).__name__} has {', '.join(self.verbs)}"
            )
        return Fault(verbs, every, when)

    def _added(self, fault: Fault) -> Fault:
        self.faults = [*self.faults, fault]  # only now is it complete: other threads may be at work
        return fault

    def _way(self, how: Damage) -> Callable[[bytes, bytes], bytes]:
        if callable(how):
            return how
        ways = {"flip": self._flipped, "cut": self._cut, "zero": self._zeroed, "swap": lambda value, other: other or value}
        if how not in ways:
            raise CacheConfigurationError(f"damage {how!r}: give {', '.join(map(repr, ways))} or a callable")
        return ways[how]

    def _flipped(self, value: bytes, _: bytes) -> bytes:
        if not value:
            return value
        changed, place = bytearray(value), self._random.randrange(8 * len(value))
        changed[place // 8] ^= 1 << place % 8
        return bytes(changed)

    def _cut(self, value: bytes, _: bytes) -> bytes:
        return value[: self._random.randrange(len(value))] if value else value

    def _zeroed(self, value: bytes, _: bytes) -> bytes:
        start = self._random.randrange(len(value)) if value else 0
        end = min(start + _ZEROED, len(value))
        return value[:start] + bytes(end - start) + value[end:]

    # -- the verbs

    def get(self, key: bytes) -> Entry | None:
        found: Entry | None = self._do("get", key)
        return found

    def set(self, key: bytes, entry: Entry) -> None:
        self._do("set", key, entry)

    def has(self, key: bytes) -> bool:
        return bool(self._do("has", key))

    def delete(self, key: bytes) -> bool:
        return bool(self._do("delete", key))

    def scan(self, prefix: bytes) -> Iterable[tuple[bytes, float | None]]:
        return list(self._do("scan", prefix))

    def close(self) -> None:
        self._do("close")

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it."""
        self._lock = Lock()

    def _do(self, verb: str, *arguments: Any) -> Any:
        struck = self._struck(verb)
        for seconds, sleep in self._delays(verb, struck):
            (sleep or time.sleep)(seconds)
        self._fail(verb, struck, after=False)
        answer = getattr(self.inner, verb)(*self._written(verb, arguments, struck))
        self._fail(verb, struck, after=True)
        return self._read(verb, arguments, answer, struck)

    async def _ado(self, verb: str, *arguments: Any) -> Any:
        struck = self._struck(verb)
        for seconds, sleep in self._delays(verb, struck):
            slept = (sleep or asyncio.sleep)(seconds)
            if isawaitable(slept):
                await slept
        self._fail(verb, struck, after=False)
        answer = await getattr(self.inner, f"a{verb}")(*self._written(verb, arguments, struck))
        self._fail(verb, struck, after=True)
        return self._read(verb, arguments, answer, struck)

    def _struck(self, verb: str) -> list[Fault]:
        with self._lock:
            return [fault for fault in self.faults if fault.meets(verb)]

    def _count(self, fault: Fault, verb: str) -> None:
        with self._lock:
            fault.done[verb] += 1

    def _delays(self, verb: str, struck: Sequence[Fault]) -> Iterator[tuple[float, Callable[[float], object] | None]]:
        for fault in struck:
            if fault.delay is not None:
                self._count(fault, verb)
                yield fault.delay

    def _fail(self, verb: str, struck: Sequence[Fault], *, after: bool) -> None:
        for fault in struck:
            if fault.failure is not None and fault.failure[1] is after:
                self._count(fault, verb)
                error = fault.failure[0]
                raise OSError(f"{verb} fails to order") if error is None else error()

    def _written(self, verb: str, arguments: tuple[Any, ...], struck: Sequence[Fault]) -> tuple[Any, ...]:
        if verb in ("set", "commit"):
            return (arguments[0], self._carried(verb, arguments[0], arguments[1], struck), *arguments[2:])
        if verb == "replace":
            key, old, new, fence = arguments
            return key, old, self._carried(verb, key, new, struck), fence
        if verb == "quick_set":
            return (arguments[0], self._passed_on(verb, arguments[0], arguments[1], struck), *arguments[2:])
        if verb == "set_many":
            return ({key: self._carried(verb, key, entry, struck) for key, entry in arguments[0].items()},)
        return arguments

    def _read(self, verb: str, arguments: tuple[Any, ...], answer: Any, struck: Sequence[Fault]) -> Any:
        if verb in ("quick_get", "look") and isinstance(answer, bytes):
            return self._passed_on(verb, arguments[0], answer, struck)
        if verb == "get_values":
            return {key: self._passed_on(verb, key, value, struck) for key, value in answer.items()}
        if verb == "get":
            return self._carried(verb, arguments[0], answer, struck)
        if isinstance(answer, Begun):
            return answer._replace(entry=self._carried(verb, arguments[0], answer.entry, struck))
        if verb == "get_many":
            found: Mapping[bytes, Entry] = answer
            return {key: self._carried(verb, key, entry, struck) for key, entry in found.items()}
        return answer

    def _carried(self, verb: str, key: bytes, entry: Entry | None, struck: Sequence[Fault]) -> Entry | None:
        """The entry as it arrives at the other side."""
        if entry is None or self.payload != "bytes":
            return entry
        value = self._passed_on(verb, key, entry.value, struck)
        return entry if value is entry.value else replace(entry, value=value)

    def _passed_on(self, verb: str, key: bytes, value: Any, struck: Sequence[Fault]) -> Any:
        """The value as it arrives: itself, if nothing happens to it."""
        original = _whole(value)
        with self._lock:
            other = next((seen for name, seen in self._passed if name != key), b"")
            self._passed = [(key, original), *(pair for pair in self._passed if pair[0] != key)][:2]
        changed = original
        for fault in struck:
            before, changed = changed, changed if fault.damage is None else fault.damage(changed, other)
            if changed != before:
                self._count(fault, verb)
        return value if changed == original else changed


def _has(backend: object, verb: str) -> bool:
    return callable(getattr(backend, verb, None))


def _forwarded(verb: str) -> Callable[..., Any]:
    def forward(self: FaultyBackend, *arguments: Any, **named: Any) -> Any:
        return self._do(verb, *_in_order(getattr(self.inner, verb), arguments, named))

    forward.__name__ = verb
    return forward


def _aforwarded(verb: str) -> Callable[..., Awaitable[Any]]:
    async def forward(self: FaultyBackend, *arguments: Any, **named: Any) -> Any:
        return await self._ado(verb, *_in_order(getattr(self.inner, f"a{verb}"), arguments, named))

    forward.__name__ = f"a{verb}"
    return forward


def _in_order(verb: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    return signature(verb).bind(*arguments, **named).args if named else arguments


def _whole(value: Any) -> bytes:
    """The bytes of a stored value, which may be any buffer, or in pieces."""
    return value.join() if isinstance(value, Chunks) else bytes(value)
