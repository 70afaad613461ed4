"""The rules by which files' hot cells may answer: any interleaving of the steps of processes that may die at each of them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from codomyrmex_cache.backends._mirror import LEASE_SECONDS, QUIET_SECONDS
from tests.mirror_model import (
    KEYS,
    MOST_PENDING,
    MUTATIONS,
    TAMPERING,
    Operation,
    Process,
    Schedule,
    StaleError,
    World,
    run_by_chance,
)  # fmt: skip

SOON = ["cells filled in the middle of a write", "no waiting for leases", "cells kept over a change of regime"]
"""Broken rules that the machine finds within a second; what is left to chance alone takes the others more steps at once."""

PROCESSES = 3
SOME_PROCESS = st.integers(0, PROCESSES - 1)


class MirrorMachine(RuleBasedStateMachine):
    """Processes over one namespace."""

    mutation = ""

    @initialize()
    def start(self) -> None:
        self.schedule = Schedule(World(self.mutation), PROCESSES)

    @precondition(lambda self: len(self.schedule.pending) < MOST_PENDING)
    @rule(process=SOME_PROCESS, key=st.sampled_from(KEYS), kind=st.sampled_from(["read", "set", "delete", "quick set"]))
    def begin(self, process: int, key: str, kind: str) -> None:
        self.schedule.begin(process, kind, key)

    @precondition(lambda self: self.schedule.pending)
    @rule(which=st.integers(0, MOST_PENDING - 1), steps=st.integers(1, 12))
    def go_on(self, which: int, steps: int) -> None:
        self.schedule.go_on(which, steps)

    @rule(seed=st.integers(0, 2**32), steps=st.integers(1, 200))
    def let_anything_happen(self, seed: int, steps: int) -> None:
        """What takes long to come about by rules, such as several processes with cells."""
        chance = Random(seed)
        for _ in range(steps):
            self.schedule.any_step(chance)

    @rule(leases=st.sampled_from([0.1, 0.5, 0.9, 1.0, 1.1, 2.0]))
    def let_time_go_by(self, leases: float) -> None:
        self.schedule.world.now += leases * LEASE_SECONDS

    @rule(process=SOME_PROCESS)
    def kill(self, process: int) -> None:
        self.schedule.kill(process)

    @rule(how=st.sampled_from(TAMPERING))
    def tamper(self, how: str) -> None:
        self.schedule.world.tamper(how)


def _run(mutation: str, examples: int, *phases: Phase) -> None:
    machine = type("Machine", (MirrorMachine,), {"mutation": mutation})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, database=None, derandomize=True,
            phases=phases or tuple(Phase), report_multiple_bugs=False,
        ),
    )  # fmt: skip


def test_no_interleaving_leads_to_a_stale_answer() -> None:
    _run("", 500)


def test_no_interleaving_by_chance_leads_to_a_stale_answer() -> None:
    hits = sum(run_by_chance("", seed) for seed in range(3000))
    assert hits > 20_000


@pytest.mark.parametrize("mutation", SOON)
def test_the_machine_finds_a_rule_that_is_broken(mutation: str) -> None:
    with pytest.raises(StaleError):
        _run(mutation, 20_000, Phase.generate)  # shrinking would take long, and tell nothing new


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_chance_finds_a_rule_that_is_broken(mutation: str) -> None:
    with pytest.raises(StaleError):
        for seed in range(20_000):
            run_by_chance(mutation, seed)


def test_cells_answer_and_nobody_waits_in_vain() -> None:
    world = World()
    one, two = Process(world), Process(world)

    def done(operation: Operation, seconds: float = 0.0) -> None:
        began = world.now
        for _ in operation:
            world.now += LEASE_SECONDS / 1000 if world.now < began + 1.1 * seconds else 0.0
        assert world.now <= began + seconds + LEASE_SECONDS

    done(one.write("x", present=True))
    done(one.write("x", present=True))  # alone: nobody to wait for
    done(one.read("x"))
    done(one.read("x"))
    assert world.hits == 1
    done(two.read("x"))  # takes part from now on
    done(two.read("x"))
    world.now += LEASE_SECONDS
    done(one.read("x"))
    done(one.read("x"))
    assert world.hits == 3
    done(two.write("x", present=True), QUIET_SECONDS)  # waits for what the first one believes
    done(two.write("x", present=True))
    done(one.read("x"))
    done(one.read("x"))
    assert world.hits == 4
