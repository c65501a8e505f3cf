"""Gold posteriors: draws by NUTS from the exact posterior of single tasks in the trained generative model.

Draws from p(w | support) give the exact inductive predictions of the model. p(w | support and query) is the target of a
training posterior. Do not evaluate predictions for the queries under it, since it has seen their labels. (NUTS: Hoffman
and Gelman 2014.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_metabayes.diagnostics.coordinates import coordinates_of
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.exact.convergence import CONVERGED_R_HAT, SUFFICIENT_SIZE, bulk_size, r_hat, tail_size
from pyro_metabayes.inference.divergences import has_density, log_density
from pyro_metabayes.model import OBSERVE, Model
from pyro_metabayes.prediction.moments import moments_of


class Target:
    """The unnormalised log posterior log p(w) + sum_i log p(y_i | x_i, w) of each of T tasks.

    Args:
        model: the prior and the likelihood.
        episodes: the tasks, with features as inputs.
        labels: the labels y_i in the sum: "support", "query" or "all". The sum leaves out the support labels if the
            prior is conditional on the support set (`model.given_support`).

    Raises:
        UsageError: `labels` has another value, or the prior has no density.
    """

    def __init__(self, model: Model, episodes: Episodes, labels: str) -> None:
        check_choice("labels (in a run: targets)", labels, OBSERVE)
        self.model, self.episodes, self.labels = model, episodes, labels
        self.observed = episodes.observed()
        with torch.no_grad():
            self.prior: TorchDistribution = model.prior(self.observed)
        if not has_density(self.prior):
            raise UsageError("expected a prior with a density for NUTS, got a flat prior; use a run with another prior")
        observed_labels: str | None = labels
        if model.given_support and labels != "query":
            observed_labels = "query" if labels == "all" else None
        self.points = None if observed_labels is None else episodes.labelled(observed_labels)
        if self.points is not None and not self.points[0].shape[1]:
            self.points = None
        self.event_dim = len(self.prior.event_shape)
        self.coordinates = coordinates_of(self.prior)

    @cached_property
    def loc(self) -> Tensor:
        """Prior mean of each of T tasks, [T, *W], where *W is the shape of w."""
        return moments_of(self.prior).mean

    @cached_property
    def scale(self) -> Tensor:
        """Prior standard deviation of each of T tasks, [T, *W], where *W is the shape of w."""
        return moments_of(self.prior).variance.sqrt()

    def tasks(self, index: slice) -> Target:
        """Return the target of the tasks at `index`."""
        return Target(self.model, self.episodes.tasks(index), self.labels)

    def log_likelihood(self, w: Tensor) -> Tensor:
        """Compute log p(y | w) [..., T] of T tasks in nats, for w [..., T, *W]; 0 without labels."""
        if self.points is None:
            return w.new_zeros(w.shape[: w.dim() - self.event_dim])
        x, y, mask = self.points
        return (self.model.likelihood(w, x, self.observed).log_prob(y) * mask).sum(-1)

    def log_joint(self, w: Tensor) -> Tensor:
        """Compute log p(w) + log p(y | w) [..., T] of T tasks in nats, for w [..., T, *W]."""
        return log_density(self.prior, w) + self.log_likelihood(w)

    def log_joint_at(self, z: Mapping[str, Tensor]) -> Tensor:
        """Compute the log density [..., T] of the coordinates z of NUTS for T tasks, up to a constant."""
        w, log_det = self.coordinates.latent(z)
        return self.log_joint(w) + log_det


@dataclass(frozen=True)
class NutsSettings:
    """Settings of NUTS.

    Args:
        warmup: number of warm-up steps per chain.
        draws: number of draws per chain.
        chains: number of chains per task.
        together: number of tasks per chain; their weights are sampled jointly.
        target_accept: target acceptance probability of the step-size adaptation.
        max_tree_depth: largest depth of the trajectory tree.
    """

    warmup: int = 100
    draws: int = 100
    chains: int = 4
    together: int = 1
    target_accept: float = 0.8
    max_tree_depth: int = 8

    def __post_init__(self) -> None:
        if min(self.warmup, self.chains, self.together, self.max_tree_depth) < 1 or self.draws < 4:
            raise UsageError(
                f"expected warmup, chains, together, max_tree_depth >= 1 and draws >= 4, got {self}; change settings"
            )


@dataclass(frozen=True)
class Gold:
    """Draws by NUTS from the exact posterior of w for T tasks, and convergence diagnostics.

    Attributes:
        w: [L, T, *W], the L draws of all chains; *W is the shape of w.
        r_hat: [T], largest rank-normalised split R-hat over the weights and the log joint density.
        ess: [T], bulk effective sample size of the log joint density.
        least_ess: [T], smallest bulk effective sample size over the weights.
        least_tail_ess: [T], smallest tail effective sample size over the weights and the log joint density.
        divergences: [T], number of divergent transitions over all chains; equal for tasks of the same chain.
    """

    w: Tensor
    r_hat: Tensor
    ess: Tensor
    least_ess: Tensor
    least_tail_ess: Tensor
    divergences: Tensor

    @property
    def converged(self) -> Tensor:
        """Whether the chains of each task [T] converged: R-hat below 1.01, effective sample sizes above 400."""
        sizes = torch.stack((self.ess, self.least_ess, self.least_tail_ess)).amin(0)
        return (self.r_hat < CONVERGED_R_HAT) & (sizes > SUFFICIENT_SIZE)


def gold_posterior(target: Target, settings: NutsSettings) -> Gold:
    """Draw w from the exact posterior of each task by NUTS.

    NUTS samples z = (w - mean) / sd, where mean and sd are those of the prior. For a latent with several sites, or a
    site that is not real, `coordinates_of` defines z. If the target has no labels, w is drawn from the prior.
    """
    num_tasks = target.episodes.num_tasks
    if target.points is None:
        with torch.no_grad():
            w = target.prior.sample(torch.Size((settings.chains * settings.draws,)))
        return _summary(target, w.unflatten(0, (settings.chains, -1)), torch.zeros(num_tasks))
    parts, divergences = [], []
    for start in range(0, num_tasks, settings.together):
        part = target.tasks(slice(start, start + settings.together))
        chains = [_chain(part, settings) for _ in range(settings.chains)]
        parts.append(torch.stack([w for w, _ in chains]))
        count = sum(count for _, count in chains)
        divergences.append(torch.full((part.episodes.num_tasks,), float(count)))
    return _summary(target, torch.cat(parts, dim=2), torch.cat(divergences))


def _chain(target: Target, settings: NutsSettings) -> tuple[Tensor, int]:
    """Run one chain of NUTS; return draws of w [draws, tasks, *shape of w] and the number of divergences."""

    def potential(z: dict[str, Tensor]) -> Tensor:
        return -target.log_joint_at(z).sum()

    kernel = NUTS(
        potential_fn=potential,
        target_accept_prob=settings.target_accept,
        max_tree_depth=settings.max_tree_depth,
    )
    start = target.coordinates.random()
    mcmc = MCMC(kernel, settings.draws, settings.warmup, initial_params=start, disable_progbar=True)
    mcmc.run()
    with torch.no_grad():
        w, _ = target.coordinates.latent(mcmc.get_samples())
    return w, len(mcmc.diagnostics()["divergences"]["chain 0"])


@torch.no_grad()
def _summary(target: Target, w: Tensor, divergences: Tensor) -> Gold:
    """Compute convergence diagnostics of draws [chains, L, T, *W] (L draws per chain, T tasks, *W the shape of w)."""
    log_joint = target.log_joint(w.flatten(0, 1)).view(w.shape[:3])
    scalars = torch.cat((w.flatten(3), log_joint.unsqueeze(-1)), -1)  # [chains, L, T, W + 1]
    ess = bulk_size(scalars)
    return Gold(
        w.flatten(0, 1),
        r_hat(scalars).amax(-1),
        ess[:, -1],
        ess[:, :-1].amin(-1),
        tail_size(scalars).amin(-1),
        divergences,
    )
