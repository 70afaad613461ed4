"""For tests: a clock to turn by hand, and the suite that every backend must pass.

A backend of your own is tested by inheriting:

    class TestMyBackend(BackendConformance):
        def make_backend(self):
            return MyBackend()

    class TestMyBackendAsync(AsyncBackendConformance):
        def make_backend(self):
            return MyBackend()

    class TestFaultsOfMyBackend(FaultConformance):
        def make_backend(self):
            return MyBackend()

The last one wraps it in a `FaultyBackend`, which fails, delays and damages on demand, and asks whether answers stay right.

The suites use plain `assert` and need no plugin; any runner that collects `test_*` methods of `Test*` classes will do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._fault_suite import FaultConformance
from codomyrmex_cache._faults import Fault, FaultyBackend
from codomyrmex_cache._suite import FakeClock, LoadSuite, Suite
from codomyrmex_cache.backends.base import ClearsPrefix, Coordinates, StoresMany
from codomyrmex_cache.decorator import cached

__all__ = [
    "AsyncBackendConformance",
    "BackendConformance",
    "FakeClock",
    "Fault",
    "FaultConformance",
    "FaultyBackend",
]

ODD_KEYS = ("", " ", "a:b", "1:a:k", "*", "a*[b]?\\", "\x00", "\ud800", "ключ", "\U0001f511", "k" * 10_000)
PLAIN_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**200, 1.5, float("inf"), -0.0, 1 + 2j, "", "text \udcff", b"\x00\xff", (), (1, [2]), [],
    [1, (2, {"a": None})], {}, {1: "int key", "1": "text key", (1, 2): {3}}, {1, 2}, frozenset({("x", 1)}),
)  # fmt: skip


class BackendConformance(LoadSuite):
    """What every backend must do, at the backend's own verbs and through a `Cache`."""

    # -- the backend's verbs

    def test_an_absent_key_is_nowhere(self) -> None:
        assert self.backend.get(b"absent") is None
        assert self.backend.has(b"absent") is False
        assert self.backend.delete(b"absent") is False

    def test_what_is_set_is_found_until_it_is_deleted(self) -> None:
        self.backend.set(b"k", Entry(self.payload("one")))
        found = self.backend.get(b"k")
        assert found is not None
        assert found.value == self.payload("one")
        assert self.backend.has(b"k") is True
        assert self.backend.delete(b"k") is True
        assert self.backend.delete(b"k") is False
        assert self.backend.get(b"k") is None

    def test_set_replaces(self) -> None:
        self.backend.set(b"k", Entry(self.payload("one")))
        self.backend.set(b"k", Entry(self.payload("two")))
        found = self.backend.get(b"k")
        assert found is not None
        assert found.value == self.payload("two")

    def test_keys_are_any_bytes_and_stay_apart(self) -> None:
        keys = [b"\x00", b"a", b"a\x00", b"A", b"*", b"k" * 10_000, "\ud800".encode("utf-8", "surrogatepass")]
        for number, key in enumerate(keys):
            self.backend.set(key, Entry(self.payload(str(number))))
        found = [self.backend.get(key) for key in keys]
        assert [entry and entry.value for entry in found] == [self.payload(str(number)) for number in range(len(keys))]

    def test_scan_takes_its_prefix_literally(self) -> None:
        for key in (b"1:a:x", b"1:a:*", b"1:ab:x", b"1:[a]:x", b"2:a:x"):
            self.backend.set(key, Entry(self.payload("v")))
        assert sorted(key for key, _ in self.backend.scan(b"1:a:")) == [b"1:a:*", b"1:a:x"]
        assert [key for key, _ in self.backend.scan(b"1:[a]:")] == [b"1:[a]:x"]
        assert list(self.backend.scan(b"3:")) == []

    def test_it_does_not_decide_freshness(self) -> None:
        stale = Entry(self.payload("v"), created=0.0, fresh_until=1.0, expires_at=3600.0)
        self.backend.set(b"k", stale)
        assert self.backend.has(b"k") is True

    def test_the_faster_verbs_agree_with_the_plain_ones(self) -> None:
        if isinstance(self.backend, StoresMany):
            self.backend.set_many({b"p:%d" % number: Entry(self.payload(str(number))) for number in range(5)})
            found = self.backend.get_many([b"p:0", b"p:4", b"absent"])
            assert {key: entry.value for key, entry in found.items()} == {b"p:0": self.payload("0"), b"p:4": self.payload("4")}
            assert self.backend.delete_many([b"p:0", b"absent"]) == 1
            assert self.backend.get(b"p:0") is None
        if isinstance(self.backend, ClearsPrefix):
            self.backend.set(b"q:1", Entry(self.payload("v")))
            self.backend.set(b"q:2", Entry(self.payload("v")))
            self.backend.set(b"q1", Entry(self.payload("v")))
            assert self.backend.clear(b"q:") == 2
            assert self.backend.has(b"q1") is True

    def test_threads_never_see_a_torn_entry(self) -> None:
        values = [self.payload(letter * 2000) for letter in "abcd"]

        def work(number: int) -> bool:
            for _ in range(20):
                self.backend.set(b"shared", Entry(values[number % 4]))
                found = self.backend.get(b"shared")
                if found is not None and found.value not in values:
                    return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))

    # -- through a cache

    def test_none_is_a_value(self) -> None:
        self.cache.set("k", None)
        assert self.cache.get("k", "default") is None
        assert self.cache.get("absent", "default") == "default"

    def test_plain_values_come_back_equal_and_of_equal_types(self) -> None:
        for value in PLAIN_VALUES:
            self.cache.set("k", value)
            found = self.cache.get("k", "absent")
            assert found == value
            assert repr(found) == repr(value) or isinstance(value, (set, dict))
            assert type(found) is type(value)

    def test_any_str_is_a_key(self) -> None:
        self.cache.set_many({key: [key] for key in ODD_KEYS})
        assert [self.cache.get(key) for key in ODD_KEYS] == [[key] for key in ODD_KEYS]
        assert sorted(self.cache.keys()) == sorted(ODD_KEYS)
        assert len(self.cache) == len(ODD_KEYS)

    def test_an_entry_ends_when_its_ttl_has_passed(self) -> None:
        self.cache.set("k", "v", ttl=60)
        self.clock.advance(59.999)
        assert self.cache.get("k") == "v"
        self.clock.advance(0.001)
        assert self.cache.get("k") is None
        assert self.cache.has("k") is False

    def test_ttl_zero_stores_nothing_and_removes_what_was_there(self) -> None:
        self.cache.set("k", "old")
        self.cache.set("k", "new", ttl=0)
        assert self.cache.has("k") is False

    def test_namespaces_on_one_store_stay_apart(self) -> None:
        one, other = self.manager.get_cache("a", self.backend), self.manager.get_cache("a:b", self.backend)
        one.set("b:k", 1)
        other.set("k", 2)
        assert (one.get("b:k"), one.get("k"), other.get("k"), other.get("b:k")) == (1, None, 2, None)
        assert one.clear() == 1
        assert other.get("k") == 2

    def test_delete_tells_whether_it_was_there(self) -> None:
        self.cache.set("k", 1)
        assert [self.cache.delete("k"), self.cache.delete("k")] == [True, False]

    def test_many_at_once(self) -> None:
        self.cache.set_many({"a": 1, "b": None}, ttl=10)
        assert self.cache.get_many(["a", "b", "c", "a"]) == {"a": 1, "b": None}
        assert self.cache.delete_many(["a", "c"]) == 1
        self.clock.advance(10)
        assert self.cache.get_many(["b"]) == {}

    def test_what_is_handed_out_is_not_what_is_stored(self) -> None:
        original = {"list": [1]}
        self.cache.set("k", original)
        original["list"].append(2)
        self.cache.get("k")["list"].append(3)
        assert self.cache.get("k") == {"list": [1]}

    def test_one_load_for_many_threads(self) -> None:
        barrier, loads = Barrier(16), []

        def load() -> list[int]:
            loads.append(1)
            return [len(loads)]

        def work(_: int) -> list[int]:
            barrier.wait()
            return self.cache.get_or_load("cold", load)

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(work, range(16)))
        assert results == [[1]] * 16
        assert len({id(result) for result in results}) == 16
        assert len(loads) == 1

    def test_a_decorated_function_runs_once_per_call_signature(self) -> None:
        runs: list[object] = []

        @cached("conformance-function", backend=self.backend, manager=self.manager, ttl=60)
        def function(a: object, b: int = 2) -> list[object]:
            runs.append(a)
            return [a, b]

        assert [function(1), function(1, 2), function(a=1, b=2), function(b=2, a=1)] == [[1, 2]] * 4
        assert [function(True), function("1"), function(1.0)] == [[True, 2], ["1", 2], [1.0, 2]]
        assert [repr(run) for run in runs] == ["1", "True", "'1'", "1.0"]
        self.clock.advance(60)
        assert function(1) == [1, 2]
        assert len(runs) == 5

    def test_tags_forget_what_has_them(self) -> None:
        if isinstance(self.backend, Coordinates):
            self.cache.set("a", 1, tags=["odd", "all"])
            self.cache.set("b", 2, tags=["all"])
            self.cache.set("c", 3)
            self.cache.invalidate_tags("odd", "unheard of")
            assert self.cache.get_many("abc") == {"b": 2, "c": 3}
            self.cache.invalidate_tags("all")
            assert [self.cache.get(key) for key in "abc"] == [None, None, 3]

    def test_counters_winners_and_locks_are_exact(self) -> None:
        if not isinstance(self.backend, Coordinates):
            return

        def work(number: int) -> tuple[bool, int]:
            self.cache.incr("counter")
            with self.cache.lock("section") as lock:
                inside.append(number)
                assert inside == [number]
                inside.clear()
                return self.cache.add("first", number), lock.token

        inside: list[int] = []
        with ThreadPoolExecutor(8) as pool:
            won, tokens = zip(*pool.map(work, range(40)), strict=True)
        assert self.cache.get("counter") == 40
        assert sum(won) == 1
        assert self.cache.get("first") == won.index(True)
        assert len(set(tokens)) == 40

    def test_touch_begins_the_life_anew(self) -> None:
        self.cache.set("k", "v", ttl=10)
        self.clock.advance(8)
        assert self.cache.touch("k") is True
        self.clock.advance(8)
        assert self.cache.touch("k", ttl=100) is True
        self.clock.advance(99)
        assert self.cache.get("k") == "v"
        self.clock.advance(1)
        assert self.cache.touch("k") is False

    def test_statistics_follow_the_lookups(self) -> None:
        self.cache.set("k", 1)
        self.cache.get("k")
        self.cache.get("absent")
        stats = self.cache.stats()
        assert (stats.hits, stats.misses, stats.sets, stats.hit_rate) == (1, 1, 1, 0.5)
        assert stats.size in (1, None)


