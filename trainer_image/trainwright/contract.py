"""The contract between the operator and the trainer: paths, environment, exit codes, and three documents.

The operator plans pods with a *resolved job*, which the launcher in each pod reads; the trainer reports *progress* and
writes a *termination message*. Both sides import this module, so it only imports the standard library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

RESOLVED_JOB_VERSION = 1
"""Increased when older trainers can no longer run a resolved job."""

# Environment of a pod, beside torchrun's own PET_* and OMP_NUM_THREADS.
ENV_JOB_FILE = "TRAINWRIGHT_JOB_FILE"
ENV_OUTPUT_DIR = "TRAINWRIGHT_OUTPUT_DIR"
ENV_TERMINATION_FILE = "TRAINWRIGHT_TERMINATION_FILE"
ENV_NODE_DIR = "TRAINWRIGHT_NODE_DIR"
"""A private folder that the launcher creates for the ranks of its node: heartbeats and the last report."""
ENV_RUNTIME = "TRAINWRIGHT_RUNTIME"
"""How the launcher starts ranks: one of :data:`RUNTIMES`, by default the first."""
ENV_FIRST_NODE_RANK = "TRAINWRIGHT_FIRST_NODE_RANK"
"""With several slices: the node rank of this slice's first host in the gang, which is added to ``PET_NODE_RANK``."""
ENV_VENDOR = "TRAINWRIGHT_VENDOR"
"""The pool's ``vendor``: cpu, nvidia, amd or tpu. A rank without that device fails instead of training on the CPU."""
ENV_ASYNC_SAVE = "TRAINWRIGHT_ASYNC_SAVE"
"""1 or 0: whether checkpoints are written while training continues; see ``trainwright.checkpoint.background``."""
ENV_PACKAGES_DIR = "TRAINWRIGHT_PACKAGES_DIR"
"""The folder of the packages of ``spec.script.requirements``, which ranks can import."""
ENV_REACHED_STEP = "TRAINWRIGHT_REACHED_STEP"
"""The last step that a former attempt reported: steps up to it that are trained again count as redone."""
ENV_RESTARTS_LEFT = "TRAINWRIGHT_RESTARTS_LEFT"
"""How often the launchers may restart their ranks in place. In the environment, which an older image ignores."""
ENV_FAILURES_IN_A_ROW = "TRAINWRIGHT_FAILURES_IN_A_ROW"
"""How many attempts and rounds before this attempt ended soon after their start, for the backoff; 0 if not set."""
ENV_ROUND = "TRAINWRIGHT_ROUND"
"""Of a rank: the round of its attempt, from 1. The launchers start a new round when they restart ranks in place."""
ENV_PROGRESS_URL = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_PROGRESS_CA = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
ENV_PROGRESS_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"

# Paths in a pod.
JOB_FILE = "/etc/trainwright/job.json"
SCRIPT_DIR = "/etc/trainwright/script"
"""Where a script's ConfigMap is mounted; ``script.configMap.key`` is the file name."""
OUTPUT_DIR = "/output"
PACKAGES_DIR = "/opt/trainwright-packages"
TERMINATION_FILE = "/dev/termination-log"
MASTER_PORT = 29400

ON_ANOMALY = ("Ignore", "Skip", "Rollback")
"""What becomes of a step whose loss or gradient norm is wrong; the first is the default."""
ANOMALIES = ("LossNotFinite", "GradientNormNotFinite", "LossTooLarge", "GradientNormTooLarge")
"""What can be wrong with a step, the worst first."""
ANOMALY_FACTOR = 10.0
"""A loss or gradient norm is too large from this many times its running median, by default."""

PREFLIGHT_SECONDS, PREFLIGHT_SLOWDOWN = 300, 3.0
"""How long the checks of ``spec.preflight`` may take, and how many times the median one rank may take, by default."""

RUNTIMES = ("torchrun", "torchtpu", "torch_xla")
"""A pool's ``runtime``: a process for each accelerator under torch's elastic agent; the same with TorchTPU's launch
environment; one process for each host, which drives all of its chips, with PyTorch/XLA.
"""

MAX_RESOLVED_JOB_BYTES = 64 * 1024
MAX_TERMINATION_BYTES = 4096

# What a status keeps: the trainer sends no more, the CRD allows no more, the operator writes no more.
MAX_METRICS = 64
MAX_RUNS = 16
"""Runs of trackers, by their addresses."""
MAX_ATTEMPTS = 20
"""Older ones live on in the counts of restarts."""
MAX_ROUNDS = 8
"""Ended rounds of one attempt, the newest ones; the number of all of them is known beside."""
MAX_ROUND_MESSAGE = 256
MAX_MESSAGE = MAX_TERMINATION_BYTES
"""The maximum length of one message in characters: a termination message always fits."""

