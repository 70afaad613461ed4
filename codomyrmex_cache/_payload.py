"""How values become entries and entries become values, for the two kinds of backend.

Both kinds answer the same to the same program: what is handed out never aliases what is stored, and a value that
cannot be kept apart from its first holder is not stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._isolation import is_immutable, is_single_use, isolated
from codomyrmex_cache._log import Log
from codomyrmex_cache._record import replace
from codomyrmex_cache.errors import CacheCodecError, EnvelopeError
from codomyrmex_cache.keys import owner_of

__all__ = ["ObjectPayloads", "Payloads", "refuse_single_use"]

_SLOW_SECONDS = 0.05
"""A copy that takes longer is worth a word: every hit takes that long too."""

logger = Log(__name__)


class Payloads(Protocol):
    """The two directions; `copy=False` is the caller's word that aliasing is wanted."""

    def pack(self, key: bytes, entry: Entry, *, copy: bool, live: bool = False) -> Entry:
        """The entry as the backend stores it. Raises CacheCodecError if the value cannot be stored.

        `live` says that whoever has the value waits until it is stored, so that large buffers need not be copied before.
        """

    def unpack(self, key: bytes, entry: Entry, digest: bytes, *, copy: bool) -> Entry:
        """The entry with a value to hand out. Raises EnvelopeError or CacheCodecError if it cannot be trusted."""

    def retimed(self, key: bytes, entry: Entry, digest: bytes, times: Entry) -> Entry:
        """The stored form with the times of another entry. Raises EnvelopeError."""

    def describe(self, key: bytes, entry: Entry, digest: bytes) -> tuple[Entry, bool]:
        """The entry without decoding its value, and whether it answers this digest. Raises EnvelopeError."""

    def kept_parts(self, parts: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        """What went into a key, as the entries of this store show it."""


class ObjectPayloads:
    """Values kept as objects: a snapshot is taken when storing and another for each reader.

    Args:
        check_size: raises ValueTooLargeError for a value that the backend has no room for.
    """

    def __init__(self, check_size: Callable[[Any], None] | None = None) -> None:
        self._check_size = check_size
        self._warned: set[tuple[str, str]] = set()

    def pack(self, key: bytes, entry: Entry, *, copy: bool, live: bool = False) -> Entry:
        refuse_single_use(entry.value)
        if self._check_size is not None:
            self._check_size(entry.value)
        if is_immutable(entry.value):
            return replace(entry, shared=True)
        if not copy:
            return entry
        started = time.thread_time()  # not the time that other threads have the interpreter
        snapshot = isolated(entry.value)
        seconds = time.thread_time() - started
        if seconds > _SLOW_SECONDS:
            self._warn_once(key, type(snapshot).__qualname__, seconds)
        return replace(entry, value=snapshot)

    def _warn_once(self, key: bytes, kind: str, seconds: float) -> None:
        """One log line per function, or namespace for the direct API, and type."""
        namespace, owner = _whose(key)
        if (owner or namespace, kind) in self._warned:
            return
        self._warned.add((owner or namespace, kind))
        remedy = "copy=False hands out the stored object itself" if owner else "a tuple of what cannot change is never copied"
        logger.warning(
            "namespace %r%s: copying one %s takes %.2f s when it is stored, and again at every hit; %s",
            namespace, f", {owner}" if owner else "", kind, seconds, remedy,
        )  # fmt: skip

    def unpack(self, key: bytes, entry: Entry, digest: bytes, *, copy: bool) -> Entry:
        if digest and digest != entry.digest:
            raise EnvelopeError("misplaced", "another call's entry under this key")
        if entry.shared or not copy:
            return entry
        return replace(entry, value=isolated(entry.value))

    def retimed(self, key: bytes, entry: Entry, digest: bytes, times: Entry) -> Entry:
        return replace(entry, created=times.created, fresh_until=times.fresh_until, expires_at=times.expires_at)

    def describe(self, key: bytes, entry: Entry, digest: bytes) -> tuple[Entry, bool]:
        return entry, digest == entry.digest

    def kept_parts(self, parts: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        return parts


def _whose(key: bytes) -> tuple[str, str]:
    """The namespace and the function of a backend's key; see `namespace_prefix`."""
    length, _, rest = key.partition(b":")
    name, text = rest[: int(length)], rest[int(length) + 1 :]
    return name.decode("utf-8", "replace"), owner_of(text.decode("utf-8", "replace"))


def refuse_single_use(value: Any) -> None:
    """Raise CacheCodecError for a value that its first holder uses up."""
    if is_single_use(value):
        raise CacheCodecError(
            f"{type(value).__qualname__} can be used only once, so it cannot be answered again; return a list instead"
        )
