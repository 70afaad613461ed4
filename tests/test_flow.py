"""The cold path, stepped by hand: effects are answered in an order of the test's choosing."""

from __future__ import annotations

from typing import Any

import pytest

from codomyrmex_cache import InMemoryBackend
from codomyrmex_cache._effects import Answer, Ask, Call, Lead, Load, Now, Request, Wait
from codomyrmex_cache._flight import Abandoned, Flight, Landed
from codomyrmex_cache._flow import call
from codomyrmex_cache._payload import ObjectPayloads
from codomyrmex_cache._space import Space
from codomyrmex_cache._verbs import clear, delete, refresh, store
from codomyrmex_cache.keys import Key
from codomyrmex_cache.stats import Counters
from codomyrmex_cache.testing import FakeClock


class Stepper:
    """One caller, moved on effect by effect."""

    def __init__(self, space: Space, flow: Any) -> None:
        self.space, self.stack, self.result = space, [flow], None
        self.pending: Any = next(flow)

    @property
    def done(self) -> bool:
        return not self.stack

    def step(self, *, fails: Exception | None = None, gives: Any = None) -> None:
        """Carry out the pending effect; `fails` or `gives` stand for the user's function."""
        effect, reply = self.pending, gives
        if isinstance(effect, Lead):
            effect.flight.thread = id(self)  # each stepper stands for a thread of its own
            self.stack.append(effect.flow)
            self.pending = next(effect.flow)
            return
        if isinstance(effect, Call):
            reply = getattr(self.space.backend, effect.verb)(*effect.arguments)
        elif isinstance(effect, Now):
            reply = self.space.clock()
        elif isinstance(effect, Ask):
            reply = effect.question()
        elif isinstance(effect, Wait):
            assert effect.flight.future.done(), "would block"
            reply = effect.flight.future.result()
        self.resume(reply, fails)

    def resume(self, reply: Any, error: BaseException | None = None) -> None:
        """Answer the pending effect with this."""
        while self.stack:
            try:
                self.pending = self.stack[-1].throw(error) if error else self.stack[-1].send(reply)
                return
            except StopIteration as end:
                self.stack.pop()
                self.result, reply, error = end.value, end.value, None
            except BaseException as raised:
                self.stack.pop()
                reply, error = None, raised
        if error:
            raise error

    def until(self, kind: type) -> None:
        """Go on until an effect of this kind is pending."""
        while not isinstance(self.pending, kind):
            assert not self.done
            self.step()

    def finish(self) -> Any:
        while not self.done:
            self.step()
        return self.result

    def throw(self, error: BaseException) -> None:
        """What a cancellation does: the pending effect raises."""
        self.resume(None, error)


@pytest.fixture
def space(clock: FakeClock) -> Space:
    return Space("stepped", InMemoryBackend(), ObjectPayloads(), clock, "bypass", {"": Counters()})


KEY = Key("k", b"digest")


def _caller(space: Space, counters: Counters) -> Stepper:
    return Stepper(space, call(space, Request(KEY, lambda: None, counters)))


def test_two_callers_one_load(space: Space) -> None:
    counters = Counters()
    leader, follower = _caller(space, counters), _caller(space, counters)
    leader.until(Load)
    follower.until(Wait)
    leader.step(gives=["value"])
    one, other = leader.finish(), follower.finish()
    assert (one.result(), other.result()) == (["value"], ["value"])
    assert one.result() is not other.result()
    stats = counters.snapshot()
    assert (stats.misses, stats.coalesced, stats.loads, stats.calls) == (1, 1, 1, 2)


def test_a_caller_between_anothers_look_and_its_flight_finds_the_stored_value(space: Space) -> None:
    counters = Counters()
    late, early = _caller(space, counters), _caller(space, counters)
    found = space.backend.get(*late.pending.arguments)  # looks now, and is told later
    early.until(Load)
    early.step(gives=1)
    early.finish()
    late.resume(found)
    assert late.finish().result() == 1
    assert counters.snapshot().loads == 1
    assert counters.snapshot().hits == 1


def test_the_leaders_exception_reaches_each_follower_as_its_own(space: Space) -> None:
    leader, follower = _caller(space, Counters()), _caller(space, Counters())
    leader.until(Load)
    follower.until(Wait)
    error = KeyError("x")
    leader.step(fails=error)
    own, copy = leader.finish(), follower.finish()
    assert own == Answer(None, error)
    assert type(copy.error) is KeyError
    assert copy.error is not error
    assert copy.error.args == ("x",)
    assert list(space.backend.scan(b"")) == []


