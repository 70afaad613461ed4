"""Keeping leases while their loads run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from typing import NamedTuple

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends.base import Begun, Coordinates

__all__ = ["LEASE_SECONDS", "Heart"]

LEASE_SECONDS = 3.5
"""How long a leader that died or froze holds up the next one; with what a busy machine adds, five seconds."""

_BEAT_SECONDS = 0.8
"""Between two renewals: three may be late or fail before the lease is lost."""

_IDLE_BEATS = 30
"""After so many beats without a lease the thread ends."""


class _Held(NamedTuple):
    key: bytes
    begun: Begun
    since: float
    lost: Callable[[], None]
    dead: Callable[[], bool]


class Heart:
    """Renews the leases of one backend in one thread, which runs while there are leases.

    Args:
        backend: where the leases are.
        failed: told of a renewal that raised.
    """

    def __init__(self, backend: Coordinates, failed: Callable[[Exception], None]) -> None:
        self._backend = backend
        self._failed = failed
        self._held: set[_Held] = set()
        self._changed = Condition()
        self._beating = False
        renew_after_fork(self)

    @contextmanager
    def holding(self, key: bytes, begun: Begun, lost: Callable[[], None], dead: Callable[[], bool]) -> Iterator[None]:
        """Renew the lease within the block.

        Args:
            key: the lease's.
            begun: as the backend gave it.
            lost: called if it is somebody else's now.
            dead: whether who should leave the block never will; then the lease is given up.
        """
        held = _Held(key, begun, time.monotonic(), lost, dead)
        with self._changed:
            self._held.add(held)
            if not self._beating:
                self._begin()
        try:
            yield
        finally:
            self._held.discard(held)

    def _begin(self) -> None:
        try:
            Thread(target=self._beat, name="codomyrmex_cache leases", daemon=True).start()
        except RuntimeError as error:  # the program is about to end, or has no threads left: the lease ends by itself
            self._failed(error)
        else:
            self._beating = True

    def _beat(self) -> None:
        idle = 0
        while True:
            with self._changed:
                self._changed.wait(_BEAT_SECONDS)
                held = list(self._held)
                idle = 0 if held else idle + 1
                if idle > _IDLE_BEATS:
                    self._beating = False
                    return
            for each in held:
                if time.monotonic() - each.since >= _BEAT_SECONDS:
                    self._renew(each)

    def _renew(self, held: _Held) -> None:
        try:
            if held.dead():
                self._held.discard(held)
                self._backend.end(held.key, held.begun._replace(generations=()), True)
                return
            ours = self._backend.renew(held.key, held.begun.lease, LEASE_SECONDS)
        except Exception as error:  # the backend's; the next beat may reach it again
            self._failed(error)
            return
        if not ours:
            self._held.discard(held)
            held.lost()

    def after_fork(self) -> None:
        """The thread and the loads are the parent's."""
        self._held, self._changed, self._beating = set(), Condition(), False
