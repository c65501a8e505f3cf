"""Laplace approximation of the posterior around weights adapted by gradient steps.

Based on section 4 of Grant et al., "Recasting Gradient-Based Meta-Learning as Hierarchical Bayes", ICLR 2018 (arXiv
1801.08930). Here the precision of the posterior is the sum of the curvature on the support set and the prior precision.
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.descent import descend, hold_steps, loss_gradient, rate_of_mean
from pyro_metabayes.inference.divergences import check_gaussian
from pyro_metabayes.inference.laplace import LowRankPrecision, ggn_root


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior around theta^K, the weights after K gradient steps from the prior mean theta^0.

    The prior N(theta^0, Lambda^-1) is learned, with a diagonal Lambda. The posterior and the steps are

        q(w | support) = N(theta^K, (Lambda + GGN)^-1),
        theta^{k+1} = theta^k + a (1 + a Lambda)^-1 (grad_w log p(y_support | theta^k) - Lambda (theta^k - theta^0)),

    where a = eta / n for classes and a = 2 noise^2 eta / n in a regression, with n support points. GGN = sum_i J_i^T
    L_i J_i is the generalised Gauss-Newton matrix at theta^K. J_i is the derivative of the outputs of support point i
    with respect to w. L_i is the Fisher information of the label of point i about the outputs.

    The step on the log prior is implicit, since explicit steps diverge if a Lambda > 2. The negative ELBO contains
    minus the entropy of q, 1/2 log det(Lambda + GGN) up to a constant. This is the correction of LLAMA with weight 1
    and the curvature on the support set. Sampling and log det factorise a matrix with one row per support point and
    output.

    Args:
        num_steps: number of inner steps K.
        step_size: step size eta on the mean cross-entropy (classes) or mean squared error (regression).
        learn_step_size: whether eta is learned, starting at step_size. A fixed eta may be changed at evaluation.
        first_order: whether the outer gradient treats each inner gradient as a constant.

    Raises:
        UsageError: a setting is out of range, or the prior is not a diagonal Gaussian.
    """

    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_steps: int = 1,
        step_size: float = 0.01,
        learn_step_size: bool = False,
        first_order: bool = False,
    ) -> None:
        super().__init__(model)
        self.first_order = first_order
        hold_steps(self, num_steps, step_size, learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        prior = self.model.prior(observed)
        check_gaussian(prior, "guide=laplace")
        start, variance = prior.mean, prior.variance
        points = observed.support_x, observed.support_y, observed.support_mask
        explicit = rate_of_mean(self.model, self.log_step_size, observed.support_mask)

        def gradient(w: Tensor) -> Tensor:
            return loss_gradient(self.model, w, *points) + (w - start) / variance

        theta = descend(start, gradient, explicit / (1 + explicit / variance), self.num_steps, self.first_order)
        root = ggn_root(self.model, theta, observed.support_x, observed.support_mask)
        return LowRankPrecision(theta, 1 / variance, root, event_dim=theta.dim() - 1)
