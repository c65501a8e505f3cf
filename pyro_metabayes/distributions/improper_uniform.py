"""The improper uniform distribution of a flat prior."""

from __future__ import annotations

import torch
from pyro import distributions
from torch import Size, Tensor

from pyro_metabayes.errors import UsageError


class ImproperUniform(distributions.ImproperUniform):
    """log p(w) = 0 everywhere, with the dtype and device of w; Pyro's log_prob is always on the CPU."""

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        raise UsageError(
            "expected a prior that can be sampled, got the flat one, which cannot; for predictions use "
            "learner.posterior_predictive (Predictive runs the model by itself first), or use a Gaussian prior"
        )

    def log_prob(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - self.event_dim]
        return value.new_zeros(()).expand(torch.broadcast_shapes(batch, self.batch_shape))
