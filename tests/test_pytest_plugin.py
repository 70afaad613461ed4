"""Cassettes, and the pytest plugin in real runs: recorded once, replayed with the server down, a diff for a changed prompt."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache.cassettes import export_cassette, import_cassette
from codomyrmex_cache.errors import CacheMissError
from codomyrmex_cache.modes import mode
from tests.llm_server import KEY, serving

REPOSITORY = Path(__file__).parent.parent
BACKENDS = ("in_memory", "file_based", "redis")
RESULTS: list[Any] = []


@dataclass
class Point:
    x: int
    label: str


def manager_in(folder: Path, **options: Any) -> CacheManager:
    return CacheManager(directory=folder, **{"secret": os.urandom(32), **options})


def plain(x: Any) -> Any:
    RESULTS.append(x)
    return {"x": x, "text": "snow ☃", "list": [1, 2.5, None], "runs": len(RESULTS)}


def tagged(x: int) -> tuple[int, bytes, Point]:
    RESULTS.append(x)
    return x, b"\x00" * 1000, Point(x, "p")


def text(x: int) -> str:
    return f"\ud800 lone\u2028{x}"


def items(x: int) -> Iterator[int]:
    yield from range(x)


FUNCTIONS = (plain, tagged, text)


@pytest.mark.parametrize("source", BACKENDS)
@pytest.mark.parametrize("target", BACKENDS)
def test_a_cassette_carries_results_to_a_store_with_another_secret(
    tmp_path: Path, valkey: Any, source: str, target: str
) -> None:
    first, second = manager_in(tmp_path / "1", url=valkey.url), manager_in(tmp_path / "2", url=valkey.url)
    made = [cached("n", backend=source, manager=first)(function) for function in FUNCTIONS]
    stream = cached("n", backend=source, manager=first)(items)
    with mode("record"):
        results = [function(3) for function in made]
        streamed = list(stream(3))
        made[0]([{"role": "user", "content": "hello"}])
    first.get_cache("n").set("direct", {"k": [1]}, ttl=1000)
    transfer = export_cassette(first.get_cache("n"), tmp_path / "n.jsonl")
    assert (transfer.entries, transfer.skipped) == (6, {})
    first.get_cache("n").clear()
    first.close()

    replayed = [cached("n", backend=target, manager=second)(function) for function in FUNCTIONS]
    again = cached("n", backend=target, manager=second)(items)
    transfer = import_cassette(second.get_cache("n"), tmp_path / "n.jsonl")
    assert (transfer.entries, transfer.skipped) == (6, {})
    RESULTS.clear()
    with mode("replay"):
        assert [function(3) for function in replayed] == results
        assert list(again(3)) == streamed
        with pytest.raises(CacheMissError, match=r"x\[0\]\.content\n +- 'hello'\n +\+ 'help'"):
            replayed[0]([{"role": "user", "content": "help"}])
    assert second.get_cache("n").get("direct") == {"k": [1]}
    entry = second.get_cache("n").entry("direct")
    assert entry is not None and entry.ttl == pytest.approx(1000)
    assert RESULTS == []
    export_cassette(second.get_cache("n"), tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "n.jsonl").read_text()
    second.close()


def test_a_cassette_is_sorted_readable_and_changes_only_where_an_entry_does(tmp_path: Path) -> None:
    manager, path = manager_in(tmp_path), tmp_path / "n.jsonl"
    f = cached("n", backend="file_based", manager=manager)(plain)
    RESULTS.clear()
    with mode("record"):
        f({"b": 2}), f({"a": 1}), f("sk-0123456789abcdefghij")
    export_cassette(manager.get_cache("n"), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["call"] for line in lines] == [{"x": "[redacted]"}, {"x": {"a": 1}}, {"x": {"b": 2}}][1:]
    assert lines[0]["json"] == {"x": {"a": 1}, "text": "snow ☃", "list": [1, 2.5, None], "runs": 2}
    assert "☃" in path.read_text()
    before = path.read_text().splitlines()
    with mode("refresh"):
        f({"a": 1})
    export_cassette(manager.get_cache("n"), path)
    after = path.read_text().splitlines()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]
    export_cassette(manager.get_cache("n"), path)
    assert path.read_text().splitlines() == after
    manager.close()


def test_what_cannot_be_carried_is_counted(tmp_path: Path) -> None:
    manager, path = manager_in(tmp_path), tmp_path / "n.jsonl"
    cache = manager.get_cache("n", "file_based")
    cache.set("pickled", {Path("/x"), re.compile("a")})
    cache.set("secret", {"echo": f"you sent {KEY}"})
    cached("n", manager=manager)(plain)(1)
    cache.set("good", 1)
    transfer = export_cassette(cache, path)
    assert (transfer.entries, transfer.skipped) == (1, {"pickled": 1, "secret": 1, "unrecorded": 1})
    assert path.read_text() == '{"key": "good", "json": 1}\n'
    assert KEY not in path.read_text()
    manager.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_a_file_says_an_import_makes_no_more_than_plain_data(tmp_path: Path, valkey: Any, backend: str) -> None:
    good = json.dumps({"key": "good", "json": [1, 2]})
    tuples = '[[],["t",1,["o",0]]]'
    lines = [
        good, "", "no json", "[]", "null", "3", '{"key": 3, "json": 1}', '{"key": "a"}', '{"key": "a", "json": 1, "text": "b"}',
        '{"key": "a", "pickle": "gASVBQ=="}', '{"key": "a", "text": 5}', '{"key": "a", "bytes": "!!"}',
        '{"key": "a", "json": 1, "ttl": "long"}', '{"key": "a", "json": 1, "ttl": -5}',
        '{"key": "a", "json": 1, "seconds": 1e999}',
        '{"key": "a", "json": 1, "digest": "00"}',
        '{"key": "a", "json": 1, "parts": {"x": "zz"}}', '{"key": "a", "json": 1, "parts": 5}', '{"key": "a", "json": NaN}',
        '{"key": "a", "json": 1, "streamed": true}', f'{{"key": "a", "tagged": {tuples}, "streamed": true}}',
        '{"key": "a", "json": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"key": "a", "json": 1, "tags": [5]}',
    ]  # fmt: skip
    path = tmp_path / "n.jsonl"
    path.write_text("\n".join(lines))
    manager = manager_in(tmp_path / "store", url=valkey.url)
    cache = manager.get_cache("n", backend)
    transfer = import_cassette(cache, path)
    assert (transfer.entries, transfer.skipped) == (1, {"unreadable": len(lines) - 2})
    assert cache.get("good") == [1, 2] and cache.get("a") is None
    cache.clear()
    manager.close()


def test_tags_are_carried_and_can_be_invalidated(tmp_path: Path) -> None:
    first, second = manager_in(tmp_path / "1"), manager_in(tmp_path / "2")
    first.get_cache("n", "file_based").set("k", 1, tags=["red"])
    export_cassette(first.get_cache("n"), tmp_path / "n.jsonl")
    cache = second.get_cache("n", "file_based")
    assert import_cassette(cache, tmp_path / "n.jsonl").entries == 1
    assert cache.get("k") == 1
    cache.invalidate_tags("red")
    assert cache.get("k") is None
    first.close(), second.close()


# -- the plugin

APPLICATION = """
import os
from openai import OpenAI
from codomyrmex_cache import cached, get_cache