CLOCK_CAUSES = (
    "starting",
    "restoring",
    "compiling",
    "stepping",
    "data",
    "evaluating",
    "saving",
    "redone",
    "idle",
)
"""What rank 0 does with its time. ``docs/goodput.md`` defines each."""

_CUT = 40
"""Characters that :func:`shorten` needs to say how much it cut."""


def shorten(text: str, most: int) -> str:
    """``text`` in at most ``most`` characters (40 or more); the end then says how many more there were."""
    if len(text) <= most:
        return text
    kept = most - _CUT
    return f"{text[:kept]} ... and {len(text) - kept} more characters"


class ExitCode(IntEnum):
    """How a pod ends. Any code that is not listed here is retryable: the attempt failed and counts."""

    DONE = 0
    BAD_CONFIGURATION = 64  # EX_USAGE: arguments, model, script or output folder; a retry would fail again
    BAD_DATA = 65  # EX_DATAERR: empty, unreadable or mislabelled data; a retry would fail again
    MISMATCH = 76  # EX_PROTOCOL: the image and the operator differ in release; counts, and can resume after a fix
    HANG = 124  # no step within hangTimeoutSeconds; counts as a failure and is retried
    PREEMPTED = 143  # stopped on request after saving (or trying to); a disruption, never counted


PERMANENT = frozenset({ExitCode.BAD_CONFIGURATION, ExitCode.BAD_DATA})
_NOT_IN_PLACE = PERMANENT | {ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.MISMATCH}

HEALTHY_SECONDS = 600.0
"""An attempt or a round that worked this long ends the row of quick failures that the backoff counts."""
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 10.0, 300.0


def restarts_in_place(code: int) -> bool:
    """Whether ranks may start again in the same pods after this exit code: neither done, stopped nor hopeless there."""
    return code not in _NOT_IN_PLACE


def backoff_seconds(row: int) -> float:
    """The wait after ``row`` quick failures in a row: none after the first, then 10 s, 20 s, ... up to 5 minutes."""
    return min(_FIRST_DELAY_SECONDS * 2.0 ** min(row - 2, 10), _LONGEST_DELAY_SECONDS) if row > 1 else 0.0


class EndedBy(StrEnum):
    """Why a pod ended early: an exit code alone does not distinguish a stop from a failure."""

    SCRIPT = "script"  # its own ranks ended it: a failure, even with the exit code of a stop
    SIGNAL = "signal"  # the launcher got a signal to stop, before any failure
    PEER = "peer"  # another node reported that it failed or was asked to stop
    LOST = "lost"  # a peer disappeared, or never came, without a report


class UserError(ValueError):
    """An error that the user must fix, in one line: the place, what is wrong, what to do.

    The launcher ends the job with ``exit_code``; the command line only prints the message. It is a ValueError, because
    transformers raises that for most errors and scripts catch it. Where transformers raises another type, a subclass
    derives from that type too.
    """

    exit_code: ExitCode = ExitCode.BAD_CONFIGURATION


class ReleaseError(UserError):
    """The releases of the trainer image and the operator do not match. The job can resume with another image."""

    exit_code = ExitCode.MISMATCH


class DataError(UserError):
    """A :class:`UserError` in the data: a file, a column, an empty set."""

    exit_code = ExitCode.BAD_DATA


