"""SwanLab."""

from __future__ import annotations

import os
from typing import Any

from trainwright.integrations.trackers.tracker import SINGLE_VALUES, Facts, Row, Tracker, rewrite_logs


class SwanLabCallback(Tracker):
    """Environment: SWANLAB_PROJECT, SWANLAB_RUN_ID, SWANLAB_RESUME, SWANLAB_MODE and the others of swanlab."""

    name = "swanlab"
    keeps_run = True

    def look_up(self) -> None:
        import swanlab

        self._swanlab = swanlab

    def begin(self, facts: Facts) -> str | None:
        names = [name for name in (facts.args.run_name, facts.trial_name) if name is not None]
        more: dict[str, Any] = {"experiment_name": "-".join(names)} if names else {}
        run_id, resume = os.environ.get("SWANLAB_RUN_ID") or facts.run_id, os.environ.get("SWANLAB_RESUME")
        if run_id is not None:
            more |= {"id": run_id, "resume": resume or "allow"}
        if self._current() is None:
            self._swanlab.init(project=os.environ.get("SWANLAB_PROJECT"), **more)
        self._swanlab.config["FRAMEWORK"] = "🤗transformers"
        self._swanlab.config.update(facts.parameters)
        if (count := facts.num_parameters()) is not None:
            self._swanlab.config.update({"model_num_parameters": count})
        return self._id()

    def _current(self) -> Any:
        """The run that is open, or None: newer releases raise an error instead."""
        try:
            return self._swanlab.get_run()
        except RuntimeError:
            return None

    def _id(self) -> str | None:
        run = self._current()
        return getattr(getattr(run, "public", None), "run_id", None) or getattr(run, "id", None)

    def page(self) -> str | None:
        run = self._current()
        cloud = getattr(getattr(run, "public", None), "cloud", None)
        return getattr(cloud, "experiment_url", None) or getattr(run, "url", None)

    def send(self, facts: Facts, rows: list[Row]) -> None:
        (row,) = rows
        if row.predicted:
            self._swanlab.log(rewrite_logs(row.values))
            return
        for name in SINGLE_VALUES:
            if name in row.values:
                self._swanlab.log({f"single_value/{name}": row.values[name]}, step=row.step)
        others = {name: value for name, value in row.values.items() if name not in SINGLE_VALUES}
        self._swanlab.log({**rewrite_logs(others), "train/global_step": row.step}, step=row.step)
