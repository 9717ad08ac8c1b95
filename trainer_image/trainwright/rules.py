"""Rules that span several training arguments, each as a Python predicate and as CEL for the API server.

``TrainingArguments`` evaluates the predicates. The CRD has the CEL over ``self`` = ``spec.trainingArguments``, with the
same message. In CEL an absent field means its default: ``{name}`` in a template becomes ``has(...) ? ... : default``,
or only the path if absence has a separate meaning. Whole-number fields are ``int`` in CEL and other numbers are
``double``, so their literals have a decimal point.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]

DEFAULTS: dict[str, str | bool | int | float] = {
    "auto_find_batch_size": False,
    "bf16": False,
    "bf16_full_eval": False,
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "eval_strategy": "no",
    "fp16": False,
    "fp16_full_eval": False,
    "gradient_accumulation_steps": 1,
    "load_best_model_at_end": False,
    "logging_steps": 500.0,
    "logging_strategy": "steps",
    "lr_scheduler_type": "linear",
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "optim": "adamw_torch_fused",
    "save_steps": 500.0,
    "save_strategy": "steps",
    "use_cpu": False,
    "use_liger_kernel": False,
    "warmup_steps": 0.0,
}
"""The value of an absent field in CEL; its type is the type of the field."""


@dataclass(frozen=True)
class Rule:
    """``predicate`` takes all arguments by name (absent ones as their defaults) and is true if the rule holds.

    ``fields`` are those that the rule reads; errors are reported at the first one. ``message`` begins with what is
    wrong and ends with the fix, with Python names.
    """

    name: str
    fields: tuple[str, ...]
    predicate: Callable[[Values], bool]
    template: str
    message: str

    @property
    def cel(self) -> str:
        """The rule over ``self`` = ``spec.trainingArguments``, true if it holds."""
        text = self.template
        for field in self.fields:
            text = text.replace("{" + field + "}", _with_default(field))
        return text

    @property
    def camel_message(self) -> str:
        """The message with the names of the manifest."""
        text = self.message
        for field in sorted(self.fields, key=len, reverse=True):
            text = text.replace(field, camel(field))
        return text


def camel(name: str) -> str:
    """``per_device_train_batch_size`` -> ``perDeviceTrainBatchSize``."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def _with_default(field: str) -> str:
    path, default = f"self.{camel(field)}", DEFAULTS.get(field)
    if default is None:
        return path
    literal = f'"{default}"' if isinstance(default, str) else str(default).lower()
    return f"(has({path}) ? {path} : {literal})"


def violations(values: Values, unsound: Collection[str] = ()) -> list[Rule]:
    """The rules that ``values`` violate; rules that read an ``unsound`` field (of wrong type, say) are skipped."""
    return [rule for rule in RULES if not set(rule.fields) & set(unsound) and not rule.predicate(values)]


def _whole(steps: float) -> bool:
    return steps <= 1 or steps == int(steps)


def _eval_every(values: Values) -> float:
    return float(values["eval_steps"] or values["logging_steps"])


def _parts(share: float) -> int:
    """A fraction of all steps in millionths, so that 0.3 is a multiple of 0.1."""
    return int(share * 1000000.0 + 0.5)


def _multiple(save: float, every: float) -> bool:
    if save >= 1 and every >= 1:
        return int(save) % int(every) == 0
    return save < 1 and every < 1 and (_parts(every) == 0 or _parts(save) % _parts(every) == 0)


_EVAL_EVERY = "(has({eval_steps}) && {eval_steps} != 0.0 ? {eval_steps} : {logging_steps})"
# CEL has no `let`: all() over a list of one binds a name.
_WHOLE = "[STEPS].all(steps, steps <= 1.0 || double(int(steps)) == steps)"
_MULTIPLE = f"""
[{_EVAL_EVERY}].all(every, [{{save_steps}}].all(save,
  save >= 1.0 && every >= 1.0 ? int(save) % int(every) == 0
  : save < 1.0 && every < 1.0 && [int(every * 1000000.0 + 0.5)].all(part,
      part == 0 || int(save * 1000000.0 + 0.5) % part == 0)))
""".strip()

_FEEDBACK = ("reduce_lr_on_plateau", "greedy")
_CPU_BACKENDS = (None, "gloo", "mpi")

LAYERWISE = frozenset(
    {
        "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
        "apollo_adamw_layerwise",
    }
)  # fmt: skip
"""Optimizers with a separate instance for each layer."""
LOW_RANK = LAYERWISE | {"galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw"}
"""Optimizers that project the gradients of the layers in ``optim_target_modules``."""
IN_BACKWARD = LAYERWISE | {"lomo", "adalomo"}
"""Optimizers that step within the backward pass."""

