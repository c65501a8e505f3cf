"""Pyro effect handlers and the like, one effect per file."""
