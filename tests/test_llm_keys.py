"""Keys of calls of the real SDKs: what counts, what does not, and that no secret does."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import io
import json
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache._sdk import call_of
from codomyrmex_cache.errors import UnkeyableError
from codomyrmex_cache.keys import Keyer
from tests.conftest import run_python
from tests.llm_server import KEY, Model, serving

pydantic = pytest.importorskip("pydantic")
SDKS = [name for name in ("openai", "anthropic") if importlib.util.find_spec(name)]
if not SDKS:
    pytest.skip("no SDK is installed", allow_module_level=True)
SETTINGS = settings(max_examples=60, deadline=None)

HELLO = [{"role": "user", "content": "hello"}]


class Answer(pydantic.BaseModel):
    text: str


class Method(NamedTuple):
    """A method of an SDK, with arguments that it can be called with."""

    package: str
    way: str
    arguments: dict[str, Any]


METHODS = [
    method
    for method in (
        Method("openai", "chat.completions.create", {"model": "m", "messages": HELLO}),
        Method("openai", "chat.completions.parse", {"model": "m", "messages": HELLO, "response_format": Answer}),
        Method("openai", "responses.create", {"model": "m", "input": "hello"}),
        Method("openai", "responses.parse", {"model": "m", "input": "hello", "text_format": Answer}),
        Method("openai", "embeddings.create", {"model": "m", "input": ["hello"]}),
        Method("anthropic", "messages.create", {"model": "m", "max_tokens": 9, "messages": HELLO}),
    )
    if method.package in SDKS
]
COMPLETIONS = [method for method in METHODS if method.way in ("chat.completions.create", "messages.create")]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.package}.{method.way}")
both = pytest.mark.parametrize("method", COMPLETIONS, ids=lambda method: method.package)
needs_openai = pytest.mark.skipif("openai" not in SDKS, reason="needs the SDK of OpenAI")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with serving() as served:
        yield served


def client_of(package: str, *, asynchronous: bool = False, **options: Any) -> Any:
    kind = {"openai": "OpenAI", "anthropic": "Anthropic"}[package]
    options = {"api_key": KEY, "base_url": "http://127.0.0.1:9/v1", "max_retries": 0, **options}
    return getattr(importlib.import_module(package), ("Async" if asynchronous else "") + kind)(**options)


def at(client: Any, way: str) -> Any:
    return functools.reduce(getattr, way.split("."), client)


def cached_at(client: Any, way: str, **options: Any) -> Any:
    return cached("llm", manager=CacheManager(), strict=True, **options)(at(client, way))


def key_at(client: Any, method: Method, **changes: Any) -> str:
    key: str = cached_at(client, method.way).key(**{**method.arguments, **changes})
    return key


@pytest.fixture
def key(method: Method) -> Callable[..., str]:
    """The key of the method's call with other arguments."""
    return functools.partial(key_at, client_of(method.package), method)


def sentinels(package: str) -> list[Any]:
    sdk = importlib.import_module(package)
    return [sdk.NOT_GIVEN, sdk.omit, type(sdk.omit)(), type(sdk.NOT_GIVEN)(), pickle.loads(pickle.dumps(sdk.omit))]


# -- the calls work ----------------------------------------------------------------------------------------------------


@every_method
def test_a_repeated_call_asks_once_and_another_one_again(method: Method, model: Model) -> None:
    with client_of(method.package, base_url=f"{model.url}/v1") as client:
        ask = cached_at(client, method.way)
        before = model.requests
        first, second = ask(**method.arguments), ask(**method.arguments)
        assert model.requests == before + 1
        assert type(second) is type(first)
        assert second == first
        ask(**{**method.arguments, "model": "another"})
        assert model.requests == before + 2


@every_method
def test_an_async_call_asks_once(method: Method, model: Model) -> None:
    async def run() -> int:
        async with client_of(method.package, asynchronous=True, base_url=f"{model.url}/v1") as client:
            ask = cached_at(client, method.way)
            assert inspect.iscoroutinefunction(ask)
            before = model.requests
            first = await ask(**method.arguments)
            assert await ask(**method.arguments) == first
            assert await ask.apeek(**method.arguments) == first
            return model.requests - before

    assert asyncio.run(run()) == 1


