"""Parameters of a prior besides means: standard deviations, correlations and noise, with standard errors."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.exact.effect_structure import EffectStructure
from pyro_metabayes.exact.estimation_errors import parameters_of, standard_errors
from pyro_metabayes.exact.generalised import covariance_of_estimates, points_of
from pyro_metabayes.experiments.partial_pooling.methods import StandardisedEstimates


def names_of_parameters(groups: Groups) -> list[str]:
    """Return the names of the parameters, in the order of `parameters_in_units`."""
    own = groups.features[: groups.num_own]
    inner = [f"sd of {groups.roles.inner} within {groups.roles.group}"] if groups.num_inner else []
    correlations = [f"correlation of {first}, {second}" for first, second in combinations(own, 2)]
    noise = ["sd of the noise"] if groups.family == "gaussian" else []
    return [*(f"sd of {feature}" for feature in own), *inner, *correlations, *noise]


def parameters_in_units(groups: Groups, covariance: Tensor, noise: Tensor) -> Tensor:
    """Return sds of the effects, sd of the inner groups, correlations of the effects, and sd of a Gaussian noise.

    Args:
        groups: the groups of the file.
        covariance: covariance of the R effects for standardised columns [R, R].
        noise: sd of the noise for standardised columns.

    Returns:
        The parameters in the units of the file [parameters], in the order of `names_of_parameters`.
    """
    in_units = groups.scales.covariance_in_units(covariance)
    sd = in_units.diagonal().sqrt()
    correlations = in_units / sd / sd.unsqueeze(-1)
    first, second = torch.triu_indices(groups.num_own, groups.num_own, 1)
    inner = sd[groups.num_own :][:1]
    noise_in_units = [(noise * groups.noise_scale).view(1)] if groups.family == "gaussian" else []
    return torch.cat((sd[: groups.num_own], inner, correlations[first, second], *noise_in_units))


def errors_of_parameters(groups: Groups, standard: StandardisedEstimates, diagonal: bool) -> Tensor:
    """Compute standard errors of `parameters_in_units` from the observed information of a linear mixed model.

    Args:
        groups: the groups of the file.
        standard: the estimates, at which the information is computed.
        diagonal: whether the covariances of the effects are fixed at 0.
    """
    structure = EffectStructure(groups.num_random, groups.num_inner, diagonal)
    noise = torch.tensor(standard.noise, dtype=torch.float64)
    psi = parameters_of(standard.coefficients, standard.covariance, noise, structure)
    whole = groups.with_equal_precision(groups.whole())
    return standard_errors(whole, structure, psi, lambda *at: parameters_in_units(groups, *at))


def errors_by_quadrature(groups: Groups, standard: StandardisedEstimates) -> tuple[Tensor | None, Tensor | None]:
    """Estimate errors of the parameters of a generalised linear mixed model with one effect per group.

    The errors come from the observed information, by quadrature.

    Returns:
        The covariance of the estimated coefficients of standardised columns, and the standard error of the sd of the
            effect (`parameters_in_units`); both are None if the information is not positive definite.
    """
    points = points_of(groups.whole(), groups.roles.offset is not None)
    sd = standard.covariance[0, 0].sqrt()
    found = covariance_of_estimates(points, groups.family, standard.coefficients, sd)
    if found is None:
        return None, None
    in_units = groups.scales.covariance_in_units(standard.covariance)[0, 0].sqrt()
    error = in_units * found[-1, -1].sqrt()  # delta method: `found` is about the logarithm of the sd
    return found[:-1, :-1], error.view(1)
