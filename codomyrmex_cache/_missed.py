"""What a miss in mode "replay" says: which recorded call is the nearest, and what differs, argument by argument."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from codomyrmex_cache._effects import Call, Flow, Request
from codomyrmex_cache._entry import MISSING
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import CacheMissError, EnvelopeError
from codomyrmex_cache.keys import owner_of

if TYPE_CHECKING:
    from codomyrmex_cache._explain import Explanation

__all__ = ["call_of", "described", "difference"]

_MOST_DIFFERENCES, _MOST_LINES, _WIDTH = 10, 20, 200

_REMEDY = 'record it in mode "record" (pytest: --cache-mode=record), or make the call that was recorded'


def described(space: Space, request: Request, found: Explanation) -> Flow[CacheMissError]:
    """The error of this call, whose explanation this is."""
    text, owner = request.key.text, owner_of(request.key.text)
    lines = [f"replay: namespace {space.name!r} has no entry for this call of {owner}", f"  key      {text}"]
    if found.nearest is None:
        lines.append("  nearest  there is none of this function")
    else:
        lines.append(f"  nearest  {found.nearest} (of {found.compared} compared)")
        lines.append(f"  differs  {', '.join(found.differing) or 'nothing that is recorded'}")
        lines += [f"  {line}" for line in difference((yield from _shown(space, found.nearest)), call_of(request.shown))]
    lines.append(f"  {_REMEDY}")
    return CacheMissError("\n".join(lines), space.name, text, owner, found.differing, found.nearest)


def _shown(space: Space, text: str) -> Flow[Any]:
    stored = space.stored(text)
    try:
        raw = yield Call("get", (stored,))
        return None if raw is None else call_of(space.payloads.describe(stored, raw, b"")[0].shown)
    except EnvelopeError:  # replaced meanwhile by what cannot be read; the message is the poorer for it
        return None


def call_of(shown: bytes) -> Any:
    """The arguments in what is shown of a call; `None` if nothing is."""
    return json.loads(shown)["call"] if shown else None


def difference(old: Any, new: Any) -> list[str]:
    """Lines that name each place where the arguments differ, and show what was recorded (-) and what is asked for (+).

    >>> difference({"messages": [{"content": "sea"}]}, {"messages": [{"content": "moon"}]})
    ['messages[0].content', "  - 'sea'", "  + 'moon'"]
    """
    if old is None or new is None:
        return []
    lines: list[str] = []
    for number, (place, was, now) in enumerate(_places(old, new, "")):
        if number == _MOST_DIFFERENCES:
            lines.append("and more")
            break
        lines.append(place)
        lines += [f"  {line}" for line in _lines(was, now)]
    return lines


def _places(old: Any, new: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if type(old) is dict and type(new) is dict:
        for name in dict.fromkeys([*old, *new]):
            inner = f"{place}.{name}" if place else name
            yield from _places(old.get(name, MISSING), new.get(name, MISSING), inner)
    elif type(old) is list and type(new) is list:
        for index in range(max(len(old), len(new))):
            was, now = (side[index] if index < len(side) else MISSING for side in (old, new))
            yield from _places(was, now, f"{place}[{index}]")
    elif type(old) is not type(new) or old != new:
        yield place, old, new


def _lines(old: Any, new: Any) -> list[str]:
    if isinstance(old, str) and isinstance(new, str):
        if "\n" in old or "\n" in new:
            return _text_lines(old, new)
        begin = max(0, _common(old, new) - _WIDTH // 4)
        return [f"- {_cut(old, begin)}", f"+ {_cut(new, begin)}"]
    sides = [("-", old), ("+", new)]
    return [f"{sign} {_cut_end(json.dumps(side, ensure_ascii=False))}" for sign, side in sides if side is not MISSING]


def _text_lines(old: str, new: str) -> list[str]:
    from difflib import unified_diff

    found = list(unified_diff(old.splitlines(), new.splitlines(), n=1, lineterm=""))[2:]
    shown = [_cut_end(line) for line in found if not line.startswith("@@")]
    return shown if len(shown) <= _MOST_LINES else [*shown[:_MOST_LINES], f"and {len(shown) - _MOST_LINES} more lines"]


def _common(old: str, new: str) -> int:
    """Length of the common beginning."""
    pairs = zip(old, new, strict=False)
    return next((index for index, (was, now) in enumerate(pairs) if was != now), min(len(old), len(new)))


def _cut(text: str, begin: int) -> str:
    shown = repr(text[begin : begin + _WIDTH])
    return ("..." if begin else "") + shown + ("..." if begin + _WIDTH < len(text) else "")


def _cut_end(text: str) -> str:
    return text if len(text) <= _WIDTH else text[:_WIDTH] + "..."
