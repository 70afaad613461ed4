"""A namespace on a Redis server behind a proxy that counts round trips, and what is wrong if it is not answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import redis

from codomyrmex_cache import CacheManager, cached
from tests.conftest import Server
from tests.proxy import FaultProxy

__all__ = ["World", "world_on"]

SECRET = b"a secret for the tests"


class World:
    """A namespace behind a proxy, with functions that count their runs."""

    def __init__(self, server: Server, proxy: FaultProxy, slots: int | None = None) -> None:
        self.proxy = proxy
        self.manager = CacheManager(url=proxy.url, secret=SECRET)
        self.cache = self.manager.get_cache("x", backend="redis", slots=slots)
        self.admin = redis.Redis(unix_socket_path=str(server.socket))
        self.runs: list[int] = []
        runs, options = self.runs, {"backend": "redis", "manager": self.manager, "version": 1}

        def run(number: int) -> int:
            runs.append(number)
            return len(runs)

        @cached("x", name="plain", **options)
        def plain(number: int) -> int:
            return run(number)

        @cached("x", name="tagged", tags=["odd"], **options)
        def tagged(number: int) -> int:
            return run(number)

        @cached("x", name="aplain", **options)
        async def aplain(number: int) -> int:
            return run(number)

        self.plain, self.tagged, self.aplain = plain, tagged, aplain

    def away(self) -> None:
        self.proxy.mode = "refuse"

    def back(self) -> None:
        """The server is there again, and the breaker lets the next call through."""
        self.proxy.mode = "pass"
        wire = self.cache.space.backend._wire  # type: ignore[attr-defined]
        for breaker in wire._breakers.values():
            breaker.succeeded(breaker._prober + 1)

    def trips(self, action: Callable[[], object]) -> int:
        self.proxy.trips = 0
        action()
        return self.proxy.trips

    async def atrips(self, action: Callable[[], Awaitable[object]]) -> int:
        self.proxy.trips = 0
        await action()
        return self.proxy.trips

    def close(self) -> None:
        self.manager.close()
        self.admin.close()


@contextmanager
def world_on(server: Server, slots: int | None = None) -> Iterator[World]:
    """A world and its end."""
    with FaultProxy(server.port) as proxy:
        world = World(server, proxy, slots)
        try:
            yield world
        finally:
            world.close()
