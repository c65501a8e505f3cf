"""Conditional priors with correlated weights: their densities, and trained ones saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.distributions import Normal
from torch import Size, Tensor, nn
from torch.distributions import ComposeTransform, MultivariateNormal

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.models.parts.conditional_families import CouplingFlow, LowRank
from pyro_metabayes.models.priors import Conditional
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.allowance import Allowance
from tests.commands import on_features, ran, results_of
from tests.pairs import FEATURES, WAY, Pair, random_tasks

SETTINGS: dict[str, Any] = {"num_features": FEATURES, "num_weights": FEATURES, "num_hidden": 6, "count_aware": True}
SHAPE = Size((WAY, FEATURES))


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def moved(prior: Any) -> Any:
    """The prior, with parameters moved from their initial values."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


def test_a_flow_starts_as_the_gaussian_of_its_encoder() -> None:
    flow, plain, observed = CouplingFlow(**SETTINGS), Conditional(**SETTINGS), random_tasks()
    plain.encoder.load_state_dict(flow.encoder.state_dict())
    q, expected = flow(observed, SHAPE), plain(observed, SHAPE)
    w = torch.randn(4, *q.batch_shape, *SHAPE)
    torch.testing.assert_close(q.log_prob(w), expected.log_prob(w))


def test_the_density_of_a_flow_is_that_of_its_draws() -> None:
    """log N(z) - log |det dw/dz| of each class, by the Jacobian of all layers."""
    q, z = moved(CouplingFlow(**SETTINGS, num_layers=3))(random_tasks(1), SHAPE), torch.randn(*SHAPE)
    inner: Any = innermost(q)

    def of_class(value: Tensor, number: int) -> Tensor:
        return ComposeTransform(inner.transforms)(z.index_put((torch.tensor(number),), value).unsqueeze(0))[0, number]

    expected = Normal(0.0, 1.0).log_prob(z).sum()
    for number in range(WAY):
        jacobian: Tensor = torch.autograd.functional.jacobian(lambda at, c=number: of_class(at, c), z[number])
        expected = expected - torch.linalg.slogdet(jacobian).logabsdet
    w = ComposeTransform(inner.transforms)(z.unsqueeze(0))
    torch.testing.assert_close(q.log_prob(w.clone())[0], expected)
    assert not torch.allclose(jacobian, torch.diag(jacobian.diagonal())), "the weights are independent"


def test_the_covariance_of_a_low_rank_prior() -> None:
    prior, observed = moved(LowRank(**SETTINGS, rank=2)), random_tasks()
    q: Any = innermost(prior(observed, SHAPE))
    loc, scale = prior.encoder(observed.support_x, observed.support_y, observed.support_mask, WAY)
    factor = prior.factor_net(loc).view(*loc.shape, 2)
    unit = torch.eye(FEATURES) + factor @ factor.mT
    expected = MultivariateNormal(loc, scale.unsqueeze(-1) * unit * scale.unsqueeze(-2))
    torch.testing.assert_close(q.covariance_matrix, expected.covariance_matrix)
    assert (unit - torch.eye(FEATURES)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (LowRank, {"rank": 0}, r"expected prior\.rank >= 1, got 0"),
        (CouplingFlow, {"num_layers": 0}, r"expected prior\.num_layers >= 1"),
        (CouplingFlow, {"num_hidden": 0}, r"expected prior\.num_layers >= 1, prior\.num_hidden >= 1"),
        (CouplingFlow, {"num_weights": 1}, r"at least 2 weights per class, got num_layers=2, num_hidden=6 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(family: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        family(**SETTINGS | settings)


@pytest.mark.parametrize("prior", ["low_rank", "coupling_flow"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_trained_one_is_saved_and_loaded(prior: str, shared: bool, tmp_path: Path) -> None:
    pair = Pair("savi", prior, "linear", settings={"shared": shared})
    learner, episodes = pair.learner(), pair.tasks()
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        learner(episodes)["loss"].backward()
        optimiser.step()
    learner.save(tmp_path / "it.pt")
    loaded = MetaLearner.load(tmp_path / "it.pt")
    w = torch.randn(2, episodes.num_tasks, *learner.model.event_shape(episodes))
    for name, data in (("posterior", episodes.observed()), ("training_posterior", episodes)):
        saved, found = (getattr(either.guide, name)(data).log_prob(w) for either in (learner, loaded))
        torch.testing.assert_close(found, saved)


@pytest.mark.parametrize("prior", ["low_rank", "coupling_flow"])
@pytest.mark.usefixtures("empty_folder")
def test_the_commands_train_and_evaluate_one(prior: str, features: Path) -> None:
    torch.set_default_dtype(torch.float32)
    settings = [*on_features(features), "guide=savi", f"prior={prior}", "prior.num_hidden=8"]
    ran("run", *settings, "hydra.run.dir=run")
    results = results_of(Path("run"))
    assert results["kl"] is not None and results["posterior_sd"] > 0
    assert (results["kl_monte_carlo_error"] is None) == (prior == "low_rank")
    ran("evaluate", "run", "eval.tasks=4", "eval.samples=3")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert (lines[-1]["posterior_sd_monte_carlo_error"] is None) == (prior == "low_rank")


# ---------------------------------------------------------------- the memory of what is loaded


def test_new_tensors_share_an_allowance() -> None:
    with Allowance(10_000, "it"):
        nn.Linear(10, 100)  # 8,800 bytes
        with pytest.raises(UsageError, match="asks for more memory than a file of this size can fill"):
            torch.zeros(200)
    torch.zeros(200)


def test_nothing_is_allocated_beyond_the_allowance() -> None:
    with Allowance(10_000, "it"), pytest.raises(UsageError, match="asks for more memory"):
        torch.empty(10**12)


def test_a_flow_of_any_size_is_not_built(tmp_path: Path) -> None:
    Pair("savi", "coupling_flow").learner().save(tmp_path / "it.pt")
    state = checkpoint.load(tmp_path / "it.pt")
    state["learner"]["specification"]["prior"]["num_hidden"] = 10**7
    checkpoint.save(tmp_path / "it.pt", state)
    with pytest.raises(UsageError, match="expected a checkpoint of this model and guide, got another"):
        MetaLearner.load(tmp_path / "it.pt")
