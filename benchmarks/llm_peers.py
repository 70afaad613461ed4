"""Caches of LLM calls behind one interface; `python -m benchmarks.llm_peers NAME FOLDER` is one of them in its own process.

It serves itself a model on the loopback interface, and does what each line of its input says: "probes" or "hit"; the answer
is a line of JSON.  Each package is imported by its adapter alone, in whatever interpreter has it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from threading import Barrier
from typing import Any

from tests.llm_server import KEY, Model, serving

MESSAGES = [{"role": "user", "content": "What is the capital of Norway?"}]
REORDERED = [dict(reversed(each.items())) for each in MESSAGES]
DELAY = 0.1
"""Seconds that the model thinks while concurrent calls arrive."""

Request = dict[str, Any]


def question(text: str) -> Request:
    """A call of its own: no other probe has asked this."""
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


class Adapter:
    """A package's cache; what a package has no way to say is left as it is here, and its cell stays empty.

    Args:
        model: the one that answers.
        folder: an empty one of its own.
    """

    distribution = ""
    uncommon: tuple[Request, Request] = ({"verbosity": "low"}, {"verbosity": "high"})  # an argument that few know of

    def __init__(self, model: Model, folder: str) -> None:
        self.model, self.folder = model, folder
        self.url = f"{model.url}/v1"
        self._open = ExitStack()

    def ask(self, request: Request, *, key: str = KEY, url: str | None = None) -> Any:
        """The answer to a request, from a client with this key and address."""
        raise NotImplementedError

    async def aask(self, request: Request) -> Any:
        raise NotImplementedError

    def chunks(self, request: Request) -> list[str]:
        """The texts of a stream's chunks."""
        raise NotImplementedError

    def batch(self, requests: list[Request]) -> list[Any]:
        """The answers to many requests by the package's own way to ask for many, or by threads."""
        raise NotImplementedError

    def mutated(self) -> Callable[[int], Any]:
        """Asks the same of one client or model object whose settings are changed to the first, second, third ones before."""
        raise NotImplementedError

    def text(self, answer: Any) -> str:
        return str(answer.choices[0].message.content)

    def spoil(self, answer: Any) -> None:
        answer.choices[0].message.content = "spoilt"

    def close(self) -> None:
        self._open.close()


class Sdk(Adapter):
    """What asks with the `openai` SDK itself."""

    distribution = "openai"

    def __init__(self, model: Model, folder: str) -> None:
        super().__init__(model, folder)
        self._clients: dict[tuple[str, str], Any] = {}
        self._methods: dict[tuple[str, str], Any] = {}

    def prepared(self, method: Any) -> Any:
        """The client's method as this package wants it."""
        return method

    def client(self, key: str, url: str) -> Any:
        from openai import OpenAI

        if (key, url) not in self._clients:
            self._clients[key, url] = OpenAI(api_key=key, base_url=url, max_retries=0)
        return self._clients[key, url]

    def ask(self, request: Request, *, key: str = KEY, url: str | None = None) -> Any:
        where = key, url or self.url
        if where not in self._methods:
            self._methods[where] = self.prepared(self.client(*where).chat.completions.create)
        return self._methods[where](**request)

    async def aask(self, request: Request) -> Any:
        from openai import AsyncOpenAI

        if "async" not in self.__dict__:
            self.__dict__["async"] = AsyncOpenAI(api_key=KEY, base_url=self.url, max_retries=0)
            self._amethod = self.prepared(self.__dict__["async"].chat.completions.create)
        return await self._amethod(**request)

    def chunks(self, request: Request) -> list[str]:
        return [chunk.model_dump_json() for chunk in self.ask(request | {"stream": True})]

    def batch(self, requests: list[Request]) -> list[Any]:
        with ThreadPoolExecutor(len(requests)) as threads:
            return list(threads.map(self.ask, requests))

    def mutated(self) -> Callable[[int], Any]:
        client = self.client(KEY, f"{self.model.url}/mutated/v1")
        method = self.prepared(client.chat.completions.create)

        def ask(number: int) -> Any:
            client.base_url = f"{self.model.url}/mutated{number}/v1"
            return method(**question("mutated"))

        return ask


class Ours(Sdk):
    distribution = "codomyrmex_cache"
    backend = "in_memory"

    def __init__(self, model: Model, folder: str) -> None:
        from codomyrmex_cache import CacheManager

        super().__init__(model, folder)
        self._manager = CacheManager(directory=folder)
        self._open.callback(self._manager.close)

    def prepared(self, method: Any) -> Any:
        from codomyrmex_cache import cached

        return cached("llm", ttl="1h", backend=self.backend, manager=self._manager)(method)


