"""What LangChain's own suite does not ask of a cache, with the models of both SDKs against a server of our own."""

from __future__ import annotations

import asyncio
import copy
import doctest
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_openai")
pytest.importorskip("langchain_anthropic")

from langchain_anthropic import ChatAnthropic
from langchain_core.caches import BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, create_model

from codomyrmex_cache import CacheManager
from codomyrmex_cache.integrations import _generations, langchain
from codomyrmex_cache.integrations.langchain import CodomyrmexCache
from codomyrmex_cache.testing import FakeClock
from tests.conftest import Server, run_python
from tests.llm_server import KEY, Model

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings", "ignore::ResourceWarning")

OpenAI, Anthropic = "openai", "anthropic"


class City(BaseModel):
    """A city."""

    name: str


def chat(model: Model, cache: BaseCache | None = None, kind: str = OpenAI, **options: Any) -> Any:
    if kind == OpenAI:
        return ChatOpenAI(model="gpt-4o", api_key=KEY, base_url=f"{model.url}/v1", cache=cache, max_retries=0, **options)
    return ChatAnthropic(model="claude", api_key=KEY, base_url=model.url, cache=cache, max_retries=0, **options)


@pytest.fixture
def cache(manager: CacheManager, backend: str) -> CodomyrmexCache:
    return CodomyrmexCache("llm", "7d", backend, manager=manager)


@pytest.fixture
def memory() -> CodomyrmexCache:
    return CodomyrmexCache("llm", manager=CacheManager())


def asked(call: Any, *arguments: Any, is_async: bool) -> Any:
    return asyncio.run(call.ainvoke(*arguments)) if is_async else call.invoke(*arguments)


# -- hits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", [OpenAI, Anthropic])
def test_a_second_call_asks_nobody(model: Model, cache: CodomyrmexCache, kind: str, is_async: bool) -> None:
    async def twice() -> list[Any]:
        llm = chat(model, cache, kind)
        return [await llm.ainvoke("hi") if is_async else await asyncio.to_thread(llm.invoke, "hi") for _ in range(2)]

    first, second = asyncio.run(twice())
    assert model.requests == 1
    assert second.content == first.content
    assert second.usage_metadata == {**first.usage_metadata, "total_cost": 0}
    assert second.response_metadata == first.response_metadata
    assert second.additional_kwargs == first.additional_kwargs
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.sets) == (1, 1, 1)


def test_sync_and_async_share_an_entry(model: Model, cache: CodomyrmexCache) -> None:
    llm = chat(model, cache)
    first = llm.invoke("hi")
    assert asyncio.run(llm.ainvoke("hi")).content == first.content
    assert model.requests == 1


def test_a_hit_is_a_list(cache: CodomyrmexCache) -> None:
    cache.update("p", "l", (Generation(text="a"), Generation(text="b")))
    assert type(cache.lookup("p", "l")) is list


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", [OpenAI, Anthropic])
def test_tool_calls_come_back(model: Model, cache: CodomyrmexCache, kind: str, is_async: bool) -> None:
    model.answer_with("tool")

    async def twice() -> list[Any]:
        llm = chat(model, cache, kind).bind_tools([City])
        return [await llm.ainvoke("hi") if is_async else llm.invoke("hi") for _ in range(2)]

    first, second = asyncio.run(twice())
    assert model.requests == 1
    assert (
        second.tool_calls
        == first.tool_calls
        == [{"name": "weather", "args": {"city": "Oslo"}, "type": "tool_call", "id": first.tool_calls[0]["id"]}]
    )
    assert second.content == first.content


@pytest.mark.parametrize("streaming", [False, True])
def test_structured_output_on_a_hit(model: Model, cache: CodomyrmexCache, streaming: bool) -> None:
    llm = chat(model, cache, streaming=streaming).with_structured_output(City)
    first, second = llm.invoke("hi"), llm.invoke("hi")
    assert model.requests == 1
    assert type(first) is type(second) is City
    assert second == first


@pytest.mark.parametrize("answer", ["ok", "truncated", "filtered", "refused", "empty", "tool"])
def test_the_responses_interface(model: Model, memory: CodomyrmexCache, answer: str) -> None:
    llm = chat(model, memory, use_responses_api=True)
    model.answer_with(answer)
    first, second = llm.invoke("hi"), llm.invoke("hi")
    is_whole = answer in ("ok", "tool")
    assert model.requests == (1 if is_whole else 2)
    assert (second.content == first.content) == is_whole
    assert second.tool_calls == (first.tool_calls if is_whole else [])


