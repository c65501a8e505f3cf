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
    """Point estimate theta^K of the task weights w, after K gradient steps on the support set from theta^0.

    q(w | support) = delta(theta^K). Each step of size eta uses the n support points (x_i, y_i):

        theta^{k+1} = theta^k + eta grad_w (1/n) sum_i log p(y_i | x_i, theta^k).

    With a flat prior the negative ELBO is the loss of MAML, -log p(y_query | theta^K). With model=neural_regression, w
    holds all weights of a network. With model=few_shot_classifier, w holds the weights of the head on frozen features.
    The published MAML adapts the backbone too.

    Args:
        num_steps: number of inner steps K.
        step_size: MAML's step size alpha.
            For classes, alpha refers to the mean cross-entropy, and eta = alpha.
            In a regression, alpha refers to the mean squared error, and eta = 2 noise^2 alpha.
            None: the `inner_step_size` of the model, 0.4 for classes and 0.01 in a regression (Finn et al.).
        learn_step_size: whether alpha is learned, starting at step_size. A fixed alpha may be changed at evaluation.
        first_order: whether the outer gradient treats each inner gradient as a constant (FOMAML).
        initialisation: the weights theta^0 before the first step.
            `global`: a learned vector, shared by all tasks.
            `prior`: the mean of the prior. The negative ELBO then has the term -log p(theta^K).
            `support`: the class means (Proto-MAML, Triantafillou et al. 2020), in classification.

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
