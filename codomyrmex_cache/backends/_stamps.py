"""Which copies of a far store's entries may answer: those read since the last write of this process to their key.

Keys share stamps by their hash.  A write moves the stamp of its key when it begins and when it has ended, and while it runs no
copy of that key answers or is made.  A reader takes the stamp *before* it asks the far store, and its copy carries it.  So a
copy whose reading overlapped a write carries a stamp that is no longer the key's: a slow reader may keep it after that write,
but it never answers, and nobody needs to hold a lock while a store is asked.

Copies kept by other processes, in a near store that they share, carry no stamps of this one.  They may answer if they were read
after the end of this process's last write to their key, by the clock that all processes of a machine share since its start.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from math import inf
from threading import Lock
from typing import NamedTuple

from xxhash import xxh3_64_digest

from codomyrmex_cache._entry import Clock, Entry

__all__ = ["Copy", "Stamps", "Ticket", "Writing", "packed", "unpacked"]

_BUCKETS = 1024
"""Stamps; two keys that share one cost each other copies, at one in so many."""


class Ticket(NamedTuple):
    """Taken before the far store is asked.

    Args:
        owner: whose stamp it is, and by which clock.
        stamp: of the key.
        read: the moment.
    """

    owner: tuple[bytes, bytes]
    stamp: int
    read: float


class Copy(NamedTuple):
    """An entry of the far store, with the ticket it was read on, and when it ends."""

    ticket: Ticket
    until: float
    entry: Entry


class Writing(NamedTuple):
    """A write under way: whose, the stamps of its buckets, when it began, and, after its end, the tickets for copies of it."""

    owner: tuple[bytes, bytes]
    stamps: dict[int, int]
    began: float
    tickets: dict[int, Ticket]

    def ticket(self, key: bytes) -> Ticket | None:
        """For a copy of what was written under this key; `None` if something else may have been written there since."""
        return self.tickets.get(hash(key) % _BUCKETS)


class Stamps:
    """The stamps of one process for one far store."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Begin anew, as another owner: no write is under way, and the copies so far are another process's."""
        self._lock = Lock()
        self._owner = (os.urandom(8), _machine() if self._clock is time.monotonic else os.urandom(8))
        self._stamps = [0] * _BUCKETS
        self._writes = [0] * _BUCKETS
        self._ended = [-inf] * _BUCKETS

    def ticket(self, key: bytes) -> Ticket | None:
        """To be taken before the far store is read; `None` while the key is being written."""
        bucket = hash(key) % _BUCKETS
        ticket = Ticket(self._owner, self._stamps[bucket], self._clock())
        return None if self._writes[bucket] else ticket  # looked at last: a write that began meanwhile is seen here or there

    def allow(self, copy: Copy, key: bytes) -> bool:
        """Whether the copy is as new as this process's last write to its key."""
        bucket, ticket = hash(key) % _BUCKETS, copy.ticket
        if ticket.owner == self._owner:
            newer = ticket.stamp == self._stamps[bucket]
        else:
            newer = ticket.owner[1] == self._owner[1] and ticket.read > self._ended[bucket]
        return newer and not self._writes[bucket]

    def begin(self, keys: Iterable[bytes] | None) -> Writing:
        """A write to these keys begins; `None`: to any."""
        buckets = range(_BUCKETS) if keys is None else {hash(key) % _BUCKETS for key in keys}
        began = self._clock()
        with self._lock:
            for bucket in buckets:
                self._stamps[bucket] += 1
                self._writes[bucket] += 1
            return Writing(self._owner, {bucket: self._stamps[bucket] for bucket in buckets}, began, {})

    def end(self, writing: Writing) -> None:
        """It is over, with or without success."""
        now = self._clock()
        with self._lock:
            if writing.owner != self._owner:  # the parent's, dropped in a forked child
                return
            for bucket, stamp in writing.stamps.items():
                alone = self._stamps[bucket] == stamp  # one that still runs will move it
                self._stamps[bucket] += 1
                self._writes[bucket] -= 1
                self._ended[bucket] = max(now, self._ended[bucket])
                if alone:
                    writing.tickets[bucket] = Ticket(self._owner, self._stamps[bucket], writing.began)


def _machine() -> bytes:
    """The same for all processes that read the same `time.monotonic`, which begins with the machine; else like no other."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as boot:
            start = boot.read()
        return xxh3_64_digest(b"%b %d" % (start, os.stat("/proc/self/ns/time").st_ino))
    except OSError:  # not on Linux
        return os.urandom(8)


_HEADER = struct.Struct("<8s8sQddQ")
_SIZE = 64
"""Of the header with its checksum and what fills it up, so that arrays behind it stay aligned."""


def packed(copy: Copy, key: bytes) -> bytes:
    """The copy for a store that keeps bytes."""
    (owner, machine), stamp, read = copy.ticket
    value = copy.entry.value
    header = _HEADER.pack(owner, machine, stamp, read, copy.until, len(value))
    return b"".join((_checked(header, key), value))


def unpacked(value: object, key: bytes) -> Copy | None:
    """The copy, if that is what was stored under this key, and all of it."""
    if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) < _SIZE:
        return None
    whole = value if isinstance(value, bytes) else memoryview(value)
    header = bytes(whole[: _HEADER.size])
    owner, machine, stamp, read, until, size = _HEADER.unpack(header)
    if bytes(whole[:_SIZE]) != _checked(header, key) or len(whole) != _SIZE + size:
        return None
    return Copy(Ticket((owner, machine), stamp, read), until, Entry(whole[_SIZE:]))


def _checked(header: bytes, key: bytes) -> bytes:
    return (header + xxh3_64_digest(header + key)).ljust(_SIZE, b"\0")
