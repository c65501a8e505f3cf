"""Do the benchmarks compare what they say they compare?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import coverage, gradient, pooling
from benchmarks.__main__ import CASES, LONG, main
from benchmarks.counted import memory_in_use
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import guide_setting
from benchmarks.gpu.budget import deadlines
from benchmarks.gpu.guide_setting import Setting, names
from benchmarks.gpu.noise import NoiseOfCpu
from benchmarks.gpu.result import Run, compare_ways
from benchmarks.gpu.same_loss import agreement
from benchmarks.guides import rows as guides
from benchmarks.guides.adaptive import RawLaplace, RawLeo, llama_loss
from benchmarks.measure import ratios, time_interleaved
from benchmarks.setting import learner, tasks
from benchmarks.sib_raw import RawSib
from benchmarks.soak import slope
from benchmarks.versa_raw import RawEncoder
from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources.split_groups import splits_of
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.partial_pooling.closed_form_scores import scores_of


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
        "guide.start.scale": "start",
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
    for make in (gradient.batched_step, gradient.loop_step, gradient.learner_step):
        step, parameters = make(episodes, num_steps)
        with torch.no_grad():
            _fill(parameters, _weights())
        step()
        gradients.append(_gradients(parameters))
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=1e-3, atol=1e-3)


def _weights() -> Tensor:
    """1761 weights in the order of the network: matrix and bias of each layer."""
    return 0.2 * torch.randn(1761, generator=torch.Generator().manual_seed(0))


def _fill(parameters: list[Tensor], weights: Tensor) -> None:
    for parameter, values in zip(parameters, weights.split([its.numel() for its in parameters]), strict=True):
        parameter.copy_(values.view(parameter.shape))


def test_ratios_are_of_neighbours_in_time() -> None:
    calls: list[str] = []
    seconds = time_interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=4, in_a_row=2)
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
    """Memory in steps of some pages, as an allocator takes them; ten seeds, three bytes per step or none."""
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
    before = memory_in_use()
    arrays = [np.ones(5_000_000), *[np.ones(2_000) for _ in range(500)]]
    floats = [float(number) for number in range(100_000)]
    bytes_more, blocks_more = (now - then for now, then in zip(memory_in_use(), before, strict=True))
    assert bytes_more == pytest.approx(48_000_000, rel=0.05) and blocks_more == pytest.approx(100_000, rel=0.05)
    del arrays, floats
    bytes_more, blocks_more = (now - then for now, then in zip(memory_in_use(), before, strict=True))
    assert abs(bytes_more) < 500_000 and abs(blocks_more) < 5_000


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nothing"])
    assert ended.value.code == 2
    assert f"expected cases among {', '.join(CASES | LONG)}, got nothing" in capsys.readouterr().err


# ---------------------------------------------------------------- benchmarks.gpu

CPU = torch.device("cpu")


@pytest.mark.parametrize("guides", [["exact", "mc", "sib"], pytest.param(names(), marks=pytest.mark.slow, id="all")])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at every input's
def test_the_benchmark_of_a_gpu_runs_on_a_cpu_and_has_a_row_for_every_guide(
    guides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all guides in `make bench-gpu ARGS=--toy`, which every check begins with."""
    monkeypatch.setattr(guide_setting, "names", lambda: guides)
    gpu.main(["--toy", "--out", str(tmp_path / "gpu.json")])  # an exit code other than 0 would raise
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "gpu.json").read_text())
    status = {(row["section"], row["case"]): row["status"] for row in written["rows"]}
    for name in guides:
        assert status["guides", name] == status["loss", name] == "passed"
        assert f" {name} " in printed
    assert {row["section"] for row in written["rows"]} == set(gpu.SECTIONS)
    assert "failed" not in status.values()
    assert written["versions"]["torch"] == torch.__version__ and written["device"] == "cpu"


