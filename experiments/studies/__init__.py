"""Grids of runs: their jobs, workers and tables."""
