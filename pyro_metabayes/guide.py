"""Guides: the approximate posterior over the latent of each task."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pyro
from pyro import poutine
from pyro.distributions import ImproperUniform, TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_metabayes.distributions.joint import check_sites, sample_latent
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.parameters import Program, announce_parameters
from pyro_metabayes.inference.capabilities import Capability, require
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model
from pyro_metabayes.specification.recorded import Recorded
from pyro_metabayes.validation.values import validate


class Guide(Recorded, Program):
    """Approximate posterior q(w_t | support_t, x_query_t) over the latent w_t of each task t.

    A new guide defines `posterior`; `forward` is fixed.

    Attributes:
        transductive: whether `posterior` depends on the query inputs.
        num_classes: the number of classes per task for which the guide works; None: any number.
        needs_shared_classes: whether all tasks must have the same classes.
        requires: capabilities that the model must have (`pyro_metabayes/inference/capabilities.py`).
        sees_query_labels: whether `training_posterior` depends on the query labels. Set automatically: true for a class
            that overrides `training_posterior`. Only the constructor can change it.

    Raises:
        UsageError: the model lacks a capability in `requires`, or the guide does not define `posterior`.
    """

    transductive: bool = False
    num_classes: int | None = None
    sees_query_labels: bool = False
    needs_shared_classes: bool = False
    requires: tuple[type, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.sees_query_labels = cls.training_posterior is not Guide.training_posterior

    def __init__(self, model: Model) -> None:
        if type(self).posterior is Guide.posterior:
            raise UsageError(
                f"expected a guide that defines posterior(self, observed), got {type(self).__name__} without "
                "posterior; define posterior"
            )
        super().__init__(name="guide")
        self._model = (model,)  # in a tuple, so that the parameters of the model are not registered
        for capability in self.requires:
            self.require(capability)

    @property
    def model(self) -> Model:
        """The model whose posterior is approximated."""
        return self._model[0]

    def require(self, capability: type[Capability]) -> Capability:
        """Return the model, with the type of a capability. A capability is a set of methods that some models have.

        Raises:
            UsageError: the model lacks the capability.
        """
        return require(self.model, capability, f"guide={type(self).__module__.rpartition('.')[2]}")

    def posterior(self, observed: Observed) -> TorchDistribution:
        """Return q(w | support, x_query), the distribution of the latent for predictions.

        The batch shape is [T] (tasks), the event shape is [*W] (the latent of one task). With several sites, the
        result is a Joint.
        """
        raise NotImplementedError

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        """Return the distribution q of the latent in the training loss. It may depend on the query labels.

        The batch shape is [T] (tasks), the event shape is [*W] (the latent of one task).
        """
        return self.posterior(episodes.observed())

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return terms of the loss that are not in the ELBO, by name, in nats, one number per task [T]."""
        return {}

    def check(self, observed: Observed) -> None:
        """Check that the tasks have the number of classes for which the guide was built.

        Raises:
            UsageError: the guide was built for another number of classes.
        """
        classes = observed.num_classes  # 0 in a regression, whose outputs are fixed by the model
        if self.num_classes is not None and classes and classes != self.num_classes:
            any_number = "mc, savi, proto, or sib with guide.synthetic_gradient=equivariant"
            remedy = f"train with task.way={classes}, or train a guide for any number of classes: {any_number}"
            raise UsageError(
                f"expected tasks of {self.num_classes} classes, which this guide was trained for, got {classes}; "
                + (remedy if classes > 1 else f"provide support points of all {self.num_classes} classes")
            )

    def _check_shape(self, q: TorchDistribution, data: Observed) -> None:
        """Raise a UsageError if q, the distribution of the guide, has a wrong shape or other sites than the model."""
        remedy = "return a Joint of them, or use a guide that is written for this model"
        check_sites(q, self.model.sites, "guide's distribution", remedy)
        expected = (data.num_tasks,), tuple(self.model.event_shape(data))
        if not isinstance(q, TorchDistributionMixin):
            kind = f"{type(q).__module__}.{type(q).__qualname__}"
            raise UsageError(
                f"expected the guide's distribution to be one of pyro.distributions, got {kind}; import it from "
                "pyro.distributions"
            )
        got = tuple(q.batch_shape), tuple(q.event_shape)
        if got != expected:
            raise UsageError(
                f"expected the guide's distribution to have batch shape {list(expected[0])} and event shape "
                f"{list(expected[1])}, got batch shape {list(got[0])} and event shape {list(got[1])}; fix the shapes "
                "with .to_event() or event_dim"
            )

    def forward(self, data: Observed, kl_weight: float = 1.0) -> None:
        """Sample the latent w: from `training_posterior` for Episodes, from `posterior` for an Observed.

        Args:
            data: the tasks.
            kl_weight: weight of the KL term, applied as the scale of the latent site.

        Raises:
            UsageError: the distribution cannot be sampled, or has other shapes or sites than the latent. With Pyro's
                validation also: a label is out of range, or a number is not finite.
        """
        validate(data, self.model, self.model.num_features)
        announce_parameters(self, "guide")
        q = self.training_posterior(data) if isinstance(data, Episodes) else self.posterior(data)
        if isinstance(innermost(q), ImproperUniform):
            raise UsageError(
                "expected a posterior that can be sampled, got the flat prior; use a proper prior, such as "
                "prior=conditional, or a guide whose posterior is not the prior"
            )
        self._check_shape(q, data)
        scale = nullcontext() if kl_weight == 1.0 else poutine.scale(scale=kl_weight)
        with pyro.plate("task", data.num_tasks, dim=-1), scale:
            sample_latent(q)
