"""From what was asked for to a wired namespace: keyword, then environment, then default.

The rooms of a backend (its codec, its files, its client) are imported when a namespace of that kind is wired, not before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from codomyrmex_cache._duration import Duration, to_seconds
from codomyrmex_cache._entry import Clock
from codomyrmex_cache._log import Log
from codomyrmex_cache._payload import ObjectPayloads, Payloads
from codomyrmex_cache._record import record, replace
from codomyrmex_cache._space import OnError, Space
from codomyrmex_cache.backends.base import Backend, namespace_prefix
from codomyrmex_cache.backends.in_memory import DEFAULT_MAX_ENTRIES, InMemoryBackend, check_max_bytes, check_max_entries
from codomyrmex_cache.errors import CacheConfigurationError
from codomyrmex_cache.modes import NORMALLY, Mode, Stance, checked_mode
from codomyrmex_cache.stats import Counters

if TYPE_CHECKING:
    from codomyrmex_cache._near_cells import NearCells
    from codomyrmex_cache._secret import Secret
    from codomyrmex_cache.backends._database import Durability
    from codomyrmex_cache.codecs import Codec, Coder

__all__ = [
    "BUDGET", "ENTRY_POINTS", "CacheOptions", "Options", "Results", "StoreOptions", "check_namespace", "combined", "open_space",
    "resolved", "safe_coders",
]  # fmt: skip

Results = Mapping[str, tuple[Callable[..., Any], Sequence[type]]]
"""For each function of a namespace, by its name in keys: itself, whose annotation says what it returns, and further classes."""

ENTRY_POINTS = "codomyrmex_cache.backends"
_CODECS = ("auto", "safe", "json", "pickle")
_COMPRESSED, _COMPRESSED_ON_REDIS = 16 * 1024, 64 * 1024
"""Bytes from which on compressing pays: deflating 1 MB takes ten times as long as writing it to a file."""

DEFAULT_MAX_VALUE_BYTES = 256 * 2**20

NEAR_SECONDS, _LEAST_NEAR_SECONDS = 5.0, 0.1
"""How old an answer of the near cache may be, and how little can be asked for."""

BUDGET = "memory"
"""Among the wires: the budget that the in-memory namespaces of a manager share."""

BUILT_IN = ("in_memory", "file_based", "redis")

logger = Log(__name__)


class StoreOptions(TypedDict, total=False):
    """How a namespace stores, as keywords; `Options` says what each means."""

    directory: str | os.PathLike[str] | None
    url: str | None
    secret: Secret | None
    codec: Literal["auto", "safe", "json", "pickle"] | Codec | None
    compress: int | bool | None
    encrypt: bool | None
    max_entries: int | None
    max_bytes: int | None
    max_value_bytes: int | None
    durability: Durability | None
    mmap: bool | None
    near: bool | Duration | None
    slots: int | None
    mode: Mode | None
    clock: Clock | None
    on_error: OnError | None


class CacheOptions(StoreOptions, total=False):
    """Further ones, which a decorated function has for itself."""

    types: Sequence[type] | None
    strict: bool | None


@record(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be said about a namespace; `None` means not said.

    Args:
        backend: a name ("in_memory", "file_based", "redis" or a registered one) or an object with the backend's methods.
        directory: below it each file-based namespace has its folder.
        url: of the Redis server.
        secret: signs stored bytes; a list rotates (the first signs, all verify).
        codec: "auto" (plain data and the classes of `types` exactly, the rest by pickle where bytes are signed), "safe" (never
            pickle), "json" (text that others can read), "pickle" (needs a secret), or a `codecs.Codec` of your own.
        compress: bytes from which on values are compressed; `True` for 16 KiB, `False` for never (the default, but 64 KiB on
            Redis).
        encrypt: AES-256-GCM (needs a secret and codomyrmex_cache[crypto]).
        types: classes that values may be of, beside plain data; for functions their return annotation names them.
        max_entries: bound of an in-memory namespace or a near cache (10,000), or of the files of a file-based namespace (none).
        max_bytes: bound of an in-memory namespace (none), of the files of a file-based one (1 GiB) or of a near cache (64 MiB).
        max_value_bytes: of one encoded value; larger ones are not stored (256 MiB, on Redis 8 MiB).
        durability: of files: "kill" (default) survives the process, "power" the machine.
        mmap: map large payloads of files into memory instead of reading them.
        near: of Redis: answer from this process's memory what it has read lately; `True`, or how old an answer may be when the
            server cannot be heard (5 s).
        slots: parts over which the namespace is spread in a Redis Cluster (1); all who share it must say the same.
        mode: in which calls are made where `modes.mode` and `modes.set_mode` say nothing ("normal").
        clock: seconds; for tests.
        on_error: what a failing backend does to a call, "bypass" (nothing) or "raise".
        strict: raise what is wrong with an entry that cannot be read, instead of taking it as a miss.
    """

    backend: str | Backend | None = None
    directory: str | os.PathLike[str] | None = None
    url: str | None = None
    secret: Secret | None = None
    codec: Literal["auto", "safe", "json", "pickle"] | Codec | None = None
    compress: int | bool | None = None
    encrypt: bool | None = None
    types: Sequence[type] | None = None
    max_entries: int | None = None
    max_bytes: int | None = None
    max_value_bytes: int | None = None
    durability: Durability | None = None
    mmap: bool | None = None
    near: bool | Duration | None = None
    slots: int | None = None
    mode: Mode | None = None
    clock: Clock | None = None
    on_error: OnError | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.backend, str):
            _check_backend_name(self.backend)
        elif self.backend is not None and not callable(getattr(self.backend, "get", None)):
            raise CacheConfigurationError(f"backend={self.backend!r}: give {_allowed()}, or an object with get, set, ...")
        if self.on_error not in (None, "bypass", "raise"):
            raise CacheConfigurationError(f'on_error={self.on_error!r}: give "bypass" or "raise"')
        if self.mode is not None:
            checked_mode(self.mode)
        if self.secret is not None:
            from codomyrmex_cache._secret import secret_list

            secret_list(self.secret)
        if self.max_entries is not None:
            check_max_entries(self.max_entries)
        for name in ("max_bytes", "max_value_bytes"):
            bound = getattr(self, name)
            if bound is not None:
                check_max_bytes(bound, name)
        if self.compress is not None and (not isinstance(self.compress, int) or self.compress < 0):
            raise CacheConfigurationError(f"compress={self.compress!r}: give a number of bytes, True or False")
        if self.codec is not None and self.codec not in _CODECS and not hasattr(self.codec, "loads"):
            raise CacheConfigurationError(f"codec={self.codec!r}: give {', '.join(map(repr, _CODECS))}, or a codecs.Codec")
        if self.durability not in (None, "kill", "power"):
            raise CacheConfigurationError(f'durability={self.durability!r}: give "kill" or "power"')
        if near_bound(self.near) is not None and self.backend in ("in_memory", "file_based"):
            raise CacheConfigurationError(_NEAR_WHERE.format(self.near, self.backend))
        if self.types is not None and not all(isinstance(kind, type) for kind in self.types):
            raise CacheConfigurationError(f"types={self.types!r}: give a list of classes")
        if self.url is not None and self.backend in (None, "redis"):
            from codomyrmex_cache.backends._target import check_url

            check_url(self.url)
        if self.slots is not None:
            from codomyrmex_cache.backends._layout import Layout

            Layout(self.slots)

    def over(self, defaults: Options) -> Options:
        """These options, completed by `defaults`."""
        said = {name: getattr(self, name) for name in _OPTIONS}
        return replace(defaults, **{name: value for name, value in said.items() if value is not None})


