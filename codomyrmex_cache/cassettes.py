"""Cassettes: the entries of a namespace as a file of text that is kept beside the tests, and read in reviews.

A cassette is JSON Lines (RFC 8259, one object per line), sorted by function and arguments.  A line has the `key`, the `call` in
a readable form (of what was stored in a mode that records), the value, and what tells calls apart (`digest`, `parts`).  The
value is `json` where JSON says all about it, else `text`, `bytes` in base64, or `tagged` data (see `_tagged`) with `frames` of
memory.  There are no moments in it, so that a file changes only where an entry does.

What is written has no secrets: names such as `api_key` and texts that look like keys are cut from the arguments, and an entry
whose result has such a text is left out.  What is read can make plain data and values of the classes that the program names,
and nothing else: pickled entries are not written, there is no way to read one, and each entry is sealed anew with the secret of
the namespace that it goes to.  A cassette is believed as far as its answers go, so take none from those who may not give them.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from codomyrmex_cache._drive import run
from codomyrmex_cache._effects import Call, Flow, Now
from codomyrmex_cache._entry import Entry
from codomyrmex_cache._policy import Verdict, judge, new_entry
from codomyrmex_cache._record import record, replace
from codomyrmex_cache._shown import holds_secret, redacted
from codomyrmex_cache._space import Space
from codomyrmex_cache.cache import Cache
from codomyrmex_cache.errors import CacheCodecError, CacheError, EnvelopeError
from codomyrmex_cache.keys import owner_of

__all__ = ["Transfer", "export_cassette", "import_cassette"]

_FLAGS = ("awaited", "raised", "streamed")
_DIGEST, _PART = 32, 8
_SAFE, _JSON, _FORMATS, _FORMAT_BITS = 1, 3, 63, 6


@record(frozen=True, slots=True)
class Transfer:
    """What an export or an import came to.

    Args:
        entries: how many were carried over.
        skipped: how many were not, by the reason: "expired"; "pickled" (or in a codec of your own); "unrecorded" (a function's
            result in a store that keeps secret what tells calls apart, stored in a mode that does not record); "secret" (the
            result has what looks like a key); "unreadable".
    """

    entries: int
    skipped: Mapping[str, int]


class _Skipped(Exception):  # noqa: N818  a signal, never seen outside
    def __init__(self, reason: str) -> None:
        self.reason = reason


def export_cassette(cache: Cache, path: str | os.PathLike[str]) -> Transfer:
    """Write the entries of a namespace to a file, in place of what it has.

    Args:
        cache: the namespace.
        path: of the file; its folder is made.  It is replaced at once, so that a reader never sees half of it.

    >>> import tempfile
    >>> from codomyrmex_cache import CacheManager
    >>> folder = tempfile.TemporaryDirectory()
    >>> cache = CacheManager().get_cache("docs")
    >>> cache.set("k", {"answer": 42})
    >>> export_cassette(cache, f"{folder.name}/docs.jsonl").entries
    1
    >>> print(Path(folder.name, "docs.jsonl").read_text(), end="")
    {"key": "k", "json": {"answer": 42}}
    >>> other = CacheManager().get_cache("docs")
    >>> import_cassette(other, f"{folder.name}/docs.jsonl").entries, other.get("k")
    (1, {'answer': 42})
    >>> folder.cleanup()
    """
    lines, skipped = lines_of(cache)
    write_lines(Path(path), lines)
    return Transfer(len(lines), skipped)


def import_cassette(cache: Cache, path: str | os.PathLike[str]) -> Transfer:
    """Store the entries of a file in a namespace, sealed with its secret; each begins its life anew.

    Args:
        cache: the namespace.
        path: of the file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return store_lines(cache.space, file, _coders(cache))


# -- out


def lines_of(cache: Cache) -> tuple[list[str], dict[str, int]]:
    """The lines of a cassette, sorted, and how many entries are left out for which reason."""
    space, coder_of, skipped = cache.space, _coders(cache), Counter[str]()
    lines: list[tuple[tuple[str, str, str], str]] = []
    for stored, entry, codec, frames in run(space, _live(space, coder_of, skipped)):
        try:
            line = _line(space.text(stored), entry, codec, frames)
        except _Skipped as reason:
            skipped[reason.reason] += 1
        else:
            lines.append((_order(line), line))
    return [line for _, line in sorted(lines)], dict(skipped)


_Raw = tuple[bytes, Entry, int, list[Any]]


