"""What caches of LLM calls are known to get wrong, asked of ours with the real SDKs: which requests go out, what comes back.

Each probe runs blocking and in an event loop, in every backend.  The model on the loopback interface answers each request
by what is in it, and numbers its answers, so that an answer of another request and an answer made anew both show.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache.errors import UnkeyableError
from tests.conftest import run_python
from tests.llm_server import KEY, Model, serving

MESSAGES = [{"role": "user", "content": "What is the capital of Norway?"}]
REORDERED = [dict(reversed(each.items())) for each in MESSAGES]


@dataclass(frozen=True)
class Interface:
    """One of the SDKs' methods, and how a probe says things in it.

    Args:
        method: its path from the client.
        request: arguments of a call.
        reordered: the same call with the keys of a dict in another order.
        others: an argument that few caches know of, in two calls that are to differ.
        version: what the SDK expects in front of its paths.
    """

    package: str
    method: str
    request: dict[str, Any]
    reordered: dict[str, Any]
    others: tuple[dict[str, Any], dict[str, Any]]
    version: str = "/v1"


CHAT = Interface(
    "openai", "chat.completions.create", {"model": "m", "messages": MESSAGES}, {"model": "m", "messages": REORDERED},
    ({"verbosity": "low"}, {"verbosity": "high"}),
)  # fmt: skip
RESPONSES = Interface(
    "openai", "responses.create", {"model": "m", "input": MESSAGES}, {"model": "m", "input": REORDERED},
    ({"prompt_cache_key": "a"}, {"prompt_cache_key": "b"}),
)  # fmt: skip
EMBEDDINGS = Interface(
    "openai", "embeddings.create",
    {"model": "m", "input": "a text", "encoding_format": "float", "extra_body": {"a": 1, "b": 2}},
    {"model": "m", "input": "a text", "encoding_format": "float", "extra_body": {"b": 2, "a": 1}},
    ({"user": "a"}, {"user": "b"}),
)  # fmt: skip
ANTHROPIC = Interface(
    "anthropic", "messages.create", {"model": "m", "messages": MESSAGES, "max_tokens": 8},
    {"model": "m", "messages": REORDERED, "max_tokens": 8},
    ({"metadata": {"user_id": "a"}}, {"metadata": {"user_id": "b"}}), version="",
)  # fmt: skip

EVERY = {"chat": CHAT, "responses": RESPONSES, "embeddings": EMBEDDINGS, "anthropic": ANTHROPIC}
every = pytest.mark.parametrize("interface", EVERY.values(), ids=EVERY)
COMPLETIONS = {name: each for name, each in EVERY.items() if each is not EMBEDDINGS}
completions = pytest.mark.parametrize("interface", COMPLETIONS.values(), ids=COMPLETIONS)

ERRORS = (openai.OpenAIError, anthropic.AnthropicError)
CLIENTS: dict[tuple[str, str], type[Any]] = {
    ("openai", "sync"): openai.OpenAI,
    ("openai", "async"): openai.AsyncOpenAI,
    ("anthropic", "sync"): anthropic.Anthropic,
    ("anthropic", "async"): anthropic.AsyncAnthropic,
}


class World:
    """Clients, their cached methods, and the event loop of one test."""

    def __init__(self, kind: str, backend: str, manager: CacheManager, model: Model) -> None:
        self.kind, self.model, self.loop = kind, model, asyncio.Runner()
        self._cached = functools.partial(cached, backend=backend, manager=manager)
        self._clients: list[Any] = []

    def client(self, interface: Interface, *, path: str = "", key: str = KEY, **options: Any) -> Any:
        make = CLIENTS[interface.package, self.kind]
        url = self.model.url + path + interface.version
        self._clients.append(make(base_url=url, api_key=key, max_retries=0, **options))
        return self._clients[-1]

    def method(self, interface: Interface, client: Any = None, **options: Any) -> Callable[..., Any]:
        """The cached one, of a new client if none is given."""
        method = functools.reduce(getattr, interface.method.split("."), client or self.client(interface))
        return self._cached("llm", **options)(method)

    def run(self, result: Any) -> Any:
        """What a call gave, awaited if it is to be."""

        async def wait(result: Awaitable[Any]) -> Any:
            return await result

        assert inspect.isawaitable(result) == (self.kind == "async")
        return self.loop.run(wait(result)) if self.kind == "async" else result

    def call(self, method: Callable[..., Any], **request: Any) -> Any:
        return self.run(self.within(method, **request))

    def within(self, method: Callable[..., Any], **request: Any) -> Any:
        """The call itself, made where there is an event loop if it needs one."""

        async def call() -> Any:
            return await method(**request)

        return call() if self.kind == "async" else method(**request)

    def together(self, number: int, call: Callable[[], Any]) -> list[Any]:
        """The results of so many threads, or tasks, that begin at once; exceptions among them."""
        if self.kind == "async":

            async def gather() -> list[Any]:
                return await asyncio.gather(*(call() for _ in range(number)), return_exceptions=True)

            return self.loop.run(gather())
        barrier = Barrier(number)

        def wait() -> Any:
            barrier.wait(30)
            return call()

        with ThreadPoolExecutor(number) as threads:
            return [future.exception() or future.result() for future in [threads.submit(wait) for _ in range(number)]]

    def heard(self, method: Callable[..., Any], **request: Any) -> list[Any]:
        """All chunks of a stream."""

        async def listen() -> list[Any]:
            return [chunk async for chunk in await method(**request)]

        return self.loop.run(listen()) if self.kind == "async" else list(method(**request))

    def close(self) -> None:
        for client in self._clients:
            self.run(client.close())
        self.loop.close()


@pytest.fixture
def model() -> Iterator[Model]:
    with serving() as model:
        yield model


@pytest.fixture(params=["sync", "async"])
def world(request: pytest.FixtureRequest, backend_name: str, manager: CacheManager, model: Model) -> Iterator[World]:
    world = World(request.param, backend_name, manager, model)
    yield world
    world.close()


# -- the same request ------------------------------------------------------------------------------------------------------


@every
def test_the_same_call_twice_is_one_request(world: World, interface: Interface) -> None:
    method = world.method(interface)

    first, second = world.call(method, **interface.request), world.call(method, **interface.request)

    assert (world.model.requests, second, type(second)) == (1, first, type(first))
    assert second.model_fields_set == first.model_fields_set


@every
def test_another_api_key_shares_the_entry(world: World, interface: Interface) -> None:
    methods = [world.method(interface, world.client(interface, key=key)) for key in (KEY, "sk-of-another")]

    first, second = (world.call(method, **interface.request) for method in methods)

    assert (world.model.requests, second) == (1, first)


@every
def test_a_scope_keeps_tenants_apart(world: World, interface: Interface) -> None:
    tenant = ""
    method = world.method(interface, scope=lambda: tenant)

    for tenant in ("a", "b", "a", "b"):  # noqa: B007  the scope reads it
        world.call(method, **interface.request)

    assert world.model.requests == 2


@every
def test_keywords_in_another_order_are_the_same_call(world: World, interface: Interface) -> None:
    method = world.method(interface)

    world.call(method, **interface.request)
    world.call(method, **dict(reversed(interface.request.items())))

    assert world.model.requests == 1


@every
def test_keys_of_dicts_in_another_order_are_the_same_call(world: World, interface: Interface) -> None:
    method = world.method(interface)

    world.call(method, **interface.request)
    world.call(method, **interface.reordered)

    assert world.model.requests == 1


@every
def test_a_sentinel_for_absent_is_an_absent_argument(world: World, interface: Interface) -> None:
    method, absent = world.method(interface), openai if interface.package == "openai" else anthropic
    name = next(iter(interface.others[0]))

    world.call(method, **interface.request)
    world.call(method, **interface.request, **{name: absent.omit})
    world.call(method, **interface.request, timeout=absent.NOT_GIVEN)

    assert world.model.requests == 1


@every
def test_two_clients_of_one_service_share_entries(world: World, interface: Interface) -> None:
    for _ in range(2):
        world.call(world.method(interface), **interface.request)

    assert world.model.requests == 1


@every
def test_how_a_client_reaches_its_service_does_not_count(world: World, interface: Interface) -> None:
    client = world.client(interface)
    clients = [
        client,
        client.with_options(timeout=30.0),
        client.with_options(max_retries=1),
        world.client(interface, timeout=7),
    ]

    for each in clients:
        world.call(world.method(interface, each), **interface.request)
    world.call(world.method(interface, client), **interface.request, timeout=9.0)

    assert world.model.requests == 1


# -- another request -------------------------------------------------------------------------------------------------------


def requests_of(world: World, method: Callable[..., Any], *requests: dict[str, Any]) -> int:
    """How many go out for these, asked for twice each; whoever asks again gets what was answered to the same."""
    first = [world.call(method, **request) for request in requests]
    assert [world.call(method, **request) for request in requests] == first
    return world.model.requests


@every
def test_another_extra_body_is_another_call(world: World, interface: Interface) -> None:
    bodies = [{"extra_body": {"top_k": number}} for number in (1, 2)]

    assert requests_of(world, world.method(interface), *(interface.request | body for body in bodies)) == 2


@every
def test_an_argument_of_which_nothing_is_known_counts(world: World, interface: Interface) -> None:
    assert requests_of(world, world.method(interface), *(interface.request | other for other in interface.others)) == 2


@every
@pytest.mark.parametrize("where", ["extra_query", "extra_headers"])
def test_another_query_or_header_is_another_call(world: World, interface: Interface, where: str) -> None:
    several = [{where: {"x-feature": value}} for value in ("a", "b")]

    assert requests_of(world, world.method(interface), *(interface.request | each for each in several)) == 2


@every
@pytest.mark.parametrize(("where", "name"), [("extra_query", "page_token"), ("extra_headers", "x-conversation-token")])
def test_a_token_that_is_no_credential_counts(world: World, interface: Interface, where: str, name: str) -> None:
    several = [{where: {name: value}} for value in ("a", "b")]

    assert requests_of(world, world.method(interface), *(interface.request | each for each in several)) == 2


@every
def test_an_unknown_keyword_is_the_sdks_error(world: World, interface: Interface) -> None:
    method = world.method(interface)

    for _ in range(2):
        with pytest.raises(TypeError, match="no_such_argument"):
            world.call(method, **interface.request, no_such_argument=1)

    assert world.model.requests == 0


@every
def test_another_path_of_the_service_is_another_call(world: World, interface: Interface) -> None:
    for _ in range(2):
        for path in ("/a", "/b"):
            world.call(world.method(interface, world.client(interface, path=path)), **interface.request)

    assert [request.path.split("/")[1] for request in world.model.seen] == ["a", "b"]


@every
def test_a_changed_client_is_another_one(world: World, interface: Interface) -> None:
    client = world.client(interface)
    method = world.method(interface, client)

    world.call(method, **interface.request)
    for path in ("/a", "/b"):
        client.base_url = world.model.url + path + interface.version
        for _ in range(2):
            world.call(method, **interface.request)

    assert world.model.requests == 3


@pytest.mark.parametrize("interface", [CHAT, RESPONSES, EMBEDDINGS], ids=["chat", "responses", "embeddings"])
@pytest.mark.parametrize("name", ["organization", "project"])
def test_another_account_of_a_client_is_another_call(world: World, interface: Interface, name: str) -> None:
    client = world.client(interface)
    method = world.method(interface, client)

    for account in (None, "a", "b", "a", None):
        setattr(client, name, account)
        world.call(method, **interface.request)

    assert world.model.requests == 3


@every
@pytest.mark.parametrize("option", ["default_headers", "default_query"])
def test_what_a_client_adds_to_every_request_counts(world: World, interface: Interface, option: str) -> None:
    for _ in range(2):
        for value in ("a", "b"):
            client = world.client(interface, **{option: {"x-feature": value}})
            world.call(world.method(interface, client), **interface.request)

    assert world.model.requests == 2


def test_an_omitted_temperature_is_not_zero(world: World) -> None:
    several = [CHAT.request, CHAT.request | {"temperature": 0}, CHAT.request | {"temperature": 1}]

    assert requests_of(world, world.method(CHAT), *several) == 3


def test_methods_of_one_client_keep_apart(world: World) -> None:
    client = world.client(CHAT)

    answers = [world.call(world.method(each, client), **each.request) for each in (CHAT, RESPONSES) for _ in range(2)]

    assert [type(answer).__name__ for answer in answers] == ["ChatCompletion"] * 2 + ["Response"] * 2
    assert world.model.requests == 2


# -- what a program builds around it ---------------------------------------------------------------------------------------


def test_an_own_function_that_passes_keywords_on_counts_them_all(world: World) -> None:
    client = world.client(CHAT)

    def blocking(**more: Any) -> Any:
        return client.chat.completions.create(model="m", messages=MESSAGES, **more).choices[0].message.content

    async def awaited(**more: Any) -> Any:
        return (await client.chat.completions.create(model="m", messages=MESSAGES, **more)).choices[0].message.content

    method = world._cached("llm")(awaited if world.kind == "async" else blocking)

    assert requests_of(world, method, {}, {"verbosity": "low"}, {"extra_body": {"top_k": 1}}, {"temperature": 0}) == 4


def test_an_answer_in_the_messages_counts_as_its_content(world: World) -> None:
    method = world.method(CHAT)
    said = world.call(method, **CHAT.request).choices[0].message
    world.model.seen.clear()

    for message in (said, said.model_copy(), {"role": "assistant", "content": said.content}, said):
        world.call(method, model="m", messages=[*MESSAGES, message])

    assert {len(request.body["messages"]) for request in world.model.seen} == {2}
    assert world.model.requests <= 2  # whether the dict with fewer fields is the same request is not ours to say


@completions
def test_messages_that_can_be_read_once_reach_the_model(world: World, interface: Interface) -> None:
    method, name = world.method(interface), "input" if interface is RESPONSES else "messages"

    if interface is not RESPONSES:  # whose SDK takes lists alone
        for _ in range(2):
            assert world.call(method, **interface.request | {name: iter(MESSAGES)})

    assert all(request.body[name] == MESSAGES for request in world.model.seen)


@every
def test_a_raw_response_is_not_taken_for_an_answer(world: World, interface: Interface) -> None:
    client = world.client(interface)
    *path, _ = interface.method.split(".")
    resource = functools.reduce(getattr, path, client)
    raw, method = world._cached("llm")(resource.with_raw_response.create), world.method(interface, client)

    for _ in range(2):
        response, answer = world.call(raw, **interface.request), world.call(method, **interface.request)
        parsed = response.parse()
        assert type(world.run(parsed) if inspect.isawaitable(parsed) else parsed) is type(answer)
        assert response.headers["x-request-id"]
        raw_again = world.call(method, **interface.request, extra_headers={"X-Stainless-Raw-Response": "true"})
        assert type(raw_again) is type(response)


def test_a_file_counts_by_its_content(world: World, tmp_path: Path) -> None:
    method = world._cached("llm")(world.client(CHAT).images.edit)
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)

    def key(image: Any) -> str:
        return str(method.key(image=image, prompt="brighter"))

    contents = [(tmp_path / name).read_bytes() for name in "abc"]
    assert key(contents[0]) == key(contents[1]) != key(contents[2])
    assert key(("x.png", contents[0])) != key(("x.png", contents[2]))
    with (tmp_path / "a").open("rb") as first, (tmp_path / "c").open("rb") as other:
        try:
            keys = [key(first), key(other), key(first)]
        except UnkeyableError:  # not cached, so never wrong
            keys = []
        assert not keys or keys[0] == keys[2] != keys[1]
        assert (first.read(), other.read()) == (b"one", b"two")


def test_an_api_version_of_azure_counts(world: World) -> None:
    make = openai.AzureOpenAI if world.kind == "sync" else openai.AsyncAzureOpenAI
    for _ in range(2):
        for version, deployment in (("2024-01-01", "m"), ("2025-01-01", "m"), ("2025-01-01", "n")):
            client = make(azure_endpoint=world.model.url, api_key=KEY, api_version=version, azure_deployment=deployment)
            world._clients.append(client)
            world.call(world.method(CHAT, client), **CHAT.request)

    assert len({request.path for request in world.model.seen}) == world.model.requests == 3


def city(**fields: Any) -> type[BaseModel]:
    """A class of the same name with these fields."""
    return type("City", (BaseModel,), {"__annotations__": fields, "__module__": __name__})


class City(BaseModel):
    name: str
    inhabitants: int


def test_a_structured_answer_comes_back_parsed(world: World) -> None:
    method = world._cached("llm")(world.client(CHAT).chat.completions.parse)

    first, second = (world.call(method, **CHAT.request, response_format=City) for _ in range(2))

    assert (world.model.requests, second, type(second)) == (1, first, type(first))
    assert type(second.choices[0].message.parsed) is City
    assert second.choices[0].message.parsed == first.choices[0].message.parsed


def test_another_schema_of_the_same_name_is_another_call(world: World) -> None:
    method = world._cached("llm")(world.client(CHAT).chat.completions.parse)

    for _ in range(2):
        for schema in (city(name=str), city(name=str, country=str)):
            answer = world.call(method, **CHAT.request, response_format=schema)
            assert set(answer.choices[0].message.parsed.model_dump()) == set(schema.model_fields)

    assert world.model.requests == 2


# -- streams ---------------------------------------------------------------------------------------------------------------


def same(first: list[Any], second: list[Any]) -> bool:
    """Chunk for chunk: classes, content, and which fields were there."""
    return [(type(each), each, each.model_fields_set) for each in first] == [
        (type(each), each, each.model_fields_set) for each in second
    ]


@completions
@pytest.mark.parametrize("answer", ["ok", "tool"])
def test_a_stream_twice_is_one_request_and_equal_chunks(world: World, interface: Interface, answer: str) -> None:
    method = world.method(interface)
    options = {"stream_options": {"include_usage": True}} if interface is CHAT else {}
    world.model.answer_with(answer)

    first, second = (world.heard(method, **interface.request, **options, stream=True) for _ in range(2))

    assert world.model.requests == 1
    assert len(first) > 3
    assert same(first, second)


@completions
def test_a_stream_and_a_whole_answer_keep_apart(world: World, interface: Interface) -> None:
    method = world.method(interface)

    for _ in range(2):
        assert len(world.heard(method, **interface.request, stream=True)) > 4
        assert world.call(method, **interface.request).usage

    assert world.model.requests == 2


@completions
def test_ten_listeners_share_a_stream(world: World, interface: Interface) -> None:
    world.model.pause = 0.01
    method = world.method(interface)

    async def listen() -> list[Any]:
        return [chunk async for chunk in await method(**interface.request, stream=True)]

    call = listen if world.kind == "async" else lambda: list(method(**interface.request, stream=True))
    streams = world.together(10, call)

    assert world.model.requests == 1
    assert all(same(streams[0], stream) for stream in streams)


@completions
def test_a_broken_stream_is_not_stored(world: World, interface: Interface) -> None:
    method = world.method(interface)
    world.model.answer_with("broken")

    with pytest.raises(Exception, match=r"incomplete|peer closed|Connection"):
        world.heard(method, **interface.request, stream=True)
    whole = world.heard(method, **interface.request, stream=True)

    assert world.model.requests == 2
    assert same(whole, world.heard(method, **interface.request, stream=True))
    assert world.model.requests == 2


@completions
@pytest.mark.parametrize("answer", ["empty", "refused", "truncated", "filtered"])
def test_a_stream_of_no_use_is_not_stored(world: World, interface: Interface, answer: str) -> None:
    method = world.method(interface)
    world.model.answer_with(answer)

    for requests in (1, 2, 2):
        assert world.heard(method, **interface.request, stream=True)
        assert world.model.requests == requests


@completions
@pytest.mark.parametrize("status", ["429", "500"])
def test_an_error_instead_of_a_stream_is_not_stored(world: World, interface: Interface, status: str) -> None:
    method = world.method(interface)
    world.model.answer_with(status)

    with pytest.raises(ERRORS):
        world.heard(method, **interface.request, stream=True)

    assert world.heard(method, **interface.request, stream=True)
    assert world.model.requests == 2


@completions
def test_a_stream_that_is_left_is_not_stored(world: World, interface: Interface) -> None:
    world.model.pause = 0.01
    method = world.method(interface)

    async def leave() -> None:
        async with await method(**interface.request, stream=True) as stream:
            await anext(aiter(stream))

    if world.kind == "async":
        world.loop.run(leave())
    else:
        with method(**interface.request, stream=True) as stream:
            next(iter(stream))

    assert len(world.heard(method, **interface.request, stream=True)) > 4
    assert world.model.requests == 2


# -- many at once ----------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("number", [10, 100])
def test_concurrent_identical_calls_are_one_request(world: World, interface: Interface, number: int) -> None:
    world.model.delay = 0.1
    method = world.method(interface)

    answers = world.together(number, lambda: method(**interface.request))

    assert world.model.requests == 1
    assert answers == [answers[0]] * number
    assert len({id(answer) for answer in answers}) == number


@every
def test_a_batch_of_four_identical_calls_is_one_request(world: World, interface: Interface) -> None:
    world.model.delay = 0.1
    methods = [world.method(interface) for _ in range(4)]

    answers = world.together(4, lambda: methods.pop()(**interface.request))

    assert (world.model.requests, answers) == (1, [answers[0]] * 4)


@every
def test_an_error_reaches_all_who_wait_and_is_not_stored(world: World, interface: Interface) -> None:
    world.model.delay = 0.2
    world.model.answer_with("429")
    method = world.method(interface)

    errors = world.together(10, lambda: method(**interface.request))

    assert {type(error).__name__ for error in errors} == {"RateLimitError"}
    assert {error.status_code for error in errors} == {429}
    assert world.call(method, **interface.request)
    assert world.model.requests == 2


@every
@pytest.mark.parametrize("leavers", [1, 9, 10])
def test_a_cancelled_leader_costs_one_request_more_at_most(
    backend_name: str, manager: CacheManager, model: Model, interface: Interface, leavers: int
) -> None:
    world = World("async", backend_name, manager, model)
    method = world.method(interface)

    async def cancel() -> list[Any]:
        with model.held():
            tasks = [asyncio.ensure_future(method(**interface.request)) for _ in range(10)]
            while not model.requests:
                await asyncio.sleep(0.005)
            for task in tasks[:leavers]:
                task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = world.loop.run(cancel())

    assert [type(answer) for answer in answers[:leavers]] == [asyncio.CancelledError] * leavers
    assert not any(isinstance(answer, BaseException) for answer in answers[leavers:])
    assert world.call(method, **interface.request)
    assert model.requests <= 2
    world.close()


# -- what is not to be stored ----------------------------------------------------------------------------------------------


@completions
@pytest.mark.parametrize("answer", ["empty", "refused", "truncated", "filtered"])
def test_an_answer_of_no_use_is_not_stored(world: World, interface: Interface, answer: str) -> None:
    method = world.method(interface)
    world.model.answer_with(answer)

    for requests in (1, 2, 2):
        assert world.call(method, **interface.request)
        assert world.model.requests == requests


@completions
def test_a_call_of_a_tool_is_stored(world: World, interface: Interface) -> None:
    method = world.method(interface)
    world.model.answer_with("tool")

    first, second = (world.call(method, **interface.request) for _ in range(2))

    assert (world.model.requests, second) == (1, first)


@every
@pytest.mark.parametrize("answer", ["429", "500", "broken"])
def test_an_error_is_not_stored(world: World, interface: Interface, answer: str) -> None:
    method = world.method(interface)
    world.model.answer_with(answer)

    with pytest.raises(ERRORS if answer != "broken" else Exception):
        world.call(method, **interface.request)

    assert world.call(method, **interface.request) == world.call(method, **interface.request)
    assert world.model.requests == 2


def test_one_truncated_choice_of_several_keeps_the_answer_out() -> None:
    from codomyrmex_cache.integrations import ok_completion
    from tests.llm_server import chat

    whole, cut = chat(CHAT.request, "ok", 1), chat(CHAT.request, "truncated", 1)
    make = openai.types.chat.ChatCompletion.model_validate

    assert ok_completion(make(whole))
    assert not ok_completion(make(whole | {"choices": whole["choices"] + cut["choices"]}))
    assert not ok_completion(make(whole | {"choices": []}))


# -- whose object it is ----------------------------------------------------------------------------------------------------


def spoil(answer: Any) -> None:
    """Change it in every way that a program might."""
    answer.model = "spoilt"
    for name in ("choices", "output", "data", "content"):
        if hasattr(answer, name):
            getattr(answer, name).clear()


@every
def test_a_changed_answer_is_the_callers_own(world: World, interface: Interface) -> None:
    method = world.method(interface)

    for _ in range(3):
        answer = world.call(method, **interface.request)
        assert (answer.model, answer.model_dump() == world.call(method, **interface.request).model_dump()) == ("m", True)
        spoil(answer)

    assert world.model.requests == 1


@completions
def test_a_changed_chunk_is_the_callers_own(world: World, interface: Interface) -> None:
    method = world.method(interface)
    first = world.heard(method, **interface.request, stream=True)
    whole = [chunk.model_copy(deep=True) for chunk in first]

    for chunk in first:
        for name in ("choices", "delta", "response"):
            if getattr(chunk, name, None) is not None:
                setattr(chunk, name, None)

    assert same(whole, world.heard(method, **interface.request, stream=True))


def test_messages_that_change_while_the_call_runs_are_not_mixed_up(world: World) -> None:
    method, messages = world.method(CHAT), [dict(MESSAGES[0])]

    async def change() -> None:
        with world.model.held():
            call = asyncio.ensure_future(method(model="m", messages=messages))
            while not world.model.requests:
                await asyncio.sleep(0.005)
            messages[0]["content"] = "changed"
        await call

    if world.kind == "async":
        world.loop.run(change())
    else:
        with ThreadPoolExecutor(1) as thread:
            with world.model.held():
                call = thread.submit(method, model="m", messages=messages)
                while not world.model.requests:
                    time.sleep(0.001)
                messages[0]["content"] = "changed"
            call.result()

    answers = {
        content: world.call(method, model="m", messages=[{"role": "user", "content": content}]).choices[0].message.content
        for content in (MESSAGES[0]["content"], "changed")
    }
    assert len(set(answers.values())) == 2
    assert answers == {
        content: world.call(world._cached("other")(world.client(CHAT).chat.completions.create), model="m",
                            messages=[{"role": "user", "content": content}]).choices[0].message.content
        for content in answers
    }  # fmt: skip


# -- another process -------------------------------------------------------------------------------------------------------

ASKED = """
import sys
from functools import reduce
from codomyrmex_cache import cached
from tests.test_llm_probes import CLIENTS, EVERY, KEY

