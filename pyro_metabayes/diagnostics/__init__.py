"""Is the posterior collapsed, calibrated, near the truth? One question a file."""