def test_losses_of_the_same_weights_agree_and_a_planted_difference_is_found() -> None:
    setting = Setting.of("sib", toy=True)
    on_cpu, on_device, weight = setting.learner(), setting.learner(), setting.config.train.kl_weight
    assert agreement("sib", on_cpu, on_device, setting.episodes, CPU, weight).status == "passed"
    with torch.no_grad():
        on_device.model.head.scale.mul_(1.001)
    row = agreement("sib", on_cpu, on_device, setting.episodes, CPU, weight)
    assert row.status == "failed" and "with the same weights and noise" in row.note
    with torch.no_grad():
        on_device.model.head.scale.fill_(torch.nan)
    assert agreement("sib", on_cpu, on_device, setting.episodes, CPU, weight).status == "failed"


def test_noise_of_the_cpu_is_what_the_cpu_draws_and_goes_where_it_was_asked_for() -> None:
    def draws(device: str) -> list[Tensor]:
        like = torch.ones(3, 5, device=device)
        made = [torch.randn(3, 5, device=device), torch.rand_like(like), torch.empty(40, device=device).normal_()]
        return [*made, torch.normal(like, like), torch.nn.functional.dropout(like, 0.5), torch.randperm(9)]

    torch.manual_seed(0)
    expected = draws("cpu")
    torch.manual_seed(0)
    with NoiseOfCpu():
        got, elsewhere, last = draws("cpu"), torch.randn(2, device="meta"), torch.rand(1)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.manual_seed(0)
    draws("cpu")
    torch.randn(2)  # the draw for the other device has taken as much from the generator of the CPU
    assert elsewhere.device.type == "meta" and torch.equal(last, torch.rand(1))


def test_a_row_that_fails_says_why_and_where_and_the_others_go_on() -> None:
    def broken() -> None:
        TaskShape(feature_noise=-1.0)

    ways = {"broken": lambda: broken, "whole": lambda: lambda: None}
    rows = compare_ways(Run(CPU, toy=True), "case", ways, 1, "steps/s")
    assert [(row.way, row.status) for row in rows] == [("broken", "failed"), ("whole", "passed")]
    assert rows[0].note.startswith("UsageError: expected task.feature_noise")
    assert "(pyro_metabayes/data/task_shape.py:" in rows[0].note


def test_time_that_a_section_leaves_goes_to_the_next_and_no_row_begins_after_the_end() -> None:
    seconds = 0.0
    ends = deadlines(1, {"first": 1, "second": 3}, clock=lambda: seconds)
    assert ends["first"].end == pytest.approx(0.25 * ends["second"].end) and 50 < ends["second"].end < 60
    seconds = ends["first"].end + 1
    late, early = (Run(CPU, False, ends[name]) for name in ("first", "second"))
    assert [row.status for row in late.attempt("case", "way", lambda: [])] == ["not run"]
    assert early.attempt("case", "way", lambda: []) == []
    assert [row.status for row in early.attempt("case", "way", lambda: [], needs=60)] == ["not run"]


