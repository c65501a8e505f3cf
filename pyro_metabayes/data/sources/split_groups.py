"""Assigns groups, which are the tasks of a regression, to training, validation and test."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from pyro_metabayes.errors import UsageError


def splits_of(num_groups: int, train: float, val: float, seed: int) -> dict[str, Tensor]:
    """Assign groups to training, validation and test at random; returns the indices of the groups of each split.

    Args:
        num_groups: number of groups.
        train: fraction of the groups for training; 1: every split contains all groups.
        val: fraction of the groups for validation; 0: validation uses the training groups.
        seed: seed of the random assignment.
    """
    if not (train > 0 and val >= 0 and train + val <= 1):
        raise UsageError(
            f"expected fractions data.train > 0, data.val >= 0 and data.train + data.val <= 1, got data.train={train} "
            f"and data.val={val}; change data.train or data.val"
        )
    order = torch.randperm(num_groups, generator=Generator().manual_seed(seed))
    first, second = math.floor(train * num_groups + 0.5), math.floor((train + val) * num_groups + 0.5)
    parts = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    if train == 1.0:
        return dict.fromkeys(parts, torch.arange(num_groups))
    if empty := [name for name in ("train", "test") if not len(parts[name])]:
        raise UsageError(
            f"expected at least one group for {empty[0]}, got none of the {num_groups} groups; change data.train and "
            "data.val"
        )
    parts["val"] = parts["val"] if len(parts["val"]) else parts["train"]
    return {name: part.sort().values for name, part in parts.items()}
