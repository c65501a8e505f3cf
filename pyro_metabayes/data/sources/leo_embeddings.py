"""The embeddings published with LEO (Rusu et al. 2019): WRN-28-10 features, 640 numbers for each image.

Unpack the archive http://storage.googleapis.com/leo-embeddings/embeddings.zip in METABAYES_DATA/leo_embeddings. It has
the files

    embeddings/{miniImageNet,tieredImageNet}/{center,multiview}/{train,val,test}_embeddings.pkl

Each file has the arrays embeddings [N, 640] and keys [N]. A key is "<number>-<class>-<class>_<image>". Only
miniImageNet has multiview.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import data_folder
from pyro_metabayes.storage.unpickle import flat_array, load_arrays, text_keys

BENCHMARKS = ("miniImageNet", "tieredImageNet")
CROPS = ("center", "multiview")
HINT = "unpack http://storage.googleapis.com/leo-embeddings/embeddings.zip in it"


def load(benchmark: str = "miniImageNet", crop: str = "center") -> Bank:
    """Load the published features of M images, float32 [M, 640], converted once and kept in the cache.

    The features are not scaled. Use model=leo or backbone=identity, which scale them to unit length.

    Args:
        benchmark: miniImageNet (64 / 16 / 20 classes of 600 images) or tieredImageNet (351 / 97 / 160 classes).
        crop: center, or multiview (features of several crops of an image; only miniImageNet).
    """
    if benchmark not in BENCHMARKS or crop not in CROPS:
        raise UsageError(
            f"expected data.benchmark to be one of {', '.join(BENCHMARKS)} and data.crop one of {', '.join(CROPS)}, "
            f"got data.benchmark={benchmark} and data.crop={crop}"
        )
    folder = data_folder("leo_embeddings", HINT) / "embeddings" / benchmark / crop
    parts = {split: _part(folder / f"{split}_embeddings.pkl") for split in SPLITS}
    return bank_of("leo_embeddings", parts, {"benchmark": benchmark, "crop": crop})


def _part(path: Path) -> Part:
    if not path.is_file():
        raise UsageError(f"expected a file at {path}, got none; {HINT}")
    return Part([path], lambda: _rows(path))


def _rows(path: Path) -> Rows:
    content = text_keys(load_arrays(path), str(path), "embeddings", "keys")
    embeddings, keys = flat_array(content["embeddings"], str(path)), flat_array(content["keys"], str(path)).tolist()
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or len(embeddings) != np.size(keys):
        raise UsageError(
            f"expected embeddings [N, D] of floats and one key per row in {path}, got {embeddings.dtype} of shape "
            f"{list(embeddings.shape)} and {np.size(keys)} keys; unpack the archive again"
        )
    if bad := int((~np.isfinite(embeddings)).any(1).sum()):
        raise UsageError(
            f"expected finite embeddings in {path}, got NaN or infinity in {bad} rows; unpack the archive again"
        )
    names = [_class_of(key, path) for key in keys]
    return Rows.of_labels(names, lambda row: embeddings[row].astype(np.float32))


def _class_of(key: Any, path: Path) -> str:
    text = key.decode("latin1") if isinstance(key, bytes) else str(key)
    parts = text.split("-")
    if len(parts) != 3 or not parts[2].startswith(f"{parts[1]}_"):
        raise UsageError(
            f"expected keys <number>-<class>-<class>_<image> in {path}, got '{text}'; unpack the archive again"
        )
    return parts[1]
