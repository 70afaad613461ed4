"""Blocking connections to one server, shared by threads, each operation within a limit of time.

The connections are redis-py's; what is added is the limit.  A socket's own timeout is for one `recv`, so a server that sends
a byte now and then could hold a caller for ever.  Here every `recv` of an operation has what is left of its limit.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Lock, Semaphore, local
from typing import Any

import redis.connection
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._target import Address

__all__ = ["Command", "Line", "connection_to", "is_clean", "packed", "time_limit"]

Command = Sequence[bytes | int | str]

_MOST = 50
"""Connections to one server; a caller beyond that waits for one, within its limit of time."""


class _Limit(local):
    until: float | None = None


_limit = _Limit()


class time_limit:  # noqa: N801  used like a function
    """All that this thread does with connections within the block takes so many seconds at most."""

    __slots__ = ("_before", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before = _limit.until
        _limit.until = time.monotonic() + self._seconds

    def __exit__(self, *error: object) -> None:
        _limit.until = self._before


def _left() -> float | None:
    """Seconds left, if there is a limit.

    Raises:
        TimeoutError: none are.
    """
    if _limit.until is None:
        return None
    left = _limit.until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _TimedSocket:
    """A socket whose every call keeps the thread's limit."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def recv(self, *arguments: Any) -> bytes:
        self._limit()
        return self._socket.recv(*arguments)  # type: ignore[no-any-return]

    def recv_into(self, *arguments: Any) -> int:
        self._limit()
        return self._socket.recv_into(*arguments)  # type: ignore[no-any-return]

    def sendall(self, *arguments: Any) -> None:
        self._limit()
        self._socket.sendall(*arguments)

    def _limit(self) -> None:
        if self._socket.gettimeout() != 0 and (left := _left()) is not None:
            self._socket.settimeout(left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Timed:
    """Makes a redis-py connection keep the limit, while connecting too."""

    def _connect(self) -> Any:
        left = _left()
        if left is not None:
            for name in ("socket_connect_timeout", "socket_timeout"):  # the latter is for the handshake of TLS
                setattr(self, name, left)
        return _TimedSocket(super()._connect())  # type: ignore[misc]


class _TimedConnection(_Timed, redis.connection.Connection):
    pass


class _TimedSSLConnection(_Timed, redis.connection.SSLConnection):
    pass


class _TimedUnixConnection(_Timed, redis.connection.UnixDomainSocketConnection):
    pass


def connection_to(address: Address, options: Mapping[str, Any], *, tls: bool, protocol: int = 2) -> Any:
    """A new connection, not yet made; it retries nothing and says nothing about itself, which would cost round trips."""
    said = {**options, "retry": Retry(NoBackoff(), 0), "protocol": protocol, "driver_info": None}
    if isinstance(address, str):
        return _TimedUnixConnection(path=address, **said)  # type: ignore[abstract,no-untyped-call]
    kind: Any = _TimedSSLConnection if tls else _TimedConnection
    return kind(host=address[0], port=address[1], **said)


def packed(command: Command) -> bytes:
    """The command as RESP wants it; in a third of the time that redis-py takes, which looks for more kinds of arguments.

    >>> packed((b"GET", b"key"))
    b'*2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nkey\\r\\n'
    """
    pieces = [b"*%d\r\n" % len(command)]
    for each in command:
        if type(each) is not bytes:
            each = each.encode() if isinstance(each, str) else b"%d" % each if isinstance(each, int) else bytes(each)
        pieces.append(b"$%d\r\n%b\r\n" % (len(each), each))
    return b"".join(pieces)


class Line:
    """The connections to one server.

    Args:
        make: a new connection.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._reset()
        renew_after_fork(self)

    def _reset(self) -> None:
        self._free: list[Any] = [None] * _MOST  # connections, and places for connections that were never made
        self._waiting = 0
        self._lock = Lock()
        self._freed = Semaphore(0)

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send all of them at once; the replies in order, errors that the server told as exceptions among them.

        Raises:
            redis.RedisError: the server cannot be reached, or not in time.
        """
        connection = None
        free = self._free
        try:
            connection = free.pop()
        except IndexError:
            connection = self._awaited()
        try:
            if connection is None:
                connection = self._make()
            elif not is_clean(connection):  # closed by the server, or the rest of something broken off
                connection.disconnect()
            connection.send_packed_command(_packed(commands), check_health=False)
            return [_reply(connection) for _ in commands]
        except BaseException:
            if connection is not None:
                connection.disconnect()
            raise
        finally:
            free.append(connection)
            if self._waiting:
                self._freed.release()

    def _awaited(self) -> Any:
        """A connection or a place for one, as soon as there is one."""
        with self._lock:
            self._waiting += 1
        try:
            while True:
                try:
                    return self._free.pop()
                except IndexError:
                    if not self._freed.acquire(timeout=_left()):
                        raise exceptions.MaxConnectionsError("all connections are in use") from None
        finally:
            with self._lock:
                self._waiting -= 1

    def close(self) -> None:
        """Close the connections that are not in use."""
        for connection in list(self._free):
            if connection is not None:
                connection.disconnect()

    def after_fork(self) -> None:
        """The connections are the parent's."""
        self._reset()


def is_clean(connection: Any) -> bool:
    """Whether nothing has come that was not asked for, and the server has not closed it.

    `can_read` of redis-py tells the same by an exception in each case, which costs four times as much.
    """
    buffer, socket = getattr(connection._parser, "_buffer", None), connection._sock
    if socket is None:
        return True  # it will be connected anew
    if buffer is None or not hasattr(select, "poll"):  # hiredis, Windows
        try:
            return not connection.can_read()
        except exceptions.RedisError:
            return False
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return not poll.poll(0) and not buffer.unread_bytes()


def _packed(commands: Sequence[Command]) -> list[bytes]:
    return [packed(commands[0])] if len(commands) == 1 else [b"".join(map(packed, commands))]


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error