_OPTIONS: tuple[str, ...] = tuple(Options.__annotations__)

_NEAR_WHERE = 'near={!r}: the near cache is of backend="redis", and this is {}'


def near_bound(near: bool | Duration | None) -> float | None:
    """Seconds that an answer of the near cache may be older than the server's; `None` for no near cache.

    Raises:
        CacheConfigurationError: it is no duration, or too short for a check to be answered.
    """
    if near is None or near is False:
        return None
    seconds = NEAR_SECONDS if near is True else to_seconds(near, "near")
    if seconds < _LEAST_NEAR_SECONDS:
        raise CacheConfigurationError(f"near={near!r}: give True, or {_LEAST_NEAR_SECONDS:g} seconds or more")
    return seconds


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
    for option in _OPTIONS:
        old, new = getattr(first, option), getattr(second, option)
        if old is not None and new is not None and not _same(option, old, new):
            shown = ("another one", "the first") if option == "secret" else (repr(new), repr(old))
            raise CacheConfigurationError(
                f"namespace {name!r} was set up with {option}={shown[1]} and is now asked for with "
                f"{option}={shown[0]}: use the same value, leave it out, or choose another namespace"
            )
        values[option] = new if old is None else old
    return Options(**values)


def _same(option: str, old: Any, new: Any) -> bool:
    if option == "directory":
        return str(os.path.abspath(old)) == str(os.path.abspath(new))
    if option == "near":
        return near_bound(old) == near_bound(new)
    return old is new or (isinstance(old, (str, int, bytes, list, tuple)) and old == new)


def resolved(options: Options, environment: Mapping[str, str]) -> Options:
    """The options with everything decided that the backend needs."""
    backend = options.backend or environment.get("CODOMYRMEX_CACHE_BACKEND") or "in_memory"
    mode: Any = options.mode or environment.get("CODOMYRMEX_CACHE_MODE") or "normal"
    chosen = replace(options, backend=backend, mode=mode, on_error=options.on_error or "bypass")  # checks both names
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


