"""A published table runs, continues, and shows inductive and transductive results beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.reproduce import KINDS, with_section
from pyro_metabayes.experiments.studies.study import rows_of
from tests.commands import Outcome, call, ran, results_of, without_workers
from tests.configurations import check_configurations, first_of_each

TABLES = sorted(path.stem for path in (Path(CONF) / "table").glob("*.yaml"))
# The table's rows on a simulator, in two steps.
SMALL = (
    "table=sib_cifar_fs",
    "workers=1",
    "table.settings='data=gaussian_features data.num_features=16 train.steps=2 train.validation_tasks=4 eval.tasks=8 "
    "eval.samples=2'",
    "table.parts.strong_1shot.settings='task.shot=1'",
    "table.parts.strong_1shot.seeds=2",
)

pytestmark = pytest.mark.usefixtures("empty_folder")


def table_of(name: str) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(Path(CONF) / "table" / f"{name}.yaml"))
    return content


@pytest.mark.parametrize("numbers", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_a_configuration(name: str, numbers: bool) -> None:
    """Of rows that differ in numbers alone the first is composed, or all of them if `numbers`."""
    rows = [row.settings for row in rows_of(table_of(name), smoke=True)]
    check_configurations(rows if numbers else first_of_each(rows))


@pytest.mark.parametrize("name", TABLES)
def test_a_published_figure_belongs_to_a_row_and_a_kind(name: str) -> None:
    for part in table_of(name)["parts"].values():
        for label, figures in part.get("published", {}).items():
            assert label in part["rows"] and set(figures) <= set(KINDS.values())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("table")
    (folder / "RESULTS.md").write_text("# Mine\n\n<!-- other -->\nkept\n<!-- end of other -->\n")
    out = (f"out={folder}/RESULTS.md", f"hydra.run.dir={folder}/runs")
    with without_workers():
        return folder, ran("reproduce", *SMALL, "parts=[strong_1shot]", *out)


def cells_of(folder: Path, method: str, setting: str) -> dict[str, str]:
    """The cells of a method from all tables under the heading of a setting."""
    (part,) = (
        part for part in (folder / "RESULTS.md").read_text().split("\n### ")[1:] if part.startswith(f"{setting}\n")
    )
    cells: dict[str, str] = {}
    for table in part.split("\n\n"):
        lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
        cells |= {name: cell for line in lines if line[0] == method for name, cell in zip(lines[0], line, strict=True)}
    return cells


def test_figures_stand_beside_the_papers_kind_by_kind(written: tuple[Path, Outcome]) -> None:
    inductive = cells_of(written[0], "sib, K=0", "Conv-4-64, pretrain=strong, mirrored features, 1-shot")
    assert inductive["paper, inductive %"] == "59.2 +- 0.5" and "+-" in inductive["ours, inductive %"]
    assert inductive["paper, transductive %"] == inductive["ours, transductive %"] == "-"
    transductive = cells_of(written[0], "sib_delta, K=3", "Conv-4-64, pretrain=strong, mirrored features, 1-shot")
    assert transductive["paper, transductive %"] == "68.7 +- 0.6" and "+-" in transductive["ours, transductive %"]
    assert transductive["ours, inductive %"] == "-" and transductive["seeds"] == "0, 1"
    (run,) = written[0].glob("runs/strong_1shot_sib_delta*/seed0")
    assert transductive["tasks"] == "8" == str(results_of(run)["tasks"]) and results_of(run)["machine"]


def test_a_cell_that_was_not_run_says_so(written: tuple[Path, Outcome]) -> None:
    cells = cells_of(written[0], "sib_delta, K=5", "WRN-28-10, published pretraining, 1-shot")
    assert cells["paper, transductive %"] == "80.0 +- 0.6" and cells["tasks"] == "not run"
    section = (written[0] / "RESULTS.md").read_text()
    assert "Not run:\n\n- WRN-28-10, published pretraining, 1-shot: needs cuda, by operation counts" in section
    assert cells_of(written[0], "mc", "Conv-4-64, published pretraining, 1-shot")["tasks"] == "not run"


def test_tables_have_at_most_seven_columns(written: tuple[Path, Outcome]) -> None:
    lines = [line for line in (written[0] / "RESULTS.md").read_text().splitlines() if line.startswith("|")]
    assert lines and max(line.count(" | ") + 1 for line in lines) <= 7


def test_other_sections_of_the_page_stay(written: tuple[Path, Outcome]) -> None:
    text = (written[0] / "RESULTS.md").read_text()
    assert text.startswith("# Mine\n\n<!-- other -->\nkept\n<!-- end of other -->\n")
    assert text.count("<!-- sib_cifar_fs -->") == 1
    path = written[0] / "RESULTS.md"
    once = with_section(path, "sib_cifar_fs", "new")
    assert "WRN" not in once and "kept" in once and "<!-- sib_cifar_fs -->\nnew\n<!-- end of sib_cifar_fs -->" in once


def test_finished_cells_are_not_run_again(written: tuple[Path, Outcome]) -> None:
    folder = written[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")}
    assert len(before) == 12
    out = (f"out={folder}/RESULTS.md", f"hydra.run.dir={folder}/runs")
    ran("reproduce", *SMALL, "parts=[strong_1shot]", *out)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_part_that_the_machine_cannot_run_is_refused_by_name() -> None:
    error = call("reproduce", *SMALL, "parts=[wide_1shot]").error
    assert error.startswith("expected a CUDA device for the part 'wide_1shot'")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("table=nope", "unknown choice table=nope; choose one of: "),
        ("parts=[nope]", "unknown part 'nope'"),
        ("size=big", "expected size"),
    ],
)
def test_a_mistake_is_named(argument: str, message: str) -> None:
    assert call("reproduce", argument).error.startswith(message)
    assert not Path("RESULTS.md").exists() and not Path("runs").exists()