class AsyncBackendConformance(Suite):
    """The same through the `a`-twins, in one event loop per test."""

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run in a loop of its own and close the backend in it."""

        async def closing() -> None:
            try:
                await main
            finally:
                await self.cache.aclose()

        asyncio.run(closing())

    def test_the_twins_do_what_the_verbs_do(self) -> None:
        async def main() -> None:
            await self.cache.aset("k", {"a": [1]}, ttl=60)
            assert await self.cache.aget("k") == {"a": [1]}
            assert await self.cache.aget("absent", "default") == "default"
            assert [await self.cache.ahas("k"), await self.cache.ahas("absent")] == [True, False]
            entry = await self.cache.aentry("k")
            assert entry is not None
            assert entry.ttl == 60
            assert [await self.cache.adelete("k"), await self.cache.adelete("k")] == [True, False]
            await self.cache.aset_many({"a": 1, "b": 2, "c": 3}, ttl=60)
            assert await self.cache.aget_many(["a", "b", "absent"]) == {"a": 1, "b": 2}
            assert await self.cache.adelete_many(["a", "absent"]) == 1
            assert sorted(await self.cache.akeys()) == ["b", "c"]
            self.clock.advance(60)
            assert await self.cache.aget("b") is None
            await self.cache.aset("d", 4, ttl=10)
            assert [await self.cache.atouch("d"), await self.cache.atouch("absent")] == [True, False]
            if isinstance(self.backend, Coordinates):
                await self.cache.aset("e", 5, tags=["tag"])
                assert await self.cache.aget("e") == 5
                await self.cache.ainvalidate_tags("tag")
                assert await self.cache.aget("e") is None
                assert [await self.cache.aincr("n"), await self.cache.aincr("n", 2)] == [1, 3]
                assert [await self.cache.aadd("once", 1), await self.cache.aadd("once", 2)] == [True, False]
                async with self.cache.lock("section") as lock:
                    assert lock.token > 0
            assert await self.cache.aclear() >= 1
            assert await self.cache.akeys() == []

        self.run(main())

    def test_one_load_for_many_tasks(self) -> None:
        loads: list[int] = []

        async def load() -> list[int]:
            loads.append(1)
            await asyncio.sleep(0)
            return [len(loads)]

        async def main() -> None:
            results = await asyncio.gather(*(self.cache.aget_or_load("cold", load) for _ in range(50)))
            assert results == [[1]] * 50
            assert len({id(result) for result in results}) == 50

        self.run(main())
        assert len(loads) == 1

    def test_a_decorated_coroutine_function(self) -> None:
        runs: list[int] = []

        @cached("conformance-async", backend=self.backend, manager=self.manager)
        async def function(a: int) -> list[int]:
            runs.append(a)
            return [a]

        async def main() -> None:
            assert [await function(1), await function(a=1)] == [[1], [1]]
            assert await function.ainvalidate(1) is True
            assert await function(1) == [1]
            assert await function.aclear() == 1

        self.run(main())
        assert runs == [1, 1]

    def test_what_one_loop_stored_the_next_one_finds(self) -> None:
        async def write() -> None:
            await self.cache.aset("k", "v")

        async def read() -> None:
            assert await self.cache.aget("k") == "v"

        self.run(write())
        self.run(read())
