"""Estimates of each method from a table of groups, in the units of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import pad

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.diagnostics.collapse import HALF_OF_90
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.exact.hierarchical_nuts import Draws
from pyro_metabayes.exact.mixed_effects import MixedEffects, fit
from pyro_metabayes.experiments.cli.config import Config, saved_config
from pyro_metabayes.experiments.runs.grouped_data import groups_in
from pyro_metabayes.experiments.runs.setup import set_up
from pyro_metabayes.inference.capabilities import has
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.seeding import seeded

BOUNDS = 100  # number of single-sample ELBOs that are averaged


@runtime_checkable
class HasSharedEffects(Protocol):
    """Regression on groups. `beta` [outputs, features] are the coefficients of the features without group effects."""

    beta: Tensor


@runtime_checkable
class LinearMixedModel(HasSharedEffects, Protocol):
    """Regression on groups whose labels have one standard deviation, `noise`."""

    @property
    def noise(self) -> Tensor: ...


@dataclass(frozen=True)
class GroupEstimates:
    """Estimates of a method for G groups with R random effects each, and D coefficients, in the units of the file.

    coefficients: means of the random effects, then shared effects [D].
    sd: standard deviations of the random effects over groups [R].
    correlation: correlation of the first two random effects; None if there is one effect, or if it is not computed.
    noise: standard deviation of the residuals; NaN for a response that is not Gaussian.
    effects, effects_sd: posterior mean and standard deviation of the effects of each group [G, R].
    log_likelihood: log-likelihood of all points, or a lower bound, in nats for standardised columns; None if it is not
        computed.
    half_widths: half widths of 90% intervals that account for errors of the estimated parameters [G, R]; None if the
        intervals ignore these errors.
    """

    coefficients: Tensor
    sd: Tensor
    correlation: float | None
    noise: float
    effects: Tensor
    effects_sd: Tensor
    log_likelihood: float | None = None
    half_widths: Tensor | None = None

    @property
    def reach(self) -> Tensor:
        """Half widths of the 90% intervals of the effects [groups, effects]."""
        return HALF_OF_90 * self.effects_sd if self.half_widths is None else self.half_widths


@dataclass(frozen=True)
class StandardisedEstimates:
    """Estimates of a method for standardised columns, for G groups with R random effects each, and D coefficients.

    coefficients: means of the random effects, then shared effects [D].
    covariance: covariance of the random effects over groups [R, R].
    noise: standard deviation of the residuals.
    effects, effects_covariance: posterior moments of the effects of each group [G, R] and [G, R, R].
    """

    coefficients: Tensor
    covariance: Tensor
    noise: float
    effects: Tensor
    effects_covariance: Tensor

    def in_units(self, groups: Groups, log_likelihood: float | None = None) -> GroupEstimates:
        """Convert the estimates to the units of the file, with the intercept at x = 0."""
        scales, shared = groups.scales, self.coefficients[groups.num_random :]
        covariance = scales.covariance_in_units(self.covariance)
        return GroupEstimates(
            scales.in_units(self.coefficients), _sd(covariance), _correlation(covariance),
            self.noise * groups.noise_scale,
            scales.effects_in_units(self.effects, shared),
            _sd(scales.covariance_in_units(self.effects_covariance)), log_likelihood,
        )  # fmt: skip


def _sd(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).sqrt()


def _correlation(covariance: Tensor) -> float | None:
    """Return the correlation of the first two effects, averaged over leading axes; None for one effect."""
    if covariance.shape[-1] == 1:
        return None
    sd = _sd(covariance)
    return (covariance[..., 0, 1] / sd[..., 0] / sd[..., 1]).mean().item()


def estimates_from_fit(groups: Groups, estimates: MixedEffects) -> GroupEstimates:
    """Return closed-form estimates, and the effects of each group given these estimates, in the units of the file."""
    of_groups = _moments(estimates.effects(groups.with_equal_precision(groups.whole().pooled())))
    standardised = StandardisedEstimates(
        estimates.coefficients, estimates.covariance, estimates.noise.item(), *of_groups
    )
    return standardised.in_units(groups, estimates.log_likelihood)


def estimates_from_draws(groups: Groups, draws: Draws) -> GroupEstimates:
    """Return posterior means from draws of NUTS. Standard deviations and correlation are averaged, not covariances."""
    scales, shared = groups.scales, draws.coefficients[:, None, groups.num_random :]
    covariance = scales.covariance_in_units(draws.covariance)
    effects = scales.effects_in_units(draws.effects, shared)
    return GroupEstimates(
        scales.in_units(draws.coefficients).mean(0), _sd(covariance).mean(0), _correlation(covariance),
        draws.noise.mean().item() * groups.noise_scale, effects.mean(0), effects.std(0),
    )  # fmt: skip


@torch.no_grad()
def estimates_from_run(folder: Path) -> GroupEstimates:
    """Return the estimates of a trained run: its prior, and its training posterior given all points of each group."""
    groups, learner = groups_and_learner(saved_config(folder, []), folder)
    episodes, model = groups.whole(), learner.model
    if not has(linear := learner.model, LinearMixedModel):
        raise UsageError("expected runs with model=hierarchical_regression, got another model; do not set model=")
    prior = model.prior(episodes.observed())
    covariance = torch.linalg.inv(precision_of(prior).double())[0, 0]
    coefficients = torch.cat((prior.mean[0, 0], linear.beta[0]))
    of_groups = _moments(learner.guide.training_posterior(episodes))
    objective = Elbo(kl="analytic")
    with seeded(0):
        bounds = [-objective.terms(model, learner.guide, episodes).loss.item() for _ in range(BOUNDS)]
    standardised = StandardisedEstimates(coefficients.double(), covariance, linear.noise.item(), *of_groups)
    return standardised.in_units(groups, sum(bounds) / BOUNDS)


def groups_and_learner(config: Config, folder: Path) -> tuple[Groups, MetaLearner]:
    """Load the table of groups of a run, and its trained learner."""
    return groups_in(set_up(config, training=False).tasks.source, config), MetaLearner.load(folder)


def _moments(effects: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Return means [groups, effects] and covariances [groups, effects, effects] of a posterior, in float64."""
    return effects.mean[:, 0].double(), torch.linalg.inv(precision_of(effects)[:, 0].double())


