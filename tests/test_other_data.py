"""Does an evaluation on other data use the run as it was trained: its backbone, its mean, its scales?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources import features, image_folder
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.runs.evaluation import folder_name
from pyro_metabayes.experiments.runs.notes import OF_EVALUATION, note_poor_result
from pyro_metabayes.experiments.runs.restore_run import restore_run
from pyro_metabayes.pretraining import embed_bank
from tests.commands import call, ran, results_of, write_features
from tests.test_image_files import write_image

IMAGES = ("data=image_folder", "data.size=16", "backbone.num_filters=3", "pretrain.epochs=1", "pretrain.batch_size=4")
TASKS = ("task.way=2", "task.shot=1", "task.query=2", "train.steps=1", "eval.tasks=8", "train.validation_tasks=4")
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


def write_folder(path: Path, seed: int) -> Path:
    """Three classes of four noise images in each split."""
    noise = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for label in range(3):
            for index in range(4):
                write_image(path / split / f"{split}{label}" / f"{index}.png", int(noise.integers(256)))
    return path


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_other_images_get_the_features_of_the_run(frozen: str, tmp_path: Path) -> None:
    one, other = write_folder(tmp_path / "one", 0), write_folder(tmp_path / "other", 1)
    ran("run", *IMAGES, f"data.path={one}", *TASKS, f"backbone.frozen={frozen}", "guide=proto", "hydra.run.dir=run")
    said = ran("evaluate", "run", f"data.path={other}")
    assert "pretrain" not in said.out + said.err
    learner = MetaLearner.load("run")
    bank = image_folder.load(str(other), size=16)
    bank = embed_bank(learner.backbone, bank, CPU) if learner.frozen else bank
    expected = evaluate(learner, bank.tasks("test", way=2, shot=1, query=2), EvalSettings(tasks=8))
    (folder,) = Path("run/evaluations").iterdir()
    assert results_of(folder)["nll"] == pytest.approx(expected.metrics["nll"], abs=1e-6)


def test_an_evaluation_does_not_pretrain_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the data of the run, with an empty cache, its scores are those of the run."""
    ran("run", *IMAGES, f"data.path={write_folder(tmp_path / 'one', 0)}", *TASKS, "guide=proto", "hydra.run.dir=run")
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "empty"))
    assert "pretrain" not in ran("evaluate", "run").out
    (folder,) = Path("run/evaluations").iterdir()
    assert results_of(folder)["nll"] == results_of(Path("run"))["nll"]


def test_other_features_are_centred_as_those_of_the_run(tmp_path: Path) -> None:
    one = write_features(tmp_path / "one.npz")
    shifted = np.load(one)["features"] + 3
    other = write_features(tmp_path / "other.npz", features=shifted.astype(np.float32))
    ran("run", "data=features", f"data.path={one}", "backbone.centre=true", *TASKS, "guide=proto", "hydra.run.dir=run")
    ran("evaluate", "run", f"data.path={other}")
    learner = MetaLearner.load("run")
    bank = embed_bank(learner.backbone, features.load(str(other)), CPU)
    expected = evaluate(learner, bank.tasks("test", way=2, shot=1, query=2), EvalSettings(tasks=8))
    (folder,) = Path("run/evaluations").iterdir()
    assert results_of(folder)["nll"] == pytest.approx(expected.metrics["nll"], abs=1e-6)


# Folders of evaluations ------------------------------------------------------------------------------


def test_evaluations_of_other_files_have_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for place in ("one", "other"):
        (tmp_path / place / "c").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        names |= {folder_name([f"data.path={path}", "eval.tasks=4"]) for path in ("t.csv", "c/t.csv", "c_t.csv")}
    assert len(names) == 6 and all("/" not in name and name.startswith("data.path=") for name in names)
    assert folder_name(["guide.a=c/t"]) != folder_name(["guide.a=c_t"])


def test_the_same_settings_have_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    names = {folder_name([f"data.path={path}"]) for path in ("t.csv", "./t.csv", tmp_path / "t.csv")}
    monkeypatch.chdir(tmp_path / "inner")
    assert names == {folder_name(["data.path=../t.csv"])}
    assert folder_name(["eval.tasks=4", "task.query_counts=[1,2]"]) == "eval.tasks=4,task.query_counts=[1,2]"
    assert folder_name([]) == "again" and len(folder_name([f"data.path={'ü' * 120}.csv"]).encode()) < 255


# Groups of another file ------------------------------------------------------------------------------


def write_groups(path: str, names: range, gap: str = "") -> None:
    lines = [f"g{name},{(3 * name + 5 * i) % 7}.5,{name + i}" for name in names for i in range(4)]
    Path(path).write_text("\n".join(["who,a,y", *lines, gap]))


@pytest.fixture
def held_out() -> Path:
    """A run on 6 of the 10 groups of t.csv."""
    write_groups("t.csv", range(10))
    small = ("train.steps=1", "train.particles=1", "train.tasks_per_step=4", "train.validation_tasks=4", "eval.tasks=8")
    columns = ("data.group=who", "data.response=y", "data.predictors=[a]", "data.train=0.6")
    ran("run", "data=groups", "guide=partial_pooling", "data.path=t.csv", *columns, *small, "hydra.run.dir=run")
    return Path("run")


