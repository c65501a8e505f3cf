"""Banks, the sampler of tasks, and every source of data."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.pairs import Pairs
from pyro_metabayes.data.positions import sequential_positions
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources import features, glyph_sheet, glyphs, omniglot
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.sources.jitter import Jitter
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import cache_folder, cached_arrays, data_file
from tests.pairs import random_tasks
from tests.processes import Forks

FAILURE_RATE = 1e-6  # of each statistical test, over seeds; the seeds are fixed


@pytest.fixture(scope="module")
def bank() -> Bank:
    return glyphs.load()


def numbered(sizes: list[int], pairs: int = 0) -> Bank:
    """A bank whose inputs are row numbers and whose classes are all training classes. The first `pairs` rows of a class
    have the next `pairs` rows as partners."""
    starts = np.cumsum(sizes) - sizes
    partner = torch.arange(sum(sizes))
    for start in starts:
        first, second = start + torch.arange(pairs), start + pairs + torch.arange(pairs)
        partner[first], partner[second] = second, first
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(sum(sizes), dtype=np.float32)[:, None]
    splits = {"train": np.arange(len(sizes))}
    return replace(Bank.from_arrays(rows, labels, splits), pairs=Pairs(partner) if pairs else None)


def draw(bank: Bank, shape: TaskShape, tasks: int, seed: int = 0, split: str = "train") -> Episodes:
    return TaskStream(BankSampler(bank).sampler(split, shape), seed, split).batch(0, tasks)


def rows_of(x: Tensor, way: int) -> Tensor:
    """Row numbers [T, C, n] of the inputs of a `numbered` bank."""
    return x.squeeze(-1).long().unflatten(1, (way, -1))


def equal(a: Episodes, b: Episodes) -> bool:
    names = ("support_x", "support_y", "query_x", "query_y")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def chi_square_bound(degrees: int) -> float:
    """The value that chi-square exceeds with probability FAILURE_RATE (approximation of Wilson and Hilferty)."""
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - FAILURE_RATE, dtype=torch.float64))
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + float(normal) * math.sqrt(spread)) ** 3


def chi_square(counts: Tensor) -> float:
    expected = counts.double().mean()
    return float(((counts - expected) ** 2 / expected).sum())


# Tasks -----------------------------------------------------------------------------------------------


def test_tasks_depend_on_seed_split_and_index_only() -> None:
    source = BankSampler(numbered([30] * 8)).sampler("train", TaskShape())
    whole = TaskStream(source, 0, "train").batch(0, 200)
    stream = TaskStream(source, 0, "train")
    starts = list(range(0, 200, 7))
    for start in starts[::-1] + starts[::2]:
        stop = min(start + 7, 200)
        assert equal(stream.batch(start, stop), whole.tasks(slice(start, stop)))


def test_another_seed_or_split_gives_other_tasks() -> None:
    source = BankSampler(numbered([30] * 8)).sampler("train", TaskShape())
    first = TaskStream(source, 0, "train").batch(0, 64)
    assert not equal(first, TaskStream(source, 1, "train").batch(0, 64))
    assert not equal(first, TaskStream(source, 0, "val").batch(0, 64))
    assert not equal(first, TaskStream(source, 0, "train").batch(64, 128))


def test_tasks_are_drawn_without_replacement_from_unequal_classes() -> None:
    bank = numbered([7, 20, 9, 35, 8, 7])
    shape = TaskShape(way=4, shot=2, query=5)
    tasks = draw(bank, shape, 640)
    support, query = rows_of(tasks.support_x, 4), rows_of(tasks.query_x, 4)
    rows = torch.cat((support, query), -1)
    assert (rows.sort(-1).values.diff(dim=-1) > 0).all()
    assert tasks.classes is not None
    assert (tasks.classes.sort(-1).values.diff(dim=-1) > 0).all()
    assert torch.equal(bank.labels[rows], tasks.classes.unsqueeze(-1).expand_as(rows))
    assert torch.equal(tasks.support_y[0], torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert torch.equal(tasks.query_y[0], torch.arange(4).repeat_interleave(5))


def test_classes_and_rows_are_uniform() -> None:
    tasks = draw(numbered([12] * 10), TaskShape(way=2, shot=1, query=1), 19200)
    assert tasks.classes is not None
    # Drawn without replacement within a task, so the statistic is below chi-square's: the bound holds.
    assert chi_square(torch.bincount(tasks.classes.flatten(), minlength=10)) < chi_square_bound(9)
    for x in (tasks.support_x, tasks.query_x):
        assert chi_square(torch.bincount(x.long().flatten(), minlength=120)) < chi_square_bound(119)


def test_tasks_of_large_classes_are_drawn_without_replacement_too() -> None:
    """Where keys for all inputs would be too many; the smallest class is used up."""
    sizes = [20, 60_000, 30_000, 45_000, 21]
    episodes = draw(numbered(sizes), TaskShape(5, 4, 16), 64)
    rows = torch.cat([rows_of(episodes.support_x, 5), rows_of(episodes.query_x, 5)], -1)
    assert (rows.sort(-1).values.diff(dim=-1) > 0).all()
    assert episodes.classes is not None
    starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    within = rows - starts[episodes.classes].unsqueeze(-1)
    assert (within >= 0).all() and (within < torch.tensor(sizes)[episodes.classes].unsqueeze(-1)).all()


def test_sequential_positions_are_uniform_in_every_place() -> None:
    """All 60 ordered draws of three out of five are as likely: chi-squared on 59 degrees, 0.1% failure."""
    positions = sequential_positions(torch.full((6000, 10), 5), 3, torch.Generator().manual_seed(0))
    counts = torch.bincount((positions * torch.tensor([25, 5, 1])).sum(-1).flatten(), minlength=125)
    counts = counts[counts > 0].double()
    assert len(counts) == 60 and ((counts - 1000).square() / 1000).sum() < 98.3


@pytest.mark.parametrize(
    ("shot", "query", "pairs"), [(1, 15, 8), (5, 15, 8), (5, 10, 8), (1, 19, 8), (10, 10, 8), (2, 18, 10)]
)
def test_pairs_are_never_split(shot: int, query: int, pairs: int) -> None:
    bank = numbered([20] * 6, pairs)
    assert bank.pairs is not None
    tasks = draw(bank, TaskShape(5, shot, query), 3200)
    support, query_rows = rows_of(tasks.support_x, 5), rows_of(tasks.query_x, 5)
    partner = bank.pairs.partner[support]
    # A single row is its own partner, so this also asks that no row stands on both sides.
    assert not (partner.unsqueeze(-1) == query_rows.unsqueeze(-2)).any()
    rows = torch.cat((support, query_rows), -1)
    assert (rows.sort(-1).values.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("shot", [1, 5])
def test_the_support_is_not_always_the_same_rows(shot: int) -> None:
    """Both renderings of a face alike; faces nearly uniform, exactly so at one shot."""
    tasks = draw(numbered([20] * 5, 8), TaskShape(5, shot, 15), 6400)
    counts = torch.bincount(rows_of(tasks.support_x, 5).flatten() % 20, minlength=20)
    pairs, singles = counts[:16].view(2, 8), counts[16:]
    difference = (pairs[0] - pairs[1]).double() / pairs.sum(0).sqrt()
    assert float((difference**2).sum()) < chi_square_bound(8)
    if shot == 1:
        assert chi_square(torch.cat((pairs.sum(0), singles))) < chi_square_bound(11)
    else:
        share = counts / counts.sum() * 20
        assert share.min() > 0.9 and share.max() < 1.2


def test_a_pair_that_must_be_split_is_refused() -> None:
    bank = numbered([20] * 5, 10)
    with pytest.raises(UsageError, match=re.escape("even task.shot")):
        BankSampler(bank).sampler("train", TaskShape(5, 5, 15))
    BankSampler(bank).sampler("train", TaskShape(5, 5, 14))


@pytest.mark.parametrize(
    ("split", "shape", "message"),
    [
        ("trian", TaskShape(), "expected a split among train, val, test, got 'trian'"),
        ("train", TaskShape(way=1), "way >= 2"),
        ("train", TaskShape(query=0), "query >= 1"),
        ("train", TaskShape(way=9), "task.way=9 classes in the train split, got 5"),
        ("train", TaskShape(shot=10), "task.shot + task.query = 25 inputs"),
    ],
)
def test_a_shape_that_the_bank_cannot_fill_is_refused(split: str, shape: TaskShape, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        BankSampler(numbered([20] * 5)).sampler(split, shape)


def test_a_bank_sorts_rows() -> None:
    labels = np.array([7, 3, 7, 3, 3])
    splits = {"train": np.array([3]), "test": np.array([7])}
    bank = Bank.from_arrays(np.arange(5.0)[:, None], labels, splits)
    assert bank.inputs.flatten().tolist() == [1, 3, 4, 0, 2]
    assert bank.class_sizes.tolist() == [3, 2] and bank.class_names == ["3", "7"]
    assert bank.rows("test").tolist() == [3, 4] and bank.rows("val").tolist() == []


# Glyphs ----------------------------------------------------------------------------------------------


def test_glyphs_have_the_documented_size(bank: Bank) -> None:
    counts = [len(bank.splits[split]) for split in SPLITS]
    assert bank.inputs.dtype == torch.uint8 and bank.inputs.shape == (20 * sum(counts), 1, 28, 28)
    assert len(bank.class_names) == len(set(bank.class_names)) == sum(counts) > 1000
    shares = torch.tensor(counts) / sum(counts)
    torch.testing.assert_close(shares, torch.tensor([0.64, 0.16, 0.20]), atol=0.03, rtol=0)
    assert (bank.class_sizes == 20).all()


def test_no_block_stands_in_two_splits(bank: Bank) -> None:
    points = np.array([ord(name) for name in bank.class_names])
    blocks = glyphs.blocks_of(points)
    assert all(first <= point <= last for point, (first, last, _, _) in zip(points, blocks, strict=True))
    for split in SPLITS:
        assert {blocks[index][2] for index in bank.splits[split].tolist()} == {split}
    assert len(torch.cat(list(bank.splits.values())).unique()) == len(bank.class_names)


@pytest.mark.parametrize("alike", ["AΑА", "BΒВв", "oOοОо", "xXх", "7⁷", "TТтᵀ", "-‐−", "éèë"], ids=lambda text: text[0])
def test_look_alikes_leave_one_class(bank: Bank, alike: str) -> None:
    assert sum(name in alike for name in bank.class_names) == 1


@pytest.mark.parametrize("different", ["EF", "8B", "bdpq", "CG", "OQ", "ΔΞ", "↓↕", "aà"])
def test_different_characters_stay(bank: Bank, different: str) -> None:
    assert set(different) <= set(bank.class_names)


def test_a_class_has_every_face_and_faces_used_twice_are_pairs(bank: Bank) -> None:
    assert bank.pairs is not None
    partner = bank.pairs.partner
    assert torch.equal(partner[partner], torch.arange(len(partner)))
    assert torch.equal(bank.labels[partner], bank.labels)
    assert (bank.pairs.single.view(-1, 20).sum(1) == 4).all()
    # Without distortion the two renderings of a face are one image.
    plain = glyphs.load(rotation=0.0, shear=0.0, scale=0.0, shift=0.0, noise=0.0)
    assert plain.pairs is not None and torch.equal(plain.pairs.partner, partner)
    assert torch.equal(plain.inputs, plain.inputs[partner])
    assert not torch.equal(bank.inputs, bank.inputs[partner])
    number = plain.class_names.index("R")
    images = plain.inputs[20 * number : 20 * number + 20].flatten(1)
    assert len(images.unique(dim=0)) == 12
    assert (plain.inputs.amax((1, 2, 3)) > 100).all()


def test_glyphs_depend_on_the_seed_and_on_nothing_else(
    bank: Bank, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, other = glyphs.load(), glyphs.load(seed=1)
    assert bank.fingerprint() == cached.fingerprint() != other.fingerprint()
    (sheet,) = cache.glob("glyph-sheet-*.npz")
    shutil.copy(sheet, tmp_path)
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path))
    assert glyphs.load().fingerprint() == bank.fingerprint(), "distorted anew, from the same sheet"


def test_a_drawing_does_not_depend_on_the_other_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet of every tenth class, drawn anew, which has no look-alikes."""
    sheet = glyph_sheet.clean_sheet()
    few = SimpleNamespace(get_charmap=lambda: sheet["code_points"][::10].tolist())
    monkeypatch.setattr(glyph_sheet, "FT2Font", lambda path: few)
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path))
    again = glyph_sheet.clean_sheet()
    assert again.keys() == sheet.keys()
    assert all(np.array_equal(array, sheet[name][::10]) for name, array in again.items())


