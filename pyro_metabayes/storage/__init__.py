"""Files: checkpoints, the cache, locks, and safe loading of untrusted files."""
