"""Files: checkpoints, the cache folder, locks, and safe loading of untrusted files."""
