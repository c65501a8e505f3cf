"""Synthetic gradients: a network predicts d loss / d logits without labels.

Hu et al., "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients", ICLR 2020 (arXiv 2004.12696).
"""

from __future__ import annotations

from torch import Tensor, nn

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import check_choice
from pyro_metabayes.inference.capabilities import HasQueryView, Pullback, has
from pyro_metabayes.inference.family import draws_around
from pyro_metabayes.inference.gradient_networks import EquivariantNet, MarginalNet, OrderedNet
from pyro_metabayes.model import Model

Network = OrderedNet | EquivariantNet | MarginalNet
NETWORKS = ("ordered", "equivariant", "marginal_aware")
NORMALISATIONS = ("task", "batch", "none")


def network_of(name: str, model: Model, num_classes: int, normalisation: str = "task") -> Network:
    """Construct the synthetic-gradient network xi called `name`.

    Args:
        name: `ordered` (only for num_classes classes), `equivariant` or `marginal_aware` (for any number of classes).
        model: the model, which determines the inputs of the network.
        num_classes: number of classes per task.
        normalisation: points over which the network normalises: of a `task`, of the `batch`, or `none`.
    """
    check_choice("guide.synthetic_gradient", name, NETWORKS)
    check_choice("guide.normalisation", normalisation, NORMALISATIONS)
    normalise, over_batch = normalisation != "none", normalisation == "batch"
    if name == "ordered":
        num_seen = model.num_seen(num_classes) if has(model, HasQueryView) else num_classes
        return OrderedNet(num_seen, normalise, over_batch)
    network = EquivariantNet if name == "equivariant" else MarginalNet
    return network(normalise=normalise, over_batch=over_batch)


def view_of_queries(model: Model, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
    """Compute the input yhat of the synthetic-gradient network for the queries, and the pullback of yhat.

    yhat is the `query_view` of a model with `HasQueryView`, otherwise the logits.

    Args:
        model: the model.
        w: weights [..., T, C, W] of T tasks and C classes.
        observed: the tasks, with Q queries each.

    Returns:
        yhat [..., T, Q, V], V values per query.
        pullback: the map from a gradient in yhat to a gradient in w.
    """
    if has(model, HasQueryView):
        return model.query_view(w, observed)
    return model.outputs_and_pullback(w, observed.query_x)


def synthetic_gradient(
    model: Model, xi: nn.Module, theta: Tensor, observed: Observed, scale: Tensor | None = None, num_samples: int = 0
) -> Tensor:
    """Compute the synthetic gradient of the query loss with respect to theta, the mean of the weights w.

        gradient = E_eps[ sum_i (d yhat_i / d w)^T xi(yhat_i) ]
        w = theta + scale eps,   eps ~ N(0, I)

    The sum is over the unmasked queries i with logits yhat_i. (First term of eq. 9 of Hu et al.)

    Args:
        model: the model that computes yhat and the pullback of yhat.
        xi: a network from (yhat, mask) to a synthetic d loss / d yhat.
        theta: [T, C, W], for T tasks and C classes with W weights each.
        observed: the tasks.
        scale: a tensor that broadcasts with theta; None: w = theta.
        num_samples: number of draws of eps; 0: w = theta.

    Returns:
        The gradient [T, C, W].
    """
    w = draws_around(theta, scale, num_samples)
    yhat, pullback = view_of_queries(model, w, observed)
    gradient = pullback(xi(yhat, observed.query_mask) * observed.query_mask.unsqueeze(-1))
    return gradient if w is theta else gradient.mean(0)
