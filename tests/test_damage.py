"""Damaged, planted, swapped and misrouted bytes, and disks that are full or read-only: right answers and nothing else."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from codomyrmex_cache import CacheManager, Entry, cached
from codomyrmex_cache.errors import CacheBackendError
from tests import damage
from tests.conftest import Server
from tests.damage import (
    KEYS,
    NAMESPACE,
    SECRET,
    SOMEBODY,
    Report,
    Store,
    as_somebody,
    hasty,
    in_child,
    open_to_all,
    stored_value,
)

SEED = 20261123


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: nothing here depends on a disk, whose fsyncs would take most of the time."""
    if damage.MEMORY is None:
        yield tmp_path
        return
    made = Path(damage.MEMORY) / f"{tmp_path.name}-{os.getpid()}"
    made.mkdir(mode=0o700)
    yield made
    shutil.rmtree(made)


# -- damage by chance


def test_flips_cuts_and_zeroed_blocks_in_any_file_cost_misses_alone(folder: Path) -> None:
    report = damage.damaged_files(folder, 1, SEED)
    assert report.amiss == []
    assert report.trials == damage.TRIALS == {"flip": 300, "cut": 60, "zero": 60}
    assert report.seen["kept"] > report.seen["recomputed"] > 0


def test_damage_under_a_running_program_costs_misses_alone(folder: Path) -> None:
    report = damage.damaged_while_running(folder, 1, SEED)
    assert report.amiss == []
    assert report.trials.total() == damage.RUNNING_TRIALS
    assert report.seen["recomputed"] > 0


def test_a_fresh_process_finds_no_more_in_a_damaged_store(folder: Path) -> None:
    stores = damage.templates(folder)
    for number, how in enumerate(["flip", "cut", "zero"] * 2):
        chance = random.Random(f"{SEED} fresh {number}")
        directory = folder / f"fresh {number}"
        shutil.copytree(stores[number % 2], directory)
        said = damage.damage(damage.target(directory, chance), how, chance)
        report = damage.examined_by_a_fresh_process(directory, said)
        assert report.amiss == []
        assert report.seen["kept"] + report.seen["recomputed"] == len(KEYS)


def test_mutated_envelopes_are_refused_before_anything_reads_them(tmp_path: Path) -> None:
    report = damage.mutated_envelopes(tmp_path, 1, SEED)
    assert report.amiss == []
    assert report.trials["signed"] + report.trials["unsigned"] > 0.99 * damage.MUTATIONS
    assert {"foreign", "truncated", "tampered", "misplaced", "version"} <= set(report.seen)


# -- a database that is none any more


def _database(directory: Path) -> Path:
    (found,) = directory.glob("*/entries.sqlite3")
    return found


def _rows(directory: Path) -> Iterator[sqlite3.Connection]:
    return _opened(_database(directory))


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database)) as connection:
        yield connection
        connection.commit()


def test_a_damaged_database_is_set_aside_and_what_can_be_read_of_it_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path, 0) as store:
        store.answers()
    database = _database(tmp_path)
    with _opened(database) as connection:
        (index,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND sql IS NULL LIMIT 1"
        ).fetchone()
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:  # the way from keys to rows; the rows themselves are whole
        file.seek((index - 1) * page_size)
        file.write(b"\xff" * page_size)
    inode = database.stat().st_ino
    with Store(tmp_path, 1) as store:
        store.answers()
        assert store.answers() == {key: stored_value(key) for key in KEYS} | _recomputed_in(store)
        assert len(_recomputed_in(store)) <= 1  # the call that met the damage
    assert database.stat().st_ino != inode
    assert inode in [path.stat().st_ino for path in database.parent.iterdir()]
    assert [record.levelname for record in caplog.records if "set aside" in record.message] == ["WARNING"]


def _recomputed_in(store: Store) -> dict[str, Any]:
    return {key: answer for key, answer in store.answers().items() if answer != stored_value(key)}


