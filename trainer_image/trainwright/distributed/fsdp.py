"""Fully sharded data parallelism: every rank holds its shards of weights, gradients and optimizer state.

torch's ``fully_shard`` (FSDP 2) works in place: the model stays the same module, and its parameters become
``DTensor``s. A *unit* is a module whose parameters are gathered together for its forward and its backward pass, and
freed after each. The units are the blocks of the model, and the model itself with the parameters that are in no block.

With two axes the mesh is hybrid (HSDP): the ranks of ``dp_shard`` share one replica, usually within a node, and the
gradients are also summed over the replicas of ``dp_replicate``. Every rank reads its own part of the data.

Forward passes are collectives: all ranks must make equally many.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from trainwright.arguments.errors import ModelError
from trainwright.arguments.sharding import Fsdp, Sizes
from trainwright.contract import UserError
from trainwright.distributed.named_state import is_sharded
from trainwright.distributed.native import AT_ONCE, OneProcess
from trainwright.distributed.ranks import Ranks
from trainwright.distributed.strategy import Kind
from trainwright.distributed.wrapping import base_model, class_name, layers_of, sharded_modules

logger = logging.getLogger(__name__)

FORWARD_METHODS = ("generate",)
"""Methods besides ``forward`` that gather the model's own parameters, if the model has them."""


