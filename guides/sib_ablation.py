"""Ablations of SIB: parts of eq. 9 and of its network that `sib` fixes.

Hu et al., "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients", ICLR 2020 (arXiv 2004.12696).
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.descent import descend, hold_step_size
from pyro_metabayes.inference.family import FAMILIES, around, kl_gradient, scale_of_family
from pyro_metabayes.inference.initialisation import initialisation_of_rows
from pyro_metabayes.inference.synthetic_gradient import NETWORKS, network_of, synthetic_gradient


class Guide(pyro_metabayes.Guide):
    """q(w | support, x_query) of `sib`, with one part of it changed.

    Args:
        reduction: `sum` over the queries in a step, or their `mean`, as eq. 9 is printed.
        normalise: whether the channels of xi are normalised over the queries of a task.
        over_batch: normalise them over the queries of all tasks of a batch, as the released code does with
            more than one task per step: tasks then see each other.
        learn_scale: false keeps sigma at scale.
        inner_kl: weight of the KL in a step.
    The other arguments are those of `sib`.
    """

    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        reduction: str = "sum",
        normalise: bool = True,
        over_batch: bool = False,
        learn_scale: bool = True,
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = False,
        inner_kl: float = 0.0,
        inner_samples: int = 0,
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
    ) -> None:
        super().__init__(model)
        check_choice("guide.posterior", posterior, FAMILIES)
        check_choice("guide.initialisation", initialisation, ("support", "global"))
        check_choice("guide.synthetic_gradient", synthetic_gradient, NETWORKS)
        check_choice("guide.reduction", reduction, ("sum", "mean"))
        if min(num_steps, inner_kl, inner_samples) < 0 or scale <= 0:
            got = f"{num_steps}, {inner_kl}, {inner_samples}, {scale}"
            raise UsageError(f"expected guide.num_steps, inner_kl, inner_samples >= 0 and scale > 0, got {got}")
        self.num_steps, self.inner_kl, self.inner_samples = num_steps, inner_kl, inner_samples
        self.transductive, self.mean = num_steps > 0, reduction == "mean"
        self.xi = network_of(synthetic_gradient, model, num_classes, normalise, over_batch)
        self.start = initialisation_of_rows(initialisation, num_classes, num_weights)
        self.scale = scale_of_family(posterior, num_weights, scale)
        if self.scale is not None:
            self.scale.log_scale.requires_grad_(learn_scale)
        self.num_classes = num_classes if synthetic_gradient == "ordered" or self.start.fixed_classes else None
        hold_step_size(self, step_size, learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        start = self.start(self.model, observed)
        scale = None if self.scale is None else self.scale(start)
        num_queries = observed.query_mask.sum(-1).clamp(min=1).view(-1, 1, 1) if self.mean else 1

        def gradient(theta: Tensor) -> Tensor:
            direction = synthetic_gradient(self.model, self.xi, theta, observed, scale, self.inner_samples)
            if not self.inner_kl:
                return direction / num_queries
            return direction / num_queries + self.inner_kl * kl_gradient(theta, scale, self.model.prior(observed))

        return around(descend(start, gradient, self.log_step_size.exp(), self.num_steps), scale)
