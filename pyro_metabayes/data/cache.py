"""Where data is looked for, and where what was derived from it is kept."""

from __future__ import annotations

import os
from pathlib import Path

from pyro_metabayes.errors import UsageError


def cache_folder() -> Path:
    """The folder named by METABAYES_CACHE, else ~/.cache/pyro_metabayes; made if need be."""
    folder = Path(os.environ.get("METABAYES_CACHE") or Path.home() / ".cache" / "pyro_metabayes")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"expected a cache folder that can be written, got {folder}: {error.strerror}; "
            "name another in the environment variable METABAYES_CACHE"
        ) from None
    return folder


def data_file(relative: str, hint: str) -> Path:
    """The file under the folder named by METABAYES_DATA; `hint` says what to put there."""
    root = os.environ.get("METABAYES_DATA")
    if not root:
        raise UsageError(f"expected the environment variable METABAYES_DATA to name a folder with {relative}; {hint}")
    path = Path(root) / relative
    if not path.is_file():
        raise UsageError(f"expected a file at {path}, got none; {hint}")
    return path
