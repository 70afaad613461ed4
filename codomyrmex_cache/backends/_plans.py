"""What each verb sends to the server and makes of the replies, written once for threads and event loops.

A plan is a generator: it yields the tag of the server and the commands for it, and is sent the replies; or it yields a future
to wait for.

An invalidation that could not be carried out is *owed*: nothing is read from that server before it has been paid, so that an
entry deleted while the server was away is not found when it is back.  One caller pays, and the others wait for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from math import ceil
from threading import RLock
from typing import Any, TypeVar

from redis import exceptions

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.backends._layout import Layout, Place, by_tag, pattern
from codomyrmex_cache.backends._lines import Command
from codomyrmex_cache.backends._lua import ADD_TOTALS, BEGIN, COMMIT, DISCARD, END, FORGO, REMOVE, RENEW, REPLACE, TOTALS, WRITE
from codomyrmex_cache.backends._wire import script
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.errors import CircuitOpenError

__all__ = ["Plan", "Plans"]

T = TypeVar("T")
Trip = tuple[bytes, Sequence[Command], Sequence[Command]]
"""Tag, commands, and what is owed if they come to nothing."""

Plan = Generator[tuple[bytes, Sequence[Command]] | Future[None], list[Any], T]

_KEPT = b"86400000"
"""Milliseconds: a generation that no load asks for is dropped after a day, or with the longest-lived entry that carries it."""

_LONGEST = 10**15
"""Milliseconds; the server refuses lives that overflow its clock."""

_SCAN_COUNT = 512
_KEYS_AT_ONCE, _BYTES_AT_ONCE = 256, 2**20
"""Of one command, so that it does not keep the server from its other clients for long."""

_MOST_NAMES = 1024

_MOST_OWED = 1000
"""Commands; beyond, the whole namespace is owed."""

_PATIENCE = 0.5
"""Seconds, of an invalidation on several servers: when one has failed and they are over, the others are not tried but owed."""


class Plans:
    """The verbs of `RedisBackend`, and what it owes.

    Args:
        layout: names on the server.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.owed: dict[bytes, list[Command]] = {}
        self._paying: dict[bytes, Future[None]] = {}
        self._lock = RLock()  # a plan that is broken off by the garbage collector owes too
        renew_after_fork(self)
        self._names: dict[tuple[tuple[bytes, ...], bytes], Sequence[bytes]] = {}

    # -- one trip

    def _trip(self, tag: bytes, commands: Sequence[Command], owed: Sequence[Command] = ()) -> Plan[list[Any]]:
        """The replies, none of them an error; if it comes to nothing, `owed` is owed."""
        if tag in self.owed:
            yield from self.paid(tag)
        try:
            replies = yield tag, commands
            _raise_error_in(replies)
        except BaseException as error:  # a cancellation too: nobody knows how far it got
            self.unheard(tag, owed, error)
            raise
        return replies

    def unheard(self, tag: bytes, owed: Sequence[Command], error: BaseException) -> None:
        """Owe this, unless it is a lease and nothing has been sent."""
        if owed and not (isinstance(owed, _Forgone) and isinstance(error, CircuitOpenError)):
            self.owe(tag, owed)

    def owe(self, tag: bytes, commands: Sequence[Command]) -> None:
        """These have to be carried out before anything else is asked of that server."""
        commands = list(commands)
        with self._lock:
            owed = self.owed.setdefault(tag, [])
            owed.extend(commands)
            if len(owed) > _MOST_OWED:
                owed[:] = [command for command in owed if command[1] != _FORGO]  # leases end by themselves
            if len(owed) > _MOST_OWED:
                owed[:] = [(b"UNLINK", b"cmxc:{%b}gn" % tag), (_CLEAR, b"cmxc:{%b}e" % tag)]

    def paid(self, tag: bytes) -> Plan[None]:
        """Carry out what is owed there, or wait for who is at it: nobody reads before it is done, and nothing is done twice."""
        while tag in self.owed:
            own: Future[None] = Future()
            own.set_running_or_notify_cancel()  # from here on no waiter's cancellation reaches the others
            paying = self._paying.setdefault(tag, own)
            try:
                yield from self._pay(tag) if paying is own else _awaited(paying)
            except TimeoutError:
                self._end_paying(tag, paying)  # who pays may have died with its event loop
                raise
            except Exception as error:
                if paying is own:
                    self._end_paying(tag, own)
                    own.set_exception(error)
                raise
            finally:
                if not own.done():
                    self._end_paying(tag, own)
                    own.set_result(None)  # who waits looks again

    def _end_paying(self, tag: bytes, paying: Future[None]) -> None:
        if self._paying.get(tag) is paying:
            self._paying.pop(tag, None)

    def _pay(self, tag: bytes) -> Plan[None]:
        with self._lock:
            owed = list(self.owed.get(tag, ()))
        for start in range(0, len(owed), _KEYS_AT_ONCE):
            part = owed[start : start + _KEYS_AT_ONCE]
            commands = [command for command in part if command[0] != _CLEAR]
            if commands:
                _raise_error_in((yield tag, commands))
            for command in part:
                if command[0] == _CLEAR:
                    yield from self._unlinked(tag, bytes(command[1]))  # type: ignore[arg-type]
        done = set(map(id, owed))
        with self._lock:
            left = self.owed.get(tag, [])
            left[:] = [command for command in left if id(command) not in done]
            if not left:
                self.owed.pop(tag, None)

    def _trips(self, trips: Iterable[Trip]) -> Plan[list[Any]]:
        """The replies of several trips, each made or owed whatever comes of the others; the first error is raised at the end."""
        replies: list[Any] = []
        problem: BaseException | None = None
        until = time.monotonic() + _PATIENCE
        for tag, commands, owed in trips:
            if problem is not None and (not isinstance(problem, Exception) or time.monotonic() > until):
                self.owe(tag, owed)
                continue
            try:
                replies += yield from self._trip(tag, commands, owed)
            except BaseException as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return replies

    def after_fork(self) -> None:
        """What is owed is owed by the child as well; who is paying is the parent."""
        self._lock, self._paying = RLock(), {}

    # -- entries

    def get(self, key: bytes) -> Plan[Entry | None]:
        place = self.layout.place(key)
        name = place.name(b"e")
        try:
            (value,) = yield from self._trip(place.tag, ((b"GET", name),))
        except exceptions.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            yield from self._trip(place.tag, ((b"UNLINK", name),))  # what somebody else has put under our key goes
            return None
        return None if value is None else Entry(_values([value])[0])

    def has(self, key: bytes) -> Plan[bool]:
        place = self.layout.place(key)
        return _number((yield from self._trip(place.tag, ((b"EXISTS", place.name(b"e")),)))[0]) > 0

    def get_many(self, keys: Sequence[bytes]) -> Plan[dict[bytes, bytes]]:
        found: dict[bytes, bytes] = {}
        for tag, named in self.layout.entries(keys).items():
            replies = yield from self._trip(tag, [(b"MGET", *part) for part in _parted(list(named))])
            values = [value for reply in replies for value in _values(reply)]
            if len(values) != len(named):
                raise _invalid(replies)
            found.update((key, value) for key, value in zip(named.values(), values, strict=True) if value is not None)
        return found

    def set_many(self, entries: Mapping[bytes, Entry]) -> Plan[None]:
        lives = {self.layout.place(key): entry for key, entry in entries.items()}
        trips: list[Trip] = []
        for tag, places in by_tag(lives).items():
            parts = list(_parted_by_size(places, lives))
            commands = [
                script(WRITE, _pairs(part), [each for place in part for each in (lives[place].value, _life(lives[place]))])
                for part in parts
            ]
            trips.append((tag, commands, [_removal(part) for part in parts]))
        yield from self._trips(trips)

    def delete_many(self, keys: Sequence[bytes]) -> Plan[int]:
        removals = {
            tag: [_removal(part) for part in _parted(places)] for tag, places in by_tag(map(self.layout.place, keys)).items()
        }
        replies = yield from self._trips([(tag, commands, commands) for tag, commands in removals.items()])
        return sum(map(_number, replies))

    def scan(self, prefix: bytes) -> Plan[list[tuple[bytes, float | None]]]:
        keys: dict[bytes, None] = {}
        for tag, beginning in self.layout.beginnings(prefix) or [(b"-", b"cmxc:{")]:
            cursor: Any = b"0"
            while True:
                cursor, names = _scanned((yield from self._trip(tag, (_scanning(cursor, beginning),)))[0])
                found = (self.layout.key_of(name) for name in names)
                keys.update((key, None) for key in found if key is not None and key.startswith(prefix))
                if int(cursor) == 0:
                    break
        return [(key, None) for key in keys]

    def clear(self, prefix: bytes) -> Plan[int]:
        beginnings = self.layout.beginnings(prefix)
        if beginnings is None:
            return (yield from self.delete_many([key for key, _ in (yield from self.scan(prefix))]))
        count, problem, until = 0, None, time.monotonic() + _PATIENCE
        for tag, beginning in beginnings:  # as in `_trips`
            try:
                if problem is not None and (not isinstance(problem, Exception) or time.monotonic() > until):
                    raise problem
                yield from self.paid(tag)
                count += yield from self._unlinked(tag, beginning)
            except BaseException as error:
                self.owe(tag, ((_CLEAR, beginning),))
                problem = problem or error
        if problem is not None:
            raise problem
        return count

    def _unlinked(self, tag: bytes, beginning: bytes) -> Plan[int]:
        count, cursor = 0, b"0"
        while True:
            replies = yield tag, (_scanning(cursor, beginning),)
            _raise_error_in(replies)
            cursor, names = _scanned(replies[0])
            if names:
                replies = yield tag, ((b"UNLINK", *names),)
                _raise_error_in(replies)
                count += _number(replies[0])
            if int(cursor) == 0:
                return count

    # -- loads; see `_lua` for what the scripts do

    def begin(self, key: bytes, names: Sequence[bytes], seconds: float) -> Plan[Begun]:
        reply = yield from self.look(key, names, seconds, 0)
        assert isinstance(reply, Begun)
        return reply

    def look(self, key: bytes, names: Sequence[bytes], seconds: float, wanted: int) -> Plan[bytes | Begun]:
        tag, command, owed = self.beginning(key, names, seconds, wanted)
        if not seconds:  # what is about to be stored supersedes what is there
            owed = (_removal((self.layout.place(key),)),)
        (reply,) = yield from self._trip(tag, (command,), owed)
        return self.begun(tag, reply, names, owed, wanted)

    def begun(self, tag: bytes, reply: Any, names: Sequence[bytes], owed: Sequence[Command], wanted: int) -> bytes | Begun:
        """What the reply to a beginning says; of an entry alone, its value.

        Raises:
            redis.InvalidResponse: it says nothing that the script says; a lease that was got is owed back.
        """
        if type(reply) is bytes:
            return reply
        try:
            found = _begun(reply, names)
            if wanted and found.entry is not None and found.lease:
                raise _invalid(reply)  # the script gives one or the other
        except Exception:
            self.owe(tag, owed)
            raise
        return found

    def beginning(
        self, key: bytes, names: Sequence[bytes], seconds: float, wanted: int
    ) -> tuple[bytes, Command, Sequence[Command]]:
        """Where a load begins, the command, and what gives the lease back if nothing is heard."""
        place = self.layout.place(key)
        head, rest, nonce = place.head, place.rest, os.urandom(8)
        lease = b"%bl%b" % (head, rest)
        keys = (b"%be%b" % (head, rest), lease, head + b"t", b"%bgk%b" % (head, rest), *self._named(tuple(names), place))
        command = script(BEGIN, keys, (b"%d" % ceil(seconds * 1000), nonce, _KEPT, b"%d" % wanted))
        return place.tag, command, _Forgone(lease, nonce)

    def _named(self, names: tuple[bytes, ...], place: Place) -> Sequence[bytes]:
        """The server's names of generations; those of a function's calls are the same ones again and again."""
        found = self._names.get((names, place.tag))
        if found is None:
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
            found = self._names[names, place.tag] = [self.layout.generation(name, place) for name in names]
        return found

    def renew(self, key: bytes, lease: int, seconds: float) -> Plan[bool]:
        place = self.layout.place(key)
        return (yield from self._asked(place, RENEW, [place.name(b"l")], [lease, ceil(seconds * 1000)]))

    def commit(self, key: bytes, entry: Entry, names: Sequence[bytes], begun: Begun) -> Plan[bool]:
        place = self.layout.place(key)
        keys = [
            place.name(b"e"), place.name(b"l"), place.name(b"gk"), *(self.layout.generation(name, place) for name in names)
        ]  # fmt: skip
        arguments: list[Any] = [entry.value, _life(entry), begun.lease, len(entry.generations), *begun.generations]
        command = script(COMMIT, keys, arguments)
        return _number((yield from self._trip(place.tag, (command,), (_removal((place,)),)))[0]) > 0

    def end(self, key: bytes, begun: Begun, failed: bool) -> Plan[None]:
        place = self.layout.place(key)
        own = begun.generations[0] if begun.generations else b""
        keys = [place.name(b"l"), place.name(b"gk")]
        yield from self._trip(place.tag, (script(END, keys, (begun.lease, int(failed), own)),))

    def generations(self, key: bytes, names: Sequence[bytes]) -> Plan[list[bytes | None]]:
        if not names:
            return []
        place = self.layout.place(key)
        wanted = [self.layout.generation(name, place) for name in names]
        found = _values((yield from self._trip(place.tag, ((b"MGET", *wanted),)))[0])
        if len(found) != len(names):
            raise _invalid(found)
        return found

    def revoke(self, names: Sequence[bytes]) -> Plan[None]:
        wanted: dict[bytes, list[bytes]] = {}
        for name in names:
            for tag, generation in self.layout.generations(name):
                wanted.setdefault(tag, []).append(generation)
        refreshed = by_tag(self.layout.place(name[1:]) for name in names if name[:1] == b"k")
        trips: list[Trip] = []
        for tag, generations in wanted.items():
            commands = [(b"UNLINK", *part) for part in _parted(generations)]
            removals = [_removal(part) for part in _parted(refreshed.get(tag, ()))]  # its new value will not be stored
            trips.append((tag, commands, [*commands, *removals]))
        yield from self._trips(trips)

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> Plan[bool]:
        place = self.layout.place(key)
        carried = [self.layout.generation(name, place) for name, _ in new.generations]
        arguments = [new.value, _life(new), int(fence), *(() if old is None else (old.value,))]
        return (yield from self._asked(place, REPLACE, [place.name(b"e"), place.name(b"gk"), *carried], arguments))

    def discard(self, key: bytes, old: Entry) -> Plan[bool]:
        place = self.layout.place(key)
        return (yield from self._asked(place, DISCARD, [place.name(b"e")], [old.value]))

    def _asked(self, place: Place, source: bytes, keys: Sequence[bytes], arguments: Sequence[Any]) -> Plan[bool]:
        return _number((yield from self._trip(place.tag, (script(source, keys, arguments),)))[0]) > 0

    # -- totals

    def add_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> Plan[None]:
        tag, name = self.layout.totals(prefix)
        arguments = [each for pair in amounts.items() for each in (pair[0].encode("utf-8", "surrogatepass"), repr(pair[1]))]
        if arguments:
            yield from self._trip(tag, (script(ADD_TOTALS, [name], arguments),))

    def totals(self, prefix: bytes) -> Plan[dict[str, float]]:
        tag, name = self.layout.totals(prefix)
        (found,) = yield from self._trip(tag, (script(TOTALS, [name], ()),))
        texts = [(each or b"").decode("utf-8", "surrogatepass") for each in _values(found)]
        return {name: float(amount) for name, amount in zip(texts[::2], texts[1::2], strict=True)}


