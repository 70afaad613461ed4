"""Processes that die or fail in the middle of a write, and what the next process finds.

    python -m tests.crash --cycles 300                SIGKILL at a random moment, so many times
    python -m tests.crash --faults 900                a file-system call fails, or is the last; at most so many of them
    python -m tests.crash --cycles 300 --faults 900 --scale 30     a soak; --every takes all faults that there are

prints one report in JSON and exits with 1 if anything is amiss.  A process at work tells each call through a pipe before it
begins and after it has returned, so that its parent knows what the store may hold: the last version that was acknowledged,
or the one whose call was under way.  A call is acknowledged when it has returned and no error was counted meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from codomyrmex_cache import MISSING, CacheManager, cached
from tests.faults import KINDS, Fault, Faults

SECRET = b"a secret for the tests of crashes"
CHILD_SECONDS = 20.0
"""A child that lives longer is stuck, and ended by its own alarm; none needs a second."""

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""What a killed process has written does not depend on a disk, whose fsync would take most of the time here."""

SMALL, MEDIUM, LARGE = 100, 20_000, 150_000
INLINE = 128 * 1024
"""Payloads above this lie in files of their own."""

PLAIN = {"CACHEDIR.TAG", "entries.sqlite3", "entries.sqlite3-wal", "entries.sqlite3-shm", "mirror"}
SET_ASIDE = {"damaged.sqlite3", "damaged.sqlite3-wal"}
SIDE = "large"
TEMPORARY = re.compile(r"^\.|~$|tmp|temp|part|new", re.IGNORECASE)


_LIFE_SECONDS = 0.08
"""A writer is killed within so much time."""

Version = tuple[int, int]
"""Serial number of the write, and size: the whole value follows from these and the key."""

Changes = dict[str, Version | None]
Tell = Callable[[object], None]


class Step(NamedTuple):
    """One call on the cache; `changes` are the versions that it would leave under its keys."""

    verb: str
    changes: Changes


def value_of(key: str, serial: int, size: int) -> dict[str, Any]:
    """What `key` holds in this version; a torn or mixed one is not equal to it."""
    return {"key": key, "serial": serial, "size": size, "body": random.Random(f"{key} {serial}").randbytes(size)}


def version_of(key: str, value: Any) -> Version | str | None:
    """The version that the value says it is, "wrong" if it is not; `None` for no value."""
    if value is None:
        return None
    try:
        serial, size = value["serial"], value["size"]
        return (serial, size) if value == value_of(key, serial, size) else "wrong"
    except (TypeError, KeyError):
        return "wrong"


# -- a process at work


class Actor:
    """One process at work on the store, telling each call before it begins and after it has returned.

    Keys that begin with "f" are arguments of a decorated function, the others are keys of the cache.
    """

    def __init__(self, directory: Path, tell: Tell, durability: str = "kill", faults: Faults | None = None) -> None:
        self._tell = tell
        self._faults = faults
        self.manager = CacheManager(directory=directory, secret=SECRET)
        self.cache = self.manager.get_cache("crash", backend="file_based", durability=durability)
        self._offered: Changes = {}
        self._errors: Counter[str] = Counter()

        @cached("crash", manager=self.manager, name="answer", version=1, ignore=["load"])
        def answer(key: str, load: Any = self._load) -> Any:
            return load(key)

        self._answer = answer

    def do(self, step: Step, armed: bool = False) -> None:
        """Make the call, and tell."""
        self._offered = step.changes
        verb, before = getattr(self, f"_{step.verb}"), self._errors
        self._tell(["begin", step.verb, step.changes])
        with self._faults.armed() if armed and self._faults else nullcontext():
            answers = verb(step.changes)
        found = {key: version_of(key, answer) for key, answer in (answers or {}).items()}
        if step.verb != "close":  # the statistics count the entries, for which they would open the store again
            self._errors = self.errors()
        self._tell(["end", found, dict(self._errors - before)])

    def errors(self) -> Counter[str]:
        """Swallowed so far, by kind."""
        return Counter(dict(self.manager.stats("crash").errors))

    def _load(self, key: str) -> Any:
        return value_of(key, *self._offered[key])  # type: ignore[misc]

    def _set(self, changes: Changes) -> None:
        for key in changes:
            self.cache.set(key, self._load(key))

    def _set_many(self, changes: Changes) -> None:
        self.cache.set_many({key: self._load(key) for key in changes})

    def _delete(self, changes: Changes) -> None:
        for key in changes:
            self.cache.delete(key)

    def _clear(self, changes: Changes) -> None:
        self.cache.clear()

    def _get(self, changes: Changes) -> dict[str, Any]:
        return {key: self.cache.get(key) for key in changes}

    def _load_if_missing(self, changes: Changes) -> dict[str, Any]:
        return {key: self.cache.get_or_load(key, lambda key=key: self._load(key)) for key in changes}

    def _call(self, changes: Changes) -> dict[str, Any]:
        return {key: self._answer(key) for key in changes}

    def _peek(self, changes: Changes) -> dict[str, Any]:
        answers = {key: self._answer.peek(key) for key in changes}
        return {key: None if answer is MISSING else answer for key, answer in answers.items()}

    def _forget(self, changes: Changes) -> None:
        for key in changes:
            self._answer.invalidate(key)

    def _close(self, changes: Changes) -> None:
        self.manager.close()


