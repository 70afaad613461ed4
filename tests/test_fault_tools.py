"""The shipped fault tools: transparent when nothing is wrong, exact when something is, and every backend under them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import CacheManager, Entry, FileBasedBackend, InMemoryBackend, RedisBackend
from codomyrmex_cache._fault_suite import FaultConformance
from codomyrmex_cache._faults import FaultyBackend
from codomyrmex_cache.backends import base
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.testing import AsyncBackendConformance, BackendConformance
from tests.conftest import Server
from tests.test_conformance import ToyBackend

OPTIONAL = tuple(getattr(base, name) for name in base.__all__ if name not in ("Backend", "Begun") and name[0].isupper())


class _InFolder:
    def setup_method(self) -> None:
        """Deferred to the fixture below, which knows the folder."""

    def make_backend(self) -> Backend:
        return FileBasedBackend(self.folder)

    @pytest.fixture(autouse=True)
    def _wired(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store"
        super().setup_method()  # type: ignore[misc]


class _OnServer:
    def setup_method(self) -> None:
        """Deferred to the fixture below, which knows the server."""

    def make_backend(self) -> Backend:
        return RedisBackend(self.url)

    @pytest.fixture(autouse=True)
    def _wired(self, valkey: Server) -> None:
        self.url = valkey.url
        super().setup_method()  # type: ignore[misc]


class TestFaultsOfAToy(FaultConformance):
    def make_backend(self) -> Backend:
        return ToyBackend()


class TestFaultsInMemory(FaultConformance):
    def make_backend(self) -> Backend:
        return InMemoryBackend()


class TestFaultsFileBased(_InFolder, FaultConformance):
    pass


class TestFaultsRedis(_OnServer, FaultConformance):
    pass


class _Wrapped:
    def make_backend(self) -> Backend:
        return FaultyBackend(super().make_backend())  # type: ignore[misc]


class TestWrappedToy(BackendConformance):
    def make_backend(self) -> Backend:
        return FaultyBackend(ToyBackend())


class TestWrappedInMemory(BackendConformance):
    def make_backend(self) -> Backend:
        return FaultyBackend(InMemoryBackend())


class TestWrappedFileBased(_Wrapped, _InFolder, BackendConformance):
    pass


class TestWrappedFileBasedAsync(_Wrapped, _InFolder, AsyncBackendConformance):
    pass


class TestWrappedRedis(_Wrapped, _OnServer, BackendConformance):
    pass


class TestWrappedRedisAsync(_Wrapped, _OnServer, AsyncBackendConformance):
    pass


def test_a_wrapper_offers_what_the_wrapped_backend_does_and_nothing_more(tmp_path: Path) -> None:
    for inner in (ToyBackend(), InMemoryBackend(), FileBasedBackend(tmp_path), RedisBackend("unix:///nowhere")):
        wrapper = FaultyBackend(inner)
        assert [isinstance(wrapper, each) for each in OPTIONAL] == [isinstance(inner, each) for each in OPTIONAL]
        verbs = {verb for each in (base.Backend, *OPTIONAL) for verb in _members(each)}
        for verb in verbs | {f"a{verb}" for verb in verbs}:
            assert hasattr(type(wrapper), verb) == hasattr(inner, verb), (verb, inner)
        assert (wrapper.payload, wrapper.chunked) == (inner.payload, getattr(inner, "chunked", False))
        assert not hasattr(wrapper, "cell")  # the way past the verbs that the hot tier takes


def _members(protocol: type) -> Iterable[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def test_a_failure_before_the_work_prevents_it_and_one_after_does_not() -> None:
    backend = FaultyBackend(InMemoryBackend())
    with backend.fail("set", error=ConnectionError), pytest.raises(ConnectionError):
        backend.set(b"k", Entry(1))
    assert backend.has(b"k") is False
    with backend.fail("set", after=True) as lost, pytest.raises(OSError, match="set fails to order"):
        backend.set(b"k", Entry(1))
    assert backend.has(b"k") is True
    assert lost.done == {"set": 1}


def test_when_chooses_by_verb_and_number() -> None:
    backend = FaultyBackend(InMemoryBackend())
    seen: list[tuple[str, int]] = []

    def when(verb: str, number: int) -> bool:
        seen.append((verb, number))
        return verb == "has" and number == 2

    fault = backend.fail("has", "get", when=when)
    assert [_raises(backend.has), _raises(backend.get), _raises(backend.has), _raises(backend.has)] == [
        False,
        False,
        True,
        False,
    ]
    assert seen == [("has", 1), ("get", 1), ("has", 2), ("has", 3)]
    fault.stop()
    assert _raises(backend.has) is False
    fault.start()
    every_other = backend.fail("delete", every=2)
    assert [_raises(backend.delete) for _ in range(5)] == [False, True, False, True, False]
    assert (fault.done, every_other.done) == ({"has": 1}, {"delete": 2})
    backend.heal()
    assert [fault.on for fault in backend.faults] == [False, False]


def _raises(verb: Any) -> bool:
    try:
        verb(b"k")
    except OSError:
        return True
    return False


def test_without_verbs_a_failure_strikes_all_but_close(tmp_path: Path) -> None:
    backend = FaultyBackend(FileBasedBackend(tmp_path))
    backend.fail()
    assert [_raises(getattr(backend, verb)) for verb in ("get", "has", "delete", "scan", "clear", "count")] == [True] * 6
    backend.close()
    backend.fail("close")
    with pytest.raises(OSError, match="close"):
        backend.close()


def test_delays_add_up_and_happen_before_the_work(tmp_path: Path) -> None:
    backend = FaultyBackend(FileBasedBackend(tmp_path))
    slept: list[float] = []
    backend.delay(2.0, "set", sleep=lambda seconds: slept.append(seconds) or slept.append(backend.inner.has(b"k")))
    backend.delay(3.0, "set", "get", sleep=slept.append)
    backend.set(b"k", Entry(b"v"))
    assert slept == [2.0, False, 3.0]

    async def later(seconds: float) -> None:
        await asyncio.sleep(0)
        slept.append(-seconds)

    backend.delay(5.0, "get", sleep=later)

    async def main() -> None:
        found = await backend.aget(b"k")  # type: ignore[attr-defined]
        assert found.value == b"v"

    asyncio.run(main())
    assert slept == [2.0, False, 3.0, 3.0, -5.0]
    backend.close()


def test_a_real_delay_sleeps_in_threads_and_lets_a_loop_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[object] = []

    async def asleep(seconds: float) -> None:
        slept.append(("loop", seconds))

    monkeypatch.setattr("codomyrmex_cache._faults.time.sleep", lambda seconds: slept.append(("thread", seconds)))
    monkeypatch.setattr("codomyrmex_cache._faults.asyncio.sleep", asleep)
    backend = FaultyBackend(FileBasedBackend(tmp_path))
    fault = backend.delay(0.5, "has")
    backend.has(b"k")
    asyncio.run(backend.ahas(b"k"))  # type: ignore[attr-defined]
    assert slept == [("thread", 0.5), ("loop", 0.5)]
    assert fault.done == {"has": 2}
    backend.close()


def test_damage_changes_what_is_read_or_what_is_written() -> None:
    backend = FaultyBackend(ToyBackend())
    value = bytes(range(1, 256)) * 8
    backend.set(b"other", Entry(b"of the other"))
    backend.set(b"k", Entry(value))

    def read(how: Any) -> bytes:
        with backend.damage(how) as damage:
            found = backend.get(b"k")
        assert damage.done == {"get": 1}
        assert found is not None
        return bytes(found.value)

    flipped = read("flip")
    assert len(flipped) == len(value)
    assert sum((one ^ two).bit_count() for one, two in zip(flipped, value, strict=True)) == 1
    cut = read("cut")
    assert len(cut) < len(value)
    assert value.startswith(cut)
    zeroed = read("zero")
    assert len(zeroed) == len(value)
    assert 0 < zeroed.count(0) <= 512
    assert read("swap") == b"of the other"
    assert read(lambda one, other: one[:2] + other) == value[:2] + b"of the other"
    assert backend.get(b"k") == Entry(value)
    with backend.damage("cut", "set"):
        backend.set(b"k", Entry(value))
    assert len(backend.inner.get(b"k").value) < len(value)  # type: ignore[union-attr]


def test_damage_that_changes_nothing_is_not_counted() -> None:
    backend = FaultyBackend(ToyBackend())
    backend.set(b"empty", Entry(b""))
    for how in ("flip", "cut", "zero", "swap"):
        with backend.damage(how, "get", "set") as damage:  # type: ignore[arg-type]
            assert backend.get(b"empty") == Entry(b"")
            assert backend.get(b"absent") is None
        assert damage.done == {}


def test_the_same_seed_damages_the_same_places() -> None:
    def damaged(seed: int) -> list[bytes]:
        backend = FaultyBackend(ToyBackend(), seed=seed)
        backend.set(b"k", Entry(bytes(1000)))
        backend.damage("flip")
        return [backend.get(b"k").value for _ in range(5)]  # type: ignore[union-attr]

    assert damaged(1) == damaged(1) != damaged(2)


def test_what_means_nothing_is_refused() -> None:
    toy, memory = FaultyBackend(ToyBackend()), FaultyBackend(InMemoryBackend())
    with pytest.raises(CacheConfigurationError, match="InMemoryBackend keeps objects"):
        memory.damage("flip")
    with pytest.raises(CacheConfigurationError, match="begin: ToyBackend has get, set"):
        toy.fail("begin")
    with pytest.raises(CacheConfigurationError, match="damage of has: give get"):
        toy.damage("flip", "has")
    with pytest.raises(CacheConfigurationError, match="damage 'melt': give 'flip'"):
        toy.damage("melt")  # type: ignore[arg-type]


def test_evictions_are_reported_through_the_wrapper() -> None:
    cache = CacheManager().get_cache("full", FaultyBackend(InMemoryBackend(max_entries=1)))
    cache.set_many({"a": 1, "b": 2, "c": 3})
    assert cache.stats().evictions == 2
