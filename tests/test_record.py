"""Records are frozen dataclasses to everybody who looks at them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest

from codomyrmex_cache import CacheStats, Entry
from codomyrmex_cache._isolation import is_immutable
from codomyrmex_cache._policy import Rules
from codomyrmex_cache._record import replace


@dataclasses.dataclass(frozen=True)
class Longer(Entry):
    more: int = 0


def test_dataclasses_finds_the_fields_of_a_record() -> None:
    assert dataclasses.is_dataclass(CacheStats)
    assert [field.name for field in dataclasses.fields(CacheStats)] == list(inspect.signature(CacheStats).parameters)
    assert {field.name: field.default for field in dataclasses.fields(Entry)}["cost"] == 0.0
    assert all(field.kw_only for field in dataclasses.fields(Rules))


@pytest.mark.parametrize("replaced", [dataclasses.replace, replace])
def test_replacing_leaves_the_rest_as_it_was(replaced: object) -> None:
    assert replaced(Entry("a", cost=2.0), created=1.0) == Entry("a", 1.0, cost=2.0)  # type: ignore[operator]
    assert replaced(Longer("a", more=2), created=1.0) == Longer("a", 1.0, more=2)  # type: ignore[operator]


def test_a_record_is_compared_and_hashed_by_its_fields_and_class() -> None:
    assert Entry(1) == Entry(1) != Entry(2)
    assert hash(Entry(1)) == hash(Entry(1))
    assert Entry(1) != Longer(1)


def test_a_record_does_not_change() -> None:
    entry = Entry(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="'cost'"):
        entry.cost = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="'cost'"):
        del entry.cost
    assert is_immutable(Entry("text")) and not is_immutable(Entry([]))


def test_copies_and_pickles_of_a_record_are_equal_to_it() -> None:
    entry = Entry({"a": [1]}, cost=2.0)
    assert copy.copy(entry) == copy.deepcopy(entry) == pickle.loads(pickle.dumps(entry)) == entry


def test_keywords_may_be_all_that_a_record_takes() -> None:
    with pytest.raises(TypeError, match="positional"):
        Rules(1)  # type: ignore[misc]
    assert repr(Entry(1)).startswith("Entry(value=1, created=0.0, fresh_until=None")
