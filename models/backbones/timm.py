"""Any image network of timm (PyTorch Image Models), with the weights that timm provides or weights from a file."""

from __future__ import annotations

import importlib
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
from pyro_metabayes.vision import timm

FILES = ("model.safetensors", "pytorch_model.bin")  # names of weight files in repositories of the Hugging Face hub


class Backbone(PretrainedNetwork):
    """Network of timm without its classifier, which maps images in [0, 1] to feature vectors of unit length.

    The configuration of the network in timm gives the size, mean and standard deviation of the inputs.

    Args:
        input_shape: [channels, height, width] of one image.
        name: a name of `timm.list_models()`, with or without the tag of its weights: resnet18, resnet18.a1_in1k.
        weights: source of the weights.
            `library`: the weights of timm for this name, from a local cache or, if allowed, a download.
            `random`: random weights, so that a run pretrains the network.
            PATH: the weights in this file.
        size: side of the images that the network receives, in pixels; 0 for the size in the configuration.
        mirror: whether features are averaged over the image and its horizontal flip, in evaluation mode.

    Raises:
        UsageError: timm is not installed or does not have this network, or the weights do not exist.
    """

    def __init__(
        self, input_shape: tuple[int, ...], name: str, weights: str = LIBRARY, size: int = 0, mirror: bool = False
    ) -> None:
        library = timm()
        refuse_unknown(name.partition(".")[0], library.list_models(), "timm")
        network = _created(library, name)
        expected = library.data.resolve_model_data_config(network)
        inputs = Inputs(side_of(size, expected["input_size"][-1]), expected["mean"], expected["std"])
        if weights == LIBRARY and not do_weights_follow():
            network = _with_library_weights(library, network, name)
        elif weights != RANDOM and not do_weights_follow():
            _load_file(network, weights)
        super().__init__(network, inputs, input_shape, f"backbone=timm backbone.name={name}", weights, mirror)


def _created(library: Any, name: str, **settings: Any) -> nn.Module:
    """Construct the network without its classifier; an exception in timm becomes a UsageError."""
    try:
        network: nn.Module = library.create_model(name, num_classes=0, **settings)
        return network
    except Exception as error:  # raised by timm, the hub, the network connection or torch
        raise UsageError(
            f"expected timm to build backbone.name={name}, got: {reason_of(error)}; set another name, or "
            "backbone.weights=FILE"
        ) from None


def _with_library_weights(library: Any, network: nn.Module, name: str) -> nn.Module:
    """Construct the network with timm's weights, from the cache or, if downloads are allowed, from the internet."""
    settings = _configuration(network)
    if not settings.get("hf_hub_id") and not settings.get("url"):
        raise UsageError(f"expected weights of {name} in timm, got none; set backbone.weights=FILE or {RANDOM}")
    file = _cached(settings)
    if file is None:
        refuse_unless_allowed(
            f"the weights of {name}",
            f"data=glyphs backbone=timm backbone.name={name}",
            f"set backbone.weights to a file (or to {RANDOM})",
        )
        return _created(library, name, pretrained=True)
    return _created(library, name, pretrained=True, pretrained_cfg_overlay={"file": str(file)})


def _cached(settings: Any) -> Path | None:
    """Return the file of the weights in the cache of the hub or of torch; None if they have not been downloaded."""
    if repository := settings.get("hf_hub_id"):
        hub = importlib.import_module("huggingface_hub")
        names = [settings["hf_hub_filename"]] if settings.get("hf_hub_filename") else FILES
        found = [hub.try_to_load_from_cache(repository, name) for name in names]
        return next((Path(path) for path in found if isinstance(path, str)), None)
    file = Path(torch.hub.get_dir(), "checkpoints", settings["url"].rpartition("/")[2])
    return file if file.is_file() else None


def _load_file(network: nn.Module, path: str) -> None:
    """Load weights from a file into the network; timm converts files in the format of the original publication."""
    weights, settings = weights_of(path), _configuration(network)
    convert = getattr(importlib.import_module(type(network).__module__), "checkpoint_filter_fn", None)
    if convert is not None:
        weights = convert(weights, network)
    last = settings["classifier"] or ()
    load_features(network, weights, [last] if isinstance(last, str) else last, path)


def _configuration(network: nn.Module) -> Any:
    """Return timm's configuration of a network, a mapping.

    The configuration contains the source of the weights and the name of the classifier module.
    """
    return network.pretrained_cfg
