"""The benchmark suite: `python -m benchmarks` (method: benchmarks/README.md)."""
