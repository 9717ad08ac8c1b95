"""Where a search looks and what it compares: the defaults of transformers, and a trial's values in the arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from trainwright.arguments.errors import TrainerError, kind_of
from trainwright.arguments.fields import FIELDS
from trainwright.nearest import did_you_mean

_MEASURED = ("_runtime", "_per_second", "_preparation_time")
"""The ends of metrics that measure time: they are no part of the default objective."""
_FIXED = ("output_dir", "report_to", "resume_from_checkpoint")
"""Arguments that belong to the search, not to a trial."""


def default_compute_objective(metrics: dict[str, float]) -> float:
    """The evaluation loss if there is no other metric, else the sum of the other metrics."""
    others = [v for name, v in metrics.items() if name not in ("eval_loss", "epoch") and not name.endswith(_MEASURED)]
    return sum(others) if others else metrics["eval_loss"]


def default_hp_space_optuna(trial: Any) -> dict[str, Any]:
    """Learning rate, epochs, seed and batch size, as in transformers."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 5),
        "seed": trial.suggest_int("seed", 1, 40),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4, 8, 16, 32, 64]),
    }


def default_hp_space_ray(trial: Any) -> dict[str, Any]:
    """The same space for Ray Tune.

    Raises:
        ImportError: ray is not installed.
    """
    try:
        from ray import tune
    except ImportError as error:
        raise ImportError("default_hp_space_ray: ray is not installed: pip install 'ray[tune]'") from error

    return {
        "learning_rate": tune.loguniform(1e-6, 1e-4),
        "num_train_epochs": tune.choice(list(range(1, 6))),
        "seed": tune.uniform(1, 40),
        "per_device_train_batch_size": tune.choice([4, 8, 16, 32, 64]),
    }


def default_hp_space_wandb(trial: Any) -> dict[str, Any]:
    """The same space for a sweep of wandb."""
    return {
        "method": "random",
        "metric": {"name": "objective", "goal": "minimize"},
        "parameters": {
            "learning_rate": {"distribution": "uniform", "min": 1e-6, "max": 1e-4},
            "num_train_epochs": {"distribution": "int_uniform", "min": 1, "max": 6},
            "seed": {"distribution": "int_uniform", "min": 1, "max": 40},
            "per_device_train_batch_size": {"values": [4, 8, 16, 32, 64]},
        },
    }


def objective_of(compute: Callable[[dict[str, float]], Any], metrics: dict[str, float], count: int) -> Any:
    """``compute(metrics)``: a number, or ``count`` numbers if a search has several directions.

    Raises:
        TrainerError: it is anything else.
    """
    try:
        value = compute(dict(metrics))
    except KeyError as error:
        known = ", ".join(sorted(metrics))
        raise TrainerError(f"compute_objective: the evaluation has no metric {error}; it has {known}") from error
    if count == 1:
        return _number(value)
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping) or len(list(value)) != count:
        raise TrainerError(
            f"compute_objective: it returned {kind_of(value)}; direction names {count} objectives, so return {count} "
            "numbers"
        )
    return [_number(each) for each in value]


def _number(value: Any) -> float:
    if isinstance(value, bool | str) or not (isinstance(value, Real) or hasattr(value, "__float__")):
        raise TrainerError(f"compute_objective: it returned {kind_of(value)}; return a number, such as a metric")
    return float(value)


def is_comparable(value: Any) -> bool:
    """Whether an objective can be compared with others: NaN cannot."""
    return not any(map(math.isnan, value if isinstance(value, list) else [value]))


def apply(args: Any, values: Any, model_sees_trial: bool) -> None:
    """Set the values of a trial on the arguments; the caller checks the arguments afterwards.

    Args:
        values: What ``hp_space`` returned.
        model_sees_trial: Whether ``model_init`` takes the trial, and so may read values that are no arguments.

    Raises:
        TrainerError: the space is empty, or a value has no place or no effect.
    """
    if not isinstance(values, Mapping):
        raise TrainerError(f"hp_space: it returned {kind_of(values)}; return a dict of argument and value")
    if not values and not model_sees_trial:
        raise TrainerError(
            "hp_space: it returned no parameters, so all trials would be equal; return a dict of argument and value, "
            "such as {'learning_rate': trial.suggest_float('learning_rate', 1e-6, 1e-4, log=True)}"
        )
    for name, value in values.items():
        if name in _FIXED:
            raise TrainerError(f"hp_space: {name} is not a parameter of a trial; leave it out")
        if name == "num_train_epochs" and args.max_steps > 0 and "max_steps" not in values:
            raise TrainerError(
                f"hp_space: num_train_epochs has no effect, because max_steps is {args.max_steps}; leave one out"
            )
        if hasattr(args, name):
            setattr(args, name, _typed(getattr(args, name), value))
        elif not model_sees_trial:
            hint = did_you_mean(name, FIELDS) or "; model_init(trial) may read a value for the model"
            raise TrainerError(f"hp_space: {name} is not a training argument{hint}")


def _typed(former: Any, value: Any) -> Any:
    """A number in the type that the argument has: some spaces draw floats for whole numbers."""
    if type(former) in (int, float) and type(value) in (int, float):
        return type(former)(value)
    return value