@pytest.mark.parametrize(
    "content",
    [b"", b"this is not a database" * 1000, b"SQLite format 3\0" + bytes(84), bytes(8192)],
    ids=["nothing", "text", "a head alone", "zeros"],
)
def test_a_file_that_is_no_database_is_replaced(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with Store(tmp_path, 0) as store:
        store.answers()
    _database(tmp_path).write_bytes(content)
    _two_turns(tmp_path)


def _two_turns(directory: Path) -> None:
    """Right answers, and hits from the second turn on."""
    with Store(directory, 1) as store:
        first = store.answers()
        assert [key for key in KEYS if first[key] not in (stored_value(key), damage.recomputed(key, 1))] == []
        store.turn = 2
        assert store.answers() == first


@pytest.mark.parametrize("what", ["folder", "pipe", "socket", "link to nothing", "link to a device", "link to a file"])
def test_something_else_in_place_of_the_database_costs_the_caching_alone(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "cache"
    with Store(directory, 0) as store:
        store.answers()
    database = _database(directory)
    database.unlink()
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("precious")
    _put(what, database, elsewhere)

    def work() -> None:
        with Store(directory, 1) as store:
            assert [
                key for key, answer in store.answers().items() if answer not in (stored_value(key), damage.recomputed(key, 1))
            ] == []

    in_child(work)
    assert elsewhere.read_text() == "precious"


def _put(what: str, path: Path, elsewhere: Path) -> None:
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to(
            {"link to nothing": "/nonexistent/x", "link to a device": "/dev/zero", "link to a file": elsewhere}[what]
        )


@pytest.mark.parametrize("what", ["folder", "pipe", "link to nothing", "link to a device", "link to a file"])
def test_something_else_in_place_of_a_large_payload_is_a_miss(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "cache"
    with Store(directory, 0) as store:
        store.answers()
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("precious")
    sides = list(directory.glob("*/large/*"))
    assert len(sides) == damage.COUNTS["large"]
    for side in sides:
        side.unlink()
        _put(what, side, elsewhere)
    in_child(lambda: _two_turns(directory))
    assert elsewhere.read_text() == "precious"


# -- formats of other versions


def test_a_database_of_an_older_format_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(tmp_path, 0) as store:
        store.answer("small 0")
    database = _database(tmp_path)
    database.unlink()
    with _opened(database) as connection:
        connection.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, expires_at REAL)")
        connection.execute("INSERT INTO entries VALUES (?, ?, NULL)", (b"7:damaged:small 0", b"whatever"))
    inode = database.stat().st_ino
    _two_turns(tmp_path)
    assert database.stat().st_ino != inode
    assert inode in [path.stat().st_ino for path in database.parent.iterdir()]


def _from_the_future(directory: Path) -> Path:
    with Store(directory, 0) as store:
        store.answers()
    database = _database(directory)
    with _opened(database) as connection:
        connection.execute("PRAGMA user_version = 999")
        with suppress(sqlite3.OperationalError):
            connection.execute("UPDATE meta SET value = 999 WHERE name = 'schema'")
    return database


def test_a_database_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = _from_the_future(tmp_path)
    before = database.read_bytes()
    with Store(tmp_path, 1) as store:
        assert store.answers() == {key: damage.recomputed(key, 1) for key in KEYS}
        store.cache.set("small 0", "new")
        assert store.cache.get("small 0", "absent") == "absent"
        assert set(store.cache.stats().errors) == {"backend:CacheBackendError"}
    assert database.read_bytes() == before
    lines = [record.message for record in caplog.records]
    assert len(lines) == 1
    assert "999" in lines[0]
    assert "newer version" in lines[0]


def test_a_database_of_a_newer_format_is_an_error_where_errors_were_asked_for(tmp_path: Path) -> None:
    _from_the_future(tmp_path)
    manager = CacheManager(directory=tmp_path, secret=SECRET, on_error="raise")
    cache = manager.get_cache(NAMESPACE, backend="file_based")
    with pytest.raises(CacheBackendError, match="newer version"):
        cache.get("small 0")
    with pytest.raises(CacheBackendError, match="newer version"):
        cache.get_or_load("small 0", lambda: 1)
    manager.close()


# -- planted and swapped entries


ODD: dict[str, Any] = {
    "least": -(2**63), "most": 2**63 - 1, "infinity": float("inf"), "nothing": None, "a text": "text \u1234", "no bytes": b"",
}  # fmt: skip
"""What damage may leave in any column of a database; SQLite's columns take values of any type."""


def _columns(directory: Path) -> list[tuple[str, str]]:
    with _opened(_database(directory)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(table, row[1]) for table in tables for row in connection.execute(f"PRAGMA table_info({table})")]


def _plant(database: Path, table: str, column: str, content: Any) -> None:
    """In all rows, and remove entries of every second key, so that there is something to load."""
    with _opened(database) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        for key in KEYS[::2]:
            connection.execute("DELETE FROM entries WHERE key = ?", (b"7:damaged:" + key.encode(),))
        with suppress(sqlite3.Error):  # not of the column's type
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (content,))


def test_nothing_planted_anywhere_in_the_database_runs_or_answers(folder: Path, tmp_path: Path) -> None:
    marker, original = tmp_path / "ran", folder / "original"
    with Store(original, 0) as store:
        store.answers()
        backend = store.cache.space.backend
        for key in KEYS[::2]:  # loads that have ended, so that there is a row in every table
            assert backend.begin(b"7:damaged:" + key.encode(), store.cache.space.scopes(key), 0.001).lease  # type: ignore[attr-defined]
    columns = _columns(original)
    assert {("entries", "value"), ("entries", "file"), ("generations", "value"), ("leases", "generations")} <= set(columns)
    planted = {**damage.planted_pickles(marker, b"7:damaged:small 0"), **ODD}

    def work(table: str, column: str, what: str) -> Report:
        logging.disable()
        report, directory = Report("planted", Counter(planted=1)), folder / "trial"
        shutil.copytree(original, directory)
        _plant(_database(directory), table, column, planted[what])
        damage.examine(directory, f"{what} in {table}.{column}", random.Random(what), report)
        return report

    reports = Report("planted")
    for table, column in columns:
        for what in planted if table == "entries" else ["raw", *ODD]:
            try:
                reports.add(in_child(lambda: work(table, column, what), seconds=20))  # noqa: B023
            except RuntimeError as error:
                reports.amiss.append(f"{what} in {table}.{column}: {error}")
            shutil.rmtree(folder / "trial")
    assert reports.amiss == []
    assert reports.trials["planted"] >= len(columns) * len(ODD)
    assert not marker.exists()


@pytest.mark.parametrize("backend_name", ["file_based", "redis"])
def test_a_stored_key_that_is_no_text_hurts_nobody(backend_name: str, tmp_path: Path, valkey: Server) -> None:
    manager = CacheManager(directory=tmp_path, url=valkey.url, secret=SECRET)
    cache = manager.get_cache("odd", backend=backend_name)
    cache.set("k", 1)
    for key in (b"3:odd:\xff\xfe", b"3:odd:a\x80b", b"3:odd:@f:\xc3"):
        cache.space.backend.set(key, Entry(b"whatever"))
    assert cache.get_or_load("k", lambda: 2) == 1
    assert "k" in cache.keys()  # noqa: SIM118
    assert cache.get_many(["k", "absent"]) == {"k": 1}
    assert cache.clear() >= 1
    assert cache.keys() == []
    manager.close()


def test_nothing_planted_in_a_file_of_its_own_runs_or_answers(folder: Path, tmp_path: Path) -> None:
    marker, original = tmp_path / "ran", folder / "original"
    with Store(original, 0) as store:
        store.answers()
    for what, content in damage.planted_pickles(marker, b"7:damaged:large 0").items():
        directory = folder / what
        shutil.copytree(original, directory)
        for side in directory.glob("*/large/*"):
            size = side.stat().st_size
            side.write_bytes(content + bytes(max(0, size - len(content))))
        with _opened(_database(directory)) as connection:
            connection.execute("UPDATE entries SET value = ? WHERE file IS NOT NULL", (content[:140],))
        _two_turns(directory)
    assert not marker.exists()


def test_swapped_entries_are_misses(folder: Path) -> None:
    original = folder / "original"
    with Store(original, 0) as store:
        store.answers()
        other = store.manager.get_cache("other", backend="file_based")
        for key in KEYS:
            other.set(key, ["of the other namespace", key])
    with _opened(original.glob("damaged-*").__next__() / "entries.sqlite3") as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM entries ORDER BY key")]
    assert len(keys) == len(KEYS)
    chance = random.Random(SEED)
    for number in range(10):
        directory = folder / f"swapped {number}"
        shutil.copytree(original, directory)
        with _opened(directory.glob("damaged-*").__next__() / "entries.sqlite3") as connection:
            _shuffle(connection, keys, chance)
        _two_turns(directory)
        shutil.rmtree(directory)
    directory = folder / "exchanged"
    shutil.copytree(original, directory)
    one, two = directory.glob("damaged-*").__next__(), directory.glob("other-*").__next__()
    for entry, target in ((one, "x"), (two, one), (directory / "x", two)):
        os.rename(entry, directory / target)
    with _opened(one / "entries.sqlite3") as connection:  # even under the very keys of this namespace
        connection.execute("UPDATE entries SET key = CAST(replace(CAST(key AS TEXT), '5:other:', '7:damaged:') AS BLOB)")
    with Store(directory, 1) as store:
        assert store.answers() == {key: damage.recomputed(key, 1) for key in KEYS}
        assert set(store.cache.stats().errors) <= {"tampered", "misplaced"}


def _shuffle(connection: sqlite3.Connection, keys: list[bytes], chance: random.Random) -> None:
    """Each row gets the key of another one."""
    moved = keys[:]
    chance.shuffle(moved)
    for number, key in enumerate(keys):
        connection.execute("UPDATE entries SET key = ? WHERE key = ?", (b"moving %d" % number, key))
    for number, key in enumerate(moved):
        connection.execute("UPDATE entries SET key = ? WHERE key = ?", (key, b"moving %d" % number))


def test_swapped_files_of_large_payloads_are_misses(folder: Path) -> None:
    with Store(folder / "store", 0) as store:
        store.answers()
    sides = sorted(folder.glob("store/*/large/*"))
    contents = [side.read_bytes() for side in sides]
    for side, content in zip(sides, contents[1:] + contents[:1], strict=True):
        side.write_bytes(content)
    with Store(folder / "store", 1) as store:
        large = {key for key in KEYS if key.startswith("large")}
        assert store.answers() == {key: damage.recomputed(key, 1) if key in large else stored_value(key) for key in KEYS}
        assert sum(store.cache.stats().errors.values()) == len(large)


@pytest.mark.parametrize("secret", [None, SECRET])
def test_nothing_planted_on_a_server_runs_or_answers(
    valkey: Server, tmp_path: Path, secret: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    marker, turns = tmp_path / "ran", _turns

    def answers(turn: int) -> dict[str, Any]:
        manager = CacheManager(url=valkey.url, secret=secret)

        turns[:] = [turn]
        called = cached("planted", backend="redis", manager=manager, name="called", version=1, tags=["all"])(_called)
        cache = manager.get_cache("planted")
        found = {f"key {x}": cache.get_or_load(f"key {x}", lambda x=x: ["key", x, turn]) for x in range(3)}  # type: ignore[misc]
        found |= {f"called {x}": called(x) for x in range(3)}
        found["counter"] = cache.incr("counter") > 0
        cache.keys()
        cache.close()
        return found

    def check(what: str) -> None:
        first = answers(1)
        for key, answer in first.items():
            assert key == "counter" or answer in ([*_named(key), 0], [*_named(key), 1]), (what, key, answer)
        assert answers(2) == first, what

    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        planted = damage.planted_pickles(marker, b"7:planted:key 0")
        answers(0)
        names: list[bytes] = client.keys()  # type: ignore[assignment]
        assert len(names) >= 8
        for what, content in planted.items():
            for name in names:
                client.flushall()
                answers(0)
                client.set(name, content)
                check(f"{what} under {name!r}")
            client.flushall()
            answers(0)
            for name in client.scan_iter():
                client.set(name, content)
            check(f"{what} everywhere")
        swapped = [name for name in names if client.type(name) == b"string"]
        for number in range(20):
            client.flushall()
            answers(0)
            dumps = {name: client.dump(name) for name in swapped if client.exists(name)}
            others = random.Random(number).sample(list(dumps), len(dumps))
            for name, other in zip(dumps, others, strict=True):
                client.restore(name, 0, dumps[other], replace=True)  # type: ignore[arg-type]
            check(f"swapped {number}")
    assert not marker.exists()


_turns: list[int] = []
"""In a closure it would be a part of the key."""


def _called(x: int) -> Any:
    return ["called", x, *_turns]


def _named(key: str) -> tuple[str, int]:
    kind, number = key.split()
    return kind, int(number)


# -- a hash that says next to nothing


@pytest.mark.parametrize("backend_name", ["in_memory", "file_based", "redis"], indirect=True)
def test_colliding_hashes_never_answer_for_each_other(
    manager: CacheManager, backend_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from xxhash import xxh3_128_hexdigest

    asked: set[str] = set()

    def four_bits(data: bytes) -> str:
        asked.add(xxh3_128_hexdigest(data)[:1] * 32)
        return xxh3_128_hexdigest(data)[:1] * 32

    monkeypatch.setattr("codomyrmex_cache.keys.xxh3_128_hexdigest", four_bits)
    runs: list[int] = []

    @cached("colliding", backend=backend_name, manager=manager)
    def square(x: int) -> list[int]:
        runs.append(x)
        return [x, x * x]

    @cached("colliding", backend=backend_name, manager=manager)
    def cube(x: int) -> list[int]:
        return [x, x**3]

    @cached("colliding", backend=backend_name, manager=manager)
    async def negative(x: int) -> list[int]:
        return [x, -x]

    chance = random.Random(SEED)
    import asyncio

    async def negatives(xs: list[int]) -> list[list[int]]:
        found = [await negative(x) for x in xs]
        found += await asyncio.gather(*map(negative, xs))
        await manager.aclose()
        return found

    for _ in range(400):
        x = chance.randrange(64)
        assert square(x) == [x, x * x]
        assert square.peek(x) in ([x, x * x], square.peek(-1))
        assert cube(x) == [x, x**3]
    xs = [chance.randrange(64) for _ in range(100)]
    assert asyncio.run(negatives(xs)) == [[x, -x] for x in xs + xs]
    assert len(asked) == 16
    assert 64 < len(runs) <= 400
    assert square(1) == square(1) == [1, 1]  # one after the other, it is a cache still


def test_namespaces_whose_folders_collide_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codomyrmex_cache._folders.xxh3_64_hexdigest", lambda _: "0")
    manager = CacheManager(directory=tmp_path, secret=SECRET)
    one, two = manager.get_cache("a/b", backend="file_based"), manager.get_cache("a:b", backend="file_based")
    one.set("k", 1)
    two.set("k", 2)
    two.set("l", 2)
    assert len(list(tmp_path.iterdir())) == 1
    assert (one.get("k"), one.get("l"), two.get("k"), sorted(two.keys())) == (1, None, 2, ["k", "l"])
    assert one.clear() == 1
    assert two.get("k") == 2
    manager.close()


# -- disks


def _mounted(folder: Path, *options: str) -> bool:
    """Whether a file system in memory could be mounted there."""
    return subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount") or not _mounted(folder, "-o", "size=8m,mode=755"):
        pytest.skip("mounting is not allowed here; RLIMIT_FSIZE stands in for it in another test")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(disk: Path, free: int) -> Path:
    """Leave so many bytes free."""
    ballast = disk / "ballast"
    space = os.statvfs(disk)
    with ballast.open("wb") as file, suppress(OSError):
        file.write(bytes(max(0, space.f_bavail * space.f_frsize - free)))
    return ballast


@pytest.mark.parametrize("free", [0, 4096, 40_000, 300_000, 1_000_000])
@pytest.mark.parametrize("prepared", [False, True], ids=["empty store", "store in use"])
def test_a_full_disk_never_reaches_the_caller_and_heals(
    small_disk: Path, free: int, prepared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    report = Report("full disk")
    with Store(small_disk / "cache", 0, clock=hasty) as store:
        if prepared:
            for key in KEYS[::3]:
                store.answer(key)
        ballast = _fill(small_disk, free)
        damage.full_disk_calls(store, f"{free} free", report)
        assert report.seen["answers"] == 4 * len(KEYS) == 120
        if free < 1_000_000:
            assert report.seen["errors counted"] > 0
        ballast.unlink()
        damage.after_the_full_disk(store, f"{free} free", report)
    assert report.amiss == []
    assert report.seen["answers after"] == len(KEYS)
    _all_kept(small_disk / "cache")


def _all_kept(directory: Path) -> None:
    with Store(directory, 5, clock=hasty) as store:
        assert [key for key, answer in store.answers().items() if answer != stored_value(key)] == []


def test_no_room_for_a_secret_never_reaches_the_caller(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(small_disk / "state"))
    ballast = _fill(small_disk, 0)
    for turn in range(2):
        manager = CacheManager(directory=small_disk / "cache")
        cache = manager.get_cache("x", backend="file_based")
        assert [cache.get_or_load("k", lambda: turn), cache.get_or_load("l", lambda: turn)] == [turn, turn]  # noqa: B023
        manager.close()
    ballast.unlink()
    for turn in (2, 3):
        manager = CacheManager(directory=small_disk / "cache")
        cache = manager.get_cache("x", backend="file_based")
        assert cache.get_or_load("k", lambda: turn) == 2  # noqa: B023
        manager.close()


def test_files_that_may_not_grow_never_reach_the_caller_and_heal(folder: Path) -> None:
    report = damage.quotas(folder, 1, SEED)
    assert report.amiss == []
    assert report.trials["rounds"] == damage.QUOTA_ROUNDS
    assert report.seen["answers"] == 120 * damage.QUOTA_ROUNDS
    assert report.seen["answers after"] == len(KEYS) * damage.QUOTA_ROUNDS
    assert report.seen["errors counted"] > 0


def _remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True, capture_output=True)


@pytest.mark.parametrize("prepared", [False, True], ids=["empty store", "store with entries"])
def test_a_read_only_disk_never_reaches_the_caller_and_heals(
    small_disk: Path, prepared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    report = Report("read-only disk")
    directory = small_disk / "cache"
    if prepared:
        with Store(directory, 0, clock=hasty) as store:
            for key in KEYS[::2]:
                store.answer(key)
    _remount(small_disk, "ro")
    with Store(directory, 0, clock=hasty) as store:
        damage.full_disk_calls(store, "read-only", report)
        assert report.seen["answers"] == 120
        _remount(small_disk, "rw")
        damage.after_the_full_disk(store, "read-only", report)
    assert report.amiss == []
    _all_kept(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, and root may write in any folder")
def test_a_folder_without_the_right_to_write_never_reaches_the_caller_and_heals() -> None:
    with open_to_all() as outer:
        os.chown(outer, SOMEBODY, SOMEBODY)
        report = as_somebody(lambda: _with_and_without_rights(outer))
    assert report.amiss == []
    assert report.seen["answers"] == 2 * 120
    assert report.seen["answers after"] == 2 * len(KEYS)


def _with_and_without_rights(outer: Path) -> Report:
    os.umask(0o022)
    logging.disable()
    report = Report("read-only folder")
    directory = outer / "cache"
    for prepared in (False, True):
        if prepared:
            with Store(directory, 0, clock=hasty) as store:
                for key in KEYS[::2]:
                    store.answer(key)
        folders = [outer, *(path for path in outer.rglob("*") if path.is_dir())]
        for path in reversed(folders):
            path.chmod(0o555)
        with Store(directory, 0, clock=hasty) as store:
            damage.full_disk_calls(store, "read-only folder", report)
            for path in folders:
                path.chmod(0o700)
            damage.after_the_full_disk(store, "read-only folder", report)
    return report
