"""The near cache between a server, a connection, writers and readers, each moved on by hand: any interleaving can be had.

What the server tells is a queue.  Of every version it is noted when it ceased to be the answer, and whether that has been heard
here, or was the doing of a writer here that has its reply.  Whatever a cell would answer is held against that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from codomyrmex_cache import Entry
from codomyrmex_cache._near import Near

KEYS = (b"1:a:x", b"1:a:y", b"1:a:z")
TAGS = (b"t1:a:p", b"t1:a:q")
BOUND, LIFE = 8.0, 12.0

WALL = 50_000.0
"""What the wall clock is ahead of the monotonic one."""


class Version(NamedTuple):
    """What the server has under a key: a number, the tags' generations it depends on, and when its life ends."""

    number: int
    carried: tuple[tuple[bytes, bytes], ...] = ()
    until: float | None = None


class Silent:
    """Who tracks: here the test does."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def join(self, seconds: float) -> None:
        self.calls.append("join")

    def abandon(self) -> None:
        self.calls.append("abandon")


class Time:
    """Stands for the module `time` in `_near`."""

    def __init__(self) -> None:
        self.moment = 1000.0

    def monotonic(self) -> float:
        return self.moment

    def time(self) -> float:
        return WALL + self.moment


class World:
    """A server, and a process with a near cache.  It begins connected, with a value under each key.

    Each name in `WEIGHTS` is a method; `number` chooses among what there is to choose.
    """

    def __init__(self, time: Time) -> None:
        self.time = time
        self.near = Near("a", BOUND, time.time, lambda _: Silent(), max_entries=2)
        self.near.stamp(KEYS[0])  # begins the tracking
        self.near.began(time.moment)
        self.hears = True
        self.line: list[Any] | None = []  # what is under way to us; None while nobody listens at the other end
        self.last = 0
        self.stored: dict[bytes, Version] = {}
        self.generations: dict[bytes, bytes] = dict.fromkeys(TAGS, b"0")
        self.superseded: dict[int, float] = {}  # version to the moment at which it ceased to be the answer
        self.unanswerable: set[int] = set()  # versions that must not be answered whatever the time
        self.reading: list[dict[str, Any]] = []
        self.writing: list[dict[str, Any]] = []
        self.answered = 0
        for number in range(3):
            self.set_elsewhere(number)

    # -- the server

    def _end(self, versions: list[Version]) -> list[int]:
        for version in versions:
            self.superseded.setdefault(version.number, self.time.moment)
        return [version.number for version in versions]

    def _push(self, ended: list[int], keys: list[bytes] | None, tags: list[bytes]) -> list[int]:
        if self.line is not None:
            self.line.append((ended, keys, tags))
        return ended

    def _set(self, number: int) -> list[int]:
        key, kind = KEYS[number % 3], number // 3 % 4
        ended = self._end([self.stored[key]] if key in self.stored else [])
        self.last += 1
        carried = tuple((name, self.generations[name]) for name in TAGS[: kind // 2])
        self.stored[key] = Version(self.last, carried, self.time.moment + LIFE if kind % 2 else None)
        return self._push(ended, [key], [])

    def _delete(self, number: int) -> list[int]:
        key = KEYS[number % 3]
        return self._push(self._end([self.stored.pop(key)] if key in self.stored else []), [key], [])

    def _clear(self, number: int) -> list[int]:
        keys = list(self.stored)
        ended = self._end([self.stored.pop(key) for key in keys])
        return self._push(ended, None if number % 2 else keys, [])

    def _revoke(self, number: int) -> list[int]:
        name = TAGS[number % 2]
        self.last += 1
        self.generations[name] = b"%d" % self.last
        return self._push(self._end([each for each in self.stored.values() if name in dict(each.carried)]), [], [name])

    # -- writers elsewhere

    def set_elsewhere(self, number: int) -> None:
        self._set(number)

    def delete_elsewhere(self, number: int) -> None:
        self._delete(number)

    def clear_elsewhere(self, number: int) -> None:
        self._clear(number)

    def revoke_elsewhere(self, number: int) -> None:
        self._revoke(number)

    # -- writers here; around what the server does is what the drivers put around it

    def write_here(self, number: int) -> None:
        key, name = KEYS[number % 3], TAGS[number % 2]
        writes: list[tuple[str, tuple[Any, ...], Callable[[int], list[int]]]] = [
            ("set", (key, None), self._set), ("set_many", ({key: None},), self._set), ("commit", (key,), self._set),
            ("delete", (key,), self._delete), ("delete_many", ((key,),), self._delete),
            ("clear", (b"1:a:",), self._clear), ("revoke", ((name,),), self._revoke),
        ]  # fmt: skip
        verb, arguments, does = writes[number % len(writes)]
        around = self.near.overtaken(verb, arguments)
        around.__enter__()
        self.writing.append({"does": does, "number": number, "around": around})

    def server_writes(self, number: int) -> None:
        asked = [each for each in self.writing if "ended" not in each]
        if asked:
            each = asked[number % len(asked)]
            each["ended"] = each["does"](each["number"])

    def writer_returns(self, number: int) -> None:
        done = [each for each in self.writing if "ended" in each]
        if done:
            each = done[number % len(done)]
            self.writing.remove(each)
            each["around"].__exit__(None, None, None)
            self.unanswerable.update(each["ended"])

    # -- readers, as `look` does it: stamp, ask, keep

    def reader_asks(self, number: int) -> None:
        key = KEYS[number % 3]
        self.reading.append({"key": key, "stamp": self.near.stamp(key)})

    def server_answers(self, number: int) -> None:
        asked = [each for each in self.reading if "version" not in each]
        if asked:
            each = asked[number % len(asked)]
            found = self.stored.get(each["key"])
            alive = found is not None and all(self.generations[name] == expected for name, expected in found.carried)
            each["version"] = found if alive else None

    def reader_keeps(self, number: int) -> None:
        done = [each for each in self.reading if "version" in each]
        if not done:
            return
        each = done[number % len(done)]
        self.reading.remove(each)
        version = each["version"]
        if version is not None and (version.until is None or self.time.moment < version.until):
            until = None if version.until is None else WALL + version.until
            entry = Entry(version, fresh_until=until, generations=version.carried)
            self.near.keep(each["key"], each["stamp"], entry, 1, copy=True)

    def read(self, number: int) -> None:
        """All of it at once."""
        self.reader_asks(number)
        self.reading[0], self.reading[-1] = self.reading[-1], self.reading[0]
        each = self.reading[0]
        found = self.stored.get(each["key"])
        alive = found is not None and all(self.generations[name] == expected for name, expected in found.carried)
        each["version"] = found if alive else None
        self.reader_keeps(0)

    # -- the connection

    def check(self, number: int) -> None:
        if self.line is not None:
            self.line.append(self.time.moment)

    def hear(self, number: int) -> None:
        for _ in range(number % 4 + 1):
            if not self.line:
                return
            told = self.line.pop(0)
            if isinstance(told, float):
                (self.near.confirmed if self.hears else self.near.began)(told)
                self.hears = True
                continue
            ended, keys, tags = told
            if keys is None:
                self.near.forget_all()
            else:
                self.near.forget(keys)
                self.near.forget_tags(tags)
            self.unanswerable.update(ended)

    def cut(self, number: int) -> None:
        """What was under way is lost, and nobody here knows yet."""
        self.line = None

    def notice(self, number: int) -> None:
        """The connection is seen to be gone, and a new one made: the tracking is on, and a check on its way."""
        if self.line is None:
            self.hears = False
            self.near.lost(ConnectionError())
            self.line = [self.time.moment]

    def fork(self, number: int) -> None:
        self.near.after_fork()
        self.near.stamp(KEYS[0])
        self.hears, self.line, self.reading, self.writing = False, [self.time.moment], [], []

    def time_passes(self, number: int) -> None:
        self.time.moment += (0.1, 0.5, 2.0, 7.0)[number % 4]

    # -- what must hold

    def examine(self) -> None:
        """No cell answers what it must not, and the books are right."""
        for key in KEYS:
            entry = self.near.get(key, b"", copy=True)
            if entry is None:
                continue
            self.answered += 1
            version = entry.value
            assert version.number not in self.unanswerable, "heard of or done here, and answered all the same"
            since = self.superseded.get(version.number)
            assert since is None or self.time.moment - since <= BOUND, "older than the bound"
            # from one clock to the other costs the last digits
            assert version.until is None or self.time.moment < version.until + 1e-6, "past its life"
        cells = self.near.cells
        assert len(cells) <= 2
        assert self.near._order.weight == sum(cell.weight for cell in cells.values())
        carried = {(name, key) for key, cell in cells.items() if cell.entry for name, _ in cell.entry.generations}
        assert {(name, key) for name, keys in self.near._named.items() for key in keys} == carried


WEIGHTS = {
    "set_elsewhere": 3, "delete_elsewhere": 1, "clear_elsewhere": 1, "revoke_elsewhere": 2,
    "write_here": 3, "server_writes": 4, "writer_returns": 4,
    "read": 8, "reader_asks": 4, "server_answers": 4, "reader_keeps": 4,
    "check": 4, "hear": 6, "cut": 1, "notice": 1, "fork": 1, "time_passes": 4,
}  # fmt: skip
"""How often each step is taken: those that end everything, seldom."""
