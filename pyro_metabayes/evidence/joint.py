"""Joint predictive density of the query labels of a task, ∫ p(y_1, ..., y_Q | x, w) q(w) dw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.evidence.annealing import FIRST_STAGES, MOST_STAGES, annealed_bounds
from pyro_metabayes.evidence.importance import TRUSTED_K, effective_size, pareto_k
from pyro_metabayes.evidence.latent import latent_of
from pyro_metabayes.evidence.proposal import Proposal, Target, log_likelihood, proposal_of
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.averages import log_mean_exp
from pyro_metabayes.prediction.moments import draws_of
from pyro_metabayes.prediction.numbers import integrates
from pyro_metabayes.seeding import drawing

TRUSTED_SIZE = 100  # effective sample size above which the log of an average is biased by less than 0.005 nats
TIGHT = 0.01  # if the bounds of annealing differ by more nats per query, annealing is repeated with more temperatures
MOST_NUMBERS = 2**24  # largest size of one array; more draws are processed in several arrays


@dataclass(frozen=True, eq=False)
class JointPredictive:
    """log p(y_query | support, x_query) of T tasks, with w integrated out under q, in nats per task.

    Three methods give the value: a closed form, importance sampling or annealing. Only annealing has two bounds that
    differ from the value.

    Attributes:
        value: [T], the log density; for annealing, the middle of the bounds.
        lower: [T], lower bound.
        upper: [T], upper bound.
        pareto_k: [T], Pareto k of the importance weights; reliable for k < 0.7. 0 for a closed form.
        effective_size: [T], effective sample size of the importance draws; reliable from 100. For a closed form, the
            number of samples, at least 100.
        num_queries: [T], number of query labels.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor
    pareto_k: Tensor
    effective_size: Tensor
    num_queries: Tensor

    @property
    def trusted(self) -> Tensor:
        """Per task [T]: 1 for a closed form or reliable importance sampling, 0 for annealing."""
        return ((self.pareto_k < TRUSTED_K) & (self.effective_size >= TRUSTED_SIZE)).to(self.value.dtype)


def joint_predictive(model: Model, q: TorchDistribution, episodes: Episodes, samples: int) -> JointPredictive:
    """Compute the log of the joint predictive density of the query labels of each task.

        density = ∫ p(y | x, w) q(w) dw

    The density has a closed form for a point estimate, and for a Gaussian q with a linear Gaussian model. Otherwise it
    is estimated by `estimated_joint`.

    Args:
        model: the likelihood.
        q: a distribution over w, batch [T]. q must not depend on the query labels.
        episodes: T tasks with features as inputs.
        samples: importance draws per task.
    """
    if not has_density(q):
        return _exact(log_likelihood(model, draws_of(q, 1), episodes).squeeze(0), episodes, samples)
    if integrates(model, q):
        return _exact(model.log_predictive(q, episodes), episodes, samples)
    return estimated_joint(model, q, episodes, samples)


def _exact(value: Tensor, episodes: Episodes, samples: int) -> JointPredictive:
    full = torch.full_like(value, max(samples, TRUSTED_SIZE))
    return JointPredictive(value, value, value, torch.zeros_like(value), full, episodes.query_mask.sum(-1))


@torch.no_grad()
def estimated_joint(model: Model, q: TorchDistribution, episodes: Episodes, samples: int) -> JointPredictive:
    """Estimate the joint predictive density of the query labels by importance sampling or annealing.

    Tasks with Pareto k < 0.7 and an effective sample size (ESS) of at least 100 get the importance-sampling estimate,
    the log of the average weight. The estimate is too low by about 1 / (2 ESS). All other tasks get the two bounds of
    annealed importance sampling. The proposal depends on the query labels.

    Args:
        model: the likelihood.
        q: a distribution over w with a density, batch [T].
        episodes: T tasks with features as inputs.
        samples: importance draws per task.
    """
    target = Target(model, latent_of(q), episodes)
    proposal = proposal_of(target)
    log_weights = _log_weights(target, proposal, samples)
    value, k, size = log_mean_exp(log_weights), pareto_k(log_weights), effective_size(log_weights)
    settled = (k < TRUSTED_K) & (size >= TRUSTED_SIZE) | value.isnan()  # NaN: the model diverged in this task
    lower = upper = value
    if not bool(settled.all()):
        bounds = _annealed(target, proposal)
        lower, upper = (torch.where(settled, value, bound) for bound in bounds)
    num_queries = episodes.query_mask.sum(-1)
    return JointPredictive((lower + upper) / 2, lower, upper, k, size, num_queries)


def _log_weights(target: Target, proposal: Proposal, samples: int) -> Tensor:
    """Compute log weights log f - log g [L, T] at L draws of the proposal g for T tasks; f is the target.

    The draws are made in several parts to limit memory.
    """
    at_once = max(1, MOST_NUMBERS // proposal.mean.numel())
    parts = []
    for start in range(0, samples, at_once):
        with drawing():
            shape = min(at_once, samples - start), *proposal.mean.shape
            u = torch.randn(shape, dtype=proposal.mean.dtype, device=proposal.mean.device)
        parts.append(proposal.log_weight(target, u))
    return torch.cat(parts)


def _annealed(target: Target, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """Bound the log evidence of each task from below and above by annealing.

    The number of temperatures grows until the bounds differ by less than TIGHT nats per query. MOST_STAGES is the
    largest number.
    """
    num_queries, stages = target.episodes.query_mask.sum(-1).clamp(min=1), FIRST_STAGES
    while True:
        lower, upper = annealed_bounds(lambda u: proposal.log_weight(target, u), proposal.mean, stages)
        if stages >= MOST_STAGES or bool((~((upper - lower).abs() / num_queries >= TIGHT)).all()):
            return torch.minimum(lower, upper), torch.maximum(lower, upper)
        stages *= 4
