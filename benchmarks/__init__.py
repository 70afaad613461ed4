"""What this package costs: `python -m benchmarks.all` measures it against others, other modules against primitives."""
