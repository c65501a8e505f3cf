"""Fixtures of all tests: one thread, a fixed seed, Pyro's validation on, and a cache that only the tests use."""

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
    """Stop Hypothesis from reading constants of the package as examples, which takes half a minute per worker."""
    if "hypothesis" in sys.modules:
        from hypothesis.internal.conjecture import providers

        providers._get_local_constants = providers.Constants


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exclude the objects of imported modules from garbage collection, which otherwise takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """Parse each YAML file once. Hydra would parse two dozen files for every configuration."""
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
    """One new METABAYES_CACHE for the session, shared by all workers. It holds nothing of earlier sessions."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METABAYES_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Set the seeds of torch, numpy and random, validation (which a run turns off), parameter store and dtype."""
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)  # whatever a fixture of a whole module has left
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session", autouse=True)
def savefig(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """The function that saves figures. Each kind of plot is drawn once, since plots take half the time of a small run.

    Functions that make plots are called as usual, but a figure is laid out and drawn only the first time for each set
    of panels. With slow tests, all figures are drawn.
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
    """Fixture of tests that read the files of plots: every plot is drawn."""
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
    """An empty current folder for a command."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A server that runs programs in new processes."""
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
