"""What every loader asks of a file from elsewhere: no claim of more than it holds, plain values, no other paths.

A damaged or hostile file must end in one line: DAMAGED is what the readers of this package's formats raise for one.
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
)  # RuntimeError: of torch, of recursion, of encrypted archives; UsageError is among them, as a ValueError
PLAIN = (str, int, float, bool, type(None), dict, list, tuple)
MOST_VALUES, DEEPEST = 1_000_000, 30
LONGEST_NAME = 255  # bytes, of a file: what file systems bear
INFLATION = 1032  # bytes that a byte of deflate can become, at most


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Inside, a file that holds something else than it should is a mistake of one line."""
    try:
        yield
    except UsageError:
        raise
    except DAMAGED as error:
        raise UsageError(f"expected {what}, got another: {reason_of(error)}") from None


def count_of(value: Any) -> int:
    """A number of steps, or of anything else."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def plain_name(name: str, where: object) -> str:
    """The name of a class or file that a list gives, refused if it leads out of the folder that the list is of."""
    leads_out = name in (".", "..") or any(sign in name for sign in "/\\\0")
    if leads_out or not 0 < len(name.encode(errors="replace")) <= LONGEST_NAME:
        raise UsageError(f"expected the plain name of a file or folder in {where}, got {name[:80]!r}; mend it")
    return name


def within(folder: Path, name: str) -> Path:
    """A file of a run, refused if a link leads out of the folder of the run."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"expected {name} inside {folder}, got a link to {path.resolve()}; put the file itself there")
    return path


class Bounded:
    """A file that refuses to read beyond its end, since room is made for all that is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        here = file.tell()
        self.file, self.left = file, file.seek(0, os.SEEK_END) - here
        file.seek(here)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise EOFError("it claims to be longer than it is")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline()
        self.left -= len(line)
        return line


def check_archive(path: Path, inflation: int = INFLATION) -> None:
    """Refuse a zip file whose parts claim more bytes than it can hold; inflation 1: nothing in it is compressed."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > inflation * path.stat().st_size:
            raise ValueError("its parts claim to be larger than the file")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, without unpickling; one of DAMAGED for what is none."""
    check_archive(path)
    # Opened here: numpy leaves a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for part in archive.zip.infolist():
            _check_header(archive.zip, part)
        return {name: archive[name] for name in archive.files}


def _check_header(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """numpy makes room for what the header of an array claims before it looks at what there is."""
    with archive.open(part) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        size = part.file_size if dtype.hasobject else int(np.prod(shape, dtype=object)) * dtype.itemsize
        if min(shape, default=0) < 0 or size > part.file_size:  # objects are pickled, and refused when they are read
            raise ValueError(f"'{part.filename}' claims the shape {shape}, and holds less")


def check_plain(value: Any) -> None:
    """Refuse all but numbers, text, tensors, and containers of them."""
    for one in walked(value):
        if isinstance(one, dict) and not all(isinstance(key, str | int) for key in one):
            raise ValueError("it has keys that are neither text nor numbers")
        if isinstance(one, Tensor):
            _check_tensor(one)
        elif not isinstance(one, PLAIN):
            raise ValueError(f"it holds a {type(one).__name__}")


def walked(value: Any) -> list[Any]:
    """A value and all that it holds, refused where there is no end to it: lists may hold each other.

    What stands in several places is looked at once, and counted in each of them.
    """
    found: list[Any] = []
    known: dict[int, tuple[int, int]] = {}  # how many values there are in a value, and how deep they stand

    def measure(one: Any, depth: int) -> tuple[int, int]:
        if id(one) not in known:
            within = [measure(item, depth + 1) for item in _inside(one)] if depth <= DEEPEST else []
            known[id(one)] = 1 + sum(count for count, _ in within), 1 + max((below for _, below in within), default=0)
            found.append(one)
        count, below = known[id(one)]
        if count > MOST_VALUES or depth + below > DEEPEST:
            raise ValueError("it is nested without end")
        return count, below

    measure(value, 0)
    return found


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, np.ndarray):
        return value.ravel() if value.dtype.hasobject else ()
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def _check_tensor(tensor: Tensor) -> None:
    """Refuse one that repeats a few numbers over a shape of any size."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("it holds a tensor that claims to be larger than its content")
