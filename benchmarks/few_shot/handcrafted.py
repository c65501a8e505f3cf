"""Features of grey images without a network: pixels, histograms of oriented gradients, random projections."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATIONS, CELL = 9, 4
SMALL = 1e-6  # keeps the norm of an empty block positive


def pixels(images: np.ndarray) -> np.ndarray:
    """Return the pixels [N, H * W] in [0, 1] of images [N, H, W] with values from 0 to 255."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def projected(images: np.ndarray, num_features: int = 128, seed: int = 0) -> np.ndarray:
    """Return Gaussian random projections [N, num_features] of the pixels of images [N, H, W]."""
    rows = pixels(images)
    matrix = np.random.default_rng(seed).standard_normal((rows.shape[1], num_features), dtype=np.float32)
    return rows @ matrix


def gradient_histograms(images: np.ndarray) -> np.ndarray:
    """Compute histograms of oriented gradients [N, blocks * 4 * 9] (Dalal and Triggs 2005).

    A cell has 4 x 4 pixels. A block has 2 x 2 cells, and the histogram of a block has unit length. Gradients are
    unsigned. The length of a gradient is divided between the two nearest of nine orientations.

    Args:
        images: [N, H, W], H and W multiples of 4.
    """
    down, right = np.gradient(images.astype(np.float32), axis=(1, 2))
    place = (np.arctan2(down, right) % np.pi) / np.pi * ORIENTATIONS
    lower = np.floor(place)
    length, above = np.hypot(down, right), place - lower
    bins = np.arange(ORIENTATIONS)
    shares = (lower[..., None] % ORIENTATIONS == bins) * (length * (1 - above))[..., None]
    shares += ((lower[..., None] + 1) % ORIENTATIONS == bins) * (length * above)[..., None]
    number, height, width = images.shape
    cells = shares.reshape(number, height // CELL, CELL, width // CELL, CELL, ORIENTATIONS).sum((2, 4))
    corners = [cells[:, i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)]
    blocks = np.concatenate(corners, -1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + SMALL
    return blocks.reshape(number, -1).astype(np.float32)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Resize uint8 images [N, H, W] to [N, side, side]."""
    square = [Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in square])
