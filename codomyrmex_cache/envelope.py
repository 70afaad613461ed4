"""The one choke point for stored bytes: what goes out is sealed here, what comes in is verified here.

Layout, big-endian: MAC 32, magic 4, version 1, codec 1, flags 1, key id 1, created f64, fresh-until f64, expires f64, cost
f64, main length u64, number of buffers u32, parts length u32, generations length u32; then the call's digest (32, if a flag
says so), parts, generations, the call as shown (if a flag says so: its length u32 and itself), the lengths of the buffers (u64
each), the main frame, and the buffers, each at a multiple of 64 bytes.  The parts are the names and short keyed digests of what
went into the key, the generations those of its tags, the buffers large arrays and the like, which are neither copied when
written nor when read.

The MAC is HMAC-SHA256 over the length of the storage key, the storage key (it begins with the namespace) and everything else,
so a cut, flipped, swapped or planted entry fails one comparison, *before* any parser sees a byte.  What has buffers and was
verified is not verified as a whole again while it lies in the same file, which has not changed; see `_origin`.  With `encrypt`
it is AES-256-GCM instead: the body is ciphertext, storage key and head are associated data, and the MAC's place holds nonce
and tag.

The reader decides what it accepts: its own list of secrets, one of the two algorithms, and pickle only with a secret.  Without
a secret the same field is a checksum (HMAC with a public key) against accidents, and only the safe codec is read.
"""

from __future__ import annotations

import hmac
from collections.abc import Hashable, Iterable, Sequence
from hashlib import blake2b, sha256
from math import inf
from struct import Struct
from typing import Any, NamedTuple

from codomyrmex_cache._chunks import Buffer, Chunks
from codomyrmex_cache._cipher import Cipher
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._origin import Verified, take_origin
from codomyrmex_cache.errors import CacheConfigurationError, EnvelopeError

__all__ = ["HEAD_SIZE", "Envelope", "Seal"]

VERSION = 3
_MAGIC = b"cmxc"
_MAC_SIZE = 32
_HEAD = Struct(">4sBBBB4dQIII")
_BODY = _MAC_SIZE + _HEAD.size
_KEY_ID = _MAC_SIZE + 7  # where it lies
_PLAIN = Struct(">4xBBBx2d8xd8x12s")
"""The same, of an entry with nothing but a value and its life."""
_NOTHING_ELSE = bytes(12)  # no buffers, parts and generations
_PAIR = Struct(">II")
_LENGTH = Struct(">Q")
_SHORT = Struct(">I")
_AWAITED, _RAISED, _STREAMED, _DIGESTED, _SHOWN = 1, 2, 4, 8, 16
_DIGEST_SIZE = 32
_PART_SIZE = 8
_LONGEST_NAME = 255
_ALIGNED = 64
_PUBLIC = b"codomyrmex_cache unsigned entry"

HEAD_SIZE = _BODY
"""Bytes before the body: they name the entry, since the MAC in them is another for any other content."""

_CHUNKED = 128 * 1024
"""From this length on a sealed entry comes in pieces."""


class Envelope(NamedTuple):
    """A verified entry: its times, its codec and its frames (main, buffers...), not yet decoded."""

    entry: Entry
    codec: int
    frames: list[Buffer]


