"""Inputs that stay in their file: a bank larger than memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

PIECE = 2**24  # bytes that are checked at once
SAMPLE, SAMPLED_BYTES = 1024, 2**24  # rows that stand for all in a fingerprint, fewer where they are wide

Read = Callable[[np.ndarray, np.ndarray], np.ndarray]
Change = Callable[[Tensor], Tensor]


class MappedRows:
    """Rows [M, D] of a memory-mapped array: what is asked for is read from the file, and nothing else.

    It has of a tensor what tasks are drawn with, and lies on the CPU whatever the device of a run.
    read: what becomes of rows [n, D] of the file, given their numbers there [n]; change: of those as a tensor, on their
    way to whoever asks. order [M]: the row of the file that each row is; None: as they stand.
    """

    device = torch.device("cpu")

    def __init__(
        self, array: np.memmap, read: Read, change: Change | None = None, order: np.ndarray | None = None
    ) -> None:
        self.array, self.read, self.change, self.order = array, read, change, order
        self._file = array.base if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM") else None
        self._advise("MADV_RANDOM")  # rows lie anywhere: their neighbours would be read for nothing

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.array.shape)

    def dim(self) -> int:
        return self.array.ndim

    def __len__(self) -> int:
        return len(self.array)

    def to(self, device: torch.device | str) -> MappedRows:
        """Itself: tasks are moved, the file is not."""
        return self

    def ordered(self, order: np.ndarray) -> MappedRows:
        """The same rows in another order, which is kept (8 bytes a row) where it is another."""
        if (order == np.arange(len(order))).all():
            return self
        return MappedRows(self.array, self.read, self.change, order)

    def changed(self, change: Change) -> MappedRows:
        """The same rows, each with `change` applied when it is asked for."""
        return MappedRows(self.array, self.read, change, self.order)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Rows [n, D], float32."""
        assert dim == 0
        numbers = self._in_file(rows.numpy())
        self._announce(numbers)
        values = torch.from_numpy(self.read(self.array[numbers], numbers))
        return values if self.change is None else self.change(values)

    def check(self) -> None:
        """Read every row once, piece by piece, as tasks would: what is wrong with one is raised."""
        self._advise("MADV_SEQUENTIAL")
        each = max(1, PIECE // self.array.strides[0])
        for start in tqdm(range(0, len(self), each), desc="check rows", unit="piece", disable=None):
            numbers = np.arange(start, min(start + each, len(self)))
            self.read(self.array[start : start + each], numbers)
        self._advise("MADV_RANDOM")

    def sample(self) -> bytes:
        """What tells this bank from others without reading it: its type, its shape and rows spread evenly over it."""
        number = max(1, min(len(self), SAMPLE, SAMPLED_BYTES // self.array.strides[0]))
        rows = np.linspace(0, len(self) - 1, number).astype(np.int64)
        return f"{self.array.dtype} {self.array.shape}".encode() + self.array[self._in_file(rows)].tobytes()

    def _advise(self, how: str) -> None:
        if self._file is not None:
            self._file.madvise(getattr(mmap, how))

    def _announce(self, numbers: np.ndarray) -> None:
        """Have the kernel fetch all of these rows side by side, where it would fetch one after the other."""
        if self._file is not None:
            start = self.array.offset % mmap.ALLOCATIONGRANULARITY + numbers * self.array.strides[0]
            first = start - start % mmap.PAGESIZE
            for place, length in zip(first.tolist(), (start + self.array.strides[0] - first).tolist(), strict=True):
                self._file.madvise(mmap.MADV_WILLNEED, place, length)

    def _in_file(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.order is None else self.order[rows]
