"""Real hierarchical data: the rows of a CSV file in groups; each group is a task."""

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
    """G groups of n_g rows y = f(x), one after the other; tasks of them are padded, and have a mask.

    features: names of the D columns of x; the first num_random of them have group-specific weights.
    splits: the groups of training, validation and test.
    scales: means and standard deviations by which the columns were standardised.
    notes: what a user should know about the file, one line each.
    levels: of the predictors that are factors.
    family: of the response; only a Gaussian one is standardised.
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
        return self.all_points(self.splits[split])

    def all_points(self, groups: Tensor | None = None) -> Episodes:
        """These groups, by default all of the file, with all their points as queries."""
        groups = torch.arange(len(self.names)) if groups is None else groups
        return RaggedTasks(self.points, groups, self.points.rows(groups), 0, len(self.points.points)).tasks(slice(None))

    def estimates(self, diagonal: bool = False) -> MixedEffects | None:
        """Maximum likelihood on the training groups, for the standardised columns; diagonal: independent effects.

        None if the likelihood has no maximum, since the effects can fit every point.
        """
        return maximum_of(self.whole(), self.num_random, diagonal)

    @property
    def scale(self) -> float:
        """Standard deviation of the response in the units of the file: those of a residual, an RMSE."""
        return self.scales.sd[-1].item()

    def estimated_settings(self) -> dict[str, Any]:
        """The settings of `load` with which another file is read in the scales of this one."""
        levels = {name: list(of) for name, of in self.levels.items()}
        return {"scales": self.scales.moments()} | ({"levels": levels} if levels else {})

    def constant_errors(self, episodes: Episodes) -> dict[str, Tensor]:
        """Squared errors [T], mean over the queries, of the mean of the training groups and of that of the support set.

        None without predictors, since that regression predicts a mean itself, and where 0 is not the grand mean.
        """
        if len(self.features) == 1 or self.family != "gaussian":
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
        group: the column that names the group.
        response: the column to predict.
        predictors: columns of numbers, or of text: factors, with an indicator of each level but the first.
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
        factors: predictors whose numbers are names of levels.
        family: of the response: "gaussian"; "bernoulli", 0 and 1; "poisson", counts. The last two are not standardised.
        scales: mean and sd of columns by name, in the units of the file; by default those of the training groups.
        levels: of the factors; by default those of the file.

    Raises:
        UsageError: a file, a column or a setting from which no regression can be learned.
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
