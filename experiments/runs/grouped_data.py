"""Runs on data in groups: checks that model and prior fit the data, likelihoods, and evaluation on another file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch.distributions import MultivariateNormal, Normal

from pyro_metabayes.build import target_of
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources import groups
from pyro_metabayes.data.stream import Source
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.tasks import load_data
from pyro_metabayes.inference.capabilities import HasPrior, IntegratesGaussian, has
from pyro_metabayes.inference.divergences import innermost
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


def groups_in(data: Bank | Source, config: Config) -> groups.Groups:
    """Return the data of a run; raise a UsageError if they are not those of data=groups."""
    if not isinstance(data, groups.Groups):
        raise UsageError(f"expected a run on data=groups, got data={config.choices.get('data')}; give another run")
    return data


def _refuse_other_family(config: Config, learner: MetaLearner, data: groups.Groups) -> None:
    """Check that data.family and the likelihood of the model agree. Only a Gaussian response is standardised."""
    family = learner.model.family if has(learner.model, HasFamily) else "gaussian"
    if data.family != family:
        raise UsageError(
            f"expected model=generalised_regression for data.family={data.family}, got model="
            f"{config.model['_target_']}; set data.family and model together"
        )


def _refuse_unread_weights(config: Config, learner: MetaLearner, data: groups.Groups) -> None:
    """Check that the model uses data.weights. Another model would use the row weights as a predictor."""
    if data.weighted and not getattr(learner.model, "weighted", False):
        raise UsageError(
            f"expected model=hierarchical_regression for data.weights, got model={config.model['_target_']}; leave "
            "model= as data=groups sets it, or remove data.weights"
        )


def _refuse_unread_inner_groups(learner: MetaLearner, data: groups.Groups) -> None:
    """Check that the prior has an sd for the inner groups if the groups are nested."""
    prior = learner.model.prior_over_weights if has(learner.model, HasPrior) else None
    if data.num_inner and not hasattr(prior, "num_inner"):
        raise UsageError(
            f"expected prior=nested for nested groups, {data.roles.nested}, got the prior {type(prior).__name__}; set "
            "prior=nested"
        )


@torch.no_grad()
def has_independent_effects(learner: MetaLearner, source: groups.Groups) -> bool:
    """Return whether the prior fixes the covariances of the effects of a group at 0."""
    return isinstance(innermost(learner.model.prior(source.whole().observed())), Normal)


def reads_new_groups(config: Config, saved: Mapping[str, Any]) -> bool:
    """Return whether a run on data=groups is evaluated on a file without its training groups.

    Args:
        config: the configuration of the evaluation.
        saved: the configuration of the run.
    """
    if target_of(config.data, "data") is not groups.load:
        return False
    return config.data.get("path") != saved.get("data", {}).get("path") and not _has_training_groups(config)


def with_all_groups(config: Config) -> Config:
    """Return the configuration of an evaluation of a new file, changed such that all its groups are evaluated."""
    if config.data.get("train", 1.0) == 1.0:
        return config
    path = config.data.get("path")
    print(f"note: {path} is not the training file; all its groups are evaluated, not only those of one split")
    return replace(config, data=config.data | {"train": 1.0, "val": 0.0})


def evaluated_groups(source: object, split: str, new_data: bool) -> str | None:
    """Return whether the groups of a split are "training" groups or "new" groups; None if the data have no groups.

    Args:
        source: the source of the tasks.
        split: the evaluated split.
        new_data: whether the source is a file without training groups.
    """
    if not isinstance(source, groups.Groups):
        return None
    trained = torch.isin(source.splits[split], source.splits["train"]).all()
    return "training" if trained and not new_data else "new"


@torch.no_grad()
def log_likelihoods(source: object, learner: MetaLearner, device: torch.device) -> dict[str, float] | None:
    """Return the log-likelihood of the training groups under the learned prior, and its closed-form maximum.

    Both are in nats, for the response in the units of the file: n log(sd) is subtracted from the log-likelihood of n
    standardised values. A prior that depends on the support set is evaluated with an empty support set. The result is
    None if model or prior have no closed form, or the data have no groups.
    """
    model = learner.model
    if not isinstance(source, groups.Groups) or not isinstance(model, IntegratesGaussian) or not model.canonical:
        return None
    episodes = source.whole().to(device)
    prior = model.prior(episodes.observed())
    if not isinstance(innermost(prior), Normal | MultivariateNormal):
        return None
    best = source.estimates(diagonal=isinstance(innermost(prior), Normal))
    if best is None:
        return None
    learned = model.log_predictive(prior, episodes).double().sum().item()
    units = int(episodes.query_mask.sum()) * math.log(source.scale)
    return {"learned": learned - units, "closed_form": best.log_likelihood - units}


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
