"""Changes of variables for NUTS, such that the prior has about unit scale in the new variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_metabayes.distributions.joint import Joint, latent_from
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.prediction.moments import moments_of


class Coordinates(Protocol):
    """Interface of a change of variables from real coordinates z to the latent w; z has one tensor per latent site."""

    def random(self) -> dict[str, Tensor]:
        """Draw standard normal z, the start of a chain: [T, *shape of the site] per site, for T tasks."""

    def latent(self, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
        """Return w [..., T, *W] at z, and log |det dw / dz| [..., T] up to a constant.

        T is the number of tasks, and *W the shape of w in one task.
        """


class Standardised:
    """The change of variables w = mean + sd z, with mean and sd of the prior, for a latent of one real site.

    Args:
        prior: the prior of w.

    Raises:
        UsageError: a weight has no finite variance.
    """

    def __init__(self, prior: TorchDistribution) -> None:
        moments = moments_of(prior)
        self.loc, self.scale = moments.mean, moments.variance.sqrt()
        if not self.scale.isfinite().all():
            raise UsageError(
                "expected a prior with finite variances for NUTS, got "
                f"{type(innermost(prior)).__name__} with infinite variances; use another prior"
            )

    def random(self) -> dict[str, Tensor]:
        return {"w": torch.randn_like(self.loc)}

    def latent(self, z: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        return self.loc + self.scale * z["w"], 0.0


class SiteBySite:
    """Non-centred parametrisation of a latent with several sites, or with a site that is not real.

    A real site is mean + sd z, with mean and sd of the prior of the site given the earlier sites. Any other site is a
    bijection of z from the real numbers to the support (torch's `biject_to`). The bijection also serves a real site
    without finite moments in closed form. (Papaspiliopoulos, Roberts and Sköld 2007.)
    """

    def __init__(self, prior: TorchDistribution) -> None:
        self.prior = prior

    def random(self) -> dict[str, Tensor]:
        examples = self.prior.examples if isinstance(self.prior, Joint) else {"w": self.prior}
        return {name: torch.randn(_shape(example), **_options(example)) for name, example in examples.items()}

    def latent(self, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        log_dets: list[Tensor] = []

        def value_of(name: str, distribution: TorchDistribution) -> Tensor:
            value, log_det = _of_site(distribution, z[name])
            log_dets.append(log_det)
            return value

        return latent_from(self.prior, value_of), torch.stack(torch.broadcast_tensors(*log_dets)).sum(0)


def coordinates_of(prior: TorchDistribution) -> Coordinates:
    """Choose the change of variables for a prior: Standardised for one real site, otherwise SiteBySite."""
    if not isinstance(prior, Joint) and _is_real(prior):
        return Standardised(prior)
    return SiteBySite(prior)


def _of_site(distribution: TorchDistribution, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value of a site at z, and log |det| per task of the derivative of the value with respect to z."""
    if _is_real(distribution) and (moments := _closed_form(distribution)) is not None:
        mean, scale = moments
        return mean + scale * z, sum_rightmost(scale.log().expand(z.shape), len(distribution.event_shape))
    to_support = biject_to(distribution.support)
    value = to_support(z)
    return value, to_support.log_abs_det_jacobian(z, value)


def _closed_form(distribution: TorchDistribution) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation of a distribution; None if one has no closed form or is not finite."""
    try:
        mean, scale = distribution.mean, distribution.variance.sqrt()
    except NotImplementedError:
        return None
    return (mean, scale) if bool(scale.isfinite().all()) else None


def _shape(distribution: TorchDistribution) -> torch.Size:
    """Return the shape of the coordinates z of a site."""
    return biject_to(distribution.support).inverse_shape(distribution.batch_shape + distribution.event_shape)


def _options(distribution: TorchDistribution) -> dict[str, Any]:
    """Return the dtype and device of the values of a site, as arguments of torch.randn."""
    with torch.no_grad():
        value = distribution.sample()
    return {"dtype": value.dtype, "device": value.device}


def _is_real(distribution: TorchDistribution) -> bool:
    support: Any = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
