"""DeepSpeed's engine: ZeRO 1 to 3 over all ranks, by the configuration in ``deepspeed``.

The engine holds the model, steps the optimizer over partitions of flattened tensors, clips, scales losses, and writes
checkpoints of its own (:mod:`trainwright.checkpoint.zero`). ZeRO 1 partitions the optimizer's state, ZeRO 2 the
gradients too, and ZeRO 3 the parameters as well: then forward passes are collectives, which all ranks make together.

ZeRO 1 exchanges gradients after the last micro-batch of a step. ZeRO 2 and 3 reduce those of each micro-batch, because
no rank has room for all of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn.utils import get_total_norm

from trainwright.arguments import deepspeed as settings
from trainwright.arguments.errors import Mistake
from trainwright.contract import UserError
from trainwright.distributed.named_state import groups_by_name, is_partitioned
from trainwright.distributed.native import AT_ONCE
from trainwright.distributed.ranks import Ranks
from trainwright.distributed.strategy import Hooks, Kind, Strategy
from trainwright.distributed.wrapping import base_model, unwrap

logger = logging.getLogger(__name__)


class Zero(Strategy):
    """ZeRO over all ranks.

    Args:
        config: What :func:`trainwright.arguments.deepspeed.filled` returned.
        warmup_steps: The number of warmup steps in a run of so many steps.
        level: DeepSpeed's log level.

    Attributes:
        stage: The stage of ZeRO.
        engine: DeepSpeed's engine, once :meth:`prepare` has made it.
        dtype: The number format in which the engine keeps the parameters; None for that of the model.
        groups: The names of the parameters in each group of the optimizer that the engine was given.
        schedule_of_engine: The schedule that the configuration names, if it does.
    """

    owns_checkpoints = True
    autocasts = False

    def __init__(
        self,
        device: torch.device,
        ranks: Ranks,
        data: Ranks | None = None,
        *,
        config: settings.Config,
        warmup_steps: Callable[[int], int],
        level: int = logging.WARNING,
    ) -> None:
        super().__init__(device, ranks, data)
        self.config, self._warmup_steps, self._level = config, warmup_steps, level
        self.stage = settings.stage_of(config)
        self.sharded = self.stage == 3
        self.mesh = {"zero": ranks.world_size}
        self.engine: Any = None
        self.groups: list[list[str]] = []
        self._optimizer: Any = None
        self.dtype = _dtype(config)
        self._last = True

    @property
    def whole_checkpoints(self) -> bool:
        """Whether a checkpoint also holds the whole model for ``from_pretrained``."""
        return not self.sharded or bool(
            settings.get(self.config, "zero_optimization.stage3_gather_16bit_weights_on_model_save")
        )

    def place(self) -> Callable[[torch.Tensor], torch.Tensor]:
        device, dtype = self.device, self.dtype

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

        return move

    def new_scaler(self) -> None:
        """The engine scales losses itself."""
        return

    # -- making the engine

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the engine, if it was made for this model; before that an evaluation uses the model itself."""
        if self.engine is not None and self.engine.module is unwrap(model):
            return self.engine  # type: ignore[no-any-return]
        has_hooks = hasattr(model, "ds_id")  # those of an engine that another Trainer made
        if any(map(is_partitioned, model.parameters())) and not has_hooks:
            raise UserError(
                "deepspeed: the model was partitioned when it was made, and only training makes the engine that "
                "gathers its parameters; call train before evaluate and predict"
            )
        return model.to(self.device)

    def prepare(
        self,
        model: nn.Module,
        make_optimizer: Callable[[], Any],
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        max_steps: int = 0,
    ) -> tuple[nn.Module, Any]:
        config = self._finished(model, max_steps)
        schedule = config.pop("scheduler", None)  # the loop steps it, as it steps the Trainer's
        optimizer = None if "optimizer" in config else make_optimizer()
        if self.engine is None or self.engine.module is not model or optimizer not in (None, self._optimizer):
            _spread_weights(model, self.device)
            optimizer = _without_empty_groups(optimizer)
            self.groups = _groups(model, optimizer)
            self.engine = _initialize(model.to(self.device), optimizer, config, self._level)
            self._optimizer = _basic(self.engine)
            if optimizer not in (None, self._optimizer):
                raise UserError(
                    f"optimizers: DeepSpeed replaces {type(optimizer).__name__} by one of its own, which no schedule "
                    "would reach; choose another"
                )
        self.schedule_of_engine = None if schedule is None else _schedule(schedule, self._optimizer)
        return (wrap or self.wrap)(model), self._optimizer

    def divider(self, model: nn.Module, max_steps: int) -> Callable[[nn.Parameter], None]:
        """What partitions a parameter of ZeRO 3 before :meth:`prepare` does it to all; all ranks call it together.

        It sends the values of rank 0 to the others, of which each keeps its part, as ``deepspeed.zero.Init`` does.
        """
        init = imported().zero.Init(module=nn.Module(), config_dict_or_path=self._finished(model, max_steps))

        def divide(parameter: nn.Parameter) -> None:
            init._convert_to_zero_parameters([parameter])

        return divide

    def _finished(self, model: nn.Module, max_steps: int) -> settings.Config:
        width = settings.hidden_size_of(getattr(base_model(model), "config", None))
        try:
            config = settings.finished(self.config, width, max_steps, self._warmup_steps(max_steps))
        except Mistake as mistake:
            raise UserError(f"deepspeed: {mistake}") from None
        if "optimizer" not in config:  # the Trainer's, whichever it is
            config["zero_allow_untested_optimizer"] = True
            if settings.offloads(config, "optimizer"):
                config.setdefault("zero_force_ds_cpu_optimizer", False)
        return config

    def start(self, model: nn.Module, optimizer: Any, schedule: Any, scaler: Any, hooks: Hooks) -> None:
        if hooks.clip is not None:
            raise UserError(
                "_clip_grad_norm: DeepSpeed's engine clips within its step and never calls it; remove the override, "
                "and set max_grad_norm"
            )
        self.optimizer, self.schedule, self.hooks = optimizer, schedule, hooks
        self.scaler = self.engine.optimizer if self.engine.fp16_enabled() else None

    # -- stepping

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        if last is not self._last or self.engine._is_gradient_accumulation_boundary is None:
            self.engine.set_gradient_accumulation_boundary(last)
            self._last = last
        return AT_ONCE

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def update(self, max_norm: float) -> tuple[Any, bool]:
        """As in the base class; clips to ``gradient_clipping``, which is ``max_norm``, within the step.

        The event before the optimizer's step comes before clipping.
        """
        self.hooks.before_step()
        self.engine.step()
        skipped = not self.engine.was_step_applied()
        self.hooks.after_step()
        if self.schedule is not None and not skipped:
            self.schedule.step()
        return self._norm(skipped), skipped

    def _norm(self, skipped: bool) -> torch.Tensor:
        norm = float("inf") if skipped else self.engine.get_global_grad_norm()
        return norm if isinstance(norm, torch.Tensor) else torch.tensor(float("nan") if norm is None else float(norm))

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        raise UserError("_clip_grad_norm: DeepSpeed's engine clips within its step; leave it to max_grad_norm")

    def norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """Return the norm of the last step; without a step, of the gradients that are not partitioned."""
        norm = None if self.engine is None else self.engine.get_global_grad_norm()
        if norm is None:
            return get_total_norm([p.grad for p in parameters if p.grad is not None])
        return torch.as_tensor(norm)

    def zero_grad(self) -> None:
        self.engine.optimizer.zero_grad()

    def rest(self, model: nn.Module) -> None:
        """Free the parameters that a forward pass without a backward pass leaves gathered."""
        if self.sharded and self.engine is not None:
            self.engine.empty_partition_cache()

    def take_weights(self, model: nn.Module) -> None:
        """Have the optimizer step the weights that were loaded into the model, not those that it kept in float32."""
        if self.engine is not None and self.engine.module is unwrap(model):
            self.engine.optimizer.refresh_fp32_params()

    # -- saving

    def state(self, kind: Kind, part: Any, whole: bool = True) -> dict[str, Any]:
        state: dict[str, Any] = (unwrap(part) if kind == "model" else part).state_dict()
        return state

    def load(self, kind: Kind, part: Any, state: dict[str, Any]) -> None:
        if kind == "optimizer":
            raise UserError("deepspeed: an optimizer's state is read by its engine alone")
        unwrap(part).load_state_dict(state)


