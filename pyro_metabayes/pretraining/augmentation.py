"""Random changes of images [N, channels, height, width] in [0, 1], on their device; each image has its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pyro_metabayes.pretraining.settings import PretrainSettings

LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision has it


def augmented(images: Tensor, settings: PretrainSettings) -> Tensor:
    """Every change that the settings ask for."""
    images = mirrored(images) if settings.flip else images
    images = shifted(images, settings.shift) if settings.shift else images
    return jittered(images, settings.jitter) if settings.jitter else images


def mirrored(images: Tensor) -> Tensor:
    """Half of the images, left to right."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels along each axis, zeros moving in (crops of padded images)."""
    num, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * most + 1, (2, num), device=device)
    rows = top.unsqueeze(1) + torch.arange(height, device=device)
    columns = left.unsqueeze(1) + torch.arange(width, device=device)
    pixels = (rows.unsqueeze(2) * (width + 2 * most) + columns.unsqueeze(1)).flatten(1)
    padded = functional.pad(images, (most,) * 4).flatten(2)
    return padded.gather(2, pixels.unsqueeze(1).expand(-1, images.shape[1], -1)).view_as(images)


def jittered(images: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation times 1 - strength to 1 + strength, in this order, clamped to [0, 1].

    As torchvision's ColorJitter has them, which draws one factor for a whole batch. Grey images have no saturation.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, device=images.device) - 1)
    images = (images * factors[0]).clamp(0, 1)
    images = _blended(images, _grey(images).mean((2, 3), keepdim=True), factors[1])
    return _blended(images, _grey(images), factors[2]) if images.shape[1] == 3 else images


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Square images turned by 0 to 3 quarters [N], against the clock."""
    every = torch.stack([images.rot90(quarter, (2, 3)) for quarter in range(4)])
    return every[quarters, torch.arange(len(images), device=images.device)]


def _grey(images: Tensor) -> Tensor:
    """Luminance [N, 1, height, width]; of other than three channels their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blended(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return (share * images + (1 - share) * others).clamp(0, 1)
