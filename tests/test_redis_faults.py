"""Whatever is wrong with Redis: calls get the right answer, in time, without an exception; and afterwards all is well again."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from codomyrmex_cache.errors import CacheConnectionError, CacheTimeoutError
from tests.conftest import Server
from tests.troubles import TROUBLES, Scene, Script, Trouble, Way, carry_out

SLACK = 0.25
"""Seconds that a busy machine may add to a bound."""

LEASE = 5.0
"""Seconds that a call may wait for a lease that the trouble has left behind."""

OLD, NEW = (1, 2, 3), (11, 12, 13)
"""Arguments whose results are stored before the trouble begins, and others."""

OWN_KEYS = {"stored", "new", "counter", "loaded", "added", "m", "n"}

WAYS: tuple[Way, ...] = ("blocking", "asyncio")

ATTEMPTS = 5
"""How often something is tried that fails only where the machine is so busy that a reply is late."""


@pytest.fixture(params=TROUBLES)
def trouble(request: pytest.FixtureRequest) -> Trouble:
    return TROUBLES[request.param]


@pytest.fixture
def scene(own_server: Server, trouble: Trouble) -> Iterator[Scene]:
    scene = trouble.scene(own_server)
    yield scene
    scene.close()


def squared(number: int) -> list[int]:
    return [number, number * number]


def one_of(*answers: object) -> Callable[[object], bool]:
    return lambda answer: answer in answers


def whole(answer: object) -> bool:
    return type(answer) is int and answer >= 0


def subset(**values: object) -> Callable[[Any], bool]:
    return lambda answer: answer.items() <= values.items()


def own_keys(answer: list[str]) -> bool:
    return all(key in OWN_KEYS or key.startswith("@") for key in answer)


DIRECT: tuple[tuple[str, tuple[Any, ...], Callable[[Any], bool]], ...] = (
    ("get", ("stored", "default"), one_of("value", "default")),
    ("get", ("absent", "default"), one_of("default")),
    ("get", ("absent",), one_of(None)),
    ("set", ("new", "value"), one_of(None)),
    ("get", ("new", "default"), one_of("value", "default")),
    ("has", ("stored",), one_of(True, False)),
    ("has", ("absent",), one_of(False)),
    ("get_many", (["stored", "absent"],), subset(stored="value")),
    ("set_many", ({"m": 1, "n": [2]},), one_of(None)),
    ("get_many", (["m", "n"],), subset(m=1, n=[2])),
    ("keys", (), own_keys),
    ("delete", ("new",), one_of(True, False)),
    ("delete_many", (["m", "n", "absent"],), whole),
    ("clear", (), whole),
    ("get", ("stored", "default"), one_of("value", "default")),
)


def stored(scene: Scene, number: int) -> Script:
    """A call after another is a hit. Answers the seconds of the first."""
    first: list[float] = []
    for _ in range(ATTEMPTS):
        before = scene.runs[number]
        answer, took = yield "square", (number,)
        assert answer == squared(number)
        first.append(took)
        if first[1:] and scene.runs[number] == before:
            return first[0]
    raise AssertionError(f"{number} is not stored")


def warmed(scene: Scene, trouble: Trouble) -> Script:
    """Connections are open, scripts known, entries stored; unless the trouble was there before them."""
    if trouble.from_start:
        return
    for number in OLD:
        yield from stored(scene, number)
    yield "set", ("stored", "value")
    for verb, name in (("incr", "counter"), ("lock", "lock")):
        for _ in range(ATTEMPTS):
            answer, _ = yield "?" + verb, (name,)
            if type(answer) is int:
                break
        assert answer > 0


def right_answers(scene: Scene, trouble: Trouble, seconds: list[float]) -> Script:
    for number in (*OLD, *NEW, *NEW):
        answer, took = yield "square", (number,)
        assert answer == squared(number)
        seconds.append(took)
    answer, took = yield "get_or_load", ("loaded", lambda: ["loaded"])
    assert answer == ["loaded"]
    seconds.append(took)
    for verb, arguments, right in DIRECT:
        answer, _ = yield verb, arguments
        if verb != "keys" or not trouble.share:  # keys bear no signature
            assert right(answer), (verb, arguments, answer)
    answer, took = yield "square", (OLD[0],)
    assert answer == squared(OLD[0])
    seconds.append(took)


def resumed(scene: Scene, lasted: float) -> Script:
    """A second call is a hit, as soon as the breaker's next probe: it waits at most as long as the trouble, and a second."""
    deadline, number = time.monotonic() + 1.25 * (lasted + 1) + SLACK, 1000
    while True:
        number += 1
        for _ in range(2):
            answer, _ = yield "square", (number,)
            assert answer == squared(number)
        if scene.runs[number] == 1:
            return
        assert time.monotonic() < deadline, scene.cache.stats()
        time.sleep(0.02)  # polling for the server's process and for the breaker


