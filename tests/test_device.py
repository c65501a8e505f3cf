"""The device of a run, the memory of its bank, and random states that were saved on another device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_metabayes import UsageError
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.placement import fits, num_bytes, place_bank
from pyro_metabayes.device import as_double, device_of
from pyro_metabayes.seeding import drawing, noise_of, random_states, set_random_states
from tests.commands import on_features, ran
from tests.test_errors import error_of

CPU = torch.device("cpu")


class Kind:
    """A fake torch module of a kind of device that this machine does not have."""

    def __init__(self, count: int, free: int = 2**30) -> None:
        self.count, self.free = count, free

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free, 2**40


def with_kind(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: kind)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "xpu"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_kind(monkeypatch, Kind(0))
    kind = name.partition(":")[0]
    with pytest.raises(
        UsageError, match=f"expected a {kind} device on this machine for device={name}, found none; use device=cpu"
    ):
        device_of(name)


def test_a_second_device_where_there_is_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kind(monkeypatch, Kind(1))
    assert device_of("cuda") == torch.device("cuda") and device_of("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match=r"for device=cuda:1, found 1, counted from 0"):
        device_of("cuda:1")


@pytest.mark.parametrize("name", ["tpu", "meta", "gpu", "cuda:x", "CUDA", "", "cuda:-1", "cpu,cuda"])
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected device to be auto, cpu, cuda, cuda:1, mps or xpu, got '"):
        device_of(name)


def test_auto_asks_torch_for_its_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device_of("auto") == CPU
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert device_of("auto") == torch.device("xpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_command_says_so_in_one_line(features: Path) -> None:
    assert "expected a cuda device on this machine for device=cuda:1, found none" in error_of(
        *on_features(features), "device=cuda:1"
    )


# ---------------------------------------------------------------- where a bank lies


def small_bank() -> Bank:
    none = torch.arange(0)
    return Bank(torch.randn(8, 5), torch.tensor([4, 4]), {"train": torch.arange(2), "val": none, "test": none}, "ab")


@pytest.mark.parametrize(("place", "expected"), [("auto", "meta"), ("accelerator", "meta"), ("cpu", "cpu")])
def test_a_bank_lies_where_it_is_asked_to(place: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_kind(monkeypatch, Kind(1))
    assert place_bank(small_bank(), torch.device("meta"), place).inputs.device.type == expected


def test_a_bank_that_does_not_fit_stays_in_the_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, size = small_bank(), 8 * 5 * 4
    assert num_bytes(bank) == size
    for free, there in ((2 * size, True), (2 * size - 1, False)):
        with_kind(monkeypatch, Kind(1, free))
        assert fits(bank, torch.device("cuda")) == there
    assert place_bank(bank, torch.device("cuda")).inputs.device == CPU


def test_places_that_are_not_there_are_refused(features: Path) -> None:
    assert "expected data.device to be one of auto, cpu, accelerator, got 'disk'" in error_of(
        *on_features(features), "data.device=disk"
    )
    assert "expected an accelerator for data.device=accelerator, got device=cpu" in error_of(
        *on_features(features), "data.device=accelerator", "device=cpu"
    )


def test_a_simulator_has_no_other_places_either() -> None:
    assert "expected data.device to be one of auto, cpu, accelerator, got 'disk'" in error_of(
        "data=gaussian_features", "data.device=disk"
    )


def test_a_run_with_the_bank_on_the_host_is_the_same(features: Path, tmp_path: Path) -> None:
    runs: list[Any] = [
        ran("run", *on_features(features), f"hydra.run.dir={tmp_path / place}", f"data.device={place}", "guide=proto")
        for place in ("auto", "cpu")
    ]
    assert len(runs) == 2
    one, other = (torch.load(tmp_path / place / "checkpoint.pt", weights_only=True) for place in ("auto", "cpu"))
    for name, value in one["learner"]["weights"].items():
        assert torch.equal(value, other["learner"]["weights"][name])


# ---------------------------------------------------------------- random numbers and precision


def test_noise_leaves_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    with noise_of(7), drawing():
        once = torch.randn(4)
    assert torch.equal(torch.randn(4), expected)
    with noise_of(7), drawing():
        assert torch.equal(torch.randn(4), once)


def test_a_random_state_of_another_device_is_left_alone() -> None:
    """A checkpoint that was written on a GPU goes on without one."""
    assert random_states(CPU) == []
    torch.manual_seed(3)
    before = torch.get_rng_state()
    set_random_states(CPU, [torch.zeros(16, dtype=torch.uint8)])
    assert torch.equal(torch.get_rng_state(), before)


def test_double_precision_is_taken_where_there_is_any() -> None:
    assert as_double(torch.ones(2)).dtype == torch.float64
    assert as_double(torch.ones(2, device="meta")).device.type == "meta"


def test_the_help_explains_the_devices() -> None:
    help_text = " ".join(ran("run", "--help").out.split())
    assert "auto (the accelerator that torch finds, else the CPU), cpu, cuda, cuda:1" in help_text
    assert "data.device, the memory for the inputs: cpu" in help_text
