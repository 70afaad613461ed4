"""From a call to its key.

A key has two parts.  Its text, `@<function>:<128 bits of xxh3>`, finds the entry.  Its digest, SHA-256 of
the same canonical encoding, is stored with the entry and compared when it is read, so that a collision of the fast hash
is a miss and never another call's answer.

`register(kind, encoder)` tells how instances of a class are encoded.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from os import urandom
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

from xxhash import xxh3_64_digest, xxh3_128_digest, xxh3_128_hexdigest

from codomyrmex_cache._code import code_parts, rebound_names
from codomyrmex_cache._encoders import encode
from codomyrmex_cache._encoding import encode_plain
from codomyrmex_cache._entry import Parts
from codomyrmex_cache._isolation import is_immutable
from codomyrmex_cache._objects import module_name, register
from codomyrmex_cache._sdk import is_sdk_object
from codomyrmex_cache.errors import CacheKeyError, UnkeyableError

__all__ = ["Key", "Keyer", "Part", "direct_key", "function_name", "owner_of", "register"]

FORMAT = 1
"""Part of every key: a change of the encoding makes old entries unreachable instead of wrong."""

Part = tuple[str, Callable[[], bytes]]
"""A name for people and the encoding, taken at the time of a call."""

Transform = Callable[[Any], object]


class Key(NamedTuple):
    """Where an entry lies in its namespace (`text`) and what it must be the answer to (`digest`)."""

    text: str
    digest: bytes


def direct_key(key: object) -> Key:
    """The key of the direct API: any `str`, itself.

    Raises:
        CacheKeyError: for any other type.
    """
    if not isinstance(key, str):
        raise CacheKeyError(f"{key!r} is not a key: the keys of a cache are str (any str), got {type(key).__qualname__}")
    return Key(str.__str__(key), b"")  # of a str enum its value, not its name


def key_of(prefix: str, whole: bytes) -> Key:
    """The key of a call with this encoding."""
    return Key(prefix + xxh3_128_hexdigest(whole), sha256(whole).digest())


def owner_of(text: str) -> str:
    """The name of the function whose key this is; empty for keys of the direct API."""
    return text[1:].rpartition(":")[0] if text.startswith("@") else ""


class Keyer:
    """Makes the keys of one function from the bound arguments of its calls.

    Args:
        function: what is called; its identity, code and closure are part of the key.
        names: of its parameters.
        name: replaces module and qualified name, so that a renamed or moved function keeps its entries.
        version: any encodable value, in place of the function's own code; another version is another key.
        transforms: parameter name to what replaces its value in the key; `None` leaves the parameter out.
        parts: what else a call depends on (scope, dependencies, deep code).
        shaping: functions of the user's that make parts of the key; their code counts, whatever the version.
        volatile: whether a key may change between two looks at the same arguments (files).

    `kept` are the places of the parameters that count, if it `takes_arguments` one by one, `classes` those that calls have
    named for what they give.
    """

    takes_arguments = True

    def __init__(
        self,
        function: Callable[..., object],
        names: Sequence[str],
        *,
        name: str | None = None,
        version: object = None,
        transforms: dict[str, Transform | None] | None = None,
        parts: Sequence[Part] = (),
        shaping: Sequence[Callable[..., object]] = (),
        volatile: bool = False,
    ) -> None:
        self.name = name or function_name(function)
        self.prefix = f"@{self.name}:"
        self.volatile = volatile
        self.classes: list[Any] = []
        self._function = function
        self._version = version
        transforms = transforms or {}
        kept = [(index, name_) for index, name_ in enumerate(names) if transforms.get(name_, name_) is not None]
        self._names = [name_ for _, name_ in kept]
        self._transforms = {name_: transform for name_, transform in transforms.items() if transform is not None}
        self.kept = tuple(index for index, _ in kept)
        self._keeps_all = len(kept) == len(names)
        self._shaping = shaping
        made_by = [part for shaper in shaping for part in _call_time_parts(shaper)]
        self._parts = [*_call_time_parts(function), *made_by, *parts]
        self._head: bytes | None = None
        self._head_parts: tuple[tuple[str, bytes], ...] = ()
        self._labels: tuple[str, ...] = ()
        self._memo = None if self._parts or self._transforms else _Memo()

    def key(self, bound: Sequence[object]) -> Key:
        """The key of the call with these bound arguments.

        Raises:
            UnkeyableError: an argument cannot be encoded; `parameter` names it.
        """
        values = self._kept(bound)
        if self._memo is None:
            return self._canonical(values)
        fingerprint, snapshot = self._memo.look(values)
        if fingerprint is None:
            return self._canonical(values)
        found = self._memo.keys.get(fingerprint)
        if found is None:
            saw_bytes: list[bool] = []
            found = self._canonical(snapshot, saw_bytes)
            if saw_bytes:  # bytes or some other buffer: from the unmarshalled copy one cannot tell
                return self._canonical(values)
            self._memo.fill(fingerprint, found)
        return found

    def keys(self, calls: Sequence[Sequence[object]]) -> list[Key]:
        """The keys of several calls made at one moment."""
        return [self.key(bound) for bound in calls]

    def _canonical(self, values: Sequence[object], saw_bytes: list[bool] | None = None) -> Key:
        head = self._head or self._make_head()
        if self._memo is None:
            whole = b"".join([head, *(encoded for _, encoded in self._encodings(values))])
        else:
            try:
                whole = b"".join([head, *[encode_plain(value, 0, saw_bytes) for value in values]])
            except Exception:  # once more, to know which parameter it was
                whole = b"".join([head, *(encoded for _, encoded in self._encodings(values))])
        return key_of(self.prefix, whole)

    def _encodings(self, values: Sequence[object]) -> Iterator[tuple[str, bytes]]:
        """Each part that differs from call to call, by name."""
        for label, part in self._parts:
            yield label, encoded(label, part)
        for name, value in zip(self._names, values, strict=True):
            transform = self._transforms.get(name)
            yield name, encoded(name, lambda: encode_plain(transform(value) if transform else value))  # noqa: B023

    def parts(self, bound: Sequence[object]) -> Parts:
        """Name and short digest of each part of the key of this call, to be stored with its result.

        Not a piece of the key itself: a hit has no use for it.
        """
        head = self._head or self._make_head()
        assert head
        encodings = self._encodings(self._kept(bound))
        return Parts(self._head_parts, self._labels, b"".join([xxh3_64_digest(encoded) for _, encoded in encodings]))

    def _kept(self, bound: Sequence[object]) -> Sequence[object]:
        return bound if self._keeps_all else tuple([bound[index] for index in self.kept])

    def _make_head(self) -> bytes:
        """What is the same for all calls; made at the first, since reading code costs some 0.1 ms a function."""
        identity = encode((FORMAT, self.name, self._names))
        own = _own_code(self._function) if self._version is None else ()
        code = encode((own, [(function_name(shaper), _own_code(shaper)) for shaper in self._shaping]))
        version = encode(self._version)
        parts = (("function", identity), ("version", version), ("code", code))
        self._head_parts = tuple((self._label(name), xxh3_64_digest(part)) for name, part in parts)
        self._labels = (*(self._label(name) for name, _ in self._parts), *self._names)
        self._head = identity + version + code
        return self._head

    def _label(self, part: str) -> str:
        """Other than the name of any parameter."""
        return f"{part}=" if part in self._names else part

    @property
    def depends_on_arguments_only(self) -> bool:
        """Whether equal arguments always have equal keys: no closure, no bound object, no file."""
        return self._memo is not None

    def owns(self, text: str) -> bool:
        """Whether this key text is one of this function's."""
        return text.startswith(self.prefix) and len(text) == len(self.prefix) + 32


