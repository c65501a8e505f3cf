"""Row weights and offsets, compared with a marginal likelihood in numpy, and in every command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.errors import UsageError
from tests.commands import call, ran, results_of

Array = NDArray[np.float64]
GROUPS = 25
COLUMNS = ("data=groups", "data.path=t.csv", "data.group=who", "data.response=y", "data.predictors=[a,b]")
COLUMNS = (*COLUMNS, "data.random=[intercept,a]", "data.weights=n", "data.offset=o")
TRAINING = ("train.steps=1", "train.learning_rate=1e-9", f"train.tasks_per_step={GROUPS}", f"eval.tasks={GROUPS}")


def written(path: Path) -> list[tuple[str, float, float, float, float, float]]:
    """Rows (group, a, b, n, o, y): y is a mean of n measurements, and o is added to it."""
    noise, rows = np.random.default_rng(5), []
    for group in range(GROUPS):
        intercept, slope = 20 + 3 * noise.normal(), 2 + 0.8 * noise.normal()
        for _ in range(9):
            a, b, n, o = 10 + 2 * noise.normal(), noise.normal(), float(noise.integers(1, 40)), 30 * noise.normal()
            y = intercept + slope * (a - 10) - 1.5 * b + o + 6 * noise.normal() / n**0.5
            rows.append((f"g{group}", *(round(value, 4) for value in (a, b, n, o, y))))
    path.write_text("\n".join(["who,a,b,n,o,y", *(",".join(map(str, row)) for row in rows)]) + "\n")
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    written(folder / "t.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran("run", *COLUMNS, *TRAINING, "guide=partial_pooling", "hydra.run.dir=run")
    return folder


@pytest.fixture
def rows(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float, float, float, float]]:
    monkeypatch.chdir(run)
    return written(Path("t.csv"))


class Reference:
    """The dense model y - o ~ N(X beta, Z S Z^T + diag(sigma^2 / n)) of each group, in the units of the file."""

    def __init__(self, rows: list[Any]) -> None:
        self.groups = {name: np.array([row[1:] for row in rows if row[0] == name]) for name in dict.fromkeys(
            row[0] for row in rows)}  # fmt: skip
        self.theta = self.maximised()
        self.beta, self.S, self.sigma = self.parameters(self.theta)

    @staticmethod
    def parts(values: Array) -> tuple[Array, Array, Array, Array]:
        """X, Z, y - o and 1 / n."""
        a, b, n, o, y = values.T
        return np.stack((np.ones_like(a), a, b), 1), np.stack((np.ones_like(a), a), 1), y - o, 1 / n

    @staticmethod
    def parameters(theta: Array) -> tuple[Array, Array, float]:
        """beta, S and sigma with intercepts at a = 0. theta has intercepts at a = 10, to decorrelate the entries."""
        root = np.array([[np.exp(theta[3]), 0], [theta[4], np.exp(theta[5])]])
        back = np.array([[1.0, -10.0], [0.0, 1.0]])
        return np.array([*(back @ theta[:2]), theta[2]]), back @ root @ root.T @ back.T, float(np.exp(theta[6]))

    def log_likelihood(self, theta: Array) -> float:
        beta, S, sigma = self.parameters(theta)
        total = 0.0
        for values in self.groups.values():
            X, Z, y, inverse = self.parts(values)
            V, r = Z @ S @ Z.T + sigma**2 * np.diag(inverse), y - X @ beta
            total -= 0.5 * (len(y) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + r @ np.linalg.solve(V, r))
        return total

    def maximised(self) -> Array:
        start = np.array([20.0, 2.0, -1.5, 1.0, 0.0, 0.0, 1.5])
        return minimize(lambda theta: -self.log_likelihood(theta), start, tol=1e-9).x

    def predicted(self, known: Array, asked: Array) -> tuple[Array, Array]:
        """Mean and sd of new labels, given the known rows of their group."""
        X, Z, y, inverse = self.parts(known)
        X0, Z0, _, inverse0 = self.parts(asked)
        V = Z @ self.S @ Z.T + self.sigma**2 * np.diag(inverse)
        gain = np.linalg.solve(V, Z @ self.S @ Z0.T).T
        mean = X0 @ self.beta + gain @ (y - X @ self.beta) + asked[:, 3]
        variance = np.diag(Z0 @ self.S @ Z0.T - gain @ Z @ self.S @ Z0.T) + self.sigma**2 * inverse0
        return mean, variance**0.5


@pytest.fixture(scope="module")
def reference(run: Path) -> Reference:
    return Reference(written(run / "t.csv"))


def loaded() -> Groups:
    return load("who", "y", ["a", "b"], ["intercept", "a"], path="t.csv", weights="n", offset="o")


def table(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(file).read_text().splitlines()))


def test_the_closed_form_is_the_maximum_of_the_marginal_likelihood(rows: list[Any], reference: Reference) -> None:
    groups = loaded()
    fitted = groups.estimates()
    assert fitted is not None
    units = groups.scales.in_units(fitted.coefficients)
    order = [groups.features.index(name) for name in ("intercept", "a", "b")]
    assert units[order].tolist() == pytest.approx(reference.beta.tolist(), rel=1e-3, abs=1e-3)
    covariance = groups.scales.covariance_in_units(fitted.covariance)
    assert covariance.flatten().tolist() == pytest.approx(reference.S.flatten().tolist(), rel=1e-2)
    assert fitted.noise.item() * groups.noise_scale == pytest.approx(reference.sigma, rel=1e-3)
    in_file = fitted.log_likelihood - len(rows) * np.log(groups.scale)
    assert in_file == pytest.approx(reference.log_likelihood(reference.theta), abs=1e-3)


@pytest.mark.parametrize("guide", ["partial_pooling", "exact"])
def test_the_posterior_and_the_evidence_of_a_run_are_those_of_the_reference(
    guide: str, rows: list[Any], reference: Reference, tmp_path: Path
) -> None:
    ran("run", *COLUMNS, *TRAINING, f"guide={guide}", f"hydra.run.dir={tmp_path}")
    results = results_of(tmp_path)
    learned = results["log_likelihood"]["learned"]
    assert learned == pytest.approx(reference.log_likelihood(reference.theta), abs=0.05)
    standardised = learned + len(rows) * np.log(results["response"]["sd"])
    assert results["elbo"] == pytest.approx(standardised / GROUPS, abs=0.5)
    ran("effects", str(tmp_path))
    prior = {row[""]: row for row in table(str(tmp_path / "prior.csv"))}
    assert float(prior["sd of the noise"]["run"]) == pytest.approx(reference.sigma, rel=1e-2)
    assert float(prior["sd of intercept"]["run"]) == pytest.approx(reference.S[0, 0] ** 0.5, rel=2e-2)
    of_groups = {(row["group"], row["effect"]): row for row in table(str(tmp_path / "effects.csv"))}
    X, Z, y, inverse = reference.parts(reference.groups["g3"])
    V = Z @ reference.S @ Z.T + reference.sigma**2 * np.diag(inverse)
    effects = reference.beta[:2] + reference.S @ Z.T @ np.linalg.solve(V, y - X @ reference.beta)
    for name, value in zip(("intercept", "a"), effects, strict=True):
        row = of_groups["g3", name]
        assert float(row["estimate"]) == pytest.approx(value, rel=2e-2), name
        assert float(row["closed form"]) == pytest.approx(value, rel=2e-2), name


def test_predictions_honour_weights_and_offsets(rows: list[Any], reference: Reference) -> None:
    """A row of large weight has a narrow interval; the offset of the row asked for is added."""
    known = np.array([[9.0, 0.5, 30.0, 12.0, 31.0], [12.0, -1.0, 2.0, -40.0, -15.0]])
    asked = np.array([[11.0, 0.2, 1.0, 100.0, np.nan], [11.0, 0.2, 400.0, 100.0, np.nan]])
    lines = [",".join("" if np.isnan(v) else f"{v:g}" for v in row) for row in np.concatenate((known, asked))]
    Path("new.csv").write_text("\n".join(["a,b,n,o,y", *lines]) + "\n")
    ran("predict", "run", "new.csv")
    mean, sd = reference.predicted(known, asked)
    found = table("predictions.csv")
    assert [float(row["mean"]) for row in found] == pytest.approx(mean.tolist(), rel=1e-3)
    ratios = [float(row["sd"]) / exact for row, exact in zip(found, sd.tolist(), strict=True)]
    assert all(0.98 < ratio < 1.06 for ratio in ratios), "with the errors of the estimates"
    assert [row["n"] for row in found] == ["1", "400"] and [row["o"] for row in found] == ["100", "100"]


def test_a_large_offset_does_not_point_to_other_units(rows: list[Any], tmp_path: Path) -> None:
    """The response less its offset is compared with the training data."""
    for offset, noted in ((5000.0, False), (0.0, True)):
        Path("new.csv").write_text(f"a,b,n,o,y\n9,0.5,30,{offset},5019\n11,0.2,1,{offset},\n")
        out = ran("predict", "run", "new.csv", "--out", str(tmp_path / f"{offset}.csv")).out
        assert ("note: column 'y' has mean 50" in out) == noted


def test_held_out_groups_are_scored_with_the_noise_of_each_row(rows: list[Any], reference: Reference) -> None:
    ran("evaluate", "run", "task.shot=3")
    found = results_of(Path("run/evaluations/task.shot=3"))
    learner, groups = MetaLearner.load("run"), loaded()
    assert found["coverage90"] == pytest.approx(0.9, abs=0.08) and learner.model.num_features == 4
    unweighted = load("who", "y", ["a", "b"], ["intercept", "a"], path="t.csv", offset="o")
    assert groups.input_shape == (4,) and unweighted.input_shape == (3,)
    ran("run", *[c for c in COLUMNS if "weights" not in c], *TRAINING, "guide=exact", "hydra.run.dir=plain")
    ran("evaluate", "plain", "task.shot=3")
    assert found["nll"] < results_of(Path("plain/evaluations/task.shot=3"))["nll"] - 0.1


def test_another_file_is_read_with_the_mean_weight_of_the_run(rows: list[Any]) -> None:
    """Weights in other units are another noise; ten times the weights of the file are not the same rows."""
    lines = Path("t.csv").read_text().splitlines()
    Path("half.csv").write_text("\n".join(lines[: 1 + 9 * 8]) + "\n")
    scaled = [",".join([*cells[:3], str(10 * float(cells[3])), *cells[4:]]) for line in lines[1 : 1 + 9 * 8]
              for cells in [line.split(",")]]  # fmt: skip
    Path("tenfold.csv").write_text("\n".join([lines[0], *scaled]) + "\n")
    for name in ("half", "tenfold"):
        ran("evaluate", "run", f"data.path={name}.csv", "task.shot=3", "eval.tasks=8")
    found = {path.name: results_of(path) for path in Path("run/evaluations").iterdir() if "csv" in path.name}
    half, tenfold = (next(r for n, r in found.items() if name in n) for name in ("half", "tenfold"))
    assert half["config"]["estimated"]["scales"]["n"] == tenfold["config"]["estimated"]["scales"]["n"]
    assert tenfold["coverage90"] < half["coverage90"] - 0.2, "a tenth of the variance of the same errors"


def test_the_unit_of_weights_changes_the_noise_alone(rows: list[Any], reference: Reference, tmp_path: Path) -> None:
    """As in lme4: sigma is that of a row of weight 1."""
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["who,a,b,n,o,y", *(",".join(map(str, (*r[:3], 7 * r[3], *r[4:]))) for r in rows)]))
    groups = load("who", "y", ["a", "b"], ["intercept", "a"], path=str(path), weights="n", offset="o")
    fitted = groups.estimates()
    assert fitted is not None
    assert fitted.noise.item() * groups.noise_scale == pytest.approx(reference.sigma * 7**0.5, rel=1e-3)
    in_file = fitted.log_likelihood - len(rows) * np.log(groups.scale)
    assert in_file == pytest.approx(reference.log_likelihood(reference.theta), abs=1e-3)


def test_an_offset_of_numbers_is_subtracted_from_the_response(rows: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["who,a,b,n,y", *(",".join(map(str, (*r[:4], r[5] - r[4]))) for r in rows)]))
    settings = {"group": "who", "response": "y", "predictors": ["a", "b"], "random": ["intercept", "a"]}
    with_offset, without = load(**settings, path="t.csv", offset="o"), load(**settings, path=str(path))
    assert with_offset.points.points.flatten().tolist() == pytest.approx(without.points.points.flatten().tolist())


MISTAKES = {  # what is changed in the settings or the first rows: the message
    "n=-1": "expected weights > 0 in column 'n' of bad.csv, got -1 in row 1 (not counting rows with missing values)",
    "n=0": "expected weights > 0 in column 'n' of bad.csv, got 0 in row 1 (not counting rows with missing values)",
    "n=nan": "got missing values in 1 of 225 rows of bad.csv (the first is 'nan' in column 'n' on line 2); fill in "
    "values, or set data.missing=drop",
    "n=inf": "expected a finite number in column 'n', got 'inf' on line 2 of bad.csv",
    "n=1e30": "expected weights in column 'n' of bad.csv within a factor of 1e+10, got 1 to 1e+30",
    "o=far": "expected a finite number in column 'o', got 'far' on line 2 of bad.csv",
    "o=": "got missing values in 1 of 225 rows of bad.csv (the first is '' in column 'o' on line 2",
    "data.weights=o": "weights and offset, and as random effects, got 'o' twice",
    "data.weights=a": "weights and offset, and as random effects, got 'a' twice",
    "data.offset=y": "weights and offset, and as random effects, got 'y' twice",
    "data.offset=who": "weights and offset, and as random effects, got 'who' twice",
    "data.weights=m": "expected one column 'm' in bad.csv, got none; there are: who, a, b, n, o, y",
    "data.family=poisson model=generalised_regression": "expected data.family=gaussian with data.weights",
    "model=robust_regression": "expected model=hierarchical_regression for data.weights, got model=models.robust",
    "guide=maml": "expected a guide that supports data.weights",
}


@pytest.mark.parametrize("what", MISTAKES)
def test_weights_and_offsets_that_are_none_are_refused(what: str, rows: list[Any]) -> None:
    lines = Path("t.csv").read_text().splitlines()
    changed = dict(setting.split("=", 1) for setting in what.split()) if "." not in what.split("=")[0] else {}
    settings = what.split() if "=" in what and what[:2] not in ("n=", "o=") else []
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    first |= {name: value for name, value in changed.items() if name in first}
    Path("bad.csv").write_text("\n".join([lines[0], ",".join(first.values()), *lines[2:]]) + "\n")
    command = [c for c in COLUMNS if not any(c.startswith(s.split("=")[0] + "=") for s in settings)]
    command[1:2] = ["data.path=bad.csv"]
    guide = [] if "guide=maml" in settings else ["guide=partial_pooling"]
    error = call("run", *command, *TRAINING, *guide, *settings, "hydra.run.dir=bad").error
    assert MISTAKES[what] in error and len(error.strip().splitlines()) == 1, error


def test_rows_without_a_weight_are_dropped_and_counted_in_one_line(rows: list[Any]) -> None:
    lines = Path("t.csv").read_text().splitlines()
    gaps = [line.split(",") for line in lines[1:4]]
    gaps[0][3], gaps[1][4], gaps[2][1] = "NA", "", "nan"
    Path("gaps.csv").write_text("\n".join([lines[0], *(",".join(cells) for cells in gaps), *lines[4:]]) + "\n")
    settings = [c.replace("t.csv", "gaps.csv") for c in COLUMNS]
    out = ran("run", *settings, *TRAINING, "guide=exact", "data.missing=drop", "hydra.run.dir=gaps").out
    assert "note: left out 3 of 225 rows of gaps.csv, which have missing values: " in out
    assert "1 in column 'n', 1 in column 'o', 1 in column 'a'" in out


def test_a_file_to_predict_must_have_weights_and_offsets(rows: list[Any]) -> None:
    Path("new.csv").write_text("a,b,y\n10,1,\n")
    error = call("predict", "run", "new.csv", "--out", "without_weights.csv").error
    assert "expected one column 'n' in new.csv, got none" in error
    with pytest.raises(UsageError, match=r"expected a mean of data\.weights > 0"):
        load("who", "y", ["a"], path="t.csv", weights="n", scales={"n": {"mean": -1.0}})
