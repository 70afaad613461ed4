"""The public API as a type checker sees it in a user's program: mypy reads this, nothing here is called.

A `type: ignore` is a test too: mypy reports the ones that it does not need, so each marks a line that must be an error,
or, where the comment says so, one that should not be.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, Never, Self, TypeVar, assert_type

from codomyrmex_cache import (
    MISSING,
    Cache,
    CacheManager,
    CacheStats,
    Entry,
    FileBasedBackend,
    InMemoryBackend,
    RedisBackend,
    cached,
    get_cache,
)
from codomyrmex_cache._entry import Missing
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.stats import ModelStats

T = TypeVar("T")

manager = CacheManager()


class DictBackend:
    """A backend of somebody else's: nothing inherited, the methods of the contract."""

    payload: Literal["object"] = "object"

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}

    def get(self, key: bytes) -> Entry | None:
        return self.entries.get(key)

    def set(self, key: bytes, entry: Entry) -> None:
        self.entries[key] = entry

    def has(self, key: bytes) -> bool:
        return key in self.entries

    def delete(self, key: bytes) -> bool:
        return self.entries.pop(key, None) is not None

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, float | None]]:
        return ((key, entry.expires_at) for key, entry in self.entries.items() if key.startswith(prefix))

    def close(self) -> None: ...


class WriteOnlyBackend:
    """Not a backend."""

    payload: Literal["object"] = "object"

    def set(self, key: bytes, entry: Entry) -> None: ...


class SteppedClock:
    """A clock of somebody else's."""

    def __call__(self) -> float:
        return 0.0


# -- functions


@cached
def bare(x: int, *, word: str = "") -> list[int]:
    return [x]


@cached("typing", ttl="1h", manager=manager)
def configured(x: int, *, word: str = "") -> list[int]:
    return [x]


@cached(manager=manager)
def optional(x: int) -> int | None:
    return None


@cached(manager=manager)
def generic(x: T) -> list[T]:
    return [x]


@cached(manager=manager)
def untyped_result(x: int) -> Any:
    return x


def check_sync_functions() -> None:
    assert_type(bare(1, word="a"), list[int])
    assert_type(configured(1, word="a"), list[int])
    assert_type(generic("a"), list[str])
    bare("a")  # type: ignore[arg-type]
    configured("a")  # type: ignore[arg-type]
    bare(1, word=2)  # type: ignore[arg-type]
    configured(1, letters="a")  # type: ignore[call-arg]
    configured()  # type: ignore[call-arg]
    assert_type(configured.__name__, str)
    assert_type(configured.__wrapped__(1), list[int])
    assert_type(list(map(configured, [1, 2])), list[list[int]])
    callback: Callable[[int], list[int]] = configured
    callback(1)


def check_control_methods() -> None:
    assert_type(configured.key(1, word="a"), str)
    assert_type(configured.contains(1), bool)
    assert_type(configured.entry(1), Entry | None)
    assert_type(configured.refresh(1), list[int])
    assert_type(configured.bypass(1), list[int])
    assert_type(configured.invalidate(1), bool)
    assert_type(configured.clear(), int)
    assert_type(configured.stats(), CacheStats)
    assert_type(configured.cache, Cache)
    configured.seed([1], 1, word="a")
    configured.key("a")  # type: ignore[arg-type]
    configured.peek("a")  # type: ignore[arg-type]
    configured.invalidate("a")  # type: ignore[arg-type]
    configured.refresh()  # type: ignore[call-arg]
    configured.seed([1])  # type: ignore[call-arg]
    configured.seed([1], "a")  # type: ignore[arg-type]
    configured.ainvalidate(1)  # type: ignore[misc, unused-coroutine]  # no coroutine function, no a-twins


def check_a_miss_is_told_apart() -> None:
    found = configured.peek(1)
    assert_type(found, list[int] | Missing)
    found.append(1)  # type: ignore[union-attr]
    if found is MISSING:
        assert_type(found, Literal[Missing.MISSING])
    else:
        assert_type(found, list[int])
    if found:
        assert_type(found, list[int])
    nothing = optional.peek(1)
    if nothing is not MISSING:
        assert_type(nothing, int | None)


