"""Why a call would hit or miss: the parts of its key against the nearest stored entry of the same function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from codomyrmex_cache._effects import Call, Flow, Now, Parts
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._policy import Verdict, judge
from codomyrmex_cache._record import record
from codomyrmex_cache._space import Space
from codomyrmex_cache.errors import EnvelopeError
from codomyrmex_cache.keys import Key, Keyer
from codomyrmex_cache.stats import Counters

__all__ = ["Explanation", "explain"]

MAX_COMPARED = 1_000
"""Entries looked at in search of the nearest."""

_MOST_COMPARED = 4_096
"""Bytes of a call, likewise."""


@record(frozen=True, slots=True)
class Explanation:
    """What `explain` found; `str()` of it is the text for people.

    Args:
        outcome: what the call would be: "hit", "stale" (a hit with a refresh behind it), "expired", "miss", or "unkeyable"
            (it runs uncached).
        key: the key text; empty if there is none.
        reason: one sentence.
        differing: the parts of the key in which the nearest entry differs.
        same: the parts in which it agrees.
        nearest: its key text, `None` if the function has no entry.
        compared: how many entries were looked at.
    """

    outcome: Literal["hit", "stale", "expired", "miss", "unkeyable"]
    key: str
    reason: str
    differing: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    nearest: str | None = None
    compared: int = 0

    def __str__(self) -> str:
        lines = [f"{self.outcome}: {self.reason}"]
        if self.key:
            lines.append(f"  key      {self.key}")
        if self.nearest is not None:
            lines.append(f"  nearest  {self.nearest} (of {self.compared} compared)")
            lines.append(f"  differs  {', '.join(self.differing) or 'nothing'}")
            lines.append(f"  same     {', '.join(self.same) or 'nothing'}")
        return "\n".join(lines)


def explain(space: Space, keyer: Keyer, key: Key, parts: Parts, counters: Counters, shown: bytes = b"") -> Flow[Explanation]:
    """Look, without counting and without running anything; of several nearest ones, take the most alike in what is `shown`."""
    try:
        raw = yield Call("get", (space.stored(key.text),))
        now = yield Now()
        entry, matches = _described(space, key.text, raw, key.digest)
        if entry is not None and matches:
            return (yield from _judged(space, entry, key, now))
        found = yield Call("scan", (space.stored(keyer.prefix),))
        texts = [space.text(stored) for stored, _ in found]
        candidates = [text for text in texts if keyer.owns(text)][:MAX_COMPARED]
        entries = []
        for text in candidates:
            raw = yield Call("get", (space.stored(text),))
            entry, _ = _described(space, text, raw, key.digest)
            if entry is not None:
                entries.append((text, entry))
    except Exception as error:
        space.backend_failed("explain", error, counters)
        return Explanation("miss", key.text, f"the backend failed ({error})")
    return _nearest(key, dict(space.payloads.kept_parts(parts)), entries, shown)


def _judged(space: Space, entry: Entry, key: Key, now: float) -> Flow[Explanation]:
    names, expected = [name for name, _ in entry.generations], [value for _, value in entry.generations]
    current = list((yield Call("generations", (space.stored(key.text), names)))) if names else []
    stored = f"stored {now - entry.created:.1f} s ago"
    if current != expected:
        gone = [tag for tag, was, now_is in zip(entry.tags, expected, current, strict=True) if was != now_is]
        return Explanation("miss", key.text, f"{stored}, and its tags {', '.join(gone)} have been invalidated since")
    verdict = judge(entry, now)
    if verdict is Verdict.EXPIRED:
        return Explanation("expired", key.text, f"{stored} for {entry.ttl} s")
    return Explanation("hit" if verdict is Verdict.FRESH else "stale", key.text, stored)


def _described(space: Space, text: str, raw: Entry | None, digest: bytes) -> tuple[Entry | None, bool]:
    """The entry without its value, and whether it is the answer to this digest; `None` if it cannot be verified."""
    if raw is None:
        return None, False
    try:
        return space.payloads.describe(space.stored(text), raw, digest)
    except EnvelopeError:
        return None, False


def _nearest(key: Key, own: dict[str, bytes], entries: Sequence[tuple[str, Entry]], shown: bytes) -> Explanation:
    if not entries:
        return Explanation("miss", key.text, "nothing is stored for this function")
    least = min(len(_differing(own, entry)) for _, entry in entries)
    likely = [(text, entry) for text, entry in entries if len(_differing(own, entry)) == least]
    scored = [(-_likeness(shown, entry.shown), -entry.created, text, entry) for text, entry in likely]
    _, _, text, entry = min(scored, key=lambda row: row[:3])
    differing = _differing(own, entry)
    same = tuple(name for name in own if name not in differing)
    reason = f"differs from the nearest stored call in {', '.join(differing) or 'nothing that is recorded'}"
    return Explanation("miss", key.text, reason, differing, same, text, len(entries))


def _likeness(shown: bytes, other: bytes) -> float:
    """By the characters that both have: from 0 to 1."""
    if not shown or not other:
        return 0.0
    from difflib import SequenceMatcher

    one, two = (text[:_MOST_COMPARED].decode("utf-8", "replace") for text in (shown, other))
    return SequenceMatcher(None, one, two, autojunk=False).quick_ratio()


def _differing(own: dict[str, bytes], entry: Entry) -> tuple[str, ...]:
    stored: dict[str, Any] = dict(entry.parts)
    return tuple(name for name in dict.fromkeys([*own, *stored]) if own.get(name) != stored.get(name))
