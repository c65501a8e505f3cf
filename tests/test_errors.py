"""Mistakes of users give a one-line message without a traceback, and leave no files behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.plugins import Plugins
from safetensors.numpy import save_file

from pyro_metabayes import MetaLearner
from pyro_metabayes.errors import UsageError
from tests.commands import (
    CLASSES,
    ROWS,
    SMALL,
    WIDTH,
    call,
    checkpoint_of,
    on_features,
    write_features,
)
from tests.processes import Forks

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def copied(finished: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished, "run")
    return Path("run").resolve()


def error_of(*arguments: str) -> str:
    """The one-line message of a refused run, which left no files."""
    before = sorted(Path.cwd().iterdir())
    error = call("run", *arguments).error
    assert sorted(Path.cwd().iterdir()) == before
    return error


# ---------------------------------------------------------------- the command line

UNKNOWN = {
    "guide=nope": "unknown choice guide=nope; python -m experiments.run --help lists all choices",
    "guide=saavi": "guide=saavi; did you mean 'savi'? python -m experiments.run --help lists all choices",
    "prior=nope": "unknown choice prior=nope; choose one of: conditional, coupling_flow, flat, ",
    "data=nope": "unknown choice data=nope; choose one of: cifar_fs, digit_domains, ",
    "gude=sib": "unknown key 'gude'; did you mean 'guide'? the command takes: data, backbone, ",
    "train.steps": "expected NAME=VALUE, got 'train.steps'; write train.steps=VALUE",
    "guide.num_steps": "expected NAME=VALUE, got 'guide.num_steps'; write guide.num_steps=VALUE",
    "runs/sib": "expected NAME=VALUE, got 'runs/sib'; write NAME=VALUE",
    "train.stepz=3": "unknown key 'train.stepz'; did you mean 'train.steps'? train takes: steps, ",
    "+train.stepz=3": "unknown key 'train.stepz'; did you mean 'train.steps'? train takes: steps, ",
    "data.foo=1": "unknown key 'data.foo'; data=features takes: path, ",
    "step_sizes=0.1": "unknown key 'step_sizes'; did you mean 'guide.step_size'?",
    "learning_rat=1": "did you mean 'pretrain.learning_rate' or 'train.learning_rate'?",
    "+foo=1": "unknown key 'foo'",
    "guide.foo=1": "unknown key 'guide.foo'; guide=sib takes: num_steps",
    "guide.num_step=1": "did you mean 'guide.num_steps'?",
    "guide._target_=os.system": "expected guide._target_ to be a dotted name under models., guides.",
    "guide._target_=guides.nope.Guide": "found no 'guides.nope'; fix the name",
    "guide._target_=guides.sib.Nope": "no 'Nope' in guides.sib",
    "train.learning_rates.nope=1": "in train.learning_rates, got 'nope'; the parameters are: model.head",
    "train": "expected NAME=VALUE, got 'train'; write train=VALUE",
}
WRONG_TYPE = {
    "trainer.devices=two": "expected trainer.devices to be of type integer, got 'two'",
    "train.steps=many": "expected train.steps to be of type integer, got 'many'",
    "task.way=five": "expected task.way to be of type integer, got 'five'",
    "task.way=null": "field 'task.way' is not Optional",
    "train.learning_rates=5": "Cannot assign int to Dict[str, float]",
    "guide.num_steps=abc": "expected guide.num_steps to be of type int, got 'abc'",
    "guide.num_steps=1.5": "expected guide.num_steps to be of type int, got 1.5",
    "guide.num_steps=null": "expected guide.num_steps to be of type int, got None",
    "guide.learn_step_size=maybe": "expected guide.learn_step_size to be of type bool, got 'maybe'",
    "guide.step_size=nan": "expected guide.step_size to be of type finite float, got nan",
    "backbone.frozen=maybe": "expected backbone.frozen to be true or false, got 'maybe'",
}
WRONG_VALUE = {
    "task.way=1": "expected task.way >= 2, task.shot >= 1 and task.query >= 1",
    "task.way=100": "expected at least task.way=100 classes in the train split, got 19",
    "task.way=6": "expected at least task.way=6 classes in the val split for guide=sib, got 5",
    "task.shot=100": "expected at least task.shot + task.query = 115 inputs in every class",
    "train.steps=-1": "expected train.steps >= 0 and finite, got -1",
    "train.particles=0": "expected train.particles >= 1, got 0",
    "train.kl_weight=0": "got 0; for a loss without KL take a point estimate with prior=flat, else a small weight",
    "train.kl_weight=much": "expected train.kl_weight to be a number > 0",
    "train.kl_weight={start: 1}": "expected train.kl_weight to be a number > 0",
    "train.on_nan=ignore": "expected train.on_nan to be one of stop, skip, got 'ignore'",
    "train.schedule=linear": "expected train.schedule to be one of cosine, constant, got 'linear'",
    "train.optimizer=lion": "expected train.optimizer to be one of adam, sgd, got 'lion'",
    "train.learning_rate=-1": "expected train.learning_rate > 0 and finite, got -1.0",
    "train.weight_decay=-1": "expected train.weight_decay >= 0 and finite, got -1.0",
    "train.clip=-1": "expected train.clip >= 0 and finite, got -1.0",
    "train.clip_value=-1": "expected train.clip_value >= 0 and finite, got -1.0",
    "train.clip_each=inf": "expected train.clip_each >= 0 and finite, got inf",
    "trainer.devices=0": "expected trainer.devices >= 1, got 0",
    "trainer.devices=3": "got 16 tasks and 3 processes; change train.tasks_per_step",
    "pretrain.epochs=0": "expected pretrain.epochs >= 1",
    "eval.tasks=1": "expected eval.tasks >= 2",
    "eval.split=exam": "expected a split among train, val, test, got 'exam'",
    "device=tpu": "expected device to be auto, cpu, cuda, cuda:1, mps or xpu, got 'tpu'",
    "seed=-1": "expected 0 <= seed < 2^63, got -1",
    "guide.num_steps=-1": "expected guide.num_steps >= 0, got -1",
    "guide.posterior=cauchy": "expected guide.posterior to be one of normal, amortized, fixed, delta, got 'cauchy'",
    "prior.scale=-1": "expected prior.scale > 0, got -1",
    "objective.kl=exact": "expected objective.kl to be one of sampled, analytic, variational, convexity, got",
    "backbone=conv4": "expected images [channels, height, width] for backbone=conv4, got inputs of shape [16]",
}


@pytest.mark.parametrize("argument", UNKNOWN)
def test_an_unknown_name_is_refused(argument: str, features: Path) -> None:
    assert UNKNOWN[argument] in error_of(*on_features(features), argument)


@pytest.mark.parametrize("argument", [argument for argument in UNKNOWN if "=" in argument])
def test_a_message_about_a_setting_names_no_class_of_settings(argument: str, features: Path) -> None:
    assert not re.search(r"Settings|Config|TaskShape", error_of(*on_features(features), argument))


def test_a_choice_of_the_clone_that_is_not_installed_names_the_install() -> None:
    """As `metabayes run guide=mine` in a clone, where the package is installed elsewhere."""
    file = Path("experiments/conf/guide/mine.yaml")
    file.parent.mkdir(parents=True)
    file.touch()
    assert error_of("guide=mine") == (
        f"unknown choice guide=mine; {file} exists here, but the installed package is not this folder; run: pip "
        "install -e '.[dev]' -c constraints.txt"
    )


OF_A_CHOICE = {
    "guide=laplace prior=flat": "guide=laplace sets prior.scale, which prior=flat does not have; take another prior=",
    "data=sinusoid backbone=conv4 guide=maml": "data=sinusoid sets backbone.normalise, which backbone=conv4 does not",
    "data=gaussian_features data.foo=1": "unknown key 'data.foo'; data=gaussian_features takes: num_features, ",
    "prior=flat prior.loc=0.1": "unknown key 'prior.loc'; prior=flat takes: no settings",
}


@pytest.mark.parametrize("settings", OF_A_CHOICE)
def test_a_key_that_another_choice_has_set_names_it(settings: str) -> None:
    assert OF_A_CHOICE[settings] in error_of(*settings.split())


@pytest.mark.parametrize("argument", WRONG_TYPE)
def test_a_value_of_another_type_is_refused(argument: str, features: Path) -> None:
    assert WRONG_TYPE[argument] in error_of(*on_features(features), argument)


@pytest.mark.parametrize("argument", WRONG_VALUE)
def test_a_value_out_of_range_is_refused(argument: str, features: Path) -> None:
    assert WRONG_VALUE[argument] in error_of(*on_features(features), argument)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("flat", "got a flat prior; take prior=conditional, low_rank or coupling_flow"),
        ("mixture", "expected a reparametrised distribution at site 'w', got MixtureSameFamily"),
    ],
)
def test_a_prior_that_cannot_be_the_posterior_is_refused(prior: str, message: str, features: Path) -> None:
    assert message in error_of(*on_features(features), "guide=mc", f"prior={prior}")


@pytest.mark.parametrize("prior", ["flat", "mixture", "gaussian"])
def test_savi_refuses_a_prior_that_does_not_read_the_support_set(prior: str, features: Path) -> None:
    error = error_of(*on_features(features), "guide=savi", f"prior={prior}")
    assert error.startswith(
        "expected a prior that depends on the support set for guide=savi, got an unconditional prior"
    )
    assert error.endswith("take prior=conditional, low_rank or coupling_flow")


# ---------------------------------------------------------------- numbers as labels

NUMBERS = {
    "data=sine_and_line data.fewest=2 task.shot=1 guide=leo_regression": "data.fewest <= task.shot, got data.fewest=2",
    "data=sine_and_line guide=leo_regression guide.num_hidden=-1": "expected guide.num_hidden, encoder_penalty >= 0",
    "guide=leo_regression model.dropout=1": "expected 0 <= model.dropout < 1, got 1",
    "guide=mc task.way=2": "expected task.way=1 (labels are numbers), task.shot >= 0 and task.query >= 1, got way 2",
    "guide=mc task.query=0": "expected task.way=1 (labels are numbers), task.shot >= 0 and task.query >= 1",
    "guide=mc task.shot=-1": "expected task.way=1 (labels are numbers), task.shot >= 0 and task.query >= 1",
    "guide=mc data.scale=0": "expected num_features >= 1, num_targets >= 1, and finite scale > 0 and noise > 0",
    "guide=mc data.noise=nan": "expected data.noise to be of type finite float, got nan",
    "guide=mc model.noise=0": "expected model.noise > 0, got 0",
    "guide=mc model.observe=nothing": "expected model.observe to be one of query, support, all, got 'nothing'",
    "guide=mc prior.num_hidden=-1": "expected prior.num_hidden >= 0 and prior.scale > 0, got num_hidden=-1, scale=0",
    "guide=mc train.num_tasks=-1": "expected train.num_tasks >= 0 and finite, got -1",
    "guide=exact prior=conditional": "expected a prior that does not depend on the support set, got a conditional",
    "guide=exact prior=mixture": "expected a Gaussian prior for a closed form, got MixtureSameFamily; use",
    "guide=proto": "expected a model with class prototypes for guide=proto, got models.gaussian_mean; use another",
    "guide=mean_field data.num_features=2": "num_features",  # the mean of a Gaussian has one feature, always 1
}


@pytest.mark.parametrize("arguments", NUMBERS)
def test_what_a_regression_cannot_be_is_refused(arguments: str) -> None:
    assert NUMBERS[arguments] in error_of("data=gaussian_mean", *SMALL, *arguments.split())


def test_sib_needs_a_start_where_there_are_no_prototypes() -> None:
    error = error_of("data=gaussian_mean", "guide=sib")
    assert error.startswith("expected a model with class prototypes for guide.initialisation=support, got models.gaus")
    assert error.endswith("guide.initialisation=global if it has this setting")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("task.shot=1", "expected task.shot=0 for tasks without labels, got 1"),
        ("task.way=2", "expected task.way=1 (labels are numbers)"),
        ("data.slope_scale=0", "expected finite settings, scale > 0 and slope_scale > 0, got"),
    ],
)
def test_what_spinning_lines_cannot_be_is_refused(argument: str, message: str) -> None:
    assert message in error_of("data=spinning_lines", *SMALL, "guide=mean_field", argument)


def test_a_regression_of_classes_is_refused(features: Path) -> None:
    error = error_of(*on_features(features), "guide=mean_field", "model=gaussian_mean")
    assert error.startswith(
        "expected data with numeric labels for a regression, got classes; set for example data=sinusoid"
    )


def test_the_exact_posterior_of_a_classifier_is_refused(features: Path) -> None:
    """Nobody has written model.observe: that the guide's YAML has must not be what the user hears of."""
    error = error_of(*on_features(features), "guide=exact")
    assert "data=gaussian_mean" in error and "data=linear_regression" in error


