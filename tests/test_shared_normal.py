"""Does a Normal that shares its parameters do all that an expanded Normal does?"""

from __future__ import annotations

import pytest
import torch
from pyro.distributions import Normal
from torch.distributions import kl_divergence

from pyro_metabayes.inference.shared_normal import SharedNormal

BATCH = torch.Size((4, 3, 5))


def both() -> tuple[torch.distributions.Distribution, torch.distributions.Distribution, list[torch.Tensor]]:
    leaves = [torch.randn(5, requires_grad=True), torch.randn(5).exp().requires_grad_()]
    shared, plain = (family(*leaves).expand(BATCH).to_event(2) for family in (SharedNormal, Normal))
    return shared, plain, leaves


def test_density_entropy_divergence_and_gradients_are_those_of_the_expanded_normal() -> None:
    shared, plain, leaves = both()
    for value in (torch.randn(BATCH), torch.randn(2, *BATCH)):
        torch.testing.assert_close(shared.log_prob(value), plain.log_prob(value))
        own, expected = (torch.autograd.grad(density.log_prob(value).sum(), leaves) for density in (shared, plain))
        torch.testing.assert_close(own, expected)
    torch.testing.assert_close(shared.entropy(), plain.entropy())
    torch.testing.assert_close(kl_divergence(shared, shared.expand(shared.batch_shape)), torch.zeros(4))
    assert shared.batch_shape == plain.batch_shape and shared.event_shape == plain.event_shape
    assert shared.rsample((2,)).shape == (2, *BATCH) and shared.mean.shape == BATCH


def test_expanded_twice_it_still_knows_its_parameters() -> None:
    shared, plain, _ = both()
    value = torch.randn(7, *BATCH)
    torch.testing.assert_close(shared.expand((7, 4)).log_prob(value), plain.expand((7, 4)).log_prob(value))


def test_what_lies_outside_its_support_is_refused() -> None:
    with pytest.raises(ValueError, match="support"):
        both()[0].log_prob(torch.full(BATCH, float("nan")))
