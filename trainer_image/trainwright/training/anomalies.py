"""Steps whose loss or gradient norm is wrong on any rank: ``onAnomaly``.

A value is wrong if it is not finite, or ``factor`` times the running median of the steps before. Each rank judges its
own loss and the norm on its device; one all-reduce of four numbers makes it the verdict of all. An optimizer that takes
the verdict as a tensor (torch's fused ones) steps or does not on the device, so no step waits for the host: the host
reads the verdict of a step when the next one is already queued. With any other optimizer, and with a gradient scaler,
which makes the host wait anyway, the host reads it before the optimizer's step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trainwright.arguments.errors import TrainerError
from trainwright.contract import ANOMALIES, ANOMALY_FACTOR, ON_ANOMALY, UserError
from trainwright.distributed.ranks import Ranks
from trainwright.job import resolved_job

logger = logging.getLogger(__name__)

IGNORE, SKIP, ROLLBACK = ON_ANOMALY
WINDOW = 64
"""Steps of which the median is taken."""
LEAST_STEPS = 20
"""Steps before a value can be too large."""
MAX_ROLLBACKS, ROLLBACK_STEPS = 3, 1000
"""More rollbacks than this, in so many steps, end the run."""
MAX_IN_A_ROW = 50
"""More steps than this in a row that were not taken end the run: weights that do not change cannot recover."""
RANKS, MOST_HUNDREDTHS = 2**20, 10**9
"""A verdict is an integer for each kind: the factor in hundredths, times more than there are ranks, plus the rank from
the last. It is larger than RANKS if there is something wrong."""
NOT_FINITE = 2
"""How many of ANOMALIES, from the first, are values that are not finite."""
_WHAT = ("loss", "gradient norm")


@dataclass(frozen=True)
class Anomaly:
    """What was wrong with a step: one of :data:`~trainwright.contract.ANOMALIES`, and the first rank that saw it.

    ``factor`` is the value by its median, if it was finite.
    """

    step: int
    kind: str
    rank: int
    factor: float | None = None
    epoch: float | None = None

    def __str__(self) -> str:
        value = _WHAT[ANOMALIES.index(self.kind) % 2]
        how = "is not finite" if self.factor is None else f"is {self.factor:.1f} times its running median"
        return f"the {value} of rank {self.rank} {how}"


def settings_of(trainer: Any) -> tuple[str, float]:
    """Return policy and factor: those of the Trainer, else of the TrainingJob (``spec.onAnomaly``).

    Raises:
        UserError: the Trainer has an unknown policy, or a factor that is neither 0 nor above 1.
    """
    job = resolved_job()
    policy = trainer.on_anomaly or (job and job.on_anomaly) or IGNORE
    factor = trainer.anomaly_factor
    if factor is None:
        factor = job.anomaly_factor if job is not None and job.anomaly_factor is not None else ANOMALY_FACTOR
    known = {name.lower(): name for name in ON_ANOMALY}
    if str(policy).lower() not in known:
        raise TrainerError(f"on_anomaly: it must be one of {', '.join(ON_ANOMALY)}, not {policy!r}")
    if factor != 0 and not factor > 1:
        raise TrainerError(f"anomaly_factor: it must be above 1, or 0 for values that are not finite, not {factor!r}")
    return known[str(policy).lower()], float(factor)


def watch_of(trainer: Any, model: nn.Module, scaler: Any) -> Watch | None:
    """Return what judges the steps of a run; None if anomalies are ignored.

    Raises:
        UserError: this run cannot leave out a step, or cannot go back to a checkpoint.
    """
    policy, factor = settings_of(trainer)
    if policy == IGNORE:
        return None
    _check(trainer, policy)
    on_device = scaler is None and _takes_verdict(trainer.optimizer)
    if not on_device and scaler is None and trainer.args.device.type == "cuda":
        logger.warning(
            "onAnomaly: %s cannot leave out a step on the device, so the host waits for it in each step; a fused "
            "optimizer of torch (optim: adamw_torch_fused) does not need that", type(trainer.optimizer).__name__,
        )  # fmt: skip
    return Watch(policy, factor, trainer._strategy.ranks, trainer.args.device, model, on_device, scaler is not None)


def _check(trainer: Any, policy: str) -> None:
    args, optimizer = trainer.args, trainer.optimizer
    if trainer._strategy.owns_checkpoints:
        raise UserError(
            f"onAnomaly: {policy} is not possible with DeepSpeed, whose engine clips and steps in one call; remove "
            "onAnomaly, or shard with fsdp"
        )
    if args.device.type in ("xla", "tpu"):
        raise UserError(
            f"onAnomaly: {policy} is not possible on TPUs, where a step of a compiled program cannot be left out; "
            "remove onAnomaly"
        )
    if hasattr(optimizer, "backward_and_step") or "layerwise" in str(getattr(args.optim, "value", args.optim)):
        raise UserError(
            f"onAnomaly: {policy} is not possible with optim {getattr(args.optim, 'value', args.optim)}, which updates "
            "weights during the backward pass; choose another optim"
        )
    if policy == ROLLBACK and (args.save_strategy == "no" or args.save_only_model):
        cause = (
            "save_only_model leaves the optimizer out of" if args.save_only_model else "save_strategy 'no' writes no"
        )
        raise UserError(f"onAnomaly: Rollback needs checkpoints, and {cause} them; choose Skip, or save them")


def _takes_verdict(optimizer: Any) -> bool:
    """Whether the optimizer is one of torch that reads ``found_inf`` on the device, and nothing follows its step."""
    return (
        type(optimizer).__module__.startswith("torch.optim.")
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        and not optimizer._optimizer_step_post_hooks
    )


class Watch:
    """Judges each step of one run.

    Attributes:
        policy: Skip or Rollback.
        on_device: Whether the optimizer is given the verdict as a tensor; then :meth:`verdict` comes a step later.
        in_a_row: Steps up to the newest that were not taken.
    """

    def __init__(
        self,
        policy: str,
        factor: float,
        ranks: Ranks,
        device: torch.device,
        model: nn.Module,
        on_device: bool,
        scales: bool = False,
    ) -> None:
        self.policy, self.on_device, self.in_a_row = policy, on_device, 0
        self._factor, self._ranks, self._device, self._scales = factor, ranks, device, scales
        self._history = torch.full((2, WINDOW), torch.nan, device=device)
        self._judged, self._step, self._epoch = 0, 0, 0.0
        self._losses: Sequence[torch.Tensor] = ()
        self._sent = _ToHost(device)
        self._statistics = _statistics_of(model)
        self._kept: list[torch.Tensor] = []

    def keep_statistics(self) -> None:
        """Keep the running statistics of batch norms, which the forward pass of a wrong batch would change."""
        self._kept = [statistic.clone() for statistic in self._statistics]

    def begin(self, step: int, epoch: float, losses: Sequence[torch.Tensor]) -> None:
        """Set the losses of the micro-batches of a step, before its update."""
        self._step, self._epoch, self._losses = step, epoch, losses

    @torch.no_grad()
    def judge(self, norm: Any) -> torch.Tensor:
        """Return 1 if the step is an anomaly on any rank, else 0, as a scalar on the device; a collective."""
        losses = [loss.detach().reshape(()) for loss in self._losses]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self._device).detach().reshape(())
        values = torch.stack([loss.float().to(self._device), norm])
        finite = torch.isfinite(values)
        values = torch.where(finite, values, torch.nan)
        if self._scales:  # gradients that overflow are the scaler's, which lowers the scale and skips the step itself
            finite[1] = True
        verdict = torch.cat([~finite, self._factors(values)]).mul_(100).clamp_(max=MOST_HUNDREDTHS).long()
        verdict.mul_(RANKS).add_(self._ranks.world_size - self._ranks.rank)  # the first rank adds the most
        self._ranks.max(verdict)
        self._remember(values)
        self._sent.send(verdict)
        is_anomaly = (verdict.amax() > RANKS).float()
        for statistic, kept in zip(self._statistics, self._kept, strict=False):
            statistic.copy_(torch.where(is_anomaly > 0, kept, statistic))
        return is_anomaly

    def _factors(self, values: torch.Tensor) -> torch.Tensor:
        """Return each value by its median if that is too much, else 0; a median of 0 or less says nothing."""
        if self._factor == 0 or self._judged < LEAST_STEPS:
            return torch.zeros_like(values)
        median = self._history.nanmedian(dim=1).values
        factors = values / torch.where(median > 0, median, torch.inf)
        return torch.where(factors > self._factor, factors, 0.0)

    def _remember(self, values: torch.Tensor) -> None:
        """Add the values to the median; large ones too, so that a level that lasts is accepted."""
        self._history[:, self._judged % WINDOW] = values
        self._judged += 1

    @property
    def is_open(self) -> bool:
        """Whether a step was judged whose verdict was not read."""
        return self._sent.is_new

    def verdict(self) -> Anomaly | None:
        """What was wrong with the newest judged step, if anything; waits until it is known."""
        verdict = self._sent.read()
        found = next((kind for kind, number in enumerate(verdict) if number > RANKS), None)
        if found is None:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        hundredths, from_last = divmod(verdict[found], RANKS)
        rank = self._ranks.world_size - from_last
        factor = hundredths / 100 if found >= NOT_FINITE else None
        return Anomaly(self._step, ANOMALIES[found], rank, factor, self._epoch)


class _ToHost:
    """Four numbers on their way to the host, for which nobody waits before they are read."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._host = torch.zeros(4, dtype=torch.long, pin_memory=self._event is not None)
        self.is_new = False

    def send(self, numbers: torch.Tensor) -> None:
        self._host.copy_(numbers, non_blocking=self._event is not None)
        if self._event is not None:
            self._event.record()
        self.is_new = True

    def read(self) -> list[int]:
        self.is_new = False
        if self._event is not None:
            self._event.synchronize()
        numbers: list[int] = self._host.tolist()
        return numbers


