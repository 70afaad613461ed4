"""The source of a function's wrapper, with its own parameters: it looks at the front first, and then calls what is cold."""

from __future__ import annotations

from typing import Any, Literal

from codomyrmex_cache._signature import RESERVED, Shape

__all__ = ["Kind", "Way", "wrapper_source"]

Kind = Literal["plain", "coroutine", "other"]
"""Of wrapper; "other" leaves all to what is cold."""

Way = Literal["arguments", "fingerprint", "attributes"]


_LOOKUPS: dict[Way, str] = {
    "arguments": "{prefix}cells[{kinds}][{values}]",
    "fingerprint": "{prefix}fingerprints[{prefix}hash({prefix}dumps({kept}, 2), {prefix}seed)]",
    "attributes": "{prefix}attributes[{prefix}type({first})]"
    "[{prefix}hash({prefix}dumps(({first}.__dict__, {others}), 2), {prefix}seed)]",
}

_ANSWER = """\
{indent}{prefix}cell = {lookup}
{indent}{prefix}value = {prefix}cell.value  # before the deadline: see Cell
{indent}if {prefix}now() < {prefix}cell.deadline:
{copying}\
{indent}    {prefix}cell.hits += 1
{indent}    return {prefix}value
"""
_COPYING = """\
{indent}    if not {prefix}cell.shared:
{indent}        {prefix}value = {prefix}isolated({prefix}value)
"""
_HOT = """\
    try:
{preferred}\
    except {prefix}misses:
        if {prefix}{place}:
            try:
{fallback}\
            except {prefix}misses:
                pass
"""

_COLD = {
    # the function is called from the wrapper, so that in a function that calls itself no frames of ours lie in between
    "plain": """\
    {prefix}run = {prefix}cold({bound})
    if {prefix}run.load is not None:
        try:
            {prefix}value = {prefix}target({arguments})
        except BaseException as {prefix}raised:
            {prefix}run.resume(None, {prefix}raised)
        else:
            return {prefix}run.ended({prefix}value)
    return {prefix}run.finish()
""",
    "coroutine": "    return await {prefix}cold({bound})\n",
    "other": "    return {prefix}cold({bound})\n",
}


def wrapper_source(shape: Shape, names: tuple[str, ...], kind: Kind, way: Way | None, *, copy: bool) -> str:
    """The wrapper as source: `_cached_function` with the function's own parameters, of which these `names` count."""
    kept = _tuple(names)
    single = len(names) == 1
    parts = {
        "prefix": RESERVED,
        "bound": shape.bound,
        "arguments": shape.arguments,
        "kept": kept,
        "first": "".join(names[:1]),
        "others": "".join(f"{name}, " for name in names[1:]),
        "kinds": f"{RESERVED}type({names[0]})" if single else _tuple(f"{RESERVED}type({name})" for name in names),
        "values": names[0] if single else kept,
    }
    head = f"{'async ' if kind == 'coroutine' else ''}def {RESERVED}function({shape.declaration}):\n"
    hot = "" if way is None or kind == "other" else _hot_source(way, parts, copy=copy)
    return head + hot + _COLD[kind].format(**parts)


def _hot_source(way: Way, parts: dict[str, str], *, copy: bool) -> str:
    def answer(way: Way, indent: str) -> str:
        copying = _COPYING.format(**parts, indent=indent) if copy else ""
        return _ANSWER.format(**parts, indent=indent, lookup=_LOOKUPS[way].format(**parts), copying=copying)

    second: Way = "fingerprint" if way == "arguments" else "arguments"
    place = "fingerprints" if way == "arguments" else "cells"
    return _HOT.format(**parts, preferred=answer(way, " " * 8), fallback=answer(second, " " * 16), place=place)


def _tuple(names: Any) -> str:
    return "(" + "".join(f"{name}, " for name in names) + ")"
