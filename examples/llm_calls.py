"""Remembers what a language model answered: calls of the `openai` SDK, blocking, in an event loop and streamed.

    python examples/llm_calls.py

The SDK is the real one.  The model behind it is a server of this program's own on the loopback interface, which counts
requests, so that the example needs neither a network nor a key and can show which calls went out.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import Any

from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache.errors import CacheMissError
from codomyrmex_cache.integrations import cache_client
from codomyrmex_cache.modes import mode

THINKING_SECONDS = 0.1  # so that concurrent calls overlap, and that there are seconds to save
DOLLARS_PER_TOKEN = 0.001  # of a dear model


# -- the model -------------------------------------------------------------------------------------------------------------


class Model(ThreadingHTTPServer):
    """Answers each prompt with the prompt in capitals; `requests` says how many came, and `texts` how many were embedded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.requests = self.texts = 0
        self._numbers = count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Cut short where the caller allows too few tokens."""
        self.requests = number = next(self._numbers)
        time.sleep(THINKING_SECONDS)
        text = body["messages"][-1]["content"].upper()
        cut = body.get("max_tokens", len(text)) < len(text)
        message = {"role": "assistant", "content": text[: body["max_tokens"]] if cut else text}
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}],
            "usage": {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16},
        }

    def chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The same, two letters at a time."""
        whole = self.complete(body)
        text = whole["choices"][0]["message"]["content"]
        for place in range(0, len(text) + 2, 2):
            delta = {"content": text[place : place + 2]} if place < len(text) else {}
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            yield {**whole, "object": "chat.completion.chunk", "choices": [choice], "usage": None}

    def embed(self, body: dict[str, Any]) -> dict[str, Any]:
        self.requests = next(self._numbers)
        self.texts += len(body["input"])
        data = [
            {"object": "embedding", "index": place, "embedding": [float(len(text))]} for place, text in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}


class Answers(BaseHTTPRequestHandler):
    """POST /v1/chat/completions and /v1/embeddings."""

    server: Model

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/embeddings":
            self._answer("application/json", json.dumps(self.server.embed(body)))
        elif body.get("stream"):
            events = [json.dumps(chunk) for chunk in self.server.chunks(body)]
            self._answer("text/event-stream", "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]))
        else:
            self._answer("application/json", json.dumps(self.server.complete(body)))

    def _answer(self, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is http.server's
        """Print nothing: the output is the example's."""


# -- the calls -------------------------------------------------------------------------------------------------------------

os.environ.update(no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")  # a proxy could not reach this program's loopback interface
server = Model()
client = OpenAI(base_url=server.url, api_key="local")
async_client = AsyncOpenAI(base_url=server.url, api_key="local")


def dollars(completion: ChatCompletion) -> float:
    assert completion.usage is not None
    return completion.usage.total_tokens * DOLLARS_PER_TOKEN


ask = cached("llm", ttl="7d", cost=dollars)(client.chat.completions.create)
ask_async = cached("llm-async", ttl="7d", cost=dollars)(async_client.chat.completions.create)
draw = cached("draws", samples=3)(client.chat.completions.create)
caching_client = cache_client(client, namespace="client")


def request(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": prompt}], **more}


def said(completion: ChatCompletion) -> str:
    return str(completion.choices[0].message.content)


@contextmanager
def shown(title: str, calls: int) -> Iterator[list[str]]:
    """Prints how many requests the block made, and which answers it noted."""
    before = server.requests
    answers: list[str] = []
    yield answers
    print(f"{title}: calls {calls}, requests {server.requests - before}, answers {sorted(set(answers))}")


def blocking() -> None:
    with shown("blocking", 6) as answers:
        answers += [said(ask(**request(prompt))) for prompt in ("hello", "goodbye", "hello", "goodbye", "hello")]
        answers.append(said(ask(messages=[{"content": "hello", "role": "user"}], model="small")))  # in other words the same
    with shown("another model", 2) as answers:
        answers += [said(ask(**request("hello", model="large"))) for _ in range(2)]
    with shown("cut short, so not kept", 2) as answers:
        answers += [said(ask(**request("a long answer", max_tokens=6))) for _ in range(2)]


async def in_event_loop() -> None:
    async with async_client:
        with shown("async", 4) as answers:
            answers += [said(await ask_async(**request(prompt))) for prompt in ("hello", "goodbye", "hello", "goodbye")]
        with shown("async, concurrent", 10) as answers:
            answers += map(said, await asyncio.gather(*(ask_async(**request("all at once")) for _ in range(10))))


def with_a_client() -> None:
    """Its methods are cached and typed as the SDK's own."""
    with shown("client", 2) as answers:
        answers += [said(caching_client.chat.completions.create(**request("hello"))) for _ in range(2)]
    with shown("streamed", 2) as answers:
        for _ in range(2):
            with caching_client.chat.completions.create(**request("hello", stream=True)) as stream:
                answers.append("|".join(chunk.choices[0].delta.content or "" for chunk in stream))
    for texts in (["one", "two"], ["two", "three"]):  # each text is an entry of its own
        embedded = caching_client.embeddings.create(model="embedder", input=texts, encoding_format="float")
        print(f"embeddings: {[item.embedding for item in embedded.data]}, texts sent so far {server.texts}")


def several_draws() -> None:
    with shown("3 samples", 6) as answers:
        answers += [draw(**request("hello")).id for _ in range(6)]


def replaying() -> None:
    """No call goes out; one that was not recorded says what differs from the nearest."""
    with mode("record"):
        ask(**request("good morning"))
    with shown("replay", 1) as answers, mode("replay"):
        answers.append(said(ask(**request("good morning"))))
    with mode("replay"):
        try:
            ask(**request("good evening"))
        except CacheMissError as error:
            print(f"replay of another prompt: {error}")


def main() -> None:
    serving = Thread(target=server.serve_forever)
    serving.start()
    try:
        with client:
            blocking()
            with_a_client()
            several_draws()
            replaying()
        asyncio.run(in_event_loop())
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    print(CacheManager.default().report())


if __name__ == "__main__":
    main()
