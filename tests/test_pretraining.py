"""Pretraining learns in both precisions, and its result depends on its own seed alone."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import generator_of
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.errors import Interrupted, UsageError
from pyro_metabayes.models.backbones.conv4 import Backbone
from pyro_metabayes.pretraining import PretrainSettings, PrototypeScore, extract, pretrain
from pyro_metabayes.pretraining.augmentation import augment
from pyro_metabayes.pretraining.training import Pretraining
from pyro_metabayes.seeding import seeded
from pyro_metabayes.training.progress import Progress, progress

SPECIFICATION = {"_target_": "models.backbones.conv4.Backbone", "num_filters": 8}
CPU = torch.device("cpu")


@pytest.fixture
def bank() -> Bank:
    """Four classes of 32 noisy images. Each class has another bright quarter."""
    images = 60 * torch.rand(4, 32, 1, 16, 16)
    for number in range(4):
        top, left = 8 * (number // 2), 8 * (number % 2)
        images[number, :, :, top : top + 8, left : left + 8] += 120
    ids = torch.arange(4)
    return Bank(
        inputs=images.flatten(0, 1).to(torch.uint8),
        class_sizes=torch.full((4,), 32),
        splits={"train": ids, "val": ids[:0], "test": ids[:0]},
        class_names=["a", "b", "c", "d"],
    )


def nearest_mean_accuracy(features: torch.Tensor) -> float:
    means = features.unflatten(0, (4, 32)).mean(1)
    return (features @ means.T).argmax(1).eq(torch.arange(4).repeat_interleave(32)).float().mean().item()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_features_of_a_pretrained_backbone_tell_the_classes_apart(bank: Bank, precision: str) -> None:
    settings = PretrainSettings(epochs=8, batch_size=16, learning_rate=0.05, shift=0, precision=precision)
    features = pretrain(Backbone((1, 16, 16), 8), SPECIFICATION, bank, settings, CPU).bank.inputs
    assert features.dtype == torch.float32
    assert nearest_mean_accuracy(features) > 0.95


def test_the_cache_gives_the_same_backbone_and_features(bank: Bank) -> None:
    settings = PretrainSettings(epochs=1, batch_size=16, flip=True)
    first, second = Backbone((1, 16, 16), 8), Backbone((1, 16, 16), 8)
    made = pretrain(first, SPECIFICATION, bank, settings, CPU).bank.inputs
    torch.rand(5)  # other noise before must not matter
    found = pretrain(second, SPECIFICATION, bank, settings, CPU).bank.inputs
    assert torch.equal(made, found)
    assert torch.equal(extract(second, bank.inputs, CPU), made)


def test_the_progress_gives_the_accuracy_of_chance(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyro_metabayes.pretraining.features.progress", partial(progress, interval=0.0))
    pretrain(Backbone((1, 16, 16), 8), SPECIFICATION, bank, PretrainSettings(epochs=2, batch_size=64), CPU)
    lines = capsys.readouterr().out.splitlines()
    assert "pretrain conv4: 1 of 4 batches" in lines
    (line,) = [line for line in lines if line.startswith("pretrain conv4: 3 of 4 batches")]
    assert re.fullmatch(r".* batches, epoch 1/2, accuracy \d+\.\d% \(chance 25\.0%\)", line)
    assert re.search(r"training accuracy \d+\.\d% among 4 classes \(chance 25\.0%\)", "\n".join(lines))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"^expected pretrain\.precision to be one of 32-true, bf16-mixed, got 'half'; choose one of these$",
    ):
        PretrainSettings(precision="half")


# ---------------------------------------------------------------- recipes

RECIPES = {
    "one cycle": {},
    "steps": {"schedule": "steps", "warmup": 1, "milestones": [2], "keep": "best"},
    "strong": {"jitter": 0.4, "mixup": 0.5, "label_smoothing": 0.1, "rotation": 1.0, "average": 0.9},
}


def settings_of(recipe: str, **changes: object) -> PretrainSettings:
    common = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "shift": 1, "flip": True}
    return PretrainSettings(**(common | RECIPES[recipe] | changes))  # type: ignore[arg-type]


@pytest.fixture
def few_shot(bank: Bank) -> Bank:
    """The same images as 4 training classes, and as 6 smaller validation classes."""
    sizes = torch.tensor([32] * 4 + [20] * 6)
    inputs = torch.cat([bank.inputs, bank.inputs[:120]])
    splits = {"train": torch.arange(4), "val": torch.arange(4, 10), "test": torch.arange(0)}
    return Bank(inputs, sizes, splits, [str(number) for number in range(10)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_pretraining_goes_on_as_if_it_had_not_been(
    recipe: str, few_shot: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, features and every line of the curve but its seconds."""
    settings = settings_of(recipe)
    whole = pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, few_shot, settings, CPU)
    state = torch.load(whole.path, weights_only=True)
    for file in whole.path.parent.iterdir():
        file.unlink()
    epoch = Pretraining.run_epoch

    def stopped(training: Pretraining, shown: Progress | None = None) -> None:
        if training.epoch == 2:
            raise KeyboardInterrupt
        epoch(training, shown)

    monkeypatch.setattr(Pretraining, "run_epoch", stopped)
    with pytest.raises(Interrupted, match="epochs 1 to 2 are kept: the same command continues"):
        pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, few_shot, settings, CPU)
    assert not whole.path.exists()
    monkeypatch.setattr(Pretraining, "run_epoch", epoch)
    torch.rand(3)
    again = pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, few_shot, settings, CPU)
    assert torch.equal(again.bank.inputs, whole.bank.inputs)
    weights = torch.load(again.path, weights_only=True)["weights"]
    assert all(torch.equal(weights[name], value) for name, value in state["weights"].items())
    figures = ("epoch", "loss", "accuracy", "val_accuracy")
    assert [[line[name] for name in figures] for line in again.curve] == [
        [line[name] for name in figures] for line in whole.curve
    ]
    assert {file.name for file in whole.path.parent.iterdir()} == {
        whole.path.name,
        whole.path.with_suffix(".features0.pt").name,
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns(recipe: str, bank: Bank) -> None:
    settings = settings_of(recipe, epochs=12, shift=0, flip=False, milestones=[8])
    found = pretrain(Backbone((1, 16, 16), 8), SPECIFICATION, bank, settings, CPU)
    assert nearest_mean_accuracy(found.bank.inputs) > 0.95


def test_the_rate_warms_up_and_falls_at_the_milestones(few_shot: Bank) -> None:
    settings = settings_of("steps", learning_rate=0.1)
    training = Pretraining(Backbone((1, 16, 16), 4), few_shot, settings, CPU, lambda backbone: None)
    rates = []
    for _ in range(3 * training.steps_per_epoch):
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.step()
        training.schedule.step()
    warm = [0.1 * (step + 1) / 8 for step in range(8)]
    assert rates == pytest.approx([*warm, *[0.1] * 8, *[0.01] * 8])


def test_the_best_epoch_is_kept(few_shot: Bank) -> None:
    """The first of the highest scores, whatever came after."""
    scores = iter([0.3, 0.5, 0.5])
    seen = []

    def score(backbone: torch.nn.Module) -> float:
        seen.append({name: value.clone() for name, value in backbone.state_dict().items()})
        return next(scores)

    training = Pretraining(Backbone((1, 16, 16), 4), few_shot, settings_of("steps"), CPU, score)
    for _ in range(3):
        training.run_epoch()
    kept = training.weights()
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())
    assert any(not torch.equal(kept[name], value) for name, value in seen[2].items())


