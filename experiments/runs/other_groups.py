"""Evaluation on another file than the training file, with all groups of the new file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pyro_metabayes.build import target_of
from pyro_metabayes.data.sources import groups
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.tasks import load_data

ROUNDING = 1e-9  # largest relative difference of scales that two machines compute from the same file


def with_all_groups(config: Config, saved: Mapping[str, Any]) -> Config:
    """Return the configuration of an evaluation, in which a new file is not split into training and test groups.

    A copy of the training file is split as in training.

    Args:
        config: the configuration of the evaluation.
        saved: the configuration of the run.
    """
    path = config.data.get("path")
    if target_of(config.data, "data") is not groups.load or config.data.get("train", 1.0) == 1.0:
        return config
    if path == saved.get("data", {}).get("path") or _has_training_groups(config):
        return config
    print(f"note: {path} is not the training file; all its groups are evaluated, not only those of one split")
    return replace(config, data=config.data | {"train": 1.0, "val": 0.0})


def _has_training_groups(config: Config) -> bool:
    """Return whether a file is a copy of the training file, judged by equal means and sds of the columns."""
    with suppress(UsageError):
        data = load_data(replace(config, estimated={}))
        assert isinstance(data, groups.Groups)
        return _close(data.estimated_settings()["scales"], config.estimated.get("scales", {}))
    return False


def _close(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> bool:
    def near(x: float, y: float) -> bool:
        return abs(x - y) <= ROUNDING * max(abs(x), abs(y))

    return one.keys() == other.keys() and all(
        one[column].keys() == other[column].keys()
        and all(near(value, other[column][name]) for name, value in one[column].items())
        for column in one
    )