def test_without_time_every_row_is_named_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--toy", "--minutes", "1e-9"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("not run: out of time" in line for line in lines) >= 2 * len(names()) + 8
    assert not any("passed" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("arguments", [[], ["--device", "cuda"], ["--device", "nothing", "--toy"]])
def test_without_its_device_the_benchmark_of_a_gpu_says_so_in_one_line(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert str(ended.value.code).startswith("error: expected a device '")
    assert "\n" not in str(ended.value.code) and "take --device cpu" in str(ended.value.code)


# ---------------------------------------------------------------- benchmarks.guides


@pytest.mark.parametrize("name", guides.TRANSDUCTIVE)
def test_raw_predictions_are_those_of_the_guide(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    ways = guides.transductive_ways(name, tasks(3, features=guides.FEATURES))
    raw, ours = (ways[way]() for way in ("raw batched", "learner"))
    assert isinstance(raw, Tensor) and isinstance(ours, Tensor)
    torch.testing.assert_close(raw.log_softmax(-1), ours, rtol=0, atol=1e-9)


def test_raw_losses_of_laplace_leo_and_llama_are_those_of_the_learners() -> None:
    """With the same weights and random numbers."""
    torch.set_default_dtype(torch.float64)
    data = tasks(2, features=guides.FEATURES)
    laplace = guides.learner("laplace", {"learn_step_size": True}, guides.COSINE, prior=guides.GAUSSIAN)
    raw_laplace = RawLaplace(guides.FEATURES)
    for prior in (laplace.model.prior_over_weights, raw_laplace):
        prior.loc.data.copy_(0.05 * torch.sin(torch.arange(guides.FEATURES)))
    leo, raw_leo = guides.learner("leo", {}, None, "leo", None), RawLeo(guides.FEATURES, 5)
    names = {"rate": "model.step_size", "finetune_rate": "model.finetune_step_size"}
    names |= {"encoder.weight": "guide.encoder.0.weight", "decoder.weight": "model.decoder.0.weight"}
    for name, parameter in raw_leo.named_parameters():
        parameter.data.copy_(leo.get_parameter(names.get(name, f"guide.{name}")))
    for ours, raw in ((laplace, raw_laplace), (leo, raw_leo)):
        torch.manual_seed(1)
        loss = ours(data.episodes)["loss"]
        torch.manual_seed(1)
        torch.testing.assert_close(raw.loss(data.support, data.query, data.labels), loss, rtol=1e-9, atol=1e-9)


def test_the_raw_meta_step_of_llama_is_that_of_the_learner() -> None:
    episodes = gradient.tasks(3)
    step, parameters = gradient.learner_step(episodes, 1, "llama")
    theta = gradient.initial()
    for values in (parameters, theta):
        with torch.no_grad():
            _fill(values, _weights())
    step()
    points = episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y
    llama_loss(theta, *points, 1).backward()
    torch.testing.assert_close(_gradients(theta), _gradients(parameters), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (coverage, ["--splits", "0"], "expected --splits >= 2, got 0"),
        (coverage, ["--draws", "1"], "expected --draws >= 2, got 1"),
        (coverage, ["--groups", "-3"], "expected --groups >= 1, got -3"),
        (coverage, ["radon", "schools"], "got schools"),
        (pooling, ["--seeds", "0"], "expected --seeds >= 1, got 0"),
    ],
)
def test_numbers_without_a_table_are_refused(
    command: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_coverage_of_too_many_or_too_few_groups_is_refused(metabayes_data: Path) -> None:
    with pytest.raises(UsageError, match="expected --groups < 27, the number of groups of Orthodont, got 27"):
        coverage.rows("Orthodont", 27, 2)
    with pytest.raises(UsageError, match="in at least 2 of 2 drawn tables of Orthodont, got 0; train on more groups"):
        coverage.rows("Orthodont", 1, 2)


def test_coverage_without_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METABAYES_DATA", raising=False)
    with pytest.raises(UsageError, match="METABAYES_DATA"):
        coverage.main(["Orthodont"])


def test_coverage_over_splits_is_that_of_the_closed_form(metabayes_data: Path) -> None:
    """Shares of the plug-in intervals, from the scores of the closed form on the same splits and support points."""
    row, with_errors = coverage.rows_of_splits("Orthodont", 2)
    assert (row["test groups"], row["splits"], with_errors["interval"]) == ("11", "2", "with errors")
    generator, shares = torch.Generator().manual_seed(0), []
    for seed in range(2):
        table = coverage.table_of("Orthodont")
        table = replace(table, splits=splits_of(27, train=0.6, val=0.0, seed=seed))
        draw = table.sampler("test", TaskShape(way=1, shot=3, query=1000))
        fitted = table.estimates()
        assert fitted is not None
        shares.append(scores_of(fitted, draw(generator).tasks(slice(None)))["coverage90"])
    assert row["mean"] == f"{np.mean(shares):.3f}" and row["sd"] == f"{np.std(shares, ddof=1):.3f}"
