"""Several stored answers to one call, told apart by a number: their keys, and whose turn it is.

The key of a draw is made of the key of the call and the draw, so that `sample=2` and the third of `samples=5` are the same
entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from threading import Lock

from xxhash import xxh3_64_digest

from codomyrmex_cache._encoders import encode
from codomyrmex_cache._entry import Parts
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError
from codomyrmex_cache.keys import Key, Keyer, key_of

__all__ = ["Draw", "LastIsDraw", "OneDraw", "Sample", "Turns", "checked_samples", "drawn"]

Sample = int | ContextVar[int] | Callable[[], object]
"""A draw, or what tells at each call which one it wants."""

MOST_TURNS = 16_384
"""Calls whose turn is remembered, some 3 MB; of the one left alone for longest the first draw is next."""


def checked_samples(samples: int | None, sample: Sample | None) -> None:
    """Raise `CacheConfigurationError` if these mean nothing."""
    if samples is not None and (type(samples) is not int or samples < 1):
        raise CacheConfigurationError(f"samples={samples!r}: give a whole number >= 1")
    if sample is not None and (isinstance(sample, bool) or not (isinstance(sample, (int, ContextVar)) or callable(sample))):
        raise CacheConfigurationError(f"sample={sample!r}: give an int, a ContextVar or a function without arguments")
    if samples is not None and sample is not None:
        raise CacheConfigurationError("sample= says itself which draw a call wants: leave out samples=")


def drawn(key: Key, prefix: str, draw: bytes) -> Key:
    """The key of this draw, encoded, of the call with that key."""
    return key_of(prefix, key.digest + draw)  # exact: all digests are of one length


class _OfDraws(Keyer):
    """A keyer for whose keys a draw counts too."""

    def __init__(self, inner: Keyer) -> None:
        vars(self).update(vars(inner))
        self._inner = inner

    @property
    def depends_on_arguments_only(self) -> bool:
        return False

    def key(self, bound: Sequence[object]) -> Key:
        arguments, draw = self._taken_apart(bound)
        return drawn(self._inner.key(arguments), self.prefix, draw)

    def parts(self, bound: Sequence[object]) -> Parts:
        arguments, draw = self._taken_apart(bound)
        return self._inner.parts(arguments).and_another(self._label("sample"), xxh3_64_digest(draw))

    def _taken_apart(self, bound: Sequence[object]) -> tuple[Sequence[object], bytes]:
        raise NotImplementedError


class OneDraw(_OfDraws):
    """The keyer of `sample=`: each key asks for the draw."""

    def __init__(self, inner: Keyer, sample: Sample) -> None:
        super().__init__(inner)
        self._ask: Callable[[], object]
        if isinstance(sample, int):
            self._ask = lambda: sample
        else:
            self._ask = sample.get if isinstance(sample, ContextVar) else sample

    def _taken_apart(self, bound: Sequence[object]) -> tuple[Sequence[object], bytes]:
        try:
            return bound, encode(self._ask())
        except Exception as error:
            reason = error.reason if isinstance(error, UnkeyableError) else f"asking for it raised {type(error).__name__}"
            raise UnkeyableError(reason, self._label("sample")) from error


class Draw:
    """One of a call's draws.

    Args:
        number: from 0.
        call: the key of the call, for who asks for that of the draw first; later the arguments may have changed.
    """

    __slots__ = ("call", "number")

    def __init__(self, number: int, call: Key | None = None) -> None:
        self.number, self.call = number, call


class LastIsDraw(_OfDraws):
    """The keyer of `samples=`: a `Draw` follows the bound arguments, so that a call keeps it from its start to its end."""

    def first_key(self, bound: Sequence[object]) -> Key:
        """The key of the call alone, without a draw in the arguments."""
        return self._inner.key(bound)

    def key(self, bound: Sequence[object]) -> Key:
        draw = bound[-1]
        assert type(draw) is Draw
        call, draw.call = draw.call, None
        return super().key(bound) if call is None else drawn(call, self.prefix, encode(draw.number))

    def _taken_apart(self, bound: Sequence[object]) -> tuple[Sequence[object], bytes]:
        draw = bound[-1]
        assert type(draw) is Draw
        return bound[:-1], encode(draw.number)


class Turns:
    """Which of so many draws is next, by the digest of the call."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._next: dict[bytes, int] = {}  # the one taken last is last; the first draw needs no entry
        self._lock = Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A forked child goes on by itself."""
        self._lock = Lock()

    def upcoming(self, digest: bytes) -> int:
        """The draw that `take` would give."""
        return self._next.get(digest, 0)

    def take(self, digest: bytes) -> int:
        """The next draw; no two callers get the same turn."""
        with self._lock:
            draw = self._next.pop(digest, 0)
            if draw + 1 < self._samples:
                self._next[digest] = draw + 1
                if len(self._next) > MOST_TURNS:
                    del self._next[next(iter(self._next))]
            return draw

    def restart(self, digest: bytes) -> None:
        """The first draw is next."""
        with self._lock:
            self._next.pop(digest, None)

    def clear(self) -> None:
        """The first draw of every call is next."""
        with self._lock:
            self._next.clear()
