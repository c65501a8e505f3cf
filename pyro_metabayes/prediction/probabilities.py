"""Class probabilities of one task, averaged over samples of w."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.errors import UsageError
from pyro_metabayes.likelihoods.classes import class_probabilities
from pyro_metabayes.prediction.averages import spread_of_samples


class Prediction(NamedTuple):
    """Class probabilities of the posterior predictive.

    Attributes:
        probabilities: [Q, C].
        spread: [Q, C], standard deviation of the probabilities over samples of w.
    """

    probabilities: Tensor
    spread: Tensor


def check_num_samples(num_samples: int) -> None:
    """Raise a UsageError if num_samples is no integer >= 1."""
    if not isinstance(num_samples, Integral) or isinstance(num_samples, bool):
        raise UsageError(f"expected num_samples to be an integer >= 1, got {num_samples!r}")
    if num_samples < 1:
        raise UsageError(f"expected num_samples >= 1, got {num_samples}")


def prediction_of(likelihood_of_query: Callable[[], TorchDistribution], dtype: torch.dtype) -> Prediction:
    """Mean and standard deviation over samples of the class probabilities of one task.

    Args:
        likelihood_of_query: returns p(y | x_query, w), batch [L, 1, Q].
        dtype: dtype of the learner, for the message.

    Raises:
        UsageError: a probability is NaN, since numbers overflow.
    """
    probabilities = without_nan(lambda: class_probabilities(likelihood_of_query()).squeeze(1), dtype)  # [L, Q, C]
    return Prediction(probabilities.mean(0), spread_of_samples(probabilities))


def without_nan(values: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
    """The values, probabilities of classes or their logarithms.

    Args:
        values: returns them. Pyro's validation may raise an error for NaN, which is shortened to one line.
        dtype: dtype of the learner, for the message.

    Raises:
        UsageError: a value is NaN, since numbers overflow.
    """
    try:
        got = values()
        if not math.isnan(got.sum().item()):  # none is +inf, so that the sum of other values is not NaN
            return got
    except ValueError as error:
        if isinstance(error, UsageError) or "invalid values" not in str(error):
            raise
    kind = str(dtype).removeprefix("torch.")
    raise UsageError(
        f"expected inputs whose class probabilities are finite in {kind}, got NaN, since numbers overflow; scale "
        "them as in training" + ("" if dtype == torch.float64 else ", or use learner.double()")
    )
