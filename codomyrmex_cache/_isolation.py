"""Keeping callers' hands off stored values: which values may be shared, and copies of those that may not."""

from __future__ import annotations

import copy
import io
import re
from copyreg import dispatch_table
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from functools import lru_cache
from operator import is_
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    EllipsisType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    NotImplementedType,
)
from typing import TYPE_CHECKING, Any

from codomyrmex_cache._late import late_classes
from codomyrmex_cache._record import Fields
from codomyrmex_cache.errors import CacheCodecError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["is_awaitable", "is_immutable", "is_single_use", "is_stream", "isolated"]

_ATOMS: set[type] = set(
    {
        type(None), bool, int, float, complex, str, bytes, range, type, EllipsisType, NotImplementedType,
        datetime, date, time, timedelta, timezone, re.Pattern,
        PosixPath, PurePosixPath, WindowsPath, PureWindowsPath, FunctionType, BuiltinFunctionType,
    }
)  # fmt: skip
"""Types whose instances `copy.deepcopy` hands back as they are, or that have no way to be changed; `late_classes` join them
when they are met."""

_are_atoms = _ATOMS.issuperset
"""Of the types of many values at once, without a line of Python for each."""

_HEAP_TYPE = 1 << 9
"""CPython's flag of classes made at run time."""

_ITERABLE_COROUTINE = 0x100
"""CPython's flag of code of generators that `await` takes, as in `inspect`."""

_COPY_HOOKS = (
    "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__",
    "__getattr__", "__getattribute__",
)  # fmt: skip
"""By which a class can have its say about copies; a proxy answers `__deepcopy__` for what is behind it."""

_DESCRIPTORS = frozenset(
    {
        FunctionType, classmethod, staticmethod, property,
        MemberDescriptorType, GetSetDescriptorType, ClassMethodDescriptorType, Fields,
    }
)  # fmt: skip
"""What a class may have that acts on its instances' attributes without keeping anything there; `cached_property` does, and
methods written in C may have state that is no attribute."""


def is_immutable(value: object) -> bool:
    """Whether no holder of `value` can change what another holder sees: not by way of its type's own interface.

    Besides atoms these are tuples and named tuples, frozensets and frozen dataclasses, if all they hold is immutable.  Every
    part is looked at once, however often it occurs, so the cost is at most in proportion to the size.

    >>> is_immutable(("a", 1, frozenset({2}))), is_immutable(("a", [])), is_immutable([])
    (True, False, False)
    """
    if type(value) in _ATOMS:
        return True
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        kind: Any = type(item)  # mypy takes classes for unhashable
        take_apart = _take_apart(kind)
        if take_apart is None:
            return False
        parts = take_apart(item)
        if not _are_atoms(map(type, parts)):
            seen.add(id(item))
            pending += [part for part in parts if type(part) not in _ATOMS]
    return True


@lru_cache(maxsize=256)  # a list of a thousand objects asks a thousand times
def _take_apart(kind: type) -> Callable[[Any], Collection[object]] | None:
    """What gives all that a value of this type holds, if it cannot be given anything else to hold."""
    if kind is frozenset or kind is tuple:
        return kind
    if kind in late_classes():
        _ATOMS.add(kind)
        return lambda value: ()
    if issubclass(kind, tuple) and not kind.__dictoffset__:  # a named tuple, `os.stat_result`
        return lambda value: tuple(tuple.__iter__(value))
    if issubclass(kind, (Enum, type)):
        return lambda value: ()
    if _is_frozen(kind):
        return lambda value: [item for state in _states(value) for item in state.values()]
    return None


def _is_frozen(kind: type) -> bool:
    """Whether it is a frozen dataclass, itself and not only a base, whose instances hold nothing but their attributes."""
    frozen = getattr(vars(kind).get("__dataclass_params__"), "frozen", False)
    return bool(frozen) and all(
        type(member) in _DESCRIPTORS or not hasattr(type(member), "__get__")
        for base in kind.__mro__[:-1]
        for member in vars(base).values()
    )


def is_awaitable(value: object) -> bool:
    """Whether `await` takes it; by its type alone, since a proxy's `__class__` may run code."""
    kind = type(value)
    return hasattr(kind, "__await__") or (kind is GeneratorType and bool(value.gi_code.co_flags & _ITERABLE_COROUTINE))  # type: ignore[attr-defined]


