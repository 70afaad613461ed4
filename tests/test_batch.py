"""Functions of a list: every item an entry of its own, one run for those that are missing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codomyrmex_cache import MISSING, CacheManager, cached
from codomyrmex_cache.errors import CacheConfigurationError, CacheError, CacheTimeoutError
from codomyrmex_cache.testing import FakeClock


class Embedder:
    """A function of a list that remembers with which lists it was called."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    def __call__(self, texts: list[Any], factor: int = 1) -> list[list[Any]]:
        self.calls.append(list(texts))
        return [[text, factor] for text in texts]


def _embed(manager: CacheManager, backend_name: str, **options: Any) -> tuple[Embedder, Any]:
    inner = Embedder()

    @cached("batch", backend=backend_name, manager=manager, batch="texts", name="embed", **options)
    def embed(texts: list[Any], factor: int = 1) -> list[list[Any]]:
        return inner(texts, factor)

    return inner, embed


def waiting_for(embed: Any, item: str) -> int:
    """How many callers depend on the load of this item."""
    space = embed.cache.space
    flight = space.flights._flights.get(space.stored(embed.key([item])))
    return 0 if flight is None else flight._waiting


def test_only_what_is_missing_is_loaded_in_the_order_asked_for(manager: CacheManager, backend_name: str) -> None:
    inner, embed = _embed(manager, backend_name)
    assert embed(["a", "b"]) == [["a", 1], ["b", 1]]
    assert embed(["c", "b", "d", "c"]) == [["c", 1], ["b", 1], ["d", 1], ["c", 1]]
    assert embed(texts=["d"], factor=2) == [["d", 2]]
    assert inner.calls == [["a", "b"], ["c", "d"], ["d"]]
    stats = embed.stats()
    assert (stats.hits, stats.misses, stats.loads) == (1, 5, 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(st.lists(st.sampled_from([0, 1, True, 1.0, "1", b"1", None, (1,), "x"]), max_size=8), max_size=6),
    most=st.integers(1, 4),
)
def test_any_calls_are_answered_like_the_function_itself(calls: list[list[Any]], most: int) -> None:
    inner, embed = _embed(CacheManager(), "in_memory", max_batch=most)
    for texts in calls:
        found = embed(texts)
        assert [repr(one) for one in found] == [repr([text, 1]) for text in texts]
        assert len({id(one) for one in found}) == len(found)
    loaded = [repr(text) for call in inner.calls for text in call]
    assert len(loaded) == len(set(loaded))
    assert all(len(call) <= most for call in inner.calls)


def test_a_function_is_given_no_more_than_max_batch(manager: CacheManager, backend_name: str) -> None:
    inner, embed = _embed(manager, backend_name, max_batch=2)
    embed(list("abcde"))
    assert inner.calls == [["a", "b"], ["c", "d"], ["e"]]


def test_items_expire_and_are_invalidated_one_by_one(manager: CacheManager, backend_name: str, clock: FakeClock) -> None:
    inner, embed = _embed(manager, backend_name, ttl=60, tags=lambda texts, factor: [f"text:{texts}"])
    embed(["a", "b"])
    clock.advance(30)
    embed(["c"])
    clock.advance(30)
    embed(["a", "b", "c"])
    assert inner.calls[2:] == [["a", "b"]]
    assert embed.invalidate(["a", "absent"]) is True
    embed.cache.invalidate_tags("text:b")
    embed(["a", "b", "c"])
    assert inner.calls[3:] == [["a", "b"]]


def test_control_methods_speak_of_every_item(manager: CacheManager, backend_name: str) -> None:
    inner, embed = _embed(manager, backend_name)
    embed.seed([["seeded", 1], ["b", 1]], ["a", "b"])
    assert embed.peek(["b", "a"]) == [["b", 1], ["seeded", 1]]
    assert embed.peek(["a", "c"]) is MISSING
    assert [embed.contains(["a", "b"]), embed.contains(["c"])] == [True, False]
    assert embed.refresh(["a"]) == [["a", 1]]
    assert embed.entry(["a"]).value == ["a", 1]
    assert embed.explain(["a"]).outcome == "hit"
    assert embed.key(["a"]) != embed.key(["b"])
    with pytest.raises(CacheConfigurationError, match="list of one"):
        embed.key(["a", "b"])
    assert embed.clear() == 2
    assert inner.calls == [["a"]]


