"""One adapter for each package, with the settings that its documentation gives for the purpose.

Every cache is safe for threads, has a ttl of an hour where the package has ttls, and is bounded where it can be.  A method that
is absent says that the package cannot do that.  Packages are imported when they are used, and nothing heavy before, since fresh
processes are measured from here.

    memory(function)            a decorated function, or method, whose results stay in this process
    messages(function)          the same for arguments that are lists and dicts; `keyed` tells that its user must make the key
    task(function)              a decorated coroutine function
    files(function, folder)     a decorated function, plain or coroutine, whose results survive the process
    store(folder)               an object with `get(key)` and `set(key, value)` on files
    redis(function, url)        a decorated function, plain or coroutine, on a server
    near(function, url)         the same with copies in this process that the server's pushes end
    many(url)                   something with `set`, and a function that gives the values of a list of keys on a server
    once, once_task, once_files, once_redis     like memory, task, files and redis, with what there is against stampedes
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

HOUR = 3600
ROOM = 1_000

Function = Callable[..., object]


def _json_key(*args: object, **kwargs: object) -> bytes:
    """What a user has to write for a package that cannot key lists and dicts."""
    import orjson

    return orjson.dumps((args, kwargs), option=orjson.OPT_SORT_KEYS)


class Peer:
    """A package."""

    name = ""
    distribution = ""
    module = ""
    keyed = False

    def __init__(self) -> None:
        self._open: list[Callable[[], object]] = []

    def close(self) -> None:
        """Release files and connections."""
        while self._open:
            self._open.pop()()


class Recomputed:
    """`get` and `set` made of a decorator: for packages that have no other way to store a value."""

    def __init__(self, decorate: Callable[[Function], Function], force: Callable[[Function, str], object]) -> None:
        self._value: object = None
        self._force = force

        def value(key: str) -> object:
            return self._value

        self.get = decorate(value)

    def set(self, key: str, value: object) -> None:
        self._value = value
        self._force(self.get, key)


class Ours(Peer):
    name = distribution = module = "codomyrmex_cache"

    def _manager(self, **options: object):
        from codomyrmex_cache import CacheManager

        manager = CacheManager(secret=b"only for this benchmark", **options)
        self._open.append(manager.close)
        return manager

    def memory(self, function: Function, room: int = ROOM) -> Function:
        from codomyrmex_cache import cached

        return cached("memory", HOUR, "in_memory", manager=self._manager(), max_entries=room)(function)

    messages = task = once = once_task = memory

    def files(self, function: Function, folder: str) -> Function:
        from codomyrmex_cache import cached

        return cached("files", HOUR, "file_based", manager=self._manager(directory=folder))(function)

    once_files = files

    def store(self, folder: str, **options: object) -> object:
        return self._manager(directory=folder).get_cache("store", "file_based", **options)

    def mapped_store(self, folder: str) -> object:
        return self.store(folder, mmap=True)

    def redis(self, function: Function, url: str) -> Function:
        from codomyrmex_cache import cached

        return cached("plain", HOUR, "redis", manager=self._manager(url=url), near=False)(function)

    once_redis = redis

    def near(self, function: Function, url: str) -> Function:
        from codomyrmex_cache import cached

        return cached("near", HOUR, "redis", manager=self._manager(url=url), near=True)(function)

    def many(self, url: str) -> tuple[object, Function]:
        cache = self._manager(url=url).get_cache("many", "redis", near=False)
        return cache, lambda keys: cache.get_many(keys).values()


class LruCache(Peer):
    name, distribution, module = "functools.lru_cache", "", "functools"

    def memory(self, function: Function, room: int = ROOM) -> Function:
        from functools import lru_cache

        return lru_cache(maxsize=room)(function)

    once = memory


class Cachetools(Peer):
    name = distribution = module = "cachetools"
    keyed = True

    def memory(self, function: Function, room: int = ROOM, **options: object) -> Function:
        from threading import Lock

        from cachetools import TTLCache, cached

        return cached(TTLCache(room, HOUR), **{"lock": Lock(), **options})(function)

    def messages(self, function: Function) -> Function:
        return self.memory(function, key=_json_key)

    def once(self, function: Function) -> Function:
        from threading import Condition

        return self.memory(function, lock=None, condition=Condition())


class Cachebox(Peer):
    name = distribution = module = "cachebox"
    keyed = True

    def memory(self, function: Function, room: int = ROOM, **options: object) -> Function:
        from cachebox import TTLCache, cached

        return cached(TTLCache(room, HOUR), **options)(function)

    task = memory

    def messages(self, function: Function) -> Function:
        return self.memory(function, key_maker=_json_key)

    def once(self, function: Function) -> Function:
        return self.memory(function, lock=True)

    once_task = once


class Moka(Peer):
    name, distribution, module = "moka-py", "moka-py", "moka_py"
    keyed = True

    def memory(self, function: Function, room: int = ROOM, **options: object) -> Function:
        from moka_py import cached

        return cached(room, ttl=HOUR, **options)(function)

    task = memory

    def messages(self, function: Function) -> Function:
        """Its decorator takes no key, so its cache is used by hand."""
        from moka_py import Moka as Cache

        cache, absent = Cache(ROOM, ttl=HOUR), object()

        def call(*args: object, **kwargs: object) -> object:
            key = _json_key(*args, **kwargs)
            value = cache.get(key, absent)
            if value is absent:
                value = function(*args, **kwargs)
                cache.set(key, value)
            return value

        return call

    def once(self, function: Function) -> Function:
        return self.memory(function, wait_concurrent=True)

    once_task = once


class Theine(Peer):
    name = distribution = module = "theine"
    keyed = True

    def memory(self, function: Function, room: int = ROOM) -> Function:
        from datetime import timedelta

        from theine import Memoize

        return Memoize(room, timedelta(seconds=HOUR))(function)

    task = once = once_task = memory

    def messages(self, function: Function) -> Function:
        decorated = self.memory(function)
        decorated.key(_json_key)
        return decorated


class AsyncLru(Peer):
    name, distribution, module = "async-lru", "async-lru", "async_lru"

    def task(self, function: Function, room: int = ROOM) -> Function:
        from async_lru import alru_cache

        return alru_cache(room, ttl=HOUR)(function)

    once_task = task


class Aiocache(Peer):
    """Without its default timeout around each operation, with which a hit in memory costs four times as much."""

    name = distribution = module = "aiocache"

    def task(self, function: Function, room: int = ROOM) -> Function:
        from aiocache import cached

        return cached(ttl=HOUR, timeout=0)(function)

    def once_task(self, function: Function) -> Function:
        from aiocache import cached_stampede

        return cached_stampede(ttl=HOUR, timeout=0, lease=5)(function)

    def redis(self, function: Function, url: str, decorator: str = "cached", **options: object) -> Function:
        import aiocache
        from aiocache.serializers import PickleSerializer

        host, port = url.removeprefix("redis://").partition("/")[0].split(":")
        where = {"cache": aiocache.Cache.REDIS, "endpoint": host, "port": int(port)}
        return getattr(aiocache, decorator)(ttl=HOUR, timeout=0, serializer=PickleSerializer(), **where, **options)(function)

    def once_redis(self, function: Function, url: str) -> Function:
        return self.redis(function, url, "cached_stampede", lease=5)

    def many(self, url: str) -> tuple[object, Function]:
        from aiocache import Cache
        from aiocache.serializers import PickleSerializer

        cache = Cache.from_url(url)
        cache.timeout, cache.serializer = 0, PickleSerializer()
        return cache, cache.multi_get


class Cashews(Peer):
    name = distribution = module = "cashews"

    def _cache(self, url: str, **options: object):
        from cashews import Cache

        cache = Cache()
        cache.setup(url, **options)
        return cache

    def _decorated(self, function: Function, url: str, lock: bool = False, **options: object) -> Function:
        return self._cache(url, **options)(ttl=HOUR, lock=lock)(function)

    def task(self, function: Function, room: int = ROOM) -> Function:
        return self._decorated(function, "mem://", size=room)

    def once_task(self, function: Function) -> Function:
        return self._decorated(function, "mem://", size=ROOM, lock=True)

    def files(self, function: Function, folder: str, lock: bool = False) -> Function:
        return self._decorated(function, "disk://", directory=folder, shards=1, lock=lock)

    def once_files(self, function: Function, folder: str) -> Function:
        return self.files(function, folder, lock=True)

    def store(self, folder: str) -> object:
        return self._cache("disk://", directory=folder, shards=1)

    def redis(self, function: Function, url: str, **options: object) -> Function:
        return self._decorated(function, url, **options)

    def once_redis(self, function: Function, url: str) -> Function:
        return self.redis(function, url, lock=True)

    def near(self, function: Function, url: str) -> Function:
        return self.redis(function, url, client_side=True)

    def many(self, url: str) -> tuple[object, Function]:
        cache = self._cache(url)

        async def get_many(keys: list[str]) -> object:
            return await cache.get_many(*keys)

        return cache, get_many


class Dogpile(Peer):
    name, distribution, module = "dogpile.cache", "dogpile.cache", "dogpile.cache"

    def _decorated(self, function: Function, backend: str, **arguments: object) -> Function:
        from dogpile.cache import make_region
        from dogpile.cache.util import kwarg_function_key_generator

        region = make_region(function_key_generator=kwarg_function_key_generator)
        region.configure(f"dogpile.cache.{backend}", expiration_time=HOUR, arguments=arguments)
        return region.cache_on_arguments()(function)

    def memory(self, function: Function, room: int = ROOM) -> Function:
        return self._decorated(function, "memory")

    messages = once = memory

    def _dbm(self, folder: str) -> str:
        if find_spec("_gdbm") is None and find_spec("_dbm") is None:
            raise RuntimeError("this Python has neither gdbm nor ndbm")
        return f"{folder}/dogpile.dbm"

    def files(self, function: Function, folder: str) -> Function:
        return self._decorated(function, "dbm", filename=self._dbm(folder))

    once_files = files

    def store(self, folder: str) -> object:
        from dogpile.cache import make_region

        return make_region().configure("dogpile.cache.dbm", expiration_time=HOUR, arguments={"filename": self._dbm(folder)})

    def redis(self, function: Function, url: str, **arguments: object) -> Function:
        return self._decorated(function, "redis", url=url, **arguments)

    def once_redis(self, function: Function, url: str) -> Function:
        return self.redis(function, url, distributed_lock=True)

    def many(self, url: str) -> tuple[object, Function]:
        from dogpile.cache import make_region

        region = make_region().configure("dogpile.cache.redis", expiration_time=HOUR, arguments={"url": url})
        return region, region.get_multi


class Cachier(Peer):
    name = distribution = module = "cachier"

    def _decorated(self, function: Function, **options: object) -> Function:
        from datetime import timedelta

        from cachier import cachier

        return cachier(stale_after=timedelta(seconds=HOUR), **options)(function)

    def memory(self, function: Function, room: int = ROOM) -> Function:
        return self._decorated(function, backend="memory")

    messages = task = once = once_task = memory

    def files(self, function: Function, folder: str) -> Function:
        return self._decorated(function, backend="pickle", cache_dir=folder, separate_files=True)

    once_files = files

    def store(self, folder: str) -> object:
        return Recomputed(
            lambda function: self.files(function, folder), lambda get, key: get(key, cachier__overwrite_cache=True)
        )

    def redis(self, function: Function, url: str) -> Function:
        import redis

        return self._decorated(function, backend="redis", redis_client=redis.Redis.from_url(url))

    once_redis = redis


class Diskcache(Peer):
    name = distribution = module = "diskcache"

    def store(self, folder: str) -> object:
        from diskcache import Cache

        cache = Cache(folder)
        self._open.append(cache.close)
        return cache

    def files(self, function: Function, folder: str) -> Function:
        return self.store(folder).memoize(expire=HOUR)(function)

    def once_files(self, function: Function, folder: str) -> Function:
        from diskcache import memoize_stampede

        return memoize_stampede(self.store(folder), HOUR)(function)


class Joblib(Peer):
    name = distribution = module = "joblib"

    def files(self, function: Function, folder: str, **options: object) -> Function:
        from joblib import Memory, expires_after

        memory = Memory(folder, verbose=0, **options)
        return memory.cache(function, cache_validation_callback=expires_after(seconds=HOUR))

    once_files = files

    def store(self, folder: str, **options: object) -> object:
        store = Recomputed(lambda function: self.files(function, folder, **options), lambda get, key: get.call(key))
        store.get("")  # a first `call` alone would be forgotten at the next one
        return store

    def mapped_store(self, folder: str) -> object:
        return self.store(folder, mmap_mode="r")


OURS = Ours.name
EVERY: tuple[type[Peer], ...] = (
    Ours,
    LruCache,
    Cachetools,
    Cachebox,
    Moka,
    Theine,
    AsyncLru,
    Diskcache,
    Joblib,
    Cashews,
    Aiocache,
    Dogpile,
    Cachier,
)


def by_name(name: str) -> Peer:
    """The adapter of this package."""
    return next(peer() for peer in EVERY if peer.name == name)


def installed(names: object = None) -> tuple[list[Peer], list[str]]:
    """Adapters of the packages that are there, of these names if any are given, and a line for each that is not."""
    here: list[Peer] = []
    absent: list[str] = []
    for peer in (kind() for kind in EVERY if names is None or kind.name in names):
        try:
            import_module(peer.module)
            here.append(peer)
        except ImportError as error:
            absent.append(f"skipped: {peer.name} ({error})")
    return here, absent
