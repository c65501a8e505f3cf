"""Banks of the datasets and data frames of users."""

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
    """Constructors of a bank. `splits` lists the labels of each split, or says what is divided at random (`Division`):
    "classes", "rows" or "none"; then `train` and `val` are fractions, the rest is for the test, and `seed` is a seed.
    """

    @classmethod
    def from_dataset(
        cls, dataset: LabelledItems, splits: Splits, train: float = 0.64, val: float = 0.16, seed: int = 0
    ) -> Bank:
        """A bank of a torch Dataset of (input, label), whose items are read when a task needs them (`DatasetRows`).

            Bank.from_dataset(ImageFolder("birds", transform), {"train": range(64), "val": range(64, 80), ...})

        Labels come from the attribute `targets` or `labels` of the dataset; one without them is read once.

        Args:
            dataset: items (input, label), with the transforms that it applies.
            splits: labels of the classes of train, val and test (classes in none of them are not used), or "classes",
                "rows" or "none".
            train, val, seed: fractions and seed of a division at random.

        Raises:
            UsageError: a split has another name, or a label that the dataset does not have; two splits share a label;
                an item is no pair of a tensor and a label.
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
        """A bank of the features in a data frame of pandas or polars, or a table of pyarrow.

            Bank.from_dataframe(frame, "rows", label="species")

        Args:
            frame: one row per input, with a column of labels (integers or text).
            splits: labels of the classes of train, val and test (classes in none of them are not used), or "classes",
                "rows" or "none". A column `split` of the frame then names the split of each row, if there is one.
            label: the column of labels.
            columns: the columns of features, or one column of lists; None: the column of lists, else all columns of
                floats, else all of integers. A note names the columns that are not used.
            train, val, seed: fractions and seed of a division at random.

        Raises:
            UsageError: a column is missing or unusable, or splits are not as for `from_dataset`.
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
    """The labels of each split as arrays.

    Args:
        splits: the labels of each split.
        labels: [G], labels of the classes.

    Raises:
        UsageError: `splits` has another form, or a label that is none of these.
    """
    check_form_of_splits(splits)
    given = cast(Mapping[str, Sequence[Any]], splits)
    check_labels_of_splits(given, labels)
    return {split: np.asarray(list(names), labels.dtype) for split, names in given.items()}
