"""The documented commands work as called from a shell, on data for which they take about two seconds."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pyro_metabayes import MetaLearner, UnfamiliarTasks
from pyro_metabayes.data.sources.omniglot import vinyals_split
from pyro_metabayes.experiments.runs.results import commit
from pyro_metabayes.open_set.scores import OPEN_SET
from tests.commands import (
    ROOT,
    SMALL,
    SMALL_LEO,
    Outcome,
    call,
    checkpoint_of,
    figures_of,
    finish,
    lines_of,
    on_features,
    process,
    ran,
    results_of,
    same_weights,
)
from tests.processes import ForkedCommand, forked
from tests.published import write_digits, write_pacs

CONF = ROOT / "experiments" / "conf"
# Glyphs without a long wait: two images per class, four filters, one epoch.
GLYPHS = (
    "data=glyphs",
    "data.images_per_class=2",
    "task.query=1",
    "pretrain.epochs=1",
    "backbone.num_filters=4",
)
LONG = (
    "train.steps=80",
    "train.log_every=2",
    "train.validate_every=20",
    "guide=sib",
    "task.shot=2",
    "seed=3",
)
# Data with numbers as labels, each with a guide that suits it.
OF_NUMBERS = {
    "gaussian_mean": ("guide=savi", "prior.count_aware=true", "train.num_tasks=5"),
    "linear_regression": ("guide=mc", "model.observe=all", "data.num_targets=2"),
    "spinning_lines": ("guide=sib", "guide.initialisation=global"),
    "sine_and_line": (*SMALL_LEO, "data.fewest=1", "eval.number_samples=5"),
}
FEW_BASE = ("pretrain.holdout_per_class=6", "task.base_query=30")  # learning without forgetting, 20 inputs per class
ZERO_SHOT = ("source_only", "sib_rotation")  # guides of classes that all tasks share
WITHOUT_TRUTH = {"sine_and_line"}  # whose latent no simulator can know
LAUNCHERS = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
}
FILES = {".hydra", "metrics.jsonl", "results.json", "checkpoint.pt", "tasks.npz", "curves.png"}


def names(group: str) -> list[str]:
    """The choices of a group, found in its folder."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(scope="session")
def glyph_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder and output of one run of proto on glyphs. Its backbone is in the cache afterwards."""
    folder = tmp_path_factory.mktemp("glyphs") / "run"
    return folder, ran("run", *GLYPHS, *SMALL, "guide=proto", f"hydra.run.dir={folder}")


@pytest.fixture(scope="session")
def regression_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run with the exact posterior."""
    folder = tmp_path_factory.mktemp("regression") / "run"
    ran("run", "data=gaussian_mean", "guide=exact", *SMALL, f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="session")
def sinusoid_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one run of a guide on sinusoids."""

    @functools.cache
    def folder_of(guide: str) -> Path:
        folder = tmp_path_factory.mktemp("sinusoid") / guide
        ran("run", "data=sinusoid", f"guide={guide}", *SMALL, "eval.samples=3", f"hydra.run.dir={folder}")
        return folder

    return folder_of


# ---------------------------------------------------------------- every choice of every group


def few_turns(guide: str) -> list[str]:
    """Settings that reduce loops of more than three iterations to two."""
    settings = yaml.safe_load((CONF / "guide" / f"{guide}.yaml").read_text())
    loops = [(part, name) for part in ("guide", "model") for name in ("num_steps", "cleaning_steps", "finetune_steps")]
    return [f"{part}.{name}=2" for part, name in loops if (settings.get(part) or {}).get(name, 0) > 3]


@pytest.mark.parametrize("guide", [guide for guide in names("guide") if guide not in ZERO_SHOT])
def test_every_guide_runs(guide: str, features: Path) -> None:
    numbers = {
        "exact": "gaussian_mean",
        "leo_regression": "sine_and_line",
        "task_scale": "linear_regression",
        "partial_pooling": "linear_regression",
    }  # what has no classes
    data = [f"data={numbers[guide]}", *SMALL, "eval.number_samples=5"] if guide in numbers else on_features(features)
    data += FEW_BASE if guide == "attention" else ()
    ran("run", *data, f"guide={guide}", *few_turns(guide), "hydra.run.dir=run")
    assert results_of(Path("run"))["guide"] == guide


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in ("prior", "head", "objective")
        for name in names(group)
        if name != "nested"  # test_nested_groups.py
    ],
)
def test_every_prior_head_and_objective_runs(choice: str, features: Path) -> None:
    """With mean_field, which has a posterior of its own, where the choice allows it."""
    only = {"head=network": "maml", "prior=guided": "sib_savi"}  # the weights of a network are a single row
    guide = only.get(choice, "mean_field")
    ran("run", *on_features(features), f"guide={guide}", choice, "hydra.run.dir=run")
    assert {path.name for path in Path("run").iterdir()} == FILES


def test_no_group_of_the_configuration_is_left_out() -> None:
    """A new group needs a test of its choices here."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and list(path.glob("*.yaml"))}
    assert groups == {
        "guide",
        "prior",
        "head",
        "objective",
        "data",
        "backbone",
        "model",
        "study",
        "pretrain",
        "table",
        "logger",
        "ablate",
    }
    assert names("backbone") == ["conv4", "identity", "resnet12", "task_frame", "timm", "torchvision", "wide_resnet"]
    models = {
        "few_shot_classifier",
        "gaussian_mean",
        "generalised_regression",
        "hierarchical_regression",
        "laplacian_shot",
        "leo",
        "linear_regression",
        "lwof",
        "neural_regression",
        "ordinal",
        "platipus",
        "robust_regression",
        "task_scale",
    }
    assert set(names("model")) == models
    of_classes = {"cifar_fs", "fc100", "features", "gaussian_classes", "gaussian_features", "glyphs", "omniglot"}
    converted = {"image_folder", "leo_embeddings", "mini_imagenet", "tiered_imagenet"}  # test_prepare.py
    of_domains = {"digit_domains", "pacs"}
    of_groups = {"groups", "radon", "sleepstudy"}  # test_groups.py, test_partial_pooling.py
    others = {*OF_NUMBERS, "sinusoid", "ordinal", "mixture"}
    assert set(names("data")) == of_classes | converted | of_domains | of_groups | others
    of_collapse = {"classification", "cold_posterior", "features", "gaussian_mean", "information", "spinning_lines"}
    of_collapse |= {"demonstration"}
    assert set(names("study")) == of_collapse | {
        "radon",
        "epil",
        "radon_floor",
        "transductive",
        "sleepstudy",
        "digit_domains",
        "digit_domains_ablation",
    }


