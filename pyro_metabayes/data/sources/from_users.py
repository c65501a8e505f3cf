"""Constructs a bank from the dataset or data frame of a user. A bank is a data set from which tasks are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pyro_metabayes.validation.splits import check_form_of_splits, check_labels_of_splits

if TYPE_CHECKING:
    from pyro_metabayes.data.bank import Bank
    from pyro_metabayes.data.sources.torch_dataset import LabelledItems

Splits = Mapping[str, Sequence[int] | Sequence[str]] | str


class FromUsers:
    """Mixin with constructors of a bank (data set) from a user's dataset or data frame.

    The argument `splits` lists the labels of each split, or names what is divided at random: "classes", "rows" or
    "none" (`Division`). For a random division, `train` and `val` are fractions, and the rest is for the test.
    """

    @classmethod
    def from_dataset(
        cls, dataset: LabelledItems, splits: Splits, train: float = 0.64, val: float = 0.16, seed: int = 0
    ) -> Bank:
        """Return a bank (data set) over a torch Dataset of (input, label). Items are read when a task needs them.

            Bank.from_dataset(ImageFolder("birds", transform), {"train": range(64), "val": range(64, 80), ...})

        Labels come from the attribute `targets` or `labels` of the dataset. A dataset without them is read once.

        Args:
            dataset: the torch Dataset; its transforms are applied.
            splits: the labels of train, val and test; other classes are not used. Or what is divided at random:
                "classes", "rows" or "none".
            train, val, seed: fractions and seed of a random division.

        Raises:
            UsageError: `splits` names an unknown split or label, or one label in two splits. Or an item is not a pair
                of a tensor and a label.
        """
        from pyro_metabayes.data.bank import Bank  # here, since it imports this file
        from pyro_metabayes.data.sources.division import Division
        from pyro_metabayes.data.sources.torch_dataset import DatasetRows, class_names_of, labels_of

        division = Division(splits, train, val, seed) if isinstance(splits, str) else None
        labels = labels_of(dataset)
        classes, numbers = np.unique(labels, return_inverse=True)
        rows, names = DatasetRows(dataset, np.arange(len(labels)), labels), class_names_of(dataset, classes.tolist())
        if division is None:
            return Bank.from_arrays(rows, labels, labels_of_splits(splits, classes), names)
        divided = division.divide(numbers, names, None, "the dataset")
        return division.bank(Bank.from_arrays(rows, *divided))

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        splits: Splits,
        label: str = "label",
        columns: Sequence[str] | None = None,
        train: float = 0.64,
        val: float = 0.16,
        seed: int = 0,
    ) -> Bank:
        """Return a bank (data set) of the features in a data frame of pandas or polars, or in a table of pyarrow.

            Bank.from_dataframe(frame, "rows", label="species")

        Args:
            frame: one row per input, with a column of labels (integers or text).
            splits: the labels of train, val and test; other classes are not used. Or what is divided: "classes", "rows"
                or "none". A column `split` of the frame gives the split of each row; without it, splits are random.
            label: the column of labels.
            columns: the columns of features, or one column of lists; None: the column of lists, else all columns of
                floats, else all of integers. A printed note names the columns that are not used.
            train, val, seed: fractions and seed of a random division.

        Raises:
            UsageError: a column is missing or unusable, or `splits` is invalid.
        """
        from pyro_metabayes.data.sources.division import Division
        from pyro_metabayes.data.sources.feature_arrays import bank_of_arrays, bank_of_classes
        from pyro_metabayes.data.sources.frames import arrays_of

        where = "the data frame"
        arrays, note = arrays_of(frame, label, columns, where)
        if isinstance(splits, str):
            return bank_of_arrays(arrays, Division(splits, train, val, seed), where, note)
        return bank_of_classes(arrays, splits, where, note)


def labels_of_splits(splits: Any, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Convert the labels of each split to arrays, after checking them.

    Args:
        splits: the labels of each split.
        labels: [G], the labels of all G classes.

    Raises:
        UsageError: `splits` is not a mapping from split to labels, or names an unknown label.
    """
    check_form_of_splits(splits)
    given = cast(Mapping[str, Sequence[Any]], splits)
    check_labels_of_splits(given, labels)
    return {split: np.asarray(list(names), labels.dtype) for split, names in given.items()}
