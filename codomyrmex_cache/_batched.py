"""A decorated function that takes a list and gives a list: each item is an entry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from codomyrmex_cache import _verbs as verbs
from codomyrmex_cache._batch import Items, call_many
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._effects import Answer, Flow
from codomyrmex_cache._entries import read
from codomyrmex_cache._entry import MISSING, Missing
from codomyrmex_cache._isolation import is_immutable, isolated
from codomyrmex_cache._memo import Memo
from codomyrmex_cache.errors import CacheCodecError, CacheConfigurationError, UnkeyableError
from codomyrmex_cache.keys import Key

__all__ = ["BatchMemo"]


class Plan(NamedTuple):
    """A call taken apart: its distinct items, and for each place of its list which of them is there."""

    items: Items
    order: Sequence[int]


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

    @property
    def entrance(self) -> tuple[Literal["plain", "coroutine", "other"], Callable[..., Any]]:
        return ("coroutine", self.amany) if self.is_async else ("other", self.many)

    def many(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call."""
        plan = self._plan_of(bound)
        if plan is None:
            return self._call(bound)
        return self._assembled(plan, run(self.cache.space, call_many(self.cache.space, plan.items)))

    async def amany(self, bound: tuple[Any, ...]) -> Any:
        """Answer a call of a coroutine function."""
        plan = self._plan_of(bound)
        if plan is None:
            return await self._call(bound)
        return self._assembled(plan, await arun(self.cache.space, call_many(self.cache.space, plan.items)))

    def _plan_of(self, bound: tuple[Any, ...]) -> Plan | None:
        """How to answer from the cache; `None` to call the function as it is: nothing to split, or no key for an item."""
        given = bound[self._place]
        if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__") or not len(items := list(given)):
            self.counters.add("bypasses")
            return None
        bound = self._with(bound, items)  # an iterator is used up now
        try:
            keys = [self.keyer.key(self._with(bound, item)) for item in items]
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
            return self._call(self._with(bound, [chosen[place] for place in places]))

        return Plan(Items(requests, invoke, self._limit), [numbers[key] for key in keys])

    def _with(self, bound: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return (*bound[: self._place], value, *bound[self._place + 1 :])

    def _one(self, bound: tuple[Any, ...], item: Any) -> Any:
        result = self._call(self._with(bound, [item]))
        return _awaited(result) if self.is_async else _only(result)

    def _assembled(self, plan: Plan, answers: Sequence[Answer]) -> list[Any]:
        """The results in the order of the items; an item that occurs twice gets two."""
        values = [answer.result() for answer in answers]
        seen: set[int] = set()
        results = []
        for number in plan.order:
            value = values[number]
            results.append(self._another(value) if number in seen else value)
            seen.add(number)
        return results

    def _another(self, value: Any) -> Any:
        if not self.rules.copy or is_immutable(value):
            return value
        try:
            return isolated(value)
        except CacheCodecError:
            return value

    # -- control methods: of a list of items, each of them

    def _keys(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Key]:
        bound = self._bind(*args, **kwargs)
        return [self.keyer.key(self._with(bound, item)) for item in bound[self._place]]

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        keys = self._keys(args, kwargs)
        if len(keys) != 1:
            raise CacheConfigurationError(f"{self.keyer.name} has one entry for each item: ask with a list of one")
        return keys[0]

    def _peeks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[list[Any]]:
        keys = self._keys(args, kwargs)
        found = []
        for key in keys:
            entry = yield from read(self.cache.space, key, self.counters, copy=self.rules.copy)
            found.append(MISSING if entry is None else entry.value)
        return found

    def peek(self, /, *args: Any, **kwargs: Any) -> list[Any] | Missing:
        """The stored results of all items, or `MISSING` if one is not there."""
        return _all(run(self.cache.space, self._peeks(args, kwargs)))

    async def apeek(self, /, *args: Any, **kwargs: Any) -> list[Any] | Missing:
        """`peek` for event loops."""
        return _all(await arun(self.cache.space, self._peeks(args, kwargs)))

    def contains(self, /, *args: Any, **kwargs: Any) -> bool:
        """Whether all items would be hits."""
        return self.peek(*args, **kwargs) is not MISSING

    async def acontains(self, /, *args: Any, **kwargs: Any) -> bool:
        """`contains` for event loops."""
        return await self.apeek(*args, **kwargs) is not MISSING

    def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """Forget the results of these items, also those being computed; whether there were any."""
        keys = self._keys(args, kwargs)
        return run(self.cache.space, verbs.delete_many(self.cache.space, keys, self.counters)) > 0

    async def ainvalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """`invalidate` for event loops."""
        keys = self._keys(args, kwargs)
        return await arun(self.cache.space, verbs.delete_many(self.cache.space, keys, self.counters)) > 0

    def refresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function now for these items and store the results; of a coroutine function, an awaitable of that."""
        if self.is_async:
            return self.arefresh(*args, **kwargs)
        self.invalidate(*args, **kwargs)
        return self.many(self._bind(*args, **kwargs))

    async def arefresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """`refresh` for event loops."""
        await self.ainvalidate(*args, **kwargs)
        return await self.amany(self._bind(*args, **kwargs))

    def _store(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[None]:
        bound = self._bind(*args, **kwargs)
        for item, result in zip(list(bound[self._place]), list(value), strict=True):
            one = self._with(bound, item)
            yield from self.stored(one, result)

    def _explanation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = self._bind(*args, **kwargs)
        self._key(args, kwargs)
        return self.explained(self._with(bound, next(iter(bound[self._place]))))


def _all(found: list[Any]) -> list[Any] | Missing:
    return MISSING if any(value is MISSING for value in found) else found


def _only(results: Any) -> Any:
    (result,) = results
    return result


async def _awaited(results: Any) -> Any:
    return _only(await results)


def _nothing() -> None:
    """Stands for a call that is made elsewhere."""
