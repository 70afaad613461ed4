"""Signatures as source text, from which the binder and the wrapper of a function are compiled once.

`inspect.Signature.bind` costs 8-11 us a call; a function that *has* the signature binds in the interpreter's own
call sequence.  Binding fills in defaults, so position, keyword, order and omitted defaults agree.

Only a signature that is known to be true is used.  A wrapper made with `functools.wraps` shows the signature of
what it wraps but may treat arguments as it likes, so it is bound by its own parameters, which tell calls apart more often than
needed (a miss) but never merge two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from inspect import Parameter
from types import CodeType, FunctionType, MethodType
from typing import Any

__all__ = ["RESERVED", "Shape", "compile_function", "shape_of"]

RESERVED = "_cached_"
"""Names of generated code begin with this; a function with such a parameter is bound as `*args, **kwargs`."""

_RAW = inspect.Signature(
    [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)],
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A signature in the four forms generated code needs.

    Args:
        names: parameter names, in order; the bound tuple has one place for each.
        declaration: the text between the parentheses of a `def`.
        arguments: the text that passes the bound names on to the function.
        unpacked: the same for a bound tuple called `_cached_bound`.
        defaults: values of the default names used in `declaration`.
        variadic: whether `*args` or `**kwargs` occur.
        keywords: the name of the `**kwargs` parameter, if there is one.
    """

    names: tuple[str, ...]
    declaration: str
    arguments: str
    unpacked: str
    defaults: dict[str, object]
    variadic: bool
    keywords: str | None

    @property
    def bound(self) -> str:
        """The text of the tuple of all parameters."""
        return "(" + "".join(f"{name}, " for name in self.names) + ")"


def shape_of(function: Callable[..., object]) -> Shape:
    """The shape to bind calls of `function` with."""
    parameters = (_true_signature(function) or _RAW).parameters.values()
    if any(parameter.name.startswith(RESERVED) for parameter in parameters):
        parameters = _RAW.parameters.values()
    declared, passed, unpacked = [], [], []
    defaults: dict[str, object] = {}
    previous: Any = None
    for index, parameter in enumerate(parameters):
        name, kind = parameter.name, parameter.kind
        if previous is Parameter.POSITIONAL_ONLY and kind is not Parameter.POSITIONAL_ONLY:
            declared.append("/")
        if kind is Parameter.KEYWORD_ONLY and previous not in (Parameter.KEYWORD_ONLY, Parameter.VAR_POSITIONAL):
            declared.append("*")
        stars = "*" if kind is Parameter.VAR_POSITIONAL else "**" if kind is Parameter.VAR_KEYWORD else ""
        text = stars + name
        if parameter.default is not Parameter.empty:
            text += f"={RESERVED}default{index}"
            defaults[f"{RESERVED}default{index}"] = parameter.default
        declared.append(text)
        keyword = f"{name}=" if kind is Parameter.KEYWORD_ONLY else stars
        passed.append(f"{keyword}{name}")
        unpacked.append(f"{keyword}{RESERVED}bound[{index}]")
        previous = kind
    if previous is Parameter.POSITIONAL_ONLY:
        declared.append("/")
    return Shape(
        names=tuple(parameter.name for parameter in parameters),
        declaration=", ".join(declared),
        arguments=", ".join(passed),
        unpacked=", ".join(unpacked),
        defaults=defaults,
        variadic=any("*" in text and len(text) > 1 for text in declared),
        keywords=next((item.name for item in parameters if item.kind is Parameter.VAR_KEYWORD), None),
    )


def _true_signature(function: Callable[..., object]) -> inspect.Signature | None:
    if isinstance(function, MethodType):
        unbound = _true_signature(function.__func__)
        return None if unbound is None else _without_first(unbound)
    if isinstance(function, partial):
        inner = function.func
        plain = isinstance(inner, FunctionType) and not {"__wrapped__", "__signature__"} & set(inner.__dict__)
        return inspect.signature(function) if plain else None
    if isinstance(function, FunctionType) and "__signature__" not in function.__dict__:
        return inspect.signature(function, follow_wrapped=False)
    return None


def _without_first(signature: inspect.Signature) -> inspect.Signature | None:
    first, *rest = signature.parameters.values() or (None,)
    if first is None or first.kind is Parameter.KEYWORD_ONLY or first.kind is Parameter.VAR_KEYWORD:
        return None
    return signature if first.kind is Parameter.VAR_POSITIONAL else signature.replace(parameters=rest)


@lru_cache(maxsize=512)
def _compile(source: str) -> CodeType:
    return compile(source, "<codomyrmex_cache>", "exec")


def compile_function(source: str, name: str, namespace: dict[str, object]) -> Callable[..., Any]:
    """Run `source`, which defines `_cached_function`, and give the function its name for tracebacks."""
    scope = dict(namespace)
    exec(_compile(source), scope)  # noqa: S102  our own template; of the user's only identifiers
    function: FunctionType = scope[f"{RESERVED}function"]  # type: ignore[assignment]
    function.__code__ = function.__code__.replace(co_name=name)
    return function