def test_gaussian_features_run() -> None:
    ran("run", "data=gaussian_features", "data.num_features=32", *SMALL, "guide=proto", "hydra.run.dir=run")
    assert results_of(Path("run"))["data"] == "gaussian_features"


def test_the_mixture_runs_from_the_weights_that_ship() -> None:
    simulated = ("run", "data=mixture", "data.bank_share=0", *SMALL)
    ran(*simulated, "guide=amortized_em", "init=transductive", "train.tasks_per_step=6", "hydra.run.dir=run")
    results = results_of(Path("run"))
    assert results["data"] == "mixture" and results["accuracy"]["mean"] > 0.4
    outcome = call(*simulated, "guide=amortized_em", "train.tasks_per_step=30", "hydra.run.dir=other")
    assert outcome.code == 1 and "set train.tasks_per_step to 12" in outcome.err


def test_gaussian_classes_run() -> None:
    ran("run", "data=gaussian_classes", *SMALL, "guide=savi", "guide.shared=false", "hydra.run.dir=run")
    results = results_of(Path("run"))
    assert results["data"] == "gaussian_classes" and results["config"]["guide"]["shared"] is False


@pytest.mark.parametrize("data", OF_NUMBERS)
def test_data_of_numbers_runs(data: str) -> None:
    """Scores of classes are null, and those of numbers are there."""
    outcome = ran("run", f"data={data}", *SMALL, *OF_NUMBERS[data], "hydra.run.dir=run")
    assert {path.name for path in Path("run").iterdir()} == FILES
    results = results_of(Path("run"))
    assert results["data"] == data and results["way"] == 1 and "RMSE" in outcome.out
    assert [results[name] for name in OF_CLASSES] == [None] * len(OF_CLASSES)
    known = data not in WITHOUT_TRUTH
    assert all(is_number(results[name]) for name in OF_A_REGRESSION if known or name != "oracle_mse")
    assert (results["oracle_mse"] is None) != known
    assert results["rmse"] == pytest.approx(results["mse"] ** 0.5) and 0 <= results["coverage90"] <= 1
    with np.load(Path("run") / "tasks.npz", allow_pickle=False) as tasks:
        assert set(tasks) == {"nll", "nll_monte_carlo_bias", "mse", "coverage90"} | ({"oracle_mse"} if known else set())


@pytest.mark.parametrize("guide", ["maml", "llama", "laplace", "abml", "platipus", "mean_field"])
def test_sinusoids_run(guide: str, sinusoid_run: Callable[[str], Path]) -> None:
    """All weights of a network adapt; the error after each inner step is told where there are steps."""
    assert {path.name for path in sinusoid_run(guide).iterdir()} == FILES
    results = results_of(sinusoid_run(guide))
    assert results["oracle_mse"] is None and 0 <= results["coverage90"] <= 1
    if guide == "mean_field":
        assert results["by_step"] is None
    elif guide in ("maml", "llama"):
        assert results["by_step"].keys() == {"0", "1"}
        assert results["by_step"]["1"] == pytest.approx({name: results[name] for name in ("mse", "nll", "coverage90")})
    else:
        assert results["by_step"].keys() == {"0", "1"}


def test_the_error_is_told_inner_step_by_inner_step() -> None:
    maml = "guide=maml", "guide.learn_step_size=false"
    ran("run", "model=neural_regression", "data=sinusoid", *maml, *SMALL, "hydra.run.dir=run")
    ran("evaluate", "run", "task.shot=5", "guide.num_steps=3")
    by_step = results_of(Path("run/evaluations/task.shot=5,guide.num_steps=3"))["by_step"]
    assert list(by_step) == ["0", "1", "2", "3"]
    ran("evaluate", "run", "task.shot=5", "guide.num_steps=1")
    fewer = results_of(Path("run/evaluations/task.shot=5,guide.num_steps=1"))
    assert fewer["mse"] == pytest.approx(by_step["1"]["mse"])
    outcome = call("evaluate", "run", "guide.step_size=1e6", "guide.num_steps=60")
    assert "expected finite scores, got NaN or infinity (" in outcome.error and "loop has diverged" in outcome.error


def test_a_predictive_band_is_drawn(finished: Path, sinusoid_run: Callable[[str], Path]) -> None:
    runs = [str(sinusoid_run(guide)) for guide in ("maml", "laplace", "platipus")]
    outcome = ran("predictive_band", *runs, "--steps", "2", "--samples", "5", "--out", "band.png")
    assert "plot: band.png" in outcome.out and Path("band.png").read_bytes().startswith(b"\x89PNG")
    assert "expected a regression run with one input" in call("predictive_band", str(finished)).error
    assert "expected --task >= 0" in call("predictive_band", runs[0], "--points", "0").error