def test_a_cancelled_leader_leaves_the_key_to_the_next(space: Space) -> None:
    leader, follower = _caller(space, Counters()), _caller(space, Counters())
    leader.until(Load)
    follower.until(Wait)
    leader.throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        leader.finish()
    follower.until(Load)
    follower.step(gives=2)
    assert follower.finish().result() == 2


@pytest.mark.parametrize("verb", ["delete", "set"])
def test_an_invalidation_during_the_load_wins(space: Space, verb: str) -> None:
    leader, follower = _caller(space, Counters()), _caller(space, Counters())
    leader.until(Load)
    follower.until(Wait)
    change = delete(space, KEY, Counters()) if verb == "delete" else store(space, KEY, "explicit", Counters())
    Stepper(space, change).finish()
    after = _caller(space, Counters())
    leader.step(gives="old")
    assert (leader.finish().result(), follower.finish().result()) == ("old", "old")
    if verb == "set":
        assert after.finish().result() == "explicit"
    else:
        after.until(Load)  # does not get what was computed before the invalidation
        after.step(gives="new")
        assert after.finish().result() == "new"


def test_a_flight_ends_once(space: Space) -> None:
    flight = space.flights.join(Flight(b"k"))
    space.flights.end(flight, Abandoned(RuntimeError()))
    space.flights.end(flight, Landed(None, None))  # type: ignore[arg-type]
    assert isinstance(flight.future.result(), Abandoned)


def test_an_unstorable_result_is_not_shared_either(space: Space) -> None:
    leader, follower = _caller(space, Counters()), _caller(space, Counters())
    leader.until(Load)
    follower.until(Wait)
    leader.step(gives=iter([1]))
    leader.finish()
    follower.until(Load)
    follower.step(gives=iter([2]))
    assert list(follower.finish().result()) == [2]


def test_a_flight_that_an_interruption_left_behind_holds_nobody_up(space: Space) -> None:
    space.flights.join(Flight(space.stored(KEY.text)))  # this thread led it and is not inside it any more
    caller = _caller(space, Counters())
    caller.until(Load)
    caller.step(gives=1)
    assert caller.finish().result() == 1


def test_an_interruption_before_the_load_leaves_no_flight(space: Space) -> None:
    caller = _caller(space, Counters())
    caller.until(Lead)
    with pytest.raises(KeyboardInterrupt):
        caller.throw(KeyboardInterrupt())
    assert space.flights._flights == {}


@pytest.mark.parametrize("verb", ["delete", "clear", "set"])
def test_an_invalidation_during_a_refresh_wins(space: Space, verb: str) -> None:
    counters = Counters()
    refreshing = Stepper(space, refresh(space, Request(KEY, lambda: None, counters)))
    refreshing.until(Load)
    change = {
        "delete": lambda: delete(space, KEY, counters),
        "clear": lambda: clear(space, "", counters),
        "set": lambda: store(space, KEY, "explicit", counters),
    }[verb]()
    Stepper(space, change).finish()
    refreshing.step(gives="old")
    assert refreshing.finish().result() == "old"
    found = space.backend.get(space.stored(KEY.text))
    assert (found and found.value) == ("explicit" if verb == "set" else None)


def test_an_invalidation_during_the_write_wins(space: Space) -> None:
    leader = _caller(space, Counters())
    leader.until(Load)
    leader.step(gives="old")
    while not (isinstance(leader.pending, Call) and leader.pending.verb == "commit"):
        leader.step()
    Stepper(space, delete(space, KEY, Counters())).finish()
    assert leader.finish().result() == "old"
    assert list(space.backend.scan(b"")) == []


def test_an_argument_that_changes_before_the_body_starts_is_not_stored(space: Space) -> None:
    counters = Counters()
    caller = Stepper(space, call(space, Request(KEY, lambda: None, counters, unmoved=lambda: False)))
    caller.until(Load)
    caller.step(gives="of other arguments")
    assert caller.finish().result() == "of other arguments"
    assert list(space.backend.scan(b"")) == []
    assert counters.snapshot().calls == 1
