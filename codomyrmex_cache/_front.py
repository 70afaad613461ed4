"""The front of a function: raw arguments to live cells, and their upkeep.

There are three ways from arguments to a cell, and each of them is exact.

*By the arguments themselves*: types first, values second, `cells[type(a), type(b)][a, b]`.  Only types for which equal values
are interchangeable get in, so the lookup runs no code of the user's (a `__hash__`, an `__eq__`) and `1`, `1.0` and `True` never
meet.

*By a fingerprint*, for lists and dicts: the seeded xxh3 of what `marshal` (version 2) writes of all arguments.  `keys._Memo`
says what that tells apart.  It writes any buffer as it writes bytes, so a call with bytes gets no fingerprint.

*By a fingerprint with the object's attributes in its place*, for methods, where the class keeps its state in nothing else.

A fingerprint leads to a cell only after the key has been made again, from what was fingerprinted: an argument may have been
changed since the call began.  Which way is tried first is decided by what a function's first hit needed, and built into the
wrapper's code.  Nothing is ever searched or removed on invalidation: a dead cell is passed by, and the front drops dead ones
when it has doubled.
"""

from __future__ import annotations

from collections.abc import Callable
from marshal import dumps, loads
from os import urandom
from types import CodeType, FunctionType
from typing import Any

from xxhash import xxh3_128_digest

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._isolation import isolated
from codomyrmex_cache._objects import dependent_on_encoders, is_its_attributes
from codomyrmex_cache._signature import RESERVED, Shape, compile_function
from codomyrmex_cache._space import Space
from codomyrmex_cache._wrapper import Kind, Way, wrapper_source
from codomyrmex_cache.backends.in_memory import Cell, Watched
from codomyrmex_cache.errors import CacheCodecError, UnkeyableError
from codomyrmex_cache.keys import Key, Keyer
from codomyrmex_cache.modes import veil_lock
from codomyrmex_cache.stats import Counters

__all__ = ["SMALL", "Front"]

_MAX_TEXT = 4096
"""Longer strings are not kept as front keys: they would hold the memory that the bound on entries is there to limit."""

_MAX_BITS = 512
SMALL = 1 << 62
_FIRST_PRUNING = 1024

_MOST_SHOWN = 1_024
"""Of the calls with arguments of the same types, when somebody asks what calls there were."""

_MAX_FINGERPRINTS = 16_384
"""Of one function; a call has as many as there are orders of its dicts, so they are bounded by themselves."""

_SEED = int.from_bytes(urandom(8), "big")

_NO_CELLS: dict[Any, Any] = {}

_MISSES = (KeyError, TypeError, ValueError, AttributeError, CacheCodecError)
"""What the hot lines may raise: no such cell, an unhashable argument, one without fingerprint, an object without `__dict__`, a
value that cannot be copied now."""


