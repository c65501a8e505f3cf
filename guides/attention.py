"""Attention-based generator of classification weights: weights of novel classes are combinations of base weights.

Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018 (arXiv 1804.09458), section 3.2.
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.build import FromSource
from pyro_metabayes.episodes import Observed, class_sums
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasBaseClasses, HasPrototypes


class Guide(pyro_metabayes.Guide):
    """Point estimate that combines the prototype of each class with weights of similar base classes, by attention.

    q(w_c | support) = delta(phi_avg * avg_c + phi_att * att_c) for the weights w_c of class c, with

        avg_c = prototype of class c,
        att_c = mean over the support points x_i of class c of sum_b softmax_b(scale cos(Q x_i, k_b)) u_b.

    u_b are the weights of base class b, scaled to unit length. k_b is a learned key of base class b, with one entry per
    feature. phi_avg and phi_att are learned vectors of the size of u_b, starting at 1. Products with them are
    elementwise. Q is a learned affine map, starting near the identity. The base classes are those of model=lwof.

    Args:
        scale: inverse temperature of the attention before training. The inverse temperature is learned.

    Raises:
        UsageError: scale is not positive, or the model has no base classes or prototypes.
    """

    requires = (HasBaseClasses, HasPrototypes)

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_features: int,
        num_weights: int,
        num_base_classes: FromSource = 0,
        scale: float = 10.0,
    ) -> None:
        super().__init__(model)
        if scale <= 0:
            raise UsageError(f"expected guide.scale > 0, got {scale}")
        self.query = nn.Linear(num_features, num_features)
        with torch.no_grad():
            self.query.weight.copy_(torch.eye(num_features) + 1e-3 * torch.randn(num_features, num_features))
            self.query.bias.zero_()
        self.keys = nn.Parameter(torch.randn(num_base_classes, num_features) * (2 / num_features) ** 0.5)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.average_factor = nn.Parameter(torch.ones(num_weights))
        self.attention_factor = nn.Parameter(torch.ones(num_weights))

    def posterior(self, observed: Observed) -> TorchDistribution:
        average, attended = self.require(HasPrototypes).prototypes(observed), self._attended(observed)
        return Delta(self.average_factor * average + self.attention_factor * attended, event_dim=2)

    def _attended(self, observed: Observed) -> Tensor:
        """Return the attention term att_c of each class, [tasks, classes, weights per class]."""
        base = functional.normalize(self.require(HasBaseClasses).base_weights(observed), dim=-1)
        read = self._attention(observed) @ base
        sums, counts = class_sums(read, observed.support_y, observed.support_mask, observed.num_classes)
        return sums / counts.clamp(min=1)

    def _attention(self, observed: Observed) -> Tensor:
        """Return the attention of each support point to the base classes, [tasks, support points, base classes].

        The values of a support point sum to 1.
        """
        query = functional.normalize(self.query(observed.support_x), dim=-1)
        keys, base = functional.normalize(self.keys, dim=-1), observed.auxiliary.get("base")
        of_task = keys.expand(observed.num_tasks, -1, -1) if base is None else keys[base]
        return (self.log_scale.exp() * query @ of_task.mT).softmax(-1)
