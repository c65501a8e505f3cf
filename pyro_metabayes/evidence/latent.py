"""A distribution over w as the image of standard normal coordinates z."""

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
    """Coordinates z [..., T, P] of the latent.

    Attributes:
        num_coordinates: P.
        affine: whether w is affine in z, and z is exactly N(0, I).
    """

    num_coordinates: int
    affine: bool

    def at(self, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """w [..., T, *W] at z [..., T, P], and log q(w) |det dw / dz| / N(z; 0, I) [..., T]."""


def latent_of(q: TorchDistribution) -> Latent:
    """Coordinates of a distribution over w that has a density, batch [T]."""
    return GaussianLatent(q) if isinstance(innermost(q), GAUSSIANS) else SiteLatent(q)


class GaussianLatent:
    """w = loc + A z with A A^T the covariance of q, a Gaussian."""

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
    """Any other density: each real site standardised, each other one mapped to the real numbers (`coordinates.py`)."""

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
    """log N(z; 0, I) [...] of z [..., P]."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
