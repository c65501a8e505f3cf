"""CIFAR-FS and FC100 have the images of CIFAR-100 in the published classes. Damaged image sheets are named."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources import cifar100, cifar_fs, fc100
from pyro_metabayes.errors import UsageError


@pytest.fixture(scope="module", autouse=True)
def sheets_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar100, "_sheet", functools.cache(cifar100._sheet))
        yield


@pytest.fixture
def bank(metabayes_data: Path) -> Bank:
    return cifar_fs.load()


def test_classes_and_pixels_are_the_published_ones(bank: Bank, metabayes_data: Path) -> None:
    assert bank.inputs.shape == (60000, 3, 32, 32) and set(bank.class_sizes.tolist()) == {600}
    assert [len(bank.splits[split]) for split in SPLITS] == [64, 16, 20]
    meta = json.loads((metabayes_data / "cifar100/cifar100_meta.json").read_text())
    for split in SPLITS:
        class_id = int(bank.splits[split][0])
        start = int(bank.class_starts[class_id])
        pixels = bank.inputs[start : start + 600].permute(0, 2, 3, 1).contiguous().numpy()
        assert sha256(pixels.tobytes()).hexdigest() == meta["sha256_raw"][bank.class_names[class_id]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(b"no image", "got a damaged file"), (None, "expected a file at .*apple.webp, not found")],
)
def test_a_bad_sheet_is_named(
    damage: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar100"
    (folder / "sheets/train").mkdir(parents=True)
    (folder / "cifar100_meta.json").write_text(json.dumps({"cifar_fs": {"train": ["apple"], "val": [], "test": []}}))
    if damage is not None:
        (folder / "sheets/train/apple.webp").write_bytes(damage)
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=message):
        cifar_fs.load()


def test_fc100_parts_superclasses(metabayes_data: Path) -> None:
    """No superclass has classes on both sides: what FC100 is for. The splits are the published 60, 20, 20."""
    bank = fc100.load()
    assert [len(bank.splits[split]) for split in SPLITS] == [60, 20, 20]
    meta = json.loads((metabayes_data / "cifar100/cifar100_meta.json").read_text())
    coarse = {
        split: {meta["coarse_of"][bank.class_names[int(index)]] for index in bank.splits[split]} for split in SPLITS
    }
    assert [len(coarse[split]) for split in SPLITS] == [12, 4, 4]
    assert not coarse["train"] & coarse["val"] and not (coarse["train"] | coarse["val"]) & coarse["test"]
    class_id = int(bank.splits["test"][0])
    start = int(bank.class_starts[class_id])
    pixels = bank.inputs[start : start + 600].permute(0, 2, 3, 1).contiguous().numpy()
    assert sha256(pixels.tobytes()).hexdigest() == meta["sha256_raw"][bank.class_names[class_id]]
