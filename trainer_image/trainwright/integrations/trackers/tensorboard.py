"""TensorBoard: event files below the output folder. All attempts of a run write into one folder of events."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker, rewrite_logs


class TensorBoardCallback(Tracker):
    """Environment: TENSORBOARD_LOGGING_DIR."""

    name = "tensorboard"
    joins_rows = True
    _writer_class: Any
    _writer: Any = None
    _folder: str | None = None

    def look_up(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            from tensorboardX import SummaryWriter  # type: ignore[no-redef,unused-ignore]
        self._writer_class = SummaryWriter

    def begin(self, facts: Facts) -> str | None:
        chosen, run_id = os.environ.get("TENSORBOARD_LOGGING_DIR"), facts.run_id
        if facts.trial_name is not None:
            run_id = os.path.join(default_logdir(), facts.trial_name)
        elif chosen is None and run_id is None:
            run_id = default_logdir()
        self._folder = os.path.expanduser(chosen or "") if run_id is None else os.path.join(facts.output_dir, run_id)
        # Steps after the checkpoint were logged by the attempt that was lost; this run logs them again.
        more = {"purge_step": facts.step + 1} if facts.resumes else {}
        self._writer = self._writer_class(log_dir=self._folder, **more)
        self._writer.add_text("args", facts.args.to_json_string())
        if (config := getattr(facts.model, "config", None)) is not None:
            self._writer.add_text("model_config", config.to_json_string())
        self._writer.flush()
        return run_id

    def send(self, facts: Facts, rows: list[Row]) -> None:
        if self._writer is None:  # logged after the end of training, into the same folder
            self._writer = self._writer_class(log_dir=self._folder)
        for row in rows:
            if not row.predicted:
                self._add(row)
        self._writer.flush()

    def _add(self, row: Row) -> None:
        for name, value in rewrite_logs(row.values).items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, row.step)
            elif isinstance(value, str):
                self._writer.add_text(name, value, row.step)

    def end(self, facts: Facts, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def default_logdir() -> str:
    """``runs/Nov30_10-15-00_host``, as torch names it."""
    return os.path.join("runs", f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}")
