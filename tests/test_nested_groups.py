"""Nested groups, (1 | school/class): likelihood, effects and predictions are those of one dense Gaussian."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_metabayes import UsageError
from pyro_metabayes.data.sources.formula import roles_of_formula
from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.exact.mixed_effects import MixedEffects, fit
from pyro_metabayes.experiments.cli.config import saved_config
from tests.commands import call, ran, results_of

SCHOOLS = 10
COLUMNS = ("data=groups", "data.path=t.csv", "data.group=[school,class]", "data.response=score", "prior=nested")
COLUMNS = (*COLUMNS, "data.predictors=[hours]", "data.random=[intercept,hours]")
TRAINING = ("train.steps=1", "train.learning_rate=1e-9", f"train.tasks_per_step={SCHOOLS}", f"eval.tasks={SCHOOLS}")


def table(folder: Path) -> Path:
    """Write a table of schools with two to four classes of two to five pupils. Class names repeat in every school."""
    noise, lines = np.random.default_rng(0), ["school,class,hours,n,score"]
    for school in range(SCHOOLS):
        a, b = 6 * noise.normal(), 0.8 * noise.normal()
        for number in range(2 + school % 3):
            of_class = 3 * noise.normal()
            for pupil in range(2 + (school + number) % 4):
                hours, n = noise.uniform(0, 10), 1 + pupil % 3
                y = 50 + a + of_class + (2 + b) * hours + 2 * noise.normal() / n**0.5
                lines.append(f"s{school},c{number},{hours:.3f},{n},{y:.4f}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


def loaded(path: Path, **settings: Any) -> Groups:
    random = ["intercept", "hours"]
    return load(["school", "class"], "score", ["hours"], random, path=str(path), **settings)


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


class Dense:
    """The fitted model in the units of the file, as one Gaussian of all rows."""

    def __init__(
        self, groups: Groups, fitted: MixedEffects, rows: list[dict[str, str]], weighted: bool = False
    ) -> None:
        self.b = groups.scales.in_units(fitted.coefficients)[[0, 1]]
        covariance = groups.scales.covariance_in_units(fitted.covariance)
        self.S, self.inner, self.noise = covariance[:2, :2], covariance[-1, -1], fitted.noise * groups.noise_scale
        self.rows, self.z = rows, torch.tensor([[1.0, float(row["hours"])] for row in rows]).double()
        n = torch.tensor([float(row["n"]) if weighted else 1.0 for row in rows]).double()
        self.V = self.covariance(rows) + torch.diag(self.noise**2 / n)

    def covariance(self, others: list[dict[str, str]]) -> Tensor:
        """Covariance of the effects of other rows with the effects of these rows."""
        z = torch.tensor([[1.0, float(row["hours"])] for row in others]).double()
        school = torch.tensor([[a["school"] == b["school"] for b in self.rows] for a in others])
        one_class = torch.tensor([[a["class"] == b["class"] for b in self.rows] for a in others]) & school
        return school * (z @ self.S @ self.z.mT) + one_class * self.inner

    @property
    def y(self) -> Tensor:
        return torch.tensor([float(row["score"]) for row in self.rows]).double()

    def log_likelihood(self, restricted: bool) -> Tensor:
        value = MultivariateNormal(self.z @ self.b, self.V).log_prob(self.y)
        precision = self.z.mT @ torch.linalg.solve(self.V, self.z)
        return value + restricted * 0.5 * (2 * np.log(2 * np.pi) - precision.logdet())


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("weights", [None, "n"])
def test_the_likelihood_is_that_of_a_dense_gaussian(restricted: bool, weights: str | None, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    path = table(tmp_path)
    groups, rows = loaded(path, weights=weights), read(path)
    fitted = groups.of_labels(
        fit(groups.with_equal_precision(groups.whole()), groups.num_random, restricted, num_inner=groups.num_inner)
    )
    assert groups.num_inner == 4 and groups.num_random == 6 and fitted.coefficients[2:].tolist() == [0.0] * 4
    dense = Dense(groups, fitted, rows, weighted=weights is not None).log_likelihood(restricted)
    scale, sd = np.log(groups.scale), groups.scales.sd[1].log()  # densities of standardised response and coefficients
    units = (len(rows) - 2 * restricted) * scale + restricted * sd
    assert fitted.log_likelihood == pytest.approx((dense + units).item(), rel=1e-8)


def test_it_is_a_maximum(tmp_path: Path) -> None:
    """Every change of the sds, of the correlation or of the noise lowers the dense likelihood."""
    torch.set_default_dtype(torch.float64)
    path = table(tmp_path)
    groups, rows = loaded(path), read(path)
    fitted = groups.estimates()
    assert fitted is not None
    best = Dense(groups, fitted, rows)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        factors = 1 + 0.03 * torch.randn(5, generator=generator).double()
        moved = Dense(groups, fitted, rows)
        moved.S = best.S * factors[:2].unsqueeze(-1) * factors[:2]
        moved.S = moved.S * torch.where(torch.eye(2) > 0, 1.0, factors[4])
        moved.inner, noise = best.inner * factors[2], best.noise * factors[3]
        moved.V = moved.covariance(rows) + noise**2 * torch.eye(len(rows))
        assert moved.log_likelihood(False) < best.log_likelihood(False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nested")
    table(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran("run", *COLUMNS, *TRAINING, "guide=partial_pooling", "hydra.run.dir=run")
    return folder


@pytest.fixture(params=["partial_pooling", "exact"])
def effects(request: pytest.FixtureRequest, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with prior.csv and effects.csv."""
    monkeypatch.chdir(run)
    folder = run / request.param
    if not folder.exists():
        ran("run", *COLUMNS, *TRAINING, f"guide={request.param}", f"hydra.run.dir={folder}")
    ran("effects", str(folder))
    return folder


