"""Imports go one way: experiments -> {models, guides} -> pyro_metabayes -> third parties."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyro_metabayes.build import full_name

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 200

# What the files of a folder must not import: those above and beside it; settings reach them as plain values.
# A folder is a part of the package, whose modules are imported by their full names: once under one name.
FOLDERS = ("models", "guides", "experiments")
COMMAND_LINE = {"pyro_metabayes.experiments", "hydra", "omegaconf"}
FORBIDDEN = {
    "pyro_metabayes": COMMAND_LINE | {"pyro_metabayes.models", "pyro_metabayes.guides"},
    "models": COMMAND_LINE | {"pyro_metabayes.guides"},
    "guides": COMMAND_LINE | {"pyro_metabayes.models"},
    "experiments": set(),
}
ONLY_IN = {
    name: Path("pyro_metabayes/vision.py") for name in ("torchvision", "timm")
}  # its import can fail beside another torch


def python_files(root: Path = ROOT) -> list[Path]:
    """Relative paths of the Python files in the four folders."""
    return sorted(path.relative_to(root) for folder in FORBIDDEN for path in (root / folder).rglob("*.py"))


def yaml_files() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / "experiments/conf").rglob("*.yaml"))


def imported(source: str) -> set[str]:
    """Top-level names of all imports, also inside functions. Names of our folders include the package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            full = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in full:
            top, _, rest = name.partition(".")
            inner = rest.partition(".")[0]
            names.add(f"{top}.{inner}" if top == "pyro_metabayes" and inner in FOLDERS else top)
    return names


def offences(path: Path, root: Path = ROOT) -> list[str]:
    """The imports of one file that break a rule; `path` is relative to `root`."""
    names = imported((root / path).read_text(encoding="utf-8"))
    refused = names & (FORBIDDEN[path.parts[0]] | {*FOLDERS, "tests", "benchmarks", ""})  # "" is a relative import
    refused |= {name for name, home in ONLY_IN.items() if name in names and path != home}
    return [f"{path} imports {name or 'relatively'}" for name in sorted(refused)]


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a tree of settings that is not an interpolation."""
    if isinstance(node, dict):
        name = node.get("_target_")
        if isinstance(name, str) and "${" not in name:
            yield name
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


def targets_in(path: Path) -> set[str]:
    return set(targets(yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))))


def guide_files() -> list[Path]:
    return [path for path in python_files() if path.parts[0] == "guides" and path.name != "__init__.py"]


def test_no_folder_is_empty() -> None:
    """Else the tests below would pass for want of files."""
    assert {path.parts[0] for path in python_files()} == set(FORBIDDEN)
    assert guide_files() and yaml_files()


def test_imports_go_one_way() -> None:
    assert [offence for path in python_files() for offence in offences(path)] == []


@pytest.mark.parametrize(
    ("path", "line", "name"),
    [
        ("pyro_metabayes/planted.py", "from pyro_metabayes.models.heads import Linear", "pyro_metabayes.models"),
        ("pyro_metabayes/data/planted.py", "import pyro_metabayes.guides.sib as sib", "pyro_metabayes.guides"),
        ("pyro_metabayes/planted.py", "def f():\n    from omegaconf import OmegaConf", "omegaconf"),
        ("pyro_metabayes/planted.py", "if True:\n    import hydra", "hydra"),
        ("pyro_metabayes/planted.py", "from . import models", "relatively"),
        ("models/planted.py", "import torch, guides", "guides"),
        ("models/planted.py", "from pyro_metabayes import guides", "pyro_metabayes.guides"),
        ("models/backbones/planted.py", "import torchvision.models", "torchvision"),
        ("guides/planted.py", "from pyro_metabayes.models import priors", "pyro_metabayes.models"),
        ("guides/planted.py", "from .sib import Guide", "relatively"),
        ("guides/planted.py", "import pyro_metabayes.experiments.run", "pyro_metabayes.experiments"),
        ("experiments/planted.py", "from experiments.runs import results", "experiments"),
        ("experiments/planted.py", "from torchvision import datasets", "torchvision"),
        ("models/backbones/planted.py", "import timm", "timm"),
        ("experiments/planted.py", "from tests.pairs import Pair", "tests"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, path: str, line: str, name: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"{line}\n", encoding="utf-8")
    assert python_files(tmp_path) == [Path(path)]
    assert offences(Path(path), tmp_path) == [f"{path} imports {name}"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pyro_metabayes/vision.py", "def load():\n    import torchvision"),
        ("guides/planted.py", "from pyro_metabayes.episodes import Observed\nimport modelstore"),
        ("experiments/planted.py", "import hydra\nfrom pyro_metabayes import guides, models"),
    ],
)
def test_an_allowed_import_is_let_through(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"{line}\n", encoding="utf-8")
    assert offences(Path(path), tmp_path) == []


def is_command(path: Path) -> bool:
    """Whether a file of experiments/ is a command, i.e. calls its program."""
    return 'if __name__ == "__main__"' in (ROOT / path).read_text(encoding="utf-8")


def test_no_command_imports_another() -> None:
    commands = [path for path in python_files() if path.parts[0] == "experiments" and is_command(path)]
    assert len(commands) > 15
    names = {"pyro_metabayes." + ".".join(path.with_suffix("").parts): path for path in commands}
    for path in commands:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        allowed = {name for name, other in names.items() if other == path}
        assert not {name for name in found if name in names} - allowed, path


FULL = 14  # Python files of a folder; models, guides and sources of data may be any number


def test_folders_show_the_structure() -> None:
    counts = Counter(path.parent for path in python_files())
    unlimited = {Path("guides"), Path("models"), Path("pyro_metabayes/data/sources")}
    assert {folder: number for folder, number in counts.items() if number > FULL and folder not in unlimited} == {}


UNPICKLES = re.compile(
    r"pickle\.(loads?|_?Unpickler)\b|from pickle import .*\b(loads?|_?Unpickler)\b|allow_pickle=True|weights_only=False"
    r"|\b(import|from) (cloudpickle|dill|joblib|marshal|shelve)\b|datasets\.CIFAR100\("
)


def test_one_file_alone_unpickles() -> None:
    """storage/unpickle.py, which runs nothing of what it reads; torchvision's data sets unpickle by themselves."""
    found = [str(path) for path in python_files() if UNPICKLES.search((ROOT / path).read_text(encoding="utf-8"))]
    assert found == ["pyro_metabayes/storage/unpickle.py"]


@pytest.mark.parametrize("line", ["x = pickle.load(file)", "np.load(f, allow_pickle=True)", "import dill"])
def test_a_planted_unpickler_is_caught(line: str) -> None:
    assert UNPICKLES.search(line) and not UNPICKLES.search("from pickle import UnpicklingError")


def test_files_are_named_for_what_they_hold() -> None:
    assert [path for path in python_files() if path.name in {"utils.py", "common.py", "base.py"}] == []


def test_files_hold_one_concept() -> None:
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_guide_can_be_chosen() -> None:
    chosen = {name for file in yaml_files() if file.parent.name == "guide" for name in targets_in(file)}
    for path in guide_files():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert "Guide" in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, path
        assert f"guides.{path.stem}.Guide" in chosen, f"no YAML in experiments/conf/guide/ names {path}"


def test_every_target_exists() -> None:
    for path in yaml_files():
        for name in targets_in(path):
            module, _, attribute = full_name(name).rpartition(".")
            assert callable(getattr(importlib.import_module(module), attribute)), f"{path}: {name}"
