"""Locks do not survive a fork: a child may inherit one that a thread of its parent held."""

from __future__ import annotations

import os
from functools import cache
from threading import Lock
from typing import Protocol
from weakref import WeakSet

__all__ = ["renew_after_fork"]


class Renewable(Protocol):
    """Something with locks of its own."""

    def after_fork(self) -> None:
        """Replace the locks; runs in the child, before anything else.

        One that must not be in the middle of something while the fork happens also has `before_fork` and
        `after_fork_in_parent`.
        """


class _Registry:
    """All that is to be renewed, and what happens to it around a fork."""

    def __init__(self) -> None:
        self._renewables: WeakSet[Renewable] = WeakSet()
        self._lock = Lock()  # a set must not grow while it is walked through
        self._halted: list[Renewable] = []  # the set may lose members between the steps
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(before=self._halt, after_in_parent=self._resume, after_in_child=self._renew)

    def add(self, renewable: Renewable) -> None:
        with self._lock:
            self._renewables.add(renewable)

    def _halt(self) -> None:
        self._lock.acquire()
        self._halted = [renewable for renewable in self._renewables if hasattr(renewable, "before_fork")]
        for renewable in self._halted:
            renewable.before_fork()  # type: ignore[attr-defined]

    def _resume(self) -> None:
        for renewable in self._halted:
            renewable.after_fork_in_parent()  # type: ignore[attr-defined]
        self._halted = []
        self._lock.release()

    def _renew(self) -> None:
        self._halted = []
        self._lock = Lock()
        for renewable in self._renewables:
            renewable.after_fork()


@cache
def _registry() -> _Registry:
    return _Registry()


def renew_after_fork(renewable: Renewable) -> None:
    """Have `renewable.after_fork()` run in forked children as long as it lives."""
    _registry().add(renewable)
