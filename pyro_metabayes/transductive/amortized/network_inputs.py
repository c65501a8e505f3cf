"""Inputs of the networks of a transductive classifier: numbers per query and class, and statistics of the last step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.transductive.amortized.state import State
from pyro_metabayes.transductive.amortized.task_geometry import TaskGeometry

NUM_CHANNELS, NUM_CHANGES = 9, 10
LEAST_LOG = -12.0  # lower bound on the logarithm of an assignment


def channels(task: TaskGeometry, state: State, logits: Tensor, prior: Tensor, affinities: Tensor) -> Tensor:
    """Compute the inputs of the E-step network: NUM_CHANNELS numbers for each query and class.

    Args:
        task: points of T tasks.
        state: class means after the last step.
        logits: [T, Q, C], scaled cosines of each query with the class means without this query.
        prior: [T, Q, C], logarithms of the soft assignments that follow from these logits and the class shares.
        affinities: [T, Q, S + Q], affinities of each query to all other points.

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
        state.bias.expand_as(logits),
        3 * state.own,
        probabilities,
        (shots - shots.mean(-1, keepdim=True)).unsqueeze(1).expand_as(logits),
        (logits - logits.mean(-1, keepdim=True)) / 5,
    )
    return torch.stack(values, -1)


def changes(task: TaskGeometry, state: State) -> Tensor:
    """Compute the inputs of the temperature network: certainty and last change of the assignments.

    Eight of the statistics are means over the queries. The last four of these use class means without the query. They
    are small if a query is near a class mean only because the class mean contains the query.

    Returns:
        Tensor [T, NUM_CHANGES], NUM_CHANGES statistics for each of T tasks.
    """
    log_probs = (state.rates.scale * state.cosines).log_softmax(-1)
    left_out = (state.rates.scale * state.left_out).log_softmax(-1)
    probs, way = log_probs.exp(), log_probs.shape[-1]
    best, second = state.left_out.topk(2, -1).values.unbind(-1)
    of_queries = (
        probs.amax(-1),
        -(probs * log_probs).sum(-1) / math.log(way),  # entropy
        state.cosines.amax(-1),
        torch.ones_like(best) if state.before is None else (state.before - probs).abs().sum(-1),
        best,
        5 * (best - second),
        1 + (probs * left_out).sum(-1) / math.log(way),
        (left_out.argmax(-1) == log_probs.argmax(-1)).to(best.dtype),
    )
    shares = (way * task.mean(probs) + 1e-3).log().std(-1)
    means = task.mean(torch.stack(of_queries, -1)).squeeze(1)
    return torch.cat((means, shares, state.lengths.mean(-1, keepdim=True)), -1)
