"""The variational family: how a task's latent is inferred from what may be seen of the task."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pyro
from pyro import poutine
from pyro.distributions import ImproperUniform, TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.parameters import Program, announce_parameters
from pyro_metabayes.inference.capabilities import Capability, require
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model
from pyro_metabayes.specification.recorded import Recorded


class Guide(Recorded, Program):
    """q(w_t | support_t, x_query_t). A new guide defines `posterior`; `forward` is fixed.

    transductive: whether `posterior` depends on the query inputs; a test holds it to its word.
    num_classes: the one class count that the guide can serve, or None for any.
    needs_shared_classes: whether it means nothing unless all tasks share their classes.
    requires: the capabilities that it needs of a model (`pyro_metabayes/inference/capabilities.py`).
    sees_query_labels: whether `training_posterior` does; true where a guide defines it, unless it says otherwise.
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
        super().__init__(name="guide")
        self._model = (model,)  # in a tuple: the model's parameters are not the guide's
        for capability in self.requires:
            self.require(capability)

    @property
    def model(self) -> Model:
        return self._model[0]

    def require(self, capability: type[Capability]) -> Capability:
        """The model, known to have a capability; refuses a model without it."""
        return require(self.model, capability, f"guide={type(self).__module__.rpartition('.')[2]}")

    def posterior(self, observed: Observed) -> TorchDistribution:
        """q(w | support, x_query), what predictions use: batch [T], event [*W]."""
        raise NotImplementedError

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        """q in the training bound; may see the query labels where the method does (SAVI)."""
        return self.posterior(episodes.observed())

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Named terms [T] that join the loss but no bound."""
        return {}

    def check(self, observed: Observed) -> None:
        """Refuse tasks that this guide was not built for."""
        classes = observed.num_classes  # 0 in a regression, whose outputs are fixed by the model
        if self.num_classes is not None and classes and classes != self.num_classes:
            raise UsageError(
                f"expected tasks of {self.num_classes} classes, which this guide was trained for, "
                f"got {observed.num_classes}; train with task.way={observed.num_classes}"
            )

    def _check_shape(self, q: TorchDistribution, data: Observed) -> None:
        """What a new guide gets wrong first; Pyro would say so in the terms of its broadcasting."""
        expected = (data.num_tasks,), tuple(self.model.event_shape(data))
        got = tuple(q.batch_shape), tuple(q.event_shape)
        if got != expected:
            raise UsageError(
                f"expected the guide's distribution to have batch shape {list(expected[0])} and event shape "
                f"{list(expected[1])}, got {list(got[0])} and {list(got[1])}; see .to_event() and event_dim"
            )

    def forward(self, data: Observed, kl_weight: float = 1.0) -> None:
        """Sample w from training_posterior for Episodes, from posterior for an Observed."""
        announce_parameters(self, "guide")
        q = self.training_posterior(data) if isinstance(data, Episodes) else self.posterior(data)
        if isinstance(innermost(q), ImproperUniform):
            raise UsageError(
                "expected a posterior that can be sampled, got the flat prior itself; take a guide with a posterior "
                "of its own, or another prior"
            )
        self._check_shape(q, data)
        scale = nullcontext() if kl_weight == 1.0 else poutine.scale(scale=kl_weight)
        with pyro.plate("task", data.num_tasks, dim=-1), scale:
            pyro.sample("w", q)