def test_images_per_class_is_a_setting() -> None:
    few = glyphs.load(images_per_class=5)
    assert few.pairs is not None and few.pairs.single.all()
    for wrong in (1, 25):
        with pytest.raises(UsageError, match=f"between 2 and 24 .* got {wrong}"):
            glyphs.load(images_per_class=wrong)


# Distortions -----------------------------------------------------------------------------------------


def distorted(jitter: Jitter, image: Tensor, copies: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    source = torch.zeros(copies, dtype=torch.long)
    return jitter.apply(image[None], source, 28, generator).float().squeeze(1) / 255


def square(half: int = 14) -> Tensor:
    image = torch.zeros(56, 56, dtype=torch.uint8)
    image[28 - half : 28 + half, 28 - half : 28 + half] = 255
    return image


def test_no_distortion_is_the_mean_over_two_by_two() -> None:
    image = torch.randint(256, (56, 56), dtype=torch.uint8)
    expected = torch.nn.functional.avg_pool2d(image[None].float() / 255, 2)
    assert (distorted(Jitter(), image, 1) - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_shift_is_in_pixels_of_the_result() -> None:
    images = distorted(Jitter(shift=3.0), square())
    place = torch.arange(28) - 13.5
    centre = (images.sum(1) * place).sum(-1) / images.sum((1, 2))
    assert 2.7 < centre.abs().max() < 3.05
    assert centre.min() < -2.5 and centre.max() > 2.5


def test_scale_is_a_log_factor_of_each_side() -> None:
    area = distorted(Jitter(scale=0.3), square(), 2000).sum((1, 2)) / 14**2
    # At most 0.6 either way, and half a pixel of the smallest side for the grid.
    assert math.exp(-0.7) < area.min() < math.exp(-0.5)
    assert math.exp(0.5) < area.max() < math.exp(0.7)


def test_rotation_is_in_degrees_and_shear_in_pixels_a_pixel() -> None:
    bar = torch.zeros(56, 56, dtype=torch.uint8)
    bar[8:48, 26:30] = 255
    x, y = (torch.arange(28) - 13.5).expand(28, 28), (torch.arange(28) - 13.5).unsqueeze(1).expand(28, 28)
    for jitter, largest in ((Jitter(rotation=30.0), math.tan(math.radians(30))), (Jitter(shear=0.4), 0.4)):
        images = distorted(jitter, bar, 500)
        slope = (images * x * y).sum((1, 2)) / (images * y * y).sum((1, 2))
        assert 0.9 * largest < slope.max() < 1.05 * largest
        assert 0.9 * largest < -slope.min() < 1.05 * largest


def test_noise_is_in_units_of_full_ink_and_erase_in_pixels() -> None:
    grey = torch.full((56, 56), 128, dtype=torch.uint8)
    assert distorted(Jitter(noise=0.1), grey).std().item() == pytest.approx(0.1, rel=0.02)
    rows = distorted(Jitter(erase=4.0), torch.full((56, 56), 255, dtype=torch.uint8))
    missing = (1 - rows).sum((1, 2))  # a bar of width 4 and of length 20 to 40 in a frame of 28
    assert missing.min() > 4 * 18 and missing.max() < 4 * 41


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_distortion_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(UsageError, match=re.escape("expected a finite noise >= 0")):
        Jitter(noise=value)


# Folders ---------------------------------------------------------------------------------------------


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "new" / "folder"))
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(1000)}

    assert cached_arrays("thing", {"x": 1}, make)["a"][-1] == 999
    assert cached_arrays("thing", {"x": 1}, make)["a"][-1] == 999 and len(made) == 1
    (path,) = cache_folder().iterdir()
    whole = path.read_bytes()
    flipped = whole[:4000] + bytes([whole[4000] ^ 255]) + whole[4001:]
    for damaged in (whole[:3000], b"", b"nonsense", flipped):
        path.write_bytes(damaged)
        assert np.array_equal(cached_arrays("thing", {"x": 1}, make)["a"], np.arange(1000))
    assert len(made) == 5 and list(cache_folder().iterdir()) == [path]
    cached_arrays("thing", {"x": 2}, make)
    assert len(made) == 6


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="METABAYES_CACHE"):
        cache_folder()


