"""python -m experiments.transductive: transductive methods on the same tasks of several data sets of features.

A data set of features is called a bank. First the command writes the banks, and trains the learners of the study
(conf/study/transductive.yaml). Then settings and temperatures are chosen on validation classes, and each method is
scored on test classes. Finally the tables are written into a page. Finished results are kept, so the same command
continues an interrupted comparison.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from pyro_metabayes.errors import Interrupted
from pyro_metabayes.experiments.cli.command import CONF, run_program
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.runs.tables import text_table
from pyro_metabayes.experiments.studies.run_grid import run_grid
from pyro_metabayes.experiments.studies.study import SIZES, Row, chosen_rows, claim, jobs_of
from pyro_metabayes.experiments.transductive.banks import write_bank
from pyro_metabayes.experiments.transductive.comparison import Comparison, Scored, bank_file
from pyro_metabayes.experiments.transductive.methods import Method
from pyro_metabayes.experiments.transductive.page import write_page
from pyro_metabayes.experiments.transductive.tables import count_rows
from pyro_metabayes.storage.lock import alone_in, made_folder
from pyro_metabayes.storage.paths import user_path

ANOTHER_FOLDER = "name another folder: --out DIR"
SMOKE_TASKS = 4  # number of tasks per choice and column with --size smoke
STUDY = Path(CONF) / "study" / "transductive.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--banks", nargs="+", default=[], metavar="BANK", help="banks of the study (default: all)")
    parser.add_argument("--size", choices=SIZES, default="full", help="full, or smoke: a few steps to test the code")
    parser.add_argument("--workers", type=int, default=2, help="number of trainings in parallel, each on one thread")
    parser.add_argument("--out", type=user_path, default="runs/transductive", help="folder that keeps all results")
    parser.add_argument("--page", type=user_path, default="docs/transductive.md", help="page whose tables are replaced")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study: Any = OmegaConf.to_container(OmegaConf.load(STUDY))
    with made_folder(options.out), alone_in(options.out, ANOTHER_FOLDER):
        try:
            scored = run(study, options)
        except KeyboardInterrupt:
            kept = "finished results are kept: the same command continues the comparison"
            raise Interrupted(f"interrupted; {kept}") from None
    print(text_table(count_rows({bank: each.cells for bank, each in scored.items()}, methods_of(study))))
    print(f"written: {options.page}")


def methods_of(study: Mapping[str, Any]) -> list[Method]:
    return [Method(name, **settings) for name, settings in study["methods"].items()]


def run(study: Mapping[str, Any], options: Namespace) -> dict[str, Scored]:
    """Run the unfinished parts of the comparison, write the page, and return the results by bank (data set)."""
    smoke, folder = options.size == "smoke", options.out
    rows = [_with_bank(row, folder) for row in chosen_rows(study, options.size, options.banks)]
    claim(folder, f"transductive size={options.size}", ANOTHER_FOLDER)
    banks = list(dict.fromkeys(row.part for row in rows))
    for bank in banks:
        write_bank(bank_file(folder, bank), "simulated" if smoke else study["banks"][bank]["features"])
    run_grid(jobs_of(rows, folder, {})[0], options.workers, "train", ANOTHER_FOLDER)
    scored = {}
    for bank in banks:
        trained = {row.label: row for row in rows if row.part == bank}
        most = SMOKE_TASKS if smoke else sys.maxsize
        scored[bank] = Comparison(folder, bank, study, trained, most).run(methods_of(study))
    write_page(options.page, study, methods_of(study), scored, rows)
    return scored


def _with_bank(row: Row, folder: Path) -> Row:
    """Return a row of the study with the setting data.path= of its bank (data set of features)."""
    return replace(row, settings=(*row.settings, f"data.path={bank_file(folder, row.part)}"))


if __name__ == "__main__":
    run_program(main)
