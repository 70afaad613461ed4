"""A process that writes its share of the keys and reads everybody's, through a near cache.

    python -m tests.near_processes URL NUMBER SECONDS BOUND

Every key has one writer, so its versions have an order.  Reported are, for each key, when the write of each version returned,
and when the last read began that was given each version; who holds all reports side by side can tell the age of every answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from codomyrmex_cache import Cache, CacheManager, cached
from codomyrmex_cache.errors import CacheBackendError

T = TypeVar("T")

WRITERS = 4
KEYS = 200
"""Half of them keys of the direct API, half results of a function whose input is changed and which is then invalidated."""

READS_PER_WRITE = 100

MISSED = -1
"""No version: a miss is always allowed."""


def surely(act: Callable[[], T]) -> T:
    """Done in the end; whoever was stopped in the middle of an operation finds it timed out."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return act()
        except CacheBackendError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # the server is left alone for up to a second by the breaker


truths: list[Cache] = []


def truth_of(key: int) -> int:
    """The function that is cached; at the top of the module, or its key would count what it closes over."""
    return surely(lambda: int(truths[0].get(str(key), 0)))


class Worker:
    """One of the processes."""

    def __init__(self, url: str, number: int, bound: float) -> None:
        self.manager = CacheManager(url=url, secret=b"a secret for the tests", on_error="raise")
        self.cache: Cache = self.manager.get_cache("near", "redis", near=bound)
        self.truth = self.manager.get_cache("truth", "redis")
        self.number, self.random = number, Random(number)
        self.writes: dict[int, dict[int, float]] = {}
        self.reads: dict[int, dict[int, float]] = {}
        self.asked = self.count = 0
        truths.append(self.truth)
        self.function = cached("near", manager=self.manager)(truth_of)
        self._spy()

    def _spy(self) -> None:
        """Count what is asked of the server."""
        for verb in ("get", "look"):
            ask = getattr(self.cache.space.backend, verb)

            def counted(*arguments: Any, ask: Any = ask) -> Any:
                self.asked += 1
                return ask(*arguments)

            setattr(self.cache.space.backend, verb, counted)

    def write(self, key: int) -> None:
        """The next version."""
        versions = self.writes.setdefault(key, {})
        version = len(versions) + 1
        if key % 2:
            surely(lambda: self.cache.set(str(key), version))
        else:
            surely(lambda: self.truth.set(str(key), version))
            surely(lambda: self.function.invalidate(key))
        versions[version] = time.monotonic()
        seen = self.see(key)
        assert seen == version, f"key {key}: {seen} after its own write of {version}"

    def read(self, key: int) -> None:
        """Note what is there, and when it was asked for."""
        began = time.monotonic()
        self.reads.setdefault(key, {})[self.see(key)] = began
        self.count += 1

    def see(self, key: int) -> int:
        """The version that is answered now."""
        return surely(lambda: int(self.cache.get(str(key), MISSED)) if key % 2 else self.function(key))

    def run(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        own = [key for key in range(KEYS) if key // 2 % WRITERS == self.number]
        while time.monotonic() < until:
            self.write(self.random.choice(own))
            for _ in range(READS_PER_WRITE):
                self.read(self.random.randrange(KEYS))
        self.manager.close()
        return {"writes": self.writes, "reads": self.reads, "asked": self.asked, "count": self.count}


def main() -> None:
    url, number, seconds, bound = sys.argv[1:]
    print(json.dumps(Worker(url, int(number), float(bound)).run(float(seconds))))


if __name__ == "__main__":
    main()
