"""A backend that fails never fails or hangs the user's function."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from codomyrmex_cache import CacheManager, Entry, FileBasedBackend, InMemoryBackend, cached
from codomyrmex_cache.errors import CacheBackendError
from tests.conftest import Server


class Failing:
    """A backend whose every verb raises."""

    payload: Literal["object"] = "object"

    def _fail(self, *_: Any) -> Any:
        raise OSError("no such device")

    get = set = has = delete = scan = clear = count = get_many = set_many = delete_many = _fail

    def close(self) -> None: ...


def test_a_failing_backend_is_a_miss_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    manager = CacheManager()
    backend = Failing()

    @cached("failing", backend=backend, manager=manager)
    def function(x: int) -> int:
        return x

    assert [function(x) for x in (1, 2, 1)] == [1, 2, 1]
    cache = manager.get_cache("failing")
    cache.set("k", 1)
    cache.set_many({"k": 1})
    assert (cache.get("k", "d"), cache.has("k"), cache.delete("k"), cache.keys(), cache.clear()) == ("d", False, False, [], 0)
    assert (cache.get_many(["k"]), cache.delete_many(["k"])) == ({}, 0)
    assert function.invalidate(1) is False
    stats = cache.stats()
    assert (stats.size, stats.misses, stats.loads) == (None, 5, 3)
    assert set(stats.errors) == {"backend:OSError"}
    lines = [record.message for record in caplog.records]
    assert len(lines) == 1
    assert "'failing'" in lines[0]
    assert "no such device" in lines[0]


def test_on_error_raise_hands_the_failure_on() -> None:
    @cached("raising", backend=Failing(), on_error="raise", manager=CacheManager())
    def function(x: int) -> int:
        return x

    with pytest.raises(CacheBackendError, match=r"'raising'.*Failing failed to get.*no such device") as caught:
        function(1)
    assert isinstance(caught.value.__cause__, OSError)

    @cached("raising-async", backend=Failing(), on_error="raise", manager=CacheManager())
    async def coroutine(x: int) -> int:
        return x

    with pytest.raises(CacheBackendError):
        asyncio.run(coroutine(1))


class FailsToWrite(Failing):
    def get(self, key: bytes) -> Entry | None:
        return None


def test_a_write_that_raises_reaches_the_caller_only_if_asked_for() -> None:
    for on_error in ("bypass", "raise"):

        @cached("write", backend=FailsToWrite(), on_error=on_error, manager=CacheManager())  # type: ignore[arg-type]
        def function(x: int) -> int:
            return x

        @cached("write-async", backend=FailsToWrite(), on_error=on_error, manager=CacheManager())  # type: ignore[arg-type]
        async def coroutine(x: int) -> int:
            return x

        if on_error == "bypass":
            assert function(1) == asyncio.run(coroutine(1)) == 1
        else:
            with pytest.raises(CacheBackendError):
                function(1)
            with pytest.raises(CacheBackendError):
                asyncio.run(coroutine(1))


def _answers(manager: CacheManager) -> None:
    @cached("outage", backend="redis", manager=manager)
    def function(x: int) -> int:
        return x

    @cached("outage", backend="redis", manager=manager)
    async def coroutine(x: int) -> int:
        return x

    async def main() -> None:
        assert [await coroutine(1), await coroutine(1)] == [1, 1]
        await manager.aclose()

    assert [function(1), function(1)] == [1, 1]
    asyncio.run(main())


def test_no_server_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = CacheManager(url=f"unix://{tmp_path / 'nobody.sock'}")
    _answers(manager)
    assert manager.stats("outage").errors.keys() == {"backend:ConnectionError", "backend:CircuitOpenError"}
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_server_that_dies_and_returns(own_server: Server) -> None:
    manager = CacheManager(url=own_server.url)
    _answers(manager)
    own_server.stop()
    _answers(manager)
    own_server.start()
    cache = manager.get_cache("outage")
    deadline = time.monotonic() + 5
    while cache.get("k") != 1:  # until the next probe
        assert time.monotonic() < deadline
        cache.set("k", 1)


def test_a_frozen_server_costs_timeouts_and_no_answer(own_server: Server) -> None:
    manager = CacheManager(url=own_server.url)
    _answers(manager)
    own_server.signal(signal.SIGSTOP)
    try:
        _answers(manager)
    finally:
        own_server.signal(signal.SIGCONT)
    assert "backend:TimeoutError" in manager.stats("outage").errors


def test_a_damaged_database_costs_the_caching_alone(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path)
    cache = manager.get_cache("x", backend="file_based")
    cache.set("k", 1)
    cache.close()
    (database,) = tmp_path.glob("*/entries.sqlite3")
    database.write_bytes(b"this is not a database" * 1000)
    assert cache.get_or_load("k", lambda: 2) == 2
    assert "backend:SQLITE_NOTADB" in cache.stats().errors


def test_a_locked_database_costs_the_caching_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codomyrmex_cache.backends._database.BUSY_SECONDS", 0.05)
    manager = CacheManager(directory=tmp_path)
    cache = manager.get_cache("x", backend="file_based")
    cache.set("k", 1)
    (database,) = tmp_path.glob("*/entries.sqlite3")
    cache.close()
    with sqlite3.connect(database, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert cache.get("k") == 1
        assert cache.get_or_load("l", lambda: 2) == 2
        other.execute("ROLLBACK")
    assert cache.stats().errors == {"backend:SQLITE_BUSY": 1}
    cache.close()


@pytest.mark.parametrize("blocker", ["cache", "state"])
def test_a_folder_that_cannot_be_made_costs_the_caching_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocker: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / blocker).write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    @cached("x", backend="file_based", manager=CacheManager(directory=tmp_path / "cache"))
    def function(x: int) -> int:
        return x

    assert [function(1), function(1)] == [1, 1]
    assert len(caplog.records) >= 1


def test_threads_do_not_wait_for_a_locked_database_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codomyrmex_cache.backends._database.BUSY_SECONDS", 0.01)
    backend = FileBasedBackend(tmp_path)
    with (
        backend._database.writing_lock,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):  # as a thread does that waits for SQLite
        backend.delete(b"k")
    assert backend.delete(b"k") is False
    backend.close()


def test_the_functions_own_exception_goes_before_the_backends() -> None:
    class FailsAfterTheLoad(InMemoryBackend):
        def commit(self, *arguments: Any) -> bool:
            raise OSError("away")

    @cached("own", backend=FailsAfterTheLoad(), manager=CacheManager(on_error="raise"), errors={KeyError: 60})
    def function() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        function()
    assert function.cache.stats().errors == {"backend:OSError": 1}
