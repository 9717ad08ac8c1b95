"""``status`` of a TrainingJob: what was observed, for people (display), tools (conditions) and programs (the rest)."""

from __future__ import annotations

from trainwright.contract import MAX_ATTEMPTS, MAX_MESSAGE, MAX_METRICS
from trainwright_operator.api.types import (
    INT64_MAX,
    Schema,
    integer,
    list_of,
    number,
    record,
    string,
)

STATES = ("Pending", "Queued", "Starting", "Running", "Restarting", "Stopping", "Suspended", "Succeeded", "Failed")
MAX_NAME, MAX_VALUE, MAX_PATH, MAX_REASON, MAX_WHY = 253, 64, 1024, 256, 512
"""Characters of a metric's name and value, a checkpoint's path, the reason of an attempt's end, and what stands in the
column Why. The longest lists and messages are of the contract with the trainer."""

DISPLAY = {
    "state": "The state, and in brackets what holds it up: Starting (ImagePullBackOff).",
    "step": "Steps done and to do, such as 140/200.",
    "loss": "The newest training loss.",
    "eval": "The newest evaluation loss.",
    "tokensPerSecond": "Tokens trained a second, such as 18.4k.",
    "ends": "When it ends, such as 10:42 (in ~21s).",
    "restarts": "Restarts that counted, and in brackets disruptions that did not.",
    "nodes": "Nodes ready and wanted, such as 2/2.",
    "why": "What holds it up or ended it, and what to do.",
}


def job_status() -> Schema:
    return record(
        "What the operator observed; written by it alone.",
        {
            "observedGeneration": integer("The generation of spec that this status is about.", 0, INT64_MAX),
            "state": string("One word for where the job is.", among=STATES),
            "conditions": _conditions(),
            "startTime": _time("When the first attempt was created."),
            "completionTime": _time("When the job succeeded or failed."),
            "nodes": record(
                "Pods of the attempt at work.",
                {
                    "desired": _count("How many there should be."),
                    "ready": _count("How many are ready."),
                    "active": _count("How many run or wait to run."),
                    "failed": _count("How many failed."),
                },
            ),
            "restarts": record(
                "Attempts after the first.",
                {
                    "total": _count("All of them."),
                    "counted": _count("Those after a failure, which count towards maxRestarts."),
                    "disruptions": _count("Those after an eviction, a preemption or a lost node."),
                },
            ),
            "gang": record(
                "What node 0 of the attempt at work told of the other nodes.",
                {
                    "attempt": integer("The attempt that told it.", 1),
                    "met": {"type": "boolean", "description": "All nodes have found each other."},
                    "waits": string("Whom it waits for, and what to check.", MAX_WHY),
                },
            ),
            "progress": _progress(),
            "metrics": list_of(
                f"The newest value of each metric, of {MAX_METRICS} at most.", _metric(), MAX_METRICS, key="name"
            ),
            "best": _best(),
            "checkpoint": _checkpoint("The newest complete checkpoint."),
            "attempts": list_of(
                f"The last {MAX_ATTEMPTS} attempts, and why each one ended.", _attempt(), MAX_ATTEMPTS, key="attempt"
            ),
            "display": record(
                "The strings of the columns of kubectl get.",
                {name: string(about, MAX_WHY if name == "why" else 64) for name, about in DISPLAY.items()},
            ),
        },
    )


def _time(about: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": about, "maxLength": 64}


def _count(about: str) -> Schema:
    return integer(about, 0)


def _conditions() -> Schema:
    condition = record(
        "A condition, as Kubernetes has them.",
        {
            "type": string(
                "Queued, PodsReady, Running, Restarting, Suspended, Succeeded, Failed; Reconciling, Stalled.",
                316,
                least=1,
            ),
            "status": string("Whether it holds.", among=["True", "False", "Unknown"]),
            "reason": string("Why, in one CamelCase word.", 1024),
            "message": string("Why, for people.", 32768),
            "lastTransitionTime": _time("When status changed last."),
            "observedGeneration": integer("The generation of spec that it is about.", 0, INT64_MAX),
        },
        required=["type", "status", "lastTransitionTime", "reason", "message"],
    )
    return list_of("What holds of the job.", condition, 16, key="type")


def _progress() -> Schema:
    return record(
        "How far training is, as rank 0 told last.",
        {
            "attempt": integer("The attempt that told it.", 1),
            "step": integer("Optimizer steps done.", 0, INT64_MAX),
            "maxSteps": integer("Optimizer steps to do.", 0, INT64_MAX),
            "epoch": number("Passes over the data done.", least=0),
            "percent": integer("Steps done, of a hundred.", 0, 100),
            "endTime": _time("When training is expected to end."),
            "samplesPerSecond": number("Samples trained a second, by all ranks together.", least=0),
            "tokensPerSecond": number("Tokens trained a second, by all ranks together.", least=0),
            "metricsLeftOut": integer("How many more metrics it has than the list has room for.", 1, INT64_MAX),
            "lastUpdateTime": _time("When rank 0 told last."),
        },
    )


def _metric() -> Schema:
    return record(
        "A metric.",
        {
            "name": string("Its name, such as loss or eval_loss.", MAX_NAME, least=1),
            "value": string("Its value, as text: a float has no one form in YAML.", MAX_VALUE),
        },
        required=["name", "value"],
    )


def _best() -> Schema:
    return record(
        "The best evaluation so far, by metricForBestModel.",
        {
            "metric": string("The metric.", MAX_NAME),
            "value": string("Its value, as text.", MAX_VALUE),
            "step": integer("The step of the evaluation.", 0, INT64_MAX),
            "checkpoint": string("Its checkpoint, relative to the output folder.", MAX_PATH),
        },
    )


def _checkpoint(about: str) -> Schema:
    return record(
        about,
        {
            "path": string("Relative to the output folder.", MAX_PATH),
            "step": integer("Optimizer steps done in it.", 0, INT64_MAX),
            "time": _time("When it was complete."),
        },
    )


def _attempt() -> Schema:
    return record(
        "One attempt: the pods that started together, and how they ended.",
        {
            "attempt": integer("Its number, 1 for the first.", 1),
            "startTime": _time("When its pods were created."),
            "endTime": _time("When it ended."),
            "outcome": string(
                "How it ended: a Disrupted one is not counted, a Stopped one was suspended or met the deadline.",
                among=["Succeeded", "Failed", "Disrupted", "Stopped"],
            ),
            "reason": string("Why, in one CamelCase word, such as Hang or BadData.", MAX_REASON),
            "pod": string("The pod that failed first.", 253),
            "node": string("The node it ran on.", 253),
            "exitCode": integer("The exit code of its trainer.", -INT64_MAX, INT64_MAX),
            "time": _time("When that pod ended or was taken away."),
            "step": integer("The last step that was reported.", 0, INT64_MAX),
            "maxSteps": integer("The steps that this attempt was asked for, when they were given.", 1, INT64_MAX),
            "numTrainEpochs": number("The epochs that this attempt was asked for, when no steps were given.", least=0),
            "message": string("What the trainer said at the end, in one line.", MAX_MESSAGE),
        },
        required=["attempt", "startTime"],
    )
