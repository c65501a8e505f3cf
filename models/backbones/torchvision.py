"""Any classification network of torchvision, with the weights that torchvision provides or weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.backbones.pretrained_network import (
    LIBRARY,
    RANDOM,
    Inputs,
    PretrainedNetwork,
    load_features,
    refuse_unknown,
    side_of,
    weights_of,
)
from pyro_metabayes.storage.downloads import refuse_unless_allowed
from pyro_metabayes.storage.untrusted import reason_of
from pyro_metabayes.storage.weights import do_weights_follow
from pyro_metabayes.vision import torchvision


class Backbone(PretrainedNetwork):
    """Network of torchvision without its last linear layer, which maps images in [0, 1] to feature vectors.

    The features are scaled to unit length. The size, mean and standard deviation of the inputs are published with the
    weights.

    Args:
        input_shape: [channels, height, width] of one image.
        name: a name of `torchvision.models.list_models()`, with or without the name of its weights: resnet50,
            resnet50.IMAGENET1K_V1.
        weights: source of the weights.
            `library`: the weights of torchvision for this name, from the cache of torch or, if allowed, a download.
            `random`: random weights, so that a run pretrains the network.
            PATH: the weights in this file.
        size: side of the images that the network receives, in pixels; 0 for the published size.
        mirror: whether features are averaged over the image and its horizontal flip, in evaluation mode.

    Raises:
        UsageError: torchvision does not have this network, the weights do not exist, or there is no linear layer.
    """

    def __init__(
        self, input_shape: tuple[int, ...], name: str, weights: str = LIBRARY, size: int = 0, mirror: bool = False
    ) -> None:
        models = torchvision().models
        architecture, _, version = name.partition(".")
        refuse_unknown(architecture, models.list_models(module=models), "torchvision")
        known = models.get_model_weights(architecture)
        if version and version not in known.__members__:
            raise UsageError(
                f"expected the weights in backbone.name={architecture}.WEIGHTS to be one of "
                f"{', '.join(known.__members__)}, got '{version}'; change or omit the part after the dot"
            )
        published = known[version or "DEFAULT"]
        network: nn.Module = models.get_model(architecture, weights=None)
        last = _without_classifier(network, architecture)
        if weights != RANDOM and not do_weights_follow():
            file = str(_published_file(published, name)) if weights == LIBRARY else weights
            load_features(network, weights_of(file), [last], file)
        expected = published.transforms()
        inputs = Inputs(side_of(size, expected.crop_size[0]), tuple(expected.mean), tuple(expected.std))
        super().__init__(network, inputs, input_shape, f"backbone=torchvision backbone.name={name}", weights, mirror)


def _without_classifier(network: nn.Module, name: str) -> str:
    """Replace the last linear layer of a network by the identity, and return the name of this layer."""
    layers = [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(
            f"expected backbone.name to be a network with a linear layer, got {name}; set another backbone.name"
        )
    parent, _, child = layers[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return layers[-1]


def _published_file(published: Any, name: str) -> Path:
    """Return the file of published weights in the cache of torch; download the file if downloads are allowed."""
    file = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    if not file.is_file():
        refuse_unless_allowed(
            f"the weights of {name}",
            f"data=glyphs backbone=torchvision backbone.name={name}",
            f"set backbone.weights to a file (or to {RANDOM})",
        )
        try:
            torch.hub.load_state_dict_from_url(published.url, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"expected to download {published.url}, got: {reason_of(error)}; save the file as {file}"
            ) from None
    return file
