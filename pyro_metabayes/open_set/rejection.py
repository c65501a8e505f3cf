"""Rejection of queries whose prediction has a large entropy, in favour of a label that is no class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from pyro_metabayes.errors import UsageError
from pyro_metabayes.likelihoods.classes import class_entropy

KINDS = {"text": "U", "a number": "iufb"}  # of numpy's types


@dataclass(frozen=True)
class Rejection:
    """Replaces the predicted label of a query by `label` if H[p(y | x, support)] > above.

    Args:
        above: in nats.
        label: an array [] with a label that is no class.
    """

    above: float
    label: np.ndarray

    @classmethod
    def of(cls, above: Any, label: Any, classes: np.ndarray) -> Rejection | None:
        """The rejection of a classifier.

        Args:
            above: largest entropy of an accepted prediction, in nats; None: nothing is rejected.
            label: a label that is no class; None: "unknown" for text, else -1.
            classes: [C], the labels of the classes.

        Returns:
            The rejection, or None without `above`.

        Raises:
            UsageError: `above` rejects nothing or is no entropy; `label` is a class, or of another type.
        """
        if above is None:
            if label is not None:
                raise UsageError(f"expected reject_above for unknown_label={label!r}, got None; set it, in nats")
            return None
        _check_entropy(above, len(classes))
        kind = "text" if isinstance(classes.flat[0], str) else "a number"
        value = np.asarray(("unknown" if kind == "text" else -1) if label is None else label)
        if value.ndim or value.dtype.kind not in KINDS[kind]:
            raise UsageError(f"expected unknown_label to be {kind}, as the labels in y are, got {label!r}")
        if value in classes:
            raise UsageError(f"expected an unknown_label that is no class, got {value.item()!r}, which is in y")
        return cls(float(above), value)

    def __call__(self, labels: np.ndarray, probabilities: Tensor) -> np.ndarray:
        """Labels [Q], some of them replaced, of a type that holds both; probabilities [Q, C]."""
        return np.where((class_entropy(probabilities.log()) > self.above).cpu().numpy(), self.label, labels)


def _check_entropy(above: Any, num_classes: int) -> None:
    number = isinstance(above, Real) and not isinstance(above, bool)
    if not number or not 0 <= above < math.log(num_classes):
        raise UsageError(
            f"expected reject_above from 0 to below log {num_classes} = {math.log(num_classes):.3f} nats, the largest "
            f"entropy of {num_classes} classes, got {above!r}"
        )
