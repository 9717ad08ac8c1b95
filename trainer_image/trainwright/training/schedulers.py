"""Learning rate schedules by the names of ``lr_scheduler_type``.

A schedule is a pure function from the step to a factor of the initial rate; ``LambdaLR`` applies it. Two of them
follow a metric instead: torch's ``ReduceLROnPlateau`` and ``GreedyLR`` (arXiv:2512.14527).
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from trainwright.contract import UserError


class ScheduleError(UserError):
    """A schedule cannot be made from the given arguments."""


class ScheduleArgumentError(ScheduleError, TypeError):
    """A schedule has no argument of the given name."""


def _warm(step: int, warmup: float) -> float:
    return float(step) / float(max(1, warmup))


def _progress(step: int, warmup: float, total: int) -> float:
    return float(step - warmup) / float(max(1, total - warmup))


def _cosine(progress: float, cycles: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))


def _constant(step: int, *, warmup: float = 0) -> float:
    return _warm(step, warmup) if step < warmup else 1.0


def _linear(step: int, *, warmup: float, total: int) -> float:
    if step < warmup:
        return _warm(step, warmup)
    return max(0.0, float(total - step) / float(max(1, total - warmup)))


def _cosine_decay(step: int, *, warmup: float, total: int, cycles: float, floor: float = 0.0) -> float:
    if step < warmup:
        return _warm(step, warmup)
    return max(0.0, _cosine(_progress(step, warmup, total), cycles) * (1 - floor) + floor)


def _cosine_restarts(step: int, *, warmup: float, total: int, cycles: float) -> float:
    if step < warmup:
        return _warm(step, warmup)
    progress = _progress(step, warmup, total)
    return 0.0 if progress >= 1.0 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((cycles * progress) % 1.0))))


def _polynomial(step: int, *, warmup: float, total: int, end: float, power: float, initial: float) -> float:
    if step < warmup:
        return _warm(step, warmup)
    if step > total:
        return end / initial
    remaining = 1 - (step - warmup) / (total - warmup)
    return float(((initial - end) * remaining**power + end) / initial)


def _inverse_sqrt(step: int, *, warmup: float, timescale: float) -> float:
    return _warm(step, warmup) if step < warmup else 1.0 / math.sqrt((step + timescale - warmup) / timescale)


def _cosine_from_first_step(
    step: int, *, warmup: float, total: int, cycles: float, floor: float, warmup_start: float | None
) -> float:
    """As :func:`_cosine_decay`, one step ahead: the rate of the first step is not 0, and the last is the minimum."""
    if step < warmup:
        if warmup_start is None:
            return (step + 1.0) / max(1.0, warmup)
        return warmup_start + (1.0 - warmup_start) * step / max(1, warmup - 1)
    progress = (step - warmup + 1.0) / max(1.0, total - warmup)
    return max(0.0, _cosine(progress, cycles) * (1 - floor) + floor)


_WARMUPS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(1.0 - progress),
}
_DECAYS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, _: 1.0 - progress,
    "cosine": _cosine,
    "1-sqrt": lambda progress, _: 1.0 - math.sqrt(progress),
}


def _warmup_stable_decay(
    step: int, *, warmup: float, stable: float, decay: float, kinds: tuple[str, str], floor: float, cycles: float
) -> float:
    if step < warmup:
        return max(0.0, _WARMUPS[kinds[0]](_warm(step, warmup)) * (1.0 - floor) + floor)
    if step < warmup + stable:
        return 1.0
    if step < warmup + stable + decay:
        progress = float(step - warmup - stable) / float(max(1, decay))
        return max(0.0, _DECAYS[kinds[1]](progress, cycles) * (1.0 - floor) + floor)
    return floor


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """Keep the initial rate."""
    return LambdaLR(optimizer, _constant, last_epoch)


def get_constant_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> LambdaLR:
    """Up linearly from 0, then constant."""
    return LambdaLR(optimizer, partial(_constant, warmup=num_warmup_steps), last_epoch)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Up linearly from 0, then down linearly to 0."""
    return LambdaLR(optimizer, partial(_linear, warmup=num_warmup_steps, total=num_training_steps), last_epoch)


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5, last_epoch: int = -1
) -> LambdaLR:
    """Up linearly from 0, then along ``num_cycles`` waves of a cosine; half a wave goes down to 0."""
    factor = partial(_cosine_decay, warmup=num_warmup_steps, total=num_training_steps, cycles=float(num_cycles))
    return LambdaLR(optimizer, factor, last_epoch)