READS, LOADS = ("get", "peek"), ("load_if_missing", "call")


class Child:
    """A forked process and what it has told so far."""

    def __init__(self, work: Callable[[Tell], None]) -> None:
        self.events: list[Any] = []
        self._rest = b""
        self.pipe, writable = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            _live(work, writable)
        os.close(writable)
        self.status: int | None = None

    def hear(self) -> bool:
        """Take what is there; whether more may come."""
        heard = os.read(self.pipe, 1 << 16)
        *lines, self._rest = (self._rest + heard).split(b"\n")  # a line that was not finished was not told
        self.events += map(json.loads, lines)
        return bool(heard)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            if self.status is None:
                os.kill(self.pid, signal.SIGKILL)

    def end(self) -> list[Any]:
        """All that it told; waits until it has ended."""
        try:
            while self.hear():
                pass
        finally:
            self.gone()
        return self.events

    def gone(self) -> None:
        """Wait, and leave nothing behind."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.pipe)


def import_at_once(root: Path) -> None:
    """Import what a process at work imports, so that each fork finds it here; nothing is opened in this process."""

    def work(tell: Tell) -> None:
        actor = Actor(root / "imports", tell)
        for step in (_set("s0", SMALL), Step("load_if_missing", {"l0": (1, SMALL)}), Step("call", {"f0": (1, SMALL)})):
            actor.do(step)
        tell(["modules", sorted(sys.modules)])

    modules = {event[0]: event[1] for event in Child(work).end()}["modules"]
    for name in modules:
        if name != "__main__":
            import_module(name)
    gc.freeze()  # else each child's collector would touch, and so copy, every page with an object on it


def _live(work: Callable[[Tell], None], writable: int) -> None:
    signal.setitimer(signal.ITIMER_REAL, CHILD_SECONDS)  # nobody handles SIGALRM, so it ends even a deadlocked process

    def tell(event: object) -> None:
        os.write(writable, json.dumps(event).encode() + b"\n")

    try:
        work(tell)
    except BaseException:  # told, whatever it is: this is what the tests look at
        tell(["exception", traceback.format_exc()])
    finally:
        os._exit(0)


# -- what the store may hold


class Ledger:
    """The versions that each key may hold by what was told, and all that is amiss."""

    def __init__(self, held: Changes | None = None) -> None:
        self.held: dict[str, set[Version | None]] = {key: {version} for key, version in (held or {}).items()}
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._under_way: Step | None = None

    def amiss(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.problems.append(f"{kind}: {what}")

    def allowed(self, key: str) -> set[Version | None]:
        return self.held.setdefault(key, {None})

    @property
    def under_way(self) -> bool:
        """Whether the process that told last had not returned from a call."""
        return self._under_way is not None

    def follow(self, events: Iterable[Any], settles: bool = False, may_fail: bool = False) -> None:
        """Take one process's events in.

        Args:
            events: from its start.
            settles: it came after all others have ended, so what it reads is what is there.
            may_fail: an error in a call is what the test is about, and means that nothing is known about it.
        """
        self._under_way = None
        for name, *rest in events:
            if name == "begin":
                self._begin(Step(rest[0], _versions(rest[1])))
            elif name == "end":
                self._end(_versions(rest[0]), rest[1], settles, may_fail)
            elif name == "exception":
                self.amiss("exception", rest[0])

    def _begin(self, step: Step) -> None:
        if step.verb == "clear":
            step = Step("clear", dict.fromkeys([*step.changes, *self.held]))
        self._under_way = step
        if step.verb not in (*READS, *LOADS):
            for key, version in step.changes.items():
                self.held[key] = self.allowed(key) | {version}

    def _end(self, found: dict[str, Any], errors: dict[str, int], settles: bool, may_fail: bool) -> None:
        assert self._under_way is not None
        verb, changes = self._under_way
        self._under_way = None
        if errors and not may_fail:
            self.amiss("error", f"{verb} {changes}: {errors}")
        for key, version in found.items():
            self._check(verb, key, version, changes[key], bool(errors))
        if verb in (*READS, "close"):
            self.held.update({key: {version} for key, version in found.items() if settles})
        elif errors:
            for key, version in changes.items():
                self.held[key] = self.allowed(key) | {version, None}
        else:
            self.held.update({key: {found.get(key, version)} for key, version in changes.items()})
            self.acknowledged += sum(version is not None for version in changes.values())

    def _check(self, verb: str, key: str, found: Any, offered: Version | None, failed: bool) -> None:
        allowed = self.allowed(key)
        missed = found == offered if verb in LOADS else found is None
        if found in allowed and found is not None:
            return
        if found is None and verb in LOADS:
            self.amiss("wrong", f"{verb} {key} answered nothing")
        elif missed and None not in allowed and not failed:
            self.amiss("lost", f"{verb} {key} found nothing instead of {allowed}")
        elif not missed:
            self.amiss("wrong", f"{verb} {key} found {found} instead of {allowed}")

    def loads_under_way(self) -> None:
        """A load that had not returned may have stored what it was to."""
        if self._under_way is not None and self._under_way.verb in LOADS:
            for key, version in self._under_way.changes.items():
                if None in self.allowed(key):
                    self.held[key].add(version)

    @property
    def large(self) -> int:
        """How many keys hold a value that lies in a file of its own."""
        return sum(any(version and version[1] > INLINE for version in versions) for versions in self.held.values())


def _versions(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(version) if isinstance(version, list) else version for key, version in changes.items()}


def strays(directory: Path, large: int, set_aside: bool = False) -> list[str]:
    """Files that have no business in the store, if so many entries lie in files of their own.

    Args:
        directory: of the store, or one above.
        large: how many.
        set_aside: a database that could not be read may have been set aside.
    """
    plain = PLAIN | SET_ASIDE if set_aside else PLAIN
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    side = [path for path in files if path.parent.name == SIDE]
    found = [str(path) for path in files if path not in side and path.name not in plain]
    found += [str(path) for path in side if TEMPORARY.search(path.name)]
    return found + ([f"{len(side)} files for {large} large entries"] if len(side) > large else [])


def verify(directory: Path, ledger: Ledger, serial: int, set_aside: bool = False) -> float:
    """Open the store in a fresh process, read all, write; answers the seconds until the first read had returned."""
    keys = sorted(ledger.held)
    # a call would wait for the lease of a load whose process was killed, for seconds
    steps = [Step("peek" if key.startswith("f") else "get", {key: None}) for key in keys]
    steps += [step for size in (SMALL, LARGE) for step in (_set("scratch", size, serial), Step("get", {"scratch": None}))]

    def work(tell: Tell) -> None:
        begun = time.perf_counter()
        actor = Actor(directory, tell)
        actor.cache.get("first")
        tell(["first read", time.perf_counter() - begun])
        for step in steps:
            actor.do(step)
        tell(["errors", dict(actor.errors())])
        if serial % 2:  # else the next process finds a write-ahead log
            actor.manager.close()

    child = Child(work)
    try:
        events = child.end()
    finally:
        child.kill()
        child.gone()
    if child.status:
        ledger.amiss("stuck", f"the process that opened the store ended with {child.status}")
    ledger.follow(events, settles=True)
    told = {event[0]: event[1] for event in events}
    if told.get("errors"):
        ledger.amiss("error", f"at reopening: {told['errors']}")
    for stray in strays(directory, ledger.large, set_aside):
        ledger.amiss("stray", stray)
    return float(told.get("first read", CHILD_SECONDS))


# -- killed at a random moment


@dataclass(frozen=True)
class Report:
    """What a run showed; `counts` are of what is amiss, `deaths` of processes killed."""

    runs: int = 0
    deaths: int = 0
    acknowledged: int = 0
    during_a_call: int = 0
    slowest_first_read: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    problems: Sequence[str] = ()
    by_call: Counter[str] = field(default_factory=Counter)

    def and_(self, other: Report) -> Report:
        """The two together."""
        summed = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Report(**{**summed, "slowest_first_read": max(self.slowest_first_read, other.slowest_first_read)})


LANES = (("a", "b"), ("c", "d"))
"""Two writers at a time, each with keys of its own; a letter stands for five keys and one argument."""


def lane_keys(letters: Iterable[str]) -> tuple[list[str], list[str]]:
    letters = list(letters)
    return [f"{letter}{number}" for letter in letters for number in range(5)], [f"f{letter}" for letter in letters]


def random_steps(rng: random.Random, letters: Sequence[str], serial: int, alone: bool) -> Iterable[Step]:
    """Calls without end."""
    keys, arguments = lane_keys(letters)
    verbs = ["set"] * 60 + ["set_many"] * 8 + ["delete"] * 10 + ["get"] * 8 + ["load_if_missing"] * 5 + ["call"] * 5
    verbs += ["forget"] * 3 + ["clear"] * alone
    while True:
        verb = rng.choice(verbs)
        chosen = arguments if verb in ("call", "forget") else keys
        chosen = keys + arguments if verb == "clear" else rng.sample(chosen, 3 if verb == "set_many" else 1)
        changes: Changes = dict.fromkeys(chosen)
        if verb in ("set", "set_many", *LOADS):
            for key in chosen:
                serial += 1
                changes[key] = (serial, rng.choice([SMALL] * 12 + [MEDIUM] * 5 + [2 * LARGE, 4 * LARGE, 6 * LARGE]))
        yield Step(verb, changes)


def kill_cycles(directory: Path, cycles: int, acknowledged: int, seed: int) -> Report:
    """Writers killed at random moments, and after each one or two a process that reads all.

    At least so many cycles, and on a slow machine up to four times as many, until so many writes were acknowledged.
    """
    rng, ledger, slowest, under_way, deaths, cycle = random.Random(seed), Ledger(), 0.0, 0, 0, 0
    while cycle < cycles or (ledger.acknowledged < acknowledged and cycle < 4 * cycles):
        alone = rng.random() < 0.25
        lanes = [sum(LANES, ())] if alone else list(LANES)
        writers: list[Child] = []
        try:
            for number, letters in enumerate(lanes):
                serial = 1 + (2 * cycle + number) * 10_000
                durability = "power" if rng.random() < 0.2 else "kill"
                writers.append(_writer(directory, rng.randrange(1 << 30), letters, serial, alone, durability))
            _kill_at_random(writers, rng)
        finally:
            for writer in writers:
                writer.kill()
                writer.end()
        for writer in writers:
            ledger.follow(writer.events)
            ledger.loads_under_way()
            under_way += ledger.under_way
            deaths += 1
            if writer.status != -signal.SIGKILL:
                ledger.amiss("stuck", f"a writer ended with {writer.status}")
        cycle += 1
        slowest = max(slowest, verify(directory, ledger, cycle))
    return Report(cycle, deaths, ledger.acknowledged, under_way, slowest, ledger.counts, tuple(ledger.problems))


def _writer(directory: Path, seed: int, letters: Sequence[str], serial: int, alone: bool, durability: str) -> Child:
    def work(tell: Tell) -> None:
        actor = Actor(directory, tell, durability)
        for step in random_steps(random.Random(seed), letters, serial, alone):
            actor.do(step)

    return Child(work)


def _kill_at_random(writers: Sequence[Child], rng: random.Random) -> None:
    """The random moment is the substance of the test: after so many events, and then anywhere in a call, or in opening.

    Of two writers, one may wait long for its turn; so none lives longer than `_LIFE_SECONDS`.
    """
    alive, begun = list(writers), time.monotonic()
    patience = {writer.pid: rng.randrange(80) for writer in writers}
    pause = {pid: rng.random() * (0.003 if events else 0.015) for pid, events in patience.items()}
    moments = {writer.pid: begun + rng.uniform(0.02, _LIFE_SECONDS) for writer in writers}
    while alive:
        now = time.monotonic()
        for writer in list(alive):
            if len(writer.events) >= patience[writer.pid]:
                moments[writer.pid] = min(moments[writer.pid], now + pause[writer.pid])
            if moments[writer.pid] <= now:
                writer.kill()
                alive.remove(writer)
        if alive:
            until = max(0.0, min(moments[writer.pid] for writer in alive) - now)
            ready = select.select([writer.pipe for writer in alive], [], [], until)[0]
            alive = [writer for writer in alive if writer.pipe not in ready or writer.hear()]


# -- one call fails


class Script(NamedTuple):
    """A store as it was left (a template), what the process does before, and where the fault is to happen."""

    template: str
    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    durability: str = "kill"


OLD: Changes = {
    "s0": (1, SMALL), "s1": (2, SMALL), "m0": (3, MEDIUM), "l0": (4, LARGE), "l1": (5, LARGE),
    "f0": (6, SMALL), "f1": (7, LARGE),
}  # fmt: skip


def _set(key: str, size: int, serial: int = 100) -> Step:
    return Step("set", {key: (serial, size)})


_READ = (Step("get", {"s0": None}),)
_CLEAR = Step("clear", dict.fromkeys(OLD))

SCRIPTS: dict[str, Script] = {
    "make the store": Script("new", (), (_set("s9", SMALL),)),
    "make the store with a large entry": Script("new", (), (_set("l9", LARGE),)),
    "open": Script("closed", (), (*_READ, _set("s0", SMALL))),
    "open after a crash": Script("crashed", (), (*_READ, _set("s0", SMALL))),
    "set small": Script("closed", _READ, (_set("s9", SMALL),)),
    "overwrite small": Script("closed", _READ, (_set("s0", SMALL),)),
    "set large": Script("closed", _READ, (_set("l9", LARGE),)),
    "overwrite large": Script("closed", _READ, (_set("l0", LARGE),)),
    "small over large": Script("closed", _READ, (_set("l0", SMALL),)),
    "large over small": Script("closed", _READ, (_set("s0", LARGE),)),
    "delete small": Script("closed", _READ, (Step("delete", {"s0": None}),)),
    "delete large": Script("closed", _READ, (Step("delete", {"l0": None}),)),
    "set many": Script(
        "closed", _READ, (Step("set_many", {"s0": (100, SMALL), "m9": (101, MEDIUM), "l0": (102, LARGE), "l9": (103, LARGE)}),)
    ),
    "load": Script("closed", _READ, (Step("load_if_missing", {"l9": (100, LARGE)}),)),
    "call": Script("closed", _READ, (Step("call", {"f9": (100, LARGE)}),)),
    "forget": Script("closed", _READ, (Step("forget", {"f1": None}),)),
    "read": Script("closed", _READ, (Step("get", {"l0": None}), Step("get", {"m0": None}))),
    "clear": Script("closed", _READ, (_CLEAR,)),
    "checkpoint": Script("long log", _READ, tuple(_set(f"m{number}", MEDIUM, 100 + number) for number in range(16))),
    "close": Script("long log", _READ, (Step("close", {}),)),
}
for _name in ("make the store with a large entry", "overwrite small", "overwrite large", "delete large", "set many", "clear"):
    SCRIPTS[f"{_name}, safe from power loss"] = SCRIPTS[_name]._replace(durability="power")

AFTERMATH = (
    Step("load_if_missing", {"l8": (200, LARGE)}), Step("get", {"l8": None}), Step("call", {"f8": (201, SMALL)}),
    _set("s8", SMALL, 202), Step("get", {"s8": None}), _set("l8", LARGE, 203), Step("get", {"l8": None}),
)  # fmt: skip
"""What the process that met a fault does then; unless the fault lasts, all of it has to succeed."""


def _log_is_long(folder: Path) -> bool:
    """Whether a few entries more would begin a checkpoint, which happens at 1,000 pages of 4,096 bytes."""
    return any(path.stat().st_size > 940 * 4120 for path in folder.rglob("entries.sqlite3-wal"))


class Templates:
    """Stores as processes left them, to be copied for each run."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.held: dict[str, Changes] = {"new": {}}
        (root / "new").mkdir()
        fill = [_set(key, size, serial) for key, (serial, size) in OLD.items() if key[0] != "f"]  # type: ignore[misc]
        fill += [Step("call", {key: OLD[key]}) for key in OLD if key[0] == "f"]
        self._make("closed", [*fill, Step("close", {})])
        self._make("long log", [*fill, *(_set(f"m{number % 20}", MEDIUM, 10 + number) for number in range(300))])
        self._make("crashed", [*fill, _set("l0", LARGE)], Fault("sqlite.commit", 1, "death"))

    def _make(self, name: str, steps: Sequence[Step], fault: Fault | None = None) -> None:
        folder = self._root / name
        folder.mkdir()

        def work(tell: Tell) -> None:
            faults = Faults(folder, fault)
            faults.install()
            actor = Actor(folder, tell, faults=faults)
            for step in steps[:-1]:
                if not _log_is_long(folder):
                    actor.do(step)
            actor.do(steps[-1], armed=True)

        child, ledger = Child(work), Ledger()
        ledger.follow(child.end())
        assert not ledger.problems, ledger.problems
        assert child.status == (-signal.SIGKILL if fault else 0)
        held = {key: min(versions, key=str) for key, versions in ledger.held.items()}
        self.held[name] = {**held, **({"l0": OLD["l0"]} if fault else {})}  # killed before its commit

    def copy(self, name: str, folder: Path) -> Ledger:
        """A copy to work on, and what it holds."""
        shutil.copytree(self._root / name, folder)
        return Ledger(self.held[name])


