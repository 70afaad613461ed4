"""The proxy of the fault tests does what its modes say: else those tests would show nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import Server
from tests.proxy import FaultProxy

VALUE = b"0123456789" * 50


@pytest.fixture
def proxy(valkey: Server) -> Iterator[FaultProxy]:
    with FaultProxy(valkey.port, seed=1, share=0.05) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[Any]:
    """Connected, with a value stored."""
    said: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 0.4, "protocol": 2, "driver_info": None}
    with redis.Redis.from_url(proxy.url, **said) as client:
        client.set("k", VALUE)
        yield client


def test_trips_and_connections_are_counted(proxy: FaultProxy, client: Any) -> None:
    proxy.trips = 0
    client.get("k")
    assert proxy.trips == 1
    with client.pipeline(transaction=False) as pipeline:
        pipeline.get("k").get("k").get("k").execute()
    assert proxy.trips == 2
    assert (proxy.connections, proxy.most_open) == (1, 1)
    with client.client() as one, client.client() as two:
        one.ping()
        two.ping()
    assert (proxy.connections, proxy.most_open) == (2, 2)


def test_large_requests_and_replies_pass_at_once(proxy: FaultProxy, client: Any) -> None:
    large = VALUE * 5000
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(4):
            pipeline.set("large", large).get("large")
        assert pipeline.execute() == [True, large] * 4


@pytest.mark.parametrize("mode", ["refuse", "close", "reset"])
def test_connections_are_broken_off_and_made_again(proxy: FaultProxy, client: Any, mode: str) -> None:
    proxy.mode = mode
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            client.get("k")
    proxy.mode = "pass"
    assert client.get("k") == VALUE


def test_a_refusal_is_one_of_the_system(proxy: FaultProxy, client: Any) -> None:
    proxy.mode = "refuse"
    connections = proxy.connections
    with pytest.raises(redis.ConnectionError, match=r"111|refused"):
        client.get("k")
    assert proxy.connections == connections


def test_a_reset_comes_in_the_middle_of_a_reply(proxy: FaultProxy, client: Any) -> None:
    connection = client.connection_pool.get_connection()
    end = connection._sock
    proxy.mode = "reset"
    end.sendall(b"GET k\r\n")
    got = b""
    with pytest.raises(ConnectionResetError):
        while True:
            got += end.recv(4096)
            assert len(got) < len(VALUE)
    whole = b"$%d\r\n%b\r\n" % (len(VALUE), VALUE)
    assert got in (b"", whole[: len(whole) // 2])  # the kernel may throw away what was not read before the reset
    client.connection_pool.release(connection)


@pytest.mark.parametrize(("mode", "least"), [("delay:0.1", 0.1), ("drip", 0.02 * len(b"$500\r\n"))])
def test_slow_replies_are_whole_and_late(proxy: FaultProxy, client: Any, mode: str, least: float) -> None:
    client.set("short", b"12")
    proxy.mode = mode
    began = time.monotonic()
    assert client.get("short") == b"12"
    assert time.monotonic() - began >= least


@pytest.mark.parametrize("mode", ["blackhole", "delay:3"])
def test_nothing_is_answered_in_time(proxy: FaultProxy, client: Any, mode: str) -> None:
    proxy.mode = mode
    for _ in range(2):
        with pytest.raises(redis.TimeoutError):
            client.get("k")
    proxy.mode = "pass"
    assert client.get("k") == VALUE


def test_damage_strikes_replies_alone_and_the_same_with_the_same_seed(valkey: Server) -> None:
    def received() -> bytes:
        with FaultProxy(valkey.port, seed=7, share=0.05) as proxy, redis.Redis.from_url(proxy.url, protocol=2) as client:
            connection: Any = client.connection_pool.get_connection()
            client.set("k", VALUE)
            proxy.mode = "damage"
            connection._sock.sendall(b"GET k\r\n")
            got = connection._sock.recv(4096)
            connection.disconnect()
            proxy.mode = "pass"
            assert client.get("k") == VALUE
            return bytes(got)

    whole = b"$%d\r\n%b\r\n" % (len(VALUE), VALUE)
    one, two = received(), received()
    assert one == two
    assert len(one) == len(whole)
    flips = [(here ^ there).bit_count() for here, there in zip(one, whole, strict=True)]
    assert 5 <= sum(flips) <= 60
    assert max(flips) == 1


def test_what_is_no_mode_is_refused(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="'melt': give one of pass, refuse"):
        proxy.mode = "melt"
