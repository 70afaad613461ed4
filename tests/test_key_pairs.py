"""Pairs of arguments through whole calls, through other processes, and at random."""

from __future__ import annotations

import copy
import json
import math
from array import array
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from struct import unpack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex_cache import CacheManager, cached
from codomyrmex_cache._encoders import encode
from codomyrmex_cache.errors import UnkeyableError
from codomyrmex_cache.keys import Keyer
from tests.conftest import run_python
from tests.key_pairs import MUST_AGREE, MUST_DIFFER, MUST_NOT_MEET, PROCESS_LOCAL, Number, Pair, Text

REPOSITORY = Path(__file__).parent.parent

# -- through whole calls ---------------------------------------------------------------------------------------------


@pytest.fixture
def number(manager: CacheManager, backend_name: str) -> Any:
    """A function that answers another number each time it runs."""
    numbers = count()

    @cached("pairs", backend=backend_name, version="1", manager=manager)
    def number(value: object) -> int:
        return next(numbers)

    return number


def _answers(number: Callable[[object], int], pair: Pair) -> tuple[bool, bool]:
    """Whether each member of the pair is answered twice with the same number, and whether both have the same."""
    one, other = pair()
    first, second, first_again, second_again = number(one), number(other), number(one), number(other)
    return first == first_again and second == second_again, first == second


def test_arguments_that_differ_are_two_calls(number: Any) -> None:
    wrong = [name for name, pair in MUST_DIFFER.items() if _answers(number, pair) != (True, False)]

    assert wrong == []
    assert number.stats().bypasses == 0


def test_arguments_that_agree_are_one_call(number: Any) -> None:
    wrong = [name for name, pair in MUST_AGREE.items() if _answers(number, pair) != (True, True)]

    assert wrong == []
    assert number.stats().bypasses == 0


def _encoding(value: object) -> bytes | None:
    try:
        return encode(value)
    except UnkeyableError:
        return None


def test_what_may_be_refused_never_meets() -> None:
    encodings = {name: [_encoding(value) for value in pair()] for name, pair in MUST_NOT_MEET.items()}
    wrong = [name for name, (one, other) in encodings.items() if one is not None and one == other]

    assert wrong == []


def test_there_are_many_pairs() -> None:
    assert len(MUST_DIFFER) >= 150
    assert len(MUST_AGREE) >= 80
    assert set(MUST_DIFFER) >= set(PROCESS_LOCAL)


# -- through other processes -----------------------------------------------------------------------------------------

SCRIPT = """
import json
from random import Random
from codomyrmex_cache import CacheManager, cached
from tests.key_pairs import MUST_AGREE, MUST_DIFFER, PROCESS_LOCAL

@cached("pairs", name="pairs", version="1", manager=CacheManager())
def function(value): ...

def key(value):
    try:
        return function.key(value)
    except Exception as error:
        return repr(error)

pairs = [("differ: " + name, pair) for name, pair in MUST_DIFFER.items() if name not in PROCESS_LOCAL]
pairs += [("agree: " + name, pair) for name, pair in MUST_AGREE.items()]
Random({seed}).shuffle(pairs)
values = {{name: pair() for name, pair in pairs}}
print(json.dumps({{name: [key(value) for value in pair] for name, pair in values.items()}}))
"""
"""The order is another in each process and all values live to the end, so that a key that depends on what else there is,
or was done before, is found out."""


def _keys_in_another_process(seed: int) -> dict[str, list[str]]:
    printed = run_python(SCRIPT.format(seed=seed), PYTHONHASHSEED=str(seed), PYTHONPATH=str(REPOSITORY))
    return dict(json.loads(printed))


def test_keys_are_the_same_in_every_process() -> None:
    with ThreadPoolExecutor(5) as pool:
        first, *others = pool.map(_keys_in_another_process, (0, 1, 2, 12_345, 4_294_967_295))
    wrong = sorted(name for name in first if any(other[name] != first[name] for other in others))

    assert wrong == []
    assert len(first) == len(MUST_DIFFER) + len(MUST_AGREE) - len(PROCESS_LOCAL)


# -- at random -------------------------------------------------------------------------------------------------------

MANY = settings(max_examples=20_000, deadline=None, database=None)

SCALARS: list[Any] = [
    None, False, True, 0, 1, 2, -1, 255, 2**64, 0.0, -0.0, 1.0, math.nan, math.inf, 0j, 1 + 0j, "", "0", "1", "a", "\ud800",
    b"", b"1", b"a", Decimal("1"), Decimal("1.0"), date(2026, 1, 1), datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC),
]  # fmt: skip
"""What is easily taken for one another; all hashable."""

TEXTS = [text * length for text in ("x", "\ud800") for length in (1_024, 1_025)]
"""Around the length from which the memo hashes text where it is."""

LEAVES: list[Any] = [
    *SCALARS, *TEXTS, bytearray(b""), bytearray(b"a"), memoryview(b"a"), array("B", b"a"), array("b", b"a"),
    Text("a"), Number(1), ..., StopIteration,
]  # fmt: skip


