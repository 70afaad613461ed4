"""Encoding by type: what is not a built-in value.

First match wins: `register`ed types; `__cache_key__`; functions and types of other packages by the rules in `_encoders`
(nothing is imported to recognise them); enums by class, name and value; paths by their parts; subclasses of built-ins by
class, content and state; dataclasses by class and attributes; anything else by class and the state that `__reduce_ex__`
gives (what `copy` and `pickle` rely on).
"""

from __future__ import annotations

import copyreg
import sys
from abc import ABCMeta
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from enum import Enum
from os import urandom
from os.path import basename, splitext
from pathlib import PurePath
from struct import Struct
from types import GetSetDescriptorType, ModuleType
from typing import Any, Protocol
from weakref import WeakSet, ref

from codomyrmex_cache._encoding import BUILT_IN, LATE, RESOLVE, RESOLVED, Encoder, encode_into, encode_plain
from codomyrmex_cache._late import late_classes
from codomyrmex_cache.errors import UnkeyableError

__all__ = [
    "OPEN", "SPECIAL", "dependent_on_encoders", "describe", "is_its_attributes", "leads_to", "module_name", "refuse",
    "register", "type_identity",
]  # fmt: skip

_length = Struct(">Q").pack


class Dependent(Protocol):
    """Who has taken note of how objects are encoded."""

    def encoders_changed(self) -> None: ...


def register(kind: type, encoder: Callable[[Any], object]) -> None:
    """Encode instances of `kind`, and of its subclasses, by their class and what `encoder(instance)` answers.

    Args:
        kind: any class that is not one of the built-in value types.
        encoder: gives back something encodable that tells apart what the functions tell apart.

    >>> class Client:
    ...     def __init__(self, url): self.url = url
    >>> from codomyrmex_cache._encoding import encode
    >>> register(Client, lambda client: client.url)
    >>> encode(Client("a")) == encode(Client("a"))
    True
    """
    _registered.insert(0, (kind, encoder))
    RESOLVED.clear()
    for dependent in list(_dependents):
        dependent.encoders_changed()


_BASES: tuple[type, ...] = (
    int, float, complex, str, bytes, bytearray, list, tuple, OrderedDict, dict, set, frozenset,
    datetime, date, time, timedelta,
)  # fmt: skip
"""What classes may be built over; the more special first."""

_registered: list[tuple[type, Callable[[Any], object]]] = []
_dependents: WeakSet[Dependent] = WeakSet()
_local_tokens: dict[int, tuple[ref[type], bytes]] = {}  # by identity: a metaclass may have its own idea of equality


@contextmanager
def dependent_on_encoders(dependent: Dependent) -> Iterator[Callable[[], bool]]:
    """From now on `dependent` is told when a class is registered; gives a function that says whether none was meanwhile."""
    _dependents.add(dependent)
    before = len(_registered)
    yield lambda: len(_registered) == before


_OWN_STATE = frozenset({
    "__anext__", "__cache_key__", "__dict__", "__getattr__", "__getattribute__", "__getnewargs__", "__getnewargs_ex__",
    "__getstate__", "__new__", "__next__", "__reduce__", "__reduce_ex__",
})  # fmt: skip


def is_its_attributes(kind: type) -> bool:
    """Whether an instance is told by its class and its `__dict__`, which can be read without running code of its own."""
    *bases, last = kind.__mro__
    return (
        type(kind) in (type, ABCMeta)
        and last is object
        and len(bases) > 0
        and all(base.__flags__ & _HEAP_TYPE and not vars(base).get("__slots__") for base in bases)
        and not any(_OWN_STATE & {name for name, item in vars(base).items() if not _is_plain_dict(item)} for base in bases)
        and kind not in copyreg.dispatch_table
        and not any(known in kind.__mro__ for known, _ in _registered)
        and _special(kind) is None
    )


def _is_plain_dict(item: object) -> bool:
    """Whether it is what each class has for its instances' `__dict__`."""
    return type(item) is GetSetDescriptorType


def main_module_name(name: str = "__main__") -> str:
    """The name under which the main module would be imported: its spec's, else its file's stem."""
    main = sys.modules.get(name) or sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    path = getattr(main, "__file__", None)
    return splitext(basename(path))[0] if path else "__main__"


def module_name(name: str | None) -> str:
    """The module's name with `__main__` resolved."""
    return main_module_name(name) if name in ("__main__", "__mp_main__") else str(name)  # the latter in spawned children


_HEAP_TYPE = 1 << 9


def _importable(kind: type) -> bool:
    if not kind.__flags__ & _HEAP_TYPE:  # made in C, once: `function` and its like have no name in a module
        return True
    return leads_to(kind.__module__, kind.__qualname__, kind)