def test_the_average_lags_behind_the_weights(few_shot: Bank) -> None:
    """w_avg <- decay w_avg + (1 - decay) w after every step, from the first weights on."""
    settings = settings_of("one cycle", average=0.5)
    training = Pretraining(Backbone((1, 16, 16), 4), few_shot, settings, CPU, lambda backbone: None)
    expected, name = None, "blocks.0.0.weight"
    for batch in torch.arange(64).split(16):
        training._step(batch)
        now = dict(training.network["backbone"].named_parameters())[name].detach().clone()
        expected = now if expected is None else 0.5 * expected + 0.5 * now
    torch.testing.assert_close(dict(training.backbone.named_parameters())[name].detach(), expected)


def test_class_means_are_scored_on_validation_classes(few_shot: Bank) -> None:
    """Right where a class is a point, and chance where inputs say nothing of it."""
    points = torch.eye(10).repeat_interleave(few_shot.class_sizes, 0)
    assert PrototypeScore(few_shot.with_inputs(points), CPU)(torch.nn.Identity()) == 1.0
    noise = few_shot.with_inputs(torch.randn(len(points), 16))
    assert PrototypeScore(noise, CPU)(torch.nn.Identity()) == pytest.approx(0.2, abs=0.05)
    # 20 images per class: 6 + 15 are too many.
    assert PrototypeScore(few_shot, CPU, shot=6)(torch.nn.Identity()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, "expected pretrain.schedule to be one of one_cycle, steps, got 'cosine'"),
        ({"keep": "first"}, "expected pretrain.keep to be one of last, best, got 'first'"),
        ({"jitter": 1.5}, ".* holdout_per_class >= 0, and pretrain.jitter, label_smoothing"),
        ({"rotation": -1.0}, "expected pretrain.mixup, rotation, warmup, views and holdout_per_class >= 0"),
    ],
)
def test_a_wrong_recipe_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        PretrainSettings(**changes)  # type: ignore[arg-type]


