"""Generations of LangChain's models: which are worth keeping, and as what they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from json import loads
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, ChatMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from pydantic import BaseModel

from codomyrmex_cache.codecs import SAFE, Coder, Types
from codomyrmex_cache.errors import CacheCodecError

__all__ = ["is_model", "ok_generations", "read", "written"]

_TYPES = Types(
    Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk, AIMessage, AIMessageChunk, ChatMessage, ChatMessageChunk
)
_CODER = Coder("safe", signed=False, types=_TYPES)

_UNFINISHED = frozenset({
    "length", "max_tokens", "max_output_tokens", "model_context_window_exceeded", "content_filter", "content_filtered",
    "guardrail_intervened", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii", "image_safety",
    "malformed_function_call", "pause_turn", "incomplete", "in_progress", "queued", "cancelled", "failed", "error",
    "error_toxic", "error_limit",
})  # fmt: skip
_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")


# -- what is worth keeping ---------------------------------------------------------------------------------------------


def ok_generations(generations: Sequence[Generation]) -> bool:
    """Whether all of them are whole answers: not empty, refused, filtered, cut off, or with tool calls that cannot be read.

    Args:
        generations: as a model gave them; their `response_metadata` and `generation_info` say how they ended.

    >>> from langchain_core.outputs import Generation
    >>> ok_generations([Generation(text="Oslo")]), ok_generations([Generation(text="")])
    (True, False)
    >>> ok_generations([Generation(text="Os", generation_info={"finish_reason": "length"})])
    False
    """
    return bool(generations) and all(map(_is_ok, generations))


def _is_ok(generation: Generation) -> bool:
    message = getattr(generation, "message", None)
    told = [generation.generation_info or {}, getattr(message, "response_metadata", None) or {}]
    if any(str(part.get(name)).lower() in _UNFINISHED for part in told for name in _REASONS):
        return False
    if message is None:
        return bool(generation.text.strip())
    if message.additional_kwargs.get("refusal") or getattr(message, "invalid_tool_calls", None):
        return False
    kinds = {block.get("type") for block in message.content if isinstance(block, dict)}
    said = generation.text.strip() or getattr(message, "tool_calls", None) or any(message.additional_kwargs.values())
    return "refusal" not in kinds and bool(said or kinds - {"text", "thinking", "reasoning", None})


# -- as bytes ------------------------------------------------------------------------------------------------


def is_model(value: object) -> bool:
    """Whether it is a class of pydantic models."""
    return isinstance(value, type) and issubclass(value, BaseModel)


def written(generations: Sequence[Generation]) -> Any:
    """The generations in the safe format, or as they are if it does not take all that is in them: then the namespace's codec
    decides.

    Returns:
        A tuple: for each generation whether it had an answer parsed into a model, and the frames.  Or a list of generations.
    """
    try:
        parsed = [is_model(type(_parsed(generation))) for generation in generations]
        taken = [_plain(generation) for generation in generations]
        return (tuple(parsed), *map(bytes, _CODER.dumps(taken)[1]))
    except Exception:  # validators and comparisons are the user's code; the call has its answer
        return list(generations)


def _parsed(generation: Generation) -> Any:
    message = getattr(generation, "message", None)
    return None if message is None else message.additional_kwargs.get("parsed")


def _plain(generation: Generation) -> Generation:
    """A copy whose text is a `str` and whose parsed answer is left out, if its text gives it again."""
    changed: dict[str, Any] = {"text": str(generation.text)}
    parsed = _parsed(generation)
    if isinstance(parsed, BaseModel):
        message = generation.message  # type: ignore[attr-defined]  # only chat generations have parsed answers
        if type(parsed).model_validate_json(str(message.text)) != parsed:
            raise CacheCodecError("the text does not give the parsed answer")
        changed["message"] = message.model_copy(update={"additional_kwargs": {**message.additional_kwargs, "parsed": None}})
    return generation.model_copy(update=changed)


def read(stored: Any, schema: type[BaseModel] | None, run_id: object) -> list[Generation]:
    """A list of generations of the caller's own.

    Args:
        stored: what `written` gave.
        schema: the class that a parsed answer is to be of; a dict otherwise.
        run_id: whose messages these are from now on; graphs drop a second message that has the id of another one.

    Raises:
        CacheCodecError: they cannot be made again, by other versions of LangChain or of the class that is asked for.
    """
    if type(stored) is list:
        generations: list[Generation] = stored
    else:
        parsed, *frames = stored
        generations = _CODER.loads(SAFE, frames)
        for generation in (found for found, has in zip(generations, parsed, strict=True) if has):
            _parse(generation, schema)
    for place, generation in enumerate(generations):
        message = getattr(generation, "message", None)
        if run_id is not None and str(getattr(message, "id", "")).startswith("lc_run-"):
            message.id = f"lc_run--{run_id}-{place}"  # type: ignore[union-attr]  # a message, or there were no such id
    return generations


def _parse(generation: Any, schema: type[BaseModel] | None) -> None:
    text = str(generation.message.text)
    try:
        parsed = loads(text) if schema is None else schema.model_validate_json(text)
    except Exception as error:  # validators are the user's code
        raise CacheCodecError("the stored answer does not fit the class that is asked for") from error
    generation.message.additional_kwargs["parsed"] = parsed