def fitted_to(rows: list[dict[str, str]]) -> Dense:
    groups = loaded(Path("t.csv"))
    fitted = groups.estimates()
    assert fitted is not None
    return Dense(groups, fitted, rows)


def test_effects_of_both_levels_are_predicted(effects: Path) -> None:
    """effects.csv has the best linear unbiased predictions."""
    rows = read(Path("t.csv"))
    dense, found = fitted_to(rows), {(row["group"], row["effect"]): row for row in read(effects / "effects.csv")}
    weighted = torch.linalg.solve(dense.V, dense.y - dense.z @ dense.b)
    classes = {(row["school"], row["class"]) for row in rows}
    assert len(found) == 2 * SCHOOLS + len(classes)
    for school, name in classes:
        own = torch.tensor([row["school"] == school for row in rows]).double()
        inner = own * torch.tensor([row["class"] == name for row in rows])
        row = found[f"{school}/{name}", "intercept, difference from school"]
        for column in ("estimate", "closed form"):
            assert float(row[column]) == pytest.approx((dense.inner * inner @ weighted).item(), abs=0.02)
        left = 1 - dense.inner * inner @ torch.linalg.solve(dense.V, inner)
        assert float(row["shrinkage"]) == pytest.approx(left.item(), rel=5e-3)
        assert int(row["points"]) == inner.sum() and float(row["lower"]) < float(row["upper"])
        expected = dense.b + dense.S @ (dense.z * own.unsqueeze(-1)).mT @ weighted
        estimates = [float(found[school, effect]["estimate"]) for effect in ("intercept", "hours")]
        assert estimates == pytest.approx(expected.tolist(), abs=0.02)


def test_standard_errors_are_the_curvature_of_the_dense_likelihood(effects: Path) -> None:
    """Of means, log sds, the correlation and the log noise sd, in the units of the file."""
    dense, prior = fitted_to(read(Path("t.csv"))), {row[""]: row for row in read(effects / "prior.csv")}
    sd = dense.S.diagonal().sqrt()
    start = torch.stack((*sd.log(), dense.inner.sqrt().log(), dense.S[0, 1] / sd.prod(), dense.noise.log()))

    def log_likelihood(theta: Tensor) -> Tensor:
        moved, (first, second, inner, noise) = fitted_to(dense.rows), theta[[2, 3, 4, 6]].exp()
        moved.b, cross = theta[:2], theta[5] * first * second
        moved.S = torch.stack((first**2, cross, cross, second**2)).view(2, 2)
        moved.inner = inner**2
        moved.V = moved.covariance(dense.rows) + noise**2 * torch.eye(len(dense.rows))
        return MultivariateNormal(moved.z @ moved.b, moved.V).log_prob(moved.y)

    theta = torch.cat((dense.b, start))
    curvature = -torch.autograd.functional.hessian(log_likelihood, theta)
    errors = torch.linalg.inv(curvature).diagonal().sqrt()
    errors[[2, 3, 4, 6]] *= theta[[2, 3, 4, 6]].exp()
    for (name, row), error, place in zip(prior.items(), errors.tolist(), range(7), strict=True):
        for column in ("se, run", "se, closed form"):  # standard errors of means are given the sds
            assert float(row[column]) == pytest.approx(error, rel=2e-2 if place > 1 else 5e-2), name


def test_the_prior_has_the_sd_of_inner_groups(effects: Path) -> None:
    prior, sd = {row[""]: row for row in read(effects / "prior.csv")}, fitted_to(read(Path("t.csv"))).inner.sqrt()
    assert len(prior) == 7, "no row for the indicators of classes"
    for column in ("run", "closed form"):
        assert float(prior["sd of class within school"][column]) == pytest.approx(sd.item(), rel=1e-3)


