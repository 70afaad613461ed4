"""What caches in files cost: hits and the direct interface, the first hit of a process, and several processes at once."""

from __future__ import annotations

import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import numpy

from benchmarks import functions
from benchmarks.children import run
from benchmarks.memory import Sizes
from benchmarks.peers import Peer
from benchmarks.plain import PlainFiles, Table, plain_files
from benchmarks.tables import Family, Row, Step
from benchmarks.timed import DAY, answers, awaited, check, event_loop, timed

PLAIN, SELECT, NOTHING = "plain file", "SELECT + pickle", "nothing"
DECORATED = "by way of the decorator"


@contextmanager
def folders() -> Iterator[Callable[[], str]]:
    """Makes folders, and removes them at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        yield lambda: tempfile.mkdtemp(dir=root)


def fill(store: Any, entries: int) -> None:
    """100 bytes of text under each of so many keys."""
    if hasattr(store, "set_many") and not awaits(store):
        for start in range(0, entries, 10_000):
            store.set_many({f"key:{number}": f"{number:0100d}" for number in range(start, min(entries, start + 10_000))})
        return
    for number in range(entries):
        set_now(store, f"key:{number}", f"{number:0100d}")


def awaits(store: Any) -> bool:
    return awaited(store.get, "").startswith("await")


def set_now(store: Any, name: str, value: object) -> None:
    result = store.set(name, value)
    if hasattr(result, "__await__"):
        event_loop().run_until_complete(result)


def get(store: Any, value: object) -> Step:
    """Reads of one value."""
    set_now(store, "key", value)
    return timed(awaited(store.get, "store.get('key')"), {"store": store}, value, clock=DAY)


def get_settled(store: Any, value: object, seconds: float) -> Step:
    """The same when the file is so old that it need not be verified at each read; all but the first of a process."""
    set_now(store, "key", value)
    time.sleep(seconds)
    return timed(awaited(store.get, "store.get('key')"), {"store": store}, value, clock=DAY)


def first_get(make: Callable[[str], Any], folder: str, value: object) -> Step:
    """The first read by a store that was just opened, as in a new process: there everything is verified."""
    set_now(make(folder), "key", value)

    def step() -> float:
        store = make(folder)
        statement = awaited(store.get, "store.get('key')")
        before = DAY()
        (found,) = answers(statement, {"store": store}, 1)
        taken = DAY() - before
        check(found, value)
        return taken

    step()
    return step


def put(store: Any, value: object) -> Step:
    """Overwrites of one value, which must be there afterwards."""
    scope = {"store": store, "value": value}
    set_now(store, "key", value)
    check(answers(awaited(store.get, "store.get('key')"), scope, 1)[0], value)
    return timed(awaited(store.set, "store.set('key', value)"), scope, clock=DAY)


def among(store: Any, entries: int) -> Step:
    """Reads of scattered keys among so many."""
    fill(store, entries)
    numbers, keys = count(), [f"key:{number * 7919 % entries}" for number in range(1000)]
    scope = {"store": store, "keys": keys, "numbers": numbers}
    statement = awaited(store.get, "store.get(keys[next(numbers) % 1000])")
    for number, found in enumerate(answers(statement, scope, 1000)):
        check(found, f"{number * 7919 % entries:0100d}")
    return timed(statement, scope, clock=DAY)


def decorated(decorate: Callable[..., Any], folder: str) -> Step:
    """A hit of a decorated function."""
    function = decorate(functions.hundred, folder)
    name, other = function.__name__, (awaited(function, "f(2)"), f"{2:0100d}")
    return timed(awaited(function, "f(1)"), {"f": function}, f"{1:0100d}", name, other, clock=DAY)


def decorated_task(decorate: Callable[..., Any], folder: str) -> Step:
    """The same for cashews, which decorates coroutine functions."""
    scope = {"f": decorate(functions.task_hundred, folder)}
    return timed("await f(1)", scope, f"{1:0100d}", "task_hundred", ("await f(2)", f"{2:0100d}"), clock=DAY)


def stores(peers: list[Peer], new: Callable[[], str], method: str = "store") -> Iterator[tuple[str, Callable[[], Any], str]]:
    """Name, what makes a store, and a note; a primitive first, since tables begin with it."""
    if method == "store":
        yield PLAIN, lambda: PlainFiles(new()), "primitive"
        yield SELECT, lambda: Table(new()), "primitive"
    for peer in peers:
        if make := getattr(peer, method, None):
            yield peer.name, lambda make=make: make(new()), DECORATED if peer.name in ("joblib", "cachier") else ""


def files(peers: list[Peer], sizes: Sizes, new: Callable[[], str], long: bool) -> Family:
    """Texts and bytes, in one process."""
    family = Family("files", "hits, and the direct interface, by the clock on the wall")
    row = family.row("decorated hit of 100 B", unit="us", baseline=PLAIN)
    row.add(PLAIN, lambda: decorated(plain_files, new()), primitive=True)
    for peer in peers:
        if decorate := getattr(peer, "files", None):
            row.add(peer.name, lambda: (decorated_task if peer.name == "cashews" else decorated)(decorate, new()))
    for size, value in {"100 B": "x" * 100, "10 KB": "x" * 10_240, "1 MB": os.urandom(2**20)}.items():
        add_stores(family.row(f"get of {size}", unit="us", baseline=PLAIN), stores(peers, new), partial(get, value=value))
        add_stores(family.row(f"set of {size}", unit="us", baseline=PLAIN), stores(peers, new), partial(put, value=value))
    for entries in (sizes.stored, 200_000)[: 1 + long]:
        row = family.row(f"get among {entries:,} of 100 B", unit="us", baseline=PLAIN)
        add_stores(row, stores(peers, new), partial(among, entries=entries))
    return family


def arrays(peers: list[Peer], sizes: Sizes, new: Callable[[], str], long: bool) -> Family:
    """A large array; apart from the rest, which would wait for the disk to take it.

    This package verifies a file at the first read of a process and when it has changed, so reads are rows of their own: the
    first, and those that follow it.
    """
    family = Family(
        "arrays", "a numpy array of floats by the direct interface, by the clock on the wall; a get follows a first one"
    )
    value = numpy.random.default_rng(1).standard_normal(sizes.megabytes * 2**20 // 8)
    options: dict[str, Any] = {"unit": "ms", "baseline": PLAIN, "rounds": 5}
    again = partial(get_settled, value=value, seconds=sizes.settled)
    add_stores(family.row(f"get of {sizes.megabytes} MB array", **options), stores(peers, new), again)
    add_first(family.row(f"first get of {sizes.megabytes} MB array", **options), peers, new, "store", value)
    add_stores(family.row(f"set of {sizes.megabytes} MB array", **options), stores(peers, new), partial(put, value=value))
    row = family.row(f"get of {sizes.megabytes} MB array, mapped", **options)
    row.add(PLAIN, lambda: get(PlainFiles(new()), value), "not mapped", primitive=True)
    add_stores(row, stores(peers, new, "mapped_store"), again)
    add_first(family.row(f"first get of {sizes.megabytes} MB array, mapped", **options), peers, new, "mapped_store", value)
    return family


def add_first(row: Row, peers: list[Peer], new: Callable[[], str], method: str, value: object) -> None:
    """A cell for each package's first read."""
    row.add(PLAIN, lambda: first_get(PlainFiles, new(), value), "not mapped" * (method != "store"), primitive=True)
    for peer in peers:
        if make := getattr(peer, method, None):
            row.add(peer.name, lambda: first_get(make, new(), value), DECORATED if peer.name in ("joblib", "cachier") else "")


