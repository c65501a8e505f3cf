"""BD-CSPN: class means of the support points and the most confident queries.

Liu, Song and Qin, "Prototype Rectification for Few-Shot Learning", ECCV 2020 (arXiv 1911.10713).
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasClassMeans
from pyro_metabayes.transductive.assignments import weighted_class_means
from pyro_metabayes.transductive.balance import assign, balanced, check_balance, require_class_term
from pyro_metabayes.transductive.shift import ShiftedPoints, with_shift

SINKHORN_ITERATIONS = 100


class Guide(pyro_metabayes.Guide):
    """Point estimate at rectified prototypes, i.e. weighted means of support points and confident queries.

    q(w | support, x_query) = delta(P'). First the queries are shifted. Then the prototypes P' are computed:

        xi = mean(support) - mean(query),    x_i <- x_i + xi for the queries,
        P'_c = sum_i w_ic x_i,    w_ic = exp(eps cos(x_i, P_c)) / sum_j exp(eps cos(x_j, P_c)).

    P_c is the mean of class c in the support set. The sums are over the support points of class c and the Z most
    confident queries with pseudo-label c. The pseudo-label of a query is the class with the largest cosine.

    The logit of class c for a query x is proportional to (x + xi) . P'_c, with P'_c scaled to unit length, up to a term
    common to all classes. The weights of the head represent xi . P'_c as a term per class. The predicted class is the
    class with the largest cosine, as published. Probabilities differ from those of the paper, which divides the logits
    by |x + xi| too.

    Args:
        most_confident: number Z of queries per class that enter the prototypes.
        sharpness: factor eps of the cosines in w_ic before training. The factor is learned. The paper uses 10. For
            features with small cosines about 1 is better.
        balance: whether the class shares of the queries are known.
            `unknown`: as published.
            `known`: each class has equally many queries. Pseudo-labels and predictions are projected to equal shares.

    Raises:
        UsageError: a setting is out of range, or the head has no term per class.
    """

    requires = (HasClassMeans,)
    transductive = True

    def __init__(
        self,
        model: pyro_metabayes.Model,
        most_confident: int = 8,
        sharpness: float = 10.0,
        balance: str = "unknown",
    ) -> None:
        super().__init__(model)
        if most_confident < 0 or sharpness <= 0:
            got = f"{most_confident=} and {sharpness=}"
            raise UsageError(f"expected guide.most_confident >= 0 and sharpness > 0, got {got}")
        require_class_term(model, "guide=bd_cspn")
        check_balance(balance, model)
        self.most_confident, self.balance = most_confident, balance
        self.log_sharpness = nn.Parameter(torch.tensor(sharpness).log())

    def posterior(self, observed: Observed) -> TorchDistribution:
        points, model = ShiftedPoints.of(observed), self.require(HasClassMeans)
        sharpness, similarity = self.log_sharpness.exp(), points.cosines(class_means(observed))
        labelled = one_hot(observed.support_y, observed.num_classes) * observed.support_mask.unsqueeze(-1)
        queries = similarity[:, observed.support_x.shape[1] :]
        member = torch.cat((labelled, self._confident(sharpness * queries, observed)), dim=1)
        weights = (sharpness * (similarity - 1)).exp() * member  # at most 1, so that exp does not overflow
        rectified = normalize(weighted_class_means(points.x, weights), dim=-1)
        w = with_shift(self.model, model.at_means(rectified), points.shift)
        return Delta(balanced(self.balance, self.model, w, observed), event_dim=2)

    def _confident(self, logits: Tensor, observed: Observed) -> Tensor:
        """Return whether a query is among the most confident queries with pseudo-label c, [tasks, queries, classes].

        These are at most `most_confident` queries per class, or more if confidences are equal.
        """
        start = torch.zeros_like(logits[:, :1])
        probs, _ = assign(self.balance, logits, observed.query_mask, start, SINKHORN_ITERATIONS)
        labels = one_hot(probs.argmax(-1), observed.num_classes)
        confidence = probs * labels * observed.query_mask.unsqueeze(-1)  # 0 for other classes and masked queries
        count = min(self.most_confident, confidence.shape[1])
        if not count:
            return torch.zeros_like(labels)
        least = confidence.topk(count, dim=1).values[:, -1:]
        return (confidence >= least) & (confidence > 0)