def least_squares_effects(fitted: MixedEffects, episodes: Episodes, num_inner: int = 0) -> Tensor:
    """Return the effects by least squares in each group alone, given the shared effects; those of inner groups are 0.

    The points of a group are its support points, or its query points if there are no support points.
    """
    observed = episodes.pooled() if episodes.support_x.shape[1] == 0 else episodes.observed()
    x = observed.support_x.double()
    z = x[..., : len(fitted.covariance) - num_inner] * observed.support_mask.unsqueeze(-1)
    residual = (observed.support_y.double() - fitted.shared(x)) * observed.support_mask.unsqueeze(-1)
    return pad((torch.linalg.pinv(z, rtol=1e-6) @ residual).squeeze(-1), (0, num_inner))


def held_out_rmse(groups: Groups, tasks: Episodes) -> dict[str, float]:
    """Return the RMSE of each closed-form method on the queries of tasks, in standard deviations of the response.

    The prior is fitted to the training groups. As in results.json, the RMSE is the square root of the mean over tasks
    of each task's mean squared error.
    """
    fitted = fit(groups.with_equal_precision(groups.whole()), groups.num_random, num_inner=groups.num_inner)
    known = groups.with_equal_precision(tasks)
    x, mask = tasks.query_x[..., : len(groups.features)].double(), tasks.query_mask
    z, shared = x[..., : groups.num_random], fitted.shared(x)
    estimates = {
        "pooled": fitted.coefficients[: groups.num_random].expand(len(x), -1),
        "unpooled": least_squares_effects(fitted, known, groups.num_inner),
        "empirical Bayes": fitted.effects(known.observed()).mean[:, 0],
    }
    errors = {name: z @ w.unsqueeze(-1) + shared - tasks.query_y for name, w in estimates.items()}
    squares = {name: (error.squeeze(-1).square() * mask).sum(1) / mask.sum(1) for name, error in errors.items()}
    return {name: square.mean().sqrt().item() for name, square in squares.items()}


def mean_distance(estimates: GroupEstimates, reference: GroupEstimates, subset: Sequence[bool] | Tensor) -> list[float]:
    """Return the mean absolute difference of each effect from the reference, over a subset of the groups."""
    return (estimates.effects - reference.effects)[torch.as_tensor(subset)].abs().mean(0).tolist()