def healed(scene: Scene, seconds: list[float]) -> Script:
    for number in (*OLD, *NEW):
        seconds.append((yield from stored(scene, number)))
    expected = [None, "value", True, True, None, 2, False]
    for _ in range(ATTEMPTS):
        answers = []
        for verb, *arguments in (
            ("set", "stored", "value"), ("get", "stored"), ("has", "stored"), ("delete", "stored"),
            ("set", "counter", 1), ("?incr", "counter"), ("?add", "counter", 1),
        ):  # fmt: skip
            answer, _ = yield verb, tuple(arguments)
            answers.append(answer)
        if answers == expected:
            break
    assert answers == expected
    assert scene.cache.stats().backend == "closed"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
def test_calls_get_right_answers_in_time_and_storing_resumes(
    scene: Scene, trouble: Trouble, way: Way, request: pytest.FixtureRequest
) -> None:
    in_trouble: list[float] = []
    afterwards: list[float] = []

    def script() -> Script:
        yield from warmed(scene, trouble)
        began = time.monotonic()
        trouble.begin(scene)
        yield from right_answers(scene, trouble, in_trouble)
        assert [scene.runs[number] >= 1 for number in NEW] == [True] * len(NEW)
        if trouble.down:
            assert scene.cache.stats().backend in ("open", "half_open")
        if trouble.down or trouble.refuses_writes:
            assert any(kind.startswith("backend:") for kind in scene.cache.stats().errors)
        trouble.end(scene)
        yield from resumed(scene, time.monotonic() - began)
        yield from healed(scene, afterwards)

    carry_out(scene, script(), way)
    request.node.user_properties += [("in trouble", max(in_trouble)), ("afterwards", max(afterwards))]
    assert max(in_trouble) <= trouble.bound + SLACK, in_trouble
    assert max(afterwards) <= LEASE


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
def test_incr_add_and_lock_raise_where_there_is_no_right_answer(scene: Scene, trouble: Trouble, way: Way) -> None:
    def script() -> Script:
        yield from warmed(scene, trouble)
        trouble.begin(scene)
        for verb, arguments in (("incr", ("counter",)), ("add", ("added", 1)), ("lock", ("lock",))) * 2:
            answer, _ = yield "?" + verb, arguments
            if trouble.down or trouble.refuses_writes:
                assert isinstance(answer, CacheConnectionError), (verb, answer)
            elif isinstance(answer, Exception):
                assert isinstance(answer, (CacheConnectionError, CacheTimeoutError)), (verb, answer)
                assert trouble.proxied
            else:
                assert type(answer) is (bool if verb == "add" else int)
        trouble.end(scene)

    carry_out(scene, script(), way)


MANY = 1000
MANY_SECONDS = 3.0
"""Twice what a thousand calls are to take beside a server that does not answer."""

DEAD = ("killed", "refuse", "frozen", "blackhole")


@pytest.fixture
def dead(request: pytest.FixtureRequest, own_server: Server) -> Iterator[Scene]:
    """A scene whose server has stopped answering after some calls."""
    trouble = TROUBLES[request.param]
    scene = trouble.scene(own_server)
    carry_out(scene, warmed(scene, trouble), "blocking")
    trouble.begin(scene)
    yield scene
    trouble.end(scene)
    scene.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dead", DEAD, indirect=True)
