"""The schema of a TrainingJob's ``status``: for people (display), tools (conditions) and programs (the rest)."""

from __future__ import annotations

from trainwright.contract import (
    ANOMALIES,
    CLOCK_CAUSES,
    MAX_ATTEMPTS,
    MAX_MESSAGE,
    MAX_METRICS,
    MAX_ROUND_MESSAGE,
    MAX_ROUNDS,
    MAX_RUNS,
    ON_ANOMALY,
)
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
MAX_NAME, MAX_VALUE, MAX_PATH, MAX_ACTIVITY, MAX_REASON, MAX_WHY, MAX_URL = 253, 64, 1024, 128, 256, 512, 2048
"""Maximum characters of a metric's name and value, a checkpoint's path, an activity, the reason why an attempt ended,
the column Why, and an address. The contract with the trainer has the limits of lists and messages."""

DISPLAY = {
    "state": "The state, and in brackets what blocks the job: Starting (ImagePullBackOff).",
    "step": "Steps done and steps in total, such as 140/200.",
    "loss": "The latest training loss.",
    "eval": "The latest evaluation loss.",
    "tokensPerSecond": "Tokens per second, such as 18.4k.",
    "ends": "Expected end, such as 10:42 (in ~21s).",
    "restarts": "Restarts that count towards maxRestarts, and in brackets disruptions, which do not.",
    "nodes": "Nodes ready and nodes requested, such as 2/2.",
    "goodput": "The share of the job's life that was spent in steps, such as 87%; ≥ where part is unmeasured.",
    "cost": "What the accelerators cost so far, such as 12.40 USD.",
    "slowest": "The pod that the others wait for, and how many times their own time it takes, such as gpt-0-2-1 2.4x.",
    "why": "Why the job is blocked or has ended, and what to do.",
}

GOODPUT_CAUSES = {
    "queued": "Waiting for quota in a queue.",
    "waiting": "No attempt had room: a backoff, a missing pool, no node with room, an operator that was away.",
    "starting": "Pulling images, importing, rendezvous, preparing data and model.",
    "restoring": "Reading a checkpoint, and going to its place in the data.",
    "compiling": "torch.compile, whenever it compiles.",
    "stepping": "Steps that count: trained for the first time.",
    "data": "Waiting for the batches of those steps.",
    "evaluating": "Evaluations and predictions.",
    "saving": "Saves, as far as training waited for them.",
    "redone": "Steps that were trained again after a restart, and waiting for their batches.",
    "idle": "Pods without work: a hang, a lost node, the time before a lost rank began anew, the end of the pods.",
    "suspended": "Suspended, or ended before it was extended.",
    "unmeasured": "Nobody measured it: a script without our Trainer, a lost status, a clock that was set.",
}
"""Where the time of a job goes, in the order in which it is shown."""
MEMORY_PARTS = {
    "parameters": "Weights.",
    "gradients": "Gradients.",
    "optimizer": "State of the optimizer.",
    "activations": "Activations at the peak of a step.",
    "buffers": "Buffers of the model, and of the exchange with other ranks.",
}
"""What makes up the estimate of the memory of a rank."""
MAX_CURRENCIES = 4
MAX_AVOIDED = 32
"""Nodes that a job avoids."""