@every_method
def test_what_a_method_calls_is_recognised(method: Method) -> None:
    client = client_of(method.package)
    call = call_of(at(client, method.way))
    assert call is not None
    assert (call.package, call.method, call.client, call.name) == (
        method.package, method.way, client, f"{method.package}.{method.way}",
    )  # fmt: skip
    assert cached_at(client, method.way).key(**method.arguments).startswith(f"@{method.package}.{method.way}:")


@both
def test_other_functions_are_not_taken_for_calls_of_an_sdk(method: Method) -> None:
    client = client_of(method.package)
    original = at(client, method.way)

    @functools.wraps(original)
    def wrapper(**kwargs: Any) -> Any:
        return original(**kwargs)

    class Resource(type(original.__self__)):  # type: ignore[misc]
        def create(self, **kwargs: Any) -> str:
            return "mine"

    others = [len, print, wrapper, Resource(client).create, client.with_options, [].append, type(original.__self__).create]
    assert [call_of(function) for function in others] == [None] * len(others)


# -- the client ----------------------------------------------------------------------------------------------------------


@both
def test_clients_that_differ_in_secret_and_patience_alone_share_entries(method: Method) -> None:
    keys = {
        key_at(client_of(method.package, **options), method)
        for options in (
            {}, {"api_key": "another"}, {"timeout": 3.0}, {"max_retries": 5},
            {"default_headers": {"Authorization": "Bearer x", "X-Api-Key": "x", "Cookie": "x", "Proxy-Authorization": "x"}},
            {"default_query": {"api-key": "x"}}, {"base_url": "http://user:password@127.0.0.1:9/v1"},
        )
    }  # fmt: skip
    assert len(keys) == 1


@both
def test_settings_of_a_client_count(method: Method) -> None:
    clients = [
        client_of(method.package, **options)
        for options in (
            {}, {"base_url": "http://127.0.0.1:9/v2"}, {"default_headers": {"X-Tenant": "1"}},
            {"default_headers": {"X-Tenant": "2"}}, {"default_query": {"version": "1"}}, {"default_query": {"version": "2"}},
        )
    ]  # fmt: skip
    clients.append(client_of(method.package, asynchronous=True))
    if method.package == "openai":
        clients += [client_of("openai", organization="o"), client_of("openai", project="o")]
    assert len({key_at(client, method) for client in clients}) == len(clients)


@both
def test_options_given_later_count_as_those_given_at_first(method: Method) -> None:
    headers, patience = {"X-Tenant": "1"}, {"timeout": 1.0, "max_retries": 7}
    plain = client_of(method.package)
    with_headers = plain.with_options(default_headers=headers)
    assert key_at(with_headers, method) == key_at(client_of(method.package, default_headers=headers), method)
    assert key_at(plain.with_options(**patience), method) == key_at(plain, method)


@both
def test_a_changed_client_changes_the_key_of_the_next_call(method: Method, model: Model) -> None:
    with client_of(method.package, base_url=f"{model.url}/v1") as client:
        ask = cached_at(client, method.way)
        before = model.requests
        for _ in range(3):
            ask(**method.arguments)
        assert model.requests == before + 1
        client.base_url = f"{model.url}/v2"
        for _ in range(3):
            ask(**method.arguments)
        assert model.requests == before + 2
        client.base_url = f"{model.url}/v1"
        ask(**method.arguments)
        assert model.requests == before + 2
        client.tenant = "somebody"
        ask(**method.arguments)
        assert model.requests == before + 3


@needs_openai
def test_a_changed_organization_changes_the_key() -> None:
    client = client_of("openai")
    ask = cached_at(client, "responses.create")
    keys = [ask.key(model="m", input="x")]
    client.organization = "o"
    keys.append(ask.key(model="m", input="x"))
    client.project = "p"
    keys.append(ask.key(model="m", input="x"))
    assert len(set(keys)) == 3


@needs_openai
def test_version_and_deployment_of_azure_count() -> None:
    from openai import AzureOpenAI

    def key(**options: Any) -> str:
        given = {"api_key": KEY, "azure_endpoint": "http://127.0.0.1:9", "api_version": "1", **options}
        return key_at(AzureOpenAI(**given), METHODS[0])

    assert key() == key(api_key="another") == key(api_key=None, azure_ad_token="token")
    assert len({key(), key(api_version="2"), key(azure_deployment="d"), key(azure_endpoint="http://127.0.0.1:8")}) == 4


@both
def test_using_a_client_does_not_change_its_keys(method: Method, model: Model) -> None:
    with client_of(method.package, base_url=f"{model.url}/v1") as client:
        before = key_at(client, method)
        at(client, method.way)(**method.arguments)
        _ = client.models, client.with_raw_response, client.with_streaming_response
        assert key_at(client, method) == before


