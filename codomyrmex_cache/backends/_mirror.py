"""Who may answer from memory what is kept in files: the regime of a namespace, and a file of words that tell of changes.

Processes keep hot cells of entries that lie in a database which others change. These rules make a cell answer only if nothing
newer had been written, with the writer's call returned, before the reader's call began.

*The regime* is a row of the database: a number that is never used twice, whether its author is alone, which file is the
mirror (by inode), and whether the regime has settled. Everything that changes or removes an entry reads it in its own
transaction, so a writer never acts by an old one. A reader knows it by a lease: what it has read answers for `LEASE_SECONDS`
from the moment before it was read. A writer that meets a new regime waits `QUIET_SECONDS` from then, outside any transaction,
before its first change; by then the leases on the regime before have ended. Who has waited marks the regime as settled, so
others need not.

*Alone*, a process kills its own cells when it writes, and within its lease a hit asks nobody. Another process, finding that
its author lives, replaces the regime by a shared one. *Shared*, a hit looks whether the mirror's words are the ones it has
acted on. A writer gives the words of the keys that it is about to change new values before it commits (`begun`), and repeats
them elsewhere when its transaction has ended (`done`). A cell may be filled by what is read after the two were seen to be
equal, and dies with a change of `begun`. Both are random, so an older word never comes back. A writer that is killed leaves a
word that fills no cells until it is healed, under the write lock of the database: then nobody is between the two.

*Whether others are there* tells a shared lock on the mirror, which every process holds as long as it has it open: who gets it
exclusively, in a transaction, on the file that a settled regime names, is the only one with cells. Locks and leases end with
their process, so kills need no cleaning up.

The mirror is read and written as a file, never mapped: a mapped file that somebody cuts ends the process. A file that is
removed serves those who have it open; the next to come makes another one, which is another regime. Words cut off are zero,
and zero fills no cells. What is not noticed is that somebody puts the very same file's old content back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

__all__ = [
    "LEASE_SECONDS", "QUIET_SECONDS", "SHARDS", "WORDS", "Mirror", "Regime", "can_mirror", "changed", "entered", "fresh_number",
    "is_makeshift", "is_quiet", "number_of", "shard_of", "succeeding",
]  # fmt: skip

LEASE_SECONDS: Final = 0.05
QUIET_SECONDS: Final = 0.1
"""Twice the lease, for clocks that are read a little apart."""

SHARDS: Final = 64
"""Keys share a word by their hash.  A look at all words (512 bytes) costs 2 % more than at one (0.6 us)."""

_WORD = 8
WORDS: Final = SHARDS * _WORD
"""Bytes of the words that have `begun`; as many for those that are `done` follow."""

_NAME, _DRAFT = "mirror", "mirror.new"
_NUMBER = (1 << 62) - 1


class Regime(NamedTuple):
    """By which rules entries are changed and kept.

    Args:
        number: random, another one for each regime.
        alone: only the process that made this regime may keep cells, and it writes without the mirror.
        mirror: inode of the mirror, 0 for none; then nobody keeps cells, unless alone.
        settled: nobody keeps cells by the regime before.
    """

    number: int
    alone: bool
    mirror: int
    settled: bool


def entered(regime: Regime, mine: int, mirror: int) -> bool:
    """Whether the holder of this mirror, and author of the regime with the number `mine`, can go by this regime."""
    return regime.number == mine if regime.alone else regime.mirror == mirror


def succeeding(regime: Regime, number: int, mirror: int, *, only: bool) -> Regime:
    """The regime that a process makes which cannot, or need not, go by this one.

    Args:
        regime: the one in force, read in the same transaction.
        number: a fresh one.
        mirror: that it has open and holds the lock on, 0 if it can have none.
        only: it has the lock on the mirror of `regime` exclusively until the transaction has ended.
    """
    nobody = not regime.alone and not regime.mirror  # has cells
    if regime.settled and mirror and (only or nobody):
        return Regime(number, True, mirror, True)
    if nobody and not mirror:
        return regime
    return Regime(number, False, mirror, regime.settled and nobody)


def is_quiet(met: float, now: float) -> bool:
    """Whether, by an unsettled regime first met at this moment, entries may be changed."""
    return now >= met + QUIET_SECONDS


def is_makeshift(regime: Regime) -> bool:
    """Whether it may be that of a database which has just taken the place of a damaged one."""
    return not (regime.settled or regime.alone or regime.mirror)


def changed(seen: bytes, words: bytes) -> list[int]:
    """The shards in which two sets of words differ."""
    if seen == words:
        return []
    return [shard for shard in range(SHARDS) if _word(seen, shard) != _word(words, shard)]


def _word(words: bytes, shard: int) -> bytes:
    return words[shard * _WORD : shard * _WORD + _WORD]


def shard_of(key: bytes) -> int:
    """The same in all processes."""
    return xxh3_64_intdigest(key) % SHARDS


def fresh_number() -> int:
    """Positive, and never seen before."""
    return (int.from_bytes(os.urandom(8), "little") & _NUMBER) | 1


def number_of(inode: int) -> int:
    """An inode as the database can keep it."""
    return inode & _NUMBER


def can_mirror() -> bool:
    """Whether this platform has what the rules need."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return False
    return hasattr(os, "pread")


