"""The file-based backend from inside: bounds, large files, formats, journals, upkeep."""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, Entry, FileBasedBackend
from codomyrmex_cache._folders import is_on_network
from codomyrmex_cache.backends import _salvage
from codomyrmex_cache.errors import CacheBackendError, CacheConfigurationError
from codomyrmex_cache.testing import FakeClock

SECRET = b"a secret for the tests"
LARGE = b"x" * 300_000


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FileBasedBackend]:
    backend = FileBasedBackend(tmp_path / "store")
    yield backend
    backend.close()


def _files(backend: FileBasedBackend) -> list[str]:
    folder = backend.directory / "large"
    return sorted(os.listdir(folder)) if folder.exists() else []


def _query(backend: FileBasedBackend, sql: str, *arguments: object) -> list[Any]:
    connection = sqlite3.connect(backend.directory / "entries.sqlite3", isolation_level=None)
    try:
        return connection.execute(sql, arguments).fetchall()
    finally:
        connection.close()


# -- large payloads


def test_a_large_payload_has_a_file_of_its_own_and_loses_it_with_its_entry(backend: FileBasedBackend) -> None:
    backend.set(b"k", Entry(LARGE))
    (first,) = _files(backend)
    found = backend.get(b"k")
    assert found is not None
    assert bytes(found.value) == LARGE
    backend.set(b"k", Entry(LARGE + b"2"))
    (second,) = _files(backend)
    assert second != first
    backend.set(b"k", Entry(b"small"))
    assert _files(backend) != [first]
    backend.clear(b"")
    assert _files(backend) == []
    assert _query(backend, "SELECT value FROM meta WHERE name = 'large'") == [(0,)]


def test_what_is_deleted_or_replaced_by_something_small_is_unlinked(backend: FileBasedBackend) -> None:
    backend.set(b"k", Entry(LARGE))
    assert backend.delete(b"k") is True
    assert _files(backend) == []
    backend.set(b"k", Entry(LARGE))
    backend.set(b"k", Entry(b"small"))
    assert _files(backend) == []
    backend.set(b"k", Entry(LARGE))
    assert backend.quick_set(b"k", b"small", None, 0.0) is True
    assert _files(backend) == []
    assert _query(backend, "SELECT * FROM garbage") == []


def test_a_first_error_on_a_sound_database_is_not_believed(backend: FileBasedBackend) -> None:
    backend.set(b"k", Entry(b"v"))
    identity = backend._database.identity
    for expected in (True, True, False):
        backend._database._doubted = {each: -1.0 for each in backend._database._doubted if not expected}  # a second later
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY
        with pytest.raises(sqlite3.OperationalError), backend._database.reading():
            raise error
        assert (backend._database.look() == identity) is expected
        assert backend.get(b"k") is not None


def test_a_writer_that_waited_while_the_database_was_replaced_writes_to_the_new_one(backend: FileBasedBackend) -> None:
    backend.set(b"k", Entry(b"v"))
    with backend._database.reading():
        pass  # a handle on the old one is idle
    with _salvage.alone(backend.directory, 0.0):
        _salvage.salvage(backend.directory, str(backend.directory / "entries.sqlite3"))
    assert backend.quick_set(b"l", b"new", None, 0.0) is False  # written to the old one, which is lost
    backend.set(b"l", Entry(b"new"))
    assert _query(backend, "SELECT key FROM entries ORDER BY key") == [(b"k",), (b"l",)]


def test_a_large_payload_that_is_not_stored_leaves_no_file(backend: FileBasedBackend) -> None:
    begun = backend.begin(b"k", [], 0.0)
    backend.delete(b"k")
    assert backend.commit(b"k", Entry(LARGE), [], begun) is False
    assert backend.replace(b"k", Entry(b"other"), Entry(LARGE), True) is False
    assert _files(backend) == []


