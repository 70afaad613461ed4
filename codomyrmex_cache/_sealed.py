"""Payloads for backends that keep bytes; apart from `_payload`, so that memory-only programs do not load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from codomyrmex_cache._chunks import Buffer, Chunks
from codomyrmex_cache._entry import FUTURE_TOLERANCE, Entry
from codomyrmex_cache._origin import copied
from codomyrmex_cache._payload import refuse_single_use
from codomyrmex_cache._record import replace
from codomyrmex_cache.backends.base import namespace_prefix
from codomyrmex_cache.codecs import Coder, Types
from codomyrmex_cache.envelope import Seal
from codomyrmex_cache.errors import EnvelopeError, ValueTooLargeError
from codomyrmex_cache.keys import owner_of

__all__ = ["SealedPayloads"]

Results = Mapping[str, tuple[Callable[..., Any], Sequence[type]]]


class SealedPayloads:
    """Values kept as sealed bytes: each read decodes afresh.

    Args:
        namespace: whose entries these are.
        seal: signs and verifies.
        make_coder: gives the codec for values that may be of these classes.
        types: the classes for all keys of the namespace.
        results: the functions of the namespace, whose results may be of further classes.
        chunked: whether the backend takes large values in pieces.
        lets_go: whether it holds nothing of them once they are stored.
        most: bytes of one encoded value; larger ones are not stored.
    """

    def __init__(
        self,
        namespace: str,
        seal: Seal,
        make_coder: Callable[[Types], Coder],
        types: Types,
        results: Results,
        *,
        chunked: bool,
        lets_go: bool = False,
        most: int,
    ) -> None:
        self._prefix = len(namespace_prefix(namespace))
        self.seal = seal
        self._make_coder = make_coder
        self._types = types
        self.coder = make_coder(types)
        self._results = results
        self._coders: dict[str, tuple[object, tuple[type, ...], Coder]] = {}
        self._chunked = chunked
        self._lets_go = lets_go
        self._most = most

    def coder_of(self, key: bytes) -> Coder:
        """The codec for what is stored under this key."""
        owner = owner_of(key[self._prefix :].decode("utf-8", "surrogatepass"))
        expected = self._results.get(owner)
        if expected is None:
            return self.coder
        known = self._coders.get(owner)
        named = tuple(expected[1])  # calls may have named others since
        if known is None or known[0] is not expected or known[1] != named:
            types = self._types | Types(*named) | Types.of_return(expected[0])
            known = self._coders[owner] = expected, named, self._make_coder(types)
        return known[2]

    def pack(self, key: bytes, entry: Entry, *, copy: bool, live: bool = False) -> Entry:
        refuse_single_use(entry.value)
        codec, frames = self.coder_of(key).dumps(entry.value)
        size = sum(map(len, frames))
        if size > self._most:
            raise ValueTooLargeError(f"{size} bytes are more than max_value_bytes={self._most}")
        if not (live and self._lets_go):
            # others may change an array while it is being written and after that, when callers who waited decode it
            frames = [copied(frame) for frame in frames]
        return self.sealed(key, entry, codec, frames)

    def sealed(self, key: bytes, entry: Entry, codec: int, frames: Sequence[Buffer]) -> Entry:
        """The stored form of an entry whose value has been encoded."""
        return self._packed(key, replace(entry, parts=self.seal.kept_parts(entry.parts)), codec, frames)

    def _packed(self, key: bytes, entry: Entry, codec: int, frames: Sequence[Buffer]) -> Entry:
        sealed = self.seal.seal(key, entry, codec, frames)
        return replace(entry, value=sealed.join() if isinstance(sealed, Chunks) and not self._chunked else sealed)

    def unpack(self, key: bytes, entry: Entry, digest: bytes, *, copy: bool) -> Entry:
        envelope = self.seal.open(key, entry.value, digest)
        return replace(envelope.entry, value=self.coder_of(key).loads(envelope.codec, envelope.frames))

    def glanced(self, key: bytes, sealed: bytes, now: float) -> tuple[Any, float] | None:
        """The value of the direct API that is fresh by now, and its cost; `None` says nothing."""
        if key[self._prefix : self._prefix + 1] == b"@":  # a function's, which may have classes of its own
            return None
        try:
            found = self.seal.glance(key, sealed)
            if found is None or not found[0] - FUTURE_TOLERANCE <= now < found[1]:
                return None
            _, _, cost, codec, main = found
            return self.coder.loads(codec, (main,)), cost
        except Exception:  # met again on the long way, and counted there
            return None

    def retimed(self, key: bytes, entry: Entry, digest: bytes, times: Entry) -> Entry:
        envelope = self.seal.open(key, entry.value, digest, anew=True)  # what is signed again
        timed = replace(
            envelope.entry, created=times.created, fresh_until=times.fresh_until, expires_at=times.expires_at
        )  # fmt: skip
        return self._packed(key, timed, envelope.codec, envelope.frames)

    def describe(self, key: bytes, entry: Entry, digest: bytes) -> tuple[Entry, bool]:
        try:
            return self.seal.open(key, entry.value, digest).entry, True
        except EnvelopeError as error:
            if error.kind != "misplaced":
                raise
        return self.seal.open(key, entry.value, b"").entry, False

    def kept_parts(self, parts: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        return self.seal.kept_parts(parts)
