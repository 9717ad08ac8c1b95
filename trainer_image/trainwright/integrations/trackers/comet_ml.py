"""Comet."""

from __future__ import annotations

import os
from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker, flag, rewrite_logs

_MODES = ("get", "get_or_create", "create")


class CometCallback(Tracker):
    """Environment: COMET_MODE, COMET_START_ONLINE, COMET_PROJECT_NAME, COMET_EXPERIMENT_KEY, COMET_LOG_ASSETS."""

    name = "comet_ml"
    keeps_run = True
    _experiment: Any = None

    def look_up(self) -> None:
        import comet_ml

        self._comet = comet_ml

    def begin(self, facts: Facts) -> str | None:
        mode = os.environ.get("COMET_MODE", "").lower() or None
        if mode is not None and mode not in _MODES:
            raise ValueError(f"COMET_MODE must be one of {', '.join(_MODES)}, not {mode!r}")
        config = self._comet.ExperimentConfig(name=facts.args.run_name)
        known = {} if facts.run_id is None else {"experiment_key": facts.run_id}
        mode = "create" if facts.trial_name is not None else mode
        self._experiment = self._comet.start(mode=mode, experiment_config=config, **known)
        self._experiment.__internal_api__set_model_graph__(facts.model, framework="transformers")
        parameters: dict[str, Any] = {"args": facts.arguments}
        if facts.model_config:
            parameters["config"] = facts.model_config
        if (adapters := getattr(facts.model, "peft_config", None)) is not None:
            parameters["peft_config"] = adapters
        self._experiment.__internal_api__log_parameters__(
            parameters, framework="transformers", source="manual", flatten_nested=True
        )
        if facts.trial_name is not None:
            self._experiment.log_optimization(optimization_id=facts.trial_name, parameters=facts.trial_params)
        key: str = self._experiment.get_key()
        return key

    def page(self) -> str | None:
        return getattr(self._experiment, "url", None)

    def send(self, facts: Facts, rows: list[Row]) -> None:
        (row,) = rows
        self._experiment.__internal_api__log_metrics__(
            rewrite_logs(row.values), step=row.step, epoch=row.epoch, framework="transformers"
        )

    def end(self, facts: Facts, finished: bool) -> None:
        if flag("COMET_LOG_ASSETS") and finished:
            self._experiment.log_asset_folder(facts.output_dir, recursive=True, log_file_name=True)
        if facts.trial_name is not None:
            self._experiment.clean()

    def leave(self) -> None:
        if self._experiment is not None:
            self._experiment.end()