def _statistics_of(model: nn.Module) -> list[torch.Tensor]:
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def entries_of(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of anomalies in the history of a run."""
    return [entry for entry in log_history if "anomaly" in entry]


def summary_of(log_history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The anomalies of a run, as :attr:`trainwright.contract.Progress.anomalies`."""
    found = entries_of(log_history)
    if not found:
        return None
    last = found[-1]
    named = {"step": last["step"], "kind": last["anomaly"], "rank": last["rank"], "action": last["action"]}
    return {"count": len(found), "rollbacks": sum(one["action"] == ROLLBACK for one in found), **named}


def record(anomaly: Anomaly, action: str, checkpoint: Path | None, state: Any) -> None:
    """Add a step that was not taken to the history of the run, and log it on the first rank."""
    entry = {"anomaly": anomaly.kind, "rank": anomaly.rank, "action": action}
    entry |= {"factor": anomaly.factor} if anomaly.factor is not None else {}
    entry |= {"checkpoint": checkpoint.name} if checkpoint is not None else {}
    state.log_history.append({**entry, "epoch": anomaly.epoch, "step": anomaly.step})
    if state.is_world_process_zero:
        how = "the step is left out" if checkpoint is None else f"going back to {checkpoint.name}, and on with new data"
        logger.warning("onAnomaly: step %d: %s; %s", anomaly.step, anomaly, how)


def check_bounds(watch: Watch, anomaly: Anomaly, log_history: Sequence[dict[str, Any]]) -> None:
    """Raise :class:`UserError` if leaving out steps, or going back, has become hopeless; the same on all ranks."""
    fix = "lower learningRate or maxGradNorm, look at the data of these steps, or raise anomalyFactor"
    if watch.in_a_row > MAX_IN_A_ROW:
        raise UserError(
            f"onAnomaly: {anomaly} in step {anomaly.step}, and none of the {watch.in_a_row} last steps could be taken; "
            f"{fix}"
        )
    since = anomaly.step - ROLLBACK_STEPS
    back = [one for one in entries_of(log_history) if one["action"] == ROLLBACK and one["step"] > since]
    if watch.policy == ROLLBACK and len(back) >= MAX_ROLLBACKS:
        raise UserError(
            f"onAnomaly: {anomaly} in step {anomaly.step}, after rollbacks at steps "
            f"{', '.join(str(one['step']) for one in back)}: another one would not help; {fix}"
        )
