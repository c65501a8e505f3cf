"""python -m experiments.predict RUN_DIR new.csv: predictions of a run on data=groups for the rows of new groups.

The file has the predictors of the run, in the same units. Rows with a response are the support set of their group; rows
with a blank response are predicted. Without the column of groups all rows belong to one group. Writes mean, sd and 90%
interval of a new observation to a CSV file, in the units of the data, and prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.predict.rows import predicted_rows
from pyro_metabayes.experiments.runs.tables import csv_table
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.paths import user_path

PRINTED = 20  # number of rows that are printed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", type=user_path, help="the folder of a finished run")
    parser.add_argument("file", type=user_path, help="a CSV file")
    parser.add_argument("--out", type=user_path, default=Path("predictions.csv"), help="output file (%(default)s)")
    options = parser.parse_args(arguments)
    rows = predicted_rows(options.run, options.file)
    write_atomically(options.out, lambda path: path.write_text(csv_table(rows)))
    print(text_table(rows[:PRINTED]))
    print(f"{len(rows)} predictions: {options.out}")


if __name__ == "__main__":
    run_program(main)
