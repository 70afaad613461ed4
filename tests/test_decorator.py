"""`cached` on every form of function, in every backend."""

from __future__ import annotations

import abc
import asyncio
import functools
import inspect
import pickle
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import MISSING, CacheError, CacheManager, InMemoryBackend, cached, get_cache
from codomyrmex_cache.errors import CacheConfigurationError, UnkeyableError
from codomyrmex_cache.testing import FakeClock


def wait_for(condition: Any) -> None:
    """Spin until the condition holds; the test's own time limit ends it if it never does."""
    while not condition():
        threading.Event().wait(0.001)


@cached("pickled")
def by_reference(x: int) -> int:
    """Its doc."""
    return x


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @cached("shop")
    def price(self, item: str, count: int = 1) -> tuple[str, str, int]:
        return (self.name, item, count)

    @cached("shop")
    @classmethod
    def outside(cls, x: int) -> tuple[str, int]:
        return (cls.__name__, x)

    @classmethod
    @cached("shop")
    def inside(cls, x: int) -> tuple[str, int]:
        return (cls.__name__, x)

    @cached("shop")
    @staticmethod
    def static_outside(x: int) -> int:
        return x

    @staticmethod
    @cached("shop")
    def static_inside(x: int) -> int:
        return x

    @property
    @cached("shop")
    def upper(self) -> str:
        return self.name.upper()

    @cached("shop")
    async def later(self, x: int) -> tuple[str, int]:
        return (self.name, x)


class Branch(Shop):
    def price(self, item: str, count: int = 1) -> tuple[str, str, int]:
        return ("branch", *super().price(item, count)[1:])


def test_the_face_of_the_function_is_kept() -> None:
    assert by_reference.__name__ == "by_reference"
    assert by_reference.__doc__ == "Its doc."
    assert str(inspect.signature(by_reference)) == "(x: 'int') -> 'int'"
    assert by_reference.__wrapped__(3) == 3
    assert pickle.loads(pickle.dumps(by_reference)) is by_reference
    assert pickle.loads(pickle.dumps(Shop.price)) is Shop.price


def test_wrong_arguments_raise_as_they_did() -> None:
    with pytest.raises(TypeError, match=r"by_reference\(\) missing 1 required positional argument: 'x'"):
        by_reference()  # type: ignore[call-arg]


def test_methods_answer_for_their_own_object() -> None:
    one, other, branch = Shop("one"), Shop("other"), Branch("one")
    assert [one.price("x"), other.price("x"), one.price("x", 1), one.price(item="x")] == [
        ("one", "x", 1), ("other", "x", 1), ("one", "x", 1), ("one", "x", 1),
    ]  # fmt: skip
    assert branch.price("x") == ("branch", "x", 1)
    one.name = "renamed"
    assert one.price("x") == ("renamed", "x", 1)
    assert (one.upper, other.upper) == ("RENAMED", "OTHER")


@pytest.mark.parametrize("name", ["inside", "outside"])
def test_classmethods_answer_for_their_own_class(name: str) -> None:
    results = [getattr(owner, name)(1) for owner in (Shop, Branch, Shop("x"), Shop)]
    assert results == [("Shop", 1), ("Branch", 1), ("Shop", 1), ("Shop", 1)]
    if name == "inside" and sys.version_info >= (3, 13):
        return  # there `classmethod` no longer asks what it wraps for a bound form, so the controls do not learn the class
    assert getattr(Branch, name).invalidate(1) is True
    assert getattr(Branch, name).peek(1) is MISSING
    assert getattr(Shop, name).peek(1) == ("Shop", 1)


def test_staticmethods_in_either_order() -> None:
    assert [Shop.static_outside(1), Shop("x").static_outside(1), Shop.static_inside(2), Shop("x").static_inside(2)] == [
        1,
        1,
        2,
        2,
    ]
    assert Shop.static_inside.peek(2) == 2
    assert Shop.static_outside.peek(1) == 1


def test_a_methods_controls_know_its_object() -> None:
    one, other = Shop("controls"), Shop("controls too")
    one.price("x")
    other.price("x")
    assert one.price.key("x") == Shop.price.key(one, "x") != other.price.key("x")
    assert one.price.invalidate("x") is True
    assert Shop.price.invalidate(one, "x") is False
    assert other.price.contains("x") is True
    one.price.seed(("seeded", "x", 1), "x")
    assert one.price("x") == ("seeded", "x", 1)
    assert one.price.refresh("x") == ("controls", "x", 1)
    assert one.price.__self__ is one