class _Grower:
    """Makes a tree from bytes, which Hypothesis draws in a third of the time that its own trees take."""

    def __init__(self, leaves: list[Any], program: bytes) -> None:
        self._leaves = leaves
        self._rest = iter(program)

    def tree(self, depth: int = 0) -> Any:
        code = next(self._rest, 255)
        if code >= (120 if depth else 215) or depth > 4:
            return self.leaf(self._leaves)
        kind, size = code % 5, code // 5 % 5
        if kind == 0:
            return {self.leaf(SCALARS): self.tree(depth + 1) for _ in range(size)}
        if kind == 1:
            return {self.hashable() for _ in range(size)}
        if kind == 2:
            return frozenset(self.hashable() for _ in range(size))
        return (list, tuple)[kind - 3](self.tree(depth + 1) for _ in range(size))

    def hashable(self) -> Any:
        code = next(self._rest, 255)
        return self.leaf(SCALARS) if code >= 60 else tuple([self.leaf(SCALARS) for _ in range(code % 3)])

    def leaf(self, leaves: list[Any]) -> Any:
        """One from the list, or a number or text made of the next bytes."""
        code = next(self._rest, 0)
        if code < 192:
            return leaves[code % len(leaves)]
        few = bytes([next(self._rest, 0), next(self._rest, 0)])
        make: tuple[Callable[[], Any], ...] = (
            lambda: int.from_bytes(few, signed=True) << code % 3 * 40,
            lambda: unpack("e", few)[0],  # half precision reaches zeros, denormals, infinities and NaN with two bytes
            lambda: few.decode("latin-1"),
            lambda: few,
        )
        return make[code % 4]()


def _grown(leaves: list[Any]) -> st.SearchStrategy[Any]:
    return st.binary(min_size=6, max_size=24).map(lambda program: _Grower(leaves, program).tree())


Step = tuple[int, int]
"""The place of a member, and which half of it: of the pairs of a dict 0 is the key, of all else 1 is the member."""


def _members(tree: Any) -> list[list[Any]]:
    return [list(pair) for pair in tree.items()] if isinstance(tree, dict) else [[None, member] for member in tree]


def _leaves(tree: Any) -> Iterator[tuple[list[Step], Any]]:
    """Each scalar and each empty container, with the way to it."""
    if not isinstance(tree, (list, tuple, dict, set, frozenset)) or not tree:
        yield [], tree
        return
    halves = (0, 1) if isinstance(tree, dict) else (1,)
    for place, member in enumerate(_members(tree)):
        for half in halves:
            for way, leaf in _leaves(member[half]):
                yield [(place, half), *way], leaf


def _replaced(tree: Any, way: list[Step], leaf: Any) -> Any:
    if not way:
        return leaf
    (place, half), *rest = way
    members = _members(tree)
    members[place][half] = _replaced(members[place][half], rest, leaf)
    return dict(members) if isinstance(tree, dict) else type(tree)(member for _, member in members)


def _told_apart_by(leaf: Any) -> Hashable:
    """What makes a scalar the one it is; all NaN are one."""
    return type(leaf), "nan" if leaf != leaf else repr(leaf)


def _near(leaf: Any) -> Hashable:
    """Something else that is easily taken for the leaf."""
    if isinstance(leaf, (bool, type(None))):
        return int(bool(leaf))
    if isinstance(leaf, int):
        return float(leaf) if abs(leaf) <= 2**53 else leaf + 2**64
    if isinstance(leaf, float):
        return complex(leaf) if leaf else -leaf
    if isinstance(leaf, str):
        return leaf.encode("utf-8", "surrogatepass")
    if isinstance(leaf, bytes):
        return leaf.decode("latin-1")
    return _OTHER_EMPTY.get(type(leaf), lambda: (leaf,))()


_OTHER_EMPTY: dict[type, Callable[[], Hashable]] = {
    list: tuple,
    tuple: frozenset,
    dict: tuple,
    set: frozenset,
    frozenset: tuple,
}


def _permuted(tree: Any) -> Any:
    """The same tree with all dicts and sets filled the other way round."""
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(_permuted, tree))
    if isinstance(tree, dict):
        return {_permuted(key): _permuted(tree[key]) for key in reversed(tree)}
    if isinstance(tree, (set, frozenset)):
        return type(tree)(map(_permuted, reversed(list(tree))))
    return tree


@MANY
@given(_grown(SCALARS), st.sampled_from(SCALARS), st.integers(0, 63))
def test_copies_and_other_orders_agree_and_any_changed_leaf_differs(tree: Any, other: Any, choice: int) -> None:
    near, place = divmod(choice, 32)
    leaves = list(_leaves(tree))
    way, leaf = leaves[place % len(leaves)]
    changed = _near(leaf) if near or _told_apart_by(leaf) == _told_apart_by(other) else other
    encoded = encode(tree)

    assert encode(copy.deepcopy(tree)) == encoded == encode(_permuted(tree))
    assert encode(_replaced(tree, way, changed)) != encoded


_MARSHALLED_ALIKE: dict[type, Callable[[Any], Any]] = {bytes: bytearray, bytearray: bytes, memoryview: bytes, array: bytes}


def _other_buffers(tree: Any) -> Any:
    """Another tree that marshal writes in the same bytes."""
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(_other_buffers, tree))
    if isinstance(tree, dict):
        return {key: _other_buffers(value) for key, value in tree.items()}
    return _MARSHALLED_ALIKE.get(type(tree), lambda same: same)(tree)


def _called(first: object, second: object) -> None: ...


KEYER = Keyer(_called, ("first", "second"), version=1)
"""One for all examples, so that whatever meets in its memo meets."""


@MANY
@given(_grown(LEAVES), _grown(LEAVES), st.sampled_from([_permuted, _other_buffers, None]))
def test_the_fast_path_gives_the_canonical_key(tree: Any, other: Any, alike: Callable[[Any], Any] | None) -> None:
    bound = (tree, other)
    canonical = KEYER._canonical(bound)

    assert [KEYER.key(bound), KEYER.key(bound)] == [canonical, canonical]
    second = (other, tree) if alike is None else (alike(tree), other)
    canonical_second = KEYER._canonical(second)
    assert [KEYER.key(second), KEYER.key(second)] == [canonical_second, canonical_second]
    assert (KEYER.key(second) == KEYER.key(bound)) == (canonical_second == canonical)
