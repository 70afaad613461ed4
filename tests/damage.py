"""Damaged stores, mutated envelopes, disks that end early: what the calls over them answer.

    python -m tests.damage                        every script once, as the tests run them
    python -m tests.damage --scale 100            a soak: a hundred times as many trials
    python -m tests.damage files --scale 10       one script: files, running, envelopes, quota
    python -m tests.damage --seed 7               other places

Prints one line a script and what was amiss, and exits with 1 if anything was.  Trials run in forked children with an alarm, so
that a crash or a hang of the interpreter is one more thing that a trial can end with.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from codomyrmex_cache import Cache, CacheManager, Entry, FileBasedBackend, cached
from codomyrmex_cache._folders import namespace_directory
from codomyrmex_cache.codecs import PICKLE
from codomyrmex_cache.errors import CacheCodecError, CacheConnectionError, EnvelopeError

ROOT = Path(__file__).parent.parent
SECRET = b"a secret for the tests of damage"
NAMESPACE = "damaged"
SOMEBODY = 65534
"""The uid of nobody in particular."""

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""The trials copy some 200 MB; nothing in them depends on a disk."""

TRIALS = {"flip": 300, "cut": 60, "zero": 60}
RUNNING_TRIALS = 60
MUTATIONS = 20_000
QUOTA_ROUNDS = 12

_ALARM_SECONDS = 60
"""For one child; it needs two or three."""

_TOGETHER = 20
"""Trials in one child: a fork costs more than a trial, and one that crashes takes no more than these with it."""

_LOOKED_AT_AGAIN = 0.3
"""Share of the stores that are opened once more when they have healed; it takes half of a trial's time."""

T = TypeVar("T")


@dataclass
class Custom:
    """Goes to the store as a pickle."""

    name: str
    numbers: list[int]


@functools.cache
def stored_value(key: str) -> Any:
    """What the store holds under the key before anything happens to it."""
    kind, _, number = key.partition(" ")
    i = int(number)
    return {
        "small": f"value {i}",
        "medium": [f"{i}.{line}: " + "m" * 90 for line in range(200)],
        "large": random.Random(i).randbytes(300_000),
        "nested": {"a": [i, (i, {"b": [None, 1.5, {i}]})], "n": {"x": {"y": [i] * 50}}},
        "custom": Custom(f"custom {i}", list(range(i, i + 100))),
        "called": {"called with": i},
    }[kind]


COUNTS = {"small": 9, "medium": 4, "large": 4, "nested": 4, "custom": 4, "called": 5}
KEYS = [f"{kind} {i}" for kind, count in COUNTS.items() for i in range(count)]


def recomputed(key: str, turn: int) -> Any:
    """What a load gives after the damage; of the same size as what was there."""
    return {"recomputed": key, "turn": turn, "value": stored_value(key)}


class Store:
    """A manager of its own over a folder, whose loads say which turn they belong to.

    `clock` is the one by which leases end.
    """

    def __init__(self, directory: Path | str, turn: int, *, clock: Callable[[], float] | None = None) -> None:
        self.manager = CacheManager(directory=directory, secret=SECRET)
        folder = namespace_directory(Path(directory), NAMESPACE)
        backend = "file_based" if clock is None else FileBasedBackend(folder, clock=clock)
        self.cache = self.manager.get_cache(NAMESPACE, backend=backend)
        self.turn = turn
        self._called = cached(NAMESPACE, manager=self.manager, name="called", version=1, tags=["all"])(_called)

    def load(self, key: str) -> Any:
        return recomputed(key, self.turn) if self.turn else stored_value(key)

    def answer(self, key: str) -> Any:
        kind, _, number = key.partition(" ")
        if kind == "called":
            _asked[:] = [self]
            return self._called(int(number))
        return self.cache.get_or_load(key, lambda: self.load(key))

    def answers(self) -> dict[str, Any]:
        return {key: self.answer(key) for key in KEYS}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()


def hasty() -> float:
    """A clock by which leases end a hundred times as soon: those that a failed load could not give back hold up nobody."""
    return 100 * time.time()


def an_hour_ago() -> float:
    """For stores that are to be old: damage may take a database back to where a lease was held."""
    return time.time() - 3600


_asked: list[Store] = []
"""Whose function is called; in a closure it would be a part of the key."""


def _called(i: int) -> Any:
    return _asked[0].load(f"called {i}")


# -- stores to damage


class Templates(NamedTuple):
    """One whose database is closed, and one copied while it was in use: there half of the entries lie in the WAL alone."""

    closed: Path
    in_use: Path


