"""Regression with a Student-t likelihood, which is less sensitive to outliers than a Gaussian likelihood."""

from __future__ import annotations

import torch
from pyro.distributions import StudentT, TorchDistribution
from torch import Tensor, nn

from pyro_metabayes.errors import UsageError
from pyro_metabayes.models import hierarchical_regression, neural_regression
from pyro_metabayes.models.heads import Head
from pyro_metabayes.models.parts.same_outputs import SameOutputs
from pyro_metabayes.prior import Prior

MOST_DF = 1000.0  # with this df the density is Gaussian to three digits; for larger df float32 is inexact


class Model(SameOutputs):
    """Regression with Student-t noise for each of the Y values of a label.

        p(y_ik | x_i, w) = StudentT(y_ik; df, f_k(x_i, w), scale)

    scale and df are learned. Without a head, f is linear as in hierarchical_regression, with latent weights w [Y, R].
    With head=network, f is the network of neural_regression. (Lange, Little and Taylor, "Robust statistical modeling
    using the t distribution", JASA 1989.)

    Args:
        prior: prior over w.
        num_targets: Y, the number of values in one label.
        num_features: D, the number of features.
        num_weights: R, the number of leading features whose weights vary by task; used only without a head.
        head: a network for f; None for a linear f.
        scale: scale of the noise before training.
        df: degrees of freedom before training, at most 1000; with 1000 the density is almost Gaussian.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: the labels are classes, or scale or df is out of range.
    """

    def __init__(
        self,
        prior: Prior,
        num_targets: int,
        num_features: int,
        num_weights: int,
        head: Head | None = None,
        scale: float = 1.0,
        df: float = 4.0,
        observe: str = "query",
    ) -> None:
        if scale <= 0 or not 0 < df <= MOST_DF:
            raise UsageError(f"expected model.scale > 0 and 0 < model.df <= {MOST_DF:g}, got {scale=} and {df=}")
        gaussian: hierarchical_regression.Model | neural_regression.Model = (
            hierarchical_regression.Model(prior, num_targets, num_features, num_weights, scale)
            if head is None
            else neural_regression.Model(head, prior, num_targets, num_features, scale, learn_noise=True)
        )
        super().__init__(gaussian, prior, observe)
        self.log_df = nn.Parameter(torch.tensor(df).log())

    @property
    def scale(self) -> Tensor:
        """Scale of the Student-t noise, in the unit of a label."""
        return self.predictor.log_noise.exp()

    @property
    def beta(self) -> Tensor:
        """Coefficients of the features that have the same effect in all tasks. Not defined with a head."""
        return self.predictor.beta

    @property
    def df(self) -> Tensor:
        """Degrees of freedom of the noise."""
        return self.log_df.exp().clamp(max=MOST_DF)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return StudentT(self.df, outputs, self.scale).to_event(1)

    def loss_unit(self) -> Tensor:
        """Return u = 2 scale^2 df / (df + 1). For a small residual r, -log p = r^2 / u up to a constant."""
        return 2 * self.scale**2 * self.df / (self.df + 1)