def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: int = 1, last_epoch: int = -1
) -> LambdaLR:
    """Up linearly from 0, then ``num_cycles`` times down half a cosine, each time from the initial rate."""
    factor = partial(_cosine_restarts, warmup=num_warmup_steps, total=num_training_steps, cycles=float(num_cycles))
    return LambdaLR(optimizer, factor, last_epoch)


def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Up linearly from 0, then down to ``lr_end`` by a polynomial of degree ``power``."""
    initial = optimizer.defaults["lr"]
    if not initial > lr_end:
        raise ScheduleError(f"lr_scheduler_kwargs.lr_end: {lr_end} must be below the learning rate {initial}")
    factor = partial(
        _polynomial, warmup=num_warmup_steps, total=num_training_steps, end=lr_end, power=power, initial=initial
    )
    return LambdaLR(optimizer, factor, last_epoch)


def get_inverse_sqrt_schedule(
    optimizer: Optimizer, num_warmup_steps: int, timescale: int | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Up linearly from 0, then down by the inverse square root of the step; ``timescale`` defaults to the warm-up."""
    factor = partial(_inverse_sqrt, warmup=num_warmup_steps, timescale=timescale or num_warmup_steps or 10_000)
    return LambdaLR(optimizer, factor, last_epoch)


def _floor(optimizer: Optimizer, min_lr: float | None, min_lr_rate: float | None) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        raise ScheduleError("lr_scheduler_kwargs: give one of min_lr and min_lr_rate, and not both")
    return min_lr_rate if min_lr is None else min_lr / optimizer.defaults["lr"]  # type: ignore[return-value]


def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> LambdaLR:
    """As the cosine schedule, down to ``min_lr`` (or ``min_lr_rate`` of the initial rate) instead of 0."""
    floor = _floor(optimizer, min_lr, min_lr_rate)
    factor = partial(
        _cosine_decay, warmup=num_warmup_steps, total=num_training_steps, cycles=float(num_cycles), floor=floor
    )
    return LambdaLR(optimizer, factor, last_epoch)


def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> LambdaLR:
    """As the cosine schedule with a minimum; the warm-up begins at ``warmup_lr_rate`` of the initial rate, not at 0."""
    factor = partial(
        _cosine_from_first_step,
        warmup=float(num_warmup_steps),
        total=num_training_steps,
        cycles=float(num_cycles),
        floor=_floor(optimizer, min_lr, min_lr_rate),
        warmup_start=warmup_lr_rate,
    )
    return LambdaLR(optimizer, factor, last_epoch)


def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Warm-up, stable, decay. Without ``num_stable_steps`` the stable phase is what the other two leave."""
    if num_stable_steps is None:
        if num_training_steps is None:
            raise ScheduleError("warmup_stable_decay: give num_training_steps or num_stable_steps")
        num_stable_steps = num_training_steps - num_warmup_steps - num_decay_steps
    for name, kind in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if kind not in _DECAYS:
            raise ScheduleError(f"lr_scheduler_kwargs.{name}: {kind!r} is none of {', '.join(_DECAYS)}")
    factor = partial(
        _warmup_stable_decay,
        warmup=num_warmup_steps,
        stable=num_stable_steps,
        decay=num_decay_steps,
        kinds=(warmup_type, decay_type),
        floor=min_lr_ratio,
        cycles=float(num_cycles),
    )
    return LambdaLR(optimizer, factor, last_epoch)


def get_reduce_on_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> ReduceLROnPlateau:
    """torch's schedule that lowers the rate when a metric stops improving."""
    return ReduceLROnPlateau(optimizer, **kwargs)


def get_greedy_schedule(optimizer: Optimizer, **kwargs: Any) -> GreedyLR:
    """See :class:`GreedyLR`."""
    return GreedyLR(optimizer, **kwargs)


