"""Images of any size and format, as arrays [channels, size, size] of bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.untrusted import DAMAGED, reason_of

EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")  # others would be clipped
MODES = {1: "L", 3: "RGB"}
MOST_NAMES = 3  # unreadable images that a message names
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no others: for EPS, Pillow runs Ghostscript
MOST_PIXELS = 50_000_000  # of an image before it is resized


def pixels(source: Path | bytes, size: int | None, channels: int = 3) -> np.ndarray:
    """A file, or the content of one, as uint8 [channels, size, size].

    The whole image is resized to the square (Lanczos); size None keeps its size. Raises one of DAMAGED if the content
    is no image.
    """
    with _open(source) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        if image.mode not in EIGHT_BIT:
            raise ValueError(f"it has the mode {image.mode}, not 8 bits a channel")
        image.load()
        copy: Image.Image = image.convert(MODES[channels])
    if size is not None and copy.size != (size, size):
        copy = copy.resize((size, size), Image.Resampling.LANCZOS)
    array = np.asarray(copy)
    return np.ascontiguousarray(array.reshape(*array.shape[:2], channels).transpose(2, 0, 1))


def _open(source: Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("it is no image") from None
    except Image.DecompressionBombError:
        raise ValueError("it claims too many pixels") from None


def all_pixels(paths: Sequence[Path], size: int, channels: int = 3) -> Iterator[np.ndarray]:
    """The pixels of each file; raises after the last one if any could not be read."""
    bad: list[str] = []
    for path in paths:
        try:
            yield pixels(path, size, channels)
        except DAMAGED as error:
            bad.append(f"{path} ({reason_of(error)})")
    if bad:
        more = f" and {len(bad) - MOST_NAMES} more" if len(bad) > MOST_NAMES else ""
        raise UsageError(
            f"expected images that can be read, got {len(bad)} of {len(paths)} that cannot: "
            f"{', '.join(bad[:MOST_NAMES])}{more}; fix or remove them"
        )


def centre(array: np.ndarray, size: int) -> np.ndarray:
    """The middle [..., size, size] of an array [..., height, width]."""
    top, left = ((length - size) // 2 for length in array.shape[-2:])
    return array[..., top : top + size, left : left + size]
