"""The generative model of a batch of tasks: a prior over each task's latent, and a likelihood."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.parameters import Program, announce_parameters

OBSERVE = ("query", "support", "all")


class Model(Program):
    """p(y_query, w | x, support) = prod_t p(w_t | support_t or nothing) prod_i p(y_i | x_i, w_t).

    A new model defines `event_shape`, `prior`, `outputs` and `likelihood_of`; `forward` is fixed.
    `observe` names the labels that forward has sites for: "query" (few-shot objectives),
    "support" (the gold posterior p(w | support)), "all" (both).
    own_prior: the name of the prior, where the model brings one of its own.
    """

    own_prior: str | None = None

    def __init__(self, observe: str = "query") -> None:
        super().__init__(name="model")
        if observe not in OBSERVE:
            raise UsageError(f"expected model.observe to be one of {', '.join(OBSERVE)}, got '{observe}'")
        self.observe = observe

    @property
    def given_support(self) -> bool:
        """Whether prior or likelihood take the support labels as given: they are then no data beside them."""
        return bool(getattr(getattr(self, "prior_over_weights", None), "conditional", False))

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

    def query_outputs_and_pullback(self, w: Tensor, observed: Observed) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What the likelihood of the queries is made of, and its pullback to w, for inner loops on the queries.

        A model overrides this where these outputs depend on more than w and the inputs.
        """
        return self.outputs_and_pullback(w, observed.query_x)

    def synthetic_gradient(self, network: nn.Module, outputs: Tensor, observed: Observed) -> Tensor:
        """d loss / d outputs [..., T, Q, *Y] as `network` makes it up, from what the model shows it of the outputs."""
        return network(outputs, observed.query_mask)

    def num_seen(self, num_classes: int) -> int:
        """How many numbers of a query that network sees."""
        return num_classes

    def pullback(self, w: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        """The product of a cotangent on outputs(w, x) with d outputs / d w."""
        return self.outputs_and_pullback(w, x)[1](cotangent)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """A random point [*W] where descent can start, which a guide may go on to learn."""
        raise UsageError(
            f"expected a model with initial_latent for this guide, got {type(self).__module__}; take another guide"
        )

    def loss_unit(self) -> Tensor | float:
        """What an inner loop multiplies -log p by, so that its rates mean what they do in the papers.

        1 for classes, whose loss is the cross-entropy; 2 noise^2 in a regression, which makes it the squared error.
        """
        return 1.0

    def loss_range(self, observed: Observed) -> Tensor | None:
        """How far -log p of a label can move, in nats, whatever w and x; None where nothing bounds it."""
        return None

    def prototypes(self, observed: Observed) -> Tensor:
        """The latent that the support set suggests before any inference [T, *W]; class means in a classifier."""
        raise UsageError(
            f"expected a model with class prototypes for this guide, got {type(self).__module__}; "
            "take another guide, or guide.initialisation=global where it has that"
        )

    def of_classifier(self, weights: Tensor) -> Tensor:
        """The latent [*W] that answers as a cosine classifier with weights [C, D] does."""
        raise UsageError(
            f"expected a model of classes to start at those of the pretraining, got {type(self).__module__}; take "
            "model=few_shot_classifier"
        )

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
