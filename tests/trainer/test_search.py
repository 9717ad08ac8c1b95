"""``Trainer.hyperparameter_search``: the trials of transformers, pruning, continuing, and what can go wrong."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import transformers

import trainwright
from trainer import tiny
from trainer.world import in_world
from trainwright import UserError
from trainwright.arguments.enums import HPSearchBackend

TESTS = str(Path(__file__).parents[1])

optuna.logging.set_verbosity(optuna.logging.WARNING)


def space(trial: Any) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-1, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4, 8, 16]),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.3),
    }


def rate(trial: Any) -> dict[str, Any]:
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-1, log=True)}


def searcher(folder: Any, library: Any = trainwright, trainer: dict[str, Any] | None = None, **arguments: Any) -> Any:
    args = library.TrainingArguments(
        **{
            "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 12,
            "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 4, "logging_strategy": "no",
        } | arguments
    )  # fmt: skip
    given = {
        "model_init": lambda: tiny.classifier(),
        "train_dataset": tiny.vectors(),
        "eval_dataset": tiny.vectors(24, seed=2),
    }
    made = library.Trainer(args=args, **(given | (trainer or {})))
    made.remove_callback(library.PrinterCallback)
    return made


def study(folder: Path, name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/study.db")


def stored(folder: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a search that can be continued."""
    return {"storage": f"sqlite:///{folder}/study.db", "study_name": "s", "load_if_exists": True} | more


def drawn(seed: int) -> dict[str, Any]:
    return {
        "sampler": optuna.samplers.TPESampler(seed=seed),
        "pruner": optuna.pruners.MedianPruner(n_startup_trials=3),
    }


def test_the_trials_and_the_best_one_are_those_of_transformers(tmp_path: Path) -> None:
    found = {}
    for library in (transformers, trainwright):
        storage = optuna.storages.InMemoryStorage()
        options = {
            "storage": storage, "study_name": "s", "sampler": optuna.samplers.TPESampler(seed=3),
            "pruner": optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3),
        }  # fmt: skip
        best = searcher(tmp_path / library.__name__, library).hyperparameter_search(space, n_trials=9, **options)
        found[library] = best, optuna.load_study(study_name="s", storage=storage).trials
    (theirs, their_trials), (ours, our_trials) = found[transformers], found[trainwright]
    print(f"\nbest of transformers: {theirs}\nbest of trainwright:  {ours}")
    assert (ours.run_id, ours.hyperparameters) == (theirs.run_id, theirs.hyperparameters)
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)
    assert [one.state for one in our_trials] == [one.state for one in their_trials]
    assert [one.params for one in our_trials] == [one.params for one in their_trials]
    for one, other in zip(our_trials, their_trials, strict=True):
        assert one.intermediate_values == pytest.approx(other.intermediate_values, abs=1e-6)
    assert optuna.trial.TrialState.PRUNED in [one.state for one in our_trials]


