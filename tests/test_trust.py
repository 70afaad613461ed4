"""What stored bytes may become: codecs, classes, secrets and encryption, through the public API."""

from __future__ import annotations

import json
import logging
import pickle
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, Entry, FileBasedBackend, cached
from codomyrmex_cache.codecs import Codec
from codomyrmex_cache.envelope import Seal
from codomyrmex_cache.errors import CacheCodecError, CacheConfigurationError, EnvelopeError, ValueTooLargeError, cause_of
from tests.conftest import Server, run_python

SECRET = b"a secret for the tests"


class Color(Enum):
    RED = 1


@dataclass
class Line:
    text: str
    color: Color = Color.RED


@dataclass
class Report:
    lines: list[Line] = field(default_factory=list)


@dataclass
class Stranger:
    name: str = "?"


_managers: list[CacheManager] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _managers:
        _managers.pop().close()


def _cache(folder: Path, **options: Any) -> Cache:
    _managers.append(CacheManager(directory=folder, secret=SECRET))
    return _managers[-1].get_cache("x", backend="file_based", **options)


def _stored(folder: Path) -> list[bytes]:
    (database,) = folder.glob("*/entries.sqlite3")
    connection = sqlite3.connect(database)
    try:
        return [value for (value,) in connection.execute("SELECT value FROM entries")]
    finally:
        connection.close()


# -- codecs


def test_classes_in_the_return_annotation_are_stored_without_pickle(tmp_path: Path) -> None:
    runs: list[int] = []
    manager = CacheManager(directory=tmp_path, secret=SECRET)

    @cached("x", backend="file_based", codec="safe", manager=manager)
    def analyse(number: int) -> dict[str, Report]:
        runs.append(number)
        return {"r": Report([Line("a"), Line("b")])}

    first, second = analyse(1), analyse(1)
    assert first == second == {"r": Report([Line("a"), Line("b")])}
    assert second["r"].lines[0].color is Color.RED
    assert runs == [1]
    assert analyse.cache.stats().errors == {}
    manager.close()


def test_a_class_that_is_not_named_is_not_stored_without_pickle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = CacheManager(directory=tmp_path, secret=SECRET)

    @cached("x", backend="file_based", codec="safe", manager=manager)
    def unnamed() -> object:
        return Stranger()

    @cached("x", backend="file_based", codec="safe", manager=manager, types=[Stranger])
    def named() -> object:
        return Stranger("known")

    assert unnamed() == unnamed() == Stranger()
    assert unnamed.stats().errors == {"unstorable": 2}
    assert [named(), named()] == [Stranger("known")] * 2
    assert (named.stats().hits, named.stats().errors) == (1, {})
    assert len([record for record in caplog.records if "Stranger" in record.message]) == 1
    manager.close()


def test_redis_without_a_secret_takes_named_classes(valkey: Server) -> None:
    manager = CacheManager(url=valkey.url)

    @cached("x", backend="redis", manager=manager)
    def analyse() -> Report:
        return Report([Line("a")])

    assert [analyse(), analyse()] == [Report([Line("a")])] * 2
    assert analyse.stats().hits == 1
    manager.close()


def test_an_entry_of_a_class_that_is_not_named_here_is_left_alone(tmp_path: Path) -> None:
    _cache(tmp_path, types=[Stranger], codec="safe").set("k", Stranger("x"))
    other = _cache(tmp_path, codec="safe")
    assert other.get("k", "miss") == "miss"
    assert other.stats().errors == {"unnamed": 1}
    assert _cache(tmp_path, types=[Stranger], codec="safe").get("k") == Stranger("x")


def test_json_can_be_read_by_others(tmp_path: Path) -> None:
    cache = _cache(tmp_path, codec="json")
    cache.set("k", {"a": [1, 2.5, None, "ü"]})
    (stored,) = _stored(tmp_path)
    assert json.loads(stored[-24:][stored[-24:].index(b"{") :]) == {"a": [1, 2.5, None, "ü"]}
    cache.set("t", (1, 2))
    assert cache.has("t") is False
    assert cache.stats().errors == {"unstorable": 1}


def test_pickle_needs_a_secret(valkey: Server) -> None:
    with pytest.raises(CacheConfigurationError, match="secret"):
        CacheManager(url=valkey.url).get_cache("x", backend="redis", codec="pickle").get("k")


