"""The predictions of a learner as one torch module without checks, which torch.export can trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_metabayes.deployment.fixed_noise import RecordedNoise, RepeatedNoise
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.likelihoods.draws import Draws
from pyro_metabayes.prediction.features import EncodesSupport, with_queries
from pyro_metabayes.prediction.numbers import number_moments
from pyro_metabayes.prediction.predicts import Predicts
from pyro_metabayes.prediction.probabilities import by_class, over_draws
from pyro_metabayes.seeding import draws_by

Points = tuple[Tensor, Tensor, Tensor]  # support_x, support_y, query_x


class Program(nn.Module):
    """Module that maps S support points and Q queries of a task to the prediction for the queries.

    The inputs are support_x [S, *X], support_y and query_x [Q, *X], where *X is the shape of one input. The labels
    support_y are classes [S], or Y numbers per point [S, Y]. The prediction is a tuple of the fields of
    `MetaLearner.predict`, without gradient. The random numbers are fixed.

    Args:
        learner: the learner.
        num_classes: number of classes of a task; 0 in a regression.
        num_samples: number of draws of w.
        noise: the recorded random numbers of a prediction.
    """

    def __init__(self, learner: Predicts, num_classes: int, num_samples: int, noise: RecordedNoise) -> None:
        super().__init__()
        self.learner, self._num_classes, self._num_samples = learner, num_classes, num_samples
        self._functions = noise.functions
        for number, draw in enumerate(noise.draws):
            self.register_buffer(f"draw_{number}", draw)
        self._num_draws = len(noise.draws)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, ...]:
        draws = [self.get_buffer(f"draw_{number}") for number in range(self._num_draws)]
        with draws_by(RepeatedNoise(draws, self._functions)):
            fields = predictions(self.learner, (support_x, support_y, query_x), self._num_classes, self._num_samples)
        return tuple(value.detach() for value in fields)


def recorded_noise(learner: Predicts, points: Sequence[Points], num_classes: int, num_samples: int, seed: int) -> Any:
    """Record the random numbers of a prediction. Their shapes must not depend on the number of points of a task.

    Args:
        learner: the learner.
        points: tasks with different numbers of points.
        num_classes: number of classes of a task; 0 in a regression.
        num_samples: number of draws of w.
        seed: seed of the draws.

    Raises:
        UsageError: the shapes of the random numbers depend on the number of points.
    """
    recorded = []
    for task in points:
        with draws_by(RecordedNoise(seed)) as noise:
            predictions(learner, task, num_classes, num_samples)
        recorded.append(noise)
    shapes = [[draw.shape for draw in noise.draws] for noise in recorded]
    if any(shape != shapes[0] for shape in shapes):
        raise UsageError(
            "expected a learner that draws equally many random numbers for any number of points, got draws for each "
            "point; use MetaLearner.task instead of an export"
        )
    return recorded[0]


def predictions(learner: Predicts, points: Points, num_classes: int, num_samples: int) -> tuple[Tensor, ...]:
    """Predict the Q queries of one task, without checks of the inputs.

    Args:
        learner: the learner.
        points: support_x [S, *X], support_y and query_x [Q, *X], where *X is the shape of one input. The labels
            support_y are classes [S], or Y numbers per point [S, Y].
        num_classes: number of classes C; 0 in a regression.
        num_samples: number of draws of w.

    Returns:
        In classification: class probabilities, and their standard deviation over draws of w, each [Q, C]. Both are NaN
        if a label is out of range (0 to C - 1), or if a class has no support point.
        In a regression: mean, sd, and lower and upper end of the 90% interval of the label, each [Q, Y].
    """
    support_x, support_y, query_x = (value.unsqueeze(0) for value in points)
    known = support_y.clamp(0, num_classes - 1) if num_classes else support_y  # one_hot fails for other labels
    data = Observed(support_x=support_x, support_y=known, query_x=query_x, num_classes=num_classes)
    frame = learner.backbone.support_frame(data) if isinstance(learner.backbone, EncodesSupport) else None
    data = learner.embedded(data) if frame is None else with_queries(frame.support, frame.embed(query_x))
    q = learner.guide.posterior(data)
    if not num_classes:
        return tuple(value.squeeze(0) for value in number_moments(learner.model, q, data, num_samples))
    prediction = over_draws(by_class(Draws.of(learner.model, q, num_samples).logits(data)))
    complete = _has_every_class(support_y, num_classes)
    return tuple(torch.where(complete, value, torch.nan) for value in prediction)


def _has_every_class(y: Tensor, num_classes: int) -> Tensor:
    """Return a boolean scalar: whether every label y is from 0 to C - 1, and every class has a point."""
    present = (y.unsqueeze(-1) == torch.arange(num_classes, device=y.device)).any(1).all()
    return present & ((y >= 0) & (y < num_classes)).all()
