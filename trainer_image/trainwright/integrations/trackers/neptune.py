"""Neptune."""

from __future__ import annotations

from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker, rewrite_logs

_SPACE = "finetuning"
_LAST_ONLY = "train/epoch"
"""The metric of which Neptune keeps the last value alone."""


class NeptuneCallback(Tracker):
    """Environment: NEPTUNE_PROJECT, NEPTUNE_API_TOKEN, NEPTUNE_MODE."""

    name = "neptune"
    _run: Any = None

    def look_up(self) -> None:
        import neptune

        self._neptune = neptune

    def begin(self, facts: Facts) -> str | None:
        from neptune.utils import stringify_unsupported

        more = {} if facts.run_id is None else {"with_id": facts.run_id}
        self._run = self._neptune.init_run(name=facts.args.run_name, **more)
        space = self._run[_SPACE]
        space["trainer_parameters"] = facts.args.to_sanitized_dict()
        if facts.model_config:
            space["model_parameters"] = stringify_unsupported(facts.model_config)
        if facts.trial_name is not None:
            space["trial"] = facts.trial_name
            space["trial_params"] = facts.trial_params
        try:
            return str(self._run["sys/id"].fetch())
        except self._neptune.exceptions.NeptuneOfflineModeFetchException:
            return None

    def page(self) -> str | None:
        return self._run.get_url() if self.run_id is not None else None

    def send(self, facts: Facts, rows: list[Row]) -> None:
        (row,) = rows
        if row.predicted:
            return
        for name, value in rewrite_logs(row.values).items():
            if name == _LAST_ONLY:
                self._run[_SPACE][name] = value
            elif isinstance(value, int | float):
                self._run[_SPACE][name].append(value, step=row.step)

    def end(self, facts: Facts, finished: bool) -> None:
        self._run.stop()
