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
        """Replace the locks; runs in the child, before anything else."""


@cache
def _registry() -> WeakSet[Renewable]:
    renewables: WeakSet[Renewable] = WeakSet()

    def renew() -> None:
        for renewable in renewables:
            renewable.after_fork()

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=renew)
    return renewables


def renew_after_fork(renewable: Renewable) -> None:
    """Have `renewable.after_fork()` run in forked children as long as it lives."""
    _registry().add(renewable)
