"""Does training from Python take any torch optimiser, scheduler, module and data set, and resume bit for bit?"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import pyro_metabayes
from pyro_metabayes import Bank, Episodes, MetaLearner, Observed, UsageError, evaluate, fit
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.evaluation.evaluate import EvalSettings
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.runs.setup import set_up
from pyro_metabayes.experiments.runs.train import run
from pyro_metabayes.guides import mean_field, proto
from pyro_metabayes.models import few_shot_classifier, heads, priors
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.pretraining import embed_bank
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.training.log import History
from pyro_metabayes.training.optimisation import TrainSettings
from pyro_metabayes.training.optimizer_state import OptimisationBySettings
from tests.commands import ROOT, lines_of
from tests.pairs import FEATURES, WAY, Pair, random_tasks
from tests.test_training import WatchedStream, draw

STEPS = 12
SIB = Pair("sib", settings={"num_steps": 1, "step_size": 0.05, "inner_samples": 2})
SAVI = Pair("savi", "conditional")
MC = Pair("mc", "conditional", objective="monte_carlo")
SMALL = {"log_every": 4, "validate_every": 4, "validation_tasks": 8, "batch_size": 4}


def refuses(message: str) -> Any:
    return pytest.raises(UsageError, match=message)


def val() -> TaskStream:
    return TaskStream(draw, seed=0, split="val")


def weights_of(learner: MetaLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def without_seconds(history: History) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history.lines]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, FEATURES))


def plain(module: nn.Module | None = None, guide: Any = "proto", prior: Any = "flat", **others: Any) -> MetaLearner:
    """A learner with a plain torch module as its backbone."""
    others = {"objective": "elbo", "input_shape": [FEATURES], "num_classes": WAY} | others
    return MetaLearner.build(network() if module is None else module, guide, prior=prior, **others)


# ---------------------------------------------------------------- optimisers, schedulers, resume

Rule = Callable[[MetaLearner], tuple[Optimizer | None, LRScheduler | None]]


def one_cycle(learner: MetaLearner) -> tuple[Optimizer, LRScheduler]:
    optimiser = AdamW(learner.parameters(), lr=1e-3, weight_decay=0.1)
    return optimiser, OneCycleLR(optimiser, 3e-2, total_steps=STEPS)


def recursive_cosine(learner: MetaLearner) -> tuple[Optimizer, LRScheduler]:
    """A schedule whose rates depend on the rates of the step before, which must be restored."""
    optimiser = RMSprop(
        [{"params": learner.guide.parameters()}, {"params": learner.model.parameters(), "lr": 0.1}], 0.01
    )
    return optimiser, CosineAnnealingLR(optimiser, STEPS)


def plateau(learner: MetaLearner) -> tuple[Optimizer, LRScheduler]:
    """A schedule that lowers the rate at every validation, since no gain reaches its threshold."""
    optimiser = SGD(learner.parameters(), lr=0.03, momentum=0.9)
    return optimiser, ReduceLROnPlateau(optimiser, patience=0, threshold=100.0, threshold_mode="abs")


def default(learner: MetaLearner) -> tuple[None, None]:
    return None, None


def alone(learner: MetaLearner) -> tuple[Optimizer, None]:
    return Adagrad(learner.parameters(), lr=0.1), None


def trained(
    pair: Pair, rule: Rule, folder: Path | None, train: Any = None, callbacks: Any = (), **others: Any
) -> tuple[MetaLearner, History]:
    learner = pair.learner(seed=0)
    optimiser, scheduler = rule(learner)
    torch.manual_seed(0)
    tasks = WatchedStream() if train is None else train
    rest = SMALL | others
    return learner, fit(
        learner,
        tasks,
        val(),
        steps=STEPS,
        optimiser=optimiser,
        scheduler=scheduler,
        folder=folder,
        callbacks=callbacks,
        **rest,
    )


def interrupting(at: int) -> Callable[[Any], None]:
    def callback(line: Any) -> None:
        if line["step"] == at:
            os.kill(os.getpid(), signal.SIGINT)

    return callback


@pytest.mark.parametrize("rule", [one_cycle, recursive_cosine, plateau, default, alone])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_training_is_the_uninterrupted_one(rule: Rule, accumulate: int, tmp_path: Path) -> None:
    others = {"accumulate": accumulate, "log_every": 1}
    learner, history = trained(SAVI, rule, None, **others)
    with pytest.raises(Interrupted, match=rf"interrupted after step 6 of 12; the same call continues from {tmp_path}"):
        trained(SAVI, rule, tmp_path, callbacks=[interrupting(6)], **others)
    torch.randn(100)  # another process has drawn other numbers
    resumed, whole = trained(SAVI, rule, tmp_path, **others)
    assert without_seconds(whole) == without_seconds(history) and whole.steps == STEPS
    assert differing(weights_of(resumed), weights_of(learner)) == []
    assert differing(weights_of(MetaLearner.load(tmp_path)), weights_of(learner)) == [], "its folder is that of a run"


def test_an_interrupted_training_without_a_folder_says_that_nothing_is_kept() -> None:
    with pytest.raises(Interrupted, match=r"interrupted after step 4 of 12; without folder= nothing is saved"):
        trained(SAVI, default, None, callbacks=[interrupting(4)])


def test_the_command_trains_by_fit(tmp_path: Path) -> None:
    """Bit for bit: the tasks and settings of a run, written as arguments."""
    settings = ["data=gaussian_features", "guide=sib", "seed=3", "device=cpu", "train.steps=12", "train.log_every=4"]
    settings += ["train.validate_every=4", "train.validation_tasks=8", "train.tasks_per_step=4", "eval.tasks=4"]
    settings += ["train.kl_weight={start: 0.01, end: 1.0, steps: 5}", "train.clip=2.0", "train.clip_value=0.5"]
    config = config_of([*settings, "train.clip_each=1.0", "train.on_nan=skip"])
    results = run(config, tmp_path / "run")
    setup = set_up(config)
    history = fit(
        setup.learner,
        setup.tasks.stream("train"),
        setup.tasks.validation,
        steps=12,
        optimiser=OptimisationBySettings(setup.learner, config.train),
        folder=tmp_path / "fit",
        kl_weight={"start": 0.01, "end": 1.0, "steps": 5},
        clip=2.0,
        clip_value=0.5,
        clip_each=1.0,
        on_nan="skip",
        seed=3,
        **SMALL,
    )
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "fit") == without_seconds(history)
    for which in ("learner", "best"):
        states = [checkpoint.load(tmp_path / name / "checkpoint.pt")[which]["weights"] for name in ("run", "fit")]
        assert differing(*states) == []
    assert (results["skipped"], results["steps"]) == (history.skipped, history.steps) and history.seconds > 0


def test_no_steps_leave_an_untrained_learner(tmp_path: Path) -> None:
    learner = SAVI.learner(seed=0)
    before = weights_of(learner)
    history = fit(learner, WatchedStream(), val(), steps=0, folder=tmp_path)
    assert not history.lines and differing(weights_of(MetaLearner.load(tmp_path)), before) == []
    with refuses(r"^expected a training with a validation, got a training of 0 steps; set steps >= 1$"):
        history.best  # noqa: B018


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    tasks = [random_tasks(4, seed=seed) for seed in range(3)]
    tasks[1].query_x[0] = torch.nan
    _, history = trained(SAVI, default, None, train=tasks, on_nan="skip")
    assert history.skipped == 4 and history.steps == STEPS  # one of three batches
    with refuses(r"^training has diverged: first non-finite value at step 2: .*$"):
        trained(SAVI, default, tmp_path, train=tasks)


def test_the_scheduler_sets_the_rate_of_each_step() -> None:
    """SGD with rates 1, 0, 0, ...: only the first step moves."""
    learner = Pair("proto", "flat").learner(seed=0)
    optimiser = SGD(learner.parameters(), lr=1.0)
    scheduler = LambdaLR(optimiser, lambda step: float(step == 0))
    scales: list[float] = []
    fit(
        learner,
        WatchedStream(),
        val(),
        steps=3,
        optimiser=optimiser,
        scheduler=scheduler,
        callbacks=[lambda line: scales.append(learner.model.head.scale.item())],
        **SMALL | {"log_every": 1},
    )
    assert scales[0] != 10.0 and scales == [scales[0]] * 3


def test_a_plateau_is_told_the_validation_nll() -> None:
    learner = Pair("proto", "flat").learner(seed=0)
    optimiser = SGD(learner.parameters(), lr=1.0)
    scheduler = ReduceLROnPlateau(optimiser)
    history = fit(learner, WatchedStream(), val(), steps=8, optimiser=optimiser, scheduler=scheduler, **SMALL)
    assert scheduler.best == history.best["val_nll"] and scheduler.last_epoch == 2


def test_optimisers_and_schedulers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    learner, other = SAVI.learner(), SAVI.learner()
    adam = Adam(learner.parameters())

    def fitted(**arguments: Any) -> None:
        fit(learner, WatchedStream(), val(), steps=1, **SMALL | arguments)

    with refuses(r"^expected optimiser to be a torch\.optim\.Optimizer, got the class Adam; pass for example .*$"):
        fitted(optimiser=Adam)
    with refuses(
        r"^expected an optimiser of parameters of this learner, got an optimiser with \d+ parameters of another mod"
    ):
        fitted(optimiser=Adam(other.parameters()))
    with refuses(r"^expected an optimiser whose step needs no closure, got LBFGS; use for example Adam$"):
        fitted(optimiser=torch.optim.LBFGS(learner.parameters()))
    for none in (None, OptimisationBySettings(learner, TrainSettings())):
        with refuses(r"^expected optimiser= together with scheduler=, got a scheduler only; pass its optimiser$"):
            fitted(optimiser=none, scheduler=CosineAnnealingLR(adam, 5))
    with refuses(r"^expected a scheduler of this optimiser, got a scheduler of another optimiser; .*$"):
        fitted(optimiser=adam, scheduler=CosineAnnealingLR(Adam(learner.parameters()), 5))
    with refuses(r"^expected scheduler to be an object of torch\.optim\.lr_scheduler, got float; pass for example .*$"):
        fitted(optimiser=adam, scheduler=0.1)
    trained(SAVI, one_cycle, tmp_path)
    for rule in (default, alone, recursive_cosine):
        with refuses(r"^expected .*(optimiser|parameter groups|scheduler).* the interrupted training, got .*$"):
            trained(SAVI, rule, tmp_path)


def test_an_optimiser_of_frozen_parameters_is_refused() -> None:
    frozen = plain(frozen=True)
    with refuses(r"^expected an optimiser of trained parameters, got only parameters of a frozen backbone; .*$"):
        fit(frozen, random_tasks(4), random_tasks(4), steps=1, optimiser=SGD(frozen.backbone.parameters(), lr=0.1))


def test_schedulers_that_end_too_early_or_wait_for_a_rise_are_refused() -> None:
    learner = plain()
    sgd = SGD(learner.parameters(), lr=0.1)
    weights = weights_of(learner)
    with refuses(r"^expected a scheduler of at least 5 steps, like the training, got OneCycleLR with total_steps=4; "):
        fit(learner, random_tasks(4), val(), steps=5, optimiser=sgd, scheduler=OneCycleLR(sgd, 0.1, total_steps=4))
    with refuses(r'^expected ReduceLROnPlateau with mode="min" for the NLL, got mode="max"; remove mode=$'):
        fit(learner, random_tasks(4), val(), steps=1, optimiser=sgd, scheduler=ReduceLROnPlateau(sgd, "max"))
    assert differing(weights_of(learner), weights) == []


# ---------------------------------------------------------------- accumulation


@pytest.mark.parametrize("pair", [SIB, SAVI, MC, Pair("maml", "flat"), Pair("proto", "flat")], ids=str)
def test_accumulated_gradients_are_those_of_one_batch(pair: Pair) -> None:
    """To rounding, noise included, with SGD, since Adam makes steps of rounding alone."""

    def sgd(learner: MetaLearner) -> tuple[Optimizer, None]:
        return SGD(learner.parameters(), lr=1e-3), None

    one, _ = trained(pair, sgd, None, batch_size=8)
    four, _ = trained(pair, sgd, None, batch_size=2, accumulate=4)
    before = weights_of(pair.learner(seed=0))
    assert differing(before, weights_of(one)), "nothing was trained"
    for name, value in weights_of(one).items():
        torch.testing.assert_close(weights_of(four)[name], value, rtol=1e-4, atol=1e-6)


def test_unequal_batches_are_not_accumulated() -> None:
    batches = [random_tasks(4), random_tasks(3)]
    with refuses(r"^expected the same number of tasks in all batches of a step, got \[3, 4\]; change the batches$"):
        trained(SAVI, default, None, train=lambda number: batches[number % 2], accumulate=2)


# ---------------------------------------------------------------- early stopping, callbacks, history


def test_patience_counts_validations_and_the_best_weights_stay(tmp_path: Path) -> None:
    """A training that only gets worse ends after 1 + patience validations, and stays ended when called again."""

    def worse(learner: MetaLearner) -> tuple[Optimizer, None]:
        return SGD(learner.parameters(), lr=30.0, maximize=True), None

    def by(patience: int | None, folder: Path | None) -> tuple[MetaLearner, History]:
        return trained(Pair("proto", "flat"), worse, folder, validate_every=1, log_every=1, patience=patience)

    _, whole = by(None, None)
    scores = whole.curve("val_nll")[1]
    assert min(scores) == scores[0] and not whole.stopped_early and whole.steps == STEPS
    learner, history = by(2, tmp_path)
    assert history.steps == 3 and history.stopped_early and history.best["step"] == 1
    assert learner.model.head.scale.item() == pytest.approx(_after_first_step(by))
    again, same = by(2, tmp_path)
    assert same.steps == 3 and without_seconds(same) == without_seconds(history)
    assert differing(weights_of(again), weights_of(learner)) == []
    assert by(5, tmp_path)[1].steps == 6, "with more patience it goes on"


def _after_first_step(by: Callable[[int | None, Path | None], tuple[MetaLearner, History]]) -> float:
    return by(1, None)[0].model.head.scale.item()


def test_callbacks_see_every_logged_line_and_change_nothing() -> None:
    seen: list[Any] = []

    def drawing(line: Any) -> None:
        torch.randn(10)
        seen.append(line)

    learner, history = trained(SAVI, one_cycle, None, log_every=3, validate_every=6, callbacks=[drawing])
    other, _ = trained(SAVI, one_cycle, None, log_every=3, validate_every=6)
    assert seen == list(history.lines) and [line["step"] for line in seen] == [3, 6, 9, 12]
    assert ["val_nll" in line for line in seen] == [False, True, False, True]
    assert differing(weights_of(learner), weights_of(other)) == []
    steps, losses = history.curve("loss")
    assert steps == [3, 6, 9, 12] and losses == [line["loss"] for line in seen]
    assert history.curve("val_nll")[0] == [6, 12]


@pytest.mark.parametrize(
    "name", ["accumulate", "patience", "log_every", "validate_every", "validation_tasks", "batch_size"]
)
def test_counts_below_one_are_refused(name: str) -> None:
    arguments = {"steps": 1} | SMALL | {name: 0}
    with refuses(rf"^expected {name} to be an integer >= 1, got 0$"):
        fit(SAVI.learner(), WatchedStream(), val(), **arguments)


# ---------------------------------------------------------------- tasks of the user


def test_episodes_are_tasks_that_repeat() -> None:
    given = random_tasks(6)
    lists = [given.tasks(slice(0, 2)), given.tasks(slice(2, 6))]
    one, _ = trained(SAVI, default, None, train=given)
    other, _ = trained(SAVI, default, None, train=lists)
    assert differing(weights_of(one), weights_of(other)) == []
    scores = evaluate(one, given, progress=False), evaluate(one, lists, progress=False)
    assert len(scores[0].per_task["nll"]) == 6
    assert np.array_equal(scores[0].per_task["nll"], scores[1].per_task["nll"])


def made(number: int) -> Episodes:
    """A batch that depends on torch's random numbers, like that of a simulator."""
    return random_tasks(4, seed=int(torch.randint(1000, ())))


