"""What the library costs: `python -m benchmarks`, docs/performance.md."""