def leads_to(module: str | None, name: str, value: object) -> bool:
    """Whether this name in this module is this very object."""
    found: object = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def type_identity(kind: type) -> tuple[object, ...]:
    """Module and qualified name; a class that these do not lead to (a local one) is itself in this process only."""
    identity = (module_name(kind.__module__), kind.__qualname__)
    if _importable(kind):
        return identity
    known, token = _local_tokens.setdefault(id(kind), (ref(kind), urandom(16)))
    if known() is not kind:  # the identity of a class that is gone
        known, token = _local_tokens[id(kind)] = (ref(kind), urandom(16))
    return (*identity, token)


def _items(tag: bytes, values: list[object], out: bytearray, depth: int) -> None:
    out += tag
    out += _length(len(values))
    for value in values:
        encode_into(value, out, depth + 1)


def _object(tag: bytes, parts: Callable[[Any], object]) -> Encoder:
    """Objects told by their class and something simpler."""

    def encoder(value: object, out: bytearray, depth: int) -> None:
        out += tag
        out += encode_plain(type_identity(type(value)), depth)
        encode_into(parts(value), out, depth + 1)

    return encoder


def _encoder_of(kind: type) -> Encoder:
    late = late_classes()
    BUILT_IN.update({known: LATE[module] for known, module in late.items()})
    if kind in late:
        return BUILT_IN[kind]
    for base in kind.__mro__:
        registered = next((encoder for known, encoder in _registered if known is base), None)
        if registered is not None:
            return _object(b"R", registered)
        if "__cache_key__" in vars(base):
            return _object(b"K", lambda value: value.__cache_key__())
    if issubclass(kind, type):
        return _special(kind) or (lambda value, out, depth: _items(b"C", [type_identity(value)], out, depth))
    if kind is object or hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
        return refuse  # sentinels differ by identity alone; an iterator's content cannot be looked at twice
    special = _special(kind)
    if special is not None:
        return special
    if issubclass(kind, Enum):
        return _enum
    if issubclass(kind, PurePath):
        return _path if kind.__module__.startswith("pathlib") else _object(b"P", lambda value: (value.parts, vars(value)))
    for base in (*_BASES, *late):
        if issubclass(kind, base):
            return _subclass(base)
    is_dataclass = hasattr(kind, "__dataclass_fields__")
    if is_dataclass and not any(_is_native(base) for base in kind.__mro__[:-1]):  # its attributes are all it has
        return _object(b"A", _attributes)
    return _object(b"O", _reduced if _reduces_itself(kind) else lambda value: (_reduced(value), _attributes(value)))


def _is_native(kind: type) -> bool:
    """Whether it may hold more than attributes: made in C, which from 3.12 on shows only in a reduction of its own."""
    return not kind.__flags__ & _HEAP_TYPE or "__reduce__" in vars(kind) or "__reduce_ex__" in vars(kind)


def _reduces_itself(kind: type) -> bool:
    """Whether what says how to reduce it was written for this very class; else it may not know what a subclass added."""
    for base in kind.__mro__[:-1]:
        if {"__reduce_ex__", "__reduce__", "__getstate__"} & set(vars(base)):
            return base is kind and not hasattr(kind, "__attrs_attrs__")  # attrs leaves out what other bases hold
    return True


def _attributes(value: object) -> object:
    """All instance attributes, whatever the class makes of them."""
    state = object.__getstate__(value)
    return _without_volatile(state)


def _without_volatile(state: object) -> object:
    if isinstance(state, dict):
        return {name: item for name, item in state.items() if name not in _VOLATILE} or None
    if isinstance(state, tuple):  # of the dict and of the slots
        return tuple(map(_without_volatile, state))
    return state


def _special(kind: type) -> Encoder | None:
    """The rule for a class, or a base of it, that is known by its module and name."""
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        found = SPECIAL.get((package, base.__name__))
        if found is not None:
            known = kind.__module__.partition(".")[0] == package or package in OPEN
            return found if known else _with_attributes(found)
    return None


def _with_attributes(rule: Encoder) -> Encoder:
    """For a class that somebody else made over the one with the rule."""

    def encoder(value: object, out: bytearray, depth: int) -> None:
        rule(value, out, depth)
        encode_into(_attributes(value), out, depth + 1)

    return encoder


OPEN = {"pandas", "polars"}
"""Packages whose own objects take any attribute; their rules look for them."""


SPECIAL: dict[tuple[str, str], Encoder] = {}
"""By top-level module and class name; filled by `_encoders`, which every user of this module imports."""