def groups_of(run: Path, *settings: str) -> tuple[int, str]:
    """The number of groups in an evaluation, and the output of the command."""
    said = ran("evaluate", str(run), *settings).out
    config = saved_config(run, settings)
    with redirect_stdout(None):
        return len(restore_run(run, config).tasks.source.splits["test"]), said  # type: ignore[attr-defined]


def test_all_groups_of_another_file_are_evaluated(held_out: Path) -> None:
    write_groups("new.csv", range(20, 27))
    count, said = groups_of(held_out, "data.path=new.csv")
    assert count == 7 and "note: new.csv is not the training file; all its groups are evaluated" in said


def test_a_moved_file_is_split_as_in_the_training(held_out: Path) -> None:
    assert groups_of(held_out)[0] == 4
    Path("t.csv").rename("moved.csv")
    count, said = groups_of(held_out, "data.path=moved.csv")
    assert count == 4 and "not the training file" not in said


def test_an_evaluation_may_leave_out_gaps(held_out: Path) -> None:
    """The message about gaps advises a setting that the command takes."""
    write_groups("gap.csv", range(20, 27), "g20,,3\nNA,1,2\n")
    message = call("evaluate", str(held_out), "data.path=gap.csv").error
    assert "data.missing=drop" in message
    count, said = groups_of(held_out, "data.path=gap.csv", "data.missing=drop")
    assert count == 7 and "left out 2 of 30 rows" in said


def test_the_support_of_a_group_is_at_most_that_of_the_task(held_out: Path) -> None:
    Path("single.csv").write_text("who,a,y\n" + "\n".join(f"h{name},{name}.5,{name}" for name in range(6)))
    said = ran("evaluate", str(held_out), "data.path=single.csv", "task.shot=3").out
    assert "at most 3 support points" in said
    assert "conditioned on" in said and "at most 3 points of the predicted group (task.shot=3)" in said
    nothing = ran("evaluate", str(held_out), "data.path=single.csv", "task.shot=0").out
    words = " ".join(nothing.split())
    assert "no point of the predicted group (task.shot=0): the mean of the prior is predicted (re.form = NA in" in words
    assert "so errors contain the differences between groups" in words
    one = ran("evaluate", str(held_out), "data.path=single.csv", "task.shot=1", "task.query=1").out
    assert "at most 1 support point, at most 1 query\n" in one and "at most 1 point of the predicted group" in one


def evaluated(run: Path, *settings: str) -> tuple[str | None, str]:
    """The kind of evaluated groups, from results.json and from the printed table."""
    said = ran("evaluate", str(run), *settings).out
    (line,) = (line for line in said.splitlines() if line.startswith("data  "))
    return results_of(run / "evaluations" / folder_name(settings))["evaluated_groups"], line.split(maxsplit=1)[1]


def test_training_groups_are_not_called_test_groups(held_out: Path) -> None:
    """A moved file, and a copy with other names of the groups, have the training groups; others have new groups."""
    write_groups("new.csv", range(20, 27))
    Path("moved.csv").write_text(Path("t.csv").read_text())
    assert results_of(held_out)["evaluated_groups"] == "new"
    for settings in ([], ["data.path=moved.csv"], ["data.path=new.csv"]):
        assert evaluated(held_out, *settings) == ("new", "groups, test groups")
    for settings in (["eval.split=train"], ["eval.split=val"], ["eval.split=train", "data.path=moved.csv"]):
        assert evaluated(held_out, *settings) == ("training", "groups, training groups")
    columns = ("data.group=who", "data.response=y", "data.predictors=[a]")
    said = ran("run", "data=groups", "guide=exact", "data.path=t.csv", *columns, "train.steps=0", "hydra.run.dir=all")
    assert "groups, training groups" in said.out and results_of(Path("all"))["evaluated_groups"] == "training"
    assert evaluated(Path("all"), "task.shot=2") == ("training", "groups, training groups")
    assert evaluated(Path("all"), "data.path=moved.csv") == ("training", "groups, training groups")
    assert evaluated(Path("all"), "data.path=new.csv") == ("new", "groups, test groups")
    ran("compare", "run", "all", "--out", "out")
    table = Path("out/table.md").read_text()
    assert "groups 0 support points, test groups" in table and "groups 0 support points, training groups" in table


# What is said about a poor result --------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [{"mean": 0.2, "ci95": 0.1}, None])
def test_an_evaluation_does_not_advise_to_train_longer(
    accuracy: dict[str, float] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    of_numbers = {"rmse": 2.0, "constant_rmse": {"group_means": 1.0}}
    results = {"skipped": 0, "way": 5, "base_classes": None, "accuracy": accuracy, "nll": 9.0, **of_numbers}
    note_poor_result(results)
    assert "train." in capsys.readouterr().out
    note_poor_result(results, OF_EVALUATION)
    said = capsys.readouterr().out
    assert "train." not in said and "the changed settings or other data do not suit this run" in said