def test_a_missing_data_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METABAYES_DATA", raising=False)
    with pytest.raises(UsageError, match=r"METABAYES_DATA to name a folder with a/b.npz.*put it there"):
        data_file("a/b.npz", "put it there")
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"a/b.npz, not found; put it there"):
        data_file("a/b.npz", "put it there")
    (tmp_path / "b.npz").write_text("")
    assert data_file("b.npz", "") == tmp_path / "b.npz"


# Features --------------------------------------------------------------------------------------------


def arrays(classes: int = 10, each: int = 4) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(classes), each))
    return {"features": generator.normal(size=(len(labels), 6)), "labels": labels}


def stored(folder: Path, **changed: np.ndarray | None) -> str:
    kept = {name: array for name, array in {**arrays(), **changed}.items() if array is not None}
    np.savez(folder / "given.npz", **kept)  # type: ignore[arg-type]
    return str(folder / "given.npz")


def test_features_are_of_unit_length_and_sorted_by_class(tmp_path: Path) -> None:
    bank, given = features.load(stored(tmp_path)), arrays()
    assert bank.inputs.dtype == torch.float32
    torch.testing.assert_close(bank.inputs.norm(dim=1), torch.ones(40))
    expected = torch.from_numpy(given["features"][given["labels"] == 3]).float()
    rows = bank.inputs[bank.labels == 3]
    torch.testing.assert_close(rows, torch.nn.functional.normalize(expected, dim=-1))
    huge = features.load(stored(tmp_path, features=given["features"] * 1e30))
    torch.testing.assert_close(huge.inputs, bank.inputs)


