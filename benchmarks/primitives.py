"""The cost of a key, against bare primitives and the hash of joblib; the cases are those of `benchmarks.keys`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import keys as ours
from benchmarks.memory import Sizes
from benchmarks.peers import OURS, Peer
from benchmarks.tables import Family, Step


def step(function: Callable[[], object], calls: int) -> Step:
    function()
    return lambda: ours.timed(function, calls)


def keys(peers: list[Peer], sizes: Sizes) -> Family:
    """Arguments to a key."""
    family = Family("keys", "the key of a call, by the clock on the wall")
    cases = ours.cases()
    for workload, (baseline, _, function, calls) in cases.items():
        if not baseline:
            continue
        row = family.row(workload, unit="us", baseline=baseline)
        row.add(baseline, lambda: step(cases[baseline][2], cases[baseline][3]), primitive=True)
        row.add(OURS, lambda: step(function, calls))
        if any(peer.name == "joblib" for peer in peers) and (arguments := ARGUMENTS.get(workload)) is not None:
            row.add("joblib", lambda: step(partial(hash_of, arguments), 20), "joblib.hash")
    return family


ARGUMENTS = {"LLM call, seen": ours.CALL, "10 MB array": (ours.ARRAY,), "(1, b='x')": (1, "x")}


def hash_of(arguments: object) -> object:
    import joblib

    return joblib.hash(arguments)
