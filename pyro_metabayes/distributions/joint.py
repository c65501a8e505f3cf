"""Several latent sites of a task, as one distribution of their concatenation."""

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
    """p(z) = prod_k p(z_k | z_1, ..., z_{k-1}) over named sites: batch [T], event [D]; z concatenates all sites.

        Joint({"log_tau": Normal(loc, 1), "w": lambda z: Normal(0, z["log_tau"].exp()[..., None]).to_event(1)})

    A prior or a posterior with several sites is a Joint. Model and guide then sample each site under its own name. All
    other code treats the latent as one vector, in the order of `sites`, which is the order of the mapping.

    Args:
        distributions: by name of the site, a distribution with batch [T], or a function that returns a distribution
            with batch [..., T] given a mapping from the names of all earlier sites to draws [..., T, *shape].

    Raises:
        UsageError: there are no sites, or a site has a flat distribution.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, distributions: Mapping[str, Site]) -> None:
        if not distributions:
            raise UsageError("expected at least one site for a Joint, got none")
        self.distributions = dict(distributions)
        self.examples: dict[str, TorchDistribution] = {}
        self.visit(self._example)
        self.sites = Sites({name: example.event_shape for name, example in self.examples.items()})
        batch = torch.broadcast_shapes(*[example.batch_shape for example in self.examples.values()])
        super().__init__(batch, self.sites.event_shape, validate_args=False)

    def _example(self, name: str, distribution: TorchDistribution) -> Tensor:
        """A draw of a site, from which the functions of later sites determine their shapes."""
        if isinstance(distribution, ImproperUniform):
            raise UsageError(f"expected sites that can be sampled for a Joint, got a flat distribution at '{name}'")
        self.examples[name] = distribution
        with torch.no_grad():
            return task_draws(distribution)

    def visit(self, value_of: Callable[[str, TorchDistribution], Tensor]) -> dict[str, Tensor]:
        """The value of every site: value_of(name, distribution of the site given the values of the earlier sites)."""
        values: dict[str, Tensor] = {}
        for name in self.distributions:
            values[name] = value_of(name, self.given(name, values))
        return values

    def given(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """The distribution of a site, given the values of the earlier ones."""
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
        """log p(z) [..., T] in nats, the sum over sites."""
        return torch.stack(torch.broadcast_tensors(*self.log_probs(value).values())).sum(0)

    def log_probs(self, value: Tensor) -> dict[str, Tensor]:
        """log p(z_k | z_1, ..., z_{k-1}) [..., T] in nats, of each site."""
        values = self.sites.split(value)
        return {name: self.given(name, values).log_prob(values[name]) for name in self.distributions}

    @property
    def mean(self) -> Tensor:
        """E[z] [T, D], if no site depends on another."""
        return self._of_independent_sites("mean")

    @property
    def variance(self) -> Tensor:
        """Var[z] [T, D], if no site depends on another."""
        return self._of_independent_sites("variance")

    def _of_independent_sites(self, moment: str) -> Tensor:
        if any(not isinstance(distribution, Distribution) for distribution in self.distributions.values()):
            raise NotImplementedError(f"no closed form for the {moment} of sites that depend on each other")
        values = {name: getattr(example, moment) for name, example in self.examples.items()}
        shapes = {name: (*self.batch_shape, *example.event_shape) for name, example in self.examples.items()}
        return self.sites.join({name: value.expand(shapes[name]) for name, value in values.items()})


def latent_from(distribution: TorchDistribution, value_of: Callable[[str, TorchDistribution], Tensor]) -> Tensor:
    """The latent whose sites have the values value_of(name, distribution): the sites of a Joint, or only "w"."""
    if isinstance(distribution, Joint):
        return distribution.sites.join(distribution.visit(value_of))
    return value_of("w", distribution)


def latent_with(distribution: TorchDistribution, values: Mapping[str, Tensor]) -> Tensor:
    """The latent whose sites have these values, by name."""
    return distribution.sites.join(values) if isinstance(distribution, Joint) else values["w"]


def sample_latent(distribution: TorchDistribution) -> Tensor:
    """Sample the latent of all tasks in a Pyro program, each site under its own name."""
    return latent_from(distribution, pyro.sample)


def sites_of(distribution: TorchDistribution) -> Sites:
    """Names and shapes of the sites that `sample_latent` samples."""
    return distribution.sites if isinstance(distribution, Joint) else Sites(w=distribution.event_shape)


def check_sites(distribution: TorchDistribution, sites: Sites | None, name: str, remedy: str) -> None:
    """Check that a distribution of the latent has the sites of the model, in their order.

    In another order the latent would be split wrongly, without an error about shapes.

    Args:
        distribution: a prior or a posterior.
        sites: the sites of the model; None: one site, "w".
        name: name of the distribution, for the message.
        remedy: what to do, for the message.

    Raises:
        UsageError: the sites have other names, shapes or another order.
    """
    expected = Sites(w=distribution.event_shape) if sites is None else sites
    if list((got := sites_of(distribution)).items()) != list(expected.items()):
        raise UsageError(f"expected the {name} to have the sites {expected}, in this order, got {got}; {remedy}")