def run_script(templates: Templates, script: Script, folder: Path, fault: Fault | None) -> tuple[Ledger, dict[str, Any], int]:
    """A process that goes through the script and meets the fault; what the store may hold, what was told, how it ended."""
    ledger = templates.copy(script.template, folder)
    keys = sorted(key for key in {*ledger.held, *(key for step in script.steps for key in step.changes)} if key[0] != "f")

    def work(tell: Tell) -> None:
        faults = Faults(folder, fault)
        faults.install()
        actor = Actor(folder, tell, script.durability, faults)
        for step in script.before:
            actor.do(step)
        for step in script.steps:
            actor.do(step, armed=True)
        tell(["counts", faults.counts])
        tell(["happened", faults.happened])
        for key in keys if fault else ():
            actor.do(Step("get", {key: None}))
        before = actor.errors()
        for step in AFTERMATH if fault else ():
            if faults.lasts or actor.errors() == before:  # one failure is enough, and may take seconds
                actor.do(step)
        tell(["aftermath", {} if faults.lasts else dict(actor.errors() - before)])

    child = Child(work)
    try:
        child.end()
    finally:
        child.kill()
        child.gone()
    ledger.follow(child.events, may_fail=fault is not None)
    ledger.loads_under_way()
    return ledger, {event[0]: event[1] for event in child.events}, child.status or 0


