"""Conversion of exported programs to ONNX files; the only module that needs the extra `onnx`."""

from __future__ import annotations

import re
import warnings
from importlib.util import find_spec

import torch
from torch.export import ExportedProgram

from pyro_metabayes.errors import UsageError

PACKAGES = ("onnx", "onnxscript")  # that torch.onnx.export imports
INPUTS = ["support_x", "support_y", "query_x"]
OUTPUTS = {2: ["probabilities", "spread"], 4: ["mean", "sd", "lower", "upper"]}  # names, by the number of outputs


def onnx_bytes(program: ExportedProgram) -> bytes:
    """Convert a program to the content of an ONNX file. INPUTS and OUTPUTS name its inputs and outputs.

    Args:
        program: a program from `exported_program`.

    Raises:
        UsageError: ONNX lacks an operator that the program needs.
    """
    outputs = OUTPUTS[len(program.graph_signature.user_outputs)]
    try:
        with warnings.catch_warnings(action="ignore"):
            converted = torch.onnx.export(program, dynamo=True, input_names=INPUTS, output_names=outputs, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        step = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", f"{error} {error.__cause__}")
        reason = f"one that needs {step[1]}" if step else f"the error {type(error).__name__}"
        raise UsageError(
            f"expected a program with operators of ONNX, got {reason}; export to a file NAME.pt2"
        ) from error
    assert converted is not None
    return converted.model_proto.SerializeToString()


def check_packages() -> None:
    """Raise a UsageError if a package of the extra `onnx` is not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(
            f"expected the packages of the extra `onnx`, not found: {', '.join(missing)}; run: "
            "pip install 'pyro_metabayes[onnx]'"
        )
