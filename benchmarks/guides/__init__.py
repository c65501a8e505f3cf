"""Guides compared with the same computation in raw batched PyTorch."""
