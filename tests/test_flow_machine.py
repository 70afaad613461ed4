"""Calls, refreshes, invalidations, failures and interruptions in every interleaving of their effects, held against a model.

Each run of the user's function gives a number of its own, and the model knows the tick at which it began.  The promise is that
no call is answered with a number that is older than an invalidation, or an entry, that was complete before the call began.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from codomyrmex_cache import MISSING, InMemoryBackend, _load
from codomyrmex_cache._effects import Answer, Call, Load, Pause, Request
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flight import Flight
from codomyrmex_cache._flow import call
from codomyrmex_cache._heart import LEASE_SECONDS
from codomyrmex_cache._policy import Rules
from codomyrmex_cache._verbs import clear, delete, invalidate_tags, refresh, store, touch
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.errors import CacheTimeoutError
from codomyrmex_cache.keys import Key
from tests.stepping import Frame, Gives, Process, Stepper, Task, Thread, World, play


class Boom(Exception):  # noqa: N818
    """What the user's function raises, with its number."""


TTL = 10.0
KEYS = (Key("@f:1", b"one"), Key("@f:2", b"two"))
TAGS = (("tag",), ())  # of each key
RULES = {
    "plain": Rules(ttl=TTL),
    "stale": Rules(ttl=TTL, stale=TTL),
    "early": Rules(ttl=TTL, early=5.0),
    "touch": Rules(ttl=TTL, touch=True),
    "errors": Rules(ttl=TTL, errors={Boom: TTL}),
    "stale errors": Rules(ttl=TTL, stale=TTL, errors={Boom: TTL}),
    "unstored": Rules(ttl=0.0),
    "waits, then computes": Rules(ttl=TTL, wait=1.0),
    "waits, then raises": Rules(ttl=TTL, wait=1.0, on_wait_timeout="raise"),
    "waits, then stale": Rules(ttl=TTL, stale=TTL, wait=1.0, on_wait_timeout="stale"),
}
CHANGES = ("delete", "store", "clear", "clear function", "tags", "touch")
NESTED = ((), (), (), (1,), (1, 0))
MOST_LIVE = 6
ENOUGH = 20_000
"""Steps after which a caller that is not done never will be."""


@dataclass
class Record:
    """One call, refresh or change, from its beginning to its end."""

    kind: str
    key: int
    process: Process
    rules: Rules = RULES["plain"]
    nested: tuple[int, ...] = ()
    began: int = 0
    floor: int = 0
    number: int = 0  # that a store stores


@dataclass
class Execution:
    """One run of the user's function."""

    number: int
    record: Record
    led: bool
    began: int
    flight: Flight | None
    begun: Begun | None
    gives: Gives
    nested: list[Any] = field(default_factory=list)


def key_of(stored: bytes) -> int:
    return next(key for key, wanted in enumerate(KEYS) if stored.endswith(wanted.text.encode()))


def chosen(steppers: list[Stepper], number: int) -> Stepper:
    return steppers[number % len(steppers)]


