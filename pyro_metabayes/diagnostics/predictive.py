"""Posterior predictive checks: compare labels drawn from the model with observed labels.

pyro.infer.Predictive is called with an Observed. Called with Episodes, it would return the observed query labels as
predictions, and every check would pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_metabayes.distributions.joint import Joint, latent_with, sites_of
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.scores import log_mean_exp, masked_mean
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.model import Model

TIE = 1e-6  # nats; rounding error of float32 for equal labels


@dataclass(frozen=True)
class Draws:
    """Samples of w from one distribution, and labels drawn given each sample.

    Attributes:
        w: [L, T, *W].
        y: [L, T, Q, *Y].
        sites: the samples by latent site: "w", or the sites of a Joint.
    """

    w: Tensor
    y: Tensor
    sites: dict[str, Tensor]


@dataclass(frozen=True)
class PredictiveDraws:
    """Posterior and prior predictive draws of a batch of tasks, and the observed query labels.

    `prior` is None for a flat prior, from which nothing can be drawn.
    """

    posterior: Draws
    prior: Draws | None
    query_y: Tensor
    query_mask: Tensor


@contextmanager
def observing(model: Model, labels: str) -> Iterator[None]:
    """Context manager: the model observes the given labels: "query", "support" or "all"."""
    previous, model.observe = model.observe, labels
    try:
        yield
    finally:
        model.observe = previous


def predictive_draws(learner: MetaLearner, episodes: Episodes, num_samples: int) -> PredictiveDraws:
    """Draws of w from q(w | support, x_query) and from the prior p_psi(w), and labels drawn from p(y | x_query, w).

    q is guide.posterior, which does not depend on query labels. A conditional prior depends on the support set.
    """
    if num_samples < 1:
        raise UsageError(f"expected num_samples >= 1, got {num_samples}")
    episodes = learner.featured(episodes)
    observed = episodes.observed()
    with observing(learner.model, "query"):
        posterior = draws_of(learner, observed, num_samples)
        with torch.no_grad():
            has_prior = has_density(learner.model.prior(observed))
        prior = draws_of(learner, observed, num_samples, prior=True) if has_prior else None
    return PredictiveDraws(posterior, prior, episodes.query_y, episodes.query_mask)


class _Posterior(Messenger):
    """Draws the latent sites from the given posterior instead of the prior of the model.

    This replaces the argument `guide` of Predictive, which would first sample from the prior and fail if it is flat.
    """

    def __init__(self, posterior: TorchDistribution) -> None:
        super().__init__()
        self.posterior, self.names = posterior, sites_of(posterior).keys()
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) in self.names:
            joint = isinstance(self.posterior, Joint)
            msg["fn"] = self.posterior.given(name, self.values) if joint else self.posterior

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.values[msg["name"]] = msg["value"]


def draws_of(learner: MetaLearner, observed: Observed, num_samples: int, prior: bool = False) -> Draws:
    """Draws from the posterior, or from the prior, for tasks with features; `model.observe` must be "query"."""
    if isinstance(observed, Episodes):
        raise UsageError(
            "expected tasks without query labels, which would be returned as predictions, got Episodes; "
            "pass episodes.observed()"
        )

    def program(data: Observed) -> None:
        with nullcontext() if prior else _Posterior(learner.guide.posterior(data)):
            learner.model(data)

    samples = Predictive(program, num_samples=num_samples, parallel=True)(observed)
    latent: TorchDistribution = learner.model.prior(observed)
    sites = {name: samples[name] for name in sites_of(latent)}
    return Draws(latent_with(latent, samples), samples["query_y"].to(observed.support_y.dtype), sites)


@dataclass(frozen=True)
class Discrepancy:
    """A discrepancy T: its values T(y_rep) for replicates [L, T], and T(y) for the observed labels [T]."""

    replicated: Tensor
    observed: Tensor

    @property
    def p_values(self) -> Tensor:
        """P(T(y_rep) > T(y)) per task [T], ties counted half; near 0 or 1 if the replicates are unlike the labels."""
        difference = self.replicated - self.observed
        equal = difference.abs() <= TIE
        return torch.where(equal, 0.5, (difference > 0).to(difference.dtype)).mean(0)


@torch.no_grad()
def discrepancies(learner: MetaLearner, observed: Observed, draws: Draws, query_y: Tensor) -> dict[str, Discrepancy]:
    """NLL and joint NLL of the observed labels and of the replicates, under the draws of w.

    (Posterior predictive p-values: Gelman, Meng and Stern 1996.)

    Returns:
        nll: T(y) = -(1/Q) sum_i log (1/L) sum_l p(y_i | x_i, w_l) in nats. T(y) exceeds T(y_rep) for an overconfident
            model (p near 0), and is smaller for an underconfident model (p near 1).
        joint_nll: T(y) = -(1/Q) log (1/L) sum_l prod_i p(y_i | x_i, w_l), for all labels of a task jointly.
    """
    likelihood = learner.model.likelihood(draws.w, observed.query_x, observed)
    of_observed, *of_replicates = [_surprise(likelihood, y, observed.query_mask) for y in (query_y, *draws.y)]
    return {
        name: Discrepancy(torch.stack([values[name] for values in of_replicates]), of_observed[name])
        for name in of_observed
    }


def _surprise(likelihood: Any, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """nll and joint_nll [T] of labels [T, Q, *Y] under the mixture over draws of w, batch [L, T, Q]."""
    log_prob = likelihood.log_prob(y)
    joint = log_mean_exp((log_prob * mask).sum(-1)) / mask.sum(-1).clamp(min=1)
    return {"nll": -masked_mean(log_mean_exp(log_prob), mask), "joint_nll": -joint}
