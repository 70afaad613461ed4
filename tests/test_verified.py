"""When payloads in files of their own are verified: at the first read of a process, and again once the file has changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import Cache, CacheManager, Entry
from codomyrmex_cache._origin import Verified, note_origin, room, take_origin
from codomyrmex_cache._sealed import SealedPayloads
from codomyrmex_cache.backends import _large
from codomyrmex_cache.codecs import NO_TYPES, SAFE, Coder
from codomyrmex_cache.envelope import HEAD_SIZE, Seal
from codomyrmex_cache.errors import EnvelopeError
from tests.damage import in_child

np = pytest.importorskip("numpy")

SECRET = b"a secret for the tests"
SMALL, HUGE = 100_000, 1_500_000
"""Numbers of eight bytes: read into memory at hand, and into large pages."""


@pytest.fixture(params=[False, True], ids=["read", "mapped"])
def mapped(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def cache(tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """Whose files are old enough at once, and which keeps nothing in memory."""
    monkeypatch.setattr("codomyrmex_cache._files.RECENT_SECONDS", 0.0)
    monkeypatch.setattr("codomyrmex_cache._near_cells._SHARE", 10**9)
    manager, cache = _opened(tmp_path, mapped)
    yield cache
    manager.close()


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each large body that a MAC was made of."""
    made: list[int] = []
    mac = Seal._mac

    def counting(self: Seal, key_id: int, key: bytes, head: bytes, body: Any) -> bytes:
        made.append(sum(map(len, body)))
        return mac(self, key_id, key, head, body)

    monkeypatch.setattr(Seal, "_mac", counting)
    return made


def _opened(folder: Path, mapped: bool, **options: Any) -> tuple[CacheManager, Cache]:
    manager = CacheManager(directory=folder, secret=SECRET)
    return manager, manager.get_cache("x", backend="file_based", mmap=mapped, **options)


def _side(folder: Path) -> Path:
    (path,) = folder.glob("*/large/*")
    return path


