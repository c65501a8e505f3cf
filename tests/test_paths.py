"""A path is used as written, whatever characters it has, and is found again from any folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources import features as feature_files
from pyro_metabayes.data.sources import groups
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.cli.overrides import LITERALS, PATHS, composable, unquoted
from pyro_metabayes.experiments.runs.finished_runs import find_runs
from pyro_metabayes.storage.cache import cache_folder, data_file
from tests.commands import SMALL, call, ran, results_of, write_features

UGLY = [
    "epoch=3.npz", "a b.npz", "a,b.npz", "grün 数.npz", "x #1.npz", "(1).npz", "it's.npz", 'say "hi".npz', "[x].npz",
    "{y: 1}.npz", "a:b.npz", "back\\slash.npz", "$HOME.npz", "100%.npz", "null", "true", "1e3", "~x.npz", "*?!&;|.npz",
    "'whole'", "choice(a,b)", "end\\", "\\'", "",
]  # fmt: skip
NAMES = st.sampled_from(UGLY) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)

pytestmark = pytest.mark.usefixtures("empty_folder")


def values_of(argument: str) -> list[object]:
    """The values that Hydra parses from an argument: one value, or those of a sweep."""
    override = OverridesParser.create().parse_override(argument)
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(LITERALS), NAMES)
@example("data.path", "a'b\\")
def test_a_text_reaches_hydra_as_it_is(key: str, text: str) -> None:
    """A text within quotes is the text without them, as it always was."""
    (argument,) = composable([f"{key}={text}"])
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if quoted or (key in PATHS and text.startswith("~")):
        return
    assert values_of(argument) == [text]
    assert unquoted(argument) == f"{key}={text}"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(NAMES.filter(lambda name: name and "," not in name and name[0] not in "'\""), min_size=2, max_size=3))
def test_in_a_sweep_commas_separate_texts(names: list[str]) -> None:
    argument = composable(["-m", f"data.path={','.join(names)}"])[1]
    override = OverridesParser.create().parse_override(argument)
    texts = [unquoted(f"data.path={value}") for value in override.sweep_string_iterator()]
    assert texts == [f"data.path={name}" for name in names]


def test_a_sweep_takes_functions_and_files_with_commas() -> None:
    assert composable(["-m", "data.path=choice(a,b)"])[1] == "++data.path=choice(a,b)"
    Path("a,b=3.npz").touch()
    assert values_of(composable(["-m", "data.path=a,b=3.npz"])[1]) == ["a,b=3.npz"]
    assert values_of(composable(["-m", "hydra.sweep.dir=a,b"])[1]) == ["a,b"]


def test_quoted_texts_and_interpolations_stay() -> None:
    assert composable(["data.path='a b'", 'data.path="a=b"']) == ["++data.path='a b'", '++data.path="a=b"']
    assert config_of(["data=features", "data.path=${seed}.npz", "seed=3"]).data["path"] == "3.npz"


@pytest.mark.parametrize("key", PATHS)
def test_a_tilde_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for text, expected in {"~/x": "/home/me/x", "~": "/home/me", "a~/x": "a~/x", "~no-one/x": "~no-one/x"}.items():
        (argument,) = composable([f"{key}={text}"])
        assert values_of(argument) == [expected]


@pytest.mark.parametrize("path", ["e.npz", "./a/../e.npz", "~/e.npz", "/tmp/e.npz"])
def test_a_run_records_an_absolute_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for data in ("features", "image_folder", "groups data.group=g data.response=y"):
        absolute = (
            config_of([f"data={data.split()[0]}", *data.split()[1:], f"data.path={path}"])
            .with_absolute_path()
            .data["path"]
        )
        assert Path(absolute) == Path(path.replace("~", "/home/me")).absolute()
    assert "path" not in config_of(["data=glyphs"]).with_absolute_path().data


def test_folders_of_the_environment_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METABAYES_CACHE", "~/cache")
    monkeypatch.setenv("METABAYES_DATA", "~/data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.csv").write_text("a")
    (tmp_path / "data/SHA256SUMS").write_text(f"{'0' * 64}  x.csv\n")
    assert cache_folder() == tmp_path / "cache" and not Path("~").exists()
    with pytest.raises(UsageError, match="expected the SHA-256 checksum 0000"):  # the list is found, too
        data_file("x.csv", "")


@pytest.mark.parametrize("name", ["E.NPZ", "e.Npz", "E.SAFETENSORS"])
def test_suffixes_in_capitals(name: str, features: Path) -> None:
    if name.lower().endswith("npz"):
        shutil.copy(features, name)
    else:
        from safetensors.numpy import save_file

        save_file(dict(np.load(features)), name)
    assert feature_files.load(name).fingerprint() == feature_files.load(str(features)).fingerprint()


def test_a_learner_is_saved_and_loaded_at_home(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    learner = MetaLearner.load(finished)
    learner.save("~/learner.pt")
    assert (tmp_path / "learner.pt").is_file()
    again = MetaLearner.load("~/learner.pt").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in learner.state_dict().items())
    shutil.copytree(finished, tmp_path / "runs/one")
    assert [run.folder for run in find_runs(["~/runs"])] == [tmp_path / "runs/one"]
    ran("predictive", "run=~/runs/one", "tasks=4", "samples=3")
    assert (tmp_path / "runs/one/predictive").is_dir()
    ran("evaluate", "~/runs/one", "eval.tasks=4")
    assert (tmp_path / "runs/one/evaluations/eval.tasks=4").is_dir()
    ran("compare", "~/runs", "--out", "~/out")
    assert (tmp_path / "out/table.md").is_file() and not Path("~").exists()


@pytest.mark.parametrize("name", ["epoch=3, (grün) [1] #2.NPZ", 'it\'s {a: "b"} \\.npz'])
def test_a_run_lives_with_ugly_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on a relative path, then resumed, evaluated and verified from another folder."""
    write_features(Path("plain.npz"))
    Path("plain.npz").rename(name)
    run = tmp_path / f"run of {name}"
    ran("run", "data=features", f"data.path={name}", *SMALL, "guide=proto", f"hydra.run.dir={run.name}")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert results_of(run)["config"]["data"]["path"] == str(tmp_path / name)
    ran("run", f"resume={run}", "train.steps=3", f"data.path={tmp_path / name}")
    assert results_of(run)["steps"] == 3
    ran("verify", str(run))
    ran("calibration", f"run={run}", "tasks=4")
    (tmp_path / name).rename(f"moved {name}")
    ran("evaluate", str(run), f"data.path=moved {name}", "eval.tasks=4")
    assert "expected a file of features, found none at" in call("evaluate", str(run), "eval.tasks=4").error


