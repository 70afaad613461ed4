"""What the package offers to those who call language models, none of whose libraries it imports by itself.

Each name is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codomyrmex_cache._completions import ok_completion
    from codomyrmex_cache.integrations._clients import cache_client

__all__ = ["cache_client", "ok_completion"]

_ROOMS = {"cache_client": "integrations._clients", "ok_completion": "_completions"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"codomyrmex_cache.{_ROOMS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
