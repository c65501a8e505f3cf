"""Small data sets in the formats in which the large ones are published."""

from __future__ import annotations

import csv
import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WNIDS = {"train": ["n03", "n01", "n02"], "val": ["n11", "n10"], "test": ["n21", "n20"]}  # not in order
PER_CLASS = 3


def pictures(split: str, side: int = 84) -> dict[str, np.ndarray]:
    """Images [3, side, side, 3] of each class. They are smooth and differ clearly in colour."""
    ramp = np.arange(side, dtype=np.uint8)
    made = {}
    for name in WNIDS[split]:
        shades = np.array([[40 + 5 * int(name[1:]), 128, 250 - index] for index in range(PER_CLASS)], dtype=np.uint8)
        made[name] = shades[:, None, None, :] + (ramp[None, :, None, None] + ramp[None, None, :, None]) // 8
    return made


def dump(path: Path, value: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_table(folder: Path, side: int = 84) -> None:
    """The images in one folder, and the CSVs of Ravi and Larochelle."""
    (folder / "images").mkdir(parents=True)
    for split in WNIDS:
        lines = [["filename", "label"]]
        for name, images in pictures(split, side).items():
            for index, image in enumerate(images):
                lines.append([f"{name}{index:08d}.jpg", name])
                (folder / "images" / lines[-1][0]).write_bytes(png(image))  # by its content, whatever its suffix
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def write_cache(folder: Path) -> None:
    for split in WNIDS:
        images = pictures(split)
        rows = {name: list(range(PER_CLASS * i, PER_CLASS * (i + 1))) for i, name in enumerate(images)}
        content = {"image_data": np.concatenate(list(images.values())), "class_dict": rows}
        dump(folder / f"mini-imagenet-cache-{split}.pkl", content)


def write_category(folder: Path) -> None:
    """Labels of val and test continue those of train. The keys of one file are bytes, as in pickles of Python 2."""
    first = 0
    for split, phase in {"train": "train_phase_train", "val": "val", "test": "test"}.items():
        images = pictures(split)
        labels = {name: first + place for place, name in enumerate(sorted(images))}
        first += len(images)
        content: dict[Any, Any] = {
            "data": np.concatenate(list(images.values())),
            "labels": [labels[name] for name in images for _ in range(PER_CLASS)],
            "catname2label": labels,
        }
        if split == "val":
            content = {key.encode(): value for key, value in content.items()}
        dump(folder / f"miniImageNet_category_split_{phase}.pickle", content)


def write_tiered(folder: Path, packed: bool) -> None:
    folder.mkdir(parents=True)
    for split in WNIDS:
        images, names = pictures(split), sorted(WNIDS[split])
        stacked = np.concatenate(list(images.values()))
        labels = np.repeat([names.index(name) for name in images], PER_CLASS)
        dump(folder / f"{split}_labels.pkl", {"label_specific": labels, "label_specific_str": names})
        if packed:
            files = [np.frombuffer(png(image), np.uint8)[:, None] for image in stacked]
            dump(folder / f"{split}_images_png.pkl", files)
        else:
            np.savez(folder / f"{split}_images.npz", images=stacked[..., ::-1])


def embeddings(split: str) -> tuple[np.ndarray, list[str]]:
    rows = np.random.default_rng(len(split)).normal(size=(PER_CLASS * len(WNIDS[split]), 4)).astype(np.float32)
    keys = [f"{row}-{name}-{name}_{row:03d}" for row, name in enumerate(sorted(WNIDS[split]) * PER_CLASS)]
    return rows, keys


def write_leo(folder: Path) -> None:
    for split in WNIDS:
        rows, keys = embeddings(split)
        content = {"embeddings": rows, "keys": np.array(keys), "labels": []}
        dump(folder / "embeddings/miniImageNet/center" / f"{split}_embeddings.pkl", content)


def write_folder(folder: Path, listed: bool = False) -> None:
    """Write folders of classes with images of two sizes, a hidden file, and a file that is not an image."""
    for split in WNIDS:
        for name, images in pictures(split, 24).items():
            inner = folder / name if listed else folder / split / name
            inner.mkdir(parents=True)
            for index, image in enumerate(images):
                Image.fromarray(image[: 24 - 8 * (index % 2)]).save(inner / f"{index}.PNG")
            (inner / ".hidden.png").write_text("none")
            (inner / "notes.txt").write_text("none")
        if listed:
            (folder / f"{split}.txt").write_text("\n".join(WNIDS[split]))


def write_archive(path: Path, classes: list[str], **changed: Any) -> Mapping[str, np.ndarray]:
    """Write cifar-100-python.tar.gz with 2 training and 1 test image of each class, and return the images by class."""
    images = np.random.default_rng(0).integers(0, 256, (3 * len(classes), 3072), dtype=np.uint8)
    labels = list(range(len(classes))) * 3
    cut = 2 * len(classes)
    members: dict[str, Any] = {
        "train": {"data": images[:cut], "fine_labels": labels[:cut]},
        "test": {"data": images[cut:], "fine_labels": labels[cut:]},
        "meta": {"fine_label_names": classes},
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (members | changed).items():
            data = pickle.dumps(content, 2)
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return {name: images[place :: len(classes)].reshape(3, 3, 32, 32) for place, name in enumerate(classes)}


def write_digits(folder: Path, side: int = 8) -> None:
    """Write files of digits. The first two pixels of an image give its number, the pixels below give its class."""
    noise = np.random.default_rng(0)

    def digits(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = noise.permutation(np.arange(num) % 10).astype(np.uint8)
        x = np.zeros((num, side, side), np.uint8)
        x[:, 0, 0], x[:, 0, 1] = np.arange(num) // 100, np.arange(num) % 100
        x[np.arange(num), 1 + labels // 2, 2 + 3 * (labels % 2)] = 200
        return x, labels

    folder.mkdir(parents=True)
    for name, num_train, num_test in (("mnist_28", 800, 400), ("usps_16", 250, 120)):
        (train_x, train_y), (test_x, test_y) = digits(num_train), digits(num_test)
        np.savez(folder / f"{name}.npz", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    x, y = digits(900)
    x //= 16  # as scikit-learn has them, from 0 to 16
    x[:, 0, :3] = np.stack([np.arange(900) // 256, np.arange(900) // 16 % 16, np.arange(900) % 16], axis=1)
    np.savez(folder / "sklearn_digits_8.npz", x=x, y=y)
    with zipfile.ZipFile(folder / "bsds500_train_jpg.zip", "w") as archive:
        for shade in range(4):
            archive.writestr(f"{shade}.jpg", png(np.full((12, 15, 3), 40 * (shade + 1), np.uint8)))


def write_pacs(folder: Path, per_class: int = 4, split_files: bool = True) -> None:
    """Write images kfold/DOMAIN/CLASS/NAME of one colour each, and the lists of training and validation images."""
    domains = {"art_painting": ".jpg", "cartoon": ".jpg", "photo": ".jpg", "sketch": ".png"}
    classes = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    for place, (domain, suffix) in enumerate(domains.items()):
        lines: dict[str, list[str]] = {"train": [], "crossval": []}
        for label, name in enumerate(classes):
            (folder / "kfold" / domain / name).mkdir(parents=True)
            for index in range(per_class):
                file = f"{domain}/{name}/pic_{index:03d}{suffix}"
                Image.new("RGB", (9, 9), (60 * place, 30 * label, index)).save(folder / "kfold" / file)
                lines["train" if index % 2 else "crossval"].append(f"{file} {label + 1}")
        for part, its in lines.items() if split_files else ():
            (folder / f"{domain}_{part}_kfold.txt").write_text("\n".join(its) + "\n")
