"""python docs/site/notebooks.py [--keep] [01 ...]: execute notebooks/*.py, each in an empty folder.

The results are a notebook to download and a page of the site, in build/notebooks. With --keep, the notebook is also
written to notebooks/, where the repository stores it. The build fails if a cell raises an error. It also fails if a
cell with a plot has no alternative text, such as # %% alt="Accuracy against the number of labelled rows".
"""

from __future__ import annotations

import base64
import io
import os
import re
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from PIL import Image

ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "notebooks"
OUT = ROOT / "build" / "notebooks"
FOOT = "\n\nThis page is executed with every build. [Download it as a notebook]({}).\n"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Progress bars, plain lines of progress and the log of Hydra's launcher, which contain times.
PROGRESS = re.compile(r"^(?:.*\d%\|.*|.+: \d+ of \d+ \w+.*|\[[-\d:, ]+\]\[HYDRA\].*)\n", re.MULTILINE)
NEIGHBOUR = re.compile(r"\]\((\d\d_\w+)\.ipynb")  # a link to another notebook, which is a page on the site
PLOT = re.compile(r"!\[png\]\((\S+/output_(\d+)_\d+\.png)\)")  # with the number of its cell
FORMULA = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)  # becomes a ```math block on the site


def executed(path: Path) -> nbformat.NotebookNode:
    notebook = jupytext.read(path)
    with TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        # With coalesce_streams only the last state of a progress bar remains, and PROGRESS removes it.
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place, coalesce_streams=True)
        client.record_timing, client.extra_arguments = False, ["--log-level=ERROR"]
        client.execute()
    return reproducible(notebook, folder)


def reproducible(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """The notebook without random ids, times, versions and the folder in which it was executed.

    Of the metadata of a cell only `alt` remains.
    """
    notebook.metadata, notebook.nbformat_minor = nbformat.from_dict(METADATA), 5
    for number, cell in enumerate(notebook.cells, 1):
        alt = {name: value for name, value in cell.metadata.items() if name == "alt"}
        cell.id, cell.metadata = f"cell-{number:02d}", nbformat.from_dict(alt)
        cell.source = cell.source.strip("\n")  # without the empty lines between cells of the text
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                text = output.text.replace("\r\n", "\n").replace(f"{folder}/", "")
                output.text = PROGRESS.sub("", text)
            elif "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    return notebook


def smaller(png: str) -> str:
    """A PNG in base64 with at most 256 colours, and without the version of matplotlib."""
    picture, buffer = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def write(notebook: nbformat.NotebookNode, name: str, keep: bool) -> None:
    """Write NAME.ipynb, and NAME.md with its images. With `keep`, also write notebooks/NAME.ipynb."""
    for folder in (OUT, TEXTS) if keep else (OUT,):
        nbformat.write(notebook, folder / f"{name}.ipynb")
    page, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": f"{name}_files"})
    page = PLOT.sub(lambda plot: f"![{alternative_text(notebook, int(plot[2]), name)}]({plot[1]})", page)
    page = FORMULA.sub(r"```math\n\1\n```", NEIGHBOUR.sub(r"](\1.md", page))
    (OUT / f"{name}.md").write_text(page + FOOT.format(f"{name}.ipynb"))
    for file, content in resources["outputs"].items():
        (OUT / file).parent.mkdir(exist_ok=True)
        (OUT / file).write_bytes(content)


def alternative_text(notebook: nbformat.NotebookNode, place: int, name: str) -> str:
    """Return the alternative text of the plot of a cell, for readers who do not see the plot."""
    cell = notebook.cells[place]
    if "alt" not in cell.metadata:
        sys.exit(f'error: expected # %% alt="..." above cell {place + 1} of {name}, which has a plot; got no text')
    return str(cell.metadata.alt)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cells call `metabayes`
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # tqdm warns if ipywidgets is not installed
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in the same order on every machine
    keep = "--keep" in sys.argv
    chosen = tuple(argument for argument in sys.argv[1:] if argument != "--keep") or ("",)
    for path in sorted(TEXTS.glob("*.py")):
        if path.stem.startswith(chosen):
            write(executed(path), path.stem, keep)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"notebooks: {used.ru_utime + used.ru_stime:.0f} s of CPU time")


if __name__ == "__main__":
    main()
