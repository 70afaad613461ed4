"""Modes: whether calls read, run and store, for a block of code, the process, a namespace or the environment.

- *normal*: a hit is read; a miss runs the function and stores.
- *off*: every call runs, nothing is read or stored.
- *refresh*: results from before the mode began do not count, so each call runs once and its result replaces the old one.
- *readonly*: a hit is read; a miss runs the function and stores nothing.
- *record*: what is there is read, however old; what is missing runs, and is stored for ever, with its arguments in a readable
  form.
- *replay*: what is there is read, however old; a miss raises `CacheMissError`, and no function runs.

The nearest one counts: `with mode(...)`, then `set_mode`, then the keyword `mode=` of the namespace, then the environment
variable `CODOMYRMEX_CACHE_MODE`, then normal.

**A hit looks at nothing of this.**  While a mode is in force somewhere in the process, what could answer without asking (the
front of each function, the quick ways of the direct API) is *veiled*: it finds nothing, and what is cold asks here.  A veil is
put on before the block begins.  It is taken off by the first cold call after nobody can be in the mode any more, which includes
tasks and copied contexts that were begun in the block: they keep the mode as long as they live.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar, Token
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args
from weakref import WeakSet

from codomyrmex_cache._fork import renew_after_fork
from codomyrmex_cache.errors import CacheConfigurationError

if TYPE_CHECKING:
    from codomyrmex_cache._entry import Clock

__all__ = ["Mode", "mode", "set_mode"]

Mode = Literal["normal", "off", "refresh", "readonly", "record", "replay"]

_MODES: tuple[str, ...] = get_args(Mode)


class Ruling(NamedTuple):
    """What holds for one call.

    Args:
        mode: the mode.
        since: only entries made after this moment of the namespace's clock count; `None` for all.
    """

    mode: Mode = "normal"
    since: float | None = None

    def counts(self, created: float) -> bool:
        """Whether an entry of this moment may be read."""
        return self.since is None or created > self.since

    @property
    def leases(self) -> bool:
        """Whether a look may begin a load, which the store is then told of."""
        return self.mode not in ("readonly", "replay")

    @property
    def ages(self) -> bool:
        """Whether entries end, and are refreshed before or after that."""
        return self.mode not in ("record", "replay")

    @property
    def stores(self) -> bool:
        """Whether results may be stored."""
        return self.mode in ("normal", "refresh", "record")

    @property
    def shows(self) -> bool:
        """Whether entries keep the call's arguments in a readable form."""
        return self.mode in ("refresh", "record")


NORMAL = Ruling()


class Veiled(Protocol):
    """What answers without asking for the mode, until it is veiled."""

    def veil(self) -> None:
        """Find nothing and ask, from now on."""

    def unveil(self) -> None:
        """Answer as before."""


def checked_mode(name: object) -> Mode:
    """The mode of this name.

    Raises:
        CacheConfigurationError: there is none.
    """
    if name in _MODES:
        return name  # type: ignore[return-value]
    raise CacheConfigurationError(f"mode={name!r}: give one of {', '.join(map(repr, _MODES))}")


class Stance:
    """A mode taken by somebody for some namespaces, `None` for all."""

    __slots__ = ("__weakref__", "_began", "_namespaces", "mode")

    def __init__(self, mode: Mode, namespaces: frozenset[str] | None = None) -> None:
        self.mode = mode
        self._namespaces = namespaces
        self._began: dict[int, tuple[Clock, float]] = {}

    def covers(self, namespace: str) -> bool:
        """Whether it is about this namespace."""
        return self._namespaces is None or namespace in self._namespaces

    def ruling(self, clock: Clock) -> Ruling:
        """What it says to a call in a namespace with this clock; refreshing begins with the first that asks."""
        if self.mode != "refresh":
            return _RULINGS[self.mode]
        return Ruling("refresh", self._began.setdefault(id(clock), (clock, clock()))[1])


_RULINGS: dict[Mode, Ruling] = {name: Ruling(name) for name in get_args(Mode)} | {"normal": NORMAL}
NORMALLY = Stance("normal")
_CONTEXT: ContextVar[tuple[Stance, ...]] = ContextVar("codomyrmex_cache_modes", default=())


