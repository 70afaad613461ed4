"""A model on the loopback interface that both real SDKs can talk to: it counts requests and does what it is told.

It serves chat completions, responses and embeddings of OpenAI and messages of Anthropic, each with and without streaming.  What
it answers depends on nothing but the request and the script, so that a wrong answer shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

KEY = "sk-loopback-0123456789abcdef"
"""What clients are given as their secret; it must never be stored."""

NAMES = ("ok", "429", "500", "empty", "refused", "truncated", "filtered", "tool", "broken")
"""What an answer can be told to be."""

Events = Iterator[tuple[str | None, Any]]


@dataclass
class Request:
    """What came: path, body, and headers in lower case."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Model:
    """The state of the server.

    Args:
        delay: seconds before each answer, so that concurrent calls overlap.
        pause: seconds between two chunks of a stream.
    """

    delay: float = 0.0
    pause: float = 0.0
    url: str = ""
    seen: list[Request] = field(default_factory=list)
    _script: deque[str] = field(default_factory=deque)
    _lock: Lock = field(default_factory=Lock)
    _free: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self._free.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Requests come, and are not answered before the end of the block."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def wait(self) -> None:
        """As long as an answer is to take."""
        time.sleep(self.delay)
        self._free.wait()

    @property
    def requests(self) -> int:
        """How many have come."""
        return len(self.seen)

    def answer_with(self, *names: str) -> None:
        """What the next answers are to be; after them all are ok again."""
        assert set(names) <= set(NAMES)
        with self._lock:
            self._script.extend(names)

    def take(self, request: Request) -> tuple[str, int]:
        """Note the request; how to answer it, and its number."""
        with self._lock:
            self.seen.append(request)
            return (self._script.popleft() if self._script else "ok"), len(self.seen)


def said(body: Any) -> str:
    """A text that tells one request from another, whatever differs in it."""
    content = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    return "answer " + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _words(text: str) -> list[str]:
    return [text[:3], text[3:9], text[9:]]


# -- OpenAI ------------------------------------------------------------------------------------------------------------


def _usage(names: tuple[str, str]) -> dict[str, int]:
    return {names[0]: 8, names[1]: 4, "total_tokens": 12}


def _tool_call() -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}


def _structured(body: dict[str, Any], text: str) -> str:
    """What fits a schema of texts, if one was asked for."""
    wanted = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    schema = wanted.get("json_schema", wanted).get("schema") if wanted.get("type") == "json_schema" else None
    if schema is None:
        return text
    return json.dumps({name: 7 if kind.get("type") == "integer" else text for name, kind in schema["properties"].items()})


def chat(body: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _structured(body, said(body)), "refusal": None}
    finish = {"truncated": "length", "filtered": "content_filter", "tool": "tool_calls"}.get(name, "stop")
    if name == "empty":
        message["content"] = ""
    if name == "refused":
        message |= {"content": None, "refusal": "I will not."}
    if name == "tool":
        message |= {"content": None, "tool_calls": [_tool_call()]}
    return {
        "id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1_700_000_000 + number, "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": _usage(("prompt_tokens", "completion_tokens")), "system_fingerprint": "fp_1",
    }  # fmt: skip


def chat_events(body: dict[str, Any], name: str, number: int) -> Events:
    """With an empty chunk in front of the text, tool calls in pieces, and a chunk of usage if it was asked for."""

    def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return {
            "id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": body["model"],
            "choices": choices, **more,
        }  # fmt: skip

    whole = chat(body, name, number)["choices"][0]
    yield None, chunk({"role": "assistant", "content": ""})
    if name == "tool":
        call = _tool_call()
        yield None, chunk({"tool_calls": [{"index": 0, **call, "function": {"name": "weather", "arguments": ""}}]})
        for part in ('{"ci', 'ty":"Oslo"}'):
            yield None, chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
    elif name == "refused":
        yield None, chunk({"refusal": whole["message"]["refusal"]})
    elif whole["message"]["content"]:
        for part in _words(whole["message"]["content"]):
            yield None, chunk({"content": part})
    yield None, chunk({}, whole["finish_reason"])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield None, chunk(None, usage=_usage(("prompt_tokens", "completion_tokens")))
    yield None, "[DONE]"


