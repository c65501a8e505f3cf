"""Atomic writes of files, and checkpoints that are safe to load: loading runs no code of the file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.untrusted import DAMAGED, check_archive, check_plain, reason_of, within


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` receives the path of a temporary file, which is then renamed to `path`.

    Raises:
        UsageError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:  # a full disk may be reported only by fsync
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"expected to write {path}, got: {reason}; free space or change the folder") from None
    finally:
        with suppress(OSError):  # without the folder there is no temporary file
            temporary.unlink(missing_ok=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings and containers of these in a checkpoint file for `load`."""
    content = io.BytesIO()  # torch's own error for a full disk does not name the cause
    torch.save(state, content)
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint that `save` wrote, with tensors on the CPU. An untrusted file cannot run code.

    Raises:
        UsageError: the file does not exist, or is not a checkpoint.
    """
    if not path.is_file():
        raise UsageError(f"expected a checkpoint at {path}, {_found_instead(path)}")
    try:
        check_archive(path, inflation=1)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"the file contains an object of type {type(state).__name__} instead of a dictionary")
        check_plain(state)
        return state
    except DAMAGED as error:
        raise UsageError(
            f"expected a checkpoint of this package at {path}, got a file that cannot be loaded: {reason_of(error)}; "
            "restore an undamaged copy, or start a new run"
        ) from None


def _found_instead(path: Path) -> str:
    """Return the end of a message about a missing file: which part of its path does not exist, and the remedy."""
    if path.parent.is_file():
        return f"got the file {path.parent} in place of a folder; pass its folder, {path.parent.parent}"
    if not path.parent.is_dir():
        return f"got no folder {path.parent}; fix the path"
    return "got no such file in this folder; pass the folder of a run"


def file_of(path: Path) -> Path:
    """Return the path of checkpoint.pt in the folder of a run, or `path` itself if it is a file."""
    return within(path, "checkpoint.pt") if path.is_dir() else path