def test_a_sweep_over_ugly_names() -> None:
    for name in ("epoch=1.npz", "b (2).npz"):
        write_features(Path("plain.npz"))
        Path("plain.npz").rename(name)
    arguments = ("data=features", "data.path=epoch=1.npz,b (2).npz", *SMALL, "guide=proto", "hydra.sweep.dir=a, b")
    ran("run", "-m", *arguments)
    paths = [results_of(path.parent)["config"]["data"]["path"] for path in Path("a, b").glob("*/results.json")]
    assert sorted(Path(path).name for path in paths) == ["b (2).npz", "epoch=1.npz"]


def test_columns_of_a_table_have_any_name() -> None:
    lines = [f"{group},{value}.5" for group in "abcd" for value in range(3)]
    Path("t.csv").write_text("\n".join(["School #1,Score (%)", *lines]))
    config = config_of(["data=groups", "data.path=t.csv", "data.group=School #1", "data.response=Score (%)"])
    settings_of_data = {name: value for name, value in config.source().items() if name != "_target_"}
    assert len(groups.load(**settings_of_data).sizes) == 4


def test_the_line_to_go_on_with_is_one_for_a_shell(finished: Path) -> None:
    shutil.copytree(finished, "a (b) c")
    Path("a (b) c/results.json").unlink()
    error = call("verify", "a (b) c").error
    assert error.endswith("finish it with: python -m experiments.run 'resume=a (b) c'")
