"""Undistorted images of the characters that all faces of the DejaVu fonts contain, without look-alikes.

Blank characters are left out, and so are characters that look like one with a smaller code point.

Two characters look alike if the correlation of their images exceeds the threshold LOOK_ALIKE. The images are first
blurred by one pixel and stretched half way to a square, so that o and O look alike. Each image is compared with the
most similar upright face of the other character, so that capitals and small capitals look alike. The correlations are
averaged over the faces.

Pairs above the threshold: A, Greek Alpha and Cyrillic A (0.99 and more), 7 and superscript 7 (0.96), B and Cyrillic
ve (0.95), o and O (0.94), e with acute, grave or dots (0.93), the two sizes of Cyrillic el (0.917). Pairs below it: a
down arrow and an up-down arrow (0.910), D without and with a bar (0.90), E and F (0.89), 8 and B (0.89), a without and
with a grave accent (0.54).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import PIL
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import conv2d

from pyro_metabayes.storage.cache import Arrays, cached_arrays

FACES = [
    f"DejaVu{family}.ttf"
    for family in (
        "Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique",
        "SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique",
        "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic",
    )
]  # fmt: skip
COMPARISON_FACES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf")
SHEET = 56  # side of the images of clean_sheet in pixels
INK = 40  # longer side of the ink in these images
EM = 64  # font size before the ink is cropped
LOOK_ALIKE = 0.915  # threshold of the correlation
RECIPE = 1  # part of the cache names; raise it whenever the images change


def clean_sheet() -> Arrays:
    """Return the images [G, 12, 56, 56] of G characters in 12 faces, and the code points [G] of the characters."""
    return cached_arrays("glyph-sheet", versions(), _sheet)


def versions() -> dict[str, object]:
    return {"matplotlib": matplotlib.__version__, "pillow": PIL.__version__, "recipe": RECIPE}


def _sheet() -> Arrays:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    common = set.intersection(*(set(FT2Font(str(folder / face)).get_charmap()) for face in FACES))
    code_points = np.array(sorted(common))
    fonts = [ImageFont.truetype(str(folder / face), EM, layout_engine=ImageFont.Layout.BASIC) for face in FACES]
    images = [[_ink(chr(code_point), font) for font in fonts] for code_point in code_points]
    visible = [index for index, faces in enumerate(images) if all(faces)]
    ink = [[image for image in images[index] if image] for index in visible]
    first = _first_of_look_alikes(_frame(ink, 28, 24, 0.5))
    return {
        "images": _frame([ink[index] for index in first], SHEET, INK, 1.0).numpy(),
        "code_points": code_points[visible][first],
    }


def _ink(character: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """Draw a character and crop it to its bounding box; None for a blank character."""
    canvas = Image.new("L", (3 * EM, 3 * EM))
    ImageDraw.Draw(canvas).text((EM, EM // 2), character, 255, font=font)
    box = canvas.getbbox()
    return canvas.crop(box) if box else None


def _frame(ink: list[list[Image.Image]], side: int, longest: int, power: float) -> Tensor:
    """Resize images of characters and centre them in square frames, uint8 [G, F, side, side].

    Args:
        ink: cropped images of G characters in F faces.
        side: side of the frames in pixels.
        longest: longer side of the ink in pixels.
        power: the ratio of width to height is raised to this power; 1: true proportions, 0: a square.
    """
    frames = np.zeros((len(ink), len(FACES), side, side), np.uint8)
    for index, faces in enumerate(ink):
        for face, image in enumerate(faces):
            width, height = (max(1, round(longest * (part / max(image.size)) ** power)) for part in image.size)
            left, top = (side - width) // 2, (side - height) // 2
            small = image.resize((width, height), Image.Resampling.BOX)
            frames[index, face, top : top + height, left : left + width] = np.asarray(small)
    return torch.from_numpy(frames)


def _first_of_look_alikes(images: Tensor) -> list[int]:
    """Return the indices of the characters that are kept: those that look like no character kept before.

    Args:
        images: G characters in F faces, H x H pixels each [G, F, H, H].
    """
    faces = [_standardise(images[:, FACES.index(name)]) for name in COMPARISON_FACES]
    nearest = torch.zeros(len(images), len(images))
    for face in faces:
        best = torch.full_like(nearest, -1.0)
        for other in faces:
            torch.maximum(best, face @ other.T, out=best)
        nearest += best / len(faces)
    correlation = torch.maximum(nearest, nearest.T)
    alike, first = (correlation > LOOK_ALIKE).numpy(), np.zeros(len(images), bool)
    for index in range(len(images)):
        first[index] = not alike[index, first].any()
    return np.flatnonzero(first).tolist()


def _standardise(images: Tensor) -> Tensor:
    """Blur N images [N, H, H] of H x H pixels, and scale them to mean 0 and length 1: [N, H * H].

    Inner products of the results are correlations.
    """
    points = _blur(images.float()).flatten(1)
    points = points - points.mean(1, keepdim=True)
    return points / points.norm(dim=1, keepdim=True)


def _blur(images: Tensor) -> Tensor:
    """Blur N images [N, H, H] of H x H pixels by a Gaussian with a standard deviation of one pixel."""
    kernel = torch.exp(-0.5 * torch.arange(-4.0, 5.0) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, 9)
    rows = conv2d(images.unsqueeze(1), kernel, padding=(0, 4))
    return conv2d(rows, kernel.mT, padding=(4, 0)).squeeze(1)
