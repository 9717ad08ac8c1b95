"""MLflow. One run over all attempts; scalars go in batches, so that a fast run costs few requests."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker, flag

_RUN_ID = "MLFLOW_RUN_ID"
_BATCH = 1000
"""The most metrics that the server takes in one request."""


class MLflowCallback(Tracker):
    """Environment: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID, MLFLOW_NESTED_RUN, MLFLOW_TAGS,
    MLFLOW_FLATTEN_PARAMS, MLFLOW_MAX_LOG_PARAMS, HF_MLFLOW_LOG_ARTIFACTS."""

    name = "mlflow"
    joins_rows = True
    _page: str | None = None
    _owns = False
    _exported = False

    def look_up(self) -> None:
        import mlflow

        self._mlflow = mlflow

    def look(self, args: Any, state: Any) -> Any:
        return self._mlflow.active_run()  # of this thread: MLflow keeps one for each

    def begin(self, facts: Facts) -> str | None:
        nested, experiment = flag("MLFLOW_NESTED_RUN"), os.environ.get("MLFLOW_EXPERIMENT_NAME")
        begun, wanted = facts.given, os.environ.get(_RUN_ID)
        self._owns = begun is None or nested or wanted is not None
        while self._mlflow.active_run() is not None:  # of a first try that failed half-way
            self._mlflow.end_run("KILLED")
        if not self._owns:
            run = self._mlflow.start_run(run_id=begun.info.run_id)
        else:
            if experiment:
                self._mlflow.set_experiment(experiment)
            parent = {"nested": True, "parent_run_id": begun.info.run_id} if nested and begun is not None else {}
            known = {"run_id": facts.run_id} if facts.run_id is not None and wanted is None else {}
            run = self._mlflow.start_run(**(known or {"run_name": facts.args.run_name, **parent}))
        run_id: str = run.info.run_id
        self._page = self._page_of(run)
        self._log_parameters(facts, run_id)
        if tags := os.environ.get("MLFLOW_TAGS"):
            self._mlflow.set_tags(json.loads(tags))
        return run_id

    def _log_parameters(self, facts: Facts, run_id: str) -> None:
        """Log those that the run does not have yet, because MLflow refuses to change one."""
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        values = {**facts.model_config, **facts.arguments}
        values = dict(_flat(values)) if flag("MLFLOW_FLATTEN_PARAMS") else values
        values = {name: value for name, value in values.items() if len(str(value)) <= MAX_PARAM_VAL_LENGTH}
        most = os.environ.get("MLFLOW_MAX_LOG_PARAMS", "")
        known = self._mlflow.get_run(run_id).data.params if facts.resumes or not self._owns else {}
        new = [pair for pair in list(values.items())[: int(most) if most.isdigit() else None] if pair[0] not in known]
        for start in range(0, len(new), MAX_PARAMS_TAGS_PER_BATCH):
            self._mlflow.log_params(dict(new[start : start + MAX_PARAMS_TAGS_PER_BATCH]))

    def _page_of(self, run: Any) -> str | None:
        address = str(self._mlflow.get_tracking_uri()).rstrip("/")
        return f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"

    def adopt(self, facts: Facts) -> None:
        """``mlflow.log_metric`` of the script, on its own thread, then goes to this run."""
        if facts.given is None and _RUN_ID not in os.environ and self.run_id is not None:
            os.environ[_RUN_ID], self._exported = self.run_id, True

    def page(self) -> str | None:
        return self._page

    def send(self, facts: Facts, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(re.sub(r"[^0-9A-Za-z_\-\.\ :/]", "_", name), value, int(row.time * 1000), row.step)
            for row in rows if not row.predicted
            for name, value in _numbers(row.values).items()
        ]  # fmt: skip
        client = self._mlflow.MlflowClient()
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH], synchronous=True)

    def keeps_checkpoints(self) -> bool:
        return flag("HF_MLFLOW_LOG_ARTIFACTS")

    def keep(self, facts: Facts, folder: str, name: str, row: Row) -> None:
        pyfunc = self._mlflow.pyfunc
        pyfunc.log_model(name, artifacts={"model_path": folder}, python_model=pyfunc.PythonModel())

    def end(self, facts: Facts, finished: bool) -> None:
        if self._exported:
            self._exported = False
            with suppress(KeyError):
                del os.environ[_RUN_ID]
        if self._owns and self._mlflow.active_run() is not None:
            self._mlflow.end_run("FINISHED" if finished else "KILLED")


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Numbers, and tensors of one number; MLflow takes nothing else as a metric."""
    read = {
        name: value.item() if getattr(value, "numel", lambda: 0)() == 1 else value for name, value in values.items()
    }
    return {name: value for name, value in read.items() if isinstance(value, int | float)}


def _flat(values: dict[str, Any], prefix: str = "") -> Any:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