def check_a_result_of_type_any() -> None:
    assert_type(untyped_result(1), Any)
    assert_type(untyped_result.invalidate(1), bool)
    untyped_result("a")  # type: ignore[arg-type]


# -- coroutine functions


@cached
async def bare_coroutine(x: int) -> str:
    return ""


@cached("typing", manager=manager)
async def configured_coroutine(x: int) -> str:
    return ""


async def check_coroutine_functions() -> None:
    assert_type(await bare_coroutine(1), str)
    assert_type(await configured_coroutine(1), str)
    await bare_coroutine("a")  # type: ignore[arg-type]
    await configured_coroutine("a")  # type: ignore[arg-type]
    assert_type(configured_coroutine.peek(1), str | Missing)
    assert_type(await configured_coroutine.apeek(1), str | Missing)
    assert_type(await configured_coroutine.acontains(1), bool)
    assert_type(await configured_coroutine.aentry(1), Entry | None)
    assert_type(await configured_coroutine.refresh(1), str)
    assert_type(await configured_coroutine.arefresh(1), str)
    assert_type(await configured_coroutine.abypass(1), str)
    assert_type(await bare_coroutine.ainvalidate(1), bool)
    assert_type(await configured_coroutine.ainvalidate(1), bool)
    await configured_coroutine.aseed("value", 1)
    await configured_coroutine.ainvalidate("a")  # type: ignore[arg-type]
    assert_type(await configured_coroutine.aclear(), int)
    callback: Callable[[int], Awaitable[str]] = configured_coroutine
    await callback(1)


# -- classes


class Shop:
    @cached
    def price(self, item: str, count: int = 1) -> float:
        return 1.0

    @cached("typing", manager=manager)
    async def later(self, item: str) -> float:
        return 1.0

    @cached("typing", manager=manager)
    def itself(self, item: str) -> Self:
        return self

    @property
    @cached("typing", manager=manager)
    def total(self) -> float:
        return 1.0

    @functools.cached_property
    @cached("typing", manager=manager)
    def total_once(self) -> float:
        return 1.0

    @classmethod
    @cached("typing", manager=manager)
    def class_inside(cls, item: str) -> float:
        return 1.0

    @cached("typing", manager=manager)
    @classmethod
    def class_outside(cls, item: str) -> float:
        return 1.0

    @staticmethod
    @cached("typing", manager=manager)
    def static_inside(item: str) -> float:
        return 1.0

    @cached("typing", manager=manager)
    @staticmethod
    def static_outside(item: str) -> float:
        return 1.0


class Branch(Shop): ...


def check_methods(shop: Shop, branch: Branch) -> None:
    assert_type(shop.price("a", count=2), float)
    assert_type(branch.price("a"), float)
    assert_type(Shop.price(shop, "a"), float)
    assert_type(shop.price.invalidate("a"), bool)
    assert_type(Shop.price.invalidate(shop, "a", count=2), bool)
    assert_type(shop.price.peek("a"), float | Missing)
    shop.price.seed(1.0, "a")
    shop.price(1)  # type: ignore[arg-type]
    shop.price.invalidate(1)  # type: ignore[arg-type]
    Shop.price.invalidate("a")  # type: ignore[call-arg, arg-type]
    assert_type(Shop.price.stats(), CacheStats)
    assert_type(shop.total, float)
    assert_type(shop.total_once, float)


def check_a_result_of_type_self(shop: Shop) -> None:
    # should be Shop, but mypy loses `Self` on its way through a ParamSpec
    assert_type(shop.itself("a"), Never)


async def check_async_methods(shop: Shop) -> None:
    assert_type(await shop.later("a"), float)
    assert_type(await Shop.later(shop, "a"), float)
    assert_type(await shop.later.ainvalidate("a"), bool)
    assert_type(await Shop.later.ainvalidate(shop, "a"), bool)
    await shop.later(1)  # type: ignore[arg-type]


