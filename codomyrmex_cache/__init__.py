"""Memoization for Python: a decorator, a direct API, and backends in memory, in files and on Redis.

Each public name is imported when it is first asked for, so that a program pays only for the rooms it enters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codomyrmex_cache._entry import MISSING, Entry
    from codomyrmex_cache.backends.file_based import FileBasedBackend
    from codomyrmex_cache.backends.in_memory import InMemoryBackend
    from codomyrmex_cache.backends.redis import RedisBackend
    from codomyrmex_cache.backends.tiered import TieredBackend
    from codomyrmex_cache.cache import Cache
    from codomyrmex_cache.decorator import cached
    from codomyrmex_cache.errors import CacheError
    from codomyrmex_cache.manager import CacheManager, get_cache
    from codomyrmex_cache.markers import By, FileContent, Ignore
    from codomyrmex_cache.stats import CacheStats

__all__ = [
    "MISSING",
    "By",
    "Cache",
    "CacheError",
    "CacheManager",
    "CacheStats",
    "Entry",
    "FileBasedBackend",
    "FileContent",
    "Ignore",
    "InMemoryBackend",
    "RedisBackend",
    "TieredBackend",
    "cached",
    "get_cache",
]

_ROOMS = {
    "MISSING": "_entry",
    "By": "markers",
    "Cache": "cache",
    "CacheError": "errors",
    "CacheManager": "manager",
    "CacheStats": "stats",
    "Entry": "_entry",
    "FileBasedBackend": "backends.file_based",
    "FileContent": "markers",
    "Ignore": "markers",
    "InMemoryBackend": "backends.in_memory",
    "RedisBackend": "backends.redis",
    "TieredBackend": "backends.tiered",
    "cached": "decorator",
    "get_cache": "manager",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