class Epoch:
    """An iterable of three batches."""

    def __iter__(self) -> Iterator[Episodes]:
        return (made(number) for number in range(3))


@pytest.mark.parametrize(
    "batches",
    [lambda: made, lambda: (made(number) for number in range(100)), Epoch],
    ids=["function", "generator", "iterable"],
)
def test_batches_of_a_function_or_an_iterable_resume_too(batches: Callable[[], Any], tmp_path: Path) -> None:
    learner, history = trained(SAVI, default, None, train=batches(), accumulate=2)
    with pytest.raises(Interrupted):
        trained(SAVI, default, tmp_path, train=batches(), accumulate=2, callbacks=[interrupting(4)])
    resumed, whole = trained(SAVI, default, tmp_path, train=batches(), accumulate=2)
    assert without_seconds(whole) == without_seconds(history)
    assert differing(weights_of(resumed), weights_of(learner)) == []


def test_tasks_that_are_none_are_refused() -> None:
    learner = SAVI.learner()
    with refuses(r"^expected train to be a TaskStream, .* got an object of type int; .*$"):
        fit(learner, 3, val(), steps=1)
    with refuses(r"^expected val to be a TaskStream, .* with at least one task, got .* function; .*$"):
        fit(learner, WatchedStream(), made, steps=1)
    with refuses(r"^expected the same number of classes in all tasks of val, got \[3, 4\]; pass one list for each$"):
        fit(learner, WatchedStream(), [random_tasks(2), random_tasks(2, way=4)], steps=1)
    with refuses(r"^expected batches of type Episodes from train, got an object of type int as batch 0; .*$"):
        fit(learner, lambda number: number, val(), steps=1)
    with refuses(r"^expected a batch of tasks for every step, got an iterator that has ended; .*$"):
        fit(learner, iter([random_tasks(4)]), val(), steps=2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"learner": nn.Linear(1, 1)},
            "learner to be of type MetaLearner, got an object of type Linear; construct one with",
        ),
        ({"learner": MetaLearner}, "learner to be of type MetaLearner, got the class MetaLearner; construct one with"),
        ({"learner": None}, "learner to be of type MetaLearner, got an object of type NoneType; construct one with"),
        ({"steps": None}, "steps to be an integer >= 0, got None"),
        ({"steps": True}, "steps to be an integer >= 0, got True"),
        ({"batch_size": None}, "batch_size to be an integer >= 1, got None"),
        ({"clip": "x"}, "clip to be a finite number >= 0, got 'x'"),
        ({"callbacks": print}, "callbacks to be a list of functions, got <built-in function print>; pass"),
        ({"callbacks": [3]}, r"callbacks to be a list of functions, got \[3\]; pass"),
    ],
    ids=str,
)
def test_arguments_of_other_types_are_refused(changed: dict[str, Any], message: str) -> None:
    with refuses(rf"^expected {message}"):
        fit(**{"learner": SAVI.learner(), "train": WatchedStream(), "val": val(), "steps": 1} | SMALL | changed)


