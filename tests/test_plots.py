"""Do plots keep their data visible: no squeezed axis, no legend over the data; vector formats on request?"""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.compare import plots as comparison
from pyro_metabayes.experiments.compare.plots import Curve
from pyro_metabayes.experiments.runs.finished_runs import Run
from pyro_metabayes.experiments.runs.plots import (
    COLOURS,
    draw_curves,
    legend_below,
    limits_without_outliers,
    new_figure,
    plot_formats,
    save_figure,
)
from tests.commands import call


def test_one_bad_value_does_not_squeeze_the_axis() -> None:
    good = [1.0, 1.1, 0.9, 1.2, 1.05]
    limits = limits_without_outliers([*good, 400.0, math.nan])
    assert limits is not None and limits == pytest.approx((0.9 - 0.08 * 0.3, 1.2 + 0.08 * 0.3))
    assert limits_without_outliers(good) is None and limits_without_outliers([2.0, 2.0, 9.0]) is None
    assert limits_without_outliers([]) is None and limits_without_outliers([math.nan]) is None


def test_a_legend_lies_below_the_axis() -> None:
    figure, (axis,) = new_figure(1)
    axis.plot([0, 1], [0, 1], label="one")
    axis.set_xlabel("step")
    legend_below(axis)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    legend, label = axis.get_legend().get_window_extent(renderer), axis.xaxis.label.get_window_extent(renderer)
    assert legend.y1 <= label.y0 and legend.y0 >= 0 and axis.lines[0].get_color() == COLOURS[0]


def test_vector_formats_are_written_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_PLOTS", "pdf, svg")
    save_figure(new_figure(1)[0], tmp_path / "a.png")
    starts = {path.suffix: path.read_bytes()[:4] for path in tmp_path.iterdir()}
    assert starts == {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xm"}
    monkeypatch.delenv("METABAYES_PLOTS")
    assert plot_formats() == []


def test_tests_draw_each_kind_of_plot_once(tmp_path: Path) -> None:
    """Else every small run of the tests takes half as long again."""
    for name in ("one", "other"):
        save_figure(new_figure(1)[0], tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").stat().st_size > 1000 > (tmp_path / "other.png").stat().st_size


def test_an_unknown_format_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_PLOTS", "pdf,jpg")
    with pytest.raises(UsageError, match="expected METABAYES_PLOTS to be pdf, svg or both, got 'jpg'"):
        plot_formats()
    assert "got 'jpg'" in call("verify", "nowhere").error


def test_curves_show_the_test_score_and_explain_the_faint_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = {"prior_sd": None, "relative_sd": None, "logit_sd": None, "disagreement": None}
    losses = [500.0, *np.linspace(3, 1, 30)]
    lines = [{"step": 10 * i, "loss": loss, "accuracy": 0.5} | spread for i, loss in enumerate(losses, 1)]
    lines[-1] |= {"val_nll": 1.0, "val_accuracy": 0.6}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    monkeypatch.setattr("pyro_metabayes.experiments.runs.plots.save_figure", lambda figure, _: drawn.append(figure))
    draw_curves(tmp_path, "a run", {"accuracy": {"mean": 0.55}, "nll": 1.1, "split": "test"})
    loss, score = drawn[0].axes
    assert loss.get_ylim()[1] < 4 and loss.get_title() == "loss, nats per task; 1 outside"
    texts = [text.get_text() for text in score.get_legend().get_texts()]
    assert texts == [
        "training tasks of one step",
        "mean of 10 logged steps",
        "validation tasks",
        "test tasks, best validation",
    ]
    assert score.lines[-1].get_ydata()[0] == pytest.approx(55) and matplotlib.rcParams["svg.fonttype"] == "none"


def test_a_guide_on_two_tasks_has_two_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Curve] = {}
    monkeypatch.setattr(comparison, "_draw_spreads", lambda axis, curves, title: drawn.update(curves))
    groups = {}
    for shot, spread in ((1, 0.5), (5, 0.7)):
        folder = tmp_path / str(shot)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "logit_sd": spread}) + "\n")
        results = {"data": "d", "shot": shot, "seed": 0, "logit_sd": spread, "transductive": False, "config": {}}
        scores = {"accuracy": np.array([0.5, 0.6]), "nll": np.array([1.0, 1.1])}
        groups[f"5-way {shot}-shot", "sib"] = [Run(folder, results, scores)]
    comparison.draw(groups, tmp_path / "comparison.png")
    assert drawn == {"sib\n5-way 1-shot": ([10], [0.5]), "sib\n5-way 5-shot": ([10], [0.7])}
