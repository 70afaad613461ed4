"""What calls cost and what hits spare: tokens, money and seconds by model, and the report for people."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codomyrmex_cache import CacheManager, CacheStats, cached
from codomyrmex_cache._ledger import appraise
from codomyrmex_cache._prices import price_of
from codomyrmex_cache._worth import Ledger, Worth
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.stats import Counters, ModelStats
from codomyrmex_cache.testing import FakeClock
from tests.conftest import run_python
from tests.llm_server import KEY, Model, serving

HAS_PRICES = importlib.util.find_spec("genai_prices") is not None
with_prices = pytest.mark.skipif(not HAS_PRICES, reason="needs genai-prices")

SAID = {"role": "user", "content": "hello"}
INPUT, OUTPUT = 8, 4
"""Tokens of every answer that the server gives."""


def answer(model: str = "m", tokens: tuple[int, int] = (INPUT, OUTPUT)) -> dict[str, Any]:
    """As a provider's JSON has it."""
    return {"model": model, "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}}


@pytest.fixture
def served() -> Iterator[Model]:
    with serving() as model:
        yield model


@pytest.fixture
def openai(served: Model) -> Any:
    client = pytest.importorskip("openai").OpenAI(api_key=KEY, base_url=served.url, max_retries=0)
    yield client
    client.close()


@pytest.fixture
def anthropic(served: Model) -> Any:
    client = pytest.importorskip("anthropic").Anthropic(api_key=KEY, base_url=served.url, max_retries=0)
    yield client
    client.close()


def listed(model: str) -> float:
    """What the list of prices says of one answer of the server's."""
    from genai_prices import Usage, calc_price

    return float(calc_price(Usage(input_tokens=INPUT, output_tokens=OUTPUT), model_ref=model).total_price)


# -- by cost=


@pytest.mark.parametrize("cost", [0.25, Decimal("0.25")])
def test_cost_is_asked_for_loads_and_hits(manager: CacheManager, backend_name: str, cost: object) -> None:
    asked: list[str] = []

    @cached("n", backend=backend_name, manager=manager, cost=lambda result: asked.append(result) or cost)
    def ask(text: str) -> str:
        return text.upper()

    assert [ask("a"), ask("a"), ask("a"), ask("b")] == ["A", "A", "A", "B"]
    stats = ask.stats()
    assert (stats.cost_saved, stats.cost_spent, stats.unpriced, stats.tokens_saved) == (0.5, 0.5, 0, 0)
    assert (type(stats.cost_saved), set(asked)) == (float, {"A", "B"})
    assert stats.models == {"": ModelStats(hits=2, loads=2, seconds_saved=0.0, cost_saved=0.5, cost_spent=0.5)}
    assert manager.stats("n").cost_saved == manager.total().cost_saved == 0.5


def test_a_result_that_cost_gives_no_price_for_is_unpriced(manager: CacheManager) -> None:
    @cached("n", manager=manager, cost=lambda result: None if result == "A" else 1)
    def ask(text: str) -> str:
        return text.upper()

    for text in "aaab":
        ask(text)
    stats = ask.stats()
    assert (stats.unpriced, stats.cost_saved, stats.cost_spent, stats.models[""].unpriced_loads) == (2, 0.0, 1.0, 1)


@pytest.mark.parametrize("gives", ["text", True, float("nan"), ZeroDivisionError, [1]])
def test_a_failing_cost_breaks_no_call_and_is_counted(
    manager: CacheManager, backend_name: str, gives: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def cost(result: object) -> Any:
        if gives is ZeroDivisionError:
            raise gives
        return gives

    @cached("n", backend=backend_name, manager=manager, cost=cost)
    def ask(number: int) -> int:
        return number

    assert [ask(1), ask(1), ask(1)] == [1, 1, 1]
    stats = ask.stats()
    assert (stats.hits, stats.unpriced, stats.models[""].unpriced_loads, stats.cost_saved) == (2, 2, 1, 0.0)
    assert stats.errors["cost"] >= 2
    assert len([record for record in caplog.records if "cost" in record.message]) == 1


def test_cost_must_be_callable(manager: CacheManager) -> None:
    with pytest.raises(CacheConfigurationError, match=r"cost=0\.25"):
        cached("n", manager=manager, cost=0.25)  # type: ignore[call-overload]


def test_cost_is_asked_once_for_all_hot_hits(manager: CacheManager) -> None:
    asked: list[object] = []

    @cached("n", manager=manager, cost=lambda result: asked.append(result) or 0.5)
    def ask(number: int) -> list[int]:
        return [number]

    ask(1)
    before = len(asked)
    for _ in range(1_000):
        ask(1)
    assert (ask.stats().cost_saved, len(asked)) == (500.0, before)


def test_a_cost_that_changes_what_it_is_asked_about_changes_no_answer(manager: CacheManager, backend_name: str) -> None:
    @cached("n", backend=backend_name, manager=manager, cost=lambda result: result.clear() if len(asked) else None)
    def ask(number: int) -> list[int]:
        return [number]

    asked: list[int] = []
    ask(1)
    asked.append(1)
    for _ in range(3):
        ask(1)
    assert ask.peek(1) == [1]


def test_a_cost_beside_usage_is_told_by_model(manager: CacheManager) -> None:
    @cached("n", manager=manager, cost=lambda result: 2.0)
    def ask(model: str) -> dict[str, Any]:
        return answer(model)

    for model in ("one", "one", "two", "one"):
        ask(model)
    models = ask.stats().models
    assert {name: (model.hits, model.tokens_saved, model.cost_saved) for name, model in models.items()} == {
        "one": (2, 2 * (INPUT + OUTPUT), 4.0), "two": (0, 0, 0.0),
    }  # fmt: skip


# -- which outcomes spare something


def test_a_stale_hit_spares_and_its_refresh_spends(manager: CacheManager, clock: FakeClock) -> None:
    @cached("n", ttl=10, stale=10, manager=manager, cost=lambda result: 1.0)
    def ask(number: int) -> int:
        clock.advance(3)
        return number

    ask(1)
    clock.advance(11)
    refreshed = threading.Event()
    ask(1)
    for _ in range(1_000):
        if ask.stats().loads == 2:
            break
        refreshed.wait(0.01)
    stats = ask.stats()
    assert (stats.stale_hits, stats.cost_saved, stats.seconds_saved, stats.cost_spent) == (1, 1.0, 3.0, 2.0)


@pytest.mark.parametrize("bare", [True, False])
def test_calls_that_join_a_load_spare_it(manager: CacheManager, bare: bool) -> None:
    begun, others = threading.Event(), threading.Semaphore(0)

    @cached("n", manager=manager, cost=None if bare else lambda result: 1.0)
    def ask(number: int) -> dict[str, Any]:
        begun.set()
        others.acquire()
        return answer()

    threads = [threading.Thread(target=ask, args=(1,)) for _ in range(10)]
    threads[0].start()
    begun.wait()
    for thread in threads[1:]:
        thread.start()
    others.release()
    for thread in threads:
        thread.join()
    stats = ask.stats()
    assert (stats.misses, stats.loads, stats.coalesced + stats.hits) == (1, 1, 9)
    assert (stats.models["m"].hits, stats.models["m"].loads, stats.tokens_saved) == (9, 1, 9 * (INPUT + OUTPUT))
    assert stats.cost_saved == (0.0 if bare else 9.0)


def test_tasks_that_join_a_load_spare_it(manager: CacheManager, backend_name: str) -> None:
    @cached("n", backend=backend_name, manager=manager, cost=lambda result: 1.0)
    async def ask(number: int) -> str:
        await asyncio.sleep(0.01)
        return "said"

    async def all_at_once() -> None:
        await asyncio.gather(*(ask(1) for _ in range(10)))
        await ask(1)

    asyncio.run(all_at_once())
    assert (ask.stats().loads, ask.stats().cost_saved, ask.stats().cost_spent) == (1, 10.0, 1.0)


def test_a_stored_exception_costs_nothing(manager: CacheManager) -> None:
    @cached("n", manager=manager, errors={KeyError: 60}, cost=lambda result: 1.0)
    def ask(number: int) -> int:
        raise KeyError(number)

    for _ in range(3):
        with pytest.raises(KeyError):
            ask(1)
    stats = ask.stats()
    assert (stats.hits, stats.models, dict(stats.errors)) == (2, {}, {})


def test_a_result_that_is_not_stored_was_spent_all_the_same(manager: CacheManager) -> None:
    @cached("n", manager=manager, store_if=lambda result: False, cost=lambda result: 1.0)
    def ask(number: int) -> int:
        return number

    ask(1), ask(1)
    assert (ask.stats().cost_spent, ask.stats().cost_saved) == (2.0, 0.0)


def test_each_item_of_a_batch_has_its_worth(manager: CacheManager, backend_name: str) -> None:
    @cached("n", backend=backend_name, manager=manager, batch="texts", cost=lambda vector: 0.5 * len(vector))
    def embed(texts: list[str]) -> list[list[float]]:
        return [[1.0, 2.0] for _ in texts]

    embed(["a", "b"])
    embed(["b", "c", "a"])
    assert (embed.stats().cost_spent, embed.stats().cost_saved) == (3.0, 2.0)


def test_plain_results_have_no_worth(manager: CacheManager, backend_name: str) -> None:
    results: list[Any] = ["text", 1, None, [1, 2], [], {"usage": "none"}, ("a",), [[1.0]], {"usage": {"prompt_tokens": "8"}}]

    @cached("n", backend=backend_name, manager=manager)
    def ask(place: int) -> Any:
        return results[place]

    for _ in range(3):
        assert [ask(place) for place in range(len(results))] == results
    assert (ask.stats().models, ask.stats().tokens_saved, ask.stats().cost_saved, ask.stats().unpriced) == ({}, 0, 0.0, 0)


def test_a_result_that_cannot_be_read_is_counted(manager: CacheManager) -> None:
    class Odd(dict):  # type: ignore[type-arg]
        def get(self, *arguments: object) -> Any:
            raise RuntimeError("not now")

    @cached("n", manager=manager, copy=False)
    def ask(number: int) -> Any:
        return Odd()

    assert ask(1) == ask(1) == {}
    assert (ask.stats().errors["cost"] > 0, ask.stats().models) == (True, {})


def test_no_code_of_a_results_class_runs(manager: CacheManager) -> None:
    class Remote:
        def __getattr__(self, name: str) -> Any:
            if name in ("usage", "model", "message", "response"):
                raise AssertionError(f"asked for {name}")
            raise AttributeError(name)

    @cached("n", manager=manager, copy=False)
    def ask(number: int) -> Any:
        return Remote()

    assert ask(1) is ask(1)
    assert (ask.stats().models, dict(ask.stats().errors)) == ({}, {})


def test_what_is_read_is_what_the_reader_of_completions_reads(openai: Any, anthropic: Any) -> None:
    from codomyrmex_cache._completions import model_of, usage_of

    chat: dict[str, Any] = {"model": "gpt-4o", "messages": [SAID]}
    answers: list[Any] = [
        openai.chat.completions.create(**chat),
        list(openai.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})),
        openai.responses.create(model="gpt-4o", input="hello"),
        list(openai.responses.create(model="gpt-4o", input="hello", stream=True)),
        openai.embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float"),
        anthropic.messages.create(model="claude-opus-4-6", max_tokens=9, messages=[SAID]),
        list(anthropic.messages.create(model="claude-opus-4-6", max_tokens=9, messages=[SAID], stream=True)),
    ]
    for result in answers:
        for form in (result, _plain(result)):
            worth = appraise(None, Counters(), form)
            assert worth is not None
            assert (worth.model, (worth.input, worth.output)) == (model_of(form), tuple(usage_of(form) or ()))