@cached("llm", ttl="1h", backend="file_based")
def ask(messages, api_key=None):
    client = OpenAI(api_key=os.environ["LOOPBACK"], base_url=os.environ["MODEL_URL"] + "/v1", max_retries=0)
    return client.chat.completions.create(model="m", messages=messages).choices[0].message.content
"""

TESTS = """
import os
import pytest
from application import ask, get_cache
SYSTEM = {"role": "system", "content": "Be short."}

def test_one():
    answer = ask([SYSTEM, {"role": "user", "content": "Write about the %s"}], api_key=os.environ["LOOPBACK"])
    assert answer.startswith("answer ")

def test_two():
    count = [SYSTEM, {"role": "user", "content": "Count to ten"}]
    assert ask(count) == ask(count)
"""

ISOLATED = """
import pytest
from codomyrmex_cache import CacheManager, cached, get_cache

get_cache("state", "in_memory").set("imported", 1)

@cached("state")
def f(x):
    f.runs += 1
    return x
f.runs = 0

@pytest.mark.parametrize("number", [1, 2])
def test_each_sees_its_own_writes(number):
    cache = get_cache("state")
    assert cache.get("k") is None
    cache.set("k", number)
    assert cache.get("k") == number
    assert f(5) == f(5) == 5
    assert f.runs == number

@pytest.mark.codomyrmex_cache(isolated=False)
def test_leaves_something():
    get_cache("state").set("left", 1)

def test_finds_it():
    assert get_cache("state").get("left") == 1

@pytest.mark.codomyrmex_cache(mode="off")
def test_in_another_mode(cache_mode):
    assert cache_mode == "off"
    get_cache("state").set("k", 1)
    assert get_cache("state").get("k") is None

def test_mode(cache_mode):
    assert cache_mode == "normal"
