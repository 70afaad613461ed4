"""The short way of misses in memory: nobody can tell it from the long one, whoever asks what and when."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from codomyrmex_cache import MISSING, CacheManager, Entry, InMemoryBackend, _bare, cached
from codomyrmex_cache._bare import Bare
from codomyrmex_cache._front import Front
from codomyrmex_cache._near_cells import NearCells, Stamp
from codomyrmex_cache.backends._eviction import Eviction
from codomyrmex_cache.backends.in_memory import Budget, Cell
from codomyrmex_cache.testing import FakeClock

VERSIONS: dict[Any, int] = {}
RUNS: list[Any] = []
HOOKS: list[Callable[[Any], object]] = []
"""Globals, since a function that closes over something has a key that is made anew for each call, and no short way."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    VERSIONS.clear()
    RUNS.clear()
    HOOKS.clear()


@pytest.fixture
def manager() -> Iterator[CacheManager]:
    manager = CacheManager()
    yield manager
    manager.close()


def value_of(x: Any) -> tuple[Any, int]:
    RUNS.append(x)
    found = x, VERSIONS.get(x, 0)
    for hook in list(HOOKS):
        hook(x)
    return found


def bare_of(function: Any) -> Bare | None:
    return function.stats.__self__.bare  # type: ignore[no-any-return]


def made(manager: CacheManager, **options: Any) -> Any:
    """The function under test, with a short way."""
    function = cached(options.pop("name", "x"), manager=manager, **options)(value_of)
    assert bare_of(function) is not None
    return function


def wait_for(function: Any, count: int) -> None:
    """Polling, in a load, until so many others wait for it."""
    (flight,) = bare_of(function).loading.values()  # type: ignore[union-attr]
    deadline = time.monotonic() + 30
    while flight._waiting < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- what it is for


def test_calls_alone_need_no_key(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    function = made(manager, ttl=60)
    monkeypatch.setattr("codomyrmex_cache.keys.Keyer.key", None)
    for _ in range(3):
        assert [function(x) for x in (1, True, 1.5, "a", None)] == [(1, 0), (True, 0), (1.5, 0), ("a", 0), (None, 0)]
    stats = function.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.sets, stats.size) == (10, 5, 5, 5, 5)
    assert manager.stats("x").size == 5
    assert stats.seconds_saved > 0.0


