"""``spec`` of a TrainingJob: every field, declared once, and the rules that span its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from trainwright import rules
from trainwright_operator.api import declare, formats, trained
from trainwright_operator.api.arguments import training_arguments
from trainwright_operator.api.declare import Default, Missing, Mutable
from trainwright_operator.api.pods import PodTemplate
from trainwright_operator.api.types import (
    Rule,
    at_creation,
    boolean,
    exactly_one,
    integer,
    string,
    unchanged,
)
from trainwright_operator.api.volumes import claim, empty_dir, host_path

OUTPUT_VOLUMES = ("persistentVolumeClaim", "hostPath", "emptyDir")
MAX_NODES, MAX_PER_NODE = 1024, 64
YEAR_SECONDS = 366 * 24 * 3600

FIXED = "cannot change after creation; give the new run a new name"


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
        Default("1; on a TPU pool what its topology gives"),
    ] = None
    per_node: Annotated[
        int | None,
        integer("Accelerators, and so ranks, on each node.", 1, MAX_PER_NODE),
        Default("1; on a TPU pool the chips of a host"),
    ] = None


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
    """Relative to the volume's root; ``parse_job`` puts the job's name where the manifest states none."""
    adopt: Annotated[
        bool, boolean("Go on from checkpoints that another job left in the folder; else they are an error.")
    ] = False
    async_save: Annotated[
        bool,
        boolean(
            "Write checkpoints while training goes on, from a copy in the host's memory: a step waits for the copy "
            "alone. Takes as much memory as a checkpoint, on the first rank (or the first of each node where nodes do "
            "not share the folder)."
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
    """What the Job of every attempt carries besides; what its pods do is said by podTemplate."""

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


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What to train, on what, and where the result goes.

    ``model``, ``dataset``, ``script`` and ``sample`` are the manifest's own objects (camelCase keys), which travel to
    the trainer unchanged; ``training_arguments`` has snake_case names and only what the manifest states.
    """

    model: Annotated[Mapping[str, Any] | None, trained.model()] = None
    dataset: Annotated[Mapping[str, Any] | None, trained.dataset()] = None
    task: Annotated[str | None, string("What the model learns to do.", among=trained.TASKS)] = None
    script: Annotated[Mapping[str, Any] | None, trained.script()] = None
    training_arguments: Annotated[Mapping[str, Any], training_arguments()] = field(default_factory=dict)
    accelerator: Accelerator = Accelerator()
    output: Annotated[
        Output,
        Missing("is missing: say where the model goes, such as output: {persistentVolumeClaim: {claimName: runs}}"),
    ]
    sample: Annotated[Mapping[str, Any] | None, trained.sample()] = None
    pod_template: PodTemplate = field(default_factory=PodTemplate)
    job_template: JobTemplate = field(default_factory=JobTemplate)
    suspend: Annotated[
        bool, boolean("Stop after a checkpoint and give the nodes back; false goes on from it."), Mutable
    ] = False
    max_restarts: Annotated[
        int, integer("Failures after which the job is given up; an evicted pod is none.", 0, 1000), Mutable
    ] = 3
    active_deadline_seconds: Annotated[
        int | None,
        integer("Seconds from the start after which the job fails, however far it is.", 1, 10 * YEAR_SECONDS),
        Mutable,
        Default("no limit"),
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None,
        integer("Seconds after the end until the pods and their logs are deleted.", 0, 10 * YEAR_SECONDS),
        Mutable,
        Default("they stay"),
    ] = None
    delete_after_finished: Annotated[
        bool,
        boolean(
            "Delete the TrainingJob as well when ttlSecondsAfterFinished is over; a GitOps tool would then train it "
            "again."
        ),
    ] = False
    hang_timeout_seconds: Annotated[
        int | None,
        integer(
            "Seconds without a step after which an attempt is taken to hang: it leaves the stacks of every rank and is "
            "restarted. The first step and evaluation must fit in.",
            10,
            YEAR_SECONDS,
        ),
        Default("never"),
    ] = None
    termination_grace_period_seconds: Annotated[
        int, integer("Seconds a pod has to write a checkpoint when it is asked to stop.", 10, 86400)
    ] = 30
    offline: Annotated[
        bool,
        boolean("Touch no network for models and data: a hub id must be in the cache or a mounted folder."),
    ] = False
    hub_token: SecretKey | None = None
    """What ``trainingArguments.hubToken`` refers to."""

    @staticmethod
    def rules() -> list[Rule]:
        return [*at_creation([*_what_is_trained(), *_evaluation()]), *_immutability()]


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
            "is missing: a job has model, dataset and task, or a script of your own",
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
            "sample", "sample", ("CausalLM", "Seq2SeqLM"), "only a model that writes text can be asked for a sample"
        ),
        _for_tasks(
            "dataset.blockSize",
            "dataset",
            ("CausalLM", "MaskedLM"),
            "blocks are for CausalLM and MaskedLM; use maxLength",
        ),
    ]


def _for_tasks(path: str, parent: str, tasks: tuple[str, ...], message: str) -> Rule:
    """The field at ``path`` (of ``parent``, or ``parent`` itself) is for these tasks alone."""
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
            "nothing can be held out of a streamed dataset to evaluate on; give evalSource or evalSplit",
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
    """The best model of ``tasks`` is chosen by what their evaluations give."""
    names = [f"{prefix}{name}" for name in (*known, *rules.MEASURED) for prefix in ("", "eval_")]
    flag = "has(self.trainingArguments.predictWithGenerate) && self.trainingArguments.predictWithGenerate"

    def fine(spec: Mapping[str, Any]) -> bool:
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
        fine,
        field="trainingArguments.metricForBestModel",
        words=(
            f"'{before}' + {metric} + '{after}'",
            lambda spec: rules.no_such_metric(spec["trainingArguments"]["metricForBestModel"], known),
        ),
    )


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


def _immutability() -> list[Rule]:
    """Of trainingArguments only that it stays: the rules of its own fields let maxSteps and numTrainEpochs go up."""
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
