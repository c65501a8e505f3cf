"""Pyro effect handlers and related context managers, one effect per file."""
