"""Columns of a table of groups are standardised whatever their units. Useless columns are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.mixed_effects import fit
from tests.commands import ran, results_of

GROUPS, ROWS = 8, 6
OFFSETS = st.sampled_from([0.0, -3.0, 2010.0, -4e4, 1.7e9, 1e12])  # years, dates as numbers, Unix seconds and more
SIZES = st.sampled_from([1.0, 1e-9, 1e-4, 3e3, 1e9, 1e150, 1e-150])


def rows_of(seed: int = 0) -> np.ndarray:
    """Columns x, z and y [N, 3] of groups with different intercepts and slopes."""
    noise = np.random.default_rng(seed)
    x, z = np.tile(np.arange(ROWS) * 1.0, GROUPS), noise.normal(size=GROUPS * ROWS)
    effects = np.repeat(noise.normal(size=(GROUPS, 2)), ROWS, axis=0)
    return np.stack([x, z, 3 + effects[:, 0] + (1 + effects[:, 1]) * x - z + 0.3 * noise.normal(size=len(x))], 1)


def loaded(rows: np.ndarray, *predictors: str, random: tuple[str, ...] = ("intercept",), **others: object) -> Groups:
    """The groups of a file of these columns, called x, z and y."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        lines = [f"g{i // ROWS}," + ",".join(repr(float(value)) for value in row) for i, row in enumerate(rows)]
        path.write_text("\n".join(["who,x,z,y", *lines]) + "\n")
        return load("who", "y", predictors or ("x", "z"), random, path=str(path), **others)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(offset=OFFSETS, size=SIZES, y_offset=OFFSETS, y_size=SIZES)
def test_units_do_not_matter(offset: float, size: float, y_offset: float, y_size: float) -> None:
    """x and y in other units are the same points, and the same weights once these are in units."""
    change = size * np.array([1, 1, 0]) + y_size * np.array([0, 0, 1])
    shift = change * np.array([offset, 0, y_offset])
    rows = rows_of()
    here, there = (loaded(values, random=("intercept", "x")) for values in (rows, rows * change + shift))
    rounding = 1e-15 * max(abs(offset), abs(y_offset)) * 10 + 1e-5
    torch.testing.assert_close(there.whole().query_x, here.whole().query_x, atol=rounding, rtol=0)
    torch.testing.assert_close(there.whole().query_y, here.whole().query_y, atol=rounding, rtol=0)
    w = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64)  # intercept, x, z
    intercept, x, z = here.scales.in_units(w).tolist()
    slopes = [x * y_size / size, z * y_size / size]
    expected = [y_size * (y_offset + intercept) - slopes[0] * size * offset, *slopes]
    scale = y_size * (1 + abs(y_offset) + abs(offset))
    assert there.scales.in_units(w).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3 * scale)


@pytest.mark.parametrize("offset", [0.0, 4.5, 2010.0, 1.7e9])
def test_estimates_are_those_of_the_columns_of_the_file(offset: float) -> None:
    """With the intercept and its sd at x = 0, and the correlation that is there."""
    torch.set_default_dtype(torch.float64)
    rows = rows_of()
    groups = loaded(rows + np.array([offset, 0, 0]), random=("intercept", "x"))
    found = fit(groups.whole(), 2)
    raw = groups.whole()
    columns = torch.from_numpy(rows).view(GROUPS, ROWS, 3)
    raw.query_x[..., 1:], raw.query_y[..., 0] = columns[..., :2], columns[..., 2]
    reference = fit(raw, 2)
    weights = groups.scales.in_units(found.coefficients)
    move = torch.tensor([[1.0, -offset], [0.0, 1.0]])  # from an intercept at x = offset to one at 0
    expected = torch.cat((move @ reference.coefficients[:2], reference.coefficients[2:]))
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-5)
    covariance = groups.scales.covariance_in_units(found.covariance)
    torch.testing.assert_close(covariance, move @ reference.covariance @ move.mT, rtol=1e-3, atol=1e-6)
    effects, there = found.effects(groups.whole().pooled()).mean[:, 0], reference.effects(raw.pooled()).mean[:, 0]
    of_groups = groups.scales.effects_in_units(effects, found.coefficients[2:])
    torch.testing.assert_close(of_groups, there @ move.mT, rtol=1e-4, atol=1e-4)


def test_every_distinct_time_stays_one() -> None:
    rows = rows_of() + np.array([1.7e9, 0, 0])
    assert len(loaded(rows).whole().query_x[..., 1].unique()) == ROWS


def changed(column: int, change: Callable[[np.ndarray], object]) -> np.ndarray:
    """The rows with one column changed."""
    rows = rows_of()
    rows[:, column] = change(rows)
    return rows