def test_a_regression_is_resumed_evaluated_and_compared(regression_run: Path, finished: Path) -> None:
    shutil.copytree(regression_run, "run")
    ran("run", "resume=run", "train.steps=4")
    ran("evaluate", "run", "task.shot=2", "eval.tasks=4")
    results = results_of(Path("run/evaluations/task.shot=2,eval.tasks=4"))
    assert (results["steps"], results["shot"], results["tasks"], results["accuracy"]) == (4, 2, 4, None)
    ran("compare", "run", str(finished), "--out", "out")
    table = Path("out/table.md").read_text()
    assert "gaussian_mean 5 support points, test" in table and "features 5-way 1-shot, test" in table
    assert "nan" not in table and (Path("out") / "comparison.png").is_file()
    (row,) = (line for line in table.splitlines() if "5 support points" in line and "| 4 |" in line)
    assert row.split(" | ")[4:6] == ["-", "-"], "a regression has no accuracy"


def test_figures_against_a_known_truth_are_null_elsewhere(finished: Path, regression_run: Path) -> None:
    assert [results_of(finished)[name] for name in OF_A_TRUTH] == [None] * len(OF_A_TRUTH)
    assert all(is_number(results_of(regression_run)[name]) for name in OF_A_TRUTH)


def test_glyphs_run(glyph_run: tuple[Path, Outcome]) -> None:
    assert results_of(glyph_run[0])["data"] == "glyphs"


