"""Two programs with a `TieredBackend` each over one store, in every interleaving of their steps, held against a model.

Each step that a verb takes, at L1 or at L2, is taken on demand, so other verbs come between.  The model is L2's history: what
an answer may be is what L2 held, at the earliest, `bound` seconds before the verb began, and not before the last write to the
key that the same program had completed by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from codomyrmex_cache import Entry, InMemoryBackend, TieredBackend
from codomyrmex_cache.backends import _stamps
from codomyrmex_cache.backends.base import Begun
from codomyrmex_cache.testing import FakeClock
from tests.test_conformance import ToyBackend

BOUND = 5.0
KEYS = (b"1:a:x", b"1:a:y")
NAMES = (b"n1:a:",)
READS = ("get", "has", "get_many", "get_values", "look", "look for tags", "begin")
WRITES = ("set", "set_many", "delete", "delete_many", "clear", "commit", "replace", "discard", "replace nothing")
MOST_PENDING = 5
OFTEN_ONE = st.sampled_from([0, 0, 0, 1])  # most of what goes wrong takes two verbs of one program on one key
OFTEN_X = st.sampled_from([*KEYS[:1] * 3, *KEYS])


class Objects(InMemoryBackend):
    """With the verbs for many keys."""

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        return {key: entry for key in keys if (entry := self.get(key)) is not None}

    def set_many(self, entries: Mapping[bytes, Entry]) -> None:
        for key, entry in entries.items():
            self.set(key, entry)

    def delete_many(self, keys: Sequence[bytes]) -> int:
        return sum(map(self.delete, keys))


class Bytes(Objects):
    """For bytes, which are compared as such, and with a look."""

    payload = "bytes"  # type: ignore[assignment]

    def look(self, key: bytes, names: Sequence[bytes], seconds: float, tagged: bool) -> bytes | Begun:
        entry = self.get(key)
        return self.begin(key, names, 0.0) if entry is None or tagged else entry.value

    def get_values(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return {key: entry.value for key, entry in self.get_many(keys).items()}

    def replace(self, key: bytes, old: Entry | None, new: Entry, fence: bool) -> bool:
        return super().replace(key, self._as_it_is(key, old), new, fence)

    def discard(self, key: bytes, old: Entry) -> bool:
        return super().discard(key, self._as_it_is(key, old) or old)

    def _as_it_is(self, key: bytes, old: Entry | None) -> Entry | None:
        found = self.get(key)
        return found if found is not None and old is not None and found.value == old.value else old


class State(NamedTuple):
    """What L2 holds under a key from a moment on."""

    value: bytes | None
    since: float


class Pending:
    """A verb that is under way."""

    def __init__(
        self, program: int, verb: str, keys: tuple[bytes, ...], flow: Any, started: float, floor: dict[bytes, int]
    ) -> None:
        self.program, self.verb, self.keys, self.flow = program, verb, keys, flow
        self.started, self.floor = started, floor
        self.written: dict[bytes, int] = {}
        self.step = next(flow)
        self.replies: list[Any] = []  # of the step, if it is done and not told yet


class Tiers(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(["objects", "bytes", "bytes over one shared store"]))
    def wire(self, kind: str) -> None:
        self.clock = FakeClock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(_stamps, "time", SimpleNamespace(monotonic=self.clock))  # so that both programs have one clock
        self.far = Objects() if kind == "objects" else Bytes()
        shared = ToyBackend() if kind == "bytes over one shared store" else None
        self.nears = [shared or InMemoryBackend() for _ in range(2)]
        self.programs = [TieredBackend(near, self.far, bound=BOUND, clock=self.clock) for near in self.nears]
        self.history = {key: [State(None, self.clock())] for key in KEYS}
        self.floors = [dict.fromkeys(KEYS, 0) for _ in range(2)]
        self.pending: list[Pending] = []
        self.got: list[dict[bytes, Entry]] = [{}, {}]
        self.begun: list[dict[bytes, Begun]] = [{}, {}]
        self.numbers = 0

    # -- what happens

    @precondition(lambda self: len(self.pending) < MOST_PENDING)
    @rule(program=OFTEN_ONE, verb=st.sampled_from(READS), key=OFTEN_X, alone=st.booleans())
    def read(self, program: int, verb: str, key: bytes, alone: bool) -> None:
        tiers = self.programs[program]
        arguments: dict[str, Any] = {
            "get": (key,), "has": (key,), "get_many": (KEYS,), "get_values": (KEYS,), "begin": (key, NAMES, 0.0),
            "look": (key, NAMES, 0.0, False), "look for tags": (key, NAMES, 0.0, True),
        }  # fmt: skip
        if hasattr(tiers, verb.split()[0]):
            keys = KEYS if verb in ("get_many", "get_values") else (key,)
            self._start(program, verb, keys, getattr(tiers, f"_{verb.split()[0]}")(*arguments[verb]), alone=alone)

    @precondition(lambda self: len(self.pending) < MOST_PENDING)
    @rule(program=OFTEN_ONE, verb=st.sampled_from(WRITES), key=OFTEN_X, alone=st.booleans())
    def write(self, program: int, verb: str, key: bytes, alone: bool) -> None:
        new, old, begun = self._entry(), self.got[program].get(key), self.begun[program].pop(key, None)
        arguments: dict[str, Any] = {
            "set": (key, new),
            "set_many": ({each: self._entry() for each in KEYS},),
            "delete": (key,),
            "delete_many": (KEYS,),
            "clear": (b"1:a:",),
            "commit": begun and (key, new, NAMES, begun),
            "replace": old and (key, old, new, True),
            "discard": old and (key, old),
            "replace nothing": (key, None, new, False),
        }
        if arguments[verb]:
            keys = KEYS if verb in ("set_many", "delete_many", "clear") else (key,)
            flow = self.programs[program]._written(verb.split()[0], arguments[verb], {})
            self._start(program, verb, keys, flow, alone=alone)

    @precondition(lambda self: self.pending)
    @rule(numbers=st.lists(st.integers(0, MOST_PENDING), min_size=1, max_size=6))
    def step(self, numbers: list[int]) -> None:
        for number in numbers:
            if self.pending:
                self._step(self.pending[number % len(self.pending)])
                self.copies_are_as_new_as_they_must_be()

    @precondition(lambda self: self.pending and self.numbers % 5 == 4)
    @rule(number=st.integers(0, MOST_PENDING), done=st.booleans())
    def interrupt(self, number: int, done: bool) -> None:
        """What was to be done may have been, or not."""
        pending = self.pending.pop(number % len(self.pending))
        if done and not pending.replies:
            self._perform(pending)
        pending.flow.close()

    @rule(seconds=st.sampled_from([0.0, 0.5, BOUND - 1, BOUND]), program=st.integers(0, 1), key=st.sampled_from(KEYS))
    def wait_or_evict(self, seconds: float, program: int, key: bytes) -> None:
        self.clock.advance(seconds)
        if not seconds:
            self.nears[program].delete(key)

    @precondition(lambda self: self.numbers % 7 == 6)
    @rule(program=st.integers(0, 1), forked=st.booleans())
    def restart(self, program: int, forked: bool) -> None:
        """Another process, with the old one's L1; what the old one had begun comes to no end, or to one that is its own."""
        if forked:
            self.programs[program].after_fork()
        else:
            self.programs[program] = TieredBackend(self.nears[program], self.far, bound=BOUND, clock=self.clock)
        for each in [each for each in self.pending if each.program == program]:
            self.pending.remove(each)
            each.flow.close()
        self.floors[program] = dict.fromkeys(KEYS, 0)

    def teardown(self) -> None:
        while getattr(self, "pending", None):
            self._step(self.pending[0])
        if hasattr(self, "patch"):
            for program in range(2):
                self.read(program, "get_many", KEYS[0], alone=True)
            self.patch.undo()

    # -- and what may come of it

    def _entry(self) -> Entry:
        self.numbers += 1
        return Entry(b"%d" % self.numbers, created=self.clock())

    def _start(self, program: int, verb: str, keys: tuple[bytes, ...], flow: Any, *, alone: bool) -> None:
        pending = Pending(program, verb, keys, flow, self.clock(), dict(self.floors[program]))
        self.pending.append(pending)
        while alone and pending in self.pending:
            self._step(pending)

    def _step(self, pending: Pending) -> None:
        if not pending.replies:
            pending.replies.append(self._perform(pending))
            return
        try:
            pending.step = pending.flow.send(pending.replies.pop())
        except StopIteration as end:
            self.pending.remove(pending)
            self._ended(pending, end.value)

    def _perform(self, pending: Pending) -> Any:
        step = pending.step
        if step.near:
            return self.programs[pending.program]._near(step)
        reply = getattr(self.far, step.verb)(*step.arguments, **step.named)
        self._note(pending)
        return reply

    def _note(self, pending: Pending) -> None:
        for key, states in self.history.items():
            entry = self.far.get(key)
            value = None if entry is None else entry.value
            if value != states[-1].value:
                states.append(State(value, self.clock()))
            pending.written[key] = len(states) - 1

    def _ended(self, pending: Pending, result: Any) -> None:
        key, program = pending.keys[0], pending.program
        assert isinstance(result, Begun) or pending.verb not in ("look for tags", "begin")
        if pending.verb not in READS:
            for each in pending.keys:
                self.floors[program][each] = max(self.floors[program][each], pending.written[each])
        elif pending.verb in ("get_many", "get_values"):
            for each in KEYS:
                self._judge(pending, each, result.get(each))
        elif pending.verb == "has":
            assert result in {value is not None for value in self._allowed(pending, key)}
        elif isinstance(result, Begun):
            self._judge(pending, key, result.entry)
            self.begun[program][key] = result
        else:
            self._judge(pending, key, result)

    def _judge(self, pending: Pending, key: bytes, found: Entry | bytes | None) -> None:
        entry = Entry(found) if isinstance(found, bytes) else found
        allowed = self._allowed(pending, key)
        assert (None if entry is None else entry.value) in allowed, (
            f"{pending.verb} of program {pending.program}: {entry}, {allowed}"
        )
        if entry is not None:
            self.got[pending.program][key] = entry

    def _allowed(self, pending: Pending, key: bytes) -> list[bytes | None]:
        states = self.history[key]
        until = [state.since for state in states[1:]] + [float("inf")]
        recent = [number for number, end in enumerate(until) if end > pending.started - BOUND]
        return [states[number].value for number in recent if number >= pending.floor[key]]

    @invariant()
    def copies_are_as_new_as_they_must_be(self) -> None:
        for number, tiers in enumerate(getattr(self, "programs", ())):
            now = Pending(number, "get", KEYS, iter([None]), self.clock(), self.floors[number])
            for key in KEYS:
                entry = tiers._opened(key, self.nears[number].get(key))
                if entry is not None:
                    self._judge(now, key, entry)

    @invariant()
    def copies_end(self) -> None:
        """No write that is over, or was interrupted, keeps L1 from being used."""
        if getattr(self, "pending", None) == []:
            assert [sum(each._stamps._writes) for each in self.programs] == [0, 0]


