"""Rank-normalised R-hat and effective sample sizes, compared with ArviZ and for chains with known values."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from pyro_metabayes.diagnostics.gold import Gold
from pyro_metabayes.exact.convergence import CONVERGED_R_HAT, SUFFICIENT_SIZE, bulk_size, r_hat, tail_size


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def chains(correlation: float, num_chains: int = 4, draws: int = 500) -> Tensor:
    """Stationary AR(1) chains [chains, L] of variance 1."""
    noise = torch.randn(num_chains, draws)
    values = [noise[:, 0]]
    for step in range(1, draws):
        values.append(correlation * values[-1] + (1 - correlation**2) ** 0.5 * noise[:, step])
    return torch.stack(values, 1)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_they_are_those_of_arviz(correlation: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz")
    x = chains(correlation).exp()  # skewed: the ranks matter
    draws = x.numpy()
    assert r_hat(x).item() == pytest.approx(float(arviz.rhat(draws)), abs=2e-3)
    assert bulk_size(x).item() == pytest.approx(float(arviz.ess(draws, method="bulk")), rel=0.1)
    assert tail_size(x).item() == pytest.approx(float(arviz.ess(draws, method="tail")), rel=0.15)


def test_independent_draws_are_worth_their_number() -> None:
    x = chains(0.0).unsqueeze(-1).expand(-1, -1, 3)
    assert r_hat(x).shape == (3,) and (r_hat(x) < CONVERGED_R_HAT).all()
    assert bulk_size(x)[0].item() == pytest.approx(2000, rel=0.25)


def test_chains_of_other_location_or_scale_have_not_converged() -> None:
    """A scale that differs between chains shows in the folded draws alone."""
    x = chains(0.0)
    shifted, scaled = x.clone(), x.clone()
    shifted[0] += 1.0
    scaled[0] *= 3.0
    assert r_hat(shifted) > 1.05 and r_hat(scaled) > 1.05


def test_gold_is_converged_by_all_three_criteria() -> None:
    enough, few = torch.full((1,), SUFFICIENT_SIZE + 1.0), torch.full((1,), SUFFICIENT_SIZE - 1.0)
    good, bad = torch.full((1,), 1.005), torch.full((1,), 1.02)
    w, none = torch.zeros(1, 1, 1, 1), torch.zeros(1)
    assert bool(Gold(w, good, enough, enough, enough, none).converged)
    for r, *sizes in ((bad, enough, enough, enough), (good, few, enough, enough), (good, enough, enough, few)):
        assert not bool(Gold(w, r, *sizes, none).converged)
