"""One running stream and those who listen to it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Lock, get_ident
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol, cast

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache._isolation import is_immutable, isolated
from codomyrmex_cache._log import Log
from codomyrmex_cache._raising import own_copy
from codomyrmex_cache.errors import CacheCodecError, CacheStreamError

__all__ = [
    "INSIDE", "PATIENCE", "Abandoned", "Broken", "Exhausted", "Failed", "Listener", "Recording", "Turn", "approximate_size",
]  # fmt: skip

_logger = Log(__name__)

PATIENCE = 1.0
"""Seconds between two looks at whether whoever draws a stream still can."""

INSIDE = "a stream was iterated inside itself: its body would wait for itself, or hear for ever what it says"

_UNSHAREABLE: Any = object()
"""Stands in the place of a chunk of which there is no copy."""


class Listener:
    """A place in a recording.  `lost` is set when what comes next cannot be had from it any more."""

    __slots__ = ("lost", "position")

    def __init__(self) -> None:
        self.position = 0
        self.lost = False


class Turn(NamedTuple):
    """Somebody draws the next chunk: in which thread, and for whom."""

    thread: int
    listener: Listener


class Chunk(NamedTuple):
    """One item: the object that upstream gave (`own`), or our snapshot of it."""

    value: Any
    own: bool


class Exhausted(NamedTuple):
    """Upstream came to its end; of what it returned, the same."""

    returned: Any
    own: bool


class Failed(NamedTuple):
    """Upstream raised; the puller gets the error itself, the others copies."""

    error: Exception
    puller: Listener


class Broken(NamedTuple):
    """Upstream did not come to an end; the reason, if it is an exception, is the puller's alone."""

    why: str
    error: BaseException | None = None
    puller: Listener | None = None


class Abandoned(NamedTuple):
    """Everybody has left."""


Ending = Exhausted | Failed | Broken | Abandoned
News = Chunk | Ending


class Pump(Protocol):
    """What draws an async stream.  `wake` (under the lock) has whoever waits look again; `halt` has upstream closed."""

    def wake(self) -> None: ...
    def halt(self) -> None: ...
    @property
    def stands_still(self) -> bool: ...


