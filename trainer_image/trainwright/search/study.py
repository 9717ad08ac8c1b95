"""A search by optuna: rank 0 asks the study for trials, and all ranks train each of them.

``n_trials`` counts the trials of the study. A search that continues from a storage runs those that are missing, and
repeats, as a new trial, what was interrupted.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import optuna
import torch
from optuna.trial import TrialState

from trainwright.arguments.errors import TrainerError
from trainwright.contract import UserError
from trainwright.distributed.ranks import Ranks
from trainwright.outputs import BestRun
from trainwright.search.spaces import is_comparable

logger = logging.getLogger(__name__)

FOLDER, REPEATS = "trainwright:folder", "trainwright:repeats"
"""Attributes of a trial: the output folder with its lock, and the number of the interrupted trial that it repeats."""
_OF_STUDY = ("storage", "sampler", "pruner", "study_name", "load_if_exists")
_OURS = ("timeout", "n_jobs", "gc_after_trial", "catch")


@dataclass(frozen=True)
class Settings:
    """The optional arguments of a search; ``study`` holds those of ``optuna.create_study``."""

    study: Mapping[str, Any]
    directions: tuple[Literal["minimize", "maximize"], ...]
    n_trials: int
    timeout: float | None = None
    gc_after_trial: bool = False
    catch: tuple[type[Exception], ...] = ()

    @staticmethod
    def of(direction: str | list[str], n_trials: int, options: Mapping[str, Any]) -> Settings:
        """Raises :class:`TrainerError` if one is unknown or invalid."""
        directions: tuple[Any, ...] = tuple(direction) if isinstance(direction, list | tuple) else (direction,)
        wrong = [each for each in directions if each not in ("minimize", "maximize")]
        if wrong or not directions:
            said = repr(wrong[0]) if wrong else "an empty list"
            raise TrainerError(f"direction: it must be 'minimize' or 'maximize', or a list of them, not {said}")
        if not isinstance(n_trials, int) or n_trials < 1:
            raise TrainerError(f"n_trials: it must be a whole number of at least 1, not {n_trials!r}")
        if unknown := [name for name in options if name not in (*_OF_STUDY, *_OURS)]:
            raise TrainerError(
                f"hyperparameter_search: optuna takes no {unknown[0]}; it takes {', '.join((*_OF_STUDY, *_OURS))}"
            )
        if options.get("n_jobs", 1) != 1:
            raise TrainerError(
                "n_jobs: a Trainer trains one trial at a time; to train several at once, start the script several "
                "times with the same storage and study_name, and load_if_exists=True"
            )
        timeout = options.get("timeout")
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise TrainerError(f"timeout: it must be a number of seconds above 0, not {timeout!r}")
        for name, kind in (("sampler", optuna.samplers.BaseSampler), ("pruner", optuna.pruners.BasePruner)):
            if options.get(name) is not None and not isinstance(options[name], kind):
                raise TrainerError(f"{name}: it must be one of optuna.{name}s, not {options[name]!r}")
        catch = options.get("catch", ())
        return Settings(
            {name: options[name] for name in _OF_STUDY if name in options},
            directions,
            n_trials,
            timeout,
            bool(options.get("gc_after_trial")),
            catch if isinstance(catch, tuple) else (catch,),
        )


@dataclass(frozen=True)
class Result:
    """How a trial ended. ``value`` is set if it completed, ``error`` if it failed."""

    state: TrialState
    value: Any = None
    error: Exception | None = None


def _study(settings: Settings) -> optuna.Study:
    directions, options = settings.directions, settings.study
    try:
        study = optuna.create_study(directions=[*directions], **options)
    except optuna.exceptions.DuplicatedStudyError as error:
        raise TrainerError(
            f"study_name: the storage has a study {options.get('study_name')!r} already; continue it with "
            "load_if_exists=True, or choose another name"
        ) from error
    except Exception as error:
        raise TrainerError(f"storage: optuna could not open the study: {_one_line(error)}") from error
    if tuple(direction.name.lower() for direction in study.directions) != directions:
        raise TrainerError(f"direction: the study {study.study_name!r} was made with other directions; use those")
    return study


class Search:
    """One search. ``train`` trains a trial and returns its objective; ``space`` is the user's ``hp_space``."""

    def __init__(
        self, settings: Settings, ranks: Ranks, output: str, space: Callable[[Any], Any], train: Callable[[Any], Any]
    ) -> None:
        self._settings, self._ranks, self._output = settings, ranks, Path(output)
        self._space, self._train = space, train
        self._study: optuna.Study | None = None
        self._lock: tuple[int, Path] | None = None
        self._last_error: Exception | None = None
        ranks.agree(self._open)

    def _open(self) -> None:
        """The study stays on the first rank."""
        if self._ranks.rank == 0:
            self._study = _study(self._settings)
            self._repeat_interrupted(self._study)

    def run(self) -> BestRun | list[BestRun]:
        """Train trials until the study has ``n_trials``; return the best on all ranks.

        Raises:
            TrainerError: no trial completed.
        """
        ends = time.monotonic() + self._settings.timeout if self._settings.timeout is not None else None
        try:
            while (trial := self._next(ends)) is not None:
                result = self._result(trial)
                self._record(trial, result)
        finally:
            self._release()
        return cast("BestRun | list[BestRun]", self._ranks.agree(self._best)[0])

    def _next(self, ends: float | None) -> Any:
        """The next trial, with the same values on all ranks; None at the end of the search."""
        asked: list[Any] = []

        def ask() -> tuple[int, dict[str, Any]] | None:
            if self._study is None or self._is_done(ends):
                return None
            trial = self._study.ask()
            self._hold(trial.number)
            trial.set_user_attr(FOLDER, str(self._output.absolute()))
            asked.append(trial)
            if self._ranks.world_size > 1:
                self._space(trial)  # draws the values, which the other ranks receive
            return trial.number, dict(trial.params)

        drawn = self._ranks.agree(ask)[0]
        if asked or drawn is None:
            return asked[0] if asked else None
        return optuna.trial.FixedTrial(drawn[1], drawn[0])

    def _is_done(self, ends: float | None) -> bool:
        assert self._study is not None
        trials = self._study.get_trials(deepcopy=False)
        repeated = {one.user_attrs.get(REPEATS) for one in trials}
        asked = [one for one in trials if one.state is not TrialState.WAITING and one.number not in repeated]
        return len(asked) >= self._settings.n_trials or (ends is not None and time.monotonic() >= ends)

    def _result(self, trial: Any) -> Result:
        try:
            value = self._train(trial)
        except optuna.TrialPruned:
            return Result(TrialState.PRUNED)
        except Exception as error:
            if self._ends_the_search(error):
                self._record(trial, Result(TrialState.FAIL, error=error))
                raise
            return self._failed(trial, error)
        finally:
            if self._settings.gc_after_trial:
                gc.collect()
        if not is_comparable(value):
            return self._failed(trial, TrainerError("compute_objective: the objective is NaN"))
        return Result(TrialState.COMPLETE, value)

    def _failed(self, trial: Any, error: Exception) -> Result:
        logger.warning("trial %d failed with %s: %s", trial.number, trial.params, _one_line(error))
        return Result(TrialState.FAIL, error=error)

    def _ends_the_search(self, error: Exception) -> bool:
        """Whether a failed trial ends the search: if all may fail alike, or if the ranks may be out of step."""
        if isinstance(error, (*self._settings.catch, torch.OutOfMemoryError)) and self._ranks.world_size == 1:
            return False
        if self._ranks.world_size > 1:
            return True
        assert self._study is not None
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        return not self._study.get_trials(deepcopy=False, states=finished)

    def _record(self, trial: Any, result: Result) -> None:
        if self._study is None:
            return
        if result.error is not None:
            self._last_error = result.error
            trial.set_user_attr("error", _one_line(result.error))
        self._study.tell(trial, result.value, state=result.state)
        self._release()

    def _best(self) -> Any:
        if self._study is None:
            return None
        best = self._study.best_trials
        if not best:
            last = f"; the last one failed: {_one_line(self._last_error)}" if self._last_error is not None else ""
            raise TrainerError(f"hyperparameter_search: no trial completed{last}") from self._last_error
        if len(self._settings.directions) > 1:
            return [BestRun(str(one.number), list(one.values), one.params) for one in best]
        first = self._study.best_trial  # of equal ones the first
        return BestRun(str(first.number), first.values[0], first.params)

    # A trial holds a lock while it runs, so that a later search can tell an interrupted trial from a running one.

    def _hold(self, number: int) -> None:
        path = _lock_path(self._output, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644), path
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock[0], fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(self) -> None:
        if self._lock is not None:
            handle, path = self._lock
            path.unlink(missing_ok=True)
            os.close(handle)
            self._lock = None

    def _repeat_interrupted(self, study: optuna.Study) -> None:
        """Queue the trials of this folder again whose processes have died."""
        for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            folder = one.user_attrs.get(FOLDER)
            if folder == str(self._output.absolute()) and _is_free(_lock_path(Path(folder), one.number)):
                logger.warning("trial %d was interrupted; its values are tried again", one.number)
                study.tell(one.number, state=TrialState.FAIL)
                study.enqueue_trial(one.params, user_attrs={REPEATS: one.number})


def _lock_path(output: Path, number: int) -> Path:
    return output / ".search" / f"trial-{number}.lock"


def _is_free(lock: Path) -> bool:
    """Whether no process holds the lock; a killed process leaves its file behind."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    lock.unlink(missing_ok=True)
    return True


def _one_line(error: BaseException | None) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}".rstrip(": ")
