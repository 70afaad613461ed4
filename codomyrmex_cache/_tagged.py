"""Tagged data: what JSON alone would change, as arrays that begin with a tag, and values of named classes.

The tag has a place of its own, so no user data can look like one.  Types are kept exactly, the order of dicts, and aliases
and cycles: containers are numbered in the order in which the reader makes them, and one met again is written as its
number.  What can contain itself is numbered before its content; a tuple, which can be made only from its content, after it.

Classes stand in a table in front of the data.  The reader looks each one up among those that it was given, and compares
the fingerprint of its shape, before anything is made; a name is never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from math import isfinite
from struct import pack, unpack
from typing import Any, Protocol, TypeAlias

from codomyrmex_cache._late import LEAVES, late_classes
from codomyrmex_cache._record import record
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["LARGE", "MAX_DEPTH", "Buffer", "Memory", "Packer", "Recipe", "Recipes", "UnnamedTypeError", "Unpacker", "mutable"]

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_DEPTH = 150
"""Nesting of plain data: deeper values go to pickle, deeper bytes are refused."""

LARGE = 256
"""Bytes from which memory becomes a frame of its own; below it, twice the size in hex costs less than a frame."""

_MAX_JSON_INT = 10**300
"""Larger ones go as hex: the interpreter limits decimal conversion to 4,300 digits."""

_MAX_HASHED = 10_000_000
"""Items that one payload may have hashed, counted through aliases.  A tuple that holds another one twice, and so on a
hundred times, is small as bytes and in memory, but its hash takes 2**100 steps."""


class UnnamedTypeError(CacheCodecError):
    """Stored bytes hold a value of a class that no type in force here names; they may be whole all the same.

    `name` is what the bytes call the class.

    >>> UnnamedTypeError("shop:Order")
    UnnamedTypeError("class 'shop:Order' is not named by the types in force here")
    """

    kind = "unnamed"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"class {name[:200]!r} is not named by the types in force here")


@record(frozen=True, slots=True)
class Memory:
    """Flat memory of an array, read only, written without a copy where it can be; it comes back as a buffer that may be
    written to."""

    content: memoryview | bytes


@record(frozen=True, slots=True)
class Recipe:
    """How the values of one class are taken apart and made again."""

    name: str
    fingerprint: str
    """Of the class's shape; bytes that carry another one were written by another version of the class."""
    take: Callable[[Any], list[Any]]
    make: Callable[[list[Any]], Any]
    """From what `take` gave; or from nothing, if there is `fill`."""
    fill: Callable[[Any, list[Any]], None] | None = None
    """For classes whose values may contain themselves: puts the content in."""


class Recipes(Protocol):
    """The classes that may be written and made again."""

    def of(self, kind: type) -> Recipe | None: ...

    def named(self, name: str) -> Recipe | None: ...


def mutable(frame: Buffer) -> bytearray | memoryview:
    """The frame's memory for a value that may be written to; a copy of it where others could hold the same memory."""
    if type(frame) is bytearray or (type(frame) is memoryview and not frame.readonly):
        return frame
    return bytearray(frame)


def _moment(value: datetime | time) -> list[Any]:
    """ISO text says all about no zone and about a `timezone` without a name of its own."""
    zone: Any = value.tzinfo
    if zone is not None and (type(zone) is not timezone or len(zone.__getinitargs__()) != 1):  # type: ignore[attr-defined]
        raise CacheCodecError(f"time zone {zone!r} is not plain data")
    return [value.isoformat(), value.fold]


def _doubles(text: str) -> tuple[float, ...]:
    return unpack(">dd", bytes.fromhex(text))


