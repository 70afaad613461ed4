"""What a flow asks of its driver, and what is said about one call.

A flow is a generator of *effects*: it yields what it wants done and is sent the result (or thrown the exception).  It does no
I/O, reads no clock and knows no threads, so `_drive` can run it blocking or in an event loop, and a test can step several of
them by hand in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from codomyrmex_cache._entry import Entry
from codomyrmex_cache._flight import Flight
from codomyrmex_cache._policy import Rules
from codomyrmex_cache.keys import Key
from codomyrmex_cache.modes import NORMAL, Ruling
from codomyrmex_cache.stats import Counters

if TYPE_CHECKING:
    from codomyrmex_cache._explain import Explanation
    from codomyrmex_cache._recording import Recording

__all__ = [
    "Answer", "Ask", "AwaitableResult", "Behind", "Call", "Effect", "Flow", "KeyMoved", "Lead", "Load", "Now", "Parts",
    "Patience", "Pause", "Record", "Request", "Wait",
]  # fmt: skip


class Patience:
    """Seconds that a call is still ready to wait for others, `None` for as long as it takes; drivers take off what passes."""

    __slots__ = ("left",)

    def __init__(self, left: float | None) -> None:
        self.left = left

    def spend(self, seconds: float) -> None:
        """So many seconds have passed."""
        if self.left is not None:
            self.left = max(0.0, self.left - seconds)


class Call(NamedTuple):
    """Do this to the backend."""

    verb: str
    arguments: tuple[Any, ...]


class Load(NamedTuple):
    """Run the user's function."""

    invoke: Callable[[], Any]


class Ask(NamedTuple):
    """A short question about the call; answers what it answers."""

    question: Callable[[], Any]


class Lead(NamedTuple):
    """Run this flow as the leader of the flight: here and now, or as a task of its own.  `carried` fly with it."""

    flight: Flight
    flow: Generator[Any, Any, None]
    carried: tuple[Flight, ...] = ()


class Wait(NamedTuple):
    """Until the flight has ended or patience is at its end; answers the flight's outcome or `TIMED_OUT`."""

    flight: Flight
    patience: Patience


class Pause(NamedTuple):
    """For so many seconds, or what is left of patience."""

    seconds: float
    patience: Patience


class Behind(NamedTuple):
    """Run this flow in the background; answers nothing, at once."""

    flow: Generator[Any, Any, None]


class Record(NamedTuple):
    """Record the stream that the function gave.  `keep` is run when it is exhausted, `gone` called when none may join it."""

    stream: Any
    rules: Rules
    keep: Callable[[Recording], Generator[Any, Any, None]]
    gone: Callable[[], None]


class Now(NamedTuple):
    """What the clock says."""


Effect = Call | Load | Ask | Lead | Wait | Pause | Behind | Record | Now
T = TypeVar("T")
Flow = Generator[Effect, Any, T]
"""Yields effects, is sent their results, returns a T."""


class AwaitableResult(Exception):  # noqa: N818  a signal, never seen outside
    """The function turned out to return an awaitable; the call starts over in the event loop with it."""

    def __init__(self, awaitable: Any) -> None:
        self.awaitable = awaitable
        super().__init__()


class KeyMoved(Exception):  # noqa: N818  a signal, never seen outside
    """An argument changed between the making of the key and the start of the function."""


Parts = Sequence[tuple[str, bytes]]


class Request(NamedTuple):
    """One call that may need its function.

    Args:
        key: of the call.
        invoke: runs the function with the call's arguments.
        counters: where the outcome is counted.
        rules: what was said about time and storing.
        awaits: whether the driver awaits what `invoke` gives back.
        tags: asked before the load: the tags of the result.
        parts: asked before the load: what went into the key, to be stored beside the result.
        unmoved: asked just before the load; if it says no, an argument has changed since the key was made, so the result
            belongs to another key and to this caller alone.
        unchanged: asked after the load; if it says no, what the key was taken from has changed and nothing is stored.
        still: the same question, for loads that go on after the caller has its answer.
        ruling: the mode that the call is made in.
        shown: the call in a readable form, to be stored with the result.
        explain: the flow that compares the call with the nearest entry.
    """

    key: Key
    invoke: Callable[[], Any]
    counters: Counters
    rules: Rules = Rules()
    awaits: bool = False
    tags: Callable[[], Sequence[str]] = tuple
    parts: Callable[[], Parts] = tuple
    unmoved: Callable[[], bool] | None = None
    unchanged: Callable[[], bool] | None = None
    still: Callable[[], bool] | None = None
    ruling: Ruling = NORMAL
    shown: bytes = b""
    explain: Callable[[], Flow[Explanation]] | None = None


class Answer(NamedTuple):
    """What a call comes to: an entry, or the exception that its function raised."""

    entry: Entry | None
    error: BaseException | None = None

    def result(self) -> Any:
        """The value, or the exception raised."""
        if self.entry is None:
            assert self.error is not None
            raise self.error
        return self.entry.value