@pytest.mark.parametrize(
    ("data", "backbone"),
    [
        ("cifar_fs", "backbone=conv4 backbone.num_filters=2"),
        ("fc100", "backbone=resnet12 backbone.num_filters=1"),
        pytest.param("fc100", "backbone=wide_resnet backbone.depth=10 backbone.width=1", marks=pytest.mark.slow),
    ],
)
def test_cifar_100_runs(data: str, backbone: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On sheets of one colour each, five classes a split."""
    split = {part: [f"{part}{number}" for number in range(5)] for part in ("train", "val", "test")}
    for part, classes in split.items():
        (tmp_path / "cifar100" / "sheets" / part).mkdir(parents=True)
        for number, name in enumerate(classes):
            sheet = Image.new("RGB", (800, 768), (40 * number, 100, 200))
            sheet.save(tmp_path / "cifar100" / "sheets" / part / f"{name}.webp", lossless=True)
    (tmp_path / "cifar100" / "cifar100_meta.json").write_text(json.dumps({"cifar_fs": split, "fc100": split}))
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    small = ("pretrain.epochs=1", "task.query=1", *backbone.split())
    ran("run", f"data={data}", *small, *SMALL, "guide=proto", "hydra.run.dir=run")
    assert results_of(Path("run"))["data"] == data


def test_omniglot_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On noise in the place of the drawings."""
    alphabet, character = zip(*(name.split("/") for name in vinyals_split()), strict=True)
    images = np.random.default_rng(0).integers(0, 255, (len(character), 2, 28, 28), dtype=np.uint8)
    (tmp_path / "omniglot").mkdir()
    arrays = {"images": images, "alphabet": np.array(alphabet), "character": np.array(character)}
    np.savez(tmp_path / "omniglot" / "omniglot_28.npz", **arrays)  # type: ignore[arg-type]
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    small = ("data.rotations=none", "task.query=1", "backbone.num_filters=1", "pretrain.epochs=1")
    ran("run", "data=omniglot", *small, *SMALL, "guide=proto", "hydra.run.dir=run")
    assert results_of(Path("run"))["data"] == "omniglot"


@pytest.fixture
def of_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Settings of a run on small domains of digits and objects, with one epoch of pretraining."""
    write_digits(tmp_path / "data" / "digits")
    write_pacs(tmp_path / "data" / "pacs")
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path / "data"))
    return ("data.size=16", "backbone.num_filters=4", "task.query=1", "pretrain.epochs=1", "pretrain.batch_size=40")


SMALL_DIGITS = ("data.train_images=100", "data.val_images=80", "data.test_images=90")


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("guide", ["sib", "maml"])
def test_a_step_size_is_a_setting_unless_it_was_learned(guide: str, features: Path) -> None:
    """An evaluation changes a fixed one, refuses to change a learned one, and may fix it."""
    run = "run", *on_features(features), f"guide={guide}"
    ran(*run, "guide.learn_step_size=true", "hydra.run.dir=learned")
    ran(*run, "guide.learn_step_size=false", "hydra.run.dir=fixed")
    expected = "expected a run with a fixed step size for guide.step_size=0.5, got a learned step size"
    assert call("evaluate", "learned", "guide.step_size=0.5").error.startswith(expected)
    ran("evaluate", "learned", "guide.step_size=0.5", "guide.learn_step_size=false")
    ran("evaluate", "fixed", "guide.step_size=0.5")
    before, after = results_of(Path("fixed")), results_of(Path("fixed/evaluations/guide.step_size=0.5"))
    assert before["nll"] != after["nll"]


def test_zero_shot_guides_run(of_domains: tuple[str, ...]) -> None:
    """Without a support set; the source classifier is the pretrained one, and lambda starts there."""
    digits = ("data=digit_domains", "data.target=uci", *SMALL_DIGITS, *of_domains, *SMALL)
    starts = []
    for guide in ZERO_SHOT:
        outcome = ran("run", *digits, f"guide={guide}", f"hydra.run.dir={guide}")
        results = results_of(Path(guide))
        assert "10-way 0-shot" in outcome.out and results["transductive"] == (guide == "sib_rotation")
        weights = checkpoint_of(Path(guide))["best"]["weights"]
        starts.append(weights.get("guide.initial", weights.get("guide.start.point")))
    torch.testing.assert_close(starts[0], starts[1], atol=1e-3, rtol=0)  # two small steps away
    torch.testing.assert_close(starts[0].norm(dim=1), torch.ones(10))
    ran("evaluate", "sib_rotation", "guide.num_steps=0")
    assert results_of(Path("sib_rotation/evaluations/guide.num_steps=0"))["config"]["guide"]["num_steps"] == 0
    outcome = ran("rotation_accuracy", "sib_rotation", "--tasks", "8")
    last = Path("sib_rotation/rotation_accuracy/table.md").read_text().splitlines()[-1].strip("| ").split(" | ")
    assert last[0] == "all" and "half a turn off" in outcome.out
    assert float(last[-1]) == pytest.approx(100 * results_of(Path("sib_rotation"))["accuracy"]["mean"], abs=0.06)
    assert (
        "expected a run of guide=sib_rotation with guide.rotation_step_size > 0, got guide=source_only"
        in call("rotation_accuracy", "source_only").error
    )
    assert "expected data whose tasks share their classes for guide=source_only, got data=gaussian_features" in (
        call("run", "data=gaussian_features", "guide=source_only", *SMALL).error
    )
    assert "expected a labelled support set" in call("run", *digits, "guide=proto").error


def test_a_backbone_is_trained_along_on_domains(of_domains: tuple[str, ...]) -> None:
    ran("prepare", "data=pacs", "data.size=16")
    run = ("data=pacs", "data.target=photo", *of_domains, *SMALL, "guide=sib_rotation", "guide.posterior=normal")
    assert "expected features for data.train_shift, got images" in (
        call("run", *run, "backbone.frozen=false", "data.train_shift=1").error
    )
    ran(
        "run",
        *run,
        "data.train_shift=0",
        "prior=gaussian",
        "backbone.frozen=false",
        "eval.information=true",
        "hydra.run.dir=run",
    )
    results = results_of(Path("run"))
    assert (results["way"], results["shot"], results["data"]) == (7, 0, "pacs") and results["information"][
        "queries"
    ] == 7


# ---------------------------------------------------------------- what a run leaves behind


OF_CLASSES = (
    "accuracy",
    "accuracy_of_mean",
    "accuracy_of_sample",
    "brier",
    "ece",
    "mutual_information",
    "disagreement",
)
OF_A_REGRESSION = ("nll", "mse", "rmse", "oracle_mse", "coverage90")
OF_JOINT = ("joint_nll", "joint_nll_lower", "joint_nll_upper")
OF_JOINT += ("joint_pareto_k", "joint_effective_size", "joint_trusted")
OF_BASE_CLASSES = ("base_classes", "novel", "base", "both", "base_over_all")
OF_A_TRUTH = ("sd_ratio", "training_sd_ratio", "coverage90_of_truth", "kl_from_truth", "kl_to_truth")


BY_SITE = ("kl_by_site", "posterior_sd_by_site")
ERRORS = [f"{name}_monte_carlo_error" for name in ("kl", "prior_sd", "posterior_sd")]  # of what is sampled


def is_number(value: Any) -> bool:
    return isinstance(value, float)


def is_number_or_null(value: Any) -> bool:
    return value is None or isinstance(value, float)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_fraction_with_interval(value: Any) -> bool:
    return value.keys() == {"mean", "ci95"} and 0 <= value["mean"] <= 1 and 0 <= value["ci95"] <= 1


def is_of_training_and_evaluation(value: Any) -> bool:
    return value.keys() == {"train", "eval"} and value["train"] > 0 and value["eval"] > 0


KEYS = {
    **dict.fromkeys(("guide", "prior", "data", "split", "objective", "device", "machine", "data_fingerprint"), is_text),
    "backbone_fingerprint": is_text,
    "vary": lambda value: value in {True, False},
    "division": lambda value: value in {None, "classes", "rows", "none"},
    **dict.fromkeys(
        (
            "way",
            "shot",
            "query",
            "base_query",
            "train_query",
            "unknown",
            "tasks",
            "steps",
            "seed",
            "skipped",
            "devices",
        ),
        is_count,
    ),
    **dict.fromkeys(("nll", "nll_monte_carlo_bias", "brier", "ece", "mutual_information"), is_number),
    **dict.fromkeys(("ece_ci95", "ece_floor"), is_number),
    **dict.fromkeys((score.name for score in OPEN_SET), lambda value: value is None),  # unless task.unknown asks for it
    **dict.fromkeys(OF_JOINT, lambda value: value is None),  # unless eval.joint asks for it
    **dict.fromkeys(("accuracy_of_mean", "accuracy_of_sample"), lambda value: 0 <= value <= 1),
    **dict.fromkeys(
        ("kl_weight", "elbo", "kl", "prior_sd", "posterior_sd", "relative_sd", "logit_sd"), is_number_or_null
    ),
    **dict.fromkeys(("disagreement", "prior_entropy", "posterior_entropy"), is_number),
    **dict.fromkeys(("mse", "rmse", "oracle_mse", "coverage90", *OF_A_TRUTH), lambda value: value is None),
    **dict.fromkeys(ERRORS, lambda value: value is None),
    **dict.fromkeys(
        (*OF_BASE_CLASSES, "kl_variational_bound", "kl_convexity_bound", *BY_SITE), lambda value: value is None
    ),
    "active_dimensions": is_count,
    **dict.fromkeys(
        (f"{p}_information{e}" for p in ("prior", "posterior") for e in ("", "_monte_carlo_error")), is_number
    ),
    **dict.fromkeys(("posterior_logit_sd", "posterior_disagreement"), is_number),
    "posterior_collapsed": lambda value: value in (True, False),
    "learners": lambda value: value == 1,
    "temperature": lambda value: value is None,  # unless eval.temperature asks for it
    **dict.fromkeys(("by_step", "information", "constant_rmse"), lambda value: value is None),
    **dict.fromkeys(("response", "log_likelihood", "evaluated_groups"), lambda value: value is None),  # of groups
    "query_counts": lambda value: value == [],
    **dict.fromkeys(("query_concentration", "query_balanced", "feature_noise"), lambda value: value == 0),
    **dict.fromkeys(("seconds", "episodes_per_second"), is_of_training_and_evaluation),
    "accuracy": is_fraction_with_interval,
    "collapsed": lambda value: value in (True, False, None),
    "transductive": lambda value: value in (True, False),
    "versions": lambda value: all(map(is_text, value.values())),
    "commit": lambda value: value is None or is_text(value),
    "config": lambda value: value["train"]["steps"] == 2 and value["guide"]["num_steps"] == 3,
}


@pytest.mark.parametrize("key", KEYS)
def test_results_have_every_key_with_its_type(key: str, finished: Path) -> None:
    assert KEYS[key](results_of(finished)[key])


def test_results_have_no_key_without_a_type(finished: Path) -> None:
    assert results_of(finished).keys() == KEYS.keys()


def test_a_run_leaves_all_its_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= FILES, "tests of other commands write there too"
    assert (finished / ".hydra" / "config.yaml").is_file()
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("guide", ["proto", "sib_delta", "sib_published"])
def test_figures_without_a_meaning_are_null(guide: str, features: Path) -> None:
    """A point mass under a flat prior has no bound, no KL and no spread."""
    ran("run", *on_features(features), f"guide={guide}", "hydra.run.dir=run")
    results = results_of(Path("run"))
    nulls = ("elbo", "kl", "prior_sd", "posterior_sd", "relative_sd", "logit_sd", "collapsed", "disagreement")
    nulls += ("prior_entropy", "posterior_entropy", "active_dimensions")
    assert [results[name] for name in nulls] == [None] * len(nulls)
    assert results["objective"] == "predictive"


def test_a_bound_is_reported_where_there_is_one(finished: Path) -> None:
    results = results_of(finished)
    assert results["objective"] == "elbo" and results["kl"] > 0 and results["collapsed"] is False
    assert results["elbo"] < 0 and results["prior"] == "gaussian" and results["transductive"] is True


def test_accuracy_is_the_mean_over_tasks(finished: Path) -> None:
    with np.load(finished / "tasks.npz", allow_pickle=False) as tasks:
        assert all(scores.shape == (8,) for scores in tasks.values())
        expected = pytest.approx(tasks["accuracy"].mean())
    assert results_of(finished)["accuracy"]["mean"] == expected


def test_a_checkpoint_loads_without_running_code(finished: Path) -> None:
    state = checkpoint_of(finished)
    assert state.keys() == {"learner", "best", "training", "config"}
    assert state["training"]["step"] == 2
    assert state["learner"]["weights"].keys() == state["best"]["weights"].keys()


def test_the_terminal_shows_per_cent_and_the_folder(features: Path) -> None:
    outcome = ran("run", *on_features(features), "guide=proto", "hydra.run.dir=run")
    accuracy = results_of(Path("run"))["accuracy"]["mean"]
    assert f"{100 * accuracy:.1f} +- " in outcome.out and str(Path("run").resolve()) in outcome.out
    assert outcome.err == ""


def test_without_a_folder_given_runs_are_filed_by_data_and_guide(features: Path) -> None:
    ran("run", *on_features(features), "guide=proto")
    (results,) = Path("runs").rglob("results.json")
    assert results.parts[:3] == ("runs", "features", "proto")


def test_the_command_works_in_a_process_of_its_own(features: Path, finished: Path) -> None:
    outcome = finish(process("run", *on_features(features), "guide=sib", "hydra.run.dir=run"))
    assert outcome.code == 0, outcome.err
    assert figures_of(Path("run")) == figures_of(finished)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, which replaces that of the code."""
    for folder in ("guides", "docs", "experiments/conf/guide"):
        Path(folder).mkdir(parents=True)
    Path("guides/sib.py").touch()
    Path(".gitignore").write_text("*.ignored.py\n")
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    for arguments in (("init",), ("add", "."), (*identity, "commit", "-m", "all")):
        subprocess.run(["git", *arguments], check=True, capture_output=True)
    monkeypatch.setattr("pyro_metabayes.experiments.runs.results.ROOT", Path.cwd())
    return Path.cwd()


@pytest.mark.parametrize(
    ("file", "dirty"),
    [
        ("guides/sib.py", True),
        ("guides/mine.py", True),
        ("guides/parts/mine.py", True),
        ("experiments/conf/guide/mine.yaml", True),
        ("guides/notes.txt", False),
        ("guides/mine.ignored.py", False),
        ("docs/mine.py", False),
    ],
)
def test_the_recorded_commit_is_dirty_if_the_code_differs_or_has_new_files(
    file: str, dirty: bool, repository: Path
) -> None:
    clean = commit()
    assert clean is not None and re.fullmatch("[0-9a-f]{12}", clean)
    (repository / file).parent.mkdir(exist_ok=True)
    (repository / file).write_text("changed = True\n")
    assert commit() == clean + ("-dirty" if dirty else "")


def test_a_folder_that_is_no_repository_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_metabayes.experiments.runs.results.ROOT", Path.cwd())
    assert commit() is None


# ---------------------------------------------------------------- seeds and sweeps


def test_the_same_seed_gives_the_same_numbers(features: Path, finished: Path) -> None:
    ran("run", *on_features(features), "guide=sib", "hydra.run.dir=again")
    assert figures_of(Path("again")) == figures_of(finished)
    assert lines_of(Path("again")) == lines_of(finished)
    assert same_weights(
        checkpoint_of(Path("again"))["learner"]["weights"], checkpoint_of(finished)["learner"]["weights"]
    )


def test_another_seed_gives_others(features: Path, finished: Path) -> None:
    ran("run", *on_features(features), "guide=sib", "hydra.run.dir=other", "seed=1")
    assert results_of(Path("other"))["nll"] != results_of(finished)["nll"]


def test_a_sweep_leaves_a_folder_a_job(features: Path) -> None:
    outcome = ran("run", *on_features(features), "guide=mc,proto", "-m", "seed=0,1")  # -m wherever it stands
    assert "python -m experiments.compare runs/sweeps/" in outcome.out
    found = [results_of(path.parent) for path in Path("runs/sweeps").rglob("results.json")]
    assert not list(Path("runs/sweeps").rglob("unfinished"))
    jobs = {(results["guide"], results["seed"]) for results in found}
    assert len(found) == 4 and jobs == {(guide, seed) for guide in ("mc", "proto") for seed in (0, 1)}


def test_a_failed_job_leaves_the_others_and_is_named_at_the_end(features: Path) -> None:
    settings = ("guide=mean_field", "guide.scale=0.1,-1,0.2", "hydra.sweep.dir=sweep")
    outcome = call("run", "-m", *on_features(features), *settings)
    name, why = "1_features_mean_field_seed0", "expected guide.scale > 0, got -1.0"
    assert outcome.code == 1
    named = f"unfinished jobs: {name}; reasons: sweep/unfinished"
    again = "continue with the same command and hydra.sweep.dir=sweep"
    assert outcome.err == f"error: {name}: {why}\nerror: {named}; {again}\n"
    assert Path(f"sweep/unfinished/{name}.txt").read_text() == f"{why}\n"
    left = sorted(path.parent.name for path in Path("sweep").rglob("results.json"))
    assert left == ["0_features_mean_field_seed0", "2_features_mean_field_seed0"]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "module"), LAUNCHERS.items())
