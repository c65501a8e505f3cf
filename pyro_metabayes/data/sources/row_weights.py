"""Weights and offsets of the rows of a regression. The noise variance of a row with weight a is divided by a."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError

Tasks = TypeVar("Tasks", bound=Observed)
SPREAD = 1e10  # largest weight over the smallest, from which on single precision loses the rows of small weight

WIDEST = 30.0  # largest offset less the smallest: e^30 is 10^13


def check_weights(weights: Tensor, name: str, file: Path) -> None:
    """Check that the weights [N] of N rows are positive and within a factor of 1e10, else raise a UsageError."""
    least, most = weights.min().item(), weights.max().item()
    if least <= 0:
        row = int(weights.argmin())
        raise UsageError(
            f"expected weights > 0 in column '{name}' of {file}, got {least:g} in row {row + 1} (not counting rows "
            "with missing values); drop the row, or set its precision, such as the number of measurements in its mean"
        )
    if most > SPREAD * least:
        raise UsageError(
            f"expected weights in column '{name}' of {file} within a factor of {SPREAD:g}, got {least:g} to {most:g}; "
            "drop rows of negligible weight"
        )


def check_offset(offset: Tensor, name: str, file: Path) -> None:
    """Check that an offset [N] of N rows is on the scale of a logit or log rate, else raise a UsageError.

    The usual mistake is an exposure instead of the logarithm of the exposure.
    """
    least, most = offset.min().item(), offset.max().item()
    if most - least > WIDEST:
        raise UsageError(
            f"expected an offset on the scale of the linear predictor in column '{name}' of {file}, got numbers from "
            f"{least:g} to {most:g}; take logarithms (of exposures)"
        )


def with_equal_precision(tasks: Tasks) -> Tasks:
    """Return an equivalent regression whose rows all have the same noise.

    A row with features x, label y and weight r^2 becomes the row with features r x and label r y.

    Args:
        tasks: T tasks with N rows each. The inputs [T, N, D + 1] are the D features x and then r. The labels [T, N, Y]
            are Y numbers per row.
    """

    def scaled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        root = x[..., -1:]
        return root * x[..., :-1], root * y

    support_x, support_y = scaled(tasks.support_x, tasks.support_y)
    query_x, query_y = scaled(tasks.query_x, tasks.query_y if isinstance(tasks, Episodes) else tasks.query_x[..., :1])
    labels: dict[str, Any] = {"query_y": query_y} if isinstance(tasks, Episodes) else {}
    return replace(tasks, support_x=support_x, support_y=support_y, query_x=query_x, **labels)


def log_roots(tasks: Episodes) -> float:
    """Return log p(y) - log p(r y) in nats, summed over all query rows.

    Here y are the labels, r is the root of the weight of a row, and r y are the labels of `with_equal_precision`. The
    difference equals the sum of log r.
    """
    root = torch.where(tasks.query_mask, tasks.query_x[..., -1], 1.0)
    return root.double().log().sum().item()
