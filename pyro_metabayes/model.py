"""The generative model of a batch of tasks: a prior over each task's latent, and a likelihood."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.parameters import Program, announce_parameters
from pyro_metabayes.inference.capabilities import HasPrior
from pyro_metabayes.specification.recorded import Recorded

OBSERVE = ("query", "support", "all")


class Model(Recorded, Program):
    """p(y_query, w | x, support) = prod_t p(w_t | support_t or nothing) prod_i p(y_i | x_i, w_t).

    A new model defines `event_shape`, `prior`, `outputs` and `likelihood_of`; `forward` is fixed.
    `observe` names the labels that forward has sites for: "query" (few-shot objectives),
    "support" (the gold posterior p(w | support)), "all" (both).
    What only some guides ask for is a capability (`pyro_metabayes/inference/capabilities.py`).
    """

    def __init__(self, observe: str = "query") -> None:
        super().__init__(name="model")
        if observe not in OBSERVE:
            raise UsageError(f"expected model.observe to be one of {', '.join(OBSERVE)}, got '{observe}'")
        self.observe = observe

    @property
    def given_support(self) -> bool:
        """Whether prior or likelihood take the support labels as given: they are then no data beside them."""
        return isinstance(self, HasPrior) and self.prior_over_weights.conditional

    def event_shape(self, observed: Observed) -> Size:
        """*W, the shape of one task's latent."""
        raise NotImplementedError

    def prior(self, observed: Observed) -> TorchDistribution:
        """p(w | support or nothing): batch [T], event [*W]."""
        raise NotImplementedError

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        """p(y | x, w), one point each: w [..., T, *W], x [T, N, *X] -> batch [..., T, N], event [] or [Y].

        `observed` is for models whose likelihood depends on the support set (an inner loop within it).
        """
        return self.likelihood_of(self.outputs(w, x))

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        """p(y | outputs), one point each: [..., T, N, *Y] -> batch [..., T, N], event [] or [Y]."""
        raise NotImplementedError

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """What the likelihood is made of (logits, means) [..., T, N, *Y]."""
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """outputs(w, x), and the function that takes a cotangent on them to one on w.

        pullback(g) = sum over points of (d outputs / d w)^T g. A model with a closed form overrides
        this; the general way works under no_grad too, and outer gradients flow through both.
        """
        value, pullback = torch.func.vjp(lambda latent: self.outputs(latent, x), w)[:2]
        return value, lambda cotangent: pullback(cotangent)[0]

    def loss_unit(self) -> Tensor | float:
        """What an inner loop multiplies -log p by, so that its rates mean what they do in the papers.

        1 for classes, whose loss is the cross-entropy; 2 noise^2 in a regression, which makes it the squared error.
        """
        return 1.0

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Named terms [T] that join the loss but no bound."""
        return {}

    def forward(self, data: Observed, kl_weight: float = 1.0) -> None:
        """Sample w, and the labels that `observe` names: conditioned on where `data` holds them."""
        announce_parameters(self, "model")
        query_y = data.query_y if isinstance(data, Episodes) else None
        with pyro.plate("task", data.num_tasks, dim=-1):
            with nullcontext() if kl_weight == 1.0 else poutine.scale(scale=kl_weight):
                w = pyro.sample("w", self.prior(data))
            # An empty set has no site: torch does not sum the events of no points.
            if self.observe in ("support", "all") and data.support_x.shape[1]:
                support = self.likelihood(w, data.support_x, data).mask(data.support_mask)
                pyro.sample("support_y", support.to_event(1), obs=data.support_y)
            if self.observe in ("query", "all") and data.query_x.shape[1]:
                query = self.likelihood(w, data.query_x, data).mask(data.query_mask)
                pyro.sample("query_y", query.to_event(1), obs=query_y)
