"""Registries of namespaces: your own, and the process-wide one behind `cached` and `get_cache`."""

from __future__ import annotations

from threading import Lock
from typing import Any, Unpack, overload

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._wiring import BUDGET, CacheOptions, Options, check_namespace
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.backends.in_memory import Budget, check_max_bytes
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.stats import CacheStats, Scope

__all__ = ["CacheManager", "get_cache"]


class CacheManager:
    """A registry of namespaces; one name is one set of entries and one set of statistics.

    Args:
        directory: root for its file-based namespaces (else CODOMYRMEX_CACHE_DIR, else the platform's cache folder).
        url: of its Redis server (else CODOMYRMEX_CACHE_REDIS_URL, else redis://localhost:6379/0).
        secret: signs stored bytes (else CODOMYRMEX_CACHE_SECRET, else for files one made and kept for this user).
        clock: seconds, for tests.
        on_error: "bypass" (default: a failing backend is a miss, counted and logged once) or "raise".
        max_bytes: of all its in-memory namespaces together (see `limit_memory`), and of each file-based one and near cache.
        options: any other option of `get_cache`, for all its namespaces.

    >>> manager = CacheManager()
    >>> manager.get_cache("a").set("k", 1)
    >>> manager.get_cache("a").get("k"), manager.stats("a").hits, sorted(manager.stats())
    (1, 1, ['a'])
    """

    def __init__(
        self,
        **options: Unpack[CacheOptions],
    ) -> None:
        self._defaults = Options(**options)
        self._caches: dict[str, Cache] = {}
        self._budget = Budget(self._defaults.max_bytes)
        self._wires: dict[str, Any] = {BUDGET: self._budget}  # with the connections to servers, which the namespaces share
        self._lock = Lock()
        renew_after_fork(self)

    @classmethod
    def default(cls) -> CacheManager:
        """The process-wide manager."""
        return _default_manager()

    def get_cache(self, name: str = "default", backend: str | Backend | None = None, **options: Unpack[CacheOptions]) -> Cache:
        """The namespace of this name, made if it is new.

        Args:
            name: any non-empty str.
            backend: "in_memory", "file_based", "redis", a registered name, or an object with the backend's methods
                (else CODOMYRMEX_CACHE_BACKEND, else "in_memory").
            directory, url, secret: where files go, the Redis server, what signs stored bytes.
            codec, compress, encrypt, types: how values become bytes.
            max_entries, max_bytes, max_value_bytes: bounds.
            durability, mmap: of files.  slots: parts over which a namespace is spread in a Redis Cluster.
            near: answer from this process's memory what it has read from Redis lately; `True` or a bound on the age.
            clock, on_error, strict: seconds for tests; what failures do.  README, "The decorator" and "Settings", has them all.

        Raises:
            CacheConfigurationError: an option means nothing, or contradicts what the namespace was set up with.
        """
        said = Options(backend=backend, **options)
        check_namespace(name)
        with self._lock:
            found = self._caches.get(name)
            if found is None:
                found = self._caches[name] = Cache(name, said.over(self._defaults), self._wires)
                return found
        found.configure(said)
        return found

    def limit_memory(self, max_bytes: int | None) -> None:
        """Bound what its in-memory namespaces hold together; beyond it the one that holds the most evicts.

        Backends that were passed as objects have their own bounds.  Bytes are counted as in `InMemoryBackend`.

        Args:
            max_bytes: in all; `None` for no bound.

        >>> manager = CacheManager()
        >>> manager.limit_memory(100_000)
        >>> for name in ("a", "b"):
        ...     for number in range(100):
        ...         manager.get_cache(name).set(str(number), "x" * 1000)
        >>> manager.total().size
        60
        """
        self._budget.limit(None if max_bytes is None else check_max_bytes(max_bytes))

    @overload
    def stats(self, namespace: str, *, scope: Scope = "process") -> CacheStats: ...
    @overload
    def stats(self, *, scope: Scope = "process") -> dict[str, CacheStats]: ...
    def stats(self, namespace: str | None = None, *, scope: Scope = "process") -> CacheStats | dict[str, CacheStats]:
        """The statistics of one namespace, or a mapping of all of this manager.

        Args:
            namespace: its name.
            scope: "process", or "all" processes and hosts; see `Cache.stats`.
        """
        if namespace is not None:
            found = self._caches.get(namespace)
            return CacheStats() if found is None else found.stats(scope)
        return {name: cache.stats(scope) for name, cache in sorted(self._caches.items())}

    def total(self, *, scope: Scope = "process") -> CacheStats:
        """The sum over all namespaces of this manager, in this process or in "all"."""
        return CacheStats.merge(cache.stats(scope) for cache in list(self._caches.values()))

    def report(self, *, rich: bool | None = None) -> str:
        """The statistics of this process as a table for people: a line for each namespace, function and model.

        Below it stand the functions in which caching loses (20 lookups or more, hit rate below 5 %), each with the argument
        that never repeats, as far as the last loads show it.

        Args:
            rich: in colours and boxes, by the package rich; by default if that is installed and the standard output is a
                terminal that takes them.  What goes elsewhere is better plain: `False`.

        Raises:
            ImportError: rich was asked for and is not installed.
        """
        from codomyrmex_cache._report import report

        return report(dict(self._caches), rich=rich)

    def close(self) -> None:
        """Release the files and connections of all namespaces; a later use opens them again."""
        for cache_ in list(self._caches.values()):
            cache_.close()

    async def aclose(self) -> None:
        """`close` for event loops."""
        for cache_ in list(self._caches.values()):
            await cache_.aclose()

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it."""
        self._lock = Lock()


_default_lock = Lock()
_defaults: list[CacheManager] = []


def _default_manager() -> CacheManager:
    if not _defaults:
        with _default_lock:
            if not _defaults:
                _defaults.append(CacheManager())
    return _defaults[0]


def get_cache(name: str = "default", backend: str | Backend | None = None, **options: Unpack[CacheOptions]) -> Cache:
    """`CacheManager.default().get_cache(...)`: the namespace of this name in this process.

    >>> cache = get_cache(name="llm_responses", backend="in_memory")
    >>> cache.set("k", {"text": "hello"}, ttl=3600)
    >>> cache.has("k"), cache.delete("k"), cache.has("k")
    (True, True, False)
    """
    return CacheManager.default().get_cache(name, backend, **options)
