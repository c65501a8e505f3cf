"""Predictions under Student-t likelihoods: numbers with outliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import StudentT

from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.likelihoods.predictions import register

NODES = 48


@register(StudentT)
class StudentTPredictions(NumberPredictions):
    """Predictions under a Student-t likelihood."""

    @classmethod
    def standardised(cls, family: Any) -> Tensor:
        """Return loc / scale per sample of w and label. The sd is not used, because it is infinite for df <= 2."""
        return family.loc / family.scale

    @property
    def mean(self) -> Tensor:
        """Median of the label [L, T, Q, Y] per sample, task, query and component; equal to the mean if df > 1."""
        return self.family.loc

    def cdf(self, y: Tensor) -> Tensor:
        return student_t_cdf((y - self.family.loc) / self.family.scale, self.family.df)


def student_t_cdf(t: Tensor, df: Tensor) -> Tensor:
    """Compute the CDF of Student's t with df degrees of freedom at t, accurate to 1e-6 for df from 0.1 to 1e6.

    The density of the angle theta with t = sqrt(df) tan(theta) is integrated by Gauss-Legendre quadrature:

        density = c cos(theta)^(df - 1),   c = Gamma((df + 1) / 2) / (sqrt(pi) Gamma(df / 2))

    The integral is over the angles from 0 to theta. For df < 2 and |t| > sqrt(df), it is over the tail from theta to
    pi / 2 instead, because the density is singular at pi / 2. The result has no gradient.

    Args:
        t: values of any shape.
        df: degrees of freedom, of a shape that broadcasts with t.

    Returns:
        Probabilities in the broadcast shape of t and df.
    """
    t, df = torch.broadcast_tensors(t.detach(), df.detach())
    log_c = _log_gamma_ratio(df / 2) - 0.5 * math.log(math.pi)
    tangent = t.abs() / df.sqrt()
    is_tail = (df < 2) & (tangent > 1)
    beyond = torch.where(is_tail, _tail(tangent, df, log_c), 0.5 - _centre(tangent, df, log_c))
    return torch.where(t > 0, 1 - beyond, beyond)


def _log_gamma_ratio(a: Tensor) -> Tensor:
    """Compute log Gamma(a + 1/2) - log Gamma(a). For a > 4, a series is more accurate in float32."""
    large = a.clamp(min=4)
    series = 0.5 * large.log() - 1 / (8 * large) + 1 / (192 * large**3) - 1 / (640 * large**5)
    return torch.where(a > 4, series, torch.lgamma(a + 0.5) - torch.lgamma(a))


def _centre(tangent: Tensor, df: Tensor, log_c: Tensor) -> Tensor:
    """Compute c times the integral of cos(s)^(df - 1) over s from 0 to theta; c = exp(log_c), tangent = tan(theta).

    The integral ends at s = 8 / sqrt(df) at most. The integrand is negligible beyond.
    """
    width = torch.minimum(torch.atan(tangent), 8 / df.sqrt())

    def integrand(v: float) -> Tensor:
        log_cos = 0.5 * torch.log1p(-torch.sin(width * v).square())  # cos rounds to 1 at small angles
        return ((df - 1) * log_cos + log_c).exp()

    return _quadrature(integrand, tangent) * width


def _tail(tangent: Tensor, df: Tensor, log_c: Tensor) -> Tensor:
    """Compute c times the integral of sin(s)^(df - 1) over s from 0 to phi = pi / 2 - theta.

    Here c = exp(log_c) and tangent = tan(theta). The substitution s = phi v^(1 / df) removes the singularity:

        integral = phi^df / df times the integral of (sin(s) / s)^(df - 1) over v from 0 to 1
    """
    phi = torch.atan(1 / tangent)

    def integrand(v: float) -> Tensor:
        s = phi * v ** (1 / df)
        return torch.sinc(s / math.pi) ** (df - 1)

    return _quadrature(integrand, tangent) * (df * phi.log() + log_c).exp() / df


def _quadrature(integrand: Callable[[float], Tensor], like: Tensor) -> Tensor:
    """Integrate a function over v from 0 to 1, node by node to save memory; the result has the shape of `like`."""
    total = torch.zeros_like(like)
    for node, weight in _nodes():
        total += weight * integrand(node)
    return total


@cache
def _nodes() -> list[tuple[float, float]]:
    """Return the nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return list(zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))
