"""Formulas of lme4 as another way to name columns, and the terms that are refused by name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_metabayes.data.sources.formula import roles_of_formula
from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.data.sources.roles import Roles
from pyro_metabayes.errors import UsageError
from tests.commands import call, ran, results_of

pytest.importorskip("formulaic")

TRAINING = ("guide=exact", "data=groups", "train.steps=1", "train.tasks_per_step=9", "eval.tasks=9")
UNDERSTOOD = {
    "score ~ hours + (hours | school)": Roles("school", "score", ["hours"], ["intercept", "hours"]),
    "score~1+hours+(1|school)": Roles("school", "score", ["hours"], ["intercept"]),
    "score ~ (1 | school)": Roles("school", "score", [], ["intercept"]),
    "score ~ hours + (0 + hours | school)": Roles("school", "score", ["hours"], ["hours"]),
    "score ~ hours + (hours - 1 | school)": Roles("school", "score", ["hours"], ["hours"]),
    "log.radon ~ basement + (1 | county.name)": Roles("county.name", "log.radon", ["basement"], ["intercept"]),
    "`a (score` ~ `x | z)` + (1 | `the )`)": Roles("the )", "a (score", ["x | z)"], ["intercept"]),
    "`a score` ~ (1 | `the school`)": Roles("the school", "a score", [], ["intercept"]),
    "y ~ factor(diet) + x + (x | g)": Roles("g", "y", ["diet", "x"], ["intercept", "x"], ["diet"]),
    "y ~ C(diet) * x + (x | g)": Roles("g", "y", ["diet", "x", "diet:x"], ["intercept", "x"], ["diet"]),
    "y ~ (a + b)^2 + (1 | g)": Roles("g", "y", ["a", "b", "a:b"], ["intercept"]),
    "y ~ a*b - a:b + (1 | g)": Roles("g", "y", ["a", "b"], ["intercept"]),
    "y ~ x + offset(lexp) + (1 | g)": Roles("g", "y", ["x"], ["intercept"], offset="lexp"),
    "y ~ (1 + x | g) + x": Roles("g", "y", ["x"], ["intercept", "x"]),
    "y ~ x + (1 | a/g)": Roles("a", "y", ["x"], ["intercept"], inner="g"),
    "y ~ x + (x | a) + (1 | a:`the class`)": Roles("a", "y", ["x"], ["intercept", "x"], inner="the class"),
    "y ~ x + (1 | a : g) + (0 + x | a)": Roles("a", "y", ["x"], ["x"], inner="g"),
}
REFUSED = {
    "y ~ x": "expected a term (effects | group) in data.formula",
    "y": "expected data.formula like 'score ~ hours + (hours | school)', got 'y'",
    "~ x + (1 | g)": "expected data.formula like",
    "y ~ x + (1 | g) ~ z": "expected data.formula like",
    "y ~ x + + (1 | g": "got 'y ~ x + + (1 | g', in which one is not closed; add ) or remove (",
    "y ~ (x + (1 | g)": "expected balanced parentheses in data.formula, got 'y ~ (x + (1 | g)', in which one is",
    "y ~ x + 1 | g)": "got 'y ~ x + 1 | g)', in which one is not opened; add ( or remove )",
    "y ~ x) + (1 | g": "in which one is not opened",
    "factor(y ~ x + (1 | g)": "in which one is not closed",
    "y ~ x + * (1 | g)": "expected data.formula like",
    "y ~ x + (x | a/b)": "expected only an intercept for 'b' in (x | a/b), got other effects; write (x | a) + (1",
    "y ~ x + (x | a) + (x | a:b)": "got (x | a) and (x | a:b): crossed groups; keep one of these terms; nested",
    "y ~ x + (1 | a/b/g)": "expected at most two levels of groups in (1 | a/b/g), got 3; write + a + (1 | b/g)",
    "y ~ x + (1 | a:b)": "expected one column of groups in (1 | a:b), got groups of several columns",
    "y ~ (1 | a) + (1 | b)": "expected one term (effects | group) in data.formula, got (1 | a) and (1 | b): crossed",
    "y ~ x + (1 | g) + (0 + x | g)": "got (1 | g) and (0 + x | g): uncorrelated effects; write one term with all",
    "y ~ x + (x || g)": "expected one bar in (x || g), got two, which mean uncorrelated effects; write one bar",
    "y ~ x:z + x + (1 | g)": "expected 'z' among the predictors beside",
    "y ~ x * (1 | g)": "expected columns, factor(x) and offset(x) in data.formula, got '(group term 1)'",
    "log(y) ~ x + (1 | g)": "expected the name of a column as response in data.formula, got 'log(y)'",
    "cbind(a, b) ~ x + (1 | g)": "expected the name of a column as response",
    "y ~ log(x) + (1 | g)": "expected columns, factor(x) and offset(x) in data.formula, got 'log(x)'",
    "y ~ I(x^2) + (1 | g)": "expected columns, factor(x) and offset(x) in data.formula, got 'I(x",
    "y ~ 0 + x + (1 | g)": "expected a formula with intercept",
    "y ~ x - 1 + (1 | g)": "expected a formula with intercept",
    "y ~ 1 + (x | g)": "expected 'x' also outside of (effects | group)",
    "y ~ x + (0 | g)": "expected an effect before the bar, such as (1 | school)",
    "y ~ x + offset(log(n)) + (1 | g)": "expected the name of a column as offset in data.formula, got 'log(n)'",
    "y ~ offset(a) + offset(b) + (1 | g)": "expected at most one offset(x) in data.formula, outside of (eff",
    "y ~ poly(x, 2) + (1 | g)": "expected columns, factor(x) and offset(x) in data.formula, got 'poly(x, 2)'",
    "y ~ . + (1 | g)": "expected data.formula like",
    "y ~ 2 + x + (1 | g)": "expected data.formula like",
}


def same(found: Roles, expected: Roles) -> bool:
    names = ("group", "response", "predictors", "random", "factors", "weights", "offset", "inner")
    return all(
        [*(getattr(found, n) or "")] == [*(getattr(expected, n) or "")] for n in names if n != "predictors"
    ) and {frozenset(str(p).split(":")) for p in found.predictors} == {
        frozenset(str(p).split(":")) for p in expected.predictors
    }


@pytest.mark.parametrize("formula", UNDERSTOOD)
def test_a_formula_names_columns(formula: str) -> None:
    assert same(roles_of_formula(formula), UNDERSTOOD[formula]), roles_of_formula(formula)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine groups of eight rows; x, z, n, double, far are numbers, kind is text, one is constant."""
    monkeypatch.chdir(tmp_path)
    noise, lines = np.random.default_rng(3), ["g,a,b,one,x,z,n,kind,y,double,far"]
    for group in range(9):
        effect = noise.normal()
        for row in range(8):
            x, z = noise.normal(size=2)
            kind = "uvw"[row % 3]
            y = 3 + effect + 2 * x - z + 0.7 * x * z + {"u": 0, "v": 1, "w": -1 + x}[kind] + 0.3 * noise.normal()
            others = f"{2 * round(x, 4):.4f},{x + 1e3:.4f}"
            lines.append(f"g{group},a{group % 3},b{row % 2},1,{x:.4f},{z:.4f},{row + 1},{kind},{y:.4f},{others}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("formula", REFUSED)
def test_formulas_of_other_models_are_refused_by_name(formula: str, table: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(REFUSED[formula])) as error:
        load(path="t.csv", formula=formula)
    assert "\n" not in str(error.value)


OTHERS = {
    "data.formula=y ~ x + (1 | h)": "expected one column 'h' in t.csv, got none; there are: g, a, b, one, x, z, n",
    "data.formula=y ~ xx + (1 | g)": "expected one column 'xx' in t.csv, got none",
    "data.formula=y ~ x + (1 | one)": "two groups in column 'one' of t.csv, got one; fix data.formula",
    "data.formula=y ~ x + one + (1 | g)": "expected numbers that differ in column 'one' of t.csv",
    "data.formula=y ~ far + (0 + far | g)": "expected 'intercept' beside 'far' as random effects in "
    "data.formula, got only slopes: all lines meet at far = 0, far from the data",
    "data.formula=y ~ x + double + (1 | g)": "remove one of these columns from data.formula",
    "data.group=g;data.response=y;data.predictors=[x,double]": "remove one of these columns from data.predictors",
    "data.formula=y ~ x + (1 | a/g)": "expected prior=nested for nested groups, a/g in data.formula, got the prior",
    "data.formula=y ~ x + (1 | g/a);prior=nested": "expected several values of 'a' for one value of 'g' for g/a in "
    "data.formula, got one for each",
    "data.formula=y ~ x + y + (1 | g)": "weights and offset, and as random effects, got 'y' twice",
    "data.formula=y ~ x + (1 | x)": "weights and offset, and as random effects, got 'x' twice",
    "data.formula=y ~ x + offset(x) + (1 | g)": "weights and offset, and as random effects, got 'x' twice",
    "data.formula=y ~ x + (1 | g);data.weights=y": "weights and offset, and as random effects, got 'y' twice",
    "data.formula=y ~ x + (1 | g);data.group=g": "expected data.formula or data.group, got both; remove one of them",
    "data.formula=y ~ x + (1 | g);data.predictors=[z]": "expected data.formula or data.predictors, got both",
    "data.formula=y ~ x + offset(z) + (1 | g);data.offset=n": "expected one offset, got data.offset=n and another in",
    "data.group=[a,g,b];data.response=y": "expected one column in data.group, or two for nested groups, the larger "
    "groups first, got 3; name two of them, and add larger ones to data.predictors as factors",
    "data.group=[a,g];data.response=y": "expected prior=nested for nested groups, data.group=[a,g], got the prior",
    "data.response=y": "expected a value for data.group, got none; set data.group=..., or data.formula",
    "data.group=g": "expected a value for data.response, got none; set data.response=..., or data.formula",
    "data.group=g;data.response=y;data.predictors=[x,'x:x']": "expected different columns in 'x:x', got one twice",
    "data.group=g;data.response=y;data.predictors=['x:z',x]": "expected 'z' among the predictors beside",
}


@pytest.mark.parametrize("settings", OTHERS)
def test_columns_that_do_not_suit_are_named(settings: str, table: Path) -> None:
    error = call("run", *TRAINING, "data.path=t.csv", *settings.split(";")).error
    assert OTHERS[settings] in error and len(error.strip().splitlines()) == 1, error


ABSENT: dict[str, list[dict[str, object]]] = {
    "data.formula": [
        {"formula": "y ~ x + (1 | nope)"},
        {"formula": "y ~ x + (1 | g/nope)"},
        {"formula": "nope ~ x + (1 | g)"},
        {"formula": "y ~ nope + (1 | g)"},
        {"formula": "y ~ factor(nope) + (1 | g)"},
        {"formula": "y ~ x + offset(nope) + (1 | g)"},
    ],
    "data.group": [{"group": "nope", "response": "y"}, {"group": ["g", "nope"], "response": "y"}],
    "data.response": [{"group": "g", "response": "nope"}],
    "data.predictors": [{"group": "g", "response": "y", "predictors": ["x", "nope"]}],
    "data.factors": [{"group": "g", "response": "y", "predictors": ["x"], "factors": ["nope"]}],
    "data.weights": [{"formula": "y ~ x + (1 | g)", "weights": "nope"}],
    "data.offset": [{"formula": "y ~ x + (1 | g)", "offset": "nope"}],
}


@pytest.mark.parametrize(("setting", "given"), [(name, one) for name, cases in ABSENT.items() for one in cases])
def test_a_column_that_is_not_there_is_named_with_its_setting(setting: str, given: dict[str, Any], table: Path) -> None:
    with pytest.raises(UsageError, match=rf"^expected one column 'nope' in t.csv, got none; .*; fix {setting}$"):
        load(path="t.csv", **given)


USED_TWICE = {
    "y ~ x + y + (1 | g)": "'y' twice; remove it from data.formula",
    "y ~ x + z + x:z + (1 | g);offset=x": "'x' twice; remove it from data.offset or data.formula",
    "y ~ x + (1 | g);weights=y": "'y' twice; remove it from data.formula or data.weights",
    "y ~ intercept + (1 | g)": "'intercept' twice ('intercept' names the constant); remove it from data.formula",
}


@pytest.mark.parametrize("given", USED_TWICE)
def test_a_column_of_two_roles_is_named_with_its_settings(given: str, table: Path) -> None:
    Path("t.csv").write_text(Path("t.csv").read_text().replace("double", "intercept", 1))
    formula, *others = given.split(";")
    with pytest.raises(UsageError, match=re.escape(USED_TWICE[given]) + "$"):
        load(path="t.csv", formula=formula, **dict(other.split("=") for other in others))


def points(groups: Groups) -> list[float]:
    return groups.points.points.flatten().tolist()


def test_a_formula_and_columns_give_the_same_tasks(table: Path) -> None:
    by_formula = load(path="t.csv", formula="y ~ x + kind + offset(z) + (x | g)", weights="n")
    by_columns = load("g", "y", ["x", "kind"], ["intercept", "x"], path="t.csv", weights="n", offset="z")
    assert points(by_formula) == points(by_columns) and by_formula.features == by_columns.features
    assert by_formula.num_random == 2 and by_formula.context == {"num_weights": 2, "row_weights": 1}


def test_an_interaction_is_a_product_in_the_units_of_the_file(table: Path) -> None:
    """Least squares on a design matrix written down here has the coefficients of the model without groups' effects."""
    groups = load(path="t.csv", formula="y ~ x * z + x * kind + (1 | g)")
    assert set(groups.features) >= {"x:z", "x:kind=v", "x:kind=w"} and len(groups.features) == 8
    lines = [line.split(",") for line in Path("t.csv").read_text().splitlines()[1:]]
    x, z, y = (np.array([float(line[place]) for line in lines]) for place in (4, 5, 8))
    v, w = (np.array([line[7] == kind for line in lines], float) for kind in "vw")
    columns = {"intercept": x**0, "x": x, "z": z, "x:z": x * z, "kind=v": v, "kind=w": w}
    columns |= {"x:kind=v": x * v, "x:kind=w": x * w}
    order = np.argsort([line[0] for line in lines], kind="stable")
    design = np.stack([columns[name] for name in groups.features], 1)
    inputs = groups.points.points[:, :-1].double().numpy()
    b = np.linalg.lstsq(inputs, groups.points.points[:, -1].double().numpy(), rcond=None)[0]
    expected = np.linalg.lstsq(design[order], y[order], rcond=None)[0]
    assert groups.scales.in_units(torch.from_numpy(b)).numpy() == pytest.approx(expected, abs=2e-4)


def test_every_command_reads_the_formula_of_a_run(table: Path) -> None:
    formula = "y ~ x * kind + (x | g)"
    ran("run", *TRAINING, "data.path=t.csv", f"data.formula={formula}", "hydra.run.dir=run")
    assert results_of(Path("run"))["config"]["data"]["formula"] == formula
    ran("evaluate", "run", "task.shot=3")
    assert "x:kind=w" in ran("effects", "run").out
    Path("new.csv").write_text("x,kind,y\n1,w,\n1,u,\n")
    ran("predict", "run", "new.csv")
    first, second = (line.split(",") for line in Path("predictions.csv").read_text().splitlines()[1:])
    header = Path("predictions.csv").read_text().splitlines()[0].split(",")
    effect = float(first[header.index("mean")]) - float(second[header.index("mean")])
    assert effect == pytest.approx(0.0, abs=0.5)  # kind w: -1 + x at x = 1


def test_the_package_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "formulaic.errors", None)
    with pytest.raises(UsageError, match=r"package formulaic for data\.formula, not found; run: pip install"):
        roles_of_formula("y ~ x + (1 | g)")
