"""Finished runs in one table and one plot."""