def subclass_of(package: str) -> Any:
    class Client(type(client_of(package))):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(api_key=KEY, base_url="http://127.0.0.1:9")
            vars(self).update(options)

    return Client


@both
def test_a_subclass_counts_by_its_class_and_its_own_attributes(method: Method) -> None:
    kind = subclass_of(method.package)
    keys = [key_at(made, method) for made in (kind(), kind(tenant="a"), kind(tenant="b"), kind(_tenant="a"))]
    assert len({*keys, key_at(client_of(method.package, base_url="http://127.0.0.1:9"), method)}) == 5
    assert key_at(kind(tenant="a"), method) == keys[1]


@both
def test_an_attribute_that_cannot_count_is_named(method: Method) -> None:
    with pytest.raises(UnkeyableError, match=r"'client': attribute 'guard' of .*Client: _thread.lock .*"):
        key_at(subclass_of(method.package)(guard=threading.Lock()), method)


# -- arguments -----------------------------------------------------------------------------------------------------------


@every_method
def test_sentinels_and_absent_arguments_agree(method: Method, key: Callable[..., str]) -> None:
    name = "user" if method.way == "embeddings.create" else "temperature"
    assert {key(**{name: sentinel}) for sentinel in sentinels(method.package)} == {key()}
    if method.way == "chat.completions.create":
        assert len({key(), key(temperature=0), key(temperature=0.0), key(temperature=None)}) == 4


@both
def test_how_to_ask_does_not_count_and_what_is_asked_does(key: Callable[..., str]) -> None:
    assert key() == key(timeout=3) == key(extra_headers=None) == key(extra_headers={}) == key(extra_query=None)
    secrets = {
        "authorization": "x",
        "API-KEY": "x",
        "x-api-key": "x",
        "Cookie": "x",
        "X-Goog-Api-Key": "x",
        "X-Auth-Token": "x",
    }
    assert key() == key(extra_headers=secrets) == key(extra_headers={"Idempotency-Key": "1"}) == key(extra_body={})
    different = [
        key(), key(extra_headers={"X-Tenant": "1"}), key(extra_headers={"X-Tenant": "2"}), key(extra_body={"top_k": 1}),
        key(extra_body={"top_k": 2}), key(extra_query={"v": "1"}), key(stream=True), key(unknown=1), key(unknown=2),
        key(temperature=0.5), key(model="n"), key(tools=[]), key(extra_body={"temperature": 0.5}), key(unknown=True),
        key(extra_headers={"X-Author": "1"}),
    ]  # fmt: skip
    assert len(set(different)) == len(different)


@both
def test_the_case_of_header_names_does_not_count(method: Method, key: Callable[..., str]) -> None:
    assert key(extra_headers={"X-Tenant": "1"}) == key(extra_headers={"x-tenant": "1"})
    omit = importlib.import_module(method.package).omit
    assert key(extra_headers={"X-Tenant": omit}) != key()  # it takes a default header away


@both
def test_left_out_arguments_do_not_count(method: Method) -> None:
    client = client_of(method.package)
    ask = cached_at(client, method.way, ignore=["metadata"])
    assert ask.key(**method.arguments, metadata={"request": "1"}) == ask.key(**method.arguments)
    by_model = cached_at(client, method.way, key=lambda **kwargs: kwargs["model"])
    assert by_model.key(model="m") == by_model.key(model="m", messages=HELLO) != by_model.key(model="n")


