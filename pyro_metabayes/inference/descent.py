"""The inner loop of gradient-based meta-learning: unrolled gradient descent on the points of each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasQueryView, has
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # default constants of Adam


def descend(
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    step_size: Tensor | float,
    num_steps: int,
    first_order: bool = False,
) -> Tensor:
    """Take K steps of gradient descent, theta^{k+1} = theta^k - step_size * gradient(theta^k), and return theta^K.

    (Finn, Abbeel and Levine 2017, eq. 1 and section 5.2.)

    Args:
        start: theta^0 [T, ...], for T tasks.
        gradient: function from theta^k to a gradient of the same shape; must work under torch.no_grad().
        step_size: a number, or a tensor that broadcasts with theta.
        num_steps: number of steps K.
        first_order: whether the outer gradient treats the inner gradients as constants.
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


@torch.no_grad()
def adam(start: Tensor, gradient: Callable[[Tensor], Tensor], step_size: float, num_steps: int) -> Tensor:
    """Take K steps of Adam with the default decay rates from theta^0, and return theta^K without gradient.

    Adam treats each entry separately, so tasks are independent. (Kingma and Ba 2015, algorithm 1.)

    Args:
        start: theta^0 [T, ...], for T tasks.
        gradient: function from theta^k to a gradient of the same shape; must work under torch.no_grad().
        step_size: a number.
        num_steps: number of steps K.
    """
    theta, first, second = start.detach(), torch.zeros_like(start), torch.zeros_like(start)
    for k in range(1, num_steps + 1):
        direction = gradient(theta)
        first = torch.lerp(first, direction, 1 - BETA_1)
        second = torch.lerp(second, direction.square(), 1 - BETA_2)
        spread = (second / (1 - BETA_2**k)).sqrt_().add_(EPSILON)
        theta = torch.addcdiv(theta, first, spread, value=-step_size / (1 - BETA_1**k))
    return theta


