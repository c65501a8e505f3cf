"""Distributions of the simulators, and the posteriors that they call true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pyro_metabayes import Episodes, UsageError
from pyro_metabayes.build import build, target_of
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.sources.linear_gaussian import LinearGaussian
from pyro_metabayes.data.sources.sinusoid import Sinusoid
from pyro_metabayes.data.sources.spinning_lines import SpinningLines
from pyro_metabayes.data.stream import KnownTruth, Source, TaskStream, generator_of
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.models import gaussian_mean
from pyro_metabayes.models.priors import Gaussian
from tests.pairs import CONF


def equal(a: Episodes, b: Episodes) -> bool:
    names = ("support_x", "support_y", "query_x", "query_y")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def drawn(source: Source, shape: TaskShape, num_tasks: int = 4096, split: str = "test", seed: int = 0) -> Episodes:
    return TaskStream(source.sampler(split, shape), seed, split).batch(0, num_tasks)


def test_linear_gaussian_draws_what_it_says() -> None:
    """Least squares finds w back up to the noise: moments of w, and of y given w, within 5 standard errors."""
    source = LinearGaussian(num_features=2, num_targets=3, loc=0.5, scale=1.5, noise=0.3)
    tasks = drawn(source, TaskShape(1, 20, 30))
    assert tasks.support_y.shape == (4096, 20, 3) and tasks.query_x.shape == (4096, 30, 2) and tasks.num_classes == 0
    x = torch.cat((tasks.support_x, tasks.query_x), 1).double()
    y = torch.cat((tasks.support_y, tasks.query_y), 1).double()
    w = torch.linalg.lstsq(x, y).solution  # [T, D, Y]
    residual = (y - x @ w).square().sum((1, 2)) / ((50 - 2) * 3)
    assert residual.mean().item() == pytest.approx(0.3**2, rel=0.01)
    assert w.mean().item() == pytest.approx(0.5, abs=5 * 1.5 / math.sqrt(w.numel()))
    assert w.std().item() == pytest.approx(math.sqrt(1.5**2 + 0.3**2 / 50), rel=5 / math.sqrt(2 * w.numel()))
    of_tasks = torch.corrcoef(w.flatten(1).mT)
    assert (of_tasks - torch.eye(6)).abs().max() < 5 / 64, "weights are independent"
    assert x.mean().item() == pytest.approx(0, abs=5 / math.sqrt(x.numel()))
    assert x.std().item() == pytest.approx(1, abs=0.01)


def test_constant_features_make_a_gaussian_mean() -> None:
    """Y covariances: scale^2 between two labels of a task, and noise^2 more for one."""
    tasks = drawn(LinearGaussian(scale=1.2, noise=0.5, constant=True), TaskShape(1, 1, 1))
    assert (tasks.support_x == 1).all() and (tasks.query_x == 1).all()
    one, other = tasks.support_y.flatten().double(), tasks.query_y.flatten().double()
    covariance = torch.cov(torch.stack((one, other)))
    assert covariance[0, 0].item() == pytest.approx(1.2**2 + 0.5**2, rel=0.12)
    assert covariance[0, 1].item() == pytest.approx(1.2**2, rel=0.14)


@pytest.mark.parametrize("constant", [False, True])
def test_the_truth_of_linear_gaussian_is_its_posterior(constant: bool) -> None:
    """A label less its predictive mean, over its predictive sd, is standard normal; within 5 standard errors."""
    source = LinearGaussian(num_features=1 if constant else 2, loc=0.4, scale=0.8, noise=0.6, constant=constant)
    tasks = drawn(source, TaskShape(1, 3, 1))
    true = source.truth(tasks.observed())
    assert true.batch_shape == (4096,) and true.event_shape == (1, 2 - constant)
    x = tasks.query_x.squeeze(1)  # [T, D]
    precision = true.base_dist.precision_matrix.squeeze(1)
    variance = (x.unsqueeze(1) @ torch.linalg.inv(precision) @ x.unsqueeze(-1)).flatten() + 0.6**2
    z = (tasks.query_y.flatten() - (true.mean.squeeze(1) * x).sum(-1)) / variance.sqrt()
    assert z.mean().item() == pytest.approx(0, abs=5 / 64)
    assert z.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2) / 64)


def test_the_truth_of_linear_gaussian_is_that_of_the_models() -> None:
    """Two ways to one posterior, with points masked."""
    source = LinearGaussian(num_features=1, num_targets=2, loc=0.4, scale=0.8, noise=0.6, constant=True)
    tasks = drawn(source, TaskShape(1, 4, 3), num_tasks=64)
    mask = torch.rand(64, 4) < 0.5
    observed = replace(tasks.observed(), support_mask=mask)
    model = gaussian_mean.Model(Gaussian(1, 0.4, 0.8), 2, 1, noise=0.6)
    true, exact = source.truth(observed), model.exact_posterior(observed)
    torch.testing.assert_close(true.mean, exact.mean)
    torch.testing.assert_close(true.variance, exact.variance)
    prior = source.truth(replace(observed, support_mask=torch.zeros_like(mask)))
    torch.testing.assert_close(prior.mean, torch.full((64, 2, 1), 0.4))
    torch.testing.assert_close(prior.variance, torch.full((64, 2, 1), 0.64))


def test_spinning_lines_turn_with_their_inputs() -> None:
    """Var(w) = scale^2 / n + slope_scale^2, of which the inputs leave slope_scale^2: I(w; x) by the variances."""
    source = SpinningLines(loc=0.3, scale=1.2, slope_loc=-1.0, slope_scale=0.2)
    tasks = drawn(source, TaskShape(1, 0, 32))
    assert tasks.support_x.shape == (4096, 0, 1) and tasks.support_y.shape == (4096, 0, 1)
    w = (tasks.query_y / tasks.query_x).double().median(1).values  # no noise: any point tells the slope
    torch.testing.assert_close(tasks.query_y.double(), w.unsqueeze(1) * tasks.query_x, rtol=1e-3, atol=1e-4)
    true = source.truth(tasks.observed())
    left = (w.flatten() - true.mean.flatten()).var()
    assert w.mean().item() == pytest.approx(0.3 - 1.0, abs=0.02)
    assert left.item() == pytest.approx(0.2**2, rel=0.12)
    torch.testing.assert_close(true.variance, torch.full((4096, 1, 1), 0.2**2))
    known = 0.5 * math.log(1 + 1.2**2 / (32 * 0.2**2))
    assert 0.5 * math.log((w.var() / left).item()) == pytest.approx(known, abs=0.1)


def test_sinusoids_are_finns() -> None:
    """Least squares on sin x and cos x finds A cos b and -A sin b, A ~ U[0.1, 5] and b ~ U[0, pi], and the noise."""
    tasks = drawn(Sinusoid(noise=0.3), TaskShape(1, 20, 30))
    x = torch.cat((tasks.support_x, tasks.query_x), 1).double()
    y = torch.cat((tasks.support_y, tasks.query_y), 1).double()
    design = torch.cat((x.sin(), x.cos()), -1)
    found = torch.linalg.lstsq(design, y).solution.squeeze(-1)
    residual = (y - design @ found.unsqueeze(-1)).square().sum(1) / 48
    assert residual.mean().item() == pytest.approx(0.09, rel=0.02)
    amplitude, phase = found.norm(dim=-1), (torch.atan2(-found[:, 1], found[:, 0]) + 1) % (2 * math.pi) - 1
    clear = amplitude > 0.5  # elsewhere the noise decides the phase
    assert amplitude.max() < 5.4 and phase[clear].min() > -0.6 and phase[clear].max() < math.pi + 0.6
    assert amplitude.mean().item() == pytest.approx(2.55, abs=5 * 4.9 / math.sqrt(12 * 4096))
    assert phase[clear].mean().item() == pytest.approx(math.pi / 2, abs=5 * math.pi / math.sqrt(12 * 3600))
    assert x.abs().max() <= 5 and x.std().item() == pytest.approx(10 / math.sqrt(12), rel=0.01)


def test_sinusoids_have_no_noise_unless_told() -> None:
    tasks = drawn(Sinusoid(), TaskShape(1, 5, 5), 64)
    design = torch.cat((tasks.query_x.sin(), tasks.query_x.cos()), -1).double()
    found = torch.linalg.lstsq(design, tasks.query_y.double()).solution
    support = torch.cat((tasks.support_x.sin(), tasks.support_x.cos()), -1).double()
    torch.testing.assert_close(support @ found, tasks.support_y.double(), rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match=r"data\.noise >= 0"):
        Sinusoid(noise=-1.0)


def test_the_truth_of_spinning_lines_counts_the_points_that_are_there() -> None:
    tasks = drawn(SpinningLines(), TaskShape(1, 0, 8), num_tasks=5).observed()
    mask = torch.arange(8) < torch.tensor([[1], [3], [8], [8], [5]])
    true = SpinningLines().truth(replace(tasks, query_mask=mask))
    for task in range(5):
        expected = tasks.query_x[task][mask[task]].mean() + 1
        assert true.mean[task].item() == pytest.approx(expected.item(), abs=1e-6)


def simulators() -> list[Any]:
    """The simulator of every YAML of data= with the shape of its tasks, so that a new file is tested too."""
    found = []
    for path in sorted((CONF / "data").glob("*.yaml")):
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        data = content.get("data", {})
        if "_target_" in data and hasattr(target_of(data, "data"), "sampler"):
            found.append(pytest.param(build(data, "data"), TaskShape(**content.get("task", {})), id=path.stem))
    return found


@pytest.mark.parametrize(("source", "shape"), simulators())
def test_simulated_tasks_are_what_they_say(source: Source, shape: TaskShape) -> None:
    """Finite float32 inputs of input_shape, and labels of num_targets numbers or of `way` classes."""
    tasks = drawn(source, shape, BLOCK + 2)
    for part in ("support", "query"):
        x, y = getattr(tasks, f"{part}_x"), getattr(tasks, f"{part}_y")
        assert x.shape == (BLOCK + 2, x.shape[1], *source.input_shape) and x.dtype == torch.float32
        assert torch.isfinite(x).all() and torch.isfinite(y).all()
        if source.num_targets:
            assert y.shape == (*x.shape[:2], source.num_targets) and y.dtype == torch.float32
        else:
            assert y.shape == x.shape[:2] and y.dtype == torch.int64 and y.min() >= 0 and y.max() < shape.way
    assert tasks.num_classes == (0 if source.num_targets else shape.way)


@pytest.mark.parametrize(("source", "shape"), simulators())
def test_simulated_tasks_are_seed_split_and_index(source: Source, shape: TaskShape) -> None:
    whole = drawn(source, shape, 100, "train")
    stream = TaskStream(source.sampler("train", shape), 0, "train")
    assert equal(stream.batch(60, 90), whole.tasks(slice(60, 90)))
    for other in (drawn(source, shape, 100, "test"), drawn(source, shape, 100, "train", seed=1)):
        same_inputs, same_labels = (
            (getattr(other, name) == getattr(whole, name)).flatten(1).all(1) for name in ("query_x", "query_y")
        )
        assert not (same_inputs & same_labels).any()
    with pytest.raises(UsageError, match="expected a split among train, val, test, got 'dev'"):
        source.sampler("dev", shape)


@pytest.mark.parametrize("num_tasks", [1, 10, 64, 100])
def test_a_stream_may_be_the_first_tasks_again_and_again(num_tasks: int) -> None:
    """train.num_tasks: task i is task i mod num_tasks of the endless stream, across blocks."""
    draw = LinearGaussian().sampler("train", TaskShape(1, 2, 3))
    endless = TaskStream(draw, 3, "train").batch(0, num_tasks)
    stream = TaskStream(draw, 3, "train", num_tasks)
    for start, stop in ((0, 7), (5, 30), (990, 1000), (num_tasks, 3 * num_tasks)):
        got = stream.batch(start, stop)
        expected = endless.tasks(torch.arange(start, stop) % num_tasks)
        assert equal(got, expected) and got.num_tasks == stop - start
    assert not equal(TaskStream(draw, 3, "train").batch(num_tasks, num_tasks + 1), endless.tasks(slice(0, 1)))


def test_no_number_of_tasks_is_an_endless_stream() -> None:
    draw = LinearGaussian().sampler("train", TaskShape(1, 2, 3))
    for none in (None, 0):
        tasks = TaskStream(draw, 3, "train", none).batch(0, 200)
        assert tasks.query_y.flatten(1).unique(dim=0).shape[0] == 200


def test_the_new_settings_of_gaussian_features_leave_its_defaults() -> None:
    """noise=1 and rectify=True: ReLU(m + e) of unit length, from the same random numbers in the same order."""
    shape, generator = TaskShape(3, 2, 4), generator_of(5, "train", 0)
    tasks = TaskStream(GaussianFeatures(num_features=7).sampler("train", shape), 5, "train").batch(0, BLOCK)
    centre = torch.randn(BLOCK, 3, 1, 7, generator=generator)
    points = (0.3 + 0.27 * centre + torch.randn(BLOCK, 3, 6, 7, generator=generator)).relu()
    points = points / points.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(tasks.support_x, points[:, :, :2].flatten(1, 2))
    torch.testing.assert_close(tasks.query_x, points[:, :, 2:].flatten(1, 2))


def test_gaussian_classes_have_the_documented_moments() -> None:
    """rectify=False: N(mean, separation^2) between classes, N(0, noise^2) within, lengths as they come."""
    source = GaussianFeatures(num_features=16, separation=0.8, mean=0.5, noise=1.5, rectify=False)
    tasks = drawn(source, TaskShape(2, 5, 5), num_tasks=1024)
    of_class = torch.stack([(tasks.query_x[:, :5]), (tasks.query_x[:, 5:])], 1).double()  # [T, C, 5, D]
    assert (of_class < 0).any()
    assert of_class.mean().item() == pytest.approx(0.5, abs=0.03)
    assert of_class.var(2).mean().item() == pytest.approx(1.5**2, rel=0.02)
    assert of_class.mean(2).var().item() == pytest.approx(0.8**2 + 1.5**2 / 5, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearGaussian(num_features=0), "num_features >= 1, num_targets >= 1"),
        (lambda: LinearGaussian(num_targets=0), "num_features >= 1, num_targets >= 1"),
        (lambda: LinearGaussian(scale=math.nan), "finite scale > 0 and noise > 0"),
        (lambda: LinearGaussian(noise=-1.0), "finite scale > 0 and noise > 0"),
        (lambda: SpinningLines(slope_scale=0.0), "scale > 0 and slope_scale > 0"),
        (lambda: SpinningLines(loc=math.inf), "expected finite settings"),
        (lambda: GaussianFeatures(noise=0.0), "noise > 0"),
        (lambda: LinearGaussian().sampler("train", TaskShape(5, 1, 15)), r"task\.way=1 \(labels are numbers\)"),
        (lambda: LinearGaussian().sampler("train", TaskShape(1, -1, 15)), "task.shot >= 0 and task.query >= 1"),
        (lambda: SpinningLines().sampler("train", TaskShape(1, 0, 0)), "task.shot >= 0 and task.query >= 1"),
        (lambda: SpinningLines().sampler("train", TaskShape(1, 1, 8)), "expected task.shot=0 .* got 1"),
    ],
)
def test_simulators_refuse_what_cannot_be_drawn(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_simulators_of_numbers_know_the_truth_and_others_do_not() -> None:
    for source in (LinearGaussian(), SpinningLines()):
        assert isinstance(source, KnownTruth) and source.num_targets == 1
    assert not isinstance(GaussianFeatures(), KnownTruth) and GaussianFeatures().num_targets == 0
