"""Classes of modules that cost 5 ms to import, `decimal`, `fractions` and `uuid`: nobody has a value of theirs before that."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["LEAVES", "late_classes"]

_NAMES = {"decimal": "Decimal", "fractions": "Fraction", "uuid": "UUID"}


def late_classes() -> dict[type, str]:
    """Those of `Decimal`, `Fraction` and `UUID` that there are by now, each with its module."""
    found = {getattr(sys.modules.get(module), name, None): module for module, name in _NAMES.items()}
    return {kind: module for kind, module in found.items() if isinstance(kind, type)}


def _decimal(text: str) -> object:
    from decimal import Decimal

    return Decimal(text)


def _uuid(raw: list[Any]) -> object:
    from uuid import UUID, SafeUUID

    return UUID(raw[0], is_safe=SafeUUID(raw[1]))


LEAVES: dict[str | None, tuple[str, Callable[[Any], object], Callable[[Any], object]]] = {
    "decimal": ("m", str, _decimal),
    "uuid": ("u", lambda value: [value.hex, value.is_safe.value], _uuid),
}
"""By module: the tag of a value in tagged data, what it is written as, and what is made of that again."""
