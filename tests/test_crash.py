"""A process that dies or fails in the middle of a write costs nobody else anything."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash import INLINE, LARGE, MEMORY, SMALL, Changes, Child, Ledger, strays, value_of, version_of
from tests.faults import Fault, Faults, sqlite_calls_can_fail
from tests.workers import ROOT

HELPER_SECONDS = 100.0
"""After which the helper and all processes that it has started are killed; it needs a quarter of that."""

CYCLES, ACKNOWLEDGED = 300, 5_000
FAULTS = {"os.": 500, "sqlite.": 400}
"""For CI, evenly spread; `python -m tests.crash --every` lets each fault happen that there is."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def _crash(folder: Path, *arguments: object) -> dict[str, Any]:
    """The report of `python -m tests.crash`, a process without threads, which is what may be forked."""
    command = [sys.executable, "-W", "error", "-m", "tests.crash", "--directory", str(folder), *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=HELPER_SECONDS)
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    print(output)
    report: dict[str, Any] = json.loads(output)
    return report


def test_writers_killed_at_any_moment_lose_nothing_that_was_acknowledged(folder: Path) -> None:
    report = _crash(folder, "--cycles", CYCLES, "--acknowledged", ACKNOWLEDGED)
    assert (report["problems"], report["counts"]) == ([], {})
    assert report["runs"] >= CYCLES
    assert report["acknowledged"] >= ACKNOWLEDGED
    assert report["during_a_call"] >= CYCLES / 4
    assert report["slowest_first_read"] < 1.0


@pytest.mark.parametrize(
    ("layer", "hit"),
    [
        ("os.", ["open", "write", "rename", "fsync", "unlink", "mkdir"]),
        ("sqlite.", ["open", "write", "fsync", "unlink", "commit"]),
    ],
)
def test_a_failure_at_each_file_system_call_costs_only_the_call_that_meets_it(folder: Path, layer: str, hit: list[str]) -> None:
    if layer == "sqlite." and not sqlite_calls_can_fail():
        pytest.skip("SQLite is linked into this interpreter without its names, so its calls cannot be replaced")
    report = _crash(folder, "--faults", FAULTS[layer], "--layer", layer)
    assert (report["problems"], report["counts"]) == ([], {})
    assert "never happened" not in report["by_call"]
    assert [name for name in hit if not any(name in call for call in report["by_call"])] == []
    assert report["slowest_first_read"] < 1.0


# -- the instruments themselves: each notices what it is for


def _told(*events: Any, held: Changes | None = None, **options: bool) -> tuple[Ledger, dict[str, int]]:
    ledger = Ledger(held)
    ledger.follow(json.loads(json.dumps(events)), **options)
    return ledger, dict(ledger.counts)


SET = (["begin", "set", {"k": (2, SMALL)}], ["end", {}, {}])


def _read(found: Any) -> tuple[Any, ...]:
    return ["begin", "get", {"k": None}], ["end", {"k": found}, {}]


@pytest.mark.parametrize(
    ("told", "amiss"),
    [
        ((*SET, *_read((2, SMALL))), {}),
        ((*SET, *_read((1, SMALL))), {"wrong": 1}),
        ((*SET, *_read("wrong")), {"wrong": 1}),
        ((*SET, *_read(None)), {"lost": 1}),
        ((SET[0], *_read((2, SMALL))), {}),
        ((SET[0], *_read((1, SMALL))), {}),
        ((SET[0], *_read((3, SMALL))), {"wrong": 1}),
        ((SET[0], *_read(None)), {"lost": 1}),
        ((["begin", "delete", {"k": None}], *_read(None)), {}),
        ((["begin", "delete", {"k": None}], ["end", {}, {}], *_read((1, SMALL))), {"wrong": 1}),
        ((["begin", "call", {"k": (2, SMALL)}], ["end", {"k": (1, SMALL)}, {}]), {}),
        ((["begin", "call", {"k": (2, SMALL)}], ["end", {"k": (2, SMALL)}, {}]), {"lost": 1}),
        ((["begin", "call", {"k": (2, SMALL)}], ["end", {"k": None}, {}]), {"wrong": 1}),
        ((SET[0], ["end", {}, {"backend:OSError": 1}]), {"error": 1}),
        ((["exception", "Traceback"],), {"exception": 1}),
    ],
)
def test_the_ledger_tells_lost_and_wrong_from_what_may_be(told: tuple[Any, ...], amiss: dict[str, int]) -> None:
    assert _told(*told, held={"k": (1, SMALL)})[1] == amiss


