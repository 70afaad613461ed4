"""What the decorator says about keys, turned into a keyer."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_digest

from codomyrmex_cache._encoders import encode
from codomyrmex_cache._entry import Parts
from codomyrmex_cache._record import record
from codomyrmex_cache._sdk import SdkCall, arguments_of, call_of, classes_in
from codomyrmex_cache._signature import RESERVED, Shape, compile_function
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError
from codomyrmex_cache.keys import Key, Keyer, Part, Transform, encoded, key_of

if TYPE_CHECKING:
    from codomyrmex_cache._samples import Sample

__all__ = ["Keying", "Scope", "make_keyer"]

Scope = Callable[[], object] | ContextVar[Any]


@record(frozen=True, slots=True, kw_only=True)
class Keying:
    """The decorator's options that concern the key; see `cached`."""

    name: str | None = None
    version: object = None
    key: Callable[..., object] | None = None
    ignore: Iterable[str] = ()
    scope: Scope | None = None
    depends: Sequence[object] = ()
    strict: bool = False
    sample: Sample | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None or self.sample is not None:
            from codomyrmex_cache._samples import checked_samples

            checked_samples(self.samples, self.sample)
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise CacheConfigurationError(f"name={self.name!r}: give a non-empty str")
        if self.key is not None and not callable(self.key):
            raise CacheConfigurationError(f"key={self.key!r}: give a function that takes the call's arguments")
        if self.key is not None and self.ignored:
            raise CacheConfigurationError("key= decides alone what counts: leave out ignore=")
        if self.scope is not None and not (callable(self.scope) or isinstance(self.scope, ContextVar)):
            raise CacheConfigurationError(f"scope={self.scope!r}: give a function without arguments or a ContextVar")
        try:
            encode(self.version)
        except UnkeyableError as error:
            raise CacheConfigurationError(f"version={type(self.version).__qualname__}: {error.reason}") from error
        if isinstance(self.depends, (str, bytes)) or not isinstance(self.depends, Sequence):
            raise CacheConfigurationError(f"depends={self.depends!r}: give a list")

    @property
    def ignored(self) -> tuple[str, ...]:
        """The names in `ignore`, which may be one str."""
        return (self.ignore,) if isinstance(self.ignore, str) else tuple(self.ignore)


def make_keyer(function: Callable[..., Any], shape: Shape, keying: Keying) -> Keyer:
    """The keyer for calls bound in this shape.

    Raises:
        CacheConfigurationError: `ignore` names what the function does not have, or a marker cannot be evaluated.
    """
    keyer = _keyer_of_calls(function, shape, keying)
    if keying.sample is None:
        return keyer
    from codomyrmex_cache._samples import OneDraw

    return OneDraw(keyer, keying.sample)


def _keyer_of_calls(function: Callable[..., Any], shape: Shape, keying: Keying) -> Keyer:
    parts = _extra_parts(function, keying)
    call = call_of(function) if keying.key is None else None
    if call is not None:
        return _SdkKeyer(call, shape, keying, parts)
    identity: dict[str, Any] = {"name": keying.name, "version": keying.version, "parts": parts}
    if keying.key is not None:
        return _Keyed(function, shape, keying.key, **identity)
    transforms, volatile = _transforms(function, shape, keying.ignored)
    volatile = volatile or any(type(declared).__name__ == "File" for declared in keying.depends)
    shaping = [function for function in (getattr(item, "function", None) for item in transforms.values()) if function]
    return Keyer(function, shape.names, transforms=transforms, volatile=volatile, shaping=shaping, **identity)


class _Keyed(Keyer):
    """A keyer that asks the user's `key=` function."""

    takes_arguments = False

    def __init__(self, function: Any, shape: Shape, key: Callable[..., object], **identity: Any) -> None:
        source = f"def {RESERVED}function({RESERVED}bound): return {RESERVED}target({shape.unpacked})"
        ask = compile_function(source, "key", {f"{RESERVED}target": key})
        super().__init__(function, ("key",), transforms={"key": ask}, shaping=[key], **identity)

    def key(self, bound: Sequence[object]) -> Key:
        return super().key((bound,))

    def parts(self, bound: Sequence[object]) -> Parts:
        return super().parts((bound,))


