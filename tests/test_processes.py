"""Several processes, forks and restarts, for real."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from codomyrmex_cache import CacheManager, cached
from tests.conftest import Server

KEYS, CALLS, PROCESSES = 40, 300, 8


def _work(backend: str, directory: str, url: str, seed: int) -> list[str]:
    manager = CacheManager(directory=directory, url=url or None)

    @cached("shared-by-processes", backend=backend, manager=manager, name="work")
    def function(x: int) -> dict[str, list[int]]:
        return {"square": [x * x]}

    wrong = []
    for number in range(CALLS):
        x = (seed * 7 + number * 13) % KEYS
        try:
            if function(x) != {"square": [x * x]}:
                wrong.append(f"f({x})")
        except Exception as error:
            wrong.append(repr(error))
    errors = manager.stats("shared-by-processes").errors
    manager.close()
    return wrong + ([str(errors)] if errors else [])


@pytest.mark.parametrize("backend", ["file_based", "redis"])
def test_eight_processes_get_only_right_answers(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("valkey").url if backend == "redis" else ""
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        results = pool.starmap(_work, [(backend, str(tmp_path), url, seed) for seed in range(PROCESSES)])
    assert results == [[]] * PROCESSES


def _secret(directory: str, barrier: object) -> bytes:
    from codomyrmex_cache._secret import file_secret

    barrier.wait()  # type: ignore[attr-defined]
    return file_secret(Path(directory))


def test_processes_that_start_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Manager() as shared, context.Pool(16) as pool:
        barrier = shared.Barrier(16)
        secrets = pool.starmap(_secret, [(str(tmp_path), barrier)] * 16)
    assert len(set(secrets)) == 1


def _in_child(work: object) -> int:
    """Run `work` in a forked child; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()  # type: ignore[operator]
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("backend_name", ["in_memory", "file_based", "redis"], indirect=True)
def test_a_fork_in_the_middle_of_loads_leaves_the_child_working(manager: CacheManager, backend_name: str) -> None:
    entered, release = threading.Event(), threading.Event()

    @cached("forked", backend=backend_name, manager=manager)
    def function(x: int) -> int:
        if os.getpid() == parent and x < 0:
            entered.set()
            release.wait()
        return x

    parent = os.getpid()
    function(1)
    thread = threading.Thread(target=function, args=(-1,))
    thread.start()
    entered.wait()

    def work() -> None:
        assert [function(1), function(2)] == [1, 2]
        if backend_name == "in_memory":  # elsewhere the child waits for its parent's load, as any process does
            assert function(-1) == -1

    held = function.cache._counters[""]._lock
    with held:  # a lock that another thread holds at the moment of the fork
        statuses = [_in_child(work) for _ in range(5)]
    release.set()
    thread.join()
    assert statuses == [0] * 5
    assert function(1) == 1


def test_a_backend_used_before_and_after_a_fork(tmp_path: Path, valkey: Server) -> None:
    for backend in ("file_based", "redis"):
        cache = CacheManager(directory=tmp_path, url=valkey.url).get_cache("x", backend=backend)
        cache.set("k", 1)

        def work(cache: object = cache) -> None:
            for number in range(50):
                cache.set(f"child{number}", number)  # type: ignore[attr-defined]
                assert cache.get("k") == 1  # type: ignore[attr-defined]

        assert _in_child(work) == 0
        assert (cache.get("child49"), cache.get("k")) == (49, 1)
        cache.close()