class Machine(RuleBasedStateMachine, World):
    """Callers of one process; the other machine has two."""

    processes_count, elects = 1, False

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        World.__init__(self)
        self.backend = InMemoryBackend(clock=self.clock)
        self.processes = [Process(n, self.backend, self.clock, elects=self.elects) for n in range(self.processes_count)]
        self.order: dict[int, int] = {}  # number to the tick it stands for
        self.floor = [0, 0]  # of each key: what later calls are answered with is not older than this
        self.running: list[Execution] = []
        self.fenced = defaultdict(int)  # (process, key): when an invalidation last began there
        self.disturbed = [0, 0]  # of each key: when its generations last may have changed
        self.refreshed = [0, 0]  # of each key: when a refresh last began
        self.given_up: set[bytes] = set()  # generations of keys that loads without an entry dropped
        self.leases: dict[tuple[bytes, int], float] = {}
        self.outcomes = defaultdict(int)  # of each process
        self.cancelled_flights: list[Flight] = []
        self.number = 0
        self.broken = False

    # -- the model

    def recorded(self, record: Record, flow: Any) -> Generator[Any, Any, Any]:
        """The flow, with its beginning and its end."""
        record.began, record.floor = self.tick, self.floor[record.key]
        if record.kind not in ("call", "touch"):
            for key in self.keys_of(record):
                self.fenced[record.process.number, key] = self.tick
        try:
            value = yield from flow
        except GeneratorExit:  # a failed example is dropped
            raise
        except BaseException as error:
            self.ended(record, None, error)
            raise
        self.ended(record, value, None)
        return value

    def ended(self, record: Record, value: Any, error: BaseException | None) -> None:
        if record.kind in ("call", "refresh"):
            self.outcomes[record.process.number] += 1
            self.check_answer(record, value, error)
        elif error is None and record.kind != "touch":
            for key in self.keys_of(record):
                self.floor[key] = max(self.floor[key], record.began)

    def check_answer(self, record: Record, value: Answer, error: BaseException | None) -> None:
        if error is not None:
            assert not isinstance(error, CacheTimeoutError) or record.rules.on_wait_timeout == "raise"
            assert isinstance(error, (CacheTimeoutError, KeyboardInterrupt, asyncio.CancelledError)), error
            return
        if isinstance(value.error, asyncio.CancelledError):  # the leader of a load that was cancelled itself
            assert self.cancelled_flights
            return
        number = value.entry.value if value.entry is not None else value.error.args[0]
        assert self.order[number] >= record.floor, f"{record} is answered with what is of {self.order[number]}"

    def keys_of(self, record: Record) -> tuple[int, ...]:
        """The keys that a change or a refresh invalidates."""
        if record.kind == "tags":
            return (0,)
        return (0, 1) if record.kind.startswith("clear") else (record.key,)

    def loading(self, stepper: Stepper, frame: Frame) -> Execution:
        load: Load = stepper.pending
        record = load.invoke.record
        self.number += 1
        self.order[self.number] = self.tick
        led = frame.flight is not None
        if led and frame.begun is not None and not stepper.refreshes_behind:
            assert not self.is_usable(frame.begun.entry, record), "the store has it"
        nested = []
        if record.nested:
            inner = Record("call", record.nested[0], record.process, RULES["plain"], record.nested[1:])
            nested.append(self.request_flow(stepper, inner))
        execution = Execution(
            self.number, record, led, frame.began_at, frame.flight, frame.begun, Gives(self.number), nested
        )  # fmt: skip
        if led:
            for other in self.running:
                assert not self.is_second(execution, other), f"{execution} runs beside {other}"
            self.running.append(execution)
        return execution

    def is_second(self, one: Execution, other: Execution) -> bool:
        """Whether the other run, which is under way, should have been waited for."""
        if one.record.key != other.record.key:
            return False
        key, there = one.record.key, other.record.process
        if one.record.process is there:
            lost = other.begun is not None and other.begun.lease and self.lease_ended(other)
            return self.fenced[there.number, key] < min(self.flights[one.flight], self.flights[other.flight]) and not lost
        if not (one.begun and one.begun.lease and other.begun and other.begun.lease):
            return False
        first = min(one, other, key=lambda execution: execution.began)
        doomed = self.disturbed[key] > first.began or first.begun.generations[0] in self.given_up
        return not doomed and not self.lease_ended(first)

    def lease_ended(self, execution: Execution) -> bool:
        key = self.processes[0].space.stored(KEYS[execution.record.key].text)
        return self.clock() >= self.leases[key, execution.begun.lease]

    def is_usable(self, entry: Entry | None, record: Record) -> bool:
        if entry is None or not (entry.fresh_until is None or self.clock() < entry.fresh_until):
            return False
        names = [name for name, _ in entry.generations]
        stored = self.processes[0].space.stored(KEYS[record.key].text)
        alive = tuple(self.backend.generations(stored, names)) == tuple(generation for _, generation in entry.generations)
        return alive and (not entry.raised or bool(record.rules.errors))

    def loaded(self, execution: Execution) -> None:
        self.running = [other for other in self.running if other is not execution]

    def performed(self, stepper: Stepper, frame: Frame, effect: Call, reply: Any) -> None:
        verb, arguments = effect.verb, effect.arguments
        if verb == "begin":
            if reply.lease:
                self.leases[arguments[0], reply.lease] = self.clock() + LEASE_SECONDS
            elif frame.flight is None and arguments[1][0].startswith(b"n"):  # neither a load that is led nor a store
                key = key_of(arguments[0])
                self.refreshed[key] = max(self.refreshed[key], stepper.frames[0].record.began)
        elif verb == "revoke":
            names = b" ".join(arguments[0])
            for key, wanted in enumerate(KEYS):
                if (
                    names.startswith((b"n", b"f"))
                    or (names.startswith(b"t") and TAGS[key])
                    or names.endswith(wanted.text.encode())
                ):
                    self.disturbed[key] = self.tick
        elif verb == "end":
            self.given_up.update(arguments[1].generations[:1])
        elif verb in ("set", "commit", "replace", "delete"):
            self.changed(frame, verb, arguments, reply)

    def changed(self, frame: Frame, verb: str, arguments: Any, reply: Any) -> None:
        key = key_of(arguments[0])
        if verb == "commit" and not reply:
            given_up = frame.begun.generations[0] in self.given_up  # by a refresh beside it, say
            assert given_up or self.disturbed[key] > frame.began_at, "refused for nothing"
            return
        if reply is False and verb == "replace":
            return
        assert verb != "commit" or frame.began_at >= self.refreshed[key], "stored though a refresh has begun since"
        self.disturbed[key] = self.tick
        if verb in ("set", "commit"):
            number = arguments[1].value
            number = number[2][0] if arguments[1].raised else number
            self.order.setdefault(number, self.tick)
            assert self.order[number] >= self.floor[key], "an old value is stored"
            self.floor[key] = self.order[number]

    # -- what callers do

    def request_flow(self, stepper: Stepper | None, record: Record, *, awaits: bool | None = None) -> Any:
        def invoke() -> None:
            raise AssertionError("only the steppers run functions")

        invoke.record = record  # type: ignore[attr-defined]
        if awaits is None:
            awaits = isinstance(stepper, Task)
        request = Request(
            KEYS[record.key], invoke, record.process.counters, record.rules, awaits, tags=lambda: TAGS[record.key]
        )  # fmt: skip
        verb = refresh if record.kind == "refresh" else call
        return self.recorded(record, verb(record.process.space, request))

    def change_flow(self, record: Record) -> Any:
        space, key, counters = record.process.space, KEYS[record.key], record.process.space.counters[""]
        if record.kind == "delete":
            return delete(space, key, counters)
        if record.kind == "touch":
            return touch(space, key, MISSING, counters)
        if record.kind == "clear":
            return clear(space, "", counters)
        if record.kind == "clear function":
            return clear(space, "@f:", counters, "f", lambda text: text.startswith("@f:"))
        if record.kind == "tags":
            return invalidate_tags(space, ("tag",), counters)
        self.number += 1
        record.number = self.number
        return store(space, key, self.number, counters, ttl=TTL, tags=TAGS[record.key], digest=key.digest)

    # -- what happens

    @initialize(rules=st.lists(st.sampled_from(list(RULES)), min_size=1, max_size=2), keys=st.integers(1, 2))
    def narrow(self, rules: list[str], keys: int) -> None:
        """The fewer kinds there are, the more they meet."""
        self.rules, self.keys = rules, keys

    room = precondition(lambda self: len(self.live) < MOST_LIVE)

    @room
    @rule(
        process=st.integers(0, 1),
        key=st.integers(0, 1),
        kind=st.sampled_from((Thread, Task)),
        verb=st.sampled_from(("call", "call", "call", "refresh")),
        rules=st.integers(0, 1),
        nested=st.sampled_from(NESTED),
        times=st.sampled_from((0, 2, 5, ENOUGH)),
    )
    def call(
        self, process: int, key: int, kind: type[Stepper], verb: str, rules: int, nested: tuple[int, ...], times: int
    ) -> None:
        key, process = key % self.keys, process % self.processes_count
        chosen = RULES[self.rules[rules % len(self.rules)]]
        record = Record(verb, key, self.processes[process], chosen, tuple(key ^ inner for inner in nested))
        stepper = kind(self, record.process, self.request_flow(None, record, awaits=kind is Task))
        stepper.frames[0].record = record
        self.add(stepper, times)

    @room
    @rule(
        process=st.integers(0, 1),
        key=st.integers(0, 1),
        kind=st.sampled_from((Thread, Task)),
        change=st.sampled_from(CHANGES),
        times=st.sampled_from((0, 1, ENOUGH, ENOUGH)),
    )
    def change(self, process: int, key: int, kind: type[Stepper], change: str, times: int) -> None:
        record = Record(change, key % self.keys, self.processes[process % self.processes_count])
        self.add(kind(self, record.process, self.recorded(record, self.change_flow(record))), times)

    def add(self, stepper: Stepper, times: int) -> None:
        self.live.append(stepper)
        self.go(stepper, times)

    def able(self) -> list[Stepper]:
        return [stepper for stepper in self.live if not stepper.blocked]

    def at(self, kind: type) -> list[Stepper]:
        return [stepper for stepper in self.live if isinstance(stepper.pending, kind)]

    somebody = precondition(lambda self: self.able())

    @somebody
    @rule(who=st.integers(0, MOST_LIVE - 1), times=st.sampled_from((1, 1, 1, 2, 3)))
    def step(self, who: int, times: int) -> None:
        self.go(chosen(self.able(), who), times)

    @somebody
    @rule(who=st.integers(0, MOST_LIVE - 1))
    def finish(self, who: int) -> None:
        """As far as it goes without the others."""
        self.go(chosen(self.able(), who), ENOUGH)

    @precondition(lambda self: self.at(Call))
    @rule(who=st.integers(0, MOST_LIVE - 1))
    def hold(self, who: int) -> None:
        """The backend has done it, and the reply is under way."""
        chosen(self.at(Call), who).hold()

    def go(self, stepper: Stepper, times: int) -> None:
        for _ in range(times):
            if stepper.done or stepper.blocked:
                return
            self.move(stepper)
            if isinstance(stepper.pending, Pause):
                return

    @precondition(lambda self: self.at(Load))
    @rule(who=st.integers(0, MOST_LIVE - 1))
    def fail(self, who: int) -> None:
        stepper = chosen(self.at(Load), who)
        self.move(stepper, Gives(error=Boom(stepper.frames[-1].execution.number)))

    @precondition(lambda self: self.live)
    @rule(who=st.integers(0, MOST_LIVE - 1), after=st.booleans())
    def interrupt(self, who: int, after: bool) -> None:
        stepper = chosen(self.live, who)
        if isinstance(stepper, Task) and stepper.flight is not None:
            self.cancelled_flights.append(stepper.flight)
        self.halt(stepper, after=after)

    def halt(self, stepper: Stepper, *, after: bool = False) -> None:
        executions = [frame.execution for frame in stepper.frames]
        stepper.interrupt(after=after)
        self.after(stepper, executions)

    @precondition(lambda self: any(stepper.impatient for stepper in self.live))
    @rule(who=st.integers(0, MOST_LIVE - 1))
    def time_out(self, who: int) -> None:
        chosen([stepper for stepper in self.live if stepper.impatient], who).time_out()

    @rule(seconds=st.sampled_from((1.0, LEASE_SECONDS, TTL)), beats=st.booleans())
    def advance(self, seconds: float, beats: bool) -> None:
        if beats:
            for process in self.processes:
                kept, lost = process.heart.beat()
                self.leases |= dict.fromkeys(kept, self.clock() + LEASE_SECONDS) | dict.fromkeys(lost, 0.0)
        self.clock.advance(seconds)

    def move(self, stepper: Stepper, gives: Gives | None = None) -> None:
        executions = [frame.execution for frame in stepper.frames]
        try:
            stepper.step(gives)
        except BaseException:
            self.live.clear()  # what is left in the middle of a step cannot be taken to its end
            self.broken = True
            raise
        self.after(stepper, executions)

    def after(self, stepper: Stepper, executions: list[Any]) -> None:
        """Runs of the function whose flow has gone on are over."""
        for depth, execution in enumerate(executions):
            if execution is None:
                continue
            frame = stepper.frames[depth] if depth < len(stepper.frames) else None
            over = frame is None or frame.execution is not execution
            if over or (frame is stepper.frames[-1] and not isinstance(stepper.pending, Load)):
                self.loaded(execution)
                if frame is not None and frame.execution is execution:
                    frame.execution = None

    # -- the end

    def teardown(self) -> None:
        if self.broken:
            return
        self.drain()
        for process in self.processes:
            self.check_left(process)
        for key in range(len(KEYS)):
            self.check_next_calls(key)

    def drain(self) -> None:
        left = ENOUGH
        while self.live:
            moved = False
            for stepper in list(self.live):
                if not stepper.done and not stepper.blocked:
                    self.move(stepper)
                    moved, left = True, left - 1
            if not moved:
                impatient = [stepper for stepper in self.live if stepper.impatient]
                assert impatient, "everybody waits for ever"
                impatient[0].time_out()
            assert left > 0, "somebody never ends"

    def check_left(self, process: Process) -> None:
        flights = process.space.flights
        assert (flights._flights, flights._apart) == ({}, {})
        assert process.heart._held == {}
        for flight in self.flights:
            assert flight.future.done()
            assert flight._waits_for == []
            assert flight._waiting == 0
        stats = process.counters.snapshot()
        assert stats.calls == self.outcomes[process.number]

    def check_next_calls(self, key: int) -> None:
        """The first finds or stores what is not superseded, the second finds the same."""
        self.clock.advance(LEASE_SECONDS)  # those who were interrupted between getting a lease and the load
        answers = []
        for process in (self.processes[0], self.processes[-1]):
            loads = self.number
            record = Record("call", key, process, RULES["plain"])
            stepper = Thread(self, process, self.request_flow(None, record, awaits=False))
            self.live.append(stepper)
            while not stepper.done:
                self.move(stepper)
            found = self.backend.get(process.space.stored(KEYS[key].text))
            assert found is not None
            answers.append((found.value, self.number - loads))
        assert answers[0][0] == answers[1][0]
        assert answers[1][1] == 0


