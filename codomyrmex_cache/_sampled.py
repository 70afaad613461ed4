"""A decorated function of which each call is given one of n stored draws, in turn."""

from __future__ import annotations

from typing import Any

from codomyrmex_cache import _verbs as verbs
from codomyrmex_cache._drive import arun, run
from codomyrmex_cache._keying import Keying
from codomyrmex_cache._memo import Memo
from codomyrmex_cache._samples import Draw, LastIsDraw, Turns
from codomyrmex_cache.errors import UnkeyableError
from codomyrmex_cache.keys import Key

__all__ = ["SampledMemo"]


class SampledMemo(Memo):
    """A `Memo` whose bound arguments are followed by a draw.

    Control methods mean the draw that the next call with their arguments would get, but `invalidate`, which drops all of them.
    """

    def __init__(self, *arguments: Any, keying: Keying, **options: Any) -> None:
        super().__init__(*arguments, keying=keying, **options)
        assert keying.samples is not None
        self.front.enabled = False
        self.keyer: LastIsDraw = LastIsDraw(self.keyer)
        self._samples = keying.samples
        self._turns = Turns(keying.samples)
        self._bind_arguments, self._bind = self._bind, self._upcoming

    def cold(self, bound: tuple[Any, ...]) -> Any:
        return super().cold(self._taken(bound))

    async def acold(self, bound: tuple[Any, ...]) -> Any:
        return await super().acold(self._taken(bound))

    def stream(self, bound: tuple[Any, ...]) -> Any:
        return super().stream(self._taken(bound))

    def _taken(self, bound: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            call = self.keyer.first_key(bound)
        except UnkeyableError:
            return (*bound, Draw(0))  # it is found out again where that is dealt with
        return (*bound, Draw(self._turns.take(call.digest), call))

    def _upcoming(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        bound = self._bind_arguments(*args, **kwargs)
        return (*bound, Draw(self._turns.upcoming(self.keyer.first_key(bound).digest)))

    def _all_keys(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Key]:
        """Those of all draws, of which the first is next again."""
        bound = self._bind_arguments(*args, **kwargs)
        self._turns.restart(self.keyer.first_key(bound).digest)
        return [self.keyer.key((*bound, Draw(number))) for number in range(self._samples)]

    def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """Forget all draws of this call, also those being computed; whether there were any."""
        return run(self.cache.space, verbs.delete_many(self.cache.space, self._all_keys(args, kwargs), self.counters)) > 0

    async def ainvalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """`invalidate` for event loops."""
        return (
            await arun(self.cache.space, verbs.delete_many(self.cache.space, self._all_keys(args, kwargs), self.counters)) > 0
        )

    def _clear(self) -> Any:
        self._turns.clear()
        return super()._clear()
