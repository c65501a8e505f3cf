"""Conversion of class names of any type to class numbers 0, ..., C - 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_metabayes.errors import UsageError
from pyro_metabayes.validation.labels import readable_labels


def classes_of(y: Any, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert the class names of the support points to numbers.

    Args:
        y: one class name per support point [S]: text, integers or bools, as an array, a tensor or a list.
        num_points: S, the number of support points.

    Returns:
        The C class names, sorted, and the class [S] of each support point as a number from 0 to C - 1.

    Raises:
        UsageError: there is not one name per support point, a name is missing or a number with fraction, or there are
            fewer than two classes.
    """
    names = np.asarray(readable_labels("support_y", y))
    if names.shape != (num_points,):
        raise UsageError(
            f"expected a class name for each of the {num_points} rows of support_x, got support_y of shape "
            f"{list(names.shape)}; pass one name per row"
        )
    if names.dtype.kind == "c" or (names.dtype.kind == "f" and not (names == np.floor(names)).all()):
        raise UsageError(
            f"expected class names in support_y, such as text or integers, got numbers with fractions or NaN "
            f"({names.dtype}); pass names, and remove rows without a label"
        )
    try:
        classes, numbers = np.unique(names, return_inverse=True)
    except TypeError:
        raise UsageError("expected class names that can be sorted in support_y, got mixed types; pass text") from None
    if len(classes) < 2:
        raise UsageError(
            f"expected at least 2 classes in support_y, got {classes.tolist()}; bring support points of another class"
        )
    return classes, numbers
