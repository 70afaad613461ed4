"""The backend contract: what a store must offer, and what it may offer to be faster.

An object with the methods of `Backend` is enough; nothing is inherited.  Keys are bytes that already carry the
namespace, length-prefixed, so one store may serve several namespaces.  Everything else here is optional and probed
once, when a namespace is wired to its backend.

**A backend never decides freshness.**  It keeps `Entry.value` and, if it likes, drops an entry once `expires_at` has
passed; `entry.expires_at - entry.created` is the life left at the moment of the `set`, so no clock is needed.
A backend for bytes must give back `value`; the other fields are inside these bytes and need not be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from codomyrmex_cache._entry import Entry

__all__ = [
    "AsyncBackend",
    "Backend",
    "ClearsPrefix",
    "CountsPrefix",
    "ReportsEvictions",
    "StoresMany",
    "namespace_prefix",
]


def namespace_prefix(namespace: str) -> bytes:
    """What every key of the namespace begins with; the length makes it unambiguous.

    >>> namespace_prefix("a"), namespace_prefix("a:b")
    (b'1:a:', b'3:a:b:')
    """
    name = namespace.encode("utf-8", "surrogatepass")
    return b"%d:%b:" % (len(name), name)


class Backend(Protocol):
    """The verbs every backend has.  All may be called from several threads at once."""

    @property
    def payload(self) -> Literal["object", "bytes"]:
        """Whether `Entry.value` is kept as an object or must be bytes."""

    def get(self, key: bytes) -> Entry | None:
        """The entry, or `None`."""

    def set(self, key: bytes, entry: Entry) -> None:
        """Store, replacing what was there."""

    def has(self, key: bytes) -> bool:
        """Whether something is stored, without reading it."""

    def delete(self, key: bytes) -> bool:
        """Remove; whether it was there."""

    def scan(self, prefix: bytes) -> Iterable[tuple[bytes, float | None]]:
        """All keys that begin with `prefix`, each with its `expires_at` (`None`: never, or not known)."""

    def close(self) -> None:
        """Release files and connections; a closed backend may be used again."""


@runtime_checkable
class AsyncBackend(Protocol):
    """The same verbs for an event loop.  Without them a bytes backend's verbs run in a worker thread."""

    async def aget(self, key: bytes) -> Entry | None: ...
    async def aset(self, key: bytes, entry: Entry) -> None: ...
    async def ahas(self, key: bytes) -> bool: ...
    async def adelete(self, key: bytes) -> bool: ...
    async def ascan(self, prefix: bytes) -> Iterable[tuple[bytes, float | None]]: ...
    async def aclose(self) -> None: ...


@runtime_checkable
class StoresMany(Protocol):
    """Several keys in one trip.  An async backend adds `aget_many`, `aset_many` and `adelete_many`."""

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Entry]: ...
    def set_many(self, entries: Mapping[bytes, Entry]) -> None: ...
    def delete_many(self, keys: Sequence[bytes]) -> int: ...


@runtime_checkable
class ClearsPrefix(Protocol):
    """Removes all keys of a prefix at once.  An async backend adds `aclear`."""

    def clear(self, prefix: bytes) -> int: ...


@runtime_checkable
class CountsPrefix(Protocol):
    """Counts the keys of a prefix without listing them."""

    def count(self, prefix: bytes) -> int: ...


@runtime_checkable
class ReportsEvictions(Protocol):
    """Tells who listens about each key it drops for want of room."""

    def subscribe(self, evicted: Callable[[bytes], None]) -> None: ...
