"""Shared by all commands: settings, messages, sweeps, locks, processes."""
