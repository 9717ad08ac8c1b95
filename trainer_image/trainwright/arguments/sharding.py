"""The values of ``fsdp``, ``fsdp_config`` and ``parallelism_config``: a key is honoured, or refused with its reason.

The names are those of transformers' ``TrainingArguments`` and of accelerate's plugin. FSDP 2 has no use for some keys
of FSDP 1: those are refused with the key that replaced them, unless the value is what FSDP 2 does anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainwright.contract import UserError

from .errors import Mistake
from .names import not_one_of

POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
STATE_DICTS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
STRATEGIES = {
    "full_shard": {"reshard_after_forward": True},
    "shard_grad_op": {"reshard_after_forward": False},
    "hybrid_shard": {"reshard_after_forward": True},
    "hybrid_shard_zero2": {"reshard_after_forward": False},
    "offload": {"cpu_offload": True},
    "auto_wrap": {},
}
"""Words of ``fsdp`` -> the keys of ``fsdp_config`` that each stands for, unless they are given."""
HYBRID = ("hybrid_shard", "hybrid_shard_zero2")


@dataclass(frozen=True)
class Fsdp:
    """The settings of FSDP 2.

    Attributes:
        reshard_after_forward: Free the gathered parameters of a unit after its forward pass; the backward pass gathers
            them again.
        cpu_offload: Keep parameters, gradients and optimizer state in host memory.
        auto_wrap_policy: How units are chosen: one of :data:`POLICIES`.
        transformer_layer_cls_to_wrap: The classes of the units; empty for the model's own ``_no_split_modules``.
        min_num_params: The smallest unit of ``SIZE_BASED_WRAP``, in parameters.
        activation_checkpointing: Recompute the activations of every unit in the backward pass.
        cpu_ram_efficient_loading: Only rank 0 reads the weights.
        sync_module_states: All ranks start with the weights of rank 0.
        state_dict_type: The form of checkpoints: one of :data:`STATE_DICTS`. As in accelerate they are sharded unless
            asked otherwise; transformers asks for whole ones, which one rank has to hold.
        ignored_modules: A regular expression; matching modules are not sharded.
        forward_prefetch: Gather the next unit's parameters before the current one computes.
        param_dtype: The number format to compute in (torch's name); None follows ``bf16`` and ``fp16``.
        reduce_dtype: The number format in which gradients are summed; None is float32.
        hybrid: Shard within a node, and replicate over the nodes.
    """

    reshard_after_forward: bool = True
    cpu_offload: bool = False
    auto_wrap_policy: str = POLICIES[0]
    transformer_layer_cls_to_wrap: tuple[str, ...] = ()
    min_num_params: int = 0
    activation_checkpointing: bool = False
    cpu_ram_efficient_loading: bool = False
    sync_module_states: bool = True
    state_dict_type: str = STATE_DICTS[1]
    ignored_modules: str | None = None
    forward_prefetch: bool = False
    param_dtype: str | None = None
    reduce_dtype: str | None = None
    hybrid: bool = False


class Sizes(NamedTuple):
    """The sizes of the mesh: ranks with the same shard, and ranks that one replica is sharded over."""

    replicate: int
    shard: int


def is_on(fsdp: Any) -> bool:
    """Whether ``fsdp`` asks for sharding."""
    return bool(fsdp) and str(fsdp).lower() != "false"


def words(fsdp: Any) -> list[str]:
    """The words of ``fsdp``, for instance ``full_shard auto_wrap``. Raises :class:`Mistake` for an unknown one."""
    if isinstance(fsdp, bool) or fsdp is None:
        return []
    items = fsdp.split() if isinstance(fsdp, str) else [str(getattr(item, "value", item)) for item in fsdp]
    items = [part for item in items for part in item.replace(",", " ").split()]
    for item in items:
        if item == "no_shard":
            raise Mistake("no_shard shards nothing; leave fsdp out to train data parallel")
        if item not in STRATEGIES and item.lower() not in ("true", "false"):
            raise Mistake(f"{item!r} {not_one_of(item, STRATEGIES)}")
    found = [item for item in items if item in STRATEGIES]
    if len(kinds := dict.fromkeys(item for item in found if "reshard_after_forward" in STRATEGIES[item])) > 1:
        raise Mistake(f"{' and '.join(kinds)} exclude each other; keep one")
    return found


def read_file(config: Any) -> dict[str, Any]:
    """``fsdp_config`` as a mapping with keys without the prefix ``fsdp_``. Raises :class:`Mistake`."""
    if isinstance(config, str):
        try:
            with open(config, encoding="utf-8") as file:
                config = json.load(file)
        except OSError as error:
            raise Mistake(f"cannot read the file {config!r}: {error.strerror}", type(error)) from None
        except ValueError as error:
            raise Mistake(f"the file {config!r} is not JSON: {error}") from None
    if config is not None and not isinstance(config, Mapping):
        raise Mistake("must be a mapping, or the path of a JSON file that holds one")
    return {key.removeprefix("fsdp_"): value for key, value in (config or {}).items()}


def completed(fsdp: Any, config: Any) -> dict[str, Any]:
    """``fsdp_config`` with what the words of ``fsdp`` mean, and transformers' defaults. Raises :class:`Mistake`."""
    settings = read_file(config)
    for word in words(fsdp):
        for key, value in STRATEGIES[word].items():
            settings.setdefault(key, value)
        if word in HYBRID:
            settings.setdefault("hybrid_shard", True)
    layers = settings.get("transformer_layer_cls_to_wrap")
    if isinstance(layers, str):
        settings["transformer_layer_cls_to_wrap"] = [name.strip() for name in layers.split(",") if name.strip()]
    settings.setdefault("min_num_params", 0)
    for key in ("xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt"):
        settings.setdefault(key, False)
    return settings


def read(fsdp: Any, config: Any) -> Fsdp:
    """The settings of a run with ``fsdp``. Raises :class:`Mistake` for a key or value that is not supported."""
    given: dict[str, Any] = {}
    for key, value in completed(fsdp, config).items():
        given |= read_key(key, value)
    settings = Fsdp(**given)
    _check_units(settings)
    if settings.cpu_ram_efficient_loading and not settings.sync_module_states:
        raise Mistake("cpu_ram_efficient_loading: needs sync_module_states, by which the others get the weights")
    return settings


def _check_units(settings: Fsdp) -> None:
    """Raises :class:`Mistake` for a key that the policy does not read."""
    policy = settings.auto_wrap_policy
    if policy == "SIZE_BASED_WRAP" and not settings.min_num_params:
        raise Mistake("min_num_params: SIZE_BASED_WRAP needs it: the parameters of the smallest unit, above 0")
    if policy != "SIZE_BASED_WRAP" and settings.min_num_params:
        raise Mistake(
            f"min_num_params: {policy} does not choose units by size; leave it out, or set auto_wrap_policy to "
            "SIZE_BASED_WRAP"
        )
    if policy != POLICIES[0] and settings.transformer_layer_cls_to_wrap:
        raise Mistake(
            f"transformer_layer_cls_to_wrap: {policy} does not choose units by class; leave it out, or set "
            f"auto_wrap_policy to {POLICIES[0]}"
        )


def read_key(key: str, value: Any, shown: str | None = None) -> dict[str, Any]:
    """What one key of ``fsdp_config`` sets in :class:`Fsdp`. Raises :class:`Mistake` that names it, as ``shown``."""
    if key not in _KEYS:
        raise Mistake(f"{shown or key} {not_one_of(key, _KEYS)}")
    try:
        return _KEYS[key](value)
    except Mistake as mistake:
        raise Mistake(f"{shown or key}: {mistake}", mistake.raised) from None


_ENVIRONMENT_KEYS = {"offload_params": "cpu_offload", "transformer_cls_to_wrap": "transformer_layer_cls_to_wrap"}
_WITHOUT_MEANING = ("sharding_strategy", "backward_prefetch", "use_orig_params", "forward_prefetch")
"""Variables that accelerate's launcher sets for FSDP 1 also where it starts FSDP 2, whose plugin drops them."""


def from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """``fsdp_config`` as accelerate's launcher writes it into ``FSDP_*``. Raises :class:`Mistake`."""
    config: dict[str, Any] = {}
    for name, text in sorted(variables.items()):
        own = name.removeprefix("FSDP_").lower()
        if own == name.lower() or own in _WITHOUT_MEANING:
            continue
        key, value = _ENVIRONMENT_KEYS.get(own, own), _value_of(own, text)
        if key in _KEYS:
            read_key(key, value, name)
            config[key] = value
    if str(config.get("auto_wrap_policy", "")).upper() != "SIZE_BASED_WRAP":
        config.pop("min_num_params", None)  # the launcher sets it always
    return config


def _value_of(name: str, text: str) -> Any:
    if name == "transformer_cls_to_wrap":
        return [part.strip() for part in text.split(",") if part.strip()]
    return int(text) if text.isdecimal() else text


def sizes_from_environment(variables: Mapping[str, str]) -> dict[str, int]:
    """``parallelism_config`` as accelerate's launcher writes it. Raises :class:`Mistake`."""
    prefix = "PARALLELISM_CONFIG_"
    found = {}
    for name in (*_AXES, *_UNBUILT_AXES):
        if (text := variables.get(prefix + name.upper())) is not None:
            found[name] = int(text) if text.isdecimal() else text
    try:
        return axes(found)
    except Mistake as mistake:
        axis, _, message = str(mistake).partition(": ")
        raise Mistake(f"{prefix}{axis.upper()}: {message}", mistake.raised) from None


def _flag(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: _boolean(value)}


def _boolean(value: Any) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise Mistake(f"must be true or false, not {value!r}")
    return text == "true"


def _choice(name: str, choices: tuple[str, ...]) -> Callable[[Any], dict[str, Any]]:
    def read_choice(value: Any) -> dict[str, Any]:
        text = str(value).upper()
        if text not in choices:
            raise Mistake(f"{value!r} {not_one_of(text, choices)}")
        return {name: text}

    return read_choice


def _only(accepted: tuple[Any, ...], reason: str) -> Callable[[Any], dict[str, Any]]:
    """A key that changes nothing: the ``accepted`` values say what FSDP 2 does anyway, others are refused."""

    def refuse(value: Any) -> dict[str, Any]:
        if value is None or str(value).lower() in [str(each).lower() for each in accepted]:
            return {}
        raise Mistake(f"{value!r} is not supported: {reason}")

    return refuse


def _version(value: Any) -> dict[str, Any]:
    if str(value) != "2":
        raise Mistake(f"{value!r} is not supported: transformers removes FSDP 1; leave version out for FSDP 2")
    return {}


def _resharding(value: Any) -> dict[str, Any]:
    if str(value).lower() not in ("true", "false"):
        raise Mistake(f"{value!r} is a strategy of FSDP 1; FSDP 2 takes true (full_shard) or false (shard_grad_op)")
    return {"reshard_after_forward": _boolean(value)}


def _layers(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise Mistake(f"must be a list of class names, not {value!r}")
    return {"transformer_layer_cls_to_wrap": tuple(value)}


def _size(value: Any) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Mistake(f"must be a whole number of parameters, not {value!r}")
    return {"min_num_params": value}


def _text(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, str):
        raise Mistake(f"must be a regular expression for the names of modules, not {value!r}")
    return {"ignored_modules": value}


_PRECISION_KEYS = ("param_dtype", "reduce_dtype")


def _precision(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    given = dict.fromkeys(_PRECISION_KEYS, value) if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise Mistake(f"must be a mapping of {' and '.join(_PRECISION_KEYS)}, not {value!r}")
    if unknown := [key for key in given if key not in _PRECISION_KEYS]:
        raise Mistake(f"{unknown[0]!r} {not_one_of(unknown[0], _PRECISION_KEYS)}")
    return {key: _dtype(dtype) for key, dtype in given.items()}


def _dtype(value: Any) -> str:
    name = str(value).removeprefix("torch.")
    name = DTYPES.get(name, name)
    if name not in DTYPES.values():
        raise Mistake(f"{value!r} {not_one_of(name, tuple(DTYPES.values()))}")
    return name


_XLA = "torch_xla shards by its own compiler; leave fsdp out there"
_PLUGIN = "it is an object of accelerate's plugin, which does not prepare the model here"

_KEYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "version": _version,
    "reshard_after_forward": _resharding,
    "cpu_offload": _flag("cpu_offload"),
    "offload_params": _flag("cpu_offload"),
    "auto_wrap_policy": _choice("auto_wrap_policy", POLICIES),
    "transformer_layer_cls_to_wrap": _layers,
    "min_num_params": _size,
    "activation_checkpointing": _flag("activation_checkpointing"),
    "cpu_ram_efficient_loading": _flag("cpu_ram_efficient_loading"),
    "sync_module_states": _flag("sync_module_states"),
    "state_dict_type": _choice("state_dict_type", STATE_DICTS),
    "ignored_modules": _text,
    "forward_prefetch": _flag("forward_prefetch"),
    "mixed_precision_policy": _precision,
    "hybrid_shard": _flag("hybrid"),
    "sharding_strategy": _only((), "it is of FSDP 1; set reshard_after_forward to true or false"),
    "use_orig_params": _only((True,), "FSDP 2 always keeps the original parameters; leave it out"),
    "limit_all_gathers": _only((True,), "FSDP 2 always limits them; leave it out"),
    "backward_prefetch": _only(
        ("BACKWARD_PRE",), "FSDP 2 always prefetches in the backward pass; leave it out, or see forward_prefetch"
    ),
    "activation_checkpointing_offload": _only((False,), "offloading activations is not built; leave it out"),
    "xla": _only((False,), _XLA),
    "xla_fsdp_v2": _only((False,), _XLA),
    "xla_fsdp_settings": _only(({},), _XLA),
    "xla_fsdp_grad_ckpt": _only((False,), _XLA),
    "param_init_fn": _only((), _PLUGIN),
    "state_dict_config": _only((), f"{_PLUGIN}; set state_dict_type"),
    "optim_state_dict_config": _only((), f"{_PLUGIN}; set state_dict_type"),
}
"""Key of ``fsdp_config`` -> its reader."""

_UNBUILT_AXES = {
    "tp_size": "tensor parallelism",
    "cp_size": "context parallelism",
    "sp_size": "sequence parallelism",
}
_AXES = ("dp_replicate_size", "dp_shard_size")


def axes(config: Any) -> dict[str, int]:
    """The sizes in ``parallelism_config``: a mapping, or accelerate's object. Raises :class:`Mistake`."""
    if config is None:
        return {}
    known = (*_AXES, *_UNBUILT_AXES)
    if not isinstance(config, Mapping) and not hasattr(config, _AXES[0]):
        raise Mistake(f"must be a mapping of sizes, or accelerate's ParallelismConfig, not {config!r}")
    given = config if isinstance(config, Mapping) else {name: getattr(config, name, None) for name in known}
    for name, size in given.items():
        if name not in known:
            raise Mistake(f"{name}: {not_one_of(name, known)}")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise Mistake(f"{name}: must be a whole number above 0, not {size!r}")
        if name in _UNBUILT_AXES and size not in (None, 1):
            raise Mistake(
                f"{name}: {size} is not supported: {_UNBUILT_AXES[name]} is not built yet", NotImplementedError
            )
    return {name: int(size) for name, size in given.items() if size is not None}


def sizes(settings: Fsdp, parallelism: Any, world_size: int, local_world_size: int) -> Sizes:
    """The mesh of a run. Raises :class:`UserError` for sizes that do not give ``world_size``."""
    if world_size < 2:
        raise UserError(
            "fsdp: it shards over the processes of a run, and this one trains alone; start several, or leave fsdp out"
        )
    given = axes(parallelism)
    replicate, shard = given.get("dp_replicate_size"), given.get("dp_shard_size")
    if replicate is None and shard is None:
        if settings.hybrid and local_world_size == 1:
            raise UserError(
                "fsdp: hybrid_shard shards within a node, and each node has one process; start several on each "
                "(perNode), or set full_shard"
            )
        shard = local_world_size if settings.hybrid else world_size
    if shard is None:
        shard = max(world_size // (replicate or 1), 1)
    if replicate is None:
        replicate = max(world_size // shard, 1)
    if replicate * shard != world_size:
        raise UserError(
            f"parallelism_config: dp_replicate_size {replicate} x dp_shard_size {shard} is not the {world_size} "
            "processes of this run; let their product be that"
        )
    if shard == 1:
        raise UserError("parallelism_config: dp_shard_size 1 shards nothing; raise it, or leave fsdp out")
    return Sizes(replicate, shard)
