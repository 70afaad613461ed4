"""An invalidation that does not reach its Redis server is carried out before anything is read there again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import pytest

from codomyrmex_cache.backends._debts import CLEAR, Debts
from codomyrmex_cache.backends._layout import Layout
from codomyrmex_cache.backends._plans import Plans
from codomyrmex_cache.errors import CircuitOpenError
from tests.conftest import Server
from tests.redis_world import World, world_on

KEYS = [f"k{number}" for number in range(12)]
UNSTORABLE = Lock()


@pytest.fixture(params=[None, 4], ids=["one part", "four parts"])
def world(request: pytest.FixtureRequest, valkey: Server) -> Iterator[World]:
    with world_on(valkey, request.param) as world:
        yield world


def seeded(world: World) -> World:
    world.cache.set_many(dict.fromkeys(KEYS, "old"))
    world.cache.set("t", "old", tags=["odd"])
    assert (world.plain(1), world.tagged(2), asyncio.run(world.aplain(3))) == (1, 2, 3)
    world.admin.close()
    return world


def stale(world: World) -> set[str]:
    """What is still answered as it was."""
    found = {key for key, value in world.cache.get_many([*KEYS, "t"]).items() if value == "old"}
    for name, function, number in (("plain", world.plain, 1), ("tagged", world.tagged, 2)):
        if function(number) == number:
            found.add(name)
    return found


ALL = {*KEYS, "t", "plain", "tagged"}

INVALIDATIONS: dict[str, tuple[Callable[[World], object], set[str]]] = {
    "delete": (lambda world: world.cache.delete("k0"), {"k0"}),
    "delete twice": (lambda world: (world.cache.delete("k0"), world.cache.delete("k1")), {"k0", "k1"}),
    "delete_many": (lambda world: world.cache.delete_many(KEYS), set(KEYS)),
    "set": (lambda world: world.cache.set("k0", "new"), {"k0"}),
    "set, no life": (lambda world: world.cache.set("k0", "new", ttl=0), {"k0"}),
    "set, tagged": (lambda world: world.cache.set("k0", "new", tags=["even"]), {"k0"}),
    "set, unstorable": (lambda world: world.cache.set("k0", UNSTORABLE), {"k0"}),
    "set_many": (lambda world: world.cache.set_many(dict.fromkeys(KEYS, "new")), set(KEYS)),
    "set_many, mixed": (lambda world: world.cache.set_many({"k0": 1, "k1": UNSTORABLE, "k2": UNSTORABLE}), {"k0", "k1", "k2"}),
    "clear": (lambda world: world.cache.clear(), ALL),
    "tags": (lambda world: world.cache.invalidate_tags("odd"), {"t", "tagged"}),
    "function.invalidate": (lambda world: world.plain.invalidate(1), {"plain"}),
    "function.clear": (lambda world: world.plain.clear(), {"plain"}),
    "function.refresh": (lambda world: world.plain.refresh(1), {"plain"}),
    "function.seed": (lambda world: world.plain.seed("new", 1), {"plain"}),
    "tagged function.refresh": (lambda world: world.tagged.refresh(2), {"tagged"}),
}

ASYNC: dict[str, tuple[Callable[[World], Any], set[str]]] = {
    "adelete": (lambda world: world.cache.adelete("k0"), {"k0"}),
    "adelete_many": (lambda world: world.cache.adelete_many(KEYS), set(KEYS)),
    "aset": (lambda world: world.cache.aset("k0", "new"), {"k0"}),
    "aset, tagged": (lambda world: world.cache.aset("k0", "new", tags=["even"]), {"k0"}),
    "aset_many": (lambda world: world.cache.aset_many(dict.fromkeys(KEYS, "new")), set(KEYS)),
    "aclear": (lambda world: world.cache.aclear(), ALL),
    "ainvalidate_tags": (lambda world: world.cache.ainvalidate_tags("odd"), {"t", "tagged"}),
}


@pytest.mark.parametrize("name", INVALIDATIONS)
def test_owed_to_a_server_that_refuses(world: World, name: str) -> None:
    invalidate, expected = INVALIDATIONS[name]
    seeded(world).away()
    invalidate(world)
    world.back()
    assert stale(world) == ALL - expected


@pytest.mark.parametrize("name", ASYNC)
def test_owed_by_an_event_loop(world: World, name: str) -> None:
    invalidate, expected = ASYNC[name]
    seeded(world).away()

    async def main() -> None:
        await invalidate(world)
        await world.manager.aclose()

    asyncio.run(main())
    world.back()
    assert stale(world) == ALL - expected


@pytest.mark.parametrize("mode", ["blackhole", "close", "delay:0.4", "reset"])
def test_owed_after_whatever_trouble(valkey: Server, mode: str) -> None:
    with world_on(valkey) as world:
        seeded(world).proxy.mode = mode
        world.cache.delete("k0")
        world.cache.set("k1", "new")
        world.back()
        world.proxy.cut()
        assert stale(world) == ALL - {"k0", "k1"}


def test_owed_after_an_error_reply(valkey: Server) -> None:
    with world_on(valkey) as world:
        seeded(world)
        world.admin.replicaof("127.0.0.1", 1)  # nobody is there; what the server has, it keeps
        try:
            world.cache.delete("k0")
            world.cache.set("k1", "new")
            assert world.cache.get("k0") is None  # the server could be read, but not what is not to be read
        finally:
            world.admin.replicaof("NO", "ONE")
        assert stale(world) == ALL - {"k0", "k1"}


@pytest.mark.parametrize("verb", ["adelete", "aset"])
def test_owed_by_a_cancelled_task(valkey: Server, verb: str) -> None:
    with world_on(valkey) as world:
        seeded(world)

        async def main() -> None:
            await world.cache.aget("k0")
            world.proxy.mode = "blackhole"
            task = asyncio.ensure_future(getattr(world.cache, verb)("k0", *["new"] * (verb == "aset")))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            world.proxy.mode = "pass"
            world.proxy.cut()
            assert await world.cache.aget("k0") is None
            await world.manager.aclose()

        asyncio.run(main())
        assert stale(world) == ALL - {"k0"}


def test_nobody_reads_while_another_thread_pays(valkey: Server) -> None:
    with world_on(valkey) as world:
        seeded(world).away()
        world.cache.delete_many(KEYS)
        world.back()
        with ThreadPoolExecutor(len(KEYS)) as pool:
            assert set(pool.map(world.cache.get, KEYS)) == {None}


def test_nobody_reads_while_another_task_pays(valkey: Server) -> None:
    with world_on(valkey) as world:
        seeded(world).away()
        world.cache.delete_many(KEYS)
        world.back()

        async def main() -> None:
            assert set(await asyncio.gather(*map(world.cache.aget, KEYS))) == {None}
            await world.manager.aclose()

        asyncio.run(main())
        assert world.cache.stats().errors == {"backend:ConnectionError": 1}


def test_counters_stay_exact_when_many_pay(valkey: Server) -> None:
    with world_on(valkey) as world:
        world.cache.incr("n")
        world.away()
        world.cache.delete("n")
        world.back()
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(lambda _: world.cache.incr("n"), range(8))) == list(range(1, 9))


def test_so_many_that_the_whole_namespace_is_owed(valkey: Server) -> None:
    with world_on(valkey) as world:
        other = world.manager.get_cache("other", backend="redis")
        other.set("k0", "old")
        seeded(world).away()
        for number in range(1500):
            world.cache.delete(f"absent{number}")
        backend: Any = world.cache.space.backend
        assert sum(map(len, backend._plans.owed.values())) <= 1000
        world.back()
        assert stale(world) == set()
        assert other.get("k0") == "old"
        assert not backend._plans.owed


# -- leases


def test_a_lease_that_was_not_heard_of_is_given_back(valkey: Server) -> None:
    with world_on(valkey) as world:
        world.plain(0)
        world.proxy.mode = "delay:0.4"  # the request arrives
        world.plain(1)
        world.proxy.mode = "pass"
        world.proxy.cut()
        began = time.monotonic()
        assert world.plain(1) == 3
        assert time.monotonic() - began < 1.5  # a lease lasts for 3.5 s
        assert world.plain(1) == 3


def test_a_lease_of_a_cancelled_task_is_given_back(valkey: Server) -> None:
    with world_on(valkey) as world:

        async def main() -> None:
            await world.aplain(0)
            world.proxy.mode = "delay:0.1"
            tasks = [asyncio.ensure_future(world.aplain(number)) for number in range(1, 21)]
            await asyncio.sleep(0.05)  # the requests have arrived, the replies have not
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            world.proxy.mode = "pass"
            deadline = time.monotonic() + 2  # polling for tasks of the cache's own; a lease lasts for 3.5 s
            while any(world.admin.hexists(name, "t") for name in world.admin.scan_iter("cmxc:{1:x:}l*")):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await world.manager.aclose()

        asyncio.run(main())
        stats = world.aplain.stats()
        assert stats.calls == 21


# -- one payer


def paying() -> tuple[Debts, list[bytes]]:
    debts = Debts(lambda command: command[0] == b"LEASE")
    debts.owe(b"x", [(b"UNLINK", b"a")])
    return debts, [b"UNLINK", b"a"]


def step(plan: Any, reply: Any = None) -> Any:
    try:
        return plan.send(reply)
    except StopIteration:
        return None


def test_the_second_waits_for_the_first_and_pays_nothing() -> None:
    debts, _ = paying()
    first, second = debts.paid(b"x"), debts.paid(b"x")
    assert step(first) == (b"x", [(b"UNLINK", b"a")])
    waited = step(second)
    assert isinstance(waited, Future) and not waited.done()
    assert step(first, [1]) is None
    assert waited.result(0) == [] and step(second, []) is None
    assert debts.owed == {}


def test_who_waits_for_a_payment_that_is_broken_off_pays() -> None:
    debts, _ = paying()
    first, second = debts.paid(b"x"), debts.paid(b"x")
    step(first), step(second)
    first.close()
    assert step(second, []) == (b"x", [(b"UNLINK", b"a")])
    assert step(second, [1]) is None
    assert debts.owed == {}


def test_who_waits_for_a_payment_that_fails_fails_too() -> None:
    debts, _ = paying()
    first, second = debts.paid(b"x"), debts.paid(b"x")
    step(first)
    waited = step(second)
    with pytest.raises(OSError, match="gone"):
        first.throw(OSError("gone"))
    assert isinstance(waited.exception(0), OSError)
    assert debts.owed == {b"x": [(b"UNLINK", b"a")]}


def test_a_payer_that_never_ends_is_waited_for_once() -> None:
    debts, _ = paying()
    lost, second, third = debts.paid(b"x"), debts.paid(b"x"), debts.paid(b"x")
    step(lost), step(second)
    with pytest.raises(TimeoutError):
        second.throw(TimeoutError())
    assert step(third) == (b"x", [(b"UNLINK", b"a")])


def test_what_is_owed_during_a_payment_is_paid_as_well() -> None:
    debts, _ = paying()
    plan = debts.paid(b"x")
    step(plan)
    debts.owe(b"x", [(b"UNLINK", b"b")])
    assert step(plan, [1]) == (b"x", [(b"UNLINK", b"b")])
    assert step(plan, [1]) is None
    assert debts.owed == {}


def test_an_error_reply_leaves_it_owed() -> None:
    debts, _ = paying()
    plan = debts.paid(b"x")
    step(plan)
    with pytest.raises(ValueError, match="READONLY"):
        plan.send([ValueError("READONLY")])
    assert debts.owed == {b"x": [(b"UNLINK", b"a")]}


def test_leases_are_forgotten_before_the_namespace_is_cleared() -> None:
    debts, _ = paying()
    debts.owe(b"x", [(b"LEASE", b"%d" % number) for number in range(1000)])
    assert debts.owed == {b"x": [(b"UNLINK", b"a")]}
    debts.owe(b"x", [(b"UNLINK", b"%d" % number) for number in range(1000)])
    assert [command[0] for command in debts.owed[b"x"]] == [b"UNLINK", CLEAR]


def test_nobody_waits_for_leases_to_be_given_back() -> None:
    debts = Debts(lambda command: command[0] == b"LEASE")
    debts.owe(b"x", [(b"LEASE", b"a")])
    first, second, third = debts.paid(b"x"), debts.paid(b"x"), debts.paid(b"x")
    assert step(first) == (b"x", [(b"LEASE", b"a")])
    assert step(second) is None
    debts.owe(b"x", [(b"UNLINK", b"b")])
    assert isinstance(step(third), Future)


def test_threads_owe_at_the_same_time() -> None:
    debts, _ = paying()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: debts.owe(b"y", [(b"UNLINK", b"%d" % number)]), range(900)))
    assert len(debts.owed[b"y"]) == 900


def test_a_lease_is_not_owed_if_nothing_was_sent() -> None:
    plans = Plans(Layout())
    plan = plans.begin(b"1:x:k", (), 3.5)
    next(plan)
    with pytest.raises(CircuitOpenError):
        plan.throw(CircuitOpenError("open"))
    assert plans.owed == {}
