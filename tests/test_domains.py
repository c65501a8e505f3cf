"""Domains share their classes alone, and guides adapt to a domain without labels."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pyro_metabayes import UsageError
from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.domains import DomainBank, DomainSampler
from pyro_metabayes.data.perturbed import with_shift
from pyro_metabayes.data.sources import digit_domains, pacs
from pyro_metabayes.data.sources.digit_domains import DOMAINS, OF_MNIST, Digits
from pyro_metabayes.data.stream import generator_of
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.diagnostics.information import query_sets
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.domain_adaptation import student_half_width, write
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.inference.rotation import every_turn
from pyro_metabayes.models.backbones.conv4 import Backbone
from pyro_metabayes.pretraining import PretrainSettings, PrototypeScore
from pyro_metabayes.pretraining.extraction import extract, extract_rotations
from pyro_metabayes.pretraining.training import Pretraining
from pyro_metabayes.storage import checkpoint
from tests.commands import call
from tests.pairs import Pair, random_tasks, with_turns
from tests.published import write_digits, write_pacs

COUNTS = {"train": 100, "val": 80, "test": 90}
SMALL = {"size": 8, "train_images": 100, "val_images": 80, "test_images": 90}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_digits(folder / "digits")
    return folder


@pytest.fixture
def maker(digits: Path) -> Digits:
    names = {**digit_domains.FILES, "photographs": digit_domains.PHOTOGRAPHS}
    return Digits({name: digits / "digits" / file for name, file in names.items()}, 8, COUNTS, seed=0)


@pytest.fixture
def bank(digits: Path, monkeypatch: pytest.MonkeyPatch) -> DomainBank:
    monkeypatch.setenv("METABAYES_DATA", str(digits))
    return digit_domains.load(target="usps", **SMALL)


def small_bank(num_features: int = 6, train_shift: float = 0.0) -> DomainBank:
    """Source domains of 12 and 24 points, a target of 12, and three shared classes. Features are row numbers."""
    sizes = torch.tensor([4] * 3 + [8] * 3 + [2] * 6 + [4] * 3)
    inputs = torch.arange(float(sizes.sum())).unsqueeze(1).expand(-1, num_features)
    rotations = torch.stack([inputs + 1000 * quarters for quarters in (1, 2, 3)], dim=1)
    splits = {"train": torch.arange(6), "val": torch.arange(6, 12), "test": torch.arange(12, 15)}
    return DomainBank(
        inputs, sizes, splits, list("abcdefghijklmno"), num_shared=3, auxiliary={"turned": rotations},
        train_shift=train_shift,
    )  # fmt: skip


# ---------------------------------------------------------------- digits


def test_no_digit_is_in_two_parts_or_in_two_domains_of_mnist(maker: Digits) -> None:
    """Test images of MNIST stand in another file; all other parts are apart by the numbers of their drawings."""

    def numbers(domain: str, split: str) -> set[tuple[int, ...]]:
        drawings, labels = maker.drawings(domain, split)
        assert len(drawings) == COUNTS[split] == len(labels)
        found = {tuple(drawing[0, :3].tolist()) for drawing in drawings}
        assert len(found) == COUNTS[split]
        return found

    of_mnist = [(name, split) for name in OF_MNIST for split in ("train", "val")]
    for parts in (of_mnist, [("usps", "train"), ("usps", "val")], [("uci", split) for split in SPLITS]):
        for one, other in combinations(parts, 2):
            assert not numbers(*one) & numbers(*other), f"{one} and {other}"
    for one, other in combinations(OF_MNIST, 2):
        assert not numbers(one, "test") & numbers(other, "test")


def test_photographs_of_the_test_are_behind_no_other_images(maker: Digits) -> None:
    shades = [{int(image[0, 0, 0]) for image in maker.photographs(split)} for split in SPLITS]
    assert shades[0] == shades[1] and len(shades[0]) == 3 and len(shades[2]) == 1 and not shades[0] & shades[2]


def test_a_domain_is_what_it_says(maker: Digits) -> None:
    noise = np.random.default_rng(0)
    drawing = np.zeros((8, 8), np.uint8)
    drawing[1:3, 3] = 200  # above the middle
    render = {name: maker.renderer(name, "test", noise)(drawing) for name in OF_MNIST}
    assert (render["mnist"] == drawing).all() and (render["inverted"] == 255 - drawing).all()
    shade = int(maker.photographs("test")[0][0, 0, 0])
    assert render["blended"].shape == (8, 8, 3)
    assert (render["blended"] == abs(shade - drawing.astype(int))[..., None]).all()
    rows, columns = np.nonzero(render["tilted"] > 50)
    assert rows.mean() < 3.5 and columns.mean() < 3.0, "turned against the clock, what is above moves left"
    uci, _ = maker.drawings("uci", "test")
    assert uci.max() > 180, "from 0 to 16 to 0 to 255"


def test_the_target_is_left_out_and_classes_are_shared(bank: Bank) -> None:
    sources = [name for name in DOMAINS if name != "usps"]
    assert [len(bank.splits[split]) for split in SPLITS] == [50, 50, 10] and bank.num_shared == 10
    assert bank.input_shape == (3, 8, 8) and bank.inputs.dtype == torch.uint8
    names = [bank.class_names[number] for number in bank.splits["train"][::10]]
    assert names == [f"train/{name}/0" for name in sources]
    assert {bank.class_names[number].split("/")[1] for number in bank.splits["test"]} == {"usps"}
    for split in SPLITS:
        assert bank.answers(split).tolist() == [*range(10)] * (len(bank.splits[split]) // 10)
        assert len(bank.rows(split)) == COUNTS[split] * len(bank.splits[split]) // 10


def test_a_source_may_be_left_out_for_validation(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_DATA", str(digits))
    bank = digit_domains.load(target="usps", validation="tilted", **SMALL)
    names = {split: {bank.class_names[number].split("/")[1] for number in bank.splits[split]} for split in SPLITS}
    assert names == {"train": {"mnist", "uci", "inverted", "blended"}, "val": {"tilted"}, "test": {"usps"}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target": "svhn"},
            "expected data.target to be one of mnist, usps, uci, tilted, inverted, blended, got 'svhn'",
        ),
        ({"validation": "usps"}, "expected data.validation to differ from data.target, got 'usps' for both"),
        ({"validation": "svhn"}, "expected data.validation to be one of mnist"),
        ({"train_shift": -1.0}, "expected data.train_shift to be finite and >= 0, got -1.0"),
        ({"val_images": 0}, "expected data.size, train_images, val_images and test_images >= 1"),
        ({"val_images": 2}, "expected val images of every class in domain 'mnist', got none of"),
    ],
)
def test_digits_that_cannot_be_are_refused(
    settings: dict[str, object], message: str, digits: Path, monkeypatch
) -> None:
    monkeypatch.setenv("METABAYES_DATA", str(digits))
    with pytest.raises(UsageError, match=message):
        digit_domains.load(**SMALL | settings)


def test_missing_and_damaged_digits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"expected a file at .*mnist_28.npz, not found; put the digits there"):
        digit_domains.load()
    write_digits(tmp_path / "digits")
    for name, message in (("usps_16.npz", "expected arrays of digits in"), ("bsds500_train_jpg.zip", "a zip archive")):
        whole = (tmp_path / "digits" / name).read_bytes()
        (tmp_path / "digits" / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UsageError, match=rf"{message}.*{name}"):
            digit_domains.load(target="mnist", **SMALL)
        (tmp_path / "digits" / name).write_bytes(whole)


# ---------------------------------------------------------------- minibatches


def test_a_task_is_a_minibatch_of_one_domain() -> None:
    bank = small_bank()
    episodes = DomainSampler(bank).sampler("train", TaskShape(3, 0, 4))(generator_of(0, "train", 0))
    assert episodes.support_x.shape == (BLOCK, 0, 6) and episodes.query_x.shape == (BLOCK, 12, 6)
    rows = episodes.query_x[..., 0].long()
    assert (rows.sort(1).values.diff(dim=1) > 0).all(), "an image stands twice in a minibatch"
    domain = (rows >= 12).long()
    assert (domain == domain[:, :1]).all() and set(domain[:, 0].tolist()) == {0, 1}
    torch.testing.assert_close(episodes.query_y, torch.where(rows < 12, rows // 4, (rows - 12) // 8))
    assert episodes.classes is not None
    torch.testing.assert_close(episodes.classes, 3 * domain[:, :1] + torch.arange(3))
    counts = functional.one_hot(episodes.query_y[domain[:, 0] == 1], 3).sum(1)
    assert counts.min() < 4 < counts.max(), "whatever their class"
    turned = episodes.auxiliary["turned"]
    torch.testing.assert_close(turned[..., 0], rows.unsqueeze(-1) + torch.tensor([1000.0, 2000.0, 3000.0]))


def test_training_tasks_alone_are_shifted() -> None:
    """The tasks of a bank with train_shift are those of one without, each moved as a whole, in training only."""
    shape = TaskShape(3, 0, 2)
    for split in SPLITS:
        plain = DomainSampler(small_bank()).sampler(split, shape)
        shift = DomainSampler(small_bank(train_shift=2.0)).sampler(split, shape)
        before, after = (draw(generator_of(0, split, 0)).tasks(slice(None)) for draw in (plain, shift))
        expected = with_shift(plain, 2.0)(generator_of(0, split, 0)) if split == "train" else before
        for name in ("query_x", "query_y"):
            assert torch.equal(getattr(after, name), getattr(expected, name)), split
        assert torch.equal(after.auxiliary["turned"], expected.auxiliary["turned"])
        assert torch.equal(after.query_x, before.query_x) == (split != "train")


def test_images_are_turned_where_the_bank_has_no_features_of_them(bank: DomainBank) -> None:
    episodes = DomainSampler(bank).sampler("test", TaskShape(10, 0, 2))(generator_of(0, "test", 0))
    for quarters in (1, 2, 3):
        expected = episodes.query_x.rot90(quarters, (-2, -1))
        assert torch.equal(episodes.auxiliary["turned"][:, :, quarters - 1], expected)


@pytest.mark.parametrize(
    ("split", "shape", "message"),
    [
        (
            "train",
            TaskShape(3, 0, 5),
            r"query <= 12, the number of images in the smallest domain of the train split, got 15; lower task",
        ),
        ("train", TaskShape(3, 1, 2), r"expected task.shot=0, task.query >= 1 and task.way=3"),
        ("train", TaskShape(5, 0, 2), r"and task.way=3 "),
        (
            "train",
            TaskShape(3, 0, 2, query_concentration=1.0),
            "expected no task.query_counts and no task.query_concentration",
        ),
        ("dev", TaskShape(3, 0, 2), "expected a split among train, val, test, got 'dev'"),
    ],
)
def test_what_is_no_minibatch_is_refused(split: str, shape: TaskShape, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DomainSampler(small_bank()).sampler(split, shape)


def test_queries_are_parted_with_their_turned_views() -> None:
    episodes = DomainSampler(small_bank()).sampler("train", TaskShape(3, 0, 2))(generator_of(0, "train", 0))
    for start, part in enumerate(query_sets(episodes)):
        assert torch.equal(part.query_y, episodes.query_y[:, start::2])
        assert torch.equal(part.auxiliary["turned"][..., 0] % 1000, part.query_x[..., :1].expand(-1, -1, 3))


@pytest.mark.parametrize(
    ("settings", "shift"),
    [(("data=digit_domains", "guide=sib_rotation"), 1.5), (("data=pacs", "guide=source_only"), 0.0), ((), 0.0)],
    ids=str,
)
def test_a_shift_that_an_earlier_version_saved_is_still_understood(
    settings: tuple[str, ...], shift: float, tmp_path: Path
) -> None:
    config = config_of(settings)
    saved = asdict(config)
    saved["data"].pop("train_shift", None)
    saved["task"]["train_shift"] = shift
    checkpoint.save(tmp_path / "checkpoint.pt", {"config": saved})
    assert saved_config(tmp_path, []) == config


def test_where_the_shift_is_now_is_said(empty_folder: None) -> None:
    for setting in ("task.train_shift=1", "+task.train_shift=1"):
        error = call("run", "data=digit_domains", setting).error
        assert "unknown key 'task.train_shift'; it is now data.train_shift, a setting of data=digit_domains" in error
    error = call("run", "data=gaussian_features", "guide=sib_rotation").error
    assert "expected data with several domains for data.train_shift" in error and "take data=digit_domains or" in error


# ---------------------------------------------------------------- pretraining


def test_a_pretrained_classifier_has_the_shared_classes(bank: Bank) -> None:
    backbone = Backbone((3, 16, 16), num_filters=2)
    larger = bank.with_inputs(bank.inputs.repeat(1, 1, 2, 2))
    training = Pretraining(backbone, larger, PretrainSettings(epochs=1, batch_size=100), CPU, lambda _: None)
    assert training.network["classes"].weight.shape == (10, 2)
    expected = torch.arange(10).repeat(5).repeat_interleave(bank.class_sizes[bank.splits["train"]])
    assert torch.equal(training.labels, expected)
    training.run_epoch()
    assert training.classes()["weight"].shape == (10, 2)
    assert PrototypeScore(bank, CPU)(backbone) is None, "its classes are no classes of their own"
    backbone.eval()
    turned = extract_rotations(backbone, larger, CPU)
    assert turned is not None
    expected = extract(backbone, larger.inputs.rot90(3, (2, 3)), CPU)
    torch.testing.assert_close(turned[:, 2], expected)
    assert extract_rotations(backbone, replace(larger, num_shared=0), CPU) is None


def test_sharing_classes_makes_another_bank(bank: Bank) -> None:
    assert bank.fingerprint() != replace(bank, num_shared=0).fingerprint()


# ---------------------------------------------------------------- the step on the rotation loss

START = {"initialisation": "global", "rotation_step_size": 0.3, "posterior": "delta"}


def rotation_loss(guide, w: Tensor, episodes: Episodes) -> Tensor:
    """The rotation loss [T], by a loop over views."""
    total = torch.zeros(episodes.num_tasks)
    for query in range(episodes.query_x.shape[1]):
        views = [episodes.query_x[:, query], *episodes.auxiliary["turned"][:, query].unbind(1)]
        for quarters, view in enumerate(views):
            logits = guide.rotation.network(guide.model.outputs(w, view.unsqueeze(1)).squeeze(1))
            answer = torch.full((episodes.num_tasks,), quarters)
            total = total + functional.cross_entropy(logits, answer, reduction="none") / 4
    return total


@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_the_start_is_lambda_less_a_step_on_the_rotation_loss(head: str) -> None:
    """theta^0 = lambda - eta d L_rot(lambda) / d lambda, with the gradient by autograd."""
    torch.set_default_dtype(torch.float64)
    guide = Pair("sib", "flat", head, settings={**START, "num_steps": 0}).learner().guide
    episodes = with_turns(random_tasks())
    w = guide.start.point.detach().expand(3, -1, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rotation_loss(guide, w, episodes).sum(), w)
    with torch.no_grad():
        expected = w - guide.log_rotation_step_size.exp() * gradient
        torch.testing.assert_close(guide.posterior(episodes.observed()).mean, expected)
    assert guide.transductive and gradient.abs().max() > 1e-3


def test_the_rotation_loss_joins_the_loss_but_no_bound() -> None:
    torch.set_default_dtype(torch.float64)
    episodes = with_turns(random_tasks())
    learner = Pair("sib", "flat", settings={**START, "rotation_weight": 0.5}).learner()
    terms = learner(episodes)
    w = learner.guide.start.point.expand(3, -1, -1)
    expected = 0.5 * rotation_loss(learner.guide, w, episodes).mean()
    torch.testing.assert_close(terms["rotation"], expected.detach())
    torch.testing.assert_close(terms["loss"], expected - terms["log_likelihood"])


def test_without_turned_views_the_step_is_refused() -> None:
    guide = Pair("sib", "flat", settings=START).learner().guide
    with pytest.raises(
        UsageError,
        match=r"expected rotated images of the queries .* got tasks without rotated images; use data=",
    ):
        guide.posterior(random_tasks().observed())


def test_turned_views_stand_behind_their_query() -> None:
    episodes = DomainSampler(small_bank()).sampler("test", TaskShape(3, 0, 1))(generator_of(0, "test", 0))
    views = every_turn(episodes.observed())[..., 0].unflatten(1, (3, 4))
    assert torch.equal(views - episodes.query_x[..., :1], torch.tensor([0.0, 1000, 2000, 3000]).expand(BLOCK, 3, 4))


def test_guides_start_at_the_pretrained_classifier() -> None:
    weights = torch.randn(3, 5)
    for pair in (Pair("source_only", "flat"), Pair("sib", "flat", settings={**START, "num_steps": 0})):
        learner = pair.learner()
        learner.guide.start_at_classes(weights)
        state = learner.guide.state_dict()
        point = state["initial"] if "initial" in state else state["start.point"]
        torch.testing.assert_close(point, functional.normalize(weights, dim=-1))
    with pytest.raises(
        UsageError, match="expected a model with a conversion of classifier weights for guide=source_only"
    ):
        Pair("source_only", "flat", model="linear_regression").learner()
    with pytest.raises(UsageError, match=r"expected a labelled support set for this guide, got task.shot=0"):
        Pair("proto", "flat").learner().guide.posterior(random_tasks(shot=0).observed())


# ---------------------------------------------------------------- the table

SCORES = {  # of each seed: of one target, of another
    "source only": ([0.5, 0.6], [0.7, 0.8]),
    "K=0": ([0.6, 0.7], [0.7, 0.9]),
    "K=3": ([0.9, 0.8], [0.8, 0.9]),
}


def test_the_table_has_targets_average_and_paired_differences(tmp_path: Path) -> None:
    rows = [Row(target, label, ("guide=x",), 2) for target in ("a", "b") for label in SCORES]
    for row in rows:
        for seed in range(2):
            folder = row.folder(tmp_path, seed)
            folder.mkdir(parents=True)
            mean = SCORES[row.label]["ab".index(row.part)][seed]
            np.savez(folder / "tasks.npz", accuracy=np.array([mean - 0.1, mean + 0.1]))
    write({"pairs": [["K=0", "source only"], ["K=3", "K=0"], ["K=3", "nope"]]}, rows, tmp_path)
    page = (tmp_path / "table.md").read_text()
    assert page.count("python -m experiments.run -m guide=x seed=0,1") == 6
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| K") or line.startswith("| source")]
    assert [line[0] for line in lines[:3]] == ["| source only", "| K=0", "| K=3"]
    spread = 3.1824 * 100 * np.std([0.4, 0.6, 0.5, 0.7], ddof=1) / 2  # t with 3 degrees of freedom: four tasks
    assert lines[0][1] == f"55.0 +- {spread:.1f}" and [line[1].split()[0] for line in lines[1:3]] == ["65.0", "85.0"]
    # The average of seed 0 is 60, 65 and 85, of seed 1 70, 80 and 85; with one degree of freedom t is 12.706.
    assert [line[-1] for line in lines[:3]] == ["65.0 +- 63.5 |", "72.5 +- 95.3 |", "85.0 +- 0.0 |"]
    gains = [line[:1] + line[-1:] for line in lines[3:]]
    assert gains == [["| K=0 less source only", "+7.5 +- 31.8 |"], ["| K=3 less K=0", "+12.5 +- 95.3 |"]]
    assert (tmp_path / "domains.png").read_bytes().startswith(b"\x89PNG")
    assert student_half_width(np.array([1.0])) is None
    assert student_half_width(np.arange(30.0)) == pytest.approx(
        2.0452 * 8.8034 / 30**0.5, 1e-4
    )  # t with 29 degrees of freedom


def test_a_wrong_part_of_the_study_is_refused(empty_folder: None) -> None:
    assert "unknown part 'svhn' of this study; choose from: mnist" in call("domain_adaptation", "parts=[svhn]").error


# ---------------------------------------------------------------- PACS


@pytest.fixture
def pacs_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    return tmp_path / "pacs"


def shades(bank: Bank, split: str) -> set[int]:
    """One pixel value per image, which identifies the class. JPEG may change it slightly."""
    return set(bank.inputs[bank.rows(split)][:, 0, 4, 4].tolist())


@pytest.mark.parametrize("place", ["", "kfold", "splits"])
def test_pacs_is_read_by_its_split_files(place: str, pacs_data: Path) -> None:
    write_pacs(pacs_data)
    (pacs_data / place).mkdir(exist_ok=True)
    for file in pacs_data.glob("*.txt"):
        file.rename(pacs_data / place / file.name)
    bank = pacs.load(target="sketch", size=9)
    assert [len(bank.splits[split]) for split in SPLITS] == [21, 21, 7] and bank.num_shared == 7
    assert [len(bank.rows(split)) for split in SPLITS] == [42, 42, 28], "all of the target, half of each source"
    assert shades(bank, "test") == {180} and min(abs(180 - shade) for shade in shades(bank, "train")) > 50
    names = [bank.class_names[number] for number in (0, 6, 7)]
    assert names == ["train/art_painting/dog", "train/art_painting/person", "train/cartoon/dog"]
    listed = pacs.files_of(pacs_data, "photo", "train")["guitar"], pacs.files_of(pacs_data, "photo", "val")["guitar"]
    assert [[file.name for file in its] for its in listed] == [
        ["pic_001.jpg", "pic_003.jpg"],
        ["pic_000.jpg", "pic_002.jpg"],
    ]


def test_without_split_files_a_tenth_of_pacs_is_for_validation(pacs_data: Path) -> None:
    write_pacs(pacs_data, per_class=11, split_files=False)
    (pacs_data / "kfold/photo/dog/.hidden.jpg").write_bytes(b"")
    withdrawn = pacs_data / "kfold/sketch/dog/n02103406_4068-1.png"
    Image.new("RGB", (9, 9)).save(withdrawn)
    bank = pacs.load(target="photo", validation="cartoon", size=4)
    assert [len(bank.rows(split)) for split in SPLITS] == [2 * 7 * 9, 7 * 2, 7 * 11]
    assert withdrawn not in pacs.files_of(pacs_data, "sketch", "test")["dog"]


def test_what_is_wrong_with_pacs_is_named(pacs_data: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a folder .*pacs, not found; unpack PACS there, as kfold/DOMAIN"):
        pacs.load()
    write_pacs(pacs_data)
    with pytest.raises(
        UsageError, match=r"expected data.target to be one of art_painting, cartoon, photo, sketch, got"
    ):
        pacs.load(target="usps")
    with pytest.raises(UsageError, match=r"expected data.size >= 1, got 0"):
        pacs.load(size=0)
    lists = pacs_data / "photo_train_kfold.txt", pacs_data / "photo_crossval_kfold.txt"
    whole = lists[0].read_text()
    lists[0].write_text(whole + "photo/dog/gone.jpg 1\n")
    with pytest.raises(UsageError, match=r"expected all images in the split files of photo, found no photo/dog/g"):
        pacs.load()
    lists[0].write_text(whole + lists[1].read_text())
    with pytest.raises(
        UsageError, match=r"expected each image of photo in one split file, got photo/dog/pic_000.jpg in"
    ):
        pacs.load()
    lists[0].write_text(whole)
    (pacs_data / "kfold/sketch/person/pic_000.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"expected readable images, got 1 of 28 that cannot be read: .*pic_000.png"):
        pacs.load(size=9)
    for file in (pacs_data / "kfold/cartoon/horse").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=r"expected images in .*cartoon/horse, got none; unpack PACS there"):
        pacs.load()
