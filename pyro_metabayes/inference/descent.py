"""The inner loop of gradient-based meta-learning: descent on a task's points, unrolled, all tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasQueryView
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model


def descend(
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    step_size: Tensor | float,
    num_steps: int,
    first_order: bool = False,
) -> Tensor:
    """theta^K of theta^{k+1} = theta^k - step_size * gradient(theta^k), theta^0 = start [T, ...].

    Outer gradients flow through every step; first_order treats `gradient` as a constant, which leaves
    those through theta^k alone. (Finn, Abbeel and Levine 2017, eq. 1 and section 5.2.)
    """
    theta = start
    for _ in range(num_steps):
        direction = gradient(theta)
        direction = direction.detach() if first_order else direction
        if isinstance(step_size, Tensor):
            theta = torch.addcmul(theta, step_size, direction, value=-1)  # one pass over theta
        else:
            theta = torch.sub(theta, direction, alpha=step_size)
    return theta


def loss_gradient(model: Model, w: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """d/dw of the sum of -log p(y_i | x_i, w) over the points that are there: w and result [..., T, *W].

    x [T, N, *X], y [T, N, ...], mask [T, N]. The pullback of the gradient with respect to the outputs: it
    works under no_grad, and outer gradients flow through it.
    """
    outputs, pullback = model.outputs_and_pullback(w, x)
    return pullback(output_gradient(model, outputs, y, mask))


def adapted(
    model: Model,
    start: Tensor,
    observed: Observed,
    log_step_size: Tensor,
    num_steps: int,
    first_order: bool = False,
) -> Tensor:
    """theta^K [T, *W] of theta^{k+1} = theta^k - eta grad_w -(1/n) sum_i log p(y_i | x_i, theta^k), n support points.

    eta is the step size times the model's `loss_unit`, so that rates mean what they do in the papers.
    """
    points = observed.support_x, observed.support_y, observed.support_mask
    rate = rate_of_mean(model, log_step_size, observed.support_mask)
    return descend(start, lambda w: loss_gradient(model, w, *points), rate, num_steps, first_order)


def output_gradient(model: Model, outputs: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """d/d outputs of the sum of -log p(y_i | outputs_i) over the points that are there [..., T, N, *Y].

    softmax(outputs) - [y = c] for logits, (outputs - y) / sd^2 for means; other families by torch.func.grad.
    """
    family: Any = innermost(model.likelihood_of(outputs))
    if isinstance(family, Categorical):
        gradient = family.probs - functional.one_hot(y, outputs.shape[-1])
    elif isinstance(family, Normal):
        gradient = (outputs - y) / family.scale**2
    else:
        gradient = torch.func.grad(lambda its: -model.likelihood_of(its).log_prob(y).sum())(outputs)
    return gradient * mask.unsqueeze(-1)


def query_loss_gradient(model: Model, w: Tensor, episodes: Episodes) -> Tensor:
    """d/dw of the sum of -log p(y_i | x_i, w) over the query points: what synthetic gradients predict [T, *W]."""
    if not isinstance(model, HasQueryView):
        return loss_gradient(model, w, episodes.query_x, episodes.query_y, episodes.query_mask)
    observed = episodes.observed()

    def loss(latent: Tensor) -> Tensor:
        log_prob = model.likelihood(latent, episodes.query_x, observed).log_prob(episodes.query_y)
        return -(log_prob * episodes.query_mask).sum()

    return torch.func.grad(loss)(w)


def hold_steps(guide: nn.Module, num_steps: int, step_size: float, learned: bool) -> None:
    """Give the guide `num_steps` and `log_step_size`, as `hold_step_size` does."""
    if num_steps < 0:
        raise UsageError(f"expected guide.num_steps >= 0, got {num_steps}")
    guide.num_steps = num_steps  # type: ignore[assignment]  # of every guide that takes steps
    hold_step_size(guide, step_size, learned)


def hold_step_size(guide: nn.Module, step_size: float, learned: bool, name: str = "step_size") -> None:
    """Give the guide `log_step_size` (or log_NAME): a learned parameter, or a constant, which is in no checkpoint.

    A fixed step size is a setting, which an evaluation may change.
    """
    if step_size <= 0:
        raise UsageError(f"expected guide.{name} > 0, got {step_size}")
    value = torch.tensor(step_size).log()
    if learned:
        guide.register_parameter(f"log_{name}", nn.Parameter(value))
    else:
        guide.register_buffer(f"log_{name}", value, persistent=False)


def rate_of_mean(model: Model, log_step_size: Tensor, mask: Tensor) -> Tensor:
    """The rate [T, 1, 1] at which descending the sum of -log p is descending its mean, in the model's unit.

    step_size loss_unit / n for the n points of the mask [T, N], at least 1; latents are [..., T, *W] with two axes W.
    """
    return log_step_size.exp() * model.loss_unit() / mask.sum(-1).clamp(min=1).view(-1, 1, 1)
