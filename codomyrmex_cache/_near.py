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

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import inf
from typing import Any, Protocol
from weakref import finalize

from codomyrmex_cache._entry import Clock, Entry
from codomyrmex_cache._log import Log
from codomyrmex_cache._near_cells import DEFAULT_NEAR_BYTES, NearCells, Stamp, kill
from codomyrmex_cache.backends.in_memory import DEFAULT_MAX_ENTRIES

__all__ = ["Near"]

_READING = frozenset(
    {"get", "get_many", "get_values", "has", "scan", "look", "begin", "renew", "end", "generations", "totals", "add_totals"}
)
"""What a backend can be asked to do without changing an entry or a tag.  Anything else is taken as a change."""

_OF_KEY = frozenset({"set", "delete", "commit", "replace", "discard"})
_OF_KEYS = frozenset({"set_many", "delete_many"})

_BUCKETS = 1024

_ENDING_SECONDS = 1.0
"""To wait for the thread when closing: it may be in the middle of connecting."""

_NOTHING = nullcontext()

logger = Log(__name__)


class Tracks(Protocol):
    """A thread that tells of changes."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self, seconds: float) -> None: ...
    def abandon(self) -> None: ...


class Near(NearCells):
    """The cells of one namespace.

    Args:
        name: the namespace.
        bound: seconds that an answer may be older than the server's.
        clock: the namespace's, by which its entries live.
        track: makes who tells of changes.
        max_entries: kept; the oldest one without a recent hit makes room.
        max_bytes: of all of them, as stored.
    """

    def __init__(
        self, name: str, bound: float, clock: Clock, track: Callable[[Near], Tracks], *,
        max_entries: int = DEFAULT_MAX_ENTRIES, max_bytes: int = DEFAULT_NEAR_BYTES,
    ) -> None:  # fmt: skip
        super().__init__(clock, _BUCKETS, max_entries=max_entries, max_bytes=max_bytes)
        self.bound = bound
        self._name, self._track = name, track
        self._until = -inf
        self._tracker: Tracks | None = None
        self._end: finalize[Any, Near] | None = None
        self._away = False

    # -- reading

    @property
    def now(self) -> Clock:
        return self._now_by_injected_clock if self._injected else time.monotonic

    def _now_by_injected_clock(self) -> float:
        self._end_lives()
        return time.monotonic()

    def stamp(self, key: bytes) -> Stamp | None:
        """The first one begins the tracking."""
        if self._tracker is None:
            self._start()
        if self._until == -inf:
            return None
        return Stamp(self._era, self._buckets[self._bucket(key)], self._tags)

    def _deadline(self, end: float) -> float:
        return min(end, self._until)

    def _names(self, key: bytes, entry: Entry) -> Iterable[Hashable]:
        return [name for name, _ in entry.generations]

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
        kill(gone)

    def lost(self, error: Exception) -> None:
        """Changes are not told any more."""
        self._drop_deaf()
        if not self._away:
            self._away = True
            logger.warning(
                "namespace %r: the near cache does not hear the server, hits go there until it does (%s: %s)",
                self._name, type(error).__name__, error,
            )  # fmt: skip

    def forget_tags(self, names: Sequence[bytes]) -> None:
        """These generations of tags have changed, or are about to."""
        with self._lock:
            self._tags += 1
            keys = {key for name in names for key in self._named.get(name, ())}
            gone = self._all_removed(keys)
        kill(gone)

    def _drop_deaf(self) -> None:
        with self._lock:
            self._until = -inf
        self._drop()

    # -- written here

    def overtaken(self, verb: str, arguments: Sequence[Any]) -> AbstractContextManager[None]:
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
        self._drop_deaf()
        self._away = False

    def after_fork(self) -> None:
        """The thread is the parent's, and so are its connections."""
        if self._end is not None:
            self._end.detach()
        if self._tracker is not None:
            self._tracker.abandon()
        self._tracker = self._end = None
        self._away = False
        self._until = -inf
        super().after_fork()
