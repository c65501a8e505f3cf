"""Priors over a task's weights. Each is called with the observed part and the shape [C, W] of one task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro import distributions
from pyro.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TorchDistribution,
)
from torch import Size, Tensor, nn
from torch.distributions import constraints

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.memoise import support_encoding
from pyro_metabayes.inference.cholesky import WithoutWaiting
from pyro_metabayes.inference.shared_normal import SharedNormal
from pyro_metabayes.models.set_encoder import CountAware, MeanPooled, PseudoObservations, lower_triangular
from pyro_metabayes.prior import Prior


class ImproperUniform(distributions.ImproperUniform):
    """log p(w) = 0 everywhere, in the dtype and on the device of w: Pyro's own zeros are on the CPU always."""

    def log_prob(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - self.event_dim]
        return value.new_zeros(()).expand(torch.broadcast_shapes(batch, self.batch_shape))


class Flat(Prior):
    """p(w) constant and improper: MAML, ProtoNets and published SIB.

    No bound, entropy or KL exists, and nothing can be drawn from it: pyro's Predictive, which runs
    the model without the guide first, does not take it.
    """

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        return ImproperUniform(constraints.real, Size((observed.num_tasks,)), event_shape)


class Gaussian(Prior):
    """p_psi(w_c) = N(loc, diag(scale^2)), one loc [W] and scale [W] for all classes and tasks.

    Classes of an episode stand in random order, so a prior without a support set cannot tell them
    apart. psi = (loc, log scale) is learned: empirical Bayes.
    """

    def __init__(self, num_weights: int, loc: float = 0.0, scale: float = 0.1) -> None:
        super().__init__()
        if scale <= 0:
            raise UsageError(f"expected prior.scale > 0, got {scale}")
        self.loc = nn.Parameter(torch.full((num_weights,), loc))
        self.log_scale = nn.Parameter(torch.full((num_weights,), scale).log())

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        normal = SharedNormal(self.loc, self.log_scale.exp())
        return normal.expand(Size((observed.num_tasks, *event_shape))).to_event(2)

    def start_at(self, w: Tensor) -> None:
        if self.loc.shape == w.shape[1:]:
            self.loc.data.add_(w.squeeze(0))


class FullGaussian(Prior):
    """p_psi(w_c) = N(loc, L L^T), one loc [W] and lower triangular L [W, W] for all classes and tasks; both learned.

    The weights of one task may hang together, as random intercepts and slopes do. scale: of every weight at the start.
    """

    def __init__(self, num_weights: int, loc: float = 0.0, scale: float = 0.1) -> None:
        super().__init__()
        if scale <= 0:
            raise UsageError(f"expected prior.scale > 0, got {scale}")
        self.loc = nn.Parameter(torch.full((num_weights,), loc))
        self.log_scale = nn.Parameter(torch.full((num_weights,), scale).log())
        self.below = nn.Parameter(torch.zeros(num_weights, num_weights))  # relative to the diagonal of its row

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        normal = MultivariateNormal(self.loc, scale_tril=lower_triangular(self.log_scale, self.below))
        return normal.expand(Size((observed.num_tasks, event_shape[0]))).to_event(1)


class Mixture(Prior):
    """p_psi(w_c) = sum_j pi_j N(loc_j, diag(scale_j^2)), classes independent; all of psi is learned."""

    def __init__(self, num_weights: int, num_components: int = 16, scale: float = 0.1) -> None:
        super().__init__()
        if num_components < 1 or scale <= 0:
            got = f"{num_components} and {scale}"
            raise UsageError(f"expected prior.num_components >= 1 and prior.scale > 0, got {got}")
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(scale * torch.randn(num_components, num_weights))
        self.log_scale = nn.Parameter(torch.full((num_components, num_weights), scale).log())

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        batch = Size((observed.num_tasks, event_shape[0]))
        components = Normal(self.loc, self.log_scale.exp()).to_event(1)
        mixture = MixtureSameFamily(Categorical(logits=self.logits), components)
        return Independent(mixture.expand(batch), 1)


class Conditional(Prior):
    """p_psi(w_c | support of c) = N(loc, diag(scale^2)) from a set encoder, each class from its own points.

    Called with the pooled episodes it is SAVI's posterior: the encoder lives here, so it is shared.
    count_aware: natural parameters that add up over points, instead of the published mean pooling.
    full_covariance: those of Gaussians with all their covariances, a pseudo-observation a point; count-aware, too.
    scale: of the weights of a class with one point, before training. num_hidden: width of the encoder's
    networks, 0 for linear maps. In a regression each output is encoded by itself, from points (x_i, y_ik).
    """

    conditional = True

    def __init__(
        self,
        num_features: int,
        num_weights: int,
        num_targets: int = 0,
        num_hidden: int = 256,
        scale: float = 0.135,
        count_aware: bool = False,
        full_covariance: bool = False,
    ) -> None:
        super().__init__()
        if num_hidden < 0 or scale <= 0:
            got = f"{num_hidden} and {scale}"
            raise UsageError(f"expected prior.num_hidden >= 0 and prior.scale > 0, got {got}")
        self.num_targets = num_targets
        encoder = PseudoObservations if full_covariance else CountAware if count_aware else MeanPooled
        num_inputs = num_features + (num_targets > 0)
        self.encoder = encoder(num_inputs, num_weights, num_hidden, scale, residual=num_targets == 0)

    @support_encoding
    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        if self.num_targets:
            loc, spread = self._of_outputs(observed)
        else:
            points = observed.support_x, observed.support_y, observed.support_mask
            loc, spread = self.encoder(*points, event_shape[0])
        if loc.dim() == spread.dim():
            return Normal(loc, spread).to_event(2)
        with WithoutWaiting():
            return MultivariateNormal(loc, precision_matrix=spread).to_event(1)

    def _of_outputs(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """loc [T, Y, W] and scale, or precision [T, Y, W, W]: the outputs side by side, as sets of one class."""
        num_tasks, _, num_targets = observed.support_y.shape
        x = observed.support_x.unsqueeze(1).expand(-1, num_targets, -1, -1)
        points = torch.cat((x, observed.support_y.mT.unsqueeze(-1)), dim=-1).flatten(0, 1)  # [T * Y, N, D + 1]
        mask = observed.support_mask.repeat_interleave(num_targets, dim=0)
        loc, spread = self.encoder(points, torch.zeros_like(mask, dtype=torch.long), mask, 1)
        shape = num_tasks, num_targets
        return loc.view(*shape, -1), spread.view(*shape, *spread.shape[2:])


class Guided(Prior):
    """p_psi(w | support, x_query) = what the guide predicts with: a prior that knows all of the task but the labels.

    A guide that has a posterior of its own beside it, such as sib_savi, hands its `posterior` over when it is built.
    A guide without would have KL 0 whatever it learns.
    """

    conditional = True

    def __init__(self) -> None:
        super().__init__()
        self._prediction: Callable[[Observed], TorchDistribution] | None = None

    def follow(self, prediction: Callable[[Observed], TorchDistribution]) -> None:
        """Be this function of the observed part from now on; its parameters stay the guide's."""
        self._prediction = prediction

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        if self._prediction is None:
            raise UsageError("expected a guide that a guided prior can follow, got another; take guide=sib_savi")
        return self._prediction(observed)
