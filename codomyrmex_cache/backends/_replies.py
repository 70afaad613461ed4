"""Replies of the server, taken for nothing but what was asked for: a damaged or displaced one is an error, never an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import exceptions

__all__ = ["invalid", "number", "raise_error_in", "scanned", "values"]


def number(reply: Any) -> int:
    """A number."""
    if type(reply) is int:
        return reply
    if type(reply) is bytes and reply.isdigit():
        return int(reply)
    raise invalid(reply)


def values(replies: Any) -> list[bytes | None]:
    """A list of values, `None` for what is not there."""
    if type(replies) is not list or not all(each is None or type(each) is bytes for each in replies):
        raise invalid(replies)
    return replies


def scanned(reply: Any) -> tuple[bytes, list[Any]]:
    """What a SCAN gives: a cursor and names."""
    if type(reply) is not list or len(reply) != 2:
        raise invalid(reply)
    return b"%d" % number(reply[0]), values(reply[1])


def invalid(reply: Any) -> Exception:
    """The error to raise about a reply that makes no sense."""
    return exceptions.InvalidResponse(f"not a reply to what was asked: {str(reply)[:100]}")


def raise_error_in(replies: Sequence[Any]) -> None:
    """Raise the first error that the server told."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
