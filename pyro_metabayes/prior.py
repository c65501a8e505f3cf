"""The prior over the latent of a task (`prior=` on the command line)."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn

from pyro_metabayes.episodes import Observed
from pyro_metabayes.specification.recorded import Recorded


class Prior(Recorded, nn.Module):
    """p_psi(w | support or nothing) with parameters psi. A new prior defines `forward`.

    Attributes:
        conditional: whether the prior depends on the support set.
    """

    conditional: bool = False

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        """p_psi(w | support or nothing): batch [T], event `event_shape`.

        Args:
            observed: the tasks.
            event_shape: *W, the shape of the latent of one task.
        """
        raise NotImplementedError

    def start_at(self, w: Tensor) -> None:
        """Before training, set the mean to the weights [1, W]; no effect on a prior without a learned mean."""

    def start_at_moments(self, mean: Tensor, covariance: Tensor) -> None:
        """Before training, match this mean [W] and covariance [W, W] as closely as the family allows."""
