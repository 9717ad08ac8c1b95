"""Callbacks: the events in their order, with the control they change; nobody is called who does not listen."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

import trainwright
from trainer import tiny
from trainwright.callbacks import callback
from trainwright.callbacks.state import TrainerControl, TrainerState
from trainwright.contract import UserError
from trainwright.integrations import progress


def make(folder: Any, *added: Any, library: Any = trainwright, **arguments: Any) -> Any:
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "per_device_train_batch_size": 16, "max_steps": 6, "logging_steps": 2,
    }  # fmt: skip
    args = library.TrainingArguments(**(defaults | arguments))
    data = tiny.vectors(64)
    trainer = library.Trainer(tiny.classifier(), args, train_dataset=data, eval_dataset=data[:8], callbacks=list(added))
    trainer.remove_callback(library.PrinterCallback)
    return trainer


def recorder(base: type, log: list[Any]) -> Any:
    """A callback of ``base`` that notes every event with the state it saw."""

    def noting(event: str) -> Any:
        def method(self, args, state, control, **kwargs):
            assert {"model", "optimizer", "lr_scheduler", "train_dataloader", "processing_class"} <= kwargs.keys()
            switches = tuple(value for _, value in sorted(vars(control).items()))
            log.append((event, state.global_step, round(state.epoch or 0, 4), switches))

        return method

    return type("Recorder", (base,), {event: noting(event) for event in callback.EVENTS if event != "on_push_begin"})


WHOLE = {
    "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 3,
    "gradient_accumulation_steps": 2, "max_steps": 5, "per_device_train_batch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize("base", [trainwright.TrainerCallback, transformers.TrainerCallback])
def test_events_come_as_from_transformers(base, tmp_path):
    """Also to a callback that subclasses the one of transformers."""
    mine, theirs = [], []
    trainer = make(tmp_path / "a", recorder(base, mine), **WHOLE)
    trainer.train()
    trainer.predict(tiny.vectors(8))
    reference = make(tmp_path / "b", recorder(transformers.TrainerCallback, theirs), library=transformers, **WHOLE)
    reference.train()
    reference.predict(tiny.vectors(8))
    assert mine == theirs
    assert {event for event, *_ in mine} == set(callback.EVENTS) - {"on_push_begin"}


def test_only_listeners_are_called(tmp_path):
    class Silent(trainwright.TrainerCallback):
        def __getattribute__(self, name):
            assert not name.startswith("on_") or not trainer.is_in_train, f"{name} was asked for in a step"
            return super().__getattribute__(name)

    trainer = None
    trainer = make(tmp_path)
    trainer.callback_handler.callbacks.append(Silent())
    handler = trainer.callback_handler
    assert not any(isinstance(c, Silent) for listeners in handler.listeners.values() for c in listeners)
    assert handler.listeners["on_pre_optimizer_step"] == ()
    assert [type(c).__name__ for c in handler.listeners["on_step_end"]] == ["DefaultFlowCallback"]


@pytest.mark.parametrize("replaced", ["call_event", "on_step_begin"])
def test_a_handler_may_be_replaced_in_part(replaced, tmp_path):
    """The switches are reset as by transformers, and the method is asked as often."""

    def steps_of(library: Any) -> tuple[list[str], list[int]]:
        trainer, asked = make(tmp_path / library.__name__, library=library, max_steps=4), []
        handler, original = trainer.callback_handler, trainer.callback_handler.on_step_begin

        def call_event(event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            asked.append(event)
            for one in handler.callbacks:
                control = getattr(one, event)(args, state, control, model=handler.model, **kwargs) or control
            return control

        def on_step_begin(*args: Any) -> Any:
            asked.append("on_step_begin")
            return original(*args)

        setattr(handler, replaced, {"call_event": call_event, "on_step_begin": on_step_begin}[replaced])
        trainer.train()
        return asked, [entry["step"] for entry in trainer.state.log_history]

    assert steps_of(trainwright) == steps_of(transformers)


def test_callbacks_may_come_and_go_while_training(tmp_path):
    """By hand, in the list itself, as scripts do."""
    heard = []

    class Late(trainwright.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            heard.append(state.global_step)
            if state.global_step == 4:
                trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if c is not self]

    class Adding(trainwright.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.callback_handler.callbacks.insert(0, Late())

    trainer = make(tmp_path, Adding)
    trainer.train()
    assert heard == [3, 4]


def test_a_control_can_be_told_that_something_begins():
    control = TrainerControl(True, True, True, True, True)
    for begins, left in (("_new_step", [True, True]), ("_new_epoch", [True]), ("_new_training", [])):
        getattr(control, begins)()
        assert [value for value in vars(control).values() if value] == left


def test_a_callback_may_return_another_control(tmp_path):
    class Stop(trainwright.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            return TrainerControl(should_training_stop=state.global_step == 3, should_log=True)

    trainer = make(tmp_path, Stop)
    assert trainer.train().global_step == 3
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3]


def test_a_callback_may_end_an_epoch(tmp_path):
    class Short(trainwright.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step % 2 == 0

    trainer = make(tmp_path, Short, max_steps=-1, num_train_epochs=3)
    assert trainer.train().global_step == 3 * 2


def test_callbacks_are_added_popped_and_removed(tmp_path):
    trainer = make(tmp_path)
    stopping = trainwright.EarlyStoppingCallback(3)
    trainer.add_callback(stopping)
    assert trainer.callback_handler.listeners["on_evaluate"] == (stopping,)
    assert trainer.pop_callback(trainwright.EarlyStoppingCallback) is stopping
    assert trainer.pop_callback(trainwright.EarlyStoppingCallback) is None
    assert trainer.callback_handler.listeners["on_evaluate"] == ()
    trainer.remove_callback(trainwright.EarlyStoppingCallback)  # a class that is not there is no mistake
    with pytest.raises(ValueError, match="EarlyStoppingCallback is not one of the callbacks: DefaultFlowCallback"):
        trainer.remove_callback(stopping)


def test_classes_of_transformers_stand_for_ours(tmp_path):
    trainer = make(tmp_path)
    trainer.add_callback(trainwright.PrinterCallback)
    assert isinstance(trainer.pop_callback(transformers.PrinterCallback), trainwright.PrinterCallback)
    assert trainer.pop_callback(transformers.EarlyStoppingCallback) is None


def test_without_the_default_flow_there_is_a_warning(caplog):
    callback.CallbackHandler([], None, None, None, None)
    assert "include no DefaultFlowCallback: nothing will log" in caplog.text


METRICS = [3.0, 2.0, 2.5, 1.95, 1.9, 1.9, 1.0]


@pytest.mark.parametrize(("patience", "threshold", "stops"), [(1, 0.0, 3), (2, 0.0, None), (2, 0.5, 4), (3, 0.5, 5)])
def test_early_stopping_counts_evaluations_without_improvement(patience, threshold, stops):
    def stopped_after(library: Any, callback: Any) -> int | None:
        args = library.TrainingArguments("x", use_cpu=True, report_to="none", metric_for_best_model="loss")
        state, control = library.trainer_callback.TrainerState(), library.trainer_callback.TrainerControl()
        for number, metric in enumerate(METRICS, 1):
            callback.on_evaluate(args, state, control, {"eval_loss": metric})
            if control.should_training_stop:
                return number
            state.best_metric = metric if state.best_metric is None else min(metric, state.best_metric)
        return None

    theirs = stopped_after(transformers, transformers.EarlyStoppingCallback(patience, threshold))
    mine = stopped_after(transformers, trainwright.EarlyStoppingCallback(patience, threshold))
    assert mine == theirs == stops


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_strategy": "steps"}, "set metric_for_best_model"),
        ({"metric_for_best_model": "loss"}, "set eval_strategy to 'steps' or 'epoch'"),
    ],
)
def test_early_stopping_says_what_it_needs(arguments, message, tmp_path):
    trainer = make(tmp_path, trainwright.EarlyStoppingCallback, **arguments)
    with pytest.raises(UserError, match=message):
        trainer.train()


def test_early_stopping_stops_a_run(tmp_path):
    class Worse(trainwright.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            for parameter in model.parameters():
                parameter.data.mul_(1.5)

    trainer = make(
        tmp_path, Worse, trainwright.EarlyStoppingCallback(2), eval_strategy="steps", eval_steps=1,
        metric_for_best_model="loss", greater_is_better=False, max_steps=20,
    )  # fmt: skip
    assert trainer.train().global_step == 3


def test_states_go_into_the_checkpoint_and_come_back(tmp_path):
    def trainer_with(counter: int, **arguments: Any) -> Any:
        stopping = trainwright.EarlyStoppingCallback(5)
        stopping.early_stopping_patience_counter = counter
        return make(
            tmp_path, stopping, save_strategy="steps", save_steps=2, eval_strategy="epoch", eval_delay=1000,
            metric_for_best_model="loss", **arguments,
        )  # fmt: skip

    trainer_with(3, max_steps=2).train()
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert saved["EarlyStoppingCallback"]["attributes"] == {"early_stopping_patience_counter": 3}
    assert saved["TrainerControl"]["args"]["should_training_stop"] is True
    resumed = trainer_with(0, max_steps=4, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=True)
    restored = next(c for c in resumed.callback_handler.callbacks if type(c).__name__ == "EarlyStoppingCallback")
    assert restored.early_stopping_patience_counter == 3
    assert resumed.state.global_step == 4


def test_the_printer_prints_and_leaves_the_log_as_it_is(capsys):
    logs = {"loss": 0.123456, "total_flos": 1e9, "step": 3}
    state = TrainerState(is_local_process_zero=True)
    progress.PrinterCallback().on_log(None, state, TrainerControl(), logs=logs)
    assert capsys.readouterr().out == "{'loss': '0.1235', 'step': 3}\n"
    assert logs["total_flos"] == 1e9


def test_the_progress_bar_moves_on_rank_zero(tmp_path, capsys):
    trainer = make(tmp_path, disable_tqdm=False, eval_strategy="steps", eval_steps=3)
    trainer.train()
    shown = capsys.readouterr()
    assert "6/6" in shown.err
    assert "'loss': '" in shown.out + shown.err
    assert not any(isinstance(c, progress.PrinterCallback) for c in trainer.callback_handler.callbacks)


def test_two_callbacks_of_a_class_are_told_of(tmp_path, caplog):
    trainer = make(tmp_path)
    trainer.add_callback(trainwright.DefaultFlowCallback)
    assert "there is already a DefaultFlowCallback; now there are two" in caplog.text
