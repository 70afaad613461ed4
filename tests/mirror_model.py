"""The rules of `backends._mirror` in a world of model processes, whose operations are taken step by step.

An operation is a generator that yields where others may come between.  The decisions are those of the package (`entered`,
`succeeding`, `is_quiet`); the database, the mirror files, the locks on them, the clock and the processes are modelled.  Each
state of an entry has a number, in the order of commits; an answer is stale if its number is below that of a write that had
returned, or of another answer that had been given, before the read began.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import count
from math import inf
from random import Random

from codomyrmex_cache.backends._mirror import LEASE_SECONDS, QUIET_SECONDS, Regime, entered, is_quiet, succeeding

KEYS = ("x", "y")
"""Each with a word of its own."""

MOST_PENDING = 6

Operation = Generator[None, None, None]
Words = dict[str, int]

MUTATIONS = (
    "words after the commit",
    "cells filled in the middle of a write",
    "no waiting for leases",
    "leases from the end of a renewal",
    "the regime read before the transaction",
    "cells kept over a change of regime",
)


class StaleError(AssertionError):
    """What must not happen."""


class File:
    """A mirror."""

    def __init__(self, inode: int, begun: Words, done: Words) -> None:
        self.inode, self.begun, self.done = inode, begun, done
        self.shared: set[Process] = set()
        self.exclusive: Process | None = None


class World:
    """What the processes of a machine share."""

    def __init__(self, mutation: str = "") -> None:
        self.mutation = mutation
        self.now = 1000.0
        self.numbers = count(1)
        self.regime = Regime(next(self.numbers), False, 0, True)
        self.states = dict.fromkeys(KEYS, 0)  # the number of each entry's state
        self.present = dict.fromkeys(KEYS, False)
        self.floors = dict.fromkeys(KEYS, 0)
        self.writer: Process | None = None  # who has SQLite's write lock
        self.files: dict[int, File] = {}
        self.path: File | None = None
        self.hits = 0

    def made(self, begun: Words, done: Words) -> File:
        """A file that is not anywhere yet."""
        file = File(next(self.numbers), dict(begun), dict(done))
        self.files[file.inode] = file
        return file

    def fresh(self) -> Words:
        """Words never seen before."""
        return {key: next(self.numbers) for key in KEYS}

    def tamper(self, how: str) -> None:
        """What somebody does to the file."""
        file = self.path
        if file is None:
            return
        if how == "delete":
            self.path = None
        elif how == "replace":  # by a copy of itself
            self.path = self.made(file.begun, file.done)
        elif how == "cut":
            file.begun, file.done = dict.fromkeys(KEYS, 0), dict.fromkeys(KEYS, 0)
        else:
            file.begun, file.done = self.fresh(), self.fresh()


class Process:
    """One process; several of its operations, which are its threads, may be under way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.mine = 0
        self.held: File | None = None
        self.met = (0, 0.0)
        self.kept = 0
        self.until = self.again = -inf
        self.mirror: File | None = None
        self.words: Words = {}
        self.cells: dict[str, int] = {}
        self.changes = dict.fromkeys(KEYS, 0)
        self.changing = dict.fromkeys(KEYS, 0)
        self.era = 0
        self.renewing = False

    def die(self) -> None:
        """At any moment; what is left of it are the words that it has written."""
        if self.world.writer is self:
            self.world.writer = None
        for file in self.world.files.values():
            file.shared.discard(self)
            if file.exclusive is self:
                file.exclusive = None

    # -- the mirror

    def opened(self, inode: int) -> File | None:
        """As `Coherence._opened`."""
        if self.held is None or self.held.inode != inode:
            file = self.world.path
            able = file is not None and file.inode == inode and file.exclusive is None
            self.held = file if able else None
            if self.held is not None:
                self.held.shared.add(self)
        return self.held

    def is_only(self, file: File) -> bool:
        """As `Mirror.lock_exclusively`."""
        if file.shared - {self} or file.exclusive not in (None, self):
            return False
        file.exclusive = self
        return True

    def share(self) -> None:
        """As `Mirror.share`."""
        if self.held is not None and self.held.exclusive is self:
            self.held.exclusive = None

    # -- writing

    def write(self, key: str, *, present: bool) -> Operation:
        """Change an entry, or remove it."""
        world = self.world
        while True:
            early = world.regime
            yield
            while world.writer is not None:
                yield
            world.writer = self
            regime = early if world.mutation == "the regime read before the transaction" else world.regime
            yield
            if regime.alone and regime.number == self.mine:
                yield from self.changed(key, None, present=present)
                return
            wait, settle = self.admitted(regime)
            if wait == 0.0:
                continue
            if wait is None or not world.present[key]:
                marked = self.held if world.present[key] and regime.mirror else None
                yield from self.changed(key, marked, present=present, settle=settle)
                return
            world.writer = None
            end = world.now + wait
            while world.now < end:
                yield

    def quick_write(self, key: str) -> Operation:
        """In one statement, if nobody else keeps cells."""
        world, number = self.world, self.mine
        self.changing[key] += 1
        self.forget(key)
        yield
        if world.writer is None and world.regime.alone and world.regime.number == number:
            self.commit(key, present=True)
            state = world.states[key]
            yield
            self.changing[key] -= 1
            self.forget(key)
            yield
            world.floors[key] = max(world.floors[key], state)
        else:
            self.changing[key] -= 1

    def admitted(self, regime: Regime) -> tuple[float | None, bool]:
        """As `Coherence._admitted`: what to wait, 0.0 if the regime was changed; whether it is settled now.  Its transaction
        is one step, since nothing of it is seen before the commit."""
        world = self.world
        if self.met[0] != regime.number:
            self.met = (regime.number, world.now)
        file = self.opened(regime.mirror)
        able = entered(regime, self.mine, 0 if file is None else file.inode)
        if not able or regime.settled:
            known = file is not None
            if file is None:
                words = world.fresh()
                file = self.held = world.path = world.made(words, words)
                file.shared.add(self)
            only = known and regime.settled and self.is_only(file)
            follows = succeeding(regime, next(world.numbers), file.inode, only=only)
            if not (known and not follows.alone and not regime.alone):
                world.regime, world.writer = follows, None
                self.mine = follows.number if follows.alone else self.mine
                self.share()
                return 0.0, False
        if regime.settled:
            return None, False
        if not is_quiet(self.met[1], world.now) and world.mutation != "no waiting for leases":
            return self.met[1] + QUIET_SECONDS - world.now, False
        return None, True

    def changed(self, key: str, file: File | None, *, present: bool, settle: bool = False) -> Operation:
        """As a `_Change` around a commit."""
        world, late = self.world, self.world.mutation == "words after the commit"
        self.changing[key] += 1
        self.forget(key)
        yield
        word = next(world.numbers)
        if file is not None and not late:
            file.begun[key] = word
            yield
        if settle:
            world.regime = world.regime._replace(settled=True)
        self.commit(key, present=present)
        state = world.states[key]
        world.writer = None
        yield
        if file is not None and late:
            file.begun[key] = word
            yield
        if file is not None and file.begun[key] == word:
            yield
            file.done[key] = word
            yield
        self.changing[key] -= 1
        self.forget(key)
        yield
        world.floors[key] = max(world.floors[key], state)

    def commit(self, key: str, *, present: bool) -> None:
        """Seen by all at once."""
        self.world.states[key] = next(self.world.numbers)
        self.world.present[key] = present

    def forget(self, key: str) -> None:
        """Kill a cell."""
        self.changes[key] += 1
        self.cells.pop(key, None)

    # -- reading

    def read(self, key: str) -> Operation:
        """Answer from a cell if that may be, else from the database, and keep that if it may be kept."""
        world, floor = self.world, self.world.floors[key]
        state = self.cells.get(key)
        yield
        if state is not None:
            may = False
            now = world.now
            if now < self.until:
                may = True
            elif now < self.again and self.mirror is not None:
                words = dict(self.mirror.begun)
                yield
                may = words == self.words
            if not may:
                found: list[bool] = []
                yield from self.renewed(found.append)
                may = found[0]
            yield
            if may and self.cells.get(key) == state:  # not killed since
                world.hits += 1
                check(world, key, state, floor)
                return
        yield from self.filled(key, floor)

    def filled(self, key: str, floor: int) -> Operation:
        """As `Hot.stamp`, a read and `Hot.keep`."""
        world = self.world
        found: list[bool] = []
        yield from self.renewed(found.append)
        stamp = (self.era, self.changes[key])
        changing = self.changing[key] > 0
        yield
        yield from self.renewed(found.append)
        quiet = found[1] and not changing
        if quiet and not world.now < self.until:
            file = self.mirror
            begun, done = (file.begun[key], file.done[key]) if file is not None else (0, 0)
            middle = world.mutation == "cells filled in the middle of a write"
            quiet = begun != 0 and (begun == done or middle) and begun == self.words.get(key)
        yield
        state, present = world.states[key], world.present[key]
        yield
        if quiet and present and (stamp == (self.era, self.changes[key])):
            self.cells[key] = state
        check(world, key, state, floor)

    def renewed(self, answer: Callable[[bool], None]) -> Operation:
        """As `Coherence.renewed`; one thread at a time, the others do not wait."""
        if self.renewing:
            answer(False)
            return
        self.renewing = True
        instant = self.world.now
        if instant >= self.until and instant >= self.again:
            kept: list[bool] = []
            yield from self.lease(kept.append)
            if self.world.writer is None and not (kept[0] and self.mirror is None):
                self.tend()
                yield
                yield from self.lease(kept.append)
        may = instant < self.until
        if not may and instant < self.again and self.mirror is not None:
            words = dict(self.mirror.begun)
            yield
            for key in KEYS:
                if words[key] != self.words.get(key):
                    self.forget(key)
            yield
            self.words = words
            may = True
        self.renewing = False
        answer(may)

    def lease(self, answer: Callable[[bool], None]) -> Operation:
        """As `Coherence._lease`."""
        world, instant = self.world, self.world.now
        yield
        regime = world.regime
        yield
        if regime.number != self.kept:
            if world.mutation != "cells kept over a change of regime":
                self.let_go()
            yield
            file = None if regime.alone else self.opened(regime.mirror)
            if file is not None:
                words = dict(file.begun)
                yield
                self.words = words
                if world.regime != regime:
                    answer(False)
                    return
            if not entered(regime, self.mine, -1 if file is None else file.inode):
                answer(False)
                return
            self.mirror, self.kept = file, regime.number
        if world.mutation == "leases from the end of a renewal":
            yield
            instant = world.now
        if regime.alone:
            self.until = instant + LEASE_SECONDS
        else:
            self.again = instant + LEASE_SECONDS
        answer(True)

    def let_go(self) -> None:
        """No cells any more."""
        self.until = self.again = -inf
        self.kept, self.mirror = 0, None
        self.era += 1
        self.cells.clear()

    def tend(self) -> None:
        """As `Coherence._tend`; its transaction is one step."""
        world = self.world
        regime = world.regime
        if regime.alone and regime.number == self.mine:
            return
        wait, settle = self.admitted(regime)
        if wait is None and settle:
            world.regime = world.regime._replace(settled=True)
        if wait is None and regime.mirror and self.held is not None:
            for key in KEYS:
                if self.held.begun[key] != self.held.done[key] or not self.held.begun[key]:
                    self.held.begun[key] = self.held.done[key] = next(world.numbers)


