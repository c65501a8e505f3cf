"""Regression by a small neural network whose weights are the latent variable of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Size, Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.heads import Head, Pullback
from pyro_metabayes.prior import Prior


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute a @ b. A batch of matrices uses bmm, since broadcasting by matmul slows autograd down."""
    return torch.bmm(a, b) if a.dim() == b.dim() == 3 else a @ b


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x @ weight + bias. A batch of matrices uses baddbmm."""
    return torch.baddbmm(bias, x, weight) if x.dim() == weight.dim() == 3 else x @ weight + bias


class Network(Head):
    """Fully connected ReLU network, whose P weights and biases w [1, P] are the latent variable of a task.

    w is one row. Layer by layer, it contains a matrix [in, out] and a bias [out]. MAML's network for sinusoids, with
    widths 1-40-40-1, has P = 1761.

    Args:
        num_features: number of inputs of the network.
        num_classes: number of outputs of the network; in a regression, the number of values in one label.
        hidden: widths of the hidden layers.

    Raises:
        UsageError: a width is not a positive integer.
    """

    def __init__(self, num_features: int, num_classes: int, hidden: Sequence[int] = (40, 40)) -> None:
        super().__init__()
        if not all(isinstance(width, int) and width > 0 for width in hidden):
            raise UsageError(
                f"expected head.hidden to be a list of widths > 0, got {list(hidden)}; "
                "two layers of width 40 are head.hidden=[40,40]"
            )
        self._layers = list(pairwise((num_features, *hidden, num_classes)))

    def num_weights(self, num_features: int) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in self._layers)

    def event_shape(self, num_classes: int, num_features: int) -> Size:
        return Size((1, self.num_weights(num_features)))

    def initial_weights(self, num_classes: int, num_features: int) -> Tensor:
        """Draw all weights, uniform within +- 1 / sqrt(inputs of the layer), as in torch.nn.Linear."""
        layers = [
            torch.empty(1, (inputs + 1) * outputs).uniform_(-1, 1) / inputs**0.5 for inputs, outputs in self._layers
        ]
        return torch.cat(layers, dim=1)

    def prototypes(self, means: Tensor) -> Tensor:
        raise UsageError("expected a head with a weight vector per class, got head=network; set head=cosine")

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return self.outputs_and_pullback(w, x)[0]

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Compute the outputs and their vector-Jacobian product by explicit backpropagation, batched over tasks."""
        layers, inputs = self._unpacked(w), []
        for i, (weight, bias) in enumerate(layers):
            inputs.append(x.relu() if i else x)
            x = affine(inputs[-1], weight, bias)

        def pullback(cotangent: Tensor) -> Tensor:
            gradients = [cotangent.sum(-2), product(inputs[-1].mT, cotangent).flatten(-2)]
            for (weight, _), given, made in zip(layers[:0:-1], inputs[-2::-1], inputs[:0:-1], strict=True):
                active = made.detach().sign()  # 1 or 0, in the dtype of x: a bool mask is converted in every product
                cotangent = product(cotangent, weight.mT) * active
                gradients += [cotangent.sum(-2), product(given.mT, cotangent).flatten(-2)]
            return torch.cat(gradients[::-1], dim=-1).unsqueeze(-2)

        return x, pullback

    def _unpacked(self, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the matrix [..., T, in, out] and the bias [..., T, 1, out] of each layer, for T tasks."""
        parts = w.squeeze(-2).split(
            [size for inputs, outputs in self._layers for size in (inputs * outputs, outputs)], -1
        )
        return [
            (weight.unflatten(-1, shape), bias.unsqueeze(-2))
            for weight, bias, shape in zip(parts[::2], parts[1::2], self._layers, strict=True)
        ]


class Model(pyro_metabayes.Model):
    """Regression by a network f, whose P weights w [1, P] are the latent variable (head=network).

        p(y_i | x_i, w) = N(f(x_i; w), noise^2 I)

    Args:
        head: the network f.
        prior: prior over w. The mean of a Gaussian prior starts at random weights, since at 0 the gradient is 0.
        num_targets: number of values in one label y_i.
        num_features: number of features of x_i.
        noise: standard deviation of the label noise; the initial value if it is learned.
        learn_noise: whether noise is learned.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: the labels are classes, or noise is not positive.
    """

    canonical = True
    head: Head
    prior_over_weights: Prior

    def __init__(
        self,
        head: Head,
        prior: Prior,
        num_targets: int,
        num_features: int,
        noise: float = 0.3,
        learn_noise: bool = False,
        observe: str = "query",
    ) -> None:
        super().__init__(observe)
        if num_targets < 1:
            raise UsageError(
                "expected data with numeric labels for a regression, got classes; set for example data=sinusoid"
            )
        if noise <= 0:
            raise UsageError(f"expected model.noise > 0, got {noise}")
        self.head, self.prior_over_weights = head, prior
        self._shape = head.event_shape(num_targets, num_features)
        prior.start_at(head.initial_weights(num_targets, num_features))
        value = torch.tensor(noise).log()
        self.log_noise: Tensor
        if learn_noise:
            self.log_noise = nn.Parameter(value)
        else:
            self.register_buffer("log_noise", value)

    def event_shape(self, observed: Observed) -> Size:
        return self._shape

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self._shape)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Normal(outputs, self.log_noise.exp()).to_event(1)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        return self.head.initial_weights(num_classes, num_features)

    def loss_unit(self) -> Tensor:
        return 2 * (2 * self.log_noise).exp()

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the means of N labels of Y values in T tasks [..., T, N, Y], for weights w and inputs x."""
        return self.head.outputs(w, x)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.head.outputs_and_pullback(w, x)
