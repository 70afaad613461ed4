"""What the conformance suites of `testing` stand on, and what they ask of backends that coordinate loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from codomyrmex_cache._entry import Entry
from codomyrmex_cache.backends.base import Backend, Begun, Coordinates
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.manager import CacheManager

__all__ = ["FakeClock", "LoadSuite", "Suite"]


class FakeClock:
    """A clock that stands still until told otherwise.

    >>> clock = FakeClock(start=100.0)
    >>> clock.advance(5.0)
    >>> clock()
    105.0
    """

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass; a negative number sets the clock back."""
        self.now += seconds


class Suite:
    """Wiring shared by both suites."""

    backend: Backend
    clock: FakeClock
    manager: CacheManager
    cache: Cache

    def make_backend(self) -> Backend:
        """A backend over an empty store."""
        raise NotImplementedError("a conformance suite needs make_backend()")

    def setup_method(self) -> None:
        self.backend = self.make_backend()
        self.clock = FakeClock()
        self.manager = CacheManager(clock=self.clock)
        self.cache = self.manager.get_cache("conformance", self.backend)

    def teardown_method(self) -> None:
        self.backend.close()

    def payload(self, text: str) -> Any:
        """Something the backend can store as `Entry.value`."""
        return text if self.backend.payload == "object" else text.encode()