class OursOnFiles(Ours):
    backend = "file_based"


class Vcrpy(Sdk):
    """With the body among what it matches by: by default any POST to the same address answers any other."""

    distribution = "vcrpy"

    def __init__(self, model: Model, folder: str) -> None:
        import vcr

        super().__init__(model, folder)
        matched_by = ["method", "scheme", "host", "port", "path", "query", "body"]
        recorder = vcr.VCR(record_mode="new_episodes", match_on=matched_by)
        self._open.enter_context(recorder.use_cassette(f"{folder}/cassette.yaml", allow_playback_repeats=True))


class LangChain(Adapter):
    distribution = "langchain-core"

    def __init__(self, model: Model, folder: str) -> None:
        super().__init__(model, folder)
        self._cache = self.cache()
        self._models: dict[str, Any] = {}

    def cache(self) -> Any:
        from langchain_core.caches import InMemoryCache

        return InMemoryCache()

    def chat(self, request: Request, key: str = KEY, url: str | None = None, **more: Any) -> Any:
        """A model object for this request; one for each configuration, as a program has them."""
        from langchain_openai import ChatOpenAI

        settings = {each: value for each, value in request.items() if each != "messages"} | more
        settings |= {"base_url": url or self.url, "api_key": key, "max_retries": 0, "cache": self._cache}
        name = repr(settings)
        if name not in self._models:
            self._models[name] = ChatOpenAI(**settings)
        return self._models[name]

    def ask(self, request: Request, *, key: str = KEY, url: str | None = None) -> Any:
        return self.chat(request, key, url).invoke(request["messages"])

    async def aask(self, request: Request) -> Any:
        return await self.chat(request).ainvoke(request["messages"])

    def chunks(self, request: Request) -> list[str]:
        return [str(chunk.content) for chunk in self.chat(request).stream(request["messages"])]

    def batch(self, requests: list[Request]) -> list[Any]:
        answers: list[Any] = self.chat(requests[0]).batch([request["messages"] for request in requests])
        return answers

    def mutated(self) -> Callable[[int], Any]:
        request = question("mutated")
        chat = self.chat(request, temperature=0.5)

        def ask(number: int) -> Any:
            chat.temperature, chat.model_name = [(0.5, "m"), (0.9, "m"), (0.9, "n")][number]
            return chat.invoke(request["messages"])

        return ask

    def text(self, answer: Any) -> str:
        return str(answer.content)

    def spoil(self, answer: Any) -> None:
        answer.content = "spoilt"


class LangChainOnFiles(LangChain):
    def cache(self) -> Any:
        from langchain_community.cache import SQLiteCache

        return SQLiteCache(database_path=f"{self.folder}/langchain.db")


class LiteLlm(Adapter):
    distribution = "litellm"
    options: dict[str, Any] = {"type": "local"}  # noqa: RUF012
    uncommon = ({"guided_regex": "a"}, {"guided_regex": "b"})  # passed on to the model, as it does with what it does not know

    def __init__(self, model: Model, folder: str) -> None:
        import litellm

        super().__init__(model, folder)
        litellm.suppress_debug_info = True
        litellm.cache = litellm.Cache(**{name: value.format(folder=folder) for name, value in self.options.items()})
        self._litellm = litellm

    def _request(self, request: Request, key: str = KEY, url: str | None = None) -> Request:
        """In the order of the request's own keywords."""
        rest = {"api_base": url or self.url, "api_key": key, "caching": True, "max_retries": 0}
        return {**request, "model": f"openai/{request['model']}", **rest}

    def ask(self, request: Request, *, key: str = KEY, url: str | None = None) -> Any:
        return self._litellm.completion(**self._request(request, key, url))

    async def aask(self, request: Request) -> Any:
        return await self._litellm.acompletion(**self._request(request))

    def chunks(self, request: Request) -> list[str]:
        return [str(chunk.choices[0].delta.content) for chunk in self.ask(request | {"stream": True})]

    def batch(self, requests: list[Request]) -> list[Any]:
        whole = self._request(requests[0]) | {"messages": [request["messages"] for request in requests]}
        answers: list[Any] = self._litellm.batch_completion(**whole)
        return answers


class LiteLlmOnFiles(LiteLlm):
    options = {"type": "disk", "disk_cache_dir": "{folder}"}  # noqa: RUF012


