"""The commands, the code and the links of README.md, docs/ and the other pages work as written.

Blocks marked `bash` or `python` are run in order, with small sizes. Every other command (blocks marked `sh`, indented
blocks, commands within a line) is only composed, which checks the names and types of its settings.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks.few_shot.page import MARK
from pyro_metabayes.build import check
from pyro_metabayes.experiments.calibration.__main__ import CalibrationSettings
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.cli.overrides import quote_literals
from pyro_metabayes.experiments.gold.__main__ import GoldSettings
from pyro_metabayes.experiments.predictive.__main__ import PredictiveSettings
from pyro_metabayes.experiments.runs.restore_run import settings_of
from pyro_metabayes.specification.parts import check_parts
from tests.commands import ROOT, call, ran

TOP = ("README.md", "CONTRIBUTING.md", "RESULTS.md", "CHANGELOG.md")
PAGES = [*TOP, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUN = [page for page in PAGES if BLOCK.search((ROOT / page).read_text())]
# A command in a block or indented, on one or more lines, or within a line.
COMMAND = re.compile(
    r"^ *(?:srun )?(?:make|python -m|torchrun|metabayes) (?:.*\\\n)*.*$|`((?:make|python -m|torchrun) [^`]+)`",
    re.MULTILINE,
)
VARIABLE = re.compile(r'^([A-Z]+)="(.*?)"', re.MULTILINE)
# The page's commands at a size for tests: two steps, a thin backbone, few tasks.
SMALL = ("train.steps=2", "train.validation_tasks=4", "eval.tasks=8", "eval.samples=2")
NUMBER = itertools.count()
THIN = ("data.images_per_class=2", "task.query=1", "pretrain.epochs=1", "backbone.num_filters=4")

FREE = {
    "guide=mine": "guide=mean_field",
    "model=mine": "model=linear_regression",
    "prior=mine": "prior=gaussian",
    "head=mine": "head=cosine",
    "objective=mine": "objective=elbo",
    "data=mine": "data=sinusoid",
    "guide=NAME": "guide=sib",
    "experiments.NAME": "experiments.run",
    "=DATA": "=glyphs",
    "=NAME": "=glyphs",
    "=K": "=1",
}  # for the reader to fill in
STUDIES = ("ablate", "collapse", "domain_adaptation", "information", "partial_pooling")
HYDRA = (*STUDIES, "prepare", "pretrain", "reproduce")  # `--cfg job` composes, and no more
OF_RUNS = {"calibration": CalibrationSettings, "gold": GoldSettings, "predictive": PredictiveSettings}
# A guide, and a model or data where it brings none, that has the setting which an evaluation changes.
OF_GUIDES = (["guide=sib"], ["guide=leo"], ["guide=platipus"], ["guide=partial_pooling", "data=groups"])


@pytest.mark.parametrize("page", RUN)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in BLOCK.findall((ROOT / page).read_text()):
        if language == "python":
            exec(compile(text, page, "exec"), names)
        else:
            for line in text.splitlines():
                run_line(line)


def run_line(line: str) -> None:
    """Run one command of a page. Studies that take minutes are left out."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[:2] == ["python", "-m"], line
    name, arguments = words[2].removeprefix("experiments."), words[3:]
    if name == "run":
        features = any(argument.startswith(("data=", "resume=")) for argument in arguments)
        arguments += [*SMALL, *(() if features else THIN)]
        if not any(argument == "-m" or argument.startswith(("hydra.run.dir=", "resume=")) for argument in arguments):
            arguments.append(f"hydra.run.dir=runs/{next(NUMBER)}")  # the default has the second at which a run begins
    ran(name, *arguments)


def commands_of(text: str) -> Iterator[str]:
    """Every command of a page that is not run, with its variables filled in."""
    text = BLOCK.sub("", text)
    variables = dict(VARIABLE.findall(text))
    for found in COMMAND.finditer(text):
        command = Template(" ".join((found[1] or found[0]).replace("\\\n", " ").split())).safe_substitute(variables)
        command = re.sub("^ *metabayes ", "python -m experiments.", command)
        for free, filled in FREE.items():
            command = re.sub(rf"{free}\b", filled, command)
        yield command


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_compose(page: str) -> None:
    for command in dict.fromkeys(without_numbers(its) for its in commands_of((ROOT / page).read_text())):
        program, *words = shlex.split(command.removeprefix("srun "), comments=True)
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
            continue
        if program == "torchrun" and "-m" not in words:  # a script of the reader
            continue
        _, module, *arguments = words[words.index("-m") :]
        assert importlib.util.find_spec(module), command
        if module.startswith("experiments."):
            compose(module.removeprefix("experiments."), arguments)
        elif module == "pytest":
            assert all((ROOT / word).exists() for word in arguments if word.endswith(".py")), command


def without_numbers(command: str) -> str:
    """The command with fixed numbers, so that commands that differ only in numbers are composed once."""
    command = re.sub(r"\b(seed|task\.\w+|eval\.tasks)=\d+", r"\1=2", command)
    return re.sub(r"(=[\d.e-]+)(,[\d.e-]+)+(?= |$)", r"\1", command)