def test_a_write_that_failed_may_be_there_or_not_or_have_removed_the_old_one() -> None:
    failed = (SET[0], ["end", {}, {"backend:OSError": 1}])
    for found in [(1, SMALL), (2, SMALL), None]:
        assert _told(*failed, *_read(found), held={"k": (1, SMALL)}, may_fail=True)[1] == {}


def test_a_value_mixed_from_two_versions_is_noticed() -> None:
    old, new = value_of("k", 1, LARGE), value_of("k", 2, LARGE)
    mixed = {**new, "body": new["body"][:-512] + old["body"][-512:]}
    assert (version_of("k", new), version_of("k", mixed), version_of("other", new)) == ((2, LARGE), "wrong", "wrong")


def test_files_that_do_not_belong_into_a_store_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    for name in ["entries.sqlite3", "entries.sqlite3-journal", "large/0a1b", "large/tmp0a1b", "CACHEDIR.TAG"]:
        (tmp_path / name).touch()
    assert strays(tmp_path, 2) == ["entries.sqlite3-journal", "large/tmp0a1b"]
    assert strays(tmp_path, 1)[2:] == ["2 files for 1 large entries"]
    assert Ledger({"k": (1, LARGE), "s": (2, SMALL), "gone": None}).large == (LARGE > INLINE)


def _with_fault(folder: Path, fault: Fault | None, work: Any) -> tuple[list[Any], int | None]:
    """What a process of its own tells that does `work(faults, tell)`, and how it ends."""

    def child(tell: Any) -> None:
        faults = Faults(folder, fault)
        faults.install()
        with faults.armed():
            work(tell)
        tell(dict(faults.counts))

    forked = Child(child)
    return forked.end(), forked.status


@pytest.mark.parametrize(
    ("fault", "content", "status"),
    [
        (None, b"onetwotwo", 0),
        (Fault("os.write", 2, "ENOSPC"), b"one", 0),
        (Fault("os.write", 2, "short"), b"onetwo", 0),
        (Fault("os.write", 2, "death"), b"one", -signal.SIGKILL),
        (Fault("os.write", 2, "death in the middle"), b"onetwo"[:6], -signal.SIGKILL),
        (Fault("os.write", 2, "death after"), b"onetwotwo", -signal.SIGKILL),
        (Fault("os.open", 1, "EIO"), None, 0),
    ],
)
def test_a_call_of_os_fails_as_asked(tmp_path: Path, fault: Fault | None, content: bytes | None, status: int) -> None:
    def work(tell: Any) -> None:
        with suppress(OSError):
            descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY, 0o600)
            os.write(descriptor, b"one")
            os.write(descriptor, b"twotwo")

    _, ended = _with_fault(tmp_path, fault, work)
    found = (tmp_path / "file").read_bytes() if (tmp_path / "file").exists() else None
    assert (found, ended) == (content, status)


@pytest.mark.skipif(not sqlite_calls_can_fail(), reason="SQLite is linked in without its names: its calls cannot be replaced")
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (None, "stored"),
        (Fault("sqlite.fsync", 1, "EIO"), "disk I/O error"),
        (Fault("sqlite.open", 1, "EMFILE"), "unable to open database file"),
        (Fault("sqlite.commit", 1, "ENOSPC"), "database or disk is full"),
    ],
)
def test_a_call_of_sqlite_fails_as_asked(tmp_path: Path, fault: Fault | None, told: str) -> None:
    def work(tell: Any) -> None:
        try:
            connection = sqlite3.connect(tmp_path / "file", isolation_level=None)
            connection.execute("CREATE TABLE t (x)")
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (1)")
            connection.execute("COMMIT")
            tell("stored")
        except sqlite3.Error as error:
            tell(str(error))

    events, _ = _with_fault(tmp_path, fault, work)
    assert events[0] == told
    assert fault is not None or {"sqlite.open", "sqlite.fsync", "sqlite.commit"} <= set(events[1])
