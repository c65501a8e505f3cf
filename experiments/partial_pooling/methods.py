"""What each method learns of a table of groups, in the units of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.exact.hierarchical_nuts import Draws
from pyro_metabayes.exact.mixed_effects import MixedEffects, fit
from pyro_metabayes.experiments.cli.config import Config, saved_config
from pyro_metabayes.experiments.runs.assembly import Assembly
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.seeding import noise_of

BOUNDS = 100  # draws of which the bound is the mean


@dataclass(frozen=True)
class Learned:
    """coefficients [D] (means of the own effects first), sd [R] and correlation of the first two effects, noise;
    effects and their sds [T, R]; the log likelihood of all points, or a bound on it, in nats of standardised columns.
    """

    coefficients: Tensor
    sd: Tensor
    correlation: float | None
    noise: float
    effects: Tensor
    effects_sd: Tensor
    log_likelihood: float | None = None


def _learned(groups: Groups, coefficients: Tensor, covariance: Tensor, noise: float, *rest: Any) -> Learned:
    """From standardised columns; rest: effects and their sds, and what else Learned has."""
    effects, effects_sd, *others = rest
    units = groups.units[: groups.num_random]
    covariance = units.unsqueeze(-1) * covariance.double() * units
    sd = covariance.diagonal().sqrt()
    correlation = (covariance[0, 1] / sd[0] / sd[1]).item() if len(sd) > 1 else None
    return Learned(
        groups.in_units(coefficients.double()), sd, correlation, noise * groups.scale,
        groups.in_units(effects.double()), effects_sd.double() * units, *others,
    )  # fmt: skip


def of_fit(groups: Groups, found: MixedEffects) -> Learned:
    """A closed form, and the effects of each group at its estimates."""
    rows = _moments(found.effects(groups.whole().pooled()))
    return _learned(groups, found.coefficients, found.covariance, found.noise.item(), *rows, found.log_likelihood)


def of_draws(groups: Groups, draws: Draws) -> Learned:
    """Posterior means under weak priors; of sds and correlation the mean of each, not of the covariance."""
    sd = draws.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = draws.covariance / sd.unsqueeze(-1) / sd.unsqueeze(-2)
    mean = sd.mean(0)
    covariance = mean.unsqueeze(-1) * correlation.mean(0) * mean
    effects = draws.effects.mean(0), draws.effects.std(0)
    return _learned(groups, draws.coefficients.mean(0), covariance, draws.noise.mean().item(), *effects)


@torch.no_grad()
def of_run(folder: Path) -> Learned:
    """A trained run: its prior of a group without points, and its training posterior given all of them."""
    groups, learner = groups_and_learner(saved_config(folder, []), folder)
    episodes, model = groups.whole(), _hierarchical(learner)
    prior = model.prior(episodes.observed())
    covariance = torch.linalg.inv(precision_of(prior).double())[0, 0]
    coefficients = torch.cat((prior.mean[0, 0], model.beta[0]))
    rows = _moments(learner.guide.training_posterior(episodes))
    objective = Elbo(kl="analytic")
    with noise_of(0):
        bounds = [-objective.terms(model, learner.guide, episodes).loss.item() for _ in range(BOUNDS)]
    return _learned(groups, coefficients, covariance, model.noise.item(), *rows, sum(bounds) / BOUNDS)


def groups_and_learner(config: Config, folder: Path) -> tuple[Groups, MetaLearner]:
    """The table that a run is of, and what it has learned."""
    source = Assembly(config).source
    if not isinstance(source, Groups):
        raise UsageError(f"expected a study of a table of groups, got data={config.choices.get('data')}")
    return source, MetaLearner.load(folder)


def _hierarchical(learner: MetaLearner) -> Any:
    if not hasattr(learner.model, "beta"):
        raise UsageError(
            "expected runs with model=hierarchical_regression, got another model; leave it as data= has it"
        )
    return learner.model


def _moments(effects: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Means and sds [T, R]."""
    return effects.mean[:, 0], effects.variance[:, 0].sqrt()


def unpooled(found: MixedEffects, episodes: Episodes) -> Tensor:
    """Least squares of each group by itself [T, R], the smallest where there are many; shared effects as estimated."""
    seen = episodes.pooled() if episodes.support_x.shape[1] == 0 else episodes.observed()
    x = seen.support_x.double()
    z = x[..., : len(found.covariance)] * seen.support_mask.unsqueeze(-1)
    residual = (seen.support_y.double() - found.shared(x)) * seen.support_mask.unsqueeze(-1)
    return (torch.linalg.pinv(z, rtol=1e-6) @ residual).squeeze(-1)


def held_out_rmse(groups: Groups, tasks: Episodes) -> dict[str, float]:
    """Of the queries of tasks, in standard deviations of the response, with a prior from the training groups.

    As in results.json: the root of the mean over tasks of their mean squared errors.
    """
    found = fit(groups.whole(), groups.num_random)
    x, mask = tasks.query_x.double(), tasks.query_mask
    z, shared = x[..., : groups.num_random], found.shared(x)
    ways = {
        "pooled": found.coefficients[: groups.num_random].expand(len(x), -1),
        "unpooled": unpooled(found, tasks),
        "empirical Bayes": found.effects(tasks.observed()).mean[:, 0],
    }
    errors = {name: z @ w.unsqueeze(-1) + shared - tasks.query_y for name, w in ways.items()}
    squares = {name: (its.squeeze(-1).square() * mask).sum(1) / mask.sum(1) for name, its in errors.items()}
    return {name: its.mean().sqrt().item() for name, its in squares.items()}


def mean_distance(its: Learned, other: Learned, of: Sequence[bool] | Tensor) -> list[float]:
    """Mean absolute difference of each effect over some groups."""
    return (its.effects - other.effects)[torch.as_tensor(of)].abs().mean(0).tolist()
