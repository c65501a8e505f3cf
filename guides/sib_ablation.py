"""Ablations of SIB: variants of the inner step (eq. 9) and of the synthetic-gradient network.

Hu et al., "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients", ICLR 2020 (arXiv 2004.12696).
Equation numbers are those of the NeurIPS 2019 MetaLearn workshop version.
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import check_choice
from pyro_metabayes.inference.descent import descend, hold_steps
from pyro_metabayes.inference.family import around, scale_of_family
from pyro_metabayes.inference.initialisation import initialisation_of_rows
from pyro_metabayes.inference.synthetic_gradient import network_of, synthetic_gradient


class Guide(pyro_metabayes.Guide):
    """Posterior q(w | support, x_query) of guide=sib, with choices of reduction and normalisation for ablations.

    The inner step has no KL and no samples of w.

    Args:
        reduction: how an inner step combines the queries.
            `sum`: a sum over the queries, as in `sib`.
            `mean`: a mean over the queries, as in the printed eq. 9.
        normalisation: the queries over which the channels of the synthetic-gradient network are normalised.
            `task`: the queries of a task, as in `sib`.
            `batch`: the queries of all tasks of a batch, as in the released code with more than one task per step. The
                predictions of a task then depend on the other tasks.
            `none`: no normalisation.
    The other arguments are those of `sib`.

    Raises:
        UsageError: a setting is out of range.
    """

    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        reduction: str = "sum",
        normalisation: str = "task",
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = False,
    ) -> None:
        super().__init__(model)
        check_choice("guide.reduction", reduction, ("sum", "mean"))
        self.transductive, self.mean = num_steps > 0, reduction == "mean"
        self.xi = network_of(synthetic_gradient, model, num_classes, normalisation)
        self.start = initialisation_of_rows(initialisation, model, num_classes, num_weights)
        self.scale = scale_of_family(posterior, num_weights, scale)
        self.num_classes = num_classes if self.xi.fixed_classes or self.start.fixed_classes else None
        hold_steps(self, num_steps, step_size, learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        start = self.start(self.model, observed)
        num_queries = observed.query_mask.sum(-1).clamp(min=1).view(-1, 1, 1) if self.mean else 1

        def gradient(theta: Tensor) -> Tensor:
            return synthetic_gradient(self.model, self.xi, theta, observed) / num_queries

        theta = descend(start, gradient, self.log_step_size.exp(), self.num_steps)
        return around(theta, None if self.scale is None else self.scale(start))
