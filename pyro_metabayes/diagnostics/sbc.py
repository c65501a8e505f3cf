"""Simulation-based calibration: a test of the posterior on tasks that the model simulates.

Draw w ~ p(w), labels y ~ p(y | x, w), and w_1, ..., w_L from the posterior given y. If the posterior is exact, the rank
of f(w, y) among f(w_1, y), ..., f(w_L, y) is uniform on 0, ..., L, for every scalar function f.
(Talts et al. 2018, arXiv 1804.06788; Modrak et al. 2023 on the choice of f.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Tensor

from pyro_metabayes.data.stream import KnownTruth
from pyro_metabayes.distributions.joint import sites_of
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.learner import MetaLearner

MOST_WEIGHTS = 8  # weights whose ranks are computed
SIMULATIONS = 10_000  # draws of the null distribution of the test statistic


@dataclass(frozen=True)
class Ranks:
    """Names of K scalars, and their ranks [K, T] from 0 to num_draws in T simulated tasks."""

    names: list[str]
    values: Tensor
    num_draws: int


@torch.no_grad()
def sbc_ranks(
    learner: MetaLearner,
    episodes: Episodes,
    num_draws: int = 99,
    training: bool = False,
    truth: KnownTruth | None = None,
) -> Ranks:
    """Draw weights and labels from the model, and rank scalars of the weights among draws of the posterior.

    The scalars are at most eight weights, and the log-likelihood of the labels that the posterior is given. Only the
    log-likelihood detects a posterior that ignores the labels.

    Args:
        learner: the learner to check.
        episodes: T tasks; only their inputs are used.
        num_draws: number L of draws of the posterior per task.
        training: True: check `training_posterior`, given the labels that the model observes. False: check `posterior`,
            given the support set.
        truth: simulator with the prior of w; None: the learned prior. Under a learned prior that is conditional on the
            support set (`model.given_support`), the support labels are not redrawn.

    Raises:
        UsageError: the posterior or the prior has no density, or the simulator has another shape of w.
    """
    episodes = learner.featured(episodes)
    w, simulated = simulate(learner, episodes, truth)
    observed = simulated.observed()
    q = learner.guide.training_posterior(simulated) if training else learner.guide.posterior(observed)
    if not has_density(q):
        raise UsageError("expected a posterior that can be sampled, got a point estimate; use another guide")
    samples = torch.cat((w.unsqueeze(0), q.sample(torch.Size((num_draws,)))))  # [1 + L, T, *W]
    flat = samples.flatten(2)
    columns = torch.linspace(0, flat.shape[-1] - 1, min(flat.shape[-1], MOST_WEIGHTS)).round().long()
    scalars = list(flat[..., columns].unbind(-1))
    labels = sites_of(q).labels
    names = [labels[column] for column in columns.tolist()]
    x, y, mask = simulated.labelled(learner.model.observe if training else "support")
    if x.shape[1]:
        scalars.append((learner.model.likelihood(samples, x, observed).log_prob(y) * mask).sum(-1))
        names.append("log likelihood")
    return Ranks(names, torch.stack([_rank(scalar) for scalar in scalars]), num_draws)


def _rank(scalar: Tensor) -> Tensor:
    """Compute the rank [T] of scalar[0] among the draws scalar[1:] per task; ties are broken at random."""
    below, equal = (scalar[1:] < scalar[0]).sum(0), (scalar[1:] == scalar[0]).sum(0)
    return below + (torch.rand(equal.shape, device=equal.device) * (equal + 1)).long()


def simulate(learner: MetaLearner, episodes: Episodes, truth: KnownTruth | None) -> tuple[Tensor, Episodes]:
    """Draw w per task from the prior; return w, and the tasks with labels drawn given w.

    The prior is the prior of the simulator `truth`, or the learned prior if truth is None.
    """
    model, observed = learner.model, episodes.observed()
    p: TorchDistribution = model.prior(observed)
    if truth is not None:
        p = truth.truth(_without_support(observed))
        if p.event_shape != (shape := model.event_shape(observed)):
            raise UsageError(
                f"expected a simulator with weights of shape {list(shape)}, as in the model, got shape "
                f"{list(p.event_shape)}; use prior=learned"
            )
    elif not has_density(p):
        raise UsageError("expected a prior that can be sampled, got a flat prior; use another prior")
    w = p.sample()
    support_y = episodes.support_y
    if episodes.support_x.shape[1] and (truth is not None or not model.given_support):
        support_y = model.likelihood(w, episodes.support_x, observed).sample().to(support_y.dtype)
    # The ordered-logistic likelihood draws int64 levels, but the labels of its data are floating-point numbers.
    query_y = model.likelihood(w, episodes.query_x, observed).sample().to(episodes.query_y.dtype)
    return w, replace(episodes, support_y=support_y, query_y=query_y)


def _without_support(observed: Observed) -> Observed:
    names = ("support_x", "support_y", "support_mask")
    return replace(observed, **{name: getattr(observed, name)[:, :0] for name in names})


# ---------------------------------------------------------------- test of uniformity


@dataclass(frozen=True)
class Uniformity:
    """Result of a test whether the ranks of K scalars among L posterior draws are uniform.

    Attributes:
        p_values: [K], one p-value per scalar.
        difference: [K, L], the empirical CDF minus the CDF of uniform ranks, at the ranks r = 0, ..., L - 1.
        lower, upper: [L], simultaneous band. If the ranks of a scalar are uniform, their curve `difference` leaves the
            band at some r with probability `rate`.
        rate: error rate of the test.
        flagged: whether one of the K scalars has p < rate / K. An exact posterior is flagged with probability at most
            `rate`.
    """

    p_values: Tensor
    difference: Tensor
    lower: Tensor
    upper: Tensor
    rate: float

    @property
    def flagged(self) -> bool:
        return bool(self.p_values.min() < self.rate / len(self.p_values))


def uniformity(ranks: Ranks, rate: float = 0.05, seed: int = 0) -> Uniformity:
    """Test whether ranks are uniform, from their empirical CDF F, with a simultaneous band.

    T uniform ranks from 0 to L have T F(r) ~ Bin(T, (r + 1) / (L + 1)) at each rank r < L. The test statistic is the
    smallest two-sided binomial probability over r. The null distribution of the statistic is simulated. The band
    contains the curves F with a statistic above the `rate` quantile of the null distribution.
    (Säilynoja, Bürkner and Vehtari 2022, arXiv 2103.10522; here F is evaluated at r = 0, ..., L - 1.)

    Args:
        ranks: ranks of K scalars among L draws, in each of T tasks.
        rate: error rate of the test.
        seed: seed of the simulated null distribution.
    """
    num_tasks, num_draws = ranks.values.shape[1], ranks.num_draws
    share = torch.arange(1, num_draws + 1, dtype=torch.double) / (num_draws + 1)
    tail = _tails(num_tasks, share)
    counts = torch.stack([torch.bincount(rank, minlength=num_draws + 1).cumsum(0)[:-1] for rank in ranks.values.cpu()])
    simulated = _least_tail(_uniform_counts(num_tasks, num_draws, seed), tail).sort().values
    statistic = _least_tail(counts, tail)
    p_values = (1 + torch.searchsorted(simulated, statistic, right=True)) / (len(simulated) + 1)
    inside = tail > simulated[int(rate * len(simulated))]
    lower = inside.int().argmax(1)
    upper = num_tasks - inside.flip(1).int().argmax(1)
    return Uniformity(p_values, counts / num_tasks - share, lower / num_tasks - share, upper / num_tasks - share, rate)


def _tails(num_tasks: int, share: Tensor) -> Tensor:
    """Compute 2 min(P(X <= n), P(X >= n)) for X ~ Bin(num_tasks, p), per p in `share` and n = 0, ..., num_tasks."""
    n = torch.arange(num_tasks + 1, dtype=torch.double)
    choose = (
        torch.lgamma(torch.tensor(num_tasks + 1.0).double()) - torch.lgamma(n + 1) - torch.lgamma(num_tasks - n + 1)
    )
    mass = (choose + n * share.log().unsqueeze(-1) + (num_tasks - n) * (-share).log1p().unsqueeze(-1)).exp()
    at_most, at_least = mass.cumsum(1), mass.flip(1).cumsum(1).flip(1)
    return 2 * torch.minimum(at_most, at_least)


def _least_tail(counts: Tensor, tail: Tensor) -> Tensor:
    """Compute the test statistic of `uniformity` per curve, from the counts T F(r) [curves, ranks r]."""
    return tail.expand(len(counts), -1, -1).gather(2, counts.long().unsqueeze(-1)).squeeze(-1).amin(1)


def _uniform_counts(num_tasks: int, num_draws: int, seed: int) -> Tensor:
    """Simulate counts T F(r) [curves, ranks r], with F the empirical CDF of T = num_tasks uniform ranks."""
    generator = Generator().manual_seed(seed)
    reached, counts = torch.zeros(SIMULATIONS, dtype=torch.double), []
    for r in range(num_draws):
        probability = torch.tensor(1 / (num_draws + 1 - r), dtype=torch.double)
        reached = reached + torch.binomial(num_tasks - reached, probability.expand(SIMULATIONS), generator=generator)
        counts.append(reached)
    return torch.stack(counts, 1)
