"""Embeddings, text by text: how a call for many is taken apart, and put together again.

An entry is a response for one text alone.  Its usage is that text's share of what the provider counted, by length, and the
shares of one request add up to what it counted exactly.  Put together, the usages are added: a repeated call tells the same
usage as the first, like every other repeated call; what was really spent is in the statistics.  No SDK is imported: responses
are read by their attributes and copied by pydantic's public `model_copy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["joined", "listed", "parted"]

_COUNTS = ("prompt_tokens", "total_tokens")


def listed(given: Any) -> list[Any] | None:
    """The texts or lists of tokens that an `input` asks for; `None` if that is not to be told.

    A list of ints is the tokens of one text.
    """
    if isinstance(given, str):
        return [given]
    if not isinstance(given, (list, tuple)) or not given:
        return None
    if all(isinstance(item, int) for item in given):
        return [given]
    texts = all(isinstance(item, str) for item in given)
    return list(given) if texts or all(map(_is_tokens, given)) else None


def _is_tokens(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and bool(item) and all(isinstance(token, int) for token in item)


def parted(response: Any, items: Sequence[Any]) -> list[Any]:
    """A response for each item, in order; as many as the response has embeddings."""
    data = list(response.data)
    if sorted(places := [each.index for each in data]) == list(range(len(data))):
        data = [each for _, each in sorted(zip(places, data, strict=True), key=_first)]
    lengths = [len(item) for item in items]
    usages = _shares(response.usage, lengths) if len(data) == len(items) else [response.usage] * len(data)
    return [
        response.model_copy(update={"data": [each.model_copy(update={"index": 0})], "usage": usage})
        for each, usage in zip(data, usages, strict=True)
    ]


def joined(responses: Sequence[Any]) -> Any:
    """One response for all of them."""
    data = [each.data[0].model_copy(update={"index": index}) for index, each in enumerate(responses)]
    usages = [each.usage for each in responses]
    usage = usages[0]
    if all(each is not None for each in usages):
        usage = usage.model_copy(update={name: sum(getattr(each, name) for each in usages) for name in _COUNTS})
    return responses[0].model_copy(update={"data": data, "usage": usage})


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


def _shares(usage: Any, lengths: Sequence[int]) -> list[Any]:
    if usage is None:
        return [None] * len(lengths)
    split = {name: list(_split(getattr(usage, name), lengths)) for name in _COUNTS}
    return [usage.model_copy(update={name: split[name][place] for name in _COUNTS}) for place in range(len(lengths))]


def _split(total: int, weights: Sequence[int]) -> Iterator[int]:
    """Whole numbers nearly in proportion to the weights, whose sum is the total."""
    whole, passed, given = sum(weights) or 1, 0, 0
    for weight in weights:
        passed += weight
        upto = total * passed // whole if sum(weights) else 0
        yield upto - given
        given = upto
