"""The codec and the envelope: exact round trips, and nothing unverified is parsed."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex_cache import CacheManager, Entry
from codomyrmex_cache.codecs import PICKLE, SAFE, Coder, safe_dumps, safe_loads
from codomyrmex_cache.envelope import Seal
from codomyrmex_cache.errors import CacheCodecError, EnvelopeError
from tests.conftest import Server
from tests.test_keys import _same, plain

SECRET = b"0123456789abcdef"


@given(plain)
def test_the_safe_codec_keeps_values_and_types(value: Any) -> None:
    assert _same(safe_loads(safe_dumps(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"x"), {1, 2}, {"$": 1, "t": ["t", 1]}, ["d", 1], ["r", 0], 2**20_000, -(2**5000), -0.0, math.inf,
        "\ud83d\udc00"[:1] + "\udc00", dt.datetime(2026, 1, 1, fold=1, tzinfo=dt.UTC),
        dt.time(1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        dt.timedelta(-1, 5, 7), Decimal("sNaN12"), {(1, 2): [{}], None: True, 1.5: 0},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_safe_codec_keeps_the_odd_ones(value: Any) -> None:
    found = safe_loads(safe_dumps(value))
    assert type(found) is type(value)
    assert found == value if isinstance(value, int) else repr(found) == repr(value)


def test_the_safe_codec_keeps_aliases_and_cycles() -> None:
    shared: list[Any] = [1]
    one, other = safe_loads(safe_dumps([shared, {"x": shared}, (shared,)]))[:2]
    assert one is other["x"]
    shared.append(shared)
    cyclic = safe_loads(safe_dumps(shared))
    assert cyclic[1] is cyclic
    doubling: Any = ()
    for _ in range(100):
        doubling = (doubling, doubling)
    assert len(safe_dumps(doubling)) < 3000


class Mine(list[int]):
    pass


@pytest.mark.parametrize(
    "value", [Mine(), object(), Path("a"), dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "X")), True.__class__]
)
def test_the_safe_codec_refuses_what_it_would_change(value: Any) -> None:
    with pytest.raises(CacheCodecError):
        safe_dumps(value)
    with pytest.raises(CacheCodecError, match="without a secret"):
        Coder(signed=False).dumps(value)


def test_pickle_takes_the_rest_and_only_where_allowed() -> None:
    codec, frames = Coder(signed=True).dumps(Mine([1]))
    assert (codec, type(Coder(signed=True).loads(codec, frames))) == (PICKLE, Mine)
    with pytest.raises(CacheCodecError):
        Coder(signed=False).loads(codec, frames)
    local = Coder(signed=True).dumps(lambda: 3)
    assert Coder(signed=True).loads(*local)() == 3


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda data: json.dumps(data).encode()))
def test_no_bytes_make_the_safe_codec_raise_anything_else(payload: bytes) -> None:
    with contextlib.suppress(CacheCodecError):
        safe_loads(payload)


def test_deep_bytes_are_refused() -> None:
    for payload in (b"[" * 100_000, b'["l",' * 5000 + b"1" + b"]" * 5000):
        with pytest.raises(CacheCodecError):
            safe_loads(payload)


def _sealed(seal: Seal) -> Any:
    return seal.seal(b"k", Entry(None, created=1.0, fresh_until=2.0, expires_at=3.0, cost=4.0, digest=b"d"), SAFE, [b"payload"])


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_an_envelope_keeps_what_was_sealed(secrets: tuple[bytes, ...]) -> None:
    seal = Seal(secrets)
    entry, codec, frames = seal.open(b"k", _sealed(seal), b"d")
    assert (entry.created, entry.fresh_until, entry.expires_at, entry.cost, codec, frames) == (
        1.0,
        2.0,
        3.0,
        4.0,
        SAFE,
        [b"payload"],
    )


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_every_flipped_bit_and_every_cut_is_noticed(secrets: tuple[bytes, ...]) -> None:
    seal = Seal(secrets)
    sealed = _sealed(seal)
    for position in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(EnvelopeError):
            seal.open(b"k", bytes(damaged), b"d")
    for length in range(len(sealed)):
        with pytest.raises(EnvelopeError):
            seal.open(b"k", sealed[:length], b"d")
    with pytest.raises(EnvelopeError):
        seal.open(b"k", sealed + b"x", b"d")


def test_an_entry_is_bound_to_its_key_its_call_and_its_secret() -> None:
    seal = Seal([SECRET])
    sealed = _sealed(seal)
    for other, key, digest in (
        (seal, b"l", b"d"),
        (seal, b"k", b"e"),
        (Seal([b"another secret.."]), b"k", b"d"),
        (Seal(), b"k", b"d"),
    ):
        with pytest.raises(EnvelopeError):
            other.open(key, sealed, digest)
    with pytest.raises(EnvelopeError):
        seal.open(b"k", _sealed(Seal()), b"d")  # unsigned, to a reader with a secret


def test_secrets_rotate() -> None:
    old, new = SECRET, b"another secret.."
    assert Seal([new, old]).open(b"k", _sealed(Seal([old])), b"d").frames == [b"payload"]
    with pytest.raises(EnvelopeError):
        Seal([old]).open(b"k", _sealed(Seal([new, old])), b"d")


class Planted:
    def __reduce__(self) -> Any:
        return (open, ("/nonexistent/planted", "w"))


@pytest.mark.parametrize("secret", [None, SECRET])
def test_planted_bytes_in_redis_are_a_miss_and_heal(
    valkey: Server, secret: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    import pickle

    import redis

    manager = CacheManager(url=valkey.url, secret=secret)
    cache = manager.get_cache("planted", backend="redis")
    cache.set("k", 1)
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        (name,) = client.keys()  # type: ignore[misc]
        unsigned = Seal().seal(b"7:planted:k", Entry(None), PICKLE, [pickle.dumps(Planted())])
        for planted in (b"", b"garbage", pickle.dumps(Planted()), unsigned):
            client.set(name, planted)
            assert cache.get("k", "miss") == "miss"
            assert cache.get_or_load("k", lambda: 2) == 2
            assert cache.get("k") == 2
        client.delete(name)
        client.lpush(name, "of another type")
    assert cache.get("k", "miss") == "miss"
    manager.close()


def test_redis_without_a_secret_stores_plain_data_only(valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    cache = CacheManager(url=valkey.url).get_cache("plain", backend="redis")
    assert cache.get_or_load("k", lambda: Mine([1])) == Mine([1])
    assert cache.has("k") is False
    assert cache.stats().errors == {"unstorable": 1}
    assert "without a secret" in caplog.text
    cache.close()
    signed = CacheManager(url=valkey.url, secret=SECRET).get_cache("plain", backend="redis")
    signed.set("k", Mine([1]))
    assert type(signed.get("k")) is Mine
    signed.close()
