"""Locks do not survive a fork: a child may inherit one that a thread of its parent held."""

from __future__ import annotations

import os
from functools import cache
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


@cache
def _registry() -> WeakSet[Renewable]:
    renewables: WeakSet[Renewable] = WeakSet()

    halted: list[Renewable] = []  # the set may lose members between the steps

    def halt() -> None:
        halted.extend(renewable for renewable in renewables if hasattr(renewable, "before_fork"))
        for renewable in halted:
            renewable.before_fork()  # type: ignore[attr-defined]

    def resume() -> None:
        for renewable in halted:
            renewable.after_fork_in_parent()  # type: ignore[attr-defined]
        halted.clear()

    def renew() -> None:
        halted.clear()
        for renewable in renewables:
            renewable.after_fork()

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=halt, after_in_parent=resume, after_in_child=renew)
    return renewables


def renew_after_fork(renewable: Renewable) -> None:
    """Have `renewable.after_fork()` run in forked children as long as it lives."""
    _registry().add(renewable)
