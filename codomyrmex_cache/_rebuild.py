"""Values of named classes, taken apart and made again without running a line of the class's own.

An object is its attributes: those in its slots, read through the slots' descriptors, and those in its `__dict__`.  It is
made by `object.__new__` and given them back the same way, so that no `__init__`, validator, property or `__setattr__` can
change what was stored.  Classes that ask for more than that are left to pickle: their own reduction or state, a
constructor in C, a finalizer, a metaclass of unknown ways.
"""

from __future__ import annotations

import copyreg
import re
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterable
from enum import EnumType, Flag
from hashlib import blake2b
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

from codomyrmex_cache._models import is_sdk_model, model_recipe
from codomyrmex_cache._plain import safe_dumps
from codomyrmex_cache._tagged import Recipe
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["annotations_of", "field_names", "fingerprint", "recipe_for", "type_name"]


def type_name(kind: type) -> str:
    """Under which name a class stands in stored data; a spawned child calls the program's main module otherwise."""
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}:{kind.__qualname__}"


def recipe_for(kind: type) -> Recipe | None:
    """How to rebuild values of `kind` exactly, if that can be done: dataclasses, attrs classes, pydantic models, enum
    classes and namedtuples."""
    if type(kind) is EnumType:
        return _enum_recipe(kind)
    if field_names(kind) is None or not _is_tame(kind):
        return None
    if issubclass(kind, tuple):
        return _namedtuple_recipe(kind)
    base = _pydantic_base()
    if base is not None and issubclass(kind, base):
        return _model_recipe(kind, base)
    return _object_recipe(kind)


def field_names(kind: type) -> tuple[str, ...] | None:
    """The fields that the class declares; `None` for a class that is not of one of the known kinds."""
    base = _pydantic_base()
    if base is not None and issubclass(kind, base):
        return tuple(kind.__pydantic_fields__)  # type: ignore[attr-defined]
    if issubclass(kind, tuple):
        fields = getattr(kind, "_fields", None)
        return fields if type(fields) is tuple and all(type(name) is str for name in fields) else None
    declared = getattr(kind, "__dataclass_fields__", None)
    if type(declared) is dict:
        return tuple(declared)
    attributes = getattr(kind, "__attrs_attrs__", None)
    return tuple(attribute.name for attribute in attributes) if isinstance(attributes, tuple) else None


def _pydantic_base() -> Any:
    return getattr(sys.modules.get("pydantic.main"), "BaseModel", None)


# -- which classes ---------------------------------------------------------------------------------------------------


def _given_by(method: object, *modules: str) -> bool:
    return isinstance(method, FunctionType) and method.__globals__.get("__name__") in modules


def _is_tame(kind: Any) -> bool:
    """Whether attributes are all that there is to the class's values."""
    metaclass, base = type(kind), _pydantic_base()
    if metaclass not in (type, ABCMeta, type(base)) and metaclass.__module__ not in ("typing", "typing_extensions"):
        return False
    root = tuple if issubclass(kind, tuple) else object
    ways = ("__reduce_ex__", "__reduce__", "__getattribute__")
    if any(getattr(kind, way) is not getattr(root, way) for way in ways) or hasattr(kind, "__del__"):
        return False
    if kind in copyreg.dispatch_table or not all(map(_has_own_dict, kind.__mro__)):
        return False
    return _is_tame_tuple(kind) if root is tuple else _is_tame_object(kind, base)


def _has_own_dict(part: type) -> bool:
    """Whether `__dict__`, if there is one, is the interpreter's own descriptor and not a property of the class."""
    return type(vars(part).get("__dict__")) in (type(None), GetSetDescriptorType)


def _is_tame_tuple(kind: Any) -> bool:
    others = hasattr(kind, "__getnewargs_ex__") or hasattr(kind, "__setstate__")
    own = kind.__getstate__ is object.__getstate__ and _given_by(kind.__getnewargs__, "collections")
    return own and not others