def all_faults(templates: Templates, root: Path) -> list[tuple[str, Fault]]:
    """Each call that each script makes, by each kind of fault."""
    found = []
    for name, script in SCRIPTS.items():
        ledger, told, status = run_script(templates, script, root / "recording", None)
        assert not ledger.problems and not status, (name, ledger.problems, status)
        shutil.rmtree(root / "recording")
        counts = told["counts"]
        found += [
            (name, Fault(call, number, kind))
            for call in sorted(counts)
            for kind in KINDS[call]
            for number in range(1, counts[call] + 1)
        ]
    return found


def sample(faults: Sequence[tuple[str, Fault]], most: int) -> list[tuple[str, Fault]]:
    """At most so many: of each script, call and kind as many numbers, evenly spread, the first and the last among them."""
    groups: dict[tuple[str, str, str], list[tuple[str, Fault]]] = {}
    for name, fault in faults:
        groups.setdefault((name, fault.call, fault.kind), []).append((name, fault))
    each = 1
    while sum(min(len(group), each + 1) for group in groups.values()) <= most and each < len(faults):
        each += 1
    chosen = [pick for number, group in enumerate(groups.values()) for pick in _spread(group, each, number)]
    taken = set(chosen)
    left = [pick for pick in faults if pick not in taken] if len(chosen) < most else []
    return _spread(chosen, most, 0) + _spread(left, most - len(chosen), 0)


