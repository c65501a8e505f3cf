"""Predictors whose weights LEO's decoder generates for each task: outputs, likelihood and inner loss."""

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
    """Base class of predictors with generated weights: one weight vector, or several per class.

    Attributes:
        num_weights: P, the size of one weight vector.
        scale: standard deviation of the decoder's noise on each weight, before training.
    """

    num_weights: int
    scale: float

    def slots(self, observed: Observed) -> Size:
        """Return the shape of the set of weight vectors of a task.

        The shape is [C, L] for C classes with L weight vectors each, and [] for a predictor with one weight vector.
        """
        raise NotImplementedError

    def initial(self) -> Tensor:
        """Return the weights of an untrained predictor, as one vector."""
        return torch.zeros(self.num_weights)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the logits or means of N points in T tasks.

        Args:
            w: weight vectors of P numbers [..., T, *slots, P], with the shape that the method `slots` returns.
            x: D features per point [T, N, D].

        Returns:
            Tensor [..., T, N, Y] for Y outputs.
        """
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Compute the outputs, and their vector-Jacobian product: a function of a cotangent of the outputs."""
        value, pullback = torch.func.vjp(lambda weights: self.outputs(weights, x), w)[:2]
        return value, lambda cotangent: pullback(cotangent)[0]

    def likelihood(self, outputs: Tensor) -> TorchDistribution:
        """Return p(y | outputs) of N points of T tasks, batch [..., T, N]."""
        raise NotImplementedError

    def residual(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute the gradient of the inner loss, a sum over points, with respect to the outputs."""
        raise NotImplementedError


class LinearClassifier(Predictor):
    """Linear classifier without bias and temperature: logits_ic = mean_l w_cl . x_i for weight vectors w_cl of class c.

    Args:
        num_features: number of features of x_i.
        num_classes: number of classes.
        copies: L, the number of weight vectors per class, l = 1, ..., L.
    """

    def __init__(self, num_features: int, num_classes: int, copies: int = 1) -> None:
        self.num_weights, self.copies = num_features, copies
        self.scale = math.sqrt(2 / (num_features + num_classes))  # Glorot initialisation

    def slots(self, observed: Observed) -> Size:
        return Size((observed.num_classes, self.copies))

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return fold_samples(w.mean(-2), x).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Compute logits and their vector-Jacobian product, pullback(g)_cl = sum_i g_ic x_i / L.

        g is the cotangent. The result is the same for all L weight vectors l of class c.
        """

        def pullback(cotangent: Tensor) -> Tensor:
            of_class = unfold_samples(cotangent.mT, x) / self.copies
            return of_class.unsqueeze(-2).expand_as(w)

        return self.outputs(w, x), pullback

    def likelihood(self, outputs: Tensor) -> TorchDistribution:
        return Categorical(logits=outputs)

    def residual(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.softmax(-1) - functional.one_hot(y, outputs.shape[-1])


class NeuralRegression(Predictor):
    """Regression y ~ N(f(x; w), noise^2) by a ReLU network f with two hidden layers, whose weights and biases are w.

    Args:
        num_inputs: number of inputs of the network.
        num_hidden: width of both hidden layers.
        num_outputs: number of outputs.
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
        """Draw the weights of an untrained network, uniform within +- 1 / sqrt(inputs of the layer)."""
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
        """Compute the gradient of half the squared error with respect to the outputs.

        This loss is noise^2 * -log p(y | outputs), so its scale does not depend on the noise.
        """
        return outputs - y
