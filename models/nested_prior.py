"""Prior for nested groups: effects of a group, and one sd for the intercepts of the groups within it."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Size, Tensor, nn
from torch.nn.functional import pad

from pyro_metabayes.build import FromSource
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.parts.set_encoder import lower_triangular
from pyro_metabayes.models.priors import FullGaussian


class Nested(FullGaussian):
    """Gaussian prior N(loc, L L^T) over W - C weights of a group, and N(0, scale^2) over each of C further weights.

    The C weights are the intercepts of the inner groups of nested groups, such as the classes of a school. They are
    independent of each other and of the other weights. loc, L and the scale are learned.

    Args:
        num_weights: W, the number of weights of a group, with those of inner groups.
        num_inner: C, the number of inner groups that a group may have.
        loc: mean of each of the W - C weights before training.
        scale: standard deviation of each weight before training.

    Raises:
        UsageError: the groups of the data are not nested.
    """

    def __init__(self, num_weights: int, num_inner: FromSource = 0, loc: float = 0.0, scale: float = 0.1) -> None:
        if num_inner < 1:
            raise UsageError(
                "expected nested groups, such as data.group=[school,class] or (1 | school/class), for prior=nested, "
                "got data without them; set prior=full_gaussian"
            )
        super().__init__(num_weights - num_inner, loc, scale)
        self.num_inner = num_inner
        self.log_inner_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        log_scale = torch.cat((self.log_scale, self.log_inner_scale.expand(self.num_inner)))
        factor = lower_triangular(log_scale, pad(self.below, (0, self.num_inner, 0, self.num_inner)))
        normal = MultivariateNormal(pad(self.loc, (0, self.num_inner)), scale_tril=factor)
        return normal.expand(Size((observed.num_tasks, event_shape[0]))).to_event(1)

    def start_at_moments(self, mean: Tensor, covariance: Tensor) -> None:
        own = len(self.loc)
        super().start_at_moments(mean[:own], covariance[:own, :own])
        self.log_inner_scale.data.copy_(0.5 * covariance[-1, -1].log())
