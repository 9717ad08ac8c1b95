"""``spec.trainingArguments``, from the fields of ``TrainingArguments`` and the rules that span them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

from trainwright.arguments.accelerator import AcceleratorConfig
from trainwright.arguments.fields import FIELDS, FieldInfo
from trainwright.arguments.refused import REFUSED
from trainwright.rules import RULES as SPANNING
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
APPEARED = "cannot be added or taken away after creation", "; give the new run a new name"
UPWARD = "can only go up after creation; give the new run a new name"

MAX_TEXT, MAX_ITEMS = 4096, 256
LARGEST = 1e12
"""Of a number without a bound of its own: what the rules' ``int()`` can still take."""


def training_arguments() -> Schema:
    """A rule stands at the field that it is about where it can: there it costs nothing while that field is absent.

    API servers judge the whole object at every write of its status, and each look at one of so many fields from above
    takes CEL as long as there are fields. So what spans fields is judged at creation: all are fixed after it, but for
    maxSteps and numTrainEpochs, which go up and so keep true what was true.
    """
    return record(
        "The fields of TrainingArguments and Seq2SeqTrainingArguments, in camelCase; all but "
        f"{', '.join(map(mirror.camel, mirror.ABSENT))}, which a manifest does not have.",
        {mirror.camel(name): _field(info) for name, info in mirror.MIRRORED.items()},
        rules=[*at_creation(_spanning()), _same_fields(), _epochs_go_up()],
    )


def _field(info: FieldInfo) -> Schema:
    about = describe(info)
    shape = _SPECIAL[info.name](about) if info.name in _SPECIAL else _SHAPES[info.kind](info, about)
    rules = [*_refusal(info), *_change(info)]
    return shape | {RULES: [*shape.get(RULES, ()), *rules]} if rules else shape


def describe(info: FieldInfo) -> str:
    """The description in a manifest's own names, with the default."""
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
    """Under the names of accelerate, as Hugging Face users write them."""
    settings = {setting.name: boolean("true or false.") for setting in dataclass_fields(AcceleratorConfig)}
    accumulation = {
        "num_steps": "Batches to an optimizer step.",
        "sync_each_batch": "Average gradients after every batch.",
    }
    kwargs = open_record("Settings of gradient accumulation by name.", accumulation)
    return record(about, {**settings, "gradient_accumulation_kwargs": kwargs})


_CURVE = {
    "num_cycles": "Waves of a cosine.",
    "power": "The exponent of a polynomial.",
    "lr_end": "The rate at the end of a polynomial.",
    "timescale": "Steps over which an inverse square root falls.",
    "min_lr": "The lowest rate.",
    "min_lr_rate": "The lowest rate, as a part of learningRate.",
    "min_lr_ratio": "The lowest rate, as a part of learningRate.",
    "max_lr": "The highest rate.",
    "warmup_lr_rate": "The rate of the first step, as a part of learningRate.",
    "num_decay_steps": "Steps of the fall at the end.",
    "num_stable_steps": "Steps between warmup and fall.",
    "warmup_type": "The shape of the warmup: linear, cosine or 1-sqrt.",
    "decay_type": "The shape of the fall: linear, cosine or 1-sqrt.",
    "mode": "Whether a low or a high metric is good: min or max.",
    "factor": "By what the rate is multiplied when the metric stands still.",
    "patience": "Evaluations without progress that are waited for.",
    "threshold": "The least change that is progress.",
    "threshold_mode": "Whether the threshold is a part or an amount: rel or abs.",
    "cooldown": "Evaluations to rest after a change.",
    "warmup": "Steps to rest after a rise.",
    "eps": "The least change of the rate that is made.",
    "smooth": "Judge by a moving mean.",
    "window_size": "Values in the moving mean.",
    "reset_start": "Steps after which it begins anew.",
}
_RECOMPUTING = {
    "use_reentrant": "The older implementation of torch.",
    "preserve_rng_state": "Draw the same random numbers again.",
    "determinism_check": "How recomputed tensors are compared: default or none.",
    "debug": "Tell the operations when the two passes differ.",
    "early_stop": "Recompute no more than is needed.",
    "every_n_layers": "Of how many layers one is recomputed.",
    "offload": "Keep activations in the host's memory.",
}


def _open(fields: Mapping[str, str]) -> Callable[[str], Schema]:
    return lambda about: open_record(about, fields)


