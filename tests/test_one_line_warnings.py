"""Commands print warnings of this package in one line, and no warnings of torch about torch.jit."""

from __future__ import annotations

import warnings

import pytest

from pyro_metabayes.errors import UnfamiliarTasks
from pyro_metabayes.experiments.cli.one_line_warnings import one_line_warnings

OF_TORCH = "`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`."


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_warnings_about_torch_jit_are_left_out(category: type[Warning], capsys: pytest.CaptureFixture[str]) -> None:
    """Of torch itself and of Pyro: nobody who runs a command can do anything about them. Others stay."""
    with pytest.warns(category) as caught, one_line_warnings():
        warnings.warn(OF_TORCH, category, stacklevel=1)
        warnings.warn("a setting of yours is deprecated", category, stacklevel=1)
        warnings.warn("other tasks", UnfamiliarTasks, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["a setting of yours is deprecated"]
    assert capsys.readouterr().err == "warning: other tasks\n"
