"""Predictions and effects of a run on data=groups, in the units of the file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_metabayes import NumberPrediction, UsageError
from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.exact.mixed_effects import fit
from tests.commands import call, ran, results_of
from tests.pairs import Pair

COLUMNS = ("data=groups", "data.path=t.csv", "data.group=school", "data.response=score")
COLUMNS = (*COLUMNS, "data.predictors=[hours,kind]", "data.random=[intercept,hours]")
TRAINING = ("train.steps=1", "train.learning_rate=1e-9", "train.tasks_per_step=12", "eval.tasks=12")
SLOPE, KIND = 2.5, {"public": 0.0, "private": 4.0, "other": -3.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on twelve schools of three kinds. It starts at the closed form, and the training hardly changes it."""
    folder, noise = tmp_path_factory.mktemp("schools"), np.random.default_rng(0)
    rows = []
    for school in range(12):
        kind, a, b = [*KIND][school % 3], 5 * noise.normal(), 0.5 * noise.normal()
        for hours in noise.uniform(100, 110, size=8):
            y = 50 + KIND[kind] + a + (SLOPE + b) * (hours - 105) + noise.normal()
            rows.append(f"school{school},{hours:.3f},{kind},{y:.3f}")
    (folder / "t.csv").write_text("\n".join(["school,hours,kind,score", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran("run", *COLUMNS, *TRAINING, "guide=partial_pooling", "hydra.run.dir=run")
    return folder


@pytest.fixture
def groups(run: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    monkeypatch.chdir(run)
    Path("predictions.csv").unlink(missing_ok=True)
    return load("school", "score", ["hours", "kind"], ["intercept", "hours"], path="t.csv")


def rows_of(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(file).read_text().splitlines()))


def test_a_file_that_exists_is_kept(groups: Groups) -> None:
    Path("new.csv").write_text("hours,kind,score\n101,private,\n")
    ran("predict", "run", "new.csv")
    before = Path("predictions.csv").read_text()
    expected = "expected a new file for --out, got predictions.csv, which exists; name another file with --out"
    assert expected in call("predict", "run", "new.csv").error
    assert expected.replace("predictions.csv", "new.csv") in call("predict", "run", "new.csv", "--out", "new.csv").error
    assert Path("predictions.csv").read_text() == before
    ran("predict", "run", "new.csv", "--out", "another.csv")
    assert Path("another.csv").read_text() == before


def least_squares_in_units(groups: Groups, known: list[tuple[float, float]], hours: float) -> tuple[float, float]:
    """Mean and sd of a new score at a private school, from covariances in the units of the file alone."""
    fitted = fit(groups.whole(), 2)
    b = groups.scales.in_units(fitted.coefficients)
    S, sd = groups.scales.covariance_in_units(fitted.covariance), fitted.noise * groups.scale
    Z = torch.tensor([[1.0, x] for x, _ in known], dtype=torch.float64)
    z, y = torch.tensor([1.0, hours], dtype=torch.float64), torch.tensor([y for _, y in known], dtype=torch.float64)
    kind = b[groups.features.index("kind=private")]
    V = Z @ S @ Z.mT + sd**2 * torch.eye(len(known), dtype=torch.float64)
    gain = torch.linalg.solve(V, Z @ S @ z)
    mean = z @ b[:2] + kind + gain @ (y - Z @ b[:2] - kind)
    return mean.item(), (z @ S @ z - gain @ (Z @ S @ z) + sd**2).sqrt().item()


def test_rows_of_a_new_group_are_predicted_in_the_units_of_the_file(groups: Groups) -> None:
    known = [(101.0, 48.0), (104.0, 55.0), (108.0, 70.0)]
    lines = [f"{hours},private,{score}" for hours, score in known] + ["102.5,private,", "109,private,NA"]
    Path("new.csv").write_text("\n".join(["hours,kind,score", *lines]) + "\n")
    out = ran("predict", "run", "new.csv").out
    assert "the ends of 90% intervals (no option changes this level)\n2 predictions: predictions.csv" in out
    rows = rows_of("predictions.csv")
    assert [row["hours"] for row in rows] == ["102.5", "109"]
    for row in rows:
        mean, sd = least_squares_in_units(groups, known, float(row["hours"]))
        assert float(row["mean"]) == pytest.approx(mean, abs=0.02)
        with_errors, reach = float(row["sd"]), float(row["upper"]) - float(row["mean"])
        assert 1.65 * with_errors < reach < 1.9 * with_errors and 1.645 * sd < reach < 2 * sd, "12 groups"
        assert float(row["mean"]) - float(row["lower"]) == pytest.approx(reach, rel=1e-3)


def test_groups_of_one_file_are_predicted_apart_and_without_points_by_the_prior(groups: Groups) -> None:
    Path("new.csv").write_text(
        "school,hours,kind,score\nA,104,other,90\nA,105,other,\nB,105,other,\nschool1,105,other,\n"
    )
    out = ran("predict", "run", "new.csv", "--out", "two.csv").out
    first, second, third = rows_of("two.csv")
    assert float(first["mean"]) > float(second["mean"]) + 5 and second["mean"] == third["mean"]
    note = "no row with a response in this file, such as 'school1'; predictions use this file alone"
    assert f"note: 1 group of the run has {note}" in out
    Path("new.csv").write_text(
        "school,hours,kind,score\nschool1,104,other,90\nschool1,105,other,\nschool2,105,other,\n"
    )
    out = ran("predict", "run", "new.csv", "--out", "three.csv").out
    assert "1 group of the run has no row with a response in this file, such as 'school2'" in out


def test_columns_that_are_named_like_predictions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    rows = [f"g{place // 4},{noise.normal():.3f},{noise.normal():.3f},{noise.normal():.3f}" for place in range(40)]
    Path("t.csv").write_text("\n".join(["sd,mean,x,y", *rows]))
    Path("new.csv").write_text("sd,mean,x,y\nnew,0.25,0.5,\n")
    columns = ("data.path=t.csv", "data.group=sd", "data.predictors=[mean,x]", "data.response=y")
    ran("run", "data=groups", *columns, *TRAINING, "guide=partial_pooling", "hydra.run.dir=run")
    ran("predict", "run", "new.csv")
    (row,) = rows_of("predictions.csv")
    assert (row["sd of the file"], row["mean of the file"], row["x"]) == ("new", "0.25", "0.5")
    assert [*row][-4:] == ["mean", "sd", "lower", "upper"] and row["mean"] != "0.25"


def test_other_units_of_a_predictor_are_noted(groups: Groups) -> None:
    Path("new.csv").write_text("hours,kind,score\n104e3,other,90\n105e3,other,\n")
    note = "note: column 'hours' has mean 104500, but the run was trained on mean "
    out = ran("predict", "run", "new.csv").out
    assert note in out and "column 'score'" not in out and "column 'kind" not in out


BAD_FILES = {
    "hours,kind,score\n104,other,3\n": "expected rows with a blank 'score' in new.csv, got none",
    "hours,score\n104,\n": "got none; there are: hours, score; fix the header of the file",
    "hours,kind,score\n104,secret,\n": "expected column 'kind' to hold a level of the training data (other, private",
    "hours,kind,score\n104,other,-\n": "if the value is missing, leave the cell empty to predict it",
    "hours,kind,score\neight,other,\n": "got 'eight' on line 2 of new.csv; fix the cell, or code a column of text as",
    "hours,kind,score\n,other,\n": "expected a value in every cell, got missing values in 1 of 1 rows of new.csv",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_files_that_cannot_be_predicted_are_refused(text: str, groups: Groups) -> None:
    Path("new.csv").write_text(text)
    assert BAD_FILES[text] in call("predict", "run", "new.csv").error


def test_factors_have_a_feature_per_level_but_the_first(groups: Groups) -> None:
    """The order of the alphabet; weights in the units of the file are differences to the first level."""
    assert groups.features == ["intercept", "hours", "kind=private", "kind=public"]
    b = groups.scales.in_units(fit(groups.whole(), 2).coefficients)
    assert b[2].item() == pytest.approx(KIND["private"] - KIND["other"], abs=9)  # four schools of each kind
    assert groups.levels == {"kind": ["other", "private", "public"]}
    assert results_of(Path("run"))["config"]["estimated"]["levels"] == {"kind": ["other", "private", "public"]}


def test_numbers_are_levels_where_the_settings_say_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who,diet,y\na,10,1\na,9,2.5\nb,9,1\nb,2,4\nc,2,3\nc,10,7.5\n")
    groups = load("who", "y", ["diet"], path=str(tmp_path / "t.csv"), factors=["diet"])
    assert groups.features == ["intercept", "diet=9", "diet=10"]
    with pytest.raises(UsageError, match=r"expected data\.factors among data\.predictors, got 'y'"):
        load("who", "y", ["diet"], path=str(tmp_path / "t.csv"), factors=["y"])


def test_a_learner_of_numbers_predicts_arrays() -> None:
    learner = Pair("partial_pooling", model="hierarchical_regression", prior="full_gaussian").learner()
    x = np.ones((4, 3))
    prediction = learner.predict(x[:2], [1.0, 2.0], x)
    assert isinstance(prediction, NumberPrediction) and all(value.shape == (4, 1) for value in prediction)
    assert (prediction.lower < prediction.mean).all() and (prediction.mean < prediction.upper).all()
    nothing = learner.predict(x[:0], [], x)
    assert isinstance(nothing, NumberPrediction) and (nothing.sd > prediction.sd).all()
    robust = Pair("savi", "count_aware", model="robust_regression").learner().predict(x[:2], [1.0, 2.0], x)
    assert isinstance(robust, NumberPrediction) and (robust.lower < robust.upper).all()
    with pytest.raises(UsageError, match="expected support_y of shape"):
        learner.predict(x[:2], [1.0], x)


def test_a_learner_without_parameters_is_refused_in_one_line() -> None:
    learner = Pair("exact", "flat", model="linear_regression").learner()
    assert not list(learner.parameters())
    x = np.ones((4, learner.input_shape[0]))
    for call_of in (learner.predict, lambda *arrays: learner.task(*arrays[:2]).predict(arrays[2])):
        with pytest.raises(UsageError, match="expected a Gaussian prior for a closed form"):
            call_of(x[:2], np.ones((2, learner.num_targets)), x)


def test_effects_are_in_the_units_of_the_file_beside_the_closed_form(groups: Groups) -> None:
    """The prior at hours = 0, and a shrinkage that follows from the covariances in these units."""
    out = ran("effects", "run").out
    assert "effects.csv: lower and upper are the ends of 90% intervals (no option changes this level)" in out
    fitted = fit(groups.whole(), 2)
    prior = {row[""]: row for row in rows_of("run/prior.csv")}
    b, S = groups.scales.in_units(fitted.coefficients), groups.scales.covariance_in_units(fitted.covariance)
    assert float(prior["intercept"]["closed form"]) == pytest.approx(b[0].item(), rel=1e-3)
    assert float(prior["intercept"]["closed form"]) == pytest.approx(50 - 105 * SLOPE, abs=40), "at x = 0, not 105"
    for name in ("intercept", "hours", "sd of intercept", "sd of hours", "correlation of intercept, hours"):
        for column in ("", "se, "):
            values = [float(prior[name][f"{column}{method}"]) for method in ("run", "closed form")]
            assert values[0] == pytest.approx(values[1], rel=0.02)
    assert "sd of the noise" in out
    rows = rows_of("run/effects.csv")
    assert len(rows) == 24 and {row["group"] for row in rows} == {f"school{i}" for i in range(12)}
    hours = torch.tensor([float(line.split(",")[1]) for line in Path("t.csv").read_text().splitlines()[1:9]]).double()
    Z = torch.stack((torch.ones_like(hours), hours))
    after = torch.linalg.inv(torch.linalg.inv(S) + Z @ Z.mT / (fitted.noise * groups.scale) ** 2)
    for row, place in zip(rows[:2], (0, 1), strict=True):
        assert float(row["shrinkage"]) == pytest.approx((after[place, place] / S[place, place]).item(), rel=0.05)
        assert float(row["estimate"]) == pytest.approx(float(row["closed form"]), rel=1e-2)
        half = 1.645 * after[place, place].sqrt().item()
        assert 1.01 * half < float(row["upper"]) - float(row["estimate"]) < 1.5 * half, "with the errors of estimates"
    assert Path("run/effects.png").exists()


@pytest.mark.parametrize("guide", ["laplace", "savi", "exact"])
def test_every_guide_of_groups_has_effects(guide: str, groups: Groups, tmp_path: Path) -> None:
    ran("run", *COLUMNS, *TRAINING, f"guide={guide}", f"hydra.run.dir={tmp_path}")
    ran("effects", str(tmp_path))
    assert len(rows_of(str(tmp_path / "effects.csv"))) == 24


def test_runs_without_effects_are_refused(groups: Groups, tmp_path: Path) -> None:
    ran("run", *COLUMNS, *TRAINING, "guide=maml", f"hydra.run.dir={tmp_path}")
    assert "got a flat prior or a point" in call("effects", str(tmp_path)).error


def test_tables_of_runs_have_the_errors_of_numbers_and_their_unit(groups: Groups, tmp_path: Path) -> None:
    """The exact guide has a prior with covariances by default; of two rows only settings that matter are named."""
    out = ran("run", *COLUMNS, *TRAINING, "guide=exact", "pretrain.epochs=7", f"hydra.run.dir={tmp_path / 'a'}").out
    results = results_of(tmp_path / "a")
    assert results["prior"] == "fullgaussian" and results["response"]["name"] == "score"
    assert "RMSE (sd of score)" in out and f"{results['rmse'] * results['response']['sd']:.4g}" in out
    ran("run", *COLUMNS, *TRAINING, "guide=exact", f"hydra.run.dir={tmp_path / 'b'}")
    ran("compare", str(tmp_path / "a"), str(tmp_path / "b"), "run", "--out", str(tmp_path / "out"))
    rows = rows_of(str(tmp_path / "out/table.csv"))
    assert [row["guide"] for row in rows] == ["exact", "partial_pooling"] and "accuracy %" not in rows[0]
    assert rows[0]["RMSE"] == f"{results['rmse']:.3f}" and rows[1]["squared error difference"] != "-"
