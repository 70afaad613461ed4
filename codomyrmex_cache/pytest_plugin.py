"""The pytest plugin: tests replay what was recorded once, see nothing of each other's entries, and touch no store of the user.

It does nothing without one of its options:

- `--cache-dir=FOLDER` has the recordings: one cassette per namespace (see `cassettes`), to be committed with the tests.
- `--cache-mode=record` runs what is missing there and adds it; `replay` fails a test that needs something else; `refresh`
  records anew what the tests use; `normal` reads the recordings and keeps nothing; `off` runs everything.

With an option, every namespace is kept in files of a temporary folder, whatever its backend: the stores of the user are neither
read nor written.  Each test sees the recordings and its own writes, which are gone when it has ended; while recording they
stay, as they are the recordings.  `@pytest.mark.codomyrmex_cache(mode="off")` gives a test another mode, and `isolated=False`
leaves what it wrote to the next.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from codomyrmex_cache._space import Space
    from codomyrmex_cache.cache import Cache
    from codomyrmex_cache.stats import CacheStats

__all__ = ["cache_mode"]

MODES = ("normal", "record", "replay", "refresh", "off")
_RECORDING = ("record", "refresh")
_MARKER = "codomyrmex_cache"
_RECORDER = "codomyrmex_cache recorder"
_TOTALS = ("hits", "misses", "seconds_saved", "cost_saved")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("codomyrmex_cache", "results of cached functions")
    group.addoption(
        "--cache-mode", choices=MODES, help="how calls of cached functions are answered (see codomyrmex_cache.modes)"
    )
    group.addoption(
        "--cache-dir", metavar="FOLDER", help="recordings, one file for each namespace, relative to the root folder"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker; and the rest, if there is an option."""
    config.addinivalue_line(
        "markers", f"{_MARKER}(mode=..., isolated=True): with --cache-mode or --cache-dir, this mode, or with what others wrote"
    )
    mode, folder = config.getoption("--cache-mode"), config.getoption("--cache-dir")
    if mode is None and folder is None:
        return
    if folder is None and mode in ("record", "replay"):
        raise pytest.UsageError(f"--cache-mode={mode} needs --cache-dir=FOLDER, where the recordings are")
    recorder = Recorder(config, mode or "normal", None if folder is None else config.rootpath / folder)
    config.pluginmanager.register(recorder, _RECORDER)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Everything as it was."""
    recorder = config.pluginmanager.getplugin(_RECORDER)
    if recorder is not None:
        recorder.close()


@pytest.fixture
def cache_mode(request: pytest.FixtureRequest) -> str:
    """The mode that this test's calls are made in: "normal" without an option."""
    recorder = request.config.pluginmanager.getplugin(_RECORDER)
    return "normal" if recorder is None else recorder.mode_of(request.node)


