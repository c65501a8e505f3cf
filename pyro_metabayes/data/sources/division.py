"""Divides the rows of a data set among training, validation and test: by classes, by rows, or not at all (data.split).

Every source of users' data takes these four settings and hands them to `Division`. By rows, a class that has rows in
several splits becomes one class of the bank per split, with the same name. So a split of a bank always owns its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pyro_metabayes.data.bank import DIVISIONS, SPLITS, Bank
from pyro_metabayes.errors import UsageError, check_choice

LEAST_ROWS = len(SPLITS)  # smallest class whose rows can be divided at random


class Divided(NamedTuple):
    """The class of each row of a data set, and the split of each class.

    labels: [M], class of each row, 0 to G - 1.
    splits: the classes of each split; if the data are not divided, the only key is "train".
    names: [G], name of each class.
    """

    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    names: Sequence[str]


@dataclass(frozen=True)
class Division:
    """What is divided among the splits.

    Args:
        by: classes: a class belongs to one split, so that test classes are not seen in training. rows: a class has rows
            in all splits, so that the rows of the test are not seen in training, but their classes are. none: all rows
            are training rows, and the evaluation uses them too.
        train: fraction of the classes, or of the rows of each class, for training, if the data name no splits.
        val: fraction for validation; the rest is for the test.
        seed: seed of the random assignment.

    Raises:
        UsageError: `by` is none of the three.
    """

    by: str = "classes"
    train: float = 0.64
    val: float = 0.16
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("splits (data.split in a run)", self.by, DIVISIONS)

    def divide(self, labels: np.ndarray, names: Sequence[str], given: np.ndarray | None, where: object) -> Divided:
        """Classes and splits of a bank.

        Args:
            labels: [M], class of each row, 0 to G - 1.
            names: [G], name of each class.
            given: [M], the split of each row that the data name, 0 to 2; None: at random.
            where: the file or folder, for messages.

        Raises:
            UsageError: a split has no class, or the data name splits that are not of this division.
        """
        if self.by == "none":
            return Divided(labels, {"train": np.arange(len(names))}, names)
        if self.by == "classes":
            splits = self._random_classes(len(names)) if given is None else _classes_of(given, labels, names, where)
            _refuse_empty(splits, len(names), where)
            return Divided(labels, splits, names)
        places = self._random_rows(labels, names, where) if given is None else given
        present, renumbered = np.unique(places.astype(np.int64) * len(names) + labels, return_inverse=True)
        splits = {split: np.flatnonzero(present // len(names) == place) for place, split in enumerate(SPLITS)}
        _refuse_empty(splits, len(names), where)
        classes = present % len(names)
        _refuse_untrained(splits, classes, names, where)
        return Divided(renumbered, splits, [names[index] for index in classes.tolist()])

    def bank(self, bank: Bank) -> Bank:
        """The bank of `Divided`, which records what was divided. With none, all splits have the training classes."""
        splits = dict.fromkeys(SPLITS, bank.splits["train"]) if self.by == "none" else bank.splits
        return replace(bank, splits=splits, division=self.by)

    def _random_classes(self, number: int) -> dict[str, np.ndarray]:
        self._check_fractions()
        order = np.random.default_rng(self.seed).permutation(number)
        first, second = _share(self.train, number), _share(self.train + self.val, number)
        parts = (order[:first], order[first:second], order[second:])
        return {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)}

    def _random_rows(self, labels: np.ndarray, names: Sequence[str], where: object) -> np.ndarray:
        """The split of each row [M]; a class has at least one row in each."""
        self._check_fractions()
        sizes = np.bincount(labels, minlength=len(names))
        if (small := np.flatnonzero(sizes < LEAST_ROWS)).size:
            raise UsageError(
                f"expected at least {LEAST_ROWS} rows in each class of {where} for data.split=rows, got "
                f"{sizes[small[0]]} in class '{names[small[0]]}' ({small.size} such classes); add rows, or drop it"
            )
        order = np.lexsort((np.random.default_rng(self.seed).random(len(labels)), labels))
        ranks = np.arange(len(labels)) - np.repeat(sizes.cumsum() - sizes, sizes)  # within the class, in random order
        first = np.clip(np.floor(self.train * sizes + 0.5), 1, sizes - 2)
        second = np.clip(np.floor((self.train + self.val) * sizes + 0.5), first + 1, sizes - 1)
        places = np.empty(len(labels), np.int64)
        places[order] = (ranks >= np.repeat(first, sizes)).astype(np.int64) + (ranks >= np.repeat(second, sizes))
        return places

    def _check_fractions(self) -> None:
        if not (self.train > 0 and self.val > 0 and self.train + self.val < 1):
            raise UsageError(
                f"expected fractions train > 0, val > 0 and train + val < 1, got train={self.train} and "
                f"val={self.val}; the remaining part is for test"
            )


def _share(fraction: float, number: int) -> int:
    return math.floor(fraction * number + 0.5)


def _classes_of(given: np.ndarray, labels: np.ndarray, names: Sequence[str], where: object) -> dict[str, np.ndarray]:
    """Classes of each split, from the split of every row."""
    splits = {split: np.unique(labels[given == place]) for place, split in enumerate(SPLITS)}
    counts = np.bincount(np.concatenate(list(splits.values())), minlength=len(names))
    if (counts > 1).any():
        first = int((counts > 1).argmax())
        shared = " and ".join(split for split in SPLITS if first in splits[split])
        raise UsageError(
            f"expected each class in one split of {where}, got '{names[first]}' in {shared} "
            f"({int((counts > 1).sum())} such classes); splits divide the classes, not the rows or images of a class; "
            "give each class one split, or set data.split=rows, which divides the rows"
        )
    return splits


def _refuse_empty(splits: Mapping[str, np.ndarray], num_classes: int, where: object) -> None:
    if empty := [split for split, classes in splits.items() if len(classes) == 0]:
        raise UsageError(
            f"expected classes in every split, got none in {empty[0]} of {where} ({num_classes} classes in all); add "
            "some, or assign them to splits; for few classes data.split=rows divides the rows of each class"
        )


def _refuse_untrained(
    splits: Mapping[str, np.ndarray], classes: np.ndarray, names: Sequence[str], where: object
) -> None:
    """With data.split=rows the test classes are those of the training; one that is not would be a new class."""
    known = classes[splits["train"]]
    for split in SPLITS[1:]:
        if (unknown := np.setdiff1d(classes[splits[split]], known)).size:
            raise UsageError(
                f"expected rows in train for every class of {where} with data.split=rows, got '{names[unknown[0]]}' in "
                f"{split} only ({unknown.size} such classes); add training rows, or use data.split=classes"
            )


def split_numbers(split: np.ndarray, where: object) -> np.ndarray:
    """The split of every row [M] as 0, 1 or 2, from an array of names (train, val, test) or of these numbers.

    Raises:
        UsageError: another name, number or type.
    """
    keys = np.array(SPLITS) if split.dtype.kind == "U" else np.arange(len(SPLITS))
    strange = np.setdiff1d(split, keys) if split.dtype.kind in "Uiu" else split[:1]
    if len(strange):
        raise UsageError(
            f"expected train, val, test or 0, 1, 2 in 'split' of {where}, got {strange[0]} ({split.dtype}); write one "
            "of these for every row"
        )
    if split.dtype.kind != "U":
        return split
    return (split == SPLITS[1]).astype(np.uint8) + np.uint8(2) * (split == SPLITS[2])