_LEAVES: dict[type, tuple[str, Callable[[Any], object], Callable[[Any], object]]] = {
    complex: ("c", lambda value: pack(">dd", value.real, value.imag).hex(), lambda text: complex(*_doubles(text))),
    datetime: ("D", _moment, lambda raw: datetime.fromisoformat(raw[0]).replace(fold=raw[1])),
    date: ("a", date.isoformat, date.fromisoformat),
    time: ("h", _moment, lambda raw: time.fromisoformat(raw[0]).replace(fold=raw[1])),
    timedelta: ("e", lambda value: [value.days, value.seconds, value.microseconds], lambda raw: timedelta(*raw)),
}
_MEMORY: dict[type, str] = {bytes: "b", bytearray: "B", Memory: "M"}
_CONTAINERS: dict[type, str] = {list: "l", dict: "d", set: "S", tuple: "t", frozenset: "Z"}


class Packer:
    """Walks a value once.

    Args:
        recipes: the classes that may be written.
        large: bytes from which memory goes to `frames` instead of into the text.
    """

    def __init__(self, recipes: Recipes, large: float) -> None:
        self.classes: list[tuple[str, str]] = []
        self.frames: list[Buffer] = []
        self._recipes = recipes
        self._large = large
        self._numbers: dict[int, int] = {}
        self._open: set[int] = set()
        self._depth = 0
        self._in_key = False
        self._has_cycle = False
        self._has_object_key = False
        self._places: dict[int, int] = {}
        # What has a number must live on, or its id would be given to another object: parts are made on the way, and
        # another thread may be changing the value.
        self._kept: list[object] = []

    def pack(self, value: Any) -> object:
        kind = type(value)
        if kind is str or value is None or kind is bool:
            return value
        if kind is int:
            return value if -_MAX_JSON_INT < value < _MAX_JSON_INT else ["i", hex(value)]
        if kind is float:
            return value if isfinite(value) else ["f", pack(">d", value).hex()]
        if kind in _LEAVES:
            tag, write, _ = _LEAVES[kind]
            return [tag, write(value)]
        if id(value) in self._numbers:
            return self._reference(value)
        if kind in _MEMORY:
            return self._memory(value, kind)
        if kind not in _CONTAINERS and (module := late_classes().get(kind)) in LEAVES:
            tag, write, _ = LEAVES[module]
            return [tag, write(value)]
        return self._opened(value, kind)

    def whole(self, value: object) -> object:
        """What JSON can say instead of the value, and the reader can make again.

        Raises:
            CacheCodecError: something in it is not plain data nor of a named class, by exact type.
        """
        packed = self.pack(value)
        if self._has_cycle and self._has_object_key:  # the reader might hash the object before it is whole
            raise CacheCodecError("an object that is a key in data that contains itself is not plain data")
        return packed

    def _reference(self, value: object) -> object:
        if id(value) in self._open:
            self._has_cycle = True
        if self._in_key and type(value) not in _CONTAINERS and type(value) not in _MEMORY:
            self._has_object_key = True
        return ["r", self._numbers[id(value)]]

    def _memory(self, value: Any, kind: type) -> object:
        content = value
        if kind is Memory:
            content = value.content
        else:
            self._number(value)
        if len(content) < self._large:
            return [_MEMORY[kind], content.hex()]
        self.frames.append(bytes(content) if kind is bytearray else content)  # a view would keep it from growing
        return [_MEMORY[kind], len(self.frames)]

    def _opened(self, value: Any, kind: type) -> object:
        if id(value) in self._open:
            raise CacheCodecError(f"a {kind.__qualname__} that contains itself is not plain data")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CacheCodecError(f"nested deeper than {MAX_DEPTH} levels")
        self._open.add(id(value))
        packed = self._container(value, kind) if kind in _CONTAINERS else self._typed(value, kind)
        self._open.discard(id(value))
        self._depth -= 1
        return packed

    def _container(self, value: Any, kind: type) -> object:
        early = kind is list or kind is dict or kind is set
        if early:
            self._number(value)
        if kind is dict:
            items: Iterable[object] = self._pairs(value)
        elif kind is list or kind is tuple:
            items = map(self.pack, value)
        else:
            items = map(self._key, value)
        packed = [_CONTAINERS[kind], *items]
        if not early:
            self._number(value)
        return packed

    def _typed(self, value: Any, kind: type) -> object:
        recipe = self._recipes.of(kind)
        if recipe is None:
            raise CacheCodecError(f"{kind.__module__}.{kind.__qualname__} is not plain data")
        if recipe.fill is not None:
            self._number(value)
            self._has_object_key |= self._in_key
        parts = recipe.take(value)
        self._kept.append(parts)
        packed = ["o", self._place(kind, recipe), *map(self.pack, parts)]
        if recipe.fill is None:
            self._number(value)
        return packed

    def _place(self, kind: type, recipe: Recipe) -> int:
        if id(kind) not in self._places:
            self._places[id(kind)] = len(self.classes)
            self.classes.append((recipe.name, recipe.fingerprint))
        return self._places[id(kind)]

    def _number(self, value: object) -> None:
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)

    def _pairs(self, pairs: dict[object, object]) -> Iterable[object]:
        for key, value in pairs.items():
            yield key if type(key) is str else self._key(key)
            yield self.pack(value)

    def _key(self, key: object) -> object:
        before, self._in_key = self._in_key, True
        packed = self.pack(key)
        self._in_key = before
        return packed


