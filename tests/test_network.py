"""Only `experiments.prepare` uses the network. Other code uses it neither at import nor when it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.commands import ROOT, on_features

# Ends the process at the first name that is looked up, or address that is spoken to; children cannot be watched,
# so none may be started but git, which a run asks for its commit.
SEALED = """
import os, runpy, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        os.write(2, f"network: {event} {arguments}".encode())
        os._exit(77)
    if event == "subprocess.Popen" and arguments[0] != "git":
        os.write(2, f"another program: {arguments[:2]}".encode())
        os._exit(78)

sys.addaudithook(watch)
"""
COMMANDS = """
import pyro_metabayes.experiments.run
for path in {paths}:
    __import__(path)
for name, *arguments in {commands}:
    sys.argv = [name, *arguments]
    runpy.run_module(f"experiments.{{name}}", run_name="__main__", alter_sys=True)
"""


def sealed(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SEALED + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", 77),
        ("import urllib.request; urllib.request.urlopen('http://localhost:9')", 77),
        ("import subprocess; subprocess.run(['curl', 'localhost'])", 78),
    ],
)
def test_the_network_is_noticed(code: str, exit_code: int, tmp_path: Path) -> None:
    assert sealed(code, tmp_path).returncode == exit_code


def test_every_module_and_a_run_from_start_to_end_stay_off_the_network(features: Path, tmp_path: Path) -> None:
    folders = ("pyro_metabayes", "models", "guides", "experiments")
    files = [path.relative_to(ROOT).with_suffix("") for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = sorted(".".join(path.parts).removesuffix(".__init__") for path in files)
    paths = [name if name.startswith("pyro_metabayes") else f"pyro_metabayes.{name}" for name in names]
    commands = [
        ["run", *on_features(features), "guide=sib", "hydra.run.dir=run"],
        ["run", "resume=run", "train.steps=3"],
        ["evaluate", "run", "guide.num_steps=0"],
        ["verify", "run"],
        ["compare", "run", "--out", "out"],
    ]
    outcome = sealed(COMMANDS.format(paths=paths, commands=commands), tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert "equal: the " in outcome.stdout and (tmp_path / "out" / "table.md").exists()


def test_every_download_asks_whether_it_may() -> None:
    """And there are no others than these four."""
    fetches = re.compile(
        r"download=True|download_url\(|urlopen|urlretrieve|import (requests|httpx|aiohttp|socket|urllib)"
        r"|pretrained=True|dict_from_url|hub_download"
    )
    files = [
        path
        for folder in ("pyro_metabayes", "models", "guides", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    ]
    found = {path.relative_to(ROOT).as_posix(): path.read_text() for path in files if fetches.search(path.read_text())}
    assert sorted(found) == [
        *("models/backbones/timm.py", "models/backbones/torchvision.py"),
        *("pyro_metabayes/data/sources/cifar100.py", "pyro_metabayes/data/sources/omniglot.py"),
    ]
    assert all("refuse_unless_allowed(" in text for text in found.values())


def test_every_pin_is_of_one_version_and_every_dependency_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    asked = {re.split(r"[<>=\[ ]", name)[0].lower().replace("_", "-") for name in (*project["dependencies"], *extras)}
    assert asked - {"pyro-metabayes"} <= pinned.keys()
