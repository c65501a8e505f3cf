"""Weights of rows: a row of weight a has the noise variance of the model divided by a. Offsets of rows."""

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
    """Refuse weights [N] that no precision can have, or that differ too widely."""
    least, most = weights.min().item(), weights.max().item()
    if least <= 0:
        row = int(weights.argmin())
        raise UsageError(
            f"expected weights > 0 in column '{name}' of {file}, got {least:g} in complete row {row + 1}; a weight is "
            "the precision of a row, such as the number of measurements in its mean; drop the row, or fix it"
        )
    if most > SPREAD * least:
        raise UsageError(
            f"expected weights in column '{name}' of {file} within a factor of {SPREAD:g}, got {least:g} to {most:g}; "
            "drop rows of negligible weight"
        )


def check_offset(offset: Tensor, name: str, file: Path) -> None:
    """Refuse an offset [N] of a logit or a log rate that is hardly on its scale, such as an exposure itself."""
    least, most = offset.min().item(), offset.max().item()
    if most - least > WIDEST:
        raise UsageError(
            f"expected an offset on the scale of the linear predictor in column '{name}' of {file}, such as the "
            f"logarithm of an exposure, got numbers from {least:g} to {most:g}; take logarithms"
        )


def with_equal_precision(tasks: Tasks) -> Tasks:
    """The same regression with one noise for all rows: a row (x, r, y), r the root of its weight, is (r x, r y).

    Args:
        tasks: inputs [T, N, D + 1], whose last column is r, and labels [T, N, Y].
    """

    def scaled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        root = x[..., -1:]
        return root * x[..., :-1], root * y

    support_x, support_y = scaled(tasks.support_x, tasks.support_y)
    query_x, query_y = scaled(tasks.query_x, tasks.query_y if isinstance(tasks, Episodes) else tasks.query_x[..., :1])
    labels: dict[str, Any] = {"query_y": query_y} if isinstance(tasks, Episodes) else {}
    return replace(tasks, support_x=support_x, support_y=support_y, query_x=query_x, **labels)


def log_roots(tasks: Episodes) -> float:
    """Sum of log r over the query points: log p(y) - log p(r y), in nats."""
    root = torch.where(tasks.query_mask, tasks.query_x[..., -1], 1.0)
    return root.double().log().sum().item()
