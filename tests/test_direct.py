"""The direct API, the manager, and what their messages say."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import CacheError, CacheManager, CacheStats, Entry, InMemoryBackend, cached, get_cache
from codomyrmex_cache.errors import CacheConfigurationError, CacheKeyError
from codomyrmex_cache.testing import FakeClock
from tests.conftest import run_python

QUICK_START = """
from codomyrmex_cache import get_cache, Cache, CacheManager, CacheStats, CacheError, cached
cache = get_cache(name="llm_responses", backend={backend!r})
cache.set("k", {{"text": "hello"}}, ttl=3600)
assert cache.get("k") == {{"text": "hello"}}
assert cache.has("k")
assert cache.delete("k")
assert cache.get("k") is None
print(f"{{cache.stats().hit_rate:.2%}}")
manager = CacheManager()
analysis = manager.get_cache("code_analysis", backend={backend!r})
analysis.set("k", [1, (2,)])
assert manager.get_cache("code_analysis").get("k") == [1, (2,)]
assert isinstance(analysis, Cache) and isinstance(analysis.stats(), CacheStats)
"""


def test_the_quick_start_runs_on_every_backend(backend_name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("valkey").url if backend_name == "redis" else ""
    environment = {"CODOMYRMEX_CACHE_DIR": str(tmp_path), "CODOMYRMEX_CACHE_REDIS_URL": url}
    assert run_python(QUICK_START.format(backend=backend_name), **environment) == "50.00%\n"


@pytest.mark.parametrize("key", [None, 1, b"k", ("k",), 1.5])
def test_a_key_of_another_type_is_an_error_that_shows_it(key: Any) -> None:
    cache = CacheManager().get_cache("x")
    for call in (cache.get, cache.has, cache.delete, cache.entry, lambda k: cache.set(k, 1), lambda k: cache.get_many([k])):
        with pytest.raises(CacheKeyError, match="the keys of a cache are str"):
            call(key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "non-empty"),
        ({"name": None}, "non-empty"),
        ({"backend": "memory"}, "'memory' is not known.*'in_memory', 'file_based', 'redis'"),
        ({"backend": 3}, "'in_memory', 'file_based', 'redis'"),
        ({"max_entries": 0}, "max_entries=0"),
        ({"max_entries": True}, "max_entries=True"),
        ({"backend": "redis", "url": "http://user:hidden@host"}, r"redis://, rediss://, unix://"),
        ({"secret": b"short"}, "16 bytes"),
        ({"on_error": "ignore"}, "bypass"),
    ],
)
def test_an_option_that_means_nothing_is_an_error_that_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheError, match=message) as caught:
        CacheManager().get_cache(**options)
    assert "hidden" not in str(caught.value)


def test_a_bad_ttl_is_an_error() -> None:
    cache = CacheManager().get_cache("x")
    for ttl in (-1, float("nan"), True, "later"):
        with pytest.raises(CacheConfigurationError, match="ttl="):
            cache.set("k", 1, ttl=ttl)
    assert cache.has("k") is False


def test_contradictions_name_both_sides_and_agreement_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CacheManager(directory=tmp_path)
    cache = manager.get_cache("x", backend="file_based")
    assert manager.get_cache("x") is cache
    assert manager.get_cache("x", backend="file_based") is cache
    cache.set("k", 1)
    assert manager.get_cache("x", backend="file_based", directory=tmp_path) is cache
    with pytest.raises(
        CacheError, match=r"'x' was set up with backend='file_based' and is now asked for with backend='in_memory'"
    ):
        manager.get_cache("x", backend="in_memory")
    monkeypatch.chdir(tmp_path)
    assert manager.get_cache("x", directory=".") is cache  # another spelling of the same folder
    bounded = manager.get_cache("z", backend="in_memory")
    bounded.set("k", 1)
    assert manager.get_cache("z", max_entries=10_000, on_error="bypass") is bounded  # the defaults, said aloud
    with pytest.raises(CacheError, match="directory="):
        manager.get_cache("x", directory=tmp_path / "other")
    secret = manager.get_cache("y", secret=b"0123456789abcdef")
    with pytest.raises(CacheError) as caught:
        manager.get_cache("y", secret=b"fedcba9876543210")
    assert "0123456789" not in str(caught.value)
    assert secret is manager.get_cache("y")


def test_the_environment_decides_what_no_keyword_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_CACHE_BACKEND", "file_based")
    monkeypatch.setenv("CODOMYRMEX_CACHE_DIR", str(tmp_path / "from-environment"))
    manager = CacheManager()
    assert manager.get_cache("a").backend_name == "file_based"
    manager.get_cache("a").set("k", 1)
    assert (tmp_path / "from-environment").is_dir()
    assert manager.get_cache("b", backend="in_memory").backend_name == "in_memory"
    manager.get_cache("c", directory=tmp_path / "from-keyword").set("k", 1)
    assert (tmp_path / "from-keyword").is_dir()
    monkeypatch.setenv("CODOMYRMEX_CACHE_BACKEND", "nonsense")
    with pytest.raises(CacheConfigurationError, match="'nonsense'"):
        manager.get_cache("d").get("k")
    manager.close()


def test_managers_are_registries_of_their_own() -> None:
    one, other = CacheManager(), CacheManager()
    one.get_cache("x").set("k", 1)
    assert other.get_cache("x").get("k") is None
    assert CacheManager.default() is CacheManager.default()
    assert get_cache("from-default") is CacheManager.default().get_cache("from-default")


def test_a_namespace_is_one_set_of_entries_and_statistics(manager: CacheManager, backend_name: str) -> None:
    @cached("one", backend=backend_name, manager=manager)
    def function(x: int) -> int:
        return x

    function(1), function(1)
    cache = manager.get_cache("one")
    cache.get("absent")
    cache.set("k", 1)
    assert sorted(cache.keys()) == [function.key(1), "k"]
    stats = manager.stats("one")
    assert (stats.hits, stats.misses, stats.sets, stats.loads) == (1, 2, 2, 1)
    assert manager.stats() == {"one": stats}
    assert manager.total() == stats
    assert manager.stats("unheard of") == CacheStats()
    assert "one" in manager.report()
    assert "33.3%" in manager.report()


def test_get_or_load_hands_on_the_loaders_exception() -> None:
    cache = CacheManager().get_cache("x")
    with pytest.raises(ZeroDivisionError):
        cache.get_or_load("k", lambda: 1 // 0)
    assert cache.get_or_load("k", lambda: 1, ttl=0) == 1
    assert cache.get_or_load("k", lambda: 2) == 2
    assert cache.get_or_load("k", lambda: 3) == 2


def test_the_twin_takes_plain_loaders_too() -> None:
    cache = CacheManager().get_cache("x")
    assert asyncio.run(cache.aget_or_load("k", lambda: 1)) == 1


def test_entries_show_wall_clock_times() -> None:
    import time

    cache = CacheManager().get_cache("x")
    before = time.time()
    cache.set("k", 1, ttl=10)
    entry = cache.entry("k")
    assert isinstance(entry, Entry)
    assert before - 1 < entry.created < time.time() + 1
    assert entry.fresh_until is not None
    assert abs(entry.fresh_until - entry.created - 10) < 1e-6
    assert cache.entry("absent") is None


def test_an_empty_cache_is_true_and_knows_its_length() -> None:
    cache = CacheManager().get_cache("x")
    assert bool(cache) is True
    assert len(cache) == 0
    cache.set("k", 1)
    assert len(cache) == 1
    assert "k" in cache
    assert "l" not in cache
    assert list(cache) == ["k"]


def test_a_value_that_cannot_be_stored_replaces_nothing_wrongly(caplog: pytest.LogCaptureFixture) -> None:
    import threading

    cache = CacheManager().get_cache("x")
    cache.set("k", "old")
    cache.set("k", threading.Lock())
    assert cache.get("k") is None  # the old value is not the answer any more
    assert cache.stats().errors == {"unstorable": 1}
    assert "type lock" in caplog.text


def test_a_closed_cache_opens_again(manager: CacheManager, backend_name: str) -> None:
    cache = manager.get_cache("x", backend=backend_name)
    cache.set("k", 1)
    manager.close()
    assert cache.get("k") == 1


def test_files_survive_a_restart_and_are_private(tmp_path: Path) -> None:
    source = """
