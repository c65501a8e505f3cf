"""The most confident errors of a run as rows of a table, and their images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_metabayes.build import target_of
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources import features, image_folder
from pyro_metabayes.experiments.errors.queries import Classified
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.experiments.runs.tables import Row
from pyro_metabayes.experiments.runs.tasks import load_data


def origins_of(setup: RunSetup) -> tuple[str, Sequence[object] | None]:
    """The title of the column that says which query it is, and its entry for every row of the bank.

    The entry is the file in a folder of images, or the row in a file of features. None: the row of the bank, whose rows
    are sorted by class.
    """
    data = setup.config.data
    load, path = target_of(data, "data"), str(data.get("path", ""))
    if load is image_folder.load:
        return "file", image_folder.files(path)
    return "row", features.rows_in_file(path).tolist() if load is features.load else None


def most_confident(errors: Classified, column: str, origins: Sequence[object] | None) -> list[Row]:
    """One row per error: task, file or row, true and predicted class, probability, spread and entropy.

    Args:
        errors: the queries with a wrong prediction.
        column: title of the column of `origins`.
        origins: [M], file or row of each row of the bank; None: the row itself.
    """
    columns: dict[str, list[object]] = {
        "task": errors.task.tolist(),
        column: [row if origins is None else origins[row] for row in errors.row.tolist()],
        "true class": [errors.names[index] for index in errors.true.tolist()],
        "predicted as": [errors.names[index] for index in errors.predicted.tolist()],
    }
    for name in ("probability", "spread", "entropy"):
        columns[name] = [f"{value:.4f}" for value in getattr(errors, name).tolist()]
    return [dict(zip(columns, map(str, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def images_of(setup: RunSetup, errors: Classified) -> Tensor | None:
    """The images [N, channels, height, width] of the queries, 0 to 1; None if the data are no images."""
    bank = load_data(setup.config)
    if not isinstance(bank, Bank) or len(bank.input_shape) != 3:
        return None
    images = bank.inputs.index_select(0, errors.row)
    return images.float() / 255 if images.dtype == torch.uint8 else images.clamp(0, 1)
