"""``trainwright explain``: describes a field, from the schema that validates it."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from trainwright.nearest import nearest
from trainwright_operator.api import declare, mirror, names
from trainwright_operator.api.job import JobSpec
from trainwright_operator.api.manifest import join
from trainwright_operator.api.pool import AcceleratorPool
from trainwright_operator.api.status import job_status
from trainwright_operator.api.types import FREE, INT_OR_STRING, RULES, Rule, Schema
from trainwright_operator.api.unknown_fields import removed

DONE, INVALID = 0, 2
ARGUMENTS = "spec.trainingArguments"
MOST_WIDE = 100
MOST_OTHERS = 8
UNBOUNDED = 2**31 - 1
"""A bound that exists only for the API server, so it is not shown."""


@dataclass(frozen=True)
class Field:
    """One field of one of the kinds; ``path`` has no indices: ``spec.podTemplate.env.name``."""

    kind: str
    path: str
    schema: Schema
    required: bool = False
    rules: tuple[Rule, ...] = ()
    """The rules of its parent that are reported at this field, without those about changes."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def full_path(self) -> str:
        return self.path if self.kind == names.JOB_KIND else f"{self.kind}.{self.path}"


def main(options: Namespace) -> int:
    found = find(options.field)
    if not found:
        print(f"trainwright explain: no field {options.field!r}{_hint(options.field)}", file=sys.stderr)
        return INVALID
    first, *others = found
    width = min(shutil.get_terminal_size().columns, MOST_WIDE)
    print("\n".join(_listing(first) if options.recursive else _page(first, others, width)))
    return DONE


@lru_cache(maxsize=1)
def fields() -> tuple[Field, ...]:
    """Every field of all kinds, parents before children."""
    roots = (
        Field(names.JOB_KIND, "spec", declare.schema(JobSpec), required=True),
        Field(names.JOB_KIND, "status", job_status()),
        Field(names.POOL_KIND, "spec", declare.schema(AcceleratorPool), required=True),
    )
    return tuple(field for root in roots for field in _below(root))


def _below(parent: Field) -> Iterator[Field]:
    yield parent
    for child in children(parent):
        yield from _below(child)


def children(parent: Field) -> list[Field]:
    """The fields of an object, or of the items of a list."""
    inner = parent.schema.get("items", parent.schema)
    required = inner.get("required", ())
    rules = [rule for rule in inner.get(RULES, ()) if not rule.transition]
    return [
        Field(
            parent.kind,
            join(parent.path, name),
            schema,
            name in required,
            tuple(rule for rule in rules if (rule.field or "").split(".")[0] == name),
        )
        for name, schema in inner.get("properties", {}).items()
    ]


def find(query: str) -> list[Field]:
    """The fields that match ``query``, best match first: a path or the end of one, in camelCase or snake_case.

    Fields of a job come before those of a pool, because more people write jobs.
    """
    kind, path = _split_kind(query.strip().strip("."))
    kinds = (names.JOB_KIND, names.POOL_KIND) if kind is None else (kind,)
    return [field for each in kinds for field in _named(path, [one for one in fields() if one.kind == each])]


def _named(path: str, candidates: list[Field]) -> list[Field]:
    camel = ".".join(mirror.camel(part) for part in path.split("."))
    for wanted in (path, camel, f"spec.{camel}", f"{ARGUMENTS}.{camel}"):
        if exact := [field for field in candidates if field.path == wanted]:
            return exact
    ending = [field for field in candidates if f".{field.path}".lower().endswith(f".{camel}".lower())]
    return sorted(ending, key=lambda field: (field.path.startswith("status"), field.path.count(".")))


def _split_kind(query: str) -> tuple[str | None, str]:
    aliases = {
        **dict.fromkeys((names.JOB_KIND, names.JOB_PLURAL, names.JOB_SHORT), names.JOB_KIND),
        **dict.fromkeys((names.POOL_KIND, names.POOL_PLURAL), names.POOL_KIND),
    }
    head, _, rest = query.partition(".")
    kind = {alias.lower(): kind for alias, kind in aliases.items()}.get(head.lower())
    return (kind, rest or "spec") if kind else (None, query)


def _hint(query: str) -> str:
    name = query.rpartition(".")[2]
    if reason := removed(mirror.snake(name)):
        return f"; {name} {reason}"
    if advice := topic(name):
        return f"; {advice}"
    near = nearest(name, dict.fromkeys(field.name for field in fields()))
    begins = near is not None and near.lower().startswith(mirror.camel(name).lower())
    if not begins and (mentions := _mentioning(name)):
        return f"; these fields mention it: {mentions}"
    return f"; did you mean {near}?" if near else "; `trainwright explain spec` lists the fields"


def _mentioning(term: str) -> str:
    """The fields whose descriptions contain ``term``."""
    whole = re.compile(rf"\b{re.escape(term)}s?\b", re.IGNORECASE)
    found = [field.full_path for field in fields() if whole.search(field.schema.get("description", ""))]
    return _some(found)


