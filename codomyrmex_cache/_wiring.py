"""From what was asked for to a wired namespace: keyword, then environment, then default.

The rooms of a backend (its codec, its files, its client) are imported when a namespace of that kind is wired, not before.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from codomyrmex_cache._entry import Clock
from codomyrmex_cache._payload import ObjectPayloads, Payloads
from codomyrmex_cache._space import OnError, Space
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.backends.in_memory import DEFAULT_MAX_ENTRIES, InMemoryBackend, check_max_entries
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.stats import Counters

if TYPE_CHECKING:
    from codomyrmex_cache._secret import Secret

__all__ = ["ENTRY_POINTS", "Options", "check_namespace", "combined", "open_space", "resolved"]

ENTRY_POINTS = "codomyrmex_cache.backends"
BUILT_IN = ("in_memory", "file_based", "redis")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be said about a namespace; `None` means not said.

    Args:
        backend: a name ("in_memory", "file_based", "redis" or a registered one) or an object with the backend's methods.
        directory: below it each file-based namespace has its folder.
        url: of the Redis server.
        secret: signs stored bytes; a list rotates (the first signs, all verify).
        max_entries: bound of an in-memory namespace.
        clock: seconds; for tests.
        on_error: what a failing backend does to a call, "bypass" (nothing) or "raise".
    """

    backend: str | Backend | None = None
    directory: str | os.PathLike[str] | None = None
    url: str | None = None
    secret: Secret | None = None
    max_entries: int | None = None
    clock: Clock | None = None
    on_error: OnError | None = None

    def __post_init__(self) -> None:
        if isinstance(self.backend, str):
            _check_backend_name(self.backend)
        elif self.backend is not None and not callable(getattr(self.backend, "get", None)):
            raise CacheConfigurationError(f"backend={self.backend!r}: give {_allowed()}, or an object with get, set, ...")
        if self.on_error not in (None, "bypass", "raise"):
            raise CacheConfigurationError(f'on_error={self.on_error!r}: give "bypass" or "raise"')
        if self.secret is not None:
            from codomyrmex_cache._secret import secret_list

            secret_list(self.secret)
        if self.max_entries is not None:
            check_max_entries(self.max_entries)
        if self.url is not None and self.backend in (None, "redis"):
            from codomyrmex_cache.backends.redis import check_url

            check_url(self.url)

    def over(self, defaults: Options) -> Options:
        """These options, completed by `defaults`."""
        said = {field.name: getattr(self, field.name) for field in fields(Options)}
        return replace(defaults, **{name: value for name, value in said.items() if value is not None})


def check_namespace(name: object) -> str:
    """The name if it is one.

    Raises:
        CacheConfigurationError: empty or not a `str`.
    """
    if not isinstance(name, str) or not name:
        raise CacheConfigurationError(f"namespace {name!r}: give a non-empty str")
    return name


def combined(name: str, first: Options, second: Options) -> Options:
    """Both sets of options together.

    Raises:
        CacheConfigurationError: they contradict each other; both values are named.
    """
    values: dict[str, Any] = {}
    for field in fields(Options):
        old, new = getattr(first, field.name), getattr(second, field.name)
        if old is not None and new is not None and not _same(field.name, old, new):
            shown = ("another one", "the first") if field.name == "secret" else (repr(new), repr(old))
            raise CacheConfigurationError(
                f"namespace {name!r} was set up with {field.name}={shown[1]} and is now asked for with "
                f"{field.name}={shown[0]}: use the same value, leave it out, or choose another namespace"
            )
        values[field.name] = new if old is None else old
    return Options(**values)


def _same(option: str, old: Any, new: Any) -> bool:
    if option == "directory":
        return str(os.path.abspath(old)) == str(os.path.abspath(new))
    return old is new or (isinstance(old, (str, int, bytes, list, tuple)) and old == new)


def resolved(options: Options, environment: Mapping[str, str]) -> Options:
    """The options with everything decided that the backend needs."""
    backend = options.backend or environment.get("CODOMYRMEX_CACHE_BACKEND") or "in_memory"
    chosen = replace(options, backend=backend, on_error=options.on_error or "bypass")  # checks the environment's name too
    secret = options.secret or environment.get("CODOMYRMEX_CACHE_SECRET") or None
    if backend == "file_based":
        from codomyrmex_cache._folders import default_directory

        directory = options.directory or environment.get("CODOMYRMEX_CACHE_DIR") or default_directory()
        return replace(chosen, directory=os.path.abspath(os.fspath(directory)), secret=secret)
    if backend == "redis":
        from codomyrmex_cache.backends.redis import DEFAULT_URL

        url = options.url or environment.get("CODOMYRMEX_CACHE_REDIS_URL") or DEFAULT_URL
        return replace(chosen, url=url, secret=secret)
    if backend == "in_memory":
        return replace(chosen, max_entries=options.max_entries or DEFAULT_MAX_ENTRIES, secret=secret)
    return replace(chosen, secret=secret)


def open_space(name: str, options: Options, counters: dict[str, Counters]) -> Space:
    """Wire a namespace to its backend; nothing is connected or created yet, except a missing secret."""
    backend = _make_backend(name, options)
    is_object = backend.payload == "object"
    payloads = ObjectPayloads() if is_object else _sealed_payloads(name, options)
    clock = options.clock or (time.monotonic if is_object else time.time)
    return Space(name, backend, payloads, clock, options.on_error or "bypass", counters)


def _sealed_payloads(name: str, options: Options) -> Payloads:
    from codomyrmex_cache._sealed import SealedPayloads
    from codomyrmex_cache.envelope import Seal

    return SealedPayloads(Seal(_secrets(name, options)))


def _make_backend(name: str, options: Options) -> Backend:
    if not isinstance(options.backend, str):
        assert options.backend is not None
        return options.backend
    if options.backend == "in_memory":
        return InMemoryBackend(max_entries=options.max_entries)
    if options.backend == "file_based":
        from codomyrmex_cache._folders import namespace_directory
        from codomyrmex_cache.backends.file_based import FileBasedBackend

        return FileBasedBackend(namespace_directory(Path(options.directory or "."), name))
    if options.backend == "redis":
        from codomyrmex_cache.backends.redis import RedisBackend

        return RedisBackend(options.url or "")
    factory: Callable[..., Any] = _registered()[options.backend].load()
    return cast(Backend, factory(url=options.url) if options.url else factory())


def _secrets(name: str, options: Options) -> list[bytes]:
    from codomyrmex_cache._secret import file_secret, secret_list

    if options.secret is not None:
        return secret_list(options.secret)
    if options.backend != "file_based":
        return []
    try:
        return [file_secret(Path(options.directory or "."))]
    except (OSError, ValueError, RuntimeError) as error:  # no such folder can be, or a secret cut short by a power failure
        logger.warning(
            "namespace %r: no secret can be kept in the state folder (%s); entries will not outlive this process. "
            "Set CODOMYRMEX_CACHE_SECRET to share them.",
            name, error,
        )  # fmt: skip
        return [os.urandom(32)]


def _registered() -> dict[str, Any]:
    from importlib.metadata import entry_points  # 30 modules, needed for other people's backends alone

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _check_backend_name(name: str) -> None:
    if name not in BUILT_IN and name not in _registered():
        raise CacheConfigurationError(f"backend {name!r} is not known: give {_allowed()}")


def _allowed() -> str:
    return ", ".join(repr(name) for name in (*BUILT_IN, *sorted(_registered())))
