"""One namespace, wired: everything the flow and its drivers need to know."""

from __future__ import annotations

import logging
from typing import Literal

from codomyrmex_cache._entry import Clock
from codomyrmex_cache._flight import Flights
from codomyrmex_cache._payload import Payloads
from codomyrmex_cache.backends.base import AsyncBackend, Backend, ReportsEvictions, namespace_prefix
from codomyrmex_cache.errors import CacheBackendError
from codomyrmex_cache.stats import Counters

__all__ = ["OnError", "Space"]

OnError = Literal["bypass", "raise"]

logger = logging.getLogger(__name__)


class Space:
    """A namespace with its backend, clock, running loads and counters.

    Args:
        name: the namespace.
        backend: where its entries are.
        payloads: how values become entries there.
        clock: seconds; monotonic for memory, wall time for stores that outlive the process.
        on_error: what a failing backend does to a call: nothing ("bypass") or `CacheBackendError` ("raise").
        counters: of the direct API; each function's are added as it is first used.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        payloads: Payloads,
        clock: Clock,
        on_error: OnError,
        counters: dict[str, Counters],
    ) -> None:
        self.name = name
        self.prefix = namespace_prefix(name)
        self.backend = backend
        self.payloads = payloads
        self.clock = clock
        self.on_error = on_error
        self.flights = Flights()
        self.counters = counters
        self.is_async = isinstance(backend, AsyncBackend)
        self._warned: set[tuple[str, ...]] = set()
        if isinstance(backend, ReportsEvictions):
            backend.subscribe(self._evicted)

    def stored(self, text: str) -> bytes:
        """The backend's key for a key text of this namespace."""
        return self.prefix + text.encode("utf-8", "surrogatepass")

    def text(self, stored: bytes) -> str:
        """The key text behind a backend's key."""
        return stored[len(self.prefix) :].decode("utf-8", "surrogatepass")

    def backend_failed(self, verb: str, error: Exception, counters: Counters) -> None:
        """Count a backend's failure, log its kind once, and raise it if that was asked for.

        Raises:
            CacheBackendError: with `on_error="raise"`.
        """
        kind = type(error).__name__
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

    def warn_once(self, cause: tuple[str, ...], message: str, *arguments: object) -> None:
        """One log line per cause and namespace."""
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning(message, *arguments)

    def _evicted(self, key: bytes) -> None:
        if key.startswith(self.prefix):
            owner = owner_of(self.text(key))
            counters = self.counters.get(owner) or self.counters[""]
            counters.add("evictions")


def owner_of(text: str) -> str:
    """The name of the function whose key this is; empty for keys of the direct API."""
    return text[1:].rpartition(":")[0] if text.startswith("@") else ""
