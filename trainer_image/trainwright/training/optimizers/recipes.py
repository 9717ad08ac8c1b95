"""Every value of ``optim``: where its class is, and which arguments and ``optim_args`` it takes. A table, no code.

The names, and the arguments that each passes on, are those of ``transformers``. Values that transformers sets are set
here too, because the library's default may differ; values that it leaves to the library are not set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trainwright.rules import LOW_RANK


def flag(text: str) -> bool:
    """Raises :class:`ValueError` for what is neither true nor false."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise ValueError(f"{text} is neither true nor false")
    return words[text.lower()]


def dtype(text: str) -> torch.dtype:
    """Parse ``bfloat16`` into torch's dtype. Raises :class:`ValueError`."""
    found = getattr(torch, text, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{text} is no number format of torch")
    return found


Readers = Mapping[str, Callable[[str], Any]]
ADAM = ("betas", "eps")


@dataclass(frozen=True)
class Recipe:
    """How one optimizer is made.

    ``made_by`` is ``module:Class``; ``takes`` names the keyword arguments that come from ``TrainingArguments``, besides
    the learning rate; ``fixed`` are constant keyword arguments that select this variant; ``settings`` are the accepted
    ``optim_args``, and the parser of each.
    """

    made_by: str
    takes: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    settings: Readers = field(default_factory=dict)


_RMSPROP: Readers = {"momentum": float, "alpha": float, "eps": float, "weight_decay": float}
_LOW_RANK: Readers = {"rank": int, "update_proj_gap": int, "scale": float, "proj_type": str}
_APOLLO: Readers = {**_LOW_RANK, "proj": str, "scale_type": str}
_ADEMAMIX: Readers = {
    "beta1": float, "beta2": float, "beta3": float, "alpha": float, "eps": float, "t_alpha": int, "t_beta3": int,
}  # fmt: skip
_SCHEDULE_FREE: Readers = {"weight_lr_power": float, "r": float}
_TORCHAO: Readers = {"block_size": int, "bf16_stochastic_round": flag}
_GROK: Readers = dict.fromkeys(
    ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"), float
)
_ANYPRECISION: Readers = {
    "use_kahan_summation": flag, "momentum_dtype": dtype, "variance_dtype": dtype, "compensation_buffer_dtype": dtype,
}  # fmt: skip
_GIVEN_RATE = {"scale_parameter": False, "relative_step": False}
_FULL_MOMENTS = {
    "use_kahan_summation": False, "momentum_dtype": torch.float32, "variance_dtype": torch.float32,
    "compensation_buffer_dtype": torch.bfloat16,
}  # fmt: skip
_BLOCKS = {"block_size": 256, "bf16_stochastic_round": False}
_AVERAGING = {"weight_lr_power": 2.0, "r": 0.0}
_GROKKING = {
    "alpha_init": 0.98, "lamb": 2.0, "gamma": 0.1, "grokking_signal_decay_rate": 0.1, "gradient_clipping": 1.0,
}  # fmt: skip

TORCH: dict[str, Recipe] = {
    "adamw_torch": Recipe("torch.optim:AdamW", ADAM),
    "adamw_torch_fused": Recipe("torch.optim:AdamW", ADAM, {"fused": True}),
    "adafactor": Recipe("trainwright.training.optimizers.adafactor:Adafactor", fixed=_GIVEN_RATE),
    "sgd": Recipe(
        "torch.optim:SGD",
        settings={"momentum": float, "dampening": float, "weight_decay": float, "nesterov": flag},
    ),
    "adagrad": Recipe("torch.optim:Adagrad", settings={"lr_decay": float, "weight_decay": float, "eps": float}),
    "rmsprop": Recipe("torch.optim:RMSprop", settings={**_RMSPROP, "centered": flag}),
}


def _bitsandbytes(name: str, cls: str, takes: tuple[str, ...], settings: Readers) -> Recipe:
    fixed: dict[str, Any] = {"optim_bits": 8 if "8bit" in name else 32}
    if cls != "RMSprop":
        fixed["is_paged"] = name.startswith("paged")
    if cls == "AdEMAMix":
        fixed["alpha"] = 5.0
    return Recipe(f"bitsandbytes.optim:{cls}", takes, fixed, settings)


_BITSANDBYTES = {
    ("AdamW", ADAM, ()): ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    ("AdEMAMix", ("betas3", "eps"), tuple(_ADEMAMIX.items())): (
        *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    ),
    ("Lion", ("betas",), ()): ("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
    ("RMSprop", (), tuple(_RMSPROP.items())): ("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
}

_GALORE = {
    "galore_adamw": ("GaLoreAdamW", {"no_deprecation_warning": True}),
    "galore_adamw_8bit": ("GaLoreAdamW8bit", {}),
    "galore_adafactor": ("GaLoreAdafactor", _GIVEN_RATE),
}


def _low_rank(name: str) -> Recipe:
    base = name.removesuffix("_layerwise")
    if base == "apollo_adamw":
        return Recipe("apollo_torch:APOLLOAdamW", ADAM, settings=_APOLLO)
    cls, fixed = _GALORE[base]
    return Recipe(f"galore_torch:{cls}", () if base == "galore_adafactor" else ("stated",), fixed, _LOW_RANK)


PACKAGES: dict[str, Recipe] = {
    **{
        name: _bitsandbytes(name, cls, takes, dict(settings))
        for (cls, takes, settings), names in _BITSANDBYTES.items()
        for name in names
    },
    **{name: _low_rank(name) for name in LOW_RANK},
    "adamw_torch_xla": Recipe("torch_xla.amp.syncfree:AdamW", ADAM),
    "adamw_torch_npu_fused": Recipe("torch_npu.optim:NpuFusedAdamW", ADAM),
    "adamw_anyprecision": Recipe("torchdistx.optimizers:AnyPrecisionAdamW", ADAM, _FULL_MOMENTS, _ANYPRECISION),
    "adamw_torch_4bit": Recipe("torchao.optim:AdamW4bit", ADAM, _BLOCKS, _TORCHAO),
    "adamw_torch_8bit": Recipe("torchao.optim:AdamW8bit", ADAM, _BLOCKS, _TORCHAO),
    "lomo": Recipe("lomo_optim:Lomo", ("weight_decay",)),
    "adalomo": Recipe("lomo_optim:AdaLomo", ("weight_decay",)),
    "grokadamw": Recipe("grokadamw:GrokAdamW", ADAM, _GROKKING, _GROK),
    "schedule_free_radam": Recipe(
        "schedulefree:RAdamScheduleFree",
        (*ADAM, "weight_decay"),
        _AVERAGING,
        {**_SCHEDULE_FREE, "silent_sgd_phase": flag},
    ),
    "schedule_free_adamw": Recipe(
        "schedulefree:AdamWScheduleFree", (*ADAM, "weight_decay", "warmup_steps"), _AVERAGING, _SCHEDULE_FREE
    ),
    "schedule_free_sgd": Recipe(
        "schedulefree:SGDScheduleFree",
        ("weight_decay", "warmup_steps"),
        _AVERAGING,
        {**_SCHEDULE_FREE, "momentum": float},
    ),
    "stable_adamw": Recipe(
        "optimi:StableAdamW",
        (*ADAM, "weight_decay", "triton"),
        {"max_lr": None, "kahan_sum": None, "decouple_lr": False},
        {"max_lr": float, "kahan_sum": flag, "decouple_lr": flag},
    ),
}

RECIPES: dict[str, Recipe] = TORCH | PACKAGES
