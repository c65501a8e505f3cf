"""Tables of finished runs, for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_metabayes.diagnostics.collapse_metrics import COLLAPSE, with_information
from pyro_metabayes.errors import how_many
from pyro_metabayes.experiments.cli.text_table import Row, text_table
from pyro_metabayes.open_set.scores import OPEN_SET_SCORES
from pyro_metabayes.storage.checkpoint import write_atomically

JOINT_BOUND = "joint_nll_upper"  # absent in results of earlier versions, whose joint_nll averages over a few draws
NOTHING_KNOWN = (  # with task.shot=0 on data=groups
    "no point of the predicted group (task.shot=0): the mean of the prior is predicted (re.form = NA in lme4), so "
    "errors contain the differences between groups"
)


def number(value: float | None, digits: int = 3) -> str:
    """Format a number for a table; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def per_cent(mean: float, ci95: float | None = None) -> str:
    """Format a fraction and its interval in per cent, such as "72.7 +- 0.6"."""
    return f"{100 * mean:.1f}" + ("" if ci95 is None else f" +- {100 * ci95:.1f}")


def task_name(results: Mapping[str, Any]) -> str:
    """Return the name of a task, such as "5-way 1-shot", or "64+5-way 1-shot" with base classes.

    A regression has names such as "10 support points". For data=groups the name is "at most 10 support points", because
    a group may have fewer rows.
    """
    way, shot = results["way"], results["shot"]
    beside = f"{base}+" if (base := results.get("base_classes")) else ""
    at_most = "at most " if shot and _is_of_groups(results) else ""
    return f"{beside}{way}-way {shot}-shot" if way > 1 else at_most + how_many(shot, "support point")


def _is_of_groups(results: Mapping[str, Any]) -> bool:
    data = results.get("config", {}).get("data", {})
    return str(data.get("_target_")).rpartition(".")[0].endswith(".groups")


def split_name(results: Mapping[str, Any]) -> str:
    """Return the name of the evaluated split, such as "test"; for data=groups "training groups" or "test groups"."""
    groups = results.get("evaluated_groups")  # absent in results of earlier versions
    return {None: results["split"], "training": "training groups"}.get(groups, f"{results['split']} groups")


def queries_of(task: Mapping[str, Any]) -> str:
    """Format the queries per class: "15", "55/5/5/5/5" for fixed counts, or "Dirichlet(2)" for random counts."""
    if task["query_counts"]:
        return "/".join(map(str, task["query_counts"]))
    if task["query_concentration"]:
        return f"Dirichlet({task['query_concentration']:g})"
    return str(task["query"])


