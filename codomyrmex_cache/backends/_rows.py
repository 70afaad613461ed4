"""Single rows of the database, and what is believed of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from codomyrmex_cache._entry import Entry
from codomyrmex_cache.backends._database import Handle
from codomyrmex_cache.backends._large import Written
from codomyrmex_cache.backends._schema import PUT
from codomyrmex_cache.backends._upkeep import KEPT_SECONDS

__all__ = ["between", "generation_of", "generations_of", "put_row", "whole"]

_LAST_TOKEN = 1 << 61


def put_row(handle: Handle, key: bytes, entry: Entry, file: Written | None) -> None:
    if file is None:
        handle.execute(PUT, (key, entry.expires_at, None, None, entry.value))
    else:
        handle.execute(PUT, (key, entry.expires_at, file.number, file.size, file.head))


def generations_of(handle: Handle, names: Sequence[bytes]) -> list[bytes | None]:
    rows = (handle.execute("SELECT value FROM generations WHERE name = ?", (name,)).fetchone() for name in names)
    return [None if row is None else row[0] for row in rows]


def generation_of(handle: Handle, name: bytes, now: float) -> bytes:
    row = handle.execute("SELECT value, used FROM generations WHERE name = ?", (name,)).fetchone()
    if row is None or type(row[0]) is not bytes or type(row[1]) is not float:
        row = (os.urandom(8), -KEPT_SECONDS)
    if now - row[1] > KEPT_SECONDS / 24 or row[1] > now:
        handle.execute("INSERT OR REPLACE INTO generations VALUES (?, ?, ?)", (name, row[0], now))
    return row[0]  # type: ignore[no-any-return]


def whole(row: tuple[object] | None) -> int:
    """The number in the row; 0 if there is none, or none that was written by us."""
    number = None if row is None else row[0]
    return number if type(number) is int and 0 <= number < _LAST_TOKEN else 0


def between(prefix: bytes) -> tuple[bytes, bytes]:
    """Where the keys of a prefix begin and end; UTF-8 and digits never hold 0xff."""
    return prefix, prefix + b"\xff"
