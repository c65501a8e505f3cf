"""The measured tables of the pages agree with docs/tables/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.site import tables

PAGE = """Before.

<!-- table runs: guide; accuracy % as accuracy -->

| guide | accuracy |
| --- | --- |
| mc | 1.0 |

<!-- end -->

<!-- measured runs -->
<!-- end -->
After.
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of docs/tables."""
    monkeypatch.setattr(tables, "TABLES", tmp_path / "tables")
    (tmp_path / "table.csv").write_text("guide,accuracy %,NLL\nmc,82.7 +- 0.5,0.483\nproto,,0.664\n")
    return tmp_path


def run_of(folder: Path, commit: str) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"commit": commit, "machine": "a machine"}))


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_no_number_of_a_measured_table_is_typed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.written(text) == text, "run: python docs/site/tables.py"


def test_a_page_gets_the_columns_that_it_names(folder: Path) -> None:
    run_of(folder / "runs" / "mc", "0123abc")
    tables.take("runs", folder / "runs", folder / "table.csv")
    page = tables.written(PAGE)
    assert "| guide | accuracy |\n| --- | --- |\n| mc | 82.7 +- 0.5 |\n| proto | - |" in page
    assert "Commit 0123abc, " in page and ", a machine." in page
    assert page.startswith("Before.") and page.endswith("After.\n") and "1.0" not in page
    assert tables.written(page) == page


def test_runs_of_two_states_of_the_code_are_refused(folder: Path) -> None:
    run_of(folder / "runs" / "mc", "0123abc")
    run_of(folder / "runs" / "savi", "4567def")
    with pytest.raises(SystemExit, match="expected runs of one commit"):
        tables.take("runs", folder / "runs", folder / "table.csv")
    run_of(folder / "changed" / "mc", "0123abc-dirty")
    with pytest.raises(SystemExit, match="expected runs of one commit"):
        tables.take("runs", folder / "changed", folder / "table.csv")
    assert not tables.TABLES.exists()


def test_a_column_that_a_table_lacks_is_named(folder: Path) -> None:
    run_of(folder / "runs" / "mc", "0123abc")
    tables.take("runs", folder / "runs", folder / "table.csv")
    with pytest.raises(SystemExit, match="no column 'ECE'; it has: guide, accuracy %, NLL"):
        tables.written(PAGE.replace("guide; acc", "ECE; acc"))


def taken(folder: Path, table: str) -> None:
    """Take a table of one run."""
    run_of(folder / "runs" / "mc", "0123abc")
    (folder / "table.csv").write_text(table)
    tables.take("runs", folder / "runs", folder / "table.csv")


def test_a_column_without_a_name_gets_one(folder: Path) -> None:
    taken(folder, ",NLL\nmc,0.483\n")
    page = tables.written("<!-- table runs: as guide; NLL as nats -->\n<!-- end -->\n")
    assert "| guide | nats |\n| --- | --- |\n| mc | 0.483 |" in page


PARTS = "part,,NLL\none,mc,0.483\ntwo,savi,0.539\n"


@pytest.fixture
def parts(folder: Path) -> None:
    """A table of two parts."""
    taken(folder, PARTS)


@pytest.mark.usefixtures("parts")
def test_a_table_may_have_the_rows_of_one_part() -> None:
    page = tables.written("<!-- table runs where part=two: as guide; NLL -->\n<!-- end -->\n")
    assert "| guide | NLL |\n| --- | --- |\n| savi | 0.539 |" in page and "mc" not in page
    both = tables.written("<!-- table runs where part=one|two: as guide; NLL -->\n<!-- end -->\n")
    assert "| mc | 0.483 |\n| savi | 0.539 |" in both
    with pytest.raises(SystemExit, match="no row"):
        tables.written("<!-- table runs where part=three: NLL -->\n<!-- end -->\n")


@pytest.mark.usefixtures("parts")
def test_a_value_in_a_sentence_is_written() -> None:
    sentence = "The NLL of savi is <!-- value runs; savi; NLL -->0.1<!-- end -->."
    assert tables.written(sentence) == sentence.replace("0.1", "0.539")
    with pytest.raises(SystemExit, match="expected one row 'sib'"):
        tables.written(sentence.replace("savi;", "sib;"))


def test_a_value_may_be_of_one_part(folder: Path) -> None:
    taken(folder, PARTS + 'two,"mc, L=1",0.8 (0.7 to 0.9)\none,"mc, L=1",0.6 (0.5 to 0.7)\n')
    value = "It is <!-- value runs where part=two; mc, L=1; NLL -->0<!-- end -->."
    assert tables.written(value) == value.replace("-->0", "-->0.8 (0.7 to 0.9)")
    with pytest.raises(SystemExit, match="expected one row 'mc, L=1'"):
        tables.written(value.replace(" where part=two", ""))


def test_the_range_of_the_seeds_may_be_left_out(folder: Path) -> None:
    taken(folder, ",NLL\nmc,0.483 (0.481 to 0.485)\n")
    page = tables.written("<!-- table runs: as guide; mean of NLL as NLL -->\n<!-- end -->\n")
    assert "| guide | NLL |\n| --- | --- |\n| mc | 0.483 |" in page
    sentence = "It is <!-- value runs; mc; mean of NLL -->0<!-- end -->."
    assert tables.written(sentence) == sentence.replace("-->0", "-->0.483")


def test_a_column_may_contain_comparison_signs(folder: Path) -> None:
    taken(folder, 'guide,"p > 0.95, %"\nmc,4.7\n')
    page = tables.written("<!-- table runs: guide; p > 0.95, % -->\n<!-- end -->\n")
    assert "| guide | p > 0.95, % |\n| --- | --- |\n| mc | 4.7 |" in page


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("The NLL is\n<!-- value runs; mc; NLL -->0<!-- end -->.", "a word before a value"),
        ("<!-- table runs -->\n<!-- end -->\n", "expected columns in the mark of the table runs, got none"),
        ("The NLL is <!-- value runs mc; NLL -->0<!-- end -->.", "marks with a name and an end, got 0"),
    ],
)
def test_marks_that_would_not_be_written_are_refused(page: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        tables.written(page)
