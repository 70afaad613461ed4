"""The near cache: what this process has read from a server lately, as hot cells, for as long as it is known to be unchanged.

A cell answers under three conditions, each of which is the work of somebody else.

*It has not been killed.*  The server tells of every change (see `backends._tracking`), and what this process writes itself
kills cells before and after it is written, so who has written here reads no older value.

*It is not too old.*  Its deadline is no later than `bound` seconds after the last check that was answered had been sent, and
each check that is answered moves the deadlines on.  So nobody needs to notice that a connection is dead, or that a server, this
process or the listening thread stands still: cells end by themselves.  (The clock is `time.monotonic`; on most systems it does
not count the time that the machine sleeps.)

*It was not overtaken on its way in.*  Between the reading of a value and its keeping, a change may have been told of.  So a
reader takes a `stamp` before it asks the server, and `keep` takes the value only if no change that concerns its key has been
told of since.  What was begun before the tracking began is not kept either.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import inf
from threading import Lock
from typing import Any, NamedTuple, Protocol
from weakref import finalize

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._payload import ObjectPayloads
from codomyrmex_cache.backends._eviction import Eviction
from codomyrmex_cache.backends.in_memory import DEFAULT_MAX_ENTRIES, Cell
from codomyrmex_cache.errors import CacheCodecError, EnvelopeError

__all__ = ["DEFAULT_NEAR_BYTES", "Near", "Stamp"]

DEFAULT_NEAR_BYTES = 64 * 2**20
"""By the size of the stored bytes; as objects they take a few times as much."""

_READING = frozenset(
    {"get", "get_many", "get_values", "has", "scan", "look", "begin", "renew", "end", "generations", "totals", "add_totals"}
)
"""What a backend can be asked to do without changing an entry or a tag.  Anything else is taken as a change."""

_OF_KEY = frozenset({"set", "delete", "commit", "replace", "discard"})
_OF_KEYS = frozenset({"set_many", "delete_many"})

_SHARE = 8
"""An entry that would take more than one part in so many of the room is not kept."""

_BUCKETS = 1024
"""Keys share the counters of changes by their hash; one that is kept out by another's change is kept at its next read."""

_ENDING_SECONDS = 1.0
"""To wait for the thread when closing: it may be in the middle of connecting."""

_NOTHING = nullcontext()

logger = logging.getLogger(__name__)


class NearCell(Cell):
    """A cell, and when its entry's own life ends (by `time.monotonic`); its weight is the server's bytes for it."""

    __slots__ = ("end",)

    def __init__(self, key: bytes, entry: Entry, size: int, end: float, deadline: float) -> None:
        super().__init__(key, entry, size)
        self.end, self.deadline = end, deadline


class Stamp(NamedTuple):
    """How many changes had been told of: of everything, of the key's bucket, of tags."""

    era: int
    bucket: int
    tags: int


