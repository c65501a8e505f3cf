"""Columns are found by name, and CSV files of various programs and countries are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.errors import UsageError
from tests.commands import ran, results_of

VALUES = [[1.5, 2], [2.25, 4], [-3, 5.5], [1000, 1], [0.5, 7], [12, 3]]


def table(separator: str = ",", x: str = "x", number: str = "{:.6g}", groups: str = "AABBCC") -> str:
    rows = [[group, *map(number.format, row)] for group, row in zip(groups, VALUES, strict=True)]
    return "\n".join(separator.join(row) for row in [["who", x, "y"], *rows]) + "\n"


def loaded(text: str | bytes, folder: Path, predictor: Any = "x", **others: Any) -> Groups:
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load("who", "y", [predictor], path=str(path), **others)


def x_of(groups: Groups) -> list[float]:
    """The predictor in the units of the file, group by group."""
    x = groups.points.points[
        :, groups.features.index("intercept" if groups.features[-1] == "intercept" else groups.features[-1])
    ]
    return (x * groups.scales.sd[-2] + groups.scales.mean[-2]).tolist()


EXPECTED = pytest.approx([row[0] for row in VALUES], abs=1e-3)
NAMES = [
    "2015",
    "null",
    "2015-01-01",
    "007",
    "1e3",
    "true",
    "1_000",
    "nan",
    "2015.0",
    "0x10",
    "NULL",
    "-1",
    "1.50",
    "x y",
]


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_found_by_the_text_that_the_command_line_has(name: str, tmp_path: Path) -> None:
    value = OverridesParser.create().parse_override(f"data.predictors=[{name}]").value()[0]
    for read in (value, name):  # in quotes, too
        groups = loaded(table(x=name), tmp_path, read, random=["intercept", read])
        assert list(groups.features) == ["intercept", name] and x_of(groups) == EXPECTED


def test_names_that_the_command_line_does_not_tell_apart_are_refused(tmp_path: Path) -> None:
    text = table(x="1000.0").replace("who", "1e3,who", 1).replace("\n", "\n0,").removesuffix("0,")
    with pytest.raises(
        UsageError, match=r"expected one column '1000.0' in .*, got several \(1e3, 1000.0; a name in quo"
    ):
        loaded(text, tmp_path, 1000.0)
    assert x_of(loaded(text, tmp_path, "1000.0")) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text"), [(1, "1"), (0, "0"), (True, "true"), (None, "null"), ("None", "None"), (1.5, "1.5")]
)
def test_a_missing_column_is_named_as_it_was_written(name: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"expected one column '{text}' in .*, got none; there are: who, x, y"):
        loaded(table(), tmp_path, name)


def test_years_as_columns_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As group, predictor and response; the scales of the run are kept by these names."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("1,2015,null\n" + table().split("\n", 1)[1])
    settings = ("data=groups", "guide=exact", "prior=full_gaussian", "data.path=t.csv", "data.group=1")
    small = ("train.steps=2", "eval.tasks=4", "train.validation_tasks=4", "train.tasks_per_step=3", "hydra.run.dir=run")
    ran("run", *settings, "data.predictors=[2015]", "data.response=null", *small)
    assert set(results_of(Path("run"))["config"]["estimated"]["scales"]) == {"2015", "null"}
    ran("evaluate", "run", "task.shot=1")


FILES: dict[str, tuple[str | bytes, dict[str, str], str]] = {
    "commas": (table(), {}, ""),
    "semicolons": (table(";"), {}, "are separated by semicolons"),
    "tabs": (table("\t"), {}, "are separated by tabs"),
    "vertical bars": (table("|"), {}, "are separated by vertical bars"),
    "quoted semicolons": (table(";").replace("who;x;y", '"who";"x";"y"'), {}, "are separated by semicolons"),
    "a byte order mark": (b"\xef\xbb\xbf" + table().encode(), {}, ""),
    "a mark and semicolons": (b"\xef\xbb\xbf" + table(";").encode(), {}, "are separated by semicolons"),
    "lines of Windows": (table().replace("\n", "\r\n"), {}, ""),
    "spaces": (table().replace(",", ", "), {}, ""),
    "powers of ten": (table(number="{:.6e}"), {}, ""),
    "decimal commas": (table(";").replace(".", ","), {"decimal": "comma"}, "are separated by semicolons"),
    "a gap in x": (table() + "C,,3\nC,NA,1\n", {"missing": "drop"}, "which have missing values: 2 in column 'x'"),
    "a gap in y": (table() + "C,1,nan\n", {"missing": "drop"}, "left out 1 of 7 rows of"),
    "a group NA": (table() + "NA,1,2\nnull,1,2\n", {"missing": "drop"}, "which have missing values: 2 in column 'who'"),
    "a gap in who": (table() + " ,1,2\n", {"missing": "drop"}, "which have missing values: 1 in column 'who'"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_of_other_programs_are_read(what: str, tmp_path: Path) -> None:
    text, settings, note = FILES[what]
    groups = loaded(text, tmp_path, **settings)
    assert x_of(groups) == EXPECTED and list(groups.names) == ["A", "B", "C"]
    assert len(groups.notes) == bool(note) and all(note in line and "\n" not in line for line in groups.notes)


def test_a_group_may_be_called_na(tmp_path: Path) -> None:
    """The code of Namibia."""
    assert list(loaded(table(groups=["NA", "NA", "B", "B", "C", "C"]), tmp_path).names) == ["NA", "B", "C"]


CELLS = ["1_000", "1,5", "1.234,5", "1 000", "1'000", "١٢", "12kg", "$5", "tall", "0x10", "inf", "5%", "1e", "--1", "½"]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_without_a_number_is_named(cell: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(table() + f'C,"{cell}",3\n', tmp_path)
    assert f"expected a finite number in column 'x', got '{cell}' on line 8 of" in str(caught.value)
    assert ("data.decimal=comma" in str(caught.value)) == any(sign.isdigit() for sign in cell)


def with_cell(cell: str, line: int, column: str = "x") -> str:
    """The table with a changed cell on this line of the file."""
    lines = [text.split(",") for text in table().splitlines()]
    lines[line - 1][lines[0].index(column)] = cell
    return "\n".join(map(",".join, lines)) + "\n"


@pytest.mark.parametrize("line", range(2, 8))
def test_text_in_a_column_of_numbers_is_refused_on_every_line(line: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(with_cell("one", line), tmp_path)
    assert str(caught.value) == (
        f"expected a finite number in column 'x', got 'one' on line {line} of {tmp_path / 't.csv'}; fix the cell, or "
        "code the column as text throughout; data.factors=[x] (factor(x) in data.formula) reads numbers as text too"
    )
    assert len(loaded(with_cell("one", line), tmp_path, factors=["x"]).levels["x"]) == 6


WORDS = ["low", "mid", "high", "low", "mid", "high"]
COLUMNS: dict[str, tuple[list[str], bool | None]] = {
    "text": (WORDS, True),
    "text and a few numbers": (["3", *WORDS[:4], "7"], True),
    "text and gaps": (["NA", "n.a.", "-", "low", "mid", "high"], True),
    "numbers and gaps": (["NA", "", "3", "4", "5", "6"], False),
    "half text": (["low", "mid", "high", "1", "2", "3"], None),
    "numbers and a word": (["low", "1", "2", "3", "4", "5"], None),
    "numbers and codes of missing values": (["n.a.", "missing", "?", "unknown", "1", "2"], None),
    "numbers with units": (["1kg", "2kg", "3kg", "4kg", "5kg", "6kg"], None),
    "infinite numbers": (["inf", "Infinity", "inf", "inf", "1", "2"], None),
}


@pytest.mark.parametrize("what", COLUMNS)
def test_the_order_of_the_rows_does_not_decide_what_is_text(what: str, tmp_path: Path) -> None:
    """As text, as numbers, or not at all: each cell comes first once."""
    cells, is_text = COLUMNS[what]
    for first in range(6):
        rows = [f"{group},{cell},{i * i}" for i, (group, cell) in enumerate(zip("AABBCC", cells, strict=True))]
        text = "\n".join(["who,x,y", *rows[first:], *rows[:first]]) + "\n"
        if is_text is None:
            with pytest.raises(UsageError, match="expected a finite number in column 'x', got "):
                loaded(text, tmp_path)
        else:
            assert ("x" in loaded(text, tmp_path, missing="drop").levels) == is_text


@pytest.mark.parametrize("column", ["x", "y"])
@pytest.mark.parametrize("cell", ["n.a.", "-", "?", "--", "#N/A", "unknown", " * "])
def test_a_cell_that_may_be_missing_is_refused_with_the_remedy_for_gaps(cell: str, column: str, tmp_path: Path) -> None:
    remedy = "if the value is missing, leave the cell empty, and set data.missing=drop to leave out the row"
    with pytest.raises(UsageError) as caught:
        loaded(with_cell(cell, 5, column), tmp_path)
    assert str(caught.value).endswith(f"got '{cell}' on line 5 of {tmp_path / 't.csv'}; fix the cell; {remedy}")
    assert len(loaded(with_cell("", 5, column), tmp_path, missing="drop").points.points) == 5


def test_points_are_no_decimals_beside_decimal_commas(tmp_path: Path) -> None:
    """1.234 would be 1234 to its author."""
    with pytest.raises(UsageError, match=r"expected a finite number in column 'x', got '1\.5' on line 2"):
        loaded(table(";"), tmp_path, decimal="comma")


def test_gaps_are_counted_before_they_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"missing values in 2 of 8 rows .*the first is 'NA' in column 'y' on line 8.*=drop"
    ):
        loaded(table() + "C,1,NA\nC,,\n", tmp_path)
    with pytest.raises(UsageError, match="expected rows below the header"):
        loaded("who,x,y\nA,,1\nB,,2\n", tmp_path, missing="drop")


def test_an_open_quote_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"closed quotes in .* in the row that begins on line 8; close the quotes"):
        loaded(table() + 'C,"1,3\nC,2,4\n', tmp_path)


def test_numbers_that_differ_by_their_rounding_are_no_constant(tmp_path: Path) -> None:
    """Times in nanoseconds within a millisecond."""
    text = "who,x,y\n" + "\n".join(f"{'AABBCC'[i]},{1_700_000_000_000_000_000 + 1000 * i},{i}" for i in range(6))
    with pytest.raises(UsageError, match=r"got a range of .*; subtract a constant"):
        loaded(text, tmp_path)


@pytest.mark.parametrize(("setting", "value"), [("missing", "ignore"), ("decimal", ",")])
def test_other_ways_to_read_are_refused(setting: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"expected data.{setting} to be one of"):
        loaded(table(), tmp_path, **{setting: value})


def test_rounding_of_the_file_is_that_of_float64(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=6) * 1e-7 + 12345.678
    text = "who,x,y\n" + "\n".join(f"{'AABBCC'[i]},{value!r},{i}" for i, value in enumerate(x.tolist()))
    expected = (x - x.mean()) / x.std()
    assert loaded(text, tmp_path).points.points[:, 1].numpy() == pytest.approx(expected, abs=1e-4)
