"""A TCP proxy on the loopback that brings the troubles of a network upon those who connect through it, and counts."""

from __future__ import annotations

import re
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from random import Random
from threading import Event, Thread
from types import TracebackType
from typing import Any

__all__ = ["MODES", "FaultProxy"]

MODES = ("pass", "refuse", "close", "reset", "delay:SECONDS", "drip", "damage", "blackhole")

_MODE = re.compile(r"pass|refuse|close|reset|delay:[0-9.]+|drip|damage|blackhole")
_LOOPBACK = "127.0.0.1"
_CHUNK = 65536
_DRIP_SECONDS = 0.02
_ORDER_SECONDS = 10.0
"""For a change of mode to be carried out; beyond that the proxy's thread is dead."""


class _Link:
    """A client's connection, ours to the target once there is something to forward, and what is under way on them."""

    __slots__ = ("asking", "client", "resets", "target", "to_client", "to_target")

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.target: socket.socket | None = None
        self.to_target = bytearray()
        self.to_client: deque[tuple[float, bytes]] = deque()
        self.asking = False
        self.resets = False

    def put(self, data: bytes, due: float, apart: float = 0.0) -> None:
        """Queue bytes for the client, no earlier than those that are queued already; `apart` seconds between single ones."""
        for part in [data[place : place + 1] for place in range(len(data))] if apart else [data]:
            due = max(due, self.to_client[-1][0] if self.to_client else 0.0) + apart
            self.to_client.append((due, part))

    def hurry(self) -> None:
        """What waits is due now."""
        self.to_client = deque((0.0, data) for _, data in self.to_client)