def test_structured_output_of_the_responses_interface(model: Model, cache: CodomyrmexCache) -> None:
    llm = chat(model, cache, use_responses_api=True).with_structured_output(City)
    first, second = llm.invoke("hi"), llm.invoke("hi")
    assert model.requests == 1
    assert type(second) is City
    assert second == first


def test_several_answers_to_one_call(model: Model, memory: CodomyrmexCache) -> None:
    llm = chat(model, memory)
    first, second = (llm.generate([[HumanMessage("hi")], [HumanMessage("ho")]]) for _ in range(2))
    assert model.requests == 2
    assert [part[0].text for part in second.generations] == [part[0].text for part in first.generations]


def test_a_parsed_answer_in_the_message_is_of_the_class(model: Model, cache: CodomyrmexCache) -> None:
    llm = chat(model, cache).bind(response_format=City)
    first, second = llm.invoke("hi"), llm.invoke("hi")
    assert model.requests == 1
    assert second.additional_kwargs == first.additional_kwargs
    assert type(second.additional_kwargs["parsed"]) is City


def test_a_class_of_the_same_name_with_other_fields_asks_again(model: Model, cache: CodomyrmexCache) -> None:
    llm = chat(model, cache)
    for fields in ({"name": (str, ...)}, {"title": (str, ...)}, {"name": (str, "Oslo")}):
        answer = llm.with_structured_output(create_model("Answer", __module__=__name__, **fields)).invoke("hi")
        assert set(answer.model_dump()) == set(fields)
    assert model.requests == 3


def test_what_callers_change_is_not_stored(model: Model, cache: CodomyrmexCache) -> None:
    llm = chat(model, cache)
    first = llm.invoke("hi")
    content = first.content
    for answer in (first, llm.invoke("hi"), llm.invoke("hi")):
        assert (answer.content, answer.tool_calls) == (content, [])
        assert "stain" not in answer.response_metadata
        answer.response_metadata["stain"] = answer.response_metadata["token_usage"]["prompt_tokens"] = "stain"
        answer.content = "changed"
    assert llm.invoke("hi").response_metadata["token_usage"]["prompt_tokens"] == 8


def test_what_the_core_changes_is_not_stored(cache: CodomyrmexCache) -> None:
    cache.update("p", "l", [ChatGeneration(message=AIMessage("text"))])
    found = cache.lookup("p", "l")
    assert found is not None
    found[0].message = AIMessage("other")  # type: ignore[attr-defined]  # as for `total_cost`
    again = cache.lookup("p", "l")
    assert again is not None
    assert again[0].message.content == "text"  # type: ignore[attr-defined]


def test_messages_of_two_runs_have_two_ids(model: Model, cache: CodomyrmexCache) -> None:
    llm = chat(model, cache)
    assert len({llm.invoke("hi").id for _ in range(3)}) == 3
    assert model.requests == 1


def test_content_of_blocks_metadata_and_odd_values_come_back(cache: CodomyrmexCache) -> None:
    message = AIMessage(
        content=[{"type": "text", "text": "a\ud800"}, {"type": "image", "data": b"\x00" * 1000}],
        additional_kwargs={"set": {1, 2}, "inner": (1, None)},
        response_metadata={"logprobs": [-0.0, 1e300]},
        id="msg_1",
        name="it",
    )
    generations = [ChatGeneration(message=message, generation_info={"finish_reason": "stop"})]
    cache.update("p", "l", generations)
    assert cache.lookup("p", "l") == generations