def response(body: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    """Of the responses interface; as lenient as the real one, with fields missing that the SDK's model has."""
    text = {"type": "output_text", "text": _structured(body, said(body)), "annotations": []}
    if name == "refused":
        text = {"type": "refusal", "refusal": "I will not."}
    item: dict[str, Any] = {
        "type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed", "content": [text],
    }  # fmt: skip
    if name == "tool":
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Oslo"}'}
    cut = {"truncated": "max_output_tokens", "filtered": "content_filter"}.get(name)
    return {
        "id": f"resp_{number}", "object": "response", "created_at": 1_700_000_000, "model": body["model"],
        "status": "incomplete" if cut else "completed", "incomplete_details": {"reason": cut} if cut else None, "error": None,
        "output": [] if name == "empty" else [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": 8, "output_tokens": 4, "total_tokens": 12},
    }  # fmt: skip


def response_events(body: dict[str, Any], name: str, number: int) -> Events:
    whole = response(body, name, number)
    sequence = 0

    def event(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        nonlocal sequence
        sequence += 1
        return kind, {"type": kind, "sequence_number": sequence, **fields}

    yield event("response.created", response={**whole, "status": "in_progress", "output": []})
    for index, item in enumerate(whole["output"]):
        yield event("response.output_item.added", output_index=index, item={**item, "content": []})
        for part in item.get("content", []):
            where = {"output_index": index, "content_index": 0, "item_id": item["id"]}
            yield event("response.content_part.added", part={**part, "text": ""}, **where)
            for piece in _words(part.get("text", "")):
                yield event("response.output_text.delta", delta=piece, logprobs=[], **where)
            yield event("response.output_text.done", text=part.get("text", ""), logprobs=[], **where)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.incomplete" if whole["status"] == "incomplete" else "response.completed", response=whole)


def embeddings(body: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    """Of each text its length and first letter or token, as numbers that floats hold exactly."""
    one = isinstance(body["input"], str) or isinstance(body["input"][0], int)  # a text, or its tokens
    texts = [body["input"]] if one else body["input"]
    first = [ord(text[0]) if isinstance(text, str) else text[0] for text in texts]
    data = [
        {"object": "embedding", "index": index, "embedding": [float(len(text)), float(first[index])]}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


# -- Anthropic -------------------------------------------------------------------------------------------------------------


def message(body: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": said(body)}]
    if name == "empty":
        content = []
    if name == "tool":
        content = [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}]
    stop = {"truncated": "max_tokens", "refused": "refusal", "filtered": "refusal", "tool": "tool_use"}.get(name, "end_turn")
    return {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": body["model"], "content": content,
        "stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": 8, "output_tokens": 4},
    }  # fmt: skip


def message_events(body: dict[str, Any], name: str, number: int) -> Events:
    whole = message(body, name, number)

    def event(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        return kind, {"type": kind, **fields}

    yield event("message_start", message={**whole, "content": [], "stop_reason": None})
    yield event("ping")
    for index, block in enumerate(whole["content"]):
        is_text = block["type"] == "text"
        yield event("content_block_start", index=index, content_block={**block, **({"text": ""} if is_text else {"input": {}})})
        for part in _words(block["text"]) if is_text else ['{"ci', 'ty":"Oslo"}']:
            delta = {"type": "text_delta", "text": part} if is_text else {"type": "input_json_delta", "partial_json": part}
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    yield event("message_delta", delta={"stop_reason": whole["stop_reason"], "stop_sequence": None}, usage={"output_tokens": 4})
    yield event("message_stop")


ANSWERS = {
    "chat/completions": (chat, chat_events),
    "responses": (response, response_events),
    "embeddings": (embeddings, None),
    "messages": (message, message_events),
}
"""By the end of the path."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        model = self.server.model
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.partition("?")[0]
        served = [answers for end, answers in ANSWERS.items() if path.endswith(end)]
        if not served:
            return self._send(404, {"error": {"message": f"no {self.path}"}})
        name, number = model.take(Request(self.path, body, {key.lower(): value for key, value in self.headers.items()}))
        model.wait()
        if name in ("429", "500"):
            return self._send(int(name), {"error": {"type": "error", "message": f"told to answer {name}", "code": None}})
        whole, events = served[0]
        if not body.get("stream"):
            return self._send(200, whole(body, name, number), broken=name == "broken")
        assert events is not None
        self._stream(events(body, name, number), broken=name == "broken")
        return None

    def _send(self, status: int, answer: Any, *, broken: bool = False) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("x-request-id", f"req_{self.server.model.requests}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if broken else data)
        self.close_connection = broken

    def _stream(self, events: Events, *, broken: bool) -> None:
        """In chunks; a broken one ends in the middle, without its last chunk."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for place, (kind, data) in enumerate(events):
            if broken and place == 2:
                self.close_connection = True
                return
            text = data if isinstance(data, str) else json.dumps(data)
            self._chunk((f"event: {kind}\n" if kind else "") + f"data: {text}\n\n")
            time.sleep(self.server.model.pause)
        self._chunk("")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:  # the client has left
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is http.server's
        """Nothing: what came is in `seen`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, model: Model) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no error."""


@contextmanager
def serving(**options: Any) -> Iterator[Model]:
    """A model at `model.url`, until the end of the block."""
    os.environ.update(no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")  # a proxy could not reach this program's loopback interface
    model = Model(**options)
    server = _Server(model)
    model.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
