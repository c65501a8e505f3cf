"""Changes of variables from approximately standard normal coordinates z to w ~ q."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.diagnostics.coordinates import SiteBySite
from pyro_metabayes.inference.divergences import innermost, log_density
from pyro_metabayes.inference.laplace import LowRankPrecision
from pyro_metabayes.prediction.moments import GAUSSIANS


class Latent(Protocol):
    """Interface of a change of variables from coordinates z [..., T, P] to the weights w ~ q of T tasks.

    Attributes:
        num_coordinates: P, the number of coordinates per task.
        affine: whether w is an affine function of z, and z ~ N(0, I) exactly.
    """

    num_coordinates: int
    affine: bool

    def at(self, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return weights w [..., T, *W] at z, and log(q(w) |det dw / dz| / N(z; 0, I)) [..., T]."""


def latent_of(q: TorchDistribution) -> Latent:
    """Choose the change of variables from z to w ~ q, for a distribution q with a density."""
    return GaussianLatent(q) if isinstance(innermost(q), GAUSSIANS) else SiteLatent(q)


class GaussianLatent:
    """The change of variables w = loc + A z for a Gaussian q = N(loc, A A^T)."""

    affine = True

    def __init__(self, q: TorchDistribution) -> None:
        self._family: Any = innermost(q)
        self._event = q.event_shape
        self._loc = q.mean
        self.num_coordinates = q.event_shape.numel()

    def at(self, z: Tensor) -> tuple[Tensor, float]:
        noise = z.unflatten(-1, self._event)
        if isinstance(self._family, LowRankPrecision):
            return self._family.at_noise(noise), 0.0
        if isinstance(self._family, torch.distributions.Normal):
            return self._loc + self._family.stddev * noise, 0.0
        return self._loc + (self._family.scale_tril @ noise.unsqueeze(-1)).squeeze(-1), 0.0


class SiteLatent:
    """The change of variables for a distribution q that is not Gaussian, site by site.

    A real site is mean + sd z. Any other site is a bijection of z (`diagnostics/coordinates.py`).
    """

    affine = False

    def __init__(self, q: TorchDistribution) -> None:
        self._q, self._sites = q, SiteBySite(q)
        self._shapes = {name: value.shape[1:] for name, value in self._sites.random().items()}
        self.num_coordinates = sum(shape.numel() for shape in self._shapes.values())

    def at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        parts = z.split([shape.numel() for shape in self._shapes.values()], -1)
        named = {
            name: part.reshape(*part.shape[:-1], *shape)
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }
        w, log_det = self._sites.latent(named)
        return w, log_density(self._q, w) + log_det - log_standard_normal(z)


def log_standard_normal(z: Tensor) -> Tensor:
    """Compute log N(z; 0, I) [...] for z [..., P]."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
