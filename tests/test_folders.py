"""Folders and files: whose they are, who may do what with them, and what happens when they go away."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, Entry, FileBasedBackend, cached
from codomyrmex_cache.errors import CacheBackendError, CacheConfigurationError
from tests.damage import KEYS, NAMESPACE, SOMEBODY, Store, as_somebody, in_child, open_to_all, recomputed, stored_value

IS_ROOT = os.geteuid() == 0
ROOT_ALONE = pytest.mark.skipif(not IS_ROOT, reason="only root can be another user")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _use(directory: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> CacheManager:
    """A store with everything that a store may have, still open."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    manager = CacheManager(directory=directory)
    cache = manager.get_cache(NAMESPACE, backend="file_based")
    for key in KEYS:
        cache.set(key, stored_value(key))
    return manager


# -- modes


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_folders_are_0700_and_files_0600_under_any_umask(mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_to_all(0o777) as outer, umask(mask):
        manager = _use(outer / "caches" / "mine", outer / "states" / "mine", monkeypatch)
        _only_private(outer)
        names = {path.name for path in outer.rglob("*")}
        manager.close()
        _only_private(outer)
    assert names >= {"entries.sqlite3", "entries.sqlite3-wal", "large", "CACHEDIR.TAG"}
    assert any(name.endswith(".key") for name in names)


def _only_private(outer: Path) -> None:
    modes = {path: oct(stat.S_IMODE(path.lstat().st_mode)) for path in outer.rglob("*")}
    assert {path: mode for path, mode in modes.items() if mode != ("0o700" if path.is_dir() else "0o600")} == {}


def test_what_replaces_a_damaged_database_is_as_private(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_to_all(0o777) as outer, umask(0o000):
        _use(outer / "cache", outer / "state", monkeypatch).close()
        (database,) = outer.glob("cache/*/entries.sqlite3")
        database.write_bytes(b"not a database" * 1000)
        manager = _use(outer / "cache", outer / "state", monkeypatch)
        assert manager.get_cache(NAMESPACE).get("nested 0") == stored_value("nested 0")
        _only_private(outer)
        manager.close()


# -- other users


@ROOT_ALONE
@pytest.mark.parametrize("mask", [0o000, 0o022])
@pytest.mark.parametrize("outer_mode", [0o755, 0o777])
def test_another_user_can_neither_list_nor_read_nor_plant(mask: int, outer_mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_to_all(outer_mode) as outer, umask(mask):
        manager = _use(outer / "cache", outer / "state", monkeypatch)
        paths = sorted(outer.rglob("*"))
        folders = [path for path in paths if path.is_dir()]
        files = [path for path in paths if not path.is_dir()]
        done = as_somebody(lambda: _attack(folders, files))
        manager.close()
    assert [len(folders), len(files) > 6] == [5, True]  # cache, namespace, large, state, codomyrmex_cache
    assert done == []


def _attack(folders: list[Path], files: list[Path]) -> list[str]:
    """What another user could do, by name."""
    attempts: list[tuple[str, Callable[[], object]]] = []
    for folder in folders:
        new = folder / "planted"
        attempts += [
            (f"list {folder}", lambda folder=folder: os.listdir(folder)),
            (f"create in {folder}", lambda new=new: new.write_bytes(b"x")),
            (f"create a folder in {folder}", lambda new=new: new.mkdir()),
            (f"link in {folder}", lambda new=new: new.symlink_to("/etc/passwd")),
            (f"change the mode of {folder}", lambda folder=folder: folder.chmod(0o777)),
        ]
        if folder.parent in folders:
            attempts.append((f"move {folder}", lambda folder=folder: folder.rename(folder.with_name("moved"))))
    for file in files:
        attempts += [
            (f"stat {file}", lambda file=file: file.stat()),
            (f"read {file}", lambda file=file: file.read_bytes()),
            (f"write {file}", lambda file=file: file.open("r+b")),
            (f"cut {file}", lambda file=file: os.truncate(file, 0)),
            (f"remove {file}", lambda file=file: file.unlink()),
            (f"replace {file}", lambda file=file: file.rename(file.with_name("moved"))),
            (f"link to {file}", lambda file=file: os.link(file, f"/tmp/{os.getpid()}")),
        ]
    return [name for name, attempt in attempts if _succeeds(attempt)]


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except PermissionError:
        return False
    return True


@ROOT_ALONE
@pytest.mark.parametrize("planted", ["folder", "root"])
def test_a_store_that_another_user_has_put_there_is_not_used(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_to_all(0o777) as outer:
        genuine = _use(tmp_path / "cache", tmp_path / "state", monkeypatch)
        genuine.close()
        (name,) = os.listdir(tmp_path / "cache")
        if planted == "folder":
            (outer / "cache").mkdir()
            (outer / "cache").chmod(0o777)

        def plant() -> None:
            (outer / "cache" / name).mkdir(parents=True, exist_ok=True)
            (outer / "cache" / name).chmod(0o777)

        as_somebody(plant)
        manager = CacheManager(directory=outer / "cache")
        cache = manager.get_cache(NAMESPACE, backend="file_based")
        assert [cache.get_or_load("k", lambda: turn) for turn in (1, 2)] == [1, 2]  # noqa: B023
        assert os.listdir(outer / "cache" / name) == []
        assert len(caplog.records) == 1
        assert f"belongs to user {SOMEBODY}" in caplog.text
        manager.close()


@ROOT_ALONE
def test_a_secret_that_another_user_has_put_there_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_to_all(0o777) as outer:
        manager = _use(tmp_path / "cache", tmp_path / "state", monkeypatch)
        (key,) = (tmp_path / "state").rglob("*.key")
        known = b"k" * len(key.read_bytes())
        manager.close()
        state = outer / "state" / key.parent.name

        def plant() -> None:
            state.mkdir(parents=True)
            state.chmod(0o777)
            state.parent.chmod(0o777)
            (state / key.name).write_bytes(known)
            (state / key.name).chmod(0o644)

        as_somebody(plant)
        forged = CacheManager(directory=tmp_path / "cache", secret=known).get_cache(NAMESPACE, backend="file_based")
        forged.set("small 0", "forged")
        forged.close()
        monkeypatch.setenv("XDG_STATE_HOME", str(outer / "state"))
        manager = CacheManager(directory=tmp_path / "cache")
        cache = manager.get_cache(NAMESPACE, backend="file_based")
        assert cache.get("small 0", "absent") == "absent"
        assert cache.get_or_load("small 0", lambda: "right") == "right"
        manager.close()


# -- folders that are refused


def _refused(kind: str, folder: Path) -> str:
    """Make it so; what the message has to say."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        elsewhere = folder.parent / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        folder.symlink_to(elsewhere)
        return "symbolic link"
    if kind == "file":
        folder.write_text("a file")
        return "not a folder"
    folder.mkdir()
    folder.chmod({"all": 0o777, "group": 0o770, "foreign": 0o700}[kind])
    if kind == "foreign":
        os.chown(folder, SOMEBODY, SOMEBODY)
        return f"belongs to user {SOMEBODY}"
    return "can be written by others"


KINDS = ["link", "file", "all", "group", pytest.param("foreign", marks=ROOT_ALONE)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_verb_of_the_backend_refuses_a_folder_that_is_not_private(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    says = _refused(kind, folder)
    backend = FileBasedBackend(folder)
    verbs: list[Callable[[], object]] = [
        lambda: backend.get(b"k"),
        lambda: backend.set(b"k", Entry(b"v")),
        lambda: backend.set(b"k", Entry(bytes(300_000))),
        lambda: backend.has(b"k"),
        lambda: backend.delete(b"k"),
        lambda: list(backend.scan(b"k")),
        lambda: backend.get_many([b"k"]),
        lambda: backend.clear(b"k"),
        lambda: backend.begin(b"k", (), 1.0),
        lambda: backend.revoke([b"k"]),
    ]
    for verb in verbs:
        with pytest.raises(CacheConfigurationError, match=says) as caught:
            verb()
        assert str(folder) in str(caught.value)
    assert list(folder.iterdir() if folder.is_dir() else []) == []
    backend.close()


def _namespace_folder(directory: Path) -> Path:
    """Where the namespace of these tests has its folder."""
    manager = CacheManager(directory=directory, secret=b"a secret for the tests")
    manager.get_cache(NAMESPACE, backend="file_based").set("k", 1)
    manager.close()
    (folder,) = directory.iterdir()
    shutil.rmtree(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_calls_go_past_a_folder_that_is_not_private_until_it_is(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _namespace_folder(tmp_path)
    says = _refused(kind, folder)
    manager = CacheManager(directory=tmp_path, secret=b"a secret for the tests")
    runs: list[int] = []

    @cached(NAMESPACE, backend="file_based", manager=manager)
    def function(x: int) -> int:
        runs.append(x)
        return x

    assert [function(1), function(1), function(2)] == [1, 1, 2]
    assert runs == [1, 1, 2]
    cache = manager.get_cache(NAMESPACE)
    cache.set("k", 1)
    cache.set("large", bytes(300_000))
    assert (cache.get("k", "absent"), cache.keys(), cache.has("k")) == ("absent", [], False)
    assert set(cache.stats().errors) == {"backend:CacheConfigurationError"}
    assert cache.stats().errors["backend:CacheConfigurationError"] >= 8
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert says in caplog.text
    assert str(folder) in caplog.text
    _remove(folder)
    assert [function(3), function(3)] == [3, 3]
    assert runs == [1, 1, 2, 3]
    manager.close()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_not_private_is_an_error_where_errors_were_asked_for(kind: str, tmp_path: Path) -> None:
    says = _refused(kind, _namespace_folder(tmp_path))
    manager = CacheManager(directory=tmp_path, secret=b"a secret for the tests", on_error="raise")
    cache = manager.get_cache(NAMESPACE, backend="file_based")
    calls: list[Callable[[Cache], Any]] = [
        lambda cache: cache.get("k"),
        lambda cache: cache.set("k", 1),
        lambda cache: cache.get_or_load("k", lambda: 1),
    ]
    for call in calls:
        with pytest.raises(CacheBackendError, match=says) as caught:
            call(cache)
        assert isinstance(caught.value.__cause__, CacheConfigurationError)
    manager.close()


# -- folders that go away


def _one(directory: Path) -> Path:
    (folder,) = directory.iterdir()
    return folder


REMOVALS: dict[str, Callable[[Path], object]] = {
    "everything": shutil.rmtree,
    "namespace": lambda directory: shutil.rmtree(_one(directory)),
    "database": lambda directory: [path.unlink() for path in _one(directory).glob("entries*")],
    "database alone": lambda directory: (_one(directory) / "entries.sqlite3").unlink(),
    "large payloads": lambda directory: shutil.rmtree(_one(directory) / "large"),
    "moved away": lambda directory: _one(directory).rename(directory / "moved"),
}


@pytest.mark.parametrize("what", REMOVALS)
def test_a_removed_folder_is_noticed_within_a_second_and_made_anew(what: str, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    with Store(directory, 0) as store:
        store.answers()
        store.turn = 1
        REMOVALS[what](directory)
        removed = time.monotonic()
        while time.monotonic() < removed + 1.0 and store.answer("large 0") != recomputed("large 0", 1):
            pass  # it may answer from the old one for a second
        first = store.answers()
        gone = {"large payloads": [key for key in KEYS if key.startswith("large")], "database alone": []}.get(what, KEYS)
        assert [key for key in KEYS if first[key] not in (stored_value(key), recomputed(key, 1))] == []
        assert [key for key in gone if first[key] != recomputed(key, 1)] == []
        store.turn = 2
        assert store.answers() == first
    with Store(directory, 3) as store:
        assert store.answers() == first


@pytest.mark.parametrize("what", ["everything", "namespace", "database", "moved away"])
def test_a_folder_that_another_process_has_made_anew_is_shared_with_it(what: str, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    with Store(directory, 0) as store:
        store.answers()

        def work() -> None:
            REMOVALS[what](directory)
            with Store(directory, 7) as other:
                other.answers()

        in_child(work)
        done = time.monotonic()
        store.turn = 1
        while time.monotonic() < done + 1.0 and store.answer("small 0") == stored_value("small 0"):
            pass  # it may answer from the old one for a second
        assert store.answers() == {key: recomputed(key, 7) for key in KEYS}
        store.cache.set("from here", 1)
        assert in_child(lambda: _reads(directory, "from here")) == 1


def _reads(directory: Path, key: str) -> Any:
    with Store(directory, 8) as store:
        return store.cache.get(key)


@pytest.mark.parametrize("what", ["everything", "namespace", "database", "database alone"])
def test_stores_removed_again_and_again_under_threads_reach_nobody(what: str, tmp_path: Path) -> None:
    in_child(lambda: _removed_again_and_again(tmp_path / "cache", REMOVALS[what]))  # a crash would be the tests' own


def _removed_again_and_again(directory: Path, remove: Callable[[Path], object]) -> None:
    logging.disable()
    stop = threading.Event()
    keys = [key for key in KEYS if not key.startswith("called")]
    with Store(directory, 0) as store, ThreadPoolExecutor(4) as pool:

        def work(number: int) -> list[str]:
            chance, wrong = random.Random(number), []
            while not stop.is_set():
                key = chance.choice(keys)
                if store.answer(key) != stored_value(key):
                    wrong.append(key)
                store.cache.set(key, stored_value(key))
            return wrong

        workers = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(40):
                while not list(directory.glob("*/entries.sqlite3")):
                    time.sleep(0.001)  # until there is something to remove; nothing is assumed from the time passed
                with contextlib.suppress(OSError):  # what is made anew meanwhile keeps a folder from being empty
                    remove(directory)
        finally:
            stop.set()
        assert [worker.result() for worker in workers] == [[]] * 4
        store.answers()
        store.turn = 1
        assert store.answers() == {key: stored_value(key) for key in KEYS}


# -- processes that start at once, and databases that are busy


def test_sixteen_processes_that_start_at_once_read_each_others_entries(tmp_path: Path) -> None:
    def work(number: int, barrier: Any) -> None:
        barrier.wait()
        cache = CacheManager(directory=tmp_path / "cache").get_cache("x", backend="file_based")
        assert cache.get_or_load(f"k{number}", lambda: [number]) == [number]
        assert cache.stats().errors == {}
        cache.close()

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(16)
    processes = [context.Process(target=work, args=(number, barrier)) for number in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 16
    cache = CacheManager(directory=tmp_path / "cache").get_cache("x", backend="file_based")
    assert cache.get_many([f"k{number}" for number in range(16)]) == {f"k{number}": [number] for number in range(16)}
    cache.close()


@contextmanager
def _held(database: Path) -> Iterator[None]:
    """Somebody is in the middle of a write."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_two_namespaces_never_share_a_lock(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path, secret=b"a secret for the tests")
    one, two = manager.get_cache("one", backend="file_based"), manager.get_cache("two", backend="file_based")
    one.set("k", 1)
    two.set("k", 2)
    (database,) = tmp_path.glob("one-*/entries.sqlite3")
    with _held(database):
        assert [two.get_or_load(f"l{number}", lambda: number) for number in range(20)] == list(range(20))  # noqa: B023
        two.set("large", bytes(300_000))
        assert two.get("large") == bytes(300_000)
        assert two.incr("n") == 1
        with two.lock("door"):
            assert one.get("k") == 1  # readers of this one go on, too
    assert two.stats().errors == one.stats().errors == {}
    assert two.clear() == 23
    assert one.get("k") == 1
    manager.close()


def test_a_busy_database_costs_its_budget_once_and_then_the_caching_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("codomyrmex_cache.backends._database.BUSY_SECONDS", 0.1)
    manager = CacheManager(directory=tmp_path, secret=b"a secret for the tests")
    runs: list[int] = []

    @cached("busy", backend="file_based", manager=manager)
    def function(x: int) -> list[int]:
        runs.append(x)
        return [x]

    assert function(1) == [1]
    (database,) = tmp_path.glob("*/entries.sqlite3")
    with _held(database):
        assert [function(1), function(2), function(2)] == [[1], [2], [2]]
        assert runs == [1, 2, 2]
        errors = function.cache.stats().errors
        assert sum(errors.values()) == 2  # one wait for each call that could not be stored, not one for each verb
        assert "backend:SQLITE_BUSY" in errors
    assert [function(2), function(2)] == [[2], [2]]
    assert runs == [1, 2, 2, 2]
    assert len(caplog.records) == 1
    manager.close()
