"""The direct API: one namespace, used by key."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from threading import Lock
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from codomyrmex_cache import _verbs as verbs
from codomyrmex_cache._atomic import add, incr
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._duration import Duration, to_seconds
from codomyrmex_cache._effects import AwaitableResult, Request
from codomyrmex_cache._entries import read
from codomyrmex_cache._entry import MISSING, Entry, Missing
from codomyrmex_cache._flow import call, compute
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._policy import Rules, Ttl, validated_ttl
from codomyrmex_cache._quick import QuickGet, QuickSet, Seen, quick_ways
from codomyrmex_cache._record import replace
from codomyrmex_cache._space import Space
from codomyrmex_cache._totals import Found, Tally, follow, state_of, stats_of, tally_of
from codomyrmex_cache._wiring import Options, check_namespace, combined, open_space, resolved
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.keys import direct_key
from codomyrmex_cache.modes import NORMAL, Ruling, unveil_if_normal, veil_with_modes
from codomyrmex_cache.stats import CacheStats, Counters, Scope

if TYPE_CHECKING:
    from codomyrmex_cache.locks import CacheLock

__all__ = ["Cache"]

D = TypeVar("D")
T = TypeVar("T")


class Cache:
    """One namespace of a `CacheManager`; made by `get_cache`, shared with the functions decorated for it.

    Keys are any `str`.  `None` is a value.  Every method that does I/O has an `a`-twin for event loops.  What is handed
    out never aliases what is stored.  A failing backend is a miss, counted, unless `on_error="raise"` was asked for.

    Its backend is chosen at the first use, so a namespace may be declared (by a decorator, say) before it is configured.

    >>> from codomyrmex_cache import CacheManager
    >>> cache = CacheManager().get_cache("docs")
    >>> cache.set("k", {"answer": 42}, ttl=3600)
    >>> cache.get("k"), cache.get("absent", default="?")
    ({'answer': 42}, '?')
    """

    def __init__(self, name: str, options: Options, wires: MutableMapping[str, Any] | None = None) -> None:
        self.name = check_namespace(name)
        self._options = options
        self._wires = {} if wires is None else wires
        self._counters: dict[str, Counters] = {"": Counters()}
        self._results: dict[str, tuple[Callable[..., Any], Sequence[type]]] = {}
        self._direct = self._counters[""]
        self._space: Space | None = None
        self._tally: Tally | None = None
        self._quick: tuple[QuickGet, QuickSet] | None = None
        self._asks = True  # for the mode, before anything else
        self._lock = Lock()
        renew_after_fork(self)
        veil_with_modes(self)

    def __repr__(self) -> str:
        return f"<Cache {self.name!r} on {self.backend_name}>"

    def __bool__(self) -> bool:
        return True  # an empty cache is still a cache: `if cache:` must not depend on its content

    # -- reading and writing

    @overload
    def get(self, key: str) -> Any: ...
    @overload
    def get(self, key: str, default: D) -> Any | D: ...
    def get(self, key: str, default: Any = None) -> Any:
        """The value under `key`, or `default` if there is none (`None` is a value like any other)."""
        raw, quick = None, self._quick
        if quick is not None:
            value = quick[0](key, default)
            if type(value) is Seen:
                raw = value.raw
            elif value is not MISSING:
                return value
        ruling = self._ruling() if self._asks else NORMAL
        entry = run(self.space, verbs.get(self.space, direct_key(key), self._direct, raw, ruling))
        return default if entry is None else entry.value

    async def aget(self, key: str, default: Any = None) -> Any:
        """`get` for event loops."""
        quick = self._quick
        if quick is not None and self._space is not None and self._space.looks_first and self._space.near is not None:
            value = quick[0](key, default)
            if value is not MISSING:
                return value
        ruling = self._ruling() if self._asks else NORMAL
        entry = await arun(self.space, verbs.get(self.space, direct_key(key), self._direct, None, ruling))
        return default if entry is None else entry.value

    def set(self, key: str, value: object, ttl: Ttl = None, tags: Sequence[str] = ()) -> None:
        """Store `value` under `key`.

        Args:
            key: any str.
            value: anything that can be copied (in memory) or serialised (elsewhere); if not, it is counted and not stored.
            ttl: seconds, `timedelta`, "1h30m", a callable on the value, or `None` for ever; 0 removes what was there.
            tags: names under which `invalidate_tags` finds it.
        """
        quick = self._quick
        if quick is None or tags or not quick[1](key, value, ttl):  # type: ignore[arg-type]  # other ttls: not taken
            run(self.space, self._store(key, value, ttl, tags, live=True))

    async def aset(self, key: str, value: object, ttl: Ttl = None, tags: Sequence[str] = ()) -> None:
        """`set` for event loops."""
        await arun(self.space, self._store(key, value, ttl, tags))

    def _store(self, key: str, value: object, ttl: Ttl, tags: Sequence[str], *, live: bool = False) -> Any:
        if self._asks and not self._ruling().stores:
            return verbs.nothing()
        return verbs.store(
            self.space, direct_key(key), value, self._direct, ttl=validated_ttl(ttl), tags=_tags(tags), live=live
        )  # fmt: skip

    def touch(self, key: str, ttl: Ttl | Missing = MISSING) -> bool:
        """Begin the entry's life anew, with the ttl it was stored with or with this one; whether it was there."""
        return bool(run(self.space, self._touch(key, ttl)))

    async def atouch(self, key: str, ttl: Ttl | Missing = MISSING) -> bool:
        """`touch` for event loops."""
        return bool(await arun(self.space, self._touch(key, ttl)))

    def _touch(self, key: str, ttl: Ttl | Missing) -> Any:
        return verbs.touch(self.space, direct_key(key), ttl if ttl is MISSING else validated_ttl(ttl), self._direct)

    def has(self, key: str) -> bool:
        """Whether `get` would find a value; counts neither hit nor miss."""
        return run(self.space, verbs.contains(self.space, direct_key(key), self._direct))

    async def ahas(self, key: str) -> bool:
        """`has` for event loops."""
        return await arun(self.space, verbs.contains(self.space, direct_key(key), self._direct))

    def __contains__(self, key: str) -> bool:
        return self.has(key)

    def delete(self, key: str) -> bool:
        """Remove the entry; whether it was there."""
        return run(self.space, verbs.delete(self.space, direct_key(key), self._direct))

    async def adelete(self, key: str) -> bool:
        """`delete` for event loops."""
        return await arun(self.space, verbs.delete(self.space, direct_key(key), self._direct))

    def get_or_load(self, key: str, loader: Callable[[], T], ttl: Ttl = None) -> T:
        """The value under `key`; if there is none, what `loader()` answers, stored.

        Callers of the same key that come while it runs wait for it.  The loader's exception goes to all of them and is
        not stored.
        """
        try:
            value: T = run(self.space, self._load(key, loader, ttl, awaits=False)).result()
        except AwaitableResult as found:
            if isinstance(found.awaitable, CoroutineType):
                found.awaitable.close()
            raise CacheConfigurationError(f"the loader of {key!r} gave an awaitable: use aget_or_load") from None
        return value

    @overload
    async def aget_or_load(self, key: str, loader: Callable[[], Awaitable[T]], ttl: Ttl = None) -> T: ...
    @overload
    async def aget_or_load(self, key: str, loader: Callable[[], T], ttl: Ttl = None) -> T: ...
    async def aget_or_load(self, key: str, loader: Callable[[], Any], ttl: Ttl = None) -> Any:
        """`get_or_load` for event loops; `loader` may be a coroutine function."""
        return (await arun(self.space, self._load(key, loader, ttl, awaits=True))).result()

    def _load(self, key: str, loader: Callable[[], Any], ttl: Ttl, *, awaits: bool) -> Any:
        request = Request(direct_key(key), loader, self._direct, Rules(ttl=validated_ttl(ttl)), awaits)
        ruling = self._ruling() if self._asks else NORMAL
        return compute(request) if ruling.mode == "off" else call(self.space, request._replace(ruling=ruling))

    def entry(self, key: str) -> Entry | None:
        """The value with its times (wall-clock seconds since 1970 unless a clock was injected), or `None`."""
        found = run(self.space, read(self.space, direct_key(key), self._direct))
        return None if found is None else self.presented(found)

    async def aentry(self, key: str) -> Entry | None:
        """`entry` for event loops."""
        found = await arun(self.space, read(self.space, direct_key(key), self._direct))
        return None if found is None else self.presented(found)

    # -- exact among all who use the store; these raise `CacheConnectionError` when the backend is away

    def incr(self, key: str, amount: int = 1, ttl: Ttl = None) -> int:
        """Add to the number under `key` (0 if there is none, which then lives for `ttl`); answers the sum.

        Raises:
            CacheError: what is there is not an int.
            CacheConnectionError: the backend failed.
        """
        return run(self.space, incr(self.space, direct_key(key), amount, self._direct, ttl=validated_ttl(ttl)))

    async def aincr(self, key: str, amount: int = 1, ttl: Ttl = None) -> int:
        """`incr` for event loops."""
        return await arun(self.space, incr(self.space, direct_key(key), amount, self._direct, ttl=validated_ttl(ttl)))

    def add(self, key: str, value: object, ttl: Ttl = None) -> bool:
        """Store `value` if nothing is there; of several callers at once exactly one is told `True`.

        Raises:
            CacheCodecError: the value cannot be stored.
            CacheConnectionError: the backend failed.
        """
        return run(self.space, add(self.space, direct_key(key), value, self._direct, ttl=validated_ttl(ttl)))

    async def aadd(self, key: str, value: object, ttl: Ttl = None) -> bool:
        """`add` for event loops."""
        return await arun(self.space, add(self.space, direct_key(key), value, self._direct, ttl=validated_ttl(ttl)))

    def lock(self, name: str, wait: Duration | None = None) -> CacheLock:
        """A lock to hold in a `with` or `async with` block; its `token` grows from holder to holder.

        Args:
            name: any str; locks and keys do not meet.
            wait: how long to wait for it until `CacheTimeoutError`; `None` for as long as it takes.
        """
        from codomyrmex_cache.locks import CacheLock

        return CacheLock(self.space, direct_key(name).text, None if wait is None else to_seconds(wait, "wait"))

    # -- many at once

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Key to value for those that are there."""
        return run(self.space, self._get_many(keys))

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """`get_many` for event loops."""
        return await arun(self.space, self._get_many(keys))

    def _get_many(self, keys: Iterable[str]) -> Any:
        return verbs.get_many(self.space, _distinct(keys), self._direct, self._ruling() if self._asks else NORMAL)

    def set_many(self, values: Mapping[str, object], ttl: Ttl = None) -> None:
        """Store all of them, each with the same ttl."""
        run(self.space, self._set_many(values, ttl))

    async def aset_many(self, values: Mapping[str, object], ttl: Ttl = None) -> None:
        """`set_many` for event loops."""
        await arun(self.space, self._set_many(values, ttl))

    def _set_many(self, values: Mapping[str, object], ttl: Ttl) -> Any:
        if self._asks and not self._ruling().stores:
            return verbs.nothing()
        return verbs.set_many(self.space, values, _distinct(values), self._direct, ttl=validated_ttl(ttl))

    def delete_many(self, keys: Iterable[str]) -> int:
        """Remove them; how many were there."""
        return run(self.space, verbs.delete_many(self.space, _distinct(keys), self._direct))

    async def adelete_many(self, keys: Iterable[str]) -> int:
        """`delete_many` for event loops."""
        return await arun(self.space, verbs.delete_many(self.space, _distinct(keys), self._direct))

    def invalidate_tags(self, *tags: str) -> None:
        """Forget all entries that have one of these tags, also those being computed; costs the same for any number of them."""
        run(self.space, verbs.invalidate_tags(self.space, tags, self._direct))

    async def ainvalidate_tags(self, *tags: str) -> None:
        """`invalidate_tags` for event loops."""
        await arun(self.space, verbs.invalidate_tags(self.space, tags, self._direct))

    # -- the whole namespace

    def keys(self) -> list[str]:
        """The keys of all fresh entries; those of decorated functions begin with "@"."""
        return run(self.space, verbs.keys(self.space, "", self._direct))

    async def akeys(self) -> list[str]:
        """`keys` for event loops."""
        return await arun(self.space, verbs.keys(self.space, "", self._direct))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def clear(self) -> int:
        """Remove every entry of this namespace, and of no other; how many there were."""
        return run(self.space, verbs.clear(self.space, "", self._direct))

    async def aclear(self) -> int:
        """`clear` for event loops."""
        return await arun(self.space, verbs.clear(self.space, "", self._direct))

    def stats(self, scope: Scope = "process") -> CacheStats:
        """What happened here so far, by decorated functions and direct calls together.

        Args:
            scope: "process", or "all": every process on every host that shares the store, with what this one has counted until
                now and what the others had added about ten seconds ago.  In memory that is this process.

        Raises:
            CacheConfigurationError: "all" for a shared store that keeps no totals, such as files.
        """
        tally = tally_of(self.space, self._tally, scope)
        return self._told(None if tally is None else tally.read(), self.size())

    async def astats(self, scope: Scope = "process") -> CacheStats:
        """`stats` for event loops."""
        tally = tally_of(self.space, self._tally, scope)
        found = None if tally is None else await tally.aread()
        if self.space.backend.payload == "object" or not hasattr(self.space.backend, "count"):
            return self._told(found, self.size())
        import asyncio  # see `_drive`

        return self._told(found, await asyncio.to_thread(self.size))

    def _told(self, found: Found | None, size: int | None) -> CacheStats:
        if found is not None and found.problem is not None:
            self.space.backend_failed("keep totals", found.problem, self._direct)
        state = state_of(self.space.backend)
        if found is None or found.amounts is None:
            parts = [counters.snapshot() for counters in list(self._counters.values())]
            return replace(CacheStats.merge(parts), size=size, backend=state)
        return stats_of(found.amounts, size, state)

    def size(self, prefix: str = "") -> int | None:
        """Entries stored, expired ones not yet dropped included; `None` where the backend cannot count cheaply."""
        count = getattr(self.space.backend, "count", None)
        if count is None:
            return None
        try:
            return int(count(self.space.stored(prefix)))
        except Exception as error:
            self.space.backend_failed("count", error, self._direct)
            return None

    def close(self) -> None:
        """Release files and connections; a later use opens them again."""
        if self._tally is not None:
            self._tally.flush()
        if self._space is not None:
            if self._space.near is not None:
                self._space.near.close()
            self._space.backend.close()

    async def aclose(self) -> None:
        """`close` for event loops, which also closes the running loop's connections."""
        if self._tally is not None:
            await self._tally.aflush()
        if self._space is not None:
            if self._space.near is not None:
                self._space.near.close()
            close = getattr(self._space.backend, "aclose", None)
            await close() if close is not None else self._space.backend.close()

    # -- for the other rooms of the package

    @property
    def space(self) -> Space:
        """The wired namespace; the first use decides its backend."""
        if self._space is None:
            with self._lock:
                if self._space is None:
                    self._options = resolved(self._options, os.environ)
                    space = self._wired()
                    self._tally = follow(self, space)
                    self._space = space  # from here on others see both
        return self._space

    def _wired(self) -> Space:
        return open_space(self.name, self._options, self._counters, self._results, self._wires)

    def _ruling(self) -> Ruling:
        ruling = self.space.ruling()
        unveil_if_normal(self)
        return ruling

    def veil(self) -> None:
        """Take no quick way, and ask for the mode, at each call."""
        self._asks, self._quick = True, None

    def unveil(self) -> None:
        """Take the quick ways again, if there are any in the mode of the namespace."""
        if self.space.stance.mode == "normal":
            self._asks, self._quick = False, quick_ways(self.space, self._direct)

    @property
    def backend_name(self) -> str:
        """The backend as it was asked for, or what it would be now."""
        backend = self._options.backend or resolved(self._options, os.environ).backend
        return backend if isinstance(backend, str) else type(backend).__name__

    def configure(self, options: Options) -> None:
        """Add options; `CacheConfigurationError` if they contradict those in force."""
        with self._lock:
            merged = combined(self.name, self._options, options)
            if self._space is None:
                self._options = merged
            elif merged != self._options:
                raise CacheConfigurationError(f"namespace {self.name!r} is in use; set its options before its first use")

    def counters(self, owner: str) -> Counters:
        """The counters of the function of this name, shared by all who use the name."""
        return self._counters.setdefault(owner, Counters())

    def functions(self) -> dict[str, Counters]:
        """The counters of all functions by their names; those of the direct API under ""."""
        return dict(self._counters)

    def expect(self, owner: str, function: Callable[..., Any], types: Sequence[type]) -> None:
        """What is stored for the function of this name may be of the classes that its annotation names, and of these."""
        self._results[owner] = function, types

    def presented(self, entry: Entry) -> Entry:
        """The entry as users see it, with its monotonic times as wall-clock times."""
        entry = replace(entry, parts=tuple(entry.parts))
        if self.space.clock is not time.monotonic:
            return entry
        shift = time.time() - time.monotonic()
        return replace(
            entry,
            created=entry.created + shift,
            fresh_until=None if entry.fresh_until is None else entry.fresh_until + shift,
            expires_at=None if entry.expires_at is None else entry.expires_at + shift,
        )

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it."""
        self._lock = Lock()


def _tags(tags: Sequence[str]) -> Sequence[str]:
    if isinstance(tags, str):
        raise CacheConfigurationError(f"tags={tags!r}: give a list of str")
    return tags


def _distinct(keys: Iterable[str]) -> list[Any]:
    return [direct_key(key) for key in dict.fromkeys(keys)]