QUESTIONS: dict[str, Callable[[Any], object]] = {
    "peek": lambda f: f.peek(1) == (1, 0),
    "contains": lambda f: f.contains(1) and not f.contains(9),
    "entry": lambda f: f.entry(1).value == (1, 0) and f.entry(1).ttl == 60.0 and f.entry(9) is None,
    "explain": lambda f: f.explain(1).outcome == "hit" and f.explain(9).outcome == "miss",
    "keys": lambda f: sorted(f.cache.keys()) == sorted(f.key(x) for x in (1, 2, "a")),
    "get": lambda f: f.cache.get(f.key(1)) == (1, 0),
    "has": lambda f: f.cache.has(f.key(1)) and f.key(9) not in f.cache,
    "get_many": lambda f: f.cache.get_many([f.key(2), f.key(9)]) == {f.key(2): (2, 0)},
    "touch": lambda f: f.cache.touch(f.key(1), ttl=60),
    "limit_memory": lambda f: f.stats().size == 3,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_whoever_asks_finds_everything(manager: CacheManager, name: str) -> None:
    function = made(manager, ttl=60)
    for x in (1, 2, "a"):
        function(x)
    if name == "limit_memory":
        manager.limit_memory(10**9)
    assert QUESTIONS[name](function)
    assert [function(x) for x in (1, 2, "a")] == [(1, 0), (2, 0), ("a", 0)]
    assert (RUNS, function.stats().hits) == ([1, 2, "a"], 3)
    assert function(3) == (3, 0)
    assert function.peek(3) == (3, 0)


def test_what_is_known_of_an_entry_is_what_the_long_way_would_say(manager: CacheManager) -> None:
    times = []
    for version, way in enumerate(("short", "long")):
        function = cached("x", ttl=60, manager=manager, version=version)(value_of)
        if way == "long":
            assert function.peek(1) is MISSING
        function(1)
        entry = function.entry(1)
        assert entry is not None
        times.append((entry.ttl, entry.value, entry.shared, entry.tags, len(entry.digest), [name for name, _ in entry.parts]))
        assert abs(entry.created - time.time()) < 5
    assert times[0] == times[1]


CHANGES: dict[str, Callable[[Any], object]] = {
    "invalidate": lambda f: f.invalidate(1),
    "clear": lambda f: f.clear(),
    "refresh": lambda f: f.refresh(1),
    "seed": lambda f: f.seed((1, 1), 1),
    "delete": lambda f: f.cache.delete(f.key(1)),
    "delete_many": lambda f: f.cache.delete_many([f.key(1)]),
    "set": lambda f: f.cache.set(f.key(1), (1, 1)),
    "clear all": lambda f: f.cache.clear(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_an_entry_is_heeded(manager: CacheManager, name: str) -> None:
    function = made(manager)
    assert [function(1), function(1)] == [(1, 0), (1, 0)]
    VERSIONS[1] = 1
    CHANGES[name](function)
    assert [function(1), function(1)] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_an_entry_during_its_load_wins(manager: CacheManager, name: str) -> None:
    """From another thread, as from within the load `refresh` would load inside of it."""
    function = made(manager)
    HOOKS.append(lambda x: (HOOKS.clear(), VERSIONS.update({1: 1}), in_a_thread(lambda: CHANGES[name](function))))
    assert function(1) == (1, 0)
    assert [function(1), function(1)] == [(1, 1), (1, 1)]


def in_a_thread(act: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(act).result(30)


# -- with a model


class Machine(RuleBasedStateMachine):
    """Calls, control methods, the direct API, a second decoration and time, in any order: always the current version, and a hit
    where the model knows an entry and nothing had to make room."""

    @initialize(ttl=st.sampled_from([None, 10]), bound=st.sampled_from([3, 100]))
    def begin(self, ttl: float | None, bound: int) -> None:
        self.clock = FakeClock()
        self.manager = CacheManager(clock=self.clock)
        self.ttl, self.bound = ttl, bound
        self.function = cached("x", ttl, manager=self.manager, max_entries=bound)(value_of)
        self.stored: dict[int, tuple[int, float]] = {}
        VERSIONS.clear()

    def teardown(self) -> None:
        VERSIONS.clear()
        RUNS.clear()

    def alive(self, x: int) -> bool:
        return x in self.stored and (self.ttl is None or self.clock() < self.stored[x][1] + self.ttl)

    @rule(x=st.integers(0, 6), times=st.integers(1, 3))
    def call(self, x: int, times: int) -> None:
        for _ in range(times):
            RUNS.clear()
            assert self.function(x) == (x, VERSIONS.get(x, 0))
            if self.bound == 100:
                assert bool(RUNS) is not self.alive(x)
            if RUNS:
                self.stored[x] = VERSIONS.get(x, 0), self.clock()

    @rule(x=st.integers(0, 6), how=st.sampled_from(["invalidate", "delete", "clear", "refresh", "seed"]))
    def change(self, x: int, how: str) -> None:
        VERSIONS[x] = VERSIONS.get(x, 0) + 1
        if how == "clear":
            self.function.clear()
            self.stored.clear()
        elif how in ("refresh", "seed"):
            self.function.refresh(x) if how == "refresh" else self.function.seed((x, VERSIONS[x]), x)
            self.stored[x] = VERSIONS[x], self.clock()
        else:
            self.function.invalidate(x) if how == "invalidate" else self.function.cache.delete(self.function.key(x))
            self.stored.pop(x, None)

    @rule(x=st.integers(0, 6))
    def ask(self, x: int) -> None:
        found = self.function.peek(x)
        assert found in (MISSING, (x, VERSIONS.get(x, 0)))
        if self.bound == 100:
            assert (found is not MISSING) is self.alive(x)

    @rule()
    def decorate_again(self) -> None:
        self.function = cached("x", self.ttl, manager=self.manager)(value_of)

    @rule(seconds=st.sampled_from([1, 9, 11]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(bytes_=st.sampled_from([None, 10**9]))
    def limit(self, bytes_: int | None) -> None:
        self.manager.limit_memory(bytes_)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "function"):
            stats = self.function.stats()
            assert stats.size is not None
            assert stats.size <= self.bound
            if self.bound == 100:
                assert stats.size <= len(self.stored)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)


# -- threads


def test_one_run_for_all_who_call_at_once(manager: CacheManager) -> None:
    function = made(manager)
    everybody = threading.Barrier(40)

    def call(_: int) -> Any:
        everybody.wait()
        return function(1)

    HOOKS.append(lambda x: wait_for(function, 39))
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(call, range(40))) == [(1, 0)] * 40
    stats = function.stats()
    assert (RUNS, stats.misses, stats.coalesced) == ([1], 1, 39)
    assert bare_of(function).open  # type: ignore[union-attr]


def test_an_exception_goes_to_all_who_wait_and_is_not_kept(manager: CacheManager) -> None:
    function = made(manager)
    everybody = threading.Barrier(10)

    def fail(x: Any) -> None:
        wait_for(function, 9)
        raise ValueError(x)

    def call(_: int) -> str:
        everybody.wait()
        with pytest.raises(ValueError, match="1") as raised:
            function(1)
        return str(raised.value)

    HOOKS.append(fail)
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(call, range(10))) == ["1"] * 10
    stats = function.stats()
    assert (RUNS, stats.misses, stats.coalesced, stats.load_errors) == ([1], 1, 9, 1)
    HOOKS.clear()
    assert [function(1), function(1)] == [(1, 0), (1, 0)]
    assert RUNS == [1, 1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interruption_is_the_leaders_alone(manager: CacheManager, kind: type[BaseException]) -> None:
    function = made(manager)
    answers: list[Any] = []

    def interrupt(x: Any) -> None:
        HOOKS.clear()
        thread.start()
        wait_for(function, 1)
        raise kind

    thread = threading.Thread(target=lambda: answers.append(function(1)))
    HOOKS.append(interrupt)
    with pytest.raises(kind):
        function(1)
    thread.join(30)
    assert answers == [(1, 0)]
    assert function(1) == (1, 0)
    assert RUNS == [1, 1]


def test_no_thread_is_given_what_an_invalidation_has_ended(manager: CacheManager) -> None:
    """While the short way is open, when it closes, and after it."""
    for round_ in range(60):
        function = cached("x", manager=manager, version=round_)(value_of)
        known, ended, problems = [0], threading.Event(), []

        def read(
            function: Any = function, known: list[int] = known, ended: Any = ended, problems: list[Any] = problems
        ) -> None:
            while not ended.is_set():
                least = known[0]
                if (got := function(1)[1]) < least:
                    problems.append((got, least))

        VERSIONS[1] = 0
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(1, 8):
            VERSIONS[1] = version
            (function.clear if version % 3 == 0 else lambda f=function: f.invalidate(1))()
            known[0] = version
        ended.set()
        for thread in threads:
            thread.join(30)
        assert problems == []
        assert function(1) == (1, 7)
        RUNS.clear()


@pytest.mark.parametrize("name", CHANGES)
def test_nobody_joins_a_load_that_began_before_a_change(manager: CacheManager, name: str) -> None:
    function = made(manager)
    running, go_on = threading.Event(), threading.Event()

    def wait(x: Any) -> None:
        HOOKS.clear()
        running.set()
        assert go_on.wait(30)

    HOOKS.append(wait)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(function, 1)
        assert running.wait(30)
        VERSIONS[1] = 1
        CHANGES[name](function)
        assert function(1) == (1, 1)
        go_on.set()
        assert first.result(30) == (1, 0)
        assert function(1) == (1, 1)


def test_a_load_under_way_is_for_who_waits_when_somebody_asks(manager: CacheManager) -> None:
    function = made(manager)
    bare = bare_of(function)
    assert bare is not None
    running, go_on = threading.Event(), threading.Event()
    HOOKS.append(lambda x: (running.set(), go_on.wait(30)))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(function, 1)
        assert running.wait(30)
        follower = pool.submit(function, 1)
        wait_for(function, 1)
        assert function.peek(1) is MISSING
        assert not bare.open
        HOOKS.clear()
        go_on.set()
        assert [first.result(30), follower.result(30)] == [(1, 0)] * 2
    assert (RUNS, function.stats().coalesced) == ([1], 1)
    assert [function(1), function(1)] == [(1, 0), (1, 0)]
    assert RUNS == [1, 1], "what was under way when somebody asked is not stored"


def test_rings_over_threads_compute_instead_of_waiting(manager: CacheManager) -> None:
    function = made(manager)
    both = threading.Barrier(2)

    def cross(x: Any) -> None:
        if len(RUNS) <= 2:
            both.wait(30)
            assert function(3 - x) == (3 - x, 0)

    HOOKS.append(cross)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(function, (1, 2), timeout=30)) == [(1, 0), (2, 0)]


def test_a_function_that_calls_itself_with_the_same_arguments_computes(manager: CacheManager) -> None:
    function = made(manager)
    HOOKS.append(lambda x: len(RUNS) < 3 and function(x))
    assert function(1) == (1, 0)
    assert len(RUNS) <= 3
    HOOKS.clear()
    assert function(1) == (1, 0)


def fib(n: int) -> int:
    return n if n < 2 else FUNCTIONS[0](n - 1) + FUNCTIONS[0](n - 2)


FUNCTIONS: list[Any] = []


def test_deep_recursion_takes_two_frames_a_level(manager: CacheManager) -> None:
    FUNCTIONS[:] = [cached("x", manager=manager, max_entries=50)(fib)]
    assert bare_of(FUNCTIONS[0]) is not None
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    try:
        assert FUNCTIONS[0](400) == 176023680645013966468226945392411250770384383304492191886725992896575345044216019675
    finally:
        sys.setrecursionlimit(limit)


# -- what results there are


class Stubborn:
    def __deepcopy__(self, memo: object) -> Any:
        raise TypeError


def result_of(kind: str) -> Any:
    RUNS.append(kind)
    return {
        "list": lambda: [kind],
        "generator": lambda: iter_of(kind),
        "coroutine": lambda: coroutine_of(kind),
        "unstorable": Stubborn,
        "none": lambda: None,
        "file": lambda: open(os.devnull),
    }[kind]()


def iter_of(kind: str) -> Iterator[str]:
    yield kind
    yield kind


async def coroutine_of(kind: str) -> str:
    return kind


def test_results_of_every_kind_are_treated_as_ever(manager: CacheManager) -> None:
    import asyncio

    function = cached("kinds", manager=manager)(result_of)
    first = function("list")
    first.append("changed")
    assert function("list") == ["list"]
    assert function("none") is None
    assert function("none") is None
    assert type(function("unstorable")) is Stubborn
    assert type(function("unstorable")) is Stubborn
    assert RUNS == ["list", "none", "unstorable", "unstorable"]
    assert function.stats().errors["unstorable"] == 2
    assert bare_of(function).open  # type: ignore[union-attr]
    RUNS.clear()
    assert list(function("generator")) == ["generator"] * 2
    assert list(function("generator")) == ["generator"] * 2
    assert asyncio.run(awaited(function)) == ["coroutine"] * 2
    with function("file") as file:
        assert file.read() == ""
    assert function("list") == ["list"]
    assert RUNS == ["generator", "coroutine", "file"] or RUNS == ["generator", "coroutine", "coroutine", "file"]
    stats = function.stats()
    assert stats.hits + stats.misses + stats.coalesced + stats.bypasses == stats.calls


async def awaited(function: Any) -> list[str]:
    return [await function("coroutine"), await function("coroutine")]


def test_without_copies_the_stored_object_is_handed_out(manager: CacheManager) -> None:
    function = cached("kinds", manager=manager, copy=False)(result_of)
    first = function("list")
    assert function("list") is first
    function.peek("list")
    assert function("list") is first


# -- bounds, time, forks, interruptions


def test_the_bound_of_entries_holds_for_functions_and_direct_keys_together(manager: CacheManager) -> None:
    cache = manager.get_cache("x", max_entries=10)
    function, other = made(manager), cached("x", manager=manager, name="other", version=1)(value_of)
    for x in range(100):
        function(x)
        other(x)
        cache.set(str(x), x)
        assert len(cache) <= 10
    assert manager.stats("x").evictions >= 280
    assert function.stats().evictions > 0
    assert sorted(cache.keys()) != []
    assert len(cache) <= 10


def test_what_has_expired_is_loaded_again_and_swept() -> None:
    clock = FakeClock()
    manager = CacheManager(clock=clock)
    function = made(manager, ttl=10, max_entries=5)
    for x in range(5):
        function(x)
    clock.advance(11)
    VERSIONS[0] = 1
    assert function(0) == (0, 1)
    assert function.stats().size <= 5
    for x in range(10, 14):
        function(x)
    assert function.stats().evictions == 0
    assert function.stats().size == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_amid_a_load_goes_on_by_itself(manager: CacheManager) -> None:
    function = made(manager)
    running, go_on = threading.Event(), threading.Event()
    HOOKS.append(lambda x: (running.set(), go_on.wait(30)))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(function, 1)
        assert running.wait(30)
        child = os.fork()
        if not child:
            HOOKS.clear()
            os._exit(0 if [function(1), function(1), function.peek(1)] == [(1, 0)] * 3 else 1)
        assert os.waitpid(child, 0)[1] == 0
        go_on.set()
        assert first.result(30) == (1, 0)


def test_an_interruption_before_the_function_runs_leaves_nobody_waiting(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = made(manager)

    def interrupted() -> Any:
        raise KeyboardInterrupt

    bare = bare_of(function)
    assert bare is not None
    with monkeypatch.context() as patched:
        patched.setattr(bare, "clock", interrupted)
        with pytest.raises(KeyboardInterrupt):
            function(1)
    assert list(bare.loading) == [(int, 1)]
    assert [function(1), function(1)] == [(1, 0), (1, 0)]
    assert (bare.open, bare.loading) == (True, {})


@pytest.mark.parametrize("step", ["add_all", "evict_many"])
def test_an_interruption_while_cells_get_their_places_leaves_none_behind(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    function = made(manager, max_entries=20)
    bare = bare_of(function)
    assert bare is not None
    for x in range(20):
        function(x)
    real = getattr(Eviction, step)

    def interrupted(order: Any, *arguments: Any) -> None:
        monkeypatch.undo()
        real(order, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Eviction, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        function(20)
    assert (bare.open, bare.loading) == (True, {})
    for x in range(100, 200):
        assert function(x) == (x, 0)
    assert len(bare.cells()) == function.stats().size <= 20
    assert bare.kept._order.count == len(bare.cells())


def test_what_is_counted_is_exact_whenever_it_is_asked_for(manager: CacheManager) -> None:
    """Cells get their places, and are counted, many at once."""
    functions = [cached("x", manager=manager, name=name, max_entries=1000)(value_of) for name in "ab"]
    for number in range(1, 300):
        for function in functions:
            function(number)
        if number % 7 == 0:
            stats = [function.stats() for function in functions]
            assert [(each.misses, each.loads, each.sets, each.size) for each in stats] == [(number,) * 4] * 2
    assert manager.stats("x").misses == 598


@pytest.mark.parametrize("bound", [1, 2, 63, 64, 65, 300, 1000])
def test_as_many_are_kept_as_there_is_room_for_and_no_more(manager: CacheManager, bound: int) -> None:
    function = made(manager, max_entries=bound)
    bare = bare_of(function)
    assert bare is not None
    for x in range(bound):
        function(x)
    RUNS.clear()
    assert [function(x) for x in range(bound)] == [(x, 0) for x in range(bound)]
    assert RUNS == []
    for x in range(bound, 3 * bound):
        function(x)
        assert bound - 1 - bound // 256 <= len(bare.cells()) <= bound
    stats = function.stats()
    assert stats.evictions + stats.size == stats.misses == 3 * bound


# -- the steps between which something may come


def test_a_leader_that_comes_just_after_another_has_landed_finds_the_result(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = made(manager)

    def late(front: Front, bound: Any) -> Any:
        monkeypatch.setattr(Front, "place_of", place_of)
        in_a_thread(lambda: function("a"))
        return place_of(front, bound)

    place_of = Front.place_of
    monkeypatch.setattr(Front, "place_of", late)
    assert function("a") == ("a", 0)
    assert (RUNS, function.stats().hits, function.stats().misses) == (["a"], 1, 1)


def test_a_way_that_closes_when_a_leader_has_begun(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    function = made(manager)

    def late(bare: Bare, own: Any, place: Any) -> Any:
        in_a_thread(lambda: function.invalidate(1))
        return led(bare, own, place)

    led = Bare._led
    monkeypatch.setattr(Bare, "_led", late)
    assert function(1) == (1, 0)
    monkeypatch.undo()
    VERSIONS[1] = 1
    function.invalidate(1)
    assert [function(1), function(1)] == [(1, 1), (1, 1)]
    assert manager.get_cache("x").space.flights._flights == {}


def test_questions_wait_until_every_cell_has_its_key(manager: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    function = made(manager)
    for x in range(50):
        function(x)
    begun, go_on = threading.Event(), threading.Event()

    def slow(bare: Bare, bound: Any, cell: Any) -> None:
        begun.set()
        assert go_on.wait(30)
        name(bare, bound, cell)

    name = Bare._name
    monkeypatch.setattr(Bare, "_name", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(function.invalidate, 1)
        assert begun.wait(30)
        second = pool.submit(function.contains, 49)
        assert function(3) == (3, 0)  # a hot hit asks nobody
        go_on.set()
        assert (first.result(30), second.result(30)) == (True, True)
    VERSIONS[1] = 1
    assert function(1) == (1, 1)
    assert len(function.cache) == 50


def test_a_cell_without_a_key_takes_little(manager: CacheManager) -> None:
    """Itself and its times; with a key and an entry it would be some 400 bytes more."""
    function = made(manager, ttl=60)
    function(1000)
    (cell,) = bare_of(function).cells()  # type: ignore[union-attr]
    assert cell.entry is bare_of(function)
    assert sum(map(sys.getsizeof, (cell, cell.deadline, cell.cost))) <= 160


def same(x: int) -> int:
    return x


@pytest.mark.parametrize("ttl", [60, None])
def test_all_that_is_kept_for_a_result_takes_little(manager: CacheManager, ttl: float | None) -> None:
    """The number, the dict, the cell and its times, and its places in line, as allocated, without what the allocator adds."""
    function = cached("x", ttl, manager=manager)(same)
    assert bare_of(function) is not None
    function(-1)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1_000, 9_000):
            function(number)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(function.cache) == 8_001
    assert (after - before) / 8_000 <= 250


def test_what_quick_loads_took_is_kept_once_and_only_so_much_of_it(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = _bare._Costs()
    monkeypatch.setattr(_bare, "_COSTS", costs)
    monkeypatch.setattr(_bare, "_MOST_COSTS", 3)
    clock = FakeClock()
    function = cached("x", manager=CacheManager(clock=clock))(value_of)
    taken = [2**-12, 2**-11, 2**-12, 1.5, 2**-13, 2**-14, 1.5, 2**-11]
    HOOKS.append(lambda x: clock.advance(taken[x]))
    for x in range(len(taken)):
        function(x)
    cells = sorted(bare_of(function).cells(), key=lambda cell: cell.value)  # type: ignore[union-attr]
    assert [cell.cost for cell in cells] == taken
    assert sorted(costs) == [2**-13, 2**-12, 2**-11]
    assert cells[0].cost is cells[2].cost
    assert cells[1].cost is cells[7].cost
    assert function.stats().load_seconds == sum(taken)


def test_bytes_that_begin_to_count_find_cells_that_were_not_weighed(manager: CacheManager) -> None:
    function = made(manager, ttl=60)
    for x in range(100):
        assert function(x) == (x, 0)
    assert function(99) == (99, 0)
    manager.limit_memory(10**9)
    cells = list(function.cache.space.backend._cells.values())
    assert sum(cell.weight for cell in cells) == function.cache.space.backend._kept.weight > 100 * 100
    assert [function(x) for x in range(100)] == [(x, 0) for x in range(100)]
    assert function.stats().hits == 101
    VERSIONS[5] = 1
    assert function.invalidate(5)
    assert [function(x) for x in (5, 5, 6, 6)] == [(5, 1), (5, 1), (6, 0), (6, 0)]
    manager.limit_memory(100)
    assert len(function.cache) == 0


def test_a_weigher_that_raises_leaves_no_cell_behind_that_answers(manager: CacheManager) -> None:
    def weigher(value: object) -> int:
        if value == (13, 0):
            raise RuntimeError("no weight")
        return 1

    budget = Budget()
    functions = [
        made(manager, ttl=60, name=f"n{number}", backend=InMemoryBackend(weigher=weigher, budget=budget)) for number in range(4)
    ]
    for number, function in enumerate(functions):
        for x in (5, 6, 13) if number == 2 else (5, 6):
            assert [function(x), function(x)] == [(x, 0), (x, 0)]
    with pytest.raises(RuntimeError, match="no weight"):
        budget.limit(1_000)
    VERSIONS[5] = 1
    for function in functions:
        function.invalidate(5)
        assert [function(5), function(5), function(6)] == [(5, 1), (5, 1), (6, 0)]


LEAVING: dict[str, Callable[[Any], object]] = {
    "evicted": lambda f: f(2),
    "replaced": lambda f: f.refresh(1),
    "deleted": lambda f: f.invalidate(1),
    "cleared": lambda f: f.clear(),
    "weighed": lambda f: f.cache.space.backend._kept.budget.limit(10**9),
}


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("keyed", [False, True])
def test_a_cell_that_leaves_answers_nobody_while_it_waits_to_be_killed(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch, name: str, keyed: bool
) -> None:
    """Else who deletes the entry meanwhile finds nothing to kill, and is answered by it afterwards."""
    function = made(manager, max_entries=1)
    assert [function(1), function(1)] == [(1, 0), (1, 0)]
    if keyed:
        assert function.contains(1)
    left, go_on, kill = threading.Event(), threading.Event(), Cell.kill

    def slow(cell: Cell) -> None:
        if threading.current_thread() is not threading.main_thread() and cell.value == (1, 0):
            left.set()
            assert go_on.wait(30)
        kill(cell)

    monkeypatch.setattr(Cell, "kill", slow)
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(LEAVING[name], function)
        try:
            assert left.wait(30)
            VERSIONS[1] = 1
            function.invalidate(1)
            assert function(1) == (1, 1)
        finally:
            go_on.set()
        leaving.result(30)


def test_a_cell_near_that_leaves_answers_nobody_while_it_waits_to_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "kill", lambda cell: None)
    cells = NearCells(time.monotonic, 8)
    for forget in (lambda: cells.forget([b"k"]), cells.forget_all):
        cells.keep(b"k", Stamp(cells._era, cells._buckets[cells._bucket(b"k")], 0), Entry(1), 10, copy=True)
        cell = cells.cell(b"k")
        assert cell is not None
        assert cell.deadline == inf
        forget()
        assert cell.deadline == -inf


def test_a_cell_that_has_left_gets_no_key_while_it_waits_to_be_killed(
    manager: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = made(manager, max_entries=1)
    function(1)
    with monkeypatch.context() as patched:
        patched.setattr(Cell, "kill", lambda cell: None)
        function(2)
    assert not function.contains(1)
    kept = function.cache.space.backend._kept
    assert len(kept.by_key) == kept._order.count == 1
