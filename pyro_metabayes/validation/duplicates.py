"""Identical inputs of a bank: in two splits, in one class, or with two labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pyro_metabayes.data.bank import SPLITS, Bank

PIECE = 2**22  # bytes that are hashed at once; they stay in the cache of the processor


class Kind(NamedTuple):
    """Rows with an identical row of one kind. rows: their number. example: one of them, and such a row."""

    text: str
    rows: int
    example: tuple[int, int]


def note_duplicates(bank: Bank, where: str) -> None:
    """Print one line if a bank in memory has identical inputs; they are kept.

    Args:
        bank: the bank, whose `origin` names its rows. Inputs that stay in their file are not read.
        where: the file or folder of the data.
    """
    if not isinstance(bank.inputs, Tensor):
        return
    split_of = np.full(len(bank.class_sizes), -1)
    for place, split in enumerate(SPLITS):
        split_of[bank.splits[split].numpy()] = place
    classes = bank.labels.numpy()
    rows = np.flatnonzero(split_of[classes] >= 0)
    keys = row_keys(bank.inputs.cpu().contiguous().numpy().reshape(len(bank.inputs), -1))
    name = bank.origin or str
    note_equal_keys(keys[rows], classes[rows], split_of[classes[rows]], lambda row: name(int(rows[row])), where)


def note_equal_keys(
    keys: np.ndarray, classes: np.ndarray, splits: np.ndarray, name: Callable[[int], str], where: str
) -> None:
    """Print one line if two rows have the same key.

    Args:
        keys: [M], a hash of each row.
        classes: [M], class of each row, an integer >= 0; a class is in one split.
        splits: [M], split of each row, an integer >= 0.
        name: name of a row.
        where: the file or folder of the data.
    """
    if kinds := list(duplicates_of(keys, classes, splits)):
        counts = [f"{kind.rows} {kind.text} ({' = '.join(map(name, kind.example))})" for kind in kinds]
        print(f"note: identical inputs in {where}: {', '.join(counts)}; remove the copies", file=sys.stderr)


def duplicates_of(keys: np.ndarray, classes: np.ndarray, splits: np.ndarray) -> Iterator[Kind]:
    """The kinds of rows with the same key, with a row of each and its copy. Args: as for `note_equal_keys`."""
    _, same, counts = np.unique(keys, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[same] > 1)
    if not rows.size:
        return
    same, classes, splits = same[rows], classes[rows], splits[rows]
    alike, in_split, in_class = (_count(same, within) for within in (np.zeros_like(same), splits, classes))
    for text, found, near, equal in (
        ("rows with a copy in another split", alike > in_split, splits, False),
        ("rows with a copy in their class, so that support and query set may share it", in_class > 1, classes, True),
        ("rows with a copy in another class of their split", in_split > in_class, classes, False),
    ):
        if found.any():
            first = int(found.argmax())
            copies = (same == same[first]) & ((near == near[first]) == equal)
            copies &= (splits == splits[first]) | (near is splits)
            copies[first] = False
            yield Kind(text, int(found.sum()), (int(rows[first]), int(rows[copies.argmax()])))


def row_keys(rows: np.ndarray) -> np.ndarray:
    """A hash [M] of the bytes of each row of a contiguous array [M, N]; equal rows have equal hashes.

    sum_i a_i w_i + b_i v_i mod 2^64 over the 8-byte words w_i of a row, with random a_i and b_i. v_i has the bytes of
    w_i in reverse order: without it, differences in the high bytes would rarely change the hash. Two rows that differ
    have the same hash with a probability of at most 2^-56.
    """
    data = rows.view(np.uint8)
    words = data.shape[1] // 8
    factors = np.random.default_rng(0).integers(
        2**64, size=(2, words + data.shape[1] % 8), dtype=np.uint64
    ) | np.uint64(1)
    keys = np.empty(len(data), np.uint64)
    each = max(1, PIECE // max(data.shape[1], 1))
    for start in range(0, len(data), each):
        piece = data[start : start + each]
        whole = np.ascontiguousarray(piece[:, : 8 * words]).view(np.uint64)
        key = whole @ factors[0, :words] + whole.byteswap() @ factors[1, :words]
        keys[start : start + each] = key + piece[:, 8 * words :] @ factors[0, words:]
    return keys


def _count(same: np.ndarray, within: np.ndarray) -> np.ndarray:
    """For each entry the number of entries that agree in both keys, which are integers >= 0."""
    _, inverse, counts = np.unique(same * (within.max() + 1) + within, return_inverse=True, return_counts=True)
    return counts[inverse]