def test_classes_are_split_by_seed(tmp_path: Path) -> None:
    path = stored(tmp_path, **arrays(100))
    banks = [features.load(path, seed=seed) for seed in (0, 0, 1)]
    assert [len(banks[0].splits[split]) for split in SPLITS] == [64, 16, 20]
    assert torch.equal(torch.cat(list(banks[0].splits.values())).sort().values, torch.arange(100))
    assert banks[0].fingerprint() == banks[1].fingerprint() != banks[2].fingerprint()
    assert [len(features.load(path, train=0.5, val=0.1).splits[split]) for split in SPLITS] == [50, 10, 40]


def test_strings_and_numbers_and_both_kinds_of_file_agree(tmp_path: Path) -> None:
    given = arrays()
    codes = np.minimum(given["labels"] // 4, 2)  # classes 0-3, 4-7, 8-9
    numbers = features.load(stored(tmp_path, split=codes))
    names = features.load(
        stored(tmp_path, split=np.array(SPLITS)[codes], labels=np.char.add("c", given["labels"].astype(str)))
    )
    save_file({**given, "split": codes}, tmp_path / "given.safetensors")
    tensors = features.load(str(tmp_path / "given.safetensors"))
    assert numbers.fingerprint() == names.fingerprint() == tensors.fingerprint()
    assert names.class_names[:2] == ["c0", "c1"] and numbers.class_names[:2] == ["0", "1"]
    assert numbers.splits["test"].tolist() == [8, 9]


def changed_features(row: int, value: float) -> np.ndarray:
    rows = arrays()["features"]
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": None}, "expected an array 'features' in .*, got labels; rename or add an array"),
        ({"labels": None}, "expected an array 'labels' in .*, got features; rename"),
        ({"labels": np.zeros(40)}, "integers or strings as labels in .*, got float64; write"),
        ({"labels": np.zeros(39, int)}, r"features \[40, 6\], labels \[39\]; .*one row"),
        ({"labels": np.array(3)}, r"labels \[\]; .*one row"),
        ({"split": np.zeros(3, int)}, r"split \[3\]; .*one row"),
        ({"features": np.zeros((40, 2, 3))}, r"features \[40, 2, 3\], labels"),
        ({"features": np.zeros((0, 6)), "labels": np.zeros(0, int)}, "at least one row .* got none; add"),
        ({"features": np.full((40, 6), "x")}, "expected numbers as features in .*, got <U1; write"),
        ({"features": changed_features(2, np.nan)}, "NaN or infinity .* in 1 of 40 rows; remove or fix"),
        ({"features": changed_features(2, 1e39)}, "NaN or infinity .as float32. in 1 of 40 rows"),
        ({"features": changed_features(5, 0.0)}, "got 1 of 40 that are all zero; remove"),
        ({"split": np.full(40, "training")}, "train, val, test or 0, 1, 2 in 'split' .* got training"),
        ({"split": np.full(40, 3)}, "in 'split' of .*, got 3 .int64.; write"),
        ({"split": np.full(40, 0.0)}, "in 'split' of .*, got 0.0 .float64.; write"),
        ({"split": np.arange(40) % 3}, "each class in one split of .*, got '0' in .* and .*; give each class"),
        ({"split": np.arange(40) * 0}, "classes in every split of .*, got none in val .*; add"),
        ({"labels": np.arange(40) % 2}, r"every split of .*, got none in test \(2 classes in all\)"),
        ({"labels": np.array([None] * 40)}, "cannot be read .*save names with .astype\\(str\\)"),
    ],
)
def test_what_is_wrong_with_the_arrays_is_named(
    tmp_path: Path, changed: dict[str, np.ndarray | None], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        features.load(stored(tmp_path, **changed))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_the_file_is_named(tmp_path: Path) -> None:
    def refused(path: str, message: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            features.load(path)
        assert "\n" not in str(caught.value)

    refused("", "got no path; set data.path=")
    refused(str(tmp_path / "none.npz"), "found none at .*none.npz; fix data.path")
    refused(str(tmp_path / "given.txt"), "ends in .npz or .safetensors or .parquet or .csv, got .*given.txt; write one")
    whole = Path(stored(tmp_path)).read_bytes()
    save_file(arrays(), tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    for name, content in (
        ("cut.npz", whole[:500]), ("empty.npz", b""), ("text.npz", b"1,2,3"),
        ("cut.safetensors", tensors[:-20]), ("empty.safetensors", b""),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        refused(str(tmp_path / name), "cannot be read .*write the file again")


def test_fractions_leave_something_for_every_split(tmp_path: Path) -> None:
    for train, val in ((0.0, 0.5), (0.9, 0.1), (0.5, -0.1), (float("nan"), 0.1)):
        with pytest.raises(UsageError, match=r"train \+ val < 1, got train="):
            features.load(stored(tmp_path), train=train, val=val)


# Gaussian features -----------------------------------------------------------------------------------


def test_gaussian_features_have_the_documented_moments() -> None:
    tasks = TaskStream(GaussianFeatures().sampler("test", TaskShape()), 0, "test").batch(0, 64)
    x = torch.cat((tasks.support_x, tasks.query_x), 1)
    assert x.shape == (64, 80, 640) and tasks.classes is None and tasks.num_classes == 5
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(64, 80))
    mean, sd = 0.3, math.sqrt(0.27**2 + 1)
    normal = torch.distributions.Normal(0.0, 1.0)
    positive = float(normal.cdf(torch.tensor(mean / sd)))
    density = float(normal.log_prob(torch.tensor(mean / sd)).exp())
    first, second = mean * positive + sd * density, (mean**2 + sd**2) * positive + mean * sd * density
    # 320 classes * 640 dimensions of correlated points: standard errors below 0.001.
    assert float((x > 0).float().mean()) == pytest.approx(positive, abs=0.005)
    assert float(x.mean() * math.sqrt(640)) == pytest.approx(first / math.sqrt(second), abs=0.005)


def test_gaussian_features_have_the_documented_accuracy() -> None:
    """facts/sib.md, 8.3: nearest prototype by cosine, 60.25 +- 0.41 per cent on 1,000 tasks."""
    stream = TaskStream(GaussianFeatures().sampler("test", TaskShape()), 0, "test")
    right = []
    for start in range(0, 512, 64):
        tasks = stream.batch(start, start + 64)
        predicted = (tasks.query_x @ class_means(tasks.observed()).mT).argmax(-1)
        right.append((predicted == tasks.query_y).float().mean(1))
    accuracy = torch.cat(right)
    error = 5 * (float(accuracy.std()) / math.sqrt(len(accuracy)) + 0.0021)
    assert float(accuracy.mean()) == pytest.approx(0.6025, abs=error)


def test_gaussian_features_are_drawn_by_index() -> None:
    source = GaussianFeatures(num_features=3).sampler("train", TaskShape(2, 2, 3))
    whole = TaskStream(source, 0, "train").batch(0, 100)
    assert equal(TaskStream(source, 0, "train").batch(60, 90), whole.tasks(slice(60, 90)))
    assert not equal(TaskStream(source, 0, "test").batch(0, 100), whole)


def test_gaussian_features_refuse_what_cannot_be_drawn() -> None:
    with pytest.raises(UsageError, match="num_features >= 1"):
        GaussianFeatures(num_features=0)
    with pytest.raises(UsageError, match="separation >= 0"):
        GaussianFeatures(separation=-1.0)
    with pytest.raises(UsageError, match="expected a split among train, val, test, got 'dev'"):
        GaussianFeatures().sampler("dev", TaskShape())
    with pytest.raises(UsageError, match="shot >= 1"):
        GaussianFeatures().sampler("train", TaskShape(shot=0))


# Omniglot --------------------------------------------------------------------------------------------


def test_the_lists_of_omniglot_are_those_of_vinyals() -> None:
    split_of = omniglot.vinyals_split()
    assert Counter(split_of.values()) == {"train": 1028, "val": 172, "test": 423}
    assert len({name.split("/")[0] for name in split_of}) == 50


def test_omniglot_has_the_documented_classes(metabayes_data: Path) -> None:
    bank = omniglot.load()
    assert [len(bank.splits[split]) for split in SPLITS] == [4112, 688, 1692]
    assert bank.inputs.shape == (20 * 6492, 1, 28, 28) and bank.inputs.dtype == torch.uint8
    assert (bank.class_sizes == 20).all()
    name = "Greek/character03"
    upright, turned = (bank.class_names.index(key) for key in (name, f"{name}/rot090"))
    images = bank.inputs.view(-1, 20, 28, 28)
    assert torch.equal(images[turned], torch.rot90(images[upright], 1, (1, 2)))
    of = {split: {bank.class_names[i].split("/rot")[0] for i in bank.splits[split]} for split in SPLITS}
    assert sum(len(names) for names in of.values()) == len(set.union(*of.values())) == 1623
    listed = (metabayes_data / "splits/omniglot/test.txt").read_text().split()
    assert of["test"] == {line.rsplit("/", 1)[0] for line in listed}


def test_omniglot_may_be_turned_in_training_only(metabayes_data: Path) -> None:
    sizes = {choice: omniglot.load(choice).splits for choice in ("train", "none")}
    assert [len(sizes["train"][split]) for split in SPLITS] == [4112, 172, 423]
    assert [len(sizes["none"][split]) for split in SPLITS] == [1028, 172, 423]


def test_large_drawings_are_made_small_as_the_file_was(metabayes_data: Path) -> None:
    """What torchvision's download goes through, against omniglot_28.npz, drawn from the same source."""
    large = np.load(metabayes_data / "omniglot/omniglot_105_bits.npz")["ink"][:3].reshape(60, -1)
    drawings = np.unpackbits(large, axis=-1)[:, : 105 * 105].reshape(60, 105, 105) * np.uint8(255)
    expected = np.load(metabayes_data / "omniglot/omniglot_28.npz")["images"][:3].reshape(60, 28, 28)
    assert np.array_equal(omniglot.to_28(drawings), expected)


def test_omniglot_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="one of all, train, none, got 'some'"):
        omniglot.load("some")
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"omniglot_28.npz, not found; put it there, or unset METABAYES_DATA"):
        omniglot.load()
    path = tmp_path / omniglot.FILE
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"arrays 'images', 'alphabet' and 'character' in .*; copy the file again"):
        omniglot.load()
    one = {"images": np.zeros((1, 20, 28, 28), np.uint8), "alphabet": ["Greek"], "character": ["character03"]}
    np.savez(path, **one)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"all 1623 characters of Omniglot, got 1, without .*; copy or"):
        omniglot.load()


def test_torchvision_can_be_imported(forks: Forks) -> None:
    """In a process of its own: here it may have been imported before."""
    code = (
        "from pyro_metabayes.vision import torchvision\n"
        "assert torchvision() is torchvision() and hasattr(torchvision().datasets, 'Omniglot')"
    )
    assert forks.output_of(code) == ""


def test_class_means_of_numbers_are_refused() -> None:
    observed = random_tasks().observed()
    numbers = replace(observed, support_y=torch.zeros(*observed.support_y.shape, 1), num_classes=0)
    with pytest.raises(UsageError, match="expected class labels for class means, got numeric labels; "):
        class_means(numbers)
