"""The generative model of a batch of tasks: a prior over the latent of each task, and a likelihood."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from pyro_metabayes.distributions.joint import check_sites, sample_latent
from pyro_metabayes.distributions.sites import Sites
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.handlers.parameters import Program, announce_parameters
from pyro_metabayes.inference.capabilities import HasPrior, has
from pyro_metabayes.specification.recorded import Recorded
from pyro_metabayes.validation.values import validate

OBSERVE = ("query", "support", "all")


class Model(Recorded, Program):
    """Generative model of a batch of tasks.

        p(y, w | x) = prod_t p(w_t) prod_i p(y_i | x_i, w_t)

    where w_t is the latent of task t, and i runs over the points of task t. The prior p(w_t) may also be conditional on
    the support set.

    A new model defines `event_shape`, `prior`, `outputs` and `likelihood_of`; `forward` is fixed. Methods that only
    some guides need are capabilities (`pyro_metabayes/inference/capabilities.py`).

    Attributes:
        sites: names and shapes of the latent sites, if `prior` returns a Joint; None: one site, "w".
        num_features: number D of features of an input of `forward`. A learner sets it. None: not checked.
        canonical: whether `likelihood_of(outputs)` is Categorical(logits=outputs), or Normal(outputs, sd) with an sd
            that does not depend on the outputs. A canonical model has closed forms of gradients and curvatures in the
            outputs. A subclass that defines `likelihood_of` must set `canonical` again; the default is False.

    Args:
        observe: the labels that are sites of `forward`: "query" (few-shot objectives), "support" (the posterior
            p(w | support)) or "all" (both).

    Raises:
        UsageError: `observe` has another value.
    """

    sites: Sites | None = None
    num_features: int | None = None
    canonical: bool = False
    # Default step size of an inner loop on the mean over points of the loss of the MAML paper (`loss_unit`).
    # Finn et al. (2017) use 0.01 for the squared error of sinusoids.
    inner_step_size = 0.01

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `canonical` is a claim about one likelihood_of, so a class that overrides likelihood_of does not inherit it.
        owner = next(base for base in cls.__mro__ if {"likelihood_of", "canonical"} & vars(base).keys())
        if "canonical" not in vars(owner):
            cls.canonical = False

    def __init__(self, observe: str = "query") -> None:
        super().__init__(name="model")
        check_choice("model.observe", observe, OBSERVE)
        self.observe = observe

    def claim_error(self, family: object) -> UsageError:
        """Return the error for a model with `canonical = True` and a likelihood that is not Categorical or Normal.

        Args:
            family: the likelihood.
        """
        owner = next(base for base in type(self).__mro__ if "canonical" in vars(base))
        where = f"{owner.__module__.removeprefix('pyro_metabayes.')}.{owner.__name__}"
        return UsageError(
            "expected a Categorical or Normal likelihood for a model with canonical = True, got "
            f"{type(family).__name__}; delete `canonical = True` from {where}"
        )

    @property
    def given_support(self) -> bool:
        """Whether prior or likelihood is conditional on the support labels, which are then not random."""
        return has(self, HasPrior) and self.prior_over_weights.conditional

    def event_shape(self, observed: Observed) -> Size:
        """Return *W, the shape of the latent of one task; with several sites, this is `self.sites.event_shape`."""
        raise NotImplementedError

    def prior(self, observed: Observed) -> TorchDistribution:
        """Return the prior over the latent w, with batch shape [T] (tasks) and event shape [*W].

        The prior may depend on the support set. A prior over several sites is a Joint.
        """
        raise NotImplementedError

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        """Return p(y | x, w) of each point: batch [..., T, N], event [] (classes) or [Y] (labels of Y numbers).

        Args:
            w: latents [..., T, *W] of T tasks; leading axes `...` are samples.
            x: inputs [T, N, *X] of N points per task.
            observed: the tasks, for a likelihood that depends on the support set (an inner loop).
        """
        return self.likelihood_of(self.outputs(w, x))

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        """Return p(y | outputs) of each point: batch [..., T, N], event [] (classes) or [Y] (labels of Y numbers).

        Args:
            outputs: the result of `outputs`, [..., T, N, *Y], for N points of T tasks.
        """
        raise NotImplementedError

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Return the outputs [..., T, N, *Y] of N points of T tasks: logits or means, the input of `likelihood_of`.

        Args:
            w: latents [..., T, *W]; leading axes `...` are samples.
            x: inputs [T, N, *X].
        """
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return outputs(w, x), and the function pullback(g) = sum over points of (d outputs / d w)^T g.

        g has the shape of the outputs, and pullback(g) has the shape of w. `pullback` works under torch.no_grad().
        Outer gradients flow through pullback(g). A model with a closed form overrides this method.
        """
        value, pullback = torch.func.vjp(lambda latent: self.outputs(latent, x), w)[:2]
        return value, lambda cotangent: pullback(cotangent)[0]

    def loss_unit(self) -> Tensor | float:
        """Return the factor that turns -log p(y | x, w) into the loss of the MAML paper, up to a constant.

        The factor is 1 for classes (cross-entropy), and 2 sd^2 in a regression with normal noise of standard deviation
        sd (squared error). Step sizes of inner loops refer to the loss of the MAML paper.
        """
        return 1.0

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return terms [T] in nats by name, one number per task. They are added to the loss, not to the ELBO."""
        return {}

    def _checked_prior(self, data: Observed) -> TorchDistribution:
        prior = self.prior(data)
        check_sites(prior, self.sites, "prior", "set `sites` of the model to those of the Joint that `prior` returns")
        return prior

    def forward(self, data: Observed, kl_weight: float = 1.0) -> None:
        """Sample w and the labels that `observe` selects. Labels in `data` are observed, not sampled.

        Args:
            data: the tasks. Query labels are sampled for an Observed, and observed for Episodes.
            kl_weight: weight of the KL term, applied as the scale of the latent site.

        Raises:
            UsageError: the prior has other sites than `self.sites`. With Pyro's validation also: a label is out of
                range, or a number is not finite.
        """
        validate(data, self, self.num_features)
        announce_parameters(self, "model")
        query_y = data.query_y if isinstance(data, Episodes) else None
        with pyro.plate("task", data.num_tasks, dim=-1):
            with nullcontext() if kl_weight == 1.0 else poutine.scale(scale=kl_weight):
                w = sample_latent(self._checked_prior(data))
            # An empty set has no site, since torch cannot sum over an event without points.
            if self.observe in ("support", "all") and data.support_x.shape[1]:
                support = self.likelihood(w, data.support_x, data).mask(data.support_mask)
                pyro.sample("support_y", support.to_event(1), obs=data.support_y)
            if self.observe in ("query", "all") and data.query_x.shape[1]:
                query = self.likelihood(w, data.query_x, data).mask(data.query_mask)
                pyro.sample("query_y", query.to_event(1), obs=query_y)