def test_a_coroutine_method() -> None:
    shop = Shop("async")
    assert inspect.iscoroutinefunction(shop.later)
    assert inspect.iscoroutinefunction(Shop.later)

    async def main() -> None:
        assert [await shop.later(1), await shop.later(x=1)] == [("async", 1)] * 2
        assert await shop.later.ainvalidate(1) is True
        assert await Shop.later.acontains(shop, 1) is False
        await shop.later.aseed(("seeded", 2), 2)
        assert await shop.later(2) == ("seeded", 2)

    asyncio.run(main())


def test_abstract_methods_stay_abstract() -> None:
    class Base(abc.ABC):
        @cached("abstract")
        @abc.abstractmethod
        def method(self) -> int: ...

    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]


def test_partials_callable_objects_and_bound_methods_of_others() -> None:
    manager = CacheManager()

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def __call__(self, x: int) -> int:
            return self.n + x

        def add(self, x: int) -> int:
            return self.n + x

    power = cached("p", manager=manager)(functools.partial(pow, 2))
    cube = cached("p", manager=manager)(functools.partial(pow, 3))
    assert [power(3), cube(3), power(3)] == [8, 27, 8]
    adders = [cached("a", manager=manager)(Adder(n)) for n in (1, 2)]
    assert [adder(1) for adder in adders * 2] == [2, 3, 2, 3]
    methods = [cached("m", manager=manager)(Adder(n).add) for n in (1, 2)]
    assert [method(1) for method in methods * 2] == [2, 3, 2, 3]
    assert manager.total().hits == 5


def test_types_never_meet_on_the_hot_path(manager: CacheManager, backend_name: str) -> None:
    @cached("types", backend=backend_name, manager=manager)
    def name(x: Any, y: Any = None) -> str:
        return repr((x, y))

    values: list[Any] = [1, True, 1.0, "1", b"1", 0, False, 0.0, -0.0, None, "", float("nan"), (1,), (True,), [1], [True]]
    for _ in range(3):
        assert [name(value) for value in values] == [repr((value, None)) for value in values]
        assert [name(0, value) for value in values] == [repr((0, value)) for value in values]


def test_one_store_given_to_two_functions_keeps_them_apart() -> None:
    store, manager = InMemoryBackend(), CacheManager()
    decorate = cached("shared", backend=store, manager=manager)
    double, triple = decorate(lambda x: 2 * x), decorate(lambda x: 3 * x)
    assert [double(1), triple(1), double(1), triple(1)] == [2, 3, 2, 3]


@pytest.mark.parametrize("ttl", [60, 60.0, "1m", "60s", timedelta(minutes=1), lambda result: "1m"])
def test_ttl_forms(manager: CacheManager, backend_name: str, clock: FakeClock, ttl: Any) -> None:
    runs: list[int] = []

    @cached("ttl", ttl, backend_name, manager=manager)
    def function(x: int) -> int:
        runs.append(x)
        return x

    function(1)
    clock.advance(59.99)
    function(1)
    assert len(runs) == 1
    clock.advance(0.01)
    function(1)
    assert len(runs) == 2
    assert function.stats().expirations >= 1


def test_ttl_zero_stores_nothing(manager: CacheManager, backend_name: str) -> None:
    @cached("zero", 0, backend_name, manager=manager)
    def function(x: int) -> int:
        return x

    assert [function(1), function(1)] == [1, 1]
    assert function.stats().misses == 2
    assert function.peek(1) is MISSING


@pytest.mark.parametrize("ttl", [-1, float("nan"), float("inf"), True, "soon", "1x", "", [], timedelta(-1), 10**400])
def test_a_ttl_that_means_nothing_is_refused_at_decoration(ttl: Any) -> None:
    with pytest.raises(CacheConfigurationError, match="ttl="):
        cached("bad", ttl)


def test_a_ttl_callable_that_fails_costs_the_storing_alone(caplog: pytest.LogCaptureFixture) -> None:
    @cached("bad-callable", ttl=lambda result: result["missing"], manager=CacheManager())
    def function() -> dict[str, int]:
        return {}

    assert function() == {}
    assert function.stats().errors == {"ttl": 1}
    assert "ttl callable failed" in caplog.text


