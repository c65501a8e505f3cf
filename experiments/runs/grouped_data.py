"""Runs on data in groups: checks that model and prior fit the data, and evaluation on another file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from pyro_metabayes.build import target_of
from pyro_metabayes.data.sources import groups
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.tasks import load_data
from pyro_metabayes.inference.capabilities import HasPrior, has
from pyro_metabayes.learner import MetaLearner

ROUNDING = 1e-9  # largest relative difference of scales that two machines compute from the same file


@runtime_checkable
class HasFamily(Protocol):
    """Regression model with a choice of the likelihood, such as gaussian or poisson."""

    family: str


def check_groups(config: Config, learner: MetaLearner, data: groups.Groups) -> None:
    """Raise a UsageError if model or prior ignore a property of the data."""
    _refuse_other_family(config, learner, data)
    _refuse_unread_weights(config, learner, data)
    _refuse_unread_inner_groups(learner, data)


def _refuse_other_family(config: Config, learner: MetaLearner, data: groups.Groups) -> None:
    """Check that data.family and the likelihood of the model agree. Only a Gaussian response is standardised."""
    family = learner.model.family if has(learner.model, HasFamily) else "gaussian"
    if data.family != family:
        raise UsageError(
            f"expected model=generalised_regression for data.family={data.family}, got model="
            f"{config.model['_target_']}; set data.family and model together"
        )


def _refuse_unread_weights(config: Config, learner: MetaLearner, data: groups.Groups) -> None:
    """Check that the model uses data.weights. Another model would take the weights of rows for a predictor."""
    if data.weighted and not getattr(learner.model, "weighted", False):
        raise UsageError(
            f"expected model=hierarchical_regression for data.weights, got model={config.model['_target_']}; leave "
            "model= as data=groups sets it, or remove data.weights"
        )


def _refuse_unread_inner_groups(learner: MetaLearner, data: groups.Groups) -> None:
    """Check that the prior has one sd for the inner groups of nested groups."""
    prior = learner.model.prior_over_weights if has(learner.model, HasPrior) else None
    if data.num_inner and not hasattr(prior, "num_inner"):
        raise UsageError(
            f"expected prior=nested for nested groups, {data.roles.nested}, got the prior {type(prior).__name__}; set "
            "prior=nested"
        )


def with_all_groups(config: Config, saved: Mapping[str, Any]) -> Config:
    """Return the configuration of an evaluation, changed such that a new file is not split into training and test.

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
