"""MAML: the point estimate after K gradient steps on the support set from a learned initialisation.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017
(arXiv 1703.03400); as empirical Bayes: Grant et al., "Recasting Gradient-Based Meta-Learning as Hierarchical
Bayes", ICLR 2018 (arXiv 1801.08930).
"""

from __future__ import annotations

from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.descent import adapted, hold_steps, step_size_for
from pyro_metabayes.inference.initialisation import initialisation_of_latent


class Guide(pyro_metabayes.Guide):
    """q(w | support) = delta(theta^K), theta^{k+1} = theta^k - eta grad_w -(1/n) sum_i log p(y_i | x_i, theta^k),

    over the n support points. With a flat prior and the ELBO as objective the loss is that of MAML,
    -log p(y_query | theta^K). The latent that adapts holds all weights of a network (model=neural_regression), or the
    weights of the head on features of a frozen backbone (model=few_shot_classifier); the paper adapts the backbone too.

    Args:
        num_steps: number of inner steps, K.
        step_size: MAML's alpha, for the mean cross-entropy or the mean squared error: eta = alpha for classes, and
            alpha 2 noise^2 in a regression, where -log p is (y - f)^2 / (2 noise^2) up to a constant. None: the
            `inner_step_size` of the model, 0.4 for classes and 0.01 in a regression (Finn et al.).
        learn_step_size: whether alpha is learned, from step_size; a fixed alpha may change after training.
        first_order: whether the outer gradient treats each inner gradient as a constant (FOMAML).
        initialisation: theta^0. `global` is one learned point; `prior` is the mean of a Gaussian prior, which then
            joins the loss as a proximal term; `support` is the class means (Proto-MAML, Triantafillou et al. 2020).

    Raises:
        UsageError: a setting is out of range.
    """

    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_features: int,
        num_steps: int = 1,
        step_size: float | None = None,
        learn_step_size: bool = False,
        first_order: bool = False,
        initialisation: str = "global",
    ) -> None:
        super().__init__(model)
        self.first_order = first_order
        self.start = initialisation_of_latent(initialisation, model, num_classes, num_features)
        self.num_classes = num_classes if self.start.fixed_classes else None
        hold_steps(self, num_steps, step_size_for(model, step_size), learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        start = self.start(self.model, observed)
        theta = adapted(self.model, start, observed, self.log_step_size, self.num_steps, self.first_order)
        return Delta(theta, event_dim=theta.dim() - 1)
