"""One decorated function: what its control methods do, beside what `_calls` has of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from codomyrmex_cache import _verbs as verbs
from codomyrmex_cache._calls import Calls, heard
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._effects import Answer, AwaitableResult, Request
from codomyrmex_cache._entries import answered, read
from codomyrmex_cache._entry import MISSING, Entry, Missing
from codomyrmex_cache._flow import opened
from codomyrmex_cache._isolation import is_awaitable
from codomyrmex_cache._record import replace
from codomyrmex_cache.errors import UnkeyableError
from codomyrmex_cache.keys import Key
from codomyrmex_cache.stats import CacheStats

if TYPE_CHECKING:
    from codomyrmex_cache._explain import Explanation

__all__ = ["Memo"]


class Memo(Calls):
    """A decorated function with its control methods, each of which takes the call's own arguments.

    Its base is in a room of its own, since together they are more than one page.
    """

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        """The key text of this call.

        Raises:
            UnkeyableError: an argument has no exact encoding.
        """
        return self._key(args, kwargs).text

    def peek(self, /, *args: Any, **kwargs: Any) -> Any | Missing:
        """The stored result of this call or `MISSING`; nothing runs, nothing is counted."""
        return self._peeked(run(self.cache.space, self._read(args, kwargs)))

    async def apeek(self, /, *args: Any, **kwargs: Any) -> Any | Missing:
        """`peek` for event loops."""
        return self._peeked(await arun(self.cache.space, self._read(args, kwargs)))

    def _peeked(self, entry: Entry | None) -> Any | Missing:
        if entry is None or entry.raised:
            return MISSING
        if not entry.streamed:
            return entry.value
        found = opened(Answer(entry))[0]
        return heard(found, is_async=found.is_async)

    def contains(self, /, *args: Any, **kwargs: Any) -> bool:
        """Whether this call would be a hit."""
        return run(self.cache.space, self._read(args, kwargs)) is not None

    async def acontains(self, /, *args: Any, **kwargs: Any) -> bool:
        """`contains` for event loops."""
        return await arun(self.cache.space, self._read(args, kwargs)) is not None

    def entry(self, /, *args: Any, **kwargs: Any) -> Entry | None:
        """The stored result of this call with its times, or `None`; of a stream its items, of an error the exception."""
        return self._presented(run(self.cache.space, self._read(args, kwargs)))

    async def aentry(self, /, *args: Any, **kwargs: Any) -> Entry | None:
        """`entry` for event loops."""
        return self._presented(await arun(self.cache.space, self._read(args, kwargs)))

    def _presented(self, entry: Entry | None) -> Entry | None:
        if entry is None:
            return None
        if entry.streamed:
            entry = replace(entry, value=entry.value[1])
        elif entry.raised:
            answer = answered(self.cache.space, Request(Key("", b""), _nothing, self.counters, self.rules), entry)
            entry = replace(entry, value=None if answer is None else answer.error)
        return self.cache.presented(entry)

    def refresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function now and store its result; of a coroutine function, an awaitable of that."""
        if self.is_async:
            return self.arefresh(*args, **kwargs)
        bound = self._bind(*args, **kwargs)
        request = self._request(self.keyer.key(bound), partial(self._call, bound), bound, awaits=self._streams_async)
        try:
            answer = run(self.cache.space, verbs.refresh(self.cache.space, request))
        except AwaitableResult as result:
            return self._refresh(request._replace(invoke=_constant(result.awaitable), awaits=True), bound)
        return self.finish(answer, bound, request)

    async def arefresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """`refresh` for event loops."""
        bound = self._bind(*args, **kwargs)
        request = self._request(self.keyer.key(bound), partial(self._call, bound), bound, awaits=True)
        return await self._refresh(request, bound)

    async def _refresh(self, request: Request, bound: tuple[Any, ...]) -> Any:
        answer = await arun(self.cache.space, verbs.refresh(self.cache.space, request))
        return self.finish(answer, bound, request)

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
        """Store `value` as the result of this call; of a generator function, its items."""
        run(self.cache.space, self._store(value, args, kwargs))

    async def aseed(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """`seed` for event loops."""
        await arun(self.cache.space, self._store(value, args, kwargs))

    def explain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        """Why this call would be a hit or a miss; nothing runs, nothing is counted."""
        try:
            found: Explanation = run(self.cache.space, self._explanation(args, kwargs))
        except UnkeyableError as error:
            return _unkeyable(error)
        return found

    async def aexplain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        """`explain` for event loops."""
        try:
            found: Explanation = await arun(self.cache.space, self._explanation(args, kwargs))
        except UnkeyableError as error:
            return _unkeyable(error)
        return found

    def _explanation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.explained(self._bind(*args, **kwargs))

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
        return read(self.cache.space, self._key(args, kwargs), self.counters, copy=self.rules.copy)

    def _store(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.stored(self._bind(*args, **kwargs), value)

    def stored(self, bound: tuple[Any, ...], value: Any) -> Any:
        """The flow that stores a value as the result of a bound call."""
        if self.front.asks and not self.cache.space.ruling().stores:
            return verbs.nothing()
        asynchronous = self._streams_async
        if self.gives_stream:
            value = (asynchronous, list(value), None)
        return verbs.store(
            self.cache.space, self.keyer.key(bound), value, self.counters, ttl=self.rules.ttl, copy=self.rules.copy,
            stale=self.rules.stale, tags=self._tags_of(bound), parts=self._parts(bound),
            awaited=self.is_async or self._hinted or asynchronous, streamed=self.gives_stream,
        )  # fmt: skip

    def _clear(self) -> Any:
        return verbs.clear(self.cache.space, self.keyer.prefix, self.counters, self.keyer.name, self.keyer.owns)


def _constant(result: Any) -> Callable[[], Any]:
    return lambda: result


def _nothing() -> None:
    """Stands for a function that is not run."""


def _unkeyable(error: UnkeyableError) -> Explanation:
    from codomyrmex_cache._explain import Explanation

    return Explanation("unkeyable", "", str(error))
