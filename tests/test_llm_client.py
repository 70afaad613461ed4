"""`cache_client`, and embeddings text by text, with the real SDKs against a server of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from codomyrmex_cache import MISSING, CacheManager, cached
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.integrations import cache_client
from codomyrmex_cache.integrations._clients import METHODS
from tests.llm_server import KEY, Model, serving

openai = pytest.importorskip("openai")
anthropic: Any
try:
    import anthropic
except ImportError:
    anthropic = None

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "m", "messages": HELLO}


class Person(BaseModel):
    name: str
    age: int


clients: list[Any] = []


@pytest.fixture
def model() -> Iterator[Model]:
    with serving() as model:
        yield model
        while clients:
            client = clients.pop()
            if not iscoroutinefunction(client.close):
                client.close()


def plain(model: Model, kind: str = "OpenAI", **options: Any) -> Any:
    """A client as its SDK makes it, for the time of the test."""
    clients.append(client := _plain(model, kind, {"api_key": KEY, "max_retries": 0, **options}))
    return client


def _plain(model: Model, kind: str, options: dict[str, Any]) -> Any:
    if "Anthropic" in kind:
        if anthropic is None:
            pytest.skip("anthropic is not installed")
        return getattr(anthropic, kind)(base_url=model.url, **options)
    if "Azure" in kind:
        return getattr(openai, kind)(azure_endpoint=model.url, api_version="2024-06-01", **options)
    return getattr(openai, kind)(base_url=f"{model.url}/v1", **options)


Make = Callable[..., Any]


@pytest.fixture
def made(model: Model, manager: CacheManager) -> Make:
    """Makes cached clients."""

    def make(kind: str = "OpenAI", *, of: dict[str, Any] | None = None, **options: Any) -> Any:
        return cache_client(plain(model, kind, **(of or {})), manager=manager, **options)

    return make


def reached(client: Any, path: str) -> Any:
    for name in path.split("."):
        client = getattr(client, name)
    return client


CALLS: dict[str, dict[str, Any]] = {
    "chat.completions.create": CHAT,
    "chat.completions.parse": {**CHAT, "response_format": Person},
    "responses.create": {"model": "m", "input": "hello"},
    "responses.parse": {"model": "m", "input": "hello", "text_format": Person},
    "embeddings.create": {"model": "m", "input": ["one", "two"]},
    "beta.chat.completions.create": CHAT,
    "beta.chat.completions.parse": {**CHAT, "response_format": Person},
    "messages.create": {**CHAT, "max_tokens": 9},
    "messages.parse": {**CHAT, "max_tokens": 9},
    "beta.messages.create": {**CHAT, "max_tokens": 9},
    "beta.messages.parse": {**CHAT, "max_tokens": 9},
}
KINDS = [
    *[("OpenAI", path) for path in METHODS["openai"]],
    *[("AzureOpenAI", path) for path in METHODS["openai"][:5]],
    *[("Anthropic", path) for path in METHODS["anthropic"]],
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path"), KINDS)
def test_every_method_of_the_list_asks_once(
    kind: str, path: str, made: Make, model: Model, backend_name: str, manager: CacheManager
) -> None:
    client = made(kind, backend=backend_name)
    method, arguments = reached(client, path), CALLS[path]
    first = method(**arguments)
    assert method(**arguments) == first == reached(plain(model, kind), path)(**arguments).model_copy(update=_own(first))
    assert model.requests == 2
    assert type(method(**arguments)) is type(first)
    assert method.stats().hits >= 1
    assert manager.get_cache("llm").stats().bypasses == 0


def _own(answer: Any) -> dict[str, Any]:
    """What differs from request to request."""
    return {name: value for name, value in answer if name in ("id", "created", "output") or name == "usage"}


@pytest.mark.parametrize(("kind", "path"), KINDS)
def test_every_method_of_the_list_asks_once_in_a_loop(
    kind: str, path: str, made: Make, model: Model, backend_name: str
) -> None:
    async def main() -> None:
        async with made(f"Async{kind}", backend=backend_name) as client:
            method, arguments = reached(client, path), CALLS[path]
            assert iscoroutinefunction(method)
            first = await method(**arguments)
            assert await method(**arguments) == first
            assert type(await method(**arguments)) is type(first)
            assert await method.apeek(**arguments) == first

    asyncio.run(main())
    assert model.requests == 1


@pytest.mark.parametrize("path", ["chat.completions.parse", "responses.parse"])
def test_a_parsed_answer_is_parsed_again(path: str, made: Make, backend_name: str) -> None:
    method = reached(made(backend=backend_name), path)
    parsed = [method(**CALLS[path]) for _ in range(2)]
    people = [each.choices[0].message.parsed if "chat" in path else each.output_parsed for each in parsed]
    assert people[0] == people[1]
    assert type(people[1]) is Person


# -- the client itself


@pytest.mark.parametrize("kind", ["OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI", "Anthropic", "AsyncAnthropic"])
def test_the_client_is_of_the_same_type_and_the_given_one_is_untouched(kind: str, made: Make, model: Model) -> None:
    given = plain(model, kind)
    resource = given.messages if "Anthropic" in kind else given.chat.completions
    before = dict(vars(given))
    client = cache_client(given)
    assert type(client) is type(given)
    assert isinstance(client, type(given))
    assert vars(given) == before
    assert "create" not in vars(resource)
    assert "create" not in vars(type(resource)(given))
    assert client.api_key == given.api_key
    assert client._client is given._client
    assert not hasattr(resource.create, "peek")
    again = client.messages if "Anthropic" in kind else client.chat.completions
    assert type(again) is type(resource)
    assert again._client is client
    assert hasattr(again.create, "peek")


def test_beta_is_made_when_it_is_used(made: Make, model: Model) -> None:
    client = made()
    assert type(vars(client)["beta"]) is not type(openai.OpenAI(api_key=KEY).beta)
    held = client.beta
    assert isinstance(held, type(plain(model).beta))
    assert held.chat is client.beta.chat is held.chat
    assert type(client.beta) is type(plain(model).beta)
    assert client.beta.assistants._client is client


def test_clients_share_entries_by_what_they_ask(made: Make, model: Model) -> None:
    made().chat.completions.create(**CHAT)
    made().chat.completions.create(**CHAT)
    made(of={"api_key": "another"}).chat.completions.create(**CHAT)
    assert model.requests == 1
    made(of={"organization": "other"}).chat.completions.create(**CHAT)
    assert model.requests == 2


def test_a_client_with_options_is_cached_too(made: Make, model: Model) -> None:
    client = made()
    client.chat.completions.create(**CHAT)
    for another in (client.with_options(timeout=5), client.copy(), client.with_options(max_retries=1).with_options(timeout=3)):
        assert type(another) is type(client)
        another.chat.completions.create(**CHAT)
    assert model.requests == 1
    elsewhere = client.with_options(base_url=f"{model.url}/v2")
    elsewhere.chat.completions.create(**CHAT)
    elsewhere.chat.completions.create(**CHAT)
    assert [request.path for request in model.seen] == ["/v1/chat/completions", "/v2/chat/completions"]


def test_a_setting_changed_afterwards_counts(made: Make, model: Model) -> None:
    client = made()
    client.chat.completions.create(**CHAT)
    client.base_url = f"{model.url}/v2/"
    client.chat.completions.create(**CHAT)
    assert [request.path for request in model.seen] == ["/v1/chat/completions", "/v2/chat/completions"]


def test_a_clients_middleware_sends_by_the_new_client(made: Make, model: Model) -> None:
    client = made("Anthropic", of={"middleware": [lambda request, call_next: call_next(request)]})
    client.base_url = f"{model.url}/elsewhere"
    client.messages.create(**CHAT, max_tokens=9)
    assert [request.path for request in model.seen] == ["/elsewhere/v1/messages"]


@pytest.mark.skipif(anthropic is None, reason="anthropic is not installed")
def test_resources_that_a_client_makes_at_once_are_made_anew() -> None:
    given = anthropic.AnthropicVertex(region="r", project_id="p", access_token="t")
    client = cache_client(given)
    for path in ("messages", "beta.messages"):
        mine, theirs = reached(client, path), reached(given, path)
        assert type(mine) is type(theirs)
        assert mine._client is client
        assert theirs._client is given
        assert hasattr(mine.create, "peek")
        assert not hasattr(theirs.create, "peek")


def test_wrapped_twice_it_has_the_later_options(made: Make, manager: CacheManager, model: Model) -> None:
    client = cache_client(made(namespace="first"), namespace="second", manager=manager)
    client.chat.completions.create(**CHAT)
    client.beta.chat.completions.create(**CHAT)
    assert client.chat.completions.create.cache is manager.get_cache("second")
    assert manager.get_cache("first").stats().misses == 0


def test_control_methods(made: Make, model: Model) -> None:
    create = made().chat.completions.create
    assert create.peek(**CHAT) is MISSING
    first = create(**CHAT)
    assert create.peek(**CHAT) == first
    assert create.invalidate(**CHAT)
    assert create(**CHAT) != first
    assert create.refresh(**CHAT).id == "chatcmpl-3"


@pytest.mark.parametrize("wrong", [object(), "client", openai])
def test_what_is_no_client_is_refused(wrong: Any) -> None:
    with pytest.raises(CacheConfigurationError, match="no client"):
        cache_client(wrong)


@pytest.mark.parametrize("options", [{"name": "a"}, {"batch": "input"}, {"samples": 0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], made: Make) -> None:
    with pytest.raises(CacheConfigurationError, match=next(iter(options))):
        made(**options)


# -- what goes past the cache


def test_raw_and_streaming_responses_go_past_the_cache(made: Make, model: Model, manager: CacheManager) -> None:
    client = made()
    answers = [
        client.chat.completions.with_raw_response.create(**CHAT),
        client.with_raw_response.chat.completions.create(**CHAT),
        client.chat.with_raw_response.completions.create(**CHAT),
        client.embeddings.with_raw_response.create(model="m", input=["a"]),
    ]
    assert model.requests == 4
    assert all(answer.headers["x-request-id"] for answer in answers)
    assert answers[0].parse().choices[0].message.content == answers[1].parse().choices[0].message.content
    for _ in range(2):
        with client.chat.completions.with_streaming_response.create(**CHAT) as response:
            assert response.parse().choices[0].finish_reason == "stop"
    assert model.requests == 6
    assert manager.get_cache("llm").size() == 0
    assert client.chat.completions.create(**CHAT) == client.chat.completions.create(**CHAT)


def test_raw_responses_go_past_the_cache_in_a_loop(made: Make, model: Model, manager: CacheManager) -> None:
    async def main() -> None:
        client = made("AsyncOpenAI")
        for _ in range(2):
            raw = await client.with_raw_response.chat.completions.create(**CHAT)
            assert raw.headers["x-request-id"]
            async with client.responses.with_streaming_response.create(model="m", input="hello") as response:
                assert (await response.parse()).output_text
        claude = made("AsyncAnthropic")
        raw = await claude.messages.with_raw_response.create(**CHAT, max_tokens=9)
        assert raw.headers["x-request-id"]
        await client.close()
        await claude.close()

    asyncio.run(main())
    assert model.requests == 5
    assert manager.get_cache("llm").size() == 0


def test_stream_helpers_are_the_sdks_own(made: Make, model: Model, manager: CacheManager) -> None:
    client, claude = made(), made("Anthropic")
    for _ in range(2):
        with client.chat.completions.stream(**CHAT) as stream:
            assert stream.get_final_completion().choices[0].message.content.startswith("answer ")
        with client.responses.stream(model="m", input="hello") as stream:
            assert stream.get_final_response().output_text.startswith("answer ")
        with claude.messages.stream(**CHAT, max_tokens=9) as stream:
            assert stream.get_final_text().startswith("answer ")
    assert model.requests == 6
    assert manager.get_cache("llm").size() == 0


def test_stream_helpers_are_the_sdks_own_in_a_loop(made: Make, model: Model, manager: CacheManager) -> None:
    async def main() -> None:
        async with made("AsyncOpenAI") as client:
            for _ in range(2):
                async with client.chat.completions.stream(**CHAT) as stream:
                    assert (await stream.get_final_completion()).choices[0].message.content.startswith("answer ")
                async with client.beta.chat.completions.stream(**CHAT) as stream:
                    assert (await stream.get_final_completion()).choices[0].message.content.startswith("answer ")

    asyncio.run(main())
    assert model.requests == 4
    assert manager.get_cache("llm").size() == 0


# -- streams


@pytest.mark.parametrize(("kind", "path"), [
    ("OpenAI", "chat.completions.create"), ("OpenAI", "responses.create"), ("Anthropic", "messages.create"),
])  # fmt: skip
def test_streams_are_recorded_and_replayed(kind: str, path: str, made: Make, model: Model, backend_name: str) -> None:
    create = reached(made(kind, backend=backend_name), path)
    arguments = {**CALLS[path], "stream": True}
    first = list(create(**arguments))
    assert first == list(create(**arguments))
    with create(**arguments) as stream:
        assert list(stream) == first
    assert len(first) > 3
    assert model.requests == 1


@pytest.mark.parametrize(("kind", "path"), [
    ("AsyncOpenAI", "chat.completions.create"), ("AsyncOpenAI", "responses.create"), ("AsyncAnthropic", "messages.create"),
])  # fmt: skip
def test_streams_are_recorded_and_replayed_in_a_loop(kind: str, path: str, made: Make, model: Model, backend_name: str) -> None:
    async def main() -> None:
        async with made(kind, backend=backend_name) as client:
            create = reached(client, path)
            arguments = {**CALLS[path], "stream": True}
            first = [chunk async for chunk in await create(**arguments)]
            assert first == [chunk async for chunk in await create(**arguments)]
            assert len(first) > 3

    asyncio.run(main())
    assert model.requests == 1


# -- many at once


def test_a_hundred_threads_make_one_request(made: Make, model: Model, backend_name: str) -> None:
    model.delay = 0.2
    create = made(backend=backend_name).chat.completions.create
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: create(**CHAT), range(100)))
    assert model.requests == 1
    assert all(answer == answers[0] for answer in answers)
    assert len({id(answer) for answer in answers}) == 100


@pytest.mark.parametrize("kind", ["AsyncOpenAI", "AsyncAnthropic"])
def test_a_hundred_tasks_make_one_request(kind: str, made: Make, model: Model, backend_name: str) -> None:
    model.delay = 0.2

    async def main() -> list[Any]:
        async with made(kind, backend=backend_name) as client:
            method = reached(client, "messages.create" if "Anthropic" in kind else "chat.completions.create")
            return await asyncio.gather(*[method(**CHAT, max_tokens=9) for _ in range(100)])

    answers = asyncio.run(main())
    assert model.requests == 1
    assert all(answer == answers[0] for answer in answers)


async def without_its_leader(model: Model, leader: Any, others: Sequence[Any]) -> list[Any]:
    """What the others are given; the leader is cancelled when its request has come and before it is answered."""
    with model.held():
        first = asyncio.create_task(leader)
        while not model.requests:  # the time limit of the test is the one for this
            await asyncio.sleep(0.001)
        crowd = [asyncio.create_task(other) for other in others]
        await asyncio.sleep(0.05)  # most of them wait for it by then; what must hold, holds for those who come later too
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    return await asyncio.gather(*crowd)


def test_after_its_leader_is_cancelled_a_crowd_asks_once_more_at_most(made: Make, model: Model, backend_name: str) -> None:
    async def main() -> list[Any]:
        async with made("AsyncOpenAI", backend=backend_name) as client:
            create = client.chat.completions.create
            return await without_its_leader(model, create(**CHAT), [create(**CHAT) for _ in range(99)])

    answers = asyncio.run(main())
    assert model.requests <= 2
    assert all(answer == answers[0] for answer in answers)


def test_a_crowd_of_embeddings_outlives_its_leader(made: Make, model: Model, backend_name: str) -> None:
    async def main() -> list[Any]:
        async with made("AsyncOpenAI", backend=backend_name) as client:
            create = client.embeddings.create
            others = [create(model="m", input=["b", "a"]) for _ in range(50)]
            return await without_its_leader(model, create(model="m", input=["a", "b"]), others)

    answers = asyncio.run(main())
    assert sum(map(len, inputs(model))) <= 4
    assert all(vectors(answer) == [[1, 98], [1, 97]] for answer in answers)


def test_a_hundred_threads_make_one_request_for_embeddings(made: Make, model: Model, backend_name: str) -> None:
    model.delay = 0.2
    embed = made(backend=backend_name).embeddings.create
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: embed(model="m", input=["a", "bb"]), range(100)))
    assert inputs(model) == [["a", "bb"]]
    assert all(vectors(answer) == [[1, 97], [2, 98]] for answer in answers)


# -- what is stored


@pytest.mark.parametrize("path", METHODS["openai"][:5])
def test_no_pickle_is_needed(path: str, made: Make, model: Model, tmp_path: Path) -> None:
    method, arguments = reached(made(backend="file_based", codec="safe"), path), CALLS[path]
    first = method(**arguments)
    another = CacheManager(directory=tmp_path / "files", secret=b"a secret for the tests")
    client = cache_client(plain(model), backend="file_based", codec="safe", manager=another)
    again = reached(client, path)(**arguments)
    another.close()
    assert again == first
    assert type(again) is type(first)
    assert model.requests == 1
    stored = b"".join(path.read_bytes() for path in (tmp_path / "files").rglob("*") if path.is_file())
    assert KEY.encode() not in stored


@pytest.mark.parametrize("trouble", ["429", "500", "empty", "refused", "truncated", "filtered", "broken"])
def test_a_bad_answer_is_asked_for_again(trouble: str, made: Make, model: Model, backend_name: str) -> None:
    create = made(backend=backend_name).chat.completions.create
    model.answer_with(trouble)
    if trouble in ("429", "500", "broken"):
        with pytest.raises(openai.APIError):
            create(**CHAT)
    else:
        create(**CHAT)
    assert create.peek(**CHAT) is MISSING
    assert create(**CHAT) == create(**CHAT)
    assert model.requests == 2


# -- tenants and draws

TENANT: ContextVar[str] = ContextVar("tenant")


def test_two_tenants_never_share(made: Make, model: Model, backend_name: str) -> None:
    client, claude = made(backend=backend_name, scope=TENANT), made("Anthropic", backend=backend_name, scope=TENANT)
    answers: dict[str, list[Any]] = {}
    for tenant in ("a", "b", "a", "b"):
        TENANT.set(tenant)
        found = [
            client.chat.completions.create(**CHAT),
            list(client.chat.completions.create(**CHAT, stream=True)),
            client.chat.completions.parse(**CHAT, response_format=Person),
            client.responses.create(model="m", input="hello"),
            client.embeddings.create(model="m", input=["one", "two"]),
            claude.messages.create(**CHAT, max_tokens=9),
        ]
        assert answers.setdefault(tenant, found) == found
    assert model.requests == 12
    assert all(mine != yours for place, (mine, yours) in enumerate(zip(answers["a"], answers["b"], strict=True)) if place != 4)


def test_two_tenants_never_share_a_call_under_way(made: Make, model: Model, backend_name: str) -> None:
    model.delay = 0.2

    async def ask(client: Any, tenant: str) -> tuple[str, str]:
        TENANT.set(tenant)
        return tenant, (await client.chat.completions.create(**CHAT)).id

    async def main() -> set[tuple[str, str]]:
        async with made("AsyncOpenAI", backend=backend_name, scope=TENANT) as client:
            return set(await asyncio.gather(*[ask(client, tenant) for tenant in "abcd" * 10]))

    pairs = asyncio.run(main())
    assert len(pairs) == len({answer for _, answer in pairs}) == 4
    assert model.requests == 4


def test_draws_of_one_call(made: Make, model: Model, backend_name: str) -> None:
    client = made(backend=backend_name, samples=3)
    answers = [client.chat.completions.create(**CHAT).id for _ in range(7)]
    assert answers == [f"chatcmpl-{number}" for number in (1, 2, 3, 1, 2, 3, 1)]
    assert client.embeddings.create(model="m", input="a") == client.embeddings.create(model="m", input="a")
    assert model.requests == 4
    again = made(backend=backend_name, samples=3)
    assert [again.chat.completions.create(**CHAT).id for _ in range(3)] == answers[:3]
    third = made(backend=backend_name, sample=2)
    assert third.chat.completions.create(**CHAT).id == answers[2]
    assert model.requests == 4


# -- embeddings


def inputs(model: Model) -> list[Any]:
    return [request.body["input"] for request in model.seen]


@pytest.fixture(params=["decorator", "client"])
def embed(request: pytest.FixtureRequest, model: Model, manager: CacheManager, backend_name: str, made: Make) -> Any:
    """`embeddings.create` of the plain decorator and of the client."""
    if request.param == "client":
        return made(backend=backend_name).embeddings.create
    return cached("emb", backend=backend_name, batch="input", manager=manager)(plain(model).embeddings.create)


def vectors(response: Any) -> list[list[float]]:
    assert [each.index for each in response.data] == list(range(len(response.data)))
    return [each.embedding for each in response.data]


def test_only_missing_texts_are_asked_for(embed: Any, model: Model) -> None:
    first = embed(model="m", input=["a", "bb"])
    assert vectors(first) == [[1, 97], [2, 98]]
    second = embed(model="m", input=["ccc", "bb", "a", "ccc", "dddd"])
    assert vectors(second) == [[3, 99], [2, 98], [1, 97], [3, 99], [4, 100]]
    assert type(second) is type(first)
    assert second.model == "m"
    assert inputs(model) == [["a", "bb"], ["ccc", "dddd"]]
    assert embed(model="m", input="a").data == embed(model="m", input=["a"]).data
    assert model.requests == 2
    embed(model="other", input=["a"])
    embed(model="m", input=["a"], dimensions=2)
    assert model.requests == 4


def test_usage_is_replayed(embed: Any, model: Model) -> None:
    first = embed(model="m", input=["a", "bb", "ccc"])
    assert embed(model="m", input=["a", "bb", "ccc"]).usage == first.usage
    assert (first.usage.prompt_tokens, first.usage.total_tokens) == (3, 3)
    assert embed(model="m", input=["a", "bb", "ccc", "d"]).usage.total_tokens == 4
    assert embed(model="m", input=["d", "d"]).usage.total_tokens == 2


def test_a_list_of_tokens_is_one_text(embed: Any, model: Model) -> None:
    assert vectors(embed(model="m", input=[7, 8, 9])) == [[3, 7]]
    assert vectors(embed(model="m", input=[[7, 8, 9], [5]])) == [[3, 7], [1, 5]]
    assert inputs(model) == [[[7, 8, 9]], [[5]]]
    assert vectors(embed(model="m", input=iter(["a", "b"]))) == [[1, 97], [1, 98]]
    assert vectors(embed(model="m", input=("a", "b"))) == [[1, 97], [1, 98]]
    assert model.requests == 3


def test_keys_made_together_are_those_made_one_by_one(model: Model) -> None:
    from codomyrmex_cache._keying import Keying, make_keyer
    from codomyrmex_cache._signature import shape_of

    create = plain(model).embeddings.create
    shape = shape_of(create)
    for keying in (Keying(), Keying(scope=lambda: "tenant"), Keying(sample=3), Keying(ignore=["user"])):
        keyer = make_keyer(create, shape, keying)
        calls = [
            tuple(item if name == "input" else "m" if name == "model" else None for name in shape.names)
            for item in ("a", "b", [1, 2], "a")
        ]
        keys = keyer.keys(calls)
        assert keys == list(map(keyer.key, calls))
        assert len(set(keys)) == 3


def test_control_methods_of_embeddings(embed: Any, model: Model) -> None:
    assert embed.peek(model="m", input=["a", "b"]) is MISSING
    response = embed(model="m", input=["a", "b"])
    assert embed.peek(model="m", input=["b", "a"]).data[0].embedding == response.data[1].embedding
    assert embed.contains(model="m", input="b")
    assert embed.invalidate(model="m", input=["b"])
    assert not embed.contains(model="m", input=["a", "b"])
    embed.seed(response, model="m", input=["x", "b"])
    assert embed.peek(model="m", input="x").data[0].embedding == response.data[0].embedding
    embed.refresh(model="m", input=["x"])
    assert inputs(model) == [["a", "b"], ["x"]]
    assert embed.explain(model="m", input="x").outcome == "hit"


def test_what_the_model_refuses_is_raised_and_not_stored(embed: Any, model: Model) -> None:
    model.answer_with("500")
    with pytest.raises(openai.APIError):
        embed(model="m", input=["a", "b"])
    assert vectors(embed(model="m", input=["a", "b"])) == [[1, 97], [1, 98]]
    assert model.requests == 2


@pytest.mark.parametrize("by_client", [False, True])
def test_embeddings_in_a_loop(by_client: bool, model: Model, manager: CacheManager, backend_name: str) -> None:
    async def main() -> None:
        async with plain(model, "AsyncOpenAI") as client:
            if by_client:
                embed = cache_client(client, backend=backend_name, manager=manager).embeddings.create
            else:
                embed = cached("emb", backend=backend_name, batch="input", manager=manager)(client.embeddings.create)
            assert vectors(await embed(model="m", input=["a", "bb"])) == [[1, 97], [2, 98]]
            assert vectors(await embed(model="m", input=["c", "bb"])) == [[1, 99], [2, 98]]
            assert vectors(await embed(model="m", input="c")) == [[1, 99]]
            assert vectors(await embed(model="m", input=[4, 5])) == [[2, 4]]
            model.delay = 0.2
            crowd = await asyncio.gather(*[embed(model="m", input=["x", "yy"]) for _ in range(100)])
            assert all(vectors(each) == [[1, 120], [2, 121]] for each in crowd)

    asyncio.run(main())
    assert inputs(model) == [["a", "bb"], ["c"], [[4, 5]], ["x", "yy"]]


def test_entries_of_texts_are_the_same_after_a_restart(model: Model, made: Make, manager: CacheManager, tmp_path: Path) -> None:
    first = made(backend="file_based").embeddings.create(model="m", input=["a", "b"])
    manager.close()
    another = CacheManager(directory=tmp_path / "files", secret=b"a secret for the tests")
    again = cache_client(plain(model), backend="file_based", manager=another).embeddings.create(model="m", input=["a", "b"])
    another.close()
    assert again == first
    assert model.requests == 1


def test_options_that_items_do_not_have_make_a_call_one_entry(made: Make, model: Model) -> None:
    embed = made(ttl=60, stale=60).embeddings.create
    assert embed(model="m", input=["a", "b"]) == embed(model="m", input=["a", "b"])
    embed(model="m", input=["b"])
    assert inputs(model) == [["a", "b"], ["b"]]