def _awaited(paying: Future[None]) -> Plan[None]:
    yield paying


class _Forgone(Sequence[Command]):
    """The command that gives up a lease, made if it comes to that."""

    __slots__ = ("_lease", "_nonce")

    def __init__(self, lease: bytes, nonce: bytes) -> None:
        self._lease, self._nonce = lease, nonce

    def __getitem__(self, place: Any) -> Any:
        return [script(FORGO, [self._lease], [self._nonce])][place]

    def __len__(self) -> int:
        return 1


_FORGO = script(FORGO, (), ())[1]


def _begun(reply: Any, names: Sequence[bytes]) -> Begun:
    if type(reply) is not list or len(reply) not in (_GRANTED, _GRANTED + 1 + len(names)):
        raise _invalid(reply)
    value, generations = _values(reply[:1])[0], _values(reply[_GRANTED:])
    token, holder, failed = map(_number, reply[1:_GRANTED])
    if None in generations or not (generations or holder):
        raise _invalid(reply)
    return Begun(None if value is None else Entry(value), tuple(generations), token, holder, failed)  # type: ignore[arg-type]


_GRANTED = 4
"""Of the reply to a beginning: value, token, holder and failed; generations follow if it was granted."""


def _number(reply: Any) -> int:
    if type(reply) is int:
        return reply
    if type(reply) is bytes and reply.isdigit():
        return int(reply)
    raise _invalid(reply)


