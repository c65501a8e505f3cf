"""Pyro effect handlers and related context managers, one per file."""
