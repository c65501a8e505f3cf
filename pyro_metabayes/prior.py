"""The prior over a task's latent, a choice of its own beside model and guide (`prior=` on the command line)."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn

from pyro_metabayes.episodes import Observed
from pyro_metabayes.specification.recorded import Recorded


class Prior(Recorded, nn.Module):
    """p_psi(w | support or nothing), psi its parameters. A new prior defines `forward`.

    conditional: whether it reads the support set.
    """

    conditional: bool = False

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        """p_psi(w | ...): batch [T], event event_shape, the shape *W of one task's latent."""
        raise NotImplementedError

    def start_at(self, w: Tensor) -> None:
        """Before training, move the mean to the weights [1, W], where a prior has a mean of its own."""
