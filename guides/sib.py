"""SIB: gradient descent on the unlabelled query set with synthetic gradients.

Hu et al., "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients", ICLR 2020 (arXiv 2004.12696).
Equation numbers are those of the NeurIPS 2019 MetaLearn workshop version.
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.descent import descend, hold_steps
from pyro_metabayes.inference.family import around, kl_gradient, scale_of_family
from pyro_metabayes.inference.initialisation import LearnedPoint, initialisation_of_rows
from pyro_metabayes.inference.synthetic_gradient import network_of, synthetic_gradient
from pyro_metabayes.transductive.balance import balanced, check_balance


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior whose mean theta^K is found by K steps of descent with a network xi instead of gradients.

    q(w | support, x_query) = N(theta^K, diag(sigma^2)). The start is theta^0 = lambda(support). A step is (Algorithm 1)

        theta^{k+1} = theta^k - eta { E_eps[ sum_i (d yhat_i / d w)^T xi(yhat_i) ]
                                      + inner_kl d KL(q_{theta^k}, p_psi) / d theta }.

    yhat_i = outputs(w, x_i) are the logits of query i at w = theta^k + sigma eps, with eps ~ N(0, I). xi predicts the
    gradient of the loss in yhat_i, without the query label. p_psi is the prior. The steps change theta only, not sigma.
    This is eq. 9 with a sum over queries instead of a mean, as in the released code.

    Args:
        num_steps: number of inner steps K.
        step_size: step size eta, for a sum over queries.
        learn_step_size: whether eta is learned, starting at step_size. A fixed eta may be changed at evaluation.
        posterior: the family of q.
            `normal`: sigma is learned and shared by the classes.
            `amortized`: sigma is a learned function of theta^0.
            `fixed`: sigma stays at `scale`.
            `delta`: the point estimate of the released code.
        scale: standard deviation sigma before training.
        initialisation: the start lambda.
            `support`: the prototypes, scaled by a learned vector.
            `global`: a learned point, which needs no support set.
        synthetic_gradient: the synthetic-gradient network xi.
            `ordered`: as published; for one fixed number of classes.
            `equivariant`: for any number of classes.
            `marginal_aware`: equivariant; also receives the class marginal predicted by the current logits.
        inner_kl: weight of the KL in an inner step.
        inner_samples: number of draws of w in an inner step; 0 uses w = theta^k, as in the released code.
        balance: whether the class shares of the queries are known.
            `unknown`: predictions are not projected.
            `known`: each class has equally many queries. A term per class in theta^K projects the predictions to equal
                shares (`pyro_metabayes/transductive/balance.py`).

    Raises:
        UsageError: a setting is out of range, or the model lacks what a setting needs.
    """

    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = False,
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
        inner_kl: float = 0.0,
        inner_samples: int = 0,
        balance: str = "unknown",
    ) -> None:
        super().__init__(model)
        check_balance(balance, model)
        if min(inner_kl, inner_samples) < 0:
            raise UsageError(f"expected guide.inner_kl >= 0, inner_samples >= 0, got {inner_kl=} and {inner_samples=}")
        self.inner_kl, self.inner_samples = inner_kl, inner_samples
        self.balance = balance
        self.transductive = num_steps > 0 or balance == "known"  # the start does not depend on the queries
        self.xi = network_of(synthetic_gradient, model, num_classes)
        self.start = initialisation_of_rows(initialisation, model, num_classes, num_weights)
        self.scale = scale_of_family(posterior, num_weights, scale)
        self.num_classes = num_classes if self.xi.fixed_classes or self.start.fixed_classes else None
        hold_steps(self, num_steps, step_size, learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        start = self.start(self.model, observed)
        scale = None if self.scale is None else self.scale(start)
        prior = self.model.prior(observed) if self.inner_kl and self.num_steps else None

        def gradient(theta: Tensor) -> Tensor:
            direction = synthetic_gradient(self.model, self.xi, theta, observed, scale, self.inner_samples)
            return direction if prior is None else direction + self.inner_kl * kl_gradient(theta, scale, prior)

        theta = descend(start, gradient, self.log_step_size.exp(), self.num_steps)
        return around(balanced(self.balance, self.model, theta, observed), scale)

    def start_at_classes(self, weights: Tensor) -> None:
        """Set the start lambda to weights [classes, features] of a cosine classifier, before training.

        All tasks have the classes of this classifier. The method has an effect only with initialisation=global.
        """
        if isinstance(self.start, LearnedPoint):
            self.start.start_at_classes(self.model, weights)
