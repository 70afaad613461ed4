"""`cached`, and what a decorated function looks like to readers, type checkers and classes."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Coroutine
from types import FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from codomyrmex_cache._entry import Clock, Entry, Missing
from codomyrmex_cache._front import wrapper_source
from codomyrmex_cache._isolation import isolated
from codomyrmex_cache._memo import Memo
from codomyrmex_cache._policy import Ttl, validated_ttl
from codomyrmex_cache._signature import RESERVED, compile_function
from codomyrmex_cache._space import OnError
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.errors import CacheCodecError, CacheConfigurationError
from codomyrmex_cache.manager import CacheManager
from codomyrmex_cache.stats import CacheStats

if TYPE_CHECKING:
    from codomyrmex_cache._secret import Secret

__all__ = ["AsyncCachedFunction", "CachedFunction", "cached"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S", contravariant=True)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_BY_CALL = ("key", "peek", "contains", "entry", "refresh", "bypass", "invalidate", "seed")
_WHOLE = ("clear", "stats", "cache")
_ASYNC = ("apeek", "acontains", "aentry", "arefresh", "abypass", "ainvalidate", "aseed", "aclear")


class CachedFunction(Protocol[P, R_co]):
    """A decorated function: called as before, with control methods that take the call's own arguments."""

    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, R_co]: ...
    @property
    def cache(self) -> Cache: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R_co | Missing: ...
    def contains(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    def entry(self, *args: P.args, **kwargs: P.kwargs) -> Entry | None: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    def seed(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def clear(self) -> int: ...
    def stats(self) -> CacheStats: ...
    @overload
    def __get__(self, instance: None, owner: type, /) -> CachedFunction[P, R_co]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None, /
    ) -> CachedFunction[Q, T]: ...


class AsyncCachedFunction(Protocol[P, T_co]):
    """A decorated coroutine function; what does I/O has an `a`-twin."""

    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, T_co]]: ...
    @property
    def cache(self) -> Cache: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> T_co | Missing: ...
    def contains(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    def entry(self, *args: P.args, **kwargs: P.kwargs) -> Entry | None: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]: ...
    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    def seed(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def clear(self) -> int: ...
    def stats(self) -> CacheStats: ...
    async def apeek(self, *args: P.args, **kwargs: P.kwargs) -> T_co | Missing: ...
    async def acontains(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    async def aentry(self, *args: P.args, **kwargs: P.kwargs) -> Entry | None: ...
    async def arefresh(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    async def abypass(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    async def ainvalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    async def aseed(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    async def aclear(self) -> int: ...
    @overload
    def __get__(self, instance: None, owner: type, /) -> AsyncCachedFunction[P, T_co]: ...
    @overload
    def __get__(
        self: AsyncCachedFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None, /
    ) -> AsyncCachedFunction[Q, T]: ...


class Decorator(Protocol):
    """What `cached(...)` with arguments gives back."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the more special first
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> AsyncCachedFunction[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> CachedFunction[P, T]: ...


@overload
def cached(  # type: ignore[overload-overlap]  # the more special first
    function: Callable[P, Coroutine[Any, Any, T]], /
) -> AsyncCachedFunction[P, T]: ...
@overload
def cached(function: Callable[P, T], /) -> CachedFunction[P, T]: ...
@overload
def cached(
    namespace: str = "default",
    ttl: Ttl = None,
    backend: str | Backend | None = None,
    *,
    name: str | None = None,
    version: object = None,
    copy: bool = True,
    manager: CacheManager | None = None,
    directory: str | os.PathLike[str] | None = None,
    url: str | None = None,
    secret: Secret | None = None,
    max_entries: int | None = None,
    clock: Clock | None = None,
    on_error: OnError | None = None,
) -> Decorator: ...
def cached(
    namespace: Any = "default",
    ttl: Ttl = None,
    backend: str | Backend | None = None,
    *,
    name: str | None = None,
    version: object = None,
    copy: bool = True,
    manager: CacheManager | None = None,
    **options: Any,
) -> Any:
    """Remember a function's results by its arguments.

    Args:
        namespace: where the entries go; shared with `get_cache(namespace)`.
        ttl: how long a result is fresh: seconds, `timedelta`, "1h30m", a callable on the result giving one of these,
            `None` for ever (default), 0 for not stored at all.
        backend: as for `get_cache`; by default what the namespace has, else "in_memory".
        name: identity of the function in keys, instead of module and qualified name; give one to survive a rename.
        version: any encodable value; results of another version are not found.
        copy: hand out fresh copies of mutable results (default), so that no caller can change what the next one gets;
            `False` hands out the stored object itself where the backend keeps objects.
        manager: a registry other than the process-wide one.
        directory, url, secret, max_entries, clock, on_error: as for `CacheManager.get_cache`.

    Returns:
        The function with the same signature and type, and the control methods key, peek, contains, entry, refresh, bypass,
        invalidate, seed (each takes the call's own arguments), clear, stats and cache.

    Raises:
        CacheConfigurationError: at decoration, for options that mean nothing or contradict the namespace's.

    >>> @cached
    ... def square(x):
    ...     return x * x
    >>> square(3), square(3), square.stats().hits, square.peek(4)
    (9, 9, 1, MISSING)
    """
    if not isinstance(namespace, str) and (callable(namespace) or isinstance(namespace, (classmethod, staticmethod))):
        return _decorate(namespace, (manager or CacheManager.default()).get_cache("default"), None, True, None, None)
    cache = (manager or CacheManager.default()).get_cache(namespace, backend, **options)
    seconds = validated_ttl(ttl)
    if name is not None and (not isinstance(name, str) or not name):
        raise CacheConfigurationError(f"name={name!r}: give a non-empty str")

    def decorate(function: Any) -> Any:
        return _decorate(function, cache, seconds, copy, name, version)

    return decorate


def _decorate(function: Any, cache: Cache, ttl: Ttl, copy: bool, name: str | None, version: object) -> Any:
    if isinstance(function, staticmethod):
        return staticmethod(_decorate(function.__func__, cache, ttl, copy, name, version))
    if isinstance(function, classmethod):
        memo = Memo(function.__func__, cache, ttl=ttl, copy=copy, name=name, version=version)
        return CachedMethod(_wrap(memo, copy=copy), by_class=True)
    _check_decorable(function)
    memo = Memo(function, cache, ttl=ttl, copy=copy, name=name, version=version)
    wrapper = _wrap(memo, copy=copy)
    return CachedMethod(wrapper) if _is_in_class_body(function) else wrapper


def _check_decorable(function: Any) -> None:
    if not callable(function):
        hint = "decorate the getter, below @property" if isinstance(function, property) else "decorate a function"
        raise CacheConfigurationError(f"cached cannot wrap {function!r}: {hint}")
    inner = inspect.unwrap(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise CacheConfigurationError(
            f"{getattr(function, '__qualname__', function)!r} is a generator function: its result can be used only once; "
            f"cache a function that returns a list"
        )


def _is_in_class_body(function: Any) -> bool:
    scope, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    return isinstance(function, FunctionType) and bool(scope) and not scope.endswith("<locals>")


def _wrap(memo: Memo, *, copy: bool) -> FunctionType:
    """Compile the wrapper and give it its function's face and the control methods."""
    source = wrapper_source(memo.shape, is_async=memo.is_async, copy=copy, front=memo.front.enabled)
    scope = {
        **memo.shape.defaults,
        f"{RESERVED}type": type,
        f"{RESERVED}cells": memo.front.cells,
        f"{RESERVED}cold": memo.acold if memo.is_async else memo.cold,
        f"{RESERVED}counters": memo.counters,
        f"{RESERVED}isolated": isolated,
        f"{RESERVED}error": CacheCodecError,
    }
    wrapper = cast(FunctionType, compile_function(source, getattr(memo.function, "__name__", "cached"), scope))
    functools.update_wrapper(wrapper, memo.function)
    memo.front.scope = wrapper.__globals__
    for control in (*_BY_CALL, *_WHOLE, *(_ASYNC if memo.is_async else ())):
        setattr(wrapper, control, getattr(memo, control))
    return wrapper


class CachedMethod(staticmethod):  # type: ignore[type-arg]
    """A decorated function in a class body: on access, bound together with its control methods.

    `obj.method.invalidate(x)` must know `obj`, and a plain bound method hands out its function's attributes unbound.  It is a
    `staticmethod` to those who inspect class bodies (pydantic, abc, dataclasses), who know to leave these alone.
    """

    def __init__(self, wrapper: FunctionType, *, by_class: bool = False) -> None:
        super().__init__(wrapper)
        self._by_class = by_class

    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        receiver = (owner or type(instance)) if self._by_class else instance
        return self.__func__ if receiver is None else BoundCached(self.__func__, receiver)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__func__, name)


class BoundCached(functools.partial):  # type: ignore[type-arg]
    """A decorated method with its object; `functools.partial` calls it in C and `inspect` sees through it."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.func, name)
        if name == "seed" or name == "aseed":
            return functools.partial(_seed_bound, found, self.args[0])
        return functools.partial(found, self.args[0]) if name in _BY_CALL or name in _ASYNC[:-1] else found

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __func__(self) -> Any:
        return self.func


def _seed_bound(seed: Callable[..., Any], receiver: Any, value: Any, /, *args: Any, **kwargs: Any) -> Any:
    return seed(value, receiver, *args, **kwargs)
