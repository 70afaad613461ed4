"""Operations on the right server, within their time, unless its breaker is open; the same for threads and for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import suppress
from hashlib import sha1
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from redis import exceptions
from redis.crc import key_slot

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._breaker import Breaker, State
from codomyrmex_cache.backends._lines import Command, Line, connection_to, time_limit
from codomyrmex_cache.backends._target import Address, Target, Topology

__all__ = ["DEFAULT_SECONDS", "Wire", "script"]

DEFAULT_SECONDS = 0.25
"""For one operation, connecting and looking for the right server included: two of them make a decorated call."""

_REDIRECTIONS = 4
_UNABLE = (exceptions.ClusterDownError,)
"""Errors that a server tells which say that it cannot serve at all; `LOADING` and `NOAUTH` redis-py raises by itself."""

_scripts: dict[str, bytes] = {}
"""Sources by their digests; filled as the scripts are first used."""


def script(source: bytes, keys: Sequence[bytes], arguments: Sequence[bytes | int | str]) -> Command:
    """The command that runs a script by its digest; `Wire` sends the source if the server does not know it."""
    digest = _digests.get(source)
    if digest is None:
        digest = _digests[source] = sha1(source, usedforsecurity=False).hexdigest()
        _scripts[digest] = source
    return (b"EVALSHA", digest, len(keys), *keys, *arguments)


_digests: dict[bytes, str] = {}


Routing = Generator[tuple[Address, Sequence[Command]], list[Any], list[Any]]
"""Yields whom to send what, is sent the replies."""


class Wire:
    """All connections to one target, for all namespaces of a manager that are there.

    Args:
        target: what to connect to.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.topology = Topology(target)
        self.seconds = float(target.options.get("socket_timeout", DEFAULT_SECONDS))
        self._slots: dict[bytes, int] = {}
        self._breakers: dict[int, Breaker] = {}
        self._lines: dict[Address, Line] = {}
        self._async_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Address, Any]] = WeakKeyDictionary()
        self._only = self.line(target.nodes[0]) if target.kind == "single" else None
        self._lock = Lock()
        renew_after_fork(self)

    # -- who

    def slot(self, tag: bytes) -> int:
        """The cluster's slot of this hash tag; 0 where there is one server."""
        if self.target.kind != "cluster":
            return 0
        found = self._slots.get(tag)
        if found is None:
            found = self._slots[tag] = key_slot(b"cmxc:{%b}" % tag)
        return found

    def breaker(self, slot: int) -> Breaker:
        """Of the server that has the slot."""
        found = self._breakers.get(slot)
        if found is None:
            name = self.target.name if self.target.kind != "cluster" else f"{self.target.name} (slot {slot})"
            found = self._breakers.setdefault(slot, Breaker(name))
        return found

    def state(self) -> State:
        """The worst state of the breakers."""
        states = {breaker.state for breaker in list(self._breakers.values())}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def _routed(self, slot: int, commands: Sequence[Command]) -> Routing:
        """The replies to the commands, sent to the server of the slot, wherever that turns out to be."""
        topology = self.topology
        if topology.doubted or topology.where(slot) is None:
            yield from self._asked_around(slot)
        address = topology.where(slot)
        if address is None:
            raise exceptions.ConnectionError(f"no server is known that has slot {slot}")
        replies: list[Any] = [None] * len(commands)
        pending = list(range(len(commands)))
        asking = False
        for _ in range(_REDIRECTIONS):
            sent = [commands[place] for place in pending]
            got = yield address, ([each for command in sent for each in ((b"ASKING",), command)] if asking else sent)
            for place, reply in zip(pending, got[1::2] if asking else got, strict=True):
                replies[place] = reply
            unknown = [place for place in pending if isinstance(replies[place], exceptions.NoScriptError)]
            if unknown:
                sources = [_with_source(commands[place]) for place in unknown]
                got = yield address, ([each for command in sources for each in ((b"ASKING",), command)] if asking else sources)
                for place, reply in zip(unknown, got[1::2] if asking else got, strict=True):
                    replies[place] = reply
            pending = [place for place in pending if isinstance(replies[place], exceptions.AskError)]  # MovedError is one
            if not pending:
                break
            told = replies[pending[0]]
            address, asking = (told.host or address[0], told.port), not isinstance(told, exceptions.MovedError)
            if not asking:
                topology.moved(slot, address)
        if any(isinstance(reply, (exceptions.ReadOnlyError, exceptions.ClusterDownError)) for reply in replies):
            topology.doubt()  # a master that is none any more
        return replies

    def _asked_around(self, slot: int) -> Generator[tuple[Address, Sequence[Command]], list[Any], None]:
        problem: Exception | None = None
        for adviser in self.topology.advisers():
            try:
                (reply,) = yield adviser, (self.topology.question,)
            except Exception as error:
                self.topology.failed(adviser)
                problem = error
                if isinstance(error, exceptions.TimeoutError):
                    raise
                continue
            if self.topology.learn(adviser, reply):
                return
        if self.topology.where(slot) is None and problem is not None:
            raise problem

    # -- blocking

    def send(self, tag: bytes, commands: Sequence[Command]) -> list[Any]:
        """Replies in order; an error that the server told is one of them.

        Raises:
            CircuitOpenError: the server is being left alone.
            redis.RedisError: it cannot be reached, or not in time.
        """
        slot = self.slot(tag)
        breaker = self._breakers.get(slot) or self.breaker(slot)
        probe = breaker.enter()
        try:
            with time_limit(self.seconds):
                replies = self._sent(slot, commands)
        except exceptions.MaxConnectionsError:
            breaker.given_up(probe)
            raise
        except Exception as error:
            self.topology.doubt()
            breaker.failed(error, probe)
            raise
        except BaseException:
            breaker.given_up(probe)
            raise
        self._heard(breaker, probe, replies)
        return replies

    def _sent(self, slot: int, commands: Sequence[Command]) -> list[Any]:
        if self._only is not None:  # the usual case, without the machinery of the other ones
            replies = self._only.exchange(commands)
            if not any(type(reply) is exceptions.NoScriptError for reply in replies):
                return replies
        routing = self._routed(slot, commands)
        step = next(routing)
        if self._only is not None:
            step = routing.send(replies)  # to its first step, which has been made
        while True:
            try:
                try:
                    replies = self.line(step[0]).exchange(step[1])
                except Exception as error:
                    step = routing.throw(error)
                else:
                    step = routing.send(replies)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    @staticmethod
    def _heard(breaker: Breaker, probe: int, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, _UNABLE):
                breaker.failed(reply, probe)
                return
        breaker.succeeded(probe)

    def line(self, address: Address) -> Line:
        """The connections to this server."""
        found = self._lines.get(address)
        if found is None:
            found = self._lines.setdefault(address, Line(lambda: self.connection(address)))
        return found

    def connection(self, address: Address, protocol: int = 2) -> Any:
        """A new one, not yet made."""
        return connection_to(address, self._options(address), tls=self.target.tls, protocol=protocol)

    def _options(self, address: Address) -> dict[str, Any]:
        if self.target.kind == "sentinel" and address in self.target.nodes:
            return dict(self.target.sentinel_options)
        return {name: value for name, value in self.target.options.items() if name != "socket_timeout"}

    def apart(self, tags: Sequence[bytes]) -> list[tuple[bytes, Any]]:
        """New RESP3 connections, one to each server that has a part of this, each with the first such tag.

        Raises:
            redis.RedisError: a server cannot be reached.
        """
        found: dict[Address, tuple[bytes, Any]] = {}
        try:
            for tag in tags:
                self.send(tag, ((b"EXISTS", b"cmxc:{%b}" % tag),))  # now it is known who has it
                address = self.topology.where(self.slot(tag))
                if address is not None and address not in found:
                    connection = self.connection(address, protocol=3)
                    with time_limit(self.seconds):
                        connection.connect()
                    found[address] = tag, connection
        except BaseException:
            for _, connection in found.values():
                connection.disconnect()
            raise
        return list(found.values())

    def close(self) -> None:
        """Close the blocking connections that are not in use, and those of event loops that are closed."""
        for line in list(self._lines.values()):
            line.close()
        self._abandon_closed()

    # -- asyncio

    async def asend(self, tag: bytes, commands: Sequence[Command]) -> list[Any]:
        """`send` in an event loop."""
        slot = self.slot(tag)
        breaker = self._breakers.get(slot) or self.breaker(slot)
        probe = breaker.enter()
        try:
            replies = await self._asent(slot, commands)
        except Exception as error:
            self.topology.doubt()
            breaker.failed(error, probe)
            raise
        except BaseException:
            breaker.given_up(probe)
            raise
        self._heard(breaker, probe, replies)
        return replies

    async def _asent(self, slot: int, commands: Sequence[Command]) -> list[Any]:
        until = asyncio.get_running_loop().time() + self.seconds
        if self._only is not None:  # as in `_sent`
            replies: list[Any] = await self.async_line(self.target.nodes[0]).exchange(commands, until)
            if not any(type(reply) is exceptions.NoScriptError for reply in replies):
                return replies
        routing = self._routed(slot, commands)
        step = next(routing)
        if self._only is not None:
            step = routing.send(replies)  # to its first step, which has been made
        while True:
            try:
                try:
                    replies = await self.async_line(step[0]).exchange(step[1], until)
                except Exception as error:
                    step = routing.throw(error)
                else:
                    step = routing.send(replies)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def async_line(self, address: Address) -> Any:
        """The connections of the running loop to this server."""
        loop = asyncio.get_running_loop()
        lines = self._async_lines.get(loop)
        if lines is None:
            self._abandon_closed()
            with self._lock:
                lines = self._async_lines.setdefault(loop, {})
        if address not in lines:
            from codomyrmex_cache.backends._async_lines import AsyncLine, async_connection_to

            def make() -> Any:
                return async_connection_to(address, self._options(address), tls=self.target.tls)

            lines[address] = AsyncLine(make, self.seconds)
        return lines[address]

    def _abandon_closed(self) -> None:
        with self._lock:
            closed = [loop for loop in self._async_lines if loop.is_closed()]
            # a connection refers to its loop, so the weak key alone would not free it
            lines = [line for loop in closed for line in self._async_lines.pop(loop).values()]
        for line in lines:
            line.abandon()

    async def aclose(self) -> None:
        """Close those of the running loop."""
        with self._lock:
            lines = self._async_lines.pop(asyncio.get_running_loop(), {})
        for line in lines.values():
            with suppress(OSError):
                await line.close()

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it; event loops do not go on in a child."""
        self._lock = Lock()
        self._async_lines = WeakKeyDictionary()


def _with_source(command: Command) -> Command:
    _, digest, *rest = command
    return (b"EVAL", _scripts[str(digest)], *rest)
