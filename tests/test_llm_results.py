"""What calls of the real SDKs give, stored and given again: whole answers alone, equal, streams as streams."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import pytest

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache._completions import Usage, model_of, ok_completion, usage_of
from tests.conftest import Server
from tests.llm_server import KEY, Model, serving

openai = pytest.importorskip("openai")
try:
    import anthropic
except ImportError:  # the older OpenAI is tested without it
    anthropic = None  # type: ignore[assignment]


class City(pydantic.BaseModel):
    """What answers are parsed into; its fields have to be told by the class, since the JSON alone has none of the methods."""

    name: str

    def shout(self) -> str:
        return self.name.upper()


@pytest.fixture(scope="module")
def _server() -> Iterator[Model]:
    with serving() as served:
        yield served
    for client in CLIENTS.values():
        closing = client.close()
        if closing is not None:
            LOOP.run_until_complete(closing)
    CLIENTS.clear()
    LOOP.close()


@pytest.fixture
def model(_server: Model) -> Iterator[Model]:
    """The server, as if it were new."""
    _server.seen.clear()
    _server.delay = _server.pause = 0.0
    yield _server
    assert not _server._script, "the test was to use up what it had told the server to answer"


@pytest.fixture(params=["in_memory", "file_based", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Decorates by a namespace of one of the backends, never by pickle; on Redis without a secret."""
    options: dict[str, Any] = {"backend": request.param}
    if request.param == "file_based":
        options |= {"directory": str(tmp_path / "cache"), "codec": "safe"}
    if request.param == "redis":
        options |= {"url": request.getfixturevalue("valkey").url, "codec": "safe"}
    manager = CacheManager()
    yield lambda **more: cached("llm", manager=manager, **options, **more)
    LOOP.run_until_complete(manager.aclose())


MESSAGES = [{"role": "user", "content": "What is the capital of Norway?"}]
CHAT: dict[str, Any] = {"model": "m-1", "messages": MESSAGES}
RESPONSE: dict[str, Any] = {"model": "m-1", "input": "What is the capital of Norway?"}


CLIENTS: dict[str, Any] = {}
LOOP = asyncio.new_event_loop()
"""One for all calls, since clients keep their connections."""


class Ask(NamedTuple):
    """A call of an SDK, by the way from the client to it, and its arguments."""

    package: str
    way: str
    arguments: dict[str, Any]

    def of(self, model: Model, *, asynchronous: bool) -> Any:
        kind = ("Async" if asynchronous else "") + {"openai": "OpenAI", "anthropic": "Anthropic"}[self.package]
        if kind not in CLIENTS:  # to make one takes 50 ms
            root = model.url + ("/v1" if self.package == "openai" else "")
            CLIENTS[kind] = getattr(sys.modules[self.package], kind)(api_key=KEY, base_url=root, max_retries=0)
        found = CLIENTS[kind]
        for name in self.way.split("."):
            found = getattr(found, name)
        return found


