"""The folder of data sets, the cache folder, and cached arrays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.checksums import verify
from pyro_metabayes.storage.paths import folder_of_variable
from pyro_metabayes.storage.untrusted import DAMAGED, read_npz

Arrays = Mapping[str, np.ndarray]


def cache_folder() -> Path:
    """Return the cache folder, and create it if it does not exist.

    The environment variable METABAYES_CACHE names this folder. If it is not set, the folder is ~/.cache/pyro_metabayes.

    Raises:
        UsageError: the folder cannot be created or written.
    """
    folder = folder_of_variable("METABAYES_CACHE") or Path.home() / ".cache" / "pyro_metabayes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # an existing folder may be read-only
            return folder
    except OSError as error:
        raise UsageError(
            f"expected a cache folder that can be written, got {folder}: {error.strerror}; "
            "set the environment variable METABAYES_CACHE to another folder"
        ) from None


def data_file(relative: str, hint: str) -> Path:
    """Verify the checksum of a file in the folder METABAYES_DATA, and return the path of the file.

    Args:
        relative: path of the file relative to METABAYES_DATA.
        hint: end of the error message, which says what to do if the file is missing.

    Raises:
        UsageError: METABAYES_DATA is not set, the file is missing, or its checksum differs.
    """
    path = _under_data(relative, hint)
    if not path.is_file():
        raise UsageError(f"expected a file at {path}, not found; {hint}")
    return verify(path)


def data_folder(relative: str, hint: str) -> Path:
    """Return the path of a folder in the folder METABAYES_DATA.

    Args:
        relative: path of the folder relative to METABAYES_DATA.
        hint: end of the error message, which says what to do if the folder is missing.

    Raises:
        UsageError: METABAYES_DATA is not set, or the folder is missing.
    """
    path = _under_data(f"{relative}/", hint)
    if not path.is_dir():
        raise UsageError(f"expected a folder {path}, not found; {hint}")
    return path


def _under_data(relative: str, hint: str) -> Path:
    root = folder_of_variable("METABAYES_DATA")
    if root is None:
        raise UsageError(
            f"expected the environment variable METABAYES_DATA to name a folder with {relative}, but METABAYES_DATA is "
            f"not set; {hint}"
        )
    return root / relative


def cached_arrays(name: str, settings: Mapping[str, object], make: Callable[[], Arrays]) -> Arrays:
    """Return arrays from the cache. If they are not cached, compute and cache them.

    Args:
        name: beginning of the name of the cache file.
        settings: settings on which the arrays depend. The name of the cache file contains a hash of the settings.
        make: function that computes the arrays.
    """
    key = sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}.npz"
    arrays = _read(path)
    if arrays is None:
        arrays = make()
        _write(path, arrays)
    return arrays


def _read(path: Path) -> Arrays | None:
    """Read the cached arrays; return None if the file is missing or damaged."""
    try:
        return read_npz(path)
    except DAMAGED:
        return None


def _write(path: Path, arrays: Arrays) -> None:
    """Write the arrays atomically: another process may use the same file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the type stub confuses **arrays with allow_pickle
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
