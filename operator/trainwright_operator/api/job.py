"""Declares ``spec`` of a TrainingJob: its fields, and the rules over several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from trainwright import rules
from trainwright.contract import ANOMALY_FACTOR, ON_ANOMALY, PREFLIGHT_SECONDS, PREFLIGHT_SLOWDOWN
from trainwright_operator.api import declare, formats, trained
from trainwright_operator.api.arguments import training_arguments
from trainwright_operator.api.declare import Default, Missing, Mutable
from trainwright_operator.api.names import MULTIKUEUE
from trainwright_operator.api.pods import PodTemplate
from trainwright_operator.api.types import (
    Rule,
    Schema,
    at_creation,
    boolean,
    exactly_one,
    integer,
    number,
    record,
    string,
    unchanged,
)
from trainwright_operator.api.volumes import claim, empty_dir, host_path

OUTPUT_VOLUMES = ("persistentVolumeClaim", "hostPath", "emptyDir")
MAX_NODES, MAX_PER_NODE, MAX_RESTARTS = 5000, 64, 1000
YEAR_SECONDS = 366 * 24 * 3600

FIXED = "cannot change after creation; give the new run a new name"


@dataclass(frozen=True)
class Together:
    """A node label of which all pods of an attempt share one value, such as a rack's.

    In a queue of Kueue it is a level of the flavor's Topology; elsewhere it is a pod affinity.
    """

    required: Annotated[
        str | None, string("The label; pods that find no room together wait.", 63, pattern=formats.KEY)
    ] = None
    preferred: Annotated[
        str | None, string("The label; pods that find no room together are spread.", 63, pattern=formats.KEY)
    ] = None

    @staticmethod
    def rules() -> list[Rule]:
        return [exactly_one(("required", "preferred"), "give exactly one of required, preferred")]


@dataclass(frozen=True)
class Accelerator:
    """Where to train: a pool, and how much of it."""

    pool: Annotated[
        str | None,
        formats.object_name("The AcceleratorPool."),
        Default("the cluster's default pool, else cpu"),
    ] = None
    nodes: Annotated[
        int | None,
        integer("How many nodes train together.", 1, MAX_NODES),
        Default("1; on a TPU pool given by its topology"),
    ] = None
    per_node: Annotated[
        int | None,
        integer("Accelerators on each node; each has one rank.", 1, MAX_PER_NODE),
        Default("1; on a TPU pool the chips of a host"),
    ] = None
    min_nodes: Annotated[
        int | None,
        integer(
            "With how few nodes an attempt may train when there is no room for all; the global batch stays.",
            1,
            MAX_NODES,
        ),
        Default("nodes"),
    ] = None
    elastic_timeout_seconds: Annotated[
        int | None,
        integer("With minNodes: seconds that an attempt waits for room for all of its nodes.", 1, YEAR_SECONDS),
        Default("300"),
    ] = None
    topology: Together = Together()

    @staticmethod
    def rules() -> list[Rule]:
        return [
            Rule(
                "!has(self.minNodes) || (has(self.nodes) && self.minNodes <= self.nodes)",
                "is more than nodes; let it be nodes or fewer",
                lambda spec: spec.get("minNodes", 0) <= spec.get("nodes", 0) or "minNodes" not in spec,
                field="minNodes",
            ),
            Rule(
                "!has(self.elasticTimeoutSeconds) || has(self.minNodes)",
                "is for elastic jobs; set minNodes as well, or remove it",
                lambda spec: "elasticTimeoutSeconds" not in spec or "minNodes" in spec,
                field="elasticTimeoutSeconds",
            ),
        ]


@dataclass(frozen=True)
class Output:
    """Where checkpoints and the model go: one volume, and a folder in it."""

    persistent_volume_claim: Annotated[Mapping[str, Any] | None, claim()] = None
    host_path: Annotated[Mapping[str, Any] | None, host_path()] = None
    empty_dir: Annotated[Mapping[str, Any] | None, empty_dir()] = None
    sub_path: Annotated[
        str,
        string("The folder in the volume.", 1024, least=1, pattern=formats.RELATIVE_PATH),
        Default("the job's name"),
    ] = ""
    """Relative to the root of the volume; ``parse_job`` fills in the job's name if the manifest sets none."""
    adopt: Annotated[
        bool, boolean("Continue from checkpoints of another job in the folder; otherwise they are an error.")
    ] = False
    async_save: Annotated[
        bool,
        boolean(
            "Write checkpoints in the background, from a copy in host memory: training waits only for the copy. The "
            "first rank (the first of each node if nodes do not share the folder) needs as much memory as a checkpoint."
        ),
    ] = False

    @staticmethod
    def rules() -> list[Rule]:
        return [exactly_one(OUTPUT_VOLUMES, f"give exactly one of {', '.join(OUTPUT_VOLUMES)}")]

    @property
    def volume(self) -> dict[str, Any]:
        """The Kubernetes volume source: ``{"persistentVolumeClaim": {"claimName": ...}}``, ``{"emptyDir": {}}``."""
        sources = zip(OUTPUT_VOLUMES, (self.persistent_volume_claim, self.host_path, self.empty_dir), strict=True)
        return {name: source for name, source in sources if source is not None}