for each in EVERY.values():
    with CLIENTS[each.package, "sync"](base_url={url!r} + each.version, api_key=KEY, max_retries=0) as client:
        method = cached("llm", backend="file_based")(reduce(getattr, each.method.split("."), client))
        print(repr(method(**each.request)))
        if each is not EVERY["embeddings"]:
            print(list(method(**each.request, stream=True)))
"""


def test_another_process_finds_what_was_answered(model: Model, tmp_path: Path) -> None:
    source, settings = ASKED.format(url=model.url), {"CODOMYRMEX_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "1"}

    first = run_python(source, **settings)
    second = run_python(source, **settings | {"PYTHONHASHSEED": "2"})

    assert (model.requests, second) == (7, first)


# -- secrets ---------------------------------------------------------------------------------------------------------------


@every
def test_no_secret_is_in_the_store(
    world: World, interface: Interface, backend_name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    headers = {"Authorization": f"Bearer {KEY}-header", "x-api-key": f"{KEY}-header"}
    client = world.client(interface, default_headers=headers)
    world.call(world.method(interface, client), **interface.request, extra_headers=headers)
    if interface is not EMBEDDINGS:
        world.heard(world.method(interface, client), **interface.request, stream=True)

    stored = [b""]
    if backend_name == "file_based":
        stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    if backend_name == "redis":
        with request.getfixturevalue("valkey").client() as redis:
            stored = [redis.dump(key) + key for key in redis.scan_iter()]

    assert stored
    assert not any(KEY.encode() in each for each in stored)


def test_a_store_without_a_secret_keeps_answers_without_pickle(valkey: Any, model: Model, interface: Interface = CHAT) -> None:
    manager = CacheManager(url=valkey.url)
    world = World("sync", "redis", manager, model)
    for each in EVERY.values():
        method = world.method(each)
        assert world.call(method, **each.request) == world.call(method, **each.request)

    assert model.requests == len(EVERY)
    world.close()
    manager.close()
