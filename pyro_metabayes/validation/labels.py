"""Checks of the labels that users pass: numbers or text of any array library."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any

import numpy as np

from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.prediction.tensors import readable, shown


def readable_labels(name: str, y: Any) -> Any:
    """Convert labels to an array for scikit-learn's checks of inputs.

    Args:
        name: name of the argument, for messages.
        y: labels of any type: a tensor, array, list or column of a data frame.

    Raises:
        UsageError: a label is missing (None, NaN, or blank text), only some labels are text, or two labels differ only
            in surrounding white space. Such labels would be two classes by mistake.
    """
    y = readable(name, y)
    array = np.asarray(y)
    if isinstance(y, list | tuple) and array.dtype.kind == "U":  # numpy converts numbers in a list of text to text
        array = np.array(y, dtype=object)
    if not array.size or not array.ndim:
        return y
    _refuse_missing(name, array)
    if array.dtype == object and len({isinstance(value, str) for value in array.flat}) > 1:
        raise UsageError(f"expected labels of one type in {name}, got text and other types; convert all labels to text")
    _refuse_white_space(name, array)
    return y if array.dtype != object or isinstance(array.flat[0], str) else np.array(array.tolist())


def warn_unlabelled(y: np.ndarray) -> None:
    """Warn if some labels are -1, scikit-learn's code for rows without a label, and the others are classes >= 0.

    In a binary task, such as -1 and 1, or beside other negative labels, -1 is the name of a class.
    """
    if y.dtype.kind not in "if" or not (number := int((y == -1).sum())):
        return
    others = np.unique(y[y != -1])
    if len(others) >= 2 and others[0] >= 0:
        warnings.warn(
            f"expected the names of classes in y, got {how_many(number, 'label')} -1, scikit-learn's code for rows "
            "without a label; -1 is a class here: if it stands for no label, call fit(X[y != -1], y[y != -1])",
            stacklevel=3,
        )


def _refuse_missing(name: str, labels: np.ndarray) -> None:
    """Raise a UsageError if labels [N] or [N, Y] are missing; other tools write these as None, NaN or empty text."""
    rows = labels.reshape(len(labels), -1).tolist()
    if missing := [(row, value) for row, values in enumerate(rows) for value in values if _is_missing(value)]:
        row, value = missing[0]
        raise UsageError(
            f"expected a label in every row of {name}, got {len(missing)} missing ({value!r}); pass the labelled rows "
            f"only (the first row without a label is row {row})"
        )


def _is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, pandas.NA, or text that is empty or white space."""
    if isinstance(value, str | bytes):
        return not value.strip()
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, Real) and value != value)


def _refuse_white_space(name: str, labels: np.ndarray) -> None:
    """Raise a UsageError if two labels differ only in surrounding white space."""
    first: dict[str | bytes, str | bytes] = {}
    for label in labels.ravel().tolist():
        if isinstance(label, str | bytes) and (other := first.setdefault(label.strip(), label)) != label:
            raise UsageError(
                f"expected labels in {name} that differ in more than surrounding white space, got {shown(other)} and "
                f"{shown(label)}; remove the white space, for example [label.strip() for label in {name}]"
            )
