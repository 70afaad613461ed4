"""A decorated hit on a store that is a round trip away: one straight line, as long as nothing is out of the ordinary.

The flow would do the same in three times the time.  Whatever the look comes to that is no plain hit is handed to the flow,
which goes on from there, so nothing is asked twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from codomyrmex_cache._alone import Alone
from codomyrmex_cache._drive import Meter
from codomyrmex_cache._entry import FUTURE_TOLERANCE
from codomyrmex_cache._flight import Flight
from codomyrmex_cache._heart import LEASE_SECONDS
from codomyrmex_cache._load import NOT_LOOKED, Looked
from codomyrmex_cache._policy import Rules
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import CircuitOpenError
from codomyrmex_cache.keys import Key
from codomyrmex_cache.stats import Counters

__all__ = ["Lane", "lane_of"]


class Lane:
    """The hits of one function.

    Args:
        space: its namespace.
        seal: of the namespace.
        counters: of the function.
        awaited: whether its results are awaited.
    """

    def __init__(self, space: Space, seal: Any, counters: Counters, *, awaited: bool) -> None:
        self._space = space
        self._backend: Any = space.backend
        self._glance = seal.glance_call
        self._coder_of = space.payloads.coder_of  # type: ignore[attr-defined]
        self._counters = counters
        self._awaited = awaited
        self._is_away = getattr(space.backend, "is_away", _never) if space.on_error == "bypass" else _never
        self._names: Sequence[bytes] = ()

    def look(self, key: Key) -> Any:
        """The value of a hit; else `Looked`, with nothing in it if a load of this key is under way here, or `Alone`."""
        stored = self._space.stored(key.text)
        if self._space.flights.is_flying(stored):
            return NOT_LOOKED
        if self._is_away(stored):
            return self._alone(stored, key)
        began, seen, problem = time.monotonic(), None, None
        try:
            seen = self._backend.look(stored, self._names or self._names_of(key), LEASE_SECONDS, False)
        except Exception as error:
            problem = error
        except BaseException:
            self._counters.add("misses")
            raise
        return self._hit(stored, key, seen) if type(seen) is bytes else Looked(seen, problem, Meter.since(began))

    async def alook(self, key: Key) -> Any:
        """The same in an event loop."""
        stored = self._space.stored(key.text)
        if self._space.flights.is_flying(stored):
            return NOT_LOOKED
        if self._is_away(stored):
            return self._alone(stored, key)
        began, seen, problem, meter = time.monotonic(), None, None, Meter()
        try:
            seen = await self._backend.alook(stored, self._names or self._names_of(key), LEASE_SECONDS, False)
        except Exception as error:
            problem, meter = error, Meter.since(began)
        except BaseException as error:  # cancelled; the lease that it may have got is given back by a task of its own
            self._counters.add("misses")
            if not isinstance(error, GeneratorExit):  # then there is no loop any more
                self._settle(stored)
            raise
        return self._hit(stored, key, seen) if type(seen) is bytes else Looked(seen, problem, meter)

    def _alone(self, stored: bytes, key: Key) -> Any:
        flights, own = self._space.flights, Flight(stored)
        if self._awaited:
            own.loop = asyncio.get_running_loop()
        flight = flights.join(own)
        if flight is not own:  # meanwhile another thread
            flight.leave()
            return NOT_LOOKED
        self._counters.error(_OPEN)
        return Alone(self._space, self._counters, own, key.digest, awaited=self._awaited)

    def _settle(self, stored: bytes) -> None:
        settle = getattr(self._backend, "asettle", None)
        if settle is not None:  # else the lease ends by itself
            self._space.in_background(settle(stored))

    def _names_of(self, key: Key) -> Sequence[bytes]:
        """The same for all calls of one function."""
        self._names = self._space.scopes(key.text)
        return self._names

    def _hit(self, stored: bytes, key: Key, sealed: bytes) -> Any:
        try:
            created, fresh_until, cost, codec, main = self._glance(stored, sealed, key.digest, self._awaited)
            if created - FUTURE_TOLERANCE <= self._space.clock() < fresh_until:
                value = self._coder_of(stored).loads(codec, (main,))
                self._counters.hit(cost, value)
                return value
        except Exception:  # noqa: S110  met again by the flow, and counted there
            pass
        return Looked(sealed)


_OPEN = f"backend:{CircuitOpenError.__name__}"


def _never(key: bytes) -> bool:
    return False


def lane_of(space: Space, rules: Rules, counters: Counters, *, awaited: bool) -> Lane | None:
    """The lane for a function without tags, `None` if its hits are not that plain."""
    seal = getattr(space.payloads, "seal", None)
    if not space.looks_first or space.near is not None or seal is None or seal.encrypts or rules.touch or rules.early:
        return None
    return Lane(space, seal, counters, awaited=awaited)