def job_status() -> Schema:
    return record(
        "The state that the operator observed; only the operator writes it.",
        {
            "observedGeneration": integer("The generation of spec that this status describes.", 0, INT64_MAX),
            "state": string("The state of the job, in one word.", among=STATES),
            "conditions": _conditions(),
            "startTime": _time("When the first attempt was created."),
            "completionTime": _time("When the job succeeded or failed."),
            "nodes": _nodes(),
            "restarts": _restarts(),
            "gang": _gang(),
            "progress": _progress(),
            "metrics": _metrics(),
            "memory": _memory(),
            "best": _best(),
            "checkpoint": _checkpoint("The latest complete checkpoint."),
            "runs": list_of(
                "The run in each experiment tracker of reportTo that has a page of it.", _run(), MAX_RUNS, key="tracker"
            ),
            "model": record("The model on the Hugging Face Hub, with pushToHub.", {"url": _url("Its page.")}),
            "attempts": list_of(
                f"The last {MAX_ATTEMPTS} attempts, and why each one ended.", _attempt(), MAX_ATTEMPTS, key="attempt"
            ),
            "slowest": _slowest(),
            "anomalies": record(
                "The steps that onAnomaly left out or undid, up to the step in progress.",
                {
                    "count": _count("How many steps."),
                    "rollbacks": _count("How many of them went back to a checkpoint."),
                    "step": integer("The last one.", 0, INT64_MAX),
                    "kind": string("What was wrong with it.", among=ANOMALIES),
                    "rank": integer("The rank that saw it.", 0),
                    "action": string("What became of it.", among=ON_ANOMALY[1:]),
                    "since": _time("When the first one was reported."),
                },
            ),
            "avoidedNodes": list_of(
                "Nodes on which attempts failed first at least twice; the next attempts use others if they can.",
                _avoided(),
                MAX_AVOIDED,
                key="node",
            ),
            "goodput": _goodput(),
            "acceleratorSeconds": number(
                "Accelerators held, times seconds: all but queued, waiting and suspended.", least=0
            ),
            "cost": list_of(
                "The price of the acceleratorSeconds, by currency, if the pool has a price.",
                _cost(),
                MAX_CURRENCIES,
                key="currency",
            ),
            "display": _display(),
        },
    )


def _nodes() -> Schema:
    return record(
        "Pods of the current attempt.",
        {
            "desired": _count("Pods requested."),
            "ready": _count("Pods that are ready."),
            "active": _count("Pods that are running or pending."),
            "failed": _count("Pods that failed."),
        },
    )


def _restarts() -> Schema:
    return record(
        "Attempts after the first, and restarts in place.",
        {
            "total": _count("All restarts."),
            "counted": _count("Restarts after a failure, in new pods or in place; they count towards maxRestarts."),
            "disruptions": _count("Restarts after an eviction, a preemption or a lost node."),
        },
    )


def _gang() -> Schema:
    return record(
        "What node 0 of the current attempt reported about the rendezvous.",
        {
            "attempt": integer("The attempt that reported it.", 1),
            "met": {"type": "boolean", "description": "Whether all nodes have joined the rendezvous."},
            "waits": string("Which nodes it waits for, and what to check.", MAX_WHY),
        },
    )


def _slowest() -> Schema:
    return record(
        "The rank that the others wait for: its own time in a step (batches and forward passes) is at least "
        "1.3 times the median of theirs, over 20 steps or more.",
        {
            "attempt": integer("The attempt.", 1),
            "rank": integer("The rank.", 0),
            "factor": number("Its own time by the median of the others.", least=0),
            "step": integer("The step at which the ranks were last compared.", 0, INT64_MAX),
            "pod": string("Its pod.", 253),
            "node": string("The node of that pod.", 253),
        },
    )


def _display() -> Schema:
    return record(
        "The columns of kubectl get.",
        {name: string(about, MAX_WHY if name == "why" else 64) for name, about in DISPLAY.items()},
    )


def _metrics() -> Schema:
    return list_of(
        f"The latest value of each metric, for at most {MAX_METRICS} metrics.",
        _metric(),
        MAX_METRICS,
        key="name",
    )


def _time(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description, "maxLength": 64}


def _count(about: str) -> Schema:
    return integer(about, 0)


def _conditions() -> Schema:
    condition = record(
        "A condition, as in Kubernetes.",
        {
            "type": string(
                "Queued, PodsReady, Running, Restarting, Suspended, Succeeded, Failed; Reconciling, Stalled.",
                316,
                least=1,
            ),
            "status": string("Whether it holds.", among=["True", "False", "Unknown"]),
            "reason": string("The reason, in one CamelCase word.", 1024),
            "message": string("The reason, for people.", 32768),
            "lastTransitionTime": _time("When status last changed."),
            "observedGeneration": integer("The generation of spec that the condition describes.", 0, INT64_MAX),
        },
        required=["type", "status", "lastTransitionTime", "reason", "message"],
    )
    return list_of("The conditions of the job.", condition, 16, key="type")