def _task_cells(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the cell of the task; for data=groups also a cell that says what the predictions are conditioned on."""
    of_groups, shot = _is_of_groups(results), results["shot"]
    beside = f" + {base}" if (base := results.get("base_query")) else ""
    queries = queries_of(results)
    noun = "query" if queries == "1" else "queries"
    cells = {"task": f"{task_name(results)}, {'at most ' * of_groups}{queries} {noun}{beside}"}
    if not of_groups:
        return cells
    known = f"at most {how_many(shot, 'point')} of the predicted group (task.shot={shot})" if shot else NOTHING_KNOWN
    return cells | {"conditioned on": known}


def result_row(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of the table that `experiments.run` prints, from results.json."""
    of_classes = results["accuracy"] is not None
    return {
        "guide": results["guide"],
        "data": f"{results['data']}{', ' if results.get('evaluated_groups') else ' '}{split_name(results)}",
        **_task_cells(results),
        **_accuracies(results),
        _log_score_title(results): number(results["nll"]),
        **_joint(results),
        **({"ECE": _calibration(results)} if of_classes else {"coverage 90%": number(results["coverage90"])}),
        "ELBO": number(results["elbo"], 1),
        "KL weight": kl_weight(results),
        "KL": number(results["kl"], 1 if of_classes else 3),
        "prior": with_information(COLLAPSE[results["collapsed"]], [results]),
        "transductive": "yes" if results["transductive"] else "no",
    }


def results_text(results: Mapping[str, Any]) -> str:
    """Return the tables of a run as text.

    With unknown classes, a second table shows the scores that detect queries of unknown classes.
    """
    table = text_table([result_row(results)])
    if not results.get("unknown"):
        return table
    rows = [
        {
            "unknown classes, score": score.title,
            "AUROC %": per_cent(**results[f"unknown_auroc_{score.name}"]),
            "FPR at 95% TPR %": per_cent(**results[f"unknown_fpr95_{score.name}"]),
        }
        for score in OPEN_SET_SCORES
        if results[f"unknown_auroc_{score.name}"] is not None
    ]
    limit = results["unknown_entropy_threshold"]
    note = f"95% of the known queries have an entropy of at most {limit['mean']:.3f} +- {limit['ci95']:.3f} nats"
    return f"{table}\n\n{text_table(rows)}\n{note}"


def _joint(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the cell of the joint NLL: its value, or its two bounds if they differ; {} without eval.joint=true."""
    if results["joint_nll"] is None:
        return {}
    bounds = number(results["joint_nll_lower"]), number(results["joint_nll_upper"])
    return {"joint NLL": number(results["joint_nll"]) if bounds[0] == bounds[1] else " to ".join(bounds)}


def _calibration(results: Mapping[str, Any]) -> str:
    """Format the ECE as "0.012 +- 0.004 (floor 0.006)"; without interval and floor for runs of earlier versions."""
    if results.get("ece_ci95") is None:
        return number(results["ece"])
    return f"{number(results['ece'])} +- {number(results['ece_ci95'])} (floor {number(results['ece_floor'])})"


def without_old_joint(results: dict[str, Any]) -> dict[str, Any]:
    """Remove the joint NLL from results of earlier versions, which overestimated it by averaging over few draws."""
    return results if results.get(JOINT_BOUND) is not None else results | {"joint_nll": None}


def kl_weight(results: Mapping[str, Any]) -> str:
    """Format the KL weight at the end of the training; a dash without an ELBO, or for an objective without a KL."""
    training = results.get("config", {}).get("train")
    weight = training.get("kl_weight") if isinstance(training, Mapping) else None
    return "-" if results["elbo"] is None else weight_cell(results.get("kl_weight", weight))  # since version 0.2


def weight_cell(weight: Any) -> str:
    """Format a KL weight: a number, the weight at the end of a schedule, or a dash for None."""
    weight = weight.get("end") if isinstance(weight, Mapping) else weight
    return "-" if weight is None else f"{weight:g}"


def _log_score_title(results: Mapping[str, Any]) -> str:
    response = results.get("response")
    return f"NLL (nats, sd of {response['name']})" if response else "NLL"


def _accuracies(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of the accuracy, of the four accuracies with base classes, or of the RMSE of a regression."""
    if results["accuracy"] is None:
        return _errors(results["rmse"], results.get("response"))
    if results.get("novel") is None:
        return {"accuracy %": per_cent(**results["accuracy"])}
    names = {"novel %": "novel", "base %": "base", "both %": "both", "base over all %": "base_over_all"}
    return {title: per_cent(**results[name]) for title, name in names.items()}


def _errors(rmse: float, response: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the cells of the RMSE; for data=groups in standard deviations and in the unit of the response."""
    if response is None:
        return {"RMSE": number(rmse)}
    unit = response["name"]
    return {f"RMSE (sd of {unit})": number(rmse), f"RMSE ({unit})": f"{rmse * response['sd']:.4g}"}


def markdown_table(rows: Sequence[Row]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_table(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def save_tables(folder: Path, page: str, rows: Sequence[Row]) -> None:
    """Write the page to table.md and the rows to table.csv."""
    write_atomically(folder / "table.md", lambda path: path.write_text(page))
    write_atomically(folder / "table.csv", lambda path: path.write_text(csv_table(rows)))
