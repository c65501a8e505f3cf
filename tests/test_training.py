"""The training loop: its settings, its stops, and resumed trainings that equal uninterrupted ones."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Generator, Tensor, nn

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, UsageError
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import BLOCK
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.experiments.runs.plots import draw_curves
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.training.fabric import fabric_alone
from pyro_metabayes.training.log import null_nonfinite
from pyro_metabayes.training.loop import MetaTraining
from pyro_metabayes.training.optimisation import (
    TrainSettings,
    clip_gradients,
    compile_networks,
    idle_rates,
    kl_weight_at,
    make_optimizer,
    set_rates,
)
from tests.pairs import Pair, random_tasks
from tests.test_objectives import NoSynchronisation

SHORT = TrainSettings(steps=12, tasks_per_step=8, learning_rate=1e-2, log_every=1, validate_every=4, validation_tasks=8)
SIB = Pair("sib", settings={"num_steps": 2, "step_size": 0.05, "learn_step_size": True, "inner_samples": 2})
STOCHASTIC = [SIB, Pair("savi", "conditional"), Pair("mc", "conditional", objective="monte_carlo")]


def draw(generator: Generator) -> Episodes:
    """A block of tasks of random features: a tiny source."""
    return random_tasks(BLOCK, seed=int(torch.randint(2**31, (), generator=generator)))


class Normalised(pyro_metabayes.Backbone):
    """A backbone with a linear layer and a batch norm. Features have unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 5
        self.layers = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(x), dim=-1)


class WatchedStream(TaskStream):
    """A stream that calls `before(step)` when training asks for the tasks of a step for the first time."""

    def __init__(self, before: Callable[[int], None] = lambda step: None, change: Any = None) -> None:
        super().__init__(draw, seed=0, split="train")
        self.before, self.change, self.seen = before, change, -1

    def batch(self, start: int, stop: int) -> Episodes:
        step = start // (stop - start)
        if step > self.seen:
            self.seen = step
            self.before(step + 1)
        episodes = super().batch(start, stop)
        return self.change(step + 1, episodes) if self.change else episodes


def training_of(
    folder: Path,
    pair: Pair = SIB,
    settings: TrainSettings = SHORT,
    stream: TaskStream | None = None,
    **shape: int,
) -> MetaTraining:
    """A run with fresh weights and noise from seed 0."""
    learner = pair.learner(seed=0, particles=settings.particles, **shape)
    torch.manual_seed(0)
    return MetaTraining(
        learner=learner,
        stream=stream or WatchedStream(),
        validation=TaskStream(draw, seed=0, split="val"),
        settings=settings,
        folder=folder,
        fabric=fabric_alone(torch.device("cpu")),
        config={},
        seed=0,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in parsed:
        del line["seconds"]
    return parsed


def weights(training: MetaTraining) -> dict[str, Any]:
    return checkpoint.load(training.folder / "checkpoint.pt")["learner"]["weights"]


def assert_same_run(one: MetaTraining, other: MetaTraining) -> None:
    """Check that metrics, last and best weights and the optimiser are equal bit for bit."""
    assert lines(one.folder) == lines(other.folder)
    states = [checkpoint.load(training.folder / "checkpoint.pt") for training in (one, other)]
    for part in ("learner", "best"):
        first, second = (state[part]["weights"] for state in states)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
    of_optimizer = [state["training"]["optimizer"]["state"] for state in states]
    for index, values in of_optimizer[0].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(of_optimizer[1][index][name]))
    assert states[0]["training"]["best_nll"] == states[1]["training"]["best_nll"]


# ---------------------------------------------------------------- interrupted, resumed


def interrupt_at(step: int) -> WatchedStream:
    """A stream that sends SIGINT to this process during a step."""

    def before(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)

    return WatchedStream(before)


@pytest.mark.parametrize("pair", STOCHASTIC, ids=str)
@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_resumed_run_is_the_uninterrupted_one(pair: Pair, step: int, tmp_path: Path) -> None:
    whole = training_of(tmp_path / "whole", pair)
    whole.run()
    part = training_of(tmp_path / "part", pair, stream=interrupt_at(step))
    message = rf"interrupted after step {step} of 12; the same call continues from {tmp_path}/part"
    with pytest.raises(Interrupted, match=message):
        part.run()
    assert len(lines(part.folder)) == step
    torch.randn(100)  # another process has drawn other numbers
    resumed = training_of(tmp_path / "part", pair)
    resumed.run()
    assert_same_run(resumed, whole)


