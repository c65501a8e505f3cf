"""Laplace approximation with matrices of the size of the points, compared with dense matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.inference.laplace import LowRankPrecision, fisher_root, ggn_root, log_det_precision
from tests.pairs import Pair

NETWORK = Pair("maml", "flat", model="neural_regression")
HEAD = Pair("maml", "flat", "linear")
LLAMAS = [Pair("llama", "flat", "linear"), Pair("llama", "flat", model="neural_regression")]
COSINE = Pair("maml", "flat", "cosine")


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def small(num_weights: int = 6, num_points: int = 3) -> tuple[LowRankPrecision, MultivariateNormal]:
    """A low-rank Gaussian for two tasks with event [2, P / 2], and the same Gaussian as a dense one."""
    loc, root = torch.randn(2, 2, num_weights // 2), torch.randn(2, 2, num_weights // 2, num_points)
    precision = 0.5 + torch.rand(2, num_weights // 2)
    ours = LowRankPrecision(loc, precision, root, event_dim=2)
    u = root.flatten(1, 2)
    dense = torch.diag(precision.flatten()) + u @ u.mT
    return ours, MultivariateNormal(loc.flatten(1), precision_matrix=dense)


def dense_ggn(model: Any, w: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """sum_i J_i^T L_i J_i of one task by torch.func, where L_i is the Hessian of -log p in the outputs."""
    jacobian = torch.func.jacrev(lambda its: model.outputs(its.view(w.shape), x).squeeze(0))(w.flatten())  # [N, C, P]
    outputs = model.outputs(w, x).squeeze(0)
    family = model.likelihood_of(outputs)
    y = family.sample()
    total = torch.zeros(w.numel(), w.numel())
    for i in range(len(outputs)):
        if mask[0, i]:
            its = y[i]

            def loss(o: Tensor, its: Tensor = its) -> Tensor:
                return -model.likelihood_of(o.unsqueeze(0)).log_prob(its.unsqueeze(0)).sum()

            total += jacobian[i].mT @ torch.func.hessian(loss)(outputs[i]) @ jacobian[i]
    return total


@pytest.mark.parametrize("pair", [NETWORK, HEAD, COSINE], ids=str)
def test_the_root_is_that_of_the_generalised_gauss_newton_matrix(pair: Pair) -> None:
    model: Any = pair.learner().model
    episodes = pair.tasks(num_tasks=1)
    w = torch.randn(1, *model.event_shape(episodes))
    mask = torch.ones(episodes.support_mask.shape, dtype=torch.bool)
    mask[0, 1] = False
    root = ggn_root(model, w, episodes.support_x, mask).flatten(1, 2).squeeze(0)
    torch.testing.assert_close(root @ root.mT, dense_ggn(model, w, episodes.support_x, mask))


def test_a_likelihood_without_a_known_hessian_is_refused() -> None:
    class Laplacian(nn.Module):
        canonical = False

        def likelihood_of(self, outputs: Tensor) -> Any:
            return torch.distributions.Laplace(outputs, 1.0)

    model: Any = Laplacian()
    with pytest.raises(
        UsageError, match=r"a known curvature \(.*\) for guide=laplace or .*got Laplace; use guide=maml"
    ):
        fisher_root(model, torch.zeros(1, 2, 1))


@pytest.mark.parametrize("num_points", [3, 11])
def test_the_determinant_lemma(num_points: int) -> None:
    """With fewer points than weights, and with more: the smaller side is factorised."""
    root, precision = torch.randn(2, 2, 3, num_points), 0.5 + torch.rand(2, 3)
    u = root.flatten(1, 2)
    dense = torch.diag(precision.flatten()) + u @ u.mT
    torch.testing.assert_close(log_det_precision(root, precision), torch.linalg.slogdet(dense).logabsdet)
    scalar = torch.tensor(0.3)
    dense = 0.3 * torch.eye(6) + u @ u.mT
    torch.testing.assert_close(log_det_precision(root, scalar), torch.linalg.slogdet(dense).logabsdet)


def test_the_determinant_lemma_on_mamls_network() -> None:
    """1761 weights and 10 points: a matrix of 10 in place of one of 1761."""
    specification = NETWORK.specification() | {"input_shape": [1]}
    specification |= {"head": {"_target_": "models.neural_regression.Network"}}
    learner = MetaLearner.from_specification(specification)
    guide: Any = learner.guide
    root = ggn_root(learner.model, guide.start.point.unsqueeze(0), torch.randn(1, 10, 1), torch.ones(1, 10).bool())
    assert root.shape == (1, 1, 1761, 10)
    u = root.flatten(1, 2)
    dense = torch.eye(1761) + u @ u.mT
    torch.testing.assert_close(log_det_precision(root, torch.ones(())), torch.linalg.slogdet(dense).logabsdet)


def test_low_rank_precision_is_a_multivariate_normal() -> None:
    ours, dense = small()
    assert ours.batch_shape == (2,) and ours.event_shape == (2, 3)
    torch.testing.assert_close(ours.mean.flatten(1), dense.mean)
    torch.testing.assert_close(ours.variance.flatten(1), dense.variance)
    torch.testing.assert_close(ours.entropy(), dense.entropy())
    w = torch.randn(4, 2, 2, 3)
    torch.testing.assert_close(ours.log_prob(w), dense.log_prob(w.flatten(2)))
    torch.testing.assert_close(ours.expand((4, 2)).log_prob(w), dense.log_prob(w.flatten(2)))


def test_its_divergence_to_a_diagonal_gaussian() -> None:
    ours, dense = small()
    p = Normal(torch.randn(2, 3), 0.5 + torch.rand(2, 3)).expand((2, 2, 3))
    full = MultivariateNormal(p.mean.flatten(1), torch.diag_embed(p.variance.flatten(1)))
    torch.testing.assert_close(kl_divergence(ours, Independent(p, 2)), kl_divergence(dense, full))


def test_the_covariance_of_its_draws() -> None:
    """Exactly, by pushing every unit vector through the sampler, and by draws within 5 standard errors."""
    ours, dense = small()
    unit = torch.eye(6).view(6, 1, 2, 3).expand(6, 2, 2, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *args, **kwargs: unit)
        columns = (ours.rsample((6,)) - ours.loc).flatten(2).movedim(0, -1)  # [T, P, P]
    torch.testing.assert_close(columns @ columns.mT, dense.covariance_matrix)
    draws = ours.rsample((40_000,)).flatten(2)
    for t in range(2):
        gap = torch.cov(draws[:, t].mT) - dense.covariance_matrix[t]
        assert gap.abs().max() < 5 * dense.variance[t].max() * (2 / 40_000) ** 0.5


# ---------------------------------------------------------------- the guides


@pytest.mark.parametrize("pair", LLAMAS, ids=str)
def test_llamas_loss_is_mamls_and_the_weighted_log_determinant_of_the_query_set(pair: Pair) -> None:
    settings = {"num_steps": 2, "step_size": 0.1}
    plain = replace(pair, guide="maml", settings=settings).learner()
    llama = replace(pair, settings={**settings, "weight": 0.3, "precision": 0.5}).learner()
    episodes = pair.tasks()
    phi = plain.guide.posterior(episodes.observed()).mean
    dense = [
        dense_ggn(plain.model, phi[t : t + 1], episodes.query_x[t : t + 1], episodes.query_mask[t : t + 1])
        for t in range(episodes.num_tasks)
    ]
    log_dets = torch.stack([torch.logdet(its + 0.5 * torch.eye(len(its))) for its in dense])
    gap = llama(episodes)["loss"] - plain(episodes)["loss"]
    torch.testing.assert_close(gap, 0.3 * 0.5 * log_dets.mean())
    torch.testing.assert_close(llama.guide.posterior(episodes.observed()).mean, phi)


@pytest.mark.parametrize("pair", [Pair("laplace", head="linear"), Pair("laplace", model="neural_regression")], ids=str)
def test_the_laplace_guide_has_the_curvature_of_prior_and_support(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    q: Any = learner.guide.posterior(episodes.observed())
    prior = learner.model.prior(episodes)
    for t in range(episodes.num_tasks):
        here = slice(t, t + 1)
        ggn = dense_ggn(learner.model, q.loc[here], episodes.support_x[here], episodes.support_mask[here])
        covariance = torch.linalg.inv(torch.diag(1 / prior.variance[t].flatten()) + ggn)
        torch.testing.assert_close(q.variance[t].flatten(), covariance.diagonal())


def test_in_a_linear_model_the_laplace_guide_converges_to_the_exact_posterior() -> None:
    pair = Pair("laplace", model="linear_regression", settings={"num_steps": 4000, "step_size": 0.02})
    learner, episodes = pair.learner(), pair.tasks()
    model: Any = learner.model
    with torch.no_grad():
        got, exact = learner.guide.posterior(episodes.observed()), model.exact_posterior(episodes.observed())
    torch.testing.assert_close(got.mean, exact.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.variance, exact.variance)
