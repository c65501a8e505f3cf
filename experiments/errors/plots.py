"""Plots of experiments.errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_metabayes.errors import how_many
from pyro_metabayes.experiments.errors.confusion import Confusion
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import Row

MOST_CLASSES = 24  # largest number of classes of the plotted matrix
COLUMNS = 6  # number of images per row
LONGEST = 22  # largest number of characters of a name in a plot


def draw_confusion(confusion: Confusion, path: Path) -> Path:
    """Plot the shares of the confusion matrix as grey values, for at most MOST_CLASSES classes with the most errors."""
    shown = confusion.hardest(MOST_CLASSES)
    size, names = len(shown.names), [_short(name) for name in shown.names]
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(3 + 0.32 * size, 2.4 + 0.32 * size)
    image = axis.imshow(shown.shares.numpy(), cmap="Greys", vmin=0, vmax=1)
    axis.set_xticks(range(size), names, rotation=90, fontsize=7)
    axis.set_yticks(range(size), names, fontsize=7)
    axis.grid(visible=False)
    axis.set(xlabel="predicted class", ylabel="true class")
    left_out = len(confusion.names) - size
    note = f"\n({how_many(left_out, 'class', 'classes')} with fewer errors left out)" if left_out else ""
    axis.set_title(f"share of the queries in tasks with both classes{note}", fontsize=9)
    figure.colorbar(image, ax=axis, shrink=0.7)
    return save_figure(figure, path)


def draw_errors(images: Tensor, rows: Sequence[Row], path: Path) -> Path:
    """Plot the images of wrongly predicted queries, titled with the true and the predicted class.

    Args:
        images: the images [queries, channels, height, width], with values from 0 to 1.
        rows: the rows of `most_confident`, in the order of the images.
        path: file of the plot.
    """
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, axes = new_figure(columns, lines)
    figure.set_size_inches(1.9 * columns, 2.2 * lines)
    for axis in axes:
        axis.axis("off")
    for axis, image, row in zip(axes, images, rows, strict=False):
        _draw_image(axis, image)
        true, predicted = _short(row["true class"]), _short(row["predicted as"])
        axis.set_title(f"{true}\nas {predicted}, {float(row['probability']):.2f}", fontsize=7)
    return save_figure(figure, path)


def _draw_image(axis: Any, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).cpu().numpy()
    axis.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
