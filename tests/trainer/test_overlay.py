"""Our Trainer in the place of that of transformers: for a script that is left as it is, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from trainer import tiny
from trainer.gangs import Gang
from trainwright import Trainer

TRAINS = """
import os, sys
assert not {"torch", "transformers"} & sys.modules.keys(), "what is set here would come too late"
os.environ["HF_HOME"] = os.getcwd()

import transformers
from transformers import EarlyStoppingCallback, EvalPrediction, Seq2SeqTrainer, Trainer, TrainerCallback, TrainerState
from transformers import TrainerControl, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, PrinterCallback
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput
import torch, trainwright

assert Trainer is transformers.Trainer is transformers.trainer.Trainer is trainwright.Trainer
assert Seq2SeqTrainer is transformers.trainer_seq2seq.Seq2SeqTrainer is trainwright.Seq2SeqTrainer
assert issubclass(Seq2SeqTrainer, Trainer)
assert transformers.utils.hub.constants.HF_HOME == os.getcwd()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x, labels=None):
        y = self.linear(x)[:, 0]
        return {"loss": ((y - labels) ** 2).mean(), "logits": y}


class Mine(TrainerCallback):
    seen = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        assert isinstance(state, TrainerState) and isinstance(control, TrainerControl)
        self.seen.append((type(args), state.global_step, sorted(metrics)[0]))
        control.should_log = True
        return control


class MyTrainer(Trainer):
    def _run_epoch(self, *args):
        raise AssertionError("never called")

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        assert isinstance(output, EvalLoopOutput)
        return output


def rmse(p):
    assert isinstance(p, EvalPrediction)
    return {"rmse": float(((p.predictions - p.label_ids) ** 2).mean() ** 0.5)}


torch.manual_seed(0)
rows = [{"x": torch.randn(4), "labels": torch.tensor(0.5)} for _ in range(16)]
args = TrainingArguments(
    "out", max_steps=6, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, learning_rate=0.0,
    load_best_model_at_end=True, metric_for_best_model="rmse", greater_is_better=False, disable_tqdm=True,
)
assert args.world_size == int(os.environ["WORLD_SIZE"]) == 2, "each rank would train by itself"
early = EarlyStoppingCallback(early_stopping_patience=2)
trainer = MyTrainer(Model(), args, train_dataset=rows, eval_dataset=rows, compute_metrics=rmse, callbacks=[Mine, early])
callbacks = trainer.callback_handler.callbacks
assert isinstance(trainer.callback_handler, CallbackHandler) and all(isinstance(c, TrainerCallback) for c in callbacks)
assert any(isinstance(c, DefaultFlowCallback) for c in callbacks)
assert isinstance(trainer.pop_callback(PrinterCallback), PrinterCallback)
result = trainer.train()
assert isinstance(result, TrainOutput) and isinstance(trainer.predict(rows), PredictionOutput)
assert Mine.seen == [(TrainingArguments, step, "epoch") for step in (1, 2, 3)], Mine.seen  # a rate of 0: stopped early
print("args of the script:", sys.argv[1:], flush=True)
"""


def test_a_script_that_says_transformers_trains_on_our_trainer(tmp_path: Path):
    release = tmp_path / "site" / "transformers-9.1.0.dist-info"
    release.mkdir(parents=True)
    (release / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.1.0\n")
    (tmp_path / "train.py").write_text(TRAINS)
    with Gang(
        tmp_path, None, per_node=2, overlay=True, script={"path": str(tmp_path / "train.py"), "args": ["a b"]}
    ) as gang:
        gang.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
        assert gang.start().wait() == [0], gang.log()
        lines = gang.log().splitlines()
    said = [line.partition("trainwright.overlay: ")[2] for line in lines if "trainwright.overlay: " in line]
    assert said == [
        "transformers 9.1.0 is not one of the versions that it was tested with: 5.24",
        "Trainwright's Trainer replaces the one of transformers 9.1.0",
    ]
    assert any("MyTrainer overrides _run_epoch" in line for line in lines)
    assert sum("args of the script: ['a b']" in line for line in lines) == 2


LATE = """
import transformers
from transformers import Seq2SeqTrainer, Trainer as Theirs, trainer_utils
from transformers.trainer_utils import EvalPrediction

class Derived(Theirs): pass
class Written(Seq2SeqTrainer): pass
kept = [Theirs]

del trainer_utils.EvalPrediction
try:
    import trainwright.overlay
except trainwright.UserError as error:
    print(error)
assert transformers.Trainer is transformers.trainer.Trainer is Theirs is kept[0] is Derived.__bases__[0]
trainer_utils.EvalPrediction = EvalPrediction

import trainwright.overlay
assert transformers.Trainer is transformers.trainer.Trainer is Theirs is trainwright.Trainer
assert Theirs is not kept[0] and issubclass(Theirs, kept[0])
assert issubclass(Derived, Theirs) and issubclass(Written, Seq2SeqTrainer) and issubclass(Written, Theirs)
assert Seq2SeqTrainer is transformers.Seq2SeqTrainer is trainwright.Seq2SeqTrainer
"""


def test_what_was_imported_before_is_led_to_our_trainer_or_all_is_left(tmp_path: Path):
    (tmp_path / "late.py").write_text("import trainwright\n" + LATE)
    done = subprocess.run([sys.executable, "late.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "has no transformers.trainer_utils.EvalPrediction; nothing was replaced" in done.stdout
    assert done.stderr.count("trainwright.overlay: ") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-m"], ["-m", "no.such.module"], ["nosuch.py"]])
def test_what_cannot_be_run_is_said_in_one_line(arguments: list[str]):
    command = [sys.executable, "-m", "trainwright.overlay", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error"], done.stderr


def test_a_traceback_shows_the_script_alone(tmp_path: Path):
    (tmp_path / "wrong.py").write_text("def train():\n    raise RuntimeError('broken')\n\ntrain()\n")
    command = [sys.executable, "-m", "trainwright.overlay", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    frames = [line.split('"')[1] for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert {Path(frame).name for frame in frames} == {"wrong.py"}, done.stderr


def test_arguments_of_an_older_transformers_are_read_by_their_older_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    args = transformers.TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, report_to="none")
    args.gradient_checkpointing = True
    for name in ("activation_checkpointing", "activation_checkpointing_kwargs", "use_cache"):
        delattr(args, name)
        monkeypatch.delattr(transformers.TrainingArguments, name)
    trainer = Trainer(tiny.classifier(), args, train_dataset=tiny.vectors())
    assert (args.activation_checkpointing, args.use_cache) == (True, False)
    args.activation_checkpointing = False  # which this model has not
    assert trainer.train().global_step == 1
