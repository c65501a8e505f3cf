"""Checks of the tasks, arguments, splits and optimisers that users pass."""
