"""What a file-based namespace costs, as a ratio to the least that could do the same, in the same round.

    python -m benchmarks.files [--rounds N] [--folder DIRECTORY]

- get and set of 100 bytes of text: against a prepared SELECT and `pickle.loads`, and against an upsert of `pickle.dumps`, on a
  table of key and value in the same journal mode.  Keys vary; nothing is kept in front of the database.
- set of 1 MB: against writing the same bytes under a temporary name and renaming the file.
- get among 200,000 entries: against get among 10,000.

Wall seconds, the sides of each ratio in turn within a round.  Printed are the medians, with the quartiles of the ratios.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from itertools import count
from statistics import median, quantiles

from codomyrmex_cache import Cache, CacheManager

SMALL, LARGE = 10_000, 200_000
SECRET = b"only for this benchmark"
MEGABYTE = 2**20

Step = Callable[[int], object]
"""One operation; gets a number that is another each time."""


def key(number: int) -> str:
    """One of the keys of the smaller set, scattered."""
    return f"key:{number * 7919 % SMALL}"


def namespace(folder: str, name: str, entries: int) -> Cache:
    """A namespace with so many entries of 100 bytes."""
    manager = CacheManager(directory=folder, secret=SECRET)
    cache = manager.get_cache(name, backend="file_based")
    for start in range(0, entries, SMALL):
        cache.set_many({f"key:{number}": "x" * 100 for number in range(start, start + SMALL)})
    return cache


def table(folder: str) -> sqlite3.Connection:
    """The same in a plain table."""
    connection = sqlite3.connect(f"{folder}/plain.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
    connection.execute("BEGIN")
    rows = ((f"key:{number}", pickle.dumps("x" * 100)) for number in range(SMALL))
    connection.executemany("INSERT INTO entries VALUES (?, ?)", rows)
    connection.execute("COMMIT")
    return connection


def steps(folder: str) -> dict[str, tuple[int, Step, Step]]:
    """Name to how often a round does it, what is measured, and what it is measured against."""
    cache, plain, blobs = namespace(folder, "small", SMALL), table(folder), namespace(folder, "blobs", 0)
    many, megabytes = namespace(folder, "many", LARGE), [os.urandom(MEGABYTE) for _ in range(4)]
    draft, final = f"{folder}/draft", f"{folder}/final"

    def get(number: int) -> object:
        return cache.get(key(number))

    def select(number: int) -> object:
        return pickle.loads(plain.execute("SELECT value FROM entries WHERE key = ?", (key(number),)).fetchone()[0])

    def set_small(number: int) -> object:
        return cache.set(key(number), f"{number:0100}")

    def upsert(number: int) -> object:
        return plain.execute(
            "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key(number), pickle.dumps(f"{number:0100}")),
        )

    def set_large(number: int) -> object:
        return blobs.set("k", megabytes[number % 4])

    def write_and_rename(number: int) -> None:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, megabytes[number % 4])
        os.close(descriptor)
        os.replace(draft, final)

    def get_among_many(number: int) -> object:
        return many.get(f"key:{number * 7919 % LARGE}")

    return {
        "get 100 B / SELECT + pickle.loads": (2_000, get, select),
        "set 100 B / upsert of pickle.dumps": (1_000, set_small, upsert),
        "set 1 MB / temporary file + rename": (20, set_large, write_and_rename),
        f"get among {LARGE:,} / among {SMALL:,}": (2_000, get_among_many, get),
    }


def seconds(step: Step, numbers: count[int], times: int) -> float:
    """Of one operation, over so many."""
    started = time.perf_counter()
    for _ in range(times):
        step(next(numbers))
    return (time.perf_counter() - started) / times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds, at least 2 (default: 20)")
    parser.add_argument("--folder", help="where to work (default: the temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        cases = steps(folder)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        numbers = count()
        for _ in range(arguments.rounds + 1):
            for name in random.sample(list(cases), len(cases)):
                times, ours, theirs = cases[name]
                pair = [(ours, 0), (theirs, 1)]
                random.shuffle(pair)
                taken = {place: seconds(step, numbers, times) for step, place in pair}
                found[name].append((taken[0], taken[1]))
        print(f"{'':<38} {'us':>8} {'us':>8}   ratio [q1..q3]")
        for name, pairs in found.items():
            ratios = [ours / theirs for ours, theirs in pairs[1:]]  # the first round warms up
            first, middle, third = quantiles(ratios, n=4, method="inclusive")
            ours, theirs = (median(pair[side] for pair in pairs[1:]) * 1e6 for side in (0, 1))
            print(f"{name:<38} {ours:>8.1f} {theirs:>8.1f}   {middle:>5.2f} [{first:.2f}..{third:.2f}]")


if __name__ == "__main__":
    main()