def _values(replies: Any) -> list[bytes | None]:
    if type(replies) is not list or not all(each is None or type(each) is bytes for each in replies):
        raise _invalid(replies)
    return replies


def _invalid(reply: Any) -> Exception:
    return exceptions.InvalidResponse(f"not a reply to what was asked: {str(reply)[:100]}")


_CLEAR = b"clear"
"""Stands for the removal of all that begins with these bytes, which takes several commands."""


def _raise_error_in(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _scanned(reply: Any) -> tuple[bytes, list[Any]]:
    if type(reply) is not list or len(reply) != 2:
        raise _invalid(reply)
    return b"%d" % _number(reply[0]), _values(reply[1])


def _scanning(cursor: bytes, beginning: bytes) -> Command:
    return (b"SCAN", cursor, b"MATCH", pattern(beginning), b"COUNT", _SCAN_COUNT)


def _life(entry: Entry) -> int:
    """Milliseconds left when it was stored, for PX; 0 for ever."""
    if entry.expires_at is None:
        return 0
    return min(max(1, ceil((entry.expires_at - entry.created) * 1000)), _LONGEST)


def _pairs(places: Sequence[Place]) -> list[bytes]:
    return [name for place in places for name in (place.name(b"e"), place.name(b"gk"))]


def _removal(places: Sequence[Place]) -> Command:
    return script(REMOVE, _pairs(places), ())


def _parted(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _KEYS_AT_ONCE):
        yield items[start : start + _KEYS_AT_ONCE]


def _parted_by_size(places: Sequence[Place], entries: Mapping[Place, Entry]) -> Iterator[Sequence[Place]]:
    part: list[Place] = []
    size = 0
    for place in places:
        length = len(entries[place].value)
        if part and (size + length > _BYTES_AT_ONCE or len(part) == _KEYS_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(place)
        size += length
    if part:
        yield part
