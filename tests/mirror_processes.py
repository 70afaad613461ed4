"""Processes that write, read, fork, are stopped and killed over one file-based namespace, while somebody is at its mirror.

    python -m tests.mirror_processes [--seconds N] [--seed N]

Each key has one writer, which first says in `source` what the function is to give from now on, a number that grows, and
then has the entry of before removed or replaced. When that has returned, it says so in `floors`. A reader looks there
first and calls then: what it is answered must not be below. Both files are read and written in eight bytes at once, and
belong to nobody else.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from codomyrmex_cache import MISSING, Cache, CacheManager, cached
from codomyrmex_cache.backends._mirror import Mirror

WRITERS = READERS = 4
KEYS = 8
"""Of the function, and as many of the direct API."""

_SLOT = 8
_SECRET = b"only for this test, nobody keeps it"
_CALLS = 20
"""Of one key in a row: the first ones fill its cell."""

READ, HOT, FORKED = range(2 * KEYS, 2 * KEYS + 3)
"""Slots of `floors` after those of the keys: how many reads there were, how many of them could be hot, how many forks."""


class Numbers:
    """A file of numbers."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __getitem__(self, place: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, _SLOT, place * _SLOT), "little")

    def __setitem__(self, place: int, number: int) -> None:
        os.pwrite(self._descriptor, number.to_bytes(_SLOT, "little"), place * _SLOT)


_sources: list[Numbers] = []


def given(key: int) -> int:
    """The function; what it closes over would be part of its keys."""
    return _sources[0][key]