def _live(space: Space, coder_of: Callable[[bytes], Any], skipped: Counter[str]) -> Flow[list[_Raw]]:
    """The entries with the frames of their values, nothing of it decoded."""
    found: list[_Raw] = []
    keys = yield Call("scan", (space.stored(""),))
    now = yield Now()
    for stored, _ in keys:
        raw = yield Call("get", (stored,))
        if raw is None:
            continue
        try:
            entry, codec, frames = _opened(space, stored, raw, coder_of)
        except (EnvelopeError, CacheCodecError) as error:
            skipped["unreadable" if isinstance(error, EnvelopeError) else "pickled"] += 1
            continue
        names = [name for name, _ in entry.generations]
        current = (yield Call("generations", (stored, names))) if names else ()
        alive = tuple(current) == tuple(value for _, value in entry.generations)
        if alive and judge(entry, now) is not Verdict.EXPIRED:
            found.append((stored, entry, codec, frames))
        else:
            skipped["expired"] += 1
    return found


def _opened(space: Space, stored: bytes, raw: Entry, coder_of: Callable[[bytes], Any]) -> tuple[Entry, int, list[Any]]:
    seal = getattr(space.payloads, "seal", None)
    if seal is None:
        codec, frames = coder_of(stored).dumps(raw.value)
        return raw, codec, frames
    envelope = seal.open(stored, raw.value, b"")
    codec, frames = envelope.codec, envelope.frames
    if codec & _FORMATS not in (_SAFE, _JSON):
        raise CacheCodecError("not plain data")
    if codec > _FORMATS:
        from codomyrmex_cache._compression import decompressed

        frames = decompressed(codec >> _FORMAT_BITS, frames)
    # what a sealed entry has of its call is keyed; the plain forms are in what is shown
    shown: dict[str, Any] = json.loads(envelope.entry.shown) if envelope.entry.shown else {"digest": "", "parts": {}}
    entry = replace(envelope.entry, digest=bytes.fromhex(shown["digest"]), parts=_parts(shown["parts"]))
    return entry, codec & _FORMATS, frames


def _line(text: str, entry: Entry, codec: int, frames: list[Any]) -> str:
    if owner_of(text) and not entry.digest:
        raise _Skipped("unrecorded")
    content: dict[str, Any] = {"key": text}
    if entry.shown:
        content["call"] = redacted("", json.loads(entry.shown)["call"])
    value = _value(codec, frames)
    if holds_secret(json.dumps(value, ensure_ascii=False)):
        raise _Skipped("secret")
    content |= value
    content |= {flag: True for flag in _FLAGS if getattr(entry, flag)}
    if entry.tags:
        content["tags"] = list(entry.tags)
    if entry.ttl is not None:
        content["ttl"] = entry.ttl
    if seconds := round(entry.cost, 3):
        content["seconds"] = seconds
    if entry.digest:
        content |= {"digest": entry.digest.hex(), "parts": {name: digest.hex() for name, digest in entry.parts}}
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # lone surrogates
        line = json.dumps(content)
    return line.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _value(codec: int, frames: list[Any]) -> dict[str, Any]:
    main = bytes(frames[0])
    form, rest = (b"j", main) if codec == _JSON else (main[:1], main[1:])
    if form == b"s":
        return {"text": rest.decode("utf-8", "surrogatepass")}
    if form == b"b":
        return {"bytes": b64encode(rest if len(frames) == 1 else bytes(frames[1])).decode()}
    content = json.loads(rest.decode("utf-8", "surrogatepass"))
    if form == b"j":
        return {"json": content}
    more = {"frames": [b64encode(bytes(frame)).decode() for frame in frames[1:]]} if frames[1:] else {}
    return {"tagged": content, **more}