class FaultProxy:
    """Forwards to a port of this machine, as its `mode` says; that can be set at any moment, for all connections.

    "pass" forwards.  "refuse": nobody listens.  "close" accepts, and closes at once.  "reset" forwards half of what has come
    of a reply, then resets the connection.  "delay:0.3" gives each reply 0.3 seconds late, "drip" one byte every 20 ms.
    "damage" flips one bit each in a share of the bytes of replies, or does what you set `damage` to.
    "blackhole" accepts, swallows, and answers nothing.

    "refuse" and "close" end the connections there are; what was held back by "delay" or "drip" is given at the next mode,
    except that "blackhole" swallows it.  When setting `mode` returns, the mode is in force.

    One thread does it all with sockets that never block, so nothing waits for anything else.

    Args:
        target_port: where to forward to.
        seed: of the choice of the bytes that "damage" strikes.
        share: of the bytes of replies that "damage" strikes.
    """

    def __init__(self, target_port: int, *, seed: int = 0, share: float = 0.01) -> None:
        self.trips = 0  # times that a connection turned from asking to being answered; set it to 0 to count anew
        self.connections = 0
        self.most_open = 0
        self.damage: Callable[[bytes], bytes] = self._flipped
        self._target = (_LOOPBACK, target_port)
        self._random, self._share = Random(seed), share
        self._mode, self._over = "pass", False
        self._links: set[_Link] = set()
        self._orders: SimpleQueue[tuple[Callable[[], None], Event]] = SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ, self._obey)
        self._door = self._new_door(0)
        self.port: int = self._door.getsockname()[1]
        self._open_door()
        self._thread = Thread(target=self._serve, name="fault proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://{_LOOPBACK}:{self.port}/0"

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if not _MODE.fullmatch(mode):
            raise ValueError(f"mode {mode!r}: give one of {', '.join(MODES)}")
        self._order(lambda: self._switch(mode))

    def cut(self) -> None:
        """End the connections there are, whatever the mode."""
        self._order(self._drop_all)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._order(self._end)
        self._thread.join()

    # -- asked for by other threads

    def _order(self, what: Callable[[], None]) -> None:
        done = Event()
        self._orders.put((what, done))
        self._ringer.send(b"!")
        if not done.wait(_ORDER_SECONDS):
            raise RuntimeError("the proxy does not answer")

    def _obey(self, _: Any) -> None:
        self._bell.recv(1)
        what, done = self._orders.get()
        what()
        done.set()

    def _switch(self, mode: str) -> None:
        before, self._mode = self._mode, mode
        if mode in ("refuse", "close"):
            self._drop_all()
        for link in self._links:
            link.to_client.clear() if mode == "blackhole" else link.hurry()
        if mode == "refuse" != before:
            self._shut_door()
        elif before == "refuse" != mode:
            self._open_door()

    def _end(self) -> None:
        self._over = True
        self._drop_all()
        for each in (self._door, self._bell, self._ringer):
            each.close()

    # -- the door

    @staticmethod
    def _new_door(port: int) -> socket.socket:
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((_LOOPBACK, port))
        return door

    def _open_door(self) -> None:
        self._door.listen(512)
        self._door.setblocking(False)
        self._selector.register(self._door, selectors.EVENT_READ, self._accept)

    def _shut_door(self) -> None:
        """Bound and not listening: connections are refused, and nobody else gets the port meanwhile."""
        self._selector.unregister(self._door)
        self._door.close()
        self._door = self._new_door(self.port)

    def _accept(self, _: Any) -> None:
        try:
            client, _ = self._door.accept()
        except OSError:  # gone before we looked
            return
        self.connections += 1
        if self._mode == "close":
            client.close()
            return
        link = _Link(_ready(client))
        self._links.add(link)
        self.most_open = max(self.most_open, len(self._links))
        self._selector.register(client, selectors.EVENT_READ, self._from_client)

    # -- the work

    def _serve(self) -> None:
        while not self._over:
            for key, mask in self._selector.select(self._until_due()):
                end: Any = key.fileobj
                if mask & selectors.EVENT_READ and end.fileno() >= 0:  # else one before it in this round has closed it
                    key.data(end)
            for link in tuple(self._links):
                self._flush(link)
        self._selector.close()

    def _until_due(self) -> float | None:
        """Seconds until something that is held back is to go out; what the kernel does not take yet is not waited for here."""
        now = time.monotonic()
        ahead = [link.to_client[0][0] - now for link in self._links if link.to_client and link.to_client[0][0] > 0]
        return max(0.0, min(ahead)) if ahead else None

    def _link_of(self, end: socket.socket) -> _Link:
        return next(link for link in self._links if end in (link.client, link.target))

    def _from_client(self, client: socket.socket) -> None:
        link, data = self._link_of(client), _received(client)
        if not data:
            self._drop(link)
        elif self._mode != "blackhole":
            link.asking = True
            link.to_target += data
            if link.target is None:
                self._connect(link)

    def _connect(self, link: _Link) -> None:
        try:
            link.target = _ready(socket.create_connection(self._target, timeout=1))
        except OSError:
            self._drop(link)
        else:
            self._selector.register(link.target, selectors.EVENT_READ, self._from_target)

    def _from_target(self, target: socket.socket) -> None:
        link, data = self._link_of(target), _received(target)
        if not data:
            self._drop(link)
            return
        begins, link.asking = link.asking, False
        self.trips += begins
        name, _, seconds = self._mode.partition(":")
        now = time.monotonic()
        if name == "drip":
            link.put(data, now, apart=_DRIP_SECONDS)
        elif name == "delay":
            link.put(data, now + float(seconds) if begins else now)
        elif name == "reset":
            link.put(data[: len(data) // 2], 0.0)
            link.resets = True
        elif name != "blackhole":
            link.put(self.damage(data) if name == "damage" else data, 0.0)

    def _flipped(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for place in range(len(damaged)):
            if self._random.random() < self._share:
                damaged[place] ^= 1 << self._random.randrange(8)
        return bytes(damaged)

    def _flush(self, link: _Link) -> None:
        try:
            if link.target is not None and link.to_target:
                del link.to_target[: _sent(link.target, link.to_target)]
            while link.to_client and link.to_client[0][0] <= time.monotonic():
                _, data = link.to_client.popleft()
                count = _sent(link.client, data)
                if count < len(data):
                    link.to_client.appendleft((0.0, data[count:]))
                    break
        except OSError:
            self._drop(link)
            return
        if link.resets and not link.to_client:
            link.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._drop(link)
            return
        self._watch(link.client, self._from_client, bool(link.to_client) and link.to_client[0][0] == 0.0)
        if link.target is not None:
            self._watch(link.target, self._from_target, bool(link.to_target))

    def _watch(self, end: socket.socket, reader: Callable[[Any], None], stuck: bool) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if stuck else 0)
        if self._selector.get_key(end).events != wanted:
            self._selector.modify(end, wanted, reader)

    def _drop_all(self) -> None:
        for link in tuple(self._links):
            self._drop(link)

    def _drop(self, link: _Link) -> None:
        self._links.discard(link)
        for end in (link.client, link.target):
            if end is not None:
                if end in self._selector.get_map():
                    self._selector.unregister(end)
                end.close()


def _ready(end: socket.socket) -> socket.socket:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end


def _received(end: socket.socket) -> bytes | None:
    """What has come; nothing when the other side has closed or broken off."""
    try:
        return end.recv(_CHUNK)
    except OSError:
        return None


def _sent(end: socket.socket, data: bytes | bytearray) -> int:
    """How many bytes the kernel took."""
    try:
        return end.send(data)
    except BlockingIOError:
        return 0