def test_a_codec_of_ones_own_is_two_functions(tmp_path: Path) -> None:
    codec = Codec(
        "deflated json", lambda value: zlib.compress(json.dumps(value).encode()), lambda data: json.loads(zlib.decompress(data))
    )
    cache = _cache(tmp_path, codec=codec)
    cache.set("k", {"a": 1})
    assert cache.get("k") == {"a": 1}
    cache.set("k", {1})
    assert cache.has("k") is False
    assert _cache(tmp_path).get("k", "miss") == "miss"
    cache.set("k", 1)
    assert _cache(tmp_path, codec=Codec("another", codec.dumps, codec.loads)).get("k", "miss") == "miss"


@pytest.mark.parametrize("written", ["auto", "safe", "json", "pickle"])
@pytest.mark.parametrize("read", ["auto", "safe", "json", "pickle"])
def test_what_a_reader_does_not_take_is_a_miss(tmp_path: Path, written: Any, read: Any) -> None:
    _cache(tmp_path, codec=written).set("k", [1, "a"])
    found = _cache(tmp_path, codec=read).get("k", "miss")
    assert found == (
        [1, "a"] if read == written or {written, read} <= {"auto", "safe"} or (written, read) == ("pickle", "auto") else "miss"
    )


def test_large_values_are_compressed_if_asked_for(tmp_path: Path) -> None:
    text = "a line of text that repeats itself\n" * 20_000
    plain, packed = _cache(tmp_path / "plain"), _cache(tmp_path / "packed", compress=True)
    for cache in (plain, packed):
        cache.set("k", text)
        assert cache.get("k") == text
        cache.set("small", "aaaa" * 10)
    assert sum(path.stat().st_size for path in (tmp_path / "plain").glob("*/large/*")) > len(text)
    assert list((tmp_path / "packed").glob("*/large/*")) == []
    assert max(map(len, _stored(tmp_path / "packed"))) < len(text) / 20
    assert plain.get("k") == packed.get("k")


def test_a_value_beyond_its_bound_reaches_the_caller_and_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = _cache(tmp_path, max_value_bytes=1000)
    for _ in range(2):
        assert cache.get_or_load("k", lambda: "x" * 2000) == "x" * 2000
    assert cache.stats().errors == {"too_large": 2}
    assert len([record for record in caplog.records if "max_value_bytes=1000" in record.message]) == 1
    with pytest.raises(ValueTooLargeError):
        cache.add("k", "x" * 2000)


# -- what cannot be read


def _damage(folder: Path) -> None:
    (database,) = folder.glob("*/entries.sqlite3")
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("UPDATE entries SET value = CAST(substr(value, 1, length(value) - 1) || x'00' AS BLOB)")
    connection.close()


def test_what_cannot_be_read_is_removed_counted_and_logged_at_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = _cache(tmp_path)
    cache.set_many({"a": "text", "b": "text"})
    _damage(tmp_path)
    assert [cache.get("a", "miss"), cache.get("b", "miss"), cache.get("a", "miss")] == ["miss"] * 3
    assert cache.stats().errors == {"tampered": 2}
    assert cache.size() == 0
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_what_cannot_be_read_and_was_replaced_meanwhile_stays(tmp_path: Path) -> None:
    backend = FileBasedBackend(tmp_path)
    backend.set(b"k", Entry(b"damaged"))
    found = backend.get(b"k")
    assert found is not None
    backend.set(b"k", Entry(b"new"))
    assert backend.discard(b"k", found) is False
    assert backend.quick_get(b"k") == b"new"
    backend.close()


def test_strict_raises_what_is_wrong(tmp_path: Path) -> None:
    manager = CacheManager(directory=tmp_path, secret=SECRET)
    runs: list[int] = []

    @cached("x", backend="file_based", strict=True, manager=manager)
    def function(x: int) -> str:
        runs.append(x)
        return "text"

    function(1)
    _damage(tmp_path)
    with pytest.raises(EnvelopeError, match="signature"):
        function(1)
    assert function(1) == "text"  # what was wrong has been removed
    assert runs == [1, 1]
    cache = _cache(tmp_path / "direct", strict=True)
    cache.set("k", "text")
    _damage(tmp_path / "direct")
    with pytest.raises(EnvelopeError):
        cache.get("k")
    assert cache.get("k", "miss") == "miss"
    manager.close()


@dataclass
class Changed:
    one: int


@pytest.mark.parametrize("codec", ["auto", "safe", "pickle"])
def test_a_class_that_has_changed_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    cache = _cache(tmp_path, types=[Changed], codec=codec)
    cache.set("k", [Changed(1)])
    assert cache.get("k") == [Changed(1)]

    @dataclass
    class Later:
        one: int
        two: int

    Later.__qualname__ = "Changed"
    monkeypatch.setitem(globals(), "Changed", Later)
    later = _cache(tmp_path, types=[Later], codec=codec)
    assert later.get("k", "miss") == "miss"
    assert later.stats().errors == {"undecodable": 1}
    assert later.size() == 0


