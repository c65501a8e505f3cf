"""Priors over the weights of a task, called with an Observed and the shape [C, W] of the weights of one task."""

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
    """p(w) constant and improper, the prior of MAML, ProtoNets and published SIB.

    The ELBO, the entropy and the KL do not exist. The prior cannot be sampled, so pyro's Predictive, which first runs
    the model, raises an error.
    """

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        return ImproperUniform(constraints.real, Size((observed.num_tasks,)), event_shape)


class Gaussian(Prior):
    """p_psi(w_c) = N(loc, diag(scale^2)), one loc [W] and scale [W] for all classes and tasks.

    The order of the classes in a task is random, so a prior that ignores the support set is the same for all classes.
    psi = (loc, log scale) is learned: empirical Bayes.

    Args:
        num_weights: W.
        loc: mean of every weight before training.
        scale: standard deviation of every weight before training.
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

    def start_at_moments(self, mean: Tensor, covariance: Tensor) -> None:
        self.loc.data.copy_(mean)
        self.log_scale.data.copy_(0.5 * covariance.diagonal().log())


class FullGaussian(Gaussian):
    """p_psi(w_c) = N(loc, L L^T), one loc [W] and lower triangular L [W, W] for all classes and tasks; both learned.

    The weights of one task may be correlated, as random intercepts and slopes are. The arguments are those of Gaussian.
    """

    def __init__(self, num_weights: int, loc: float = 0.0, scale: float = 0.1) -> None:
        super().__init__(num_weights, loc, scale)
        self.below = nn.Parameter(torch.zeros(num_weights, num_weights))  # each row in units of its diagonal entry

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        normal = MultivariateNormal(self.loc, scale_tril=lower_triangular(self.log_scale, self.below))
        return normal.expand(Size((observed.num_tasks, event_shape[0]))).to_event(1)

    def start_at_moments(self, mean: Tensor, covariance: Tensor) -> None:
        factor = torch.linalg.cholesky(covariance)
        super().start_at_moments(mean, torch.diag(factor.diagonal().square()))
        self.below.data.copy_((factor / factor.diagonal().unsqueeze(-1)).tril(-1))


class Mixture(Prior):
    """p_psi(w_c) = sum_j pi_j N(loc_j, diag(scale_j^2)), classes independent; psi = (pi, loc, scale) is learned.

    Args:
        num_weights: W.
        num_components: number of components.
        scale: initial value of every scale_j, and standard deviation of the random initial loc_j.
    """

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
        return mixture.expand(batch).to_event(1)


class Conditional(Prior):
    """p_psi(w_c | support of c) = N(loc, diag(scale^2)) from a set encoder of the points of class c.

    Called with pooled episodes, it returns SAVI's posterior, which has the same encoder. In a regression each output k
    is encoded separately, from points (x_i, y_ik).

    Args:
        num_features: D.
        num_weights: W.
        num_targets: Y in a regression, 0 for classes.
        num_hidden: width of the networks of the encoder; 0 for linear maps.
        scale: standard deviation of the weights of a class with one point, before training.
        count_aware: whether natural parameters are summed over points, instead of the published mean pooling.
        full_covariance: whether covariances are full, from one pseudo-observation per point; these are summed too.
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
        return self.family(loc, spread)

    def family(self, loc: Tensor, spread: Tensor) -> TorchDistribution:
        """The distribution with loc [T, C, W], and scale [T, C, W] or precision [T, C, W, W], from the encoder."""
        if loc.dim() == spread.dim():
            return Normal(loc, spread).to_event(2)
        with WithoutWaiting():
            return MultivariateNormal(loc, precision_matrix=spread).to_event(1)

    def _of_outputs(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """loc [T, Y, W] and scale [T, Y, W] or precision [T, Y, W, W]; each output is encoded as a set of one class."""
        num_tasks, _, num_targets = observed.support_y.shape
        x = observed.support_x.unsqueeze(1).expand(-1, num_targets, -1, -1)
        points = torch.cat((x, observed.support_y.mT.unsqueeze(-1)), dim=-1).flatten(0, 1)  # [T * Y, N, D + 1]
        mask = observed.support_mask.repeat_interleave(num_targets, dim=0)
        loc, spread = self.encoder(points, torch.zeros_like(mask, dtype=torch.long), mask, 1)
        shape = num_tasks, num_targets
        return loc.view(*shape, -1), spread.view(*shape, *spread.shape[2:])


class Guided(Prior):
    """p_psi(w | support, x_query) = the `posterior` of the guide: a prior that depends on all inputs of the task.

    A guide whose training_posterior differs from its posterior, such as sib_savi, passes `posterior` when it is built.
    For any other guide the KL would always be 0, so that such a guide is refused.
    """

    conditional = True

    def __init__(self) -> None:
        super().__init__()
        self._prediction: Callable[[Observed], TorchDistribution] | None = None

    def follow(self, prediction: Callable[[Observed], TorchDistribution]) -> None:
        """Set the function that gives the prior; its parameters remain those of the guide."""
        self._prediction = prediction

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        if self._prediction is None:
            raise UsageError("expected a guide that defines prior=guided, got another; take guide=sib_savi")
        return self._prediction(observed)