class Program:
    """What writers and readers have in common."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self.source, self.floors = Numbers(folder / "source"), Numbers(folder / "floors")
        _sources[:] = [self.source]
        manager = CacheManager(directory=folder / "cache", secret=_SECRET)

        self.given: Any = cached("shared", backend="file_based", manager=manager, version=1, wait=10)(given)
        self.cache: Cache = manager.get_cache("shared")

    def write(self, place: int) -> None:
        """Change what is to be answered, and say when all must know."""
        key, chance = place % KEYS, self.chance
        number = self.source[place] + 1
        self.source[place] = number
        ways: list[Callable[[], object]]
        if place < KEYS:
            ways = [
                lambda: self.refresh(key), lambda: self.refresh(key), lambda: self.given.invalidate(key),
                lambda: self.cache.delete(self.given.key(key)), self.given.clear if chance.random() < 0.2 else self.cache.clear,
            ]  # fmt: skip
        else:
            ways = [
                lambda: self.cache.set(f"{key}", number), lambda: self.cache.set(f"{key}", number, ttl=60),
                lambda: self.cache.set_many({f"{key}": number}), lambda: self.cache.delete(f"{key}"),
            ]  # fmt: skip
        errors = sum(self.cache.stats().errors.values()) + sum(self.given.stats().errors.values())
        chance.choice(ways)()
        if sum(self.cache.stats().errors.values()) + sum(self.given.stats().errors.values()) == errors:
            self.floors[place] = number

    def refresh(self, key: int) -> None:
        """A `clear` that another process is in the middle of, and may be stopped in, keeps it from storing what it has loaded:
        the old entry is to be removed, and is still there."""
        given = self.given.refresh(key)
        near = self.cache.space.near
        assert near is not None
        near.forget_all()  # so that it is the database that says
        stored = self.given.peek(key)
        if stored is not MISSING and stored < given:
            self.given.invalidate(key)

    def write_on(self, mine: int) -> None:
        """Until killed."""
        places = range(mine, 2 * KEYS, WRITERS)
        while True:
            self.write(self.chance.choice(places))
            time.sleep(self.chance.choice([0, 0.001, 0.01, 0.05]))

    def read(self, place: int) -> None:
        """Ask, and note an answer that is too old."""
        near = self.cache.space.near
        assert near is not None
        key, hot = place % KEYS, 0
        for _ in range(_CALLS):
            floor = self.floors[place]
            if place < KEYS:
                found = self.given(key)
                hot += near.now() != float("inf") and near.cell(self.cache.space.stored(self.given.key(key))) is not None
            else:
                entry = self.cache.entry(f"{key}")
                found = None if entry is None else entry.value
            if found is not None and found < floor:
                with (self.folder / "stale").open("a") as file:
                    file.write(f"{os.getpid()} was given {found} for {place}, {floor} had been written\n")
        self.floors[READ] += _CALLS  # not exact, among several
        self.floors[HOT] += hot

    def read_on(self) -> None:
        """Until killed, sometimes in a child."""
        while True:
            if self.chance.random() < 0.005:
                self.floors[FORKED] += 1
                child = os.fork()
                if child == 0:
                    for _ in range(20):
                        self.read(self.chance.randrange(2 * KEYS))
                    os._exit(0)
                for _ in range(5):
                    self.read(self.chance.randrange(2 * KEYS))
                os.waitpid(child, 0)
            self.read(self.chance.randrange(2 * KEYS))


def tamper(mirror: Path, how: str, chance: random.Random) -> None:
    """What somebody may do to the file."""
    with suppress(OSError):
        if how == "delete":
            shutil.rmtree(mirror) if mirror.is_dir() else mirror.unlink()
        elif how == "cut":
            os.truncate(mirror, chance.randrange(1100))
        elif how == "replace":
            copy = mirror.with_name("copy")
            copy.write_bytes(mirror.read_bytes())
            copy.replace(mirror)
        elif how == "garbage":
            with mirror.open("r+b") as file:
                file.seek(chance.randrange(1024))
                file.write(chance.randbytes(chance.randrange(1, 1024)))
        elif how == "directory":
            mirror.unlink()
            mirror.mkdir()


TAMPERING = ("delete", "cut", "replace", "garbage", "directory", "delete")


class Crowd:
    """The processes, and what happens to them.

    Args:
        folder: where they work.
        seed: of what happens.
        broken: a rule that the writers do not keep to.
    """

    def __init__(self, folder: Path, seed: int, broken: str = "") -> None:
        self.folder, self.chance, self.broken = folder, random.Random(seed), broken
        self.happened: Counter[str] = Counter()
        self.roles = [f"write {number}" for number in range(WRITERS)] + ["read"] * READERS
        self.processes = [self._started(role) for role in self.roles]
        self.stopped: set[int] = set()

    def _started(self, role: str) -> subprocess.Popen[bytes]:
        seed = str(self.chance.random())
        return subprocess.Popen(
            [sys.executable, "-m", "tests.mirror_processes", "--folder", str(self.folder), "--role", role, "--seed", seed,
             "--broken", self.broken],
        )  # fmt: skip

    def step(self, *, troubles: bool) -> None:
        """Something happens to somebody."""
        place, kind = self.chance.randrange(len(self.processes)), self.chance.random()
        process = self.processes[place]
        assert process.poll() is None, f"{self.roles[place]} has ended by itself ({process.returncode})"
        if place in self.stopped:
            process.send_signal(signal.SIGCONT)
            self.stopped.discard(place)
        elif troubles and kind < 0.15:
            process.kill()
            process.wait()
            self.processes[place] = self._started(self.roles[place])
            self.happened["killed"] += 1
        elif troubles and kind < 0.5:
            process.send_signal(signal.SIGSTOP)
            self.stopped.add(place)
            self.happened["stopped"] += 1
        elif troubles and kind < 0.7:
            how = self.chance.choice(TAMPERING)
            for mirror in (self.folder / "cache").glob("*/mirror"):
                tamper(mirror, how, self.chance)
                self.happened[how] += 1

    def end(self) -> None:
        for process in self.processes:
            process.kill()  # also one that is stopped
            process.wait()


def run(folder: Path, seconds: float, seed: int, *, troubles: bool = True, broken: str = "") -> tuple[list[str], Counter[str]]:
    """The answers that were stale, at which it ends, and what happened."""
    crowd = Crowd(folder, seed, broken)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (folder / "stale").exists():
            time.sleep(crowd.chance.choice([0.01, 0.05, 0.15]))
            crowd.step(troubles=troubles)
    finally:
        crowd.end()
    floors = Numbers(folder / "floors")
    crowd.happened.update(reads=floors[READ], hot=floors[HOT], forks=floors[FORKED])
    crowd.happened.update(writes=sum(floors[place] for place in range(2 * KEYS)))
    stale = folder / "stale"
    return stale.read_text().splitlines() if stale.exists() else [], crowd.happened


def _work(role: str, folder: Path, seed: str, broken: str) -> None:
    program = Program(folder, seed)
    if broken == "off":
        from codomyrmex_cache.backends import _coherence

        _coherence.can_mirror = lambda: False
    if broken == "words":
        Mirror.begin = lambda self, shards: {}  # type: ignore[method-assign]
    if role == "read":
        program.read_on()
    program.write_on(int(role.split()[1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default=str(random.randrange(2**32)))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--broken", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        _work(arguments.role, arguments.folder, arguments.seed, arguments.broken)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        stale, happened = run(Path(folder), arguments.seconds, int(arguments.seed), broken=arguments.broken)
    print(f"seed {arguments.seed}: {dict(happened)}, {len(stale)} stale", *stale[:10], sep="\n")
    sys.exit(bool(stale))


if __name__ == "__main__":
    main()
