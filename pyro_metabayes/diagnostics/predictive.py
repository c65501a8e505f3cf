"""Posterior predictive checks: does what the model draws look like what was observed?

Everything is drawn by pyro.infer.Predictive from an Observed. Given Episodes the site of the query labels would be
conditioned on them, each "draw" would be the labels themselves, and every check would pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.scores import log_mean_exp, masked_mean
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.model import Model

TIE = 1e-6  # nats; what float32 makes of equal labels


@dataclass(frozen=True)
class Draws:
    """Samples of one distribution of w, with the labels that each of them draws: w [L, T, *W], y [L, T, Q, *Y]."""

    w: Tensor
    y: Tensor


@dataclass(frozen=True)
class PredictiveDraws:
    """What was believed of tasks after and before their support sets, and the query labels that were observed.

    prior is None for the flat prior, which nothing can be drawn from.
    """

    posterior: Draws
    prior: Draws | None
    query_y: Tensor
    query_mask: Tensor


@contextmanager
def observing(model: Model, labels: str) -> Iterator[None]:
    """The model with another `observe` for a while: "query", "support" or "all"."""
    before, model.observe = model.observe, labels
    try:
        yield
    finally:
        model.observe = before


def predictive_draws(learner: MetaLearner, episodes: Episodes, num_samples: int) -> PredictiveDraws:
    """w ~ q(w | support, x_query) and w ~ p_psi(w), and y ~ p(y | x_query, w) of each, of a batch of tasks.

    q is guide.posterior, which sees no query label; a conditional prior has seen the support set.
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
    """Draws w from the guide's posterior where the model would draw it from its prior.

    Given a guide, Predictive runs the model without it first, which a flat prior does not bear.
    """

    def __init__(self, posterior: TorchDistribution) -> None:
        super().__init__()
        self.posterior = posterior

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "w":
            msg["fn"] = self.posterior


def draws_of(learner: MetaLearner, observed: Observed, num_samples: int, prior: bool = False) -> Draws:
    """One half of it, for tasks as model and guide take them; the model must observe the query labels."""
    if isinstance(observed, Episodes):
        raise UsageError(
            "expected tasks without their query labels, which would come back as the prediction, got Episodes; "
            "pass episodes.observed()"
        )

    def program(data: Observed) -> None:
        with nullcontext() if prior else _Posterior(learner.guide.posterior(data)):
            learner.model(data)

    drawn = Predictive(program, num_samples=num_samples, parallel=True)(observed)
    return Draws(drawn["w"], drawn["query_y"])


@dataclass(frozen=True)
class Discrepancy:
    """T(y_rep) of each replicate [L, T] and T(y) of the observed labels [T]."""

    replicated: Tensor
    observed: Tensor

    @property
    def p_values(self) -> Tensor:
        """P(T(y_rep) > T(y)), ties at half, of each task [T]: near 0 or 1 where no draw is like the labels."""
        difference = self.replicated - self.observed
        equal = difference.abs() <= TIE
        return torch.where(equal, 0.5, (difference > 0).to(difference.dtype)).mean(0)


@torch.no_grad()
def discrepancies(learner: MetaLearner, observed: Observed, draws: Draws, query_y: Tensor) -> dict[str, Discrepancy]:
    """How surprising labels are to the draws of w, for observed labels and for those that the draws themselves made.

    nll: T(y) = -(1/Q) sum_i log (1/L) sum_l p(y_i | x_i, w_l): a model that is too sure finds it larger than it
        expects (p near 0), one that is not sure enough smaller (p near 1).
    joint_nll: T(y) = -(1/Q) log (1/L) sum_l prod_i p(y_i | x_i, w_l): of all labels of a task together.
    (Posterior predictive p-values: Gelman, Meng and Stern 1996.)
    """
    likelihood = learner.model.likelihood(draws.w, observed.query_x, observed)
    each = [_surprise(likelihood, y, observed.query_mask) for y in (query_y, *draws.y)]
    return {name: Discrepancy(torch.stack([its[name] for its in each[1:]]), each[0][name]) for name in each[0]}


def _surprise(likelihood: Any, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Both [T], of labels [T, Q, *Y] under the mixture of the draws of w, batch [L, T, Q]."""
    log_prob = likelihood.log_prob(y)
    joint = log_mean_exp((log_prob * mask).sum(-1)) / mask.sum(-1).clamp(min=1)
    return {"nll": -masked_mean(log_mean_exp(log_prob), mask), "joint_nll": -joint}


def to_arviz(draws: PredictiveDraws) -> Any:
    """An ArviZ object: InferenceData of 0.2x, DataTree of 1.x, with dimensions chain, draw, task, ...

    Groups: posterior and prior (w), posterior_predictive and prior_predictive (query_y), observed_data (query_y),
    constant_data (query_mask). The draws are independent: one chain.
    """
    arviz = _arviz()
    groups: dict[str, dict[str, Any]] = {}
    for name in ("posterior", "prior"):
        if (its := getattr(draws, name)) is not None:
            groups[name] = {"w": _array(its.w.unsqueeze(0))}
            groups[f"{name}_predictive"] = {"query_y": _array(its.y.unsqueeze(0))}
    groups |= {name: {} for name in ("observed_data", "constant_data")}
    groups["observed_data"]["query_y"] = _array(draws.query_y)
    groups["constant_data"]["query_mask"] = _array(draws.query_mask)
    dims = {
        "w": ["task", *_names("row", "weight", count=draws.posterior.w.dim() - 2)],
        "query_y": ["task", "query", *_names("output", count=draws.query_y.dim() - 2)],
        "query_mask": ["task", "query"],
    }
    if int(arviz.__version__.partition(".")[0]) >= 1:
        return arviz.from_dict(groups, dims=dims)
    return arviz.from_dict(**groups, dims=dims)


def _names(*names: str, count: int) -> list[str]:
    """The last `count` of the names: a latent without rows has weights alone."""
    return list(names[len(names) - count :]) if count <= len(names) else [f"axis{i}" for i in range(count)]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0, for which this file is ready
            import arviz
    except ImportError as error:
        if error.name != "arviz":
            raise  # ArviZ is there, something that it imports is not
        raise UsageError(
            "expected ArviZ for to_arviz, found none; run: pip install -c constraints.txt -e '.[arviz]'"
        ) from None
    return arviz
