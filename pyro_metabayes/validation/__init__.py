"""Checks of tasks, arguments, splits and optimisers from users."""