def _without_empty_groups(optimizer: Any) -> Any:
    """The engine cannot partition a group of no parameters, such as that of a model whose weights all decay."""
    if optimizer is not None:
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


def _groups(model: nn.Module, optimizer: Any) -> list[list[str]]:
    """The names of the parameters in each group, before the engine flattens them; in one, if it makes the optimizer."""
    if optimizer is None:
        return [[name for name, parameter in model.named_parameters() if parameter.requires_grad]]
    return groups_by_name(model, optimizer)


def _dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The number format in which the engine keeps the parameters; None for that of the model."""
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if settings.get(config, f"{name}.enabled"):
            return dtype
    return None


def _initialize(model: nn.Module, optimizer: Any, config: settings.Config, level: int) -> Any:
    """Make the engine; wrong values of the configuration become one line."""
    deepspeed = imported()
    deepspeed.utils.logger.setLevel(max(level, logging.WARNING))
    trained = None if optimizer is not None else [p for p in model.parameters() if p.requires_grad]
    try:
        with _quiet(deepspeed):
            made = deepspeed.initialize(model=model, optimizer=optimizer, model_parameters=trained, config=config)
    except (ValueError, AssertionError, TypeError, KeyError) as error:
        raise UserError(f"deepspeed: {_reason(error)}") from error
    return made[0]


def imported() -> Any:
    """DeepSpeed, on the device of this process."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _join_alone()
    import deepspeed

    # An operator for inference, which every first start on a CPU would compile for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _join_alone() -> None:
    """A single process needs a group too."""
    if not torch.distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        os.environ.setdefault("LOCAL_RANK", "0")
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