def test_an_evaluation_prints_as_a_table() -> None:
    evaluation = evaluate(SAVI.learner(seed=0), val(), EvalSettings(tasks=8, samples=2), progress=False)
    table = str(evaluation).splitlines()
    assert table[0].split() == ["metric", "value", "95%", "interval", "unit"]
    rows = {line.split()[0]: line for line in table[1:]}
    mean = evaluation.metrics["accuracy"]["mean"]
    assert f"{mean:.4f}" in rows["accuracy"] and "+- " in rows["accuracy"] and rows["accuracy"].endswith("share")
    assert "+- " in rows["nll"] and "+- " not in rows["ece"] and "rmse" not in rows
    with refuses(r"^expected settings.tasks <= 3 \(the given tasks\), got 8; reduce settings.tasks$"):
        evaluate(SAVI.learner(), random_tasks(3), EvalSettings(tasks=8), progress=False)


# ---------------------------------------------------------------- plain modules


def test_a_plain_module_is_trained_as_a_backbone() -> None:
    learner = plain()
    before = weights_of(learner)
    history = fit(learner, WatchedStream(), val(), steps=STEPS, optimiser=Adam(learner.parameters(), 1e-2), **SMALL)
    moved = differing(before, weights_of(learner))
    assert {"backbone.module.0.weight", "backbone.module.2.bias", "model.head.scale"} <= set(moved)
    assert history.best["val_nll"] == min(history.curve("val_nll")[1])
    lengths = learner.embed(torch.randn(7, FEATURES)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(7))
    assert learner.predict(torch.randn(3, FEATURES), [0, 1, 2], torch.randn(4, FEATURES)).probabilities.shape == (4, 3)