"""


class Project:
    """A folder with tests that are run by pytest in a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        (folder / "application.py").write_text(APPLICATION)
        self.ask_about("sea")

    def ask_about(self, what: str) -> None:
        (self.folder / "test_it.py").write_text(TESTS % what)

    def run(self, *options: str) -> tuple[int, str]:
        plugins = ["codomyrmex_cache.pytest_plugin", "no:cacheprovider", *(["xdist"] if "-n" in options else [])]
        loaded = [*(part for plugin in plugins for part in ("-p", plugin)), "-q", "--strict-markers", "-W", "error"]
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *loaded, *options],
            cwd=self.folder, capture_output=True, text=True, timeout=100,
            env={
                **os.environ, "MODEL_URL": self.url, "LOOPBACK": KEY, "CODOMYRMEX_CACHE_DIR": str(self.folder / "user's"),
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
                "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
        )  # fmt: skip
        return ran.returncode, ran.stdout + ran.stderr


def test_recorded_once_it_passes_in_replay_with_the_server_down(tmp_path: Path) -> None:
    with serving() as model:
        project = Project(tmp_path, model.url)
        code, output = project.run("--cache-mode=record", "--cache-dir=recordings")
        assert (code, model.requests) == (0, 2), output
        assert "codomyrmex_cache (record): 1 hits, 2 misses" in output
        assert re.search(r"codomyrmex_cache: 2 entries recorded in .*recordings", output)
        code, output = project.run("--cache-mode=record", "--cache-dir=recordings")
        assert (code, model.requests) == (0, 2), output
        assert "codomyrmex_cache: 0 entries recorded" in output
    cassette = tmp_path / "recordings" / "llm.jsonl"
    recorded = cassette.read_text()
    code, output = project.run("--cache-mode=replay", "--cache-dir=recordings")
    assert code == 0, output
    assert re.search(r"codomyrmex_cache \(replay\): 3 hits, 0 misses, \d+\.\d\d s saved", output)

    project.ask_about("moon")
    code, output = project.run("--cache-mode=replay", "--cache-dir=recordings")
    assert code == 1 and "1 failed, 1 passed" in output
    assert re.search(r"messages\[1\]\.content\nE +- 'Write about the sea'\nE +\+ 'Write about the moon'", output), output

    assert cassette.read_text() == recorded
    assert "Write about the sea" in recorded and KEY not in recorded
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert not (tmp_path / "user's").exists()


def test_refresh_records_anew_and_normal_keeps_nothing(tmp_path: Path) -> None:
    with serving() as model:
        project = Project(tmp_path, model.url)
        project.run("--cache-mode=record", "--cache-dir=recordings")
        code, output = project.run("--cache-mode=refresh", "--cache-dir=recordings")
        assert (code, model.requests) == (0, 4), output
        assert len((tmp_path / "recordings" / "llm.jsonl").read_text().splitlines()) == 2
        recorded = (tmp_path / "recordings" / "llm.jsonl").read_text()
        project.ask_about("moon")
        code, output = project.run("--cache-dir=recordings")
        assert (code, model.requests) == (0, 5), output
        code, output = project.run("--cache-mode=off", "--cache-dir=recordings")
        assert (code, model.requests) == (0, 8), output
        assert (tmp_path / "recordings" / "llm.jsonl").read_text() == recorded


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_workers_record_and_count_together(tmp_path: Path) -> None:
    with serving() as model:
        project = Project(tmp_path, model.url)
        code, output = project.run("-n", "2", "--cache-mode=record", "--cache-dir=recordings")
        assert (code, model.requests) == (0, 2), output
        assert "codomyrmex_cache (record): 1 hits, 2 misses" in output
    code, output = project.run("-n", "2", "--cache-mode=replay", "--cache-dir=recordings")
    assert code == 0 and "codomyrmex_cache (replay): 3 hits, 0 misses" in output, output


def test_each_test_sees_its_own_writes(tmp_path: Path) -> None:
    project = Project(tmp_path, "")
    (tmp_path / "test_it.py").write_text(ISOLATED)
    code, output = project.run("--cache-mode=normal")
    assert code == 0 and "6 passed" in output, output


def test_without_an_option_nothing_is_different(tmp_path: Path) -> None:
    project = Project(tmp_path, "")
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it(cache_mode, request):\n"
        "    assert cache_mode == 'normal'\n"
        "    own = {name for name in sys.modules if name.startswith('codomyrmex_cache.')}\n"
        "    assert not own & {'codomyrmex_cache.cassettes', 'codomyrmex_cache.backends.file_based'}\n"
    )
    code, output = project.run()
    assert code == 0 and "codomyrmex_cache" not in output, output


@pytest.mark.parametrize("option", ["--cache-mode=record", "--cache-mode=replay"])
def test_recordings_need_a_folder(tmp_path: Path, option: str) -> None:
    code, output = Project(tmp_path, "").run(option)
    assert code == 4 and "needs --cache-dir" in output


def test_the_package_declares_the_plugin() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert importlib.util.find_spec(declared["codomyrmex_cache"]) is not None
