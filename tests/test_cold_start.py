"""Imports: --help does without torch, an error in the settings without modules that only training needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_metabayes
from pyro_metabayes.experiments.__main__ import commands
from tests.processes import Forks
from tests.test_layout import ROOT, python_files

LATE = ("arviz", "lightning_fabric", "matplotlib", "scipy", "sklearn", "torch._dynamo", "torchmetrics", "torchvision")
SMALL = ("guide=proto", "data=gaussian_features", "train.steps=1", "eval.tasks=2", "train.validation_tasks=2")
# The modules of `names` that are loaded when a command first prints, or exits.
FIRST_PRINT = """
import builtins, runpy, sys
shown = builtins.print
def first(*args, **kwargs):
    shown('\\nloaded', *[name for name in {names!r} if name in sys.modules])
    sys.stdout.flush()
    import os
    os._exit(0)
builtins.print = first
sys.argv = {arguments!r}
try:
    runpy.run_module("pyro_metabayes.experiments", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    first()
"""


def output_without_torch(program: str, folder: Path | None = None) -> str:
    """The output of a program in a new Python process, which has not imported torch."""
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_print(names: tuple[str, ...], *arguments: str) -> str:
    """A program that runs a command until its first printed line, and then prints which of these modules are loaded."""
    return FIRST_PRINT.format(names=names, arguments=["metabayes", *arguments])


def loaded(output: str) -> set[str]:
    """The modules in the last line that the program of `first_print` prints."""
    marker, *names_loaded = output.splitlines()[-1].split()
    assert marker == "loaded", output
    return set(names_loaded)


@pytest.mark.parametrize("arguments", [["--help"], ["rum"]])
def test_the_list_of_commands_imports_no_torch(tmp_path: Path, arguments: list[str]) -> None:
    names = ("torch", "pyro", "numpy", "hydra", *LATE)
    assert loaded(output_without_torch(first_print(names, *arguments), tmp_path)) == set()


def test_no_command_imports_at_its_start_what_only_a_training_needs(forks: Forks) -> None:
    program = "import importlib, sys\n"
    for name, path in commands().items():
        module = f"pyro_metabayes.experiments.{name}" + (".__main__" if path.stem == "__main__" else "")
        program += f"importlib.import_module({module!r})\n"
        program += f"for late in {LATE!r}: assert late not in sys.modules, ({name!r}, late)\n"
    assert forks.output_of(program) == ""


@pytest.mark.parametrize("arguments", [["--help"], ["guide.step=2"]])
def test_help_and_mistakes_import_nothing_of_a_training(forks: Forks, tmp_path: Path, arguments: list[str]) -> None:
    program = first_print(LATE, "run", *SMALL, *arguments)
    assert loaded(forks.output_of(program, folder=tmp_path)) == set()


def test_the_first_line_of_a_run_precedes_the_imports_of_its_training(forks: Forks, tmp_path: Path) -> None:
    assert loaded(forks.output_of(first_print(LATE, "run", *SMALL), folder=tmp_path)) == set()


def test_the_package_is_imported_without_torch() -> None:
    names = ("torch", "pyro", "numpy", *LATE)
    program = f"import pyro_metabayes, sys; print([n for n in {names!r} if n in sys.modules])"
    assert output_without_torch(program) == "[]\n"


def test_the_names_of_the_package_import_nothing_of_a_training(forks: Forks) -> None:
    """FewShotClassifier imports scikit-learn, from which it is derived."""
    program = "import sys, pyro_metabayes as m; [getattr(m, n) for n in m.__all__ if n != 'FewShotClassifier']\n"
    program += f"print([name for name in {(*LATE, 'filelock')!r} if name in sys.modules])"
    assert forks.output_of(program) == "[]\n"


def test_every_public_name_is_listed_and_found() -> None:
    assert set(pyro_metabayes.__all__) <= set(dir(pyro_metabayes))
    for name in pyro_metabayes.__all__:
        assert getattr(pyro_metabayes, name).__name__ == name
    namespace: dict[str, object] = {}
    exec("from pyro_metabayes import *", namespace)
    assert set(pyro_metabayes.__all__) <= set(namespace)


def test_a_module_of_the_package_is_an_attribute_without_an_import(forks: Forks) -> None:
    assert forks.output_of("import pyro_metabayes as m; print(m.episodes.Episodes is m.Episodes)") == "True\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pyro_metabayes' has no attribute 'Metalearner'"):
        pyro_metabayes.Metalearner  # noqa: B018
    assert not hasattr(pyro_metabayes, "__wrapped__")


SETTING = "\nimport pyro; print(pyro.settings.get('module_local_params'))"


@pytest.mark.parametrize(
    "imports",
    [
        "import pyro, pyro_metabayes",  # a program may build its own Pyro modules now
        "import pyro_metabayes, pyro; pyro_metabayes.Model",
        "from pyro_metabayes import MetaLearner",
        "import pyro_metabayes.objectives.elbo",
        "import pyro_metabayes.guides.sib",
    ],
)
def test_any_order_of_imports_sets_local_parameters(forks: Forks, imports: str) -> None:
    """With Pyro's global store two modules of one name share their values."""
    assert forks.output_of(imports + SETTING) == "True\n"


def test_pyro_modules_are_built_through_one_class() -> None:
    """`Program`, whose file sets module_local_params: no other file of ours names Pyro's classes."""
    used = re.compile(r"\b(PyroModule|pyro\.nn)\b")
    code = {path: (ROOT / path).read_text(encoding="utf-8") for path in python_files()}
    lines = {path: [line for line in text.splitlines() if "import" in line] for path, text in code.items()}
    naming = {path for path, imports in lines.items() if any(map(used.search, imports))}
    assert naming == {Path("pyro_metabayes/handlers/parameters.py")}