def test_orphans_are_swept_and_files_that_somebody_holds_are_not(backend: FileBasedBackend, tmp_path: Path) -> None:
    backend.set(b"k", Entry(LARGE))
    (kept,) = _files(backend)
    held = backend._large.write(LARGE)  # written, its row not yet committed
    for name in ("0123456789abcdef", "7edcba9876543210.tmp", "fedcba9876543210", "notes.txt"):
        (backend.directory / "large" / name).write_bytes(b"left by a process that died")
    other = FileBasedBackend(backend.directory)
    assert other.get(b"k") is not None
    strange = {"notes.txt", "fedcba9876543210"}  # names that are not ours
    assert set(_files(backend)) == {kept, f"{held.number:016x}", *strange}
    held.settle(kept=False)
    assert set(_files(backend)) == {kept, *strange}
    other.close()


def test_a_row_cannot_lead_out_of_the_folder(backend: FileBasedBackend, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    backend.set(b"k", Entry(LARGE))
    for name in ("../../outside", str(outside), -1, None):
        _query(backend, "UPDATE entries SET file = ? WHERE key = ?", name, b"k")
        backend.get(b"k")
        _query(backend, "INSERT OR IGNORE INTO garbage VALUES (?)", name if isinstance(name, int) else 5)
    backend.clear(b"")
    assert outside.read_bytes() == b"not ours"


@pytest.mark.parametrize("planted", ["pipe", "link", "folder", "short", "gone"])
def test_something_else_in_the_place_of_a_file_is_a_miss(tmp_path: Path, planted: str) -> None:
    cache = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based")
    cache.set("k", LARGE)
    (path,) = tmp_path.glob("*/large/*")
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    if planted == "pipe":
        os.mkfifo(path)
    elif planted == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif planted == "folder":
        path.mkdir()
    elif planted == "short":
        path.write_bytes(LARGE[:1000])
    assert cache.get("k", "miss") == "miss"
    assert sum(cache.stats().errors.values()) == 1
    assert cache.get_or_load("k", lambda: 2) == 2
    assert cache.get("k") == 2
    cache.close()


def test_arrays_mapped_into_memory_are_private_and_outlive_their_entry(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    manager = CacheManager(directory=tmp_path, secret=SECRET)
    cache = manager.get_cache("x", backend="file_based", mmap=True, types=[np.ndarray])
    cache.set("k", np.arange(100_000))
    one, other = cache.get("k"), cache.get("k")
    one[0] = 7
    assert (other[0], cache.get("k")[0]) == (0, 0)
    assert one.flags.writeable
    cache.delete("k")
    cache.clear()
    assert list(tmp_path.glob("*/large/*")) == []
    assert (int(one.sum()), int(other.sum())) == (7 + sum(range(100_000)), sum(range(100_000)))
    del one, other
    gc.collect()
    manager.close()


def test_a_large_array_is_read_without_being_copied_twice(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    cache = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based", types=[np.ndarray])
    array = np.arange(100_000.0)
    cache.set("k", array)
    found = cache.get("k")
    assert (found == array).all()
    base = found
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    held = base.obj if isinstance(base, memoryview) else base
    assert isinstance(held, bytearray)  # what the file was read into
    assert found.ctypes.data % 16 == 0
    cache.close()


# -- bounds


def _stored(cache: Cache) -> set[str]:
    return set(cache.keys())


def test_the_number_of_entries_is_bounded_and_what_is_read_stays(tmp_path: Path) -> None:
    cache = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based", max_entries=100)
    for number in range(95):
        cache.set(f"old:{number}", number)
    for number in range(400):
        cache.set(f"new:{number}", number)
        assert cache.get("old:3") == 3
        assert len(cache) <= 106
    left = _stored(cache)
    assert "old:3" in left
    assert "new:399" in left
    assert len([key for key in left if key.startswith("old:")]) == 1
    assert cache.stats().evictions == 495 - len(left)
    cache.close()


def test_bytes_are_bounded_those_in_files_of_their_own_included(tmp_path: Path) -> None:
    bound = 4 * 2**20
    cache = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based", max_bytes=bound)
    for number in range(200):
        cache.set(f"{number}", os.urandom(200_000 if number % 2 else 20_000))
    used = sum(path.stat().st_size for path in tmp_path.glob("*/large/*"))
    assert used <= bound
    assert used + (next(tmp_path.glob("*/entries.sqlite3"))).stat().st_size <= 1.5 * bound
    assert cache.get("199") is not None
    assert cache.get("1") is None
    cache.close()


def test_pages_that_eviction_empties_are_used_again(tmp_path: Path) -> None:
    backend = FileBasedBackend(tmp_path / "s", max_bytes=2 * 2**20)
    for number in range(20_000):
        backend.set(b"%d" % number, Entry(os.urandom(500)))
        if number % 3 == 0:
            backend.get(b"%d" % (number - number % 10))
    database = backend.directory / "entries.sqlite3"
    assert database.stat().st_size <= 3 * 2**20
    assert backend.count(b"") > 1000
    backend.close()


def test_a_process_that_only_reads_keeps_what_it_reads(tmp_path: Path) -> None:
    writer = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based", max_entries=6_000)
    writer.set_many({f"{number}": number for number in range(5_500)})
    reader = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based", max_entries=6_000)
    for number in range(900):
        assert reader.get(f"{number}") == number
    for number in range(1_500):
        writer.set(f"new:{number}", number)
    left = _stored(writer)
    assert len(left) <= 6_000 + 256
    assert "7" in left
    assert "1000" not in left
    writer.close()
    reader.close()


def test_notes_of_reads_do_not_outlive_what_was_read(backend: FileBasedBackend) -> None:
    for number in range(10):
        backend.set(b"%d" % number, Entry(b"v"))
    backend._upkeep.nearly_full = True
    for number in range(10):
        backend.get(b"%d" % number)
    backend._upkeep._write_down()
    assert _query(backend, "SELECT COUNT(*) FROM visited") == [(10,)]
    backend.delete_many([b"%d" % number for number in range(7)])
    backend._upkeep.round(0.0)
    assert _query(backend, "SELECT seq FROM visited ORDER BY seq") == [(8,), (9,), (10,)]


def test_expired_entries_are_swept_by_later_writes(tmp_path: Path) -> None:
    clock = FakeClock()
    manager = CacheManager(directory=tmp_path, secret=SECRET, clock=clock)
    cache = manager.get_cache("x", backend="file_based")
    cache.set_many({f"{number}": LARGE if number == 0 else number for number in range(100)}, ttl=10)
    clock.advance(11)
    for number in range(300):
        cache.set(f"new:{number}", number)
    assert cache.size() == 300
    assert list(tmp_path.glob("*/large/*")) == []
    cache.close()


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_entries": -1}, {"max_bytes": True}, {"durability": "none"}])
def test_bounds_that_mean_nothing_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(CacheConfigurationError, match=next(iter(options))):
        FileBasedBackend(tmp_path, **options)
    with pytest.raises(CacheConfigurationError, match=next(iter(options))):
        CacheManager(directory=tmp_path).get_cache("x", backend="file_based", **options)


# -- the database


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = FileBasedBackend(tmp_path)
    backend.set(b"k", Entry(b"v"))
    backend.close()
    _query(backend, "UPDATE meta SET value = 99 WHERE name = 'schema'")
    _query(backend, "PRAGMA user_version = 99")
    with pytest.raises(CacheBackendError, match=r"format 99 of a newer version.*upgrade"):
        backend.get(b"k")
    assert _query(backend, "SELECT value FROM entries") == [(b"v",)]


@pytest.mark.parametrize("form", ["first", "older", "empty", "text", "bit"])
def test_a_database_in_another_format_is_set_aside(tmp_path: Path, form: str) -> None:
    backend = FileBasedBackend(tmp_path)
    backend.set(b"k", Entry(b"v"))
    backend.close()
    database = tmp_path / "entries.sqlite3"
    if form == "first":
        database.unlink()
        _query(backend, "CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, expires_at REAL)")
    elif form == "older":
        _query(backend, "UPDATE meta SET value = 1 WHERE name = 'schema'")
        _query(backend, "PRAGMA user_version = 1")
    elif form == "bit":
        _query(backend, "PRAGMA user_version = 66")
    else:
        database.write_bytes(b"" if form == "empty" else b"text" * 5000)
    with pytest.raises(sqlite3.DatabaseError):
        backend.get(b"k")
    found = backend.get(b"k")  # the next call finds it in order
    assert (found is not None) == (form in ("older", "bit"))
    backend.set(b"k", Entry(b"new"))
    assert backend.quick_get(b"k") == b"new"
    assert (tmp_path / "damaged.sqlite3").exists()
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    backend.close()


def test_what_can_be_read_of_a_damaged_database_is_kept(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path, secret=SECRET)
    cache = manager.get_cache("x", backend="file_based")
    cache.set_many({f"{number}": "v" * 1000 for number in range(2_000)}, ttl=1000)
    cache.set("tagged", 1, tags=["tag"])
    cache.close()
    (database,) = tmp_path.glob("*/entries.sqlite3")
    with open(database, "r+b") as file:
        for page in range(200, 203):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    found = [cache.get(f"{number}") for number in range(2_000)]
    found = [cache.get(f"{number}") for number in range(2_000)]
    assert set(found) <= {"v" * 1000, None}
    assert 1_900 < found.count("v" * 1000) < 2_000
    assert cache.get("tagged") == 1
    assert _query(cache.space.backend, "PRAGMA integrity_check") == [("ok",)]  # type: ignore[arg-type]
    cache.close()


def test_tokens_grow_over_a_database_that_was_lost(tmp_path: Path) -> None:
    backend = FileBasedBackend(tmp_path)
    first = backend.begin(b"k", [], 60.0).lease
    backend.close()
    for path in tmp_path.glob("entries.sqlite3*"):
        path.unlink()
    assert backend.begin(b"k", [], 60.0).lease > first
    backend.close()


def test_a_draft_of_a_database_is_removed(tmp_path: Path) -> None:
    (tmp_path / "new.sqlite3").write_bytes(b"left by a process that died")
    backend = FileBasedBackend(tmp_path)
    backend.set(b"k", Entry(b"v"))
    backend.close()
    (tmp_path / "new.sqlite3").write_bytes(b"again")
    assert backend.get(b"k") is not None
    assert not (tmp_path / "new.sqlite3").exists()
    backend.close()


def test_two_processes_do_not_replace_the_database_twice(tmp_path: Path) -> None:
    backend = FileBasedBackend(tmp_path)
    backend.set(b"k", Entry(b"v"))
    old = backend._database.identity
    with _salvage.alone(tmp_path, 0.0):
        _salvage.salvage(tmp_path, str(tmp_path / "entries.sqlite3"))
    replaced = backend._database.look()
    assert replaced != old
    backend._database._replace(old, sqlite3.DatabaseError("seen by another process, too"))
    assert backend._database.look() == replaced
    assert backend.get(b"k") is not None
    backend.close()


@pytest.mark.parametrize(("durability", "synchronous"), [("kill", 1), ("power", 2)])
def test_durability_decides_what_is_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, synchronous: int
) -> None:
    backend = FileBasedBackend(tmp_path, durability=durability)
    backend.set(b"first", Entry(b"v"))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    backend.set(b"k", Entry(LARGE))
    assert len(synced) == (2 if durability == "power" else 0)  # the file, and the folder with its name
    with backend._database.reading() as handle:
        assert handle.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert handle.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    backend.close()


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 254:1 / /home/local rw - xfs /dev/vdb rw
32 22 0:41 / /mnt/a\\040b rw - fuse.sshfs host: rw
33 22 0:42 / /mnt/layers rw - fuse.fuse-overlayfs none rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/home/x/cache", True), ("/home", True), ("/homes", False), ("/home/local/x", False), ("/srv", False),
        ("/mnt/a b/c", True), ("/mnt/layers/x", False),
    ],
)  # fmt: skip
def test_file_systems_of_the_network_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: bool
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr("codomyrmex_cache._folders._MOUNTS", tmp_path / "mountinfo")
    assert is_on_network(Path(folder)) is expected
    monkeypatch.setattr("codomyrmex_cache._folders._MOUNTS", tmp_path / "absent")
    assert is_on_network(Path(folder)) is False


