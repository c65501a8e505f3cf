"""Runs studies (lists of runs with different settings) in parallel, and writes their tables."""
