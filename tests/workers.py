"""Processes that use one store together with the tests: each does what it is told and tells what happens.

`python -m tests.workers STORE` reads one order a line from stdin and writes one event a line to stdout, both in JSON.  A load
tells that it has begun and answers what it is given next, so a test decides what happens while it runs, and when it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from codomyrmex_cache import Cache, CacheManager, cached
from codomyrmex_cache.backends.base import Backend

ROOT = Path(__file__).parent.parent
PATIENCE = 30.0
"""Seconds after which a test gives up on an event; no assertion depends on it."""


class Store(NamedTuple):
    """Where several processes meet."""

    backend: str
    directory: str
    url: str = ""

    def manager(self, late: float = 0.0) -> CacheManager:
        """One with a clock that is so many seconds ahead."""
        clock = (lambda: time.time() + late) if late else None
        return CacheManager(directory=self.directory, url=self.url or None, secret=b"a secret for the tests", clock=clock)

    @property
    def executions(self) -> Counter[str]:
        """How often each key was loaded, over all processes."""
        file = Path(self.directory) / "executions"
        return Counter(file.read_text().split()) if file.exists() else Counter()

    def note(self, word: str, file: str = "executions") -> None:
        """Append one line; it is written whole or not at all, whoever else writes."""
        descriptor = os.open(Path(self.directory) / file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        os.write(descriptor, f"{word}\n".encode())
        os.close(descriptor)


def function_on(manager: CacheManager, namespace: str, load: Callable[[Any], Any], **options: Any) -> Any:
    """A decorated function with the same keys in every process."""
    if asyncio.iscoroutinefunction(load):

        async def answer(x: object, load: Any = load) -> Any:  # not in a closure, which would be part of the key
            return await load(x)
    else:

        def answer(x: object, load: Any = load) -> Any:
            return load(x)

    return cached(namespace, manager=manager, name="answer", version=1, ignore=["load"], **options)(answer)


def watch(backend: Backend, waiting: Callable[[], None]) -> None:
    """Have `waiting` called each time that a load finds another one's lease."""

    def seen(begun: Any) -> Any:
        if begun.holder:
            waiting()
        return begun

    begin, abegin = backend.begin, backend.abegin  # type: ignore[attr-defined]

    async def watched(*arguments: Any) -> Any:
        return seen(await abegin(*arguments))

    backend.begin = lambda *arguments: seen(begin(*arguments))  # type: ignore[attr-defined]
    backend.abegin = watched  # type: ignore[attr-defined]


# -- the side of the test


