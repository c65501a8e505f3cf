"""Initial points theta^0 of inner loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import FromClassifier, HasInitialPoint, HasPrototypes, require
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model

INITIALISATIONS = ("global", "prior", "support")  # choices of `initialisation_of_latent`


class Initialisation(nn.Module):
    """Module that computes the initial point theta^0 [T, *W] of an inner loop for T tasks without query labels.

    Attributes:
        fixed_classes: whether the module works only for one number of classes.
    """

    fixed_classes = False

    def forward(self, model: Model, observed: Observed) -> Tensor:
        raise NotImplementedError


class Prototypes(Initialisation):
    """Initialisation at the prototypes (class means) of the support set. (Proto-MAML: Triantafillou et al. 2020.)"""

    def forward(self, model: Model, observed: Observed) -> Tensor:
        return require(model, HasPrototypes, "guide.initialisation=support").prototypes(observed)


class ScaledPrototypes(Prototypes):
    """Initialisation at v * prototypes with a learned v, which is 1 before training; lambda(support) of SIB."""

    def __init__(self, num_weights: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_weights))

    def forward(self, model: Model, observed: Observed) -> Tensor:
        return self.scale * super().forward(model, observed)


class LearnedPoint(Initialisation):
    """Initialisation at one learned point [*W] for all tasks, as in MAML."""

    fixed_classes = True

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.point = nn.Parameter(point)

    def forward(self, model: Model, observed: Observed) -> Tensor:
        return self.point.expand(observed.num_tasks, *self.point.shape)

    def start_at_classes(self, model: Model, weights: Tensor) -> None:
        """Set the point before training, such that it predicts like a cosine classifier with class weights [C, D]."""
        self.point.data.copy_(require(model, FromClassifier, "guide.initialisation=global").of_classifier(weights))


class PriorMean(Initialisation):
    """Initialisation at the mean of the prior."""

    def forward(self, model: Model, observed: Observed) -> Tensor:
        prior = model.prior(observed)
        try:
            return prior.mean
        except NotImplementedError as error:
            got = type(innermost(prior)).__name__
            raise UsageError(
                f"expected a prior with a mean in closed form for guide.initialisation=prior, got {got}; use "
                "prior=gaussian"
            ) from error


def initialisation_of_rows(name: str, model: Model, num_classes: int, num_weights: int) -> Initialisation:
    """Construct the initialisation called `name`, for weights with one row per class or output.

    Choices are `support` (scaled prototypes) and `global` (learned rows, shared by all tasks).
    """
    check_choice("guide.initialisation", name, ("support", "global"))
    if name == "global":
        return learned_rows(num_classes, num_weights)
    require(model, HasPrototypes, "guide.initialisation=support")
    return ScaledPrototypes(num_weights)


def learned_rows(num_classes: int, num_weights: int) -> LearnedPoint:
    """Construct a learned initial point for all tasks, with a row of weights per class or output.

    Before training, two or more rows are random with about unit length; one row alone is 0.
    """
    start = torch.randn if num_classes > 1 else torch.zeros  # one output has no symmetry to break
    return LearnedPoint(start(num_classes, num_weights) * num_weights**-0.5)


def initialisation_of_latent(name: str, model: Model, num_classes: int, num_features: int) -> Initialisation:
    """Construct the initialisation called `name`, for weights of any shape.

    Choices are `support` (prototypes), `prior` (mean of the prior) and `global` (a learned point for all tasks).
    """
    check_choice("guide.initialisation", name, INITIALISATIONS)
    if name == "global":
        model_with_point = require(model, HasInitialPoint, "guide.initialisation=global")
        return LearnedPoint(model_with_point.initial_latent(num_classes, num_features))
    if name == "prior":
        return PriorMean()
    require(model, HasPrototypes, "guide.initialisation=support")
    return Prototypes()
