"""What the server calls our keys.

    cmxc:{<length>:<namespace>:<part>}<kind><rest>

Kinds are `e` for entries, `l` for leases, `t` for the last token of a lease, `s` for the totals and `g` for generations,
followed by the generation's own kind.  Servers of a cluster place a key by what is between the braces, so that everything of
a namespace is on one server, where one script can see it.  A namespace that is too hot for one server can be spread over
`slots` parts; then its generations exist in each part in which they were asked for, and an invalidation drops them in all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from codomyrmex_cache.errors import CacheConfigurationError

__all__ = ["Layout", "Place", "by_tag", "pattern"]

_HEAD = b"cmxc:{"
_FREE = b"-"
"""The tag of keys that do not begin with a namespace; no namespace's begins so."""

_MOST_SLOTS = 1024
_NAMESPACE = re.compile(rb"(\d{1,9}):")


class Place(NamedTuple):
    """A key taken apart: what the server places it by, the beginning of its names there, and the rest of its own."""

    tag: bytes
    head: bytes
    rest: bytes

    def name(self, kind: bytes) -> bytes:
        """The server's name of what is kept of this kind about the key."""
        return self.head + kind + self.rest


class Layout:
    """Names on the server, and back again.

    Args:
        slots: parts that a namespace is spread over; all who share it must say the same.

    >>> Layout().entry(b"1:a:key"), Layout().key_of(b"cmxc:{1:a:}ekey")
    (b'cmxc:{1:a:}ekey', b'1:a:key')
    """

    def __init__(self, slots: int = 1) -> None:
        if type(slots) is not int or not 1 <= slots <= _MOST_SLOTS:
            raise CacheConfigurationError(f"slots={slots!r}: give a whole number from 1 to {_MOST_SLOTS}")
        self.slots = slots
        self._last = b""  # the namespace seen last; mostly there is only one

    def place(self, key: bytes) -> Place:
        """Where the key is."""
        prefix = self._prefix(key)
        rest = key[len(prefix) :]
        tag = prefix or _FREE
        if self.slots > 1 and prefix:
            tag = b"%b%d" % (prefix, crc32(rest) % self.slots)
        return Place(tag, b"%b%b}" % (_HEAD, tag), rest)

    def entry(self, key: bytes) -> bytes:
        """The server's name of an entry."""
        return self.place(key).name(b"e")

    def entries(self, keys: Iterable[bytes]) -> dict[bytes, dict[bytes, bytes]]:
        """For each tag, the server's names of the entries that are there, with their keys."""
        found: dict[bytes, dict[bytes, bytes]] = {}
        prefix, head = self._last, b"%b%b}e" % (_HEAD, self._last)
        ours = found.setdefault(prefix, {}) if prefix and self.slots == 1 else None
        for key in keys:
            if ours is not None and key.startswith(prefix):
                ours[head + key[len(prefix) :]] = key
            else:
                place = self.place(key)
                found.setdefault(place.tag, {})[place.name(b"e")] = key
        return {tag: names for tag, names in found.items() if names}

    def generation(self, name: bytes, place: Place) -> bytes:
        """The server's name of a generation, beside the key at `place`."""
        rest = name[1:]
        return b"%bg%b%b" % (place.head, name[:1], rest[len(self._prefix(rest)) :])

    def generations(self, name: bytes) -> list[tuple[bytes, bytes]]:
        """Where a generation may be: tags, and its name under each."""
        rest = name[1:]
        if name[:1] == b"k":
            place = self.place(rest)
            return [(place.tag, place.name(b"gk"))]
        prefix = self._prefix(rest)
        return [(tag, b"%b%b}g%b%b" % (_HEAD, tag, name[:1], rest[len(prefix) :])) for tag in self.tags(prefix)]

    def tags(self, prefix: bytes) -> list[bytes]:
        """All tags of the namespace with this prefix."""
        if self.slots == 1 or not prefix:
            return [prefix or _FREE]
        return [b"%b%d" % (prefix, number) for number in range(self.slots)]

    def beginnings(self, prefix: bytes) -> list[tuple[bytes, bytes]] | None:
        """Tags, and what the names of all entries with this prefix begin with; `None` if it holds no namespace."""
        namespace = self._prefix(prefix)
        if not namespace:
            return None
        return [(tag, b"%b%b}e%b" % (_HEAD, tag, prefix[len(namespace) :])) for tag in self.tags(namespace)]

    def totals(self, prefix: bytes) -> tuple[bytes, bytes]:
        """Tag and name of the totals of the namespace with this prefix."""
        tag = self.tags(self._prefix(prefix))[0]
        return tag, b"%b%b}s" % (_HEAD, tag)

    def key_of(self, name: bytes) -> bytes | None:
        """The key whose entry has this name on the server; `None` if none has."""
        if not name.startswith(_HEAD):
            return None
        tag_and_rest = name[len(_HEAD) :]
        if tag_and_rest.startswith(_FREE + b"}e"):
            return tag_and_rest[len(_FREE) + 2 :]
        prefix = _namespace_of(tag_and_rest)
        part, brace, rest = tag_and_rest[len(prefix) :].partition(b"}e")
        if not prefix or not brace or not (part.isdigit() or not part):
            return None
        return prefix + rest

    def _prefix(self, key: bytes) -> bytes:
        last = self._last  # another thread may replace it meanwhile
        if last and key.startswith(last):
            return last
        found = _namespace_of(key)
        if found:
            self._last = found
        return found


def _namespace_of(key: bytes) -> bytes:
    """The namespace that the key begins with, as `namespace_prefix` writes it; empty if it does not."""
    found = _NAMESPACE.match(key)
    if found is None:
        return b""
    end = found.end() + int(found[1])
    return key[: end + 1] if key[end : end + 1] == b":" else b""


def by_tag(places: Iterable[Place]) -> dict[bytes, Sequence[Place]]:
    """The places under each tag, in order."""
    found: dict[bytes, list[Place]] = {}
    for place in places:
        found.setdefault(place.tag, []).append(place)
    return dict(found)


def pattern(beginning: bytes) -> bytes:
    r"""A MATCH pattern for what begins with these very bytes.

    >>> pattern(b"cmxc:{1:a:}e[x]*")
    b'cmxc:{1:a:}e\\[x\\]\\**'
    """
    return re.sub(rb"([\\*?\[\]])", rb"\\\1", beginning) + b"*"
