"""ABML (amortized Bayesian meta-learning): gradient steps on the support set fit a Gaussian posterior.

Ravi and Beatson, "Amortized Bayesian Meta-Learning", ICLR 2019.
"""

from __future__ import annotations

import torch
from pyro.distributions import Gamma, Normal, TorchDistribution
from torch import Tensor
from torch.func import grad

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.descent import descend, hold_step_size, loss_gradient, rate_of_mean
from pyro_metabayes.inference.divergences import check_gaussian, differentiable_divergence, innermost
from pyro_metabayes.seeding import task_noise


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior over the task weights w, fitted to the support set by K gradient steps from the prior.

    q(w | support) = N(mu^K, diag(sigma^K)^2). The steps start at the mean mu^0 and the standard deviation sigma^0 of
    the learned prior. Each step is a gradient step in (mu, log sigma) on the loss

        (1/n) { E_q[-log p(y_support | w)] + inner_kl KL(q, prior) },    n = number of support points.

    The step size is eta for log sigma. For mu it is eta / (1 + eta inner_kl / (n (sigma^0)^2)), i.e. the step on the KL
    is implicit. The outer loss is the negative ELBO of all labels (model.observe=all) plus the hyperprior term

        -hyper_weight log [N(mu^0; 0, I) Gamma((sigma^0)^-2; shape, rate)].

    Args:
        num_steps: number of inner steps K.
        step_size: eta for classes. In a regression eta is 2 noise^2 step_size, so that step_size refers to the mean
            squared error.
        learn_step_size: whether the step size is learned. A fixed step size may be changed at evaluation.
        inner_samples: number of Monte-Carlo samples of w per inner step.
        inner_kl: weight of the KL in an inner step. Choose it below 1: the full KL outweighs a few support points.
        hyper_weight: weight of the hyperprior, in nats per task: 1 / (number of training tasks); 0 for unlimited tasks.
        shape: shape of the Gamma hyperprior on the precisions of the prior.
        rate: rate of the Gamma hyperprior on the precisions of the prior.

    Raises:
        UsageError: a setting is out of range, or the prior is not a diagonal Gaussian.
    """

    log_step_size: Tensor
    shape: Tensor
    rate: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_steps: int = 1,
        step_size: float = 0.01,
        learn_step_size: bool = False,
        inner_samples: int = 5,
        inner_kl: float = 0.1,
        hyper_weight: float = 0.0,
        shape: float = 1.0,
        rate: float = 0.01,
    ) -> None:
        super().__init__(model)
        if num_steps < 0 or inner_samples < 1 or min(step_size, shape, rate) <= 0 or min(inner_kl, hyper_weight) < 0:
            got = f"{num_steps=}, {inner_kl=}, {hyper_weight=}, {inner_samples=}, {step_size=}, {shape=}, {rate=}"
            raise UsageError(
                "expected guide.num_steps, inner_kl, hyper_weight >= 0, inner_samples >= 1 and step_size, shape, rate "
                f"> 0, got {got}"
            )
        self.num_steps, self.inner_samples, self.inner_kl = num_steps, inner_samples, inner_kl
        self.hyper_weight = hyper_weight
        for name, value in {"shape": shape, "rate": rate}.items():  # buffers move with the device, but are not saved
            self.register_buffer(name, torch.tensor(value), persistent=False)
        hold_step_size(self, step_size, learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        prior = self._prior(observed)
        start = torch.stack((prior.mean, prior.stddev.log()))  # mu and log sigma, [2, T, *W]
        rate = self._rate(observed, prior)

        def gradient(state: Tensor) -> Tensor:
            of_kl = grad(lambda at: differentiable_divergence(_normal(at), prior).sum())(state)
            return self._likelihood_gradient(state, observed) + self.inner_kl * of_kl

        return _normal(descend(start, gradient, rate, self.num_steps))

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return the hyperprior term of the loss, in nats [tasks]; {} if hyper_weight is 0."""
        if not self.hyper_weight:
            return {}
        prior = innermost(self._prior(episodes))
        loc, precision = prior.mean[:, 0], 1 / prior.variance[:, 0]  # of class 0: prior=gaussian has equal rows
        standard = Normal(torch.zeros_like(loc), 1.0)
        log_prob = standard.log_prob(loc) + Gamma(self.shape, self.rate).log_prob(precision)
        return {"hyper_prior": -self.hyper_weight * log_prob.flatten(1).sum(1)}

    def _rate(self, observed: Observed, prior: TorchDistribution) -> Tensor:
        """Return the step sizes for mu and for log sigma, [2, tasks, *shape of w]."""
        explicit = rate_of_mean(self.model, self.log_step_size, observed.support_mask)
        of_loc = explicit / (1 + explicit * self.inner_kl / prior.variance)
        return torch.stack((of_loc, explicit.expand_as(of_loc)))

    def _likelihood_gradient(self, state: Tensor, observed: Observed) -> Tensor:
        """Return Monte-Carlo gradients of E_q[-log p(y_support | w)] in mu and log sigma, [2, tasks, *shape of w]."""
        loc, scale = state[0], state[1].exp()
        noise = task_noise((self.inner_samples, *loc.shape), loc, task_dim=1)
        points = observed.support_x, observed.support_y, observed.support_mask
        of_weights = loss_gradient(self.model, loc + scale * noise, *points)
        return torch.stack((of_weights.mean(0), (of_weights * noise).mean(0) * scale))

    def _prior(self, observed: Observed) -> TorchDistribution:
        prior = self.model.prior(observed)
        check_gaussian(prior, "guide=abml")
        return prior


def _normal(state: Tensor) -> TorchDistribution:
    return Normal(state[0], state[1].exp()).to_event(state.dim() - 2)
