"""Do tables fit a terminal of 100 columns, without a cell that is lost or cut?"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from pyro_metabayes.experiments.cli.text_table import WIDTH, text_table

WORDS = ["-", "+-", "0.5", "-1234.567", "accuracy", "a.setting=of.a.run"]
CELL = some.lists(some.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
TABLE = some.integers(1, 14).flatmap(
    lambda number: some.lists(some.lists(CELL, min_size=number, max_size=number), min_size=1, max_size=4)
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(TABLE, some.integers(1, 2))
def test_every_table_fits_and_has_every_word(cells: list[list[str]], keys: int) -> None:
    rows = [{f"column {place}": cell for place, cell in enumerate(row)} for row in cells]
    text = text_table(rows, min(keys, len(rows[0])))
    assert max(map(len, text.splitlines())) <= WIDTH
    shown = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    words = [word for row in rows for name in shown for word in row[name].split()]
    assert set(words) <= set(text.split()) and len(text.split()) >= len(words)


def test_a_narrow_table_has_one_line_per_row() -> None:
    rows = [{"": "mc", "NLL": "0.5", "KL": "-"}, {"": "a longer label", "NLL": "0.25", "KL": "-"}]
    assert text_table(rows) == "                NLL\nmc              0.5\na longer label  0.25"


def test_a_single_row_is_a_list() -> None:
    assert text_table([{"guide": "sib", "accuracy %": "72.7 +- 0.6", "KL": "-"}]) == (
        "guide       sib\naccuracy %  72.7 +- 0.6"
    )


def test_a_wide_table_wraps_labels_and_then_continues_below() -> None:
    rows = [{"label": "a label of many words, " * 3 + "the end", "x": "1.0 +- 0.1"}] * 2
    assert text_table(rows).count("1.0 +- 0.1") == 2 and len(text_table(rows).splitlines()) == 3
    wide = [{"": f"row {number}"} | {f"metric{place}": "0.123 +- 0.456" for place in range(12)} for number in (1, 2)]
    blocks = text_table(wide).split("\n\n")
    assert len(blocks) == 3 and all("row 1" in block and "row 2" in block for block in blocks)
    assert text_table(wide).count("0.123 +- 0.456") == 24
