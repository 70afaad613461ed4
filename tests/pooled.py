"""A decorated function for pools of processes."""

from codomyrmex_cache import cached


@cached("pooled", backend="file_based")
def square(x: int) -> int:
    return x * x
