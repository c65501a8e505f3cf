"""Real hierarchical data: the rows of a CSV file in groups; each group is a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.sources.chosen_columns import chosen_columns
from pyro_metabayes.data.sources.column_checks import (
    learnable_scales,
    notes_of_training,
    notes_of_units,
    refuse_unresolved,
)
from pyro_metabayes.data.sources.csv_rows import Name
from pyro_metabayes.data.sources.ragged import Ragged, RaggedTasks
from pyro_metabayes.data.sources.scales import INTERCEPT, Moments, Scales
from pyro_metabayes.data.stream import Block, check_regression
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.averages import masked_mean
from pyro_metabayes.storage.cache import data_file
from pyro_metabayes.storage.paths import user_path


@dataclass(frozen=True)
class Groups:
    """G groups of n_g rows y = f(x), one after the other; tasks of them are padded, and have a mask.

    features: names of the D columns of x; the first num_random of them have group-specific weights.
    splits: the groups of training, validation and test.
    scales: means and standard deviations by which the columns were standardised.
    notes: what a user should know about the file, one line each.
    """

    names: Sequence[str]
    features: Sequence[str]
    points: Ragged
    num_random: int
    splits: dict[str, Tensor]
    scales: Scales
    shuffle: bool = True
    notes: Sequence[str] = ()

    num_targets = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (len(self.features),)

    @property
    def context(self) -> dict[str, int]:
        """A task has its own weights for the first features only."""
        return {"num_weights": self.num_random}

    @property
    def sizes(self) -> Tensor:
        """How many rows each group has [G]."""
        return self.points.sizes

    def fingerprint(self) -> str:
        """A hash of rows, groups and splits."""
        digest = sha256(self.points.points.numpy().tobytes() + self.points.sizes.numpy().tobytes())
        for split, groups in sorted(self.splits.items()):
            digest.update(split.encode() + groups.numpy().tobytes())
        return digest.hexdigest()[:16]

    def block(self, split: str) -> int:
        """How many tasks are drawn at once: all groups of the split."""
        return len(self.splits[split])

    def whole(self, split: str = "train") -> Episodes:
        """Every group of a split once, all its points queries: the data of partial pooling."""
        groups = self.splits[split]
        return RaggedTasks(self.points, groups, self.points.rows(groups), 0, len(self.points.points)).tasks(slice(None))

    @property
    def scale(self) -> float:
        """Standard deviation of the response in the units of the file: those of a residual, an RMSE."""
        return self.scales.sd[-1].item()

    def estimated_settings(self) -> dict[str, Any]:
        """The settings of `load` with which another file is read in the scales of this one."""
        return {"scales": self.scales.moments()}

    def constant_errors(self, episodes: Episodes) -> dict[str, Tensor]:
        """Squared errors [T], mean over the queries, of the mean of the training groups and of that of the support set.

        None without predictors: that regression predicts a mean itself.
        """
        if len(self.features) == 1:
            return {}
        group_mean = masked_mean(
            episodes.support_y[..., 0], episodes.support_mask
        )  # 0, the grand mean, without support
        means = {"grand_mean": torch.zeros_like(group_mean), "group_means": group_mean}
        y, mask = episodes.query_y[..., 0], episodes.query_mask
        return {name: masked_mean((y - mean.unsqueeze(1)).square(), mask) for name, mean in means.items()}

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """As `Source.sampler`, but a block contains every group of the split once, in random order.

        The points of a group are shuffled if `shuffle` is set. The first task.shot of them are the support set, which
        never contains all points. At most task.query of the rest are queries.
        """
        check_regression(split, shape)
        groups, points = self.splits[split], self.points

        def draw(generator: Generator) -> Block:
            order = groups[torch.randperm(len(groups), generator=generator)]
            rows = points.shuffled_rows(order, generator) if self.shuffle else points.rows(order)
            return RaggedTasks(points, order, rows, shape.shot, shape.query)

        return draw


def load(
    group: Name,
    response: Name,
    predictors: Sequence[Name] = (),
    random: Sequence[Name] = (INTERCEPT,),
    path: str = "",
    table: str = "",
    shuffle: bool = True,
    train: float = 1.0,
    val: float = 0.0,
    seed: int = 0,
    missing: str = "refuse",
    decimal: str = "point",
    scales: Mapping[str, Moments] | None = None,
) -> Groups:
    """The groups of a CSV file, or of a table METABAYES_DATA/groups/TABLE.csv. All columns are standardised.

    Args:
        group: the column that names the group.
        response: the column to predict.
        predictors: columns of numbers.
        random: the predictors, and "intercept", with group-specific weights; the others have shared weights. Without
            "intercept" the lines of all groups meet at x = 0, so these predictors are divided by their standard
            deviation and not centred.
        path: the file, whose cells are separated by commas, semicolons, tabs or vertical bars.
        table: the name of a table, if there is no path.
        shuffle: false keeps the order of the points, so that the support set is the first of them (the past).
        train: fraction of the groups to learn from; with 1 all splits contain all groups, for partial pooling.
        val: fraction of the groups for validation, which are the training groups if it is 0; the rest is for test.
        seed: of the assignment of groups to splits.
        missing: "refuse" rows with gaps, or "drop" them; with "drop" a group called NA, null or the like is a gap.
        decimal: "point" or "comma".
        scales: mean and sd of columns by name, in the units of the file; by default those of the training groups.

    Raises:
        UsageError: a file, a column or a setting from which no regression can be learned.
    """
    file, given = _file(path, table), scales or {}
    chosen = chosen_columns(file, group, response, predictors, random)
    keys, values, notes = chosen.read(missing, decimal)
    names = {name: number for number, name in enumerate(dict.fromkeys(keys))}
    if len(names) < 2:
        raise UsageError(f"expected at least two groups in column '{chosen.group}' of {file}, got one; fix data.group")
    place = torch.tensor([names[key] for key in keys])
    splits = _splits(len(names), train, val, seed)
    rows = values[torch.isin(place, splits["train"])]
    standard = learnable_scales(rows, chosen.columns, chosen.random, given, file)
    points = standard.standardised(values)
    refuse_unresolved(points, chosen.columns, file)
    notes += notes_of_units(values, standard, given) if given else notes_of_training(rows, standard, file)
    ragged = Ragged.of(place, points.to(torch.get_default_dtype()))
    return Groups(list(names), chosen.features, ragged, len(chosen.random), splits, standard, shuffle, notes)


def _file(path: str, table: str) -> Path:
    if path:
        return user_path(path)
    if not table:
        raise UsageError("expected a CSV file, got no path; set data.path=FILE.csv, data.group and data.response")
    return data_file(f"groups/{table}.csv", "put the CSV file there, or take data=groups data.path=FILE.csv")


def _splits(num_groups: int, train: float, val: float, seed: int) -> dict[str, Tensor]:
    if not (train > 0 and val >= 0 and train + val <= 1):
        raise UsageError(f"expected shares train > 0, val >= 0 and train + val <= 1, got train={train} and val={val}")
    order = torch.randperm(num_groups, generator=Generator().manual_seed(seed))
    first, second = math.floor(train * num_groups + 0.5), math.floor((train + val) * num_groups + 0.5)
    parts = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    if train == 1.0:
        return dict.fromkeys(parts, torch.arange(num_groups))
    if empty := [name for name in ("train", "test") if not len(parts[name])]:
        raise UsageError(f"expected groups for {empty[0]}, got none of {num_groups}; change data.train and data.val")
    parts["val"] = parts["val"] if len(parts["val"]) else parts["train"]
    return {name: part.sort().values for name, part in parts.items()}
