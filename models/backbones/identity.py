"""A backbone without a network, for inputs that are already features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.scale import bounded, unit_length


class Backbone(pyro_metabayes.Backbone):
    """Backbone that returns its input features, after optional power transform, scaling and centring, in this order.

    Args:
        input_shape: [D], the number of features.
        normalise: whether the features are scaled to unit length.
        power: exponent beta of the power transform sign(v) |v|^beta of each feature v. PT-MAP (Hu et al. 2021) has beta
            = 0.5 and v >= 0.
        centre: whether the mean feature of the training classes is subtracted. With `normalise`, the difference is
            scaled to unit length. A run sets the mean by `centre_on` before training. Until then the mean is 0.

    Raises:
        UsageError: the inputs are not features, or the power is not positive.
    """

    mean: Tensor

    def __init__(
        self, input_shape: tuple[int, ...], normalise: bool = True, power: float = 1.0, centre: bool = False
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise UsageError(
                f"expected features [D] for backbone=identity, got inputs of shape {list(input_shape)}; "
                "set backbone=conv4 for images"
            )
        (self.num_features,) = input_shape
        if power <= 0:
            raise UsageError(f"expected backbone.power > 0, got {power}")
        self.normalise = self.scale_invariant = normalise
        self.power, self.centre = power, centre
        if centre:
            self.register_buffer("mean", torch.zeros(self.num_features))

    @property
    def transforms(self) -> bool:
        """Whether a power transform or centring changes the features."""
        return self.centre or self.power != 1

    def forward(self, x: Tensor) -> Tensor:
        features = self._scaled(x)
        if not self.centre:
            return features
        centred = features - self.mean.to(features)  # inputs from a file are on the CPU, the mean may be elsewhere
        return functional.normalize(centred, dim=-1) if self.normalise else centred

    def _scaled(self, x: Tensor) -> Tensor:
        if self.power != 1:
            x = bounded(x) if self.normalise else x
            x = x.sign() * x.abs() ** self.power
        return unit_length(x) if self.normalise else x

    @torch.no_grad()
    def centre_on(self, batches: Iterable[Tensor]) -> None:
        """Set the mean that `forward` subtracts to the mean of the transformed features in all batches.

        Without `centre` this method does nothing.
        """
        if self.centre:
            features = [self._scaled(batch).double() for batch in batches]
            total = torch.stack([part.sum(0) for part in features]).sum(0)
            self.mean.copy_(total / sum(map(len, features)))
