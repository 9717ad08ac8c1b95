"""A small run with tied weights and dropout, for torch_xla and for anything else: ``python xla_job.py FOLDER [JSON]``.

Prints one line of JSON at its end: the sum of the weights, bit for bit, the history of the log, and what it ran on.
"""

import hashlib
import json
import sys

import torch

from trainwright import Trainer, TrainingArguments


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(32, 16)
        self.drop = torch.nn.Dropout(0.1)
        self.head = torch.nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids, labels=None):
        logits = self.head(self.drop(self.embed(input_ids)))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


def samples(count, lengths):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(32, (lengths[index % len(lengths)],), generator=generator) for index in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def main(folder, lengths=(8,), stop_at=None, **arguments):
    torch.manual_seed(0)
    model = Net()
    defaults = {
        "max_steps": 10, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 5, "save_steps": 4,
        "disable_tqdm": True,
    }  # fmt: skip
    args = TrainingArguments(output_dir=folder, **{**defaults, **arguments})
    trainer = Trainer(model, args, train_dataset=samples(44, lengths), eval_dataset=samples(10, (8,)))
    was_tied = model.head.weight is model.embed.weight
    if stop_at is not None:
        trainer.add_callback(stopping_at(stop_at))
    resumed = trainer.train(resume_from_checkpoint=bool(trainer.checkpoints.steps()))
    weights = model.embed.weight.detach().cpu()
    print(
        json.dumps({
            "digest": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
            "step": resumed.global_step,
            "log": trainer.state.log_history,
            "eval": trainer.evaluate(),
            "device": args.device.type,
            "devices": args.n_gpu,
            "tied": was_tied and model.head.weight is model.embed.weight,
        })
    )  # fmt: skip


def stopping_at(step):
    """Ends the process as a kill would, before anything of the step after ``step`` is saved."""
    import os

    from trainwright import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                os._exit(77)

    return Stop()


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
