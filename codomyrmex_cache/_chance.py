"""Random numbers that spread load and hide nothing, from a generator of our own: who seeds `random` gets what it promises."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

__all__ = ["draw"]


def draw() -> float:
    """A number from [0, 1)."""
    return _generator().random()


@cache
def _generator() -> Random:
    from random import Random  # 20 modules, for which most programs here have no use

    return Random()  # noqa: S311