REFUSED: dict[str, tuple[np.ndarray, str]] = {
    "a constant": (changed(1, lambda rows: 7.0), "expected numbers that differ in column 'z'"),
    "a constant up to rounding": (changed(1, lambda rows: 1e17 + rows[:, 1]), "differ in column 'z'"),
    "a constant response": (changed(2, lambda rows: -1.0), "expected numbers that differ in column 'y'"),
    "the same column twice": (changed(1, lambda rows: rows[:, 0]), "got 'z' as a linear function of 'x'"),
    "the same in other units": (changed(1, lambda rows: 2010 - 3 * rows[:, 0]), "as a linear function of 'x'"),
    "one huge number": (changed(1, lambda rows: rows[:, 1] + 1e12 * (np.arange(len(rows)) == 5)), "a column 'z'"),
    "a huge response": (changed(2, lambda rows: rows[:, 2] + 1e12 * (np.arange(len(rows)) == 5)), "a column 'y'"),
    "a range without a float": (changed(1, lambda rows: 1.7e308 * np.sign(rows[:, 1])), "got a range of inf"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_columns_of_no_use_are_named(what: str) -> None:
    rows, message = REFUSED[what]
    with pytest.raises(UsageError) as caught:
        loaded(rows)
    assert message in str(caught.value)


def test_all_of_three_collinear_columns_are_named(tmp_path: Path) -> None:
    rows = changed(2, lambda rows: rows[:, 0] - 2 * rows[:, 1])
    lines = [f"g{i // ROWS},{x!r},{z!r},{y!r},{i % 5}" for i, (x, z, y) in enumerate(rows.tolist())]
    (tmp_path / "t.csv").write_text("\n".join(["who,x,z,sum,y", *lines]) + "\n")
    with pytest.raises(UsageError, match="got 'sum' as a linear function of 'x' and 'z'"):
        load("who", "y", ["x", "z", "sum"], path=str(tmp_path / "t.csv"))


def test_a_square_far_from_0_is_noted() -> None:
    rows = changed(1, lambda rows: (rows[:, 0] + 2010) ** 2)
    assert ["column 'z' is nearly a linear function of 'x'" in note for note in loaded(rows).notes] == [True]
    assert not loaded(changed(1, lambda rows: (rows[:, 0] - 2.5) ** 2)).notes


def test_slopes_without_intercepts_meet_at_0() -> None:
    """Such predictors are not centred; far from 0 they are refused, since the lines would be one."""
    groups = loaded(rows_of(), random=("x",))
    assert groups.scales.mean[0] == 0 and groups.whole().query_x[..., 0].min() == 0
    with pytest.raises(UsageError, match=r"all lines meet at x = 0, .* set data.random=\[intercept,x\]"):
        loaded(rows_of() + np.array([2010, 0, 0]), random=("x",))


RESPONSES: dict[str, tuple[Callable[[np.ndarray], object], str]] = {
    "0 and 1": (lambda rows: rows[:, 2] > 3, "response 'y' has two values, 0 and 1: it is fitted with Gaussian noise"),
    "1 and 2": (lambda rows: 1 + (rows[:, 2] > 3), "response 'y' has two values, 1 and 2"),
    "counts": (lambda rows: np.floor(np.exp(rows[:, 2] / 4)), "response 'y' has whole numbers from"),
    "ratings": (lambda rows: rows[:, 2].round().clip(1, 5), "response 'y' has whole numbers from 1 to 5"),
    "heights in cm": (lambda rows: 170 + rows[:, 2].round(), ""),
    "whole numbers below 0": (lambda rows: rows[:, 2].round() - 5, ""),
    "numbers": (lambda rows: rows[:, 2], ""),
}


@pytest.mark.parametrize("what", RESPONSES)
def test_a_response_without_gaussian_noise_is_noted(what: str) -> None:
    change, note = RESPONSES[what]
    notes = loaded(changed(2, change)).notes
    assert len(notes) == bool(note) and all(text.startswith(note) for text in notes)


CODES = {
    "1 2 3 4": True,
    "0 1 2": True,
    "0 1": False,
    "8 10 12 14": False,
    "1 2 3 4 5 6": False,
    "1.5 2.5 3.5": False,
}


@pytest.mark.parametrize("values", CODES)
def test_a_predictor_that_may_be_codes_is_noted(values: str, tmp_path: Path) -> None:
    """As the diets 1 to 4 of ChickWeight; a factor is not noted."""
    noise, codes = np.random.default_rng(0), values.split()
    rows = [f"g{group},{codes[group % len(codes)]},{noise.normal():.3f}" for group in range(14) for _ in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["who,diet,y", *rows]) + "\n")
    noted = [
        f"column 'diet' has {len(codes)} whole values and is read as a number; data.factors=[diet], or factor(diet) in "
        "data.formula, treats it as a factor"
    ]
    assert load("who", "y", ["diet"], path=str(tmp_path / "t.csv")).notes == (noted if CODES[values] else [])
    notes = load("who", "y", ["diet"], path=str(tmp_path / "t.csv"), factors=["diet"]).notes
    assert len(notes) == 1 and notes[0].startswith("column 'diet' has the levels")


@pytest.mark.parametrize(("random", "useless"), [("intercept", True), ("intercept,x", False)])
def test_a_regression_of_no_use_says_so(
    random: str, useless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slopes of groups with mean 0: without them the predictor helps nobody; far from 0 as near it."""
    monkeypatch.chdir(tmp_path)
    noise, slopes = np.random.default_rng(0), [-2, 2, -1, 1, -3, 3]
    rows = [
        f"g{g},{2010 + t},{slope * (t - 4.5) + 0.1 * noise.normal()}"
        for g, slope in enumerate(slopes)
        for t in range(10)
    ]
    Path("t.csv").write_text("\n".join(["who,x,y", *rows]) + "\n")
    settings = (
        "data=groups",
        "guide=exact",
        "prior=full_gaussian",
        "data.path=t.csv",
        "data.group=who",
        "data.response=y",
    )
    small = (
        "train.steps=60",
        "train.particles=1",
        "train.tasks_per_step=6",
        "train.validation_tasks=6",
        "eval.tasks=12",
        "task.shot=3",
    )
    rates = ("train.learning_rate=1e-1", "data.predictors=[x]", f"data.random=[{random}]", "hydra.run.dir=run")
    out = ran("run", *settings, *small, *rates).out
    assert ("is no better than that of the grand mean" in out) == useless
    results = results_of(Path("run"))
    assert results["constant_rmse"]["grand_mean"] == pytest.approx(1, abs=0.25)
    assert useless or results["rmse"] < 0.3