def _flip(path: Path, place: int) -> None:
    """Change a byte in place; everything but the ctime is afterwards as it was."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        (byte,) = file.read(1)
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # the file system's clock has ticks
            file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
            file.write(bytes([byte ^ 1]))
            file.flush()
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("count", [SMALL, HUGE])
def test_an_array_is_verified_once_and_each_reader_has_its_own(cache: Cache, verified: list[int], count: int) -> None:
    array = np.arange(count)
    cache.set("k", array)
    array[0] = 5
    verified.clear()
    found = [cache.get("k") for _ in range(4)]
    assert len(verified) == 1
    found[0][:] = 7
    assert all((each == np.arange(count)).all() for each in found[1:])
    assert all(each.flags.writeable and each.ctypes.data % 16 == 0 for each in found)
    assert len(verified) == 1


def test_a_recent_file_is_verified_at_each_read(cache: Cache, verified: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cache.set("k", np.arange(SMALL))
    monkeypatch.setattr("codomyrmex_cache._files.RECENT_SECONDS", 1000.0)
    verified.clear()
    for _ in range(3):
        cache.get("k")
    assert len(verified) == 3


def test_what_another_process_or_manager_verified_is_not_believed(cache: Cache, verified: list[int], tmp_path: Path) -> None:
    cache.set("k", np.arange(SMALL))
    cache.get("k")
    verified.clear()
    manager, other = _opened(tmp_path, False)
    assert (other.get("k") == np.arange(SMALL)).all()
    assert len(verified) == 1
    manager.close()


@pytest.mark.parametrize("place", [-1, -8 * SMALL, 150])
def test_a_byte_flipped_after_a_verified_read_is_a_miss(cache: Cache, tmp_path: Path, place: int) -> None:
    cache.set("k", np.arange(SMALL))
    assert cache.get("k")[-1] == cache.get("k")[-1] == SMALL - 1
    _flip(_side(tmp_path), place)
    assert cache.get("k") is None
    assert cache.stats().errors == {"tampered": 1}


def test_another_entry_in_the_place_of_a_verified_one_is_a_miss(cache: Cache, tmp_path: Path) -> None:
    cache.set("one", np.arange(SMALL))
    one = _side(tmp_path)
    cache.set("two", np.arange(SMALL) + 1)
    (two,) = set(tmp_path.glob("*/large/*")) - {one}
    for _ in range(2):
        assert (cache.get("one")[1], cache.get("two")[1]) == (1, 2)
    os.utime(two, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    two.replace(one)
    assert cache.get("one") is None


def test_a_file_cut_after_a_verified_read_is_a_miss(cache: Cache, tmp_path: Path) -> None:
    cache.set("k", np.arange(SMALL))
    cache.get("k")
    os.truncate(_side(tmp_path), 8 * SMALL - 100)
    assert cache.get("k") is None


def test_a_file_cut_between_the_look_at_it_and_the_read_is_a_miss(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.set("k", np.arange(SMALL))
    cache.get("k")
    path, fstat = _side(tmp_path), os.fstat
    inode = path.stat().st_ino

    def cutting(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if found.st_ino == inode and found.st_size > 4096:
            os.truncate(path, 4096)
            return found
        return found

    monkeypatch.setattr(os, "fstat", cutting)
    assert cache.get("k") is None
    assert cache.stats().errors == {"tampered": 1}  # nothing that the backend would be blamed for


def test_what_is_parsed_is_compared_even_if_a_file_system_lies(
    tmp_path: Path, mapped: bool, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_large, "identity", lambda stat: (1, 2, stat.st_size, 3, 4))
    cache.set("k", np.arange(SMALL))
    cache.get("k")
    path = _side(tmp_path)
    content = path.read_bytes()
    _flip(path, content.index(b"numpy"))  # in the pickle
    assert cache.get("k") is None
    assert cache.stats().errors == {"tampered": 1}


def test_what_is_signed_again_is_verified_again(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_large, "identity", lambda stat: (1, 2, stat.st_size, 3, 4))
    cache.set("k", np.arange(SMALL), ttl=1000)
    cache.get("k")
    _flip(_side(tmp_path), -1)
    assert cache.touch("k", ttl=2000) is False
    manager, other = _opened(tmp_path, False)
    assert other.get("k") is None
    manager.close()


def _sealed(seal: Seal, key: bytes) -> bytes:
    return seal.seal(key, Entry(None, digest=b"d"), SAFE, [b"main", b"buffer" * 1000])  # type: ignore[return-value]


def _as_read(content: bytes, origin: tuple[int, ...] | None = (1, 2, 3, 4, 5)) -> memoryview:
    memory = room(len(content))
    memory[:] = content
    note_origin(memory, origin)
    return memory


def test_only_the_very_same_payload_is_known() -> None:
    seal = Seal([SECRET])
    content = _sealed(seal, b"k")
    forged = content[:-1] + b"!"
    seal.open(b"k", _as_read(content), b"d")
    assert bytes(seal.open(b"k", _as_read(forged), b"d").frames[1][-1:]) == b"!"  # known by its origin, which is the same
    parsed = HEAD_SIZE + 32 + 8 + len(b"main")  # with the digest of the call and the length of the buffer
    refused: list[tuple[bytes, Any, bytes]] = [
        (b"k", forged, b"d"),
        (b"k", _as_read(forged, None), b"d"),
        (b"k", _as_read(forged, (1, 2, 3, 4, 6)), b"d"),
        (b"k", _as_read(forged + b"x")[:-1], b"d"),
        (b"k", _as_read(content[:-1]), b"d"),
        (b"other", _as_read(content), b"d"),
        (b"k", _as_read(content), b"another call"),
        (b"k", _as_read(bytes([content[0] ^ 1]) + content[1:]), b"d"),
        *(
            (b"k", _as_read(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]), b"d")
            for place in range(parsed)
        ),
    ]
    for key, sealed, digest in refused:
        with pytest.raises(EnvelopeError):
            seal.open(key, sealed, digest)
    with pytest.raises(EnvelopeError):
        seal.open(b"k", _as_read(forged), b"d", anew=True)
    payloads = SealedPayloads("x", seal, lambda types: Coder(signed=True), NO_TYPES, {}, chunked=False, most=2**30)
    with pytest.raises(EnvelopeError):
        payloads.retimed(b"k", Entry(_as_read(forged)), b"d", Entry(None))  # it would be signed again
    with pytest.raises(EnvelopeError):
        Seal([SECRET]).open(b"k", _as_read(forged), b"d")


def test_memory_that_was_handed_out_is_not_known_any_more() -> None:
    memory = _as_read(b"content")
    assert [take_origin(memory), take_origin(memory)] == [(1, 2, 3, 4, 5), None]


def test_a_bounded_number_is_remembered() -> None:
    verified = Verified()
    for number in range(5000):
        verified.add(number, b"")
        assert verified.knows(number, b"")
    assert len(verified) <= 1024


def test_threads_read_the_same_array(cache: Cache) -> None:
    cache.set("k", np.arange(SMALL))
    amiss: list[object] = []

    def read() -> None:
        for _ in range(20):
            found = cache.get("k")
            if found is None or not (found == np.arange(SMALL)).all():
                amiss.append(found)
            else:
                found[:] = 0

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert amiss == []


def test_a_forked_child_has_memory_of_its_own(cache: Cache, tmp_path: Path, verified: list[int]) -> None:
    cache.set("k", np.arange(HUGE))
    cache.get("k")
    mine = cache.get("k")
    verified.clear()

    def child() -> tuple[int, int, int]:
        mine[:] = 1
        found = cache.get("k")
        return len(verified), int(found.sum()), int(mine.sum())

    assert in_child(child) == (0, sum(range(HUGE)), HUGE)
    assert mine[-1] == HUGE - 1
    _flip(_side(tmp_path), -1)
    assert in_child(lambda: cache.get("k")) is None
