"""Writes the tables of experiments.transductive between two marks of a page, and keeps the text around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_metabayes.experiments.runs.tables import markdown_table
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.studies.tables import commands
from pyro_metabayes.experiments.transductive.comparison import Scored
from pyro_metabayes.experiments.transductive.methods import Method
from pyro_metabayes.experiments.transductive.tables import count_rows, query_rows, section_of
from pyro_metabayes.storage.checkpoint import write_atomically

MARK, END = "<!-- experiments.transductive -->", "<!-- end -->"
FIRST = "1-shot"  # the column whose accuracies show the effect of the queries


def write_page(
    path: Path, study: Mapping[str, Any], methods: Sequence[Method], scored: Mapping[str, Scored], rows: Sequence[Row]
) -> None:
    """Replace the tables of a page, or create a page that has only the tables.

    Args:
        path: the page.
        study: content of conf/study/transductive.yaml.
        methods: the methods.
        scored: the results by bank (data set).
        rows: the rows of the study, whose commands are listed.
    """
    text = path.read_text() if path.exists() else f"{MARK}\n{END}\n"
    before, _, rest = text.partition(MARK)
    tables = "\n\n".join([*_summary(methods, scored), *_sections(study, methods, scored), commands(rows)])
    page = f"{before}{MARK}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"
    write_atomically(path, lambda file: file.write_text(page))


def _summary(methods: Sequence[Method], scored: Mapping[str, Scored]) -> list[str]:
    cells = {bank: each.cells for bank, each in scored.items()}
    return [
        "Number of columns in which our method is best, or level with the best peer that assumes the same marginal:",
        markdown_table(count_rows(cells, methods)),
        f"Effect of the queries: accuracy of 5-way {FIRST} tasks with balanced queries, per cent.",
        markdown_table(query_rows(cells, FIRST)),
    ]


def _sections(study: Mapping[str, Any], methods: Sequence[Method], scored: Mapping[str, Scored]) -> list[str]:
    return [
        section_of(bank, study["banks"][bank]["title"], methods, each.cells, each.choices, _shares(each))
        for bank, each in scored.items()
    ]


def _shares(scored: Scored) -> str:
    texts = [f"{name}: {' '.join(f'{share:.2f}' for share in shares)}" for name, shares in scored.marginals.items()]
    return "; ".join(texts)
