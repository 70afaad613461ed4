"""A decorated function that takes a list and gives a list: each item is an entry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from codomyrmex_cache import _embeddings
from codomyrmex_cache import _verbs as verbs
from codomyrmex_cache._batch import Items, call_many
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._effects import Answer, Flow
from codomyrmex_cache._entries import read
from codomyrmex_cache._entry import MISSING, Missing
from codomyrmex_cache._isolation import is_immutable, isolated
from codomyrmex_cache._memo import Memo
from codomyrmex_cache._sdk import call_of
from codomyrmex_cache.errors import CacheCodecError, CacheConfigurationError, UnkeyableError
from codomyrmex_cache.keys import Key

__all__ = ["BatchMemo"]


class Plan(NamedTuple):
    """A call taken apart: its distinct items, and for each place of its list which of them is there."""

    items: Items
    order: Sequence[int]


class Pieces(NamedTuple):
    """How a function's lists are taken apart.

    Args:
        listed: the items of an argument; `None` or none if there is nothing to split.
        parted: from a result and its items to the results of these.
        joined: from the results of the items to a result.
    """

    listed: Callable[[Any], list[Any] | None]
    parted: Callable[[Any, Sequence[Any]], Any]
    joined: Callable[[list[Any]], Any]


class BatchMemo(Memo):
    """A `Memo` whose function takes its items in the parameter `batch`; no more than `max_batch` at once.

    Raises:
        CacheConfigurationError: no such parameter, or options that do not go together.
    """

    def __init__(self, *arguments: Any, batch: str, max_batch: int | None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        name = getattr(self.function, "__qualname__", self.function)
        if batch not in self.shape.names or f"*{batch}" in self.shape.declaration:
            raise CacheConfigurationError(f"batch={batch!r}: {name!r} has no parameter of this name that could take a list")
        if max_batch is not None and (type(max_batch) is not int or max_batch < 1):
            raise CacheConfigurationError(f"max_batch={max_batch!r}: give a whole number >= 1")
        rules = self.rules
        if self.gives_stream or self._hinted or rules.stale or rules.early or rules.touch or rules.errors:
            raise CacheConfigurationError(f"batch= of {name!r} does not go with streams, stale=, early=, touch= or errors=")
        self.front.enabled = False
        self._place = self.shape.names.index(batch)
        self._limit = max_batch
        self._pieces = _pieces_of(self.function)

    @property
    def entrance(self) -> tuple[Literal["plain", "coroutine", "other"], Callable[..., Any]]:
        return ("coroutine", self.amany) if self.is_async else ("other", self.many)

    def many(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call."""
        bound = self._kept(bound)
        plan = self._plan_of(bound)
        if plan is None:
            return self._call(bound)
        return self._assembled(plan, run(self.cache.space, call_many(self.cache.space, plan.items)))

    async def amany(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call of a coroutine function."""
        bound = self._kept(bound)
        plan = self._plan_of(bound)
        if plan is None:
            return await self._call(bound)
        return self._assembled(plan, await arun(self.cache.space, call_many(self.cache.space, plan.items)))

    def _plan_of(self, bound: tuple[Any, ...]) -> Plan | None:
        """How to answer from the cache; `None` to call the function as it is: nothing to split, or no key for an item."""
        items = self._pieces.listed(bound[self._place])
        if not items:
            self.counters.add("bypasses")
            return None
        try:
            keys = self.keyer.keys([self._with(bound, item) for item in items])
        except UnkeyableError as error:
            self._uncached(error, _nothing)
            return None
        distinct: dict[Key, Any] = {}
        for key, item in zip(keys, items, strict=True):
            distinct.setdefault(key, item)
        numbers = {key: number for number, key in enumerate(distinct)}
        chosen = list(distinct.values())
        requests = [
            self._request(key, partial(self._one, bound, item), self._with(bound, item), awaits=self.is_async)
            for key, item in distinct.items()
        ]

        def invoke(places: Sequence[int]) -> Any:
            return self._parts_of(bound, [chosen[place] for place in places])

        return Plan(Items(requests, invoke, self._limit), [numbers[key] for key in keys])

    def _with(self, bound: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return (*bound[: self._place], value, *bound[self._place + 1 :])

    def _kept(self, bound: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same with a list in place of an iterator, which can be gone through only once."""
        given = bound[self._place]
        return self._with(bound, list(given)) if hasattr(given, "__next__") else bound

    def _parts_of(self, bound: tuple[Any, ...], items: list[Any]) -> Any:
        """Run the function for these items; of a coroutine function, an awaitable of the results."""
        result = self._call(self._with(bound, items))
        return self._aparts_of(result, items) if self.is_async else self._pieces.parted(result, items)

    async def _aparts_of(self, result: Any, items: list[Any]) -> Any:
        return self._pieces.parted(await result, items)

    def _one(self, bound: tuple[Any, ...], item: Any) -> Any:
        results = self._parts_of(bound, [item])
        return _awaited(results) if self.is_async else _only(results)

    def _assembled(self, plan: Plan, answers: Sequence[Answer]) -> Any:
        """The results in the order of the items; an item that occurs twice gets two."""
        values = [answer.result() for answer in answers]
        seen: set[int] = set()
        results = []
        for number in plan.order:
            value = values[number]
            results.append(self._another(value) if number in seen else value)
            seen.add(number)
        return self._pieces.joined(results)

    def _another(self, value: Any) -> Any:
        if not self.rules.copy or is_immutable(value):
            return value
        try:
            return isolated(value)
        except CacheCodecError:
            return value

    # -- control methods: of a list of items, each of them

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return self._kept(self._bind(*args, **kwargs))

    def _items(self, bound: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The bound calls for each of the items."""
        return [self._with(bound, item) for item in self._pieces.listed(bound[self._place]) or ()]

    def _keys(self, bound: tuple[Any, ...]) -> list[Key]:
        return self.keyer.keys(self._items(bound))

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        keys = self._keys(self._given(args, kwargs))
        if len(keys) != 1:
            raise self._not_one()
        return keys[0]

    def _not_one(self) -> Exception:
        return CacheConfigurationError(f"{self.keyer.name} has one entry for each item: ask with a list of one")

    def _peeks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Any]:
        keys = self._keys(self._given(args, kwargs))
        found = []
        for key in keys:
            entry = yield from read(self.cache.space, key, self.counters, copy=self.rules.copy)
            found.append(MISSING if entry is None else entry.value)
        missing = not found or any(value is MISSING for value in found)
        return MISSING if missing else self._pieces.joined(found)

    def peek(self, /, *args: Any, **kwargs: Any) -> Any | Missing:
        """The stored results of all items, or `MISSING` if one is not there."""
        return run(self.cache.space, self._peeks(args, kwargs))

    async def apeek(self, /, *args: Any, **kwargs: Any) -> Any | Missing:
        """`peek` for event loops."""
        return await arun(self.cache.space, self._peeks(args, kwargs))

    def contains(self, /, *args: Any, **kwargs: Any) -> bool:
        """Whether all items would be hits."""
        return self.peek(*args, **kwargs) is not MISSING

    async def acontains(self, /, *args: Any, **kwargs: Any) -> bool:
        """`contains` for event loops."""
        return await self.apeek(*args, **kwargs) is not MISSING

    def _dropped(self, bound: tuple[Any, ...]) -> Flow[int]:
        return verbs.delete_many(self.cache.space, self._keys(bound), self.counters)

    def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """Forget the results of these items, also those being computed; whether there were any."""
        return run(self.cache.space, self._dropped(self._given(args, kwargs))) > 0

    async def ainvalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """`invalidate` for event loops."""
        return await arun(self.cache.space, self._dropped(self._given(args, kwargs))) > 0

    def refresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function now for these items and store the results; of a coroutine function, an awaitable of that."""
        if self.is_async:
            return self.arefresh(*args, **kwargs)
        bound = self._given(args, kwargs)
        run(self.cache.space, self._dropped(bound))
        return self.many(bound)

    async def arefresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """`refresh` for event loops."""
        bound = self._given(args, kwargs)
        await arun(self.cache.space, self._dropped(bound))
        return await self.amany(bound)

    def _store(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[None]:
        calls = self._items(self._given(args, kwargs))
        results = self._pieces.parted(value, [bound[self._place] for bound in calls])
        for bound, result in zip(calls, list(results), strict=True):
            yield from self.stored(bound, result)

    def _explanation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls = self._items(self._given(args, kwargs))
        if len(calls) != 1:
            raise self._not_one()
        return self.explained(calls[0])


def _pieces_of(function: Callable[..., Any]) -> Pieces:
    called = call_of(function)
    if called is not None and called.method == "embeddings.create":
        return Pieces(_embeddings.listed, _embeddings.parted, _embeddings.joined)
    return Pieces(_listed, _as_it_is, list)


def _listed(given: Any) -> list[Any] | None:
    return None if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__") else list(given)


def _as_it_is(results: Any, items: Sequence[Any]) -> Any:
    return results


def _only(results: Any) -> Any:
    (result,) = results
    return result


async def _awaited(results: Any) -> Any:
    return _only(await results)


def _nothing() -> None:
    """Stands for a call that is made elsewhere."""