def test_every_launcher_leaves_the_same_runs(launcher: str, module: str, features: Path) -> None:
    """Guides x seeds, a failed job among them, against a sweep one after the other; skipped where it is not there."""
    pytest.importorskip(f"hydra_plugins.{module}")
    if launcher == "submitit_slurm" and not shutil.which("sbatch"):
        pytest.skip("no Slurm here")
    settings = (*on_features(features), "guide=proto,mean_field", "seed=0,1", "train.learning_rate=1e-3,-1")
    assert call("run", "-m", *settings, "hydra.sweep.dir=basic").code == 1
    started = process("run", "-m", *settings, f"hydra/launcher={launcher}", "hydra.sweep.dir=other")
    outcome = finish(started, 500)
    assert outcome.code == 1
    named = "error: unfinished jobs: 1_features_proto_seed0, 3_features_proto_seed1"
    own = [line for line in outcome.err.strip().split("\n") if "(_run_job pid=" not in line]
    assert own[-1].startswith(named)  # Ray's workers may be heard after it
    names = [sorted(path.parent.name for path in Path(of).rglob("results.json")) for of in ("basic", "other")]
    assert len(names[0]) == 4 and names[0] == names[1]
    for name in names[0]:
        assert lines_of(Path("basic") / name) == lines_of(Path("other") / name)


