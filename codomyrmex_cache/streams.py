"""What a caller of a memoized stream is given: an iterator over a stream that others may be reading too.

The first caller's stream runs; whoever calls meanwhile hears it from its first item; when it is exhausted it is stored, and
from then on it is replayed.  A stream that breaks off or that everybody leaves is not stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Lock
from typing import Any, Generic, TypeVar

from codomyrmex_cache._isolation import is_stream
from codomyrmex_cache._pump import pump_of, take
from codomyrmex_cache._recording import Abandoned, Listener, Recording
from codomyrmex_cache.errors import CacheStreamError

__all__ = ["AsyncCachedStream", "CachedStream", "is_async_stream", "is_stream"]

T = TypeVar("T")
Opened = tuple[Recording, Listener]


def is_async_stream(value: object) -> bool:
    """Whether `async for` uses it up; asked of what `is_stream` accepts.

    >>> async def letters():
    ...     yield "a"
    >>> is_async_stream(letters()), is_async_stream(letter for letter in "a")
    (True, False)
    """
    return hasattr(type(value), "__anext__")


class _View:
    """A listener's place, if it has one yet."""

    def __init__(self, source: Any) -> None:
        self._opened: Opened | None = None
        self._done = False
        self._opener: Any = None if isinstance(source, Recording) else source
        self._opening = Lock()
        if isinstance(source, Recording):
            listener = source.listen()
            if listener is None:
                raise CacheStreamError("the stream takes no more listeners; call again to start it anew")
            self._opened = (source, listener)

    def __repr__(self) -> str:
        state = "done" if self._done else "not begun" if self._opened is None else f"at {self._opened[1].position}"
        return f"<{type(self).__name__} {state}>"

    def __del__(self) -> None:
        with suppress(Exception):  # a finalizer has nobody to raise to; upstream's `close` is user code
            self._leave()

    def _begin(self) -> None:
        """As a generator does, refuse a second thread or task while the first one is opening."""
        if not self._opening.acquire(blocking=False):
            raise ValueError("stream is being opened by another thread or task")

    def _enter(self, opened: Opened) -> Opened | None:
        self._opened = opened
        if self._done:  # closed while it was being opened
            self._leave()
        return self._opened

    def _starts_over(self, listener: Listener) -> bool:
        """Whether what is lost to this listener is no loss, since it has heard nothing yet."""
        if not listener.lost or listener.position or self._opener is None or self._done:
            return False
        self._drop()
        return True

    def _leave(self) -> Recording | None:
        """Needs no more; answers the recording it was in."""
        self._done = True
        return self._drop()

    def _drop(self) -> Recording | None:
        opened, self._opened = self._opened, None
        if opened is None:
            return None
        opened[0].leave(opened[1])
        return opened[0]


class CachedStream(_View, Generic[T]):
    """An iterator over a memoized stream, from its first item on.

    It begins with the first `next`, as a generator does.  Leave it early with `close`, `with` or by dropping it; when the last
    of its listeners leaves, the stream itself is closed.

    Args:
        source: gives the recording and a place in it, called when the first item is wanted; or a recording, joined at once.

    >>> def opened():
    ...     recording = Recording.finished(["a", "b"], None, is_async=False, copy=True)
    ...     return recording, recording.listen()
    >>> with CachedStream(opened) as stream:
    ...     list(stream)
    ['a', 'b']
    """

    def __init__(self, source: Callable[[], Opened] | Recording) -> None:
        super().__init__(source)

    def __iter__(self) -> CachedStream[T]:
        return self

    def __next__(self) -> T:
        """The next item.

        Raises:
            CacheStreamError: the stream was broken off in another caller's hands, after this one had heard some of it.
        """
        while True:
            opened = self._opened or self._open()
            if opened is None:
                raise StopIteration
            recording, listener = opened
            try:
                item: T = recording.take(listener)
                return item
            except BaseException as error:  # the end for this listener, whatever it is, as with a generator
                if not isinstance(error, CacheStreamError) or not self._starts_over(listener):
                    self._leave()
                    raise

    def __enter__(self) -> CachedStream[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hear no more."""
        self._leave()

    def _open(self) -> Opened | None:
        if self._done:
            return None
        self._begin()
        try:
            return self._opened or self._enter(self._opener())
        except BaseException:
            self._done = True
            raise
        finally:
            self._opening.release()


class AsyncCachedStream(_View, Generic[T]):
    """The same for `async for`; it may be read in another event loop than the one that runs the stream.

    Args:
        source: a coroutine function that gives the recording and a place in it; or a recording, joined at once.

    >>> import asyncio
    >>> async def opened():
    ...     recording = Recording.finished(["a", "b"], None, is_async=True, copy=True)
    ...     return recording, recording.listen()
    >>> async def read():
    ...     async with AsyncCachedStream(opened) as stream:
    ...         return [item async for item in stream]
    >>> asyncio.run(read())
    ['a', 'b']
    """

    def __init__(self, source: Callable[[], Awaitable[Opened]] | Recording) -> None:
        super().__init__(source)

    def __aiter__(self) -> AsyncCachedStream[T]:
        return self

    async def __anext__(self) -> T:
        """The next item.  Cancelling it is leaving.

        Raises:
            CacheStreamError: the stream was broken off, or its event loop stands still, after this one had heard some of it.
        """
        while True:
            opened = self._opened or await self._open()
            if opened is None:
                raise StopAsyncIteration
            recording, listener = opened
            try:
                item: T = await take(recording, listener)
                return item
            except BaseException as error:  # the end for this listener, whatever it is, as with a generator
                if not isinstance(error, CacheStreamError) or not self._starts_over(listener):
                    self._leave()
                    raise

    async def __aenter__(self) -> AsyncCachedStream[T]:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hear no more; if nobody else does, wait until the stream is closed."""
        recording = self._leave()
        if recording is not None and isinstance(recording.ending, Abandoned):
            await pump_of(recording).closed()

    async def close(self) -> None:
        """The same, under the name that SDKs' streams have for it."""
        await self.aclose()

    async def _open(self) -> Opened | None:
        if self._done:
            return None
        self._begin()
        try:
            return self._opened or self._enter(await self._opener())
        except BaseException:
            self._done = True
            raise
        finally:
            self._opening.release()
