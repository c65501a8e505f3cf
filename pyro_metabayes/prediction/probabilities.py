"""Class probabilities of one task, averaged over samples of w."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.errors import UsageError
from pyro_metabayes.likelihoods.classes import class_probabilities


class Prediction(NamedTuple):
    """Class probabilities [Q, C] of the posterior predictive, and their spread over samples of w [Q, C]."""

    probabilities: Tensor
    spread: Tensor


def check_num_samples(num_samples: int) -> None:
    """Refuse all but whole numbers from 1 up."""
    if not isinstance(num_samples, Integral) or isinstance(num_samples, bool):
        raise UsageError(f"expected num_samples to be an integer >= 1, got {num_samples!r}")
    if num_samples < 1:
        raise UsageError(f"expected num_samples >= 1, got {num_samples}")


def prediction_of(likelihood_of_query: Callable[[], TorchDistribution], dtype: torch.dtype) -> Prediction:
    """The mean over samples of the probabilities of a Categorical, batch [L, 1, Q].

    Args:
        likelihood_of_query: computes it; Pyro's validation, if it is on, refuses NaN with the values in several lines.
        dtype: of the learner, for the message.

    Raises:
        UsageError: a probability is NaN, since numbers overflow.
    """
    try:
        probabilities = class_probabilities(likelihood_of_query()).squeeze(1)  # [L, Q, C]
        finite = bool(probabilities.isfinite().all())
    except ValueError as error:
        if isinstance(error, UsageError) or "invalid values" not in str(error):
            raise
        finite = False
    if not finite:
        kind = str(dtype).removeprefix("torch.")
        raise UsageError(
            f"expected inputs whose class probabilities are finite in {kind}, got NaN, since numbers overflow; scale "
            "them as in training" + ("" if dtype == torch.float64 else ", or use learner.double()")
        )
    return Prediction(probabilities.mean(0), probabilities.std(0, correction=0))