@pytest.mark.parametrize("way", WAYS)
def test_a_thousand_calls_beside_a_dead_server_lose_no_time(dead: Scene, way: Way, request: pytest.FixtureRequest) -> None:
    seconds: list[float] = []

    def script() -> Script:
        for number in range(100, 100 + MANY):
            answer, took = yield "square", (number,)
            assert answer == squared(number)
            seconds.append(took)
            assert sum(seconds) <= MANY_SECONDS, f"{len(seconds)} calls, {dead.cache.stats().errors}"

    carry_out(dead, script(), way)
    request.node.user_properties += [("in all", sum(seconds)), ("worst", max(seconds))]
    assert max(seconds) <= 0.5 + 2 * SLACK  # of a thousand, one may meet a machine that is busy with something else


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dead", DEAD, indirect=True)
def test_threads_beside_a_dead_server_lose_no_time(dead: Scene, request: pytest.FixtureRequest) -> None:
    def timed(number: int) -> float:
        began = time.perf_counter()
        assert dead.square(number) == squared(number)
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(64) as threads:
        seconds = list(threads.map(timed, range(100, 100 + MANY)))
    request.node.user_properties += [("in all", time.perf_counter() - began), ("worst", max(seconds))]
    assert time.perf_counter() - began <= MANY_SECONDS
    assert max(seconds) <= 0.5 + 2 * SLACK  # 64 threads wait for each other too


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dead", DEAD, indirect=True)
def test_tasks_beside_a_dead_server_lose_no_time(dead: Scene, request: pytest.FixtureRequest) -> None:
    numbers = range(100, 100 + MANY)

    async def main() -> list[list[int]]:
        answers = await asyncio.gather(*map(dead.asquare, numbers))
        await dead.manager.aclose()
        return answers

    began = time.perf_counter()
    answers = asyncio.run(main())
    took = time.perf_counter() - began
    request.node.user_properties += [("in all", took)]
    assert answers == [squared(number) for number in numbers]
    assert took <= MANY_SECONDS


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
def test_a_load_that_kills_the_server_gives_its_result(own_server: Server, way: Way, request: pytest.FixtureRequest) -> None:
    scene = Scene(own_server)

    def script() -> Script:
        yield from warmed(scene, TROUBLES["killed"])
        scene.during_load = own_server.stop
        answer, took = yield "square", (NEW[0],)
        assert answer == squared(NEW[0])
        scene.during_load, began = (lambda: None), time.monotonic()
        answer, _ = yield "square", (NEW[0],)
        assert answer == squared(NEW[0])
        assert scene.runs[NEW[0]] == 2
        own_server.start()
        yield from resumed(scene, time.monotonic() - began)
        yield from healed(scene, [])
        request.node.user_properties += [("took", took)]
        assert took <= 0.5 + SLACK

    carry_out(scene, script(), way)
    scene.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_result_beyond_max_value_bytes_is_returned_not_stored_and_counted(own_server: Server, way: Way) -> None:
    scene = Scene(own_server, max_value_bytes=2**20)
    large = os.urandom(2**23)

    def script() -> Script:
        for runs in (1, 2):
            answer, _ = yield "get_or_load", ("large", lambda: large)
            assert answer == large
            assert scene.cache.stats().loads == runs
        yield "set", ("large", large)
        answer, _ = yield "get", ("large", "default")
        assert answer == "default"
        assert scene.cache.stats().errors == {"too_large": 3}
        assert scene.cache.stats().sets == 0
        answer, _ = yield "get_or_load", ("small", lambda: large[:1000])
        answer, _ = yield "get", ("small",)
        assert answer == large[:1000]

    carry_out(scene, script(), way)
    assert sum(len(scene.admin.dump(key) or b"") for key in scene.admin.scan_iter()) < 2**16
    scene.close()


@pytest.mark.parametrize("name", ["refuse", "blackhole", "killed"])
def test_an_outage_is_told_of_at_its_beginning_and_at_its_end(
    own_server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = TROUBLES[name]
    scene = trouble.scene(own_server)
    caplog.set_level(logging.INFO, "codomyrmex_cache")

    def script() -> Script:
        yield from warmed(scene, trouble)
        assert caplog.records == []
        began = time.monotonic()
        trouble.begin(scene)
        for number in range(200):
            yield "square", (number,)
        kinds = [kind for kind in scene.cache.stats().errors if kind.startswith("backend:")]
        assert "backend:CircuitOpenError" in kinds
        assert 1 <= len(caplog.records) <= 1 + len(kinds), caplog.messages
        caplog.clear()
        trouble.end(scene)
        yield from resumed(scene, time.monotonic() - began)
        assert len(caplog.records) == 1, caplog.messages

    carry_out(scene, script(), "blocking")
    scene.close()
