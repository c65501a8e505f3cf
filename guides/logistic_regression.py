"""Multinomial logistic regression on the support set, with a learned Gaussian prior.

Newton's method in the space of the logits: Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press
2006, section 3.5 and algorithm 3.3.
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.inference.cholesky import cholesky
from pyro_metabayes.inference.divergences import check_gaussian
from pyro_metabayes.inference.laplace import LowRankPrecision, ggn_root

POSTERIORS = ("delta", "laplace")
SHORTER = 0.5  # ratio of successive candidate step lengths in the line search
CANDIDATES = 6  # number of candidate step lengths: 1, 1/2, ..., 1/32


class Guide(pyro_metabayes.Guide):
    """Posterior at the mode theta of p(w | support): a point estimate, or a Laplace approximation around theta.

    q(w | support) is delta(theta) or N(theta, (Lambda + GGN)^-1). GGN is the generalised Gauss-Newton matrix, and

        theta = argmax_w sum_i log softmax_{y_i}(s (v_c . x_i + b_c)) + log N(w; mu, Lambda^-1).

    The sum is over the support points. w_c = (v_c, b_c) are the direction and the offset of class c. s is the scale of
    the head. Lambda is diagonal. Training learns the prior from the loss on the query set. Newton's method with a line
    search finds theta. Training differentiates the last Newton step only. At the maximum this gives the exact gradient
    (implicit function theorem).

    Args:
        posterior: the family of q.
            `delta`: the point estimate theta, for objective=monte_carlo. This loss has no term -log p(w).
            `laplace`: the Laplace approximation around theta, for objective=elbo.
        num_steps: number of Newton steps.

    Raises:
        UsageError: a setting is out of range, the head is not linear, or the prior is not a diagonal Gaussian.
    """

    def __init__(self, model: pyro_metabayes.Model, posterior: str = "delta", num_steps: int = 12) -> None:
        super().__init__(model)
        check_choice("guide.posterior", posterior, POSTERIORS)
        if num_steps < 1:
            raise UsageError(f"expected guide.num_steps >= 1, got {num_steps}")
        linear_head(model, "guide=logistic_regression")
        self.family, self.num_steps = posterior, num_steps

    def posterior(self, observed: Observed) -> TorchDistribution:
        prior = self.model.prior(observed)
        check_gaussian(prior, "guide=logistic_regression")
        mean, variance = prior.mean, prior.variance
        phi = linear_head(self.model, "guide=logistic_regression").design(observed.support_x)
        residuals = _Newton(phi, mean, variance, observed).maximise(self.num_steps)
        theta = mean + variance * (residuals.mT @ phi)
        if self.family == "delta":
            return Delta(theta, event_dim=2)
        root = ggn_root(self.model, theta, observed.support_x, observed.support_mask)
        return LowRankPrecision(theta, 1 / variance, root, event_dim=2)


class _Newton:
    """Newton's method for coefficients a_ic of support point i and class c, [tasks, support points, classes].

    The weights are w_c = mu_c + Lambda_c^-1 phi^T a_c, where row i of phi is s (x_i, 1). The logits are f0_c + K_c a_c.
    f0_c is the prior mean of the logits, and K_c = phi Lambda_c^-1 phi^T is the prior covariance.
    """

    def __init__(self, phi: Tensor, mean: Tensor, variance: Tensor, observed: Observed) -> None:
        self.mask = observed.support_mask.unsqueeze(-1)  # [T, S, 1]
        self.kernel = torch.einsum("tnw,tcw,tmw->tcnm", phi, variance, phi)
        self.offset = phi @ mean.mT
        self.labels = functional.one_hot(observed.support_y, observed.num_classes) * self.mask

    def maximise(self, num_steps: int) -> Tensor:
        """Return the coefficients a at the maximum of the log posterior, [tasks, support points, classes]."""
        a = torch.zeros_like(self.offset)
        with torch.no_grad():
            for _ in range(num_steps - 1):
                a = self._longest(a, self._step(a))
        return self._step(a.detach())

    def _smoothed(self, a: Tensor) -> Tensor:
        """Return K_c a_c, i.e. logits minus prior mean, for coefficients a [..., tasks, support points, classes]."""
        return (self.kernel @ a.mT.unsqueeze(-1)).squeeze(-1).mT

    def _step(self, a: Tensor) -> Tensor:
        """Return the coefficients after a full step: b - E K b + E R (sum_c E_c)^-1 R^T E K b (algorithm 3.3)."""
        smoothed = self._smoothed(a)
        p = (self.offset + smoothed).softmax(-1) * self.mask
        b = p * smoothed - p * (p * smoothed).sum(-1, keepdim=True) + self.labels - p
        root = p.mT.clamp(min=torch.finfo(p.dtype).tiny).sqrt() * self.mask.mT  # [T, C, S]
        scaled = root.unsqueeze(-1) * self.kernel * root.unsqueeze(-2)
        eye = torch.eye(scaled.shape[-1], dtype=p.dtype, device=p.device)
        e = root.unsqueeze(-1) * torch.cholesky_inverse(cholesky(eye + scaled)) * root.unsqueeze(-2)
        c = (e @ self._smoothed(b).mT.unsqueeze(-1)).squeeze(-1)  # [T, C, S]
        total = e.sum(1) + eye * (~self.mask)  # masked points have rows of zeros
        common = torch.cholesky_solve(c.sum(1).unsqueeze(-1), cholesky(total)).unsqueeze(1)
        return b - c.mT + (e @ common).squeeze(-1).mT

    def _longest(self, a: Tensor, full: Tensor) -> Tensor:
        """Return a + t (full - a). Each task takes the t in {1, 1/2, ..., 1/32} with the largest log posterior."""
        lengths = SHORTER ** torch.arange(CANDIDATES, dtype=a.dtype, device=a.device)
        candidates = a + lengths.view(-1, 1, 1, 1) * (full - a)
        best = self._log_posterior(candidates).argmax(0)  # [T]
        return candidates.gather(0, best.view(1, -1, 1, 1).expand(1, *a.shape)).squeeze(0)

    def _log_posterior(self, a: Tensor) -> Tensor:
        """Return sum_i log p(y_i | logits_i) - 1/2 sum_c a_c^T K_c a_c: the log posterior up to a constant, in nats."""
        smoothed = self._smoothed(a)
        log_p = (self.offset + smoothed).log_softmax(-1)
        return (log_p * self.labels - 0.5 * a * smoothed).sum((-1, -2))
