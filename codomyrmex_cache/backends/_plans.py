"""What each verb sends to the server and makes of the replies, written once for threads and event loops.

A plan is a generator: it yields the tag of the server and the commands for it, and is sent the replies.  An invalidation that
came to nothing is owed: see `_debts`.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any, TypeVar

from redis import exceptions

from codomyrmex_cache._entry import Entry
from codomyrmex_cache.backends._debts import CLEAR, Debts, Plan, scanning, unlinked
from codomyrmex_cache.backends._layout import Layout, Place, by_tag
from codomyrmex_cache.backends._lines import Command
from codomyrmex_cache.backends._lua import ADD_TOTALS, BEGIN, COMMIT, DISCARD, END, FORGO, REMOVE, RENEW, REPLACE, TOTALS, WRITE
from codomyrmex_cache.backends._replies import invalid, number, raise_error_in, scanned, values
from codomyrmex_cache.backends._wire import script
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.errors import CircuitOpenError

__all__ = ["Plan", "Plans"]

T = TypeVar("T")
Trip = tuple[bytes, Sequence[Command], Sequence[Command]]
"""Tag, commands, and what is owed if they come to nothing."""

_KEPT = b"86400000"
"""Milliseconds: a generation that no load asks for is dropped after a day, or with the longest-lived entry that carries it."""

_LONGEST = 10**15
"""Milliseconds; the server refuses lives that overflow its clock."""

_KEYS_AT_ONCE, _BYTES_AT_ONCE = 256, 2**20
"""Of one command, so that it does not keep the server from its other clients for long."""

_MOST_NAMES = 1024

_PATIENCE = 0.5
"""Seconds, of an invalidation on several servers: when one has failed and they are over, the others are not tried but owed."""


class Plans:
    """The verbs of `RedisBackend`, and what it owes.

    Args:
        layout: names on the server.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._debts = Debts(lambda command: command[1] == _FORGO)  # leases end by themselves
        self.owed, self.owe, self.paid = self._debts.owed, self._debts.owe, self._debts.paid
        self._nonces: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._names: dict[tuple[tuple[bytes, ...], bytes], Sequence[bytes]] = {}

    # -- one trip

    def _trip(self, tag: bytes, commands: Sequence[Command], owed: Sequence[Command] = ()) -> Plan[list[Any]]:
        """The replies, none of them an error; if it comes to nothing, `owed` is owed."""
        try:
            if tag in self.owed:
                yield from self.paid(tag)
            replies = yield tag, commands
            raise_error_in(replies)
        except BaseException as error:  # a cancellation too: nobody knows how far it got
            self.unheard(tag, owed, error)
            raise
        return replies

    def unheard(self, tag: bytes, owed: Sequence[Command], error: BaseException) -> None:
        """Owe this, unless it is a lease and nothing has been sent."""
        if owed and not (isinstance(owed, _Forgone) and isinstance(error, CircuitOpenError)):
            self.owe(tag, owed)

    def _trips(self, trips: Iterable[Trip]) -> Plan[list[Any]]:
        """The replies of several trips, each made, or owed, whatever comes of the others; raises the first error at the end."""
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
        return None if value is None else Entry(values([value])[0])

    def has(self, key: bytes) -> Plan[bool]:
        place = self.layout.place(key)
        return number((yield from self._trip(place.tag, ((b"EXISTS", place.name(b"e")),)))[0]) > 0

    def get_many(self, keys: Sequence[bytes]) -> Plan[dict[bytes, bytes]]:
        found: dict[bytes, bytes] = {}
        for tag, named in self.layout.entries(keys).items():
            replies = yield from self._trip(tag, [(b"MGET", *part) for part in _parted(list(named))])
            given = [value for reply in replies for value in values(reply)]
            if len(given) != len(named):
                raise invalid(replies)
            found.update((key, value) for key, value in zip(named.values(), given, strict=True) if value is not None)
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
        return sum(map(number, replies))

    def scan(self, prefix: bytes) -> Plan[list[tuple[bytes, float | None]]]:
        keys: dict[bytes, None] = {}
        for tag, beginning in self.layout.beginnings(prefix) or [(b"-", b"cmxc:{")]:
            cursor: Any = b"0"
            while True:
                cursor, names = scanned((yield from self._trip(tag, (scanning(cursor, beginning),)))[0])
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
                count += yield from unlinked(tag, beginning)
            except BaseException as error:
                self.owe(tag, ((CLEAR, beginning),))
                problem = problem or error
        if problem is not None:
            raise problem
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
            self._note(owed, 0)
            return reply
        try:
            found = _begun(reply, names)
            self._note(owed, found.lease)
            if wanted and found.entry is not None and found.lease:
                raise invalid(reply)  # the script gives one or the other
        except Exception:
            self.owe(tag, owed)
            raise
        return found

    def _note(self, owed: Sequence[Command], token: int) -> None:
        """By which nonce the lease was asked for that was told of by this token, right or damaged."""
        if isinstance(owed, _Forgone):
            self._nonces[owed.lease, token] = owed.nonce
            if len(self._nonces) > _MOST_NAMES:
                self._nonces.popitem(last=False)

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
        nonce = self._nonces.get((keys[1], begun.lease), b"") if begun.lease else b""
        arguments: list[Any] = [
            entry.value, _life(entry), begun.lease, nonce, len(entry.generations), *begun.generations
        ]  # fmt: skip
        command = script(COMMIT, keys, arguments)
        return number((yield from self._trip(place.tag, (command,), (_removal((place,)),)))[0]) > 0

    def end(self, key: bytes, begun: Begun, failed: bool) -> Plan[None]:
        place = self.layout.place(key)
        own = begun.generations[0] if begun.generations else b""
        keys = [place.name(b"l"), place.name(b"gk")]
        nonce = self._nonces.get((keys[0], begun.lease), b"") if begun.lease else b""
        yield from self._trip(place.tag, (script(END, keys, (begun.lease, nonce, int(failed), own)),))

    def generations(self, key: bytes, names: Sequence[bytes]) -> Plan[list[bytes | None]]:
        if not names:
            return []
        place = self.layout.place(key)
        wanted = [self.layout.generation(name, place) for name in names]
        found = values((yield from self._trip(place.tag, ((b"MGET", *wanted),)))[0])
        if len(found) != len(names):
            raise invalid(found)
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
        lease = place.name(b"l")
        arguments = [old.value, self._nonces.get((lease, 0), b"")]
        return (yield from self._asked(place, DISCARD, [place.name(b"e"), lease], arguments))

    def _asked(self, place: Place, source: bytes, keys: Sequence[bytes], arguments: Sequence[Any]) -> Plan[bool]:
        return number((yield from self._trip(place.tag, (script(source, keys, arguments),)))[0]) > 0

    # -- totals

    def add_totals(self, prefix: bytes, amounts: Mapping[str, float]) -> Plan[None]:
        tag, name = self.layout.totals(prefix)
        arguments = [each for pair in amounts.items() for each in (pair[0].encode("utf-8", "surrogatepass"), repr(pair[1]))]
        if arguments:
            yield from self._trip(tag, (script(ADD_TOTALS, [name], arguments),))

    def totals(self, prefix: bytes) -> Plan[dict[str, float]]:
        tag, name = self.layout.totals(prefix)
        (found,) = yield from self._trip(tag, (script(TOTALS, [name], ()),))
        texts = [(each or b"").decode("utf-8", "surrogatepass") for each in values(found)]
        return {name: float(amount) for name, amount in zip(texts[::2], texts[1::2], strict=True)}


class _Forgone(Sequence[Command]):
    """The command that gives up a lease, made if it comes to that."""

    __slots__ = ("lease", "nonce")

    def __init__(self, lease: bytes, nonce: bytes) -> None:
        self.lease, self.nonce = lease, nonce

    def __getitem__(self, place: Any) -> Any:
        return [script(FORGO, [self.lease], [self.nonce])][place]

    def __len__(self) -> int:
        return 1


_FORGO = script(FORGO, (), ())[1]


def _begun(reply: Any, names: Sequence[bytes]) -> Begun:
    if type(reply) is not list or len(reply) not in (_GRANTED, _GRANTED + 1 + len(names)):
        raise invalid(reply)
    value, generations = values(reply[:1])[0], values(reply[_GRANTED:])
    token, holder, failed = map(number, reply[1:_GRANTED])
    if None in generations or not (generations or holder):
        raise invalid(reply)
    return Begun(None if value is None else Entry(value), tuple(generations), token, holder, failed)  # type: ignore[arg-type]


_GRANTED = 4
"""Of the reply to a beginning: value, token, holder and failed; generations follow if it was granted."""


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