import os, sys
os.umask(0)
from codomyrmex_cache import CacheManager
cache = CacheManager().get_cache("a/b c", backend="file_based")
print(cache.get("k"))
cache.set("k", {"n": 1})
cache.set("object", range(3))
assert cache.get("object") == range(3)
"""
    environment = {"CODOMYRMEX_CACHE_DIR": str(tmp_path / "deep" / "root"), "XDG_STATE_HOME": str(tmp_path / "state")}
    assert [run_python(source, **environment) for _ in range(2)] == ["None\n", "{'n': 1}\n"]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    (folder,) = (tmp_path / "deep" / "root").iterdir()
    assert folder.name.startswith("a_b_c-")
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert len(list((tmp_path / "state").rglob("*.key"))) == 1


def test_nothing_is_created_before_the_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    @cached("lazy", backend="file_based", directory=tmp_path / "root", manager=CacheManager())
    def function() -> None: ...

    assert list(tmp_path.iterdir()) == []
    function()
    assert {path.name for path in tmp_path.iterdir()} == {"state", "root"}


def test_existing_folders_keep_their_mode_and_get_no_tag(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o755)
    CacheManager(directory=mine).get_cache("x", backend="file_based").set("k", 1)
    assert stat.S_IMODE(mine.stat().st_mode) == 0o755
    assert not (mine / "CACHEDIR.TAG").exists()


def test_expired_rows_leave_the_file(tmp_path: Path, clock: FakeClock) -> None:
    cache = CacheManager(directory=tmp_path, clock=clock).get_cache("x", backend="file_based")
    cache.set_many({f"old{number}": number for number in range(100)}, ttl=10)
    clock.advance(10)
    for number in range(256):
        cache.set(f"new{number}", number)
    assert cache.stats().size == 256
    cache.close()


def test_expired_cells_leave_the_memory(clock: FakeClock) -> None:
    cache = CacheManager(clock=clock).get_cache("x")
    for number in range(1000):
        cache.set(f"old{number}", number, ttl=10)
    clock.advance(10)
    for number in range(30):
        cache.set(f"new{number}", number)
    assert cache.stats().size == 30


def test_entry_points_bring_backends_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "elsewhere"

        def load(self) -> type[InMemoryBackend]:
            return InMemoryBackend

    monkeypatch.setattr("codomyrmex_cache._wiring._registered", lambda: {"elsewhere": Point()})
    cache = CacheManager().get_cache("x", backend="elsewhere")
    cache.set("k", 1)
    assert (cache.get("k"), cache.backend_name) == (1, "elsewhere")


def test_the_entry_point_group_is_read_from_installed_packages(tmp_path: Path) -> None:
    package = tmp_path / "other-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[codomyrmex_cache.backends]\ntoy = other_backend:Toy\n")
    (tmp_path / "other_backend.py").write_text(
        "from codomyrmex_cache import InMemoryBackend\nclass Toy(InMemoryBackend): ...\n"
    )
    source = (
        "from codomyrmex_cache import get_cache; c = get_cache('x', 'toy'); c.set('k', 1); print(c.get('k'), c.backend_name)"
    )
    assert (
        run_python(source, PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
        == "1 toy\n"
    )


def test_the_direct_api_shows_no_inner_form_of_a_functions_entry(manager: CacheManager, backend_name: str) -> None:
    @cached("inner", backend=backend_name, manager=manager, errors={KeyError: 60})
    def failing() -> None:
        raise KeyError("x")

    @cached("inner", backend=backend_name, manager=manager)
    def stream() -> Iterator[int]:
        yield from (1, 2)

    with pytest.raises(KeyError):
        failing()
    list(stream())
    cache = failing.cache
    assert cache.get(failing.key(), "absent") == "absent"
    assert cache.get(stream.key()) == [1, 2]
    assert cache.get_many([failing.key(), stream.key()]) == {stream.key(): [1, 2]}
