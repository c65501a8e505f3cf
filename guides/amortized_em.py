"""Amortized expectation maximisation: EM on the query set, with a network as E-step.

EM for class means from unlabelled points: Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification", ICLR
2018 (arXiv 1803.00676). A network that replaces a step which needs labels: Hu et al. 2020 (arXiv 2004.12696).
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.seeding import drawing, task_noise
from pyro_metabayes.transductive.amortized.steps import AmortizedSteps, Directions
from pyro_metabayes.transductive.balance import check_balance, refuse_base_classes, refuse_few_queries


class Guide(pyro_metabayes.Guide):
    """Point estimate of a linear classifier, by K steps of expectation maximisation (EM) with a learned E-step.

    q(w | support, x_query) = delta(w^K). w^K classifies by the class means after K steps.

    The E-step is a network. For each query and class, the network receives the cosine of the query with the class mean,
    the labels of the neighbours of the query, and the share of the queries in the class. The rates of the M-step and
    the temperature of the predictions are learned functions of statistics of the task (`AmortizedSteps`). No parameter
    depends on the number of features or of classes. So one guide serves any features, way, shot and number of queries.
    The features must have unit length, such as those of backbone=task_frame.

    In training, the number of steps is random between K/2 and 3K/2, and the loss includes the predictions after every
    step. On average, a quarter of the tasks with balanced queries are treated as tasks with known class shares.

    Args:
        num_steps: number of EM steps K.
        width: number of channels of the network per pair of query and class.
        balance: whether the class shares of the queries are known in predictions.
            `unknown`: the guide estimates the shares.
            `known`: each class has equally many queries. Every step projects the assignments to equal shares.
                Predictions need at least as many queries as classes.

    Raises:
        UsageError: a setting is out of range, the head is not linear, or the model also predicts base classes.
    """

    transductive = True

    def __init__(
        self, model: pyro_metabayes.Model, num_steps: int = 6, width: int = 24, balance: str = "unknown"
    ) -> None:
        super().__init__(model)
        if num_steps < 0 or width < 1:
            raise UsageError(f"expected guide.num_steps >= 0 and width >= 1, got {num_steps=} and {width=}")
        linear_head(model, "guide=amortized_em")
        check_balance(balance, model)
        refuse_base_classes(model, "guide=amortized_em")
        self.num_steps, self.balance = num_steps, balance
        self.steps = AmortizedSteps(width)
        self._earlier: list[Directions] = []  # of all steps but the last; read by regulariser

    def posterior(self, observed: Observed) -> TorchDistribution:
        if observed.num_classes < 2:
            raise UsageError(f"expected support points of at least 2 classes, got {observed.num_classes}; add a class")
        if self.balance == "known":
            refuse_few_queries(observed)
        known = observed.query_x.new_ones(observed.num_tasks) if self.balance == "known" else None
        return self._classifier(self.steps(observed, self.num_steps, known))

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        if not self.training:
            return self.posterior(episodes.observed())
        with drawing():  # no task axis: equal on all processes
            number = int(torch.randint((self.num_steps + 1) // 2, 3 * self.num_steps // 2 + 1, ()))
            some = bool(torch.rand(()) < 0.5)
        known = _chosen_balanced(episodes) if some else None
        *self._earlier, last = self.steps.path(episodes.observed(), number, known)
        return self._classifier(last)

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return half the mean loss of all steps except the last [tasks]; {} if there are none, as outside training.

        The loss of a step is the NLL per query divided by log(number of classes), as for objective=mean_score.
        """
        earlier, self._earlier = self._earlier, []
        if not earlier:  # not in training
            return {}
        scores = [self._log_scores(step, episodes) for step in earlier]
        points = episodes.query_mask.sum(-1).clamp(min=1)
        return {"earlier_steps": -torch.stack(scores).mean(0) / (2 * math.log(episodes.num_classes) * points)}

    def _log_scores(self, classifier: Directions, episodes: Episodes) -> Tensor:
        """Return the log-likelihood of the query labels, in nats per task [tasks]."""
        logits = self.model.outputs(self._weights(classifier), episodes.query_x)
        log_prob = logits.log_softmax(-1).gather(-1, episodes.query_y.unsqueeze(-1)).squeeze(-1)
        return (log_prob * episodes.query_mask).sum(-1)

    def _classifier(self, classifier: Directions) -> TorchDistribution:
        return Delta(self._weights(classifier), event_dim=2)

    def _weights(self, classifier: Directions) -> Tensor:
        """Return weights of the head, [tasks, classes, features + 1], that reproduce the logits of the classifier.

        The head multiplies logits by a scale. So the weights are divided by this scale.
        """
        head = linear_head(self.model, "guide=amortized_em")
        return head.rows(classifier.directions / head.scale, classifier.offsets / head.scale)


def _chosen_balanced(episodes: Episodes) -> Tensor:
    """Return 1 for a random half of the tasks with equally many queries per class, 0 for all other tasks, [tasks]."""
    classes = torch.arange(episodes.num_classes, device=episodes.query_y.device)
    counts = ((episodes.query_y.unsqueeze(-1) == classes) & episodes.query_mask.unsqueeze(-1)).sum(1)
    chosen = task_noise((episodes.num_tasks,), episodes.query_x, task_dim=0) < 0
    return ((counts.amax(1) == counts.amin(1)) & chosen).to(episodes.query_x.dtype)
