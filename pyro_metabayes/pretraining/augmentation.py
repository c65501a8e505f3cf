"""Random augmentation of images [N, channels, height, width] in [0, 1], drawn separately for each image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pyro_metabayes.pretraining.settings import PretrainSettings

LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R BT.601, the weights of torchvision


def augment(images: Tensor, settings: PretrainSettings) -> Tensor:
    """Apply the augmentations that the settings enable: mirror, then shift, then jitter."""
    images = mirror(images) if settings.flip else images
    images = shift(images, settings.shift) if settings.shift else images
    return jitter(images, settings.jitter) if settings.jitter else images


def mirror(images: Tensor) -> Tensor:
    """Flip each image horizontally with probability 1/2."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flip, images.flip(-1), images)


def shift(images: Tensor, max_pixels: int) -> Tensor:
    """Translate each image by up to `max_pixels` along each axis, with zero padding."""
    num, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * max_pixels + 1, (2, num), device=device)
    rows = top.unsqueeze(1) + torch.arange(height, device=device)
    columns = left.unsqueeze(1) + torch.arange(width, device=device)
    pixels = (rows.unsqueeze(2) * (width + 2 * max_pixels) + columns.unsqueeze(1)).flatten(1)
    padded = functional.pad(images, (max_pixels,) * 4).flatten(2)
    return padded.gather(2, pixels.unsqueeze(1).expand(-1, images.shape[1], -1)).view_as(images)


def jitter(images: Tensor, strength: float) -> Tensor:
    """Scale brightness, contrast and saturation, in this order, by factors in [1 - strength, 1 + strength].

    Each result is clamped to [0, 1]. The formulas are those of torchvision's ColorJitter. The saturation of images
    without three channels is not changed.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, device=images.device) - 1)
    images = (images * factors[0]).clamp(0, 1)
    images = _blend(images, _grey(images).mean((2, 3), keepdim=True), factors[1])
    return _blend(images, _grey(images), factors[2]) if images.shape[1] == 3 else images


def rotate(images: Tensor, quarters: Tensor) -> Tensor:
    """Rotate N square images counterclockwise by `quarters` [N] quarter turns, 0 to 3 for each image."""
    rotations = torch.stack([images.rot90(quarter, (2, 3)) for quarter in range(4)])
    return rotations[quarters, torch.arange(len(images), device=images.device)]


def _grey(images: Tensor) -> Tensor:
    """Compute the luminance [N, 1, height, width] of N RGB images; for other channels, the mean over channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return (share * images + (1 - share) * others).clamp(0, 1)