def test_results_are_isolated_in_every_backend(manager: CacheManager, backend_name: str) -> None:
    @cached("isolated", backend=backend_name, manager=manager)
    def function() -> dict[str, list[int]]:
        return {"items": [1]}

    for _ in range(4):
        result = function()
        assert result == {"items": [1]}
        result["items"].append(2)
    function.peek()["items"].append(3)  # type: ignore[index, union-attr]
    assert function() == {"items": [1]}


def test_copy_false_shares_the_object_in_memory() -> None:
    @cached("by-reference", copy=False, manager=CacheManager())
    def function() -> list[int]:
        return []

    assert function() is function()


def test_none_is_a_result(manager: CacheManager, backend_name: str) -> None:
    @cached("none", backend=backend_name, manager=manager)
    def function() -> None:
        runs.append(1)

    runs: list[int] = []
    function()
    assert function() is None
    assert (len(runs), function.peek(), function.contains()) == (1, None, True)


def test_exceptions_pass_untouched_and_are_not_stored(manager: CacheManager, backend_name: str) -> None:
    error = KeyError("own")
    runs: list[int] = []

    @cached("raising", backend=backend_name, manager=manager)
    def function() -> None:
        runs.append(1)
        raise error

    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            function()
        assert caught.value is error
    stats = function.stats()
    assert (len(runs), stats.load_errors, stats.misses, stats.size or 0) == (2, 2, 2, 0)


def test_stop_iteration_passes_too() -> None:
    @cached("stop", manager=CacheManager())
    def function() -> None:
        raise StopIteration(3)

    with pytest.raises(StopIteration):
        function()


def test_control_methods(manager: CacheManager, backend_name: str, clock: FakeClock) -> None:
    runs: list[int] = []

    @cached("controls", ttl=100, backend=backend_name, manager=manager)
    def function(x: int, y: int = 0) -> int:
        runs.append(x)
        return x + y + 1000 * len(runs)

    assert function.peek(1) is MISSING
    assert function.contains(1) is False
    assert function.entry(1) is None
    assert function(1) == 1001
    entry = function.entry(1)
    assert entry is not None
    assert (entry.value, entry.created, entry.fresh_until, entry.ttl) == (1001, clock(), clock() + 100, 100)
    assert function.refresh(1) == 2001
    assert function(1) == 2001
    assert function.bypass(1) == 3001
    assert function(1) == 2001
    function.seed(7, 1)
    assert [function(1), function(x=1, y=0), function.peek(1, 0)] == [7, 7, 7]
    assert [function.invalidate(1), function.invalidate(1)] == [True, False]
    function(1)
    function(2)
    assert function.cache.has(function.key(2)) is True
    assert function.clear() == 2
    assert function.peek(2) is MISSING
    assert function.cache is manager.get_cache("controls")


def test_controls_of_an_unkeyable_call_say_so() -> None:
    @cached(manager=CacheManager())
    def function(lock: Any) -> None: ...

    with pytest.raises(UnkeyableError, match="'lock'"):
        function.key(threading.Lock())


def test_clearing_one_function_leaves_its_neighbours(manager: CacheManager, backend_name: str) -> None:
    one = cached("both", backend=backend_name, manager=manager, name="f")(lambda x: x)
    other = cached("both", backend=backend_name, manager=manager, name="f:g")(lambda x: x)
    one(1), other(1)
    manager.get_cache("both").set("k", 1)
    assert one.clear() == 1
    assert other.contains(1)
    assert manager.get_cache("both").keys().__len__() == 2


def test_two_hundred_threads_one_execution() -> None:
    started = threading.Barrier(200)
    release = threading.Event()
    runs: list[int] = []

    @cached(manager=CacheManager())
    def function(x: int) -> list[int]:
        runs.append(x)
        release.wait()
        return [x]

    def work(_: int) -> list[int]:
        started.wait()
        return function(1)

    with ThreadPoolExecutor(200) as pool:
        futures = [pool.submit(work, number) for number in range(200)]
        wait_for(lambda: function.cache.space.flights._flights)
        release.set()
        results = [future.result() for future in futures]
    assert results == [[1]] * 200
    assert len({id(result) for result in results}) == 200
    assert runs == [1]
    stats = function.stats()
    assert stats.calls == 200
    assert (stats.misses, stats.hits + stats.coalesced) == (1, 199)


