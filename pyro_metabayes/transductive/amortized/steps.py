"""Steps of expectation maximisation on the queries of a task, with a network in place of the E-step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from pyro_metabayes.episodes import Observed
from pyro_metabayes.transductive.amortized.assignment_network import AssignmentNetwork, zero_network
from pyro_metabayes.transductive.amortized.network_inputs import NUM_CHANGES, NUM_CHANNELS, changes, channels
from pyro_metabayes.transductive.amortized.state import NUM_RATES, Rates, State
from pyro_metabayes.transductive.amortized.task_in_context import IN_A_STEP, NUM_CONTEXT, Task

AT_THE_END = 40  # Sinkhorn iterations


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

        z_i, g_i = E-step network(`channels` of query i; statistics of the task)
        m_c <- (1 - rho) m_c + rho (kappa sqrt(n_c) m_c^0 + sum_i g_i z_ic x_i) / (kappa sqrt(n_c) + sum_i g_i z_ic)

    where z_i is the soft assignment of query i to the C classes, g_i in (0, 1) the weight of query i, and n_c the
    number of support points of class c. The network receives cosines of x_i with class means that do not contain x_i,
    so that a query does not confirm its own assignment. The logits after the last step are

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
        self.rates = zero_network(NUM_CONTEXT, NUM_RATES)
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
        """Return the tasks in the precision of the parameters of this module."""
        own = next(self.parameters())
        converted = observed.map_tensors(lambda values: values.to(own) if values.is_floating_point() else values)
        return Task.of(converted, None if known is None else known.to(own))

    def _states(self, task: Task, num_steps: int) -> Iterator[State]:
        """Yield the states after 0, 1, ..., num_steps steps."""
        points, rates = task.points, Rates.of(self.rates(task.context))
        modulations, affinities = self.e_step.modulated_by(task.context), points.affinities(rates.sharpness)
        state = State.initial(points, rates)
        yield state
        for _ in range(num_steps):
            scaled = rates.scale * state.left_out
            logits = scaled + rates.of_shares * state.bias
            term = task.term(logits, IN_A_STEP, state.term)
            prior = (logits if term is None else logits + term).log_softmax(-1)
            inputs = channels(points, state, scaled, prior, affinities)
            correction, weight = self.e_step(inputs, modulations, points.shares)
            assignments = task.assigned(prior + correction)
            moved = state.moved(points, assignments * weight)
            state = moved._replace(bias=task.log_shares(assignments), term=term, before=scaled.softmax(-1))
            yield state

    def _directions(self, task: Task, state: State) -> Directions:
        """Compute the classifier from the class means of a state.

        The temperature of the classifier depends on task statistics and on the change in the last step.
        """
        inputs = torch.cat((task.context, changes(task.points, state)), -1)
        temperature = self.temperature(inputs).exp().unsqueeze(-1)
        scale, offsets = state.rates.scale * temperature, state.rates.of_shares * state.bias
        term = task.term(scale * state.cosines + offsets, AT_THE_END, state.term)
        offsets = offsets if term is None else offsets + term
        return Directions(scale * state.means / state.lengths.unsqueeze(-1), offsets.squeeze(1))
