"""python -m experiments.families RUN_DIR: shares of sines and lines among functions sampled from a posterior.

RUN_DIR is the folder of a run on data=sine_and_line. Each sampled function counts as the family that fits it better, by
least squares on x in [-5, 5]. RUN_DIR/families then has table.md, table.csv, families.json and families.png.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.data.sources.sine_and_line import Functions, SineAndLine
from pyro_metabayes.data.stream import generator_of
from pyro_metabayes.data.task_shape import BLOCK
from pyro_metabayes.device import as_double
from pyro_metabayes.diagnostics.families import family_of
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.restore_run import restore_run
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables
from pyro_metabayes.seeding import seeded
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.paths import user_path

GRID = torch.linspace(-5, 5, 101)
BOTH = 0.2  # a posterior counts as having both families if each has at least this share of the samples
PANELS = (1, 2, 2, 5, 10)  # number of support points of the task in each column of the plot


class FamilyStudy:
    """Best learner of a finished run, and simulated tasks with known true functions.

    Args:
        folder: the folder of a run on data=sine_and_line.
        split: train, val or test.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.config, self.split = replace(saved_config(folder, []), device="cpu"), split
        setup = restore_run(folder, self.config)
        source = setup.tasks.source
        if not isinstance(source, SineAndLine):
            got = f"data={self.config.choices.get('data')}"
            raise UsageError(f"expected a run on data=sine_and_line, got {got}; give another RUN_DIR")
        self.source = replace(source, fewest=0)
        self.learner = setup.learner

    def block(self, number: int, shot: int) -> tuple[Observed, Functions]:
        """Simulate one block of tasks. The query inputs of each task are the grid GRID.

        Args:
            number: the index of the block in the split.
            shot: the number of support points per task.

        Returns:
            The tasks and their true functions.
        """
        draw = self.source.sampler(self.split, replace(self.config.task, shot=shot))
        episodes = draw(generator_of(self.config.seed, self.split, number))
        functions = self.source.functions(generator_of(self.config.seed, self.split, number))
        grid = GRID.view(1, -1, 1).expand(BLOCK, -1, -1)
        mask = torch.ones(BLOCK, len(GRID), dtype=torch.bool)
        return replace(episodes.observed(), query_x=grid, query_mask=mask), functions

    @torch.no_grad()
    def functions(self, observed: Observed, samples: int) -> Tensor:
        """Return functions sampled from the posterior of each task, at the query inputs: [samples, tasks, queries]."""
        _, likelihood = self.learner.posterior_predictive(observed, samples)
        return likelihood.mean.squeeze(-1)


def family_row(study: FamilyStudy, shot: int, blocks: int, samples: int) -> dict[str, Any]:
    """Return one row of the table: shares of sines and lines among sampled functions, and RMSE of the mean function.

    Args:
        study: the learner and its tasks.
        shot: the number of support points per task.
        blocks: the number of blocks of tasks.
        samples: the number of functions sampled per task.
    """
    lines, own, both, error = [], [], [], []
    with seeded(study.config.seed):
        for number in range(blocks):
            observed, truth = study.block(number, shot)
            sampled = study.functions(observed, samples)
            family = family_of(GRID, sampled)  # [samples, tasks], 1 for a line
            lines.append(share := as_double(family).mean(0))
            own.append(as_double(family == truth.family).mean(0))
            both.append(as_double((share >= BOTH) & (share <= 1 - BOTH)))
            error.append((sampled.mean(0) - truth(observed.query_x).squeeze(-1)).square().mean(-1))
    return _pooled(shot, torch.cat(lines), torch.cat(own), torch.cat(both), torch.cat(error))


def _pooled(shot: int, lines: Tensor, own: Tensor, both: Tensor, error: Tensor) -> dict[str, Any]:
    """Average the metrics of all tasks into one row of the table. All tensors have shape [tasks].

    Args:
        shot: the number of support points per task.
        lines: the share of lines among the sampled functions.
        own: the share of sampled functions that are of the family of the true function.
        both: whether lines and sines each make up at least the share BOTH of the sampled functions.
        error: the mean squared error of the mean function.
    """
    line = lines.mean().item()
    return {
        "support points": shot,
        "sine": 1 - line,
        "line": line,
        "of the task's own family": own.mean().item(),
        "tasks with both": both.mean().item(),
        "rmse of the mean": error.mean().sqrt().item(),
    }


