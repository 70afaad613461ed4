"""`cached`, and what a decorated function looks like to readers, type checkers and classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, Unpack, overload

from codomyrmex_cache._calls import Tags
from codomyrmex_cache._duration import Duration
from codomyrmex_cache._entry import Entry, Missing
from codomyrmex_cache._keying import Keying, Scope
from codomyrmex_cache._ledger import Cost
from codomyrmex_cache._memo import Memo
from codomyrmex_cache._policy import DEFAULT_STREAM_MAX, OnWaitTimeout, Rules, Ttl
from codomyrmex_cache._wiring import StoreOptions
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.manager import CacheManager
from codomyrmex_cache.modes import veil_with_modes
from codomyrmex_cache.stats import CacheStats

if TYPE_CHECKING:
    from codomyrmex_cache._explain import Explanation
    from codomyrmex_cache._samples import Sample

__all__ = ["CachedClassMethod", "CachedFunction", "cached"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S", contravariant=True)
T = TypeVar("T")

_BY_CALL = ("key", "peek", "contains", "entry", "refresh", "bypass", "invalidate", "seed", "explain")
_WHOLE = ("clear", "stats", "cache")
_ASYNC = ("apeek", "acontains", "aentry", "arefresh", "abypass", "ainvalidate", "aseed", "aexplain", "aclear")


class CachedFunction(Protocol[P, R_co]):
    """A decorated function: called as before, with control methods that take the call's own arguments.

    Of a coroutine function `R_co` is the coroutine, and what does I/O has an `a`-twin.  One class for both kinds: with two,
    `cached` is ambiguous for a function that returns `Any`, and mypy then takes the decorated function itself for an `Any`.
    """

    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, R_co]: ...
    @property
    def cache(self) -> Cache: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    @overload
    def peek(self: _Async[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Missing: ...
    @overload
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R_co | Missing: ...
    def contains(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    def entry(self, *args: P.args, **kwargs: P.kwargs) -> Entry | None: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    def seed(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation: ...
    def clear(self) -> int: ...
    def stats(self) -> CacheStats: ...
    async def apeek(self: _Async[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Missing: ...
    async def acontains(self: _Async[P, Any], *args: P.args, **kwargs: P.kwargs) -> bool: ...
    async def aentry(self: _Async[P, Any], *args: P.args, **kwargs: P.kwargs) -> Entry | None: ...
    async def arefresh(self: _Async[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def abypass(self: _Async[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def ainvalidate(self: _Async[P, Any], *args: P.args, **kwargs: P.kwargs) -> bool: ...
    async def aseed(self: _Async[P, Any], value: Any, /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    async def aexplain(self: _Async[P, Any], *args: P.args, **kwargs: P.kwargs) -> Explanation: ...
    async def aclear(self: _Async[P, Any]) -> int: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[type[Any], ...], Any], instance: object, owner: type | None = None, /
    ) -> CachedClassMethod[P, R_co]: ...
    @overload
    def __get__(self, instance: None, owner: type, /) -> CachedFunction[P, R_co]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None, /
    ) -> CachedFunction[Q, T]: ...
    @overload  # static methods; mypy takes these for the case above, pyright does not
    def __get__(self, instance: object, owner: type | None = None, /) -> CachedFunction[P, R_co]: ...


class CachedClassMethod(Protocol[P, R_co]):
    """A decorated function whose first parameter is a class, reached through a class or an object: a class method, bound.

    mypy compares the `self` of `__get__` with its annotation only where that has no type variable of the method's own.  So
    `__get__` can see that the first parameter is a class, but cannot take it off; here each method takes it off.
    """

    __name__: str
    __qualname__: str

    @property
    def cache(self) -> Cache: ...
    def __call__(self: _Bound[Q, T], *args: Q.args, **kwargs: Q.kwargs) -> T: ...
    def key(self: _Bound[Q, Any], *args: Q.args, **kwargs: Q.kwargs) -> str: ...
    @overload
    def peek(self: _Bound[Q, Coroutine[Any, Any, T]], *args: Q.args, **kwargs: Q.kwargs) -> T | Missing: ...
    @overload
    def peek(self: _Bound[Q, T], *args: Q.args, **kwargs: Q.kwargs) -> T | Missing: ...
    def contains(self: _Bound[Q, Any], *args: Q.args, **kwargs: Q.kwargs) -> bool: ...
    def entry(self: _Bound[Q, Any], *args: Q.args, **kwargs: Q.kwargs) -> Entry | None: ...
    def refresh(self: _Bound[Q, T], *args: Q.args, **kwargs: Q.kwargs) -> T: ...
    def bypass(self: _Bound[Q, T], *args: Q.args, **kwargs: Q.kwargs) -> T: ...
    def invalidate(self: _Bound[Q, Any], *args: Q.args, **kwargs: Q.kwargs) -> bool: ...
    def seed(self: _Bound[Q, Any], value: Any, /, *args: Q.args, **kwargs: Q.kwargs) -> None: ...
    def explain(self: _Bound[Q, Any], *args: Q.args, **kwargs: Q.kwargs) -> Explanation: ...
    def clear(self) -> int: ...
    def stats(self) -> CacheStats: ...
    async def apeek(self: _Bound[Q, Coroutine[Any, Any, T]], *args: Q.args, **kwargs: Q.kwargs) -> T | Missing: ...
    async def acontains(self: _Bound[Q, Coroutine[Any, Any, Any]], *args: Q.args, **kwargs: Q.kwargs) -> bool: ...
    async def aentry(self: _Bound[Q, Coroutine[Any, Any, Any]], *args: Q.args, **kwargs: Q.kwargs) -> Entry | None: ...
    async def arefresh(self: _Bound[Q, Coroutine[Any, Any, T]], *args: Q.args, **kwargs: Q.kwargs) -> T: ...
    async def abypass(self: _Bound[Q, Coroutine[Any, Any, T]], *args: Q.args, **kwargs: Q.kwargs) -> T: ...
    async def ainvalidate(self: _Bound[Q, Coroutine[Any, Any, Any]], *args: Q.args, **kwargs: Q.kwargs) -> bool: ...
    async def aseed(self: _Bound[Q, Coroutine[Any, Any, Any]], value: Any, /, *args: Q.args, **kwargs: Q.kwargs) -> None: ...
    async def aexplain(self: _Bound[Q, Coroutine[Any, Any, Any]], *args: Q.args, **kwargs: Q.kwargs) -> Explanation: ...
    async def aclear(self) -> int: ...


_Async: TypeAlias = CachedFunction[P, Coroutine[Any, Any, T]]
_Bound: TypeAlias = CachedClassMethod[Concatenate[Any, Q], T]


class Decorator(Protocol):
    """What `cached(...)` with arguments gives back."""

    def __call__(self, function: Callable[P, T], /) -> CachedFunction[P, T]: ...


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
    key: Callable[..., object] | None = None,
    ignore: Iterable[str] = (),
    scope: Scope | None = None,
    sample: Sample | None = None,
    samples: int | None = None,
    depends: Sequence[object] = (),
    strict: bool = False,
    jitter: float = 0.0,
    stale: Duration = 0.0,
    early: bool | float = False,
    touch: bool = False,
    store_if: Callable[[Any], object] | None = None,
    cost: Cost | None = None,
    errors: Mapping[type[Exception], Duration | None] | None = None,
    tags: Tags = (),
    wait: Duration | None = None,
    on_wait_timeout: OnWaitTimeout = "compute",
    stream: Literal["share", "off"] = "share",
    stream_max: int = DEFAULT_STREAM_MAX,
    batch: str | None = None,
    max_batch: int | None = None,
    copy: bool = True,
    types: Sequence[type] = (),
    manager: CacheManager | None = None,
    **options: Unpack[StoreOptions],
) -> Decorator: ...
def cached(
    namespace: Any = "default",
    ttl: Ttl = None,
    backend: str | Backend | None = None,
    *,
    name: str | None = None,
    version: object = None,
    key: Callable[..., object] | None = None,
    ignore: Iterable[str] = (),
    scope: Scope | None = None,
    sample: Sample | None = None,
    samples: int | None = None,
    depends: Sequence[object] = (),
    strict: bool = False,
    jitter: float = 0.0,
    stale: Duration = 0.0,
    early: bool | float = False,
    touch: bool = False,
    store_if: Callable[[Any], object] | None = None,
    cost: Cost | None = None,
    errors: Mapping[type[Exception], Duration | None] | None = None,
    tags: Tags = (),
    wait: Duration | None = None,
    on_wait_timeout: OnWaitTimeout = "compute",
    stream: Literal["share", "off"] = "share",
    stream_max: int = DEFAULT_STREAM_MAX,
    batch: str | None = None,
    max_batch: int | None = None,
    copy: bool = True,
    types: Sequence[type] = (),
    manager: CacheManager | None = None,
    **options: Unpack[StoreOptions],
) -> Any:
    """Remember a function's results by its arguments.

    Args:
        namespace: where the entries go; shared with `get_cache(namespace)`.
        ttl: how long a result is fresh: seconds, `timedelta`, "1h30m", a callable on the result giving one of these,
            `None` for ever (default), 0 for not stored at all.
        backend: as for `get_cache`; by default what the namespace has, else "in_memory".
        name: identity of the function in keys, instead of module and qualified name; give one to survive a rename.
        version: any encodable value; results of another version are not found.  By default the function's own code (comments,
            docstring and layout apart), so that an edited function does not find its old results; `"code"` for
            that and the project code it reaches.
        key: a function that takes the call's arguments and gives what counts, instead of the arguments themselves.
        ignore: names of parameters, or of members of `**kwargs`, that are not part of the key.
        scope: a function or `ContextVar` whose value is part of the key: entries of one tenant are never another's.
        sample: which of several stored draws of the same call this one wants: an int, or a `ContextVar` or function that gives
            it; part of the key.
        samples: how many draws of one call to store; successive calls get them in turn, and then the first again.
        depends: what results depend on beside the arguments: `File(glob)`, `Env(name)`, `Package(name)` of
            `codomyrmex_cache.markers`, functions (with the code they reach) and plain values.
        strict: raise `UnkeyableError` for an argument without exact encoding, instead of calling the function uncached, and
            `EnvelopeError` or `CacheCodecError` for an entry that cannot be read, instead of taking it as a miss.
        jitter: share of the ttl, 0 to 1, by which each life is shortened at random, so that what was stored together does not
            end together.
        stale: how long after the ttl the old value is still given at once, while one refresh runs in the background; if that
            fails, the old value stays until this time is over.
        early: refresh in the background before the ttl ends, at a moment drawn at random, the earlier the longer a load takes
            (XFetch); `True`, or a factor: beyond 1 earlier, below it later.
        touch: a hit begins the ttl anew.
        store_if: asked for each result whether to store it; by default all are stored.
        cost: asked for each result (of a stream, the list of its items) what it took, in dollars, `None` if that is unknown; by
            default answers of OpenAI's and Anthropic's SDKs are priced if genai-prices is installed.  For statistics alone.
        errors: exception classes to remember, subclasses too, each with its ttl; others are never stored.
        tags: names of results for `invalidate_tags`, or a function of the call's arguments that gives them.
        wait: how long to wait for another caller's load of the same key; by default as long as it takes.
        on_wait_timeout: then "compute" (without storing), give the "stale" value if there still is one, or "raise"
            `CacheTimeoutError`.
        stream: "share" (default): a generator, or another object with `__next__` or `__anext__` and `close`, is given to all
            callers from its first item on, also while it runs, and stored when it is exhausted; "off": not cached.
        stream_max: bytes of a stream, by estimate, beyond which it is passed on without being stored; default 16 MiB.
        batch: name of a parameter that takes a list, of a function that gives a list with one result for each item: every
            item is an entry of its own, and the function is called for those that are missing.
        max_batch: how many items it is given at most.
        copy: hand out fresh copies of mutable results (default), so that no caller can change what the next one gets;
            `False` hands out the stored object itself where the backend keeps objects.
        types: classes that results may be of, beside plain data and what the return annotation names; stored bytes are made
            into objects of these classes only, except by pickle where they are signed.
        manager: a registry other than the process-wide one.
        options: directory, url, secret, codec, compress, encrypt, max_entries, max_bytes, max_value_bytes, durability, mmap,
            near, slots, mode, clock and on_error, as for `CacheManager.get_cache`.

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
        cache = CacheManager.default().get_cache("default")
        return _decorate(namespace, functools.partial(Memo, cache=cache, rules=Rules.checked(), keying=Keying()))
    cache = (manager or CacheManager.default()).get_cache(namespace, backend, **options)
    rules = Rules.checked(
        ttl=ttl, jitter=jitter, stale=stale, early=early, touch=touch, store_if=store_if, errors=errors,
        cost=cost, wait=wait, on_wait_timeout=on_wait_timeout, copy=copy, stream=stream, stream_max=stream_max, strict=strict,
    )  # fmt: skip
    if isinstance(tags, str):
        raise CacheConfigurationError(f"tags={tags!r}: give a list of str, or a function of the call's arguments")
    keying = Keying(
        name=name, version=version, key=key, ignore=ignore, scope=scope, depends=depends, strict=strict, sample=sample,
        samples=samples,
    )  # fmt: skip

    make: Callable[..., Memo] = functools.partial(Memo, cache=cache, rules=rules, keying=keying, tags=tags, types=types)
    if samples is not None:
        from codomyrmex_cache._sampled import SampledMemo

        make = functools.partial(SampledMemo, **make.keywords)  # type: ignore[attr-defined]
    if batch is not None:
        if samples is not None:
            raise CacheConfigurationError("batch= does not go with samples=: use sample=")
        from codomyrmex_cache._batched import BatchMemo

        make = functools.partial(BatchMemo, **make.keywords, batch=batch, max_batch=max_batch)  # type: ignore[attr-defined]
    named: list[Any] = []

    def decorate(function: Any) -> Any:
        if name is not None and version is not None:  # then nothing else would tell two functions apart
            if named and named[0] is not function:
                raise CacheConfigurationError(f"name={name!r} and version={version!r} are of {named[0]!r} already")
            named.append(function)
        return _decorate(function, make)

    return decorate