def _order(line: str) -> tuple[str, str, str]:
    content = json.loads(line)
    return owner_of(content["key"]), json.dumps(content.get("call"), sort_keys=True), content["key"]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace the file by these lines; where nothing but the seconds of a load differ, the line that is there stays."""
    kept = {_timeless(line): line for line in _old_lines(path)}
    text = "".join(f"{kept.get(_timeless(line), line)}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", encoding="utf-8", newline="\n", dir=path.parent, prefix=".cassette", delete=False) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)  # it is to be committed, and has no secrets
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def merged(path: Path, lines: Iterable[str]) -> list[str]:
    """The lines of the file, each replaced by that of the same key among these, and the others of these; sorted."""
    found: dict[str, tuple[tuple[str, str, str], str]] = {}
    for line in (*_old_lines(path), *lines):
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # a damaged line is left behind
            order = _order(line)
            found[order[2]] = order, line
    return [line for _, line in sorted(found.values())]


def _old_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def _timeless(line: str) -> str:
    try:
        content = json.loads(line)
        content.pop("seconds", None)
        return json.dumps(content)
    except (ValueError, AttributeError):
        return line


# -- in


def store_lines(space: Space, lines: Iterable[str], coder_of: Callable[[bytes], Any]) -> Transfer:
    """Store what the lines say; what cannot be read is left out and counted."""
    entries, skipped = 0, Counter[str]()
    for line in lines:
        if not line.strip():
            continue
        try:
            done = run(space, _stored(space, json.loads(line), coder_of))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, CacheError):
            done = False
        entries += done
        skipped["unreadable"] += not done
    return Transfer(entries, {reason: count for reason, count in skipped.items() if count})


def _stored(space: Space, content: dict[str, Any], coder_of: Callable[[bytes], Any]) -> Flow[bool]:
    text = content["key"]
    if not isinstance(text, str):
        raise TypeError("a key is a str")
    stored = space.stored(text)
    frames = _frames(content)
    entry = _entry(content, (yield Now()))
    names = tuple(map(space.tag, content.get("tags", ())))
    space.flights.fence_key(stored)
    if not names:
        yield Call("set", (stored, _packed(space, stored, entry, frames, coder_of)))
        return True
    begun = yield Call("begin", (stored, names, 0.0))
    entry = replace(entry, generations=tuple(zip(names, begun.generations[1:], strict=True)))
    return bool((yield Call("commit", (stored, _packed(space, stored, entry, frames, coder_of), names, begun))))


def _packed(space: Space, stored: bytes, entry: Entry, frames: list[Any], coder_of: Callable[[bytes], Any]) -> Entry:
    coder = space.payloads.coder_of(stored) if hasattr(space.payloads, "coder_of") else None
    if coder is not None and coder.reads_safe:  # nothing is made of it now, so its classes need not be known yet
        packed: Entry = space.payloads.sealed(stored, entry, _SAFE, frames)  # type: ignore[attr-defined]
        return packed
    return space.payloads.pack(stored, replace(entry, value=coder_of(stored).loads(_SAFE, frames)), copy=True)


def _entry(content: Mapping[str, Any], now: float) -> Entry:
    ttl, digest, parts = content.get("ttl"), content.get("digest", ""), _parts(content.get("parts", {}))
    raw = bytes.fromhex(digest)
    if len(raw) not in (0, _DIGEST) or any(len(short) != _PART for _, short in parts):
        raise ValueError("no digest")
    shown = b""
    if "call" in content:
        kept = {"call": content["call"], "digest": digest, "parts": content.get("parts", {})}
        shown = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    flags = {flag: content.get(flag) is True for flag in _FLAGS}
    if flags["streamed"] and not _is_stream(content):
        raise ValueError("no stream")
    cost, life = float(content.get("seconds", 0.0)), None if ttl is None else float(ttl)
    if not 0 <= cost < inf or not (life is None or 0 < life < inf):
        raise ValueError("no time")
    return new_entry(None, life, now, cost=cost, digest=raw, parts=parts, shown=shown, **flags)


def _is_stream(content: Mapping[str, Any]) -> bool:
    """Whether it has the form in which streams are stored: a tuple of a bool, a list and what was returned."""
    packed = content["tagged"][1]
    return len(packed) == 4 and packed[0] == "t" and type(packed[1]) is bool and packed[2][:1] == ["l"]


def _parts(parts: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, bytes.fromhex(digest)) for name, digest in parts.items())


def _frames(content: Mapping[str, Any]) -> list[Any]:
    """Those of the safe format, of the one form that the line has."""
    (form,) = {"json", "text", "bytes", "tagged"} & content.keys()
    value = content[form]
    if form == "text":
        return [b"s" + value.encode("utf-8", "surrogatepass")]
    if form == "bytes":
        return [b"b" + b64decode(value, validate=True)]
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    more = [b64decode(frame, validate=True) for frame in content.get("frames", ())]
    return [("j" if form == "json" else "t").encode() + text.encode("utf-8", "surrogatepass"), *more]


# -- both


def _coders(cache: Cache) -> Callable[[bytes], Any]:
    """The safe codec for what is stored under a key: plain data and the classes that the namespace and the function name."""
    from codomyrmex_cache._wiring import safe_coders

    cache.space  # noqa: B018  what it is wired with is known from here on
    return safe_coders(cache.name, cache._options, cache._results)


def lines_in(path: Path) -> Iterator[str]:
    """The lines of a cassette; none if there is no file."""
    yield from _old_lines(path)