WHOLE = {
    "chat": Ask("openai", "chat.completions.create", CHAT),
    "chat parsed": Ask("openai", "chat.completions.parse", CHAT | {"response_format": City}),
    "response": Ask("openai", "responses.create", RESPONSE),
    "response parsed": Ask("openai", "responses.parse", RESPONSE | {"text_format": City}),
    "embeddings": Ask("openai", "embeddings.create", {"model": "m-1", "input": ["Oslo", "Bergen"]}),
}
STREAMS = {
    "chat stream": Ask("openai", "chat.completions.create", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    "response stream": Ask("openai", "responses.create", RESPONSE | {"stream": True}),
}
if anthropic is not None:
    WHOLE["message"] = Ask("anthropic", "messages.create", CHAT | {"max_tokens": 9})
    STREAMS["message stream"] = Ask("anthropic", "messages.create", CHAT | {"max_tokens": 9, "stream": True})
ALL = WHOLE | STREAMS

whole = pytest.mark.parametrize("ask", WHOLE.values(), ids=WHOLE)
streams = pytest.mark.parametrize("ask", STREAMS.values(), ids=STREAMS)
every = pytest.mark.parametrize("ask", ALL.values(), ids=ALL)
both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def result_of(call: Any, ask: Ask, *, asynchronous: bool) -> Any:
    """What the call gives; of a stream its chunks."""
    if asynchronous:
        return LOOP.run_until_complete(_result_of(call, ask))
    result = call(**ask.arguments)
    return list(result) if ask.arguments.get("stream") else result


async def _result_of(call: Any, ask: Ask) -> Any:
    result = await call(**ask.arguments)
    return [chunk async for chunk in result] if ask.arguments.get("stream") else result


def told(value: Any) -> Any:
    """All that there is to a result, for comparing: classes, fields that were set, extra fields, all the way down."""
    if isinstance(value, pydantic.BaseModel):
        extra = {name: told(item) for name, item in (value.model_extra or {}).items()}
        held = {name: told(item) for name, item in value.__dict__.items()}
        return type(value), sorted(value.model_fields_set), extra, held
    if isinstance(value, list):
        return [told(item) for item in value]
    return {name: told(item) for name, item in value.items()} if isinstance(value, dict) else (type(value), value)


# -- results -------------------------------------------------------------------------------------------------------------


@every
@both
@pytest.mark.parametrize("answer", ["ok", "tool"])
def test_an_answer_comes_again_as_it_came(
    model: Model, store: Callable[..., Any], ask: Ask, asynchronous: bool, answer: str
) -> None:
    model.answer_with(answer)
    call = store()(ask.of(model, asynchronous=asynchronous))
    first = result_of(call, ask, asynchronous=asynchronous)
    again = [result_of(call, ask, asynchronous=asynchronous) for _ in range(3)]
    assert model.requests == 1
    for result in again:
        assert result == first
        assert told(result) == told(first)


@pytest.mark.parametrize("ask", [WHOLE["chat parsed"], WHOLE["response parsed"]], ids=["chat", "response"])
def test_what_was_parsed_is_of_the_class_that_the_call_names(model: Model, store: Callable[..., Any], ask: Ask) -> None:
    call = store()(ask.of(model, asynchronous=False))
    for _ in range(3):
        result = call(**ask.arguments)
        parsed = result.output_parsed if "responses" in ask.way else result.choices[0].message.parsed
        assert type(parsed) is City
        assert parsed.shout().startswith("ANSWER ")
    assert model.requests == 1


@both
def test_a_class_that_was_defined_again_is_that_of_the_call(
    model: Model, store: Callable[..., Any], asynchronous: bool
) -> None:
    def define() -> type[pydantic.BaseModel]:
        class Place(pydantic.BaseModel):
            name: str

        return Place

    call = store()(WHOLE["chat parsed"].of(model, asynchronous=asynchronous))
    first, second = define(), define()
    for kind in (first, first, second, second, first, second):
        ask = WHOLE["chat parsed"]._replace(arguments=CHAT | {"response_format": kind})
        assert type(result_of(call, ask, asynchronous=asynchronous).choices[0].message.parsed) is kind
    assert model.requests == 1


@whole
def test_nobody_can_change_what_the_next_one_gets(model: Model, store: Callable[..., Any], ask: Ask) -> None:
    call = store()(ask.of(model, asynchronous=False))
    first = told(call(**ask.arguments))
    changed = call(**ask.arguments)
    changed.usage = None
    changed.model = "another"
    assert told(call(**ask.arguments)) == first
    assert model.requests == 1


# -- what is not stored ----------------------------------------------------------------------------------------------------


@every
@both
@pytest.mark.parametrize("answer", ["429", "500", "empty", "refused", "truncated", "filtered", "broken"])
def test_what_is_no_whole_answer_is_not_stored(
    model: Model, store: Callable[..., Any], ask: Ask, asynchronous: bool, answer: str
) -> None:
    if ask.way == "embeddings.create" and answer in ("empty", "refused", "truncated", "filtered"):
        pytest.skip("embeddings are never like that here")
    model.answer_with(answer, answer)
    call = store()(ask.of(model, asynchronous=asynchronous))
    for number in (1, 2):
        try:
            result_of(call, ask, asynchronous=asynchronous)
        except Exception as error:  # the SDK's own, which differ; a cut answer that is to be parsed is one
            assert answer in ("429", "500", "broken") or "parse" in ask.way, error
        else:
            assert answer not in ("429", "500", "broken")
        assert model.requests == number
    good = result_of(call, ask, asynchronous=asynchronous)
    assert model.requests == 3
    assert told(result_of(call, ask, asynchronous=asynchronous)) == told(good)
    assert model.requests == 3


def _chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"object": "chat.completion.chunk", "model": "m-1", "choices": choices, **more}