def test_items_that_others_load_are_waited_for_after_the_own_load(manager: CacheManager, backend_name: str) -> None:
    inside, release = threading.Event(), threading.Event()
    calls: list[list[str]] = []

    @cached("batch", backend=backend_name, manager=manager, batch="texts")
    def embed(texts: list[str]) -> list[str]:
        calls.append(list(texts))
        if "slow" in texts:
            inside.set()
            release.wait()
        elif "own" in texts:
            release.set()  # the slow one goes on only because this load does not wait for it
        return [text.upper() for text in texts]

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, ["slow", "shared"])
        inside.wait()
        second = pool.submit(embed, ["shared", "own", "slow"])
        assert (first.result(), second.result()) == (["SLOW", "SHARED"], ["SHARED", "OWN", "SLOW"])
    assert calls == [["slow", "shared"], ["own"]]
    assert embed.stats().coalesced == 2


INSIDE, RELEASE = threading.Event(), threading.Event()
CALLS: list[list[str]] = []


def _held_up(texts: list[str]) -> list[str]:
    CALLS.append(list(texts))
    INSIDE.set()
    RELEASE.wait()
    return [text.upper() for text in texts]


def test_two_managers_share_the_loads_of_items(tmp_path: Path) -> None:
    one, other = (
        cached("batch", backend="file_based", manager=CacheManager(directory=tmp_path), batch="texts")(_held_up)
        for _ in range(2)
    )
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one, ["a", "b"])
        INSIDE.wait()
        second = pool.submit(other, ["b"])
        RELEASE.set()
        assert (first.result(), second.result()) == (["A", "B"], ["B"])
    assert CALLS == [["a", "b"]]


@pytest.mark.parametrize("rule", ["compute", "raise", "stale"])
def test_a_wait_for_an_item_of_another_manager_ends(tmp_path: Path, rule: Any) -> None:
    INSIDE.clear()
    RELEASE.clear()

    def own(texts: list[str]) -> list[str]:
        return ["own"] * len(texts)

    one, other = (
        cached(
            "batch", backend="file_based", manager=CacheManager(directory=tmp_path), batch="texts", name="item", version=1,
            wait="50ms", on_wait_timeout=rule,
        )(function)
        for function in (_held_up, own)
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(one, ["a"])
        INSIDE.wait()
        try:
            if rule == "raise":
                with pytest.raises(CacheTimeoutError, match="took longer"):
                    other(["a", "b"])
            else:
                assert other(["a", "b"]) == ["own", "own"]
        finally:
            RELEASE.set()
        assert first.result() == ["A"]


def test_coroutine_functions(manager: CacheManager, backend_name: str) -> None:
    calls: list[list[int]] = []

    @cached("batch", backend=backend_name, manager=manager, batch="numbers", max_batch=3)
    async def squares(numbers: list[int]) -> list[int]:
        calls.append(list(numbers))
        await asyncio.sleep(0)
        return [number * number for number in numbers]

    async def main() -> None:
        results = await asyncio.gather(*(squares([number, number + 1]) for number in range(10)))
        assert results == [[number**2, (number + 1) ** 2] for number in range(10)]
        assert await squares.apeek([3]) == [9]
        assert await squares.ainvalidate([3]) is True
        assert await squares([3, 4]) == [9, 16]
        await manager.aclose()

    asyncio.run(main())
    loaded = [number for call in calls for number in call]
    assert sorted(loaded) == sorted([*range(11), 3])


def test_a_cancelled_call_leaves_others_their_items() -> None:
    async def main() -> None:
        started, go = asyncio.Event(), asyncio.Event()
        calls: list[list[str]] = []

        @cached("batch", manager=CacheManager(), batch="texts")
        async def embed(texts: list[str]) -> list[str]:
            calls.append(list(texts))
            started.set()
            await go.wait()
            return [text.upper() for text in texts]

        first = asyncio.create_task(embed(["a", "b"]))
        await started.wait()
        second = asyncio.create_task(embed(["b"]))
        while waiting_for(embed, "b") < 2:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        assert await second == ["B"]
        assert calls == [["a", "b"]]

    asyncio.run(main())


def test_when_all_have_left_the_load_is_cancelled() -> None:
    async def main() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        @cached("batch", manager=CacheManager(), batch="texts")
        async def embed(texts: list[str]) -> list[str]:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return texts

        call = asyncio.create_task(embed(["a", "b"]))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await cancelled.wait()
        assert embed.cache.space.flights._flights == {}

    asyncio.run(main())


def test_an_exception_goes_to_all_who_wait_and_is_not_stored() -> None:
    inside, release = threading.Event(), threading.Event()
    runs: list[list[str]] = []

    @cached("batch", manager=CacheManager(), batch="texts")
    def embed(texts: list[str]) -> list[str]:
        runs.append(list(texts))
        inside.set()
        release.wait()
        if len(runs) == 1:
            raise KeyError("no")
        return texts

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, ["a", "b"])
        inside.wait()
        second = pool.submit(embed, ["b"])
        while waiting_for(embed, "b") < 2:
            pass
        release.set()
        errors = [first.exception(), second.exception()]
    assert [type(error) for error in errors] == [KeyError, KeyError]
    assert errors[0] is not errors[1]
    assert embed(["a"]) == ["a"]


