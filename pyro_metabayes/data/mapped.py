"""Inputs that stay in their file, for data sets larger than memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.training.progress import counted

PIECE = 2**24  # bytes checked at once
SAMPLE, SAMPLED_BYTES = 1024, 2**24  # largest number of rows, and of bytes, in a fingerprint

Read = Callable[[np.ndarray, np.ndarray], np.ndarray]
Change = Callable[[Tensor], Tensor]


class StoredRows(Protocol):
    """M inputs of shape *X, read row by row on the CPU, with the tensor methods that samplers use."""

    device: torch.device

    @property
    def shape(self) -> torch.Size: ...

    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> StoredRows: ...

    def in_order(self, order: np.ndarray) -> StoredRows: ...

    def index_select(self, dim: int, rows: Tensor) -> Tensor: ...

    def split(self, size: int) -> Iterator[Tensor]: ...

    def sample(self) -> bytes:
        """Return bytes that identify the content; `Bank.fingerprint` hashes them."""
        ...


class MappedRows:
    """M vectors of D features [M, D] in a memory-mapped array. Only the requested rows are read.

    The class has the tensor methods that samplers use. Rows are read on the CPU, whatever the device of the run.

    Args:
        array: the memory-mapped array [M, D].
        read: function that prepares rows for use, for example scales them. The arguments are n rows [n, D] of the file
            and the row numbers [n].
        change: function that is applied to the tensor of rows after `read`; None: no change.
        order: [M], the row number in the file of each of the M rows; None: the order of the file.
    """

    device = torch.device("cpu")

    def __init__(
        self, array: np.memmap, read: Read, change: Change | None = None, order: np.ndarray | None = None
    ) -> None:
        self.array, self.read, self.change, self.order = array, read, change, order
        self._file = array.base if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM") else None
        self._advise("MADV_RANDOM")  # reading ahead would be wasted

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.array.shape)

    def dim(self) -> int:
        return self.array.ndim

    def __len__(self) -> int:
        return len(self.array)

    def to(self, device: torch.device | str) -> MappedRows:
        """Return the object itself: only the inputs of drawn tasks are moved to a device."""
        return self

    def in_order(self, order: np.ndarray) -> MappedRows:
        """Return the rows of the file in the order of the row numbers `order` [M], which takes 8 bytes per row."""
        if (order == np.arange(len(order))).all():
            return self
        return MappedRows(self.array, self.read, self.change, order)

    def with_change(self, change: Change) -> MappedRows:
        """Return the same rows with a function `change` that is applied to them after reading."""
        return MappedRows(self.array, self.read, change, self.order)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Read the n rows with the given numbers, apply `read` and `change`, and return a tensor; `dim` must be 0."""
        assert dim == 0
        numbers = self._in_file(rows.numpy())
        self._announce(numbers)
        values = torch.from_numpy(self.read(self.array[numbers], numbers))
        return values if self.change is None else self.change(values)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all rows in tensors of `size` rows."""
        for start in range(0, len(self), size):
            yield self.index_select(0, torch.arange(start, min(start + size, len(self))))

    def check(self) -> None:
        """Read every row once, so that errors in the file are found before training."""
        self._advise("MADV_SEQUENTIAL")
        each = max(1, PIECE // self.array.strides[0])
        for start in counted(range(0, len(self), each), "check rows", "pieces"):
            numbers = np.arange(start, min(start + each, len(self)))
            self.read(self.array[start : start + each], numbers)
        self._advise("MADV_RANDOM")

    def sample(self) -> bytes:
        """Return bytes that identify the content, for `Bank.fingerprint`: type, shape and evenly spaced rows."""
        number = max(1, min(len(self), SAMPLE, SAMPLED_BYTES // self.array.strides[0]))
        rows = np.linspace(0, len(self) - 1, number).astype(np.int64)
        return f"{self.array.dtype} {self.array.shape}".encode() + self.array[self._in_file(rows)].tobytes()

    def _advise(self, how: str) -> None:
        if self._file is not None:
            self._file.madvise(getattr(mmap, how))

    def _announce(self, numbers: np.ndarray) -> None:
        """Ask the operating system to read the given rows in parallel before they are needed."""
        if self._file is not None:
            start = self.array.offset % mmap.ALLOCATIONGRANULARITY + numbers * self.array.strides[0]
            first = start - start % mmap.PAGESIZE
            for place, length in zip(first.tolist(), (start + self.array.strides[0] - first).tolist(), strict=True):
                self._file.madvise(mmap.MADV_WILLNEED, place, length)

    def _in_file(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.order is None else self.order[rows]
