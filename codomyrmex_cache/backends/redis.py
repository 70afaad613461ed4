"""Entries on Redis or Valkey servers, for several hosts; blocking and asyncio; one server, Sentinel or Cluster."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal, TypeVar

from codomyrmex_cache._entry import Entry
from codomyrmex_cache.backends._debts import Paying
from codomyrmex_cache.backends._layout import Layout
from codomyrmex_cache.backends._plans import Plan, Plans
from codomyrmex_cache.backends._target import check_url, target_of_client, target_of_url
from codomyrmex_cache.backends._wire import Wire
from codomyrmex_cache.backends.base import Begun

__all__ = ["DEFAULT_URL", "RedisBackend"]

DEFAULT_URL = "redis://localhost:6379/0"

T = TypeVar("T")


class RedisBackend:
    """Entries shared by several hosts, dropped by the server when their life ends.

    An operation takes 0.25 s at most (`?socket_timeout=` in the url says otherwise), connecting included, and is not retried.
    After three failures in a row the server is left alone, but for one probe after 1 s, 2 s, ... 30 s.

    Args:
        url: `redis://[[user]:password@]host[:port][/db]`, `rediss://...` for TLS, `unix:///path/to.sock`,
            `redis+sentinel://host:port,host:port/service[/db]`, `redis+cluster://host:port,host:port` (and `rediss+...`);
            or a client of redis-py, of any kind, whose servers, credentials and TLS are used for connections of our own.
        slots: parts over which each namespace is spread, for a cluster; all who share a namespace must say the same.
        wires: where connections are shared with other backends of the same url.

    >>> RedisBackend("redis://user:hidden@cache.example:6379/0")
    RedisBackend('redis://user:***@cache.example:6379/0')
    """

    payload: Literal["bytes"] = "bytes"
    max_value_bytes = 8 * 2**20
    """One value is one command: larger ones would take more than an operation's time, and the server's other clients' too."""

    def __init__(self, url: Any = DEFAULT_URL, *, slots: int = 1, wires: MutableMapping[str, Any] | None = None) -> None:
        self._plans = Plans(Layout(slots))
        if isinstance(url, str):
            check_url(url)
            wires = {} if wires is None else wires
            self._wire: Wire = wires.get(url) or wires.setdefault(url, Wire(target_of_url(url)))
        else:
            self._wire = Wire(target_of_client(url))

    def __repr__(self) -> str:
        return f"RedisBackend({self._wire.target.name!r})"

    @property
    def state(self) -> str:
        """Of the circuit breaker: "closed", "open" or "half_open"."""
        return self._wire.state()

    def is_away(self, key: bytes) -> bool:
        """Whether the server of this key is being left alone, so that asking it would only raise `CircuitOpenError`."""
        wire = self._wire
        return wire.state() != "closed" and wire.breaker(wire.slot(self._plans.layout.place(key).tag)).is_shut

    # -- blocking

    def _run(self, plan: Plan[T]) -> T:
        send = self._wire.send
        try:
            step = next(plan)
            while True:
                try:
                    replies = send(*step) if isinstance(step, tuple) else step.result(self._wire.seconds)
                except BaseException as error:  # the plan decides; it re-raises what is not its business
                    step = plan.throw(error)
                else:
                    step = plan.send(replies)
        except StopIteration as end:
            result: T = end.value
            return result

    def get(self, key: bytes) -> Entry | None:
        return self._run(self._plans.get(key))

    def set(self, key: bytes, entry: Entry) -> None:
        self._run(self._plans.set_many({key: entry}))

    def has(self, key: bytes) -> bool:
        return self._run(self._plans.has(key))

    def delete(self, key: bytes) -> bool:
        return self._run(self._plans.delete_many((key,))) > 0

    def scan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        return self._run(self._plans.scan(prefix))

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        return {key: Entry(value) for key, value in self._run(self._plans.get_many(keys)).items()}

    def get_values(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values without an `Entry` around each."""
        return self._run(self._plans.get_many(keys))

    def set_many(self, entries: Mapping[bytes, Entry]) -> None:
        self._run(self._plans.set_many(entries))

    def delete_many(self, keys: Sequence[bytes]) -> int:
        return self._run(self._plans.delete_many(keys))

    def clear(self, prefix: bytes) -> int:
        return self._run(self._plans.clear(prefix))

    def look(self, key: bytes, names: Sequence[bytes], seconds: float, tagged: bool) -> bytes | Begun:
        plans = self._plans
        if not plans.owed:  # the usual case, without the machinery of the other ones
            tag, command, owed = plans.beginning(key, names, seconds, 1 + tagged)
            try:
                (reply,) = self._wire.send(tag, (command,))
                if isinstance(reply, Exception):
                    raise reply
            except BaseException as error:
                plans.unheard(tag, owed, error)
                raise
            return plans.begun(tag, reply, names, owed, 1 + tagged)
        return self._run(plans.look(key, names, seconds, 1 + tagged))

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        return self._run(self._plans.begin(key, names, seconds))

    def renew(self, key: bytes, lease: int, seconds: float) -> bool:
        return self._run(self._plans.renew(key, lease, seconds))

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        return self._run(self._plans.commit(key, entry, names, begun))

    def end(self, key: bytes, begun: Begun, failed: bool) -> None:
        self._run(self._plans.end(key, begun, failed))

    def generations(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]:
        return self._run(self._plans.generations(key, names))

    def revoke(self, names: Sequence[bytes]) -> None:
        self._run(self._plans.revoke(names))

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        return self._run(self._plans.replace(key, old, new, fence))

    def discard(self, key: bytes, old: Entry) -> bool:
        return self._run(self._plans.discard(key, old))

    def add_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> None:
        self._run(self._plans.add_totals(prefix, amounts))

    def totals(self, prefix: bytes) -> dict[str, float]:
        return self._run(self._plans.totals(prefix))

    def close(self) -> None:
        self._wire.close()

    # -- asyncio

    async def _arun(self, plan: Plan[T]) -> T:
        send = self._wire.asend
        try:
            step = next(plan)
            while True:
                try:
                    replies = await (send(*step) if isinstance(step, tuple) else _within(self._wire.seconds, step))
                except BaseException as error:  # as in `_run`; a cancellation included
                    step = plan.throw(error)
                else:
                    step = plan.send(replies)
        except StopIteration as end:
            result: T = end.value
            return result

    async def aget(self, key: bytes) -> Entry | None:
        return await self._arun(self._plans.get(key))

    async def aset(self, key: bytes, entry: Entry) -> None:
        await self._arun(self._plans.set_many({key: entry}))

    async def ahas(self, key: bytes) -> bool:
        return await self._arun(self._plans.has(key))

    async def adelete(self, key: bytes) -> bool:
        return await self._arun(self._plans.delete_many((key,))) > 0

    async def ascan(self, prefix: bytes) -> list[tuple[bytes, float | None]]:
        return await self._arun(self._plans.scan(prefix))

    async def aget_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        return {key: Entry(value) for key, value in (await self._arun(self._plans.get_many(keys))).items()}

    async def aget_values(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """`get_values` for event loops."""
        return await self._arun(self._plans.get_many(keys))

    async def aset_many(self, entries: Mapping[bytes, Entry]) -> None:
        await self._arun(self._plans.set_many(entries))

    async def adelete_many(self, keys: Sequence[bytes]) -> int:
        return await self._arun(self._plans.delete_many(keys))

    async def aclear(self, prefix: bytes) -> int:
        return await self._arun(self._plans.clear(prefix))

    async def alook(self, key: bytes, names: Sequence[bytes], seconds: float, tagged: bool) -> bytes | Begun:
        plans = self._plans
        if not plans.owed:
            tag, command, owed = plans.beginning(key, names, seconds, 1 + tagged)
            try:
                (reply,) = await self._wire.asend(tag, (command,))
                if isinstance(reply, Exception):
                    raise reply
            except BaseException as error:
                plans.unheard(tag, owed, error)
                raise
            return plans.begun(tag, reply, names, owed, 1 + tagged)
        return await self._arun(plans.look(key, names, seconds, 1 + tagged))

    async def asettle(self, key: bytes) -> None:
        """Carry out now what is owed to the server of this key."""
        tag = self._plans.layout.place(key).tag
        if tag in self._plans.owed:
            await self._arun(self._plans.paid(tag))

    async def abegin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        return await self._arun(self._plans.begin(key, names, seconds))

    async def acommit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        return await self._arun(self._plans.commit(key, entry, names, begun))

    async def aend(self, key: bytes, begun: Begun, failed: bool) -> None:
        await self._arun(self._plans.end(key, begun, failed))

    async def agenerations(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]:
        return await self._arun(self._plans.generations(key, names))

    async def arevoke(self, names: Sequence[bytes]) -> None:
        await self._arun(self._plans.revoke(names))

    async def areplace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        return await self._arun(self._plans.replace(key, old, new, fence))

    async def adiscard(self, key: bytes, old: Entry) -> bool:
        return await self._arun(self._plans.discard(key, old))

    async def aadd_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> None:
        await self._arun(self._plans.add_totals(prefix, amounts))

    async def atotals(self, prefix: bytes) -> dict[str, float]:
        return await self._arun(self._plans.totals(prefix))

    async def aclose(self) -> None:
        await self._wire.aclose()
        self.close()

    # -- for the near cache

    def server_key(self, key: bytes) -> bytes:
        """The server's name of an entry."""
        return self._plans.layout.entry(key)

    def key_of(self, server_key: bytes) -> bytes | None:
        """The key whose entry has this name on the server; `None` if none has."""
        return self._plans.layout.key_of(server_key)

    def tracked_prefixes(self, prefix: bytes) -> list[bytes]:
        """What the names of all that makes entries of the namespace valid begin with: entries, and generations of tags."""
        tags = self._plans.layout.tags(prefix)
        return [b"cmxc:{%b}%b" % (tag, kind) for tag in tags for kind in (b"e", b"gt")]

    def tracking_connections(self, prefix: bytes) -> list[tuple[Any, bytes]]:
        """New RESP3 connections, one to each server that has a part of the namespace, each with the name of a key there.

        Raises:
            redis.RedisError: a server cannot be reached.
        """
        names = {tag: b"cmxc:{%b}e" % tag for tag in self._plans.layout.tags(prefix)}
        return [(connection, names[tag]) for tag, connection in self._wire.apart(list(names))]


async def _within(seconds: float, paying: Paying) -> list[Any]:
    """Wait for another caller's payment, in whatever thread or event loop it is made."""
    import asyncio

    return await asyncio.wait_for(asyncio.wrap_future(paying), seconds)
