"""Results of SDKs' calls as stored data: the JSON that came, read again by the class that it became.

The OpenAI and Anthropic SDKs make pydantic models of what a server says.  A model is stored as the JSON of the fields that were
set, if its class makes an equal one of that: the same types, fields that were set and extra fields all the way down.  That
is looked at when it is written.  SDKs are lenient and make objects that their own classes refuse (a field missing, an unknown
kind); these are stored by their attributes, like the models of other packages, and the models inside them as JSON again.

JSON outlives a new version of the SDK, whose classes read it as they read what a server says; attributes do not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from codomyrmex_cache._sdk import PACKAGES
from codomyrmex_cache._tagged import Recipe

__all__ = ["is_sdk_model", "model_named", "model_recipe", "refit"]


def is_sdk_model(kind: type) -> bool:
    """Whether it is a model of an SDK, and not one of the program's that is derived from it.

    >>> is_sdk_model(int)
    False
    """
    return kind.__module__.partition(".")[0] in PACKAGES and hasattr(kind, "__pydantic_fields__")


def model_named(name: str, packages: tuple[str, ...]) -> type | None:
    """The model of one of the packages that stands in stored data under this name; nothing is imported for it.

    Args:
        name: module and qualified name, as `_rebuild.type_name` gives them.
        packages: roots of modules.

    >>> model_named("os:path", ("openai",)) is None
    True
    """
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in packages:
        return None
    found: Any = sys.modules.get(module)
    path, bracket, _ = path.partition("[")
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    kinds = found.__subclasses__() if bracket and isinstance(found, type) else [found]
    named = [kind for kind in kinds if isinstance(kind, type) and f"{kind.__module__}:{kind.__qualname__}" == name]
    return named[0] if len(named) == 1 and is_sdk_model(named[0]) else None


def model_recipe(kind: Any, attributes: Recipe) -> Recipe:
    """How values of an SDK's model are stored.

    The parts are the JSON and what the object has beside its fields (the number of the request); or the fingerprint of the
    class and the parts that `attributes` gives.

    Args:
        kind: the model.
        attributes: how other packages' models of this kind are stored.
    """
    assert attributes.fill is not None
    fill_attributes = attributes.fill

    def take(value: Any) -> list[Any]:
        text = _json(kind, value)
        if text is None:
            return [attributes.fingerprint, *attributes.take(value)]
        beside = _beside(value)
        return [text, beside] if beside else [text]

    def fill(value: Any, parts: list[Any]) -> None:
        if len(parts) > 2:
            if parts[0] != attributes.fingerprint:
                raise ValueError("the class has another shape than when the value was stored")
            fill_attributes(value, parts[1:])
            return
        made = kind.__pydantic_validator__.validate_json(parts[0])
        kind.__setstate__(value, kind.__getstate__(made))
        if len(parts) == 2:
            value.__dict__.update(parts[1])

    return Recipe(attributes.name, "", take, attributes.make, fill)


def _json(kind: Any, value: Any) -> str | None:
    """The JSON of the fields that were set; `None` if the class would not make the same of it."""
    try:
        written = kind.__pydantic_serializer__.to_json(value, by_alias=True, exclude_unset=True, warnings=False)
        made = kind.__pydantic_validator__.validate_json(written)
        return str(written, "utf-8") if _is_same(made, value, apart=_beside(value)) else None
    except Exception:  # the SDK's own class refuses what the SDK has made; a text that is no UTF-8
        return None


def _beside(value: Any) -> dict[str, Any]:
    """What stands among the fields' values and is none."""
    fields = type(value).__pydantic_fields__
    own: dict[str, Any] = value.__dict__
    return {} if len(own) == len(fields) else {name: item for name, item in own.items() if name not in fields}


def _is_same(one: Any, other: Any, apart: dict[str, Any]) -> bool:
    """Whether nobody could tell them apart; `apart` are attributes of the other that do not count."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is str or kind is int or kind is bool or one is None:
        return bool(one == other)
    if kind is float:
        return repr(one) == repr(other)
    if kind is list:
        return len(one) == len(other) and all(_is_same(mine, its, {}) for mine, its in zip(one, other, strict=True))
    if kind is dict:
        return list(one) == list(other) and all(_is_same(item, other[name], {}) for name, item in one.items())
    if not is_sdk_model(kind) or one.__pydantic_private__ or other.__pydantic_private__:
        return False
    if one.__pydantic_fields_set__ != other.__pydantic_fields_set__ or not _is_same(
        one.__pydantic_extra__, other.__pydantic_extra__, {}
    ):
        return False
    held = {name: item for name, item in other.__dict__.items() if name not in apart} if apart else other.__dict__
    return _is_same(one.__dict__, held, {})


_PARSED = (("parsed", "content"), ("parsed", "text"), ("parsed_output", "text"), ("parsed_arguments", "arguments"))
"""Where the SDKs put what they parsed, and what they parsed it from."""


def refit(result: Any, kinds: Iterable[Any]) -> Any:
    """The result with what was parsed parsed anew, where it is of a class that has been defined again since.

    A notebook that runs a cell twice has two classes that nothing but identity tells apart; stored objects are of the first.

    Args:
        result: this caller's own.
        kinds: the classes that this call names.
    """
    by_name = {repr(kind): kind for kind in kinds}
    waiting = [result]
    while waiting:
        item = waiting.pop()
        if type(item) is list:
            waiting.extend(item)
        elif is_sdk_model(type(item)):
            held = item.__dict__
            for parsed, text in _PARSED:
                kind = by_name.get(repr(type(held.get(parsed))))
                if kind is not None and type(held[parsed]) is not kind and type(held.get(text)) is str:
                    with suppress(Exception):  # validators are the user's code
                        held[parsed] = sys.modules["pydantic"].TypeAdapter(kind).validate_json(held[text])
            waiting.extend(held.values())
    return result
