"""Which classes a program names: the only ones that stored data may be made into.

They come from what a function says it returns and from explicit lists, with all classes to be met inside them: in the
arguments of generics, in unions and aliases, and in the annotations of fields.  Stored bytes tell a class's name, and it is
looked up here and nowhere else.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from codomyrmex_cache._arrays import array_recipe, concrete_scalars
from codomyrmex_cache._models import is_sdk_model, model_named
from codomyrmex_cache._rebuild import annotations_of, field_names, recipe_for, type_name
from codomyrmex_cache._sdk import call_of
from codomyrmex_cache._tagged import Recipe

__all__ = ["NO_TYPES", "Types", "types_of"]


class Types:
    """Classes whose values a safe codec may write and make again.

    What is not a class is taken as an annotation, and gives the classes in it.  Classes whose values cannot be made again
    exactly are left out.  Annotations are looked at when the first value is, so that a function may name classes that
    are defined further down.

    Args:
        named: classes and annotations.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Order:
    ...     number: int
    >>> sorted(kind.__name__ for kind in Types(list[Order], int))
    ['Order']
    """

    __slots__ = ("_by_name", "_functions", "_kinds", "_named", "_packages", "_recipes")

    def __init__(self, *named: Any) -> None:
        self._named: tuple[Any, ...] = named
        self._functions: tuple[Callable[..., Any], ...] = ()
        self._packages: tuple[str, ...] = ()
        self._kinds: frozenset[type] | None = None
        self._by_name: dict[str, type] = {}
        self._recipes: dict[type, Recipe | None] = {}

    @classmethod
    def of_return(cls, function: Callable[..., Any]) -> Types:
        """The classes in what the function is annotated to return; none where that cannot be found out.

        Of a method of an SDK's client these are all models of the SDK, as far as they have been imported: that is told without
        looking through hundreds of annotations.

        >>> from uuid import SafeUUID
        >>> def safety() -> list[SafeUUID]: ...
        >>> [kind.__name__ for kind in Types.of_return(safety)]
        ['SafeUUID']
        """
        types = cls()
        call = call_of(function)
        types._packages = () if call is None else (call.package,)
        types._functions = (function,)
        return types

    def __or__(self, other: Types) -> Types:
        """All classes of both."""
        types = Types(*self._named, *other._named)
        types._functions = (*self._functions, *other._functions)
        types._packages = (*self._packages, *other._packages)
        return types

    def __iter__(self) -> Iterator[type]:
        return iter(self._all())

    def __bool__(self) -> bool:
        return bool(self._all())

    def of(self, kind: type) -> Recipe | None:
        """How values of exactly this class are made again, if it is one of these."""
        try:
            return self._recipes[kind]
        except KeyError:
            name = type_name(kind)
            if model_named(name, self._packages) is not kind and (kind not in self._all() or self._by_name[name] is not kind):
                return None  # not kept: a class that is not ours may be a short-lived one
            recipe = self._recipes[kind] = array_recipe(kind) or recipe_for(kind)
            return recipe

    def named(self, name: str) -> Recipe | None:
        """How values of the class that stands under this name are made again."""
        kind = model_named(name, self._packages)
        if kind is None:
            self._all()
            kind = self._by_name.get(name)
        return None if kind is None else self.of(kind)

    def _all(self) -> frozenset[type]:
        if self._kinds is None:
            kinds = types_of((*self._named, *map(_returned, self._functions)))
            self._by_name = _unambiguous(kinds)
            self._kinds = kinds  # last: its presence says that the rest is there
        return self._kinds


NO_TYPES = Types()
"""Names no class."""


def _unambiguous(kinds: Iterable[type]) -> dict[str, Any]:
    """Classes by name; under a name that two of them have, none is found."""
    by_name: dict[str, Any] = {}
    for kind in kinds:
        name = type_name(kind)
        by_name[name] = None if name in by_name else kind
    return by_name


_MOST_OF_AN_ALIAS = 50
"""Sets of arguments for one generic `type` statement; each makes new objects, and one that leads to itself has no end."""

# -- annotations -----------------------------------------------------------------------------------------------------


def types_of(annotation: Any) -> frozenset[type]:
    """The classes in an annotation, and in their fields, whose values can be made again exactly.

    Args:
        annotation: a class, any form of annotation, or a tuple or list of these.

    >>> from uuid import SafeUUID
    >>> types_of(dict[str, SafeUUID | None]) == {SafeUUID}
    True
    """
    found: set[type] = set()
    waiting: list[Any] = [annotation]
    seen: dict[int, Any] = {}  # by identity, and kept: not all that stands in annotations has a hash
    aliases = Counter[int]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        alias = _alias(part)
        aliases[id(alias)] += alias is not None
        if aliases[id(alias)] > _MOST_OF_AN_ALIAS:
            continue
        try:
            found.update(_rebuildable(part))
            waiting.extend(_inside(part))
        except Exception:  # noqa: S112  aliases and generics of other packages are anybody's code: no types
            continue
    return frozenset(found)


def _alias(part: Any) -> Any:
    """The `type` statement's name that the part is, or is made from."""
    alias = get_origin(part) or part
    return alias if type(alias).__name__ == "TypeAliasType" else None


