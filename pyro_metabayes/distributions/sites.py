"""Names and shapes of the latent sites of a task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from pyro_metabayes.errors import UsageError


class Sites(dict[str, Size]):
    """Mapping from the names to the shapes of the latent sites of a task: Sites(log_tau=Size([]), w=Size([5, 64])).

    The latent vector of the task is the concatenation of the flattened sites, in this order. It has D components.
    """

    @property
    def event_shape(self) -> Size:
        """Shape [D] of the latent vector of one task."""
        return Size((sum(shape.numel() for shape in self.values()),))

    @property
    def labels(self) -> list[str]:
        """Name of each of the D components of the latent vector: log_tau, w[0], w[1], ..."""
        return [label for name, shape in self.items() for label in labels_of(name, shape)]

    def __str__(self) -> str:
        return ", ".join(f"{name} {list(shape)}" for name, shape in self.items())

    def split(self, latent: Tensor) -> dict[str, Tensor]:
        """Split latent vectors [..., D] into the values [..., *shape] of the sites, by name.

        Raises:
            UsageError: the latent vectors do not have D components.
        """
        if latent.shape[-1:] != self.event_shape:
            raise UsageError(
                f"expected latents of size {self.event_shape[0]} for the sites {self}, got shape {list(latent.shape)}; "
                "pass latents of this size, and set task.way as in training if sites depend on the number of classes"
            )
        parts = latent.split([shape.numel() for shape in self.values()], dim=-1)
        return {
            name: part.reshape(*part.shape[:-1], *shape)
            for (name, shape), part in zip(self.items(), parts, strict=True)
        }

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the values [..., *shape] of the sites, by name, to latent vectors [..., D]."""
        flat = [
            values[name].reshape(*values[name].shape[: values[name].dim() - len(shape)], -1)
            for name, shape in self.items()
        ]
        return torch.cat(flat, dim=-1)


def labels_of(name: str, shape: Size) -> list[str]:
    """Return a name for each component of a site: the name of a scalar site, else the name with an index (w[0])."""
    return [f"{name}[{i}]" for i in range(shape.numel())] if shape else [name]
