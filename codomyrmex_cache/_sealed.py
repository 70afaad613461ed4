"""Payloads for backends that keep bytes; apart from `_payload`, so that memory-only programs do not load it."""

from __future__ import annotations

from dataclasses import replace

from codomyrmex_cache import codecs
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._payload import refuse_single_use
from codomyrmex_cache.envelope import Seal
from codomyrmex_cache.errors import EnvelopeError

__all__ = ["SealedPayloads"]


class SealedPayloads:
    """Values kept as sealed bytes: each read decodes afresh.

    Args:
        seal: signs and verifies; with a secret, values that are not plain data may be pickled.
    """

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def pack(self, key: bytes, entry: Entry, *, copy: bool) -> Entry:
        refuse_single_use(entry.value)
        codec, payload = codecs.dumps(entry.value, allow_pickle=self._seal.trusted)
        return replace(entry, value=self._seal.seal(key, entry, codec, payload))

    def unpack(self, key: bytes, entry: Entry, digest: bytes, *, copy: bool) -> Entry:
        envelope = self._seal.open(key, entry.value, digest)
        value = codecs.loads(envelope.codec, envelope.payload, allow_pickle=self._seal.trusted)
        return replace(envelope.entry, value=value)

    def retimed(self, key: bytes, entry: Entry, digest: bytes, times: Entry) -> Entry:
        envelope = self._seal.open(key, entry.value, digest)
        timed = replace(
            envelope.entry, created=times.created, fresh_until=times.fresh_until, expires_at=times.expires_at
        )  # fmt: skip
        return replace(timed, value=self._seal.seal(key, timed, envelope.codec, envelope.payload))

    def describe(self, key: bytes, entry: Entry, digest: bytes) -> tuple[Entry, bool]:
        try:
            return self._seal.open(key, entry.value, digest).entry, True
        except EnvelopeError as error:
            if error.kind != "misplaced":
                raise
        return self._seal.open(key, entry.value, b"").entry, False
