"""Statistics over all processes and hosts that share a store: totals kept there, to which each process adds its own.

Every process counts for itself, and no call writes a number.  One thread adds what was counted since, for each namespace with
one round trip to ask and one to add, about every ten seconds; `close` and the end of the interpreter add the rest.

**Once at most.**  What is sent has been taken off first.  It is put back if the store surely has not added it (it answered
with an error, or its breaker kept it here), and given up if nobody knows: the connection broke, or time ran out, after it was
sent.  So that a store that is away is no such case, the totals are read before anything is added; a read may fail without loss,
and what was counted stays for the next time.  A process that is killed takes with it what it has not added.

**Exact for the reader.**  Totals that were read are complete if nothing of this process was on its way meanwhile, which
`Tally` sees by a count of what began and ended; then what has not been sent is added to them.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Generator, Mapping
from functools import cache
from math import isfinite
from threading import Condition, Lock, Thread
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from weakref import ref

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._space import Space
from codomyrmex_cache._worth import amounts_of, models_of
from codomyrmex_cache.backends.base import KeepsTotals
from codomyrmex_cache.errors import CacheConfigurationError, CacheError, CircuitOpenError, cause_of
from codomyrmex_cache.stats import STATES, SUMMED, CacheStats, Counters

__all__ = ["Found", "Tally", "follow", "state_of", "stats_of", "tally_of"]

T = TypeVar("T")

Amounts = dict[str, float]
Steps = Generator[tuple[Any, ...], Any, T]
"""Yields a verb of the backend, or "pause", with its arguments; is sent what that gives."""

_SECONDS = 10.0
"""Between two additions: what a killed process takes with it at most, and how late others see what happened."""

_EXIT_SECONDS, _EXIT_FAILURES = 2.0, 2
"""How long the end of the program may take over it, and after how many failures (0.25 s each on Redis) it goes on."""

_ATTEMPTS, _PAUSE = 100, 0.005
"""Reads until none of this process's additions was on its way meanwhile; after half a second one may be missing."""

_ERROR, _MAX = "error:", "max:"
_LONGEST_LOAD = f"{_MAX}load_seconds_max"
_REFUSED = "ResponseError"
"""The class of what a Redis server answers instead of adding (no memory left, a replica); redis-py need not be there for it."""


class Found(NamedTuple):
    """What a look at the totals gave.

    Args:
        amounts: of all processes; `None` if they could not be read.
        problem: why they could not be, or why this process's share could not be added.
    """

    amounts: Mapping[str, float] | None
    problem: Exception | None = None