BITSANDBYTES = frozenset(
    {
        "ademamix", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
        "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
        "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
    }
)  # fmt: skip
"""Optimizers with kernels of bitsandbytes, which know no shards."""
UNSHARDED = IN_BACKWARD | LOW_RANK | BITSANDBYTES
"""Optimizers that cannot step on the shards of ``fsdp``."""
ELEMENTWISE = frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "rmsprop"})
"""Optimizers that treat each element by itself, as the flat partitions of DeepSpeed require. It replaces Adagrad."""
AXES = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size")
"""The sizes in ``parallelism_config``."""
_SHARDS = '(has({fsdp}) && {fsdp} != "")'


EVALUATION_METRICS = {
    "CausalLM": ("loss",),
    "MaskedLM": ("loss",),
    "Seq2SeqLM": ("loss",),
    "SequenceClassification": ("loss", "accuracy", "f1_macro"),
    "TokenClassification": ("loss", "accuracy", "f1_macro"),
}
"""The metrics of an evaluation of each task, by their names for ``metric_for_best_model``."""
GENERATION_METRICS = ("loss", "exact_match", "rouge_l")
"""The same for Seq2SeqLM with ``predict_with_generate``."""
MEASURED = ("runtime", "samples_per_second", "steps_per_second")
"""Further metrics of every evaluation."""


def evaluation_metrics(task: str, generates: bool) -> tuple[str, ...]:
    return GENERATION_METRICS if generates and task == "Seq2SeqLM" else EVALUATION_METRICS[task]


def no_such_metric(name: str, known: Collection[str]) -> str:
    """The message for a ``metric_for_best_model`` that no evaluation computes."""
    return f"no evaluation gives {name}; choose one of {', '.join(known)}"


def _one_of(names: Collection[str]) -> str:
    """A list literal in CEL."""
    return "[" + ", ".join(f'"{name}"' for name in sorted(names)) + "]"


