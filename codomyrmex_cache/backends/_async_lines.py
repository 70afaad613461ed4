"""Connections to one server for one event loop: few of them, however many tasks want something.

A task that finds a connection free uses it.  If there is none it queues, and the connection that is free next takes all
that has queued up to then in one go (a pipeline).  So ten thousand calls in flight need a few
connections and a few dozen round trips.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import redis.asyncio.connection
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from codomyrmex_cache.backends._lines import Command, forget_unsent, packed
from codomyrmex_cache.backends._target import Address

__all__ = ["AsyncLine", "async_connection_to"]

_MOST = 8
_AT_ONCE = 256
"""Commands of one pipeline: enough to spare round trips, few enough to be answered within one operation's time."""

_TICK = 0.025
"""Seconds: the limit of an exchange is counted in turns of the loop of this length at most.  Of a loop that is busy with other
things each turn takes longer; but in each it can see what the server has sent, so a turn is what there is to be counted."""


def async_connection_to(address: Address, options: Mapping[str, Any], *, tls: bool) -> Any:
    """A new connection, not yet made; as `connection_to`.  Time is kept by the line, which spares a timer for each read."""
    said = {**options, "retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None, "socket_timeout": None}
    if isinstance(address, str):
        return redis.asyncio.connection.UnixDomainSocketConnection(path=address, **said)
    kind = redis.asyncio.connection.SSLConnection if tls else redis.asyncio.connection.Connection
    return kind(host=address[0], port=address[1], **said)


class _Waiting(NamedTuple):
    commands: Sequence[Command]
    replies: asyncio.Future[list[Any]]


class AsyncLine:
    """The connections of the running loop to one server.

    Args:
        make: a new connection.
        seconds: that an exchange may take.
    """

    def __init__(self, make: Callable[[], Any], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._idle: list[Any] = []
        self._open = 0
        self._queue: deque[_Waiting] = deque()
        self._serving: set[asyncio.Task[None]] = set()

    async def exchange(self, commands: Sequence[Command], until: float) -> list[Any]:
        """As `Line.exchange`, until this time of the loop at most, if there is a connection free."""
        if self._idle:
            connection = self._idle.pop()
        elif self._open < _MOST:
            connection = self._make()
            self._open += 1
        else:
            waiting = _Waiting(commands, self._loop.create_future())
            self._queue.append(waiting)
            return await waiting.replies
        try:
            return await self._over(connection, commands, until)
        except Exception as error:
            self._fail(self._queue, error)
            raise
        finally:
            self._pass_on(connection)

    def _pass_on(self, connection: Any) -> None:
        while self._queue and self._queue[0].replies.done():  # its caller has been cancelled
            self._queue.popleft()
        if not self._queue:
            self._idle.append(connection)
            return
        task = self._loop.create_task(self._serve(connection))
        self._serving.add(task)  # a loop keeps no strong reference to its tasks
        task.add_done_callback(partial(self._served, connection))

    def _served(self, connection: Any, task: asyncio.Task[None]) -> None:
        """Even of a task that was cancelled before its first step the connection goes on to those who wait."""
        self._serving.discard(task)
        self._pass_on(connection)

    async def _serve(self, connection: Any) -> None:
        while batch := self._batch():
            await self._answer(connection, batch)

    def _batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        count = 0
        while self._queue and count < _AT_ONCE:
            waiting = self._queue.popleft()
            if not waiting.replies.done():  # its caller may have been cancelled
                batch.append(waiting)
                count += len(waiting.commands)
        return batch

    async def _answer(self, connection: Any, batch: list[_Waiting]) -> None:
        try:
            commands = [command for waiting in batch for command in waiting.commands]
            replies = await self._over(connection, commands, self._loop.time() + self._seconds)
        except Exception as error:
            self._fail(batch, error)
            self._fail(self._queue, error)  # they would fare no better, and each would wait in vain for as long
            return
        except BaseException:
            self._fail(batch, exceptions.ConnectionError("broken off"))
            raise
        start = 0
        for waiting in batch:
            end = start + len(waiting.commands)
            if not waiting.replies.done():
                waiting.replies.set_result(replies[start:end])
            start = end

    def _fail(self, waiting: Sequence[_Waiting] | deque[_Waiting], error: Exception) -> None:
        for each in waiting:
            if not each.replies.done():
                each.replies.set_exception(_alike(error))
        if waiting is self._queue:
            self._queue.clear()

    async def _over(self, connection: Any, commands: Sequence[Command], until: float) -> list[Any]:
        watch = _Watch(self._loop, until, connection)
        try:
            if connection.is_connected and await connection.can_read():  # closed, or the rest of something broken off
                await connection.disconnect(nowait=True)
            if not connection.is_connected:
                await watch.connect()
            writer = connection._writer  # what `send_packed_command` does, which waits though there is nothing to wait for
            writer.write(b"".join(map(packed, commands)))
            if writer.transport.get_write_buffer_size():
                await writer.drain()
            return [await _reply(connection) for _ in commands]
        except BaseException as error:
            watch.cut_off()
            await connection.disconnect(nowait=True)
            if isinstance(error, asyncio.TimeoutError) or (watch.expired and isinstance(error, Exception)):
                raise exceptions.TimeoutError("Timeout in an exchange with the server") from None
            raise
        finally:
            watch.end()

    async def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._open -= 1
            connection = self._idle.pop()
            watch = _Watch(self._loop, self._loop.time() + self._seconds, connection)  # TLS waits for the other side's farewell
            try:
                await connection.disconnect()
            finally:
                watch.end()

    def abandon(self) -> None:
        """Close the connections of a loop that has been closed without this, and so cannot close them any more."""
        for connection in self._idle:
            writer, connection._reader, connection._writer = connection._writer, None, None
            shown = None if writer is None else writer.get_extra_info("socket")
            if shown is not None:
                with suppress(AttributeError, OSError):  # what loops of other makers do not have goes with the garbage
                    shown._sock.close()
                    writer.transport._closing, writer.transport._sock = True, None  # else it would warn of what is closed


class _Watch:
    """Cuts a connection off when its time is over: what is read then fails, and no task is cancelled, unless it is connecting.

    See `_TICK` for how the time is counted.
    """

    __slots__ = ("_connecting", "_connection", "_handle", "_left", "_loop", "expired")

    def __init__(self, loop: asyncio.AbstractEventLoop, until: float, connection: Any) -> None:
        self._loop = loop
        self._connection = connection
        self.expired = False
        self._connecting: asyncio.Timeout | None = None
        now = loop.time()
        self._left = until - now - _TICK
        self._handle = loop.call_at(min(until, now + _TICK), self._tick)

    def _tick(self) -> None:
        if self._left > 0:
            self._handle = self._loop.call_later(min(self._left, _TICK), self._tick)
            self._left -= _TICK
            return
        self.expired = True
        if self._connecting is not None:
            self._connecting.reschedule(self._loop.time())
        else:
            self.cut_off()

    def cut_off(self) -> None:
        """End the connection, if there is one, and whatever was still to be sent."""
        writer = self._connection._writer  # redis-py has no way to cut a connection off from outside a coroutine
        if writer is not None:
            forget_unsent(writer.get_extra_info("socket"))
            writer.transport.abort()

    async def connect(self) -> None:
        """Make the connection.

        Raises:
            TimeoutError: not in time.
        """
        if self.expired:
            raise TimeoutError
        async with asyncio.timeout(None) as self._connecting:
            await self._connection.connect()
        self._connecting = None

    def end(self) -> None:
        self._handle.cancel()


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response(disconnect_on_error=False)  # what breaks it off ends it in its own way
    except exceptions.ResponseError as error:
        return error


def _alike(error: Exception) -> Exception:
    """One for each who waits; not all kinds can be made from what they say."""
    try:
        return type(error)(*error.args)
    except Exception:
        return exceptions.ConnectionError(*error.args)