def open_space(
    name: str, options: Options, counters: dict[str, Counters], results: Results, wires: MutableMapping[str, Any]
) -> Space:
    """Wire a namespace to its backend; nothing is connected or created yet, except a missing secret.

    `wires` are the connections to servers, and the budget of memory, that the namespaces of a manager share.
    """
    backend = _make_backend(name, options, wires)
    is_object = backend.payload == "object"
    check_size = getattr(backend, "check_size", None)
    payloads = ObjectPayloads(check_size) if is_object else _sealed_payloads(name, options, backend, results)
    clock = options.clock or (time.monotonic if is_object else time.time)
    near = _make_near(name, options, backend, clock)
    return Space(
        name, backend, payloads, clock, options.on_error or "bypass", counters, strict=bool(options.strict), near=near,
        stance=NORMALLY if options.mode in (None, "normal") else Stance(options.mode),
    )  # fmt: skip


def _make_near(name: str, options: Options, backend: Backend, clock: Clock) -> NearCells | None:
    bound = near_bound(options.near)
    if bound is None and getattr(backend, "coherence", None) is not None:
        from codomyrmex_cache._hot import Hot

        return Hot.over(backend.coherence, clock)  # type: ignore[attr-defined]  # whatever bounds there are, they are of the files
    if bound is None:
        return None
    from codomyrmex_cache._near import Near
    from codomyrmex_cache._near_cells import DEFAULT_NEAR_BYTES
    from codomyrmex_cache.backends._tracking import TellsChanges, Tracker

    if not isinstance(backend, TellsChanges):
        raise CacheConfigurationError(_NEAR_WHERE.format(options.near, type(backend).__name__))
    return Near(
        name, bound, clock, partial(Tracker, backend, namespace_prefix(name), bound),
        max_entries=options.max_entries or DEFAULT_MAX_ENTRIES, max_bytes=options.max_bytes or DEFAULT_NEAR_BYTES,
    )  # fmt: skip


def _sealed_payloads(name: str, options: Options, backend: Backend, results: Results) -> Payloads:
    from codomyrmex_cache._sealed import SealedPayloads
    from codomyrmex_cache.codecs import Coder, Types
    from codomyrmex_cache.envelope import Seal

    seal = Seal(_secrets(name, options), encrypt=bool(options.encrypt))
    compress = options.compress
    if compress is None or isinstance(compress, bool):
        compress = (
            _COMPRESSED if compress else _COMPRESSED_ON_REDIS if compress is None and options.backend == "redis" else None
        )

    def make_coder(types: Types) -> Coder:
        return Coder(options.codec or "auto", signed=seal.trusted, types=types, compress_above=compress)

    return SealedPayloads(
        name, seal, make_coder, Types(*(options.types or ())), results,
        chunked=bool(getattr(backend, "chunked", False)), lets_go=bool(getattr(backend, "lets_go", False)),
        most=options.max_value_bytes or int(getattr(backend, "max_value_bytes", DEFAULT_MAX_VALUE_BYTES)),
    )  # fmt: skip


def safe_coders(name: str, options: Options, results: Results) -> Callable[[bytes], Coder]:
    """The codec without pickle for what is stored under a key of this namespace, whatever its backend and its own codec."""
    from codomyrmex_cache._sealed import SealedPayloads
    from codomyrmex_cache.codecs import Coder, Types
    from codomyrmex_cache.envelope import Seal

    def make_coder(types: Types) -> Coder:
        return Coder("safe", signed=False, types=types)

    types = Types(*(options.types or ()))
    return SealedPayloads(name, Seal(), make_coder, types, results, chunked=False, most=DEFAULT_MAX_VALUE_BYTES).coder_of


def _make_backend(name: str, options: Options, wires: MutableMapping[str, Any]) -> Backend:
    if not isinstance(options.backend, str):
        assert options.backend is not None
        return options.backend
    if options.backend == "in_memory":
        return InMemoryBackend(
            max_entries=options.max_entries, max_bytes=options.max_bytes, expiry_clock=options.clock or time.monotonic,
            budget=wires.get(BUDGET),
        )  # fmt: skip
    if options.backend == "file_based":
        from codomyrmex_cache._folders import namespace_directory
        from codomyrmex_cache.backends.file_based import DEFAULT_MAX_BYTES, FileBasedBackend

        return FileBasedBackend(
            namespace_directory(Path(options.directory or "."), name),
            max_bytes=options.max_bytes or DEFAULT_MAX_BYTES, max_entries=options.max_entries,
            durability=options.durability or "kill", mmap=bool(options.mmap),
        )  # fmt: skip
    if options.backend == "redis":
        from codomyrmex_cache.backends.redis import RedisBackend

        return RedisBackend(options.url or "", slots=options.slots or 1, wires=wires)
    factory: Callable[..., Any] = _registered()[options.backend].load()
    return cast(Backend, factory(url=options.url) if options.url else factory())


def _secrets(name: str, options: Options) -> list[bytes]:
    from codomyrmex_cache._secret import file_secret, secret_list

    if options.secret is not None:
        return secret_list(options.secret)
    # an object that keeps files: `FileBasedBackend("folder")`
    directory = options.directory if isinstance(options.backend, str) else getattr(options.backend, "directory", None)
    if options.backend == "redis" or directory is None:
        return []
    try:
        return [file_secret(Path(directory))]
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