# ---------------------------------------------------------------- backbones


def test_another_guide_takes_the_backbone_from_the_cache(glyph_run: tuple[Path, Outcome]) -> None:
    """Whatever its seed: the backbone has one of its own."""
    second = ran("run", *GLYPHS, *SMALL, "guide=sib", "seed=1", "hydra.run.dir=second")
    assert "pretrain" not in second.out
    first_weights, second_weights = (backbone_of(folder) for folder in (glyph_run[0], Path("second")))
    assert same_weights(first_weights, second_weights)


def test_a_backbone_that_is_not_frozen_is_trained(glyph_run: tuple[Path, Outcome]) -> None:
    ran("run", *GLYPHS, *SMALL, "guide=proto", "backbone.frozen=false", "hydra.run.dir=run")
    before, after = backbone_of(glyph_run[0]), backbone_of(Path("run"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if name.endswith("weight")} <= moved
    assert not any("running" in name for name in moved)  # batch statistics stay as pretrained


def backbone_of(folder: Path) -> dict[str, torch.Tensor]:
    weights = checkpoint_of(folder)["learner"]["weights"]
    return {name: value for name, value in weights.items() if name.startswith("backbone.")}


# ---------------------------------------------------------------- Ctrl-C and resume


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Wait for a condition, or fail after this number of seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def interrupted(features: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder and output of a run that got SIGINT during training."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    return folder, interrupted_at_a_line(
        folder / "metrics.jsonl", "run", *on_features(features), *LONG, f"hydra.run.dir={folder}"
    )


def interrupted_at_a_line(metrics: Path, *command: str) -> Outcome:
    """The output of a command that gets SIGINT after some lines of metrics."""
    with forked(*command) as started:
        wait_for(lambda: started.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 11))
        started.send_signal(signal.SIGINT)
        return started.finish()


