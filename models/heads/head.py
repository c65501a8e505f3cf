"""The protocol of heads, which map features and the weights of a task to logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor, nn

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.specification.recorded import Recorded

Outputs = Callable[[Tensor], Tensor]
Pullback = Callable[[Tensor], Tensor]


class Head(Recorded, nn.Module):
    """Logits [..., T, N, C] from weights w [..., T, C, W] and features x [T, N, D].

    Attributes:
        has_class_term: whether the last weight of each class is an additive term of its logits; if so,
            `with_class_term` is defined.
    """

    has_class_term = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("outputs_at", "outputs_of_draws"):
            if "outputs" in vars(cls) and name not in vars(cls):  # an inherited one is of other outputs
                setattr(cls, name, vars(Head)[name])

    def num_weights(self, num_features: int) -> int:
        """W, the number of weights of one class, for D features."""
        raise NotImplementedError

    def event_shape(self, num_classes: int, num_features: int) -> Size:
        """The shape of the weights of one task: [C, W]."""
        return Size((num_classes, self.num_weights(num_features)))

    def initial_weights(self, num_classes: int, num_features: int) -> Tensor:
        """Random weights [C, W] of about unit length, as an initial point of guides."""
        num_weights = self.num_weights(num_features)
        return torch.randn(num_classes, num_weights) * num_weights**-0.5

    def prototypes(self, means: Tensor) -> Tensor:
        """Weights [..., C, W] that classify by the nearest of the class means [..., C, D]."""
        raise NotImplementedError

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        """Weights whose logits are those of w [..., T, C, W] plus term [..., T, C]."""
        raise NotImplementedError

    def loss_range(self, num_classes: int) -> Tensor | None:
        """Bound on the range (largest minus smallest) of the cross-entropy of one point, in nats; None: unbounded."""
        return None

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Logits [..., T, N, C]."""
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Logits, and their vector-Jacobian product: a function from a cotangent [..., T, N, C] to one of w."""
        raise NotImplementedError

    def outputs_at(self, w: Tensor) -> Outputs:
        """The function x -> outputs(w, x) (`FixesWeights`); a head overrides it to compute what w determines once."""
        return partial(self.outputs, w)

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Outputs:
        """The function x -> logits [L, T, N, C] of the draws of a Latin square (`DrawsOutputs`).

        A head overrides it to save products.

        Args:
            loc: [T, C, W].
            noise: [T, G, M, W], G = 1 or C.
            square: assigns noise to the classes of each draw.
        """
        return self.outputs_at(square.draws(loc[:, None, None] + square.odd(noise)))
