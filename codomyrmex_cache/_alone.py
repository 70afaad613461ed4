"""What a call does while its store is left alone, in a tenth of the time that the flow would take over it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flight import LEADING, Abandoned, Failed, Flight, Landed, Outcome
from codomyrmex_cache._isolation import is_stream
from codomyrmex_cache._space import Space
from codomyrmex_cache.stats import Counters

__all__ = ["Alone"]


class Alone:
    """A call whose store is being left alone: its function runs for all who ask this process meanwhile, and nothing is stored.

    It is called and told like a `Run`.  If it is cancelled in an event loop, who waits for it starts over.
    """

    __slots__ = ("_awaited", "_began", "_counters", "_digest", "_flight", "_space", "_token", "_value", "load", "view")

    def __init__(self, space: Space, counters: Counters, flight: Flight, digest: bytes, *, awaited: bool) -> None:
        self.load: object = self
        self.view: Callable[[Any], Any] | None = None  # makes a stream what callers expect
        self._space, self._counters, self._flight, self._digest, self._awaited = space, counters, flight, digest, awaited
        self._token = LEADING.set((*LEADING.get(), flight))
        self._began = time.monotonic()

    def resume(self, value: Any, error: BaseException | None = None) -> None:
        """What the function gave or raised, which is raised again."""
        self.load = None
        with suppress(ValueError):  # closed from outside of its context, as the garbage collector does with what nobody awaits
            LEADING.reset(self._token)
        self._counters.load(time.monotonic() - self._began, failed=error is not None)
        self._counters.add("misses")
        if error is None:
            self._counters.spend(value)
        self._space.flights.end(self._flight, self._outcome(value, error))
        self._flight.leave()
        if error is not None:
            raise error
        self._value = value

    def _outcome(self, value: Any, error: BaseException | None) -> Outcome:
        if error is not None:
            return Failed(error) if isinstance(error, Exception) else Abandoned(error)
        entry = Entry(value, digest=self._digest, awaited=self._awaited)
        if not self._flight.is_shared:
            return Landed(entry, None)
        try:
            return Landed(entry, self._space.payloads.pack(self._flight.key, entry, copy=True))
        except Exception:  # single-use, or not to be encoded: the others run the function themselves
            return Landed(entry, None)

    def ended(self, value: Any) -> Any:
        """The result of the call, whose function gave this."""
        self.resume(value)
        return self.finish()

    def finish(self) -> Any:
        """What the function gave."""
        return self.view(self._value) if self.view is not None and is_stream(self._value) else self._value
