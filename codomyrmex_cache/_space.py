"""One namespace, wired: everything the flow and its drivers need to know."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Literal

from codomyrmex_cache._chance import draw
from codomyrmex_cache._entry import Clock
from codomyrmex_cache._flight import Flights
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._heart import Heart
from codomyrmex_cache._log import Log
from codomyrmex_cache._payload import Payloads
from codomyrmex_cache.backends.base import (
    AsyncBackend,
    Backend,
    Begun,
    Coordinates,
    LooksFirst,
    ReportsEvictions,
    generation_name,
    namespace_prefix,
)  # fmt: skip
from codomyrmex_cache.errors import CacheBackendError, CacheConfigurationError, cause_of
from codomyrmex_cache.keys import owner_of
from codomyrmex_cache.modes import NORMALLY, Ruling, Stance, ruling_of
from codomyrmex_cache.stats import Counters

if TYPE_CHECKING:
    import asyncio

    from codomyrmex_cache._near_cells import NearCells

__all__ = ["OnError", "Space"]

OnError = Literal["bypass", "raise"]

_MINUTE = 60.0
_REFRESHES = 8
"""Threads that refresh at the same time in one namespace; beyond that the next stale hit tries again."""

logger = Log(__name__)


class Space:
    """A namespace with its backend, clock, running loads and counters.

    Args:
        name: the namespace.
        backend: where its entries are.
        payloads: how values become entries there.
        clock: seconds; monotonic for memory, wall time for stores that outlive the process.
        on_error: what a failing backend does to a call: nothing ("bypass") or `CacheBackendError` ("raise").
        strict: raise what is wrong with an entry that cannot be read, instead of taking it as a miss.
        counters: of the direct API; each function's are added as it is first used.
        near: what this process keeps of a server's or of files' entries.
        stance: its mode, where nothing nearer says another.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        payloads: Payloads,
        clock: Clock,
        on_error: OnError,
        counters: dict[str, Counters],
        *,
        strict: bool = False,
        near: NearCells | None = None,
        stance: Stance = NORMALLY,
    ) -> None:
        self.name = name
        self.prefix = namespace_prefix(name)
        self.backend = backend
        self.payloads = payloads
        self.clock = clock
        self.on_error = on_error
        self.strict = strict
        self.near = near
        self.stance = stance
        self.flights = Flights()
        self.counters = counters
        self.is_async = isinstance(backend, AsyncBackend)
        self.heart = Heart(backend, self._beat_failed) if isinstance(backend, Coordinates) else None
        self.coordinates = self.heart is not None
        self.elects = self.coordinates and backend.payload == "bytes"  # others than this process may load
        self.looks_first = self.elects and isinstance(backend, LooksFirst)
        self.behind = BoundedSemaphore(_REFRESHES)
        self.tasks: set[object] = set()  # refreshes in event loops
        self._warned: dict[tuple[str, ...], float] = {}
        if isinstance(backend, ReportsEvictions):
            backend.subscribe(self._evicted)
        renew_after_fork(self)

    def ruling(self) -> Ruling:
        """The mode of a call that is made here and now."""
        return ruling_of(self.name, self.clock, self.stance)

    def stored(self, text: str) -> bytes:
        """The backend's key for a key text of this namespace."""
        return self.prefix + text.encode("utf-8", "surrogatepass")

    def text(self, stored: bytes) -> str:
        """The key text behind a backend's key; of one that is no text, something like it."""
        try:
            return stored[len(self.prefix) :].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return stored[len(self.prefix) :].decode("utf-8", "replace")

    def scopes(self, text: str) -> tuple[bytes, ...]:
        """The generations that every entry of this key depends on: its namespace's and its function's."""
        owner = owner_of(text)
        namespace = generation_name("n", self.prefix)
        return (namespace, self.scope(owner)) if owner else (namespace,)

    def scope(self, owner: str) -> bytes:
        """The generation of a function; of the whole namespace if the name is empty."""
        if not owner:
            return generation_name("n", self.prefix)
        return generation_name("f", self.prefix + owner.encode("utf-8", "surrogatepass"))

    def tag(self, tag: str) -> bytes:
        """The generation of a tag.

        Raises:
            TypeError: not a `str`.
            CacheConfigurationError: the backend has no tags.
        """
        if not isinstance(tag, str):
            raise TypeError(f"tag {tag!r}: give a str")
        self.check_coordinates("tags")
        return generation_name("t", self.prefix + tag.encode("utf-8", "surrogatepass"))

    def check_coordinates(self, what: str) -> None:
        """Raise CacheConfigurationError if the backend lacks the verbs of `Coordinates`, which `what` needs."""
        if not self.coordinates:
            raise CacheConfigurationError(
                f"namespace {self.name!r}: {type(self.backend).__name__} has no {what}; "
                f"it would need the verbs of codomyrmex_cache.backends.base.Coordinates"
            )

    def holding(
        self, stored: bytes, begun: Begun | None, lost: Callable[[], None], dead: Callable[[], bool]
    ) -> AbstractContextManager[None]:
        """Keep the lease, if there is one, within the block; see `Heart.holding`."""
        if self.heart is None or begun is None or not begun.lease or not self.elects:
            return nullcontext()
        return self.heart.holding(stored, begun, lost, dead)

    @staticmethod
    def draw() -> float:
        """A number from [0, 1)."""
        return draw()

    def _beat_failed(self, error: Exception) -> None:
        self.counters[""].error(f"lease:{cause_of(error)}")

    def backend_failed(self, verb: str, error: Exception, counters: Counters) -> None:
        """Count a backend's failure, log its kind once, and raise it if that was asked for.

        Raises:
            CacheBackendError: with `on_error="raise"`.
        """
        kind = cause_of(error)
        counters.error(f"backend:{kind}")
        if self.on_error == "raise":
            raise CacheBackendError(
                f"namespace {self.name!r}: the backend {type(self.backend).__name__} failed to {verb} ({kind}: {error})"
            ) from error
        self.warn_once(
            ("backend", kind),
            "namespace %r: the backend failed to %s (%s: %s); calls go on without it",
            self.name, verb, kind, error,
        )  # fmt: skip

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the running event loop do this; what goes wrong is counted."""
        import asyncio

        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)  # a loop keeps no strong reference to its tasks
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.counters[""].error(f"backend:{cause_of(error)}")

    def refresh_failed(self, error: Exception) -> None:
        """Count a refresh that came to nothing; the old value stays until its window ends."""
        self.counters[""].error(f"refresh:{type(error).__name__}")

    def after_fork(self) -> None:
        """The loads and refreshes under way are the parent's."""
        self.flights.abandon()
        self.behind = BoundedSemaphore(_REFRESHES)

    def warn_once(self, cause: tuple[str, ...], message: str, *arguments: object) -> None:
        """One log line per cause and namespace."""
        if cause not in self._warned:
            self._warned[cause] = time.monotonic()
            logger.warning(message, *arguments)

    def warn_at_times(self, cause: tuple[str, ...], message: str, *arguments: object) -> None:
        """One log line per cause, namespace and minute."""
        now = time.monotonic()
        if now - self._warned.get(cause, -_MINUTE) >= _MINUTE:
            self._warned[cause] = now
            logger.warning(message, *arguments)

    def _evicted(self, key: bytes) -> None:
        if key.startswith(self.prefix):
            owner = owner_of(self.text(key))
            counters = self.counters.get(owner) or self.counters[""]
            counters.add("evictions")
