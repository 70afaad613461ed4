"""Signatures as source text, from which the binder and the wrapper of a function are compiled once.

`inspect.Signature.bind` costs 8-11 us a call; a function that *has* the signature binds in the interpreter's own
call sequence.  Binding fills in defaults, so position, keyword, order and omitted defaults agree.

Only a signature that is known to be true is used.  A wrapper made with `functools.wraps` shows the signature of
what it wraps but may treat arguments as it likes, so it is bound by its own parameters, which tell calls apart more often than
needed (a miss) but never merge two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from codomyrmex_cache._record import record

__all__ = ["RESERVED", "Shape", "compile_function", "shape_of"]

RESERVED = "_cached_"
"""Names of generated code begin with this; a function with such a parameter is bound as `*args, **kwargs`."""

_POSITIONAL_ONLY, _PLAIN, _VAR_POSITIONAL, _KEYWORD_ONLY, _VAR_KEYWORD = range(5)
"""The kinds of parameters, numbered as in `inspect`, which a plain function does without: it takes 5 ms to import."""

_HAS_VAR_POSITIONAL, _HAS_VAR_KEYWORD = 0x04, 0x08
"""CPython's flags of code."""

_REQUIRED = object()
"""For the default of a parameter that has none."""


class _Parameter(NamedTuple):
    name: str
    kind: int
    default: object = _REQUIRED


_Parameters = tuple[_Parameter, ...]

_RAW = (_Parameter("args", _VAR_POSITIONAL), _Parameter("kwargs", _VAR_KEYWORD))


@record(frozen=True, slots=True)
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
    def default_of(self) -> dict[str, object]:
        """The default of each parameter that has one."""
        return {self.names[int(name.removeprefix(f"{RESERVED}default"))]: value for name, value in self.defaults.items()}

    @property
    def bound(self) -> str:
        """The text of the tuple of all parameters."""
        return "(" + "".join(f"{name}, " for name in self.names) + ")"


def shape_of(function: Callable[..., object]) -> Shape:
    """The shape to bind calls of `function` with."""
    parameters = _true_parameters(function)
    if parameters is None:
        parameters = _RAW
    if any(parameter.name.startswith(RESERVED) for parameter in parameters):
        parameters = _RAW
    declared, passed, unpacked = [], [], []
    defaults: dict[str, object] = {}
    previous: Any = None
    for index, parameter in enumerate(parameters):
        name, kind = parameter.name, parameter.kind
        if previous is _POSITIONAL_ONLY and kind is not _POSITIONAL_ONLY:
            declared.append("/")
        if kind is _KEYWORD_ONLY and previous not in (_KEYWORD_ONLY, _VAR_POSITIONAL):
            declared.append("*")
        stars = "*" if kind is _VAR_POSITIONAL else "**" if kind is _VAR_KEYWORD else ""
        text = stars + name
        if parameter.default is not _REQUIRED:
            text += f"={RESERVED}default{index}"
            defaults[f"{RESERVED}default{index}"] = parameter.default
        declared.append(text)
        keyword = f"{name}=" if kind is _KEYWORD_ONLY else stars
        passed.append(f"{keyword}{name}")
        unpacked.append(f"{keyword}{RESERVED}bound[{index}]")
        previous = kind
    if previous is _POSITIONAL_ONLY:
        declared.append("/")
    return Shape(
        names=tuple(parameter.name for parameter in parameters),
        declaration=", ".join(declared),
        arguments=", ".join(passed),
        unpacked=", ".join(unpacked),
        defaults=defaults,
        variadic=any("*" in text and len(text) > 1 for text in declared),
        keywords=next((item.name for item in parameters if item.kind is _VAR_KEYWORD), None),
    )


def _true_parameters(function: Callable[..., object]) -> _Parameters | None:
    if isinstance(function, MethodType):
        unbound = _true_parameters(function.__func__)
        return None if unbound is None else _without_first(unbound)
    if isinstance(function, partial):
        inner = function.func
        plain = isinstance(inner, FunctionType) and not {"__wrapped__", "__signature__"} & set(inner.__dict__)
        return _inspected(function) if plain else None
    if not isinstance(function, FunctionType) or "__signature__" in function.__dict__:
        return None
    by_partialmethod = {"_partialmethod", "__partialmethod__"} & set(function.__dict__)
    return _inspected(function) if by_partialmethod else _declared(function)


def _declared(function: FunctionType) -> _Parameters:
    """The parameters of the function's own code."""
    code = function.__code__
    names, positional = code.co_varnames, code.co_argcount
    defaults, by_keyword = function.__defaults__ or (), function.__kwdefaults__ or {}
    given = (_REQUIRED,) * (positional - len(defaults)) + defaults
    kinds = [_POSITIONAL_ONLY if index < code.co_posonlyargcount else _PLAIN for index in range(positional)]
    parameters = [_Parameter(*each) for each in zip(names, kinds, given, strict=False)]
    end = positional + code.co_kwonlyargcount
    if code.co_flags & _HAS_VAR_POSITIONAL:
        parameters.append(_Parameter(names[end], _VAR_POSITIONAL))
    parameters += [_Parameter(name, _KEYWORD_ONLY, by_keyword.get(name, _REQUIRED)) for name in names[positional:end]]
    if code.co_flags & _HAS_VAR_KEYWORD:
        parameters.append(_Parameter(names[end + bool(code.co_flags & _HAS_VAR_POSITIONAL)], _VAR_KEYWORD))
    return tuple(parameters)


def _inspected(function: Callable[..., object]) -> _Parameters:
    from inspect import Parameter, signature

    return tuple(
        _Parameter(name, int(each.kind), _REQUIRED if each.default is Parameter.empty else each.default)
        for name, each in signature(function, follow_wrapped=False).parameters.items()
    )


def _without_first(parameters: _Parameters) -> _Parameters | None:
    if not parameters or parameters[0].kind in (_KEYWORD_ONLY, _VAR_KEYWORD):
        return None
    return parameters if parameters[0].kind == _VAR_POSITIONAL else parameters[1:]


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