_SPECIAL: dict[str, Callable[[str], Schema]] = {
    mirror.HUB_TOKEN: _secret_reference,
    "accelerator_config": _accelerator_config,
    "lr_scheduler_kwargs": _open(_CURVE),
    "activation_checkpointing_kwargs": _open(_RECOMPUTING),
    "gradient_checkpointing_kwargs": _open(_RECOMPUTING),
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
    pattern = Pattern(info.pattern, "write key=value with commas between") if info.pattern else None
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


def _spanning() -> list[Rule]:
    """The rules of ``trainwright.rules``, each reported at its first field."""
    return [_manifest_rule(rule, tuple(map(mirror.camel, rule.fields))) for rule in SPANNING]


def _manifest_rule(rule: ArgumentRule, keys: tuple[str, ...]) -> Rule:
    def fine(manifest: Mapping[str, Any]) -> bool:
        """Only the rule's own fields are read, as others may be wrong; and the defaults alone are right."""
        stated = {key: manifest[key] for key in keys if key in manifest}
        return not stated or rule.predicate(ChainMap(mirror.to_arguments(stated), _DEFAULTS))

    return Rule(rule.cel, rule.camel_message, fine, field=keys[0], needs=keys)


_DEFAULTS = {name: info.default for name, info in FIELDS.items()}


def _refusal(info: FieldInfo) -> list[Rule]:
    """That a field whose effect is not there yet is refused before a pod starts, but for its default."""
    refusal = REFUSED.get(info.name)
    if refusal is None:
        return []
    allowed = [value for value in (info.default, *refusal.built) if _fits(info, value)]
    reason = mirror.in_manifest_names(refusal.reason)
    return [Rule(_among("self", info, allowed), reason, lambda value: _built(value, allowed))]


def _fits(info: FieldInfo, value: Any) -> bool:
    """Whether a manifest can say this value at all."""
    kinds = {
        "bool": bool,
        "enum": str,
        "str": str,
        "str|list[str]": str,
        "list[str]": str,
        "bool|enum": str,
        "int": int,
    }
    return isinstance(value, kinds.get(info.kind, ()))


def _among(value: str, info: FieldInfo, allowed: list[Any]) -> str:
    if info.kind == "bool":
        return " || ".join(value if each else f"!{value}" for each in dict.fromkeys(allowed)) or "false"
    if "list" in info.kind:
        choices = ", ".join(f"'{each}'" for each in dict.fromkeys(allowed))
        return f"{value}.all(x, x in [{choices}])" if choices else f"size({value}) == 0"
    choices = ", ".join(f"'{each}'" if isinstance(each, str) else str(each) for each in dict.fromkeys(allowed))
    return f"{value} in [{choices}]" if choices else "false"


def _built(value: Any, allowed: list[Any]) -> bool:
    return all(item in allowed for item in value) if isinstance(value, list) else value in allowed


def _change(info: FieldInfo) -> list[Rule]:
    """What a field that was there and still is may become.

    An open record is compared both ways: CEL passes over a key of the left side that no schema names, so that a known
    name that went is only seen from the side that had it.
    """
    if info.name == "num_train_epochs":
        return []
    if info.name == "max_steps":
        raised = "self == oldSelf || (oldSelf > 0 && self > oldSelf)"
        return [Rule(raised, UPWARD, lambda new, old: new == old or 0 < old < new, transition=True)]
    same = "self == oldSelf" + (" && oldSelf == self" if info.kind.startswith("object") else "")
    return [Rule(same, FIXED, lambda new, old: new == old, transition=True)]


def _same_fields() -> Rule:
    """No field may appear or go. All are looked at only after a change, which is when one of them may have."""
    names = [mirror.camel(name) for name in mirror.MIRRORED if name != "num_train_epochs"]
    same = " && ".join(f"has(self.{name}) == has(oldSelf.{name})" for name in names)
    changed = " + ".join(f"(has(self.{name}) == has(oldSelf.{name}) ? '' : ' {name}')" for name in names)
    begin, end = APPEARED
    return Rule(
        f"self == oldSelf || ({same})",
        f"fields {begin}{end}",
        lambda new, old: not _come_or_gone(names, new, old),
        transition=True,
        words=(
            f"'{begin}:' + {changed} + '{end}'",
            lambda new, old: f"{begin}: {' '.join(_come_or_gone(names, new, old))}{end}",
        ),
    )


def _come_or_gone(names: list[str], new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    return [name for name in names if (name in new) != (name in old)]


def _epochs_go_up() -> Rule:
    default = f"{FIELDS['num_train_epochs'].default:.1f}"
    now, before = (f"(has({it}.numTrainEpochs) ? {it}.numTrainEpochs : {default})" for it in ("self", "oldSelf"))
    return Rule(
        f"{now} >= {before}",
        UPWARD,
        lambda new, old: _epochs(new) >= _epochs(old),
        field="numTrainEpochs",
        transition=True,
    )


def _epochs(manifest: Mapping[str, Any]) -> float:
    return float(manifest.get("numTrainEpochs", _DEFAULTS["num_train_epochs"]))
