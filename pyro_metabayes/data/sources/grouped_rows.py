"""Grouped rows of a table as regression tasks: each group, such as a school, is a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.sources.chosen_columns import Levels, Rows
from pyro_metabayes.data.sources.inner_groups import with_indicators
from pyro_metabayes.data.sources.ragged import Ragged, RaggedTasks
from pyro_metabayes.data.sources.roles import Roles
from pyro_metabayes.data.sources.row_points import points_of
from pyro_metabayes.data.sources.row_weights import Tasks, log_roots, with_equal_precision
from pyro_metabayes.data.sources.scales import Scales
from pyro_metabayes.data.stream import Block, check_regression
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.exact.estimation_errors import EstimationErrors, estimation_errors
from pyro_metabayes.exact.mixed_effects import MixedEffects, maximum_of
from pyro_metabayes.prediction.averages import masked_mean


@dataclass(frozen=True)
class Groups:
    """Source of regression tasks: G groups of rows (x, y), one task per group, padded and masked to one size.

    names: names of the groups [G].
    features: names of the D features in x; the first num_random of them have group-specific weights. With nested
        groups, the last num_inner of these are the indicators of inner groups.
    points: the rows, sorted by group.
    splits: the groups for training, validation and test.
    scales: means and standard deviations of the columns.
    shuffle: whether support points are chosen at random.
    notes: notes for the user.
    levels: levels of the factors.
    family: family of the response; only a Gaussian response is standardised.
    roles: the columns that were read.
    num_inner: largest number of inner groups in a group; 0 without nested groups.
    inner_names: names of the inner groups of each group.

    With data.weights, x has one more column: the root of (weight of the row / mean weight of the training rows).

    With data.offset, the offset is subtracted from a Gaussian y. For another family, x has one more column: the offset
    minus the mean offset of the training rows.
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
    roles: Roles = Roles("", "")  # noqa: RUF009  # frozen
    num_inner: int = 0
    inner_names: Sequence[Sequence[str]] = ()

    num_targets = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.points.points.shape[1] - 1,)

    @property
    def context(self) -> dict[str, int]:
        """Counts for constructors of models, by name. All counts except num_weights are left out if they are 0.

        num_weights: number of group-specific weights. num_inner: as in `Groups`. row_weights: 1 if rows have weights.
        row_offsets: 1 if x has a column of offsets.
        """
        offset = self.roles.offset is not None and self.family != "gaussian"
        beside = {"row_weights": int(self.weighted), "row_offsets": int(offset), "num_inner": self.num_inner}
        return {"num_weights": self.num_random} | {name: count for name, count in beside.items() if count}

    @property
    def num_own(self) -> int:
        """Number of group-specific weights without those of inner groups."""
        return self.num_random - self.num_inner

    @property
    def weighted(self) -> bool:
        """Whether rows have weights (data.weights)."""
        return self.roles.weights is not None

    @property
    def sizes(self) -> Tensor:
        """Number of rows of each group [G]."""
        return self.points.sizes

    def fingerprint(self) -> str:
        """Return a hash of rows, groups and splits."""
        digest = sha256(self.points.points.numpy().tobytes() + self.points.sizes.numpy().tobytes())
        for split, groups in sorted(self.splits.items()):
            digest.update(split.encode() + groups.numpy().tobytes())
        return digest.hexdigest()[:16]

    def block(self, split: str) -> int:
        """Return the number of tasks that are drawn together: all groups of the split."""
        return len(self.splits[split])

    def whole(self, split: str = "train") -> Episodes:
        """Return every group of a split as a task with all points as queries: the data of partial pooling."""
        return self.all_points(self.splits[split])

    def all_points(self, groups: Tensor | None = None) -> Episodes:
        """Return the given groups (None: all groups) as tasks with all points as queries."""
        groups = torch.arange(len(self.names)) if groups is None else groups
        return RaggedTasks(self.points, groups, self.points.rows(groups), 0, len(self.points.points)).tasks(slice(None))

    def with_equal_precision(self, tasks: Tasks) -> Tasks:
        """Return an equivalent regression without weights, in which all rows have the same noise."""
        return with_equal_precision(tasks) if self.weighted else tasks

    def estimates(self, diagonal: bool = False) -> MixedEffects | None:
        """Compute maximum-likelihood estimates from the training groups, in standardised units.

        The result is None if the group-specific effects can fit every point: the likelihood then has no maximum.

        Args:
            diagonal: whether the group-specific effects are independent.
        """
        found = maximum_of(self.with_equal_precision(self.whole()), self.num_random, diagonal, num_inner=self.num_inner)
        return None if found is None else self.of_labels(found)

    def estimation_errors(self, diagonal: bool = False) -> EstimationErrors | None:
        """Compute the errors of `estimates`, in standardised units; None if the likelihood has no maximum."""
        return estimation_errors(self.with_equal_precision(self.whole()), self.num_random, diagonal, self.num_inner)

    def of_labels(self, fitted: MixedEffects) -> MixedEffects:
        """Return a fit to data of `with_equal_precision`, with the log-likelihood of the original labels."""
        if not self.weighted:
            return fitted
        return replace(fitted, log_likelihood=fitted.log_likelihood + log_roots(self.whole()))

    @property
    def scale(self) -> float:
        """Factor that converts residuals and RMSEs to the units of the file: the standard deviation of the response."""
        return self.scales.sd[-1].item()

    @property
    def noise_scale(self) -> float:
        """Factor that converts the noise sd of the model to the noise sd of a row of weight 1, in units of the file."""
        return self.scale * self.scales.weight**0.5

    def with_indicators(self, rows: Rows) -> Rows:
        """Add the indicators of inner groups, if there are any, to the rows of a file."""
        return with_indicators(rows, self.num_inner, "the file") if self.num_inner else rows

    def inputs_and_labels(self, rows: Rows) -> Tensor:
        """Convert N rows of `with_indicators` to points [N, D' + 1]: D' input columns and the response."""
        return points_of(rows, self.scales, self.family)

    def estimated_settings(self) -> dict[str, Any]:
        """Return the settings of `groups.load` that apply the scales and levels of this file to another file."""
        levels = {name: list(of) for name, of in self.levels.items()}
        beside = {str(self.roles.weights): self.scales.weight, str(self.roles.offset): self.scales.offset}
        means = {str(name): {"mean": beside[str(name)]} for name in self.roles.beside}
        indicators = self.features[self.num_own : self.num_random]
        moments = {name: of for name, of in self.scales.moments().items() if name not in indicators}
        settings = {"scales": moments | means, "levels": levels, "num_inner": self.num_inner}
        return {name: value for name, value in settings.items() if value}

    def constant_errors(self, episodes: Episodes) -> dict[str, Tensor]:
        """Compute the mean squared errors [T] of two baselines on T tasks.

        One baseline predicts the mean of the training groups, the other the mean of the support set. The result is {}
        if the response is not Gaussian. It is {} also without predictors, since the regression then predicts a mean.
        """
        if len(self.features) == 1 or self.family != "gaussian":
            return {}
        group_mean = masked_mean(
            episodes.support_y[..., 0], episodes.support_mask
        )  # 0, the grand mean, if there are no support points
        means = {"grand_mean": torch.zeros_like(group_mean), "group_means": group_mean}
        y, mask = episodes.query_y[..., 0], episodes.query_mask
        return {name: masked_mean((y - mean.unsqueeze(1)).square(), mask) for name, mean in means.items()}

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """Return a function that draws every group of a split once, in random order, as a block of tasks.

        The points of a group are shuffled if `shuffle` is set. The first task.shot points are the support set; at least
        one point is left as a query. Of the remaining points, at most task.query are queries.
        """
        check_regression(split, shape)
        groups, points = self.splits[split], self.points

        def draw(generator: Generator) -> Block:
            order = groups[torch.randperm(len(groups), generator=generator)]
            rows = points.shuffled_rows(order, generator) if self.shuffle else points.rows(order)
            return RaggedTasks(points, order, rows, shape.shot, shape.query)

        return draw
