"""Latin-square draws: distribution of each draw, logits, and errors of averages over the draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.nn.functional import normalize

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.evaluation.task_scores import score_batch
from pyro_metabayes.likelihoods.draws import likelihood_of_draws
from pyro_metabayes.models import few_shot_classifier, laplacian_shot
from pyro_metabayes.models.heads import Cosine, CosineOffset, Head, Linear
from pyro_metabayes.models.priors import Flat
from pyro_metabayes.seeding import noise_of
from tests.pairs import Pair, random_tasks

SIZES = [(30, 5), (3, 5), (31, 7), (8, 2), (4, 1)]  # L, C


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def weights(square: LatinSquare, loc: Tensor, noise: Tensor) -> Tensor:
    """w [L, T, C, W] from the definition, draw by draw and row by row."""
    draws = []
    for sign in (1, -1):
        for j in range((square.num_samples + 1) // 2):
            rows = [noise[:, c % noise.shape[1], (j + c) % noise.shape[2]] for c in range(square.num_rows)]
            draws.append(loc + sign * torch.stack(rows, 1))
    return torch.stack(draws)[: square.num_samples]


@pytest.mark.parametrize(("samples", "way"), SIZES)
@pytest.mark.parametrize("head", [Cosine(), CosineOffset(), Linear(2.0)], ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("one_scale", [True, False])
def test_logits_are_those_of_the_weights(samples: int, way: int, head: Any, one_scale: bool) -> None:
    head, square = head.double(), LatinSquare(samples, way)
    loc = torch.randn(3, way, head.num_weights(6))
    noise = square.noise(torch.rand(3, 1 if one_scale else way, loc.shape[-1]))
    x = normalize(torch.randn(3, 4, 6), dim=-1)
    expected = head.outputs(weights(square, loc, noise), x)
    torch.testing.assert_close(head.outputs_of_draws(loc, noise, square)(x), expected)
    torch.testing.assert_close(Head.outputs_of_draws(head, loc, noise, square)(x), expected)


@pytest.mark.parametrize(("samples", "way"), SIZES)
def test_no_two_rows_of_a_draw_share_noise_and_rows_repeat_it_only_within_a_pair(samples: int, way: int) -> None:
    """So every draw is exactly one of N(loc, scale^2), and the pairs of a row are independent."""
    square = LatinSquare(samples, way)
    noise = torch.arange(1.0, 1 + max((samples + 1) // 2, way)).view(1, 1, -1, 1)  # the number of the noise vector
    used = weights(square, torch.zeros(1, way, 1), noise)[:, 0, :, 0]
    pairs = (samples + 1) // 2
    assert all(len(draw.abs().unique()) == way for draw in used)
    assert all(len(row.unique()) == pairs for row in used[:pairs].T)
    torch.testing.assert_close(used[pairs:], -used[: samples - pairs])


def test_draws_have_the_moments_of_the_distribution() -> None:
    """Means 0, variances 1 and no correlation of logits of one draw; standard errors are at most 0.04."""
    head, square, tasks = Linear().double(), LatinSquare(4, 3), 5_000
    x = normalize(torch.randn(1, 2, 5), dim=-1).expand(tasks, -1, -1)
    scale = torch.tensor([0.5, 1.0, 1.5, 2.0, 0.7, 0.0])
    logits = head.outputs_of_draws(torch.zeros(tasks, 3, 6), square.noise(scale.expand(tasks, 1, -1)), square)(x)
    for draw in logits.flatten(2):  # [T, 2 * 3]
        covariance = torch.block_diag(*[x[0] @ torch.diag(scale[:5].square()) @ x[0].T] * 3)
        order = [0, 3, 1, 4, 2, 5]  # query first -> class first
        torch.testing.assert_close(draw[:, order].T.cov(), covariance, rtol=0, atol=0.2)
        assert draw.mean(0).abs().max() < 0.12


def test_tasks_share_no_noise_and_do_not_depend_on_their_batch() -> None:
    learner, tasks = Pair("sib", "gaussian").learner(), random_tasks(num_tasks=4, features=16).observed()
    q = Normal(torch.randn(4, 5, 16), 0.3).to_event(2)
    model: Any = few_shot_classifier.Model(learner.model.head, Flat())

    def logits(parts: list[slice]) -> Tensor:
        with noise_of(3):
            return torch.cat(
                [drawn(model, Normal(q.mean[part], 0.3).to_event(2), tasks.tasks(part)) for part in parts], 1
            )

    whole = logits([slice(0, 4)])
    torch.testing.assert_close(logits([slice(0, 1), slice(1, 4)]), whole)
    same = tasks.tasks(torch.zeros(4, dtype=torch.long))
    with noise_of(3):
        repeated = drawn(model, Normal(q.mean[:1].expand(4, -1, -1), 0.3).to_event(2), same)
    assert (repeated[:, 1:] - repeated[:, :1]).abs().amin((0, 2, 3)).min() > 0


def drawn(model: Any, q: TorchDistribution, observed: Any, samples: int = 10) -> Tensor:
    return likelihood_of_draws(model, q, observed, samples).likelihood.logits  # type: ignore[attr-defined]


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("head", [Cosine(10.0), Linear(3.0)], ids=lambda head: type(head).__name__)
def test_averages_agree_with_independent_draws_and_have_a_smaller_error(head: Any, scale: float) -> None:
    """Over 400 repetitions, against 10,000 independent draws."""
    head = head.double()
    model = few_shot_classifier.Model(head, Flat())
    one = random_tasks(num_tasks=1, features=8).observed()
    loc = torch.randn(1, 5, head.num_weights(8))
    many = one.tasks(torch.zeros(400, dtype=torch.long))
    q, q_many = (Normal(loc.expand(n, -1, -1), scale).to_event(2) for n in (1, 400))
    with torch.no_grad():
        true = model.likelihood(q.sample(torch.Size((10_000,))), one.query_x, one).probs.mean(0)
        plain = model.likelihood(q_many.sample(torch.Size((30,))), many.query_x, many).probs.mean(0)
        square = drawn(model, q_many, many, 30).exp().mean(0)
    errors = [(value - true).square().mean().item() for value in (plain, square)]
    assert errors[1] < 0.6 * errors[0]
    bias = square.mean(0) - true
    assert bias.abs().max() < 5 * (square.std(0) / 20).max() + 5e-3


class Doubled(few_shot_classifier.Model):
    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return 2 * super().outputs(w, x)


class Cubed(Cosine):
    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return super().outputs(w, x) ** 3


def test_a_derived_model_or_head_is_not_mistaken_for_its_base() -> None:
    observed = random_tasks(num_tasks=2, features=8).observed()
    q = Normal(torch.randn(2, 5, 8), 1e-9).to_event(2)
    for model in (
        Doubled(Cosine(), Flat()),
        few_shot_classifier.Model(Cubed(), Flat()),
        laplacian_shot.Model(Cosine(), Flat()),
    ):
        model = model.double()
        expected = model.likelihood(q.mean, observed.query_x, observed).logits  # type: ignore[attr-defined]
        torch.testing.assert_close(drawn(model, q, observed, 2)[0], expected)
    assert likelihood_of_draws(Doubled(Cosine(), Flat()).double(), q, observed, 2).square is None


def test_spreads_are_those_of_independent_draws() -> None:
    """logit_variance and information of 10 draws, whose mean is exact to first order, have no bias."""
    learner: Any = Pair("mean_field", "gaussian", "linear").learner()
    learner.model.prior_over_weights.log_scale.data.fill_(-1.0)
    tasks = random_tasks(num_tasks=1, query=4).tasks(torch.zeros(1000, dtype=torch.long))
    with torch.no_grad():
        few = score_batch(learner, tasks, 10).spreads
        q = learner.guide.posterior(tasks.observed())
        w = q.sample(torch.Size((40,)))
        logits = learner.model.likelihood(w, tasks.query_x, tasks.observed()).logits
    variance = (logits - logits.mean(-1, keepdim=True)).var(0).mean()
    assert few["posterior_logit_variance"].mean().item() == pytest.approx(variance.item(), rel=0.03)
    mean = logits.logsumexp(0) - torch.tensor(40.0).log()
    information = (logits.exp() * (logits - mean)).sum(-1).sum(0).mean() / 39 * logits.shape[2]
    assert few["posterior_information"].mean().item() == pytest.approx(information.item(), rel=0.05)
    error = few["posterior_information_error"].square().mean().sqrt()
    assert few["posterior_information"].std() < 1.1 * error