class FullyShard(OneProcess):
    """FSDP 2 over a mesh of ``dp_replicate`` x ``dp_shard`` ranks.

    Args:
        sizes: The sizes of the mesh.
        settings: The settings of ``fsdp_config``.
        dtype: The number format to compute in; None for that of the parameters.
    """

    sharded = True

    def __init__(
        self,
        device: torch.device,
        ranks: Ranks,
        data: Ranks | None = None,
        *,
        sizes: Sizes,
        settings: Fsdp,
        dtype: torch.dtype | None = None,
        **more: bool,
    ) -> None:
        super().__init__(device, ranks, data, **more)
        self.settings, self._sizes, self._dtype = settings, sizes, dtype
        self.mesh = {name: size for name, size in zip(("dp_replicate", "dp_shard"), sizes, strict=True) if size > 1}
        self._model: Any = None
        self._exchanges = True

    @cached_property
    def device_mesh(self) -> DeviceMesh:
        """The mesh of torch, made on first use by all ranks together."""
        if self._sizes.replicate == 1:
            return init_device_mesh(self.device.type, (self._sizes.shard,), mesh_dim_names=("dp_shard",))
        return init_device_mesh(self.device.type, tuple(self._sizes), mesh_dim_names=("dp_replicate", "dp_shard"))

    @property
    def whole_checkpoints(self) -> bool:
        return self.settings.state_dict_type == "FULL_STATE_DICT"

    @property
    def offloads(self) -> bool:
        return self.settings.cpu_offload and self.device.type != "cpu"

    # -- sharding

    def wrap(self, model: nn.Module) -> nn.Module:
        if isinstance(model, FSDPModule):  # from an earlier evaluation or run
            self._model = model
            return model
        units = self.units(model)
        ignored = self._ignored(model)
        if self.settings.sync_module_states:
            self._spread_weights(model)
        if self._dtype is not None:
            _to_float32(model)
        _check_dtypes([*units, model])
        with_resharding = self.settings.reshard_after_forward
        options: dict[str, Any] = {
            "mesh": self.device_mesh,
            "mp_policy": self._precision(),
            "offload_policy": self._offload(),
            "ignored_params": ignored,
        }
        for unit in units:
            fully_shard(unit, reshard_after_forward=with_resharding, **options)
        fully_shard(model, reshard_after_forward=None if with_resharding else False, **options)
        self._model = model
        for name in FORWARD_METHODS:
            if hasattr(model, name):
                register_fsdp_forward_method(model, name)
        if self.settings.forward_prefetch:
            for unit, following in pairwise(units):
                cast(FSDPModule, unit).set_modules_to_forward_prefetch([cast(FSDPModule, following)])
        return model

    def prepare(
        self,
        model: nn.Module,
        make_optimizer: Callable[[], Any],
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        max_steps: int = 0,
    ) -> tuple[nn.Module, Any]:
        wrapped = (wrap or self.wrap)(model)
        _check_sharded(wrapped)
        return wrapped, make_optimizer()

    def units(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules whose parameters are gathered together, inner ones first, without the model itself.

        Raises:
            ModelError: ``transformer_layer_cls_to_wrap`` names a class that the model does not have.
        """
        return units_of(model, self.settings)

    def _ignored(self, model: nn.Module) -> set[nn.Parameter]:
        """Return the parameters of the modules that ``ignored_modules`` matches; they must be frozen."""
        modules = ignored_modules(model, self.settings)
        for module in modules:
            module.to(self.device)
        return {parameter for module in modules for parameter in module.parameters()}

    def _spread_weights(self, model: nn.Module) -> None:
        """Give all ranks the weights and buffers of rank 0, as DistributedDataParallel does, if all have values."""
        tensors = [*model.parameters(), *model.buffers()]
        if any(self.ranks.gather(any(tensor.is_meta for tensor in tensors))):
            return
        with torch.no_grad():
            for tensor in tensors:
                sent = tensor.to(self.device).contiguous()
                torch.distributed.broadcast(sent, src=0)
                if sent is not tensor:
                    tensor.copy_(sent)

    def _precision(self) -> MixedPrecisionPolicy:
        """Compute in the run's number format, and sum gradients in float32."""
        settings = self.settings
        given = getattr(torch, settings.param_dtype) if settings.param_dtype else self._dtype
        reduce = getattr(torch, settings.reduce_dtype) if settings.reduce_dtype else None
        if given is not None and reduce is None:
            reduce = torch.float32
        return MixedPrecisionPolicy(param_dtype=given, reduce_dtype=reduce)

    def _offload(self) -> OffloadPolicy:
        return CPUOffloadPolicy() if self.offloads else OffloadPolicy()

    def rest(self, model: nn.Module) -> None:
        """Free the parameters that a forward pass without a backward pass leaves gathered."""
        for module in sharded_modules(model):
            module.reshard()

    def recover(self, model: nn.Module) -> None:
        if isinstance(model, FSDPModule):
            model.reset_iter_state()
        for parameter in model.parameters():
            parameter.grad = None

    # -- stepping

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        exchanges = last or self._exchanges_every_batch
        if exchanges is not self._exchanges:
            self._model.set_requires_gradient_sync(exchanges)
            self._exchanges = exchanges
        return AT_ONCE

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        gradients = _gradients(parameters)
        norm = self._norm(gradients)
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for local in _by_device(_local(gradients)):
            torch._foreach_mul_(local, scale.to(local[0].device))
        return norm

    def norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        return self._norm(_gradients(parameters))

    def _norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """Return the norm over the shards of all ranks, with one sum of one number."""
        shards = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        squared = get_total_norm(_local(shards)).to(self.device).float().square() if shards else self._zero()
        torch.distributed.all_reduce(squared, group=self.device_mesh.get_group("dp_shard"))
        if whole:
            squared += get_total_norm(whole).to(self.device).float().square()
        return squared.sqrt()

    def _zero(self) -> torch.Tensor:
        return torch.zeros((), device=self.device)

    # -- saving

    def state(self, kind: Kind, part: Any, whole: bool = True) -> dict[str, Any]:
        """Return the state of ``part``; all ranks must call this together.

        Args:
            whole: Gather it: rank 0 gets tensors on the CPU in the form of a run without sharding, the others an empty
                mapping. Else each rank gets its shards, as ``DTensor``s.
        """
        state: dict[str, Any] = super().state(kind, part)
        if not whole:
            return state
        gathered = _map_tensors(self._gathered, state)
        return gathered if self.ranks.rank == 0 else {}

    def _gathered(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the whole tensor on the CPU of rank 0."""
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return full.detach().cpu() if self.ranks.rank == 0 else None


def _map_tensors(change: Callable[[torch.Tensor], Any], nest: Any) -> Any:
    if isinstance(nest, torch.Tensor):
        return change(nest)
    if isinstance(nest, dict):
        return {key: _map_tensors(change, value) for key, value in nest.items()}
    if isinstance(nest, list | tuple):
        return type(nest)(_map_tensors(change, value) for value in nest)
    return nest


def _gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _local(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [gradient._local_tensor if isinstance(gradient, DTensor) else gradient for gradient in gradients]


def _by_device(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group tensors by device and number format, as the functions over several tensors need them."""
    groups: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())


def units_of(model: nn.Module, settings: Fsdp) -> list[nn.Module]:
    """:meth:`FullyShard.units`, for the settings alone."""
    policy = settings.auto_wrap_policy
    if policy == "NO_WRAP":
        return []
    if policy == "SIZE_BASED_WRAP":
        chosen = list(_by_size(model, settings.min_num_params))
    else:
        chosen = _by_class(model, settings.transformer_layer_cls_to_wrap)
    return _without_shared(model, chosen)


def ignored_modules(model: nn.Module, settings: Fsdp) -> list[nn.Module]:
    """Return the modules that ``ignored_modules`` matches.

    Raises:
        UserError: It is no regular expression.
        ModelError: No module matches, or one that trains.
    """
    pattern = settings.ignored_modules
    if pattern is None:
        return []
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise UserError(f"fsdp_config.ignored_modules: {pattern!r} is no regular expression: {error}") from None
    modules = {name: module for name, module in model.named_modules() if matches(name)}
    if not modules:
        raise ModelError(f"fsdp_config.ignored_modules: {pattern!r} matches no module of {class_name(model)}")
    for name, module in modules.items():
        if any(parameter.requires_grad for parameter in module.parameters()):
            raise ModelError(
                f"fsdp_config.ignored_modules: {name} trains, and no rank would send its gradients; freeze it first"
            )
    return list(modules.values())


def _by_class(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """Return the modules of the named classes; by default those that the model calls indivisible, or its layers."""
    declared = tuple(getattr(base_model(model), "_no_split_modules", None) or ())
    wanted = names or declared
    if not wanted:
        return list(layers_of(model))
    present = {class_name(module) for module in model.modules()}
    if names and (absent := [name for name in names if name not in present]):
        has = sorted({*declared, *(class_name(layer) for layer in layers_of(model))} & present) or sorted(present)
        raise ModelError(
            f"fsdp_config.transformer_layer_cls_to_wrap: {class_name(model)} has no {', '.join(absent)}; "
            f"its layers are of {', '.join(has)}"
        )
    return [module for module in _inner_first(model) if class_name(module) in wanted]


def _by_size(model: nn.Module, smallest: int) -> Iterator[nn.Module]:
    """Yield the modules that hold at least ``smallest`` parameters besides those of units within them."""
    taken: set[int] = set()
    for module in _inner_first(model):
        if isinstance(module, nn.ModuleList | nn.ModuleDict):  # they have no forward pass
            continue
        free = [parameter for parameter in module.parameters() if id(parameter) not in taken]
        if free and sum(parameter.numel() for parameter in free) >= smallest:
            taken.update(map(id, free))
            yield module


def _inner_first(model: nn.Module) -> list[nn.Module]:
    """Return all modules inside ``model``, each after those within it, in the order of the forward pass."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            visit(child)
            if all(child is not seen for seen in found):
                found.append(child)

    visit(model)
    return found


def _without_shared(model: nn.Module, units: list[nn.Module]) -> list[nn.Module]:
    """Leave out units that share a parameter with a module outside of them: the model gathers that one itself."""
    holders: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), set()).add(name)
    shared = {identity: names for identity, names in holders.items() if len(names) > 1}
    if not shared:
        return units
    paths = {id(module): name for name, module in model.named_modules()}

    def is_closed(unit: nn.Module) -> bool:
        prefix = paths[id(unit)] + "."
        own = {id(parameter) for parameter in unit.parameters()} & shared.keys()
        return all(name.startswith(prefix) for identity in own for name in shared[identity])

    return [unit for unit in units if is_closed(unit)]


def _to_float32(model: nn.Module) -> None:
    """Keep trained weights in float32, of which the units compute with copies in the run's number format."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def _check_sharded(model: nn.Module) -> None:
    """Raises :class:`ModelError` for a parameter that trains and was added to the model after it was sharded."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not is_sharded(parameter):
            raise ModelError(
                f"{name} was added after the model was sharded, and no rank would send its gradients; add it before "
                "the first training or evaluation"
            )


def _check_dtypes(units: list[nn.Module]) -> None:
    """Raises if the trained parameters of one unit have several number formats, which it cannot send together."""
    taken: set[int] = set()
    for unit in units:
        own = [p for p in unit.parameters() if id(p) not in taken]
        taken.update(map(id, own))
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in own if p.requires_grad})
        if len(kinds) > 1:
            raise ModelError(
                f"model: the trained parameters of one {class_name(unit)} are of {' and '.join(kinds)}, and fsdp sends "
                "them together; convert them to one number format"
            )