def _said(text: str | None, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"index": 0, "message": {"content": text, **more}, "finish_reason": finish}]}


BLOCK = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}
TEXT = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Oslo"}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}


@pytest.mark.parametrize(
    "result",
    [
        _said("Oslo"), _said(None, "tool_calls", tool_calls=[{"id": "1"}]), _said("Oslo", "eos"),
        {"choices": [{"text": "Oslo", "finish_reason": "stop"}]},
        [_chunk({"content": ""}), _chunk({"content": "Oslo"}), _chunk({}, "stop"), _chunk(None)],
        [{"type": "message_start"}, {"type": "ping"}, BLOCK, TEXT, END, {"type": "message_stop"}],
        [_said("Oslo"), _said("Bergen")], "Oslo", None, {}, 0, ["Os", "lo"], object(),
    ],
)  # fmt: skip
def test_whole_answers_and_what_is_none_at_all_are_ok(result: object) -> None:
    assert ok_completion(result)


@pytest.mark.parametrize(
    "result",
    [
        {"choices": []}, {"choices": None}, _said(None), _said(" \n"), _said("Oslo", None), _said("", refusal="No."),
        _said("Oslo", "length"), _said("Oslo", "MAX_TOKENS"), _said("Oslo", "content_filter"),
        _said("Oslo") | {"error": {"code": 502}},
        {"choices": _said("Oslo")["choices"] + _said("Os", "length")["choices"]},
        [_said("Oslo"), _said("Os", "length")], [],
        [_chunk({"content": "Oslo"})], [_chunk({}, "stop")], [_chunk({"content": "Os"}), _chunk({}, "length")], [_chunk(None)],
        [BLOCK, TEXT, END], [{"type": "message_start"}, BLOCK, TEXT, {"type": "message_stop"}],
        [{"type": "message_start"}, BLOCK, END, {"type": "message_stop"}],
        [{"type": "message_start"}, BLOCK, TEXT, {"type": "error"}],
        {"content": [{"type": "thinking", "thinking": "Hm."}], "stop_reason": "end_turn"},
        {"content": [{"type": "text", "text": "Oslo"}], "stop_reason": "pause_turn"},
        {"output": [{"type": "reasoning"}], "status": "completed"}, {"output": [], "status": "queued"},
        [{"type": "response.created"}, {"type": "response.output_text.delta", "delta": "Oslo"}],
        {"data": [], "model": "m-1"}, {"data": [{"embedding": []}], "model": "m-1"},
    ],
)  # fmt: skip
def test_answers_that_are_not_whole_are_not_ok(result: object) -> None:
    assert not ok_completion(result)


@every
@both
def test_model_and_usage_are_told(model: Model, ask: Ask, asynchronous: bool) -> None:
    result = result_of(ask.of(model, asynchronous=asynchronous), ask, asynchronous=asynchronous)
    assert model_of(result) == "m-1"
    assert usage_of(result) == (Usage(2, 0) if "embeddings" in ask.way else Usage(8, 4))


