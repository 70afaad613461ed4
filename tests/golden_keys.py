"""Calls whose persistent keys are pinned in `golden_keys.json`.

A key that changes makes every stored entry of its kind unreachable, so it changes on purpose, with a line in CHANGELOG.md:

    python -m tests.golden_keys > tests/golden_keys.json
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import json
import pathlib
import re
import uuid
import zoneinfo
from dataclasses import dataclass
from typing import Any, NamedTuple

from codomyrmex_cache import CacheManager, cached


class Color(enum.Enum):
    RED = 1


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int


@dataclass(frozen=True)
class Config:
    name: str
    limits: tuple[int, ...] = (1, 2)


class Service:
    def __init__(self, url: str) -> None:
        self.url = url


class Keyed:
    def __cache_key__(self) -> str:
        return "keyed"


def nothing() -> None: ...
def one(value: Any) -> None: ...
def several(a: Any, b: Any = 2, *rest: Any, c: Any = None, **more: Any) -> None: ...
def llm(messages: Any, *, model: str, temperature: float = 1.0, tools: Any = ()) -> None: ...


VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "minus one": -1,
    "big": 2**100,
    "float": 2.5,
    "minus zero": -0.0,
    "infinity": float("inf"),
    "nan": float("nan"),
    "complex": 1 - 2j,
    "empty text": "",
    "text": "text",
    "umlaut": "\xfc",
    "emoji": "\U0001f511",
    "surrogate": "\ud800",
    "long text": "x" * 5000,
    "bytes": b"bytes",
    "bytearray": bytearray(b"bytes"),
    "list": [1, [2]],
    "tuple": (1, (2,)),
    "dict": {"b": 1, "a": {"d": 2, "c": 3}},
    "mixed dict": {1: "a", "1": "b", None: "c"},
    "set": {"x", "y", "z"},
    "frozenset": frozenset({1, 2}),
    "date": dt.date(2026, 1, 2),
    "datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 6),
    "aware": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "zone": dt.datetime(2026, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "fold": dt.datetime(2026, 1, 2, fold=1),
    "time": dt.time(1, 2),
    "timedelta": dt.timedelta(1, 2, 3),
    "decimal": decimal.Decimal("1.50"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=7),
    "range": range(1, 9, 2),
    "slice": slice(1, 2),
    "ellipsis": ...,
    "path": pathlib.PurePosixPath("a/b"),
    "pattern": re.compile("a+", re.IGNORECASE),
    "address": ipaddress.ip_address("10.0.0.1"),
    "network": ipaddress.ip_network("10.0.0.0/8"),
    "enum": Color.RED,
    "flag": Level.LOW | Level.HIGH,
    "named tuple": Point(1, 2),
    "dataclass": Config("n"),
    "object": Service("u"),
    "class": Config,
    "generic": list[int],
    "module": json,
    "cache key": Keyed(),
    "builtin": len,
}


def keys() -> dict[str, str]:
    """Name of the call to its key."""

    def of(function: Any, *args: Any, **kwargs: Any) -> str:
        decorated = cached("golden", name=function.__name__, version=1, manager=CacheManager())(function)
        return str(decorated.key(*args, **kwargs))

    found = {f"one({name})": of(one, value) for name, value in VALUES.items()}
    found["nothing()"] = of(nothing)
    found["several(1)"] = of(several, 1)
    found["several(1, 2, 3, c=4, d=5)"] = of(several, 1, 2, 3, c=4, d=5)
    found["llm"] = of(llm, [{"role": "user", "content": "hello"}], model="m", tools=[{"type": "function"}])
    return found


if __name__ == "__main__":
    print(json.dumps(keys(), indent=1))
