"""Steps of expectation maximisation on the queries of a task, with a network in place of the E-step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_metabayes.episodes import Observed
from pyro_metabayes.transductive.amortized.assignment_network import AssignmentNetwork, zero_network
from pyro_metabayes.transductive.amortized.task_geometry import TaskGeometry
from pyro_metabayes.transductive.amortized.task_in_context import IN_A_STEP, NUM_CONTEXT, Task

NUM_CHANNELS, NUM_CHANGES = 8, 6
AT_THE_END = 40  # Sinkhorn iterations
LEAST_LOG = -12.0  # lower bound on the logarithm of an assignment, as an input of the network


class Directions(NamedTuple):
    """Linear classifier of T tasks: directions [T, C, D] and offsets [T, C], for C classes and D features."""

    directions: Tensor
    offsets: Tensor

    def to(self, like: Tensor) -> Self:
        """Return the classifiers with the dtype and device of a tensor."""
        return self._replace(directions=self.directions.to(like), offsets=self.offsets.to(like))


class AmortizedSteps(nn.Module):
    """Refinement of class means by K learned steps on the queries x_i.

    The class means start at those of the support set, m^0. One step is

        z_i, g_i = E-step network(`_channels` of query i; statistics of the task)
        m_c <- (1 - rho) m_c + rho (kappa sqrt(n_c) m_c^0 + sum_i g_i z_ic x_i) / (kappa sqrt(n_c) + sum_i g_i z_ic)

    where z_i is the soft assignment of query i to the C classes, g_i in (0, 1) the weight of query i, and n_c the
    number of support points of class c. The logits after the last step are

        s cos(m_c, x_i) + beta log(C pi_c) + b_c

    where pi is the mean of the z_i, and b = 0. If the queries are known to be balanced, the term with pi is omitted,
    and b is the term that makes the class shares of the queries equal (`sinkhorn.class_term`). kappa, rho, beta and s
    are learned functions of the statistics of the task. s also depends on the last assignments and their change. The
    steps compute in the precision of the parameters of this module, which may be less than that of the features.

    Args:
        width: number of hidden channels of the E-step network (`AssignmentNetwork`).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.e_step = AssignmentNetwork(NUM_CHANNELS, NUM_CONTEXT, width)
        self.rates = zero_network(NUM_CONTEXT, 5)
        self.temperature = zero_network(NUM_CONTEXT + NUM_CHANGES, 1)

    def forward(self, observed: Observed, num_steps: int, known: Tensor | None = None) -> Directions:
        """Compute the classifier after `num_steps` steps.

        Args:
            observed: T tasks, with features of unit length.
            num_steps: number of steps.
            known: [T], 1 for tasks with queries that are known to be balanced, else 0; None: 0 for all tasks.
        """
        task = self._task(observed, known)
        *_, last = self._states(task, num_steps)
        return self._directions(task, last).to(observed.query_x)

    def path(self, observed: Observed, num_steps: int, known: Tensor | None = None) -> list[Directions]:
        """Compute the classifiers after 0, 1, ..., `num_steps` steps. The arguments are those of `forward`."""
        task = self._task(observed, known)
        return [self._directions(task, state).to(observed.query_x) for state in self._states(task, num_steps)]

    def _task(self, observed: Observed, known: Tensor | None) -> Task:
        """Return the tasks in the precision of the parameters, which may be less than that of the features."""
        own = next(self.parameters())
        converted = observed.map_tensors(lambda values: values.to(own) if values.is_floating_point() else values)
        return Task.of(converted, None if known is None else known.to(own))

    def _states(self, task: Task, num_steps: int) -> Iterator[State]:
        """Yield the states after 0, 1, ..., num_steps steps."""
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
        """Compute the classifier from the class means of a state.

        The temperature of the classifier depends on task statistics and on the change in the last step.
        """
        changes = _changes(task.points, state)
        temperature = self.temperature(torch.cat((task.context, changes), -1)).exp().unsqueeze(-1)
        scale, offsets = state.rates.scale * temperature, state.rates.of_shares * state.bias
        term = task.term(scale * state.cosines + offsets, AT_THE_END, state.term)
        offsets = offsets if term is None else offsets + term
        return Directions(scale * state.means / state.lengths.unsqueeze(-1), offsets.squeeze(1))


class Rates(NamedTuple):
    """Learned parameters of the steps for each of T tasks, each [T, 1, 1]; symbols as in `AmortizedSteps`."""

    scale: Tensor  # s, inverse temperature of the assignments
    of_shares: Tensor  # beta, weight of the log class shares
    of_support: Tensor  # kappa, weight of the support set
    step: Tensor  # rho, step size
    sharpness: Tensor  # inverse temperature of the affinities between points


class State(NamedTuple):
    """Class means after a step, and quantities computed from the class means."""

    rates: Rates
    means: Tensor  # class means [T, C, D]
    cosines: Tensor  # cosines of the class means with the queries [T, Q, C]
    lengths: Tensor  # lengths of the class means [T, C]
    bias: Tensor  # log class shares [T, 1, C]
    term: Tensor | None  # Sinkhorn's class term [T, 1, C]
    before: Tensor | None  # soft assignments by the cosines before the step [T, Q, C]


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
    """Compute the class means after a step (the update of m_c in `AmortizedSteps`).

    `weights` [T, Q, C] are the products g_i z_ic of weight and soft assignment of each query.
    """
    weights = (weights * task.mask.unsqueeze(-1)).mT
    support = rates.of_support * task.counts.sqrt().unsqueeze(-1)  # [T, C, 1]
    target = (support * task.means + weights @ task.x) / (support + weights.sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.lerp(means, target, rates.step)


def _channels(task: TaskGeometry, logits: Tensor, prior: Tensor, bias: Tensor, affinities: Tensor) -> Tensor:
    """Compute the inputs of the E-step network: NUM_CHANNELS numbers for each query and class.

    Returns:
        Tensor [T, Q, C, NUM_CHANNELS] for Q queries and C classes of T tasks.
    """
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
    """Compute the inputs of the temperature network: certainty and last change of the assignments.

    Returns:
        Tensor [T, NUM_CHANGES], NUM_CHANGES statistics for each of T tasks.
    """
    logits, cosines = state.rates.scale * state.cosines, state.cosines
    way, log_probs = logits.shape[-1], logits.log_softmax(-1)
    probs = log_probs.exp()
    moved = torch.ones_like(cosines[..., 0]) if state.before is None else (state.before - probs).abs().sum(-1)
    entropy = -(probs * log_probs).sum(-1) / math.log(way)
    of_queries = torch.stack((probs.amax(-1), entropy, cosines.amax(-1), moved), -1)
    shares = (way * task.mean(probs) + 1e-3).log().std(-1)
    return torch.cat((task.mean(of_queries).squeeze(1), shares, state.lengths.mean(-1, keepdim=True)), -1)
