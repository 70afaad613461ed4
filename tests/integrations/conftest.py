"""Async tests run here without a plugin, and just so with pytest-asyncio in any of its modes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import CacheManager
from tests.conftest import Server
from tests.llm_server import Model, serving


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def manager(tmp_path: Path, valkey: Server) -> Iterator[CacheManager]:
    manager = CacheManager(directory=tmp_path, url=valkey.url, on_error="raise")
    yield manager
    manager.close()


@pytest.fixture(params=["in_memory", "file_based", "redis"])
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model() -> Iterator[Model]:
    with serving() as model:
        yield model
