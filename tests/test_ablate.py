"""The rows of an ablation are valid configurations, and its table agrees with the runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.studies.study import Row, rows_of
from tests.commands import call, ran, results_of, without_workers
from tests.configurations import check_configurations, first_of_each

ABLATIONS = sorted(path.stem for path in (Path(CONF) / "ablate/guide").glob("*.yaml"))
ON = "on='data=gaussian_features data.num_features=12'"
PARTS = "parts=[base,normalisation,'query marginal']"
TWO = "task.query=2 task.query_concentration=0 task.query_balanced=0"
AGAIN = f"study.evaluations.settings=['{TWO}']"

pytestmark = pytest.mark.usefixtures("empty_folder")


def study_of(guide: str) -> dict[str, Any]:
    content = OmegaConf.load(Path(CONF) / "ablate/guide" / f"{guide}.yaml")
    merged = OmegaConf.create({"on": "data=gaussian_features", "study": content})
    study: Any = OmegaConf.to_container(merged, resolve=True)
    return study["study"]


def folder_of(guide: str, label: str, study: Path) -> Path:
    (row,) = (row for row in rows_of(study_of(guide), smoke=True) if row.label == label)
    return row.folder(study, 0)


@pytest.mark.parametrize("numbers", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("guide", ABLATIONS)
def test_every_row_and_evaluation_is_a_configuration(guide: str, numbers: bool) -> None:
    """Of rows that differ in numbers alone the first is composed, or all of them if `numbers`."""
    study = study_of(guide)
    rows = [row.settings for row in rows_of(study, smoke=False)]
    base = ("data=gaussian_features", f"guide={guide}")
    rows += [(*base, *str(change).split()) for change in study["evaluations"]["settings"]]
    check_configurations(rows if numbers else first_of_each(rows))


@pytest.mark.parametrize("guide", ABLATIONS)
def test_rows_differ_and_what_is_scored_again_is_there(guide: str) -> None:
    rows = rows_of(study_of(guide), smoke=False)
    assert len({row.folder(Path("study"), 0) for row in rows}) == len(rows)
    assert len({row.settings for row in rows}) == len(rows)
    assert set(study_of(guide)["evaluations"]["parts"]) <= {row.part for row in rows}


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation") / "out"
    with without_workers():
        out = ran("ablate", "guide=sib", "size=smoke", "workers=1", ON, PARTS, AGAIN, f"hydra.run.dir={folder}").out
    assert "over the batch (tasks see each other)" in (folder / "table.md").read_text() and str(folder) in out
    return folder


def lines_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def leading(cell: str) -> float:
    """The mean 41.2 of a cell `41.2 +- 3.0`. It is rounded, so ties may be rounded up or down."""
    return float(cell.partition(" +- ")[0])


def test_the_table_has_every_row_as_trained_and_as_scored_again(ablation: Path) -> None:
    lines = lines_of(ablation)
    assert len(lines) == 2 + 4 * (1 + 1), "two rows by themselves, four scored under another setting too"
    for name in ("ablation.png", "query_sets.png"):
        assert (ablation / name).read_bytes().startswith(b"\x89PNG")
    assert (ablation / "table.md").read_text().count("python -m experiments.run -m") == 6
    first = lines[0]
    results = results_of(folder_of("sib", "guide=sib", ablation))
    mean = results["accuracy"]["mean"]
    assert first["row"] == "guide=sib" and leading(first["accuracy %"]) == pytest.approx(100 * mean, abs=0.06)
    assert (first["queries"], first["K"], first["noise"]) == ("15", "3", "0")
    assert {line["queries"] for line in lines} == {"15", "2", "Dirichlet(1)"}


def test_gains_are_paired_with_the_first_row_scored_alike(ablation: Path) -> None:
    """The same tasks, or none: a row trained on random marginals is scored on others than the first row."""
    lines = lines_of(ablation)
    paired = {(line["row"], line["queries"], line["K"]): line["gain, points"] for line in lines}
    assert paired["guide=sib", "15", "3"] == "-" or "+0.0 +- 0.0" in paired["guide=sib", "15", "3"]
    assert paired["published xi, random marginals", "Dirichlet(1)", "3"] == "-"
    two = [folder_of("sib", label, ablation) for label in ("marginal-aware xi, random marginals", "guide=sib")]
    means = [results_of(folder / "evaluations" / TWO.replace(" ", ","))["accuracy"]["mean"] for folder in two]
    gain = paired["marginal-aware xi, random marginals", "2", "3"]
    assert leading(gain) == pytest.approx(100 * (means[0] - means[1]), abs=0.06)


def test_mistakes_are_named() -> None:
    assert "unknown choice guide=maml" in call("ablate", "guide=maml", "size=smoke").error
    assert call("ablate", "size=tiny").error.startswith("expected size to be one of full, smoke")
    assert "unknown part 'bas' of this study" in call("ablate", "size=smoke", "parts=[bas]").error


def test_a_row_has_its_data_and_command() -> None:
    row: Row = rows_of(study_of("sib"), smoke=False)[0]
    assert row.command.startswith("python -m experiments.run -m data=gaussian_features guide=sib")
