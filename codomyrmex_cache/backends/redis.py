"""Entries on a Redis or Valkey server, for several hosts; blocking and asyncio."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from codomyrmex_cache._entry import Entry
from codomyrmex_cache.backends._lua import BEGIN, COMMIT, DISCARD, END, RENEW, REPLACE
from codomyrmex_cache.backends.base import Begun, generation_name
from codomyrmex_cache.errors import CacheConfigurationError

if TYPE_CHECKING:
    import redis
    import redis.asyncio

__all__ = ["DEFAULT_URL", "RedisBackend"]

DEFAULT_URL = "redis://localhost:6379/0"

_SECONDS = 0.25
"""Connect and operation timeout: a get and a set together keep a decorated call within half a second."""

_CONNECTIONS = 50
"""For each client; a caller beyond that waits for one, within the timeout."""

_PREFIX = b"cmxc:"
"""Sets our keys apart from other users of the database."""

_GENERATION, _LEASE, _LAST_LEASE = b"cmxc.generation:", b"cmxc.lease:", b"cmxc.leases"
_KEPT_MILLISECONDS = 86_400_000
"""A generation that no load asks for is dropped after a day, or with the longest-lived entry that carries it."""

_SCAN_COUNT = 512
_LONGEST = 10**15
"""Milliseconds; the server refuses lives that overflow its clock."""

_SCHEMES = ("redis://", "rediss://", "unix://")


def check_url(url: str) -> str:
    """The url if its scheme is one of ours.

    Raises:
        CacheConfigurationError: it is not.
    """
    if not isinstance(url, str) or not url.startswith(_SCHEMES):
        raise CacheConfigurationError(f"url={_without_password(str(url))!r}: give one of {', '.join(_SCHEMES)}")
    return url


class RedisBackend:
    """Entries shared by several hosts, dropped by the server when their life ends.

    Connections are made at the first use and never retried: a failing server costs at most one timeout a call.
    The asyncio client belongs to its event loop; each loop gets one.

    Args:
        url: `redis://[[user]:password@]host[:port][/db]`, `rediss://...` for TLS, or `unix:///path/to.sock`.
    """

    payload: Literal["bytes"] = "bytes"

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self.url = check_url(url)
        self._client: redis.Redis | None = None
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"RedisBackend({_without_password(self.url)!r})"

    # -- blocking

    @property
    def client(self) -> redis.Redis:
        """The redis-py client, made at the first use."""
        if self._client is None:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            pool = redis.BlockingConnectionPool.from_url(self.url, **_options(), retry=Retry(NoBackoff(), 0))
            self._client = redis.Redis.from_pool(pool)
        return self._client

    def get(self, key: bytes) -> Entry | None:
        return _entry(self.client.get(_PREFIX + key))

    def set(self, key: bytes, entry: Entry) -> None:
        self.set_many({key: entry})

    def has(self, key: bytes) -> bool:
        return bool(self.client.exists(_PREFIX + key))

    def delete(self, key: bytes) -> bool:
        return self.delete_many((key,)) > 0

    def scan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        found = set(self.client.scan_iter(match=_pattern(prefix), count=_SCAN_COUNT))
        return [(key[len(_PREFIX) :], None) for key in found]

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        return _entries(keys, self.client.mget([_PREFIX + key for key in keys])) if keys else {}

    def set_many(self, entries: Mapping[bytes, Entry]) -> None:
        with self.client.pipeline(transaction=True) as pipeline:
            _queue(pipeline, entries)
            pipeline.execute()

    def delete_many(self, keys: Sequence[bytes]) -> int:
        with self.client.pipeline(transaction=True) as pipeline:
            _queue_removal(pipeline, keys)
            return sum(pipeline.execute()[1:])

    def clear(self, prefix: bytes) -> int:
        count, batch = 0, []
        for key in self.client.scan_iter(match=_pattern(prefix), count=_SCAN_COUNT):
            batch.append(key)
            if len(batch) == _SCAN_COUNT:
                count += self.client.unlink(*batch)
                batch.clear()
        return count + (self.client.unlink(*batch) if batch else 0)

    # -- loads; see `_lua` for what the scripts do

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        return _begun(self._script(BEGIN)(*_begin_arguments(key, names, seconds)))

    def renew(self, key: bytes, lease: int, seconds: float) -> bool:
        return bool(self._script(RENEW)([_LEASE + key], [lease, ceil(seconds * 1000)]))

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        return bool(self._script(COMMIT)(*_commit_arguments(key, entry, names, begun)))

    def end(self, key: bytes, begun: Begun, failed: bool) -> None:
        self._script(END)(*_end_arguments(key, begun, failed))

    def generations(self, names: Sequence[bytes]) -> list[bytes | None]:
        found: Any = self.client.mget([_GENERATION + name for name in names]) if names else []
        return list(found)

    def revoke(self, names: Sequence[bytes]) -> None:
        self.client.unlink(*(_GENERATION + name for name in names))

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        return bool(self._script(REPLACE)(*_replace_arguments(key, old, new, fence)))

    def discard(self, key: bytes, old: Entry) -> bool:
        return bool(self._script(DISCARD)([_PREFIX + key], [old.value]))

    def _script(self, source: bytes) -> Any:
        return _prepared(self.client, source)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    # -- asyncio

    @property
    def async_client(self) -> redis.asyncio.Redis:
        """The redis-py asyncio client of the running event loop."""
        loop = asyncio.get_running_loop()
        client = self._async_clients.get(loop)
        if client is None:
            import redis.asyncio
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff

            pool = redis.asyncio.BlockingConnectionPool.from_url(self.url, **_options(), retry=Retry(NoBackoff(), 0))
            client = redis.asyncio.Redis.from_pool(pool)
            for other in [other for other in self._async_clients if other.is_closed()]:
                del self._async_clients[other]  # a client refers to its loop, so the weak key alone would not free it
            self._async_clients[loop] = client
        return client

    async def aget(self, key: bytes) -> Entry | None:
        return _entry(await self.async_client.get(_PREFIX + key))

    async def aset(self, key: bytes, entry: Entry) -> None:
        await self.aset_many({key: entry})

    async def ahas(self, key: bytes) -> bool:
        return bool(await self.async_client.exists(_PREFIX + key))

    async def adelete(self, key: bytes) -> bool:
        return await self.adelete_many((key,)) > 0

    async def ascan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        return [(key[len(_PREFIX) :], None) for key in {key async for key in self._ascan(prefix)}]

    async def aget_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        return _entries(keys, await self.async_client.mget([_PREFIX + key for key in keys])) if keys else {}

    async def aset_many(self, entries: Mapping[bytes, Entry]) -> None:
        async with self.async_client.pipeline(transaction=True) as pipeline:
            _queue(pipeline, entries)
            await pipeline.execute()

    async def adelete_many(self, keys: Sequence[bytes]) -> int:
        async with self.async_client.pipeline(transaction=True) as pipeline:
            _queue_removal(pipeline, keys)
            return sum((await pipeline.execute())[1:])

    async def aclear(self, prefix: bytes) -> int:
        count, batch = 0, []
        async for key in self._ascan(prefix):
            batch.append(key)
            if len(batch) == _SCAN_COUNT:
                count += await self.async_client.unlink(*batch)
                batch.clear()
        return count + (await self.async_client.unlink(*batch) if batch else 0)

    async def abegin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        return _begun(await self._ascript(BEGIN)(*_begin_arguments(key, names, seconds)))

    async def acommit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        return bool(await self._ascript(COMMIT)(*_commit_arguments(key, entry, names, begun)))

    async def aend(self, key: bytes, begun: Begun, failed: bool) -> None:
        await self._ascript(END)(*_end_arguments(key, begun, failed))

    async def agenerations(self, names: Sequence[bytes]) -> list[bytes | None]:
        found: Any = await self.async_client.mget([_GENERATION + name for name in names]) if names else []
        return list(found)

    async def arevoke(self, names: Sequence[bytes]) -> None:
        await self.async_client.unlink(*(_GENERATION + name for name in names))

    async def areplace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        return bool(await self._ascript(REPLACE)(*_replace_arguments(key, old, new, fence)))

    async def adiscard(self, key: bytes, old: Entry) -> bool:
        return bool(await self._ascript(DISCARD)([_PREFIX + key], [old.value]))

    def _ascript(self, source: bytes) -> Any:
        return _prepared(self.async_client, source)

    async def aclose(self) -> None:
        client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
        self.close()

    def _ascan(self, prefix: bytes) -> AsyncIterator[bytes]:
        return self.async_client.scan_iter(match=_pattern(prefix), count=_SCAN_COUNT)


def _options() -> dict[str, Any]:
    """What is set on both clients; redis-py's own defaults are 5 s, 10 retries and an error when all connections are in use."""
    return {
        "socket_timeout": _SECONDS,
        "socket_connect_timeout": _SECONDS,
        "timeout": _SECONDS,
        "max_connections": _CONNECTIONS,
        "decode_responses": False,
    }


