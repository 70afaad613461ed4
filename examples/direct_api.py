"""The direct API: a namespace used by key.

    python examples/direct_api.py [in_memory | file_based | redis]

The output is the same with each backend.  "redis" needs a server, at CODOMYRMEX_CACHE_REDIS_URL or on this machine; without
one every call works and finds nothing.
"""

from __future__ import annotations

import argparse

from codomyrmex_cache import Cache, CacheError, CacheManager, CacheStats, cached, get_cache


# A decorator may name a namespace before anything else is known of it; `main` says which backend it has.
@cached("llm_responses", ttl="1h")
def shout(text: str) -> str:
    """Stands for a call that takes long."""
    return text.upper()


def main() -> None:
    parser = argparse.ArgumentParser(description="Use a cache by key.")
    parser.add_argument("backend", nargs="?", default="in_memory", choices=["in_memory", "file_based", "redis"])
    backend: str = parser.parse_args().backend

    cache: Cache = get_cache(name="llm_responses", backend=backend)
    cache.set("k", {"text": "hello", "tokens": 3}, ttl=3600)
    print("get:", cache.get("k"))
    print("has:", cache.has("k"))
    print("delete:", cache.delete("k"))
    print("get after delete:", cache.get("k", default="nothing"))
    stats: CacheStats = cache.stats()
    print(f"hit rate: {stats.hit_rate:.2%}")

    # a function decorated for the same namespace shares its entries and its statistics
    shout.clear()
    print("decorated:", shout("hello"), shout("hello"))
    print("in the namespace:", [key.partition(":")[0] for key in cache.keys()])  # noqa: SIM118  a Cache is not iterable
    print(f"hit rate with the decorated calls: {cache.stats().hit_rate:.2%}")

    try:
        get_cache(name="llm_responses", backend="file_based" if backend == "in_memory" else "in_memory")
    except CacheError as error:
        print("contradiction:", type(error).__name__)

    # a manager of its own shares nothing with `get_cache` but the files below the cache folder
    manager = CacheManager()
    results = manager.get_cache("code_analysis", backend="file_based")
    results.set("module.py", {"functions": 12, "branches": (3, 4)}, ttl="1h")
    print("from a file:", results.get("module.py"))

    for closing in (CacheManager.default(), manager):
        closing.close()


if __name__ == "__main__":
    main()
