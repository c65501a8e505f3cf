"""Posterior predictive checks: compare labels drawn from the model with observed labels.

Pass Predictive an Observed (tasks without query labels), not Episodes (tasks with query labels). With Episodes,
Predictive returns the observed query labels as predictions, and every check passes.
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
    """L draws of w from the prior or the posterior of T tasks, and query labels drawn given each draw of w.

    Attributes:
        w: [L, T, *W]; *W is the shape of w.
        y: [L, T, Q] for Q queries, or [L, T, Q, Y] for labels of Y numbers.
        sites: the draws by latent site; the only site is "w" if the latent is not a Joint.
    """

    w: Tensor
    y: Tensor
    sites: dict[str, Tensor]


@dataclass(frozen=True)
class PredictiveDraws:
    """Posterior and prior predictive draws for T tasks, and the observed query labels.

    Attributes:
        posterior: draws under guide.posterior.
        prior: draws under the prior; None for a flat prior, which cannot be sampled.
        query_y: observed labels, [T, Q] classes or [T, Q, Y] numbers.
        query_mask: [T, Q], False for masked queries.
    """

    posterior: Draws
    prior: Draws | None
    query_y: Tensor
    query_mask: Tensor


@contextmanager
def observing(model: Model, labels: str) -> Iterator[None]:
    """Context manager: set model.observe, the labels on which the model conditions ("query", "support" or "all")."""
    previous, model.observe = model.observe, labels
    try:
        yield
    finally:
        model.observe = previous


def predictive_draws(learner: MetaLearner, episodes: Episodes, num_samples: int) -> PredictiveDraws:
    """Draw w from q(w | support, x_query) and from the prior p(w), and labels from p(y | x_query, w).

    q is guide.posterior, which does not depend on query labels. A conditional prior depends on the support set.
    """
    if num_samples < 1:
        raise UsageError(f"expected num_samples >= 1, got {num_samples}; pass a larger num_samples")
    episodes = learner.featured(episodes)
    observed = episodes.observed()
    with observing(learner.model, "query"):
        posterior = draws_of(learner, observed, num_samples)
        with torch.no_grad():
            has_prior = has_density(learner.model.prior(observed))
        prior = draws_of(learner, observed, num_samples, prior=True) if has_prior else None
    return PredictiveDraws(posterior, prior, episodes.query_y, episodes.query_mask)


class _Posterior(Messenger):
    """Effect handler that draws the latent sites from a posterior instead of the prior of the model.

    It replaces the argument `guide` of Predictive. With a guide, Predictive samples the prior first, and a flat prior
    cannot be sampled.
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
    """Draw w from the posterior or the prior, and query labels given w.

    Args:
        learner: a learner with `model.observe` set to "query".
        observed: T tasks with features as inputs.
        num_samples: number of draws.
        prior: True: draw w from the prior; False: from the posterior.

    Raises:
        UsageError: the tasks are Episodes.
    """
    if isinstance(observed, Episodes):
        raise UsageError("expected tasks without query labels (Observed), got Episodes; pass episodes.observed()")

    def program(data: Observed) -> None:
        with nullcontext() if prior else _Posterior(learner.guide.posterior(data)):
            learner.model(data)

    samples = Predictive(program, num_samples=num_samples, parallel=True)(observed)
    latent: TorchDistribution = learner.model.prior(observed)
    sites = {name: samples[name] for name in sites_of(latent)}
    return Draws(latent_with(latent, samples), samples["query_y"].to(observed.support_y.dtype), sites)


@dataclass(frozen=True)
class Discrepancy:
    """Values of a discrepancy d(y) for replicated and for observed labels of T tasks.

    Attributes:
        replicated: d(y_rep) [R, T], for R draws y_rep of the labels from the model.
        observed: d(y) [T], for the observed labels y.
    """

    replicated: Tensor
    observed: Tensor

    @property
    def p_values(self) -> Tensor:
        """P(d(y_rep) > d(y)) per task [T], ties counted half; values near 0 or 1 show a misfit of the model."""
        difference = self.replicated - self.observed
        equal = difference.abs() <= TIE
        return torch.where(equal, 0.5, (difference > 0).to(difference.dtype)).mean(0)


@torch.no_grad()
def discrepancies(learner: MetaLearner, observed: Observed, draws: Draws, query_y: Tensor) -> dict[str, Discrepancy]:
    """Compute two discrepancies, nll and joint_nll, of the observed labels y and of labels y_rep from the model.

    They serve posterior predictive p-values (Gelman, Meng and Stern 1996). The first L draws of w score all labels. The
    labels of the other draws are the replicates y_rep. Replicates must not be scored by the draws from which they come:
    they would look too likely, and p-values of a true model would not be uniform.

    Args:
        learner: the learner whose model has the likelihood.
        observed: T tasks with features as inputs and Q queries each.
        draws: 2 L or 2 L + 1 draws of w, and the labels drawn given each.
        query_y: the observed labels y.

    Returns:
        nll: -(1/Q) sum_i log (1/L) sum_l p(y_i | x_i, w_l) in nats. The p-value is near 0 if the model is
            overconfident, and near 1 if the model is underconfident.
        joint_nll: -(1/Q) log (1/L) sum_l prod_i p(y_i | x_i, w_l) in nats, for all labels of a task jointly. This
            overestimates the joint NLL.
    """
    half = len(draws.w) // 2
    likelihood = learner.model.likelihood(draws.w[:half], observed.query_x, observed)
    of_observed, *of_replicates = [_surprise(likelihood, y, observed.query_mask) for y in (query_y, *draws.y[half:])]
    return {
        name: Discrepancy(torch.stack([values[name] for values in of_replicates]), of_observed[name])
        for name in of_observed
    }


def _surprise(likelihood: Any, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Compute nll and joint_nll of labels y per task; the first axis of `likelihood` runs over draws of w."""
    log_prob = likelihood.log_prob(y)
    joint = log_mean_exp((log_prob * mask).sum(-1)) / mask.sum(-1).clamp(min=1)
    return {"nll": -masked_mean(log_mean_exp(log_prob), mask), "joint_nll": -joint}