def _milliseconds(entry: Entry) -> int | None:
    """The life left when it was stored, for PX."""
    if entry.expires_at is None:
        return None
    return min(max(1, ceil((entry.expires_at - entry.created) * 1000)), _LONGEST)


def _prepared(client: Any, source: bytes) -> Any:
    """The script for this client: called by its digest, loaded again by redis-py when the server does not know it."""
    scripts = client.__dict__.setdefault("_codomyrmex_cache_scripts", {})
    if source not in scripts:
        scripts[source] = client.register_script(source)
    return scripts[source]


def _queue(pipeline: Any, entries: Mapping[bytes, Entry]) -> None:
    for key, entry in entries.items():
        pipeline.set(_PREFIX + key, entry.value, px=_milliseconds(entry))
    pipeline.unlink(*(_GENERATION + generation_name("k", key) for key in entries))


def _queue_removal(pipeline: Any, keys: Sequence[bytes]) -> None:
    if keys:
        pipeline.unlink(*(_GENERATION + generation_name("k", key) for key in keys))
        pipeline.unlink(*(_PREFIX + key for key in keys))


def _begin_arguments(key: bytes, names: Sequence[bytes], seconds: float) -> tuple[list[bytes], list[Any]]:
    keys = [_PREFIX + key, _LEASE + key, _LAST_LEASE, *(_GENERATION + name for name in (generation_name("k", key), *names))]
    return keys, [ceil(seconds * 1000), os.urandom(8), _KEPT_MILLISECONDS]


