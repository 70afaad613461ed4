"""AES-256-GCM for stored bytes, by the package `cryptography` (extra `crypto`), kept by the Python Cryptographic Authority."""

from __future__ import annotations

import os
from typing import Any

from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["Cipher"]

_NONCE_SIZE, _TAG_SIZE, _SLOT_SIZE = 12, 16, 32


class Cipher:
    """Encrypts under a subkey of one secret.

    A nonce is 96 random bits, so one secret is good for some 2**32 entries (NIST SP 800-38D); rotate it before.

    Raises:
        CacheConfigurationError: the package is not installed.
    """

    def __init__(self, root: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError as error:
            raise CacheConfigurationError("encrypt=True: install codomyrmex_cache[crypto]") from error
        subkey = HKDF(SHA256(), 32, salt=None, info=b"codomyrmex_cache/1/encrypt").derive(root)
        self._cipher: Any = AESGCM(subkey)
        self._invalid = InvalidTag

    def encrypt(self, text: bytes, bound: bytes) -> tuple[bytes, bytes]:
        """Nonce and tag in 32 bytes, and the ciphertext; `bound` is authenticated with it."""
        nonce = os.urandom(_NONCE_SIZE)
        sealed = self._cipher.encrypt(nonce, text, bound)
        slot = nonce + sealed[-_TAG_SIZE:]
        return slot.ljust(_SLOT_SIZE, b"\0"), sealed[:-_TAG_SIZE]

    def decrypt(self, slot: bytes, sealed: bytes | bytearray | memoryview, bound: bytes) -> bytearray | None:
        """The text, in memory of its own; `None` if it is not what was encrypted."""
        nonce, tag, rest = slot[:_NONCE_SIZE], slot[_NONCE_SIZE : _NONCE_SIZE + _TAG_SIZE], slot[_NONCE_SIZE + _TAG_SIZE :]
        if any(rest):
            return None
        try:
            return bytearray(self._cipher.decrypt(nonce, b"".join((sealed, tag)), bound))
        except self._invalid:
            return None
