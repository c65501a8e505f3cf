"""A few-shot classifier with LaplacianShot's Laplacian term, which favours equal predictions for neighbouring queries.

Ziko et al., "Laplacian Regularized Few-Shot Learning", ICML 2020 (arXiv 2006.15486).
"""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models import few_shot_classifier
from pyro_metabayes.models.heads import Head
from pyro_metabayes.prior import Prior


class Model(few_shot_classifier.Model):
    """Classifier that adds to the logits of a point the soft assignments z_j of its neighbouring queries j:

        p(y_i = c | x_i, w, x_query) = softmax_c(head(w, x_i) + smoothness * sum_{j in neighbours of i} z_jc).

    z_j has one probability per class. z_j starts at softmax(head(w, x_j)). The bound updates of the paper (eq. 9 and
    10) refine z_j:

        z_j <- softmax(head(w, x_j) + smoothness * sum_{l in neighbours of j} z_l).

    The neighbours of a point are the unmasked queries with the smallest Euclidean distance > 0. Gradient steps of a
    guide use the logits of the head alone. The model also works with guides other than laplacian_shot.

    Args:
        head: computes logits from weights and features.
        prior: any prior over the weights w of the classes.
        smoothness: initial value of the paper's lambda, which is learned.
        num_neighbours: number of neighbours of a point; more if further queries are at the same distance.
        num_updates: number of bound updates; the last update is the prediction.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: a setting is out of range.
    """

    def __init__(
        self,
        head: Head,
        prior: Prior,
        smoothness: float = 1.0,
        num_neighbours: int = 3,
        num_updates: int = 20,
        observe: str = "query",
    ) -> None:
        super().__init__(head, prior, observe)
        if smoothness <= 0 or min(num_neighbours, num_updates) < 1:
            got = f"smoothness={smoothness}, num_neighbours={num_neighbours}, num_updates={num_updates}"
            raise UsageError(
                f"expected model.smoothness > 0, num_neighbours >= 1 and num_updates >= 1, got {got}; "
                "set model=few_shot_classifier for predictions without neighbours"
            )
        self.num_neighbours, self.num_updates = num_neighbours, num_updates
        self.log_smoothness = nn.Parameter(torch.tensor(smoothness).log())

    def loss_range(self, observed: Observed) -> None:
        """Return None: the loss is unbounded, since queries at equal distances are all neighbours."""

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        logits, queries = self.outputs(w, x), self.outputs(w, observed.query_x)
        smoothness = self.log_smoothness.exp()
        among = smoothness * self._neighbours(observed.query_x, observed)
        assignments = queries.softmax(-1)
        for _ in range(self.num_updates - 1):
            assignments = (queries + among @ assignments).softmax(-1)
        to_queries = among if x is observed.query_x else smoothness * self._neighbours(x, observed)
        return self.likelihood_of(logits + to_queries @ assignments)

    @torch.no_grad()
    def _neighbours(self, x: Tensor, observed: Observed) -> Tensor:
        """Return 1 where one of Q queries is a neighbour of one of N points, else 0 [T, N, Q], for T tasks.

        Queries at distance 0 are not neighbours, so a query is not its own neighbour.
        """
        exact = "donot_use_mm_for_euclid_dist"  # so that the distance of a point to itself is 0
        distance = torch.cdist(x, observed.query_x, compute_mode=exact)
        other = (distance > 0) & observed.query_mask.unsqueeze(-2)
        distance = distance.masked_fill(~other, torch.inf)
        count = min(self.num_neighbours, distance.shape[-1])
        if not count:
            return distance
        largest = distance.topk(count, dim=-1, largest=False).values[..., -1:]
        return ((distance <= largest) & other).to(x.dtype)
