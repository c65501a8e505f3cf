"""The base class of objectives: computes a loss from traces of a Pyro model and guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.memoise import memoise
from pyro_metabayes.handlers.parameters import without_messages
from pyro_metabayes.handlers.particles import Particles
from pyro_metabayes.inference.divergences import density_error, innermost
from pyro_metabayes.specification.recorded import Recorded

Stochastic = Callable[..., Any]
NESTING = 1  # number of plates of a program: one, of tasks


@dataclass(frozen=True)
class Terms:
    """The loss, log-likelihood and KL, each summed over the tasks of a batch, in nats.

    `loss` is differentiable and includes the KL weight. The other terms have no gradient and no weight. The loss of
    `MeanScore` has no unit.
    """

    loss: Tensor
    log_likelihood: Tensor
    kl: Tensor | None  # unweighted; None if the objective has no KL


class Objective(Recorded):
    """Base class of losses for a pair of model and guide. A new objective defines `terms`.

    Attributes:
        name: name of the loss in tables.
        bound: whether -loss, in expectation, is a lower bound on the log evidence if the KL weight is 1 and guide and
            prior have densities.

    Args:
        particles: number of samples of the latent per task.

    Raises:
        UsageError: particles < 1.
    """

    name: str
    bound: bool

    def __init__(self, particles: int = 1) -> None:
        if particles < 1:
            raise UsageError(f"expected train.particles >= 1, got {particles}; increase train.particles")
        self.particles = particles

    def terms(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> Terms:
        """Compute the terms of the loss for one batch, without host synchronisation.

        Args:
            model: a Pyro program of (data, **kwargs) with observed sites.
            guide: a Pyro program with the arguments and the latent sites of the model.
            args: the batch of tasks.
            kwargs: further arguments of model and guide, such as kl_weight.
        """
        raise NotImplementedError

    def differentiable_loss(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss as a tensor, for pyro.infer's `SVI(model, guide, optimiser, loss=THIS_METHOD)`."""
        return self.terms(model, guide, *args, **kwargs).loss

    def _traces(self, model: Stochastic, guide: Stochastic, data: Any, seen: Any, **kwargs: Any) -> tuple[Trace, Trace]:
        """Return the traces of the guide on `seen`, and of the model on `data` with the latents of the guide."""
        with memoise(), without_messages():
            guide_trace = poutine.trace(self._in_particles(guide)).get_trace(seen, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data, **kwargs)
        if is_validation_enabled():
            self._check(model_trace, guide_trace)
        return model_trace, guide_trace

    def _check(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Run Pyro's checks: model and guide have equal sites, and every batch dimension belongs to a plate."""
        check_model_guide_match(model_trace, guide_trace, NESTING)
        for trace in (model_trace, guide_trace):
            try:
                trace.compute_log_prob()
            except (KeyError, NotImplementedError) as error:
                raise density_error(error) from None
            for name in _sites(trace):
                check_site_shape(trace.nodes[name], NESTING)

    def _in_particles(self, program: Stochastic) -> Stochastic:
        """Wrap a program: draw each latent `particles` times, along a new first axis if particles > 1."""
        return Particles(self.particles, NESTING)(program)


def total(values: Tensor) -> Tensor:
    """Compute the sum of values [T] over tasks; values [L, T] are first averaged over L particles."""
    return values.sum() / len(values) if values.dim() > NESTING else values.sum()


def added(sites: list[Tensor]) -> Tensor:
    """Compute the sum of the values of all sites; 0 without sites."""
    return sum(sites[1:], sites[0]) if sites else torch.zeros(())


def _sites(trace: Trace) -> list[str]:
    return [name for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)]


def latent_sites(guide_trace: Trace) -> list[str]:
    """Return the names of the latent sites in the trace of a guide.

    Raises:
        UsageError: gradients are recorded, and a site is not reparametrised.
    """
    for name in (names := _sites(guide_trace)):
        fn: Any = guide_trace.nodes[name]["fn"]
        if torch.is_grad_enabled() and not fn.has_rsample:
            raise UsageError(
                f"expected a reparametrised distribution at site '{name}', got {type(innermost(fn)).__name__}; "
                "use a guide with rsample (or a prior with rsample, if the guide samples from the prior)"
            )
    return names


def observed_sites(model_trace: Trace) -> list[str]:
    """Return the names of the observed sites in the trace of a model."""
    return [name for name in _sites(model_trace) if model_trace.nodes[name]["is_observed"]]
