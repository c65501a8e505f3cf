"""Sines and lines: distribution of the simulated tasks, and the family of a sampled function."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from pyro_metabayes import UsageError
from pyro_metabayes.data.sources.sine_and_line import FAMILIES, SineAndLine
from pyro_metabayes.data.stream import TaskStream, generator_of
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.diagnostics.families import family_of, residuals_of_families
from tests.commands import SMALL, SMALL_LEO, call, ran

GRID = torch.linspace(-5, 5, 101)


def functions_of(source: SineAndLine, blocks: int, split: str = "test") -> list[torch.Tensor]:
    """The family, amplitude, phase, slope and intercept of many tasks."""
    drawn = [source.functions(generator_of(0, split, block)) for block in range(blocks)]
    names = ("family", "amplitude", "phase", "slope", "intercept")
    return [torch.cat([getattr(its, name).flatten() for its in drawn]) for name in names]


def test_half_the_tasks_are_sines_and_their_numbers_are_uniform() -> None:
    family, *numbers = functions_of(SineAndLine(), 64)  # 4096 tasks: within 5 standard errors
    assert FAMILIES == ("sine", "line") and set(family.tolist()) == {0, 1}
    assert family.double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 64)
    for values, (low, high) in zip(numbers, ((0.1, 5), (0, math.pi), (-3, 3), (-3, 3)), strict=True):
        assert low <= values.min() and values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=5 * (high - low) / math.sqrt(12 * 4096))
        assert values.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)


def test_labels_are_the_true_functions_with_noise() -> None:
    """`functions` of a block's generator are those of the episodes that the stream draws."""
    source, shape = SineAndLine(noise=0.3), TaskShape(1, 8, 12)
    tasks = TaskStream(source.sampler("val", shape), 3, "val").batch(BLOCK, 2 * BLOCK)
    truth = source.functions(generator_of(3, "val", 1))
    x, y = torch.cat((tasks.support_x, tasks.query_x), 1), torch.cat((tasks.support_y, tasks.query_y), 1)
    residual = (y - truth(x)).double()
    assert residual.std().item() == pytest.approx(0.3, rel=0.1) and abs(residual.mean().item()) < 0.05
    assert x.min() >= -5 and x.max() <= 5 and tasks.num_classes == 0 and tasks.support_mask.all()
    task = int((truth.family == 0).nonzero()[0])
    amplitude, phase = truth.amplitude[task].item(), truth.phase[task].item()
    torch.testing.assert_close(truth(x)[task], amplitude * torch.sin(x[task] - phase))
    task = int((truth.family == 1).nonzero()[0])
    torch.testing.assert_close(truth(x)[task], truth.slope[task] * x[task] + truth.intercept[task])


def test_fewest_leaves_every_number_of_points_equally_likely() -> None:
    tasks = TaskStream(SineAndLine(fewest=3).sampler("train", TaskShape(1, 6, 2)), 0, "train").batch(0, 4096)
    counts = tasks.support_mask.sum(1)
    shares = torch.bincount(counts, minlength=7) / 4096
    assert (shares[:3] == 0).all() and (shares[3:] - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 4096)
    assert (tasks.support_mask[:, :-1] >= tasks.support_mask[:, 1:]).all(), "the first points are there"
    every = TaskStream(SineAndLine().sampler("train", TaskShape(1, 6, 2)), 0, "train").batch(0, 4096)
    assert torch.equal(tasks.support_x, every.support_x) and torch.equal(tasks.query_y, every.query_y)


def test_tasks_are_seed_split_and_index() -> None:
    draw = SineAndLine(fewest=1).sampler("train", TaskShape(1, 3, 4))
    whole, part = (TaskStream(draw, 0, "train").batch(*its) for its in ((0, 100), (60, 90)))
    for name in ("support_x", "support_y", "support_mask", "query_x", "query_y"):
        assert torch.equal(getattr(whole, name)[60:90], getattr(part, name))
    other = TaskStream(draw, 1, "train").batch(0, 100)
    assert not (other.query_x == whole.query_x).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"noise": 0.0}, (1, 5, 15), "expected a finite data.noise > 0 and data.fewest >= 0"),
        ({"fewest": -1}, (1, 5, 15), "expected a finite data.noise > 0 and data.fewest >= 0"),
        ({"fewest": 6}, (1, 5, 15), "expected data.fewest <= task.shot, got data.fewest=6 and task.shot=5"),
        ({}, (2, 5, 15), r"expected task\.way=1 \(labels are numbers\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings: dict[str, float], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SineAndLine(**settings).sampler("train", TaskShape(*shape))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the family of a function


def test_true_functions_belong_to_their_family() -> None:
    """Without a residual; with a wobble of a tenth of the noise still all, but for sines smaller than that."""
    truth = SineAndLine().functions(generator_of(0, "test", 0))
    y = truth(GRID.view(1, -1, 1).expand(BLOCK, -1, -1)).squeeze(-1).double()
    residuals = residuals_of_families(GRID.double(), y)
    own = residuals.gather(-1, truth.family.unsqueeze(-1))
    assert own.max() < 1e-10 and torch.equal(family_of(GRID.double(), y), truth.family)
    assert torch.equal(family_of(GRID.double(), y + 0.03 * torch.randn_like(y)), truth.family)


def test_residuals_are_those_of_least_squares() -> None:
    x, y = GRID.double(), torch.randn(3, 101, dtype=torch.float64)
    got = residuals_of_families(x, y)
    for place, basis in enumerate((torch.stack((x.sin(), x.cos()), 1), torch.stack((x, torch.ones_like(x)), 1))):
        fit = basis @ torch.linalg.lstsq(basis, y.T).solution
        torch.testing.assert_close(got[:, place], (y.T - fit).square().mean(0))


# ---------------------------------------------------------------- the command


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_folder")
def test_the_families_of_a_run_are_counted_and_drawn() -> None:
    ran("run", "data=sine_and_line", *SMALL_LEO, *SMALL, "hydra.run.dir=run")
    small = ("--blocks", "1", "--samples", "3", "--shots", "1", "4")
    outcome = ran("families", "run", *small)
    rows = json.loads(Path("run/families/families.json").read_text())
    assert [row["support points"] for row in rows] == [1, 4] and "own family" in outcome.out
    for row in rows:
        assert row["sine"] + row["line"] == pytest.approx(1) and 0 <= row["of the task's own family"] <= 1
    assert len(Path("run/families/table.csv").read_text().splitlines()) == 1 + len(rows)
    assert Path("run/families/families.png").read_bytes().startswith(b"\x89PNG")
    assert ran("families", "run", *small).out == outcome.out, "the same seed gives the same numbers"
    assert "expected --shots >= 0, --blocks >= 1 and --samples >= 2" in call("families", "run", "--samples", "1").error
    assert "expected a split among train, val, test, got 'exam'" in call("families", "run", "--split", "exam").error


@pytest.mark.usefixtures("in_folder")
def test_families_of_other_data_are_refused(finished: Path) -> None:
    expected = "expected a run on data=sine_and_line, got data=features; give another RUN_DIR"
    assert call("families", str(finished)).error == expected
    assert "got no folder nowhere; fix the path" in call("families", "nowhere").error