def test_lines_behind_the_checkpoint_are_taken_again(tmp_path: Path) -> None:
    """A run that is killed (not interrupted) has logged more than it has saved."""

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 7:
            raise Killed

    whole = training_of(tmp_path / "whole")
    whole.run()
    with pytest.raises(Killed):
        training_of(tmp_path / "part", stream=WatchedStream(kill)).run()
    assert len(lines(tmp_path / "part")) == 6
    resumed = training_of(tmp_path / "part")
    resumed.run()
    assert_same_run(resumed, whole)


def test_a_finished_run_takes_no_more_steps(tmp_path: Path) -> None:
    training_of(tmp_path).run()
    before = (tmp_path / "checkpoint.pt").read_bytes(), lines(tmp_path)
    training_of(tmp_path).run()
    assert before == ((tmp_path / "checkpoint.pt").read_bytes(), lines(tmp_path))


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def before(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as caught:
        training_of(tmp_path, stream=WatchedStream(before)).run()
    assert not isinstance(caught.value, Interrupted)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_logging_and_validation_do_not_move_the_noise(tmp_path: Path) -> None:
    """How often a run logs changes no weight."""
    often = training_of(tmp_path / "often", settings=replace(SHORT, log_every=1, validate_every=1))
    often.run()
    seldom = training_of(tmp_path / "seldom", settings=replace(SHORT, log_every=12, validate_every=12))
    seldom.run()
    first, second = weights(often), weights(seldom)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert len(lines(seldom.folder)) == 1


# ---------------------------------------------------------------- it trains


@pytest.mark.parametrize("pair", [*STOCHASTIC, Pair("proto", "flat"), Pair("mean_field")], ids=str)
def test_training_lowers_the_loss(pair: Pair, tmp_path: Path) -> None:
    """On the same eight tasks in every step, so that the loss need not fight their differences."""
    settings = replace(SHORT, steps=40, learning_rate=3e-2, log_every=2, validate_every=40)
    stream = WatchedStream(change=lambda step, episodes: random_tasks(8))
    training_of(tmp_path, pair, settings, stream).run()
    losses = [line["loss"] for line in lines(tmp_path)]
    assert max(losses[-3:]) < min(losses[:3])


def test_the_best_learner_is_returned(tmp_path: Path) -> None:
    """The least NLL on the validation stream, first of equals, whatever came last."""
    settings = replace(SHORT, steps=30, learning_rate=0.5, validate_every=3, schedule="constant")
    training = training_of(tmp_path, settings=settings)
    learner = training.run()
    validated = [line["val_nll"] for line in lines(tmp_path) if "val_nll" in line]
    assert len(validated) == 10 and training.state.best_nll == min(validated)
    best = checkpoint.load(tmp_path / "checkpoint.pt")["best"]["weights"]
    assert all(torch.equal(value, best[name]) for name, value in learner.state_dict().items())
    assert validated.index(min(validated)) < 9, "the last is the best: the test shows nothing"
    assert any(not torch.equal(value, weights(training)[name]) for name, value in best.items())


def test_the_logged_bound_carries_no_kl_weight(tmp_path: Path) -> None:
    training_of(tmp_path, Pair("savi", "conditional"), replace(SHORT, kl_weight=0.1)).run()
    for line in lines(tmp_path):
        assert line["elbo"] == pytest.approx(line["log_likelihood"] - line["kl"], rel=1e-5)
        assert line["loss"] == pytest.approx(0.1 * line["kl"] - line["log_likelihood"], rel=1e-5)


def test_no_divergence_is_logged_for_a_point_estimate(tmp_path: Path) -> None:
    """-log p(w) takes the place of the KL in the loss; as in results.json it is not called one."""
    training_of(tmp_path, Pair("proto", "gaussian")).run()
    for line in lines(tmp_path):
        assert line["kl"] is None and line["loss"] != pytest.approx(-line["log_likelihood"])


def test_no_bound_is_logged_where_there_is_none(tmp_path: Path) -> None:
    for name, pair in (
        ("flat", Pair("proto", "flat")),
        ("mc", STOCHASTIC[2]),
        ("delta", Pair("proto", "gaussian")),
    ):
        training_of(tmp_path / name, pair, replace(SHORT, steps=1)).run()
        assert [line["elbo"] for line in lines(tmp_path / name)] == [None]


def test_the_backbone_is_trained_only_when_it_is_not_frozen(tmp_path: Path) -> None:
    for frozen in (True, False):
        training = training_of(tmp_path / str(frozen))
        kept = training.learner
        torch.manual_seed(1)
        backbone = Normalised()
        learner = MetaLearner(backbone, kept.model, kept.guide, kept.objective, kept.specification, frozen)
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        training = MetaTraining(
            learner,
            WatchedStream(),
            training.validation,
            SHORT,
            tmp_path / str(frozen),
            training.fabric,
            {},
            seed=0,
        )
        training.run()
        after = weights(training)
        moved = [name for name in before if not torch.equal(before[name], after[f"backbone.{name}"])]
        assert moved == ([] if frozen else [f"layers.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")])


