"""python docs/site/notebooks.py [01 ...]: execute notebooks/*.py, each in an empty folder, into build/notebooks.

Each becomes a notebook to download and a page of the site. An error in a cell is an error of the build.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "notebooks"
FOOT = "\n\nThis page is executed with every build. [Download it as a notebook]({}).\n"


def executed(path: Path) -> nbformat.NotebookNode:
    notebook = jupytext.read(path)
    with TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        # As a terminal shows it: of a progress bar its end, which is nothing.
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place, coalesce_streams=True)
        client.extra_arguments = ["--log-level=ERROR"]
        client.execute()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if output.output_type == "stream":
            output.text = output.text.replace(f"{folder}/", "")
    return notebook


def write(notebook: nbformat.NotebookNode, name: str) -> None:
    """NAME.ipynb, NAME.md and its pictures."""
    nbformat.write(notebook, OUT / f"{name}.ipynb")
    page, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": f"{name}_files"})
    (OUT / f"{name}.md").write_text(page + FOOT.format(f"{name}.ipynb"))
    for file, content in resources["outputs"].items():
        (OUT / file).parent.mkdir(exist_ok=True)
        (OUT / file).write_bytes(content)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the `python` of a cell
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # tqdm would like to draw its bars with a widget
    chosen = tuple(sys.argv[1:]) or ("",)
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        if path.stem.startswith(chosen):
            write(executed(path), path.stem)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"notebooks: {used.ru_utime + used.ru_stime:.0f} s of CPU time")


if __name__ == "__main__":
    main()
