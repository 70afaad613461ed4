"""Hearing from the server which keys of a namespace have changed, on connections that serve nothing else.

RESP3 client tracking in broadcast mode: the server sends a push for each change of a key with one of our prefixes, whoever
made it and whoever has read it.  Pushes and replies come in order, so a *check* (a question, sent now and then) tells more than
that the connection is alive: when its answer has been read, every change made before the check was **sent** has been heard.  (A
change that the server made in the same turn of its loop as it read the check may be heard after the answer.  That turn began
when the check had arrived, so such a change is younger than the check.)

The check asks for a key in each slot that the server has for the namespace, so a slot that has moved is noticed, and for the
server's role, so a master that has been deposed is.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from threading import Thread, current_thread
from typing import Any, Protocol, runtime_checkable
from weakref import ref

from codomyrmex_cache._chance import draw
from codomyrmex_cache.backends.base import generation_name

__all__ = ["Listener", "TellsChanges", "Tracker"]

_CHECKS = 4
"""Within the bound: three may be late before an answer is too old."""

_LEAST_PATIENCE = 0.5
"""Seconds without an answer after which a connection is given up, if half the bound is less."""

_FIRST_PAUSE, _LONGEST_PAUSE, _REFUSED_PAUSE = 0.1, 5.0, 60.0
"""Seconds between two attempts to connect; the last one is for servers that have no tracking."""

_AT_ONCE = 1000
"""Messages read before it is looked at again whether a check is due."""

_PUSH = object()


class _Unusable(Exception):  # noqa: N818  told to the listener, never raised to users
    """An answer that a server which tracks our keys does not give."""


class _Refused(_Unusable):
    """The server does not track."""


class _Gone(Exception):  # noqa: N818  a signal, never seen outside
    """Nobody listens any more."""


@runtime_checkable
class TellsChanges(Protocol):
    """What a backend must offer to be listened to."""

    def key_of(self, server_key: bytes) -> bytes | None:
        """The key of the entry with this name on the server; `None` if it is no entry's."""

    def tracked_prefixes(self, prefix: bytes) -> Sequence[bytes]:
        """What the server's names of the namespace's entries, and of its tags' generations, begin with."""

    def tracking_connections(self, prefix: bytes) -> Iterable[tuple[Any, Any]]:
        """New RESP3 connections, one to each server of the namespace, in pairs with whatever the backend likes to add."""


class Listener(Protocol):
    """Who is told.  `sent` is when, by `time.monotonic`, a check was sent whose answer has been read."""

    def began(self, sent: float) -> None: ...
    def confirmed(self, sent: float) -> None: ...
    def lost(self, error: Exception) -> None: ...
    def forget(self, keys: Sequence[bytes]) -> None: ...
    def forget_tags(self, names: Sequence[bytes]) -> None: ...
    def forget_all(self) -> None: ...


class _Line:
    """One connection.

    Args:
        connection: as redis-py makes it, speaking RESP3, in nobody else's hands.
        changed: told the names in each push; `None` for all.
        patience: seconds to wait for the next bytes of a message.
    """

    def __init__(self, connection: Any, changed: Callable[[Sequence[bytes] | None], None], patience: float) -> None:
        self.connection = connection
        self.confirmed = 0.0
        self.served: list[bytes] = []
        self._changed, self._patience = changed, patience
        self._sent: deque[float] = deque()
        self._answers = 0
        self._commands: list[tuple[Any, ...]] = []
        self._broken: Exception | None = None

    def begin(self, prefixes: Sequence[bytes]) -> None:
        """Have changes told, and find out which of the prefixes this server serves."""
        parser = self.connection._parser
        parser.set_invalidation_push_handler(self._pushed)
        parser.set_pubsub_push_handler(lambda _: _PUSH)
        said = [part for prefix in prefixes for part in ("PREFIX", prefix)]
        reply = self._asked("CLIENT", "TRACKING", "ON", "BCAST", *said)
        if reply != b"OK":
            raise _Refused(f"CLIENT TRACKING: {reply}")
        self.served = [prefix for prefix in prefixes if isinstance(self._asked("EXISTS", prefix), int)]
        by_slot = {prefix.partition(b"}")[0]: prefix for prefix in self.served}  # what the server places a key by ends there
        self._commands = [("EXISTS", prefix) for prefix in by_slot.values()]
        if isinstance(self._asked("ROLE"), list):  # else it may not be asked for
            self._commands.append(("ROLE",))

    def check(self) -> float:
        """Send a check and wait for its answer; when it was sent."""
        self.ask()
        while self._sent:
            self._read()
        return self.confirmed

    def ask(self) -> None:
        """Send a check."""
        self._sent.append(time.monotonic())
        self.connection.send_packed_command(self.connection.pack_commands(self._commands), check_health=False)

    def drain(self) -> bool:
        """Read what has come; whether there may be more."""
        for _ in range(_AT_ONCE):
            if not self.connection.can_read(0):
                return False
            self._read()
        return True

    def is_silent_since(self, moment: float) -> bool:
        """Whether a check sent before has no answer."""
        return bool(self._sent) and self._sent[0] < moment

    def _asked(self, *command: Any) -> Any:
        """The answer to a command sent by itself, an error that the server tells as an exception."""
        from redis.exceptions import ResponseError

        self.connection.send_packed_command(self.connection.pack_command(*command), check_health=False)
        try:
            while (reply := self._next()) is _PUSH:
                pass
        except ResponseError as error:
            return error
        return reply

    def _next(self) -> Any:
        reply = self.connection.read_response(push_request=True, timeout=self._patience)
        if self._broken is not None:
            raise self._broken
        return reply

    def _read(self) -> None:
        reply = self._next()
        if reply is not _PUSH:
            self._answered(reply)

    def _answered(self, reply: Any) -> None:
        if not self._sent:
            raise _Unusable(f"an answer to nothing: {reply!r}")
        asked = self._commands[self._answers][0]
        if not (_is_master(reply) if asked == "ROLE" else type(reply) is int):
            raise _Unusable(f"{asked}: {reply!r}")
        self._answers += 1
        if self._answers == len(self._commands):
            self._answers, self.confirmed = 0, self._sent.popleft()

    def _pushed(self, message: Sequence[Any]) -> Any:
        try:
            self._changed(message[1])
        except Exception as error:  # redis-py would log it and go on
            self._broken = error
        return _PUSH


