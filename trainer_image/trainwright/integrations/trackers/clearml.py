"""ClearML."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from trainwright.integrations.trackers.tracker import SINGLE_VALUES, Facts, Row, Tracker, flag

_HYPERPARAMETERS, _MODEL = "Transformers", "Model Configuration"


class ClearMLCallback(Tracker):
    """Environment: CLEARML_PROJECT, CLEARML_TASK, CLEARML_LOG_MODEL, and what clearml itself reads."""

    name = "clearml"
    _task: Any = None
    _own = False
    _saved: list[Any]

    def look_up(self) -> None:
        import clearml

        self._clearml, self._saved = clearml, []

    def begin(self, facts: Facts) -> str | None:
        self._task = self._clearml.Task.current_task()
        self._own = self._task is None
        if self._own:
            self._task = self._clearml.Task.init(
                project_name=os.environ.get("CLEARML_PROJECT", "HuggingFace Transformers"),
                task_name=os.environ.get("CLEARML_TASK", "Trainer"),
                auto_connect_frameworks={"tensorboard": False, "pytorch": False},
                output_uri=True,
                continue_last_task=facts.run_id or False,
            )
        self._connect_arguments(facts)
        if facts.model_config:
            self._note("_ignore_model_config_ui_overrides_", "Transformers model configuration")
            self._task.set_configuration_object(
                name=_MODEL, config_dict=facts.model_config, description="The configuration of model number 1."
            )
        task_id: str = self._task.id
        return task_id

    def _connect_arguments(self, facts: Facts) -> None:
        from clearml.utilities.proxy_object import flatten_dictionary

        names = [each.name for each in fields(facts.args) if each.init and not each.name.endswith("_token")]
        flat = flatten_dictionary({name: getattr(facts.args, name) for name in names})
        self._task._arguments.copy_from_dict({str(k): v for k, v in flat.items()}, prefix=_HYPERPARAMETERS)
        self._note("_ignore_hparams_ui_overrides_", "Transformers hyperparameters")

    def _note(self, name: str, what: str) -> None:
        """Tell the UI that what it overrides in a clone of this task has no effect; the names are transformers'."""
        self._task.set_parameter(
            name=f"{_HYPERPARAMETERS}/{name}", value=True, value_type=bool,
            description=f"If True, overrides of the {what} in the UI are ignored when the task runs remotely.",
        )  # fmt: skip

    def page(self) -> str | None:
        found: str | None = self._task.get_output_log_web_page()
        return found

    def send(self, facts: Facts, rows: list[Row]) -> None:
        (row,) = rows
        log = self._task.get_logger()
        for name, value in row.values.items():
            if not isinstance(value, int | float) or row.predicted:
                continue
            if name in (*SINGLE_VALUES, "epoch"):
                log.report_single_value(name=name, value=value)
                continue
            title = name[:4] if name.startswith(("eval_", "test_")) else "train"
            series = name if title == "train" else name[5:]
            log.report_scalar(title=title, series=series, value=value, iteration=row.step)

    def keeps_checkpoints(self) -> bool:
        return flag("CLEARML_LOG_MODEL", "TRUE" if self._own else "FALSE")

    def keep(self, facts: Facts, folder: str, name: str, row: Row) -> None:
        model = self._clearml.OutputModel(task=self._task, name=name)
        model.connect(task=self._task, name=name)
        model.update_weights_package(
            weights_path=folder, target_filename=name, iteration=row.step, auto_delete_file=False, async_enable=False
        )
        self._saved.append(model)
        while facts.args.save_total_limit and facts.args.save_total_limit < len(self._saved):
            self._clearml.model.Model.remove(self._saved.pop(0), delete_weights_file=True, force=True)

    def end(self, facts: Facts, finished: bool) -> None:
        if self._own:
            self._task.close()
