"""MAML: a point mass at the end of gradient descent on the support set, from a learned initialisation.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017
(arXiv 1703.03400); as empirical Bayes: Grant et al., "Recasting Gradient-Based Meta-Learning as Hierarchical
Bayes", ICLR 2018 (arXiv 1801.08930).
"""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import Delta, ImproperUniform, TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.descent import descend, hold_step_size, loss_gradient, rate_of_mean
from pyro_metabayes.inference.divergences import innermost

INITIALISATIONS = ("global", "prior", "support")


class Guide(pyro_metabayes.Guide):
    """q(w | support) = delta(theta^K), theta^{k+1} = theta^k - eta grad_w -(1/n) sum_i log p(y_i | x_i, theta^k),

    over the n support points, theta^0 learned. With a flat prior and the ELBO as objective the loss is
    -log p(y_query | theta^K): MAML, to second order; first_order leaves the gradient of the gradient out (FOMAML).
    step_size is MAML's alpha, for the mean cross-entropy or the mean squared error: eta = alpha, or alpha times
    2 noise^2, since there -log p is (y - f)^2 / (2 noise^2). It is learned with learn_step_size.

    theta^0 is one learned point (`initialisation: global`), the mean of a Gaussian prior, which then joins the loss
    as a proximal term (`prior`), or the class means (`support`: Proto-MAML, Triantafillou et al. 2020).

    What descends is the model's latent: all weights of a network (model=neural_regression), or the weights of the
    head on features of a frozen backbone (model=few_shot_classifier), not the backbone's as in the paper.
    """

    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_features: int,
        num_steps: int = 1,
        step_size: float = 0.01,
        learn_step_size: bool = False,
        first_order: bool = False,
        initialisation: str = "global",
    ) -> None:
        super().__init__(model)
        if initialisation not in INITIALISATIONS:
            choices = ", ".join(INITIALISATIONS)
            raise UsageError(f"expected guide.initialisation to be one of {choices}, got '{initialisation}'")
        if num_steps < 0 or step_size <= 0:
            raise UsageError(f"expected guide.num_steps >= 0 and step_size > 0, got {num_steps} and {step_size}")
        self.num_steps, self.first_order, self.initialisation = num_steps, first_order, initialisation
        hold_step_size(self, step_size, learn_step_size)
        if initialisation == "global":
            self.initial = nn.Parameter(model.initial_latent(num_classes, num_features))
            self.num_classes = num_classes

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        return Delta(self.adapted(observed), event_dim=len(self.model.event_shape(observed)))

    def adapted(self, observed: Observed) -> Tensor:
        """theta^K [T, *W]."""
        start = self.start(observed)
        return descend(start, self.slope(observed, start), self.rate(observed), self.num_steps, self.first_order)

    def rate(self, observed: Observed) -> Tensor:
        """eta / n [T, 1, 1]."""
        return rate_of_mean(self.model, self.log_step_size, observed.support_mask)

    def slope(self, observed: Observed, start: Tensor) -> Callable[[Tensor], Tensor]:
        """What is descended, before the mean over the support points."""
        points = observed.support_x, observed.support_y, observed.support_mask
        return lambda w: loss_gradient(self.model, w, *points)

    def start(self, observed: Observed) -> Tensor:
        """theta^0 [T, *W]."""
        if self.initialisation == "support":
            return self.model.prototypes(observed)
        if self.initialisation == "global":
            return self.initial.expand(observed.num_tasks, *self.initial.shape)
        prior = self.model.prior(observed)
        if isinstance(innermost(prior), ImproperUniform):
            raise UsageError("expected a prior with a mean for guide.initialisation=prior; take prior=gaussian")
        return prior.mean