class Odd:
    """No safe format knows it."""

    def __init__(self) -> None:
        self.numbers = [1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and other.numbers == self.numbers

    __hash__ = None  # type: ignore[assignment]


def test_objects_of_any_class_come_back_or_are_counted(manager: CacheManager, backend: str) -> None:
    cache = CodomyrmexCache("llm", None, backend, manager=manager)
    generations = [ChatGeneration(message=AIMessage("text", additional_kwargs={"odd": Odd()}))]
    cache.update("p", "l", generations)
    found = cache.lookup("p", "l")
    if backend == "redis":  # no secret, no pickle
        assert found is None
        assert sum(cache.stats().errors.values()) == 1
    else:
        assert found == generations
        found[0].message.additional_kwargs["odd"].numbers.append(2)  # type: ignore[attr-defined,index]
        assert cache.lookup("p", "l") == generations


def test_safe_codec_takes_all_that_models_give(model: Model, manager: CacheManager) -> None:
    cache = CodomyrmexCache("llm", None, "file_based", manager=manager, codec="safe")
    for _ in range(2):
        chat(model, cache).invoke("hi")
        chat(model, cache).with_structured_output(City).invoke("hi")
        chat(model, cache, Anthropic).invoke("hi")
    assert model.requests == 3
    assert dict(cache.stats().errors) == {}


# -- keys --------------------------------------------------------------------------------------------------------------


def test_prompt_and_model_do_not_run_into_one_another(cache: CodomyrmexCache) -> None:
    cache.update("ab", "c", [Generation(text="x")])
    assert cache.lookup("a", "bc") is None
    assert cache.lookup("ab", "c") == [Generation(text="x")]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", [OpenAI, Anthropic])
def test_changed_settings_of_a_used_model_ask_again(model: Model, cache: CodomyrmexCache, kind: str, is_async: bool) -> None:
    async def answers() -> list[str]:
        llm = chat(model, cache, kind)
        found = []
        for temperature, name in ((None, "m"), (0.9, "m"), (0.9, "n"), (None, "m"), (0.9, "m")):
            llm.temperature = temperature
            setattr(llm, "model_name" if kind == OpenAI else "model", name)
            found.append((await llm.ainvoke("hi") if is_async else llm.invoke("hi")).content)
        return found

    found = asyncio.run(answers())
    assert model.requests == 3
    assert found[0] == found[3] and found[1] == found[4] and len(set(found)) == 3
    assert [request.body.get("temperature") for request in model.seen] == [None, 0.9, 0.9]


def test_settings_are_seen_through_a_subclass_of_the_cache(model: Model) -> None:
    class Named(CodomyrmexCache):
        def lookup(self, prompt: str, llm_string: str) -> Any:
            return super().lookup(prompt, llm_string)

    llm = chat(model, Named(manager=CacheManager()))
    first = llm.invoke("hi")
    llm.temperature = 0.9
    assert llm.invoke("hi").content != first.content


def test_settings_that_change_in_place_ask_again(model: Model, memory: CodomyrmexCache) -> None:
    llm = chat(model, memory)
    llm.invoke("hi")
    llm.extra_body = {"seed": [1]}
    changed = llm.invoke("hi")
    llm.extra_body["seed"].append(2)
    assert llm.invoke("hi").content != changed.content
    assert model.requests == 3


def test_settings_changed_during_a_call_store_nothing(model: Model, memory: CodomyrmexCache) -> None:
    class Changing(ChatOpenAI):
        def _generate(self, *arguments: Any, **options: Any) -> Any:
            result = super()._generate(*arguments, **options)
            self.temperature = 0.9
            return result

    llm = Changing(model="gpt-4o", api_key=KEY, base_url=f"{model.url}/v1", cache=memory)
    llm.invoke("hi")
    assert memory.stats().sets == 0


def test_an_address_is_no_key(memory: CodomyrmexCache) -> None:
    llm_string = f"[('stop', None), ('tool', {object()!r})]"
    memory.update("p", llm_string, [Generation(text="x")])
    assert memory.lookup("p", llm_string) is None
    assert dict(memory.stats().errors) == {"unkeyable": 1}
    assert memory.stats().bypasses == 1


# -- what is stored ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OpenAI, Anthropic])
@pytest.mark.parametrize("answer", ["empty", "refused", "truncated", "filtered"])
def test_no_answer_is_not_stored(model: Model, memory: CodomyrmexCache, kind: str, answer: str) -> None:
    llm = chat(model, memory, kind)
    model.answer_with(answer)
    llm.invoke("hi")
    whole = llm.invoke("hi")
    assert llm.invoke("hi").content == whole.content
    assert model.requests == 2


@pytest.mark.parametrize("failure", ["429", "500", "broken"])
def test_a_failure_is_not_stored(model: Model, memory: CodomyrmexCache, failure: str) -> None:
    llm = chat(model, memory)
    model.answer_with(failure)
    with pytest.raises(Exception, match=r"."):
        llm.invoke("hi")
    llm.invoke("hi")
    llm.invoke("hi")
    assert model.requests == 2


def test_everything_is_stored_if_so_asked(model: Model) -> None:
    llm = chat(model, CodomyrmexCache(store_if=None, manager=CacheManager()))
    model.answer_with("truncated")
    assert llm.invoke("hi").content == llm.invoke("hi").content
    assert model.requests == 1


def test_ttl(backend: str, tmp_path: Path, valkey: Server) -> None:
    clock = FakeClock()
    manager = CacheManager(directory=tmp_path, url=valkey.url, clock=clock)
    cache = CodomyrmexCache("llm", "1h", backend, manager=manager)
    cache.update("p", "l", [Generation(text="x")])
    clock.advance(3599)
    assert cache.lookup("p", "l") == [Generation(text="x")]
    clock.advance(2)
    assert cache.lookup("p", "l") is None
    manager.close()


def test_ttl_by_generations() -> None:
    cache = CodomyrmexCache("llm", lambda found: len(found[0].text), manager=CacheManager(clock=(clock := FakeClock())))
    cache.update("p", "l", [Generation(text="four")])
    clock.advance(3)
    assert cache.lookup("p", "l") is not None
    clock.advance(1.5)
    assert cache.lookup("p", "l") is None


_PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from codomyrmex_cache import CacheManager
from codomyrmex_cache.integrations.langchain import CodomyrmexCache
class City(BaseModel):
    name: str
manager = CacheManager(directory=sys.argv[1], url=sys.argv[2])
cache = CodomyrmexCache("llm", "7d", sys.argv[3], manager=manager)
llm = ChatOpenAI(model="gpt-4o", api_key="{key}", base_url=sys.argv[4] + "/v1", cache=cache)
print(llm.invoke("hi").content, repr(llm.with_structured_output(City).invoke("hi")))
manager.close()
"""


@pytest.mark.parametrize("backend", ["file_based", "redis"])
def test_answers_outlive_the_process_and_hold_no_secret(model: Model, backend: str, tmp_path: Path, valkey: Server) -> None:
    arguments = (str(tmp_path), valkey.url, backend, model.url)
    source = f"import sys; sys.argv[1:] = {arguments!r}\n" + _PROGRAM.replace("{key}", KEY)
    first, second = run_python(source), run_python(source)
    assert first == second
    assert model.requests == 2
    with valkey.client() as client:
        stored = b"".join(client.dump(key) or b"" for key in client.scan_iter())
    stored += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(stored) > 500
    assert KEY.encode() not in stored


def test_a_plain_llm(memory: CodomyrmexCache) -> None:
    llm = FakeListLLM(responses=["one", "two"], cache=memory)
    assert [llm.invoke("hi"), llm.invoke("hi"), asyncio.run(llm.ainvoke("hi"))] == ["one"] * 3
    assert memory.stats().hits == 2


def test_a_copied_model_shares_the_cache(model: Model, memory: CodomyrmexCache) -> None:
    llm = chat(model, memory)
    copies = [llm.model_copy(), llm.model_copy(update={"cache": copy.deepcopy(memory)})]
    assert len({one.invoke("hi").content for one in [llm, *copies]}) == 1
    assert model.requests == 1


def test_the_global_cache(model: Model, memory: CodomyrmexCache) -> None:
    set_llm_cache(memory)
    try:
        llm = chat(model)
        assert llm.invoke("hi").content == llm.invoke("hi").content
    finally:
        set_llm_cache(None)
    assert model.requests == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_clear_leaves_other_entries_of_the_namespace(cache: CodomyrmexCache, is_async: bool) -> None:
    cache.cache.set("own", 1)
    cache.update("p", "l", [Generation(text="x")])
    asyncio.run(cache.aclear()) if is_async else cache.clear()
    assert cache.lookup("p", "l") is None
    assert cache.cache.get("own") == 1


def test_an_answer_asked_for_before_a_clear_is_not_stored(model: Model, memory: CodomyrmexCache) -> None:
    class Cleared(ChatOpenAI):
        def _generate(self, *arguments: Any, **options: Any) -> Any:
            memory.clear()
            return super()._generate(*arguments, **options)

    Cleared(model="gpt-4o", api_key=KEY, base_url=f"{model.url}/v1", cache=memory).invoke("hi")
    assert memory.stats().sets == 0


# -- at once -----------------------------------------------------------------------------------------------------------


def test_identical_calls_of_tasks_make_one_request(model: Model, cache: CodomyrmexCache) -> None:
    model.delay = 0.1

    async def at_once() -> list[Any]:
        llm = chat(model, cache)
        return await asyncio.gather(*(llm.ainvoke("hi") for _ in range(100)))

    answers = asyncio.run(at_once())
    assert model.requests == 1
    assert len({answer.content for answer in answers}) == 1
    assert len({id(answer) for answer in answers}) == 100
    stats = cache.stats()
    assert (stats.calls, stats.misses, stats.coalesced + stats.hits) == (100, 1, 99)


def test_identical_calls_of_threads_make_one_request(model: Model, cache: CodomyrmexCache) -> None:
    model.delay = 0.1
    llm, barrier = chat(model, cache), Barrier(20)

    def one(_: int) -> Any:
        barrier.wait()
        return llm.invoke("hi").content

    with ThreadPoolExecutor(20) as pool:
        assert len(set(pool.map(one, range(20)))) == 1
    assert model.requests == 1
    assert cache.stats().calls == 20


def test_a_batch_of_equal_prompts_makes_one_request(model: Model, memory: CodomyrmexCache) -> None:
    model.delay = 0.05
    assert len(chat(model, memory).batch(["hi"] * 10)) == 10
    assert model.requests == 1


@pytest.mark.parametrize("answer", ["500", "truncated"])
def test_who_waited_for_a_failure_asks_itself(model: Model, memory: CodomyrmexCache, answer: str) -> None:
    model.delay = 0.05
    model.answer_with(answer)
    found = chat(model, memory).batch(["hi"] * 5, return_exceptions=True)
    assert sum(isinstance(one, Exception) for one in found) == (answer == "500")
    assert model.requests == (2 if answer == "500" else 1)
    assert memory._leads._leads == {}


def test_a_failed_task_wakes_the_others(model: Model, memory: CodomyrmexCache) -> None:
    model.delay = 0.05
    model.answer_with("500")

    async def at_once() -> list[Any]:
        llm = chat(model, memory)
        return await asyncio.gather(*(llm.ainvoke("hi") for _ in range(10)), return_exceptions=True)

    found = asyncio.run(at_once())
    assert sum(isinstance(one, Exception) for one in found) == 1
    assert model.requests == 2


def test_a_cancelled_leader_costs_one_more_request(model: Model, memory: CodomyrmexCache) -> None:
    model.delay = 0.2

    async def at_once() -> list[Any]:
        llm = chat(model, memory)
        tasks = [asyncio.create_task(llm.ainvoke("hi")) for _ in range(10)]
        while not model.requests:
            await asyncio.sleep(0.005)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(at_once())
    assert isinstance(found[0], asyncio.CancelledError)
    assert len({one.content for one in found[1:]}) == 1
    assert model.requests == 2


def test_waiting_has_an_end(model: Model) -> None:
    model.delay = 0.3
    cache = CodomyrmexCache(wait=0.05, manager=CacheManager())
    chat(model, cache).batch(["hi"] * 3)
    assert model.requests == 3


def test_a_blocking_call_in_an_event_loop_does_not_wait_for_its_tasks(model: Model, memory: CodomyrmexCache) -> None:
    model.delay = 0.1

    async def both() -> None:
        llm = chat(model, memory)
        task = asyncio.create_task(llm.ainvoke("hi"))
        while not model.requests:
            await asyncio.sleep(0.005)
        llm.invoke("hi")
        await task

    asyncio.run(both())
    assert model.requests == 2


# -- the room itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [langchain, _generations])
def test_examples(module: Any) -> None:
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_without_langchain_the_error_names_the_extra() -> None:
    source = """
import sys
sys.modules["langchain_core"] = None
try:
    import codomyrmex_cache.integrations.langchain
except ImportError as error:
    print(error)
"""
    assert "pip install 'codomyrmex_cache[langchain]'" in run_python(source)


def test_the_package_does_not_import_langchain() -> None:
    run_python("import codomyrmex_cache.integrations, sys; assert 'langchain_core' not in sys.modules")
    assert "langchain_core" in sys.modules
