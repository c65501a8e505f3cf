"""Backbones from libraries of pretrained networks: the parts that timm and torchvision have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.backbone import num_features_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.backbones.embedding import embedding
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import DAMAGED, reason_of

LIBRARY, RANDOM = "library", "random"  # values of the setting backbone.weights other than file names
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys under which training checkpoints have weights
PREFIXES = ("module.", "_orig_mod.")  # prefixes of parameter names in distributed and in compiled modules
PIECE = 64  # largest number of images in the network at once, unless gradients are recorded


class Inputs(NamedTuple):
    """Input format of a network of square images.

    Attributes:
        size: side of the images in pixels.
        mean: mean of each channel, for images in [0, 1].
        std: standard deviation of each channel, for images in [0, 1].
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PretrainedNetwork(pyro_metabayes.Backbone):
    """Backbone that computes features of unit length with a given network.

    N images in [0, 1] give features [N, D]. Images are resized to the input size of the network (bilinear, antialiased)
    and standardised. The channel of grey images is repeated three times.

    Args:
        network: network that maps images [N, 3, size, size] to features [N, D].
        inputs: input format of the network.
        input_shape: [channels, height H, width W] of one image.
        label: name of the network in messages.
        weights: source of the weights: "library", "random" (a run then pretrains the network) or a path.
        mirror: whether features are averaged over the image and its horizontal flip, in evaluation mode.

    Raises:
        UsageError: the inputs are not images of 1 or 3 channels, or the network does not return features [N, D].
    """

    unit_range = True
    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, inputs: Inputs, input_shape: tuple[int, ...], label: str, weights: str, mirror: bool
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise UsageError(
                f"expected images [1 or 3 channels, height, width] for {label}, got inputs of shape "
                f"{list(input_shape)}; set backbone=identity for features"
            )
        self.network, self.size, self.mirror = network, inputs.size, mirror
        self.pretrained = weights != RANDOM
        for name, values in (("mean", inputs.mean), ("std", inputs.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.num_features = num_features_of(network, (3, self.size, self.size))

    def forward(self, x: Tensor) -> Tensor:
        pieces = [x] if torch.is_grad_enabled() else x.split(PIECE)
        return torch.cat([embedding(self._features, piece, self.mirror and not self.training) for piece in pieces])

    def _features(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.size, self.size):
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        features: Tensor = self.network((x.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return features


def side_of(size: int, own: int) -> int:
    """Return the side of the images that the network receives, in pixels.

    Args:
        size: the setting backbone.size; 0 for the default size.
        own: default size of the network.

    Raises:
        UsageError: size < 0.
    """
    if size < 0:
        raise UsageError(f"expected backbone.size >= 0, got {size}; 0 selects the default size of the network, {own}")
    return size or own


def refuse_unknown(name: str, known: Collection[str], library: str) -> None:
    """Raise a UsageError if the library has no network of this name; the message suggests similar names."""
    if name not in known:
        near = get_close_matches(name, known, 3, 0.4)
        guess = f"did you mean {', '.join(near)}? " if near else ""
        raise UsageError(
            f"expected backbone.name to be a network of {library}, got '{name}'; {guess}{library}'s list_models() "
            "returns the names"
        )


def weights_of(path: str | Path) -> dict[str, Tensor]:
    """Read {name: weight} from a file (.safetensors, or written by torch.save), without prefixes of wrapper modules.

    Raises:
        UsageError: the file does not exist, or has no weights that load without running code.
    """
    file = user_path(path)
    if not file.is_file():
        raise UsageError(
            f"expected a file of weights, got '{path}', which does not exist; set backbone.weights to a file, "
            f"{LIBRARY} or {RANDOM}"
        )
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        for key in WRAPPERS:
            state = state[key] if isinstance(state.get(key), Mapping) else state
        if not state or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("the file is empty, or has values that are not tensors")
    except Exception as error:  # safetensors has an exception of its own
        if not isinstance(error, DAMAGED) and type(error).__name__ != "SafetensorError":
            raise
        raise UsageError(
            f"expected weights in {path} that load without running code, got: {reason_of(error)}; save them with "
            "torch.save(network.state_dict(), FILE)"
        ) from None
    return {_without_prefixes(name): value for name, value in state.items()}


def _without_prefixes(name: str) -> str:
    for prefix in PREFIXES * 2:
        name = name.removeprefix(prefix)
    return name


def load_features(network: nn.Module, weights: Mapping[str, Tensor], last: Collection[str], where: object) -> None:
    """Load weights into a network without a classifier.

    Args:
        network: the network, whose classifier has been removed.
        weights: {name: weight}; weights of the classifier are ignored.
        last: names of the modules of the classifier.
        where: the file of the weights, for messages.

    Raises:
        UsageError: a weight of the network is missing, or a given weight has an unknown name or another shape.
    """
    own = network.state_dict()
    kept = {name: value for name, value in weights.items() if not name.startswith(tuple(f"{head}." for head in last))}
    missing = [name for name in own if name not in kept and not name.endswith("num_batches_tracked")]
    other = [name for name, value in kept.items() if name not in own or value.shape != own[name].shape]
    if missing or other:
        found = (
            f"without {len(missing)} of them ({missing[0]})"
            if missing
            else f"with {len(other)} of another name or shape ({other[0]})"
        )
        raise UsageError(
            f"expected the {len(own)} weights of this network in {where}, got a file {found}; fix backbone.name or "
            "backbone.weights"
        )
    network.load_state_dict(kept, strict=False)
