"""A circuit breaker: a server that does not answer is left alone for a while, so that calls lose no time on it.

Closed, open, half open: Nygard, Release It!, chapter "Stability Patterns".
"""

from __future__ import annotations

import time
from threading import Lock
from typing import Literal

from codomyrmex_cache._chance import draw
from codomyrmex_cache._entry import Clock
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._log import Log
from codomyrmex_cache.errors import CircuitOpenError

__all__ = ["Breaker", "State"]

State = Literal["closed", "open", "half_open"]

_FAILURES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_JITTER = 0.2
"""Share of a pause by which it is shortened at random, so that many processes do not probe a returning server at once."""

logger = Log(__name__)


class Breaker:
    """Opens after three failures in a row; then one caller at a time may probe, after 1 s, 2 s, ... 30 s.

    `enter` before each operation, then one of `succeeded`, `failed` and `given_up`.

    Args:
        what: names the server in log lines.
        clock: seconds.
    """

    __slots__ = ("__weakref__", "_clock", "_earlier", "_failures", "_lock", "_next", "_pause", "_prober", "_what", "state")

    def __init__(self, what: str, clock: Clock = time.monotonic) -> None:
        self.state: State = "closed"
        self._what = what
        self._clock = clock
        self._failures = 0
        self._pause = _FIRST_PAUSE
        self._next = 0.0
        self._prober = self._earlier = 0
        self._lock = Lock()
        renew_after_fork(self)

    @property
    def is_shut(self) -> bool:
        """Whether `enter` would raise now."""
        return self.state != "closed" and self._clock() < self._next

    def enter(self) -> int:
        """Whether an operation may begin; answers what the end of it is told by: 0, or the number of a probe.

        Raises:
            CircuitOpenError: the server is being left alone.
        """
        if self.state == "closed":
            return 0
        with self._lock:
            state: State = self.state
            if state == "closed":
                return 0
            now = self._clock()
            if now < self._next:
                raise CircuitOpenError(f"{self._what} has failed; the next try is in {self._next - now:.1f} s")
            self._next = now + self._pause  # if this probe never ends, another one may begin
            self._prober += 1
            self.state = "half_open"
            return self._prober

    def succeeded(self, probe: int = 0) -> None:
        """The server has answered."""
        if self._failures == 0 and self.state == "closed":
            return
        with self._lock:
            if self.state != "closed" and probe <= self._earlier:
                return  # it began before the breaker opened; the probe decides
            was, self.state = self.state, "closed"
            self._failures, self._pause = 0, _FIRST_PAUSE
        if was != "closed":
            logger.warning("%s answers again", self._what)

    def failed(self, error: BaseException, probe: int = 0) -> None:
        """The server has not answered, or has said that it cannot serve."""
        with self._lock:
            self._failures += 1
            was = self.state
            if was != "closed" and (probe <= self._earlier or probe != self._prober):
                return  # it began before the breaker opened, or another probe has begun since
            if was == "closed" and self._failures < _FAILURES:
                return
            if was == "closed":
                self._earlier = self._prober
            else:
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            pause = self._pause * (1 - _JITTER * draw())
            self.state, self._next = "open", self._clock() + pause
        if was == "closed":
            logger.warning(
                "%s does not answer (%s: %s); calls go on without it, next try in %.1f s",
                self._what, type(error).__name__, error, pause,
            )  # fmt: skip

    def given_up(self, probe: int) -> None:
        """The operation was broken off by its caller and says nothing about the server."""
        if probe:
            with self._lock:
                if self.state == "half_open" and probe == self._prober:
                    self.state, self._next = "open", self._clock()

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it."""
        self._lock = Lock()