def test_on_a_network_file_system_there_is_no_write_ahead_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mountinfo").write_text(f"22 1 0:40 / {tmp_path.resolve()} rw - nfs4 server:/ rw\n")
    monkeypatch.setattr("codomyrmex_cache._folders._MOUNTS", tmp_path / "mountinfo")
    one, other = FileBasedBackend(tmp_path / "s"), FileBasedBackend(tmp_path / "s")
    one.set(b"k", Entry(b"v"))
    found = other.get(b"k")
    assert found is not None
    assert found.value == b"v"
    with one._database.reading() as handle:
        assert handle.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert [record.message for record in caplog.records if "network" in record.message] == [
        f"{tmp_path / 's'} is on a network file system: SQLite works there without its write-ahead log, and slowly"
    ]
    one.close()
    other.close()


# -- the short way


def test_the_short_way_is_taken_and_agrees_with_the_long_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    cache = CacheManager(directory=tmp_path, secret=SECRET, clock=clock).get_cache("x", backend="file_based")
    cache.set("first", 1)  # the first write finds out that nobody else is there
    monkeypatch.setattr("codomyrmex_cache.cache.verbs.store", lambda *_, **__: pytest.fail("the long way to set"))
    values = ["x", b"x", 1, 1.5, True, None, [1, (2,)], {"a": {1: 2}}, (), ""]
    for number, value in enumerate(values):
        cache.set(f"{number}", value, ttl=10 if number % 2 else None)
    monkeypatch.setattr("codomyrmex_cache.cache.verbs.get", lambda *_: pytest.fail("the long way to get"))
    found = [cache.get(f"{number}") for number in range(len(values))]
    assert (found, [type(value) for value in found]) == (values, [type(value) for value in values])
    monkeypatch.undo()
    assert [cache.get(f"{number}") for number in range(len(values))] == values
    assert cache.get_many([f"{number}" for number in range(len(values))]) == dict(zip(map(str, range(10)), values, strict=True))
    clock.advance(10)
    assert [cache.get(f"{number}", "?") for number in range(4)] == ["x", "?", 1, "?"]
    assert (cache.stats().sets, cache.stats().hits, cache.stats().misses) == (11, 32, 2)
    clock.advance(-1000)
    assert cache.get("0", "?") == "?"  # from the future
    cache.close()