class _SdkKeyer(Keyer):
    """A keyer for calls of an SDK, whose code does not count: the answers are the provider's."""

    takes_arguments = False

    def __init__(self, call: SdkCall, shape: Shape, keying: Keying, parts: Sequence[Part]) -> None:
        client: Part = ("client", lambda: encode(call.client))
        version = (_SDK_RULES, keying.version)
        name = keying.name or call.name
        super().__init__(type(call.client), (), name=name, version=version, parts=[client, *parts], volatile=True)
        self._call, self._shape, self._ignored = call, shape, frozenset(keying.ignored)
        self._parses = call.method.endswith("parse")

    def key(self, bound: Sequence[object]) -> Key:
        if self._parses:
            self._note(bound)
        return super().key(bound)

    def _note(self, bound: Sequence[object]) -> None:
        """Results may be of the classes in the arguments; of several with one name, of that of this call."""
        for kind in classes_in(bound):
            if not any(kind is known for known in self.classes):
                self.classes[:] = [*[known for known in self.classes if str(known) != str(kind)][-_MOST_CLASSES:], kind]

    def keys(self, calls: Sequence[Sequence[object]]) -> list[Key]:
        """The same, with the client and the like encoded but once."""
        head = self._head or self._make_head()
        shared = b"".join([head, *(each for _, each in super()._encodings(()))])
        return [key_of(self.prefix, b"".join([shared, *(each for _, each in self._arguments(bound))])) for bound in calls]

    def _encodings(self, values: Sequence[object]) -> Iterator[tuple[str, bytes]]:
        yield from super()._encodings(())
        yield from self._arguments(values)

    def _arguments(self, values: Sequence[object]) -> Iterator[tuple[str, bytes]]:
        for name, encoding in arguments_of(self._call, self._shape.names, values):
            part = b"" if name in self._ignored else encoded(name, encoding)
            if part:
                yield name, part

    def parts(self, bound: Sequence[object]) -> Parts:
        if self._head is None:
            self._make_head()
        names, encodings = zip(*self._encodings(bound), strict=True)
        return Parts(self._head_parts, names, b"".join(map(xxh3_64_digest, encodings)))


_MOST_CLASSES = 256

_SDK_RULES = 1
"""What counts of a call of an SDK; another number where that changes."""


def _transforms(function: Any, shape: Shape, ignored: tuple[str, ...]) -> tuple[dict[str, Transform | None], bool]:
    transforms: dict[str, Transform | None] = {}
    volatile = False
    if _has_annotated(function):
        from codomyrmex_cache.markers import transforms_of

        transforms, volatile = transforms_of(function)
        lost = [name for name in transforms if name not in shape.names]
        if lost:
            raise CacheConfigurationError(
                f"{getattr(function, '__qualname__', function)!r}: the marker of parameter {lost[0]!r} (FileContent, By, ...) "
                f"cannot count, because the calls reach it as {', '.join(map(repr, shape.names))}; decorate the function itself"
            )
    unknown = [name for name in ignored if name not in shape.names]
    if unknown and shape.keywords is None:
        raise CacheConfigurationError(
            f"ignore={list(ignored)!r}: {getattr(function, '__qualname__', function)!r} has no parameter "
            f"{', '.join(map(repr, unknown))}; it has {', '.join(map(repr, shape.names)) or 'none'}"
        )
    if unknown and shape.keywords is not None:
        transforms[shape.keywords] = _Without(frozenset(unknown))
    return transforms | dict.fromkeys([name for name in ignored if name in shape.names]), volatile


class _Without:
    """The members of `**kwargs` but for some."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def __call__(self, members: dict[str, object]) -> object:
        return {name: value for name, value in members.items() if name not in self._names}


def _has_annotated(function: Any) -> bool:
    """Whether any annotation could carry a marker; resolving type hints is dear and most functions have none."""
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__annotations__"):
        function = getattr(type(function), "__call__", function)  # noqa: B004
    annotations = getattr(function, "__annotations__", None) or {}
    around = getattr(function, "__globals__", {})
    return not all(isinstance(_named(hint, around), type) for hint in annotations.values())


def _named(hint: object, around: dict[str, Any]) -> object:
    """What a postponed annotation that is a single name stands for; anything else as it is."""
    return around.get(hint, vars(builtins).get(hint)) if isinstance(hint, str) else hint


def _extra_parts(function: Any, keying: Keying) -> list[Part]:
    parts: list[Part] = []
    scope = keying.scope
    if scope is not None:
        ask: Callable[[], object] = scope.get if isinstance(scope, ContextVar) else scope
        parts.append(("scope", lambda: encode(ask())))
    if keying.version == "code" or keying.depends:
        from codomyrmex_cache._versions import Code, dependency

        if keying.version == "code":
            parts.append(("reached code", Code(function).part))
        for index, declared in enumerate(keying.depends):
            parts.append((f"depends[{index}]", dependency(declared)))
    return parts
