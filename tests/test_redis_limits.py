"""What bounds a call to Redis: its time, its connections, and the breaker; and what a call does while that is open."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from redis import exceptions

from codomyrmex_cache import Entry, RedisBackend
from codomyrmex_cache.backends import _lines
from codomyrmex_cache.backends._breaker import Breaker
from codomyrmex_cache.backends._lines import Line, time_limit
from codomyrmex_cache.backends._target import Topology, target_of_url
from codomyrmex_cache.errors import CircuitOpenError
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server
from tests.redis_world import World, world_on

LIMIT = 0.6
"""Seconds for an operation that is cut off after 0.25, on a busy machine."""


@pytest.fixture
def world(valkey: Server) -> Iterator[World]:
    with world_on(valkey) as world:
        yield world


# -- the breaker


class BreakerMachine(RuleBasedStateMachine):
    """Operations begin and end in any order; a model says when the next one may begin."""

    operations: Any = Bundle("operations")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.breaker = Breaker("it", self.clock)
        self.state, self.failures, self.pause = "closed", 0, 1.0
        self.next = (0.0, 0.0)  # between which moments it may be
        self.prober = self.earlier = 0
        self.changes: list[str] = []
        self.logged: list[str] = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.logged.append(record.msg.split("%s ")[1][:8])  # type: ignore[method-assign]
        logging.getLogger("codomyrmex_cache.backends._breaker").addHandler(self.handler)

    def teardown(self) -> None:
        logging.getLogger("codomyrmex_cache.backends._breaker").removeHandler(self.handler)

    @rule(target=operations)
    def begin(self) -> int:
        now = self.clock()
        if self.state == "closed":
            assert self.breaker.enter() == 0
            return 0
        try:
            probe = self.breaker.enter()
        except CircuitOpenError:
            assert now < self.next[1]
            return 0
        assert now >= self.next[0]
        self.prober, self.state, self.next = probe, "half_open", (now + self.pause, now + self.pause)
        return probe

    @rule(operation=consumes(operations))
    def succeed(self, operation: int) -> None:
        self.breaker.succeeded(operation)
        if self.state == "closed" or operation > self.earlier:
            self.changes += ["answers "] * (self.state != "closed")
            self.state, self.failures, self.pause = "closed", 0, 1.0

    @rule(operation=consumes(operations))
    def fail(self, operation: int) -> None:
        self.breaker.failed(OSError(), operation)
        if self.state == "closed":
            self.failures += 1
            if self.failures == 3:
                self.changes.append("does not")
                self.earlier = self.prober
                self.open()
        elif operation > self.earlier and operation == self.prober:
            self.pause = min(2 * self.pause, 30.0)
            self.open()

    def open(self) -> None:
        self.state, self.next = "open", (self.clock() + 0.8 * self.pause, self.clock() + self.pause)

    @rule(operation=consumes(operations))
    def give_up(self, operation: int) -> None:
        self.breaker.given_up(operation)
        if operation and operation == self.prober and self.state == "half_open":
            self.state, self.next = "open", (self.clock(), self.clock())

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.state != "closed")
    @rule(target=operations)
    def wait_until_a_probe_is_due(self) -> int:
        self.clock.advance(max(0.0, self.next[1] - self.clock()) + 0.001)
        assert not self.breaker.is_shut
        return self.begin()

    @invariant()
    def agree(self) -> None:
        assert self.breaker.state == self.state
        assert self.logged == self.changes


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_breaker_in_threads() -> None:
    clock = FakeClock()
    breaker, start, probes = Breaker("it", clock), Barrier(8), []

    def work() -> None:
        start.wait()
        for _ in range(50):
            breaker.failed(OSError(), 0)
        start.wait()
        with suppress(CircuitOpenError):
            probes.append(breaker.enter())

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while breaker.state == "closed" or breaker._failures < 400:  # until all have failed; the test's time limit ends it
        time.sleep(0.001)
    assert 0.8 <= breaker._next - clock() <= 1.0  # the failures of those under way do not lengthen the first pause
    clock.advance(1.0)
    for thread in threads:
        thread.join()
    assert len(probes) <= 1


# -- time


@contextmanager
def black_hole() -> Iterator[int]:
    """The port of a listener that accepts nobody any more."""
    with ExitStack() as stack, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def cut_off(backend: RedisBackend) -> None:
    """Blocking and in an event loop."""
    began = time.monotonic()
    with pytest.raises(exceptions.TimeoutError):
        backend.get(b"1:x:k")
    assert time.monotonic() - began < LIMIT

    async def main() -> None:
        began = time.monotonic()
        with pytest.raises(exceptions.TimeoutError):
            await backend.aget(b"1:x:k")
        assert time.monotonic() - began < LIMIT
        await backend.aclose()

    asyncio.run(main())


def test_replies_that_drip_are_cut_off(world: World) -> None:
    backend = RedisBackend(world.proxy.url)
    backend.set(b"1:x:k", Entry(b"v" * 1000, created=0.0))
    world.proxy.mode = "drip"
    cut_off(backend)


def test_a_connection_that_is_not_made_is_cut_off() -> None:
    with black_hole() as port:
        cut_off(RedisBackend(f"redis://127.0.0.1:{port}"))


def test_a_host_with_several_addresses_gets_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_hole() as port:
        address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
        monkeypatch.setattr("redis.connection.socket.getaddrinfo", lambda *_, **__: [address] * 4)
        began = time.monotonic()
        with pytest.raises(exceptions.TimeoutError):
            RedisBackend("redis://several.invalid").get(b"1:x:k")
        assert time.monotonic() - began < LIMIT


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Event()

    def ask(host: str, port: object, flags: int = 0) -> None:
        if flags or not answered.wait(30):
            raise OSError

    monkeypatch.setattr(_lines, "getaddrinfo", ask)
    began = time.monotonic()
    with pytest.raises(exceptions.TimeoutError):
        RedisBackend("redis://slow.invalid").get(b"1:x:k")
    assert time.monotonic() - began < LIMIT
    answered.set()


@pytest.mark.parametrize("connected", [True, False])
def test_a_busy_event_loop_is_no_failure_of_the_server(world: World, connected: bool) -> None:
    world.cache.set("k", "v")

    async def main() -> None:
        if connected:
            await world.cache.aget("k")
        task = asyncio.ensure_future(world.cache.aget("k"))
        for _ in range(2):
            await asyncio.sleep(0)
        time.sleep(0.4)
        assert await task == "v"
        await world.manager.aclose()

    asyncio.run(main())
    assert world.cache.stats().errors == {}


def test_a_thread_that_was_kept_from_running_is_no_failure_of_the_server(world: World) -> None:
    wire: Any = world.cache.space.backend._wire  # type: ignore[attr-defined]

    def make() -> Any:
        connection = wire.connection(wire.target.nodes[0])
        send = connection.send_packed_command
        connection.send_packed_command = lambda *said, **options: (send(*said, **options), time.sleep(0.1))
        return connection

    line = Line(make)
    with time_limit(0.05):
        assert line.exchange(((b"PING",),)) == [b"PONG"]
    world.proxy.mode = "blackhole"
    began = time.monotonic()
    with pytest.raises(exceptions.TimeoutError), time_limit(0.05):
        line.exchange(((b"PING",),))
    assert time.monotonic() - began < LIMIT
    line.close()


def test_what_was_given_up_does_not_arrive_later() -> None:
    """The kernel would send on: an old value could replace a newer one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend = RedisBackend(f"redis://127.0.0.1:{listener.getsockname()[1]}")

        async def main() -> None:
            with pytest.raises(exceptions.TimeoutError):
                await backend.aset(b"1:x:k", Entry(b"old", created=0.0))
            task = asyncio.ensure_future(backend.aset(b"1:x:k", Entry(b"old", created=0.0)))
            await asyncio.sleep(0.02)  # it is sent; if it were not, there would be nothing to arrive
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await backend.aclose()

        with pytest.raises(exceptions.TimeoutError):
            backend.set(b"1:x:k", Entry(b"old", created=0.0))
        asyncio.run(main())
        for _ in range(3):
            end, _ = listener.accept()
            with end, pytest.raises(ConnectionResetError):
                while end.recv(65536):
                    pass
                pytest.fail("the connection was ended in peace, after all that was to be sent")


