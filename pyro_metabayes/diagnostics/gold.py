"""Gold standards: what exact inference in the trained generative model would believe of single tasks.

Two targets, not to be confused. p(w | support) is the ceiling of an inductive prediction: no guide of this model and
prior predicts better on average, if the model is true. p(w | support and query) is what a training posterior
approximates; it has seen the labels that it would predict. Both by NUTS (Hoffman and Gelman 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.model import OBSERVE, Model


class Target:
    """log p(w) + sum_i log p(y_i | x_i, w) of each task, over the labels "support", "query" or "all".

    A model that takes the support set as given (a conditional prior) has these labels in p(w), not beside it: there
    "all" has the query labels alone, and "support" none, so that its posterior is the prior.
    """

    def __init__(self, model: Model, episodes: Episodes, labels: str) -> None:
        if labels not in OBSERVE:
            raise UsageError(f"expected the labels of a target to be one of {', '.join(OBSERVE)}, got '{labels}'")
        self.model, self.episodes, self.labels = model, episodes, labels
        self.observed = episodes.observed()
        with torch.no_grad():
            self.prior: TorchDistribution = model.prior(self.observed)
        if not has_density(self.prior):
            raise UsageError(
                "expected a run whose prior has a density for a gold posterior, got a flat prior; take another prior"
            )
        named: str | None = labels
        if model.given_support and labels != "query":
            named = "query" if labels == "all" else None
        self.points = None if named is None else episodes.labelled(named)
        if self.points is not None and not self.points[0].shape[1]:
            self.points = None
        self.event_dim = len(self.prior.event_shape)
        self.loc, self.scale = self.prior.mean, self.prior.variance.sqrt()

    def tasks(self, index: slice) -> Target:
        return Target(self.model, self.episodes.tasks(index), self.labels)

    def log_likelihood(self, w: Tensor) -> Tensor:
        """[..., T], of w [..., T, *W]; 0 without labels."""
        if self.points is None:
            return w.new_zeros(w.shape[: w.dim() - self.event_dim])
        x, y, mask = self.points
        return (self.model.likelihood(w, x, self.observed).log_prob(y) * mask).sum(-1)

    def log_joint(self, w: Tensor) -> Tensor:
        return self.prior.log_prob(w) + self.log_likelihood(w)


@dataclass(frozen=True)
class NutsSettings:
    """warmup and draws of each chain; target_accept sets the step; together: tasks that share a chain."""

    warmup: int = 100
    draws: int = 100
    chains: int = 2
    together: int = 1
    target_accept: float = 0.8
    max_tree_depth: int = 8

    def __post_init__(self) -> None:
        if min(self.warmup, self.chains, self.together, self.max_tree_depth) < 1 or self.draws < 4:
            raise UsageError(f"expected warmup, chains, together >= 1 and draws >= 4, got {self}")


@dataclass(frozen=True)
class Gold:
    """Draws of p(w | labels) [L, T, *W], chains after one another, and how far to trust them.

    r_hat [T]: the largest split R-hat of a task's weights and its log joint. ess, least_ess [T]: effective draws of the
    log joint, and of the weight with the fewest. divergences [T]: of all chains, of the tasks that shared them.
    """

    w: Tensor
    r_hat: Tensor
    ess: Tensor
    least_ess: Tensor
    divergences: Tensor


def gold_posterior(target: Target, settings: NutsSettings) -> Gold:
    """NUTS on z = (w - mean) / sd of the prior, from draws of the prior, a few tasks at a time.

    Whitened, the prior has one scale in all directions, and the default mass matrix starts where it should.
    Independent draws of the prior where there are no labels.
    """
    num_tasks = target.episodes.num_tasks
    if target.points is None:
        with torch.no_grad():
            w = target.prior.sample(torch.Size((settings.chains * settings.draws,)))
        return _summary(target, w.unflatten(0, (settings.chains, -1)), torch.zeros(num_tasks))
    parts, divergences = [], []
    for start in range(0, num_tasks, settings.together):
        some = target.tasks(slice(start, start + settings.together))
        chains = [_chain(some, settings) for _ in range(settings.chains)]
        parts.append(torch.stack([z for z, _ in chains]))
        found = sum(count for _, count in chains)
        divergences.append(torch.full((some.episodes.num_tasks,), float(found)))
    z = torch.cat(parts, dim=2)
    return _summary(target, target.loc + target.scale * z, torch.cat(divergences))


def _chain(target: Target, settings: NutsSettings) -> tuple[Tensor, int]:
    """z [L, T, *W] of the tasks of the target, and the number of divergences."""

    def potential(sites: dict[str, Tensor]) -> Tensor:
        return -target.log_joint(target.loc + target.scale * sites["z"]).sum()

    kernel = NUTS(
        potential_fn=potential,
        target_accept_prob=settings.target_accept,
        max_tree_depth=settings.max_tree_depth,
    )
    start = {"z": torch.randn_like(target.loc)}
    mcmc = MCMC(kernel, settings.draws, settings.warmup, initial_params=start, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["z"].detach(), len(mcmc.diagnostics()["divergences"]["chain 0"])


@torch.no_grad()
def _summary(target: Target, w: Tensor, divergences: Tensor) -> Gold:
    """From draws [chains, L, T, *W]."""
    log_joint = target.log_joint(w.flatten(0, 1)).view(w.shape[:3])
    scalars = torch.cat((w.flatten(3), log_joint.unsqueeze(-1)), -1)  # [chains, L, T, W + 1]
    most = log_joint[:, :, 0].numel()
    most_effective = most * torch.tensor(float(most)).log10()  # a chain whose draws alternate has more than its number
    ess = effective_sample_size(scalars, 0, 1)
    ess = torch.where((ess > 0) & (ess < most_effective), ess, most_effective)
    return Gold(
        w.flatten(0, 1),
        split_gelman_rubin(scalars, 0, 1).amax(-1),
        ess[:, -1],
        ess[:, :-1].amin(-1),
        divergences,
    )