def test_parts_are_names_settings_classes_or_objects() -> None:
    """Every mixture builds the same learner."""
    model = few_shot_classifier.Model(heads.Cosine(), priors.Gaussian(FEATURES))
    guide = mean_field.Guide(model, WAY, FEATURES, 0.2)
    settings = {"_target_": "guides.mean_field.Guide", "scale": 0.2}
    mixtures: list[dict[str, Any]] = [
        {"guide": settings, "prior": "gaussian"},
        {"guide": settings | {"_target_": mean_field.Guide}, "prior": priors.Gaussian, "head": heads.Cosine()},
        {"guide": settings, "model": model, "objective": Elbo()},
        {"guide": guide, "objective": "pyro_metabayes.objectives.elbo.Elbo"},
        {"guide": guide, "backbone": identity.Backbone([FEATURES])},
        {"guide": settings, "prior": {"_target_": "models.priors.Gaussian"}, "model": "few_shot_classifier"},
    ]
    for mixture in mixtures:
        arguments = {"backbone": "identity", "objective": "elbo"} | mixture
        if arguments["backbone"] == "identity":
            arguments["input_shape"] = [FEATURES]
        learner = MetaLearner.build(**arguments, num_classes=WAY)
        specification = learner.specification
        assert specification["guide"] == {"_target_": "guides.mean_field.Guide", "scale": 0.2}
        assert specification["prior"] == {"_target_": "models.priors.Gaussian"}
        assert specification["backbone"] == {"_target_": "models.backbones.identity.Backbone"}
        assert learner(random_tasks())["loss"].isfinite()