class Tally:
    """What one namespace of this process has added to the totals, and what it has still to add.

    Args:
        owner: the cache; when it is gone, this ends with a last addition.
        space: its namespace.
        backend: of the namespace.
    """

    def __init__(self, owner: object, space: Space, backend: KeepsTotals) -> None:
        self._owner = ref(owner)
        self._backend = backend
        self._at_once = space.backend.payload == "object"
        self._prefix = space.prefix
        self._counters: dict[str, Counters] = space.counters  # not the space: its functions may refer to the cache
        self._lock = Lock()
        self._taken: Amounts = {}  # what the counters said when something was last taken off
        self._back: Amounts = {}  # what was taken off and has come back
        self._flying = 0  # additions on their way
        self._changes = 0  # of all that were, beginnings and ends
        renew_after_fork(self)

    @property
    def abandoned(self) -> bool:
        """Whether nobody can count here any more."""
        return self._owner() is None

    # -- for threads

    def read(self) -> Found:
        """The totals with all that this process has counted, which is added to them."""
        return self._run(self._reading())

    def flush(self) -> bool:
        """Add what was counted since the last time; `False` if the store failed, which is counted."""
        try:
            self._run(self._flushing())
        except Exception as error:  # the backend's; what was counted stays here
            return self._failed(error)
        return True

    # -- for event loops

    async def aread(self) -> Found:
        """`read` for event loops."""
        return await self._arun(self._reading())

    async def aflush(self) -> bool:
        """`flush` for event loops."""
        try:
            await self._arun(self._flushing())
        except Exception as error:  # as above
            return self._failed(error)
        return True

    def _failed(self, error: Exception) -> bool:
        if not isinstance(error, CircuitOpenError):  # the failures that opened it have been counted
            self._counters[""].error(f"totals:{cause_of(error)}")
        return False

    # -- written once

    def _reading(self) -> Steps[Found]:
        try:
            found, amounts = yield from self._complete()
        except Exception as error:
            return Found(None, error)
        problem = None
        try:
            yield from self._adding(amounts)
        except Exception as error:  # a store that only answers, say
            problem = error
        return Found(_sum(found, amounts), problem)

    def _complete(self) -> Steps[tuple[Mapping[str, float], Amounts]]:
        """The totals without what is answered beside them, which has been taken off."""
        for _ in range(_ATTEMPTS):
            if self._flying:
                yield "pause", _PAUSE
                continue
            began = self._changes
            found = yield "totals", self._prefix
            amounts = self._take(began)
            if amounts is not None:
                return found, amounts
        found = yield "totals", self._prefix
        return found, self._take() or {}

    def _flushing(self) -> Steps[None]:
        with self._lock:
            if not self._waiting(self._counted()):
                return
        yield "totals", self._prefix  # whether the store is there at all
        yield from self._adding(self._take() or {})

    def _adding(self, amounts: Amounts) -> Steps[None]:
        if not amounts:
            return
        try:
            yield "add_totals", self._prefix, amounts
        except BaseException as error:
            self._landed(_sent_again(amounts, error))
            raise
        self._landed({})

    # -- what was taken

    def _counted(self) -> Amounts:
        return _amounts_of(CacheStats.merge([counters.snapshot() for counters in list(self._counters.values())]))

    def _waiting(self, counted: Amounts) -> Amounts:
        waiting = {}
        for name, amount in counted.items():
            taken = self._taken.get(name, 0)
            if name.startswith(_MAX):
                waiting[name] = amount if amount > taken else 0
            else:
                waiting[name] = amount - taken + self._back.get(name, 0)
        return {name: amount for name, amount in waiting.items() if amount}

    def _take(self, began: int | None = None) -> Amounts | None:
        """What is to be sent, now on its way; `None` if something else was since `began`."""
        with self._lock:
            if began is not None and began != self._changes:
                return None
            counted = self._counted()
            waiting = self._waiting(counted)
            self._taken, self._back = counted, {}
            self._flying += bool(waiting)
            self._changes += bool(waiting)
            return waiting

    def _landed(self, back: Amounts) -> None:
        with self._lock:
            self._flying -= 1
            self._changes += 1
            for name, amount in back.items():
                if name.startswith(_MAX):
                    self._taken.pop(name, None)
                else:
                    self._back[name] = self._back.get(name, 0) + amount

    def after_fork(self) -> None:
        """The numbers so far are the parent's to add; the counters begin at zero too."""
        self._lock = Lock()
        self._taken, self._back = {}, {}
        self._flying = self._changes = 0

    # -- carrying it out

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._perform(*step)
                except BaseException as error:  # the generator decides; it re-raises what is not its business
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, verb: str, *arguments: Any) -> Any:
        return time.sleep(*arguments) if verb == "pause" else getattr(self._backend, verb)(*arguments)

    async def _arun(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._aperform(*step)
                except BaseException as error:  # as in `_run`; a cancellation included
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _aperform(self, verb: str, *arguments: Any) -> Any:
        import asyncio

        if verb == "pause":
            return await asyncio.sleep(*arguments)
        twin = getattr(self._backend, f"a{verb}", None)
        if twin is not None:
            return await twin(*arguments)
        if self._at_once:
            return self._perform(verb, *arguments)
        return await asyncio.to_thread(self._perform, verb, *arguments)


class _Flusher:
    """Lets the tallies of this process add what they have, in one thread, and once more at the end.

    It keeps no cache alive, but what a forgotten one has counted, until that is added.
    """

    def __init__(self) -> None:
        self._tallies: list[Tally] = []
        self._changed = Condition()
        self._running = self._registered = False
        renew_after_fork(self)

    def add(self, tally: Tally) -> None:
        """From now on."""
        with self._changed:
            self._tallies.append(tally)
            if not self._registered:
                self._registered = True
                atexit.register(self.finish)
                self._finish_as_worker()
            if not self._running:
                self._begin()

    def _begin(self) -> None:
        try:
            Thread(target=self._beat, name="codomyrmex_cache totals", daemon=True).start()
        except RuntimeError:  # the program is about to end, or has no threads left: what is counted waits for its end
            return
        self._running = True

    def _beat(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(_SECONDS)
            self._flush()
            with self._changed:
                if not self._tallies:
                    self._running = False
                    return

    def _flush(self) -> None:
        for tally in list(self._tallies):
            abandoned = tally.abandoned  # before the last addition, which then is complete
            tally.flush()
            if abandoned:
                self._tallies.remove(tally)

    def finish(self) -> None:
        """Add what is left, without holding up the end of the program for a store that is away."""
        until, failures = time.monotonic() + _EXIT_SECONDS, 0
        for tally in [*self._tallies, *self._tallies]:  # whom a busy server has failed once gets a second try
            failures += not tally.flush()
            if failures >= _EXIT_FAILURES or time.monotonic() > until:
                return

    def _finish_as_worker(self) -> None:
        """Processes of `multiprocessing` end without `atexit` (until Python 3.13), but not without this."""
        multiprocessing = sys.modules.get("multiprocessing.util")
        if multiprocessing is not None:
            multiprocessing.Finalize(None, self.finish, exitpriority=0)

    def after_fork(self) -> None:
        """The thread is the parent's."""
        self._changed, self._running = Condition(), False
        multiprocessing = sys.modules.get("multiprocessing.util")
        if multiprocessing is not None:  # a worker first forgets what its parent wanted done at the end
            multiprocessing.register_after_fork(self, _Flusher._finish_as_worker)

    def begin_anew(self) -> None:
        """In a forked child, after the counters of the parent have been left behind."""
        if self._tallies:
            self._begin()


@cache
def _flusher() -> _Flusher:
    flusher = _Flusher()
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=flusher.begin_anew)  # in the order of registration: after those of `_fork`
    return flusher


def follow(owner: object, space: Space) -> Tally | None:
    """Have what is counted in the namespace added to its totals, as long as `owner` lives; `None` if the store keeps none."""
    if not isinstance(space.backend, KeepsTotals):
        return None
    tally = Tally(owner, space, space.backend)
    _flusher().add(tally)
    return tally


def tally_of(space: Space, tally: Tally | None, scope: object) -> Tally | None:
    """Where statistics of this scope come from; `None`: from this process's counters.

    Raises:
        CacheConfigurationError: no such scope, or the store is shared and keeps no totals.
    """
    if scope not in ("process", "all"):
        raise CacheConfigurationError(f'scope={scope!r}: give "process" or "all"')
    if scope == "process":
        return None
    if tally is None and space.backend.payload == "bytes":
        raise CacheConfigurationError(
            f"namespace {space.name!r}: {type(space.backend).__name__} keeps no totals over processes, so there is no "
            'scope="all": use scope="process" in each of them, or backend="redis"'
        )
    return tally


def state_of(backend: object) -> str:
    """The state of the backend's circuit breaker, "" if it has none."""
    state = getattr(backend, "state", "")
    return state if isinstance(state, str) and state in STATES else ""


def stats_of(amounts: Mapping[str, float], size: int | None, backend: str) -> CacheStats:
    """The totals as statistics; names that mean nothing here are left out, a newer version's, say."""
    summed = {name: amounts.get(name, 0) for name in SUMMED}
    errors = {name[len(_ERROR) :]: round(amount) for name, amount in amounts.items() if name.startswith(_ERROR)}
    return CacheStats(
        **{name: float(amount) if "seconds" in name else round(amount) for name, amount in summed.items()},  # type: ignore[arg-type]
        load_seconds_max=float(amounts.get(_LONGEST_LOAD, 0.0)),
        size=size,
        errors=MappingProxyType(errors),
        backend=backend,
        models=models_of(amounts),
    )


def _amounts_of(stats: CacheStats) -> Amounts:
    amounts: Amounts = {name: getattr(stats, name) for name in SUMMED}
    amounts |= {_ERROR + kind: count for kind, count in stats.errors.items()}
    amounts |= amounts_of(stats.models)
    amounts[_LONGEST_LOAD] = stats.load_seconds_max
    return {name: amount for name, amount in amounts.items() if amount and isfinite(amount)}


def _sum(found: Mapping[str, float], amounts: Amounts) -> Amounts:
    both = dict(found)
    for name, amount in amounts.items():
        before = both.get(name, 0)
        both[name] = max(before, amount) if name.startswith(_MAX) else before + amount
    return both


def _sent_again(amounts: Amounts, error: BaseException) -> Amounts:
    """What of an addition that failed may be sent again without being counted twice: the largest ones in any case."""
    return amounts if _surely_not_added(error) else {name: amount for name, amount in amounts.items() if name.startswith(_MAX)}


def _surely_not_added(error: BaseException) -> bool:
    """Whether it is known; after a broken connection, no answer in time or an error of no known meaning it is not."""
    if isinstance(error, CacheError):
        return not isinstance(error, TimeoutError)
    return any(kind.__name__ == _REFUSED for kind in type(error).__mro__)
