"""The negative evidence lower bound (ELBO) of a batch of tasks, as a loss."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, ImproperUniform, MultivariateNormal, TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.divergences import (
    KL_BOUNDS,
    closed_form_kl,
    innermost,
    log_density,
    log_ratio,
    mixture_kl_bounds,
)
from pyro_metabayes.model import Model
from pyro_metabayes.objectives.objective import Objective, Stochastic, Terms, added, latent_sites, observed_sites, total


class Elbo(Objective, Trace_ELBO):
    """Negative ELBO of a batch of tasks, in nats, summed over tasks and points.

        loss = sum_t { -E_q[sum_i log p(y_ti | x_ti, w_t)] + kl_weight KL(q_t, p_psi) }

    where q_t is the approximate posterior over the weights w_t of task t, p_psi the prior, and i runs over the points
    whose labels the model observes: the query points, unless model.observe is "support" or "all". (Kingma and Welling
    2014; Hu et al. 2020, workshop version, eq. 4.)

    Args:
        particles: number of samples of w for the expectation.
        kl: estimator of the KL; a point estimate (Delta) always uses `sampled`.
            sampled: the mean of log q(w) - log p(w) over the same samples, as in Trace_ELBO. If q is the exact
                posterior, every sample gives the log evidence.
            analytic: the closed form if there is one, else `sampled`, as in TraceMeanField_ELBO. A Gaussian q with
                covariances and a diagonal Gaussian p also have a closed form.
            variational, convexity: an upper bound on the KL to a mixture (`pyro_metabayes/inference/divergences.py`).
                Then -loss is a looser bound on the log evidence.

    Raises:
        UsageError: the estimator is unknown, or is not defined for the distributions of guide and model.
    """

    name = "elbo"
    bound = True

    def __init__(self, particles: int = 1, kl: str = "sampled") -> None:
        Objective.__init__(self, particles)
        Trace_ELBO.__init__(self, num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        check_choice("objective.kl", kl, ("sampled", "analytic", *KL_BOUNDS))
        self.kl = kl

    def terms(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> Terms:
        """Compute the loss kl_weight KL - E_q[log-likelihood], the log-likelihood and the unweighted KL."""
        (data,) = args
        model_trace, guide_trace = self._traces(model, guide, data, data, **kwargs)
        weighted, unweighted, log_likelihood = [], [], []
        for name in latent_sites(guide_trace):
            latent: Any = guide_trace.nodes[name]
            kl = scale_and_mask(self._kl(latent, model_trace.nodes[name]), mask=latent["mask"])
            weighted.append(total(scale_and_mask(kl, latent["scale"])))
            unweighted.append(total(kl.detach()))
        for name in observed_sites(model_trace):
            site: Any = model_trace.nodes[name]
            log_prob = site["fn"].log_prob(site["value"])
            log_likelihood.append(total(scale_and_mask(log_prob, site["scale"], site["mask"])))
        evidence = added(log_likelihood)
        return Terms(added(weighted) - evidence, evidence.detach(), added(unweighted))

    def _kl(self, guide_site: Any, model_site: Any) -> Tensor:
        """Compute the unweighted KL: log q(w) - log p(w) [L, T] of L samples and T tasks, or a closed form [T]."""
        q, p, w = guide_site["fn"], model_site["fn"], guide_site["value"]
        if isinstance(q, Delta):  # w is the point of q; q.log_prob would only compare w with this point
            return q.log_density - log_density(p, w)
        if isinstance(innermost(q), Delta):
            return log_ratio(q, p, w)
        if self.kl in KL_BOUNDS:
            return self._bound(q, p)
        if self.kl == "analytic" and not isinstance(innermost(p), ImproperUniform):
            exact = closed_form_kl(q, p)
            if exact is not None:
                return exact
        return log_ratio(q, p, w)

    def _bound(self, q: Any, p: Any) -> Tensor:
        bounds = mixture_kl_bounds(q, p)
        if not bounds:
            raise UsageError(
                f"expected a normal posterior and a mixture prior for objective.kl={self.kl}, got "
                f"posterior {type(innermost(q)).__name__} and prior {type(innermost(p)).__name__}; use "
                "objective.kl=analytic"
            )
        return bounds[self.kl]

    def loss(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> float:
        """Compute the loss of a batch as a float, without gradients (interface of pyro.infer.SVI)."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> float:
        """Compute the loss of a batch as a float, and add gradients to the parameters (interface of SVI)."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()


def path_derivative_loss(model: Model, q: TorchDistribution, points: Observed, noise: Tensor) -> Tensor:
    """Compute the path-derivative loss of samples w ~ q.

        loss = -log p(support_y | support_x, w) - log p(w) + log q(w),   w = loc + scale_tril noise

    where loc and scale_tril are the parameters of q. The gradient of log q(w) flows through w, but not through the
    parameters of q. If q is the exact posterior, the gradient of the loss is 0 for every sample. (Roeder, Wu and
    Duvenaud, "Sticking the Landing", 2017, arXiv 1703.09194.)

    Args:
        model: the model.
        q: a Gaussian with independent outputs, batch [T], event [Y, W], for Y outputs with W weights each.
        points: T tasks; the support sets are the data.
        noise: [L, T, Y, W], standard normal, for L samples.

    Returns:
        Tensor [L, T], in nats.
    """
    gaussian: Any = innermost(q)
    w = gaussian.loc + (gaussian.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    likelihood = model.likelihood(w, points.support_x, points)
    log_likelihood = (likelihood.log_prob(points.support_y) * points.support_mask).sum(-1)
    log_prior = model.prior(points).log_prob(w)
    without_gradient = MultivariateNormal(gaussian.loc.detach(), scale_tril=gaussian.scale_tril.detach()).to_event(1)
    return without_gradient.log_prob(w) - log_prior - log_likelihood