def test_parts_that_cannot_be_built_are_refused() -> None:
    with refuses(r"^expected guide\._target_ in an existing module, found no 'guides\.sibb'; fix the name$"):
        plain(guide="sibb")
    with refuses(r"to be a dotted name under models\., guides\., pyro_metabayes\., got 3$"):
        plain(guide={"_target_": 3})
    with refuses(r"^expected a prior for pyro_metabayes\.models\.few_shot_classifier, got none; pass prior=.*$"):
        plain(prior=None)
    with refuses(r"^expected the argument input_shape, got none; pass .*$"):
        plain(input_shape=None)
    for guide, got in ((nn.Linear(1, 1), "Linear"), (None, "NoneType")):
        with refuses(
            rf"^expected guide to be a name, a class, a mapping with _target_, or an object .* got {got}; .*$"
        ):
            plain(guide=guide)
    with refuses(r"^expected the backbone to map inputs .* \[N, D\], got the shape \[1, 4, 6, 6\] for N = 1; end .*$"):
        plain(nn.Conv2d(3, 4, 3), input_shape=[3, 8, 8])
    with refuses(r"^expected the backbone to accept inputs \[N, 7\], got the error: mat1 and mat2 .*$"):
        plain(input_shape=[7])
    with refuses(r"^expected batch norm with running statistics in the backbone, .* use nn\.GroupNorm$"):
        plain(nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4, track_running_stats=False)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"normalize": False}, "unknown key 'normalize'; did you mean 'normalise'"),
        ({"num_clases": 2}, "unknown key 'num_clases'; did you mean 'num_classes'"),
        ({"lr": 3}, "unknown key 'lr'; MetaLearner.build takes: backbone, "),
        ({"frozen": "yes"}, "expected frozen to be True or False, got 'yes'"),
        ({"normalise": 3}, "expected normalise to be True or False, got 3"),
        ({"particles": 0}, "expected particles to be an integer >= 1, got 0"),
        *(({"num_classes": value}, "expected num_classes to be an integer >= 1, got") for value in (0, -1, "2", 2.5)),
        *(({"input_shape": value}, "expected input_shape to be a list of integers >= 1") for value in (64, "5", [5.0])),
    ],
    ids=str,
)
def test_arguments_of_build_are_checked(changed: dict[str, Any], message: str) -> None:
    with refuses(f"^{message}"):
        plain(**changed)


class Empty(pyro_metabayes.Guide):
    """A guide without a posterior."""


class OfTorch(pyro_metabayes.Guide):
    """A guide whose posterior is a distribution of torch, not of Pyro."""

    def posterior(self, observed: Observed) -> Any:
        means = pyro_metabayes.class_means(observed)
        return torch.distributions.Independent(torch.distributions.Normal(means, 1.0), 2)


class ThePrior(pyro_metabayes.Guide):
    """A guide whose posterior is the prior."""

    def posterior(self, observed: Observed) -> Any:
        return self.model.prior(observed)


def test_guides_of_users_that_do_not_fit_are_refused() -> None:
    with refuses(r"^expected a guide that defines posterior\(.*\), got Empty without posterior; define posterior$"):
        plain(guide=Empty, prior="gaussian")
    with refuses(r"^expected a posterior that can be sampled, got the flat prior; use a proper prior, such as "):
        fit(plain(guide=ThePrior), random_tasks(4), random_tasks(4), steps=1)
    with refuses(r"^expected the guide's distribution to be one of pyro\.distributions, got torch\.dist.*; import it "):
        fit(plain(guide=OfTorch, prior="gaussian"), random_tasks(4), random_tasks(4), steps=1)