def _progress() -> Schema:
    return record(
        "The progress of training, as rank 0 last reported it.",
        {
            "attempt": integer("The attempt that reported it.", 1),
            "round": integer("The round of the attempt, after restarts in place.", 1),
            "step": integer("Optimizer steps done.", 0, INT64_MAX),
            "maxSteps": integer("Optimizer steps in total.", 0, INT64_MAX),
            "epoch": number("Epochs done.", least=0),
            "percent": integer("Steps done, in percent.", 0, 100),
            "endTime": _time("When training is expected to end."),
            "samplesPerSecond": number("Samples per second, of all ranks together.", least=0),
            "tokensPerSecond": number("Tokens per second, of all ranks together.", least=0),
            "activity": string("What rank 0 does besides steps: tokenizing, a download, saving.", MAX_ACTIVITY),
            "metricsLeftOut": integer("How many metrics were left out because the list is full.", 1, INT64_MAX),
            "lastUpdateTime": _time("When rank 0 last reported progress."),
        },
    )


def _avoided() -> Schema:
    return record(
        "A node that is avoided.",
        {
            "node": string("The node.", 253, least=1),
            "failures": integer("How many of the attempts in the status failed first there.", 1),
            "why": string("Those attempts, and why each one ended.", MAX_WHY),
        },
        required=["node"],
    )


def _goodput() -> Schema:
    seconds = {cause: number(about, least=0) for cause, about in GOODPUT_CAUSES.items()}
    clock = {
        "attempt": integer("The attempt.", 1),
        "step": integer("The last step in it.", 0, INT64_MAX),
        "first": integer("The step that it resumed from.", 0, INT64_MAX),
        "seconds": record("By cause.", {cause: number("Seconds.", least=0) for cause in CLOCK_CAUSES}),
        "late": {"type": "boolean", "description": "Whether it arrived with the attempt's end alone."},
    }
    return record(
        "Where the time of the job went, from its creation on.",
        {
            "percent": integer("The share of stepping in all seconds but those suspended, at least.", 0, 100),
            "since": _time("When the account begins: the creation of the job."),
            "seconds": record("Seconds by cause; together, the time that is accounted for.", seconds),
            "accelerators": integer("The accelerators of the current attempt.", 0, INT64_MAX),
            "lostAcceleratorSeconds": number("The acceleratorSeconds that were not spent in stepping.", least=0),
            "skewSeconds": number("By how many seconds clocks contradicted each other.", least=0),
            "stepsBefore": integer("Steps of the checkpoint that the first attempt resumed from.", 1, INT64_MAX),
            "longestSaveSeconds": number("The longest save, from its beginning until it was complete.", least=0),
            "clock": record("What the trainer of the latest attempt measured so far.", clock),
        },
        required=["since", "seconds"],
    )


def _cost() -> Schema:
    return record(
        "The cost in one currency.",
        {
            "currency": string("As in the pool's price.", 3, least=3),
            "amount": number("What all acceleratorSeconds cost.", least=0),
            "lost": number("What those cost that were not spent in stepping.", least=0),
            "acceleratorSeconds": number("The acceleratorSeconds in amount.", least=0),
            "lostAcceleratorSeconds": number("Those in lost.", least=0),
        },
        required=["currency", "amount", "lost", "acceleratorSeconds", "lostAcceleratorSeconds"],
    )


def _memory() -> Schema:
    parts = {name: number(f"Of the estimate: {about}", least=0) for name, about in MEMORY_PARTS.items()}
    return record(
        "GiB of memory on one accelerator: what was measured, and what the trainer expected before it began.",
        {
            "attempt": integer("The attempt.", 1),
            "peak": number("The most that tensors took on rank 0's accelerator so far.", least=0),
            "estimate": number("What a rank needs for a step, as trainwright plan --memory estimates it.", least=0),
            **parts,
        },
    )