def _is_class(part: Any) -> bool:
    return issubclass(type(part), type) and get_origin(part) is None


def _rebuildable(part: Any) -> list[type]:
    if not _is_class(part):
        return [type(part)] if isinstance(part, Enum) else []  # Literal[Color.RED]
    kinds = concrete_scalars(part)
    return kinds or ([part] if array_recipe(part) or recipe_for(part) else [])


def _inside(part: Any) -> Iterable[Any]:
    if isinstance(part, (tuple, list)):  # a namedtuple's fields are found from its class; the parameters of a Callable
        return part
    if _is_class(part):
        if is_sdk_model(part):  # an SDK says that it gives `Parsed[T]`, and makes objects of the bare class
            return (part.__pydantic_generic_metadata__["origin"], *_fields(part))
        return _fields(part) if field_names(part) is not None or is_typeddict(part) else ()
    if hasattr(part, "__supertype__"):
        return (part.__supertype__,)
    alias = _alias(part)
    if alias is not None:
        return (_meant(alias, get_args(part)), *get_args(part))
    if type(part).__name__ in ("TypeVar", "ParamSpec"):
        return (part.__bound__, *getattr(part, "__constraints__", ()))
    return (get_origin(part), *get_args(part))


def _meant(alias: Any, arguments: tuple[Any, ...]) -> Any:
    """What a `type` statement's name stands for, with these arguments."""
    given = dict(zip(alias.__type_params__, arguments, strict=False))
    open_parameters = getattr(alias.__value__, "__parameters__", ())
    if not given or not open_parameters:
        return alias.__value__
    return alias.__value__[tuple(given[parameter] for parameter in open_parameters)]


def _fields(kind: type) -> Iterator[Any]:
    models: Any = getattr(kind, "__pydantic_fields__", {})
    yield from [info.annotation for info in models.values()]
    for part in kind.__mro__:
        around = vars(sys.modules[part.__module__]) if part.__module__ in sys.modules else {}
        for annotation in annotations_of(part).values():
            yield _resolved(annotation, around, vars(part))


def _resolved(annotation: Any, around: dict[str, Any], inside: Any) -> Any:
    """The annotation with its texts evaluated, as the interpreter would have done; `None` where that fails."""
    try:
        holder = SimpleNamespace(__annotations__={"it": annotation})
        return get_type_hints(holder, around, dict(inside), include_extras=True)["it"]
    except Exception:  # names known to type checkers only, texts of another kind
        return None


def _returned(function: Any) -> Any:
    """The annotation of what a function, a method, a partial call or a class gives."""
    try:
        while True:
            inner = function.func if isinstance(function, partial) else getattr(function, "__func__", function)
            if hasattr(inner, "__wrapped__"):
                from inspect import unwrap

                inner = unwrap(inner)
            if inner is function:
                break
            function = inner
        if _is_class(function):
            return function
        if not hasattr(function, "__globals__"):
            function = type(function).__call__
        annotation = annotations_of(function).get("return")
        inside = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
        return _resolved(annotation, function.__globals__, inside)
    except Exception:  # callables of other packages are anybody's code
        return None
