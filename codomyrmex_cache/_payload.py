"""How values become entries and entries become values, for the two kinds of backend.

Both kinds answer the same to the same program: what is handed out never aliases what is stored, and a value that
cannot be kept apart from its first holder is not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._isolation import is_immutable, is_single_use, isolated
from codomyrmex_cache.errors import CacheCodecError, EnvelopeError

__all__ = ["ObjectPayloads", "Payloads", "refuse_single_use"]


class Payloads(Protocol):
    """The two directions; `copy=False` is the caller's word that aliasing is wanted."""

    def pack(self, key: bytes, entry: Entry, *, copy: bool) -> Entry:
        """The entry as the backend stores it. Raises CacheCodecError if the value cannot be stored."""

    def unpack(self, key: bytes, entry: Entry, digest: bytes, *, copy: bool) -> Entry:
        """The entry with a value to hand out. Raises EnvelopeError or CacheCodecError if it cannot be trusted."""

    def retimed(self, key: bytes, entry: Entry, digest: bytes, times: Entry) -> Entry:
        """The stored form with the times of another entry. Raises EnvelopeError."""

    def describe(self, key: bytes, entry: Entry, digest: bytes) -> tuple[Entry, bool]:
        """The entry without decoding its value, and whether it answers this digest. Raises EnvelopeError."""

    def kept_parts(self, parts: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        """What went into a key, as the entries of this store show it."""


class ObjectPayloads:
    """Values kept as objects: a snapshot is taken when storing and another for each reader."""

    def pack(self, key: bytes, entry: Entry, *, copy: bool) -> Entry:
        refuse_single_use(entry.value)
        if is_immutable(entry.value):
            return replace(entry, shared=True)
        return replace(entry, value=isolated(entry.value)) if copy else entry

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


def refuse_single_use(value: Any) -> None:
    """Raise CacheCodecError for a value that its first holder uses up."""
    if is_single_use(value):
        raise CacheCodecError(
            f"{type(value).__qualname__} can be used only once, so it cannot be answered again; return a list instead"
        )
