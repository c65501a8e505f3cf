"""The prior over the latent of a task (`prior=` on the command line)."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn

from pyro_metabayes.episodes import Observed
from pyro_metabayes.specification.recorded import Recorded


class Prior(Recorded, nn.Module):
    """Prior over the latent w of a task, p_psi(w) or p_psi(w | support), with parameters psi.

    A new prior defines `forward`.

    Attributes:
        conditional: whether the prior depends on the support set.
        proper: whether the density integrates to 1, so that the prior can be sampled.
    """

    conditional: bool = False
    proper: bool = True

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        """Return the prior p_psi(w) or p_psi(w | support), with batch shape [T] and event shape `event_shape`.

        Args:
            observed: T tasks.
            event_shape: *W, the shape of the latent of one task.
        """
        raise NotImplementedError

    def start_at(self, w: Tensor) -> None:
        """Add initial weights w [1, W] to the mean of the prior, before training. By default nothing changes."""

    def start_at_moments(self, mean: Tensor, covariance: Tensor) -> None:
        """Set mean [W] and covariance [W, W] of the W weights of a class or output, before training.

        The prior gets these moments as closely as its family allows. By default nothing changes.
        """
