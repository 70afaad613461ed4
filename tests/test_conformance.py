"""The shipped suites, inherited by our backends and by a toy that shows what is enough."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest

from codomyrmex_cache import Entry, FileBasedBackend, InMemoryBackend, RedisBackend
from codomyrmex_cache.backends.base import Backend
from codomyrmex_cache.testing import AsyncBackendConformance, BackendConformance
from tests.conftest import Server


class ToyBackend:
    """A whole third-party backend: bytes in a dict."""

    payload: Literal["bytes"] = "bytes"

    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[bytes, float | None]] = {}

    def get(self, key: bytes) -> Entry | None:
        row = self.rows.get(key)
        return None if row is None else Entry(row[0])

    def set(self, key: bytes, entry: Entry) -> None:
        self.rows[key] = (entry.value, entry.expires_at)

    def has(self, key: bytes) -> bool:
        return key in self.rows

    def delete(self, key: bytes) -> bool:
        return self.rows.pop(key, None) is not None

    def scan(self, prefix: bytes) -> Iterable[tuple[bytes, float | None]]:
        return [(key, expires_at) for key, (_, expires_at) in list(self.rows.items()) if key.startswith(prefix)]

    def close(self) -> None:
        pass


class TestToy(BackendConformance):
    def make_backend(self) -> Backend:
        return ToyBackend()


class TestToyAsync(AsyncBackendConformance):
    def make_backend(self) -> Backend:
        return ToyBackend()


class TestInMemory(BackendConformance):
    def make_backend(self) -> Backend:
        return InMemoryBackend()


class TestInMemoryAsync(AsyncBackendConformance):
    def make_backend(self) -> Backend:
        return InMemoryBackend()


class _InFolder:
    def setup_method(self) -> None:
        """Deferred to the fixture below, which knows the folder."""

    def make_backend(self) -> Backend:
        return FileBasedBackend(self.folder)

    @pytest.fixture(autouse=True)
    def _wired(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store"
        super().setup_method()  # type: ignore[misc]


class TestFileBased(_InFolder, BackendConformance):
    pass


class TestFileBasedAsync(_InFolder, AsyncBackendConformance):
    pass


class _OnServer:
    def setup_method(self) -> None:
        """Deferred to the fixture below, which knows the server."""

    def make_backend(self) -> Backend:
        return RedisBackend(self.url)

    @pytest.fixture(autouse=True)
    def _wired(self, any_redis: Server) -> None:
        any_redis.flush()
        self.url = any_redis.url
        super().setup_method()  # type: ignore[misc]


class TestRedis(_OnServer, BackendConformance):
    pass


class TestRedisAsync(_OnServer, AsyncBackendConformance):
    pass
