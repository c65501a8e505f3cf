"""Networks of timm and torchvision as backbones, and features of a folder from them. Nothing is downloaded."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.data.sources import features as features_file
from pyro_metabayes.data.sources.images import pixels
from pyro_metabayes.experiments.embed import features as embed_features
from pyro_metabayes.models.backbones import timm as timm_backbone
from pyro_metabayes.models.backbones import torchvision as torchvision_backbone
from pyro_metabayes.storage import downloads
from pyro_metabayes.vision import timm, torchvision
from tests.commands import call, ran

TIMM, VISION = "test_vit", "shufflenet_v2_x0_5"
RANDOM_TIMM = ("backbone=timm", f"backbone.name={TIMM}", "backbone.weights=random")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def full_network(library: str) -> nn.Module:
    """A network with its classifier, with random weights."""
    torch.manual_seed(1)
    if library == "timm":
        network: nn.Module = timm().create_model(TIMM)
    else:
        network = torchvision().models.get_model(VISION, weights=None)
    return network.eval()


def saved(library: str, change: Callable[[dict[str, Any]], Any] = dict, name: str = "weights.pth") -> str:
    torch.save(change(full_network(library).state_dict()), name)
    return name


MODULES = {"timm": (timm_backbone.Backbone, TIMM), "torchvision": (torchvision_backbone.Backbone, VISION)}


def backbone_of(library: str, **settings: Any) -> Any:
    target, name = MODULES[library]
    return target(input_shape=(3, 20, 20), **{"name": name, **settings}).eval()


def write_images(folder: str = "pictures", splits: bool = False) -> None:
    random = np.random.default_rng(0)
    for number in range(9):
        place = f"{('train', 'val', 'test')[number % 3]}/" if splits else ""
        inner = Path(folder) / f"{place}c{number}"
        inner.mkdir(parents=True)
        for index in range(8):
            image = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(image).save(inner / f"{index}.png")


# The backbones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", MODULES)
@torch.no_grad()
def test_features_are_those_of_the_library(library: str) -> None:
    backbone = backbone_of(library, weights=saved(library))
    network = full_network(library)
    if library == "timm":
        network.reset_classifier(0)  # type: ignore[operator]
        mean, std, size = [0.5] * 3, [0.5] * 3, 160
    else:
        network.fc = nn.Identity()
        mean, std, size = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 224
    images = torch.rand(2, 3, size, size)
    expected = network((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(backbone(images), nn.functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-6)
    assert backbone.size == size and backbone.pretrained and backbone.num_features == expected.shape[1]


@pytest.mark.parametrize("library", MODULES)
@torch.no_grad()
def test_other_images_are_resized_and_grey_ones_get_colours(library: str) -> None:
    backbone = backbone_of(library, weights="random")
    assert backbone(torch.rand(3, 3, 20, 20)).shape == (3, backbone.num_features) and not backbone.pretrained
    grey = torch.rand(2, 1, 20, 20)
    torch.testing.assert_close(backbone(grey), backbone(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("library", MODULES)
@pytest.mark.parametrize("form", ["safetensors", "training checkpoint", "without classifier", "other classes"])
def test_weights_are_read_in_each_form(library: str, form: str) -> None:
    head = {"timm": "head.", "torchvision": "fc."}[library]
    weights = full_network(library).state_dict()
    bare = {name: value for name, value in weights.items() if not name.startswith(head)}
    if form == "safetensors":
        save_file(weights, "weights.safetensors")
    others = {f"{head}weight": torch.zeros(7, 3), f"{head}bias": torch.zeros(7)}
    contents = {
        "training checkpoint": {"state_dict": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3},
        "without classifier": bare,
        "other classes": bare | others,
    }
    if form in contents:
        torch.save(contents[form], "weights.pth")
    backbone = backbone_of(library, weights="weights.safetensors" if form == "safetensors" else "weights.pth")
    loaded = backbone.network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in bare.items())


@pytest.mark.parametrize("library", MODULES)
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda library: "none.pth", "expected a file of weights, got 'none.pth', which does not exist; set"),
        (
            lambda library: saved(library, lambda state: dict(list(state.items())[5:])),
            r"the \d+ weights of this network in .*, got a file without \d+ of them",
        ),
        (
            lambda library: saved(library, lambda state: {**state, "layer9.weight": torch.zeros(1)}),
            r"got a file with 1 of another name or shape \(layer9.weight\); fix backbone.name",
        ),
        (
            lambda library: saved(library, lambda state: {"a": 1}),
            "load without running code, got: the file is empty, or has values that are not tensors",
        ),
        (lambda library: saved(library, lambda state: full_network(library)), "without running code, got: "),
    ],
)
def test_weights_of_another_network_are_refused(library: str, write: Callable[[str], str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        backbone_of(library, weights=write(library))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", MODULES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet188"}, "expected backbone.name to be a network of .*, got 'resnet188'; did you mean resnet1"),
        ({"name": f"{TIMM}.nope"}, "Invalid pretrained tag|expected backbone.name to be a network of torchvision"),
        (
            {"name": "resnet18.nope"},
            "Invalid pretrained tag|expected the weights in backbone.name=resnet18.* one of IMAGENET1K_V1.*'nope'",
        ),
        ({"name": "hf_hub:someone/something"}, "expected backbone.name to be a network of"),
        (
            {"input_shape": (640,)},
            r"expected images \[1 or 3 channels, height, width\] .*, got inputs of shape \[640\]",
        ),
        ({"input_shape": (4, 8, 8)}, r"got inputs of shape \[4, 8, 8\]"),
    ],
)
def test_wrong_settings_are_named(library: str, settings: dict[str, Any], message: str) -> None:
    target, name = MODULES[library]
    with pytest.raises(UsageError, match=message) as caught:
        target(**{"input_shape": (3, 8, 8), "name": name, "weights": "random", **settings})
    assert "\n" not in str(caught.value)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"expected backbone.name to be a network with a linear layer, got squeezenet1_1"
    ):
        backbone_of("torchvision", name="squeezenet1_1", weights="random")


# The weights of the libraries ------------------------------------------------------------------------


@pytest.mark.parametrize("library", MODULES)
def test_nothing_is_downloaded_by_the_way(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repository, name: None)
    with pytest.raises(
        UsageError, match=rf"weights of .* in the cache, not found; .*prepare data=glyphs backbone={library} "
    ):
        backbone_of(library)


def test_cached_weights_of_timm_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = full_network("timm").state_dict()
    save_file(weights, "model.safetensors")
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repository, name: str(Path(name).absolute()))
    loaded = backbone_of("timm").network.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded)


def cached_weights() -> dict[str, torch.Tensor]:
    """Save random weights in the cache of torch, under the file name of torchvision's weights."""
    url = torchvision().models.get_model_weights(VISION)["DEFAULT"].url
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = full_network("torchvision").state_dict()
    torch.save(weights, file)
    return weights


