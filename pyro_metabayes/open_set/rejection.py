"""Rejection of queries: a label such as "unknown" replaces a prediction with a large entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from pyro_metabayes.errors import UsageError
from pyro_metabayes.likelihoods.classes import class_entropy

KINDS = {"text": "U", "a number": "iufb"}  # kinds of numpy's dtypes


@dataclass(frozen=True)
class Rejection:
    """Rule that rejects a query, i.e. predicts `label`, if the entropy of the prediction exceeds `above`.

    Args:
        above: largest entropy of an accepted prediction, in nats.
        label: array of shape [] with the label of rejected queries. The label must not be the label of a class.
    """

    above: float
    label: np.ndarray

    @classmethod
    def of(cls, above: Any, label: Any, classes: np.ndarray) -> Rejection | None:
        """Construct the rejection rule of a classifier from the arguments of the user.

        Args:
            above: largest entropy of an accepted prediction, in nats; None: nothing is rejected.
            label: label of rejected queries; None: "unknown" if the labels of the classes are text, else -1.
            classes: [C], the labels of the C classes.

        Returns:
            The rule; None if `above` is None.

        Raises:
            UsageError: `above` is not a number with 0 <= above < log C; `above` is None although `label` is given;
                `label` is the label of a class; or `label` has another type than the labels of the classes.
        """
        if above is None:
            if label is not None:
                raise UsageError(
                    f"expected reject_above for unknown_label={label!r}, got None; set reject_above (in nats)"
                )
            return None
        _check_entropy(above, len(classes))
        kind = "text" if isinstance(classes.flat[0], str) else "a number"
        value = np.asarray(("unknown" if kind == "text" else -1) if label is None else label)
        if value.ndim or value.dtype.kind not in KINDS[kind]:
            raise UsageError(
                f"expected unknown_label to be {kind}, like the labels in y, got {label!r}; change unknown_label"
            )
        if value in classes:
            raise UsageError(
                f"expected an unknown_label that is not in y, got {value.item()!r}, the label of a class; change "
                "unknown_label"
            )
        return cls(float(above), value)

    def __call__(self, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Replace the labels of rejected queries.

        Args:
            labels: [Q], predicted labels of Q queries.
            probabilities: [Q, C], probabilities of C classes.

        Returns:
            Labels [Q], of a dtype that can hold the predicted labels and `label`.
        """
        entropy = class_entropy(torch.from_numpy(probabilities).log())
        return np.where((entropy > self.above).numpy(), self.label, labels)


def _check_entropy(above: Any, num_classes: int) -> None:
    number = isinstance(above, Real) and not isinstance(above, bool)
    if not number or not 0 <= above < math.log(num_classes):
        raise UsageError(
            f"expected 0 <= reject_above < log {num_classes} = {math.log(num_classes):.3f} nats (for {num_classes} "
            f"classes), got {above!r}; change reject_above"
        )