class Mirror:
    """One open mirror, with a shared lock on it.  It is closed when nobody refers to it any more, since a descriptor that is
    closed while another thread is about to read from it may by then be another file's."""

    __slots__ = ("descriptor", "exclusive", "number")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.number = number_of(os.fstat(descriptor).st_ino)
        self.exclusive = False

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)

    @classmethod
    def opened(cls, folder: Path, number: int) -> Mirror | None:
        """The mirror of that number, `None` if it is not there, or somebody is deciding whether to be alone."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            mirror = cls(os.open(folder / _NAME, flags))
            regular = stat.S_ISREG(os.fstat(mirror.descriptor).st_mode)
            return mirror if regular and mirror.number == number and mirror._lock(exclusively=False) else None
        except OSError:
            return None

    @classmethod
    def made(cls, folder: Path) -> Mirror | None:
        """A new one in the place of what is there, `None` if that cannot be done.  To be called in a write transaction."""
        draft = folder / _DRAFT
        try:
            cls.tidy(folder)
            mirror = cls(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
            os.fchmod(mirror.descriptor, 0o600)
            words = b"".join(_fresh_word() for _ in range(SHARDS))
            mirror._write(2 * words, 0)
            if not mirror._lock(exclusively=False):
                return None
            os.rename(draft, folder / _NAME)
        except OSError:
            return None
        return mirror

    @staticmethod
    def tidy(folder: Path) -> None:
        """Remove what a process left that died while it made a mirror.  To be called in a write transaction."""
        with suppress(OSError):
            os.unlink(folder / _DRAFT)

    # -- who else has it open

    def lock_exclusively(self) -> bool:
        """Whether nobody else has it open; then nobody can open it until `share`.  To be called in a write transaction: a lock
        that is not got is given up for a moment."""
        self.exclusive = self._lock(exclusively=True)
        if not self.exclusive and not self._lock(exclusively=False):
            raise BlockingIOError("the lock on the mirror is lost")
        return self.exclusive

    def share(self) -> None:
        """Let others open it again."""
        if self.exclusive:
            self.exclusive = False
            self._lock(exclusively=False)

    def _lock(self, *, exclusively: bool) -> bool:
        import fcntl

        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    # -- reading

    def words(self) -> bytes:
        """All words that have begun; zero where the file was cut."""
        return os.pread(self.descriptor, WORDS, 0).ljust(WORDS, b"\0")

    def quiet(self, shard: int, seen: bytes) -> bool | None:
        """Whether what is read from now on may be kept until the word of its shard is another one than in `seen`; `None` if
        that is for want of healing."""
        both = os.pread(self.descriptor, 2 * WORDS, 0).ljust(2 * WORDS, b"\0")
        begun, done = _word(both, shard), _word(both, SHARDS + shard)
        if begun != done or begun == _NO_WORD:
            return None
        return begun == _word(seen, shard)

    # -- writing, in a transaction

    def begin(self, shards: Iterable[int]) -> dict[int, bytes]:
        """Tell that keys of these shards are about to change; what `end` needs.

        Raises:
            OSError: it could not be told.
        """
        begun = {shard: _fresh_word() for shard in shards}
        for shard, word in begun.items():
            self._write(word, shard)
        return begun

    def end(self, begun: dict[int, bytes]) -> None:
        """Tell that the transaction has ended, however.  What cannot be told costs cells."""
        with suppress(OSError):
            for shard, word in begun.items():
                if os.pread(self.descriptor, _WORD, shard * _WORD) == word:  # else another writer's, who will say the same
                    self._write(word, SHARDS + shard)

    def heal(self) -> None:
        """Have the words agree again after a writer was killed, or the file was cut.

        Raises:
            OSError: it could not be written.
        """
        both = os.pread(self.descriptor, 2 * WORDS, 0).ljust(2 * WORDS, b"\0")
        for shard in range(SHARDS):
            begun, done = _word(both, shard), _word(both, SHARDS + shard)
            if begun != done or begun == _NO_WORD:
                self.end(self.begin((shard,)))

    def _write(self, words: bytes, place: int) -> None:
        place *= _WORD
        while words:
            written = os.pwrite(self.descriptor, words, place)
            words, place = words[written:], place + written


_NO_WORD = bytes(_WORD)


def _fresh_word() -> bytes:
    return fresh_number().to_bytes(_WORD, "little")