def test_particles_reach_the_objective(tmp_path: Path) -> None:
    training = training_of(tmp_path, STOCHASTIC[2], replace(SHORT, particles=3))
    assert training.learner.objective.particles == 3


def test_validation_of_pyro_is_on_for_the_first_step_alone(tmp_path: Path) -> None:
    training, seen = (
        training_of(tmp_path, Pair("proto", "flat")),
        [],
    )  # evaluation calls no guide without a density

    def watch(*_: Any) -> None:
        seen.append(torch.distributions.Distribution._validate_args)

    training.learner.guide.register_forward_pre_hook(watch)
    training.run()
    assert seen == [True] + [False] * (SHORT.steps - 1)


# ---------------------------------------------------------------- kl weight, rates, optimisers


def test_the_kl_weight_warms_up_in_a_line() -> None:
    schedule = {"start": 0.1, "end": 1.0, "steps": 9}
    assert [kl_weight_at(schedule, step) for step in (0, 3, 9, 20)] == pytest.approx([0.1, 0.4, 1.0, 1.0])
    assert kl_weight_at(0.3, 5) == 0.3
    assert schedule == {"start": 0.1, "end": 1.0, "steps": 9}, "the setting itself is left alone"


def test_the_kl_weight_of_a_step_is_used(tmp_path: Path) -> None:
    settings = replace(SHORT, kl_weight={"start": 0.01, "end": 1.0, "steps": 6})
    training_of(tmp_path, Pair("savi", "conditional"), settings).run()
    for line in lines(tmp_path):
        used = (line["loss"] + line["log_likelihood"]) / line["kl"]
        assert used == pytest.approx(0.01 + 0.99 * min((line["step"] - 1) / 6, 1), rel=1e-3)


