"""Cost of the library: `python -m benchmarks`, docs/performance.md."""
