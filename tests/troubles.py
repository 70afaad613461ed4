"""What can be wrong with a Redis server or the way to it, each begun and ended at will; and a place to watch a cache in it."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from codomyrmex_cache import CacheManager, cached
from tests.conftest import Server
from tests.proxy import FaultProxy

__all__ = ["TROUBLES", "Scene", "Script", "Trouble", "Way", "carry_out", "never"]

Way = Literal["blocking", "asyncio"]

Script = Generator[tuple[str, tuple[Any, ...]], tuple[Any, float], Any]
"""Yields a verb and its arguments; is sent the answer (or the exception, for a verb that begins with "?") and its seconds."""


class Scene:
    """A server of our own, a proxy before it, and a namespace there with a memoized function that counts its runs."""

    _own = ("square", "asquare", "lock", "alock")

    def __init__(self, server: Server, *, proxied: bool = False, seed: int = 0, share: float = 0.01, **options: Any) -> None:
        self.server = server
        self.proxy = FaultProxy(server.port, seed=seed, share=share).__enter__()
        self.manager = CacheManager(url=self.proxy.url if proxied else server.hasty_url, secret=b"a secret for the tests")
        self.cache = self.manager.get_cache("x", backend="redis", **options)
        self.admin = redis.Redis(unix_socket_path=str(server.socket), retry=Retry(NoBackoff(), 0))
        self.runs: Counter[int] = Counter()
        self.during_load: Callable[[], object] = lambda: None
        body = self._body

        @cached("x", backend="redis", manager=self.manager, name="square", version=1)
        def square(number: int) -> list[int]:
            return body(number)

        @cached("x", backend="redis", manager=self.manager, name="asquare", version=1)
        async def asquare(number: int) -> list[int]:
            return body(number)

        self.square, self.asquare = square, asquare

    def _body(self, number: int) -> list[int]:
        self.runs[number] += 1
        self.during_load()
        return [number, number * number]

    def lock(self, name: str) -> int:
        with self.cache.lock(name, wait="300ms") as lock:
            return lock.token

    async def alock(self, name: str) -> int:
        async with self.cache.lock(name, wait="300ms") as lock:
            return lock.token

    def verb(self, name: str) -> Callable[..., Any]:
        """The function, or a method of the namespace."""
        found: Callable[..., Any] = getattr(self if name in self._own else self.cache, name)
        return found

    def close(self) -> None:
        self.manager.close()
        self.admin.close()
        self.proxy.__exit__(None, None, None)


@dataclass(frozen=True)
class Trouble:
    """A trouble and what is to be expected in it.

    Args:
        begin, end: bring it about and make it good again.
        proxied: the cache goes through the proxy.
        from_start: it is there before the first connection is made.
        bound: seconds that a decorated call may take.
        down: nothing useful is answered, so `incr`, `add` and `lock` raise, and the breaker opens.
        refuses_writes: the same for writes alone.
        share: of damaged bytes.
    """

    begin: Callable[[Scene], object]
    end: Callable[[Scene], object]
    proxied: bool = False
    from_start: bool = False
    bound: float = 0.5
    down: bool = True
    refuses_writes: bool = False
    share: float = 0.0

    def scene(self, server: Server) -> Scene:
        return Scene(server, proxied=self.proxied, seed=int(1000 * self.share), share=self.share)


def _mode(mode: str, **expected: Any) -> Trouble:
    def begin(scene: Scene) -> None:
        scene.proxy.mode = mode

    def end(scene: Scene) -> None:
        scene.proxy.mode = "pass"

    return Trouble(begin, end, proxied=True, **expected)


def _stop(scene: Scene) -> None:
    scene.admin.close()
    scene.server.stop()


def _start(scene: Scene) -> None:
    scene.server.start()


def _freeze(scene: Scene) -> None:
    scene.server.signal(signal.SIGSTOP)


def _thaw(scene: Scene) -> None:
    scene.server.signal(signal.SIGCONT)


def _fill(scene: Scene) -> None:
    scene.admin.config_set("maxmemory-policy", "noeviction")
    scene.admin.config_set("maxmemory", 1)


def _relieve(scene: Scene) -> None:
    scene.admin.config_set("maxmemory", 0)


def _follow(scene: Scene) -> None:
    scene.admin.replicaof("127.0.0.1", 1)  # nobody is there; what the server has, it keeps


def _lead(scene: Scene) -> None:
    scene.admin.replicaof("NO", "ONE")


def _demand_password(scene: Scene) -> None:
    """Connections authenticated before it stay so; the administrator's is one, the others are ended."""
    scene.admin.config_set("requirepass", "nobody knows it")
    scene.admin.client_kill_filter(_type="normal", skipme=True)