class DsPy(Adapter):
    distribution = "dspy"

    def __init__(self, model: Model, folder: str) -> None:
        os.environ["DSPY_CACHEDIR"] = folder
        import dspy

        super().__init__(model, folder)
        self._dspy = dspy
        self._models: dict[tuple[str, str, str], Any] = {}

    def _lm(self, request: Request, key: str = KEY, url: str | None = None) -> Any:
        settings = request["model"], key, url or self.url
        if settings not in self._models:
            options = {"api_key": key, "api_base": settings[2], "cache": True, "num_retries": 0}
            self._models[settings] = self._dspy.LM(f"openai/{request['model']}", **options)
        return self._models[settings]

    def ask(self, request: Request, *, key: str = KEY, url: str | None = None) -> Any:
        return self._lm(request, key, url)(**{name: value for name, value in request.items() if name != "model"})

    async def aask(self, request: Request) -> Any:
        return await self._lm(request).acall(messages=request["messages"])

    def mutated(self) -> Callable[[int], Any]:
        request = question("mutated")
        lm = self._dspy.LM("openai/m", api_key=KEY, api_base=self.url, cache=True, num_retries=0, temperature=0.5)

        def ask(number: int) -> Any:
            lm.kwargs["temperature"], lm.model = [(0.5, "openai/m"), (0.9, "openai/m"), (0.9, "openai/n")][number]
            return lm(messages=request["messages"])

        return ask

    def text(self, answer: Any) -> str:
        return str(answer[0])

    def spoil(self, answer: Any) -> None:
        answer[0] = "spoilt"


class Instructor(Adapter):
    distribution = "instructor"

    def __init__(self, model: Model, folder: str) -> None:
        import instructor
        from instructor.cache import AutoCache
        from pydantic import BaseModel

        class Reply(BaseModel):
            text: str

        super().__init__(model, folder)
        self._instructor, self._reply, self._cache = instructor, Reply, AutoCache(maxsize=1_000)
        self._clients: dict[Any, Any] = {}

    def _client(self, kind: str, key: str, url: str) -> Any:
        import openai

        if (kind, key, url) not in self._clients:
            sdk = getattr(openai, kind)(api_key=key, base_url=url, max_retries=0)
            wrapped = self._instructor.from_openai(sdk, mode=self._instructor.Mode.JSON_SCHEMA, cache=self._cache)
            self._clients[kind, key, url] = wrapped, sdk
        return self._clients[kind, key, url]

    def _request(self, request: Request) -> Request:
        return {**request, "response_model": self._reply, "max_retries": 0}

    def ask(self, request: Request, *, key: str = KEY, url: str | None = None) -> Any:
        return self._client("OpenAI", key, url or self.url)[0].chat.completions.create(**self._request(request))

    async def aask(self, request: Request) -> Any:
        return await self._client("AsyncOpenAI", KEY, self.url)[0].chat.completions.create(**self._request(request))

    def mutated(self) -> Callable[[int], Any]:
        client, sdk = self._client("OpenAI", KEY, f"{self.url}/")

        def ask(number: int) -> Any:
            sdk.base_url = f"{self.model.url}/mutated{number}/v1"
            return client.chat.completions.create(**self._request(question("mutated")))

        return ask

    def text(self, answer: Any) -> str:
        return str(answer.text)

    def spoil(self, answer: Any) -> None:
        answer.text = "spoilt"


ADAPTERS: dict[str, type[Adapter]] = {
    "codomyrmex_cache in_memory": Ours,
    "codomyrmex_cache file_based": OursOnFiles,
    "LangChain InMemoryCache": LangChain,
    "LangChain SQLiteCache": LangChainOnFiles,
    "LiteLLM local": LiteLlm,
    "LiteLLM disk": LiteLlmOnFiles,
    "DSPy": DsPy,
    "Instructor AutoCache": Instructor,
    "vcrpy": Vcrpy,
}


