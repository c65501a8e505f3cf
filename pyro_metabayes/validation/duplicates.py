"""Detection of identical inputs in a bank (data set): in two splits, in one class, or with two labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pyro_metabayes.data.bank import SPLITS, Bank

PIECE = 2**22  # bytes that are hashed at once; so many fit into the cache of the processor


class Kind(NamedTuple):
    """A kind of duplicates, such as inputs with a copy in another split.

    Attributes:
        text: description of the kind.
        rows: number of inputs of this kind.
        example: row numbers of one such input and of its copy.
    """

    text: str
    rows: int
    example: tuple[int, int]


def note_duplicates(bank: Bank, where: str) -> None:
    """Print a note if a bank (data set) has identical inputs. The inputs are not removed.

    Args:
        bank: the bank. Only inputs in memory are checked.
        where: the file or folder of the data, for the note.
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
    """Print a note if two inputs have the same key.

    Args:
        keys: hash of each of M inputs [M].
        classes: class of each input, an integer >= 0 [M]; each class is in one split.
        splits: split of each input, an integer >= 0 [M].
        name: function that returns the name of an input from its index.
        where: the file or folder of the data, for the note.
    """
    if kinds := list(duplicates_of(keys, classes, splits)):
        counts = [f"{kind.rows} {kind.text} ({' = '.join(map(name, kind.example))})" for kind in kinds]
        print(f"note: identical inputs in {where}: {', '.join(counts)}; remove the copies", file=sys.stderr)


def duplicates_of(keys: np.ndarray, classes: np.ndarray, splits: np.ndarray) -> Iterator[Kind]:
    """Find inputs with the same key. Yield a `Kind` (description, number, example) for each kind of duplicates.

    Args:
        keys: hash of each of M inputs [M].
        classes: class of each input, an integer >= 0 [M]; each class is in one split.
        splits: split of each input, an integer >= 0 [M].
    """
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
    """Compute a hash of the bytes of each of the M rows of a contiguous array [M, number of columns].

    The hash is

        sum_i a_i w_i + b_i v_i mod 2^64,

    where w_i are the 8-byte words of a row, v_i has the bytes of w_i in reverse order, and a_i and b_i are random odd
    numbers. Each of the last bytes that do not fill a word is a word w_i without v_i. The words v_i make the hash
    depend on the high bytes. Two different rows have the same hash with a probability of at most 2^-56.
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
    """Count, for each index i, the indices j with same[j] = same[i] and within[j] = within[i].

    Args:
        same: integers >= 0 [M].
        within: integers >= 0 [M].

    Returns:
        Counts [M].
    """
    _, inverse, counts = np.unique(same * (within.max() + 1) + within, return_inverse=True, return_counts=True)
    return counts[inverse]
