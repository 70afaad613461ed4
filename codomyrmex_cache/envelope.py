"""The one choke point for stored bytes: what goes out is sealed here, what comes in is verified here.

Layout, big-endian: magic 4, version 1, codec 1, flags 1, key id 1, created f64, fresh-until f64, expires f64, cost f64,
payload length u64, parts length u32, generations length u32, call digest 32, MAC 32, parts, generations, payload.  The parts
are the names and short digests of what went into the key, the generations those of its tags.  The MAC is HMAC-SHA256 over
everything else and over the storage key, so a cut, flipped, swapped or planted entry fails one comparison, *before* any
parser sees a byte.

The reader decides what it accepts: its own list of secrets, and pickle only with one.  Without a secret the same field is
a checksum (HMAC with a public key) against accidents, and only the safe codec is read.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import blake2b, sha256
from math import inf
from struct import Struct
from typing import NamedTuple

from codomyrmex_cache._entry import Entry
from codomyrmex_cache.errors import EnvelopeError

__all__ = ["Envelope", "Seal"]

VERSION = 2
_MAGIC = b"cmxc"
_HEAD = Struct(">4sBBBB4dQII32s")
_MAC_SIZE = 32
_PAIR = Struct(">II")
_AWAITED, _RAISED, _STREAMED = 1, 2, 4
_PART_SIZE = 8
_LONGEST_NAME = 255
_PUBLIC = b"codomyrmex_cache unsigned entry"
_NO_DIGEST = bytes(32)


class Envelope(NamedTuple):
    """A verified entry: its times, its codec and its payload, not yet decoded."""

    entry: Entry
    codec: int
    payload: bytes


class Seal:
    """Seals and opens with one list of secrets.

    Args:
        secrets: the first signs, all verify; none means checksums instead of signatures.
    """

    def __init__(self, secrets: Sequence[bytes] = ()) -> None:
        self.trusted = bool(secrets)
        roots = [bytes(secret) for secret in secrets] or [_PUBLIC]
        self._keys = {self._key_id(root): _subkey(root, b"mac") for root in roots}
        self._key_id_signing = next(iter(self._keys))
        self._digest_key = _subkey(roots[0], b"digest")
        self._digest_keys = [_subkey(root, b"digest") for root in roots]

    def _key_id(self, root: bytes) -> int:
        """0 for checksums, else 1 to 255, derived from the secret so that writers and readers agree without a list order."""
        return _subkey(root, b"id")[0] % 255 + 1 if self.trusted else 0

    def seal(self, key: bytes, entry: Entry, codec: int, payload: bytes) -> bytes:
        """The bytes to store under `key`."""
        parts, generations = _packed_parts(entry), _packed_generations(entry)
        body = parts + generations + payload
        head = _HEAD.pack(
            _MAGIC,
            VERSION,
            codec,
            _AWAITED * entry.awaited | _RAISED * entry.raised | _STREAMED * entry.streamed,
            self._key_id_signing,
            entry.created,
            inf if entry.fresh_until is None else entry.fresh_until,
            inf if entry.expires_at is None else entry.expires_at,
            entry.cost,
            len(payload),
            len(parts),
            len(generations),
            self._keyed(entry.digest, self._digest_key),
        )
        return head + _mac(self._keys[self._key_id_signing], key, head, body) + body

    def open(self, key: bytes, sealed: bytes, digest: bytes) -> Envelope:
        """Verify the bytes found under `key`.

        Args:
            key: the storage key they were found under.
            sealed: what was found.
            digest: the call's digest; empty to accept any call's (the direct API, which asks by key text).

        Raises:
            EnvelopeError: they are not an entry of this key, version and secret.
        """
        if type(sealed) is not bytes:
            raise EnvelopeError("foreign", "not bytes")
        head, mac, body = sealed[: _HEAD.size], sealed[_HEAD.size :][:_MAC_SIZE], sealed[_HEAD.size + _MAC_SIZE :]
        if len(mac) < _MAC_SIZE or not head.startswith(_MAGIC):
            raise EnvelopeError("foreign", "not an entry of this package")
        if head[len(_MAGIC)] != VERSION:
            raise EnvelopeError("version", f"written in format {head[len(_MAGIC)]}, this is {VERSION}")
        _, _, codec, flags, key_id, created, fresh, expires, cost, length, parts_length, more, stored = _HEAD.unpack(head)
        before = parts_length + more
        if length + before != len(body):
            raise EnvelopeError("truncated", f"{len(body)} of {length + before} bytes")
        signing = self._keys.get(key_id)
        if signing is None or not hmac.compare_digest(mac, _mac(signing, key, head, body)):
            raise EnvelopeError("tampered", "the signature does not verify with this secret")
        if digest and not any(hmac.compare_digest(stored, self._keyed(digest, each)) for each in self._digest_keys):
            raise EnvelopeError("misplaced", "another call's entry under this key")
        entry = Entry(
            None, created, _finite(fresh), _finite(expires), cost,
            digest=digest, parts=_unpacked_parts(body[:parts_length]),
            generations=_unpacked_generations(body[parts_length:before]),
            awaited=bool(flags & _AWAITED), raised=bool(flags & _RAISED), streamed=bool(flags & _STREAMED),
        )  # fmt: skip
        return Envelope(entry, codec, body[before:])

    @staticmethod
    def _keyed(digest: bytes, key: bytes) -> bytes:
        return blake2b(digest, digest_size=32, key=key).digest() if digest else _NO_DIGEST


def _subkey(root: bytes, purpose: bytes) -> bytes:
    return hmac.digest(root, b"codomyrmex_cache/1/" + purpose, sha256)


def _packed_parts(entry: Entry) -> bytes:
    named = ((name.encode("utf-8", "surrogatepass")[:_LONGEST_NAME], short) for name, short in entry.parts)
    return b"".join(bytes([len(name)]) + name + short for name, short in named)


def _unpacked_parts(packed: bytes) -> tuple[tuple[str, bytes], ...]:
    found, place = [], 0
    while place < len(packed):
        end = place + 1 + packed[place]
        found.append((packed[place + 1 : end].decode("utf-8", "replace"), packed[end : end + _PART_SIZE]))
        place = end + _PART_SIZE
    return tuple(found)


def _packed_generations(entry: Entry) -> bytes:
    return b"".join(_PAIR.pack(len(name), len(value)) + name + value for name, value in entry.generations)


def _unpacked_generations(packed: bytes) -> tuple[tuple[bytes, bytes], ...]:
    found, place = [], 0
    while place < len(packed):
        name_length, length = _PAIR.unpack_from(packed, place)
        middle = place + _PAIR.size + name_length
        found.append((packed[place + _PAIR.size : middle], packed[middle : middle + length]))
        place = middle + length
    return tuple(found)


def _mac(signing_key: bytes, key: bytes, head: bytes, payload: bytes) -> bytes:
    """Incremental, so that a large payload is not copied."""
    mac = hmac.new(signing_key, len(key).to_bytes(8, "big"), sha256)
    for part in (key, head, payload):
        mac.update(part)
    return mac.digest()


def _finite(moment: float) -> float | None:
    return None if moment == inf else moment
