"""LaplacianShot: class means refined by the queries. `model=laplacian_shot` adds the Laplacian term over neighbours.

Ziko et al., "Laplacian Regularized Few-Shot Learning", ICML 2020 (arXiv 2006.15486).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import one_hot

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasClassMeans
from pyro_metabayes.transductive.balance import require_class_term
from pyro_metabayes.transductive.shift import ShiftedPoints, with_shift


@runtime_checkable
class SmoothsQueries(Protocol):
    """Model with the Laplacian term of LaplacianShot, which favours equal predictions for neighbouring queries."""

    log_smoothness: Tensor


class Guide(pyro_metabayes.Guide):
    """Point estimate at rectified prototypes, i.e. class means of support points and queries.

    q(w | support, x_query) = delta(m'), with (section 3 of the paper)

        xi = mean(support) - mean(query),    x_i <- x_i + xi for the queries,
        m'_c = (1 / |X_c|) sum_{i in X_c} softmax_c(sharpness * cos(x_i, m_.)) x_i.

    m_c is the mean of class c in the support set. X_c is the set of support points and queries with a larger cosine to
    m_c than to the other class means. If X_c is empty, m'_c = m_c.

    The model classifies a query x by two terms: the distances from x + xi to m', and the assignments of the neighbours
    of x. With a linear head the distances are squared Euclidean distances.

    Args:
        sharpness: inverse temperature of the softmax before training. The inverse temperature is learned.

    Raises:
        UsageError: sharpness is not positive, the model has no Laplacian term, or the head has no term per class.
    """

    requires = (HasClassMeans, SmoothsQueries)
    transductive = True

    def __init__(self, model: pyro_metabayes.Model, sharpness: float = 10.0) -> None:
        super().__init__(model)
        if sharpness <= 0:
            raise UsageError(f"expected guide.sharpness > 0, got {sharpness}")
        require_class_term(model, "guide=laplacian_shot")
        self.log_sharpness = nn.Parameter(torch.tensor(sharpness).log())

    def posterior(self, observed: Observed) -> TorchDistribution:
        means, points = class_means(observed), ShiftedPoints.of(observed)
        cosines = points.cosines(means)
        member = one_hot(cosines.argmax(-1), observed.num_classes) * points.mask.unsqueeze(-1)
        weights = member * (self.log_sharpness.exp() * cosines).softmax(-1)
        count = member.sum(1).unsqueeze(-1)  # [T, C, 1]
        rectified = torch.where(count > 0, weights.mT @ points.x / count.clamp(min=1), means)
        w = self.require(HasClassMeans).at_means(rectified)
        return Delta(with_shift(self.model, w, points.shift), event_dim=2)
