"""Real hierarchical data: the rows of a CSV file in groups; each group is a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.sources.ragged import Ragged, RaggedTasks
from pyro_metabayes.data.sources.table import read_columns
from pyro_metabayes.data.stream import Block, check_regression
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import data_file
from pyro_metabayes.storage.paths import user_path

INTERCEPT = "intercept"  # the name of a feature that is always 1


@dataclass(frozen=True)
class Groups:
    """G groups of n_g rows y = f(x), one after the other; tasks of them are padded, and have a mask.

    features: names of the D columns of x; the first num_random of them have group-specific weights.
    splits: the groups of training, validation and test.
    units [D]: factor that brings a weight to the units of the file.
    offset, scale: mean and standard deviation by which the response was standardised.
    """

    names: Sequence[str]
    features: Sequence[str]
    points: Ragged
    num_random: int
    splits: dict[str, Tensor]
    units: Tensor
    offset: float
    scale: float
    shuffle: bool = True

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

    def in_units(self, w: Tensor) -> Tensor:
        """Weights [..., D'] of the first D' features in the units of the file; the intercept with the offset."""
        offset = torch.tensor([self.offset * (name == INTERCEPT) for name in self.features], dtype=w.dtype)
        return w * self.units[: w.shape[-1]].to(w) + offset[: w.shape[-1]].to(w)

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
    group: str,
    response: str,
    predictors: Sequence[str] = (),
    random: Sequence[str] = (INTERCEPT,),
    path: str = "",
    table: str = "",
    centre: bool = False,
    shuffle: bool = True,
    train: float = 1.0,
    val: float = 0.0,
    seed: int = 0,
) -> Groups:
    """The groups of a CSV file, or of a table METABAYES_DATA/groups/TABLE.csv.

    random: the predictors, and "intercept", with group-specific weights; the others have shared weights.
    centre: subtract the mean of every predictor, so that the intercept is the response at the means. Predictors are
        always divided by their standard deviation, and the response is standardised.
    shuffle: false keeps the order of the points, so that the support set is the first of them (the past).
    train, val: fractions of the groups, shuffled with `seed`; the rest is for test. With val=0 validation uses the
        training groups. With train=1 all splits contain all groups, for partial pooling.
    """
    features = [*random, *(name for name in (INTERCEPT, *predictors) if name not in random)]
    _check_names(random, predictors, group, response)
    columns = [name for name in features if name != INTERCEPT]
    file = _file(path, table)
    keys, rows = read_columns(file, group, [*columns, response])
    names = {name: number for number, name in enumerate(dict.fromkeys(keys))}
    if len(names) < 2:
        raise UsageError(f"expected at least two groups in column '{group}' of {file}, got one; change data.group")
    place = torch.tensor([names[key] for key in keys])
    splits = _splits(len(names), train, val, seed)
    values = torch.from_numpy(rows)
    mean, sd = _moments(values[torch.isin(place, splits["train"])], [*columns, response], file)
    inputs = (values[:, :-1] - mean[:-1] * centre) / sd[:-1]
    x = torch.ones(len(rows), len(features), dtype=torch.float64)
    x[:, [features.index(name) for name in columns]] = inputs
    units = torch.ones(len(features), dtype=torch.float64)
    units[[features.index(name) for name in columns]] = 1 / sd[:-1]
    points = torch.cat((x, (values[:, -1:] - mean[-1]) / sd[-1]), 1).to(torch.get_default_dtype())
    return Groups(
        list(names), features, Ragged.of(place, points), len(random), splits,
        units * sd[-1], mean[-1].item(), sd[-1].item(), shuffle,
    )  # fmt: skip


def _file(path: str, table: str) -> Path:
    if table:
        return data_file(f"groups/{table}.csv", "put the CSV file there, or take data=groups data.path=FILE.csv")
    if not path:
        raise UsageError("expected a CSV file, got no path; set data.path=FILE.csv, data.group and data.response")
    return user_path(path)


def _check_names(random: Sequence[str], predictors: Sequence[str], group: str, response: str) -> None:
    there = (INTERCEPT, *predictors)
    if unknown := [name for name in random if name not in there]:
        raise UsageError(f"expected data.random to name some of {', '.join(there)}, got '{unknown[0]}'")
    if not random:
        raise UsageError("expected data.random to name what differs from group to group, got nothing; take [intercept]")
    every = [*there, group, response]
    if twice := [name for name in dict.fromkeys([*every, *random]) if every.count(name) > 1 or random.count(name) > 1]:
        raise UsageError(
            f"expected each of data.group, predictors, random and response to be another column, got '{twice[0]}' "
            f"twice ('{INTERCEPT}' is the name of the constant)"
        )


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


def _moments(values: Tensor, names: Sequence[str], file: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column over the training groups; refuses a constant column."""
    mean, sd = values.mean(0), values.std(0, correction=0)
    for name, spread, size in zip(names, sd.tolist(), values.abs().amax(0).tolist(), strict=True):
        if not 1e-12 * size < spread < math.inf:
            raise UsageError(
                f"expected numbers that differ in column '{name}' of {file}, got a spread of {spread:g} in the "
                "training groups; take another column, or more groups"
            )
    return mean, sd
