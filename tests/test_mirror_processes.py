"""No process answers from memory what another has replaced before; shown with real processes, signals, forks and files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, FileBasedBackend, cached
from codomyrmex_cache.backends._mirror import LEASE_SECONDS
from codomyrmex_cache.testing import FakeClock
from tests.mirror_processes import TAMPERING, run, tamper

SECRET = b"only for this test, nobody keeps it"


def test_no_process_gives_an_answer_from_before_the_last_write(tmp_path: Path) -> None:
    stale, happened = run(tmp_path, 10, seed=20261125)
    assert stale == []
    assert min(happened[what] for what in ("killed", "stopped", "writes", "hot")) > 0


def test_a_writer_that_says_nothing_is_found(tmp_path: Path) -> None:
    stale, _ = run(tmp_path, 40, seed=20261125, troubles=False, broken="words")
    assert stale != []


# -- two programs of one process: what is theirs is told apart by their locks as if they were two


@contextmanager
def _two(folder: Path, **options: Any) -> Iterator[tuple[Cache, Cache]]:
    managers = [CacheManager(directory=folder, secret=SECRET, **options) for _ in range(2)]
    with closing(managers[0]), closing(managers[1]):
        yield managers[0].get_cache("two", "file_based"), managers[1].get_cache("two", "file_based")


def _value(cache: Cache, key: str = "k") -> Any:
    """By the way that fills cells."""
    entry = cache.entry(key)
    return None if entry is None else entry.value


def _is_hot(cache: Cache, key: str = "k") -> bool:
    near = cache.space.near
    assert near is not None
    return near.now() != inf and near.cell(cache.space.stored(key)) is not None


def _warm(*caches: Cache) -> None:
    deadline = time.monotonic() + 5
    while not all(map(_is_hot, caches)) and time.monotonic() < deadline:
        for cache in caches:
            _value(cache)
        time.sleep(LEASE_SECONDS / 5)
    assert all(map(_is_hot, caches))


def _mirror(folder: Path) -> Path:
    return next(folder.glob("*/mirror"))


@pytest.mark.parametrize("change", ["set", "set_many", "delete", "clear"])
def test_what_another_writes_ends_the_cell(change: str, tmp_path: Path) -> None:
    with _two(tmp_path) as (one, two):
        one.set("k", "old")
        _warm(one, two)
        arguments: dict[str, tuple[Any, ...]] = {"set": ("k", "new"), "set_many": ({"k": "new"},), "delete": ("k",)}
        getattr(two, change)(*arguments.get(change, ()))
        assert _value(one) == ("new" if change.startswith("set") else None)


@pytest.mark.parametrize("how", TAMPERING[:5])
def test_nothing_done_to_the_mirror_makes_an_old_answer(how: str, tmp_path: Path) -> None:
    with _two(tmp_path) as (one, two):
        one.set("k", 0)
        _warm(one, two)
        for number in range(1, 4):
            tamper(_mirror(tmp_path), how, Random(number))
            two.set("k", number)
            assert (_value(one), _value(two)) == (number, number)
            with closing(CacheManager(directory=tmp_path, secret=SECRET)) as third:
                late = third.get_cache("two", "file_based")
                assert _value(late) == number
                one.set("k", -number)
                assert (_value(late), _value(two), _value(one)) == (-number,) * 3
        if how != "directory":
            _warm(one, two)


def test_the_one_process_that_is_left_is_alone_again(tmp_path: Path) -> None:
    with _two(tmp_path) as (one, two):
        one.set("k", 0)
        _warm(one, two)
        time.sleep(LEASE_SECONDS)  # until then what is known may be that nobody else is there
        _warm(one)
        assert one.space.backend.coherence.again > 0  # type: ignore[attr-defined]
        two.close()
        deadline = time.monotonic() + 10
        while one.space.backend.coherence.until == -inf and time.monotonic() < deadline:  # type: ignore[attr-defined]
            _value(one)
            time.sleep(0.01)
        assert one.space.backend.coherence.until > 0  # type: ignore[attr-defined]
        assert _value(one) == 0


def test_a_first_insert_waits_for_nobody_and_disturbs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _two(tmp_path) as (one, two):
        one.set("k", 0)
        _warm(one)
        monkeypatch.setattr("codomyrmex_cache.backends._coherence.time.sleep", lambda _: pytest.fail("it waits"))
        two.set("other", 1)
        assert _is_hot(one)
        assert one.space.backend.coherence.until > 0  # type: ignore[attr-defined]  # still alone


def test_a_forked_child_believes_nothing_of_its_parent(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path, secret=SECRET)
    cache = manager.get_cache("two", "file_based")
    cache.set("k", 0)
    _warm(cache)
    child = os.fork()
    if child == 0:
        near = cache.space.near
        assert near is not None
        empty = not near.cells and cache.space.backend.coherence.until == -inf  # type: ignore[attr-defined]
        cache.set("k", 1)
        os._exit(0 if empty and _value(cache) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _value(cache) == 1
    manager.close()


def test_an_injected_clock_ends_cells_at_once(tmp_path: Path) -> None:
    clock = FakeClock()
    with _two(tmp_path, clock=clock) as (one, _):
        one.set("k", 0, ttl=10)
        _warm(one)
        clock.advance(10)
        assert _value(one) is None


def test_large_raised_and_tagged_entries_have_no_cells(tmp_path: Path) -> None:
    with _two(tmp_path) as (one, _):
        one.set("k", 0)
        _warm(one)
        one.set("tagged", 0, tags=["t"])
        one.set("large", b"x" * 10 * 2**20)
        for _ in range(3):
            assert _value(one, "tagged") == 0
            assert len(_value(one, "large")) == 10 * 2**20
        assert not _is_hot(one, "tagged") and not _is_hot(one, "large")


def test_a_mutable_result_is_each_callers_own(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path, secret=SECRET)

    @cached("own", backend="file_based", manager=manager)
    def numbers(x: int) -> list[int]:
        return [x]

    for _ in range(5):
        numbers(1).append(2)
    assert numbers(1) == [1]
    manager.close()


def test_threads_of_one_process_see_their_own_writes(tmp_path: Path) -> None:
    with _two(tmp_path) as (one, _):
        stale: list[tuple[Any, int]] = []
        floor, end = [0], time.monotonic() + 1.0

        def read() -> None:
            while time.monotonic() < end:
                at_least = floor[0]
                found = _value(one)
                if found is not None and found < at_least:
                    stale.append((found, at_least))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            one.set("k", floor[0] + 1)
            floor[0] += 1
            time.sleep(0.0005)
        for thread in threads:
            thread.join()
        assert stale == []
        assert floor[0] > 10


def test_the_long_run_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.mirror_processes", "--seconds", "2", "--seed", "1", "--folder", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("0 stale\n")


def test_what_is_hit_in_memory_alone_is_not_evicted_from_the_files(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path, secret=SECRET)
    cache = manager.get_cache("bounded", "file_based", max_entries=100)
    runs = [0]

    @cached("bounded", manager=manager)
    def hot(x: int) -> int:
        runs[0] += 1
        return x

    hot(1)
    for number in range(400):
        for _ in range(3):
            hot(1)
        cache.set(f"{number}", number)
    assert runs == [1]
    assert len(cache) <= 105
    manager.close()


def test_namespaces_that_share_a_backend_share_its_cells(tmp_path: Path) -> None:
    manager, other, backend = CacheManager(), CacheManager(), FileBasedBackend(tmp_path)
    one, two, again = manager.get_cache("one", backend), manager.get_cache("two", backend), other.get_cache("one", backend)
    one.set("k", 1)
    two.set("k", 2)
    _warm(one, two)
    again.set("k", 3)
    assert (_value(one), _value(two)) == (3, 2)
    late = CacheManager().get_cache("one", backend, clock=FakeClock())
    assert late.space.near is None
    backend.close()


def test_writes_to_what_replaced_a_damaged_database_wait_for_who_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _two(tmp_path) as (one, two):
        one.set("k", 0)
        _warm(one)
        two.get("k")
        waits: list[float] = []
        sleep = time.sleep
        monkeypatch.setattr(
            "codomyrmex_cache.backends._coherence.time.sleep", lambda seconds: (waits.append(seconds), sleep(seconds))
        )
        database = two.space.backend._database  # type: ignore[attr-defined]
        database._replace(database.look(), sqlite3.DatabaseError("it is damaged"))
        two.set("other", 1)  # no longer what it was: of what could not be kept others may have cells
        assert sum(waits) > LEASE_SECONDS
        assert (_value(one), _value(one, "other")) == (0, 1)
