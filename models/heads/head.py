"""The base class of heads, which map features and the weights of a task to logits."""

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
    """Base class of functions from weights and features to logits.

    For T tasks, C classes and N points of D features, the shapes are

        weights w   [..., T, C, W], with W weights per class,
        features x  [T, N, D],
        logits      [..., T, N, C].

    Attributes:
        has_class_term: whether the last weight of each class is an additive term of its logits. If so,
            `with_class_term` is defined.
    """

    has_class_term = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("outputs_at", "outputs_of_draws"):
            if "outputs" in vars(cls) and name not in vars(cls):  # an inherited method has other outputs
                setattr(cls, name, vars(Head)[name])

    def num_weights(self, num_features: int) -> int:
        """Return the number W of weights per class for num_features features."""
        raise NotImplementedError

    def event_shape(self, num_classes: int, num_features: int) -> Size:
        """Return the shape [C, W] of the weights of one task: W weights for each of C classes."""
        return Size((num_classes, self.num_weights(num_features)))

    def initial_weights(self, num_classes: int, num_features: int) -> Tensor:
        """Draw W random weights for each of C classes [C, W], of about unit length, as an initial point of guides."""
        num_weights = self.num_weights(num_features)
        return torch.randn(num_classes, num_weights) * num_weights**-0.5

    def prototypes(self, means: Tensor) -> Tensor:
        """Return weights that predict the class with the nearest of the class means `means` [..., C, D]."""
        raise NotImplementedError

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        """Return weights whose logits are those of the weights w plus `term`, one number per task and class."""
        raise NotImplementedError

    def loss_range(self, num_classes: int) -> Tensor | None:
        """Return an upper bound on the range (maximum - minimum) of the cross-entropy of a point, in nats.

        None: the range is unbounded.
        """
        return None

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the logits of N points for C classes in T tasks.

        Args:
            w: W weights per class [..., T, C, W].
            x: D features per point [T, N, D].

        Returns:
            Tensor [..., T, N, C].
        """
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Compute the logits of the points x under the weights w, and their vector-Jacobian product with respect to w.

        The product is a function from a cotangent, of the shape of the logits, to a result of the shape of w.
        """
        raise NotImplementedError

    def outputs_at(self, w: Tensor) -> Outputs:
        """Return the function x -> outputs(w, x) for fixed weights w.

        A head may override this method, so that quantities that depend only on w are computed once for many x.
        """
        return partial(self.outputs, w)

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Outputs:
        """Return the function from N points x per task to their logits [L, T, N, C] under L draws w = loc +- noise.

        The draws share noise vectors (`LatinSquare`). A head may override this method to compute fewer products of
        weights and features.

        Args:
            loc: means of W weights for each of C classes of T tasks [T, C, W].
            noise: M noise vectors per task [T, G, M, W]; G = C, or G = 1 if all classes have the same noise vectors.
            square: says which noise vector each class has in each draw.
        """
        return self.outputs_at(square.draws(loc[:, None, None] + square.odd(noise)))