def test_usage_counts_what_the_provider_had_in_its_cache_and_sums_answers() -> None:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 100, "output_tokens": 5}
    answer = {"content": [], "stop_reason": "end_turn", "usage": usage}
    assert usage_of(answer) == Usage(123, 5)
    assert usage_of([answer, answer]) == Usage(246, 10)
    assert usage_of(_said("Oslo")) is None


# -- streams -----------------------------------------------------------------------------------------------------------------


@streams
def test_a_stream_offers_what_the_sdks_does(model: Model, store: Callable[..., Any], ask: Ask) -> None:
    plain = ask.of(model, asynchronous=False)
    with plain(**ask.arguments) as upstream:
        public = {name for name in dir(type(upstream)) if not name.startswith("_")} - {
            "raw_events"
        }  # that is of the connection
    call = store()(plain)
    model.seen.clear()
    whole = list(call(**ask.arguments))
    for _ in range(2):
        with call(**ask.arguments) as stream:
            assert public <= set(dir(stream))
            assert next(stream) == whole[0]
            assert [*stream] == whole[1:]
            assert next(stream, None) is None
        assert not hasattr(stream, "response")
        closed = call(**ask.arguments)
        closed.close()
        assert list(closed) == []
    assert model.requests == 1


@streams
def test_an_asynchronous_stream_offers_what_the_sdks_does(model: Model, store: Callable[..., Any], ask: Ask) -> None:
    call = store()(ask.of(model, asynchronous=True))

    async def read() -> None:
        whole = [chunk async for chunk in await call(**ask.arguments)]
        for _ in range(2):
            async with await call(**ask.arguments) as stream:
                assert await anext(stream) == whole[0]
                assert [chunk async for chunk in stream] == whole[1:]
            assert not hasattr(stream, "response")
            for name in ("close", "aclose"):
                closed = await call(**ask.arguments)
                await getattr(closed, name)()
                assert [chunk async for chunk in closed] == []

    LOOP.run_until_complete(read())
    assert model.requests == 1