def _spread(items: Sequence[Any], number: int, turn: int) -> list[Any]:
    if number <= 0 or len(items) <= number:
        return list(items)[: max(0, number)]
    if number == 1:  # not always the first
        return [items[turn % len(items)]]
    return [items[index * (len(items) - 1) // (number - 1)] for index in range(number)]


def fault_runs(templates: Templates, faults: Sequence[tuple[str, Fault]], root: Path) -> Report:
    """Each fault in a process of its own, and after it a process that reads all."""
    report = Report()
    for number, (name, fault) in enumerate(faults):
        folder = root / f"run{number}"
        ledger, told, status = run_script(templates, SCRIPTS[name], folder, fault)
        happened = told.get("happened", status == -signal.SIGKILL)
        if status and not (status == -signal.SIGKILL and fault.kind.startswith("death")):
            ledger.amiss("stuck", f"ended with {status}")
        if told.get("aftermath"):
            ledger.amiss("not healed", f"{told['aftermath']}")
        # SQLite takes a page that cannot be read for a damaged one, and so do we
        slowest = verify(folder, ledger, 300 + number, set_aside="read" in fault.call)
        shutil.rmtree(folder)
        problems = tuple(f"[{name}: {fault.kind} at {fault.call} {fault.number}] {what}" for what in ledger.problems)
        calls = Counter({f"{fault.call} {fault.kind}" if happened else "never happened": 1})
        report = report.and_(
            Report(
                1, int(status == -signal.SIGKILL), ledger.acknowledged, bool(happened), slowest, ledger.counts, problems, calls
            )
        )
    return report


# -- several at once


def in_lanes(lanes: int, work: Callable[[int], Report]) -> Report:
    """`work(lane)` in a process for each lane, all at once; the reports together."""
    total, running = Report(), []
    for lane in range(lanes):
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            _report(work, lane, writable)
        os.close(writable)
        running.append((pid, readable))
    try:
        for _, readable in running:
            with open(readable, "rb") as pipe:
                told = json.loads(pipe.read() or b"null")
            if told is None:
                raise RuntimeError("a lane ended without a report")
            told["counts"], told["by_call"] = Counter(told["counts"]), Counter(told["by_call"])
            total = total.and_(Report(**{**told, "problems": tuple(told["problems"])}))
    finally:
        for pid, _ in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return total


def _report(work: Callable[[int], Report], lane: int, writable: int) -> None:
    status = 1
    try:
        with open(writable, "wb") as pipe:
            pipe.write(json.dumps(vars(work(lane))).encode())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run_kills(cycles: int, acknowledged: int, seed: int, lanes: int, root: Path) -> Report:
    def work(lane: int) -> Report:
        return kill_cycles(root / f"kills{lane}", -(-cycles // lanes), -(-acknowledged // lanes), seed * 1000 + lane)

    return in_lanes(lanes, work)


def run_faults(most: int | None, layer: str, lanes: int, root: Path) -> tuple[Report, int]:
    """And how many faults there are."""
    folder = root / f"faults{layer}"
    (folder / "templates").mkdir(parents=True)
    templates = Templates(folder / "templates")
    every = [(name, fault) for name, fault in all_faults(templates, folder) if fault.call.startswith(layer)]
    chosen = every if most is None else sample(every, most)
    for lane in range(lanes):
        (folder / str(lane)).mkdir()
    return in_lanes(lanes, lambda lane: fault_runs(templates, chosen[lane::lanes], folder / str(lane))), len(every)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=0, help="of writers killed at a random moment")
    parser.add_argument("--acknowledged", type=int, default=0, help="go on until so many writes were acknowledged")
    parser.add_argument("--faults", type=int, default=0, help="the most faults to let happen")
    parser.add_argument("--every", action="store_true", help="let every fault happen that there is")
    parser.add_argument("--layer", default="", help="only faults of calls that begin so: os., sqlite.")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies cycles and faults")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--lanes", type=int, default=2, help="stores at work at the same time")
    parser.add_argument("--show", type=int, default=20, help="problems to print")
    parser.add_argument("--directory", default=MEMORY, help="where the stores go")
    chosen = parser.parse_args(arguments)
    root, begun = Path(tempfile.mkdtemp(prefix="crash-", dir=chosen.directory)), time.perf_counter()
    told: dict[str, Any] = {}
    logging.disable()  # what a backend fails to do is counted
    try:
        import_at_once(root)
        cycles, acknowledged = (int(number * chosen.scale) for number in (chosen.cycles, chosen.acknowledged))
        report = run_kills(cycles, acknowledged, chosen.seed, chosen.lanes, root)
        if chosen.faults or chosen.every:
            most = None if chosen.every else int(chosen.faults * chosen.scale)
            of_faults, told["faults_there_are"] = run_faults(most, chosen.layer, chosen.lanes, root)
            report = report.and_(of_faults)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    told.update(vars(report), seconds=round(time.perf_counter() - begun, 1), problems=report.problems[: chosen.show])
    print(json.dumps(told, indent=1))
    return int(bool(report.counts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
