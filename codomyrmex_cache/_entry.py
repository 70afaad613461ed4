"""What a backend stores, and the sentinel for what it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Final, Literal, overload

from codomyrmex_cache._record import record

__all__ = ["FUTURE_TOLERANCE", "MISSING", "Clock", "Entry", "Missing", "Parts"]

Clock = Callable[[], float]
"""Seconds since some fixed moment; only differences and comparisons are meaningful."""


FUTURE_TOLERANCE = 60.0
"""Seconds by which another host's clock may be ahead; an entry from further ahead means that ours was set back."""


class Missing(Enum):
    """The type of `MISSING`; an enum, so that it pickles to itself and type checkers narrow it."""

    MISSING = "MISSING"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "MISSING"

    __str__ = __repr__


MISSING: Final = Missing.MISSING
"""No value: what `peek` answers on a miss, since `None` is a value like any other."""


class Parts(Sequence[tuple[str, bytes]]):
    """Names with short digests, a third the size of a tuple of pairs: names, and what all calls have in common, are shared.

    Args:
        common: pairs that come first.
        names: of those that follow.
        digests: theirs, one after the other, all of one length.

    >>> Parts((("code", b"12"),), ("x", "y"), b"3456")
    (('code', b'12'), ('x', b'34'), ('y', b'56'))
    """

    __slots__ = ("_common", "_digests", "_names")

    def __init__(self, common: tuple[tuple[str, bytes], ...], names: tuple[str, ...], digests: bytes) -> None:
        self._common, self._names, self._digests = common, names, digests

    def and_another(self, name: str, digest: bytes) -> Parts:
        """These and one more."""
        return Parts(self._common, (*self._names, name), self._digests + digest)

    def __len__(self) -> int:
        return len(self._common) + len(self._names)

    @overload
    def __getitem__(self, index: int) -> tuple[str, bytes]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, bytes]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, bytes] | Sequence[tuple[str, bytes]]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        yield from self._common
        size = len(self._digests) // max(1, len(self._names))
        for place, name in enumerate(self._names):
            yield name, self._digests[place * size : (place + 1) * size]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Parts | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


@record(frozen=True, slots=True)
class Entry:
    """One stored value with its times, in seconds of the namespace's clock.

    Args:
        value: the value itself for users and object backends, the sealed bytes for byte backends.
        created: when it was stored.
        fresh_until: from then on it is served behind a refresh, or not at all; `None` means for ever.
        expires_at: from then on a backend may drop it; `None` means never.
        cost: seconds the load took.
        digest: 256-bit digest of the call's encoding, compared on read; empty for direct keys.
        parts: names and short digests of what went into the key, to explain a miss; never the values.
        shared: the value may be handed out by reference (immutable, or `copy=False`).
        awaited: the function returned an awaitable and this is what it resolved to.
        raised: the function raised, and the value is what the exception can be made from again.
        streamed: the function gave a stream, and the value is what it consisted of.
        generations: each tag's generation name and what it was when the load began; if it is another now, the entry is dead.
        shown: of what was stored in a mode that records, the call in a readable form, as JSON; see `_shown`.
    """

    value: Any
    created: float = 0.0
    fresh_until: float | None = None
    expires_at: float | None = None
    cost: float = 0.0
    digest: bytes = b""
    parts: Sequence[tuple[str, bytes]] = ()
    shared: bool = False
    awaited: bool = False
    raised: bool = False
    streamed: bool = False
    generations: tuple[tuple[bytes, bytes], ...] = ()
    shown: bytes = b""

    @property
    def ttl(self) -> float | None:
        """Seconds of fresh life it was stored with; `None` means for ever."""
        return None if self.fresh_until is None else self.fresh_until - self.created

    @property
    def result(self) -> Any:
        """What a function is asked that is asked about results: of a stream its items; `MISSING` if it was an exception."""
        if self.raised:
            return MISSING
        return self.value[1] if self.streamed else self.value

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags it was stored with."""
        return tuple(_tag(name) for name, _ in self.generations)


def _tag(name: bytes) -> str:
    """What follows the kind and the length-prefixed namespace."""
    length, _, rest = name[1:].partition(b":")
    return rest[int(length) + 1 :].decode("utf-8", "surrogatepass")