class Unpacker:
    """Makes containers in the packer's order of numbering.

    Args:
        recipes: the classes that may be made.
        classes: the table of names and fingerprints.
        frames: those that `Packer.frames` became; each is used once.
    """

    def __init__(self, recipes: Recipes, classes: list[Any], frames: Sequence[Buffer]) -> None:
        self._classes = [_checked(recipes, name, fingerprint) for name, fingerprint in classes]
        self._frames: list[Buffer | None] = [None, *frames]
        self._seen: list[object] = []
        self._weights: list[int | None] = []
        self._weight = 0
        self._hashed = 0
        self._depth = 0
        self._in_key = False

    def whole(self, packed: object) -> Any:
        """The value, if all frames belong to it."""
        value = self.unpack(packed)
        if any(frame is not None for frame in self._frames):
            raise CacheCodecError("not a safe payload: a frame belongs to nothing")
        return value

    def unpack(self, packed: Any) -> Any:
        kind = type(packed)
        if kind is list:
            return _READERS[packed[0]](self, packed)
        if kind is dict:
            raise CacheCodecError("not a safe payload: it has an object")
        return packed

    def reference(self, packed: list[Any]) -> object:
        number = packed[1]
        weight = self._weights[number]
        if weight is None and self._in_key:
            raise CacheCodecError("not a safe payload: a key leads to what it is a key of")
        self._weight += weight or 1
        return self._seen[number]

    def frozen_memory(self, packed: list[Any]) -> bytes:
        raw = packed[1]
        value = bytes.fromhex(raw) if type(raw) is str else bytes(self._frame(raw))
        self._late(value, self._weight)
        return value

    def own_memory(self, packed: list[Any]) -> bytearray:
        raw = packed[1]
        if type(raw) is str:
            value = bytearray.fromhex(raw)
        else:
            frame = self._frame(raw)
            value = frame if type(frame) is bytearray else bytearray(frame)
        self._late(value, self._weight)
        return value

    def memory(self, packed: list[Any]) -> bytearray | memoryview:
        raw = packed[1]
        return bytearray.fromhex(raw) if type(raw) is str else mutable(self._frame(raw))

    def list_(self, packed: list[Any]) -> object:
        items: list[object] = []
        number, before = self._early(items)
        items.extend(self._items(packed, 1))
        self._weights[number] = self._weight - before
        return items

    def dict_(self, packed: list[Any]) -> object:
        pairs: dict[object, object] = {}
        number, before = self._early(pairs)
        self._enter(packed)
        for index in range(1, len(packed), 2):
            key = packed[index]
            if type(key) is not str:
                key = self._key(key)
            pairs[key] = self.unpack(packed[index + 1])
        self._leave(len(pairs) * 2 + 1 == len(packed))
        self._weights[number] = self._weight - before
        return pairs

    def set_(self, packed: list[Any]) -> object:
        members: set[object] = set()
        number, before = self._early(members)
        members.update(self._members(packed))
        self._leave(len(members) + 1 == len(packed))
        self._weights[number] = self._weight - before
        return members

    def tuple_(self, packed: list[Any]) -> object:
        before = self._weight
        value = tuple(self._items(packed, 1))
        self._late(value, before)
        return value

    def frozenset_(self, packed: list[Any]) -> object:
        before = self._weight
        value = frozenset(self._members(packed))
        self._leave(len(value) + 1 == len(packed))
        self._late(value, before)
        return value

    def typed(self, packed: list[Any]) -> object:
        recipe = self._classes[packed[1]]
        before = self._weight
        if recipe.fill is None:
            value = recipe.make(self._items(packed, 2))
            self._late(value, before)
            return value
        value = recipe.make([])
        number, _ = self._early(value)
        recipe.fill(value, self._items(packed, 2))
        self._weights[number] = self._weight - before
        return value

    def _frame(self, number: int) -> Buffer:
        frame, self._frames[number] = self._frames[number], None
        if frame is None:
            raise CacheCodecError("not a safe payload: a frame is used twice")
        return frame

    def _items(self, packed: list[Any], start: int) -> list[Any]:
        self._enter(packed)
        items = [self.unpack(item) for item in packed[start:]]
        self._depth -= 1
        return items

    def _members(self, packed: list[Any]) -> list[object]:
        self._enter(packed)
        return [self._key(item) for item in packed[1:]]

    def _key(self, packed: object) -> Any:
        before, self._in_key = self._in_key, True
        weight = self._weight
        key = self.unpack(packed)
        self._in_key = before
        self._hashed += self._weight - weight
        if self._hashed > _MAX_HASHED:
            raise CacheCodecError("not a safe payload: a key repeats itself without end")
        return key

    def _enter(self, packed: list[Any]) -> None:
        self._weight += len(packed)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CacheCodecError("not a safe payload: it is nested too deeply")

    def _leave(self, complete: bool) -> None:
        self._depth -= 1
        if not complete:
            raise CacheCodecError("not a safe payload: keys that were different are equal")

    def _early(self, value: object) -> tuple[int, int]:
        self._seen.append(value)
        self._weights.append(None)
        return len(self._seen) - 1, self._weight

    def _late(self, value: object, before: int) -> None:
        self._seen.append(value)
        self._weights.append(self._weight - before)


