"""Invalidations that could not be carried out, to be carried out before anything else is asked of their server.

So an entry that was deleted while the server was away is not found when it is back.  One caller pays, and the others wait for
it: nobody reads before it is done, and what was stored since is not removed by a second payment.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from threading import RLock
from typing import Any, TypeVar

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._layout import pattern
from codomyrmex_cache.backends._lines import Command
from codomyrmex_cache.backends._replies import number, raise_error_in, scanned

__all__ = ["CLEAR", "Debts", "Paying", "Plan", "scanning", "unlinked"]

T = TypeVar("T")

Paying = Future[list[Any]]
"""Done when a payment is over, however it ended."""

Plan = Generator[tuple[bytes, Sequence[Command]] | Paying, list[Any], T]
"""Yields the tag of a server and commands for it, and is sent the replies; or a payment to wait for."""

CLEAR = b"clear"
"""Stands for the removal of all that begins with these bytes, which takes several commands."""

_MOST = 1000
"""Commands; beyond, the whole namespace is owed."""

_AT_ONCE = 256
_SCAN_COUNT = 512


class Debts:
    """What is owed to each server.

    Args:
        ends_by_itself: whether what a command ends would end without it; it may be forgotten if there are too many.
    """

    def __init__(self, ends_by_itself: Callable[[Command], bool]) -> None:
        self.owed: dict[bytes, list[Command]] = {}
        self._waited_for: set[bytes] = set()  # where something is owed that does not end by itself
        self._ends_by_itself = ends_by_itself
        self._paying: dict[bytes, Paying] = {}
        self._lock = RLock()  # a plan that the garbage collector breaks off owes too, in the middle of anything
        renew_after_fork(self)

    def owe(self, tag: bytes, commands: Sequence[Command]) -> None:
        """These have to be carried out before anything else is asked of that server."""
        commands = list(commands)
        with self._lock:
            owed = self.owed.setdefault(tag, [])
            owed.extend(commands)
            if not all(map(self._ends_by_itself, commands)):
                self._waited_for.add(tag)
            if len(owed) > _MOST:
                owed[:] = [command for command in owed if not self._ends_by_itself(command)]
            if len(owed) > _MOST:
                owed[:] = [(b"UNLINK", b"cmxc:{%b}gn" % tag), (CLEAR, b"cmxc:{%b}e" % tag)]

    def paid(self, tag: bytes) -> Plan[None]:
        """Carry out what is owed there, or wait for who is at it; nobody waits for what ends by itself."""
        while tag in self.owed:
            own = Paying()
            own.set_running_or_notify_cancel()  # from here on no waiter's cancellation reaches the others
            paying = self._paying.setdefault(tag, own)
            try:
                if paying is own:
                    yield from self._pay(tag)
                elif tag in self._waited_for:
                    yield paying
                else:
                    return
            except TimeoutError:
                self._end(tag, paying)  # who pays may have died with its event loop
                raise
            except Exception as error:
                if paying is own:
                    self._end(tag, own)
                    own.set_exception(error)  # those who wait would fare no better
                raise
            finally:
                if not own.done():
                    self._end(tag, own)
                    own.set_result([])  # those who wait look again

    def _end(self, tag: bytes, paying: Paying) -> None:
        if self._paying.get(tag) is paying:
            self._paying.pop(tag, None)

    def _pay(self, tag: bytes) -> Plan[None]:
        with self._lock:
            owed = list(self.owed.get(tag, ()))
        for start in range(0, len(owed), _AT_ONCE):
            part = owed[start : start + _AT_ONCE]
            commands = [command for command in part if command[0] != CLEAR]
            if commands:
                raise_error_in((yield tag, commands))
            for command in part:
                if command[0] == CLEAR:
                    yield from unlinked(tag, bytes(command[1]))  # type: ignore[arg-type]
        done = set(map(id, owed))
        with self._lock:
            left = self.owed.get(tag, [])
            left[:] = [command for command in left if id(command) not in done]
            if all(map(self._ends_by_itself, left)):
                self._waited_for.discard(tag)
            if not left:
                self.owed.pop(tag, None)

    def after_fork(self) -> None:
        """What is owed is owed by the child as well; who is paying is the parent."""
        self._lock, self._paying = RLock(), {}


def unlinked(tag: bytes, beginning: bytes) -> Plan[int]:
    """Remove all whose names begin so; how many there were."""
    count, cursor = 0, b"0"
    while True:
        replies = yield tag, (scanning(cursor, beginning),)
        raise_error_in(replies)
        cursor, names = scanned(replies[0])
        if names:
            replies = yield tag, ((b"UNLINK", *names),)
            raise_error_in(replies)
            count += number(replies[0])
        if int(cursor) == 0:
            return count


def scanning(cursor: bytes, beginning: bytes) -> Command:
    """The command that looks for such names from the cursor on."""
    return (b"SCAN", cursor, b"MATCH", pattern(beginning), b"COUNT", _SCAN_COUNT)