class Front:
    """The dicts the wrapper reads, and their upkeep.

    Args:
        shape: of the function.
        keyer: of the function.
        enabled: whether a call depends on its arguments alone.
    """

    def __init__(self, shape: Shape, keyer: Keyer, *, enabled: bool) -> None:
        self.cells: dict[Any, dict[Any, Cell]] = {}
        self.fingerprints: dict[bytes, Cell] = {}
        self.attributes: dict[type, dict[bytes, Cell]] = {}
        self.enabled = enabled
        self.of_method = False
        self._shape, self._keyer = shape, keyer
        self._names = tuple(shape.names[index] for index in keyer.kept)
        self._single = len(self._names) == 1
        self._first = keyer.kept[0] if keyer.kept else 0
        self._way: Way = "arguments"
        self._wrapper: FunctionType | None = None
        self._sources: Callable[[Way], str] = lambda way: ""
        self._filled = 0
        self._pruning_at = _FIRST_PRUNING
        self._fingerprinted = 0
        self.cold: Callable[..., Any]
        self.asks = True

    # -- the wrapper

    def wrapper(
        self, kind: Kind, name: str, *, cold: Callable[..., Any], target: Callable[..., Any], copy: bool, by_object: bool
    ) -> FunctionType:
        """The function that looks here first and then calls what is `cold`.

        Args:
            kind: of the function.
            name: for tracebacks.
            cold: is given the bound arguments.
            target: the user's function.
            copy: whether mutable values are handed out as copies.
            by_object: whether the first parameter is a method's object.
        """
        self.of_method = (
            by_object and self._names[:1] == self._shape.names[:1] != () and not self._shape.declaration.startswith("*")
        )
        self._sources = lambda way: wrapper_source(self._shape, self._names, kind, way if self.enabled else None, copy=copy)
        scope = {
            **self._shape.defaults,
            f"{RESERVED}type": type,
            f"{RESERVED}cells": self.cells,
            f"{RESERVED}fingerprints": self.fingerprints,
            f"{RESERVED}attributes": self.attributes,
            f"{RESERVED}hash": xxh3_128_digest,
            f"{RESERVED}dumps": dumps,
            f"{RESERVED}seed": _SEED,
            f"{RESERVED}cold": cold,
            f"{RESERVED}target": target,
            f"{RESERVED}isolated": isolated,
            f"{RESERVED}misses": _MISSES,
        }
        wrapper: FunctionType = compile_function(self._sources(self._way), name, scope)  # type: ignore[assignment]
        self._wrapper, self.cold = wrapper, cold
        return wrapper

    def _prefer(self, way: Way) -> None:
        """Look this way first from now on, if no call was found in the first one."""
        if self._wrapper is None or self._way != "arguments" or self.cells:
            return
        self._way = way
        self._wrapper.__code__ = self._code(way)

    def _code(self, way: Way) -> CodeType:
        assert self._wrapper is not None
        code: CodeType = compile_function(self._sources(way), self._wrapper.__code__.co_name, self._shape.defaults).__code__
        return code

    # -- upkeep

    def promote(self, bound: tuple[Any, ...], key: Key, space: Space, counters: Counters, answer: Entry) -> None:
        """Let the next call with these arguments be a hot hit, if there is a live cell for it that says all.

        Args:
            bound: the arguments.
            key: what it was made of them before the call.
            space: where the entries are.
            counters: of the function.
            answer: to this call, which says whether results are awaited; its value is still the caller's alone.
        """
        near, stored = space.near, space.stored(key.text)
        cell_of = getattr(space.backend, "cell", None) if near is None else near.cell
        cell: Cell | None = cell_of(stored) if cell_of is not None and self.enabled else None
        entry = None if cell is None else cell.entry
        if cell is None or entry is None or entry.digest != key.digest or entry.awaited is not answer.awaited:
            return
        if entry.raised or entry.streamed:
            return
        counters.follow(cell, answer.value)
        if near is not None or not entry.generations:
            self.fill(bound, key, cell, space.clock if near is None else near.now)
        elif isinstance(space.backend, Watched):
            space.backend.watch(self)
            self.fill(bound, key, cell, space.clock)
            # looked at when the cell is here already: a revocation that comes later makes this forget it
            names, expected = zip(*entry.generations, strict=True)
            if tuple(space.backend.generations(stored, names)) != expected:
                self.forget()

    def fill(self, bound: tuple[Any, ...], key: Key, cell: Cell, clock: Clock) -> None:
        """From now on these arguments lead to this cell, whose deadline is on this clock, if that can be said exactly."""
        assert self._wrapper is not None
        self._wrapper.__globals__[f"{RESERVED}now"] = clock
        values = tuple([bound[index] for index in self._keyer.kept])
        if not self._shape.variadic and all(map(_interchangeable, values)):
            self._fill_arguments(values, cell)
        elif self.of_method and is_its_attributes(type(values[0])):
            self._fill_attributes(values, key, cell)
        else:
            self._fill_fingerprint(values, key, cell)

    # -- cells that have no key; see `_bare`

    @property
    def by_arguments(self) -> bool:
        """Whether there are calls that the arguments themselves lead to their cells."""
        return self.enabled and not self._shape.variadic

    def use_clock(self, clock: Clock) -> None:
        """That of the deadlines."""
        assert self._wrapper is not None
        self._wrapper.__globals__[f"{RESERVED}now"] = clock

    def use_cold(self, cold: Callable[..., Any]) -> None:
        """What answers from now on where there is no cell."""
        assert self._wrapper is not None
        with veil_lock():
            self.cold = cold
            if not self.asks:
                self._wrapper.__globals__[f"{RESERVED}cold"] = cold

    def veil(self, ask: Callable[..., Any]) -> None:
        """Every call goes the cold way from now on, and what is cold is to `ask`; see `modes`."""
        assert self._wrapper is not None
        self.asks = True
        self._wrapper.__globals__.update(
            {f"{RESERVED}{name}": _NO_CELLS for name in ("cells", "fingerprints", "attributes")}, **{f"{RESERVED}cold": ask}
        )

    def unveil(self, ask: Callable[..., Any] | None = None) -> None:
        """Answer as before; what is cold goes on to `ask` if that is given."""
        assert self._wrapper is not None
        scope = self._wrapper.__globals__
        self.asks = ask is not None
        scope[f"{RESERVED}cold"] = ask or self.cold
        scope[f"{RESERVED}cells"] = self.cells
        scope[f"{RESERVED}fingerprints"], scope[f"{RESERVED}attributes"] = self.fingerprints, self.attributes

    @property
    def single(self) -> int | None:
        """The index of the only parameter that counts, if there is but one."""
        return self._first if self._single else None

    def place_of(self, bound: tuple[Any, ...]) -> tuple[Any, Any] | None:
        """Where the cell of these arguments lies; `None` if they do not lead there by themselves."""
        if self._single:
            value = bound[self._first]
            kind = type(value)
            plain = kind is int and -SMALL < value < SMALL
            return (kind, value) if plain or _interchangeable(value) else None
        values = bound if len(bound) == len(self._names) else tuple([bound[index] for index in self._keyer.kept])
        return (tuple(map(type, values)), values) if all(map(_interchangeable, values)) else None

    def cell_at(self, place: tuple[Any, Any]) -> Cell | None:
        """What lies there."""
        cells = self.cells.get(place[0])
        return None if cells is None else cells.get(place[1])

    def bound_at(self, place: tuple[Any, Any]) -> tuple[Any, ...]:
        """The arguments that lead there; for those that do not count, `None`."""
        bound: list[Any] = [None] * len(self._shape.names)
        for index, value in zip(self._keyer.kept, (place[1],) if self._single else place[1], strict=True):
            bound[index] = value
        return tuple(bound)

    def bare_cells(self, owner: object) -> list[tuple[tuple[Any, Any], Any]]:
        """The living ones of this owner, with where they lie."""
        found = [(kinds, list(cells.items())) for kinds, cells in list(self.cells.items())]
        return [((kinds, values), cell) for kinds, cells in found for values, cell in cells if cell.entry is owner]

    def arguments_of(self, owner: object) -> list[list[tuple[str, object]]]:
        """Names and values that lead to living cells of this owner, to some of the last ones."""
        lasts = [(cells, values) for cells in list(self.cells.values()) for values in list(cells)[-_MOST_SHOWN:]]
        found = [values for cells, values in lasts if (cell := cells.get(values)) is not None and cell.entry is owner]
        return [list(zip(self._names, (values,) if self._single else values, strict=True)) for values in found]

    def put(self, place: tuple[Any, Any], cell: Cell) -> Cell | None:
        """Now this lies there; what did before."""
        kinds, values = place
        cells = self.cells.get(kinds)
        if cells is None:
            cells = self.cells.setdefault(kinds, {})
        old = cells.get(values)
        cells[values] = cell
        self._filled += 1
        if self._filled >= self._pruning_at:
            self._prune()
        return old

    def _fill_arguments(self, values: tuple[Any, ...], cell: Cell) -> None:
        kinds = tuple(map(type, values))
        self.put((kinds[0], values[0]) if self._single else (kinds, values), cell)

    def _prune(self) -> None:
        for kinds, cells in list(self.cells.items()):
            self.cells[kinds] = _alive(cells)
        self._filled = sum(map(len, self.cells.values()))
        self._pruning_at = max(_FIRST_PRUNING, 2 * self._filled)

    def _fill_fingerprint(self, values: tuple[Any, ...], key: Key, cell: Cell) -> None:
        data = _marshalled(values)
        if data is None:
            return
        taken = loads(data)  # noqa: S302  our own bytes
        if not _has_bytes(taken) and self._is_of(key, taken):
            self._make_room()
            self.fingerprints[xxh3_128_digest(data, _SEED)] = cell
            self._prefer("fingerprint")

    def _fill_attributes(self, values: tuple[Any, ...], key: Key, cell: Cell) -> None:
        kind = type(values[0])
        data = _marshalled((vars(values[0]), *values[1:]))
        if data is None:
            return
        state, *others = taken = loads(data)  # noqa: S302
        with dependent_on_encoders(self) as unchanged:
            alike = object.__new__(kind)
            vars(alike).update(state)
            if not _has_bytes(taken) and self._is_of(key, (alike, *others)) and unchanged():
                self._make_room()
                self.attributes.setdefault(kind, {})[xxh3_128_digest(data, _SEED)] = cell
                self._prefer("attributes")

    def _is_of(self, key: Key, values: tuple[Any, ...]) -> bool:
        """Whether these are the arguments that this key was made of."""
        bound: list[Any] = [None] * len(self._shape.names)
        for index, value in zip(self._keyer.kept, values, strict=True):
            bound[index] = value
        try:
            return self._keyer.key(bound) == key
        except UnkeyableError:
            return False

    def _make_room(self) -> None:
        self._fingerprinted += 1
        if self._fingerprinted < _MAX_FINGERPRINTS:
            return
        places = [self.fingerprints, *self.attributes.values()]
        for place in places:
            living = _alive(place)
            place.clear()
            place.update(list(living.items())[len(living) // 2 :])
        self._fingerprinted = sum(map(len, places))

    def forget(self) -> None:
        """All calls are to go the long way once."""
        self.cells.clear()
        self.fingerprints.clear()
        self.attributes.clear()
        self._filled = self._fingerprinted = 0

    def encoders_changed(self) -> None:
        """Objects may count by something else from now on."""
        self.attributes.clear()


def _alive(cells: dict[Any, Cell]) -> dict[Any, Cell]:
    return {place: cell for place, cell in list(cells.items()) if cell.entry is not None}


def _marshalled(values: tuple[Any, ...]) -> bytes | None:
    try:
        return dumps(values, 2)
    except ValueError:
        return None


def _has_bytes(value: Any) -> bool:
    """Whether there are any in what `marshal` gave; they may have been another buffer."""
    kind = type(value)
    if kind is dict:
        return any(_has_bytes(item) for pair in value.items() for item in pair)
    if kind in (tuple, list, set, frozenset):
        return any(map(_has_bytes, value))
    return kind is bytes


def _interchangeable(value: Any) -> bool:
    """Whether every equal value of the same type is the same to any function."""
    kind = type(value)
    if kind is str:
        return len(value) <= _MAX_TEXT
    if kind is int:
        return int(value.bit_length()) <= _MAX_BITS
    if kind is float:
        return bool(value == value and value != 0.0)  # NaN equals nothing, 0.0 equals -0.0
    return kind is bool or value is None
