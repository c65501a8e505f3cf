"""python -m experiments.evaluate RUN_DIR guide.num_steps=0: evaluate a finished run again with changed settings."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.runs.evaluation import evaluate_run, folder_name
from pyro_metabayes.experiments.runs.notes import OF_EVALUATION, note_division, note_poor_result
from pyro_metabayes.experiments.runs.restore_run import refuse_training
from pyro_metabayes.experiments.runs.tables import results_text
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import within


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=user_path, help="the folder of a finished run")
    parser.add_argument(
        "settings", nargs="*", default=[], help="changed settings, such as guide.num_steps=0 or eval.tasks=2000"
    )
    options = parser.parse_args(arguments)
    refuse_training(options.settings)
    config = saved_config(options.run, options.settings)
    out = within(options.run, "evaluations") / folder_name(options.settings)
    results = evaluate_run(options.run, config, out)
    print(results_text(results))
    print(
        "95% intervals are over tasks, given this backbone and these classes; experiments.compare gives intervals over "
        "training runs"
    )
    note_division(results)
    note_poor_result(results, OF_EVALUATION)
    print(f"results: {out}")


if __name__ == "__main__":
    run_program(main)
