"""DVCLive: metrics as files in the working folder, beside the code and the data that DVC versions."""

from __future__ import annotations

import os
from typing import Any

from trainwright.integrations.trackers.tracker import TRUE, Facts, Row, Tracker


class DVCLiveCallback(Tracker):
    """Environment: HF_DVCLIVE_LOG_MODEL (1 for the final model, all for each checkpoint too)."""

    name = "dvclive"
    _live: Any = None

    def look_up(self) -> None:
        import dvclive

        self._dvclive = dvclive
        self._log_model = os.environ.get("HF_DVCLIVE_LOG_MODEL", "FALSE").upper()

    def begin(self, facts: Facts) -> str | None:
        self._live = self._dvclive.Live(resume=facts.resumes)
        self._live.log_params(facts.arguments)
        return str(self._live.dir)

    def send(self, facts: Facts, rows: list[Row]) -> None:
        from dvclive.plots import Metric
        from dvclive.utils import standardize_metric_name

        (row,) = rows
        if row.predicted:
            return
        for name, value in row.values.items():
            if Metric.could_log(value):
                self._live.log_metric(standardize_metric_name(name, "dvclive.huggingface"), value)
        self._live.next_step()

    def keeps_checkpoints(self) -> bool:
        return self._log_model == "ALL"

    def keep(self, facts: Facts, folder: str, name: str, row: Row) -> None:
        self._live.log_artifact(facts.output_dir)

    def keeps_model(self) -> bool:
        return self._log_model in TRUE

    def keep_model(self, facts: Facts, folder: str, state: Any) -> None:
        name = "best" if facts.args.load_best_model_at_end else "last"
        self._live.log_artifact(folder, name=name, type="model", copy=True)

    def end(self, facts: Facts, finished: bool) -> None:
        if finished:
            self._live.end()
