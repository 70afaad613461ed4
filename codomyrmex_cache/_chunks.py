"""A large sealed entry in its pieces: written without being joined, and signed while it is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread

__all__ = ["Buffer", "Chunks"]

Buffer = bytes | bytearray | memoryview


class Chunks:
    """The MAC, then `head`, then `body`.

    SHA-256 takes as long as writing the same bytes to a file (0.5 ms for 1 MB), and both let other threads run, so the MAC is
    made in a thread of its own; `mac()` waits for it.

    >>> chunks = Chunks(b"head", [b"bo", b"dy"], lambda: b"mac.")
    >>> chunks.join(), len(chunks)
    (b'mac.headbody', 12)
    """

    __slots__ = ("_mac", "_made", "_thread", "body", "head")

    def __init__(self, head: bytes, body: Sequence[Buffer], mac: Callable[[], bytes]) -> None:
        self.head = head
        self.body = body
        self._mac = mac
        self._made: bytes | None = None
        self._thread: Thread | None = Thread(target=self._make, name="codomyrmex_cache seal", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the program is about to end, or has no threads left
            self._thread = None

    def _make(self) -> None:
        with suppress(Exception):  # `mac` tries again, where it is heard
            self._made = self._mac()

    def mac(self) -> bytes:
        """The MAC, as soon as it is made."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._made is None:  # no thread could be had, or a fork has left it behind
            self._made = self._mac()
        return self._made

    def join(self) -> bytes:
        """All of it in one piece."""
        return b"".join((self.mac(), self.head, *self.body))

    def __len__(self) -> int:
        return len(self.head) + len(self.mac()) + sum(map(len, self.body))