def test_a_vanished_class_is_a_miss_in_the_next_process(tmp_path: Path) -> None:
    program = f"""
from codomyrmex_cache import CacheManager
import sys
if sys.argv[0] == "-c" and "{{phase}}" == "write":
    class Gone: pass
    value = Gone()
else:
    value = "recomputed"
Gone = globals().get("Gone")
cache = CacheManager(directory={str(tmp_path)!r}, secret={SECRET!r}).get_cache("x", backend="file_based", codec="pickle")
print(type(cache.get_or_load("k", lambda: value)).__name__, dict(cache.stats().errors))
"""
    assert run_python(program.replace("{phase}", "write")) == "Gone {}\n"
    assert run_python(program.replace("{phase}", "read")) == "str {'undecodable': 1}\n"
    assert run_python(program.replace("{phase}", "read")) == "str {}\n"


REAL = """
import sys
from dataclasses import dataclass
import numpy as np, pandas as pd
from pydantic import BaseModel
from codomyrmex_cache import CacheManager, cached

class Message(BaseModel):
    role: str
    content: str | None = None

@dataclass(frozen=True)
class Finding:
    line: int
    text: str

manager = CacheManager(directory=sys.argv[1] if len(sys.argv) > 1 else {folder!r}, secret=b"a secret for the tests")
runs = []

@cached("models", backend="file_based", manager=manager, codec={codec!r})
def complete(prompt: str) -> list[Message]:
    runs.append(prompt)
    return [Message(role="user", content=prompt), Message(role="assistant")]

@cached("findings", backend="file_based", manager=manager, codec={codec!r})
def analyse(path: str) -> dict[str, tuple[Finding, ...]]:
    runs.append(path)
    return {{path: (Finding(1, "a"), Finding(2, "b"))}}

@cached("arrays", backend="file_based", manager=manager, codec={codec!r})
def embed(text: str) -> np.ndarray:
    runs.append(text)
    return np.arange(100_000, dtype=np.float32).reshape(100, 1000)

@cached("frames", backend="file_based", manager=manager)
def table(name: str):
    runs.append(name)
    return pd.DataFrame({{"a": range(3), "b": list("xyz")}}, index=pd.date_range("2026-01-01", periods=3))

messages, found, array, frame = complete("p"), analyse("f"), embed("t"), table("n")
assert messages[0].content == "p" and messages[1].model_fields_set == {{"role"}}
assert found == {{"f": (Finding(1, "a"), Finding(2, "b"))}}
assert array.shape == (100, 1000) and array.dtype == np.float32 and array.flags.writeable and array[99, 999] == 99_999
assert list(frame["b"]) == ["x", "y", "z"] and str(frame.index[2].date()) == "2026-01-03"
array[0, 0] = 5
assert embed("t")[0, 0] == 0
print(len(runs), sum(sum(s.errors.values()) for s in manager.stats().values()))
manager.close()
"""


@pytest.mark.parametrize("codec", ["auto", "safe"])
def test_real_values_come_back_after_a_restart(tmp_path: Path, codec: str) -> None:
    program = REAL.format(folder=str(tmp_path), codec=codec)
    assert run_python(program) == "4 0\n"
    assert run_python(program) == "0 0\n"


# -- secrets and encryption