def text_row(row: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) if isinstance(value, int) else f"{value:.3f}" for name, value in row.items()}


def draw(study: FamilyStudy, path: Path, samples: int = 12) -> Path:
    """Plot functions sampled from the posterior, and save the plot.

    The true function is a sine in the first row of panels, and a line in the second. Sampled functions are dotted.
    """
    from matplotlib.lines import Line2D

    figure, _ = new_figure(1)
    figure.clear()
    figure.set_size_inches(2.6 * len(PANELS), 5)
    axes = figure.subplots(2, len(PANELS), sharex=True, sharey=True)
    for column, shot in enumerate(PANELS):
        observed, truth = study.block(0, shot)
        tasks = torch.stack([(truth.family == family).nonzero()[column, 0] for family in range(2)])
        observed, functions = observed.tasks(tasks), truth(observed.query_x)[tasks].squeeze(-1)
        with seeded(study.config.seed):
            sampled = study.functions(observed, samples)
        for row in range(2):
            _panel(axes[row][column], observed.tasks(slice(row, row + 1)), functions[row], sampled[:, row])
        axes[0][column].set_title(f"{shot} point{'s' if shot > 1 else ''}", fontsize=10)
    axes[0][0].set(ylabel="a sine", ylim=(-8, 8))
    axes[1][0].set(ylabel="a line")
    legend = {
        "sample, a sine": Line2D([], [], color="C0", ls=":"),
        "sample, a line": Line2D([], [], color="C1", ls=":"),
        "true function": Line2D([], [], color="black", lw=1.2),
        "support point": Line2D([], [], color="C3", ls="--", lw=0.6, marker="o", ms=4),
    }
    figure.legend(legend.values(), legend, loc="outside upper right", ncols=4, frameon=False)
    return save_figure(figure, path)


def _panel(axis: Any, observed: Observed, function: Tensor, sampled: Tensor) -> None:
    """Plot the true function, the sampled functions and the support points of one task.

    Args:
        axis: the axis of the plot.
        observed: the task.
        function: values of the true function at the inputs GRID [points].
        sampled: values of the sampled functions at the inputs GRID [samples, points].
    """
    for line, family in zip(sampled, family_of(GRID, sampled), strict=True):
        axis.plot(GRID, line, ":", color=f"C{family}", lw=1.2)
    axis.plot(GRID, function, color="black", lw=1.2)
    axis.vlines(observed.support_x, -8, 8, color="C3", ls="--", lw=0.6, alpha=0.6)
    axis.plot(observed.support_x.flatten(), observed.support_y.flatten(), "o", color="C3", ms=4)
    axis.grid(alpha=0.25)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=user_path, help="folder of a run on data=sine_and_line")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 5, 10], help="numbers of support points")
    parser.add_argument("--split", default="test", help="train, val or test (%(default)s)")
    parser.add_argument("--blocks", type=int, default=10, help=f"number of blocks of {BLOCK} tasks (%(default)s)")
    parser.add_argument("--samples", type=int, default=50, help="number of sampled functions per task (%(default)s)")
    options = parser.parse_args(arguments)
    if min(options.shots) < 0 or options.blocks < 1 or options.samples < 2:
        got = f"--shots {options.shots}, --blocks {options.blocks} and --samples {options.samples}"
        raise UsageError(f"expected --shots >= 0, --blocks >= 1 and --samples >= 2, got {got}")
    study, out = FamilyStudy(options.run, options.split), options.run / "families"
    rows = [family_row(study, shot, options.blocks, options.samples) for shot in options.shots]
    write_atomically(out / "families.json", lambda path: path.write_text(json.dumps(rows, indent=2) + "\n"))
    text_rows = [text_row(row) for row in rows]
    save_tables(out, f"{markdown_table(text_rows)}\n", text_rows)
    print(text_table(text_rows))
    print(f"table.md, table.csv, families.json and plot: {draw(study, out / 'families.png')}")


if __name__ == "__main__":
    run_program(main)
