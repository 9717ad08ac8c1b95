"""The schema of ``spec.trainingArguments``: the fields of ``TrainingArguments`` and the rules over several fields."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

from trainwright.arguments import sharding
from trainwright.arguments.accelerator import AcceleratorConfig
from trainwright.arguments.fields import FIELDS, FieldInfo
from trainwright.rules import AXES
from trainwright.rules import RULES as ARGUMENT_RULES
from trainwright.rules import Rule as ArgumentRule
from trainwright_operator.api import formats, mirror
from trainwright_operator.api.types import (
    INT32_MAX,
    INT64_MAX,
    RULES,
    Pattern,
    Rule,
    Schema,
    at_creation,
    boolean,
    free,
    integer,
    list_of,
    number,
    open_record,
    record,
    string,
)

FIXED = "cannot change after creation; give the new run a new name (only maxSteps and numTrainEpochs can go up)"
APPEARED = "cannot be added or removed after creation", "; give the new run a new name"
UPWARD = "can only go up after creation; give the new run a new name"

MAX_TEXT, MAX_ITEMS = 4096, 256
LARGEST = 1e12
"""The bound of a number that declares none: ``int()`` in CEL still accepts it."""


def training_arguments() -> Schema:
    """The schema, with each rule placed where it costs the API server least.

    The API server evaluates the rules at every write of the object, status updates included. A rule on one field costs
    nothing while the field is absent. A rule on the whole object costs CEL time in proportion to the number of fields,
    so rules over several fields run only at creation. That is enough: afterwards only maxSteps and numTrainEpochs may
    change, and raising them breaks no rule.
    """
    return record(
        "The fields of TrainingArguments and Seq2SeqTrainingArguments in camelCase, except "
        f"{', '.join(map(mirror.camel, mirror.ABSENT))}.",
        {mirror.camel(name): _field(info) for name, info in mirror.MIRRORED.items()},
        rules=[*at_creation(_rules_over_fields()), _same_fields(), _epochs_go_up()],
    )


def _field(info: FieldInfo) -> Schema:
    about = describe(info)
    shape = _SPECIAL[info.name](about) if info.name in _SPECIAL else _SHAPES[info.kind](info, about)
    rules = _change(info)
    return shape | {RULES: [*shape.get(RULES, ()), *rules]} if rules else shape


def describe(info: FieldInfo) -> str:
    """The description with camelCase names, and the default."""
    return f"{mirror.in_manifest_names(info.description)} Default: {_default(info)}."


def _default(info: FieldInfo) -> str:
    default = info.default
    if default is None or default == []:
        return "not set"
    if isinstance(default, bool):
        return {"bool|enum": "no" if not default else "all"}.get(info.kind, str(default).lower())
    return (
        "''"
        if default == ""
        else f"{default:g}"
        if isinstance(default, float)
        else str(getattr(default, "value", default))
    )


def _secret_reference(about: str) -> Schema:
    reference = record(
        "A key of a Secret in the job's namespace.",
        {"name": formats.object_name("The Secret's name."), "key": formats.config_key("The key that holds the token.")},
        required=["name", "key"],
    )
    return record(about, {"secretKeyRef": reference}, required=["secretKeyRef"])


def _accelerator_config(about: str) -> Schema:
    """Field names are those of accelerate, as Hugging Face users write them."""
    settings = {setting.name: boolean("true or false.") for setting in dataclass_fields(AcceleratorConfig)}
    accumulation = {
        "num_steps": "Batches per optimizer step.",
        "sync_each_batch": "Average gradients after every batch.",
    }
    kwargs = open_record("Settings of gradient accumulation by name.", accumulation)
    return record(about, {**settings, "gradient_accumulation_kwargs": kwargs})


_CURVE = {
    "num_cycles": "Number of cosine cycles.",
    "power": "Exponent of the polynomial.",
    "lr_end": "Final learning rate of the polynomial.",
    "timescale": "Time scale of the inverse square root, in steps.",
    "min_lr": "Lowest learning rate.",
    "min_lr_rate": "Lowest learning rate, as a fraction of learningRate.",
    "min_lr_ratio": "Lowest learning rate, as a fraction of learningRate.",
    "max_lr": "Highest learning rate.",
    "warmup_lr_rate": "Learning rate of the first step, as a fraction of learningRate.",
    "num_decay_steps": "Steps of the decay at the end.",
    "num_stable_steps": "Steps between warmup and decay.",
    "warmup_type": "Shape of the warmup: linear, cosine or 1-sqrt.",
    "decay_type": "Shape of the decay: linear, cosine or 1-sqrt.",
    "mode": "Whether a lower or a higher metric is better: min or max.",
    "factor": "Factor applied to the learning rate when the metric stops improving.",
    "patience": "Evaluations without improvement before the learning rate is reduced.",
    "threshold": "Smallest change that counts as an improvement.",
    "threshold_mode": "Whether the threshold is relative or absolute: rel or abs.",
    "cooldown": "Evaluations to wait after a reduction.",
    "warmup": "Steps to wait after an increase.",
    "eps": "Smallest change of the learning rate that is applied.",
    "smooth": "Use a moving average of the metric.",
    "window_size": "Number of values in the moving average.",
    "reset_start": "Steps after which the schedule starts again.",
}
_CHECKPOINTING = {
    "use_reentrant": "Use the reentrant implementation of torch.",
    "preserve_rng_state": "Restore the random state for the recomputation.",
    "determinism_check": "How recomputed tensors are checked: default or none.",
    "debug": "Report the operations if the two passes differ.",
    "early_stop": "Stop the recomputation as soon as all needed tensors are there.",
    "every_n_layers": "Recompute one of every so many layers.",
    "offload": "Keep activations in host memory.",
}


def _parallelism_config(about: str) -> Schema:
    """Field names are those of accelerate; sizes that are not built may say 1."""
    rest = "Default: what the other size leaves of the processes."
    sizes = {"dp_replicate_size": f"Copies of the model. {rest}", "dp_shard_size": f"Processes of one copy. {rest}"}
    built = {name: integer(text, 1, INT32_MAX) for name, text in sizes.items()}
    return record(
        about, {**built, **{name: integer("Not built yet. Default: 1.", 1, 1) for name in AXES if name not in sizes}}
    )


def _fsdp(about: str) -> Schema:
    word = "|".join(sharding.STRATEGIES)
    pattern = Pattern(rf"^\s*(({word})(\s+|$))*$", f"write some of {', '.join(sharding.STRATEGIES)}")
    return string(about, 256, pattern=pattern)


def _fsdp_config(about: str) -> Schema:
    """Field names are those of transformers; what only says what FSDP 2 does anyway has no place in a manifest."""
    formats = sorted({*sharding.DTYPES, *sharding.DTYPES.values()})
    flags = {
        "reshard_after_forward": "Free gathered weights after the forward pass, and gather them again. Default: true.",
        "cpu_offload": "Keep the shards in host memory. Default: false.",
        "activation_checkpointing": "Recompute the activations of every unit. Default: false.",
        "cpu_ram_efficient_loading": "Read the weights on the first process only. Default: false.",
        "sync_module_states": "Start with the weights of the first process. Default: true.",
        "forward_prefetch": "Gather the next unit's weights ahead of time. Default: false.",
    }
    return record(
        about,
        {
            "version": integer("FSDP's version. Default: 2.", 2, 2),
            **{name: boolean(text) for name, text in flags.items()},
            "auto_wrap_policy": string("How units are chosen. Default: by class.", among=sharding.POLICIES),
            "transformer_layer_cls_to_wrap": list_of(
                "Classes of the units. Default: those that the model calls indivisible.",
                string("A class.", least=1),
                32,
            ),
            "min_num_params": integer("Parameters of the smallest unit of SIZE_BASED_WRAP. Default: 0.", 0),
            "state_dict_type": string(
                "The form of checkpoints. Default: SHARDED_STATE_DICT.", among=sharding.STATE_DICTS
            ),
            "ignored_modules": string("A regular expression of modules not to shard. Default: none.", MAX_TEXT),
            "mixed_precision_policy": record(
                "The number formats of the units.",
                {
                    "param_dtype": string("To compute in. Default: by bf16 and fp16.", among=formats),
                    "reduce_dtype": string("To sum gradients in. Default: float32.", among=formats),
                },
            ),
        },
    )


def _open(fields: Mapping[str, str]) -> Callable[[str], Schema]:
    return lambda about: open_record(about, fields)


_SPECIAL: dict[str, Callable[[str], Schema]] = {
    mirror.HUB_TOKEN: _secret_reference,
    "accelerator_config": _accelerator_config,
    "parallelism_config": _parallelism_config,
    "fsdp": _fsdp,
    "fsdp_config": _fsdp_config,
    "lr_scheduler_kwargs": _open(_CURVE),
    "activation_checkpointing_kwargs": _open(_CHECKPOINTING),
    "gradient_checkpointing_kwargs": _open(_CHECKPOINTING),
}


def _integer(info: FieldInfo, about: str) -> Schema:
    least = -INT32_MAX - 1 if info.minimum is None else int(info.minimum)
    if info.exclusive_minimum is not None:
        least = int(info.exclusive_minimum) + 1
    most = INT32_MAX if info.maximum is None else int(info.maximum)
    return integer(about, least, min(most, INT64_MAX))


def _number(info: FieldInfo, about: str) -> Schema:
    ends = ("least" if info.exclusive_minimum is not None else "") + (
        "most" if info.exclusive_maximum is not None else ""
    )
    least = info.minimum if info.exclusive_minimum is None else info.exclusive_minimum
    most = info.maximum if info.exclusive_maximum is None else info.exclusive_maximum
    least, most = -LARGEST if least is None else least, LARGEST if most is None else most
    return number(about, least=least, most=most, open_ends=ends)


def _text(info: FieldInfo, about: str) -> Schema:
    pattern = Pattern(info.pattern, "write key=value pairs separated by commas") if info.pattern else None
    return string(about, MAX_TEXT, pattern=pattern)


def _choice(info: FieldInfo, about: str) -> Schema:
    return string(about, among=info.choices or ())


def _list(info: FieldInfo, about: str) -> Schema:
    item = string("An element.", among=info.choices) if info.choices else string("An element.", MAX_TEXT, least=1)
    return list_of(about, item, MAX_ITEMS)


_SHAPES: dict[str, Callable[[FieldInfo, str], Schema]] = {
    "bool": lambda info, about: boolean(about),
    "int": _integer,
    "float": _number,
    "str": _text,
    "enum": _choice,
    "bool|enum": _choice,
    "bool|str": _text,
    "list[str]": _list,
    "str|list[str]": _list,
    "object": lambda info, about: free(about),
    "object|path": lambda info, about: free(about),
}


def _rules_over_fields() -> list[Rule]:
    """The rules of ``trainwright.rules``, each reported at its first field."""
    return [_manifest_rule(rule, tuple(map(mirror.camel, rule.fields))) for rule in ARGUMENT_RULES]


def _manifest_rule(rule: ArgumentRule, keys: tuple[str, ...]) -> Rule:
    def holds(manifest: Mapping[str, Any]) -> bool:
        """Reads only the fields of the rule, because others may be invalid. The defaults satisfy every rule."""
        stated = {key: manifest[key] for key in keys if key in manifest}
        return not stated or rule.predicate(ChainMap(mirror.to_arguments(stated), _DEFAULTS))

    return Rule(rule.cel, rule.camel_message, holds, field=keys[0], needs=keys)


_DEFAULTS = {name: info.default for name, info in FIELDS.items()}


def _change(info: FieldInfo) -> list[Rule]:
    """How a field that is set before and after the change may change.

    Objects are compared in both directions: CEL ignores a key of the left side that the schema does not name, so the
    removal of a known key is noticed only from the side that has it.
    """
    if info.name == "num_train_epochs":
        return []
    if info.name == "max_steps":
        raised = "self == oldSelf || (oldSelf > 0 && self > oldSelf)"
        return [Rule(raised, UPWARD, lambda new, old: new == old or 0 < old < new, transition=True)]
    same = "self == oldSelf" + (" && oldSelf == self" if info.kind.startswith("object") else "")
    return [Rule(same, FIXED, lambda new, old: new == old, transition=True)]


def _same_fields() -> Rule:
    """No field may be added or removed. The fields are compared only if the object has changed at all."""
    names = [mirror.camel(name) for name in mirror.MIRRORED if name != "num_train_epochs"]
    same = " && ".join(f"has(self.{name}) == has(oldSelf.{name})" for name in names)
    changed = " + ".join(f"(has(self.{name}) == has(oldSelf.{name}) ? '' : ' {name}')" for name in names)
    begin, end = APPEARED
    return Rule(
        f"self == oldSelf || ({same})",
        f"fields {begin}{end}",
        lambda new, old: not _added_or_removed(names, new, old),
        transition=True,
        message_with_values=(
            f"'{begin}:' + {changed} + '{end}'",
            lambda new, old: f"{begin}: {' '.join(_added_or_removed(names, new, old))}{end}",
        ),
    )


def _added_or_removed(names: list[str], new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    return [name for name in names if (name in new) != (name in old)]


def _epochs_go_up() -> Rule:
    default = f"{FIELDS['num_train_epochs'].default:.1f}"
    now, before = (f"(has({side}.numTrainEpochs) ? {side}.numTrainEpochs : {default})" for side in ("self", "oldSelf"))
    return Rule(
        f"{now} >= {before}",
        UPWARD,
        lambda new, old: _epochs(new) >= _epochs(old),
        field="numTrainEpochs",
        transition=True,
    )


def _epochs(manifest: Mapping[str, Any]) -> float:
    return float(manifest.get("numTrainEpochs", _DEFAULTS["num_train_epochs"]))