def test_encrypted_entries_show_nothing_and_cannot_be_moved(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    manager = CacheManager(directory=tmp_path, secret=SECRET, encrypt=True)

    @cached("x", backend="file_based", manager=manager, tags=["a tag in clear"])
    def function(parameter_in_clear: str) -> str:
        return "an answer in clear"

    assert [function("a question in clear"), function("a question in clear")] == ["an answer in clear"] * 2
    assert function.stats().hits == 1
    cache = manager.get_cache("x")
    cache.set("one", "value in clear " * 20_000)
    cache.set("two", "2")
    assert cache.get("one") == "value in clear " * 20_000
    cache.close()
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (b"answer in clear", b"question in clear", b"value in clear", b"parameter_in_clear"):
        assert secret not in content
    (database,) = tmp_path.glob("*/entries.sqlite3")
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute(
        "UPDATE entries SET value = (SELECT value FROM entries WHERE key = CAST('1:x:two' AS BLOB)), file = NULL"
    )
    connection.close()
    assert cache.get("one", "miss") == "miss"
    assert cache.get("two") == "2"
    manager.close()


def test_a_reader_takes_one_algorithm_only(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    _cache(tmp_path).set("k", 1)
    assert _cache(tmp_path, encrypt=True).get("k", "miss") == "miss"
    _cache(tmp_path, encrypt=True).set("k", 2)
    assert _cache(tmp_path).get("k", "miss") == "miss"


def test_every_flipped_bit_of_an_encrypted_entry_is_noticed() -> None:
    pytest.importorskip("cryptography")
    seal = Seal([SECRET], encrypt=True)
    sealed = seal.seal(b"k", Entry(None, digest=b"d"), 1, [b"payload", b"buffer" * 20])
    assert isinstance(sealed, bytes)
    for position in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(EnvelopeError):
            seal.open(b"k", bytes(damaged), b"d")
    assert [bytes(frame) for frame in seal.open(b"k", sealed, b"d").frames] == [b"payload", b"buffer" * 20]
    assert seal.seal(b"k", Entry(None), 1, [b"payload"]) != seal.seal(b"k", Entry(None), 1, [b"payload"])  # another nonce


def test_secrets_of_encrypted_entries_rotate() -> None:
    pytest.importorskip("cryptography")
    old, new = b"an old secret 16", b"a new secret 16."
    sealed = Seal([old], encrypt=True).seal(b"k", Entry(None), 1, [b"payload"])
    assert Seal([new, old], encrypt=True).open(b"k", sealed, b"").frames == [b"payload"]
    with pytest.raises(EnvelopeError):
        Seal([new], encrypt=True).open(b"k", sealed, b"")


def test_to_encrypt_needs_a_secret(valkey: Server) -> None:
    with pytest.raises(CacheConfigurationError, match="secret"):
        CacheManager(url=valkey.url).get_cache("x", backend="redis", encrypt=True).get("k")


def test_the_names_of_parts_are_kept_and_their_digests_are_keyed(tmp_path: Path) -> None:
    digests: list[tuple[tuple[str, bytes], ...]] = []
    for secret in (SECRET, b"another secret..."):
        manager = CacheManager(directory=tmp_path / secret.hex(), secret=secret)

        @cached("x", backend="file_based", manager=manager)
        def function(flag: bool, other: int = 1) -> int:
            return 1

        function(True)
        explained = function.explain(False)
        assert (explained.differing, "other" in explained.same) == (("flag",), True)
        entry = function.entry(True)
        assert entry is not None
        digests.append(entry.parts)
        manager.close()
    assert [name for name, _ in digests[0]] == [name for name, _ in digests[1]]
    assert all(one != other for one, other in zip(*digests, strict=True))


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o644), lambda path: path.write_bytes(b"short")])
def test_a_secret_that_others_could_know_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    CacheManager(directory=tmp_path / "c").get_cache("x", backend="file_based").set("k", 1)
    (secret,) = (tmp_path / "state").rglob("*.key")
    spoil(secret)
    cache = CacheManager(directory=tmp_path / "c").get_cache("x", backend="file_based")
    assert cache.get("k", "miss") == "miss"
    assert "delete it" in caplog.text
    cache.set("k", 2)
    assert cache.get("k") == 2


@pytest.mark.parametrize(
    "options",
    [{"codec": "yaml"}, {"compress": -1}, {"compress": "much"}, {"durability": "all"}, {"types": [1]}, {"max_value_bytes": 0}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CacheConfigurationError, match=next(iter(options))):
        CacheManager().get_cache("x", **options)


def test_failures_are_counted_by_their_own_names() -> None:
    assert cause_of(OSError(28, "No space left on device")) == "ENOSPC"
    assert cause_of(CacheCodecError("x")) == "CacheCodecError"
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute("SELECT * FROM nothing")
    connection.close()
    assert cause_of(caught.value) == "SQLITE_ERROR"


def test_nobody_is_asked_to_unpickle_under_the_safe_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = pickle.dumps(Stranger())
    cache = _cache(tmp_path, codec="safe")
    cache.set("k", 1)
    seal = cache.space.payloads.seal  # type: ignore[attr-defined]
    sealed = seal.seal(b"1:x:k", Entry(None), 2, [planted])
    cache.space.backend.set(b"1:x:k", Entry(sealed))
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_, **__: pytest.fail("unpickled"))
    assert cache.get("k", "miss") == "miss"


def test_a_file_backend_given_as_an_object_is_signed_too(tmp_path: Path) -> None:
    for _ in range(2):
        cache = CacheManager().get_cache("x", backend=FileBasedBackend(tmp_path / "store"))
        assert cache.get_or_load("k", lambda: Stranger("pickled")) == Stranger("pickled")
        cache.close()
    assert cache.stats().hits == 1
