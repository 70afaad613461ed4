"""What others put under our keys, and replies that are not what was asked for: nobody gets them, and they do not stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from random import Random
from typing import Any

import pytest

from codomyrmex_cache import cached
from tests.conftest import Server
from tests.test_redis_faults import NEW, SLACK, WAYS, healed, resumed, right_answers, squared, warmed
from tests.troubles import TROUBLES, Scene, Script, Trouble, Way, carry_out, never

PLANTS: dict[str, Callable[[Any, bytes], object]] = {
    "list": lambda server, key: server.rpush(key, b"planted"),
    "set": lambda server, key: server.sadd(key, b"planted"),
    "sorted set": lambda server, key: server.zadd(key, {b"planted": 1}),
    "hash": lambda server, key: server.hset(key, b"planted", b"planted"),
    "hash of a lease": lambda server, key: server.hset(key, mapping={"t": b"planted", "f": b"planted", "g": b"planted"}),
    "string": lambda server, key: server.set(key, b"planted"),
    "nothing": lambda server, key: server.set(key, b""),
    "noise": lambda server, key: server.set(key, Random(key).randbytes(300)),
    "number": lambda server, key: server.set(key, b"9223372036854775807"),
    "gone": lambda server, key: None,
}


def plant(scene: Scene, what: str, kinds: str) -> None:
    """Put something else under each of our keys; these kinds of keys must be there."""
    found = list(scene.admin.scan_iter())
    assert {chr(key[key.index(b"}") + 1]) for key in found} >= set(kinds), found
    for key in found:
        scene.admin.delete(key)
        PLANTS[what](scene.admin, key)


def _token_of_noise(scene: Scene) -> None:
    """Damage the token in each lease and leave the rest of it."""
    leases = [key for key in scene.admin.scan_iter() if key[key.index(b"}") + 1 :].startswith(b"l")]
    assert leases
    for key in leases:
        scene.admin.hset(key, "t", b"\x00noise")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", PLANTS)
@pytest.mark.parametrize("moment", ["between calls", "during a load"])
def test_what_others_put_under_our_keys_is_not_ours_and_goes(own_server: Server, what: str, moment: str, way: Way) -> None:
    scene = Scene(own_server)
    trouble = Trouble(never, never)
    seconds: list[float] = []

    def script() -> Script:
        yield from warmed(scene, trouble)
        yield "set", ("tagged", "value", None, ["tag"])
        if moment == "between calls":
            plant(scene, what, "egt")
        else:
            scene.during_load = lambda: plant(scene, what, "eglt")
            answer, took = yield "square", (99,)
            assert answer == squared(99)
            scene.during_load = lambda: None
            seconds.append(took)
        answer, _ = yield "get", ("tagged", "default")
        assert answer == "default"
        yield from right_answers(scene, trouble, seconds)
        yield from healed(scene, seconds)
        answer, _ = yield "lock", ("lock",)
        assert answer > 0

    carry_out(scene, script(), way)
    assert max(seconds) <= 0.5 + SLACK, seconds
    scene.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_token_of_a_lease_holds_nobody_up(own_server: Server, way: Way) -> None:
    scene = Scene(own_server)
    seconds: list[float] = []

    def script() -> Script:
        scene.during_load = lambda: _token_of_noise(scene)
        answer, took = yield "square", (NEW[0],)
        assert answer == squared(NEW[0])
        seconds.append(took)
        scene.during_load = lambda: None
        yield from healed(scene, seconds)

    carry_out(scene, script(), way)
    assert max(seconds) <= 0.5 + SLACK, seconds
    scene.close()


def _in_turn(whats: Iterable[str], ways: Sequence[Way]) -> list[tuple[str, Way]]:
    """Each with one of the ways: what replies come to is one piece of code, and each test takes seconds."""
    return list(zip(whats, cycle(ways), strict=False))


REWRITTEN: dict[str, tuple[bytes, bytes]] = {
    "list one shorter": (rb"^\*(\d+)", b"-1"),
    "list two shorter": (rb"^\*(\d+)", b"-2"),
    "list one longer": (rb"^\*(\d+)", b"+1"),
    "list of four": (rb"^\*\d+", b"*4"),
    "list of none": (rb"^\*\d+", b"*0"),
    "null for a list": (rb"^\*\d+", b"*-1"),
    "text for a list": (rb"^\*\d+", b"+7"),
    "list for a number": (rb"^:\d+", b"*0"),
    "text for a number": (rb"(?m)^:\d+", b"+x"),
    "null for a number": (rb"(?m)^:\d+", b"$-1"),
    "zero for a number": (rb"(?m)^:\d+", b":0"),
    "seven for a number": (rb"(?m)^:\d+", b":7"),
    "number for null": (rb"(?m)^\$-1", b":7"),
    "text for null": (rb"(?m)^\$-1", b"+x"),
    "list for null": (rb"(?m)^\$-1", b"*0"),
    "null for text": (rb"(?m)^\$\d+\r\n[^\r]+", b"$-1"),
    "number for text": (rb"(?m)^\$\d+\r\n[^\r]+", b":7"),
    "list for text": (rb"(?m)^\$\d+\r\n[^\r]+", b"*0"),
    "error for all": (rb"(?s)^.*", b"-ERR of a kind that nobody knows\r\n"),
    "number for all": (rb"(?s)^.*", b":7\r\n"),
    "null for all": (rb"(?s)^.*", b"$-1\r\n"),
    "list for all": (rb"(?s)^.*", b"*2\r\n:7\r\n$-1\r\n"),
}


def rewriting(pattern: bytes, by: bytes) -> Callable[[bytes], bytes]:
    """Replaces what is found in a reply; `by` that begins with a sign is added to the number found."""

    def replacement(found: re.Match[bytes]) -> bytes:
        return b"*%d" % max(0, int(found[1]) + int(by)) if by in (b"-1", b"-2", b"+1") else by

    return lambda reply: re.sub(pattern, replacement, reply, count=0 if pattern.startswith(b"(?m)") else 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("what", "way"), _in_turn(REWRITTEN, WAYS))
def test_replies_that_are_not_what_was_asked_for_reach_nobody(own_server: Server, what: str, way: Way) -> None:
    trouble = replace(TROUBLES["damage of 3 %"], share=1.0)
    scene = trouble.scene(own_server)
    seconds: list[float] = []

    @cached("x", backend="redis", manager=scene.manager, name="tagged", version=1, tags=["tag"])
    def tagged(number: int) -> list[int]:
        return squared(number)

    def script() -> Script:
        yield from warmed(scene, trouble)
        yield "set", ("tagged", "value", None, ["tag"])
        scene.proxy.damage = rewriting(*REWRITTEN[what])
        trouble.begin(scene)
        answer, _ = yield "get", ("tagged", "default")
        assert answer in ("value", "default")
        yield "set", ("tagged", "value", None, ["tag"])
        assert [tagged(number) for number in NEW] == [squared(number) for number in NEW]
        yield from right_answers(scene, trouble, seconds)
        trouble.end(scene)
        yield from resumed(scene, 2.0)
        yield from healed(scene, [])

    carry_out(scene, script(), way)
    assert max(seconds) <= 0.5 + SLACK, seconds
    scene.close()


ONCE: dict[str, tuple[bytes, bytes]] = {
    **REWRITTEN,
    "another token": (rb"(?m)^:\d{6,}", b":1795000000000000"),
    "other generations": (rb"(?ms)^\$8\r\n.{8}\r\n", b"$8\r\n12345678\r\n"),
    "another token and other generations": (
        rb"(?ms)^:\d{6,}.*",
        b":1795000000000000\r\n:0\r\n:0\r\n" + 3 * b"$8\r\n12345678\r\n",
    ),
    "cut off": (rb"(?s)^(\*.{20}).*", rb"\1"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("what", "way"), _in_turn(ONCE, WAYS[::-1]))
def test_one_damaged_reply_costs_the_next_call_no_wait_for_a_lease(own_server: Server, what: str, way: Way) -> None:
    """The server may have given a lease that nobody knows of."""
    scene = Scene(own_server, proxied=True)
    seconds: list[float] = []
    damaged: list[bytes] = []

    def once(reply: bytes) -> bytes:
        pattern, by = ONCE[what]
        changed = re.sub(pattern, by, reply) if pattern.startswith((b"(?s)", b"(?ms)")) else rewriting(pattern, by)(reply)
        if damaged or changed == reply:
            return reply
        damaged.append(changed)
        return changed

    def script() -> Script:
        yield from warmed(scene, TROUBLES["blackhole"])
        scene.proxy.damage = once
        scene.proxy.mode = "damage"
        for _ in range(3):
            answer, took = yield "square", (NEW[0],)
            assert answer == squared(NEW[0])
            seconds.append(took)

    carry_out(scene, script(), way)
    assert damaged
    assert max(seconds) <= 0.5 + SLACK, (seconds, damaged)
    scene.close()
