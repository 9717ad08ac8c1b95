"""From ``Trainer.hyperparameter_search`` to the study: checks before the first trial, and the training of one trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwright import extras
from trainwright.arguments.enums import HPSearchBackend
from trainwright.arguments.errors import MissingPackageError, Problem, TrainerError
from trainwright.distributed.ranks import Ranks
from trainwright.outputs import BestRun
from trainwright.search import spaces


def backend_of(trainer: Any, backend: Any) -> HPSearchBackend:
    """The library to search with; None chooses optuna.

    Raises:
        UserError: the library is unknown, unsupported or not installed, or the Trainer lacks what a search needs.
    """
    try:
        chosen = HPSearchBackend.OPTUNA if backend is None else HPSearchBackend(backend)
    except ValueError as error:
        raise TrainerError(f"backend: it must be 'optuna', not {backend!r}") from error
    if chosen is not HPSearchBackend.OPTUNA:
        install = f"pip install '{extras.EXTRAS['search'][0]}'"
        raise TrainerError(
            f"backend: searches with {chosen.value} are not supported; use backend='optuna', which comes by {install}"
        )
    if line := extras.missing("optuna"):
        raise MissingPackageError([Problem("backend", line)])
    if trainer.model_init is None:
        raise TrainerError("model_init: every trial needs a new model; give the Trainer model_init instead of model")
    if trainer.eval_dataset is None and not trainer._overrides("get_eval_dataloader"):
        raise TrainerError("eval_dataset: a search compares evaluations; give the Trainer an evaluation set")
    return chosen


def _check_functions(trainer: Any) -> None:
    for name in ("hp_space", "compute_objective", "hp_name"):
        given = getattr(trainer, name)
        if given is not None and not callable(given):
            raise TrainerError(f"{name}: it must be a function, not {given!r}")


def search(
    trainer: Any, n_trials: int, direction: str | list[str], options: Mapping[str, Any]
) -> BestRun | list[BestRun]:
    """Run the search. Afterwards the Trainer has its own arguments again, and a new model."""
    from trainwright.search.study import Search, Settings

    _check_functions(trainer)
    settings = Settings.of(direction, n_trials, options)
    trainer._objectives = len(settings.directions)
    own = dict(vars(trainer.args))

    def restore() -> None:
        vars(trainer.args).clear()
        vars(trainer.args).update(own)

    def train(trial: Any) -> Any:
        restore()
        return train_trial(trainer, trial)

    try:
        return Search(settings, Ranks.current(), trainer.args.output_dir, trainer.hp_space, train).run()
    finally:
        restore()
        trainer._trial = None
        trainer._follow_arguments()
        trainer._renew_model()


def train_trial(trainer: Any, trial: Any) -> Any:
    """Train one trial, and return its last objective."""
    trainer.objective = None
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None  # frees the former trial
    trainer.train(trial=trial)
    if trainer.objective is None:
        trainer.objective = objective(trainer, trainer.evaluate())
    return trainer.objective


def objective(trainer: Any, metrics: dict[str, float]) -> Any:
    return spaces.objective_of(trainer.compute_objective, metrics, trainer._objectives)


def report(trainer: Any, trial: Any, step: int, metrics: dict[str, float]) -> None:
    """Report an evaluation to the study.

    Raises:
        optuna.TrialPruned: on all ranks, if the study prunes the trial.
    """
    from optuna import TrialPruned

    trainer.objective = objective(trainer, metrics)
    if trainer._objectives > 1:  # optuna prunes by one objective alone
        return
    ends = Ranks.current().agree(lambda: hasattr(trial, "study") and _prunes(trial, trainer.objective, step))[0]
    if ends:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        raise TrialPruned


def _prunes(trial: Any, value: float, step: int) -> bool:
    trial.report(value, step)
    return bool(trial.should_prune())