def compose(name: str, arguments: Sequence[str]) -> None:
    """Check a command without running it."""
    if not arguments or "--help" in arguments or "--cfg" in arguments:  # the name of a command, in passing
        return
    if name == "run":
        for settings in sweep([argument for argument in arguments if argument != "-m"]):
            compose_run(settings)
    elif name == "evaluate":
        settings = [argument for argument in arguments[1:] if not argument.startswith("eval.")]
        assert any(composes([*guide, *settings]) for guide in OF_GUIDES), arguments
    elif name in OF_RUNS:
        settings_of(OF_RUNS[name], arguments)
    elif name in HYDRA:
        ran(name, *arguments, "--cfg", "job")
    else:
        known = call(name, "--help").out
        assert all(word in known for word in arguments if word.startswith("--")), arguments


def sweep(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of values, as `-m` runs them."""
    choices = []
    for override in OverridesParser.create().parse_overrides(quote_literals(arguments, sweep=True)):
        key = override.get_key_element()
        swept = override.is_sweep_override()
        choices.append([f"{key}={its}" for its in override.sweep_string_iterator()] if swept else [override.input_line])
    return list(itertools.product(*choices))


def compose_run(settings: Sequence[str]) -> None:
    if not any(setting.startswith("resume=") for setting in settings):
        config = config_of([setting for setting in settings if not re.match(r"\+?hydra[./]", setting)])
        check_parts(config.specification())
        check(config.source(), "data", ())


def composes(settings: Sequence[str]) -> bool:
    try:
        compose_run(settings)
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    "command",
    [
        "python -m experiments.run guide=sibb",
        "python -m experiments.run -m guide=sib,mc guide.num_steps=3",
        "python -m experiments.run guide=sib guide.num_step=3",
        "python -m experiments.run train.step=3",
        "python -m experiments.evaluate RUN guide.num_step=3",
        "python -m experiments.collapse study=gaussian_meen",
        "python -m experiments.compare runs --output table",
        "python -m experiments.gold RUN task=32",
        "python -m experiments.partial_pooling study=radium",
        "python -m experiments.rum",
        "make tests",
    ],
)
def test_a_planted_mistake_is_found(command: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"First `{command}`, then that.\n")
    with pytest.raises(Exception):  # noqa: B017  whatever the command itself would raise
        test_other_commands_compose(str(tmp_path / "page.md"))


TWO_FORMS = {"CONTRIBUTING.md", "CHANGELOG.md", "docs/install.md", "docs/command-line.md"}  # these explain both


@pytest.mark.parametrize("page", sorted({*PAGES} - TWO_FORMS))
def test_commands_have_one_form(page: str) -> None:
    """`python -m experiments.NAME`; README.md says that `metabayes NAME` is the same."""
    text = (ROOT / page).read_text()
    forms = "`python -m experiments.NAME`, in the root of the clone, and `metabayes NAME`, in any folder"
    same = f"{forms}, are the same command."
    assert text.count(same) == (page == "README.md")
    assert not re.search(r"(?:`|^ *)metabayes [a-z]", text.replace(same, ""), re.MULTILINE)


def anchors_of(page: str) -> set[str]:
    """The anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    shown = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or path.suffix != ".md" or anchor in anchors_of(path.read_text()), f"{target}#{anchor}"


def test_tables_are_written_into_pages_that_have_their_marks() -> None:
    commands = [re.findall(r"few_shot\.page \S+ (docs/\S+\.md)", (ROOT / page).read_text()) for page in PAGES]
    pages = {ROOT / path for found in commands for path in found}
    assert pages == {path for path in (ROOT / "docs").rglob("*.md") if path.read_text().count(MARK) == 1}


COUNTED = "quer(y|ies)|images?|rows?|points?|draws?|tasks?|steps?|nats?|ms|seconds?|bytes?|threads?|TFLOP|MB"
LABELLED = (*(ROOT / "docs/tables").glob("*.csv"), *(ROOT / "experiments/conf").rglob("*.yaml"))
LABELS = sorted(path.relative_to(ROOT).as_posix() for path in LABELLED)


@pytest.mark.parametrize("file", [*PAGES, *LABELS])
def test_rates_are_written_with_per(file: str) -> None:
    """As in "5 queries per class", not with "a"."""
    rate = rf"\b[\d.,]+ ({COUNTED}) an? (class|task|step|run|row|query|second|image|draw|call)\b.*"
    assert not (found := re.search(rate, (ROOT / file).read_text())), found


@pytest.mark.parametrize("page", PAGES)
def test_tables_have_at_most_seven_columns(page: str) -> None:
    rows = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
    wide = [row for row in rows if len(re.findall(r"(?<!\\)\|", row)) - 1 > 7]
    assert not wide, wide[0]


@pytest.mark.parametrize("page", PAGES)
def test_cells_of_tables_are_short(page: str) -> None:
    """A reader of a phone scrolls; a paragraph belongs below the table."""
    shown = re.sub(r"<!--.*?-->|`|\*\*|\\(?=\|)|\]\([^)]*\)|\[(?=[^|\]]*\]\()", "", (ROOT / page).read_text())
    cells = [cell.strip() for line in shown.splitlines() if line.startswith("|") for cell in line.split(" | ")]
    assert max(map(len, cells), default=0) <= 65, max(cells, key=len)


@pytest.mark.parametrize("page", PAGES)
def test_a_plot_exists_and_its_text_says_what_it_shows(page: str) -> None:
    for text, target in re.findall(r"!\[([^\n]*?)\]\(([^)\n]*\.png)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
        assert len(text) >= 60, f"{page}: the text of {target} names the plot and does not say what it shows"
