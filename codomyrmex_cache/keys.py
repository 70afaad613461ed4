"""From a call to its key.

A key has two parts.  Its text, `@<function>:<128 bits of xxh3>`, finds the entry.  Its digest, 256 bits of BLAKE2b over
the same canonical encoding, is stored with the entry and compared when it is read, so that a collision of the fast hash
is a miss and never another call's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dis import get_instructions
from functools import partial
from hashlib import blake2b
from os import urandom
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from xxhash import xxh3_128_hexdigest

from codomyrmex_cache._encoding import encode, encode_into, module_name, register
from codomyrmex_cache._isolation import is_immutable
from codomyrmex_cache._signature import Shape
from codomyrmex_cache.errors import CacheKeyError, UnkeyableError

__all__ = ["Key", "Keyer", "direct_key", "register"]

FORMAT = 1
"""Part of every key: a change of the encoding makes old entries unreachable instead of wrong."""


class Key(NamedTuple):
    """Where an entry lies in its namespace (`text`) and what it must be the answer to (`digest`)."""

    text: str
    digest: bytes

    @property
    def stored(self) -> bytes:
        """The text as the bytes that backends see, below the namespace's prefix."""
        return self.text.encode("utf-8", "surrogatepass")


def direct_key(key: object) -> Key:
    """The key of the direct API: any `str`, itself.

    Raises:
        CacheKeyError: for any other type.
    """
    if not isinstance(key, str):
        raise CacheKeyError(f"{key!r} is not a key: the keys of a cache are str (any str), got {type(key).__qualname__}")
    return Key(str(key), b"")


class Keyer:
    """Makes the keys of one function from the bound arguments of its calls.

    Args:
        function: what is called; its identity, and for local functions its code and closure, are part of the key.
        shape: how its calls are bound.
        name: replaces module and qualified name, so that a renamed or moved function keeps its entries.
        version: any encodable value; another version is another key.
    """

    def __init__(
        self, function: Callable[..., object], shape: Shape, *, name: str | None = None, version: object = None
    ) -> None:
        self.name = name or function_name(function)
        self.prefix = f"@{self.name}:"
        self._names = shape.names
        self._parts = list(_call_time_parts(function))
        self._head = encode((FORMAT, self.name, version, list(shape.names), _local_code(function)))

    def key(self, bound: Sequence[object]) -> Key:
        """The key of the call with these bound arguments.

        Raises:
            UnkeyableError: an argument cannot be encoded; `parameter` names it.
        """
        out = bytearray(self._head)
        for part in self._parts:
            out += part()
        for name, value in zip(self._names, bound, strict=True):
            try:
                encode_into(value, out, 0)
            except Exception as error:  # state, properties and iterators of the user's objects may raise anything
                reason = error.reason if isinstance(error, UnkeyableError) else f"{type(error).__name__}: {error}"
                raise UnkeyableError(reason, name) from error
        return Key(self.prefix + xxh3_128_hexdigest(bytes(out)), blake2b(out, digest_size=32).digest())

    @property
    def depends_on_arguments_only(self) -> bool:
        """Whether equal arguments always have equal keys: no closure, no bound object, no partial."""
        return not self._parts

    def owns(self, text: str) -> bool:
        """Whether this key text is one of this function's."""
        return text.startswith(self.prefix) and len(text) == len(self.prefix) + 32


def function_name(function: Any) -> str:
    """Module and qualified name, `__main__` resolved; of a partial or an instance, those of what it calls.

    >>> import json
    >>> function_name(json.dumps)
    'json.dumps'
    """
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{module_name(named.__module__)}.{named.__qualname__}"


def _local_code(function: Any) -> object:
    """The code of a function that its name does not tell apart: lambdas and functions inside functions."""
    code = getattr(function, "__code__", None)
    if code is None or not ("<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__):
        return None
    return _code_parts(code)


def _code_parts(code: CodeType) -> tuple[object, ...]:
    constants = [_code_parts(item) if isinstance(item, CodeType) else item for item in code.co_consts]
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_flags)


def _call_time_parts(function: Any) -> list[Callable[[], bytes]]:
    """What a call depends on beside its arguments, encoded anew at each call since it may change."""
    if isinstance(function, partial):
        bound = partial(encode_bound, "the partial's arguments", lambda: (function.args, function.keywords))
        return [*_call_time_parts(function.func), bound]
    if isinstance(function, MethodType):
        receiver = partial(encode_bound, "the method's object", lambda: function.__self__)
        return [receiver, *_call_time_parts(function.__func__)]
    if isinstance(function, FunctionType):
        names = function.__code__.co_freevars
        rebound = _rebound_names(function.__code__) if names else set()
        cells = zip(names, function.__closure__ or (), strict=True)
        return [_Closure(name, cell, rebound=name in rebound).part for name, cell in cells]
    if hasattr(function, "__qualname__"):
        return []
    return [partial(encode_bound, "the callable's state", lambda: function)]


def encode_bound(what: str, value: Callable[[], object]) -> bytes:
    """Encode something that belongs to the callable; an error names it."""
    try:
        return encode(value())
    except UnkeyableError as error:
        raise UnkeyableError(error.reason, what) from error


class _Closure:
    """One closure cell: values that cannot change by value, everything else by identity in this process.

    A list that the function appends to, a client, a counter that it increments: state that it *has* rather than an
    input, so the key must not follow its content.  Each object met gets a random token, held as long as the cell holds
    the object.
    """

    def __init__(self, name: str, cell: CellType, *, rebound: bool) -> None:
        self._name = name
        self._cell = cell
        self._rebound = rebound
        self._held: tuple[object, bytes] | None = None

    def part(self) -> bytes:
        """The cell's contribution to the key, now."""
        try:
            value = self._cell.cell_contents
        except ValueError:  # not assigned yet
            return encode((self._name,))
        if not self._rebound and is_immutable(value):
            try:
                return encode((self._name, value))
            except UnkeyableError:
                pass
        if self._held is None or not (self._rebound or self._held[0] is value):
            self._held = (value, urandom(16))
        return encode((self._name, self._held[1]))


def _rebound_names(code: CodeType) -> set[str]:
    """The closure variables that the code itself assigns (`nonlocal count; count += 1`)."""
    stored = {item.argval for item in get_instructions(code) if item.opname in ("STORE_DEREF", "DELETE_DEREF")}
    inner = (item for item in code.co_consts if isinstance(item, CodeType))
    return stored.union(*(_rebound_names(item) & set(code.co_freevars) for item in inner))