def test_the_table_of_the_page_is_that_of_the_settings() -> None:
    page = (ROOT / "docs/train-from-python.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| `(\w+)`.*? \| `(\w+)`.*? \| ([\d.]+).*? \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for names, prior, objective, kl_weight in rows:
        for name in re.findall(r"\w+", names):
            settings: Any = OmegaConf.load(ROOT / f"experiments/conf/guide/{name}.yaml")
            chosen = {key: value for entry in settings.defaults for key, value in entry.items()}
            assert (chosen["override /prior"], chosen["override /objective"]) == (prior, objective), name
            assert settings.get("train", {}).get("kl_weight", 1) == float(kl_weight), name
            assert plain(guide=name, prior=prior, objective=objective)(random_tasks())["loss"].isfinite()


def test_batch_norm_keeps_its_statistics_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    learner = plain(nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4)))
    before = weights_of(learner)
    fit(learner, WatchedStream(), val(), steps=STEPS, optimiser=Adam(learner.parameters(), 1e-2), **SMALL)
    moved = differing(before, weights_of(learner))
    assert "backbone.module.1.weight" in moved and not [name for name in moved if "running" in name]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: the running statistics")]
    assert len(notes) == 1
    fit(plain(), WatchedStream(), val(), steps=1, **SMALL)
    assert "note: the running statistics" not in capsys.readouterr().err


def test_features_of_other_lengths_are_refused_by_the_cosine_head() -> None:
    message = (
        r"^expected features of unit length for head=cosine, got lengths from .*; scale them .*or set head=linear$"
    )
    learner = plain(normalise=False)
    tasks = random_tasks(4)
    with refuses(message):
        fit(learner, tasks, tasks, steps=1)
    with refuses(message):
        evaluate(learner, tasks, progress=False)
    with refuses(message):
        learner.predict(tasks.support_x[0], tasks.support_y[0], tasks.query_x[0])
    long = replace(tasks, support_x=3 * tasks.support_x)
    with refuses(message):
        Pair("proto", "flat").learner()(long)
    fit(plain(normalise=False, head="linear"), tasks, tasks, steps=1)
    masked = replace(tasks, support_mask=torch.ones(tasks.support_y.shape, dtype=torch.bool))
    masked.support_mask[:, -1] = False
    masked.support_x[:, -1] = 7.0
    Pair("proto", "flat").learner()(masked)


# ---------------------------------------------------------------- saving


def test_save_refuses_what_load_could_not_rebuild(tmp_path: Path) -> None:
    file = tmp_path / "learner.pt"
    learner = plain()
    with refuses(r"^load could not rebuild the learner: expected backbone\.module .* plain value .*; or save only the w"):
        learner.save(file)
    changed = Pair("proto", "flat").learner()
    changed.model.head.scale = nn.Parameter(torch.ones(2))
    with refuses(r"^load could not rebuild the learner: .*: model\.head\.scale has shape .*; or save only"):
        changed.save(file)
    assert not file.exists()
    learner.save(file, weights_only=True)
    with refuses(r"^expected a learner with its specification at .*, got only weights; .*load\(path, into=learner\)$"):
        MetaLearner.load(file)
    other = plain(network(seed=1))
    assert differing(weights_of(learner), weights_of(other))
    assert MetaLearner.load(file, into=other) is other
    assert differing(weights_of(learner), weights_of(other)) == []
    with refuses(r"^expected a checkpoint of this model and guide, got another: .*$"):
        MetaLearner.load(file, into=Pair("proto", "flat").learner())


def test_a_training_of_a_plain_module_loads_from_its_folder(tmp_path: Path) -> None:
    learner = plain()
    fit(learner, WatchedStream(), val(), steps=4, folder=tmp_path, **SMALL)
    other = MetaLearner.load(tmp_path, into=plain(network(seed=1)))
    assert differing(weights_of(learner), weights_of(other)) == []


NOTEBOOK = """
import torch
import pyro_metabayes
from pyro.distributions import Normal
from pyro_metabayes import MetaLearner, UsageError, class_means, fit

class Guide(pyro_metabayes.Guide):
    def __init__(self, model, num_weights, scale: float = 0.1):
        super().__init__(model)
        self.log_scale = torch.nn.Parameter(torch.full((num_weights,), scale).log())
    def posterior(self, observed):
        return Normal(class_means(observed), self.log_scale.exp()).to_event(2)

class Backbone(pyro_metabayes.Backbone):
    def __init__(self, input_shape):
        super().__init__()
        (self.num_features,) = input_shape
        self.linear = torch.nn.Linear(5, 5)
    def forward(self, x):
        return torch.nn.functional.normalize(self.linear(x), dim=-1)

def build():
    guide = {"_target_": Guide, "scale": 0.2}
    return MetaLearner.build(Backbone, guide, prior="gaussian", objective="elbo", input_shape=[5], num_classes=3)

learner = build()
history = fit(learner, tasks, tasks, steps=4, folder=folder / "run", validate_every=2)
assert [line["step"] for line in history.lines] == [2, 4]
try:
    learner.save(folder / "learner.pt")
except UsageError as error:
    assert "at the top level of a module" in str(error) and "weights_only=True" in str(error), error
else:
    raise AssertionError("saved, but nothing could load it")
learner.save(folder / "learner.pt", weights_only=True)
for saved in ("learner.pt", "run"):
    other = MetaLearner.load(folder / saved, into=build())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in learner.state_dict().items())
"""


def test_classes_of_a_notebook_are_trained_and_their_weights_saved(tmp_path: Path) -> None:
    exec(compile(NOTEBOOK, "notebook", "exec"), {"__name__": "__main__", "folder": tmp_path, "tasks": random_tasks(8)})


