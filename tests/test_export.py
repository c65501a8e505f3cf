"""Exported programs: do they predict as the learner does, without the package, and say what cannot be exported?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.deployment import onnx_file
from pyro_metabayes.deployment.fixed_noise import RecordedNoise, RepeatedNoise
from pyro_metabayes.deployment.program import predictions
from pyro_metabayes.seeding import drawing, draws_by, noise_of
from tests.pairs import Pair
from tests.processes import Forks

WITHOUT_THE_PACKAGE = """
import sys, torch, warnings
warnings.simplefilter("ignore")
program = torch.export.load(sys.argv[1]).module()
tasks = torch.load(sys.argv[2])
torch.save([program(*task) for task in tasks], sys.argv[3])
assert not {"pyro_metabayes", "pyro"} & set(sys.modules)
"""
SIZES = ((2, 9), (6, 1), (13, 30))  # support and query points


def classes(num_features: int, way: int, support: int, query: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(support)
    x = torch.randn(support + query, num_features, generator=generator)
    return x[:support], torch.arange(support) % way, x[support:]


def run_elsewhere(forks: Forks, path: Path, tasks: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The outputs of a program in a process that imports torch alone."""
    folder = path.parent
    torch.save(tasks, folder / "tasks.pt")
    names = [str(path), str(folder / "tasks.pt"), str(folder / "outputs.pt")]
    forks.output_of(WITHOUT_THE_PACKAGE, *names, folder=folder)
    return torch.load(folder / "outputs.pt")


# The first is in docs/export.md, whose blocks are run.
@pytest.mark.parametrize("name", [pytest.param("inductive", marks=pytest.mark.slow), "savi"])
def test_a_program_predicts_as_the_learner_does_without_the_package(name: str, forks: Forks, tmp_path: Path) -> None:
    """Ways of 2, more and fewer features than points, one query; sampled posteriors with the same draws."""
    if name == "inductive":
        learner = MetaLearner.pretrained(name)
    else:
        learner = Pair("savi", "conditional", "cosine", "elbo").learner()
        learner.backbone.normalise = True
    dimension = 8 if name == "inductive" else 5
    settings: dict[str, Any] = {"num_samples": 7, "seed": 3}
    learner.export(tmp_path / "program.pt2", num_classes=2, input_shape=[dimension], **settings)
    tasks = [classes(dimension, 2, *sizes) for sizes in SIZES]
    for task, outputs in zip(tasks, run_elsewhere(forks, tmp_path / "program.pt2", tasks), strict=True):
        for value, expected in zip(outputs, learner.predict(*task, **settings), strict=True):
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
            assert not value.requires_grad


def test_a_regression(tmp_path: Path) -> None:
    pair = Pair("exact", model="linear_regression")
    learner = pair.learner()
    program = learner.export(tmp_path / "program.pt2").module()
    x, y = torch.randn(30, pair.features), torch.randn(30, pair.targets)
    for support, query in ((1, 2), (17, 1)):
        task = x[:support], y[:support], x[-query:]
        for value, expected in zip(program(*task), learner.predict(*task), strict=True):
            torch.testing.assert_close(value, expected.detach(), atol=1e-6, rtol=1e-5)


def proto() -> MetaLearner:
    return MetaLearner.build("identity", "proto", prior="flat", objective="elbo", input_shape=[5], num_classes=3)


def test_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    learner = proto()
    learner.export(tmp_path / "program.onnx", num_classes=3)
    session = runtime.InferenceSession(tmp_path / "program.onnx")
    for sizes in ((3, 1), (11, 7)):
        task = classes(5, 3, *sizes)
        values = [value.numpy() for value in task]
        outputs = session.run(
            ["probabilities", "spread"], dict(zip(["support_x", "support_y", "query_x"], values, strict=True))
        )
        for value, expected in zip(outputs, learner.predict(*task), strict=True):
            np.testing.assert_allclose(value, expected.detach(), atol=1e-6)


