"""The backend contract: what a store must offer, and what it may offer to be faster.

An object with the methods of `Backend` is enough; nothing is inherited.  Keys are bytes that already carry the
namespace, length-prefixed, so one store may serve several namespaces.  Everything else here is optional and probed
once, when a namespace is wired to its backend.

**A backend never decides freshness.**  It keeps `Entry.value` and, if it likes, drops an entry once `expires_at` has
passed; `entry.expires_at - entry.created` is the life left at the moment of the `set`, so no clock is needed.
A backend for bytes must give back `value`; the other fields are inside these bytes and need not be kept.  It gives them as
`bytes`, or as a `bytearray` or writable `memoryview` that nobody else holds.  If it says `chunked = True`, large values come
to it as `codomyrmex_cache._chunks.Chunks`; `lets_go = True` says that it holds nothing of these once `set` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from codomyrmex_cache._entry import Entry

__all__ = [
    "AsyncBackend",
    "Backend",
    "Begun",
    "ClearsPrefix",
    "Coordinates",
    "CountsPrefix",
    "GivesValues",
    "KeepsTotals",
    "LooksFirst",
    "Quick",
    "ReportsEvictions",
    "StoresMany",
    "generation_name",
    "namespace_prefix",
]


def namespace_prefix(namespace: str) -> bytes:
    """What every key of the namespace begins with; the length makes it unambiguous.

    >>> namespace_prefix("a"), namespace_prefix("a:b")
    (b'1:a:', b'3:a:b:')
    """
    name = namespace.encode("utf-8", "surrogatepass")
    return b"%d:%b:" % (len(name), name)


def generation_name(kind: Literal["k", "n", "f", "t"], rest: bytes) -> bytes:
    """The name of the generation of a key, a namespace, a function or a tag; `rest` begins with the namespace's prefix.

    >>> generation_name("t", namespace_prefix("a") + b"user:7")
    b't1:a:user:7'
    """
    return kind.encode() + rest


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
class GivesValues(Protocol):
    """`get_many` for bytes without an `Entry` around each value.  An async backend adds `aget_values`."""

    def get_values(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]: ...


@runtime_checkable
class ClearsPrefix(Protocol):
    """Removes all keys of a prefix at once.  An async backend adds `aclear`."""

    def clear(self, prefix: bytes) -> int: ...


@runtime_checkable
class CountsPrefix(Protocol):
    """Counts the keys of a prefix without listing them."""

    def count(self, prefix: bytes) -> int: ...


@runtime_checkable
class KeepsTotals(Protocol):
    """Adds up statistics over all who use the store, by namespace.  An async backend adds `aadd_totals` and `atotals`.

    Names are any `str`.  The totals are no entries: `clear` leaves them, and they do not expire.
    """

    def add_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> None:
        """Add each amount to the total of its name in the namespace with this prefix, all in one round trip.

        Of a name that begins with "max:" the largest amount is kept instead.  A `CacheError` says that nothing was added;
        after another error nobody knows, and the amounts do not come again.
        """

    def totals(self, prefix: bytes) -> Mapping[str, float]:
        """All totals of the namespace with this prefix."""


class Begun(NamedTuple):
    """What a load is told when it begins.

    Args:
        entry: what is stored under the key now.
        generations: of the key itself and then of each name that was given, in that order; empty if the lease was not got.
        lease: the fencing token of the lease, which grows from lease to lease; 0 if none was asked for or got.
        holder: the token of the lease that somebody else holds; 0 if nobody does.
        failed: the token of the last lease on this key that ended without an entry.
    """

    entry: Entry | None
    generations: tuple[bytes, ...] = ()
    lease: int = 0
    holder: int = 0
    failed: int = 0


@runtime_checkable
class Coordinates(Protocol):
    """Lets invalidations win over loads under way, and elects one loader of a key among all who use the store.

    A *generation* is an opaque token under a name.  It comes into being, unlike any before it, when a load asks for it, and
    an invalidation drops it.  An entry is written only if all generations taken before its load are still there, so what a
    store forgets (an eviction, a crash) costs a miss and never brings an old value back.  `set`, `delete` and their `many`
    forms drop the generation of their key (`generation_name("k", key)`) in the same step.

    All names that are said with a key are of the key's namespace.

    A *lease* is held by one loader until it ends it or `seconds` pass without `renew`.  An async backend adds `abegin`,
    `acommit`, `aend`, `agenerations`, `arevoke`, `areplace` and `adiscard`.  The steps of each verb are one: nothing comes
    between them.
    """

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Begun:
        """Take the generations of the key and of `names`, and the lease of the key for `seconds` (0: no lease)."""

    def renew(self, key: bytes, lease: int, seconds: float) -> bool:
        """Hold the lease for `seconds` from now; whether it is still this one."""

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> bool:
        """Store if all generations are as in `begun`, and end its lease; whether it was stored."""

    def end(self, key: bytes, begun: Begun, failed: bool) -> None:
        """End the load without an entry: its lease, if it has one and still holds it, and then the generation of its key,
        if that is still its own.

        With a `begun` whose generations were taken out the lease alone: the load goes on without.

        `failed` tells those who wait for the lease that no entry will come.
        """

    def generations(self, key: bytes, names: Sequence[bytes]) -> Sequence[bytes | None]:
        """The generations of `names` as they are beside this key; `None` for one that is not there."""

    def revoke(self, names: Sequence[bytes]) -> None:
        """Drop the generations: loads under way are not stored, entries that carry them are dead."""

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        """Store `new` if `old`, as it was got (`None`: nothing), is what is stored; whether it was.

        With `fence` it wins over loads under way, as `set` does; without, they may still replace it.
        """

    def discard(self, key: bytes, old: Entry) -> bool:
        """Remove the entry if `old`, as it was got, is what is stored; whether it was.  Loads under way are left alone."""


@runtime_checkable
class LooksFirst(Protocol):
    """For stores where every verb is a round trip: the look of a call and the beginning of its load in one.

    An async backend adds `alook`.
    """

    def look(self, key: bytes, names: Sequence[bytes], seconds: float, tagged: bool) -> bytes | Begun:
        """The value of the entry, if there is one; else what `begin` does.

        If it is `tagged`, the entry with the generations of the key and of `names` as they are, b"" for one that is not there.
        """


@runtime_checkable
class Quick(Protocol):
    """A short way for small values of the direct API, for bytes; who takes it goes the long way if it leads nowhere."""

    def quick_get(self, key: bytes) -> bytes | None:
        """The value; `None` says nothing."""

    def quick_set(self, key: bytes, value: bytes, expires_at: float | None, now: float) -> bool:
        """Store, replacing what was there, as `set` does; `False` if that was not done."""


@runtime_checkable
class ReportsEvictions(Protocol):
    """Tells who listens about each key it drops for want of room."""

    def subscribe(self, evicted: Callable[[bytes], None]) -> None: ...