def test_rotation_needs_square_images(few_shot: Bank) -> None:
    wide = few_shot.with_inputs(few_shot.inputs[:, :, :, :8])
    with pytest.raises(UsageError, match=r"expected square images for pretrain\.rotation, got .*\(1, 16, 8\)"):
        Pretraining(Backbone((1, 16, 8), 4), wide, settings_of("strong"), CPU, lambda backbone: None)


# ---------------------------------------------------------------- views


def test_views_are_of_augmented_training_images_and_leave_the_weights_alone(few_shot: Bank) -> None:
    settings = settings_of("one cycle", epochs=1)
    plain = pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, few_shot, settings, CPU)
    backbone = Backbone((1, 16, 16), 4)
    found = pretrain(backbone, SPECIFICATION, few_shot, settings_of("one cycle", epochs=1, views=2), CPU)
    assert found.path == plain.path and torch.equal(found.bank.inputs, plain.bank.inputs)
    assert plain.bank.views is None and found.bank.views is not None
    assert found.bank.views.shape == (2, 128, backbone.num_features)
    assert not torch.equal(found.bank.views[0], found.bank.views[1])
    images = few_shot.inputs[few_shot.rows("train")]
    with seeded(settings.seed):
        expected = extract(backbone, images, CPU, lambda x: augment(x, settings))
    assert torch.equal(found.bank.views[0], expected)
    again = pretrain(backbone, SPECIFICATION, few_shot, settings_of("one cycle", epochs=1, views=2), CPU)
    assert again.bank.views is not None and torch.equal(again.bank.views, found.bank.views)


def test_training_tasks_draw_from_every_view_and_no_others_do(few_shot: Bank) -> None:
    """Inputs say which image and which view they are; classes and images are those of the plain bank."""
    rows = torch.arange(len(few_shot.labels)).unsqueeze(1).float()
    train = few_shot.rows("train")
    views = torch.stack([rows[train] + 1000, rows[train] + 2000])
    sampler = BankSampler(few_shot.with_inputs(rows, views))
    episodes = sampler.sampler("train", TaskShape(4, 2, 3))(generator_of(0, "train", 0)).tasks(slice(None))
    seen = torch.cat([episodes.support_x, episodes.query_x], 1).squeeze(-1)
    assert {int(value) // 1000 for value in seen.unique()} == {0, 1, 2}
    images = (seen % 1000).long()
    assert all(len(set(task.tolist())) == 20 for task in images), "no image twice in a task, in whatever view"
    assert episodes.classes is not None
    assert torch.equal(few_shot.labels[images[:, :8]], episodes.classes.gather(1, episodes.support_y))
    held_out = sampler.sampler("val", TaskShape(4, 2, 3))(generator_of(0, "val", 0)).tasks(slice(None))
    assert held_out.query_x.max() < 1000
