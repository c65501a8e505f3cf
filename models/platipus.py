"""PLATIPUS's model: a distribution over initial weights, which the likelihood adapts to the support set.

Finn, Xu and Levine, "Probabilistic Model-Agnostic Meta-Learning", NeurIPS 2018 (arXiv 1806.02817).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Size, Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.descent import descend, loss_gradient, rate_of_mean
from pyro_metabayes.inference.divergences import check_gaussian
from pyro_metabayes.models import few_shot_classifier, neural_regression
from pyro_metabayes.models.heads import Head
from pyro_metabayes.prior import Prior


class Model(pyro_metabayes.Model):
    """Model with initial weights theta as the latent variable, and a likelihood p(y | x, phi) of adapted weights phi:

        theta ~ N(mu - (gamma_p / n) grad L(mu), sigma^2),    L(.) = -log p(y_support | x_support, .),
        phi = theta after num_steps of gradient descent on L / n.

    n is the number of support points. gamma_p is a learned step size. mu and sigma are the mean and the standard
    deviation of the argument `prior`. p(y | x, phi) is the likelihood of an inner model. The inner model is
    neural_regression for labels that are numbers, and few_shot_classifier (a head on frozen features) for classes.
    `outputs` uses the weights without adaptation.

    Args:
        head: head of the inner model.
        prior: a diagonal Gaussian prior.
        num_targets: number of values in one label of a regression, 0 for classes.
        num_features: number of features.
        num_steps: number of steps from theta to phi.
        step_size: initial value of gamma_p and of the step size of the descent, for the mean cross-entropy. Both are
            learned. In a regression both are multiplied by 2 noise^2, for the mean squared error.
        noise: standard deviation of the label noise in a regression.
        learn_noise: whether noise is learned.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: a setting is out of range, or the prior is not a diagonal Gaussian.
    """

    given_support = True  # the latent adapts to the support labels in the likelihood

    def __init__(
        self,
        head: Head,
        prior: Prior,
        num_targets: int,
        num_features: int,
        num_steps: int = 1,
        step_size: float = 0.01,
        noise: float = 0.3,
        learn_noise: bool = False,
        observe: str = "query",
    ) -> None:
        super().__init__(observe)
        if num_steps < 0 or step_size <= 0:
            raise UsageError(
                "expected model.num_steps >= 0 and model.step_size > 0, got "
                f"num_steps={num_steps}, step_size={step_size}"
            )
        self.inner: pyro_metabayes.Model = (
            neural_regression.Model(head, prior, num_targets, num_features, noise, learn_noise)
            if num_targets
            else few_shot_classifier.Model(head, prior)
        )
        self.inner_step_size = self.inner.inner_step_size
        self.num_steps = num_steps
        self.log_step_size = nn.Parameter(torch.tensor(step_size).log())
        self.log_prior_step_size = nn.Parameter(torch.tensor(step_size).log())

    def event_shape(self, observed: Observed) -> Size:
        return self.inner.event_shape(observed)

    def centre(self, observed: Observed) -> TorchDistribution:
        """Return N(mu, sigma^2), the distribution of theta before any label is used.

        The batch shape is [T] for T tasks. The event shape is the shape of the weights of one task.
        """
        prior = self.inner.prior(observed)
        check_gaussian(prior, "model=platipus")
        return prior

    def prior(self, observed: Observed) -> TorchDistribution:
        prior = self.centre(observed)
        points = observed.support_x, observed.support_y, observed.support_mask
        loc = self.moved(prior.mean, self.log_prior_step_size, *points)
        return Normal(loc, prior.stddev).to_event(len(prior.event_shape))

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        points = observed.support_x, observed.support_y, observed.support_mask
        phi = self.moved(w, self.log_step_size, *points, num_steps=self.num_steps)
        return self.inner.likelihood(phi, x, observed)

    def moved(self, w: Tensor, log_step_size: Tensor, x: Tensor, y: Tensor, mask: Tensor, num_steps: int = 1) -> Tensor:
        """Take num_steps steps of gradient descent on the mean loss of labelled points, and return the new weights.

        Args:
            w: weights of T tasks [..., T, *W], where *W is the shape of the weights of one task.
            log_step_size: logarithm of the step size for the mean cross-entropy or the mean squared error.
            x: N points of each task [T, N, *X].
            y: labels of the points [T, N, ...].
            mask: [T, N], False for masked points.
            num_steps: number of steps.
        """
        rate = rate_of_mean(self, log_step_size, mask)
        return descend(w, lambda phi: loss_gradient(self.inner, phi, x, y, mask), rate, num_steps)

    def loss_unit(self) -> Tensor | float:
        return self.inner.loss_unit()

    @property
    def canonical(self) -> bool:  # type: ignore[override]
        return self.inner.canonical

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return self.inner.likelihood_of(outputs)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return self.inner.outputs(w, x)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.inner.outputs_and_pullback(w, x)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        return self.inner.initial_latent(num_classes, num_features)
