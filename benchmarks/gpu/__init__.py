"""Checks and speed on a GPU: python -m benchmarks.gpu (docs/performance.md)."""
