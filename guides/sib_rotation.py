"""SIB for unsupervised domain adaptation, without a support set: a step on a rotation loss, then synthetic gradients.

Hu et al., "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients", ICLR 2020 (arXiv 2004.12696).
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.descent import descend, hold_step_size, hold_steps
from pyro_metabayes.inference.family import around, scale_of_family
from pyro_metabayes.inference.initialisation import LearnedPoint, learned_rows
from pyro_metabayes.inference.rotation import RotationHead
from pyro_metabayes.inference.synthetic_gradient import network_of, synthetic_gradient


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior of guide=sib, whose start is a learned point lambda after one step on a rotation loss.

    q(w | x_query) = N(theta^K, diag(sigma^2)). The K synthetic-gradient steps of `sib` start at

        theta^0 = lambda - rotation_step_size d L_rot(lambda) / d lambda.

    L_rot is the loss of RotationHead. This network predicts by which multiple of 90 degrees each query was rotated. The
    term rotation_weight L_rot(lambda) in the loss trains RotationHead. Before training, lambda is random. If all tasks
    have the same classes, a run first sets lambda to the weights of the pretrained classifier.

    Args:
        rotation_step_size: step size on the rotation loss; 0 omits this step and the rotation term in the loss.
        rotation_weight: weight of the rotation loss in training; 0 trains RotationHead by the outer loss alone.
        num_steps: number of synthetic-gradient steps K.
        step_size: size of the synthetic-gradient steps; the gradient is a sum over the queries, not a mean.
        learn_step_size: whether both step sizes are learned.
        posterior: the family of q: `normal`, `amortized`, `fixed` or `delta`, as in `sib`.
        scale: standard deviation sigma before training.
        synthetic_gradient: the network xi: `ordered`, `equivariant` or `marginal_aware`, as in `sib`.

    Raises:
        UsageError: a setting is out of range, or the tasks have no rotated queries.
    """

    num_steps: int
    log_step_size: Tensor
    log_rotation_step_size: Tensor
    start: LearnedPoint

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        rotation_step_size: float = 1e-3,
        rotation_weight: float = 1.0,
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = False,
        posterior: str = "normal",
        scale: float = 0.01,
        synthetic_gradient: str = "ordered",
    ) -> None:
        super().__init__(model)
        if min(rotation_step_size, rotation_weight) < 0:
            got = f"{rotation_step_size=} and {rotation_weight=}"
            raise UsageError(f"expected guide.rotation_step_size >= 0 and rotation_weight >= 0, got {got}")
        self.rotation_weight, self.num_classes = rotation_weight, num_classes
        self.transductive = num_steps > 0 or rotation_step_size > 0
        self.xi = network_of(synthetic_gradient, model, num_classes)
        self.rotation = RotationHead(num_classes) if rotation_step_size else None
        self.start = learned_rows(num_classes, num_weights)
        self.scale = scale_of_family(posterior, num_weights, scale)
        hold_steps(self, num_steps, step_size, learn_step_size)
        if rotation_step_size:
            hold_step_size(self, rotation_step_size, learn_step_size, "rotation_step_size")

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        start = self.start(self.model, observed)
        if self.rotation is not None:
            start = start - self.log_rotation_step_size.exp() * self.rotation.gradient(self.model, start, observed)

        def gradient(theta: Tensor) -> Tensor:
            return synthetic_gradient(self.model, self.xi, theta, observed)

        theta = descend(start, gradient, self.log_step_size.exp(), self.num_steps)
        return around(theta, None if self.scale is None else self.scale(start))

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return rotation_weight times the rotation loss at lambda, in nats [tasks]. This term trains RotationHead."""
        if self.rotation is None or not self.rotation_weight:
            return {}
        point = self.start(self.model, episodes)
        return {"rotation": self.rotation_weight * self.rotation.loss(self.model, point, episodes)}

    def start_at_classes(self, weights: Tensor) -> None:
        """Set lambda to weights [classes, features] of a cosine classifier, whose classes are those of all tasks."""
        self.start.start_at_classes(self.model, weights)
