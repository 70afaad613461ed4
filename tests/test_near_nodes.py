"""The near cache where there are several servers: slots that move, masters that die."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from codomyrmex_cache import Cache, RedisBackend
from tests.clusters import Cluster, Node, SentinelGroup
from tests.conftest import _binaries
from tests.test_near import eventually, hears, is_near, make_near, managed

BINARY = _binaries()["valkey"]
BOUND = 1.0
AGAIN = 20.0
"""Seconds until a failover is over and the breaker has let a probe through."""

KEYS = [str(number) for number in range(24)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(BINARY, tmp_path) as cluster:
        yield cluster


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[SentinelGroup]:
    if not SentinelGroup.supports(BINARY, tmp_path):
        pytest.skip("this server is no sentinel")
    with SentinelGroup(BINARY, tmp_path) as group:
        yield group


def server_key(cache: Cache, key: str) -> bytes:
    backend = cache.space.backend
    assert isinstance(backend, RedisBackend)
    return backend.server_key(cache.space.stored(key))


def all_near(cache: Cache) -> None:
    for key in KEYS:
        eventually(lambda key=key: (cache.get(key), is_near(cache, key))[1], AGAIN)  # type: ignore[misc]


def all_written(cache: Cache, value: int) -> None:
    """Write until each key has it: while servers change roles a write may be lost, and a lost key is not in the answer."""
    wanted = dict.fromkeys(KEYS, value)
    eventually(lambda: (cache.set_many(wanted), cache.get_many(KEYS))[1] == wanted, AGAIN)


def oldest_answer(cache: Cache, keys: Sequence[str], old: object) -> float:
    """Seconds for which `old` had been replaced when it was asked for and answered all the same, in the time that follows."""
    written, oldest = time.monotonic(), 0.0
    while time.monotonic() < written + 2 * BOUND:
        for key in keys:
            began = time.monotonic()
            if cache.get(key) == old:
                oldest = max(oldest, began - written)
    return oldest


@pytest.mark.parametrize("slots", [1, 8])  # the server that a slot moves to is listened to already, or not
def test_every_master_is_heard_and_a_slot_that_moves_is_noticed(cluster: Cluster, slots: int) -> None:
    with managed(cluster.url, near=BOUND, slots=slots) as here, managed(cluster.url, near=False, slots=slots) as there:
        cache, other = here.get_cache("a"), there.get_cache("a")
        other.set_many(dict.fromkeys(KEYS, 1))
        other.set("tagged", 1, tags=["t"])
        make_near(cache, "tagged")
        all_near(cache)
        assert (len({cluster.master_of(server_key(cache, key)) for key in KEYS}) > 1) is (slots > 1)
        other.set_many(dict.fromkeys(KEYS, 2))
        other.invalidate_tags("t")
        eventually(lambda: not any(is_near(cache, key) for key in [*KEYS, "tagged"]))
        all_near(cache)

        slot = key_slot(server_key(cache, KEYS[0]))
        others = [node for node in cluster.masters() if node is not cluster.owner(slot)]
        cluster.move(slot, others[0], lambda: None)
        all_written(other, 3)
        assert oldest_answer(cache, KEYS, 2) <= BOUND
        all_near(cache)
        other.set(KEYS[0], 4)
        eventually(lambda: cache.get(KEYS[0]) == 4, BOUND / 2)  # the new owner is heard


def removed_at(node: Node, name: bytes) -> bool:
    """Remove a key there, where its slot is on its way to; whether it had come already."""
    with redis.Redis("127.0.0.1", node.port) as client, client.pipeline(transaction=False) as pipeline:
        pipeline.execute_command("ASKING")
        pipeline.execute_command("DEL", name)
        return bool(pipeline.execute(raise_on_error=False)[1] == 1)


@pytest.mark.parametrize("slots", [1, 8])
def test_a_slot_half_of_which_has_moved(cluster: Cluster, slots: int) -> None:
    with managed(cluster.url, near=BOUND, slots=slots) as here, managed(cluster.url, near=False, slots=slots) as there:
        cache, other = here.get_cache("a"), there.get_cache("a")
        other.set_many(dict.fromkeys(KEYS, 1))
        all_near(cache)
        slot = key_slot(server_key(cache, KEYS[0]))
        target = next(node for node in cluster.masters() if node is not cluster.owner(slot))
        ages: list[float] = []

        def halfway() -> None:
            moving = [key for key in KEYS if key_slot(server_key(cache, key)) == slot]
            for key in moving:
                cache.get(key)  # those that have moved, from where they are now
            gone = [key for key in moving if removed_at(target, server_key(cache, key))]
            assert gone
            ages.append(oldest_answer(cache, gone, 1))

        cluster.move(slot, target, halfway)
        assert ages[0] <= BOUND
        all_written(other, 2)
        eventually(lambda: [cache.get(key) for key in KEYS] == [2] * len(KEYS), AGAIN)
        all_near(cache)


@pytest.mark.parametrize("kind", ["cluster", "sentinels"])
def test_a_master_that_dies(kind: str, request: pytest.FixtureRequest) -> None:
    group = request.getfixturevalue(kind)
    slots = {"slots": 8} if kind == "cluster" else {}
    with managed(group.url, near=BOUND, **slots) as here, managed(group.url, near=False, **slots) as there:
        cache, other = here.get_cache("a"), there.get_cache("a")
        other.set_many(dict.fromkeys(KEYS, 1))
        all_near(cache)
        master = group.master() if kind == "sentinels" else group.master_of(server_key(cache, KEYS[0]))
        group.kill(master)
        eventually(lambda: not hears(cache))
        assert not any(is_near(cache, key) for key in KEYS)
        all_written(other, 2)
        eventually(lambda: [cache.get(key) for key in KEYS] == [2] * len(KEYS), AGAIN)
        all_near(cache)
        eventually(lambda: (other.set(KEYS[0], 3), other.get(KEYS[0]))[1] == 3, AGAIN)  # sentinels cut connections once more
        eventually(lambda: cache.get(KEYS[0]) == 3, BOUND)


def master_of(sentinels: SentinelGroup) -> Node | None:
    try:
        return sentinels.master() if sentinels.settled() else None
    except (LookupError, redis.ConnectionError):  # they disagree; connections are cut when a role changes
        return None


def depose(sentinels: SentinelGroup) -> None:
    """Ask until it is done: a sentinel refuses while it knows no good replica, and gives up a failover that drags on."""
    before = sentinels.master()
    for _ in range(5):
        with contextlib.suppress(redis.ResponseError):  # one is in progress, or no replica is good enough as yet
            sentinels.sentinels[0].ask("SENTINEL FAILOVER", "mymaster")
        with contextlib.suppress(AssertionError):
            return eventually(lambda: master_of(sentinels) not in (None, before), AGAIN / 2)
    pytest.fail("no failover came about")


def test_a_master_that_is_deposed_is_not_listened_to(sentinels: SentinelGroup) -> None:
    with managed(sentinels.url, near=BOUND) as here, managed(sentinels.url, near=False) as there:
        cache, other = here.get_cache("a"), there.get_cache("a")
        other.set_many(dict.fromkeys(KEYS, 1))
        all_near(cache)
        depose(sentinels)
        all_written(other, 2)
        assert oldest_answer(cache, KEYS, 1) <= BOUND
        eventually(lambda: [cache.get(key) for key in KEYS] == [2] * len(KEYS), AGAIN)
        all_near(cache)