class _Memo:
    """From a fingerprint of raw arguments to the key that the canonical encoding gave them.

    The fingerprint is the seeded hash of `marshal.dumps(values, 2)`.  That format tells types apart as the canonical encoding
    does, does not depend on identity or interning, and refuses what it does not know.  Two flaws are worked around: it
    writes any buffer as it writes bytes, so nothing that holds bytes is remembered; and it keeps the order of dicts and
    sets, so one key may have several fingerprints.  The key is made from the unmarshalled copy, so that a change by
    another thread cannot come between the two.
    """

    MAX = 4_096
    LONG = 1_024
    _TYPES = frozenset({type(None), bool, int, float, complex, str, list, tuple, dict, set, frozenset})
    _SEED = int.from_bytes(urandom(8), "big")

    def __init__(self) -> None:
        self.keys: dict[bytes, Key] = {}

    def look(self, values: Sequence[object]) -> tuple[bytes | None, Sequence[object]]:
        """The fingerprint, `None` if there is none; and, if it is new, the values it was taken from."""
        try:
            if not self._TYPES.issuperset(map(type, values)):
                return None, values
        except TypeError:  # a metaclass may make a type unhashable
            return None, values
        texts: list[tuple[int, str]] = []
        for value in values:
            if type(value) is str and len(value) > self.LONG:
                texts = [(index, text) for index, text in enumerate(values) if type(text) is str and len(text) > self.LONG]
        if texts:  # hashed where they are: marshal would copy them twice
            values = list(values)
            for index, _ in texts:
                values[index] = None
        try:
            data = marshal.dumps(tuple(values), 2)  # type: ignore[arg-type]
        except ValueError:
            return None, values
        if not texts:
            fingerprint = xxh3_128_digest(data, self._SEED)
            return fingerprint, values if fingerprint in self.keys else marshal.loads(data)  # noqa: S302  our own bytes
        long = b"".join(b"%d:%b" % (index, xxh3_128_digest(_utf8(text), self._SEED)) for index, text in texts)
        fingerprint = xxh3_128_digest(data + long, self._SEED)
        if fingerprint in self.keys:
            return fingerprint, values
        snapshot = list(marshal.loads(data))  # noqa: S302
        for index, text in texts:
            snapshot[index] = text
        return fingerprint, snapshot

    def fill(self, fingerprint: bytes, key: Key) -> None:
        """Remember; the oldest half goes when there are too many."""
        if len(self.keys) >= self.MAX:
            for old in list(self.keys)[: self.MAX // 2]:
                self.keys.pop(old, None)
        self.keys[fingerprint] = key


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def function_name(function: Any) -> str:
    """Module and qualified name, `__main__` resolved; of a partial or an instance, those of what it calls.

    >>> import json
    >>> function_name(json.dumps)
    'json.dumps'
    """
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or getattr(getattr(named, "__objclass__", None), "__module__", None)
    return f"{module_name(module)}.{named.__qualname__}"


def _own_code(function: Any) -> list[object]:
    """The code of the function and of what it wraps with `functools.wraps`, one after the other."""
    found: list[object] = []
    while function is not None and len(found) < 20:
        if isinstance(function, partial):
            function = function.func
            continue
        function = getattr(function, "__func__", function)
        if isinstance(function, type):  # what a class makes is told by all it is made of
            methods = [item for base in function.__mro__ for _, item in sorted(vars(base).items(), key=lambda pair: pair[0])]
            return [*found, *(code_parts(item.__code__) for item in methods if isinstance(item, FunctionType))]
        if not hasattr(function, "__code__"):
            function = getattr(type(function), "__call__", function)  # noqa: B004
        code = getattr(function, "__code__", None)
        found.append(None if code is None else code_parts(code))
        function = getattr(function, "__wrapped__", None)
    return found


def _call_time_parts(function: Any) -> list[Part]:
    """What a call depends on beside its arguments, encoded anew at each call since it may change."""
    if isinstance(function, partial):
        arguments: Part = ("the partial's arguments", lambda: encode((function.args, function.keywords)))
        return [*_call_time_parts(function.func), arguments]
    if isinstance(function, MethodType):
        receiver: Part = ("the method's object", lambda: encode(function.__self__))
        return [receiver, *_call_time_parts(function.__func__)]
    if isinstance(function, FunctionType):
        names = function.__code__.co_freevars
        rebound = rebound_names(function.__code__) if names else set()
        cells = zip(names, function.__closure__ or (), strict=True)
        own = [(f"variable {name}", _Closure(name, cell, function, rebound=name in rebound).part) for name, cell in cells]
        wrapped = function.__dict__.get("__wrapped__")
        return own if wrapped is None else [*own, *_call_time_parts(wrapped)]
    if hasattr(function, "__qualname__"):
        return []
    return [("the callable's state", lambda: encode(function))]


def encoded(name: str, encoding: Callable[[], bytes]) -> bytes:
    """The encoding; an error of the user's code (state, properties, a scope function) says which part it was."""
    try:
        return encoding()
    except Exception as error:
        reason = error.reason if isinstance(error, UnkeyableError) else f"its encoding raised {type(error).__name__}"
        raise UnkeyableError(reason, name) from error


_MAX_NESTED = 20
"""Functions that close over functions; a longer chain is taken by identity."""


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


class _Closure:
    """One closure cell: values that cannot change by value, everything else by identity in this process.

    A list that the function appends to, a client, a counter that it increments: state that it *has* rather than an
    input, so the key must not follow its content.  Each object met gets a random token, held as long as the cell holds
    the object.
    """

    def __init__(self, name: str, cell: CellType, owner: FunctionType, *, rebound: bool) -> None:
        self._name = name
        self._cell = cell
        self._globals = owner.__globals__
        self._rebound = rebound
        self._held: dict[int, tuple[object, bytes]] = {}

    def part(self) -> bytes:
        """The cell's contribution to the key, now."""
        try:
            value = self._cell.cell_contents
        except ValueError:  # not assigned yet
            return encode((self._name,))
        if not self._rebound:
            with suppress(UnkeyableError):
                return encode((self._name, self._fixed(value, 0)))
        return encode((self._name, self._token(None if self._rebound else value)))

    def _fixed(self, value: Any, depth: int) -> object:
        """The value if it cannot change; a function of the same module by its code and what is fixed in its own closure."""
        if isinstance(value, FunctionType) and value.__globals__ is self._globals and depth < _MAX_NESTED:
            names = value.__code__.co_freevars
            cells = list(zip(names, value.__closure__ or (), strict=True))
            if rebound_names(value.__code__) or any(cell is self._cell for _, cell in cells):
                raise UnkeyableError("a function with state of its own")
            inner = [self._fixed(_content(cell), depth + 1) for _, cell in cells]
            return (value.__qualname__, code_parts(value.__code__), value.__defaults__, value.__kwdefaults__, inner)
        fixed = is_immutable(value) and not getattr(value, "__closure__", None)
        if not fixed and not is_sdk_object(value):  # whose rules look at it anew at each call
            raise UnkeyableError("a value that can change")
        return value

    def _token(self, value: object) -> bytes:
        """The same for all threads, so set once; an object that is held keeps its identity to itself."""
        held = self._held.setdefault(id(value), (value, urandom(16)))
        for other in list(self._held):
            if other != id(value):
                self._held.pop(other, None)
        return held[1]
