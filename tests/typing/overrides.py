"""What users write on top of the Trainer, as their type checker sees it: `make types` runs pyright over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainwright import (
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class Weighted(Trainer):
    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (2 * loss, outputs) if return_outputs else 2 * loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "step": float(self.state.global_step)}, start_time)


class StopEarly(TrainerCallback):
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_training_stop = state.global_step >= 10 and args.max_steps > 10
        return control


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


arguments = TrainingArguments(output_dir="out", max_steps=3, learning_rate=1e-3, eval_strategy="steps")
trainer = Weighted(nn.Linear(1, 1), arguments, compute_metrics=accuracy, callbacks=[StopEarly()])
loss: float = trainer.train().training_loss
metrics: dict[str, float] = trainer.evaluate()
writer = Seq2SeqTrainer(nn.Linear(1, 1), Seq2SeqTrainingArguments("out", predict_with_generate=True))
