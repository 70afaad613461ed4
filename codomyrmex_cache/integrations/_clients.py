"""`cache_client`: a client of an SDK whose calls to the model are cached.

It is a shallow copy of the client, of the very same class.  The SDKs make a client's resources when they are first asked for,
as attributes of its own; so the copy gets resources of its own, and on these the cached methods lie over the class's.
Nothing of the SDK is changed, and what is not listed in `METHODS` is the SDK's own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from inspect import iscoroutinefunction, unwrap
from typing import Any, TypeVar

from codomyrmex_cache._policy import Ttl
from codomyrmex_cache._signature import shape_of
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.decorator import cached
from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["METHODS", "cache_client"]

T = TypeVar("T")

METHODS: dict[str, tuple[str, ...]] = {
    "openai": (
        "chat.completions.create", "chat.completions.parse", "responses.create", "responses.parse", "embeddings.create",
        "beta.chat.completions.create", "beta.chat.completions.parse",
    ),
    "anthropic": ("messages.create", "messages.parse", "beta.messages.create", "beta.messages.parse"),
}  # fmt: skip
"""What is cached, by the SDK's package; those that a release does not have are passed over."""

_RAW = "x-stainless-raw-response"
"""The header by which the SDKs' `with_raw_response` and `with_streaming_response` tell a method what to give back."""

_WHOLE = frozenset({"stale", "early", "touch", "errors"})
"""Options that entries of single items do not have; with them a call of many texts is one entry."""


def cache_client(
    client: T, *, namespace: str = "llm", ttl: Ttl = None, backend: str | Backend | None = None, **options: Any
) -> T:
    """A client of the same type that asks the model only for what it has not been answered yet.

    Cached are, of OpenAI's clients (`OpenAI`, `AsyncOpenAI`, Azure's and other subclasses): `chat.completions.create` and
    `parse`, `responses.create` and `parse`, `embeddings.create` (each text is an entry of its own), and
    `beta.chat.completions`; of Anthropic's: `messages.create` and `parse`, and `beta.messages`.  `create(stream=True)` is
    recorded and replayed.  All else is the SDK's own: other methods, `.stream()` helpers, `with_raw_response` and
    `with_streaming_response`.  Each cached method has the control methods of `cached`, such as
    `client.chat.completions.create.peek(...)`.

    The given client stays as it is; the two share one connection pool, so that closing either closes both.  What `copy` and
    `with_options` of the new client give back is cached alike.  A setting changed on the new client is part of the keys from
    then on.

    Args:
        client: of `openai` or `anthropic`, with or without `async`.
        namespace: as for `cached`.
        ttl: how long an answer is fresh, as for `cached`; by default for ever.
        backend: as for `cached`.
        options: any other option of `cached`, such as `scope=`, `samples=` or `store_if=`, but `name=` and `batch=`.
            `samples=` is not for embeddings, of which all draws are the same.

    Raises:
        CacheConfigurationError: it is no client of these SDKs, or an option means nothing.
    """
    package = next((found for kind in type(client).__mro__ if (found := kind.__module__.partition(".")[0]) in METHODS), None)
    if package is None or not callable(getattr(client, "with_options", None)):
        raise CacheConfigurationError(
            f"{type(client).__qualname__} is no client that cache_client knows: {' or '.join(METHODS)}"
        )
    refused = {"name", "batch"} & options.keys()
    if refused:
        raise CacheConfigurationError(f"{min(refused)}= is for one function: leave it out, or use cached on the method")
    known = {"namespace": namespace, "ttl": ttl, "backend": backend, **options}
    return _equipped(_another(client), METHODS[package], known)


def _another(client: T) -> T:
    """A shallow copy, with resources of its own in place of those that the client had made already."""
    another = copy.copy(client)
    for name, value in vars(client).items():
        if type(value) is _Later:
            del vars(another)[name]
        elif getattr(value, "_client", None) is client:
            if isinstance(getattr(type(client), name, None), functools.cached_property):
                del vars(another)[name]
            else:  # Anthropic's clients for other platforms make some at once
                vars(another)[name] = type(value)(another)
    if getattr(client, "_middleware_chain", None) is not None:  # Anthropic's; it sends by the client that it was made by
        vars(another)["_middleware_chain"] = another._build_middleware_chain()  # type: ignore[attr-defined]
    return another


def _equipped(client: T, methods: tuple[str, ...], options: dict[str, Any]) -> T:
    """The client itself, with its methods cached."""
    for path in methods:
        root, _, rest = path.partition(".")
        if root == "beta" and root not in vars(client) and hasattr(type(client), root):
            inner = [each.partition(".")[2] for each in methods if each.startswith("beta.")]
            vars(client)[root] = _Later(functools.partial(_made, client, root, inner, options))
        elif type(vars(client).get(root)) is not _Later and (root in vars(client) or hasattr(type(client), root)):
            _cover(getattr(client, root), rest, options)
    original = type(client).copy  # type: ignore[attr-defined]

    @functools.wraps(original)
    def copied(*args: Any, **kwargs: Any) -> Any:
        return _equipped(original(client, *args, **kwargs), methods, options)

    vars(client).update(copy=copied, with_options=copied)
    return client


def _cover(owner: Any, path: str, options: dict[str, Any]) -> None:
    """Lay a cached method over that at the end of the path."""
    *names, last = path.split(".")
    resource = functools.reduce(getattr, names, owner)
    if not hasattr(type(resource), last):
        return
    if "stream" not in vars(resource) and hasattr(type(resource), "stream"):
        resource.stream = copy.copy(resource).stream  # it calls `create`, and wants what the SDK's own gives
    method = getattr(resource, last)
    mine = dict(options)
    if type(resource).__name__ in ("Embeddings", "AsyncEmbeddings"):
        mine.pop("samples", None)
        if "input" in shape_of(method).names and not any(map(mine.get, _WHOLE)):
            mine["batch"] = "input"
    else:
        mine.pop("max_batch", None)
    setattr(resource, last, _unless_raw(method, cached(**mine)(method)))


def _unless_raw(method: Callable[..., Any], covering: Any) -> Callable[..., Any]:
    """The cached method, but for those who want the response itself and not what it says."""

    def chosen(kwargs: dict[str, Any]) -> Callable[..., Any]:
        headers = kwargs.get("extra_headers")
        raw = headers and any(isinstance(name, str) and name.lower() == _RAW for name in headers)
        return covering.bypass if raw else covering  # type: ignore[no-any-return]

    def answer(*args: Any, **kwargs: Any) -> Any:
        return chosen(kwargs)(*args, **kwargs)

    async def answer_later(*args: Any, **kwargs: Any) -> Any:
        return await chosen(kwargs)(*args, **kwargs)

    return functools.update_wrapper(answer_later if iscoroutinefunction(unwrap(method)) else answer, covering)


class _Later:
    """Stands for a resource until it is used: OpenAI's `beta` takes half a second to import, and few programs use it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_make")(), name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._make())


def _made(client: Any, root: str, paths: list[str], options: dict[str, Any]) -> Any:
    """The resource, from now on in place of what stands for it."""
    found = vars(client)[root]
    if type(found) is _Later:
        found = getattr(type(client), root).func(client)
        for path in paths:
            _cover(found, path, options)
        vars(client)[root] = found
    return found
