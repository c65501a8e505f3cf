"""python -m experiments.predict RUN_DIR support=labelled query=new: predictions of a run for new points.

For a run on classes, the support set is a folder with one folder of images per class, or a file FILE.npz with the
arrays `features` (or `images`) and `labels`. The query set is a folder of images, or FILE.npz or FILE.npy without
labels. The command writes one row per query to a CSV file. The row has the predicted class, its probability, the
spread, the entropy of the prediction in nats, and the probability of each class. The spread is the standard deviation
of the probability over draws of the posterior.

For a run on data=groups, give one CSV file instead: python -m experiments.predict RUN_DIR new.csv. The file has the
predictors of the run, in the same units. Rows with a response are the support set of their group. Rows with a blank
response are predicted. Without the column of groups, all rows belong to one group. The command writes the mean, sd and
90% interval of a new observation, in the units of the data. No option changes the level of the interval.

The predictions are written to predictions.csv in the current folder, or to the file that --out names. The file must not
exist yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_metabayes.build import target_of
from pyro_metabayes.data.sources import groups
from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import Config, saved_config
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.effects.widening import LEVEL
from pyro_metabayes.experiments.predict.classes import PRINTED_COLUMNS, predicted_classes
from pyro_metabayes.experiments.predict.rows import predicted_rows
from pyro_metabayes.experiments.runs.tables import csv_table
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.paths import user_path

PRINTED = 20  # number of rows that are printed
SETS = ("support", "query")
HINT = "pass support=FOLDER query=FOLDER, or support=FILE.npz query=FILE.npz"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=user_path, help="the folder of a finished run")
    parser.add_argument("inputs", nargs="+", help="support=... and query=..., or a CSV file for a run on data=groups")
    parser.add_argument(
        "--out", type=user_path, default=Path("predictions.csv"), help="new file for the predictions (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise UsageError(
            f"expected a new file for --out, got {options.out}, which exists; name another file with --out"
        )
    config = saved_config(options.run, ["device=cpu"])
    if target_of(config.data, "data") is groups.load:
        rows = predicted_rows(options.run, _file_of(options.inputs))
        shown, explained = rows, f"{LEVEL}\n"
    else:
        rows = predicted_classes(options.run, config, *_sets_of(options.inputs, config))
        shown, explained = [{name: row[name] for name in row if name in PRINTED_COLUMNS} for row in rows], ""
    write_atomically(options.out, lambda path: path.write_text(csv_table(rows)))
    print(text_table(shown[:PRINTED]))
    print(f"{explained}{how_many(len(rows), 'prediction')}: {options.out}")


def _file_of(inputs: Sequence[str]) -> Path:
    if len(inputs) > 1 or inputs[0].startswith(tuple(f"{name}=" for name in SETS)):
        raise UsageError(f"expected one CSV file for a run on data=groups, got {' '.join(inputs)}; pass new.csv")
    return user_path(inputs[0])


def _sets_of(inputs: Sequence[str], config: Config) -> tuple[Path, Path]:
    """Parse support=... and query=... into the paths of support and query set.

    Raises:
        UsageError: support= or query= is missing or repeated, or there is another argument.
    """
    given = dict(item.partition("=")[::2] for item in inputs)
    expected = f"expected support=... and query=... for a run on data={config.choices.get('data')}, got"
    if unknown := [item for item in inputs if not item.startswith(tuple(f"{name}=" for name in SETS))]:
        raise UsageError(f"{expected} {' '.join(inputs)}; leave out {' '.join(unknown)}, and {HINT}")
    if len(given) < len(inputs) or len(given) < len(SETS) or not all(given.values()):
        raise UsageError(f"{expected} {' '.join(inputs)}; {HINT}")
    return user_path(given["support"]), user_path(given["query"])


if __name__ == "__main__":
    run_program(main)
