"""The one door to torchvision, which is imported late and only where something of it is used."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

# What torchvision registers shapes for when it is imported, but only its compiled part defines.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a schema lives as long as its handle


def torchvision() -> ModuleType:
    """torchvision, also where its wheel is a CUDA build beside a CPU-only torch.

    There the compiled part does not load and the import dies for want of two operators; with their
    schemas defined, all that is not detection works.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or _libraries:
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half that was imported before it died
    _libraries.append(torch.library.Library("torchvision", "DEF"))
    for schema in SCHEMAS:
        _libraries[0].define(schema)
    return importlib.import_module("torchvision")
