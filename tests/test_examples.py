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

    counts = re.findall(r"^(.+): calls (\d+), requests (\d+), answers", output, re.M)
    assert {title: (int(calls), int(requests)) for title, calls, requests in counts} == {
        "blocking": (6, 2), "another model": (2, 1), "cut short, so not kept": (2, 2), "client": (2, 1), "streamed": (2, 1),
        "3 samples": (6, 3), "replay": (1, 0), "async": (4, 2), "async, concurrent": (10, 1),
    }  # fmt: skip
    assert "streamed: calls 2, requests 1, answers ['HE|LL|O|']" in output
    assert "embeddings: [[3.0], [3.0]], texts sent so far 2\nembeddings: [[3.0], [5.0]], texts sent so far 3\n" in output


def test_llm_calls_shows_what_differs_from_a_recording(run: Run) -> None:
    said = run("llm_calls.py").partition("replay of another prompt: ")[2].partition("namespace, function, model")[0]

    assert "messages" in said
    assert "good morning" in said
    assert "good evening" in said


def test_llm_calls_reports_what_was_saved(run: Run) -> None:
    report = run("llm_calls.py").partition("namespace, function, model")[2]

    lines = {line.split()[0]: line.split()[1:] for line in reversed(report.splitlines()[1:])}  # the first line of a name
    assert lines["llm-async"][:3] == ["in_memory", "14", "78.6%"]
    assert lines["llm-async"][-3:] == ["176", "0.1760", "0"]  # 11 of 14 answers, 16 tokens and 0.016 dollars each
    assert lines["openai.chat.completions.create"][0] == "4"
    assert lines["large"][:2] == ["2", "50.0%"]


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