def test_a_trial_has_its_folder_its_name_and_its_values_in_the_state(tmp_path: Path) -> None:
    trainer = searcher(tmp_path, save_strategy="steps", save_steps=6)
    seen = []

    class Watch(trainwright.TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((state.is_hyper_param_search, state.trial_name, state.trial_params, args.learning_rate))

    trainer.add_callback(Watch)
    trainer.hyperparameter_search(rate, n_trials=2, hp_name=lambda trial: f"try-{trial.number}")
    assert sorted(os.listdir(tmp_path)) == [".search", "try-0", "try-1"]
    assert (tmp_path / "try-1" / "checkpoint-12" / "model.safetensors").is_file()
    assert [(is_search, name) for is_search, name, *_ in seen] == [(True, "try-0"), (True, "try-1")]
    assert all(params == {"learning_rate": rate} for *_, params, rate in seen)
    trainer.hyperparameter_search(rate, n_trials=1)
    assert (tmp_path / "run-0" / "checkpoint-12").is_dir()


def test_after_a_search_the_trainer_is_as_it_was_made(tmp_path: Path) -> None:
    trainer = searcher(tmp_path)
    before = dict(vars(trainer.args))
    best = trainer.hyperparameter_search(space, n_trials=2)
    assert vars(trainer.args) == before
    assert (trainer.hp_search_backend, trainer.hp_name, trainer._trial) == (None, None, None)
    torch.testing.assert_close(trainer.model.state_dict(), tiny.classifier().state_dict())
    for name, value in best.hyperparameters.items():  # as users train the best trial again
        setattr(trainer.args, name, value)
    trainer.train()
    assert trainer.state.global_step == 12
    assert not trainer.state.is_hyper_param_search


def test_a_value_of_one_trial_does_not_leak_into_the_next(tmp_path: Path) -> None:
    seen = []

    def sometimes(trial: Any) -> dict[str, Any]:
        return rate(trial) | ({"weight_decay": 0.25} if trial.number == 0 else {})

    class Watch(trainwright.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(args.weight_decay)

    searcher(tmp_path, trainer={"callbacks": [Watch]}).hyperparameter_search(sometimes, n_trials=2)
    assert seen == [0.25, 0.0]


def test_the_model_is_made_from_the_trial(tmp_path: Path) -> None:
    made = []

    def model(trial: Any) -> Any:
        made.append(None if trial is None else trial.params["dropout"])
        return tiny.classifier(dropout=made[-1] or 0.0)

    def dropout(trial: Any) -> dict[str, Any]:
        return {"dropout": trial.suggest_float("dropout", 0.1, 0.9)}

    searcher(tmp_path, trainer={"model_init": model}).hyperparameter_search(dropout, n_trials=2)
    assert made[0] is None
    assert made[-1] is None
    assert len(set(made[1:-1])) == 2


def test_several_objectives_give_the_trials_that_none_dominates(tmp_path: Path) -> None:
    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = searcher(tmp_path, trainer={"compute_metrics": accuracy})
    best = trainer.hyperparameter_search(
        space, lambda metrics: [metrics["eval_loss"], metrics["eval_accuracy"]], 3, ["minimize", "maximize"]
    )
    assert isinstance(best, list)
    assert all(isinstance(one.objective, list) and len(one.objective) == 2 for one in best)


KILLED = """
import os, signal, sys
from trainer.test_search import drawn, rate, searcher, stored
from pathlib import Path
import optuna, trainwright
folder = Path(sys.argv[1])

class Die(trainwright.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if "run-7" in trainer._get_output_dir(trainer._trial) and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

trainer = searcher(folder, trainer={"callbacks": [Die]})
trainer.hyperparameter_search(rate, n_trials=20, **stored(folder, **drawn(0)))
"""


def test_a_killed_search_goes_on_from_its_storage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    before = study(tmp_path).trials
    assert len(before) == 8
    with caplog.at_level(logging.WARNING):
        best = searcher(tmp_path).hyperparameter_search(rate, n_trials=20, **stored(tmp_path, **drawn(1)))
    assert "trial 7 was interrupted; its values are tried again" in caplog.text
    trials = study(tmp_path).trials
    states = [one.state.name for one in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    print(f"\n{len(trials)} trials: {counts}; {best}")
    assert [one.params for one in trials[:8]] == [one.params for one in before]
    assert states[7] == "FAIL"
    assert trials[8].params == trials[7].params
    assert len(trials) == 21, "20 trials, and the one that was interrupted"
    assert "PRUNED" in states
    assert "RUNNING" not in states
    assert best.run_id == str(study(tmp_path).best_trial.number)
    again = searcher(tmp_path).hyperparameter_search(rate, n_trials=20, **stored(tmp_path))
    assert again == best, "nothing is left to do"
    assert len(study(tmp_path).trials) == 21


def test_a_trial_that_another_process_runs_is_left_alone(tmp_path: Path) -> None:
    running = optuna.create_study(**stored(tmp_path))
    trial = running.ask({"learning_rate": optuna.distributions.FloatDistribution(1e-4, 3e-1, log=True)})
    trial.set_user_attr("trainwright:folder", str(tmp_path))
    lock = tmp_path / ".search" / f"trial-{trial.number}.lock"
    lock.parent.mkdir()
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        searcher(tmp_path).hyperparameter_search(rate, n_trials=2, **stored(tmp_path))
    finally:
        process.kill()
        process.communicate()
    assert [one.state.name for one in study(tmp_path).trials] == ["RUNNING", "COMPLETE"]


def on_ranks(folder: str) -> Any:
    seen = []

    class Watch(trainwright.TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((round(args.learning_rate, 9), state.global_step))

    trainer = searcher(folder, trainer={"callbacks": [Watch]}, eval_steps=2)
    options = {"sampler": optuna.samplers.RandomSampler(seed=1), "pruner": Second()}
    best = trainer.hyperparameter_search(space, n_trials=3, **options)
    try:
        trainer.hyperparameter_search(lambda trial: {"learning_rat": 1.0}, n_trials=1)
    except UserError as error:
        said = str(error)
    return best, seen, said


class Second(optuna.pruners.BasePruner):
    """Prunes the second trial at its second evaluation."""

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number == 1 and len(trial.intermediate_values) == 2


def test_all_ranks_train_the_same_trials_and_get_the_best(tmp_path: Path) -> None:
    (best, seen, said), (other, others, said_there) = in_world(2, "trainer.test_search:on_ranks", str(tmp_path))
    assert best == other
    assert best.run_id in ("0", "2")
    assert seen == others
    assert [steps for _, steps in seen] == [12, 4, 12]
    assert said == said_there == "hp_space: learning_rat is not a training argument; did you mean learning_rate?"


def metric(metrics: dict[str, float]) -> Any:
    return metrics["eval_f1"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no parameters": ({"hp_space": lambda trial: {}}, "hp_space: it returned no parameters"),
    "no dict": ({"hp_space": lambda trial: None}, "hp_space: it returned nothing (None); return a dict"),
    "an unknown parameter": (
        {"hp_space": lambda trial: {"learnin_rate": 1}},
        "hp_space: learnin_rate is not a training argument; did you mean learning_rate?",
    ),
    "a value that an argument cannot have": (
        {"hp_space": lambda trial: {"learning_rate": trial.suggest_float("learning_rate", -2, -1)}},
        "learning_rate: must be at least 0",
    ),
    "a parameter without effect": (
        {"hp_space": lambda trial: {"num_train_epochs": trial.suggest_int("num_train_epochs", 1, 3)}},
        "hp_space: num_train_epochs has no effect, because max_steps is 12",
    ),
    "another output": (
        {"hp_space": lambda trial: {"output_dir": "x"}},
        "hp_space: output_dir is not a parameter of a trial; leave it out",
    ),
    "an objective that is no number": (
        {"compute_objective": lambda metrics: "low"},
        "compute_objective: it returned the str 'low'; return a number",
    ),
    "an objective without its metric": (
        {"compute_objective": metric},
        "compute_objective: the evaluation has no metric 'eval_f1'; it has ",
    ),
    "one objective for two directions": (
        {"direction": ["minimize", "maximize"]},
        "direction names 2 objectives, so return 2 numbers",
    ),
    "an unknown direction": ({"direction": "down"}, "direction: it must be 'minimize' or 'maximize'"),
    "no direction": ({"direction": []}, "direction: it must be 'minimize' or 'maximize'"),
    "no trials": ({"n_trials": 0}, "n_trials: it must be a whole number of at least 1, not 0"),
    "a space that is no function": ({"hp_space": {"learning_rate": 1}}, "hp_space: it must be a function, not {"),
    "a name that is no function": ({"hp_name": "run"}, "hp_name: it must be a function, not 'run'"),
    "no time": ({"timeout": -1}, "timeout: it must be a number of seconds above 0, not -1"),
    "a pruner of nobody": ({"pruner": "median"}, "pruner: it must be one of optuna.pruners, not 'median'"),
    "a sampler of nobody": ({"sampler": 5}, "sampler: it must be one of optuna.samplers, not 5"),
    "an unknown option": ({"samplr": 1}, "hyperparameter_search: optuna takes no samplr; it takes storage, sampler"),
    "trials at the same time": ({"n_jobs": 2}, "n_jobs: a Trainer trains one trial at a time"),
    "ray": ({"backend": "ray"}, "backend: searches with ray are not supported; use backend='optuna'"),
    "wandb": ({"backend": HPSearchBackend.WANDB}, "backend: searches with wandb are not supported"),
    "an unknown backend": ({"backend": "sigopt"}, "backend: it must be 'optuna', not 'sigopt'"),
    "a storage that is not there": (
        {"storage": "sqlite:////no/where/s.db"},
        "storage: optuna could not open the study",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_search_that_cannot_work_says_why_in_one_line(case: str, tmp_path: Path) -> None:
    given, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        searcher(tmp_path).hyperparameter_search(**{"hp_space": rate, "n_trials": 1} | given)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_search_needs_model_init_and_an_evaluation_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model_init: every trial needs a new model"):
        searcher(tmp_path, trainer={"model_init": None, "model": tiny.classifier()}).hyperparameter_search(rate)
    with pytest.raises(UserError, match=r"^eval_dataset: a search compares evaluations"):
        searcher(tmp_path, trainer={"eval_dataset": None}, eval_strategy="no").hyperparameter_search(rate)


def test_a_study_is_not_overwritten(tmp_path: Path) -> None:
    searcher(tmp_path).hyperparameter_search(rate, n_trials=1, **stored(tmp_path))
    with pytest.raises(
        UserError, match=r"^study_name: the storage has a study 's' already; continue it with load_if_ex"
    ):
        searcher(tmp_path).hyperparameter_search(rate, n_trials=1, **stored(tmp_path, load_if_exists=False))
    with pytest.raises(UserError, match=r"^direction: the study 's' was made with other directions"):
        searcher(tmp_path).hyperparameter_search(rate, n_trials=1, direction="maximize", **stored(tmp_path))


class Dies(trainwright.TrainerCallback):
    """Ends some trials in the midst of their training."""

    def __init__(self, trainer: list[Any], error: Exception, numbers: tuple[int, ...]) -> None:
        self.trainer, self.error, self.numbers = trainer, error, numbers

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trial = self.trainer[0]._trial
        if trial is not None and trial.number in self.numbers and state.global_step == 2:
            raise self.error


def dying(folder: Path, error: Exception, *numbers: int) -> Any:
    made: list[Any] = []
    made.append(searcher(folder, trainer={"callbacks": [Dies(made, error, numbers)]}))
    return made[0]


def test_a_trial_that_dies_is_one_line_and_the_search_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trainwright"):
        trainer = dying(tmp_path, ValueError("a bad row\nand more"), 1)
        best = trainer.hyperparameter_search(rate, n_trials=3, **stored(tmp_path))
    (line,) = [record.getMessage() for record in caplog.records if "trial" in record.getMessage()]
    assert line.startswith("trial 1 failed with {'learning_rate': ")
    assert line.endswith("}: ValueError: a bad row")
    assert [one.state.name for one in study(tmp_path).trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study(tmp_path).trials[1].user_attrs["error"] == "ValueError: a bad row"
    assert best.run_id in ("0", "2")


def test_a_search_whose_first_trial_dies_ends_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug"):
        dying(tmp_path, ValueError("a bug"), 0).hyperparameter_search(rate, n_trials=3)


def test_a_trial_that_does_not_fit_into_memory_does_not_end_the_search(tmp_path: Path) -> None:
    trainer = dying(tmp_path, torch.OutOfMemoryError("too much"), 0)
    assert trainer.hyperparameter_search(rate, n_trials=2).run_id == "1"


def test_a_search_without_a_completed_trial_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trial completed; the last one failed: compute_objective: .* is NaN$"):
        searcher(tmp_path).hyperparameter_search(rate, lambda metrics: float("nan"), n_trials=2)


def test_a_search_ends_after_its_timeout(tmp_path: Path) -> None:
    start = time.monotonic()
    searcher(tmp_path).hyperparameter_search(rate, n_trials=10_000, timeout=1, **stored(tmp_path))
    assert time.monotonic() - start < 60
    assert 1 <= len(study(tmp_path).trials) < 10_000


def test_training_with_a_trial_outside_of_a_search_hands_it_to_the_model(tmp_path: Path) -> None:
    seen = []
    trainer = searcher(tmp_path, trainer={"model_init": lambda trial: (seen.append(trial), tiny.classifier())[1]})
    trainer.train(trial={"dropout": 0.5})
    assert seen == [None, {"dropout": 0.5}]
    assert trainer.state.trial_params == {"dropout": 0.5}


def test_the_default_objective_and_space_are_those_of_transformers() -> None:
    metrics = {"eval_loss": 2.0, "eval_accuracy": 0.5, "eval_f1": 0.25, "eval_runtime": 9.0, "epoch": 1.0}
    for some in (metrics, {"eval_loss": 2.0, "epoch": 1.0}):
        theirs = transformers.trainer_utils.default_compute_objective(some)
        assert trainwright.default_compute_objective(some) == theirs
    trials = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask() for _ in range(2)]
    theirs = transformers.trainer_utils.default_hp_space_optuna(trials[0])
    assert trainwright.default_hp_space_optuna(trials[1]) == theirs
    assert [one.value for one in HPSearchBackend] == [one.value for one in transformers.trainer_utils.HPSearchBackend]
