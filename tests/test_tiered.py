"""Two tiers as one backend: the shipped suites over four pairs, and what is promised beyond them.

Every interleaving of the verbs' own steps is in `test_tiered_machine`; failures, event loops and processes in
`test_tiered_troubles`.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from codomyrmex_cache import CacheManager, Entry, FileBasedBackend, InMemoryBackend, RedisBackend, TieredBackend, cached
from codomyrmex_cache.backends import _stamps, base
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.testing import AsyncBackendConformance, BackendConformance, FakeClock, FaultConformance, FaultyBackend
from tests.conftest import Server
from tests.test_conformance import ToyBackend

ROOT = Path(__file__).parent.parent
OPTIONAL = tuple(getattr(base, name) for name in base.__all__ if name not in ("Backend", "Begun") and name[0].isupper())


# -- the shipped suites


class _MemoryOverMemory:
    def make_backend(self) -> Backend:
        return TieredBackend(InMemoryBackend(), InMemoryBackend())


class _InFolder:
    def setup_method(self) -> None:
        """Deferred to the fixture below, which knows the folder."""

    def make_backend(self) -> Backend:
        return TieredBackend(InMemoryBackend(), FileBasedBackend(self.folder))

    @pytest.fixture(autouse=True)
    def _wired(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store"
        super().setup_method()  # type: ignore[misc]


class _OnServer:
    def setup_method(self) -> None:
        """Deferred to the fixture below, which knows the server."""

    def near(self) -> Backend:
        return InMemoryBackend()

    def make_backend(self) -> Backend:
        return TieredBackend(self.near(), RedisBackend(self.url))

    @pytest.fixture(autouse=True)
    def _wired(self, valkey: Server, tmp_path: Path) -> None:
        self.url, self.folder = valkey.url, tmp_path / "store"
        super().setup_method()  # type: ignore[misc]


class _FilesOnServer(_OnServer):
    def near(self) -> Backend:
        return FileBasedBackend(self.folder)


class TestMemoryOverMemory(_MemoryOverMemory, BackendConformance):
    pass


class TestMemoryOverMemoryAsync(_MemoryOverMemory, AsyncBackendConformance):
    pass


class TestMemoryOverFiles(_InFolder, BackendConformance):
    pass


class TestMemoryOverFilesAsync(_InFolder, AsyncBackendConformance):
    pass


class TestMemoryOverRedis(_OnServer, BackendConformance):
    pass


class TestMemoryOverRedisAsync(_OnServer, AsyncBackendConformance):
    pass


class TestFilesOverRedis(_FilesOnServer, BackendConformance):
    pass


class TestFilesOverRedisAsync(_FilesOnServer, AsyncBackendConformance):
    pass


class TestMemoryOverToy(BackendConformance):
    def make_backend(self) -> Backend:
        return TieredBackend(InMemoryBackend(), ToyBackend())


class TestFaultsOfMemoryOverMemory(_MemoryOverMemory, FaultConformance):
    pass


class TestFaultsOfMemoryOverFiles(_InFolder, FaultConformance):
    pass


class TestFaultsOfFilesOverRedis(_FilesOnServer, FaultConformance):
    pass


# -- what it offers


@pytest.mark.parametrize("make", [InMemoryBackend, ToyBackend, lambda: RedisBackend("unix:///nowhere")])
def test_it_offers_what_the_far_backend_offers(make: Callable[[], Backend]) -> None:
    far = make()
    tiers = TieredBackend(InMemoryBackend(), far)
    offered = {protocol.__name__: isinstance(tiers, protocol) for protocol in OPTIONAL}
    assert offered == {protocol.__name__: isinstance(far, protocol) for protocol in OPTIONAL} | {
        "Quick": far.payload == "bytes"
    }
    assert isinstance(tiers, TieredBackend)


def test_a_verb_that_awaits_has_a_twin_if_the_far_backend_has_one() -> None:
    far = RedisBackend("unix:///nowhere")
    twins = {name for name in dir(far) if name[0] == "a" and asyncio.iscoroutinefunction(getattr(far, name))}
    tiers = TieredBackend(InMemoryBackend(), far)
    assert {name for name in twins if not asyncio.iscoroutinefunction(getattr(tiers, name, None))} == set()
    assert len(twins) > 15


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TieredBackend(ToyBackend(), InMemoryBackend()), "ToyBackend keeps bytes, but InMemoryBackend below"),
        (lambda: TieredBackend("in_memory", ToyBackend()), "l1='in_memory': give an object with get"),  # type: ignore[arg-type]
        (lambda: TieredBackend(InMemoryBackend(), None), "l2=None: give an object with get"),  # type: ignore[arg-type]
        (lambda: TieredBackend(*[InMemoryBackend()] * 2), "are the same InMemoryBackend"),
        *((lambda bound=bound: TieredBackend(InMemoryBackend(), ToyBackend(), bound=bound), f"{bound!r}: give seconds > 0")
          for bound in (0, -1.0, math.nan, True, "5s", None)),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(make: Callable[[], Backend], says: str) -> None:
    with pytest.raises(CacheConfigurationError) as raised:
        make()
    assert says in str(raised.value)


def test_it_is_shown_with_its_parts() -> None:
    tiers = TieredBackend(InMemoryBackend(), RedisBackend("redis://me:hidden@host/0"), bound=2)
    assert repr(tiers).endswith("RedisBackend('redis://me:***@host/0'), bound=2)")
    assert (tiers.state, tiers.max_value_bytes) == ("closed", RedisBackend.max_value_bytes)  # type: ignore[attr-defined]


# -- copies


class Counting:
    """What is asked of a backend, by verb."""

    def __init__(self, backend: FaultyBackend) -> None:
        self.fault = backend.delay(0.0, sleep=lambda _: None)

    def asked(self) -> dict[str, int]:
        """Since the last time."""
        done = {verb: count for verb, count in self.fault.done.items() if count}
        self.fault.done.clear()
        return done


def _over(far: Backend, **options: Any) -> tuple[TieredBackend, Counting]:
    """Memory over a backend, and what is asked of that one."""
    faulty = FaultyBackend(far)
    return TieredBackend(InMemoryBackend(), faulty, **options), Counting(faulty)


def test_a_copy_answers_until_the_bound() -> None:
    clock, far = FakeClock(), ToyBackend()
    tiers, counting = _over(far, bound=5.0, clock=clock)
    far.set(b"k", Entry(b"old"))
    assert tiers.get(b"k") == Entry(b"old")
    far.set(b"k", Entry(b"new"))
    clock.advance(4.999)
    assert counting.asked() == {"get": 1}
    assert (tiers.get(b"k"), tiers.has(b"k"), counting.asked()) == (Entry(b"old"), True, {})
    clock.advance(0.001)
    assert (tiers.get(b"k"), counting.asked()) == (Entry(b"new"), {"get": 1})


def test_what_is_written_here_is_answered_at_once_and_from_near() -> None:
    tiers, counting = _over(ToyBackend())
    tiers.set(b"k", Entry(b"v"))
    assert (tiers.get(b"k"), counting.asked()) == (Entry(b"v"), {"set": 1})
    tiers.delete(b"k")
    assert (tiers.get(b"k"), counting.asked()) == (None, {"delete": 1, "get": 1})


def test_a_copy_lives_no_longer_than_its_entry() -> None:
    clock, far = FakeClock(), ToyBackend()
    near = InMemoryBackend()
    tiers = TieredBackend(near, far, bound=5.0, clock=clock)
    tiers.set(b"k", Entry(b"v", created=100.0, expires_at=102.0))
    kept = near.get(b"k")
    assert kept is not None
    assert kept.expires_at == clock() + 2.0
    far.delete(b"k")  # as a store does that drops what has expired
    clock.advance(1.999)
    assert tiers.get(b"k") is not None
    clock.advance(0.001)
    assert tiers.get(b"k") is None


def test_an_entry_ends_with_its_ttl_in_both_tiers(valkey: Server, tmp_path: Path) -> None:
    clock = FakeClock(time.time())
    for name, far in {"files": FileBasedBackend(tmp_path), "redis": RedisBackend(valkey.url)}.items():
        manager = CacheManager(secret=b"a secret for the tests", clock=clock)
        cache = manager.get_cache(name, TieredBackend(InMemoryBackend(), far, bound=math.inf))
        cache.set("k", "v", ttl=60)
        cache.get("k")
        clock.advance(59.999)
        assert cache.get("k") == "v"
        clock.advance(0.001)
        assert (cache.get("k"), cache.has("k")) == (None, False)
        manager.close()


def test_the_near_server_drops_copies_by_itself(valkey: Server) -> None:
    import redis

    near = RedisBackend(valkey.url)
    TieredBackend(near, ToyBackend(), bound=5.0).set(b"1:a:k", Entry(b"v"))
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        assert 0 < client.pttl(near.server_key(b"1:a:k")) <= 5000
    near.close()


def test_a_large_array_is_each_callers_own(tmp_path: Path) -> None:
    tiers, counting = _over(FileBasedBackend(tmp_path))

    @cached("arrays", backend=tiers, manager=(manager := CacheManager()))
    def array() -> numpy.ndarray[Any, Any]:
        return numpy.zeros(100_000)

    for _ in range(4):
        mine = array()
        assert mine.sum() == 0.0
        mine += 1.0
    assert (array.stats().hits, array.stats().errors) == (3, {})
    assert counting.asked()["get"] == 2  # the call that loads, and the one that finds what was too large to be kept as written
    manager.close()


@pytest.mark.parametrize("place", range(64))
def test_a_copy_that_is_damaged_does_not_answer(place: int) -> None:
    near, far = ToyBackend(), ToyBackend()
    tiers = TieredBackend(near, far)
    tiers.set(b"k", Entry(b"v"))
    far.set(b"k", Entry(b"far"))
    value, expires_at = near.rows[b"k"]
    assert tiers.get(b"k") == Entry(b"v")
    near.rows[b"k"] = (value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :], expires_at)
    assert tiers.get(b"k") == Entry(b"far")


def test_a_copy_that_is_cut_or_of_another_key_does_not_answer() -> None:
    near, far = ToyBackend(), ToyBackend()
    tiers = TieredBackend(near, far)
    for value in (b"", b"v" * 200):
        for change in (
            lambda copy: copy[:-1],
            lambda copy: copy[:63],
            lambda copy: copy + b"!",
            lambda copy: near.rows[b"other"][0],
        ):
            tiers.set(b"other", Entry(value + b"other"))
            tiers.set(b"k", Entry(value + b"k"))
            far.set(b"k", Entry(b"far"))
            near.rows[b"k"] = (change(near.rows[b"k"][0]), None)
            assert tiers.get(b"k") == Entry(b"far")


# -- races that are the worst to have


class Hooked(ToyBackend):
    """Lets something happen after it was read or written, before it answers."""

    def __init__(self, **hooks: Callable[[], object]) -> None:
        super().__init__()
        self.hooks = hooks

    def get(self, key: bytes) -> Entry | None:
        found = super().get(key)
        self.hooks.pop("get", lambda: None)()
        return found

    def set(self, key: bytes, entry: Entry) -> None:
        super().set(key, entry)
        self.hooks.pop("set", lambda: None)()


INVALIDATIONS: dict[str, Callable[[TieredBackend], object]] = {
    "delete": lambda tiers: tiers.delete(b"1:a:k"),
    "set": lambda tiers: tiers.set(b"1:a:k", Entry(b"new")),
    "clear": lambda tiers: CacheManager().get_cache("a", tiers).clear(),
}


@pytest.mark.parametrize("name", INVALIDATIONS)
@pytest.mark.parametrize("near", [InMemoryBackend, ToyBackend])
def test_a_promotion_that_is_overtaken_brings_nothing_back(name: str, near: Callable[[], Backend]) -> None:
    far = Hooked()
    tiers = TieredBackend(near(), far)
    far.rows[b"1:a:k"] = (b"old", None)
    far.hooks["get"] = lambda: INVALIDATIONS[name](tiers)
    assert tiers.get(b"1:a:k") == Entry(b"old")
    assert tiers.get(b"1:a:k") == far.get(b"1:a:k") != Entry(b"old")


@pytest.mark.parametrize("name", INVALIDATIONS)
def test_nor_does_one_that_is_overtaken_just_before_it_is_kept(name: str) -> None:
    near, far = FaultyBackend(InMemoryBackend()), ToyBackend()
    tiers = TieredBackend(near, far)
    far.rows[b"1:a:k"] = (b"old", None)
    near.delay(0.0, "set", sleep=lambda _: INVALIDATIONS[name](tiers), when=lambda _, number: number == 1)
    assert tiers.get(b"1:a:k") == Entry(b"old")
    assert tiers.get(b"1:a:k") == far.get(b"1:a:k") != Entry(b"old")


def test_of_two_writes_at_once_the_last_one_in_the_far_store_stays() -> None:
    far = Hooked()
    tiers = TieredBackend(InMemoryBackend(), far)
    far.hooks["set"] = lambda: tiers.set(b"k", Entry(b"second"))
    tiers.set(b"k", Entry(b"first"))
    assert tiers.get(b"k") == far.get(b"k") == Entry(b"second")


def test_nobody_reads_old_after_new_while_it_is_written() -> None:
    read: list[Entry | None] = []
    near, far = ToyBackend(), Hooked()
    one, other = (TieredBackend(near, far) for _ in range(2))
    far.rows[b"k"] = (b"old", None)

    def meanwhile() -> None:
        row = near.rows[b"k"]
        read.append(one.get(b"k"))
        near.rows[b"k"] = row  # another process's copy, which was read before
        read.append(one.get(b"k"))

    other.get(b"k")
    far.hooks["set"] = meanwhile
    one.set(b"k", Entry(b"new"))
    assert read == [Entry(b"new"), Entry(b"new")]


def test_a_slow_write_prolongs_no_bound() -> None:
    clock, far = FakeClock(), Hooked()
    tiers = TieredBackend(InMemoryBackend(), far, bound=5.0, clock=clock)

    def meanwhile() -> None:
        far.rows[b"k"] = (b"another program's", None)
        clock.advance(4.0)

    far.hooks["set"] = meanwhile
    tiers.set(b"k", Entry(b"v"))
    clock.advance(1.0)
    assert tiers.get(b"k") == Entry(b"another program's")


def test_another_processs_copy_of_the_very_moment_of_a_write_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, near, far = FakeClock(), ToyBackend(), ToyBackend()
    monkeypatch.setattr(_stamps, "time", type("Time", (), {"monotonic": clock}))
    one, other = (TieredBackend(near, far, clock=clock) for _ in range(2))
    far.set(b"k", Entry(b"old"))
    other.get(b"k")
    row = near.rows[b"k"]
    one.delete(b"k")
    near.rows[b"k"] = row  # kept late
    assert one.get(b"k") is None
    near.delete(b"k")
    far.set(b"k", Entry(b"new"))
    clock.advance(0.001)
    other.get(b"k")
    far.delete(b"k")
    assert one.get(b"k") == Entry(b"new")  # this one is trusted


def test_each_program_has_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, near, far = FakeClock(), ToyBackend(), ToyBackend()
    monkeypatch.setattr(_stamps, "time", type("Time", (), {"monotonic": clock}))
    patient, other = (TieredBackend(near, far, clock=clock, bound=bound) for bound in (600.0, 5.0))
    patient.set(b"k", Entry(b"old"))
    far.set(b"k", Entry(b"new"))
    clock.advance(4.9)
    assert (patient.get(b"k"), other.get(b"k")) == (Entry(b"old"), Entry(b"old"))
    clock.advance(0.1)
    assert (patient.get(b"k"), other.get(b"k")) == (Entry(b"old"), Entry(b"new"))


def test_a_failed_swap_lets_the_next_look_see_what_is_there(tmp_path: Path) -> None:
    caches = [
        CacheManager(secret=b"a secret for the tests").get_cache(
            "n", TieredBackend(InMemoryBackend(), FileBasedBackend(tmp_path))
        )
        for _ in range(2)
    ]
    numbers = [cache.incr("k") for _ in range(5) for cache in caches]
    assert numbers == list(range(1, 11))
    for cache in caches:
        cache.close()


def test_threads_read_what_they_wrote() -> None:
    tiers = TieredBackend(InMemoryBackend(max_entries=8), InMemoryBackend())
    wrong: list[object] = []

    def work(number: int) -> None:
        own, draw = b"own %d" % number, random.Random(number)
        for turn in range(500):
            if draw.random() < 0.5:
                tiers.set(own, Entry((number, turn)))
                expected: Entry | None = Entry((number, turn))
            else:
                tiers.delete(own)
                expected = None
            tiers.get(b"own %d" % draw.randrange(8))
            if tiers.get(own) != expected:
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
