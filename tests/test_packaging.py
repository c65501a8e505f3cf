"""Do the files of a release agree: version, Python versions, addresses, make targets?"""

from __future__ import annotations

import re
import tomllib

import yaml

import pyro_metabayes
from tests.commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def test_one_version_stands_everywhere() -> None:
    changelog = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert changelog is not None
    assert {PROJECT["version"], changelog[1], citation["version"]} == {pyro_metabayes.__version__}
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_the_workflow_runs_make_on_every_python_that_is_claimed() -> None:
    matrix = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]
    claimed = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python": claimed}
    runs = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert runs and all(run.split()[0] == "make" and run.split()[1] in targets for run in runs)


def test_every_extra_is_pinned() -> None:
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for extra, requirements in PROJECT["optional-dependencies"].items():
        names = [re.split(r"[^\w.-]", name)[0].lower() for name in requirements if "pyro_metabayes[" not in name]
        assert set(names) <= pins, extra


def test_the_templates_of_issues_name_our_addresses() -> None:
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    links = yaml.safe_load((folder / "config.yml").read_text())["contact_links"]
    assert [link["url"].startswith(tuple(PROJECT["urls"].values())) for link in links] == [True, True]
    for name in ("bug.yml", "feature.yml"):
        form = yaml.safe_load((folder / name).read_text())
        assert {"name", "description", "body"} <= form.keys() and all(
            "label" in part["attributes"] for part in form["body"]
        )
