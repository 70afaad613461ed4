"""Hit ratios of the in-memory backend on traces of accesses, beside those of other policies and of the optimum.

    python -m benchmarks.traces [--traces FOLDER] [--shares 0.02 0.15]

Each trace is replayed as a read-through cache: a hit if the key is present, else a miss that inserts it.  A cache holds a
share of the trace's distinct keys.  The optimum is Belady's: who is needed last leaves.  The last lines are means of hit ratio
by optimum over the table, and what a miss costs with everything that an insertion into a full backend does.

A folder has one trace a file, `*.txt` or `*.txt.gz`, with one key a line.  Without one, the traces are made here.  Peers that
are not installed (theine, moka-py) are left out.  The seed of Python's hash has a say in what the backend remembers, so the
last digit moves.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean

from codomyrmex_cache import Entry, InMemoryBackend

Trace = Sequence[bytes]
Policy = Callable[[Trace, int], int]
"""A trace and a number of places to the number of hits."""

DEFAULT_FOLDER = Path(__file__).parents[2] / "shared" / "traces"
OPTIMUM = "optimum"


def ours(trace: Trace, places: int) -> int:
    """The backend, hit as the wrapper of a decorated function hits it."""
    backend = InMemoryBackend(max_entries=places)
    hits = 0
    for key in trace:
        cell = backend.cell(key)
        if cell is None:
            backend.set(key, Entry(None))
        else:
            cell.hits += 1
            hits += 1
    assert backend.count(b"") <= places
    return hits


def lru(trace: Trace, places: int) -> int:
    """The least recently used leaves."""
    kept: OrderedDict[bytes, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in kept:
            kept.move_to_end(key)
            hits += 1
        else:
            kept[key] = None
            if len(kept) > places:
                kept.popitem(last=False)
    return hits


def optimum(trace: Trace, places: int) -> int:
    """Belady's MIN."""
    uses = [0] * len(trace)
    next_use: dict[bytes, int] = {}
    for moment in range(len(trace) - 1, -1, -1):
        uses[moment] = next_use.get(trace[moment], len(trace) + moment)
        next_use[trace[moment]] = moment
    kept: dict[bytes, int] = {}
    furthest: list[tuple[int, bytes]] = []
    hits = 0
    for key, use in zip(trace, uses, strict=True):
        if key in kept:
            hits += 1
        elif len(kept) >= places:
            gone = None
            while gone is None or kept.get(gone[1]) != -gone[0]:
                gone = heapq.heappop(furthest)
            del kept[gone[1]]
        kept[key] = use
        heapq.heappush(furthest, (-use, key))
    return hits


def policies() -> dict[str, Policy]:
    """By their names, as far as they are installed."""
    found: dict[str, Policy] = {"ours": ours}
    try:
        from theine import Cache

        def theine(trace: Trace, places: int) -> int:
            cache: Cache[bytes, bool] = Cache(places)
            return sum(cache.get(key)[1] or bool(cache.set(key, True)) for key in trace)

        found["theine"] = theine
    except ImportError:
        pass
    try:
        from moka_py import Moka

        def moka(trace: Trace, places: int) -> int:
            cache: Moka[bytes, bool] = Moka(places)
            return sum(cache.get(key) or bool(cache.set(key, True)) for key in trace)

        found["moka"] = moka
    except ImportError:
        pass
    return {**found, "LRU": lru, OPTIMUM: optimum}


def read(folder: Path) -> Iterator[tuple[str, Trace]]:
    """The traces of a folder."""
    for path in sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")]):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        yield path.name.partition(".")[0], text.split()


def made() -> Iterator[tuple[str, Trace]]:
    """Traces of known kinds."""
    chance = random.Random(20)

    def popular(keys: int, skew: float, count: int, first: int = 0) -> list[int]:
        weights = list(accumulate(rank**-skew for rank in range(1, keys + 1)))
        return chance.choices(range(first, first + keys), cum_weights=weights, k=count)

    def recent(count: int) -> list[int]:
        stack: list[int] = []
        for new in range(count):
            depth = int(chance.paretovariate(0.6)) - 1
            stack.append(stack.pop(-depth - 1) if depth < len(stack) else new)
            keys.append(stack[-1])
        return keys

    keys: list[int] = []
    scanned = [
        key for scan in range(10) for key in (*popular(4000, 0.9, 4000), *range(scan * 3000 + 10_000, scan * 3000 + 13_000))
    ]
    moving = [key for phase in range(6) for key in popular(3000, 0.9, 10_000, phase * 700)]
    beside = [key for number, key in enumerate(popular(3000, 0.9, 30_000)) for key in (key, number % 2500 + 10_000)]
    traces = {
        "zipf 0.7": popular(8000, 0.7, 60_000), "zipf 1.0": popular(8000, 1.0, 60_000), "zipf, scans": scanned,
        "loop": list(range(1500)) * 20, "zipf, moving": moving, "zipf, a loop": beside, "recency": recent(50_000),
    }  # fmt: skip
    for name, trace in traces.items():
        yield name, [b"%d" % key for key in trace]


def cost_of_a_miss() -> float:
    """Microseconds, when each one evicts."""
    backend = InMemoryBackend(max_entries=10_000)
    keys = [b"%d" % number for number in range(60_000)]
    for key in keys[:20_000]:
        backend.set(key, Entry(None))
    entry = Entry(None)
    start = time.process_time()
    for key in keys[20_000:]:
        backend.set(key, entry)
    return (time.process_time() - start) / 40_000 * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder of traces (default: ../shared/traces, else made here)")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.02, 0.15], help="of the distinct keys (default: 0.02 0.15)"
    )
    arguments = parser.parse_args()
    folder = arguments.traces or (DEFAULT_FOLDER if DEFAULT_FOLDER.is_dir() else None)
    traces = list(made() if folder is None else read(folder))
    if not traces:
        parser.error(f"no *.txt or *.txt.gz in {folder}")
    players = policies()
    ratios: dict[str, list[float]] = {name: [] for name in players if name != OPTIMUM}
    print(f"{'hit ratio in %':<20} {'places':>7} " + "".join(f"{name:>9}" for name in players))
    for name, trace in traces:
        for share in arguments.shares:
            places = max(1, int(len(set(trace)) * share))
            hits = {player: policy(trace, places) for player, policy in players.items()}
            shown = "".join(f"{100 * count / len(trace):>9.1f}" for count in hits.values())
            print(f"{name:<14} {share:>5.3g} {places:>7} {shown}", flush=True)
            for player, found in ratios.items():
                found.append(hits[player] / hits[OPTIMUM])
    print(f"{'mean of ratio / optimum':<28} " + "".join(f"{fmean(found):>9.3f}" for found in ratios.values()))
    print(f"a miss that evicts: {cost_of_a_miss():.2f} us")


if __name__ == "__main__":
    main()