@pytest.mark.timeout(110)
def test_no_interleaving_gives_an_old_answer() -> None:
    run_state_machine_as_test(Tiers, settings=settings(max_examples=400, stateful_step_count=50, deadline=None))


# The rarest of what it might find, for sure.


def test_of_two_writes_at_once_it_does_not_matter_which_begins_or_ends_last() -> None:
    far = ToyBackend()
    tiers = TieredBackend(InMemoryBackend(), far)
    one, other = (tiers._written("set", (b"k", Entry(value)), {}) for value in (b"one", b"other"))
    for step in [next(one), next(other)][::-1]:
        far.set(*step.arguments)
    for writing in (one, other):
        tiers._near(writing.send(None))
    assert tiers.get(b"k") == Entry(b"one")


def test_a_begin_that_is_overtaken_brings_nothing_back() -> None:
    far = InMemoryBackend()
    tiers = TieredBackend(InMemoryBackend(), far)
    far.set(b"1:a:k", Entry("old"))
    beginning = tiers._begin(b"1:a:k", NAMES, 0.0)
    begun = far.begin(*next(beginning).arguments)
    tiers.delete(b"1:a:k")
    tiers._near(beginning.send(begun))
    assert begun.entry == Entry("old")
    assert tiers.get(b"1:a:k") is None
