"""Steps of expectation maximisation on the queries of a task, with a network in place of the closed E-step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_metabayes.episodes import Observed
from pyro_metabayes.transductive.amortized.assignment_network import AssignmentNetwork, zero_network
from pyro_metabayes.transductive.amortized.task_geometry import TaskGeometry
from pyro_metabayes.transductive.amortized.task_in_context import IN_A_STEP, NUM_CONTEXT, Task

NUM_CHANNELS, NUM_CHANGES = 8, 6
AT_THE_END = 40  # Sinkhorn iterations
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
        task = Task.of(observed, known)
        *_, last = self._states(task, num_steps)
        return self._directions(task, last)

    def path(self, observed: Observed, num_steps: int, known: Tensor | None = None) -> list[Directions]:
        """The classifiers after 0, 1, ..., `num_steps` steps; arguments as in `forward`."""
        task = Task.of(observed, known)
        return [self._directions(task, state) for state in self._states(task, num_steps)]

    def _states(self, task: Task, num_steps: int) -> Iterator[State]:
        """The states after 0, ..., num_steps steps."""
        points = task.points
        rates = _rates(self.rates(task.context))
        modulations, affinities = self.e_step.modulated_by(task.context), points.affinities(rates.sharpness)
        cosines, lengths = points.cosines(points.means)
        state = State(rates, points.means, cosines, lengths, torch.zeros_like(cosines[:, :1]), None, None)
        yield state
        for _ in range(num_steps):
            scaled = rates.scale * state.cosines
            logits = scaled + rates.of_shares * state.bias
            term = task.term(logits, IN_A_STEP, state.term)
            prior = (logits if term is None else logits + term).log_softmax(-1)
            correction, weight = self.e_step(
                _channels(points, scaled, prior, state.bias, affinities), modulations, points.shares
            )
            assignments = task.assigned(prior + correction)
            means = _m_step(points, rates, state.means, assignments * weight)
            cosines, lengths = points.cosines(means)
            state = State(rates, means, cosines, lengths, task.log_shares(assignments), term, scaled.softmax(-1))
            yield state

    def _directions(self, task: Task, state: State) -> Directions:
        """The classifier of a state, whose temperature depends on the context and on the last step."""
        changes = _changes(task.points, state)
        temperature = self.temperature(torch.cat((task.context, changes), -1)).exp().unsqueeze(-1)
        scale, offsets = state.rates.scale * temperature, state.rates.of_shares * state.bias
        term = task.term(scale * state.cosines + offsets, AT_THE_END, state.term)
        offsets = offsets if term is None else offsets + term
        return Directions(scale * state.means / state.lengths.unsqueeze(-1), offsets.squeeze(1))


class Rates(NamedTuple):
    """Functions of the context, each [T, 1, 1]."""

    scale: Tensor  # s of the assignments
    of_shares: Tensor  # beta
    of_support: Tensor  # kappa
    step: Tensor  # rho
    sharpness: Tensor  # of the affinities between points


class State(NamedTuple):
    """After a step: means [T, C, D], their cosines with the queries [T, Q, C] and lengths [T, C], log class shares
    [T, 1, C], Sinkhorn's class term [T, 1, C], and the assignments by cosines before the step [T, Q, C]."""

    rates: Rates
    means: Tensor
    cosines: Tensor
    lengths: Tensor
    bias: Tensor
    term: Tensor | None
    before: Tensor | None


def _rates(raw: Tensor) -> Rates:
    scale, of_shares, of_support, step, sharpness = raw[..., None, None].unbind(1)
    return Rates(
        scale=10 * scale.exp(),
        of_shares=softplus(of_shares - 2),
        of_support=(of_support + 1).exp(),
        step=(step + 1.5).sigmoid(),
        sharpness=4 * softplus(sharpness + 3),
    )


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


def _changes(task: TaskGeometry, state: State) -> Tensor:
    """How sure the assignments are and how far the last step moved them [T, NUM_CHANGES], for the temperature."""
    logits, cosines = state.rates.scale * state.cosines, state.cosines
    way = logits.shape[-1]
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    moved = torch.ones_like(cosines[..., 0]) if state.before is None else (state.before - probs).abs().sum(-1)
    entropy = -(probs * log_probs).sum(-1) / math.log(way)
    of_queries = torch.stack((probs.amax(-1), entropy, cosines.amax(-1), moved), -1)
    shares = (way * task.mean(probs) + 1e-3).log().std(-1)
    return torch.cat((task.mean(of_queries).squeeze(1), shares, state.lengths.mean(-1, keepdim=True)), -1)
