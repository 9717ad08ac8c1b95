"""The base of the trackers: what they share of a run, and the thread that each sends on.

A subclass fills in :meth:`begin`, :meth:`send` and what else its tracker can do; all of these run on the sender's
thread, on world rank 0 alone. Names and values are those that the callback of transformers with the same name logs.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from trainwright.callbacks.callback import TrainerCallback
from trainwright.integrations import addresses
from trainwright.integrations.failures import is_outage, one_line
from trainwright.integrations.staging import STAGED, remove, stage
from trainwright.integrations.trackers.sender import Job, Sender
from trainwright.job import resolved_job

START_SECONDS = 10.0
"""How long training waits for a run to begin, so that ``wandb.run`` and the like are there in the first step."""
IDLE_SECONDS, END_SECONDS = 10.0, 120.0
"""The end of training gives up on a tracker that takes longer than this for one request, or for all of them."""
SAVE_SECONDS = 1.0
"""The same at a checkpoint, once."""
EXIT_SECONDS = 5.0
"""The same when the process ends early: a preempted one has little time."""

SINGLE_VALUES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
RUNS_FILE = "_trackers.json"
"""In the output folder: the runs of a TrainingJob, for an attempt that finds no checkpoint."""
TRUE = {"1", "ON", "YES", "TRUE"}


def flag(variable: str, default: str = "FALSE") -> bool:
    """Whether a variable of the environment is true, as transformers reads it."""
    return os.environ.get(variable, default).upper() in TRUE


def rewrite_logs(logs: dict[str, Any]) -> dict[str, Any]:
    """``eval_loss`` -> ``eval/loss``, ``test_loss`` -> ``test/loss``, ``loss`` -> ``train/loss``."""
    return {_renamed(name): value for name, value in logs.items()}


def _renamed(name: str) -> str:
    prefix = name[:5]
    return f"{prefix[:4]}/{name[5:]}" if prefix in ("eval_", "test_") else f"train/{name}"


@dataclass(frozen=True)
class Row:
    """One entry of the log, or the metrics of a prediction."""

    values: dict[str, Any]
    step: int
    epoch: float | None
    predicted: bool = False
    time: float = field(default_factory=time.time)
    """Seconds since the epoch."""


@dataclass
class Facts:
    """What a tracker needs of a run, read on the training thread."""

    args: Any
    arguments: dict[str, Any]
    model: Any
    model_config: dict[str, Any]
    output_dir: str
    step: int = 0
    logging_steps: int = 500
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None
    resumes: bool = False
    given: Any = None
    """What :meth:`Tracker.look` found."""
    run_id: str | None = None
    """The run to continue."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Model configuration and arguments, and the adapters of a PEFT model."""
        both = {**self.model_config, **self.arguments}
        adapters = getattr(self.model, "peft_config", None)
        return both if adapters is None else {"peft_config": adapters, **both}

    def num_parameters(self) -> int | None:
        count: Callable[[], int] | None = getattr(self.model, "num_parameters", None)
        return None if count is None else count()


def _config_of(model: Any) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {} if config is None else dict(config if isinstance(config, dict) else config.to_dict())