def add_stores(row: Row, made: Iterator[tuple[str, Callable[[], Any], str]], prepare: Callable[[Any], Step]) -> None:
    """A cell for each store."""
    for name, make, note in made:
        is_primitive = note == "primitive"
        row.add(name, lambda: prepare(make()), "" if is_primitive else note, is_primitive)


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def first_hit(name: str, folder: str) -> Step:
    """Milliseconds of the processor until the first hit of a process is there."""
    run("warm", name, folder, seconds=60)  # by a child, so that where the function is found is the same

    def step() -> float:
        costs = []
        for which in random.sample([name, NOTHING], 2):
            before = children_seconds()
            run("first", which, folder, seconds=60)
            costs.append((which == name, children_seconds() - before))
        return (dict(costs)[True] - dict(costs)[False]) * 1000

    return step


def fresh(peers: list[Peer], sizes: Sizes, new: Callable[[], str], long: bool) -> Family:
    """Commands that run for a moment."""
    family = Family("fresh", "the first hit of a fresh process, with imports, in ms of the processor beyond a bare interpreter")
    row = family.row("first hit of 100 B", unit="ms of CPU", baseline=PLAIN)
    row.add(PLAIN, lambda: first_hit(PLAIN, new()), primitive=True)
    for peer in peers:
        if hasattr(peer, "files"):
            row.add(peer.name, lambda: first_hit(peer.name, new()))
    return family


class Sharing:
    """So many processes on one folder: operations per second, and then how many entries were lost."""

    turns = count(1)  # each run has new entries of its own

    def __init__(self, name: str, processes: int, folder: str, seconds: float) -> None:
        self._work = (name, folder, seconds, processes)
        self._lost: int | None = None

    def operations(self) -> float:
        self._lost = None
        name, folder, seconds, processes = self._work
        lines = run("share", name, folder, seconds, next(self.turns), processes, seconds=60)
        self._lost = sum(map(int, lines[1::2]))
        return sum(map(float, lines[::2]))

    def lost(self) -> float:
        """Entries that the processes of the run before had to compute again."""
        if self._lost is None:
            raise RuntimeError("the run failed")
        return self._lost


def processes(peers: list[Peer], sizes: Sizes, new: Callable[[], str], long: bool) -> Family:
    """Several on one folder."""
    family = Family("processes", "90 % hits, 10 % new entries of 100 B: operations per second of all, by the clock on the wall")
    names = [(PLAIN, True), *((peer.name, False) for peer in peers if hasattr(peer, "files"))]
    rows = [
        (
            number,
            family.row(f"{number} process{'es' * (number > 1)}", unit="ops/s", baseline=PLAIN, more_is_better=True, rounds=3),
            family.row(f"{number} process{'es' * (number > 1)}: lost entries", unit="", is_count=True, is_told=True, rounds=3),
        )
        for number in sizes.processes
    ]
    for name, is_primitive in names:
        add_sharing(rows, name, is_primitive, new(), sizes)
    return family


def add_sharing(rows: list[tuple[int, Row, Row]], name: str, is_primitive: bool, folder: str, sizes: Sizes) -> None:
    """A cell in each row, all on one folder; what is lost is told by the cell that ran before."""
    try:
        run("warm", name, folder, 1_000, seconds=60)
    except Exception as error:
        for _, rate, lost in rows:
            rate.failed(name, error)
            lost.failed(name, error)
        return
    for number, rate, lost in rows:
        sharing = Sharing(name, number, folder, sizes.seconds * 4)
        rate.add(name, lambda: sharing.operations, primitive=is_primitive)
        lost.add(name, lambda: sharing.lost, primitive=is_primitive)