def _is_master(reply: Any) -> bool:
    return isinstance(reply, list) and bool(reply) and reply[0] == b"master"


class Tracker:
    """A thread that listens for one namespace until `stop`, or until its listener is no more, which it does not keep alive.

    Args:
        backend: whose keys are tracked.
        prefix: of the namespace.
        bound: seconds for which a listener relies on a check.
        listener: is told.
    """

    def __init__(self, backend: TellsChanges, prefix: bytes, bound: float, listener: Listener) -> None:
        self._backend, self._prefix, self._bound = backend, prefix, bound
        self._patience = max(bound / 2, _LEAST_PATIENCE)
        self._listener = ref(listener)
        self._lines: list[_Line] = []
        self._generations: list[bytes] = []
        self._stopping = False
        self._began = False
        self._bell, self._ringer = socket.socketpair()
        self._thread = Thread(target=self._run, name="codomyrmex_cache near", daemon=True)

    def start(self) -> None:
        """Begin; raises RuntimeError where no thread can be had."""
        try:
            self._thread.start()
        except RuntimeError:
            self.abandon()
            raise

    def stop(self) -> None:
        """End soon."""
        self._stopping = True
        with suppress(OSError):  # it has ended already
            self._ringer.send(b"!")

    def join(self, seconds: float) -> None:
        """Wait until it has ended, but no longer than this."""
        if self._thread is not current_thread():
            self._thread.join(seconds)

    def abandon(self) -> None:
        """In a forked child, where there is no such thread: close the child's copies of what it has open."""
        for line in self._lines:
            line.connection.disconnect()  # which does not end the parent's
        self._bell.close()
        self._ringer.close()

    def _run(self) -> None:
        with closing(self._bell), closing(self._ringer):
            pause = _FIRST_PAUSE
            while not self._stopping:
                try:
                    self._follow()
                except _Gone:
                    return
                except Exception as error:  # the server's, the network's or the parser's: all that is known is worth nothing
                    if not self._tell_lost(error):
                        return
                    pause = _REFUSED_PAUSE if isinstance(error, _Refused) else _FIRST_PAUSE if self._began else pause
                    self._rest(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)

    def _rest(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            selector.select(seconds * (0.5 + 0.5 * draw()))

    def _follow(self) -> None:
        """Connect, and listen until told to stop; raises what ends the connection."""
        self._began = False
        prefixes = list(self._backend.tracked_prefixes(self._prefix))
        self._generations = [prefix for prefix in prefixes if self._backend.key_of(prefix) is None]
        try:
            connections = self._backend.tracking_connections(self._prefix)
            self._lines = [_Line(connection, self._changed, self._patience) for connection, _ in connections]
            for line in self._lines:
                line.begin(prefixes)
            unserved = set(prefixes).difference(*(line.served for line in self._lines))
            if unserved:
                raise _Unusable(f"no server has {min(unserved)!r}")
            sent = min(line.check() for line in self._lines)
            self._told().began(sent)
            self._began = True
            self._listen(sent)
        finally:
            for line in self._lines:
                line.connection.disconnect()
            self._lines = []

    def _listen(self, confirmed: float) -> None:
        pause, more = self._bound / _CHECKS, False
        due = confirmed + pause
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            for line in self._lines:
                selector.register(line.connection._sock, selectors.EVENT_READ)
            while not self._stopping:
                selector.select(0 if more else max(0.0, due - time.monotonic()))
                now = time.monotonic()
                if now >= due:
                    due = now + pause
                    for line in self._lines:
                        line.ask()
                more = False
                for line in self._lines:
                    more |= line.drain()
                sent = min(line.confirmed for line in self._lines)
                if sent > confirmed:
                    confirmed = sent
                    self._told().confirmed(sent)
                if any(line.is_silent_since(now - self._patience) for line in self._lines):
                    raise TimeoutError(f"no answer within {self._patience:g} s")

    def _changed(self, names: Sequence[bytes] | None) -> None:
        listener = self._told()
        if names is None:
            listener.forget_all()
            return
        keys, tags = [], []
        for name in names:
            key = self._backend.key_of(name)
            if key is not None:
                keys.append(key)
            elif (tag := self._tag(name)) is not None:
                tags.append(tag)
            else:  # nothing that was asked for
                listener.forget_all()
        listener.forget(keys)
        if tags:
            listener.forget_tags(tags)

    def _tag(self, name: bytes) -> bytes | None:
        """The generation behind a name on the server."""
        for prefix in self._generations:
            if name.startswith(prefix):
                return generation_name("t", self._prefix + name[len(prefix) :])
        return None

    def _told(self) -> Listener:
        listener = self._listener()
        if listener is None:
            raise _Gone
        return listener

    def _tell_lost(self, error: Exception) -> bool:
        listener = self._listener()
        if listener is None:
            return False
        if not self._stopping:
            listener.lost(error)
        return True
