"""Logger for MLflow Tracking."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pyro_metabayes.errors import UsageError
from pyro_metabayes.loggers.run_log import missing_package

LONGEST = 500  # number of characters of a parameter that every version of the server accepts


class MLflow:
    """Logger that writes to a new run of MLflow. A resumed training also writes its earlier steps to the new run.

    Args:
        name: the name of the run.
        experiment: the name of the experiment; a missing experiment is created.
        tracking_uri: address of a server, or sqlite:///FILE.db. None: the environment variable MLFLOW_TRACKING_URI, or
            else the default of MLflow.

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
            raise UsageError(f"expected MLflow to start a run, got the error: {error}; {remedy}") from None

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
