"""The few-shot classifier, whose latent variable is the set of class weights of a task."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import Categorical, TorchDistribution
from torch import Size, Tensor
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.heads import Head, Outputs
from pyro_metabayes.models.parts.feature_density import log_density
from pyro_metabayes.prior import Prior


class Model(pyro_metabayes.Model):
    """Classifier whose latent variable is the weights w [C, W] of the C classes of a task, W weights per class.

        p(y_i = c | x_i, w) = softmax_c(head(w, x_i))

    Args:
        head: computes logits from weights and D features. W is D for head=cosine, D + 1 for head=linear and
            head=cosine_offset.
        prior: any prior over weights [C, W].
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).
    """

    canonical = True
    head: Head
    prior_over_weights: Prior
    inner_step_size = 0.4  # Finn et al. (2017) for Omniglot; a step of 0.01 moves the logits by less than 0.2 nats

    def __init__(self, head: Head, prior: Prior, observe: str = "query") -> None:
        super().__init__(observe)
        self.head = head
        self.prior_over_weights = prior

    def event_shape(self, observed: Observed) -> Size:
        return self.head.event_shape(observed.num_classes, observed.query_x.shape[-1])

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self.event_shape(observed))

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Categorical(logits=outputs)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the logits of C classes for N points of T tasks [..., T, N, C]."""
        return self.head.outputs(w, x)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.head.outputs_and_pullback(w, x)

    def outputs_at(self, w: Tensor) -> Outputs:
        """Return the function x -> outputs(w, x) for fixed weights w. Quantities of w alone are computed once."""
        return self.head.outputs_at(w)

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Outputs:
        """Return the function from inputs to logits under several draws of w; see `Head.outputs_of_draws`."""
        return self.head.outputs_of_draws(loc, noise, square)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """Draw W random weights for each of C classes [C, W], as an initial point of guides."""
        return self.head.initial_weights(num_classes, num_features)

    def of_classifier(self, weights: Tensor) -> Tensor:
        """Convert the weights of a cosine classifier to weights of the head.

        With the converted weights the model predicts the same classes as the cosine classifier.

        Args:
            weights: weights of C classes for D features [C, D].

        Returns:
            Tensor [C, W], W weights per class.
        """
        return self.head.prototypes(functional.normalize(weights, dim=-1))

    def loss_range(self, observed: Observed) -> Tensor | None:
        """Return an upper bound on the range (maximum - minimum) of the loss of a point, in nats; None if unknown."""
        return self.head.loss_range(observed.num_classes) if self.canonical else None

    def log_density(self, w: Tensor, x: Tensor) -> Tensor | None:
        """Compute log p(x_i | w) of N feature vectors x_i in each of T tasks [..., T, N] (`parts/feature_density.py`).

        The result is None if the head has no such density, or if a subclass overrides outputs or likelihood.
        """
        derived, own = ((part.outputs, part.likelihood_of, part.likelihood) for part in (type(self), Model))
        return log_density(self.head, w, x) if derived == own else None

    def prototypes(self, observed: Observed) -> Tensor:
        """Return weights of T tasks [T, C, W], W for each of C classes, that classify by the nearest class mean.

        Raises:
            UsageError: the tasks have no support points.
        """
        if not observed.support_x.shape[1]:
            raise UsageError(
                "expected a labelled support set for this guide, got task.shot=0; set a guide that needs no support "
                "set, such as guide=sib_rotation or guide=mean_field"
            )
        return self.at_means(class_means(observed))

    def at_means(self, means: Tensor) -> Tensor:
        """Return weights that predict the class with the nearest of the class means `means` [..., C, D]."""
        return self.head.prototypes(means)

    @property
    def has_class_term(self) -> bool:
        return self.head.has_class_term

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        """Return weights whose logits are those of the weights w plus `term`, one number per task and class."""
        return self.head.with_class_term(w, term)
