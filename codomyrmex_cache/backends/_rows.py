"""Single rows of the database, and what is believed of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from codomyrmex_cache._entry import Entry
from codomyrmex_cache.backends._database import Handle
from codomyrmex_cache.backends._large import Written
from codomyrmex_cache.backends._schema import PUT
from codomyrmex_cache.backends._upkeep import KEPT_SECONDS

__all__ = ["between", "generations_from", "generations_of", "put_row", "whole"]

_AT_ONCE = 500
"""Names asked for in one statement; older SQLites take 999."""

_LAST_TOKEN = 1 << 61


def put_row(handle: Handle, key: bytes, entry: Entry, file: Written | None) -> None:
    if file is None:
        handle.execute(PUT, (key, entry.expires_at, None, None, entry.value))
    else:
        handle.execute(PUT, (key, entry.expires_at, file.number, file.size, file.head))


def generations_of(handle: Handle, names: Sequence[bytes]) -> list[bytes | None]:
    found = _found(handle, names)
    return [found[name][0] if name in found else None for name in names]


def generations_from(handle: Handle, names: Sequence[bytes], now: float) -> tuple[bytes, ...]:
    """The same for a load that begins now: those missing are made, and all are in use."""
    found = _found(handle, names)
    for name in dict.fromkeys(names):
        value, used = found.get(name, (None, None))
        if type(value) is not bytes or type(used) is not float:
            value, used = os.urandom(8), -KEPT_SECONDS
        if now - used > KEPT_SECONDS / 24 or used > now:
            handle.execute("INSERT OR REPLACE INTO generations VALUES (?, ?, ?)", (name, value, now))
        found[name] = value, now
    return tuple(found[name][0] for name in names)


def _found(handle: Handle, names: Sequence[bytes]) -> dict[bytes, tuple[Any, Any]]:
    """Value and last use of the generations that there are; a statement for several costs little more than for one."""
    found = {}
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        statement = f"SELECT name, value, used FROM generations WHERE name IN ({','.join('?' * len(some))})"  # noqa: S608
        found.update({name: (value, used) for name, value, used in handle.execute(statement, some).fetchall()})
    return found


def whole(row: tuple[object] | None) -> int:
    """The number in the row; 0 if there is none, or none that was written by us."""
    number = None if row is None else row[0]
    return number if type(number) is int and 0 <= number < _LAST_TOKEN else 0


def between(prefix: bytes) -> tuple[bytes, bytes]:
    """Where the keys of a prefix begin and end; UTF-8 and digits never hold 0xff."""
    return prefix, prefix + b"\xff"