def test_known_and_new_inner_groups_are_predicted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a new school: a class with known pupils, and a class without any, whose sd contains that of classes."""
    monkeypatch.chdir(run)
    known = [("x", "c7", 1, 70), ("x", "c7", 4, 74), ("x", "c8", 2, 60)]
    asked = [("x", "c7", 5), ("x", "c9", 5), ("y", "c7", 5)]
    lines = [",".join(map(str, row)) for row in known] + [",".join(map(str, row)) + "," for row in asked]
    Path("new.csv").write_text("\n".join(["school,class,hours,score", *lines]) + "\n")
    ran("predict", "run", "new.csv", "--out", "predicted.csv")
    found = read(Path("predicted.csv"))
    names = ("school", "class", "hours", "score")
    rows = [dict(zip(names, map(str, row), strict=True)) | {"n": "1"} for row in known]
    dense = fitted_to(rows)
    others = [dict(zip(names, map(str, row), strict=False)) for row in asked]
    gain = dense.covariance(others) @ torch.linalg.inv(dense.V)
    means = torch.tensor([1.0, 5.0]).double() @ dense.b + gain @ (dense.y - dense.z @ dense.b)
    z = torch.tensor([1.0, 5.0]).double()
    variances = z @ dense.S @ z + dense.inner + dense.noise**2 - (gain * dense.covariance(others)).sum(-1)
    for row, mean, variance in zip(found, means, variances, strict=True):
        assert float(row["mean"]) == pytest.approx(mean.item(), abs=0.02)
        assert 1 < float(row["sd"]) / variance.sqrt().item() < 1.4, "with the errors of the estimates"
    sds = [float(row["sd"]) for row in found]
    assert sds[0] < sds[1] < sds[2] and [row["class"] for row in found] == ["c7", "c9", "c7"]


def test_another_file_is_read_with_the_size_of_the_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert results_of(Path("run"))["config"]["estimated"]["num_inner"] == 4
    lines = Path("t.csv").read_text().splitlines()
    Path("few.csv").write_text("\n".join([lines[0], *(line for line in lines if line[:2] in ("s0", "s3"))]) + "\n")
    assert "rmse" in ran("evaluate", "run", "data.path=few.csv", "task.shot=3").out.lower()
    Path("many.csv").write_text("school,class,hours,score\n" + "".join(f"x,c{i},1,\n" for i in range(5)))
    assert "expected at most 4 inner groups in a group, as in the data of the run, got 5 in 'x'" in (
        call("predict", "run", "many.csv", "--out", "p.csv").error
    )


def test_groups_are_repeated_when_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    ran("run", *COLUMNS, *TRAINING, "guide=exact", "hydra.run.dir=run")
    ran("run", "resume=run", "data.group=[school,class]", "train.steps=2")
    assert saved_config(Path("run"), ["data.group=[school,class]"]).data["group"] == ["school", "class"]


def test_names_that_repeat_are_noted(tmp_path: Path) -> None:
    notes = loaded(table(tmp_path)).notes
    assert notes == [
        "29 groups 'class' in 10 groups 'school', at most 4 in one. Equal names in different larger groups count as "
        "different groups; crossed groups are not supported"
    ]


REFUSED = {
    "data.group=[class,school];prior=gaussian": "expected prior=nested for nested groups, data.group=[class,school]",
    "data.group=[school,n,class]": "expected one column in data.group, or two for nested groups, the larger groups",
    "data.group=[pupil,school]": "expected several values of 'school' for one value of 'pupil' for data.group=[pupil,",
    "data.group=[school,pupil]": "expected several rows for one value of 'pupil' for data.group=[school,pupil], got",
    "data.group=school": "expected nested groups, such as data.group=[school,class] or (1 | school/class), for prior=",
    "data.group=[school,hours]": "got 'hours' twice; remove it from data.group or data.predictors",
    "data.group=[school,nothing]": "expected one column 'nothing' in t.csv, got none",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_other_groups_are_refused_in_one_line(settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, *lines = table(tmp_path).read_text().splitlines()
    text = "\n".join([f"{first},pupil", *(f"{line},p{number}" for number, line in enumerate(lines))])
    Path("t.csv").write_text(text + "\n")
    error = call("run", *COLUMNS, *TRAINING, "guide=exact", *settings.split(";")).error
    assert REFUSED[settings] in error and len(error.strip().splitlines()) == 1, error


def test_a_response_that_is_not_gaussian_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("school,class,y\na,1,0\na,1,1\na,2,1\nb,1,0\nb,1,1\n")
    with pytest.raises(
        UsageError, match=r"expected data.family=gaussian for data.group=\[school,class\], got bernoulli"
    ):
        load(["school", "class"], "y", path=str(path), family="bernoulli")


def test_a_file_to_predict_may_have_one_class_per_school(tmp_path: Path) -> None:
    """What makes the sd of classes estimable is asked of the training rows only."""
    path = table(tmp_path)
    groups = loaded(path)
    other = tmp_path / "other.csv"
    other.write_text("school,class,hours,n,score\na,c,1,1,60\na,c,2,1,61\nb,d,1,1,50\n")
    settings = groups.estimated_settings()
    again = loaded(other, **settings)
    assert again.num_inner == groups.num_inner and again.inner_names == [["c"], ["d"]]
    with pytest.raises(UsageError, match="expected several values of"):
        loaded(other)
    with pytest.raises(UsageError, match=r"expected data\.num_inner=0 without nested groups, got 3"):
        load("school", "score", ["hours"], path=str(path), num_inner=3)


def test_both_orders_of_a_pair_are_nested() -> None:
    for pair in ("school:class", "class:school"):
        roles = roles_of_formula(f"score ~ hours + (hours | school) + (1 | {pair})")
        assert (roles.group, roles.inner) == ("school", "class")
