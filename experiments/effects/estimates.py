"""Estimates of the prior and of the effects of each group: from a run, and in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.estimation_errors import EstimationErrors
from pyro_metabayes.exact.mixed_effects import MixedEffects, errors_of
from pyro_metabayes.experiments.effects.prior_parameters import (
    errors_by_quadrature,
    errors_of_parameters,
    parameters_in_units,
)
from pyro_metabayes.experiments.effects.widening import errors_of_run, widened_effects
from pyro_metabayes.experiments.partial_pooling.methods import (
    GroupEstimates,
    HasSharedEffects,
    LinearMixedModel,
    StandardisedEstimates,
)
from pyro_metabayes.experiments.runs.grouped_data import has_independent_effects
from pyro_metabayes.inference.capabilities import has
from pyro_metabayes.inference.divergences import has_density, innermost
from pyro_metabayes.inference.laplace import LowRankPrecision
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.prediction.moments import draws_of
from pyro_metabayes.seeding import noise_of

DRAWS = 20_000  # number of draws that estimate a covariance without a closed form


@dataclass(frozen=True)
class Effects:
    """Estimates of one method, in the units of the file.

    estimates: estimates of the prior and of the effects of all groups in the file.
    errors: standard errors of the coefficients [coefficients]; None if they cannot be computed.
    parameters: sds and correlations of the effects over groups, and noise, as in `names_of_parameters`.
    errors_of_parameters: standard errors of the parameters; None if they cannot be computed.
    """

    estimates: GroupEstimates
    errors: Tensor | None
    parameters: Tensor
    errors_of_parameters: Tensor | None


@torch.no_grad()
def effects_of_run(groups: Groups, learner: MetaLearner) -> Effects:
    """Return the learned prior, and the posterior of each group given all its points, with standard errors.

    Standard errors come from the likelihood at the estimates of the run: in closed form for a linear mixed model, and
    by quadrature for a generalised linear mixed model with one effect per group. Other models have none.

    Raises:
        UsageError: as in `standardised_of_run`.
    """
    standard = standardised_of_run(groups, learner)
    if learner.model.canonical and standard.noise == standard.noise:
        whole, noise = groups.with_equal_precision(groups.whole()), torch.tensor(standard.noise, dtype=torch.float64)
        errors = errors_of(whole, standard.covariance, noise, groups.num_inner)
        of_parameters = errors_of_parameters(groups, standard, has_independent_effects(learner, groups))
        return _effects(groups, standard, errors, of_parameters, errors_of_run(groups, learner))
    if groups.family != "gaussian" and groups.num_random == 1:
        return _effects(groups, standard, *errors_by_quadrature(groups, standard))
    return _effects(groups, standard)


@torch.no_grad()
def standardised_of_run(groups: Groups, learner: MetaLearner) -> StandardisedEstimates:
    """Return the learned prior, and the posterior of each group given all its points, for standardised columns.

    Raises:
        UsageError: the model has no group effects, the prior is flat, or the posterior is a point estimate.
    """
    model, episodes = learner.model, groups.all_points()
    if not has(shared := learner.model, HasSharedEffects):
        raise UsageError(
            "expected a model with group effects and shared effects, such as model=hierarchical_regression, got "
            f"{type(model).__module__.removeprefix('pyro_metabayes.')}; give another run"
        )
    prior = model.prior(episodes.observed())
    posterior = learner.guide.posterior(episodes.pooled())
    if not (has_density(prior) and has_density(posterior)):
        raise UsageError("expected a prior and a posterior with standard deviations, got a flat prior or a point "
                         "estimate; train with guide=partial_pooling, exact or savi")  # fmt: skip
    mean, covariance = moments_of_rows(prior)
    coefficients = torch.cat((mean[0], shared.beta[0].double()))
    noise = torch.as_tensor(shared.noise if has(shared, LinearMixedModel) else torch.nan).double()
    return StandardisedEstimates(coefficients, covariance[0], noise.item(), *moments_of_rows(posterior))


def effects_of_fit(groups: Groups, fitted: MixedEffects, diagonal: bool = False) -> Effects:
    """Return the closed-form maximum-likelihood estimates, with standard errors.

    Args:
        groups: the groups of the file.
        fitted: the maximum-likelihood estimates of the linear mixed model.
        diagonal: whether covariances of the effects are fixed at 0.
    """
    standard = standardised_of_fit(groups, fitted)
    of_parameters = errors_of_parameters(groups, standard, diagonal)
    return _effects(groups, standard, fitted.errors, of_parameters, groups.estimation_errors(diagonal))


def standardised_of_fit(groups: Groups, fitted: MixedEffects) -> StandardisedEstimates:
    """Return closed-form maximum-likelihood estimates of the prior, and the posterior of each group."""
    of_groups = moments_of_rows(fitted.effects(groups.with_equal_precision(groups.all_points().pooled())))
    return StandardisedEstimates(fitted.coefficients, fitted.covariance, fitted.noise.item(), *of_groups)


def _effects(
    groups: Groups,
    standard: StandardisedEstimates,
    errors: Tensor | None = None,
    of_parameters: Tensor | None = None,
    estimated: EstimationErrors | None = None,
) -> Effects:
    sd = None if errors is None else groups.scales.covariance_in_units(errors).diagonal().sqrt()
    noise = torch.tensor(standard.noise, dtype=torch.float64)
    parameters = parameters_in_units(groups, standard.covariance, noise)
    return Effects(widened_effects(groups, standard, estimated), sd, parameters, of_parameters)


def moments_of_rows(q: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Return means [tasks, weights] and covariances [tasks, weights, weights] of the weights of the first output.

    Both are in float64. The moments are exact for Gaussian distributions, and estimated from draws for others.

    Args:
        q: distribution of w with batch shape [tasks] and event shape [outputs, weights].
    """
    inner = innermost(q)
    if isinstance(inner, MultivariateNormal):
        return q.mean[:, 0].double(), inner.covariance_matrix[:, 0].double()
    if isinstance(inner, Normal):
        return q.mean[:, 0].double(), torch.diag_embed(q.variance[:, 0].double())
    if isinstance(inner, LowRankPrecision):  # draws would each solve a linear system
        root = inner.root.double().flatten(1, -2)
        precision = torch.diag_embed(inner.precision.double().flatten(1)) + root @ root.mT
        size = q.mean.shape[-1]
        return q.mean[:, 0].double(), torch.linalg.inv(precision)[:, :size, :size]
    with noise_of(0):
        draws = draws_of(q, DRAWS)[:, :, 0].double()
    mean = draws.mean(0)
    centred = (draws - mean).movedim(0, 1)
    return mean, centred.mT @ centred / DRAWS