def check_class_methods(shop: Shop) -> None:
    assert_type(shop.class_inside("a"), float)
    assert_type(shop.class_outside("a"), float)
    assert_type(shop.class_inside.invalidate("a"), bool)
    assert_type(shop.class_outside.invalidate("a"), bool)
    shop.class_inside(1)  # type: ignore[arg-type]
    shop.class_outside(1)  # type: ignore[arg-type]
    assert_type(Shop.class_inside("a"), float)
    assert_type(Shop.class_outside(item="a"), float)
    assert_type(Branch.class_outside("a"), float)
    assert_type(Shop.class_inside.invalidate("a"), bool)
    assert_type(Shop.class_outside.peek("a"), float | Missing)
    Shop.class_inside(1)  # type: ignore[arg-type]
    Shop.class_outside.invalidate(1)  # type: ignore[arg-type]


def check_static_methods(shop: Shop) -> None:
    assert_type(Shop.static_inside("a"), float)
    assert_type(Shop.static_outside("a"), float)
    assert_type(Shop.static_inside.invalidate("a"), bool)
    assert_type(Shop.static_outside.invalidate("a"), bool)
    Shop.static_inside(1)  # type: ignore[arg-type]
    Shop.static_outside(1)  # type: ignore[arg-type]
    # reached through an object they should be left alone, but mypy drops the first parameter of whatever has a __get__
    shop.static_inside("a")  # type: ignore[call-arg]
    shop.static_outside("a")  # type: ignore[call-arg]


# -- options


def seconds_by_length(result: list[int]) -> float | None:
    return 60.0 if result else None


def words(result: object) -> list[str]:
    return []


def check_options() -> None:
    cached(ttl=60)
    cached(ttl=timedelta(minutes=1))
    cached(ttl=seconds_by_length)
    cached(ttl=lambda result: "1h" if result else None)
    cached("typing", "1h", "file_based", directory="somewhere", secret=[b"new", b"old"])
    cached(backend=DictBackend(), clock=SteppedClock(), on_error="raise")
    cached(backend=InMemoryBackend(max_entries=10), clock=time.monotonic)
    cached(version={"model": 2}, name="stable", copy=False, max_entries=10)
    cached(ttl=[60])  # type: ignore[call-overload]
    cached(ttl=words)  # type: ignore[arg-type]
    cached(backend=WriteOnlyBackend())  # type: ignore[call-overload]
    cached(clock=0.0)  # type: ignore[call-overload]
    cached(on_error="ignore")  # type: ignore[call-overload]
    cached("typing", 60, "redis", "name")  # type: ignore[call-overload]  # only three by position
    cached(1)  # type: ignore[call-overload]


def check_backends(directory: str) -> None:
    backends: list[Backend] = [DictBackend(), InMemoryBackend(), FileBasedBackend(directory), RedisBackend("redis://host")]
    assert_type(get_cache("typing", backend=backends[0]), Cache)
    get_cache("typing", WriteOnlyBackend())  # type: ignore[arg-type]


# -- the direct API and the manager


def check_the_direct_api(cache: Cache) -> None:
    assert_type(get_cache(), Cache)
    assert_type(get_cache(name="typing", backend="in_memory", clock=SteppedClock()), Cache)
    assert_type(cache.get("key"), Any)
    assert_type(cache.get("key", 1), Any | int)
    assert_type(cache.get("key", default=None), Any | None)
    assert_type(cache.get_or_load("key", lambda: 1), int)
    assert_type(cache.get_or_load("key", lambda: ["a"], ttl="1h"), list[str])
    assert_type(cache.has("key"), bool)
    assert_type("key" in cache, bool)
    assert_type(cache.delete("key"), bool)
    assert_type(cache.entry("key"), Entry | None)
    assert_type(cache.get_many(["key"]), dict[str, Any])
    assert_type(cache.delete_many({"key"}), int)
    assert_type(cache.keys(), list[str])
    assert_type(len(cache), int)
    cache.set("key", object(), ttl=lambda value: 60)
    cache.set_many({"key": 1}, ttl=timedelta(hours=1))
    cache.get(1)  # type: ignore[call-overload]
    cache.set(1, "value")  # type: ignore[arg-type]
    cache.get_or_load("key", 1)  # type: ignore[arg-type]