def loss_gradient(model: Model, w: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Compute the gradient with respect to w of the sum of -log p(y_i | x_i, w) over the unmasked points i, in nats.

    The result is the pullback (vector-Jacobian product) of the gradient with respect to the outputs. The function works
    under torch.no_grad(). Outer gradients flow through the result.

    Args:
        model: the likelihood.
        w: weights [..., T, *W] of T tasks; *W is the shape of the weights of one task.
        x: inputs [T, N, *X] of N points per task; *X is the shape of one input.
        y: labels [T, N, ...].
        mask: [T, N], False for points that are left out.

    Returns:
        The gradient [..., T, *W].
    """
    outputs, pullback = model.outputs_and_pullback(w, x)
    return pullback(output_gradient(model, outputs, y, mask))


def adapted(
    model: Model, start: Tensor, observed: Observed, log_step_size: Tensor, num_steps: int, first_order: bool = False
) -> Tensor:
    """Take K steps of gradient ascent on the mean log-likelihood (1/n) sum_i log p(y_i | x_i, w) of n support points.

    The step size is exp(log_step_size) for classes, and 2 noise^2 exp(log_step_size) in a regression.

    Args:
        model: the likelihood.
        start: theta^0 [T, *W], start values of the weights of T tasks.
        observed: the tasks; only the support set is used.
        log_step_size: log of the step size for the mean cross-entropy or the mean squared error.
        num_steps: number of steps K.
        first_order: whether the outer gradient treats the inner gradients as constants.
    """
    points = observed.support_x, observed.support_y, observed.support_mask
    rate = rate_of_mean(model, log_step_size, observed.support_mask)
    return descend(start, lambda w: loss_gradient(model, w, *points), rate, num_steps, first_order)


def output_gradient(model: Model, outputs: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Compute the gradient of the sum of -log p(y_i | outputs_i) over unmasked points i with respect to the outputs.

    A canonical model (`Model.canonical`) has the gradient in closed form: softmax(outputs)_c - [y = c] for the logit of
    class c, and (outputs - y) / sd^2 for a mean. Any other gradient is computed by torch.func.grad.

    Args:
        model: the likelihood.
        outputs: [..., T, N, *Y], outputs for N points of T tasks. *Y is a single axis for a canonical model.
        y: labels [T, N, ...].
        mask: [T, N], False for points that are left out.
    """
    if not model.canonical:
        if not outputs.numel():
            return torch.zeros_like(outputs)  # torch cannot sum the log-likelihoods of 0 points over their labels
        return torch.func.grad(lambda at: -(model.likelihood_of(at).log_prob(y) * mask).sum())(outputs)
    family: Any = innermost(model.likelihood_of(outputs))
    if isinstance(family, Categorical):
        gradient = family.probs - functional.one_hot(y, outputs.shape[-1])
    elif isinstance(family, Normal):
        gradient = (outputs - y) / family.scale**2
    else:
        raise model.claim_error(family)
    return gradient * mask.unsqueeze(-1)


def query_loss_gradient(model: Model, w: Tensor, episodes: Episodes) -> Tensor:
    """Compute the gradient of -log p(y_query | x_query, w) with respect to w, the target of synthetic gradients."""
    has_view = has(model, HasQueryView)
    if not has_view:
        return loss_gradient(model, w, episodes.query_x, episodes.query_y, episodes.query_mask)
    observed = episodes.observed()

    def loss(latent: Tensor) -> Tensor:
        log_prob = model.likelihood(latent, episodes.query_x, observed).log_prob(episodes.query_y)
        return -(log_prob * episodes.query_mask).sum()

    return torch.func.grad(loss)(w)


def step_size_for(model: Model, step_size: float | None) -> float:
    """Return `step_size`, or the default of the model (`Model.inner_step_size`) if step_size is None."""
    return model.inner_step_size if step_size is None else step_size


def hold_steps(guide: nn.Module, num_steps: int, step_size: float, learned: bool) -> None:
    """Set the attribute `num_steps` of a guide, and register the log of the step size by `hold_step_size`."""
    if num_steps < 0:
        raise UsageError(f"expected guide.num_steps >= 0, got {num_steps}; increase guide.num_steps")
    guide.num_steps = num_steps  # type: ignore[assignment]  # an attribute of every guide with an inner loop
    hold_step_size(guide, step_size, learned)


def hold_step_size(guide: nn.Module, step_size: float, learned: bool, name: str = "step_size") -> None:
    """Register the log of a step size on a guide.

    A learned step size is a parameter. A fixed step size is a setting that an evaluation may change, so it is a buffer
    without entry in checkpoints.

    Args:
        guide: the guide.
        step_size: the fixed step size, or the initial value of a learned one.
        learned: whether the step size is learned.
        name: name of the step size; the guide gets the attribute log_NAME.

    Raises:
        UsageError: step_size is not positive.
    """
    if step_size <= 0:
        raise UsageError(f"expected guide.{name} > 0, got {step_size}; set guide.{name} to a positive number")
    value = torch.tensor(step_size).log()
    if learned:
        guide.register_parameter(f"log_{name}", nn.Parameter(value))
    else:
        guide.register_buffer(f"log_{name}", value, persistent=False)


def rate_of_mean(model: Model, log_step_size: Tensor, mask: Tensor) -> Tensor:
    """Convert the step size for the mean loss of n points to a step size [T, 1, 1] for the sum of -log p(y_i | x_i, w).

    The result is step_size * loss_unit / n.

    Args:
        model: the model with `loss_unit`, the ratio of the loss and -log p: 2 noise^2 for the squared error, else 1.
        log_step_size: log of the step size for the mean loss.
        mask: [T, N], for N points of T tasks; n is the number of unmasked points of a task, at least 1.
    """
    return log_step_size.exp() * model.loss_unit() / mask.sum(-1).clamp(min=1).view(-1, 1, 1)
