"""What every test finds: one thread, a fixed seed, validation on, and a cache of its own."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from pyro_metabayes.experiments.cli.command import CONF
from tests.commands import on_features, ran, write_features
from tests.composition_cache import composed_once
from tests.processes import Forks, forks_of_torch

os.environ["MPLBACKEND"] = "Agg"  # before matplotlib is imported, here or in a process that a test starts
NOTHING_DRAWN = b"\x89PNG\r\n\x1a\n"
torch.set_num_threads(1)
# A shell starts jobs in the background with SIGINT ignored, and processes that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# torch.manual_seed records a stack trace for each kind of accelerator that is not in use: half a millisecond per call.
traceback.format_stack = lambda *args, **kwargs: []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    """Hypothesis would parse every file of the package, half a minute per worker, to draw its constants as examples."""
    if "hypothesis" in sys.modules:
        from hypothesis.internal.conjecture import providers

        providers._get_local_constants = providers.Constants


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Half a million objects of imported modules outlive the tests: to visit them again and again is a tenth of all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """Hydra parses two dozen files for every configuration that it composes, and they are the same in every test."""
    load = OmegaConf.load
    parsed = functools.cache(lambda path: yaml.load(Path(path).read_text(encoding="utf-8"), Loader=get_yaml_loader()))

    def load_once(file: Any) -> Any:
        path = str(getattr(file, "name", file))
        return OmegaConf.create(parsed(path) or {}) if path.startswith(CONF) else load(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(load_once))
        with composed_once():
            yield


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One METABAYES_CACHE for the session, shared by its workers: nothing of an earlier run is read, none is kept."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METABAYES_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Seeds of torch, numpy and random; validation, which a run turns off; parameter store; dtype."""
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)  # whatever a fixture of a whole module has left
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session", autouse=True)
def savefig(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """What draws a picture; each kind of picture is drawn once, since that is half of what a small run costs.

    Every function that makes one is called as ever, but what it has put together is laid out and drawn the first time
    only, for each set of panels. With slow tests all are drawn.
    """
    from matplotlib.figure import Figure

    from pyro_metabayes.experiments.runs.plots import save_figure

    draw, drawn = Figure.savefig, set[tuple[Any, ...]]()

    def once(figure: Figure, file: Any, *args: Any, **kwargs: Any) -> None:
        called = [frame.f_code for frame, _ in traceback.walk_stack(None)]
        makers = [maker for callee, maker in pairwise(called) if callee is save_figure.__code__]
        kind = *makers, kwargs.get("format"), *(axis.get_title() for axis in figure.axes)
        if makers and kind in drawn:
            Path(file).write_bytes(NOTHING_DRAWN)
        else:
            draw(figure, file, *args, **kwargs)
            drawn.add(kind)

    with pytest.MonkeyPatch.context() as patch:
        if "not slow" in request.config.option.markexpr:
            patch.setattr(Figure, "savefig", once)
        yield draw


@pytest.fixture
def every_picture_is_drawn(savefig: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that asks for what is in the file."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture
def metabayes_data() -> Path:
    """The folder of real data; without METABAYES_DATA the test is skipped, with a wrong one it fails."""
    folder = os.environ.get("METABAYES_DATA")
    if not folder:
        pytest.skip("METABAYES_DATA is unset: no folder of real data")
    if not Path(folder).is_dir():
        pytest.fail(f"METABAYES_DATA is no folder: {folder}")
    return Path(folder)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder of a command that is tried out."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs programs in processes of their own."""
    with forks_of_torch(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("features") / "features.npz")


@pytest.fixture(scope="session")
def finished(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of sib."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    ran("run", *on_features(features), f"hydra.run.dir={folder}", "guide=sib")
    return folder