def _forget_password(scene: Scene) -> None:
    scene.admin.config_set("requirepass", "")


def _forget_scripts(scene: Scene) -> None:
    scene.admin.script_flush()


def _load_slowly(scene: Scene) -> None:
    """A restart that reads 2,000 keys, 10 ms for each, and answers LOADING meanwhile."""
    with scene.admin.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.set(f"padding:{number}", random.randbytes(1024))
        pipeline.execute()
    scene.admin.save()
    _stop(scene)
    slowly = ["--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"]
    scene.server._process = subprocess.Popen([*scene.server._command, *slowly], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while True:
        try:
            scene.admin.ping()
        except redis.BusyLoadingError:
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # polling until the process has its socket; nothing is assumed from the time passed
        else:
            raise AssertionError("loaded already")


def _load_fast(scene: Scene) -> None:
    scene.admin.config_set("key-load-delay", 0)


def never(_: Scene) -> None:
    """There is nothing to make good."""


TROUBLES: dict[str, Trouble] = {
    "absent": Trouble(_stop, _start, from_start=True),
    "killed": Trouble(_stop, _start),
    "frozen": Trouble(_freeze, _thaw),
    "out of memory": Trouble(_fill, _relieve, down=False, refuses_writes=True),
    "read-only": Trouble(_follow, _lead, down=False, refuses_writes=True),
    "loading": Trouble(_load_slowly, _load_fast),
    "password": Trouble(_demand_password, _forget_password),
    "scripts forgotten": Trouble(_forget_scripts, never, down=False),
    "refuse": _mode("refuse"),
    "refuse from start": _mode("refuse", from_start=True),
    "close": _mode("close"),
    "reset": _mode("reset"),
    "delay 0.3": _mode("delay:0.3", bound=1.0),
    "delay 0.3 from start": _mode("delay:0.3", bound=1.0, from_start=True),
    "delay 3": _mode("delay:3"),
    "drip": _mode("drip", down=False),
    "drip from start": _mode("drip", down=False, from_start=True),
    "damage of 0.3 %": _mode("damage", down=False, share=0.003),
    "damage of 3 %": _mode("damage", down=False, share=0.03),
    "damage of 30 %": _mode("damage", down=False, share=0.3),
    "blackhole": _mode("blackhole"),
    "blackhole from start": _mode("blackhole", from_start=True),
}


def carry_out(scene: Scene, script: Script, way: Way) -> None:
    """Make the calls of the script, blocking or in an event loop, and tell it what came of them."""
    if way == "asyncio":
        asyncio.run(_acarry_out(scene, script))
        return
    told: Any = None
    while (step := _next(script, told)) is not None:
        verb, arguments = step
        began = time.perf_counter()
        try:
            answer = scene.verb(verb.lstrip("?"))(*arguments)
        except Exception as error:
            if not verb.startswith("?"):
                raise
            answer = error
        told = answer, time.perf_counter() - began


async def _acarry_out(scene: Scene, script: Script) -> None:
    told: Any = None
    try:
        while (step := _next(script, told)) is not None:
            verb, arguments = step
            began = time.perf_counter()
            try:
                answer = await scene.verb("a" + verb.lstrip("?"))(*arguments)
            except Exception as error:
                if not verb.startswith("?"):
                    raise
                answer = error
            told = answer, time.perf_counter() - began
    finally:
        await scene.manager.aclose()


def _next(script: Script, told: Any) -> tuple[str, tuple[Any, ...]] | None:
    try:
        return script.send(told)
    except StopIteration:
        return None
