"""`sample=` and `samples=`: several stored answers to one call."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from threading import Barrier
from typing import Any

import pytest

from codomyrmex_cache import MISSING, CacheManager, cached
from codomyrmex_cache import _samples as samples
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError

numbers = itertools.count()


def answer(prompt: str) -> str:
    return f"{prompt} {next(numbers)}"


def counting() -> Any:
    """A function that gives another answer each time, by what is no part of its key."""
    global numbers
    numbers = itertools.count()
    return answer


def test_successive_calls_get_the_draws_in_turn(backend_name: str, manager: CacheManager) -> None:
    ask = cached("s", backend=backend_name, samples=3, manager=manager)(counting())
    assert [ask("a") for _ in range(4)] == ["a 0", "a 1", "a 2", "a 0"]
    assert [ask("b"), ask("a"), ask("b")] == ["b 3", "a 1", "b 4"]
    assert ask.stats().misses == 5


def test_a_restarted_program_gets_the_stored_draws_in_order(backend_name: str, manager: CacheManager) -> None:
    function = counting()
    ask = cached("s", backend=backend_name, samples=5, manager=manager)(function)
    first = [ask("a") for _ in range(5)]
    again = cached("s", backend=backend_name, samples=5, manager=manager)(function)
    assert [again("a") for _ in range(5)] == first
    assert len(set(first)) == 5


def test_concurrent_calls_get_draws_of_their_own(manager: CacheManager) -> None:
    ask = cached("s", samples=8, manager=manager)(counting())
    barrier = Barrier(8)

    def call(_: int) -> str:
        barrier.wait()
        return ask("a")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(call, range(8)))) == 8
        assert len(set(pool.map(call, range(8)))) == 8
    assert ask.stats().misses == 8


def test_tasks_that_share_a_draw_share_its_call(backend_name: str, manager: CacheManager) -> None:
    numbers = itertools.count()

    @cached("s", backend=backend_name, samples=5, manager=manager, name="ask")
    async def ask(prompt: str) -> str:
        await asyncio.sleep(0.05)
        return f"{prompt} {next(numbers)}"

    async def main() -> list[str]:
        return await asyncio.gather(*[ask("a") for _ in range(100)])

    answers = asyncio.run(main())
    assert next(numbers) == 5
    assert answers == answers[:5] * 20


def test_a_failed_draw_is_asked_for_again(manager: CacheManager) -> None:
    answers = iter(["zero", None, "two", "one"])

    @cached("s", samples=3, manager=manager)
    def ask() -> str:
        answer = next(answers)
        if answer is None:
            raise ConnectionError
        return answer

    assert ask() == "zero"
    with pytest.raises(ConnectionError):
        ask()
    assert [ask(), ask(), ask(), ask()] == ["two", "zero", "one", "two"]


def test_control_methods_mean_the_next_draw_and_invalidate_all(backend_name: str, manager: CacheManager) -> None:
    ask = cached("s", backend=backend_name, samples=3, manager=manager)(counting())
    assert ask.peek("a") is MISSING
    keys = []
    for _ in range(3):
        keys.append(ask.key("a"))
        ask("a")
    assert len(set(keys)) == 3
    assert ask.key("a") == keys[0]
    assert [ask.peek("a"), ask.contains("a"), ask("a"), ask.peek("a")] == ["a 0", True, "a 0", "a 1"]
    assert ask.explain("a").outcome == "hit"
    assert ask.refresh("a") == "a 3" == ask("a")
    assert ask.invalidate("a")
    assert not ask.invalidate("a")
    assert ask.key("a") == keys[0]
    assert "sample" in ask.explain("b").same or ask.explain("b").nearest is None
    ask.seed("seeded", "a")
    assert [ask("a"), ask("a")] == ["seeded", "a 4"]
    assert ask.clear() == 2
    assert ask.key("a") == keys[0]


def test_invalidating_in_a_loop_drops_all(manager: CacheManager) -> None:
    numbers = itertools.count()

    @cached("s", samples=2, manager=manager)
    async def ask() -> int:
        return next(numbers)

    async def main() -> None:
        assert [await ask(), await ask(), await ask()] == [0, 1, 0]
        assert await ask.ainvalidate()
        assert [await ask(), await ask(), await ask()] == [2, 3, 2]

    asyncio.run(main())


def test_streams_have_draws(manager: CacheManager) -> None:
    numbers = itertools.count()

    @cached("s", samples=2, manager=manager)
    def stream() -> Iterator[int]:
        yield next(numbers)
        yield next(numbers)

    assert [list(stream()) for _ in range(3)] == [[0, 1], [2, 3], [0, 1]]


@pytest.mark.parametrize("kind", ["variable", "function"])
def test_sample_says_which_draw_a_call_wants(kind: str, backend_name: str, manager: CacheManager) -> None:
    wanted: ContextVar[int] = ContextVar("wanted", default=0)
    ask = cached("s", backend=backend_name, sample=wanted if kind == "variable" else wanted.get, manager=manager)(counting())

    def draw(number: int) -> tuple[str, str]:
        wanted.set(number)
        return ask("a"), ask.key("a")

    first = [copy_context().run(draw, number) for number in (0, 1, 2)]
    assert [copy_context().run(draw, number) for number in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert len(set(first)) == 3
    assert ask.invalidate("a")
    assert copy_context().run(draw, 1) == first[1]
    assert copy_context().run(draw, 0) != first[0]


def test_a_draw_is_the_same_entry_by_number_and_by_turn(manager: CacheManager) -> None:
    function = counting()
    in_turn = [cached("s", sample=number, manager=manager)(function)("a") for number in range(3)]
    ask = cached("s", samples=3, manager=manager)(function)
    assert [ask("a") for _ in range(3)] == in_turn == ["a 0", "a 1", "a 2"]


def test_no_other_call_and_no_call_without_draws_has_that_key(manager: CacheManager) -> None:
    function = counting()
    decorated = [cached("s", manager=manager)(function)] + [cached("s", sample=n, manager=manager)(function) for n in (0, 1)]
    keys = {ask.key(prompt) for ask in decorated for prompt in ("a", "b")}
    assert len(keys) == 6


def test_a_sample_that_cannot_be_told_is_a_bypass(manager: CacheManager) -> None:
    unset: ContextVar[int] = ContextVar("unset")
    ask = cached("s", sample=unset, manager=manager)(counting())
    assert [ask("a"), ask("a")] == ["a 0", "a 1"]
    assert ask.stats().bypasses == 2
    with pytest.raises(UnkeyableError, match="sample"):
        ask.key("a")
    objects = cached("s", samples=2, manager=manager)(lambda thing: 1)
    assert objects(object()) == 1
    assert objects.stats().bypasses == 1


def test_a_list_of_items_has_draws_too(manager: CacheManager) -> None:
    wanted: ContextVar[int] = ContextVar("wanted", default=0)
    numbers = itertools.count()

    @cached("s", batch="items", sample=wanted, manager=manager)
    def numbered(items: list[str]) -> list[int]:
        return [next(numbers) for _ in items]

    assert numbered(["a", "b"]) == [0, 1]
    wanted.set(1)
    assert numbered(["b", "a"]) == [2, 3]
    wanted.set(0)
    assert numbered(["b", "a"]) == [1, 0]


def test_only_so_many_turns_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_TURNS", 10)
    turns = samples.Turns(3)
    for number in range(100):
        assert turns.take(b"%d" % number) == 0
    assert len(turns._next) == 10
    assert [turns.take(b"99"), turns.take(b"0")] == [1, 0]


@pytest.mark.parametrize("options", [
    {"samples": 0}, {"samples": True}, {"samples": 2.0}, {"sample": "a"}, {"sample": True}, {"sample": 1, "samples": 2},
    {"samples": 2, "batch": "prompt"},
])  # fmt: skip
def test_what_means_nothing_is_refused(options: dict[str, Any], manager: CacheManager) -> None:
    with pytest.raises(CacheConfigurationError, match="sample"):
        cached("s", manager=manager, **options)(counting())
