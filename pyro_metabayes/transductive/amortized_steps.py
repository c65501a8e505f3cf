"""Steps of expectation maximisation on the queries of a task, with a network in place of the closed E-step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_metabayes.episodes import Observed
from pyro_metabayes.transductive.assignment_network import AssignmentNetwork, zero_network
from pyro_metabayes.transductive.assignments import LEAST_SHARE
from pyro_metabayes.transductive.sinkhorn import class_term
from pyro_metabayes.transductive.task_context import NUM_STATISTICS, task_context
from pyro_metabayes.transductive.task_geometry import TaskGeometry

NUM_CHANNELS, NUM_CHANGES = 8, 6
NUM_CONTEXT = NUM_STATISTICS + 1  # and whether the queries are known to be balanced
IN_A_STEP, AT_THE_END = 10, 40  # Sinkhorn iterations
LEAST_LOG = -12.0  # of an assignment, as an input of the network


class Directions(NamedTuple):
    """A linear classifier: directions [T, C, D] and offsets [T, C] of its logits."""

    directions: Tensor
    offsets: Tensor


class AmortizedSteps(nn.Module):
    """m^K, and the logits s cos(m_c^K, x_i) + beta log(C pi_c) + b_c, from class means m^0 after K steps of

        z_i, g_i = E-step network(channels of query i; context),
        m_c <- (1 - rho) m_c + rho (kappa sqrt(n_c) m_c^0 + sum_i g_i z_ic x_i) / (kappa sqrt(n_c) + sum_i g_i z_ic).

    z_i is a softmax over classes, g_i in (0, 1) the weight of a query, pi the mean of the z_i, n_c the shots. kappa,
    rho, beta and s are functions of the context. b projects the mean prediction on equal shares of the classes
    (Sinkhorn) in tasks that are known to be balanced, whose pi is left out; else b = 0.

    Args:
        width: channels of the E-step network per pair of query and class.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.e_step = AssignmentNetwork(NUM_CHANNELS, NUM_CONTEXT, width)
        self.rates = zero_network(NUM_CONTEXT, 5)
        self.temperature = zero_network(NUM_CONTEXT + NUM_CHANGES, 1)

    def forward(self, observed: Observed, num_steps: int, known: Tensor | None = None) -> Directions:
        """The classifier after `num_steps` steps.

        Args:
            observed: the tasks, with features of unit length.
            num_steps: K.
            known: 1 for tasks whose queries are known to be balanced, else 0 [T]; None: of no task.
        """
        task = TaskGeometry.of(observed)
        cosines, lengths = task.cosines(task.means)
        statistics = task_context(cosines, task.between, lengths, task.counts, task.mask)
        is_known = torch.zeros_like(statistics[:, :1]) if known is None else known.unsqueeze(-1)
        context = torch.cat((statistics, is_known), -1)
        rates = _rates(self.rates(context))
        modulations, affinities = self.e_step.modulated_by(context), task.affinities(rates.sharpness)
        means, before = task.means, None
        bias, term = cosines.new_zeros(len(cosines), 1, observed.num_classes), None
        for _ in range(num_steps):
            before = (rates.scale * cosines).softmax(-1)
            logits = rates.scale * cosines + rates.of_shares * bias
            term = _term(logits, task.mask, known, IN_A_STEP, term)
            prior = (logits if term is None else logits + term).log_softmax(-1)
            channels = _channels(task, rates.scale * cosines, prior, bias, affinities)
            correction, weight = self.e_step(channels, modulations, task.shares)
            assignments = _assigned(prior + correction, task.mask, known)
            bias = _log_shares(task, assignments, known)
            means = _m_step(task, rates, means, assignments * weight)
            cosines, lengths = task.cosines(means)
        changes = _changes(task, rates.scale * cosines, cosines, lengths, before)
        scale = rates.scale * self.temperature(torch.cat((context, changes), -1)).exp().unsqueeze(-1)
        offsets = rates.of_shares * bias
        term = _term(scale * cosines + offsets, task.mask, known, AT_THE_END, term)
        offsets = offsets if term is None else offsets + term
        return Directions(scale * means / lengths.unsqueeze(-1), offsets.squeeze(1))


