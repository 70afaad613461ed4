"""Measures the standard library of the running Python twice: once for the first time, once from the cache's files.

    python examples/analysis.py [--directory DIR] [--limit N]

Each module's metrics are one call of `analyse`, stored in the file-based namespace "stdlib-analysis".  The source text is an
argument of the call, so an edited module is a miss and everything else stays a hit.
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypedDict

from codomyrmex_cache import CacheManager, cached, get_cache

NAMESPACE = "stdlib-analysis"


class Metrics(TypedDict):
    """What is known of one module; plain data, so that its entry can be read by any program, whatever classes it has."""

    lines: int
    classes: int
    functions: int
    branches: int
    complexity: list[tuple[str, int]]  # of each function, by qualified name; a name can be there twice (property setters)


# The version of Python is part of each key: the same source can have another tree, or none, in the next one.
@cached(NAMESPACE, backend="file_based", version=sys.version_info[:2])
def analyse(module: str, source: bytes) -> Metrics | None:
    """The metrics of this module, `None` if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the modules read here, not about this program
            tree = ast.parse(source, module)
    except (SyntaxError, ValueError, RecursionError):  # files written for the tests of parsers
        return None
    metrics = Metrics(lines=len(source.splitlines()), classes=0, functions=0, branches=0, complexity=[])
    _measure(tree, "", metrics)
    return metrics


def _measure(scope: ast.AST, name: str, metrics: Metrics) -> None:
    """Add the branches directly in this scope, then each class and function inside as a scope of its own."""
    branches = 0
    inner: list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = []
    pending = list(ast.iter_child_nodes(scope))
    while pending:  # a loop, since the test suite has expressions nested deeper than the interpreter's stack
        node = pending.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            inner.append(node)
        else:
            branches += _branches(node)
            pending.extend(ast.iter_child_nodes(node))
    metrics["branches"] += branches
    if isinstance(scope, ast.ClassDef):
        metrics["classes"] += 1
    elif isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        metrics["functions"] += 1
        metrics["complexity"].append((name, 1 + branches))
    for node in reversed(inner):
        _measure(node, f"{name}.{node.name}" if name else node.name, metrics)


def _branches(node: ast.AST) -> int:
    """How many decisions this node adds to its scope (McCabe, "A Complexity Measure", 1976)."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):  # `case _:` is an else
        return 0 if isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None and node.guard is None else 1
    return 1 if isinstance(node, _DECISIONS) else 0


_DECISIONS = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)


class Pass(NamedTuple):
    """All modules once: their metrics, and the seconds it took to read and analyse them."""

    metrics: dict[str, Metrics | None]
    seconds: float


def analyse_all(paths: dict[str, Path], analyse: Callable[[str, bytes], Metrics | None]) -> Pass:
    """Read and analyse each module."""
    started = time.perf_counter()
    metrics = {module: analyse(module, path.read_bytes()) for module, path in paths.items()}
    return Pass(metrics, time.perf_counter() - started)


def modules() -> Iterator[tuple[str, Path]]:
    """Name and path of each module of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not {"site-packages", "dist-packages"} & set(parts) and path.is_file():
            yield ".".join(parts).removesuffix(".__init__"), path


def print_most_complex(metrics: dict[str, Metrics]) -> None:
    """The ten functions with the highest cyclomatic complexity."""
    functions = ((count, module, name) for module, found in metrics.items() for name, count in found["complexity"])
    print(f"\n{'module':<40} {'function':<50} {'complexity':>10}")
    for count, module, name in nlargest(10, functions):
        print(f"{module:<40} {name:<50} {count:>10}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Analyse the standard library, cold and warm.")
    parser.add_argument(
        "--directory", help="root of the cache's files (else CODOMYRMEX_CACHE_DIR, else the user's cache folder)"
    )
    parser.add_argument("--limit", type=int, help="analyse the first so many modules only")
    arguments = parser.parse_args()
    paths = dict(islice(modules(), arguments.limit))

    cache = get_cache(NAMESPACE, directory=arguments.directory)
    cache.clear()  # entries of an earlier run would make the cold pass a warm one
    cold = analyse_all(paths, analyse)

    # a manager of its own has opened nothing and remembers nothing, as in a new process: what it answers comes from files
    manager = CacheManager(directory=arguments.directory)
    reopened = cached(NAMESPACE, backend="file_based", version=sys.version_info[:2], manager=manager)(analyse.__wrapped__)
    warm = analyse_all(paths, reopened)
    misses, hits = analyse.stats().misses, reopened.stats().hits
    cache.close()
    manager.close()

    analysed = {module: metrics for module, metrics in warm.metrics.items() if metrics is not None}
    print(f"modules analysed: {len(analysed)}, skipped: {len(paths) - len(analysed)} (they do not parse)")
    for total in ("lines", "classes", "functions", "branches"):
        print(f"{total}: {sum(metrics[total] for metrics in analysed.values()):,}")
    print_most_complex(analysed)
    print(f"\ncold: {cold.seconds:.3f} s, {misses} of {len(paths)} calls analysed their module")
    print(f"warm: {warm.seconds:.3f} s, {hits} of {len(paths)} calls answered from files")
    print(f"ratio: {cold.seconds / warm.seconds:.1f}, same results: {cold.metrics == warm.metrics}")


if __name__ == "__main__":
    main()