class LoadSuite(Suite):
    """What every backend must do that has the verbs of `Coordinates`."""

    def test_a_load_is_stored_if_nothing_has_come_between(self) -> None:
        if isinstance(self.backend, Coordinates):
            begun = self.backend.begin(b"1:a:k", [b"n1:a:"], 0.0)
            assert begun.entry is None
            assert len(begun.generations) == 2
            assert self.backend.commit(b"1:a:k", Entry(self.payload("loaded")), [b"n1:a:"], begun) is True
            assert self._stored(b"1:a:k") == self.payload("loaded")

    def test_whatever_invalidates_wins_over_a_load_under_way(self) -> None:
        if not isinstance(self.backend, Coordinates):
            return
        backend, names = self.backend, [b"n1:a:", b"t1:a:tag"]

        def overtaken(invalidate: Callable[[], object]) -> object:
            begun = backend.begin(b"1:a:k", names, 0.0)
            invalidate()
            assert backend.commit(b"1:a:k", Entry(self.payload("old")), names, begun) is False
            return self._stored(b"1:a:k")

        assert overtaken(lambda: backend.delete(b"1:a:k")) is None
        assert overtaken(lambda: backend.set(b"1:a:k", Entry(self.payload("explicit")))) == self.payload("explicit")
        backend.delete(b"1:a:k")
        assert overtaken(lambda: backend.revoke([b"t1:a:tag"])) is None
        assert overtaken(lambda: backend.revoke([b"n1:a:"])) is None
        assert overtaken(lambda: backend.replace(b"1:a:k", None, Entry(self.payload("first")), True)) == self.payload("first")
        assert overtaken(lambda: self._load(b"1:a:k", names, "other load")) == self.payload("other load")

    def test_generations_come_when_asked_for_and_never_again(self) -> None:
        if isinstance(self.backend, Coordinates):
            assert list(self.backend.generations(b"1:a:k", [b"t1:a:tag"])) == [None]
            first = self.backend.begin(b"1:a:k", [b"t1:a:tag"], 0.0).generations[1]
            assert list(self.backend.generations(b"1:a:k", [b"t1:a:tag"])) == [first]
            assert self.backend.begin(b"1:a:other", [b"t1:a:tag"], 0.0).generations[1] == first
            self.backend.revoke([b"t1:a:tag"])
            assert list(self.backend.generations(b"1:a:k", [b"t1:a:tag"])) == [None]
            assert self.backend.begin(b"1:a:k", [b"t1:a:tag"], 0.0).generations[1] != first

    def test_one_holds_the_lease_and_others_are_told_who(self) -> None:
        if not isinstance(self.backend, Coordinates):
            return
        backend = self.backend
        held = backend.begin(b"1:a:k", [], 60.0)
        assert held.lease > 0
        busy = backend.begin(b"1:a:k", [], 60.0)
        assert (busy.lease, busy.holder, busy.generations) == (0, held.lease, ())
        assert backend.renew(b"1:a:k", held.lease, 60.0) is True
        assert backend.renew(b"1:a:k", held.lease + 1, 60.0) is False
        assert backend.begin(b"1:a:another", [], 60.0).lease > held.lease
        backend.end(b"1:a:k", held, failed=True)
        after = backend.begin(b"1:a:k", [], 60.0)
        assert (after.lease > held.lease, after.failed) == (True, held.lease)
        assert backend.renew(b"1:a:k", held.lease, 60.0) is False
        assert backend.begin(b"1:a:k", [], 60.0).failed == held.lease
        assert backend.commit(b"1:a:k", Entry(self.payload("v")), [], after) is True
        found = backend.begin(b"1:a:k", [], 60.0)
        assert found.lease > after.lease
        assert found.entry is not None
        assert found.entry.value == self.payload("v")

    def test_a_load_without_an_entry_leaves_nothing_behind(self) -> None:
        if isinstance(self.backend, Coordinates):
            for seconds in (0.0, 60.0):
                begun = self.backend.begin(b"1:a:k", [], seconds)
                assert list(self.backend.generations(b"1:a:k", [b"k1:a:k"])) == [begun.generations[0]]
                self.backend.end(b"1:a:k", begun._replace(generations=()), failed=False)  # the lease alone
                assert list(self.backend.generations(b"1:a:k", [b"k1:a:k"])) == [begun.generations[0]]
                assert self.backend.begin(b"1:a:k", [], 60.0).lease > begun.lease
                self.backend.delete(b"1:a:k")
                begun = self.backend.begin(b"1:a:k", [], seconds)
                self.backend.end(b"1:a:k", begun, failed=False)
                assert list(self.backend.generations(b"1:a:k", [b"k1:a:k"])) == [None]

    def test_nobody_waits_for_a_load_that_is_invalidated(self) -> None:
        if isinstance(self.backend, Coordinates):
            doomed = self.backend.begin(b"1:a:k", [b"t1:a:tag"], 60.0)
            self.backend.revoke([b"t1:a:tag"])
            next_one = self.backend.begin(b"1:a:k", [b"t1:a:tag"], 60.0)
            assert next_one.lease > doomed.lease
            assert self.backend.commit(b"1:a:k", Entry(self.payload("old")), [b"t1:a:tag"], doomed) is False
            assert self.backend.renew(b"1:a:k", next_one.lease, 60.0) is True

    def test_replace_compares_and_swaps(self) -> None:
        if isinstance(self.backend, Coordinates):
            one, two = Entry(self.payload("one")), Entry(self.payload("two"))
            assert self.backend.replace(b"1:a:k", None, one, True) is True
            assert self.backend.replace(b"1:a:k", None, two, True) is False
            found = self.backend.get(b"1:a:k")
            assert self.backend.replace(b"1:a:k", Entry(self.payload("other")), two, True) is False
            assert self.backend.replace(b"1:a:k", found, two, True) is True
            assert self._stored(b"1:a:k") == self.payload("two")
            begun = self.backend.begin(b"1:a:k", [], 0.0)
            assert self.backend.replace(b"1:a:k", begun.entry, one, False) is True
            assert self.backend.commit(b"1:a:k", Entry(self.payload("loaded")), [], begun) is True

    def _stored(self, key: bytes) -> Any:
        found = self.backend.get(key)
        return None if found is None else found.value

    def _load(self, key: bytes, names: Sequence[bytes], text: str) -> None:
        assert isinstance(self.backend, Coordinates)
        begun: Begun = self.backend.begin(key, names, 0.0)
        assert self.backend.commit(key, Entry(self.payload(text)), names, begun) is True
