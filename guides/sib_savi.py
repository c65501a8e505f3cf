"""SIB as the prior in SAVI's bound; the posterior takes one more step from theta^K, with the query labels.

Steps of the prior: Hu et al., ICLR 2020 (arXiv 2004.12696). The bound on p(y | x, support), in which the prior makes
the predictions: Iakovleva, Verbeek and Alahari, ICML 2020 (arXiv 2008.12037). The step preconditioned by the posterior
covariance: Khan and Rue, "The Bayesian learning rule", JMLR 2023 (arXiv 2107.04562).
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import LowRankMultivariateNormal, Normal, TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import HasPrior
from pyro_metabayes.inference.cholesky import WithoutWaiting
from pyro_metabayes.inference.descent import descend, hold_step_size, loss_gradient
from pyro_metabayes.inference.family import Scale
from pyro_metabayes.inference.initialisation import initialisation_of_rows
from pyro_metabayes.inference.synthetic_gradient import NETWORKS, network_of, synthetic_gradient


class Guide(pyro_metabayes.Guide):
    """p(w | support, x_query) = N(theta^K, Sigma) of `sib`, which predicts and is the prior (prior=guided); in training

        q(w | support, x_query, y_query) = N(theta^K - Sigma_q sum_i d -log p(y_i | x_i, theta^K) / d theta, Sigma_q),
        Sigma = diag(sigma^2),    Sigma_q = diag(1 / (1 / sigma^2 + h)),

    over the query points i, with h [W] > 0 learned: the precision that the labels of a task add. The KL measures the
    information of the labels beyond that of the inputs. For sigma -> 0 it is 0 and the bound is that of the point
    estimate, so that the best sigma can only improve on it at KL weight 1 (docs/cold-posterior.md).

    Args:
        see_labels: whether q sees the query labels. False: q = p, with KL 0; sigma then goes to 0.
        label_precision: h before training.
        num_steps: number of inner steps, K.
        step_size: eta, for a sum over queries.
        learn_step_size: whether eta is learned, from step_size; a fixed eta may change after training.
        posterior: `normal`, sigma learned and shared by the classes; `amortized`, a learned function of theta^0.
        scale: sigma before training.
        initialisation: lambda: `support` or `global`, as in sib.
        synthetic_gradient: xi: `ordered`, `equivariant` or `marginal_aware`, as in sib.
        by_entropy: whether sigma of class c is multiplied by exp(b H_c), b learned from 0. H_c is the entropy of the
            predictions at theta^K in nats, averaged over the queries weighted by their probability of class c.
        between: kappa before training; if not 0, Sigma = diag(sigma^2) + kappa^2 sum_c m_c m_c^T, m_c = theta^K_c - its
            mean over classes. In Sigma_q kappa^2 is 1 / (1 / kappa^2 + h_b), h_b > 0 learned from 1.

    Raises:
        UsageError: a setting is out of range, the prior is not `guided`, or by_entropy without classes.
    """

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        see_labels: bool = True,
        label_precision: float = 100.0,
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = True,
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
        by_entropy: bool = True,
        between: float = 0.0,
    ) -> None:
        super().__init__(model)
        check_choice("guide.posterior", posterior, ("normal", "amortized"))
        check_choice("guide.initialisation", initialisation, ("support", "global"))
        check_choice("guide.synthetic_gradient", synthetic_gradient, NETWORKS)
        if min(num_steps, between) < 0 or min(label_precision, scale) <= 0:
            got = f"{num_steps}, {between}, {label_precision} and {scale}"
            raise UsageError(f"expected guide.num_steps, between >= 0 and label_precision, scale > 0, got {got}")
        self.num_steps, self.transductive = num_steps, num_steps > 0
        self.xi = network_of(synthetic_gradient, model, num_classes)
        self.start = initialisation_of_rows(initialisation, num_classes, num_weights)
        self.scale = Scale(num_weights, scale, posterior == "amortized")
        self.num_classes = num_classes if synthetic_gradient == "ordered" or self.start.fixed_classes else None
        hold_step_size(self, step_size, learn_step_size)
        _follow(self.require(HasPrior).prior_over_weights, self)
        self.sees_query_labels = see_labels
        self.entropy_slope = nn.Parameter(torch.zeros(())) if by_entropy else None
        self.log_between = nn.Parameter(torch.tensor(between).log()) if between else None
        if see_labels:
            self.log_label_precision = nn.Parameter(torch.full((num_weights,), label_precision).log())
            self.log_between_precision = nn.Parameter(torch.zeros(())) if between else None

    def posterior(self, observed: Observed) -> TorchDistribution:
        theta, scale, spread = self._prior(observed)
        return _gaussian(theta, scale, spread, _differences(theta))

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        if not self.sees_query_labels:
            return self.posterior(episodes.observed())
        theta, scale, spread = self._prior(episodes.observed())
        points = episodes.query_x, episodes.query_y, episodes.query_mask
        slope, differences = loss_gradient(self.model, theta, *points), _differences(theta)
        scale = _narrowed(scale, self.log_label_precision)
        loc = theta - scale.square() * slope
        if spread is not None and self.log_between_precision is not None:
            spread = _narrowed(spread, self.log_between_precision)
            loc = loc - spread.square() * (slope @ differences.mT @ differences)
        return _gaussian(loc, scale, spread, differences)

    def _prior(self, observed: Observed) -> tuple[Tensor, Tensor, Tensor | None]:
        """theta^K [T, C, W], sigma [T, C, W] and kappa [T or 1, C or 1, 1], which is None for between=0."""
        self.check(observed)
        start = self.start(self.model, observed)

        def gradient(theta: Tensor) -> Tensor:
            return synthetic_gradient(self.model, self.xi, theta, observed)

        theta = descend(start, gradient, self.log_step_size.exp(), self.num_steps)
        doubt = theta.new_zeros(1, 1, 1)
        if self.entropy_slope is not None:
            doubt = (self.entropy_slope * self._entropy(theta, observed)).clamp(-5, 5)
        spread = None if self.log_between is None else (self.log_between + doubt).exp()
        return theta, self.scale(start).expand(theta.shape) * doubt.exp(), spread

    def _entropy(self, theta: Tensor, observed: Observed) -> Tensor:
        """H_c [T, C, 1]: mean entropy of the predictions, queries weighted by their probability of class c."""
        if not observed.num_classes:
            raise UsageError("expected classes for guide.by_entropy=true, got numbers; set guide.by_entropy=false")
        probs = self.model.outputs(theta, observed.query_x).softmax(-1)
        entropy = -(probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()).sum(-1, keepdim=True)
        share = probs * observed.query_mask.unsqueeze(-1)
        return (share * entropy).sum(1).div(share.sum(1).clamp(min=1e-6)).unsqueeze(-1)


def _follow(prior: Any, guide: Guide) -> None:
    """Make the predictive posterior of the guide the prior of its model."""
    if not hasattr(prior, "follow"):
        got = type(prior).__name__
        raise UsageError(
            f"expected a prior that follows the guide, got {got}; take prior=guided, in a model that has one"
        )
    prior.follow(guide.posterior)


def _differences(theta: Tensor) -> Tensor:
    """m_c [T, C, W]: theta less its mean over classes."""
    return theta - theta.mean(1, keepdim=True)


def _narrowed(scale: Tensor, log_precision: Tensor) -> Tensor:
    """The standard deviation after exp(log_precision) is added to the precision."""
    return (scale.square().reciprocal() + log_precision.exp()).rsqrt()


def _gaussian(loc: Tensor, scale: Tensor, spread: Tensor | None, differences: Tensor) -> TorchDistribution:
    """N(loc, diag(scale^2) + spread^2 sum_c m_c m_c^T), classes independent; spread None: diagonal."""
    if spread is None:
        return Normal(loc, scale).to_event(2)
    factor = (spread.unsqueeze(-1) * differences.mT.unsqueeze(1)).expand(*loc.shape, -1)
    with WithoutWaiting():
        return LowRankMultivariateNormal(loc, factor, scale.square().expand(loc.shape)).to_event(1)