def _plain(result: Any) -> Any:
    return [item.model_dump() for item in result] if isinstance(result, list) else result.model_dump()


def test_of_a_long_stream_the_ends_are_read() -> None:
    items = [{"model": "m"}, *({"choices": []} for _ in range(5_000)), {"usage": {"prompt_tokens": 8, "completion_tokens": 4}}]
    worth = appraise(None, Counters(), items)
    assert worth is not None
    assert worth[:3] == ("m", 8, 4)


# -- streams


def test_a_stream_counts_by_its_items(manager: CacheManager, backend_name: str) -> None:
    @cached("n", backend=backend_name, manager=manager, cost=lambda items: float(len(items)))
    def tell(number: int) -> Iterator[str]:
        yield from ("a", "b", "c")

    assert [list(tell(1)) for _ in range(4)] == [["a", "b", "c"]] * 4
    assert (tell.stats().hits, tell.stats().cost_spent, tell.stats().cost_saved) == (3, 3.0, 9.0)


def test_callers_who_share_a_running_stream_spare_it_when_it_has_ended(manager: CacheManager) -> None:
    @cached("n", manager=manager, cost=lambda items: float(len(items)))
    def tell(number: int) -> Iterator[str]:
        yield from ("a", "b", "c")

    streams = [tell(1) for _ in range(3)]
    firsts = [next(stream) for stream in streams]
    assert (firsts, tell.stats().coalesced, tell.stats().cost_saved) == (["a"] * 3, 2, 0.0)
    for stream in streams:
        list(stream)
    assert (tell.stats().cost_spent, tell.stats().cost_saved) == (3.0, 6.0)


