"""Do the errors of the estimates widen predictions as the closed forms of a balanced design say?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyro_metabayes import Episodes
from pyro_metabayes.data.sources.groups import load
from pyro_metabayes.episodes import Observed
from pyro_metabayes.exact.effect_structure import EffectStructure
from pyro_metabayes.exact.estimation_errors import estimation_errors, parameters_of, standard_errors
from pyro_metabayes.exact.mixed_effects import fit

GROUPS, SIZE = 60, 4


def one_way(effect_sd: float = 1.0, seed: int = 0) -> Episodes:
    """Groups of equal size with random intercepts."""
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    effects = effect_sd * torch.randn(GROUPS, 1, generator=generator)
    y = (effects + torch.randn(GROUPS, SIZE, generator=generator)).unsqueeze(-1)
    return Episodes(support_x=y[:, :0], support_y=y[:, :0], query_x=torch.ones_like(y), query_y=y)


def new_group(shot: int) -> Observed:
    ones = torch.ones(1, shot, 1)
    return Observed(support_x=ones, support_y=0.3 * ones, query_x=torch.ones(1, 1, 1))


def mean_squares(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Mean squares between and within groups, as in an analysis of variance."""
    y = episodes.query_y[..., 0]
    return SIZE * y.mean(1).var(), y.var(1).mean()


def test_a_new_group_of_a_balanced_design() -> None:
    """v = MSB / n + (1 - 1/n) MSW, Cov(m) = (tau^2 + sigma^2 / n) / G, and Satterthwaite's degrees of freedom of v."""
    episodes = one_way()
    errors, fitted = estimation_errors(episodes, 1), fit(episodes, 1)
    assert errors is not None
    between, within = mean_squares(episodes)
    v = between / SIZE + (1 - 1 / SIZE) * within
    freedom = v**2 / ((between / SIZE) ** 2 / (GROUPS - 1) + ((1 - 1 / SIZE) * within) ** 2 / (GROUPS * (SIZE - 1)))
    factor, noise = errors.psi[1], errors.psi[2].exp()
    variance = noise**2 * (1 + factor**2)
    torch.testing.assert_close(variance, v, rtol=2 / GROUPS, atol=0)  # the penalty
    of_prior, of_mean = errors.of_queries(new_group(0)), noise**2 * (factor**2 + 1 / SIZE) / GROUPS
    torch.testing.assert_close(of_prior.sd[0, 0] ** 2, variance + of_mean, rtol=1e-6, atol=0)
    plug_in = (fitted.covariance[0, 0] + fitted.noise**2).sqrt()
    torch.testing.assert_close(of_prior.ratio[0, 0], of_prior.sd[0, 0] / plug_in, rtol=1e-3, atol=0)
    torch.testing.assert_close(of_prior.freedom[0, 0], freedom, rtol=0.05, atol=0)  # the information has G, not G - 1
    assert of_prior.quantile(0.9)[0, 0] > 1.645


def test_standard_errors_of_a_balanced_design() -> None:
    """The noise variance is chi-squared with G (n - 1) degrees of freedom; that of effects is MSB / n - MSW / n."""
    episodes = one_way()
    fitted, structure = fit(episodes, 1), EffectStructure(1)
    psi = parameters_of(fitted.coefficients, fitted.covariance, fitted.noise, structure)
    sd, noise = standard_errors(
        episodes, structure, psi, lambda covariance, noise: torch.stack((covariance[0, 0].sqrt(), noise))
    )
    between, within = mean_squares(episodes)
    freedom = GROUPS * (SIZE - 1)
    torch.testing.assert_close(noise, (within / (2 * freedom)).sqrt(), rtol=1e-4, atol=0)
    between = between * (GROUPS - 1) / GROUPS  # the estimate of maximum likelihood
    variance = 2 * (between**2 / GROUPS + within**2 / freedom) / SIZE**2
    torch.testing.assert_close(sd, variance.sqrt() / (2 * fitted.covariance[0, 0].sqrt()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("num_random", [1, 2])
def test_estimates_at_the_edge_have_no_standard_errors(num_random: int) -> None:
    """An sd of 0, or a correlation of -1."""
    structure, episodes = EffectStructure(num_random), one_way(effect_sd=0.0)
    x = torch.cat((episodes.query_x, torch.arange(SIZE).double().expand(GROUPS, -1).unsqueeze(-1)), -1)
    episodes = replace(episodes, query_x=x, support_x=x[:, :0])
    fitted = fit(episodes, num_random)
    psi = parameters_of(fitted.coefficients, fitted.covariance, fitted.noise, structure)
    assert standard_errors(episodes, structure, psi, lambda _, noise: noise.view(1)).isnan().all()


def test_many_known_points_need_no_prior() -> None:
    """Predictions of a group with many points hardly depend on the other groups."""
    errors = estimation_errors(one_way(), 1)
    assert errors is not None
    few, many = (errors.of_queries(new_group(shot)) for shot in (0, 500))
    assert many.ratio.item() == pytest.approx(1, abs=0.01) and few.ratio.item() > 1.01
    assert many.freedom.item() == pytest.approx(GROUPS * (SIZE - 1), rel=0.1)


def test_groups_that_do_not_differ_have_finite_errors() -> None:
    """The sd of the effects is 0: effects in two directions, of which the likelihood knows nothing."""
    episodes = one_way(effect_sd=0.0)
    x = torch.cat((episodes.query_x, torch.arange(SIZE).double().expand(GROUPS, -1).unsqueeze(-1)), -1)
    errors = estimation_errors(replace(episodes, query_x=x, support_x=x[:, :0]), 2)
    assert errors is not None
    at = torch.tensor([[[1.0, 0.0], [1.0, 3.0]]])
    known = Observed(support_x=at, support_y=torch.zeros(1, 2, 1), query_x=at)
    for noise in (True, False):
        widening = errors.of_queries(known, noise)
        assert (
            (widening.ratio >= 0.99).all() and widening.quantile(0.9).isfinite().all() and (widening.freedom >= 1).all()
        )


def test_weights_of_rows_in_other_units_change_nothing(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [(g, 1 + g % 3, g / 7 + torch.randn((), generator=generator).item()) for g in range(12) for _ in range(3)]
    found = []
    for factor in (1, 50):
        path = tmp_path / f"{factor}.csv"
        path.write_text("who,n,y\n" + "".join(f"g{g},{n * factor},{y}\n" for g, n, y in rows))
        groups = load("who", "y", path=str(path), weights="n")
        errors = groups.estimation_errors()
        assert errors is not None
        observed = groups.with_equal_precision(groups.all_points().pooled())
        widening = errors.of_queries(observed)
        found.append(widening.ratio * widening.quantile(0.9))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0)


def test_a_likelihood_without_maximum_has_no_errors() -> None:
    episodes = one_way()
    y = episodes.query_y.mean(1, keepdim=True).expand(-1, SIZE, -1)
    assert estimation_errors(replace(episodes, query_y=y), 1) is None