def test_a_write_on_the_short_way_wins_over_a_load_under_way(tmp_path: Path) -> None:
    cache = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based")
    elsewhere = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based")
    elsewhere.set("other", 1)

    def load() -> str:
        elsewhere.set("k", "explicit")
        return "old"

    assert cache.get_or_load("k", load) == "old"
    assert cache.get("k") == "explicit"
    cache.close()
    elsewhere.close()


def test_the_short_way_notices_a_new_database(tmp_path: Path) -> None:
    cache = CacheManager(directory=tmp_path, secret=SECRET).get_cache("x", backend="file_based")
    cache.set("k", 1)
    cache.set("k", 2)
    for path in tmp_path.glob("*/entries.sqlite3*"):
        path.unlink()
    cache.space.backend._database.look_again = 0.0  # type: ignore[attr-defined]  as after 50 ms
    assert cache.get("k", "miss") == "miss"
    cache.set("k", 3)
    assert cache.get("k") == 3
    cache.close()


def test_a_log_that_was_left_behind_is_not_replayed_over_a_new_database(tmp_path: Path) -> None:
    backend = FileBasedBackend(tmp_path)
    backend.set(b"k", Entry(b"old"))
    log = (tmp_path / "entries.sqlite3-wal").read_bytes()
    assert b"old" in log
    backend.close()
    (tmp_path / "entries.sqlite3").unlink()
    (tmp_path / "entries.sqlite3-wal").write_bytes(log)
    assert backend.get(b"k") is None
    backend.set(b"l", Entry(b"new"))
    assert backend.count(b"") == 1
    backend.close()
