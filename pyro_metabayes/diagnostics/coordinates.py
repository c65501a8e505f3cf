"""Coordinates of a latent in which its prior has unit scale, for NUTS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_metabayes.distributions.joint import Joint, latent_from, sites_of

Coordinates = dict[str, Tensor]  # z [..., T, *shape] by name of the site


def random_coordinates(prior: TorchDistribution) -> Coordinates:
    """Standard normal z of every site: the start of a chain."""
    examples = prior.examples if isinstance(prior, Joint) else {"w": prior}
    return {name: torch.randn_like(_origin(examples[name])) for name in sites_of(prior)}


def latent_of(prior: TorchDistribution, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
    """The latent [..., T, *W] at coordinates z, and log |det d latent / d z| [..., T].

    A real site is mean + sd z, with the moments of its prior given the earlier sites (the non-centred parametrisation:
    Papaspiliopoulos, Roberts and Sköld 2007). Another site is the bijection of torch from the real numbers to its
    support. The log determinant of a single real site does not depend on z, and is left out.

    Args:
        prior: batch [T].
        z: by name of the site ("w" for a single one), with any leading dimensions.
    """
    log_dets: list[Tensor] = []

    def value_of(name: str, distribution: TorchDistribution) -> Tensor:
        value, log_det = _of_site(distribution, z[name])
        log_dets.append(log_det)
        return value

    latent = latent_from(prior, value_of)
    if not isinstance(prior, Joint) and _is_real(prior):
        return latent, 0.0
    return latent, torch.stack(torch.broadcast_tensors(*log_dets)).sum(0)


def _of_site(distribution: TorchDistribution, z: Tensor) -> tuple[Tensor, Tensor]:
    if _is_real(distribution):
        scale = distribution.variance.sqrt()
        log_det = scale.log().expand(z.shape)
        return distribution.mean + scale * z, sum_rightmost(log_det, len(distribution.event_shape))
    to_support = biject_to(distribution.support)
    value = to_support(z)
    return value, to_support.log_abs_det_jacobian(z, value)


def _origin(distribution: TorchDistribution) -> Tensor:
    """z = 0 of a site [T, *shape]."""
    with torch.no_grad():
        value = distribution.sample()
    return torch.zeros_like(value if _is_real(distribution) else biject_to(distribution.support).inv(value))


def _is_real(distribution: TorchDistribution) -> bool:
    support: Any = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