class Recording:
    """A running stream, its chunks so far, and its listeners.

    Each listener has a position on one tape.  It takes the chunk at its position or, if the tape ends there, has it drawn.
    A sync stream is drawn by the thread that needs the chunk: it takes the turn, calls `next` outside the lock, puts the chunk
    on the tape and ends its turn; whoever needs the same chunk waits on a condition.  An async stream is drawn by one task,
    the pump, in the event loop of the first listener, because what a generator enters (cancel scopes, context variables,
    `async with`) has to be left by the task that entered it.  It draws when a listener lacks a chunk (see `streams`).

    The lock guards the state and nothing else: no code of the user's and no copy is made under it.  What follows from a change
    of state (`gone`, closing upstream) is put into `_due` and carried out by `settle`, after the lock.  A listener may leave
    in a finalizer, which the garbage collector runs inside any line of any thread, this module's locked ones included.  So
    leaving never waits: it puts the listener into `_leaving` and tries the lock; if that is taken, its holder calls `settle`
    when it has let go.

    A recording ends once: exhausted, failed, broken off or abandoned.  Only what is exhausted is kept.  Over its bound, or
    with a chunk that cannot be copied, it runs on for its listeners, takes no new ones, and forgets what all have passed.

    Args:
        upstream: has `__next__` and `close`, or `__anext__` and `aclose` or `close`.
        is_async: which of them.
        bound: bytes of chunks, by estimate, that are recorded.
        copy: whether each listener gets chunks of its own; otherwise all share them.
        keep: called once, when upstream is exhausted and all of it recorded; a coroutine function if `is_async`.
        gone: called once, when no listener can or need join any more, in any thread, perhaps in a finalizer.
    """

    def __init__(
        self, upstream: Any, *, is_async: bool, bound: int, copy: bool, keep: Callable[[], Any], gone: Callable[[], None]
    ) -> None:
        self.is_async = is_async
        self.returned: Any = None
        self.upstream, self._bound, self._copy = upstream, bound, copy
        self.keep, self._gone = keep, gone
        self.lock = Lock()
        self._changed = Condition(self.lock)
        self._tape: deque[Any] = deque()
        self._trimmed = 0
        self._size = 0
        self._original: list[Any] = []  # the newest chunk itself, until somebody has taken it
        self._open = True
        self.followers: int | None = 0  # of who began it, until it is known what their hearing spares; then `None`
        self._listeners: set[Listener] = set()
        self._leaving: deque[Listener] = deque()
        self._due: deque[Callable[[], None]] = deque()
        self._gone_owed = False
        self.turn: Turn | None = None
        self.ending: Ending | None = None
        self.pump: Pump | None = None
        self.complaint: Exception | None = None  # what `keep` raised in the pump; the first to reach the end gets it
        renew_after_fork(self)

    @classmethod
    def finished(cls, chunks: Iterable[Any], returned: Any, *, is_async: bool, copy: bool) -> Recording:
        """A replay: everything is there, nothing is drawn."""
        recording = cls(None, is_async=is_async, bound=0, copy=copy, keep=lambda: None, gone=lambda: None)
        recording._tape.extend(chunks)
        recording.returned = returned
        recording._gone_owed = True
        recording.ending = Exhausted(returned, own=False)
        return recording

    @property
    def chunks(self) -> list[Any]:
        """The snapshots on the tape; the recording's own, not to be handed out."""
        return list(self._tape)

    def listen(self) -> Listener | None:
        """One more listener, from the first chunk on; `None` if the recording takes none any more."""
        listener = Listener()
        with self.lock:
            self.check_pump()
            joined = self._open and (self.ending is None or isinstance(self.ending, Exhausted))
            if joined:
                self._listeners.add(listener)
        self.settle()
        return listener if joined else None

    def leave(self, listener: Listener) -> None:
        """The listener needs no more; when the last one goes before the end, upstream is closed."""
        self._leaving.append(listener)
        self.settle()

    def take(self, listener: Listener) -> Any:
        """The listener's next chunk, drawn in this thread if nobody else draws it.

        Raises:
            StopIteration: the stream is exhausted; its value is what the generator returned.
            CacheStreamError: the stream was broken off, or this thread is inside it.
        """
        turn = Turn(get_ident(), listener)
        try:
            news = self._await_news(turn)
            if news is None:
                news = self._draw(turn)
        except BaseException as error:  # also an interruption between taking the turn and `next`
            if self.turn is turn:
                self.end(Broken(f"was interrupted by {type(error).__name__} in the caller that drew it"))
            raise
        finally:
            self.settle()
        return self.deliver(news, listener)

    def look(self, listener: Listener) -> News | None:
        """Under the lock: what comes next for the listener; `None` if that is still to be drawn."""
        index = listener.position - self._trimmed
        if listener not in self._listeners:
            return Abandoned()
        if isinstance(self.ending, Broken) and listener.position == 0:
            return self.ending  # it starts over rather than hear the beginning of what has no end
        if index >= len(self._tape):
            return self.ending
        return self._advance(listener, index)

    def _advance(self, listener: Listener, index: int) -> News:
        if self._original and index == len(self._tape) - 1:
            chunk = Chunk(self._original.pop(), own=True)
        elif self._tape[index] is _UNSHAREABLE:
            return Broken("has a chunk that cannot be copied, and another caller has it")
        else:
            chunk = Chunk(self._tape[index], own=False)
        listener.position += 1
        self._trim()
        return chunk

    def _trim(self) -> None:
        """Once nobody can join, forget the chunks that all have passed."""
        if self._open:
            return
        passed = min((listener.position for listener in self._listeners), default=self._trimmed)
        while self._trimmed < passed:
            self._tape.popleft()
            self._trimmed += 1

    def _sweep(self) -> None:
        """Take leave of those in `_leaving`; abandon upstream if nobody is left and nobody is inside it."""
        if self._leaving:
            while self._leaving:
                self._listeners.discard(self._leaving.popleft())
            self._wake()
            self._trim()
        if not self._listeners and (self.is_async or self.turn is None):
            self._set_ending(Abandoned())

    def record(self, chunk: Any, turn: Turn) -> News | None:
        """Put what was drawn on the tape; answers what that is for the listener of the turn, if it is a sync one."""
        unwanted = not self._open and self._listeners <= {turn.listener}  # by anybody but the listener of this turn
        snapshot = _UNSHAREABLE if unwanted else self._snapshot(chunk)
        size = 0 if snapshot is _UNSHAREABLE else approximate_size(snapshot)
        with self.lock:
            self._size += size
            if snapshot is _UNSHAREABLE or self._size > self._bound:
                self._shut_out()
            self._tape.append(snapshot)
            self._original[:] = (chunk,)
            self.turn = None
            news = None if self.is_async else self.look(turn.listener)
            self._wake()
            self._sweep()
        self.settle()
        return news

    def _snapshot(self, value: Any) -> Any:
        if not self._copy or is_immutable(value):
            return value
        try:
            return isolated(value)
        except CacheCodecError:
            return _UNSHAREABLE

    def deliver(self, news: News, listener: Listener) -> Any:
        """Hand out the chunk, or raise what the end means to this listener."""
        if isinstance(news, Chunk):
            return self._copied(news.value, own=news.own)
        if isinstance(news, Failed):
            raise news.error if listener is news.puller else own_copy(news.error)
        if isinstance(news, Broken):
            if news.error is not None and listener is news.puller:
                raise news.error
            listener.lost = True
            raise CacheStreamError(f"the stream {news.why}; call again to start it anew")
        complaint, self.complaint = self.complaint, None
        if complaint is not None:
            raise complaint
        if self.is_async:
            raise StopAsyncIteration
        raise StopIteration(self._copied(news.returned, own=news.own) if isinstance(news, Exhausted) else None)

    def _copied(self, value: Any, *, own: bool) -> Any:
        if own or not self._copy or is_immutable(value):
            return value
        try:
            return isolated(value)
        except CacheCodecError as error:
            raise CacheStreamError("the stream has a value that cannot be copied, and another caller has it") from error

    def end(self, ending: Ending) -> None:
        """The turn is over, and the stream with it."""
        with self.lock:
            self.turn = None
            self._set_ending(ending)
        self.settle()

    def _set_ending(self, ending: Ending) -> None:
        """Under the lock; only the first end counts."""
        if self.ending is not None:
            return
        self.ending = ending
        if isinstance(ending, Exhausted):
            self.returned = ending.returned
            self._changed.notify_all()  # the waiters of an async stream are told when it is kept
        else:
            self._wake()
            self._owe_gone()
        self._due.append(self._close)

    def _owe_gone(self) -> None:
        if not self._gone_owed:
            self._gone_owed = True
            self._due.append(self._gone)

    def _shut_out(self) -> None:
        self._open = False
        self._owe_gone()

    def exhaust(self, returned: Any) -> bool:
        """The end of upstream; answers whether all of it can be kept."""
        snapshot = self._snapshot(returned)
        shareable = snapshot is not _UNSHAREABLE
        ending = Exhausted(snapshot, own=False) if shareable else Broken("returned a value that cannot be copied")
        self._size += approximate_size(snapshot)
        self.end(ending)
        return self._open and shareable and self.ending is ending and self._size <= self._bound

    def say_gone(self) -> None:
        """After `keep`."""
        with self.lock:
            self._owe_gone()
            self._wake()
        self.settle()

    def _close(self) -> None:
        if self.pump is not None:
            self.pump.halt()
        elif not self.is_async:
            with self.closing() as upstream:
                upstream.close()

    @contextmanager
    def closing(self) -> Iterator[Any]:
        """Gives upstream away, to be closed; an error in that is for nobody but who has just left as the last one."""
        upstream, self.upstream = self.upstream, None
        try:
            yield upstream
        except Exception:
            if isinstance(self.ending, Abandoned):
                raise
            _logger.debug("closing a stream failed", exc_info=True)

    def _wake(self) -> None:
        self._changed.notify_all()
        if self.pump is not None:
            self.pump.wake()

    def settle(self) -> None:
        """What waits for the lock to be free, and what a change of state asks for."""
        while self._leaving and self.lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self.lock.release()
        while self._due:
            try:
                action = self._due.popleft()
            except IndexError:  # another thread has taken it
                return
            action()

    def after_fork(self) -> None:
        """A fork may have copied the lock while another thread held it, and leaves that thread or the event loop behind."""
        self.lock = Lock()
        self._changed = Condition(self.lock)
        inside = self.turn is not None and self.turn.thread != get_ident()
        if self.ending is None and (inside or self.pump is not None):
            self.turn = self.pump = None
            self.ending = Broken("runs in the process that forked this one")
            self._owe_gone()  # not `_close`: upstream is the parent's

    def check_pump(self) -> None:
        """Under the lock: break off if the event loop of the pump stands still."""
        if self.pump is not None and self.ending is None and self.pump.stands_still:
            self._set_ending(Broken("was broken off: the event loop that ran it stands still"))

    def _await_news(self, turn: Turn) -> News | None:
        """What there is for the listener; `None` if this thread is to draw it."""
        with self.lock:
            while True:
                if self.turn is not None and self.turn.thread == turn.thread:
                    raise CacheStreamError(INSIDE)
                news = self.look(turn.listener)
                if news is not None:
                    return news
                if self.turn is None:
                    self.turn = turn
                    return None
                self._changed.wait(PATIENCE)  # a time limit since a leave in a finalizer may have found the lock taken
                self._sweep()

    def _draw(self, turn: Turn) -> News:
        try:
            chunk = next(self.upstream)
        except StopIteration as end:
            try:
                if self.exhaust(end.value):
                    self.keep()
            finally:
                self.say_gone()
            return Exhausted(end.value, own=True)
        except Exception as error:
            self.end(Failed(error, turn.listener))
            raise
        return self.record(chunk, turn) or Abandoned()


def approximate_size(value: Any) -> int:
    """Bytes that a value takes, as `sys.getsizeof` sees it, through plain containers and instances' attributes.

    >>> approximate_size("x" * 1000) < approximate_size(["x" * 1000]) < 1200
    True
    """
    if type(value) in (str, bytes):
        return sys.getsizeof(value)
    total, seen, waiting = 0, set[int](), [value]
    while waiting:
        item = waiting.pop()
        if id(item) not in seen and not issubclass(type(item), (type, ModuleType, FunctionType)):
            seen.add(id(item))
            with suppress(Exception):  # `__sizeof__` is user code; an estimate goes on without it
                total += sys.getsizeof(item)
            waiting.extend(_parts(item))
    return total


def _parts(value: Any) -> Iterable[Any]:
    kind = type(value)
    if kind is dict:
        return [*value, *value.values()]
    if kind in (list, tuple, set, frozenset, deque):
        return cast("Iterable[Any]", value)
    try:
        return [object.__getattribute__(value, "__dict__")]
    except AttributeError:
        return ()
