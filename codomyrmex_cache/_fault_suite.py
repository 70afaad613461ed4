"""The suite of `testing` that shows what calls over a backend answer while the backend goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal

from codomyrmex_cache._faults import READS, WRITES, Fault, FaultyBackend
from codomyrmex_cache._suite import Suite
from codomyrmex_cache.backends.base import AsyncBackend, Coordinates
from codomyrmex_cache.decorator import cached
from codomyrmex_cache.errors import CacheConnectionError
from codomyrmex_cache.manager import CacheManager

__all__ = ["FaultConformance"]


class FaultConformance(Suite):
    """Whatever one verb of the backend does, a `Cache` and decorated functions over it answer right, count it and heal.

    The backend of `make_backend` works; the suite wraps it into a `FaultyBackend`.  Each fault has a namespace of its own.
    """

    def setup_method(self) -> None:
        super().setup_method()
        self.faulty = FaultyBackend(self.backend)

    # -- the backend fails

    def test_answers_stay_right_while_a_verb_fails(self) -> None:
        for verb in self.faulty.verbs:
            calls = self._calls(f"fails: {verb}")
            with self.faulty.fail(verb, error=_OrderedError) as outage:
                calls.blocking()
            assert calls.counted() == _countable(outage), verb
            calls.are_healed()

    def test_answers_stay_right_while_an_async_verb_fails(self) -> None:
        for verb in self.faulty.verbs:
            calls = self._calls(f"fails in a loop: {verb}")
            with self.faulty.fail(verb, error=_OrderedError) as outage:
                self._in_loop(calls.looping())
            assert calls.counted() == _countable(outage), verb
            self._in_loop(calls.are_healed_in_a_loop())

    def test_answers_stay_right_while_everything_fails(self) -> None:
        calls = self._calls("all fails")
        with self.faulty.fail(error=_OrderedError) as outage:
            calls.blocking()
            self._in_loop(calls.looping())
        assert calls.counted() == _countable(outage) > 0
        calls.are_healed()
        self._in_loop(calls.are_healed_in_a_loop())

    def test_answers_stay_right_while_every_third_call_fails(self) -> None:
        calls = self._calls("some fail")
        with self.faulty.fail(error=_OrderedError, every=3) as outage:
            calls.blocking()
            self._in_loop(calls.looping())
        assert calls.counted() == _countable(outage) > 0
        calls.are_healed()
        self._in_loop(calls.are_healed_in_a_loop())

    def test_answers_stay_right_when_writes_are_done_and_their_reply_is_lost(self) -> None:
        for verb in self._those_of("set", "set_many", "delete", "delete_many", "clear", "commit", "replace", "revoke"):
            calls = self._calls(f"reply lost: {verb}")
            with self.faulty.fail(verb, error=_OrderedError, after=True) as outage:
                calls.blocking()
                self._in_loop(calls.looping())
            assert calls.counted() == _countable(outage), verb
            calls.are_healed()
            self._in_loop(calls.are_healed_in_a_loop())

    def test_nobody_waits_for_a_load_whose_result_could_not_be_stored(self) -> None:
        @cached("not stored", backend=self.faulty, manager=self.manager, wait=0, on_wait_timeout="raise")
        def function(x: int) -> list[int]:
            return [x]

        for verb in self._those_of("commit", "set", "end"):
            with self.faulty.fail(verb):
                assert function(1) == [1]
            assert function(1) == [1], verb
            assert function.invalidate(1) is True

    # -- the backend is slow

    def test_one_load_for_many_threads_while_a_verb_is_slow(self) -> None:
        for verb in self.faulty.verbs:
            calls = self._calls(f"slow: {verb}")
            with self.faulty.delay(_SLOW, verb), ThreadPoolExecutor(4) as pool:
                assert list(pool.map(calls.function, [1, 2] * 4)) == [["of", 1], ["of", 2]] * 4
            assert (sorted(calls.runs), calls.errors) == ([1, 2], {}), verb

    def test_one_load_for_many_tasks_while_a_verb_is_slow(self) -> None:
        for verb in self.faulty.verbs:
            calls = self._calls(f"slow in a loop: {verb}")

            async def main(calls: _Calls = calls) -> None:
                found = await asyncio.gather(*(calls.coroutine(x) for x in [1, 2] * 4))
                assert found == [["of", 1], ["of", 2]] * 4

            with self.faulty.delay(_SLOW, verb):
                self._in_loop(main())
            assert (sorted(calls.runs), calls.errors) == ([1, 2], {}), verb

    def test_an_invalidation_during_a_slow_write_wins(self) -> None:
        calls = self._calls("overtaken")
        verb = "commit" if isinstance(self.faulty, Coordinates) else "set"
        invalidate = lambda _: calls.function.invalidate(1)  # noqa: E731
        with self.faulty.delay(0.0, verb, sleep=invalidate, when=lambda _, number: number == 1) as slow:
            assert calls.function(1) == ["of", 1]
        assert slow.done.total() == 1
        assert calls.function(1) == ["of", 1]
        assert calls.runs == [1, 1]

    def test_an_invalidation_that_fails_during_a_slow_write_reaches_nobody(self) -> None:
        calls = self._calls("overtaken in vain")
        verb = "commit" if isinstance(self.faulty, Coordinates) else "set"
        with self.faulty.fail(*self._those_of("delete", "revoke", "end", "generations")):
            with self.faulty.delay(0.0, verb, sleep=lambda _: calls.function.invalidate(1)):
                assert calls.function(1) == ["of", 1]
            with self.faulty.delay(0.0, verb, sleep=lambda _: calls.function.clear()):
                assert calls.function(2) == ["of", 2]

    # -- the backend hands over other bytes than it was given

    def test_damaged_bytes_are_a_miss_and_heal(self) -> None:
        for how, verbs in self._damages():
            calls = self._calls(f"{how}: {verbs}")
            with self.faulty.damage(how, *verbs) as damage:
                calls.blocking(exact=False)
                calls.blocking(exact=False)
            calls.are_healed()
            assert (bool(calls.errors), damage.done.total() > 0) in _noticed(verbs), (how, verbs)

    def test_damaged_bytes_are_a_miss_and_heal_in_a_loop(self) -> None:
        for how, verbs in self._damages():
            calls = self._calls(f"{how} in a loop: {verbs}")
            with self.faulty.damage(how, *verbs) as damage:
                self._in_loop(calls.looping(exact=False))
                self._in_loop(calls.looping(exact=False))
            self._in_loop(calls.are_healed_in_a_loop())
            assert (bool(calls.errors), damage.done.total() > 0) in _noticed(verbs), (how, verbs)

    def _damages(self) -> list[tuple[Literal["flip", "cut", "zero", "swap"], list[str]]]:
        if self.faulty.payload != "bytes":
            return []
        verbs = [[verb] for verb in self._those_of(*READS, *WRITES)]
        return [(how, each) for how in ("flip", "cut", "zero", "swap") for each in (*verbs, self._those_of(*READS))]

    def _those_of(self, *verbs: str) -> list[str]:
        return [verb for verb in verbs if verb in self.faulty.verbs]

    def _calls(self, namespace: str) -> _Calls:
        return _Calls(self.manager, namespace, self.faulty)

    def _in_loop(self, main: Coroutine[Any, Any, None]) -> None:
        async def closing() -> None:
            try:
                await main
            finally:
                if isinstance(self.faulty, AsyncBackend):
                    await self.faulty.aclose()

        asyncio.run(closing())


class _OrderedError(OSError):
    """Told apart from what the backend may raise by itself."""


_SLOW = 0.002
"""Seconds; enough for the other threads and tasks to arrive."""

_ABSENT = "absent"

_Step = tuple[str, tuple[Any, ...], Sequence[object]]
"""A verb of `Cache`, its arguments, and what it may answer: first what is right, then what else while something is wrong."""

_STEPS: tuple[_Step, ...] = (
    ("set", ("set", ["s"], 60), [None]),
    ("get", ("set", _ABSENT), [["s"], _ABSENT]),
    ("set_many", ({"a": ["a"], "b": ["b"]}, 60), [None]),
    ("get_many", (["a", "b"],), [{"a": ["a"], "b": ["b"]}, {"a": ["a"]}, {"b": ["b"]}, {}]),
    ("has", ("a",), [True, False]),
    ("touch", ("a",), [True, False]),
    ("get", ("a", _ABSENT), [["a"], _ABSENT]),
    ("delete", ("b",), [True, False]),
    ("delete_many", (["a", "b"],), [1, 0, 2]),
    ("get_or_load", ("loaded", lambda: ["l"], 60), [["l"]]),
    ("get", ("loaded", _ABSENT), [["l"], _ABSENT]),
)
_TAG_STEPS: tuple[_Step, ...] = (
    ("set", ("tagged", ["t"], 60, ["tag"]), [None]),
    ("get", ("tagged", _ABSENT), [["t"], _ABSENT]),
    ("invalidate_tags", ("tag",), [None]),
)
_EXACT_STEPS: tuple[_Step, ...] = (("incr", ("n",), range(1, 100)), ("add", ("first", 1), [True, False]))


class _Calls:
    """What a program does with one namespace, checked against the worst that may be answered."""

    def __init__(self, manager: CacheManager, namespace: str, backend: FaultyBackend) -> None:
        self.cache = manager.get_cache(namespace, backend)
        self.runs: list[int] = []
        self._numbers = 0
        coordinates = isinstance(backend, Coordinates)
        self._steps = (*_STEPS, *_TAG_STEPS) if coordinates else _STEPS
        self._exact_steps = _EXACT_STEPS if coordinates else ()

        def run(x: int) -> list[object]:
            if x < 0:
                raise ValueError(x)
            self.runs.append(x)
            return ["of", x]

        @cached(namespace, manager=manager, ttl=60, name="function")
        def function(x: int) -> list[object]:
            return run(x)

        @cached(namespace, manager=manager, ttl=60, name="coroutine")
        async def coroutine(x: int) -> list[object]:
            await asyncio.sleep(0)
            return run(x)

        self.function, self.coroutine = function, coroutine

    def _next(self) -> int:
        """A number not used before: what an `end` that failed has left need not be waited for."""
        self._numbers += 1
        return self._numbers

    @property
    def errors(self) -> Mapping[str, int]:
        """What was counted beside the outcomes."""
        return self.cache.stats().errors

    def counted(self) -> int:
        """The failures to order among them, wherever they struck."""
        return sum(count for kind, count in self.errors.items() if kind.endswith(":_OrderedError"))

    def blocking(self, *, exact: bool = True, healthy: bool = False) -> None:
        """Every verb; with `exact` also those that compare and swap, which raise when they cannot be carried out."""
        cache, function = self.cache, self.function
        for verb, arguments, allowed in self._steps:
            _check(verb, getattr(cache, verb)(*arguments), allowed, healthy=healthy)
        _check("keys", {"set", "loaded"} <= set(cache.keys()), [True, False], healthy=healthy)
        _check("size", cache.size(), [*range(30), None], healthy=False)
        assert [function(x) for x in (1, 2, 1)] == [["of", 1], ["of", 2], ["of", 1]]
        assert function.refresh(1) == ["of", 1]
        _check("invalidate", function.invalidate(2), [True, False], healthy=healthy)
        with suppress(ValueError):
            raise AssertionError(function(-self._next()))
        for verb, arguments, allowed in self._exact_steps if exact else ():
            with suppress(CacheConnectionError):
                _check(verb, getattr(cache, verb)(*arguments), allowed, healthy=False)
        if self._exact_steps and exact:
            with suppress(CacheConnectionError), cache.lock(f"door {self._next()}") as lock:
                assert lock.token > 0

    async def looping(self, *, exact: bool = True, healthy: bool = False) -> None:
        """The same in an event loop."""
        cache, function = self.cache, self.coroutine
        for verb, arguments, allowed in self._steps:
            _check(verb, await getattr(cache, f"a{verb}")(*arguments), allowed, healthy=healthy)
        _check("keys", {"set", "loaded"} <= set(await cache.akeys()), [True, False], healthy=healthy)
        assert [await function(x) for x in (1, 2, 1)] == [["of", 1], ["of", 2], ["of", 1]]
        assert await function.arefresh(1) == ["of", 1]
        _check("invalidate", await function.ainvalidate(2), [True, False], healthy=healthy)
        with suppress(ValueError):
            raise AssertionError(await function(-self._next()))
        for verb, arguments, allowed in self._exact_steps if exact else ():
            with suppress(CacheConnectionError):
                _check(verb, await getattr(cache, f"a{verb}")(*arguments), allowed, healthy=False)
        if self._exact_steps and exact:
            with suppress(CacheConnectionError):
                async with cache.lock(f"door {self._next()}") as lock:
                    assert lock.token > 0

    def are_healed(self) -> None:
        """Every answer is the right one again, and what was loaded is found."""
        self.blocking(healthy=True)
        ran = len(self.runs)
        assert self.function(1) == ["of", 1]
        assert len(self.runs) == ran

    async def are_healed_in_a_loop(self) -> None:
        """The same for coroutine functions and the `a`-twins."""
        await self.looping(healthy=True)
        ran = len(self.runs)
        assert await self.coroutine(1) == ["of", 1]
        assert len(self.runs) == ran


def _countable(fault: Fault) -> int:
    """Its failures but for those of the short ways, after which the long way is taken."""
    return sum(count for verb, count in fault.done.items() if not verb.startswith("quick_"))


def _noticed(verbs: Sequence[str]) -> Sequence[tuple[bool, bool]]:
    """Whether errors may be counted and bytes damaged: both or neither.  But not every load looks at what `begin` gave, and
    where the short way leads nowhere, the long one is taken."""
    return [(True, True), (False, False), (False, set(verbs) <= {"begin", "quick_get"})]


def _check(verb: str, answer: object, allowed: Sequence[object], *, healthy: bool) -> None:
    assert answer in (allowed[:1] if healthy else allowed), f"{verb} answered {answer!r}"