@dataclass(frozen=True)
class JobTemplate:
    """Labels and annotations for the Job of every attempt; podTemplate configures its pods."""

    metadata: Annotated[Mapping[str, Any], formats.metadata("Job")] = field(default_factory=dict)

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.metadata.get("annotations") or {}


@dataclass(frozen=True)
class SecretKey:
    """One key of a Secret in the job's namespace."""

    name: str
    key: str


def _preflight() -> Schema:
    return record(
        "Checks of every rank before anything is trained: a product of matrices and a sum over all ranks with known "
        "results, and the time of these and of messages between neighbours, beside the other ranks. A rank that fails "
        "ends the attempt. {} for the defaults.",
        {
            "timeoutSeconds": integer(
                f"Seconds that all checks may take, with the start of their processes. Default: {PREFLIGHT_SECONDS}.",
                10,
                86400,
            ),
            "maxSlowdown": number(
                "How many times the median of the other ranks a rank may take, above 1; 0 for any. Default: "
                f"{PREFLIGHT_SLOWDOWN:g}.",
                least=0,
                most=1e9,
            ),
        },
        rules=[
            Rule(
                "!has(self.maxSlowdown) || self.maxSlowdown == 0.0 || self.maxSlowdown > 1.0",
                "must be 0 (any), or above 1",
                lambda value: value.get("maxSlowdown", 0) == 0 or value["maxSlowdown"] > 1,
                field="maxSlowdown",
            )
        ],
    )


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What to train, on what, and where the result goes.

    ``model``, ``dataset``, ``script`` and ``sample`` are plain objects as in the manifest (camelCase keys), passed to
    the trainer unchanged. ``training_arguments`` has snake_case names, and holds only what the manifest sets.
    """

    model: Annotated[Mapping[str, Any] | None, trained.model()] = None
    dataset: Annotated[Mapping[str, Any] | None, trained.dataset()] = None
    task: Annotated[str | None, string("What the model learns to do.", among=trained.TASKS)] = None
    script: Annotated[Mapping[str, Any] | None, trained.script()] = None
    training_arguments: Annotated[Mapping[str, Any], training_arguments()] = field(default_factory=dict)
    accelerator: Accelerator = Accelerator()
    output: Annotated[
        Output,
        Missing("is missing: say where to store the model, such as output: {persistentVolumeClaim: {claimName: runs}}"),
    ]
    sample: Annotated[Mapping[str, Any] | None, trained.sample()] = None
    pod_template: PodTemplate = field(default_factory=PodTemplate)
    job_template: JobTemplate = field(default_factory=JobTemplate)
    suspend: Annotated[
        bool, boolean("Stop after writing a checkpoint and release the nodes; false resumes from it."), Mutable
    ] = False
    managed_by: Annotated[
        str | None,
        string("Who runs the job: MultiKueue, in another cluster that it chooses.", among=(MULTIKUEUE,)),
        Default("the operator of this cluster"),
    ] = None
    max_restarts: Annotated[
        int,
        integer(
            "Restarts after failures before the job fails, those in place included; evictions do not count.",
            0,
            MAX_RESTARTS,
        ),
        Mutable,
    ] = 3
    active_deadline_seconds: Annotated[
        int | None,
        integer("Seconds after the start until the job fails, even if it still makes progress.", 1, 10 * YEAR_SECONDS),
        Mutable,
        Default("no limit"),
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None,
        integer("Seconds after the end until the pods and their logs are deleted.", 0, 10 * YEAR_SECONDS),
        Mutable,
        Default("they are kept"),
    ] = None
    delete_after_finished: Annotated[
        bool,
        boolean(
            "Also delete the TrainingJob after ttlSecondsAfterFinished; a GitOps tool would create it again, and so "
            "train it again."
        ),
    ] = False
    hang_timeout_seconds: Annotated[
        int | None,
        integer(
            "Seconds without a step after which an attempt counts as hung: it logs the stacks of every rank and is "
            "restarted. Allow for an evaluation and a save. 0 for never, else at least 10.",
            0,
            YEAR_SECONDS,
        ),
        Default("10 times the longest step, evaluation or save so far, and at least 10 minutes"),
    ] = None
    on_anomaly: Annotated[
        str | None,
        string(
            "What becomes of a step whose loss or gradient norm, on any rank, is not finite, or anomalyFactor times "
            "its running median. Skip: its update is left out. Rollback: training goes back to its newest checkpoint, "
            "and on with new data.",
            among=ON_ANOMALY,
        ),
        Default(ON_ANOMALY[0]),
    ] = None
    anomaly_factor: Annotated[
        float | None,
        number(
            "With onAnomaly: from how many times its running median on a loss or gradient norm is too large. 0 for "
            "only what is not finite, else above 1.",
            least=0,
            most=1e9,
        ),
        Default(f"{ANOMALY_FACTOR:g}"),
    ] = None
    preflight: Annotated[Mapping[str, Any] | None, _preflight(), Default("no checks")] = None
    start_method: Annotated[
        str | None,
        string(
            "How a pod starts its ranks: forked from one process that has imported the libraries, or each as a new "
            "process. Only ranks on CPU are forked. A script that forks must not rely on variables that it sets before "
            "it imports libraries.",
            among=("Fork", "Spawn"),
        ),
        Default("Fork for declarative jobs on CPU, Spawn for scripts and on accelerators"),
    ] = None
    termination_grace_period_seconds: Annotated[
        int, integer("Seconds for a pod to write a checkpoint after it is asked to stop.", 10, 86400)
    ] = 30
    offline: Annotated[
        bool,
        boolean("Use no network for models and data: a hub id must be in the cache or in a mounted folder."),
    ] = False
    hub_token: SecretKey | None = None
    """The key that ``trainingArguments.hubToken`` refers to."""

    @property
    def watches_steps(self) -> bool:
        """Whether anomalies are not ignored."""
        return self.on_anomaly not in (None, ON_ANOMALY[0])

    @staticmethod
    def rules() -> list[Rule]:
        return [
            *at_creation([*_what_is_trained(), *_evaluation(), _hang_timeout(), *_anomalies()]),
            *_immutability(),
        ]


def _hang_timeout() -> Rule:
    return Rule(
        "!has(self.hangTimeoutSeconds) || self.hangTimeoutSeconds == 0 || self.hangTimeoutSeconds >= 10",
        "must be 0 (never), or at least 10",
        lambda spec: spec.get("hangTimeoutSeconds", 0) == 0 or spec["hangTimeoutSeconds"] >= 10,
        field="hangTimeoutSeconds",
        needs=("hangTimeoutSeconds",),
    )


def _anomalies() -> list[Rule]:
    asked = "has(self.onAnomaly) && self.onAnomaly != 'Ignore'"
    arguments = "has(self.trainingArguments)"

    def sets(spec: Mapping[str, Any], name: str, *values: Any) -> bool:
        arguments = spec.get("trainingArguments") or {}
        return name in arguments and (not values or arguments[name] in values)

    return [
        Rule(
            "!has(self.anomalyFactor) || self.anomalyFactor == 0.0 || self.anomalyFactor > 1.0",
            "must be 0 (only what is not finite), or above 1",
            lambda spec: spec.get("anomalyFactor", 0) == 0 or spec["anomalyFactor"] > 1,
            field="anomalyFactor",
            needs=("anomalyFactor",),
        ),
        Rule(
            f"!has(self.anomalyFactor) || ({asked})",
            "has no effect while anomalies are ignored; set onAnomaly: Skip or onAnomaly: Rollback, or remove it",
            lambda spec: "anomalyFactor" not in spec or spec.get("onAnomaly", "Ignore") != "Ignore",
            field="anomalyFactor",
            needs=("onAnomaly",),
        ),
        Rule(
            f"!({asked}) || !({arguments} && has(self.trainingArguments.deepspeed))",
            "DeepSpeed's engine clips and steps in one call, so no step can be left out; remove onAnomaly, or "
            "shard with fsdp",
            lambda spec: spec.get("onAnomaly", "Ignore") == "Ignore" or not sets(spec, "deepspeed"),
            field="onAnomaly",
            needs=("onAnomaly",),
        ),
        Rule(
            f"!({asked} && self.onAnomaly == 'Rollback') || !({arguments} && "
            "((has(self.trainingArguments.saveStrategy) && self.trainingArguments.saveStrategy == 'no') || "
            "(has(self.trainingArguments.saveOnlyModel) && self.trainingArguments.saveOnlyModel)))",
            "Rollback needs checkpoints with the optimizer; remove saveStrategy: 'no' and saveOnlyModel, or choose "
            "Skip",
            lambda spec: (
                spec.get("onAnomaly") != "Rollback"
                or not (sets(spec, "saveStrategy", "no") or sets(spec, "saveOnlyModel", True))
            ),
            field="onAnomaly",
            needs=("onAnomaly", "trainingArguments.saveStrategy", "trainingArguments.saveOnlyModel"),
        ),
    ]


def _what_is_trained() -> list[Rule]:
    parts = ("model", "dataset", "task")
    alone = [
        Rule(
            "!has(self.script) || !(has(self.model) || has(self.dataset) || has(self.task))",
            "a script brings its own model and data; remove script, or model, dataset and task",
            lambda spec: not ("script" in spec and any(part in spec for part in parts)),
            field="script",
            needs=(),
        )
    ]
    complete = [
        Rule(
            f"has(self.script) || has(self.{part})",
            "is missing: a job needs model, dataset and task, or a script of your own",
            lambda spec, part=part: "script" in spec or part in spec,
            field=part,
            needs=(),
        )
        for part in parts
    ]
    return [
        *alone,
        *complete,
        _for_tasks(
            "sample", "sample", ("CausalLM", "Seq2SeqLM"), "only a model that generates text can write a sample"
        ),
        _for_tasks(
            "dataset.blockSize",
            "dataset",
            ("CausalLM", "MaskedLM"),
            "blocks are for CausalLM and MaskedLM; use maxLength",
        ),
    ]


def _for_tasks(path: str, parent: str, tasks: tuple[str, ...], message: str) -> Rule:
    """The field at ``path`` (in ``parent``, or ``parent`` itself) is only for these tasks."""
    given = f"has(self.{path})" if path == parent else f"has(self.{parent}) && has(self.{path})"
    return Rule(
        f"!({given}) || (has(self.task) && self.task in {_list(tasks)})",
        message,
        lambda spec: not _has(spec, path) or spec.get("task") in tasks,
        field=path,
    )


def _has(value: Any, path: str) -> bool:
    for key in path.split("."):
        if key not in value:
            return False
        value = value[key]
    return True


def evaluates(spec: Mapping[str, Any]) -> bool:
    """Whether ``trainingArguments.evalStrategy`` asks for evaluation while training."""
    return bool((spec.get("trainingArguments") or {}).get("evalStrategy", "no") != "no")


def has_eval_data(dataset: Mapping[str, Any]) -> bool:
    return any(key in dataset for key in ("evalSource", "evalSplit", "validationFraction"))


def _evaluation() -> list[Rule]:
    asked = (
        "has(self.trainingArguments) && has(self.trainingArguments.evalStrategy) && "
        "self.trainingArguments.evalStrategy != 'no'"
    )
    streamed = "has(self.dataset) && has(self.dataset.streaming) && self.dataset.streaming"
    return [
        Rule(
            f"!({asked} && {streamed}) || has(self.dataset.evalSource) || has(self.dataset.evalSplit)",
            "a streamed dataset cannot hold out rows for evaluation; give evalSource or evalSplit",
            lambda spec: (
                not (evaluates(spec) and spec.get("dataset", {}).get("streaming")) or has_eval_data(spec["dataset"])
            ),
            field="dataset.streaming",
        ),
        Rule(
            f"!({streamed}) || (has(self.trainingArguments) && has(self.trainingArguments.maxSteps) && "
            "self.trainingArguments.maxSteps > 0)",
            "a streamed dataset has no known length; set trainingArguments.maxSteps",
            lambda spec: (
                not spec.get("dataset", {}).get("streaming")
                or spec.get("trainingArguments", {}).get("maxSteps", -1) > 0
            ),
            field="dataset.streaming",
        ),
        *(
            _metric(asked, tasks, generates, rules.evaluation_metrics(tasks[0], generates))
            for tasks, generates in (
                (("CausalLM", "MaskedLM"), False),
                (("SequenceClassification", "TokenClassification"), False),
                (("Seq2SeqLM",), False),
                (("Seq2SeqLM",), True),
            )
        ),
    ]


def _metric(asked: str, tasks: tuple[str, ...], generates: bool, known: tuple[str, ...]) -> Rule:
    """``metricForBestModel`` must be a metric that the evaluation of ``tasks`` reports."""
    names = [f"{prefix}{name}" for name in (*known, *rules.MEASURED) for prefix in ("", "eval_")]
    flag = "has(self.trainingArguments.predictWithGenerate) && self.trainingArguments.predictWithGenerate"

    def holds(spec: Mapping[str, Any]) -> bool:
        arguments = spec.get("trainingArguments", {})
        if spec.get("task") not in tasks or not evaluates(spec) or "metricForBestModel" not in arguments:
            return True
        if spec["task"] == "Seq2SeqLM" and bool(arguments.get("predictWithGenerate")) is not generates:
            return True
        return arguments["metricForBestModel"] in names

    metric = "self.trainingArguments.metricForBestModel"
    chosen = f"has(self.task) && self.task in {_list(tasks)} && {asked} && has({metric})"
    if tasks == ("Seq2SeqLM",):
        chosen += f" && {'' if generates else '!'}({flag})"
    before, after = rules.no_such_metric("|", known).split("|")
    return Rule(
        f"!({chosen}) || {metric} in {_list(names)}",
        rules.no_such_metric("this metric", known),
        holds,
        field="trainingArguments.metricForBestModel",
        message_with_values=(
            f"'{before}' + {metric} + '{after}'",
            lambda spec: rules.no_such_metric(spec["trainingArguments"]["metricForBestModel"], known),
        ),
    )


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


def _immutability() -> list[Rule]:
    """All fields but the mutable ones are fixed. The fields of trainingArguments have rules of their own."""
    named = [field.key for field in declare.declared(JobSpec) if not field.mutable]
    fixed = [unchanged(key, FIXED) for key in named if key != "trainingArguments"]
    arguments = Rule(
        "has(self.trainingArguments) == has(oldSelf.trainingArguments)",
        FIXED,
        lambda new, old: ("trainingArguments" in new) == ("trainingArguments" in old),
        field="trainingArguments",
        transition=True,
    )
    return [*fixed, arguments]