class Seal:
    """Seals and opens with one list of secrets.

    Args:
        secrets: the first signs, all verify; none means checksums instead of signatures.
        encrypt: AES-256-GCM in place of the MAC, so that who reads the store learns nothing but lengths and times.

    Raises:
        CacheConfigurationError: to encrypt without a secret, or without the package `cryptography`.

    >>> seal = Seal([b"a secret of 16 bytes or more"])
    >>> sealed = seal.seal(b"key", Entry(None), 1, [b"payload"])
    >>> seal.open(b"key", sealed, b"").frames
    [b'payload']
    """

    def __init__(self, secrets: Sequence[bytes] = (), *, encrypt: bool = False) -> None:
        self.trusted = bool(secrets)
        self.encrypts = encrypt
        if encrypt and not secrets:
            raise CacheConfigurationError("encrypt=True needs a secret: give secret=, or set CODOMYRMEX_CACHE_SECRET")
        roots = [bytes(secret) for secret in secrets] or [_PUBLIC]
        self._keys = {self._key_id(root): root for root in reversed(roots)}
        self._signing = self._key_id(roots[0])
        self._macs = {number: _Hmac(_subkey(root, b"mac")) for number, root in self._keys.items()}
        self._ciphers = {number: Cipher(root) for number, root in self._keys.items()} if encrypt else {}
        self._seen = Verified()
        self._digest_key = _subkey(roots[0], b"digest")
        self._digest_keys = [_subkey(root, b"digest") for root in roots]

    def _key_id(self, root: bytes) -> int:
        """0 for checksums, else 1 to 255, derived from the secret so that writers and readers agree without a list order."""
        return _subkey(root, b"id")[0] % 255 + 1 if self.trusted else 0

    def seal(self, key: bytes, entry: Entry, codec: int, frames: Sequence[Buffer]) -> bytes | Chunks:
        """What to store under `key`.  In pieces if it is large; then the frames must not be changed by anybody any more."""
        main, *buffers = frames
        digest = self._keyed(entry.digest, self._digest_key)
        parts, generations = _packed_parts(entry), _packed_generations(entry)
        head = _HEAD.pack(
            _MAGIC,
            VERSION,
            codec,
            _AWAITED * entry.awaited
            | _RAISED * entry.raised
            | _STREAMED * entry.streamed
            | _DIGESTED * bool(digest)
            | _SHOWN * bool(entry.shown),
            self._signing,
            entry.created,
            inf if entry.fresh_until is None else entry.fresh_until,
            inf if entry.expires_at is None else entry.expires_at,
            entry.cost,
            len(main),
            len(buffers),
            len(parts),
            len(generations),
        )
        shown = _SHORT.pack(len(entry.shown)) + entry.shown if entry.shown else b""
        body: list[Buffer] = [digest, parts, generations, shown, *(_LENGTH.pack(len(each)) for each in buffers), main]
        place = _BODY + sum(map(len, body))
        for each in buffers:
            body += [bytes(-place % _ALIGNED), each]
            place += -place % _ALIGNED + len(each)
        if self._ciphers:
            slot, text = self._ciphers[self._signing].encrypt(b"".join(body), _bound(key, head))
            return slot + head + text
        if place >= _CHUNKED:
            return Chunks(head, body, lambda: self._mac(self._signing, key, head, body))
        return b"".join((self._mac(self._signing, key, head, body), head, *body))

    def seal_plain(
        self, key: bytes, created: float, fresh_until: float, codec: int, main: Buffer
    ) -> bytes:  # the quickest write: nothing but a value and its life
        """What to store under `key` for a value of the direct API without tags, in one frame."""
        head = _HEAD.pack(_MAGIC, VERSION, codec, 0, self._signing, created, fresh_until, fresh_until, 0.0, len(main), 0, 0, 0)
        return b"".join((self._macs[self._signing].two(_bound(key, head), main), head, main))

    def open(self, key: bytes, sealed: Any, digest: bytes, *, anew: bool = False) -> Envelope:
        """Verify what was found under `key`.

        Args:
            key: the storage key it was found under.
            sealed: what was found; frames of a `bytearray` or `memoryview` are its parts, those of `bytes` are copies.
            digest: the call's digest; empty to accept any call's (the direct API, which asks by key text).
            anew: verify all of it, also what is known from before.

        Raises:
            EnvelopeError: it is not an entry of this key, version and secret.
        """
        if isinstance(sealed, Chunks):
            sealed = sealed.join()
        origin = None if anew else take_origin(sealed)
        slot, head, body = self._apart(sealed)
        _, _, codec, flags, key_id, created, fresh, expires, cost, length, count, parts, generations = _HEAD.unpack(head)
        begin = _DIGEST_SIZE if flags & _DIGESTED else 0
        middle, start = begin + parts, begin + parts + generations
        parsed = start + count * _LENGTH.size + length
        # the length of a call that is shown is in the body, so what is parsed of that is not known before
        name = (origin, key, slot, head) if origin is not None and count and not flags & _SHOWN else None
        body = self._verified(key_id, key, head, slot, body, parsed, name)
        shown = b""
        if flags & _SHOWN:
            shown = bytes(body[start + _SHORT.size :][: _SHORT.unpack_from(body, start)[0]])
            start += _SHORT.size + len(shown)
        frames = _frames(body, start, length, count)
        stored = bytes(body[:begin])
        if digest and not any(hmac.compare_digest(stored, self._keyed(digest, each)) for each in self._digest_keys):
            raise EnvelopeError("misplaced", "another call's entry under this key")
        entry = Entry(
            None, created, _finite(fresh), _finite(expires), cost,
            digest=digest, parts=_unpacked_parts(bytes(body[begin:middle])),
            generations=_unpacked_generations(bytes(body[middle : begin + parts + generations])), shown=shown,
            awaited=bool(flags & _AWAITED), raised=bool(flags & _RAISED), streamed=bool(flags & _STREAMED),
        )  # fmt: skip
        return Envelope(entry, codec, frames)

    def glance(self, key: bytes, sealed: bytes) -> tuple[float, float, float, int, bytes] | None:
        """The same for a signed value of the direct API without tags, in one frame; `None` if it is anything else.

        Created, fresh until, cost, codec and frame: what the quickest hit needs, in a quarter of the time that `open` takes.
        """
        if len(sealed) < _BODY or self._ciphers:
            return None
        mac = self._macs.get(sealed[_KEY_ID])
        if mac is None or not hmac.compare_digest(
            mac.two(len(key).to_bytes(8, "big") + key, sealed[_MAC_SIZE:]), sealed[:_MAC_SIZE]
        ):
            return None
        version, codec, flags, created, fresh_until, cost, rest = _PLAIN.unpack_from(sealed, _MAC_SIZE)
        if version != VERSION or flags or rest != _NOTHING_ELSE:
            return None
        return created, fresh_until, cost, codec, sealed[_BODY:]

    def glance_call(
        self, key: bytes, sealed: bytes, digest: bytes, awaited: bool
    ) -> tuple[float, float, float, int, bytes] | None:
        """The same for a function's value without tags, of the call with this digest."""
        if len(sealed) < _BODY or self._ciphers:
            return None
        mac = self._macs.get(sealed[_KEY_ID])
        if mac is None or not hmac.compare_digest(
            mac.two(len(key).to_bytes(8, "big") + key, sealed[_MAC_SIZE:]), sealed[:_MAC_SIZE]
        ):
            return None
        _, version, codec, flags, _, created, fresh, _, cost, length, buffers, parts, generations = _HEAD.unpack_from(
            sealed, _MAC_SIZE
        )
        if version != VERSION or flags != (_DIGESTED | _AWAITED * awaited) or buffers or generations:
            return None
        middle = _BODY + _DIGEST_SIZE
        if not hmac.compare_digest(sealed[_BODY:middle], self._keyed(digest, self._digest_key)):
            return None
        main = sealed[middle + parts :]
        return (created, fresh, cost, codec, main) if len(main) == length else None

    def kept_parts(self, parts: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
        """The parts of a key as an entry shows them: keyed, so that who reads the store cannot try values against them."""
        return tuple((name, blake2b(short, digest_size=_PART_SIZE, key=self._digest_key).digest()) for name, short in parts)

    def _apart(self, sealed: Any) -> tuple[bytes, bytes, Buffer]:
        """MAC, head and body."""
        if type(sealed) not in (bytes, bytearray, memoryview):
            raise EnvelopeError("foreign", "not bytes")
        whole: Buffer = sealed if type(sealed) is bytes else memoryview(sealed)
        slot, head = bytes(whole[:_MAC_SIZE]), bytes(whole[_MAC_SIZE:_BODY])
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise EnvelopeError("foreign", "not an entry of this package")
        if head[len(_MAGIC)] != VERSION:
            kind = "newer" if head[len(_MAGIC)] > VERSION else "version"
            raise EnvelopeError(kind, f"written in format {head[len(_MAGIC)]}, this is {VERSION}")
        return slot, head, whole[_BODY:]

    def _verified(self, key_id: int, key: bytes, head: bytes, slot: bytes, body: Buffer, least: int, name: Hashable) -> Buffer:
        """The body in clear, if it is what was sealed; `name` is what it is remembered by, `least` where its buffers begin."""
        if self._ciphers:
            cipher = self._ciphers.get(key_id)
            text = None if cipher is None else cipher.decrypt(slot, body, _bound(key, head))
            if text is not None:
                return text
        elif key_id in self._macs:
            if name is not None and self._seen.knows(name, body[:least]):
                return body
            if hmac.compare_digest(slot, self._mac(key_id, key, head, (body,))):
                if name is not None:
                    self._seen.add(name, body[:least])
                return body
        if len(body) < least:
            raise EnvelopeError("truncated", f"{len(body)} of at least {least} bytes")
        raise EnvelopeError("tampered", "the signature does not verify with this secret")

    def _mac(self, key_id: int, key: bytes, head: bytes, body: Sequence[Buffer]) -> bytes:
        return self._macs[key_id].all((_bound(key, head), *body))

    @staticmethod
    def _keyed(digest: bytes, key: bytes) -> bytes:
        return blake2b(digest, digest_size=_DIGEST_SIZE, key=key).digest() if digest else b""


class _Hmac:
    """HMAC-SHA256 (RFC 2104) under one key, from the states of the two hashes after the key's block.

    `hmac.digest` sets them up for each message, and `hmac.new(key).copy()` has a Python object around each: of 200 bytes they
    make a MAC in 1.4 and 0.95 us, this in 0.6.

    >>> _Hmac(b"key").all([b"mes", b"sage"]) == hmac.digest(b"key", b"message", "sha256")
    True
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def two(self, first: bytes, second: Buffer) -> bytes:
        """Of a message in two parts."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(first)
        inner.update(second)
        outer.update(inner.digest())
        return outer.digest()

    def all(self, parts: Iterable[Buffer]) -> bytes:
        """Of a message in any number of parts, which are not copied."""
        inner, outer = self._inner.copy(), self._outer.copy()
        for part in parts:
            inner.update(part)
        outer.update(inner.digest())
        return outer.digest()


def _subkey(root: bytes, purpose: bytes) -> bytes:
    return hmac.digest(root, b"codomyrmex_cache/1/" + purpose, sha256)


def _bound(key: bytes, head: bytes) -> bytes:
    """What a signature covers besides the body; the length tells where the key ends."""
    return len(key).to_bytes(8, "big") + key + head


def _frames(body: Buffer, place: int, length: int, count: int) -> list[Buffer]:
    table = place + count * _LENGTH.size
    if table + length > len(body):
        raise EnvelopeError("truncated", f"{len(body)} of {table + length} bytes")
    lengths = [_LENGTH.unpack_from(body, at)[0] for at in range(place, table, _LENGTH.size)]
    frames, place = [body[table : table + length]], table + length
    for each in lengths:
        place += -(place + _BODY) % _ALIGNED
        frames.append(body[place : place + each])
        place += each
    if place != len(body):
        raise EnvelopeError("truncated", f"{len(body)} of {place} bytes")
    return frames


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


def _finite(moment: float) -> float | None:
    return None if moment == inf else moment
