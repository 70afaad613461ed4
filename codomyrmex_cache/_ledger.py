"""What the load of a result took, by the result: `cost=` is asked, or what the result says of its model and its tokens."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, Any

from codomyrmex_cache._isolation import is_stream
from codomyrmex_cache._log import Log
from codomyrmex_cache._worth import Worth

if TYPE_CHECKING:
    from decimal import Decimal

    from codomyrmex_cache.stats import Counters

__all__ = ["Cost", "appraise"]

logger = Log(__name__)

Cost = Callable[[Any], "float | Decimal | None"]
"""The result (of a stream, the list of its items) to dollars, `None` if they are unknown."""

_SILENT = frozenset({str, bytes, bytearray, int, float, bool, complex, set, frozenset, type(None)})
"""Kinds of results that say nothing of what they took."""

_SDKS = frozenset({"openai", "anthropic"})


def appraise(cost: Cost | None, counters: Counters, value: Any) -> Worth | None:
    """What a load that gave this took; `None` if nobody says anything about it.

    A callable that fails, or gives what is no amount of money, leaves the result without a price, and is counted.
    """
    if cost is None:
        return None if _is_silent(value) else _told(value, counters)
    if is_stream(value):  # one that is not recorded: its items are its caller's
        return None
    try:
        dollars = _checked(cost(value))
    except Exception as error:  # the callable is user code
        dollars = None
        if counters.error("cost") == 1:
            logger.warning("cost= failed, the result has no price: %r", error)
    told = None if _is_silent(value) else _told(value, counters)
    return (told or Worth())._replace(cost=dollars)


def _checked(dollars: Any) -> float | None:
    if dollars is None:
        return None
    if isinstance(dollars, (bool, str)) or not isfinite(amount := float(dollars)):
        raise ValueError(f"{dollars!r} is no amount of dollars")
    return amount


def _is_silent(value: Any) -> bool:
    kind = type(value)
    if kind is list or kind is tuple:
        return not value or type(value[-1]) in _SILENT or type(value[-1]) in (list, tuple)
    return kind in _SILENT


# -- what results say: `_completions` reads any object of the right form by its attributes; here every hit from files or a
# server is read, so only what dicts and objects have as their own state: a twentieth of the time, and no code of theirs runs


def _told(value: Any, counters: Counters) -> Worth | None:
    """By what the result says; a model's answer that does not tell its tokens has no price, rather than none to pay."""
    try:
        model, said = "", dict[str, int]()
        for item in _ends(value) if type(value) is list else (value,):
            state = _state(item)
            for told in (state, *(_state(state[name]) for name in _INNER if name in state)):
                named, usage = told.get("model"), told.get("usage")
                model = model or (named if type(named) is str else "")
                if usage is not None:  # of a stream's the last number counts, since they are sums
                    said |= _numbers(_state(usage))
        if any(said.values()):
            return _worth(model, said)
        return Worth(model) if model and _sdk_of(value) in _SDKS else None
    except Exception as error:  # a class may have a state of its own kind
        if counters.error("cost") == 1:
            logger.warning("a result of type %s cannot be read for its tokens: %r", type(value).__qualname__, error)
        return None


_INNER = ("message", "response")
"""Of events of streams, what has the model or the usage."""

_NOTHING: dict[str, Any] = {}


def _state(value: Any) -> dict[str, Any]:
    state = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    return state if isinstance(state, dict) else _NOTHING


_ENDS = 8


def _ends(items: list[Any]) -> list[Any]:
    """Of a long stream the items, first and last, that may name the model and the usage; of results all."""
    is_stream = len(items) > 2 * _ENDS and _state(items[_ENDS]).get("usage") is None
    return [*items[:_ENDS], *items[-_ENDS:]] if is_stream else items


def _sdk_of(value: Any) -> str:
    example = value[-1] if type(value) is list else value
    return type(example).__module__.partition(".")[0]


_PLACES = {
    "prompt_tokens": "input",
    "input_tokens": "input",
    "completion_tokens": "output",
    "output_tokens": "output",
    "cache_read_input_tokens": "read",  # of Anthropic, beside the input tokens
    "cache_creation_input_tokens": "written",
}
_DETAILS = ("prompt_tokens_details", "input_tokens_details")
"""Of OpenAI, with those of the input tokens that the provider had in its cache."""


def _numbers(usage: dict[str, Any]) -> dict[str, int]:
    found = {place: number for name, place in _PLACES.items() if type(number := usage.get(name)) is int}
    for name in _DETAILS:
        cached = _state(usage.get(name)).get("cached_tokens")
        if type(cached) is int:
            found["cached"] = cached
    return found


def _worth(model: str, said: dict[str, int]) -> Worth:
    from codomyrmex_cache._prices import price_of

    read, written = said.get("read", 0), said.get("written", 0)
    tokens = said.get("input", 0) + read + written
    return Worth(model, tokens, said.get("output", 0), said.get("cached", 0) + read, written, price_of)