# ---------------------------------------------------------------- data sets


class Squares(Dataset[Any]):
    """A data set of ten classes of six images. It counts how often each image is read."""

    def __init__(self, transform: Callable[[Tensor], Any] = lambda x: x, listed: bool = True) -> None:
        self.transform, self.read = transform, [0] * 60
        self.labels_of_items = [(7 * item) % 10 for item in range(60)]
        self.classes = [f"class {label}" for label in range(10)]
        if listed:
            self.targets = self.labels_of_items

    def __len__(self) -> int:
        return 60

    def __getitem__(self, item: int) -> tuple[Any, int]:
        self.read[item] += 1
        label = self.labels_of_items[item]
        generator = torch.Generator().manual_seed(item)
        image = torch.randint(20 * label, 20 * label + 20, (1, 4, 4), dtype=torch.uint8, generator=generator)
        return self.transform(image), label


SPLITS = {"train": range(5), "val": range(5, 7), "test": range(7, 10)}


def test_a_dataset_is_read_when_a_task_needs_it() -> None:
    dataset = Squares()
    bank = Bank.from_dataset(dataset, SPLITS)
    assert bank.input_shape == (1, 4, 4) and list(bank.class_names[:2]) == ["class 0", "class 1"]
    assert sum(dataset.read) <= 3, "labels are listed; one item gives the shape"
    stream = bank.tasks("train", way=3, shot=1, query=2)
    before = sum(dataset.read)
    batch = stream.batch(0, 4)
    assert sum(dataset.read) - before == 4 * 3 * 3
    assert batch.support_x.dtype == torch.uint8 and tuple(batch.query_x.shape) == (4, 6, 1, 4, 4)
    classes = batch.classes
    assert classes is not None
    own = batch.query_x.flatten(2).float().mean(-1).div(20).floor().long()
    assert torch.equal(own, classes.gather(1, batch.query_y)), "the inputs of another class"
    assert {label for label in classes.flatten().tolist()} <= set(SPLITS["train"])


def test_labels_of_every_kind_of_dataset_are_found() -> None:
    x, y = torch.randn(60, 4), torch.arange(60) % 10
    expected = Bank.from_dataset(TensorDataset(x, y), SPLITS)
    numbers = expected.tasks("test", way=3, query=2).batch(0, 4).query_x
    halves = [TensorDataset(x[:30], y[:30]), TensorDataset(x[30:], y[30:])]
    whole = Subset(TensorDataset(torch.cat((x[:5], x)), torch.cat((y[:5], y))), range(5, 65))
    arrays = [(value.numpy(), int(label)) for value, label in zip(x, y, strict=True)]
    for dataset in (ConcatDataset(halves), whole, arrays):
        other = Bank.from_dataset(dataset, SPLITS)  # type: ignore[arg-type]
        assert torch.equal(other.class_sizes, expected.class_sizes) and other.fingerprint() == expected.fingerprint()
        assert torch.equal(other.tasks("test", way=3, query=2).batch(0, 4).query_x, numbers)
    unlisted, listed = Squares(listed=False), Squares()
    banks = [Bank.from_dataset(dataset, SPLITS) for dataset in (unlisted, listed)]
    assert banks[0].fingerprint() == banks[1].fingerprint()
    named = [(value, f"bird {label}") for value, label in arrays]
    bank = Bank.from_dataset(named, {"train": ["bird 3", "bird 4"]})  # type: ignore[arg-type]
    assert [bank.class_names[index] for index in bank.splits["train"]] == ["bird 3", "bird 4"]


def test_random_transforms_leave_the_noise_alone_and_resume(tmp_path: Path) -> None:
    def noisy(image: Tensor) -> Tensor:
        return image.float() / 255 + 0.1 * torch.rand(())

    def run(folder: Path | None, callbacks: Any = (), **others: Any) -> MetaLearner:
        bank = Bank.from_dataset(Squares(noisy), SPLITS)
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
        learner = plain(module, "savi", "conditional", input_shape=[1, 4, 4], num_classes=2)
        train, validation = bank.tasks("train", way=2, query=2), bank.tasks("val", way=2, query=2)
        rest = SMALL | others
        fit(learner, train, validation, steps=8, folder=folder, callbacks=callbacks, **rest)
        return learner

    whole = weights_of(run(None))
    assert differing(weights_of(run(None, log_every=1, validate_every=8)), whole) == []
    with pytest.raises(Interrupted):
        run(tmp_path, callbacks=[interrupting(4)])
    assert differing(weights_of(run(tmp_path)), whole) == []


def test_features_of_a_dataset_are_those_of_its_items() -> None:
    bank = Bank.from_dataset(Squares(), SPLITS)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
    learner = plain(module, input_shape=[1, 4, 4], frozen=True)
    features = embed_bank(learner.backbone, bank, torch.device("cpu"))
    tasks, embedded = (each.tasks("test", way=3, query=2).batch(0, 2) for each in (bank, features))
    torch.testing.assert_close(learner.embed(tasks.query_x), embedded.query_x)
    assert features.input_shape == (6,) and learner(embedded)["loss"].isfinite()


