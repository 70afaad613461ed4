"""Locks among all who use a namespace's store."""

from __future__ import annotations

from contextlib import AbstractContextManager

from codomyrmex_cache._atomic import acquire, lock_key, release
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._effects import Patience
from codomyrmex_cache._space import Space
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.errors import CacheError, CacheTimeoutError

__all__ = ["CacheLock"]


class CacheLock:
    """Held by one at a time: threads, tasks, processes of the machine (file_based), hosts (redis); from `Cache.lock`.

    A holder that dies or freezes loses it after 3.5 seconds.  It may not know: so give `token`, which grows from holder to
    holder, to whatever the lock protects, and have that refuse a smaller token than it has seen (a *fencing token*: Kleppmann,
    "How to do distributed locking", 2016).  Not reentrant.

    >>> from codomyrmex_cache import CacheManager
    >>> with CacheManager().get_cache("docs").lock("report") as lock:
    ...     lock.token > 0
    True
    """

    def __init__(self, space: Space, name: str, wait: float | None) -> None:
        self.name = name
        self.lost = False
        self._space = space
        self._wait = wait
        self._begun: Begun | None = None
        self._holding: AbstractContextManager[None] | None = None

    @property
    def token(self) -> int:
        """The fencing token; raises `CacheError` if the lock is not held."""
        if self._begun is None:
            raise CacheError(f"lock {self.name!r} is not held")
        return self._begun.lease

    def __enter__(self) -> CacheLock:
        self._check_free()
        return self._entered(run(self._space, acquire(self._space, self.name, Patience(self._wait))))

    async def __aenter__(self) -> CacheLock:
        self._check_free()
        return self._entered(await arun(self._space, acquire(self._space, self.name, Patience(self._wait))))

    def __exit__(self, *_: object) -> None:
        run(self._space, release(self._space, self.name, self._left()))

    async def __aexit__(self, *_: object) -> None:
        await arun(self._space, release(self._space, self.name, self._left()))

    def _check_free(self) -> None:
        if self._begun is not None:
            raise CacheError(f"lock {self.name!r} is held by this object already; ask the cache for another one")

    def _entered(self, begun: Begun | None) -> CacheLock:
        if begun is None:
            raise CacheTimeoutError(
                f"namespace {self._space.name!r}: lock {self.name!r} was not free within {self._wait:g} seconds"
            )
        self._begun, self.lost = begun, False
        self._holding = self._space.holding(lock_key(self._space, self.name), begun, self._lose, lambda: False)
        self._holding.__enter__()
        return self

    def _left(self) -> Begun:
        begun, holding = self._begun, self._holding
        assert begun is not None
        assert holding is not None
        holding.__exit__(None, None, None)
        self._begun = self._holding = None
        return begun

    def _lose(self) -> None:
        self.lost = True