def _checked(recipes: Recipes, name: Any, fingerprint: Any) -> Recipe:
    if type(name) is not str:
        raise CacheCodecError("not a safe payload: a class without a name")
    recipe = recipes.named(name)
    if recipe is None:
        raise UnnamedTypeError(name)
    if recipe.fingerprint != fingerprint:
        raise CacheCodecError(f"class {name[:200]!r} has another shape than when the value was stored")
    return recipe


def _leaf(read: Callable[[Any], object]) -> Callable[[Unpacker, list[Any]], object]:
    return lambda _, packed: read(packed[1])


_READERS: dict[str, Callable[[Unpacker, list[Any]], object]] = {
    "b": Unpacker.frozen_memory,
    "B": Unpacker.own_memory,
    "M": Unpacker.memory,
    "l": Unpacker.list_,
    "d": Unpacker.dict_,
    "S": Unpacker.set_,
    "t": Unpacker.tuple_,
    "Z": Unpacker.frozenset_,
    "o": Unpacker.typed,
    "r": Unpacker.reference,
    "i": _leaf(lambda text: int(text, 16)),
    "f": _leaf(lambda text: unpack(">d", bytes.fromhex(text))[0]),
    **{tag: _leaf(read) for tag, _, read in (*_LEAVES.values(), *LEAVES.values())},
}
