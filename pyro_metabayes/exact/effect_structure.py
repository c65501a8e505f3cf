"""Structure of the covariance of random effects: full or diagonal, and one sd for the intercepts of inner groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EffectStructure:
    """Structure of the R random effects of a group. The last effects may be intercepts of groups nested in the group.

    The covariance of the effects is noise^2 L L^T. Without inner groups L is lower triangular, or diagonal. The feature
    of the intercept of an inner group, such as a class of a school, is 1 for points of this inner group, else 0. These
    intercepts have mean 0 and one sd, and are independent of each other and of the other effects:

        L = [[L_1, 0], [0, l I]].

    Args:
        num_random: R, the number of effects, with the intercepts of inner groups.
        num_inner: C, the number of inner groups that a group may have; 0: there are none.
        diagonal: whether covariances between effects are fixed at 0.
    """

    num_random: int
    num_inner: int = 0
    diagonal: bool = False

    @property
    def num_own(self) -> int:
        """Number of effects of the group itself."""
        return self.num_random - self.num_inner

    @property
    def pattern(self) -> Tensor:
        """Matrix [R, R] of the parameters in L: entry k > 0 means that this element of L equals parameter k.

        Entry 0 means that the element of L is 0.
        """
        size = self.num_own
        free = torch.eye(size) if self.diagonal else torch.ones(size, size).tril()
        own = free.flatten().cumsum(0).view(size, size) * free
        return torch.block_diag(own, (free.sum() + 1) * torch.eye(self.num_inner)).long()

    def factor(self, parameters: Tensor) -> Tensor:
        """Return L [R, R] with these parameters, in the order of `pattern`."""
        return torch.cat((parameters.new_zeros(1), parameters))[self.pattern]

    def parameters(self, factor: Tensor) -> Tensor:
        """Return the parameters of L, in the order of `pattern`."""
        pattern = self.pattern
        return torch.stack([factor[pattern == number][0] for number in range(1, int(pattern.max()) + 1)])

    def diagonal_of(self, factor: Tensor) -> Tensor:
        """Return the diagonal of L, with the equal elements of inner groups only once."""
        return factor.diagonal()[: self.num_own + min(self.num_inner, 1)]

    def without_inner(self, values: Tensor) -> Tensor:
        """Leave out the C features of inner groups, whose coefficients are 0, from the last axis of values."""
        return torch.cat((values[..., : self.num_own], values[..., self.num_random :]), -1)

    def with_inner(self, coefficients: Tensor) -> Tensor:
        """Insert the coefficients of inner groups, which are 0, on the last axis."""
        zeros = coefficients.new_zeros(*coefficients.shape[:-1], self.num_inner)
        return torch.cat((coefficients[..., : self.num_own], zeros, coefficients[..., self.num_own :]), -1)
