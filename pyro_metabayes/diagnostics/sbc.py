"""Simulation-based calibration: is the posterior right on average over tasks that the model itself draws?

w ~ p(w), labels ~ p(y | x, w), then L draws from the posterior given these labels: the rank of w among the draws is
uniform on 0, ..., L in every scalar of w and the labels, if the posterior is the one of that prior and likelihood.
(Talts et al. 2018, arXiv 1804.06788; Modrak et al. 2023 on the scalars.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Tensor

from pyro_metabayes.data.stream import KnownTruth
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.learner import MetaLearner

MOST_WEIGHTS = 8
SIMULATIONS = 10_000


@dataclass(frozen=True)
class Ranks:
    """Ranks [K, T] in 0, ..., num_draws of K scalars, and their names."""

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
    """Ranks for all tasks at once: the inputs of `episodes`, with weights and labels drawn anew.

    training: of training_posterior, which the bound is of; else of `posterior`, given the support set. truth: draws w
    as the simulator does, before any label, instead of from the learned prior. Where the model takes the support set
    as given (`model.given_support`) and its own prior is asked, the labels of the support set stay.
    Scalars: weights (eight of them, where there are more), and the log likelihood of the labels that the posterior is
    given (in training those that the model observes): one that ignores them is uniform in the weights, not in that.
    """
    episodes = learner.featured(episodes)
    w, drawn = simulate(learner, episodes, truth)
    observed = drawn.observed()
    q = learner.guide.training_posterior(drawn) if training else learner.guide.posterior(observed)
    if not has_density(q):
        raise UsageError("expected a posterior with a density for ranks, got a point mass; take another guide")
    both = torch.cat((w.unsqueeze(0), q.sample(torch.Size((num_draws,)))))  # [1 + L, T, *W]
    flat = both.flatten(2)
    chosen = torch.linspace(0, flat.shape[-1] - 1, min(flat.shape[-1], MOST_WEIGHTS)).round().long()
    scalars = list(flat[..., chosen].unbind(-1))
    names = [f"w[{place}]" for place in chosen.tolist()]
    x, y, mask = drawn.labelled(learner.model.observe if training else "support")
    if x.shape[1]:
        scalars.append((learner.model.likelihood(both, x, observed).log_prob(y) * mask).sum(-1))
        names.append("log likelihood")
    return Ranks(names, torch.stack([_rank(scalar) for scalar in scalars]), num_draws)


def _rank(scalar: Tensor) -> Tensor:
    """How many of the draws scalar[1:] are below scalar[0] [T]; ties are broken by lot."""
    below, equal = (scalar[1:] < scalar[0]).sum(0), (scalar[1:] == scalar[0]).sum(0)
    return below + (torch.rand(equal.shape, device=equal.device) * (equal + 1)).long()


def simulate(learner: MetaLearner, episodes: Episodes, truth: KnownTruth | None) -> tuple[Tensor, Episodes]:
    """w [T, *W], and the tasks with labels that it draws."""
    model, observed = learner.model, episodes.observed()
    p: TorchDistribution = model.prior(observed)
    if truth is not None:
        p = truth.truth(_without_support(observed))
    elif not has_density(p):
        raise UsageError("expected a prior that w can be drawn from, got a flat one; take another prior")
    w = p.sample()
    support_y = episodes.support_y
    if episodes.support_x.shape[1] and (truth is not None or not model.given_support):
        support_y = model.likelihood(w, episodes.support_x, observed).sample()
    query_y = model.likelihood(w, episodes.query_x, observed).sample()
    return w, replace(episodes, support_y=support_y, query_y=query_y)


def _without_support(observed: Observed) -> Observed:
    names = ("support_x", "support_y", "support_mask")
    return replace(observed, **{name: getattr(observed, name)[:, :0] for name in names})


# ---------------------------------------------------------------- are ranks uniform?


@dataclass(frozen=True)
class Uniformity:
    """Of ranks [K, T]: p_values [K], the ECDF less that of uniform ranks [K, L] at r = 0, ..., L - 1, and its band [L].

    For uniform ranks a curve leaves the band anywhere with the probability `rate`. flagged: some of the K scalars
    has p < rate / K, which happens to a calibrated posterior with a probability of at most `rate`.
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
    """A test of whole ECDFs, with simultaneous bands.

    T uniform ranks have T F(r) ~ Bin(T, (r + 1) / (L + 1)) at each r. A curve's statistic is the smallest of its
    two-sided binomial probabilities over r; its distribution is simulated, and the band is where none is below the
    `rate` quantile. (Säilynoja, Bürkner and Vehtari 2022, arXiv 2103.10522; ranks give their exact points.)
    """
    num_tasks, num_draws = ranks.values.shape[1], ranks.num_draws
    share = torch.arange(1, num_draws + 1, dtype=torch.double) / (num_draws + 1)
    tail = _tails(num_tasks, share)
    counts = torch.stack([torch.bincount(its, minlength=num_draws + 1).cumsum(0)[:-1] for its in ranks.values.cpu()])
    simulated = _least_tail(_uniform_counts(num_tasks, num_draws, seed), tail).sort().values
    found = _least_tail(counts, tail)
    p_values = (1 + torch.searchsorted(simulated, found, right=True)) / (len(simulated) + 1)
    inside = tail > simulated[int(rate * len(simulated))]
    lower = inside.int().argmax(1)
    upper = num_tasks - inside.flip(1).int().argmax(1)
    return Uniformity(p_values, counts / num_tasks - share, lower / num_tasks - share, upper / num_tasks - share, rate)


def _tails(num_tasks: int, share: Tensor) -> Tensor:
    """2 min(P(X <= n), P(X >= n)) for X ~ Bin(T, share), [L, T + 1]."""
    n = torch.arange(num_tasks + 1, dtype=torch.double)
    choose = (
        torch.lgamma(torch.tensor(num_tasks + 1.0).double()) - torch.lgamma(n + 1) - torch.lgamma(num_tasks - n + 1)
    )
    mass = (choose + n * share.log().unsqueeze(-1) + (num_tasks - n) * (-share).log1p().unsqueeze(-1)).exp()
    at_most, at_least = mass.cumsum(1), mass.flip(1).cumsum(1).flip(1)
    return 2 * torch.minimum(at_most, at_least)


def _least_tail(counts: Tensor, tail: Tensor) -> Tensor:
    """The statistic of curves with counts [M, L]."""
    return tail.expand(len(counts), -1, -1).gather(2, counts.long().unsqueeze(-1)).squeeze(-1).amin(1)


def _uniform_counts(num_tasks: int, num_draws: int, seed: int) -> Tensor:
    """T F(r) of uniform ranks [SIMULATIONS, L]: one binomial after another, of those that are left."""
    generator = Generator().manual_seed(seed)
    reached, counts = torch.zeros(SIMULATIONS, dtype=torch.double), []
    for r in range(num_draws):
        here = torch.tensor(1 / (num_draws + 1 - r), dtype=torch.double)
        reached = reached + torch.binomial(num_tasks - reached, here.expand(SIMULATIONS), generator=generator)
        counts.append(reached)
    return torch.stack(counts, 1)