def _decorate(function: Any, make: Callable[..., Memo]) -> Any:
    if isinstance(function, staticmethod):
        return staticmethod(_decorate(function.__func__, make))
    if isinstance(function, classmethod):
        _check_decorable(function.__func__)
        return CachedMethodOfClass(_wrap(make(function.__func__)))
    _check_decorable(function)
    in_class = _is_in_class_body(function)
    by_class = in_class and function.__name__ in _IMPLICIT_CLASS_METHODS
    wrapper = _wrap(make(function), by_object=in_class and not by_class)
    if not in_class:
        return wrapper
    return CachedMethodOfClass(wrapper) if by_class else CachedMethod(wrapper)


def _check_decorable(function: Any) -> None:
    if not callable(function):
        hint = "decorate the getter, below @property" if isinstance(function, property) else "decorate a function"
        raise CacheConfigurationError(f"cached cannot wrap {function!r}: {hint}")


def _is_in_class_body(function: Any) -> bool:
    scope, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    return isinstance(function, FunctionType) and bool(scope) and not scope.endswith("<locals>")


_IMPLICIT_CLASS_METHODS = ("__class_getitem__", "__init_subclass__")


def _wrap(memo: Memo, *, by_object: bool = False) -> FunctionType:
    """Make the wrapper and give it its function's face and the control methods."""
    kind, cold = memo.entrance
    name = getattr(memo.function, "__name__", "cached")
    wrapper = memo.front.wrapper(kind, name, cold=cold, target=memo.function, copy=memo.rules.copy, by_object=by_object)
    functools.update_wrapper(wrapper, memo.function)
    for control in (*_BY_CALL, *_WHOLE, *_ASYNC):
        setattr(wrapper, control, getattr(memo, control))
    memo.veil()  # which the first call takes off
    veil_with_modes(memo)
    return wrapper


class CachedMethod(staticmethod):  # type: ignore[type-arg]
    """A decorated function in a class body: on access, bound together with its control methods.

    `obj.method.invalidate(x)` must know `obj`, and a plain bound method hands out its function's attributes unbound.  It is a
    `staticmethod` to those who inspect class bodies (pydantic, abc, dataclasses), who know to leave these alone.
    """

    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        return self.__func__ if instance is None else BoundCached(self.__func__, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__func__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__isabstractmethod__":  # `abstractmethod` marks what it is given; a staticmethod shows its function's mark
            setattr(self.__func__, name, value)
        else:
            super().__setattr__(name, value)


class CachedMethodOfClass(CachedMethod):
    """The same for class methods."""

    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        return BoundCached(self.__func__, type(instance) if owner is None else owner)


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
