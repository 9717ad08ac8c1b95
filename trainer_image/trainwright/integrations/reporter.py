"""Reports a run: a heartbeat for the launcher, progress for the operator, and the last report.

On the training thread, a step costs two stores into shared memory. The rest runs on a thread of rank 0, which reads the
trainer's state at intervals, and at once after a log, an evaluation or a save.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainwright.callbacks.callback import TrainerCallback
from trainwright.contract import (
    ENV_JOB_FILE,
    ENV_OUTPUT_DIR,
    MAX_METRICS,
    MAX_RUNS,
    Progress,
    UserError,
)
from trainwright.integrations import addresses, clock, expected_memory, waiting
from trainwright.job import current_round
from trainwright.launch import nodefiles
from trainwright.launch.push import Endpoint, Poster, Publisher

INTERVAL_SECONDS = 5.0
"""How often a changed step is reported; events are reported at once."""
LOCAL_INTERVAL_SECONDS = 1.0
"""The same without a network: to an address of this machine, or only to the launcher."""
FLUSH_SECONDS = 3.0
"""How long the end of the process waits for the last push."""
RATE_WINDOW_SECONDS = 60.0
_NOT_METRICS = ("epoch", "step", "total_flos")


class Reporter(TrainerCallback):
    """The callback that reports. The Trainer adds the one from :meth:`from_environment`, if any.

    It works with any trainer that calls the events of Hugging Face's ``TrainerCallback``.

    Attributes:
        data_size: The number of processes that read different samples; None for all.
    """

    def __init__(
        self,
        folder: Path | None = None,
        endpoint: Endpoint | None = None,
        rank: int = 0,
        attempt: int | None = None,
        round: int | None = None,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._folder = folder
        self._beat = _heartbeat(folder)
        self._poster = Poster(endpoint) if endpoint else None
        self._reports = rank == 0
        self._interval = interval
        self._publisher: Publisher | None = None
        self._training = False
        self._source: tuple[Any, Any] | None = None
        self._clock: clock.Clock | None = None
        self._known = Progress(attempt=attempt, round=round)
        self._reported: Progress | None = None
        self._meter = Meter()
        self.data_size: int | None = None

    @classmethod
    def from_environment(cls) -> Reporter | None:
        """None if there is neither a launcher nor an endpoint to report to."""
        folder, endpoint = nodefiles.node_dir(), _endpoint()
        if folder is None and endpoint is None:
            return None
        local = endpoint is None or endpoint.url.startswith("http:")
        interval = LOCAL_INTERVAL_SECONDS if local else INTERVAL_SECONDS
        rank, attempt = int(os.environ.get("RANK", "0")), _attempt()
        return cls(folder, endpoint, rank, attempt, current_round() if attempt else None, interval)

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._beat(state.global_step)

    def on_prediction_step(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if self._training:
            self._beat(state.global_step)

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._training = True
        self._meter = Meter()
        self._report(args, state)

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        self._report(args, state, **self._with_metrics(logs or {}))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):  # type: ignore[no-untyped-def]
        self._report(args, state, **self._with_metrics(metrics or {}))

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        self._report(args, state, checkpoint={"path": _relative(path, args), "step": state.global_step, "time": _now()})

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._training = False
        self._beat(nodefiles.RESTING)
        self._report(args, state)

    def _with_metrics(self, new: dict[str, Any]) -> dict[str, Any]:
        metrics, left_out = merged(self._known.metrics, new)
        return {"metrics": metrics, "metrics_left_out": max(self._known.metrics_left_out, left_out)}

    def close(self) -> None:
        """Writes the last report and pushes it, within :data:`FLUSH_SECONDS`. Called at the end of the process."""
        if self._publisher is not None:
            atexit.unregister(self.close)
            self._publisher.close(FLUSH_SECONDS)
            self._write(self._progress())

    def _report(self, args: Any, state: Any, **changes: Any) -> None:
        """Stores the changes and lets the publisher report them soon."""
        if self._training:
            self._beat(state.global_step)
        if not self._reports:
            return
        self._known = replace(self._known, **changes)
        self._source, self._clock = (args, state), clock.of_process()
        if self._publisher is None:
            waiting.hand_over()
            self._publisher = Publisher(self._collect, self._deliver, _log_failure, self._interval)
            atexit.register(self.close)
        self._publisher.publish_soon()

    # The methods below run on the publisher's thread.

    def _collect(self, urgent: bool) -> dict[str, Any] | None:
        progress = self._progress()
        last = self._reported
        if not urgent and last is not None and (progress.step, progress.activity) == (last.step, last.activity):
            return None
        self._reported = progress
        self._write(progress)
        return progress.to_wire(_now())

    def _progress(self) -> Progress:
        assert self._source is not None
        args, state = self._source
        return replace(
            self._known,
            step=state.global_step,
            max_steps=state.max_steps if state.max_steps and state.max_steps > 0 else None,
            epoch=state.epoch,
            best=_best(args, state),
            activity=waiting.activity(),
            runs=addresses.runs()[:MAX_RUNS],
            model=addresses.model(),
            memory=expected_memory.expected(),
            slowest=self._clock.slowest if self._clock is not None else None,
            anomalies=self._clock.anomalies if self._clock is not None else None,
            clock=self._clock.read() if self._clock is not None and self._clock.used else None,
            **self._meter.read(args, state, time.monotonic(), self._training, self.data_size),
        )

    def _write(self, progress: Progress) -> None:
        if self._folder is not None:
            nodefiles.write_atomically(nodefiles.report_path(self._folder), json.dumps(asdict(progress)))

    def _deliver(self, document: dict[str, Any]) -> None:
        if self._poster is not None:
            self._poster.post(document)


def _heartbeat(folder: Path | None) -> Callable[[int], None]:
    if folder is None:
        return lambda step: None
    return nodefiles.Heartbeat(nodefiles.heartbeat_path(folder, nodefiles.local_rank())).beat


def _endpoint() -> Endpoint | None:
    try:
        return Endpoint.from_environment()
    except UserError as error:
        _log_failure(str(error))
        return None


@dataclass(frozen=True)
class _Sample:
    time: float
    step: int
    tokens: int


class Meter:
    """Speed and remaining time over the last minute, from the trainer's own counters."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def read(self, args: Any, state: Any, now: float, training: bool, data_size: int | None = None) -> dict[str, Any]:
        """``remaining_seconds``, ``samples_per_second``, ``tokens_per_second``; each is None while unknown.

        The first step is left out, because it includes compilation and the filling of caches.
        """
        data_size = data_size or args.world_size
        if state.global_step and training:
            self._samples.append(_Sample(now, state.global_step, _tokens(state, data_size)))
        while len(self._samples) > 2 and now - self._samples[1].time > RATE_WINDOW_SECONDS:
            self._samples.popleft()
        steps, tokens = self._speed()
        per_step = (state.train_batch_size or 0) * args.gradient_accumulation_steps * data_size
        left = state.max_steps - state.global_step
        return {
            "remaining_seconds": max(0, math.ceil(left / steps)) if steps else (0 if left <= 0 else None),
            "samples_per_second": round(steps * per_step, 3) or None,
            "tokens_per_second": round(tokens, 1) or None,
        }

    def _speed(self) -> tuple[float, float]:
        """Steps and tokens a second, between the oldest and the newest sample."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        first, last = self._samples[0], self._samples[-1]
        elapsed = max(last.time - first.time, 1e-9)
        return (last.step - first.step) / elapsed, (last.tokens - first.tokens) / elapsed


def _tokens(state: Any, data_size: int) -> int:
    """Tokens over all data ranks: the count that the user asked for, else this rank's count times their number."""
    return int(state.num_input_tokens_seen or getattr(state, "local_tokens", 0) * data_size)


