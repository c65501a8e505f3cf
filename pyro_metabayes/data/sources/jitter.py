"""Random distortions of grey images: rotation, shear, scale, shift, an erased bar and noise."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from pyro_metabayes.errors import UsageError

CHUNK = 4096  # images distorted at a time, which bounds the memory and has no effect on the result


@dataclass(frozen=True)
class Jitter:
    """Limits of the random distortion of an image.

    Every number is drawn uniformly within its limits, independently for each image.

    Args:
        rotation: largest rotation in either direction, in degrees.
        shear: largest horizontal shift per vertical pixel, in pixels.
        scale: limit of the log factors of width and height: the factors lie between exp(-scale) and exp(scale).
        shift: largest shift, in pixels of the result, in x and in y.
        erase: width, in pixels of the result, of an erased bar in a random direction. The distance of the bar from the
            centre is at most a quarter of the side of the image. 0: no bar.
        noise: standard deviation of Gaussian pixel noise, where full ink is 1; the result is clipped to [0, 1].
    """

    rotation: float = 0.0
    shear: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    erase: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"expected a finite {item.name} >= 0, got {value}; change data.{item.name}")

    def apply(self, images: Tensor, source: Tensor, size: int, generator: Generator) -> Tensor:
        """Make M randomly distorted copies of images.

        Args:
            images: N grey images of H x H pixels, uint8 [N, H, H].
            source: [M], index of the image from which each copy is made.
            size: side of the copies in pixels.
            generator: random generator.

        Returns:
            The copies, uint8 [M, 1, size, size].
        """
        uniform = 2 * torch.rand(len(source), 8, generator=generator) - 1
        parts = []
        for some, draws in zip(source.split(CHUNK), uniform.split(CHUNK), strict=True):
            ink = images[some].unsqueeze(1).float() / 255
            maps = self._inverse_maps(draws, size)
            grid = affine_grid(maps, [len(some), 1, size, size], align_corners=False)
            result = grid_sample(ink, grid, align_corners=False)
            if self.erase > 0:
                result = result * self._outside_bar(draws, size)
            if self.noise > 0:
                result = result + self.noise * torch.randn(result.shape, generator=generator)
            parts.append((result.clamp(0, 1) * 255).round().to(torch.uint8))
        return torch.cat(parts)

    def _inverse_maps(self, draws: Tensor, size: int) -> Tensor:
        """Return affine maps [M, 2, 3] from pixels of M results to pixels of their sources, in coordinates [-1, 1]."""
        angle, shear = torch.deg2rad(self.rotation * draws[:, 0]), self.shear * draws[:, 1]
        cosine, sine = angle.cos(), angle.sin()
        zoom = torch.exp(self.scale * draws[:, 2:4])
        rotate = torch.stack((cosine, -sine, sine, cosine), -1).unflatten(-1, (2, 2))
        slant = torch.eye(2).repeat(len(draws), 1, 1)
        slant[:, 0, 1] = shear
        linear = rotate @ slant * zoom.unsqueeze(1)
        translation = linear @ (2 / size * self.shift * draws[:, 4:6]).unsqueeze(-1)
        return torch.cat((linear, translation), -1)

    def _outside_bar(self, draws: Tensor, size: int) -> Tensor:
        """Return masks [M, 1, size, size] of M images: 0 inside the erased bar, 1 outside."""
        place = torch.arange(size) - (size - 1) / 2
        angle, offset = torch.pi * draws[:, 6, None, None], size / 4 * draws[:, 7, None, None]
        distance = place * angle.cos() + place.unsqueeze(-1) * angle.sin() - offset
        return (distance.abs() > self.erase / 2).unsqueeze(1).float()