class Tracker(TrainerCallback):
    """A callback that sends the log to one tracker.

    Attributes:
        name: The name in ``report_to``.
        save_model: ``save_model(folder)`` of the Trainer, for trackers that keep the final model.
    """

    name: ClassVar[str]
    joins_rows: ClassVar[bool] = False
    """Whether :meth:`send` can take several rows at once."""
    keeps_run: ClassVar[bool] = False
    """Whether the run of this process stays open for a second ``train``, as it does in transformers."""

    def __init__(self) -> None:
        self._sender = Sender(self.name, say)
        self._tried: threading.Event | None = None
        self._begun = self._adopted = False
        self._facts: Facts | None = None
        self._failed = False
        self._registered = False
        self._ended = False
        self.run_id: str | None = None
        """The tracker's own name of the run, by which it can be continued."""
        self.save_model: Callable[[str], None] | None = None
        self.look_up()

    # -- what a subclass fills in

    def look_up(self) -> None:
        """Import the package, on the training thread."""

    def look(self, args: Any, state: Any) -> Any:
        """What only the training thread can see, such as a run that the script has begun; goes to ``facts.given``."""

    def begin(self, facts: Facts) -> str | None:
        """Begin the run, or continue ``facts.run_id``; return its id."""
        raise NotImplementedError

    def send(self, facts: Facts, rows: list[Row]) -> None:
        """Send rows of the log; one, unless the class joins rows."""
        raise NotImplementedError

    def adopt(self, facts: Facts) -> None:
        """Make the run known on the training thread, once it has begun."""

    def keep(self, facts: Facts, folder: str, name: str, row: Row) -> None:
        """Keep a checkpoint. ``folder`` stays until this returns."""

    def keeps_checkpoints(self) -> bool:
        return False

    def keep_model(self, facts: Facts, folder: str, state: Any) -> None:
        """Keep the final model. ``folder`` stays until this returns."""

    def keeps_model(self) -> bool:
        return False

    def end(self, facts: Facts, finished: bool) -> None:
        """End the run; ``finished`` is false when the process ends before training has."""

    def leave(self) -> None:
        """Close a run that was kept open until the end of the process."""

    def page(self) -> str | None:
        """The URL of the run."""
        return None

    # -- the events

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        if not self._sends(state):
            return
        if self._ended and (not self.keeps_run or state.is_hyper_param_search):
            self._tried, self.run_id = None, None
        self._begin(args, state, model)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):  # type: ignore[no-untyped-def]
        if self._sends(state) and logs is not None:
            self._begin(args, state, model)
            self._put(Row(dict(logs), state.global_step, state.epoch))

    def on_predict(self, args, state, control, metrics, model=None, **kwargs):  # type: ignore[no-untyped-def]
        if self._sends(state):
            self._begin(args, state, model)
            self._put(Row(dict(metrics), state.global_step, state.epoch, predicted=True))

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if not self._sends(state) or self._tried is None:
            return
        self._sender.drain(SAVE_SECONDS)  # a process that is killed now resumes after these rows, and never sends them
        if not self.keeps_checkpoints():
            return
        name, facts = f"checkpoint-{state.global_step}", self._known()
        row = Row({}, state.global_step, state.epoch)
        folder = stage(Path(args.output_dir) / name, Path(args.output_dir), f"{self.name}-{name}")
        self._queue(lambda: self.keep(facts, str(folder), name, row), then=lambda: remove(folder))

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if self.keeps_model() and self.save_model is not None:  # on every rank: a sharded model is gathered
            folder = Path(args.output_dir) / STAGED / f"{self.name}-model"
            self.save_model(str(folder))
            if self._sends(state) and self._tried is not None:
                facts = self._known()
                self._queue(lambda: self.keep_model(facts, str(folder), state), then=lambda: remove(folder))
        if self._sends(state) and self._tried is not None:
            self._finish(True, IDLE_SECONDS, END_SECONDS)

    # -- the state of a checkpoint

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"run_id": self.run_id}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        tracker = cls()
        tracker.run_id = state["attributes"].get("run_id")
        return tracker

    # -- the shared part

    def _sends(self, state: Any) -> bool:
        return bool(state.is_world_process_zero) and not self._failed

    def _known(self) -> Facts:
        assert self._facts is not None
        return self._facts

    def _begin(self, args: Any, state: Any, model: Any) -> None:
        """Begin the run unless it has, and wait a moment for it."""
        if self._tried is None:
            self._tried, self._begun, self._adopted, self._ended = threading.Event(), False, False, False
            self._facts = self._read(args, state, model)
            self._facts.run_id = self._run_to_continue(args, state)
            self._facts.resumes = self._facts.run_id is not None
            self._sender.put(Job(self._start, []))
            if not self._registered:
                self._registered = True
                atexit.register(self._exit)
            self._sender.wait_for(self._tried, START_SECONDS)
        if self._begun and not self._adopted:
            self._adopted = True
            try:
                self.adopt(self._known())
            except Exception as error:
                say(f"{self.name}: {one_line(error)}; training goes on")

    def _read(self, args: Any, state: Any, model: Any) -> Facts:
        return Facts(
            args=args, arguments=args.to_dict(), model=model, model_config=_config_of(model),
            output_dir=str(args.output_dir), step=state.global_step, logging_steps=state.logging_steps,
            trial_name=state.trial_name, trial_params=state.trial_params, given=self.look(args, state),
        )  # fmt: skip

    def _run_to_continue(self, args: Any, state: Any) -> str | None:
        """The run of the checkpoint that this training resumes from, or of the job's earlier attempt."""
        if state.is_hyper_param_search:
            return None
        if state.global_step:
            stored = (state.stateful_callbacks or {}).get(type(self).__name__)
            stored = stored[0] if isinstance(stored, list) else stored
            found: str | None = (stored or {}).get("attributes", {}).get("run_id")
            return found
        job = resolved_job()
        if job is None or self.run_id is not None or self.name in _BEGUN:
            return None
        known = _read_runs(args.output_dir)
        return known.get("runs", {}).get(self.name) if known.get("job") == job.uid else None

    def _start(self, rows: list[Any]) -> None:
        """Begin the run. A run that cannot be continued is replaced by a new one; a refusal ends this tracker."""
        facts = self._known()
        try:
            self._begin_or_replace(facts)
            self._begun = True
            with suppress(Exception):  # a run without a page, such as an offline one, is a run
                addresses.announce(self.name, self.page())
            self._write_runs(facts)
        except Exception as error:
            if is_outage(error):
                raise
            self._failed = True
            say(f"{self.name}: it gets no log of this run, because it refuses: {one_line(error)}")
        finally:
            if self._tried is not None:
                self._tried.set()

    def _begin_or_replace(self, facts: Facts) -> None:
        try:
            self.run_id = self.begin(facts)
        except Exception as error:
            if facts.run_id is None or is_outage(error):
                raise
            say(f"{self.name}: run {facts.run_id} cannot be continued, so a new one begins: {one_line(error)}")
            facts.run_id, facts.resumes = None, False
            self.run_id = self.begin(facts)

    def _write_runs(self, facts: Facts) -> None:
        job = resolved_job()
        if job is None or self.run_id is None:
            return
        _BEGUN.add(self.name)
        with _RUNS_LOCK, suppress(OSError):
            known = _read_runs(facts.output_dir)
            runs = known.get("runs", {}) if known.get("job") == job.uid else {}
            path = Path(facts.output_dir) / RUNS_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".new")
            aside.write_text(json.dumps({"job": job.uid, "runs": {**runs, self.name: self.run_id}}), encoding="utf-8")
            aside.replace(path)

    def _put(self, row: Row) -> None:
        self._sender.put(Job(self._send, [row], self.joins_rows))

    def _send(self, rows: list[Any]) -> None:
        if not self._failed:
            self.send(self._known(), rows)

    def _queue(self, work: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
        def run(rows: list[Any]) -> None:
            try:
                if not self._failed:
                    work()
            finally:
                then()

        self._sender.put(Job(run, []))

    def _finish(self, finished: bool, idle: float, most: float) -> None:
        facts, self._ended = self._known(), True
        self._queue(lambda: self.end(facts, finished))
        self._sender.stop(idle, most)

    def _exit(self) -> None:
        """The process ends: send what is left."""
        if self._tried is None or self._failed:
            return
        facts = self._known()
        if not self._ended:
            self._queue(lambda: self.end(facts, False))
        if self.keeps_run:
            self._queue(self.leave)
        self._sender.stop(EXIT_SECONDS, EXIT_SECONDS)


_BEGUN: set[str] = set()
"""The trackers of which this process has begun a run: a second training of one script is a run of its own."""
_RUNS_LOCK = threading.Lock()


def _read_runs(folder: str) -> dict[str, Any]:
    try:
        known = json.loads((Path(folder) / RUNS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
