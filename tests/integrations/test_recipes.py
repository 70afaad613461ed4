"""The README's recipes for LiteLLM, DSPy, pydantic-ai and OpenAI Agents, each where its package is installed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import pytest

from codomyrmex_cache import By, cached
from codomyrmex_cache.integrations import cache_client, ok_completion
from tests.llm_server import KEY, Model

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the packages, all from within their own code
    pytest.mark.timeout(300),  # the first import of some takes half a minute without a network
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own; its secrets and folders are."""
    return f"recipe {request.node.name}"


def _no_secret(folder: Path) -> None:
    stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert len(stored) > 500
    assert KEY.encode() not in stored


# -- LiteLLM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_litellm(model: Model, name: str, is_async: bool, tmp_path: Path) -> None:
    litellm = pytest.importorskip("litellm")
    options: Any = {"ttl": "7d", "backend": "file_based", "ignore": ["api_key"], "store_if": ok_completion}
    completion = cached(name, **options)(litellm.acompletion if is_async else litellm.completion)

    async def ask(text: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        answer = completion(model="openai/gpt-4o", messages=messages, api_base=f"{model.url}/v1", api_key=KEY, **more)
        return await answer if is_async else answer

    async def all_of_it() -> None:
        first = await ask("one")
        second = await ask("one")
        assert model.requests == 1
        assert second == first
        assert second.choices[0].message.content == first.choices[0].message.content
        for number, more in enumerate([{"extra_body": {"x": 1}}, {"unknown": 1}, {"temperature": 0.9}], 2):
            await ask("one", **more)
            assert model.requests == number
        await ask("two")
        assert model.requests == 5
        model.answer_with("truncated")
        await ask("three")
        await ask("three")
        assert model.requests == 7
        before = model.requests
        model.delay = 0.05
        if is_async:
            await asyncio.gather(*(ask("four") for _ in range(10)))
            assert model.requests == before + 1

    asyncio.run(all_of_it())
    _no_secret(tmp_path)


# -- DSPy ----------------------------------------------------------------------------------------------------------------


def test_dspy(model: Model, name: str, tmp_path: Path) -> None:
    dspy = pytest.importorskip("dspy")

    class CachedLM(dspy.LM):  # type: ignore[misc]
        """A language model whose calls are cached; DSPy's own cache stays off."""

        def __cache_key__(self) -> Any:
            return self.dump_state()  # model, settings and addresses, without the key

        @cached(name, ttl="7d", backend="file_based", store_if=ok_completion)
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return super().forward(prompt, messages, **kwargs)

        @cached(name, ttl="7d", backend="file_based", store_if=ok_completion)
        async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return await super().aforward(prompt, messages, **kwargs)

    lm = CachedLM("openai/gpt-4o", api_base=f"{model.url}/v1", api_key=KEY, cache=False)
    assert lm("one") == lm("one")
    assert model.requests == 1
    lm("two")
    assert model.requests == 2
    lm("one", temperature=0.9)
    assert model.requests == 3
    assert asyncio.run(lm.acall("one")) == asyncio.run(lm.acall("one"))
    assert model.requests == 4
    _no_secret(tmp_path)


# -- pydantic-ai ---------------------------------------------------------------------------------------------------------

VOLATILE = {"timestamp", "run_id", "conversation_id"}


def timeless(messages: Any) -> Any:
    """Messages without what differs from run to run."""
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    def kept(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: kept(value) for key, value in part.items() if key not in VOLATILE}
        return [kept(value) for value in part] if isinstance(part, list) else part

    return kept(ModelMessagesTypeAdapter.dump_python(messages, mode="json"))


def test_pydantic_ai(model: Model, name: str, tmp_path: Path) -> None:
    pytest.importorskip("pydantic_ai")
    from openai import AsyncOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.models.wrapper import WrapperModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class CachedModel(WrapperModel):
        """A model whose answers are cached; streams are not."""

        def __cache_key__(self) -> Any:
            return self.model_id, self.base_url, self.settings

        @cached(name, ttl="7d", backend="file_based", store_if=lambda answer: answer.finish_reason in ("stop", "tool_call"))
        async def request(
            self, messages: Annotated[Any, By(timeless)], model_settings: Any, model_request_parameters: Any
        ) -> ModelResponse:
            return await super().request(messages, model_settings, model_request_parameters)

    async def all_of_it() -> None:
        async with AsyncOpenAI(base_url=f"{model.url}/v1", api_key=KEY) as client:
            await with_client(client)

    async def with_client(client: Any) -> None:
        def agent(**options: Any) -> Any:
            return Agent(CachedModel(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))), **options)

        first = await agent().run("one")
        assert (await agent().run("one")).output == first.output
        assert model.requests == 1
        await agent().run("two")
        assert model.requests == 2
        await agent(instructions="Be brief.").run("one")
        assert model.requests == 3
        await agent().run("one", model_settings={"temperature": 0.9})
        assert model.requests == 4
        model.answer_with("truncated")
        await agent().run("three")
        await agent().run("three")
        assert model.requests == 6

    asyncio.run(all_of_it())
    _no_secret(tmp_path)


# -- OpenAI Agents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", ["chat", "responses"])
def test_openai_agents(model: Model, name: str, interface: str, tmp_path: Path) -> None:
    agents = pytest.importorskip("agents")
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    kinds: dict[str, Any] = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}

    async def ask(client: Any, text: str, instructions: str = "Help.") -> str:
        agent = agents.Agent(name="helper", instructions=instructions, model=kinds[interface]("gpt-4o", openai_client=client))
        return str((await agents.Runner.run(agent, text)).final_output)

    async def all_of_it() -> None:
        async with AsyncOpenAI(base_url=f"{model.url}/v1", api_key=KEY) as own:
            client = cache_client(own, namespace=name, ttl="7d", backend="file_based")
            assert await ask(client, "one") == await ask(client, "one")
            assert model.requests == 1
            await ask(client, "two")
            assert model.requests == 2
            await ask(client, "one", "Be brief.")
            assert model.requests == 3

    asyncio.run(all_of_it())
    _no_secret(tmp_path)
