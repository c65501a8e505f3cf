"""Reads images of any size and format as uint8 arrays [channels, size, size]."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.untrusted import DAMAGED, reason_of

EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")  # Pillow would clip others
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
MODES = {1: "L", 3: "RGB"}
MOST_NAMES = 3  # largest number of unreadable images that a message names
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # only these: for EPS, Pillow would run Ghostscript
MOST_PIXELS = 50_000_000  # largest number of pixels of an image before it is resized
READING = 2  # part of the cache key of converted images; raise it whenever images are read differently

Colour = tuple[int, ...]  # red, green, blue
WHITE: Colour = (255, 255, 255)


def colour_of(name: str) -> Colour:
    """Return the red, green and blue values of the colour `name` (data.background)."""
    try:
        colour = ImageColor.getrgb(name)
        if len(colour) == 3:
            return colour
    except ValueError:
        pass
    raise UsageError(f"expected data.background to be an opaque colour such as white or #ffffff, got '{name}'")


def pixels(source: Path | bytes, size: int | None, channels: int = 3, background: Colour = WHITE) -> np.ndarray:
    """Read an image file, or its content, as uint8 [channels, size, size].

    The image is rotated according to the EXIF data of the file. Transparent pixels get the background colour. 16 bits
    per channel are scaled to 8. If the file has several frames, the first is used.

    Args:
        source: path or content of the file.
        size: side of the square to which the image is resized (Lanczos); None: the size is kept.
        channels: 3 (colour) or 1 (grey).
        background: colour behind transparent pixels.

    Raises:
        An exception in `untrusted.DAMAGED`: the content is not an image that can be read.
    """
    with _open(source) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"the image has too many pixels, {image.width} x {image.height}")
        _refuse_unscaled_transparency(image)
        image.load()
        copy = _opaque(_upright(_eight_bit(image)), background).convert(MODES[channels])
    if size is not None and copy.size != (size, size):
        copy = copy.resize((size, size), Image.Resampling.LANCZOS)
    array = np.asarray(copy)
    return np.ascontiguousarray(array.reshape(*array.shape[:2], channels).transpose(2, 0, 1))


def _refuse_unscaled_transparency(image: ImageFile.ImageFile) -> None:
    """Raise a ValueError for a PNG file with a transparent colour and other than 8 bits per channel.

    Pillow scales the pixels to 8 bits, but not the transparent colour. The wrong pixels would become transparent.
    """
    of_bits = any(";" in str(tile.args) for tile in image.tile) and image.mode != "P"
    if image.format == "PNG" and "transparency" in image.info and of_bits:
        raise ValueError("the image has a transparent colour without 8 bits per channel; save it with an alpha channel")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits per channel: 16-bit values are scaled, so that 65535 becomes 255."""
    if image.mode in EIGHT_BIT:
        return image
    # In these two formats Pillow opens 16-bit images as 32-bit. In others the range of 32-bit values is unknown.
    sixteen = image.mode in SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not sixteen:
        raise ValueError(f"the image has the mode {image.mode}, not 8 bits per channel")
    values = np.rint(np.asarray(image).astype(np.float64) / 257).clip(0, 255)
    scaled = Image.fromarray(values.astype(np.uint8))
    scaled.info = dict(image.info)
    return scaled


def _upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror an image according to its EXIF data. If these are damaged, the image stays unchanged."""
    with suppress(*DAMAGED), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(image)
    return image


def _opaque(image: Image.Image, background: Colour) -> Image.Image:
    """Place an image on a background colour, if any of its pixels may be transparent."""
    if not image.has_transparency_data:
        return image
    behind = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(behind, image.convert("RGBA"))


def _open(source: Path | bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("the file is not an image") from None
    except Image.DecompressionBombError:
        raise ValueError("the image has too many pixels") from None


def all_pixels(paths: Sequence[Path], size: int, channels: int = 3, background: Colour = WHITE) -> Iterator[np.ndarray]:
    """Yield the pixels of each readable file. At the end, a UsageError names the unreadable files, if any."""
    bad: list[str] = []
    for path in paths:
        try:
            yield pixels(path, size, channels, background)
        except DAMAGED as error:
            bad.append(f"{path} ({reason_of(error)})")
    if bad:
        more = f" and {len(bad) - MOST_NAMES} more" if len(bad) > MOST_NAMES else ""
        raise UsageError(
            f"expected readable images, got {len(bad)} of {len(paths)} that cannot be read: "
            f"{', '.join(bad[:MOST_NAMES])}{more}; fix or remove these files"
        )


def centre(array: np.ndarray, size: int) -> np.ndarray:
    """Return the centre crop [..., size, size] of an array [..., height, width]."""
    top, left = ((length - size) // 2 for length in array.shape[-2:])
    return array[..., top : top + size, left : left + size]
