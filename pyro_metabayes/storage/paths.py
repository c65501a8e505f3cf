"""Paths that users write, and folders named by environment variables."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str | Path) -> Path:
    """Return the path, with ~ or ~NAME at the start replaced by the home folder."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises if there is no such user


def folder_of_variable(name: str) -> Path | None:
    """Return the folder named by an environment variable, or None if the variable is unset or empty."""
    value = os.environ.get(name)
    return user_path(value) if value else None
