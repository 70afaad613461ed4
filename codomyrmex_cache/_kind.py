"""What kind of function it is, without `inspect` for a plain one: 5 ms of the first call in a process."""

from __future__ import annotations

from types import FunctionType
from typing import Any, NamedTuple

from codomyrmex_cache._sdk import call_of

__all__ = ["Kind", "kind_of"]

_GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x20, 0x80, 0x200
"""CPython's flags of code, as in `inspect`."""


class Kind(NamedTuple):
    """By what a function says of itself.

    Args:
        coroutine: its calls give coroutines.
        generator: they give generators.
        async_generator: they give asynchronous generators.
        hinted: what it wraps is a coroutine function, though it is none.
    """

    coroutine: bool
    generator: bool
    async_generator: bool
    hinted: bool


def kind_of(function: Any) -> Kind:
    """The kind of any callable."""
    if type(function) is FunctionType and not vars(function):  # neither marked as another kind nor a wrapper
        flags = function.__code__.co_flags
        return Kind(bool(flags & _COROUTINE), bool(flags & _GENERATOR), bool(flags & _ASYNC_GENERATOR), hinted=False)
    from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, unwrap

    coroutine = iscoroutinefunction(function) or iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004
    hinted = not coroutine and iscoroutinefunction(unwrap(function))
    if hinted and call_of(function) is not None:  # the SDK's wrapper checks the arguments and hands the coroutine on
        coroutine, hinted = True, False
    return Kind(coroutine, isgeneratorfunction(function), isasyncgenfunction(function), hinted)
