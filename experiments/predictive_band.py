"""python -m experiments.predictive_band RUN_DIR --steps 10: plot functions drawn from the posterior of a regression.

The plot follows a figure of Grant et al. (ICLR 2018, LLAMA). The functions are drawn from the posterior of one test
task. The plot also shows the mean of these functions, and a band that contains the central 90% of them. In the left
panel, the support points are spread over the range of the inputs. In the right panel, the support points lie in the
left half of this range. The plot has one row per run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.inner_steps import stepping_part
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.restore_run import restore_run
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.likelihoods.predictions import predictions_of
from pyro_metabayes.seeding import seeded
from pyro_metabayes.storage.paths import user_path

NUM_QUERIES = 400  # query points of the task, from which the support points and the plotted curve are taken
NUM_FUNCTIONS = 12  # sampled functions that are drawn


@dataclass(frozen=True)
class Band:
    """One task with functions sampled from its posterior.

    Args:
        x: query inputs in increasing order [queries].
        y: labels of the queries [queries].
        support_x: support inputs [support points].
        support_y: labels of the support points [support points].
        draws: values of the sampled functions at x [samples, queries].
    """

    x: Tensor
    y: Tensor
    support_x: Tensor
    support_y: Tensor
    draws: Tensor


def panels(folder: Path, task: int, points: int, num_samples: int, num_steps: int | None) -> list[Band]:
    """Return two bands of a run: with support points in the whole range of inputs, and in the left half of the range.

    Args:
        folder: the folder of a finished run of a regression with one input and one output.
        task: the index of the test task.
        points: the number of support points.
        num_samples: the number of functions sampled from the posterior.
        num_steps: the number of inner steps; None as in training.

    Raises:
        UsageError: the run is not a regression with one input and one output.
    """
    config = saved_config(folder, [f"task.shot={points}", f"task.query={NUM_QUERIES}"])
    regression = config.task.way == 1  # restoring a run on classes may fail: too few inputs per class
    setup = restore_run(folder, config) if regression else None
    if setup is None or setup.tasks.source.num_targets != 1 or setup.tasks.source.input_shape != (1,):
        raise UsageError(f"expected a regression run with one input and one output, got {folder}; give another RUN_DIR")
    learner = setup.learner
    stepping = stepping_part(learner)
    if num_steps is not None and stepping is not None:
        stepping.num_steps = num_steps
    episodes = setup.tasks.stream("test").batch(task, task + 1)
    order = episodes.query_x.flatten().argsort()
    ranges = (NUM_QUERIES // 20, NUM_QUERIES - NUM_QUERIES // 20 - 1), (NUM_QUERIES // 20, NUM_QUERIES // 2 - 1)
    spread, left = (torch.linspace(first, last, points).long() for first, last in ranges)
    return [_band(learner, episodes, order, order[places], num_samples) for places in (spread, left)]


@torch.no_grad()
def _band(learner: MetaLearner, episodes: Episodes, order: Tensor, places: Tensor, num_samples: int) -> Band:
    x, y = episodes.query_x[:, order], episodes.query_y[:, order]
    support_x, support_y = episodes.query_x[:, places], episodes.query_y[:, places]
    observed = Observed(support_x=support_x, support_y=support_y, query_x=x)
    with seeded(0):
        _, likelihood = learner.posterior_predictive(observed, num_samples)
    predictions = predictions_of(likelihood, y, observed.query_mask)
    if not isinstance(predictions, NumberPredictions):
        raise UsageError("expected a likelihood of numeric labels, got class labels; give a run of a regression")
    return Band(x.flatten(), y.flatten(), support_x.flatten(), support_y.flatten(), predictions.mean[:, 0, :, 0])


def draw(bands: Sequence[Sequence[Band]], names: Sequence[str], path: Path) -> Path:
    """Plot one row of panels per run, all with the same y axis, and save the plot."""
    figure, axes = new_figure(2, rows=len(bands))
    reach = 1.6 * max(band.y.abs().max().item() for row in bands for band in row)
    titled = [
        (f"{name}: points {where}", band)
        for row, name in zip(bands, names, strict=True)
        for where, band in zip(("spread", "in one half"), row, strict=True)
    ]
    for axis, (title, band) in zip(axes, titled, strict=True):
        _draw_band(axis, band)
        axis.set(ylim=(-reach, reach))
        axis.set_title(title, fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside upper center")
    return save_figure(figure, path)


def _draw_band(axis: Any, band: Band) -> None:
    low, high = band.draws.quantile(torch.tensor([0.05, 0.95]), dim=0)
    axis.fill_between(band.x, low, high, color="C0", alpha=0.2, linewidth=0, label="90% of the functions")
    functions = band.draws[:NUM_FUNCTIONS]
    axis.plot(band.x, functions[0], color="C0", linewidth=0.5, alpha=0.6, label=f"{len(functions)} of the functions")
    axis.plot(band.x, functions[1:].mT, color="C0", linewidth=0.5, alpha=0.6)
    axis.plot(band.x, band.draws.mean(0), color="C0", linewidth=1.6, label="mean")
    axis.plot(band.x, band.y, color="black", linewidth=1, linestyle="--", label="truth")
    axis.plot(band.support_x, band.support_y, "o", color="C3", markersize=5, label="support")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("runs", metavar="RUN_DIR", nargs="+", type=user_path, help="folders of regression runs")
    parser.add_argument("--task", type=int, default=0, help="index of the test task (%(default)s)")
    parser.add_argument("--points", type=int, default=5, help="number of support points (%(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="number of sampled functions (%(default)s)")
    parser.add_argument("--steps", type=int, help="number of inner steps (default: as in training)")
    parser.add_argument(
        "--out", type=user_path, default=Path("runs/predictive_band.png"), help="file of the plot (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.task < 0 or not 1 <= options.points <= NUM_QUERIES // 4 or options.samples < 2:
        got = f"--task {options.task}, --points {options.points} and --samples {options.samples}"
        raise UsageError(f"expected --task >= 0, 1 <= --points <= {NUM_QUERIES // 4} and --samples >= 2, got {got}")
    arguments_of_panels = options.task, options.points, options.samples, options.steps
    bands = [panels(run, *arguments_of_panels) for run in options.runs]
    names = [saved_config(run, []).choices.get("guide", run.name) for run in options.runs]
    print(f"plot: {draw(bands, names, options.out)}")


if __name__ == "__main__":
    run_program(main)
