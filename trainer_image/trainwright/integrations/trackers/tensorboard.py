"""TensorBoard: event files below the output folder. All attempts of a run write into one folder of events."""

from __future__ import annotations

import itertools
import os
import socket
import time
from datetime import datetime
from importlib import import_module
from io import BytesIO
from typing import Any

from trainwright.integrations.trackers.tracker import Facts, Row, Tracker, rewrite_logs

_NUMBERS = itertools.count()


class TensorBoardCallback(Tracker):
    """Environment: TENSORBOARD_LOGGING_DIR."""

    name = "tensorboard"
    joins_rows = True
    _events_class: Any
    _events: Any = None
    _folder: str | None = None

    def look_up(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401 # checks the version of tensorboard

            self._events_class = EventFile
        except ImportError:
            import tensorboardX  # type: ignore[import-not-found,unused-ignore] # noqa: F401

            self._events_class = ThroughTensorboardX

    def begin(self, facts: Facts) -> str | None:
        chosen, run_id = os.environ.get("TENSORBOARD_LOGGING_DIR"), facts.run_id
        if facts.trial_name is not None:
            run_id = os.path.join(default_logdir(), facts.trial_name)
        elif chosen is None and run_id is None:
            run_id = default_logdir()
        self._folder = os.path.expanduser(chosen or "") if run_id is None else os.path.join(facts.output_dir, run_id)
        # Steps after the checkpoint were logged by the attempt that was lost; this run logs them again.
        self._events = self._events_class(self._folder, facts.step + 1 if facts.resumes else None)
        self._events.add_text("args", facts.args.to_json_string(), None)
        if (config := getattr(facts.model, "config", None)) is not None:
            self._events.add_text("model_config", config.to_json_string(), None)
        self._events.flush()
        return run_id

    def send(self, facts: Facts, rows: list[Row]) -> None:
        if self._events is None:  # logged after the end of training, into the same folder
            self._events = self._events_class(self._folder)
        for row in rows:
            if not row.predicted:
                self._add(row)
        self._events.flush()

    def _add(self, row: Row) -> None:
        values = rewrite_logs(row.values)
        self._events.add_scalars({k: v for k, v in values.items() if isinstance(v, int | float)}, row.step, row.time)
        for name, value in values.items():
            if isinstance(value, str):
                self._events.add_text(name, value, row.step)

    def end(self, facts: Facts, finished: bool) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


class EventFile:
    """An event file that this thread writes, with one event for a row.

    torch's ``SummaryWriter`` writes an event for every value, on a thread of its own that opens the file for each:
    several times as much work, all of it under Python's interpreter lock.
    """

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        tf, proto = import_module("tensorboard.compat").tf, "tensorboard.compat.proto"
        events, summaries = import_module(f"{proto}.event_pb2"), import_module(f"{proto}.summary_pb2")
        self._event, self._summary = events.Event, summaries.Summary
        tf.io.gfile.makedirs(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = tf.io.gfile.GFile(os.path.join(folder, name), "wb")  # on a disk, or in an object store
        self._buffer = BytesIO()
        self._records = import_module("tensorboard.summary.writer.record_writer").RecordWriter(self._buffer)
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            self._add(step=purge_step, session_log=events.SessionLog(status=events.SessionLog.START))

    def add_scalars(self, values: dict[str, float], step: int, at: float) -> None:
        """``at`` is in seconds since the epoch."""
        kind = self._summary.Value
        summary = self._summary(value=[kind(tag=name, simple_value=value) for name, value in values.items()])
        self._add(step=step, summary=summary, wall_time=at)

    def add_text(self, name: str, text: str, step: int | None) -> None:
        from torch.utils.tensorboard.summary import text as summary_of

        self._add(step=step or 0, summary=summary_of(name, text))

    def flush(self) -> None:
        self._file.write(self._buffer.getvalue())
        self._file.flush()
        self._buffer.seek(0)
        self._buffer.truncate()

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _add(self, wall_time: float | None = None, **fields: Any) -> None:
        event = self._event(wall_time=time.time() if wall_time is None else wall_time, **fields)
        self._records.write(event.SerializeToString())


class ThroughTensorboardX:
    """The same by the package tensorboardX, where tensorboard is not installed."""

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(folder, **({} if purge_step is None else {"purge_step": purge_step}))
        self.add_text, self.flush, self.close = self._writer.add_text, self._writer.flush, self._writer.close

    def add_scalars(self, values: dict[str, float], step: int, at: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, at)


def default_logdir() -> str:
    """``runs/Nov30_10-15-00_host``, as torch names it."""
    return os.path.join("runs", f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}")