@streams
def test_a_stream_left_early_is_closed_and_not_stored(
    model: Model, store: Callable[..., Any], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    plain = ask.of(model, asynchronous=False)
    post = plain.__self__._post
    monkeypatch.setattr(plain.__self__, "_post", lambda *way, **body: opened.append(post(*way, **body)) or opened[-1])
    call = store()(plain)
    model.pause = 0.02
    with pytest.raises(ZeroDivisionError), call(**ask.arguments) as stream:
        next(stream)
        raise ZeroDivisionError
    for _ in call(**ask.arguments):
        break
    gc.collect()
    assert [upstream.response.is_closed for upstream in opened] == [True, True]
    model.pause = 0.0
    assert list(call(**ask.arguments)) == list(call(**ask.arguments))
    assert model.requests == 3


@streams
def test_a_cancelled_asynchronous_stream_is_closed_and_not_stored(
    model: Model, store: Callable[..., Any], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    plain = ask.of(model, asynchronous=True)
    post = plain.__self__._post

    async def post_and_keep(*way: Any, **body: Any) -> Any:
        opened.append(await post(*way, **body))
        return opened[-1]

    monkeypatch.setattr(plain.__self__, "_post", post_and_keep)
    call = store()(plain)
    model.pause = 0.05

    async def read(begun: asyncio.Event) -> None:
        async with await call(**ask.arguments) as stream:
            async for _ in stream:
                begun.set()

    async def cancel() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(read(begun))
        await begun.wait()
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
        while not opened[0].response.is_closed:  # soon after; the time limit of the test is the one for this
            await asyncio.sleep(0.01)

    LOOP.run_until_complete(cancel())
    model.pause = 0.0
    first = LOOP.run_until_complete(_result_of(call, ask))
    assert LOOP.run_until_complete(_result_of(call, ask)) == first
    assert model.requests == 2


@every
def test_threads_share_one_request(model: Model, store: Callable[..., Any], ask: Ask) -> None:
    call = store()(ask.of(model, asynchronous=False))
    model.delay, model.pause = 0.2, 0.01
    with ThreadPoolExecutor(100) as threads:
        results = list(threads.map(lambda _: told(result_of(call, ask, asynchronous=False)), range(100)))
    assert model.requests == 1
    assert all(result == results[0] for result in results)


@every
def test_tasks_share_one_request(model: Model, store: Callable[..., Any], ask: Ask) -> None:
    call = store()(ask.of(model, asynchronous=True))
    model.delay, model.pause = 0.2, 0.01

    async def all_of_them() -> list[Any]:
        return [told(result) for result in await asyncio.gather(*(_result_of(call, ask) for _ in range(100)))]

    results = LOOP.run_until_complete(all_of_them())
    assert model.requests == 1
    assert all(result == results[0] for result in results)


@both
def test_what_gives_a_manager_is_passed_on(model: Model, store: Callable[..., Any], asynchronous: bool) -> None:
    ask = Ask("openai", "chat.completions.stream", CHAT)
    call = store()(ask.of(model, asynchronous=asynchronous))

    async def read() -> str:
        async with call(**CHAT) as stream:
            return str((await stream.get_final_completion()).choices[0].message.content)

    for number in (1, 2):
        if asynchronous:
            text = LOOP.run_until_complete(read())
        else:
            with call(**CHAT) as stream:
                text = stream.get_final_completion().choices[0].message.content
        assert text.startswith("answer ")
        assert (model.requests, call.stats().bypasses) == (number, number)


# -- stored bytes ------------------------------------------------------------------------------------------------------------


def _stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_no_secret_is_stored(model: Model, tmp_path: Path, valkey: Server) -> None:
    manager = CacheManager()
    for backend in ({"backend": "file_based", "directory": str(tmp_path)}, {"backend": "redis", "url": valkey.url}):
        for name, ask in ALL.items():
            for asynchronous in (False, True):
                call = cached(f"{name}-{backend['backend']}", manager=manager, **backend)(
                    ask.of(model, asynchronous=asynchronous)
                )
                more = {"extra_headers": {"Authorization": f"Bearer {KEY}-2", "X-Team": "blue"}}
                result_of(call, ask._replace(arguments=ask.arguments | more), asynchronous=asynchronous)
    LOOP.run_until_complete(manager.aclose())
    with valkey.client() as client:
        dumped = b"".join(client.dump(key) or b"" for key in client.keys())  # noqa: SIM118  redis' own
    for content in (_stored(tmp_path), dumped):
        assert b"m-1" in content  # it is there to be found
        for secret in (KEY, "uthorization", "Bearer", "X-Team"):
            assert secret.encode() not in content


ELSEWHERE = """
    import sys
    from codomyrmex_cache import cached
    from tests import test_llm_results as here

    folder, url = sys.argv[1:]
    server = here.Model(url=url)
    for name, ask in here.ALL.items():
        call = cached(name, backend="file_based", directory=folder, codec="safe")(ask.of(server, asynchronous=False))
        print(repr(here.told(here.result_of(call, ask, asynchronous=False))), call.stats().hits)
"""


def test_another_process_is_given_the_same(model: Model, tmp_path: Path) -> None:
    manager = CacheManager()
    lines = []
    for name, ask in ALL.items():
        call = cached(name, backend="file_based", directory=str(tmp_path), codec="safe", manager=manager)(
            ask.of(model, asynchronous=False)
        )
        lines.append(f"{told(result_of(call, ask, asynchronous=False))!r} 1")
    manager.close()
    requests = model.requests
    command = [sys.executable, "-c", textwrap.dedent(ELSEWHERE), str(tmp_path), model.url]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert printed.stderr == ""
    assert printed.stdout.splitlines() == lines
    assert model.requests == requests