def _begun(reply: list[Any]) -> Begun:
    value, lease, holder, failed, *generations = reply
    return Begun(_entry(value), tuple(generations), int(lease), int(holder), int(failed))


def _commit_arguments(key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> tuple[list[bytes], list[Any]]:
    keys = [_PREFIX + key, _LEASE + key, *(_GENERATION + name for name in (generation_name("k", key), *names))]
    return keys, [entry.value, _milliseconds(entry) or 0, begun.lease, len(entry.generations), *begun.generations]


def _end_arguments(key: bytes, begun: Begun, failed: bool) -> tuple[list[bytes], list[Any]]:
    return [_LEASE + key, _GENERATION + generation_name("k", key)], [
        begun.lease,
        int(failed),
        begun.generations[0] if begun.generations else b"",
    ]


def _replace_arguments(key: bytes, old: Entry | None, new: Entry, fence: bool) -> tuple[list[bytes], list[Any]]:
    carried = [_GENERATION + name for name, _ in new.generations]
    keys = [_PREFIX + key, _GENERATION + generation_name("k", key), *carried]
    return keys, [new.value, _milliseconds(new) or 0, int(fence), *(() if old is None else (old.value,))]


def _entry(value: Any) -> Entry | None:
    return None if value is None else Entry(value)


def _entries(keys: Sequence[bytes], values: Sequence[Any]) -> dict[bytes, Entry]:
    return {key: Entry(value) for key, value in zip(keys, values, strict=True) if value is not None}


def _pattern(prefix: bytes) -> bytes:
    r"""A MATCH pattern for the prefix taken literally.

    >>> _pattern(b"1:a:[x]*")
    b'cmxc:1:a:\\[x\\]\\**'
    """
    return re.sub(rb"([\\*?\[\]])", rb"\\\1", _PREFIX + prefix) + b"*"


def _without_password(url: str) -> str:
    return re.sub(r"(://[^/@]*:)[^/@]*@", r"\1***@", url)