def _path(value: PurePath, out: bytearray, depth: int) -> None:
    out += b"p"
    encode_into((type(value).__name__, value.parts), out, depth + 1)  # the class's module differs between Pythons


def _enum(value: Enum, out: bytearray, depth: int) -> None:
    """Class, name and value: an edited value is another argument, one without encoding goes by its name alone."""
    try:
        content = encode_plain(value._value_, depth + 1)
    except Exception:  # any failure of the value's own code; the name still tells members apart
        if value._name_ not in type(value).__members__:
            raise
        content = b""
    out += b"E"
    out += encode_plain(type_identity(type(value)), depth)
    encode_into((value._name_, content), out, depth + 1)


def _subclass(base: type) -> Encoder:
    """A class over a built-in: what the built-in holds, and whatever its state adds."""
    content = _CONTENT.get(base) or BUILT_IN[base]
    state: Callable[[Any], object] = _reduced
    if issubclass(base, (set, frozenset)):
        state = _attributes
    elif issubclass(base, dict):
        state = _reduced_without_items

    def encoder(value: object, out: bytearray, depth: int) -> None:
        out += b"U"
        out += encode_plain(type_identity(type(value)), depth)
        content(value, out, depth + 1)
        encode_into(state(value), out, depth + 1)
        encode_into(_attributes(value), out, depth + 1)

    return encoder


def _as_plain(base: Callable[[Any], Any]) -> Encoder:
    """Content of a subclass, taken out of its hands before its own methods could have a say."""

    def encoder(value: Any, out: bytearray, depth: int) -> None:
        out += encode_plain(base(value), depth)

    return encoder


def _ordered_pairs(value: Any, out: bytearray, depth: int) -> None:
    _items(b"o", list(OrderedDict.items(value)), out, depth)


_CONTENT: dict[type, Encoder] = {
    OrderedDict: _ordered_pairs,
    int: _as_plain(int.__pos__),
    float: _as_plain(float.__pos__),
    str: _as_plain(str.__str__),
    list: _as_plain(lambda value: list(list.__iter__(value))),
    tuple: _as_plain(lambda value: tuple(tuple.__iter__(value))),
    dict: _as_plain(lambda value: dict(dict.items(value))),
    set: _as_plain(lambda value: set(set.__iter__(value))),
    frozenset: _as_plain(lambda value: frozenset(frozenset.__iter__(value))),
}


def _reduced_without_items(value: object) -> object:
    rebuild, arguments, state, _, _ = _reduction(value)
    return rebuild, arguments, state


def _reduced(value: object) -> object:
    """What `copy` and `pickle` rebuild the object from."""
    rebuild, arguments, state, items, pairs = _reduction(value)
    return rebuild, arguments, state, None if items is None else list(items), None if pairs is None else list(pairs)


def _reduction(value: Any) -> tuple[object, object, object, Iterable[object] | None, Iterable[object] | None]:
    """The five parts of the pickle protocol's reduction; the callable told by its name."""
    reducer = copyreg.dispatch_table.get(type(value))
    try:
        reduced = reducer(value) if reducer else value.__reduce_ex__(4)
    except Exception as error:
        raise UnkeyableError(f"{describe(value)} has no state to take a key from ({type(error).__name__})") from error
    if isinstance(reduced, str):  # the name of a global
        module = getattr(value, "__module__", None) or type(value).__module__
        if not leads_to(module, reduced, value):
            raise UnkeyableError(f"{describe(value)} says it is {module}.{reduced}, which is something else")
        return (module_name(module), reduced), None, None, None, None
    rebuild, arguments, state, items, pairs, set_state = (*reduced, None, None, None, None)[:6]
    named = _named(rebuild) if set_state is None else (_named(rebuild), set_state)
    return named, arguments, _without_volatile(state), items, pairs


def _named(rebuild: Any) -> object:
    """A callable that its name leads to, by its name; any other as what it is."""
    module, name = getattr(rebuild, "__module__", None), getattr(rebuild, "__qualname__", None)
    owner = getattr(rebuild, "__self__", None)
    if name and (owner is None or isinstance(owner, (type, ModuleType))):
        if isinstance(owner, type):
            return (type_identity(owner), name)
        if module is None or leads_to(module, name, rebuild):
            return (module_name(module), name)
    return rebuild


_VOLATILE = frozenset({"_attrs_cached_hash"})
"""Attributes that say nothing about the value: a hash kept by attrs, the subscript a generic class was made through."""


def describe(value: object) -> str:
    """The full name of the value's type."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def refuse(value: object, out: bytearray, depth: int) -> None:
    """The encoder of what has no exact encoding."""
    raise UnkeyableError(f"{describe(value)} has no exact encoding")


RESOLVE.append(_encoder_of)
