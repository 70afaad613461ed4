"""Single-flight for interfaces that ask and tell: `lookup`, then a computation that the cache does not see, then `update`.

A `_flight.Flight` runs the computation and knows how it ends.  Here somebody else runs it, and may fail without a word, so
every caller says itself by what its end will be noticed, and waiters have a bound.  Nobody who leads waits: two leads that
waited for each other's end would both see it only at the bound.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from contextvars import ContextVar
from threading import RLock
from typing import Any

from codomyrmex_cache._fork import renew_after_fork

__all__ = ["Lead", "Leads", "lead_of", "may_wait"]

_own: ContextVar[Lead | None] = ContextVar("codomyrmex_cache_lead", default=None)


class Lead:
    """One computation under way; `answer` gets what it gave, or `None` if it gave nothing.

    Args:
        key: of what is being computed.
        call: tells the call that computes it from others.
    """

    __slots__ = ("answer", "call", "fenced", "key")

    def __init__(self, key: str, call: object) -> None:
        self.key = key
        self.call = call
        self.answer: Future[Any] = Future()
        self.fenced = False
        """Whether what it gives was invalidated meanwhile, and must not be stored."""


class Leads:
    """The computations under way in this process, by key."""

    def __init__(self) -> None:
        self._leads: dict[str, Lead] = {}
        self._lock = RLock()
        renew_after_fork(self)

    def join(self, own: Lead) -> Lead:
        """The lead of this key: `own`, if there was none, or another one, to be waited for."""
        with self._lock:
            lead = self._leads.setdefault(own.key, own)
        if lead is own:
            _own.set(own)
        return lead

    def end(self, lead: Lead, answer: Any = None) -> None:
        """Wake those who wait; a second end changes nothing."""
        with self._lock:
            if lead.answer.done():
                return
            if self._leads.get(lead.key) is lead:
                del self._leads[lead.key]
            lead.answer.set_result(answer)

    def fence(self) -> None:
        """Nothing that is under way is to be stored; who comes from now on does not wait for it."""
        with self._lock:
            for lead in self._leads.values():
                lead.fenced = True
            self._leads.clear()

    def after_fork(self) -> None:
        """The leaders are threads of the parent."""
        self._leads, self._lock = {}, RLock()


def lead_of(call: object) -> Lead | None:
    """The lead that this call took, if it did."""
    lead = _own.get()
    return lead if lead is not None and lead.call == call else None


def may_wait(*, blocking: bool) -> bool:
    """Whether waiting here keeps no leader from its end: this context leads nothing, and no event loop would stand still."""
    lead = _own.get()
    if lead is not None and not lead.answer.done():
        return False
    events = sys.modules.get("asyncio.events")
    return not blocking or events is None or events._get_running_loop() is None
