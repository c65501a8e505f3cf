"""Simulates features like those of embeddings, with random spectra, class hierarchies, sub-clusters and heavy tails."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import relu

LEAST_SIGNAL, MOST_SIGNAL = 0.5, 9.0
MOST_DIMENSION = 400.0  # upper bound on the effective dimension of the noise in the formula for the length of m


class FeatureSimulator:
    """Simulator of features x_i of points i with classes y_i. Each call draws new settings of the simulation.

        x_i = m_{y_i} + d_{y_i, k_i} + r_i e_i,

    where
        m: class means, with a power-law spectrum. With three or more classes, half of the calls have superclasses.
        d: centre of a random sub-cluster k_i of the class in an eighth of the calls, else 0.
        e: noise with a power-law spectrum. The order of its variances is that of the means, or partly random. In three
            of ten calls, the variances also differ between classes.
        r: random factor of the point and of its class, which makes the tails of the noise heavy.

    In three of ten calls, x then passes through a random ReLU layer. In the other calls, x may be shifted by an offset
    and rectified. The squared length of m is a random multiple of 1 / sqrt(effective dimension of e). Tasks thus range
    from nearly impossible to trivial.

    Args:
        generator: random generator.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def points(self, labels: Tensor, way: int, num_features: int) -> Tensor:
        """Draw features [T, N, D] of the points with labels [T, N]: N points with D features in each of T tasks."""
        through_layer = self._chance(0.3)
        latent = self._integer(8, 65) if through_layer else num_features
        x = self._latents(labels, way, latent)
        return self._layer(x, num_features) if through_layer else self._shifted(x)

    def _latents(self, labels: Tensor, way: int, size: int) -> Tensor:
        tasks = len(labels)
        between, within = self._spectrum(size), self._aligned(self._spectrum(size))
        effective = min(1 / within.square().sum().item(), MOST_DIMENSION)
        signal = self._between(math.log(LEAST_SIGNAL), math.log(MOST_SIGNAL), tasks, 1, 1).exp() / effective**0.5
        means = self._class_means(tasks, way, size) * (signal * between).sqrt()
        x = _of_labels(means, labels)
        if self._chance(0.12):
            x = x + self._sub_clusters(labels, way, (signal * between).sqrt())
        return x + self._noise(labels, way, within)

    def _class_means(self, tasks: int, way: int, size: int) -> Tensor:
        means = self._normal(tasks, way, size)
        if way < 3 or self._chance(0.5):
            return means
        above = self._normal(tasks, max(2, way // 3), size)
        share = self._between(0.2, 0.8, tasks, 1, 1)
        of_class = torch.randint(above.shape[1], (tasks, way), generator=self.generator)
        return share.sqrt() * _of_labels(above, of_class) + (1 - share).sqrt() * means

    def _sub_clusters(self, labels: Tensor, way: int, spread: Tensor) -> Tensor:
        number = self._integer(2, 4)
        centres = self._normal(len(labels), way * number, spread.shape[-1]) * spread * self._uniform(0.3, 1.2)
        return _of_labels(centres, labels * number + torch.randint(number, labels.shape, generator=self.generator))

    def _noise(self, labels: Tensor, way: int, spectrum: Tensor) -> Tensor:
        noise = self._normal(*labels.shape, len(spectrum)) * spectrum.sqrt()
        if self._chance(0.3):
            axes = (0.7 * self._normal(len(labels), way, len(spectrum))).exp()
            axes = axes / (axes.square() * spectrum).sum(-1, keepdim=True).sqrt()
            noise = noise * _of_labels(axes, labels)
        of_class = (self._uniform(0.0, 0.35) * self._normal(len(labels), way, 1)).exp()
        tail = (self._uniform(0.0, 0.4) * self._normal(*labels.shape, 1)).exp()
        return noise * tail * _of_labels(of_class, labels)

    def _layer(self, x: Tensor, num_features: int) -> Tensor:
        size = x.shape[-1]
        x = x * size**0.5 / x.square().sum(-1).mean().sqrt() + 0.5 * self._normal(size)
        hidden = relu(x @ self._normal(size, num_features) / size**0.5 + 0.5 * self._normal(num_features))
        return hidden @ self.projection(num_features, num_features) if self._chance(0.5) else hidden

    def _shifted(self, x: Tensor) -> Tensor:
        offset = self._normal(x.shape[-1]) * self._spectrum(x.shape[-1]).sqrt()
        x = x + offset * self._uniform(0.0, 1.5) / offset.norm()
        return relu(x + self._uniform(0.0, 0.5) / x.shape[-1] ** 0.5) if self._chance(0.4) else x

    def projection(self, inputs: int, outputs: int) -> Tensor:
        """Draw a random matrix [inputs, outputs] that keeps the mean squared length of a vector."""
        return self._normal(inputs, outputs) / outputs**0.5

    def _spectrum(self, size: int) -> Tensor:
        """Draw a power-law spectrum: variances [D] proportional to d^(-a), d = 1, ..., D, with sum 1 and random a."""
        values = torch.arange(1, size + 1, dtype=torch.float32) ** -self._uniform(0.0, 1.5)
        return values / values.sum()

    def _aligned(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum unchanged, or in an order between the given order and a random order."""
        if self._chance(0.4):
            return spectrum
        share, place = self._uniform(0.0, 1.0), torch.arange(len(spectrum))
        other = torch.randperm(len(spectrum), generator=self.generator)
        return spectrum[((1 - share) * place + share * other).argsort()]

    def _chance(self, probability: float) -> bool:
        return self._uniform(0.0, 1.0) < probability

    def _uniform(self, low: float, high: float) -> float:
        return float(self._between(low, high, 1))

    def _between(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def _integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self.generator))

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def _of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """Return values[t, labels[t, i]], the values of the class of point i in task t: [T, N, D].

    Args:
        values: [T, C, D], D values for each of C classes.
        labels: [T, N], class of each point.
    """
    return values.gather(1, labels.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