def test_cached_weights_of_torchvision_are_read() -> None:
    weights = cached_weights()
    loaded = backbone_of("torchvision").network.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded)


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with downloads.allowed(), pytest.raises(UsageError, match=r"expected to download .*, got: .*; save the file as "):
        backbone_of("torchvision")


def test_preparing_data_downloads_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run refuses; `experiments.prepare` tries, here without a network."""
    for variable in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    np.savez("it.npz", features=np.random.default_rng(0).normal(size=(40, 4)), labels=np.arange(40) % 10)
    settings = ("data=features", "data.path=it.npz", "backbone=torchvision", f"backbone.name={VISION}")
    assert call("prepare", *settings).error.startswith("expected to download https")
    cached_weights()
    assert "inputs of shape [4]" in ran("prepare", *settings).out


# In a learner ----------------------------------------------------------------------------------------


def test_a_saved_learner_needs_no_file_of_weights() -> None:
    path = Path(saved("timm"))
    backbone = {"_target_": "models.backbones.timm.Backbone", "name": TIMM, "weights": str(path), "size": 0}
    learner = MetaLearner.build(backbone, "proto", prior="flat", objective="elbo", input_shape=[3, 20, 20], frozen=True)
    learner.save("learner.pt")
    path.unlink()
    support, query = np.random.default_rng(0).random((2, 5, 3, 20, 20))
    one, other = (each.predict(support, np.arange(5), query) for each in (learner, MetaLearner.load("learner.pt")))
    torch.testing.assert_close(one.probabilities, other.probabilities)


def test_a_run_takes_the_weights_as_they_are(folder: Path) -> None:
    write_images(splits=True)
    settings = ("data=image_folder", "data.path=pictures", "data.size=160", "task.way=3", "task.query=2")
    network = ("backbone=timm", f"backbone.name={TIMM}", f"backbone.weights={saved('timm')}")
    out = ran("run", "guide=proto", *settings, *network, "train.steps=2", "eval.tasks=4", "hydra.run.dir=run").out
    assert "pretrain" not in out and "features of 72 inputs with timm" in out
    error = call("pretrain", *settings, *network).error
    assert error == "expected a backbone without weights, got pretrained weights; set backbone.weights=random"
    Path("weights.pth").unlink()
    out = ran("evaluate", "run", "eval.tasks=8").out
    assert "features of" not in out  # they are those of the run


# experiments.embed -----------------------------------------------------------------------------------


def test_embedded_images_are_a_file_of_features() -> None:
    write_images()
    out = ran("embed", "pictures", "out=it.npz", *RANDOM_TIMM).out
    assert out.splitlines()[-1] == "72 images of 9 classes, 64 features each: it.npz"
    arrays = np.load("it.npz")
    assert arrays["files"][8:10].tolist() == ["c1/0.png", "c1/1.png"] and arrays["labels"][8] == "c1"
    torch.manual_seed(0)
    backbone = backbone_of("timm", weights="random")
    image = torch.from_numpy(pixels(Path("pictures/c1/1.png"), 160)).unsqueeze(0) / 255
    torch.testing.assert_close(backbone(image)[0].detach(), torch.from_numpy(arrays["features"][9]))
    bank = features_file.load("it.npz")
    assert len(bank.labels) == 72 and "split" not in arrays


def test_splits_of_the_folder_are_kept() -> None:
    write_images(splits=True)
    ran("embed", "pictures", "out=it.npz", *RANDOM_TIMM)
    bank = features_file.load("it.npz")
    assert [bank.class_names[index] for index in bank.splits["val"].tolist()] == ["c1", "c4", "c7"]


def test_an_interrupted_extraction_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    write_images()
    pieces, piece = [], embed_features._piece

    def interrupted(*arguments: Any) -> Any:
        pieces.append(len(arguments[0]))
        if len(pieces) == 2:
            raise KeyboardInterrupt
        return piece(*arguments)

    monkeypatch.setattr(embed_features, "_piece", interrupted)
    outcome = call("embed", "pictures", "out=it.npz", *RANDOM_TIMM)
    assert outcome.code == 130 and "features of 64 of 72 images are kept: the same command continues" in outcome.err
    assert {path.name for path in Path().iterdir()} == {"pictures", "cache"}
    ran("embed", "pictures", "out=it.npz", *RANDOM_TIMM)
    assert pieces == [64, 8, 8] and len(np.load("it.npz")["features"]) == 72


def test_unreadable_images_are_named() -> None:
    write_images()
    for name in ("c0/1.png", "c8/2.png"):
        Path("pictures", name).write_text("none")
    error = call("embed", "pictures", "out=it.npz", *RANDOM_TIMM).error
    assert "got 2 of 72 that cannot be read: pictures/c0/1.png (the file is not an image), pictures/c8/2.png" in error
    assert not Path("it.npz").exists()


def test_identical_images_are_named() -> None:
    write_images()
    Path("pictures/c3/9.png").write_bytes(Path("pictures/c1/0.png").read_bytes())
    err = ran("embed", "pictures", "out=it.npz", *RANDOM_TIMM).err
    assert "in pictures: 2 rows with a copy in another class of their split (c1/0.png = c3/9.png); remove" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pictures", *RANDOM_TIMM), "expected out=FILE.npz once, got none"),
        (("pictures", "out=it.csv", *RANDOM_TIMM), "expected out=FILE.npz once, got out=it.csv"),
        (
            ("pictures", "out=it.npz", "guide=sib", *RANDOM_TIMM),
            "expected settings of backbone, device, .* 'guide=sib'",
        ),
        (
            ("pictures", "out=it.npz", "backbone=conv4"),
            "expected backbone=timm or backbone=torchvision, got backbone=conv4",
        ),
        (("pictures", "out=it.npz"), "expected backbone=timm or backbone=torchvision, got backbone=conv4"),
        (("out=it.npz", *RANDOM_TIMM), "expected the folder of images first, got 'out=it.npz'; write .*FOLDER out="),
        (("nowhere", "out=it.npz", *RANDOM_TIMM), "expected a folder of images, got 'nowhere'.*; fix the path"),
        (("pictures/c0", "out=it.npz", *RANDOM_TIMM), "pictures/c0, got only files; sort"),
        (("empty", "out=it.npz", *RANDOM_TIMM), "classes in empty, got an empty folder; add images into "),
        (("pictures", "out=it.npz", *RANDOM_TIMM, "backbone.size=-3"), "expected backbone.size >= 0, got -3; 0 "),
        (("pictures", "out=old.npz", *RANDOM_TIMM), "expected a new file for out, got old.npz, which exists"),
        (
            ("pictures", "out=it.npz", *RANDOM_TIMM, "backbone.size=50"),
            "Input height .50. should be divisible by patch",
        ),
        (
            ("pictures", "out=it.npz", *RANDOM_TIMM, "backbone.sise=3"),
            "did you mean 'backbone.size'. backbone=timm takes: name, weights",
        ),
        (("pictures", "out=it.npz", "backbone=timn"), "unknown choice backbone=timn; did you mean 'timm'"),
        (("pictures", "out=it.npz", "backbone=timm"), "expected a value for backbone.name, got none"),
    ],
)
def test_a_wrong_command_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    write_images()
    Path("empty").mkdir()
    Path("old.npz").write_text("")
    error = call("embed", *arguments).error
    assert re.search(message, error), error
    assert not Path("it.npz").exists()
