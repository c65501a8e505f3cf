"""Scores of the closed form of a linear mixed model on tasks of groups, defined as in experiments.evaluate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.data.sources.ragged import Ragged
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.exact.conjugate import output_variance_of_rows
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.prediction.averages import masked_mean


def predicted(fitted: MixedEffects, tasks: Episodes) -> Normal:
    """Return p(y | x_query, support) at the maximum-likelihood estimates, as normal distributions [tasks, queries].

    The computation is in float64.
    """
    effects = fitted.effects(tasks.observed())
    x = tasks.query_x.double()
    z = x[..., : len(fitted.covariance)]
    mean = z @ effects.mean.mT + fitted.shared(x)
    variance = output_variance_of_rows(effects, z) + fitted.noise**2
    return Normal(mean.squeeze(-1), variance.squeeze(-1).sqrt())


def scores_of(fitted: MixedEffects, tasks: Episodes) -> dict[str, float]:
    """Return rmse, nll and coverage90 of the standardised response. All tasks have the same weight.

    The squared error, the negative log-likelihood and the coverage are averaged over the queries of a task, then over
    tasks. The rmse is the root of the mean squared error.
    """
    prediction, y = predicted(fitted, tasks), tasks.query_y[..., 0].double()
    pit = torch.special.ndtr((y - prediction.mean) / prediction.stddev)

    def over_tasks(values: Tensor) -> float:
        return masked_mean(values, tasks.query_mask).mean().item()

    return {
        "rmse": over_tasks((y - prediction.mean).square()) ** 0.5,
        "nll": -over_tasks(prediction.log_prob(y)),
        "coverage90": over_tasks(((pit > 0.05) & (pit < 0.95)).double()),
    }


def range_of_coverage(
    fitted: MixedEffects, groups: Groups, tasks_of: Callable[[Groups], Episodes], draws: int = 200
) -> tuple[float, float]:
    """Return the central 95% range of coverage90 over responses that are simulated from the fitted model.

    Even for an exact model, the coverage of a few test groups differs from 0.9 by chance. The range shows by how much.

    Args:
        fitted: the fitted model.
        groups: the table of groups, without weights of rows.
        tasks_of: function that returns the evaluation tasks of a table.
        draws: number of simulated tables.
    """
    generator = Generator().manual_seed(0)
    tables = (simulated(fitted, groups, generator)[0] for _ in range(draws))
    coverages = torch.tensor([scores_of(fitted, tasks_of(table))["coverage90"] for table in tables])
    low, high = coverages.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def simulated(fitted: MixedEffects, groups: Groups, generator: Generator) -> tuple[Groups, Tensor]:
    """Simulate the responses of a table from the fitted model.

    Args:
        fitted: the fitted model.
        groups: the table of groups, which must not have weights of rows.
        generator: source of the random numbers.

    Returns:
        The table with simulated responses, and the simulated effects [groups, effects].
    """
    points, sizes = groups.points.points.double(), groups.sizes
    covariance, x = fitted.covariance, points[:, :-1]
    root = torch.linalg.eigh(covariance)  # a covariance may be singular
    factor = root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt()
    effects = torch.randn(len(sizes), len(covariance), generator=generator, dtype=x.dtype) @ factor.mT
    own = (x[:, : len(covariance)] * effects.repeat_interleave(sizes, 0)).sum(-1)
    noise = fitted.noise * torch.randn(len(x), generator=generator, dtype=x.dtype)
    y = x @ fitted.coefficients + own + noise
    drawn = torch.cat((x, y.unsqueeze(-1)), -1).to(groups.points.points)
    return replace(groups, points=Ragged(drawn, sizes)), effects
