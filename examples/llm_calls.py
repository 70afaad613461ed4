"""Remembers calls made with the `openai` SDK, blocking and in an event loop.

    python examples/llm_calls.py

The SDK is the real one.  The model behind it is a server of this program's own on the loopback interface, which counts
requests, so that the example needs neither a network nor a key and can show which calls went out.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from openai import AsyncOpenAI, OpenAI

from codomyrmex_cache import cached

THINKING_SECONDS = 0.1  # so that concurrent calls overlap, and that there are seconds to save


class Model(ThreadingHTTPServer):
    """Answers each prompt with the prompt in capitals; `requests` says how many came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatCompletions)
        self.requests = 0
        self._lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests += 1
            number = self.requests
        time.sleep(THINKING_SECONDS)
        message = {"role": "assistant", "content": body["messages"][-1]["content"].upper()}
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16},
        }


class ChatCompletions(BaseHTTPRequestHandler):
    """POST /v1/chat/completions, without streaming."""

    server: Model

    def do_POST(self) -> None:
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(self.server.complete(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is http.server's
        """Print nothing: the output is the example's."""


os.environ.update(no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")  # a proxy could not reach this program's loopback interface
server = Model()
client = OpenAI(base_url=server.url, api_key="local")
async_client = AsyncOpenAI(base_url=server.url, api_key="local")


@cached("llm", ttl="1h")
def ask(prompt: str, model: str = "small") -> str | None:
    """The model's answer.  The clients are globals and no arguments, so a call counts by prompt and model alone."""
    completion = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
    return completion.choices[0].message.content


@cached("llm", ttl="1h")
async def ask_async(prompt: str, model: str = "small") -> str | None:
    """The same in an event loop; a function of its own, so it shares no entries with `ask`."""
    completion = await async_client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
    return completion.choices[0].message.content


def report(title: str, answers: list[str | None], requests: int) -> None:
    print(f"{title}: calls {len(answers)}, requests {requests}, answers {sorted(set(map(str, answers)))}")


def blocking() -> None:
    before = server.requests
    answers = [ask(prompt) for prompt in ("hello", "goodbye", "hello", "goodbye", "hello")]
    answers.append(ask(prompt="hello", model="small"))  # spelled differently, the same call
    report("blocking", answers, server.requests - before)

    before = server.requests
    report("blocking, another model", [ask("hello", model="large") for _ in range(2)], server.requests - before)


async def in_event_loop() -> None:
    async with async_client:
        before = server.requests
        answers = [await ask_async(prompt) for prompt in ("hello", "goodbye", "hello", "goodbye")]
        report("async", answers, server.requests - before)

        before = server.requests
        answers = await asyncio.gather(*(ask_async("all at once") for _ in range(10)))
        report("async, concurrent", answers, server.requests - before)


def main() -> None:
    serving = Thread(target=server.serve_forever)
    serving.start()
    try:
        with client:
            blocking()
        asyncio.run(in_event_loop())
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    total = ask.stats().calls + ask_async.stats().calls
    print(f"in all: calls {total}, requests {server.requests}")
    for function in (ask, ask_async):
        stats = function.stats()
        print(f"{function.__name__}: hit rate {stats.hit_rate:.2%}, {stats.seconds_saved:.1f} s saved")


if __name__ == "__main__":
    main()