class Recorder:
    """One run of pytest with an option.

    With pytest-xdist each worker records what it runs, so that a call made in two workers is made twice, and the controller
    puts together what they have recorded and counted.

    Args:
        config: of the run.
        mode: of tests without the marker.
        folder: of the recordings.
    """

    def __init__(self, config: pytest.Config, mode: str, folder: Path | None) -> None:
        from tempfile import TemporaryDirectory

        from codomyrmex_cache.cache import Cache
        from codomyrmex_cache.modes import set_mode

        self._config, self._mode, self._folder = config, mode, folder
        self._temporary = TemporaryDirectory(prefix="codomyrmex_cache-", ignore_cleanup_errors=True)
        self._secret = os.urandom(32)
        self._caches: list[Cache] = []
        self._written: dict[int, tuple[int, ...]] = {}
        self._totals: dict[str, float] = dict.fromkeys(_TOTALS, 0)
        self._lines: dict[str, list[str]] = {}
        self._skipped: dict[str, int] = {}
        self._saved = 0
        self._set_mode: Any = set_mode
        self._original = Cache._wired
        recorder = self

        def wired(cache: Cache) -> Space:
            return recorder.wired(cache)

        Cache._wired = wired  # type: ignore[method-assign, assignment]
        set_mode(mode)  # type: ignore[arg-type]  # one of the choices

    def close(self) -> None:
        """Wire namespaces as ever, and remove the files."""
        from codomyrmex_cache.cache import Cache

        Cache._wired = self._original  # type: ignore[method-assign]
        self._set_mode(None)
        for cache in self._caches:
            cache.close()
        self._temporary.cleanup()

    def wired(self, cache: Cache) -> Space:
        """The namespace in files of its own, with its recordings."""
        from codomyrmex_cache._record import replace
        from codomyrmex_cache._wiring import open_space

        options, of_files = cache._options, cache._options.backend == "file_based"
        options = replace(
            options, backend="file_based", secret=self._secret,
            directory=os.path.join(self._temporary.name, str(len(self._caches))),
            url=None, near=None, slots=None, max_entries=options.max_entries if of_files else None,
            max_bytes=options.max_bytes if of_files else None,
        )  # fmt: skip
        space = open_space(cache.name, options, cache._counters, cache._results, cache._wires)
        self._caches.append(cache)
        self._fill(cache, space)
        return space

    def _fill(self, cache: Cache, space: Space) -> None:
        from codomyrmex_cache._wiring import safe_coders
        from codomyrmex_cache.cassettes import lines_in, store_lines

        path = self._path(cache.name)
        if path is not None:
            store_lines(space, lines_in(path), safe_coders(cache.name, cache._options, cache._results))

    def _path(self, namespace: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{quote(namespace, safe=' ')}.jsonl"

    # -- tests

    def mode_of(self, item: pytest.Item) -> str:
        """The mode of this test."""
        marker = item.get_closest_marker(_MARKER)
        mode = self._mode if marker is None else marker.kwargs.get("mode", self._mode)
        if mode not in MODES:
            raise pytest.UsageError(f"{item.nodeid}: mode={mode!r} of the marker is none of {', '.join(MODES)}")
        return str(mode)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """A test with its fixtures, in its mode and by itself."""
        mode, marker = self.mode_of(item), item.get_closest_marker(_MARKER)
        self._set_mode(mode)
        for cache in self._caches:
            self._written.setdefault(id(cache), _writes(cache))
        try:
            return (yield)
        finally:
            self._set_mode(self._mode)
            if mode not in _RECORDING and (marker is None or marker.kwargs.get("isolated", True)):
                self._forget_writes()

    def _forget_writes(self) -> None:
        for cache in self._caches:
            if _writes(cache) == self._written.get(id(cache), (0, 0)):
                continue
            cache.clear()
            self._fill(cache, cache.space)
            self._written[id(cache)] = _writes(cache)

    # -- the end of the run

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the cassettes; a worker hands over what it has."""
        self._count(cache.stats() for cache in self._caches)
        if self._mode in _RECORDING and self._folder is not None:
            self._collect()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[_MARKER] = {"totals": self._totals, "lines": self._lines, "skipped": self._skipped}
        else:
            self._save()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What a worker of pytest-xdist handed over."""
        found = getattr(node, "workeroutput", {}).get(_MARKER)  # nothing of one that crashed
        if found is None:
            return
        for name, amount in found["totals"].items():
            self._totals[name] += amount
        for name, lines in found["lines"].items():
            self._lines.setdefault(name, []).extend(lines)
        for reason, count in found["skipped"].items():
            self._skipped[reason] = self._skipped.get(reason, 0) + count

    def _count(self, found: Iterable[CacheStats]) -> None:
        for stats in found:
            self._totals["hits"] += stats.hits + stats.stale_hits + stats.coalesced
            self._totals["misses"] += stats.misses + stats.bypasses
            self._totals["seconds_saved"] += stats.seconds_saved
            self._totals["cost_saved"] += getattr(stats, "cost_saved", 0.0)

    def _collect(self) -> None:
        from codomyrmex_cache.cassettes import lines_of

        for cache in self._caches:
            lines, skipped = lines_of(cache)
            self._lines.setdefault(cache.name, []).extend(lines)
            for reason, count in skipped.items():
                self._skipped[reason] = self._skipped.get(reason, 0) + count

    def _save(self) -> None:
        from codomyrmex_cache.cassettes import lines_in, merged, write_lines

        for name, lines in self._lines.items():
            path = self._path(name)
            assert path is not None
            old, new = set(lines_in(path)), merged(path, lines)
            write_lines(path, new)
            self._saved += len(set(lines_in(path)) - old)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line about what was spared, and one about what was recorded."""
        totals = self._totals
        parts = [f"{totals['hits']:g} hits", f"{totals['misses']:g} misses", f"{totals['seconds_saved']:.2f} s saved"]
        if totals["cost_saved"]:
            parts.append(f"${totals['cost_saved']:.4f} saved")
        terminalreporter.write_line(f"codomyrmex_cache ({self._mode}): {', '.join(parts)}")
        if self._mode in _RECORDING and self._folder is not None:
            left = ", ".join(f"{count} {reason}" for reason, count in sorted(self._skipped.items()))
            left = f", left out: {left}" if left else ""
            terminalreporter.write_line(f"codomyrmex_cache: {self._saved} entries recorded in {self._folder}{left}")


def _writes(cache: Cache) -> tuple[int, ...]:
    stats = cache.stats()
    return stats.sets, stats.deletes
