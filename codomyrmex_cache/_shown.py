"""A call in a form that people can read, stored beside the results that are recorded, without secrets.

It is JSON of three members: `call`, the arguments that count, `digest`, that of the call, and `parts`, the digests of what went
into its key.  With these an entry can be carried to a store with another secret, which keeps nothing but keyed forms of them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from codomyrmex_cache.keys import Key

__all__ = ["holds_secret", "readable", "redacted", "shown_call"]

_MAX_BYTES, _MAX_TEXT, _MAX_ITEMS, _MAX_DEPTH = 256 * 1024, 16 * 1024, 1_000, 20

_SECRET_NAME = re.compile(
    r"(api|access|auth|private|secret|signing)[_-]?key|authorization|password|passwd|secret|cookie|credential"
    r"|(^|[_-])token$|(access|auth|bearer|refresh|session|id)[_-]?token", re.I,
)  # fmt: skip
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|xox[a-z])[-_][A-Za-z0-9_\-]{16,}|\bBearer\s+[A-Za-z0-9._\-]{16,}|\bAKIA[0-9A-Z]{16}\b"
)
_LEAST_SECRET = 12
_REDACTED = "[redacted]"


def shown_call(names: Sequence[str], values: Sequence[Any], key: Key, parts: Sequence[tuple[str, bytes]]) -> bytes:
    """The JSON of a call; an argument that is too large is cut.

    Args:
        names: of the arguments that count.
        values: theirs.
        key: of the call.
        parts: names and short digests.
    """
    call = {name: redacted(name, readable(value)) for name, value in zip(names, values, strict=True)}
    content = {"call": call, "digest": key.digest.hex(), "parts": {name: digest.hex() for name, digest in parts}}
    text = _dumped(content)
    if len(text) > _MAX_BYTES:
        text = _dumped({**content, "call": dict.fromkeys(call, "[too large]")})
    return text


def _dumped(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def readable(value: Any, depth: int = 0) -> Any:
    """What JSON can say of a value: plain data as it is, models and records by their fields, the rest by its class."""
    kind = type(value)
    if value is None or kind in (bool, int, float):
        return value
    if isinstance(value, str):
        text = str(value)
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} [{len(text)} characters]"
    if depth > _MAX_DEPTH:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {str(readable(name, depth + 1)): readable(item, depth + 1) for name, item in islice(value.items(), _MAX_ITEMS)}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [readable(item, depth + 1) for item in islice(value, _MAX_ITEMS)]
        items += [f"[{len(value)} items]"] if len(value) > _MAX_ITEMS else []
        return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, type):
        return f"<class {value.__module__}.{value.__qualname__}>"
    fields = _fields(value)
    if fields is not None:
        return readable(fields, depth + 1)
    return f"<{kind.__module__}.{kind.__qualname__}>"


def _fields(value: Any) -> dict[str, Any] | None:
    """Those of a model of pydantic, a dataclass or a class of attrs."""
    kind = type(value)
    declared = getattr(kind, "__pydantic_fields__", None) or getattr(kind, "__dataclass_fields__", None)
    if declared is None:
        declared = [each.name for each in getattr(kind, "__attrs_attrs__", ())]
    found = {name: vars(value)[name] for name in declared if name in getattr(value, "__dict__", {})}
    return {**found, **(getattr(value, "__pydantic_extra__", None) or {})} or None


def redacted(name: str, value: Any) -> Any:
    """The value without what is named or looks like a secret, or is one of this program's environment."""
    return _redacted(name, value, _secrets())


def _redacted(name: str, value: Any, secrets: Sequence[str]) -> Any:
    if value is not None and not isinstance(value, (bool, int, float)) and _SECRET_NAME.search(name):
        return _REDACTED
    if isinstance(value, str):
        text = _SECRET_TEXT.sub(_REDACTED, value)
        for secret in secrets:
            text = text.replace(secret, _REDACTED)
        return text
    if isinstance(value, dict):
        return {_redacted("", key, secrets): _redacted(key, item, secrets) for key, item in value.items()}
    return [_redacted("", item, secrets) for item in value] if isinstance(value, list) else value


def holds_secret(text: str) -> bool:
    """Whether there is something in it that looks like a secret, or is one of this program's environment."""
    return _SECRET_TEXT.search(text) is not None or any(secret in text for secret in _secrets())


def _secrets() -> list[str]:
    return [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _LEAST_SECRET]