class Rates(NamedTuple):
    """Functions of the context, each [T, 1, 1]."""

    scale: Tensor  # s of the assignments
    of_shares: Tensor  # beta
    of_support: Tensor  # kappa
    step: Tensor  # rho
    sharpness: Tensor  # of the affinities between points


def _rates(raw: Tensor) -> Rates:
    scale, of_shares, of_support, step, sharpness = raw[..., None, None].unbind(1)
    return Rates(
        scale=10 * scale.exp(),
        of_shares=softplus(of_shares - 2),
        of_support=(of_support + 1).exp(),
        step=(step + 1.5).sigmoid(),
        sharpness=4 * softplus(sharpness + 3),
    )


def _term(logits: Tensor, mask: Tensor, known: Tensor | None, iterations: int, start: Tensor | None) -> Tensor | None:
    """Sinkhorn's class term [T, 1, C] of tasks that are known to be balanced, 0 of the others."""
    if known is None:
        return None
    return class_term(logits, mask, num_iterations=iterations, start=start) * known[:, None, None]


def _assigned(log_odds: Tensor, mask: Tensor, known: Tensor | None) -> Tensor:
    term = _term(log_odds, mask, known, IN_A_STEP, None)
    return (log_odds if term is None else log_odds + term).softmax(-1)


def _log_shares(task: TaskGeometry, assignments: Tensor, known: Tensor | None) -> Tensor:
    """log(C pi) [T, 1, C]; 0 for tasks that are known to be balanced."""
    log_shares = (assignments.shape[-1] * task.mean(assignments).clamp(min=LEAST_SHARE)).log()
    return log_shares if known is None else log_shares * (1 - known[:, None, None])


def _m_step(task: TaskGeometry, rates: Rates, means: Tensor, weights: Tensor) -> Tensor:
    """The next means [T, C, D]; weights g_i z_ic [T, Q, C]."""
    weights = (weights * task.mask.unsqueeze(-1)).mT
    support = rates.of_support * task.counts.sqrt().unsqueeze(-1)  # [T, C, 1]
    target = (support * task.means + weights @ task.x) / (support + weights.sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.lerp(means, target, rates.step)


def _channels(task: TaskGeometry, logits: Tensor, prior: Tensor, bias: Tensor, affinities: Tensor) -> Tensor:
    """The inputs of the E-step network [T, Q, C, NUM_CHANNELS]."""
    centred = logits - task.mean(logits)
    spread = task.mean(centred.square()).clamp(min=1e-2).sqrt()
    shots = task.counts.clamp(min=1).log()
    probabilities = prior.exp()
    values = (
        logits.log_softmax(-1).clamp(min=LEAST_LOG) / 3,
        prior.clamp(min=LEAST_LOG) / 3,
        centred / spread,
        task.log_labels_nearby(affinities, probabilities) / 3,
        bias.expand_as(logits),
        probabilities,
        (shots - shots.mean(-1, keepdim=True)).unsqueeze(1).expand_as(logits),
        (logits - logits.mean(-1, keepdim=True)) / 5,
    )
    return torch.stack(values, -1)


def _changes(task: TaskGeometry, logits: Tensor, cosines: Tensor, lengths: Tensor, before: Tensor | None) -> Tensor:
    """How sure the assignments are and how far the last step moved them [T, NUM_CHANGES], for the temperature."""
    way = logits.shape[-1]
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    moved = torch.ones_like(cosines[..., 0]) if before is None else (before - probs).abs().sum(-1)
    entropy = -(probs * log_probs).sum(-1) / math.log(way)
    of_queries = torch.stack((probs.amax(-1), entropy, cosines.amax(-1), moved), -1)
    shares = (way * task.mean(probs) + 1e-3).log().std(-1)
    return torch.cat((task.mean(of_queries).squeeze(1), shares, lengths.mean(-1, keepdim=True)), -1)
