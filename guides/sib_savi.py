"""SIB as the conditional prior in SAVI's bound. The posterior is one step with the query labels from this prior.

Steps of the prior: Hu et al., ICLR 2020 (arXiv 2004.12696). Bound: Iakovleva, Verbeek and Alahari, ICML 2020 (arXiv
2008.12037). Step preconditioned by the posterior covariance: Khan and Rue, JMLR 2023 (arXiv 2107.04562).
"""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import FollowsGuide, HasPrior
from pyro_metabayes.inference.descent import descend, hold_steps, loss_gradient
from pyro_metabayes.inference.family import ClassCovariance, Scale, class_entropies
from pyro_metabayes.inference.initialisation import initialisation_of_rows
from pyro_metabayes.inference.synthetic_gradient import network_of, synthetic_gradient


class Guide(pyro_metabayes.Guide):
    """Posterior after one step with the query labels. The step starts at the posterior of SIB, which is the prior.

    Predictions use the prior p(w | support, x_query) = N(theta^K, Sigma), with prior=guided. theta^K are the weights
    after the K steps of `sib`. The posterior in training uses the query labels:

        q(w | support, x_query, y_query) = N(theta^K - Sigma_q sum_i d -log p(y_i | x_i, theta^K) / d theta, Sigma_q),
        Sigma = diag(sigma^2),    Sigma_q = diag(1 / (1 / sigma^2 + h)),    h > 0 learned for each weight.

    h is the precision that the labels of a task add. KL(q, p) is the information in the labels beyond the inputs. As
    sigma -> 0, the KL tends to 0, and the bound tends to the bound of the point estimate (docs/cold-posterior.md).

    Args:
        label_precision: precision h before training. With 0, q = p and the KL is 0, so training drives sigma to 0.
        posterior: the family of q: `normal` or `amortized`, as in `sib`.
        by_entropy: whether sigma and kappa of class c are multiplied by exp(b H_c); for classes only. b is learned and
            starts at 0. H_c is the predictive entropy at theta^K, averaged over queries with weights p(class c).
        between: scale kappa, before training, of noise along the differences between classes; 0 omits this noise. The
            noise adds kappa^2 sum_c m_c m_c^T to Sigma, where m_c = theta^K_c - mean over classes. For Sigma_q, kappa^2
            becomes 1 / (1 / kappa^2 + h_b). h_b is learned and starts at 1.
    The other arguments are those of `sib`; the step size is learned.

    Raises:
        UsageError: a setting is out of range, or the prior is not prior=guided.
    """

    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        label_precision: float = 100.0,
        num_steps: int = 3,
        step_size: float = 1e-3,
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
        by_entropy: bool = True,
        between: float = 0.0,
    ) -> None:
        super().__init__(model)
        check_choice("guide.posterior", posterior, ("normal", "amortized"))
        if min(label_precision, between) < 0:
            got = f"{label_precision=} and {between=}"
            raise UsageError(f"expected guide.label_precision >= 0 and between >= 0, got {got}")
        self.transductive = num_steps > 0
        self.xi = network_of(synthetic_gradient, model, num_classes)
        self.start = initialisation_of_rows(initialisation, model, num_classes, num_weights)
        self.scale = Scale(num_weights, scale, posterior == "amortized")
        self.num_classes = num_classes if self.xi.fixed_classes or self.start.fixed_classes else None
        hold_steps(self, num_steps, step_size, learned=True)
        prior = self.require(HasPrior).prior_over_weights
        if not isinstance(prior, FollowsGuide):
            raise UsageError(f"expected the posterior of SIB as prior, got {type(prior).__name__}; take prior=guided")
        prior.follow(self.posterior)
        self.sees_query_labels = label_precision > 0
        self.entropy_slope = nn.Parameter(torch.zeros(())) if by_entropy else None
        self.log_between = nn.Parameter(torch.tensor(between).log()) if between else None
        if self.sees_query_labels:
            self.log_label_precision = nn.Parameter(torch.full((num_weights,), label_precision).log())
            self.log_between_precision = nn.Parameter(torch.zeros(())) if between else None

    def posterior(self, observed: Observed) -> TorchDistribution:
        theta, scale, spread = self._prior(observed)
        return ClassCovariance.at(theta, scale, spread).around(theta)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        if not self.sees_query_labels:
            return self.posterior(episodes.observed())
        theta, scale, spread = self._prior(episodes.observed())
        slope = loss_gradient(self.model, theta, episodes.query_x, episodes.query_y, episodes.query_mask)
        covariance = ClassCovariance.at(theta, scale, spread)
        covariance = covariance.with_precision(self.log_label_precision, self.log_between_precision)
        return covariance.around(covariance.step(theta, slope))

    def _prior(self, observed: Observed) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return theta^K and sigma [tasks, classes, weights per class], kappa [tasks or 1, classes or 1, 1] or None."""
        self.check(observed)
        if self.entropy_slope is not None and not observed.num_classes:
            raise UsageError("expected class labels for guide.by_entropy=true, got numbers; set guide.by_entropy=false")
        start = self.start(self.model, observed)

        def gradient(theta: Tensor) -> Tensor:
            return synthetic_gradient(self.model, self.xi, theta, observed)

        theta = descend(start, gradient, self.log_step_size.exp(), self.num_steps)
        doubt = theta.new_zeros(1, 1, 1)
        if self.entropy_slope is not None:
            doubt = (self.entropy_slope * class_entropies(self.model, theta, observed)).clamp(-5, 5)
        spread = None if self.log_between is None else (self.log_between + doubt).exp()
        return theta, self.scale(start).expand(theta.shape) * doubt.exp(), spread