def templates(folder: Path) -> Templates:
    closed, in_use, working = folder / "closed", folder / "in use", folder / "working"
    with Store(closed, 0, clock=an_hour_ago) as store:
        store.answers()
    with Store(working, 0, clock=an_hour_ago) as store:
        for key in KEYS[::2]:
            store.answer(key)
    with Store(working, 0, clock=an_hour_ago) as store:
        store.answers()
        shutil.copytree(working, in_use)
    shutil.rmtree(working)
    assert next(in_use.glob("*/*-wal")).stat().st_size > 0
    return Templates(closed, in_use)


def files_of(directory: Path) -> list[Path]:
    """The regular files of the store, largest first."""
    return sorted((path for path in directory.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)


def target(directory: Path, chance: random.Random, *, mapped: bool = True) -> Path:
    """Some file of the store: the database and its log as often as all the others together."""
    files = [path for path in files_of(directory) if path.stat().st_size and (mapped or not path.name.endswith("-shm"))]
    central = [path for path in files if path.name.endswith(("sqlite3", "-wal"))]
    return chance.choice(central if chance.random() < 0.5 and central else files)


def damage(path: Path, how: str, chance: random.Random) -> str:
    """Damage the file in place; says what was done."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "flip":
            place, bit = chance.randrange(size), 1 << chance.randrange(8)
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ bit]))
            return f"bit {bit:#x} of byte {place} of {size} of {path.name}"
        if how == "cut":
            length = chance.choice([0, chance.randrange(size), size - 1, size // 4096 * 4096 // 2])
            file.truncate(length)
            return f"{path.name} cut from {size} to {length}"
        place = chance.randrange(size) // 512 * 512
        file.seek(place)
        file.write(bytes(min(512, size - place)))
        return f"{path.name} zeroed at {place} of {size}"


# -- trials


@dataclass
class Report:
    """What came of a number of trials."""

    name: str
    trials: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    amiss: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        self.trials += other.trials
        self.seen += other.seen
        self.amiss += other.amiss

    def __str__(self) -> str:
        trials = ", ".join(f"{count} {what}" for what, count in self.trials.items())
        seen = ", ".join(f"{count} {what}" for what, count in sorted(self.seen.items()))
        lines = [f"{self.name}: {trials}; {seen}; {len(self.amiss)} amiss; {self.seconds:.1f} s"]
        return "\n".join([*lines, *(f"    {line}" for line in self.amiss[:20])])


def in_child(work: Callable[[], T], seconds: int = _ALARM_SECONDS) -> T:
    """What `work` answers in a forked child.

    Raises:
        RuntimeError: the child ended in another way; the message says how.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            signal.alarm(seconds)
            with open(writing, "wb") as pipe:
                pickle.dump(_result(work), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        sent = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not sent:
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise RuntimeError(f"the child ended with {how}")
    value, error = pickle.loads(sent)
    if error is not None:
        raise RuntimeError(error)
    return value  # type: ignore[no-any-return]


def _result(work: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return work(), None
    except BaseException:
        return None, traceback.format_exc()


def _checked(said: str, answers: dict[str, Any], turns: Sequence[int], report: Report) -> None:
    for key, answer in answers.items():
        if answer != stored_value(key) and answer not in [recomputed(key, turn) for turn in turns]:
            report.amiss.append(f"{said}: WRONG VALUE of {key!r}: {answer!r:.120}")


def examine(directory: Path, said: str, chance: random.Random, report: Report) -> None:
    """Everything that a program may ask of a damaged store: right answers, no exception, and from the second turn on hits."""
    try:
        with Store(directory, 1) as store:
            for verb in chance.sample(_VERBS, len(_VERBS)):
                verb(store.cache)
            first = store.answers()
            _checked(said, first, [1], report)
            report.seen["kept"] += sum(first[key] == stored_value(key) for key in KEYS)
            report.seen["recomputed"] += sum(first[key] != stored_value(key) for key in KEYS)
            report.seen["errors counted"] += sum(store.cache.stats().errors.values())
            first = store.answers()  # what was read before the damage was found may not be among what was kept of it
            _checked(said, first, [1], report)
            store.turn = 2
            report.amiss += [f"{said}: {key!r} not healed" for key, answer in store.answers().items() if answer != first[key]]
        if chance.random() > _LOOKED_AT_AGAIN:
            return
        with Store(directory, 3) as store:
            third = store.answers()
            _checked(said, third, [1, 3], report)
            store.turn = 4
            again = store.answers()
            report.amiss += [f"{said}: {key!r} not healed in the next process" for key in KEYS if again[key] != third[key]]
            for verb in _VERBS:
                verb(store.cache)
    except Exception:
        report.amiss.append(f"{said}: EXCEPTION {traceback.format_exc()[-1500:]}")


def _many(cache: Cache) -> None:
    for key, answer in cache.get_many([key for key in KEYS if not key.startswith("called")]).items():
        if answer != stored_value(key) and answer.get("recomputed") != key:
            raise AssertionError(f"get_many gave {key!r} the wrong value {answer!r:.100}")


def _exact(cache: Cache) -> None:
    with contextlib.suppress(CacheConnectionError):  # as promised, when the backend fails just then
        _exactly(cache)


def _exactly(cache: Cache) -> None:
    before = cache.get("counter", 0)
    assert before in range(10), before
    assert cache.incr("counter") in (before + 1, 1)
    assert cache.add("small 0", "added") in (True, False)
    if cache.get("small 0") == "added":
        cache.delete("small 0")
    with cache.lock("door", wait=10) as lock:
        assert lock.token > 0


_VERBS: list[Callable[[Cache], object]] = [
    lambda cache: cache.keys(),
    len,
    lambda cache: cache.stats(),
    lambda cache: [cache.has(key) for key in KEYS[:5]],
    lambda cache: [cache.entry(key) for key in KEYS[:5]],
    lambda cache: cache.touch("nested 0"),
    lambda cache: cache.delete("small 1"),
    lambda cache: cache.set("large 3", stored_value("large 3")),
    _many,
    _exact,
]


def _trial(store: Path, folder: Path, how: str, seed: str, report: Report) -> None:
    chance, directory = random.Random(seed), folder / "trial"
    shutil.copytree(store, directory)
    said = f"[{seed}] {damage(target(directory, chance), how, chance)}"
    report.trials[how] += 1
    examine(directory, said, chance, report)
    shutil.rmtree(directory)


def _running_trial(store: Path, folder: Path, how: str, seed: str, report: Report) -> None:
    """The damage comes while the store is in use.  Not to what SQLite maps into memory: cutting that ends the process."""
    chance, directory = random.Random(seed), folder / "trial"
    shutil.copytree(store, directory)
    report.trials[how] += 1
    said = f"[{seed}] "
    try:
        with Store(directory, 1) as running:
            _checked(said, running.answers(), [1], report)
            said += damage(target(directory, chance, mapped=False), how, chance)
            assert running.cache.space.near is not None
            running.cache.space.near.forget_all()  # or memory would answer
            first = running.answers()
            _checked(said, first, [1], report)
            report.seen["kept"] += sum(first[key] == stored_value(key) for key in KEYS)
            report.seen["recomputed"] += sum(first[key] != stored_value(key) for key in KEYS)
            running.turn = 2
            second = running.answers()
            _checked(said, second, [1, 2], report)
            running.turn = 3
            report.amiss += [
                f"{said}: {key!r} not healed" for key, answer in running.answers().items() if answer != second[key]
            ]
            for verb in _VERBS:
                verb(running.cache)
    except Exception:
        report.amiss.append(f"{said}: EXCEPTION {traceback.format_exc()[-1500:]}")
    shutil.rmtree(directory)


Trial = Callable[[Path, Path, str, str, Report], None]


def _trials(name: str, trial: Trial, plan: Sequence[tuple[str, str]], folder: Path) -> Report:
    """Run the trials in children, a few in each."""
    report = Report(name)
    began = time.monotonic()
    stores = templates(folder)
    for start in range(0, len(plan), _TOGETHER):
        part = plan[start : start + _TOGETHER]

        def work(part: Sequence[tuple[str, str]] = part) -> Report:
            logging.disable()
            found = Report(name)
            for place, (how, seed) in enumerate(part):
                _note(folder, f"{how} [{seed}]")
                trial(stores[place % 2], folder, how, seed, found)
            return found

        try:
            report.add(in_child(work))
        except RuntimeError as error:
            report.amiss.append(f"{(folder / 'at').read_text()}: {error}")
            shutil.rmtree(folder / "trial", ignore_errors=True)
    report.seconds = time.monotonic() - began
    return report


def _note(folder: Path, text: str) -> None:
    (folder / "at").write_text(text)


def _plan(trials: dict[str, int], seed: int) -> list[tuple[str, str]]:
    return [(how, f"{seed} {how} {number}") for how, count in trials.items() for number in range(count)]


def damaged_files(folder: Path, scale: float, seed: int) -> Report:
    """Flips, cuts and zeroed blocks in any file of a store that nobody has open."""
    return _trials("files", _trial, _plan({how: int(count * scale) for how, count in TRIALS.items()}, seed), folder)


def damaged_while_running(folder: Path, scale: float, seed: int) -> Report:
    """The same under a program that has the store open."""
    each = int(RUNNING_TRIALS * scale / 3)
    return _trials("running", _running_trial, _plan(dict.fromkeys(TRIALS, each), seed), folder)


def examined_by_a_fresh_process(directory: Path, seed: str) -> Report:
    """The same examination in a new interpreter."""
    source = f"""
import logging, pickle, random, sys
from pathlib import Path
from tests import damage
logging.disable()
report = damage.Report("fresh")
damage.examine(Path({str(directory)!r}), {seed!r}, random.Random({seed!r}), report)
pickle.dump(report, sys.stdout.buffer)
"""
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, timeout=_ALARM_SECONDS)
    if done.returncode:
        return Report("fresh", amiss=[f"{seed}: ended with {done.returncode}: {done.stderr.decode()[-1500:]}"])
    return pickle.loads(done.stdout)  # type: ignore[no-any-return]


# -- envelopes in memory


def whole(value: Any) -> bytes:
    """A sealed value in one piece; a large one may come in several."""
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else bytes(value.join())


def mutated(sealed: bytes, other: bytes, chance: random.Random) -> bytes:
    """Bytes that nobody has sealed."""
    changed = bytearray(sealed)
    way = chance.randrange(9)
    if way <= 2:
        for _ in range(way + 1):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif way == 3:
        del changed[chance.randrange(len(changed)) :]
    elif way == 4:
        changed += chance.randbytes(chance.randrange(1, 100))
    elif way == 5:
        place = chance.randrange(len(changed))
        changed[place : place + 512] = bytes(len(changed[place : place + 512]))
    elif way == 6:
        place = chance.randrange(1, len(changed))
        changed = bytearray(sealed[:place] + other[place:])
    elif way == 7:  # lengths, times and flags of the head, as they might be at worst
        place = chance.randrange(4, 90)
        changed[place : place + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", chance.randbytes(4)])
    else:
        place = chance.randrange(len(changed))
        del changed[place : place + chance.randrange(1, 64)]
    return bytes(changed)


def mutated_envelopes(folder: Path, scale: float, seed: int) -> Report:
    """Mutations of sealed entries, with a secret and without: refused with the errors there are for that."""
    report = Report("envelopes")
    began = time.monotonic()
    chance = random.Random(seed)
    for secret in (SECRET, None):
        manager = CacheManager(secret=secret)
        cache = manager.get_cache("envelopes", backend="redis")  # never connected: only its payloads are of interest
        payloads, digest = cache.space.payloads, b"d" * 32
        values = [stored_value(key) for key in KEYS if secret or not key.startswith("custom")]
        weights = [1 if len(repr(value)) < 5000 else 0.02 for value in values]
        entries = [Entry(value, 1.0, 2.0, 3.0, 4.0, digest, (("x", b"12345678"),)) for value in values]
        sealed = [whole(payloads.pack(b"key", entry, copy=True).value) for entry in entries]
        kind, wanted, number = "signed" if secret else "unsigned", int(MUTATIONS * scale / 2), 0
        while report.trials[kind] < wanted:
            number += 1
            place, other = chance.choices(range(len(sealed)), weights, k=2)
            planted = mutated(sealed[place], sealed[other], chance)
            if planted in sealed:
                continue
            buffer = bytearray(planted) if number % 3 == 0 else planted
            report.trials[kind] += 1
            _refused(lambda: payloads.unpack(b"key", Entry(buffer), digest, copy=True), f"[{seed} {number}]", report)  # noqa: B023
        for place in range(len(sealed)):
            report.trials["misplaced"] += 3
            for key, wrong in ((b"kex", digest), (b"key", b"e" * 32), (b"ke", digest)):
                _refused(
                    lambda: payloads.unpack(key, Entry(sealed[place]), wrong, copy=True),  # noqa: B023
                    f"misplaced {place}", report,
                )  # fmt: skip
    report.seconds = time.monotonic() - began
    return report


def _refused(work: Callable[[], Entry], said: str, report: Report) -> None:
    try:
        found = work()
    except EnvelopeError as error:
        report.seen[error.kind] += 1
    except CacheCodecError:
        report.seen["undecodable"] += 1
    except BaseException as error:
        report.amiss.append(f"{said}: raised {error!r:.200}")
    else:
        report.amiss.append(f"{said}: gave the value {found.value!r:.120}")


# -- other users, and files that may not grow any further


@contextlib.contextmanager
def open_to_all(mode: int = 0o755) -> Iterator[Path]:
    """A folder that every user may enter; those that tests usually get are their user's alone, which would hide faults."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="codomyrmex-cache-tests-"))
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_somebody(work: Callable[[], T]) -> T:
    """What `work` answers in a child of another user, who is in no group."""

    def other() -> T:
        os.setgroups([])
        os.setgid(SOMEBODY)
        os.setuid(SOMEBODY)
        return work()

    return in_child(other)


def quotas(folder: Path, scale: float, seed: int) -> Report:
    """Files that may only grow to some length (RLIMIT_FSIZE), anywhere from nothing to enough; then they may grow again."""
    report = Report("quota")
    began = time.monotonic()
    for number in range(max(1, int(QUOTA_ROUNDS * scale))):
        chance = random.Random(f"{seed} quota {number}")
        limit = chance.choice([0, 1, 100, 4096, 30_000, 40_000, 100_000, 250_000, chance.randrange(2_000_000)])
        report.trials["rounds"] += 1
        directory = folder / "quota"

        def work(limit: int = limit, directory: Path = directory) -> Report:
            logging.disable()
            found = Report("quota")
            with Store(directory, 0, clock=hasty) as store:
                with quota(limit):
                    full_disk_calls(store, f"quota {limit}", found)
                after_the_full_disk(store, f"quota {limit}", found)
            return found

        try:
            report.add(in_child(work))
        except RuntimeError as error:
            report.amiss.append(f"quota {limit}: {error}")
        shutil.rmtree(directory, ignore_errors=True)
    report.seconds = time.monotonic() - began
    return report


@contextlib.contextmanager
def quota(limit: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes; what the kernel sends with the error is ignored (Python does)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def full_disk_calls(store: Store, said: str, report: Report) -> None:
    """A hundred and twenty calls of all sizes, four for each key; each has to answer."""
    try:
        for _ in range(4):
            for key, answer in store.answers().items():
                report.seen["answers"] += 1
                if answer != stored_value(key):
                    report.amiss.append(f"{said}: WRONG VALUE of {key!r}: {answer!r:.100}")
        store.cache.set("small 0", "set")
        found = store.cache.get("small 0")
        if found not in ("set", stored_value("small 0"), None):
            report.amiss.append(f"{said}: WRONG VALUE {found!r:.100}")
        store.cache.delete("small 0")
        store.cache.keys()
        store.cache.stats()
        report.seen["errors counted"] += sum(store.cache.stats().errors.values())
    except Exception:
        report.amiss.append(f"{said}: EXCEPTION {traceback.format_exc()[-1500:]}")


def after_the_full_disk(store: Store, said: str, report: Report) -> None:
    """Once there is space, each key is stored at the first call and found at the second."""
    try:
        store.cache.set("small 0", stored_value("small 0"))
        answers = store.answers()
        store.turn = 9
        for key, answer in store.answers().items():
            report.seen["answers after"] += 1
            if answers[key] != stored_value(key):
                report.amiss.append(f"{said}: WRONG VALUE of {key!r} afterwards: {answer!r:.100}")
            elif answer != answers[key]:
                report.amiss.append(f"{said}: {key!r} is not stored afterwards: {store.cache.stats().errors}")
    except Exception:
        report.amiss.append(f"{said}: EXCEPTION afterwards {traceback.format_exc()[-1500:]}")


# -- code that must never run


class Planted:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


def planted_pickles(marker: Path, storage_key: bytes) -> dict[str, bytes]:
    """What somebody without the secret could write in place of an entry."""
    raw = pickle.dumps(Planted(marker))
    stranger = CacheManager(secret=b"another secret altogether").get_cache("x", backend="redis").space.payloads
    nobody = CacheManager().get_cache("x", backend="redis").space.payloads
    signed = whole(stranger.pack(storage_key, Entry(Planted(marker)), copy=True).value)
    unsigned = bytearray(whole(nobody.pack(storage_key, Entry(b"x" * len(raw)), copy=True).value))
    unsigned[5] = PICKLE
    return {"raw": raw, "of another secret": signed, "unsigned": bytes(unsigned), "pickle after a head": signed[:140] + raw}


SCRIPTS: dict[str, Callable[[Path, float, int], Report]] = {
    "files": damaged_files,
    "running": damaged_while_running,
    "envelopes": mutated_envelopes,
    "quota": quotas,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.damage")
    parser.add_argument("scripts", nargs="*", choices=[*SCRIPTS, []], default=[], metavar="script")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    bad = 0
    for name in options.scripts or SCRIPTS:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            report = SCRIPTS[name](Path(folder), options.scale, options.seed)
        print(report, flush=True)
        bad += len(report.amiss)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
