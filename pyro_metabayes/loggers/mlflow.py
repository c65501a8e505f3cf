"""MLflow Tracking."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pyro_metabayes.errors import UsageError
from pyro_metabayes.loggers.run_log import missing_package

LONGEST = 500  # characters of a parameter that every version of the server accepts


class MLflow:
    """A run of MLflow. A training that is continued becomes a new run, which has the earlier lines too.

    Args:
        name: the name of the run.
        experiment: the experiment, which is created if it does not exist.
        tracking_uri: a server, or sqlite:///FILE.db; None: MLFLOW_TRACKING_URI, else the default of MLflow.

    Raises:
        UsageError: the package mlflow is not installed, or the experiment cannot be opened.
    """

    def __init__(self, name: str, experiment: str = "pyro_metabayes", tracking_uri: str | None = None) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise missing_package("mlflow", "mlflow") from None
        try:
            self._client = MlflowClient(tracking_uri=tracking_uri)
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            self._run = self._client.create_run(number, run_name=name).info.run_id
        except (MlflowException, ImportError) as error:
            remedy = "set logger.tracking_uri to a server that runs, or to sqlite:///FILE.db"
            raise UsageError(f"expected to start a run of MLflow, got: {error}; {remedy}") from None

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST]) for name, value in settings.items()]
        self._client.log_batch(self._run, params=params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