@contextmanager
def _quiet(deepspeed: Any) -> Iterator[None]:
    """Without the warning that the Trainer's optimizer is untested: ours are tested."""
    logger = deepspeed.utils.logger
    hide = lambda record: "untested optimizer" not in record.getMessage()  # noqa: E731
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)


def _reason(error: Exception) -> str:
    errors = getattr(error, "errors", None)
    if callable(errors) and (found := errors()):  # pydantic's
        return f"{'.'.join(map(str, found[0]['loc'])) or 'configuration'}: {found[0]['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _basic(engine: Any) -> Any:
    """The optimizer of torch within the engine's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _schedule(section: Mapping[str, Any], optimizer: Any) -> Any:
    """The schedule that the configuration names: DeepSpeed's, or one of torch."""
    from deepspeed.runtime import lr_schedules

    name, params = section.get("type"), dict(section.get("params") or {})
    kind = getattr(lr_schedules, str(name), None) or getattr(torch.optim.lr_scheduler, str(name), None)
    if kind is None:
        raise UserError(
            f"deepspeed: scheduler.type {name!r} is neither DeepSpeed's ({', '.join(lr_schedules.VALID_LR_SCHEDULES)}) "
            "nor of torch.optim.lr_scheduler"
        )
    try:
        return kind(optimizer, **params)
    except (TypeError, ValueError) as error:
        raise UserError(f"deepspeed: scheduler.params: {_reason(error)}") from error


def _spread_weights(model: nn.Module, device: torch.device) -> None:
    """Give all ranks the weights and buffers of rank 0: ZeRO 3 keeps of each rank's own."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if not is_partitioned(tensor):
                    sent = tensor.to(device).contiguous()
                    torch.distributed.broadcast(sent, src=0)
                    if sent is not tensor:
                        tensor.copy_(sent)