def type_of(schema: Schema) -> str:
    """The type as ``kubectl explain`` writes it."""
    if INT_OR_STRING in schema:
        return "integer or string"
    if "additionalProperties" in schema:
        return f"map of {type_of(schema['additionalProperties'])}"
    if "items" in schema:
        return f"list of {type_of(schema['items'])}"
    return "anything" if "type" not in schema else str(schema["type"])


def _page(field: Field, others: list[Field], width: int) -> list[str]:
    description = _wrapped(field.schema.get("description", ""), width)
    facts = [line for fact in _facts(field) for line in _wrapped(fact, width, "  - ", "    ")]
    below = [line for child in children(field) for line in _entry(child, width)]
    blocks = [
        [f"{field.full_path} <{type_of(field.schema)}>{' required' if field.required else ''}"],
        description,
        facts,
        ["Fields:", *below] if below else [],
        ["Fields that differ from TrainingArguments:", *_exceptions(width)] if field.path == ARGUMENTS else [],
        _wrapped(_also(others), width, "", "  "),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block).splitlines()


def _also(others: list[Field]) -> str:
    if not others:
        return ""
    return f"Also: {_some([other.full_path for other in others])}"


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - MOST_OTHERS} more" if len(paths) > MOST_OTHERS else ""
    return ", ".join(paths[:MOST_OTHERS]) + more


def _facts(field: Field) -> Iterator[str]:
    schema = field.schema.get("items", field.schema)
    if "enum" in schema:
        yield f"one of: {', '.join(choice or repr('') for choice in schema['enum'])}"
    if bounds := _bounds(schema):
        yield bounds
    if "pattern" in schema:
        yield schema["_hint"]
    yield from (f"at most {field.schema[key]} {what}" for key, what in _SIZES if key in field.schema)
    yield from (rule.message for rule in field.rules)
    yield from (rule.message for rule in schema.get(RULES, ()) if rule.field is None and not rule.transition)
    if field.path.startswith(f"{ARGUMENTS}."):
        name = mirror.snake(field.name)
        yield f"in Python: {name}" + (f" (here {mirror.EXCEPTIONS[name]})" if name in mirror.EXCEPTIONS else "")


_SIZES = (("maxItems", "items"), ("maxProperties", "entries"))


def _bounds(schema: Schema) -> str:
    if FREE in schema or schema.get("type") not in ("integer", "number"):
        return ""
    least, most = schema.get("minimum"), schema.get("maximum")
    parts = []
    if least is not None and least > -UNBOUNDED:
        parts.append(f"{'above' if schema.get('exclusiveMinimum') else 'at least'} {least:g}")
    if most is not None and most < UNBOUNDED:
        parts.append(f"{'below' if schema.get('exclusiveMaximum') else 'at most'} {most:g}")
    return ", ".join(parts)


def _entry(field: Field, width: int) -> list[str]:
    return [f"  {_head(field)}", *_wrapped(field.schema.get("description", ""), width, "      ")]


def _listing(field: Field) -> list[str]:
    depth = field.path.count(".")
    return [f"{'  ' * (one.path.count('.') - depth)}{_head(one)}" for one in _below(field)]


def _head(field: Field) -> str:
    return f"{field.name} <{type_of(field.schema)}>{' required' if field.required else ''}"


def _exceptions(width: int) -> list[str]:
    lines = (f"{mirror.camel(name)}: {form}" for name, form in mirror.EXCEPTIONS.items())
    return [part for line in lines for part in _wrapped(line, width, "  ", "    ")]


def _wrapped(text: str, width: int, first: str = "  ", rest: str | None = None) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=first if rest is None else rest)


_ADAPTERS = "adapters need a script, with peft in its image: spec.script"
_LIBRARIES = "use a script with TRL on Trainwright's Trainer: spec.script.overlay"
_TRACKERS = "name them in spec.trainingArguments.reportTo; their credentials come by spec.podTemplate.envFrom"
_DEVICES = "see spec.accelerator: pool is the kind of device, perNode the devices per pod, nodes the number of pods"
_QUANTIZED = "quantized weights need a script: spec.script"

_TERMS = {
    _ADAPTERS: "lora qlora dora peft adapter adapters lora_r lora_alpha use_peft",
    _LIBRARIES: "trl sft dpo grpo ppo orpo kto rlhf rl reward",
    _TRACKERS: "wandb mlflow tensorboard comet neptune tracker trackers",
    _DEVICES: "gpu gpus tpu tpus cuda rocm device devices num_gpus",
    _QUANTIZED: "quantization quantize bitsandbytes load_in_4bit load_in_8bit gptq awq",
}
TOPICS = {term: advice for advice, terms in _TERMS.items() for term in terms.split()}


def topic(term: str) -> str | None:
    return TOPICS.get(term.lower())