async def load() -> int:
    return 1


async def check_the_direct_api_in_a_loop(cache: Cache) -> None:
    assert_type(await cache.aget_or_load("key", load), int)
    assert_type(await cache.aget_or_load("key", lambda: "a"), str)
    assert_type(await cache.ahas("key"), bool)
    assert_type(await cache.adelete("key"), bool)
    assert_type(await cache.aget_many(["key"]), dict[str, Any])
    assert_type(await cache.astats(scope="all"), CacheStats)


def check_statistics() -> None:
    assert_type(CacheManager.default(), CacheManager)
    assert_type(manager.get_cache("typing"), Cache)
    assert_type(manager.stats(), dict[str, CacheStats])
    assert_type(manager.stats("typing"), CacheStats)
    assert_type(manager.total(), CacheStats)
    assert_type(manager.report(), str)
    assert_type(manager.stats("typing").hit_rate, float)
    assert_type(manager.stats("typing").size, int | None)
    assert_type(manager.stats(scope="all"), dict[str, CacheStats])
    assert_type(manager.stats("typing", scope="all"), CacheStats)
    assert_type(manager.total(scope="process"), CacheStats)
    assert_type(manager.get_cache("typing").stats("all"), CacheStats)
    assert_type(manager.stats("typing").backend, str)
    assert_type(manager.stats("typing").models, Mapping[str, ModelStats])
    assert_type(manager.stats("typing").cost_saved, float)
    assert_type(manager.stats("typing").tokens_saved, int)
    assert_type(manager.report(rich=False), str)
    cached("typing", cost=lambda result: Decimal(1))(time.time)
    cached("typing", cost=lambda result: None)(time.time)
    cached("typing", cost=0.5)(time.time)  # type: ignore[call-overload]
    manager.total(scope="host")  # type: ignore[arg-type]
    manager.stats("typing").hits = 1  # type: ignore[misc]
    manager.stats(1)  # type: ignore[call-overload]


# -- time, concurrency, streams and lists


@cached(
    "everything",
    ttl="1m",
    stale=timedelta(minutes=1),
    jitter=0.1,
    early=True,
    touch=True,
    store_if=lambda result: result is not None,
    errors={KeyError: "1m", OSError: None},
    tags=lambda x: [f"x:{x}"],
    wait="5s",
    on_wait_timeout="stale",
)
def everything(x: int) -> str:
    return str(x)


assert_type(everything(1), str)


def check_options_that_are_refused() -> None:
    cached("x", on_wait_timeout="never")  # type: ignore[call-overload]
    cached("x", stream="sometimes")  # type: ignore[call-overload]
    cached("x", errors={"KeyError": 1})  # type: ignore[dict-item]


@cached("streams", stream_max=1000)
def streamed(text: str) -> Iterator[str]:
    yield from text.split()


assert_type(streamed("a b"), Iterator[str])
assert_type(list(streamed("a b")), list[str])


@cached("streams")
async def astreamed(text: str) -> AsyncIterator[str]:
    yield text


async def read_words() -> list[str]:
    return [word async for word in astreamed("a b")]


@cached("lists", batch="texts", max_batch=10)
def embed(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


assert_type(embed(["a"]), list[float])


def direct(cache: Cache) -> None:
    cache.set("k", 1, ttl=1, tags=["a"])
    cache.invalidate_tags("a", "b")
    assert_type(cache.touch("k"), bool)
    assert_type(cache.touch("k", ttl=None), bool)
    assert_type(cache.incr("n"), int)
    assert_type(cache.add("once", 1), bool)
    with cache.lock("name", wait="1s") as lock:
        assert_type(lock.token, int)


async def adirect(cache: Cache) -> None:
    assert_type(await cache.aincr("n", 2), int)
    assert_type(await cache.aadd("once", 1, ttl="1m"), bool)
    assert_type(await cache.atouch("k"), bool)
    await cache.ainvalidate_tags("a")
    async with cache.lock("name") as lock:
        assert_type(lock.token, int)
