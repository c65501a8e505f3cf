"""Divides the rows of a data set among training, validation and test: by classes, by rows, or not at all (data.split).

Every source of users' data passes the settings `split`, `train`, `val` and `seed` to `Division`. Every class of a bank
(data set) belongs to one split. If rows are divided, a class of the data becomes one class of the bank per split, all
with the same name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pyro_metabayes.data.bank import DIVISIONS, SPLITS, Bank
from pyro_metabayes.errors import UsageError, check_choice, how_many

LEAST_ROWS = len(SPLITS)  # smallest class whose rows can be divided at random


class Divided(NamedTuple):
    """Classes and splits of a data set of M rows and G classes.

    labels: [M], class of each row, 0 to G - 1.
    splits: the classes of each split; if the data are not divided, the only key is "train".
    names: [G], name of each class.
    """

    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    names: Sequence[str]


@dataclass(frozen=True)
class Division:
    """Rule for dividing a data set among training, validation and test.

    Args:
        by: "classes": each class belongs to one split; test classes are not seen in training. "rows": a class has rows
            in all splits; test classes are seen in training, test rows are not. "none": training and evaluation use
            all rows.
        train: fraction of the classes, or of the rows of each class, for training; not used if the data name splits.
        val: fraction for validation; the rest is for the test.
        seed: seed of the random assignment.

    Raises:
        UsageError: `by` has another value.
    """

    by: str = "classes"
    train: float = 0.64
    val: float = 0.16
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("splits (data.split in a run)", self.by, DIVISIONS)

    def divide(self, labels: np.ndarray, names: Sequence[str], given: np.ndarray | None, where: object) -> Divided:
        """Assign the classes, or the rows, of a data set to the splits.

        Args:
            labels: [M], class of each of M rows, 0 to G - 1.
            names: [G], name of each class.
            given: [M], splits that the data name for the rows, 0 to 2 for train, val and test; None: drawn at random.
            where: the file or folder, for messages.

        Raises:
            UsageError: a split has no class, or the splits `given` contradict the setting `by` of this rule.
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
        """Return the bank (data set) with a record of the setting `by`.

        With by="none", all splits of the bank get the training classes.
        """
        splits = dict.fromkeys(SPLITS, bank.splits["train"]) if self.by == "none" else bank.splits
        return replace(bank, splits=splits, division=self.by)

    def _random_classes(self, number: int) -> dict[str, np.ndarray]:
        self._check_fractions()
        order = np.random.default_rng(self.seed).permutation(number)
        first, second = _share(self.train, number), _share(self.train + self.val, number)
        parts = (order[:first], order[first:second], order[second:])
        return {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)}

    def _random_rows(self, labels: np.ndarray, names: Sequence[str], where: object) -> np.ndarray:
        """Draw the split of each of the M rows [M]; every class has at least one row in each split."""
        self._check_fractions()
        sizes = np.bincount(labels, minlength=len(names))
        if (small := np.flatnonzero(sizes < LEAST_ROWS)).size:
            raise UsageError(
                f"expected at least {LEAST_ROWS} rows in each class of {where} for data.split=rows, got "
                f"{sizes[small[0]]} in class '{names[small[0]]}' "
                f"({how_many(small.size, 'class is', 'classes are')} "
                "too small); add rows, or drop these classes"
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
                f"val={self.val}; leave a part for the test"
            )


def _share(fraction: float, number: int) -> int:
    return math.floor(fraction * number + 0.5)


def _classes_of(given: np.ndarray, labels: np.ndarray, names: Sequence[str], where: object) -> dict[str, np.ndarray]:
    """Return the classes of each split, from the split of every row; a class in two splits raises a UsageError."""
    splits = {split: np.unique(labels[given == place]) for place, split in enumerate(SPLITS)}
    counts = np.bincount(np.concatenate(list(splits.values())), minlength=len(names))
    if (counts > 1).any():
        first = int((counts > 1).argmax())
        shared = " and ".join(split for split in SPLITS if first in splits[split])
        raise UsageError(
            f"expected each class in one split of {where}, got '{names[first]}' in {shared} "
            f"({how_many(int((counts > 1).sum()), 'such class', 'such classes')}); give each class one split, or "
            "set data.split=rows to divide the rows of each class"
        )
    return splits


def _refuse_empty(splits: Mapping[str, np.ndarray], num_classes: int, where: object) -> None:
    if empty := [split for split, classes in splits.items() if len(classes) == 0]:
        raise UsageError(
            f"expected classes in every split of {where}, got none in {empty[0]} ({num_classes} classes in all); add "
            "classes, assign them to splits, or divide the rows of each class with data.split=rows"
        )


def _refuse_untrained(
    splits: Mapping[str, np.ndarray], classes: np.ndarray, names: Sequence[str], where: object
) -> None:
    """Check that every validation or test class has training rows, as data.split=rows requires."""
    known = classes[splits["train"]]
    for split in SPLITS[1:]:
        if (unknown := np.setdiff1d(classes[splits[split]], known)).size:
            raise UsageError(
                f"expected rows in train for every class of {where} with data.split=rows, got class "
                f"'{names[unknown[0]]}' in {split} only "
                f"({how_many(unknown.size, 'such class', 'such classes')}); "
                "add training rows, or set data.split=classes"
            )


def split_numbers(split: np.ndarray, where: object) -> np.ndarray:
    """Convert the splits of M rows [M] to numbers. A split is named train, val, test or numbered 0, 1, 2.

    Raises:
        UsageError: the array has another name, number or type.
    """
    keys = np.array(SPLITS) if split.dtype.kind == "U" else np.arange(len(SPLITS))
    strange = np.setdiff1d(split, keys) if split.dtype.kind in "Uiu" else split[:1]
    if len(strange):
        raise UsageError(
            f"expected train, val, test or 0, 1, 2 in 'split' of {where}, got {strange[0]} ({split.dtype}); write "
            "one of these in every row"
        )
    if split.dtype.kind != "U":
        return split
    return (split == SPLITS[1]).astype(np.uint8) + np.uint8(2) * (split == SPLITS[2])
