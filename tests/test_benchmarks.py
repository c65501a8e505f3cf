"""Do the benchmarks compare what they say they compare?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import gradient
from benchmarks.__main__ import CASES, LONG, main
from benchmarks.counted import in_use
from benchmarks.measure import interleaved, ratios
from benchmarks.setting import learner, tasks
from benchmarks.sib_raw import RawSib
from benchmarks.soak import slope
from benchmarks.versa_raw import RawEncoder
from pyro_metabayes import MetaLearner


def _gradients(parameters: list[Tensor]) -> Tensor:
    return torch.cat([its.grad.flatten() for its in parameters if its.grad is not None])


def test_the_three_steps_of_sib_have_the_same_loss_and_gradients() -> None:
    """Batched raw PyTorch, the learner, and the reference way task by task."""
    torch.set_default_dtype(torch.float64)
    data, ours, raw = tasks(3), learner("sib", "Gaussian", of_guide={"posterior": "delta"}), RawSib(640, 5, 3)
    raw.net.load_state_dict(ours.guide.xi.state_dict(), strict=False)
    one_by_one = RawSib(640, 5, 3)
    one_by_one.load_state_dict(raw.state_dict())
    expected = raw.loss(data.support, data.query, data.labels)
    each = zip(data.support, data.query, data.labels, strict=True)
    reference = torch.stack([one_by_one.one_loss(*task) for task in each]).mean()
    loss = ours(data.episodes)["loss"]
    for value in (expected, reference, loss):
        value.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(reference, expected)
    named = dict(raw.named_parameters())
    matching = {
        "guide.initial_scale": "start",
        "model.head.scale": "scale",
        "model.prior_over_weights.loc": "loc",
        "model.prior_over_weights.log_scale": "log_scale",
        **{f"guide.xi.{name}": f"net.{name}" for name, _ in ours.guide.xi.named_parameters()},
    }
    others = dict(one_by_one.named_parameters())
    for name, theirs in matching.items():
        got = ours.get_parameter(name).grad
        torch.testing.assert_close(got, named[theirs].grad, rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(others[theirs].grad, named[theirs].grad, rtol=1e-9, atol=1e-9, msg=name)


def _with_the_weights_of(ours: MetaLearner) -> RawEncoder:
    encoder: nn.Module = ours.model.prior_over_weights.encoder
    raw = RawEncoder(640)
    for theirs, name in ((raw.loc, "loc_net"), (raw.log_scale, "log_scale_net")):
        network = encoder.get_submodule(name)
        nn.init.normal_(network[-1].weight, std=0.01)
        theirs.load_state_dict(network.state_dict())
    return raw


@pytest.mark.parametrize("samples", [1, 10])
@pytest.mark.parametrize("guide", ["mc", "savi"])
def test_the_two_steps_of_mc_and_savi_have_the_same_loss_and_gradients(guide: str, samples: int) -> None:
    """Of one task: there the draws, which the raw step lays out by task, come in the same order."""
    torch.set_default_dtype(torch.float64)
    objective, kl = ("monte_carlo.MonteCarlo", {}) if guide == "mc" else ("elbo.Elbo", {"kl": "analytic"})
    data = tasks(1)
    ours = learner(guide, "Conditional", objective, of_objective=kl, particles=samples)
    raw = _with_the_weights_of(ours)
    torch.manual_seed(1)
    loss = ours(data.episodes)["loss"]
    torch.manual_seed(1)
    expected = (raw.mc_loss if guide == "mc" else raw.savi_loss)(data.support, data.query, data.labels, samples)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    encoder = ours.model.prior_over_weights.encoder
    networks = (encoder.loc_net, encoder.log_scale_net), (raw.loc, raw.log_scale)
    got, theirs = (_gradients([its for network in pair for its in network.parameters()]) for pair in networks)
    torch.testing.assert_close(got, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_three_meta_steps_of_maml_are_the_same(num_steps: int) -> None:
    """From the same initialisation, the three leave the same gradients."""
    episodes = gradient.tasks()
    gradients = []
    for make in (gradient.batched, gradient.looped, gradient.through_pyro):
        step, parameters = make(episodes, num_steps)
        with torch.no_grad():
            _fill(parameters, _weights())
        step()
        gradients.append(_gradients(parameters))
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=1e-3, atol=1e-3)


def _weights() -> Tensor:
    """1761 numbers in the network's order: matrix and bias, layer by layer."""
    return 0.2 * torch.randn(1761, generator=torch.Generator().manual_seed(0))


def _fill(parameters: list[Tensor], weights: Tensor) -> None:
    for parameter, values in zip(parameters, weights.split([its.numel() for its in parameters]), strict=True):
        parameter.copy_(values.view(parameter.shape))


def test_ratios_are_of_neighbours_in_time() -> None:
    calls: list[str] = []
    seconds = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=4, in_a_row=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4}
    assert "".join(calls[:8]) == "aabbbbaa"  # the order rotates
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b").median == 2.5


def test_the_command_prints_a_table_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sib", "memory", "--toy", "--out", str(tmp_path / "table.json")])
    printed = capsys.readouterr().out
    assert "learner" in printed and "kept for backward" in printed
    written = json.loads((tmp_path / "table.json").read_text())
    assert {row["way"] for row in written["rows"]} >= {"learner", "raw batched", "reference way"}
    assert written["torch"] == torch.__version__


@pytest.mark.slow
def test_a_watched_run_is_seen_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A long case at its smallest: its run, its memory and its CPU time."""
    main(["groups", "--toy", "--out", str(tmp_path / "table.json")])
    capsys.readouterr()
    values = {row["way"]: row["value"]["median"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert 50 < values["partial pooling: own memory"] < 2000 and "partial pooling: a step, CPU" in values


def test_a_slope_is_found_where_there_is_one_and_its_interval_holds_it() -> None:
    """Memory in steps of some pages, as an allocator takes them; ten seeds, three bytes a step or none."""
    for seed in range(10):
        noise = np.random.default_rng(seed)
        for bytes_a_step in (0, 3):
            steps = np.arange(10_000, 100_000, 50)
            own = 3e8 + bytes_a_step * steps + 4096 * noise.integers(0, 50, len(steps))
            found = slope(steps.tolist(), own.tolist())
            assert abs(found.median - bytes_a_step) < 0.5 and found.upper - found.lower < 1
            assert found.lower - 0.1 < bytes_a_step < found.upper + 0.1


def test_what_is_in_use_is_counted() -> None:
    """Memory mapped for itself, memory of the heap, and objects; none of it once it is freed."""
    before = in_use()
    arrays = [np.ones(5_000_000), *[np.ones(2_000) for _ in range(500)]]
    floats = [float(number) for number in range(100_000)]
    bytes_more, blocks_more = (now - then for now, then in zip(in_use(), before, strict=True))
    assert bytes_more == pytest.approx(48_000_000, rel=0.05) and blocks_more == pytest.approx(100_000, rel=0.05)
    del arrays, floats
    bytes_more, blocks_more = (now - then for now, then in zip(in_use(), before, strict=True))
    assert abs(bytes_more) < 500_000 and abs(blocks_more) < 5_000


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nothing"])
    assert ended.value.code == 2
    assert f"expected cases of {', '.join(CASES | LONG)}, got nothing" in capsys.readouterr().err