class Tracks(Protocol):
    """A thread that tells of changes."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self, seconds: float) -> None: ...
    def abandon(self) -> None: ...


class Near:
    """The cells of one namespace.  Threads share it; hits take no lock.

    Args:
        name: the namespace.
        bound: seconds that an answer may be older than the server's.
        clock: the namespace's, by which its entries live.
        track: makes who tells of changes.
        max_entries: kept; who makes room is decided as in `InMemoryBackend`.
        max_bytes: of all of them, as stored.
    """

    def __init__(
        self, name: str, bound: float, clock: Clock, track: Callable[[Near], Tracks], *,
        max_entries: int = DEFAULT_MAX_ENTRIES, max_bytes: int = DEFAULT_NEAR_BYTES,
    ) -> None:  # fmt: skip
        self.bound = bound
        self.cells: dict[bytes, NearCell] = {}
        self._order: Eviction[NearCell] = Eviction()
        self._name, self._clock, self._track = name, clock, track
        self._payloads = ObjectPayloads()
        self._injected = clock not in (time.time, time.monotonic)
        self._first_end = inf  # of the entries' lives, by an injected clock
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._tagged: dict[bytes, set[bytes]] = {}
        self._until = -inf
        self._era = self._tags = 0
        self._buckets = [0] * _BUCKETS
        self._tracker: Tracks | None = None
        self._end: finalize[Any, Near] | None = None
        self._away = False
        self._lock = Lock()
        renew_after_fork(self)

    # -- reading

    @property
    def now(self) -> Clock:
        """What deadlines are compared with.  With an injected clock it first kills the cells whose lives have ended by that."""
        return self._now_by_injected_clock if self._injected else time.monotonic

    def cell(self, key: bytes) -> Cell | None:
        """The live cell, for the hot closure to keep."""
        return self.cells.get(key)

    def get(self, key: bytes, digest: bytes, *, copy: bool) -> Entry | None:
        """The entry with a value to hand out, if there is a cell that may answer."""
        cell = self.cells.get(key)
        if cell is None:
            return None
        entry = cell.entry  # before the deadline: see Cell
        if entry is None or not self.now() < cell.deadline:
            return None
        try:
            found = self._payloads.unpack(key, entry, digest, copy=copy)
        except (EnvelopeError, CacheCodecError):  # another call's, or not to be copied now: the server's is read
            return None
        cell.touches += 1
        return found

    def stamp(self, key: bytes) -> Stamp | None:
        """To be taken before the server is asked; `None` while nothing can be kept.  The first one begins the tracking."""
        if self._tracker is None:
            self._start()
        if self._until == -inf:
            return None
        return Stamp(self._era, self._buckets[hash(key) % _BUCKETS], self._tags)

    def keep(self, key: bytes, stamp: Stamp | None, entry: Entry, size: int, *, copy: bool) -> None:
        """Keep a fresh entry that was read since `stamp` was taken, unless something may have changed it meanwhile.

        Args:
            key: the backend's.
            stamp: taken before the server was asked.
            entry: with its value decoded.
            size: of the stored bytes.
            copy: whether a mutable value must not be shared with who has it now.
        """
        if stamp is None or entry.raised or entry.streamed or size * _SHARE > self._max_bytes:
            return
        try:
            packed = self._payloads.pack(key, entry, copy=copy)
        except CacheCodecError:  # cannot be copied, so each reader decodes its own
            return
        with self._lock:
            changed = stamp != (self._era, self._buckets[hash(key) % _BUCKETS], self._tags if entry.generations else stamp.tags)
            dead = [] if changed else self._put(key, packed, size)
        _kill(dead)

    def _put(self, key: bytes, entry: Entry, size: int) -> list[NearCell]:
        end, moment = inf, time.monotonic()
        if entry.fresh_until is not None and self._injected:
            self._first_end = min(self._first_end, entry.fresh_until)
        elif entry.fresh_until is not None:
            end = moment + entry.fresh_until - self._clock()
        deadline = min(end, self._until)
        if deadline <= moment:
            return []
        dead = [] if (old := self._removed(key)) is None else [old]
        while self._order.count >= self._max_entries or self._order.weight + size > self._max_bytes:
            dead += self._all_removed((self._order.evict().key,))
        cell = self.cells[key] = NearCell(key, entry, size, end, deadline)
        self._order.add(cell)
        for name, _ in entry.generations:
            self._tagged.setdefault(name, set()).add(key)
        return dead

    def _removed(self, key: bytes) -> NearCell | None:
        cell = self.cells.pop(key, None)
        if cell is None:
            return None
        self._order.remove(cell)
        assert cell.entry is not None  # what is killed has been removed before
        for name, _ in cell.entry.generations:
            keys = self._tagged[name]
            keys.discard(key)
            if not keys:
                del self._tagged[name]
        return cell

    def _all_removed(self, keys: Iterable[bytes]) -> list[NearCell]:
        return [cell for cell in map(self._removed, keys) if cell is not None]

    def _now_by_injected_clock(self) -> float:
        now = self._clock()
        if now >= self._first_end:
            with self._lock:
                ends = {key: cell.entry.fresh_until for key, cell in self.cells.items() if cell.entry is not None}
                gone = self._all_removed([key for key, end in ends.items() if end is not None and end <= now])
                self._first_end = min((end for end in ends.values() if end is not None and end > now), default=inf)
            _kill(gone)
        return time.monotonic()

    # -- told by who tracks

    def began(self, sent: float) -> None:
        """Changes are told from now on; the check was answered that was sent at this moment."""
        with self._lock:
            self._until = sent + self.bound  # what was asked for before has no stamp, or one of an earlier era
        if self._away:
            self._away = False
            logger.warning("namespace %r: the near cache hears the server again", self._name)

    def confirmed(self, sent: float) -> None:
        """All changes made before this moment have been told."""
        now = time.monotonic()
        with self._lock:
            self._until = until = sent + self.bound
            over = []
            for key, cell in self.cells.items():
                cell.deadline = min(cell.end, until)
                if cell.end <= now:
                    over.append(key)
            gone = self._all_removed(over)
        _kill(gone)

    def lost(self, error: Exception) -> None:
        """Changes are not told any more."""
        self._drop(deaf=True)
        if not self._away:
            self._away = True
            logger.warning(
                "namespace %r: the near cache does not hear the server, hits go there until it does (%s: %s)",
                self._name, type(error).__name__, error,
            )  # fmt: skip

    def forget(self, keys: Sequence[bytes]) -> None:
        """These entries have changed, or are about to."""
        with self._lock:
            for key in keys:
                self._buckets[hash(key) % _BUCKETS] += 1
            gone = self._all_removed(keys)
        _kill(gone)

    def forget_tags(self, names: Sequence[bytes]) -> None:
        """These generations of tags have changed, or are about to."""
        with self._lock:
            self._tags += 1
            keys = {key for name in names for key in self._tagged.get(name, ())}
            gone = self._all_removed(keys)
        _kill(gone)

    def forget_all(self) -> None:
        """Everything has changed."""
        self._drop()

    def _drop(self, *, deaf: bool = False) -> None:
        with self._lock:
            if deaf:
                self._until = -inf
            self._era += 1
            gone = list(self.cells.values())
            self.cells.clear()
            self._order.clear()
            self._tagged.clear()
        _kill(gone)

    # -- written here

    def overtaken(self, verb: str, arguments: Sequence[Any]) -> AbstractContextManager[None]:
        """Around what is asked of the backend: cells die before it changes anything, and after it those filled meanwhile."""
        return _NOTHING if verb in _READING else self._overtaken(verb, arguments)

    @contextmanager
    def _overtaken(self, verb: str, arguments: Sequence[Any]) -> Iterator[None]:
        self._overtake(verb, arguments)
        try:
            yield
        finally:
            self._overtake(verb, arguments)

    def _overtake(self, verb: str, arguments: Sequence[Any]) -> None:
        if verb in _OF_KEY:
            self.forget((arguments[0],))
        elif verb in _OF_KEYS:
            self.forget(list(arguments[0]))
        elif verb == "revoke":
            self.forget_tags([name for name in arguments[0] if name[:1] == b"t"])
        else:
            self.forget_all()

    # -- its life

    def _start(self) -> None:
        with self._lock:
            if self._tracker is not None:
                return
            tracker = self._track(self)
            try:
                tracker.start()
            except RuntimeError:  # the program is about to end, or has no threads left
                return
            self._tracker = tracker
            self._end = finalize(self, tracker.stop)
            self._end.atexit = False

    def close(self) -> None:
        """End the tracking; a later read begins it again."""
        with self._lock:
            tracker, self._tracker = self._tracker, None
            end, self._end = self._end, None
        if tracker is not None and end is not None:
            end()
            tracker.join(_ENDING_SECONDS)
        self._drop(deaf=True)
        self._away = False

    def after_fork(self) -> None:
        """The thread is the parent's, and so are its connections."""
        self._lock = Lock()
        if self._end is not None:
            self._end.detach()
        if self._tracker is not None:
            self._tracker.abandon()
        self._tracker = self._end = None
        self._away = False
        self._drop(deaf=True)


def _kill(cells: Iterable[NearCell]) -> None:
    """Outside the lock, since dropping a value may run a `__del__` that comes back here."""
    for cell in cells:
        cell.kill()
