"""The comparison of transductive methods: choices, kept results, pairs and counts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pyro_metabayes.build import build
from pyro_metabayes.data.sources import features
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.transductive import __main__ as command
from pyro_metabayes.experiments.transductive.banks import write_bank
from pyro_metabayes.experiments.transductive.cells import Cell
from pyro_metabayes.experiments.transductive.choices import chosen
from pyro_metabayes.experiments.transductive.columns import Column, columns_of
from pyro_metabayes.experiments.transductive.differences import to_best
from pyro_metabayes.experiments.transductive.methods import Predict
from tests.commands import call
from tests.configurations import check_configurations, first_of_each

STUDY: Any = OmegaConf.to_container(OmegaConf.load(command.STUDY))
KEPT = ("pt_map", "soft_kmeans, one step", "class_means", "soft_kmeans", "amortized_em", "amortized_em, balance known")
TEXT = "# A page\n\n<!-- experiments.transductive -->\nfigures of before\n<!-- end -->\n\nIts last words.\n"


def small_study() -> dict[str, Any]:
    """One bank, one trained learner, two columns, and the methods of KEPT with one candidate each."""
    columns = {
        name: STUDY["columns"][name] for name in ("1-shot", "5-shot", "1-shot, Dirichlet(2)", "5-shot, Dirichlet(2)")
    }
    methods = {name: dict(STUDY["methods"][name]) for name in KEPT}
    methods["sib"] = {"candidates": ["guide=sib guide.synthetic_gradient=equivariant"]}
    for method in methods.values():
        method["candidates"] = method.get("candidates", [])[:1]
    rows = {"amortized_em": STUDY["parts"]["glyphs"]["rows"]["amortized_em"]}
    parts = {"glyphs": STUDY["parts"]["glyphs"] | {"rows": rows}}
    return STUDY | {"columns": columns, "methods": methods, "parts": parts}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of size smoke, with its page."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "study.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(small_study())))
    (folder / "page.md").write_text(TEXT)
    run(folder)
    return folder


def run(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "STUDY", folder / "study.yaml")
        out, page = str(folder / "out"), str(folder / "page.md")
        command.main(["--size", "smoke", "--workers", "1", "--out", out, "--page", page])


def test_the_page_has_every_method_and_keeps_its_text(compared: Path) -> None:
    page = (compared / "page.md").read_text()
    assert page.startswith("# A page\n") and page.endswith("\n\nIts last words.\n") and "figures of before" not in page
    for name in (*KEPT, "sib"):
        assert page.count(f"| {name} |") >= 2
    assert "nan" not in page and "train.steps=2" in page


def test_a_cell_of_the_page_is_that_of_the_scores(compared: Path) -> None:
    (path,) = (compared / "out").glob("cells/glyphs/1_shot/class_means.npz")
    with np.load(path) as saved:
        assert len(saved["nll"]) == command.SMOKE_TASKS
        text = f"{100 * saved['accuracy'].mean():.1f} +- "
    rows = [line for line in (compared / "page.md").read_text().splitlines() if line.startswith("| class_means | ")]
    assert any(row.startswith(f"| class_means | {text}") for row in rows)


def test_the_same_command_keeps_what_is_finished(compared: Path) -> None:
    files = [path for path in (compared / "out").rglob("*") if path.suffix in (".npz", ".json", ".pt")]
    before, page = {path: path.stat().st_mtime_ns for path in files}, (compared / "page.md").read_text()
    run(compared)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert (compared / "page.md").read_text() == page


def test_a_folder_of_something_else_is_refused_with_the_option_of_this_command(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    error = call("transductive", "--size", "smoke", "--out", str(tmp_path)).error
    assert error.startswith(f"expected a new folder, or the folder of transductive size=smoke, got {tmp_path} with")
    assert error.endswith("other files; name another folder: --out DIR")


def test_runs_of_other_settings_are_refused_with_the_option_of_this_command(compared: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(compared, copied)
    for settings in copied.rglob("settings.txt"):
        settings.write_text("guide=other\n")
    with pytest.raises(UsageError, match=r"with other settings .*, remove it, or name another folder: --out DIR$"):
        run(copied)


def test_methods_that_are_told_have_balanced_columns_alone(compared: Path) -> None:
    cells = {path.parent.name for path in (compared / "out/cells").rglob("pt_map.npz")}
    assert cells == {"1_shot", "5_shot"}


def test_every_candidate_is_a_configuration() -> None:
    texts = {
        f"{candidate} {method.get('many', '')}"
        for method in STUDY["methods"].values()
        for candidate in method.get("candidates", [])
    }
    check_configurations(first_of_each(("data=features", *text.split()) for text in sorted(texts)))


def test_every_bank_and_trained_row_is_there() -> None:
    assert STUDY["banks"].keys() == STUDY["parts"].keys()
    labels = [set(part["rows"]) for part in STUDY["parts"].values()]
    for method in STUDY["methods"].values():
        assert all(method.get("trained", "sib") in each for each in labels)


# ---------------------------------------------------------------- choices and differences


def test_the_most_accurate_candidate_is_chosen_with_its_temperature(tmp_path: Path) -> None:
    """Of random predictions, and right ones that are too unsure by a factor of 4."""
    write_bank(tmp_path / "bank.npz", "simulated")
    bank = features.load(str(tmp_path / "bank.npz"))
    columns = columns_of(STUDY, "glyphs")[:2]

    def predict_of(candidate: str, column: Column) -> Predict:
        batches = iter(list(column.tasks(bank, "val", 40)))

        def predict(observed: Any) -> torch.Tensor:
            labels = next(batches).query_y
            logits = torch.nn.functional.one_hot(labels, 5).float()
            noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
            return (logits + noise if candidate == "good" else noise).log_softmax(-1)

        return predict

    arguments = (["bad", "good"], predict_of, bank, columns, 40)
    choice = chosen(tmp_path / "choice.json", *arguments)
    assert choice.candidate == "good" and choice.temperature == pytest.approx(1.0, abs=0.15)
    assert chosen(tmp_path / "choice.json", *arguments) == choice


def cell(accuracy: list[float], nll: float = 1.0) -> Cell:
    number = len(accuracy)
    return Cell(
        np.array(accuracy), np.full(number, nll), np.zeros((number, 15, 3)), np.arange(number) % 2, np.array(1.0)
    )


def test_differences_are_to_the_best_peer_on_shared_tasks() -> None:
    ours = cell([0.5, 0.7, 0.9, 0.9])
    peers = {"short": cell([0.6, 0.8]), "long": cell([0.5, 0.7, 0.8, 0.8], nll=1.02)}
    found = to_best(ours, peers, "accuracy")
    assert (found.peer, found.tasks) == ("short", 2)
    assert found.mean == pytest.approx(-10.0) and not found.level_in_accuracy()
    assert found.seeds == pytest.approx((-10.0, -10.0))
    nll = to_best(ours, {"long": peers["long"]}, "nll")
    assert nll.mean == pytest.approx(-0.02) and nll.level_in_nll()


def test_images_become_features_with_splits_and_partners(tmp_path: Path) -> None:
    """A glyph under a network of one epoch: the bank of the file has the splits and pairs of the images."""
    settings = "data=glyphs data.images_per_class=4 backbone.num_filters=4 pretrain.epochs=1"
    write_bank(tmp_path / "glyphs.npz", settings)
    images, bank = build(config_of(settings.split()).source(), "data"), features.load(str(tmp_path / "glyphs.npz"))
    assert torch.equal(bank.pairs.partner, images.pairs.partner) and torch.equal(bank.labels, images.labels)
    assert all(torch.equal(bank.splits[split], images.splits[split]) for split in ("train", "val", "test"))


@pytest.mark.usefixtures("metabayes_data")
def test_the_features_of_cifar_100_have_the_splits_of_cifar_fs(tmp_path: Path) -> None:
    write_bank(tmp_path / "bank.npz", "cifar100_features")
    bank = features.load(str(tmp_path / "bank.npz"))
    assert [len(bank.splits[split]) for split in ("train", "val", "test")] == [64, 16, 20]
    assert bank.input_shape == (256,)
