"""The command experiments.compare: finished runs in one table and one plot."""