def _metric() -> Schema:
    return record(
        "A metric.",
        {
            "name": string("The name, such as loss or eval_loss.", MAX_NAME, least=1),
            "value": string("The value, as text because floats have several forms in YAML.", MAX_VALUE),
        },
        required=["name", "value"],
    )


def _best() -> Schema:
    return record(
        "The best evaluation so far, by metricForBestModel.",
        {
            "metric": string("The metric.", MAX_NAME),
            "value": string("The value, as text.", MAX_VALUE),
            "step": integer("The step of the evaluation.", 0, INT64_MAX),
            "checkpoint": string("The checkpoint, relative to the output folder.", MAX_PATH),
        },
    )


def _checkpoint(about: str) -> Schema:
    return record(
        about,
        {
            "path": string("Relative to the output folder.", MAX_PATH),
            "step": integer("Optimizer steps done when it was written.", 0, INT64_MAX),
            "time": _time("When it was complete."),
        },
    )


def _url(about: str) -> Schema:
    return string(about, MAX_URL)


def _run() -> Schema:
    return record(
        "A run in an experiment tracker.",
        {
            "tracker": string("The tracker, as reportTo names it.", MAX_VALUE, least=1),
            "url": _url("The page of the run."),
        },
        required=["tracker", "url"],
    )


def _attempt() -> Schema:
    return record(
        "One attempt: the pods that started together, and how they ended.",
        {
            "attempt": integer("The number of the attempt; the first is 1.", 1),
            "startTime": _time("When the pods were created."),
            "endTime": _time("When the attempt ended."),
            "outcome": string(
                "How it ended: Disrupted does not count towards maxRestarts; Stopped is suspended or past deadline.",
                among=["Succeeded", "Failed", "Disrupted", "Stopped"],
            ),
            "reason": string("The reason, in one CamelCase word, such as Hang or BadData.", MAX_REASON),
            "pod": string("The pod that failed first.", 253),
            "node": string("The node of that pod.", 253),
            "exitCode": integer("The exit code of the trainer in that pod.", -INT64_MAX, INT64_MAX),
            "time": _time("When that pod ended or was deleted."),
            "step": integer("The last reported step.", 0, INT64_MAX),
            "nodes": integer("The nodes of this attempt, if the job is elastic.", 1),
            "nextNodes": integer("The nodes of the next attempt, because not all of these found room.", 1),
            "maxSteps": integer("The steps that this attempt was to train, if given in steps.", 1, INT64_MAX),
            "numTrainEpochs": number("The epochs that this attempt was to train, if not given in steps.", least=0),
            "message": string("The trainer's last message, in one line.", MAX_MESSAGE),
            "restartsInPlace": integer("How often its ranks were restarted in the same pods.", 1),
            "rounds": list_of(
                f"The last {MAX_ROUNDS} rounds that ended with a restart in place, and why.",
                _round(),
                MAX_ROUNDS,
                key="round",
            ),
        },
        required=["attempt", "startTime"],
    )


def _round() -> Schema:
    return record(
        "A round of an attempt, after which its ranks were restarted in the same pods.",
        {
            "round": integer("The number of the round; the first is 1.", 1),
            "endTime": _time("When it ended."),
            "reason": string("The reason, in one CamelCase word: Error or Hang.", MAX_REASON),
            "message": string("The error of the rank that failed first, in one line.", MAX_ROUND_MESSAGE),
            "rank": integer("The rank that failed first.", 0),
            "nodeRank": integer("The rank of its pod among the pods of the attempt.", 0),
            "pod": string("That pod.", 253),
            "node": string("The node of that pod.", 253),
            "exitCode": integer("The exit code of the rank; above 128 a signal killed it.", -INT64_MAX, INT64_MAX),
            "step": integer("The last step of the round.", 0, INT64_MAX),
        },
        required=["round"],
    )
