"""One decorated function: its keys, its cold path, and what its control methods do."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import iscoroutine, iscoroutinefunction, unwrap
from typing import Any

from codomyrmex_cache import _verbs as verbs
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._entry import MISSING, Entry, Missing
from codomyrmex_cache._explain import Explanation, explain
from codomyrmex_cache._flow import Answer, AwaitableResult, Request, call, read
from codomyrmex_cache._front import Front
from codomyrmex_cache._isolation import is_awaitable, is_immutable
from codomyrmex_cache._keying import Keying, make_keyer
from codomyrmex_cache._policy import Ttl
from codomyrmex_cache._signature import RESERVED, compile_function, shape_of
from codomyrmex_cache.backends.in_memory import Cell
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.errors import UnkeyableError
from codomyrmex_cache.keys import Key
from codomyrmex_cache.stats import CacheStats

__all__ = ["Memo"]

logger = logging.getLogger(__name__)


class Memo:
    """What the wrapper, the control methods and the cache of one function share.

    Args:
        function: the user's.
        cache: its namespace.
        ttl: validated fresh time.
        copy: whether handed-out results are kept apart from stored ones.
        keying: what the decorator says about keys.
    """

    def __init__(self, function: Callable[..., Any], cache: Cache, *, ttl: Ttl, copy: bool, keying: Keying) -> None:
        self.function = function
        self.cache = cache
        self.shape = shape_of(function)
        self.keyer = make_keyer(function, self.shape, keying)
        self._strict = keying.strict
        self.counters = cache.counters(self.keyer.name)
        self.is_async = iscoroutinefunction(function) or iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004
        self.front = Front(self.shape, enabled=self.keyer.depends_on_arguments_only)
        self._ttl = ttl
        self._copy = copy
        self._hinted = not self.is_async and iscoroutinefunction(unwrap(function))
        target: dict[str, object] = {f"{RESERVED}target": function}
        self._call = compile_function(
            f"def {RESERVED}function({RESERVED}bound): return {RESERVED}target({self.shape.unpacked})", "call", target
        )
        self._bind = compile_function(
            f"def {RESERVED}function({self.shape.declaration}): return {self.shape.bound}",
            getattr(function, "__name__", "call"),
            self.shape.defaults,
        )

    # -- calls

    def cold(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call that the front could not; if the function gives an awaitable for it, so does this."""
        invoke: Callable[[], Any] = partial(self._call, bound)
        try:
            key = self.keyer.key(bound)
        except UnkeyableError as error:
            return self._uncached(error, invoke)
        if self._hinted:
            # A wrapper around a coroutine function.  Calling it tells whether it hands the coroutine on or runs it itself;
            # if it hands it on, nothing has run yet, and a loop need not wait for the store meanwhile.
            try:
                result = invoke()
            except BaseException:
                self.counters.add("misses")
                raise
            if is_awaitable(result):
                return self._adopt(key, bound, result)
            self._hinted = False
            invoke = _constant(result)
        space = self.cache.space
        try:
            answer = run(space, call(space, self._request(key, invoke, bound)))
        except AwaitableResult as result:
            return self._adopt(key, bound, result.awaitable)
        if answer.entry is not None and answer.entry.awaited:
            return _ready(answer.entry.value)
        return self._finish(answer, bound, key)

    async def acold(self, bound: tuple[Any, ...]) -> Any:
        """The same in an event loop."""
        try:
            key = self.keyer.key(bound)
        except UnkeyableError as error:
            return await self._uncached(error, partial(self._call, bound))
        space = self.cache.space
        answer = await arun(space, call(space, self._request(key, partial(self._call, bound), bound, awaits=True)))
        return self._finish(answer, bound, key)

    async def _adopt(self, key: Key, bound: tuple[Any, ...], awaitable: Awaitable[Any]) -> Any:
        """Finish in the event loop a call whose function has already given back its awaitable."""
        taken = False

        def invoke() -> Awaitable[Any]:
            nonlocal taken
            taken = True
            return awaitable

        space = self.cache.space
        try:
            answer = await arun(space, call(space, self._request(key, invoke, bound, awaits=True)))
        finally:
            if not taken and iscoroutine(awaitable):
                awaitable.close()
        return self._finish(answer, bound, key)

    def _request(self, key: Key, invoke: Callable[[], Any], bound: tuple[Any, ...], *, awaits: bool = False) -> Request:
        """Between the making of a key and the start of its function an event loop may let others change the arguments."""
        still = partial(self._is_still, key, bound)
        unmoved = still if awaits and not all(map(is_immutable, bound)) else None
        unchanged = still if self.keyer.volatile else None
        parts = partial(self._parts, bound)
        return Request(key, invoke, self.counters, self._ttl, self._copy, awaits, parts, unmoved, unchanged)

    def _parts(self, bound: tuple[Any, ...]) -> tuple[tuple[str, bytes], ...]:
        try:
            return self.keyer.parts(bound)
        except UnkeyableError:  # changed since the key was made; the explanation is the poorer for it
            return ()

    def _is_still(self, key: Key, bound: tuple[Any, ...]) -> bool:
        try:
            return self.keyer.key(bound) == key
        except UnkeyableError:
            return False

    def _finish(self, answer: Answer, bound: tuple[Any, ...], key: Key) -> Any:
        if answer.entry is None:
            assert answer.error is not None
            raise answer.error
        if answer.entry.awaited is self.is_async:  # a plain wrapper that returns awaitables has no use for bare values
            self._promote(bound, key)
        return answer.entry.value

    def _promote(self, bound: tuple[Any, ...], key: Key) -> None:
        """Let the next call with these arguments be a hot hit."""
        space = self.cache.space
        cell_of: Callable[[bytes], Cell | None] | None = getattr(space.backend, "cell", None)
        if cell_of is None or not self.front.accepts(bound):
            return
        cell = cell_of(space.stored(key.text))
        entry = None if cell is None else cell.entry
        if cell is not None and entry is not None and entry.digest == key.digest and entry.awaited is self.is_async:
            self.front.fill(bound, cell, space.clock)

    def _uncached(self, error: UnkeyableError, invoke: Callable[[], Any]) -> Any:
        if self._strict:
            raise error
        self.counters.add("bypasses")
        if self.counters.error("unkeyable") == 1:
            logger.warning(
                "%s is called without caching: %s.  Leave the parameter out of the key with ignore=, say what counts with "
                "Annotated[..., By(function)], or give its class a __cache_key__ method.",
                self.keyer.name, error,
            )  # fmt: skip
        return invoke()

    # -- control methods; each takes the call's own arguments

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        """The key text of this call.

        Raises:
            UnkeyableError: an argument has no exact encoding.
        """
        return self._key(args, kwargs).text

    def peek(self, /, *args: Any, **kwargs: Any) -> Any | Missing:
        """The stored result of this call or `MISSING`; nothing runs, nothing is counted."""
        entry = run(self.cache.space, self._read(args, kwargs))
        return MISSING if entry is None else entry.value

    async def apeek(self, /, *args: Any, **kwargs: Any) -> Any | Missing:
        """`peek` for event loops."""
        entry = await arun(self.cache.space, self._read(args, kwargs))
        return MISSING if entry is None else entry.value

    def contains(self, /, *args: Any, **kwargs: Any) -> bool:
        """Whether this call would be a hit."""
        return run(self.cache.space, self._read(args, kwargs)) is not None

    async def acontains(self, /, *args: Any, **kwargs: Any) -> bool:
        """`contains` for event loops."""
        return await arun(self.cache.space, self._read(args, kwargs)) is not None

    def entry(self, /, *args: Any, **kwargs: Any) -> Entry | None:
        """The stored result of this call with its times, or `None`."""
        entry = run(self.cache.space, self._read(args, kwargs))
        return None if entry is None else self.cache.presented(entry)

    async def aentry(self, /, *args: Any, **kwargs: Any) -> Entry | None:
        """`entry` for event loops."""
        entry = await arun(self.cache.space, self._read(args, kwargs))
        return None if entry is None else self.cache.presented(entry)

    def refresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function now and store its result; of a coroutine function, an awaitable of that."""
        if self.is_async:
            return self.arefresh(*args, **kwargs)
        bound = self._bind(*args, **kwargs)
        request = self._request(self.keyer.key(bound), partial(self._call, bound), bound)
        try:
            answer = run(self.cache.space, verbs.refresh(self.cache.space, request))
        except AwaitableResult as result:
            return self._refresh(request._replace(invoke=_constant(result.awaitable), awaits=True), bound)
        return self._finish(answer, bound, request.key)

    async def arefresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """`refresh` for event loops."""
        bound = self._bind(*args, **kwargs)
        request = self._request(self.keyer.key(bound), partial(self._call, bound), bound, awaits=True)
        return await self._refresh(request, bound)

    async def _refresh(self, request: Request, bound: tuple[Any, ...]) -> Any:
        answer = await arun(self.cache.space, verbs.refresh(self.cache.space, request))
        return self._finish(answer, bound, request.key)

    def bypass(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function as if it were not decorated; counted as a bypass."""
        self.counters.add("bypasses")
        return self.function(*args, **kwargs)

    async def abypass(self, /, *args: Any, **kwargs: Any) -> Any:
        """`bypass` for event loops."""
        result = self.bypass(*args, **kwargs)
        return await result if is_awaitable(result) else result

    def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """Forget the result of this call, also one being computed; whether there was one."""
        return run(self.cache.space, verbs.delete(self.cache.space, self._key(args, kwargs), self.counters))

    async def ainvalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """`invalidate` for event loops."""
        return await arun(self.cache.space, verbs.delete(self.cache.space, self._key(args, kwargs), self.counters))

    def seed(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store `value` as the result of this call."""
        run(self.cache.space, self._store(value, args, kwargs, awaited=self.is_async or self._hinted))

    async def aseed(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """`seed` for event loops."""
        await arun(self.cache.space, self._store(value, args, kwargs, awaited=True))

    def explain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        """Why this call would be a hit or a miss; nothing runs, nothing is counted."""
        try:
            found: Explanation = run(self.cache.space, self._explanation(args, kwargs))
        except UnkeyableError as error:
            return Explanation("unkeyable", "", str(error))
        return found

    async def aexplain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        """`explain` for event loops."""
        try:
            found: Explanation = await arun(self.cache.space, self._explanation(args, kwargs))
        except UnkeyableError as error:
            return Explanation("unkeyable", "", str(error))
        return found

    def _explanation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = self._bind(*args, **kwargs)
        return explain(self.cache.space, self.keyer, self.keyer.key(bound), self._parts(bound), self.counters)

    def clear(self) -> int:
        """Forget all results of this function; how many there were."""
        return int(run(self.cache.space, self._clear()))

    async def aclear(self) -> int:
        """`clear` for event loops."""
        return int(await arun(self.cache.space, self._clear()))

    def stats(self) -> CacheStats:
        """What happened to the calls of this function so far; `size` counts its own entries."""
        return self.counters.snapshot(self.cache.size(self.keyer.prefix))

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        return self.keyer.key(self._bind(*args, **kwargs))

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return read(self.cache.space, self._key(args, kwargs), self.counters, copy=self._copy)

    def _store(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, awaited: bool) -> Any:
        bound = self._bind(*args, **kwargs)
        return verbs.store(
            self.cache.space, self.keyer.key(bound), value, self.counters,
            ttl=self._ttl, copy=self._copy, awaited=awaited, parts=self._parts(bound),
        )  # fmt: skip

    def _clear(self) -> Any:
        return verbs.clear(self.cache.space, self.keyer.prefix, self.counters, self.keyer.owns)


def _constant(result: Any) -> Callable[[], Any]:
    return lambda: result


async def _ready(value: Any) -> Any:
    return value
