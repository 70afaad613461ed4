"""What is special to Redis: urls, timeouts, clients and loops."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import redis

from codomyrmex_cache import CacheManager, Entry, RedisBackend, cached
from codomyrmex_cache.errors import CacheConfigurationError
from tests.conftest import Server


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{0.port}/0", "redis://localhost:{0.port}", "unix://{0.socket}"])
def test_urls_lead_to_the_server(any_redis: Server, url: str) -> None:
    any_redis.flush()
    manager = CacheManager(url=url.format(any_redis))
    manager.get_cache("x", backend="redis").set("k", [1], ttl=60)
    assert manager.get_cache("x").get("k") == [1]

    async def main() -> None:
        assert await manager.get_cache("x").aget("k") == [1]
        await manager.aclose()

    asyncio.run(main())


def test_rediss_is_tls() -> None:
    backend = RedisBackend("rediss://user:hidden@example.invalid:6390/1")
    connection = backend._wire.connection(("example.invalid", 6390))
    assert isinstance(connection, redis.SSLConnection)
    assert (connection.host, connection.port, connection.db, connection.username) == ("example.invalid", 6390, 1, "user")
    assert "hidden" not in repr(backend)


def test_keys_are_prefixed_by_the_namespaces_length_and_expire_on_the_server(any_redis: Server) -> None:
    any_redis.flush()
    manager = CacheManager(url=any_redis.url)
    manager.get_cache("a:b", backend="redis").set("k", 1, ttl=100)
    manager.get_cache("a", backend="redis").set("b:k", 1)
    with redis.Redis(unix_socket_path=str(any_redis.socket)) as client:
        client.set("foreign", "untouched")
        assert sorted(client.keys()) == [b"cmxc:{1:a:}eb:k", b"cmxc:{3:a:b:}ek", b"foreign"]  # type: ignore[arg-type]
        assert 99_000 < client.pttl("cmxc:{3:a:b:}ek") <= 100_000  # type: ignore[operator]
        assert client.pttl("cmxc:{1:a:}eb:k") == -1
        assert manager.get_cache("a").clear() == 1
        assert sorted(client.keys()) == [b"cmxc:{3:a:b:}ek", b"foreign"]  # type: ignore[arg-type]
    manager.close()


def test_clear_never_asks_for_all_keys_or_flushes(valkey: Server) -> None:
    cache = CacheManager(url=valkey.url).get_cache("x", backend="redis")
    cache.set_many({str(number): number for number in range(2000)})
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.config_resetstat()
        assert cache.clear() == 2000
        commands = set(client.info("commandstats"))  # type: ignore[arg-type]
    assert commands <= {"cmdstat_scan", "cmdstat_unlink", "cmdstat_info", "cmdstat_config|resetstat"}
    cache.close()


@pytest.mark.parametrize(("left", "milliseconds"), [(0.0001, 1), (1e300, 10**15), (2.0, 2000)])
def test_lives_the_server_would_refuse_are_brought_into_range(valkey: Server, left: float, milliseconds: int) -> None:
    backend = RedisBackend(valkey.url)
    backend.set(b"k", Entry(b"v", created=0.0, expires_at=left))
    with valkey.client() as client:
        assert client.pttl(backend.server_key(b"k")) <= milliseconds  # type: ignore[operator]
    backend.close()


@pytest.mark.parametrize("url", ["http://localhost", "", "localhost:6379", "redis+sentinels://a/b"])
def test_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(CacheConfigurationError, match="redis://, rediss://, unix://"):
        RedisBackend(url)


def test_ten_thousand_calls_in_flight_need_a_few_connections(valkey: Server) -> None:
    manager = CacheManager(url=valkey.url)
    runs: Counter[int] = Counter()

    @cached("crowd", backend="redis", manager=manager)
    async def function(number: int) -> list[int]:
        runs[number] += 1
        await asyncio.sleep(0)
        return [number]

    async def main() -> tuple[int, int]:
        with valkey.client() as client:
            before: Any = client.info("stats")
            for _ in range(2):  # loads, then hits
                answers = await asyncio.gather(*(function(number % 2000) for number in range(10_000)))
                assert answers == [[number % 2000] for number in range(10_000)]
            after: Any = client.info("stats")
        await manager.aclose()
        return before["total_connections_received"], after["total_connections_received"]

    before, after = asyncio.run(main())
    assert after - before <= 10  # eight, and one of the thread that adds up statistics
    assert runs == dict.fromkeys(range(2000), 1)
    stats = manager.stats("crowd")
    assert (stats.calls, stats.misses, stats.errors) == (20_000, 2000, {})