def test_labels_that_are_no_classes_give_nan() -> None:
    x, y, query_x = classes(5, 3, 6, 2)
    for learner in (proto(), PRETRAINED):
        for labels in (y + 1, y - 1, y.clamp(max=1), torch.cat((y[:-1], torch.tensor([5])))):
            assert all(value.isnan().all() for value in predictions(learner, (x, labels, query_x), 3, 1))
        assert predictions(learner, (x, y, query_x), 3, 1)[0].isfinite().all()


def test_noise_is_recorded_and_repeated() -> None:
    def numbers() -> list[Tensor]:
        with drawing():
            return [
                torch.randn(3),
                torch.zeros(2).normal_() + 0,
                torch.distributions.Gamma(2.0, torch.ones(4)).sample(),
            ]

    with noise_of(3):
        expected = numbers()
    with draws_by(RecordedNoise(3)) as noise:
        recorded = numbers()
    before = torch.get_rng_state()
    with draws_by(RepeatedNoise(noise.draws, noise.functions)):
        repeated = numbers()
    assert torch.equal(torch.get_rng_state(), before)
    assert len(noise.draws) == 3
    for first, second, third in zip(expected, recorded, repeated, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


PRETRAINED = MetaLearner.pretrained("inductive")
LAPLACE = Pair("laplace", head="linear", settings={"num_steps": 1, "step_size": 0.1})
DRAWS_LABELS = Pair("mean_field", model="robust_regression")


@pytest.mark.parametrize(
    ("learner", "settings", "message"),
    [
        (
            PRETRAINED,
            {"path": "a.pt", "num_classes": 3},
            r"expected a file NAME.pt2 \(torch.export\) or NAME.onnx, got",
        ),
        (PRETRAINED, {"input_shape": [8]}, "expected num_classes to be an integer >= 2, got None; pass"),
        (PRETRAINED, {"num_classes": 1, "input_shape": [8]}, "to be an integer >= 2, got 1"),
        (PRETRAINED, {"num_classes": 2.0, "input_shape": [8]}, "to be an integer >= 2, got 2.0"),
        (PRETRAINED, {"num_classes": 3}, r"input_shape .*, \[any\], got none; .* input_shape=\[256\]$"),
        (PRETRAINED, {"num_classes": 3, "input_shape": [8, 8]}, r"\[any\], got \[8, 8\]"),
        (PRETRAINED, {"num_classes": 3, "input_shape": [0]}, r"\[any\], got \[0\]"),
        (PRETRAINED, {"num_classes": 3, "input_shape": 8}, "expected input_shape to be a list of sizes, such as"),
        (PRETRAINED, {"num_classes": 3, "num_samples": 0}, "expected num_samples >= 1"),
        (PRETRAINED, {"num_classes": 3, "seed": -0.5}, "expected seed to be an integer"),
        (
            proto(),
            {"num_classes": 3, "input_shape": [6]},
            r"input_shape that .*, \[5\], got \[6\]; .* input_shape=\[5\]$",
        ),
        (Pair("mean_field").learner(), {"num_classes": 4}, "expected tasks of 3 classes, which this guide was trained"),
        (Pair("exact", model="linear_regression").learner(), {"num_classes": 3}, "expected no num_classes for a regr"),
        (LAPLACE.learner(), {"num_classes": 3}, "can trace .* guide=laplace, .*: Constraints violated .support.; use"),
        (DRAWS_LABELS.learner(), {}, "draws equally many random numbers for any number of points"),
        (
            Pair("exact", model="linear_regression").learner(),
            {"path": "a.onnx"},
            "operators of ONNX, got one that needs aten",
        ),
    ],
)
def test_mistakes_have_one_line_and_leave_no_file(
    learner: MetaLearner, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / settings.pop("path", "a.pt2")
    if file.suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    with pytest.raises(UsageError, match=message) as found:
        learner.export(file, **settings)
    assert "\n" not in str(found.value) and len(str(found.value)) < 450
    assert not list(tmp_path.iterdir())


def test_without_the_packages_of_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="expected the packages of the extra `onnx`, not found: onnx, onnxscript"):
        onnx_file.check_packages()
