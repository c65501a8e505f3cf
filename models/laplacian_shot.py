"""A few-shot classifier that favours equal predictions for neighbouring queries: LaplacianShot's Laplacian term.

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
    """p(y_i = c | x_i, w, x_query) = softmax_c(head(w, x_i) + smoothness * sum_{j in neighbours of i} z_jc).

    z_j [C] is the soft assignment of the unlabelled query j to the classes. It starts at softmax(head(w, x_j)) and is
    refined by the bound updates (eq. 9 and 10)

        z_j <- softmax(head(w, x_j) + smoothness * sum_{l in neighbours of j} z_l).

    Neighbours of a point are the unmasked queries nearest to it by the Euclidean distance, itself excluded. The inner
    loop of a guide uses the logits of the head alone. The model also works with guides other than laplacian_shot.

    Args:
        head: as in few_shot_classifier.
        prior: as in few_shot_classifier.
        smoothness: initial value of the paper's lambda, which is learned.
        num_neighbours: number of neighbours of a point; there are more if further queries are at the same distance.
        num_updates: number of bound updates, of which the prediction is the last.
        observe: the points whose labels `forward` conditions on: "query", "support" or "all".

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
            got = f"{smoothness}, {num_neighbours} and {num_updates}"
            raise UsageError(
                f"expected model.smoothness > 0, num_neighbours >= 1 and num_updates >= 1, got {got}; "
                "take model=few_shot_classifier for predictions without neighbours"
            )
        self.num_neighbours, self.num_updates = num_neighbours, num_updates
        self.log_smoothness = nn.Parameter(torch.tensor(smoothness).log())

    def loss_range(self, observed: Observed) -> None:
        """None: the loss is unbounded. It grows with the neighbours, and all queries at equal distances count."""

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
        """1 where a query is a neighbour of a point, else 0 [T, N, Q]; a query at distance 0 does not count."""
        exact = "donot_use_mm_for_euclid_dist"  # so that the distance of a point to itself is 0
        distance = torch.cdist(x, observed.query_x, compute_mode=exact)
        other = (distance > 0) & observed.query_mask.unsqueeze(-2)
        distance = distance.masked_fill(~other, torch.inf)
        count = min(self.num_neighbours, distance.shape[-1])
        if not count:
            return distance
        largest = distance.topk(count, dim=-1, largest=False).values[..., -1:]
        return ((distance <= largest) & other).to(x.dtype)
