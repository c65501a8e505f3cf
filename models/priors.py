"""Priors over the weights of a task; a call takes the tasks and the shape [C, W]: W weights for each of C classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from pyro_metabayes.distributions.improper_uniform import ImproperUniform
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.memoise import support_encoding
from pyro_metabayes.inference.cholesky import WithoutWaiting
from pyro_metabayes.inference.shared_normal import SharedNormal
from pyro_metabayes.models.parts.set_encoder import CountAware, MeanPooled, PseudoObservations, lower_triangular
from pyro_metabayes.prior import Prior


class Flat(Prior):
    """Flat prior: p(w) is constant and improper, as in MAML, ProtoNets and published SIB.

    log p(w) counts as 0, so an ELBO has an arbitrary constant. Pyro's Predictive, which samples w, raises an error.
    """

    proper = False

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        return ImproperUniform(constraints.real, Size((observed.num_tasks,)), event_shape)


class Gaussian(Prior):
    """Diagonal Gaussian prior p_psi(w_c) = N(loc, diag(scale^2)) over the weights w_c of class c.

    loc [W] and scale [W] are learned (empirical Bayes). All tasks and all classes share them.

    Args:
        num_weights: W, the number of weights per class.
        loc: mean of every weight before training.
        scale: standard deviation of every weight before training.
        learn_scale: whether scale is learned. False for a point estimate (MAP), since a scale near 0 would be optimal.
    """

    def __init__(self, num_weights: int, loc: float = 0.0, scale: float = 0.1, learn_scale: bool = True) -> None:
        super().__init__()
        if scale <= 0:
            raise UsageError(f"expected prior.scale > 0, got {scale}")
        self.loc = nn.Parameter(torch.full((num_weights,), loc))
        self.log_scale = nn.Parameter(torch.full((num_weights,), scale).log(), requires_grad=learn_scale)

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        normal = SharedNormal(self.loc, self.log_scale.exp())
        return normal.expand(Size((observed.num_tasks, *event_shape))).to_event(2)

    def start_at(self, w: Tensor) -> None:
        if self.loc.shape == w.shape[1:]:
            self.loc.data.add_(w.squeeze(0))

    def start_at_moments(self, mean: Tensor, covariance: Tensor) -> None:
        self.loc.data.copy_(mean)
        if self.log_scale.requires_grad:
            self.log_scale.data.copy_(0.5 * covariance.diagonal().log())


class FullGaussian(Gaussian):
    """Gaussian prior with full covariance, p_psi(w_c) = N(loc, L L^T), over the W weights w_c of class c.

    loc [W] and the lower triangular L [W, W] are learned, and the same for all classes and tasks. So the weights of a
    class may be correlated. The arguments are those of `Gaussian`, without learn_scale.
    """

    def __init__(self, num_weights: int, loc: float = 0.0, scale: float = 0.1) -> None:
        super().__init__(num_weights, loc, scale)
        self.below = nn.Parameter(torch.zeros(num_weights, num_weights))  # entries of L divided by the row's diagonal

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        normal = MultivariateNormal(self.loc, scale_tril=lower_triangular(self.log_scale, self.below))
        return normal.expand(Size((observed.num_tasks, event_shape[0]))).to_event(1)

    def start_at_moments(self, mean: Tensor, covariance: Tensor) -> None:
        factor = torch.linalg.cholesky(covariance)
        super().start_at_moments(mean, torch.diag(factor.diagonal().square()))
        self.below.data.copy_((factor / factor.diagonal().unsqueeze(-1)).tril(-1))


class Mixture(Prior):
    """Mixture prior p_psi(w_c) = sum_j pi_j N(loc_j, diag(scale_j^2)) over the weights w_c of class c.

    pi, loc and scale are learned.

    Args:
        num_weights: number of weights per class.
        num_components: number of components.
        scale: initial value of every scale_j, and standard deviation of the random initial loc_j.
    """

    def __init__(self, num_weights: int, num_components: int = 16, scale: float = 0.1) -> None:
        super().__init__()
        if num_components < 1 or scale <= 0:
            raise UsageError(f"expected prior.num_components >= 1 and prior.scale > 0, got {num_components=}, {scale=}")
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(scale * torch.randn(num_components, num_weights))
        self.log_scale = nn.Parameter(torch.full((num_components, num_weights), scale).log())

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        components = Normal(self.loc, self.log_scale.exp()).to_event(1)
        mixture = MixtureSameFamily(Categorical(logits=self.logits), components)
        return mixture.expand(Size((observed.num_tasks, event_shape[0]))).to_event(1)


class Conditional(Prior):
    """Conditional Gaussian prior p_psi(w_c | support points of class c) = N(loc, diag(scale^2)) over class weights w_c.

    A set encoder computes loc and scale from the points of class c. Called with `episodes.pooled()` (support and query
    points), the prior returns SAVI's posterior, with the same encoder. In a regression each output k is encoded
    separately, from the points (x_i, y_ik).

    Args:
        num_features: number of features of a point.
        num_weights: number of weights per class.
        num_targets: number of values in one label of a regression, 0 for classes.
        num_hidden: width of the networks of the encoder; 0 for linear maps.
        scale: standard deviation of weights before training, for one point (full_covariance: no points) of the class.
        count_aware: whether natural parameters are summed over points, instead of the published mean pooling.
        full_covariance: whether covariances are full; natural parameters are then summed too.
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
            raise UsageError(f"expected prior.num_hidden >= 0 and prior.scale > 0, got {num_hidden=}, {scale=}")
        self.num_targets = num_targets
        encoder = PseudoObservations if full_covariance else CountAware if count_aware else MeanPooled
        sizes = num_features + (num_targets > 0), num_weights, num_hidden
        self.encoder = encoder(*sizes, scale, residual=num_targets == 0)

    @support_encoding
    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        if self.num_targets:
            loc, spread = self._of_outputs(observed)
        else:
            points = observed.support_x, observed.support_y, observed.support_mask
            loc, spread = self.encoder(*points, event_shape[0])
        return self.family(loc, spread)

    def family(self, loc: Tensor, spread: Tensor) -> TorchDistribution:
        """Construct the prior from loc and spread, for T tasks with W weights for each of C classes.

        loc has the shape [T, C, W]. spread has the shape [T, C, W] for scales, or [T, C, W, W] for precision matrices.
        """
        if loc.dim() == spread.dim():
            return Normal(loc, spread).to_event(2)
        with WithoutWaiting():
            return MultivariateNormal(loc, precision_matrix=spread).to_event(1)

    def _of_outputs(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """Encode each of Y outputs of a regression as a class; return loc [T, Y, W], and scale or precision of w."""
        num_tasks, _, num_targets = observed.support_y.shape
        x = observed.support_x.unsqueeze(1).expand(-1, num_targets, -1, -1)
        points = torch.cat((x, observed.support_y.mT.unsqueeze(-1)), dim=-1).flatten(0, 1)  # [T * Y, N, D + 1]
        mask = observed.support_mask.repeat_interleave(num_targets, dim=0)
        loc, spread = self.encoder(points, torch.zeros_like(mask, dtype=torch.long), mask, 1)
        shape = num_tasks, num_targets
        return loc.view(*shape, -1), spread.view(*shape, *spread.shape[2:])


class Guided(Prior):
    """Prior that equals the `posterior` of the guide, p_psi(w | support, x_query), and depends on all inputs of a task.

    This prior is for guides with another posterior in training, such as sib_savi. Such a guide calls `follow` in its
    constructor. With any other guide, a call raises a UsageError.
    """

    conditional = True

    def __init__(self) -> None:
        super().__init__()
        self._prediction: Callable[[Observed], TorchDistribution] | None = None

    def follow(self, prediction: Callable[[Observed], TorchDistribution]) -> None:
        """Set the function that returns the prior. The parameters of this function stay with the guide."""
        self._prediction = prediction

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        if self._prediction is None:
            raise UsageError("expected a guide that defines prior=guided, got another guide; set guide=sib_savi")
        return self._prediction(observed)