def test_a_stream_broken_off_spares_nothing(manager: CacheManager) -> None:
    @cached("n", manager=manager, cost=lambda items: 1.0)
    def tell(number: int) -> Iterator[str]:
        yield "a"
        raise OSError

    one, other = tell(1), tell(1)
    assert [next(one), next(other)] == ["a", "a"]
    for stream in (one, other):
        with pytest.raises(OSError):
            next(stream)
    assert (tell.stats().coalesced, tell.stats().models) == (1, {})


def test_a_stream_that_is_not_recorded_is_not_asked_about(manager: CacheManager) -> None:
    @cached("n", manager=manager, stream="off", cost=lambda items: 1.0)
    def tell(number: int) -> Any:
        return (item for item in "ab")

    assert list(tell(1)) == ["a", "b"]
    assert (tell.stats().models, tell.stats().errors.get("cost")) == ({}, None)


def test_an_async_stream_counts_by_its_items(manager: CacheManager) -> None:
    @cached("n", manager=manager, cost=lambda items: float(len(items)))
    async def tell(number: int) -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async def hear() -> list[str]:
        return [item async for item in tell(1)]

    async def thrice() -> list[list[str]]:
        return [await hear() for _ in range(3)]

    assert asyncio.run(thrice()) == [["a", "b"]] * 3
    assert (tell.stats().cost_spent, tell.stats().cost_saved) == (2.0, 4.0)