@pytest.mark.parametrize(
    "weight",
    [
        *(0, -1, 0.0, "much", None, float("nan")),
        {"start": 1.0},
        {"start": 0.0, "end": 1.0, "steps": 5},
        {"start": 0.1, "end": 1.0, "steps": 0},
        {"start": 0.1, "end": 1.0, "steps": 5, "shape": "line"},
    ],
)
def test_a_kl_weight_that_is_none_is_refused(weight: Any) -> None:
    with pytest.raises(UsageError, match=r"expected train\.kl_weight to be a number > 0"):
        TrainSettings(kl_weight=weight)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "adamw"}, r"train\.optimizer to be one of adam, sgd, got 'adamw'"),
        ({"schedule": "step"}, r"train\.schedule to be one of cosine, constant, got 'step'"),
        ({"on_nan": "raise"}, r"train\.on_nan to be one of stop, skip, got 'raise'"),
        ({"steps": -1}, r"train\.steps >= 0 and finite, got -1"),
        ({"tasks_per_step": 0}, r"train\.tasks_per_step >= 1, got 0"),
        ({"particles": -1}, r"train\.particles >= 1, got -1"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainSettings(**changed)


def rate_of(learner: MetaLearner, settings: TrainSettings, step: int = 0) -> dict[str, float]:
    optimizer = make_optimizer(learner, settings)
    set_rates(optimizer, settings, step)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: rates[parameter] for name, parameter in learner.named_parameters() if parameter in rates}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_groups_have_their_own_rates_and_the_longest_name_wins(optimizer: str) -> None:
    own = {"guide": 0.3, "guide.xi": 0.2, "model.head.scale": 0.1}
    settings = TrainSettings(optimizer=optimizer, learning_rate=0.5, learning_rates=own)
    rates = rate_of(SIB.learner(), settings)
    assert set(rates) == {name for name, p in SIB.learner().named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        expected = 0.5
        if name.startswith("guide."):
            expected = 0.2 if name.startswith("guide.xi.") else 0.3
        assert rate == (0.1 if name == "model.head.scale" else expected), name


def test_a_rate_of_no_part_is_refused() -> None:
    for name in ("guides.xi", "head.scale", "xi"):
        settings = TrainSettings(learning_rates={name: 0.1})
        message = rf"prefixes of parameters in train\.learning_rates, got '{name}'; the parameters are: .*guide\.xi"
        with pytest.raises(UsageError, match=message):
            make_optimizer(SIB.learner(), settings)


def test_a_rate_of_another_setting_is_idle() -> None:
    settings = TrainSettings(learning_rate=0.5, learning_rates={"guide.x": 0.1, "guide.xi": 0.2})
    assert set(rate_of(SIB.learner(), settings).values()) == {0.5, 0.2}
    assert idle_rates(SIB.learner(), settings) == ["guide.x"]


def test_the_cosine_ends_at_zero_and_the_constant_stays() -> None:
    settings = TrainSettings(steps=100, learning_rate=0.5, learning_rates={"guide": 0.1})
    for step, factor in ((0, 1.0), (50, 0.5), (100, 0.0)):
        rates = rate_of(SIB.learner(), settings, step)
        assert rates["model.head.scale"] == pytest.approx(0.5 * factor)
        assert rates["guide.scale.log_scale"] == pytest.approx(0.1 * factor)
    assert rate_of(SIB.learner(), replace(settings, schedule="constant"), 99)["guide.scale.log_scale"] == 0.1


def test_sgd_takes_nesterov_steps_with_decay(tmp_path: Path) -> None:
    """Two steps of the published optimiser, written out: v = mu v + g + wd p; p -= lr (g + wd p + mu v)."""
    settings = replace(SHORT, steps=2, optimizer="sgd", learning_rate=1e-3)
    settings = replace(settings, weight_decay=0.1, schedule="constant")
    training = training_of(tmp_path, Pair("proto", "flat"), settings)
    scale = training.learner.model.head.scale
    p, v = scale.detach().clone(), torch.zeros(())
    for step in range(2):
        episodes = WatchedStream().batch(8 * step, 8 * step + 8)
        with torch.no_grad():
            scale.copy_(p)
        scale.grad = None
        training.learner(episodes)["loss"].backward()
        g = scale.grad + 0.1 * p
        v = g if step == 0 else 0.9 * v + g
        p = p - 1e-3 * (g + 0.9 * v)
    fresh = training_of(tmp_path, Pair("proto", "flat"), settings)
    fresh.run()
    torch.testing.assert_close(weights(fresh)["model.head.scale"], p)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    """With SGD without momentum, rate 1 and clip c the step is at most c long."""
    settings = replace(SHORT, steps=1, optimizer="sgd", momentum=0.0, learning_rate=1.0, clip=1e-3)
    training = training_of(tmp_path, settings=settings)
    before = {name: value.clone() for name, value in training.learner.named_parameters()}
    training.run()
    after = weights(training)
    length = sum((after[name] - value).square().sum() for name, value in before.items()) ** 0.5
    assert length.item() == pytest.approx(1e-3, rel=1e-2)


# ---------------------------------------------------------------- not a number


def poisoned(*steps: int) -> WatchedStream:
    """Tasks with one NaN among the query inputs, at the given steps."""

    def change(step: int, episodes: Episodes) -> Episodes:
        if step not in steps:
            return episodes
        query_x = episodes.query_x.clone()
        query_x[0, 0] = float("nan")
        return replace(episodes, query_x=query_x)

    return WatchedStream(change=change)


@pytest.mark.parametrize("name", ["clip_value", "clip_each", "clip"])
def test_gradients_are_bounded_by_entry_by_parameter_or_together(name: str) -> None:
    learner = nn.ParameterDict({"small": nn.Parameter(torch.zeros(2)), "large": nn.Parameter(torch.zeros(2))})
    learner["small"].grad, learner["large"].grad = torch.tensor([0.3, 0.4]), torch.tensor([-30.0, 40.0])
    expected = {
        "clip_value": ([0.3, 0.4], [-1.0, 1.0]),
        "clip_each": ([0.3, 0.4], [-0.6, 0.8]),
        "clip": ([0.3 / 50.0025, 0.4 / 50.0025], [-30 / 50.0025, 40 / 50.0025]),
    }[name]
    fabric, optimizer = fabric_alone(torch.device("cpu")), torch.optim.SGD(learner.parameters(), lr=1.0)
    clip_gradients(fabric, learner, optimizer, TrainSettings(**{name: 1.0}))
    for parameter, gradient in zip((learner["small"], learner["large"]), expected, strict=True):
        torch.testing.assert_close(parameter.grad, torch.tensor(gradient), rtol=1e-5, atol=1e-6)


def test_a_diverged_run_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    good = training_of(tmp_path / "good", settings=replace(SHORT, steps=4, schedule="constant"))
    good.run()
    settings = replace(SHORT, log_every=12, schedule="constant")
    bad = training_of(tmp_path / "bad", settings=settings, stream=poisoned(6))
    message = r"diverged: first non-finite value at step 6: log_likelihood(, kl)?; .*learning_rate.* \(.*of step 4 in "
    with pytest.raises(UsageError, match=message):
        bad.run()
    first, second = weights(good), weights(bad)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert lines(bad.folder)[-1]["step"] == 4
    assert "NaN" not in (bad.folder / "metrics.jsonl").read_text()


def test_an_interrupted_run_that_has_diverged_saves_nothing(tmp_path: Path) -> None:
    stream = poisoned(6)
    stream.before = interrupt_at(7).before
    training = training_of(tmp_path, settings=replace(SHORT, log_every=12), stream=stream)
    with pytest.raises(UsageError, match="diverged: first non-finite value at step 6: "):
        training.run()
    assert checkpoint.load(tmp_path / "checkpoint.pt")["training"]["step"] == 4


def test_a_logged_line_has_null_for_values_that_are_not_finite() -> None:
    line = {"step": 1, "kl": math.inf, "kl_by_site": {"w": math.nan, "b": 2.0}, "elbo": None}
    assert null_nonfinite(line) == {"step": 1, "kl": None, "kl_by_site": {"w": None, "b": 2.0}, "elbo": None}


def test_skipped_steps_are_counted_and_change_nothing(tmp_path: Path) -> None:
    settings = replace(SHORT, on_nan="skip")
    training = training_of(tmp_path, Pair("proto", "flat"), settings, poisoned(3, 4))
    training.run()
    logged = lines(tmp_path)
    assert [line.get("skipped", 0) for line in logged] == [0, 0, 1, 2] + [2] * 8
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text(), "NaN is no JSON"
    assert [line["step"] for line in logged if line["loss"] is None] == [3, 4]
    of_validation = {"skipped", "val_nll", "val_nll_bias", "val_accuracy"}
    assert all(line.keys() - of_validation == logged[0].keys() for line in logged)
    tested = {"accuracy": {"mean": 0.5}, "nll": 1.0, "split": "test"}
    assert draw_curves(tmp_path, "skipped steps are gaps", tested).exists()
    assert all(torch.isfinite(value).all() for value in weights(training).values())
    steps = {float(values["step"]) for values in training.optimizer.state.values()}
    assert steps == {10.0}


def test_a_resumed_run_goes_on_counting_skipped_steps(tmp_path: Path) -> None:
    settings = replace(SHORT, on_nan="skip")
    whole = training_of(tmp_path / "whole", settings=settings, stream=poisoned(3))
    whole.run()
    stream = poisoned(3)
    stream.before = interrupt_at(6).before
    with pytest.raises(Interrupted):
        training_of(tmp_path / "part", settings=settings, stream=stream).run()
    resumed = training_of(tmp_path / "part", settings=settings)
    resumed.run()
    assert_same_run(resumed, whole)


class Overflowing(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


def spoil(training: MetaTraining, what: str, step: int) -> None:
    """Make one term of the loss, one gradient or one parameter infinite in a step, and leave the others finite."""
    learner, original = training.learner, training.learner.forward

    def forward(episodes: Episodes, kl_weight: float = 1.0) -> dict[str, torch.Tensor]:
        terms = original(episodes, kl_weight)
        if training.state.step + 1 == step:
            scale = learner.model.head.scale
            if what == "gradient":
                terms["loss"] = terms["loss"] + 0.0 * Overflowing.apply(scale)
            elif what == "parameter":
                training.optimizer.param_groups[0]["lr"] = torch.inf
            else:
                terms[what] = terms["loss"] = terms["loss"] * torch.nan
        return terms

    learner.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("log_likelihood", "log_likelihood"), ("kl", "kl"), ("loss", "loss"),
        ("gradient", "the gradient of model.head.scale"), ("parameter", r"parameter .*"),
    ],
)  # fmt: skip
def test_what_went_first_is_named(what: str, said: str, tmp_path: Path) -> None:
    settings = replace(SHORT, log_every=12, validate_every=4, schedule="constant")
    training = training_of(tmp_path, Pair("savi", "conditional"), settings)
    spoil(training, what, 6)
    with pytest.raises(UsageError, match=rf"value at step 6: {said}; .*checkpoint: of step 4 in {tmp_path}\)"):
        training.run()
    assert checkpoint.load(tmp_path / "checkpoint.pt")["training"]["step"] == 4


