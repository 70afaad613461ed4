"""What a model's answer says of itself: whether it is whole, which model gave it, how many tokens it took.

Answers of the OpenAI and Anthropic SDKs, and streams of them as lists of what they consisted of, are known by the fields they
have and not by their classes, so that no SDK is imported, other packages' objects of the same form are known too, and dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["Usage", "model_of", "ok_completion", "usage_of"]

_CUT = frozenset(
    {
        "length", "max_tokens", "max_output_tokens", "model_context_window_exceeded", "content_filter", "safety",
        "recitation", "refusal", "error", "pause_turn", "cancelled",
    }
)  # fmt: skip
"""Reasons to stop, in lower case, that leave no whole answer; others than these are taken for an end."""

_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
"""Parts that are no answer by themselves."""


class Usage(NamedTuple):
    """Tokens that an answer took.

    Args:
        input: of the request, those that the provider had in its own cache among them.
        output: of the answer; 0 for embeddings.
    """

    input: int
    output: int


def ok_completion(result: object) -> bool:
    """Whether an answer of a model is whole, as a `store_if=`.

    Not whole are answers that are empty (no choices, no output, blank text and no tool call), refused, cut off (`length`,
    `max_tokens`, a full context window), stopped by a content filter, paused, failed, or not finished; of several choices each
    has to be whole.  A stream is given as the list of its chunks or events, and judged by what they add up to; a list of
    results by each of them; an empty list is not whole.  What has another form than chat completions, responses, messages and
    embeddings have is taken as it is: whole.

    Args:
        result: what an SDK's call gave, an object or a dict of the same form, or a list.

    >>> answer = {"choices": [{"message": {"content": "Oslo"}, "finish_reason": "stop"}]}
    >>> ok_completion(answer)
    True
    >>> answer["choices"][0]["finish_reason"] = "length"
    >>> ok_completion(answer)
    False
    """
    if not isinstance(result, (list, tuple)):
        return next((judge(result) for fields, judge in _JUDGES if all(_has(result, name) for name in fields)), True)
    kinds = {_get(item, "type") for item in result if isinstance(_get(item, "type"), str)}
    if kinds & {"message_start", "message_delta"}:
        return _ok_message_events(result)
    if any(kind.startswith("response.") for kind in kinds):
        return _ok_response_events(result)
    if any(_has(item, "choices") and not _is_whole_chat(item) for item in result):
        return _ok_choices(choice for chunk in result for choice in _listed(chunk, "choices"))
    return bool(result) and all(map(ok_completion, result))


def model_of(result: object) -> str | None:
    """The model that an answer, or a list of chunks or events, says it is of.

    >>> model_of([{"type": "message_start", "message": {"model": "m-1"}}])
    'm-1'
    """
    found = (_get(place, "model") for item in _items(result) for place in _places(item))
    return next((model for model in found if isinstance(model, str) and model), None)


def usage_of(result: object) -> Usage | None:
    """The tokens that an answer says it took; of several answers the sum; `None` if it says nothing.

    >>> usage_of({"usage": {"prompt_tokens": 8, "completion_tokens": 4}})
    Usage(input=8, output=4)
    """
    told = [usage for item in _items(result) for place in _places(item) if (usage := _get(place, "usage")) is not None]
    counts = [(_input(usage), _count(usage, "output_tokens", "completion_tokens")) for usage in told]
    if not counts:
        return None
    if isinstance(result, (list, tuple)) and all(map(_is_whole, result)):
        return Usage(sum(taken or 0 for taken, _ in counts), sum(given or 0 for _, given in counts))
    # the parts of a stream count on, and not every one of them says both
    takens, givens = [taken for taken, _ in counts if taken], [given for _, given in counts if given is not None]
    return Usage(takens[-1] if takens else 0, givens[-1] if givens else 0)


# -- forms -----------------------------------------------------------------------------------------------------------------


def _get(value: object, name: str) -> Any:
    """A field, or `None`; models of lenient SDKs lack those that the server left out."""
    if isinstance(value, Mapping):
        return value.get(name)
    try:
        return getattr(value, name, None)
    except Exception:  # a property of somebody's class
        return None


def _has(value: object, name: str) -> bool:
    """Whether its form has the field, though this one may lack it."""
    if isinstance(value, Mapping):
        return name in value
    return name in getattr(type(value), "__pydantic_fields__", ()) or _get(value, name) is not None


def _listed(value: object, name: str) -> list[Any]:
    found = _get(value, name)
    return list(found) if isinstance(found, (list, tuple)) else []


def _items(result: object) -> Iterable[object]:
    return result if isinstance(result, (list, tuple)) else (result,)


def _places(item: object) -> Iterable[object]:
    """Where an answer or an event may have `model` and `usage`."""
    return item, _get(item, "message"), _get(item, "response")


def _is_whole_chat(value: object) -> bool:
    return any(_has(choice, "message") for choice in _listed(value, "choices"))


def _is_whole(value: object) -> bool:
    """Whether it is no part of a stream."""
    if _has(value, "choices"):
        return _is_whole_chat(value)
    return any(_has(value, name) for name in ("output", "stop_reason", "data"))


def _input(usage: object) -> int | None:
    """Anthropic counts what it read from its own cache, and wrote there, apart."""
    taken = _count(usage, "input_tokens", "prompt_tokens")
    apart = [_count(usage, name) or 0 for name in ("cache_creation_input_tokens", "cache_read_input_tokens")]
    return None if taken is None else taken + sum(apart)


def _count(usage: object, *names: str) -> int | None:
    return next((count for name in names if isinstance(count := _get(usage, name), int)), None)


def _says(text: object) -> bool:
    """Whether it is more than blank; other things than texts are if they are true."""
    return bool(text.strip() if isinstance(text, str) else text)


def _is_end(reason: object) -> bool:
    return isinstance(reason, str) and bool(reason) and reason.lower() not in _CUT


# -- chat completions ------------------------------------------------------------------------------------------------------


def _ok_chat(result: object) -> bool:
    return not _get(result, "error") and _ok_choices(_listed(result, "choices"))


def _ok_choices(choices: Iterable[object]) -> bool:
    """Of whole choices, and of pieces of them."""
    said: dict[Any, bool] = {}
    reasons: dict[Any, object] = {}
    for place, choice in enumerate(choices):
        index = _get(choice, "index")
        index = ("whole", place) if index is None and _has(choice, "message") else index
        part = next((part for name in ("message", "delta") if (part := _get(choice, name)) is not None), choice)
        if _says(_get(part, "refusal")):
            return False
        answers = (_get(part, name) for name in ("content", "tool_calls", "function_call", "audio", "text"))
        said[index] = any(map(_says, answers)) or said.get(index, False)
        reasons[index] = _get(choice, "finish_reason") or reasons.get(index)
    return bool(said) and all(said.values()) and all(map(_is_end, reasons.values()))


# -- responses -------------------------------------------------------------------------------------------------------------


def _ok_response(result: object) -> bool:
    if _get(result, "status") != "completed" or _get(result, "error") or _get(result, "incomplete_details"):
        return False
    items = [item for item in _listed(result, "output") if _get(item, "type") not in _THOUGHTS]
    return bool(items) and all(map(_ok_item, items))


def _ok_item(item: object) -> bool:
    if _get(item, "type") != "message":  # a call of a tool, an image
        return _get(item, "status") not in ("incomplete", "in_progress")
    parts = _listed(item, "content")
    refused = any(_get(part, "type") == "refusal" for part in parts)
    cut = _get(item, "status") not in (None, "completed")
    return not refused and not cut and any(_get(part, "type") != "output_text" or _says(_get(part, "text")) for part in parts)


def _ok_response_events(events: Iterable[object]) -> bool:
    ends = [
        event for event in events if _get(event, "type") in ("response.completed", "response.incomplete", "response.failed")
    ]
    return len(ends) == 1 and _get(ends[0], "type") == "response.completed" and _ok_response(_get(ends[0], "response"))


# -- messages --------------------------------------------------------------------------------------------------------------


def _ok_message(result: object) -> bool:
    return _is_end(_get(result, "stop_reason")) and any(map(_ok_block, _listed(result, "content")))


def _ok_block(block: object) -> bool:
    kind = _get(block, "type")
    return _says(_get(block, "text")) if kind == "text" else kind not in _THOUGHTS


def _ok_message_events(events: Iterable[object]) -> bool:
    reason, said, stopped = None, False, False
    for event in events:
        kind, delta = _get(event, "type"), _get(event, "delta")
        if kind == "error":
            return False
        if kind == "message_delta":
            reason = _get(delta, "stop_reason") or reason
        stopped |= kind == "message_stop"
        said |= kind == "content_block_start" and _ok_block(_get(event, "content_block"))
        said |= kind == "content_block_delta" and _says(_get(delta, "text"))
    return stopped and said and _is_end(reason)


# -- embeddings ------------------------------------------------------------------------------------------------------------


def _ok_embeddings(result: object) -> bool:
    data = _listed(result, "data")
    return bool(data) and all(not _has(item, "embedding") or _says(_get(item, "embedding")) for item in data)


_JUDGES: tuple[tuple[tuple[str, ...], Callable[[object], bool]], ...] = (
    (("choices",), _ok_chat),
    (("output", "status"), _ok_response),
    (("content", "stop_reason"), _ok_message),
    (("data", "model"), _ok_embeddings),
)
"""By the fields that a form has."""