def _is_tame_object(kind: Any, base: Any) -> bool:
    if kind.__new__ is not object.__new__ or hasattr(kind, "__getnewargs__") or hasattr(kind, "__getnewargs_ex__"):
        return False
    get, put = kind.__getstate__, getattr(kind, "__setstate__", None)
    if base is not None and issubclass(kind, base):
        return get is base.__getstate__ and put is base.__setstate__
    makers = ("dataclasses", "attr._make", "codomyrmex_cache._record")
    return (get is object.__getstate__ or _given_by(get, *makers)) and (put is None or _given_by(put, *makers))


# -- shapes ----------------------------------------------------------------------------------------------------------


def annotations_of(owner: Any) -> dict[str, Any]:
    """The own annotations of a class or function, as written."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(owner, format=annotationlib.Format.FORWARDREF)
    from inspect import get_annotations

    return get_annotations(owner)


def _annotation_texts(kind: type) -> dict[str, str]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(kind, format=annotationlib.Format.STRING)
    return {name: _text(annotation) for name, annotation in annotations_of(kind).items()}


def _text(annotation: object) -> str:
    if isinstance(annotation, str):
        return annotation
    if type(annotation) is type:
        return f"{annotation.__module__}.{annotation.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(annotation))  # an address is another one in each process


def fingerprint(kind: type, *more: object) -> str:
    """Of the names of the fields and the texts of their annotations."""
    bases = [part for part in kind.__mro__ if part.__module__ not in ("builtins", "typing", "pydantic.main")]
    told = repr((field_names(kind), [sorted(_annotation_texts(part).items()) for part in bases], more))
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _slots(kind: type) -> list[MemberDescriptorType]:
    """The descriptors of all slots; a name may be used in several classes of the line, each with a place of its own."""
    return [member for part in kind.__mro__ for member in vars(part).values() if type(member) is MemberDescriptorType]


# -- objects ---------------------------------------------------------------------------------------------------------

_ALL = 0
"""Stands for the list of keys: every slot is set, and `__dict__` has the declared fields in their order."""


def _own_dict(value: object) -> dict[str, Any]:
    try:
        found: dict[str, Any] = object.__getattribute__(value, "__dict__")
        return found
    except AttributeError:  # slots only
        return {}


def _object_recipe(kind: type) -> Recipe:
    """Dataclasses and attrs classes.  The parts are the list of keys, integers for slots and texts for `__dict__`, and a
    value for each."""
    slots = _slots(kind)
    in_slots = {slot.__name__ for slot in slots}
    usual = [name for name in field_names(kind) or () if name not in in_slots]
    usual = [name for name in usual if not _is_class_level(kind, name)]
    count = len(slots)

    def take(value: Any) -> list[Any]:
        state = dict(_own_dict(value))
        held = _held(slots, value)
        values = [*held.values(), *state.values()]
        if len(held) == count and list(state) == usual:
            return [_ALL, *values]
        return [[*held, *_texts(state)], *values]

    def fill(value: Any, parts: list[Any]) -> None:
        keys = [*range(count), *usual] if parts[0] == _ALL else parts[0]
        state: dict[str, Any] = {}
        for key, part in zip(keys, parts[1:], strict=True):
            if type(key) is str:
                state[key] = part
            else:
                slots[key].__set__(value, part)
        if state:
            object.__getattribute__(value, "__dict__").update(state)

    names = [slot.__name__ for slot in slots]
    return Recipe(type_name(kind), fingerprint(kind, names, usual), take, _maker(kind), fill)


def _is_class_level(kind: type, name: str) -> bool:
    """`ClassVar` and `InitVar` are listed among a dataclass's fields, but no instance has them."""
    field = getattr(kind, "__dataclass_fields__", {}).get(name)
    return field is not None and repr(field._field_type) != "_FIELD"


def _held(slots: list[MemberDescriptorType], value: object) -> dict[int, Any]:
    found = {}
    for number, slot in enumerate(slots):
        try:
            found[number] = slot.__get__(value)
        except AttributeError:  # never set, or deleted
            continue
    return found


def _texts(names: Iterable[Any]) -> list[str]:
    listed = list(names)
    if any(type(name) is not str for name in listed):
        raise CacheCodecError("an attribute's name is not a text")
    return listed


