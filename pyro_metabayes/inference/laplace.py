"""Laplace's approximation for few points and many weights. Factorised matrices have one row per point and output."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, Poisson, constraints, register_kl

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.cholesky import cholesky, half_log_det
from pyro_metabayes.inference.divergences import innermost, kl_to_diagonal
from pyro_metabayes.model import Model

Shape = Size | list[int] | tuple[int, ...]


def ggn_root(model: Model, w: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Compute a root U [T, *W, N * M] of the generalised Gauss-Newton matrix of -log p(y | x, w).

        U U^T = sum_i J_i^T F_i J_i,   J_i = d outputs_i / d w

    F_i is the Fisher information of label i about the outputs of point i. Each point has M columns of U: those of the
    root of F_i (`fisher_root`). The columns of a masked point are 0. (Schraudolph 2002; Martens 2020.)

    Args:
        model: a model whose likelihood has a known Fisher information (`fisher_root`).
        w: weights [T, *W] of T tasks.
        x: inputs [T, N, *X] of N points per task.
        mask: [T, N], False for points that are left out.
    """
    alone = w.repeat_interleave(x.shape[1], dim=0)  # [T * N, *W]
    outputs, pullback = model.outputs_and_pullback(alone, x.flatten(0, 1).unsqueeze(1))
    root = fisher_root(model, outputs)  # [T * N, 1, *Y, M]
    root = root * mask.reshape(-1, *[1] * (root.dim() - 1))
    columns = torch.func.vmap(pullback, in_dims=-1, out_dims=-1)(root)  # [T * N, *W, M]
    return columns.unflatten(0, x.shape[:2]).movedim(1, -2).flatten(-2)


def fisher_root(model: Model, outputs: Tensor) -> Tensor:
    """Compute a root S [..., *Y, M] of the Fisher information S S^T = E_y[g g^T], g = d log p(y | outputs) / d outputs.

    A canonical model has S = diag(sqrt p) - p sqrt(p)^T for logits, and S = diag(1 / sd) for means, with M outputs. For
    other models, S is computed by torch.func.vjp.

    Args:
        model: the likelihood.
        outputs: outputs [..., *Y] of any number of points.

    Raises:
        UsageError: the curvature of the likelihood is not known.
    """
    if not model.canonical:
        return _differentiated_root(model, outputs)
    family: Any = innermost(model.likelihood_of(outputs))
    if isinstance(family, Categorical):
        root = _root_of(family.probs)
        return torch.diag_embed(root) - family.probs.unsqueeze(-1) * root.unsqueeze(-2)
    if isinstance(family, Normal):
        return torch.diag_embed(1 / family.scale.expand(family.batch_shape))
    raise model.claim_error(family)


def _differentiated_root(model: Model, outputs: Tensor) -> Tensor:
    """Compute S = J^T diag(r), where J is the Jacobian of the `_coordinates`, whose Fisher information is diag(r^2)."""
    pullback = torch.func.vjp(lambda at: _coordinates(model.likelihood_of(at))[0], outputs)[1]
    root = _coordinates(model.likelihood_of(outputs))[1]
    units = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    units = units.view(-1, *[1] * (root.dim() - 1), root.shape[-1]).expand(-1, *root.shape)
    return torch.func.vmap(lambda unit: pullback(unit * root)[0], out_dims=-1)(units)


