"""What caches in this process's memory cost: hits, awaited hits, misses, evictions, bytes for each entry, and many threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count
from typing import Any

from benchmarks import functions
from benchmarks.children import run
from benchmarks.functions import executions
from benchmarks.keys import MESSAGES, TOOLS
from benchmarks.peers import Peer
from benchmarks.tables import Family, Row, Step
from benchmarks.timed import PROCESSOR, NotCachedError, check, timed

LRU_CACHE, UNDECORATED, BY_HAND = "functools.lru_cache", "undecorated", "dict by hand"
BOUND = "undecorated, bound by a partial"
KEYED = "its user makes the key, here with orjson"


@dataclass(frozen=True)
class Sizes:
    """How much is done; tests do less."""

    stores: int = 2_000
    room: int = 10_000
    accesses: int = 10_000
    entries: int = 100_000
    threads: tuple[int, ...] = (1, 2, 4, 8)
    seconds: float = 0.08
    callers: int = 200
    processes: tuple[int, ...] = (1, 2, 4, 8)
    stored: int = 10_000
    megabytes: int = 50
    settled: float = 2.1  # seconds after which a file is taken for one that nobody is writing


class Shop:
    """What makes a method of a decorated function; two of them must not answer for each other."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def price(self, item: int) -> int:
        executions["price"] = executions.get("price", 0) + 1
        return item * self.factor


def method(decorate: Callable[[Callable[..., object]], Any]) -> Step:
    """A hit of a method, of one object beside another."""
    kind = type("Decorated", (Shop,), {"price": decorate(Shop.price)})
    shop, other = kind(3), kind(7)
    step = timed("o.price(1)", {"o": shop}, 3, "price")
    check(other.price(1), 7)
    return step


def hits(peers: list[Peer], sizes: Sizes) -> Family:
    """Decorated functions, called again."""
    family = Family("hits", "a hit of a decorated function, in ns of the processor")
    scope: dict[str, Any] = {"text": "a" * 2048, "messages": MESSAGES, "tools": TOOLS}
    request = "f(messages, model='m', tools=tools)"
    for workload, call, function, expected, other in (
        ("f(1)", "f(1)", functions.one, 1, ("f(2)", 2)),
        ("f(1, b='x')", "f(1, b='x')", functions.pair, "1x", ("f(1, b='z')", "1z")),
        ("f(2 KB of text)", "f(text)", functions.length, 2048, ("f(text[1:])", 2047)),
        (
            "f(1 KB of messages, model=, tools=)",
            request,
            functions.answer,
            "m has read 2 messages",
            ("f(messages[:1], model='m', tools=tools)", "m has read 1 messages"),
        ),
    ):
        is_request, name = call is request, function.__name__
        row = family.row(workload, baseline=UNDECORATED if is_request else LRU_CACHE)
        row.add(UNDECORATED, lambda: timed(call, {**scope, "f": function}, expected), primitive=True)
        for peer in peers:
            if decorate := getattr(peer, "messages" if is_request else "memory", None):
                note = KEYED if is_request and peer.keyed else ""
                row.add(peer.name, lambda: timed(call, {**scope, "f": decorate(function)}, expected, name, other), note)
    row = family.row("o.m(1)", baseline=LRU_CACHE)
    row.add(UNDECORATED, lambda: timed("o.price(1)", {"o": Shop(3)}, 3), primitive=True)
    row.add(BOUND, method_bound, primitive=True)
    for peer in peers:
        if decorate := getattr(peer, "memory", None):
            row.add(peer.name, lambda: method(decorate))
    return family


def method_bound() -> Step:
    """What it costs at least that `o.price.invalidate(1)` knows `o`: a plain function binds faster, unlike its attributes."""
    kind = type("Bound", (Shop,), {"price": property(partial(partial, Shop.price))})
    return timed("o.price(1)", {"o": kind(3)}, 3)


def kept_by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """The least that could remember results of a coroutine function."""
    kept: dict[Any, Any] = {}

    async def call(*args: Any, **kwargs: Any) -> Any:
        key = (args, *kwargs.items()) if kwargs else args
        if key not in kept:
            kept[key] = await function(*args, **kwargs)
        return kept[key]

    return call


def tasks(peers: list[Peer], sizes: Sizes) -> Family:
    """Decorated coroutine functions, awaited again."""
    family = Family("async", "an awaited hit of a decorated coroutine function, in ns of the processor")
    for workload, call, function, expected, other in (
        ("await f(1)", "await f(1)", functions.task_one, 1, ("await f(2)", 2)),
        ("await f(1, b='x')", "await f(1, b='x')", functions.task_pair, "1x", ("await f(1, b='z')", "1z")),
    ):
        row, name = family.row(workload, baseline=BY_HAND), function.__name__
        row.add(BY_HAND, lambda: timed(call, {"f": kept_by_hand(function)}, expected, name, other), primitive=True)
        for peer in peers:
            if decorate := getattr(peer, "task", None):
                row.add(peer.name, lambda: timed(call, {"f": decorate(function)}, expected, name, other))
    return family


def stores(decorate: Callable[..., Any], sizes: Sizes) -> Step:
    """Calls with arguments that were never seen."""
    function, numbers = decorate(functions.one, 1_000_000), count()
    for _ in range(2):
        check(function(-1), -1)

    def step() -> float:
        before = executions["one"]
        began = PROCESSOR()
        for _ in range(sizes.stores):
            function(next(numbers))
        taken = PROCESSOR() - began
        check(executions["one"] - before, sizes.stores)
        last = next(numbers) - 1
        check(function(last), last)
        return taken / sizes.stores

    return step