class TwoProcesses(Machine):
    """Two processes over one store, which elects who loads."""

    processes_count, elects = 2, True


MANY = settings(
    max_examples=2_000,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _played(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch)
    monkeypatch.setattr(_load, "_NESTED_PATIENCE", 0.2)


@pytest.mark.timeout(600)  # a failure is made small, which takes its time
@pytest.mark.parametrize("machine", [Machine, TwoProcesses])
def test_no_interleaving_gives_an_old_answer_or_leaves_anybody_waiting(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=MANY)


# -- by hand: what is rare among random interleavings


class ByHand(TwoProcesses):
    """Threads that are begun and moved by name."""

    def caller(self, process: int, rules: str = "plain") -> Stepper:
        record = Record("call", 0, self.processes[process], RULES[rules])
        return self.begun(record, self.request_flow(None, record, awaits=False))

    def changer(self, process: int, change: str) -> Stepper:
        record = Record(change, 0, self.processes[process])
        return self.begun(record, self.recorded(record, self.change_flow(record)))

    def begun(self, record: Record, flow: Any) -> Stepper:
        stepper = Thread(self, record.process, flow)
        self.live.append(stepper)
        return stepper

    def until(self, stepper: Stepper, verb: str | None = None) -> None:
        """Until the user's function, or this verb of the backend, is pending."""
        while not (isinstance(stepper.pending, Load) if verb is None else getattr(stepper.pending, "verb", "") == verb):
            self.move(stepper)

    def end(self, stepper: Stepper) -> None:
        """To its end, or as far as it goes without the others."""
        self.go(stepper, ENOUGH)


@pytest.mark.parametrize("change", ["delete", "store", "clear", "tags"])
def test_an_entry_that_is_invalidated_elsewhere_while_its_finder_lands_is_not_for_later_callers(change: str) -> None:
    world = ByHand()
    finder = world.caller(0)
    world.until(finder, "begin")  # its look found nothing
    world.end(world.caller(1))
    finder.step()  # begin: there is an entry by now
    world.end(world.changer(1, change))
    later = world.caller(0)
    world.end(later)
    world.end(finder)
    world.teardown()


@pytest.mark.parametrize("change", ["delete", "store", "clear", "tags"])
@pytest.mark.parametrize("rules", ["plain", "unstored", "errors"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("fenced", [False, True])
def test_what_a_load_gives_that_is_invalidated_elsewhere_is_not_for_later_callers(
    change: str, rules: str, fails: bool, fenced: bool
) -> None:
    world = ByHand()
    leader = world.caller(0, rules)
    world.until(leader)
    world.end(world.changer(1, change))
    later = world.caller(0, rules)
    world.end(later)
    if fenced:
        world.end(world.changer(0, change))
    world.move(leader, Gives(error=Boom(leader.frames[-1].execution.number)) if fails else None)
    world.end(leader)
    world.teardown()


@pytest.mark.parametrize("change", ["delete", "store", "clear", "tags"])
def test_an_invalidation_elsewhere_between_the_stores_reply_and_the_landing(change: str) -> None:
    world = ByHand()
    leader = world.caller(0)
    world.until(leader, "commit")
    leader.hold()
    world.end(world.changer(1, change))
    later = world.caller(0)
    world.end(later)
    world.end(leader)
    world.teardown()


@pytest.mark.parametrize("stops", ["fails", "is interrupted", "is not stored"])
@pytest.mark.parametrize("change", ["delete", "clear", "clear function"])
@pytest.mark.parametrize("elects", [False, True])
def test_the_end_of_an_invalidated_load_does_not_keep_the_next_one_from_being_stored(
    stops: str, change: str, elects: bool
) -> None:
    world = ByHand()
    world.processes[0].space.elects = elects
    old = world.caller(0, "unstored" if stops == "is not stored" else "plain")
    world.until(old)
    world.end(world.changer(0, change))
    new = world.caller(0)
    world.until(new)
    execution = old.frames[-1].execution
    if stops == "is interrupted":
        world.halt(old)
    else:
        world.move(old, Gives(error=Boom(execution.number)) if stops == "fails" else None)
    world.end(old)
    number = new.frames[-1].execution.number
    world.end(new)
    found = world.backend.get(new.space.stored(KEYS[0].text))
    assert found is not None
    assert found.value == number
    world.teardown()


def test_a_call_that_is_interrupted_while_it_computes_by_itself_is_counted_once() -> None:
    world = ByHand()
    leader, other = world.caller(0), world.caller(0, "waits, then computes")
    world.until(leader)
    world.end(other)
    other.time_out()
    world.halt(other)
    world.teardown()


def test_an_interrupted_load_is_not_waited_for_by_the_load_that_it_was_part_of() -> None:
    world = ByHand()
    record = Record("call", 0, world.processes[0], RULES["plain"], (1,))
    outer = world.begun(record, world.request_flow(None, record, awaits=False))
    world.until(outer)
    world.move(outer)
    world.until(outer)
    assert len(outer.frames) == 4
    world.halt(outer)
    world.teardown()


@pytest.mark.parametrize("why", ["invalidated", "fails", "is not stored"])
def test_the_next_process_does_not_wait_for_the_lease_of_a_load_that_gives_no_entry(why: str) -> None:
    world = ByHand()
    leader = world.caller(0, "unstored" if why == "is not stored" else "plain")
    world.until(leader)
    if why == "invalidated":
        world.end(world.changer(1, "delete"))
    else:
        world.move(leader, Gives(error=Boom(leader.frames[-1].execution.number)) if why == "fails" else None)
        world.end(leader)
    following = world.caller(1)
    while not isinstance(following.pending, Load):
        assert not isinstance(following.pending, Pause)
        world.move(following)
    world.teardown()


@pytest.mark.parametrize("rules", ["waits, then computes", "waits, then raises", "waits, then stale"])
def test_a_leader_waits_for_another_process_no_longer_than_it_was_told(rules: str) -> None:
    world = ByHand()
    loading = world.caller(0)
    world.until(loading)
    began = world.clock()
    waiting = world.caller(1, rules)
    while not waiting.done and not isinstance(waiting.pending, Load):
        world.move(waiting)
    assert 1.0 <= world.clock() - began < 1.1
    assert waiting.done is (rules == "waits, then raises")
    world.teardown()


@pytest.mark.parametrize("change", ["delete", "clear"])
def test_a_fenced_load_is_not_stored_where_the_backend_does_not_coordinate(change: str) -> None:
    world = ByHand()
    space = world.processes[0].space
    space.coordinates = space.elects = False
    record = Record("call", 1, world.processes[0])
    leader = world.begun(record, world.request_flow(None, record, awaits=False))
    world.until(leader)
    world.end(
        world.begun(record, delete(space, KEYS[1], world.processes[0].counters))
        if change == "delete"
        else world.changer(0, change)
    )
    world.end(leader)
    assert world.backend.scan(b"") == []


def test_a_refresh_behind_that_fails_leaves_the_old_value() -> None:
    world = ByHand()
    world.end(world.caller(0, "stale errors"))
    world.clock.advance(TTL)
    world.end(world.caller(0, "stale errors"))  # gets the old value, and a refresh begins
    (refreshing,) = world.live
    world.until(refreshing)
    world.move(refreshing, Gives(error=Boom(refreshing.frames[-1].execution.number)))
    world.end(refreshing)
    world.end(world.caller(0, "stale errors"))
    assert world.processes[0].counters.snapshot().stale_hits == 2
    world.teardown()


def test_loads_of_two_processes_that_wait_for_each_other_end() -> None:
    world = ByHand()
    for process in (0, 1):
        record = Record("call", process, world.processes[process], RULES["plain"], (1 - process,))
        world.until(world.begun(record, world.request_flow(None, record, awaits=False)))
    steps = 0
    while world.live:
        for process in world.processes:
            process.heart.beat()  # their leases never end by themselves
        for stepper in list(world.live):
            world.move(stepper)
        steps += 1
        assert steps < 1_000
