"""The joint distribution of several latent sites of a task, as the distribution of one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import pyro
import torch
from pyro.distributions import ImproperUniform, TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from pyro_metabayes.distributions.sites import Sites
from pyro_metabayes.errors import UsageError
from pyro_metabayes.seeding import task_draws

Site = TorchDistribution | Callable[[Mapping[str, Tensor]], TorchDistribution]


class Joint(TorchDistribution):
    """Joint distribution p(z) = prod_k p(z_k | z_1, ..., z_{k-1}) of the latent sites z_k of T tasks.

        Joint({"log_tau": Normal(loc, 1), "w": lambda z: Normal(0, z["log_tau"].exp()[..., None]).to_event(1)})

    A prior or a posterior with several sites is a Joint. Model and guide sample each site under its own name. All other
    code uses one vector z with batch [T] and event [D]: the flattened sites in order, with D components in total.

    Args:
        distributions: maps the name of each site to a distribution with batch [T], or to a function of the earlier
            sites. The function receives draws [..., T, *shape of the site] by name, and returns a distribution with
            batch [..., T].

    Raises:
        UsageError: there are no sites, or a site has a flat distribution.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, distributions: Mapping[str, Site]) -> None:
        if not distributions:
            raise UsageError("expected at least one site for a Joint, got an empty mapping; add a site")
        self.distributions = dict(distributions)
        self.examples: dict[str, TorchDistribution] = {}
        self.visit(self._example)
        self.sites = Sites({name: example.event_shape for name, example in self.examples.items()})
        batch = torch.broadcast_shapes(*[example.batch_shape for example in self.examples.values()])
        super().__init__(batch, self.sites.event_shape, validate_args=False)

    def _example(self, name: str, distribution: TorchDistribution) -> Tensor:
        """Store the distribution of a site, and return a draw, whose shape later sites may need."""
        if isinstance(distribution, ImproperUniform):
            raise UsageError(
                f"expected a distribution that can be sampled for site '{name}', got a flat distribution; "
                "use another distribution"
            )
        self.examples[name] = distribution
        with torch.no_grad():
            return task_draws(distribution)

    def visit(self, value_of: Callable[[str, TorchDistribution], Tensor]) -> dict[str, Tensor]:
        """Compute value_of(name, distribution) for each site in order; the distribution depends on earlier values."""
        values: dict[str, Tensor] = {}
        for name in self.distributions:
            values[name] = value_of(name, self.given(name, values))
        return values

    def given(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """Return the distribution of a site, given the values of the earlier sites by name."""
        distribution = self.distributions[name]
        return distribution if isinstance(distribution, Distribution) else distribution(values)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(example.has_rsample for example in self.examples.values())

    def rsample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        return self._draw(sample_shape, "rsample")

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            return self._draw(sample_shape, "sample")

    def _draw(self, sample_shape: Size | list[int] | tuple[int, ...], method: str) -> Tensor:
        shape = (*sample_shape, *self.batch_shape)
        return self.sites.join(
            self.visit(lambda _, given: getattr(given, method)(Size(shape[: len(shape) - len(given.batch_shape)])))
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute log p(z) [..., T] in nats for latent vectors z [..., T, D]; a sum over all sites."""
        return torch.stack(torch.broadcast_tensors(*self.log_probs(value).values())).sum(0)

    def log_probs(self, value: Tensor) -> dict[str, Tensor]:
        """Compute log p(z_k | z_1, ..., z_{k-1}) per task in nats, for each site z_k by name."""
        values = self.sites.split(value)
        return {name: self.given(name, values).log_prob(values[name]) for name in self.distributions}

    @property
    def mean(self) -> Tensor:
        """Mean of the latent vector z [T, D]; NotImplementedError if a site depends on another site."""
        return self._of_independent_sites("mean")

    @property
    def variance(self) -> Tensor:
        """Variance of the latent vector z [T, D]; NotImplementedError if a site depends on another site."""
        return self._of_independent_sites("variance")

    def _of_independent_sites(self, moment: str) -> Tensor:
        if any(not isinstance(distribution, Distribution) for distribution in self.distributions.values()):
            raise NotImplementedError(
                f"expected independent sites for a {moment} in closed form, got sites that depend on each other; "
                f"estimate the {moment} from samples"
            )
        values = {name: getattr(example, moment) for name, example in self.examples.items()}
        shapes = {name: (*self.batch_shape, *example.event_shape) for name, example in self.examples.items()}
        return self.sites.join({name: value.expand(shapes[name]) for name, value in values.items()})


def latent_from(distribution: TorchDistribution, value_of: Callable[[str, TorchDistribution], Tensor]) -> Tensor:
    """Compute value_of(name, distribution) for each site, and concatenate the values to a latent.

    Args:
        distribution: the distribution of the latent. If it is not a Joint, the latent has the single site "w".
        value_of: computes the value of a site, given the distribution of the site.
    """
    if isinstance(distribution, Joint):
        return distribution.sites.join(distribution.visit(value_of))
    return value_of("w", distribution)


def latent_with(distribution: TorchDistribution, values: Mapping[str, Tensor]) -> Tensor:
    """Concatenate values of the sites, by name, to a latent of the distribution."""
    return distribution.sites.join(values) if isinstance(distribution, Joint) else values["w"]


def sample_latent(distribution: TorchDistribution) -> Tensor:
    """Sample the latent of all tasks in a Pyro program, each site under its own name."""
    return latent_from(distribution, pyro.sample)


def sites_of(distribution: TorchDistribution) -> Sites:
    """Return the names and shapes of the sites of a distribution; only a Joint has other sites than "w"."""
    return distribution.sites if isinstance(distribution, Joint) else Sites(w=distribution.event_shape)


def check_sites(distribution: TorchDistribution, sites: Sites | None, name: str, remedy: str) -> None:
    """Check that a prior or posterior has the sites of the model, in the same order.

    With another order, the latent vector would be split at wrong places, possibly without an error.

    Args:
        distribution: the prior or posterior.
        sites: the sites of the model; None: one site, "w".
        name: name of the distribution in the error message, such as "prior".
        remedy: last part of the error message: what to do.

    Raises:
        UsageError: the sites have other names, other shapes or another order.
    """
    expected = Sites(w=distribution.event_shape) if sites is None else sites
    if list((got := sites_of(distribution)).items()) != list(expected.items()):
        raise UsageError(f"expected the sites {expected} of the {name}, in this order, got {got}; {remedy}")
