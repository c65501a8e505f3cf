"""A training step runs on one device and never waits for it. Tested without a GPU, on torch's meta device.

A tensor on the meta device has a shape, a dtype and a device, but no values. So an operation fails if it mixes devices,
or reads a value on the host. Code that must read a value does so outside a step (`READS`).

Operations on the meta device are slow. So the loss is tested for all pairs, a whole step for pairs that cover every
part and setting (`tests/covering.py`), and metrics and an evaluation for pairs that cover every part. With `-m slow`,
all of this is tested for all pairs. Loops have two iterations, since all iterations are alike for a device.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Gamma, Normal, TorchDistribution
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed, class_means
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.base_novel import BaseNovelSampler
from pyro_metabayes.data.domains import DomainBank, DomainSampler
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.diagnostics.collapse_metrics import summary
from pyro_metabayes.evaluation.evaluate import score_batch
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.objectives.objective import Terms
from pyro_metabayes.training.fabric import fabric_alone
from pyro_metabayes.training.loop import MetaTraining
from pyro_metabayes.training.optimisation import TrainSettings
from pyro_metabayes.training.step_metrics import measure, metric_means
from pyro_metabayes.transductive import sinkhorn
from tests.covering import covering, covering_first
from tests.pairs import CONF, Pair, every_pair

META = torch.device("meta")
NUM_TASKS = 3
TURNS = 2  # of a loop
LOOPS = ("num_steps", "cleaning_steps", "finetune_steps")  # settings that are numbers of turns


def with_short_loops(pair: Pair) -> Pair:
    parts = ({name: min(its, TURNS) if name in LOOPS else its for name, its in of.items()} for of in settings_of(pair))
    return replace(pair, **dict(zip(("settings", "model_settings"), parts, strict=True)))


def settings_of(pair: Pair) -> tuple[dict[str, Any], dict[str, Any]]:
    return pair.settings, pair.model_settings


# Chi2, which torch's StudentT constructs, makes a tensor of a number, which torch.func.grad refuses on the meta device.
PAIRS = [with_short_loops(pair) for pair in every_pair() if (pair.guide, pair.model) != ("maml", "robust_regression")]
STEPPED = covering(PAIRS, ())  # whose loss is that of their step
# What reads values on the host, each outside a step: after a line of metrics is due, or before a save.
READS: dict[str, Callable[[MetaTraining], object]] = {
    "the metrics of a logged step": lambda training: metric_means(
        *measure(training.learner, training._last_tasks(), training.seed)
    ),
    "the collapse figures": lambda training: summary(
        measure(training.learner, training._last_tasks(), training.seed)[1]
    ),
    "the first step that was not finite": lambda training: training._nonfinite.check("nothing kept"),
    "the number of skipped steps": lambda training: training.state.skipped,
}


class Device(TorchDispatchMode):
    """Raises if float64 is used, which some accelerators lack, or if an error flag is read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "_linalg_check_errors":
            raise AssertionError(
                "a factorisation waits for the device to say whether it has failed; use WithoutWaiting"
            )
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.device.type == "meta" and value.dtype == torch.float64:
                raise AssertionError(f"{func} makes float64 on the device")
        return result


@contextmanager
def skipping_splines() -> Iterator[None]:
    """Skip a guide or prior with a spline transform of Pyro, which indexes by a mask and so waits for the device."""
    try:
        yield
    except NotImplementedError as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any("pyro/distributions/transforms/spline" in frame.filename for frame in frames):
            pytest.skip("the spline transforms of Pyro wait for the device")
        raise


@pytest.fixture(autouse=True)
def after_the_first_step() -> None:
    """Turn off Pyro's validation, which reads values and is on only in the first step of a run."""
    pyro.enable_validation(False)