# -- the real SDKs


def expected(model: str, hits: int, loads: int = 1) -> tuple[Any, ...]:
    """What `figures` must be."""
    price = listed(model)
    saved, spent = pytest.approx(hits * price, rel=1e-12), pytest.approx(loads * price, rel=1e-12)
    return hits * INPUT, hits * OUTPUT, saved, 0, loads * (INPUT + OUTPUT), spent


def figures(stats: CacheStats, model: str) -> tuple[Any, ...]:
    assert set(stats.models) == {model}
    told = stats.models[model]
    saved = told.input_tokens_saved, told.output_tokens_saved, told.cost_saved
    return *saved, told.unpriced, told.tokens_spent, told.cost_spent


@with_prices
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-2024-08-06"])
def test_chat_completions_are_priced_by_the_list(
    manager: CacheManager, backend_name: str, openai: Any, served: Model, model: str
) -> None:
    @cached("n", backend=backend_name, manager=manager)
    def ask(model: str) -> Any:
        return openai.chat.completions.create(model=model, messages=[SAID])

    usages = [ask(model).usage for _ in range(6)]
    assert (served.requests, {(usage.prompt_tokens, usage.completion_tokens) for usage in usages}) == (1, {(INPUT, OUTPUT)})
    assert figures(ask.stats(), model) == expected(model, 5)
    assert manager.stats("n").models == ask.stats().models


@with_prices
def test_responses_are_priced_by_the_list(manager: CacheManager, openai: Any) -> None:
    @cached("n", manager=manager)
    def ask(text: str) -> Any:
        return openai.responses.create(model="gpt-4o", input=text)

    for _ in range(3):
        ask("hello")
    assert figures(ask.stats(), "gpt-4o") == expected("gpt-4o", 2)


