"""python -m experiments.errors RUN_DIR: the confusion matrix and the most confident errors of a finished run.

The command predicts the queries of the evaluation tasks again, and writes these files to RUN_DIR/errors. confusion.csv
has one row per true class and one column per predicted class, with numbers of queries. confusion_shares.csv has each
number divided by the number of queries of the true class in tasks that have both classes. confusion.png shows these
shares for the classes with the most errors. errors.csv lists the wrong predictions with the largest probability, and
the file or row of each query. errors.png shows these queries, if they are images.

Settings that are not learned can be changed, such as task.shot=5 or eval.tasks=2000. The results are then in a
subfolder of RUN_DIR/errors, named after the changed settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.errors.confusion import Confusion
from pyro_metabayes.experiments.errors.mistakes import images_of, most_confident
from pyro_metabayes.experiments.errors.plots import draw_confusion, draw_errors
from pyro_metabayes.experiments.errors.queries import classified_queries
from pyro_metabayes.experiments.runs.evaluation import folder_name
from pyro_metabayes.experiments.runs.restore_run import refuse_training, refuse_unknown_classes, restore_run
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.experiments.runs.tables import Row, csv_table
from pyro_metabayes.experiments.runs.tasks import load_data
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import within

PRINTED = 10  # number of rows of each table that are printed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=user_path, help="the folder of a finished run")
    parser.add_argument("settings", nargs="*", default=[], help="changed settings, such as task.shot=5")
    parser.add_argument("--most", type=int, default=24, help="number of errors that are written (%(default)s)")
    options = parser.parse_args(arguments)
    if options.most < 1:
        raise UsageError(f"expected --most >= 1, got {options.most}")
    refuse_training(options.settings)
    refuse_unknown_classes(options.settings)
    setup = restore_run(options.run, saved_config(options.run, options.settings))
    out = within(options.run, "errors")
    write(setup, options.most, out / folder_name(options.settings) if options.settings else out)


def write(setup: RunSetup, most: int, out: Path) -> None:
    """Write the files of the command to the folder `out`, and print their first rows."""
    queries = classified_queries(setup)
    confusion, errors = Confusion.of(queries), queries.wrong(most)
    bank = load_data(setup.config)
    assert isinstance(bank, Bank)  # checked by classified_queries
    rows, images = most_confident(bank, errors), images_of(bank, errors)
    _write_table(out / "confusion.csv", confusion.counts_table())
    _write_table(out / "confusion_shares.csv", confusion.shares_table())
    draw_confusion(confusion, out / "confusion.png")
    print(
        f"{how_many(len(queries.true), 'query', 'queries')}, {100 * queries.accuracy:.1f}% of them predicted correctly"
    )
    if not rows:
        print(f"no errors; confusion matrix: {out}")
        return
    _write_table(out / "errors.csv", rows)
    if images is not None:
        draw_errors(images, rows, out / "errors.png")
    print(text_table(confusion.most_confused(PRINTED)), text_table(rows[:PRINTED]), sep="\n\n")
    print(f"confusion matrix and errors: {out}")


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    write_atomically(path, partial(Path.write_text, data=csv_table(rows)))


if __name__ == "__main__":
    run_program(main)