class StreamingAverage:
    """The mean of the last ``window_size`` values."""

    def __init__(self, window_size: int) -> None:
        self.window_size = window_size
        self.values: deque[float] = deque(maxlen=window_size)

    def streamavg(self, value: float) -> float:
        """Add a value and return the mean of the window."""
        self.values.append(value)
        return sum(self.values) / len(self.values)

    def state_dict(self) -> dict[str, Any]:
        return {"window_size": self.window_size, "values": list(self.values), "sum": sum(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.window_size = state.get("window_size", self.window_size)
        self.values = deque(state.get("values", []), maxlen=self.window_size)


class GreedyLR:
    """Raises the rate (divides by ``factor``) while a metric improves, lowers it (multiplies) while it does not.

    It acts after ``patience`` steps of one kind, waits ``warmup`` steps after a raise and ``cooldown`` after a cut, and
    resets to the initial rates after ``reset_start`` more cuts at the lower bound. ``smooth`` uses the mean of the
    last ``window_size`` metrics. ``min_lr`` and ``max_lr`` are one number, or one number per parameter group.
    """

    _SAVED = (
        "factor", "min_lrs", "max_lrs", "patience", "verbose", "cooldown", "warmup", "cooldown_counter",
        "warmup_counter", "mode", "threshold", "threshold_mode", "best", "num_bad_epochs", "num_good_epochs", "eps",
        "last_epoch", "smooth", "window_size", "reset_start", "reset_start_original", "_last_lr", "_init_lrs",
    )  # fmt: skip

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float | list[float] = 1e-3,
        max_lr: float | list[float] = 1.0,
        eps: float = 1e-8,
        verbose: bool = False,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ) -> None:
        if factor >= 1.0:
            raise ScheduleError(f"greedy schedule: factor must be below 1, got {factor}")
        if mode not in ("min", "max"):
            raise ScheduleError(f"greedy schedule: mode must be 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ScheduleError(f"greedy schedule: threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}")
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.threshold_mode, self.eps, self.verbose = threshold, threshold_mode, eps, verbose
        self.cooldown, self.warmup, self.smooth, self.window_size = cooldown, warmup, smooth, window_size
        self.reset_start_original, self.last_epoch = reset_start, 0
        self.min_lrs = self._per_group("min_lr", min_lr)
        self.max_lrs = self._per_group("max_lr", max_lr)
        self._init_lrs = [group["lr"] for group in optimizer.param_groups]
        self._last_lr = list(self._init_lrs)
        self._forget()

    def _per_group(self, name: str, value: float | list[float]) -> list[float]:
        groups = len(self.optimizer.param_groups)
        values = list(value) if isinstance(value, list | tuple) else [value] * groups
        if len(values) != groups:
            raise ScheduleError(f"greedy schedule: {name} needs {groups} values, one a parameter group; got {values}")
        return values

    def _forget(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_bad_epochs = self.num_good_epochs = self.cooldown_counter = self.warmup_counter = 0
        self.reset_start = self.reset_start_original
        self._streaming_avg = StreamingAverage(self.window_size) if self.smooth else None

    def step(self, metrics: float, epoch: int | None = None) -> None:
        """Compare one value of the metric with the best, and change the rate if due."""
        current = float(metrics)
        if self._streaming_avg is not None:
            current = self._streaming_avg.streamavg(current)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.cooldown_counter > 0 or self.warmup_counter > 0:
            self._wait()
        else:
            self._judge(current)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _wait(self) -> None:
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
        else:
            self.warmup_counter -= 1
        self.num_bad_epochs = self.num_good_epochs = 0

    def _judge(self, current: float) -> None:
        if self.is_better(current, self.best):
            self.best = current
            self.num_good_epochs, self.num_bad_epochs = self.num_good_epochs + 1, 0
        else:
            self.num_good_epochs, self.num_bad_epochs = 0, self.num_bad_epochs + 1
        if self.num_good_epochs > self.patience:
            self._raise()
            self.warmup_counter, self.num_good_epochs = self.warmup, 0
        elif self.num_bad_epochs > self.patience:
            self._cut()

    def is_better(self, current: float, best: float) -> bool:
        """Whether ``current`` improves on ``best`` by more than the threshold."""
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * current > sign * best * (1.0 + sign * self.threshold)
        return sign * current > sign * best + self.threshold

    def _raise(self) -> None:
        for group, most in zip(self.optimizer.param_groups, self.max_lrs, strict=True):
            raised = min(float(group["lr"]) / self.factor, most)
            if raised - group["lr"] > self.eps:
                group["lr"] = raised
                self._say(f"raised to {raised:.4e}")
        self.reset_start = self.reset_start_original

    def _cut(self) -> None:
        for group, least in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            cut = max(float(group["lr"]) * self.factor, least)
            if group["lr"] - cut > self.eps:
                group["lr"] = cut
                self._say(f"lowered to {cut:.4e}")
        self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        if all(g["lr"] <= least for g, least in zip(self.optimizer.param_groups, self.min_lrs, strict=True)):
            self.reset_start -= 1
            if self.reset_start <= 0:
                self._start_anew()

    def _start_anew(self) -> None:
        for group, initial in zip(self.optimizer.param_groups, self._init_lrs, strict=True):
            group["lr"] = initial
        self._forget()
        self.cooldown_counter = self.cooldown
        self._say("back to the initial rates")

    def _say(self, what: str) -> None:
        if self.verbose:
            print(f"GreedyLR step {self.last_epoch}: learning rate {what}")

    def get_last_lr(self) -> list[float]:
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self._SAVED}
        if self._streaming_avg is not None:
            state["_streaming_avg"] = self._streaming_avg.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._SAVED:
            if name in state:
                setattr(self, name, state[name])
        if "_streaming_avg" in state:
            self._streaming_avg = StreamingAverage(self.window_size)
            self._streaming_avg.load_state_dict(state["_streaming_avg"])
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


TYPE_TO_SCHEDULER_FUNCTION: dict[str, Callable[..., Any]] = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "cosine_with_restarts": get_cosine_with_hard_restarts_schedule_with_warmup,
    "polynomial": get_polynomial_decay_schedule_with_warmup,
    "constant": get_constant_schedule,
    "constant_with_warmup": get_constant_schedule_with_warmup,
    "inverse_sqrt": get_inverse_sqrt_schedule,
    "reduce_lr_on_plateau": get_reduce_on_plateau_schedule,
    "cosine_with_min_lr": get_cosine_with_min_lr_schedule_with_warmup,
    "cosine_warmup_with_min_lr": get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    "warmup_stable_decay": get_wsd_schedule,
    "greedy": get_greedy_schedule,
}
_WITHOUT_KWARGS = {"constant", "constant_with_warmup"}


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Create the schedule ``name`` with the step counts that it takes, and the other keyword arguments."""
    name = getattr(name, "value", name)
    if name not in TYPE_TO_SCHEDULER_FUNCTION:
        raise ScheduleError(f"lr_scheduler_type: {name!r} is none of {', '.join(TYPE_TO_SCHEDULER_FUNCTION)}")
    make = TYPE_TO_SCHEDULER_FUNCTION[name]
    kwargs = dict(scheduler_specific_kwargs or {})
    if kwargs and name in _WITHOUT_KWARGS:
        raise ScheduleError(f"lr_scheduler_kwargs: the schedule {name!r} takes none, not {', '.join(kwargs)}")
    accepted = inspect.signature(make).parameters
    steps = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    for parameter, value in steps.items():
        if parameter in accepted:
            if value is None and accepted[parameter].default is inspect.Parameter.empty:
                raise ScheduleError(f"lr_scheduler_type {name!r} needs {parameter}")
            kwargs.setdefault(parameter, value)
    try:
        return make(optimizer, **kwargs)
    except TypeError as error:
        raise ScheduleArgumentError(f"lr_scheduler_kwargs: {error}") from error


def follows_metric(scheduler: Any) -> bool:
    """Whether a scheduler steps on the metric of an evaluation instead of at every optimizer step."""
    return isinstance(scheduler, ReduceLROnPlateau | GreedyLR) or type(scheduler).__name__ == "GreedyLR"
