"""iLPC: iterative label propagation, balancing and label cleaning.

Lazarou, Stathaki and Avrithis, "Iterative Label Cleaning for Transductive and Semi-Supervised Few-Shot Learning", ICCV
2021 (arXiv 2012.07962).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.transductive.assignments import weighted_class_means
from pyro_metabayes.transductive.propagation import propagation
from pyro_metabayes.transductive.reproduction import rows_of_scores
from pyro_metabayes.transductive.sinkhorn import class_term

MOMENTUM, DECAY, RATE = 0.9, 5e-4, 0.1  # settings of SGD in label cleaning, as published
LEAST = 1e-6  # lower bound on scores and on shares, so that their logarithms are finite
MORE = 2  # rounds in addition to those that equal class sizes need; queries still open keep their last assignment


@dataclass(eq=False)
class _State:
    """State of the loop over points [T, N], the support set followed by the queries. A query is open until labelled.

    labelled: support points, and queries that have received a label [T, N].
    targets: labels of the support points and assignments P of the queries [T, N, C].
    open_counts: number of open queries of each class [T, 1, C].
    active: whether a task continues [T, 1].
    """

    labelled: Tensor
    targets: Tensor
    open_counts: Tensor
    active: Tensor


class Guide(pyro_metabayes.Guide):
    """q(w | support, x_query) = delta(w), w the linear classifier that reproduces the assignments P of Algorithm 1:

        Z = (I - alpha W)^-1 Y,    Y the labels of the support points and of the queries labelled so far (eq. 4 and 5),
        P = the transport plan nearest to Z^power whose class totals are the numbers of queries still open,
        l_i = mean loss of point i, with the label argmax P_i, while a linear classifier is trained on all points.

    After each round the `per_class` open queries of each class with the smallest l_i receive the label argmax P_i. The
    rounds end when every query has a label. All classes are assumed to have equally many queries. W is the graph of
    nearest neighbours, with their cosines to the power 3. The reproduction of P is exact if a task has at most D + 1
    points. Logits are P times the learned scale of the head, an inverse temperature. The loop has no parameters.

    Args:
        num_neighbours: number of neighbours of each point in the graph.
        propagation_decay: alpha.
        power: exponent of the scores Z.
        per_class: number of queries of each class that are labelled in one round.
        cleaning_steps: number of SGD steps of the linear classifier in one round, with the published settings of SGD.

    Raises:
        UsageError: a setting is out of range, or the head is not linear.
    """

    transductive = True

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_neighbours: int = 15,
        propagation_decay: float = 0.8,
        power: float = 3.0,
        per_class: int = 3,
        cleaning_steps: int = 1000,
    ) -> None:
        super().__init__(model)
        if min(num_neighbours, per_class, cleaning_steps) < 1 or power <= 0 or not 0 <= propagation_decay < 1:
            got = f"{num_neighbours}, {per_class}, {cleaning_steps}, {power} and {propagation_decay}"
            raise UsageError(
                "expected guide.num_neighbours, per_class and cleaning_steps >= 1, power > 0 and "
                f"0 <= propagation_decay < 1, got {got}"
            )
        linear_head(model, "guide=ilpc")
        self.num_neighbours, self.decay, self.power = num_neighbours, propagation_decay, power
        self.per_class, self.cleaning_steps = per_class, cleaning_steps

    def posterior(self, observed: Observed) -> TorchDistribution:
        x = torch.cat((observed.support_x, observed.query_x), dim=1)
        mask = torch.cat((observed.support_mask, observed.query_mask), dim=1)
        with torch.no_grad():
            targets = self._found(observed, x, mask)
        return Delta(rows_of_scores(linear_head(self.model, "guide=ilpc"), x, targets, mask), event_dim=2)

    def _found(self, observed: Observed, x: Tensor, mask: Tensor) -> Tensor:
        """Labels of the support set and assignments of the queries [T, N, C]."""
        spread = propagation(x, mask, self.num_neighbours, 3.0, self.decay)
        state = _start(observed, x)
        share = self.per_class * observed.num_classes
        counts = observed.query_mask.sum(-1, keepdim=True)
        for index in range(ceil(observed.query_x.shape[1] / share) + MORE):
            state.active = state.active & (index * share < counts + MORE * share)  # padding adds no rounds
            self._round(state, x, mask, spread)
        return state.targets

    def _round(self, state: _State, x: Tensor, mask: Tensor, spread: Tensor) -> None:
        """Assign the open queries, and label those with the smallest losses."""
        open_ = mask & ~state.labelled
        going = state.active & open_.any(-1, keepdim=True)
        labels = one_hot(state.targets.argmax(-1), state.targets.shape[-1]).to(x.dtype)
        assigned = self._balanced(spread @ (labels * state.labelled.unsqueeze(-1)), open_, state.open_counts)
        update = (open_ & going).unsqueeze(-1)
        state.targets = torch.where(update, assigned, state.targets)
        labels = one_hot(state.targets.argmax(-1), labels.shape[-1]).to(x.dtype)
        start = weighted_class_means(x, labels * state.labelled.unsqueeze(-1))
        losses = _mean_losses(x, labels, mask, normalize(start, dim=-1), self.cleaning_steps)
        chosen = _cleanest(losses, labels, open_, self.per_class) & going
        enough = chosen.sum(-1, keepdim=True) >= labels.shape[-1]
        chosen, state.active = chosen & enough, state.active & (enough | ~going)
        state.labelled = state.labelled | chosen
        state.open_counts = state.open_counts - (labels * chosen.unsqueeze(-1)).sum(1, keepdim=True)

    def _balanced(self, scores: Tensor, open_: Tensor, counts: Tensor) -> Tensor:
        """P [T, N, C] from the scores Z [T, N, C]; rows of points that are not open have no meaning."""
        scores = scores.clamp(min=0)
        scores = scores / scores.sum(-1, keepdim=True).clamp(min=LEAST)
        logits = self.power * scores.clamp(min=LEAST).log()
        shares = counts.clamp(min=LEAST)
        return (logits + class_term(logits, open_, shares / shares.sum(-1, keepdim=True))).softmax(-1)


def _start(observed: Observed, x: Tensor) -> _State:
    """The state before the first round: only the support set is labelled, and all classes have equally many queries."""
    num_classes, num_queries = observed.num_classes, observed.query_x.shape[1]
    labels = one_hot(observed.support_y, num_classes).to(x.dtype)
    targets = torch.cat((labels, x.new_zeros(len(x), num_queries, num_classes)), dim=1)
    labelled = torch.cat((observed.support_mask, torch.zeros_like(observed.query_mask)), dim=1)
    counts = observed.query_mask.sum(-1).to(x.dtype) / num_classes
    return _State(
        labelled, targets, counts.view(-1, 1, 1).expand(-1, 1, num_classes), observed.query_mask.any(-1, True)
    )


def _mean_losses(x: Tensor, labels: Tensor, mask: Tensor, start: Tensor, num_steps: int) -> Tensor:
    """Cross-entropy of each point, averaged over SGD steps with momentum and weight decay on the mean of all points.

    The classifier has weights a start + beta^T x and offsets sum_i beta_i, so its logits need only the Gram matrix.

    Args:
        x: points [T, N, D].
        labels: [T, N, C].
        mask: [T, N].
        start: weights before the first step [T, C, D]; offsets are 0.
        num_steps: number of steps.

    Returns:
        losses [T, N], in nats.
    """
    gram, initial = x @ x.mT + 1, x @ start.mT
    weight = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
    beta, velocity, total = (torch.zeros_like(labels) for _ in range(3))
    kept, change = 1.0, 0.0  # a, and its momentum
    for _ in range(num_steps):
        log_p = (kept * initial + gram @ beta).log_softmax(-1)
        total -= log_p * labels
        velocity = MOMENTUM * velocity + (log_p.exp() - labels) * weight + DECAY * beta
        change = MOMENTUM * change + DECAY * kept
        beta, kept = beta - RATE * velocity, kept - RATE * change
    return total.sum(-1) / num_steps


def _cleanest(losses: Tensor, labels: Tensor, open_: Tensor, per_class: int) -> Tensor:
    """Whether an open point [T, N] has one of the `per_class` smallest losses among those with the same label."""
    of_class = losses.unsqueeze(1).masked_fill(~((labels.mT > 0) & open_.unsqueeze(1)), torch.inf)  # [T, C, N]
    best = of_class.topk(min(per_class, losses.shape[-1]), dim=-1, largest=False)
    chosen = torch.zeros_like(of_class, dtype=torch.bool).scatter(-1, best.indices, best.values.isfinite())
    return chosen.any(1)