@pytest.fixture
def unfinished(interrupted: tuple[Path, Outcome]) -> Path:
    """A copy of the interrupted run, which a test may continue."""
    shutil.copytree(interrupted[0], "unfinished")
    return Path("unfinished").resolve()


@pytest.fixture(scope="session")
def uninterrupted(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    ran("run", *on_features(features), *LONG, f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="session")
def resumed(interrupted: tuple[Path, Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interrupted run, finished by resume= without its settings."""
    folder = tmp_path_factory.mktemp("resumed") / "seed=3, resumed"  # signs that mean something to Hydra
    shutil.copytree(interrupted[0], folder)
    ran("run", f"resume={folder}")
    return folder


def test_an_interruption_says_in_one_line_how_to_go_on(interrupted: tuple[Path, Outcome]) -> None:
    folder, outcome = interrupted
    step = checkpoint_of(folder)["training"]["step"]
    assert outcome.code == 130 and 24 <= step < 80
    (line,) = outcome.err.split("\n")[1:-1]  # after the line of ^C
    assert line == f"interrupted after step {step} of 80; continue with: python -m experiments.run resume={folder}"
    assert {path.name for path in folder.iterdir()} == {".hydra", "checkpoint.pt", "metrics.jsonl"}


def test_resumed_equals_uninterrupted(resumed: Path, uninterrupted: Path) -> None:
    """Bit for bit, with noise in every step: all figures, last and best weights, and every logged line."""
    assert figures_of(resumed) == figures_of(uninterrupted)
    assert lines_of(resumed) == lines_of(uninterrupted)
    for which in ("learner", "best"):
        weights = [checkpoint_of(folder)[which]["weights"] for folder in (resumed, uninterrupted)]
        assert same_weights(*weights)


def test_a_sweep_made_again_keeps_what_is_finished_and_goes_on_with_the_rest(
    uninterrupted: Path, features: Path
) -> None:
    """Bit for bit; so does a job that a cluster stops and starts again."""
    sweep = ("run", "-m", *on_features(features), *LONG[1:], "train.steps=80,4", "hydra.sweep.dir=sweep")
    metrics = Path("sweep/0_features_sib_seed3/metrics.jsonl")
    stopped = interrupted_at_a_line(metrics, *sweep)
    assert stopped.code == 130
    assert stopped.err.strip().endswith("interrupted; continue with the same command and hydra.sweep.dir=sweep")
    ran(*sweep)
    assert figures_of(metrics.parent) == figures_of(uninterrupted)
    assert lines_of(metrics.parent) == lines_of(uninterrupted)
    assert results_of(Path("sweep/1_features_sib_seed3"))["steps"] == 4
    written = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("*.*") if path.is_file()}
    assert ran(*sweep).out.count("kept: the run with these settings is finished in ") == 2
    assert all(path.stat().st_mtime_ns == at for path, at in written.items() if path.name != "multirun.yaml")


def test_a_sweep_writes_over_no_other(features: Path) -> None:
    sweep = ("run", "-m", *on_features(features), "guide=proto", "hydra.sweep.dir=sweep")
    ran(*sweep, "task.query=3")
    before = figures_of(Path("sweep/0_features_proto_seed0"))
    outcome = call(*sweep, "task.query=5")
    remedy = "continue it with its own settings, or name another folder: hydra.sweep.dir=DIR"
    assert outcome.code == 1 and f"which holds a run with other settings; {remedy}" in outcome.err
    assert figures_of(Path("sweep/0_features_proto_seed0")) == before


def test_a_resume_neither_repeats_nor_skips_a_line(resumed: Path) -> None:
    assert [line["step"] for line in lines_of(resumed)] == list(range(2, 81, 2))


def test_lines_after_the_checkpoint_are_dropped(unfinished: Path) -> None:
    """As where a run was killed, without the time to save."""
    step = checkpoint_of(unfinished)["training"]["step"]
    with (unfinished / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {step + 1}, "loss": 0.0}}\n')
    ran("run", f"resume={unfinished}", f"train.steps={step + 2}")
    steps = [line["step"] for line in lines_of(unfinished)]
    assert steps == sorted(set(steps)) and steps[-1] == step + 2
    assert all(line["loss"] != 0.0 for line in lines_of(unfinished))


def test_a_setting_may_be_changed_on_resume_and_the_others_stay(unfinished: Path) -> None:
    step = checkpoint_of(unfinished)["training"]["step"]
    ran("run", f"resume={unfinished}", f"train.steps={step + 3}", "eval.tasks=4")
    results = results_of(unfinished)
    assert (results["steps"], results["tasks"], results["shot"], results["seed"]) == (step + 3, 4, 2, 3)


def test_a_rate_that_is_changed_on_resume_holds(unfinished: Path) -> None:
    """Nothing moves at a rate of next to nothing."""
    before = checkpoint_of(unfinished)["learner"]["weights"]
    step = checkpoint_of(unfinished)["training"]["step"]
    ran("run", f"resume={unfinished}", f"train.steps={step + 3}", "train.learning_rate=1e-20")
    after = checkpoint_of(unfinished)["learner"]["weights"]
    assert torch.equal(before["guide.start.scale"], after["guide.start.scale"])
    assert not torch.equal(before["guide.scale.log_scale"], after["guide.scale.log_scale"])  # it has a rate of its own


def test_a_finished_run_may_be_resumed(resumed: Path) -> None:
    before = figures_of(resumed)
    ran("run", f"resume={resumed}")
    assert figures_of(resumed) == before


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_finished_run_with_more_steps_replaces_its_results(schedule: str, finished: Path) -> None:
    """Its evaluations go too. A note says which schedule the learning rates have, if that depends on the steps."""
    shutil.copytree(finished, "run")
    ran("evaluate", "run")
    outcome = ran("run", "resume=run", "train.steps=5", f"train.schedule={schedule}")
    assert results_of(Path("run"))["steps"] == 5 and not Path("run/evaluations").exists()
    note = (
        "note: the learning rates followed a cosine schedule over 2 steps, and one over 5 steps after the run was "
        "resumed; a new run with train.steps=5 gives another result\n"
    )
    assert outcome.err == (note if schedule == "cosine" else "")


@pytest.mark.parametrize("change", ["guide=mc", "data=glyphs", "prior=flat"])
def test_a_part_may_not_be_changed_on_resume(change: str, unfinished: Path) -> None:
    before = sorted(path.name for path in unfinished.iterdir())
    error = call("run", f"resume={unfinished}", change).error
    assert "a run keeps its guide, model and data" in error and change in error
    assert sorted(path.name for path in unfinished.iterdir()) == before


def test_fewer_steps_than_taken_are_refused_on_resume(unfinished: Path) -> None:
    step = checkpoint_of(unfinished)["training"]["step"]
    assert f"expected steps >= {step}" in call("run", f"resume={unfinished}", "train.steps=5").error


@pytest.fixture
def pretraining(cache: Path) -> Iterator[ForkedCommand]:
    """A process that is pretraining and would continue for hours."""
    endless = ("pretrain.epochs=100000", "guide=proto", "hydra.run.dir=run")
    with forked("run", *GLYPHS, *SMALL, *endless) as started:
        wait_for(lambda: "pretraining it once" in started.out)
        yield started


def test_an_interrupted_pretraining_keeps_its_epochs(
    glyph_run: tuple[Path, Outcome], cache: Path, pretraining: ForkedCommand
) -> None:
    before = set((cache / "backbones").iterdir())
    wait_for(lambda: len(set((cache / "backbones").glob("*.unfinished.pt")) - before) == 1)
    pretraining.send_signal(signal.SIGINT)
    outcome = pretraining.finish()
    assert outcome.code == 130 and "Traceback" not in outcome.err
    assert re.fullmatch(
        r"interrupted in the pretraining of conv4; epochs 1 to \d+ are kept: the same command continues",
        outcome.err.strip(),
    )
    assert not Path("run").exists()
    (unfinished,) = set((cache / "backbones").iterdir()) - before
    assert unfinished.name.endswith(".unfinished.pt")


def test_an_interrupted_evaluation_says_how_to_go_on(features: Path) -> None:
    with forked("run", *on_features(features), "guide=proto", "eval.tasks=1000000", "hydra.run.dir=run") as started:
        wait_for(lambda: started.poll() is not None or Path("run/checkpoint.pt").exists())
        time.sleep(0.2)  # from the last save to the first batch
        started.send_signal(signal.SIGINT)
        outcome, folder = started.finish(), Path("run").resolve()
    assert outcome.code == 130 and not (folder / "results.json").exists()
    (line,) = outcome.err.strip().split("\n")
    assert line.startswith("interrupted") and line.endswith(f"python -m experiments.run resume={folder}")
    ran("run", f"resume={folder}", "eval.tasks=8")
    assert results_of(folder)["tasks"] == 8


# ---------------------------------------------------------------- a finished run in Python


def one_task(features: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A task of five classes with three support points and ten queries each."""
    with np.load(features) as archive:
        rows = archive["features"].reshape(30, 20, -1)[:5]
    support, query = rows[:, :3].reshape(15, -1), rows[:, 3:13].reshape(50, -1)
    return support, np.arange(5).repeat(3), query, np.arange(5).repeat(10)


def test_a_run_predicts_from_arrays(finished: Path, features: Path) -> None:
    support_x, support_y, query_x, query_y = one_task(features)
    with pytest.warns(UnfamiliarTasks, match=r"3 shots \(trained on 1\)"):
        prediction = MetaLearner.load(finished).predict(support_x, support_y, query_x)
    probabilities = prediction.probabilities.numpy()
    assert probabilities.shape == prediction.spread.shape == (50, 5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (probabilities.argmax(-1) == query_y).mean() > 0.8


def test_a_run_is_a_scikit_learn_classifier(finished: Path, features: Path) -> None:
    pytest.importorskip("sklearn")
    from pyro_metabayes.sklearn import FewShotClassifier

    support_x, support_y, query_x, query_y = one_task(features)
    names = np.array(["ant", "bee", "cow", "dog", "elk"])
    classifier = FewShotClassifier(learner=finished, random_state=0).fit(support_x, names[support_y])
    with pytest.warns(UnfamiliarTasks, match=r"3 shots \(trained on 1\)"):
        assert classifier.score(query_x, names[query_y]) > 0.8


def test_load_takes_the_best_learner(resumed: Path) -> None:
    loaded = MetaLearner.load(resumed).state_dict()
    assert same_weights(loaded, checkpoint_of(resumed)["best"]["weights"])
