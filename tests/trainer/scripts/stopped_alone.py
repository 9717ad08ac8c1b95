"""A run without a launcher that gets SIGTERM in its second step: ``stopped_alone.py FOLDER ENABLE_JIT_CHECKPOINT``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from trainer import tiny
from trainwright import Trainer, TrainerCallback, TrainingArguments


class Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    folder, asked = sys.argv[1], sys.argv[2] == "True"
    args = TrainingArguments(folder, enable_jit_checkpoint=asked, use_cpu=True, max_steps=4, save_strategy="no")
    Trainer(tiny.classifier(), args, train_dataset=tiny.vectors(32), callbacks=[Stop]).train()