class Probes:
    """Asks an adapter everything; each probe asks something of its own and gives how many requests went out, and a remark."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.model = adapter, adapter.model

    def _requests(self, *asks: Callable[[], Any]) -> tuple[int, list[Any]]:
        before = self.model.requests
        answers = [ask() for ask in asks]
        return self.model.requests - before, answers

    def same(self, name: str, other: Request | None = None, **client: Any) -> int:
        """For a call, and for what is the same in other words."""
        first = question(name)
        return self._requests(lambda: self.adapter.ask(first), lambda: self.adapter.ask(other or first, **client))[0]

    def different(self, name: str, one: Request, two: Request) -> int:
        asks = [lambda more=more: self.adapter.ask(question(name) | more) for more in (one, two)]
        return self._requests(*asks)[0]

    def path(self) -> int:
        urls = [f"{self.model.url}/{place}/v1" for place in ("a", "b")]
        return self._requests(*(lambda url=url: self.adapter.ask(question("path"), url=url) for url in urls))[0]

    def mutated(self) -> int:
        """New ones, after the first."""
        ask = self.adapter.mutated()
        ask(0)
        return self._requests(lambda: ask(1), lambda: ask(2))[0]

    def stream(self) -> tuple[int, str]:
        number, (first, second) = self._requests(*[lambda: self.adapter.chunks(question("stream"))] * 2)
        return number, "" if number > 1 or first == second else f"{len(first)} chunks as {len(second)}"

    def threads(self, callers: int = 10) -> int:
        barrier, request = Barrier(callers), question("threads")
        before = self.model.requests

        def call(_: int) -> Any:
            barrier.wait(30)
            return self.adapter.ask(request)

        with ThreadPoolExecutor(callers) as threads:
            list(threads.map(call, range(callers)))
        return self.model.requests - before

    def tasks(self, callers: int = 10) -> int:
        async def gather() -> None:
            await asyncio.gather(*(self.adapter.aask(question("tasks")) for _ in range(callers)))

        return self._requests(lambda: asyncio.run(gather()))[0]

    def batch(self) -> int:
        return self._requests(lambda: self.adapter.batch([question("batch")] * 4))[0]

    def scripted(self, answer: str) -> int:
        """For a call that is answered so, and the same again."""
        self.model.answer_with(answer)

        def ask() -> None:
            try:
                self.adapter.ask(question(answer))
            except Exception:
                assert answer in ("429", "empty", "truncated")  # some refuse these themselves

        return self._requests(ask, ask)[0]

    def spoilt(self) -> tuple[int, str]:
        asks = lambda: self.adapter.ask(question("spoilt"))  # noqa: E731
        for _ in range(2):  # the first answer may be another object than the next ones
            self.adapter.spoil(asks())
        number, (answer,) = self._requests(asks)
        return number + 1, "the changed one" if self.adapter.text(answer) == "spoilt" else ""

    def every(self) -> dict[str, Callable[[], Any]]:
        body = [{"extra_body": {"top_k": number}} for number in (1, 2)]
        keywords = dict(reversed(question("keywords").items()))
        dicts = question("dicts") | {"messages": [{"content": "dicts", "role": "user"}]}
        return {
            "the same call twice": lambda: self.same("twice"),
            "another API key": lambda: self.same("key", key="sk-of-another"),
            "keywords in another order": lambda: self.same("keywords", keywords),
            "keys of a message in another order": lambda: self.same("dicts", dicts),
            "another `extra_body`": lambda: self.different("body", *body),
            "another argument few know of": lambda: self.different("argument", *self.adapter.uncommon),
            "another path in the base URL": self.path,
            "client or model object changed twice": self.mutated,
            "a stream twice": self.stream,
            "10 threads at once": lambda: self._slowly(self.threads),
            "10 tasks at once": lambda: self._slowly(self.tasks),
            "a batch of 4 identical calls": lambda: self._slowly(self.batch),
            "an empty answer, then again": lambda: self.scripted("empty"),
            "a truncated answer, then again": lambda: self.scripted("truncated"),
            "a 429, then again": lambda: self.scripted("429"),
            "the caller changes its answer": self.spoilt,
        }

    def _slowly(self, probe: Callable[[], int]) -> int:
        self.model.delay = DELAY
        try:
            return probe()
        finally:
            self.model.delay = 0.0

    def results(self) -> dict[str, Any]:
        """Name of a probe to requests and remark, to an error, or to nothing where the package cannot be asked that."""
        found: dict[str, Any] = {}
        for name, probe in self.every().items():
            try:
                result = probe()
                found[name] = result if isinstance(result, tuple) else (result, "")
            except NotImplementedError:
                found[name] = None
            except Exception as error:
                found[name] = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        return found


def hit_microseconds(adapter: Adapter, seconds: float = 0.05) -> float:
    """What a call costs that is answered from the cache, with the package's own client around it."""
    request = {"model": "m", "messages": MESSAGES}
    expected = adapter.text(adapter.ask(request))
    before = adapter.model.requests
    calls, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or calls < 3:
        answer = adapter.ask(request)
        calls += 1
    assert adapter.model.requests == before, "no hit"
    assert adapter.text(answer) == expected, "a wrong answer"
    return taken / calls * 1e6


def main(name: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print is not an answer
    with serving() as model:
        adapter = ADAPTERS[name](model, folder)
        try:
            number = version(adapter.distribution)
        except PackageNotFoundError:
            number = ""
        print(json.dumps({"version": number}), file=answers)
        for line in sys.stdin:
            try:
                result = Probes(adapter).results() if line == "probes\n" else hit_microseconds(adapter)
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            print(json.dumps(result), file=answers)
        adapter.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