@pytest.fixture(autouse=True)
def few_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the iterations of Sinkhorn, for which there is no setting."""
    iterate = sinkhorn._iterate

    def shortened(logits: Tensor, mask: Tensor, shares: Tensor, num_iterations: int, start: Tensor | None) -> Tensor:
        return iterate(logits, mask, shares, min(num_iterations, TURNS), start)

    monkeypatch.setattr(sinkhorn, "_iterate", shortened)


def training_on_meta(learner: MetaLearner, episodes: Episodes, folder: Path, **settings: Any) -> MetaTraining:
    """Meta-training of these tasks."""
    on_meta = episodes.to(META)
    stream = TaskStream(lambda generator: on_meta, seed=0, split="train", num_tasks=NUM_TASKS)
    training = MetaTraining(
        learner=learner,
        stream=stream,
        validation=stream,
        settings=TrainSettings(tasks_per_step=NUM_TASKS, **settings),
        folder=folder,
        fabric=fabric_alone(META),
        config={},
    )
    training.state.step = 1
    return training


def step_on_meta(learner: MetaLearner, episodes: Episodes, folder: Path, **settings: Any) -> MetaTraining:
    """Run one step: loss, backward pass, clipping, optimiser, and checks for non-finite values."""
    training = training_on_meta(learner, episodes, folder, **settings)
    with skipping_splines(), Device():
        training._step()
    for name, parameter in learner.named_parameters():
        assert parameter.device == META, f"parameter {name} is on {parameter.device}"
    return training


def metrics_on_meta(training: MetaTraining) -> None:
    """Check the device of all metrics of a logged step and of an evaluation."""
    tasks = training._last_tasks()
    with skipping_splines(), Device(), torch.no_grad():
        scores, spreads = measure(training.learner, tasks, training.seed)
        batch = score_batch(training.learner, tasks, samples=2)
    for name, value in [*scores.items(), *spreads.items(), *batch.scores.items(), *batch.spreads.items()]:
        assert value.device == META, f"{name} is on {value.device}"


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in STEPPED], ids=str)
def test_a_loss_is_computed_on_the_device_alone(pair: Pair) -> None:
    learner, episodes = pair.learner().to(META), pair.tasks().to(META)
    with skipping_splines(), Device(), torch.no_grad():
        terms = learner(episodes)
    assert {value.device for value in terms.values()} == {META}


@pytest.mark.parametrize("pair", covering_first(PAIRS, ()), ids=str)
def test_a_step_is_taken_on_the_device_alone(pair: Pair, tmp_path: Path) -> None:
    step_on_meta(pair.learner(), pair.tasks(), tmp_path)


@pytest.mark.parametrize("pair", covering_first(PAIRS, (), settings=False), ids=str)
def test_metrics_are_measured_on_the_device_alone(pair: Pair, tmp_path: Path) -> None:
    metrics_on_meta(training_on_meta(pair.learner(), pair.tasks(), tmp_path))


def test_every_guide_is_tried() -> None:
    """By its YAML: no guide is left out of the pairs above."""
    configured = {path.stem for path in (CONF / "guide").glob("*.yaml")}
    print(f"{len(PAIRS)} pairs of a learner and tasks, {len(configured)} guides by their YAML")
    assert len(PAIRS) >= len(configured) + 140, len(PAIRS)
    assert {pair.guide for pair in PAIRS} == {path.stem for path in (CONF.parents[1] / "guides").glob("[a-z]*.py")}


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, marks=pytest.mark.slow) if number % 6 else pair for number, pair in enumerate(PAIRS[::12])],
    ids=str,
)
@pytest.mark.parametrize(
    "settings",
    [
        {"on_nan": "skip", "optimizer": "sgd"},
        {"kl_weight": 0.1, "particles": 2, "clip": 1.0, "clip_value": 1.0, "clip_each": 1.0},
    ],
    ids=str,
)
def test_a_step_with_other_settings_is_taken_on_the_device_alone(
    pair: Pair, settings: dict[str, Any], tmp_path: Path
) -> None:
    learner = pair.learner(particles=settings.get("particles", 1))
    metrics_on_meta(step_on_meta(learner, pair.tasks(), tmp_path, **settings))


# ---------------------------------------------------------------- tasks


def bank() -> Bank:
    sizes, size = torch.full((12,), 8), (12 * 8, 5)
    splits = {split: torch.arange(4 * i, 4 * i + 4) for i, split in enumerate(("train", "val", "test"))}
    return Bank(torch.empty(size), sizes, splits, [str(i) for i in range(12)])


def domains() -> DomainBank:
    plain = bank()
    rotations = torch.empty(96, 3, 5)
    return DomainBank(
        plain.inputs, plain.class_sizes, plain.splits, plain.class_names, num_shared=4, auxiliary={"turned": rotations}
    )


def base_novel_on_meta(split: str) -> Any:
    """A sampler on the device. Held-out images are separated on the CPU before."""
    sampler = BaseNovelSampler(bank(), 2)
    sampler.bank, sampler.training_bank = sampler.bank.to(META), sampler.training_bank.to(META)
    return sampler.sampler(split, TaskShape(2, 1, 3, base_query=4))


SAMPLERS: dict[str, Callable[[], Any]] = {
    "few-shot": lambda: BankSampler(bank().to(META)).sampler("train", TaskShape(2, 1, 3)),
    "base classes": lambda: base_novel_on_meta("train"),
    "held-out base classes": lambda: base_novel_on_meta("test"),
    "domains": lambda: DomainSampler(domains().to(META)).sampler("train", TaskShape(4, 0, 3)),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tasks_are_drawn_without_reading_the_device(sampler: str) -> None:
    episodes = SAMPLERS[sampler]()(Generator().manual_seed(0)).tasks(slice(0, BLOCK))
    assert episodes.query_x.device == META and episodes.query_y.device == META


# ---------------------------------------------------------------- what reads, and planted faults


@pytest.mark.parametrize("read", READS)
def test_what_reads_values_is_outside_a_step(read: str, tmp_path: Path) -> None:
    pair = Pair("savi", "conditional")
    training = training_on_meta(pair.learner(), pair.tasks(), tmp_path)
    training._step()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        READS[read](training)


class Honest(pyro_metabayes.Guide):
    """N(class mean, 1)."""

    def posterior(self, observed: Observed) -> TorchDistribution:
        return Normal(self.mean(observed), 1.0).to_event(2)

    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed)


class HasAConstant(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) + torch.zeros(observed.num_classes, 1)


class HasADistribution(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) + Gamma(1.0, 1.0).log_prob(class_means(observed).square()).mean()


class Draws(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) + torch.randn(observed.num_classes, 1)


class Reads(Honest):
    def mean(self, observed: Observed) -> Tensor:
        means = super().mean(observed)
        return means / means.norm().item()


class Branches(Honest):
    def mean(self, observed: Observed) -> Tensor:
        means = super().mean(observed)
        return means if means.sum() > 0 else -means


class Selects(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) + observed.support_x[observed.support_mask].mean()


class GoesThroughNumpy(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) + torch.from_numpy(observed.support_x.detach().numpy().mean(1, keepdims=True))


class AsksForDouble(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed).double().float()


class ChecksItsFactor(Honest):
    def mean(self, observed: Observed) -> Tensor:
        means = super().mean(observed)
        return means + torch.linalg.cholesky(means @ means.mT).mean()


class ReadingElbo(Elbo):
    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        terms = super().terms(*args, **kwargs)
        assert math.isfinite(terms.loss.item())
        return terms


def planted(guide: type[pyro_metabayes.Guide], objective: Elbo) -> MetaLearner:
    honest = Pair("savi", "conditional").learner()
    return MetaLearner(honest.backbone, honest.model, guide(honest.model), objective, honest.specification)


def test_an_honest_guide_passes(tmp_path: Path) -> None:
    metrics_on_meta(step_on_meta(planted(Honest, Elbo()), Pair("savi").tasks(), tmp_path))


@pytest.mark.parametrize(
    "guide",
    [HasAConstant, HasADistribution, Draws, Reads, Branches, Selects, GoesThroughNumpy, AsksForDouble, ChecksItsFactor],
)
def test_a_planted_fault_is_caught(guide: type[pyro_metabayes.Guide], tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError, TypeError)):
        step_on_meta(planted(guide, Elbo()), Pair("savi").tasks(), tmp_path)


def test_an_objective_that_reads_is_caught(tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step_on_meta(planted(Honest, ReadingElbo()), Pair("savi").tasks(), tmp_path)