@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")  # the SDK's, which knows when models end
@with_prices
def test_messages_are_priced_by_the_list(manager: CacheManager, anthropic: Any) -> None:
    @cached("n", manager=manager)
    def ask(text: str) -> Any:
        return anthropic.messages.create(model="claude-sonnet-4-5", max_tokens=9, messages=[SAID])

    for _ in range(3):
        ask("hello")
    assert figures(ask.stats(), "claude-sonnet-4-5") == expected("claude-sonnet-4-5", 2)


@with_prices
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_with_usage_is_priced_by_the_list(
    manager: CacheManager, served: Model, openai: Any, asynchronous: bool
) -> None:
    sdk = pytest.importorskip("openai")
    options: dict[str, Any] = {"model": "gpt-4o", "messages": [SAID], "stream": True, "stream_options": {"include_usage": True}}
    if not asynchronous:
        ask = cached("n", manager=manager, name="ask")(lambda: openai.chat.completions.create(**options))
        for _ in range(3):
            list(ask())
    else:

        async def all_calls() -> None:
            async with sdk.AsyncOpenAI(api_key=KEY, base_url=served.url, max_retries=0) as client:

                @cached("n", manager=manager, name="ask", ignore=["client"])
                async def ask(client: Any) -> Any:
                    return await client.chat.completions.create(**options)

                for _ in range(3):
                    [chunk async for chunk in await ask(client)]

        asyncio.run(all_calls())
    assert (served.requests, figures(manager.stats("n"), "gpt-4o")) == (1, expected("gpt-4o", 2))


@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")  # the SDK's, which knows when models end
@with_prices
def test_an_event_stream_is_priced_by_the_list(manager: CacheManager, anthropic: Any) -> None:
    @cached("n", manager=manager)
    def ask(text: str) -> Any:
        return anthropic.messages.create(model="claude-sonnet-4-5", max_tokens=9, messages=[SAID], stream=True)

    for _ in range(3):
        list(ask("hello"))
    assert figures(ask.stats(), "claude-sonnet-4-5") == expected("claude-sonnet-4-5", 2)


OPENAI = {"prompt_tokens": 1_000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 800}}
RESPONSES = {"input_tokens": 1_000, "output_tokens": 10, "input_tokens_details": {"cached_tokens": 800}}
ANTHROPIC = {"input_tokens": 50, "output_tokens": 10, "cache_read_input_tokens": 800, "cache_creation_input_tokens": 150}


@with_prices
@pytest.mark.parametrize(
    ("usage", "model", "provider", "flavor"),
    [
        (OPENAI, "gpt-4o", "openai", "chat"),
        (RESPONSES, "gpt-4o", "openai", "responses"),
        (ANTHROPIC, "claude-sonnet-4-5", "anthropic", "default"),
    ],
)
def test_what_a_provider_has_cached_itself_has_its_own_price(
    manager: CacheManager, usage: dict[str, Any], model: str, provider: str, flavor: str
) -> None:
    from genai_prices import calc_price, extract_usage

    result = {"model": model, "usage": usage}
    known = extract_usage(result, provider_id=provider, api_flavor=flavor)
    price = float(calc_price(known.usage, model_ref=model, provider_id=provider).total_price)

    @cached("n", manager=manager)
    def ask(text: str) -> dict[str, Any]:
        return result

    ask("hello"), ask("hello")
    stats = ask.stats()
    assert (stats.cost_saved, stats.tokens_saved) == (pytest.approx(price), 1_010)
    assert price < float(calc_price(known.usage.__class__(input_tokens=1_000, output_tokens=10), model_ref=model).total_price)


def test_a_stream_without_usage_is_unpriced(manager: CacheManager, openai: Any) -> None:
    @cached("n", manager=manager)
    def ask(text: str) -> Any:
        return openai.chat.completions.create(model="gpt-4o", messages=[SAID], stream=True)

    for _ in range(3):
        list(ask("hello"))
    told = ask.stats().models["gpt-4o"]
    assert (told.hits, told.unpriced, told.unpriced_loads, told.cost_saved, told.tokens_saved) == (2, 2, 1, 0.0, 0)