def test_two_hundred_tasks_one_execution(manager: CacheManager, backend_name: str) -> None:
    runs: list[int] = []

    @cached("tasks", backend=backend_name, manager=manager)
    async def function(x: int) -> list[int]:
        runs.append(x)
        await asyncio.sleep(0)
        return [x]

    async def main() -> None:
        results = await asyncio.gather(*(function(1) for _ in range(200)))
        assert results == [[1]] * 200
        await manager.aclose()

    asyncio.run(main())
    assert runs == [1]
    assert function.stats().calls == 200


def test_statistics_are_exact_under_threads() -> None:
    @cached(manager=CacheManager(), max_entries=50)
    def function(x: int) -> int:
        return x

    def work(seed: int) -> None:
        for number in range(2000):
            assert function((seed + number) % 20) == (seed + number) % 20

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    stats = function.stats()
    assert stats.calls == 16_000
    assert (stats.misses, stats.loads, stats.size) == (20, 20, 20)


def test_cancelling_one_awaiter_cancels_nobody_else() -> None:
    async def main() -> None:
        release = asyncio.Event()
        runs: list[int] = []

        @cached(manager=CacheManager())
        async def function(x: int) -> int:
            runs.append(x)
            await release.wait()
            return x

        leader, follower, other = (asyncio.create_task(function(1)) for _ in range(3))
        await asyncio.sleep(0.01)
        leader.cancel()
        other.cancel()
        await asyncio.sleep(0)
        release.set()
        assert await follower == 1
        assert runs == [1]
        assert leader.cancelled()
        assert other.cancelled()

    asyncio.run(main())