@both
def test_scope_version_and_name_count(method: Method) -> None:
    client = client_of(method.package)
    options = [{}, {"scope": lambda: "a"}, {"scope": lambda: "b"}, {"version": 1}, {"version": 2}, {"name": "mine"}]
    keys = [cached_at(client, method.way, **each).key(**method.arguments) for each in options]  # type: ignore[arg-type]
    assert len(set(keys)) == len(options)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def permuted(value: Any, draw: Callable[..., Any]) -> Any:
    if isinstance(value, dict):
        return {name: permuted(value[name], draw) for name in draw(st.permutations(list(value)))}
    return [permuted(item, draw) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def ask() -> Any:
    method = COMPLETIONS[0]
    return cached_at(client_of(method.package), method.way)


@SETTINGS
@given(st.data(), st.dictionaries(st.sampled_from(["messages", "tools", "metadata", "extra_body", "x"]), JSON, min_size=1))
def test_no_order_of_keywords_or_dicts_counts(ask: Any, data: st.DataObject, arguments: dict[str, Any]) -> None:
    assert ask.key(**permuted(arguments, data.draw)) == ask.key(**arguments)


@SETTINGS
@given(st.data(), JSON, JSON)
def test_any_leaf_counts(ask: Any, data: st.DataObject, value: Any, other: Any) -> None:
    where = data.draw(st.sampled_from(["messages", "tools", "unknown"]))
    same = json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
    arguments = [{where: [{"role": "user", "content": [{"deep": each}]}]} for each in (value, other)]
    assert (ask.key(**arguments[0]) == ask.key(**arguments[1])) is same


@both
def test_generators_are_not_consumed_and_run_uncached(method: Method, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with client_of(method.package, base_url=f"{model.url}/v1") as client:
        ask = cached("llm", manager=CacheManager())(at(client, method.way))
        before = model.requests
        for _ in range(2):
            ask(**{**method.arguments, "messages": (dict(message) for message in HELLO)})
    assert [request.body["messages"] for request in model.seen[before:]] == [HELLO, HELLO]
    assert [record.getMessage() for record in caplog.records if "messages" in record.getMessage()]
    assert KEY not in caplog.text


@both
def test_what_cannot_be_encoded_never_breaks_a_call(method: Method, key: Callable[..., str]) -> None:
    circle: list[Any] = []
    circle.append(circle)
    for name in ("messages", "extra_body", "extra_headers", "extra_query"):
        with pytest.raises(UnkeyableError, match=f"parameter {name!r}: "):
            key(**{name: {"x": circle}})


# -- objects of the SDKs and of pydantic -----------------------------------------------------------------------------------


@needs_openai
def test_a_message_of_an_answer_agrees_with_the_same_dict(model: Model) -> None:
    method = METHODS[0]
    with client_of("openai", base_url=f"{model.url}/v1") as client:
        model.answer_with("tool")
        message = client.chat.completions.create(**method.arguments).choices[0].message
        sent = [*HELLO, message]
        before = model.requests
        client.chat.completions.create(model="m", messages=sent)
        as_dict = model.seen[before].body["messages"]
        assert as_dict[1]["tool_calls"][0]["function"]["name"] == "weather"
        assert key_at(client, method, messages=sent) == key_at(client, method, messages=as_dict)
        changed = message.model_copy(update={"content": "something else"})
        assert key_at(client, method, messages=[*HELLO, changed]) != key_at(client, method, messages=sent)


@pytest.mark.skipif("anthropic" not in SDKS, reason="needs the SDK of Anthropic")
def test_the_content_of_an_anthropic_answer_agrees_with_the_same_dicts(model: Model) -> None:
    method = METHODS[-1]
    with client_of("anthropic", base_url=model.url) as client:
        model.answer_with("tool")
        content = client.messages.create(**method.arguments).content
        sent = [*HELLO, {"role": "assistant", "content": content}, *HELLO]
        before = model.requests
        client.messages.create(**{**method.arguments, "messages": sent})
        as_dicts = model.seen[before].body["messages"]
        assert as_dicts[1]["content"][0]["name"] == "weather"
        assert key_at(client, method, messages=sent) == key_at(client, method, messages=as_dicts)


class Aliased(pydantic.BaseModel):
    schema_: str = pydantic.Field(alias="schema")


def test_models_whose_names_and_aliases_differ_agree_with_themselves_alone(ask: Any) -> None:
    value = Aliased(schema="a")
    assert ask.key(messages=[value]) == ask.key(messages=[Aliased(schema="a")])
    keys = {ask.key(messages=[each]) for each in (value, Aliased(schema="b"), {"schema": "a"}, {"schema_": "a"})}
    assert len(keys) == 4


@needs_openai
def test_tools_count_by_what_they_are_sent_as() -> None:
    import openai

    client = client_of("openai")
    tool: Any = openai.pydantic_function_tool(Answer)
    plain = json.loads(json.dumps(tool))
    backwards = {"function": dict(reversed(plain["function"].items())), "type": "function"}
    create = functools.partial(key_at, client, METHODS[0])
    assert create(tools=[tool]) == create(tools=[plain]) == create(tools=[backwards])
    assert create(tools=[openai.pydantic_function_tool(Answer, name="other")]) != create(tools=[tool])
    parse = functools.partial(key_at, client, METHODS[1])
    assert parse(tools=[tool]) == parse(tools=[openai.pydantic_function_tool(Answer)])
    assert parse(tools=[tool]) != parse(tools=[plain])  # its arguments are parsed into the class, those of a dict are not


def local_class(name: str, **fields: Any) -> Any:
    return pydantic.create_model(name, __module__=__name__, **fields)


@pytest.mark.skipif("openai" not in SDKS, reason="needs the SDK of OpenAI")
@pytest.mark.parametrize(("index", "name"), [(1, "response_format"), (3, "text_format")])
def test_classes_to_parse_into_count_by_name_schema_and_code(index: int, name: str) -> None:
    key = functools.partial(key_at, client_of("openai"), METHODS[index])

    class Checked(pydantic.BaseModel):
        text: str

        @pydantic.field_validator("text")
        @classmethod
        def checked(cls, value: str) -> str:
            return value.strip()

    first, edited = Checked, local_class("Checked", text=(str, ...))
    edited.__qualname__ = first.__qualname__
    classes = [
        Answer, local_class("Answer", text=(int, ...)), local_class("Answer", text=(str, "")),
        local_class("Other", text=(str, ...)), first, edited,
    ]  # fmt: skip
    assert len({key(**{name: each}) for each in classes}) == len(classes)
    assert key(**{name: local_class("Answer", text=(str, ...))}) == key(**{name: Answer})


# -- files ---------------------------------------------------------------------------------------------------------------


@needs_openai
def test_files_count_by_content_and_are_not_consumed(tmp_path: Path) -> None:
    ask = cached_at(client_of("openai"), "audio.transcriptions.create")
    path, same = tmp_path / "a.wav", tmp_path / "b" / "a.wav"
    same.parent.mkdir()
    path.write_bytes(b"sound")
    same.write_bytes(b"sound")
    memory = io.BytesIO(b"sound")
    memory.seek(2)
    with path.open("rb") as opened, same.open("rb") as other:
        files = [path, same, opened, other]
        assert len({ask.key(model="m", file=file) for file in files}) == 1
        assert opened.tell() == 0
    assert ask.key(model="m", file=memory) == ask.key(model="m", file=io.BytesIO(b"sound"))
    assert memory.tell() == 2
    different: list[Any] = [
        path, memory, io.BytesIO(b"noise"), b"sound", b"noise", ("a.wav", b"sound"), ("b.wav", b"sound"),
        ("a.wav", b"sound", "audio/wav"), ("a.wav", b"noise", "audio/wav"), ("a.wav", io.BytesIO(b"sound")),
    ]  # fmt: skip
    assert len({ask.key(model="m", file=file) for file in different}) == len(different)
    before = ask.key(model="m", file=path)
    path.write_bytes(b"other sound")
    assert ask.key(model="m", file=path) != before


@needs_openai
def test_a_file_that_cannot_be_set_back_is_unkeyable() -> None:
    ask = cached_at(client_of("openai"), "audio.transcriptions.create")
    read, write = os.pipe()
    with (
        open(read, "rb") as source,
        open(write, "wb"),
        pytest.raises(UnkeyableError, match=r"'file': .* cannot be read and set"),
    ):
        ask.key(model="m", file=source)


# -- clients and other objects as arguments of functions of one's own ------------------------------------------------------


@both
def test_a_client_as_an_argument_counts_by_the_same_rules(method: Method) -> None:
    calls = []
    omit = importlib.import_module(method.package).omit

    @cached("own", manager=CacheManager(), strict=True)
    def ask(client: Any, prompt: str, temperature: Any = omit) -> str:
        calls.append(prompt)
        return prompt

    client = client_of(method.package)
    ask(client, "a")
    ask(client_of(method.package, api_key="another", timeout=1), "a")
    for sentinel in sentinels(method.package):
        ask(client, "a", sentinel)
    assert len(calls) == 1
    client.base_url = "http://127.0.0.1:9/v3"
    ask(client, "a")
    assert len(calls) == 2
    ask(at(client, method.way), "a")
    ask(at(client, method.way).__self__, "a")
    ask(at(client_of(method.package, base_url="http://127.0.0.1:9/v3"), method.way).__self__, "a")
    assert len(calls) == 4


@both
def test_a_client_in_a_closure_or_a_partial_is_looked_at_anew(method: Method) -> None:
    client = client_of(method.package)

    def ask(prompt: str) -> str:
        return f"{client.base_url} {prompt}"

    calls = [cached(manager=CacheManager(), strict=True)(ask), cached_at(client, method.way)]
    bound = cached(manager=CacheManager(), strict=True)(functools.partial(at(client, method.way), model="m"))
    before = [calls[0].key("a"), calls[1].key(**method.arguments), bound.key(messages=HELLO)]
    assert before == [calls[0].key("a"), calls[1].key(**method.arguments), bound.key(messages=HELLO)]
    client.base_url = "http://127.0.0.1:9/v3"
    after = [calls[0].key("a"), calls[1].key(**method.arguments), bound.key(messages=HELLO)]
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_a_pydantic_class_as_an_argument_counts_by_its_schema() -> None:
    @cached(manager=CacheManager(), strict=True)
    def ask(kind: type) -> None: ...

    class Edited(pydantic.BaseModel):
        text: str

    before = ask.key(Edited)
    assert ask.key(Edited) == before
    Edited.__annotations__["more"] = int
    Edited.model_fields["text"].default = ""
    Edited.model_rebuild(force=True)
    assert ask.key(Edited) != before


# -- secrets, explanations, other processes ----------------------------------------------------------------------------------


@both
def test_no_secret_is_in_any_part_of_a_key(method: Method, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    encoded: list[bytes] = []
    encodings = Keyer._encodings
    monkeypatch.setattr(Keyer, "_encodings", lambda self, values: _noted(encodings(self, values), encoded))
    caplog.set_level(logging.DEBUG, "codomyrmex_cache")
    secret = {"default_headers": {"Authorization": KEY, "x-api-key": KEY}, "default_query": {"api_key": KEY}}
    client = client_of(method.package, **secret)
    ask = cached_at(client, method.way)
    explanation = ask.explain(**method.arguments, extra_headers={"Authorization": f"Bearer {KEY}"})
    assert KEY not in f"{ask.key(**method.arguments)} {explanation} {caplog.text}"
    assert encoded
    assert not any(KEY.encode() in part for part in encoded)


def _noted(parts: Iterator[tuple[str, bytes]], into: list[bytes]) -> Iterator[tuple[str, bytes]]:
    for name, part in parts:
        into.append(part)
        yield name, part


@both
def test_an_explanation_names_the_arguments_that_differ(method: Method, model: Model) -> None:
    with client_of(method.package, base_url=f"{model.url}/v1") as client:
        ask = cached_at(client, method.way)
        ask(**method.arguments)
        assert ask.explain(**method.arguments).outcome == "hit"
        assert ask.explain(**{**method.arguments, "model": "n"}).differing == ("model",)
        client.base_url = f"{model.url}/v2"
        assert ask.explain(**method.arguments, temperature=1).differing == ("client", "temperature")


def keys_of_calls() -> list[str]:
    """Printed by another process below."""
    keys = []
    for method in METHODS:
        client = client_of(method.package, default_headers={"X-B": "1", "X-A": "2"})
        keys.append(key_at(client, method, extra_body={"b": 1, "a": {2: 3}, "c": {"y": {"z"}, "x": Answer}}))
    return keys


def test_keys_are_the_same_in_another_process() -> None:
    source = "import json; from tests.test_llm_keys import keys_of_calls; print(json.dumps(keys_of_calls()))"
    repository = str(Path(__file__).parent.parent)
    for seed in ("0", "7"):
        assert json.loads(run_python(source, PYTHONHASHSEED=seed, PYTHONPATH=repository)) == keys_of_calls()


@pytest.mark.parametrize(
    ("package", "way", "pinned"),
    [
        ("openai", "chat.completions.create", "8562c770e25163a300d21aae1a9ba2c1"),
        ("openai", "responses.create", "c2730ba42a847b5bc76cda95e1a53906"),
        ("anthropic", "messages.create", "86030f49adddc81727830a3b36c56b30"),
    ],
)
def test_keys_are_pinned_for_all_versions_of_the_sdks(package: str, way: str, pinned: str) -> None:
    if package not in SDKS:
        pytest.skip(f"needs the SDK of {package}")
    method = next(method for method in METHODS if (method.package, method.way) == (package, way))
    assert key_at(client_of(package), method) == f"@{package}.{way}:{pinned}"


def test_recognising_imports_no_sdk() -> None:
    sdks = "'openai', 'anthropic', 'pydantic'"
    source = f"import sys, codomyrmex_cache._sdk, codomyrmex_cache.keys; print(*{{{sdks}}} & set(sys.modules))"
    assert run_python(source) == "\n"