def test_an_unknown_model_is_unpriced(manager: CacheManager, openai: Any) -> None:
    @cached("n", manager=manager)
    def ask(text: str) -> Any:
        return openai.chat.completions.create(model="nobodys-model", messages=[SAID])

    for _ in range(3):
        ask("hello")
    told = ask.stats().models["nobodys-model"]
    assert (told.hits, told.unpriced, told.unpriced_loads, told.cost_saved) == (2, 2, 1, 0.0)
    assert (told.tokens_saved, told.tokens_spent) == (2 * (INPUT + OUTPUT), INPUT + OUTPUT)


@with_prices
def test_files_tell_the_worth_to_another_process(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    source = """
import os
from openai import OpenAI
from codomyrmex_cache import cached
client = OpenAI(api_key="sk-test", base_url=os.environ["MODEL_URL"], max_retries=0)
@cached("n", backend="file_based", name="ask")
def ask(text):
    return client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": text}])
for _ in range(4):
    ask("hello")
stats = ask.stats()
print(stats.loads, stats.tokens_saved, repr(stats.cost_saved), stats.unpriced, repr(stats.cost_spent))
"""
    with serving() as model:
        environment = {"CODOMYRMEX_CACHE_DIR": str(tmp_path), "MODEL_URL": model.url, "no_proxy": "127.0.0.1"}
        told = [run_python(source, **environment).split() for _ in range(2)]
        assert model.requests == 1
    price, tokens = listed("gpt-4o"), INPUT + OUTPUT
    assert [(int(line[0]), int(line[1]), int(line[3])) for line in told] == [(1, 3 * tokens, 0), (0, 4 * tokens, 0)]
    assert [(float(line[2]), float(line[4])) for line in told] == [
        (pytest.approx(3 * price), pytest.approx(price)), (pytest.approx(4 * price), 0.0),
    ]  # fmt: skip


# -- the list of prices


@with_prices
def test_the_list_is_imported_when_somebody_asks_and_fetches_nothing(tmp_path: Path) -> None:
    source = """
import socket, sys, threading
def refuse(*arguments): raise AssertionError("somebody wants to talk to the network")
socket.socket.connect = socket.getaddrinfo = refuse
from codomyrmex_cache import cached
@cached
def ask(text): return {"model": "gpt-4o", "usage": {"prompt_tokens": 8, "completion_tokens": 4}}
for _ in range(3): ask("hello")
print("genai_prices" in sys.modules, ask.stats().unpriced, "genai_prices" in sys.modules, threading.active_count())
from genai_prices import data_snapshot
print(data_snapshot.get_snapshot().from_auto_update)
"""
    assert run_python(source).split() == ["False", "0", "True", "1", "False"]


def test_without_the_list_everything_is_unpriced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    price_of.cache_clear()
    try:
        assert price_of("gpt-4o", 8, 4) is None
    finally:
        price_of.cache_clear()


@with_prices
def test_a_list_that_fails_gives_no_price(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def calc_price(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("of another release")

    monkeypatch.setattr("genai_prices.calc_price", calc_price)
    assert price_of("a model of this test alone", 8, 4) is None
    assert "of another release" in caplog.text


# -- the books


def test_worths_beyond_those_kept_apart_are_summed() -> None:
    ledger = Ledger()
    for number in range(3_000):
        ledger.add(Worth("m", number, 1, cost=0.5), hits=2, seconds=1.0, loads=1)
    ledger.add(Worth("m", 7, 1, cost=0.5), hits=1)
    sums = sum(range(3_000))
    assert ledger.models() == Ledger(ledger).models() == {
        "m": ModelStats(6_001, 3_000, 3_000.0, 2 * sums + 7, 6_001, 3_000.5, 0, sums, 3_000, 1_500.0, 0)
    }  # fmt: skip
    assert len(ledger._lines) < 2_000


def test_models_beyond_those_kept_apart_are_one() -> None:
    ledger = Ledger()
    for number in range(500):
        ledger.add(Worth(f"model {number}", 1, 0, cost=1.0), loads=1)
    models = ledger.models()
    assert (len(models), models["others"].loads, sum(model.loads for model in models.values())) == (257, 244, 500)


def test_hits_of_dead_cells_are_not_forgotten() -> None:
    counters = Counters()
    counters.appraise = lambda value: Worth("m", 1, 2, cost=0.5)
    for number in range(5_000):
        cell = SimpleNamespace(hits=0, cost=1.0, followed=False, entry=object())
        counters.follow(cell, number)
        cell.hits, cell.entry = 3, None
    del cell
    gc.collect()
    stats = counters.snapshot()
    assert (stats.hits, stats.seconds_saved, len(counters._cells) < 3_000) == (15_000, 15_000.0, True)
    assert stats.models["m"] == ModelStats(
        hits=15_000, seconds_saved=15_000.0, input_tokens_saved=15_000, output_tokens_saved=30_000, cost_saved=7_500.0
    )


def test_a_fork_begins_its_books_anew() -> None:
    counters = Counters()
    counters.appraise = lambda value: Worth("m", 1, 2, cost=0.5)
    cell = SimpleNamespace(hits=7, cost=1.0, followed=False, entry=object())
    counters.follow(cell, None)
    counters.hit(1.0, None)
    assert counters.snapshot().cost_saved == 4.0
    counters.after_fork()
    assert (counters.snapshot().hits, counters.snapshot().models) == (0, {})
    cell.hits += 1
    assert (counters.snapshot().hits, counters.snapshot().cost_saved) == (1, 0.5)


def test_snapshots_are_merged_by_model() -> None:
    one = CacheStats(hits=1, models={"a": ModelStats(hits=1, cost_saved=0.5, unpriced=1), "b": ModelStats(loads=2)})
    other = CacheStats(hits=2, models={"a": ModelStats(hits=2, cost_saved=0.25, input_tokens_saved=3)})
    merged = CacheStats.merge([one, other, CacheStats()])
    assert merged.models == {
        "a": ModelStats(hits=3, cost_saved=0.75, unpriced=1, input_tokens_saved=3), "b": ModelStats(loads=2),
    }  # fmt: skip
    assert (merged.cost_saved, merged.unpriced, merged.tokens_saved) == (0.75, 1, 3)
    with pytest.raises(TypeError):
        merged.models["c"] = ModelStats()  # type: ignore[index]


# -- the report


def test_the_report_says_it_by_namespace_function_and_model(manager: CacheManager, clock: FakeClock) -> None:
    @cached("llm", manager=manager, name="ask", cost=lambda result: None if result["model"] == "new" else 0.0123)
    def ask(model: str) -> dict[str, Any]:
        clock.advance(2)
        return answer(model)

    @cached("analysis", manager=manager, name="measure")
    def measure(number: int) -> int:
        clock.advance(0.5)
        return number

    for model in ("old", "old", "old", "new", "new"):
        ask(model)
    for number in (1, 1, 2, 2):
        measure(number)
    manager.get_cache("direct").get("k")
    assert (
        manager.report()
        == """\
namespace, function, model  backend    calls  hit rate  size  load s  saved s  tokens saved  $ saved  unpriced
analysis                    in_memory      4     50.0%     2    1.00     1.00
  measure                                  4     50.0%          1.00     1.00
direct                      in_memory      1      0.0%     0    0.00     0.00
llm                         in_memory      5     60.0%     2    4.00     6.00            36   0.0246         1
  ask                                      5     60.0%          4.00     6.00            36   0.0246         1
    new                                    2     50.0%                   2.00            12        ?         1
    old                                    3     66.7%                   4.00            24   0.0246         0"""
    )


def test_a_report_without_models_has_no_columns_for_them(manager: CacheManager) -> None:
    square = cached("n", manager=manager, name="square")(lambda x: x * x)
    square(2), square(2)
    assert (
        manager.report()
        == """\
namespace, function, model  backend    calls  hit rate  size  load s  saved s
n                           in_memory      2     50.0%     1    0.00     0.00
  square                                   2     50.0%          0.00     0.00"""
    )


def losses(manager: CacheManager) -> list[str]:
    return [line for line in manager.report().splitlines() if line.startswith("caching loses")]


def test_the_report_names_the_argument_that_never_repeats(manager: CacheManager, backend_name: str) -> None:
    @cached("n", backend=backend_name, manager=manager, name="ask")
    def ask(prompt: str, stamp: float, user: str = "me") -> str:
        return prompt

    for number in range(20):
        assert losses(manager) == []
        ask(f"question {number % 3}", number + 0.5)
    assert losses(manager) == [
        "caching loses in ask (namespace 'n'): 20 calls, hit rate 0.0%: stamp never repeats"
    ]  # fmt: skip


def test_the_report_names_all_arguments_that_never_repeat(manager: CacheManager) -> None:
    ask = cached("n", manager=manager, name="ask")(lambda a, b, c: c)
    for number in range(30):
        ask(number, f"{number}", 1)
    assert losses(manager) == ["caching loses in ask (namespace 'n'): 30 calls, hit rate 0.0%: a and b never repeat"]


def test_the_report_knows_arguments_that_are_new_only_together(manager: CacheManager) -> None:
    ask = cached("n", manager=manager, name="ask")(lambda a, b: a)
    for number in range(30):
        ask(number % 6, number // 6)
    assert [line.rpartition(": ")[2] for line in losses(manager)] == ["no argument is always new, but all of them together are"]


def test_the_report_knows_results_that_are_not_kept(manager: CacheManager) -> None:
    ask = cached("n", manager=manager, name="ask", store_if=lambda result: False)(lambda a: a)
    for _ in range(30):
        ask(1)
    assert [line.rpartition(": ")[2] for line in losses(manager)] == [
        "the same calls come again, but their results are not stored, or not for long enough"
    ]


def test_the_report_knows_calls_that_have_no_key(manager: CacheManager) -> None:
    ask = cached("n", manager=manager, name="ask")(lambda lock: 1)
    for _ in range(30):
        ask(threading.Lock())
    assert losses(manager) == ["caching loses in ask (namespace 'n'): 30 calls, of 30 an argument has no key"]


def test_the_report_says_no_more_than_it_knows(manager: CacheManager) -> None:
    ask = cached("n", manager=manager, name="ask")(lambda a: a)
    for number in range(30):
        ask(number)
    ask.contains(1)  # from here on by key: nothing is known of the loads before
    assert losses(manager) == ["caching loses in ask (namespace 'n'): 30 calls, hit rate 0.0%"]


def test_the_report_takes_little_of_many_calls(manager: CacheManager) -> None:
    ask = cached("n", manager=manager, name="ask")(lambda a, b: a)
    for number in range(5_000):
        ask(number, number % 3)
    assert len(manager.get_cache("n").counters("ask").sampled()) == 1_024
    assert losses(manager) == ["caching loses in ask (namespace 'n'): 5000 calls, hit rate 0.0%: a never repeats"]


def test_the_report_leaves_functions_alone_that_are_hit_or_new(manager: CacheManager) -> None:
    hit, new = (cached("n", manager=manager, name=name)(lambda a: a) for name in ("hit", "new"))
    for number in range(40):
        hit(number % 36)
        new(number % 19)
    for number in range(19):
        new(number)
    assert losses(manager) == []


def test_the_last_calls_count_in_bounded_memory(manager: CacheManager) -> None:
    ask = cached("n", manager=manager, name="ask", store_if=lambda result: False)(lambda a, b: a)
    for number in range(1_000):
        ask(number, number % 5)
    assert len(manager.get_cache("n").counters("ask").loaded_by) == 128
    assert losses(manager) == ["caching loses in ask (namespace 'n'): 1000 calls, hit rate 0.0%: a never repeats"]


def test_a_report_in_colours_has_the_same_content(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    text = pytest.importorskip("rich.text")
    ask = cached("n", manager=manager, name="ask", cost=lambda result: 0.5)(lambda number: number)
    for number in range(40):
        ask(number)
    monkeypatch.setenv("COLUMNS", "40")
    coloured = manager.report(rich=True)
    plain = text.Text.from_ansi(coloured).plain
    assert "\x1b[" in coloured
    words = set(manager.report().split())
    assert words - set(plain.split()) == set()
    assert "…" not in plain


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], coloured: bool
) -> None:
    pytest.importorskip("rich")
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    manager.get_cache("n").get("k")
    assert ("\x1b[" in manager.report()) is coloured
    assert "\x1b[" not in manager.report(rich=False)
