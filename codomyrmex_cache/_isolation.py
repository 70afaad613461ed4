"""Keeping callers' hands off stored values: which values may be shared, and copies of those that may not."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Awaitable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import BuiltinFunctionType, EllipsisType, FunctionType, NotImplementedType
from typing import Any
from uuid import UUID

from codomyrmex_cache.errors import CacheCodecError

__all__ = ["is_immutable", "is_single_use", "isolated"]

_ATOMS: frozenset[type] = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, range, type, EllipsisType, NotImplementedType,
        datetime, date, time, timedelta, timezone, Decimal, Fraction, UUID, re.Pattern,
        PosixPath, PurePosixPath, WindowsPath, PureWindowsPath, FunctionType, BuiltinFunctionType,
    }
)  # fmt: skip
"""Types whose instances `copy.deepcopy` hands back as they are, or that have no way to be changed."""

_MAX_DEPTH = 20
"""Deeper nests of tuples are copied instead of examined."""


def is_immutable(value: object, depth: int = 0) -> bool:
    """Whether no holder of `value` can change what another holder sees.

    >>> is_immutable(("a", 1, frozenset({2}))), is_immutable(("a", [])), is_immutable([])
    (True, False, False)
    """
    kind = type(value)
    if kind in _ATOMS or isinstance(value, Enum):
        return True
    if (kind is tuple or kind is frozenset) and depth < _MAX_DEPTH:
        return all(is_immutable(item, depth + 1) for item in value)  # type: ignore[attr-defined]
    return False


def is_single_use(value: object) -> bool:
    """Whether using `value` once uses it up: iterators, awaitables, open files."""
    kind = type(value)
    return hasattr(kind, "__next__") or hasattr(kind, "__anext__") or isinstance(value, (Awaitable, io.IOBase))


def isolated(value: Any) -> Any:
    """A copy that shares nothing changeable with `value`.

    Raises:
        CacheCodecError: the value cannot be copied.
    """
    try:
        return copy.deepcopy(value)
    except Exception as error:  # __deepcopy__, __reduce__ and state are user code
        raise CacheCodecError(f"{type(value).__qualname__} cannot be copied: {error}") from error