class _Veils:
    """All that can be veiled, and those for whom it is."""

    def __init__(self) -> None:
        self.lock = RLock()  # the garbage collector may run anything in the middle of it
        self.members: WeakSet[Veiled] = WeakSet()
        self.stances: WeakSet[Stance] = WeakSet()
        self.process: tuple[Stance, ...] = ()
        renew_after_fork(self)

    def before_fork(self) -> None:
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        self.lock.release()

    def after_fork(self) -> None:
        self.lock = RLock()

    def put_on(self, stance: Stance) -> None:
        with self.lock:
            self.stances.add(stance)
            for member in list(self.members):
                member.veil()

    def add(self, member: Veiled) -> None:
        with self.lock:
            self.members.add(member)
            if self.stances:
                member.veil()

    def take_off(self, member: Veiled) -> None:
        with self.lock:
            if not self.stances:
                member.unveil()


_veils = _Veils()


def veil_with_modes(member: Veiled) -> None:
    """Have it veiled while a mode is in force somewhere, at once if one is."""
    _veils.add(member)


def unveil_if_normal(member: Veiled) -> None:
    """Take its veil off unless a mode is in force somewhere."""
    if not _veils.stances:
        _veils.take_off(member)


def veil_lock() -> RLock:
    """Held while veils are put on and taken off."""
    return _veils.lock


def ruling_of(namespace: str, clock: Clock, base: Stance) -> Ruling:
    """What holds for a call in this namespace, whose own mode is `base`, in this thread or task, now."""
    for stance in (*reversed(_CONTEXT.get()), *_veils.process):
        if stance.covers(namespace):
            return stance.ruling(clock)
    return base.ruling(clock)


def set_mode(name: Mode | None, *namespaces: str) -> None:
    """Take a mode for the whole process, all its threads and tasks; `None` takes none, as in the beginning.

    Args:
        name: the mode, which goes before the keyword and the environment variable, and after `with mode(...)`.
        namespaces: for which; all, if none is named.

    Raises:
        CacheConfigurationError: there is no such mode.

    >>> set_mode("readonly")
    >>> set_mode(None)
    """
    taken = None if name is None else Stance(checked_mode(name), _named(namespaces))
    if taken is not None:
        _veils.put_on(taken)
    _veils.process = () if taken is None else (taken,)


def _named(namespaces: Iterable[str]) -> frozenset[str] | None:
    names = frozenset(namespaces)
    if not all(isinstance(name, str) and name for name in names):
        raise CacheConfigurationError(f"namespaces {sorted(map(repr, names))}: give non-empty str")
    return names or None


class mode:  # noqa: N801  reads as a verb: `with mode("replay"):`
    """A block in which calls are made in another mode, by this thread or task and by the tasks that are begun in it.

    Threads that are started in it are not part of it unless they are given a copy of the context, as `asyncio.to_thread` does;
    `set_mode` is for all.  Blocks can be nested, and the innermost that is about a namespace counts.

    Args:
        name: "normal", "off", "refresh", "readonly", "record" or "replay".
        namespaces: for which it holds; all, if none is named.

    Raises:
        CacheConfigurationError: there is no such mode.

    >>> from codomyrmex_cache import cached
    >>> @cached("modes")
    ... def square(x):
    ...     return x * x
    >>> with mode("replay"):
    ...     square(3)
    Traceback (most recent call last):
    codomyrmex_cache.errors.CacheMissError: replay: namespace 'modes' has no entry for this call of ...
    >>> with mode("off", "modes"):
    ...     square(3)
    9
    >>> square.stats().bypasses, square.stats().size
    (1, 0)
    """

    __slots__ = ("_name", "_namespaces", "_tokens")

    def __init__(self, name: Mode, *namespaces: str) -> None:
        self._name = checked_mode(name)
        self._namespaces = _named(namespaces)
        self._tokens: list[Token[Any]] = []

    def __enter__(self) -> None:
        stance = Stance(self._name, self._namespaces)
        if self._name != "normal":
            _veils.put_on(stance)
        self._tokens.append(_CONTEXT.set((*_CONTEXT.get(), stance)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _CONTEXT.reset(self._tokens.pop())
