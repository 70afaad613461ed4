"""Large values on their way into files: copied only where somebody else could change them meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codomyrmex_cache import CacheManager

SIZE = 300_000


def test_a_set_that_waits_copies_no_large_buffer(tmp_path: Path) -> None:
    import tracemalloc

    import numpy

    cache = CacheManager().get_cache("arrays", backend="file_based", directory=tmp_path, secret=b"s" * 32)
    array = numpy.arange(10 * SIZE, dtype=float)
    cache.set("k", array)
    tracemalloc.start()
    try:
        cache.set("k", array)
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 4
    finally:
        tracemalloc.stop()
    cache.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("tiered", [False, True])
def test_what_is_stored_is_the_callers_no_more(tmp_path: Path, tiered: bool, asynchronous: bool) -> None:
    import asyncio

    from codomyrmex_cache import FileBasedBackend, InMemoryBackend, TieredBackend

    backend: Any = FileBasedBackend(tmp_path / "l2")
    backend = TieredBackend(InMemoryBackend(), backend) if tiered else backend
    cache = CacheManager().get_cache("arrays", backend=backend, secret=b"s" * 32)
    array = bytearray(b"a" * SIZE)
    if asynchronous:
        asyncio.run(cache.aset("k", array))
    else:
        cache.set("k", array)
    array[:] = b"b" * SIZE
    assert cache.get("k") == b"a" * SIZE
    cache.close()
