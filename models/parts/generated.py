"""Predictors whose weights a decoder generates for each task: outputs, likelihood and inner loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.distributions import Categorical, Normal, TorchDistribution
from torch import Size, Tensor
from torch.nn import functional

from pyro_metabayes.episodes import Observed
from pyro_metabayes.models.parts.products import fold_samples, unfold_samples

Pullback = Callable[[Tensor], Tensor]


class Predictor:
    """A predictor whose weights are the last axis of w, one vector for each of `slots`.

    Attributes:
        num_weights: P, the size of one vector.
        scale: standard deviation of the entries of a vector in an untrained predictor.
    """

    num_weights: int
    scale: float

    def slots(self, observed: Observed) -> Size:
        """The shape of the set of weight vectors of one task: [C, L], or [] for one vector."""
        raise NotImplementedError

    def initial(self) -> Tensor:
        """Weights [P] of an untrained predictor."""
        return torch.zeros(self.num_weights)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Logits or means [..., T, N, Y] for weights [..., T, *slots, P] and points [T, N, D]."""
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Outputs, and the function that maps a cotangent of the outputs to one of w."""
        value, pullback = torch.func.vjp(lambda weights: self.outputs(weights, x), w)[:2]
        return value, lambda cotangent: pullback(cotangent)[0]

    def likelihood(self, outputs: Tensor) -> TorchDistribution:
        """p(y | outputs), batch [..., T, N]."""
        raise NotImplementedError

    def residual(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of the inner loss, the sum of -log p(y | outputs) over points, with respect to the outputs."""
        raise NotImplementedError


class LinearClassifier(Predictor):
    """logits_ic = mean_l w_cl . x_i, without bias and temperature.

    Args:
        num_features: D.
        num_classes: C.
        copies: L, the number of weight vectors per class.
    """

    def __init__(self, num_features: int, num_classes: int, copies: int = 1) -> None:
        self.num_weights, self.copies = num_features, copies
        self.scale = math.sqrt(2 / (num_features + num_classes))  # Glorot initialisation

    def slots(self, observed: Observed) -> Size:
        return Size((observed.num_classes, self.copies))

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return fold_samples(w.mean(-2), x).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """pullback(g)_cl = sum_i g_ic x_i / L."""

        def pullback(cotangent: Tensor) -> Tensor:
            of_class = unfold_samples(cotangent.mT, x) / self.copies
            return of_class.unsqueeze(-2).expand_as(w)

        return self.outputs(w, x), pullback

    def likelihood(self, outputs: Tensor) -> TorchDistribution:
        return Categorical(logits=outputs)

    def residual(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.softmax(-1) - functional.one_hot(y, outputs.shape[-1])


class NeuralRegression(Predictor):
    """y ~ N(f(x; w), noise^2), f a ReLU network D-H-H-Y; w holds all its weights and biases.

    Args:
        num_inputs: D.
        num_hidden: H.
        num_outputs: Y.
        noise: standard deviation of the label noise.
    """

    scale = 0.05

    def __init__(self, num_inputs: int, num_hidden: int, num_outputs: int, noise: float) -> None:
        self.sizes, self.noise = (num_inputs, num_hidden, num_hidden, num_outputs), noise
        self.parts = [part for n, m in zip(self.sizes, self.sizes[1:], strict=False) for part in (n * m, m)]
        self.num_weights = sum(self.parts)

    def slots(self, observed: Observed) -> Size:
        return Size()

    def initial(self) -> Tensor:
        """Uniform as in torch.nn.Linear, layer by layer."""
        bounds = [n**-0.5 for n in self.sizes[:-1] for _ in range(2)]
        return torch.cat([(2 * torch.rand(n) - 1) * bound for n, bound in zip(self.parts, bounds, strict=True)])

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        pieces = w.split(self.parts, dim=-1)
        hidden = x
        for layer, (n, m) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            weight, bias = pieces[2 * layer].unflatten(-1, (n, m)), pieces[2 * layer + 1].unsqueeze(-2)
            hidden = (hidden if layer == 0 else hidden.relu()) @ weight + bias
        return hidden

    def likelihood(self, outputs: Tensor) -> TorchDistribution:
        return Normal(outputs, self.noise).to_event(1)

    def residual(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Gradient of half the squared error, noise^2 * -log p(y | outputs): its scale does not depend on the noise."""
        return outputs - y