def zipf(sizes: Sizes, seed: int = 1) -> list[int]:
    """Accesses to ten times as many keys as there is room for, the n-th most frequent one with a weight of 1/n."""
    weights = list(accumulate(1 / number for number in range(1, sizes.room * 10 + 1)))
    return random.Random(seed).choices(range(len(weights)), cum_weights=weights, k=sizes.accesses * 100)


class Evictions:
    """One package's way through the trace: the cost of a call, and how many of them were hits."""

    def __init__(self, decorate: Callable[..., Any], trace: list[int], sizes: Sizes) -> None:
        self._function, self._trace, self._sizes = decorate(functions.one, sizes.room), trace, sizes
        for _ in range(2):
            check(self._function(-1), -1)
        self._place, self._hits = sizes.room * 3, float("nan")
        for key in trace[: self._place]:
            check(self._function(key), key)

    def cost(self) -> float:
        keys = self._trace[self._place : self._place + self._sizes.accesses]
        self._place += self._sizes.accesses
        before, function = executions["one"], self._function
        began = PROCESSOR()
        for key in keys:
            function(key)
        taken = PROCESSOR() - began
        self._hits = 100 * (1 - (executions["one"] - before) / len(keys))
        return taken / len(keys)

    def hits(self) -> float:
        """Of the slice that was timed before."""
        return self._hits


def misses(peers: list[Peer], sizes: Sizes) -> Family:
    """Calls that run the function."""
    family = Family("misses", "calls of a decorated function that must be stored, in ns of the processor")
    row = family.row("miss and store", baseline=LRU_CACHE)
    cost = family.row(f"zipf, room for {sizes.room:,}: a call", baseline=LRU_CACHE)
    ratio = family.row(f"zipf, room for {sizes.room:,}: hits", unit="%", more_is_better=True, is_count=True, is_told=True)
    trace = zipf(sizes)
    for peer in peers:
        if decorate := getattr(peer, "memory", None):
            row.add(peer.name, lambda: stores(decorate, sizes))
            if peer.name in ("dogpile.cache", "cachier"):
                error = NotImplementedError("has no bound on entries")
                cost.failed(peer.name, error)
                ratio.failed(peer.name, error)
            else:
                add_evictions(cost, ratio, peer.name, lambda: Evictions(decorate, trace, sizes))
    return family


def add_evictions(cost: Row, ratio: Row, name: str, make: Callable[[], Evictions]) -> None:
    """Both cells are of one object: the first moves on, the second tells how that went."""
    try:
        evictions = make()
    except Exception as error:
        cost.failed(name, error)
        ratio.failed(name, error)
        return
    cost.add(name, lambda: evictions.cost)
    ratio.add(name, lambda: evictions.hits)


def bytes_per_entry(peers: list[Peer], sizes: Sizes) -> Family:
    """Memory of a fresh process for each."""
    family = Family("bytes", "resident memory for each entry of f(number), each called twice, in a fresh process")
    row = family.row(f"{sizes.entries:,} entries of f(number)", unit="bytes", baseline=LRU_CACHE, rounds=1)
    for peer in peers:
        if hasattr(peer, "memory"):
            row.add(peer.name, lambda: lambda name=peer.name: float(run("bytes", name, sizes.entries, seconds=60)[0]))
    return family


def crowd(decorate: Callable[..., Any], number: int, sizes: Sizes) -> Step:
    """So many threads, each calling with 1,000 arguments in an order of its own; calls per second of all."""
    function = decorate(functions.one, 2_000)
    keys, began = list(range(1_000)), [0.0]  # the same beginning for all: a late thread would run alone at the end
    for key in keys:
        check([function(key), function(key)], [key, key])

    def work(barrier: threading.Barrier, order: list[int], done: list[tuple[int, float]]) -> None:
        calls = 0
        barrier.wait()
        while time.perf_counter() < began[0] + sizes.seconds:
            for key in order:
                function(key)
            calls += len(order)
        done.append((calls, time.perf_counter()))

    def step() -> float:
        barrier = threading.Barrier(number, action=lambda: began.__setitem__(0, time.perf_counter()))
        done: list[tuple[int, float]] = []
        before = executions["one"]
        workers = [threading.Thread(target=work, args=(barrier, random.sample(keys, 100), done)) for _ in range(number)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        if len(done) < number:
            raise RuntimeError("a thread failed")
        if executions["one"] > before:
            raise NotCachedError(f"ran {executions['one'] - before} times more")
        return sum(calls for calls, _ in done) / (max(end for _, end in done) - began[0])

    return step


def threads(peers: list[Peer], sizes: Sizes) -> Family:
    """Hits of several threads at once."""
    family = Family("threads", "calls per second of all threads together, hits of 1,000 entries, by the clock on the wall")
    for number in sizes.threads:
        row = family.row(f"{number} thread{'s' * (number > 1)}", unit="calls/s", baseline=LRU_CACHE, more_is_better=True)
        for peer in peers:
            if decorate := getattr(peer, "memory", None):
                row.add(peer.name, lambda: crowd(decorate, number, sizes))
    return family
