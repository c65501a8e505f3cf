"""Synthetic gradients: a network predicts d loss / d logits, whose exact value would need the labels.

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
    """The network xi: `ordered`, for num_classes classes, or `equivariant` or `marginal_aware`, for any number."""
    check_choice("guide.synthetic_gradient", name, NETWORKS)
    check_choice("guide.normalisation", normalisation, NORMALISATIONS)
    normalise, over_batch = normalisation != "none", normalisation == "batch"
    if name == "ordered":
        num_seen = model.num_seen(num_classes) if has(model, HasQueryView) else num_classes
        return OrderedNet(num_seen, normalise, over_batch)
    network = EquivariantNet if name == "equivariant" else MarginalNet
    return network(normalise=normalise, over_batch=over_batch)


def view_of_queries(model: Model, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
    """The input yhat [..., T, Q, V] of xi for the queries under w [..., T, C, W], and its pullback to w."""
    if has(model, HasQueryView):
        return model.query_view(w, observed)
    return model.outputs_and_pullback(w, observed.query_x)


def synthetic_gradient(
    model: Model, xi: nn.Module, theta: Tensor, observed: Observed, scale: Tensor | None = None, num_samples: int = 0
) -> Tensor:
    """E_eps[ sum_i (d yhat_i / d w)^T xi(yhat_i) ] [T, C, W] over the unmasked queries, the first term of eq. 9.

    Args:
        model: computes yhat and its pullback.
        xi: a network from (yhat, mask) to a synthetic d loss / d yhat.
        theta: mean of w [T, C, W].
        observed: the tasks.
        scale: standard deviation of w = theta + scale eps, which broadcasts with theta; None: w = theta.
        num_samples: number of draws of eps ~ N(0, I); 0: w = theta.
    """
    w = draws_around(theta, scale, num_samples)
    yhat, pullback = view_of_queries(model, w, observed)
    gradient = pullback(xi(yhat, observed.query_mask) * observed.query_mask.unsqueeze(-1))
    return gradient if w is theta else gradient.mean(0)