# -- connections of threads


def test_threads_beyond_fifty_connections_wait_and_are_served(world: World) -> None:
    world.cache.set_many({str(number): number for number in range(80)})
    world.proxy.mode = "delay:0.03"
    start = Barrier(80)

    def work(number: int) -> list[object]:
        start.wait()
        return [world.cache.get(str(number)) for _ in range(3)]

    with ThreadPoolExecutor(80) as pool:
        assert list(pool.map(work, range(80))) == [[number] * 3 for number in range(80)]
    assert world.proxy.most_open == 50
    assert world.cache.stats().errors == {}


def test_no_connection_to_be_had_says_nothing_about_the_server(world: World) -> None:
    backend = RedisBackend(world.proxy.url)
    line: Any = backend._wire._only
    held, line._free[:] = list(line._free), []
    for _ in range(4):
        began = time.monotonic()
        with pytest.raises(exceptions.MaxConnectionsError):
            backend.get(b"1:x:k")
        assert time.monotonic() - began < LIMIT
    assert backend.state == "closed"
    with pytest.raises(exceptions.MaxConnectionsError), time_limit(-1):
        line._awaited()
    line._free.extend(held)
    assert backend.get(b"1:x:k") is None
    backend.close()


def test_closing_meanwhile_disturbs_nobody(valkey: Server) -> None:
    backend, over = RedisBackend(valkey.url), Event()

    def work(number: int) -> int:
        count = 0
        while not over.is_set():
            assert backend.get(b"1:x:%d" % number) is None
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        for _ in range(300):
            backend.close()
        over.set()
        assert all(each.result(10) for each in working)
    assert len(backend._wire._only._free) == 50  # type: ignore[union-attr]
    backend.close()


def test_threads_learn_about_sentinels_at_the_same_time() -> None:
    topology = Topology(target_of_url("redis+sentinel://a,b,c/main"))

    def work(number: int) -> None:
        for _ in range(3000):
            adviser = topology.advisers()[number % 3]
            topology.failed(adviser) if number % 2 else topology.learn(adviser, [b"h", b"1"])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sorted(host for host, _ in topology.advisers()) == ["a", "b", "c"]  # type: ignore[misc]
