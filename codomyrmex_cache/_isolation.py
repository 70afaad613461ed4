"""Keeping callers' hands off stored values: which values may be shared, and copies of those that may not."""

from __future__ import annotations

import copy
import io
import re
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from inspect import CO_ITERABLE_COROUTINE
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import BuiltinFunctionType, EllipsisType, FunctionType, GeneratorType, NotImplementedType
from typing import Any
from uuid import UUID

from codomyrmex_cache.errors import CacheCodecError

__all__ = ["is_awaitable", "is_immutable", "is_single_use", "is_stream", "isolated"]

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
    if kind in _ATOMS or issubclass(kind, (Enum, type)):
        return True
    if (kind is tuple or kind is frozenset) and depth < _MAX_DEPTH:
        return all(is_immutable(item, depth + 1) for item in value)  # type: ignore[attr-defined]
    return False


def is_awaitable(value: object) -> bool:
    """Whether `await` takes it; by its type alone, since a proxy's `__class__` may run code."""
    kind = type(value)
    return hasattr(kind, "__await__") or (kind is GeneratorType and bool(value.gi_code.co_flags & CO_ITERABLE_COROUTINE))  # type: ignore[attr-defined]


def is_single_use(value: object) -> bool:
    """Whether using `value` once uses it up: iterators, awaitables, open files."""
    kind = type(value)
    return hasattr(kind, "__next__") or hasattr(kind, "__anext__") or is_awaitable(value) or issubclass(kind, io.IOBase)


def is_stream(value: object) -> bool:
    """Whether `value` gives chunks one by one until it is closed: a generator, or what an SDK answers with `stream=True`.

    Not what can be read in other ways too (files, responses, database cursors): those would pass by the recording.

    >>> is_stream(letter for letter in "ab"), is_stream(iter([1])), is_stream([1])
    (True, False, False)
    """
    kind = type(value)
    if any(hasattr(kind, reader) for reader in ("read", "fetchone")) or is_awaitable(value):
        return False
    asynchronous = hasattr(kind, "__anext__") and (hasattr(kind, "aclose") or hasattr(kind, "close"))
    return asynchronous or (hasattr(kind, "__next__") and hasattr(kind, "close"))


def isolated(value: Any) -> Any:
    """A copy that shares nothing changeable with `value`.

    Raises:
        CacheCodecError: the value cannot be copied, or what would be called its copy is no copy.
    """
    kind = type(value)
    try:
        if kind.__module__.partition(".")[0] == "pandas":  # its deepcopy shares the objects in its cells
            import pickle

            return pickle.loads(pickle.dumps(value, 5))  # noqa: S301  our own bytes of a moment ago
        copied = copy.deepcopy(value)
        same_state = kind in (list, dict, set) or _state(copied) == _state(value)
    except Exception as error:  # __deepcopy__, __reduce__ and state are user code
        raise CacheCodecError(f"{kind.__qualname__} cannot be copied ({type(error).__name__})") from error
    if copied is value and not is_immutable(value) and _state(value):
        raise CacheCodecError(f"{kind.__qualname__} has attributes and cannot be copied: it hands out itself")
    if not same_state:
        raise CacheCodecError(f"{kind.__qualname__} loses attributes when it is copied")
    return copied


def _state(value: object) -> frozenset[str]:
    """The names of the instance's attributes; a class over one written in C may forget them when it copies."""
    found = object.__getstate__(value)
    sets = found if isinstance(found, tuple) else (found,)
    return frozenset(name for names in sets if isinstance(names, dict) for name in names)
