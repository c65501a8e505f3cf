"""iLPC: iterative label propagation, balancing and label cleaning.

Lazarou, Stathaki and Avrithis, "Iterative Label Cleaning for ... Few-Shot Learning", ICCV 2021 (arXiv 2012.07962).
"""

from __future__ import annotations

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
from pyro_metabayes.transductive.label_cleaning import Labelling, balanced, cleanest, initial_labelling, mean_losses
from pyro_metabayes.transductive.propagation import propagation
from pyro_metabayes.transductive.reproduction import rows_of_scores

MORE = 2  # extra rounds beyond those that equal class sizes need; queries without a label keep their last assignment


class Guide(pyro_metabayes.Guide):
    """Point estimate of a linear classifier that reproduces the assignments of queries to classes by iLPC.

    Each round of Algorithm 1 computes, for the support points followed by the queries,

        Z = (I - alpha W)^-1 Y,    Y the labels of the support points and of the queries labelled so far (eq. 4 and 5),
        P = transport plan nearest to Z^power; the total of a class is its number of queries still to be labelled,
        l_i = loss of point i with the label argmax P_i, averaged over the training of a linear classifier.

    W is the normalised adjacency matrix of nearest neighbours, with edge weights cosine^3. In each class, the
    `per_class` unlabelled queries with the smallest l_i then receive the label argmax P_i. Each class is assumed to
    have equally many queries. The posterior is delta(w). The logits of w are the last P_i times the learned scale of
    the head, almost exactly for at most (number of features + 1) points per task. For more points they are a ridge fit.

    Args:
        num_neighbours: number of neighbours of each point in the graph.
        propagation_decay: weight alpha of the neighbours in label propagation.
        power: exponent of the scores Z.
        per_class: number of queries of each class that receive a label in one round.
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
            got = f"{num_neighbours=}, {per_class=}, {cleaning_steps=}, {power=} and {propagation_decay=}"
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
        """Return the labels of the support points and the assignments of the queries, [tasks, points, classes].

        Args:
            observed: the tasks.
            x: support points followed by queries [tasks, points, features].
            mask: whether a point counts [tasks, points].
        """
        spread = propagation(x, mask, self.num_neighbours, 3.0, self.decay)
        state = initial_labelling(observed, x)
        share = self.per_class * observed.num_classes
        counts = observed.query_mask.sum(-1, keepdim=True)
        for index in range(ceil(observed.query_x.shape[1] / share) + MORE):
            state.active = state.active & (index * share < counts + MORE * share)  # padding adds no rounds
            self._round(state, x, mask, spread)
        return state.targets

    def _round(self, state: Labelling, x: Tensor, mask: Tensor, spread: Tensor) -> None:
        """Run one round: assign the unlabelled queries to classes, then label the queries with the smallest losses.

        Args:
            state: the labels and assignments so far. The round changes the state.
            x: support points followed by queries [tasks, points, features].
            mask: whether a point counts [tasks, points].
            spread: the propagation matrix (I - alpha W)^-1 [tasks, points, points].
        """
        open_ = mask & ~state.labelled
        going = state.active & open_.any(-1, keepdim=True)
        labels = one_hot(state.targets.argmax(-1), state.targets.shape[-1]).to(x.dtype)
        assigned = balanced(spread @ (labels * state.labelled.unsqueeze(-1)), open_, state.open_counts, self.power)
        update = (open_ & going).unsqueeze(-1)
        state.targets = torch.where(update, assigned, state.targets)
        labels = one_hot(state.targets.argmax(-1), labels.shape[-1]).to(x.dtype)
        start = weighted_class_means(x, labels * state.labelled.unsqueeze(-1))
        losses = mean_losses(x, labels, mask, normalize(start, dim=-1), self.cleaning_steps)
        chosen = cleanest(losses, labels, open_, self.per_class) & going
        enough = chosen.sum(-1, keepdim=True) >= labels.shape[-1]
        chosen, state.active = chosen & enough, state.active & (enough | ~going)
        state.labelled = state.labelled | chosen
        state.open_counts = state.open_counts - (labels * chosen.unsqueeze(-1)).sum(1, keepdim=True)
