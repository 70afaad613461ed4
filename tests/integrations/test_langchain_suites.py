"""The suites that LangChain publishes for caches, on each backend."""

from __future__ import annotations

import pytest

pytest.importorskip("langchain_tests")

from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite

from codomyrmex_cache import CacheManager
from codomyrmex_cache.integrations.langchain import CodomyrmexCache


class TestSync(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, manager: CacheManager, backend: str) -> CodomyrmexCache:
        return CodomyrmexCache("llm", "1h", backend, manager=manager)


class TestAsync(AsyncCacheTestSuite):
    @pytest.fixture
    def cache(self, manager: CacheManager, backend: str) -> CodomyrmexCache:
        return CodomyrmexCache("llm", "1h", backend, manager=manager)
