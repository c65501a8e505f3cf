"""Amortized expectation maximisation: unrolled EM on the query set, whose E-step is a network.

EM for class means from unlabelled points: Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification", ICLR
2018 (arXiv 1803.00676). A network in place of what needs labels: Hu et al. 2020 (arXiv 2004.12696).
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.transductive.amortized_steps import AmortizedSteps
from pyro_metabayes.transductive.balance import check_balance, refuse_base_classes


class Guide(pyro_metabayes.Guide):
    """q(w | support, x_query) = delta(w^K), the linear classifier of the class means after K steps of EM.

    The E-step is a network of the query, its neighbours and the predicted class shares; the rates of the M-step and the
    temperature of the predictions are functions of statistics of the task (`AmortizedSteps`). No parameter depends on
    the dimension of the features or on the way, so one guide serves any features, way, shot and number of queries.
    It takes features of unit length, such as those of backbone=task_frame.

    Args:
        num_steps: K. In training between 1 and 3K/2, at random, so that every step improves and more do no harm.
        width: channels of the network per pair of query and class.
        balance: `unknown`, or `known`: the queries are equally many in each class, and every step projects their
            assignments to that marginal. In training the guide is told so of balanced tasks in every second step.

    Raises:
        UsageError: a setting is out of range, the head is not linear, or queries may belong to base classes.
    """

    transductive = True

    def __init__(
        self, model: pyro_metabayes.Model, num_steps: int = 6, width: int = 24, balance: str = "unknown"
    ) -> None:
        super().__init__(model)
        if num_steps < 0 or width < 1:
            raise UsageError(f"expected guide.num_steps >= 0 and width >= 1, got {num_steps} and {width}")
        self.head = (linear_head(model, "guide=amortized_em"),)  # in a tuple: its parameters are the model's
        check_balance(balance, model, ("unknown", "known"))
        refuse_base_classes(model, "guide=amortized_em")
        self.num_steps, self.balance = num_steps, balance
        self.steps = AmortizedSteps(width)

    def posterior(self, observed: Observed) -> TorchDistribution:
        known = observed.query_x.new_ones(observed.num_tasks) if self.balance == "known" else None
        return self._after(self.num_steps, observed, known)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        if not self.training:
            return self.posterior(episodes.observed())
        number = int(torch.randint(min(1, self.num_steps), 3 * self.num_steps // 2 + 1, ()))
        known = balanced_tasks(episodes) if bool(torch.rand(()) < 0.5) else None
        return self._after(number, episodes.observed(), known)

    def _after(self, num_steps: int, observed: Observed, known: Tensor | None) -> TorchDistribution:
        directions, offsets = self.steps(observed, num_steps, known)
        head = self.head[0]
        return Delta(head.rows(directions / head.scale, offsets / head.scale), event_dim=2)


def balanced_tasks(episodes: Episodes) -> Tensor:
    """1 for tasks with equally many unmasked queries in each class, else 0 [T]."""
    classes = torch.arange(episodes.num_classes, device=episodes.query_y.device)
    counts = ((episodes.query_y.unsqueeze(-1) == classes) & episodes.query_mask.unsqueeze(-1)).sum(1)
    return (counts.amax(1) == counts.amin(1)).to(episodes.query_x.dtype)