def is_single_use(value: object) -> bool:
    """Whether using `value` once uses it up: iterators, awaitables, open files, an SDK's answer with its connection."""
    kind = type(value)
    return (
        hasattr(kind, "__next__")
        or hasattr(kind, "__anext__")
        or is_awaitable(value)
        or issubclass(kind, io.IOBase)
        or (kind.__name__.endswith("APIResponse") and kind.__module__.partition(".")[0] in ("openai", "anthropic"))
    )


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
    """A copy that shares nothing changeable with `value`; a part that occurs twice in it occurs twice in the copy.

    Plain containers are copied here, three times as fast as by `copy.deepcopy`, flat ones seven times; anything else by that
    (`benchmarks/copies.py`).  Bytes kept to be unpickled would be faster still for nests of many small containers, and much
    slower for long texts; but they would have to be kept.

    Raises:
        CacheCodecError: the value cannot be copied, or what would be called its copy is no copy.
    """
    kind = type(value)
    if kind is list or kind is set:
        copied = value.copy()
        if _are_atoms(map(type, copied)):
            return copied
    elif kind is dict:
        copied = value.copy()
        if _are_atoms(map(type, copied.values())) and _are_atoms(map(type, copied)):
            return copied
    kept: list[Any] = []
    memo: dict[int, Any] = {}
    memo[id(memo)] = kept  # where deepcopy keeps them too
    try:
        return _copied(value, memo, kept)
    except _OddKeyError:
        return _deep_copied(value, {})
    except CacheCodecError:
        raise
    except Exception as error:  # __deepcopy__, __reduce__ and state are user code
        raise CacheCodecError(f"{kind.__qualname__} cannot be copied ({type(error).__name__})") from error


class _OddKeyError(Exception):
    """A dict has a key that must be copied, so its copy cannot begin as a shallow one."""


def _copied(value: Any, memo: dict[int, Any], kept: list[Any]) -> Any:
    """The copy of a value that is no atom and not in `memo`, both as in `copy.deepcopy`.

    A shallow copy is made first and what is in it is replaced, since another thread may be changing the value meanwhile.  For
    the same reason values are `kept`: the id of one that has gone might be another's.
    """
    kind = type(value)
    if kind is dict:
        kept.append(value)
        memo[id(value)] = copied = value.copy()
        for key, item in copied.items():
            if type(key) not in _ATOMS and not is_immutable(key):
                raise _OddKeyError
            if type(item) not in _ATOMS:
                known = memo.get(id(item))
                copied[key] = _copied(item, memo, kept) if known is None else known
        return copied
    if kind is list:
        kept.append(value)
        memo[id(value)] = copied = value.copy()
        if not _are_atoms(map(type, copied)):
            for index, item in enumerate(copied):
                if type(item) not in _ATOMS:
                    known = memo.get(id(item))
                    copied[index] = _copied(item, memo, kept) if known is None else known
        return copied
    if kind is tuple:
        return _tuple_copied(value, memo, kept)
    if kind is set:
        copied = value.copy()
        if not all(map(is_immutable, copied)):
            copied = _deep_copied(value, memo)
    else:
        copied = value if is_immutable(value) else _deep_copied(value, memo)
    kept.append(value)
    memo[id(value)] = copied
    return copied


def _tuple_copied(value: tuple[Any, ...], memo: dict[int, Any], kept: list[Any]) -> tuple[Any, ...]:
    if _are_atoms(map(type, value)):
        return value
    items = []
    for item in value:
        known = item if type(item) in _ATOMS else memo.get(id(item))
        items.append(_copied(item, memo, kept) if known is None and item is not None else known)
    copied = memo.get(id(value))  # made meanwhile, if one of its items leads back to it
    if copied is None:
        kept.append(value)
        memo[id(value)] = copied = value if all(map(is_, items, value)) else tuple(items)
    return copied


def _deep_copied(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    try:
        if kind.__module__.partition(".")[0] == "pandas":  # its deepcopy shares the objects in its cells
            import pickle

            return pickle.loads(pickle.dumps(value, 5))  # noqa: S301  our own bytes of a moment ago
        copied = copy.deepcopy(value, memo)
        may_lose = not _keeps_attributes(kind) or kind in dispatch_table
        if copied is value:
            if _states(value) and not is_immutable(value):
                raise CacheCodecError(f"{kind.__qualname__} has attributes and cannot be copied: it hands out itself")
        elif may_lose and list(map(dict.keys, _states(copied))) != list(map(dict.keys, _states(value))):
            raise CacheCodecError(f"{kind.__qualname__} loses attributes when it is copied")
    except CacheCodecError:
        raise
    except Exception as error:  # __deepcopy__, __reduce__ and state are user code
        raise CacheCodecError(f"{kind.__qualname__} cannot be copied ({type(error).__name__})") from error
    return copied


@lru_cache(maxsize=256)  # comparing them takes as long as a third of the copy of a small pydantic model
def _keeps_attributes(kind: type) -> bool:
    """Whether nothing but `object`, or pydantic, says how its instances are copied; or whether they have no attributes."""
    if not kind.__dictoffset__ and not kind.__flags__ & _HEAP_TYPE:
        return True
    return all(
        base.__module__ == "pydantic.main" or (base.__flags__ & _HEAP_TYPE and vars(base).keys().isdisjoint(_COPY_HOOKS))
        for base in kind.__mro__[:-1]
    )


def _states(value: object) -> list[dict[str, Any]]:
    """The instance's attributes, those in slots in a dict of their own; a class over one written in C may forget them when it
    copies."""
    found = object.__getstate__(value)
    return [state for state in (found if isinstance(found, tuple) else (found,)) if state]
