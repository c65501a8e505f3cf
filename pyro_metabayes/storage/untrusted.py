"""Checks of untrusted files: claimed sizes, types of values, and paths that must stay in a folder.

A damaged or hostile file must lead to an error message of one line. DAMAGED lists the exceptions that readers raise for
such files.
"""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

DAMAGED = (
    *(OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(EOFError, MemoryError, SyntaxError, UnpicklingError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)  # RuntimeError includes errors of torch, recursion errors and encrypted archives; a UsageError is a ValueError
PLAIN = (str, int, float, bool, type(None), dict, list, tuple)
MOST_VALUES, DEEPEST = 1_000_000, 30
LONGEST_NAME = 255  # bytes; the limit of most file systems
INFLATION = 1032  # largest possible ratio of uncompressed to compressed bytes in deflate


def reason_of(error: BaseException) -> str:
    """Return the first line of the message of an error, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Context manager that converts an exception for a damaged file (DAMAGED) to a UsageError.

    The message is "expected {what}, got another: {message of the exception}".
    """
    try:
        yield
    except UsageError:
        raise
    except DAMAGED as error:
        raise UsageError(f"expected {what}, got another: {reason_of(error)}") from None


def count_of(value: Any) -> int:
    """Return the value if it is an integer >= 0; otherwise raise a ValueError."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not an integer >= 0")
    return value


def plain_name(name: str, where: object) -> str:
    """Return the name of a file or folder if it contains no path; otherwise raise a UsageError.

    Args:
        name: a name from an untrusted file, such as the name of a class.
        where: the file that lists the name, for the message.
    """
    leads_out = name in (".", "..") or any(sign in name for sign in "/\\\0")
    if leads_out or not 0 < len(name.encode(errors="replace")) <= LONGEST_NAME:
        raise UsageError(
            f"expected the name of a file or folder without a path in {where}, got {name[:80]!r}; fix the name"
        )
    return name


def within(folder: Path, name: str) -> Path:
    """Return the path of a file in the folder of a run. A link out of the folder raises a UsageError."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"expected {name} inside {folder}, got a link to {path.resolve()}; copy the file into the folder"
        )
    return path


class BoundedFile:
    """A file that refuses a request for more bytes than it has.

    Without this check, a read would first allocate memory for all requested bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        position = file.tell()
        self.file, self.remaining = file, file.seek(0, os.SEEK_END) - position
        file.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.remaining:
            raise EOFError("the file is shorter than it claims")
        self.remaining -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline()
        self.remaining -= len(line)
        return line


def check_archive(path: Path, inflation: int = INFLATION) -> None:
    """Raise a ValueError if the files in a zip archive claim more uncompressed bytes than the archive can contain.

    Args:
        path: the archive.
        inflation: largest ratio of uncompressed to compressed bytes; 1: the archive must be uncompressed.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > inflation * path.stat().st_size:
            raise ValueError("the archive lists files that are larger than its size allows")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file without unpickling.

    A damaged file, or a file of another format, raises one of the exceptions in DAMAGED.
    """
    check_archive(path)
    # The file is opened here, since numpy does not close a damaged file.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for part in archive.zip.infolist():
            _check_header(archive.zip, part)
        return {name: archive[name] for name in archive.files}


def _check_header(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Raise a ValueError if an array header claims more bytes than the file has. numpy would allocate all of them."""
    with archive.open(part) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        size = part.file_size if dtype.hasobject else int(np.prod(shape, dtype=object)) * dtype.itemsize
        if min(shape, default=0) < 0 or size > part.file_size:  # object arrays are refused when they are read
            raise ValueError(f"the array '{part.filename}' claims the shape {shape} but has fewer bytes")


def check_plain(value: Any) -> None:
    """Raise a ValueError unless the value consists of numbers, text, tensors and containers of these."""
    for item in nested_values(value):
        if isinstance(item, dict) and not all(isinstance(key, str | int) for key in item):
            raise ValueError("a dictionary has keys other than text and integers")
        if isinstance(item, Tensor):
            _check_tensor(item)
        elif not isinstance(item, PLAIN):
            raise ValueError(f"an object of the type {type(item).__name__} is not a plain value")


def nested_values(value: Any) -> list[Any]:
    """List a value and all values nested in it, each object once.

    Raises:
        ValueError: there are more than a million values (MOST_VALUES) or 30 levels (DEEPEST), for example because lists
            contain each other. For this limit an object in several places counts several times.
    """
    values: list[Any] = []
    sizes: dict[int, tuple[int, int]] = {}  # by id: number of nested values, and depth of the nesting

    def measure(item: Any, level: int) -> tuple[int, int]:
        if id(item) not in sizes:
            children = [measure(child, level + 1) for child in _children(item)] if level <= DEEPEST else []
            count, depth = sum(count for count, _ in children), max((depth for _, depth in children), default=0)
            sizes[id(item)] = 1 + count, 1 + depth
            values.append(item)
        count, depth = sizes[id(item)]
        if count > MOST_VALUES or level + depth > DEEPEST:
            raise ValueError("values in the file are nested too deeply")
        return count, depth

    measure(value, 0)
    return values


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, np.ndarray):
        return value.ravel() if value.dtype.hasobject else ()
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def _check_tensor(tensor: Tensor) -> None:
    """Raise a ValueError if a tensor is not dense, or has more entries than its storage.

    A tensor with a stride of 0 can claim more entries than its storage has.
    """
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor claims to be larger than its content, or is not dense")
