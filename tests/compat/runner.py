"""Trains cases of the libraries, one after the other, each in a child of a process that has imported them once.

    python -m compat.runner MODELS [--overlay] < jobs    # a job a line: {"case": ..., "out": ..., "kill_at": 3}

Answers each job with one line, the exit code of the child (negative: the signal that ended it). What was logged and
the weights lie in the job's folder.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
if "--overlay" in sys.argv:
    import trainwright.overlay  # noqa: F401

import torch
import transformers

ARGUMENTS = {
    "max_steps": 6, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 1e-3,
    "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 2,
    "use_cpu": True, "report_to": "none", "disable_tqdm": True, "seed": 3, "bf16": False,
}  # fmt: skip


IMPORTED_ONCE = {
    "transformers": ("transformers.trainer",),
    "TRL": tuple(f"trl.trainer.{name}_trainer" for name in ("sft", "dpo", "reward", "kto", "grpo")),
    "sentence-transformers": (
        "sentence_transformers.sentence_transformer.trainer",
        "sentence_transformers.cross_encoder.trainer",
    ),
    "SetFit": ("setfit",),
}


class Kill(transformers.TrainerCallback):
    """Ends the process at a step, as a node that is lost does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(job: dict[str, Any], models: Path) -> None:
    """One case, from the start or from the newest checkpoint of its folder."""
    from compat.cases import CASES

    case, out = CASES[job["case"]], Path(job["out"])
    arguments = {**ARGUMENTS, "output_dir": str(out / "run")}
    by_hand = case.by_hand(models, arguments) if case.by_hand and job.get("overlay") else None
    trainer = case.make(models, arguments)
    inner = getattr(trainer, "st_trainer", trainer)
    if job.get("kill_at"):
        trainer.add_callback(Kill(job["kill_at"]))
    if inner is trainer:
        trainer.train(resume_from_checkpoint=job.get("resume", False))
    else:  # SetFit trains its classifier afterwards, and hands nothing on to the Trainer below
        run = inner.train
        inner.train = lambda: run(resume_from_checkpoint=job.get("resume", False))
        trainer.train()
    log = [{k: v for k, v in entry.items() if isinstance(v, int | float)} for entry in inner.state.log_history]
    (out / "log.json").write_text(json.dumps({"log": log, "by_hand": by_hand}))
    torch.save({name: value.detach().clone() for name, value in inner.model.state_dict().items()}, out / "weights.pt")


def answer(job: dict[str, Any], models: Path) -> int:
    """The exit code of a child that does the job."""
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        with open(Path(job["out"]) / "said", "a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            try:
                train(job, models)
                code = 0
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    from compat import tiny

    models, jobs = Path(sys.argv[1]), [json.loads(line) for line in sys.stdin]
    tiny.make(models)
    for library in {"transformers", *(job["case"].partition(" ")[0].strip(",") for job in jobs)}:
        for module in IMPORTED_ONCE[library]:
            importlib.import_module(module)
    for job in jobs:
        if job.get("overlay"):
            importlib.import_module("trainwright.overlay")
        print(answer(job, models), flush=True)


if __name__ == "__main__":
    main()