def test_a_step_whose_gradient_is_not_finite_is_skipped_too(tmp_path: Path) -> None:
    for name in ("adam", "sgd"):
        training = training_of(tmp_path / name, settings=replace(SHORT, on_nan="skip", optimizer=name))
        spoil(training, "gradient", 1)
        training.run()
        assert [line.get("skipped") for line in lines(tmp_path / name)] == [1] * 12 and training.state.skipped == 1
        assert all(torch.isfinite(value).all() for value in weights(training).values())


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_step_of_training_does_not_wait_for_the_device(on_nan: str, tmp_path: Path) -> None:
    training = training_of(tmp_path, settings=replace(SHORT, on_nan=on_nan, optimizer="sgd"))
    training.stream.batch(0, 8)  # tasks are drawn on the CPU
    training._step()  # Pyro checks the first
    with NoSynchronisation():
        training._step()


# ---------------------------------------------------------------- compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at every input's
@pytest.mark.parametrize("pair", [SIB, Pair("savi", "count_aware")], ids=str)
def test_compiled_networks_give_the_same_numbers(pair: Pair, tmp_path: Path) -> None:
    """Up to float32 rounding, over a few steps."""
    runs = []
    for compiled in (False, True):
        # SGD, since Adam takes a whole step for a gradient that is rounding alone
        settings = replace(SHORT, steps=3, optimizer="sgd", learning_rate=1e-3)
        training = training_of(tmp_path / str(compiled), pair, settings)
        if compiled:
            compile_networks(training.learner)
        training.run()
        runs.append((lines(training.folder), weights(training)))
        has_compiled = any(module._compiled_call_impl is not None for module in training.learner.modules())
        assert has_compiled == compiled
    torch._dynamo.reset()
    (plain, of_plain), (fast, of_fast) = runs
    for one, other in zip(plain, fast, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert of_plain.keys() == of_fast.keys(), "a compiled run writes another checkpoint"
    for name, value in of_plain.items():
        torch.testing.assert_close(of_fast[name], value, rtol=1e-3, atol=1e-4)


def test_the_parameter_store_stays_empty(tmp_path: Path) -> None:
    training_of(tmp_path, settings=replace(SHORT, steps=1)).run()
    assert not dict(pyro.get_param_store().named_parameters())
