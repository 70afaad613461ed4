"""Blocking connections to one server, shared by threads, each operation within a limit of time.

The connections are redis-py's; what is added is the limit.  A socket's own timeout is for one `recv`, so a server that sends
a byte now and then could hold a caller for ever.  Here every `recv` of an operation has what is left of its limit.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from socket import AI_NUMERICHOST, SO_LINGER, SOL_SOCKET, getaddrinfo
from threading import Event, Lock, Semaphore, Thread, local
from typing import Any

import redis.connection
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._target import Address

__all__ = ["Command", "Line", "connection_to", "forget_unsent", "is_clean", "packed", "time_limit"]

Command = Sequence[bytes | int | str]

_MOST = 50
"""Connections to one server; a caller beyond that waits for one, within its limit of time."""


_MORE = 0.05
"""Seconds that an operation gets beyond its limit if its thread was kept from running: the reply may have come unseen."""


class _Limit(local):
    until: float | None = None
    more = 0.0


_limit = _Limit()


class time_limit:  # noqa: N801  used like a function
    """All that this thread does with connections within the block takes so many seconds at most."""

    __slots__ = ("_before", "_more", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before, self._more = _limit.until, _limit.more
        _limit.until, _limit.more = time.monotonic() + self._seconds, _MORE

    def __exit__(self, *error: object) -> None:
        _limit.until, _limit.more = self._before, self._more


def _left() -> float | None:
    """Seconds left, if there is a limit.

    Raises:
        TimeoutError: none are.
    """
    if _limit.until is None:
        return None
    now = time.monotonic()
    if _limit.until <= now and _limit.more:
        _limit.until, _limit.more = now + _limit.more, 0.0
    if _limit.until <= now:
        raise TimeoutError("timed out")
    return _limit.until - now


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

    def shutdown(self, how: int) -> None:
        """What redis-py does before it closes; within an operation that is one that was broken off."""
        if _limit.until is None:
            self._socket.shutdown(how)
        else:
            forget_unsent(self._socket)

    def _limit(self) -> None:
        if self._socket.gettimeout() != 0 and (left := _left()) is not None:
            self._socket.settimeout(left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Timed:
    """Makes a redis-py connection keep the limit, while connecting too."""

    @property
    def socket_connect_timeout(self) -> float | None:
        """Asked for each address of the host."""
        return _left()

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: float | None) -> None:
        """What redis-py was told is no matter."""

    def _connect(self) -> Any:
        if _limit.until is not None:
            if host := getattr(self, "host", ""):
                _find(host)
            setattr(self, "socket_timeout", _left())  # noqa: B010  for the handshake of TLS
        return _TimedSocket(super()._connect())  # type: ignore[misc]


def _find(host: str) -> None:
    """Ask for the host's address in a thread, which may be left to it: asking knows no limit of time of its own.

    Raises:
        TimeoutError: no answer within the limit; what the answer is, who connects finds out.
    """
    try:
        getaddrinfo(host, None, flags=AI_NUMERICHOST)
    except OSError:
        known = Event()
        Thread(target=_ask, args=(host, known), name="codomyrmex_cache address", daemon=True).start()
        if not known.wait(_left()):
            raise TimeoutError(f"no address of {host!r} was found in time") from None


def _ask(host: str, known: Event) -> None:
    with suppress(OSError):
        getaddrinfo(host, None)
    known.set()


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
                    if not self._freed.acquire(timeout=self._patience()):
                        raise exceptions.MaxConnectionsError("all connections are in use") from None
        finally:
            with self._lock:
                self._waiting -= 1

    @staticmethod
    def _patience() -> float | None:
        try:
            return _left()
        except TimeoutError:
            return 0.0  # it says nothing about the server

    def close(self) -> None:
        """Close the connections that are not in use."""
        free = self._free
        for _ in range(len(free)):
            try:
                connection = free.pop(0)  # nobody else uses it meanwhile
            except IndexError:
                return
            if connection is not None:
                connection.disconnect()
            free.append(None)
            if self._waiting:
                self._freed.release()

    def after_fork(self) -> None:
        """The connections are the parent's."""
        self._reset()


def forget_unsent(socket: Any) -> None:
    """Have the kernel drop what it has not sent yet, now that this socket is to be closed.

    Else it would send on: a value that a caller has given up storing would arrive after a later one, and replace it.
    """
    with suppress(OSError, AttributeError):
        socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))


def is_clean(connection: Any) -> bool:
    """Whether nothing has come that was not asked for, and the server has not closed it.

    `can_read` of redis-py tells the same by an exception in each case, which costs four times as much.
    """
    parser, socket = connection._parser, connection._sock
    if socket is None:
        return True  # it will be connected anew
    unread = _unread_of(parser)
    if unread is None or not hasattr(select, "poll"):  # another version of redis-py, Windows
        try:
            return not connection.can_read()
        except exceptions.RedisError:
            return False
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return not poll.poll(0) and not unread()


def _unread_of(parser: Any) -> Any:
    """What tells of bytes that have been received and not read: redis-py's own parser has it, or that of hiredis."""
    found = getattr(getattr(parser, "_buffer", None), "unread_bytes", None)
    return found or getattr(getattr(parser, "_reader", None), "has_data", None)


def _packed(commands: Sequence[Command]) -> list[bytes]:
    return [packed(commands[0])] if len(commands) == 1 else [b"".join(map(packed, commands))]


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error