def test_when_the_last_awaiter_leaves_the_load_is_cancelled() -> None:
    async def main() -> None:
        ended: list[str] = []

        @cached(manager=CacheManager())
        async def function(x: int) -> int:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return x

        tasks = [asyncio.create_task(function(1)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert ended == ["cancelled"]
        assert function.cache.space.flights._flights == {}

    asyncio.run(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_asking_for_ones_own_key_computes(is_async: bool) -> None:
    manager = CacheManager()
    depth = 0

    @cached("own-key", manager=manager)
    def plain(x: int) -> int:
        nonlocal depth
        depth += 1
        return 1 if depth > 1 else plain(x) + 1

    @cached("own-key", manager=manager)
    async def coroutine(x: int) -> int:
        nonlocal depth
        depth += 1
        return 1 if depth > 1 else await coroutine(x) + 1

    assert (asyncio.run(coroutine(1)) if is_async else plain(1)) == 2


def test_a_blocking_call_in_the_loop_that_runs_its_load_computes() -> None:
    cache = CacheManager().get_cache("same-loop")

    async def main() -> None:
        entered = asyncio.Event()

        async def slow() -> str:
            entered.set()
            await asyncio.sleep(0.05)
            return "async"

        task = asyncio.create_task(cache.aget_or_load("k", slow))
        await entered.wait()
        assert cache.get_or_load("k", lambda: "blocking") == "blocking"
        assert await task == "async"

    asyncio.run(main())


class Sdk:
    """Like the clients of today: a plain function over a coroutine function."""

    runs = 0

    async def _create(self, x: int) -> list[int]:
        type(self).runs += 1
        return [x]

    @functools.wraps(_create)
    def create(self, *args: Any, **kwargs: Any) -> Any:
        return self._create(*args, **kwargs)

    def unmarked(self, x: int) -> Any:
        return self._create(x)


@pytest.mark.parametrize("name", ["create", "unmarked"])
def test_a_plain_function_that_returns_awaitables(manager: CacheManager, backend_name: str, name: str) -> None:
    Sdk.runs = 0
    create = cached(f"sdk-{name}", backend=backend_name, manager=manager)(getattr(Sdk(), name))

    async def main() -> None:
        assert await create(1) == [1]
        assert await asyncio.gather(create(1), create(1)) == [[1], [1]]
        await manager.aclose()

    asyncio.run(main())
    again = cached(f"sdk-{name}", backend=backend_name, manager=manager)(getattr(Sdk(), name))

    async def next_process() -> None:
        assert await again(1) == [1]
        await manager.aclose()

    asyncio.run(next_process())
    assert Sdk.runs == 1


def test_a_blocking_wrapper_around_a_coroutine_function_stays_blocking() -> None:
    async def inner(x: int) -> int:
        return x

    @functools.wraps(inner)
    def outer(x: int) -> int:
        return asyncio.run(inner(x))

    decorated = cached("blocking", manager=CacheManager())(outer)
    assert [decorated(1), decorated(1), decorated(2)] == [1, 1, 2]
    assert decorated.stats().hits == 1


def test_single_use_results_reach_the_caller_and_are_not_stored(
    manager: CacheManager, backend_name: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("content")

    @cached("single-use", backend=backend_name, manager=manager)
    def function(kind: str) -> Any:
        return map(str, [1, 2]) if kind == "map" else open(tmp_path / "file")

    for _ in range(3):
        assert list(function("map")) == ["1", "2"]
    with function("file") as one, function("file") as other:
        assert one.read() == other.read() == "content"
    assert function.stats().errors["unstorable"] == 5
    assert "can be used only once" in caplog.text
    assert len(caplog.records) == 2


def test_results_that_cannot_be_copied_reach_the_caller(manager: CacheManager, backend_name: str) -> None:
    @cached("uncopyable", backend=backend_name, manager=manager)
    def function() -> Any:
        return threading.Lock()

    assert function() is not function()
    assert function.stats().errors == {"unstorable": 2}


def test_what_cannot_be_decorated_is_refused_with_a_reason() -> None:
    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(CacheConfigurationError, match="generator function"):
        cached("x", stream="off")(generator)
    with pytest.raises(CacheConfigurationError, match="below @property"):
        cached("x")(property(lambda self: 1))
    with pytest.raises(CacheConfigurationError, match="decorate a function"):
        cached("x")(3)  # type: ignore[call-overload]


def test_contradicting_backends_are_an_error_that_names_both() -> None:
    manager = CacheManager()
    cached("twice", backend="in_memory", manager=manager)
    with pytest.raises(CacheError, match=r"'in_memory'.*'redis'"):
        cached("twice", backend="redis", manager=manager)


def test_a_decorator_may_come_before_the_configuration(tmp_path: Path) -> None:
    manager = CacheManager()

    @cached("late", manager=manager)
    def function(x: int) -> int:
        return x

    cache = manager.get_cache("late", backend="file_based", directory=tmp_path)
    function(1)
    assert cache.backend_name == "file_based"
    assert len(cache) == 1
    assert function.cache is cache


def test_evictions_are_counted_where_they_belong() -> None:
    manager = CacheManager()

    @cached("bounded", max_entries=3, manager=manager)
    def function(x: int) -> int:
        return x

    for number in range(5):
        function(number)
    assert function.stats().evictions == 2
    assert manager.stats("bounded").size == 3
    manager.get_cache("bounded").set("k", 1)
    manager.get_cache("bounded").set("l", 1)
    assert manager.stats("bounded").evictions == 4


def test_what_is_in_use_survives_a_scan() -> None:
    @cached(max_entries=10, manager=CacheManager(), namespace="scan")
    def function(x: int) -> int:
        return x

    function(0)
    for number in range(1, 200):
        function(number)
        function(0)
    assert function.stats().hits == 199


def test_a_dead_cell_is_never_answered() -> None:
    manager = CacheManager()
    values = {"v": 0}

    @cached("dead", manager=manager)
    def function() -> int:
        return values["v"]

    for number in range(5):
        values["v"] = number
        for _ in range(3):
            assert function() == number
        [function.invalidate, function.clear, manager.get_cache("dead").clear, lambda: function.seed(-1)][number % 4]()
        if number % 4 == 3:
            assert function() == -1
            function.clear()


def test_invalidation_and_hits_race_without_a_wrong_answer() -> None:
    @cached("race", manager=CacheManager())
    def function(x: int) -> int:
        return x

    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            function.invalidate(1)
            function.seed(1, 1)

    with ThreadPoolExecutor(5) as pool:
        disturber = pool.submit(disturb)
        hits = [pool.submit(lambda: [function(1) for _ in range(5000)]) for _ in range(4)]
        assert {value for future in hits for value in future.result()} == {1}
        stop.set()
        disturber.result()


def test_the_default_namespace_is_shared_with_get_cache() -> None:
    @cached("shared-namespace")
    def function(x: int) -> int:
        return x

    function(1)
    cache = get_cache("shared-namespace")
    assert cache is function.cache
    assert cache.keys() == [function.key(1)]
    cache.get("absent")
    assert (cache.stats().misses, function.stats().misses) == (2, 1)