def _maker(kind: type) -> Callable[[list[Any]], Any]:
    return lambda _: object.__new__(kind)


def _model_recipe(kind: type, base: Any) -> Recipe | None:
    """Pydantic models.  The parts are the keys of `__dict__`, the fields that were set (`_ALL` where these are all
    fields), extra and private attributes, and a value for each key."""
    if len(_slots(kind)) != len(_slots(base)):
        return None
    usual = list(field_names(kind) or ())
    names = set(usual)

    def take(value: Any) -> list[Any]:
        state = base.__getstate__(value)
        own = dict(state["__dict__"])
        were_set = state["__pydantic_fields_set__"]
        keys = _ALL if list(own) == usual else _texts(own)
        told = _ALL if type(were_set) is set and were_set == names else were_set
        return [keys, told, state["__pydantic_extra__"], state["__pydantic_private__"], *own.values()]

    def fill(value: Any, parts: list[Any]) -> None:
        keys, told, extra, private, *values = parts
        state = {
            "__dict__": dict(zip(usual if keys == _ALL else _texts(keys), values, strict=True)),
            "__pydantic_fields_set__": set(usual) if told == _ALL else told,
            "__pydantic_extra__": extra,
            "__pydantic_private__": private,
        }
        base.__setstate__(value, state)

    recipe = Recipe(type_name(kind), fingerprint(kind), take, _maker(kind), fill)
    return model_recipe(kind, recipe) if is_sdk_model(kind) else recipe


def _namedtuple_recipe(kind: type) -> Recipe:
    size = len(field_names(kind) or ())

    def take(value: Any) -> list[Any]:
        items = list(tuple.__iter__(value))
        if len(items) != size or _own_dict(value):
            raise CacheCodecError(f"this {kind.__qualname__} is more than its fields")
        return items

    def make(parts: list[Any]) -> Any:
        if len(parts) != size:
            raise CacheCodecError(f"{kind.__qualname__} has another number of fields")
        return tuple.__new__(kind, parts)

    return Recipe(type_name(kind), fingerprint(kind), take, make)


# -- enums -----------------------------------------------------------------------------------------------------------


def _told(member: Any) -> str:
    """The member's value as text that is equal exactly for values equal in type and content."""
    return safe_dumps(member._value_).decode("utf-8", "surrogatepass")


def _enum_recipe(kind: Any) -> Recipe:
    """A member is its name, together with its value to see that both still belong together.

    The parts are pairs of name and value: one for a member, and for a combination of flags one for each, after the sum.
    """
    members: dict[str, Any] = kind._member_map_

    def take(value: Any) -> list[Any]:
        name = value._name_
        if members.get(name) is value:
            return [name, _told(value)]
        if not _is_plain_flag(kind) or (made := kind(value._value_))._name_ != name or type(made) is not type(value):
            raise CacheCodecError(f"this {kind.__qualname__} is not one of its members")
        return [value._value_, *(part for flag in Flag.__iter__(value) for part in (flag._name_, _told(flag)))]

    def make(parts: list[Any]) -> Any:
        total = parts[0] if type(parts[0]) is int else None
        pairs = parts if total is None else parts[1:]
        for name, told in zip(pairs[::2], pairs[1::2], strict=True):
            if name not in members or _told(members[name]) != told:
                raise CacheCodecError(f"{kind.__qualname__} has another value for a member than when it was stored")
        return members[pairs[0]] if total is None else _combined(kind, total)

    return Recipe(type_name(kind), "", take, make)


def _is_plain_flag(kind: Any) -> bool:
    """Whether calling the class with a number runs the standard library only."""
    standard: Any = Flag._missing_
    return issubclass(kind, Flag) and kind._missing_.__func__ is standard.__func__


def _combined(kind: Any, total: int) -> Any:
    value: Any = kind(total) if _is_plain_flag(kind) else None
    if type(value) is not kind or value._value_ != total:
        raise CacheCodecError(f"{kind.__qualname__} has no such combination")
    return value
