"""data=mixture: blocks of training tasks that differ in source, shape, class marginal and number of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize, one_hot

from pyro_metabayes.data.mixture.bank_points import Points, bank_points
from pyro_metabayes.data.mixture.banks import FeatureRows, training_banks
from pyro_metabayes.data.mixture.disturbances import add_outliers, mix_points, transformed, with_errors
from pyro_metabayes.data.mixture.shapes import Shape, chance, integer, one_of, query_labels, random_shape, support_mask
from pyro_metabayes.data.mixture.simulator import FeatureSimulator
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

DIMENSIONS = (16, 32, 64, 128, 256, 256, 384, 512, 768)  # numbers of simulated features in training tasks
FIXED = 128  # number of features in validation and test tasks
SEVERAL = 0.1  # probability that a class of the task is the union of several classes of a data set
WRONG_LABELS, OUTLIERS = 0.15, 0.1  # probabilities that a block has wrong support labels, or outliers


def load(bank_share: float = 0.5, least_skill: float = 0.0, ambiguous: float = 0.0) -> Mixture:
    """Return the source of training tasks that mixes features of real inputs with simulated features.

    Args:
        bank_share: share of the training steps with features of real inputs; the other steps are simulated.
        least_skill: least skill of the nearest class mean, 0 to 0.9 (`Mixture`).
        ambiguous: share of the training steps of more than 2 shots with ambiguous points, 0 to 1 (`Mixture`).
    """
    check_settings(bank_share, least_skill, ambiguous)
    return Mixture(training_banks() if bank_share else [], bank_share, least_skill, ambiguous)


def check_settings(bank_share: float, least_skill: float, ambiguous: float) -> None:
    """Check that the settings of `Mixture` are within their ranges, else raise a UsageError."""
    if not 0 <= bank_share <= 1 or not 0 <= least_skill <= 0.9 or not 0 <= ambiguous <= 1:
        raise UsageError(
            "expected data.bank_share and data.ambiguous from 0 to 1, and data.least_skill from 0 to 0.9, got "
            f"bank_share={bank_share}, ambiguous={ambiguous} and least_skill={least_skill}"
        )


class Mixture:
    """Source of tasks with any number of features.

    Training tasks have random shapes. Validation and test tasks have the shape that the settings `task.*` give. Queries
    are masked where a class of a data set has too few rows (`bank_points`).

    Args:
        banks: feature data sets of real inputs; may be empty.
        bank_share: fraction of the blocks of tasks, 0 to 1, that are drawn from `banks`; the others are simulated.
        least_skill: blocks of training tasks with less skill are drawn again. Skill is (a - 1/C) / (1 - 1/C) for C
            classes, where a is the accuracy of the nearest class mean. A large value excludes overlapping classes.
        ambiguous: fraction of the blocks of training tasks with more than 2 shots, 0 to 1, in which up to a quarter of
            the points of a task are mixed with other points of the task. From one or two shots, a learner cannot see
            that a task has such points, and would be under-confident in all tasks.

    Raises:
        UsageError: a setting is out of range, or bank_share is positive although there are no banks.
    """

    num_targets = 0
    input_shape = (None,)
    random_shapes = True

    def __init__(
        self,
        banks: Sequence[FeatureRows],
        bank_share: float = 0.5,
        least_skill: float = 0.0,
        ambiguous: float = 0.0,
    ) -> None:
        check_settings(bank_share, least_skill, ambiguous)
        if bank_share and not banks:
            raise UsageError(f"expected data.bank_share=0 without feature data sets, got {bank_share}; pass banks")
        self.banks, self.bank_share = list(banks), bank_share
        self.least_skill, self.ambiguous = least_skill, ambiguous

    def block(self, split: str) -> int:
        """Return the number of tasks that are drawn together. Training tasks drawn together have the same shape."""
        return 12 if split == "train" else BLOCK

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """Return a function that draws a block of tasks of a split from a random generator.

        Training tasks have random shapes; validation and test tasks have the given shape.
        """
        if split == "train":
            return lambda generator: self.tasks(self.block(split), generator)
        shape.check_classes(split)
        fixed = Shape(shape.way, shape.shot, shape.way * shape.query)

        def draw(generator: Generator) -> Episodes:
            labels, _ = shape.query_points(generator)
            return self._drawn(fixed, labels, generator, FIXED)

        return draw

    def tasks(self, number: int, generator: Generator) -> Episodes:
        """Draw training tasks of one random shape.

        Some have unequal shots, ambiguous points, wrong support labels or outliers.
        """
        shape = random_shape(generator)
        episodes = self._drawn(shape, query_labels(shape, number, generator), generator)
        while self.least_skill and skill_of(episodes) < self.least_skill:
            episodes = self._drawn(shape, query_labels(shape, number, generator), generator)
        episodes.support_mask = support_mask(shape, number, generator)
        if shape.shot > 2 and self.ambiguous and chance(self.ambiguous, generator):
            mix_points(episodes, generator)
        if shape.shot > 2 and chance(WRONG_LABELS, generator):
            episodes.support_y = with_errors(episodes.support_y, shape, generator)
        if chance(OUTLIERS, generator):
            for x in (episodes.support_x, episodes.query_x):
                add_outliers(x, generator)
        return episodes

    def _drawn(self, shape: Shape, query_y: Tensor, generator: Generator, dimension: int | None = None) -> Episodes:
        support_y = torch.arange(shape.way).repeat_interleave(shape.shot).expand(len(query_y), -1)
        labels = torch.cat((support_y, query_y), 1)
        simulator = FeatureSimulator(generator)
        drawn = self._of_bank(shape, labels, generator) if chance(self.bank_share, generator) else None
        if drawn is None:
            x = simulator.points(labels, shape.way, dimension or one_of(DIMENSIONS, generator))
            drawn = Points(x, torch.ones_like(query_y, dtype=torch.bool))
        elif dimension is not None:
            drawn = drawn._replace(x=drawn.x @ simulator.projection(drawn.x.shape[-1], dimension))
        else:
            drawn = drawn._replace(x=transformed(drawn.x, simulator, generator))
        size = support_y.shape[1]
        return Episodes(
            support_x=drawn.x[:, :size],
            support_y=support_y.contiguous(),
            query_x=drawn.x[:, size:],
            query_y=query_y.contiguous(),
            query_mask=drawn.query_mask,
            num_classes=shape.way,
        )

    def _of_bank(self, shape: Shape, labels: Tensor, generator: Generator) -> Points | None:
        """Draw points of a random data set; None if the data set has too few classes.

        Each class of the task is one class of the data set, or the union of several.
        """
        bank = self.banks[integer(len(self.banks), generator)]
        merged = 1 + integer(3, generator) if chance(SEVERAL, generator) else 1
        return bank_points(bank, shape, labels, merged, generator)


def skill_of(episodes: Episodes) -> float:
    """Return the skill of the nearest class mean by cosine similarity: 0 for guessing, 1 at best.

    Skill is (a - 1/C) / (1 - 1/C) for C classes, where a is the accuracy.
    """
    points = normalize(torch.cat((episodes.support_x, episodes.query_x), 1), dim=-1)
    points = points - points.mean(1, keepdim=True)
    size = episodes.support_x.shape[1]
    labels = one_hot(episodes.support_y, episodes.num_classes).to(points.dtype)
    means = normalize(labels.mT @ points[:, :size], dim=-1)
    hits = (points[:, size:] @ means.mT).argmax(-1) == episodes.query_y
    accuracy = hits[episodes.query_mask].float().mean().item()
    return (accuracy * episodes.num_classes - 1) / (episodes.num_classes - 1)
