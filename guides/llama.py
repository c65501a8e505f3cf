"""LLAMA: MAML with a Laplace correction in the loss, as published.

Grant et al., "Recasting Gradient-Based Meta-Learning as Hierarchical Bayes", ICLR 2018 (arXiv 1801.08930).
"""

from __future__ import annotations

from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.descent import adapted, hold_steps, step_size_for
from pyro_metabayes.inference.initialisation import initialisation_of_latent
from pyro_metabayes.inference.laplace import ggn_root, log_det_precision


class Guide(pyro_metabayes.Guide):
    """Point estimate of MAML, theta^K, with a correction in the training loss (subroutine ML-LAPLACE).

    q(w | support) = delta(theta^K), and with prior=flat the loss of a task is

        -log p(y_query | theta^K) + weight 1/2 log det H,  H = precision I + GGN.

    GGN is the generalised Gauss-Newton matrix of -log p(y_query | theta^K). So H is the curvature on the query set. The
    determinant is exact, by the matrix determinant lemma. The paper approximates the GGN by K-FAC.

    The published loss is not a Laplace approximation of the evidence: its weight is not 1, and log p(theta^K | theta^0)
    is missing. For a Laplace approximation use `guide=laplace`.

    The correction is the log density of the training posterior at theta^K. So objective=elbo,
    objective=importance_weighted and Pyro's SVI add the correction to the loss. objective=monte_carlo and
    objective=mean_score ignore the correction.

    Args:
        weight: weight of the correction 1/2 log det H; 1e-6 as published.
        precision: precision of the prior around theta^0, equal for all weights.
    The other arguments are those of `maml`.

    Raises:
        UsageError: weight < 0, precision <= 0, or a setting of the inner loop is out of range.
    """

    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_features: int,
        weight: float = 1e-6,
        precision: float = 1.0,
        first_order: bool = False,
        initialisation: str = "global",
        num_steps: int = 1,
        step_size: float | None = None,
        learn_step_size: bool = False,
    ) -> None:
        super().__init__(model)
        if weight < 0 or precision <= 0:
            raise UsageError(f"expected guide.weight >= 0 and precision > 0, got {weight=} and {precision=}")
        self.first_order, self.weight, self.precision = first_order, weight, precision
        self.start = initialisation_of_latent(initialisation, model, num_classes, num_features)
        self.num_classes = num_classes if self.start.fixed_classes else None
        hold_steps(self, num_steps, step_size_for(model, step_size), learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        theta = self._adapted(observed)
        return Delta(theta, event_dim=theta.dim() - 1)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        theta = self._adapted(episodes)
        root = ggn_root(self.model, theta, episodes.query_x, episodes.query_mask)
        half_log_det = 0.5 * log_det_precision(root, root.new_tensor(self.precision))
        return Delta(theta, self.weight * half_log_det, event_dim=theta.dim() - 1)

    def _adapted(self, observed: Observed) -> Tensor:
        """Return theta^K, the weights after K gradient steps on the support set, [tasks, *shape of w]."""
        self.check(observed)
        start = self.start(self.model, observed)
        return adapted(self.model, start, observed, self.log_step_size, self.num_steps, self.first_order)
