"""A job, and changes of its spec: the path, the new value (None removes it), and whether the API server allows it."""

from __future__ import annotations

from typing import Any

from builders import make_job

OPEN = {"lrSchedulerKwargs": {"power": 2}, "acceleratorConfig": {"gradient_accumulation_kwargs": {"num_steps": 2}}}
JOB = make_job().training(maxSteps=200, numTrainEpochs=2.0, **OPEN).manifest()

CHANGES: dict[str, tuple[str, Any, bool]] = {
    "suspend": ("suspend", True, True),
    "more restarts": ("maxRestarts", 9, True),
    "a deadline": ("activeDeadlineSeconds", 60, True),
    "a time to live": ("ttlSecondsAfterFinished", 0, True),
    "more steps": ("trainingArguments.maxSteps", 300, True),
    "fewer steps": ("trainingArguments.maxSteps", 100, False),
    "no number of steps": ("trainingArguments.maxSteps", None, False),
    "more epochs": ("trainingArguments.numTrainEpochs", 3, True),
    "fewer epochs": ("trainingArguments.numTrainEpochs", 1, False),
    "the default epochs": ("trainingArguments.numTrainEpochs", None, True),
    "another rate": ("trainingArguments.learningRate", 1e-3, False),
    "no rate": ("trainingArguments.learningRate", None, False),
    "a seed": ("trainingArguments.seed", 1, False),
    "scheduler settings": ("trainingArguments.lrSchedulerKwargs", {"power": 3}, False),
    "a renamed setting": ("trainingArguments.lrSchedulerKwargs", {"lr_end": 2}, False),
    "a setting that nobody knows": ("trainingArguments.lrSchedulerKwargs", {"pover": 2}, False),
    "a renamed setting within": (
        "trainingArguments.acceleratorConfig",
        {"gradient_accumulation_kwargs": {"sync_each_batch": 2}},
        False,
    ),
    "checkpointing settings": ("trainingArguments.activationCheckpointingKwargs", {"use_reentrant": False}, False),
    "no arguments": ("trainingArguments", None, False),
    "another model": ("model.source", "gpt2-medium", False),
    "another configuration": ("model.fromConfig", {"n_layer": 3, "n_embd": 32, "n_head": 2}, False),
    "another dataset": ("dataset", {"source": "/other"}, False),
    "another task": ("task", "MaskedLM", False),
    "more nodes": ("accelerator", {"nodes": 2}, False),
    "another output": ("output", {"emptyDir": {}}, False),
    "a sample": ("sample", {"prompts": ["x"]}, False),
    "a label on the Job": ("jobTemplate", {"metadata": {"labels": {"team": "b"}}}, False),
    "another image": ("podTemplate", {"image": "x"}, False),
    "a longer grace": ("terminationGracePeriodSeconds", 60, False),
    "offline": ("offline", True, False),
    "a hang timeout": ("hangTimeoutSeconds", 60, False),
    "anomalies": ("onAnomaly", "Skip", False),
    "an anomaly's factor": ("anomalyFactor", 5, False),
    "a preflight": ("preflight", {"timeoutSeconds": 60}, False),
    "forked ranks": ("startMethod", "Fork", False),
    "deletion at the end": ("deleteAfterFinished", True, False),
}
