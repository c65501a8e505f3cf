"""Do the benchmarks compare what they say they compare?"""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Tensor

from benchmarks import maml_step


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_three_meta_steps_are_the_same(num_steps: int) -> None:
    """From the same initialisation, the three leave the same gradients."""
    episodes = maml_step.tasks()
    gradients = []
    for make in (maml_step.batched, maml_step.looped, maml_step.through_pyro):
        step, parameters = make(episodes, num_steps)
        with torch.no_grad():
            _fill(parameters, _weights())
        step()
        gradients.append(torch.cat([its.grad.flatten() for its in parameters if its.grad is not None]))
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=1e-3, atol=1e-3)


def _weights() -> Tensor:
    """1761 numbers in the network's order: matrix and bias, layer by layer."""
    return 0.2 * torch.randn(1761, generator=torch.Generator().manual_seed(0))


def _fill(parameters: list[Tensor], weights: Tensor) -> None:
    for parameter, values in zip(parameters, weights.split([its.numel() for its in parameters]), strict=True):
        parameter.copy_(values.view(parameter.shape))


def test_the_benchmark_prints_its_ratios(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maml_step, "IN_A_ROW", 1)
    monkeypatch.setattr(maml_step, "WARM_UP", 1)
    maml_step.main(["--rounds", "1"])
    pyro.enable_validation(True)
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == ["1", " ", " ", "5", " ", " "]
    assert all("times the raw step" in line for line in lines if line[0] == " ")
