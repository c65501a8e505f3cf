"""python docs/site/pages.py: copy the pages of the site to build/pages, with the folders of the repository.

So a relative link works on GitHub and on the site. The folder also gets the built notebooks (build/notebooks), and
reference pages of all modules except the commands.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "build" / "pages"
AT_THE_TOP = ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")
PACKAGE = ROOT / "build" / "package"  # as it is installed; the commands are not part of the reference


def repository_files() -> list[Path]:
    """Pages, pictures, the style sheet and the script of the site."""
    in_docs = sorted(path for path in (ROOT / "docs").rglob("*") if path.suffix in {".md", ".png", ".css", ".js"})
    return [*(ROOT / name for name in AT_THE_TOP), *in_docs]


def reference() -> dict[str, list[str]]:
    """Return the modules of each package, without the commands."""
    found: dict[str, list[str]] = {}
    for path in sorted((PACKAGE / "pyro_metabayes").rglob("*.py")):
        *package, module = path.relative_to(PACKAGE).with_suffix("").parts
        if "experiments" in package:
            continue
        found.setdefault(".".join(package), []).append(module)
    return found


def reference_page(package: str, modules: list[str]) -> str:
    """The package's docstring, then its modules, for mkdocstrings to fill in."""
    head = f"::: {package}\n    options: {{members: false, heading_level: 1}}\n"
    return "\n".join([head, *(f"::: {package}.{module}\n" for module in modules if module != "__init__")])


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in repository_files():
        target = PAGES / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(ROOT / "build" / "notebooks", PAGES / "notebooks")
    (PAGES / "reference").mkdir()
    for package, modules in reference().items():
        (PAGES / "reference" / f"{package}.md").write_text(reference_page(package, modules))


if __name__ == "__main__":
    main()
