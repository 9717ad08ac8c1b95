"""Your own model under the Trainer: a small network reads the 1,797 handwritten digits that come with scikit-learn.

Run it alone with `python examples/digits.py`, or as a TrainingJob with digits.yaml, which holds this very text.
"""

import os

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from trainwright import Trainer, TrainingArguments, get_last_checkpoint, set_seed

OUTPUT = os.environ.get("TRAINWRIGHT_OUTPUT_DIR", "runs/digits")


class Reader(nn.Module):
    """Returns (loss, logits) when it is given labels, else (logits,): all that the Trainer asks of a model."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
        )  # fmt: skip

    def forward(self, pixels, labels=None):
        logits = self.layers(pixels)
        if labels is None:
            return (logits,)
        return nn.functional.cross_entropy(logits, labels), logits


def load():
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    samples = [{"pixels": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]
    return train_test_split(samples, test_size=0.2, random_state=0)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


set_seed(42)
train, test = load()
arguments = TrainingArguments(
    output_dir=OUTPUT,
    num_train_epochs=8,
    per_device_train_batch_size=32,
    learning_rate=3e-3,
    lr_scheduler_type="cosine",
    logging_steps=20,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=2,
    load_best_model_at_end=True,
    metric_for_best_model="accuracy",
    disable_tqdm=True,
    report_to="none",
)
trainer = Trainer(Reader(), arguments, train_dataset=train, eval_dataset=test, compute_metrics=accuracy)
trainer.train(resume_from_checkpoint=get_last_checkpoint(OUTPUT) if os.path.isdir(OUTPUT) else None)
result = trainer.evaluate()
trainer.save_model()
if trainer.is_world_process_zero():
    print(f"accuracy on {len(test)} digits it has never seen: {result['eval_accuracy']:.3f}")
