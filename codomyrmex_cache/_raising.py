"""Exceptions as data: a copy for each caller, and a form that can be stored and raised again.

A stored exception is what it is told by, its class's name, its arguments and its attributes, and never its traceback, whose
frames would keep every local variable alive.  It is raised again only as a class that the decorator's `errors=` names, or a
subclass of one that this program has defined: nothing is imported because stored bytes say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from codomyrmex_cache.errors import CacheCodecError

__all__ = ["own_copy", "retold", "told"]

Told = tuple[str, str, tuple[Any, ...], dict[str, Any]]
"""Module, qualified name, arguments, attributes (notes among them)."""


def own_copy(error: Exception) -> Exception:
    """The same exception for another caller, so that tracebacks and notes do not pile up on one object.

    One that would not come out whole (its class keeps state of its own in C or in slots) is shared.
    """
    try:
        twin = _rebuilt(type(error), *told(error)[2:])
    except CacheCodecError:
        return error
    if hasattr(error, "__notes__"):
        twin.__notes__ = list(error.__notes__)
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return twin


def told(error: Exception) -> Told:
    """What the exception can be made from again.

    Raises:
        CacheCodecError: it cannot.
    """
    kind = type(error)
    try:
        state = dict(error.__dict__)
        reduce = _native(kind).__reduce__  # a class's own may be made for pickle, which calls `__init__`
        reduced: Any = reduce(error)
        arguments = tuple(reduced[1])
        twin = _rebuilt(kind, arguments, state)
        whole = reduced[0] is kind and reduce(twin)[1:] == reduced[1:] and not _has_slots(kind)
    except Exception as problem:  # constructors, `__reduce__` and `__eq__` are user code
        raise CacheCodecError(f"{kind.__qualname__} cannot be raised again ({type(problem).__name__})") from problem
    if not whole:
        raise CacheCodecError(f"{kind.__qualname__} cannot be raised again from its arguments and attributes")
    return kind.__module__, kind.__qualname__, arguments, state


def retold(form: Any, kinds: Iterable[type[Exception]]) -> Exception:
    """The exception that `told` took apart, if its class is one of these or derived from one.

    Raises:
        CacheCodecError: it is not, or no longer.
    """
    try:
        module, name, arguments, state = form
        kind = next(kind for kind in _with_subclasses(kinds) if (kind.__module__, kind.__qualname__) == (module, name))
        return _rebuilt(kind, tuple(arguments), state)
    except Exception as problem:  # no such class (StopIteration), another form, a constructor that changed
        raise CacheCodecError(f"a stored exception cannot be raised again ({type(problem).__name__})") from problem


def _rebuilt(kind: type[Exception], arguments: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    """Without `__init__`, whose parameters need not be what it passed on; unless the class is one written in C alone."""
    native = _native(kind)
    error: Exception = kind.__new__(kind, *arguments) if kind.__new__ is native.__new__ else native.__new__(kind, *arguments)
    native.__init__(error, *arguments)
    error.__dict__.update(state)
    return error


def _native(kind: type[Exception]) -> type[Exception]:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _has_slots(kind: type) -> bool:
    return any("__slots__" in vars(base) and vars(base)["__slots__"] for base in kind.__mro__ if base.__module__ != "builtins")


def _with_subclasses(kinds: Iterable[type[Exception]]) -> Iterable[type[Exception]]:
    waiting, seen = list(kinds), set()
    while waiting:
        kind = waiting.pop()
        if kind not in seen:
            seen.add(kind)
            yield kind
            waiting.extend(type.__subclasses__(kind))
