"""Self-supervision by rotation: a network predicts by how many quarter turns an image was rotated.

Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018 (arXiv
1803.07728).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import grad

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.networks import relu_network
from pyro_metabayes.model import Model

TURNS = 4


class RotationHead(nn.Module):
    """A network zhat that predicts the rotation of an image from the C logits of a classifier.

    The rotation loss of the weights w of the classifier, in nats, needs no labels. It is a sum over the queries x_i:

        L_rot(w) = sum_i (1/4) sum_{r=0..3} -log softmax(zhat(yhat(turn_r x_i, w)))_r

    where yhat(x, w) = outputs(w, x) are the logits, and turn_r rotates an image by r quarter turns. The layers of zhat
    have C, 8 C and 4 units.

    Args:
        num_classes: number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = relu_network([num_classes, 8 * num_classes, TURNS])

    def loss(self, model: Model, w: Tensor, observed: Observed) -> Tensor:
        """Compute the rotation loss L_rot [T] in nats at the weights w [T, C, W].

        Raises:
            UsageError: the tasks have no rotated images of the queries.
        """
        return self._of_outputs(model.outputs(w, every_turn(observed)), observed.query_mask)

    def gradient(self, model: Model, w: Tensor, observed: Observed) -> Tensor:
        """Compute d L_rot / d w [T, C, W]; works under torch.no_grad(), and outer gradients flow through it."""
        outputs, pullback = model.outputs_and_pullback(w, every_turn(observed))
        return pullback(grad(lambda at: self._of_outputs(at, observed.query_mask).sum())(outputs))

    def _of_outputs(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Compute L_rot [T] from the logits [T, 4 Q, C] of Q queries in four rotations; mask [T, Q]."""
        log_probs = self.network(outputs).log_softmax(-1).unflatten(-2, (-1, TURNS))  # [T, Q, turn, answer]
        return -(log_probs.diagonal(dim1=-2, dim2=-1).mean(-1) * mask).sum(-1)


def every_turn(observed: Observed) -> Tensor:
    """Return each query image followed by the rotations by 1, 2 and 3 quarter turns, [T, 4 Q, *X]."""
    turned = observed.auxiliary.get("turned")
    if turned is None:
        raise UsageError(
            "expected rotated images of the queries for guide=sib_rotation, got tasks without rotated images; use "
            "data=digit_domains or data=pacs"
        )
    return torch.cat((observed.query_x.unsqueeze(2), turned), dim=2).flatten(1, 2)
