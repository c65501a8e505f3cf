"""Files: checkpoints, the cache, and loading files that are not trusted."""