@dataclass(frozen=True)
class ResolvedJob:
    """One attempt of a TrainingJob, as its pods read it, with all decisions made.

    ``training_arguments`` has the field names of :class:`trainwright.TrainingArguments`. ``model``, ``dataset``,
    ``script`` and ``sample`` are the spec's own objects (camelCase keys), checked by the operator.
    """

    name: str
    namespace: str
    uid: str
    attempt: int
    nodes: int
    per_node: int
    training_arguments: dict[str, Any] = field(default_factory=dict)
    task: str | None = None
    model: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    script: dict[str, Any] | None = None
    overlay: bool = False
    """Run the script with our Trainer instead of the one of transformers."""
    requirements: list[str] = field(default_factory=list)
    """Packages that were installed for the script, in :data:`PACKAGES_DIR`."""
    sample: dict[str, Any] | None = None
    offline: bool = False
    hang_timeout_seconds: int | None = None
    grace_period_seconds: int = 30
    adopt_output: bool = False
    """Take over an output folder that holds another job's checkpoints."""
    async_save: bool = False
    """Write checkpoints while training continues."""
    on_anomaly: str | None = None
    """One of :data:`ON_ANOMALY`; None for the first."""
    anomaly_factor: float | None = None
    """See :data:`ANOMALY_FACTOR`; 0 for values that are not finite only."""
    preflight: dict[str, Any] | None = None
    """``{"timeoutSeconds": int, "maxSlowdown": float}`` for the checks before the first round; None for no checks."""
    start_method: str | None = None
    """Fork: ranks are forked from a process that has imported already; Spawn: each is a new one. None: see ``warm``."""
    version: int = RESOLVED_JOB_VERSION

    def to_json(self) -> str:
        """Compact JSON with sorted keys, so that equal jobs give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ResolvedJob:
        """Raises :class:`ReleaseError` for a job of another release of the operator that this one cannot read.

        An unknown field is ignored if it is empty or false.
        """
        data = json.loads(text)
        version = data.get("version")
        unknown = sorted(set(data) - set(ResolvedJob.__dataclass_fields__))
        asked = [name for name in unknown if data[name]]
        if version != RESOLVED_JOB_VERSION:
            raise ReleaseError(_other_release(version))
        if asked:
            raise ReleaseError(f"resolved job: {', '.join(asked)} is not known to this trainer image, {_OLDER}")
        for name in unknown:
            del data[name]
        return ResolvedJob(**data)


_FIX = "use the image of the operator's release (podTemplate.image, the pool's image, or the chart's trainerImage)"
_OLDER = f"which is older than the operator: {_FIX}"


def _other_release(version: Any) -> str:
    older = isinstance(version, int) and version > RESOLVED_JOB_VERSION
    fix = _OLDER if older else f"which is newer than the operator: upgrade the operator, or {_FIX}"
    return f"resolved job version {version}: this trainer image understands version {RESOLVED_JOB_VERSION}, {fix}"


@dataclass(frozen=True)
class Progress:
    """What rank 0 reports during training; ``None`` and empty mean not known yet.

    On the wire it is the ``trainerStatus`` that the ``KubeflowCallback`` of transformers posts, and a second object of
    ours with the other fields.
    """

    step: int = 0
    max_steps: int | None = None
    epoch: float | None = None
    remaining_seconds: int | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_left_out: int = 0
    """The number of metrics beyond :data:`MAX_METRICS`, which are not reported."""
    checkpoint: dict[str, Any] | None = None
    """``{"path": relative to the output folder, "step": int, "time": RFC 3339}``."""
    best: dict[str, Any] | None = None
    """``{"metric": str, "value": float, "step": int, "checkpoint": str}``."""
    attempt: int | None = None
    round: int | None = None
    """The round of the attempt; after a restart in place the step may be lower than in the round before."""
    activity: str | None = None
    """What rank 0 does besides steps, if it takes long: ``saving checkpoint-200 40%``."""
    runs: list[dict[str, str]] = field(default_factory=list)
    """``{"tracker": str, "url": str}`` of each tracker that has a page of this run; at most :data:`MAX_RUNS`."""
    model: str | None = None
    """The page of the model on the Hub."""
    slowest: dict[str, float] | None = None
    """The rank that the others wait for: ``{"rank": int, "factor": float, "step": int}``, where ``factor`` is its own
    time in a step by the median of the others'; empty if no rank is slow, None if that is not known."""
    anomalies: dict[str, Any] | None = None
    """Steps that were left out or went back to a checkpoint, up to ``step``: ``{"count": int, "rollbacks": int}``, and
    of the last one ``{"step": int, "kind": one of ANOMALIES, "rank": int, "action": one of ON_ANOMALY}``."""
    memory: dict[str, int] | None = None
    """What a rank was expected to need, in bytes: ``estimate`` of all, and its parts, the fields of
    :class:`trainwright.footprint.Estimate`."""
    clock: dict[str, float] | None = None
    """Where the time of this attempt went so far: seconds for each of :data:`CLOCK_CAUSES` that is not 0, ``step`` (the
    last one in them), ``first`` (the step that the attempt resumed from), ``save`` (seconds of the longest save, until
    it was complete), and ``open``, the seconds since the last cause ended."""

    def to_wire(self, now: str) -> dict[str, Any]:
        """The body of a push; ``now`` is an RFC 3339 time."""
        percent = min(100, 100 * self.step // self.max_steps) if self.max_steps else None
        standard = {
            "progressPercentage": percent,
            "estimatedRemainingSeconds": self.remaining_seconds,
            "metrics": [{"name": name, "value": f"{value:g}"} for name, value in self.metrics.items()],
            "lastUpdatedTime": now,
        }
        own = {
            "step": self.step,
            "maxSteps": self.max_steps,
            "epoch": self.epoch,
            "samplesPerSecond": self.samples_per_second,
            "tokensPerSecond": self.tokens_per_second,
            "metricsLeftOut": self.metrics_left_out or None,
            "checkpoint": self.checkpoint,
            "best": self.best,
            "attempt": self.attempt,
            "round": self.round,
            "activity": self.activity,
            "runs": self.runs or None,
            "model": self.model and {"url": self.model},
            "slowest": self.slowest,
            "anomalies": self.anomalies,
            "memory": self.memory,
            "clock": self.clock,
        }
        return {"trainerStatus": _present(standard), "trainwright": _present(own)}


def gang_on_wire(waits: str = "") -> dict[str, Any]:
    """The body of a push of node 0's launcher: that all nodes have met, or one line about what it waits for."""
    return {"trainerStatus": {}, "trainwright": {"gang": {"waits": waits} if waits else {"met": True}}}


@dataclass(frozen=True)
class RoundEnd:
    """Why a round ended and the ranks were restarted in place: the failure that came first in the gang.

    ``time`` is in seconds since the epoch, ``node`` the node rank of the pod, ``rank`` the global rank.
    """

    round: int
    code: int
    time: float
    error: str | None = None
    rank: int | None = None
    node: int | None = None
    step: int | None = None

    def to_wire(self) -> dict[str, Any]:
        """Without what is not known, and with the message in at most :data:`MAX_ROUND_MESSAGE` characters."""
        error = shorten(self.error, MAX_ROUND_MESSAGE) if self.error else None
        return _present({**asdict(self), "time": round(self.time, 1), "error": error})


def rounds_on_wire(number: int, ended: Sequence[RoundEnd]) -> dict[str, Any]:
    """The body of a push of node 0's launcher: the round that starts, and why the newest ones before it ended."""
    rounds = {"number": number, "ended": [end.to_wire() for end in ended[-MAX_ROUNDS:]]}
    return {"trainerStatus": {}, "trainwright": {"rounds": rounds}}


def activity_on_wire(activity: str) -> dict[str, Any]:
    """The body of a push of rank 0 before it trains: what it does, or empty when that is done."""
    return {"trainerStatus": {}, "trainwright": {"activity": activity} if activity else {}}


def strict_json(value: Any) -> Any:
    """The same nest with None for NaN and infinities, which JSON lacks and strict readers refuse."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict_json(item) for key, item in value.items()}
    return [strict_json(item) for item in value] if isinstance(value, list | tuple) else value


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Termination:
    """The termination message of a pod: JSON of at most 4 KiB.

    ``reason`` is one of Completed, BadConfiguration, BadData, Hang, Preempted, Error. ``error`` is one line.
    ``checkpoint`` is relative to the output folder. ``ended_by`` is an :class:`EndedBy`; None if the pod succeeded, or
    if its image predates this field.
    """

    reason: str
    exit_code: int
    rank: int | None = None
    step: int | None = None
    max_steps: int | None = None
    epoch: float | None = None
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    best: dict[str, Any] | None = None
    ended_by: str | None = None
    clock: dict[str, float] | None = None
    """As in :class:`Progress`, without ``open``."""
    anomalies: dict[str, Any] | None = None
    """As in :class:`Progress`."""
    round: int | None = None
    """The last round, if ranks were restarted in place."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """:meth:`RoundEnd.to_wire` of the newest rounds before it."""

    def to_json(self) -> str:
        """At most 4 KiB: drops the oldest rounds, then metrics from the last one, then cuts the error and says so."""
        metrics, error, room = dict(self.metrics), self.error, len(self.error or "")
        rounds = list(self.rounds)
        while True:
            data = {**asdict(self), "metrics": metrics, "error": error, "rounds": rounds}
            text = json.dumps({k: v for k, v in data.items() if v not in (None, {}, [])}, separators=(",", ":"))
            if len(text.encode()) <= MAX_TERMINATION_BYTES:
                return text
            if len(rounds) > 1:
                rounds.pop(0)
            elif metrics:
                metrics.popitem()
            else:
                room //= 2
                error = shorten(self.error or "", room) if room > _CUT else ""

    @staticmethod
    def from_json(text: str) -> Termination | None:
        """None if the text is not such a message, because a user's own image may write anything."""
        try:
            data = json.loads(text)
            known = {key: data[key] for key in Termination.__dataclass_fields__ if key in data}
            message = Termination(**known)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return message if message.error is None or isinstance(message.error, str) else None
