"""Imports of torchvision and timm when they are first used. No other file imports them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from pyro_metabayes.errors import UsageError

# Operators whose shapes torchvision registers at import, but which only its compiled part defines.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a schema lives as long as its handle


def torchvision() -> ModuleType:
    """Import and return torchvision, even a CUDA build next to a CPU build of torch.

    The compiled part of such a build does not load, so that two operators for object detection are missing. This
    function defines their schemas. Everything except object detection then works.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or _libraries:
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # modules that were imported before the failure
    _libraries.append(torch.library.Library("torchvision", "DEF"))
    for schema in SCHEMAS:
        _libraries[0].define(schema)
    return importlib.import_module("torchvision")


def timm() -> ModuleType:
    """Import and return timm, which imports torchvision.

    Raises:
        UsageError: timm is not installed.
    """
    torchvision()
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UsageError(
            "expected the package timm for backbone=timm, not found; run: pip install 'pyro_metabayes[timm]', or set "
            "backbone=torchvision"
        ) from None
