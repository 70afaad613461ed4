"""How often a function of 0.2 seconds runs when many ask for it at the same moment, with what each package has against that."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from benchmarks.children import run_together
from benchmarks.functions import MARKS
from benchmarks.memory import Sizes
from benchmarks.peers import Peer
from benchmarks.tables import Family, Step

PATIENCE = 12.0


def executions(name: str, protected: str, kind: str, where: Callable[[], str], callers: int) -> Step:
    """One run: so many threads or tasks of one process, or so many processes."""

    def step() -> float:
        with tempfile.NamedTemporaryFile() as marks:
            os.environ[MARKS] = marks.name
            each = (callers, 1) if kind == "processes" else (1, callers)
            run_together([("stampede", name, protected, where(), kind, each[1])] * each[0], PATIENCE)
            return float(os.path.getsize(marks.name))

    return step


def stampede(peers: list[Peer], sizes: Sizes, new: Callable[[], str], url: Callable[[], str] | None) -> Family:
    """Threads, tasks and processes."""
    family = Family("stampede", f"executions of one function of 0.2 s for callers at the same moment; {PATIENCE:.0f} s at most")
    several = min(8, max(sizes.processes))
    for title, kind, protected, callers in (
        (f"{sizes.callers} threads, memory", "threads", "once", sizes.callers),
        (f"{sizes.callers} tasks, memory", "tasks", "once_task", sizes.callers),
        (f"{sizes.callers} threads, files", "threads", "once_files", sizes.callers),
        (f"{several} processes, files", "processes", "once_files", several),
        (f"{several} processes, Redis", "processes", "once_redis", several),
    ):
        if protected == "once_redis" and url is None:
            continue
        row = family.row(f"{title}: executions", unit="", is_count=True, rounds=2)
        for peer in peers:
            if not hasattr(peer, protected):
                continue
            if peer.name == "cashews" and kind == "threads":
                continue  # it has tasks only
            row.add(peer.name, lambda: run_of(peer.name, protected, kind, new, url, callers))
    return family


def run_of(name: str, protected: str, kind: str, new: Callable[[], str], url: Callable[[], str] | None, callers: int) -> Step:
    """Where it is kept: nowhere, a new folder for each run, or a server that has been emptied."""
    places = {"once_files": new, "once_redis": url}
    return executions(name, protected, kind, places.get(protected) or (lambda: "-"), callers)
