"""One-line messages for arguments that scikit-learn refuses. This file does not import scikit-learn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pyro_metabayes.errors import UsageError, printable
from pyro_metabayes.prediction.tensors import shown

SWAPPED = "; X and y seem to be swapped, so call fit(X, y) with the labels second"


@contextmanager
def explaining(X: Any, y: Any = None) -> Iterator[None]:
    """Replace the message of errors from scikit-learn's checks by one line: what was expected, given and what to do.

    A ValueError becomes a UsageError. A TypeError remains a TypeError, as scikit-learn's `check_estimator` requires.

    Args:
        X: the features that are checked.
        y: the labels that are checked; None: no labels.
    """
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(explained(str(error), X, y)) from None
    except TypeError as error:
        raise TypeError(printable(explained(str(error), X, y))) from None


def explained(message: str, X: Any, y: Any = None) -> str:
    """Return a line for a message of scikit-learn, or the message itself as one line if it is not known here."""
    superfluous = r"array=.*?(?=Reshape)|(?<=Complex data not supported).*|\n\S+ does not accept missing values.*"
    line = " ".join(re.sub(superfluous, "", message, flags=re.DOTALL).split())
    for part, explain in LINES.items():
        if part in line:
            return explain(line, X, y)
    return line


def _with(advice: str) -> Callable[[str, Any, Any], str]:
    """Return a function that adds advice to a message that already says what was expected and what was given."""
    return lambda line, X, y: f"{line.rstrip('.')}; {advice}"


def _not_finite(line: str, X: Any, y: Any) -> str:
    name, given = ("y", y) if line.startswith("Input y") else ("X", X)
    finite = _finite(given)
    rows = np.flatnonzero(~finite.reshape(len(finite), -1).all(1))
    return (
        f"expected finite values in {name}, got NaN or infinity in {len(rows)} of {len(finite)} rows; fix or remove "
        f"these rows (the first is row {rows[0]})"
    )


def _finite(x: Any) -> np.ndarray:
    """Return whether each entry of x is a finite number of type float64."""
    try:
        with np.errstate(over="ignore"):
            return np.isfinite(np.asarray(x, dtype=np.float64))
    except TypeError:  # an entry is pandas.NA
        entries = np.asarray(x, dtype=object)
        return np.reshape([_is_number(value) and np.isfinite(float(value)) for value in entries.flat], entries.shape)


def _not_a_number(line: str, X: Any, y: Any) -> str:
    entries = np.asarray(X, dtype=object)
    unreadable = ((place[0], value) for place, value in np.ndenumerate(entries) if not _is_number(value))
    row, value = next(unreadable, (0, entries.flat[0]))
    return (
        f"expected numbers in X, got {shown(value)} in row {row}; an entry of this argument must be a number or a "
        f"string of a number, so convert it or remove the row{_swapped(X, y)}"
    )


def _is_number(value: Any) -> bool:
    """Return whether `float` converts a value."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _text(line: str, X: Any, y: Any) -> str:
    return f"expected numbers in X, got text, such as {shown(np.asarray(X).flat[0].item())}; convert X to numbers"


def _not_rows(line: str, X: Any, y: Any) -> str:
    shape = np.shape(X)
    expected = "expected X of shape [rows, columns], got"
    if not shape:
        return f"{expected} one value of type {type(X).__name__}; pass an array"
    row, column = "numpy.reshape(X, (1, -1)) is one row", "numpy.reshape(X, (-1, 1)) is one column"
    advice = f"{row}, {column}" if len(shape) == 1 else "embed images first, or numpy.reshape(X, (len(X), -1))"
    return f"{expected} shape {list(shape)}. Reshape your data: {advice}{_swapped(X, y)}"


def _swapped(X: Any, y: Any) -> str:
    return SWAPPED if y is not None and np.ndim(X) < 2 <= np.ndim(y) else ""


def _unequal_numbers(line: str, X: Any, y: Any) -> str:
    return (
        f"expected one label in y per row of X, got {len(X)} rows in X and {len(y)} labels in y; pass the labels of "
        "exactly the rows in X"
    )


def _complex(line: str, X: Any, y: Any) -> str:
    name = "X" if np.iscomplexobj(np.asarray(X)) else "y"
    return f"expected real numbers in {name}, got complex numbers. {line}; use .real or numpy.abs"


def _ragged(line: str, X: Any, y: Any) -> str:
    return "expected rows of the same length in X, got rows of unequal length; pass one number per column in every row"


def _not_classes(line: str, X: Any, y: Any) -> str:
    kind = line.partition(". Maybe")[0]
    return f"expected class labels in y, such as text or integers. {kind}; convert y to text or integers"


# {part of a message of scikit-learn 1.6 to 1.9: function of the message, X and y that returns the line}. Where the
# message remains a part of the line, `check_estimator` requires its words.
LINES: dict[str, Callable[[str, Any, Any], str]] = {
    "could not convert string": _not_a_number,
    "feature names should match": _with("pass the columns of the support rows, in the same order"),
    "requires y to be passed": _with("pass the label of every row of X as y"),
    "y should be a 1d array": _with("pass one label per row of X"),
    "inconsistent numbers of samples": _unequal_numbers,
    "features as input": _with("encode these rows in the same way as the support rows"),
    "contains NaN": _not_finite,
    "contains infinity": _not_finite,
    "arrays of bytes/strings": _text,
    "argument must be a string": _not_a_number,
    "array element with a sequence": _ragged,
    "Expected 2D array": _not_rows,
    "Expected a 2-dimensional container": _not_rows,
    "Found array with dim": _not_rows,
    " sample(s) ": _with("pass at least one row"),
    " feature(s) ": _with("pass the features as columns"),
    "Complex data not supported": _complex,
    "Unknown label type": _not_classes,
    "cannot be used to seed": _with("set random_state to an integer, a RandomState or None"),
}
