"""Augmentations of images do what their names say, with other random numbers for each image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_metabayes.pretraining.augmentation import jitter, mirror, rotate, shift
from pyro_metabayes.vision import torchvision


@pytest.fixture
def images() -> Tensor:
    return torch.rand(8, 3, 12, 10)


def test_shifted_images_are_crops_of_padded_ones(images: Tensor) -> None:
    """Every image is one of the (2 * most + 1)^2 crops, and not all are the same one."""
    padded = torch.nn.functional.pad(images, (2,) * 4)
    crops = [(top, left) for top in range(5) for left in range(5)]
    found = []
    for before, after in zip(padded, shift(images, 2), strict=True):
        fits = [crop for crop in crops if torch.equal(before[:, crop[0] : crop[0] + 12, crop[1] : crop[1] + 10], after)]
        found += fits[:1]
    assert len(found) == len(images) and len(set(found)) > 2


def test_about_half_of_the_images_are_mirrored() -> None:
    images = torch.rand(1000, 1, 2, 4)
    after = mirror(images)
    kept = (after == images).flatten(1).all(1)
    assert torch.equal(after[~kept], images[~kept].flip(-1))
    assert 400 < kept.sum() < 600  # fails by chance once in 4e9


def test_a_jittered_image_is_that_of_torchvision(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the factors that were drawn, image by image: brightness, contrast, saturation."""
    torchvision()
    from torchvision.transforms.v2 import functional

    uniform = torch.rand(3, len(images), 1, 1, 1)
    monkeypatch.setattr(torch, "rand", lambda *shape, device: uniform)
    after = jitter(images, 0.4)
    for number, image in enumerate(images):
        brightness, contrast, saturation = (1 + 0.4 * (2 * uniform[:, number] - 1)).flatten().tolist()
        expected = functional.adjust_brightness(image, brightness)
        expected = functional.adjust_contrast(expected, contrast)
        expected = functional.adjust_saturation(expected, saturation)
        torch.testing.assert_close(after[number], expected, atol=1e-3, rtol=0)  # its luminance has fewer digits


def test_jitter_leaves_grey_images_grey_and_all_in_range() -> None:
    grey = torch.rand(4, 1, 6, 6)
    after = jitter(grey, 0.9)
    assert after.shape == grey.shape and after.min() >= 0 and after.max() <= 1
    assert not torch.equal(after, grey)


def test_turned_images_are_turned_by_their_own_quarters() -> None:
    images, quarters = torch.rand(4, 3, 5, 5), torch.tensor([2, 0, 3, 1])
    for image, quarter, after in zip(images, quarters, rotate(images, quarters), strict=True):
        assert torch.equal(after, image.rot90(int(quarter), (1, 2)))
