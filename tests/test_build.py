"""Mistakes in a specification, a checkpoint or an array give a one-line message before anything is built."""

from __future__ import annotations

import copy
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.build import build, check, target_of
from pyro_metabayes.specification.parts import CONTEXT, check_parts
from tests.pairs import FEATURES, WAY, Pair, random_tasks

SIB = {"_target_": "guides.sib.Guide"}


class Example:
    """A part with an argument of every type that is checked."""

    def __init__(
        self,
        num_classes: int,
        count: int = 1,
        rate: float = 0.1,
        name: str = "a",
        flag: bool = False,
        sizes: list[int] | None = None,
        size: int | str = 1,
    ) -> None:
        self.settings = (num_classes, count, rate, name, flag, sizes, size)


EXAMPLE = f"{__name__}.Example"
HERE = (f"{__name__.rpartition('.')[0]}.",)


def refuses(message: str) -> Any:
    """Context manager that expects a UsageError with this message."""
    return pytest.raises(UsageError, match=message)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_step": 3},
            r"^unknown key 'guide\.num_step'; did you mean 'guide\.num_steps'\? guides\.sib\.Guide takes: num_steps",
        ),
        ({"zzz": 3}, r"^unknown key 'guide\.zzz'; guides\.sib\.Guide takes: num_steps, step_size"),
        ({"model": "other"}, r"^unknown key 'guide\.model'; "),
        ({"num_classes": 7}, r"^unknown key 'guide\.num_classes'; "),
        ({"num_weights": 7}, r"^unknown key 'guide\.num_weights'; "),
        ({"num_steps": "3"}, r"^expected guide\.num_steps to be of type int, got '3' \(str\)$"),
        ({"num_steps": 3.0}, r"^expected guide\.num_steps to be of type int, got 3\.0 \(float\)$"),
        ({"num_steps": True}, r"^expected guide\.num_steps to be of type int, got True \(bool\)$"),
        ({"num_steps": None}, r"^expected guide\.num_steps to be of type int, got None \(NoneType\)$"),
        (
            {"step_size": "1e-3"},
            r"^expected guide\.step_size to be of type (finite )?float, got '1e-3' \(str\)$",
        ),
        (
            {"step_size": True},
            r"^expected guide\.step_size to be of type (finite )?float, got True \(bool\)$",
        ),
        ({"learn_step_size": 1}, r"^expected guide\.learn_step_size to be of type bool, got 1 \(int\)$"),
        ({"posterior": 1}, r"^expected guide\.posterior to be of type str, got 1 \(int\)$"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_built(settings: dict[str, Any], message: str) -> None:
    with refuses(message) as caught:
        check_parts({"guide": {**SIB, **settings}})
    assert "\n" not in str(caught.value)


def test_a_whole_number_is_a_float() -> None:
    check({**SIB, "step_size": 1, "inner_kl": 0}, "guide", CONTEXT)


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"sizes": [1, 2]}, True),
        ({"sizes": None}, True),
        ({"sizes": "12"}, False),
        ({"sizes": 3}, False),
        ({"size": "big"}, True),
        ({"size": 2}, True),
        ({"size": 2.5}, False),
    ],
)
def test_lists_and_choices_of_types(settings: dict[str, Any], fits: bool) -> None:
    specification = {"_target_": EXAMPLE, **settings}
    if fits:
        check(specification, "part", CONTEXT, HERE)
    else:
        with refuses(rf"^expected part\.{next(iter(settings))} to be of type"):
            check(specification, "part", CONTEXT, HERE)


def test_build_hands_over_settings_and_what_is_asked_for() -> None:
    built = build({"_target_": EXAMPLE, "rate": 2, "flag": True}, "part", HERE, num_classes=5, unasked=object())
    assert built.settings == (5, 1, 2, "a", True, None, 1)


