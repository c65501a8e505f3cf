"""The improper uniform distribution of a flat prior."""

from __future__ import annotations

from pyro import distributions
from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor

from pyro_metabayes.errors import UsageError


class ImproperUniform(distributions.ImproperUniform):
    """Improper uniform distribution, log p(w) = 0 for every w.

    log_prob has the dtype and device of w, unlike in Pyro's class ImproperUniform.
    """

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        raise UsageError(
            "expected a prior that can be sampled, got a flat prior; use learner.posterior_predictive instead of "
            "Pyro's Predictive, or use a Gaussian prior"
        )

    def log_prob(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - self.event_dim]
        return value.new_zeros(()).expand(broadcast_shape(batch, self.batch_shape))
