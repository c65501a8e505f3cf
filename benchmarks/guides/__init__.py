"""Each guide beside the same computation in raw batched PyTorch."""
