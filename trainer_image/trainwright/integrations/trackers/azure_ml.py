"""Azure ML, by the SDK of version 1 (azureml-core). The service gives the run, so a restart finds the same one."""

from __future__ import annotations

from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker


class AzureMLCallback(Tracker):
    name = "azure_ml"
    keeps_run = True
    _run: Any = None

    def look_up(self) -> None:
        from azureml.core.run import Run

        self._class = Run

    def begin(self, facts: Facts) -> str | None:
        self._run = self._class.get_context()
        run_id: str | None = getattr(self._run, "id", None)
        return run_id

    def page(self) -> str | None:
        get = getattr(self._run, "get_portal_url", None)
        return get() if get is not None else None

    def send(self, facts: Facts, rows: list[Row]) -> None:
        (row,) = rows
        for name, value in row.values.items():
            if isinstance(value, int | float) and not row.predicted:
                self._run.log(name, value, description=name)