RULES: tuple[Rule, ...] = (
    Rule(
        "length",
        ("num_train_epochs", "max_steps"),
        lambda v: v["max_steps"] > 0 or v["num_train_epochs"] > 0,
        "{max_steps} > 0 || {num_train_epochs} > 0.0",
        "num_train_epochs is 0 and max_steps gives no length either; set one of them above 0",
    ),
    Rule(
        "warmup-steps-whole",
        ("warmup_steps",),
        lambda v: _whole(v["warmup_steps"]),
        _WHOLE.replace("STEPS", "{warmup_steps}"),
        "warmup_steps must be a whole number of steps, or a share of all steps below 1",
    ),
    Rule(
        "one-number-format",
        ("fp16", "bf16"),
        lambda v: not (v["fp16"] and v["bf16"]),
        "!({fp16} && {bf16})",
        "fp16 and bf16 exclude each other; keep bf16 where the hardware has it",
    ),
    Rule(
        "one-number-format-for-evaluation",
        ("fp16_full_eval", "bf16_full_eval"),
        lambda v: not (v["fp16_full_eval"] and v["bf16_full_eval"]),
        "!({fp16_full_eval} && {bf16_full_eval})",
        "fp16_full_eval and bf16_full_eval exclude each other; keep one",
    ),
    Rule(
        "logging-interval",
        ("logging_steps", "logging_strategy"),
        lambda v: v["logging_strategy"] != "steps" or v["logging_steps"] > 0,
        '{logging_strategy} != "steps" || {logging_steps} > 0.0',
        'logging_steps must be above 0 when logging_strategy is "steps"; to log nothing set logging_strategy to "no"',
    ),
    Rule(
        "logging-steps-whole",
        ("logging_steps", "logging_strategy"),
        lambda v: v["logging_strategy"] != "steps" or _whole(v["logging_steps"]),
        '{logging_strategy} != "steps" || ' + _WHOLE.replace("STEPS", "{logging_steps}"),
        "logging_steps must be a whole number of steps, or a share of all steps below 1",
    ),
    Rule(
        "eval-interval",
        ("eval_steps", "eval_strategy", "logging_steps"),
        lambda v: v["eval_strategy"] != "steps" or _eval_every(v) > 0,
        '{eval_strategy} != "steps" || ' + _EVAL_EVERY + " > 0.0",
        'eval_steps must be above 0 when eval_strategy is "steps" and logging_steps does not say how often to evaluate',
    ),
    Rule(
        "eval-steps-whole",
        ("eval_steps", "eval_strategy", "logging_steps"),
        lambda v: v["eval_strategy"] != "steps" or _whole(_eval_every(v)),
        '{eval_strategy} != "steps" || ' + _WHOLE.replace("STEPS", _EVAL_EVERY),
        "eval_steps (left out: logging_steps) must be a whole number of steps, or a share of all steps below 1",
    ),
    Rule(
        "save-interval",
        ("save_steps", "save_strategy"),
        lambda v: v["save_strategy"] != "steps" or v["save_steps"] > 0,
        '{save_strategy} != "steps" || {save_steps} > 0.0',
        'save_steps must be above 0 when save_strategy is "steps"; to save nothing set save_strategy to "no"',
    ),
    Rule(
        "save-steps-whole",
        ("save_steps", "save_strategy"),
        lambda v: v["save_strategy"] != "steps" or _whole(v["save_steps"]),
        '{save_strategy} != "steps" || ' + _WHOLE.replace("STEPS", "{save_steps}"),
        "save_steps must be a whole number of steps, or a share of all steps below 1",
    ),
    Rule(
        "save-best-needs-evaluation",
        ("save_strategy", "eval_strategy"),
        lambda v: v["save_strategy"] != "best" or v["eval_strategy"] != "no",
        '{save_strategy} != "best" || {eval_strategy} != "no"',
        'save_strategy "best" needs evaluations to tell what is best; set eval_strategy to "steps" or "epoch"',
    ),
    Rule(
        "save-best-needs-metric",
        ("metric_for_best_model", "save_strategy", "load_best_model_at_end", "lr_scheduler_type"),
        lambda v: (
            v["save_strategy"] != "best"
            or v["metric_for_best_model"] is not None
            or v["load_best_model_at_end"]
            or v["lr_scheduler_type"] in _FEEDBACK
        ),
        '{save_strategy} != "best" || has({metric_for_best_model}) || {load_best_model_at_end} || '
        '{lr_scheduler_type} in ["reduce_lr_on_plateau", "greedy"]',
        'metric_for_best_model must say what save_strategy "best" goes by; "loss" is the usual one',
    ),
    Rule(
        "load-best-needs-evaluation",
        ("load_best_model_at_end", "eval_strategy"),
        lambda v: not v["load_best_model_at_end"] or v["eval_strategy"] != "no",
        '!{load_best_model_at_end} || {eval_strategy} != "no"',
        'load_best_model_at_end needs evaluations; set eval_strategy to "steps" or "epoch"',
    ),
    Rule(
        "load-best-same-strategies",
        ("load_best_model_at_end", "save_strategy", "eval_strategy"),
        lambda v: (
            not v["load_best_model_at_end"]
            or v["eval_strategy"] == "no"
            or v["save_strategy"] in ("best", v["eval_strategy"])
        ),
        '!{load_best_model_at_end} || {eval_strategy} == "no" || {save_strategy} == "best" || '
        "{save_strategy} == {eval_strategy}",
        'load_best_model_at_end needs save_strategy to be the same as eval_strategy, or "best"',
    ),
    Rule(
        "load-best-save-on-evaluation",
        ("load_best_model_at_end", "save_steps", "eval_steps", "logging_steps", "save_strategy", "eval_strategy"),
        lambda v: (
            not v["load_best_model_at_end"]
            or v["save_strategy"] != "steps"
            or v["eval_strategy"] != "steps"
            or _multiple(v["save_steps"], _eval_every(v))
        ),
        '!{load_best_model_at_end} || {save_strategy} != "steps" || {eval_strategy} != "steps" || ' + _MULTIPLE,
        "load_best_model_at_end needs save_steps to be a multiple of eval_steps (logging_steps where it is left out), "
        "both whole numbers or both shares below 1",
    ),
    Rule(
        "scheduler-needs-evaluation",
        ("lr_scheduler_type", "eval_strategy"),
        lambda v: v["lr_scheduler_type"] not in _FEEDBACK or v["eval_strategy"] != "no",
        '!({lr_scheduler_type} in ["reduce_lr_on_plateau", "greedy"]) || {eval_strategy} != "no"',
        'lr_scheduler_type follows the evaluation here; set eval_strategy to "steps" or "epoch"',
    ),
    Rule(
        "low-rank-needs-targets",
        ("optim_target_modules", "optim"),
        lambda v: v["optim"] not in LOW_RANK or v["optim_target_modules"] is not None,
        "!({optim} in " + _one_of(LOW_RANK) + ") || has({optim_target_modules})",
        "optim_target_modules must name the layers that a low-rank optim projects; all-linear takes every one",
    ),
    Rule(
        "steps-in-backward-take-whole-batches",
        ("gradient_accumulation_steps", "optim"),
        lambda v: v["optim"] not in IN_BACKWARD or v["gradient_accumulation_steps"] == 1,
        "!({optim} in " + _one_of(IN_BACKWARD) + ") || {gradient_accumulation_steps} == 1",
        "gradient_accumulation_steps must be 1 with an optim that steps within the backward pass",
    ),
    Rule(
        "steps-in-backward-take-no-scaled-gradients",
        ("fp16", "optim"),
        lambda v: v["optim"] not in IN_BACKWARD or not v["fp16"],
        "!({optim} in " + _one_of(IN_BACKWARD) + ") || !{fp16}",
        "fp16 scales the gradients, and this optim steps before they are scaled back; use bf16",
    ),
    Rule(
        "one-way-to-shard",
        ("fsdp", "deepspeed"),
        lambda v: not (v["fsdp"] and v["deepspeed"] is not None),
        f"!({_SHARDS} && has({{deepspeed}}))",
        "fsdp and deepspeed exclude each other; keep one",
    ),
    Rule(
        "fsdp-settings-need-fsdp",
        ("fsdp_config", "fsdp"),
        lambda v: v["fsdp_config"] is None or bool(v["fsdp"]),
        f"!has({{fsdp_config}}) || {_SHARDS}",
        "fsdp_config needs fsdp; set it, or leave both out",
    ),
    Rule(
        "sizes-need-fsdp",
        ("parallelism_config", "fsdp"),
        lambda v: v["parallelism_config"] is None or bool(v["fsdp"]),
        f"!has({{parallelism_config}}) || {_SHARDS}",
        "parallelism_config sizes the mesh of fsdp; set fsdp, or leave it out",
    ),
    Rule(
        "optimizers-that-take-shards",
        ("optim", "fsdp"),
        lambda v: not v["fsdp"] or v["optim"] not in UNSHARDED,
        f"!{_SHARDS} || !({{optim}} in " + _one_of(UNSHARDED) + ")",
        "optim cannot step on the shards of fsdp; choose one that torch computes, such as the default, or drop fsdp",
    ),
    Rule(
        "optimizers-that-take-partitions",
        ("optim", "deepspeed"),
        lambda v: v["deepspeed"] is None or v["optim"] in ELEMENTWISE,
        "!has({deepspeed}) || {optim} in " + _one_of(ELEMENTWISE),
        "optim cannot step on DeepSpeed's partitions, which are flat; choose AdamW of torch, sgd or rmsprop",
    ),
    Rule(
        "deepspeed-is-made-once",
        ("auto_find_batch_size", "deepspeed"),
        lambda v: v["deepspeed"] is None or not v["auto_find_batch_size"],
        "!has({deepspeed}) || !{auto_find_batch_size}",
        "auto_find_batch_size cannot make DeepSpeed's engine again after a step that failed; set the batch size",
    ),
    Rule(
        "liger-settings-need-liger",
        ("liger_kernel_config", "use_liger_kernel"),
        lambda v: v["liger_kernel_config"] is None or v["use_liger_kernel"],
        "!has({liger_kernel_config}) || {use_liger_kernel}",
        "liger_kernel_config needs use_liger_kernel; set it, or leave both out",
    ),
    Rule(
        "prefetch-needs-workers",
        ("dataloader_prefetch_factor", "dataloader_num_workers"),
        lambda v: v["dataloader_prefetch_factor"] is None or v["dataloader_num_workers"] > 0,
        "!has({dataloader_prefetch_factor}) || {dataloader_num_workers} > 0",
        "dataloader_prefetch_factor needs loading processes; set dataloader_num_workers above 0 or leave it out",
    ),
    Rule(
        "persistent-needs-workers",
        ("dataloader_persistent_workers", "dataloader_num_workers"),
        lambda v: not v["dataloader_persistent_workers"] or v["dataloader_num_workers"] > 0,
        "!{dataloader_persistent_workers} || {dataloader_num_workers} > 0",
        "dataloader_persistent_workers needs loading processes; set dataloader_num_workers above 0 or leave it out",
    ),
    Rule(
        "start-method-needs-workers",
        ("dataloader_multiprocessing_context", "dataloader_num_workers"),
        lambda v: v["dataloader_multiprocessing_context"] is None or v["dataloader_num_workers"] > 0,
        "!has({dataloader_multiprocessing_context}) || {dataloader_num_workers} > 0",
        "dataloader_multiprocessing_context needs loading processes; set dataloader_num_workers above 0 or drop it",
    ),
    Rule(
        "cpu-backend",
        ("ddp_backend", "use_cpu"),
        lambda v: not v["use_cpu"] or v["ddp_backend"] in _CPU_BACKENDS,
        '!{use_cpu} || !has({ddp_backend}) || {ddp_backend} in ["gloo", "mpi"]',
        'ddp_backend must be "gloo" or "mpi" with use_cpu; leave it out for gloo',
    ),
)
"""In the order of the arguments. The checks of the fields reject values that are wrong by themselves."""