def merged(known: dict[str, float], new: dict[str, Any]) -> tuple[dict[str, float], int]:
    """The newest value of each metric, at most :data:`MAX_METRICS`, and how many were left out because of that limit.

    Values other than numbers are ignored.
    """
    numbers = {
        name: float(value)
        for name, value in new.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_METRICS
    }
    every = list({**known, **numbers}.items())
    return dict(every[:MAX_METRICS]), max(0, len(every) - MAX_METRICS)


def _best(args: Any, state: Any) -> dict[str, Any] | None:
    if state.best_metric is None:
        return None
    best = {
        "metric": args.metric_for_best_model or "loss",
        "value": state.best_metric,
        "step": state.best_global_step,
        "checkpoint": state.best_model_checkpoint and _relative(state.best_model_checkpoint, args),
    }
    return {name: value for name, value in best.items() if value is not None}


def _relative(path: str, args: Any) -> str:
    return os.path.relpath(path, os.environ.get(ENV_OUTPUT_DIR) or args.output_dir)


def _attempt() -> int | None:
    try:
        return int(json.loads(Path(os.environ[ENV_JOB_FILE]).read_text())["attempt"])
    except (KeyError, OSError, ValueError, TypeError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _log_failure(problem: str) -> None:
    print(f"progress is not reported for now: {problem}", file=sys.stderr, flush=True)