def check(world: World, key: str, state: int, floor: int) -> None:
    """No older than what had been seen when the read began; from now on this has been seen."""
    world.floors[key] = max(world.floors[key], state)
    if state < floor:
        raise StaleError(f"state {state} of {key} after {floor} had been seen")


class Schedule:
    """Processes and what they are in the middle of."""

    def __init__(self, world: World, processes: int) -> None:
        self.world = world
        self.processes = [Process(world) for _ in range(processes)]
        self.pending: list[tuple[Process, Operation]] = []

    def begin(self, process: int, kind: str, key: str) -> None:
        """Have a process begin an operation."""
        owner = self.processes[process]
        operation = {
            "read": owner.read,
            "set": lambda key: owner.write(key, present=True),
            "delete": lambda key: owner.write(key, present=False),
            "quick set": owner.quick_write,
        }[kind](key)
        self.pending.append((owner, operation))

    def go_on(self, which: int, steps: int) -> None:
        """Take an operation some steps further."""
        place = which % len(self.pending)
        for _ in range(steps):
            try:
                next(self.pending[place][1])
            except StopIteration:
                del self.pending[place]
                return

    def kill(self, process: int) -> None:
        """End a process, and begin another one."""
        owner = self.processes[process]
        owner.die()
        self.pending = [each for each in self.pending if each[0] is not owner]
        self.processes[process] = Process(self.world)

    def any_step(self, chance: Random) -> None:
        """What may happen when nobody interferes."""
        drawn = chance.random()
        if drawn < 0.1:
            self.world.now += chance.choice([0.001, 0.001, 0.005, 0.02, 0.045, 0.05, 0.055, 0.1])
        elif len(self.pending) < 2 or (len(self.pending) < MOST_PENDING and drawn < 0.2):
            kind = chance.choice([*["set"] * 3, "delete", "quick set", *["read"] * 15])
            self.begin(chance.randrange(len(self.processes)), kind, chance.choice("xxxy"))
        else:
            self.go_on(chance.randrange(len(self.pending)), chance.choice([1, 1, 2, 3, 8, 20]))


TAMPERING = ("delete", "replace", "cut", "garbage")


def run_by_chance(mutation: str, seed: int, steps: int = 400) -> int:
    """Two or three processes, now and then a death or somebody at the mirror; how many hits there were.

    Raises:
        StaleError: an answer was.
    """
    chance = Random(seed)
    schedule = Schedule(World(mutation), chance.choice([2, 3]))
    trouble = chance.choice([0, 0, 0.002, 0.01])
    for _ in range(steps):
        if chance.random() < trouble:
            schedule.world.tamper(chance.choice(TAMPERING))
        elif chance.random() < trouble:
            schedule.kill(chance.randrange(len(schedule.processes)))
        else:
            schedule.any_step(chance)
    return schedule.world.hits
