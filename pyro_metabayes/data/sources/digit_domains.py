"""Handwritten digits of six domains: three data sets, and three domains made from MNIST.

    mnist     60,000 + 10,000 digits for training and test (LeCun et al.), 28 x 28
    usps      7,291 + 2,007 digits of envelopes (Hull 1994), 16 x 16
    uci       1,797 digits (Alpaydin and Kaynak), 8 x 8, from scikit-learn
    tilted    MNIST rotated by 45 degrees, counter-clockwise
    inverted  MNIST with dark digits on white
    blended   |patch - digit| with patches of photographs (BSDS500), in colour: made like MNIST-M (Ganin et al. 2016),
              but not the published images of MNIST-M

The files are read from METABAYES_DATA/digits. All images are resized to one size and have three channels. No digit of
MNIST is in two domains or in two splits. The photographs behind test images are not used for training or validation.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pyro_metabayes.data.bank import SPLITS
from pyro_metabayes.data.domains import DomainBank, domain_bank, domain_rows, leave_one_out
from pyro_metabayes.data.sources.images import pixels
from pyro_metabayes.data.sources.listing import is_hidden
from pyro_metabayes.data.sources.parts import Part, Rows
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import data_file
from pyro_metabayes.storage.untrusted import DAMAGED, check_archive, read_npz, reason_of

FILES = {"mnist": "mnist_28.npz", "usps": "usps_16.npz", "uci": "sklearn_digits_8.npz"}
PHOTOGRAPHS = "bsds500_train_jpg.zip"
OF_MNIST = ("mnist", "tilted", "inverted", "blended")  # they use disjoint sets of digits
DOMAINS = ("mnist", "usps", "uci", "tilted", "inverted", "blended")
HINT = "put the digits there (docs/domain-adaptation.md names the files)"
TILT = 45.0  # degrees
UCI_TEST = 500  # number of test digits; the 1,797 digits have no official test set
TEST_PHOTOGRAPHS = 0.25  # share of the photographs
CLASSES = tuple(map(str, range(10)))
Images = list[np.ndarray]


def load(
    target: str = "usps",
    validation: str = "",
    size: int = 32,
    train_images: int = 2000,
    val_images: int = 300,
    test_images: int = 1000,
    seed: int = 0,
    train_shift: float = 0.0,
) -> DomainBank:
    """Load M images, uint8 [M, 3, size, size], of the source domains (train, val) and of the target domain (test).

    Args:
        target: the domain that is left out of training.
        validation: a source that is used for validation only; "": validation uses validation images of every source.
        size: height and width of the images in pixels.
        train_images: largest number of training images of a domain.
        val_images: largest number of validation images of a domain.
        test_images: largest number of test images of a domain.
        seed: seed of the choice of images, photographs and patches.
        train_shift: largest random shift of the features of a training task (domains.DomainBank).
    """
    if size < 1 or min(train_images, val_images, test_images) < 1:
        raise UsageError(
            "expected data.size, train_images, val_images and test_images >= 1, got "
            f"{size=}, {train_images=}, {val_images=} and {test_images=}; change data.*"
        )
    domains = leave_one_out(DOMAINS, target, validation)
    files = {name: data_file(f"digits/{file}", HINT) for name, file in (*FILES.items(), ("photographs", PHOTOGRAPHS))}
    counts = {"train": train_images, "val": val_images, "test": test_images}
    digits = Digits(files, size, counts, seed)
    parts = {split: Part(list(files.values()), partial(digits.rows, split, domains[split])) for split in SPLITS}
    settings = {"domains": domains, "size": size, "counts": counts, "seed": seed}
    return domain_bank("digit_domains", parts, settings, len(CLASSES), train_shift)


class Digits:
    """Images of handwritten digits of any domain and split, constructed from the files."""

    def __init__(self, files: Mapping[str, Path], size: int, counts: Mapping[str, int], seed: int) -> None:
        self.files, self.size, self.counts, self.seed = files, size, counts, seed

    def rows(self, split: str, domains: list[str]) -> Rows:
        return domain_rows(split, {name: self.of_classes(name, split) for name in domains}, iter)

    def of_classes(self, domain: str, split: str) -> dict[str, Images]:
        """Construct the images of each class of a domain in a split."""
        noise = np.random.default_rng([self.seed, DOMAINS.index(domain), SPLITS.index(split)])
        drawings, labels = self.drawings(domain, split)
        render = self.renderer(domain, split, noise)
        images = [as_square(render(drawing), self.size) for drawing in drawings]
        return {name: [images[row] for row in np.flatnonzero(labels == digit)] for digit, name in enumerate(CLASSES)}

    def drawings(self, domain: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the N digits of a domain in a split before rendering: uint8 [N, height, width], and their classes [N].

        Ink is 255 on background 0.
        """
        source = "mnist" if domain in OF_MNIST else domain
        x, y = self.pool(source, "test" if split == "test" else "train")
        counts = self.counts
        number = counts["test"] if split == "test" else counts["train"] + counts["val"]
        first = number * OF_MNIST.index(domain) if domain in OF_MNIST else 0
        order = np.random.default_rng(self.seed).permutation(len(x))[first : first + number]
        if split != "test":
            order = order[: counts["val"]] if split == "val" else order[counts["val"] :]
        return x[order], y[order]

    def pool(self, source: str, half: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the digits of one part of a file, and their classes.

        Args:
            source: the file: "mnist", "usps" or "uci".
            half: "train": the part for training and validation; "test": the part for the test.
        """
        arrays = arrays_of(self.files[source])
        if source != "uci":
            return arrays[f"{half}_x"], arrays[f"{half}_y"]
        x, y = (arrays["x"].astype(np.float32) * (255 / 16)).astype(np.uint8), arrays["y"]
        order = np.random.default_rng(self.seed).permutation(len(x))
        order = order[:UCI_TEST] if half == "test" else order[UCI_TEST:]
        return x[order], y[order]

    def renderer(self, domain: str, split: str, noise: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function that maps a digit [height, width] to an image of the domain."""
        if domain == "tilted":
            return lambda x: np.asarray(Image.fromarray(x).rotate(TILT, Image.Resampling.BICUBIC))
        if domain == "inverted":
            return lambda x: 255 - x
        if domain == "blended":
            return partial(blend, photographs=self.photographs(split), noise=noise)
        return lambda x: x

    def photographs(self, split: str) -> Images:
        """Read the photographs [3, height, width] for a split. Photographs of the test are not used in other splits."""
        path = self.files["photographs"]
        try:
            check_archive(path)
            with zipfile.ZipFile(path) as archive:
                names = sorted(filter(_is_photograph, archive.namelist()))
                most = round(len(names) * (1 - TEST_PHOTOGRAPHS))
                return [
                    pixels(archive.read(name), None) for name in (names[most:] if split == "test" else names[:most])
                ]
        except DAMAGED as error:
            reason = reason_of(error)
            raise UsageError(
                f"expected a zip archive of photographs at {path}, got: {reason}; copy the file again"
            ) from None


def _is_photograph(name: str) -> bool:
    """Return whether a name in the archive belongs to a photograph, not to a file that an operating system added."""
    return name.endswith(".jpg") and not any(map(is_hidden, name.split("/")))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file of digits."""
    try:
        return read_npz(path)
    except DAMAGED as error:
        raise UsageError(
            f"expected arrays of digits in {path}, got {type(error).__name__}; copy the file again"
        ) from None


def blend(drawing: np.ndarray, photographs: Images, noise: np.random.Generator) -> np.ndarray:
    """Return |patch - drawing| [height, width, 3], where patch is a random part of a random photograph."""
    photograph = photographs[noise.integers(len(photographs))]
    top, left = (
        noise.integers(length - side + 1) for length, side in zip(photograph.shape[1:], drawing.shape, strict=True)
    )
    patch = photograph[:, top : top + drawing.shape[0], left : left + drawing.shape[1]].astype(np.int16)
    return np.abs(patch - drawing).astype(np.uint8).transpose(1, 2, 0)


def as_square(image: np.ndarray, size: int) -> np.ndarray:
    """Convert an image [height, width] or [height, width, 3] to uint8 [3, size, size]."""
    square = Image.fromarray(image).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
