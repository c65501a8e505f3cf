"""Checks of the tasks that users bring."""