def _coordinates(likelihood: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Return coordinates of the likelihood with Fisher information diag(r^2), and r of equal shape.

    Categorical: log p_c, r_c = sqrt(p_c). Normal: (mean, log sd), r = (1 / sd, sqrt(2)). Else the logit or log rate.
    """
    family: Any = innermost(likelihood)
    if isinstance(family, Categorical):
        return family.logits, _root_of(family.probs)  # Categorical normalises its logits
    if isinstance(family, Normal):
        sd = family.scale
        return torch.cat((family.loc, sd.log()), -1), torch.cat((1 / sd, torch.full_like(sd, math.sqrt(2))), -1)
    if isinstance(family, Bernoulli):
        return family.logits, _root_of(family.probs * (1 - family.probs))
    if isinstance(family, Poisson):
        return family.rate.log(), _root_of(family.rate)
    raise _unknown(family)


def _root_of(probs: Tensor) -> Tensor:
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).sqrt()  # sqrt has no gradient at 0


def _unknown(family: object) -> UsageError:
    known = "with a known curvature (Categorical, Normal, Bernoulli, Poisson) for guide=laplace or guide=llama"
    return UsageError(f"expected a likelihood {known}, got {type(family).__name__}; use guide=maml or guide=savi")


def factor_of_points(v: Tensor) -> Tensor:
    """Compute the Cholesky factor of I + v^T v for matrices v [..., P, M]."""
    return cholesky(v.mT @ v + torch.eye(v.shape[-1], dtype=v.dtype, device=v.device))


def log_det_precision(root: Tensor, precision: Tensor) -> Tensor:
    """Compute log det(diag(precision) + U U^T) per task, by a determinant of the smaller dimension of U.

    Args:
        root: [T, *W, M], the matrix U with M columns for the weights of T tasks.
        precision: [*W], precision of every weight, or a scalar.
    """
    precision = precision.expand(root.shape[1:-1]).flatten()
    v = root.flatten(1, -2) / precision.sqrt().unsqueeze(-1)
    v = v if v.shape[-1] <= v.shape[-2] else v.mT
    return precision.log().sum() + 2 * half_log_det(factor_of_points(v))


class LowRankPrecision(TorchDistribution):
    """Gaussian with a low-rank term in the precision, N(loc, (diag(precision) + U U^T)^-1).

    Only the M x M matrix I + V^T V = L L^T is factorised. Draws are

        w = loc + diag(precision)^-1/2 R e,   e ~ N(0, I)
        V = diag(precision)^-1/2 U,   R = I - V L^-T (I + L)^-1 V^T,   R R^T = (I + V V^T)^-1

    Args:
        loc: [*batch, *W], the mean.
        precision: [*W] or [*batch, *W], the diagonal term.
        root: [*batch, *W, M], the matrix U with M columns.
        event_dim: number of axes *W.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  # guides pass valid arguments
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, precision: Tensor, root: Tensor, event_dim: int = 1) -> None:
        self.loc, self.root = loc, root
        self.precision = precision.expand(loc.shape)
        batch, event = loc.shape[: loc.dim() - event_dim], loc.shape[loc.dim() - event_dim :]
        self._v = (root / self.precision.sqrt().unsqueeze(-1)).flatten(len(batch), -2)  # [*batch, P, M]
        self._factor = factor_of_points(self._v)
        super().__init__(batch, event, validate_args=False)

    def _flat(self, w: Tensor) -> Tensor:
        return w.flatten(w.dim() - len(self.event_shape))

    def expand(self, batch_shape: Shape, _instance: Any = None) -> LowRankPrecision:
        if Size(batch_shape) == self.batch_shape:
            return self
        event = self.event_shape
        loc, precision = (value.expand(*batch_shape, *event) for value in (self.loc, self.precision))
        return LowRankPrecision(loc, precision, self.root.expand(*batch_shape, *event, -1), len(event))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Marginal variances [*batch, *W]: (1 - squared row norms of V L^-T) / precision."""
        removed = torch.linalg.solve_triangular(self._factor, self._v.mT, upper=False)
        return (1 - removed.square().sum(-2).view(self.loc.shape)) / self.precision

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self.at_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def at_noise(self, noise: Tensor) -> Tensor:
        """Return the draw loc + diag(precision)^-1/2 R e for standard normal e [..., *batch, *W]."""
        along = self._v.mT @ self._flat(noise).unsqueeze(-1)
        one = torch.eye(self._factor.shape[-1], dtype=noise.dtype, device=noise.device)
        along = torch.linalg.solve_triangular(self._factor + one, along, upper=False)
        along = torch.linalg.solve_triangular(self._factor.mT, along, upper=True)
        return self.loc + (noise - (self._v @ along).view(noise.shape)) / self.precision.sqrt()

    def log_det(self) -> Tensor:
        """Compute the log determinant [*batch] of the precision matrix."""
        return self._flat(self.precision.log()).sum(-1) + 2 * half_log_det(self._factor)

    def log_prob(self, value: Tensor) -> Tensor:
        whitened = self._flat((value - self.loc) * self.precision.sqrt())
        along = (self._v.mT @ whitened.unsqueeze(-1)).squeeze(-1)
        quadratic = whitened.square().sum(-1) + along.square().sum(-1)
        return 0.5 * (self.log_det() - quadratic - whitened.shape[-1] * math.log(2 * math.pi))

    def entropy(self) -> Tensor:
        return 0.5 * (self.event_shape.numel() * (1 + math.log(2 * math.pi)) - self.log_det())


@register_kl(LowRankPrecision, Independent)
def _kl_to_diagonal(q: LowRankPrecision, p: Any) -> Tensor:
    """Compute KL(q, p) [*batch] in nats for a diagonal Gaussian p."""
    inner = innermost(p)
    if not isinstance(inner, Normal):
        raise NotImplementedError
    return kl_to_diagonal(q, inner)