@pytest.mark.parametrize("results", [["one"], ["one", "two", "three"], None])
def test_another_number_of_results_is_an_error(results: Any) -> None:
    @cached("batch", manager=CacheManager(), batch="texts")
    def embed(texts: list[str]) -> Any:
        return results

    with pytest.raises((CacheError, TypeError)):
        embed(["a", "b"])
    assert embed.peek(["a"]) is MISSING


def test_what_cannot_be_split_is_called_as_it_is(manager: CacheManager, backend_name: str) -> None:
    inner, embed = _embed(manager, backend_name)
    assert embed([]) == []
    assert embed("ab") == [["a", 1], ["b", 1]]
    lock = threading.Lock()
    assert embed([lock, "a"]) == [[lock, 1], ["a", 1]]
    with pytest.raises(TypeError):
        embed(3)
    assert embed(text for text in "xy") == [["x", 1], ["y", 1]]
    assert embed(("x", "y")) == [["x", 1], ["y", 1]]
    assert inner.calls[-1] == ["x", "y"]
    assert embed.stats().hits == 2


def test_an_iterator_is_gone_through_once() -> None:
    given: list[list[Any]] = []

    @cached("batch", batch="items", manager=CacheManager())
    def took(items: Any) -> list[str]:
        given.append(list(items))
        return [f"{item!s:.1} {len(given)}" for item in given[-1]]

    assert took(iter([object(), "b"])) == ["< 1", "b 1"]  # no key, so as it is
    assert len(given[0]) == 2
    assert took(iter("ab")) == ["a 2", "b 2"]
    assert took.refresh(iter("ab")) == ["a 3", "b 3"]
    assert took(iter("ba")) == ["b 3", "a 3"]
    assert took.peek([]) is MISSING


def _generator(texts: list[str]) -> Any:
    yield from texts


def _starred(*texts: str) -> Any:
    return texts


def _plain(texts: list[str]) -> Any:
    return texts


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (_plain, {"batch": "lines"}, "no parameter of this name"),
        (_starred, {"batch": "texts"}, "no parameter of this name"),
        (_generator, {"batch": "texts"}, "does not go with streams"),
        (_plain, {"batch": "texts", "stale": 10}, "stale"),
        (_plain, {"batch": "texts", "max_batch": 0}, "max_batch=0"),
    ],
)
def test_what_means_nothing_is_refused(function: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheConfigurationError, match=message):
        cached("batch", manager=CacheManager(), **options)(function)
