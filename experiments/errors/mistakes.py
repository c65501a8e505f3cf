"""Most confident errors of a run as rows of a table, and their images."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.experiments.errors.queries import Classified
from pyro_metabayes.experiments.runs.tables import Row


def most_confident(bank: Bank, errors: Classified) -> list[Row]:
    """Return one row per error: task, file or row, true and predicted class, probability, spread and entropy.

    Args:
        bank: the data set of the run.
        errors: the queries with a wrong prediction.
    """
    columns: dict[str, list[object]] = {
        "task": errors.task.tolist(),
        "input": [f"row {row}" if bank.origin is None else bank.origin(row) for row in errors.row.tolist()],
        "true class": [errors.names[index] for index in errors.true.tolist()],
        "predicted as": [errors.names[index] for index in errors.predicted.tolist()],
    }
    for name in ("probability", "spread", "entropy"):
        columns[name] = [f"{value:.4f}" for value in getattr(errors, name).tolist()]
    return [dict(zip(columns, map(str, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def images_of(bank: Bank, errors: Classified) -> Tensor | None:
    """Return the images of the queries, [queries, channels, height, width] in 0 to 1; None if inputs are not images."""
    if len(bank.input_shape) != 3:
        return None
    images = bank.inputs.index_select(0, errors.row)
    return images.float() / 255 if images.dtype == torch.uint8 else images.clamp(0, 1)
