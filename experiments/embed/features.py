"""Features of image files, computed in pieces. Finished pieces are kept in the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_metabayes.data.sources.images import READING, Colour, all_pixels
from pyro_metabayes.errors import Interrupted, UsageError
from pyro_metabayes.models.backbones.pretrained_network import PretrainedNetwork
from pyro_metabayes.prediction.images import as_float
from pyro_metabayes.pretraining.restored_features import hash_of_weights
from pyro_metabayes.storage.cache import Arrays, cached_arrays
from pyro_metabayes.training.progress import progress
from pyro_metabayes.validation.duplicates import row_keys

PIECE = 64  # number of images that pass through the network together
SECONDS = 5.0  # between two lines of progress if there is no terminal


def embedded(
    files: Sequence[Path], network: PretrainedNetwork, specification: Mapping[str, Any], background: Colour
) -> Arrays:
    """Compute the features of images with a pretrained network.

    Args:
        files: the images.
        network: the network, on its device.
        specification: the settings of the network, on which the cached features depend.
        background: colour behind transparent pixels.

    Returns:
        The arrays `features` [images, features] and `keys` [images], which are hashes of the pixels.

    Raises:
        UsageError: images cannot be read; the message names them.
        Interrupted: after SIGINT; finished pieces are kept.
    """
    shape = sorted((name, value) for name, value in specification.items() if name != "weights")
    settings = {"network": shape, "weights": hash_of_weights(network), "reading": READING, "background": background}
    parts: list[Arrays] = []
    with progress("embed", "images", len(files), interval=SECONDS) as shown:
        try:
            for start in range(0, len(files), PIECE):
                piece = files[start : start + PIECE]
                key = settings | {"files": [(str(path.absolute()), *_times(path)) for path in piece]}
                parts.append(cached_arrays("embedding", key, partial(_piece, piece, network, background)))
                shown.update(len(piece))
        except UsageError:
            # Raise an error that names all unreadable images.
            deque(all_pixels(files[start:], network.size, 3, background), maxlen=0)
            raise
        except KeyboardInterrupt:
            done = PIECE * len(parts)
            raise Interrupted(
                f"interrupted; features of {done} of {len(files)} images are kept: the same command continues"
            ) from None
    return {name: np.concatenate([part[name] for part in parts]) for name in ("features", "keys")}


def _times(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@torch.no_grad()
def _piece(files: Sequence[Path], network: PretrainedNetwork, background: Colour) -> Arrays:
    """Compute the features of a few image files, and hashes of their pixels."""
    pixels = np.stack(list(all_pixels(files, network.size, 3, background)))
    features = network(as_float(torch.from_numpy(pixels).to(network.mean.device)))
    return {"features": features.float().cpu().numpy(), "keys": row_keys(pixels.reshape(len(pixels), -1))}
