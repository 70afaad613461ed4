"""The examples run to their end, without a warning, and say what they are there to show."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

Run = Callable[..., str]


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path: Path, cache_folder: Path) -> Run:
    """Runs an example to its end; answers what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CODOMYRMEX_CACHE_")}
    own = {"CODOMYRMEX_CACHE_DIR": str(cache_folder), "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)}

    def run(example: str, *arguments: str) -> str:
        command = [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments]
        done = subprocess.run(
            command, env=inherited | own, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def numbers(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in:\n{text}"
    return tuple(map(int, found.groups()))


# -- analysis.py


def test_analysis_counts_each_module_as_analysed_or_skipped(run: Run) -> None:
    output = run("analysis.py", "--limit", "60")

    analysed, skipped = numbers(r"modules analysed: (\d+), skipped: (\d+)", output)
    assert analysed + skipped == 60
    assert analysed > 50


def test_analysis_lists_the_ten_most_complex_functions_in_order(run: Run) -> None:
    output = run("analysis.py", "--limit", "60")

    table = output.partition("complexity\n")[2].partition("\n\n")[0]
    complexities = [int(line.split()[-1]) for line in table.splitlines()]
    assert len(complexities) == 10
    assert sorted(complexities, reverse=True) == complexities


def test_analysis_is_cold_at_each_run_and_warm_from_files(run: Run, cache_folder: Path) -> None:
    for output in (run("analysis.py", "--limit", "60"), run("analysis.py", "--limit", "60")):
        assert numbers(r"cold: .* (\d+) of (\d+) calls", output) == (60, 60)
        assert numbers(r"warm: .* (\d+) of (\d+) calls", output) == (60, 60)
        assert "same results: True" in output

    assert len(list(cache_folder.glob("stdlib-analysis-*/entries.sqlite3"))) == 1


def test_analysis_keeps_its_entries_in_the_given_directory(run: Run, cache_folder: Path, tmp_path: Path) -> None:
    run("analysis.py", "--limit", "5", "--directory", str(tmp_path / "elsewhere"))

    assert len(list(tmp_path.glob("elsewhere/stdlib-analysis-*/entries.sqlite3"))) == 1
    assert not cache_folder.exists()


SOURCE = b"""\
class Shop:
    def open(self, day, hour):
        if day == "sunday" or day == "holiday":
            return False
        return any(start <= hour for start, _ in self.hours if start)

    async def serve(self, customer):
        def is_regular():
            return customer.visits > 3 if customer.known else False

        match customer:
            case None:
                return
            case _:
                pass
        for item in customer.items:
            try:
                await self.sell(item)
            except LookupError:
                continue
"""


def test_analysis_counts_decisions_in_their_own_function() -> None:
    analyse = runpy.run_path(str(EXAMPLES / "analysis.py"))["analyse"]

    metrics = analyse.bypass("shop", SOURCE)

    complexity = [("Shop.open", 1 + 4), ("Shop.serve", 1 + 3), ("Shop.serve.is_regular", 1 + 1)]
    assert metrics == {"lines": 20, "classes": 1, "functions": 3, "branches": 8, "complexity": complexity}
    assert analyse.bypass("broken", b"def") is None


def test_analysis_of_an_edited_module_is_another_call() -> None:
    analyse = runpy.run_path(str(EXAMPLES / "analysis.py"))["analyse"]

    assert analyse.key("shop", SOURCE) == analyse.key("shop", bytes(bytearray(SOURCE)))
    assert analyse.key("shop", SOURCE) != analyse.key("shop", SOURCE + b"\n")


# -- llm_calls.py


def test_llm_calls_sends_one_request_for_each_different_call(run: Run) -> None:
    output = run("llm_calls.py")

    assert numbers(r"blocking: calls (\d+), requests (\d+)", output) == (6, 2)
    assert numbers(r"another model: calls (\d+), requests (\d+)", output) == (2, 1)
    assert numbers(r"async: calls (\d+), requests (\d+)", output) == (4, 2)
    assert numbers(r"concurrent: calls (\d+), requests (\d+)", output) == (10, 1)
    assert numbers(r"in all: calls (\d+), requests (\d+)", output) == (22, 6)
    assert "ask: hit rate 62.50%," in output
    assert "ask_async: hit rate 78.57%," in output
    assert len(re.findall(r"\d\.\d s saved", output)) == 2


# -- direct_api.py

DIRECT = """\
get: {'text': 'hello', 'tokens': 3}
has: True
delete: True
get after delete: nothing
hit rate: 50.00%
decorated: HELLO HELLO
in the namespace: ['@direct_api.shout']
hit rate with the decorated calls: 50.00%
contradiction: CacheConfigurationError
from a file: {'functions': 12, 'branches': (3, 4)}
"""


@pytest.mark.parametrize("arguments", [(), ("in_memory",), ("file_based",)])
def test_direct_api_says_the_same_with_each_backend_and_at_each_run(run: Run, arguments: tuple[str, ...]) -> None:
    assert [run("direct_api.py", *arguments), run("direct_api.py", *arguments)] == [DIRECT, DIRECT]
