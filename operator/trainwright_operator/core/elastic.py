"""How many nodes an attempt of an elastic job has: from ``accelerator.minNodes`` to ``accelerator.nodes``.

The number of pods of a Job is fixed, so another size is another attempt. The global batch is the same at every size:
gradient accumulation makes up for the nodes that are missing, and a size at which that does not divide is left out. So
the samples of each optimizer step are the same too.

An attempt that does not find room for all of its pods in time is given up, uncounted, for the largest size that found
room. The next one that starts after a while tries the whole size again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.history import History, Record
from trainwright_operator.core.observe import Attempt

TIMEOUT = timedelta(minutes=5)


def asked(job: TrainingJob) -> bool:
    return job.spec.accelerator.min_nodes is not None


def timeout(job: TrainingJob) -> timedelta:
    seconds = job.spec.accelerator.elastic_timeout_seconds
    return timedelta(seconds=seconds) if seconds else TIMEOUT


def settled(job: TrainingJob) -> timedelta:
    """How long an attempt lasts before a larger size is looked for again: the cluster may have grown."""
    return 2 * timeout(job)


def sizes(job: TrainingJob) -> tuple[int, ...]:
    """The numbers of nodes that an attempt may have, the largest first."""
    wanted = job.spec.accelerator
    nodes, least = wanted.nodes or 1, wanted.min_nodes
    if least is None:
        return (nodes,)
    micro_batches = nodes * _accumulation(job)
    return tuple(size for size in range(nodes, least - 1, -1) if micro_batches % size == 0)


def sized(job: TrainingJob, nodes: int) -> TrainingJob:
    """``job`` as it trains on so many nodes, with the global batch that it has on all of them."""
    wanted = job.spec.accelerator
    steps = (wanted.nodes or 1) * _accumulation(job) // nodes
    arguments = dict(job.spec.training_arguments)
    if steps != _accumulation(job):
        arguments["gradient_accumulation_steps"] = steps
    accelerator = replace(wanted, nodes=nodes, min_nodes=sizes(job)[-1])
    return replace(job, spec=replace(job.spec, accelerator=accelerator, training_arguments=arguments))


def next_size(job: TrainingJob, history: History) -> int:
    """The size of the attempt that follows on ``history``."""
    possible, last = sizes(job), history.last
    if last is None or last.end is None:
        return possible[0]
    if last.next_nodes in possible:
        return last.next_nodes
    stays = last.nodes in possible and last.end - last.start < settled(job)
    return last.nodes if stays and last.nodes else possible[0]


def fitting(job: TrainingJob, room: int) -> int:
    """The largest size that ``room`` pods are enough for; the smallest one if none is."""
    possible = sizes(job)
    return next((size for size in possible if size <= room), possible[-1])


def smaller(job: TrainingJob, attempt: Attempt) -> int | None:
    """The size to go on with when not all pods of ``attempt`` find room; None if there is none below its own.

    Where a scheduler places all of a gang or none, no pod says how many would fit: the next smaller size is tried.
    """
    placed = sum(pod.node is not None for pod in attempt.pods)
    below = [size for size in sizes(job) if size < attempt.desired]
    if not below:
        return None
    return next((size for size in below if size <= placed), below[-1] if placed else below[0])


def patience_left(job: TrainingJob, record: Record, attempt: Attempt, now: datetime) -> timedelta | None:
    """How much longer the attempt may wait for room for all; None when all have it, or no smaller size is possible."""
    placed = sum(pod.node is not None for pod in attempt.pods)
    if placed >= attempt.desired or smaller(job, attempt) is None:
        return None
    return record.start + timeout(job) - now


def problem(job: TrainingJob) -> str:
    """Why the job cannot be elastic, with the fix; empty if it can."""
    wanted, arguments = job.spec.accelerator, job.spec.training_arguments
    nodes, least = wanted.nodes or 1, wanted.min_nodes
    if least is None or least == nodes:
        return ""
    for name, why in _FIXED_SIZE.items():
        if arguments.get(name):
            return f"{why}; remove minNodes, or trainingArguments.{name}"
    if (arguments.get("accelerator_config") or {}).get("split_batches"):
        return "acceleratorConfig.split_batches divides one batch among the processes; remove it, or minNodes"
    if len(sizes(job)) > 1:
        return ""
    steps = _accumulation(job)
    better = next((more for more in range(steps + 1, steps + nodes + 1) if nodes * more % (nodes - 1) == 0), steps)
    return (
        f"no number of nodes from {least} to {nodes - 1} keeps the global batch: it must divide nodes x "
        f"gradientAccumulationSteps ({nodes} x {steps}); gradientAccumulationSteps: {better} allows {nodes - 1}"
    )


_FIXED_SIZE = {
    "full_determinism": "full determinism promises the same bits, which another number of processes does not give",
    "parallelism_config": "parallelismConfig names sizes for one number of processes",
    "deepspeed": "DeepSpeed's configuration holds a batch of its own",
}


def _accumulation(job: TrainingJob) -> int:
    return int(job.spec.training_arguments.get("gradient_accumulation_steps") or 1)