def test_what_the_surroundings_lack_is_asked_for() -> None:
    with refuses(r"^expected a value for part\.num_classes, got none; set part\.num_classes=\.\.\.$"):
        build({"_target_": EXAMPLE}, "part", HERE)


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torch.load", "guidesx.sib.Guide", "", None, 3])
def test_only_names_under_the_prefixes_are_imported(target: Any) -> None:
    specification = {"_target_": target} if target is not None else {}
    with refuses(r"^expected guide\._target_ to be a dotted name under models\., guides\., pyro_metabayes\., got"):
        check(specification, "guide", CONTEXT)


def test_a_missing_file_and_a_missing_class_are_told_apart() -> None:
    with refuses(r"^expected guide\._target_ in an existing module, found no 'guides\.nosuch'; fix the name$"):
        check({"_target_": "guides.nosuch.Guide"}, "guide", CONTEXT)
    with refuses(r"^expected guide\._target_ to name an existing class, found no 'Guid' in guides\.sib; fix the name$"):
        check({"_target_": "guides.sib.Guid"}, "guide", CONTEXT)
    with refuses(r"^expected guide\._target_ in an existing module, found no 'guides\.sib\.Guide'"):
        check({"_target_": "guides.sib.Guide.posterior"}, "guide", CONTEXT)


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("import no_such_library", ModuleNotFoundError, "no_such_library"),
        ("import planted", ModuleNotFoundError, "planted"),  # the beginning of the name of the part
        ("import planted_part.inner", ModuleNotFoundError, "planted_part.inner"),
        ("from torch import no_such_name", ImportError, "no_such_name"),
        ("int('one')", ValueError, "one"),
        ("None + 1", TypeError, "NoneType"),
        ("None.start", AttributeError, "start"),
    ],
)
def test_an_error_inside_a_part_is_not_hidden(
    line: str, error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the absence of the named module itself is a wrong name."""
    (tmp_path / "planted_part.py").write_text(f"{line}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=words):
        check({"_target_": "planted_part.Guide"}, "guide", CONTEXT, ("planted_part.",))


@pytest.mark.parametrize(
    "name", ["models..heads", "guides...sib", "guides. .Guide", "guides.sib/x.Guide", "guides.\0.G"]
)
def test_a_malformed_name_is_a_missing_module(name: str) -> None:
    with refuses(r"^expected guide\._target_ in an existing module, found no '.*'; fix the name$"):
        check({"_target_": name}, "guide", CONTEXT)


def test_a_prefix_may_be_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_file.py").write_text("class Part:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert target_of({"_target_": "one_file.Part"}, "backbone", ("one_file.",)).__name__ == "Part"
    with pytest.raises(UsageError, match=r"expected backbone\._target_ to be a dotted name under one_fil\."):
        target_of({"_target_": "one_file.Part"}, "backbone", ("one_fil.",))


def test_own_prefixes_may_be_added() -> None:
    specification = Pair("proto", "flat").specification()
    specification["guide"] = {"_target_": f"{__name__}.OwnGuide"}
    with refuses("dotted name under"):
        MetaLearner.from_specification(specification)
    learner = MetaLearner.from_specification(specification, prefixes=("models.", "pyro_metabayes.", *HERE))
    assert type(learner.guide) is OwnGuide


from pyro_metabayes.guides.proto import Guide as Proto  # noqa: E402  # beside the class that needs it


class OwnGuide(Proto):
    """A guide of a user, outside the folders of this repository."""


# ---------------------------------------------------------------- save and load


def arrays(episodes: Any, task: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(getattr(episodes, name)[task].numpy() for name in ("support_x", "support_y", "query_x"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "pair",
    [
        Pair("sib", "mixture", "linear", settings={"posterior": "amortized", "learn_step_size": True}),
        Pair("sib", "flat", settings={"posterior": "delta"}),
        Pair("mc", "count_aware", objective="monte_carlo"),
        Pair("mean_field"),
        Pair("proto", "flat", "linear"),
    ],
    ids=str,
)
def test_a_saved_learner_predicts_the_same(pair: Pair, tmp_path: Path) -> None:
    learner = pair.learner()
    learner.save(tmp_path / "deep" / "learner.pt")
    loaded = MetaLearner.load(tmp_path / "deep" / "learner.pt")
    assert loaded.specification == learner.specification and loaded.frozen == learner.frozen
    predictions = []
    for one in (learner, loaded):
        torch.manual_seed(1)
        predictions.append(one.predict(*arrays(random_tasks()), num_samples=7))
    assert torch.equal(predictions[0].probabilities, predictions[1].probabilities)
    assert torch.equal(predictions[0].spread, predictions[1].spread)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["learner.pt"], "a temporary file is left"


def saved(tmp_path: Path, change: Callable[[dict[str, Any]], None] = lambda state: None) -> Path:
    """The path of a saved checkpoint, after a change."""
    state = {"learner": copy.deepcopy(Pair("mean_field").learner().portable())}
    change(state)
    torch.save(state, tmp_path / "learner.pt")
    return tmp_path / "learner.pt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state["learner"]["weights"].update({"guide.loc": torch.zeros(2, 2)}),
            r"got another: guide\.loc has shape \(2, 2\), not \(3, 5\); build the learner with the settings",
        ),
        (
            lambda state: state["learner"]["weights"].pop("guide.loc"),
            r"got another: the learner has the weight guide\.loc, the checkpoint has not; build",
        ),
        (
            lambda state: state["learner"]["weights"].update({"zz.extra": torch.zeros(2)}),
            r"got another: the checkpoint has the weight zz\.extra, the learner has not; build",
        ),
        (
            lambda state: state["learner"]["specification"]["guide"].update(_target_="os.system"),
            r"^expected guide\._target_ to be a dotted name under .*got 'os\.system'",
        ),
        (
            lambda state: state["learner"]["specification"]["model"].update(_target_="shutil.rmtree"),
            r"^expected model\._target_ to be a dotted name under",
        ),
        (
            lambda state: state["learner"]["specification"]["guide"].update(depth=3),
            r"^unknown key 'guide\.depth'",
        ),
        (lambda state: state.pop("learner"), r"^expected a checkpoint with a learner at .*with the entries \[\]"),
    ],
)
def test_another_checkpoint_is_one_clear_line(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    with refuses(message) as caught:
        MetaLearner.load(saved(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_the_best_learner_of_a_run_is_loaded(tmp_path: Path) -> None:
    last, best = (Pair("mean_field").learner(seed=seed).portable() for seed in (0, 1))
    torch.save({"learner": last, "best": best}, tmp_path / "checkpoint.pt")
    loaded = MetaLearner.load(tmp_path)
    assert torch.equal(loaded.state_dict()["guide.loc"], best["weights"]["guide.loc"])


class Dangerous:
    """An object whose pickle calls a function that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(write: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "learner.pt"
    state = {"learner": Pair("mean_field").learner().portable() | {"frozen": Dangerous(trace)}}
    if write == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps({"frozen": Dangerous(trace)}, protocol=2))
    with refuses(r"^expected a checkpoint of this package at .*got a file that cannot be loaded") as caught:
        MetaLearner.load(path)
    assert not trace.exists() and "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Dangerous(trace)))  # the planted code does run where it is let
    assert trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_clear_line(share: float, tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with refuses(r"^expected a checkpoint of this package at .*got a file that cannot be loaded: .") as caught:
        MetaLearner.load(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    with refuses(r"^expected a checkpoint at .*got no such file in this folder; pass the folder of a run"):
        MetaLearner.load(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    with refuses("got a file that cannot be loaded"):
        MetaLearner.load(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a", "b")
    with refuses("got a file that cannot be loaded"):
        MetaLearner.load(tmp_path / "zip.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with refuses("expected a checkpoint"):
        MetaLearner.load(tmp_path / "list.pt")


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refuses(r"^expected to write .*learner\.pt, got: "):
        Pair("mean_field").learner().save(tmp_path / "file" / "learner.pt")


# ---------------------------------------------------------------- predict


@pytest.fixture(scope="module")
def learner() -> MetaLearner:
    torch.manual_seed(0)
    return Pair("proto", "flat").learner()


def test_predict_gives_probabilities(learner: MetaLearner) -> None:
    episodes = random_tasks()
    prediction = learner.predict(*arrays(episodes))
    assert prediction.probabilities.shape == prediction.spread.shape == (episodes.query_y.shape[1], WAY)
    torch.testing.assert_close(prediction.probabilities.sum(-1), torch.ones(episodes.query_y.shape[1]))
    assert prediction.spread.abs().max() == 0, "a point mass has no spread"


@pytest.mark.parametrize("form", [torch.as_tensor, list, np.asfortranarray], ids=["tensor", "list", "fortran"])
def test_predict_takes_arrays_tensors_and_lists(learner: MetaLearner, form: Callable[[Any], Any]) -> None:
    given = arrays(random_tasks())
    expected = learner.predict(*given).probabilities
    torch.testing.assert_close(learner.predict(*(form(value) for value in given)).probabilities, expected)


def test_a_posterior_with_a_spread_shows_it() -> None:
    prediction = Pair("mc", "conditional").learner().predict(*arrays(random_tasks()), num_samples=20)
    assert prediction.spread.min() > 0
    assert Pair("mc", "conditional").learner().predict(*arrays(random_tasks()), num_samples=1).spread.max() == 0


def of(name: str, value: Any) -> dict[str, Any]:
    support_x, support_y, query_x = arrays(random_tasks())
    return {"support_x": support_x, "support_y": support_y, "query_x": query_x, name: value}


NAN = np.full((4, FEATURES), 1.0, dtype=np.float32)
NAN[1, 2] = np.nan
NAN[3] = np.inf
POINTS = 2 * WAY


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("support_x", np.zeros((POINTS, 4)), r"^expected support_x of shape \[N, 5\].*got \[6, 4\]; reshape.*$"),
        ("query_x", np.zeros((2, 3, FEATURES)), r"^expected query_x of shape \[N, 5\].*got \[2, 3, 5\]; .*$"),
        ("query_x", np.zeros(FEATURES), r"^expected query_x of shape \[N, 5\].*got \[5\]; reshape.*$"),
        ("query_x", np.zeros((0, FEATURES)), r"^expected query_x of shape \[N, 5\].*got \[0, 5\]; reshape.*$"),
        ("query_x", NAN, r"^expected finite values in query_x, got NaN or infinity in 2 of 4 rows; fix.*$"),
        ("query_x", [["a"] * FEATURES], r"^expected numbers in query_x"),
        ("query_x", [[1.0], [1.0, 2.0]], r"^expected an array of numbers in query_x"),
        (
            "support_y",
            np.zeros(POINTS),
            r"^expected 6 integers >= 0 in support_y, got torch\.float64 of shape \(6,\)",
        ),
        ("support_y", np.zeros(5, dtype=int), r"^expected 6 integers >= 0 in support_y.*shape \(5,\)"),
        (
            "support_y",
            np.zeros((POINTS, 1), dtype=int),
            r"^expected 6 integers >= 0 in support_y.*shape \(6, 1\)",
        ),
        ("support_y", np.full(POINTS, -1), r"^expected integers >= 0 in support_y, got -1"),
        ("support_y", ["cat"] * POINTS, r"^expected numbers in support_y"),
        ("num_samples", 0, r"^expected num_samples >= 1, got 0; "),
    ],
)
def test_wrong_arrays_are_named(learner: MetaLearner, name: str, value: Any, message: str) -> None:
    with refuses(message):
        learner.predict(**of(name, value))


def test_a_guide_for_other_tasks_says_so() -> None:
    with refuses(r"^expected tasks of 3 classes, which this guide was trained for, got 2; train with task\.way=2"):
        labels = np.zeros(POINTS, dtype=int)
        labels[0] = 1
        Pair("mean_field").learner().predict(**of("support_y", labels))


def test_a_whole_number_stands_for_a_float() -> None:
    """prior.loc=0 on the command line; an integer tensor could not be learned."""
    prior = build({"_target_": "models.priors.Gaussian", "loc": 0, "scale": 1}, "prior", num_weights=3)
    assert prior.loc.dtype == torch.get_default_dtype() and prior.loc.requires_grad
