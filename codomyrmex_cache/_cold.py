"""A decorated call on its way through the cold path, as its wrapper sees it."""

from __future__ import annotations

from collections.abc import Awaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from codomyrmex_cache._drive import Run
from codomyrmex_cache._effects import Answer, AwaitableResult, Request
from codomyrmex_cache._flow import call
from codomyrmex_cache._load import NOT_LOOKED, Looked

if TYPE_CHECKING:
    from codomyrmex_cache._calls import Calls

__all__ = ["THROUGH", "ColdCall", "Finished", "Held"]


class ColdCall(Run[Answer]):
    """A call under way; `finish` gives its result once `load` is `None`."""

    __slots__ = ("_awaitable", "_bound", "_memo", "_request")

    def __init__(self, memo: Calls, bound: tuple[Any, ...], request: Request, looked: Looked = NOT_LOOKED) -> None:
        self._memo, self._bound, self._request = memo, bound, request
        self._awaitable: Awaitable[Any] | None = None
        space = memo.cache.space
        super().__init__(space, call(space, request, looked), looked.meter)

    def resume(self, reply: Any, error: BaseException | None = None) -> None:
        try:
            super().resume(reply, error)
        except AwaitableResult as result:
            self._awaitable = result.awaitable

    def ended(self, value: Any) -> Any:
        """The result of the call, whose function gave this."""
        self.resume(value)
        return self.finish()

    def finish(self) -> Any:
        """The result, or the exception raised."""
        if self._awaitable is not None:
            return self._memo.adopt(self._request, self._bound, self._awaitable)
        entry = self.value.entry
        result = self._memo.finish(self.value, self._bound, self._request)
        return _ready(result) if entry is not None and entry.awaited else result


class Held:
    """Gives the awaitable that a call has made already; a coroutine that nobody has asked for is closed with this."""

    __slots__ = ("_awaitable",)

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable: Awaitable[Any] | None = awaitable

    def __call__(self) -> Awaitable[Any]:
        awaitable, self._awaitable = self._awaitable, None
        assert awaitable is not None
        return awaitable

    def __del__(self) -> None:
        if isinstance(self._awaitable, CoroutineType):
            self._awaitable.close()


class Finished:
    """A call that is over already."""

    __slots__ = ("_result",)
    load = None

    def __init__(self, result: Any) -> None:
        self._result = result

    def resume(self, reply: Any, error: BaseException | None = None) -> None:
        """Never needed."""

    def finish(self) -> Any:
        """The result."""
        return self._result


class Through:
    """A call that goes past the cache."""

    __slots__ = ()
    load = True

    def resume(self, reply: Any, error: BaseException | None = None) -> None:
        """What the function raised, which is raised again."""
        assert error is not None
        raise error

    def ended(self, value: Any) -> Any:
        """What the function gave."""
        return value

    def finish(self) -> Any:
        """Never needed."""


THROUGH = Through()


async def _ready(value: Any) -> Any:
    return value