# ---------------------------------------------------------------- a study

STUDY = {
    "study=nope": "unknown choice study=nope; choose one of: classification, cold_posterior, ",
    "size=huge": "expected size to be one of full, smoke, got 'huge'",
    "workers=0": "expected workers >= 1, got 0",
    "workers=two": "expected workers to be of type integer, got 'two'",
    "parts=ceiling": "expected parts to be a list, in quotes for the shell: 'parts=[...]'",
    "parts=[nope]": "unknown part 'nope' of this study; choose from: conditional_prior",
    "sice=smoke": "unknown key 'sice'; did you mean 'size'? the command takes: study, size, ",
}


@pytest.mark.parametrize("argument", STUDY)
def test_a_wrong_study_is_refused(argument: str) -> None:
    assert STUDY[argument] in call("collapse", argument).error
    assert not any(Path.cwd().iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(features: Path) -> None:
    assert "found none; use device=cpu" in error_of(*on_features(features), "device=cuda")


def test_the_line_is_all_that_a_real_process_says(features: Path, forks: Forks) -> None:
    run = "import runpy, sys; sys.argv[0] = 'run.py'; runpy.run_module('experiments.run', run_name='__main__')"
    outcome = forks.run(run, *on_features(features), "guide.foo=1", folder=Path.cwd())
    assert outcome.error.startswith("unknown key 'guide.foo'") and outcome.out == ""


# ---------------------------------------------------------------- data


def nan_in_one_row() -> np.ndarray:
    values = np.ones((CLASSES * ROWS, WIDTH), dtype=np.float32)
    values[3, 2] = np.nan
    return values


BAD_ARRAYS = {
    "labels that are floats": (
        {"labels": np.arange(CLASSES).repeat(ROWS) + 0.5},
        "expected integers or strings as labels in bad.npz, got float64",
    ),
    "NaN": ({"features": nan_in_one_row()}, "got NaN or infinity (as float32) in 1 of 600 rows"),
    "an empty bank": (
        {"features": np.zeros((0, WIDTH)), "labels": np.zeros(0, int)},
        "expected at least one row of features in bad.npz, got none",
    ),
    "labels of another length": (
        {"labels": np.arange(5)},
        "expected features [N, D], labels [N] and, if present, split [N]",
    ),
    "one class": ({"labels": np.zeros(CLASSES * ROWS, int)}, "expected classes in every split of bad.npz, got none in"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_that_make_no_bank_are_refused(what: str) -> None:
    arrays, message = BAD_ARRAYS[what]
    write_features(Path("bad.npz"), **arrays)
    assert message in error_of(*on_features(Path("bad.npz")))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_of_something_else_is_refused(suffix: str, content: bytes) -> None:
    Path(f"bad.{suffix}").write_bytes(content)
    error = error_of(*on_features(Path(f"bad.{suffix}")))
    assert f"expected a file of arrays, got bad.{suffix}, which cannot be read (" in error


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float, features: Path) -> None:
    whole = features.read_bytes()
    Path("cut.npz").write_bytes(whole[: int(share * len(whole))])
    assert "write the file again, since it may be truncated" in error_of(*on_features(Path("cut.npz")))


def test_a_file_that_is_not_there_is_refused() -> None:
    assert "expected a file of features, found none at gone.npz" in error_of(*on_features(Path("gone.npz")))


def test_no_path_at_all_is_refused() -> None:
    assert "got no path; set data.path=FILE.npz" in error_of("data=features", *SMALL)


def test_an_array_with_another_name_is_refused() -> None:
    save_file({"embeddings": np.ones((4, 2), dtype=np.float32)}, "other.safetensors")
    assert "expected an array 'features'" in error_of(*on_features(Path("other.safetensors")))


def test_omniglot_without_file_and_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METABAYES_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there, network or not
    error = error_of("data=omniglot", *SMALL)
    assert "expected Omniglot in the cache, not found; run python -m" in error
    assert "experiments.prepare data=omniglot" in error and "METABAYES_DATA" in error
    error = call("prepare", "data=omniglot").error
    assert "expected to download Omniglot, got" in error and "METABAYES_DATA" in error


def test_omniglot_that_is_not_in_the_folder_of_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_DATA", str(Path.cwd()))
    assert "expected a file at" in error_of("data=omniglot", *SMALL)


# ---------------------------------------------------------------- training


def test_a_diverged_run_names_the_step(features: Path) -> None:
    error = error_of(*on_features(features), "guide=sib", "train.steps=20", "train.learning_rate=1e10")
    assert re.match(r".*diverged: first non-finite value at step ([2-9]|1\d|20): .*; .*checkpoint: none yet", error)


def test_a_diverged_run_keeps_its_last_good_checkpoint(copied: Path) -> None:
    before = (copied / "checkpoint.pt").read_bytes()
    outcome = call("run", f"resume={copied}", "train.steps=20", "train.learning_rate=1e10", "train.schedule=constant")
    assert "training has diverged" in outcome.error
    assert (copied / "checkpoint.pt").read_bytes() == before


# ---------------------------------------------------------------- folders and checkpoints


def test_a_folder_that_holds_a_run_is_refused(copied: Path, features: Path) -> None:
    before = {path: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    error = call("run", *on_features(features), f"hydra.run.dir={copied}").error
    assert f"resume={copied} continues it" in error
    assert {path: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_refused(features: Path) -> None:
    Path("plain").write_text("a file, no folder")
    error = error_of(*on_features(features), "hydra.run.dir=plain/run")
    assert error == "expected to use plain/run, got: Not a directory; fix this, or name another path"


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [
        ("nowhere", "check the path, since the folder does not exist"),
        ("begun", "repeat the command that started this run"),
        ("swept", "continue a sweep with its own command and hydra.sweep.dir=swept"),
        ("swept/multirun.yaml", "take the folder of that file, resume=swept"),
    ],
)
def test_a_resume_without_a_checkpoint_is_refused(folder: str, remedy: str) -> None:
    Path("begun").mkdir()
    Path("swept").mkdir()
    Path("swept/multirun.yaml").touch()
    assert error_of(f"resume={folder}").endswith(f"the folder of a run with a checkpoint.pt, got '{folder}'; {remedy}")


def test_a_launcher_that_is_not_installed_is_an_extra() -> None:
    error = error_of("-m", "guide=proto", "hydra/launcher=nowhere")
    assert "unknown choice hydra/launcher=nowhere" in error and "extras add others: pip install" in error


def test_a_launcher_that_fails_gets_one_line(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As submitit's does where Slurm has no such partition."""

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("sbatch: error: invalid partition specified: gpu")

    monkeypatch.setattr(Plugins, "instantiate_launcher", refused)
    error = error_of("-m", *on_features(features), "guide=proto")
    assert error == (
        "the launcher failed: RuntimeError: sbatch: error: invalid partition specified: gpu; no job is left unfinished"
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(share: float, copied: Path) -> None:
    whole = (copied / "checkpoint.pt").read_bytes()
    (copied / "checkpoint.pt").write_bytes(whole[: int(share * len(whole))])
    expected = "expected a checkpoint of this package at"
    assert expected in error_of(f"resume={copied}")
    assert expected in call("evaluate", str(copied)).error


@pytest.mark.parametrize("change", ["train.optimizer=sgd", "train.learning_rates={guide.start.scale: 0.1}"])
def test_moments_of_another_optimiser_are_refused(change: str, copied: Path) -> None:
    error = error_of(f"resume={copied}", "train.steps=4", change)
    assert error.startswith("expected train.optimizer, backbone.frozen and the names in train.learning_rates")


def test_a_checkpoint_of_another_shape_is_refused(copied: Path) -> None:
    assert "expected a checkpoint of this model and guide" in error_of(
        f"resume={copied}", "guide.initialisation=global"
    )


def test_weights_of_another_shape_are_refused(finished: Path) -> None:
    learner = MetaLearner.load(finished)
    weights = checkpoint_of(finished)["best"]["weights"]
    weights["guide.start.scale"] = torch.ones(3)
    with pytest.raises(UsageError, match=r"guide.start.scale has shape \(3,\), not \(16,\)"):
        learner.load_weights(weights)


def test_a_checkpoint_that_holds_code_is_refused(copied: Path) -> None:
    torch.save({"best": Path("an object")}, copied / "checkpoint.pt")
    assert "expected a checkpoint of this package" in error_of(f"resume={copied}")


def test_a_learner_without_a_run_is_refused(copied: Path) -> None:
    MetaLearner.load(copied).save(copied / "checkpoint.pt")
    assert "got no configuration" in error_of(f"resume={copied}")


# ---------------------------------------------------------------- evaluate

EVALUATE = {
    "guide=mc": "a run keeps its guide, model and data",
    "guide": "a run keeps its guide, model and data",
    "train.steps=7": "an evaluation does not train",
    "seed=5": "an evaluation does not train",
    "eval.taskz=1": "unknown key 'eval.taskz'; did you mean 'eval.tasks'?",
    "task.way=4": "expected tasks of 5 classes, which this guide was trained for, got 4",
    "guide.foo=1": "unknown key 'guide.foo'",
    "foo.bar=1": "unknown key 'foo'",
    "guide.num_steps=x": "expected guide.num_steps to be of type int, got 'x'",
    "eval.tasks=many": "expected eval.tasks to be of type integer, got 'many'",
    "eval.split=exam": "expected a split among train, val, test, got 'exam'",
    "guide.initialisation=global": "expected a checkpoint of this model and guide",
    "data.path=gone.npz": "expected a file of features, found none at gone.npz",
    "device=tpu": "expected device to be auto, cpu, cuda",
}


@pytest.mark.parametrize("argument", EVALUATE)
def test_evaluate_names_the_mistake(argument: str, finished: Path) -> None:
    assert EVALUATE[argument] in call("evaluate", str(finished), argument).error
    assert not (finished / "evaluations").exists()