class Worker:
    """One process at work on a store."""

    def __init__(self, store: Store) -> None:
        command = [sys.executable, "-m", "tests.workers", json.dumps(store)]
        self._process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.events: queue.Queue[list[Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready = False

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.put(json.loads(line))
        self.events.put(["ended"])

    def ready(self) -> None:
        """Return when it has started."""
        if not self._ready:
            assert self.event() == ["ready"]
            self._ready = True

    def do(self, verb: str, **arguments: Any) -> None:
        """Have it begin something."""
        self.ready()
        self.give([verb, arguments])

    def give(self, word: object) -> None:
        """Let the load that it is in answer this; `["raise"]` lets it raise."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word) + "\n")
        self._process.stdin.flush()

    def event(self, within: float = PATIENCE) -> list[Any]:
        """What happens next there."""
        return self.events.get(timeout=within)

    def asked(self, verb: str, **arguments: Any) -> Any:
        """The answer, if there is one without anything happening before."""
        self.do(verb, **arguments)
        kind, *rest = self.event()
        assert kind == "answer", (kind, rest)
        return rest[0]

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


# -- the side of the process


class _Work:
    """What a worker can be told to do; each method's result is the answer that it tells."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.managers: dict[float, CacheManager] = {}
        self.watched: set[int] = set()
        self.waits = False

    def cache(self, namespace: str, late: float = 0.0) -> Cache:
        manager = self.managers.setdefault(late, self.store.manager(late))
        cache = manager.get_cache(namespace, self.store.backend)
        if id(cache) not in self.watched:
            self.watched.add(id(cache))
            watch(cache.space.backend, self._waiting)
        return cache

    def function(self, namespace: str, load: Callable[[Any], Any], late: float = 0.0, **options: Any) -> Any:
        self.cache(namespace, late)
        return function_on(self.managers[late], namespace, load, **options)

    def _waiting(self) -> None:
        if not self.waits:
            self.waits = True
            tell("waiting")

    def _load(self, x: object) -> Any:
        self.store.note(str(x))
        tell("entered")
        return _obeyed(sys.stdin.readline())

    async def _aload(self, x: object) -> Any:
        self.store.note(str(x))
        tell("entered")
        return _obeyed(await asyncio.to_thread(sys.stdin.readline))

    def call(self, namespace: str, x: str = "k", late: float = 0.0, **options: Any) -> Any:
        """A decorated function."""
        return self.function(namespace, self._load, late, **options)(x)

    def acall(self, namespace: str, x: str = "k", **options: Any) -> Any:
        """A decorated coroutine function."""
        return asyncio.run(self.function(namespace, self._aload, **options)(x))

    def get_or_load(self, namespace: str, x: str = "k") -> Any:
        """The direct API."""
        return self.cache(namespace).get_or_load(x, partial(self._load, x))

    def aget_or_load(self, namespace: str, x: str = "k") -> Any:
        """The direct API in an event loop."""
        return asyncio.run(self.cache(namespace).aget_or_load(x, partial(self._aload, x)))

    def cancelled(self, namespace: str, x: str = "k", after_line: bool = True) -> Any:
        """A coroutine function's call that is cancelled after a line, or goes on until a signal ends the loop."""

        async def main() -> None:
            entered = asyncio.Event()

            async def load(_: object) -> None:
                entered.set()
                await asyncio.Event().wait()

            task = asyncio.ensure_future(self.function(namespace, load)(x))
            await entered.wait()
            tell("entered")
            if after_line:
                await asyncio.to_thread(sys.stdin.readline)
                task.cancel()
            await task

        asyncio.run(main())

    def crowd(self, namespace: str, threads: int, x: str = "k") -> list[Any]:
        """The distinct answers of as many threads as there are, all at once."""
        function, start = self.function(namespace, self._load), threading.Barrier(threads)

        def work(_: int) -> Any:
            start.wait()
            return function(x)

        return sorted(Counter(_in_threads(work, threads)).items())

    def many(self, namespace: str, calls: int, keys: int, seed: int) -> list[str]:
        """Calls of a short load over some keys; what went wrong."""

        def load(x: object) -> Any:
            self.store.note(str(x))
            time.sleep(0.01)  # more calls meet a load under way; the number of executions may not grow without
            return f"of {x}"

        function, wrong = self.function(namespace, load), []
        for number in range(calls):
            x = (seed * 7 + number * 13) % keys
            try:
                found = function(x)
                wrong += [f"f({x}) = {found}"] if found != f"of {x}" else []
            except Exception as error:
                wrong.append(repr(error))
        return wrong

    # -- the verbs that are exact

    def increments(self, namespace: str, times: int) -> list[int]:
        return increments(self.cache(namespace), times)

    def adds(self, namespace: str, rounds: int) -> list[int]:
        return adds(self.cache(namespace), rounds)

    def sections(self, namespace: str, times: int) -> None:
        sections(self.cache(namespace), self.store, times)

    def hold(self, namespace: str) -> Any:
        """Hold the lock until the next line comes; whether it was lost meanwhile."""
        with self.cache(namespace).lock("door") as lock:
            tell("entered")
            sys.stdin.readline()
            deadline = time.monotonic() + PATIENCE / 2
            while not lock.lost and time.monotonic() < deadline:
                time.sleep(0.01)  # polling; nothing is assumed from the time passed
            return lock.lost


def increments(cache: Cache, times: int) -> list[int]:
    """The sums that `incr` answered."""
    return [cache.incr("n") for _ in range(times)]


def adds(cache: Cache, rounds: int) -> list[int]:
    """The rounds that were won."""
    return [number for number in range(rounds) if cache.add(f"round {number}", os.getpid())]


def sections(cache: Cache, store: Store, times: int) -> None:
    """Go through the lock so many times; the file shows who was inside, and when."""
    for _ in range(times):
        with cache.lock("door") as lock:
            store.note(f"in {lock.token}", "door")
            store.note(f"out {lock.token}", "door")


def _in_threads(work: Callable[[int], Any], number: int) -> list[Any]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(number)))


def _obeyed(line: str) -> Any:
    word = json.loads(line)
    if word == ["raise"]:
        raise ValueError("as told")
    return word


_telling = threading.Lock()


def tell(*event: object) -> None:
    with _telling:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = _Work(Store(*json.loads(arguments[0])))
    tell("ready")
    for line in iter(sys.stdin.readline, ""):
        verb, options = json.loads(line)
        work.waits = False
        try:
            answer = getattr(work, verb)(**options)
        except BaseException as error:  # told, whatever it is: this is what the tests look at
            tell("raised", type(error).__name__)
        else:
            tell("answer", answer)


if __name__ == "__main__":
    main(sys.argv[1:])