def test_datasets_that_are_none_are_refused() -> None:
    with refuses(r"^expected the splits train, val, test, got 'valid'; rename 'valid'$"):
        Bank.from_dataset(Squares(), {"train": range(5), "valid": range(5, 7)})
    with refuses(r"^expected each class in one split, got class 4 in two splits; remove the class from one split$"):
        Bank.from_dataset(Squares(), {"train": range(5), "val": range(4, 7)})
    with refuses(
        r"^expected labels of the dataset in split val, got 10; use only labels of the dataset: 0, 1, .*, 7, \.\.\.$"
    ):
        Bank.from_dataset(Squares(), {"train": range(5), "val": [10]})
    with refuses(r"^expected tensors or arrays as inputs of the dataset, got str in item \d+; add a transform .*$"):
        Bank.from_dataset(Squares(lambda image: "pixels"), SPLITS)
    with refuses(r"^expected items \(input, label\) with an integer or text as label, got Tensor .* as item 0; .*$"):
        Bank.from_dataset(torch.randn(5, 3), SPLITS)  # type: ignore[arg-type]
    with refuses(r"^expected a torch Dataset of \(input, label\) with a length .*, got DataLoader; .*$"):
        Bank.from_dataset(DataLoader(Squares()), SPLITS)  # type: ignore[arg-type]
    sizes = Squares(lambda image: image[:, : int(image[0, 0, 0]) % 3 + 1])
    with refuses(r"^expected inputs of one shape, got .* in item \d+ and .* in item \d+; add a transform .*$"):
        Bank.from_dataset(sizes, SPLITS).tasks("train", way=3, query=2).batch(0, 4)


@pytest.mark.parametrize("splits", [None, [range(5)], {"train": 0.6}, {"train": "birds"}, 0.6], ids=str)
def test_splits_that_do_not_list_classes_are_refused(splits: Any) -> None:
    with refuses(
        r"^expected splits with the class labels of each split, as .*, got .*; list the labels of each split$"
    ):
        Bank.from_dataset(Squares(), splits)


def test_listed_labels_have_to_be_those_of_the_items() -> None:
    short, first, later = Squares(), Squares(), Squares()
    short.targets = short.targets[:-1]
    first.targets = [9, *first.targets[1:]]
    later.targets = [*later.targets[:14], 0, *later.targets[15:]]  # item 14 is of class 8
    with refuses(r"^expected one label for each of the 60 items in `targets` .* of the dataset, got 59 labels; .*$"):
        Bank.from_dataset(short, SPLITS)
    with refuses(r"^expected item 0 of the dataset to have the label 9, .*, got 0; .*$"):
        Bank.from_dataset(first, SPLITS)
    with refuses(r"^expected item 14 of the dataset to have the label 0, .*, got 8; .*$"):
        Bank.from_dataset(later, SPLITS).tasks("train", way=5, query=5).batch(0, 8)
    with refuses(r"^expected real inputs of the dataset, got torch\.complex64 in item \d+; .*$"):
        Bank.from_dataset(Squares(lambda image: torch.complex(image.float(), image.float())), SPLITS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_tasks", 0), ("num_tasks", 2.0), ("seed", "1"), ("seed", 0.5), ("way", "2"), ("way", 2.0), ("query", True)],
)
def test_tasks_of_a_bank_take_integers(name: str, value: Any) -> None:
    with refuses(rf"^expected {name} to be an integer >= [01], got {value!r}$"):
        Bank.from_dataset(Squares(), SPLITS).tasks("train", **{"way": 2, "query": 2} | {name: value})


def test_tasks_without_queries_are_refused() -> None:
    tasks = random_tasks(4)
    empty = replace(tasks, query_x=tasks.query_x[:, :0], query_y=tasks.query_y[:, :0], query_mask=None)
    message = r"^expected tasks with query points from .*, got Episodes with none; add queries$"
    for train, validation in ((empty, tasks), (tasks, empty), (lambda number: empty, tasks)):
        with refuses(message):
            fit(SAVI.learner(), train, validation, steps=1)
    with refuses(message):
        evaluate(SAVI.learner(), empty, progress=False)


@pytest.mark.parametrize("settings", [50, 0, {"tasks": 50}, {}, EvalSettings])
def test_settings_of_an_evaluation_are_an_object(settings: Any) -> None:
    with refuses(r"^expected settings to be of type EvalSettings, got .*; pass for example EvalSettings\(tasks=100\)$"):
        evaluate(SAVI.learner(), random_tasks(4), settings, progress=False)


def test_the_names_are_of_the_package() -> None:
    assert {"fit", "evaluate", "Bank", "Interrupted"} <= set(pyro_metabayes.__all__)
    code = "import sys, pyro_metabayes; print('lightning_fabric' in sys.modules, 'sklearn' in sys.modules)"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "False False\n"
    with pytest.raises(AttributeError):
        pyro_metabayes.fitt  # noqa: B018


def test_an_optimiser_of_some_parameters_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    learner = plain(guide=proto.Guide)
    before = weights_of(learner)
    optimiser = SGD(learner.backbone.parameters(), lr=0.1)
    fit(learner, WatchedStream(), val(), steps=4, optimiser=optimiser, **SMALL)
    moved = differing(before, weights_of(learner))
    assert moved and all(name.startswith("backbone.") for name in moved)
    assert "note: the optimiser lacks the parameters model.head.scale, model.head.bias, so" in capsys.readouterr().err
