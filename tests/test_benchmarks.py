"""The machinery of `benchmarks.all`, run for real with tiny sizes, on what the test packages bring along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks import llm
from benchmarks.memory import Sizes
from benchmarks.peers import LruCache, Ours, Peer
from benchmarks.readme import BEGIN, END, block, rewrite
from benchmarks.tables import Family, Row, machine

ROOT = Path(__file__).parent.parent
TINY = Sizes(
    stores=20,
    room=50,
    accesses=100,
    entries=500,
    threads=(2,),
    seconds=0.01,
    callers=4,
    processes=(2,),
    stored=20,
    megabytes=1,
    settled=0.0,
)
OURS, LRU_CACHE = Ours.name, LruCache.name
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, forks")


class Wrong(Peer):
    """A cache that takes all calls for one."""

    name = "wrong"

    def memory(self, function, room=0):
        kept = []

        def call(*args, **kwargs):
            if not kept:
                kept.append(function(*args, **kwargs))
            return kept[0]

        return call


class Idle(Peer):
    """A cache that keeps nothing."""

    name = "idle"

    def memory(self, function, room=0):
        return function


class Failing(Peer):
    """A cache that cannot be made."""

    name = "failing"

    def memory(self, function, room=0):
        raise ValueError("no")


def measured(name: str, *adapters: Peer) -> Family:
    return everything.measured(name, list(adapters), TINY, rounds=2)


def row_of(**figures: list[float]) -> Row:
    names = {"ours": OURS, "lru_cache": LRU_CACHE}
    return Row("f(1)", baseline=LRU_CACHE, figures={names[name]: values for name, values in figures.items()})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=LINUX) if name in ("bytes", "processes") else name for name in everything.FAMILIES]
)
def test_every_row_of_every_family_has_figures_of_ours(name):
    family = measured(name, Ours(), LruCache())

    assert [row.errors for row in family.rows] == [{}] * len(family.rows)
    assert family.rows
    assert {len(row.figures[OURS]) for row in family.rows} == {1 if name == "bytes" else 2}
    assert all(row.workload in family.report() for row in family.rows)


@pytest.mark.parametrize(
    ("peer", "error"),
    [(Wrong(), "error: WrongAnswerError:"), (Idle(), "error: NotCachedError:"), (Failing(), "error: ValueError: no")],
)
def test_a_package_that_fails_has_the_error_in_its_cell(peer, error):
    family = measured("hits", peer, LruCache())

    rows = [row for row in family.rows if "messages" not in row.workload]  # for which none of these has anything
    assert len(rows) == 4
    assert [row.errors[peer.name][: len(error)] for row in rows] == [error] * 4
    assert [[name for name in row.figures if not name.startswith("undecorated")] for row in rows] == [[LRU_CACHE]] * 4
    assert error in family.report()


def test_a_package_that_fails_later_has_the_error_in_its_cell():
    row = Row("one")
    row.add("breaks", lambda: iter([1.0]).__next__)
    row.add("lasts", lambda: lambda: 1.0)

    Family("name", "title", [row]).measure(2)

    assert row.figures == {"lasts": [1.0, 1.0]}
    assert row.errors == {"breaks": "error: StopIteration:"}


def test_a_family_that_cannot_be_prepared_does_not_end_the_run(monkeypatch, capsys):
    def unserved(*_):
        raise ConnectionError("no server")

    monkeypatch.setitem(everything.FAMILIES, "redis", unserved)
    _, families = everything.run(["redis", "async"], [OURS], TINY, rounds=2)
    assert [family.name for family in families] == ["async"]
    assert "skipped: redis (ConnectionError: no server)" in capsys.readouterr().out


def test_ratios_are_taken_inside_rounds():
    row = row_of(ours=[2.0, 40.0, 6.0], lru_cache=[1.0, 10.0, 2.0])
    assert row.ratio(OURS, LRU_CACHE) == (2.5, 3.0, 3.5)


def test_a_ratio_above_one_is_worse_where_more_is_better_too():
    row = Row("calls", more_is_better=True, figures={OURS: [10.0, 10.0], "fast": [40.0, 40.0]})
    assert row.ratio(OURS, "fast") == (4.0, 4.0, 4.0)
    assert row.best() == "fast"


def test_the_readme_has_the_table_and_who_is_ahead_between_the_marks(tmp_path):
    family = Family("hits", "title", [row_of(ours=[100.0] * 3, lru_cache=[50.0] * 3)])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nyesterday\n{END}\nafter\n")

    rewrite(readme, machine(), [family])

    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "yesterday" not in text
    assert "| workload | codomyrmex_cache | functools.lru_cache |" in text
    assert "| f(1) | 100 ns | **0.5** |" in text
    assert "- f(1): functools.lru_cache 50.0 ns; ours 100 ns. Why: it is written in C" in text


def test_nobody_is_said_to_be_ahead_of_the_best():
    text = block(machine(), [Family("hits", "title", [row_of(ours=[50.0] * 3, lru_cache=[100.0] * 3)])])
    assert "| f(1) | **50.0 ns** | 2 |" in text
    assert "ahead" not in text


def test_marks_that_are_missing_are_an_error(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="has no <!-- benchmarks -->"):
        rewrite(readme, machine(), [])
    assert readme.read_text() == "nothing"


def test_our_readme_has_the_marks():
    assert everything.README.read_text().partition(BEGIN)[2].count(END) == 1


def test_the_command_prints_tables_and_writes_every_round(tmp_path):
    where = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.all", "--only", "async", "--peers", "wrong", "--rounds", "3", "--json", where]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    document = json.loads(where.read_text())
    assert "await f(1)" in done.stdout
    assert document["rounds"] == 3
    assert document["machine"]["versions"]["codomyrmex_cache"]
    figures = [row["figures"][OURS] for row in document["families"][0]["rows"]]
    assert [len(each) for each in figures] == [3, 3]
    assert all(figure > 0 for each in figures for figure in each)
    machine, (family,) = everything.read_json(where, ["async"])
    assert family.data() == document["families"][0]
    assert (machine, family.report() in done.stdout) == (document["machine"], True)


def test_an_unknown_family_is_an_error():
    command = [sys.executable, "-m", "benchmarks.all", "--only", "hits,nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "no such family: nonsense\n")


# -- llm.py


def test_the_probes_of_llm_calls_find_what_is_ideal_here(tmp_path):
    ours = [name for name, package in llm.PACKAGES.items() if package == "codomyrmex_cache"]

    columns, absent = llm.measured([*ours, "vcrpy"], {"vcrpy": str(tmp_path / "no such python")}, 2)

    assert [column.cells for column in columns] == [{name: (ideal, "") for name, ideal in llm.IDEAL.items()}] * len(ours)
    assert [(column.wrong, column.duplicates, column.errors) for column in columns] == [(0, 0, 0)] * len(ours)
    assert [len(column.microseconds) for column in columns] == [2] * len(ours)
    assert [line.partition(" (")[0] for line in absent] == ["skipped: vcrpy"]


def test_a_column_of_llm_calls_says_what_went_wrong(tmp_path):
    cells = {name: (ideal, "") for name, ideal in llm.IDEAL.items()}
    cells |= {"another `extra_body`": (1, ""), "a stream twice": (1, "6 chunks as 5"), "10 threads at once": (10, "")}
    cells |= {"10 tasks at once": None, "another API key": (2, ""), "a 429, then again": "OSError: gone"}
    column = llm.Column("a package", "1.0", cells, [1.0, 3.0, 2.0])
    llm.PACKAGES["a package"] = "a package"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{llm.BEGIN}\nan older table\n{llm.END}\nafter\n")

    llm.rewrite(readme, [column], 3)
    del llm.PACKAGES["a package"]

    assert (column.wrong, column.duplicates, column.errors) == (2, 9, 1)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "older" not in text
    for row in ("| another `extra_body` | 2 | **1: wrong** |", "| a stream twice | 1 | **1: 6 chunks as 5** |",
                "| 10 tasks at once | 1 |  |", "| another API key | 1 or 2 | 2 |", "| a 429, then again | 2 | error |",
                "| wrong answers | 0 | 2 |", "| us for a hit |  | 2.0 [1.5..2.5] |"):  # fmt: skip
        assert row in text
