"""Checks of the splits that users pass. Splits assign classes to training, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pyro_metabayes.errors import UsageError


def check_form_of_splits(splits: object) -> None:
    """Raise a UsageError if `splits` is not a mapping with a list of class labels for each split."""
    if not isinstance(splits, Mapping) or not all(_lists_labels(given) for given in splits.values()):
        raise UsageError(
            "expected splits with the class labels of each split, as {'train': range(64), 'val': range(64, 80)}, got "
            f"{str(splits)[:80]}; list the labels of each split"
        )


def _lists_labels(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str | Mapping)


def check_labels_of_splits(splits: Mapping[str, Sequence[int] | Sequence[str]], names: np.ndarray) -> None:
    """Raise a UsageError if a label in the splits is not a label of the data set; `names` lists these labels."""
    for split, given in splits.items():
        if absent := [label for label in given if label not in names]:
            raise UsageError(
                f"expected labels of the dataset in split {split}, got {absent[0]!r}; use only labels "
                f"of the dataset: {_some(names)}"
            )


def check_splits(splits: Mapping[str, np.ndarray], allowed: Sequence[str]) -> None:
    """Raise a UsageError for an unknown split, or for a class in two splits.

    A test class must be unseen in training.
    """
    if unknown := [name for name in splits if name not in allowed]:
        raise UsageError(f"expected the splits {', '.join(allowed)}, got '{unknown[0]}'; rename '{unknown[0]}'")
    labels = np.concatenate([np.unique(given) for given in splits.values()]) if splits else np.empty(0)
    names, counts = np.unique(labels, return_counts=True)
    if (counts > 1).any():
        raise UsageError(
            f"expected each class in one split, got class {names[counts > 1][0]} in two splits; remove the class from "
            "one split"
        )


def _some(names: np.ndarray) -> str:
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
