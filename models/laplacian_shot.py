"""A few-shot classifier whose predictions of near queries agree: the Laplacian term of LaplacianShot.

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

    z are assignments of the unlabelled queries, the last of the bound updates (eq. 9 and 10)

        z_j <- softmax(head(w, x_j) + smoothness * sum_{l in neighbours of j} z_l)

    from z_j = softmax(head(w, x_j)).

    Neighbours of a point are the unmasked queries nearest to it by the Euclidean distance, itself excluded. Inner loops
    of guides see the logits of the head alone. Guides other than laplacian_shot may use it.

    Args:
        head: as in few_shot_classifier.
        prior: as in few_shot_classifier.
        smoothness: lambda of the paper, before training; it is learned.
        num_neighbours: of a query; queries at equal distances all are.
        num_updates: bound updates, the prediction itself included.
        observe: whose labels `forward` conditions on: "query", "support" or "all".

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
        """Queries at equal distances are any number of neighbours, so that no bound is known."""

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
        """Whether a query is a neighbour of a point [T, N, Q], 1 or 0; points at distance 0 are the point itself."""
        exact = "donot_use_mm_for_euclid_dist"  # so that the distance of a point to itself is 0
        distance = torch.cdist(x, observed.query_x, compute_mode=exact)
        other = (distance > 0) & observed.query_mask.unsqueeze(-2)
        distance = distance.masked_fill(~other, torch.inf)
        count = min(self.num_neighbours, distance.shape[-1])
        if not count:
            return distance
        largest = distance.topk(count, dim=-1, largest=False).values[..., -1:]
        return ((distance <= largest) & other).to(x.dtype)
