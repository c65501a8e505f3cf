"""Grouped rows of a CSV file as tasks of a regression: each group is a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.sources.chosen_columns import Levels, chosen_columns
from pyro_metabayes.data.sources.column_checks import (
    learnable_scales,
    notes_of_training,
    notes_of_units,
    refuse_other_family,
    refuse_unresolved,
)
from pyro_metabayes.data.sources.header import Name, file_of
from pyro_metabayes.data.sources.ragged import Ragged, RaggedTasks
from pyro_metabayes.data.sources.scales import INTERCEPT, Moments, Scales
from pyro_metabayes.data.sources.split_groups import splits_of
from pyro_metabayes.data.stream import Block, check_regression
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.mixed_effects import MixedEffects, maximum_of
from pyro_metabayes.prediction.averages import masked_mean


@dataclass(frozen=True)
class Groups:
    """G groups of rows (x, y). Each group is a task; tasks of different sizes are padded and masked.

    names: names of the groups [G]. points: the rows, sorted by group.
    features: names of the D columns of x; the first num_random of them have group-specific weights.
    splits: the groups for training, validation and test. scales: means and standard deviations of the columns.
    shuffle: whether support points are chosen at random. notes: notes for the user. levels: levels of the factors.
    family: family of the response; only a Gaussian response is standardised.
    """

    names: Sequence[str]
    features: Sequence[str]
    points: Ragged
    num_random: int
    splits: dict[str, Tensor]
    scales: Scales
    shuffle: bool = True
    notes: Sequence[str] = ()
    levels: Levels = field(default_factory=dict)
    family: str = "gaussian"

    num_targets = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (len(self.features),)

    @property
    def context(self) -> dict[str, int]:
        """num_weights: number of group-specific weights of a task."""
        return {"num_weights": self.num_random}

    @property
    def sizes(self) -> Tensor:
        """Number of rows of each group [G]."""
        return self.points.sizes

    def fingerprint(self) -> str:
        """A hash of rows, groups and splits."""
        digest = sha256(self.points.points.numpy().tobytes() + self.points.sizes.numpy().tobytes())
        for split, groups in sorted(self.splits.items()):
            digest.update(split.encode() + groups.numpy().tobytes())
        return digest.hexdigest()[:16]

    def block(self, split: str) -> int:
        """Number of tasks that are drawn at once: all groups of the split."""
        return len(self.splits[split])

    def whole(self, split: str = "train") -> Episodes:
        """Every group of a split once, with all its points as queries: the data of partial pooling."""
        return self.all_points(self.splits[split])

    def all_points(self, groups: Tensor | None = None) -> Episodes:
        """The given groups, by default all groups of the file, with all their points as queries."""
        groups = torch.arange(len(self.names)) if groups is None else groups
        return RaggedTasks(self.points, groups, self.points.rows(groups), 0, len(self.points.points)).tasks(slice(None))

    def estimates(self, diagonal: bool = False) -> MixedEffects | None:
        """Maximum-likelihood estimates from the training groups, in standardised units; diagonal: independent effects.

        None if the likelihood has no maximum, since the effects can fit every point.
        """
        return maximum_of(self.whole(), self.num_random, diagonal)

    @property
    def scale(self) -> float:
        """Standard deviation of the response in the units of the file, by which residuals and RMSEs are multiplied."""
        return self.scales.sd[-1].item()

    def estimated_settings(self) -> dict[str, Any]:
        """Settings of `load` that apply the scales and levels of this file to another file."""
        levels = {name: list(of) for name, of in self.levels.items()}
        return {"scales": self.scales.moments()} | ({"levels": levels} if levels else {})

    def constant_errors(self, episodes: Episodes) -> dict[str, Tensor]:
        """Mean squared errors [T] of two baselines: the mean of the training groups, and that of the support set.

        {} without predictors, where the regression itself predicts a mean, and for a response that is not Gaussian.
        """
        if len(self.features) == 1 or self.family != "gaussian":
            return {}
        group_mean = masked_mean(
            episodes.support_y[..., 0], episodes.support_mask
        )  # 0 without support points, which is the grand mean
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
    group: Name | Sequence[Name],
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
    factors: Sequence[Name] = (),
    family: str = "gaussian",
    scales: Mapping[str, Moments] | None = None,
    levels: Levels | None = None,
) -> Groups:
    """The groups of a CSV file, or of a table METABAYES_DATA/groups/TABLE.csv. All columns are standardised.

    Args:
        group: the column with the name of the group.
        response: the column to predict.
        predictors: columns of numbers, or of text (factors, with an indicator for each level except the first).
        random: which of the predictors and "intercept" have group-specific weights; the others have shared weights.
            Without "intercept" the lines of all groups meet at x = 0, so these predictors are divided by their
            standard deviation and not centred.
        path: the file, whose cells are separated by commas, semicolons, tabs or vertical bars.
        table: the name of a table, if there is no path.
        shuffle: false keeps the order of the points, so that the support set is the first of them (the past).
        train: fraction of the groups for training; 1: every split contains all groups, for partial pooling.
        val: fraction of the groups for validation; 0: validation uses the training groups. The rest is for test.
        seed: seed of the assignment of groups to splits.
        missing: "refuse" or "drop" rows with missing values; with "drop" a group name such as NA or null is missing.
        decimal: "point" or "comma".
        factors: predictors whose numbers are names of levels.
        family: "gaussian" response; "bernoulli", 0 and 1; "poisson", counts. The last two are not standardised.
        scales: mean and sd of columns by name, in the units of the file; by default those of the training groups.
        levels: levels of the factors; by default those of the file.

    Raises:
        UsageError: the file, a column or a setting does not allow a regression.
    """
    file, given = file_of(path, table), scales or {}
    chosen = chosen_columns(file, group, response, predictors, random, factors)
    read = chosen.read(missing, decimal, {} if given and levels is None else levels)
    names = {name: number for number, name in enumerate(dict.fromkeys(read.keys))}
    if len(names) < 2:
        raise UsageError(f"expected at least two groups in column '{chosen.group}' of {file}, got one; fix data.group")
    place = torch.tensor([names[key] for key in read.keys])
    splits = splits_of(len(names), train, val, seed)
    rows = read.values[torch.isin(place, splits["train"])]
    refuse_other_family(read.values[:, -1], family, read.columns[-1], file)
    standard = learnable_scales(rows, read.columns, read.random, given, file).with_response_of(family)
    points = standard.standardised(read.values)
    refuse_unresolved(points, read.columns, file)
    about = notes_of_units(read.values, standard, given) if given else []
    notes = read.notes + (about if given else notes_of_training(rows, standard, file, family))
    ragged = Ragged.of(place, points.to(torch.get_default_dtype()))
    parts = ragged, len(read.random), splits, standard, shuffle, notes, read.levels, family
    return Groups(list(names), read.features, *parts)
